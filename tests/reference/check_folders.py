#!/usr/bin/env python3
"""Tokenizer folders as eslm-kd reads and writes them, beside transformers.

    check_folders.py ESLM_KD FOLDER...

Each folder's text is tokenised by `eslm-kd prepare`. Its ids must be those of transformers for the same folder, with the
declared end of text after them and what the manifest calls `begin` before them. With the folder that `prepare` wrote,
alone and beside a model of the types below, transformers must give the ids again, and put `begin` before a text. Where
ids or `begin` of the folder itself are other ones, since transformers builds its class anew, ids must be those of its
tokenizer.json, and it is said. Prints a line per folder; the exit code is 1 if one differs. Run it once with each version
of transformers that is to be held.
"""

import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import tokenizers
import transformers
from transformers import AutoTokenizer

TEXT = (
    "The lamp's wick, 1234567 times: naïve café \u65e5\u672c\u8a9e \U0001F468\u200d\U0001F469, don't!  \n\n\tx = [1,2];\u00a0 "
    "e\u0301 \u00e9 \ufb01 </s> <s> <|im_end|> <pad> <unk> [PAD] \u2581a  b   c\r\n"
)


# qwen2 is none: 5.24 builds its class anew whatever a folder says.
BESIDE = ["", "gpt2", "llama", "qwen3"]


def ids_of(path):
    raw = path.read_bytes()
    width, count = struct.unpack_from("<I", raw, 12)[0], struct.unpack_from("<Q", raw, 16)[0]
    return list(struct.unpack_from(f"<{count}{'H' if width == 2 else 'I'}", raw, 256))


def by_file(folder, text):
    """Ids by tokenizer.json alone; none without one."""
    path = Path(folder) / "tokenizer.json"
    return tokenizers.Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids if path.is_file() else []


def before(tokenizer):
    """What a tokenizer puts before a text."""
    plain = tokenizer.encode("The lamp", add_special_tokens=False)
    return tokenizer.encode("The lamp")[: -len(plain)]


def check(program, folder, work):
    source = AutoTokenizer.from_pretrained(folder)
    extra = [str(t) for t in source.all_special_tokens]
    text = TEXT + " ".join(extra) + " end" + "".join(extra[:3]) + "\n" + TEXT
    (work / "in.jsonl").write_text(json.dumps({"text": text}))
    command = [program, "prepare", "--input", work / "in.jsonl", "--tokenizer", folder, "--out", work / "data", "-q"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        return "refused: " + done.stderr.strip()[-160:]
    ours = ids_of(work / "data/train.bin")
    begin = json.loads((work / "data/manifest.json").read_text()).get("begin", [])
    want = begin + source.encode(text, add_special_tokens=False) + [source.eos_token_id]
    note = ""
    if ours != want and ours == begin + by_file(folder, text) + [source.eos_token_id]:
        want, note = ours, f"; these are tokenizer.json's, {type(source).__name__} gives others"
    if ours != want:
        at = next((i for i, (a, b) in enumerate(zip(ours, want)) if a != b), min(len(ours), len(want)))
        return f"DIFFERS from the folder at {at}: {ours[at:at + 5]}, transformers {want[at:at + 5]}"
    for model in BESIDE:
        if model:
            (work / "data/tokenizer/config.json").write_text(json.dumps({"model_type": model}))
        try:
            written = AutoTokenizer.from_pretrained(work / "data/tokenizer")
        except Exception as e:
            return f"WRITTEN FOLDER cannot be read: {type(e).__name__}: {e}"
        again = begin + written.encode(text, add_special_tokens=False) + [written.eos_token_id]
        if again != want:
            at = next((i for i, (a, b) in enumerate(zip(again, want)) if a != b), min(len(again), len(want)))
            return f"WRITTEN FOLDER ({model}) DIFFERS at {at}: {again[at:at + 5]}, {want[at:at + 5]}"
        # One token that ends documents and begins texts stands between two of them once.
        if before(written) not in (begin, [source.eos_token_id]):
            return f"WRITTEN FOLDER ({model}) begins a text with {before(written)}, data begin with {begin}"
    for role in ["bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "chat_template"]:
        was, now = getattr(source, role), getattr(written, role)
        if was != now and was is not None:
            return f"WRITTEN FOLDER: {role} is {now}, was {was}"
    own = before(source)
    return f"equal, {len(ours)} ids" + note + (f"; begins with {begin}, the folder itself with {own}" if own != before(written) else "")


def main():
    program, wrong = sys.argv[1], 0
    print(f"transformers {transformers.__version__}")
    for folder in sys.argv[2:]:
        with tempfile.TemporaryDirectory() as work:
            try:
                found = check(program, folder, Path(work))
            except Exception as e:  # a folder that transformers itself cannot read
                found = f"transformers: {type(e).__name__}: {str(e)[:120]}"
        wrong += "DIFFERS" in found or "WRITTEN" in found
        print(f"{folder}: {found}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
