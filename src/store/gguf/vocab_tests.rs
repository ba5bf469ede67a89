//! What a tokenizer becomes, and which are refused.

use super::{pre, sentencepiece, vocab};
use crate::data::tokenizer::Tokenizer;
use crate::data::train_tokenizer::tests::trained;
use crate::store::gguf::container::Value as Stored;
use crate::store::weights::SpecialIds;
use serde_json::{Value, json};
use std::collections::HashMap;

fn split(pattern: &str) -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]})
}

#[test]
fn a_pre_tokenizer_is_known_by_its_pattern_and_not_by_the_family() {
    let qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let llama = qwen.replace(r"|\p{N}|", r"|\p{N}{1,3}|");
    let words = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
    let digits = json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, words]});
    let name = |pre: &Value, ignore: bool, normalizer: Value| {
        pre::name(
            &json!({"pre_tokenizer": pre, "normalizer": normalizer, "model": {"ignore_merges": ignore}}),
        )
    };
    for (pre, ignore, want) in [
        (&words, false, "gpt-2"),
        (&digits, false, "smollm"),
        (&split(qwen), false, "qwen2"),
        (&split(&llama), false, "dbrx"),
        (&split(&llama), true, "llama-bpe"),
    ] {
        assert_eq!(name(pre, ignore, Value::Null).unwrap(), (want, None));
    }
    let (_, note) = name(&split(qwen), false, json!({"type": "NFC"})).unwrap();
    assert!(note.unwrap().contains("NFC"));
    let prefixed = json!({"type": "ByteLevel", "add_prefix_space": true, "use_regex": true});
    let three = split(&llama.replace("{1,3}", "{1,4}"));
    for (pre, ignore, normalizer, word) in [
        (&prefixed, false, Value::Null, "\"add_prefix_space\":true"),
        (&words, true, Value::Null, "ignore_merges"),
        (&split(qwen), true, Value::Null, "ignore_merges"),
        (&three, true, Value::Null, "{1,4}"),
        (&json!({"type": "Whitespace"}), false, Value::Null, "Whitespace"),
        (&words, false, json!({"type": "Lowercase"}), "Lowercase"),
    ] {
        let message = name(pre, ignore, normalizer).unwrap_err().to_string();
        assert!(message.contains(word), "{word}: {message}");
    }
}

/// Tokens `<unk> <s> </s>`, the bytes, and what four letters make.
fn pairs() -> Value {
    let mut vocab = serde_json::Map::new();
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let rest = ["▁a", "ab", "▁ab", "▁", "a", "b", "c"].map(String::from);
    for text in ["<unk>", "<s>", "</s>"].map(String::from).into_iter().chain(bytes).chain(rest) {
        vocab.insert(text, vocab.len().into());
    }
    let special = |id: u32, text: &str| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab,
            "merges": [["▁", "a"], ["a", "b"], ["▁a", "b"], ["▁", "ab"]]}
    })
}

#[test]
fn sentencepieces_merges_become_scores() {
    let tokenizer = Tokenizer::from_json(pairs().to_string().as_bytes()).unwrap();
    let ids = SpecialIds { eos: vec![2], ..Default::default() };
    let (keys, notes) = vocab::metadata(&tokenizer, 270, &ids).unwrap();
    let keys: HashMap<String, Stored> = keys.into_iter().collect();
    let of = |key: &str| keys[&format!("tokenizer.ggml.{key}")].clone();
    assert_eq!((of("model"), notes), (Stored::Text("llama".into()), Vec::new()));
    for (key, want) in
        [("add_bos_token", true), ("add_eos_token", false), ("add_space_prefix", true)]
    {
        assert_eq!(of(key), Stored::Bool(want), "{key}");
    }
    for (key, want) in [("bos_token_id", 1), ("eos_token_id", 2)] {
        assert_eq!(of(key), Stored::U32(want), "{key}");
    }
    let (Stored::Floats(scores), Stored::Numbers(types), Stored::Texts(texts)) =
        (of("scores"), of("token_type"), of("tokens"))
    else {
        panic!()
    };
    // In the order of the merges, then the letters; bytes and special tokens have none.
    assert_eq!(
        scores[257..],
        [0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -10000.0, -10000.0, -10000.0, -10000.0]
    );
    assert_eq!((&types[..4], &types[258..260], types[269]), (&[2, 3, 3, 6][..], &[6, 1][..], 5));
    assert_eq!(
        (texts[3].as_str(), texts[259].as_str(), texts[269].as_str()),
        ("<0x00>", "▁a", "[PAD269]")
    );
}

#[test]
fn what_scores_cannot_say_is_refused() {
    let refused = |change: &dyn Fn(&mut Value), word: &str| {
        let mut json = pairs();
        change(&mut json);
        let message = sentencepiece::prefix(&json)
            .and_then(|_| sentencepiece::rows(&json, 270))
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(message.contains(word), "{word}: {message}");
    };
    // Joined by llama.cpp, not by the list.
    refused(&|j| drop(j["model"]["merges"].as_array_mut().unwrap().pop()), "no merge says so");
    refused(&|j| j["model"]["merges"].as_array_mut().unwrap().swap(1, 2), "stand apart");
    refused(&|j| drop(j["model"]["vocab"].as_object_mut().unwrap().remove("<0x41>")), "<0x41>");
    refused(&|j| j["model"]["ignore_merges"] = true.into(), "ignore_merges");
    refused(&|j| j["added_tokens"][1]["rstrip"] = true.into(), "rstrip");
    refused(&|j| j["normalizer"] = json!({"type": "NFKC"}), "NFKC");
    let mut first = pairs();
    first["normalizer"] = Value::Null;
    first["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    let prefix = sentencepiece::prefix(&first).unwrap();
    assert!(prefix.space && prefix.note.unwrap().contains("first"));
}

#[test]
fn what_stands_around_a_prompt_is_one_token_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut json = trained(folder.path(), 300).0.json().clone();
    let ids = SpecialIds { bos: Some(5), eos: vec![9], ..Default::default() };
    let end = json!({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let mut with = |single: Value| {
        json["post_processor"] = json!({"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
            {"type": "TemplateProcessing", "single": single, "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
             "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [299], "tokens": ["<|endoftext|>"]}}}]});
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        vocab::metadata(&tokenizer, 300, &ids)
            .map(|(keys, _)| keys.into_iter().collect::<HashMap<String, Stored>>())
    };
    for (single, bos, eos) in [
        (json!([text]), (5, false), (9, false)),
        (json!([end, text]), (299, true), (9, false)),
        (json!([end, text, end]), (299, true), (299, true)),
    ] {
        let keys = with(single).unwrap();
        for (of, (id, added)) in [("bos", bos), ("eos", eos)] {
            assert_eq!(keys[&format!("tokenizer.ggml.{of}_token_id")], Stored::U32(id));
            assert_eq!(keys[&format!("tokenizer.ggml.add_{of}_token")], Stored::Bool(added));
        }
    }
    let message = with(json!([end, end, text])).unwrap_err().to_string();
    assert!(message.contains("one token before a prompt"), "{message}");
}
