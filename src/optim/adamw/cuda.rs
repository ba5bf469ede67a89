//! AdamW and the gradient norm on a GPU: launches of `adamw.cu`.

use super::Scalars;
use crate::error::Result;
use crate::ops::gpu::{Address, Grid, Module, contiguous, floats, launch, uninitialised};
use candle_core::{DType, Tensor};

const THREADS: u32 = 256;
/// Numbers of a thread.
const EACH: usize = 4;
/// Blocks that share a sum of squares: fixed, so that it has one order.
const BLOCKS: usize = if cfg!(test) { 3 } else { 128 };

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
}

/// Sums of squares of every tensor, brought to the host together: the one wait for the device in an
/// update.
pub(super) fn sums_of_squares(tensors: &[Tensor]) -> Result<Vec<f64>> {
    let Some(first) = tensors.first() else { return Ok(Vec::new()) };
    let parts = uninitialised((tensors.len(), BLOCKS), DType::F64, first)?;
    for (i, g) in tensors.iter().enumerate() {
        let args = Squares {
            parts: contiguous(&parts.narrow(0, i, 1)?)?,
            g: floats(g)?,
            n: g.elem_count() as u64,
        };
        launch(g, Module::AdamW, "sum_of_squares", Grid::of(BLOCKS, THREADS), args)?;
    }
    Ok(parts.to_vec2::<f64>()?.iter().map(|parts| parts.iter().sum()).collect())
}
