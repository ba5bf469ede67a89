//! What a model is worth and what it says: perplexity and generation.

pub mod generate;
pub mod perplexity;
mod sampler;
