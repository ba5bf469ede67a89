//! GELU in its tanh form, as GPT-2 uses it (`gelu_new`; Hendrycks & Gimpel, arXiv 1606.08415):
//! 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

pub(super) mod cpu;
mod cuda;

use super::{Backend, buffer};
use crate::error::Result;
use candle_core::Tensor;

const C: f64 = 0.797_884_560_802_865_4; // sqrt(2 / pi)
const CUBIC: f64 = 0.044_715;

/// y with x's shape.
pub fn forward(x: &Tensor) -> Result<Tensor> {
    match Backend::of(x) {
        Backend::Cpu => cpu::forward(x),
        Backend::Gpu => cuda::forward(x),
        Backend::Reference => reference(x),
    }
}

/// Turns the upstream gradient `dy` into the gradient with respect to x, in place.
pub fn backward(dy: &Tensor, x: &Tensor) -> Result<()> {
    match Backend::of(x) {
        Backend::Cpu => return cpu::backward(dy, x),
        Backend::Gpu => return cuda::backward(dy, x),
        Backend::Reference => {}
    }
    let t = inner(x)?.tanh()?;
    let slope = ((x.sqr()? * (3.0 * CUBIC * C))? + C)?;
    let d = ((&t + 1.0)? * 0.5)?.add(&((x * 0.5)? * (t.sqr()?.neg()? + 1.0)?)?.mul(&slope)?)?;
    buffer::assign(dy, &(dy * d)?)
}

fn inner(x: &Tensor) -> Result<Tensor> {
    Ok(((x + (x.sqr()? * x)?.affine(CUBIC, 0.0)?)? * C)?)
}

/// The formula in candle ops.
pub fn reference(x: &Tensor) -> Result<Tensor> {
    Ok(((x * 0.5)? * (inner(x)?.tanh()? + 1.0)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, autograd, check_finite_differences, emulated, random};
    use candle_core::{DType, Device};

    #[test]
    fn forward_and_backward_match_autograd_of_the_reference() {
        for shape in [(1, 1), (3, 17), (9, 2000)] {
            let x = (random(shape, 1) * 3.0).unwrap();
            let dy = random(shape, 2);
            let (out, grads) = autograd(&[&x], &dy, |v| reference(&v[0]));
            assert_close(&forward(&x).unwrap(), &out, 1e-6);
            let d = dy.copy().unwrap();
            backward(&d, &x).unwrap();
            assert_close(&d, &grads[0], 2e-6);
            let (slow, x) = (dy.to_dtype(DType::F64).unwrap(), x.to_dtype(DType::F64).unwrap());
            backward(&slow, &x).unwrap();
            assert_close(&slow, &grads[0], 1e-12);
        }
    }

    #[test]
    fn a_gpus_kernels_give_the_same() {
        for n in [1, 7, 1024, 3001] {
            let (x, dy) = ((random(n, 1) * 3.0).unwrap(), random(n, 2));
            let run = |dtype: DType| {
                let (x, d) =
                    (x.to_dtype(dtype).unwrap(), dy.copy().unwrap().to_dtype(dtype).unwrap());
                let y = forward(&x).unwrap();
                backward(&d, &x).unwrap();
                vec![y, d]
            };
            let want = run(DType::F32);
            // bf16: 2^-9 of input, upstream and result; the slope is at most 1.13.
            for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 1e-2)] {
                for (got, want) in emulated(|| run(dtype)).iter().flatten().zip(&want) {
                    assert_close(got, want, tolerance);
                }
            }
        }
        // Far out it is as flat as on the CPU.
        let x = Tensor::new(&[-1e4f32, -30.0, 0.0, 30.0, 1e4], &Device::Cpu).unwrap();
        for got in emulated(|| vec![forward(&x).unwrap()]).iter().flatten() {
            assert_eq!(got.to_vec1::<f32>().unwrap(), [0.0, 0.0, 0.0, 30.0, 1e4]);
        }
    }

    #[test]
    fn the_reference_is_right_by_finite_differences() {
        check_finite_differences(&[&random((4, 5), 1)], |v| reference(&v[0]));
    }

    #[test]
    fn large_inputs_saturate() {
        let x = Tensor::new(&[-1e4f32, -30.0, 0.0, 30.0, 1e4], &Device::Cpu).unwrap();
        assert_eq!(forward(&x).unwrap().to_vec1::<f32>().unwrap(), [0.0, 0.0, 0.0, 30.0, 1e4]);
        let d = Tensor::ones(5, DType::F32, &Device::Cpu).unwrap();
        backward(&d, &x).unwrap();
        assert_eq!(d.to_vec1::<f32>().unwrap(), [0.0, 0.0, 0.5, 1.0, 1.0]);
    }
}
