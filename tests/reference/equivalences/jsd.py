#!/usr/bin/env python3
"""`objective.divergence = "jsd"`, TRL's GKD loss and Liger's JSD, on the logits of tests/golden/divergences.safetensors.

    jsd.py        (pip install trl liger-kernel)

Ours is tau^2 JSD(q^tau, p^tau), `objective.beta` the teacher's share of the mixture: theirs times tau^2, with their beta.
The golden's values, which our tests hold, are without tau^2, its gradients with; both for beta 1/2. Other betas are
compared with the definition.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from trl.experimental.gkd import GKDTrainer
from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction as Liger

from common import compare

GOLDEN = Path(__file__).resolve().parent.parent.parent / "golden" / "divergences.safetensors"


def definition(z, t, tau, beta):
    """q is the teacher's, p the student's."""
    p, q = (z / tau).log_softmax(-1), (t / tau).log_softmax(-1)
    m = torch.logaddexp(p + torch.log1p(torch.tensor(-beta)), q + torch.log(torch.tensor(beta)))
    kl = lambda a, b: F.kl_div(b, a, reduction="none", log_target=True).sum(-1)  # KL(a, b)
    return beta * kl(q, m) + (1 - beta) * kl(p, m)


def main():
    golden = load_file(GOLDEN)
    # The first eight rows are random, the others extreme.
    z, t = golden["z"][:8].double(), golden["t"][:8].double()
    for tau in (0.05, 1.0, 20.0):
        held, slope = golden[f"jsd.{tau:g}.value"][:8], golden[f"jsd.{tau:g}.grad"][:8].double()
        student = z.clone().requires_grad_()
        trl = GKDTrainer.generalized_jsd_loss(student[None], t[None], beta=0.5, temperature=tau, reduction="sum")
        trl.backward()
        liger = Liger.distillation_loss_fn(z / tau, t / tau, beta=0.5)
        compare(f"tau {tau:g}: ours / tau^2 and TRL's", held.sum().item(), trl.item(), 1e-6)
        compare(f"tau {tau:g}: ours / tau^2 and Liger's", held.sum().item(), liger.item(), 1e-6)
        far = (slope - tau**2 * student.grad).abs().max().item()
        compare(f"tau {tau:g}: gradient, ours less tau^2 TRL's", far / slope.abs().max().item(), 0.0, 1e-6)
    for beta in (0.1, 0.25, 0.9):
        ours = definition(z, t, 2.0, beta).sum().item()
        swapped = definition(t, z, 2.0, beta).sum().item()
        trl = GKDTrainer.generalized_jsd_loss(z[None], t[None], beta=beta, temperature=2.0, reduction="sum").item()
        liger = Liger.distillation_loss_fn(z / 2, t / 2, beta=beta).item()
        compare(f"beta {beta} (the student's share: {swapped:.4f}): definition and TRL's", ours, trl, 1e-6)
        compare(f"beta {beta}: definition and Liger's", ours, liger, 1e-6)
    kl = lambda a, b: F.kl_div(b.log_softmax(-1), a.log_softmax(-1), reduction="none", log_target=True).sum().item()
    for beta, ours, name in [(0, kl(t, z), "forward-kl"), (1, kl(z, t), "reverse-kl")]:
        trl = GKDTrainer.generalized_jsd_loss(z[None], t[None], beta=beta, reduction="sum").item()
        compare(f"beta {beta}: {name} and TRL's", ours, trl, 1e-6)


main()
