//! What a key of a run file is: what it accepts, its default, what it means. The keys themselves
//! are in `config/table.rs`.

use super::choice::{DeviceSpec, list};
use super::number;
use super::plan::Plan;
pub use super::table::KEYS;
use crate::report::text;
use toml::Value;

/// One key of a run file.
#[derive(Debug)]
pub struct Key {
    /// Dotted name: `section.key`, or `key` at the top.
    pub name: &'static str,
    /// Its name in earlier versions, still read.
    pub was: Option<&'static str>,
    /// What it accepts.
    pub kind: Kind,
    /// What it is when nobody writes it.
    pub default: Fallback,
    /// Whether it is part of the run's mathematics.
    pub counts: Counts,
    /// What it means, in one line.
    pub help: &'static str,
}

/// Whether a key changes what a run computes, so that a checkpoint compares it, or only how.
#[derive(Debug)]
pub enum Counts {
    /// It does.
    Always,
    /// It changes speed, memory or what is reported.
    Never,
    /// It does where the plan is such; the text says how.
    When(&'static str, fn(&Plan) -> bool),
}

impl Counts {
    /// Whether the key is part of this plan's mathematics.
    pub fn in_plan(&self, plan: &Plan) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::When(_, when) => when(plan),
        }
    }
}

/// What a key accepts.
#[derive(Debug)]
pub enum Kind {
    /// Any text but the empty one.
    Text,
    /// One of these words, each with its meaning.
    Choice(&'static [&'static str], &'static [&'static str]),
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
    /// `true` or `false`.
    Switch,
}

/// Largest value of an ordinary count: far above any use, and products of two of them fit in 64
/// bits.
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
    /// A function of keys above and of what is written of those below, and the reason as `plan`
    /// prints it.
    Rule(&'static str, RuleFn),
}

/// From a look-up of these keys to the value.
type RuleFn = fn(&dyn Fn(&str) -> Option<Value>) -> Value;

pub(super) const fn count(least: i64) -> Kind {
    Kind::Count { least, wide: false }
}

pub(super) const fn within(low: f64, low_in: bool, high: f64, high_in: bool) -> Kind {
    Kind::Number(Range::new((low, low_in), (high, high_in)))
}

/// The key of that name, or of that old name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name || k.was == Some(name))
}

/// The names of the sections, in order.
pub fn sections() -> Vec<&'static str> {
    let mut names: Vec<&str> =
        KEYS.iter().filter_map(|k| k.name.split_once('.')).map(|(s, _)| s).collect();
    names.dedup();
    names
}

impl Kind {
    /// What is accepted, as error messages say it.
    pub fn expectation(&self) -> String {
        match self {
            Self::Text => "a text that is not empty".into(),
            Self::Choice(words, _) => list(words),
            Self::Count { least, wide: true } => {
                format!("a whole number between {least} and {}", text::count(i64::MAX as u64))
            }
            Self::Count { least, wide: false } => {
                format!("a whole number between {least} and {}", text::count(MOST as u64))
            }
            Self::CountOrAuto => {
                format!("\"auto\" or a whole number between 1 and {}", text::count(MOST as u64))
            }
            Self::Counts => "a list of whole numbers such as [0, 2, 4]".into(),
            Self::Number(range) => range.expectation(),
            Self::NumberOrAuto(range) => format!("\"auto\" or {}", range.expectation()),
            Self::Device => "\"auto\", \"cpu\", \"cuda\" or \"cuda:INDEX\"".into(),
            Self::Switch => "true or false".into(),
        }
    }

    /// What is accepted, as the reference says it.
    pub(super) fn brief(&self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Choice(..) => "one of these words".into(),
            Self::Count { least, .. } => format!("whole number, at least {least}"),
            Self::CountOrAuto => "`\"auto\"` or a whole number, at least 1".into(),
            Self::Counts => "list of whole numbers".into(),
            Self::Number(range) => range
                .expectation()
                .replace("a finite number", "number")
                .replace("a number", "number"),
            Self::NumberOrAuto(range) => format!("`\"auto\"` or {}", range.expectation()),
            Self::Device => "device".into(),
            Self::Switch => "`true` or `false`".into(),
        }
    }

    /// The value in its normal form (whole numbers become floats where a number is meant), or
    /// `None` where it is not accepted.
    pub fn accept(&self, value: &Value) -> Option<Value> {
        let fits = match (self, value) {
            (Self::Text, Value::String(s)) => !s.trim().is_empty(),
            (Self::Choice(words, _), Value::String(s)) => words.contains(&s.as_str()),
            (Self::Count { least, wide }, Value::Integer(n)) => n >= least && (*wide || *n <= MOST),
            (Self::CountOrAuto, Value::Integer(n)) => (1..=MOST).contains(n),
            (Self::CountOrAuto | Self::NumberOrAuto(_), Value::String(s)) => s == "auto",
            (Self::Counts, Value::Array(items)) => {
                items.iter().all(|v| v.as_integer().is_some_and(|n| (0..=MOST).contains(&n)))
            }
            (Self::Number(range) | Self::NumberOrAuto(range), Value::Float(x)) => {
                range.contains(*x)
            }
            (Self::Number(range) | Self::NumberOrAuto(range), Value::Integer(n)) => {
                return range.contains(*n as f64).then_some(Value::Float(*n as f64));
            }
            (Self::Device, Value::String(s)) => s.parse::<DeviceSpec>().is_ok(),
            (Self::Switch, Value::Boolean(_)) => true,
            _ => false,
        };
        fits.then(|| value.clone())
    }

    /// The value that a text on the command line or in the environment means for this kind. Never
    /// fails: what does not parse stays a text, which [`Kind::accept`] then refuses with the text
    /// in the message.
    pub fn read(&self, text: &str) -> Value {
        let parse = |text: &str| {
            let table: toml::Table = format!("v = {text}").parse().ok()?;
            if table.len() == 1 { table.get("v").cloned() } else { None }
        };
        let as_text = || Value::String(text.to_string());
        match self {
            Self::Text | Self::Choice(..) | Self::Device => match parse(text) {
                Some(Value::String(quoted)) => Value::String(quoted),
                _ => as_text(),
            },
            // Some of what people write as numbers is none in TOML, and the other way round.
            Self::Count { .. } | Self::CountOrAuto => {
                let people = number::whole(text).map(Value::Integer);
                people.or_else(|| parse(text)).unwrap_or_else(as_text)
            }
            Self::Number(_) | Self::NumberOrAuto(_) => {
                let people = || number::finite(text).map(Value::Float);
                parse(text).or_else(people).unwrap_or_else(as_text)
            }
            Self::Counts if !text.trim_start().starts_with('[') => {
                parse(&format!("[{text}]")).unwrap_or_else(as_text)
            }
            _ => parse(text).unwrap_or_else(as_text),
        }
    }

    /// The words of a choice; empty for every other kind.
    pub fn words(&self) -> &'static [&'static str] {
        match self {
            Self::Choice(words, _) => words,
            Self::Device => &["auto", "cpu", "cuda"],
            Self::CountOrAuto | Self::NumberOrAuto(_) => &["auto"],
            _ => &[],
        }
    }
}

impl Range {
    pub(super) const fn new(low: (f64, bool), high: (f64, bool)) -> Self {
        Self { low, high }
    }

    fn contains(&self, x: f64) -> bool {
        let above = if self.low.1 { x >= self.low.0 } else { x > self.low.0 };
        let below = if self.high.1 { x <= self.high.0 } else { x < self.high.0 };
        x.is_finite() && above && below
    }

    fn expectation(&self) -> String {
        if self.high.0.is_infinite() {
            let strict = if self.low.1 { "of at least" } else { "above" };
            let low = self.low.0;
            let low = if low > 0.0 && low < 1e-6 { format!("{low:e}") } else { low.to_string() };
            return format!("a finite number {strict} {low}");
        }
        let (open, close) =
            (if self.low.1 { '[' } else { '(' }, if self.high.1 { ']' } else { ')' });
        format!("a number in {open}{}, {}{close}", self.low.0, self.high.0)
    }
}
