//! Token and position embedding, and row gather and scatter.

mod cpu;
mod cuda;

use super::{Backend, buffer};
use crate::error::{Error, Result};
use candle_core::{DType, Tensor};

/// `wte[token] + wpe[position]` for tokens [B, T] in row-major order: [B T, D]; without learned
/// positions the first term. Positions start at `offset`. `wte` may be stored in bf16 beside positions in f32; the sum is f32 then.
pub fn forward(
    wte: &Tensor,
    wpe: Option<&Tensor>,
    tokens: &[u32],
    context: usize,
    offset: usize,
) -> Result<Tensor> {
    let vocab = wte.dim(0)?;
    if let Some(bad) = tokens.iter().find(|&&t| t as usize >= vocab) {
        return Err(Error::data(format!(
            "token id {bad} lies outside the model's vocabulary of {vocab}"
        )));
    }
    let Some(wpe) = wpe else { return look_up(wte, tokens) };
    if offset + context > wpe.dim(0)? {
        let most = wpe.dim(0)?;
        return Err(Error::data(format!(
            "a context of {} tokens exceeds the model's {most} positions",
            offset + context
        )));
    }
    match Backend::of(wpe) {
        Backend::Cpu => cpu::forward(wte, wpe, tokens, context, offset),
        Backend::Gpu => cuda::forward(wte, Some(wpe), tokens, context, offset),
        Backend::Reference => reference(wte, wpe, tokens, context, offset),
    }
}

fn look_up(wte: &Tensor, tokens: &[u32]) -> Result<Tensor> {
    match Backend::of(wte) {
        Backend::Cpu => return cpu::gather(wte, tokens),
        Backend::Gpu => return cuda::forward(wte, None, tokens, tokens.len(), 0),
        Backend::Reference => {}
    }
    let rows = wte.index_select(&Tensor::new(tokens, wte.device())?, 0)?;
    Ok(if rows.dtype() == DType::BF16 { rows.to_dtype(DType::F32)? } else { rows })
}

/// Adds the gradient of the embedding to `dwte` and `dwpe`, rows in order, for upstream `d` [B T,
/// D].
pub fn backward(
    dwte: &Tensor,
    dwpe: Option<&Tensor>,
    d: &Tensor,
    tokens: &[u32],
    context: usize,
) -> Result<()> {
    match Backend::of(d) {
        Backend::Cpu => return cpu::backward(dwte, dwpe, d, tokens, context),
        Backend::Gpu => return cuda::backward(dwte, dwpe, d, tokens, context),
        Backend::Reference => {}
    }
    let (n, width) = d.dims2()?;
    let index = Tensor::new(tokens, d.device())?;
    buffer::assign(dwte, &dwte.index_add(&index, d, 0)?)?;
    let Some(dwpe) = dwpe else { return Ok(()) };
    let by_position = d.reshape((n / context, context, width))?.sum(0)?;
    let first = dwpe.narrow(0, 0, context)?;
    buffer::assign(&first, &(&first + by_position)?)
}

/// The rows of `x` [N, D] at `rows`, in that order: [k, D].
pub fn gather(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    match Backend::of(x) {
        Backend::Cpu => cpu::gather(x, rows),
        Backend::Gpu => cuda::gather(x, rows),
        Backend::Reference => Ok(x.index_select(&Tensor::new(rows, x.device())?, 0)?),
    }
}

/// As [`gather`], each row times its weight.
pub fn gather_weighted(x: &Tensor, rows: &[u32], weights: &[f32]) -> Result<Tensor> {
    if Backend::of(x) == Backend::Cpu {
        return cpu::gather_weighted(x, rows, weights);
    }
    if rows.is_empty() {
        return Ok(x.narrow(0, 0, 0)?);
    }
    let weights = Tensor::from_slice(weights, (rows.len(), 1), x.device())?.to_dtype(x.dtype())?;
    Ok(gather(x, rows)?.broadcast_mul(&weights)?)
}

/// `dst[rows[i]] += src[i]` for `dst` [N, D] and `src` [k, D]. No row is named twice.
pub fn scatter_add(dst: &Tensor, src: &Tensor, rows: &[u32]) -> Result<()> {
    match Backend::of(dst) {
        Backend::Cpu => cpu::scatter_add(dst, src, rows),
        Backend::Gpu => cuda::scatter_add(dst, src, rows),
        Backend::Reference => {
            buffer::assign(dst, &dst.index_add(&Tensor::new(rows, dst.device())?, src, 0)?)
        }
    }
}

/// Euclidean norm of each row of `x` [N, D].
pub fn row_norms(x: &Tensor) -> Result<Vec<f64>> {
    let squares: Vec<f64> = match Backend::of(x) {
        Backend::Cpu => cpu::row_squares(x)?,
        Backend::Gpu => cuda::row_squares(x)?.to_vec1()?,
        Backend::Reference => x.sqr()?.sum(1)?.to_dtype(DType::F64)?.to_vec1()?,
    };
    Ok(squares.into_iter().map(f64::sqrt).collect())
}

/// The formula in candle ops.
pub fn reference(
    wte: &Tensor,
    wpe: &Tensor,
    tokens: &[u32],
    context: usize,
    offset: usize,
) -> Result<Tensor> {
    let d = wte.dim(1)?;
    let rows = wte.index_select(&Tensor::new(tokens, wte.device())?, 0)?.to_dtype(wpe.dtype())?;
    let positions = wpe.narrow(0, offset, context)?;
    Ok(rows
        .reshape((tokens.len() / context, context, d))?
        .broadcast_add(&positions)?
        .reshape((tokens.len(), d))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, autograd, emulated, random};
    use candle_core::Device;

    #[test]
    fn forward_and_backward_match_autograd_of_the_reference() {
        let (wte, wpe) = (random((11, 6), 1), random((9, 6), 2));
        let tokens: Vec<u32> = vec![3, 3, 10, 0, 7, 3];
        let d = random((6, 6), 3);
        let (out, grads) = autograd(&[&wte, &wpe], &d, |v| reference(&v[0], &v[1], &tokens, 3, 0));
        assert_close(&forward(&wte, Some(&wpe), &tokens, 3, 0).unwrap(), &out, 1e-6);
        let (dwte, dwpe) = (random((11, 6), 4), random((9, 6), 5));
        let want = [(&dwte, &grads[0]), (&dwpe, &grads[1])]
            .map(|(a, g)| (a.to_dtype(DType::F64).unwrap() + g).unwrap());
        backward(&dwte, Some(&dwpe), &d, &tokens, 3).unwrap();
        assert_close(&dwte, &want[0], 1e-6);
        assert_close(&dwpe, &want[1], 1e-6);
    }

    #[test]
    fn a_gpus_kernels_give_the_same() {
        for width in [3, 8, 300] {
            let (wte, wpe) = (random((11, width), 1), random((9, width), 2));
            let tokens: Vec<u32> = vec![3, 3, 10, 0, 7, 3, 10, 2];
            let (d, rows) = (random((8, width), 3), [5, 0, 6]);
            let run = || {
                let out = forward(&wte, Some(&wpe), &tokens, 4, 1).unwrap();
                let (dwte, dwpe, into) =
                    (wte.copy().unwrap(), wpe.copy().unwrap(), wpe.copy().unwrap());
                backward(&dwte, Some(&dwpe), &d, &tokens, 4).unwrap();
                let picked = gather(&d, &rows).unwrap();
                scatter_add(&into, &picked, &rows).unwrap();
                let half = into.to_dtype(DType::BF16).unwrap();
                let halves = gather(&half, &rows).unwrap();
                scatter_add(&half, &picked.to_dtype(DType::BF16).unwrap(), &rows).unwrap();
                let norms = Tensor::new(row_norms(&d).unwrap(), &Device::Cpu).unwrap();
                let without = forward(&wte, None, &tokens, 4, 0).unwrap();
                backward(&dwte, None, &without, &tokens, 4).unwrap();
                vec![out, without, dwte, dwpe, picked, into, halves, norms, half]
            };
            let want = run();
            let exact = want.len() - 1; // the last is a sum rounded to bf16
            if let Some(got) = emulated(run) {
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    assert_close(got, want, if i < exact { 2e-6 } else { 4e-3 });
                }
            }
        }
    }

    #[test]
    fn without_learned_positions_it_is_a_look_up() {
        let wte = random((11, 6), 1);
        let tokens = [3, 3, 10, 0];
        for dtype in [DType::F32, DType::F64] {
            let wte = wte.to_dtype(dtype).unwrap();
            let out = forward(&wte, None, &tokens, 2, 0).unwrap();
            assert_close(&out, &gather(&wte, &tokens).unwrap(), 0.0);
            let dwte = wte.zeros_like().unwrap();
            backward(&dwte, None, &out, &tokens, 2).unwrap();
            let twice = (gather(&wte, &[3]).unwrap() * 2.0).unwrap();
            assert_close(&gather(&dwte, &[3]).unwrap(), &twice, 1e-6);
            assert!(forward(&wte, None, &[11], 1, 0).is_err());
        }
        let stored = wte.to_dtype(DType::BF16).unwrap();
        assert_eq!(forward(&stored, None, &tokens, 2, 0).unwrap().dtype(), DType::F32);
    }

    #[test]
    fn offsets_shift_positions_and_limits_are_errors() {
        let (wte, wpe) = (random((11, 6), 1), random((9, 6), 2));
        let out = forward(&wte, Some(&wpe), &[1, 2], 2, 4).unwrap();
        assert_close(&out, &reference(&wte, &wpe, &[1, 2], 2, 4).unwrap(), 1e-6);
        assert!(
            forward(&wte, Some(&wpe), &[11], 1, 0).unwrap_err().to_string().contains("token id 11")
        );
        assert!(
            forward(&wte, Some(&wpe), &[1, 2], 2, 8)
                .unwrap_err()
                .to_string()
                .contains("9 positions")
        );
    }

    #[test]
    fn weighted_rows_and_norms_match_the_formulas() {
        for (n, width) in [(7, 5), (40, 600)] {
            let x = random((n, width), 1);
            let (rows, weights) = ([5, 0, 6], [2.0, 0.5, 3.0]);
            let wide = x.to_dtype(DType::F64).unwrap(); // takes the reference path
            let got = gather_weighted(&x, &rows, &weights).unwrap();
            assert_close(&got, &gather_weighted(&wide, &rows, &weights).unwrap(), 1e-6);
            let first = (x.narrow(0, 5, 1).unwrap() * 2.0).unwrap();
            assert_close(&got.narrow(0, 0, 1).unwrap(), &first, 0.0);
            assert_eq!(gather_weighted(&x, &[], &[]).unwrap().dims(), [0, width]);
            let norms = |x: &Tensor| Tensor::new(row_norms(x).unwrap(), &Device::Cpu).unwrap();
            assert_close(&norms(&x), &norms(&wide), 1e-12);
        }
    }

    #[test]
    fn scatter_undoes_gather() {
        let x = random((7, 5), 1);
        let rows = [5, 0, 6];
        let picked = gather(&x, &rows).unwrap();
        assert_eq!(picked.dims(), [3, 5]);
        let back = x.zeros_like().unwrap();
        scatter_add(&back, &picked, &rows).unwrap();
        assert_close(&gather(&back, &rows).unwrap(), &picked, 0.0);
        assert_close(
            &gather(&back, &[1]).unwrap(),
            &gather(&x.zeros_like().unwrap(), &[1]).unwrap(),
            0.0,
        );
        assert_eq!(gather(&x, &[]).unwrap().dims(), [0, 5]);
    }
}
