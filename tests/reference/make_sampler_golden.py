#!/usr/bin/env python3
"""Write tests/golden/sampler.json: the tokens that transformers' warpers leave, and their probabilities.

    make_sampler_golden.py            write the file
    make_sampler_golden.py --check    recompute and compare, write nothing (exit 1 if they differ)

Temperature, then top-k, then top-p, each as `generate` applies it (top-p of 1 not at all). Logits are f32; the warpers
work on them in f64, and a case is left out whose choice would hang on less than 1e-6 of probability, or differs in f32.
`among_equals` marks cases whose nucleus ends among tokens of equal logits: how many stay is certain, which is not.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "sampler.json"
# Temperature, top-k, top-p.
SETTINGS = [
    (1.0, None, None), (0.5, None, None), (1.7, None, 1.0), (1.0, 1, None), (1.0, 1, 0.9), (1.0, 2, 0.5), (1.0, 5, None),
    (0.7, 5, 0.9), (1.3, 7, 0.6), (1.0, None, 0.9), (0.8, None, 0.95), (2.0, None, 0.5), (1.0, None, 1e-6), (1.0, 40, 0.99),
    (1.0, 1000, 0.3), (0.1, 10, 0.97), (5.0, 12, 0.8),
]


def rows():
    draw = np.random.Generator(np.random.PCG64(7))
    yield from (draw.normal(0, scale, n).astype(np.float32) for n, scale in [(24, 1.0), (50, 2.5), (16, 0.05), (20, 12.0)])
    yield draw.integers(-3, 4, 32).astype(np.float32)  # many equals
    yield np.zeros(8, np.float32)
    yield np.log(np.array([0.30, 0.25, 0.20, 0.15, 0.10])).astype(np.float32)


def warped(z, setting, dtype):
    temperature, k, p = setting
    scores = torch.from_numpy(z).to(dtype)[None]
    for warper in [TemperatureLogitsWarper(temperature), k and TopKLogitsWarper(k), p and p < 1 and TopPLogitsWarper(p)]:
        scores = warper(None, scores) if warper else scores
    return scores[0]


def hangs(z, setting):
    """Whether the nucleus ends so near to top-p that rounding decides."""
    p = setting[2]
    if not p or p >= 1:
        return False
    shares = warped(z, (*setting[:2], None), torch.float64).softmax(-1).sort().values.cumsum(-1)
    return bool(((shares - (1 - p)).abs() < 1e-6).any())


def compute():
    cases = []
    for z in rows():
        for setting in SETTINGS:
            scores = warped(z, setting, torch.float64)
            kept = torch.isfinite(scores)
            if hangs(z, setting) or kept.sum() != torch.isfinite(warped(z, setting, torch.float32)).sum():
                continue
            ids = kept.nonzero()[:, 0].tolist()
            least = scores[kept].min()
            among = bool(((torch.from_numpy(z).double() / setting[0] == least) & ~kept).any())
            shares = [float(f"{share:.9g}") for share in scores.softmax(-1)[kept].tolist()]
            cases.append(dict(setting=setting, ids=ids, among_equals=among, shares=shares, z=z))
    out, logits = [], []
    for case in cases:
        z = [float(f"{v:.9g}") for v in case.pop("z").tolist()]
        if z not in logits:
            logits.append(z)
        out.append({**case, "row": logits.index(z), "setting": list(case["setting"])})
    return {"logits": logits, "cases": out}


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--check", action="store_true")
    found = compute()
    if not ap.parse_args().check:
        lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in found["cases"])
        GOLDEN.write_text(f'{{"logits":{json.dumps(found["logits"])},\n"cases":[\n{lines}\n]}}\n')
        print(f"{len(found['cases'])} cases: {GOLDEN}")
        return
    stored = json.loads(GOLDEN.read_text())
    same = found["logits"] == stored["logits"] and len(found["cases"]) == len(stored["cases"])
    for a, b in zip(found["cases"], stored["cases"]):
        keys = ["row", "setting", "among_equals"] + ([] if a["among_equals"] else ["ids"])
        same &= len(a["ids"]) == len(b["ids"]) and all(a[key] == b[key] for key in keys) and np.allclose(a["shares"], b["shares"], 1e-7, 0)
    sys.exit(0 if same else f"{GOLDEN} differs from what is computed here")


if __name__ == "__main__":
    main()
