//! eslm-kd distils and pretrains GPT-2-family language models on the tokens that matter.

pub mod cli;
pub mod error;
pub mod files;
pub mod hub;
pub mod model;
pub mod progress;
pub mod rng;
pub mod signal;

pub use error::{Error, ErrorKind, Result};
