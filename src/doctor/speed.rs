//! How fast matrix products are here, and how fast they could be.

use crate::ops::matmul::{Precision, accumulate};
use crate::ops::peak;
use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use std::time::{Duration, Instant};

/// The product that the MLP of GPT-2 124M makes of 1,024 positions: [M, K] by [K, N].
const SHAPE: (usize, usize, usize) = (1024, 768, 3072);
/// How long is measured, and how often at least.
const LONG: Duration = Duration::from_millis(500);
const LEAST: usize = 3;
/// How often a ceiling that was disturbed is measured.
const TRIES: usize = 4;

/// Speed of products in f32 on all threads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speed {
    /// GFLOP/s of our own product, the best of half a second.
    pub gflops: f64,
    /// GFLOP/s of multiply-adds between registers on the same threads, measured; None where other
    /// programs kept it below the products'.
    pub ceiling: Option<f64>,
    /// The one as a share of the other.
    pub share: Option<f64>,
}

/// Takes about a second.
pub(super) fn measure() -> Speed {
    let gflops = products().unwrap_or(0.0);
    let ceiling = (0..TRIES).find_map(|_| {
        let found = peak::measured(5).map(|flops| flops / 1e9);
        // Nothing is faster than its ceiling: something else took the cores meanwhile.
        found.filter(|ceiling| *ceiling >= gflops)
    });
    Speed { gflops, ceiling, share: ceiling.map(|ceiling| gflops / ceiling) }
}

fn products() -> crate::error::Result<f64> {
    let (m, k, n) = SHAPE;
    let random = |rows, cols| Tensor::rand(-1f32, 1f32, (rows, cols), &Device::Cpu);
    let (a, b) = (random(m, k)?, random(k, n)?);
    let out = Tensor::zeros((m, n), DType::F32, &Device::Cpu)?;
    let begun = Instant::now();
    let (mut best, mut runs) = (f64::INFINITY, 0);
    while runs < LEAST || begun.elapsed() < LONG {
        crate::interrupt::check()?;
        let start = Instant::now();
        accumulate(&out, &a, &b, Precision::F32)?;
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(2.0 * (m * k * n) as f64 / best / 1e9)
}
