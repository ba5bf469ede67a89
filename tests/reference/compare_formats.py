"""What formats of a teacher's stored output cost in bytes, and in the loss and the gradient of a student. Run by hand.

    eslm-kd signal write --teacher MODEL --data DATA --out S50 --context 256 --signal sampled=50
    python compare_formats.py MODEL DATA S50/*.signal S64/*.signal ...

The teacher in PyTorch over windows of train.bin; each format stored and read back by its own arithmetic, written anew from
its documentation; ours read from shards with docs/reference/read_signal.py. Students: `near`, the teacher with noise of
NOISE of a matrix's deviation on all its weights; `far`, a bigram model of valid.bin, smoothed by MASS tokens' worth of the
unigram. Needs the command zstd.

With teacher q, student p, the stored ids S, and Q and P the sums over S of what is stored and of p, a format's loss has the
gradient a p_j - t_j by the logit of an id in S, b p_j elsewhere. The exact one, of KL(q || p), is p_j - q_j.

    drop    KL(t || p), t = stored / Q                            a = b = 1
    bucket  KL with one outcome more, r = 1 - Q, for all others   a = Q + r, b = a - r / (1 - P), t = stored
    inside  KL(t || p / P), t = stored / Q                        a = 1 / P, b = 0
    draws   - sum t ln p - entropy, t = count / draws             a = b = 1

Prints bytes per token; of the stored less the exact loss the mean, its standard error over tokens and the root mean square,
in nats; of the stored less the exact gradient the size in % of the exact one: root mean square over tokens, of means over
BATCH tokens, of the mean over all. Last, of draws, that root mean square over what independent draws of q have,
sqrt(mean (1 - sum q^2) / draws): above 1 if they are biased. Asserts that ours has the teacher's entropies, ids, levels.
What it printed, with sources and a reading: benches/records/2026-11-29-formats.md.
"""
import importlib.util, io, os, pathlib, struct, subprocess, sys
import numpy as np
import torch
from transformers import AutoModelForCausalLM

reader = pathlib.Path(__file__).parents[2] / "docs/reference/read_signal.py"
spec = importlib.util.spec_from_file_location("read_signal", reader)
read_signal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(read_signal)
SIZE, BATCH, WINDOWS, NOISE, MASS, MASKED = 256, 4096, 64, 0.05, 20, -1e3
torch.set_num_threads(1)


def zstd(data):
    return len(subprocess.run(["zstd", "-3", "-c", "-q"], input=data, capture_output=True, check=True).stdout)


class Format:
    """store(ln q [T, V]) gives ids [T, K] and what is read back of them: ln q, or the share of draws."""

    def __init__(self, name, loss):
        self.name, self.loss, self.bytes, self.draws = f"{name}, {loss}", loss, 0.0, 0

    end_batch = lambda self: None


class Megatron(Format):
    """NVIDIA Megatron-LM, megatron/training/distillation, commit d98e8a64 of 2026-08-22 (pull request 5019): ln q in fp16,
    16 low bits of ids, bit 17 as a bool; a batch by torch.save, zstd 3, in a tar. Loss with a "ghost token"."""

    def __init__(self, k, top_p=None):
        super().__init__(f"Megatron-LM, top {k}" + (f", top-p {top_p}" if top_p else ""), "bucket")
        self.k, self.top_p, self.parts = k, top_p, []

    def store(self, log_q):
        values, ids = log_q.topk(self.k)
        if self.top_p:
            keep = values.exp().cumsum(-1) - values.exp() < self.top_p
            values, ids = values.where(keep, MASKED), ids.where(keep, -1)
        self.parts.append((values.half(), ids))
        return ids.clamp(min=0), values.half().double()

    def end_batch(self):
        (values, ids), file, self.parts = (torch.stack(x, 1) for x in zip(*self.parts)), io.BytesIO(), []
        width = int((values > MASKED).sum(-1).max())
        values, ids = values[..., :width].clone(), ids[..., :width]
        named = {"values": [values], "indices_low": [(ids & 65535).to(torch.uint16)], "bit_17": [(ids >> 16).bool()]}
        torch.save(named, file)
        self.bytes += 512 + -(-zstd(file.getvalue()) // 512) * 512


class DistillKit(Format):
    """arcee-ai DistillKit, README and distillkit/compression, commit a61c2e7 of 2026-03-14: the largest of k in bf16, of the
    others a polynomial in their place by least squares (here in f64), f32 coefficients, ids in ceil(log2 V) bits. Its
    missing_probability_handling "zero" (the default) is `drop`, "symmetric_uniform" is `bucket`."""

    def __init__(self, name, k, exact, terms, loss):
        super().__init__(f"DistillKit, {name}", loss)
        self.k, self.exact = k, exact
        places = torch.arange(k - exact, dtype=torch.float64)
        basis = torch.stack([places.sqrt() if t == "sqrt" else places**t for t in terms], -1)
        self.basis, self.solve = basis.float(), torch.linalg.pinv(basis)

    def store(self, log_q):
        values, ids = log_q.topk(self.k)
        bits = self.k * (log_q.shape[1] - 1).bit_length()
        self.bytes += len(ids) * (2 * self.exact + 4 * self.basis.shape[1] + -(-bits // 8))
        terms = (values[:, self.exact :].double() @ self.solve.T).float()
        return ids, torch.cat([values[:, : self.exact].bfloat16().float(), terms @ self.basis.T], 1).double()


class Plain(Format):
    """The k largest. In fp16, ids in 16 bits: with bf16 instead, what DistillKit's README measures its budget pick against.
    In f32, ids as varints of a tf.train.Example, each sequence through zstd 3, ArrayRecord's default (inputs and masks are
    left out): AI-Hypercomputer MaxText, save_top_k_teacher_logits.py and distillation_utils.py, commit e591f30c of
    2026-08-22 (pull requests 3193, 3990, 4056), k of its tutorial."""

    def __init__(self, name, k, loss, half):
        super().__init__(f"{name}, top {k}", loss)
        self.k, self.half = k, half

    def store(self, log_q):
        values, ids = log_q.topk(self.k)
        if self.half:
            self.bytes += 4 * ids.numel()
            return ids, values.half().double()
        n = ids.numpy()
        digits = np.stack([n & 127 | (n >= 128) << 7, n >> 7 & 127 | (n >= 16384) << 7, n >> 14], -1).astype(np.uint8)
        self.bytes += zstd(values.numpy().tobytes() + digits[np.stack([n >= 0, n >= 128, n >= 16384], -1)].tobytes())
        return ids, values.double()


class Ours(Format):
    """A shard of docs/reference/signal-format.md, without its table of ranks."""

    def __init__(self, path):
        self.shard, self.next = read_signal.Shard(path), 0
        header = self.shard.header
        assert header["window"] == {"context": SIZE, "stride": SIZE} and self.shard.first == 0
        assert header["signal"]["temperature"] == 1.0
        draws = sum(header["signal"].get("planes", []))
        super().__init__("ours" if draws else f"ours, top {header['signal']['k']}", f"{draws} draws" if draws else "bucket")
        self.draws, self.per_token = draws, (os.path.getsize(path) - 4 * len(self.shard.ids)) / self.shard.end

    def store(self, log_q):
        said = [self.shard.position(p) for p in range(self.next, self.next + len(log_q))]
        self.next, self.bytes = self.next + len(log_q), self.bytes + self.per_token * len(log_q)
        self.entropy = torch.tensor([float(scalars[1]) for scalars, _ in said], dtype=torch.float64)
        off = (log_q.exp() * log_q).sum(-1) + self.entropy
        assert (off.abs() < 2e-3 * self.entropy.clamp(min=1e-3)).all()
        rows = [row[-1] if self.draws else row for _, row in said]
        pad = lambda x: torch.nn.utils.rnn.pad_sequence([torch.tensor(list(r)) for r in x], batch_first=True)
        ids, t = pad(rows), pad(r.values() for r in rows).double()
        if self.draws:
            assert (t.sum(-1) == self.draws).all()
            return ids, t / self.draws
        q = log_q.gather(1, ids).double().exp()
        assert (q.min(1).values > log_q.topk(ids.shape[1]).values[:, -1].double().exp() - 1e-6).all()
        assert (1023 * (t.sqrt() - q.sqrt().clamp(min=1 / 1023))).abs().max() < 0.51
        return ids, t.log()


def loss_of(format, log_p, ids, stored):
    """The loss of each token; t, a and b of its gradient; what of the ids is in S."""
    log_p, one = log_p.gather(1, ids).double(), torch.ones(len(ids), 1, dtype=torch.float64)
    if format.draws:
        return -(stored * log_p).sum(-1) - format.entropy, stored, one, one, stored > 0
    here, log_t = stored > MASKED, stored.log_softmax(-1)
    if format.loss == "drop":
        return (log_t.exp() * (log_t - log_p)).sum(-1), log_t.exp(), one, one, here
    inside = (log_p.exp() * here).sum(-1, keepdim=True)
    if format.loss == "inside":
        return (log_t.exp() * (log_t - log_p + inside.log())).sum(-1), log_t.exp(), 1 / inside, 0 * one, here
    t, ours = stored.exp(), isinstance(format, Ours)
    r = (1 - t.sum(-1, keepdim=True)).clamp(min=1 / 1023**2 if ours else 1e-8)
    out, a = (1 - inside).clamp(min=2.0**-23 if ours else 1e-8), t.sum(-1, keepdim=True) + r
    loss = (t * (stored - log_p)).sum(-1) + (r * (r.log() - out.log()))[:, 0]
    # Theirs, by autograd, has no gradient through the clamp of the student's mass; ours has.
    return loss, t, a, a - r / out * ((1 - inside >= out) | ours), here


class Bigram:
    def __init__(self, tokens, vocab):
        once = torch.bincount(tokens, minlength=vocab).double() + 0.5
        self.unigram, self.vocab = once / once.sum(), vocab
        self.pairs, self.counts = (tokens[:-1] * vocab + tokens[1:]).unique(return_counts=True)
        self.first = torch.bincount(tokens[:-1], minlength=vocab)
        self.starts = torch.searchsorted(self.pairs, torch.arange(vocab + 1) * vocab)

    def log_p(self, inputs):
        p = MASS * self.unigram.repeat(len(inputs), 1)
        for i, t in enumerate(inputs.tolist()):
            at = slice(self.starts[t], self.starts[t + 1])
            p[i, self.pairs[at] - t * self.vocab] += self.counts[at]
        return (p / (MASS + self.first[inputs])[:, None]).log().float()


def tokens_of(path):
    raw = path.read_bytes()
    width, = struct.unpack_from("<I", raw, 12)
    return torch.from_numpy(np.frombuffer(raw, f"<u{width}", offset=256).astype(np.int64))


def report(formats, students, sums, means, entropy):
    count = len(torch.cat(entropy))
    print(f"{count:,} tokens, the teacher's entropy {torch.cat(entropy).mean():.4f}")
    size = lambda vectors: sum(v.square().sum() for v in vectors) ** 0.5
    for s in students:
        kl = torch.cat([x[3] for x in sums[formats[0], s]]).mean()
        print(f"\nStudent {s}, KL {kl:.4f}\n\n| format | bytes per token | loss, mean | loss, RMS | gradient, token |"
              f" {BATCH:,} tokens | {count:,} |\n|---|" + 6 * "---:|")
        for f in formats:
            off, error, exact, _, one = torch.cat(sums[f, s], 1)
            whole = size([sum(means[f, s])]) / size([sum(means[s])])
            shares = [(error.sum() / exact.sum()) ** 0.5, size(means[f, s]) / size(means[s]), whole]
            print(f"| {f.name} | {f.bytes / count:.1f} | {off.mean():+.4f} ± {off.std() / count**0.5:.4f} |"
                  f" {off.square().mean() ** 0.5:.4f} | " + " | ".join(f"{100 * x:.2f} %" for x in shares) + " |")
            f.chance = (error.mean() / one.mean() * f.draws) ** 0.5
    print("\nOf chance: " + ", ".join(f"{f.name} {f.chance:.4f}" for f in formats if f.draws))


def main(model, data, paths):
    torch.manual_seed(1)
    teacher, near = (AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval() for _ in range(2))
    torch.set_grad_enabled(False)
    for weight in (w for w in near.parameters() if w.dim() == 2):
        weight += NOISE * weight.std() * torch.randn_like(weight)
    tokens, valid = (tokens_of(pathlib.Path(data, name)) for name in ["train.bin", "valid.bin"])
    far = Bigram(valid, teacher.config.vocab_size)
    run = lambda model, inputs: model(inputs[None]).logits[0].log_softmax(-1)
    students = {"near": lambda inputs: run(near, inputs), "far": far.log_p}
    formats = [Megatron(64), Megatron(64, 0.95), Megatron(32), Megatron(10)]
    for config in [("recommended", 128, 16, [0, 1, 2, 3, 4, "sqrt"]), ("budget pick", 50, 1, [0, 1, "sqrt"])]:
        formats += [DistillKit(*config, loss) for loss in ["drop", "bucket"]]
    formats += [Plain("MaxText", 64, "inside", False), Plain("fp16", 32, "drop", True)] + [Ours(path) for path in paths]
    sums, entropy = {(f, s): [] for f in formats for s in students}, []
    means = {key: [] for key in [*sums, *students]}
    for at in range(0, WINDOWS * SIZE, SIZE):
        inputs = tokens[at : at + SIZE]
        log_q = run(teacher, inputs)
        stored = [f.store(log_q) for f in formats]
        q = log_q.double().exp()
        q_mean, q2 = q.sum(0), (q * q).sum(-1)
        entropy.append(-(q * log_q).sum(-1))
        for s, student in students.items():
            log_p = student(inputs)
            p = log_p.double().exp()
            p2, pq, exact = (p * p).sum(-1), (p * q).sum(-1), (q * (log_q - log_p)).sum(-1)
            found = {s: p.sum(0) - q_mean}
            for f, (ids, values) in zip(formats, stored):
                loss, t, a, b, here = loss_of(f, log_p, ids, values)
                p_s, q_s, b1 = p.gather(1, ids), q.gather(1, ids), b[:, 0] - 1
                more = ((a - b) * p_s - t) * here  # at the ids, beside (b - 1) p + q everywhere
                error = b1**2 * p2 + 2 * b1 * pq + q2 + (more * (2 * ((b - 1) * p_s + q_s) + more)).sum(-1)
                sums[f, s].append(torch.stack([loss - exact, error, p2 - 2 * pq + q2, exact, 1 - q2]))
                found[f, s] = (b1 @ p + q_mean).index_add_(0, ids.flatten(), more.flatten())
            for key, vector in found.items():
                means[key] += [torch.zeros_like(vector)] if at % BATCH == 0 else []
                means[key][-1] += vector
        for f in formats if (at + SIZE) % BATCH == 0 else []:
            f.end_batch()
    report(formats, students, sums, means, entropy)


main(sys.argv[1], sys.argv[2], sys.argv[3:])
