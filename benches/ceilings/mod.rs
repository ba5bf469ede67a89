//! What the machine can do at best, and how times are summed up.
#![allow(dead_code)] // each bench takes what it needs

use candle_core::{DType, Device, Tensor};
use eslm_kd::config::Dtype;
use eslm_kd::ops::matmul::{Precision, accumulate};
use rayon::prelude::*;
use std::time::Instant;

/// GFLOP/s of products, best of ten: on a CPU in f32 the one that an MLP of GPT-2 124M makes of
/// 1,024 positions, into memory that is there; on a GPU one of 8,192 cubed, at `dtype`.
pub fn matmul_ceiling(device: &Device, dtype: Dtype) -> f64 {
    let on_gpu = device.is_cuda();
    let (m, k, n) = if on_gpu { (8192, 8192, 8192) } else { (1024, 768, 3072) };
    let precision = if on_gpu { Precision::of(dtype, device).unwrap() } else { Precision::F32 };
    let format = if precision == Precision::Mixed { DType::BF16 } else { DType::F32 };
    let random = |rows, cols| {
        Tensor::rand(-1f32, 1f32, (rows, cols), device).unwrap().to_dtype(format).unwrap()
    };
    let (a, b, out) =
        (random(m, k), random(k, n), Tensor::zeros((m, n), DType::F32, device).unwrap());
    let best = best_of(10, || {
        accumulate(&out, &a, &b, precision).unwrap();
        device.synchronize().unwrap();
    });
    2.0 * (m * k * n) as f64 / best / 1e9
}

/// GB/s of `a = b + c` over arrays that no cache holds, counting two reads and a write; best of
/// ten.
pub fn memory_ceiling() -> f64 {
    const N: usize = 1 << 25;
    let (mut a, b, c) = (vec![0f32; N], vec![1f32; N], vec![2f32; N]);
    let add = || {
        a.par_chunks_mut(1 << 16).zip(b.par_chunks(1 << 16)).zip(c.par_chunks(1 << 16)).for_each(
            |((a, b), c)| {
                a.iter_mut().zip(b).zip(c).for_each(|((a, b), c)| *a = b + c);
            },
        );
    };
    3.0 * 4.0 * N as f64 / best_of(10, add) / 1e9
}

pub fn best_of(runs: usize, mut what: impl FnMut()) -> f64 {
    (0..runs).map(|_| seconds(&mut what)).fold(f64::INFINITY, f64::min)
}

pub fn seconds(what: &mut impl FnMut()) -> f64 {
    let start = Instant::now();
    what();
    start.elapsed().as_secs_f64()
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
