//! What a step did, as sums over its micro-batches.

use crate::cost::Flops;
use crate::data::loader::Batch;
use crate::error::Result;
use crate::loss::head::RowStats;
use crate::ops::embed::row_norms;
use crate::select::Selection;
use crate::train::events::Phases;
use candle_core::Tensor;

/// -ln 0.9: a target more probable than 0.9 counts as easy.
const EASY_NLL: f32 = 0.105_360_52;

/// What a step did; sums over its micro-batches, losses in nats.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepReport {
    /// Positions that count.
    pub tokens: u64,
    /// Sequences, and those of them that went on after phase one.
    pub sequences: (u64, u64),
    /// Positions that count in the sequences that went on: the others were never scored.
    pub valid: u64,
    /// Those of them that the selector kept.
    pub kept: u64,
    /// Positions that carried gradient at the head: the kept ones and those that the mixture drew, or what a sampled backward
    /// drew of these.
    pub rows: u64,
    /// Positions that carried gradient at a block's output, and those there were, summed over the blocks.
    pub block_rows: (u64, u64),
    /// Sum of the weighted objective over these.
    pub loss: f64,
    /// What sums are divided by: the kept positions, unless the mixture fixed their number beforehand.
    pub denominator: f64,
    /// Sum of the cross-entropy over the `valid` positions.
    pub nll: f64,
    /// Sum of the cross-entropy over kept positions.
    pub kept_nll: f64,
    /// Positions whose target has a probability above 0.9.
    pub easy: u64,
    /// Scores of the positions that count, in order; empty where nothing was selected.
    pub scores: Vec<f32>,
    /// Sums of values at risk and of kept scores, over `pools` pools.
    pub var: f64,
    /// See `var`.
    pub cvar: f64,
    /// See `var`.
    pub pools: usize,
    /// A carried threshold: what was used, its lag in steps, and by how much it lay above the exact value at risk.
    pub carried: Option<CarriedReport>,
    /// The relative change of CVaR that moved alpha last (Ada-ESLM).
    pub ada_delta: Option<f64>,
    /// Sums over rows of the norm of their gradient at the head's input, and of its square.
    pub row_norms: (f64, f64),
    /// Confidence level of the token selection, and of phase one.
    pub alpha: f64,
    /// See `alpha`.
    pub alpha_seq: f64,
    /// Weight of the teacher in the step.
    pub lambda: f64,
    /// Temperature of the step.
    pub temperature: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Global norm of the mean loss's gradient, before clipping.
    pub grad_norm: f64,
    /// Operations executed.
    pub flops: Flops,
    /// Seconds by phase.
    pub phases: Phases,
}

/// How a carried threshold fared in a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CarriedReport {
    /// Scores at least as large were kept.
    pub threshold: f64,
    /// Mean age in steps of what it was estimated from.
    pub lag: f64,
    /// Threshold minus the exact value at risk of the step's scores.
    pub error: f64,
}

impl StepReport {
    pub(super) fn add(&mut self, stats: &[RowStats], batch: &Batch, selection: &Selection) {
        for (s, _) in stats.iter().zip(&batch.valid).filter(|(_, valid)| **valid) {
            self.valid += 1;
            self.nll += f64::from(s.student.nll);
            self.easy += u64::from(s.student.nll < EASY_NLL);
        }
        self.kept += selection.rows.len() as u64;
        self.kept_nll += selection.rows.iter().map(|&r| f64::from(stats[r as usize].student.nll)).sum::<f64>();
        self.var += selection.var_sum;
        self.cvar += selection.score_sum;
        self.pools += selection.pools;
    }

    /// Takes the gradient of the rows' hidden vectors [k, D].
    pub(super) fn add_row_norms(&mut self, d_hidden: &Tensor) -> Result<()> {
        let norms = row_norms(d_hidden)?;
        self.row_norms.0 += norms.iter().sum::<f64>();
        self.row_norms.1 += norms.iter().map(|g| g * g).sum::<f64>();
        Ok(())
    }

    /// Effective number of rows, (sum |g|)^2 / sum |g|^2 with g the rows' gradients at the head's input: as many rows of
    /// equal norm would carry the same. 0 where no row has a gradient.
    pub fn effective_rows(&self) -> f64 {
        let (sum, squares) = self.row_norms;
        if squares > 0.0 { sum * sum / squares } else { 0.0 }
    }

    /// Share of the positions whose target is more probable than 0.9.
    pub fn easy_share(&self) -> f64 {
        if self.valid > 0 { self.easy as f64 / self.valid as f64 } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn effective_rows_count_rows_of_equal_norm_once_and_small_ones_hardly() {
        let of = |norms: &[[f32; 2]]| {
            let mut report = StepReport::default();
            report
                .add_row_norms(&Tensor::from_slice(norms.as_flattened(), (norms.len(), 2), &Device::Cpu).unwrap())
                .unwrap();
            report.effective_rows()
        };
        assert!((of(&[[3.0, 4.0], [5.0, 0.0], [0.0, -5.0]]) - 3.0).abs() < 1e-12);
        assert!((of(&[[1.0, 0.0], [1e-6, 0.0]]) - 1.0).abs() < 1e-5);
        assert!((of(&[[2.0, 0.0], [1.0, 0.0]]) - 9.0 / 5.0).abs() < 1e-12);
        assert_eq!(of(&[[0.0, 0.0]]), 0.0);
        assert_eq!(StepReport::default().effective_rows(), 0.0);
    }
}
