//! Attention on a GPU: launches of `attention.cu`.

use super::{Attended, Backward, Gradients, Keys, Shape};
use crate::error::{Error, Result};
use crate::ops::gpu::{
    Address, Grid, Module, contiguous, floats, launch, uninitialised, upload, variant,
};
use candle_core::{DType, Tensor};

/// Widest head that the kernels take.
const MOST_DIM: usize = 128;

/// Whether there are kernels for heads of this width, this sharing and this scale.
pub(super) fn takes(qkv: &Tensor, shape: Shape) -> Result<bool> {
    let usual = shape.kv_heads == shape.heads && shape.scale.is_none() && shape.window.is_none();
    Ok(usual && head_dim(qkv, shape)? <= MOST_DIM)
}

fn head_dim(qkv: &Tensor, shape: Shape) -> Result<usize> {
    Ok(qkv.dim(1)? / 3 / shape.heads)
}

/// The kernels for any head, or those for tensor cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernels {
    Generic,
    Flash,
}

impl Kernels {
    /// Those for tensor cores take heads of 64 in bf16, 16 bytes at a time.
    fn of(qkv: &Tensor, others: &[&Tensor], dim: usize) -> Result<Self> {
        let mut flash = qkv.dtype() == DType::BF16 && dim == 64;
        for x in [&[qkv], others].concat() {
            flash &= contiguous(x)?.is_multiple_of(16);
        }
        Ok(if flash { Self::Flash } else { Self::Generic })
    }

    fn name(self, kernel: &str, dtype: DType) -> Result<String> {
        match self {
            Self::Generic => variant(kernel, dtype),
            Self::Flash => Ok(format!("{kernel}_flash")),
        }
    }
}

mod generic {
    pub(super) const THREADS: u32 = 256;
    /// Rows that a block owns.
    pub(super) const ROWS: usize = 32;
    const TILE: usize = 32;

    /// Bytes of shared memory: `own` matrices of a block's rows, `weights` of a tile, two tiles of
    /// rows.
    pub(super) fn shared(dim: usize, own: usize, weights: usize) -> usize {
        let dim = match dim {
            ..=32 => 32,
            33..=64 => 64,
            _ => 128,
        };
        4 * (own * ROWS * dim + weights * ROWS * TILE + 2 * TILE * (dim + 1))
    }
}

mod flash {
    pub(super) const THREADS: u32 = 128;
    /// Queries that a block of the forward owns.
    pub(super) const QUERIES: usize = 128;
    /// Rows that a block of the backward owns, and of a tile.
    pub(super) const TILE: usize = 64;
    const LINE: usize = 72;
    /// Bytes of shared memory: two stages of two tiles.
    pub(super) const STAGES: usize = 2 * 2 * TILE * LINE * 2;
    /// Two stages of log-sum-exp and delta of a tile's queries.
    pub(super) const STATISTICS: usize = 2 * TILE * 2 * 4;
}

#[derive(Clone, Copy)]
#[repr(C)]
struct ForwardLaunch {
    out: Address,
    lse: Address,
    qkv: Address,
    context: u32,
    heads: u32,
    dim: u32,
    tiles: u32,
    scale: f32,
}

pub(super) fn forward(qkv: &Tensor, shape: Shape) -> Result<Attended> {
    let (n, dim) = (qkv.dim(0)?, head_dim(qkv, shape)?);
    let out = uninitialised((n, shape.heads * dim), qkv.dtype(), qkv)?;
    let lse = uninitialised(n * shape.heads, DType::F32, qkv)?;
    let kernels = Kernels::of(qkv, &[&out], dim)?;
    let (rows, threads, shared) = match kernels {
        Kernels::Generic => (generic::ROWS, generic::THREADS, generic::shared(dim, 1, 1)),
        Kernels::Flash => (flash::QUERIES, flash::THREADS, flash::STAGES),
    };
    let tiles = shape.context.div_ceil(rows);
    let args = ForwardLaunch {
        out: contiguous(&out)?,
        lse: floats(&lse)?,
        qkv: contiguous(qkv)?,
        context: shape.context as u32,
        heads: shape.heads as u32,
        dim: dim as u32,
        tiles: tiles as u32,
        scale: scale(dim),
    };
    let grid = Grid::of(shape.batch * shape.heads * tiles, threads).shared(shared);
    launch(qkv, Module::Attention, &kernels.name("attention_forward", qkv.dtype())?, grid, args)?;
    Ok(Attended { out, lse })
}

fn scale(dim: usize) -> f32 {
    1.0 / (dim as f32).sqrt()
}

#[derive(Clone, Copy)]
#[repr(C)]
struct RowsAt {
    rows: Address,
    starts: Address,
}

/// Rows that take part, where the kernels find them.
struct List {
    /// Where each sequence's start, then the rows; None for every row.
    uploaded: Option<[Tensor; 2]>,
    count: usize,
    /// Most of a sequence.
    longest: usize,
}

impl List {
    fn every(shape: Shape) -> Self {
        Self { uploaded: None, count: shape.batch * shape.context, longest: shape.context }
    }

    fn of(rows: &[u32], shape: Shape, like: &Tensor) -> Result<Self> {
        let start = |b| rows.partition_point(|&r| (r as usize) < b * shape.context);
        let starts: Vec<usize> = (0..=shape.batch).map(start).collect();
        if starts[shape.batch] != rows.len() || !rows.is_sorted() {
            return Err(Error::internal("rows of a backward must ascend and lie in the batch"));
        }
        let longest = starts.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        let data: Vec<u32> = starts.iter().map(|&s| s as u32).chain(rows.iter().copied()).collect();
        let both = upload(&data, like)?;
        let apart = [both.narrow(0, 0, starts.len())?, both.narrow(0, starts.len(), rows.len())?];
        Ok(Self { uploaded: Some(apart), count: rows.len(), longest })
    }

    fn addresses(&self) -> Result<RowsAt> {
        match &self.uploaded {
            None => Ok(RowsAt { rows: Address::NULL, starts: Address::NULL }),
            Some([starts, rows]) => {
                Ok(RowsAt { rows: contiguous(rows)?, starts: contiguous(starts)? })
            }
        }
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct StatisticsLaunch {
    stats: Address,
    out: Address,
    dout: Address,
    lse: Address,
    rows: Address,
    count: u32,
    context: u32,
    heads: u32,
    dim: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct BackwardLaunch {
    dq: Address,
    dkv: Address,
    qkv: Address,
    dout: Address,
    stats: Address,
    queries: RowsAt,
    keys: RowsAt,
    count: u32,
    context: u32,
    heads: u32,
    dim: u32,
    tiles: u32,
    scale: f32,
}

/// What the backward needs of every query and head before it begins: [H, k, 2], the logarithm of
/// its sum of weights and the product of its output with the gradient of it.
fn statistics(
    qkv: &Tensor,
    attended: &Attended,
    dout: &Tensor,
    queries: &List,
    shape: Shape,
) -> Result<Tensor> {
    let (dtype, dim) = (qkv.dtype(), head_dim(qkv, shape)?);
    let stats = uninitialised((shape.heads, queries.count, 2), DType::F32, qkv)?;
    let args = StatisticsLaunch {
        stats: floats(&stats)?,
        out: contiguous(&attended.out)?,
        dout: contiguous(dout)?,
        lse: floats(&attended.lse)?,
        rows: queries.addresses()?.rows,
        count: queries.count as u32,
        context: shape.context as u32,
        heads: shape.heads as u32,
        dim: dim as u32,
    };
    const PAIRS: usize = 256 / 8;
    let grid = Grid::of((queries.count * shape.heads).div_ceil(PAIRS), 256);
    launch(qkv, Module::Attention, &variant("attention_statistics", dtype)?, grid, args)?;
    Ok(stats)
}

pub(super) fn backward(args: Backward<'_>) -> Result<Gradients> {
    let Backward { qkv, attended, dout, rows, keys, shape } = args;
    let dtype = qkv.dtype();
    if dout.dtype() != dtype || attended.out.dtype() != dtype {
        let (out, dout) = (attended.out.dtype(), dout.dtype());
        return Err(Error::internal(format!(
            "attention on {dtype:?} with an output of {out:?}, its gradient {dout:?}"
        )));
    }
    let (dim, every) = (head_dim(qkv, shape)?, List::every(shape));
    let width = shape.heads * dim;
    let given = match rows {
        Some([]) => {
            let dkv = if keys == Keys::All { every.count } else { 0 };
            let zeros = |rows, width| Tensor::zeros((rows, width), dtype, qkv.device());
            return Ok(Gradients { dq: zeros(0, width)?, dkv: zeros(dkv, 2 * width)? });
        }
        Some(rows) => Some(List::of(rows, shape, qkv)?),
        None => None,
    };
    let queries = given.as_ref().unwrap_or(&every);
    let with_keys = if keys == Keys::All { &every } else { queries };
    if dout.dims() != [queries.count, width] {
        return Err(Error::internal(format!(
            "gradient {:?} of attention over {} rows",
            dout.dims(),
            queries.count
        )));
    }

    let stats = statistics(qkv, attended, dout, queries, shape)?;
    let dq = uninitialised((queries.count, width), dtype, qkv)?;
    let dkv = uninitialised((with_keys.count, 2 * width), dtype, qkv)?;
    let kernels = Kernels::of(qkv, &[dout, &dq, &dkv], dim)?;
    let (rows, threads, of_queries, of_keys) = match kernels {
        Kernels::Generic => (
            generic::ROWS,
            generic::THREADS,
            generic::shared(dim, 2, 1),
            generic::shared(dim, 2, 2),
        ),
        Kernels::Flash => {
            (flash::TILE, flash::THREADS, flash::STAGES, flash::STAGES + flash::STATISTICS)
        }
    };
    for (kernel, owned, shared) in
        [("attention_queries", queries, of_queries), ("attention_keys", with_keys, of_keys)]
    {
        let tiles = owned.longest.div_ceil(rows);
        let args = BackwardLaunch {
            dq: contiguous(&dq)?,
            dkv: contiguous(&dkv)?,
            qkv: contiguous(qkv)?,
            dout: contiguous(dout)?,
            stats: floats(&stats)?,
            queries: queries.addresses()?,
            keys: with_keys.addresses()?,
            count: queries.count as u32,
            context: shape.context as u32,
            heads: shape.heads as u32,
            dim: dim as u32,
            tiles: tiles as u32,
            scale: scale(dim),
        };
        let grid = Grid::of(shape.batch * shape.heads * tiles, threads).shared(shared);
        launch(qkv, Module::Attention, &kernels.name(kernel, dtype)?, grid, args)?;
    }
    Ok(Gradients { dq, dkv })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{emulated, random};

    #[test]
    fn heads_of_64_in_bf16_run_on_tensor_cores() {
        let _ = emulated(|| {
            for (dim, dtype, want) in [
                (64, DType::BF16, Kernels::Flash),
                (32, DType::BF16, Kernels::Generic),
                (64, DType::F32, Kernels::Generic),
            ] {
                let qkv = random((2, 3 * dim), 1).to_dtype(dtype).unwrap();
                assert_eq!(Kernels::of(&qkv, &[&qkv], dim).unwrap(), want);
            }
            vec![]
        });
    }
}
