//! What a run reports while it trains: events, and where they go.
//!
//! Steps are counted as done: the first optimizer step reports `step = 1`, a validation before it
//! `step = 0`. `tokens`, `flops` and `seconds` are totals since the start of the run, interruptions
//! left out.

mod jsonl;
mod metrics;
mod tensorboard;
mod terminal;

pub use crate::cost::Flops;
pub use jsonl::{Jsonl, Outline, Totals, each_metric, outline};
pub use metrics::{Metric, SkipEvent, StepEvent, ValEvent, reference};
pub use tensorboard::{TENSORBOARD_FOLDER, TensorBoard};
pub use terminal::Terminal;

use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::ops::AddAssign;
use std::path::PathBuf;

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
    /// Training begins or continues.
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

/// Passes every event to each sink in turn; all get it even if one fails, and the first failure is
/// returned.
#[derive(Default)]
pub struct Tee<'a>(pub Vec<Box<dyn EventSink + 'a>>);

impl EventSink for Tee<'_> {
    fn event(&mut self, event: &Event) -> Result<()> {
        self.0.iter_mut().map(|sink| sink.event(event)).fold(Ok(()), Result::and)
    }
}

#[cfg(test)]
mod tests;
