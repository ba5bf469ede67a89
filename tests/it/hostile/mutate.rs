//! How valid bytes become hostile ones.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;

/// What is written into a file: huge and odd numbers in binary and in text, openings without an
/// end, bytes that are no text.
const NASTY: &[&[u8]] = &[
    &(1u64 << 62).to_le_bytes(),
    &(1u64 << 60).to_le_bytes(),
    &u64::MAX.to_le_bytes(),
    &u32::MAX.to_le_bytes(),
    &i32::MAX.to_le_bytes(),
    &[0; 8],
    &[0xFF; 9],
    &[0xFF, 0xFF, 0xFF, 0xFF, 0x0F],
    b"\xFF\xFE",
    b"\xED\xA0\x80",
    b"\0",
    b"\n",
    b"\r\n\x1b[2J",
    b"\"",
    b"\\",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b"[]",
    b"{}",
    b"null",
    b"true",
    b",",
    b"-1",
    b"1e999",
    b"0.5",
    b"NaN",
    b"nan",
    b"inf",
    b"1000000000000",
    b"4294967295",
    b"9223372036854775807",
    b"18446744073709551615",
    b"340282366920938463463374607431768211456",
    b"'''",
    b"../",
];

/// One change of some bytes.
#[derive(Debug, Clone)]
pub enum Mutation {
    Flip(Index, u8),
    Truncate(Index),
    Remove(Index, usize),
    Duplicate(Index, usize),
    Insert(Index, usize),
    Overwrite(Index, usize),
    /// A whole number in a text becomes another.
    Number(Index, usize),
    /// Brackets, deeper than any stack.
    Nest(Index, bool),
    /// A text of a megabyte.
    Long(Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let nasty = 0..NASTY.len();
    prop_oneof![
        4 => (any::<Index>(), 1..=255u8).prop_map(|(at, bits)| Mutation::Flip(at, bits)),
        2 => any::<Index>().prop_map(Mutation::Truncate),
        2 => (any::<Index>(), 1..40usize).prop_map(|(at, n)| Mutation::Remove(at, n)),
        2 => (any::<Index>(), 1..200usize).prop_map(|(at, n)| Mutation::Duplicate(at, n)),
        4 => (any::<Index>(), nasty.clone()).prop_map(|(at, n)| Mutation::Insert(at, n)),
        4 => (any::<Index>(), nasty.clone()).prop_map(|(at, n)| Mutation::Overwrite(at, n)),
        4 => (any::<Index>(), nasty).prop_map(|(at, n)| Mutation::Number(at, n)),
        1 => (any::<Index>(), any::<bool>()).prop_map(|(at, list)| Mutation::Nest(at, list)),
        1 => any::<Index>().prop_map(Mutation::Long),
    ]
}

/// Some changes, one after the other.
pub fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    proptest::collection::vec(mutation(), 1..4)
}

impl Mutation {
    /// Applies it within the first `within` bytes.
    fn apply(&self, bytes: &mut Vec<u8>, within: usize) {
        let place = |at: &Index, bytes: &[u8]| at.index(bytes.len().min(within) + 1);
        match self {
            Self::Flip(at, bits) if !bytes.is_empty() => {
                let at = at.index(bytes.len().min(within));
                bytes[at] ^= bits;
            }
            Self::Flip(..) => {}
            Self::Truncate(at) => bytes.truncate(at.index(bytes.len() + 1)),
            Self::Remove(at, n) => {
                let at = place(at, bytes);
                bytes.drain(at..(at + n).min(bytes.len()));
            }
            Self::Duplicate(at, n) => {
                let at = place(at, bytes);
                let again = bytes[at..(at + n).min(bytes.len())].to_vec();
                bytes.splice(at..at, again);
            }
            Self::Insert(at, nasty) => {
                let at = place(at, bytes);
                bytes.splice(at..at, NASTY[*nasty].iter().copied());
            }
            Self::Overwrite(at, nasty) => {
                let at = place(at, bytes);
                let end = (at + NASTY[*nasty].len()).min(bytes.len());
                bytes.splice(at..end, NASTY[*nasty].iter().copied());
            }
            Self::Number(at, nasty) => {
                let from = place(at, bytes);
                let Some(start) = (from..bytes.len()).find(|i| bytes[*i].is_ascii_digit()) else {
                    return;
                };
                let end = (start..bytes.len())
                    .find(|i| !bytes[*i].is_ascii_digit())
                    .unwrap_or(bytes.len());
                bytes.splice(start..end, NASTY[*nasty].iter().copied());
            }
            Self::Nest(at, list) => {
                let at = place(at, bytes);
                let one: &[u8] = if *list { b"[" } else { b"{\"a\":" };
                bytes.splice(at..at, one.repeat(100_000));
            }
            Self::Long(at) => {
                let at = place(at, bytes);
                bytes.splice(at..at, std::iter::repeat_n(b'x', 1 << 20));
            }
        }
    }
}

/// The bytes after all changes, which fall into the first `within`.
pub fn mutated(bytes: &[u8], within: usize, changes: &[Mutation]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    changes.iter().for_each(|change| change.apply(&mut bytes, within));
    bytes
}

/// So many cases, always the same ones, unless the environment says otherwise.
pub fn cases(usual: u32) -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = usual;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(20_261_125);
    }
    config
}
