//! What a plan answers: levels and schedules of a step, what it is compared by, its text. Its
//! fields are in `table.rs`.

use super::choice::{BackwardMode, Method, ObjectiveSchedule, Pool, Rho, Signal};
use super::keys::KEYS;
pub use super::table::{
    CheckpointPlan, DataPlan, EvalPlan, LogPlan, MachinePlan, ObjectivePlan, OptimPlan, Plan,
    SchedulePlan, SelectPlan, ShapePlan,
};
use super::{Overrides, RunFile, load};
use crate::error::{Error, Result};
use serde_json::Value;

impl ShapePlan {
    /// Whether nothing is overridden.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Confidence levels of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Level {
    /// Of the token selection.
    pub alpha: f64,
    /// Of the early-exit filter of sequences.
    pub alpha_seq: f64,
}

impl From<f64> for Level {
    /// Without the early-exit filter.
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
    /// How far alpha is on its way at a 0-based step: 0 during the burn-in, then linear from 0 (at
    /// step `burn_in`) to 1 (at step `burn_in + ramp` and after).
    pub fn ramp_at(&self, step: u64) -> f64 {
        let Some(since) = step.checked_sub(self.burn_in) else { return 0.0 };
        if since >= self.ramp { 1.0 } else { since as f64 / self.ramp as f64 }
    }

    /// Alpha of a 0-based step under a fixed schedule.
    pub fn alpha_at(&self, step: u64) -> f64 {
        self.alpha * self.ramp_at(step)
    }
}

impl ObjectivePlan {
    /// Lambda of a 0-based step of a run of `steps` steps: exactly `lambda` at the first,
    /// `lambda_end` at the last.
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

    /// Whether the loss uses all of the teacher's distribution.
    pub fn is_dense(&self) -> bool {
        self.signal == Signal::Dense
    }
}

impl CheckpointPlan {
    /// Most checkpoints that stay on disk.
    pub fn kept(&self) -> usize {
        self.keep + self.keep_best
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

    /// The levels of a 0-based step as far as the plan alone knows them: a schedule other than
    /// `fixed` depends on what the run sees, and is asked of the selection's state.
    pub fn level_at(&self, step: u64) -> Level {
        self.level().scaled(self.select.ramp_at(step))
    }

    /// Alpha of the token selection at a 0-based step, as [`Plan::level_at`].
    pub fn alpha_at(&self, step: u64) -> f64 {
        self.level_at(step).alpha
    }

    /// Whether a run's `rho = "auto"` decides how many rows its backward draws, so that its FLOPs
    /// are not known beforehand.
    pub fn draws_by_variance(&self) -> bool {
        self.machine.backward == BackwardMode::Sampled && self.machine.rho == Rho::Auto
    }

    /// Whether `machine.micro_rows` changes results beyond rounding: a threshold is shared by a
    /// micro-batch's tokens, or by its sequences.
    pub fn micro_rows_matter(&self) -> bool {
        self.selects() && (self.select.pool == Pool::MicroBatch || self.select.alpha_seq > 0.0)
    }

    /// Into how many groups the sequences of a step are divided where so many processes train: as many
    /// as `machine.groups` asks for if each process can then have a power of two of them, which is a
    /// tree of its own within that of all; else one for each process. One process has any number.
    pub fn groups(&self, processes: usize) -> usize {
        let asked = self.machine.groups;
        let each = asked / processes;
        let divides = asked.is_multiple_of(processes) && each.is_power_of_two();
        if divides || processes == 1 && asked > 0 { asked } else { processes }
    }

    /// The keys that change results with their values, as JSON: what a checkpoint compares before
    /// it resumes. Which these are, the table of keys says. Settled first, so that `micro_rows` is
    /// a number where it counts.
    pub fn mathematics(&self) -> Value {
        let mut leaves = Vec::new();
        flatten("", &serde_json::to_value(self).unwrap_or(Value::Null), &mut leaves); // plain data: always representable
        let counts = |name: &str| KEYS.iter().any(|k| k.name == name && k.counts.in_plan(self));
        Value::Object(leaves.into_iter().filter(|(name, _)| counts(name)).collect())
    }

    /// Every key with its value as text.
    pub fn as_text(&self) -> Vec<(String, String)> {
        let mut leaves = Vec::new();
        flatten("", &serde_json::to_value(self).unwrap_or(Value::Null), &mut leaves);
        leaves.into_iter().map(|(name, value)| (name, value.to_string())).collect()
    }

    /// What differs between a stored [`Plan::mathematics`] and this plan's: one line per key, empty
    /// if nothing does.
    pub fn mathematics_differences(&self, stored: &Value) -> Vec<String> {
        self.differences_beside(stored, &[])
    }

    /// The same beside the keys `known`, whose values are known to mean the same.
    pub fn differences_beside(&self, stored: &Value, known: &[&str]) -> Vec<String> {
        let (mut was, mut is) = (Vec::new(), Vec::new());
        flatten("", stored, &mut was);
        flatten("", &self.mathematics(), &mut is);
        let find = |list: &[(String, Value)], key: &str| {
            list.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone())
        };
        let mut keys: Vec<&String> = is.iter().chain(&was).map(|(k, _)| k).collect();
        let mut seen = std::collections::HashSet::new();
        keys.retain(|k| !known.contains(&k.as_str()) && seen.insert(k.as_str()));
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
        toml::to_string(self)
            .map_err(|e| Error::internal(format!("cannot write the plan as TOML: {e}")))
    }

    /// The plan that its own text loads to: what `clm` does not read is left out of it.
    pub fn as_stored(&self) -> Result<Self> {
        let text = RunFile { name: "the plan".into(), text: self.to_toml()? };
        load(Some(&text), &Overrides::default()).map(|read| read.plan)
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
