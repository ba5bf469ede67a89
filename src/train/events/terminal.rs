//! What a terminal shows of a run: a progress bar in steps, and a line of figures now and then.

use super::{Event, EventSink, StepEvent};
use crate::error::Result;
use crate::progress::Progress;
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

impl EventSink for Terminal<'_> {
    fn event(&mut self, event: &Event) -> Result<()> {
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
                self.progress.advance(*step);
            }
            Event::Step(e) => {
                self.progress.advance(e.step.saturating_sub(shown.step));
                shown.step = e.step;
                if e.step >= shown.steps
                    || shown.line.is_none_or(|last| last.elapsed() >= self.every)
                {
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
                self.progress
                    .note(&format!("warning: {}; batch skipped ({} so far)", e.reason, e.skipped));
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
                    (Some(last), Some(best)) => {
                        format!(": validation loss {last:.4} (best {best:.4})")
                    }
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
