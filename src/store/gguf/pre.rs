//! llama.cpp's name of what cuts a text into words before pairs are merged (`tokenizer.ggml.pre`).
//!
//! llama.cpp's converter knows a pre-tokenizer by a hash of what a tokenizer makes of a text, so it
//! refuses those that are trained here. What decides the words is the pattern alone, so a name is
//! taken by the pattern (`llm_tokenizer_bpe` of llama-vocab.cpp).

use crate::error::{Error, Result};
use serde_json::{Value, json};

/// Patterns of a `Split`, whether whole words that are tokens are taken without merges, and the name.
const SPLITS: [(&str, bool, &str); 5] = [
    (GPT_2, false, "gpt-2"),
    (LLAMA_3, true, "llama-bpe"),
    (LLAMA_3, false, "dbrx"),
    (QWEN_2, false, "qwen2"),
    (TEKKEN, true, "tekken"),
];
const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The name for a byte-level tokenizer, and what its normalizer does that llama.cpp does not.
pub(super) fn name(tokenizer: &Value) -> Result<(&'static str, Option<String>)> {
    let ignores = tokenizer["model"]["ignore_merges"] == json!(true);
    let pre = &tokenizer["pre_tokenizer"];
    let steps = match pre["pretokenizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![pre],
    };
    let byte_level = |step: &Value, words: bool| {
        step["type"] == "ByteLevel"
            && step["add_prefix_space"] == json!(false)
            && step["use_regex"] == json!(words)
    };
    let found = match steps.as_slice() {
        [bytes] if byte_level(bytes, true) && !ignores => Some("gpt-2"),
        [digits, bytes] if byte_level(bytes, true) && !ignores => {
            let each = digits["type"] == "Digits" && digits["individual_digits"] == json!(true);
            each.then_some("smollm")
        }
        [split, bytes] if byte_level(bytes, false) => by_pattern(split, ignores),
        _ => None,
    };
    let Some(name) = found else {
        return Err(Error::data(format!(
            "llama.cpp has no equal of the tokenizer's pre-tokenizer{}; expected the one of GPT-2, SmolLM, Llama 3, Qwen2 or \
             Mistral Nemo (tekken), found {pre}; leave --format out for a Hugging Face folder, which takes any along",
            if ignores { " with ignore_merges = true" } else { "" }
        )));
    };
    let normalizer = &tokenizer["normalizer"];
    let note = match normalizer["type"].as_str() {
        _ if normalizer.is_null() && name == "tekken" => Some(
            "llama.cpp comes close to this tokenizer's pattern, but its own knows capitals of ASCII alone and no marks: text \
             beyond ASCII may get other ids there"
                .into(),
        ),
        _ if normalizer.is_null() => None,
        Some("NFC") => Some(
            "the tokenizer brings texts into Unicode's form NFC first, and llama.cpp does not: text in another form gets other \
             ids there"
                .into(),
        ),
        _ => {
            return Err(Error::data(format!(
                "llama.cpp has no equal of the tokenizer's normalizer; expected none or NFC, found {normalizer}; leave \
                 --format out for a Hugging Face folder, which takes any along"
            )));
        }
    };
    Ok((name, note))
}

/// Matches kept and the rest thrown away is the same as both kept: the patterns match every
/// character.
fn by_pattern(split: &Value, ignores: bool) -> Option<&'static str> {
    let how = (split["behavior"].as_str()?, split["invert"].as_bool()?);
    if split["type"] != "Split" || !matches!(how, ("Isolated", false) | ("Removed", true)) {
        return None;
    }
    let pattern = split["pattern"]["Regex"].as_str()?;
    let found = SPLITS.iter().find(|(known, ignore, _)| *known == pattern && *ignore == ignores);
    found.map(|(.., name)| *name)
}
