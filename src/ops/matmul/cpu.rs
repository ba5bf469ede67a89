//! The `gemm` crate on slices and views.

use super::{Mat, MatMut, Precision, bf16, vector};
use crate::error::{Error, Result};
use crate::ops::buffer::{
    Elements, SharedMut, read, read_strided, read_weight, with_mut, with_mut_strided,
};
use crate::ops::simd::multiversion;
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::cell::Cell;

/// `dst = scale * a · b`, plus the old `dst` if `add`. Parallel only when the caller is not
/// already.
pub(crate) fn gemm(dst: MatMut, add: bool, a: Mat<'_>, b: Mat<'_>, scale: f32, parallel: bool) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert!(
        b.rows == k && dst.rows == m && dst.cols == n,
        "gemm of [{m}, {k}] and [{}, {n}]",
        b.rows
    );
    if m == 0 || n == 0 {
        return;
    }
    let parallelism = if parallel { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    // SAFETY: the constructors checked that every element lies in its buffer; `dst` is exclusive by
    // their contract.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.data.get(),
            dst.col_stride as isize,
            dst.row_stride as isize,
            add,
            a.floats().as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.floats().as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `dst = a · b`, plus the old `dst` if `add`, on all threads. `b` may be stored in bf16, with
/// adjacent rows or columns.
pub(crate) fn multiply(dst: MatMut, add: bool, a: Mat<'_>, b: Mat<'_>, precision: Precision) {
    match (precision, b.data) {
        (Precision::Bf16(chip), _) => bf16::gemm(chip, dst, add, a, b),
        (_, Elements::F32(_)) if vector::takes(a, b) && dst.col_stride == 1 => {
            assert!(a.cols == b.rows && dst.rows == 1 && dst.cols == b.cols, "one row's product");
            // SAFETY: a row of adjacent elements, which is exclusive by its constructors' contract.
            let dst = unsafe { std::slice::from_raw_parts_mut(dst.data.get(), dst.cols) };
            vector::times(dst, add, a, b);
        }
        (_, Elements::F32(_)) => gemm(dst, add, a, b, 1.0, true),
        (_, Elements::Bf16(_)) => widen_and_multiply(dst, add, a, b),
    }
}

/// Numbers of a bf16 factor that are widened at a time: 8 MiB, which the cores' shared cache holds
/// beside a panel of `a`.
const WIDENED: usize = 1 << 21;

thread_local! {
    /// The last factor's widened columns: memory to use again.
    static WIDE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// [`gemm`] of a right factor in bf16, some columns at a time.
fn widen_and_multiply(dst: MatMut, add: bool, a: Mat<'_>, b: Mat<'_>) {
    // The long way of its memory, and how far apart the lines are: columns where it is transposed.
    let transposed = b.row_stride == 1;
    assert!(transposed || b.col_stride == 1, "a bf16 factor of scattered elements");
    let most = (WIDENED / b.rows.max(1)).max(1);
    // Taken, not borrowed: a thread that waits below may be lent to another product.
    let mut wide = WIDE.take();
    for start in (0..b.cols).step_by(most) {
        let cols = most.min(b.cols - start);
        let (lines, long, stride, first) = if transposed {
            (cols, b.rows, b.col_stride, start * b.col_stride)
        } else {
            (b.rows, cols, b.row_stride, start)
        };
        wide.resize((lines * long).max(wide.len()), 0.0);
        let here = &mut wide[..lines * long];
        here.par_chunks_mut(long.max(1)).enumerate().with_min_len(8).for_each(|(line, out)| {
            let at = first + line * stride;
            b.data.slice(at..at + long).write_to(out);
        });
        let b = Mat::row_major(here, lines, long);
        // SAFETY: columns of `dst`, which is exclusive by its constructors' contract.
        let dst = unsafe {
            MatMut { data: SharedMut(dst.data.get().add(start * dst.col_stride)), cols, ..dst }
        };
        gemm(dst, add, a, if transposed { b.t() } else { b }, 1.0, true);
    }
    WIDE.set(wide);
}

/// `dst = a · b` or `dst += a · b` on tensors of any strides.
pub(super) fn into(
    dst: &Tensor,
    a: &Tensor,
    b: &Tensor,
    add: bool,
    precision: Precision,
) -> Result<()> {
    let ((m, k), (kb, n)) = (a.dims2()?, b.dims2()?);
    if k != kb || dst.dims2()? != (m, n) {
        return Err(Error::internal(format!(
            "product of {:?} and {:?} into {:?}",
            a.dims(),
            b.dims(),
            dst.dims()
        )));
    }
    let (sa, sb, sd) = (a.stride(), b.stride(), dst.stride());
    let (da, db) = (read_strided(a)?, read_weight(b)?);
    let (a, b) =
        (Mat::new(&da, m, k, sa[0], sa[1]), Mat::stored(db.elements(), k, n, sb[0], sb[1]));
    with_mut_strided(dst, |out| {
        assert!(m == 0 || n == 0 || (m - 1) * sd[0] + (n - 1) * sd[1] < out.len());
        let dst = MatMut {
            data: SharedMut(out.as_mut_ptr()),
            rows: m,
            cols: n,
            row_stride: sd[0],
            col_stride: sd[1],
        };
        multiply(dst, add, a, b, precision);
    })
}

/// `a · b` row by row, in fresh memory, which is written once; zeros if the inner dimension is 0.
pub(crate) fn product(a: Mat<'_>, b: Mat<'_>, precision: Precision) -> Vec<f32> {
    let (m, n) = (a.rows, b.cols);
    if a.cols == 0 {
        return vec![0.0; m * n];
    }
    let mut out = Vec::with_capacity(m * n);
    // SAFETY: the capacity covers the matrix, and the product with add = false writes every element
    // and reads none.
    unsafe {
        multiply(MatMut::from_raw(out.as_mut_ptr(), m, n, n), false, a, b, precision);
        out.set_len(m * n);
    }
    out
}

/// `a · b` of tensors.
pub(super) fn matmul(a: &Tensor, b: &Tensor, precision: Precision) -> Result<Tensor> {
    let ((m, k), (kb, n)) = (a.dims2()?, b.dims2()?);
    if k != kb {
        return Err(Error::internal(format!("product of {:?} and {:?}", a.dims(), b.dims())));
    }
    let (sa, sb) = (a.stride(), b.stride());
    let (da, db) = (read_strided(a)?, read_weight(b)?);
    let (a, b) =
        (Mat::new(&da, m, k, sa[0], sa[1]), Mat::stored(db.elements(), k, n, sb[0], sb[1]));
    Ok(Tensor::from_vec(product(a, b, precision), (m, n), &Device::Cpu)?)
}

/// `residual + x · w + bias`: bias and residual are laid down first, then the product is added.
pub(super) fn linear(
    residual: Option<&Tensor>,
    x: &Tensor,
    w: &Tensor,
    bias: &Tensor,
    precision: Precision,
) -> Result<Tensor> {
    let (n, m) = (x.dim(0)?, w.dim(1)?);
    if bias.dims() != [m] || residual.is_some_and(|r| r.dims() != [n, m]) {
        return Err(Error::internal(format!(
            "bias {:?} or residual does not fit [{n}, {m}]",
            bias.dims()
        )));
    }
    let mut out = Vec::with_capacity(n * m);
    {
        let bias = read(bias)?;
        let residual = residual.map(read).transpose()?;
        let (bias, residual): (&[f32], Option<&[f32]>) = (&bias, residual.as_deref());
        out.spare_capacity_mut()[..n * m].par_chunks_mut(m.max(1)).enumerate().for_each(
            |(i, row)| match residual {
                None => row.iter_mut().zip(bias).for_each(|(out, b)| _ = out.write(*b)),
                Some(residual) => {
                    let residual = &residual[i * m..][..m];
                    row.iter_mut()
                        .zip(bias)
                        .zip(residual)
                        .for_each(|((out, b), r)| _ = out.write(r + b));
                }
            },
        );
    }
    // SAFETY: the loop above wrote all n * m elements.
    unsafe { out.set_len(n * m) };
    let out = Tensor::from_vec(out, (n, m), &Device::Cpu)?;
    into(&out, x, w, true, precision)?;
    Ok(out)
}

/// Rows whose sums are formed by one task; fixed, so that the sum does not depend on the number of
/// threads.
const ROWS_PER_TASK: usize = 64;

pub(super) fn column_sums(dst: &Tensor, d: &Tensor) -> Result<()> {
    let (n, m) = d.dims2()?;
    let stride = d.stride();
    if stride[1] != 1 && n * m > 0 {
        return Err(Error::internal("column sums need rows of adjacent elements"));
    }
    let row_stride = stride[0];
    let d = read_strided(d)?;
    let d: &[f32] = &d;
    let partial: Vec<Vec<f32>> = (0..n.div_ceil(ROWS_PER_TASK))
        .into_par_iter()
        .map(|task| {
            let mut sum = vec![0.0; m];
            for row in task * ROWS_PER_TASK..n.min((task + 1) * ROWS_PER_TASK) {
                add_to(&mut sum, &d[row * row_stride..row * row_stride + m]);
            }
            sum
        })
        .collect();
    with_mut(dst, |dst| partial.iter().for_each(|sum| add_to(dst, sum)))
}

multiversion! {
    /// `dst += src`.
    pub(crate) fn add_to(dst: &mut [f32], src: &[f32]) {
        for (d, s) in dst.iter_mut().zip(src) {
            *d += *s;
        }
    }
}
