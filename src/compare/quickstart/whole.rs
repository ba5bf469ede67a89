//! One bar for several runs, in their steps, with the time that all of them still take.

use crate::progress::Progress;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Hands the steps of runs on to a bar of all of them. What else a run says goes through.
pub(super) struct Whole<'a> {
    outer: &'a dyn Progress,
    /// Seconds that each run takes by forecast, in order.
    forecast: Vec<f64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The run at hand.
    run: usize,
    /// Whether it is at its steps, and not at a phase of another kind.
    in_steps: bool,
}

impl<'a> Whole<'a> {
    /// Starts the bar of `steps` steps, of which `done` are.
    pub(super) fn start(
        outer: &'a dyn Progress,
        label: &str,
        (steps, done): (u64, u64),
        forecast: Vec<f64>,
    ) -> Self {
        outer.start(label, Some(steps), "steps");
        if done > 0 {
            outer.resume(done);
        }
        Self { outer, forecast, state: Mutex::default() }
    }

    /// The next run begins.
    pub(super) fn begin(&self, run: usize) {
        *self.lock() = State { run, in_steps: false };
        self.outer.left(self.forecast[run..].iter().sum());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Whole<'_> {
    fn start(&self, _: &str, _: Option<u64>, unit: &str) {
        self.lock().in_steps = unit == "steps";
    }

    fn advance(&self, n: u64) {
        if self.lock().in_steps {
            self.outer.advance(n);
        }
    }

    /// The bar has begun with the steps of all runs that were done.
    fn resume(&self, _: u64) {}

    fn left(&self, seconds: f64) -> bool {
        let later: f64 = self.forecast[self.lock().run + 1..].iter().sum();
        self.outer.left(seconds + later);
        true // the run alone would be another time than the bar's
    }

    fn width(&self) -> Option<usize> {
        self.outer.width()
    }

    fn finish(&self) {
        self.lock().in_steps = false;
    }

    fn note(&self, text: &str) {
        self.outer.note(text);
    }
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        self.outer.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Ear(Mutex<Vec<String>>);

    impl Ear {
        fn hear(&self, text: String) {
            self.0.lock().unwrap().push(text);
        }
    }

    impl Progress for Ear {
        fn start(&self, label: &str, total: Option<u64>, unit: &str) {
            self.hear(format!("{label}: {} {unit}", total.unwrap()));
        }
        fn advance(&self, n: u64) {
            self.hear(format!("+{n}"));
        }
        fn left(&self, seconds: f64) -> bool {
            self.hear(format!("{seconds} s"));
            true
        }
        fn finish(&self) {
            self.hear("end".into());
        }
        fn note(&self, text: &str) {
            self.hear(text.into());
        }
    }

    #[test]
    fn runs_are_one_bar() {
        let ear = Ear::default();
        let whole = Whole::start(&ear, "all", (30, 0), vec![5.0, 7.0, 2.0]);
        whole.begin(1);
        whole.start("run", Some(10), "steps");
        whole.advance(4);
        assert!(whole.left(3.0));
        whole.finish();
        whole.start("reading", Some(10), "bytes");
        whole.advance(10);
        whole.note("a line");
        drop(whole);
        assert_eq!(*ear.0.lock().unwrap(), ["all: 30 steps", "9 s", "+4", "5 s", "a line", "end"]);
    }
}
