//! What the user sees: progress and notes on stderr, results on stdout.

use super::Globals;
use super::terminal::Stderr;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::report::screen::{BOLD, MARK, RED, RESET, YELLOW};
use crate::report::table::folded;
use crate::report::text::{self, HEADING, MARKED, PLAIN_WIDTH, Screen, amount, seconds};
use crate::world::World;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two progress lines of one phase where stderr is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Columns of the shortest bar, and of what stands before it.
const LEAST_BAR: usize = 5;
const LEAST_LABEL: usize = 5;

/// Speaks for every verb. Progress is a bar on a terminal, a line now and then elsewhere, nothing
/// with `--quiet`.
#[derive(Debug)]
pub struct Printer {
    globals: Globals,
    /// Of several processes the first speaks for all.
    world: World,
    out: Screen,
    err: Screen,
    phase: Mutex<Option<Phase>>,
}

/// The phase in progress.
#[derive(Debug)]
struct Phase {
    label: String,
    total: Option<u64>,
    unit: String,
    done: u64,
    spoke: Instant,
    clock: Clock,
    bar: Option<ProgressBar>,
}

/// What tells how long a phase has taken and still takes; its bar reads it, too.
#[derive(Debug, Clone)]
struct Clock {
    started: Instant,
    /// Units done before the phase began.
    before: u64,
    /// Seconds left as of an instant, by whoever knows better than the units.
    told: Arc<Mutex<Option<(f64, Instant)>>>,
}

impl Clock {
    fn new(started: Instant) -> Self {
        Self { started, before: 0, told: Arc::default() }
    }

    fn elapsed(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Seconds until `total` are done, of which `done` are; None before anything is.
    fn left(&self, done: u64, total: u64) -> Option<f64> {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((left, at)) = told {
            return Some((left - at.elapsed().as_secs_f64()).max(0.0));
        }
        let here = done.checked_sub(self.before).filter(|here| *here > 0)?;
        Some(self.elapsed() / here as f64 * total.saturating_sub(done) as f64)
    }
}

impl Printer {
    /// A printer that obeys the global options, in one of the processes of `world`.
    pub fn new(globals: &Globals, world: World) -> Self {
        Self {
            globals: globals.clone(),
            world,
            out: Screen::of_stdout(),
            err: Screen::of_stderr(),
            phase: Mutex::new(None),
        }
    }

    /// The processes that were started together.
    pub fn world(&self) -> &World {
        &self.world
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

    /// What standard output is.
    pub fn screen(&self) -> &Screen {
        &self.out
    }

    /// The verb's result on stdout: one line of JSON under `--json`, else the text that `human`
    /// makes for the screen. A reader that has gone away (`| head`) is no error.
    pub fn result(
        &self,
        value: &impl Serialize,
        human: impl FnOnce(&Screen) -> String,
    ) -> Result<()> {
        let mut out = if self.globals.json {
            serde_json::to_string(value)
                .map_err(|e| Error::internal(format!("cannot write the result as JSON: {e}")))?
        } else {
            shown(&human(&self.out), &self.out)
        };
        if !out.ends_with('\n') {
            out.push('\n');
        }
        self.stdout(&out)
    }

    /// A text that is a document for a program (a script, a page): one string under `--json`, else
    /// as it is on every screen.
    pub fn document(&self, text: &str) -> Result<()> {
        if self.globals.json {
            return self.result(&text, |_| String::new());
        }
        self.stdout(
            if text.ends_with('\n') { text.to_string() } else { format!("{text}\n") }.as_str(),
        )
    }

    /// Text on stdout as it is, at once (streamed generation); nothing is added.
    pub fn stdout(&self, text: &str) -> Result<()> {
        if !self.world.is_root() {
            return Ok(());
        }
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Error::io("write to", std::path::Path::new("standard output"), e))
            }
            _ => Ok(()),
        }
    }

    /// The error that ends the process, and the command that goes on from there. Shown even with
    /// `--quiet`.
    pub fn error(&self, error: &Error) {
        let phase = self.lock().take();
        let stopped = matches!(error.kind(), ErrorKind::Interrupted(_));
        let start = if stopped { "" } else { "error: " };
        self.speak(phase.as_ref(), &format!("{start}{error}"));
        if let Some(command) = error.go_on() {
            self.speak(phase.as_ref(), &format!("go on: {command}"));
        }
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

    fn end(&self, phase: &Phase, line: &str) {
        if let Some(bar) = &phase.bar {
            bar.finish_and_clear();
        }
        self.speak(None, line);
    }

    /// One line on stderr, above the bar if there is one. A closed stderr is not worth an end.
    fn speak(&self, phase: Option<&Phase>, line: &str) {
        if !self.world.is_root() {
            return;
        }
        let line = text::visible(line); // names of files, and what servers say
        let line = coloured(&fitted(&line, &self.err), &self.err);
        match phase.and_then(|p| p.bar.as_ref()) {
            Some(bar) => bar.suspend(|| drop(writeln!(std::io::stderr(), "{line}"))),
            None => drop(writeln!(std::io::stderr(), "{line}")),
        }
    }

    /// The phase's bar; it takes what its words leave of the line.
    fn bar(&self, label: &str, total: Option<u64>, unit: &str, clock: &Clock) -> ProgressBar {
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(Stderr::default()), 10);
        let bar = ProgressBar::with_draw_target(total, target);
        let width = self.err.width.unwrap_or(PLAIN_WIDTH);
        // The widest figures, and of the rest what the label needs.
        let most = total.map_or(20, |total| {
            let numbers = amount(total, unit).len() + text::count(total).len();
            let numbers = if unit == "bytes" { 17 } else { numbers };
            numbers + "/, 00 min 00 s left".len()
        });
        let room = width.saturating_sub(most + 1);
        // In a narrow window the figures alone, rather than a bar on two lines.
        let long_enough = room >= LEAST_BAR + LEAST_LABEL + 2;
        let label = match long_enough {
            true => text::shortened(&text::visible(label), room - LEAST_BAR - 2),
            false => String::new(),
        };
        let long = room.saturating_sub(label.chars().count() + 1).clamp(LEAST_BAR, 30);
        let (clock, unit) = (clock.clone(), unit.to_string());
        let figures = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = out.write_str(&figures(state.pos(), state.len(), &unit, &clock));
        };
        let template = match total {
            Some(_) if long_enough => format!("{{msg}} {{bar:{long}}} {{figures}}"),
            Some(_) => "{figures}".to_string(),
            None => "{spinner} {msg} {figures}".to_string(),
        };
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.with_key("figures", figures));
        }
        bar.set_message(label);
        bar
    }
}

/// A result as the screen gets it: what would steer it is made visible, headings are bold.
fn shown(human: &str, screen: &Screen) -> String {
    if screen.width.is_none() {
        return human.replace(HEADING, "");
    }
    let mut out = String::with_capacity(human.len());
    let style = |out: &mut String, style| out.push_str(if screen.colours { style } else { "" });
    let mut open = false;
    for line in human.split_inclusive('\n') {
        let text = line.strip_prefix(HEADING).unwrap_or(line);
        let (text, end) = text.strip_suffix('\n').map_or((text, ""), |text| (text, "\n"));
        let heading = text.len() + end.len() < line.len();
        let text = if heading { Cow::Borrowed(text) } else { fitted(text, screen) };
        style(&mut out, if heading { BOLD } else { "" });
        for part in text.split_inclusive(MARKED) {
            let (plain, mark) = match part.strip_suffix(MARKED) {
                Some(plain) => (plain, part.chars().next_back()),
                None => (part, None),
            };
            out += &text::visible(plain);
            if let Some(mark) = mark {
                open = mark == MARKED[0];
                style(&mut out, if open { MARK } else { RESET });
            }
        }
        style(&mut out, if heading { RESET } else { "" });
        out += end;
    }
    style(&mut out, if open { RESET } else { "" });
    out
}

/// A line of prose as it fits the screen. What is to be pasted stays whole: commands behind their
/// word or indented.
fn fitted<'a>(line: &'a str, screen: &Screen) -> Cow<'a, str> {
    let whole = ["go on:", "next:", " "].iter().any(|start| line.starts_with(start));
    match screen.width {
        Some(width) if !whole => Cow::Owned(folded(line, width)),
        _ => Cow::Borrowed(line),
    }
}

/// A line of stderr with the colour of what it begins with.
fn coloured(line: &str, screen: &Screen) -> String {
    for (start, style) in
        [("error:", RED), ("warning:", YELLOW), ("stopped by", YELLOW), ("go on:", BOLD)]
    {
        if let Some(rest) = line.strip_prefix(start) {
            return screen.styled(style, start) + rest;
        }
    }
    line.to_string()
}

/// `1,000/4,000 steps, 1 min 30 s left`, or without a total `7 documents, 30 s`.
fn figures(done: u64, total: Option<u64>, unit: &str, clock: &Clock) -> String {
    let Some(total) = total else {
        return format!("{}, {}", amount(done, unit), seconds(clock.elapsed()));
    };
    let number = if unit == "bytes" { text::bytes(done) } else { text::count(done) };
    let mut out = format!("{number}/{}", amount(total, unit));
    if let Some(left) = clock.left(done, total) {
        let _ = write!(out, ", {} left", seconds(left));
    }
    out
}

impl Progress for Printer {
    fn start(&self, label: &str, total: Option<u64>, unit: &str) {
        if self.globals.quiet || !self.world.is_root() {
            return;
        }
        let now = Instant::now();
        let clock = Clock::new(now);
        let bar = (self.err.width.is_some() && self.err.redraws)
            .then(|| self.bar(label, total, unit, &clock));
        let (label, unit) = (label.to_string(), unit.to_string());
        let old =
            self.lock().replace(Phase { label, total, unit, done: 0, spoke: now, clock, bar });
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

    fn resume(&self, n: u64) {
        let mut lock = self.lock();
        let Some(phase) = lock.as_mut() else { return };
        phase.done += n;
        phase.clock.before += n;
        if let Some(bar) = phase.bar.take() {
            bar.finish_and_clear();
            let bar = self.bar(&phase.label, phase.total, &phase.unit, &phase.clock);
            bar.set_position(phase.done);
            phase.bar = Some(bar);
        }
    }

    fn left(&self, seconds: f64) -> bool {
        let lock = self.lock();
        let Some(phase) = lock.as_ref() else { return false };
        let mut told = phase.clock.told.lock().unwrap_or_else(PoisonError::into_inner);
        *told = Some((seconds, Instant::now()));
        phase.bar.is_some()
    }

    fn width(&self) -> Option<usize> {
        self.err.width
    }

    fn finish(&self) {
        let Some(phase) = self.lock().take() else { return };
        let end = phase.end();
        self.end(&phase, &end);
    }

    fn finish_with(&self, outcome: &str) {
        let Some(phase) = self.lock().take() else { return };
        self.end(&phase, &format!("{}: {outcome}", phase.label));
    }

    fn note(&self, text: &str) {
        if !self.globals.quiet {
            self.speak(self.lock().as_ref(), text);
        }
    }
}

impl Phase {
    /// `label: 4,000 documents in 2 min 00 s`.
    fn end(&self) -> String {
        let here = amount(self.done.saturating_sub(self.clock.before), &self.unit);
        let in_all = match self.clock.before {
            0 => String::new(),
            _ => format!(", {} in all", text::count(self.done)),
        };
        format!("{}: {here} in {}{in_all}", self.label, seconds(self.clock.elapsed()))
    }

    /// `label: 1,000 of 4,000 documents, 25.0 %, 1 min 30 s left`.
    fn line(&self) -> String {
        let left = self.total.and_then(|total| self.clock.left(self.done, total));
        match (self.total.filter(|total| *total > 0), left) {
            (Some(total), Some(left)) => {
                let share = (self.done as f64 / total as f64).min(1.0);
                let (done, total) = match self.unit.as_str() {
                    "bytes" => (text::bytes(self.done), text::bytes(total)),
                    unit => (text::count(self.done), amount(total, unit)),
                };
                let share = text::percent(share);
                format!("{}: {done} of {total}, {share}, {} left", self.label, seconds(left))
            }
            _ => format!(
                "{}: {} after {}",
                self.label,
                amount(self.done, &self.unit),
                seconds(self.clock.elapsed())
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::events::{Event, EventSink, StepEvent, Terminal};

    fn phase(total: Option<u64>, unit: &str, done: u64) -> Phase {
        // An instant in the past, so that the estimate has something to divide.
        let started = Instant::now().checked_sub(Duration::from_secs(30)).unwrap();
        Phase {
            label: "read".into(),
            total,
            unit: unit.into(),
            done,
            spoke: started,
            clock: Clock::new(started),
            bar: None,
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
        assert_eq!(phase(None, "stories", 1).end(), "read: 1 story in 30 s");
        // More than announced, or nothing announced: no division by zero, no negative time.
        assert_eq!(phase(Some(2), "files", 3).line(), "read: 3 of 2 files, 100.0 %, 0.0 s left");
        assert_eq!(phase(Some(0), "files", 0).line(), "read: 0 files after 30 s");
        // What was done before is done, and says nothing of the speed: ten in 30 seconds.
        let mut resumed = phase(Some(100), "steps", 90);
        resumed.clock.before = 80;
        assert_eq!(resumed.line(), "read: 90 of 100 steps, 90.0 %, 30 s left");
        assert_eq!(resumed.end(), "read: 10 steps in 30 s, 90 in all");
        assert_eq!(
            figures(90, Some(100), "steps", &resumed.clock),
            "90/100 steps, 30 s left",
            "the bar says the same"
        );
    }

    #[test]
    fn progress_without_a_phase_is_harmless() {
        let printer = Printer::new(&Globals { quiet: true, ..Globals::default() }, World::solo());
        printer.start("quiet", Some(3), "files");
        printer.advance(1);
        printer.finish();
        assert!(printer.lock().is_none());
    }

    #[test]
    fn the_bars_estimate_is_that_of_the_line_of_figures_also_after_a_resume() {
        let printer = Printer::new(&Globals::default(), World::solo());
        let mut sink = Terminal::new(&printer, Duration::from_secs(3600));
        let label = "plain, seed 1".to_string();
        sink.event(&Event::RunStarted { label, step: 500, steps: 1000, seconds: 5000.0 }).unwrap();
        // Ten steps of two seconds each in this session; before it they took ten.
        let step = StepEvent { step: 510, seconds: 5020.0, ..StepEvent::default() };
        sink.event(&Event::Step(step)).unwrap();
        let lock = printer.lock();
        let phase = lock.as_ref().unwrap();
        assert_eq!(
            (phase.label.as_str(), phase.done, phase.clock.before),
            ("plain, seed 1", 510, 500)
        );
        let left = phase.clock.left(phase.done, 1000).unwrap();
        assert!((970.0..=980.0).contains(&left), "{left}");
        let told = figures(phase.done, Some(1000), "steps", &phase.clock);
        assert!(told.starts_with("510/1,000 steps, 16 min "), "{told}");
    }

    #[test]
    fn colours_are_where_the_screen_shows_them() {
        let colour = Screen { width: Some(80), colours: true, redraws: true };
        let plain = Screen { colours: false, ..colour };
        assert_eq!(coloured("error: x", &colour), "\u{1b}[1;31merror:\u{1b}[0m x");
        assert_eq!(coloured("warning: x", &colour), "\u{1b}[1;33mwarning:\u{1b}[0m x");
        assert_eq!(coloured("an error: x", &colour), "an error: x");
        for screen in [plain, Screen::default()] {
            assert_eq!(coloured("error: x", &screen), "error: x");
        }
        let table = format!("{HEADING}a  b\n1  \u{1b}[31m\n");
        assert_eq!(shown(&table, &colour), "\u{1b}[1ma  b\u{1b}[0m\n1  \u{241b}[31m\n");
        assert_eq!(shown(&table, &plain), "a  b\n1  \u{241b}[31m\n");
        assert_eq!(shown(&table, &Screen::default()), "a  b\n1  \u{1b}[31m\n", "a file gets all");
        let [on, off] = MARKED;
        let marked = format!("one {on}two\nthree{off} four");
        assert_eq!(shown(&marked, &colour), "one \u{1b}[1;4mtwo\nthree\u{1b}[0m four");
        assert_eq!(shown("a\u{2}b", &colour), "a\u{1b}[1;4mb\u{1b}[0m", "nothing stays on");
    }
}
