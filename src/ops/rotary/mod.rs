//! Rotary positions (RoFormer, arXiv 2104.09864), in halves: with c = cos(p f_i) and s = sin(p f_i)
//! for position p and the i-th of the d / 2 frequencies of a head,
//!
//! ```text
//! forward    y_i = x_i c - x_(i+d/2) s          y_(i+d/2) = x_(i+d/2) c + x_i s
//! backward   dx_i = dy_i c + dy_(i+d/2) s       dx_(i+d/2) = dy_(i+d/2) c - dy_i s
//! ```
//!
//! which is the same with -s. Both work in place, on some heads of rows that hold others as well.

mod cuda;

use super::simd::multiversion;
use super::{Backend, buffer};
use crate::error::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use std::sync::OnceLock;

/// Cosines and sines of positions from `first` on, [positions, d / 2] each.
#[derive(Debug)]
pub struct Table {
    first: usize,
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// The same where a GPU finds them, once it has asked: [2, positions, d / 2].
    uploaded: OnceLock<Tensor>,
}

impl Table {
    /// For `count` positions from `first` on; `factor` multiplies both (YaRN).
    pub fn new(frequencies: &[f64], factor: f64, first: usize, count: usize) -> Self {
        let angles = (first..first + count)
            .flat_map(|p| frequencies.iter().map(move |f| p as f64 * f))
            .map(|angle| angle.sin_cos());
        let (sin, cos) = angles.map(|(s, c)| ((factor * s) as f32, (factor * c) as f32)).unzip();
        Self { first, half: frequencies.len(), cos, sin, uploaded: OnceLock::new() }
    }

    /// Cosines and sines on the device of `like`.
    fn on(&self, like: &Tensor) -> Result<Tensor> {
        let there = |angles: &&Tensor| angles.device().same_device(like.device());
        if let Some(angles) = self.uploaded.get().filter(there) {
            return Ok(angles.clone());
        }
        let shape = (2, self.cos.len() / self.half.max(1), self.half);
        let both = [self.cos.as_slice(), &self.sin].concat();
        let angles = Tensor::from_vec(both, shape, like.device())?;
        Ok(self.uploaded.get_or_init(|| angles.clone()).clone())
    }

    fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let at = (position - self.first) * self.half;
        (&self.cos[at..][..self.half], &self.sin[at..][..self.half])
    }
}

/// Which heads of which rows are rotated.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// The column at which the first head begins.
    pub column: usize,
    /// How many heads.
    pub heads: usize,
    /// Width of a head, of which the first columns are rotated: two for each frequency.
    pub dim: usize,
    /// Which position of its sequence a row is.
    pub rows: Rows<'a>,
}

/// Which positions rows are.
#[derive(Debug, Clone, Copy)]
pub enum Rows<'a> {
    /// Sequences of so many positions, one after the other.
    Sequences(usize),
    /// These of the rows of such sequences.
    Of(&'a [u32], usize),
    /// One row at this position.
    At(usize),
}

impl Rows<'_> {
    fn position(self, row: usize) -> usize {
        match self {
            Self::Sequences(context) => row % context,
            Self::Of(rows, context) => rows[row] as usize % context,
            Self::At(position) => position,
        }
    }
}

/// Rotates `x` [N, W] in place.
pub fn forward(x: &Tensor, table: &Table, heads: Heads<'_>) -> Result<()> {
    rotate(x, table, heads, 1.0)
}

/// Turns the gradient `dy` [N, W] of what was rotated into that of what it was, in place.
pub fn backward(dy: &Tensor, table: &Table, heads: Heads<'_>) -> Result<()> {
    rotate(dy, table, heads, -1.0)
}

fn rotate(x: &Tensor, table: &Table, heads: Heads<'_>, sign: f32) -> Result<()> {
    match Backend::of(x) {
        Backend::Cpu => {
            let width = x.dim(1)?;
            return buffer::with_mut(x, |all| {
                all.par_chunks_mut(width.max(1)).enumerate().for_each(|(row, x)| {
                    let (cos, sin) = table.row(heads.rows.position(row));
                    let x = &mut x[heads.column..][..heads.heads * heads.dim];
                    for head in x.chunks_exact_mut(heads.dim) {
                        let (low, high) = head[..2 * table.half].split_at_mut(table.half);
                        turn(low, high, cos, sin, sign);
                    }
                });
            });
        }
        Backend::Gpu => return cuda::rotate(x, table, heads, sign),
        Backend::Reference => {}
    }
    // Other float types and devices: the formula on a copy.
    let n = x.dim(0)?;
    let part = x.narrow(1, heads.column, heads.heads * heads.dim)?;
    let rows = |all: fn(&Table, usize) -> &[f32]| -> Result<Tensor> {
        let values: Vec<f32> =
            (0..n).flat_map(|r| all(table, heads.rows.position(r)).to_vec()).collect();
        Ok(Tensor::from_vec(values, (n, 1, table.half), x.device())?.to_dtype(x.dtype())?)
    };
    let (cos, sin) = (rows(|t, p| t.row(p).0)?, rows(|t, p| t.row(p).1)?);
    let turned = reference(&part, &cos, &(sin * f64::from(sign))?, heads.heads)?;
    buffer::assign(&part, &turned)
}

/// The formula in candle ops: `x` [N, heads x w] by `cos` and `sin` [N, 1, d / 2], with d of a
/// head's w columns rotated.
pub fn reference(x: &Tensor, cos: &Tensor, sin: &Tensor, heads: usize) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let (dim, half) = (width / heads, cos.dim(2)?);
    let x = x.contiguous()?.reshape((n, heads, dim))?;
    let (low, high) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let first = (low.broadcast_mul(cos)? - high.broadcast_mul(sin)?)?;
    let second = (high.broadcast_mul(cos)? + low.broadcast_mul(sin)?)?;
    let rest = x.narrow(2, 2 * half, dim - 2 * half)?;
    Ok(Tensor::cat(&[first, second, rest], 2)?.reshape((n, width))?)
}

multiversion! {
    fn turn(low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        for (((low, high), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            let (a, b, s) = (*low, *high, sign * s);
            *low = a * c - b * s;
            *high = b * c + a * s;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, autograd, check_finite_differences, emulated, random};
    use candle_core::{DType, Device};

    const FREQUENCIES: [f64; 3] = [1.0, 0.3, 0.01];

    fn table() -> Table {
        Table::new(&FREQUENCIES, 1.25, 0, 7)
    }

    fn tables(positions: &[usize]) -> (Tensor, Tensor) {
        let of = |f: fn(f64) -> f64| {
            let angles =
                positions.iter().flat_map(|p| FREQUENCIES.map(|w| 1.25 * f(*p as f64 * w)));
            Tensor::from_vec(angles.collect(), (positions.len(), 1, 3), &Device::Cpu).unwrap()
        };
        (of(f64::cos), of(f64::sin))
    }

    #[test]
    fn it_turns_its_columns_alone_and_the_backward_is_autograds() {
        // Two heads behind three columns of others and before one; rows of two sequences. Of a
        // head all columns are rotated, or the first six of eight.
        for dim in [6, 8] {
            turns(dim);
        }
    }

    fn turns(dim: usize) {
        let width = 4 + 2 * dim;
        let (x, dy) = (random((10, width), 1), random((10, width), 2));
        let rows: Vec<u32> = vec![0, 2, 3, 5, 6, 9, 10, 11, 12, 13];
        for which in [Rows::Sequences(5), Rows::Of(&rows, 7)] {
            let positions: Vec<usize> = (0..10).map(|r| which.position(r)).collect();
            let (cos, sin) = tables(&positions);
            let formula = |v: &[Tensor]| {
                let parts = [
                    v[0].narrow(1, 0, 3)?,
                    reference(&v[0].narrow(1, 3, 2 * dim)?, &cos, &sin, 2)?,
                    v[0].narrow(1, width - 1, 1)?,
                ];
                Ok(Tensor::cat(&parts, 1)?)
            };
            let (out, grads) = autograd(&[&x], &dy, formula);
            for dtype in [DType::F32, DType::F64] {
                let (x, dy) = (x.to_dtype(dtype).unwrap(), dy.to_dtype(dtype).unwrap());
                let (x, dy) = (x.copy().unwrap(), dy.copy().unwrap());
                let heads = Heads { column: 3, heads: 2, dim, rows: which };
                forward(&x, &table(), heads).unwrap();
                backward(&dy, &table(), heads).unwrap();
                assert_close(&x, &out, 2e-6);
                assert_close(&dy, &grads[0], 2e-6);
            }
        }
    }

    #[test]
    fn a_table_may_begin_anywhere() {
        let (whole, late) = (random((7, 6), 1), random((7, 6), 1).narrow(0, 5, 1).unwrap());
        let late = late.copy().unwrap();
        let heads = |rows| Heads { column: 0, heads: 1, dim: 6, rows };
        forward(&whole, &table(), heads(Rows::Sequences(7))).unwrap();
        forward(&late, &Table::new(&FREQUENCIES, 1.25, 5, 1), heads(Rows::At(5))).unwrap();
        assert_close(&late, &whole.narrow(0, 5, 1).unwrap(), 0.0);
    }

    #[test]
    fn the_reference_is_right_by_finite_differences() {
        let (cos, sin) = tables(&[0, 5]);
        check_finite_differences(&[&random((2, 12), 1)], |v| reference(&v[0], &cos, &sin, 2));
    }

    #[test]
    fn a_gpus_kernels_give_the_same() {
        let rows: Vec<u32> = vec![0, 2, 3, 5, 6, 9, 10, 11, 12, 13];
        // Pairs one by one, and four at a time; columns of others before and after.
        for (half, column, after) in [(1, 0, 0), (3, 3, 1), (4, 8, 4), (32, 0, 64), (6, 4, 0)] {
            let frequencies: Vec<f64> = (0..half).map(|i| 0.3f64.powi(i)).collect();
            let (half, heads) = (half as usize, 3);
            let width = column + 2 * half * heads + after;
            let (x, dy) = (random((10, width), 1), random((10, width), 2));
            for (which, first) in
                [(Rows::Sequences(5), 0), (Rows::Of(&rows, 7), 0), (Rows::At(6), 4)]
            {
                let table = Table::new(&frequencies, 1.25, first, 7);
                let run = |dtype: DType| {
                    let of = |t: &Tensor| t.copy().unwrap().to_dtype(dtype).unwrap();
                    let (x, dy) = (of(&x), of(&dy));
                    let heads = Heads { column, heads, dim: 2 * half, rows: which };
                    forward(&x, &table, heads).unwrap();
                    backward(&dy, &table, heads).unwrap();
                    vec![x, dy]
                };
                let want = run(DType::F32);
                // bf16: 2^-9 of x and of the result.
                for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 8e-3)] {
                    for (got, want) in emulated(|| run(dtype)).iter().flatten().zip(&want) {
                        assert_close(got, want, tolerance);
                    }
                }
            }
        }
    }

    #[test]
    fn a_gpus_kernels_may_turn_the_first_columns_of_a_head_alone() {
        for (dim, half) in [(10, 3), (16, 4)] {
            let frequencies: Vec<f64> = (0..half).map(|i| 0.3f64.powi(i)).collect();
            let (table, half) = (Table::new(&frequencies, 1.0, 0, 5), half as usize);
            let x = random((10, 2 * dim), 1);
            let heads = Heads { column: 0, heads: 2, dim, rows: Rows::Sequences(5) };
            let want = x.copy().unwrap();
            forward(&want, &table, heads).unwrap();
            let got = emulated(|| {
                let x = x.copy().unwrap();
                forward(&x, &table, heads).unwrap();
                vec![x]
            });
            assert!(2 * half < dim);
            got.iter().flatten().for_each(|got| assert_close(got, &want, 1e-6));
        }
    }

    #[test]
    fn a_gpus_kernels_are_not_sent_beyond_their_angles() {
        let _ = emulated(|| {
            let x = random((8, 6), 1);
            for rows in [Rows::Sequences(8), Rows::At(7), Rows::Of(&[3], 7)] {
                assert!(
                    forward(&x, &table(), Heads { column: 0, heads: 1, dim: 6, rows }).is_err()
                );
            }
            let rows = Rows::Sequences(4);
            assert!(forward(&x, &table(), Heads { column: 1, heads: 1, dim: 6, rows }).is_err());
            let none = random((0, 6), 1);
            forward(&none, &table(), Heads { column: 0, heads: 1, dim: 6, rows }).unwrap();
            vec![]
        });
    }
}
