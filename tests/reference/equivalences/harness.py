#!/usr/bin/env python3
"""`eval --bos` and lm-evaluation-harness's loglikelihood_rolling.

    harness.py PROGRAM TOKENIZER_DIR TEXT        (pip install lm-eval; TEXT: some 100 KB)

The harness predicts each of a document's N tokens, the first from end-of-text. Its windows lie side by side as ours, but
its last one is filled up to the left, so that its tokens see more. Equal where N is a multiple of the window, or not above.
"""

import math
import sys
import tempfile
from pathlib import Path

from common import compare, model_with, ours

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer


def main():
    program, tokenizer_dir, text = sys.argv[1:4]
    positions = 64
    with tempfile.TemporaryDirectory() as folder:
        model = model_with(tokenizer_dir, folder, positions)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        lm = HFLM(pretrained=model, tokenizer=tokenizer, max_length=positions, batch_size=16, device="cpu")
        ids = tokenizer(Path(text).read_text()[:100_000])["input_ids"]
        for n, windows in [(50, "one window, not full"), (64, "one window"), (64 * 40, "40 windows"), (64 * 40 + 21, "40 and a part")]:
            document = tokenizer.decode(ids[:n])
            assert tokenizer(document)["input_ids"] == ids[:n], "choose another text"
            part = Path(folder) / "part.txt"
            part.write_text(document)
            request = Instance("loglikelihood_rolling", {}, (document,), 0)
            theirs = -lm.loglikelihood_rolling([request], disable_tqdm=True)[0]
            found = ours(program, folder, part, "--bos")
            plain = ours(program, folder, part)
            assert (found["tokens"], plain["tokens"]) == (n, n - 1), (found, plain)
            size = len(document.encode())
            exact = n <= positions or n % positions == 0
            print(f"N = {n}: {windows}" + ("" if exact else " (their last window sees more; not equal)"))
            compare("  mean NLL of N", found["nll"], theirs / n, 2e-5 if exact else 0.05)
            compare("  bits per byte", found["bits_per_byte"], theirs / math.log(2) / size, 2e-5 if exact else 0.05)
            print(f"  without --bos, N - 1 predictions: {plain['nll']:.8f}")


main()
