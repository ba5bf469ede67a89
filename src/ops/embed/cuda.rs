//! Embedding and rows on a GPU: launches of `embed.cu`. Which rows add up to which is sorted out on
//! the host, where the tokens are.

use crate::error::Result;
use crate::ops::gpu::{
    Address, Grid, Module, contiguous, floats, launch, uninitialised, upload, variant,
};
use candle_core::{DType, Tensor};

const THREADS: u32 = 256;
/// Of a block that moves one row.
const ROW_THREADS: u32 = 128;

#[derive(Clone, Copy)]
#[repr(C)]
struct Lookup {
    out: Address,
    wte: Address,
    wpe: Address,
    tokens: Address,
    d: u32,
    context: u32,
}

pub(super) fn forward(
    wte: &Tensor,
    wpe: Option<&Tensor>,
    tokens: &[u32],
    context: usize,
    offset: usize,
) -> Result<Tensor> {
    let d = wte.dim(1)?;
    let out = uninitialised((tokens.len(), d), DType::F32, wte)?;
    let ids = upload(tokens, wte)?;
    let positions = wpe.map(|wpe| wpe.narrow(0, offset, context)).transpose()?;
    let args = Lookup {
        out: contiguous(&out)?,
        wte: contiguous(wte)?,
        wpe: positions.as_ref().map_or(Ok(Address::NULL), floats)?,
        tokens: contiguous(&ids)?,
        d: d as u32,
        context: context as u32,
    };
    launch(
        wte,
        Module::Embed,
        &variant("embed_forward", wte.dtype())?,
        Grid::of(tokens.len(), THREADS),
        args,
    )?;
    Ok(out)
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Segments {
    out: Address,
    d: Address,
    ids: Address,
    starts: Address,
    rows: Address,
    width: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Positions {
    out: Address,
    d: Address,
    batch: u32,
    n: u32,
}

pub(super) fn backward(
    dwte: &Tensor,
    dwpe: Option<&Tensor>,
    d: &Tensor,
    tokens: &[u32],
    context: usize,
) -> Result<()> {
    let (n, width) = d.dims2()?;
    let Sorted { ids, starts, rows } = sorted(tokens);
    let (segments, ids, starts, rows) =
        (ids.len(), upload(&ids, d)?, upload(&starts, d)?, upload(&rows, d)?);
    let args = Segments {
        out: floats(dwte)?,
        d: floats(d)?,
        ids: contiguous(&ids)?,
        starts: contiguous(&starts)?,
        rows: contiguous(&rows)?,
        width: width as u32,
    };
    launch(d, Module::Embed, "embed_add_segments", Grid::of(segments, THREADS), args)?;
    let Some(dwpe) = dwpe else { return Ok(()) };
    let each = context * width;
    let args = Positions {
        out: floats(dwpe)?,
        d: floats(d)?,
        batch: (n / context) as u32,
        n: each as u32,
    };
    launch(
        d,
        Module::Embed,
        "embed_add_positions",
        Grid::of(each.div_ceil(THREADS as usize), THREADS),
        args,
    )
}

/// Positions by token.
struct Sorted {
    /// The tokens that occur, ascending.
    ids: Vec<u32>,
    /// Where each one's positions begin in `rows`, and where the last one's end.
    starts: Vec<u32>,
    /// Positions, by token and then ascending.
    rows: Vec<u32>,
}

fn sorted(tokens: &[u32]) -> Sorted {
    let mut rows: Vec<u32> = (0..tokens.len() as u32).collect();
    rows.sort_by_key(|&row| tokens[row as usize]); // stable
    let (mut ids, mut starts) = (Vec::new(), Vec::new());
    for (place, &row) in rows.iter().enumerate() {
        let token = tokens[row as usize];
        if ids.last() != Some(&token) {
            ids.push(token);
            starts.push(place as u32);
        }
    }
    starts.push(tokens.len() as u32);
    Sorted { ids, starts, rows }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct RowsLaunch {
    dst: Address,
    src: Address,
    rows: Address,
    width: u32,
}

pub(super) fn gather(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let width = x.dim(1)?;
    let out = uninitialised((rows.len(), width), x.dtype(), x)?;
    if rows.is_empty() {
        return Ok(out);
    }
    let index = upload(rows, x)?;
    let halves = x.dtype().size_in_bytes() / 2;
    let args = RowsLaunch {
        dst: contiguous(&out)?,
        src: contiguous(x)?,
        rows: contiguous(&index)?,
        width: (width * halves) as u32,
    };
    launch(x, Module::Embed, "gather", Grid::of(rows.len(), ROW_THREADS), args)?;
    Ok(out)
}

pub(super) fn scatter_add(dst: &Tensor, src: &Tensor, rows: &[u32]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let index = upload(rows, dst)?;
    let src = src.to_dtype(dst.dtype())?;
    let args = RowsLaunch {
        dst: contiguous(dst)?,
        src: contiguous(&src)?,
        rows: contiguous(&index)?,
        width: dst.dim(1)? as u32,
    };
    let kernel = variant("scatter_add", dst.dtype())?;
    launch(dst, Module::Embed, &kernel, Grid::of(rows.len(), ROW_THREADS), args)
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Norms {
    out: Address,
    x: Address,
    n: u32,
    d: u32,
}

/// Squared norms of the rows of `x` [N, D], f64 `[N]`, still on the device.
pub(super) fn row_squares(x: &Tensor) -> Result<Tensor> {
    let (n, d) = x.dims2()?;
    let out = uninitialised(n, DType::F64, x)?;
    let args = Norms { out: contiguous(&out)?, x: floats(x)?, n: n as u32, d: d as u32 };
    launch(
        x,
        Module::Embed,
        "row_squares",
        Grid::of((n * 32).div_ceil(THREADS as usize), THREADS),
        args,
    )?;
    Ok(out)
}
