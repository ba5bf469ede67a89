//! What the user sees: progress and notes on stderr, results on stdout.

use super::Globals;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::report::text;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two progress lines of one phase where stderr is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Speaks for every verb. Progress is a bar on a terminal, a line now and then elsewhere, nothing
/// with `--quiet`.
#[derive(Debug)]
pub struct Printer {
    globals: Globals,
    terminal: bool,
    phase: Mutex<Option<Phase>>,
}

/// The phase in progress.
#[derive(Debug)]
struct Phase {
    label: String,
    total: Option<u64>,
    unit: String,
    done: u64,
    started: Instant,
    spoke: Instant,
    bar: Option<ProgressBar>,
    status: String,
}

impl Printer {
    /// A printer that obeys the global options.
    pub fn new(globals: &Globals) -> Self {
        Self {
            globals: globals.clone(),
            terminal: std::io::stderr().is_terminal(),
            phase: Mutex::new(None),
        }
    }

    /// Whether results are JSON.
    pub fn json(&self) -> bool {
        self.globals.json
    }

    /// Whether the network is forbidden.
    pub fn offline(&self) -> bool {
        self.globals.offline
    }

    /// Whether more than the usual was asked for.
    pub fn verbose(&self) -> bool {
        self.globals.verbose
    }

    /// The verb's result on stdout: one line of JSON under `--json`, else the text that `human`
    /// makes. A reader that has gone away (`| head`) is no error.
    pub fn result(&self, value: &impl Serialize, human: impl FnOnce() -> String) -> Result<()> {
        let mut out = if self.globals.json {
            serde_json::to_string(value)
                .map_err(|e| Error::internal(format!("cannot write the result as JSON: {e}")))?
        } else {
            let text = human();
            // Names of files could steer a terminal.
            if std::io::stdout().is_terminal() { text::visible(&text).into_owned() } else { text }
        };
        if !out.ends_with('\n') {
            out.push('\n');
        }
        self.stdout(&out)
    }

    /// Text on stdout as it is, at once (streamed generation); nothing is added.
    pub fn stdout(&self, text: &str) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Error::io("write to", std::path::Path::new("standard output"), e))
            }
            _ => Ok(()),
        }
    }

    /// What is worth knowing about the phase in progress right now (a loss, a speed): shown with
    /// the bar, or with the next progress line.
    pub fn status(&self, text: &str) {
        if let Some(phase) = self.lock().as_mut() {
            phase.status = text.to_string();
            if let Some(bar) = &phase.bar {
                bar.set_message(format!("{} ({text})", phase.label));
            }
        }
    }

    /// The error that ends the process. Shown even with `--quiet`.
    pub fn error(&self, error: &Error) {
        self.speak(self.lock().take().as_ref(), &format!("error: {error}"));
    }

    /// A line that only `--verbose` shows.
    pub fn detail(&self, text: &str) {
        if self.globals.verbose {
            self.note(text);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Phase>> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One line on stderr, above the bar if there is one. A closed stderr is not worth an end.
    fn speak(&self, phase: Option<&Phase>, line: &str) {
        let line = text::visible(line); // names of files, and what servers say
        match phase.and_then(|p| p.bar.as_ref()) {
            Some(bar) => bar.suspend(|| drop(writeln!(std::io::stderr(), "{line}"))),
            None => drop(writeln!(std::io::stderr(), "{line}")),
        }
    }
}

impl Progress for Printer {
    fn start(&self, label: &str, total: Option<u64>, unit: &str) {
        if self.globals.quiet {
            return;
        }
        let bar = self.terminal.then(|| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10));
            let amount = if unit == "bytes" {
                "{bytes}/{total_bytes}"
            } else {
                "{human_pos}/{human_len} {prefix}"
            };
            let sofar = if unit == "bytes" { "{bytes}" } else { "{human_pos} {prefix}" };
            let template = match total {
                Some(_) => format!("{{msg}} {{bar:30}} {amount}, {{eta}} left"),
                None => format!("{{msg}} {{spinner}} {sofar}, {{elapsed}}"),
            };
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(style);
            }
            bar.set_prefix(unit.to_string());
            bar.set_message(label.to_string());
            bar
        });
        let now = Instant::now();
        let (label, unit) = (label.to_string(), unit.to_string());
        let old = self.lock().replace(Phase {
            label,
            total,
            unit,
            done: 0,
            started: now,
            spoke: now,
            bar,
            status: String::new(),
        });
        if let Some(bar) = old.and_then(|p| p.bar) {
            bar.finish_and_clear();
        }
    }

    fn advance(&self, n: u64) {
        let mut lock = self.lock();
        let Some(phase) = lock.as_mut() else { return };
        phase.done += n;
        if let Some(bar) = &phase.bar {
            bar.inc(n);
        } else if phase.spoke.elapsed() >= LINE_EVERY {
            phase.spoke = Instant::now();
            let line = phase.line();
            self.speak(None, &line);
        }
    }

    fn finish(&self) {
        let Some(phase) = self.lock().take() else { return };
        if let Some(bar) = &phase.bar {
            bar.finish_and_clear();
        }
        let took = text::seconds(phase.started.elapsed().as_secs_f64());
        self.speak(None, &format!("{}: {} in {took}", phase.label, phase.amount(phase.done)));
    }

    fn note(&self, text: &str) {
        if !self.globals.quiet {
            self.speak(self.lock().as_ref(), text);
        }
    }
}

impl Phase {
    fn amount(&self, n: u64) -> String {
        if self.unit == "bytes" {
            text::bytes(n)
        } else {
            format!("{} {}", text::count(n), self.unit)
        }
    }

    /// `label: 1,000 of 4,000 documents, 25.0 %, 1 min 30 s left`.
    fn line(&self) -> String {
        let elapsed = self.started.elapsed().as_secs_f64();
        let line = match self.total {
            Some(total) if total > 0 && self.done > 0 => {
                let share = (self.done as f64 / total as f64).min(1.0);
                let left = text::seconds(elapsed * (1.0 / share - 1.0));
                let done = if self.unit == "bytes" {
                    text::bytes(self.done)
                } else {
                    text::count(self.done)
                };
                format!(
                    "{}: {done} of {}, {}, {left} left",
                    self.label,
                    self.amount(total),
                    text::percent(share)
                )
            }
            _ => format!(
                "{}: {} after {}",
                self.label,
                self.amount(self.done),
                text::seconds(elapsed)
            ),
        };
        if self.status.is_empty() { line } else { format!("{line} ({})", self.status) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(total: Option<u64>, unit: &str, done: u64) -> Phase {
        // An instant in the past, so that the estimate has something to divide.
        let started = Instant::now().checked_sub(Duration::from_secs(30)).unwrap();
        Phase {
            label: "read".into(),
            total,
            unit: unit.into(),
            done,
            started,
            spoke: started,
            bar: None,
            status: String::new(),
        }
    }

    #[test]
    fn lines_say_how_far_and_how_long() {
        assert_eq!(
            phase(Some(4000), "documents", 1000).line(),
            "read: 1,000 of 4,000 documents, 25.0 %, 1 min 30 s left"
        );
        assert_eq!(
            phase(Some(2048), "bytes", 1024).line(),
            "read: 1.00 KiB of 2.00 KiB, 50.0 %, 30 s left"
        );
        assert_eq!(phase(None, "documents", 7).line(), "read: 7 documents after 30 s");
        let training = Phase { status: "loss 3.2".into(), ..phase(None, "steps", 7) };
        assert_eq!(training.line(), "read: 7 steps after 30 s (loss 3.2)");
        // More than announced, or nothing announced: no division by zero, no negative time.
        assert_eq!(phase(Some(2), "files", 3).line(), "read: 3 of 2 files, 100.0 %, 0.0 s left");
        assert_eq!(phase(Some(0), "files", 0).line(), "read: 0 files after 30 s");
    }

    #[test]
    fn progress_without_a_phase_is_harmless() {
        let printer = Printer::new(&Globals { quiet: true, ..Globals::default() });
        printer.start("quiet", Some(3), "files");
        printer.advance(1);
        printer.finish();
        assert!(printer.lock().is_none());
    }
}
