//! AdamW and the gradient norm on a GPU: launches of `adamw.cu`.

use super::{SQUARES, Scalars};
use crate::error::Result;
use crate::ops::gpu::{Address, Grid, Module, contiguous, floats, launch, uninitialised};
use candle_core::{DType, Tensor};
use std::ops::Range;

const THREADS: u32 = 256;
/// Numbers of a thread.
const EACH: usize = 4;
/// Blocks that share a sum of squares: fixed, so that it has one order.
const BLOCKS: usize = if cfg!(test) { 3 } else { 8 };

#[derive(Clone, Copy)]
#[repr(C)]
struct Update {
    p: Address,
    g: Address,
    m: Address,
    v: Address,
    n: u64,
    scale: f32,
    keep: f32,
    beta1: f32,
    beta2: f32,
    root_correction: f32,
    rate: f32,
    eps: f32,
}

pub(super) fn update(p: &Tensor, g: &Tensor, m: &Tensor, v: &Tensor, s: &Scalars) -> Result<()> {
    let n = p.elem_count();
    let args = Update {
        p: floats(p)?,
        g: floats(g)?,
        m: floats(m)?,
        v: floats(v)?,
        n: n as u64,
        scale: s.scale as f32,
        keep: s.keep as f32,
        beta1: s.beta1 as f32,
        beta2: s.beta2 as f32,
        root_correction: s.root_correction as f32,
        rate: s.rate as f32,
        eps: s.eps as f32,
    };
    launch(
        p,
        Module::AdamW,
        "adamw_update",
        Grid::of(n.div_ceil(EACH * THREADS as usize), THREADS),
        args,
    )
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Squares {
    parts: Address,
    g: Address,
    n: u64,
    piece: u64,
}

/// Sums of squares of what lies in `places` of every tensor, by [`SQUARES`] elements, brought to the
/// host together: the one wait for the device in an update.
pub(super) fn squares<'a>(
    tensors: impl Iterator<Item = (&'a Tensor, &'a [Range<usize>])> + Clone,
) -> Result<Vec<Vec<f64>>> {
    let pieces_of =
        |places: &[Range<usize>]| places.iter().map(|p| p.len().div_ceil(SQUARES)).sum();
    let counts: Vec<usize> = tensors.clone().map(|(_, places)| pieces_of(places)).collect();
    let Some((first, _)) = tensors.clone().next() else { return Ok(Vec::new()) };
    if counts.iter().all(|n| *n == 0) {
        return Ok(counts.iter().map(|_| Vec::new()).collect());
    }
    let parts = uninitialised((counts.iter().sum::<usize>(), BLOCKS), DType::F64, first)?;
    let mut at = 0;
    for (g, places) in tensors {
        for place in places {
            let pieces = place.len().div_ceil(SQUARES);
            let args = Squares {
                parts: contiguous(&parts.narrow(0, at, pieces)?)?,
                g: floats(&g.flatten_all()?.narrow(0, place.start, place.len())?)?,
                n: place.len() as u64,
                piece: SQUARES as u64,
            };
            let grid = Grid::of(BLOCKS, THREADS).by(pieces);
            launch(g, Module::AdamW, "sum_of_squares", grid, args)?;
            at += pieces;
        }
    }
    let sums: Vec<f64> = parts.to_vec2::<f64>()?.iter().map(|parts| parts.iter().sum()).collect();
    let mut rest = &sums[..];
    let one = |n: usize| {
        let (first, others) = rest.split_at(n);
        rest = others;
        first.to_vec()
    };
    Ok(counts.into_iter().map(one).collect())
}
