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
        Tokenizer::load(folder.path()).unwrap_err().to_string().contains("no end-of-text token")
    );
}

/// A folder of these files.
fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let text = content.as_str().map_or_else(|| content.to_string(), String::from);
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn load(files: &[(&str, Value)]) -> Tokenizer {
    Tokenizer::load(folder(files).path()).unwrap()
}

/// Letters, a space, `ab`, and the end mark inside the vocabulary.
fn pair() -> [(&'static str, Value); 2] {
    let vocab = json!({"<|endoftext|>": 0, "a": 1, "b": 2, "\u{120}": 3, "ab": 4, "<": 5, "s": 6, ">": 7, "/": 8});
    [("vocab.json", vocab), ("merges.txt", "#version: 0.2\na b\n".into())]
}

/// The same as a tokenizer.json, changed by `change`.
fn whole(change: impl Fn(&mut Value)) -> Value {
    let [(_, vocab), _] = pair();
    let mut json = gpt2_json(&vocab, &json!([["a", "b"]]), Some(0));
    change(&mut json);
    json
}

fn added(id: u32, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": !special, "special": special})
}

#[test]
fn a_pair_is_read_with_all_that_lies_beside_it() {
    let [vocab, merges] = pair();
    let ids = |beside: &[(&str, Value)], text: &str| {
        let files = [&[vocab.clone(), merges.clone()], beside].concat();
        let tokenizer = load(&files);
        (tokenizer.encode(text).unwrap(), tokenizer.eot(), tokenizer.vocab_size())
    };
    // The right values are those of transformers 5.24 and 4.57.
    assert_eq!(ids(&[], "ab<|endoftext|>a"), (vec![4, 0, 1], 0, 9));
    let user = json!({"<|u|>": 9, "[P]": 10});
    assert_eq!(ids(&[("added_tokens.json", user)], "ab<|u|>[P]"), (vec![4, 9, 10], 0, 11));
    let config = json!({"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder":
        {"0": added(0, "<|endoftext|>", true), "9": added(9, "<|u|>", true)}});
    assert_eq!(ids(&[("tokenizer_config.json", config)], "a<|u|>b"), (vec![1, 9, 2], 0, 10));
    // A special token inside the vocabulary, and one that lies nowhere else.
    let map = json!({"eos_token": "</s>", "bos_token": {"content": "<s>", "lstrip": false}});
    assert_eq!(ids(&[("special_tokens_map.json", map)], "a</s>b<s>"), (vec![1, 10, 2, 9], 10, 11));
    let config = json!({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": true});
    assert_eq!(ids(&[("tokenizer_config.json", config)], "ab"), (vec![3, 4], 0, 9));
    let other = json!({"tokenizer_class": "Qwen2Tokenizer"});
    let files = [vocab, merges, ("tokenizer_config.json", other)];
    let message = Tokenizer::load(folder(&files).path()).unwrap_err().to_string();
    assert!(message.contains("Qwen2Tokenizer") && message.contains("save_pretrained"), "{message}");
}

#[test]
fn the_class_decides_who_says_whether_a_space_comes_first() {
    let file = |space: bool| whole(|json| json["pre_tokenizer"]["add_prefix_space"] = json!(space));
    let first = |space: bool, beside: (&str, Value)| {
        load(&[("tokenizer.json", file(space)), beside]).encode("ab").unwrap()[0] == 3
    };
    let config = |class: &str, space: Value| {
        ("tokenizer_config.json", json!({"tokenizer_class": class, "add_prefix_space": space}))
    };
    assert!(first(false, config("GPT2TokenizerFast", json!(true))));
    assert!(!first(true, config("GPT2Tokenizer", Value::Null)));
    assert!(first(true, config("PreTrainedTokenizerFast", json!(false))));
    assert!(!first(true, ("config.json", json!({"model_type": "gpt2"}))), "the model's class");
    assert!(first(true, ("x.json", json!({}))));
}

#[test]
fn documents_end_with_what_is_declared_and_by_guess_only_where_nothing_is() {
    let end = |json: Value, beside: &[(&str, Value)]| {
        let files = [&[("tokenizer.json", json)], beside].concat();
        Tokenizer::load(folder(&files).path()).map(|t| t.eot()).ok()
    };
    let with =
        |more: Value| whole(|json| json["added_tokens"].as_array_mut().unwrap().push(more.clone()));
    let eos = |token: &str| ("tokenizer_config.json", json!({"eos_token": token}));
    let plain = || with(added(9, "[END]", true));
    assert_eq!(end(plain(), &[eos("[END]")]), Some(9));
    assert_eq!(
        end(plain(), &[("special_tokens_map.json", json!({"eos_token": "[END]"}))]),
        Some(9)
    );
    assert_eq!(
        end(plain(), &[("config.json", json!({"model_type": "gpt2", "eos_token_id": [9, 0]}))]),
        Some(0),
        "GPT-2's class declares its own"
    );
    // A class's word for a token that is not there declares nothing.
    let other = whole(|json| {
        json["model"]["vocab"].as_object_mut().unwrap().remove(END_OF_TEXT);
        json["model"]["vocab"]["x"] = json!(0);
        json["added_tokens"] = json!([added(9, "[END]", true)]);
    });
    let model = ("config.json", json!({"model_type": "gpt2", "eos_token_id": 9}));
    assert_eq!(end(other, &[model]), Some(9));
    assert_eq!(
        end(plain(), &[("config.json", json!({"model_type": "x", "eos_token_id": [9, 0]}))]),
        Some(9)
    );
    assert_eq!(end(plain(), &[]), Some(0));
    // Markup that looks like an end mark is none.
    let markup = |special| whole(|json| json["added_tokens"] = json!([added(9, "</s>", special)]));
    assert_eq!((end(markup(false), &[]), end(markup(true), &[])), (None, Some(9)));
    let files = folder(&[("tokenizer.json", markup(false))]);
    let named = Tokenizer::load_ending_with(files.path(), "ab").unwrap();
    assert_eq!((named.eot(), named.end_token()), (4, "ab".into()));
    assert!(
        Tokenizer::load_ending_with(files.path(), "no").unwrap_err().to_string().contains("\"no\"")
    );
    // Where generation stops is the model's word.
    let model = [
        ("tokenizer.json", plain()),
        ("config.json", json!({"eos_token_id": 3})),
        ("generation_config.json", json!({"eos_token_id": [9, 1]})),
    ];
    assert_eq!(load(&model).end_ids(), [9, 1]);
    assert_eq!(load(&model[..2]).end_ids(), [3]);
    assert_eq!(load(&model[..1]).end_ids(), [0]);
}

#[test]
fn the_same_ids_are_the_same_tokenizer() {
    let of = |json: Value| Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    let base = of(whole(|_| ()));
    let (flag, step) = ("/added_tokens/0", |json: &Value| json["pre_tokenizer"].clone());
    for same in [
        whole(|json| json.pointer_mut(flag).unwrap()["normalized"] = json!(true)),
        whole(|json| json.pointer_mut(flag).unwrap()["special"] = json!(false)),
        whole(|json| {
            json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [step(json)]})
        }),
        whole(|json| json["normalizer"] = json!({"type": "Sequence", "normalizers": []})),
        whole(|json| json["model"]["dropout"] = json!(0.3)),
    ] {
        let json = whole(|j| *j = same.clone());
        let tokenizer =
            Tokenizer::load_ending_with(folder(&[("tokenizer.json", json)]).path(), END_OF_TEXT);
        let tokenizer = tokenizer.unwrap();
        assert_eq!(tokenizer.hash(), base.hash(), "{same}");
        // What an earlier version made with this very file is read, too.
        let earlier = Found::in_json(same.to_string().as_bytes()).unwrap().earlier;
        assert!(tokenizer.reads(&earlier));
    }
    let longer = of(whole(|json| {
        json["added_tokens"].as_array_mut().unwrap().push(added(9, "[PAD]", true))
    }));
    assert_ne!(longer.hash(), base.hash());
    assert!(longer.reads(&base.hash()) && !base.reads(&longer.hash()));
    assert_eq!((longer.shares_with(&base), base.shares_with(&longer)), (Some(9), Some(9)));
    for other in [
        whole(|json| json["pre_tokenizer"]["add_prefix_space"] = json!(true)),
        whole(|json| json.pointer_mut(flag).unwrap()["lstrip"] = json!(true)),
        whole(|json| json["model"]["merges"] = json!([])),
        whole(|json| json["normalizer"] = json!({"type": "NFC"})),
    ] {
        let tokenizer = of(other.clone());
        assert_eq!(
            (tokenizer.shares_with(&base), base.shares_with(&tokenizer)),
            (None, None),
            "{other}"
        );
    }
}

#[test]
fn chance_and_length_have_no_say() {
    let json = whole(|json| {
        json["model"]["dropout"] = json!(0.5);
        json["truncation"] =
            json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = json!({"strategy": {"Fixed": 80}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    });
    let tokenizer = load(&[("tokenizer.json", json)]);
    for _ in 0..20 {
        assert_eq!(tokenizer.encode(&"ab".repeat(20)).unwrap(), [4; 20]);
    }
}

#[test]
fn what_came_is_written_again() {
    let config = json!({
        "tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "pad_token": {"content": "[P]"},
        "unk_token": "<|endoftext|>", "additional_special_tokens": ["<|u|>"], "chat_template": "{{ x }}",
        "model_max_length": 77, "add_prefix_space": true, "name_or_path": "somewhere", "max_length": "NAN"
    });
    let text = config.to_string().replace("\"NAN\"", "NaN");
    let [vocab, merges] = pair();
    let source = folder(&[
        vocab,
        merges,
        ("tokenizer_config.json", text.into()),
        ("chat_template.jinja", "{{ y }}".into()),
    ]);
    let tokenizer = Tokenizer::load(source.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    tokenizer.save(out.path()).unwrap();
    let read = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(out.path().join(name)).unwrap()).unwrap()
    };
    let written = read("tokenizer_config.json");
    for (key, want) in [
        ("tokenizer_class", json!("PreTrainedTokenizerFast")),
        ("bos_token", json!("<s>")),
        ("eos_token", json!("</s>")),
        ("pad_token", json!("[P]")),
        ("additional_special_tokens", json!(["<|u|>"])),
        ("chat_template", json!("{{ x }}")),
        ("model_max_length", json!(77)),
        ("add_prefix_space", json!(true)),
        ("name_or_path", Value::Null),
        ("clean_up_tokenization_spaces", json!(false)),
    ] {
        assert_eq!(written[key], want, "{key}");
    }
    assert_eq!(fs::read_to_string(out.path().join("chat_template.jinja")).unwrap(), "{{ y }}");
    let again = Tokenizer::load(out.path()).unwrap();
    assert_eq!(
        (again.hash(), again.eot(), again.role("pad_token")),
        (tokenizer.hash(), tokenizer.eot(), tokenizer.role("pad_token"))
    );
    assert_eq!(again.encode("ab<|u|></s>").unwrap(), tokenizer.encode("ab<|u|></s>").unwrap());
    // In vocabulary form, too, where the scheme is GPT-2's.
    let json =
        whole(|json| json["added_tokens"].as_array_mut().unwrap().push(added(9, "<|u|>", true)));
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap().save(out.path()).unwrap();
    assert_eq!(read("added_tokens.json"), json!({"<|u|>": 9}));
    fs::remove_file(out.path().join("tokenizer.json")).unwrap();
    assert_eq!(Tokenizer::load(out.path()).unwrap().encode("a<|u|>").unwrap(), [1, 9]);
}

#[test]
fn flags_that_are_written_out_count_and_one_list_says_what_else_is_added() {
    let [vocab, merges] = pair();
    let decoder = |lstrip: bool| {
        json!({"0": {"content": "<|endoftext|>", "special": true},
            "9": {"content": "lamp", "lstrip": lstrip, "special": false}})
    };
    let beside = ("added_tokens.json", json!({"lamp": 9, "other": 10}));
    let ids = |config: Value, with: &[(&str, Value)]| {
        let files = [with, &[("tokenizer_config.json", config), beside.clone()]].concat();
        load(&files).encode("a lamp").unwrap()
    };
    let as_pair = [vocab, merges];
    let file = [("tokenizer.json", whole(|_| ()))];
    for with in [&as_pair[..], &file[..]] {
        // The space goes with the token, or stays.
        assert_eq!(ids(json!({"added_tokens_decoder": decoder(true)}), with), [1, 9]);
        assert_eq!(ids(json!({"added_tokens_decoder": decoder(false)}), with), [1, 3, 9]);
        assert_eq!(ids(json!({}), with), [1, 3, 9], "added_tokens.json alone");
    }
    let split = [
        ("tokenizer.json", whole(|_| ())),
        ("tokenizer_config.json", json!({"split_special_tokens": true})),
    ];
    let message = Tokenizer::load(folder(&split).path()).unwrap_err().to_string();
    assert!(message.contains("split_special_tokens"), "{message}");
    let roberta = ("tokenizer_config.json", json!({"tokenizer_class": "RobertaTokenizer"}));
    let own = ("added_tokens.json", json!({"</s>": 9, "<mask>": 10}));
    let tokenizer = load(&[as_pair[0].clone(), as_pair[1].clone(), roberta, own]);
    assert_eq!((tokenizer.end_token(), tokenizer.role("pad_token")), ("</s>".into(), None));
    assert_eq!(tokenizer.encode("a</s>").unwrap(), [1, 9]);
}

#[test]
fn where_added_tokens_overlap_their_flags_count_and_words_do_not_come_and_go() {
    let with = |normalized: bool, special: bool, words: [&str; 2]| {
        let json = whole(|json| {
            for (id, word) in (9..).zip(words) {
                let mut token = added(id, word, special);
                token["normalized"] = json!(normalized && id == 10);
                json["added_tokens"].as_array_mut().unwrap().push(token);
            }
        });
        Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
    };
    assert_eq!(
        with(true, false, ["lamp", "key"]).hash(),
        with(false, false, ["lamp", "key"]).hash()
    );
    for words in [["lamp", "lamp's"], ["lamp", "amps"]] {
        assert_ne!(with(true, false, words).hash(), with(false, false, words).hash(), "{words:?}");
    }
    let base = Tokenizer::from_json(whole(|_| ()).to_string().as_bytes()).unwrap();
    assert!(with(false, true, ["[P]", "[Q]"]).reads(&base.hash()));
    assert!(!with(false, false, ["lamp", "key"]).reads(&base.hash()), "a word, which texts have");
}

#[test]
fn templates_and_lists_are_written_where_both_versions_of_transformers_read_them() {
    let config = json!({"extra_special_tokens": ["<|u|>"], "additional_special_tokens": ["<|v|>"]});
    let source = folder(&[
        ("tokenizer.json", whole(|_| ())),
        ("tokenizer_config.json", config),
        ("chat_template.jinja", "d".into()),
    ]);
    fs::create_dir(source.path().join("additional_chat_templates")).unwrap();
    fs::write(source.path().join("additional_chat_templates/tool.jinja"), "t").unwrap();
    let out = tempfile::tempdir().unwrap();
    Tokenizer::load(source.path()).unwrap().save(out.path()).unwrap();
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let said: Value =
            serde_json::from_slice(&fs::read(out.path().join(name)).unwrap()).unwrap();
        assert_eq!(said["extra_special_tokens"], Value::Null, "{name}");
        assert_eq!(said["additional_special_tokens"], json!(["<|v|>", "<|u|>"]), "{name}");
        if name == "tokenizer_config.json" {
            let want =
                json!([{"name": "default", "template": "d"}, {"name": "tool", "template": "t"}]);
            assert_eq!(said["chat_template"], want);
        }
    }
    assert!(!out.path().join("chat_template.jinja").exists());
}

#[test]
fn a_text_that_begins_with_bos_by_config_does_so_in_what_is_written_and_not_in_data() {
    let [vocab, merges] = pair();
    let config = json!({"tokenizer_class": "GPT2Tokenizer", "add_bos_token": true});
    let tokenizer = load(&[vocab, merges, ("tokenizer_config.json", config)]);
    assert_eq!(tokenizer.encode("ab").unwrap(), [4]);
    assert_eq!(tokenizer.encode_prompt("ab").unwrap(), [0, 4]);
    let out = tempfile::tempdir().unwrap();
    tokenizer.save(out.path()).unwrap();
    let written = tokenizers::Tokenizer::from_file(out.path().join("tokenizer.json")).unwrap();
    assert_eq!(written.encode("ab", true).unwrap().get_ids(), [0, 4]);
    assert_eq!(Tokenizer::load(out.path()).unwrap().hash(), tokenizer.hash());
}

/// A template that puts some tokens around a text.
fn template(before: &[(&str, u32)], after: &[(&str, u32)]) -> Value {
    let token = |(name, _): &(&str, u32)| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Value> =
        before.iter().map(token).chain([text]).chain(after.iter().map(token)).collect();
    let names = before.iter().chain(after);
    let special: Map<String, Value> = names
        .map(|(name, id)| (name.to_string(), json!({"id": name, "ids": [id], "tokens": [name]})))
        .collect();
    let pair = [&single[..], &[json!({"Sequence": {"id": "B", "type_id": 0}})]].concat();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special})
}

/// The small tokenizer with `<s>` (9) and `</s>` (10), and a template.
fn with_template(post_processor: Value) -> Value {
    whole(|json| {
        let tokens = json["added_tokens"].as_array_mut().unwrap();
        tokens.extend([added(9, "<s>", true), added(10, "</s>", true)]);
        json["post_processor"] = post_processor.clone();
    })
}

#[test]
fn a_text_begins_as_the_template_or_the_config_says() {
    let bos = template(&[("<s>", 9)], &[]);
    let begin = |post: &Value, config: Value| {
        let mut config = config;
        config["bos_token"] = json!("<s>");
        config["eos_token"] = json!("</s>");
        let files =
            [("tokenizer.json", with_template(post.clone())), ("tokenizer_config.json", config)];
        let tokenizer = load(&files);
        // What is written says it to every reader.
        let out = tempfile::tempdir().unwrap();
        tokenizer.save(out.path()).unwrap();
        let written = tokenizers::Tokenizer::from_file(out.path().join("tokenizer.json")).unwrap();
        assert_eq!(
            written.encode("ab", true).unwrap().get_ids(),
            tokenizer.encode_prompt("ab").unwrap()
        );
        assert_eq!(Tokenizer::load(out.path()).unwrap().begin(), tokenizer.begin());
        assert_eq!(tokenizer.encode("ab").unwrap(), [4]);
        tokenizer.begin().to_vec()
    };
    let class = |class: &str, says: Value| json!({"tokenizer_class": class, "add_bos_token": says});
    let none = Value::Null;
    // transformers 5 reads the template alone, 4.57 the word of the config for some classes.
    assert_eq!(begin(&bos, class("PreTrainedTokenizerFast", Value::Null)), [9]);
    assert_eq!(begin(&bos, class("PreTrainedTokenizerFast", json!(false))), [9]);
    assert_eq!(begin(&none, class("PreTrainedTokenizerFast", json!(true))), [0u32; 0]);
    for name in ["LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer"] {
        assert_eq!(begin(&none, class(name, json!(true))), [9], "{name}");
        assert_eq!(begin(&bos, class(name, json!(true))), [9], "{name}");
        assert_eq!(begin(&bos, class(name, json!(false))), [0u32; 0], "{name}");
        assert_eq!(begin(&bos, class(name, Value::Null)), [9], "{name}");
        assert_eq!(begin(&none, class(name, Value::Null)), [0u32; 0], "{name}");
    }
    // Where nothing is said these two do not read the template, in both versions.
    for template in [&bos, &none] {
        assert_eq!(begin(template, class("CodeLlamaTokenizer", Value::Null)), [9]);
        assert_eq!(begin(template, class("GPTNeoXTokenizer", Value::Null)), [0u32; 0]);
        assert_eq!(begin(template, class("GPTNeoXTokenizer", json!(true))), [9]);
    }
    // GPT-2's class reads the word only where it makes the template itself, from a pair.
    assert_eq!(begin(&none, class("GPT2Tokenizer", json!(true))), [0u32; 0]);
    assert_eq!(begin(&bos, class("GPT2Tokenizer", json!(false))), [9]);
}

#[test]
fn a_prompt_that_begins_with_bos_gets_no_second() {
    let of = |json: Value| {
        let config = json!({"bos_token": "<s>", "eos_token": "</s>"});
        load(&[("tokenizer.json", json), ("tokenizer_config.json", config)])
    };
    let tokenizer = of(with_template(template(&[("<s>", 9)], &[("</s>", 10)])));
    let prompt = |text: &str| tokenizer.encode_prompt(text).unwrap();
    assert_eq!(prompt("ab"), [9, 4, 10]);
    assert_eq!(prompt("<s>ab"), [9, 4, 10]);
    assert_eq!(prompt("ab<s>"), [9, 4, 9, 10]);
    assert_eq!(prompt(""), [9, 10]);
    assert_eq!((tokenizer.begin(), tokenizer.document_begin()), (&[9][..], &[9][..]));
    // One token between documents says both.
    let one = of(with_template(template(&[("</s>", 10)], &[])));
    assert_eq!((one.begin(), one.document_begin()), (&[10][..], &[][..]));
    // A mark in the text is a token without bytes.
    assert_eq!(tokenizer.source_bytes("<s>ab</s>", &[9, 4, 10]), 2);
    let json = with_template(template(&[("<s>", 77)], &[]));
    let message = Tokenizer::from_json(json.to_string().as_bytes()).unwrap_err().to_string();
    assert!(message.contains("77") && message.contains("post_processor"), "{message}");
}

#[test]
fn ids_without_a_token_are_known() {
    let of = |json: Value| Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    let gaps = |json: Value| {
        let tokenizer = of(json);
        (tokenizer.vocab_size(), tokenizer.gaps().iter().cloned().flatten().collect::<Vec<_>>())
    };
    assert_eq!(gaps(whole(|_| ())), (9, vec![]));
    let with = |id: u32| whole(|json| json["model"]["vocab"]["x"] = json!(id));
    assert_eq!(gaps(with(9)), (10, vec![]));
    assert_eq!(gaps(with(12)), (13, vec![9, 10, 11]));
}
