//! The head on a GPU: products by cuBLAS over blocks of rows, and launches of `head.cu`.
//!
//! Rows of logits are padded to a multiple of [`PAD`] columns, so that products of any vocabulary
//! take the kernels for aligned matrices. What a pass finds stays on the device until it is asked
//! for: [`Found::read`] is where the host waits.

mod signals;

pub(super) use signals::{draw, hear, largest};

use super::fused::{Found, Fused, PassInput, Weigh};
use super::{
    Logits, LossGradient, LossInput, Objective, Passed, RowStats, ScanOptions, Stats, Stored,
    per_token,
};
use crate::error::Result;
use crate::loss::Signal;
use crate::ops::embed::gather;
use crate::ops::gpu::{
    Address, Grid, Module, address, contiguous, factor, floats, gemm, launch, uninitialised,
    upload, variant,
};
use candle_core::{DType, Tensor};
use signals::{Heard, OnDevice};

/// Rows per block: 4,096 of GPT-2's vocabulary are 0.8 GB of logits. Fixed, so that sums have one
/// order.
const ROWS: usize = if cfg!(test) { 8 } else { 4096 };
/// Columns of logits are a multiple of this.
const PAD: usize = 64;
/// Threads of a block that owns a row.
const THREADS: u32 = if cfg!(test) { 64 } else { 512 };
/// Numbers of a row's statistics.
const STATS: usize = 14;

/// Where logits or statistics lie, as kernels take it.
#[derive(Clone, Copy)]
#[repr(C)]
struct LogitsAt {
    data: Address,
    rows: Address,
    stride: u64,
}

impl LogitsAt {
    const NONE: Self = Self { data: Address::NULL, rows: Address::NULL, stride: 0 };
}

#[derive(Clone, Copy)]
#[repr(C)]
struct StatsAt {
    data: Address,
    rows: Address,
}

/// A block of rows of logits.
struct Block {
    data: Tensor,
    /// Where row i of the block lies in `data`; None: at i.
    rows: Option<Tensor>,
}

impl Block {
    fn at(&self) -> Result<LogitsAt> {
        Ok(LogitsAt {
            data: address(&self.data)?,
            rows: optional(self.rows.as_ref())?,
            stride: self.data.dim(1)? as u64,
        })
    }

    /// Of the rows at `places` alone.
    fn pick(&self, places: Option<&Tensor>) -> Result<Self> {
        let rows = match (&self.rows, places) {
            (rows, None) => rows.clone(),
            (None, Some(places)) => Some(places.clone()),
            (Some(rows), Some(places)) => Some(rows.index_select(places, 0)?),
        };
        Ok(Self { data: self.data.clone(), rows })
    }
}

fn optional(x: Option<&Tensor>) -> Result<Address> {
    x.map_or(Ok(Address::NULL), contiguous)
}

/// The rows of one set of logits, block by block: formed into a scratch, formed into the store, or
/// read from it.
struct Blocks {
    hidden: Tensor,
    /// [Vp, D]: the head, padded with rows of zeros.
    weight: Tensor,
    place: Place,
}

/// Where blocks are formed, or lie.
enum Place {
    Scratch(Tensor),
    Filling(Tensor),
    Stored(Tensor, Option<Tensor>),
}

impl Blocks {
    /// With `fill`, logits that are not stored yet will be.
    fn new(logits: &Logits, fill: bool) -> Result<Self> {
        let (n, vocab) = (logits.rows(), logits.vocab());
        let hidden = factor(&logits.hidden, logits.precision)?;
        let columns = vocab.next_multiple_of(PAD);
        let weight =
            factor(&logits.weight, logits.precision)?.pad_with_zeros(0, 0, columns - vocab)?;
        let place = match &logits.stored {
            Some(Stored::Device(all)) => {
                let index = logits.index.as_ref().map(|index| upload(index, all)).transpose()?;
                Place::Stored(all.clone(), index)
            }
            _ if fill => Place::Filling(uninitialised((n, columns), DType::F32, &hidden)?),
            _ => Place::Scratch(uninitialised((ROWS.min(n), columns), DType::F32, &hidden)?),
        };
        Ok(Self { hidden, weight, place })
    }

    fn block(&self, start: usize, count: usize) -> Result<Block> {
        let data = match &self.place {
            Place::Stored(all, None) => {
                return Ok(Block { data: all.narrow(0, start, count)?, rows: None });
            }
            Place::Stored(all, Some(index)) => {
                return Ok(Block { data: all.clone(), rows: Some(index.narrow(0, start, count)?) });
            }
            Place::Filling(all) => all.narrow(0, start, count)?,
            Place::Scratch(block) => block.narrow(0, 0, count)?,
        };
        gemm(&data, &self.hidden.narrow(0, start, count)?, &self.weight.t()?, false)?;
        Ok(Block { data, rows: None })
    }

    /// The filled store, if this walk was to keep the logits.
    fn finish(self) -> Option<Stored> {
        match self.place {
            Place::Filling(all) => Some(Stored::Device(all)),
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Scan {
    out: Address,
    z: LogitsAt,
    t: LogitsAt,
    targets: Address,
    v: u32,
    tau: f32,
    reverse_kl: u32,
}

/// Statistics of a block, written to `out` [count, 14].
fn scan_block(
    out: &Tensor,
    z: &Block,
    t: Option<&Block>,
    targets: &Tensor,
    vocab: usize,
    options: ScanOptions,
) -> Result<()> {
    let args = Scan {
        out: floats(out)?,
        z: z.at()?,
        t: t.map_or(Ok(LogitsAt::NONE), Block::at)?,
        targets: contiguous(targets)?,
        v: vocab as u32,
        tau: options.tau,
        reverse_kl: u32::from(options.reverse_kl),
    };
    launch(out, Module::Head, "head_scan", Grid::of(out.dim(0)?, THREADS), args)
}

pub(super) fn scan(
    student: &Logits,
    teacher: Option<&Logits>,
    targets: &[u32],
    options: ScanOptions,
    store: bool,
) -> Result<Passed> {
    let n = targets.len();
    if n == 0 {
        return Ok(Passed { stats: Vec::new(), student: None, teacher: None });
    }
    let vocab = student.vocab();
    let out = uninitialised((n, STATS), DType::F32, &student.hidden)?;
    let targets = upload(targets, &out)?;
    let z = Blocks::new(student, store)?;
    let t = teacher.map(|t| Blocks::new(t, store)).transpose()?;
    for start in (0..n).step_by(ROWS) {
        let count = ROWS.min(n - start);
        let t = t.as_ref().map(|t| t.block(start, count)).transpose()?;
        let (out, targets) = (out.narrow(0, start, count)?, targets.narrow(0, start, count)?);
        scan_block(&out, &z.block(start, count)?, t.as_ref(), &targets, vocab, options)?;
    }
    Ok(Passed { stats: read(&out)?, student: z.finish(), teacher: t.and_then(Blocks::finish) })
}

fn read(stats: &Tensor) -> Result<Vec<RowStats>> {
    let all = stats.flatten_all()?.to_vec1::<f32>()?;
    let of = |s: &[f32]| Stats {
        max: s[0],
        log_sum: s[1],
        log_sum_tau: s[2],
        nll: s[3],
        entropy: s[4],
        entropy_tau: s[5],
    };
    let row =
        |s: &[f32]| RowStats { student: of(s), teacher: of(&s[6..]), kl: s[12], reverse_kl: s[13] };
    Ok(all.chunks_exact(STATS).map(row).collect())
}

fn written(stats: &[RowStats], like: &Tensor) -> Result<Tensor> {
    let of = |s: &Stats| [s.max, s.log_sum, s.log_sum_tau, s.nll, s.entropy, s.entropy_tau];
    let row =
        |s: &RowStats| of(&s.student).into_iter().chain(of(&s.teacher)).chain([s.kl, s.reverse_kl]);
    let all: Vec<f32> = stats.iter().flat_map(row).collect();
    Ok(upload(&all, like)?.reshape((stats.len(), STATS))?)
}

#[derive(Clone, Copy)]
#[repr(C)]
struct DivergenceSums {
    sums: Address,
    z: LogitsAt,
    t: LogitsAt,
    stats: StatsAt,
    v: u32,
    divergence: u32,
    share: f32,
    tau: f32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Gradient {
    dz: Address,
    z: LogitsAt,
    t: LogitsAt,
    stats: StatsAt,
    targets: Address,
    weights: Address,
    sums: Address,
    starts: Address,
    ids: Address,
    g: Address,
    rest: Address,
    stride: u64,
    v: u32,
    divergence: u32,
    share: f32,
    lambda: f32,
    tau: f32,
}

/// Rows of a block that carry weight.
struct Chosen<'a> {
    z: &'a Block,
    t: Option<&'a Block>,
    /// Of the block, [.., 14], and where row i's lie; None: at i. Targets lie alike.
    stats: &'a Tensor,
    /// What a sparse signal says of the block's rows.
    heard: Option<&'a Heard>,
    places: Option<&'a Tensor>,
    targets: &'a Tensor,
    /// `[k]`.
    weights: &'a Tensor,
}

impl Chosen<'_> {
    fn stats_at(&self) -> Result<StatsAt> {
        Ok(StatsAt { data: floats(self.stats)?, rows: optional(self.places)? })
    }
}

/// What the gradients of a pass share.
struct Pass<'a> {
    student: &'a Logits,
    blocks: Blocks,
    objective: Objective,
    d_weight: &'a Tensor,
    d_hidden: Vec<Tensor>,
    /// D and G of rows, [k, 2] a block; none where the scan knows D.
    sums: Vec<Tensor>,
}

impl<'a> Pass<'a> {
    fn new(student: &'a Logits, objective: Objective, d_weight: &'a Tensor) -> Result<Self> {
        let blocks = Blocks::new(student, false)?;
        Ok(Self { student, blocks, objective, d_weight, d_hidden: Vec::new(), sums: Vec::new() })
    }

    /// Adds the gradients of the rows chosen of a block, whose hidden vectors are `hidden` [k, D].
    fn add(&mut self, chosen: &Chosen<'_>, hidden: &Tensor) -> Result<()> {
        let (k, d) = hidden.dims2()?;
        let stride = self.blocks.weight.dim(0)?;
        let (divergence, share) = self.objective.divergence.code();
        let sums = match (chosen.t, chosen.heard) {
            (_, Some(Heard { sums, .. })) => Some(match chosen.places {
                Some(places) => sums.index_select(places, 0)?,
                None => sums.clone(),
            }),
            (Some(t), None) if self.objective.divergence.needs_sums() => {
                let sums = uninitialised((k, 2), DType::F32, hidden)?;
                let args = DivergenceSums {
                    sums: floats(&sums)?,
                    z: chosen.z.at()?,
                    t: t.at()?,
                    stats: chosen.stats_at()?,
                    v: self.student.vocab() as u32,
                    divergence,
                    share,
                    tau: self.objective.temperature,
                };
                launch(hidden, Module::Head, "head_divergence_sums", Grid::of(k, THREADS), args)?;
                Some(sums)
            }
            _ => None,
        };
        let dz = uninitialised((k, stride), self.student.precision.activations(), hidden)?;
        let args = Gradient {
            dz: contiguous(&dz)?,
            z: chosen.z.at()?,
            t: chosen.t.map_or(Ok(LogitsAt::NONE), Block::at)?,
            stats: chosen.stats_at()?,
            targets: contiguous(chosen.targets)?,
            weights: floats(chosen.weights)?,
            sums: optional(sums.as_ref())?,
            starts: optional(chosen.heard.map(|heard| &heard.starts))?,
            ids: optional(chosen.heard.map(|heard| &heard.ids))?,
            g: optional(chosen.heard.map(|heard| &heard.g))?,
            rest: optional(chosen.heard.map(|heard| &heard.rest))?,
            stride: stride as u64,
            v: self.student.vocab() as u32,
            divergence,
            share,
            lambda: self.objective.lambda,
            tau: self.objective.temperature,
        };
        launch(
            hidden,
            Module::Head,
            &variant("head_gradient", dz.dtype())?,
            Grid::of(k, THREADS),
            args,
        )?;
        let d_hidden = uninitialised((k, d), DType::F32, hidden)?;
        gemm(&d_hidden, &dz, &self.blocks.weight, false)?;
        // The vocabulary's odd end by itself: the product of 50,257 columns fell back to a kernel
        // of half the speed.
        let vocab = self.student.vocab();
        let even = vocab / PAD * PAD;
        for (from, count) in [(0, even), (even, vocab - even)] {
            gemm(
                &self.d_weight.narrow(0, from, count)?,
                &dz.narrow(1, from, count)?.t()?,
                hidden,
                true,
            )?;
        }
        self.d_hidden.push(d_hidden);
        self.sums.extend(sums);
        Ok(())
    }

    /// Gradient of all rows' hidden vectors, [k, D], and D of each row where the scan does not know
    /// it.
    fn finish(self) -> Result<(Tensor, Vec<Tensor>)> {
        let d_hidden = match self.d_hidden.as_slice() {
            [] => Tensor::zeros(
                (0, self.student.hidden.dim(1)?),
                DType::F32,
                self.student.hidden.device(),
            )?,
            [one] => one.clone(),
            several => Tensor::cat(several, 0)?,
        };
        Ok((d_hidden, self.sums))
    }
}

/// D of each row, where a pass had to form it.
fn values(sums: &[Tensor]) -> Result<Option<Vec<f64>>> {
    if sums.is_empty() {
        return Ok(None);
    }
    let sums = Tensor::cat(sums, 0)?.to_vec2::<f32>()?;
    Ok(Some(sums.iter().map(|s| f64::from(s[0])).collect()))
}

pub(super) fn loss(input: LossInput<'_>, d_weight: &Tensor) -> Result<LossGradient> {
    let LossInput { student, signal, stats, targets, weights, objective } = input;
    let k = stats.len();
    let mut pass = Pass::new(student, objective, d_weight)?;
    let (teacher, sparse) = match signal {
        None => (None, None),
        Some(Signal::Dense(t)) => (Some(Blocks::new(t, false)?), None),
        Some(signal) => (None, Some(OnDevice::new(signal, objective, &student.hidden)?)),
    };
    if k > 0 {
        let like = &student.hidden;
        let (on_device, targets, weights) =
            (written(stats, like)?, upload(targets, like)?, upload(weights, like)?);
        for start in (0..k).step_by(ROWS) {
            let count = ROWS.min(k - start);
            let z = pass.blocks.block(start, count)?;
            let t = teacher.as_ref().map(|t| t.block(start, count)).transpose()?;
            let stats = on_device.narrow(0, start, count)?;
            let heard = match &sparse {
                Some(sparse) => {
                    sparse.hear(&stats, &z, start, objective.temperature.into(), true)?
                }
                None => None,
            };
            let chosen = Chosen {
                z: &z,
                t: t.as_ref(),
                stats: &stats,
                heard: heard.as_ref(),
                places: None,
                targets: &targets.narrow(0, start, count)?,
                weights: &weights.narrow(0, start, count)?,
            };
            let hidden = pass.blocks.hidden.narrow(0, start, count)?;
            pass.add(&chosen, &hidden)?;
        }
    }
    let (d_hidden, sums) = pass.finish()?;
    let known = values(&sums)?;
    let value = |i: usize, s: &RowStats| match (signal, &known) {
        (None, _) => 0.0,
        (_, Some(known)) => known[i],
        (_, None) => f64::from(s.kl),
    };
    let rows = stats.iter().zip(weights).enumerate();
    let sum = rows.map(|(i, (s, w))| f64::from(*w) * per_token(s, value(i, s), objective)).sum();
    Ok(LossGradient { sum, d_hidden })
}

pub(super) fn fused(
    input: PassInput<'_>,
    weigh: &mut Weigh<'_>,
    d_weight: &Tensor,
) -> Result<Fused> {
    let PassInput { student, targets, options, objective, .. } = input;
    let n = targets.len();
    let mut pass = Pass::new(student, objective, d_weight)?;
    let (mut rows, mut weights) = (Vec::new(), Vec::new());
    let stats = uninitialised((n, STATS), DType::F32, &student.hidden)?;
    let teacher = input.dense().map(|t| Blocks::new(t, false)).transpose()?;
    let sparse =
        input.sparse().map(|signal| OnDevice::new(signal, objective, &stats)).transpose()?;
    let on_device = upload(targets, &stats)?;
    for start in (0..n).step_by(ROWS) {
        let count = ROWS.min(n - start);
        let (z, targets) = (pass.blocks.block(start, count)?, on_device.narrow(0, start, count)?);
        let t = teacher.as_ref().map(|t| t.block(start, count)).transpose()?;
        let found = stats.narrow(0, start, count)?;
        scan_block(&found, &z, t.as_ref(), &targets, student.vocab(), options)?;
        let heard = match &sparse {
            // A teacher without weight in the loss costs nothing there.
            Some(sparse) => sparse.hear(&found, &z, start, options, objective.lambda != 0.0)?,
            None => None,
        };
        let of_block: Vec<f32> = match weigh {
            Weigh::Known(weights) => weights[start..start + count].to_vec(),
            Weigh::Asking(weigh) => {
                let found = read(&found)?;
                found.iter().enumerate().map(|(i, s)| weigh(start + i, s)).collect::<Result<_>>()?
            }
        };
        let places: Vec<u32> = (0..count as u32).filter(|&i| of_block[i as usize] != 0.0).collect();
        if places.is_empty() {
            continue;
        }
        let of_kept: Vec<f32> = places.iter().map(|&i| of_block[i as usize]).collect();
        let picked = (places.len() < count).then(|| upload(&places, &found)).transpose()?;
        let hidden = pass.blocks.hidden.narrow(0, start, count)?;
        let hidden = if picked.is_some() { gather(&hidden, &places)? } else { hidden };
        let (z, t) = (z.pick(picked.as_ref())?, t.map(|t| t.pick(picked.as_ref())).transpose()?);
        let chosen = Chosen {
            z: &z,
            t: t.as_ref().filter(|_| objective.lambda != 0.0),
            stats: &found,
            heard: heard.as_ref(),
            places: picked.as_ref(),
            targets: &targets,
            weights: &upload(&of_kept, &found)?,
        };
        pass.add(&chosen, &hidden)?;
        rows.extend(places.iter().map(|&i| start as u32 + i));
        weights.extend(of_kept);
    }
    let (d_hidden, sums) = pass.finish()?;
    let found = Found::Device(Pending {
        stats,
        sums,
        rows: rows.clone(),
        weights: weights.clone(),
        objective,
    });
    Ok(Fused { found, rows, weights, d_hidden })
}

/// What a pass found, still on the device.
#[derive(Debug)]
pub struct Pending {
    stats: Tensor,
    sums: Vec<Tensor>,
    rows: Vec<u32>,
    weights: Vec<f32>,
    objective: Objective,
}

impl Pending {
    /// Waits for the device: statistics of all rows, and the loss sum of those that carry weight.
    pub(super) fn read(self) -> Result<(Vec<RowStats>, f64)> {
        let (stats, known) = (read(&self.stats)?, values(&self.sums)?);
        let one = |(i, (&row, &weight)): (usize, (&u32, &f32))| {
            let s = &stats[row as usize];
            let value = known.as_ref().map_or(f64::from(s.kl), |known| known[i]);
            f64::from(weight) * per_token(s, value, self.objective)
        };
        let sum = self.rows.iter().zip(&self.weights).enumerate().map(one).sum();
        Ok((stats, sum))
    }
}
