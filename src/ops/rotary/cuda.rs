//! Rotary positions on a GPU: launches of `rotary.cu`.

use super::{Heads, Rows, Table};
use crate::error::{Error, Result};
use crate::ops::gpu::{Address, Grid, Module, contiguous, floats, launch, upload, variant};
use candle_core::Tensor;

const THREADS: u32 = 256;

#[derive(Clone, Copy)]
#[repr(C)]
struct Launch {
    x: Address,
    cos: Address,
    sin: Address,
    rows: Address,
    n: u32,
    width: u32,
    column: u32,
    heads: u32,
    dim: u32,
    half: u32,
    context: u32,
    shift: i32,
    sign: f32,
}

/// Turns the first `2 half` columns of each head; back with a sign of -1.
pub(super) fn rotate(x: &Tensor, table: &Table, heads: Heads<'_>, sign: f32) -> Result<()> {
    let Heads { column, heads, dim, rows } = heads;
    let ((n, width), half) = (x.dims2()?, table.half);
    if n * heads * half == 0 {
        return Ok(());
    }
    let (listed, context, first) = match rows {
        Rows::Sequences(context) => (None, context, 0),
        Rows::Of(rows, context) => (Some(rows), context, 0),
        Rows::At(position) => (None, 1, position),
    };
    // What the kernel reads and writes must be there.
    let positions = table.cos.len() / half;
    let inside = 2 * half <= dim
        && column + heads * dim <= width
        && table.first <= first
        && first + context <= table.first + positions
        && listed.is_none_or(|rows| rows.len() == n);
    if !inside {
        return Err(Error::internal(format!(
            "{heads} heads of {dim} from column {column} on, of {x:?} at positions {first} to {}, by {positions} angles of \
             {half} from position {} on",
            first + context,
            table.first
        )));
    }
    let angles = table.on(x)?;
    let index = listed.map(|rows| upload(rows, x)).transpose()?;
    let start = contiguous(x)?;
    let fours = [half, dim, column, width].iter().all(|size| size.is_multiple_of(4))
        && start.is_multiple_of(4 * x.dtype().size_in_bytes() as u64);
    let args = Launch {
        x: start,
        cos: floats(&angles.narrow(0, 0, 1)?)?,
        sin: floats(&angles.narrow(0, 1, 1)?)?,
        rows: index.as_ref().map_or(Ok(Address::NULL), contiguous)?,
        n: n as u32,
        width: width as u32,
        column: column as u32,
        heads: heads as u32,
        dim: dim as u32,
        half: half as u32,
        context: context as u32,
        shift: first as i32 - table.first as i32,
        sign,
    };
    let (kernel, each) = if fours { ("rotary_fours", 4) } else { ("rotary", 1) };
    let grid = Grid::of((n * heads * half / each).div_ceil(THREADS as usize), THREADS);
    launch(x, Module::Rotary, &variant(kernel, x.dtype())?, grid, args)
}
