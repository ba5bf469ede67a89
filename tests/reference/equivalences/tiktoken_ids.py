#!/usr/bin/env python3
"""tiktoken's gpt2 and ours: the same ids, end-of-text included.

    tiktoken_ids.py ENCODE TOKENIZER_DIR TEXT...        (ENCODE: target/release/examples/encode)

tiktoken would download its vocabulary; here its Encoding is made of vocab.json, with tiktoken's own pattern for gpt2.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tiktoken


def encoding(folder):
    # GPT-2's printable stand-ins for bytes, and back.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    vocab = json.loads((Path(folder) / "vocab.json").read_text())
    end = vocab.pop("<|endoftext|>")
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in vocab.items()}
    from tiktoken_ext.openai_public import r50k_pat_str
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": end})


def main():
    encode, folder, *texts = sys.argv[1:]
    theirs = encoding(folder)
    for path in texts:
        text = Path(path).read_bytes().decode()
        with tempfile.TemporaryDirectory() as out:
            subprocess.run([encode, folder, path, f"{out}/ids"], check=True, stdout=subprocess.DEVNULL)
            ours = np.fromfile(f"{out}/ids", "<u4")
        ids = np.array(theirs.encode(text, allowed_special="all"), "<u4")
        if len(ids) != len(ours) or not np.array_equal(ids, ours):
            at = next((i for i, (a, b) in enumerate(zip(ids, ours)) if a != b), min(len(ids), len(ours)))
            sys.exit(f"{path}: {len(ids)} and {len(ours)} ids, the first that differs is {at}")
        print(f"{path}: {len(ids)} ids, all equal")


main()
