//! Tokenizers in Hugging Face's files: loading, encoding, saving. Training is `train_tokenizer`.
//!
//! Encoding follows transformers: nothing is added around the text, and the literal `<|endoftext|>`
//! inside a text becomes the end-of-text token, not its characters. A tokenizer trained here has,
//! as GPT-2's, the 256 bytes first, the merges next and `<|endoftext|>` as the last id.

use crate::data::bpe::{self, Bpe};
use crate::data::tokens::{END_OF_TEXT, Hash, TokenOrigin};
use crate::error::{Error, Result};
use crate::files::{read_bounded, write_atomic};
use crate::guard::guarded;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;

/// What stands for it in tokenizers of other families, tried in this order.
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
    eot: u32,
    hash: Hash,
}

impl Tokenizer {
    /// Loads `tokenizer.json` (a file or in a folder), or GPT-2's pair `vocab.json` + `merges.txt`
    /// in a folder.
    pub fn load(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Self::from_json(&read(path)?).map_err(|e| e.context(path.display()));
        }
        let file = path.join("tokenizer.json");
        if file.is_file() {
            return Self::from_json(&read(&file)?).map_err(|e| e.context(file.display()));
        }
        let (vocab, merges) = (path.join("vocab.json"), path.join("merges.txt"));
        if vocab.is_file() && merges.is_file() {
            return Self::from_pair(&vocab, &merges);
        }
        Err(Error::data(format!(
            "{}: expected tokenizer.json, or vocab.json and merges.txt; found neither",
            path.display()
        )))
    }

    /// Parses the bytes of a `tokenizer.json`.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let failed =
            |e: &dyn std::fmt::Display| Error::data(format!("not a valid tokenizer.json: {e}"));
        let parsed =
            guarded("not a valid tokenizer.json", || tokenizers::Tokenizer::from_bytes(bytes))?;
        let mut inner = parsed.map_err(|e| failed(&e))?;
        // They would cut or fill documents in silence.
        inner.with_truncation(None).map_err(|e| failed(&e))?;
        inner.with_padding(None);
        let json = inner.to_string(false).map_err(|e| failed(&e))?;
        let json: Value = serde_json::from_str(&json).map_err(|e| failed(&e))?;
        let vocab = inner.get_vocab(true);
        let largest =
            vocab.values().copied().max().ok_or_else(|| Error::data("the vocabulary is empty"))?;
        let end = std::iter::once(END_OF_TEXT)
            .chain(OTHER_ENDS)
            .find_map(|name| vocab.get(name).copied());
        let eot = end.ok_or_else(|| {
            Error::data(format!(
                "no end-of-text token: expected {END_OF_TEXT} (or one of {OTHER_ENDS:?})"
            ))
        })?;
        let vocab_size =
            largest.checked_add(1).ok_or_else(|| Error::data("a token id is 4294967295"))?;
        let hash = Sha256::digest(identity(&json).to_string().as_bytes()).into();
        Ok(Self { inner, json, vocab_size, eot, hash })
    }

    fn from_pair(vocab: &Path, merges: &Path) -> Result<Self> {
        let bad = |path: &Path, what: String| Error::data(format!("{}: {what}", path.display()));
        let tokens: Map<String, Value> = serde_json::from_slice(&read(vocab)?)
            .map_err(|e| bad(vocab, format!("not a JSON object of ids: {e}")))?;
        let text =
            String::from_utf8(read(merges)?).map_err(|e| bad(merges, format!("not UTF-8: {e}")))?;
        let mut pairs = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if line.is_empty() || (number == 0 && line.starts_with("#version")) {
                continue;
            }
            match line.split_once(' ') {
                Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => {
                    pairs.push([a, b])
                }
                _ => {
                    return Err(bad(
                        merges,
                        format!("line {}: expected two tokens, found {line:?}", number + 1),
                    ));
                }
            }
        }
        let eot = tokens.get(END_OF_TEXT).and_then(Value::as_u64);
        let eot = eot.ok_or_else(|| bad(vocab, format!("no token {END_OF_TEXT}")))?;
        let json = gpt2_json(&Value::Object(tokens.clone()), &json!(pairs), eot);
        Self::from_json(json.to_string().as_bytes()).map_err(|e| e.context(vocab.display()))
    }

    /// Token ids of a text; nothing is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = guarded("tokenizer", || self.inner.encode_fast(text, false))?;
        encoding.map(|e| e.get_ids().to_vec()).map_err(|e| Error::data(format!("tokenizer: {e}")))
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

    /// Id of the end-of-text token.
    pub fn eot(&self) -> u32 {
        self.eot
    }

    /// SHA-256 over everything that decides which ids a text gets: model, pre-tokenizer, normalizer
    /// and added tokens. Layout of the file, decoder and post-processor do not enter, so re-saved
    /// and converted copies agree.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// UTF-8 bytes of a text that became `ids`. A literal end mark is a token without bytes, as it is
    /// where it separates documents.
    pub fn source_bytes(&self, text: &str, ids: &[u32]) -> u64 {
        let marks = ids.iter().filter(|id| **id == self.eot).count();
        let mark = self.inner.id_to_token(self.eot).map_or(0, |mark| mark.len());
        text.len().saturating_sub(marks * mark) as u64
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

    /// The text of the added token, if there is exactly one.
    pub(crate) fn only_added_token(&self) -> Option<String> {
        match self.json["added_tokens"].as_array()?.as_slice() {
            [one] => one["content"].as_str().filter(|c| !c.is_empty()).map(String::from),
            _ => None,
        }
    }

    /// Writes Hugging Face's files into `folder`, each atomically: `tokenizer.json`,
    /// `tokenizer_config.json`, `special_tokens_map.json`, and for byte-pair models `vocab.json`
    /// and `merges.txt`.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let put = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            write_atomic(&path, |w| w.write_all(bytes).map_err(|e| Error::io("write", &path, e)))
        };
        let pretty =
            |v: &Value| serde_json::to_vec_pretty(v).map_err(|e| Error::internal(e.to_string()));
        put("tokenizer.json", &pretty(&self.json)?)?;
        let eot = self.inner.id_to_token(self.eot).unwrap_or_else(|| END_OF_TEXT.to_string());
        let names = json!({"bos_token": eot, "eos_token": eot, "unk_token": eot});
        put("special_tokens_map.json", &pretty(&names)?)?;
        let gpt2 = self.splits_safely();
        let class = if gpt2 { "GPT2TokenizerFast" } else { "PreTrainedTokenizerFast" };
        let mut config =
            json!({"tokenizer_class": class, "add_prefix_space": false, "model_max_length": 1024});
        if let (Value::Object(config), Value::Object(names)) = (&mut config, names) {
            config.extend(names);
        }
        put("tokenizer_config.json", &pretty(&config)?)?;
        if let (true, Some(merges)) = (gpt2, self.json["model"]["merges"].as_array()) {
            put("vocab.json", self.json["model"]["vocab"].to_string().as_bytes())?;
            let mut text = String::from("#version: 0.2\n");
            for pair in merges {
                let [a, b] = [&pair[0], &pair[1]].map(|v| v.as_str().unwrap_or_default());
                text.extend([a, " ", b, "\n"]);
            }
            put("merges.txt", text.as_bytes())?;
        }
        Ok(())
    }

    /// The tokenizer of trained merges: 256 bytes, the merges, `<|endoftext|>`.
    pub(super) fn from_bpe(bpe: &Bpe) -> Result<Self> {
        let mut vocab: Map<String, Value> =
            bpe.tokens.iter().cloned().zip((0u32..).map(Value::from)).collect();
        let eot = bpe.tokens.len() as u64;
        vocab.insert(END_OF_TEXT.into(), eot.into());
        Self::from_json(
            gpt2_json(&Value::Object(vocab), &json!(bpe.merges), eot).to_string().as_bytes(),
        )
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    read_bounded(path, MOST_FILE_BYTES)
}

/// The `tokenizer.json` of a GPT-2 tokenizer.
fn gpt2_json(vocab: &Value, merges: &Value, eot: u64) -> Value {
    let byte_level = |trim: bool, prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": true});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": eot, "content": END_OF_TEXT, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }],
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

/// The members that decide ids, without those at their defaults: older files spell defaults out or
/// leave them away.
fn identity(json: &Value) -> Value {
    let thin = |v: &Value| match v {
        Value::Object(map) => {
            let silent = |v: &Value| v.is_null() || v == &json!(false) || v == &json!("");
            Value::Object(
                map.iter()
                    .filter(|(_, v)| !silent(v))
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect(),
            )
        }
        other => other.clone(),
    };
    let mut pre_tokenizer = thin(&json["pre_tokenizer"]);
    if let (true, Some(map)) = (pre_tokenizer["type"] == "ByteLevel", pre_tokenizer.as_object_mut())
    {
        map.remove("trim_offsets"); // moves offsets, not ids
    }
    let added: Vec<Value> =
        json["added_tokens"].as_array().map(|a| a.iter().map(thin).collect()).unwrap_or_default();
    json!([added, thin(&json["normalizer"]), pre_tokenizer, thin(&json["model"])])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::train_tokenizer::tests::{sample, trained};
    use std::collections::BTreeSet;
    use std::fs;

    #[test]
    fn a_saved_tokenizer_loads_the_same_from_either_kind_of_file() {
        let folder = tempfile::tempdir().unwrap();
        let (tokenizer, _) = trained(folder.path(), 400);
        let out = folder.path().join("out");
        tokenizer.save(&out).unwrap();
        let names: BTreeSet<String> = fs::read_dir(&out)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        let expected = [
            "merges.txt",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
        ];
        assert_eq!(names, expected.map(String::from).into());
        let same = |other: Tokenizer| {
            assert_eq!((other.hash(), other.eot()), (tokenizer.hash(), tokenizer.eot()));
            assert_eq!(other.encode(&sample()).unwrap(), tokenizer.encode(&sample()).unwrap());
            assert!(other.splits_safely());
        };
        same(Tokenizer::load(&out).unwrap());
        same(Tokenizer::load(&out.join("tokenizer.json")).unwrap());
        let before = fs::read(out.join("tokenizer.json")).unwrap();
        Tokenizer::load(&out).unwrap().save(&out).unwrap();
        assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), before);
        fs::remove_file(out.join("tokenizer.json")).unwrap();
        same(Tokenizer::load(&out).unwrap());
    }

    #[test]
    fn the_hash_ignores_layout_and_sees_every_merge() {
        let folder = tempfile::tempdir().unwrap();
        let (tokenizer, _) = trained(folder.path(), 300);
        let mut json = tokenizer.json.clone();
        json["post_processor"] = Value::Null;
        json["model"]["continuing_subword_prefix"] = json!("");
        json["truncation"] =
            json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
        let other = Tokenizer::from_json(&serde_json::to_vec_pretty(&json).unwrap()).unwrap();
        assert_eq!(other.hash(), tokenizer.hash());
        assert!(
            other.encode("Anna's pears weren't in the basket").unwrap().len() > 4,
            "truncation must be off"
        );
        json["model"]["merges"].as_array_mut().unwrap().swap(0, 1);
        let other = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        assert_ne!(other.hash(), tokenizer.hash());
        assert_ne!(trained(folder.path(), 301).0.hash(), tokenizer.hash());
    }

    #[test]
    fn malformed_files_are_errors_that_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let cases = [
            "",
            "{",
            "[]",
            "{}",
            r#"{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[["a","b"]]}}"#,
        ];
        for text in cases {
            fs::write(&path, text).unwrap();
            let message = Tokenizer::load(folder.path()).unwrap_err().to_string();
            assert!(message.contains("tokenizer.json"), "{text}: {message}");
        }
        fs::remove_file(&path).unwrap();
        assert!(Tokenizer::load(folder.path()).unwrap_err().to_string().contains("found neither"));
        fs::write(folder.path().join("vocab.json"), r#"{"a":0,"b":1,"ab":2,"<|endoftext|>":3}"#)
            .unwrap();
        fs::write(folder.path().join("merges.txt"), "#version: 0.2\na b\nab\n").unwrap();
        assert!(Tokenizer::load(folder.path()).unwrap_err().to_string().contains("line 3"));
        fs::write(folder.path().join("merges.txt"), "#version: 0.2\na b\n").unwrap();
        assert_eq!(Tokenizer::load(folder.path()).unwrap().encode("ab").unwrap(), [2]);
        fs::write(folder.path().join("vocab.json"), r#"{"a":0,"b":1,"ab":2}"#).unwrap();
        assert!(
            Tokenizer::load(folder.path())
                .unwrap_err()
                .to_string()
                .contains("no token <|endoftext|>")
        );
    }
}
