//! eslm-kd distils and pretrains GPT-2-family language models on the tokens that matter.

pub mod cli;
pub mod config;
pub mod data;
pub mod error;
pub mod eval;
pub mod files;
pub mod hub;
pub mod model;
pub mod ops;
pub mod progress;
pub mod rng;
pub mod select;
pub mod signal;
pub mod teacher;
pub mod train;

pub use error::{Error, ErrorKind, Result};
