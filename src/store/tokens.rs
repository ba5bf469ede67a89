//! The text that a model is measured on: token files, data folders, raw text.

use crate::data::encoder::Encoder;
use crate::data::prepare::{DataDir, TRAIN};
use crate::data::source::{self, ReadOptions, Source};
use crate::data::tokenizer::Tokenizer;
use crate::data::tokens::{Hash, TokenFile};
use crate::error::{Error, Result};
use crate::files::hex;
use crate::progress::Progress;
use crate::store::OpenModel;
use std::path::Path;
use std::sync::Arc;

/// The tokens of a folder written by `prepare` (its validation split), of a token file, or of raw
/// text (anything that `prepare` reads), which is tokenised in memory: as `prepare` does, but nothing
/// before the first document ([`behind_first`]) and nothing after the last.
///
/// A model with a tokenizer of its own refuses tokens that another one made.
pub fn open_tokens(
    data: &Path,
    model: &OpenModel,
    progress: &dyn Progress,
) -> Result<Arc<TokenFile>> {
    open_tokens_by(data, model.tokenizer(), progress)
}

/// As [`open_tokens`], with the tokenizer by itself, or the reason why there is none.
pub fn open_tokens_by(
    data: &Path,
    tokenizer: Result<&Tokenizer>,
    progress: &dyn Progress,
) -> Result<Arc<TokenFile>> {
    let prepared = || data.join(TRAIN).is_file();
    if data.is_dir() && !prepared() {
        return Err(Error::data(format!(
            "{}: expected a folder made by `eslm-kd prepare`, with {TRAIN} in it, or a text, jsonl or parquet file; \
             found another folder; name a file in it",
            data.display()
        )));
    }
    let tokens = if data.is_dir() {
        let folder = DataDir::open(data)?;
        let shared = tokenizer.as_ref().ok().and_then(|own| own.shares_with(&folder.tokenizer));
        let tokens = folder.valid.ok_or_else(|| {
            Error::usage(format!(
                "{}: the folder has no validation split; name a text file or a token file (such as its train.bin) \
                 instead, or prepare it again with --valid or --valid-fraction",
                data.display()
            ))
        })?;
        if let Some(shared) = shared {
            tokens.check_vocab(shared as usize)?;
            tokens.verify(progress)?;
            return Ok(tokens);
        }
        tokens
    } else if data.extension().is_some_and(|e| e == "bin") {
        Arc::new(TokenFile::open(data)?)
    } else {
        return Ok(Arc::new(tokenise(data, tokenizer?, progress)?));
    };
    tokens.verify(progress)?;
    let found = tokens.header().tokenizer_hash;
    if let Some(own) = tokenizer.ok().filter(|own| !own.reads(&found)) {
        let short = |hash: &Hash| hex(&hash[..6]);
        return Err(Error::data(format!(
            "{}: made by tokenizer {}, but the model's is {}; prepare the data with the model's tokenizer",
            tokens.path().display(),
            short(&found),
            short(&own.hash())
        )));
    }
    Ok(tokens)
}

/// The tokens behind what the tokenizer puts before a text, unless they begin so by themselves;
/// behind end-of-text where it puts nothing.
pub fn behind_first(
    tokens: &Arc<TokenFile>,
    tokenizer: Option<&Tokenizer>,
) -> Result<Arc<TokenFile>> {
    let begin = tokenizer.map_or(&[][..], Tokenizer::begin);
    if begin.is_empty() {
        return tokens.behind(&[tokens.header().eot]).map(Arc::new);
    }
    if begins_with(tokens, begin)? {
        return Ok(Arc::clone(tokens));
    }
    tokens.behind(begin).map(Arc::new)
}

/// Whether the first tokens are these.
pub fn begins_with(tokens: &TokenFile, begin: &[u32]) -> Result<bool> {
    Ok(tokens.to_vec(0..tokens.len().min(begin.len() as u64))? == begin)
}

fn tokenise(path: &Path, tokenizer: &Tokenizer, progress: &dyn Progress) -> Result<TokenFile> {
    let sources = Source::open_all(&[path.to_path_buf()])?;
    let split = tokenizer.splits_safely();
    let reading = ReadOptions { text_field: "text".into(), split, skip_bad: false };
    let (mut tokens, mut documents, mut bytes) = (Vec::new(), 0, 0);
    let (mut between, encoder) = (false, Encoder::new(tokenizer)?);
    source::for_each_batch(&sources, &reading, "Tokenising", progress, |batch| {
        let texts: Vec<&str> = batch.pieces.iter().map(|p| p.text.as_str()).collect();
        for (piece, ids) in batch.pieces.iter().zip(encoder.encode_all(&texts)?) {
            if between {
                tokens.push(tokenizer.eot());
                if !ids.starts_with(tokenizer.document_begin()) {
                    tokens.extend(tokenizer.document_begin());
                }
            }
            bytes += tokenizer.source_bytes(&piece.text, &ids);
            tokens.extend(ids);
            documents += u64::from(piece.ends_document);
            between = piece.ends_document;
        }
        Ok(())
    })?;
    TokenFile::from_tokens(&tokens, tokenizer.origin(), documents, bytes)
        .map(|tokens| tokens.read_from(path))
        .map_err(|e| e.context(path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::train_tokenizer::TrainOptions;
    use crate::progress::Silent;

    #[test]
    fn raw_text_is_its_tokens_with_end_of_text_between_documents() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (first, second) = ("It was cold, and it was late.\n", "\n Then it was warm: höher.");
        std::fs::write(path("one.txt"), first.repeat(30)).unwrap();
        let options = TrainOptions { vocab_size: 280, ..TrainOptions::default() };
        let tokenizer = Tokenizer::train(&[path("one.txt")], &options, &Silent).unwrap().0;
        let read = |name: &str| {
            let file = tokenise(&path(name), &tokenizer, &Silent).unwrap();
            (file.to_vec(0..file.len()).unwrap(), file.header().source_bytes)
        };
        assert_eq!(
            read("one.txt"),
            (tokenizer.encode(&first.repeat(30)).unwrap(), 30 * first.len() as u64)
        );
        let want = tokenizer.encode(&format!("{first}<|endoftext|>{second}")).unwrap();
        let bytes = (first.len() + second.len()) as u64;
        std::fs::write(path("two.txt"), format!("{first}<|endoftext|>{second}")).unwrap();
        assert_eq!(read("two.txt"), (want.clone(), bytes));
        let lines = [first, second].map(|t| serde_json::json!({ "text": t }).to_string());
        std::fs::write(path("two.jsonl"), lines.join("\n")).unwrap();
        assert_eq!(read("two.jsonl"), (want.clone(), bytes));
        // A mark inside a row is the same token, and has no bytes either.
        let row = serde_json::json!({ "text": format!("{first}<|endoftext|>{second}") });
        std::fs::write(path("one.jsonl"), row.to_string()).unwrap();
        assert_eq!(read("one.jsonl"), (want, bytes));
    }

    #[test]
    fn documents_begin_as_in_prepared_data_and_the_first_where_it_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let rows = ["Ab", "ba", "<s>ab"].map(|t| serde_json::json!({ "text": t }).to_string());
        std::fs::write(path("in.jsonl"), rows.join("\n")).unwrap();
        let token = |id: u32, content: &str| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let json = |template: serde_json::Value| {
            let json = serde_json::json!({"version": "1.0", "added_tokens": [token(3, "<s>"), token(4, "</s>")],
                "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
                "post_processor": template,
                "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "A": 2}, "merges": []}});
            Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
        };
        let special = serde_json::json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
        let text = |id: &str| serde_json::json!({"Sequence": {"id": id, "type_id": 0}});
        let bos = json(
            serde_json::json!({"type": "TemplateProcessing", "single": [special, text("A")],
            "pair": [text("A"), text("B")], "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}}),
        );
        let ids = |file: &TokenFile| file.to_vec(0..file.len()).unwrap();
        let read = |tokenizer: &Tokenizer| {
            Arc::new(tokenise(&path("in.jsonl"), tokenizer, &Silent).unwrap())
        };
        let file = read(&bos);
        assert_eq!(ids(&file), [2, 1, 4, 3, 1, 0, 4, 3, 0, 1]);
        assert_eq!(file.header().source_bytes, 6);
        let behind = behind_first(&file, Some(&bos)).unwrap();
        assert_eq!(ids(&behind), [&[3], &ids(&file)[..]].concat());
        // No second where it is there.
        assert_eq!(ids(&behind_first(&behind, Some(&bos)).unwrap()), ids(&behind));
        // Where nothing is put before a text, end-of-text is.
        let plain = json(serde_json::Value::Null);
        let file = read(&plain);
        assert_eq!(ids(&file), [2, 1, 4, 1, 0, 4, 3, 0, 1]);
        assert_eq!(ids(&behind_first(&file, Some(&plain)).unwrap())[..2], [4, 2]);
        assert_eq!(ids(&behind_first(&file, None).unwrap())[..2], [4, 2]);
    }
}
