//! From raw text to batches: readers, tokenizer, token files, loader.

pub mod bpe;
pub mod encoder;
pub mod loader;
pub mod prepare;
pub mod source;
pub mod tokenizer;
pub mod tokens;
pub mod train_tokenizer;
