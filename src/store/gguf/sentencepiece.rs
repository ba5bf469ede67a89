//! SentencePiece's pairs (Llama 2, Mistral) as llama.cpp's tokenizer `llama`, which knows tokens and
//! their scores and no merges: it joins the two neighbours that make the token of the highest score
//! (`llm_tokenizer_spm`).
//!
//! A `tokenizer.json` has merges instead, made from the scores. Scores are numbered anew here, in the
//! order of the merges; a list that no scores could have made is refused.

use super::vocab::{CONTROL, Rows, UNUSED, USER_DEFINED};
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};

// `llama_token_type` (llama.h).
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const BYTE: i32 = 6;
/// What the converter gives rows without a token, and added tokens.
const UNUSED_SCORE: f32 = -10000.0;
const ADDED_SCORE: f32 = -1000.0;
/// SentencePiece's sign for a space.
const SPACE: &str = "\u{2581}";

/// What a tokenizer does with the space before a text.
pub(super) struct Prefix {
    /// Whether llama.cpp shall put one there.
    pub(super) space: bool,
    /// What llama.cpp does otherwise.
    pub(super) note: Option<String>,
}

fn beyond(what: impl std::fmt::Display) -> Error {
    Error::data(format!(
        "llama.cpp's tokenizer `llama` (SentencePiece) has no equal of this one: {what}; leave --format out for a Hugging Face \
         folder, which takes any along"
    ))
}

/// Whether a tokenizer is of this kind.
pub(super) fn is(tokenizer: &Value) -> bool {
    let model = &tokenizer["model"];
    model["type"] == "BPE" && model["byte_fallback"] == json!(true)
}

/// How spaces become its sign.
pub(super) fn prefix(tokenizer: &Value) -> Result<Prefix> {
    let (normalizer, pre) = (&tokenizer["normalizer"], &tokenizer["pre_tokenizer"]);
    let steps = match normalizer["normalizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None if normalizer.is_null() => Vec::new(),
        None => vec![normalizer],
    };
    let replaces = |step: &Value| {
        step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == SPACE
    };
    let prepends = |step: &Value| step["type"] == "Prepend" && step["prepend"] == SPACE;
    let space = |space| Ok(Prefix { space, note: None });
    match steps.as_slice() {
        [first, second] if pre.is_null() && prepends(first) && replaces(second) => space(true),
        [only] if pre.is_null() && replaces(only) => space(false),
        [] if pre["type"] == "Metaspace"
            && pre["replacement"] == SPACE
            && pre["split"] == json!(false) =>
        {
            match pre["prepend_scheme"].as_str() {
                Some("never") => space(false),
                scheme => Ok(Prefix {
                    space: true,
                    note: Some(format!(
                        "the tokenizer puts a space before a text that has none (Metaspace, {}), and llama.cpp, as \
                         SentencePiece, before every text and behind each special token: those get other ids there",
                        scheme.unwrap_or("always")
                    )),
                }),
            }
        }
        _ => Err(beyond(format!(
            "expected spaces that become {SPACE:?} and nothing else, found the normalizer {normalizer} and the pre-tokenizer {pre}"
        ))),
    }
}

/// Tokens, types and scores of all rows.
pub(super) fn rows(tokenizer: &Value, count: usize) -> Result<(Rows, Vec<f32>)> {
    let model = &tokenizer["model"];
    for key in ["ignore_merges", "continuing_subword_prefix", "end_of_word_suffix"] {
        let value = &model[key];
        if !(value.is_null() || [json!(false), json!("")].contains(value)) {
            return Err(beyond(format!("its model has {key} = {value}")));
        }
    }
    let vocab: HashMap<&str, usize> = model["vocab"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(text, id)| Some((text.as_str(), usize::try_from(id.as_u64()?).ok()?)))
        .collect();
    let added: Vec<&Value> = tokenizer["added_tokens"].as_array().into_iter().flatten().collect();
    let bytes: HashSet<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    if let Some(missing) = bytes.iter().filter(|byte| !vocab.contains_key(byte.as_str())).min() {
        return Err(beyond(format!("it has no token {missing}")));
    }
    let outside: HashSet<&str> = added.iter().filter_map(|t| t["content"].as_str()).collect();
    let ordinary = |text: &str| !outside.contains(text) && !bytes.contains(text);
    let order = order(model, &vocab, &ordinary)?;

    let mut found: Vec<Option<(String, i32, f32)>> = vec![None; count];
    let mut put = |text: &str, id: usize, of: i32, score: f32| -> Result<()> {
        let slot =
            found.get_mut(id).ok_or_else(|| beyond(format!("the id of {text:?} is {id}")))?;
        if slot.as_ref().is_some_and(|(there, ..)| there != text) {
            return Err(beyond(format!("{text:?} and another token share the id {id}")));
        }
        *slot = Some((text.to_string(), of, score));
        Ok(())
    };
    // Single characters come last, as in SentencePiece's own files; no merge makes them.
    let mut last = order.len();
    let mut by_id: Vec<(&str, usize)> = vocab.iter().map(|(text, id)| (*text, *id)).collect();
    by_id.sort_unstable_by_key(|(_, id)| *id);
    for (text, id) in by_id {
        let (of, score) = match order.get(text) {
            _ if outside.contains(text) => continue,
            _ if bytes.contains(text) => (BYTE, 0.0),
            Some(place) => (NORMAL, -(*place as f32)),
            None => {
                last += 1;
                (NORMAL, -((last - 1) as f32))
            }
        };
        put(text, id, of, score)?;
    }
    let unknown = model["unk_token"].as_str();
    for token in added {
        let text = token["content"].as_str().unwrap_or_default();
        if let Some(set) =
            ["lstrip", "rstrip", "single_word"].into_iter().find(|k| token[*k] == json!(true))
        {
            return Err(beyond(format!("its added token {text:?} has {set} = true")));
        }
        let id = token["id"].as_u64().and_then(|id| usize::try_from(id).ok()).unwrap_or(usize::MAX);
        match (unknown == Some(text), token["special"] == json!(true)) {
            (true, _) => put(text, id, UNKNOWN, 0.0)?,
            (_, true) => put(text, id, CONTROL, 0.0)?,
            _ => put(text, id, USER_DEFINED, ADDED_SCORE)?,
        }
    }
    let mut rows = Rows::default();
    let mut scores = Vec::with_capacity(count);
    for (id, slot) in found.into_iter().enumerate() {
        let (text, of, score) =
            slot.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED, UNUSED_SCORE));
        rows.texts.push(if of == USER_DEFINED { text.replace(SPACE, " ") } else { text });
        rows.types.push(of);
        scores.push(score);
    }
    Ok((rows, scores))
}

/// The place of each token that merges make, by its first merge. Errs where scores would merge
/// otherwise than the list: a pair that makes a token is not in it, or the merges of a token stand
/// apart.
fn order<'a>(
    model: &'a Value,
    vocab: &HashMap<&'a str, usize>,
    ordinary: &dyn Fn(&str) -> bool,
) -> Result<HashMap<&'a str, usize>> {
    let (mut order, mut merges) = (HashMap::new(), HashSet::new());
    let mut newest = "";
    for pair in model["merges"].as_array().into_iter().flatten() {
        let [a, b] = [&pair[0], &pair[1]].map(|side| side.as_str().unwrap_or_default());
        let whole = format!("{a}{b}");
        let Some((text, _)) = vocab.get_key_value(whole.as_str()) else {
            return Err(beyond(format!("its merge of {a:?} and {b:?} makes no token")));
        };
        let next = order.len();
        let place = *order.entry(*text).or_insert(next);
        if place != next && newest != *text {
            return Err(beyond(format!("its merges that make {text:?} stand apart")));
        }
        newest = text;
        merges.insert((a, b));
    }
    for text in vocab.keys().filter(|text| ordinary(text)) {
        for (at, _) in text.char_indices().skip(1) {
            let (a, b) = text.split_at(at);
            let both = vocab.contains_key(a) && vocab.contains_key(b) && ordinary(a) && ordinary(b);
            if both && !merges.contains(&(a, b)) {
                return Err(beyond(format!(
                    "its tokens {a:?} and {b:?} make {text:?}, and no merge says so"
                )));
            }
        }
    }
    Ok(order)
}
