#!/usr/bin/env python3
"""Write about 1 MB of hostile text and its token ids by transformers, for other tokenizers to match.

    check_tokenizer.py TOKENIZER_DIR [--out PREFIX] [--bytes N] [--seed S] [--compare IDS_FILE] [--skip-slow]
    check_tokenizer.py TOKENIZER_DIR... --encode PROGRAM

Writes PREFIX.txt (UTF-8) and PREFIX.u32 (little-endian u32 ids of the whole file encoded as one text, with special tokens
recognised and none added). PREFIX defaults to a fresh temporary folder. --compare names ids that another tokenizer made
of PREFIX.txt: the first difference is shown and the exit code is 1.

With --encode, PROGRAM (`target/release/examples/encode`) makes the ids of each folder's text. They must be those of its
tokenizer.json; what AutoTokenizer gives beside is shown, since transformers 5 builds some classes anew and then gives
others. The text of a folder holds its own special tokens.

For GPT-2's tokenizer the slow side is transformers' slow one where that still exists (before version 5), and otherwise
the BPE below, which shares no code with the `tokenizers` library: it reads vocab.json and merges.txt only.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import regex
import tokenizers
import transformers

SPECIAL = "<|endoftext|>"

SCRIPTS = {  # first and last code point
    "latin": (0x41, 0x7A), "latin-1": (0xA1, 0xFF), "latin-ext": (0x100, 0x24F), "greek": (0x370, 0x3FF),
    "cyrillic": (0x400, 0x4FF), "armenian": (0x531, 0x58A), "hebrew": (0x5D0, 0x5EA), "arabic": (0x620, 0x6D3),
    "devanagari": (0x900, 0x97F), "bengali": (0x980, 0x9FE), "tamil": (0xB82, 0xBFA), "thai": (0xE01, 0xE5B),
    "tibetan": (0xF00, 0xFDA), "georgian": (0x10A0, 0x10FF), "hangul-jamo": (0x1100, 0x11FF),
    "ethiopic": (0x1200, 0x139F), "khmer": (0x1780, 0x17F9), "hiragana": (0x3041, 0x309F), "katakana": (0x30A0, 0x30FF),
    "han": (0x4E00, 0x9FFF), "hangul": (0xAC00, 0xD7A3), "gothic": (0x10330, 0x1034A), "math": (0x1D400, 0x1D7FF),
    "han-b": (0x20000, 0x2A6DF), "symbols": (0x2190, 0x2BFF), "dingbats": (0x2700, 0x27BF),
    "number-forms": (0x2150, 0x218B), "arabic-digits": (0x660, 0x669), "full-width": (0xFF01, 0xFFEE),
    "emoji": (0x1F300, 0x1FAFF), "flags": (0x1F1E6, 0x1F1FF),
}
SPACES = list(" \t\n\r\v\f\x85\xa0") + ["\r\n", "\u1680", "\u2003", "\u2009", "\u2028", "\u2029", "\u202f", "\u3000",
                                        "\u200b", "\ufeff", "\x1c", "\x1f", "\u180e"]
WORDS = ("the of and to in a is that it was for on are as with his they at be this have from or one had by word but "
         "not what all were we when your can said there use an each which she do how their if will up other about out many "
         "Internationalization antidisestablishmentarianism SolidGoldMagikarp rawdownloadcloneembedreportprint").split()
CONTRACTIONS = ["don't", "I'm", "you're", "they've", "we'll", "he'd", "it's", "DON'T", "I'M", "'s", "'ll", "'re've",
                "rock'n'roll", "o\u2019clock", "''s", " 's", "x'S"]
CODE = ["def f(x):\n\treturn x ** 2  # square\n", "for (int i = 0; i < n; ++i) {\n        a[i] += b[i];\n}\n",
        "fn main() -> Result<(), Box<dyn Error>> {\n    let v: Vec<_> = (0..10).collect();\n}\n",
        "SELECT * FROM t WHERE a<>'b' AND c>=1e-5;\n", "<div class=\"a-b_c\">&nbsp;&amp;</div>\n",
        "\\begin{equation} \\frac{a}{b} \\end{equation}", "#!/bin/sh\nset -eu\n\techo \"${HOME%/*}\" && exit 0\n",
        "{\"k\": [1, 2.5e+10, null, \"\\u00e9\\n\"]}\n", "x=x if x!=y else~z<<2|0xFFp3",
        "----====>>>>||||", "....,,,,!!!!????"]
SPECIALS = [SPECIAL, SPECIAL * 3, " " + SPECIAL, SPECIAL + " ", SPECIAL + "\n" + SPECIAL, "a" + SPECIAL + "b",
            "<|endoftext|", "|endoftext|>", "<|ENDOFTEXT|>", "<|endoftext |>", "< |endoftext|>", "<<|endoftext|>>",
            "<|endoftext|><|endoftext", "<|\u200bendoftext|>"]
ODD = ["\ufffd", "\ufffd\ufffd", "\x00", "\x01\x02\x7f", "\u0000a\u0000", "\ufffe", "\uffff", "\U0010ffff", "\U0001fffe",
       "\ue000", "\U000f0000", "\xc3\xa9", "\xe2\x80\x99", "\xef\xbb\xbf", "\x80\x9f", "\u0120hello \u010a", "\u200d\u200d",
       "\u202e", "\u2066", "\ufe0f", "\U000e0041", "\xad", "\u0345"]  # mojibake, noncharacters, look-alikes of byte tokens
EMOJI = ["\U0001F468\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466", "\U0001F44D\U0001F3FD", "\u2764\ufe0f", "1\ufe0f\u20e3",
         "\U0001F3F4\U000E0067\U000E0062\U000E0065\U000E006E\U000E0067\U000E007F", "\U0001F1E9\U0001F1EA", "\U0001F600"]


def pieces(rng, specials):
    """One generator per kind of text; each call gives a short string."""
    def script():
        lo, hi = rng.choice(list(SCRIPTS.values()))
        sep = rng.choice(["", "", " ", "  ", "-"])
        word = lambda: "".join(chr(rng.randint(lo, hi)) for _ in range(rng.randint(1, 9)))
        return sep.join(word() for _ in range(rng.randint(1, 4)))

    def anything():  # any scalar value but surrogates
        return "".join(chr(c) for c in (rng.randrange(0x110000) for _ in range(4)) if not 0xD800 <= c < 0xE000)

    def words():
        w = [rng.choice(WORDS + CONTRACTIONS) for _ in range(rng.randint(1, 12))]
        w = [rng.choice([str.lower, str.upper, str.title, str])(x) if rng.random() < 0.2 else x for x in w]
        body = rng.choice([" ", " ", " ", "", "  "]).join(w)
        return rng.choice(["", " "]) + body + rng.choice(["", ".", ", ", "?!", "...\n"])

    def marks():
        accents = lambda: "".join(chr(rng.randint(0x300, 0x36F)) for _ in range(rng.randint(0, 6)))
        return "".join(rng.choice("aeiouAEIOUnszc\u0915\u0e01") + accents() for _ in range(rng.randint(1, 6)))

    def forms():
        return unicodedata.normalize(rng.choice(["NFC", "NFD", "NFKC", "NFKD"]), "Å é ñ ﬁ ½ ２ 한국어 Ǆ ṩ ΐ")

    def spaces():
        return "".join(rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 3, 7, 17]) for _ in range(rng.randint(1, 4)))

    def numbers():
        return rng.choice([str(rng.randrange(10 ** rng.randint(1, 30))), f"{rng.random():.17g}",
                           f"{rng.randrange(1 << 32):#x}",
                           f"{rng.randrange(10**12):,}", "1" * rng.randint(1, 60), "²³¹⁄₂ ½ Ⅻ ①", "1st 2nd 3D 4x4 10%", "-1e-9"])

    def runs():
        return rng.choice("a=-_* .A0!é中\u0301\n\t ") * rng.randint(1, 90)

    pick = lambda items: (lambda: rng.choice(items))
    return [(script, 8), (anything, 3), (words, 10), (marks, 2), (forms, 1), (spaces, 4), (numbers, 3), (runs, 1),
            (pick(CODE), 3), (pick(specials), 1), (pick(ODD), 2), (pick(EMOJI), 1), (pick(CONTRACTIONS), 2)]


def around(token):
    """A special token in the places that tokenizers get wrong."""
    return [token, token * 2, " " + token, token + " ", f"a{token}b", f"  {token}  x", f"\n{token}\n", token[:-1], token.upper()]


def make_text(seed, size, specials=SPECIALS):
    rng = random.Random(seed)
    makers, weights = zip(*pieces(rng, specials))
    out, total = [], 0
    while total < size:
        s = rng.choices(makers, weights)[0]() + rng.choice(["", "", " ", "\n", "\r\n", "\t"])
        out.append(s)
        total += len(s.encode())
    return "".join(out)


class SlowBpe:
    """GPT-2's byte-level BPE as published: split by pattern, map bytes to letters, merge the best pair while one is left."""

    PATTERN = regex.compile(r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""")

    def __init__(self, folder):
        self.vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        self.rank = {pair: i for i, pair in enumerate(merges)}
        plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
        rest = [b for b in range(256) if b not in plain]
        self.letter = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}
        self.cache = {}

    def word(self, word):
        if word not in self.cache:
            parts = [self.letter[b] for b in word.encode()]
            while len(parts) > 1:
                best = min(zip(parts, parts[1:]), key=lambda p: self.rank.get(p, 1 << 30))
                if best not in self.rank:
                    break
                merged, i = [], 0
                while i < len(parts):
                    step = 2 if tuple(parts[i:i + 2]) == best else 1
                    merged.append("".join(parts[i:i + step]))
                    i += step
                parts = merged
            self.cache[word] = [self.vocab[p] for p in parts]
        return self.cache[word]

    def encode(self, text):
        out = []
        for i, part in enumerate(text.split(SPECIAL)):
            if i:
                out.append(self.vocab[SPECIAL])
            for word in self.PATTERN.findall(part):
                out += self.word(word)
        return out


def differ(name, ids, expected, tokenizer):
    """Print the first difference; -> whether the sequences are equal."""
    if np.array_equal(ids, expected):
        print(f"{name}: same {len(expected)} tokens")
        return True
    n = min(len(ids), len(expected))
    unequal = np.flatnonzero(np.asarray(ids[:n]) != np.asarray(expected[:n]))
    at = int(unequal[0]) if len(unequal) else n
    show = lambda x: [(int(i), tokenizer.convert_ids_to_tokens(int(i))) for i in x[max(0, at - 2):at + 4]]
    print(f"{name}: DIFFERS at token {at} ({len(ids)} tokens, expected {len(expected)}), byte "
          f"{len(tokenizer.decode(expected[:at]).encode())} or so\n  got      {show(ids)}\n  expected {show(expected)}")
    return False


def by_program(args):
    """Each folder's ids by PROGRAM, by its tokenizer.json and by AutoTokenizer; -> whether the first two are equal."""
    ok = True
    for folder in args.tokenizer:
        plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        plain.no_truncation(), plain.no_padding()
        auto = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        added = sorted(plain.get_added_tokens_decoder().items())
        own = [t.content for _, t in added[:20] + added[-20:]]
        text = make_text(args.seed, args.bytes, SPECIALS + [s for token in own for s in around(token)])
        print(f"{folder.name}: {len(text.encode())} bytes, {len(plain.get_vocab())} tokens, {type(auto).__name__} of transformers "
              f"{transformers.__version__}")
        with tempfile.TemporaryDirectory() as work:
            source, out = Path(work) / "text.txt", Path(work) / "ids.u32"
            source.write_bytes(text.encode())
            done = subprocess.run([args.encode, folder, source, out], capture_output=True, text=True)
            if done.returncode:
                print(f"  {done.stderr.strip()}")
                ok = False
                continue
            ours = np.fromfile(out, "<u4").tolist()
        ok &= differ("  tokenizer.json", ours, plain.encode(text, add_special_tokens=False).ids, auto)
        differ("  AutoTokenizer", ours, auto(text, add_special_tokens=False, verbose=False)["input_ids"], auto)
    return ok


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("tokenizer", type=Path, nargs="+")
    ap.add_argument("--out", type=Path, help="prefix of the two files")
    ap.add_argument("--bytes", type=int, default=1_000_000)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--compare", type=Path, help="little-endian u32 ids to compare")
    ap.add_argument("--skip-slow", action="store_true")
    ap.add_argument("--encode", type=Path, help="examples/encode, to compare with any folders")
    args = ap.parse_args()
    transformers.utils.logging.set_verbosity_error()
    if args.encode:
        sys.exit(0 if by_program(args) else 1)
    [args.tokenizer] = args.tokenizer

    out = args.out or Path(tempfile.mkdtemp(prefix="tokenizer-")) / "mixed"
    text = make_text(args.seed, args.bytes)
    data = text.encode("utf-8")
    fast = transformers.GPT2TokenizerFast.from_pretrained(args.tokenizer, local_files_only=True)
    ids = fast(text, add_special_tokens=False, verbose=False)["input_ids"]
    out.with_name(out.name + ".txt").write_bytes(data)
    np.array(ids, "<u4").tofile(out.with_name(out.name + ".u32"))
    print(f"{out}.txt: {len(data)} bytes, {len(set(text))} different characters\n{out}.u32: {len(ids)} tokens, "
          f"{len(set(ids))} different, {ids.count(fast.convert_tokens_to_ids(SPECIAL))} specials")

    # Byte-level BPE loses nothing: the tokens' letters, mapped back, are the text.
    ok = fast.decode(ids, clean_up_tokenization_spaces=False) == text
    print(f"round trip: {'exact' if ok else 'LOSSY'}")
    if (args.tokenizer / "tokenizer.json").exists():  # transformers may build its own from vocab.json and merges.txt
        plain = tokenizers.Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
        ok &= differ("tokenizer.json, plain", plain.encode(text, add_special_tokens=False).ids, ids, fast)
    if not args.skip_slow:
        if not hasattr(transformers.GPT2Tokenizer, "backend_tokenizer"):
            slow = transformers.GPT2Tokenizer.from_pretrained(args.tokenizer, local_files_only=True)
            slow_ids = slow(text, add_special_tokens=False, verbose=False)["input_ids"]
            ok &= differ("transformers' slow tokenizer", slow_ids, ids, fast)
        else:
            print(f"transformers {transformers.__version__} has no slow GPT-2 tokenizer; using the BPE in this file")
        ok &= differ("slow BPE", SlowBpe(args.tokenizer).encode(text), ids, fast)
    if args.compare:
        ok &= differ(str(args.compare), np.fromfile(args.compare, "<u4").tolist(), ids, fast)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
