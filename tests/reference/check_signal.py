"""Compares a signal on disk with the teacher in PyTorch, position by position. Run by hand.

    eslm-kd signal write --teacher MODEL --data DATA --out SIGNAL --context 256
    python check_signal.py MODEL DATA SIGNAL/00000-of-00001.signal

Reads the shard with docs/reference/read_signal.py. NLL and entropy must be the nearest sixteen bits; top-k's ids the
largest, their probabilities the nearest level; the mean of the draws' -ln q, less the entropy, 0 within three standard
errors, for every number of planes.
"""
import importlib.util, pathlib, struct, sys
import numpy as np
import torch
from transformers import AutoModelForCausalLM

reader = pathlib.Path(__file__).parents[2] / "docs/reference/read_signal.py"
spec = importlib.util.spec_from_file_location("read_signal", reader)
read_signal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(read_signal)
WINDOWS = 8

model, data, path = sys.argv[1:]
raw = pathlib.Path(data, "train.bin").read_bytes()
width, = struct.unpack_from("<I", raw, 12)
tokens = np.frombuffer(raw, f"<u{width}", offset=256).astype(np.int64)
shard = read_signal.Shard(path)
window, signal = shard.header["window"], shard.header["signal"]
assert window["context"] == window["stride"], "windows side by side"
teacher = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
tau = signal.get("temperature", 1.0)
size = window["context"]
first = -(-shard.first // size)
starts = [w * size for w in range(first, first + WINDOWS) if (w + 1) * size <= shard.end]
worst = {"nll": 0.0, "entropy": 0.0, "level": 0.0}
excess, ids_wrong, seen = [], 0, 0
for start in starts:
    inputs = torch.from_numpy(tokens[start : start + size].copy())[None]
    with torch.no_grad():
        logits = teacher(inputs).logits[0].double()
    log_q = torch.log_softmax(logits, -1)
    entropy = -(log_q.exp() * log_q).sum(-1)
    at_tau = torch.log_softmax(logits / tau, -1)
    entropy_tau = -(at_tau.exp() * at_tau).sum(-1)
    for i in range(size):
        scalars, row = shard.position(start + i)
        nll = -log_q[i, tokens[start + i + 1]].item()
        worst["nll"] = max(worst["nll"], abs(scalars[0] - nll) / max(nll, 1e-3))
        worst["entropy"] = max(worst["entropy"], abs(scalars[1] - entropy[i].item()) / max(entropy[i].item(), 1e-3))
        seen += 1
        if signal["kind"] == "top-k":
            want = set(at_tau[i].topk(signal["k"]).indices.tolist())
            ids_wrong += len(want - set(row))
            for id, q in row.items():
                root = at_tau[i, id].exp().sqrt().item()
                level = max(root, 1 / 1023)
                worst["level"] = max(worst["level"], abs(q**0.5 - level) * 1023)
        elif signal["kind"] == "sampled":
            of_planes = []
            for drawn in row:
                n = sum(drawn.values())
                of_planes.append(sum(c / n * -at_tau[i, id].item() for id, c in drawn.items()) - entropy_tau[i].item())
            excess.append(of_planes)
print(f"{seen} positions, worst relative difference: nll {worst['nll']:.2e}, entropy {worst['entropy']:.2e} (f16: 4.9e-4)")
assert max(worst["nll"], worst["entropy"]) < 2e-3
if signal["kind"] == "top-k":
    print(f"{ids_wrong} of {seen * signal['k']} ids are not among the largest; levels off by at most {worst['level']:.3f}")
    assert ids_wrong < seen * signal["k"] * 1e-3 and worst["level"] < 0.51
for plane, values in enumerate(np.array(excess).T):
    mean, error = values.mean(), values.std(ddof=1) / len(values) ** 0.5
    print(f"planes up to {plane}: mean cross-entropy of the draws less the entropy {mean:+.4f}, standard error {error:.4f}")
    assert abs(mean) < 3 * error
