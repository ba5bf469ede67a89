//! Attention on f32: a task owns one head of one sequence and walks its queries in blocks.
//! Formulas: `mod.rs`.

use super::{Attended, Backward, Gradients, Keys, Shape};
use crate::error::Result;
use crate::ops::buffer::{SharedMut, read, read_strided};
use crate::ops::matmul::{Mat, MatMut, add_dots, add_rows, gemm};
use crate::ops::simd::{LANES, exp, multiversion, sum_lanes};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Queries per block: the scratch is BLOCK x T floats, which stays in the second-level cache up to
/// T = 2048.
const BLOCK: usize = 64;

pub(super) fn forward(qkv: &Tensor, shape: Shape) -> Result<Attended> {
    let (n, width) = qkv.dims2()?;
    let (d, _) = shape.widths(width);
    let data = read(qkv)?;
    let data: &[f32] = &data;
    let mut out = vec![0.0; n * d];
    let mut lse = vec![0.0; shape.heads * n];
    let (out_ptr, lse_ptr) = (SharedMut(out.as_mut_ptr()), SharedMut(lse.as_mut_ptr()));
    (0..shape.batch * shape.heads).into_par_iter().for_each(|task| {
        let head = Head::new(data, width, shape, task);
        let mut scores = vec![0.0; BLOCK * shape.context];
        for start in (0..shape.context).step_by(BLOCK) {
            let rows = BLOCK.min(shape.context - start);
            // Keys that some query of the block sees.
            let keys = shape.first_seen(start)..start + rows;
            let visible = keys.len();
            let scores = &mut scores[..rows * visible];
            let q = head.q(start, rows);
            gemm(
                MatMut::new(scores, rows, visible, visible),
                false,
                q,
                head.k(keys.clone()).t(),
                head.scale,
                false,
            );
            for (r, row) in scores.chunks_exact_mut(visible).enumerate() {
                let position = start + r;
                let (unseen, row) = row.split_at_mut(shape.first_seen(position) - keys.start);
                unseen.fill(0.0);
                let row_lse = softmax_row(row, position + 1 - keys.start - unseen.len());
                // SAFETY: this task alone writes head `task`'s entries of lse.
                unsafe { *lse_ptr.get().add(task * shape.context + start + r) = row_lse };
            }
            // SAFETY: this task alone writes the columns of its head in the rows of its sequence.
            let dst = unsafe {
                MatMut::from_raw(out_ptr.get().add(head.offset(d, start)), rows, head.dim, d)
            };
            gemm(dst, false, Mat::row_major(scores, rows, visible), head.v(keys), 1.0, false);
        }
    });
    Ok(Attended {
        out: Tensor::from_vec(out, (n, d), &Device::Cpu)?,
        lse: Tensor::from_vec(lse, shape.heads * n, &Device::Cpu)?,
    })
}

/// One query against `keys` [P, 2 K], whose rows are adjacent elements; a task owns a head.
pub(super) fn step(q: &Tensor, keys: &Tensor, shape: Shape) -> Result<Tensor> {
    let (p, d, stride) = (keys.dim(0)?, q.dim(1)?, keys.stride()[0]);
    let (dim, values) = (d / shape.heads, keys.dim(1)? / 2);
    let (q, keys) = (read_strided(q)?, read_strided(keys)?);
    let (q, keys): (&[f32], &[f32]) = (&q, &keys);
    let (scale, share) = (shape.factor(dim), shape.heads / shape.kv_heads);
    let mut out = vec![0.0; d];
    out.par_chunks_mut(dim).enumerate().for_each(|(head, out)| {
        let (at, key) = (head * dim, head / share * dim);
        let mut scores = vec![0.0; p];
        add_dots(&mut scores, &q[at..at + dim], &keys[key..], stride);
        scores.iter_mut().for_each(|s| *s *= scale);
        softmax_row(&mut scores, p);
        add_rows(out, &scores, &keys[values + key..], stride);
    });
    Ok(Tensor::from_vec(out, (1, d), &Device::Cpu)?)
}

pub(super) fn backward(args: Backward<'_>) -> Result<Gradients> {
    let Backward { qkv, attended, dout, rows, keys, shape } = args;
    let (n, width) = qkv.dims2()?;
    let (d, kv) = shape.widths(width);
    let share = shape.heads / shape.kv_heads;
    let (data, out, lse, dout) =
        (read(qkv)?, read(&attended.out)?, read(&attended.lse)?, read(dout)?);
    let (data, out, lse, dout): (&[f32], &[f32], &[f32], &[f32]) = (&data, &out, &lse, &dout);
    let every: Vec<u32>;
    let (rows, sparse) = match rows {
        Some(rows) => (rows, keys == Keys::OfRows),
        None => {
            every = (0..n as u32).collect();
            (every.as_slice(), false)
        }
    };
    let with_keys = if sparse { rows.len() } else { n };
    let mut dq = vec![0.0; rows.len() * d]; // [k, Q]
    let mut dkv = vec![0.0; with_keys * 2 * kv]; // [B T, 2 K] or [k, 2 K]
    let (dq_ptr, dkv_ptr) = (SharedMut(dq.as_mut_ptr()), SharedMut(dkv.as_mut_ptr()));
    // A task owns the heads that share keys and values, and takes them in turn.
    (0..shape.batch * shape.kv_heads).into_par_iter().for_each(|group| {
        for task in group * share..(group + 1) * share {
            let head = Head::new(data, width, shape, task);
            let lse = &lse[task * shape.context..][..shape.context];
            // The rows that belong to this sequence: a run of the ascending list.
            let from = rows.partition_point(|&r| (r as usize) < head.first_row);
            let to = rows.partition_point(|&r| (r as usize) < head.first_row + shape.context);
            let rows_of_sequence = &rows[from..to];
            let mut scratch = Scratch::new(head.dim, shape.context);
            for block in (from..to).step_by(BLOCK) {
                let rows = &rows[block..to.min(block + BLOCK)];
                scratch.gather(&head, rows, block, out, dout, d);
                let keys = scratch.probabilities(&head, rows, lse, shape);
                let visible = keys.len();
                let (q, dout, p, ds) = scratch.block(rows.len(), visible, head.dim);
                // Keys and values that carry gradient: the visible ones, or of these the given
                // rows'.
                let first_key = head.first_row + keys.start;
                let unseen = rows_of_sequence.partition_point(|&r| (r as usize) < first_key);
                let seen = &rows_of_sequence[unseen..block - from + rows.len()];
                let (first, with_gradient) =
                    if sparse { (from + unseen, seen.len()) } else { (first_key, visible) };
                // SAFETY: this task alone writes the columns of its heads in the rows of its
                // sequence, of dq and of dkv.
                let (dq, dk, dv) = unsafe {
                    let dq = dq_ptr.get().add(block * d + head.column);
                    let dkv = dkv_ptr.get().add(first * 2 * kv + head.shared);
                    (
                        MatMut::from_raw(dq, rows.len(), head.dim, d),
                        MatMut::from_raw(dkv, with_gradient, head.dim, 2 * kv),
                        MatMut::from_raw(dkv.add(kv), with_gradient, head.dim, 2 * kv),
                    )
                };
                // dQ = dS K
                let of_all = Mat::row_major(ds, rows.len(), visible);
                gemm(dq, false, of_all, head.k(keys), 1.0, false);
                if sparse {
                    compact(p, visible, seen, first_key);
                    compact(ds, visible, seen, first_key);
                }
                let (ds, p) = (
                    Mat::row_major(ds, rows.len(), with_gradient),
                    Mat::row_major(p, rows.len(), with_gradient),
                );
                gemm(dk, true, ds.t(), q, 1.0, false); // dK += dSᵀ Q
                gemm(dv, true, p.t(), dout, 1.0, false); // dV += Pᵀ dO
            }
        }
    });
    Ok(Gradients {
        dq: Tensor::from_vec(dq, (rows.len(), d), &Device::Cpu)?,
        dkv: Tensor::from_vec(dkv, (with_keys, 2 * kv), &Device::Cpu)?,
    })
}

/// Moves the columns of the given rows' keys to the front of each row of `width` columns, and the
/// rows together. The first column is row `first_key`'s.
fn compact(x: &mut [f32], width: usize, rows: &[u32], first_key: usize) {
    let (count, kept) = (x.len() / width, rows.len());
    for r in 0..count {
        for (j, &row) in rows.iter().enumerate() {
            // Never ahead of what is still to be read: j is at most the column, kept at most the
            // width.
            x[r * kept + j] = x[r * width + row as usize - first_key];
        }
    }
}

/// One head of one sequence inside the fused qkv.
struct Head<'a> {
    data: &'a [f32],
    /// Of a row of `data`, and of its queries and of its keys.
    width: usize,
    queries: usize,
    keys: usize,
    dim: usize,
    first_row: usize,
    /// Where its queries begin, and its keys among the keys.
    column: usize,
    shared: usize,
    scale: f32,
}

impl<'a> Head<'a> {
    fn new(data: &'a [f32], width: usize, shape: Shape, task: usize) -> Self {
        let dim = shape.head_dim(width);
        let (queries, keys) = shape.widths(width);
        let (sequence, head) = (task / shape.heads, task % shape.heads);
        Self {
            data,
            width,
            queries,
            keys,
            dim,
            first_row: sequence * shape.context,
            column: head * dim,
            shared: head / (shape.heads / shape.kv_heads) * dim,
            scale: shape.factor(dim),
        }
    }

    fn part(&self, column: usize, start: usize, rows: usize) -> Mat<'a> {
        let offset = (self.first_row + start) * self.width + column;
        Mat::new(&self.data[offset..], rows, self.dim, self.width, 1)
    }

    fn q(&self, start: usize, rows: usize) -> Mat<'a> {
        self.part(self.column, start, rows)
    }

    /// Of these positions.
    fn k(&self, at: Range<usize>) -> Mat<'a> {
        self.part(self.queries + self.shared, at.start, at.len())
    }

    fn v(&self, at: Range<usize>) -> Mat<'a> {
        self.part(self.queries + self.keys + self.shared, at.start, at.len())
    }

    fn offset(&self, width: usize, position: usize) -> usize {
        (self.first_row + position) * width + self.column
    }
}

/// What one task needs for a block of `count` queries of the backward, of one head of width d.
struct Scratch {
    /// [count, d].
    q: Vec<f32>,
    /// [count, d].
    dout: Vec<f32>,
    /// `[count]`.
    delta: Vec<f32>,
    /// [count, visible]; the last query sees the most keys, and later ones are not formed.
    p: Vec<f32>,
    /// [count, visible].
    ds: Vec<f32>,
}

impl Scratch {
    fn new(dim: usize, context: usize) -> Self {
        Self {
            q: vec![0.0; BLOCK * dim],
            dout: vec![0.0; BLOCK * dim],
            delta: vec![0.0; BLOCK],
            p: vec![0.0; BLOCK * context],
            ds: vec![0.0; BLOCK * context],
        }
    }

    /// Gathers q and dout of the rows, and delta = sum(dout * out) of each. `block` is the rows'
    /// place in `dout`.
    fn gather(
        &mut self,
        head: &Head<'_>,
        rows: &[u32],
        block: usize,
        out: &[f32],
        dout: &[f32],
        d: usize,
    ) {
        let dim = head.dim;
        for (r, &row) in rows.iter().enumerate() {
            let row = row as usize;
            self.q[r * dim..][..dim]
                .copy_from_slice(&head.data[row * head.width + head.column..][..dim]);
            let upstream = &dout[(block + r) * d + head.column..][..dim];
            self.dout[r * dim..][..dim].copy_from_slice(upstream);
            self.delta[r] = dot(upstream, &out[row * d + head.column..][..dim]);
        }
    }

    /// P and dS of the gathered rows against the keys that some of them see; returns which these
    /// are.
    fn probabilities(
        &mut self,
        head: &Head<'_>,
        rows: &[u32],
        lse: &[f32],
        shape: Shape,
    ) -> Range<usize> {
        let count = rows.len();
        let at = |row: u32| row as usize - head.first_row;
        let keys = shape.first_seen(at(rows[0]))..at(rows[count - 1]) + 1;
        let visible = keys.len();
        let (p, ds) = (&mut self.p[..count * visible], &mut self.ds[..count * visible]);
        let q = Mat::row_major(&self.q[..count * head.dim], count, head.dim);
        let dout = Mat::row_major(&self.dout[..count * head.dim], count, head.dim);
        gemm(
            MatMut::new(p, count, visible, visible),
            false,
            q,
            head.k(keys.clone()).t(),
            head.scale,
            false,
        ); // S = Q Kᵀ scale
        gemm(
            MatMut::new(ds, count, visible, visible),
            false,
            dout,
            head.v(keys.clone()).t(),
            1.0,
            false,
        ); // dP = dO Vᵀ
        for (r, (p, ds)) in
            p.chunks_exact_mut(visible).zip(ds.chunks_exact_mut(visible)).enumerate()
        {
            let position = at(rows[r]);
            let unseen = shape.first_seen(position) - keys.start;
            p[..unseen].fill(0.0);
            ds[..unseen].fill(0.0);
            let (p, ds) = (&mut p[unseen..], &mut ds[unseen..]);
            let visible = position + 1 - keys.start - unseen;
            gradient_row(p, ds, visible, lse[position], self.delta[r], head.scale);
        }
        keys
    }

    /// q and dout [count, d], p and ds [count, visible] of the block in hand.
    fn block(
        &mut self,
        count: usize,
        visible: usize,
        dim: usize,
    ) -> (Mat<'_>, Mat<'_>, &mut [f32], &mut [f32]) {
        (
            Mat::row_major(&self.q[..count * dim], count, dim),
            Mat::row_major(&self.dout[..count * dim], count, dim),
            &mut self.p[..count * visible],
            &mut self.ds[..count * visible],
        )
    }
}

multiversion! {
    /// Softmax of the first `visible` scores in place, zeros after them; returns their log-sum-exp.
    fn softmax_row(row: &mut [f32], visible: usize) -> f32 {
        let (seen, masked) = row.split_at_mut(visible);
        masked.fill(0.0);
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in seen.chunks(LANES) {
            for (lane, v) in lanes.iter_mut().zip(chunk) {
                *lane = if *v > *lane { *v } else { *lane };
            }
        }
        let max = lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let mut sums = [0.0f32; LANES];
        let mut chunks = seen.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for (lane, v) in sums.iter_mut().zip(chunk) {
                *v = exp(*v - max);
                *lane += *v;
            }
        }
        for (lane, v) in sums.iter_mut().zip(chunks.into_remainder()) {
            *v = exp(*v - max);
            *lane += *v;
        }
        let sum = sum_lanes(sums);
        let inverse = 1.0 / sum;
        for v in seen.iter_mut() {
            *v *= inverse;
        }
        max + sum.ln()
    }

    /// Scores become probabilities (in `p`) and dP becomes dS = scale * P * (dP - delta) (in `ds`);
    /// masked ones zero.
    fn gradient_row(p: &mut [f32], ds: &mut [f32], visible: usize, lse: f32, delta: f32, scale: f32) {
        p[visible..].fill(0.0);
        ds[visible..].fill(0.0);
        for (p, ds) in p[..visible].iter_mut().zip(&mut ds[..visible]) {
            *p = exp(*p - lse);
            *ds = scale * *p * (*ds - delta);
        }
    }

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += a * b;
            }
        }
        sum_lanes(lanes)
    }
}
