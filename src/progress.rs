//! How long phases tell a person where they are. The library never prints; the command line brings
//! an implementation.

/// Receives the progress of one phase at a time.
pub trait Progress: Sync {
    /// A phase begins: its name, how many units it has if known, and what a unit is ("bytes",
    /// "documents").
    fn start(&self, label: &str, total: Option<u64>, unit: &str);
    /// `n` more units are done.
    fn advance(&self, n: u64);
    /// `n` units were done before the phase began here: they count as done, and say nothing of its
    /// speed.
    fn resume(&self, n: u64) {
        self.advance(n);
    }
    /// The phase still takes so many seconds, by whoever knows better than its units tell. Returns
    /// whether this is shown beside the notes, which then need not say it.
    fn left(&self, _seconds: f64) -> bool {
        false
    }
    /// Columns of the terminal that notes go to; None where they go elsewhere.
    fn width(&self) -> Option<usize> {
        None
    }
    /// The phase is over.
    fn finish(&self);
    /// The phase is over, and this is what came of it: the line that says so.
    fn finish_with(&self, outcome: &str) {
        self.finish();
        self.note(outcome);
    }
    /// One line worth keeping on the screen.
    fn note(&self, text: &str);
}

/// Says nothing: for tests and for library use.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _: &str, _: Option<u64>, _: &str) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
}
