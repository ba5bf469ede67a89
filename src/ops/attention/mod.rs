//! Causal multi-head attention (Vaswani et al., arXiv 1706.03762) without a [T, T] matrix kept in
//! memory.
//!
//! Queries are taken in blocks; a block's scores against its visible keys live in a small scratch,
//! the masked half is never computed, and the backward forms the probabilities again from the kept
//! log-sum-exp (FlashAttention's recomputation, Dao et al., arXiv 2205.14135). Of one head of one
//! sequence, with d = D / H:
//!
//! ```text
//! forward    S = Q Kᵀ / sqrt(d)    P = softmax(S) = exp(S - lse)    O = P V              P [T, T], lse [T], O [T, d]
//! backward   delta = rowsum(dO * O)                                                      [k]
//!            dP = dO Vᵀ            dS = P * (dP - delta) / sqrt(d)                       [k, T]
//!            dQ = dS K             dK = dSᵀ Q               dV = Pᵀ dO                   [k, d], [T, d], [T, d]
//! ```
//!
//! The backward can be given the k rows (positions) whose output carries gradient. The other
//! queries have dO = 0, so their rows of dP and dS are not formed. [`Keys`] says which columns get
//! a dK and a dV:
//!
//! ```text
//!               keys 0 ..... T-1          x  a query meets a key     .  masked
//! query 2     | x x x . . . . . |
//! query 5     | x x x x x x . . |         rows = [2, 5]: P and dS are [2, T]
//!               | | | | | |
//! Keys::All     * * * * * * 0 0           dK and dV of every position [T, d]: exact
//! Keys::OfRows      *     *               of positions 2 and 5 alone [2, d]: other keys and values count as constants
//! ```

mod cpu;
mod cuda;

use super::Backend;
use super::embed::gather;
use crate::error::Result;
use candle_core::{D, Tensor};

/// Batch, context and heads of one call: `n = batch * context` rows of width `heads * head_dim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Sequences (B).
    pub batch: usize,
    /// Positions per sequence (T).
    pub context: usize,
    /// Attention heads (H).
    pub heads: usize,
}

/// Output and what the backward needs.
#[derive(Debug, Clone)]
pub struct Attended {
    /// Concatenated heads, [B T, D].
    pub out: Tensor,
    /// Log-sum-exp of each query's scores, [B, H, T] flattened.
    pub lse: Tensor,
}

/// Forward for `qkv` [B T, 3 D], the output of the fused projection (q, k, v side by side).
pub fn forward(qkv: &Tensor, shape: Shape) -> Result<Attended> {
    match Backend::of(qkv) {
        Backend::Cpu => return cpu::forward(qkv, shape),
        Backend::Gpu if cuda::takes(qkv, shape)? => return cuda::forward(qkv, shape),
        Backend::Gpu | Backend::Reference => {}
    }
    let scores = scores(qkv, shape)?;
    let max = scores.max_keepdim(D::Minus1)?;
    let lse = (scores.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()? + max)?;
    Ok(Attended { out: reference(qkv, shape)?, lse: lse.flatten_all()? })
}

/// Whose keys and values carry gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// Every position's.
    All,
    /// Those of the rows whose output carries gradient; the others count as constants.
    OfRows,
}

/// Gradients with respect to q (of the given rows) and to k and v (of every row, or of the same
/// rows).
#[derive(Debug)]
pub struct Gradients {
    /// [k, D] when rows were given, else [B T, D].
    pub dq: Tensor,
    /// dk beside dv, [B T, 2 D], or [k, 2 D] with [`Keys::OfRows`] and rows.
    pub dkv: Tensor,
}

/// What the backward reads.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// The forward's input [B T, 3 D].
    pub qkv: &'a Tensor,
    /// The forward's result.
    pub attended: &'a Attended,
    /// Upstream gradient, that of the output: [k, D] of the given rows, or [B T, D].
    pub dout: &'a Tensor,
    /// The k ascending rows (positions) whose output carries gradient; None: all.
    pub rows: Option<&'a [u32]>,
    /// Whose keys and values carry gradient.
    pub keys: Keys,
    /// Batch, context and heads.
    pub shape: Shape,
}

/// Gradients with respect to queries, keys and values.
pub fn backward(args: Backward<'_>) -> Result<Gradients> {
    let Backward { qkv, attended, dout, rows, keys, shape } = args;
    match Backend::of(qkv) {
        Backend::Cpu => return cpu::backward(args),
        Backend::Gpu if cuda::takes(qkv, shape)? => return cuda::backward(args),
        Backend::Gpu | Backend::Reference => {}
    }
    let d = qkv.dim(1)? / 3;
    let dout = match rows {
        None => dout.clone(),
        Some(rows) => {
            let index = Tensor::new(rows, qkv.device())?;
            Tensor::zeros((qkv.dim(0)?, d), qkv.dtype(), qkv.device())?
                .index_add(&index, dout, 0)?
        }
    };
    let (q, k, v) = split(qkv, shape)?; // [B, H, T, D / H] each
    let lse = attended.lse.reshape((shape.batch, shape.heads, shape.context, 1))?;
    let p = scores(qkv, shape)?.broadcast_sub(&lse)?.exp()?; // [B, H, T, T]
    let dout = heads_apart(&dout, shape)?; // [B, H, T, D / H]
    let delta = (&dout * heads_apart(&attended.out, shape)?)?.sum_keepdim(D::Minus1)?; // [B, H, T, 1]
    let ds = (&p * dout.matmul(&v.t()?.contiguous()?)?.broadcast_sub(&delta)?)?; // [B, H, T, T]
    let ds = (ds * scale(qkv, shape))?;
    let dq = heads_together(&ds.matmul(&k)?, shape)?; // [B T, D]
    let dk = heads_together(&ds.t()?.contiguous()?.matmul(&q)?, shape)?; // [B T, D]
    let dv = heads_together(&p.t()?.contiguous()?.matmul(&dout)?, shape)?; // [B T, D]
    let dkv = Tensor::cat(&[dk, dv], 1)?; // [B T, 2 D]
    Ok(match (rows, keys) {
        (None, _) => Gradients { dq, dkv },
        (Some(rows), Keys::All) => Gradients { dq: gather(&dq, rows)?, dkv },
        (Some(rows), Keys::OfRows) => {
            Gradients { dq: gather(&dq, rows)?, dkv: gather(&dkv, rows)? }
        }
    })
}

/// The formula in candle ops, with the whole [T, T] matrix, that autograd can differentiate.
pub fn reference(qkv: &Tensor, shape: Shape) -> Result<Tensor> {
    let (_, _, v) = split(qkv, shape)?;
    let scores = scores(qkv, shape)?;
    let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
    heads_together(&p.matmul(&v)?, shape)
}

fn scale(qkv: &Tensor, shape: Shape) -> f64 {
    let head_dim = qkv.dims()[1] / 3 / shape.heads;
    1.0 / (head_dim as f64).sqrt()
}

fn scores(qkv: &Tensor, shape: Shape) -> Result<Tensor> {
    let (q, k, _) = split(qkv, shape)?;
    let t = shape.context;
    let mask: Vec<f32> =
        (0..t * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, (t, t), qkv.device())?.to_dtype(qkv.dtype())?;
    Ok((q.matmul(&k.t()?.contiguous()?)? * scale(qkv, shape))?.broadcast_add(&mask)?)
}

fn split(qkv: &Tensor, shape: Shape) -> Result<(Tensor, Tensor, Tensor)> {
    let d = qkv.dim(1)? / 3;
    let part = |i| heads_apart(&qkv.narrow(1, i * d, d)?, shape);
    Ok((part(0)?, part(1)?, part(2)?))
}

/// [B T, D] -> [B, H, T, D / H]
fn heads_apart(x: &Tensor, s: Shape) -> Result<Tensor> {
    Ok(x.contiguous()?.reshape((s.batch, s.context, s.heads, ()))?.transpose(1, 2)?.contiguous()?)
}

/// [B, H, T, D / H] -> [B T, D]
fn heads_together(x: &Tensor, s: Shape) -> Result<Tensor> {
    Ok(x.transpose(1, 2)?.contiguous()?.reshape((s.batch * s.context, ()))?)
}

/// Output of one query position against `keys` [P, 2 D] (k beside v, oldest first): attention with
/// a key-value cache. `q` is [1, D]; every key is visible.
pub fn step(q: &Tensor, keys: &Tensor, heads: usize) -> Result<Tensor> {
    let (p, d) = (keys.dim(0)?, q.dim(1)?);
    if Backend::of(q) == Backend::Cpu {
        return cpu::step(q, keys, heads);
    }
    let apart = |x: Tensor, rows: usize| -> Result<Tensor> {
        Ok(x.contiguous()?.reshape((rows, heads, d / heads))?.transpose(0, 1)?.contiguous()?)
    };
    let (q, k, v) =
        (apart(q.clone(), 1)?, apart(keys.narrow(1, 0, d)?, p)?, apart(keys.narrow(1, d, d)?, p)?);
    let scores = (q.matmul(&k.t()?.contiguous()?)? * (1.0 / ((d / heads) as f64).sqrt()))?;
    let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
    Ok(p.matmul(&v)?.reshape((1, d))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::embed::scatter_add;
    use crate::ops::matmul::Precision;
    use crate::ops::testing::{assert_close, autograd, check_finite_differences, emulated, random};
    use candle_core::DType;

    const SHAPES: [(Shape, usize); 4] = [
        (Shape { batch: 1, context: 1, heads: 1 }, 4),
        (Shape { batch: 2, context: 13, heads: 3 }, 24),
        (Shape { batch: 3, context: 70, heads: 2 }, 16),
        (Shape { batch: 1, context: 150, heads: 4 }, 32),
    ];

    fn back(
        qkv: &Tensor,
        attended: &Attended,
        dout: &Tensor,
        rows: Option<&[u32]>,
        keys: Keys,
        shape: Shape,
    ) -> Gradients {
        backward(Backward { qkv, attended, dout, rows, keys, shape }).unwrap()
    }

    fn together(g: &Gradients) -> Tensor {
        Tensor::cat(&[&g.dq, &g.dkv], 1).unwrap()
    }

    #[test]
    fn forward_and_backward_match_autograd_of_the_reference() {
        for (shape, d) in SHAPES {
            let n = shape.batch * shape.context;
            let (qkv, dout) = (random((n, 3 * d), 1), random((n, d), 2));
            let (out, grads) = autograd(&[&qkv], &dout, |v| reference(&v[0], shape));
            let attended = forward(&qkv, shape).unwrap();
            assert_close(&attended.out, &out, 2e-6);
            let got = back(&qkv, &attended, &dout, None, Keys::All, shape);
            assert_close(&together(&got), &grads[0], 5e-6);
        }
    }

    #[test]
    fn rows_give_what_zero_gradients_elsewhere_give() {
        for (shape, d) in SHAPES {
            let n = shape.batch * shape.context;
            let qkv = random((n, 3 * d), 1);
            let attended = forward(&qkv, shape).unwrap();
            let every: Vec<u32> = (0..n as u32).collect();
            let third: Vec<u32> = (0..n as u32).filter(|i| i % 3 == 1).collect();
            let last_sequence: Vec<u32> = ((n - shape.context) as u32..n as u32).collect();
            for rows in [vec![], vec![0], vec![n as u32 - 1], third, every, last_sequence] {
                let dout = random((rows.len(), d), 2);
                let dense = Tensor::zeros((n, d), DType::F32, qkv.device()).unwrap();
                scatter_add(&dense, &dout, &rows).unwrap();
                let (_, grads) = autograd(&[&qkv], &dense, |v| reference(&v[0], shape));
                let got = back(&qkv, &attended, &dout, Some(&rows), Keys::All, shape);
                assert_close(
                    &got.dq,
                    &gather(
                        &grads[0]
                            .narrow(1, 0, d)
                            .unwrap()
                            .to_dtype(DType::F32)
                            .unwrap()
                            .contiguous()
                            .unwrap(),
                        &rows,
                    )
                    .unwrap(),
                    5e-6,
                );
                assert_close(&got.dkv, &grads[0].narrow(1, d, 2 * d).unwrap(), 5e-6);
                // The gradient of a kept key does not depend on whether the others have one.
                let sparse = back(&qkv, &attended, &dout, Some(&rows), Keys::OfRows, shape);
                assert_eq!(sparse.dq.to_vec2::<f32>().unwrap(), got.dq.to_vec2::<f32>().unwrap());
                assert_close(&sparse.dkv, &gather(&got.dkv, &rows).unwrap(), 5e-6);
            }
        }
    }

    #[test]
    fn the_path_off_the_cpu_gives_the_same() {
        let (shape, d) = SHAPES[1];
        let n = shape.batch * shape.context;
        let (qkv, dout) = (random((n, 3 * d), 1), random((5, d), 2));
        let rows = [0, 3, 14, 20, 25];
        let fast = forward(&qkv, shape).unwrap();
        let fast_grads = back(&qkv, &fast, &dout, Some(&rows), Keys::All, shape);
        let (qkv, dout) = (qkv.to_dtype(DType::F64).unwrap(), dout.to_dtype(DType::F64).unwrap());
        let slow = forward(&qkv, shape).unwrap();
        let slow_grads = back(&qkv, &slow, &dout, Some(&rows), Keys::All, shape);
        assert_close(&fast.lse, &slow.lse, 2e-6);
        assert_close(&fast_grads.dq, &slow_grads.dq, 5e-6);
        assert_close(&fast_grads.dkv, &slow_grads.dkv, 5e-6);
        let slow_sparse = back(&qkv, &slow, &dout, Some(&rows), Keys::OfRows, shape);
        assert_close(&slow_sparse.dkv, &gather(&slow_grads.dkv, &rows).unwrap(), 1e-14);
    }

    #[test]
    fn the_reference_is_right_by_finite_differences() {
        let shape = Shape { batch: 2, context: 3, heads: 2 };
        check_finite_differences(&[&random((6, 12), 1)], |v| reference(&v[0], shape));
    }

    #[test]
    fn one_step_equals_the_last_row() {
        let shape = Shape { batch: 1, context: 9, heads: 2 };
        let qkv = random((9, 24), 1);
        let all = forward(&qkv, shape).unwrap().out;
        let last = step(
            &qkv.narrow(0, 8, 1).unwrap().narrow(1, 0, 8).unwrap(),
            &qkv.narrow(1, 8, 16).unwrap(),
            2,
        )
        .unwrap();
        assert_close(&last, &all.narrow(0, 8, 1).unwrap(), 2e-6);
    }

    #[test]
    fn thread_count_does_not_change_a_bit() {
        let (shape, d) = SHAPES[2];
        let n = shape.batch * shape.context;
        let (qkv, dout) = (random((n, 3 * d), 1), random((n, d), 2));
        let run = |threads| {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
                let attended = forward(&qkv, shape).unwrap();
                let grads = back(&qkv, &attended, &dout, None, Keys::All, shape);
                together(&grads).to_vec2::<f32>().unwrap()
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(5));
    }

    /// The kernels for a GPU against the path of the CPU, in both number formats.
    fn check_kernels(shape: Shape, d: usize, rows: Option<&[u32]>, keys: Keys) {
        let n = shape.batch * shape.context;
        let (qkv, dout) = (random((n, 3 * d), 1), random((rows.map_or(n, <[u32]>::len), d), 2));
        let run = |qkv: &Tensor, dout: &Tensor| {
            let attended = forward(qkv, shape).unwrap();
            let grads = back(qkv, &attended, dout, rows, keys, shape);
            vec![attended.out, attended.lse, grads.dq, grads.dkv]
        };
        // f32: sums in another order. bf16: inputs are the same numbers on both sides, while
        // probabilities, gradients of scores, the output that delta reads and results are rounded
        // by 2^-9 of themselves; a sum of many such errors is still near that of its largest term.
        for (precision, tolerance) in [(Precision::F32, 5e-6), (Precision::Mixed, 8e-3)] {
            let round = |x: &Tensor| x.to_dtype(precision.activations()).unwrap();
            let exact = |x: &Tensor| round(x).to_dtype(DType::F32).unwrap();
            let want = run(&exact(&qkv), &exact(&dout));
            for (got, want) in
                emulated(|| run(&round(&qkv), &round(&dout))).iter().flatten().zip(&want)
            {
                assert_close(got, want, tolerance);
            }
        }
    }

    #[test]
    fn a_gpus_kernels_give_the_same() {
        for (batch, context, heads, dim) in [
            (1, 1, 1, 4),
            (2, 13, 3, 4),
            (1, 70, 2, 16),
            (1, 33, 1, 100),
            (2, 35, 2, 5),
            (2, 3, 2, 64),
            (1, 150, 1, 64),
        ] {
            check_kernels(Shape { batch, context, heads }, heads * dim, None, Keys::All);
        }
    }

    #[test]
    fn a_gpus_kernels_give_the_same_for_rows() {
        for (batch, context, heads, dim) in [(3, 40, 2, 16), (3, 70, 1, 64)] {
            let shape = Shape { batch, context, heads };
            let n = (batch * context) as u32;
            let t = context as u32;
            let skips_a_sequence: Vec<u32> = (0..n).filter(|i| i / t != 1 && i % 3 != 0).collect();
            let dense: Vec<u32> = (0..n).collect();
            for rows in [vec![], vec![t + 5], skips_a_sequence, dense] {
                for keys in [Keys::All, Keys::OfRows] {
                    check_kernels(shape, heads * dim, Some(&rows), keys);
                }
            }
        }
    }

    #[test]
    fn a_gpus_kernels_skip_what_no_listed_query_sees() {
        // More than a tile of queries over several tiles of keys, with a gap between; the sixteenth
        // sees one key of a tile.
        let shape = Shape { batch: 1, context: 260, heads: 1 };
        let rows: Vec<u32> = (49..80).chain((140..256).filter(|i| i % 2 == 0)).collect();
        for keys in [Keys::All, Keys::OfRows] {
            check_kernels(shape, 64, Some(&rows), keys);
        }
    }
}
