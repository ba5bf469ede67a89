//! Byte-level pairs (GPT-2's scheme, with any pattern that cuts a text into words) written out, for
//! programs that encode by a list of tokens and merges and know nothing else of a `tokenizer.json`.
//!
//! Such a program gives the same ids only if nothing beside the list and the pattern decides them,
//! so a tokenizer with anything else is refused by name. Normalizer and pre-tokenizer are the
//! caller's to look at.

use crate::data::bpe;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::HashMap;

/// What a token is to a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Made by merges.
    Ordinary,
    /// Found in the text as it stands before anything is merged, and no text to a reader.
    Special,
    /// Found likewise, but text.
    Added,
}

/// Tokens by id (None where no token has the id) and merges in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BytePairs {
    /// Spelling and kind; ordinary tokens in GPT-2's spelling of bytes.
    pub tokens: Vec<Option<(String, TokenKind)>>,
    /// `left right`; none is there twice, since the `tokenizers` crate keeps one of such.
    pub merges: Vec<String>,
    /// Bytes that some text has and no token stands for. SmolLM2 lacks six control characters and
    /// two bytes of rare letters. `tokenizers` leaves them out before it merges, others may do so after.
    pub missing: Vec<u8>,
}

impl BytePairs {
    /// The lists of a tokenizer, or what it has that they cannot say.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let json = tokenizer.json();
        let model = &json["model"];
        if model["type"] != "BPE" {
            return Err(beyond(format!("its model is {}", kind(model))));
        }
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let set =
                ["lstrip", "rstrip", "single_word"].into_iter().find(|k| token[*k] == json!(true));
            if let Some(set) = set {
                return Err(beyond(format!(
                    "its added token {} has {set} = true",
                    token["content"]
                )));
            }
        }
        for key in ["byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"] {
            let value = &model[key];
            let silent = value.is_null() || [json!(false), json!(""), json!(0.0)].contains(value);
            if !silent {
                return Err(beyond(format!("its model has {key} = {value}")));
            }
        }
        let merges = merges(model)?;
        let tokens = tokens(json, tokenizer.vocab_size() as usize)?;
        Ok(Self { tokens, merges, missing: missing(&model["vocab"]) })
    }
}

fn beyond(what: String) -> Error {
    Error::data(format!(
        "the tokenizer is not byte-level pairs alone: {what}; a list of tokens and merges would give other ids"
    ))
}

/// What the file calls a part of the pipeline.
fn kind(part: &Value) -> String {
    part["type"].as_str().map_or_else(|| "none".into(), String::from)
}

fn merges(model: &Value) -> Result<Vec<String>> {
    let mut merges = Vec::new();
    for pair in model["merges"].as_array().into_iter().flatten() {
        let [a, b] = [&pair[0], &pair[1]].map(|v| v.as_str().unwrap_or_default());
        if [a, b].iter().any(|side| side.is_empty() || side.contains(' ')) {
            return Err(beyond(format!("its merge of {a:?} and {b:?} has a space or nothing")));
        }
        merges.push(format!("{a} {b}"));
    }
    Ok(merges)
}

fn missing(vocab: &Value) -> Vec<u8> {
    let bytes = (0..=u8::MAX).zip(bpe::byte_spelling());
    // UTF-8 has none of these, so no text needs a token for them.
    let in_text = bytes.filter(|(byte, _)| !matches!(byte, 0xC0 | 0xC1 | 0xF5..));
    let known = |spelt: char| vocab.get(spelt.to_string()).is_some();
    in_text.filter(|(_, spelt)| !known(*spelt)).map(|(byte, _)| byte).collect()
}

fn tokens(json: &Value, count: usize) -> Result<Vec<Option<(String, TokenKind)>>> {
    let mut tokens: Vec<Option<(String, TokenKind)>> = vec![None; count];
    let vocab = json["model"]["vocab"].as_object();
    let ordinary = vocab.into_iter().flatten().map(|(t, id)| (t.as_str(), id, TokenKind::Ordinary));
    let added: Vec<(&str, &Value, TokenKind)> = json["added_tokens"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|t| {
            let kind =
                if t["special"] == json!(true) { TokenKind::Special } else { TokenKind::Added };
            (t["content"].as_str().unwrap_or_default(), &t["id"], kind)
        })
        .collect();
    check_overlaps(&added)?;
    let mut ids = HashMap::new();
    for (text, id, kind) in ordinary.chain(added) {
        let at = id.as_u64().and_then(|id| usize::try_from(id).ok());
        let slot = at.and_then(|at| tokens.get_mut(at));
        let slot = slot.ok_or_else(|| beyond(format!("the id of {text:?} is {id}")))?;
        if slot.as_ref().is_some_and(|(there, _)| there != text) {
            return Err(beyond(format!("{text:?} and another token share the id {id}")));
        }
        if *ids.entry(text).or_insert(at) != at {
            return Err(beyond(format!("{text:?} has two ids")));
        }
        *slot = Some((text.to_string(), kind));
    }
    Ok(tokens)
}

/// Added tokens are found from left to right here, the longest first elsewhere; that is the same
/// unless one can begin inside another and end behind it. Of one character alone (GPT-NeoX's runs of
/// spaces) both take as many as there are.
fn check_overlaps(added: &[(&str, &Value, TokenKind)]) -> Result<()> {
    for (a, ..) in added {
        let alike = |b: &str| a.chars().chain(b.chars()).all(|c| a.starts_with(c));
        for (b, ..) in added.iter().filter(|(b, ..)| b != a && !alike(b)) {
            let inside = (1..a.len()).filter(|&at| a.is_char_boundary(at));
            let shared =
                inside.map(|at| &a[at..]).find(|end| end.len() < b.len() && b.starts_with(end));
            if let Some(shared) = shared {
                return Err(beyond(format!(
                    "its added token {a:?} ends with {shared:?}, with which {b:?} begins"
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::train_tokenizer::tests::trained;
    use std::collections::HashSet;

    #[test]
    fn a_trained_tokenizer_is_bytes_merges_and_one_special_token() {
        let folder = tempfile::tempdir().unwrap();
        let (tokenizer, report) = trained(folder.path(), 300);
        let BytePairs { tokens, merges, missing } = BytePairs::of(&tokenizer).unwrap();
        assert!(missing.is_empty());
        assert_eq!((tokens.len(), merges.len() as u64), (300, report.merges));
        assert_eq!(tokens[299], Some(("<|endoftext|>".into(), TokenKind::Special)));
        let spelling = bpe::byte_spelling();
        let bytes: HashSet<String> = spelling.iter().map(char::to_string).collect();
        let first: Vec<String> = tokens[..256].iter().flatten().map(|(t, _)| t.clone()).collect();
        assert_eq!((first.len(), first.into_iter().collect::<HashSet<_>>()), (256, bytes));
        for (merge, token) in merges.iter().zip(&tokens[256..]) {
            assert_eq!(token, &Some((merge.replace(' ', ""), TokenKind::Ordinary)));
        }
    }

    #[test]
    fn what_the_lists_cannot_say_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let (tokenizer, _) = trained(folder.path(), 300);
        let with = |change: &dyn Fn(&mut Value)| {
            let mut json = tokenizer.json().clone();
            change(&mut json);
            BytePairs::of(&Tokenizer::from_json(json.to_string().as_bytes()).unwrap())
        };
        let refused = |change: &dyn Fn(&mut Value), word: &str| {
            let message = with(change).unwrap_err().to_string();
            assert!(message.contains(word), "{word}: {message}");
        };
        let token = |id: u32, content: &str, special: bool| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": special})
        };
        let add = |json: &mut Value, token: Value| {
            json["added_tokens"].as_array_mut().unwrap().push(token)
        };
        refused(&|j| j["added_tokens"][0]["lstrip"] = json!(true), "lstrip = true");
        refused(&|j| j["model"]["byte_fallback"] = json!(true), "byte_fallback = true");
        let overlapping = |j: &mut Value| {
            add(j, token(300, "<ab>", true));
            add(j, token(301, "b><", true));
        };
        refused(&overlapping, "\"b>\"");
        let runs = with(&|j| {
            add(j, token(300, "  ", false));
            add(j, token(301, "   ", false));
        });
        assert_eq!(runs.unwrap().tokens[301], Some(("   ".to_string(), TokenKind::Added)));
        // Bytes that no merge of this tokenizer uses; no text has the second.
        let lacking = with(&|j| {
            let vocab = j["model"]["vocab"].as_object_mut().unwrap();
            vocab.remove("ð");
            vocab.remove("ÿ");
        });
        assert_eq!(lacking.unwrap().missing, [0xF0]);
        // Tokens that contain or repeat each other are found alike, and text is told from control.
        let fine = with(&|j| {
            add(j, token(300, "<ab>", false));
            add(j, token(301, "<ab>c", true));
        });
        let tokens = fine.unwrap().tokens;
        assert_eq!(
            tokens[300..],
            [
                Some(("<ab>".to_string(), TokenKind::Added)),
                Some(("<ab>c".to_string(), TokenKind::Special)),
            ]
        );
    }
}
