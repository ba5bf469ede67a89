#!/usr/bin/env python3
"""Models of every family, between transformers and this crate's binary. Run by hand, with each version to be held.

    check_families.py round WORK --eslm-kd BIN --text FILE [--other PYTHON]
        Random models that transformers saves into WORK (deleted first), trained ten steps and exported by the binary, and
        loaded again by this transformers and, with --other, by another environment's: names and shapes of the tensors as
        transformers writes them, NLL on the text within 1e-4 of `eval`, 100 greedy tokens the text of `generate`.
    check_families.py load FOLDER --text FILE --nll X --prompt TEXT --greedy TEXT
        The second half of that for one exported folder.
    check_families.py real FOLDER --eslm-kd BIN --text FILE [--tokens N] [--window T]
        A trained model of the Hub's layout: the same two comparisons, on about the first N tokens of the text.

Exits 1 where anything is apart. `generate` and transformers take an end-of-text token as the end; neither adds a token in
front of a prompt here.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402  (the environment must be set before transformers is imported)
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast  # noqa: E402

from check_export import TOLERANCE, evaluate  # noqa: E402

VOCAB, STEPS, NEW = 384, 10, 100
PROMPT = "The history of the town began when"
NEW_KEYS = int(transformers.__version__.split(".")[0]) >= 5
# Of one machine and one moment, or how training went: nothing that a model computes.
NO_MATTER = {"architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "bos_token_id", "eos_token_id",
             "pad_token_id", "use_cache", "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop",
             "summary_first_dropout", "n_ctx", "layer_types", "hidden_dropout", "no_rope_layer_interval"}


def rope(theta, **scaling):
    """The arguments of this version: 5 has one table, 4 a number and a table."""
    if NEW_KEYS:
        return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **scaling}}
    return {"rope_theta": theta, "rope_scaling": scaling or None}


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
SIZES = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=256)
ODD = dict(hidden_size=54, intermediate_size=70, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1, head_dim=10,
           max_position_embeddings=256)
NEOX = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256)
WINDOW = dict(use_sliding_window=True, sliding_window=20)


def neox_rope(theta, share, **scaling):
    if NEW_KEYS:
        return rope(theta, partial_rotary_factor=share, **scaling)
    return {"rotary_emb_base": theta, "rotary_pct": share, "rope_scaling": scaling or None}


GPT2 = dict(n_embd=48, n_layer=2, n_head=4, n_positions=256)
CASES = {
    "llama": ("llama", SIZES | dict(tie_word_embeddings=True) | rope(100000.0)),
    "llama-odd": ("llama", ODD | dict(tie_word_embeddings=False, attention_bias=True, mlp_bias=True) | rope(5e5, **LLAMA3)),
    "qwen2": ("qwen2", SIZES | dict(tie_word_embeddings=True) | rope(1e6)),
    "qwen2-odd": ("qwen2", ODD | dict(hidden_size=60, head_dim=20, tie_word_embeddings=False) | rope(1e6, **YARN)),
    "qwen3": ("qwen3", SIZES | dict(head_dim=16, tie_word_embeddings=True) | rope(1e6)),
    "qwen3-odd": ("qwen3", ODD | dict(tie_word_embeddings=False) | rope(1e4)),
    "qwen2-window": ("qwen2", SIZES | WINDOW | dict(max_window_layers=1, tie_word_embeddings=True) | rope(1e6)),
    "qwen3-window": ("qwen3", SIZES | WINDOW | dict(head_dim=16, layer_types=["sliding_attention", "full_attention"]) | rope(1e6)),
    "mistral": ("mistral", SIZES | dict(sliding_window=None) | rope(1e4)),
    "mistral-odd": ("mistral", ODD | dict(sliding_window=30, tie_word_embeddings=True) | rope(1e6)),
    "olmo2": ("olmo2", SIZES | rope(5e5)),
    "olmo2-odd": ("olmo2", ODD | dict(tie_word_embeddings=True, attention_bias=True) | rope(1e4)),
    "smollm3": ("smollm3", SIZES | dict(no_rope_layer_interval=2) | rope(2e6)),
    "smollm3-odd": ("smollm3", ODD | WINDOW | dict(no_rope_layers=[0, 1, 0], tie_word_embeddings=False) | rope(1e4)),
    "gpt-neox": ("gpt_neox", NEOX | neox_rope(1e4, 0.25)),
    "gpt-neox-odd": ("gpt_neox", NEOX | dict(hidden_size=60, num_attention_heads=6, use_parallel_residual=False,
                                             attention_bias=False, tie_word_embeddings=True) | neox_rope(2e4, 0.7)),
    "gpt2": ("gpt2", GPT2),
    "gpt2-gelu": ("gpt2", GPT2 | dict(n_inner=70, activation_function="gelu", scale_attn_by_inverse_layer_idx=True,
                                      scale_attn_weights=False, tie_word_embeddings=False)),
    "gpt2-relu": ("gpt2", GPT2 | dict(activation_function="relu")),
}


class Checks:
    def __init__(self):
        self.failed = False

    def say(self, ok, what):
        print(f"  {'ok' if ok else 'FAIL'}: {what}")
        self.failed |= not ok


def quiet():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def call(binary, *args):
    """The result that the binary prints as one line of JSON."""
    done = subprocess.run([binary, *map(str, args), "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, args))}: {done.stderr}")
    return json.loads(done.stdout)


def read_text(path):
    return path.read_bytes().decode()  # keeps CRLF as it is


def shapes(folder):
    """Name -> shape of the stored tensors."""
    with safe_open(folder / "model.safetensors", "np") as f:
        return {n: f.get_slice(n).get_shape() for n in f.keys()}


def encode(folder, text):
    """-> tokenizer, ids by tokenizer.json. AutoTokenizer of transformers 5 rebuilds Qwen2's whatever class is stated."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    other = AutoTokenizer.from_pretrained(folder)
    if other(text, add_special_tokens=False, verbose=False)["input_ids"] != ids:
        print(f"  note: AutoTokenizer makes a {type(other).__name__} with other ids; PreTrainedTokenizerFast keeps them")
    return tokenizer, ids


def greedy(model, ids):
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
                             max_new_tokens=NEW, num_beams=1, repetition_penalty=1.0)
    return out[0, len(ids):].tolist()


def compare(checks, folder, text, nll, predictions, prompt, expected, window):
    """NLL of `text` and the greedy continuation of `prompt` by transformers, beside what the binary said."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True,
                                                       attn_implementation="eager")
    model.eval()
    bad = {k: sorted(map(str, v)) for k, v in info.items() if v}
    checks.say(not bad, f"transformers {transformers.__version__} loads it" + (f", but {bad}" if bad else ""))
    tokenizer, ids = encode(folder, text)
    if nll is not None:
        total, count = evaluate(model, np.array(ids, np.int64), window or model.config.max_position_embeddings)
        if predictions is not None:
            checks.say(count == predictions, f"{count} predictions, {predictions} of ours")
        off = abs(total / count - nll)
        checks.say(off <= TOLERANCE, f"NLL {total / count:.6f}, {nll:.6f} of ours, apart {off:.1e}")
    new = greedy(model, tokenizer(prompt, add_special_tokens=False)["input_ids"])
    end = model.generation_config.eos_token_id
    ended = new and new[-1] in (end if isinstance(end, list) else [end])
    got = tokenizer.decode(new[:-1] if ended else new, clean_up_tokenization_spaces=False)
    same = got == expected
    checks.say(same, f"{len(new)} greedy tokens" + ("" if same else f":\n    {got!r}\n    {expected!r} of ours"))


def make(folder, kind, settings, seed):
    """A random model as transformers saves it. Its weights are large, so that greedy text does not only repeat itself."""
    config = AutoConfig.for_model(kind, vocab_size=VOCAB, initializer_range=0.15, bos_token_id=0, eos_token_id=0,
                                  **(settings | (dict(pad_token_id=None) if kind in ("smollm3", "olmo2") else {})))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for name, p in model.named_parameters():
        if p.ndim == 1:  # norms and biases begin as ones and zeros
            p.data += 0.1 * torch.randn_like(p)
    model.float().save_pretrained(folder)


def stated(folder):
    """What transformers makes of a config."""
    return {k: v for k, v in AutoConfig.from_pretrained(folder).to_dict().items() if k not in NO_MATTER}


def one_round(checks, work, name, args, text):
    kind, settings = CASES[name]
    print(name)
    folder, run, out = work / name, work / f"{name}-run", work / f"{name}-out"
    make(folder, kind, settings, seed=sorted(CASES).index(name))
    for file in (work / "tokenizer").iterdir():
        shutil.copy(file, folder)
    before = call(args.eslm_kd, "eval", folder, "--data", args.text)["nll"]
    call(args.eslm_kd, "pretrain", "--data", work / "data", "--student", folder, "--set", "init=checkpoint", "--steps", STEPS,
         "--lr", "0.003", "--set", "data.rows=4", "--set", "data.context=64", "--device", "cpu", "--out", run)
    call(args.eslm_kd, "export", run, "--out", out)
    found = call(args.eslm_kd, "eval", out, "--data", args.text)
    checks.say(found["nll"] < before - 0.05, f"trained: NLL {before:.4f} -> {found['nll']:.4f}")
    # GPT-2's names are the Hub's, which have no prefix, where its head is the embedding.
    prefix = "transformer." if kind == "gpt2" and settings.get("tie_word_embeddings", True) else ""
    bare = {n.removeprefix(prefix): s for n, s in shapes(folder).items()}
    checks.say(shapes(out) == bare, f"{len(bare)} tensors, names and shapes as transformers writes them")
    mine, theirs = stated(out), stated(folder)
    apart = {k: (theirs.get(k), mine.get(k)) for k in sorted(mine.keys() | theirs.keys()) if mine.get(k) != theirs.get(k)}
    print(f"  config beside the original's: {apart or 'the same'}")
    said = call(args.eslm_kd, "generate", out, "--prompt", PROMPT, "--temperature", 0, "--max-tokens", NEW)["text"]
    compare(checks, out, text, found["nll"], found["tokens"], PROMPT, said, None)
    if args.other:
        given = ["--text", args.text, "--nll", repr(found["nll"]), "--prompt", PROMPT, "--greedy", said]
        done = subprocess.run([args.other, __file__, "load", out, *given])
        checks.failed |= done.returncode != 0


def round_trip(args, checks):
    work = args.folder
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    text = read_text(args.text)
    call(args.eslm_kd, "tokenizer", "train", "--input", args.text, "--vocab-size", VOCAB, "--out", work / "tokenizer")
    call(args.eslm_kd, "prepare", "--input", args.text, "--tokenizer", work / "tokenizer", "--out", work / "data")
    for name in args.only or CASES:
        one_round(checks, work, name, args, text)


def real(args, checks):
    whole = read_text(args.text)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.folder)
    at = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    cut = whole.rfind("\n", 0, at[min(args.tokens, len(at) - 1)][0]) + 1
    part = Path(f"{args.folder}.part.txt")
    part.write_bytes(whole[:cut].encode())
    found = call(args.eslm_kd, "eval", args.folder, "--data", part, "--context", args.window)
    chat = [{"role": "user", "content": "What is the capital of France? Then tell me a long story about it."}]
    prompts = {"text": "One morning the ship"}
    if tokenizer.chat_template:
        prompts["chat"] = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    for kind, prompt in prompts.items():
        said = call(args.eslm_kd, "generate", args.folder, "--prompt", prompt, "--temperature", 0, "--max-tokens", NEW)
        ours = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        print(f"{kind}: {prompt!r}\n  {said['text']!r}")
        checks.say(said["prompt_tokens"] == ours, f"{ours} tokens of the prompt, {said['prompt_tokens']} of ours")
        nll = found["nll"] if kind == "text" else None  # once is enough
        compare(checks, args.folder, read_text(part), nll, found["tokens"], prompt, said["text"], args.window)
    part.unlink()


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("what", choices=["round", "load", "real"])
    ap.add_argument("folder", type=Path)
    ap.add_argument("--text", type=Path, required=True)
    ap.add_argument("--eslm-kd")
    ap.add_argument("--other", help="the Python of an environment with another transformers")
    ap.add_argument("--only", nargs="*", choices=list(CASES))
    ap.add_argument("--tokens", type=int, default=20000)
    ap.add_argument("--window", type=int, default=1024)
    ap.add_argument("--nll", type=float)
    ap.add_argument("--prompt")
    ap.add_argument("--greedy")
    args = ap.parse_args()
    if args.what != "load" and not args.eslm_kd:
        ap.error("--eslm-kd is needed")
    quiet()
    checks = Checks()
    if args.what == "load":
        compare(checks, args.folder, read_text(args.text), args.nll, None, args.prompt, args.greedy, None)
    else:
        {"round": round_trip, "real": real}[args.what](args, checks)
    sys.exit(checks.failed)


if __name__ == "__main__":
    main()
