"""The PyTorch twin: a GPT-2 from transformers, scores, divergences, and the loss of one row.

Everything is written for clarity, works in the dtype of its inputs (the goldens use f64), and differentiates by
autograd. Letters: z student logits, t teacher logits, y targets, p = softmax(z), q = softmax(t), tau temperature.
"""

import math

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from st_io import parameter_shapes


def random_parameters(config, seed, logit_std):
    """Name -> f32 numpy array. Not an initialisation: layer norms and all biases are noisy, so that every gradient is
    nontrivial, and logits come out with a standard deviation near `logit_std`. numpy's PCG64 is the same everywhere."""
    rng = np.random.Generator(np.random.PCG64(seed))
    d, out = config["n_embd"], {}
    for name, shape in parameter_shapes(config).items():
        n = rng.standard_normal(shape)
        if ".ln_" in name or name.startswith("ln_f"):
            a = 1.0 + 0.2 * n if name.endswith("weight") else 0.2 * n
        elif name.endswith("bias"):
            a = 0.2 * n
        elif name == "wte.weight":
            a = n * logit_std / math.sqrt(d)
        elif name == "wpe.weight":
            a = 0.15 * n
        else:  # fan-in scaling, a little large in attention, so that its softmax is far from uniform
            a = n * (1.5 if "c_attn" in name else 0.9) / math.sqrt(shape[0])
        out[name] = a.astype(np.float32)
    return out


def build(config, params, dtype=torch.float64):
    """GPT2LMHeadModel with these f32 weights, widened to `dtype`; eager attention, no dropout, tied head."""
    cfg = GPT2Config.from_dict(dict(config))
    cfg._attn_implementation = "eager"
    model = GPT2LMHeadModel(cfg).to(dtype).eval()
    state = {f"transformer.{n}": torch.from_numpy(np.asarray(a)).to(dtype) for n, a in params.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    return model


def named(model):
    """Parameters under their HF names without `transformer.`; the tied head appears once, as wte.weight."""
    return {n.removeprefix("transformer."): p for n, p in model.named_parameters()}


def logits(model, ids):
    """[B,T] -> [B,T,V]. Position j of the answer predicts the token after input j; nothing is shifted in here."""
    return model(input_ids=ids, use_cache=False).logits


# ---- scores and losses per position -------------------------------------------------------------------------------

def nll(z, y):
    """lse(z) - z[y]"""
    return torch.logsumexp(z, -1) - z.gather(-1, y[..., None])[..., 0]


def entropy(z):
    """lse(z) - sum_v p_v z_v"""
    return torch.logsumexp(z, -1) - (torch.softmax(z, -1) * z).sum(-1)


def kl(z, t, tau=1.0):
    """KL(q^tau || p^tau), without the factor tau^2."""
    lp, lq = torch.log_softmax(z / tau, -1), torch.log_softmax(t / tau, -1)
    return (lq.exp() * (lq - lp)).sum(-1)


def reverse_kl(z, t, tau=1.0):
    """KL(p^tau || q^tau)"""
    return kl(t, z, tau)


def _log_mix(la, lb, w):
    """log(w a + (1-w) b)"""
    return torch.logaddexp(la + math.log(w), lb + math.log1p(-w))


def jsd_half(z, t, tau=1.0):
    """0.5 KL(q||m) + 0.5 KL(p||m), m = (p+q)/2: generalised JSD at beta = 1/2, where all conventions agree."""
    lp, lq = torch.log_softmax(z / tau, -1), torch.log_softmax(t / tau, -1)
    m = _log_mix(lp, lq, 0.5)
    return 0.5 * (lq.exp() * (lq - m)).sum(-1) + 0.5 * (lp.exp() * (lp - m)).sum(-1)


def skew_kl(z, t, tau=1.0, a=0.1):
    """KL(q || a q + (1-a) p), DistiLLM's skew forward KL."""
    lp, lq = torch.log_softmax(z / tau, -1), torch.log_softmax(t / tau, -1)
    return (lq.exp() * (lq - _log_mix(lq, lp, a))).sum(-1)


def skew_reverse_kl(z, t, tau=1.0, a=0.1):
    """KL(p || a p + (1-a) q), DistiLLM's skew reverse KL."""
    return skew_kl(t, z, tau, a)


def tv(z, t, tau=1.0):
    """0.5 sum_v |q_v - p_v|; the derivative of |x| at 0 is 0."""
    return 0.5 * (torch.softmax(t / tau, -1) - torch.softmax(z / tau, -1)).abs().sum(-1)


def row_loss(z, t, y, lam, tau):
    """(1-lambda) nll + lambda tau^2 KL(q^tau || p^tau), per position."""
    return (1 - lam) * nll(z, y) + lam * tau * tau * kl(z, t, tau)


# ---- selection ----------------------------------------------------------------------------------------------------

def top_rows(score, valid, alpha):
    """score, valid: flat [N]. -> (flat indices of the k largest among valid, ascending; VaR; gap to the first dropped).
    k = ceil((1-alpha) M), M the number valid; ties go to the lower index."""
    s = score.detach().cpu().numpy().astype(np.float64)
    pool = np.flatnonzero(np.asarray(valid))
    k = math.ceil((1 - alpha) * len(pool))
    order = pool[np.lexsort((pool, -s[pool]))]  # by score descending, then by index
    gap = s[order[k - 1]] - s[order[k]] if k < len(order) else math.inf
    return np.sort(order[:k]).astype(np.int64), s[order[k - 1]], gap


# ---- the optimiser's surroundings ---------------------------------------------------------------------------------

def lr_at(s, steps, warmup, peak, floor):
    """s is 0-based: linear warm-up, peak*(s+1)/warmup, then a cosine from peak (s = warmup) to floor (s = steps)."""
    if s < warmup:
        return peak * (s + 1) / warmup
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (s - warmup) / (steps - warmup)))
