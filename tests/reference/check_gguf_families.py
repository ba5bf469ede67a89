#!/usr/bin/env python3
"""Export small random models of each family, or one MODEL, as GGUF and hold them beside transformers, llama.cpp and its
converter.

    check_gguf_families.py [MODEL ...] [--bin eslm-kd] [--types f32,f16,bf16,q8_0] [--cases a,b] [--converter DIR] [--work DIR]

Needs torch, transformers, numpy, gguf, tokenizers, sentencepiece and xllamacpp (llama.cpp's server as a wheel). Without
MODEL the models are made here, with tokenizers of every kind that is exported, trained here. Of each type:

bytes    every tensor, brought back to Hugging Face's layout and names by gguf-py's table, is what gguf-py makes of the weights
ids      llama.cpp's ids of some hundreds of texts with unusual characters are those of the tokenizers library
logp     llama.cpp's log-probabilities beside transformers' on the rounded weights; f32 strictly, the others by their NLL,
         since llama.cpp rounds what it multiplies a matrix of these types by
convert  with --converter, a folder with llama.cpp's convert_hf_to_gguf.py: what it writes of the exported folder, key by key
         and bit by bit. It is told the pre-tokenizer, which it knows by hashes of public ones alone.

Exit 1 if anything is off.
"""

import argparse
import io
import json
import re
import subprocess
import sys
import tempfile
import unicodedata
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from check_gguf import NLL, QTYPES, Llama, ggml_gelu, texts

F32 = 1e-3  # largest difference of a log-probability in f32
POSITIONS = 128
HERE = Path(__file__).resolve().parent
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}"
          r"\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"


def prose():
    """What tokenizers are trained with."""
    return "\n".join(p.read_text() for p in sorted((HERE / "../../docs").rglob("*.md"))[:40])


def byte_level(kind):
    """A tokenizer.json by the name that llama.cpp has for its pattern; `+nfc` and `+bos` are what they say."""
    name, *extra = kind.split("+")
    t = Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
    by = {"llama-bpe": CONTRACTIONS + r"\p{N}{1,3}" + REST, "dbrx": CONTRACTIONS + r"\p{N}{1,3}" + REST,
          "qwen2": CONTRACTIONS + r"\p{N}" + REST, "tekken": TEKKEN}
    parts = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name not in by)]
    if name in by:
        how = ("removed", True) if name == "dbrx" else ("isolated", False)
        parts.insert(0, pre_tokenizers.Split(Regex(by[name]), *how))
    if name == "smollm":
        parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    t.pre_tokenizer = pre_tokenizers.Sequence(parts) if len(parts) > 1 else parts[0]
    if "nfc" in extra:
        t.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
                                  special_tokens=["<|endoftext|>", "<|im_start|>"])
    t.train_from_iterator(prose().split("\n") + [t for t in texts() if "<" not in t], trainer)
    if "nfc" in extra:  # GPT-NeoX's
        t.add_tokens([tokenizers.AddedToken(" " * n, normalized=True) for n in (24, 12, 3, 2)])
    t.decoder, t.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    if "bos" in extra:
        start = ("<|im_start|>", t.token_to_id("<|im_start|>"))
        t.post_processor = processors.TemplateProcessing(f"{start[0]} $A", f"{start[0]} $A {start[0]} $B", [start])
    return t, {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}, None


def sentencepiece(kind):
    """A model trained by SentencePiece, and the tokenizer.json that transformers makes of such."""
    import sentencepiece as spm
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(sentence_iterator=iter([s for s in prose().split("\n") if s.strip()]), model_writer=out,
                                   model_type="bpe", vocab_size=900, byte_fallback=True, character_coverage=0.9995,
                                   normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2)
    p = spm.SentencePieceProcessor(model_proto=out.getvalue())
    pieces = [(p.id_to_piece(i), p.get_score(i)) for i in range(p.vocab_size())]
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, score in pieces[259:]:
        cuts = [(piece[:n], piece[n:]) for n in range(1, len(piece))]
        cuts = sorted((a, b) for a, b in cuts if a in ids and b in ids)
        merges += [(score, a, b) for a, b in sorted(cuts, key=lambda c: (ids[c[0]], ids[c[1]]))]
    merges.sort(key=lambda m: (m[0], len(m[1]), len(m[2])), reverse=True)
    t = Tokenizer(models.BPE(ids, [m[1:] for m in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if "metaspace" in kind:
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    t.add_special_tokens(["<unk>", "<s>", "</s>"])
    t.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    return t, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, out.getvalue()


SMALL = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=POSITIONS)
GROUPED = dict(SMALL, num_key_value_heads=2)
LLAMA3 = dict(rope_type="llama3", rope_theta=5e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=32)
NEOX = dict(SMALL, num_hidden_layers=3)
# name -> class, its arguments, kind of tokenizer
CASES = {
    "llama-biases": ("Llama", dict(GROUPED, attention_bias=True, mlp_bias=True), "llama-bpe+bos"),
    "llama-tied-bands": ("Llama", dict(GROUPED, head_dim=32, tie_word_embeddings=True, rope_parameters=LLAMA3), "smollm"),
    "llama-linear": ("Llama", dict(SMALL, rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=3.0)), "spm"),
    "llama-yarn": ("Llama", dict(GROUPED, rope_parameters=dict(YARN, attention_factor=1.3)), "dbrx"),
    "mistral": ("Mistral", dict(GROUPED, head_dim=24, sliding_window=None), "tekken+bos"),
    "mistral-metaspace": ("Mistral", dict(GROUPED, sliding_window=None), "spm-metaspace"),
    "qwen2": ("Qwen2", dict(GROUPED), "qwen2+nfc"),
    "qwen2-yarn": ("Qwen2", dict(GROUPED, tie_word_embeddings=True, rope_parameters=YARN), "qwen2"),
    "qwen3": ("Qwen3", dict(GROUPED, head_dim=32), "qwen2"),
    "olmo2": ("Olmo2", dict(GROUPED), "dbrx"),
    "olmo2-tied": ("Olmo2", dict(SMALL, tie_word_embeddings=True), "gpt-2"),
    "smollm3": ("SmolLM3", dict(GROUPED, num_hidden_layers=5), "llama-bpe"),
    "neox": ("GPTNeoX", dict(NEOX, rotary_pct=0.25), "gpt-2+nfc"),
    "neox-sequential": ("GPTNeoX", dict(NEOX, rotary_pct=1.0, hidden_act="gelu_new", use_parallel_residual=False,
                                        rotary_emb_base=500), "gpt-2"),
    "neox-tied": ("GPTNeoX", dict(NEOX, rotary_pct=0.5, tie_word_embeddings=True), "gpt-2"),
    "gpt2-own-head": ("GPT2", dict(n_embd=64, n_layer=2, n_head=4, n_positions=POSITIONS, tie_word_embeddings=False,
                                   activation_function="gelu"), "gpt-2"),
}


def make(name, folder):
    family, arguments, kind = CASES[name]
    tokenizer, roles, model_file = (sentencepiece if kind.startswith("spm") else byte_level)(kind)
    bos, eos = (tokenizer.token_to_id(roles[k]) for k in ("bos_token", "eos_token"))
    config = getattr(transformers, family + "Config")(vocab_size=tokenizer.get_vocab_size() + 3, bos_token_id=bos,
                                                      eos_token_id=eos, pad_token_id=None, **arguments)
    torch.manual_seed(len(name))
    head = "GPT2LMHeadModel" if family == "GPT2" else family + "ForCausalLM"
    model = getattr(transformers, head)(config).float()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (0.15 if p.dim() == 2 else 0.3) + (p.dim() == 1) * 0.8)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **roles}))
    return model_file


def by_hf_name(config, state):
    """GGUF's name of each tensor -> (Hugging Face's name, what undoes the layout). `lm_head` of a tied model has none."""
    family = config["model_type"]
    arch = {"llama": "llama", "mistral": "llama", "gpt_neox": "gptneox"}.get(family, family)
    names = gguf.get_tensor_name_map({v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch], 99)
    heads = config.get("num_attention_heads", config.get("n_head"))
    kv = config.get("num_key_value_heads") or heads

    def undo(name):
        if arch in ("llama", "smollm3") and re.search(r"[qk]_proj", name):
            n = heads if "q_proj" in name else kv
            return lambda a: a.reshape(n, -1, 2, *a.shape[1:]).swapaxes(1, 2).reshape(a.shape)
        if "query_key_value" in name:
            return lambda a: a.reshape(3, heads, -1, *a.shape[1:]).swapaxes(0, 1).reshape(a.shape)
        if ".c_" in name and name.endswith(".weight"):
            return lambda a: a.T
        return lambda a: a

    out = {}
    for name in state:
        kinds = dict(try_suffixes=(".weight", ".bias"))
        there = names.get_name(name, **kinds) or names.get_name("transformer." + name, **kinds)
        out[there] = (name, undo(name))
    return out


def check_bytes(path, config, state, want):
    """-> (bit for bit, the rounded weights under their Hugging Face names)"""
    found = {t.name: t for t in gguf.GGUFReader(path).tensors}
    names, rounded, good, kinds = by_hf_name(config, state), {}, True, {}
    for name, (original, undo) in names.items():
        tensor, value = found.pop(name), state[original]
        of = QTYPES.F32
        if value.ndim == 2 and not original.endswith("wpe.weight"):
            of = QTYPES[want.upper()]
            if of == QTYPES.Q8_0 and tensor.shape[0] % 32:
                of = QTYPES.F16
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + 1
        # Rows are rounded one by one, so their order is undone after.
        shape = list(reversed([int(n) for n in tensor.shape]))
        back = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)
        rounded[original] = np.ascontiguousarray(undo(back))
        turned = value.T if ".c_" in original and original.endswith(".weight") else value
        expected = gguf.quants.dequantize(gguf.quants.quantize(np.ascontiguousarray(turned), of), of).reshape(turned.shape)
        expected = expected.T if turned is not value else expected
        same = tensor.tensor_type == of and rounded[original].tobytes() == np.ascontiguousarray(expected, np.float32).tobytes()
        if not same:
            print(f"FAIL: {name} is not {original}")
        good &= same
    extra = set(found)
    allowed = {"rope_freqs.weight"} | ({"output.weight"} if config.get("tie_word_embeddings") else set())
    good &= extra <= allowed
    print(f"bytes: {len(names)} tensors {kinds}, beside them {sorted(extra)}: {'as' if good else 'NOT as'} gguf-py's")
    return good, rounded


def activation(config):
    return str(config.get("hidden_act") or config.get("activation_function"))


def log_probs(folder, rounded, ids, table=ggml_gelu):
    """[T, V] of transformers, norms and products in f64 where its code lets them be; with GELU by llama.cpp's table."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    # GPT-NeoX's head has this name in files and another in the module.
    state = {k.replace("embed_out.", "lm_head."): torch.from_numpy(v).double() for k, v in rounded.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    if table and "gelu" in activation(model.config.to_dict()):
        table = type("Table", (torch.nn.Module,), {"forward": lambda _, x: torch.from_numpy(ggml_gelu(x.numpy()))})
        for module in model.modules():
            if hasattr(module, "act"):
                module.act = table()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()


def bytes_to_unicode():
    """byte -> the character that spells it in byte-level vocabularies"""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in kept]
    return {b: chr(b) for b in kept} | {b: chr(256 + n) for n, b in enumerate(rest)}


def check_ids(llama, tokenizer, kind):
    kept = texts()
    if kind == "tekken":  # llama.cpp has no classes of marks and of case in its patterns, so it comes close to this one
        kept = [t for t in kept if t.isascii()]
    if tokenizer.normalizer is not None and "NFC" in repr(tokenizer.normalizer):
        kept = [t for t in kept if unicodedata.is_normalized("NFC", t)]
    if "Metaspace" in repr(tokenizer.pre_tokenizer):
        kept = [t for t in kept if not t.startswith((" ", "\u2581")) and "</s>" not in t and "<s>" not in t]
    if kind != "default":  # of bytes without a token neither has an id, but they are left out at different times
        vocab = tokenizer.get_vocab()
        lacking = {b for b, c in bytes_to_unicode().items() if c not in vocab}
        kept = [t for t in kept if not lacking & set(t.encode())]
    bad = [t for t in kept if llama.ids(t) != tokenizer.encode(t).ids]
    print(f"ids: {len(kept)} texts of {len(texts())}, {len(bad)} differ {[ascii(t)[:80] for t in bad[:3]]}")
    for t in bad[:2]:
        print("   ", llama.ids(t)[:20], tokenizer.encode(t).ids[:20])
    return not bad


def check_converter(converter, folder, path, work):
    """What llama.cpp's own converter writes of the same folder."""
    ours = gguf.GGUFReader(path)
    value = lambda f: f.contents()  # noqa: E731
    pre = value(ours.fields["tokenizer.ggml.pre"])
    code = (f"import sys; sys.path[:0] = [{str(converter)!r}, {str(Path(converter) / 'gguf-py')!r}]; sys.argv[1:] = "
            f"[{str(folder)!r}, '--outfile', {str(work / 'theirs.gguf')!r}, '--outtype', 'f32']\n"
            f"import json, convert_hf_to_gguf as c\nfrom conversion.base import ModelBase, TextModel\n"
            f"TextModel.get_vocab_base_pre = lambda self, t: {pre!r}\n"
            # It asks transformers for the keys, and version 5 has GPT-NeoX's rotary_pct no more.
            f"ModelBase.load_hparams = staticmethod(lambda d, is_mistral_format=False: json.load(open(d / 'config.json')))\nc.main()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        print("convert: FAIL:", done.stderr[-600:])
        return False
    theirs = gguf.GGUFReader(work / "theirs.gguf")
    a, b = ({t.name: t for t in r.tensors} for r in (ours, theirs))
    off = [n for n in b if n not in a or a[n].tensor_type != b[n].tensor_type or list(a[n].shape) != list(b[n].shape)
           or not (np.array_equal(a[n].data, b[n].data) or n == "rope_freqs.weight" and np.allclose(a[n].data, b[n].data, 1e-6))]
    keys = {k for r in (ours, theirs) for k in r.fields if not k.startswith(("GGUF.", "general."))}
    differ = {}
    for k in sorted(keys):
        x, y = (value(r.fields[k]) if k in r.fields else None for r in (ours, theirs))
        if x != y and not (isinstance(x, float) and isinstance(y, float) and abs(x - y) <= 1e-6 * abs(y)):
            differ[k] = (str(x)[:60], str(y)[:60])
    print(f"convert: {len(b)} tensors, differing {off}, ours alone {sorted(set(a) - set(b))}; keys (ours, theirs): {differ}")
    return not off


def run(args, name, source, work, model_file):
    of_interest = re.compile("GELU|NFC|Metaspace|comes close|no token for the bytes|q8_0 needs")

    def eslm_kd(*words):
        done = subprocess.run([args.bin, *map(str, words), "--json"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"FAIL: {words}: {done.stderr}")
        for line in done.stderr.splitlines():
            if of_interest.search(line):
                print("  said:", line.split(": ", 1)[-1][:110])
        return json.loads(done.stdout)

    folder = work / "hf"
    eslm_kd("export", source, "--out", folder)
    if model_file:
        (folder / "tokenizer.model").write_bytes(model_file)
    config = json.loads((folder / "config.json").read_text())
    from safetensors.numpy import load_file
    state = load_file(folder / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(
        "One day Anna found a small red ball under the old tree. She did not know whose it was, so she asked everyone in "
        "the village; in the end a boy said: \u201cIt's mine \u2014 I lost it in 1999!\u201d\n" * 3).ids[:args.positions]
    good = True
    for of in args.types.split(","):
        path = work / f"{of}.gguf"
        report = eslm_kd("export", source, "--format", "gguf", "--type", of, "--out", path)
        print(f"== {name} {of}: {report['bytes']} bytes")
        same, rounded = check_bytes(path, config, state, of)
        good &= same
        llama = Llama(path, min(args.positions + 64, 2048))
        if of == "f32":
            good &= check_ids(llama, tokenizer, gguf.GGUFReader(path).fields["tokenizer.ggml.pre"].contents())
            if args.converter:
                good &= check_converter(args.converter, folder, path, work)
        want = log_probs(folder, rounded, ids)
        off, nll = [], []
        for n in range(1, len(ids)):
            found = llama.last_log_probs(ids[:n], min(config["vocab_size"], 2000))
            keys = np.fromiter(found, int)
            off.append(np.abs(np.fromiter(found.values(), float) - want[n - 1, keys]))
            if ids[n] in found:
                nll.append(found[ids[n]] - want[n - 1, ids[n]])
        off = np.concatenate(off)
        if of == "f32" and "gelu" in activation(config):
            exact = np.abs(log_probs(folder, rounded, ids, None) - want)
            print(f"  GELU: llama.cpp's table changes transformers' by {exact.max():.1e} at most, {exact.mean():.1e} on average")
        print(f"logp: {len(ids) - 1} places, largest {off.max():.1e}, mean {off.mean():.1e}, NLL {-np.mean(nll):+.1e}")
        good &= off.max() < F32 if of == "f32" else abs(np.mean(nll)) < 10 * NLL
    print("ok" if good else "FAIL")
    return good


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("models", nargs="*")
    ap.add_argument("--bin", default="target/release/eslm-kd")
    ap.add_argument("--types", default="f32,f16,bf16,q8_0")
    ap.add_argument("--cases", default=",".join(CASES))
    ap.add_argument("--converter", help="a checkout of llama.cpp")
    ap.add_argument("--positions", type=int, default=100)
    ap.add_argument("--work", type=Path, help="where to leave the files")
    args = ap.parse_args()
    root = args.work or Path(tempfile.mkdtemp(prefix="check-gguf-"))
    print(", ".join(f"{n} {version(n)}" for n in ("gguf", "xllamacpp", "transformers", "torch", "tokenizers", "numpy")))
    failed = []
    for name in args.models or args.cases.split(","):
        work = root / Path(name).name
        (work / "source").mkdir(parents=True, exist_ok=True)
        model_file = None if args.models else make(name, work / "source")
        if not run(args, name, name if args.models else work / "source", work, model_file):
            failed.append(name)
    print("FAIL: " + ", ".join(failed) if failed else "all ok")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
