//! What the tests of several ops share.

use crate::rng::{Rng, Stream};
use candle_core::{DType, Device, Shape, Tensor};

/// Standard normal f32 tensor on the CPU; the same for the same tag.
pub fn random(shape: impl Into<Shape>, tag: u32) -> Tensor {
    let shape = shape.into();
    let rng = Rng::new(1234, Stream::Init);
    let data: Vec<f32> = (0..shape.elem_count()).map(|i| rng.normal(tag, i as u64) as f32).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// Asserts `|got - want| <= tolerance * max(1, largest |want|)` elementwise, shapes equal, nothing NaN.
#[track_caller]
pub fn assert_close(got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "shapes differ");
    let flat = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (got, want) = (flat(got), flat(want));
    let scale = want.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "element {i}: got {g}, want {w}, tolerance {}", tolerance * scale);
    }
}
