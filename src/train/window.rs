//! What the steps since the last logged one came to.

use super::StepReport;
use super::events::{Phases, StepEvent};
use crate::store::checkpoint::Counters;

/// Steps since the last logged one.
#[derive(Default)]
pub(super) struct Window {
    tokens: u64,
    seconds: f64,
    phases: Phases,
    /// Tokens and seconds of a first step, if it is among them.
    first: Option<(u64, f64)>,
    /// The last of them.
    pub(super) last: Option<StepReport>,
}

impl Window {
    pub(super) fn add(&mut self, report: &StepReport, seconds: f64, is_first: bool) {
        if is_first {
            self.first = Some((report.sums.tokens, seconds));
        }
        self.tokens += report.sums.tokens;
        self.seconds += seconds;
        self.phases += report.sums.phases;
    }

    /// Tokens per second without a first step, unless it is the only one.
    fn speed(&self) -> f64 {
        let (tokens, seconds) = match self.first {
            Some((tokens, seconds)) if self.tokens > tokens => {
                (self.tokens - tokens, self.seconds - seconds)
            }
            _ => (self.tokens, self.seconds),
        };
        tokens as f64 / seconds
    }

    pub(super) fn event(self, report: &StepReport, counters: &Counters) -> StepEvent {
        let StepReport { settings, sums, .. } = report;
        let (tokens, valid, kept) = (sums.tokens as f64, sums.valid as f64, sums.kept as f64);
        let dropped = valid - kept;
        let score_sum = || sums.scores.iter().map(|s| f64::from(*s)).sum::<f64>();
        StepEvent {
            step: counters.step,
            loss: report.mean_loss(),
            full_loss: (sums.valid == sums.tokens).then(|| sums.nll / valid),
            kept_loss: sums.kept_nll / kept,
            dropped_loss: (dropped > 0.0).then(|| (sums.nll - sums.kept_nll) / dropped),
            kept: sums.kept,
            kept_share: kept / tokens,
            sequences_share: sums.sequences.1 as f64 / sums.sequences.0 as f64,
            alpha: settings.alpha,
            var: (sums.pools > 0).then(|| sums.var / sums.pools as f64),
            cvar: (sums.pools > 0).then(|| sums.cvar / kept),
            score_mean: (!sums.scores.is_empty()).then(|| score_sum() / valid),
            rows: sums.rows,
            effective_rows: sums.effective_rows(),
            backward_share: sums.block_rows.0 as f64 / sums.block_rows.1 as f64,
            threshold: report.carried.map(|c| c.threshold),
            threshold_lag: report.carried.map(|c| c.lag),
            threshold_error: report.carried.map(|c| c.error),
            ada_delta: report.ada_delta,
            easy_share: sums.easy_share(),
            grad_norm: report.grad_norm,
            lambda: settings.lambda,
            temperature: settings.temperature,
            lr: settings.lr,
            tokens: counters.tokens,
            tokens_per_second: self.speed(),
            flops: counters.flops.total(),
            flops_by_part: counters.flops,
            seconds: counters.seconds,
            seconds_by_phase: self.phases,
        }
    }
}
