use super::*;
use crate::data::encoder::Encoder;
use crate::data::source::tests::tricky;
use crate::data::tokenizer::Tokenizer;
use crate::data::train_tokenizer::tests::trained;

/// Llama 3's pattern; Qwen's takes digits one by one.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek's three, one after the other.
const DEEPSEEK: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

fn split(pattern: &str, behavior: &str, invert: bool) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert})
}

fn sequence(steps: &[Value], use_regex: bool) -> Value {
    let last = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let steps = [steps, &[last]].concat();
    json!({"type": "Sequence", "pretokenizers": steps})
}

fn added(id: u64, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true})
}

/// Merges that were trained here, cut into words in the ways of other families.
fn byte_level_families() -> Vec<(&'static str, Value)> {
    let folder = tempfile::tempdir().unwrap();
    let json = trained(folder.path(), 420).0.json().clone();
    let eot = json["added_tokens"][0]["id"].as_u64().unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut json = json.clone();
        let more = ["<|eot|>", "<|e", "<|im_start|>", "x"].into_iter().zip(eot + 1..);
        json["added_tokens"].as_array_mut().unwrap().extend(more.map(|(t, id)| added(id, t)));
        change(&mut json);
        json
    };
    let llama3 = || split(LLAMA3, "Isolated", false);
    vec![
        ("gpt2", with(&|_| ())),
        (
            "llama3",
            with(&|json| {
                json["pre_tokenizer"] = sequence(&[llama3()], false);
                json["model"]["ignore_merges"] = json!(true);
            }),
        ),
        (
            "qwen",
            with(&|json| {
                json["normalizer"] = json!({"type": "NFC"});
                let pattern = LLAMA3.replace("{1,3}", "");
                json["pre_tokenizer"] = sequence(&[split(&pattern, "Isolated", false)], false);
            }),
        ),
        (
            "deepseek",
            with(&|json| {
                json["normalizer"] = json!({"type": "Sequence", "normalizers": []});
                json["added_tokens"][2]["normalized"] = json!(true);
                json["pre_tokenizer"] =
                    sequence(&DEEPSEEK.map(|p| split(p, "Isolated", false)), false);
            }),
        ),
        (
            "smollm",
            with(&|json| {
                let digits = json!({"type": "Digits", "individual_digits": true});
                json["pre_tokenizer"] = sequence(&[digits], true);
            }),
        ),
        (
            "digits together, spaces as tokens",
            with(&|json| {
                json["normalizer"] = json!({"type": "NFC"});
                json["added_tokens"][2]["content"] = json!("   ");
                json["added_tokens"][2]["normalized"] = json!(true);
                let digits = json!({"type": "Digits", "individual_digits": false});
                json["pre_tokenizer"] = sequence(&[digits], true);
            }),
        ),
        (
            "matches alone",
            with(&|json| {
                json["pre_tokenizer"] = sequence(&[split(r"\p{L}+|\d", "Removed", true)], false);
            }),
        ),
    ]
}

/// Sentencepiece's scheme: bytes for unknown characters, a merge for each begin of a few words.
fn marked(words: &[&str], more: &[&str], change: impl Fn(&mut Value)) -> Value {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend("▁abcdefghijklmnopqrstuvwxyz.,<>/".chars().map(String::from));
    let mut merges = Vec::new();
    for word in words.iter().chain(more) {
        let letters: Vec<char> = word.chars().collect();
        for length in 2..=letters.len() {
            let token: String = letters[..length].iter().collect();
            if !tokens.contains(&token) {
                let before: String = letters[..length - 1].iter().collect();
                merges.push(json!([before, letters[length - 1].to_string()]));
                tokens.push(token);
            }
        }
    }
    let vocab: serde_json::Map<String, Value> =
        tokens.into_iter().zip((0u64..).map(Value::from)).collect();
    let mut json = json!({
        "version": "1.0",
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab, "merges": merges}
    });
    change(&mut json);
    json
}

const WORDS: [&str; 6] = ["▁the", "▁cat", "▁▁▁▁", "the", "and", "▁an"];

fn of(json: &Value) -> Tokenizer {
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

/// Texts in which marks, spaces and added tokens meet in every way.
fn texts() -> Vec<String> {
    let special =
        "<|eot|><|e <|im_start|>x  <|e</s>y<s><unk>   z</s></s> <|endoftext|> end<|endoftext|>\n";
    let marks = "the cat  and    the▁cat ▁ an▁▁ > the>the > <0x41> a\u{1100}\u{1161}  the.\nThe é cat 猫 the ";
    let text = tricky() + special + marks + &"long".repeat(50) + special + &tricky();
    let reversed = text.chars().rev().collect();
    let ends = [" ", "▁", "x", " the", "the ", "\u{301}", "a\u{301}", "", "</s>", "1234567"];
    [text, reversed].into_iter().chain(ends.map(String::from)).collect()
}

fn same_ids(name: &str, json: &Value) {
    let tokenizer = of(json);
    assert!(Words::of(tokenizer.json()).unwrap().is_some(), "{name}: not remembered");
    let encoder = Encoder::new(&tokenizer).unwrap();
    let texts = texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    // Twice: the second time from memory.
    for _ in 0..2 {
        for (text, ids) in texts.iter().zip(encoder.encode_all(&texts).unwrap()) {
            let want = tokenizer.encode(text).unwrap();
            let at = ids.iter().zip(&want).position(|(a, b)| a != b).unwrap_or(want.len());
            let near = &want[at.saturating_sub(5)..want.len().min(at + 5)];
            assert!(ids == want, "{name}: {:?}", tokenizer.decode(near));
        }
    }
}

#[test]
fn byte_level_schemes_of_other_families_give_the_same_ids() {
    for (name, json) in byte_level_families() {
        same_ids(name, &json);
    }
}

#[test]
fn marks_give_the_same_ids() {
    same_ids("llama2", &marked(&WORDS, &[], |_| ()));
    let gemma = |json: &mut Value| {
        json["normalizer"] = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        json["pre_tokenizer"] = json!({"type": "Split", "pattern": {"String": " "},
            "behavior": "MergedWithPrevious", "invert": false});
    };
    same_ids("gemma", &marked(&WORDS, &[], gemma));
    // Tokens that go on over a mark keep it.
    same_ids("stuck", &marked(&WORDS, &[">▁</", "the▁cat"], gemma));
}

#[test]
fn a_mark_begins_a_text_and_bytes_stand_for_what_no_token_has() {
    let tokenizer = of(&marked(&WORDS, &[], |_| ()));
    let names = |text: &str| -> Vec<String> {
        tokenizer.encode(text).unwrap().iter().map(|id| tokenizer.names(&[*id])).collect()
    };
    assert_eq!(names("the cat"), ["▁the", "▁cat"]);
    assert_eq!(names("é the"), ["▁", "<0xC3>", "<0xA9>", "▁the"]);
    assert_eq!(names("the</s> cat"), ["▁the", "</s>", "▁", "▁cat"], "each part gets its mark");
    assert_eq!(tokenizer.encode_prompt("the").unwrap()[0], 1);
}

#[test]
fn what_cannot_be_told_goes_the_ordinary_way() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = trained(folder.path(), 300).0.json().clone();
    let marks = marked(&WORDS, &[], |_| ());
    let unknown = |json: &Value, change: &dyn Fn(&mut Value)| {
        let mut json = json.clone();
        change(&mut json);
        Words::of(&json).unwrap().is_none()
    };
    assert!(!unknown(&bytes, &|_| ()) && !unknown(&marks, &|_| ()));
    assert!(unknown(&bytes, &|json| json["normalizer"] = json!({"type": "Lowercase"})));
    assert!(unknown(&bytes, &|json| json["pre_tokenizer"]["add_prefix_space"] = json!(true)));
    assert!(unknown(&bytes, &|json| json["added_tokens"][0]["lstrip"] = json!(true)));
    assert!(unknown(&bytes, &|json| {
        json["pre_tokenizer"] = sequence(&[split(LLAMA3, "MergedWithNext", false)], false);
    }));
    assert!(unknown(&marks, &|json| json["model"]["ignore_merges"] = json!(true)));
    assert!(unknown(&marks, &|json| {
        json["model"]["vocab"]["<0x41>▁"] = json!(999);
    }));
    assert!(unknown(&marks, &|json| {
        json["model"]["vocab"].as_object_mut().unwrap().remove("▁");
    }));
    // A pre-tokenizer of its own puts the mark and parts at it; its ids are the crate's.
    let metaspace = |json: &mut Value| {
        json["normalizer"] = Value::Null;
        json["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    };
    assert!(unknown(&marks, &metaspace));
    let tokenizer = of(&marked(&WORDS, &[], metaspace));
    let ids = Encoder::new(&tokenizer).unwrap().encode_all(&["the cat</s>the"]).unwrap().remove(0);
    assert_eq!(tokenizer.names(&ids), "▁the▁cat</s>the", "the first part alone gets a mark");
}

#[test]
fn form_c_by_runs_is_form_c_of_the_whole() {
    let marks = [
        "a\u{301}",
        "\u{301}",
        "e\u{323}\u{302}x",
        "\u{1100}\u{1161}\u{11a8}",
        "가\u{11a8}",
        "\u{2126}k",
        "é",
        "\u{fb1d}",
    ];
    let text = tricky() + &marks.concat() + &marks.join(" ") + "q\u{307}\u{323} " + &tricky();
    let cut = text.char_indices().map(|(at, _)| at).step_by(7);
    for part in cut.map(|at| &text[at..]).chain(["", "a", "\u{301}", "a\u{301}"]) {
        let mut whole = NormalizedString::from(part);
        NFC.normalize(&mut whole).unwrap();
        assert_eq!(nfc(part).unwrap(), whole.get());
    }
}
