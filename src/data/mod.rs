//! From raw text to batches: readers, tokenizer, token files, loader.

#[doc(hidden)]
pub mod bpe;
pub(crate) mod byte_pairs;
#[doc(hidden)]
pub mod encoder;
pub mod loader;
pub mod prepare;
#[doc(hidden)]
pub mod source;
pub(crate) mod split;
pub mod tokenizer;
pub mod tokens;
pub mod train_tokenizer;
mod words;
