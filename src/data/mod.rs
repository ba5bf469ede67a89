//! From raw text to batches: readers, tokenizer, token files, loader, and our own story generator.

pub mod loader;
pub mod tokens;
