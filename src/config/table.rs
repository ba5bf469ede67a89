//! The table of keys: every key of a run file, once. Its entry is a field of [`Plan`], that field's
//! documentation, a row of [`KEYS`] (what it accepts, its default, what it means) and a row of
//! [`super::reference`].
//!
//! ```text
//! /// What it means.
//! name: Type = default, in RANGE, was "old_name", counts WHEN;
//! ```
//!
//! The default is a TOML value, `Absent`, or a rule over keys above. The range may be left out
//! where the type says it. `was` is a name of earlier versions, still read everywhere. `counts`
//! says whether the key is part of the run's mathematics, which a checkpoint compares
//! ([`Plan::mathematics`]); without it the section's own word holds. An attribute `#[serde(default
//! = ..)]` says what a stored plan means that was written before there was the key.

use super::choice::{
    Activations, AlphaSchedule, BackwardMode, DeviceSpec, Divergence, Dtype, HeadMode, Init,
    Method, MicroRows, ObjectiveSchedule, OnNonfinite, Pool, ProbeScore, Rho, ScheduleKind, Score,
    Signal, Tail, sentence,
};
use super::keys::Counts::{self, Always, Never};
use super::keys::Fallback::{self, Absent, Rule};
use super::keys::{Key, Kind, Range, count, within};
use serde::{Deserialize, Serialize};
use toml::Value;

const POSITIVE: Kind = within(0.0, false, f64::INFINITY, false);
const NOT_NEGATIVE: Kind = within(0.0, true, f64::INFINITY, false);
const SHARE: Kind = within(0.0, true, 1.0, true);
const ABOVE_ZERO: Kind = within(0.0, false, 1.0, true);
const BELOW_ONE: Kind = within(0.0, true, 1.0, false);
const BETWEEN: Kind = within(0.0, false, 1.0, false);
const TEMPERATURE: Kind = within(1e-3, true, f64::INFINITY, false);
const EPSILON: Kind = within(1e-30, true, f64::INFINITY, false);
const POSITIVE_COUNT: Kind = count(1);
const ANY_SEED: Kind = Kind::Count { least: 0, wide: true };

const TENTH_OF_STEPS: Fallback =
    Rule("10 % of steps", |get| Value::Integer(whole(get("steps")) / 10));
const WARMUP: Fallback =
    Rule("3 % of steps", |get| Value::Integer((whole(get("steps")) * 3 + 99) / 100));
const BEST_SCORE: Fallback = Rule("excess with a teacher, else entropy", |get| {
    Value::String((if is_taught(get) { "excess" } else { "entropy" }).into())
});
// Selection alone did not beat plain training (docs/evidence/selection.md), so it is asked for.
const BEST_METHOD: Fallback =
    Rule("eslm with a teacher or where a key of [select] is written, else clm", |get| {
        let selects = |key: &&Key| key.name.starts_with("select.") && get(key.name).is_some();
        let eslm = is_taught(get) || super::keys::KEYS.iter().any(|key| selects(&key));
        Value::String((if eslm { "eslm" } else { "clm" }).into())
    });
const HALF_WITH_TEACHER: Fallback =
    Rule("0.5 with a teacher, else 0", |get| Value::Float(if is_taught(get) { 0.5 } else { 0.0 }));
const BEST_SIGNAL: Fallback = Rule("stored with data.signal, else dense", |get| {
    Value::String((if get("data.signal").is_some() { "stored" } else { "dense" }).into())
});
const ALL_DRAWS: Fallback = Rule("50; with data.signal 0", |get| {
    Value::Integer(if get("data.signal").is_some() { 0 } else { 50 })
});
const CONTEXT: Fallback =
    Rule("data.context", |get| get("data.context").unwrap_or(Value::Integer(1)));
const MODELS_HOLD: Fallback =
    Rule("what student and teacher hold, at most 1024", |_| Value::Integer(1024));
const SAME_DTYPE: Fallback = Rule("machine.dtype", |get| {
    get("machine.dtype").unwrap_or_else(|| Value::String("f32".into()))
});

const WITH_TEACHER: Counts = Counts::When("a teacher is used", Plan::uses_teacher);
const OTHER_NUMBERS: Counts = Counts::When("it is sparse or sampled", |plan| {
    matches!(plan.machine.backward, BackwardMode::Sparse | BackwardMode::Sampled)
});
const SAMPLED: Counts = Counts::When("the backward is sampled by shares", |plan| {
    plan.machine.backward == BackwardMode::Sampled && plan.machine.rho != Rho::Auto
});
const BY_VARIANCE: Counts =
    Counts::When("the backward is sampled and rho is auto", Plan::draws_by_variance);
const SHARED_THRESHOLD: Counts = Counts::When(
    "select.pool is micro-batch or select.alpha_seq is above 0",
    Plan::micro_rows_matter,
);

/// Whether there is a teacher, beside the run or on disk.
fn is_taught(get: &dyn Fn(&str) -> Option<Value>) -> bool {
    get("teacher").is_some() || get("data.signal").is_some()
}

fn whole(value: Option<Value>) -> i64 {
    value.and_then(|v| v.as_integer()).unwrap_or(0)
}

/// A type that a key may have.
pub(super) trait KeyType {
    /// What such a key accepts, unless its entry says otherwise.
    const KIND: Kind;

    /// Whether there is no value.
    fn is_absent(&self) -> bool {
        false
    }
}

impl<T: KeyType> KeyType for Option<T> {
    const KIND: Kind = T::KIND;

    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

macro_rules! key_types {
    ($($ty:ty: $kind:expr,)+) => { $(impl KeyType for $ty { const KIND: Kind = $kind; })+ };
}

key_types! {
    String: Kind::Text,
    Vec<usize>: Kind::Counts,
    u32: count(0),
    u64: count(0),
    usize: count(0),
    f64: NOT_NEGATIVE,
    bool: Kind::Switch,
    DeviceSpec: Kind::Device,
    MicroRows: Kind::CountOrAuto,
    Rho: Kind::NumberOrAuto(Range::new((0.0, false), (1.0, true))),
}

macro_rules! word_types {
    ($($ty:ty),+) => { $(impl KeyType for $ty { const KIND: Kind = Kind::Choice(Self::NAMES, Self::MEANINGS); })+ };
}

word_types!(
    Activations,
    AlphaSchedule,
    BackwardMode,
    Divergence,
    Dtype,
    HeadMode,
    Init,
    Method,
    ObjectiveSchedule,
    OnNonfinite,
    Pool,
    ProbeScore,
    ScheduleKind,
    Score,
    Signal,
    Tail
);

/// The last of one or two.
macro_rules! last {
    ($first:expr) => {
        $first
    };
    ($first:expr, $last:expr) => {
        $last
    };
}

macro_rules! fallback {
    ($value:literal) => {
        Fallback::Is(stringify!($value))
    };
    ($name:ident) => {
        $name
    };
}

macro_rules! old_name {
    () => { None };
    ($($part:expr),+) => { Some(concat!($($part),+)) };
}

macro_rules! keys {
    (
        $(#[$plan_attr:meta])*
        $Plan:ident, counts $plan_counts:ident {
            $(
                $(#[doc = $top_help:literal])+
                $top:ident: $top_ty:ty = $top_default:tt $(, in $top_kind:expr)? $(, was $top_was:tt)?;
            )*
        }
        $(
            $(#[$section_attr:meta])*
            $section:ident: $Section:ident, counts $section_counts:ident $(, serde($($section_serde:tt)+))? {
                $(
                    $(#[doc = $help:literal])+
                    $(#[serde($($serde:tt)+)])*
                    $field:ident: $ty:ty = $default:tt $(, in $kind:expr)? $(, was $was:tt)? $(, counts $counts:ident)?;
                )*
            }
        )*
    ) => {
        $(#[$plan_attr])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $Plan {
            $(
                $(#[doc = $top_help])+
                $(#[serde(alias = $top_was)])?
                #[serde(skip_serializing_if = "KeyType::is_absent")]
                pub $top: $top_ty,
            )*
            $(
                #[doc = concat!("`[", stringify!($section), "]`")]
                $(#[serde($($section_serde)+)])?
                pub $section: $Section,
            )*
        }

        $(
            $(#[$section_attr])*
            #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
            #[serde(deny_unknown_fields)]
            pub struct $Section {
                $(
                    $(#[doc = $help])+
                    $(#[serde($($serde)+)])*
                    $(#[serde(alias = $was)])?
                    #[serde(skip_serializing_if = "KeyType::is_absent")]
                    pub $field: $ty,
                )*
            }
        )*

        /// Every key, in the order of [`Plan`].
        pub const KEYS: &[Key] = &[
            $(Key {
                name: stringify!($top),
                was: old_name!($($top_was)?),
                kind: last!(<$top_ty as KeyType>::KIND $(, $top_kind)?),
                default: fallback!($top_default),
                counts: $plan_counts,
                help: sentence(concat!($($top_help),+)),
            },)*
            $($(Key {
                name: concat!(stringify!($section), ".", stringify!($field)),
                was: old_name!($(stringify!($section), ".", $was)?),
                kind: last!(<$ty as KeyType>::KIND $(, $kind)?),
                default: fallback!($default),
                counts: last!($section_counts $(, $counts)?),
                help: sentence(concat!($($help),+)),
            },)*)*
        ];
    };
}

// Defaults of `[optim]` and `[schedule]` are those of nanoGPT's GPT-2 124M run, which follow GPT-3.
keys! {
    /// Everything a run is, every value present and checked once. Printed by `plan`, stored in
    /// every checkpoint and as the `config.toml` of a run folder, which is itself a run file.
    Plan, counts Always {
        /// Which tokens train the student.
        method: Method = BEST_METHOD;
        /// Seed of every random stream.
        seed: u64 = 42, in ANY_SEED;
        /// Optimizer steps.
        steps: u64 = 1000, in POSITIVE_COUNT;
        /// The teacher: preset, model folder or Hub id; absent: no teacher.
        teacher: Option<String> = Absent;
        /// The student: preset, model folder or Hub id.
        student: String = "gpt2-124m";
        /// Initialisation of the student; absent: what its preset says, and for a folder or Hub id
        /// `checkpoint`.
        init: Option<Init> = Absent, was "birth";
        /// The teacher's layers that the student starts from, with `init = "teacher-layers"`;
        /// absent: what its preset says.
        layers: Option<Vec<usize>> = Absent;
    }

    /// `[shape]`: overrides of the shape of a student's preset; all absent as a rule.
    #[derive(Default)]
    shape: ShapePlan, counts Always, serde(default, skip_serializing_if = "ShapePlan::is_empty") {
        /// Transformer blocks, instead of the preset's.
        n_layer: Option<usize> = Absent, in POSITIVE_COUNT;
        /// Attention heads per block, instead of the preset's.
        n_head: Option<usize> = Absent, in POSITIVE_COUNT;
        /// Width of the residual stream, instead of the preset's.
        n_embd: Option<usize> = Absent, in POSITIVE_COUNT;
        /// Longest context, instead of the preset's.
        n_positions: Option<usize> = Absent, in POSITIVE_COUNT;
    }

    /// `[data]`: what is read.
    data: DataPlan, counts Always {
        /// Folder written by `prepare`; only the quickstart runs without one.
        dir: Option<String> = Absent, counts Never; // a place: the content is known by the token files' own hashes
        /// Folder written by `signal write`: what a teacher said of these data. It stands for the
        /// teacher, which is not loaded.
        signal: Option<String> = Absent, counts Never; // likewise
        /// Tokens per sequence.
        context: usize = MODELS_HOLD, in POSITIVE_COUNT;
        /// Sequences per optimizer step.
        rows: usize = 32, in POSITIVE_COUNT;
    }

    /// `[select]`: which tokens count.
    select: SelectPlan, counts Always {
        // With a teacher excess had the lowest mean at keep ratio 0.5 on hard text and on easy
        // text; of the scores that need none entropy did the least harm at alpha 0.1
        // (docs/evidence/selection.md).
        /// What ranks the tokens.
        score: Score = BEST_SCORE;
        // More cost more than random dropping on hard text, and gained nothing at equal tokens on
        // any.
        /// Confidence level: the share of a pool's M tokens that is dropped; `ceil((1 - alpha) M)`
        /// are kept.
        alpha: f64 = 0.1, in BELOW_ONE;
        // Per sequence rather than per micro-batch: results then do not depend on
        // machine.micro_rows.
        /// The tokens that share a threshold.
        pool: Pool = "sequence";
        /// Which end of the ranking is kept.
        tail: Tail = "high";
        // Without the two, alpha 0.5 cost twice as much on hard text.
        /// Steps at the start that train on every token.
        burn_in: u64 = TENTH_OF_STEPS;
        /// Steps after the burn-in over which alpha grows from 0.
        ramp: u64 = TENTH_OF_STEPS;
        /// How alpha moves after the ramp.
        schedule: AlphaSchedule = "fixed";
        /// Steps between updates of alpha by `ada-eslm`; time constant, in steps, of `easy-share`.
        interval: u64 = 50, in POSITIVE_COUNT;
        /// Rate gamma of `ada-eslm`: alpha is multiplied by exp(-gamma x the relative change of
        /// CVaR).
        gamma: f64 = 1.0, in NOT_NEGATIVE;
        /// Smallest alpha of `ada-eslm`.
        alpha_min: f64 = 0.01, in BELOW_ONE;
        /// Largest alpha of `ada-eslm`.
        alpha_max: f64 = 0.9, in BELOW_ONE;
        /// Weight mu of the kept tokens' mean (the CVaR); 1 - mu is the weight of the mean of all
        /// tokens.
        cvar_weight: f64 = 1.0, in SHARE, was "mix";
        /// Share of the dropped tokens that is drawn to estimate the mean of all, where
        /// `cvar_weight` is below 1.
        rest_rate: f64 = 0.25, in ABOVE_ZERO, was "rest";
        /// Share of the old threshold in the new one (an exponential moving average), with `pool =
        /// "carried"`.
        threshold_ema: f64 = 0.9, in BELOW_ONE, was "carry";
        /// Share of a micro-batch's sequences that the early-exit filter drops; 0 switches it off.
        alpha_seq: f64 = 0.0, in BELOW_ONE;
        /// Blocks that run before the early-exit filter.
        exit_layer: usize = 1, in POSITIVE_COUNT;
        /// The early-exit filter scores one position of so many.
        probe_stride: usize = 8, in POSITIVE_COUNT;
        /// What ranks the sequences for the early-exit filter: its mean over the scored positions.
        probe_score: ProbeScore = "entropy";
    }

    /// `[objective]`: (1 - lambda) CE + lambda tau^2 D(teacher, student).
    objective: ObjectivePlan, counts Always {
        /// Weight of the teacher's divergence; the rest is cross-entropy.
        lambda: f64 = HALF_WITH_TEACHER, in SHARE;
        /// Temperature of teacher and student in the divergence.
        temperature: f64 = 1.0, in TEMPERATURE;
        /// Divergence between teacher and student.
        divergence: Divergence = "forward-kl";
        /// The teacher's share of the mixture of `jsd`.
        beta: f64 = 0.5, in BETWEEN;
        /// Share of the teacher in the mixture of `skew-kl`, or of the student in that of
        /// `skew-reverse-kl`.
        skew: f64 = 0.1, in BELOW_ONE;
        /// Form of the teacher's output that the loss uses.
        signal: Signal = BEST_SIGNAL;
        /// Entries that `signal = "top-k"` keeps; the rest is one bucket.
        top_k: usize = 64, in POSITIVE_COUNT;
        /// Draws per token of `signal = "sampled"` (forward KL only); 0: all that data.signal has.
        samples: u32 = ALL_DRAWS, in count(0);
        /// Lambda at the last step; absent: constant.
        lambda_end: Option<f64> = Absent, in SHARE;
        /// Temperature at the last step; absent: constant.
        temperature_end: Option<f64> = Absent, in TEMPERATURE;
        /// How lambda and temperature move to their values at the last step.
        schedule: ObjectiveSchedule = "linear";
    }

    /// `[optim]`: AdamW.
    optim: OptimPlan, counts Always {
        /// Peak learning rate.
        lr: f64 = 6e-4, in POSITIVE;
        /// Decay of the first moment.
        beta1: f64 = 0.9, in BELOW_ONE;
        /// Decay of the second moment.
        beta2: f64 = 0.95, in BELOW_ONE;
        /// Added to the root of the second moment.
        eps: f64 = 1e-8, in EPSILON;
        /// Decoupled weight decay of matrices and embeddings.
        weight_decay: f64 = 0.1, in NOT_NEGATIVE;
        /// Largest global gradient norm; 0 is off.
        clip: f64 = 1.0, in NOT_NEGATIVE;
        // How a run continues after a batch that cannot be trained on may be decided when it comes.
        /// What to do where a loss, gradient or score is not finite; in no case does it enter the
        /// parameters.
        #[serde(default = "before::on_nonfinite")]
        on_nonfinite: OnNonfinite = "stop", counts Never;
        /// Steps that `on_nonfinite = "skip"` may skip in a whole run before it stops.
        #[serde(default = "before::max_skips")]
        max_skips: u64 = 10, in POSITIVE_COUNT, counts Never;
    }

    /// `[schedule]`: the learning rate over the run.
    schedule: SchedulePlan, counts Always {
        /// Learning rate after the warm-up.
        kind: ScheduleKind = "cosine";
        /// Steps over which the learning rate grows from 0 to its peak.
        warmup: u64 = WARMUP;
        /// Learning rate at the end, as a share of the peak.
        floor: f64 = 0.1, in SHARE;
        // 20 % of the run is where the gain of a longer decay levels off (arXiv 2405.18392).
        /// Share of the steps over which `wsd` decays.
        decay: f64 = 0.2, in SHARE;
    }

    /// `[eval]`: validation during the run.
    eval: EvalPlan, counts Never {
        /// Steps between validations; 0 is only before the first step and after the last.
        every: u64 = 250;
        /// Sequences per validation; 0 is all.
        rows: usize = 0;
        /// Tokens at the begin of the validation split that are used; 0 is all.
        #[serde(default)]
        tokens: u64 = 0;
        /// Tokens by which consecutive validation windows advance.
        stride: usize = CONTEXT, in POSITIVE_COUNT;
    }

    /// `[checkpoint]`: saving during the run.
    checkpoint: CheckpointPlan, counts Never {
        /// Steps between checkpoints; 0 is only at the end.
        every: u64 = 500;
        /// Newest checkpoints that stay on disk.
        keep: usize = 2, in POSITIVE_COUNT;
        /// Checkpoints of the lowest validation loss that stay as well; `checkpoint.every` must
        /// then be a multiple of `eval.every`.
        #[serde(default)]
        keep_best: usize = 0;
    }

    /// `[log]`: metrics during the run.
    log: LogPlan, counts Never {
        /// Steps between lines of `metrics.jsonl`.
        every: u64 = 10, in POSITIVE_COUNT;
        /// Whether the metrics go to `RUN/tensorboard` as well, as event files of TensorBoard.
        #[serde(default)]
        tensorboard: bool = false;
    }

    /// `[machine]`: how, not what: as a rule the same results up to rounding, with other speed and
    /// memory.
    machine: MachinePlan, counts Never {
        /// Where tensors live: `auto`, `cpu`, `cuda` or `cuda:INDEX`.
        device: DeviceSpec = "auto";
        /// Number format of what is multiplied in the matrix products of the transformer body and
        /// the output layer, and of a GPU's activations; all else is f32.
        dtype: Dtype = "f32", counts Always;
        /// Number format in which a teacher's embedding and matrices are stored: `bf16` takes half
        /// the memory.
        #[serde(default = "before::teacher_dtype")]
        teacher_dtype: Dtype = SAME_DTYPE, counts WITH_TEACHER;
        /// Sequences per micro-batch, or `auto`: as many as fit in memory; must divide `data.rows`.
        micro_rows: MicroRows = "auto", counts SHARED_THRESHOLD;
        /// What happens to the logits of the output layer between scoring and backward; the results
        /// are the same.
        head: HeadMode = "auto";
        /// What happens to the activations between forward and backward; the results are the same,
        /// but for rounding where the early-exit filter drops sequences.
        #[serde(default = "before::activations")]
        activations: Activations = "keep";
        /// Positions that carry gradient through the blocks.
        backward: BackwardMode = "exact", counts OTHER_NUMBERS;
        /// Share of a sequence's positions that a sampled backward keeps at the output layer, at
        /// each block and at its keys and values, or `auto`: as few as `machine.added_variance`
        /// allows (the FLOPs of `plan` are then an upper bound).
        #[serde(default = "before::rho")]
        rho: Rho = "auto", counts SAMPLED;
        /// Variance that a sampled backward with `machine.rho = "auto"` may add to the gradient, as
        /// a share of the gradient's own.
        #[serde(default)]
        added_variance: f64 = 0.1, in POSITIVE, counts BY_VARIANCE;
        /// Groups of a step's sequences whose gradients are added as a tree: the same bits on one process
        /// and on as many as have a power of two of them each; must divide `data.rows`; 0 is one per
        /// process.
        #[serde(default)]
        groups: usize = 0;
        /// CPU threads of a process; 0 is one per core, or its share of them.
        threads: usize = 0;
    }
}

/// What stored plans mean that were written before there was such a key.
mod before {
    use super::{Activations, Dtype, OnNonfinite, Rho};

    pub(super) fn on_nonfinite() -> OnNonfinite {
        OnNonfinite::Stop
    }

    /// The default of the table, so that such a run goes on as the same run.
    pub(super) fn max_skips() -> u64 {
        10
    }

    pub(super) fn teacher_dtype() -> Dtype {
        Dtype::F32
    }

    pub(super) fn activations() -> Activations {
        Activations::Keep
    }

    pub(super) fn rho() -> Rho {
        Rho::Share(1.0)
    }
}
