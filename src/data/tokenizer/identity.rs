//! Which files are the same tokenizer: those that give every text the same ids.

use crate::data::tokens::Hash;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Trailing tokens that another copy of a tokenizer may lack.
const MOST_TRAILING: usize = 64;

/// SHA-256 over what decides ids: model, pre-tokenizer, normalizer and added tokens. Layout,
/// decoder and post-processor do not enter, nor what has no effect (`plain`).
pub(super) fn hash(json: &Value) -> Hash {
    hash_of(&members(&plain(json)), &model(json))
}

/// The same of what a file says word for word, as earlier versions did.
pub(super) fn hash_as_it_stands(json: &Value) -> Hash {
    hash_of(&members(json), &model(json))
}

/// Of the three small members and the model as text: `[added, normalizer, pre-tokenizer, model]`.
fn hash_of(members: &[Value; 3], model: &str) -> Hash {
    let [added, normalizer, pre_tokenizer] = members;
    let mut hasher = Sha256::new();
    hasher.update(format!("[{added},{normalizer},{pre_tokenizer},"));
    hasher.update(model);
    hasher.update("]");
    hasher.finalize().into()
}

/// Hashes of the tokenizer without its last added tokens, one by one: of copies made before these
/// (a padding token, mostly) were added. The end-of-text token `eot`, what lies inside the model's
/// vocabulary and tokens that are not special, so words of a text, stay.
pub(super) fn without_trailing(json: &Value, eot: u32) -> impl Iterator<Item = (u32, Hash)> {
    let vocabulary = match &json["model"]["vocab"] {
        Value::Object(map) => map.len(),
        Value::Array(list) => list.len(),
        _ => usize::MAX,
    } as u64;
    let (mut small, model) = (plain(json), model(json));
    let added = json["added_tokens"].as_array().into_iter().flatten();
    let special: Vec<u64> =
        added.filter(|t| t["special"] == json!(true)).filter_map(|t| t["id"].as_u64()).collect();
    std::iter::from_fn(move || {
        let added = small["added_tokens"].as_array_mut()?;
        let id = added.last()?["id"].as_u64()?;
        if id < vocabulary || id == u64::from(eot) || !special.contains(&id) {
            return None;
        }
        added.pop();
        Some((id as u32, hash_of(&members(&small), &model)))
    })
    .take(MOST_TRAILING)
}

/// The tokenizer in the form that older files mostly have, without differences that change no id:
/// whether an added token is special, whether it is normalized where nothing normalizes, sequences
/// of one, the order of added tokens.
fn plain(json: &Value) -> Value {
    // The model is large and stays as it is.
    let parts =
        ["added_tokens", "normalizer", "pre_tokenizer"].map(|p| (p.into(), json[p].clone()));
    let mut json = Value::Object(parts.into_iter().collect());
    for part in ["normalizer", "pre_tokenizer"] {
        let inner = unwrapped(json[part].take());
        json[part] = inner;
    }
    // Tokens that are not normalized are looked for first, so where two overlap it matters, too.
    let normalizes = !json["normalizer"].is_null() || overlap(&json["added_tokens"]);
    if let Some(added) = json["added_tokens"].as_array_mut() {
        added.sort_by_key(|token| token["id"].as_u64());
        for token in added {
            token["special"] = json!(true);
            if !normalizes {
                token["normalized"] = json!(false);
            }
        }
    }
    json
}

/// Whether a text may hold two added tokens that share a character; said of many without a look.
fn overlap(added: &Value) -> bool {
    const MANY: usize = 200;
    let texts: Vec<&str> =
        added.as_array().into_iter().flatten().filter_map(|t| t["content"].as_str()).collect();
    let meet = |a: &str, b: &str| {
        a.contains(b) || a.char_indices().skip(1).any(|(at, _)| b.starts_with(&a[at..]))
    };
    texts.len() > MANY
        || texts
            .iter()
            .enumerate()
            .any(|(i, a)| texts.iter().enumerate().any(|(j, b)| i != j && meet(a, b)))
}

/// A step by itself where it is the only one of its sequence; null for a sequence of none.
fn unwrapped(mut step: Value) -> Value {
    while step["type"] == "Sequence" {
        let list = ["normalizers", "pretokenizers"].into_iter().find_map(|k| step[k].as_array());
        match list.map(Vec::as_slice) {
            Some([]) => return Value::Null,
            Some([one]) => step = one.clone(),
            _ => break,
        }
    }
    step
}

/// The small members that decide ids.
fn members(json: &Value) -> [Value; 3] {
    let mut pre_tokenizer = thin(&json["pre_tokenizer"]);
    if let (true, Some(map)) = (pre_tokenizer["type"] == "ByteLevel", pre_tokenizer.as_object_mut())
    {
        map.remove("trim_offsets"); // moves offsets, not ids
    }
    let added: Vec<Value> =
        json["added_tokens"].as_array().map(|a| a.iter().map(thin).collect()).unwrap_or_default();
    [added.into(), thin(&json["normalizer"]), pre_tokenizer]
}

/// The model as text.
fn model(json: &Value) -> String {
    thin(&json["model"]).to_string()
}

/// Without what is at its default: older files spell defaults out or leave them away.
fn thin(value: &Value) -> Value {
    let silent = |v: &Value| v.is_null() || v == &json!(false) || v == &json!("");
    match value {
        Value::Object(map) => {
            let said = map.iter().filter(|(_, v)| !silent(v));
            Value::Object(said.map(|(k, v)| (k.clone(), v.clone())).collect())
        }
        other => other.clone(),
    }
}
