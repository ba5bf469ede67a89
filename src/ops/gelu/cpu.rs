//! GELU on f32 slices.

use super::{C, CUBIC};
use crate::error::Result;
use crate::ops::buffer::{read, with_mut};
use crate::ops::simd::{multiversion, tanh};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Elements per task.
const CHUNK: usize = 1 << 14;

pub fn forward(x: &Tensor) -> Result<Tensor> {
    let xs = read(x)?;
    let mut out = vec![0.0; xs.len()];
    out.par_chunks_mut(CHUNK).zip(xs.par_chunks(CHUNK)).for_each(|(y, x)| values(y, x));
    Ok(Tensor::from_vec(out, x.shape(), &Device::Cpu)?)
}

pub fn backward(dy: &Tensor, x: &Tensor) -> Result<()> {
    let xs = read(x)?;
    let xs: &[f32] = &xs;
    with_mut(dy, |dy| {
        dy.par_chunks_mut(CHUNK).zip(xs.par_chunks(CHUNK)).for_each(|(d, x)| times_slopes(d, x))
    })
}

multiversion! {
    /// y of each x.
    pub(in crate::ops) fn values(y: &mut [f32], x: &[f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            let t = tanh(C as f32 * (x + CUBIC as f32 * x * x * x));
            *y = 0.5 * x * (1.0 + t);
        }
    }

    /// Multiplies each number by the slope at its x.
    pub(in crate::ops) fn times_slopes(dy: &mut [f32], x: &[f32]) {
        for (d, &x) in dy.iter_mut().zip(x) {
            let t = tanh(C as f32 * (x + CUBIC as f32 * x * x * x));
            let slope = C as f32 * (1.0 + 3.0 * CUBIC as f32 * x * x);
            *d *= 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope;
        }
    }
}
