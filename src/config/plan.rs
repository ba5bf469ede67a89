//! A run, resolved: every value present and checked once. Printed by `plan`, stored in every checkpoint and as the
//! `config.toml` of a run folder, which is itself a run file.

use super::choice::{
    Activations, AlphaSchedule, BackwardMode, Birth, DeviceSpec, Divergence, Dtype, HeadMode, Method, MicroRows,
    ObjectiveSchedule, OnNonfinite, Pool, ProbeScore, Rho, ScheduleKind, Score, Signal, Tail,
};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything a run is. The fields outside `eval`, `checkpoint`, `log` and `machine` are its mathematics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Whether tokens are selected.
    pub method: Method,
    /// Seed of every random stream of the run.
    pub seed: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Preset, model folder or Hub id of the teacher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// Preset, model folder or Hub id of the student.
    pub student: String,
    /// Where the student's first weights come from; absent: what its preset says (a folder or Hub id: checkpoint).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub birth: Option<Birth>,
    /// Teacher layers that a student born of `teacher-layers` starts from; absent: what its preset says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// Overrides of the student's shape.
    #[serde(default, skip_serializing_if = "ShapePlan::is_empty")]
    pub shape: ShapePlan,
    /// What is read.
    pub data: DataPlan,
    /// Which tokens count.
    pub select: SelectPlan,
    /// What a token costs.
    pub objective: ObjectivePlan,
    /// AdamW.
    pub optim: OptimPlan,
    /// The learning rate over the run.
    pub schedule: SchedulePlan,
    /// Validation during the run.
    pub eval: EvalPlan,
    /// Saving during the run.
    pub checkpoint: CheckpointPlan,
    /// Metrics during the run.
    pub log: LogPlan,
    /// How, not what: same results up to rounding, other speed and memory.
    pub machine: MachinePlan,
}

/// Overrides of a preset's shape; all absent as a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShapePlan {
    /// Transformer blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_layer: Option<usize>,
    /// Attention heads per block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_head: Option<usize>,
    /// Width of the residual stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_embd: Option<usize>,
    /// Longest context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_positions: Option<usize>,
}

impl ShapePlan {
    /// Whether nothing is overridden.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPlan {
    /// Folder written by `prepare`; only the quickstart does without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// Tokens per sequence (T).
    pub context: usize,
    /// Sequences per optimizer step.
    pub rows: usize,
}

/// `[select]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectPlan {
    /// What ranks the tokens.
    pub score: Score,
    /// Confidence level in [0, 1): `ceil((1 - alpha) M)` of a pool's M tokens are kept.
    pub alpha: f64,
    /// Which tokens share a threshold.
    pub pool: Pool,
    /// Which end of the ranking is kept.
    pub tail: Tail,
    /// Steps at the start that train on every token.
    pub burn_in: u64,
    /// Steps after that over which alpha grows from 0 to its target.
    pub ramp: u64,
    /// What moves alpha after that.
    pub schedule: AlphaSchedule,
    /// Steps between two updates of `ada-eslm`; time constant, in steps, of `easy-share`.
    pub interval: u64,
    /// How strongly `ada-eslm` answers a relative change of CVaR.
    pub gamma: f64,
    /// Least alpha of `ada-eslm`.
    pub alpha_min: f64,
    /// Largest alpha of `ada-eslm`.
    pub alpha_max: f64,
    /// Weight mu of the kept tokens' mean in the objective; 1 - mu is the weight of the mean of all tokens.
    pub mix: f64,
    /// Probability with which a dropped token is drawn for the mean of all, where `mix` < 1.
    pub rest: f64,
    /// Share of the old threshold in the new one, where `pool` is `carried`.
    pub carry: f64,
    /// Share in [0, 1) of a micro-batch's sequences that phase one drops; 0 is no phase one.
    pub alpha_seq: f64,
    /// Blocks before phase one.
    pub exit_layer: usize,
    /// Phase one probes the last of so many positions.
    pub probe_stride: usize,
    /// What ranks the sequences.
    pub probe_score: ProbeScore,
}

/// Confidence levels of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Level {
    /// Of the token selection.
    pub alpha: f64,
    /// Of phase one.
    pub alpha_seq: f64,
}

impl From<f64> for Level {
    /// Without phase one.
    fn from(alpha: f64) -> Self {
        Self { alpha, alpha_seq: 0.0 }
    }
}

impl Level {
    /// Part of the way there.
    #[must_use]
    pub fn scaled(self, share: f64) -> Self {
        Self { alpha: self.alpha * share, alpha_seq: self.alpha_seq * share }
    }

    /// Whether nothing is dropped.
    pub fn is_plain(self) -> bool {
        self == Self::default()
    }
}

impl SelectPlan {
    /// How far alpha is on its way at a 0-based step: 0 during the burn-in, then linear from 0 (at step `burn_in`) to 1
    /// (at step `burn_in + ramp` and after).
    pub fn ramp_at(&self, step: u64) -> f64 {
        let Some(since) = step.checked_sub(self.burn_in) else { return 0.0 };
        if since >= self.ramp { 1.0 } else { since as f64 / self.ramp as f64 }
    }

    /// Alpha of a 0-based step under a fixed schedule.
    pub fn alpha_at(&self, step: u64) -> f64 {
        self.alpha * self.ramp_at(step)
    }
}

/// `[objective]`: (1 - lambda) CE + lambda tau^2 D(teacher, student).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectivePlan {
    /// Weight of the teacher in [0, 1].
    pub lambda: f64,
    /// Temperature tau of both distributions, positive.
    pub temperature: f64,
    /// D.
    pub divergence: Divergence,
    /// Share of the teacher in the mixture of `jsd`, in (0, 1).
    pub beta: f64,
    /// Share of the first distribution in the mixture of the skewed divergences, in [0, 1).
    pub skew: f64,
    /// What the loss hears of the teacher.
    pub signal: Signal,
    /// Entries of a top-k signal.
    pub top_k: usize,
    /// Draws per token of a sampled signal.
    pub samples: u32,
    /// Lambda at the last step; absent: constant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda_end: Option<f64>,
    /// Temperature at the last step; absent: constant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_end: Option<f64>,
    /// How both move there.
    pub schedule: ObjectiveSchedule,
}

impl ObjectivePlan {
    /// Lambda of a 0-based step of a run of `steps` steps: exactly `lambda` at the first, `lambda_end` at the last.
    pub fn lambda_at(&self, step: u64, steps: u64) -> f64 {
        self.between(self.lambda, self.lambda_end, step, steps)
    }

    /// The temperature, likewise.
    pub fn temperature_at(&self, step: u64, steps: u64) -> f64 {
        self.between(self.temperature, self.temperature_end, step, steps)
    }

    fn between(&self, from: f64, to: Option<f64>, step: u64, steps: u64) -> f64 {
        let Some(to) = to else { return from };
        let last = steps.saturating_sub(1).max(1);
        let x = step.min(last) as f64 / last as f64;
        let left = match self.schedule {
            ObjectiveSchedule::Linear => 1.0 - x,
            ObjectiveSchedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * x).cos()),
        };
        to + (from - to) * left
    }

    /// Whether the teacher has weight in some step.
    pub fn distils(&self) -> bool {
        self.lambda > 0.0 || self.lambda_end.is_some_and(|end| end > 0.0)
    }

    /// Whether the loss hears all of the teacher's distribution.
    pub fn is_dense(&self) -> bool {
        self.signal == Signal::Dense
    }
}

/// `[optim]`: AdamW; decay on matrices and embeddings only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimPlan {
    /// Peak learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 is off.
    pub clip: f64,
    /// What becomes of a step that is not finite.
    #[serde(default = "OptimPlan::stop")]
    pub on_nonfinite: OnNonfinite,
    /// Steps that `on_nonfinite = "skip"` passes over in the whole run.
    #[serde(default = "OptimPlan::most_skips")]
    pub max_skips: u64,
}

impl CheckpointPlan {
    /// Most checkpoints that stay on disk.
    pub fn kept(&self) -> usize {
        self.keep + self.keep_best
    }
}

impl OptimPlan {
    /// What checkpoints mean that were written before there was a choice.
    fn stop() -> OnNonfinite {
        OnNonfinite::Stop
    }

    /// See `stop`: the default of the table of keys, so that such a run goes on as the same run.
    fn most_skips() -> u64 {
        10
    }
}

/// `[schedule]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulePlan {
    /// Shape after the warm-up.
    pub kind: ScheduleKind,
    /// Steps from 0 to the peak.
    pub warmup: u64,
    /// Learning rate at the end, as a share of the peak.
    pub floor: f64,
    /// Share of the steps over which `wsd` decays.
    pub decay: f64,
}

/// `[eval]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalPlan {
    /// Steps between validations; 0 is only before the first step and after the last.
    pub every: u64,
    /// Sequences per validation; 0 is all.
    pub rows: usize,
    /// Tokens by which consecutive validation windows advance.
    pub stride: usize,
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointPlan {
    /// Steps between checkpoints; 0 is only at the end.
    pub every: u64,
    /// Newest checkpoints that stay on disk.
    pub keep: usize,
    /// Checkpoints of the lowest validation loss that stay as well.
    #[serde(default)]
    pub keep_best: usize,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogPlan {
    /// Steps between lines of `metrics.jsonl`.
    pub every: u64,
}

/// `[machine]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachinePlan {
    /// Where tensors live.
    pub device: DeviceSpec,
    /// Number format of the products' factors.
    pub dtype: Dtype,
    /// Number format in which a teacher's share of them is stored.
    #[serde(default = "MachinePlan::in_full")]
    pub teacher_dtype: Dtype,
    /// Sequences per micro-batch; divides `data.rows`.
    pub micro_rows: MicroRows,
    /// What happens to the logits between scoring and backward.
    pub head: HeadMode,
    /// What happens to the activations between forward and backward.
    #[serde(default = "MachinePlan::kept")]
    pub activations: Activations,
    /// Which rows carry gradient.
    pub backward: BackwardMode,
    /// Share of the positions that a sampled backward keeps at the head, at each block and at its keys and values.
    #[serde(default = "MachinePlan::whole")]
    pub rho: Rho,
    /// Variance that a sampled backward with `rho = "auto"` may add, as a share of the gradient's own.
    #[serde(default)]
    pub added_variance: f64,
    /// CPU threads; 0 is all.
    pub threads: usize,
}

impl MachinePlan {
    /// What checkpoints mean that were written before there was a `rho`.
    fn whole() -> Rho {
        Rho::Share(1.0)
    }

    /// What checkpoints mean that were written before there was a `teacher_dtype`.
    fn in_full() -> Dtype {
        Dtype::F32
    }

    /// What checkpoints mean that were written before there were `activations`.
    fn kept() -> Activations {
        Activations::Keep
    }
}

impl Plan {
    /// Tokens of one optimizer step, before selection.
    pub fn tokens_per_step(&self) -> u64 {
        self.data.rows as u64 * self.data.context as u64
    }

    /// Tokens of the whole run, before selection.
    pub fn tokens(&self) -> u64 {
        self.tokens_per_step().saturating_mul(self.steps)
    }

    /// Whether any step can drop a token, alone or with its sequence.
    pub fn selects(&self) -> bool {
        self.method == Method::Eslm && (self.select.alpha > 0.0 || self.select.alpha_seq > 0.0)
    }

    /// The confidence levels that a run is on its way to; 0 throughout for `clm`.
    pub fn level(&self) -> Level {
        match self.selects() {
            true => Level { alpha: self.select.alpha, alpha_seq: self.select.alpha_seq },
            false => Level::default(),
        }
    }

    /// The levels of a 0-based step as far as the plan alone knows them: a schedule other than `fixed` depends on what the
    /// run sees, and is asked of the selection's state.
    pub fn level_at(&self, step: u64) -> Level {
        self.level().scaled(self.select.ramp_at(step))
    }

    /// Alpha of the token selection at a 0-based step, as [`Plan::level_at`].
    pub fn alpha_at(&self, step: u64) -> f64 {
        self.level_at(step).alpha
    }

    /// Whether a run's `rho = "auto"` decides how many rows its backward draws, so that its FLOPs are not known beforehand.
    pub fn draws_by_variance(&self) -> bool {
        self.machine.backward == BackwardMode::Sampled && self.machine.rho == Rho::Auto
    }

    /// Whether `machine.micro_rows` changes results beyond rounding: a threshold is shared by a micro-batch's tokens, or by
    /// its sequences.
    pub fn micro_rows_matter(&self) -> bool {
        self.selects() && (self.select.pool == Pool::MicroBatch || self.select.alpha_seq > 0.0)
    }

    /// The half that changes results, as JSON: what a checkpoint compares before it resumes. Without `eval`,
    /// `checkpoint`, `log` and `machine` (but with the dtypes, with a backward mode of other numbers, and with `micro_rows`
    /// where it matters: settled first, so that it is a number), and without `data.dir`, a place whose
    /// content the token files' own hashes identify.
    pub fn mathematics(&self) -> Value {
        let mut all = serde_json::to_value(self).unwrap_or(Value::Null); // plain data: always representable
        if let Some(object) = all.as_object_mut() {
            for part in ["eval", "checkpoint", "log", "machine"] {
                object.shift_remove(part);
            }
            if let Some(data) = object.get_mut("data").and_then(Value::as_object_mut) {
                data.shift_remove("dir");
            }
            // How a run goes on after a batch that cannot be trained on may be decided when it comes.
            if let Some(optim) = object.get_mut("optim").and_then(Value::as_object_mut) {
                optim.shift_remove("on_nonfinite");
                optim.shift_remove("max_skips");
            }
            object.insert("dtype".into(), Value::from(self.machine.dtype.name()));
            if self.uses_teacher() && self.machine.teacher_dtype != Dtype::F32 {
                object.insert("teacher_dtype".into(), Value::from(self.machine.teacher_dtype.name()));
            }
            if matches!(self.machine.backward, BackwardMode::Sparse | BackwardMode::Sampled) {
                object.insert("backward".into(), Value::from(self.machine.backward.name()));
            }
            if self.machine.backward == BackwardMode::Sampled {
                let (name, value) = match self.machine.rho {
                    Rho::Auto => ("added_variance", self.machine.added_variance),
                    Rho::Share(share) => ("rho", share),
                };
                object.insert(name.into(), Value::from(value));
            }
            if self.micro_rows_matter() {
                let rows = match self.machine.micro_rows {
                    MicroRows::Auto => Value::from("auto"),
                    MicroRows::Rows(n) => Value::from(n),
                };
                object.insert("micro_rows".into(), rows);
            }
        }
        all
    }

    /// What differs between a stored [`Plan::mathematics`] and this plan's: one line per key, empty if nothing does.
    pub fn mathematics_differences(&self, stored: &Value) -> Vec<String> {
        let (mut was, mut is) = (Vec::new(), Vec::new());
        flatten("", stored, &mut was);
        flatten("", &self.mathematics(), &mut is);
        let find = |list: &[(String, Value)], key: &str| list.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
        let mut keys: Vec<&String> = is.iter().chain(&was).map(|(k, _)| k).collect();
        let mut seen = std::collections::HashSet::new();
        keys.retain(|k| seen.insert(k.as_str()));
        let show = |v: Option<Value>| v.map_or_else(|| "absent".to_string(), |v| v.to_string());
        keys.into_iter()
            .filter_map(|k| {
                let (a, b) = (find(&was, k), find(&is, k));
                (a != b).then(|| format!("{k}: {} before, {} now", show(a), show(b)))
            })
            .collect()
    }

    /// Every value as a run file that loads to this same plan.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::internal(format!("cannot write the plan as TOML: {e}")))
    }
}

/// Dotted keys of every leaf of `value` (lists are leaves).
pub(crate) fn flatten(prefix: &str, value: &Value, into: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&name, inner, into);
            }
        }
        leaf => into.push((prefix.to_string(), leaf.clone())),
    }
}
