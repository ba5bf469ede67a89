//! Sparse signals on a GPU: a teacher's largest entries, draws from it, and what a signal says of
//! the student's rows. The few logits that it names are read where they are.

use super::{Block, Blocks, LogitsAt, ROWS, THREADS, read, written};
use crate::error::{Error, Result};
use crate::loss::Signal;
use crate::loss::divergence::Divergence;
use crate::loss::head::sparse;
use crate::loss::head::{Logits, Objective, RowStats, ScanOptions};
use crate::ops::gpu::{Address, Grid, Module, contiguous, floats, launch, uninitialised, upload};
use candle_core::{DType, Tensor};

/// A sparse signal of N rows on the device.
pub(super) struct OnDevice {
    /// Where each row's ids begin, and where the last row's end [N + 1].
    starts: Tensor,
    ids: Tensor,
    /// Of each id: ln q, or the share of the draws.
    says: Tensor,
    /// ln q of everything else `[N]`, of a top-k signal.
    outside: Option<Tensor>,
    /// [N, 3]
    said: Tensor,
    objective: Objective,
}

/// What the gradients of a block's rows need of a signal.
pub(super) struct Heard {
    /// [count + 1], into `ids` and `g`.
    pub(super) starts: Tensor,
    pub(super) ids: Tensor,
    pub(super) g: Tensor,
    /// h of everything else, and G, [count, 2].
    pub(super) rest: Tensor,
    /// D and G, [count, 2].
    pub(super) sums: Tensor,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Hear {
    stats: Address,
    z: LogitsAt,
    starts: Address,
    ids: Address,
    says: Address,
    outside: Address,
    said: Address,
    g: Address,
    rest: Address,
    sums: Address,
    divergence: u32,
    share: f32,
    tau: f32,
    kl: u32,
    reverse_kl: u32,
}

impl OnDevice {
    pub(super) fn new(signal: &Signal, objective: Objective, like: &Tensor) -> Result<Self> {
        let n = signal.rows();
        let (starts, mut ids, mut says, outside): (Vec<u32>, Vec<u32>, Vec<f32>, _) = match signal {
            Signal::Dense(_) => return Err(Error::internal("a dense signal has no ids")),
            Signal::TopK(top) => (
                (0..=n).map(|i| (i * top.k) as u32).collect(),
                top.ids.clone(),
                top.logp.clone(),
                Some(upload(&top.rest, like)?),
            ),
            Signal::Sampled(sampled) => (
                sampled.starts.iter().map(|&start| start as u32).collect(),
                sampled.drawn.iter().map(|d| d.id).collect(),
                sampled.drawn.iter().map(|d| d.count as f32 / sampled.draws as f32).collect(),
                None,
            ),
        };
        if ids.is_empty() {
            (ids, says) = (vec![0], vec![0.0]); // memory of no size has no address
        }
        let said: Vec<f32> = (0..n)
            .filter_map(|i| signal.said(i))
            .flat_map(|said| [said.nll, said.entropy, said.entropy_tau])
            .collect();
        Ok(Self {
            starts: upload(&starts, like)?,
            ids: upload(&ids, like)?,
            says: upload(&says, like)?,
            outside,
            said: upload(&said, like)?.reshape((n, 3))?,
            objective,
        })
    }

    /// Writes what the signal says of the block `z` of rows, the first of which is row `start`,
    /// into their statistics [count, 14], and forms what their gradients need if `learns`.
    pub(super) fn hear(
        &self,
        stats: &Tensor,
        z: &Block,
        start: usize,
        options: ScanOptions,
        learns: bool,
    ) -> Result<Option<Heard>> {
        let count = stats.dim(0)?;
        let (divergence, share) = self.objective.divergence.code();
        let heard = if learns {
            Some(Heard {
                starts: self.starts.narrow(0, start, count + 1)?,
                ids: self.ids.clone(),
                g: uninitialised(self.ids.dims1()?, DType::F32, stats)?,
                rest: uninitialised((count, 2), DType::F32, stats)?,
                sums: uninitialised((count, 2), DType::F32, stats)?,
            })
        } else {
            None
        };
        let or_null = |x: Option<&Tensor>| x.map_or(Ok(Address::NULL), floats);
        let outside = self.outside.as_ref().map(|o| o.narrow(0, start, count)).transpose()?;
        let args = Hear {
            stats: floats(stats)?,
            z: z.at()?,
            starts: contiguous(&self.starts.narrow(0, start, count + 1)?)?,
            ids: contiguous(&self.ids)?,
            says: floats(&self.says)?,
            outside: or_null(outside.as_ref())?,
            said: floats(&self.said.narrow(0, start, count)?)?,
            g: or_null(heard.as_ref().map(|h| &h.g))?,
            rest: or_null(heard.as_ref().map(|h| &h.rest))?,
            sums: or_null(heard.as_ref().map(|h| &h.sums))?,
            divergence,
            share,
            tau: options.tau,
            kl: u32::from(options.sparse_kl),
            reverse_kl: u32::from(options.reverse_kl),
        };
        launch(stats, Module::Head, "head_hear", Grid::of(count, 128), args)?;
        Ok(heard)
    }
}

/// As [`crate::loss::head::hear`].
pub(in crate::loss::head) fn hear(
    student: &Logits,
    signal: &Signal,
    stats: &mut [RowStats],
    options: ScanOptions,
) -> Result<()> {
    let n = stats.len();
    if !options.sparse_kl && !options.reverse_kl {
        let rows = stats.iter_mut().enumerate();
        rows.for_each(|(i, s)| sparse::hear_row(signal, i, s, options, |_| 0.0));
    } else if n > 0 {
        let on_device = written(stats, &student.hidden)?;
        let (lambda, temperature) = (1.0, options.tau);
        let objective = Objective { lambda, temperature, divergence: Divergence::ForwardKl };
        let signal = OnDevice::new(signal, objective, &on_device)?;
        let blocks = Blocks::new(student, false)?;
        for start in (0..n).step_by(ROWS) {
            let count = ROWS.min(n - start);
            let of_block = on_device.narrow(0, start, count)?;
            signal.hear(&of_block, &blocks.block(start, count)?, start, options, false)?;
        }
        stats.copy_from_slice(&read(&on_device)?);
    }
    Ok(())
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Top {
    ids: Address,
    logits: Address,
    t: LogitsAt,
    v: u32,
    k: u32,
}

/// Ids [N, k], ascending, and logits of the `k` largest of each row; of equal ones the lower ids.
pub(in crate::loss::head) fn largest(teacher: &Logits, k: usize) -> Result<(Vec<u32>, Vec<f32>)> {
    let n = teacher.rows();
    let (mut all_ids, mut all_logits) = (Vec::with_capacity(n * k), Vec::with_capacity(n * k));
    let blocks = Blocks::new(teacher, false)?;
    for start in (0..n).step_by(ROWS) {
        let count = ROWS.min(n - start);
        let t = blocks.block(start, count)?;
        let (ids, logits) = (
            uninitialised((count, k), DType::U32, &t.data)?,
            uninitialised((count, k), DType::F32, &t.data)?,
        );
        let args = Top {
            ids: contiguous(&ids)?,
            logits: floats(&logits)?,
            t: t.at()?,
            v: teacher.vocab() as u32,
            k: k as u32,
        };
        launch(&ids, Module::Head, "head_top", Grid::of(count, THREADS), args)?;
        all_ids.extend(ids.flatten_all()?.to_vec1::<u32>()?);
        all_logits.extend(logits.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok((all_ids, all_logits))
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Draw {
    ids: Address,
    uniforms: Address,
    t: LogitsAt,
    v: u32,
    draws: u32,
    tau: f32,
}

/// The ids [N, draws] that `uniforms` [N, draws] fall on in the cumulative distributions of
/// softmax(t / tau).
pub(in crate::loss::head) fn draw(
    teacher: &Logits,
    tau: f32,
    draws: usize,
    uniforms: &[f64],
) -> Result<Vec<u32>> {
    let n = teacher.rows();
    let mut all = Vec::with_capacity(n * draws);
    let blocks = Blocks::new(teacher, false)?;
    for start in (0..n).step_by(ROWS) {
        let count = ROWS.min(n - start);
        let t = blocks.block(start, count)?;
        let ids = uninitialised((count, draws), DType::U32, &t.data)?;
        let uniforms = upload(&uniforms[start * draws..(start + count) * draws], &t.data)?;
        let args = Draw {
            ids: contiguous(&ids)?,
            uniforms: contiguous(&uniforms)?,
            t: t.at()?,
            v: teacher.vocab() as u32,
            draws: draws as u32,
            tau,
        };
        launch(&ids, Module::Head, "head_draw", Grid::of(count, THREADS), args)?;
        all.extend(ids.flatten_all()?.to_vec1::<u32>()?);
    }
    Ok(all)
}
