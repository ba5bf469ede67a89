//! AdamW and sums of squares on the CPU: fixed chunks over the thread pool, loops that the compiler
//! vectorises.
//!
//! Neither loop lets the compiler fuse or reorder floating-point operations, so the instruction set
//! chosen at run time changes the speed only.

use super::{SQUARES, Scalars};
use crate::ops::simd::{LANES, multiversion};
use crate::optim::held::cut;
use rayon::prelude::*;
use std::ops::Range;

/// Elements per task. Fixed, so that partial sums never depend on the number of threads.
const CHUNK: usize = SQUARES;

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

/// One AdamW update of the `held` elements of one tensor; their `g` is zero afterwards. The moments
/// are those of the held elements alone, one behind the other.
pub(super) fn update(
    p: &mut [f32],
    g: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    held: &[Range<usize>],
    s: &Scalars,
) {
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
    if p.len() <= CHUNK && m.len() == p.len() {
        return update_chunk(p, g, m, v, s); // biases and norms: not worth a task
    }
    let places: Vec<Range<usize>> = cut(held, CHUNK).collect();
    let behind_each_other = places.iter().scan(0, |at, place| {
        *at += place.len();
        Some(*at - place.len()..*at)
    });
    let moments: Vec<Range<usize>> = behind_each_other.collect();
    let weights = parts(p, &places).into_par_iter().zip(parts(g, &places));
    weights
        .zip(parts(m, &moments))
        .zip(parts(v, &moments))
        .for_each(|(((p, g), m), v)| update_chunk(p, g, m, v, s));
}

/// What lies in `places` of `x`, which ascend.
fn parts<'a>(mut x: &'a mut [f32], places: &[Range<usize>]) -> Vec<&'a mut [f32]> {
    let mut gone = 0;
    let one = |place: &Range<usize>| {
        let (part, rest) = std::mem::take(&mut x)[place.start - gone..].split_at_mut(place.len());
        (x, gone) = (rest, place.end);
        part
    };
    places.iter().map(one).collect()
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

/// Sums of squares in f64 of what lies in `places`, by [`SQUARES`] elements; not finite if and only if
/// an element is not.
pub(super) fn squares(x: &[f32], places: &[Range<usize>]) -> Vec<f64> {
    let places: Vec<Range<usize>> = cut(places, SQUARES).collect();
    match &places[..] {
        [one] => vec![squares_chunk(&x[one.clone()])],
        // The partial sums are collected in order.
        _ => places.into_par_iter().map(|place| squares_chunk(&x[place])).collect(),
    }
}
