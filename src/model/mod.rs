//! GPT-2: shapes, parameters, trunk and head, forward and backward by hand.

mod config;
mod params;
pub mod preset;
pub mod weights;

pub use config::Gpt2Config;
pub use params::{Block, Layout, ParamSet};
