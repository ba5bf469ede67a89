//! What a model is worth.

pub mod perplexity;
