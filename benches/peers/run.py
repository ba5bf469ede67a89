#!/usr/bin/env python3
"""Takes this project's training steps and PyTorch's in turn, in one sitting, and prints the ratios that we hold ourselves to.

    python3 benches/peers/run.py [--runs 5] [--only TEXT] [--python PYTHON_WITH_TORCH] [--bench BINARY] [--device cuda]

Without --python, PyTorch is installed into target/peer-env, once; without --bench, the step bench is built. Run it on an idle
machine. On a GPU the twins are compiled.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TORCH = "torch==2.15.0"

# What is compared: the student, our step, PyTorch's, the type of number, and what we hold ourselves to. The Llama is to
# reach 0.9 of GPT-2's ratio.
PAIRS = [
    ("124m", "plain", "plain", "f32", 1.8),
    ("llama-135m", "plain", "plain", "f32", None),
    ("124m", "plain", "plain", "bf16", 1.1),
    ("124m", "keep 0.5, exact", "eslm", "f32", None),
    ("124m", "dense KD", "kd", "f32", 2.2),
    ("124m", "dense KD, bf16 teacher", "kd", "f32", 2.2),
    # Our teacher has written before what it says; PyTorch's runs in the step.
    ("124m", "stored KD, 50 draws", "kd", "f32", 4.0),
]
MEMORY_OF_KD = 0.6

# The same on a GPU, with the sequences of 1,024 tokens and the teacher: at B 32 a compiled KD step of PyTorch does not fit
# 80 GB beside ours.
PAIRS_ON_GPU = [
    ("plain", "plain", "bf16", 1.0, 32, "355m"),
    ("keep 0.5, exact", "eslm", "bf16", None, 32, "355m"),
    ("dense KD", "kd", "bf16", 1.5, 8, "355m"),
    ("dense KD", "kd", "bf16", 1.5, 8, "774m"),
]
MEMORY_OF_KD_ON_GPU = 0.5


class Server:
    """A program that does one step per line."""

    def __init__(self, command, warm_up):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.ready = self.read("ready")
        self.seconds, self.peak = [], 0
        for _ in range(warm_up):
            self.step()
        self.seconds.clear()

    def read(self, wanted=None):
        line = self.process.stdout.readline().strip()
        if not line.startswith(wanted or tuple("0123456789")):
            sys.exit(f"expected {wanted or 'seconds and bytes'} of {self.process.args}, found {line!r}")
        return line

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, peak = self.read().split()[:2]
        self.seconds.append(float(seconds))
        self.peak = int(peak)

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def python_with_torch():
    environment = ROOT / "target" / "peer-env"
    python = environment / "bin" / "python"
    if not python.exists():
        venv.create(environment, with_pip=True)
    if subprocess.run([python, "-c", "import torch, numpy"], stderr=subprocess.DEVNULL).returncode != 0:
        subprocess.run([python, "-m", "pip", "install", "--quiet", TORCH, "numpy"], check=True)
    return str(python)


def build_bench():
    command = ["cargo", "bench", "--no-run", "--bench", "step", "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = [json.loads(line) for line in lines if '"executable"' in line]
    return next(m["executable"] for m in found if m.get("executable") and m["target"]["name"] == "step")


def bf16_is_here():
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text()


def in_turn(mine, peer, runs):
    """Median seconds of both."""
    for run in range(runs):
        for one in [mine, peer] if run % 2 == 0 else [peer, mine]:
            one.step()
    mine.stop()
    peer.stop()
    return statistics.median(mine.seconds), statistics.median(peer.seconds)


def on_gpu(args, python, bench):
    print(f"GPT-2 124M in bf16, B x 1,024 random tokens, PyTorch compiled; {args.runs} runs in turn after three each, medians")
    print("| step | B | teacher | ours, s | tokens/s | PyTorch, s | tokens/s | ours is faster by | must | "
          "peak memory, ours / PyTorch |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    for ours, theirs, dtype, must, rows, teacher in PAIRS_ON_GPU:
        if args.only not in f"{ours} {teacher}":
            continue
        size = ["--device", "cuda", "--rows", str(rows), "--teacher", teacher]
        mine = Server([bench, "124m-long", "1", dtype, "--serve", ours, *size], 3)
        twin = [python, str(HERE / "twin.py"), theirs, "--dtype", dtype, "--context", "1024", "--compile"]
        peer = Server(twin + size, 3)
        a, b = in_turn(mine, peer, args.runs)
        tokens, kd = rows * 1024, theirs == "kd"
        memory = f"{mine.peak / 1e9:.2f} / {peer.peak / 1e9:.2f} GB = {mine.peak / peer.peak:.2f}"
        memory += f" (must: {MEMORY_OF_KD_ON_GPU})" if kd else ""
        print(f"| {ours} | {rows} | {teacher if kd else '-'} | {a:.4f} | {tokens / a:,.0f} | {b:.4f} | {tokens / b:,.0f} | "
              f"{b / a:.2f} | {must or '-'} | {memory} |", flush=True)
        print(f"PyTorch: {peer.ready}", file=sys.stderr)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--only", default="")
    arguments.add_argument("--python")
    arguments.add_argument("--bench")
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = arguments.parse_args()
    python, bench = args.python or python_with_torch(), args.bench or build_bench()
    if args.device == "cuda":
        return on_gpu(args, python, bench)
    threads = str(len(os.sched_getaffinity(0)))
    os.environ["RAYON_NUM_THREADS"] = threads
    print(f"4 x 256 random tokens; {args.runs} runs in turn after one each, medians; {threads} threads each, "
          f"{platform.machine()}")
    print("| student | step | type | ours, s | tokens/s | PyTorch, s | tokens/s | ours is faster by | must | "
          "peak memory, ours / PyTorch |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for student, ours, theirs, dtype, must in PAIRS:
        if args.only not in f"{student} {ours} {dtype}":
            continue
        if dtype == "bf16" and not bf16_is_here():
            print(f"| {student} | {ours} | {dtype} | no bf16 products on this chip |", flush=True)
            continue
        mine = Server([bench, student, "1", dtype, "--serve", ours], 1)
        twin = [python, str(HERE / "twin.py"), theirs, "--dtype", dtype, "--threads", threads]
        peer = Server([*twin, "--student", student], 1)
        a, b = in_turn(mine, peer, args.runs)
        memory = f"{mine.peak / 1e9:.2f} / {peer.peak / 1e9:.2f} GB = {mine.peak / peer.peak:.2f}"
        if theirs == "kd":
            memory += f" (must: {MEMORY_OF_KD})"
        print(f"| {student} | {ours} | {dtype} | {a:.3f} | {1024 / a:,.0f} | {b:.3f} | {1024 / b:,.0f} | {b / a:.2f} | "
              f"{must or '-'} | {memory} |", flush=True)
        print(f"PyTorch: {peer.ready}", file=sys.stderr)


if __name__ == "__main__":
    main()
