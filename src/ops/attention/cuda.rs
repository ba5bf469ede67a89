//! Attention on a GPU: launches of `attention.cu`.

use super::{Attended, Backward, Gradients, Keys, Shape};
use crate::error::{Error, Result};
use crate::ops::gpu::{
    Address, Grid, Module, contiguous, floats, launch, most_shared, uninitialised, upload, variant,
};
use candle_core::{DType, Tensor};

/// Widest head that the kernels take.
const MOST_DIM: usize = 256;

/// Whether there are kernels for heads of this width, and the chip has the shared memory that wide
/// ones need (137 KiB of a block; an A100 and later data centre chips have it).
pub(super) fn takes(qkv: &Tensor, shape: Shape) -> Result<bool> {
    let dim = head_dim(qkv, shape)?;
    Ok(dim <= generic::NARROW || dim <= MOST_DIM && generic::shared(dim, 2, 2) <= most_shared(qkv)?)
}

fn head_dim(qkv: &Tensor, shape: Shape) -> Result<usize> {
    Ok(shape.head_dim(qkv.dim(1)?))
}

/// The kernels for any head, those of them for wide ones, or those for tensor cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernels {
    Generic,
    Wide,
    Flash,
}

impl Kernels {
    /// Those for tensor cores take heads of 64 in bf16, 16 bytes at a time.
    fn of(qkv: &Tensor, others: &[&Tensor], dim: usize) -> Result<Self> {
        let mut flash = qkv.dtype() == DType::BF16 && dim == 64;
        for x in [&[qkv], others].concat() {
            flash &= contiguous(x)?.is_multiple_of(16);
        }
        Ok(match flash {
            true => Self::Flash,
            false if dim > generic::NARROW => Self::Wide,
            false => Self::Generic,
        })
    }

    fn name(self, kernel: &str, dtype: DType) -> Result<String> {
        match self {
            Self::Generic => variant(kernel, dtype),
            Self::Wide => variant(&format!("{kernel}_wide"), dtype),
            Self::Flash => Ok(format!("{kernel}_flash")),
        }
    }
}

mod generic {
    pub(super) const THREADS: u32 = 256;
    /// Rows that a block owns.
    pub(super) const ROWS: usize = 32;
    const TILE: usize = 32;
    /// Widest head of the kernels for any but wide ones.
    pub(super) const NARROW: usize = 128;

    /// Bytes of shared memory: `own` matrices of a block's rows, `weights` of a tile, two tiles of
    /// rows.
    pub(super) fn shared(dim: usize, own: usize, weights: usize) -> usize {
        let dim = match dim {
            ..=32 => 32,
            33..=64 => 64,
            65..=NARROW => 128,
            _ => 256,
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
    kv_heads: u32,
    dim: u32,
    tiles: u32,
    window: u32,
    scale: f32,
}

/// Positions that a query sees, its own the last of them.
fn window(shape: Shape) -> u32 {
    shape.window.unwrap_or(shape.context).min(shape.context) as u32
}

pub(super) fn forward(qkv: &Tensor, shape: Shape) -> Result<Attended> {
    let (n, dim) = (qkv.dim(0)?, head_dim(qkv, shape)?);
    let out = uninitialised((n, shape.heads * dim), qkv.dtype(), qkv)?;
    let lse = uninitialised(n * shape.heads, DType::F32, qkv)?;
    let kernels = Kernels::of(qkv, &[&out], dim)?;
    let (rows, threads, shared) = match kernels {
        Kernels::Generic | Kernels::Wide => {
            (generic::ROWS, generic::THREADS, generic::shared(dim, 1, 1))
        }
        Kernels::Flash => (flash::QUERIES, flash::THREADS, flash::STAGES),
    };
    let tiles = shape.context.div_ceil(rows);
    let args = ForwardLaunch {
        out: contiguous(&out)?,
        lse: floats(&lse)?,
        qkv: contiguous(qkv)?,
        context: shape.context as u32,
        heads: shape.heads as u32,
        kv_heads: shape.kv_heads as u32,
        dim: dim as u32,
        tiles: tiles as u32,
        window: window(shape),
        scale: shape.factor(dim),
    };
    let grid = Grid::of(shape.batch * shape.heads * tiles, threads).shared(shared);
    launch(qkv, Module::Attention, &kernels.name("attention_forward", qkv.dtype())?, grid, args)?;
    Ok(Attended { out, lse })
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
    kv_heads: u32,
    dim: u32,
    tiles: u32,
    window: u32,
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
    let (width, kv_width) = (shape.heads * dim, shape.kv_heads * dim);
    let given = match rows {
        Some([]) => {
            let dkv = if keys == Keys::All { every.count } else { 0 };
            let zeros = |rows, width| Tensor::zeros((rows, width), dtype, qkv.device());
            return Ok(Gradients { dq: zeros(0, width)?, dkv: zeros(dkv, 2 * kv_width)? });
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
    let dkv = uninitialised((with_keys.count, 2 * kv_width), dtype, qkv)?;
    let kernels = Kernels::of(qkv, &[dout, &dq, &dkv], dim)?;
    let (rows, threads, of_queries, of_keys) = match kernels {
        Kernels::Generic | Kernels::Wide => (
            generic::ROWS,
            generic::THREADS,
            generic::shared(dim, 2, 1),
            generic::shared(dim, 2, 2),
        ),
        Kernels::Flash => {
            (flash::TILE, flash::THREADS, flash::STAGES, flash::STAGES + flash::STATISTICS)
        }
    };
    for (kernel, owned, heads, shared) in [
        ("attention_queries", queries, shape.heads, of_queries),
        ("attention_keys", with_keys, shape.kv_heads, of_keys),
    ] {
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
            kv_heads: shape.kv_heads as u32,
            dim: dim as u32,
            tiles: tiles as u32,
            window: window(shape),
            scale: shape.factor(dim),
        };
        let grid = Grid::of(shape.batch * heads * tiles, threads).shared(shared);
        launch(qkv, Module::Attention, &kernels.name(kernel, dtype)?, grid, args)?;
    }
    Ok(Gradients { dq, dkv })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::split;
    use crate::ops::testing::{assert_close, autograd, emulated, random};
    use candle_core::D;

    /// The formula with a mask of two sides: [B T, Q].
    fn reference(qkv: &Tensor, shape: Shape, window: usize) -> Result<Tensor> {
        let (q, k, v) = split(qkv, shape)?;
        let (t, (b, h, _, d)) = (shape.context, q.dims4()?);
        let seen = |i: usize| i % t <= i / t && i / t - i % t < window;
        let mask = (0..t * t).map(|i| if seen(i) { 0.0 } else { f64::NEG_INFINITY }).collect();
        let mask: Tensor = Tensor::from_vec::<_, f64>(mask, (t, t), qkv.device())?;
        let scores = (q.matmul(&k.t()?.contiguous()?)? * f64::from(shape.factor(d)))?;
        let e = scores.broadcast_add(&mask)?.exp()?;
        let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
        Ok(p.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((b * t, h * d))?)
    }

    #[test]
    fn a_query_sees_no_further_than_its_window() {
        // More than a tile of both sets of kernels, for windows within a tile and over several.
        for (context, dim, dtype) in
            [(150, 8, DType::F32), (70, 140, DType::F32), (300, 64, DType::BF16)]
        {
            let shape = Shape { kv_heads: 1, ..Shape::new(2, context, 2) };
            let (n, width) = (2 * context, 2 * dim);
            let round = |x: Tensor| x.to_dtype(dtype).unwrap();
            let (qkv, dout) = (round(random((n, 2 * width), 1)), round(random((n, width), 2)));
            let rows: Vec<u32> = (0..n as u32).filter(|i| i % 3 == 0 && i % 100 < 60).collect();
            let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
            let index = Tensor::new(rows.as_slice(), qkv.device()).unwrap();
            let picked = dout.index_select(&index, 0).unwrap();
            let sparse = wide(&dout).zeros_like().unwrap();
            let sparse = sparse.index_add(&index, &wide(&picked), 0).unwrap();
            for window in [1, 5, 64, 70, context, usize::MAX] {
                let shape = Shape { window: Some(window), ..shape };
                let formula = |v: &[Tensor]| reference(&v[0], shape, window);
                let (out, all) = autograd(&[&wide(&qkv)], &wide(&dout), formula);
                let (_, some) = autograd(&[&wide(&qkv)], &sparse, formula);
                let pick = |x: &Tensor| x.index_select(&index, 0).unwrap();
                let part =
                    |x: &Tensor, from| x.narrow(1, from, width).unwrap().contiguous().unwrap();
                let want = [
                    out,
                    part(&all[0], 0),
                    part(&all[0], width),
                    pick(&part(&some[0], 0)),
                    part(&some[0], width),
                    pick(&part(&some[0], width)),
                ];
                let got = emulated(|| {
                    let attended = forward(&qkv, shape).unwrap();
                    let back = |dout, rows, keys| {
                        let args =
                            Backward { qkv: &qkv, attended: &attended, dout, rows, keys, shape };
                        backward(args).unwrap()
                    };
                    let all = back(&dout, None, Keys::All);
                    let some = back(&picked, Some(&rows), Keys::All);
                    let sparse = back(&picked, Some(&rows), Keys::OfRows);
                    vec![attended.out, all.dq, all.dkv, some.dq, some.dkv, sparse.dkv]
                });
                let tolerance = if dtype == DType::F32 { 1e-5 } else { 1e-2 };
                for (got, want) in got.iter().flatten().zip(&want) {
                    assert_close(got, want, tolerance);
                }
            }
        }
    }

    #[test]
    fn heads_of_64_in_bf16_run_on_tensor_cores() {
        let _ = emulated(|| {
            for (dim, dtype, want) in [
                (64, DType::BF16, Kernels::Flash),
                (32, DType::BF16, Kernels::Generic),
                (128, DType::BF16, Kernels::Generic),
                (129, DType::BF16, Kernels::Wide),
                (64, DType::F32, Kernels::Generic),
            ] {
                let qkv = random((2, 3 * dim), 1).to_dtype(dtype).unwrap();
                assert_eq!(Kernels::of(&qkv, &[&qkv], dim).unwrap(), want);
            }
            vec![]
        });
    }
}
