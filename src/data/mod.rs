//! From raw text to batches: readers, tokenizer, token files, loader, and our own story generator.

pub mod bpe;
pub mod corpus;
pub mod encoder;
pub mod loader;
pub mod prepare;
pub mod source;
pub mod tokenizer;
pub mod tokens;
pub mod train_tokenizer;
