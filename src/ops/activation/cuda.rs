//! Activations on a GPU: launches of `activation.cu`.

use super::{Activation, Mlp};
use crate::error::{Error, Result};
use crate::ops::gpu::{Address, Grid, Module, contiguous, launch, uninitialised, variant};
use candle_core::Tensor;

const THREADS: u32 = 256;

#[derive(Clone, Copy)]
#[repr(C)]
struct Launch {
    out: Address,
    x: Address,
    dy: Address,
    n: u32,
    f: u32,
    kind: u32,
    gated: u32,
    across: u32,
}

pub(super) fn forward(mlp: Mlp, x: &Tensor) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let f = if mlp.gated { width / 2 } else { width };
    let out = uninitialised((n, f), x.dtype(), x)?;
    run("activation_forward", mlp, &out, x, None)?;
    Ok(out)
}

pub(super) fn backward(mlp: Mlp, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let dx = uninitialised(x.dims2()?, x.dtype(), x)?;
    run("activation_backward", mlp, &dx, x, Some(dy))?;
    Ok(dx)
}

fn run(kernel: &str, mlp: Mlp, out: &Tensor, x: &Tensor, dy: Option<&Tensor>) -> Result<()> {
    let (n, width) = x.dims2()?;
    let f = if mlp.gated { width / 2 } else { width };
    if let Some(dy) = dy
        && (dy.dims() != [n, f] || dy.dtype() != x.dtype())
    {
        return Err(Error::internal(format!("gradient {dy:?} of an activation of {x:?}")));
    }
    let across = if f.is_multiple_of(4) { f / 4 } else { f };
    let args = Launch {
        out: contiguous(out)?,
        x: contiguous(x)?,
        dy: dy.map_or(Ok(Address::NULL), contiguous)?,
        n: n as u32,
        f: f as u32,
        kind: match mlp.activation {
            Activation::GeluTanh => 0,
            Activation::Gelu => 1,
            Activation::Relu => 2,
            Activation::Silu => 3,
        },
        gated: u32::from(mlp.gated),
        across: across as u32,
    };
    let grid = Grid::of((n * across).div_ceil(THREADS as usize), THREADS);
    launch(x, Module::Activation, &variant(kernel, x.dtype())?, grid, args)
}
