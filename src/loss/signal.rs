//! What a teacher says about the rows of a loss: everything, its most likely entries, or a sample.
//!
//! The two sparse signals stand for teachers whose full output is too large to store or to send;
//! with a live teacher they are formed from its dense logits, so that such a student can be
//! studied.

use super::head::{Logits, RowStats, Stats, check_vocab};
use crate::config::{self, ObjectivePlan};
use crate::error::{Error, Result};
use half::f16;

/// The teacher's distribution q at the objective's temperature, for N rows.
#[derive(Debug, Clone)]
pub enum Signal {
    /// All of it: logits, formed when read.
    Dense(Logits),
    /// The largest entries and the mass of the rest.
    TopK(TopK),
    /// Draws from it.
    Sampled(Sampled),
}

/// What a teacher says of a position beside its signal, in nats: what scores read. Each number is
/// the nearest that 16 bits hold (f16), so that a stored signal and a live one say the same.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Said {
    /// -ln q(target) at temperature 1.
    pub nll: f32,
    /// H(q) at temperature 1.
    pub entropy: f32,
    /// H(q) at the objective's temperature.
    pub entropy_tau: f32,
}

impl Said {
    /// Of the teacher's half of a row's statistics, at whose temperature it was scanned.
    pub fn of(stats: &RowStats) -> Self {
        let Stats { nll, entropy, entropy_tau, .. } = stats.teacher;
        Self { nll, entropy, entropy_tau }.rounded()
    }

    /// Each number as the nearest of 16 bits.
    pub(crate) fn rounded(self) -> Self {
        let rounded = |x: f32| f16::from_f32(x).to_f32();
        let Self { nll, entropy, entropy_tau } = self;
        Self { nll: rounded(nll), entropy: rounded(entropy), entropy_tau: rounded(entropy_tau) }
    }
}

/// The k largest probabilities of each row, and one bucket for everything else.
#[derive(Debug, Clone, PartialEq)]
pub struct TopK {
    /// Entries per row, at most the vocabulary.
    pub k: usize,
    /// Ascending ids of each row [N, k].
    pub ids: Vec<u32>,
    /// ln q of these ids [N, k]; of one teacher each of one of 1,023 levels: `(s / 1023)^2` is q.
    pub logp: Vec<f32>,
    /// ln of the mass outside `[N]`; negative infinity where the ids are the whole vocabulary.
    pub rest: Vec<f32>,
    /// What is said of each row beside `[N]`.
    pub said: Vec<Said>,
}

/// Levels of probability: ten bits. Their squares are finer where probabilities are small.
const LEVELS: u32 = 1023;

impl TopK {
    /// The level s of probability `q`: the nearest to `1023 sqrt(q)`, from 1 to 1023.
    pub(crate) fn level(q: f64) -> u32 {
        ((q.max(0.0).sqrt() * f64::from(LEVELS)).round() as u32).clamp(1, LEVELS)
    }

    /// ln of the probability that a level stands for, `(s / 1023)^2`.
    pub(crate) fn logp_of(level: u32) -> f32 {
        mass(level).ln() as f32
    }

    /// ln of the mass outside ids of these levels, which are not the whole vocabulary: what they
    /// leave of 1. A sure teacher's levels may add up to 1 or, rounded, to more; the rest is never
    /// less than the least level's, `1 / 1023^2` (1e-6).
    pub(crate) fn rest_of(levels: impl Iterator<Item = u32>) -> f32 {
        let left = 1.0 - levels.map(mass).sum::<f64>();
        left.max(mass(1)).ln() as f32
    }

    /// The same, of these rows only.
    fn select(&self, rows: &[u32]) -> Self {
        fn of<T: Copy>(rows: &[u32], all: &[T], width: usize) -> Vec<T> {
            rows.iter().flat_map(|&r| &all[r as usize * width..][..width]).copied().collect()
        }
        Self {
            k: self.k,
            ids: of(rows, &self.ids, self.k),
            logp: of(rows, &self.logp, self.k),
            rest: of(rows, &self.rest, 1),
            said: of(rows, &self.said, 1),
        }
    }
}

fn mass(level: u32) -> f64 {
    (f64::from(level) / f64::from(LEVELS)).powi(2)
}

/// Independent draws from q: `count / draws` estimates q without bias, and so the gradient of
/// cross-entropy to q and of KL(q || p) (Random Sampling KD, Anshumann et al., arXiv 2503.16870,
/// with the proposal q itself).
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Draws per row; 0 where only `said` is there, which scores read but no loss can.
    pub draws: u32,
    /// Where row i begins in `drawn` [N + 1].
    pub starts: Vec<usize>,
    /// What was drawn, row by row, ids ascending.
    pub drawn: Vec<DrawnId>,
    /// What is said of each row beside `[N]`.
    pub said: Vec<Said>,
}

/// An id that was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrawnId {
    /// The id.
    pub id: u32,
    /// How often.
    pub count: u32,
}

impl Sampled {
    /// From what was drawn of each row.
    pub(crate) fn of_rows(
        draws: u32,
        rows: impl IntoIterator<Item = Vec<DrawnId>>,
        said: Vec<Said>,
    ) -> Self {
        let (mut starts, mut drawn) = (vec![0], Vec::new());
        for row in rows {
            drawn.extend(row);
            starts.push(drawn.len());
        }
        Self { draws, starts, drawn, said }
    }

    /// What was drawn of row `i`, ids ascending.
    pub fn row(&self, i: usize) -> &[DrawnId] {
        &self.drawn[self.starts[i]..self.starts[i + 1]]
    }

    /// The same, of these rows only.
    fn select(&self, rows: &[u32]) -> Self {
        let drawn = rows.iter().map(|&r| self.row(r as usize).to_vec());
        Self::of_rows(self.draws, drawn, rows.iter().map(|&r| self.said[r as usize]).collect())
    }
}

/// Which signal, and how large.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SignalKind {
    /// [`Signal::Dense`].
    Dense,
    /// [`Signal::TopK`] of so many entries.
    TopK(usize),
    /// [`Signal::Sampled`] of so many draws.
    Sampled(u32),
    /// What is said beside a signal alone: a [`Signal::Sampled`] of no draws.
    Scores,
}

impl SignalKind {
    /// What a plan's word and numbers mean. Errs where they leave it to what is stored.
    pub fn of(plan: &ObjectivePlan) -> Result<Self> {
        match plan.signal {
            config::Signal::Dense => Ok(Self::Dense),
            config::Signal::TopK => Ok(Self::TopK(plan.top_k)),
            config::Signal::Sampled => Ok(Self::Sampled(plan.samples)),
            config::Signal::Stored => {
                Err(Error::internal("a stored signal was asked for, and none was opened"))
            }
        }
    }
}

impl Signal {
    /// What is said of rows, and no more.
    pub fn scores(said: Vec<Said>) -> Self {
        let none = vec![Vec::new(); said.len()];
        Self::Sampled(Sampled::of_rows(0, none, said))
    }

    /// Whether it is that.
    pub fn is_scores(&self) -> bool {
        matches!(self, Self::Sampled(sampled) if sampled.draws == 0)
    }

    /// Number of rows (N).
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense(logits) => logits.rows(),
            Self::TopK(top) => top.said.len(),
            Self::Sampled(sampled) => sampled.said.len(),
        }
    }

    /// What is said of a row beside the signal; nothing beside a dense one, which says it itself.
    pub fn said(&self, row: usize) -> Option<Said> {
        match self {
            Self::Dense(_) => None,
            Self::TopK(top) => Some(top.said[row]),
            Self::Sampled(sampled) => Some(sampled.said[row]),
        }
    }

    /// The signal of these rows, in this order.
    pub fn select(&self, rows: &[u32]) -> Result<Self> {
        Ok(match self {
            Self::Dense(logits) => Self::Dense(logits.select(rows)?),
            Self::TopK(top) => Self::TopK(top.select(rows)),
            Self::Sampled(sampled) => Self::Sampled(sampled.select(rows)),
        })
    }

    /// The ids that it names for a row, ascending; none of a dense one.
    #[cfg(test)]
    pub(crate) fn ids(&self, row: usize) -> Vec<u32> {
        match self {
            Self::Dense(_) => Vec::new(),
            Self::TopK(top) => top.ids[row * top.k..(row + 1) * top.k].to_vec(),
            Self::Sampled(sampled) => sampled.row(row).iter().map(|d| d.id).collect(),
        }
    }

    /// Whether it speaks of nothing outside a vocabulary of `vocab` entries.
    pub fn check_vocab(&self, vocab: usize) -> Result<()> {
        let largest = match self {
            Self::Dense(logits) => return check_vocab(logits, vocab),
            Self::TopK(top) => top.ids.iter().max(),
            Self::Sampled(sampled) => sampled.drawn.iter().map(|d| &d.id).max(),
        };
        match largest {
            Some(&id) if id as usize >= vocab => Err(Error::data(format!(
                "the teacher's signal names id {id}, but the student's vocabulary has {vocab} entries"
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_the_nearest_of_sixteen_bits() {
        let of = |x: f32| {
            let teacher =
                Stats { nll: x, entropy: 2.0 * x, entropy_tau: 4.0 * x, ..Stats::default() };
            Said::of(&RowStats { teacher, ..RowStats::default() })
        };
        for x in [0.0, 1e-4, 0.333, 2.0, 10.7, 500.1] {
            let said = of(x);
            assert!((said.nll - x).abs() <= x / 2048.0 + 3e-8, "{x}: {said:?}");
            // Powers of two change no rounding.
            assert_eq!((said.entropy, said.entropy_tau), (2.0 * said.nll, 4.0 * said.nll));
            assert_eq!(of(said.nll), said, "rounded once is rounded for good");
        }
        assert!(of(f32::NAN).nll.is_nan() && of(f32::INFINITY).nll == f32::INFINITY);
    }

    #[test]
    fn levels_are_squares_and_leave_a_rest() {
        for level in [1, 2, 3, 100, 1022, 1023] {
            assert_eq!(TopK::level(f64::from(TopK::logp_of(level)).exp()), level);
        }
        assert_eq!([0.0, 1e-12, 1.0, 1.0 + 1e-6].map(TopK::level), [1, 1, 1023, 1023]);
        for q in [0.9, 0.3, 0.01, 1e-5] {
            let found = f64::from(TopK::logp_of(TopK::level(q))).exp();
            // Half a level, twice its root.
            assert!((found - q).abs() <= q.sqrt() / 1023.0 + 1e-7, "{q}: {found}");
        }
        let half = [TopK::level(0.25), TopK::level(0.25)];
        let found = f64::from(TopK::rest_of(half.into_iter())).exp();
        assert!((found - 0.5).abs() < 1e-3, "{found}");
        // A teacher that is sure: the levels of its other ids alone are more than what is left.
        let sure = [TopK::level(1.0 - 1e-6), 1, 1, 1];
        let least = TopK::rest_of(sure.into_iter());
        assert_eq!(least, TopK::logp_of(1));
        assert_eq!(TopK::rest_of([1023].into_iter()), least);
        assert!(TopK::rest_of([1022].into_iter()) > least);
    }

    #[test]
    fn rows_are_selected_in_any_order() {
        let said: Vec<Said> = (0..3).map(|i| Said { nll: i as f32, ..Said::default() }).collect();
        let drawn = |id| DrawnId { id, count: id + 1 };
        let rows = [vec![drawn(1), drawn(4)], vec![], vec![drawn(2)]];
        let sampled = Signal::Sampled(Sampled::of_rows(7, rows.clone(), said.clone()));
        let top = Signal::TopK(TopK {
            k: 2,
            ids: vec![0, 1, 2, 3, 4, 5],
            logp: vec![-1.0, -2.0, -3.0, -4.0, -5.0, -6.0],
            rest: vec![-0.1, -0.2, -0.3],
            said,
        });
        for signal in [&sampled, &top] {
            let some = signal.select(&[2, 0, 2]).unwrap();
            assert_eq!((signal.rows(), some.rows()), (3, 3));
            for (i, from) in [2, 0, 2].into_iter().enumerate() {
                assert_eq!(some.ids(i), signal.ids(from));
                assert_eq!(some.said(i), signal.said(from));
            }
            assert_eq!(signal.select(&[]).unwrap().rows(), 0);
        }
        let Signal::Sampled(some) = sampled.select(&[1, 2]).unwrap() else { panic!() };
        assert_eq!((some.row(0), some.row(1), some.draws), (&rows[1][..], &rows[2][..], 7));
        let Signal::TopK(some) = top.select(&[1]).unwrap() else { panic!() };
        assert_eq!((some.logp, some.rest), (vec![-3.0, -4.0], vec![-0.2]));
    }
}
