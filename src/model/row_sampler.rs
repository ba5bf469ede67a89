//! Row sampling in the backward pass: of the rows that carry gradient, at the head, at each block's
//! output and at its keys and values, some are drawn, by gradient norm, and weighted so that every
//! gradient below keeps its expectation (VCAS, arXiv 2402.17227).
//!
//! Row j, whose gradient has norm `g_j`, stays with probability `p_j = min(1, c g_j)` and is then
//! divided by `p_j`. Which `c`, a [`RowBudget`] says. A pool is one sequence, so how a batch is cut
//! into micro-batches changes nothing but rounding.

use crate::error::Result;
use crate::ops::embed::{gather_weighted, row_norms};
use crate::rng::{Rng, Stream};
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// A draw that would leave out less than this share of the rows is not made: gathering costs more
/// than it saves.
const WORTH_A_DRAW: f64 = 0.05;

/// How many rows a draw keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowBudget {
    /// The probabilities of a sequence's rows add up to this share, in (0, 1], of its positions.
    Share(f64),
    /// As few as add no more than this share to the variance of the gradient.
    ///
    /// A draw adds `sum_j g_j^2 (1 / p_j - 1)`. The gradient's own variance is taken to be `sum_j
    /// g_j^2`, as it is for rows that are independent of each other (pinned; VCAS measures it by
    /// repeating a micro-batch). Where all norms are about equal that keeps nearly every row; where
    /// a few rows carry the gradient it keeps these and a sample of the rest.
    Variance(f64),
}

/// Draws the rows of one micro-batch, at the head and block by block.
#[derive(Debug)]
pub struct RowSampler {
    budget: RowBudget,
    rng: Rng,
    tokens: Vec<u64>,
    context: usize,
}

/// What a draw left, as indices into the rows that it drew from, ascending, and by what each is to
/// be multiplied.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chosen {
    /// Indices `[k]`.
    pub indices: Vec<u32>,
    /// 1 / p `[k]`.
    pub weights: Vec<f32>,
}

/// Rows that were drawn, ascending, and their weighted gradient [k, D].
#[derive(Debug)]
pub(super) struct DrawnRows {
    pub(super) rows: Vec<u32>,
    pub(super) d: Tensor,
}

impl RowSampler {
    /// For sequences of `context` positions; `tokens` [B T] numbers the positions of the
    /// micro-batch within the run, and a draw is a pure function of seed, number and layer.
    pub fn new(budget: RowBudget, seed: u64, tokens: Vec<u64>, context: usize) -> Self {
        Self { budget, rng: Rng::new(seed, Stream::Backward), tokens, context }
    }

    /// Draws among the ascending `rows` (None: all), whose gradients have these norms or norms in
    /// proportion. `layer` is the block whose output they are at, the number of blocks L for the
    /// head, or L + 1 and more for the blocks' keys and values. None where every row stays as it
    /// is.
    pub fn choose(&self, layer: usize, rows: Option<&[u32]>, norms: &[f64]) -> Option<Chosen> {
        if self.budget == RowBudget::Share(1.0) {
            return None;
        }
        let row = |i: usize| rows.map_or(i, |rows| rows[i] as usize);
        let mut pools = Vec::new();
        let mut start = 0;
        while start < norms.len() {
            let sequence = row(start) / self.context;
            let end = (start..norms.len())
                .find(|&i| row(i) / self.context != sequence)
                .unwrap_or(norms.len());
            pools.push(start..end);
            start = end;
        }
        let of_pool = |pool: Range<usize>| {
            let norms = &norms[pool.clone()];
            let c = match self.budget {
                RowBudget::Share(rho) => factor_for_rows(norms, rho * self.context as f64),
                RowBudget::Variance(share) => factor_for_variance(norms, share),
            };
            let mut chosen = Chosen::default();
            for (i, norm) in pool.zip(norms) {
                // A row without gradient is never missed.
                let p = c.map_or(f64::from(u8::from(*norm != 0.0)), |c| (c * norm).min(1.0));
                if self.uniform(layer, row(i)) < p {
                    chosen.indices.push(i as u32);
                    chosen.weights.push((1.0 / p) as f32);
                }
            }
            chosen
        };
        // In parallel, since a GPU waits for this.
        let parts: Vec<Chosen> = pools.into_par_iter().map(of_pool).collect();
        let mut chosen = Chosen::default();
        for part in parts {
            chosen.indices.extend(part.indices);
            chosen.weights.extend(part.weights);
        }
        let all = chosen.indices.len() == norms.len() && chosen.weights.iter().all(|w| *w == 1.0);
        (!all).then_some(chosen)
    }

    /// Draws from the gradient `d` of block `layer`'s output: [k, D] for the k ascending `rows`
    /// that have one, [B T, D] for all. None where every row stays as it is.
    pub(super) fn draw(
        &self,
        layer: usize,
        rows: Option<&[u32]>,
        d: &Tensor,
    ) -> Result<Option<DrawnRows>> {
        let Some(Chosen { indices, weights }) = self.choose(layer, rows, &row_norms(d)?) else {
            return Ok(None);
        };
        let d = gather_weighted(d, &indices, &weights)?;
        let rows = match rows {
            Some(rows) => indices.iter().map(|&i| rows[i as usize]).collect(),
            None => indices,
        };
        Ok(Some(DrawnRows { rows, d }))
    }

    /// Draws from the gradient `dkv` [B T, 2 D] of the keys and values of block `l` of `blocks`:
    /// the rows that stay, weighted, and which these are; `dkv` itself and None where every row
    /// stays as it is.
    pub(super) fn draw_keys(
        &self,
        l: usize,
        blocks: usize,
        dkv: Tensor,
    ) -> Result<(Tensor, Option<Vec<u32>>)> {
        Ok(match self.draw(blocks + 1 + l, None, &dkv)? {
            None => (dkv, None),
            Some(DrawnRows { rows, d }) => (d, Some(rows)),
        })
    }

    /// From [0, 1) with 53 bits: a probability may be tiny, and its weight is then large.
    fn uniform(&self, layer: usize, row: usize) -> f64 {
        (self.rng.bits(layer as u32, self.tokens[row]) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The norms that are not 0, ascending; None where one is not finite and must reach the check of
/// the step's gradient.
fn ascending(norms: &[f64]) -> Option<Vec<f64>> {
    let mut sorted: Vec<f64> = norms.iter().copied().filter(|g| *g != 0.0).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.iter().all(|g| g.is_finite()).then_some(sorted)
}

/// What the values up to each add up to.
fn sums(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let add = |sum: &mut f64, x| {
        *sum += x;
        Some(*sum)
    };
    values.scan(0.0, add).collect()
}

/// `c` where the `open` smallest of `sorted` have a probability below 1: the largest take 1 until
/// none of the rest would exceed it. None where all do.
fn open_at(sorted: &[f64], c: impl Fn(usize) -> f64) -> Option<f64> {
    let open = (1..=sorted.len()).rev().find(|&open| c(open) * sorted[open - 1] <= 1.0)?;
    Some(c(open))
}

/// `c` with sum of `min(1, c g)` = `budget`; None where no more rows than that have a gradient.
fn factor_for_rows(norms: &[f64], budget: f64) -> Option<f64> {
    let sorted = ascending(norms).filter(|sorted| sorted.len() as f64 > budget)?;
    let up_to = sums(sorted.iter().copied());
    // A single row is left to a budget below 1, whatever rounding says.
    let c = |open: usize| (budget - (sorted.len() - open) as f64) / up_to[open - 1];
    open_at(&sorted, c).or_else(|| Some(c(1)))
}

/// The least `c` with `sum g^2 (1 / min(1, c g) - 1)` of at most `share` of `sum g^2`; None where
/// that leaves out hardly a row.
fn factor_for_variance(norms: &[f64], share: f64) -> Option<f64> {
    let sorted = ascending(norms)?;
    let (linear, square) = (sums(sorted.iter().copied()), sums(sorted.iter().map(|g| g * g)));
    let allowed = share * square.last()?;
    let c = open_at(&sorted, |open| linear[open - 1] / (allowed + square[open - 1]))?;
    let expected: f64 = sorted.iter().map(|g| (c * g).min(1.0)).sum();
    (expected < (1.0 - WORTH_A_DRAW) * sorted.len() as f64).then_some(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random;
    use candle_core::Device;

    fn sampler(rho: f64, n: usize, context: usize) -> RowSampler {
        RowSampler::new(RowBudget::Share(rho), 3, (0..n as u64).collect(), context)
    }

    #[test]
    fn probabilities_add_up_to_the_budget() {
        let norms = [0.0, 3.0, 0.5, 40.0, 0.25, 1e-9, 7.0, 0.5];
        for budget in [0.4, 1.0, 2.5, 4.0, 6.5] {
            let c = factor_for_rows(&norms, budget).unwrap();
            let sum: f64 = norms.iter().map(|g| (c * g).min(1.0)).sum();
            assert!((sum - budget).abs() < 1e-12, "{budget}: {sum}");
        }
        assert_eq!(factor_for_rows(&norms, 7.0), None, "only seven have a gradient");
        assert_eq!(factor_for_rows(&[1.0, f64::NAN, 2.0], 1.0), None);
        assert_eq!(factor_for_rows(&[], 1.0), None);
    }

    #[test]
    fn the_variance_that_is_added_is_the_share_allowed() {
        let norms = [0.0, 3.0, 0.5, 40.0, 0.25, 1e-9, 7.0, 0.5];
        let own: f64 = norms.iter().map(|g| g * g).sum();
        for share in [1e-4, 0.01, 0.1, 1.0, 30.0] {
            let c = factor_for_variance(&norms, share).unwrap();
            let some = norms.iter().filter(|g| **g != 0.0);
            let added: f64 = some.map(|g| g * g * (1.0 / (c * g).min(1.0) - 1.0)).sum();
            assert!(
                (added / own - share).abs() < 1e-9 * share.max(1.0),
                "{share}: {}",
                added / own
            );
        }
        // Equal norms leave nothing to choose between: a tenth more variance is a tenth fewer rows,
        // a hundredth is not worth a draw.
        assert!((factor_for_variance(&[2.0; 50], 0.1).unwrap() * 2.0 - 1.0 / 1.1).abs() < 1e-12);
        assert_eq!(factor_for_variance(&[2.0; 50], 0.01), None);
        assert_eq!(factor_for_variance(&[0.0, 0.0], 0.1), None);
        assert_eq!(factor_for_variance(&[], 0.1), None);
        assert_eq!(factor_for_variance(&[1.0, f64::INFINITY, 2.0], 0.1), None);
    }

    #[test]
    fn a_variance_budget_keeps_the_rows_that_carry_the_gradient() {
        let mut norms = vec![1e-3; 60];
        norms.extend([1.0; 4]);
        let sampler = RowSampler::new(RowBudget::Variance(0.01), 3, (0..64).collect(), 64);
        let Chosen { indices, weights } = sampler.choose(0, None, &norms).unwrap();
        assert!(indices.len() < 12, "{indices:?}");
        let kept: Vec<(u32, f32)> =
            indices.into_iter().zip(weights).filter(|(i, _)| *i >= 60).collect();
        assert_eq!(kept, [(60, 1.0), (61, 1.0), (62, 1.0), (63, 1.0)]);
    }

    #[test]
    fn a_sequence_is_drawn_alone() {
        // The second sequence's draw does not change with what lies before it.
        let (a, b) = (random((6, 5), 1), random((6, 5), 2));
        let both = Tensor::cat(&[&a, &b], 0).unwrap();
        let all = sampler(0.5, 12, 6).draw(1, None, &both).unwrap().unwrap();
        let alone = RowSampler::new(RowBudget::Share(0.5), 3, (6..12).collect(), 6)
            .draw(1, None, &b)
            .unwrap()
            .unwrap();
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
            * Tensor::new(
                &[[0.01f32], [1.], [0.3], [5.], [0.1], [2.], [0.7], [0.05]],
                &Device::Cpu,
            )
            .unwrap()
            .broadcast_as((n, 3))
            .unwrap())
        .unwrap();
        let (mut mean, mut count) = (vec![0.0f64; n * 3], 0);
        for draw in 0..draws {
            let tokens = (0..n as u64).map(|i| draw * n as u64 + i).collect();
            let DrawnRows { rows, d } = RowSampler::new(RowBudget::Share(0.5), 1, tokens, n)
                .draw(0, None, &d)
                .unwrap()
                .unwrap();
            count += rows.len();
            for (row, d) in rows.iter().zip(d.to_vec2::<f32>().unwrap()) {
                for (j, v) in d.iter().enumerate() {
                    mean[*row as usize * 3 + j] += f64::from(*v) / draws as f64;
                }
            }
        }
        assert!((count as f64 / draws as f64 - 4.0).abs() < 0.05, "half of the rows, {count}");
        let norms = row_norms(&d).unwrap();
        let c = factor_for_rows(&norms, 4.0).unwrap();
        for (i, (got, want)) in
            mean.iter().zip(d.flatten_all().unwrap().to_vec1::<f32>().unwrap()).enumerate()
        {
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
