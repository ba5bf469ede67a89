#!/usr/bin/env python3
"""Write the goldens of the decoder families, tests/golden/family-*.safetensors. See README.md for every tensor.

    make_family_goldens.py              write all files
    make_family_goldens.py --check      recompute, compare with the files to 1e-6, write nothing (exit 1 if they differ)
    make_family_goldens.py --f32        also print how far plain f32 transformers is from each golden

The models are transformers' own classes with eager attention. Weights are f16 values, everything else is f64, also where
transformers would go down to f32 (norms, softmax, rotary tables); results are stored as f32, losses as f64.
"""

import argparse
import contextlib
import json
import math
import sys

import numpy as np
import torch
from transformers import (AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, MistralConfig, Olmo2Config,
                          Qwen2Config, Qwen3Config, SmolLM3Config)

import twin
from make_goldens import GOLDEN, distance, f32
from st_io import read, write_arrays

LAMBDA, TAU = 0.5, 2.0
PLAIN = dict(batch=1, seq=12, vocab=61)
ODD = dict(batch=2, seq=13, vocab=101)
WIDTHS = {"plain": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                        intermediate_size=12, max_position_embeddings=16),
          "odd": dict(hidden_size=18, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, head_dim=10,
                      intermediate_size=14, max_position_embeddings=32)}
# Bands in which the pairs of a head of 10 lie on every side of each limit.
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
YARN = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, beta_fast=2.0, beta_slow=0.1,
            original_max_position_embeddings=8)
GPT2 = {"plain": dict(n_embd=24, n_layer=2, n_head=4, n_inner=14, n_positions=16),
        "odd": dict(n_embd=18, n_layer=2, n_head=3, n_inner=14, n_positions=17)}
GELU = dict(activation_function="gelu", scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False,
            tie_word_embeddings=False)
NEOX = {"plain": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=12,
                      max_position_embeddings=16),
        "odd": dict(hidden_size=30, num_hidden_layers=2, num_attention_heads=3, intermediate_size=14,
                    max_position_embeddings=32)}
WINDOWED = dict(use_sliding_window=True, sliding_window=4, layer_types=["full_attention", "sliding_attention"])
RELU = dict(activation_function="relu", tie_word_embeddings=True)
# GPT-NeoX's head: the module's name since transformers 5.13, and the name in every file.
WRITTEN = {"lm_head.weight": "embed_out.weight"}


def default_rope(theta):
    return dict(rope_type="default", rope_theta=theta)


# name -> (config class, its arguments, shape, seed)
CASES = {
    "llama-plain": (LlamaConfig, WIDTHS["plain"] | dict(tie_word_embeddings=True, rope_parameters=default_rope(1e4)), PLAIN, 1),
    "llama-odd": (LlamaConfig, WIDTHS["odd"] | dict(
        max_position_embeddings=128, tie_word_embeddings=False, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5,
        rope_parameters=LLAMA3), ODD, 2),
    "qwen2-plain": (Qwen2Config, WIDTHS["plain"] | dict(tie_word_embeddings=True, rope_parameters=default_rope(1e6)), PLAIN, 3),
    "qwen2-odd": (Qwen2Config, WIDTHS["odd"] | dict(tie_word_embeddings=False, rope_parameters=YARN), ODD, 4),
    "qwen3-plain": (Qwen3Config, WIDTHS["plain"] | dict(
        head_dim=8, tie_word_embeddings=True, rope_parameters=default_rope(1e6)), PLAIN, 5),
    "qwen3-odd": (Qwen3Config, WIDTHS["odd"] | dict(tie_word_embeddings=True, rope_parameters=default_rope(1e4)), ODD, 6),
    "mistral-plain": (MistralConfig, WIDTHS["plain"] | dict(
        sliding_window=5, tie_word_embeddings=True, rope_parameters=default_rope(1e4)), PLAIN, 11),
    "mistral-odd": (MistralConfig, WIDTHS["odd"] | dict(
        sliding_window=2, tie_word_embeddings=False, rope_parameters=default_rope(1e4)), ODD, 12),
    "olmo2-plain": (Olmo2Config, WIDTHS["plain"] | dict(tie_word_embeddings=False, rope_parameters=default_rope(5e5)), PLAIN, 13),
    "olmo2-odd": (Olmo2Config, WIDTHS["odd"] | dict(
        tie_word_embeddings=True, attention_bias=True, rope_parameters=default_rope(1e4)), ODD, 14),
    "smollm3-plain": (SmolLM3Config, WIDTHS["plain"] | dict(
        tie_word_embeddings=True, no_rope_layers=[1, 0], rope_parameters=default_rope(1e4)), PLAIN, 15),
    "smollm3-odd": (SmolLM3Config, WIDTHS["odd"] | WINDOWED | dict(
        tie_word_embeddings=False, no_rope_layers=[0, 1], rope_parameters=default_rope(1e4)), ODD, 16),
    "gpt-neox-plain": (GPTNeoXConfig, NEOX["plain"] | dict(
        tie_word_embeddings=False, rope_parameters=default_rope(1e4) | dict(partial_rotary_factor=0.25)), PLAIN, 17),
    # 7 of a head's 10 columns: the fourth pair takes an eighth.
    "gpt-neox-odd": (GPTNeoXConfig, NEOX["odd"] | dict(
        tie_word_embeddings=True, use_parallel_residual=False, attention_bias=False,
        rope_parameters=default_rope(1e4) | dict(partial_rotary_factor=0.7)), ODD, 18),
    "gpt2-gelu-plain": (GPT2Config, GPT2["plain"] | GELU, PLAIN, 7),
    "gpt2-gelu-odd": (GPT2Config, GPT2["odd"] | GELU, ODD, 8),
    "gpt2-relu-plain": (GPT2Config, GPT2["plain"] | RELU, PLAIN, 9),
    "gpt2-relu-odd": (GPT2Config, GPT2["odd"] | RELU, ODD, 10),
}


@contextlib.contextmanager
def nothing_in_f32():
    """transformers computes norms, softmax and rotary tables in f32 whatever the model is in: here that word means f64."""
    was = torch.float32, torch.float, torch.Tensor.float
    torch.float32, torch.float, torch.Tensor.float = torch.float64, torch.float64, torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = was


def random_value(name, shape, rng):
    """f16 values. Not an initialisation: norms and every bias are noisy, so that every gradient is nontrivial."""
    n = rng.standard_normal(shape)
    conv1d = name.startswith("transformer.h.")  # [in, out]; others are [out, in]
    if name.endswith("bias"):
        a = 0.3 * n
    elif len(shape) == 1:
        a = 1.0 + 0.2 * n
    elif any(part in name for part in ("embed_tokens", "embed_in", "wte", "lm_head", "embed_out")):
        a = 1.5 * n / math.sqrt(shape[1])
    elif "wpe" in name:
        a = 0.15 * n
    else:  # a little large in attention, so that its softmax is far from uniform
        attention = any(part in name for part in ("q_proj", "k_proj", "c_attn", "query_key_value"))
        a = n * (1.3 if attention else 0.9) / math.sqrt(shape[0 if conv1d else 1])
    return a.astype(np.float16)


def smallest_before_relu(model):
    """Where a relu's input is within rounding of 0, its gradient is a matter of rounding: records the smallest |input|."""
    found = [math.inf]
    for block in model.transformer.h:
        block.mlp.act.register_forward_pre_hook(lambda _, x: found.append(x[0].detach().abs().min().item()))
    return found


def compute(case, dtype):
    make, settings, shape, seed = case
    b, t, v = shape["batch"], shape["seq"], shape["vocab"]
    config = make(vocab_size=v, **(dict(pad_token_id=None) | settings), bos_token_id=None, eos_token_id=None)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).eval()
    rng = np.random.Generator(np.random.PCG64(seed))
    written = WRITTEN if make is GPTNeoXConfig else {}
    params = {written.get(n, n): p for n, p in model.named_parameters()}
    out = {}
    with torch.no_grad():
        for n, p in params.items():
            out[f"weight.{n}"] = random_value(n, tuple(p.shape), rng)
            p.copy_(torch.from_numpy(out[f"weight.{n}"]).to(dtype))
    kinks = smallest_before_relu(model) if settings.get("activation_function") == "relu" else [math.inf]

    out["input_ids"] = rng.integers(0, v, (b, t))
    out["targets"] = rng.integers(0, v, (b, t))
    out["rows"] = np.sort(rng.permutation(b * t)[:b * t // 2 + 1])
    out["teacher_logits"] = (2.0 * rng.standard_normal((b, t, v))).astype(np.float32)
    y, q = torch.from_numpy(out["targets"]), torch.from_numpy(out["teacher_logits"]).to(dtype)
    z = twin.logits(model, torch.from_numpy(out["input_ids"]))
    assert z.dtype == dtype
    out["logits"] = f32(z)
    nll = twin.nll(z, y)
    losses = {"ce": nll.mean(), "ce_kl": twin.row_loss(z, q, y, LAMBDA, TAU).mean(),
              "ce_rows": nll.reshape(-1)[torch.from_numpy(out["rows"])].mean()}
    for name, loss in losses.items():
        out[f"loss.{name}"] = np.array([loss.item()])
        for n, g in zip(params, torch.autograd.grad(loss, list(params.values()), retain_graph=True)):
            out[f"grad.{name}.{n}"] = f32(g)
    assert min(kinks) > 2e-5, f"choose another seed: a relu's input is {min(kinks)}"
    stated = {k: v for k, v in json.loads(config.to_json_string()).items() if k != "transformers_version"}
    note = f"logits std {z.std():.2f}, " + ", ".join(f"{n} {l.item():.4f}" for n, l in losses.items())
    return out, {"config": json.dumps(stated), "lambda": LAMBDA, "tau": TAU}, note


def report(name, kind, got, exact):
    """The largest error by kind of tensor: of logits absolutely, of gradients over each tensor's largest value."""
    worst = {}
    for n, b in exact.items():
        kind_of = n.split(".")[0]
        if kind_of in ("logits", "grad"):
            parts = {n: slice(None)}
            if n.endswith("c_attn.bias"):  # the key bias has no gradient: softmax ignores it
                d = len(b) // 3
                parts = {n: np.r_[0:d, 2 * d:3 * d]}
            for label, index in parts.items():
                err = np.abs(got[n][index].astype(np.float64) - b[index]).max()
                err /= np.abs(b[index]).max() if kind_of == "grad" else 1.0
                worst[kind_of] = max(worst.get(kind_of, (0.0, "")), (err, label))
    print(f"  {kind}: " + ", ".join(f"{k} {e:.1e} ({n})" for k, (e, n) in worst.items()))


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    ap.add_argument("--f32", action="store_true", help="print the errors of f32 transformers against each golden")
    ap.add_argument("--only", choices=list(CASES))
    args = ap.parse_args()
    torch.set_num_threads(1)  # one summation order
    failed = False
    for name in [args.only] if args.only else CASES:
        with nothing_in_f32():
            arrays, meta, note = compute(CASES[name], torch.float64)
        print(f"{name}: {note}")
        for n, a in arrays.items():
            assert a.dtype.kind in "iu" or np.isfinite(a).all(), n
            assert not n.startswith("grad.") or np.abs(a).max() > 1e-4, n  # every tensor is reached
        path = GOLDEN / f"family-{name}.safetensors"
        if args.check:
            old, old_meta = read(path)
            same_names = old.keys() == arrays.keys()
            worst = max(distance(arrays[n], old[n]) for n in arrays) if same_names else math.inf
            ok = worst <= 1e-6 and old_meta == {k: str(v) for k, v in meta.items()}
            print(f"  {'same' if ok else 'DIFFERS'}: worst relative difference {worst:.1e}")
            failed |= not ok
        else:
            print(f"  {len(arrays)} tensors, {write_arrays(path, arrays, meta)} bytes")
        if args.f32:
            report(name, "f32", compute(CASES[name], torch.float32)[0], arrays)
            report(name, "f64 but for what transformers does in f32", compute(CASES[name], torch.float64)[0], arrays)
    sys.exit(failed)


if __name__ == "__main__":
    main()
