//! Training: the learning rate, what is reported, what is saved.

pub mod events;
mod groups;
mod heard;
mod micro;
#[doc(hidden)]
pub mod pace;
mod prepared;
pub mod run;
pub mod session;
pub mod signal;
mod step;
mod sums;
pub(crate) mod threads;
mod window;

#[cfg(test)]
mod among_tests;
#[cfg(test)]
mod gpu_tests;

pub use step::Trainer;
pub use sums::{CarriedReport, StepReport, StepSettings, Sums};
