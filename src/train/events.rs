//! What a run reports while it trains: events, and where they go.
//!
//! Steps are counted as done: the first optimizer step reports `step = 1`, a validation before it `step = 0`.
//! `tokens`, `flops` and `seconds` are totals since the start of the run, interruptions left out.

use super::CarriedReport;
pub use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::progress::Progress;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Seconds by phase of one step, or summed over several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Phases {
    /// Reading the batch.
    pub data: f64,
    /// The student's trunk, forward.
    pub forward: f64,
    /// Scores from the student's logits.
    pub scan: f64,
    /// The teacher's trunk and head.
    pub teacher: f64,
    /// Choosing rows.
    pub select: f64,
    /// Loss and gradient of the head; in one pass the scan and the teacher's logits, too.
    pub head: f64,
    /// The student's trunk, backward.
    pub backward: f64,
    /// Norm, clipping and update.
    pub optimizer: f64,
}

impl AddAssign for Phases {
    fn add_assign(&mut self, other: Self) {
        self.data += other.data;
        self.forward += other.forward;
        self.scan += other.scan;
        self.teacher += other.teacher;
        self.select += other.select;
        self.head += other.head;
        self.backward += other.backward;
        self.optimizer += other.optimizer;
    }
}

/// One logged optimizer step. Losses are in nats per token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepEvent {
    /// Optimizer steps done, this one included.
    pub step: u64,
    /// The objective that was minimised: mean over the kept tokens.
    pub loss: f64,
    /// Mean cross-entropy of all tokens: the honest metric. None where phase one left sequences unscored.
    pub full_loss: Option<f64>,
    /// Mean cross-entropy of the kept tokens.
    pub kept_loss: f64,
    /// Mean cross-entropy of the dropped tokens of the sequences that went on; None where none was dropped.
    pub dropped_loss: Option<f64>,
    /// Number of kept tokens in the step.
    pub kept: u64,
    /// Number of tokens that carried gradient at the head: the kept ones and those that the mixture drew, or what a sampled
    /// backward drew of these.
    pub rows: u64,
    /// Effective number of these, (sum |g|)^2 / sum |g|^2 with g their gradients at the head's input.
    pub effective_rows: f64,
    /// Share of positions that carried gradient at the blocks' outputs, over all blocks; not finite in a step that kept none.
    pub backward_share: f64,
    /// Kept tokens over valid tokens.
    pub kept_share: f64,
    /// Sequences that went on after phase one, over all.
    pub sequences_share: f64,
    /// Confidence level of the selection.
    pub alpha: f64,
    /// Value at risk: the lowest kept score, averaged over pools; None without scores.
    pub var: Option<f64>,
    /// Conditional value at risk: mean score of the kept tokens; None without scores.
    pub cvar: Option<f64>,
    /// Mean score of all tokens; None without scores.
    pub score_mean: Option<f64>,
    /// The carried threshold, its lag and its error; None without one.
    pub carried: Option<CarriedReport>,
    /// The relative change of CVaR that moved alpha last (Ada-ESLM); None before, or without.
    pub ada_delta: Option<f64>,
    /// Share of tokens whose target has a probability above 0.9.
    pub easy_share: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Weight of the teacher in this step.
    pub lambda: f64,
    /// Temperature of this step.
    pub temperature: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Tokens seen since the start of the run, before selection.
    pub tokens: u64,
    /// Tokens per second since the last logged step.
    pub tokens_per_second: f64,
    /// Operations executed since the start of the run.
    pub flops: Flops,
    /// Seconds of training since the start of the run.
    pub seconds: f64,
    /// Seconds by phase since the last logged step.
    pub phases: Phases,
}

/// One validation on full tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ValEvent {
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

/// A step that was not finite: nothing of its batch entered parameters, moments or selection.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SkipEvent {
    /// Steps done, this one counted.
    pub step: u64,
    /// Steps skipped since the start of the run, this one counted.
    pub skipped: u64,
    /// Training tokens seen since the start of the run, this batch's counted.
    pub tokens: u64,
    /// What was not finite, and where.
    pub reason: String,
}

/// How a run ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Optimizer steps done.
    pub step: u64,
    /// Loss of the last validation; None without validation tokens.
    pub val_loss: Option<f64>,
    /// Lowest validation loss of the run.
    pub best_val_loss: Option<f64>,
    /// Training tokens seen.
    pub tokens: u64,
    /// Operations executed.
    pub flops: Flops,
    /// Seconds of training.
    pub seconds: f64,
}

/// What a run says.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one event at a time, a few per second at most")]
pub enum Event {
    /// Training begins or goes on.
    RunStarted {
        /// What is trained, in a few words.
        label: String,
        /// Steps done before (0 unless resumed).
        step: u64,
        /// Steps of the whole run.
        steps: u64,
        /// Seconds of training before.
        seconds: f64,
    },
    /// A logged step.
    Step(StepEvent),
    /// A validation.
    Validation(ValEvent),
    /// A step that was not finite was passed over.
    Skipped(SkipEvent),
    /// A checkpoint stands on disk.
    CheckpointSaved {
        /// Its folder.
        path: PathBuf,
        /// Optimizer steps done in it.
        step: u64,
    },
    /// One line for people.
    Note(String),
    /// The run is over.
    Finished(Summary),
}

/// Somewhere events go.
pub trait EventSink {
    /// Takes one event, in order.
    fn event(&mut self, event: &Event) -> Result<()>;
}

/// Drops every event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Null;

impl EventSink for Null {
    fn event(&mut self, _: &Event) -> Result<()> {
        Ok(())
    }
}

/// Passes every event to each sink in turn; all get it even if one fails, and the first failure is returned.
#[derive(Default)]
pub struct Tee<'a>(pub Vec<Box<dyn EventSink + 'a>>);

impl EventSink for Tee<'_> {
    fn event(&mut self, event: &Event) -> Result<()> {
        self.0.iter_mut().map(|sink| sink.event(event)).fold(Ok(()), Result::and)
    }
}

/// `metrics.jsonl`: one JSON object per logged step, per skipped step and per validation, written whole, line by line.
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

    /// Continues the file of a run that resumes after `step` steps and whose last validation was after `validated` of
    /// them: later lines, and a line cut short by a crash, are dropped in one atomic replacement. A missing file
    /// begins empty.
    pub fn resume(path: &Path, step: u64, validated: Option<u64>) -> Result<Self> {
        match File::open(path) {
            Ok(old) => crate::files::write_atomic(path, |new| copy_until(old, new, step, validated, path))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Self::create(path),
            Err(e) => return Err(Error::io("read", path, e)),
        }
        Self::open(path)
    }

    fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).open(path).map_err(|e| Error::io("open", path, e))?;
        Ok(Self { file, path: path.to_path_buf() })
    }
}

fn copy_until(old: File, new: &mut dyn Write, step: u64, validated: Option<u64>, path: &Path) -> Result<()> {
    each_line(old, path, |line, text| {
        let last = if line.get("val_loss").is_some() { validated } else { Some(step) };
        if line["step"].as_u64().zip(last).is_some_and(|(at, last)| at <= last) {
            new.write_all(text).and_then(|()| new.write_all(b"\n")).map_err(|e| Error::io("write", path, e))?;
        }
        Ok(())
    })
}

/// Longest line of metrics that is read: a hundred times the longest that is written.
const MOST_LINE_BYTES: u64 = 1 << 18;

/// Every line of a `metrics.jsonl`, one at a time, as value. What is no line of metrics (a crash may cut the last one
/// short) is passed over.
pub fn each_metric(path: &Path, mut take: impl FnMut(Value)) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    each_line(file, path, |line, _| {
        take(line);
        Ok(())
    })
}

fn each_line(file: File, path: &Path, mut take: impl FnMut(Value, &[u8]) -> Result<()>) -> Result<()> {
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
        if let Ok(value @ Value::Object(_)) = serde_json::from_slice(&line) {
            take(value, &line)?;
        }
    }
}

impl EventSink for Jsonl {
    fn event(&mut self, event: &Event) -> Result<()> {
        let mut line = match event {
            Event::Step(e) => step_line(e),
            Event::Validation(e) => {
                json!({
                    "step": e.step,
                    "val_loss": e.val_loss,
                    "tokens": e.tokens,
                    "flops": e.flops,
                    "seconds": e.seconds,
                })
            }
            Event::Skipped(e) => {
                json!({ "step": e.step, "skipped": e.skipped, "reason": e.reason, "tokens": e.tokens })
            }
            _ => return Ok(()),
        }
        .to_string();
        line.push('\n');
        // One write without a buffer in between: nothing is left to flush, and a crash cuts at most the last line.
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io("write", &self.path, e))
    }
}

fn step_line(e: &StepEvent) -> Value {
    json!({
        "step": e.step,
        "loss": e.loss,
        "full_loss": e.full_loss,
        "kept_loss": e.kept_loss,
        "dropped_loss": e.dropped_loss,
        "kept": e.kept,
        "kept_share": e.kept_share,
        "sequences_share": e.sequences_share,
        "alpha": e.alpha,
        "var": e.var,
        "cvar": e.cvar,
        "score_mean": e.score_mean,
        "rows": e.rows,
        "effective_rows": e.effective_rows,
        "backward_share": e.backward_share,
        "threshold": e.carried.map(|c| c.threshold),
        "threshold_lag": e.carried.map(|c| c.lag),
        "threshold_error": e.carried.map(|c| c.error),
        "ada_delta": e.ada_delta,
        "easy_share": e.easy_share,
        "grad_norm": e.grad_norm,
        "lambda": e.lambda,
        "temperature": e.temperature,
        "lr": e.lr,
        "tokens": e.tokens,
        "tokens_per_second": e.tokens_per_second,
        "flops": e.flops.total(),
        "flops_by_part": e.flops,
        "seconds": e.seconds,
        "seconds_by_phase": e.phases,
    })
}

/// A progress bar in steps, and a line of figures now and then.
pub struct Terminal<'a> {
    progress: &'a dyn Progress,
    every: Duration,
    state: Shown,
}

#[derive(Debug, Default)]
struct Shown {
    started: bool,
    /// Steps of the run, and (step, seconds) where this session began.
    steps: u64,
    origin: (u64, f64),
    step: u64,
    line: Option<Instant>,
}

impl<'a> Terminal<'a> {
    /// Lines of figures at most once per `every`; the first and the last step always have one.
    pub fn new(progress: &'a dyn Progress, every: Duration) -> Self {
        Self { progress, every, state: Shown::default() }
    }
}

impl EventSink for Terminal<'_> {
    fn event(&mut self, event: &Event) -> Result<()> {
        let shown = &mut self.state;
        match event {
            Event::RunStarted { label, step, steps, seconds } => {
                *shown = Shown { started: true, steps: *steps, origin: (*step, *seconds), step: *step, line: None };
                self.progress.start(label, Some(*steps), "steps");
                self.progress.advance(*step);
            }
            Event::Step(e) => {
                self.progress.advance(e.step.saturating_sub(shown.step));
                shown.step = e.step;
                if e.step >= shown.steps || shown.line.is_none_or(|last| last.elapsed() >= self.every) {
                    shown.line = Some(Instant::now());
                    self.progress.note(&figures(e, shown.steps, shown.origin));
                }
            }
            Event::Validation(e) => self.progress.note(&format!(
                "step {}  validation loss {:.4}  perplexity {:.2}",
                e.step,
                e.val_loss,
                e.val_loss.exp()
            )),
            Event::Skipped(e) => {
                self.progress.note(&format!("warning: {}; batch skipped ({} so far)", e.reason, e.skipped));
            }
            Event::CheckpointSaved { path, step } => {
                self.progress.note(&format!("step {step}  saved {}", path.display()));
            }
            Event::Note(text) => self.progress.note(text),
            Event::Finished(e) => {
                if std::mem::take(&mut shown.started) {
                    self.progress.finish();
                }
                let validated = match (e.val_loss, e.best_val_loss) {
                    (Some(last), Some(best)) => format!(": validation loss {last:.4} (best {best:.4})"),
                    _ => String::new(),
                };
                self.progress.note(&format!(
                    "{} steps, {} tokens, {:.3e} FLOPs in {}{validated}",
                    e.step,
                    e.tokens,
                    e.flops.total(),
                    clock(e.seconds),
                ));
            }
        }
        Ok(())
    }
}

fn figures(e: &StepEvent, steps: u64, origin: (u64, f64)) -> String {
    let done = e.step.saturating_sub(origin.0).max(1);
    let eta = (e.seconds - origin.1) / done as f64 * steps.saturating_sub(e.step) as f64;
    format!(
        "step {}/{steps}  loss {:.4}  full {}  kept {:.0}%  lr {:.2e}  {:.0} tok/s  ETA {}",
        e.step,
        e.loss,
        e.full_loss.map_or_else(|| "-".to_string(), |loss| format!("{loss:.4}")),
        100.0 * e.kept_share,
        e.lr,
        e.tokens_per_second,
        clock(eta)
    )
}

/// 75 s -> "1m15s".
fn clock(seconds: f64) -> String {
    let s = if seconds.is_finite() { seconds.max(0.0).round() as u64 } else { 0 };
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

#[cfg(test)]
mod tests;
