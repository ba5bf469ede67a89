//! GELU on a GPU: launches of `gelu.cu`.

use crate::error::Result;
use crate::ops::gpu::{Address, Grid, Module, contiguous, launch, uninitialised, variant};
use candle_core::Tensor;

const THREADS: u32 = 256;
/// Numbers of a thread.
const EACH: usize = 4;

#[derive(Clone, Copy)]
#[repr(C)]
struct Gelu {
    y: Address,
    x: Address,
    n: u64,
}

pub(super) fn forward(x: &Tensor) -> Result<Tensor> {
    let out = uninitialised(x.shape(), x.dtype(), x)?;
    run("gelu_forward", &out, x)?;
    Ok(out)
}

pub(super) fn backward(dy: &Tensor, x: &Tensor) -> Result<()> {
    run("gelu_backward", dy, x)
}

fn run(kernel: &str, y: &Tensor, x: &Tensor) -> Result<()> {
    let n = x.elem_count();
    let args = Gelu { y: contiguous(y)?, x: contiguous(x)?, n: n as u64 };
    let grid = Grid::of(n.div_ceil(EACH * THREADS as usize), THREADS);
    launch(x, Module::Gelu, &variant(kernel, x.dtype())?, grid, args)
}
