//! What a teacher says about the rows of a loss: everything, its most likely entries, or a sample.
//!
//! The two sparse signals stand for teachers whose full output is too large to store or to send;
//! with a live teacher they are formed from its dense logits, so that such a student can be
//! studied.

use super::head::{Logits, RowStats, check_vocab, sample, top_k};
use crate::config::{self, ObjectivePlan};
use crate::error::{Error, Result};
use crate::rng::{Rng, Stream};

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

/// The k largest probabilities of each row, and one bucket for everything else.
#[derive(Debug, Clone, PartialEq)]
pub struct TopK {
    /// Entries per row, at most the vocabulary.
    pub k: usize,
    /// Ascending ids of each row [N, k].
    pub ids: Vec<u32>,
    /// ln q of these ids [N, k].
    pub logp: Vec<f32>,
    /// ln of the mass outside `[N]`; negative infinity where the ids are the whole vocabulary.
    pub rest: Vec<f32>,
}

/// Independent draws from q: `count / draws` estimates q without bias, and so the gradient of
/// cross-entropy to q and of KL(q || p) (Random Sampling KD, Anshumann et al., arXiv 2503.16870,
/// with the proposal q itself).
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Draws per row.
    pub draws: u32,
    /// What was drawn, row by row, ids ascending.
    pub rows: Vec<Vec<DrawnId>>,
}

/// An id that was drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrawnId {
    /// The id.
    pub id: u32,
    /// How often.
    pub count: u32,
    /// ln q of it.
    pub logp: f32,
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
}

impl SignalKind {
    /// What a plan's word and numbers mean.
    pub fn of(plan: &ObjectivePlan) -> Self {
        match plan.signal {
            config::Signal::Dense => Self::Dense,
            config::Signal::TopK => Self::TopK(plan.top_k),
            config::Signal::Sampled => Self::Sampled(plan.samples),
        }
    }

    /// The signal of this kind in `logits`, whose scan at temperature `tau` gave `stats`, row by
    /// row. `tokens` numbers each row's token within the run of that `seed`: draws then depend
    /// neither on the micro-batch nor on what else is kept.
    pub fn reduce(
        self,
        logits: Logits,
        stats: &[RowStats],
        tau: f32,
        seed: u64,
        tokens: &[u64],
    ) -> Result<Signal> {
        match self {
            Self::Dense => Ok(Signal::Dense(logits)),
            Self::TopK(k) => Ok(Signal::TopK(top_k(&logits, stats, tau, k)?)),
            Self::Sampled(draws) => Ok(Signal::Sampled(sample(
                &logits,
                stats,
                tau,
                draws,
                Rng::new(seed, Stream::Teacher),
                tokens,
            )?)),
        }
    }
}

impl Signal {
    /// Number of rows (N).
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense(logits) => logits.rows(),
            Self::TopK(top) => top.rest.len(),
            Self::Sampled(sampled) => sampled.rows.len(),
        }
    }

    /// The ids that it names for a row, ascending; none of a dense one.
    pub(crate) fn ids(&self, row: usize) -> Vec<u32> {
        match self {
            Self::Dense(_) => Vec::new(),
            Self::TopK(top) => top.ids[row * top.k..(row + 1) * top.k].to_vec(),
            Self::Sampled(sampled) => sampled.rows[row].iter().map(|d| d.id).collect(),
        }
    }

    /// Whether it speaks of nothing outside a vocabulary of `vocab` entries.
    pub fn check_vocab(&self, vocab: usize) -> Result<()> {
        let largest = match self {
            Self::Dense(logits) => return check_vocab(logits, vocab),
            Self::TopK(top) => top.ids.iter().max(),
            Self::Sampled(sampled) => sampled.rows.iter().flatten().map(|d| &d.id).max(),
        };
        match largest {
            Some(&id) if id as usize >= vocab => Err(Error::data(format!(
                "the teacher's signal names id {id}, but the student's vocabulary has {vocab} entries"
            ))),
            _ => Ok(()),
        }
    }
}
