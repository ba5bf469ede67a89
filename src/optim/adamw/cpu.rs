//! AdamW and sums of squares on the CPU: fixed chunks over the thread pool, loops that the compiler
//! vectorises.
//!
//! Neither loop lets the compiler fuse or reorder floating-point operations, so the instruction set
//! chosen at run time changes the speed only.

use super::Scalars;
use crate::ops::simd::{LANES, multiversion};
use rayon::prelude::*;

/// Elements per task. Fixed, so that partial sums never depend on the number of threads.
const CHUNK: usize = 1 << 16;

/// [`Scalars`] as the loop uses them.
#[derive(Clone, Copy)]
struct Narrow {
    scale: f32,
    keep: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    root_correction: f32,
    rate: f32,
    eps: f32,
}

/// One AdamW update of one tensor; `g` is zero afterwards. All slices have the same length.
pub(super) fn update(p: &mut [f32], g: &mut [f32], m: &mut [f32], v: &mut [f32], s: &Scalars) {
    let s = Narrow {
        scale: s.scale as f32,
        keep: s.keep as f32,
        one_minus_beta1: (1.0 - s.beta1) as f32,
        beta2: s.beta2 as f32,
        one_minus_beta2: (1.0 - s.beta2) as f32,
        root_correction: s.root_correction as f32,
        rate: s.rate as f32,
        eps: s.eps as f32,
    };
    if p.len() <= CHUNK {
        return update_chunk(p, g, m, v, s); // biases and norms: not worth a task
    }
    let chunks = p.par_chunks_mut(CHUNK).zip(g.par_chunks_mut(CHUNK));
    chunks
        .zip(m.par_chunks_mut(CHUNK))
        .zip(v.par_chunks_mut(CHUNK))
        .for_each(|(((p, g), m), v)| update_chunk(p, g, m, v, s));
}

multiversion! {
    fn update_chunk(p: &mut [f32], g: &mut [f32], m: &mut [f32], v: &mut [f32], s: Narrow) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let scaled = *g * s.scale;
            *g = 0.0;
            *m += (scaled - *m) * s.one_minus_beta1;
            *v = *v * s.beta2 + scaled * scaled * s.one_minus_beta2;
            *p = *p * s.keep - s.rate * (*m / (v.sqrt() * s.root_correction + s.eps));
        }
    }

    fn squares_chunk(x: &[f32]) -> f64 {
        let mut lanes = [0f64; LANES];
        let (blocks, rest) = x.as_chunks::<LANES>();
        for block in blocks {
            for (sum, &x) in lanes.iter_mut().zip(block) {
                let wide = f64::from(x);
                *sum += wide * wide;
            }
        }
        for (sum, &x) in lanes.iter_mut().zip(rest) {
            let wide = f64::from(x);
            *sum += wide * wide;
        }
        lanes.iter().sum()
    }
}

/// Sum of squares in f64; not finite if and only if an element is not.
pub(super) fn sum_of_squares(x: &[f32]) -> f64 {
    if x.len() <= CHUNK {
        return squares_chunk(x);
    }
    // The partial sums are collected in order and added one after the other.
    let partial: Vec<f64> = x.par_chunks(CHUNK).map(squares_chunk).collect();
    partial.iter().sum()
}
