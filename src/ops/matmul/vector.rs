//! One row times a matrix, on all threads: what generation does for every token, where the time is
//! that of reading the matrix once. The `gemm` crate has one thread for it.
//!
//! Pieces are of fixed size and their sums are added in order, so the number of threads changes no
//! bit.

use super::Mat;
use crate::ops::simd::{LANES, multiversion, sum_lanes};
use rayon::prelude::*;

/// Rows of a matrix that one task adds up.
const ROWS_PER_TASK: usize = 32;
/// Columns, each a dot product, of one task.
const DOTS_PER_TASK: usize = 64;

/// Whether [`times`] can multiply these.
pub(super) fn takes(a: Mat<'_>, b: Mat<'_>) -> bool {
    a.rows == 1 && a.col_stride == 1 && (b.col_stride == 1 || b.row_stride == 1)
}

/// `dst = a · b`, plus the old `dst` if `add`: `a` [1, K], `b` [K, N] with adjacent rows or columns.
pub(super) fn times(dst: &mut [f32], add: bool, a: Mat<'_>, b: Mat<'_>) {
    let (x, w) = (&a.floats()[..a.cols], b.floats());
    if !add {
        dst.fill(0.0);
    }
    if b.col_stride != 1 {
        dst.par_chunks_mut(DOTS_PER_TASK).enumerate().for_each(|(task, dst)| {
            let first = task * DOTS_PER_TASK * b.col_stride;
            add_dots(dst, x, &w[first..], b.col_stride);
        });
        return;
    }
    let tasks = x.len().div_ceil(ROWS_PER_TASK);
    let partial: Vec<Vec<f32>> = (0..tasks)
        .into_par_iter()
        .map(|task| {
            let rows = task * ROWS_PER_TASK..x.len().min((task + 1) * ROWS_PER_TASK);
            let mut sum = vec![0.0; dst.len()];
            add_rows(&mut sum, &x[rows.clone()], &w[rows.start * b.row_stride..], b.row_stride);
            sum
        })
        .collect();
    partial.iter().for_each(|sum| super::add_to(dst, sum));
}

multiversion! {
    /// `dst += x · w`, where row k of `w` begins at `k * stride`.
    pub(crate) fn add_rows(dst: &mut [f32], x: &[f32], w: &[f32], stride: usize) {
        let n = dst.len();
        let (fours, rest) = x.as_chunks::<4>();
        for (i, x) in fours.iter().enumerate() {
            let row = |j: usize| &w[(4 * i + j) * stride..][..n];
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            for j in 0..n {
                dst[j] += (x[0] * a[j] + x[1] * b[j]) + (x[2] * c[j] + x[3] * d[j]);
            }
        }
        for (i, x) in rest.iter().enumerate() {
            let row = &w[(4 * fours.len() + i) * stride..][..n];
            for j in 0..n {
                dst[j] += x * row[j];
            }
        }
    }

    /// `dst[j] += x · w_j`, where `w_j` begins at `j * stride`.
    pub(crate) fn add_dots(dst: &mut [f32], x: &[f32], w: &[f32], stride: usize) {
        for (j, dst) in dst.iter_mut().enumerate() {
            let row = &w[j * stride..][..x.len()];
            let ((x, x_rest), (row, row_rest)) = (x.as_chunks::<LANES>(), row.as_chunks::<LANES>());
            // Four chains, since an addition takes several cycles.
            let mut lanes = [[0.0f32; LANES]; 4];
            for (i, (x, w)) in x.iter().zip(row).enumerate() {
                for l in 0..LANES {
                    lanes[i % 4][l] += x[l] * w[l];
                }
            }
            let mut sum = [0.0f32; LANES];
            for l in 0..LANES {
                sum[l] = (lanes[0][l] + lanes[1][l]) + (lanes[2][l] + lanes[3][l]);
            }
            let rest: f32 = x_rest.iter().zip(row_rest).map(|(x, w)| x * w).sum();
            *dst += sum_lanes(sum) + rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::matmul::{Precision, matmul, reference};
    use crate::ops::testing::{assert_close, random};

    #[test]
    fn one_row_times_a_matrix_is_the_reference_on_any_number_of_threads() {
        for (k, n) in [(1, 1), (5, 3), (33, 70), (768, 129), (100, 2000)] {
            let x = random((1, k), 1);
            let by_rows = random((k, n), 2);
            let by_columns = random((n, k), 3).t().unwrap();
            // Some columns of a wider matrix.
            let wide = random((k, n + 7), 4).narrow(1, 3, n).unwrap();
            for w in [by_rows, by_columns, wide] {
                let product = |threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                    pool.unwrap().install(|| matmul(&x, &w, Precision::F32)).unwrap()
                };
                let found = product(1);
                assert_close(&found, &reference(&x, &w).unwrap(), 1e-4);
                let bits = |t: &candle_core::Tensor| t.to_vec2::<f32>().unwrap();
                assert_eq!(bits(&found), bits(&product(3)));
            }
        }
    }
}
