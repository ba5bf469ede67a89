//! Bulk encoding: GPT-2's scheme, with the ids of words seen before remembered per thread.
//!
//! A match of GPT-2's pattern, taken out of its text, is again one match as a whole, so encoding
//! word by word gives the same ids as encoding the text; a test compares both. Tokenizers of other
//! schemes go the ordinary way.

use crate::data::bpe::{GPT2_PATTERN, check_words};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokenizers::utils::SysRegex;

/// Words remembered per thread; beyond that the memory starts afresh.
const MAX_WORDS: usize = 100_000;
/// Longer words are rare, so remembering them is of no use.
const MAX_WORD_BYTES: usize = 64;

struct WordCache {
    regex: SysRegex,
    ids: HashMap<Box<str>, Box<[u32]>>,
}

/// Encodes many texts in parallel with one tokenizer.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// One per thread, with the text of the only added token; None if the tokenizer is of another
    /// scheme.
    fast: Option<(String, Vec<Mutex<WordCache>>)>,
}

impl<'a> Encoder<'a> {
    /// An encoder with empty memory.
    pub fn new(tokenizer: &'a Tokenizer) -> Result<Self> {
        let memory = |_| {
            let regex = SysRegex::new(GPT2_PATTERN);
            let regex = regex
                .map_err(|e| Error::internal(format!("GPT-2's pattern does not compile: {e}")))?;
            Ok(Mutex::new(WordCache { regex, ids: HashMap::new() }))
        };
        let fast = match tokenizer.only_added_token().filter(|_| tokenizer.splits_safely()) {
            Some(special) => Some((
                special,
                (0..rayon::current_num_threads()).map(memory).collect::<Result<_>>()?,
            )),
            None => None,
        };
        Ok(Self { tokenizer, fast })
    }

    /// The ids of each text, in order; the same as of [`Tokenizer::encode`].
    pub fn encode_all(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text)).collect()
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let Some((special, memories)) = &self.fast else { return self.tokenizer.encode(text) };
        check_words(text)?;
        let thread = rayon::current_thread_index().unwrap_or(0) % memories.len();
        // The memory is valid at every moment, so a panic elsewhere does not spoil it.
        let mut memory = memories[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let WordCache { regex, ids } = &mut *memory;
        let mut out = Vec::with_capacity(text.len() / 3);
        for (number, part) in text.split(special.as_str()).enumerate() {
            if number > 0 {
                out.extend(self.tokenizer.encode(special)?);
            }
            for (start, end) in regex.find_iter(part) {
                let word = &part[start..end];
                if let Some(known) = ids.get(word) {
                    out.extend_from_slice(known);
                    continue;
                }
                let new = self.tokenizer.encode(word)?;
                out.extend_from_slice(&new);
                if word.len() <= MAX_WORD_BYTES {
                    if ids.len() >= MAX_WORDS {
                        ids.clear();
                    }
                    ids.insert(word.into(), new.into());
                }
            }
        }
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
        assert!(encoder.fast.is_some());
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
