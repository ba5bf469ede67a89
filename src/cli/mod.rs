//! The command line: one file per verb.

pub mod prepare;
pub mod tokenizer;
