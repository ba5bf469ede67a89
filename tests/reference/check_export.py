#!/usr/bin/env python3
"""Load an exported folder with transformers, offline, and measure its perplexity on a text or on tokens.

    check_export.py MODEL_DIR --text FILE [--expect-nll X] [--max-tokens N] [--window T] [--save-ids FILE]
    check_export.py MODEL_DIR TOKENS_FILE [--token-dtype u16|u32] [--offset BYTES] [--expect-nll X] ...

The token sequence is cut into windows that do not overlap: window i reads ids[i*T .. i*T+T] and predicts the next token
of each, ids[i*T+1 .. i*T+T+1], with T = n_positions. The first token of the file has no prediction; every other one is
predicted exactly once, from within its window. The last window may be shorter. NLL is the mean over all predictions, in
nats; bits per byte divides the sum by ln 2 and by the UTF-8 bytes of the predicted tokens' text (all but the first).
TOKENS_FILE is raw little-endian ids after --offset bytes. Exit 1 if the NLL is off, or the folder is not what
transformers expects.
"""

import argparse
import math
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402  (the environment must be set before transformers is imported)
import transformers  # noqa: E402
import torch  # noqa: E402
from transformers import AutoTokenizer, GPT2LMHeadModel  # noqa: E402

TOLERANCE = 1e-4


def evaluate(model, ids, window):
    """-> (sum of NLL in f64, number of predictions)"""
    total = 0.0
    for at in range(0, len(ids) - 1, window):
        chunk = torch.from_numpy(ids[at:at + window + 1].astype(np.int64))
        with torch.no_grad():
            z = model(input_ids=chunk[None, :-1], use_cache=False).logits[0].float()
            total += (torch.logsumexp(z, -1) - z.gather(1, chunk[1:, None])[:, 0]).double().sum().item()
    return total, len(ids) - 1


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("model", type=Path)
    ap.add_argument("tokens", type=Path, nargs="?")
    ap.add_argument("--text", type=Path)
    ap.add_argument("--token-dtype", choices=["u16", "u32"], default="u16")
    ap.add_argument("--offset", type=int, default=0, help="bytes to skip at the head of TOKENS_FILE")
    ap.add_argument("--max-tokens", type=int, help="only the first N tokens")
    ap.add_argument("--window", type=int, help="T, if not n_positions")
    ap.add_argument("--save-ids", type=Path, help="write the ids as little-endian u32")
    ap.add_argument("--expect-nll", type=float)
    ap.add_argument("--threads", type=int)
    args = ap.parse_args()
    if (args.tokens is None) == (args.text is None):
        ap.error("give either TOKENS_FILE or --text FILE")
    if not args.model.is_dir():
        ap.error(f"no such folder: {args.model}")
    if args.threads:
        torch.set_num_threads(args.threads)

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model, info = GPT2LMHeadModel.from_pretrained(args.model, dtype=torch.float32, output_loading_info=True,
                                                  local_files_only=True)
    model.eval()
    buffers = [n for n in info["unexpected_keys"] if n.endswith((".attn.bias", ".attn.masked_bias"))]
    if buffers:
        print(f"note: {len(buffers)} causal-mask buffers, which transformers ignores")
    info["unexpected_keys"] = [n for n in info["unexpected_keys"] if n not in buffers]
    bad = {k: sorted(map(str, v)) for k, v in info.items() if v}
    print(f"model: {model.num_parameters()} parameters, n_positions {model.config.n_positions}")
    if bad:
        print(f"FAIL: loading reported {bad}")
        sys.exit(1)

    tokenizer = AutoTokenizer.from_pretrained(args.model, local_files_only=True)
    print(f"tokenizer: {type(tokenizer).__name__}, {len(tokenizer)} tokens, model_max_length "
          f"{tokenizer.model_max_length}")
    if args.text:
        text = args.text.read_bytes().decode("utf-8")  # keeps CRLF as it is
        ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int64)
    else:
        kind = {"u16": "<u2", "u32": "<u4"}[args.token_dtype]
        ids = np.fromfile(args.tokens, kind, offset=args.offset).astype(np.int64)
    ids = ids[:args.max_tokens]
    if len(ids) < 2:
        sys.exit("FAIL: fewer than two tokens")
    if ids.max() >= model.config.vocab_size:
        sys.exit(f"FAIL: token id {ids.max()} at position {ids.argmax()}, vocabulary {model.config.vocab_size}")
    if args.save_ids:
        ids.astype("<u4").tofile(args.save_ids)

    # Bytes from the byte-level alphabet, not from decode(): a cut may fall inside a character.
    nbytes = token_bytes(tokenizer, ids[1:])
    window = args.window or model.config.n_positions
    total, count = evaluate(model, ids, window)
    nll = total / count
    print(f"predictions {count}  windows of {window}  bytes {nbytes}")
    print(f"nll {nll:.6f}  perplexity {math.exp(nll):.4f}  bits_per_byte {total / math.log(2) / nbytes:.6f}")
    if args.expect_nll is not None:
        off = abs(nll - args.expect_nll)
        ok = off <= TOLERANCE  # false for NaN
        print(f"{'ok' if ok else 'FAIL'}: expected {args.expect_nll:.6f}, off by {off:.2e}, tolerance {TOLERANCE:g}")
        sys.exit(0 if ok else 1)


def token_bytes(tokenizer, ids):
    """UTF-8 bytes that these tokens stand for. In byte-level BPE one character of a token is one byte; special tokens
    are counted as they are written."""
    special = {i: len(t.content.encode()) for i, t in tokenizer.added_tokens_decoder.items()}
    kinds, counts = np.unique(ids, return_counts=True)
    pieces = tokenizer.convert_ids_to_tokens(kinds.tolist())
    return sum(int(n) * special.get(i, len(p or "")) for i, p, n in zip(kinds.tolist(), pieces, counts))


if __name__ == "__main__":
    main()
