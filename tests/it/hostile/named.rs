//! What a refusal must say: the tensor, the key, the way out.

use super::samples::*;
use crate::support::place::{Place, data, pretrain};
use candle_core::Device;
use eslm_kd::ErrorKind;
use eslm_kd::config::{self, Overrides, RunFile};
use eslm_kd::data::tokenizer::Tokenizer;
use eslm_kd::data::tokens::TokenFile;
use eslm_kd::store::checkpoint::Manifest;
use eslm_kd::store::weights::{load_model, read_config};
use serde_json::Value;
use std::fs;

#[test]
fn numbers_that_are_not_finite_are_reported_with_their_tensor() {
    let place = folder();
    let dir = place.path().join("m");
    model(&dir);
    let path = dir.join("model.safetensors");
    let good = fs::read(&path).unwrap();
    for (value, text) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let mut bytes = good.clone();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&value.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        let message = refused(load_model(&dir, &Device::Cpu), "/m");
        assert!(
            message.contains("tensor wte.weight") || message.contains("tensor wpe.weight"),
            "{message}"
        );
        assert!(message.contains(&format!("holds {text} at flat index")), "{message}");
    }

    for (first, second, file) in
        [(f32::NAN, 0.0, "adam_m.moments"), (0.0, f32::INFINITY, "adam_v.moments")]
    {
        let run = place.path().join(file);
        let checkpoint = checkpoint_of(&run, first, second);
        let message = refused(load_checkpoint(&checkpoint), file);
        assert!(
            message.contains("tensor wte.weight") && message.contains("expected finite numbers"),
            "{message}"
        );
    }
    load_checkpoint(&checkpoint_of(&place.path().join("run"), 1.0, 1.0)).unwrap();
}

#[test]
fn pickles_in_a_local_folder_are_refused_with_the_way_to_convert_them() {
    let place = folder();
    let dir = place.path().join("m");
    model(&dir);
    let weights = dir.join("model.safetensors");
    fs::remove_file(&weights).unwrap();
    fs::write(dir.join("training_args.bin"), "").unwrap();
    assert!(refused(load_model(&dir, &Device::Cpu), "/m").contains("found neither"));
    for name in [
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model.bin.index.json",
        "gpt2.pt",
    ] {
        fs::write(dir.join(name), "").unwrap();
        let message = refused(load_model(&dir, &Device::Cpu), name);
        assert!(
            message.contains("never read") && message.contains("save_pretrained("),
            "{message}"
        );
        fs::remove_file(dir.join(name)).unwrap();
    }
    // Under a name that promises something else.
    for bytes in [&b"PK\x03\x04archive/data.pkl"[..], b"\x80\x02}q\x00(X\x06", b"\x80\x04\x95\x10"]
    {
        fs::write(&weights, bytes).unwrap();
        let message = refused(load_model(&dir, &Device::Cpu), "model.safetensors");
        let known = bytes[2] != 0x95 || message.contains("not a valid safetensors");
        assert!(
            known
                && (bytes[2] == 0x95
                    || message.contains("is a pickle") && message.contains("save_pretrained("))
        );
    }
}

#[test]
fn unknown_keys_are_errors_with_a_suggestion() {
    let load = |text: &str| {
        let file = RunFile { name: "run.toml".into(), text: text.into() };
        let error = config::load(Some(&file), &Overrides::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        refused::<()>(Err(error), "run.toml")
    };
    let message = load("[select]\nalhpa = 0.1\n");
    assert!(
        message.contains("run.toml:2: unknown key \"select.alhpa\"; did you mean"),
        "{message}"
    );
    assert!(message.contains("\"select.alpha\""), "{message}");
    assert!(load("[selct]\nalpha = 0.1\n").contains("did you mean [select]?"));
    // A name of a megabyte is neither compared with every key nor repeated.
    let long = "x".repeat(1 << 20);
    assert!(load(&format!("{long} = 1\n")).contains("bytes left out"));
    assert!(load(&format!("student = 1\nmethod = \"{long}\"\n")).len() < 5000);
}

#[test]
fn folders_empty_files_and_foreign_bytes_where_a_file_is_expected() {
    let place = folder();
    let at = |name: &str| place.path().join(name);
    let each = |what: &str| {
        fair(TokenFile::open(&at("t.bin")), "t.bin").unwrap();
        assert!(TokenFile::open(&at("t.bin")).is_err(), "{what}");
        refused(Tokenizer::load(&at("tokenizer.json")), "tokenizer.json");
        refused(read_config(&at("config.json")), "config.json");
        refused(Manifest::read(place.path()), "manifest.json");
        for name in ["a.parquet", "a.txt.gz", "a.jsonl.zst"] {
            refused(read_documents(&at(name)), name);
        }
        refused(load_model(&at("m"), &Device::Cpu), "model.safetensors");
    };
    model(&at("m"));
    fs::remove_file(at("m/model.safetensors")).unwrap();
    let names = [
        "t.bin",
        "tokenizer.json",
        "config.json",
        "manifest.json",
        "a.parquet",
        "a.txt.gz",
        "a.jsonl.zst",
        "m/model.safetensors",
    ];
    for bytes in [
        &b""[..],
        b"\0\0\0\0",
        b"\xff\xfe{\0}\0",
        b"{",
        b"[]",
        b"\"\x1b[2J\"",
        b"version https://git-lfs",
    ] {
        names.iter().for_each(|name| fs::write(at(name), bytes).unwrap());
        each(&format!("{bytes:?}"));
    }
    names.iter().for_each(|name| {
        fs::remove_file(at(name)).unwrap();
        fs::create_dir(at(name)).unwrap();
    });
    each("folders");
}

#[test]
fn numbers_of_absurd_size_are_refused_before_anything_is_computed() {
    let place = folder();
    let path = place.path().join("config.json");
    for text in [
        r#""n_embd":1000000000"#,
        r#""n_layer":1000000000000"#,
        r#""n_embd":9223372036854775807"#,
        r#""n_embd":16777216,"n_layer":16777216,"n_head":1"#,
        r#""n_embd":12,"n_inner":18446744073709551615"#,
        r#""vocab_size":18446744073709551616"#,
    ] {
        fs::write(&path, format!(r#"{{"model_type":"gpt2",{text}}}"#)).unwrap();
        refused(read_config(&path), "config.json");
    }
}

/// Two that the tokenizers crate answers with a panic of its own.
#[test]
fn a_tokenizer_that_its_library_panics_on_is_an_error() {
    let place = folder();
    let path = place.path().join("tokenizer.json");
    let good = String::from_utf8(tokenizer()).unwrap();
    for normalizer in
        [r#"{"type":"Precompiled","precompiled_charsmap":"AAQAAAAA"}"#, r#"{"type":"Precompiled"}"#]
    {
        let bad =
            good.replacen("\"normalizer\": null", &format!("\"normalizer\": {normalizer}"), 1);
        assert_ne!(bad, good);
        fs::write(&path, bad).unwrap();
        assert!(
            refused(Tokenizer::load(&path), "tokenizer.json")
                .contains("damaged in a way its parser did not expect")
        );
    }
}

#[test]
fn a_memory_of_selection_that_no_run_has_is_refused() {
    let place = Place::new();
    let data = data();
    let carried = [
        "--steps",
        "4",
        "--out",
        "run",
        "--set",
        "select.pool=carried",
        "--set",
        "select.burn_in=1",
    ];
    let more = ["--set", "select.ramp=0", "--set", "method=eslm", "--set", "checkpoint.every=2"];
    let args = pretrain(&data, &[&carried[..], &more].concat());
    place.json(&args);
    fs::remove_dir_all(place.path("run/checkpoints/step-00000004")).unwrap();
    fs::remove_dir_all(place.path("run/model")).unwrap();
    let checkpoint = place.path("run/checkpoints/step-00000002");
    let mut state: Value =
        serde_json::from_slice(&fs::read(checkpoint.join("state.json")).unwrap()).unwrap();
    let good = state.to_string();
    assert!(state["selector"]["carried"]["threshold"].is_f64(), "{state}");
    state["selector"]["carried"]["threshold"] = 1e300.into();
    replace_in_checkpoint(&checkpoint, "state.json", state.to_string().as_bytes());
    let resume = [&args[..], &["--resume"]].concat();
    place.refused(
        &resume,
        3,
        &["step-00000002/state.json", "selector.carried is", "remove this checkpoint"],
    );
    replace_in_checkpoint(&checkpoint, "state.json", good.as_bytes());
    place.json(&resume);
}
