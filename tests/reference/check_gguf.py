#!/usr/bin/env python3
"""Export a model as GGUF in every type and hold it beside llama.cpp, gguf-py and a GPT-2 in f64.

    check_gguf.py MODEL [--bin eslm-kd] [--types f32,f16,bf16,q8_0] [--text FILE] [--work DIR] [--every-code-point]

Needs numpy, gguf, tokenizers and xllamacpp (llama.cpp's server as a wheel). MODEL is anything that `eslm-kd export`
takes, with a tokenizer beside it. Of each type:

bytes    every tensor is bit for bit what gguf-py, llama.cpp's own converter library, makes of the f32 weights
ids      llama.cpp's ids of some hundreds of texts with unusual characters are those of the tokenizers library
eval     `eslm-kd eval` of a Hugging Face folder of the ROUNDED weights has the NLL of the f64 model
logp     llama.cpp's log-probabilities beside those of the f64 model with the rounded weights

llama.cpp itself is not exact: on a CPU its GELU is a table of f16, and it multiplies matrices of f16, bf16 and q8_0 by
activations that it rounds to the same type. To tell that from a wrong file, the f64 model is also run with ggml's GELU,
and the rounded weights are exported once more as f32: llama.cpp on these must agree closely for every type. Exit 1 if
anything is off.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import unicodedata
import urllib.request
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import xllamacpp
from tokenizers import Tokenizer

from st_io import read, write_arrays

NLL = 2e-3  # of every type, beside exact arithmetic on the same rounded weights
SAME_GELU = 2e-3  # the largest difference of a log-probability that is in f32; a trained model is a hundred times closer
QTYPES = gguf.GGMLQuantizationType


def turned(name):
    return ".c_" in name and name.endswith(".weight")


def gelu(h):
    return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))


def ggml_gelu(h):
    """`ggml_vec_gelu_f32` with GGML_GELU_FP16: the value at h rounded to f16, rounded to f16."""
    table = gelu(h.astype(np.float16).astype(np.float64)).astype(np.float16).astype(np.float64)
    return np.where(h <= -10, 0.0, np.where(h >= 10, h, table))


class Gpt2:
    """The forward pass in f64."""

    def __init__(self, config, params):
        self.c, self.gelu = config, gelu
        self.p = {k.removeprefix("transformer."): v.astype(np.float64) for k, v in params.items()}

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.c["layer_norm_epsilon"])
        return x * self.p[name + ".weight"] + self.p[name + ".bias"]

    def product(self, x, name):
        return x @ self.p[name + ".weight"] + self.p[name + ".bias"]

    def log_probs(self, ids):
        """[T, V]"""
        n, heads = len(ids), self.c["n_head"]
        x = self.p["wte.weight"][ids] + self.p["wpe.weight"][:n]
        mask = np.triu(np.full((n, n), -np.inf), 1)
        for i in range(self.c["n_layer"]):
            qkv = self.product(self.norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
            q, k, v = (a.reshape(n, heads, -1).transpose(1, 0, 2) for a in np.split(qkv, 3, -1))
            a = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]) + mask
            a = np.exp(a - a.max(-1, keepdims=True))
            a = (a / a.sum(-1, keepdims=True)) @ v
            x = x + self.product(a.transpose(1, 0, 2).reshape(n, -1), f"h.{i}.attn.c_proj")
            h = self.product(self.norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
            x = x + self.product(self.gelu(h), f"h.{i}.mlp.c_proj")
        z = self.norm(x, "ln_f") @ self.p["wte.weight"].T
        z -= z.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))


class Llama:
    """llama.cpp's server on one file; keys and values in f32, no flash attention."""

    def __init__(self, path, context):
        p = xllamacpp.CommonParams()
        p.model.path = str(path)
        p.n_ctx, p.n_parallel, p.n_gpu_layers, p.port, p.warmup = context, 1, 0, 0, False
        p.n_batch = p.n_ubatch = max(context, 32)
        p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        p.cache_prompt = False
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 2
        self.server = xllamacpp.Server(p)
        self.letter = self.ids("a")[-1]

    def post(self, path, **body):
        request = urllib.request.Request(self.server.listening_address + path, json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def ids(self, text):
        return self.post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def last_log_probs(self, ids, count):
        """id -> log-probability of the `count` likeliest after these ids."""
        # What is said next is a letter: of an end, or of a part of a character, the server sends no list.
        answer = self.post("/completion", prompt=[int(i) for i in ids], n_predict=1, n_probs=count, temperature=-1.0,
                           cache_prompt=False, logit_bias=[[self.letter, 1e6]])
        return {t["id"]: t["logprob"] for t in answer["completion_probabilities"][0]["top_logprobs"]}


def texts():
    """Some hundreds, most of them unkind."""
    rng = random.Random(5)
    out = ["", " ", "  ", "\n", "\r\n", "\t\t \n\n  x", "don't DON'T we'll 'S ' s", "a" * 500, " " * 300, "\n" * 200 + "a",
           "<|endoftext|>", "a<|endoftext|> b<|endoftext|>", "<|endoftext", "x\u00a0y\u2003z\u3000 \u200b\ufeff", "\x00\x01\x7f\x85",
           "e\u0301 \u00e9 \ufb01 \U0001d54f", "\u0661\u0662 \u00bd \u2167 \u4e09", "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
           "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u4f60\u597d\u3002",
           "12345.678e-9 v1.2.3 a_b-c", "[PAD300] [PAD50257]", "\u017fs 's \u2019s"]
    blocks = [(0x20, 0x7f), (0, 0x20), (0x80, 0x250), (0x300, 0x370), (0x370, 0x600), (0x900, 0xa00), (0x2000, 0x2070),
              (0x2150, 0x2190), (0x3000, 0x3100), (0x4e00, 0x4f00), (0xac00, 0xad00), (0xfe00, 0xff00), (0x1f600, 0x1f650),
              (0xe0100, 0xe01f0), (0x1d400, 0x1d500), (0x10300, 0x10400)]
    for _ in range(400):
        some = rng.sample(blocks, 3) + [(0x20, 0x7f)] * 2
        out.append("".join(rng.choice(["", " ", "\n", "'", "  "]) + chr(rng.randrange(*rng.choice(some)))
                           for _ in range(rng.randrange(1, 80))))
    return out


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def check_ids(llama, tokenizer):
    all_texts = texts()
    bad = [t for t in all_texts if llama.ids(t) != ids_of(tokenizer, t)]
    print(f"ids: {len(all_texts)} texts, {len(bad)} differ {[ascii(t) for t in bad[:3]]}")
    return not bad


def check_every_code_point(llama, tokenizer):
    """Each between letters, digits, spaces: one difference is one character that the two put into another class. Both
    programs have tables of some version of Unicode, so this is reported and not judged."""
    points = [c for c in range(1, 0x110000) if not 0xd800 <= c < 0xe000]
    around = lambda c: f"a{chr(c)}a 1{chr(c)}1 {chr(c)} .{chr(c)}.  {chr(c)}"  # noqa: E731
    bad = []
    for at in range(0, len(points), 256):
        part = points[at:at + 256]
        text = "\n".join(map(around, part))
        if llama.ids(text) != ids_of(tokenizer, text):
            bad += [c for c in part if llama.ids(around(c)) != ids_of(tokenizer, around(c))]
    kinds = {}
    for c in bad:
        kinds.setdefault(unicodedata.category(chr(c)), []).append(c)
    shown = {k: f"{len(v)}: " + " ".join(f"U+{c:04X}" for c in v[:6]) for k, v in sorted(kinds.items())}
    print(f"code points: {len(points)}, {len(bad)} differ, by category in Unicode {unicodedata.unidata_version}: {shown}")


def check_bytes(path, params, want):
    """-> (bit for bit, the rounded weights under their Hugging Face names)"""
    found = {t.name: t for t in gguf.GGUFReader(path).tensors}
    blocks = 1 + max(int(n.split(".h.")[1].split(".")[0]) for n in params if ".h." in n)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, blocks)
    rounded, good, kinds = {}, len(found) == len(params), {}
    for name, value in params.items():
        value = np.ascontiguousarray(value.T if turned(name) else value)
        of = QTYPES.F32
        if value.ndim == 2 and not name.endswith("wpe.weight"):
            of = QTYPES[want.upper()]
            if of == QTYPES.Q8_0 and value.shape[1] % 32:
                of = QTYPES.F16
        tensor = found[names.get_name(name, try_suffixes=(".weight", ".bias"))]
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + 1
        expected = gguf.quants.quantize(value, of)
        same = tensor.tensor_type == of and tensor.data.tobytes() == expected.tobytes()
        good &= same and list(tensor.shape) == list(reversed(value.shape))
        if not same:
            print(f"FAIL: {tensor.name}: other bytes than gguf-py's")
        back = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(value.shape).astype(np.float32)
        rounded[name] = np.ascontiguousarray(back.T if turned(name) else back)
    print(f"bytes: {len(found)} tensors {kinds}, {'as' if good else 'NOT as'} gguf-py's")
    return good, rounded


def differences(llama, model, ids, rows):
    """Prints largest and mean modulus of llama.cpp's log-probabilities less the f64 model's, and the difference of the
    NLLs; with ggml's GELU and the exact one. -> the largest with ggml's, the NLL's with the exact one"""
    found = [llama.last_log_probs(ids[:n], rows) for n in range(1, len(ids))]
    largest = []
    for model.gelu, name in ((ggml_gelu, "ggml's"), (gelu, "exact")):
        want = model.log_probs(ids)
        off, nll = [], []
        for n, one in enumerate(found):
            keys = np.fromiter(one, int)
            off.append(np.abs(np.fromiter(one.values(), float) - want[n, keys]))
            if ids[n + 1] in one:
                nll.append(one[ids[n + 1]] - want[n, ids[n + 1]])
        off = np.concatenate(off)
        print(f"  GELU {name:6}: largest {off.max():.1e}, mean {off.mean():.1e}, NLL {-np.mean(nll):+.1e}")
        largest.append(off.max())
    return largest[0], abs(np.mean(nll))


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("model")
    ap.add_argument("--bin", default="target/release/eslm-kd")
    ap.add_argument("--types", default="f32,f16,bf16,q8_0")
    ap.add_argument("--text", type=Path, help="what log-probabilities are of, in place of a built-in text")
    ap.add_argument("--positions", type=int, default=64)
    ap.add_argument("--work", type=Path, help="where to leave the files")
    ap.add_argument("--every-code-point", action="store_true")
    args = ap.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="check-gguf-"))

    def eslm_kd(*words):
        done = subprocess.run([args.bin, *map(str, words), "--json"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"FAIL: {words}: {done.stderr}")
        return json.loads(done.stdout)

    eslm_kd("export", args.model, "--out", work / "hf")
    config = json.loads((work / "hf/config.json").read_text())
    params, _ = read(work / "hf/model.safetensors")
    params = {"transformer." + name.removeprefix("transformer."): value for name, value in params.items()}
    tokenizer = Tokenizer.from_file(str(work / "hf/tokenizer.json"))
    text = args.text.read_text() if args.text else (
        "One day Anna found a small red ball under the old tree. She did not know whose it was, so she asked "
        "everyone in the village; in the end a boy said: \u201cIt's mine \u2014 I lost it in 1999!\u201d\n" * 4)
    ids = ids_of(tokenizer, text)[:min(args.positions, config["n_positions"])]
    (work / "text.txt").write_text(tokenizer.decode(ids, skip_special_tokens=False))
    ids = ids_of(tokenizer, (work / "text.txt").read_text())  # what `eval` reads
    print(f"model: D {config['n_embd']}, L {config['n_layer']}, V {config['vocab_size']}, {len(ids)} positions")
    print(", ".join(f"{name} {version(name)}" for name in ("gguf", "xllamacpp", "tokenizers", "numpy")))

    ok = True
    for of in args.types.split(","):
        path = work / f"{of}.gguf"
        report = eslm_kd("export", args.model, "--format", "gguf", "--type", of, "--out", path)
        print(f"== {of}: {report['bytes']} bytes")
        good, rounded = check_bytes(path, params, of)
        model = Gpt2(config, rounded)

        folder = work / f"rounded-{of}"
        folder.mkdir(exist_ok=True)
        for file in (work / "hf").iterdir():
            if file.suffix in (".json", ".txt"):
                (folder / file.name).write_bytes(file.read_bytes())
        write_arrays(folder / "model.safetensors", rounded, {"format": "pt"})
        exact = -model.log_probs(ids)[np.arange(len(ids) - 1), ids[1:]].mean()
        ours = eslm_kd("eval", folder, "--data", work / "text.txt")
        off = ours["nll"] - exact
        good &= abs(off) < 1e-5 and ours["tokens"] == len(ids) - 1
        print(f"eval: nll {ours['nll']:.6f}, f64 {exact:.6f}, difference {off:.1e}, {ours['tokens']} tokens")

        llama = Llama(path, config["n_positions"])
        good &= check_ids(llama, tokenizer)
        if args.every_code_point and of == "f32":
            check_every_code_point(llama, tokenizer)
        rows = config["vocab_size"]
        print("logp of llama.cpp less f64")
        same, nll = differences(llama, model, ids, rows)
        good &= nll < NLL
        if of != "f32":
            eslm_kd("export", folder, "--format", "gguf", "--out", work / f"rounded-{of}.gguf")
            print("logp on the same rounded weights, stored as f32")
            same, nll = differences(Llama(work / f"rounded-{of}.gguf", config["n_positions"]), model, ids, rows)
        good &= same < SAME_GELU
        print("ok" if good else "FAIL")
        ok &= good
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
