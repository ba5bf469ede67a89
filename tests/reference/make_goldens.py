#!/usr/bin/env python3
"""Write the goldens in tests/golden. See README.md for the conventions of every tensor.

    make_goldens.py              write all files
    make_goldens.py --check      recompute, compare with the files to 1e-6, write nothing (exit 1 if they differ)
    make_goldens.py --f32        also print how far plain f32 PyTorch is from each golden: what a tolerance must allow

All arithmetic is f64, from weights that were rounded to f32 first; results are stored as f32, losses as f64.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

import twin
from st_io import hf_config, parameter_shapes, read, write_arrays

GOLDEN = Path(__file__).resolve().parent.parent / "golden"

SHAPES = {
    "small": dict(batch=2, seq=16, seed=11, invalid=[],
                  student=hf_config(vocab=64, n_positions=16, n_embd=32, n_head=4, n_layer=2),
                  teacher=hf_config(vocab=64, n_positions=20, n_embd=40, n_head=5, n_layer=1)),
    "odd": dict(batch=3, seq=13, seed=23, invalid=[(0, 12), (1, 0), (1, 7), (2, 11), (2, 12)],
                student=hf_config(vocab=101, n_positions=17, n_embd=24, n_head=3, n_layer=3),
                teacher=hf_config(vocab=101, n_positions=15, n_embd=28, n_head=2, n_layer=1)),
}
SETTINGS = dict(alpha=0.5, tau=2.0, **{"lambda": 0.6})

ADAMW = dict(steps=20, alpha=0.3, tau=2.0, clip=0.5, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1,
             warmup=5, peak_lr=3e-3, final_lr=3e-4, **{"lambda": 0.5})

ADAMW_SEED = 53  # chosen so that no selection hangs on less than 0.01 of nll, and 6 of 20 steps are not clipped

DIVERGENCES = {"kl": twin.kl, "reverse_kl": twin.reverse_kl, "jsd": twin.jsd_half, "skew_kl": twin.skew_kl,
               "skew_reverse_kl": twin.skew_reverse_kl, "tv": twin.tv}
TAUS = [0.05, 1.0, 20.0]


def f32(t):
    return t.detach().cpu().numpy().astype(np.float32)


def gradients(model, loss, keep_graph=True):
    """Name -> gradient of a scalar. Fails if any parameter is not reached."""
    params = twin.named(model)
    return dict(zip(params, torch.autograd.grad(loss, list(params.values()), retain_graph=keep_graph)))


def metadata(student, teacher, **rest):
    return {"student_config": json.dumps(student), "teacher_config": json.dumps(teacher),
            **{k: v if isinstance(v, str) else json.dumps(v) for k, v in rest.items()}}


def models(shape, logit_std, dtype, final_gain=1.0):
    """-> arrays `student.*` and `teacher.*`, and the two models."""
    arrays, out = {}, []
    for offset, who in enumerate(("student", "teacher")):
        params = twin.random_parameters(shape[who], shape["seed"] + offset, logit_std)
        for n in ("ln_f.weight", "ln_f.bias"):
            params[n] *= np.float32(final_gain)
        arrays |= {f"{who}.{n}": a for n, a in params.items()}
        out.append(twin.build(shape[who], params, dtype))
    return arrays, *out


def shape_golden(shape, dtype):
    """One forward and three backward passes of one model shape."""
    b, t, vocab = shape["batch"], shape["seq"], shape["student"]["vocab_size"]
    alpha, lam, tau = SETTINGS["alpha"], SETTINGS["lambda"], SETTINGS["tau"]
    out, student, teacher = models(shape, 1.5, dtype)

    rng = np.random.Generator(np.random.PCG64(shape["seed"] + 100))
    out["input_ids"] = rng.integers(0, vocab, (b, t))
    out["targets"] = rng.integers(0, vocab, (b, t))  # independent of the inputs, also where not valid
    out["valid"] = np.ones((b, t), np.uint8)
    for at in shape["invalid"]:
        out["valid"][at] = 0

    ids, y = torch.from_numpy(out["input_ids"]), torch.from_numpy(out["targets"])
    valid = torch.from_numpy(out["valid"].astype(bool))
    z = twin.logits(student, ids)
    with torch.no_grad():
        q = twin.logits(teacher, ids)
    score = {
        "nll": twin.nll(z, y), "teacher_nll": twin.nll(q, y), "excess": twin.nll(z, y) - twin.nll(q, y),
        "entropy": twin.entropy(z), "teacher_entropy": twin.entropy(q),
        "kl": twin.kl(z, q), "kl_tau2": twin.kl(z, q, 2.0), "reverse_kl": twin.reverse_kl(z, q),
    }
    out |= {"logits": f32(z), "teacher_logits": f32(q)} | {n: f32(s) for n, s in score.items()}

    rows, var, gap = twin.top_rows(score["kl"].reshape(-1), out["valid"].reshape(-1), alpha)
    out["rows"] = rows
    chosen = torch.from_numpy(rows)
    out["var"] = np.array([var])
    out["cvar"] = np.array([score["kl"].detach().reshape(-1)[chosen].mean().item()])

    each = twin.row_loss(z, q, y, lam, tau)
    losses = {"ce": score["nll"][valid].sum(), "ce_kl": each[valid].sum(), "ce_kl_rows": each.reshape(-1)[chosen].sum()}
    for name, loss in losses.items():
        out[f"loss.{name}"] = np.array([loss.item()])
        out |= {f"grad.{name}.{n}": f32(g) for n, g in gradients(student, loss).items()}
    print(f"  logits std {z.std():.2f} teacher {q.std():.2f}; kept {len(rows)} of {int(valid.sum())}, "
          f"gap at VaR {gap:.1e}; " + ", ".join(f"{n} {v.item():.4f}" for n, v in losses.items()))
    return out, metadata(shape["student"], shape["teacher"], selection_score="kl", **SETTINGS)


def adamw_golden(shape, dtype):
    """Twenty optimizer steps: select by nll, loss = mean over kept, clip by hand, AdamW, warm-up and cosine."""
    c, b, t, vocab = ADAMW, shape["batch"], shape["seq"], shape["student"]["vocab_size"]
    # A small gain on the last layer norm: some gradient norms then lie below the clip and some above.
    out, student, teacher = models(shape, 1.3, dtype, final_gain=0.3)

    rng = np.random.Generator(np.random.PCG64(shape["seed"] + 200))
    ids = rng.integers(0, vocab, (c["steps"], b, t))
    # Targets follow a rule seven times in ten, so that there is something to learn and losses spread out.
    targets = np.where(rng.random(ids.shape) < 0.7, (3 * ids + 7) % vocab, rng.integers(0, vocab, ids.shape))
    out["input_ids"], out["targets"] = ids, targets

    params = twin.named(student)
    opt = torch.optim.AdamW(
        [{"params": [p for p in params.values() if p.ndim >= 2], "weight_decay": c["weight_decay"]},
         {"params": [p for p in params.values() if p.ndim < 2], "weight_decay": 0.0}],
        lr=0.0, betas=(c["beta1"], c["beta2"]), eps=c["eps"], foreach=False)

    log = {"loss": [], "lr": [], "grad_norm": [], "var": [], "mean_nll": []}
    kept, gaps = [], []
    for s in range(c["steps"]):
        y = torch.from_numpy(targets[s])
        z = twin.logits(student, torch.from_numpy(ids[s]))
        with torch.no_grad():
            q = twin.logits(teacher, torch.from_numpy(ids[s]))
        nll = twin.nll(z, y).reshape(-1)
        rows, var, gap = twin.top_rows(nll, np.ones(b * t), c["alpha"])
        loss = twin.row_loss(z, q, y, c["lambda"], c["tau"]).reshape(-1)[torch.from_numpy(rows)].sum() / len(rows)
        grads = gradients(student, loss, keep_graph=False)
        norm = math.sqrt(sum((g.double() ** 2).sum().item() for g in grads.values()))
        scale = min(1.0, c["clip"] / norm)  # exactly; torch's clip_grad_norm_ would add 1e-6 to the norm
        for n, p in params.items():
            p.grad = grads[n] * scale
        lr = twin.lr_at(s, c["steps"], c["warmup"], c["peak_lr"], c["final_lr"])
        for group in opt.param_groups:
            group["lr"] = lr
        opt.step()
        for k, v in dict(loss=loss.item(), lr=lr, grad_norm=norm, var=var, mean_nll=nll.mean().item()).items():
            log[k].append(v)
        kept.append(rows)
        gaps.append(gap)
    out |= {k: np.array(v) for k, v in log.items()} | {"rows": np.stack(kept)}
    out |= {f"final.{n}": f32(p) for n, p in params.items()}
    clipped = sum(n > c["clip"] for n in log["grad_norm"])
    assert min(gaps) > 1e-3 and 0 < clipped < c["steps"], "choose another seed"
    print(f"  loss {log['loss'][0]:.4f} -> {log['loss'][-1]:.4f}, grad norm {min(log['grad_norm']):.3f}.."
          f"{max(log['grad_norm']):.3f}, clipped {clipped} times, smallest gap at VaR {min(gaps):.1e}")
    return out, metadata(shape["student"], shape["teacher"], selection_score="loss", **c)


def divergence_golden(dtype):
    """Values D(q^tau, p^tau) and the gradient with respect to z of the SUM over rows of tau^2 D, also at extremes."""
    rng = np.random.Generator(np.random.PCG64(7))
    v = 33
    z, t = 2.0 * rng.standard_normal((8, v)), 2.0 * rng.standard_normal((8, v))
    one_hot = np.zeros(v)
    one_hot[5] = 1.0
    sign = np.where(np.arange(v) % 2 == 0, 1.0, -1.0)
    shifted = np.round(z[1] * 256) / 256  # so that adding 3 is exact in f32
    extra = [  # (kind, z, t)
        ("equal", z[0], z[0]),
        ("equal up to a constant", shifted, shifted + 3.0),
        ("equal at 1e4", 1e4 * sign, 1e4 * sign),
        ("student +-1e4", 1e4 * sign, t[2]),
        ("teacher +-1e4", z[3], 1e4 * sign),
        ("opposite +-1e4", 1e4 * sign, -1e4 * sign),
        ("teacher one-hot, student agrees", 30.0 * one_hot, 1e4 * one_hot),
        ("teacher one-hot, student elsewhere", 30.0 * np.roll(one_hot, 1), 1e4 * one_hot),
        ("all logits 1e4", np.full(v, 1e4), t[4]),
    ]
    kinds = ["random"] * 8 + [k for k, _, _ in extra]
    out = {"z": np.vstack([z] + [r for _, r, _ in extra]).astype(np.float32),
           "t": np.vstack([t] + [r for _, _, r in extra]).astype(np.float32),
           "taus": np.array(TAUS)}
    zt, tt = torch.from_numpy(out["z"]).to(dtype), torch.from_numpy(out["t"]).to(dtype)
    for name, divergence in DIVERGENCES.items():
        for tau in TAUS:
            zr = zt.clone().requires_grad_()
            d = divergence(zr, tt, tau)
            (g,) = torch.autograd.grad((tau * tau * d).sum(), zr)
            assert torch.isfinite(d).all() and torch.isfinite(g).all(), (name, tau)
            if name == "tv":  # q = p but for rounding: the sign of q - p, and so this gradient, would be noise
                g[kinds.index("equal up to a constant")] = 0.0
            out[f"{name}.{tau:g}.value"] = d.detach().numpy().astype(np.float64)
            out[f"{name}.{tau:g}.grad"] = f32(g)
    return out, {"rows": json.dumps(kinds), "tv_grad_skip": json.dumps([kinds.index("equal up to a constant")]),
                 "taus": json.dumps(TAUS), "jsd_beta": "0.5", "skew_alpha": "0.1"}


FILES = {
    "small": lambda dtype: shape_golden(SHAPES["small"], dtype),
    "odd": lambda dtype: shape_golden(SHAPES["odd"], dtype),
    "adamw": lambda dtype: adamw_golden(SHAPES["odd"] | {"seed": ADAMW_SEED}, dtype),
    "divergences": divergence_golden,
}


def distance(a, b):
    """Largest |a-b| over (the largest |b|, or 1): exact for integers."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if a.dtype.kind in "iu":
        return 0.0 if np.array_equal(a, b) else math.inf
    return float(np.abs(a.astype(np.float64) - b).max() / max(1.0, np.abs(b).max()))


def report_f32(name, exact, single):
    """Errors of plain f32 PyTorch, relative to each tensor's largest value, worst per family of tensors."""
    worst = {}
    for n, b in exact.items():
        a = single[n]
        if a.dtype.kind in "iu":
            if not np.array_equal(a, b):
                print(f"  {name}: {n} differs in f32")
            continue
        if n.startswith(("student.", "teacher.")) or n in ("z", "t", "taus", "lr"):
            continue
        parts = {n: slice(None)}
        if n.endswith("c_attn.bias"):  # the key bias has no gradient (softmax ignores it): judge it apart
            d = len(b) // 3
            parts = {n: np.r_[0:d, 2 * d:3 * d], "key bias of " + n: slice(d, 2 * d)}
        for label, index in parts.items():
            words = label.split(".")
            family = ".".join(words[:-1] if name == "divergences" else words[:2] if "grad." in label else words[:1])
            err = np.abs(a[index].astype(np.float64) - b[index]).max()
            top = np.abs(b[index]).max()
            old = worst.get(family, (0.0, 0.0, 0.0, ""))
            key = err / top if top > 1e-12 else 0.0
            worst[family] = max(old, (key, err, top, label))
    for family, (rel, err, top, label) in worst.items():
        print(f"  {name}: {family:<28} {rel:9.1e} of max ({err:.1e} of {top:.1e}, {label})")


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    ap.add_argument("--f32", action="store_true", help="print the error of f32 PyTorch against each golden")
    ap.add_argument("--only", choices=list(FILES))
    args = ap.parse_args()
    torch.set_num_threads(1)  # one summation order
    GOLDEN.mkdir(exist_ok=True)
    failed = False
    for name in [args.only] if args.only else FILES:
        print(name)
        arrays, meta = FILES[name](torch.float64)
        for n, a in arrays.items():
            assert a.dtype.kind in "iu" or np.isfinite(a).all(), n
            # In every gradient set each tensor is reached; only rows of unused positions may be zero.
            assert not n.startswith("grad.") or np.abs(a).max() > 1e-4, n
        path = GOLDEN / f"{name}.safetensors"
        if args.check:
            old, old_meta = read(path)
            same_names = old.keys() == arrays.keys()
            worst = max(distance(arrays[n], old[n]) for n in arrays) if same_names else math.inf
            ok = worst <= 1e-6 and old_meta == {k: str(v) for k, v in meta.items()}
            print(f"  {'same' if ok else 'DIFFERS'}: worst relative difference {worst:.1e}")
            failed |= not ok
        else:
            size = write_arrays(path, arrays, meta)
            back, _ = read(path)
            assert back.keys() == arrays.keys() and all(np.array_equal(back[n], arrays[n]) for n in arrays)
            print(f"  {len(arrays)} tensors, {size} bytes")
        if args.f32:
            report_f32(name, arrays, FILES[name](torch.float32)[0])
    sys.exit(failed)


if __name__ == "__main__":
    main()
