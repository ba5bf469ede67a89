//! Head statistics and gradients on f32: a product per tile, then rows in parallel.

use super::sparse::{self, SparseRow};
use super::{Logits, LossInput, Objective, Passed, RowStats, ScanOptions, Stats, Stored};
use crate::error::Result;
use crate::loss::Divergence;
use crate::loss::Signal;
use crate::loss::divergence::{Normal, RowDivergence};
use crate::ops::buffer::{Read, ReadWeight, read, read_weight, with_mut};
use crate::ops::matmul::{Mat, MatMut, Precision, multiply, product};
use crate::ops::simd::{LANES, exp, multiversion, sum_lanes};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// Columns per tile. Fixed, so that `keep` and `recompute` add up in the same order.
pub(crate) const TILE: usize = 4096;

pub(super) fn scan(
    student: &Logits,
    teacher: Option<&Logits>,
    targets: &[u32],
    options: ScanOptions,
    store: bool,
) -> Result<Passed> {
    let mut rows = vec![Running::default(); student.rows()];
    let mut student_tiles = Tiles::new(student, store)?;
    let mut teacher_tiles = teacher.map(|t| Tiles::new(t, store)).transpose()?;
    for start in (0..student.vocab()).step_by(TILE) {
        let z = student_tiles.tile(start);
        let t = teacher_tiles.as_mut().map(|t| t.tile(start));
        rows.par_iter_mut().enumerate().for_each(|(i, row)| {
            let target = (targets[i] as usize).wrapping_sub(start);
            row.add(z.row(i), t.as_ref().map(|t| t.row(i)), target, options);
        });
    }
    let stats = rows.iter().map(Running::finish).collect();
    Ok(Passed {
        stats,
        student: student_tiles.finish(),
        teacher: teacher_tiles.and_then(Tiles::finish),
    })
}

/// What the teacher says of the rows of a loss.
pub(super) enum Taught<'a> {
    Nothing,
    /// Logits, and each row's sums; forward KL needs none, the scan knows it.
    Dense(&'a Logits, Option<Vec<RowDivergence>>),
    Sparse(Vec<SparseRow>),
}

impl<'a> Taught<'a> {
    pub(super) fn new(
        student: &Logits,
        teacher: Option<&'a Signal>,
        stats: &[RowStats],
        objective: Objective,
    ) -> Result<Self> {
        match teacher {
            None => Ok(Self::Nothing),
            Some(Signal::Dense(t)) if objective.divergence == Divergence::ForwardKl => {
                Ok(Self::Dense(t, None))
            }
            Some(Signal::Dense(t)) => {
                Ok(Self::Dense(t, Some(divergences(student, t, stats, objective)?)))
            }
            Some(signal) => Ok(Self::Sparse(sparse::rows(student, signal, stats, objective)?)),
        }
    }

    /// The divergence of row i, whose statistics are `s`.
    pub(super) fn value(&self, i: usize, s: &RowStats) -> f64 {
        match self {
            Self::Nothing => 0.0,
            Self::Dense(_, sums) => sums.as_ref().map_or(f64::from(s.kl), |sums| sums[i].value),
            Self::Sparse(rows) => rows[i].value(),
        }
    }
}

/// Divergence and gradient sum of every row. They need the rows' normalisers, so they take a pass
/// of their own.
fn divergences(
    student: &Logits,
    teacher: &Logits,
    stats: &[RowStats],
    objective: Objective,
) -> Result<Vec<RowDivergence>> {
    let mut sums = vec![RowDivergence::default(); stats.len()];
    let (mut z_tiles, mut t_tiles) = (Tiles::new(student, false)?, Tiles::new(teacher, false)?);
    for start in (0..student.vocab()).step_by(TILE) {
        let (z, t) = (z_tiles.tile(start), t_tiles.tile(start));
        sums.par_iter_mut().zip(stats).enumerate().for_each(|(i, (sums, s))| {
            add_sums(sums, z.row(i), t.row(i), s, objective);
        });
    }
    sums.iter_mut().for_each(|s| s.value = not_negative(s.value));
    Ok(sums)
}

/// Adds a tile of a row to its sums.
pub(super) fn add_sums(
    sums: &mut RowDivergence,
    z: &[f32],
    t: &[f32],
    s: &RowStats,
    objective: Objective,
) {
    let (value, gradient) = objective.divergence.sums(z, t, &normal(s, objective));
    sums.value += f64::from(value);
    sums.gradient += f64::from(gradient);
}

fn normal(s: &RowStats, objective: Objective) -> Normal {
    let of = |s: &Stats| (s.max, s.log_sum_tau);
    Normal {
        student: of(&s.student),
        teacher: of(&s.teacher),
        inverse_tau: 1.0 / objective.temperature,
    }
}

/// What the teacher says of a tile of a row.
pub(super) enum TaughtTile<'a> {
    Nothing,
    /// Logits and G, the row's gradient sum (unused by forward KL).
    Dense(&'a [f32], f64),
    /// The row, and where the tile begins.
    Sparse(&'a SparseRow, usize),
}

/// The gradient of `weight` times a row's loss with respect to a tile of its logits. `target` is
/// relative to the tile and may lie outside.
pub(super) fn row_gradient(
    dz: &mut [f32],
    z: &[f32],
    taught: TaughtTile<'_>,
    s: &RowStats,
    target: usize,
    weight: f32,
    objective: Objective,
) {
    let (ce, scale) =
        (weight * (1.0 - objective.lambda), weight * objective.lambda * objective.temperature);
    if let (TaughtTile::Dense(t, _), Divergence::ForwardKl) = (&taught, objective.divergence) {
        mixed_gradient(dz, z, t, s, weight, objective.lambda, objective.temperature);
    } else if let TaughtTile::Sparse(row, start) = taught {
        row.write(dz, z, start, s, objective, (ce, scale));
    } else {
        ce_gradient(dz, z, s.student.max, s.student.log_sum, ce);
        if let TaughtTile::Dense(t, total) = taught {
            let normal = normal(s, objective);
            objective.divergence.add_gradient(dz, z, t, &normal, total as f32, scale);
        }
    }
    if let Some(at_target) = dz.get_mut(target) {
        *at_target -= ce;
    }
}

pub(super) fn gradient(
    input: LossInput<'_>,
    taught: &Taught<'_>,
    d_weight: &Tensor,
) -> Result<Tensor> {
    let LossInput { student, stats, targets, weights, objective, .. } = input;
    let (k, d) = student.hidden.dims2()?;
    let mut d_hidden = vec![0.0; k * d];
    let (hidden, weight) = (read(&student.hidden)?, read(&student.weight)?);
    let (hidden, weight): (&[f32], &[f32]) = (&hidden, &weight);
    let mut z_tiles = Tiles::new(student, false)?;
    let mut t_tiles = match taught {
        Taught::Dense(t, _) => Some(Tiles::new(t, false)?),
        Taught::Nothing | Taught::Sparse(_) => None,
    };
    with_mut(d_weight, |d_weight| {
        let mut dz = vec![0.0; k * TILE.min(student.vocab())];
        for start in (0..student.vocab()).step_by(TILE) {
            let width = TILE.min(student.vocab() - start);
            let dz = &mut dz[..k * width];
            let z = z_tiles.tile(start);
            let t = t_tiles.as_mut().map(|t| t.tile(start));
            dz.par_chunks_exact_mut(width).enumerate().for_each(|(i, dz)| {
                let said = match (taught, &t) {
                    (Taught::Dense(_, sums), Some(t)) => TaughtTile::Dense(
                        t.row(i),
                        sums.as_ref().map_or(0.0, |sums| sums[i].gradient),
                    ),
                    (Taught::Sparse(rows), _) => TaughtTile::Sparse(&rows[i], start),
                    _ => TaughtTile::Nothing,
                };
                let target = (targets[i] as usize).wrapping_sub(start);
                row_gradient(dz, z.row(i), said, &stats[i], target, weights[i], objective);
            });
            let dz = Mat::row_major(dz, k, width);
            let w_tile = Mat::row_major(&weight[start * d..(start + width) * d], width, d);
            multiply(MatMut::new(&mut d_hidden, k, d, d), true, dz, w_tile, student.precision);
            let dw_tile = MatMut::new(&mut d_weight[start * d..(start + width) * d], width, d, d);
            multiply(dw_tile, true, dz.t(), Mat::row_major(hidden, k, d), student.precision);
        }
    })?;
    Ok(Tensor::from_vec(d_hidden, (k, d), &Device::Cpu)?)
}

/// Walks the tiles of one set of logits: formed into a scratch, formed into the store, or read from
/// it.
pub(super) struct Tiles<'a> {
    hidden: Read<'a>,
    weight: ReadWeight<'a>,
    rows: usize,
    d: usize,
    vocab: usize,
    index: Option<&'a [u32]>,
    precision: Precision,
    place: Place,
}

/// Where tiles are formed, or lie.
enum Place {
    Scratch(Vec<f32>),
    /// The tiles so far, each in memory of its own: a matrix of all would be too large for an
    /// allocator to hold on to.
    Filling(Vec<Vec<f32>>),
    Stored(Arc<Vec<Vec<f32>>>),
}

/// One tile: row i starts at `place(i) * width`.
pub(super) struct Tile<'a> {
    data: &'a [f32],
    index: Option<&'a [u32]>,
    width: usize,
}

impl Tile<'_> {
    pub(super) fn row(&self, i: usize) -> &[f32] {
        let place = self.index.map_or(i, |index| index[i] as usize);
        &self.data[place * self.width..][..self.width]
    }
}

impl<'a> Tiles<'a> {
    /// With `fill`, logits that are not stored yet will be.
    pub(super) fn new(logits: &'a Logits, fill: bool) -> Result<Self> {
        let (rows, d) = logits.hidden.dims2()?;
        let vocab = logits.vocab();
        let place = match &logits.stored {
            Some(Stored::Host(tiles)) => Place::Stored(Arc::clone(tiles)),
            _ if fill => Place::Filling(Vec::with_capacity(vocab.div_ceil(TILE))),
            _ => Place::Scratch(vec![0.0; rows * TILE.min(vocab)]),
        };
        let (hidden, weight) = (read(&logits.hidden)?, read_weight(&logits.weight)?);
        let (index, precision) = (logits.index.as_deref(), logits.precision);
        Ok(Self { hidden, weight, rows, d, vocab, index, precision, place })
    }

    pub(super) fn tile(&mut self, start: usize) -> Tile<'_> {
        let (rows, d, vocab) = (self.rows, self.d, self.vocab);
        let width = TILE.min(vocab - start);
        let a = Mat::row_major(&self.hidden, rows, d);
        let weight = self.weight.elements().slice(start * d..(start + width) * d);
        let b = Mat::stored(weight, width, d, d, 1).t();
        match &mut self.place {
            Place::Stored(tiles) => Tile { data: &tiles[start / TILE], index: self.index, width },
            Place::Filling(tiles) => {
                tiles.push(product(a, b, self.precision));
                Tile { data: &tiles[start / TILE], index: None, width }
            }
            Place::Scratch(data) => {
                multiply(MatMut::new(data, rows, width, width), false, a, b, self.precision);
                Tile { data, index: None, width }
            }
        }
    }

    /// The filled store, if this walk was to keep the logits.
    fn finish(self) -> Option<Stored> {
        match self.place {
            Place::Filling(tiles) => Some(Stored::Host(Arc::new(tiles))),
            _ => None,
        }
    }
}

/// Statistics of the tiles seen so far, relative to the largest logit seen so far.
#[derive(Clone, Copy)]
struct Sums {
    max: f32,
    target: f32,
    /// sum exp(z - max)
    sum: f64,
    /// sum (z - max) exp(z - max)
    weighted: f64,
    /// sum exp((z - max) / tau)
    sum_tau: f64,
    /// sum (z - max) / tau exp((z - max) / tau)
    weighted_tau: f64,
}

impl Default for Sums {
    fn default() -> Self {
        Self {
            max: f32::NEG_INFINITY,
            target: 0.0,
            sum: 0.0,
            weighted: 0.0,
            sum_tau: 0.0,
            weighted_tau: 0.0,
        }
    }
}

#[derive(Clone, Copy, Default)]
pub(super) struct Running {
    z: Sums,
    t: Sums,
    /// sum exp(a) (a - c) with a = (t - max_t) / tau, c = (z - max_z) / tau
    cross: f64,
    /// The same with the two exchanged, if it was asked for: sum exp(c) (c - a)
    reverse: Option<f64>,
    pair: bool,
    tau: f64,
}

impl Sums {
    /// Moves to a larger maximum and returns by how much the old one lay below it (0 for the first
    /// tile).
    fn rebase(&mut self, max: f32, tau: f64) -> f64 {
        if self.sum == 0.0 || max <= self.max {
            if self.sum == 0.0 {
                self.max = max;
            }
            return 0.0;
        }
        let below = f64::from(self.max) - f64::from(max);
        let factor = below.exp();
        self.weighted = (self.weighted + below * self.sum) * factor;
        self.sum *= factor;
        let factor = (below / tau).exp();
        self.weighted_tau = (self.weighted_tau + below / tau * self.sum_tau) * factor;
        self.sum_tau *= factor;
        self.max = max;
        below
    }

    fn add(&mut self, z: &[f32], tau: f32) -> f64 {
        let below = self.rebase(row_max(z), f64::from(tau));
        let (sum, weighted) = sums(z, self.max);
        self.sum += f64::from(sum);
        self.weighted += f64::from(weighted);
        let (sum_tau, weighted_tau) =
            if tau == 1.0 { (sum, weighted) } else { sums_at(z, self.max, 1.0 / tau) };
        self.sum_tau += f64::from(sum_tau);
        self.weighted_tau += f64::from(weighted_tau);
        below
    }

    fn finish(&self) -> Stats {
        let log_sum = self.sum.ln();
        Stats {
            max: self.max,
            log_sum: log_sum as f32,
            log_sum_tau: self.sum_tau.ln() as f32,
            nll: (log_sum + f64::from(self.max) - f64::from(self.target)) as f32,
            entropy: (log_sum - self.weighted / self.sum) as f32,
            entropy_tau: (self.sum_tau.ln() - self.weighted_tau / self.sum_tau) as f32,
        }
    }
}

impl Running {
    /// Adds a tile; `target` is relative to it and may lie outside.
    pub(super) fn add(
        &mut self,
        z: &[f32],
        t: Option<&[f32]>,
        target: usize,
        options: ScanOptions,
    ) {
        if let Some(logit) = z.get(target) {
            self.z.target = *logit;
        }
        let Some(t) = t else {
            self.z.add(z, options.tau);
            return;
        };
        if let Some(logit) = t.get(target) {
            self.t.target = *logit;
        }
        self.add_pair(z, t, options);
    }

    fn add_pair(&mut self, z: &[f32], t: &[f32], options: ScanOptions) {
        let tau = options.tau;
        let (old_z, old_t) = (self.z, self.t);
        let below_z = self.z.add(z, tau);
        let below_t = self.t.add(t, tau);
        let (tau64, inverse) = (f64::from(tau), 1.0 / tau);
        if old_t.sum_tau > 0.0 {
            self.cross = (self.cross + old_t.sum_tau * (below_t - below_z) / tau64)
                * (below_t / tau64).exp();
        }
        self.cross += f64::from(cross(t, z, self.t.max, self.z.max, inverse));
        if options.reverse_kl {
            let mut reverse = self.reverse.unwrap_or(0.0);
            if old_z.sum_tau > 0.0 {
                reverse = (reverse + old_z.sum_tau * (below_z - below_t) / tau64)
                    * (below_z / tau64).exp();
            }
            self.reverse = Some(reverse + f64::from(cross(z, t, self.z.max, self.t.max, inverse)));
        }
        self.pair = true;
        self.tau = tau64;
    }

    pub(super) fn finish(&self) -> RowStats {
        let student = self.z.finish();
        if !self.pair {
            return RowStats { student, ..RowStats::default() };
        }
        let between = self.z.sum_tau.ln() - self.t.sum_tau.ln();
        let kl = not_negative(self.cross / self.t.sum_tau + between) as f32;
        let reverse_kl =
            self.reverse.map_or(0.0, |r| not_negative(r / self.z.sum_tau - between)) as f32;
        RowStats { student, teacher: self.t.finish(), kl, reverse_kl }
    }
}

/// Rounding can leave a divergence of equal distributions just below zero; a NaN must stay one.
pub(super) fn not_negative(divergence: f64) -> f64 {
    if divergence < 0.0 { 0.0 } else { divergence }
}

multiversion! {
    fn row_max(z: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let chunks = z.chunks_exact(LANES);
        let tail = chunks.remainder();
        for chunk in chunks {
            for (lane, v) in lanes.iter_mut().zip(chunk) {
                *lane = if *v > *lane { *v } else { *lane };
            }
        }
        for v in tail {
            lanes[0] = if *v > lanes[0] { *v } else { lanes[0] };
        }
        lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
    }

    fn sums(z: &[f32], max: f32) -> (f32, f32) {
        let (mut sum, mut weighted) = ([0.0f32; LANES], [0.0f32; LANES]);
        let chunks = z.chunks_exact(LANES);
        let tail = chunks.remainder();
        for chunk in chunks {
            for l in 0..LANES {
                let shifted = chunk[l] - max;
                let e = exp(shifted);
                sum[l] += e;
                weighted[l] += shifted * e;
            }
        }
        for (l, v) in tail.iter().enumerate() {
            let e = exp(v - max);
            sum[l] += e;
            weighted[l] += (v - max) * e;
        }
        (sum_lanes(sum), sum_lanes(weighted))
    }

    fn sums_at(z: &[f32], max: f32, inverse_tau: f32) -> (f32, f32) {
        let (mut sum, mut weighted) = ([0.0f32; LANES], [0.0f32; LANES]);
        let chunks = z.chunks_exact(LANES);
        let tail = chunks.remainder();
        for chunk in chunks {
            for l in 0..LANES {
                let a = (chunk[l] - max) * inverse_tau;
                let e = exp(a);
                sum[l] += e;
                weighted[l] += a * e;
            }
        }
        for (l, v) in tail.iter().enumerate() {
            let a = (v - max) * inverse_tau;
            let e = exp(a);
            sum[l] += e;
            weighted[l] += a * e;
        }
        (sum_lanes(sum), sum_lanes(weighted))
    }

    fn cross(t: &[f32], z: &[f32], max_t: f32, max_z: f32, inverse_tau: f32) -> f32 {
        let mut sum = [0.0f32; LANES];
        let (t_chunks, z_chunks) = (t.chunks_exact(LANES), z.chunks_exact(LANES));
        let (t_tail, z_tail) = (t_chunks.remainder(), z_chunks.remainder());
        for (t, z) in t_chunks.zip(z_chunks) {
            for l in 0..LANES {
                let a = (t[l] - max_t) * inverse_tau;
                let c = (z[l] - max_z) * inverse_tau;
                sum[l] += exp(a) * (a - c);
            }
        }
        for (l, (t, z)) in t_tail.iter().zip(z_tail).enumerate() {
            let a = (t - max_t) * inverse_tau;
            let c = (z - max_z) * inverse_tau;
            sum[l] += exp(a) * (a - c);
        }
        sum_lanes(sum)
    }

    pub(super) fn ce_gradient(dz: &mut [f32], z: &[f32], max: f32, log_sum: f32, weight: f32) {
        for (dz, z) in dz.iter_mut().zip(z) {
            *dz = weight * exp(z - max - log_sum);
        }
    }

    // w ((1 - lambda) p + lambda tau (p^tau - q^tau)): the target's -w (1 - lambda) is the caller's
    fn mixed_gradient(dz: &mut [f32], z: &[f32], t: &[f32], s: &RowStats, weight: f32, lambda: f32, tau: f32) {
        let (ce, kd) = (weight * (1.0 - lambda), weight * lambda * tau);
        let inverse = 1.0 / tau;
        let (zs, ts) = (s.student, s.teacher);
        if tau == 1.0 {
            for ((dz, z), t) in dz.iter_mut().zip(z).zip(t) {
                let p = exp(z - zs.max - zs.log_sum);
                let q = exp(t - ts.max - ts.log_sum);
                *dz = ce * p + kd * (p - q);
            }
        } else {
            for ((dz, z), t) in dz.iter_mut().zip(z).zip(t) {
                let p = exp(z - zs.max - zs.log_sum);
                let p_tau = exp((z - zs.max) * inverse - zs.log_sum_tau);
                let q_tau = exp((t - ts.max) * inverse - ts.log_sum_tau);
                *dz = ce * p + kd * (p_tau - q_tau);
            }
        }
    }
}
