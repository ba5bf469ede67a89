//! What a signal is of, and what each of its positions holds.

use crate::error::{Error, Result};
use crate::loss::SignalKind;
use crate::report::text::{amount, count};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// Draws of a position are counted with this many bits at most.
pub const MOST_DRAWS: u32 = 1 << 16;

/// What a teacher said of every position of a token file, as the header of a shard tells it (JSON).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The token file.
    pub data: DataId,
    /// Who speaks.
    pub teacher: TeacherId,
    /// What the teacher reads before a position.
    pub window: Window,
    /// What it says of one.
    pub signal: Kind,
    /// Ids that it may name: the teacher's vocabulary.
    pub vocab_size: u32,
    /// Positions of a block; the last has what is left.
    pub block: u32,
    /// This shard and the number of shards.
    pub shard: Shard,
    /// The positions of this shard: first, and the one behind the last.
    pub positions: (u64, u64),
}

/// A token file by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataId {
    /// SHA-256 of the tokens, in hexadecimal.
    pub content_hash: String,
    /// SHA-256 of the tokenizer that made it.
    pub tokenizer_hash: String,
    /// Its tokens. It has a position less: the last token has no next.
    pub tokens: u64,
}

/// A teacher by its weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherId {
    /// What it was called where the signal was written; compared with nothing.
    pub name: String,
    /// SHA-256 of the weights, in hexadecimal; None of output that came from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// The constants of its function, which no weight shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// `org/name@commit` of one from the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// How its products were computed and its matrices stored; None of output that came from
    /// elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
}

/// The windows in which a teacher reads a token file: number w holds the inputs from `w * stride` on,
/// `context` of them; its last `stride` positions count, of the first all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Inputs that the teacher reads at once.
    pub context: u32,
    /// From one window to the next, at most the context.
    pub stride: u32,
}

impl Window {
    /// Windows over so many positions.
    pub fn count(self, positions: u64) -> u64 {
        1 + positions.saturating_sub(self.context.into()).div_ceil(self.stride.into())
    }

    /// The positions that count in window `w`, of so many.
    pub(super) fn of(self, w: u64, positions: u64) -> Range<u64> {
        let (context, stride) = (u64::from(self.context), u64::from(self.stride));
        let end = (w * stride + context).min(positions);
        let start = if w == 0 { 0 } else { w * stride + context - stride };
        start.min(end)..end
    }

    /// The longest sequences that a student may read.
    pub fn longest(self) -> u32 {
        if self.stride == self.context { self.context } else { self.context - self.stride + 1 }
    }

    fn fits(self, context: usize) -> bool {
        let nested = self.stride == self.context && (self.context as usize).is_multiple_of(context);
        nested || (self.context - self.stride) as usize + 1 >= context
    }

    /// Errs unless the teacher has read, at every position, at least what a student reads there that
    /// is trained on sequences of `context` positions, which begin at its multiples.
    pub fn check_fits(self, context: usize) -> Result<()> {
        if self.fits(context) {
            return Ok(());
        }
        let fits = (1..context).rev().find(|&fewer| self.fits(fewer));
        let other = match self.stride == self.context {
            true => format!("--context {context}"),
            false => "windows side by side, without --stride".into(),
        };
        Err(Error::usage(format!(
            "the teacher read {self}, and the student would read {}: at some positions more than the teacher did; train with \
             data.context = {}, or write a signal with {other}",
            amount(context as u64, "tokens"),
            fits.unwrap_or(1)
        )))
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "windows of {}", amount(self.context.into(), "tokens"))?;
        if self.stride == self.context {
            return Ok(());
        }
        write!(f, ", one every {}", count(self.stride.into()))
    }
}

/// What a position holds beside the teacher's NLL of the target and its entropy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Kind {
    /// Independent draws from the distribution q at a temperature.
    Sampled {
        /// Draws of each plane: the first plane is a signal, the first two are a larger one, and so
        /// on.
        planes: Vec<u32>,
        /// Seed of the draws.
        seed: u64,
        /// Temperature of q.
        temperature: f32,
    },
    /// The largest probabilities, and the rest as one.
    TopK {
        /// Entries.
        k: u32,
        /// Temperature of q.
        temperature: f32,
    },
    /// Nothing more: scores for selection.
    Scores,
}

impl Kind {
    /// Draws in planes that double: 8, 8, 16, 32 and what is left.
    pub fn planes_of(draws: u32) -> Vec<u32> {
        let mut planes = Vec::new();
        let mut done = 0;
        while done < draws {
            let next = if done == 0 { 8 } else { done };
            let next = next.min(draws - done);
            planes.push(next);
            done += next;
        }
        planes
    }

    /// All that is there of it.
    pub fn all(&self) -> SignalKind {
        match self {
            Self::Sampled { planes, .. } => SignalKind::Sampled(planes.iter().sum()),
            Self::TopK { k, .. } => SignalKind::TopK(*k as usize),
            Self::Scores => SignalKind::Scores,
        }
    }

    /// Its temperature; None where it depends on none.
    pub fn temperature(&self) -> Option<f32> {
        match self {
            Self::Sampled { temperature, .. } | Self::TopK { temperature, .. } => {
                Some(*temperature)
            }
            Self::Scores => None,
        }
    }

    /// Draws of each plane; none where nothing is drawn.
    pub fn planes(&self) -> &[u32] {
        match self {
            Self::Sampled { planes, .. } => planes,
            Self::TopK { .. } | Self::Scores => &[],
        }
    }

    /// Draws of its first plane, of the first two, and so on.
    pub(super) fn sums(&self) -> Vec<u32> {
        let planes = self.planes().iter();
        let add = |sum: &mut u32, n: &u32| {
            *sum += n;
            Some(*sum)
        };
        planes.scan(0, add).collect()
    }

    /// How many planes have `draws` draws. Errs where none end there.
    pub fn planes_for(&self, draws: u32) -> Result<usize> {
        let Self::Sampled { .. } = self else { return Ok(0) };
        let sums = self.sums();
        sums.iter().position(|sum| *sum == draws).map(|i| i + 1).ok_or_else(|| {
            let words: Vec<String> = sums.iter().map(u32::to_string).collect();
            Error::usage(format!(
                "objective.samples = {draws}, but the signal's planes give {} draws",
                words.join(" or ")
            ))
        })
    }

    /// What it is, without its size.
    fn word(&self) -> &'static str {
        match self {
            Self::Sampled { .. } => "sampled",
            Self::TopK { .. } => "top-k",
            Self::Scores => "none",
        }
    }

    /// Whether positions have an entropy at another temperature than 1.
    pub(super) fn has_entropy_tau(&self) -> bool {
        self.temperature().is_some_and(|tau| tau != 1.0)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sampled { planes, .. } => {
                let words: Vec<String> = planes.iter().map(u32::to_string).collect();
                write!(f, "sampled={} ({})", planes.iter().sum::<u32>(), words.join(" + "))?;
            }
            Self::TopK { k, .. } => write!(f, "top-k={k}")?,
            Self::Scores => write!(f, "none")?,
        }
        match self.temperature().filter(|tau| *tau != 1.0) {
            Some(tau) => write!(f, " at temperature {tau}"),
            None => Ok(()),
        }
    }
}

/// Part `index` of `of` parts of a signal, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// From 0.
    pub index: u32,
    /// Number of parts.
    pub of: u32,
}

impl Shard {
    /// The whole.
    pub const ALL: Self = Self { index: 0, of: 1 };

    /// Its file in the signal's folder.
    pub fn file(self) -> String {
        format!("{:05}-of-{:05}.signal", self.index, self.of)
    }

    /// From a file's name.
    pub(super) fn of_file(name: &str) -> Option<Self> {
        let (index, of) = name.strip_suffix(".signal")?.split_once("-of-")?;
        let shard = Self { index: index.parse().ok()?, of: of.parse().ok()? };
        (shard.index < shard.of && shard.file() == name).then_some(shard)
    }

    /// Its windows of so many.
    pub(super) fn windows(self, count: u64) -> Range<u64> {
        let at = |i: u32| (u128::from(count) * u128::from(i) / u128::from(self.of)) as u64;
        at(self.index)..at(self.index + 1)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl Header {
    /// Positions of the token file.
    pub fn positions_in_all(&self) -> u64 {
        self.data.tokens.saturating_sub(1)
    }

    /// The same for another shard.
    #[must_use]
    pub fn for_shard(&self, shard: Shard) -> Self {
        let total = self.positions_in_all();
        let windows = shard.windows(self.window.count(total));
        let positions = if windows.is_empty() {
            (0, 0)
        } else {
            (self.window.of(windows.start, total).start, self.window.of(windows.end - 1, total).end)
        };
        Self { shard, positions, ..self.clone() }
    }

    /// Blocks of this shard.
    pub(super) fn blocks(&self) -> u64 {
        (self.positions.1 - self.positions.0).div_ceil(self.block.into())
    }

    /// The positions of block `i`.
    pub(super) fn of_block(&self, i: u64) -> Range<u64> {
        let start = self.positions.0 + i * u64::from(self.block);
        start..(start + u64::from(self.block)).min(self.positions.1)
    }

    /// Errs with what no signal can be.
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        let Window { context, stride } = self.window;
        if stride == 0 || stride > context {
            return Err(format!("stride {stride} of windows of {context}"));
        }
        if self.block == 0 || self.shard.index >= self.shard.of || self.vocab_size == 0 {
            return Err(format!(
                "block {}, shard {}, vocabulary {}",
                self.block, self.shard, self.vocab_size
            ));
        }
        if let Kind::Sampled { planes, .. } = &self.signal {
            let sum: u64 = planes.iter().map(|n| u64::from(*n)).sum();
            if planes.contains(&0) || sum == 0 || sum > MOST_DRAWS.into() {
                return Err(format!("planes {planes:?}"));
            }
        }
        if let Kind::TopK { k, .. } = &self.signal
            && (*k == 0 || *k > self.vocab_size)
        {
            return Err(format!("top-k of {k} entries, of {}", self.vocab_size));
        }
        if self.signal.temperature().is_some_and(|tau| !(tau.is_finite() && tau > 0.0)) {
            return Err("a temperature that is not above 0".into());
        }
        let expected = self.for_shard(self.shard).positions;
        if self.positions != expected {
            return Err(format!("positions {:?}, expected {expected:?}", self.positions));
        }
        Ok(())
    }

    /// What differs from `other` apart from the shard, in words.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let pairs = self.facts().into_iter().zip(other.facts());
        differing(pairs.map(|((name, a), (_, b))| (name, a, b)), |a, b| {
            format!("{a} there, {b} here")
        })
    }

    /// What all shards of a signal have in common, in words.
    pub(super) fn facts(&self) -> [(&'static str, String); 10] {
        [
            ("data (SHA-256)", self.data.content_hash.clone()),
            ("teacher's weights (SHA-256)", words(&self.teacher.weights)),
            ("teacher's config.json", words(&self.teacher.function)),
            ("dtype", words(&self.teacher.dtype)),
            ("windows", self.window.to_string()),
            ("signal", self.signal.to_string()),
            ("seed", seed(&self.signal)),
            ("vocabulary", count(self.vocab_size.into())),
            ("positions of a block", count(self.block.into())),
            ("tokens", count(self.data.tokens)),
        ]
    }

    /// What keeps it and `other` from being mixed, in words: its own value, then the other's.
    pub(super) fn clashes(&self, other: &Self) -> Vec<String> {
        let (a, b) = (self, other);
        let tau = |kind: &Kind| kind.temperature().map_or("none".into(), |tau| tau.to_string());
        let pairs = [
            ("data (SHA-256)", a.data.content_hash.clone(), b.data.content_hash.clone()),
            ("tokenizer (SHA-256)", a.data.tokenizer_hash.clone(), b.data.tokenizer_hash.clone()),
            ("tokens", count(a.data.tokens), count(b.data.tokens)),
            ("kind", a.signal.word().into(), b.signal.word().into()),
            ("temperature", tau(&a.signal), tau(&b.signal)),
            ("windows", a.window.to_string(), b.window.to_string()),
        ];
        differing(pairs, |a, b| format!("{a} and {b}"))
    }
}

/// The pairs that differ, each in words.
fn differing(
    pairs: impl IntoIterator<Item = (&'static str, String, String)>,
    in_words: impl Fn(&str, &str) -> String,
) -> Vec<String> {
    let differ = pairs.into_iter().filter(|(_, a, b)| a != b);
    differ.map(|(what, a, b)| format!("{what}: {}", in_words(&a, &b))).collect()
}

fn words(text: &Option<String>) -> String {
    text.clone().unwrap_or_else(|| "unknown".into())
}

fn seed(kind: &Kind) -> String {
    match kind {
        Kind::Sampled { seed, .. } => seed.to_string(),
        Kind::TopK { .. } | Kind::Scores => "none".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_double() {
        assert_eq!(Kind::planes_of(50), [8, 8, 16, 18]);
        assert_eq!(Kind::planes_of(16), [8, 8]);
        assert_eq!(Kind::planes_of(3), [3]);
        let kind = Kind::Sampled { planes: vec![8, 8, 16, 18], seed: 1, temperature: 1.0 };
        assert_eq!(kind.planes_for(32).unwrap(), 3);
        assert_eq!(kind.planes_for(50).unwrap(), 4);
        let refused = kind.planes_for(20).unwrap_err().to_string();
        assert!(refused.contains("8 or 16 or 32 or 50"), "{refused}");
        assert_eq!(kind.to_string(), "sampled=50 (8 + 8 + 16 + 18)");
    }

    #[test]
    fn the_teacher_has_read_at_least_what_the_student_reads() {
        let fits =
            |context, stride, student| Window { context, stride }.check_fits(student).is_ok();
        assert!(fits(256, 256, 256) && fits(256, 256, 128) && fits(256, 256, 1));
        assert!(!fits(256, 256, 512) && !fits(256, 256, 96));
        // Every position has 129 tokens or more, itself included.
        assert!(fits(256, 128, 129) && fits(256, 128, 96) && !fits(256, 128, 130));
        let said = |student| {
            Window { context: 256, stride: 256 }.check_fits(student).unwrap_err().to_string()
        };
        assert!(
            said(96).contains("data.context = 64,") && said(512).contains("data.context = 256,")
        );
    }

    #[test]
    fn shards_cover_every_position_once() {
        for tokens in [2u64, 9, 100, 1001] {
            for (context, stride) in [(8, 8), (8, 3), (64, 64), (2000, 2000)] {
                let header = Header {
                    data: DataId {
                        content_hash: String::new(),
                        tokenizer_hash: String::new(),
                        tokens,
                    },
                    teacher: TeacherId {
                        name: String::new(),
                        weights: None,
                        function: None,
                        revision: None,
                        dtype: None,
                    },
                    window: Window { context, stride },
                    signal: Kind::Scores,
                    vocab_size: 3,
                    block: 8,
                    shard: Shard::ALL,
                    positions: (0, 0),
                };
                for of in [1, 2, 3, 7] {
                    let mut next = 0;
                    for index in 0..of {
                        let part = header.for_shard(Shard { index, of });
                        part.check().unwrap();
                        if part.positions.0 < part.positions.1 {
                            assert_eq!(part.positions.0, next);
                            next = part.positions.1;
                        }
                    }
                    assert_eq!(next, tokens - 1, "{tokens} {context} {stride} {of}");
                }
            }
        }
        assert_eq!(Shard::of_file("00002-of-00008.signal"), Some(Shard { index: 2, of: 8 }));
        for name in ["00008-of-00008.signal", "2-of-8.signal", "x.signal", "00000-of-00001.sig"] {
            assert_eq!(Shard::of_file(name), None, "{name}");
        }
    }
}
