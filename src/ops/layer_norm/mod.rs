//! Layer norm over the last dimension: y = (x - mean) / sqrt(var + eps) * w + b (Ba et al., arXiv
//! 1607.06450). Without a shift b it is RMS norm: y = x / sqrt(mean(x^2) + eps) * w (Zhang and
//! Sennrich, arXiv 1910.07467), for which every mean here is 0.

mod cpu;
mod cuda;

use super::matmul::Precision;
use super::{Backend, buffer};
use crate::error::Result;
use candle_core::{D, Tensor};

/// Normalised rows and what the backward needs of them.
#[derive(Debug, Clone)]
pub struct Normed {
    /// y [N, D].
    pub out: Tensor,
    /// Mean and reciprocal standard deviation of each row, [N, 2]; of RMS norm 0 and the
    /// reciprocal root of the mean square.
    pub stats: Tensor,
}

/// Forward for `x` [N, D], `w` [D], `b` [D] or None for RMS norm. The output is in the precision's number format of
/// activations.
pub fn forward(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    eps: f64,
    precision: Precision,
) -> Result<Normed> {
    match Backend::of(x) {
        Backend::Cpu => return cpu::forward(x, w, b, eps as f32),
        Backend::Gpu => return cuda::forward(x, w, b, eps as f32, precision.activations()),
        Backend::Reference => {}
    }
    let mean = x.mean_keepdim(D::Minus1)?;
    let mean = if b.is_some() { mean } else { mean.zeros_like()? };
    let rstd = (x.broadcast_sub(&mean)?.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    Ok(Normed { out: reference(x, w, b, eps)?, stats: Tensor::cat(&[mean, rstd], 1)? })
}

/// y again from x and its statistics: cheaper than keeping it on the tape.
pub fn replay(
    x: &Tensor,
    stats: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    precision: Precision,
) -> Result<Tensor> {
    match Backend::of(x) {
        Backend::Cpu => cpu::replay(x, stats, w, b),
        Backend::Gpu => cuda::replay(x, stats, w, b, precision.activations()),
        Backend::Reference => shifted(normalise(x, stats)?.broadcast_mul(w)?, b),
    }
}

fn shifted(y: Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    Ok(match b {
        Some(b) => y.broadcast_add(b)?,
        None => y,
    })
}

/// What the backward of N rows reads, and what it adds to.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// Upstream gradient, that of y: [N, D].
    pub dy: &'a Tensor,
    /// The forward's input [N, D].
    pub x: &'a Tensor,
    /// The forward's statistics of it [N, 2].
    pub stats: &'a Tensor,
    /// Scale `[D]`.
    pub w: &'a Tensor,
    /// The gradient with respect to x is added to this [N, D].
    pub dx: &'a Tensor,
    /// That with respect to w to this `[D]`.
    pub dw: &'a Tensor,
    /// That with respect to b to this `[D]`; None for RMS norm.
    pub db: Option<&'a Tensor>,
}

/// Adds the gradients with respect to x, w and b to those given.
pub fn backward(args: Backward<'_>) -> Result<()> {
    match Backend::of(args.x) {
        Backend::Cpu => return cpu::backward(args),
        Backend::Gpu => return cuda::backward(args),
        Backend::Reference => {}
    }
    let Backward { dy, x, stats, w, dx, dw, db } = args;
    let xhat = normalise(x, stats)?;
    buffer::add_assign(dw, &(dy * &xhat)?.sum(0)?)?;
    let mut g = dy.broadcast_mul(w)?;
    let along = xhat.broadcast_mul(&(&g * &xhat)?.mean_keepdim(1)?)?;
    if let Some(db) = db {
        buffer::add_assign(db, &dy.sum(0)?)?;
        g = g.broadcast_sub(&g.mean_keepdim(1)?)?;
    }
    let inner = (g - along)?;
    buffer::add_assign(dx, &inner.broadcast_mul(&stats.narrow(1, 1, 1)?)?)
}

fn normalise(x: &Tensor, stats: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_sub(&stats.narrow(1, 0, 1)?)?.broadcast_mul(&stats.narrow(1, 1, 1)?)?)
}

/// The formula in candle ops that its autograd can differentiate.
pub fn reference(x: &Tensor, w: &Tensor, b: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let centred = match b {
        Some(_) => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
        None => x.clone(),
    };
    let std = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    shifted(centred.broadcast_div(&std)?.broadcast_mul(w)?, b)
}

#[cfg(test)]
mod tests {
    use super::Precision::F32;
    use super::*;
    use crate::ops::testing::{assert_close, autograd, check_finite_differences, emulated, random};
    use candle_core::DType;

    #[test]
    fn forward_and_backward_match_autograd_of_the_reference() {
        for (n, d) in [(1, 1), (1, 8), (5, 24), (70, 33), (130, 64)] {
            let (x, w, b, dy) = (random((n, d), 1), random(d, 2), random(d, 3), random((n, d), 4));
            let (out, grads) =
                autograd(&[&x, &w, &b], &dy, |v| reference(&v[0], &v[1], Some(&v[2]), 1e-5));
            let normed = forward(&x, &w, Some(&b), 1e-5, F32).unwrap();
            // d = 1 has zero variance: x - mean is exactly 0 and rstd about 316, so the tolerance
            // scales with it.
            let tolerance = if d == 1 { 1e-3 } else { 2e-5 };
            assert_close(&normed.out, &out, tolerance);
            assert_close(&replay(&x, &normed.stats, &w, Some(&b), F32).unwrap(), &normed.out, 1e-6);
            let (dx, dw, db) = (random((n, d), 5), random(d, 6), random(d, 7));
            let want: Vec<Tensor> = [&dx, &dw, &db]
                .iter()
                .zip(&grads)
                .map(|(start, g)| (start.to_dtype(DType::F64).unwrap() + g).unwrap())
                .collect();
            backward(Backward {
                dy: &dy,
                x: &x,
                stats: &normed.stats,
                w: &w,
                dx: &dx,
                dw: &dw,
                db: Some(&db),
            })
            .unwrap();
            for (got, want) in [&dx, &dw, &db].iter().zip(&want) {
                assert_close(got, want, tolerance);
            }
        }
    }

    #[test]
    fn the_path_off_the_cpu_gives_the_same() {
        let f64s = |t: Tensor| t.to_dtype(DType::F64).unwrap();
        let (x, w, b, dy) = (random((7, 12), 1), random(12, 2), random(12, 3), random((7, 12), 4));
        let fast = forward(&x, &w, Some(&b), 1e-5, F32).unwrap();
        let (dx, dw, db) =
            (x.zeros_like().unwrap(), w.zeros_like().unwrap(), b.zeros_like().unwrap());
        backward(Backward {
            dy: &dy,
            x: &x,
            stats: &fast.stats,
            w: &w,
            dx: &dx,
            dw: &dw,
            db: Some(&db),
        })
        .unwrap();
        let (x, w, b, dy) = (f64s(x), f64s(w), f64s(b), f64s(dy));
        let slow = forward(&x, &w, Some(&b), 1e-5, F32).unwrap();
        let (sx, sw, sb) =
            (x.zeros_like().unwrap(), w.zeros_like().unwrap(), b.zeros_like().unwrap());
        backward(Backward {
            dy: &dy,
            x: &x,
            stats: &slow.stats,
            w: &w,
            dx: &sx,
            dw: &sw,
            db: Some(&sb),
        })
        .unwrap();
        for (fast, slow) in
            [(&fast.out, &slow.out), (&fast.stats, &slow.stats), (&dx, &sx), (&dw, &sw), (&db, &sb)]
        {
            assert_close(fast, slow, 1e-5);
        }
    }

    #[test]
    fn the_reference_is_right_by_finite_differences() {
        check_finite_differences(&[&random((3, 5), 1), &random(5, 2), &random(5, 3)], |v| {
            reference(&v[0], &v[1], Some(&v[2]), 1e-5)
        });
    }

    #[test]
    fn without_a_shift_it_is_rms_norm() {
        for (n, d) in [(1, 1), (5, 24), (70, 33), (3, 2)] {
            let (x, w, dy) = (random((n, d), 1), random(d, 2), random((n, d), 4));
            let (out, grads) = autograd(&[&x, &w], &dy, |v| reference(&v[0], &v[1], None, 1e-6));
            for dtype in [DType::F32, DType::F64] {
                let of = |t: &Tensor| t.to_dtype(dtype).unwrap();
                let (x, w, dy) = (of(&x), of(&w), of(&dy));
                let normed = forward(&x, &w, None, 1e-6, F32).unwrap();
                assert_close(&normed.out, &out, 5e-6);
                assert_close(&replay(&x, &normed.stats, &w, None, F32).unwrap(), &out, 5e-6);
                let (dx, dw) = (x.zeros_like().unwrap(), w.zeros_like().unwrap());
                let stats = &normed.stats;
                let back = Backward { dy: &dy, x: &x, stats, w: &w, dx: &dx, dw: &dw, db: None };
                backward(back).unwrap();
                assert_close(&dx, &grads[0], 2e-5);
                assert_close(&dw, &grads[1], 2e-5);
            }
        }
        check_finite_differences(&[&random((3, 5), 1), &random(5, 2)], |v| {
            reference(&v[0], &v[1], None, 1e-6)
        });
    }

    #[test]
    fn no_rows_is_no_error() {
        let x = random((0, 4), 1);
        let (w, b) = (random(4, 2), random(4, 3));
        let normed = forward(&x, &w, Some(&b), 1e-5, F32).unwrap();
        let (dx, dw, db) = (x.copy().unwrap(), w.zeros_like().unwrap(), b.zeros_like().unwrap());
        backward(Backward {
            dy: &x,
            x: &x,
            stats: &normed.stats,
            w: &w,
            dx: &dx,
            dw: &dw,
            db: Some(&db),
        })
        .unwrap();
        assert_close(&dw, &w.zeros_like().unwrap(), 0.0);
    }

    #[test]
    fn the_forward_is_candles() {
        let (x, w, b) = (random((9, 33), 1), random(33, 2), random(33, 3));
        let theirs = candle_nn::ops::layer_norm_slow(&x, &w, &b, 1e-5).unwrap();
        assert_close(&forward(&x, &w, Some(&b), 1e-5, F32).unwrap().out, &theirs, 2e-6);
    }

    #[test]
    fn a_gpus_kernels_give_the_same() {
        for (n, d) in [(1, 1), (1, 8), (9, 24), (130, 33), (3, 300)] {
            let (x, w, b, dy) = (random((n, d), 1), random(d, 2), random(d, 3), random((n, d), 4));
            let run = |precision: Precision| {
                let normed = forward(&x, &w, Some(&b), 1e-5, precision).unwrap();
                let again = replay(&x, &normed.stats, &w, Some(&b), precision).unwrap();
                let dy = dy.to_dtype(precision.activations()).unwrap();
                let (dx, dw, db) = (random((n, d), 5), random(d, 6), random(d, 7));
                backward(Backward {
                    dy: &dy,
                    x: &x,
                    stats: &normed.stats,
                    w: &w,
                    dx: &dx,
                    dw: &dw,
                    db: Some(&db),
                })
                .unwrap();
                vec![normed.out, again, normed.stats, dx, dw, db]
            };
            let want = run(F32);
            // f32: rounding of sums in another order. bf16: half a unit in 8 bits of mantissa,
            // 2^-9, of every input.
            for (precision, tolerance) in [(F32, 2e-5), (Precision::Mixed, 8e-3)] {
                let tolerance = if d == 1 { 1e-2f64.max(tolerance) } else { tolerance };
                for (got, want) in
                    emulated(|| run(precision)).iter().flatten().zip(want.iter().cycle())
                {
                    assert_close(got, want, tolerance);
                }
            }
        }
    }

    #[test]
    fn a_gpus_kernels_give_the_same_without_a_shift() {
        // Rows of the residual stream, and many narrow ones: heads.
        for (n, d) in [(1, 1), (9, 24), (130, 33), (3, 300), (500, 4), (70, 64), (260, 5)] {
            let (x, w, dy) = (random((n, d), 1), random(d, 2), random((n, d), 4));
            let run = |precision: Precision, of_rows: DType| {
                let x = x.to_dtype(of_rows).unwrap();
                let normed = forward(&x, &w, None, 1e-6, precision).unwrap();
                let again = replay(&x, &normed.stats, &w, None, precision).unwrap();
                assert_eq!(normed.out.dtype(), precision.activations());
                let dy = dy.to_dtype(precision.activations()).unwrap();
                let (dx, dw) = (random((n, d), 5).to_dtype(of_rows).unwrap(), random(d, 6));
                let stats = &normed.stats;
                let back = Backward { dy: &dy, x: &x, stats, w: &w, dx: &dx, dw: &dw, db: None };
                backward(back).unwrap();
                vec![normed.out, again, normed.stats, dx, dw]
            };
            let want = run(F32, DType::F32);
            // As above; of heads in bf16 x and its gradient are rounded as well.
            for (precision, of_rows, tolerance) in [
                (F32, DType::F32, 2e-5),
                (Precision::Mixed, DType::F32, 8e-3),
                (Precision::Mixed, DType::BF16, 2e-2),
            ] {
                let got = emulated(|| run(precision, of_rows));
                for (got, want) in got.iter().flatten().zip(&want) {
                    assert_close(got, want, tolerance);
                }
            }
        }
    }
}
