#!/usr/bin/env python3
"""Show that Parquet files of every kind that pyarrow writes give the tokens of the same text as JSON lines.

    check_parquet.py --binary target/release/eslm-kd --tokenizer FOLDER

Writes 5,000 texts in row groups of 1,700, once for each of string, large_string, string_view and dictionary columns, six
compressions, with and without dictionary pages, both versions of data pages, plain and delta encodings (192 files), runs
`eslm-kd prepare` on each and compares `train.bin` byte for byte. Exit 1 on the first difference. Needs pyarrow, no network.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TEXTS = [f"Row {i}: höher 日本 {'x' * (i % 50)} \n two" for i in range(5000)]


def tokens(binary, tokenizer, source, out):
    command = [binary, "prepare", "--input", source, "--tokenizer", tokenizer, "--valid-fraction", "0.1", "--out", out, "-q"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"FAIL: {source.name}: {done.stderr}")
    return (out / "train.bin").read_bytes()


def files(folder):
    types = [pa.string(), pa.large_string(), pa.string_view(), "dictionary"]
    packings = ["none", "snappy", "gzip", "zstd", "brotli", "lz4"]
    encodings = [(True, None), (False, None), (False, "DELTA_BYTE_ARRAY"), (False, "DELTA_LENGTH_BYTE_ARRAY")]
    for n, (kind, packing, (pages, encoding), version) in enumerate(
        itertools.product(types, packings, encodings, ["1.0", "2.0"])
    ):
        texts = pa.array(TEXTS)
        texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(kind)
        other = [{"a": i, "text": "no"} for i in range(len(TEXTS))]
        table = pa.table({"id": range(len(TEXTS)), "text": texts, "meta": other})
        options = {"column_encoding": {"text": encoding}} if encoding else {}
        path = folder / f"{n:03}.parquet"
        pq.write_table(
            table, path, compression=packing, use_dictionary=pages, data_page_version=version, row_group_size=1700, **options
        )
        yield path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--tokenizer", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = folder / "all.jsonl"
        lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        want = tokens(args.binary, args.tokenizer, lines, folder / "want")
        count = 0
        for count, path in enumerate(files(folder), 1):
            if tokens(args.binary, args.tokenizer, path, folder / f"out-{count}") != want:
                sys.exit(f"FAIL: {path.name} gives other tokens")
        print(f"ok: {count} files, pyarrow {pa.__version__}: the tokens of the JSON lines")


if __name__ == "__main__":
    main()
