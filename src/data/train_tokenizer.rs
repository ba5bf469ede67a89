//! A tokenizer learned from text: words counted, byte pairs merged.

use crate::data::bpe::{self, WordCounts};
use crate::data::source::{self, ReadOptions, Skipped, Source};
use crate::data::tokenizer::Tokenizer;
use crate::data::tokens::END_OF_TEXT;
use crate::error::{Error, Result};
use crate::files::hex;
use crate::progress::Progress;
use crate::report::text::count;
use serde::Serialize;
use std::path::PathBuf;

/// What training may be told.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// Tokens wanted, `<|endoftext|>` included.
    pub vocab_size: usize,
    /// Occurrences that a pair needs to become a token.
    pub min_frequency: u64,
    /// Field of JSON lines, column of Parquet.
    pub text_field: String,
    /// Whether rows without a readable text are left out and counted; else the first is an error.
    pub skip_bad: bool,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self { vocab_size: 8192, min_frequency: 2, text_field: "text".into(), skip_bad: false }
    }
}

/// What training did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TrainReport {
    /// Tokens of the result, `<|endoftext|>` included.
    pub vocab_size: u32,
    /// Merges learned.
    pub merges: u64,
    /// Documents read.
    pub documents: u64,
    /// Bytes of text read, without those of end marks.
    pub bytes: u64,
    /// Distinct words counted.
    pub words: u64,
    /// [`Tokenizer::hash`] in hexadecimal.
    pub hash: String,
    /// Inputs with rows that were left out.
    pub skipped: Vec<Skipped>,
}

impl Tokenizer {
    /// Learns a byte-level byte-pair encoding of at most `vocab_size` tokens, `<|endoftext|>` (the
    /// last) included. The same inputs give the same tokenizer, whatever the number of threads.
    pub fn train(
        inputs: &[PathBuf],
        options: &TrainOptions,
        progress: &dyn Progress,
    ) -> Result<(Self, TrainReport)> {
        if options.vocab_size < 257 {
            let found = options.vocab_size;
            return Err(Error::usage(format!(
                "vocab-size: expected at least 257 (the 256 bytes and {END_OF_TEXT}), found {found}"
            )));
        }
        let sources = Source::open_all(inputs)?;
        let (text_field, skip_bad) = (options.text_field.clone(), options.skip_bad);
        let read_options = ReadOptions { text_field, split: true, skip_bad };
        let mut counts = WordCounts::default();
        let mut report = TrainReport::default();
        let skipped =
            source::for_each_batch(&sources, &read_options, "Counting words", progress, |batch| {
                let texts = batch.pieces.into_iter().map(|piece| {
                    let marks = piece.text.matches(END_OF_TEXT).count() * END_OF_TEXT.len();
                    report.bytes += (piece.text.len() - marks) as u64;
                    report.documents += u64::from(piece.ends_document);
                    piece.text
                });
                counts.add(&texts.collect::<Vec<_>>(), END_OF_TEXT)
            })?;
        if counts.is_empty() {
            return Err(source::no_text("the inputs", &skipped));
        }
        report.skipped = skipped;
        report.words = counts.len() as u64;
        let bpe = bpe::train(counts, options.vocab_size - 1, options.min_frequency, progress)?;
        report.merges = bpe.merges.len() as u64;
        let tokenizer = Self::from_bpe(&bpe)?;
        report.vocab_size = tokenizer.vocab_size();
        report.hash = hex(&tokenizer.hash());
        if (report.vocab_size as usize) < options.vocab_size {
            let [got, asked] = [report.vocab_size.into(), options.vocab_size as u64].map(count);
            progress.note(&format!("the text supports only {got} of the {asked} tokens asked for"));
        }
        Ok((tokenizer, report))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::progress::Silent;
    use std::fs;
    use std::path::Path;

    /// Text with repeated words, contractions, digits, several scripts and runs of white space.
    pub(crate) fn sample() -> String {
        (0..200)
            .map(|i| {
                format!("Anna's {i} pears weren't in   the basket;\n\tshe said: \"höher, 日本語 {}!\"\r\n", i * 31 % 97)
            })
            .collect()
    }

    pub(crate) fn trained(folder: &Path, vocab_size: usize) -> (Tokenizer, TrainReport) {
        let path = folder.join("sample.txt");
        fs::write(&path, sample()).unwrap();
        let options = TrainOptions { vocab_size, ..TrainOptions::default() };
        Tokenizer::train(&[path], &options, &Silent).unwrap()
    }

    #[test]
    fn training_gives_these_ids() {
        let folder = tempfile::tempdir().unwrap();
        let (tokenizer, report) = trained(folder.path(), 320);
        assert_eq!(
            (tokenizer.vocab_size(), tokenizer.eot(), report.documents, report.merges),
            (320, 319, 1, 63)
        );
        assert_eq!(report.bytes as usize, sample().len());
        // Single bytes have GPT-2's ids: 26 is ";", 198 the newline, 197 the tabulator, 89 "z".
        let golden: [(&str, &[u32]); 4] = [
            ("Anna's pears", &[293, 258, 297]),
            (" the basket;\n\tshe", &[289, 296, 26, 198, 197, 274]),
            ("zz<|endoftext|>日", &[89, 89, 319, 282, 98]),
            ("", &[]),
        ];
        for (text, ids) in golden {
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
            assert_eq!(tokenizer.decode(ids).unwrap(), text);
        }
        assert!(tokenizer.decode(&[320]).is_err());
    }

    #[test]
    fn training_does_not_depend_on_threads() {
        let folder = tempfile::tempdir().unwrap();
        let hashes = [1, 3].map(|n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| trained(folder.path(), 500).0.hash())
        });
        assert_eq!(hashes[0], hashes[1]);
    }

    #[test]
    fn too_few_tokens_and_no_text_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sample.txt");
        fs::write(&path, sample()).unwrap();
        let options = TrainOptions { vocab_size: 256, ..TrainOptions::default() };
        let message = Tokenizer::train(std::slice::from_ref(&path), &options, &Silent)
            .unwrap_err()
            .to_string();
        assert!(message.contains("at least 257"));
        let blank = folder.path().join("blank.txt");
        fs::write(&blank, " \n ").unwrap();
        let message =
            Tokenizer::train(&[blank], &TrainOptions::default(), &Silent).unwrap_err().to_string();
        assert!(message.contains("no text"));
    }
}
