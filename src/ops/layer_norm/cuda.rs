//! Layer norm on a GPU: launches of `layer_norm.cu`.

use super::{Backward, Normed};
use crate::error::Result;
use crate::ops::gpu::{Address, Grid, Module, contiguous, floats, launch, uninitialised, variant};
use crate::ops::matmul::cuda::accumulate_columns;
use candle_core::{DType, Tensor};

/// Rows of a block, a warp for each.
const ROWS: usize = 8;
const WARP: u32 = 32;

#[derive(Clone, Copy)]
#[repr(C)]
struct ForwardLaunch {
    out: Address,
    stats: Address,
    x: Address,
    w: Address,
    b: Address,
    n: u32,
    d: u32,
    eps: f32,
    replay: u32,
}

pub(super) fn forward(x: &Tensor, w: &Tensor, b: &Tensor, eps: f32, out: DType) -> Result<Normed> {
    let stats = uninitialised((x.dim(0)?, 2), DType::F32, x)?;
    let out = run(x, &stats, w, b, Some(eps), out)?;
    Ok(Normed { out, stats })
}

pub(super) fn replay(
    x: &Tensor,
    stats: &Tensor,
    w: &Tensor,
    b: &Tensor,
    out: DType,
) -> Result<Tensor> {
    run(x, stats, w, b, None, out)
}

fn run(
    x: &Tensor,
    stats: &Tensor,
    w: &Tensor,
    b: &Tensor,
    eps: Option<f32>,
    out: DType,
) -> Result<Tensor> {
    let (n, d) = x.dims2()?;
    let out = uninitialised((n, d), out, x)?;
    let args = ForwardLaunch {
        out: contiguous(&out)?,
        stats: floats(stats)?,
        x: floats(x)?,
        w: floats(w)?,
        b: floats(b)?,
        n: n as u32,
        d: d as u32,
        eps: eps.unwrap_or_default(),
        replay: u32::from(eps.is_none()),
    };
    launch(x, Module::LayerNorm, &variant("layer_norm_forward", out.dtype())?, grid(n), args)?;
    Ok(out)
}

#[derive(Clone, Copy)]
#[repr(C)]
struct BackwardLaunch {
    dx: Address,
    dy: Address,
    x: Address,
    stats: Address,
    w: Address,
    n: u32,
    d: u32,
}

pub(super) fn backward(args: Backward<'_>, db: &Tensor) -> Result<()> {
    let Backward { dy, x, stats, w, dx, dw, .. } = args;
    let (n, d) = x.dims2()?;
    let args = BackwardLaunch {
        dx: floats(dx)?,
        dy: contiguous(dy)?,
        x: floats(x)?,
        stats: floats(stats)?,
        w: floats(w)?,
        n: n as u32,
        d: d as u32,
    };
    launch(x, Module::LayerNorm, &variant("layer_norm_backward", dy.dtype())?, grid(n), args)?;
    accumulate_columns(dw, Some(db), dy, Some((x, stats)))
}

fn grid(n: usize) -> Grid {
    Grid::of(n.div_ceil(ROWS), ROWS as u32 * WARP)
}
