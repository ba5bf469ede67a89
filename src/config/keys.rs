//! Every key of a run file in one table: what it accepts, its default, what it means. The order is the order of
//! [`super::Plan`]; rules look only at keys above them.

use super::choice::{
    Activations, AlphaSchedule, BackwardMode, Birth, DeviceSpec, Divergence, Dtype, HeadMode, Method,
    ObjectiveSchedule, OnNonfinite, Pool, ProbeScore, ScheduleKind, Score, Signal, Tail, list,
};
use toml::Value;

/// One key of a run file.
#[derive(Debug)]
pub struct Key {
    /// Dotted name: `section.key`, or `key` at the top.
    pub name: &'static str,
    /// What it accepts.
    pub kind: Kind,
    /// What it is when nobody writes it.
    pub default: Fallback,
    /// What it means, in one line.
    pub help: &'static str,
}

/// What a key accepts.
#[derive(Debug)]
pub enum Kind {
    /// Any text but the empty one.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A whole number of at least this and at most 2^30 (or [`i64::MAX`] where `wide`).
    Count { least: i64, wide: bool },
    /// `"auto"` or a whole number of at least 1.
    CountOrAuto,
    /// A list of whole numbers.
    Counts,
    /// A finite number in a range.
    Number(Range),
    /// `"auto"` or a finite number in a range.
    NumberOrAuto(Range),
    /// A device name.
    Device,
}

/// Largest value of an ordinary count: far above any use, and products of two of them fit in 64 bits.
const MOST: i64 = 1 << 30;

/// An interval; `true` means that the end belongs to it.
#[derive(Debug)]
pub struct Range {
    low: (f64, bool),
    high: (f64, bool),
}

/// What a key is when nobody writes it.
#[derive(Debug)]
pub enum Fallback {
    /// Nothing: the key stays absent.
    Absent,
    /// This TOML value.
    Is(&'static str),
    /// A function of keys above, and the reason as `plan` prints it.
    Rule(&'static str, RuleFn),
}

/// From a look-up of keys above to the value.
type RuleFn = fn(&dyn Fn(&str) -> Option<Value>) -> Value;

const fn count(least: i64) -> Kind {
    Kind::Count { least, wide: false }
}

const fn within(low: f64, low_in: bool, high: f64, high_in: bool) -> Kind {
    Kind::Number(Range { low: (low, low_in), high: (high, high_in) })
}

const POSITIVE: Kind = within(0.0, false, f64::INFINITY, false);
const TEMPERATURE: Kind = within(1e-3, true, f64::INFINITY, false);
const NOT_NEGATIVE: Kind = within(0.0, true, f64::INFINITY, false);
const SHARE: Kind = within(0.0, true, 1.0, true);
const ABOVE_ZERO: Kind = within(0.0, false, 1.0, true);
const BELOW_ONE: Kind = within(0.0, true, 1.0, false);

const fn key(name: &'static str, kind: Kind, default: Fallback, help: &'static str) -> Key {
    Key { name, kind, default, help }
}

use Fallback::{Absent, Is, Rule};

const TENTH_OF_STEPS: Fallback =
    Rule("10 % of steps", |get| Value::Integer(get("steps").and_then(|v| v.as_integer()).unwrap_or(0) / 10));

/// The table. Defaults of `[optim]` and `[schedule]` are those of nanoGPT's GPT-2 124M run, which follow GPT-3.
pub const KEYS: &[Key] = &[
    key(
        "method",
        Kind::Choice(Method::NAMES),
        Is("\"eslm\""),
        "which tokens train the student: clm all, eslm selected ones",
    ),
    key("seed", Kind::Count { least: 0, wide: true }, Is("42"), "seed of every random stream"),
    key("steps", Kind::Count { least: 1, wide: false }, Is("1000"), "optimizer steps"),
    key("teacher", Kind::Text, Absent, "preset, model folder or Hub id; absent: no teacher"),
    key("student", Kind::Text, Is("\"gpt2-124m\""), "preset, model folder or Hub id"),
    key("birth", Kind::Choice(Birth::NAMES), Absent, "first weights; absent: the preset's choice"),
    key("layers", Kind::Counts, Absent, "teacher layers for birth = \"teacher-layers\"; absent: the preset's choice"),
    key("shape.n_layer", count(1), Absent, "blocks, instead of the preset's"),
    key("shape.n_head", count(1), Absent, "heads per block, instead of the preset's"),
    key("shape.n_embd", count(1), Absent, "width, instead of the preset's"),
    key("shape.n_positions", count(1), Absent, "longest context, instead of the preset's"),
    key("data.dir", Kind::Text, Absent, "folder written by `prepare`; only the quickstart does without"),
    key("data.context", count(1), Is("1024"), "tokens per sequence"),
    key("data.rows", count(1), Is("32"), "sequences per optimizer step"),
    // Beside a teacher excess alone was at least as good as random dropping on hard text and on easy text; of the scores
    // that need none entropy was, up to alpha 0.1 (LOG.md, 2026-11-24 and 25).
    key(
        "select.score",
        Kind::Choice(Score::NAMES),
        Rule("excess with a teacher, else entropy", |get| {
            Value::String((if get("teacher").is_some() { "excess" } else { "entropy" }).into())
        }),
        "what ranks the tokens",
    ),
    // More was dearer than random dropping on hard text, and bought nothing at equal tokens on any.
    key("select.alpha", BELOW_ONE, Is("0.1"), "share of a pool's tokens that is dropped"),
    // Per sequence rather than per micro-batch: results then do not depend on machine.micro_rows.
    key("select.pool", Kind::Choice(Pool::NAMES), Is("\"sequence\""), "the tokens that share a threshold"),
    key("select.tail", Kind::Choice(Tail::NAMES), Is("\"high\""), "which end of the ranking is kept"),
    // Without the two, alpha 0.5 cost twice as much on hard text.
    key("select.burn_in", count(0), TENTH_OF_STEPS, "steps at the start that train on every token"),
    key("select.ramp", count(0), TENTH_OF_STEPS, "steps after that over which alpha grows from 0"),
    key(
        "select.schedule",
        Kind::Choice(AlphaSchedule::NAMES),
        Is("\"fixed\""),
        "alpha after the ramp: fixed, ada-eslm, or the share of easy tokens up to alpha",
    ),
    key("select.interval", count(1), Is("50"), "steps between updates of ada-eslm; memory of easy-share"),
    key("select.gamma", NOT_NEGATIVE, Is("1.0"), "how strongly ada-eslm answers a change of CVaR"),
    key("select.alpha_min", BELOW_ONE, Is("0.01"), "least alpha of ada-eslm"),
    key("select.alpha_max", BELOW_ONE, Is("0.9"), "largest alpha of ada-eslm"),
    key("select.mix", SHARE, Is("1.0"), "weight of the kept tokens' mean; the rest is the mean of all tokens"),
    key("select.rest", ABOVE_ZERO, Is("0.25"), "share of the dropped tokens drawn for the mean of all, where mix < 1"),
    key("select.carry", BELOW_ONE, Is("0.9"), "share of the old threshold in the new one, where pool = \"carried\""),
    key("select.alpha_seq", BELOW_ONE, Is("0.0"), "share of a micro-batch's sequences that phase one drops"),
    key("select.exit_layer", count(1), Is("1"), "blocks before phase one"),
    key("select.probe_stride", count(1), Is("8"), "phase one probes one position of so many"),
    key(
        "select.probe_score",
        Kind::Choice(ProbeScore::NAMES),
        Is("\"entropy\""),
        "what ranks the sequences: its mean over the probed positions",
    ),
    key(
        "objective.lambda",
        SHARE,
        Rule("0.5 with a teacher, else 0", |get| Value::Float(if get("teacher").is_some() { 0.5 } else { 0.0 })),
        "weight of the teacher's divergence; the rest is cross-entropy",
    ),
    key("objective.temperature", TEMPERATURE, Is("1.0"), "temperature of teacher and student in the divergence"),
    key("objective.divergence", Kind::Choice(Divergence::NAMES), Is("\"forward-kl\""), "distance to the teacher"),
    key("objective.beta", within(0.0, false, 1.0, false), Is("0.5"), "the teacher's share of jsd's mixture"),
    key(
        "objective.skew",
        BELOW_ONE,
        Is("0.1"),
        "share of skew-kl's teacher or skew-reverse-kl's student in its mixture",
    ),
    key("objective.signal", Kind::Choice(Signal::NAMES), Is("\"dense\""), "what the loss hears of the teacher"),
    key("objective.top_k", count(1), Is("64"), "entries that signal = \"top-k\" keeps; the rest is one bucket"),
    key("objective.samples", count(1), Is("50"), "draws per token of signal = \"sampled\""),
    key("objective.lambda_end", SHARE, Absent, "lambda at the last step; absent: constant"),
    key("objective.temperature_end", TEMPERATURE, Absent, "temperature at the last step; absent: constant"),
    key(
        "objective.schedule",
        Kind::Choice(ObjectiveSchedule::NAMES),
        Is("\"linear\""),
        "way of lambda and temperature to their ends",
    ),
    key("optim.lr", POSITIVE, Is("6e-4"), "peak learning rate"),
    key("optim.beta1", BELOW_ONE, Is("0.9"), "decay of the first moment"),
    key("optim.beta2", BELOW_ONE, Is("0.95"), "decay of the second moment"),
    key("optim.eps", within(1e-30, true, f64::INFINITY, false), Is("1e-8"), "added to the root of the second moment"),
    key("optim.weight_decay", NOT_NEGATIVE, Is("0.1"), "decoupled decay of matrices and embeddings"),
    key("optim.clip", NOT_NEGATIVE, Is("1.0"), "largest gradient norm; 0 is off"),
    key(
        "optim.on_nonfinite",
        Kind::Choice(OnNonfinite::NAMES),
        Is("\"stop\""),
        "a step that is not finite: stop the run, or skip the batch",
    ),
    key("optim.max_skips", count(1), Is("10"), "steps that on_nonfinite = \"skip\" passes over in a run"),
    key("schedule.kind", Kind::Choice(ScheduleKind::NAMES), Is("\"cosine\""), "learning rate after the warm-up"),
    key(
        "schedule.warmup",
        count(0),
        Rule("3 % of steps", |get| {
            let steps = get("steps").and_then(|v| v.as_integer()).unwrap_or(0);
            Value::Integer((steps * 3 + 99) / 100)
        }),
        "steps from 0 to the peak",
    ),
    key("schedule.floor", SHARE, Is("0.1"), "learning rate at the end, as a share of the peak"),
    // 20 % of the run is where the gain of a longer decay levels off (arXiv 2405.18392).
    key("schedule.decay", SHARE, Is("0.2"), "share of the steps over which wsd decays"),
    key("eval.every", count(0), Is("250"), "steps between validations; 0 is only at start and end"),
    key("eval.rows", count(0), Is("0"), "sequences per validation; 0 is all"),
    key(
        "eval.stride",
        count(1),
        Rule("data.context", |get| get("data.context").unwrap_or(Value::Integer(1))),
        "tokens by which validation windows advance",
    ),
    key("checkpoint.every", count(0), Is("500"), "steps between checkpoints; 0 is only at the end"),
    key("checkpoint.keep", count(1), Is("2"), "newest checkpoints that stay on disk"),
    key("checkpoint.keep_best", count(0), Is("0"), "checkpoints of the lowest validation loss that stay as well"),
    key("log.every", count(1), Is("10"), "steps between lines of metrics.jsonl"),
    key("machine.device", Kind::Device, Is("\"auto\""), "where tensors live: auto, cpu, cuda or cuda:INDEX"),
    key(
        "machine.dtype",
        Kind::Choice(Dtype::NAMES),
        Is("\"f32\""),
        "number format of products' factors, and of a GPU's activations; all else is f32",
    ),
    key(
        "machine.teacher_dtype",
        Kind::Choice(Dtype::NAMES),
        Rule("machine.dtype", |get| get("machine.dtype").unwrap_or_else(|| Value::String("f32".into()))),
        "number format in which a teacher's embedding and matrices are stored: bf16 takes half the memory",
    ),
    key(
        "machine.micro_rows",
        Kind::CountOrAuto,
        Is("\"auto\""),
        "sequences per micro-batch, or auto; must divide data.rows",
    ),
    key("machine.head", Kind::Choice(HeadMode::NAMES), Is("\"auto\""), "keep logits after scoring, or recompute"),
    key(
        "machine.activations",
        Kind::Choice(Activations::NAMES),
        Is("\"keep\""),
        "keep activations for the backward, or recompute each block's: 12 take a fifth of the memory",
    ),
    key("machine.backward", Kind::Choice(BackwardMode::NAMES), Is("\"exact\""), "rows that carry gradient"),
    key(
        "machine.rho",
        Kind::NumberOrAuto(Range { low: (0.0, false), high: (1.0, true) }),
        Is("\"auto\""),
        "share of positions that a sampled backward keeps, or auto: then FLOPs of plan are a bound",
    ),
    key(
        "machine.added_variance",
        POSITIVE,
        Is("0.1"),
        "variance that rho = \"auto\" may add, as a share of the gradient's own",
    ),
    key("machine.threads", count(0), Is("0"), "CPU threads; 0 is all"),
];

/// The key of that name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name)
}

/// The names of the sections, in order.
pub fn sections() -> Vec<&'static str> {
    let mut names: Vec<&str> = KEYS.iter().filter_map(|k| k.name.split_once('.')).map(|(s, _)| s).collect();
    names.dedup();
    names
}

impl Kind {
    /// What is accepted, as error messages say it.
    pub fn expectation(&self) -> String {
        match self {
            Self::Text => "a text that is not empty".into(),
            Self::Choice(words) => list(words),
            Self::Count { least, wide: true } => format!("a whole number of at least {least}"),
            Self::Count { least, wide: false } => format!("a whole number between {least} and {MOST}"),
            Self::CountOrAuto => format!("\"auto\" or a whole number between 1 and {MOST}"),
            Self::Counts => "a list of whole numbers such as [0, 2, 4]".into(),
            Self::Number(range) => range.expectation(),
            Self::NumberOrAuto(range) => format!("\"auto\" or {}", range.expectation()),
            Self::Device => "\"auto\", \"cpu\", \"cuda\" or \"cuda:INDEX\"".into(),
        }
    }

    /// The value in its normal form (whole numbers become floats where a number is meant), or `None` where it is not
    /// accepted.
    pub fn accept(&self, value: &Value) -> Option<Value> {
        let fits = match (self, value) {
            (Self::Text, Value::String(s)) => !s.trim().is_empty(),
            (Self::Choice(words), Value::String(s)) => words.contains(&s.as_str()),
            (Self::Count { least, wide }, Value::Integer(n)) => n >= least && (*wide || *n <= MOST),
            (Self::CountOrAuto, Value::Integer(n)) => (1..=MOST).contains(n),
            (Self::CountOrAuto | Self::NumberOrAuto(_), Value::String(s)) => s == "auto",
            (Self::Counts, Value::Array(items)) => {
                items.iter().all(|v| v.as_integer().is_some_and(|n| (0..=MOST).contains(&n)))
            }
            (Self::Number(range) | Self::NumberOrAuto(range), Value::Float(x)) => range.contains(*x),
            (Self::Number(range) | Self::NumberOrAuto(range), Value::Integer(n)) => {
                return range.contains(*n as f64).then_some(Value::Float(*n as f64));
            }
            (Self::Device, Value::String(s)) => s.parse::<DeviceSpec>().is_ok(),
            _ => false,
        };
        fits.then(|| value.clone())
    }

    /// The value that a text on the command line or in the environment means for this kind. Never fails: what does
    /// not parse stays a text, which [`Kind::accept`] then refuses with the text in the message.
    pub fn read(&self, text: &str) -> Value {
        let parse = |text: &str| {
            let table: toml::Table = format!("v = {text}").parse().ok()?;
            if table.len() == 1 { table.get("v").cloned() } else { None }
        };
        let as_text = || Value::String(text.to_string());
        match self {
            Self::Text | Self::Choice(_) | Self::Device => match parse(text) {
                Some(Value::String(quoted)) => Value::String(quoted),
                _ => as_text(),
            },
            Self::Counts if !text.trim_start().starts_with('[') => parse(&format!("[{text}]")).unwrap_or_else(as_text),
            _ => parse(text).unwrap_or_else(as_text),
        }
    }

    /// The words of a choice; empty for every other kind.
    pub fn words(&self) -> &'static [&'static str] {
        match self {
            Self::Choice(words) => words,
            Self::Device => &["auto", "cpu", "cuda"],
            Self::CountOrAuto | Self::NumberOrAuto(_) => &["auto"],
            _ => &[],
        }
    }
}

impl Range {
    fn contains(&self, x: f64) -> bool {
        let above = if self.low.1 { x >= self.low.0 } else { x > self.low.0 };
        let below = if self.high.1 { x <= self.high.0 } else { x < self.high.0 };
        x.is_finite() && above && below
    }

    fn expectation(&self) -> String {
        if self.high.0.is_infinite() {
            let strict = if self.low.1 { "of at least" } else { "above" };
            return format!("a finite number {strict} {}", self.low.0);
        }
        let (open, close) = (if self.low.1 { '[' } else { '(' }, if self.high.1 { ']' } else { ')' });
        format!("a number in {open}{}, {}{close}", self.low.0, self.high.0)
    }
}
