//! Training: the learning rate, what is reported, what is saved.

pub mod events;
mod micro;
mod sums;
pub mod run;
pub mod session;
mod step;
pub(crate) mod threads;

#[cfg(test)]
mod gpu_tests;

pub use sums::{CarriedReport, StepReport, StepSettings, Sums};
pub use step::Trainer;
