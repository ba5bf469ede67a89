//! `metrics.jsonl`: written a line at a time, read again by whoever resumes or compares.

use super::{Event, EventSink};
use crate::error::{Error, Result};
use crate::store::checkpoint::Counters;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// `metrics.jsonl`: one JSON object per logged step, per skipped step and per validation, written
/// whole, line by line.
///
/// A number that is not finite, or that does not exist (no token was dropped), is `null`.
#[derive(Debug)]
pub struct Jsonl {
    file: File,
    path: PathBuf,
}

impl Jsonl {
    /// A new, empty file; an older one at `path` is replaced.
    pub fn create(path: &Path) -> Result<Self> {
        crate::files::write_atomic(path, |_| Ok(()))?;
        Self::open(path)
    }

    /// Continues the file of a run that resumes after `step` steps and whose last validation was
    /// after `validated` of them: later lines, and a line cut short by a crash, are dropped in one
    /// atomic replacement. A missing file begins empty.
    pub fn resume(path: &Path, step: u64, validated: Option<u64>) -> Result<Self> {
        match File::open(path) {
            Ok(old) => {
                crate::files::write_atomic(path, |new| copy_until(old, new, step, validated, path))?
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Self::create(path),
            Err(e) => return Err(Error::io("read", path, e)),
        }
        Self::open(path)
    }

    fn open(path: &Path) -> Result<Self> {
        let file =
            OpenOptions::new().append(true).open(path).map_err(|e| Error::io("open", path, e))?;
        Ok(Self { file, path: path.to_path_buf() })
    }
}

fn copy_until(
    old: File,
    new: &mut dyn Write,
    step: u64,
    validated: Option<u64>,
    path: &Path,
) -> Result<()> {
    each_line(old, path, |line, text| {
        let last = if line.get("val_loss").is_some() { validated } else { Some(step) };
        if line["step"].as_u64().zip(last).is_some_and(|(at, last)| at <= last) {
            new.write_all(text)
                .and_then(|()| new.write_all(b"\n"))
                .map_err(|e| Error::io("write", path, e))?;
        }
        Ok(())
    })
}

/// Longest line of metrics that is read: a hundred times the longest that is written.
const MOST_LINE_BYTES: u64 = 1 << 18;

/// Every line of a `metrics.jsonl`, one at a time, as value. What is no line of metrics (a crash
/// may cut the last one short) is passed over.
pub fn each_metric(path: &Path, mut take: impl FnMut(Value)) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    each_line(file, path, |line, _| {
        take(line);
        Ok(())
    })
}

/// What a run has spent after some steps: totals since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// Optimizer steps done.
    pub step: u64,
    /// Training tokens seen.
    pub tokens: u64,
    /// Operations executed.
    pub flops: f64,
    /// Seconds of training.
    pub seconds: f64,
}

impl Totals {
    /// Of a line of metrics that has them.
    pub fn of(line: &Value) -> Option<Self> {
        Some(Self {
            step: line["step"].as_u64()?,
            tokens: line["tokens"].as_u64()?,
            flops: line["flops"].as_f64()?,
            seconds: line["seconds"].as_f64()?,
        })
    }

    /// Those of the later of two moments, of which either may not be known.
    pub fn latest(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        one.into_iter().chain(other).max_by_key(|totals| totals.step)
    }
}

impl From<&Counters> for Totals {
    fn from(saved: &Counters) -> Self {
        let Counters { step, tokens, flops, seconds, .. } = *saved;
        Self { step, tokens, flops: flops.total(), seconds }
    }
}

/// What `metrics.jsonl` says of how far a run is and how well it goes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outline {
    /// The last line of a step; null without one.
    pub last: Value,
    /// Validations: steps done, loss.
    pub validations: Vec<(u64, f64)>,
    /// Steps done by the last line of any kind.
    pub step: u64,
    /// Totals by the last line that has them.
    pub totals: Option<Totals>,
    /// The first line of a step; null without one.
    pub first: Value,
    /// Whether the last line of a step or a skip is that of a skip.
    pub ends_in_skip: bool,
}

/// Reads it from a file that another process may be writing. Lines of steps are most of a file, and
/// but for the last one they are not parsed.
pub fn outline(path: &Path) -> Result<Outline> {
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut found = Outline::default();
    let mut recent: [Vec<u8>; 2] = Default::default(); // a crash may cut the last one short
    raw_lines(file, path, |line| {
        let is_of = |key: &[u8]| line.windows(key.len()).any(|w| w == key);
        if is_of(b"\"val_loss\"") || is_of(b"\"skipped\"") {
            let value = value_of(line);
            let step = value.as_ref().and_then(|v| v["step"].as_u64());
            found.step = found.step.max(step.unwrap_or(0));
            found.totals = Totals::latest(found.totals, value.as_ref().and_then(Totals::of));
            let loss = value.as_ref().and_then(|v| v["val_loss"].as_f64());
            found.validations.extend(step.zip(loss));
            found.ends_in_skip |= loss.is_none() && step.is_some();
        } else {
            found.ends_in_skip = false;
            if found.first.is_null() {
                found.first = value_of(line).unwrap_or_default();
            }
            recent.swap(0, 1);
            recent[1].clear();
            recent[1].extend_from_slice(line);
        }
        Ok(())
    })?;
    found.last = recent.iter().rev().find_map(|line| value_of(line)).unwrap_or(Value::Null);
    found.step = found.step.max(found.last["step"].as_u64().unwrap_or(0));
    found.totals = Totals::latest(found.totals, Totals::of(&found.last));
    Ok(found)
}

fn each_line(
    file: File,
    path: &Path,
    mut take: impl FnMut(Value, &[u8]) -> Result<()>,
) -> Result<()> {
    raw_lines(file, path, |line| match value_of(line) {
        Some(value) => take(value, line),
        None => Ok(()),
    })
}

fn value_of(line: &[u8]) -> Option<Value> {
    serde_json::from_slice(line).ok().filter(Value::is_object)
}

fn raw_lines(file: File, path: &Path, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let failed = |e| Error::io("read", path, e);
    let (mut input, mut line) = (BufReader::new(file), Vec::new());
    loop {
        line.clear();
        if (&mut input).take(MOST_LINE_BYTES).read_until(b'\n', &mut line).map_err(failed)? == 0 {
            return Ok(());
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() as u64 == MOST_LINE_BYTES {
            input.skip_until(b'\n').map_err(failed)?;
            continue;
        }
        take(&line)?;
    }
}

impl EventSink for Jsonl {
    fn event(&mut self, event: &Event) -> Result<()> {
        let line = match event {
            Event::Step(e) => serde_json::to_string(e),
            Event::Validation(e) => serde_json::to_string(e),
            Event::Skipped(e) => serde_json::to_string(e),
            _ => return Ok(()),
        };
        let mut line =
            line.map_err(|e| Error::internal(format!("cannot write a metric as JSON: {e}")))?;
        line.push('\n');
        // One write without a buffer in between: nothing is left to flush, and a crash cuts at most
        // the last line.
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io("write", &self.path, e))
    }
}
