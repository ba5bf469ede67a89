//! What a step did, as sums over its micro-batches.

use crate::cost::Flops;
use crate::data::loader::Batch;
use crate::error::Result;
use crate::loss::head::RowStats;
use crate::ops::embed::row_norms;
use crate::select::Selection;
use crate::train::events::Phases;
use candle_core::Tensor;
use std::ops::AddAssign;

/// -ln 0.9: a target more probable than 0.9 counts as easy.
const EASY_NLL: f32 = 0.105_360_52;

/// What a step did: its settings, the sums over its micro-batches, and what came of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepReport {
    /// What was set for the step before it began.
    pub settings: StepSettings,
    /// What its micro-batches add up to. Nothing else depends on how the step was divided.
    pub sums: Sums,
    /// What sums are divided by: the kept positions, unless the mixture fixed their number
    /// beforehand.
    pub denominator: f64,
    /// Global norm of the mean loss's gradient, before clipping.
    pub grad_norm: f64,
    /// A carried threshold: what was used, its lag in steps, and by how much it lay above the exact
    /// value at risk.
    pub carried: Option<CarriedReport>,
    /// The relative change of CVaR that moved alpha last (Ada-ESLM).
    pub ada_delta: Option<f64>,
}

/// What a step is told before it begins.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepSettings {
    /// Confidence level of the token selection.
    pub alpha: f64,
    /// Confidence level of the early exit's choice of sequences.
    pub alpha_seq: f64,
    /// Weight of the teacher.
    pub lambda: f64,
    /// Temperature.
    pub temperature: f64,
    /// Learning rate.
    pub lr: f64,
}

/// Sums over micro-batches, losses in nats. Those of two halves of a step add up to those of the
/// step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sums {
    /// Positions that count.
    pub tokens: u64,
    /// Sequences, and those of them that went on after an early exit.
    pub sequences: (u64, u64),
    /// Positions that count in the sequences that went on: the others were never scored.
    pub valid: u64,
    /// Those of them that the selector kept.
    pub kept: u64,
    /// Positions that carried gradient at the head: the kept ones and those that the mixture drew,
    /// or what a sampled backward drew of these.
    pub rows: u64,
    /// Positions that carried gradient at a block's output, and those there were, summed over the
    /// blocks.
    pub block_rows: (u64, u64),
    /// Sum of the weighted objective over the rows.
    pub loss: f64,
    /// Sum of the cross-entropy over the `valid` positions.
    pub nll: f64,
    /// Sum of the cross-entropy over kept positions.
    pub kept_nll: f64,
    /// Positions whose target has a probability above 0.9.
    pub easy: u64,
    /// Scores of the positions that count, in order; empty where nothing was selected.
    pub scores: Vec<f32>,
    /// Sum of values at risk over `pools` pools.
    pub var: f64,
    /// Sum of the kept positions' scores.
    pub cvar: f64,
    /// Pools that had positions.
    pub pools: usize,
    /// Sums over rows of the norm of their gradient at the head's input, and of its square.
    pub row_norms: (f64, f64),
    /// Operations executed.
    pub flops: Flops,
    /// Seconds by phase.
    pub phases: Phases,
}

impl AddAssign for Sums {
    fn add_assign(&mut self, mut other: Self) {
        self.tokens += other.tokens;
        self.sequences.0 += other.sequences.0;
        self.sequences.1 += other.sequences.1;
        self.valid += other.valid;
        self.kept += other.kept;
        self.rows += other.rows;
        self.block_rows.0 += other.block_rows.0;
        self.block_rows.1 += other.block_rows.1;
        self.loss += other.loss;
        self.nll += other.nll;
        self.kept_nll += other.kept_nll;
        self.easy += other.easy;
        self.scores.append(&mut other.scores);
        self.var += other.var;
        self.cvar += other.cvar;
        self.pools += other.pools;
        self.row_norms.0 += other.row_norms.0;
        self.row_norms.1 += other.row_norms.1;
        self.flops += other.flops;
        self.phases += other.phases;
    }
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
    /// The objective that was minimised: its mean over the kept positions, in nats.
    pub fn mean_loss(&self) -> f64 {
        self.sums.loss / self.denominator
    }
}

impl Sums {
    /// All of them but the seconds, for another process; exact, as no count reaches 2^53.
    pub(super) fn numbers(&self) -> Vec<f64> {
        let Self { tokens, sequences, valid, kept, rows, block_rows, loss, nll, kept_nll, .. } =
            self;
        let Self { easy, scores, var, cvar, pools, row_norms, flops, .. } = self;
        let counts = [
            *tokens,
            sequences.0,
            sequences.1,
            *valid,
            *kept,
            *rows,
            block_rows.0,
            block_rows.1,
            *easy,
            *pools as u64,
            scores.len() as u64,
        ];
        let sums = [*loss, *nll, *kept_nll, *var, *cvar, row_norms.0, row_norms.1];
        let flops = [flops.student_forward, flops.student_backward, flops.teacher, flops.scoring];
        let scores = scores.iter().map(|&score| f64::from(score));
        counts.into_iter().map(|n| n as f64).chain(sums).chain(flops).chain(scores).collect()
    }

    /// What [`Sums::numbers`] of one after the other made.
    pub(super) fn of_numbers(mut numbers: &[f64]) -> Vec<Self> {
        let mut all = Vec::new();
        while let Some((
            &[
                tokens,
                begun,
                went_on,
                valid,
                kept,
                rows,
                with_gradient,
                of_blocks,
                easy,
                pools,
                scores,
                loss,
                nll,
                kept_nll,
                var,
                cvar,
                norms,
                squares,
                student_forward,
                student_backward,
                teacher,
                scoring,
            ],
            rest,
        )) = numbers.split_first_chunk()
        {
            let (scores, rest) = rest.split_at((scores as usize).min(rest.len()));
            numbers = rest;
            all.push(Self {
                tokens: tokens as u64,
                sequences: (begun as u64, went_on as u64),
                valid: valid as u64,
                kept: kept as u64,
                rows: rows as u64,
                block_rows: (with_gradient as u64, of_blocks as u64),
                loss,
                nll,
                kept_nll,
                easy: easy as u64,
                scores: scores.iter().map(|&score| score as f32).collect(),
                var,
                cvar,
                pools: pools as usize,
                row_norms: (norms, squares),
                flops: Flops { student_forward, student_backward, teacher, scoring },
                phases: Phases::default(),
            });
        }
        all
    }

    pub(super) fn add(&mut self, stats: &[RowStats], batch: &Batch, selection: &Selection) {
        for (s, _) in stats.iter().zip(&batch.valid).filter(|(_, valid)| **valid) {
            self.valid += 1;
            self.nll += f64::from(s.student.nll);
            self.easy += u64::from(s.student.nll < EASY_NLL);
        }
        self.kept += selection.rows.len() as u64;
        self.kept_nll +=
            selection.rows.iter().map(|&r| f64::from(stats[r as usize].student.nll)).sum::<f64>();
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

    /// Effective number of rows, (sum |g|)^2 / sum |g|^2 with g the rows' gradients at the head's
    /// input: as many rows of equal norm would carry the same. 0 where no row has a gradient.
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
    fn sums_travel_without_loss() {
        let one = |scores: &[f32]| Sums {
            tokens: 1 << 40,
            sequences: (2, 3),
            valid: 4,
            kept: 5,
            rows: 6,
            block_rows: (7, 8),
            loss: 0.1,
            nll: f64::MIN_POSITIVE,
            kept_nll: -1e300,
            easy: 9,
            scores: scores.to_vec(),
            var: 0.3,
            cvar: 0.7,
            pools: 10,
            row_norms: (0.11, 0.13),
            flops: Flops {
                student_forward: 1.0,
                student_backward: 2.0,
                teacher: 3.0,
                scoring: 4.0,
            },
            phases: Phases::default(),
        };
        let all = vec![one(&[0.1, -3.5]), one(&[]), Sums::default()];
        let numbers: Vec<f64> = all.iter().flat_map(Sums::numbers).collect();
        assert_eq!(Sums::of_numbers(&numbers), all);
    }

    #[test]
    fn effective_rows_count_rows_of_equal_norm_once_and_small_ones_hardly() {
        let of = |norms: &[[f32; 2]]| {
            let mut sums = Sums::default();
            sums.add_row_norms(
                &Tensor::from_slice(norms.as_flattened(), (norms.len(), 2), &Device::Cpu).unwrap(),
            )
            .unwrap();
            sums.effective_rows()
        };
        assert!((of(&[[3.0, 4.0], [5.0, 0.0], [0.0, -5.0]]) - 3.0).abs() < 1e-12);
        assert!((of(&[[1.0, 0.0], [1e-6, 0.0]]) - 1.0).abs() < 1e-5);
        assert!((of(&[[2.0, 0.0], [1.0, 0.0]]) - 9.0 / 5.0).abs() < 1e-12);
        assert_eq!(of(&[[0.0, 0.0]]), 0.0);
        assert_eq!(Sums::default().effective_rows(), 0.0);
    }
}
