#!/usr/bin/env python3
"""Tokenizer folders as eslm-kd reads and writes them, beside transformers.

    check_folders.py ESLM_KD FOLDER...

Each folder's text is tokenised by `eslm-kd prepare`. Its ids must be those of transformers for the same folder, with the
declared end of text after them, and transformers must give them again with the folder that `prepare` wrote. Prints a
line per folder; the exit code is 1 if one differs. Run it once with each version of transformers that is to be held.
"""

import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import transformers
from transformers import AutoTokenizer

TEXT = (
    "The lamp's wick, 1234567 times: naïve café \u65e5\u672c\u8a9e \U0001F468\u200d\U0001F469, don't!  \n\n\tx = [1,2];\u00a0 "
    "e\u0301 \u00e9 \ufb01 </s> <s> <|im_end|> <pad> <unk> [PAD] \u2581a  b   c\r\n"
)


def ids_of(path):
    raw = path.read_bytes()
    width, count = struct.unpack_from("<I", raw, 12)[0], struct.unpack_from("<Q", raw, 16)[0]
    return list(struct.unpack_from(f"<{count}{'H' if width == 2 else 'I'}", raw, 256))


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
    want = source.encode(text, add_special_tokens=False) + [source.eos_token_id]
    if ours != want:
        at = next((i for i, (a, b) in enumerate(zip(ours, want)) if a != b), min(len(ours), len(want)))
        return f"DIFFERS from the folder at {at}: {ours[at:at + 5]}, transformers {want[at:at + 5]}"
    try:
        written = AutoTokenizer.from_pretrained(work / "data/tokenizer")
    except Exception as e:
        return f"WRITTEN FOLDER cannot be read: {type(e).__name__}: {e}"
    again = written.encode(text, add_special_tokens=False) + [written.eos_token_id]
    if again != want:
        at = next((i for i, (a, b) in enumerate(zip(again, want)) if a != b), min(len(again), len(want)))
        return f"WRITTEN FOLDER DIFFERS at {at}: {again[at:at + 5]}, {want[at:at + 5]}"
    for role in ["bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "chat_template"]:
        before, after = getattr(source, role), getattr(written, role)
        if before != after and before is not None:
            return f"WRITTEN FOLDER: {role} is {after}, was {before}"
    return f"equal, {len(ours)} ids"


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
