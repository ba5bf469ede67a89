//! A tokenizer as metadata, as llama.cpp's `convert_hf_to_gguf.py` writes it (`get_vocab_base`,
//! `_set_vocab_gpt2`).
//!
//! The converter knows a pre-tokenizer by a hash of what one tokenizer makes of a text, so it
//! refuses those that are trained here. What decides the ids is the pattern alone, and `gpt-2` is
//! its name.

use super::container::Value;
use crate::data::byte_pairs::{BytePairs, TokenKind};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::store::weights::SpecialIds;
use std::collections::HashSet;

// `llama_token_type` (llama.h).
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// The keys of a tokenizer with as many tokens as the embedding has rows; `ids` are what the model
/// states.
pub(super) fn metadata(
    tokenizer: &Tokenizer,
    rows: usize,
    ids: &SpecialIds,
) -> Result<Vec<(String, Value)>> {
    let BytePairs { tokens, merges } = BytePairs::of(tokenizer)
        .map_err(|e| e.context("GGUF (--format hf takes any tokenizer along)"))?;
    if tokens.len() > rows {
        return Err(Error::internal(format!("{} tokens for {rows} rows", tokens.len())));
    }
    let known: HashSet<&str> = tokens.iter().flatten().map(|(text, _)| text.as_str()).collect();
    // No two tokens may be spelt alike.
    let pad = |id: usize| {
        let mut text = format!("[PAD{id}]");
        while known.contains(text.as_str()) {
            text.push('_');
        }
        text
    };
    let (mut texts, mut types) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    for id in 0..rows {
        let (text, of) = match tokens.get(id) {
            Some(Some((text, kind))) => (text.clone(), token_type(text, *kind)),
            _ => (pad(id), UNUSED),
        };
        texts.push(text);
        types.push(of);
    }
    // A config may name an id that this model does not have.
    let within = |id: &u32| (*id as usize) < rows;
    let end = ids.eos.iter().copied().find(within).unwrap_or_else(|| tokenizer.eot());
    let mut keys = vec![
        ("model", Value::Text("gpt2".into())),
        ("pre", Value::Text("gpt-2".into())),
        ("tokens", Value::Texts(texts)),
        ("token_type", Value::Numbers(types)),
        ("merges", Value::Texts(merges)),
        ("bos_token_id", Value::U32(ids.bos.filter(within).unwrap_or(end))),
        ("eos_token_id", Value::U32(end)),
        ("unknown_token_id", Value::U32(tokenizer.role("unk_token").filter(within).unwrap_or(end))),
        ("add_bos_token", Value::Bool(false)),
        ("add_space_prefix", Value::Bool(false)),
    ];
    if let Some(pad) = ids.pad.filter(within) {
        keys.push(("padding_token_id", Value::U32(pad)));
    }
    Ok(keys.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect())
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
