//! Matrix products on strided 2-D views: `a.t()` and `narrow` cost nothing, and `accumulate` adds
//! in place.
//!
//! Reference: candle's matmul. CPU: the `gemm` crate, which picks AVX-512, AVX2 or portable kernels
//! at run time; or, where asked for, our own on factors rounded to bf16 ([`Precision`]). GPU:
//! cuBLAS. A right factor that is only read may be stored in bf16.

mod bf16;
mod cpu;
pub(super) mod cuda;
mod mat;
mod vector;

use super::{Backend, buffer, gpu};
use crate::config::Dtype;
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};

pub use bf16::Bf16;
pub(crate) use cpu::{add_to, gemm, multiply, product};
pub(crate) use mat::{Mat, MatMut};
pub(crate) use vector::{add_dots, add_rows};

/// What a product of f32 matrices does with its factors. Sums are f32 either way. The reference
/// path ignores it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// Multiplies them as they are.
    #[default]
    F32,
    /// Rounds each to bf16 (8 bits of mantissa) first.
    Bf16(Bf16),
    /// On a GPU: activations between the products are bf16 in memory, and so are the factors.
    /// Weights, the residual stream, gradients of weights, norms, softmax and losses stay f32.
    Mixed,
}

impl Precision {
    /// That of a number format; a usage error where the device or the chip lacks it.
    pub fn of(dtype: Dtype, device: &Device) -> Result<Self> {
        match dtype {
            Dtype::F32 => Ok(Self::F32),
            Dtype::Bf16 if device.is_cuda() || gpu::emulated() => Ok(Self::Mixed),
            Dtype::Bf16 if device.is_cpu() => Bf16::detect().map(Self::Bf16),
            Dtype::Bf16 => Err(Error::usage(
                "machine.dtype = \"bf16\" needs a CPU or a CUDA device, and the device of this run is neither; use \
                 machine.dtype = \"f32\"",
            )),
        }
    }

    /// The number format of activations between products.
    pub(crate) fn activations(self) -> DType {
        if self == Self::Mixed { DType::BF16 } else { DType::F32 }
    }
}

/// `a · b` for `a` [M, K] and `b` [K, N], any strides.
pub fn matmul(a: &Tensor, b: &Tensor, precision: Precision) -> Result<Tensor> {
    match Backend::of(a) {
        Backend::Cpu => cpu::matmul(a, b, precision),
        Backend::Gpu => cuda::matmul(a, b, precision),
        Backend::Reference => reference(a, b),
    }
}

/// `dst += a · b`; `dst` [M, N] may be a strided view.
pub fn accumulate(dst: &Tensor, a: &Tensor, b: &Tensor, precision: Precision) -> Result<()> {
    match Backend::of(a) {
        Backend::Cpu => cpu::into(dst, a, b, true, precision),
        Backend::Gpu => cuda::accumulate(dst, a, b, precision),
        Backend::Reference => buffer::add_assign(dst, &reference(a, b)?),
    }
}

/// `x · w + bias` for `x` [N, K], `w` [K, M] (Conv1D layout) and `bias` of length M, if there is one.
pub fn linear(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    precision: Precision,
) -> Result<Tensor> {
    let Some(bias) = bias else { return matmul(x, w, precision) };
    match Backend::of(x) {
        Backend::Cpu => cpu::linear(None, x, w, bias, precision),
        Backend::Gpu => cuda::linear(None, x, w, bias, precision),
        Backend::Reference => Ok(reference(x, w)?.broadcast_add(bias)?),
    }
}

/// `residual + x · w + bias` for `residual` [N, M].
pub fn linear_onto(
    residual: &Tensor,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    precision: Precision,
) -> Result<Tensor> {
    let Some(bias) = bias else {
        let sum = residual.copy()?;
        accumulate(&sum, x, w, precision)?;
        return Ok(sum);
    };
    match Backend::of(x) {
        Backend::Cpu => cpu::linear(Some(residual), x, w, bias, precision),
        Backend::Gpu => cuda::linear(Some(residual), x, w, bias, precision),
        Backend::Reference => Ok((residual + reference(x, w)?.broadcast_add(bias)?)?),
    }
}

/// `dst += sum over rows of d`, for `d` [N, M] and `dst` `[M]`: the gradient of a bias, if there is
/// one.
pub fn accumulate_column_sums(dst: Option<&Tensor>, d: &Tensor) -> Result<()> {
    let Some(dst) = dst else { return Ok(()) };
    match Backend::of(d) {
        Backend::Cpu => cpu::column_sums(dst, d),
        Backend::Gpu => cuda::accumulate_columns(dst, None, d, None),
        Backend::Reference => buffer::add_assign(dst, &d.sum(0)?),
    }
}

/// The slow way: contiguous copies and candle's matmul, on any device and float type.
pub fn reference(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(a.contiguous()?.matmul(&b.to_dtype(a.dtype())?.contiguous()?)?)
}

#[cfg(test)]
mod tests {
    use super::Precision::F32;
    use super::*;
    use crate::ops::testing::{assert_close, emulated, random};

    #[test]
    fn products_of_views_match_the_reference() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (64, 33, 17), (1, 40, 9), (130, 70, 200)] {
            let (a, b) = (random((m, k), 1), random((k, n), 2));
            let want = reference(&a, &b).unwrap();
            // f32 dot products of length k with entries near 1: about k * 6e-8 of rounding.
            assert_close(&matmul(&a, &b, F32).unwrap(), &want, 1e-5);
            let (at, bt) =
                (a.t().unwrap().contiguous().unwrap(), b.t().unwrap().contiguous().unwrap());
            assert_close(&matmul(&at.t().unwrap(), &bt.t().unwrap(), F32).unwrap(), &want, 1e-5);

            let dst = random((m, n + 4), 3);
            let before = dst.copy().unwrap();
            accumulate(&dst.narrow(1, 2, n).unwrap(), &a, &b, F32).unwrap();
            let inner = before.narrow(1, 2, n).unwrap();
            assert_close(&dst.narrow(1, 2, n).unwrap(), &(inner + &want).unwrap(), 1e-5);
            assert_close(&dst.narrow(1, 0, 2).unwrap(), &before.narrow(1, 0, 2).unwrap(), 0.0);
            assert_close(
                &dst.narrow(1, n + 2, 2).unwrap(),
                &before.narrow(1, n + 2, 2).unwrap(),
                0.0,
            );
        }
    }

    #[test]
    fn a_right_factor_stored_in_bf16_counts_as_the_numbers_it_holds() {
        // The last one is widened in three pieces by columns, the last of them short.
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (64, 33, 17), (2, 1031, 5000)] {
            let (x, bias) = (random((m, k), 1), random(n, 3));
            let narrow = random((k, n), 2).to_dtype(DType::BF16).unwrap();
            let columns = narrow.t().unwrap().contiguous().unwrap().t().unwrap();
            for stored in [narrow, columns] {
                let wide = stored.to_dtype(DType::F32).unwrap();
                let run = |w: &Tensor, precision| {
                    vec![
                        matmul(&x, w, precision).unwrap(),
                        linear(&x, w, Some(&bias), precision).unwrap(),
                    ]
                };
                let compare = |got: &[Tensor], want: &[Tensor], tolerance: f64| {
                    got.iter().zip(want).for_each(|(got, want)| assert_close(got, want, tolerance));
                };
                // Kernels differ with the shape of a piece: sums in another order.
                compare(&run(&stored, F32), &run(&wide, F32), 1e-6);
                if let Ok(chip) = Bf16::detect() {
                    compare(
                        &run(&stored, Precision::Bf16(chip)),
                        &run(&wide, Precision::Bf16(chip)),
                        0.0,
                    );
                }
                // The emulator takes minutes for the last one.
                if n < 100 {
                    for precision in [F32, Precision::Mixed] {
                        if let (Some(got), Some(want)) = (
                            emulated(|| run(&stored, precision)),
                            emulated(|| run(&wide, precision)),
                        ) {
                            compare(&got, &want, 0.0);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn linear_and_bias_gradient_match_the_reference() {
        let (x, w, b) = (random((37, 12), 1), random((12, 21), 2), random(21, 3));
        let want = reference(&x, &w).unwrap().broadcast_add(&b).unwrap();
        assert_close(&linear(&x, &w, Some(&b), F32).unwrap(), &want, 1e-5);
        let residual = random((37, 21), 5);
        assert_close(
            &linear_onto(&residual, &x, &w, Some(&b), F32).unwrap(),
            &(&residual + &want).unwrap(),
            1e-5,
        );
        let dst = random(21, 4);
        let want_sum = (&dst + want.sum(0).unwrap()).unwrap();
        accumulate_column_sums(Some(&dst), &want).unwrap();
        assert_close(&dst, &want_sum, 1e-5);
    }

    #[test]
    fn empty_products_change_nothing() {
        let dst = random((4, 3), 1);
        let before = dst.copy().unwrap();
        let a = Tensor::zeros((4, 0), candle_core::DType::F32, &Device::Cpu).unwrap();
        let b = Tensor::zeros((0, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        accumulate(&dst, &a, &b, F32).unwrap();
        assert_close(&dst, &before, 0.0);
        assert_eq!(matmul(&b, &before.t().unwrap(), F32).unwrap().dims(), [0, 4]);
    }

    #[test]
    fn thread_count_does_not_change_a_bit() {
        let (a, b) = (random((300, 250), 1), random((250, 190), 2));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| matmul(&a, &b, F32).unwrap().to_vec2::<f32>().unwrap())
        };
        let one = run(1);
        assert!(one == run(2) && one == run(3) && one == run(7));
    }

    #[test]
    fn a_gpus_kernels_give_the_same() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (9, 33, 17), (140, 12, 20)] {
            let (x, w, b, residual) =
                (random((m, k), 1), random((k, n), 2), random(n, 3), random((m, n), 4));
            let (d, wide) = (random((m, n), 5), random((k, n + 4), 6));
            let run = |precision: Precision| {
                let plain = linear(&x, &w, Some(&b), precision).unwrap();
                let onto = linear_onto(&residual, &x, &w, Some(&b), precision).unwrap();
                let d = d.to_dtype(precision.activations()).unwrap();
                let back = matmul(&d, &w.t().unwrap(), precision).unwrap();
                let (into, bias) = (wide.copy().unwrap(), b.copy().unwrap());
                accumulate(&into.narrow(1, 2, n).unwrap(), &x.t().unwrap(), &d, precision).unwrap();
                accumulate_column_sums(Some(&bias), &d).unwrap();
                accumulate_column_sums(
                    Some(&bias.narrow(0, 0, n / 2).unwrap()),
                    &d.narrow(1, 0, n / 2).unwrap().contiguous().unwrap(),
                )
                .unwrap();
                vec![plain, onto, back, into, bias]
            };
            let want = run(F32);
            // bf16: 2^-9 of every factor and of the result.
            for (precision, tolerance) in [(F32, 1e-5), (Precision::Mixed, 1e-2)] {
                for (got, want) in
                    emulated(|| run(precision)).iter().flatten().zip(want.iter().cycle())
                {
                    assert_close(got, want, tolerance);
                }
            }
        }
    }
}
