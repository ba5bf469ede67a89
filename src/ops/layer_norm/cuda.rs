//! Layer norm and RMS norm on a GPU: launches of `layer_norm.cu`.

use super::{Backward, Normed};
use crate::error::{Error, Result};
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

pub(super) fn forward(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    eps: f32,
    out: DType,
) -> Result<Normed> {
    let stats = uninitialised((x.dim(0)?, 2), DType::F32, x)?;
    let out = run(x, &stats, w, b, Some(eps), out)?;
    Ok(Normed { out, stats })
}

pub(super) fn replay(
    x: &Tensor,
    stats: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    out: DType,
) -> Result<Tensor> {
    run(x, stats, w, b, None, out)
}

fn run(
    x: &Tensor,
    stats: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    eps: Option<f32>,
    out: DType,
) -> Result<Tensor> {
    let (n, d) = x.dims2()?;
    let out = uninitialised((n, d), out, x)?;
    let args = ForwardLaunch {
        out: contiguous(&out)?,
        stats: floats(stats)?,
        x: contiguous(x)?,
        w: floats(w)?,
        b: b.map_or(Ok(Address::NULL), floats)?,
        n: n as u32,
        d: d as u32,
        eps: eps.unwrap_or_default(),
        replay: u32::from(eps.is_none()),
    };
    launch(x, Module::LayerNorm, &kernel("layer_norm_forward", out.dtype(), x)?, grid(n), args)?;
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
    centred: u32,
}

pub(super) fn backward(args: Backward<'_>) -> Result<()> {
    let Backward { dy, x, stats, w, dx, dw, db } = args;
    if dx.dtype() != x.dtype() {
        return Err(Error::internal(format!(
            "a norm of {:?} with a gradient of {:?}",
            x.dtype(),
            dx.dtype()
        )));
    }
    let (n, d) = x.dims2()?;
    let args = BackwardLaunch {
        dx: contiguous(dx)?,
        dy: contiguous(dy)?,
        x: contiguous(x)?,
        stats: floats(stats)?,
        w: floats(w)?,
        n: n as u32,
        d: d as u32,
        centred: u32::from(db.is_some()),
    };
    launch(x, Module::LayerNorm, &kernel("layer_norm_backward", dy.dtype(), x)?, grid(n), args)?;
    accumulate_columns(dw, db, dy, Some((x, stats)))
}

/// The variant for the number format of y and for that of x, which is f32 in the residual stream.
fn kernel(name: &str, y: DType, x: &Tensor) -> Result<String> {
    match (x.dtype(), y) {
        (DType::F32, y) => variant(name, y),
        (DType::BF16, DType::BF16) => variant(&format!("{name}_all"), y),
        (x, y) => Err(Error::internal(format!("no kernel {name} from {x:?} to {y:?}"))),
    }
}

fn grid(n: usize) -> Grid {
    Grid::of(n.div_ceil(ROWS), ROWS as u32 * WARP)
}
