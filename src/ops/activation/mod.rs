//! What stands between the two products of an MLP: a function of each number of `x` [N, F], or of
//! the first half of [N, 2 F] times the second (gate and up side by side; GLU variants, Shazeer,
//! arXiv 2002.05202).
//!
//! ```text
//! relu   max(0, x)
//! silu   x s                         s = 1 / (1 + exp(-x))        silu' = s (1 + x (1 - s))
//! gelu   x Phi(x)                    Phi = (1 + erf(x / sqrt 2)) / 2   gelu' = Phi + x exp(-x^2 / 2) / sqrt(2 pi)
//! gelu-tanh: see `ops::gelu`
//! gated  y = f(g) u                  dg = dy u f'(g)              du = dy f(g)
//! ```

mod cpu;
mod cuda;

use super::{Backend, gelu};
use crate::error::Result;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// What the MLP is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Mlp {
    /// Between its two products.
    pub activation: Activation,
    /// Whether a second product multiplies the activation (Shazeer, arXiv 2002.05202).
    pub gated: bool,
}

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// GELU in its tanh form.
    #[default]
    GeluTanh,
    /// GELU by the error function.
    Gelu,
    /// max(0, x).
    Relu,
    /// x sigmoid(x).
    Silu,
}

/// y [N, F].
pub fn forward(mlp: Mlp, x: &Tensor) -> Result<Tensor> {
    match (Backend::of(x), mlp) {
        (_, Mlp { activation: Activation::GeluTanh, gated: false }) => gelu::forward(x),
        (Backend::Cpu, mlp) => cpu::forward(mlp, x),
        (Backend::Gpu, mlp) => cuda::forward(mlp, x),
        (Backend::Reference, mlp) => reference(mlp, x),
    }
}

/// The gradient with respect to x, of its shape, from the upstream gradient `dy` [N, F], which may
/// be overwritten.
pub fn backward(mlp: Mlp, dy: Tensor, x: &Tensor) -> Result<Tensor> {
    match (Backend::of(x), mlp) {
        (_, Mlp { activation: Activation::GeluTanh, gated: false }) => {
            gelu::backward(&dy, x)?;
            return Ok(dy);
        }
        (Backend::Cpu, mlp) => return cpu::backward(mlp, &dy, x),
        (Backend::Gpu, mlp) => return cuda::backward(mlp, &dy, x),
        (Backend::Reference, _) => {}
    }
    let f = mlp.activation;
    if !mlp.gated {
        return Ok((dy * slope(f, x)?)?);
    }
    let (gate, up) = halves(x)?;
    let d_gate = ((&dy * &up)? * slope(f, &gate)?)?;
    let d_up = (&dy * value(f, &gate)?)?;
    Ok(Tensor::cat(&[d_gate, d_up], 1)?)
}

/// The formula in candle ops.
pub fn reference(mlp: Mlp, x: &Tensor) -> Result<Tensor> {
    if !mlp.gated {
        return value(mlp.activation, x);
    }
    let (gate, up) = halves(x)?;
    Ok((value(mlp.activation, &gate)? * up)?)
}

fn halves(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let width = x.dim(1)? / 2;
    Ok((x.narrow(1, 0, width)?.contiguous()?, x.narrow(1, width, width)?.contiguous()?))
}

fn value(f: Activation, x: &Tensor) -> Result<Tensor> {
    Ok(match f {
        Activation::GeluTanh => gelu::reference(x)?,
        Activation::Gelu => x.gelu_erf()?,
        Activation::Relu => x.relu()?,
        Activation::Silu => (x * sigmoid(x)?)?,
    })
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}

fn slope(f: Activation, x: &Tensor) -> Result<Tensor> {
    Ok(match f {
        Activation::GeluTanh => {
            let one = x.ones_like()?;
            gelu::backward(&one, x)?;
            one
        }
        Activation::Gelu => {
            let phi = ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? * 0.5)?;
            let density = ((x.sqr()? * -0.5)?.exp()? * (0.5 * GAUSS))?;
            ((phi + 0.5)? + (x * density)?)?
        }
        Activation::Relu => x.gt(0.0)?.to_dtype(x.dtype())?,
        Activation::Silu => {
            let s = sigmoid(x)?;
            let rest = (x * (s.neg()? + 1.0)?)?;
            (s * (rest + 1.0)?)?
        }
    })
}

/// 2 / sqrt(2 pi).
const GAUSS: f64 = 0.797_884_560_802_865_4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, autograd, check_finite_differences, emulated, random};
    use candle_core::DType;

    fn kinds() -> Vec<Mlp> {
        use Activation::{Gelu, GeluTanh, Relu, Silu};
        let both = |activation| [false, true].map(|gated| Mlp { activation, gated });
        [GeluTanh, Gelu, Relu, Silu].into_iter().flat_map(both).collect()
    }

    #[test]
    fn forward_and_backward_match_autograd_of_the_reference() {
        for mlp in kinds() {
            for (n, f) in [(1, 1), (3, 17), (9, 2000)] {
                let width = if mlp.gated { 2 * f } else { f };
                let x = (random((n, width), 1) * 3.0).unwrap();
                let dy = random((n, f), 2);
                let (out, grads) = autograd(&[&x], &dy, |v| reference(mlp, &v[0]));
                for dtype in [DType::F32, DType::F64] {
                    let of = |t: &Tensor| t.copy().unwrap().to_dtype(dtype).unwrap();
                    let (x, dy) = (of(&x), of(&dy));
                    assert_close(&forward(mlp, &x).unwrap(), &out, 2e-6);
                    assert_close(&backward(mlp, dy, &x).unwrap(), &grads[0], 4e-6);
                }
            }
        }
    }

    #[test]
    fn the_reference_is_right_by_finite_differences() {
        for mlp in kinds() {
            check_finite_differences(&[&random((3, 8), 1)], |v| reference(mlp, &v[0]));
        }
    }

    #[test]
    fn far_from_zero_they_are_lines() {
        for mlp in kinds().into_iter().filter(|mlp| !mlp.gated) {
            let x = Tensor::new(&[[-1e4f32, -90.0, 90.0, 1e4]], &candle_core::Device::Cpu).unwrap();
            let run = || {
                let y = forward(mlp, &x).unwrap();
                vec![y, backward(mlp, x.ones_like().unwrap(), &x).unwrap()]
            };
            for all in [Some(run()), emulated(run)].into_iter().flatten() {
                for (got, far) in all.iter().zip([[90.0, 1e4], [1.0, 1.0]]) {
                    let got = got.to_vec2::<f32>().unwrap().remove(0);
                    assert!(got[..2].iter().all(|x| x.abs() < 1e-30) && got[2..] == far, "{got:?}");
                }
            }
        }
    }

    #[test]
    fn no_rows_is_no_error() {
        for mlp in kinds() {
            let run = || {
                let (x, dy) = (random((0, 8), 1), random((0, if mlp.gated { 4 } else { 8 }), 2));
                assert_eq!(forward(mlp, &x).unwrap().dims(), dy.dims());
                assert_eq!(backward(mlp, dy, &x).unwrap().dims(), [0, 8]);
                vec![]
            };
            run();
            let _ = emulated(run);
        }
    }

    #[test]
    fn a_gpus_kernels_give_the_same() {
        for mlp in kinds() {
            for (n, f) in [(1, 1), (3, 17), (5, 64), (2, 1030)] {
                let width = if mlp.gated { 2 * f } else { f };
                let (x, dy) = ((random((n, width), 1) * 3.0).unwrap(), random((n, f), 2));
                let run = |x: &Tensor, dy: &Tensor| {
                    vec![forward(mlp, x).unwrap(), backward(mlp, dy.copy().unwrap(), x).unwrap()]
                };
                // bf16: from the same numbers, so that results alone are rounded, by 2^-9.
                for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::BF16, 4e-3)] {
                    let round = |x: &Tensor| x.to_dtype(dtype).unwrap();
                    let exact = |x: &Tensor| round(x).to_dtype(DType::F32).unwrap();
                    let want = run(&exact(&x), &exact(&dy));
                    let got = emulated(|| run(&round(&x), &round(&dy)));
                    for (got, want) in got.iter().flatten().zip(&want) {
                        assert_close(got, want, tolerance);
                    }
                }
            }
        }
    }
}
