"""Do TensorBoard's own readers find in RUN/tensorboard what RUN/metrics.jsonl says? By hand:

    pip install tensorboard setuptools
    python check_tensorboard.py RUN          a run with log.tensorboard = true from its first step on
    python check_tensorboard.py --make BINARY DATA
                                             makes one in a temporary folder: killed on the way, resumed

Every event file is read record by record (EventFileLoader checks each checksum), and the folder as
a whole as the dashboard does it (EventAccumulator forgets what a later session did again): tags,
steps and values, to the precision of f32, must be those of metrics.jsonl, which drops such lines.
"""
import json, os, signal, struct, subprocess, sys, tempfile, time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def numbers(line, name=""):
    for key, value in line.items():
        tag = f"{name}/{key}" if name else key
        if isinstance(value, dict):
            yield from numbers(value, tag)
        elif isinstance(value, (int, float)) and tag != "step":
            yield tag, value


def expected(run):
    found = {}
    for line in map(json.loads, open(run / "metrics.jsonl")):
        # Totals come with steps.
        only = "val_loss" if "val_loss" in line else "skipped" if "skipped" in line else None
        for tag, value in numbers(line):
            if only in (None, tag):
                found.setdefault(tag, []).append((line["step"], f32(value)))
    return found


def check(run):
    folder = run / "tensorboard"
    files = sorted(folder.iterdir())
    records = 0
    for file in files:
        events = list(EventFileLoader(str(file)).Load())
        records += len(events)
        assert events[0].file_version == "brain.Event:2", events[0]
        assert events[1].session_log.status == 1, events[1]
        print(f"{file.name}: {len(events)} events, from step {events[1].step} on")
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    accumulator.Reload()
    want = expected(run)
    tags = accumulator.Tags()
    read = {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags["scalars"]}
    for tag in tags["tensors"]:
        values = accumulator.Tensors(tag)
        read[tag] = [(e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in values]
    assert read.keys() == want.keys(), read.keys() ^ want.keys()
    for tag, values in want.items():
        assert read[tag] == values, (tag, read[tag], values)
    points = sum(map(len, want.values()))
    print(f"{len(files)} files, {records} events: {len(want)} tags, {points} values, all as in metrics.jsonl")


def make(binary, data):
    out = Path(tempfile.mkdtemp()) / "run"
    sets = ["shape.n_layer=2", "shape.n_head=2", "shape.n_embd=16", "shape.n_positions=16"]
    sets += ["data.context=16", "data.rows=8", "log.every=1", "log.tensorboard=true"]
    sets += ["eval.every=7", "checkpoint.every=50", "machine.threads=1"]
    args = [binary, "pretrain", "--data", data, "--student", "tiny", "--steps", "400", "--score", "entropy"]
    args += [word for key in sets for word in ("--set", key)] + ["--out", str(out), "--quiet"]
    process = subprocess.Popen(args)
    lines = lambda: sum(1 for _ in open(out / "metrics.jsonl")) if (out / "metrics.jsonl").exists() else 0
    while process.poll() is None and lines() < 90:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = lines()
    subprocess.run([*args, "--resume"], check=True)
    print(f"killed after {reached} lines of metrics, resumed in {out}")
    return out


if __name__ == "__main__":
    check(make(*sys.argv[2:]) if sys.argv[1] == "--make" else Path(sys.argv[1]))
