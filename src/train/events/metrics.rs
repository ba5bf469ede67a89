//! The lines of `metrics.jsonl`. A field is a metric: its name is the key, its documentation the
//! reference. A number that is not finite, or that does not exist, is `null`.

use super::{Flops, Phases};
use serde::Serialize;

/// A key of `metrics.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// As the file spells it.
    pub name: &'static str,
    /// What it is, a sentence or two.
    pub meaning: &'static str,
}

/// A struct whose fields are metrics: serialised by name in the order written, and listed with
/// their documentation.
macro_rules! metrics {
    ($(#[$about:meta])* $name:ident { $($(#[doc = $doc:literal])+ pub $field:ident: $type:ty,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $type,)+
        }

        impl $name {
            /// The keys of its line, in order.
            pub const METRICS: &'static [Metric] =
                &[$(Metric { name: stringify!($field), meaning: concat!($($doc),+) }),+];
        }
    };
}

/// The lines of `metrics.jsonl` as Markdown tables.
pub fn reference() -> String {
    let mut text = String::new();
    for (about, metrics) in [
        ("## A line per logged step", StepEvent::METRICS),
        ("## A line per validation", ValEvent::METRICS),
        ("## A line per step that was passed over", SkipEvent::METRICS),
    ] {
        text += &format!("{about}\n\n| key | meaning |\n|---|---|\n");
        for metric in metrics {
            text += &format!("| `{}` | {} |\n", metric.name, metric.meaning.trim());
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len() + 1);
    text
}

metrics! {
    /// One logged optimizer step. Losses are in nats per token.
    StepEvent {
        /// Optimizer steps done, this one included.
        pub step: u64,
        /// The objective that was minimised: its mean over the kept tokens.
        pub loss: f64,
        /// Mean cross-entropy of all tokens, the one to compare runs by; `null` where an early exit
        /// left sequences unscored.
        pub full_loss: Option<f64>,
        /// Mean cross-entropy of the kept tokens.
        pub kept_loss: f64,
        /// Mean cross-entropy of the dropped tokens of the sequences that were scored; `null` where
        /// none was dropped.
        pub dropped_loss: Option<f64>,
        /// Tokens kept in the step.
        pub kept: u64,
        /// The same over all tokens of the step.
        pub kept_share: f64,
        /// Sequences that went on after an early exit, over all.
        pub sequences_share: f64,
        /// Confidence level of the selection, burn-in and ramp applied.
        pub alpha: f64,
        /// Value at risk: the lowest kept score, averaged over pools; `null` without scores.
        pub var: Option<f64>,
        /// Conditional value at risk: the mean score of the kept tokens; `null` without scores.
        pub cvar: Option<f64>,
        /// Mean score of all tokens; `null` without scores.
        pub score_mean: Option<f64>,
        /// Tokens that carried gradient at the head: the kept ones and those that the mixture drew,
        /// or what a sampled backward drew of these.
        pub rows: u64,
        /// How many rows of equal gradient would carry the same: (sum g)^2 / sum g^2 over the norms
        /// g of the rows' gradients at the head's input. Low: a few tokens carry most of the
        /// gradient.
        pub effective_rows: f64,
        /// Share of positions that carried gradient at the blocks' outputs, over all blocks; `null`
        /// in a step that kept none.
        pub backward_share: f64,
        /// With `pool = "carried"`: the threshold used.
        pub threshold: Option<f64>,
        /// Mean age in steps of the values at risk behind it.
        pub threshold_lag: Option<f64>,
        /// By how much it lay above the exact value at risk of the step's scores.
        pub threshold_error: Option<f64>,
        /// The relative change of CVaR that moved alpha last (Ada-ESLM); `null` before, or without.
        pub ada_delta: Option<f64>,
        /// Share of tokens whose target has a probability above 0.9.
        pub easy_share: f64,
        /// Global gradient norm before clipping.
        pub grad_norm: f64,
        /// Weight of the teacher in the step.
        pub lambda: f64,
        /// Temperature of the step.
        pub temperature: f64,
        /// Learning rate of the step.
        pub lr: f64,
        /// Tokens seen since the start of the run, before selection.
        pub tokens: u64,
        /// Tokens per second since the last logged step.
        pub tokens_per_second: f64,
        /// Operations executed since the start of the run: a multiply-add is two; matrix products
        /// and attention are counted.
        pub flops: f64,
        /// The same by part: `student_forward`, `student_backward`, `teacher`, `scoring` (logits of
        /// dropped tokens).
        pub flops_by_part: Flops,
        /// Seconds of training since the start of the run.
        pub seconds: f64,
        /// Seconds since the last logged step by phase: `data`, `forward`, `scan`, `teacher`,
        /// `select`, `head` (with the scan and the teacher's logits, where these are one pass),
        /// `backward`, `optimizer`.
        pub seconds_by_phase: Phases,
    }
}

metrics! {
    /// One validation on full tokens.
    ValEvent {
        /// Optimizer steps done.
        pub step: u64,
        /// Mean cross-entropy of the validation tokens.
        pub val_loss: f64,
        /// Training tokens seen since the start of the run.
        pub tokens: u64,
        /// Operations executed since the start of the run, validations left out.
        pub flops: f64,
        /// Seconds of training since the start of the run.
        pub seconds: f64,
    }
}

metrics! {
    /// A step that was not finite: nothing of its batch entered parameters, moments or selection.
    SkipEvent {
        /// Steps done, this one counted.
        pub step: u64,
        /// Steps skipped since the start of the run, this one counted.
        pub skipped: u64,
        /// Training tokens seen since the start of the run, this batch's counted.
        pub tokens: u64,
        /// What was not finite, and where.
        pub reason: String,
    }
}
