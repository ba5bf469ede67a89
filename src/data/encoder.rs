//! Bulk encoding: the ids of words seen before are remembered per thread.
//!
//! What a word is, `words` says; its ids are what the model gives for it by itself, so they are
//! those of the whole text, and a test compares both. Tokenizers whose words cannot be told go the
//! ordinary way.

use crate::data::tokenizer::Tokenizer;
use crate::data::words::{Piece, Words};
use crate::error::Result;
use crate::guard::guarded;
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Words remembered per thread; beyond that the memory starts afresh.
const MAX_WORDS: usize = 100_000;
/// Longer words are rare, so remembering them is of no use.
const MAX_WORD_BYTES: usize = 64;

struct Memory {
    words: Words,
    ids: HashMap<Box<str>, Box<[u32]>>,
}

/// Encodes many texts in parallel with one tokenizer.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// One per thread; none if the tokenizer's words cannot be told.
    memories: Vec<Mutex<Memory>>,
}

impl<'a> Encoder<'a> {
    /// An encoder with empty memory.
    pub fn new(tokenizer: &'a Tokenizer) -> Result<Self> {
        let mut memories = Vec::new();
        for _ in 0..rayon::current_num_threads() {
            let words = Words::of(tokenizer.json())?;
            let memory = |words| Mutex::new(Memory { words, ids: HashMap::new() });
            memories.extend(words.map(memory));
        }
        Ok(Self { tokenizer, memories })
    }

    /// The ids of each text, in order; the same as of [`Tokenizer::encode`].
    pub fn encode_all(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text)).collect()
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if self.memories.is_empty() {
            return self.tokenizer.encode(text);
        }
        let thread = rayon::current_thread_index().unwrap_or(0) % self.memories.len();
        // The memory is valid at every moment, so a panic elsewhere does not spoil it.
        let mut memory = self.memories[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let Memory { words, ids } = &mut *memory;
        let mut out = Vec::with_capacity(text.len() / 3);
        let take = |piece: Piece| {
            let word = match piece {
                Piece::Token(id) => {
                    out.push(id);
                    return Ok(());
                }
                Piece::Word(word) => word,
            };
            if let Some(known) = ids.get(word) {
                out.extend_from_slice(known);
                return Ok(());
            }
            let new = self.tokenizer.encode_word(&words.spelt(word))?;
            out.extend_from_slice(&new);
            if word.len() <= MAX_WORD_BYTES {
                if ids.len() >= MAX_WORDS {
                    ids.clear();
                }
                ids.insert(word.into(), new.into());
            }
            Ok(())
        };
        guarded("tokenizer", || words.each(text, take))??;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::source::tests::tricky;
    use crate::data::train_tokenizer::TrainOptions;
    use crate::progress::Silent;

    #[test]
    fn the_same_ids_as_the_tokenizer_gives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        let text = tricky() + "a<|endoftext|> b <|endoftext|><|endoftext|>\n" + &"long".repeat(50);
        std::fs::write(&path, &text).unwrap();
        let options = TrainOptions { vocab_size: 500, ..TrainOptions::default() };
        let (tokenizer, _) = Tokenizer::train(&[path], &options, &Silent).unwrap();
        let encoder = Encoder::new(&tokenizer).unwrap();
        assert!(!encoder.memories.is_empty());
        let reversed: String = text.chars().rev().collect();
        // Twice: the second time from memory.
        for _ in 0..2 {
            for (text, ids) in
                [&text, &reversed].iter().zip(encoder.encode_all(&[&text, &reversed]).unwrap())
            {
                assert!(ids == tokenizer.encode(text).unwrap());
            }
        }
        assert_eq!(encoder.encode_all(&[""]).unwrap(), [Vec::<u32>::new()]);
    }

    #[test]
    fn tokenizers_of_other_schemes_go_the_ordinary_way() {
        let json = r#"{"version":"1.0","added_tokens":[{"id":3,"content":"</s>","single_word":false,"lstrip":false,
            "rstrip":false,"normalized":false,"special":true}],"pre_tokenizer":{"type":"Whitespace"},
            "model":{"type":"WordLevel","vocab":{"a":0,"b":1,"[UNK]":2,"</s>":3},"unk_token":"[UNK]"}}"#;
        let tokenizer = Tokenizer::from_json(json.as_bytes()).unwrap();
        assert!(!tokenizer.splits_safely());
        let encoder = Encoder::new(&tokenizer).unwrap();
        assert_eq!(encoder.encode_all(&["a b c</s>", "b"]).unwrap(), [vec![0, 1, 2, 3], vec![1]]);
    }
}
