//! What the tests of several ops share.

use crate::error::Result;
use crate::rng::{Rng, Stream};
use candle_core::{DType, Device, Shape, Tensor, Var};

/// Standard normal f32 tensor on the CPU; the same for the same tag.
pub fn random(shape: impl Into<Shape>, tag: u32) -> Tensor {
    let shape = shape.into();
    let rng = Rng::new(1234, Stream::Init);
    let data: Vec<f32> =
        (0..shape.elem_count()).map(|i| rng.normal(tag, i as u64) as f32).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// Asserts `|got - want| <= tolerance * max(1, largest |want|)` elementwise, shapes equal, nothing
/// NaN.
#[track_caller]
pub fn assert_close(got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "shapes differ");
    let flat = |t: &Tensor| {
        t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
    };
    let (got, want) = (flat(got), flat(want));
    let scale = want.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!(
            (g - w).abs() <= tolerance * scale,
            "element {i}: got {g}, want {w}, tolerance {}",
            tolerance * scale
        );
    }
}

/// Value (f64) and gradients (f64) of `f` at `inputs` by candle's autograd, for the upstream
/// gradient `dy`.
pub fn autograd(
    inputs: &[&Tensor],
    dy: &Tensor,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> (Tensor, Vec<Tensor>) {
    let vars: Vec<Var> = inputs
        .iter()
        .map(|t| Var::from_tensor(&t.to_dtype(DType::F64).unwrap()).unwrap())
        .collect();
    let out = f(&vars.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>()).unwrap();
    let grads =
        (&out * dy.to_dtype(DType::F64).unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
    let grads =
        vars.iter().map(|v| grads.get(v).expect("a gradient for every input").clone()).collect();
    (out.detach(), grads)
}

/// Checks candle's autograd of `f` against central differences in f64, at every element of every
/// input.
#[track_caller]
pub fn check_finite_differences(inputs: &[&Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let inputs: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(DType::F64).unwrap()).collect();
    let shape = f(&inputs).unwrap().shape().clone();
    let dy = random(shape, 99).to_dtype(DType::F64).unwrap();
    let value = |v: &[Tensor]| {
        (f(v).unwrap() * &dy).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
    };
    let (_, grads) = autograd(&inputs.iter().collect::<Vec<_>>(), &dy, &f);
    for (which, grad) in grads.iter().enumerate() {
        let base = inputs[which].flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let grad = grad.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for i in 0..base.len() {
            const H: f64 = 1e-5; // truncation H^2 and rounding 1e-16 / H are both near 1e-10
            let moved = |by: f64| {
                let mut data = base.clone();
                data[i] += by;
                let mut v = inputs.clone();
                v[which] = Tensor::from_vec(data, inputs[which].shape(), &Device::Cpu).unwrap();
                value(&v)
            };
            let slope = (moved(H) - moved(-H)) / (2.0 * H);
            assert!(
                (slope - grad[i]).abs() < 1e-6 * grad[i].abs().max(1.0),
                "input {which}, element {i}: {slope}"
            );
        }
    }
}

/// The bits of f32 tensors, one after the other: equal or not, signed zeros and NaN included.
pub fn bits(tensors: &[Tensor]) -> Vec<u32> {
    let flat = |t: &Tensor| {
        t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    tensors.iter().flat_map(flat).map(f32::to_bits).collect()
}

/// What `run` gives on the kernels for a GPU, run by the emulator: once where it can run, after a
/// check that the order of a block's threads changes no bit; nothing where there is no C++
/// compiler.
#[track_caller]
pub fn emulated(run: impl Fn() -> Vec<Tensor>) -> Option<Vec<Tensor>> {
    let [ascending, descending] = crate::ops::gpu::emulator::emulate(run)?;
    assert!(
        bits(&ascending) == bits(&descending),
        "the order of a block's threads changes the result"
    );
    Some(ascending)
}
