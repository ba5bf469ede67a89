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
//!
//! Several heads of queries may share one of keys and values (grouped-query attention, Ainslie et
//! al., arXiv 2305.13245): H heads of queries and G of keys, so that queries are Q = H d wide, keys
//! and values K = G d each; dK and dV are sums over the heads that share them.
//!
//! Within a window of w positions (Mistral, arXiv 2310.06825) a query sees its own and the w - 1
//! before it; what is further back is masked as what comes later is.

mod cpu;
mod cuda;

use super::Backend;
use super::embed::gather;
use crate::error::Result;
use candle_core::{D, DType, Tensor};

/// Batch, context and heads of one call: `n = batch * context` rows of queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Sequences (B).
    pub batch: usize,
    /// Positions per sequence (T).
    pub context: usize,
    /// Heads of queries (H).
    pub heads: usize,
    /// Heads of keys and values (G), of which H is a multiple.
    pub kv_heads: usize,
    /// What scores are multiplied by; None: 1 / sqrt(d).
    pub scale: Option<f32>,
    /// How many positions a query sees, its own among them; None: all up to its own.
    pub window: Option<usize>,
}

impl Shape {
    /// Every head of queries has one of keys and values.
    pub const fn new(batch: usize, context: usize, heads: usize) -> Self {
        Self { batch, context, heads, kv_heads: heads, scale: None, window: None }
    }

    /// Width d of a head of rows that are `width` wide.
    fn head_dim(self, width: usize) -> usize {
        width / (self.heads + 2 * self.kv_heads)
    }

    /// Widths Q of queries and K of keys of rows that are `width` wide.
    fn widths(self, width: usize) -> (usize, usize) {
        let dim = self.head_dim(width);
        (self.heads * dim, self.kv_heads * dim)
    }

    /// The first position that a query at `position` sees.
    fn first_seen(self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn factor(self, dim: usize) -> f32 {
        self.scale.unwrap_or_else(|| 1.0 / (dim as f32).sqrt())
    }
}

/// Output and what the backward needs.
#[derive(Debug, Clone)]
pub struct Attended {
    /// Concatenated heads, [B T, Q].
    pub out: Tensor,
    /// Log-sum-exp of each query's scores, [B, H, T] flattened.
    pub lse: Tensor,
}

/// Forward for `qkv` [B T, Q + 2 K], the output of the fused projection (q, k, v side by side).
pub fn forward(qkv: &Tensor, shape: Shape) -> Result<Attended> {
    match Backend::of(qkv) {
        Backend::Cpu => return cpu::forward(qkv, shape),
        Backend::Gpu if cuda::takes(qkv, shape)? => return cuda::forward(qkv, shape),
        Backend::Gpu | Backend::Reference => {}
    }
    if qkv.dtype() == DType::BF16 {
        // What the kernels do not take: the formula in f32, as they work.
        let Attended { out, lse } = slowly(&qkv.to_dtype(DType::F32)?, shape)?;
        return Ok(Attended { out: out.to_dtype(DType::BF16)?, lse });
    }
    slowly(qkv, shape)
}

fn slowly(qkv: &Tensor, shape: Shape) -> Result<Attended> {
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
    /// [k, Q] when rows were given, else [B T, Q].
    pub dq: Tensor,
    /// dk beside dv, [B T, 2 K], or [k, 2 K] with [`Keys::OfRows`] and rows.
    pub dkv: Tensor,
}

/// What the backward reads.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// The forward's input [B T, Q + 2 K].
    pub qkv: &'a Tensor,
    /// The forward's result.
    pub attended: &'a Attended,
    /// Upstream gradient, that of the output: [k, Q] of the given rows, or [B T, Q].
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
    let Backward { qkv, attended, dout, shape, .. } = args;
    match Backend::of(qkv) {
        Backend::Cpu => return cpu::backward(args),
        Backend::Gpu if cuda::takes(qkv, shape)? => return cuda::backward(args),
        Backend::Gpu | Backend::Reference => {}
    }
    if qkv.dtype() == DType::BF16 {
        let wide = |x: &Tensor| x.to_dtype(DType::F32);
        let (qkv, dout) = (&wide(qkv)?, &wide(dout)?);
        let attended = &Attended { out: wide(&attended.out)?, lse: attended.lse.clone() };
        let Gradients { dq, dkv } = backward_slowly(Backward { qkv, attended, dout, ..args })?;
        return Ok(Gradients { dq: dq.to_dtype(DType::BF16)?, dkv: dkv.to_dtype(DType::BF16)? });
    }
    backward_slowly(args)
}

fn backward_slowly(args: Backward<'_>) -> Result<Gradients> {
    let Backward { qkv, attended, dout, rows, keys, shape } = args;
    let d = shape.widths(qkv.dim(1)?).0;
    let dout = match rows {
        None => dout.clone(),
        Some(rows) => {
            let index = Tensor::new(rows, qkv.device())?;
            Tensor::zeros((qkv.dim(0)?, d), qkv.dtype(), qkv.device())?
                .index_add(&index, dout, 0)?
        }
    };
    let (q, k, v) = split(qkv, shape)?; // [B, H, T, d] each
    let lse = attended.lse.reshape((shape.batch, shape.heads, shape.context, 1))?;
    let p = scores(qkv, shape)?.broadcast_sub(&lse)?.exp()?; // [B, H, T, T]
    let dout = heads_apart(&dout, shape)?; // [B, H, T, d]
    let delta = (&dout * heads_apart(&attended.out, shape)?)?.sum_keepdim(D::Minus1)?; // [B, H, T, 1]
    let ds = (&p * dout.matmul(&v.t()?.contiguous()?)?.broadcast_sub(&delta)?)?; // [B, H, T, T]
    let ds = (ds * scale(qkv, shape)?)?;
    let dq = heads_together(&ds.matmul(&k)?, shape)?; // [B T, Q]
    let dk = groups_together(&ds.t()?.contiguous()?.matmul(&q)?, shape)?; // [B T, K]
    let dv = groups_together(&p.t()?.contiguous()?.matmul(&dout)?, shape)?; // [B T, K]
    let dkv = Tensor::cat(&[dk, dv], 1)?; // [B T, 2 K]
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

fn scale(qkv: &Tensor, shape: Shape) -> Result<f64> {
    let dim = shape.head_dim(qkv.dim(1)?);
    Ok(shape.scale.map_or_else(|| 1.0 / (dim as f64).sqrt(), f64::from))
}

fn scores(qkv: &Tensor, shape: Shape) -> Result<Tensor> {
    let (q, k, _) = split(qkv, shape)?;
    let t = shape.context;
    let seen = |query: usize, key: usize| key <= query && key >= shape.first_seen(query);
    let mask: Vec<f32> =
        (0..t * t).map(|i| if seen(i / t, i % t) { 0.0 } else { f32::NEG_INFINITY }).collect();
    let mask = Tensor::from_vec(mask, (t, t), qkv.device())?.to_dtype(qkv.dtype())?;
    Ok((q.matmul(&k.t()?.contiguous()?)? * scale(qkv, shape)?)?.broadcast_add(&mask)?)
}

/// Queries, keys and values, [B, H, T, d] each: those that are shared are repeated.
fn split(qkv: &Tensor, shape: Shape) -> Result<(Tensor, Tensor, Tensor)> {
    let (q, k) = shape.widths(qkv.dim(1)?);
    let shared = |from: usize| -> Result<Tensor> {
        let Shape { batch, context, heads, kv_heads, .. } = shape;
        let apart = qkv
            .narrow(1, from, k)?
            .contiguous()?
            .reshape((batch, context, kv_heads, 1, ()))?
            .permute((0, 2, 3, 1, 4))?; // [B, G, 1, T, d]
        let dim = apart.dim(4)?;
        Ok(apart
            .broadcast_as((batch, kv_heads, heads / kv_heads, context, dim))?
            .contiguous()?
            .reshape((batch, heads, context, dim))?)
    };
    Ok((heads_apart(&qkv.narrow(1, 0, q)?, shape)?, shared(q)?, shared(q + k)?))
}

/// [B T, Q] -> [B, H, T, d]
fn heads_apart(x: &Tensor, s: Shape) -> Result<Tensor> {
    Ok(x.contiguous()?.reshape((s.batch, s.context, s.heads, ()))?.transpose(1, 2)?.contiguous()?)
}

/// [B, H, T, d] -> [B T, Q]
fn heads_together(x: &Tensor, s: Shape) -> Result<Tensor> {
    Ok(x.transpose(1, 2)?.contiguous()?.reshape((s.batch * s.context, ()))?)
}

/// [B, H, T, d] -> [B T, K]: sums over the heads that share keys and values.
fn groups_together(x: &Tensor, s: Shape) -> Result<Tensor> {
    let dim = x.dim(3)?;
    let groups = (s.batch, s.kv_heads, s.heads / s.kv_heads, s.context * dim);
    let sums = x.contiguous()?.reshape(groups)?.sum(2)?;
    heads_together(&sums.reshape((s.batch, s.kv_heads, s.context, dim))?, s)
}

/// Output of one query position against `keys` [P, 2 K] (k beside v, oldest first): attention with
/// a key-value cache. `q` is [1, Q]; every key is visible that the window leaves. Of `shape` only
/// heads, scale and window count.
pub fn step(q: &Tensor, keys: &Tensor, shape: Shape) -> Result<Tensor> {
    let first = shape.first_seen(keys.dim(0)?.saturating_sub(1));
    let keys = &keys.narrow(0, first, keys.dim(0)? - first)?;
    let shape = Shape { window: None, ..shape };
    let (p, width, k_width) = (keys.dim(0)?, q.dim(1)?, keys.dim(1)? / 2);
    if Backend::of(q) == Backend::Cpu {
        return cpu::step(q, keys, shape);
    }
    // As the last of P positions whose other queries do not matter.
    let others = Tensor::zeros((p - 1, width), q.dtype(), q.device())?;
    let queries = Tensor::cat(&[&others, &q.contiguous()?], 0)?;
    let qkv = Tensor::cat(&[queries, keys.narrow(1, 0, 2 * k_width)?.contiguous()?], 1)?;
    let all = reference(&qkv, Shape { batch: 1, context: p, ..shape })?;
    Ok(all.narrow(0, p - 1, 1)?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::embed::scatter_add;
    use crate::ops::matmul::Precision;
    use crate::ops::testing::{assert_close, autograd, check_finite_differences, emulated, random};

    const SHAPES: [(Shape, usize); 4] = [
        (Shape::new(1, 1, 1), 4),
        (Shape::new(2, 13, 3), 24),
        (Shape::new(3, 70, 2), 16),
        (Shape::new(1, 150, 4), 32),
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
        let shape = Shape::new(2, 3, 2);
        check_finite_differences(&[&random((6, 12), 1)], |v| reference(&v[0], shape));
    }

    #[test]
    fn other_shapes_match_autograd_of_the_reference() {
        for (heads, kv_heads, dim, scale, window) in [
            (3, 1, 10, None, None),
            (4, 2, 6, None, Some(5)),
            (6, 3, 4, Some(0.7), None),
            (2, 2, 5, Some(1.0), Some(1)),
            (3, 3, 4, None, Some(66)),
            (1, 1, 8, None, Some(1000)),
        ] {
            for (batch, context) in [(1, 1), (2, 13), (1, 70), (2, 140)] {
                let shape = Shape { batch, context, heads, kv_heads, scale, window };
                let (n, q, k) = (batch * context, heads * dim, kv_heads * dim);
                let (qkv, dout) = (random((n, q + 2 * k), 1), random((n, q), 2));
                let (out, grads) = autograd(&[&qkv], &dout, |v| reference(&v[0], shape));
                let rows: Vec<u32> = (0..n as u32).filter(|i| i % 3 != 1).collect();
                let part = gather(&dout, &rows).unwrap();
                let dense = Tensor::zeros((n, q), DType::F32, qkv.device()).unwrap();
                scatter_add(&dense, &part, &rows).unwrap();
                let (_, of_rows) = autograd(&[&qkv], &dense, |v| reference(&v[0], shape));
                for dtype in [DType::F32, DType::F64] {
                    let of = |t: &Tensor| t.to_dtype(dtype).unwrap();
                    let (qkv, dout, part) = (of(&qkv), of(&dout), of(&part));
                    let attended = forward(&qkv, shape).unwrap();
                    assert_close(&attended.out, &out, 3e-6);
                    let got = back(&qkv, &attended, &dout, None, Keys::All, shape);
                    assert_close(&together(&got), &grads[0], 1e-5);
                    let got = back(&qkv, &attended, &part, Some(&rows), Keys::All, shape);
                    let want = of_rows[0].narrow(1, q, 2 * k).unwrap();
                    assert_close(&got.dkv, &want, 1e-5);
                    let sparse = back(&qkv, &attended, &part, Some(&rows), Keys::OfRows, shape);
                    assert_close(&sparse.dkv, &gather(&got.dkv, &rows).unwrap(), 1e-5);
                    assert_close(&sparse.dq, &got.dq, 0.0);
                    let (last, keys) = (n - context, qkv.narrow(1, q, 2 * k).unwrap());
                    let one = step(
                        &qkv.narrow(0, n - 1, 1).unwrap().narrow(1, 0, q).unwrap(),
                        &keys.narrow(0, last, context).unwrap(),
                        shape,
                    );
                    assert_close(&one.unwrap(), &out.narrow(0, n - 1, 1).unwrap(), 3e-6);
                }
            }
        }
    }

    #[test]
    fn a_query_sees_its_window_and_no_more() {
        // Far keys and values do not matter, whatever they hold; those at the edge do.
        let shape = Shape { window: Some(3), ..Shape::new(1, 80, 1) };
        let qkv = random((80, 12), 1);
        let row = |qkv: &Tensor, at: usize| {
            let all = forward(qkv, shape).unwrap().out;
            all.narrow(0, at, 1).unwrap().to_vec2::<f32>().unwrap()
        };
        for at in [5, 63, 64, 79] {
            for (back, seen) in [(2, true), (3, false)] {
                let other = qkv.copy().unwrap();
                let key = other.narrow(0, at - back, 1).unwrap().narrow(1, 4, 8).unwrap();
                crate::ops::buffer::assign(&key, &random((1, 8), 9)).unwrap();
                assert_eq!(row(&qkv, at) != row(&other, at), seen, "{at} {back}");
            }
        }
    }

    #[test]
    fn one_step_equals_the_last_row() {
        let shape = Shape::new(1, 9, 2);
        let qkv = random((9, 24), 1);
        let all = forward(&qkv, shape).unwrap().out;
        let last = step(
            &qkv.narrow(0, 8, 1).unwrap().narrow(1, 0, 8).unwrap(),
            &qkv.narrow(1, 8, 16).unwrap(),
            Shape::new(1, 9, 2),
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
        let width = d + 2 * d / shape.heads * shape.kv_heads;
        let (qkv, dout) = (random((n, width), 1), random((rows.map_or(n, <[u32]>::len), d), 2));
        let run = |qkv: &Tensor, dout: &Tensor| {
            let attended = forward(qkv, shape).unwrap();
            let grads = back(qkv, &attended, dout, rows, keys, shape);
            vec![attended.out, attended.lse, grads.dq, grads.dkv]
        };
        // f32: sums in another order. bf16: inputs are the same numbers on both sides, while
        // probabilities, gradients of scores, the output that delta reads and results are rounded
        // by 2^-9 of themselves; a sum of many such errors is still near that of its largest term.
        // Scores on a larger scale than the usual one tell those errors apart by as much.
        let dim = (d / shape.heads) as f64;
        let scale = shape.scale.map_or(1.0, |scale| (f64::from(scale) * dim.sqrt()).max(1.0));
        for (precision, tolerance) in [(Precision::F32, 5e-6), (Precision::Mixed, 8e-3 * scale)] {
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
            check_kernels(Shape::new(batch, context, heads), heads * dim, None, Keys::All);
        }
    }

    #[test]
    fn a_gpus_kernels_give_the_same_for_rows() {
        for (batch, context, heads, dim) in [(3, 40, 2, 16), (3, 70, 1, 64)] {
            let shape = Shape::new(batch, context, heads);
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
        let shape = Shape::new(1, 260, 1);
        let rows: Vec<u32> = (49..80).chain((140..256).filter(|i| i % 2 == 0)).collect();
        for keys in [Keys::All, Keys::OfRows] {
            check_kernels(shape, 64, Some(&rows), keys);
        }
    }

    #[test]
    fn a_gpus_kernels_share_keys_and_values() {
        for (batch, context, heads, kv_heads, dim, scale) in [
            (1, 1, 2, 1, 4, None),
            (2, 40, 3, 1, 10, Some(0.7)),
            (1, 70, 4, 2, 64, None),
            (2, 66, 6, 2, 64, Some(0.05)),
            (1, 37, 2, 2, 6, Some(1.0)),
            (2, 35, 2, 1, 200, None),
            (1, 33, 1, 1, 256, Some(0.1)),
        ] {
            let shape = Shape { scale, kv_heads, ..Shape::new(batch, context, heads) };
            let n = (batch * context) as u32;
            let some: Vec<u32> = (0..n).filter(|i| i % 3 != 1).collect();
            check_kernels(shape, heads * dim, None, Keys::All);
            for keys in [Keys::All, Keys::OfRows] {
                check_kernels(shape, heads * dim, Some(&some), keys);
            }
        }
    }

    #[test]
    fn what_a_gpu_has_no_kernels_for_is_computed_by_the_formula() {
        let shape = Shape { kv_heads: 1, ..Shape::new(2, 9, 2) };
        for keys in [Keys::All, Keys::OfRows] {
            check_kernels(shape, 2 * 260, Some(&[0, 3, 10, 17]), keys);
        }
        check_kernels(shape, 2 * 260, None, Keys::All);
    }
}
