//! What a model is worth and what it says: perplexity, generation, export.

pub mod export;
pub mod generate;
mod open;
pub mod perplexity;
mod sampler;

pub use open::{OpenModel, open_model, open_tokens, open_tokens_by};
