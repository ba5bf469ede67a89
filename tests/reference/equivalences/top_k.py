#!/usr/bin/env python3
"""`objective.signal = "top-k"` and DistillKit's two ways with the mass that a sparse teacher leaves out.

    top_k.py DISTILLKIT        (a checkout of github.com/arcee-ai/DistillKit; read at a61c2e7)

Ours: the k likeliest tokens, and everything else as one outcome of its own, for teacher and student alike; the top k are
taken from the teacher's logits at the objective's temperature.
"""

import importlib
import sys
import types
from pathlib import Path

import torch

from common import compare


def distillkit(folder):
    """Its KL without the rest of the package, which needs more than PyTorch."""
    package = Path(folder) / "distillkit"
    for name in ["distillkit", "distillkit.lossfuncs"]:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(package / Path(*name.split(".")[1:]))]
    for name in ["distillkit.hsd_mapping", "distillkit.signals"]:
        sys.modules[name] = types.ModuleType(name)
    sys.modules["distillkit.hsd_mapping"].HiddenStateMapping = object
    sys.modules["distillkit.signals"].DenseSignal = sys.modules["distillkit.signals"].TeacherSignal = object
    kl = importlib.import_module("distillkit.lossfuncs.kl")
    return kl.sparse_kl_div_inner, sys.modules["distillkit.missing_probability"].MissingProbabilityHandling


def ours(z, t, k, tau):
    """KL of k + 1 outcomes, without tau^2."""
    p, q = (z / tau).log_softmax(-1), (t / tau).log_softmax(-1)
    q_top, ids = q.topk(k, -1)
    p_top = p.gather(-1, ids)
    rest_q, rest_p = torch.log1p(-q_top.exp().sum(-1)), torch.log1p(-p_top.exp().sum(-1))
    return ((q_top.exp() * (q_top - p_top)).sum(-1) + rest_q.exp() * (rest_q - rest_p)).sum().item()


def main():
    inner, Missing = distillkit(sys.argv[1])
    torch.manual_seed(3)
    z, t = 2 * torch.randn(1, 20, 200).double(), 2 * torch.randn(1, 20, 200).double()
    k = 8
    values, ids = t.log_softmax(-1).topk(k, -1)
    theirs = lambda how, tau: inner(z, ids, values, missing=how, temperature=tau).item()
    compare("tau 1: ours and symmetric_uniform", ours(z, t, k, 1.0), theirs(Missing.SYMMETRIC_UNIFORM, 1.0), 1e-4)
    # Zero: the top k, renormalised, against the student's probabilities as they are.
    q = values - values.logsumexp(-1, keepdim=True)
    renormalised = (q.exp() * (q - z.log_softmax(-1).gather(-1, ids))).sum().item()
    compare("tau 1: KL of the renormalised top k and zero", renormalised, theirs(Missing.ZERO, 1.0), 1e-4)
    print(f"tau 1: ours {ours(z, t, k, 1.0):.4f}, zero {theirs(Missing.ZERO, 1.0):.4f}")
    # At another temperature than that of the stored values the rest is one outcome to them, many to us.
    print(f"tau 2: ours {ours(z, t, k, 2.0):.4f}, symmetric_uniform {theirs(Missing.SYMMETRIC_UNIFORM, 2.0):.4f}, "
          f"zero {theirs(Missing.ZERO, 2.0):.4f}")


main()
