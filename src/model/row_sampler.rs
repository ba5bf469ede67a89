//! Row sampling in the backward pass: of the rows that carry gradient some are drawn, by gradient norm, and weighted so that
//! every gradient below keeps its expectation (VCAS, arXiv 2402.17227, with a fixed share of rows).

use crate::error::Result;
use crate::ops::embed::{gather, row_norms};
use crate::rng::{Rng, Stream};
use candle_core::Tensor;

/// Draws the rows of one micro-batch, block by block.
///
/// At a block's output row j, whose gradient has norm `g_j`, stays with probability `p_j = min(1, c g_j)` and is then
/// divided by `p_j`. `c` is such that the probabilities of a sequence's rows add up to `rho` times its positions. A pool is
/// one sequence, so how a batch is cut into micro-batches changes nothing but rounding.
#[derive(Debug)]
pub struct RowSampler {
    rho: f64,
    rng: Rng,
    tokens: Vec<u64>,
    context: usize,
}

/// Rows that were drawn, ascending, and their weighted gradient [k, D].
#[derive(Debug)]
pub(super) struct Drawn {
    pub(super) rows: Vec<u32>,
    pub(super) d: Tensor,
}

impl RowSampler {
    /// For sequences of `context` positions; `tokens` [B T] numbers the positions of the micro-batch within the run, and a
    /// draw is a pure function of seed, number and block. `rho` is a share in (0, 1].
    pub fn new(rho: f64, seed: u64, tokens: Vec<u64>, context: usize) -> Self {
        Self { rho, rng: Rng::new(seed, Stream::Backward), tokens, context }
    }

    /// Draws from the gradient `d` of block `layer`'s output: [k, D] for the k ascending `rows` that have one, [B T, D] for
    /// all. None where every row stays as it is.
    pub(super) fn draw(&self, layer: usize, rows: Option<&[u32]>, d: &Tensor) -> Result<Option<Drawn>> {
        if self.rho >= 1.0 {
            return Ok(None);
        }
        let norms = row_norms(d)?;
        let row = |i: usize| rows.map_or(i, |rows| rows[i] as usize);
        let (mut kept, mut weights) = (Vec::new(), Vec::new());
        let mut start = 0;
        while start < norms.len() {
            let sequence = row(start) / self.context;
            let end = (start..norms.len()).find(|&i| row(i) / self.context != sequence).unwrap_or(norms.len());
            let c = factor(&norms[start..end], self.rho * self.context as f64);
            for (i, norm) in (start..end).zip(&norms[start..end]) {
                // A row without gradient is never missed.
                let p = c.map_or(f64::from(u8::from(*norm != 0.0)), |c| (c * norm).min(1.0));
                if self.uniform(layer, row(i)) < p {
                    kept.push(i as u32);
                    weights.push((1.0 / p) as f32);
                }
            }
            start = end;
        }
        if kept.len() == norms.len() && weights.iter().all(|w| *w == 1.0) {
            return Ok(None);
        }
        let weights = Tensor::from_vec(weights, (kept.len(), 1), d.device())?.to_dtype(d.dtype())?;
        let d = if kept.is_empty() { d.narrow(0, 0, 0)? } else { gather(d, &kept)?.broadcast_mul(&weights)? };
        Ok(Some(Drawn { rows: kept.into_iter().map(|i| row(i as usize) as u32).collect(), d }))
    }

    /// From [0, 1) with 53 bits: a probability may be tiny, and its weight is then large.
    fn uniform(&self, layer: usize, row: usize) -> f64 {
        (self.rng.bits(layer as u32, self.tokens[row]) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// `c` with sum of `min(1, c g)` = `budget`; None where no more rows than that have a gradient, or where a norm is not
/// finite and must reach the check of the step's gradient.
fn factor(norms: &[f64], budget: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = norms.iter().copied().filter(|g| *g != 0.0).collect();
    if sorted.len() as f64 <= budget || sorted.iter().any(|g| !g.is_finite()) {
        return None;
    }
    sorted.sort_by(f64::total_cmp);
    // What the smaller ones add up to, smallest first.
    let mut sum = 0.0;
    let up_to: Vec<f64> = sorted
        .iter()
        .map(|g| {
            sum += g;
            sum
        })
        .collect();
    // The largest take probability 1 until none of the rest would exceed it.
    let mut open = sorted.len();
    let c = |open: usize| (budget - (sorted.len() - open) as f64) / up_to[open - 1];
    while open > 1 && c(open) * sorted[open - 1] > 1.0 {
        open -= 1;
    }
    Some(c(open))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random;
    use candle_core::Device;

    fn sampler(rho: f64, n: usize, context: usize) -> RowSampler {
        RowSampler::new(rho, 3, (0..n as u64).collect(), context)
    }

    #[test]
    fn probabilities_add_up_to_the_budget() {
        let norms = [0.0, 3.0, 0.5, 40.0, 0.25, 1e-9, 7.0, 0.5];
        for budget in [0.4, 1.0, 2.5, 4.0, 6.5] {
            let c = factor(&norms, budget).unwrap();
            let sum: f64 = norms.iter().map(|g| (c * g).min(1.0)).sum();
            assert!((sum - budget).abs() < 1e-12, "{budget}: {sum}");
        }
        assert_eq!(factor(&norms, 7.0), None, "only seven have a gradient");
        assert_eq!(factor(&[1.0, f64::NAN, 2.0], 1.0), None);
        assert_eq!(factor(&[], 1.0), None);
    }

    #[test]
    fn a_sequence_is_drawn_alone() {
        // The second sequence's draw does not change with what lies before it.
        let (a, b) = (random((6, 5), 1), random((6, 5), 2));
        let both = Tensor::cat(&[&a, &b], 0).unwrap();
        let all = sampler(0.5, 12, 6).draw(1, None, &both).unwrap().unwrap();
        let alone = RowSampler::new(0.5, 3, (6..12).collect(), 6).draw(1, None, &b).unwrap().unwrap();
        let later: Vec<u32> = all.rows.iter().filter(|r| **r >= 6).map(|r| r - 6).collect();
        assert_eq!(later, alone.rows);
        let k = alone.rows.len();
        let tail = all.d.narrow(0, all.rows.len() - k, k).unwrap();
        assert_eq!(tail.to_vec2::<f32>().unwrap(), alone.d.to_vec2::<f32>().unwrap());
    }

    #[test]
    fn the_mean_over_draws_is_the_gradient() {
        let (n, draws) = (8, 20_000);
        let d = (random((n, 3), 4)
            * Tensor::new(&[[0.01f32], [1.], [0.3], [5.], [0.1], [2.], [0.7], [0.05]], &Device::Cpu)
                .unwrap()
                .broadcast_as((n, 3))
                .unwrap())
        .unwrap();
        let (mut mean, mut count) = (vec![0.0f64; n * 3], 0);
        for draw in 0..draws {
            let tokens = (0..n as u64).map(|i| draw * n as u64 + i).collect();
            let Drawn { rows, d } = RowSampler::new(0.5, 1, tokens, n).draw(0, None, &d).unwrap().unwrap();
            count += rows.len();
            for (row, d) in rows.iter().zip(d.to_vec2::<f32>().unwrap()) {
                for (j, v) in d.iter().enumerate() {
                    mean[*row as usize * 3 + j] += f64::from(*v) / draws as f64;
                }
            }
        }
        assert!((count as f64 / draws as f64 - 4.0).abs() < 0.05, "half of the rows, {count}");
        let norms = row_norms(&d).unwrap();
        let c = factor(&norms, 4.0).unwrap();
        for (i, (got, want)) in mean.iter().zip(d.flatten_all().unwrap().to_vec1::<f32>().unwrap()).enumerate() {
            // Standard error of a mean of draws that are want / p with probability p.
            let p = (c * norms[i / 3]).min(1.0);
            let error = f64::from(want).abs() * ((1.0 / p - 1.0) / draws as f64).sqrt();
            assert!((got - f64::from(want)).abs() < 5.0 * error + 1e-5, "{i}: {got} for {want}");
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_never_dropped() {
        let d = Tensor::new(&[[1f32, f32::NAN], [1., 2.], [3., 4.]], &Device::Cpu).unwrap();
        assert!(sampler(0.3, 3, 3).draw(0, None, &d).unwrap().is_none());
    }
}
