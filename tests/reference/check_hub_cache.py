#!/usr/bin/env python3
"""Show, with Python's real hub library and a local server, that its cache and ours are one.

    check_hub_cache.py --binary target/debug/eslm-kd --server target/debug/examples/hub_server [--port 8091]

Makes one small repository, serves it on the loopback interface, and checks, each in a cache folder of its own:

    ours -> Python   `eslm-kd download`, then hf_hub_download and snapshot_download under HF_HUB_OFFLINE=1, and
                     scan_cache_dir without a warning
    Python -> ours   hf_hub_download, then `eslm-kd download --offline` and `eslm-kd cache verify`
    mixed            Python first, then ours, then Python again: one blob per file, one snapshot, no second download
    prune            `eslm-kd cache prune` leaves what Python's refs name

The server is stopped before anything that must work offline. Exit 1 on the first difference. Needs huggingface_hub and
no network.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ID = "org/small"
FILES = {
    "config.json": b'{"model_type": "gpt2"}\n',
    "tokenizer.json": b'{"a": 1}\n',
    "model.safetensors": bytes(range(256)) * 4096,  # large in the server's eyes: SHA-256, another host
}


def expect(what, found, expected):
    if found != expected:
        sys.exit(f"FAIL: {what}: expected {expected!r}, found {found!r}")
    print(f"ok: {what}")


class Server:
    """The test server over `root`, for as long as the block lasts."""

    def __init__(self, binary, root, port):
        self.command = [binary, str(root), "--port", str(port)]
        self.endpoint = f"http://127.0.0.1:{port}"

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if line.startswith("serving"):
                return self
        sys.exit("FAIL: the server did not start; is the port taken?")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def environment(home, endpoint, offline):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "ESLM_KD_")) and "proxy" not in k.lower()}
    more = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    return {**kept, **more, **({"HF_HUB_OFFLINE": "1"} if offline else {})}


def python(code, env):
    """Runs code in a fresh interpreter (the library reads its environment once) -> the JSON that it prints."""
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"FAIL: Python's library said\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def ours(binary, args, env):
    done = subprocess.run([binary, *args, "--json"], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"FAIL: eslm-kd {' '.join(args)} ended with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


# File by file: snapshot_download asks for the tree of a commit, which the test server does not serve.
FETCH = f"""
import json, os
from huggingface_hub import hf_hub_download
print(json.dumps([os.path.dirname(hf_hub_download({ID!r}, f)) for f in {sorted(FILES)!r}][0]))
"""
FIND = f"""
import hashlib, json
from pathlib import Path
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
files = {{f: hashlib.sha256(Path(hf_hub_download({ID!r}, f)).read_bytes()).hexdigest() for f in {sorted(FILES)!r}}}
scan = scan_cache_dir()
repo = next(r for r in scan.repos if r.repo_id == {ID!r})
print(json.dumps(dict(files=files, folder=snapshot_download({ID!r}), warnings=[str(w) for w in scan.warnings],
    commits={{r.commit_hash: sorted(r.refs) for r in repo.revisions}}, bytes=repo.size_on_disk)))
"""


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--binary", required=True)
    ap.add_argument("--server", required=True)
    ap.add_argument("--port", type=int, default=8091)
    args = ap.parse_args()
    import hashlib
    import huggingface_hub
    print(f"huggingface_hub {huggingface_hub.__version__}, Python {sys.version.split()[0]}")
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    size = sum(map(len, FILES.values()))
    binary = os.path.abspath(args.binary)

    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        repo = root / "served" / ID
        repo.mkdir(parents=True)
        for name, data in FILES.items():
            (repo / name).write_bytes(data)
        server = Server(os.path.abspath(args.server), root / "served", args.port)
        online = lambda home: environment(root / home, server.endpoint, False)
        offline = lambda home: environment(root / home, server.endpoint, True)
        blobs = lambda home: sorted(p.name for p in (root / home / "hub/models--org--small/blobs").iterdir())

        with server:
            fetched = ours(binary, ["download", ID], online("ours"))
            theirs = python(FETCH, online("python"))
            python(FETCH, online("mixed"))
            mixed = ours(binary, ["download", ID], online("mixed"))
            again = python(FETCH, online("mixed"))

        found = python(FIND, offline("ours"))
        expect("Python finds our files offline, byte for byte", found["files"], sums)
        expect("Python's snapshot folder is ours", found["folder"], fetched["dir"])
        expect("Python's scan of our cache has no warnings", found["warnings"], [])
        expect("Python's scan sees our commit and ref", found["commits"], {fetched["commit"]: ["main"]})
        expect("Python's scan sees our sizes", found["bytes"], size)

        report = ours(binary, ["download", ID, "--offline"], offline("python"))
        expect("we find Python's folder offline", report["dir"], theirs)
        expect("we find all of Python's bytes", report["bytes"], size)
        verified = ours(binary, ["cache", "verify"], offline("python"))
        expect("Python's blobs verify", (verified["blobs"], verified["damaged"], verified["unchecked"]), (3, [], []))

        expect("both use one snapshot", (mixed["dir"], mixed["commit"]), (again, fetched["commit"]))
        expect("and one blob per file", (len(blobs("mixed")), blobs("mixed")), (3, blobs("ours")))
        # Old enough for prune: what is young is left alone anyway.
        for path in (root / "python/hub/models--org--small").rglob("*"):
            os.utime(path, (0, 0), follow_symlinks=False)
        pruned = ours(binary, ["cache", "prune"], offline("python"))
        expect("prune leaves what Python's refs name", (pruned["removed"], pruned["bytes"]), ([], 0))
        expect("Python still finds everything", python(FIND, offline("python"))["files"], sums)
    print("all ok")


if __name__ == "__main__":
    main()
