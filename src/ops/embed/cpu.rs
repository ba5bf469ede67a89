//! Rows of f32 slices: looked up, gathered, added.

use crate::error::Result;
use crate::ops::buffer::{read, read_weight, with_mut};
use crate::ops::matmul::add_to;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Numbers below which copying rows is not worth a task.
const GATHER: usize = 1 << 14;

pub fn forward(
    wte: &Tensor,
    wpe: &Tensor,
    tokens: &[u32],
    context: usize,
    offset: usize,
) -> Result<Tensor> {
    let d = wte.dim(1)?;
    let (wte, wpe) = (read_weight(wte)?, read(wpe)?);
    let (wte, wpe): (_, &[f32]) = (wte.elements(), &wpe);
    let mut out = vec![0.0; tokens.len() * d];
    out.par_chunks_mut(d).zip(tokens.par_iter()).enumerate().for_each(|(i, (row, &token))| {
        let p = offset + i % context;
        let at = token as usize * d;
        wte.slice(at..at + d).write_to(row);
        add_to(row, &wpe[p * d..][..d]);
    });
    Ok(Tensor::from_vec(out, (tokens.len(), d), &Device::Cpu)?)
}

pub fn backward(
    dwte: &Tensor,
    dwpe: Option<&Tensor>,
    d: &Tensor,
    tokens: &[u32],
    context: usize,
) -> Result<()> {
    let width = d.dim(1)?;
    let d = read(d)?;
    with_mut(dwte, |out| {
        for (&token, row) in tokens.iter().zip(d.chunks_exact(width)) {
            add_to(&mut out[token as usize * width..][..width], row);
        }
    })?;
    let Some(dwpe) = dwpe else { return Ok(()) };
    with_mut(dwpe, |out| {
        for (i, row) in d.chunks_exact(width).enumerate() {
            add_to(&mut out[(i % context) * width..][..width], row);
        }
    })
}

pub fn gather(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let width = x.dim(1)?;
    let data = read(x)?;
    let data: &[f32] = &data;
    let mut out = vec![0.0; rows.len() * width];
    if width > 0 {
        let chunks =
            out.par_chunks_exact_mut(width).zip(rows).with_min_len((GATHER / width).max(1));
        chunks.for_each(|(out, &row)| out.copy_from_slice(&data[row as usize * width..][..width]));
    }
    Ok(Tensor::from_vec(out, (rows.len(), width), &Device::Cpu)?)
}

pub fn gather_weighted(x: &Tensor, rows: &[u32], weights: &[f32]) -> Result<Tensor> {
    let out = gather(x, rows)?;
    let width = x.dim(1)?.max(1);
    with_mut(&out, |out| {
        let chunks =
            out.par_chunks_exact_mut(width).zip(weights).with_min_len((GATHER / width).max(1));
        chunks.for_each(|(row, weight)| row.iter_mut().for_each(|x| *x *= weight));
    })?;
    Ok(out)
}

pub fn scatter_add(dst: &Tensor, src: &Tensor, rows: &[u32]) -> Result<()> {
    let width = dst.dim(1)?;
    let src = read(src)?;
    with_mut(dst, |dst| {
        for (&row, src) in rows.iter().zip(src.chunks_exact(width)) {
            add_to(&mut dst[row as usize * width..][..width], src);
        }
    })
}

/// Sum of squares of each row, in f64.
pub fn row_squares(x: &Tensor) -> Result<Vec<f64>> {
    let width = x.dim(1)?.max(1);
    let data = read(x)?;
    let data: &[f32] = &data;
    let rows = data.par_chunks_exact(width).with_min_len((GATHER / width).max(1));
    Ok(rows.map(|row| row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()).collect())
}
