//! The tied head: logits in vocabulary tiles, their statistics, and the loss with its gradient.
//!
//! No probability matrix is ever held: a tile of logits yields partial statistics or a tile of
//! gradient and is dropped, or a block of rows yields both at once ([`fused`]), or the logits of a
//! micro-batch are stored by a first pass and read by a second ([`scan_and_store`]): these are
//! `head = recompute` and `head = keep` of `[machine]`, and the numbers are the same. Statistics
//! are relative to the row's maximum, so they hold for logits of any size and any temperature.
//!
//! | pass | reads | gives |
//! |---|---|---|
//! | [`scan`] | all rows | statistics |
//! | [`scan_and_store`] | all rows | statistics, and the same logits, stored |
//! | [`reduce`] | all rows of a teacher | a sparse signal |
//! | [`hear`] | all rows | what a sparse signal says, written into their statistics |
//! | [`loss`] | chosen rows | loss and gradients |
//! | [`fused`] | all rows | statistics, then loss and gradients of the rows that the caller weighs |

mod cpu;
mod cuda;
mod fused;
mod reduce;
#[doc(hidden)]
pub mod reference;
mod sparse;

pub use super::Objective;
pub(crate) use cpu::TILE;
pub(crate) use fused::ROWS as BLOCK_ROWS;
pub use fused::{Found, Fused, PassInput, Weigh, fused};
pub use reduce::{reduce, reduce_planes};

use crate::error::{Error, Result};
use crate::loss::Signal;
use crate::ops::Backend;
use crate::ops::embed::gather;
use crate::ops::matmul::Precision;
use candle_core::Tensor;
use std::sync::Arc;

/// Softmax statistics of one row of logits z. With tau the temperature, probabilities are
/// `exp(z - max - log_sum)` at temperature 1 and `exp((z - max) / tau - log_sum_tau)` at tau.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Largest logit.
    pub max: f32,
    /// ln sum exp(z - max).
    pub log_sum: f32,
    /// ln sum exp((z - max) / tau).
    pub log_sum_tau: f32,
    /// -ln p(target), in nats.
    pub nll: f32,
    /// Entropy of p in nats.
    pub entropy: f32,
    /// Entropy of p at temperature tau.
    pub entropy_tau: f32,
}

/// Statistics of a student row and, where a teacher was scanned with it, of the teacher's row and
/// between the two.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RowStats {
    /// Of the student's logits.
    pub student: Stats,
    /// Of the teacher's logits; zeros without a teacher, and all but cross-entropy and entropies
    /// where a sparse signal says these.
    pub teacher: Stats,
    /// KL(q || p) at temperature tau, in nats: q the teacher's, p the student's distribution. 0
    /// without a teacher. Of a sparse signal: that between a top-k signal's buckets, or a sample's
    /// unbiased estimate, which may lie below 0.
    pub kl: f32,
    /// KL(p || q) at temperature tau, in nats; 0 unless [`ScanOptions::reverse_kl`] asked for it.
    pub reverse_kl: f32,
}

/// What a scan measures beyond the student's own statistics. A bare temperature converts into it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScanOptions {
    /// Temperature tau > 0 of the divergences and of `log_sum_tau`.
    pub tau: f32,
    /// Whether KL(p || q) is formed beside KL(q || p): one more exponential per entry.
    pub reverse_kl: bool,
    /// Whether KL(q || p) is formed of a sparse signal, too, though no loss may read it. Beside a
    /// dense one it always is.
    pub sparse_kl: bool,
}

impl From<f32> for ScanOptions {
    fn from(tau: f32) -> Self {
        Self { tau, reverse_kl: false, sparse_kl: false }
    }
}

/// Logits of N rows, `hidden · weightᵀ`, formed in tiles over the vocabulary.
#[derive(Debug, Clone)]
pub struct Logits {
    hidden: Tensor,
    weight: Tensor,
    precision: Precision,
    stored: Option<Stored>,
    /// Where row i lies in `stored`, after a selection.
    index: Option<Vec<u32>>,
}

/// Stored logits, where the kernels that read them are.
#[derive(Debug, Clone)]
enum Stored {
    /// Tiles of [`TILE`] columns, the last one narrower, each row by row.
    Host(Arc<Vec<Vec<f32>>>),
    /// [N, V] and some columns of padding.
    Device(Tensor),
}

impl Logits {
    /// For `hidden` [N, D] (after the final norm) and `weight` [V, D] (the tied embedding). Every
    /// pass forms them, unless [`scan_and_store`] has stored them.
    pub fn new(hidden: Tensor, weight: Tensor) -> Self {
        Self { hidden, weight, precision: Precision::F32, stored: None, index: None }
    }

    /// The same logits, whose products and those of their gradients treat factors as given.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Number of rows (N).
    pub fn rows(&self) -> usize {
        self.hidden.dims()[0]
    }

    /// Vocabulary (V).
    pub fn vocab(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Whether they are stored: a pass costs no product.
    pub fn is_stored(&self) -> bool {
        self.stored.is_some()
    }

    fn with_stored(self, stored: Option<Stored>) -> Self {
        match stored {
            None => self,
            stored => Self { stored, index: None, ..self },
        }
    }

    /// The rows' inputs to the head, [N, D].
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// The same logits, of the given rows only.
    pub fn select(&self, rows: &[u32]) -> Result<Self> {
        let index = match &self.index {
            Some(index) => rows.iter().map(|&r| index[r as usize]).collect(),
            None => rows.to_vec(),
        };
        Ok(Self {
            hidden: gather(&self.hidden, rows)?,
            weight: self.weight.clone(),
            precision: self.precision,
            stored: self.stored.clone(),
            index: self.stored.is_some().then_some(index),
        })
    }
}

/// One pass over the vocabulary: statistics of every row, for `targets` `[N]`, at a temperature or
/// as `options` say.
pub fn scan(
    student: &Logits,
    teacher: Option<&Logits>,
    targets: &[u32],
    options: impl Into<ScanOptions>,
) -> Result<Vec<RowStats>> {
    Ok(passed(student, teacher, targets, options.into(), false)?.stats)
}

/// What [`scan_and_store`] gives.
#[derive(Debug)]
pub struct Scanned {
    /// Statistics of every row.
    pub stats: Vec<RowStats>,
    /// The student's logits: N V floats, which later passes read.
    pub student: Logits,
    /// The teacher's, likewise.
    pub teacher: Option<Logits>,
}

/// [`scan`], whose logits are stored as they are formed.
pub fn scan_and_store(
    student: Logits,
    teacher: Option<Logits>,
    targets: &[u32],
    options: impl Into<ScanOptions>,
) -> Result<Scanned> {
    let done = passed(&student, teacher.as_ref(), targets, options.into(), true)?;
    Ok(Scanned {
        stats: done.stats,
        student: student.with_stored(done.student),
        teacher: teacher.map(|t| t.with_stored(done.teacher)),
    })
}

/// Statistics, and what was stored on the way.
struct Passed {
    stats: Vec<RowStats>,
    student: Option<Stored>,
    teacher: Option<Stored>,
}

fn passed(
    student: &Logits,
    teacher: Option<&Logits>,
    targets: &[u32],
    options: ScanOptions,
    store: bool,
) -> Result<Passed> {
    check(student, teacher, targets)?;
    match Backend::of(&student.hidden) {
        Backend::Cpu => cpu::scan(student, teacher, targets, options, store),
        Backend::Gpu => cuda::scan(student, teacher, targets, options, store),
        // Whole matrices are formed anyway; storing them would save nothing.
        Backend::Reference => {
            let stats = reference::scan(student, teacher, targets, options)?;
            Ok(Passed { stats, student: None, teacher: None })
        }
    }
}

/// Writes what a sparse `signal` says of every row into the statistics that a scan of the student
/// at `options.tau` gave, so that scores read them: the teacher's cross-entropy and entropies and,
/// if `options` ask for them, the divergences. Of logits that are not stored a GPU forms the
/// product again for these; the CPU multiplies a few rows of the head.
///
/// Errs where numbers of rows differ, an id lies outside the vocabulary, or the signal cannot say
/// what is asked for: a sample knows no reverse KL, scores alone no divergence.
pub fn hear(
    student: &Logits,
    signal: &Signal,
    stats: &mut [RowStats],
    options: impl Into<ScanOptions>,
) -> Result<()> {
    let options = options.into();
    if matches!(signal, Signal::Dense(_)) {
        return Err(Error::internal("expected a sparse signal, found a dense one: scan with it"));
    }
    if signal.rows() != student.rows() || stats.len() != student.rows() {
        return Err(Error::internal(format!(
            "expected a signal and statistics of the student's {} rows, found {} and {}",
            student.rows(),
            signal.rows(),
            stats.len()
        )));
    }
    signal.check_vocab(student.vocab())?;
    sparse::check_options(signal, options)?;
    match Backend::of(&student.hidden) {
        Backend::Cpu => sparse::hear(student, signal, stats, options),
        Backend::Gpu => cuda::hear(student, signal, stats, options),
        Backend::Reference => reference::hear(student, signal, stats, options),
    }
}

/// The chosen rows of a loss, N of them.
#[derive(Debug, Clone, Copy)]
pub struct LossInput<'a> {
    /// Their logits.
    pub student: &'a Logits,
    /// What the teacher says of them.
    pub signal: Option<&'a Signal>,
    /// Statistics of a scan, row by row, with the same teacher if its signal is dense.
    pub stats: &'a [RowStats],
    /// `[N]`
    pub targets: &'a [u32],
    /// Multiplies each row's loss `[N]`.
    pub weights: &'a [f32],
    /// The objective.
    pub objective: Objective,
}

/// Loss sum and gradients over the given rows.
#[derive(Debug)]
pub struct LossGradient {
    /// sum over rows of weight * per-token loss, in nats.
    pub sum: f64,
    /// Gradient of `sum` with respect to the rows' hidden vectors, [N, D].
    pub d_hidden: Tensor,
}

/// Loss sum over all rows of the input (select first), and its gradients: with respect to the
/// hidden vectors in the result, with respect to the head added to `d_weight` [V, D].
pub fn loss(input: LossInput<'_>, d_weight: &Tensor) -> Result<LossGradient> {
    let LossInput { student, signal, stats, targets, weights, objective } = input;
    check(student, None, targets)?;
    if let Some(signal) = signal {
        signal.check_vocab(student.vocab())?;
    }
    if signal.is_some_and(|t| t.rows() != student.rows()) {
        return Err(Error::internal(
            "rows of the student and of the teacher's signal differ in number",
        ));
    }
    if stats.len() != student.rows() || weights.len() != student.rows() {
        return Err(Error::internal(
            "statistics, weights and rows of the head loss differ in number",
        ));
    }
    if objective.lambda != 0.0 && signal.is_none() {
        return Err(Error::internal("a distillation term needs a teacher"));
    }
    let backend = Backend::of(&student.hidden);
    if backend == Backend::Reference {
        return reference::loss(student, signal, targets, weights, objective, d_weight);
    }
    // A teacher without weight in the loss costs nothing.
    let input = LossInput { signal: signal.filter(|_| objective.lambda != 0.0), ..input };
    if backend == Backend::Gpu {
        if let Some(signal) = input.signal {
            sparse::check(signal, objective)?;
        }
        return cuda::loss(input, d_weight);
    }
    let taught = cpu::Taught::new(student, input.signal, stats, objective)?;
    let rows = stats.iter().zip(weights).enumerate();
    let sum =
        rows.map(|(i, (s, w))| f64::from(*w) * per_token(s, taught.value(i, s), objective)).sum();
    Ok(LossGradient { sum, d_hidden: cpu::gradient(input, &taught, d_weight)? })
}

/// What [`loss`] sums up where the divergence is forward KL on a dense signal, from the statistics
/// of a scan alone.
pub fn loss_of(stats: &[RowStats], weights: &[f32], objective: Objective) -> f64 {
    stats
        .iter()
        .zip(weights)
        .map(|(s, w)| f64::from(*w) * per_token(s, f64::from(s.kl), objective))
        .sum()
}

/// A bound on the norm of the gradient of a row's loss with respect to its logits, up to a factor
/// of sqrt(2) for all rows, where the divergence is forward KL on a dense signal: that of
/// cross-entropy is `|p - onehot| <= sqrt(2) (1 - p_target)` (and at least `1 - p_target`), that of
/// the divergence at temperature tau is `tau |p - q| <= tau sqrt(2 KL)` (Pinsker).
pub fn gradient_bound(stats: &RowStats, objective: Objective) -> f64 {
    let (tau, lambda) = (f64::from(objective.temperature), f64::from(objective.lambda));
    let missing = -f64::from(-stats.student.nll).exp_m1();
    (1.0 - lambda) * missing.max(0.0) + lambda * tau * f64::from(stats.kl.max(0.0)).sqrt()
}

/// The loss of a row whose divergence is `divergence`.
fn per_token(stats: &RowStats, divergence: f64, objective: Objective) -> f64 {
    let (tau, lambda) = (f64::from(objective.temperature), f64::from(objective.lambda));
    (1.0 - lambda) * f64::from(stats.student.nll) + lambda * tau * tau * divergence
}

fn check(student: &Logits, teacher: Option<&Logits>, targets: &[u32]) -> Result<()> {
    if targets.len() != student.rows() || teacher.is_some_and(|t| t.rows() != student.rows()) {
        return Err(Error::internal("targets, student rows and teacher rows differ in number"));
    }
    if let Some(teacher) = teacher {
        check_vocab(teacher, student.vocab())?;
    }
    match targets.iter().find(|&&t| t as usize >= student.vocab()) {
        Some(bad) => Err(Error::data(format!(
            "target id {bad} lies outside the vocabulary of {}",
            student.vocab()
        ))),
        None => Ok(()),
    }
}

/// Whether logits are over a vocabulary of `vocab` entries.
pub(crate) fn check_vocab(teacher: &Logits, vocab: usize) -> Result<()> {
    if teacher.vocab() == vocab {
        return Ok(());
    }
    Err(Error::data(format!(
        "teacher and student must share one vocabulary, found {} and {vocab} entries",
        teacher.vocab()
    )))
}

#[cfg(test)]
mod tests;
