"""PyTorch twins of this project's training steps: what a competent user of PyTorch would run. On a CPU eager, where
torch.compile was no faster; on a GPU with --compile, whose attention is PyTorch's flash attention in bf16.

    python twin.py KIND [--dtype f32|bf16] [--device cpu|cuda] [--rows B] [--context T] [--compile] [--teacher 355m|774m]
                        [--student 124m|llama-135m]

KIND is one of
  plain  GPT-2 124M (or a Llama of SmolLM2 135M's shape) on B x T random tokens: cross-entropy, clipping at 1, AdamW
  eslm   the same by the published recipe of token selection: every logit is formed, the entropy of every position is read from
         them, the loss is masked to the half of each sequence with the highest, and the backward is that of the whole batch
  kd     the same beside a teacher of GPT-2 medium's or large's shape: half cross-entropy, half KL(teacher || student) on full
         logits

Answers `ready`, then for every line on stdin does one step and prints its seconds and the peak memory in bytes: of the
process, or of the tensors on a GPU.
"""

import argparse
import contextlib
import math
import resource
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

VOCAB, POSITIONS = 50257, 1024
TEACHERS = {"355m": (1024, 24, 16), "774m": (1280, 36, 20)}


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, d // self.heads).transpose(1, 2) for y in self.qkv(self.ln_1(x)).split(d, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d)
        x = x + self.attended(y)
        return x + self.narrow(F.gelu(self.wide(self.ln_2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    def __init__(self, width, layers, heads):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, width), nn.Embedding(POSITIONS, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * layers) if "narrow" in name or "attended" in name else 1))

    def forward(self, ids):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


class LlamaBlock(nn.Module):
    def __init__(self, width, heads, kv_heads, inner):
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, width // heads
        linear = lambda a, b: nn.Linear(a, b, bias=False)  # noqa: E731
        self.norm_1, self.norm_2 = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.q, self.attended = linear(width, width), linear(width, width)
        self.k, self.v = linear(width, kv_heads * self.dim), linear(width, kv_heads * self.dim)
        self.gate, self.up, self.narrow = linear(width, inner), linear(width, inner), linear(inner, width)

    def rotate(self, x, cos, sin):
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat((-high, low), -1) * sin

    def forward(self, x, cos, sin):
        b, t, d = x.shape
        y = self.norm_1(x)
        q = self.q(y).view(b, t, self.heads, self.dim).transpose(1, 2)
        k, v = (f(y).view(b, t, self.kv_heads, self.dim).transpose(1, 2) for f in (self.k, self.v))
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).reshape(b, t, d)
        x = x + self.attended(y)
        y = self.norm_2(x)
        return x + self.narrow(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self, vocab, width, layers, heads, kv_heads, inner):
        super().__init__()
        self.wte = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(LlamaBlock(width, heads, kv_heads, inner) for _ in range(layers))
        self.ln_f = nn.RMSNorm(width, eps=1e-5)
        half = width // heads // 2
        angles = torch.outer(torch.arange(2048.0), 1e4 ** (-torch.arange(half) / half)).repeat(1, 2)
        self.register_buffer("cos", angles.cos()), self.register_buffer("sin", angles.sin())
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids):
        x, t = self.wte(ids), ids.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:t], self.sin[:t])
        return F.linear(self.ln_f(x), self.wte.weight)


def plain_loss(z, y, _teacher):
    return F.cross_entropy(z.float().flatten(0, 1), y.flatten())


def eslm_loss(z, y, _teacher):
    logp = F.log_softmax(z.float(), -1)
    with torch.no_grad():
        entropy = -(logp.exp() * logp).sum(-1)
        kept = torch.zeros_like(entropy)
        kept.scatter_(1, entropy.topk(math.ceil(entropy.shape[1] / 2), 1).indices, 1.0)
    nll = F.nll_loss(logp.flatten(0, 1), y.flatten(), reduction="none")
    return (nll * kept.flatten()).sum() / kept.sum()


def kd_loss(z, y, teacher_logits):
    z = z.float()
    logp = F.log_softmax(z, -1).flatten(0, 1)
    logq = F.log_softmax(teacher_logits.float(), -1).flatten(0, 1)
    kl = F.kl_div(logp, logq, log_target=True, reduction="batchmean")
    return 0.5 * F.nll_loss(logp, y.flatten()) + 0.5 * kl


STUDENTS = {"124m": lambda: Gpt2(768, 12, 12), "llama-135m": lambda: Llama(49152, 576, 30, 9, 3, 1536)}
LOSSES = {"plain": plain_loss, "eslm": eslm_loss, "kd": kd_loss}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("kind", choices=LOSSES)
    arguments.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    arguments.add_argument("--threads", type=int)
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument("--rows", type=int, default=4)
    arguments.add_argument("--context", type=int, default=256)
    arguments.add_argument("--compile", action="store_true")
    arguments.add_argument("--teacher", choices=TEACHERS, default="355m")
    arguments.add_argument("--student", choices=STUDENTS, default="124m")
    args = arguments.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    on_gpu = args.device == "cuda"
    student = STUDENTS[args.student]().to(args.device)
    vocab = student.wte.num_embeddings
    teacher = None
    if args.kind == "kd":
        teacher = Gpt2(*TEACHERS[args.teacher]).to(args.device).eval().requires_grad_(False)
    decayed = [p for p in student.parameters() if p.dim() == 2]
    others = [p for p in student.parameters() if p.dim() != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
    ids = torch.randint(vocab, (args.rows, args.context), device=args.device)
    targets = torch.randint(vocab, (args.rows, args.context), device=args.device)
    narrow = torch.autocast(args.device, torch.bfloat16) if args.dtype == "bf16" else contextlib.nullcontext()

    def forward(ids, targets):
        teacher_logits = None
        if teacher is not None:
            with torch.no_grad():
                teacher_logits = teacher(ids)
        return LOSSES[args.kind](student(ids), targets, teacher_logits)

    if args.compile:
        forward = torch.compile(forward)
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"
    print("ready", torch.__version__, "on", where, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        with narrow:
            loss = forward(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        loss.item()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(seconds, peak, flush=True)


if __name__ == "__main__":
    main()
