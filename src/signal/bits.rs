//! Bits of a row: little-endian, the lowest bit of a byte first, so that a row is one large integer.
//!
//! | code | bits |
//! |---|---|
//! | gamma(n), n >= 1 | b zeros, a one, the b low bits of n; 2^b <= n < 2^(b + 1) (Elias 1975) |
//! | golomb(n, k) | gamma(n / 2^k + 1), the k low bits of n (exponential Golomb, Teuhola 1978) |
//! | rice(n, k) | n / 2^k zeros, a one, the k low bits of n (Rice 1979) |

/// Appends codes to bytes.
#[derive(Debug, Default)]
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    /// Bits that do not fill a byte yet, and their number.
    open: u64,
    count: u32,
}

impl BitWriter {
    /// The `count` low bits of `value`, at most 32.
    pub(super) fn bits(&mut self, value: u64, count: u32) {
        debug_assert!(count <= 32);
        self.open |= (value & ((1 << count) - 1)) << self.count;
        self.count += count;
        while self.count >= 8 {
            self.bytes.push(self.open as u8);
            self.open >>= 8;
            self.count -= 8;
        }
    }

    fn unary(&mut self, mut zeros: u32) {
        while zeros > 31 {
            self.bits(0, 31);
            zeros -= 31;
        }
        self.bits(1 << zeros, zeros + 1);
    }

    pub(super) fn gamma(&mut self, n: u32) {
        let b = n.ilog2();
        self.unary(b);
        self.bits(u64::from(n), b);
    }

    pub(super) fn golomb(&mut self, n: u32, k: u32) {
        self.gamma((n >> k) + 1);
        self.bits(u64::from(n), k);
    }

    pub(super) fn rice(&mut self, n: u32, k: u32) {
        self.unary(n >> k);
        self.bits(u64::from(n), k);
    }

    /// Ends the row at a byte and moves it to `out`.
    pub(super) fn end(&mut self, out: &mut Vec<u8>) {
        if self.count > 0 {
            self.bytes.push(self.open as u8);
        }
        (self.open, self.count) = (0, 0);
        out.append(&mut self.bytes);
    }
}

/// Reads the codes of a row. What is asked for beyond its end reads as zeros and is noted: see
/// [`BitReader::is_whole`].
#[derive(Debug)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    /// The next bit.
    at: usize,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// At least the next 56 bits.
    fn window(&self) -> u64 {
        let (byte, bit) = (self.at / 8, self.at % 8);
        let window = match self.bytes.get(byte..byte + 8) {
            Some(bytes) => u64::from_le_bytes(bytes.try_into().unwrap_or_default()),
            None => {
                let mut padded = [0; 8];
                let rest = self.bytes.get(byte..).unwrap_or_default();
                padded[..rest.len()].copy_from_slice(rest);
                u64::from_le_bytes(padded)
            }
        };
        window >> bit
    }

    /// At most 32 bits.
    pub(super) fn bits(&mut self, count: u32) -> u32 {
        let value = self.window() & ((1 << count) - 1);
        self.at += count as usize;
        value as u32
    }

    fn unary(&mut self) -> u32 {
        let mut zeros = 0;
        loop {
            let window = self.window() & ((1 << 56) - 1);
            if window != 0 {
                let more = window.trailing_zeros();
                self.at += more as usize + 1;
                return zeros + more;
            }
            zeros += 56;
            self.at += 56;
            if self.at > self.bytes.len() * 8 {
                return zeros;
            }
        }
    }

    pub(super) fn gamma(&mut self) -> u32 {
        let b = self.unary().min(31);
        (1 << b) | self.bits(b)
    }

    pub(super) fn golomb(&mut self, k: u32) -> u32 {
        let high = u64::from(self.gamma() - 1) << k;
        (high as u32).saturating_add(self.bits(k))
    }

    pub(super) fn rice(&mut self, k: u32) -> u32 {
        let high = u64::from(self.unary()) << k;
        (high as u32).saturating_add(self.bits(k))
    }

    /// Whether nothing was asked for that is not there.
    pub(super) fn is_whole(&self) -> bool {
        self.at <= self.bytes.len() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_what_it_wrote() {
        let numbers = [0, 1, 2, 3, 7, 8, 100, 255, 256, 65_535, 262_143];
        let mut writer = BitWriter::default();
        for &n in &numbers {
            writer.gamma(n + 1);
            for k in [0, 1, 5, 17] {
                writer.golomb(n, k);
            }
            writer.rice(n % 300, 0);
            writer.rice(n, 12);
            writer.bits(u64::from(n), 18);
        }
        let mut out = Vec::new();
        writer.end(&mut out);
        let mut reader = BitReader::new(&out);
        for &n in &numbers {
            assert_eq!(reader.gamma(), n + 1);
            for k in [0, 1, 5, 17] {
                assert_eq!(reader.golomb(k), n);
            }
            assert_eq!((reader.rice(0), reader.rice(12), reader.bits(18)), (n % 300, n, n));
        }
        assert!(reader.is_whole());
        reader.gamma();
        reader.gamma();
        assert!(!reader.is_whole());
    }

    #[test]
    fn the_bits_are_where_the_format_says() {
        let mut writer = BitWriter::default();
        writer.gamma(5); // 0 0 1, then the low bits of 5: 1 0
        writer.rice(6, 1); // 0 0 0 1, then 0
        let mut out = Vec::new();
        writer.end(&mut out);
        assert_eq!(out, [0b0000_1100, 0b0000_0001]);
    }
}
