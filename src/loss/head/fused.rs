//! Scan, decision and gradient in one pass over blocks of rows, for thresholds that are known
//! before the scores are, and where nothing is selected.
//!
//! A block's logits are formed once, for all of the vocabulary; statistics are read from them, the
//! caller weighs each row, and the gradients of the rows that stay are formed while the logits are
//! still in hand. Against [`super::scan`] and [`super::loss`] this saves the second product
//! (`recompute`) or the stored matrix (`keep`): nothing of size [N, V] exists.

use super::cpu::{self, Running, TILE, TaughtTile};
use super::cuda::{self, Pending};
use super::sparse::{self, SparseRow};
use super::{
    Logits, LossInput, Objective, RowStats, ScanOptions, check, loss, per_token, reference,
};
use crate::error::{Error, Result};
use crate::loss::Divergence;
use crate::loss::Signal;
use crate::loss::divergence::RowDivergence;
use crate::ops::Backend;
use crate::ops::buffer::{Read, ReadWeight, read, read_weight, with_mut};
use crate::ops::matmul::{Mat, MatMut, Precision, multiply};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Rows per block. Fixed, so that sums are formed in the same order on every machine; 256 rows of
/// GPT-2's vocabulary are 51 MB of logits, and as much again of the teacher's. Fewer would have
/// products pack the head for too little work.
pub(crate) const ROWS: usize = 256;

/// What weight each row has.
pub enum Weigh<'a> {
    /// One per row, known before its logits are.
    Known(&'a [f32]),
    /// From its number and its statistics; asked once for each row, in order, on the caller's
    /// thread. An error ends the pass, with some blocks' gradient already in place.
    Asking(&'a mut dyn FnMut(usize, &RowStats) -> Result<f32>),
}

impl Weigh<'_> {
    fn of(&mut self, row: usize, stats: &RowStats) -> Result<f32> {
        match self {
            Self::Known(weights) => Ok(weights[row]),
            Self::Asking(weigh) => weigh(row, stats),
        }
    }
}

/// What one pass did, and what it found.
#[derive(Debug)]
pub struct Fused {
    /// Statistics and loss, perhaps still on their way.
    pub found: Found,
    /// Rows that carry weight, ascending `[k]`.
    pub rows: Vec<u32>,
    /// Their weights `[k]`.
    pub weights: Vec<f32>,
    /// Gradient of the loss sum with respect to the kept rows' hidden vectors, [k, D].
    pub d_hidden: Tensor,
}

/// Statistics of all N rows, and the sum over rows of weight * per-token loss, in nats.
#[derive(Debug)]
pub enum Found {
    /// At hand.
    Here(Vec<RowStats>, f64),
    /// On a GPU that may still be working.
    Device(Pending),
}

impl Found {
    /// Both; waits for the device.
    pub fn read(self) -> Result<(Vec<RowStats>, f64)> {
        match self {
            Self::Here(stats, sum) => Ok((stats, sum)),
            Self::Device(pending) => pending.read(),
        }
    }
}

/// What a single pass reads.
#[derive(Debug, Clone, Copy)]
pub struct PassInput<'a> {
    /// The student's logits of N rows: formed, never stored; stored ones are not read.
    pub student: &'a Logits,
    /// What the teacher says of these rows: logits, which are formed likewise, or a sparse signal.
    pub signal: Option<&'a Signal>,
    /// `[N]`
    pub targets: &'a [u32],
    /// `tau` must be the objective's temperature wherever the divergence has weight.
    pub options: ScanOptions,
    /// The objective.
    pub objective: Objective,
}

impl PassInput<'_> {
    /// The teacher's logits, if the signal is dense.
    pub(super) fn dense(&self) -> Option<&Logits> {
        match self.signal {
            Some(Signal::Dense(t)) => Some(t),
            _ => None,
        }
    }

    /// The signal, if it is a sparse one.
    pub(super) fn sparse(&self) -> Option<&Signal> {
        self.signal.filter(|signal| !matches!(signal, Signal::Dense(_)))
    }

    fn check(&self) -> Result<()> {
        let Self { student, signal, targets, options, objective } = *self;
        check(student, self.dense(), targets)?;
        if objective.lambda != 0.0 && (signal.is_none() || options.tau != objective.temperature) {
            return Err(Error::internal(
                "a distillation term needs a teacher, read at the term's temperature",
            ));
        }
        let Some(signal) = self.sparse() else { return Ok(()) };
        if signal.rows() != student.rows() {
            return Err(Error::internal(format!(
                "expected a signal of the student's {} rows, found one of {}",
                student.rows(),
                signal.rows()
            )));
        }
        signal.check_vocab(student.vocab())?;
        sparse::check_options(signal, options)?;
        if objective.lambda == 0.0 { Ok(()) } else { sparse::check(signal, objective) }
    }
}

/// Statistics of all rows, and loss and gradients of those to which `weigh` gives a weight other
/// than 0; that of the head is added to `d_weight` [V, D]. The numbers are those of [`super::scan`]
/// (and [`super::hear`], of a sparse signal) and [`super::loss`] up to rounding.
pub fn fused(input: PassInput<'_>, mut weigh: Weigh<'_>, d_weight: &Tensor) -> Result<Fused> {
    input.check()?;
    // What the loss reads of a sparse signal is said of every row.
    let distils = input.objective.lambda != 0.0;
    let options = ScanOptions { sparse_kl: input.options.sparse_kl || distils, ..input.options };
    let input = PassInput { options, ..input };
    if matches!(weigh, Weigh::Known(weights) if weights.len() != input.targets.len()) {
        return Err(Error::internal("weights and rows of a head pass differ in number"));
    }
    match Backend::of(&input.student.hidden) {
        Backend::Cpu => Pass::new(input)?.run(&mut weigh, d_weight),
        Backend::Gpu => cuda::fused(input, &mut weigh, d_weight),
        Backend::Reference => by_reference(input, &mut weigh, d_weight),
    }
}

fn by_reference(input: PassInput<'_>, weigh: &mut Weigh<'_>, d_weight: &Tensor) -> Result<Fused> {
    let PassInput { student, signal, targets, options, objective } = input;
    let mut stats = reference::scan(student, input.dense(), targets, options)?;
    if let Some(sparse) = input.sparse() {
        reference::hear(student, sparse, &mut stats, options)?;
    }
    let (mut rows, mut weights) = (Vec::new(), Vec::new());
    for (row, s) in stats.iter().enumerate() {
        let weight = weigh.of(row, s)?;
        if weight != 0.0 {
            rows.push(row as u32);
            weights.push(weight);
        }
    }
    let picked: Vec<RowStats> = rows.iter().map(|&r| stats[r as usize]).collect();
    let targets: Vec<u32> = rows.iter().map(|&r| targets[r as usize]).collect();
    let signal = signal.filter(|_| objective.lambda != 0.0);
    let signal = signal.map(|signal| signal.select(&rows)).transpose()?;
    let student = student.select(&rows)?;
    let chosen = LossInput {
        student: &student,
        signal: signal.as_ref(),
        stats: &picked,
        targets: &targets,
        weights: &weights,
        objective,
    };
    let out = loss(chosen, d_weight)?;
    Ok(Fused { found: Found::Here(stats, out.sum), rows, weights, d_hidden: out.d_hidden })
}

struct Pass<'a> {
    student: Product<'a>,
    teacher: Option<Product<'a>>,
    sparse: Option<&'a Signal>,
    targets: &'a [u32],
    options: ScanOptions,
    objective: Objective,
}

/// Factors of logits, in memory.
pub(super) struct Product<'a> {
    hidden: Read<'a>,
    weight: ReadWeight<'a>,
    d: usize,
    vocab: usize,
    precision: Precision,
}

impl<'a> Product<'a> {
    pub(super) fn new(logits: &'a Logits) -> Result<Self> {
        let (hidden, weight) = (read(&logits.hidden)?, read_weight(&logits.weight)?);
        Ok(Self {
            hidden,
            weight,
            d: logits.hidden.dim(1)?,
            vocab: logits.vocab(),
            precision: logits.precision,
        })
    }

    /// The logits of `count` rows from `start` on, [count, V].
    fn form(&self, into: &mut [f32], start: usize, count: usize) {
        self.multiply(into, &self.hidden[start * self.d..(start + count) * self.d], count);
    }

    /// The same, in a product of at least so many rows, for which there is room: rows of nothing
    /// follow.
    pub(super) fn form_at_least(&self, into: &mut [f32], start: usize, count: usize, least: usize) {
        if count >= least {
            return self.form(&mut into[..count * self.vocab], start, count);
        }
        let mut hidden = self.hidden[start * self.d..(start + count) * self.d].to_vec();
        hidden.resize(least * self.d, 0.0);
        self.multiply(&mut into[..least * self.vocab], &hidden, least);
    }

    fn multiply(&self, into: &mut [f32], hidden: &[f32], count: usize) {
        let hidden = Mat::row_major(hidden, count, self.d);
        let weight = Mat::stored(self.weight.elements(), self.vocab, self.d, self.d, 1).t();
        multiply(
            MatMut::new(into, count, self.vocab, self.vocab),
            false,
            hidden,
            weight,
            self.precision,
        );
    }
}

/// A row of a block that carries weight.
struct Kept {
    /// Its place in the block, and in the batch.
    place: usize,
    row: usize,
    weight: f32,
}

impl<'a> Pass<'a> {
    fn new(input: PassInput<'a>) -> Result<Self> {
        let PassInput { student, signal, targets, options, objective } = input;
        let (teacher, sparse) = match signal {
            Some(Signal::Dense(t)) => (Some(Product::new(t)?), None),
            other => (None, other),
        };
        Ok(Self { student: Product::new(student)?, teacher, sparse, targets, options, objective })
    }

    fn run(&self, weigh: &mut Weigh<'_>, d_weight: &Tensor) -> Result<Fused> {
        let (n, v, d) = (self.targets.len(), self.student.vocab, self.student.d);
        let most = ROWS.min(n);
        // Logits of a block, then the gradients of its kept rows in their place. Gradients that
        // have not been multiplied yet come first: one of few rows still moves all of the head's.
        let mut z = vec![0.0; most * v];
        let mut t = vec![0.0; if self.teacher.is_some() { most * v } else { 0 }];
        let (mut stats, mut rows, mut weights, mut sum) =
            (Vec::with_capacity(n), Vec::new(), Vec::new(), 0.0);
        let mut d_hidden = Vec::new();
        let (mut start, mut pending) = (0, 0);
        while start < n {
            let count = (most - pending).min(n - start);
            let block = &mut z[pending * v..(pending + count) * v];
            self.student.form(block, start, count);
            let t = self.teacher.as_ref().map(|teacher| {
                teacher.form(&mut t, start, count);
                &t[..count * v]
            });
            let found = self.scan(block, t, start, count);
            let mut kept = Vec::new();
            for (place, s) in found.iter().enumerate() {
                let (row, weight) = (start + place, weigh.of(start + place, s)?);
                if weight != 0.0 {
                    kept.push(Kept { place, row, weight });
                }
            }
            // A teacher without weight in the loss costs nothing.
            let t = t.filter(|_| self.objective.lambda != 0.0);
            let sums = self.sums(block, t, &found, &kept);
            for (kept, sums) in kept.iter().zip(&sums) {
                rows.push(kept.row as u32);
                weights.push(kept.weight);
                sum += f64::from(kept.weight)
                    * per_token(&found[kept.place], sums.value(), self.objective);
            }
            for (to, kept) in kept.iter().enumerate().filter(|(to, kept)| *to != kept.place) {
                block.copy_within(kept.place * v..(kept.place + 1) * v, to * v);
            }
            self.gradient(&mut block[..kept.len() * v], t, &found, &kept, &sums);
            pending += kept.len();
            start += count;
            stats.extend(found);
            if pending > most / 2 || start == n {
                let of = &rows[rows.len() - pending..];
                self.multiply(&z[..pending * v], of, &mut d_hidden, d_weight)?;
                pending = 0;
            }
        }
        let d_hidden = Tensor::from_vec(d_hidden, (rows.len(), d), &Device::Cpu)?;
        Ok(Fused { found: Found::Here(stats, sum), rows, weights, d_hidden })
    }

    /// Turns gradients of the logits of `rows` into those of their hidden vectors, which are
    /// appended, and of the head.
    fn multiply(
        &self,
        dz: &[f32],
        rows: &[u32],
        d_hidden: &mut Vec<f32>,
        d_weight: &Tensor,
    ) -> Result<()> {
        let (k, v, d) = (rows.len(), self.student.vocab, self.student.d);
        if k == 0 {
            return Ok(());
        }
        let precision = self.student.precision;
        let done = d_hidden.len();
        d_hidden.resize(done + k * d, 0.0);
        let dz = Mat::row_major(dz, k, v);
        let into = MatMut::new(&mut d_hidden[done..], k, d, d);
        multiply(
            into,
            false,
            dz,
            Mat::stored(self.student.weight.elements(), v, d, d, 1),
            precision,
        );
        let hidden: Vec<f32> = rows
            .iter()
            .flat_map(|&r| &self.student.hidden[r as usize * d..][..d])
            .copied()
            .collect();
        with_mut(d_weight, |d_weight| {
            multiply(
                MatMut::new(d_weight, v, d, d),
                true,
                dz.t(),
                Mat::row_major(&hidden, k, d),
                precision,
            );
        })
    }

    /// Statistics of a block, tile by tile as [`super::scan`] forms them, and what is said of it.
    fn scan(&self, z: &[f32], t: Option<&[f32]>, start: usize, count: usize) -> Vec<RowStats> {
        let v = self.student.vocab;
        let one = |place: usize| {
            let mut running = Running::default();
            let (z, t) = (&z[place * v..][..v], t.map(|t| &t[place * v..][..v]));
            for tile in (0..v).step_by(TILE) {
                let range = tile..v.min(tile + TILE);
                let target = (self.targets[start + place] as usize).wrapping_sub(tile);
                running.add(&z[range.clone()], t.map(|t| &t[range.clone()]), target, self.options);
            }
            let mut stats = running.finish();
            if let Some(signal) = self.sparse {
                let logit = |id: u32| z[id as usize];
                sparse::hear_row(signal, start + place, &mut stats, self.options, logit);
            }
            stats
        };
        (0..count).into_par_iter().map(one).collect()
    }

    fn sums(
        &self,
        z: &[f32],
        t: Option<&[f32]>,
        block: &[RowStats],
        kept: &[Kept],
    ) -> Vec<RowSums> {
        let v = self.student.vocab;
        // A teacher without weight in the loss costs nothing.
        let signal = self.sparse.filter(|_| self.objective.lambda != 0.0);
        let one = |kept: &Kept| {
            let (s, z) = (&block[kept.place], &z[kept.place * v..][..v]);
            if let Some(signal) = signal {
                let logit = |id: u32| z[id as usize];
                let row = sparse::row_of(signal, kept.row, s, self.objective, logit);
                return RowSums::Sparse(row);
            }
            let Some(t) = t.filter(|_| self.objective.divergence != Divergence::ForwardKl) else {
                return RowSums::Dense(RowDivergence { value: f64::from(s.kl), gradient: 0.0 });
            };
            let t = &t[kept.place * v..][..v];
            let mut sums = RowDivergence::default();
            for (z, t) in z.chunks(TILE).zip(t.chunks(TILE)) {
                cpu::add_sums(&mut sums, z, t, s, self.objective);
            }
            RowSums::Dense(RowDivergence { value: cpu::not_negative(sums.value), ..sums })
        };
        kept.par_iter().map(one).collect()
    }

    /// Replaces the kept rows' logits `z` by their gradients.
    fn gradient(
        &self,
        z: &mut [f32],
        t: Option<&[f32]>,
        found: &[RowStats],
        kept: &[Kept],
        sums: &[RowSums],
    ) {
        let v = self.student.vocab;
        z.par_chunks_exact_mut(v).zip(kept).zip(sums).for_each_init(
            || vec![0.0; TILE.min(v)],
            |logits, ((row, kept), sums)| {
                let (stats, target) = (&found[kept.place], self.targets[kept.row] as usize);
                for (i, dz) in row.chunks_mut(TILE).enumerate() {
                    let (tile, z) = (i * TILE, &mut logits[..dz.len()]);
                    z.copy_from_slice(dz);
                    let said = match (sums, t) {
                        (RowSums::Sparse(row), _) => TaughtTile::Sparse(row, tile),
                        (RowSums::Dense(sums), Some(t)) => {
                            let t = &t[kept.place * v + tile..][..z.len()];
                            TaughtTile::Dense(t, sums.gradient)
                        }
                        (RowSums::Dense(_), None) => TaughtTile::Nothing,
                    };
                    cpu::row_gradient(
                        dz,
                        z,
                        said,
                        stats,
                        target.wrapping_sub(tile),
                        kept.weight,
                        self.objective,
                    );
                }
            },
        );
    }
}

/// What a kept row's loss and gradient need beyond its statistics.
enum RowSums {
    Dense(RowDivergence),
    Sparse(SparseRow),
}

impl RowSums {
    /// D.
    fn value(&self) -> f64 {
        match self {
            Self::Dense(sums) => sums.value,
            Self::Sparse(row) => row.value(),
        }
    }
}
