//! Training: the learning rate, what is reported, what is saved.

pub mod checkpoint;
pub mod events;
pub mod run;
pub mod schedule;
pub mod session;
mod step;

pub use step::{StepReport, Trainer};
