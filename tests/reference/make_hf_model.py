#!/usr/bin/env python3
"""Write a GPT-2 with random weights in Hugging Face layout, as a stand-in for a download.

    make_hf_model.py OUT --preset tiny|gpt2|gpt2-medium [--tokenizer DIR] [--shards N] [--seed S]
                     [--dtype f32|f16|bf16] [--prefix] [--mask-buffers f32|u8|bool] [--lm-head] [--vocab V]

Weights are GPT-2's initialisation: N(0, 0.02), residual projections divided by sqrt(2 L), biases 0, layer norms 1. Each
tensor has its own stream (seed, name), so sharding, prefix and buffers do not change a weight. Tensors are made one
at a time as the file is written: memory is one tensor, not a model.
"""

import argparse
import json
import math
import shutil
import zlib
from pathlib import Path

import numpy as np

from st_io import hf_config, nbytes, parameter_shapes, to_bf16, write

PRESETS = {
    "tiny": dict(n_positions=64, n_embd=64, n_head=4, n_layer=2),
    "gpt2": dict(n_positions=1024, n_embd=768, n_head=12, n_layer=12),
    "gpt2-medium": dict(n_positions=1024, n_embd=1024, n_head=16, n_layer=24),
}
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"]


def weight(name, shape, config, seed):
    """f32 values of one parameter (bare name)."""
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    if ".ln_" in name or name.startswith("ln_f"):
        return np.ones(shape, np.float32)
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    std = 0.02 / (math.sqrt(2 * config["n_layer"]) if name.endswith("c_proj.weight") else 1.0)
    a = rng.standard_normal(shape, np.float32)
    a *= np.float32(std)
    return a


def entries(config, args):
    """(stored name, dtype, shape, producer) in the model's order."""
    dtype = args.dtype.upper()
    cast = {"F32": lambda a: a, "F16": lambda a: a.astype(np.float16), "BF16": to_bf16}[dtype]
    prefix = "transformer." if args.prefix else ""
    out = []
    for name, shape in parameter_shapes(config).items():
        out.append((prefix + name, dtype, shape,
                    lambda name=name, shape=shape: cast(weight(name, shape, config, args.seed))))
        if args.mask_buffers and name.endswith("attn.c_attn.weight"):  # the causal mask, as old checkpoints carry it
            n, block = config["n_positions"], prefix + name.removesuffix("c_attn.weight")
            kind = {"f32": np.float32, "u8": np.uint8, "bool": np.bool_}[args.mask_buffers]
            out.append((block + "bias", args.mask_buffers.upper(), (1, 1, n, n),
                        lambda n=n, kind=kind: np.tri(n, dtype=kind)[None, None]))
            out.append((block + "masked_bias", "F32", (), lambda: np.array(-1e4, np.float32)))
    if args.lm_head:  # tied: the same values as wte
        shape = (config["vocab_size"], config["n_embd"])
        out.append(("lm_head.weight", dtype, shape, lambda: cast(weight("wte.weight", shape, config, args.seed))))
    return out


def split(items, shards):
    """Consecutive shards of about equal size, none empty."""
    sizes = [nbytes(d, s) for _, d, s, _ in items]
    out, so_far = [[]], 0
    for i, (item, size) in enumerate(zip(items, sizes)):
        full = so_far >= sum(sizes) * len(out) / shards
        needed = len(items) - i == shards - len(out)  # one tensor is left for each shard still to come
        if out[-1] and len(out) < shards and (full or needed):
            out.append([])
        out[-1].append(item)
        so_far += size
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("out", type=Path)
    ap.add_argument("--preset", choices=list(PRESETS), required=True)
    ap.add_argument("--tokenizer", type=Path, help="folder to copy tokenizer files from")
    ap.add_argument("--shards", type=int, default=1)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--vocab", type=int, default=50257)
    ap.add_argument("--dtype", choices=["f32", "f16", "bf16"], default="f32")
    ap.add_argument("--prefix", action="store_true", help="names start with `transformer.`")
    ap.add_argument("--mask-buffers", choices=["f32", "u8", "bool"], help="also attn.bias and attn.masked_bias")
    ap.add_argument("--lm-head", action="store_true", help="also the tied lm_head.weight")
    args = ap.parse_args()

    torch_dtype = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[args.dtype]
    config = hf_config(args.vocab, **PRESETS[args.preset], dropout=0.1, torch_dtype=torch_dtype)
    items = entries(config, args)
    if not 1 <= args.shards <= len(items):
        ap.error(f"--shards must lie between 1 and {len(items)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for old in [*args.out.glob("model*.safetensors"), *args.out.glob("model*.safetensors.index.json")]:
        old.unlink()
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    total = 0
    if args.shards == 1:
        total += write(args.out / "model.safetensors", items, {"format": "pt"})
    else:
        where = {}
        for i, part in enumerate(split(items, args.shards), 1):
            name = f"model-{i:05}-of-{args.shards:05}.safetensors"
            total += write(args.out / name, part, {"format": "pt"})
            where |= {n: name for n, *_ in part}
        index = {"metadata": {"total_size": sum(nbytes(d, s) for _, d, s, _ in items)}, "weight_map": where}
        (args.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    if args.tokenizer:
        for name in TOKENIZER_FILES:
            if (args.tokenizer / name).exists():
                shutil.copyfile(args.tokenizer / name, args.out / name)
    count = sum(math.prod(s) for s in parameter_shapes(config).values())
    print(f"{args.out}: {count} parameters, {len(items)} tensors, {args.shards} file(s), {total} bytes")


if __name__ == "__main__":
    main()
