//! eslm-kd distils and pretrains GPT-2-family language models on the tokens that matter.

pub mod error;
pub mod model;
pub mod rng;

pub use error::{Error, ErrorKind, Result};
