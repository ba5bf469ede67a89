//! What the chip's arithmetic does at best: fused multiply-adds of f32 between registers, by the
//! widest instructions that the kernels use, where nothing waits for memory. No op uses it: it is
//! the ceiling that products are measured against.

use std::hint::black_box;
use std::time::Instant;

/// Independent sums: more than a chip's units hold in flight.
const SUMS: usize = 12;

/// The instruction set that the kernels of this process use.
pub(crate) fn instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    return ["SSE2", "AVX2 and FMA", "AVX-512"][super::simd::level() as usize];
    #[cfg(target_arch = "aarch64")]
    return "NEON";
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    "portable"
}

/// FLOP/s of all threads of rayon's pool together, best of `runs` runs of about 30 ms; None where
/// the chip has no fused multiply-add that we know.
pub(crate) fn measured(runs: usize) -> Option<f64> {
    // How many rounds take 30 ms, found by doubling.
    let mut rounds = 1 << 14;
    loop {
        let start = Instant::now();
        flops(rounds)?;
        if start.elapsed().as_secs_f64() > 0.03 {
            break;
        }
        rounds *= 2;
    }
    let speed = || {
        let start = Instant::now();
        let done = rayon::broadcast(|_| flops(rounds).unwrap_or(0.0));
        done.iter().sum::<f64>() / start.elapsed().as_secs_f64()
    };
    Some((0..runs).map(|_| speed()).fold(0.0, f64::max))
}

/// Does `rounds` of [`SUMS`] vector operations on this thread; returns how many FLOPs these were.
fn flops(rounds: u64) -> Option<f64> {
    let lanes = lanes(rounds)?;
    Some((rounds * 2 * SUMS as u64 * lanes) as f64)
}

#[cfg(target_arch = "x86_64")]
fn lanes(rounds: u64) -> Option<u64> {
    use std::arch::x86_64::{
        __m256, __m512, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps,
    };
    #[target_feature(enable = "avx512f")]
    fn v4(rounds: u64) {
        let (x, y) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(1e-3)));
        let mut sums: [__m512; SUMS] = [y; SUMS];
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, x, y));
        }
        black_box(sums);
    }
    #[target_feature(enable = "avx2,fma")]
    fn v3(rounds: u64) {
        let (x, y) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(1e-3)));
        let mut sums: [__m256; SUMS] = [y; SUMS];
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, x, y));
        }
        black_box(sums);
    }
    match super::simd::level() {
        // SAFETY: the level says that the chip has the features.
        2 => unsafe { v4(rounds) },
        1 => unsafe { v3(rounds) },
        _ => return None,
    }
    Some(if super::simd::level() == 2 { 16 } else { 8 })
}

#[cfg(target_arch = "aarch64")]
fn lanes(rounds: u64) -> Option<u64> {
    use std::arch::aarch64::{float32x4_t, vdupq_n_f32, vfmaq_f32};
    #[target_feature(enable = "neon")]
    fn neon(rounds: u64) {
        let (x, y) = (vdupq_n_f32(black_box(0.999)), vdupq_n_f32(black_box(1e-3)));
        let mut sums: [float32x4_t; SUMS] = [y; SUMS];
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = vfmaq_f32(*sum, x, y));
        }
        black_box(sums);
    }
    // SAFETY: every such chip has NEON.
    unsafe { neon(rounds) };
    Some(4)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn lanes(_: u64) -> Option<u64> {
    None
}
