"""Reads a shard of a teacher's signal (docs/reference/signal-format.md). Needs numpy alone.

    python read_signal.py 00000-of-00001.signal [POSITION...]
"""
import hashlib, json, struct, sys
import numpy as np


class Shard:
    def __init__(self, path):
        self.data = np.memmap(path, dtype=np.uint8, mode="r")
        head = bytes(self.data[:96])
        magic, version, size, ids = struct.unpack_from("<8sIII", head)
        assert magic == b"ESLMSIG\0" and version == 1, "no signal of version 1"
        self.index_at, = struct.unpack_from("<Q", head, 24)
        rest = bytes(self.data[96 : 96 + size + 4 * ids])
        assert hashlib.sha256(head[:64] + rest).digest() == head[64:96], "damaged header"
        index = bytes(self.data[self.index_at :])
        assert hashlib.sha256(index).digest() == head[32:64], "damaged index"
        self.header = json.loads(rest[:size])
        self.ids = np.frombuffer(rest[size:], "<u4")  # the id of each rank
        self.starts = np.frombuffer(index, np.dtype([("at", "<u8"), ("hash", "V16")]))["at"]
        self.first, self.end = self.header["positions"]

    def block(self, i):
        """The teacher's NLL, entropies and rows of block i."""
        at, size = int(self.starts[i]), self.header["block"]
        length, n = struct.unpack_from("<II", self.data, at)
        body = bytes(self.data[at + 24 : at + 24 + length])
        assert hashlib.sha256(body).digest()[:16] == bytes(self.data[at + 8 : at + 24]), f"damaged block {i}"
        kinds = 2 + (self.header["signal"].get("temperature", 1.0) != 1.0)
        scalars = np.frombuffer(body, "<f2", n * kinds, 1).reshape(kinds, n)
        lengths, at = [0] * n, 1 + 2 * n * kinds
        if body[0]:
            lengths = np.frombuffer(body, f"<u{body[0]}", n, at).tolist()
        ends = at + body[0] * n + np.cumsum(lengths)
        return scalars, [body[e - l : e] for e, l in zip(ends.tolist(), lengths)]

    def position(self, p):
        """Of the token behind input p: (scalars, what a row holds)."""
        i, row = divmod(p - self.first, self.header["block"])
        scalars, rows = self.block(i)
        signal = self.header["signal"]
        read = {"sampled": self.draws, "top-k": self.top, "scores": lambda bits, signal: None}[signal["kind"]]
        return scalars[:, row], read(Bits(rows[row]), signal)

    def ranks(self, bits, count):
        next, out = 0, []
        for _ in range(count):
            k = max(0, (next + 1).bit_length() - 1 - max(0, count.bit_length() - 3))
            next += bits.golomb(k) + 1
            out.append(next - 1)
        return out

    def top(self, bits, signal):
        """{id: probability} of the largest; the rest is what they leave of 1."""
        ranks = self.ranks(bits, signal["k"])
        least = bits.gamma()
        k = least.bit_length() - 1
        return {int(self.ids[r]): ((bits.golomb(k) + least) / 1023) ** 2 for r in ranks}

    def draws(self, bits, signal):
        """For each number of planes {id: how often it was drawn}."""
        known, out = {}, []
        for size in signal["planes"]:
            left = size - (bits.gamma() - 1) if known else 0
            fresh, of, new = size - left, sum(known.values()), {}
            order = sorted(known, key=lambda r: (-known[r], r))
            for r in order:
                if left == 0:
                    break
                expected = left * known[r] // of
                more = left if r == order[-1] else bits.rice(max(0, expected.bit_length() - 1))
                of, left = of - known[r], left - more
                known[r] += more
            if fresh:
                ranks = self.ranks(bits, bits.gamma())
                new = {r: 1 for r in ranks}
                for r in ranks[:-1] if len(ranks) < fresh else []:
                    new[r] = bits.gamma()
                new[ranks[-1]] += fresh - sum(new.values())
            known.update(new)
            out.append({int(self.ids[r]): c for r, c in known.items()})
        return out


class Bits:
    """A row as one integer, the lowest bit first."""

    def __init__(self, row):
        self.value = int.from_bytes(row, "little")

    def take(self, count):
        low, self.value = self.value & ((1 << count) - 1), self.value >> count
        return low

    def zeros(self):
        n = (self.value & -self.value).bit_length() - 1
        self.value >>= n + 1
        return n

    def gamma(self):
        b = self.zeros()
        return (1 << b) | self.take(b)

    def golomb(self, k):
        return (self.gamma() - 1 << k) + self.take(k)

    def rice(self, k):
        return (self.zeros() << k) + self.take(k)


if __name__ == "__main__":
    shard = Shard(sys.argv[1])
    print(json.dumps(shard.header, indent=1))
    for p in map(int, sys.argv[2:] or [shard.first]):
        print(p, *shard.position(p))
