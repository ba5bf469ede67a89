//! Tokenizers in Hugging Face's files: loading, encoding, saving. Training is `train_tokenizer`.
//!
//! Encoding follows transformers: nothing is added around the text, and the literal `<|endoftext|>`
//! inside a text becomes the end-of-text token, not its characters. A tokenizer trained here has,
//! as GPT-2's, the 256 bytes first, the merges next and `<|endoftext|>` as the last id.

mod folder;
mod identity;
mod save;

pub use save::TOKENIZER_FILES;

use crate::data::bpe::{self, Bpe};
use crate::data::tokens::{END_OF_TEXT, Hash, TokenOrigin};
use crate::error::{Error, Result};
use crate::files::read_bounded;
use crate::guard::guarded;
use folder::{Declared, Found};
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::path::Path;
use tokenizers::Model;

/// What may stand for it in tokenizers of other families where none is declared, tried in this
/// order.
const OTHER_ENDS: [&str; 4] = ["</s>", "<|end_of_text|>", "<eos>", "<|im_end|>"];
/// Several times the largest tokenizers there are (some 35 MB), far below what could exhaust
/// memory.
const MOST_FILE_BYTES: u64 = 256 << 20;

/// A tokenizer that can be hashed, saved and shared between threads.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The tokenizer as JSON, in the `tokenizers` crate's own order and defaults.
    json: Value,
    vocab_size: u32,
    /// Ranges of ids below `vocab_size` that stand for nothing, in order.
    gaps: Vec<Range<u32>>,
    eot: u32,
    /// What its template puts before a text, and after it.
    around: [Vec<u32>; 2],
    hash: Hash,
    /// The hash that earlier versions gave it.
    earlier: Hash,
    declared: Declared,
}

impl Tokenizer {
    /// Loads the tokenizer of a folder, all its files read as transformers 5 does, or a
    /// `tokenizer.json` by itself.
    ///
    /// The end of a document is the declared `eos_token`; where none is declared, the model's
    /// `eos_token_id`; where there is none either, the first special token that is a usual end mark.
    pub fn load(path: &Path) -> Result<Self> {
        Self::new(Found::at(path)?).map_err(|e| e.context(path.display()))
    }

    /// Parses the bytes of a `tokenizer.json`.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        Self::new(Found::in_json(bytes)?)
    }

    fn new(found: Found) -> Result<Self> {
        let Found { inner, json, earlier, declared } = found;
        let vocab = inner.get_vocab(true);
        let largest =
            vocab.values().copied().max().ok_or_else(|| Error::data("the vocabulary is empty"))?;
        let vocab_size =
            largest.checked_add(1).ok_or_else(|| Error::data("a token id is 4294967295"))?;
        let gaps = gaps(vocab.into_values().collect());
        let eot = end_of_text(&inner, &json, &declared)?;
        let around = folder::around(&inner)?;
        let hash = identity::hash(&json);
        Ok(Self { hash, earlier, inner, json, vocab_size, gaps, eot, around, declared })
    }

    /// As [`Tokenizer::load`], with `token` at the end of documents, whatever is declared.
    pub fn load_ending_with(path: &Path, token: &str) -> Result<Self> {
        let mut found = Found::at(path)?;
        if found.inner.token_to_id(token).is_none() {
            return Err(Error::usage(format!(
                "{}: the tokenizer has no token {token:?} to end documents with; name one of its tokens",
                path.display()
            )));
        }
        found.declared.config.insert("eos_token".into(), token.into());
        Self::new(found).map_err(|e| e.context(path.display()))
    }

    /// The token that ends documents.
    pub fn end_token(&self) -> String {
        self.inner.id_to_token(self.eot).unwrap_or_default()
    }

    /// Id of the token that is declared for a role of transformers (`bos_token`, `pad_token`).
    pub fn role(&self, role: &str) -> Option<u32> {
        self.inner.token_to_id(&self.declared.role(role)?)
    }

    /// The template of conversations that lies beside the tokenizer, in Jinja.
    pub(crate) fn chat_template(&self) -> Option<&str> {
        let of_config = || self.declared.config.get("chat_template").and_then(Value::as_str);
        self.declared.chat_template.as_deref().or_else(of_config)
    }

    /// The ids at which the model beside this tokenizer ends a text: `eos_token_id` of its
    /// `generation_config.json`, else of its `config.json`; the end-of-text token where neither
    /// says.
    pub fn end_ids(&self) -> Vec<u32> {
        if self.declared.end_ids.is_empty() {
            return vec![self.eot];
        }
        self.declared.end_ids.clone()
    }

    /// Whether ids that a tokenizer of this [`Tokenizer::hash`] made mean the same here: it is this
    /// one, or this one before its last tokens were added, or this one by the hash of an earlier
    /// version.
    pub fn reads(&self, made_by: &Hash) -> bool {
        [self.hash, self.earlier].contains(made_by)
            || identity::without_trailing(&self.json, self.eot).any(|(_, hash)| hash == *made_by)
    }

    /// How many of `other`'s ids mean the same here: all, or those before its last tokens; None if
    /// it is another tokenizer.
    pub fn shares_with(&self, other: &Tokenizer) -> Option<u32> {
        if self.reads(&other.hash) || self.reads(&other.earlier) {
            return Some(other.vocab_size);
        }
        let mut shorter = identity::without_trailing(&other.json, other.eot);
        shorter.find(|(_, hash)| self.reads(hash)).map(|(id, _)| id)
    }

    /// Token ids of a text; nothing is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = guarded("tokenizer", || self.inner.encode_fast(text, false))?;
        encoding.map(|e| e.get_ids().to_vec()).map_err(|e| Error::data(format!("tokenizer: {e}")))
    }

    /// Token ids of a prompt, with what the tokenizer's template puts around it: Llama's begins it
    /// with `bos`. A prompt that begins so by itself, as the text of a chat template, gets no second.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let [before, after] = &self.around;
        let text = self.encode(text)?;
        let before = if text.starts_with(before) { &[][..] } else { before };
        Ok([before, &text, after].concat())
    }

    /// What the tokenizer's template puts before a text: `bos` for Llama and Gemma, mostly nothing.
    pub fn begin(&self) -> &[u32] {
        &self.around[0]
    }

    /// What begins a document in data: [`Tokenizer::begin`]; nothing where that is the token that
    /// ends documents, since one between two of them says both.
    pub fn document_begin(&self) -> &[u32] {
        let begin = self.begin();
        if begin == [self.eot] { &[] } else { begin }
    }

    /// Some tokens as their vocabulary writes them, one after the other.
    pub fn names(&self, ids: &[u32]) -> String {
        ids.iter().filter_map(|id| self.inner.id_to_token(*id)).collect()
    }

    /// Ids of one word, in the letters of the model: the model alone, without normalizer,
    /// pre-tokenizer and added tokens.
    pub(super) fn encode_word(&self, word: &str) -> Result<Vec<u32>> {
        let tokens = guarded("tokenizer", || self.inner.get_model().tokenize(word))?;
        let tokens = tokens.map_err(|e| Error::data(format!("tokenizer: {e}")))?;
        Ok(tokens.into_iter().map(|token| token.id).collect())
    }

    /// The text of some ids, special tokens included; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        if let Some(id) = ids.iter().find(|&&id| id >= self.vocab_size) {
            return Err(Error::data(format!(
                "token id {id} is not below the vocabulary size {}",
                self.vocab_size
            )));
        }
        let text = guarded("tokenizer", || self.inner.decode(ids, false))?;
        text.map_err(|e| Error::data(format!("tokenizer: {e}")))
    }

    /// One token by itself, for people: its text, or, where its bytes are no text alone, each byte
    /// as `\xNN`.
    pub fn text_of(&self, id: u32) -> Result<String> {
        let text = self.decode(&[id])?;
        if !text.contains(char::REPLACEMENT_CHARACTER) {
            return Ok(text);
        }
        let spelling = bpe::byte_spelling();
        let byte = |c: char| spelling.iter().position(|s| *s == c).map(|b| b as u8);
        let bytes: Option<Vec<u8>> =
            self.inner.id_to_token(id).and_then(|token| token.chars().map(byte).collect());
        Ok(bytes.map_or(text, |bytes| bytes.iter().map(|b| format!("\\x{b:02X}")).collect()))
    }

    /// One more than the largest id, special tokens included.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// Ranges of ids below [`Tokenizer::vocab_size`] that no token has, in order.
    pub fn gaps(&self) -> &[Range<u32>] {
        &self.gaps
    }

    /// Id of the end-of-text token.
    pub fn eot(&self) -> u32 {
        self.eot
    }

    /// SHA-256 over everything that decides which ids a text gets: model, pre-tokenizer, normalizer
    /// and added tokens. Layout of the file, decoder and post-processor do not enter, nor what has
    /// no effect, so re-saved and converted copies agree.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// UTF-8 bytes of a text that became `ids`. A literal mark that begins or ends a document is a
    /// token without bytes, as it is where it separates documents.
    pub fn source_bytes(&self, text: &str, ids: &[u32]) -> u64 {
        let bytes = |mark: &u32| {
            let found = ids.iter().filter(|id| *id == mark).count();
            found * self.inner.id_to_token(*mark).map_or(0, |mark| mark.len())
        };
        let marks = self.document_begin().iter().chain([&self.eot]);
        text.len().saturating_sub(marks.map(bytes).sum()) as u64
    }

    /// What a token file records about its tokenizer.
    pub fn origin(&self) -> TokenOrigin {
        TokenOrigin { vocab_size: self.vocab_size, eot: self.eot, tokenizer_hash: self.hash }
    }

    /// Whether a text may be cut at [`crate::data::source::split_point`] and encoded in pieces with
    /// the same result. True for GPT-2's own scheme; others are given whole documents.
    pub fn splits_safely(&self) -> bool {
        let pre = &self.json["pre_tokenizer"];
        let added = self.json["added_tokens"].as_array();
        let plain = |t: &Value| {
            let free = t["content"].as_str().is_some_and(|c| !c.chars().any(char::is_whitespace));
            free && ["lstrip", "rstrip", "single_word"].iter().all(|k| t[*k] == json!(false))
        };
        self.json["normalizer"].is_null()
            && self.json["model"]["type"] == "BPE"
            && pre["type"] == "ByteLevel"
            && pre["add_prefix_space"] == json!(false)
            && pre["use_regex"] == json!(true)
            && added.is_some_and(|tokens| tokens.iter().all(plain))
    }

    /// The tokenizer as JSON, with every default spelt out.
    pub(crate) fn json(&self) -> &Value {
        &self.json
    }

    /// The tokenizer of trained merges: 256 bytes, the merges, `<|endoftext|>`.
    pub(super) fn from_bpe(bpe: &Bpe) -> Result<Self> {
        let mut vocab: Map<String, Value> =
            bpe.tokens.iter().cloned().zip((0u32..).map(Value::from)).collect();
        let eot = bpe.tokens.len() as u64;
        vocab.insert(END_OF_TEXT.into(), eot.into());
        Self::from_json(
            gpt2_json(&Value::Object(vocab), &json!(bpe.merges), Some(eot)).to_string().as_bytes(),
        )
    }
}

/// The ranges between these ids, and before the first: ranges, since a file may name any id.
fn gaps(mut ids: Vec<u32>) -> Vec<Range<u32>> {
    ids.sort_unstable();
    let mut next = 0;
    let before = |id: u32| std::mem::replace(&mut next, id.saturating_add(1))..id;
    ids.into_iter().map(before).filter(|gap| !gap.is_empty()).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    read_bounded(path, MOST_FILE_BYTES)
}

/// The id that ends documents. A token that merely looks like an end mark is none: some
/// vocabularies hold `</s>` as markup.
fn end_of_text(inner: &tokenizers::Tokenizer, json: &Value, declared: &Declared) -> Result<u32> {
    if let Some(id) = declared.role("eos_token").and_then(|name| inner.token_to_id(&name)) {
        return Ok(id);
    }
    let known = |id: &&u32| inner.id_to_token(**id).is_some();
    if let Some(id) = declared.end_ids.iter().find(known) {
        return Ok(*id);
    }
    let added = json["added_tokens"].as_array();
    let special = |name: &&str| {
        added.is_some_and(|tokens| {
            tokens.iter().any(|t| t["content"] == **name && t["special"] == json!(true))
        })
    };
    let found = std::iter::once(END_OF_TEXT).chain(OTHER_ENDS).find(|name| special(name));
    found.and_then(|name| inner.token_to_id(name)).ok_or_else(|| {
        Error::data(format!(
            "no end-of-text token: expected eos_token in tokenizer_config.json, or a special token {END_OF_TEXT} (or one of \
             {OTHER_ENDS:?}); name one with --end-token"
        ))
    })
}

/// The `tokenizer.json` of a GPT-2 tokenizer, with the id of its end mark if that is in it.
fn gpt2_json(vocab: &Value, merges: &Value, eot: Option<u64>) -> Value {
    let byte_level = |trim: bool, prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": true});
    let end = |id| {
        json!({
            "id": id, "content": END_OF_TEXT, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        })
    };
    let added: Vec<Value> = eot.into_iter().map(end).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level(true, false),
        "post_processor": byte_level(false, true),
        "decoder": byte_level(true, true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges
        }
    })
}

#[cfg(test)]
mod tests;
