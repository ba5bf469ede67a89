#!/usr/bin/env python3
"""Takes this project's training steps and PyTorch's in turn, in one sitting, and prints the ratios that we hold ourselves to.

    python3 benches/peers/run.py [--runs 5] [--only TEXT] [--python PYTHON_WITH_TORCH]

Without --python, PyTorch is installed into target/peer-env, once. Builds the step bench. Run it on an idle machine.
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

# What is compared: our step, PyTorch's, the type of number, and what we hold ourselves to.
PAIRS = [
    ("plain", "plain", "f32", 1.8),
    ("plain", "plain", "bf16", 1.1),
    ("keep 0.5, exact", "eslm", "f32", None),
    ("dense KD", "kd", "f32", 2.2),
]
MEMORY_OF_KD = 0.6


class Server:
    """A program that does one step per line."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.ready = self.read("ready")
        self.seconds, self.peak = [], 0
        self.step()
        self.seconds.clear()  # the first step warms up

    def read(self, wanted=None):
        line = self.process.stdout.readline().strip()
        if not line.startswith(wanted or tuple("0123456789")):
            sys.exit(f"expected {wanted or 'seconds and bytes'} of {self.process.args}, found {line!r}")
        return line

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, peak = self.read().split()
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


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--only", default="")
    arguments.add_argument("--python")
    args = arguments.parse_args()
    python, bench = args.python or python_with_torch(), build_bench()
    threads = str(len(os.sched_getaffinity(0)))
    os.environ["RAYON_NUM_THREADS"] = threads
    print(f"GPT-2 124M, 4 x 256 random tokens; {args.runs} runs in turn after one each, medians; {threads} threads each, "
          f"{platform.machine()}")
    print("| step | type | ours, s | tokens/s | PyTorch, s | tokens/s | ours is faster by | must | peak memory, ours / PyTorch |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for ours, theirs, dtype, must in PAIRS:
        if args.only not in f"{ours} {dtype}":
            continue
        if dtype == "bf16" and not bf16_is_here():
            print(f"| {ours} | {dtype} | no bf16 products on this chip |", flush=True)
            continue
        mine = Server([bench, "124m", "1", dtype, "--serve", ours])
        peer = Server([python, str(HERE / "twin.py"), theirs, "--dtype", dtype, "--threads", threads])
        for run in range(args.runs):
            for one in [mine, peer] if run % 2 == 0 else [peer, mine]:
                one.step()
        mine.stop()
        peer.stop()
        a, b = statistics.median(mine.seconds), statistics.median(peer.seconds)
        memory = f"{mine.peak / 1e9:.2f} / {peer.peak / 1e9:.2f} GB = {mine.peak / peer.peak:.2f}"
        if theirs == "kd":
            memory += f" (must: {MEMORY_OF_KD})"
        print(f"| {ours} | {dtype} | {a:.3f} | {1024 / a:.0f} | {b:.3f} | {1024 / b:.0f} | {b / a:.2f} | "
              f"{must or '-'} | {memory} |", flush=True)
        print(f"PyTorch: {peer.ready}", file=sys.stderr)


if __name__ == "__main__":
    main()
