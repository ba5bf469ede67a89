#!/usr/bin/env python3
"""An exported folder through other programs: token ids and mean NLL of a text, a line each.

    check_readers.py ESLM_KD MODEL_DIR TEXT

Ours (`prepare` and `eval`) beside transformers, ctranslate2 (float32), mlx-lm (`pip install mlx[cpu]` on Linux) and
onnxruntime (exported by torch.onnx), as far as they are installed. The text is cut to one window of the model. ctranslate2 refuses padded vocabularies: export with
`--vocab exact`. Exit code 1 if ids differ, or an NLL by more than 1e-4.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from check_folders import ids_of


def nll_of(logits, ids):
    logp = torch.log_softmax(torch.as_tensor(np.asarray(logits), dtype=torch.float64), -1)
    return -logp[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].mean().item()


def onnx(model, ids, work):
    import onnxruntime

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids):
            return self.model(input_ids, use_cache=False).logits

    path = str(work / "model.onnx")
    torch.onnx.export(Logits(), (torch.tensor([ids]),), path, input_names=["input_ids"], dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    logits = session.run(None, {"input_ids": np.array([ids])})[0][0]
    return f"onnxruntime {onnxruntime.__version__} (torch {torch.__version__})", nll_of(logits[:-1], ids)


def ctranslate2_(folder, tokenizer, ids, work):
    import ctranslate2

    converter = ctranslate2.converters.TransformersConverter(folder)
    converter.convert(str(work / "ct2"), quantization="float32", force=True)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    generator = ctranslate2.Generator(str(work / "ct2"), compute_type="float32")
    scores = generator.score_batch([tokens])[0].log_probs
    return f"ctranslate2 {ctranslate2.__version__}", -float(np.mean(scores))


def mlx(folder, ids):
    from importlib.metadata import version

    import mlx.core as mx
    import mlx_lm

    logits = np.array(mlx_lm.load(folder)[0](mx.array([ids]))[0].astype(mx.float32))
    return f"mlx-lm {version('mlx-lm')}", nll_of(logits[:-1], ids)


def main():
    program, folder, text = sys.argv[1:]
    text = Path(text).read_text()
    work = Path(tempfile.mkdtemp())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer.encode(text, add_special_tokens=False)[: model.config.n_positions]
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    (work / "in.txt").write_text(text)
    run = lambda *words: subprocess.run([program, *map(str, words)], check=True, capture_output=True, text=True).stdout  # noqa: E731
    run("prepare", "--input", work / "in.txt", "--tokenizer", folder, "--out", work / "data", "-q")
    ours = ids_of(work / "data/train.bin")[:-1]
    want = json.loads(run("eval", folder, "--data", work / "in.txt", "--json", "-q"))["nll"]
    print(f"ours: {len(ours)} ids, NLL {want:.6f}")
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    rows = [(f"transformers {transformers.__version__}", nll_of(logits, ids))]
    for read in [lambda: onnx(model, ids, work), lambda: ctranslate2_(folder, tokenizer, ids, work), lambda: mlx(folder, ids)]:
        try:
            rows.append(read())
        except Exception as e:
            print(f"not run: {type(e).__name__}: {str(e)[:150]}")
    wrong = ours != ids
    print("ids", "DIFFER" if wrong else "equal")
    for name, nll in rows:
        wrong |= abs(nll - want) > 1e-4
        print(f"{name}: NLL {nll:.6f}, off by {nll - want:+.1e}")
    sys.exit(wrong)


if __name__ == "__main__":
    main()
