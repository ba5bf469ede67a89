//! Activations on f32 slices; a task takes a few rows.

use super::{Activation, Mlp};
use crate::error::Result;
use crate::ops::buffer::read;
use crate::ops::gelu::cpu as gelu;
use crate::ops::simd::{exp, multiversion};
use candle_core::cpu::erf::erf_f64;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Numbers per task, about.
const CHUNK: usize = 1 << 14;

pub(super) fn forward(mlp: Mlp, x: &Tensor) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let xs = read(x)?;
    let xs: &[f32] = &xs;
    let f = if mlp.gated { width / 2 } else { width };
    let rows = (CHUNK / width.max(1)).max(1);
    let mut out = vec![0.0; n * f];
    out.par_chunks_mut((rows * f).max(1)).zip(xs.par_chunks((rows * width).max(1))).for_each(
        |(out, x)| {
            for (y, x) in out.chunks_exact_mut(f).zip(x.chunks_exact(width)) {
                values(mlp.activation, y, &x[..f]);
                if mlp.gated {
                    times(y, &x[f..]);
                }
            }
        },
    );
    Ok(Tensor::from_vec(out, (n, f), &Device::Cpu)?)
}

pub(super) fn backward(mlp: Mlp, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let (xs, dys) = (read(x)?, read(dy)?);
    let (xs, dys): (&[f32], &[f32]) = (&xs, &dys);
    let f = if mlp.gated { width / 2 } else { width };
    let rows = (CHUNK / width.max(1)).max(1);
    let mut dx = vec![0.0; n * width];
    dx.par_chunks_mut((rows * width).max(1))
        .zip(xs.par_chunks((rows * width).max(1)))
        .zip(dys.par_chunks((rows * f).max(1)))
        .for_each(|((dx, x), dy)| {
            let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width));
            for ((dx, x), dy) in rows.zip(dy.chunks_exact(f)) {
                let (d_gate, d_up) = dx.split_at_mut(f);
                slopes(mlp.activation, d_gate, &x[..f]);
                times(d_gate, dy);
                if mlp.gated {
                    times(d_gate, &x[f..]);
                    values(mlp.activation, d_up, &x[..f]);
                    times(d_up, dy);
                }
            }
        });
    Ok(Tensor::from_vec(dx, (n, width), &Device::Cpu)?)
}

fn values(f: Activation, y: &mut [f32], x: &[f32]) {
    match f {
        Activation::GeluTanh => gelu::values(y, x),
        Activation::Gelu => {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = (f64::from(*x) * normal(*x)) as f32);
        }
        Activation::Relu => y.iter_mut().zip(x).for_each(|(y, x)| *y = x.max(0.0)),
        Activation::Silu => silu(y, x),
    }
}

fn slopes(f: Activation, d: &mut [f32], x: &[f32]) {
    match f {
        Activation::GeluTanh => {
            d.fill(1.0);
            gelu::times_slopes(d, x);
        }
        Activation::Gelu => d.iter_mut().zip(x).for_each(|(d, &x)| {
            let wide = f64::from(x);
            *d = (normal(x) + 0.5 * super::GAUSS * wide * (-0.5 * wide * wide).exp()) as f32;
        }),
        Activation::Relu => {
            d.iter_mut().zip(x).for_each(|(d, x)| *d = f32::from(u8::from(*x > 0.0)));
        }
        Activation::Silu => silu_slope(d, x),
    }
}

/// The normal distribution's function.
fn normal(x: f32) -> f64 {
    0.5 * (1.0 + erf_f64(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2))
}

multiversion! {
    fn times(y: &mut [f32], by: &[f32]) {
        for (y, by) in y.iter_mut().zip(by) {
            *y *= by;
        }
    }

    fn silu(y: &mut [f32], x: &[f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x / (1.0 + exp(-x));
        }
    }

    fn silu_slope(d: &mut [f32], x: &[f32]) {
        for (d, &x) in d.iter_mut().zip(x) {
            let s = 1.0 / (1.0 + exp(-x));
            *d = s * (1.0 + x * (1.0 - s));
        }
    }
}
