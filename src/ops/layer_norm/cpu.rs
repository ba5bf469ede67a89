//! Layer norm on f32 rows: a task takes a fixed number of rows.

use super::{Backward, Normed};
use crate::error::Result;
use crate::ops::buffer::{read, with_mut};
use crate::ops::matmul::add_to;
use crate::ops::simd::{LANES, multiversion, sum_lanes};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Rows per task; fixed, so that sums over rows do not depend on the number of threads.
const ROWS: usize = 32;

pub(super) fn forward(x: &Tensor, w: &Tensor, b: Option<&Tensor>, eps: f32) -> Result<Normed> {
    let (n, d) = x.dims2()?;
    let (xs, ws, bs) = (read(x)?, read(w)?, b.map(read).transpose()?);
    let (xs, ws, bs): (&[f32], &[f32], Option<&[f32]>) = (&xs, &ws, bs.as_deref());
    let (mut out, mut stats) = (vec![0.0; n * d], vec![0.0; n * 2]);
    out.par_chunks_mut(ROWS * d)
        .zip(stats.par_chunks_mut(ROWS * 2))
        .zip(xs.par_chunks(ROWS * d))
        .for_each(|((out, stats), x)| {
            for ((y, s), x) in
                out.chunks_exact_mut(d).zip(stats.chunks_exact_mut(2)).zip(x.chunks_exact(d))
            {
                row_stats(s, x, eps, bs.is_some());
                row_apply(y, x, s[0], s[1], ws, bs);
            }
        });
    Ok(Normed {
        out: Tensor::from_vec(out, (n, d), &Device::Cpu)?,
        stats: Tensor::from_vec(stats, (n, 2), &Device::Cpu)?,
    })
}

pub(super) fn replay(x: &Tensor, stats: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let (n, d) = x.dims2()?;
    let (xs, ss, ws, bs) = (read(x)?, read(stats)?, read(w)?, b.map(read).transpose()?);
    let (xs, ss, ws): (&[f32], &[f32], &[f32]) = (&xs, &ss, &ws);
    let bs: Option<&[f32]> = bs.as_deref();
    let mut out = vec![0.0; n * d];
    out.par_chunks_mut(ROWS * d)
        .zip(ss.par_chunks(ROWS * 2))
        .zip(xs.par_chunks(ROWS * d))
        .for_each(|((out, stats), x)| {
            for ((y, s), x) in
                out.chunks_exact_mut(d).zip(stats.chunks_exact(2)).zip(x.chunks_exact(d))
            {
                row_apply(y, x, s[0], s[1], ws, bs);
            }
        });
    Ok(Tensor::from_vec(out, (n, d), &Device::Cpu)?)
}

pub(super) fn backward(args: Backward<'_>) -> Result<()> {
    let Backward { dy, x, stats, w, dx, dw, db } = args;
    let (_, d) = x.dims2()?;
    let (dys, xs, ss, ws) = (read(dy)?, read(x)?, read(stats)?, read(w)?);
    let (dys, xs, ss, ws): (&[f32], &[f32], &[f32], &[f32]) = (&dys, &xs, &ss, &ws);
    let partial: Vec<(Vec<f32>, Vec<f32>)> = with_mut(dx, |dx| {
        dx.par_chunks_mut(ROWS * d)
            .zip(dys.par_chunks(ROWS * d))
            .zip(xs.par_chunks(ROWS * d))
            .zip(ss.par_chunks(ROWS * 2))
            .map(|(((dx, dy), x), stats)| {
                let shifts = if db.is_some() { d } else { 0 };
                let (mut dw, mut db) = (vec![0.0; d], vec![0.0; shifts]);
                let rows = dx.chunks_exact_mut(d).zip(dy.chunks_exact(d)).zip(x.chunks_exact(d));
                for (((dx, dy), x), s) in rows.zip(stats.chunks_exact(2)) {
                    row_backward(dx, dy, x, s[0], s[1], ws, &mut dw, &mut db);
                }
                (dw, db)
            })
            .collect()
    })?;
    with_mut(dw, |dw| partial.iter().for_each(|(p, _)| add_to(dw, p)))?;
    match db {
        Some(db) => with_mut(db, |db| partial.iter().for_each(|(_, p)| add_to(db, p))),
        None => Ok(()),
    }
}

multiversion! {
    fn row_stats(stats: &mut [f32], x: &[f32], eps: f32, centred: bool) {
        let d = x.len() as f32;
        let mean = if centred { sum_map(x, |v| v) / d } else { 0.0 };
        let var = sum_map(x, |v| (v - mean) * (v - mean)) / d;
        stats[0] = mean;
        stats[1] = 1.0 / (var + eps).sqrt();
    }

    fn row_apply(y: &mut [f32], x: &[f32], mean: f32, rstd: f32, w: &[f32], b: Option<&[f32]>) {
        match b {
            Some(b) => {
                for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
                    *y = (x - mean) * rstd * w + b;
                }
            }
            None => {
                for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                    *y = x * rstd * w;
                }
            }
        }
    }

    // dx += rstd * (g - mean(g) - xhat * mean(g * xhat)), with g = dy * w; RMS norm, which has no db,
    // is without mean(g)
    fn row_backward(
        dx: &mut [f32], dy: &[f32], x: &[f32], mean: f32, rstd: f32, w: &[f32], dw: &mut [f32], db: &mut [f32],
    ) {
        let d = x.len();
        let (dx, dy, w, dw) = (&mut dx[..d], &dy[..d], &w[..d], &mut dw[..d]);
        let centred = !db.is_empty();
        let (mut sum_g, mut sum_gx) = ([0.0f32; LANES], [0.0f32; LANES]);
        let mut start = 0;
        while start < d {
            let width = LANES.min(d - start);
            for l in 0..width {
                let xhat = (x[start + l] - mean) * rstd;
                let g = dy[start + l] * w[start + l];
                sum_g[l] += g;
                sum_gx[l] += g * xhat;
            }
            start += LANES;
        }
        let mean_g = if centred { sum_lanes(sum_g) / d as f32 } else { 0.0 };
        let mean_gx = sum_lanes(sum_gx) / d as f32;
        for i in 0..d {
            let xhat = (x[i] - mean) * rstd;
            dw[i] += dy[i] * xhat;
            dx[i] += rstd * (dy[i] * w[i] - mean_g - xhat * mean_gx);
        }
        for (db, dy) in db.iter_mut().zip(dy) {
            *db += dy;
        }
    }
}

#[inline(always)]
fn sum_map(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(*v);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(tail) {
        *lane += f(*v);
    }
    sum_lanes(lanes)
}
