//! Products on a GPU: cuBLAS, and launches of `matmul.cu` around it.

use super::Precision;
use crate::error::{Error, Result};
use crate::ops::gpu::{
    Address, Grid, Module, contiguous, factor, floats, gemm, launch, uninitialised, variant,
};
use candle_core::{DType, Tensor};

const THREADS: u32 = 256;
/// Numbers of a thread that adds a bias.
const EACH: usize = 4;

pub(super) fn matmul(a: &Tensor, b: &Tensor, precision: Precision) -> Result<Tensor> {
    let out = uninitialised((a.dim(0)?, b.dim(1)?), precision.activations(), a)?;
    gemm(&out, &factor(a, precision)?, &factor(b, precision)?, false)?;
    Ok(out)
}

pub(super) fn accumulate(dst: &Tensor, a: &Tensor, b: &Tensor, precision: Precision) -> Result<()> {
    gemm(dst, &factor(a, precision)?, &factor(b, precision)?, true)
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Bias {
    out: Address,
    y: Address,
    bias: Address,
    residual: Address,
    n: u64,
    m: u32,
}

pub(super) fn linear(
    residual: Option<&Tensor>,
    x: &Tensor,
    w: &Tensor,
    bias: &Tensor,
    precision: Precision,
) -> Result<Tensor> {
    let y = matmul(x, w, precision)?;
    // Beside a residual the sum is f32, as the residual is; y may serve as its own output in every
    // other case.
    let out = match residual {
        Some(_) if y.dtype() != DType::F32 => uninitialised(y.shape(), DType::F32, &y)?,
        _ => y.clone(),
    };
    let args = Bias {
        out: contiguous(&out)?,
        y: contiguous(&y)?,
        bias: floats(bias)?,
        residual: residual.map_or(Ok(Address::NULL), floats)?,
        n: y.elem_count() as u64,
        m: y.dim(1)? as u32,
    };
    let kernel = if out.dtype() == y.dtype() { "add_bias" } else { "add_bias_onto" };
    let blocks = y.elem_count().div_ceil(EACH * THREADS as usize);
    launch(x, Module::Matmul, &variant(kernel, y.dtype())?, Grid::of(blocks, THREADS), args)?;
    Ok(out)
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Columns {
    parts: Address,
    d: Address,
    x: Address,
    stats: Address,
    n: u32,
    m: u32,
    rows: u32,
    kinds: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct AddParts {
    first: Address,
    second: Address,
    parts: Address,
    chunks: u32,
    m: u32,
}

/// Rows whose sum one thread forms, at least, and how many such sums are added up, at most: heads
/// are many rows. Both fixed, so that sums have one order.
const CHUNK: usize = 128;
const MOST_CHUNKS: usize = 1024;
const COLUMN_THREADS: u32 = 128;

/// `first += sum over rows of d`. Beside a norm, whose input and statistics are given, that goes to
/// `second`, where the norm has a shift, and `first += sum over rows of d times the normalised input`.
pub(crate) fn accumulate_columns(
    first: &Tensor,
    second: Option<&Tensor>,
    d: &Tensor,
    norm: Option<(&Tensor, &Tensor)>,
) -> Result<()> {
    let (n, m) = d.dims2()?;
    if second.is_some() && norm.is_none() {
        return Err(Error::internal("two sums of columns go with a norm"));
    }
    if n == 0 {
        return Ok(());
    }
    let rows = CHUNK.max(n.div_ceil(MOST_CHUNKS));
    let (chunks, kinds) = (n.div_ceil(rows), if second.is_some() { 2 } else { 1 });
    let parts = uninitialised((chunks, kinds, m), DType::F32, d)?;
    let args = Columns {
        parts: floats(&parts)?,
        d: contiguous(d)?,
        x: norm.map_or(Ok(Address::NULL), |(x, _)| contiguous(x))?,
        stats: norm.map_or(Ok(Address::NULL), |(_, stats)| floats(stats))?,
        n: n as u32,
        m: m as u32,
        rows: rows as u32,
        kinds: kinds as u32,
    };
    let name = match norm {
        Some((x, _)) if x.dtype() != DType::F32 => "sum_columns_all",
        _ => "sum_columns",
    };
    let grid = Grid::of(m.div_ceil(COLUMN_THREADS as usize), COLUMN_THREADS);
    launch(d, Module::Matmul, &variant(name, d.dtype())?, grid.by(chunks), args)?;
    let args = AddParts {
        first: floats(first)?,
        second: second.map_or(Ok(Address::NULL), floats)?,
        parts: floats(&parts)?,
        chunks: chunks as u32,
        m: m as u32,
    };
    launch(d, Module::Matmul, "add_parts", grid, args)
}
