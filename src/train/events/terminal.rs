//! What a terminal shows of a run: a progress bar in steps, and a line of figures now and then.

use super::{Event, EventSink, SkipEvent, StepEvent, Summary, ValEvent};
use crate::error::Result;
use crate::progress::Progress;
use crate::report::text::{PLAIN_WIDTH, amount, count, flops, percent, perplexity, seconds};
use std::path::Path;
use std::time::{Duration, Instant};

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

impl Terminal<'_> {
    /// Steps done, whatever told of them.
    fn advance(&mut self, step: u64) {
        if self.state.started {
            self.progress.advance(step.saturating_sub(self.state.step));
            self.state.step = self.state.step.max(step);
        }
    }
}

impl EventSink for Terminal<'_> {
    fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Validation(ValEvent { step, .. })
            | Event::Skipped(SkipEvent { step, .. })
            | Event::CheckpointSaved { step, .. } => self.advance(*step),
            _ => {}
        }
        let shown = &mut self.state;
        match event {
            Event::RunStarted { label, step, steps, seconds } => {
                *shown = Shown {
                    started: true,
                    steps: *steps,
                    origin: (*step, *seconds),
                    step: *step,
                    line: None,
                };
                self.progress.start(label, Some(*steps), "steps");
                if *step > 0 {
                    self.progress.resume(*step);
                }
            }
            Event::Step(e) => {
                self.progress.advance(e.step.saturating_sub(shown.step));
                shown.step = e.step;
                let left = left(e, shown.steps, shown.origin);
                let beside = self.progress.left(left);
                if e.step >= shown.steps
                    || shown.line.is_none_or(|last| last.elapsed() >= self.every)
                {
                    shown.line = Some(Instant::now());
                    let left = (!beside).then_some(left);
                    let width = self.progress.width().unwrap_or(PLAIN_WIDTH);
                    self.progress.note(&figures(e, shown.steps, left, width));
                }
            }
            Event::Validation(e) => self.progress.note(&format!(
                "step {}  validation loss {:.4}  perplexity {}",
                count(e.step),
                e.val_loss,
                perplexity(e.val_loss)
            )),
            Event::Skipped(e) => self.progress.note(&format!(
                "warning: {}; batch skipped ({} so far)",
                e.reason,
                count(e.skipped)
            )),
            Event::CheckpointSaved { path, step } => {
                self.progress.note(&saved(*step, path, self.progress.width()));
            }
            Event::Note(text) => self.progress.note(text),
            Event::Finished(e) => {
                let (all, losses) = finished(e);
                match std::mem::take(&mut shown.started) {
                    true => self.progress.finish_with(&all),
                    false => self.progress.note(&all),
                }
                if let Some(losses) = losses {
                    self.progress.note(&losses);
                }
            }
        }
        Ok(())
    }
}

/// The folder as it is, or the end of it where a terminal has no room for more.
fn saved(step: u64, path: &Path, width: Option<usize>) -> String {
    let line = |place: &Path| format!("step {}  saved {}", count(step), place.display());
    let whole = line(path);
    match (width, path.parent().and_then(Path::file_name), path.file_name()) {
        (Some(width), Some(folder), Some(name)) if whole.chars().count() > width => {
            line(&Path::new(folder).join(name))
        }
        _ => whole,
    }
}

/// What the run took, and its losses, if it was validated.
fn finished(e: &Summary) -> (String, Option<String>) {
    let all = format!(
        "{}, {}, {} in {}",
        amount(e.step, "steps"),
        amount(e.tokens, "tokens"),
        flops(e.flops.total() as u128),
        seconds(e.seconds),
    );
    let losses = e.val_loss.zip(e.best_val_loss);
    (all, losses.map(|(last, best)| format!("validation loss {last:.4} (best {best:.4})")))
}

/// Seconds of the steps that are not done, by those done in this session.
fn left(e: &StepEvent, steps: u64, origin: (u64, f64)) -> f64 {
    let done = e.step.saturating_sub(origin.0).max(1);
    (e.seconds - origin.1) / done as f64 * steps.saturating_sub(e.step) as f64
}

/// One line of at most `width` columns: what finds no room stands in `metrics.jsonl`.
fn figures(e: &StepEvent, steps: u64, left: Option<f64>, width: usize) -> String {
    let loss = format!("{:.4}", e.loss);
    let full = e.full_loss.map(|loss| format!("{loss:.4}")).filter(|full| *full != loss);
    // In the order shown, each with its rank: the highest goes first.
    let parts = [
        (0, Some(format!("step {}/{}", count(e.step), count(steps)))),
        (1, Some(format!("loss {loss}"))),
        (3, full.map(|full| format!("full {full}"))),
        (4, (e.kept_share < 1.0).then(|| format!("kept {}", percent(e.kept_share)))),
        (6, Some(format!("lr {:.2e}", e.lr))),
        (5, Some(format!("{} tok/s", count(e.tokens_per_second.round() as u64)))),
        (2, left.map(|left| format!("{} left", seconds(left)))),
    ];
    let mut parts: Vec<(u8, String)> =
        parts.into_iter().filter_map(|(rank, part)| Some((rank, part?))).collect();
    let columns = |parts: &[(u8, String)]| parts.iter().map(|p| p.1.len() + 2).sum::<usize>() - 2;
    while parts.len() > 1 && columns(&parts) > width {
        let most = parts.iter().map(|p| p.0).max();
        parts.retain(|p| Some(p.0) != most);
    }
    let texts: Vec<String> = parts.into_iter().map(|p| p.1).collect();
    texts.join("  ")
}
