//! A tokenizer as metadata, as llama.cpp's `convert_hf_to_gguf.py` writes it (`get_vocab_base`,
//! `_set_vocab_gpt2`, `_set_vocab_llama_hf`).

use super::container::{Keys, Value};
use super::{pre, sentencepiece};
use crate::data::byte_pairs::{BytePairs, TokenKind};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::store::weights::SpecialIds;
use std::collections::HashSet;

// `llama_token_type` (llama.h).
const NORMAL: i32 = 1;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;

/// A token for each row of the embedding.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) texts: Vec<String>,
    /// `llama_token_type`s.
    pub(super) types: Vec<i32>,
}

/// The keys of a tokenizer with as many tokens as the embedding has rows, and what llama.cpp does
/// otherwise, in words; `ids` are what the model states.
pub(super) fn metadata(
    tokenizer: &Tokenizer,
    rows: usize,
    ids: &SpecialIds,
) -> Result<(Keys, Vec<String>)> {
    let json = tokenizer.json();
    if tokenizer.vocab_size() as usize > rows {
        return Err(Error::internal(format!("{} tokens for {rows} rows", tokenizer.vocab_size())));
    }
    let text = |text: &str| Value::Text(text.into());
    let (mut keys, notes) = if sentencepiece::is(json) {
        let sentencepiece::Prefix { space, note } = sentencepiece::prefix(json)?;
        let (Rows { texts, types }, scores) = sentencepiece::rows(json, rows)?;
        let keys = vec![
            ("model", text("llama")),
            ("pre", text("default")),
            ("tokens", Value::Texts(texts)),
            ("scores", Value::Floats(scores)),
            ("token_type", Value::Numbers(types)),
            ("add_space_prefix", Value::Bool(space)),
        ];
        (keys, note.into_iter().collect())
    } else {
        let BytePairs { tokens, merges, missing } = BytePairs::of(tokenizer)
            .map_err(|e| e.context("GGUF (--format hf takes any tokenizer along)"))?;
        let (name, note) = pre::name(json)?;
        let Rows { texts, types } = byte_pairs(&tokens, rows);
        let keys = vec![
            ("model", text("gpt2")),
            ("pre", text(name)),
            ("tokens", Value::Texts(texts)),
            ("token_type", Value::Numbers(types)),
            ("merges", Value::Texts(merges)),
            ("add_space_prefix", Value::Bool(false)),
        ];
        let lacking = (!missing.is_empty()).then(|| {
            format!(
                "the tokenizer has no token for the bytes {missing:02X?}; text with them may get other ids in llama.cpp"
            )
        });
        (keys, note.into_iter().chain(lacking).collect())
    };
    // A config may name an id that this model does not have.
    let within = |id: &u32| (*id as usize) < rows;
    let (before, behind) = around(json)?;
    let stated = || ids.eos.iter().copied().find(within);
    let end = behind.or_else(stated).unwrap_or_else(|| tokenizer.eot());
    let bos = before.or(ids.bos.filter(within)).unwrap_or(end);
    let unknown = tokenizer.role("unk_token").filter(within).unwrap_or(end);
    keys.extend([
        ("bos_token_id", Value::U32(bos)),
        ("eos_token_id", Value::U32(end)),
        ("unknown_token_id", Value::U32(unknown)),
        ("add_bos_token", Value::Bool(before.is_some())),
        ("add_eos_token", Value::Bool(behind.is_some())),
    ]);
    if let Some(pad) = ids.pad.filter(within) {
        keys.push(("padding_token_id", Value::U32(pad)));
    }
    let mut keys: Keys =
        keys.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect();
    if let Some(template) = tokenizer.chat_template() {
        keys.push(("tokenizer.chat_template".into(), text(template)));
    }
    Ok((keys, notes))
}

fn byte_pairs(tokens: &[Option<(String, TokenKind)>], rows: usize) -> Rows {
    let known: HashSet<&str> = tokens.iter().flatten().map(|(text, _)| text.as_str()).collect();
    // No two tokens may be spelt alike.
    let pad = |id: usize| {
        let mut text = format!("[PAD{id}]");
        while known.contains(text.as_str()) {
            text.push('_');
        }
        text
    };
    let (texts, types) = (0..rows)
        .map(|id| match tokens.get(id) {
            Some(Some((text, kind))) => (text.clone(), token_type(text, *kind)),
            _ => (pad(id), UNUSED),
        })
        .unzip();
    Rows { texts, types }
}

/// An added token that looks like a control token is one, whatever its file says
/// (`does_token_look_special`).
fn token_type(text: &str, kind: TokenKind) -> i32 {
    let looks = text.starts_with("<|") && text.ends_with("|>");
    match kind {
        TokenKind::Ordinary => NORMAL,
        TokenKind::Added if !looks => USER_DEFINED,
        TokenKind::Added | TokenKind::Special => CONTROL,
    }
}

/// The tokens that the tokenizer's template puts before a prompt and behind it; llama.cpp knows one
/// of each.
fn around(tokenizer: &serde_json::Value) -> Result<(Option<u32>, Option<u32>)> {
    let post = &tokenizer["post_processor"];
    let steps = match post["processors"].as_array() {
        Some(steps) => steps.iter().collect(),
        None if post.is_null() => Vec::new(),
        None => vec![post],
    };
    let refused = || {
        Error::data(format!(
            "llama.cpp can put one token before a prompt and one behind it (add_bos_token, add_eos_token); the tokenizer's \
             post_processor does something else: {post}; leave --format out for a Hugging Face folder, which takes any along"
        ))
    };
    let (mut before, mut behind) = (None, None);
    for step in steps {
        match step["type"].as_str() {
            Some("ByteLevel") => {}
            Some("TemplateProcessing") => {
                let mut place = &mut before;
                for part in step["single"].as_array().into_iter().flatten() {
                    if part.get("Sequence").is_some() {
                        place = &mut behind;
                        continue;
                    }
                    let name = part["SpecialToken"]["id"].as_str().unwrap_or_default();
                    let ids = step["special_tokens"][name]["ids"].as_array();
                    let id = ids.filter(|ids| ids.len() == 1).and_then(|ids| ids[0].as_u64());
                    let id = id.and_then(|id| u32::try_from(id).ok()).ok_or_else(refused)?;
                    if place.replace(id).is_some() {
                        return Err(refused());
                    }
                }
            }
            _ => return Err(refused()),
        }
    }
    Ok((before, behind))
}
