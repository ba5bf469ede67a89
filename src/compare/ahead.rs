//! How long a comparison still takes: by the operations of each arm, and the time of what ran here.

use crate::progress::Progress;
use crate::report::text;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Before this, or a tenth of its steps, a run says nothing of how fast the others are.
const WARM_UP: Duration = Duration::from_secs(5);

/// The runs to come and those done.
pub(super) struct Ahead {
    /// Operations of a run of each arm, by forecast.
    flops: Vec<f64>,
    /// Operations of the runs to come, and of those done here.
    to_come: f64,
    done: f64,
    /// Seconds of those done here.
    seconds: f64,
}

impl Ahead {
    /// Of arms whose runs take so many operations, each with so many seeds.
    pub(super) fn new(flops: Vec<f64>, seeds: usize) -> Self {
        let to_come = flops.iter().sum::<f64>() * seeds as f64;
        Self { flops, to_come, done: 0.0, seconds: 0.0 }
    }

    /// A run of an arm is over; `seconds` if it was trained now.
    pub(super) fn one_done(&mut self, arm: usize, seconds: Option<f64>) {
        self.to_come -= self.flops[arm];
        if let Some(seconds) = seconds {
            self.done += self.flops[arm];
            self.seconds += seconds;
        }
    }

    /// What the line of the next run ends in; nothing before one was trained here.
    pub(super) fn left(&self) -> String {
        if self.done == 0.0 {
            return String::new();
        }
        format!(", about {} left for all", text::seconds(self.seconds / self.done * self.to_come))
    }

    /// The progress of the arm's next run. Where no run before says how long all take, it does,
    /// once, by its own steps.
    pub(super) fn telling<'a>(&self, arm: usize, outer: &'a dyn Progress) -> Telling<'a> {
        let later = (self.to_come - self.flops[arm]) / self.flops[arm];
        // Sums of floating point leave crumbs.
        let later = Some(later).filter(|later| self.done == 0.0 && *later > 1e-6);
        Telling { outer, run: Mutex::new(Run { later, ..Run::default() }) }
    }
}

/// Hands on what a run says, and adds how long all runs take.
pub(super) struct Telling<'a> {
    outer: &'a dyn Progress,
    run: Mutex<Run>,
}

#[derive(Default)]
struct Run {
    /// How many times the operations of this run those after it take; None where all is said.
    later: Option<f64>,
    /// Since when it makes steps; None in a phase of another kind.
    since: Option<Instant>,
    steps: u64,
    done: u64,
}

impl Run {
    /// Seconds until all runs are over, where this one has `left`; said once.
    fn all(&mut self, left: f64) -> Option<f64> {
        let to_do = self.steps.checked_sub(self.done).filter(|steps| *steps > 0)?;
        if self.since?.elapsed() < WARM_UP && self.done < self.steps.div_ceil(10) {
            return None;
        }
        let later = self.later.take()?;
        Some(left + left / to_do as f64 * self.steps as f64 * later)
    }
}

impl Telling<'_> {
    fn lock(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Telling<'_> {
    fn start(&self, label: &str, total: Option<u64>, unit: &str) {
        {
            let mut run = self.lock();
            run.since = (unit == "steps").then(Instant::now);
            (run.steps, run.done) = (total.unwrap_or(0), 0);
        }
        self.outer.start(label, total, unit);
    }

    fn advance(&self, n: u64) {
        self.lock().done += n;
        self.outer.advance(n);
    }

    fn resume(&self, n: u64) {
        self.lock().done += n;
        self.outer.resume(n);
    }

    fn left(&self, seconds: f64) -> bool {
        let beside = self.outer.left(seconds);
        let all = self.lock().all(seconds);
        if let Some(all) = all {
            self.outer.note(&format!("all runs: about {} left", text::seconds(all)));
        }
        beside
    }

    fn width(&self) -> Option<usize> {
        self.outer.width()
    }

    fn finish(&self) {
        self.lock().since = None;
        self.outer.finish();
    }

    fn finish_with(&self, outcome: &str) {
        self.lock().since = None;
        self.outer.finish_with(outcome);
    }

    fn note(&self, text: &str) {
        self.outer.note(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Notes;

    /// What a run of the arm says whose steps take two seconds, of which 30 of 100 are done before.
    fn said(ahead: &Ahead, arm: usize) -> Vec<String> {
        let notes = Notes::default();
        let telling = ahead.telling(arm, &notes);
        telling.start("reading", Some(10), "bytes");
        telling.advance(10);
        telling.finish();
        telling.start("run", Some(100), "steps");
        telling.resume(5);
        telling.left(190.0);
        for left in [2.0 * 70.0, 2.0 * 45.0] {
            telling.advance(25);
            telling.left(left);
        }
        notes.lines()
    }

    #[test]
    fn the_first_run_says_once_how_long_all_take() {
        // Arms of 1 and 3, two seeds: 8 in all. The first run: 140 s are left of it, and 7 x 200 s.
        let mut ahead = Ahead::new(vec![1.0, 3.0], 2);
        assert_eq!(ahead.left(), "");
        assert_eq!(said(&ahead, 0), ["all runs: about 25 min 40 s left"]);
        // What was found says nothing of the speed, so that the next one does: 140 s + 4 / 3 x 200 s.
        ahead.one_done(0, None);
        assert_eq!(said(&ahead, 1), ["all runs: about 6 min 47 s left"]);
        // Afterwards the line of each run has it.
        ahead.one_done(1, Some(600.0));
        assert_eq!(ahead.left(), ", about 13 min 20 s left for all");
        assert_eq!(said(&ahead, 0), [""; 0]);
        assert_eq!(said(&Ahead::new(vec![1.0], 1), 0), [""; 0], "the bar has it");
    }
}
