//! A model of a run is read only if its files are as they were written, whatever it is called by.

use crate::support::place::{Place, TINY, copy_folder, data, pretrain};
use std::fs;
use std::path::Path;

/// A text, and a run of four steps with checkpoints at 2 and 4, of which `model/` stays if it is `finished`.
fn run(place: &Place, data: &str, finished: bool) {
    fs::write(place.path("text.txt"), "A pear and a plum.").unwrap();
    place.json(&pretrain(data, &["--steps", "4", "--set", "checkpoint.every=2", "--out", "run"]));
    if !finished {
        fs::remove_dir_all(place.path("run/model")).unwrap();
    }
}

fn zero(file: &Path) {
    let length = fs::metadata(file).unwrap().len();
    fs::write(file, vec![0; length as usize]).unwrap();
}

/// One byte of the weights or of the tokenizer, where nothing but a hash tells.
fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let at = bytes.len() - 1;
    bytes[at] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// The verbs that read a model, of the model `name`.
fn readers<'a>(data: &'a str, name: &'a str) -> [Vec<&'a str>; 6] {
    let train = |verb: &'a str, flag: &'a str| {
        let own = [verb, "--data", data, flag, name, "--steps", "1", "--out", "out"];
        let shape = if flag == "--student" { &TINY[..0] } else { &TINY[..] };
        [&own[..], shape, &["--set", "data.context=16", "--set", "data.rows=4"]].concat()
    };
    [
        vec!["eval", name, "--data", data],
        vec!["generate", name, "--prompt", "a", "--max-tokens", "2"],
        vec!["inspect", name, "--text", "text.txt", "--out", "page.html"],
        vec!["export", name, "--out", "out"],
        train("distill", "--teacher"),
        train("pretrain", "--student"),
    ]
}

fn each_reader(place: &Place, data: &str, name: &str, check: impl Fn(i32, &str, &[&str])) {
    for args in readers(data, name) {
        let (code, _, stderr) = place.run(&args);
        check(code, &stderr, &args);
        let _ = fs::remove_dir_all(place.path("out"));
    }
}

#[test]
fn a_damaged_model_is_named_by_every_reader() {
    let place = Place::new();
    let data = data();
    run(&place, &data, true);
    copy_folder(&place.path("run/checkpoints/step-00000002"), &place.path("copy"));
    zero(&place.path("run/model/model.safetensors"));
    flip(&place.path("run/checkpoints/step-00000004/model.safetensors"));
    flip(&place.path("copy/tokenizer.json"));
    for (name, file, other) in [
        ("run", "model.safetensors", Some("or use run/checkpoints/step-00000004")),
        ("run/model", "model.safetensors", None),
        (
            "run/checkpoints/step-00000004",
            "model.safetensors",
            Some("or use run/checkpoints/step-00000002"),
        ),
        ("run/last", "model.safetensors", None),
        ("copy", "tokenizer.json", Some("if it was changed on purpose, remove manifest.json")),
    ] {
        each_reader(&place, &data, name, |code, said, args| {
            let names = said.contains(&format!("{file} is damaged")) && said.contains("SHA-256");
            let other = other.is_none_or(|other| said.contains(other));
            assert!(code == 3 && names && other, "{args:?}: {code} {said}");
        });
    }
    // A tokenizer is a part of a model, too, for whoever wants no more.
    let prepare = ["prepare", "--input", "text.txt", "--tokenizer", "copy", "--out", "d"];
    place.refused(&prepare, 3, &["tokenizer.json is damaged", "SHA-256"]);
    flip(&place.path("copy/tokenizer.json"));
    // The moments are no part of a model, and another program's manifest says nothing of ours.
    let two = "run/checkpoints/step-00000002";
    fs::remove_file(place.path(two).join("adam_m.moments")).unwrap();
    fs::write(place.path("copy/manifest.json"), "{\"files\": []}").unwrap();
    for name in [two, "copy"] {
        let (code, _, said) = place.run(&["eval", name, "--data", &data]);
        assert_eq!(code, 0, "{name}: {said}");
    }
}

#[test]
fn a_run_whose_newest_checkpoint_is_damaged_is_the_one_before() {
    let place = Place::new();
    let data = data();
    run(&place, &data, false);
    let nll = |name: &str| place.json(&["eval", name, "--data", &data])["nll"].as_f64().unwrap();
    let (before, newest) = (nll("run/checkpoints/step-00000002"), nll("run"));
    assert_ne!(before, newest);
    zero(&place.path("run/checkpoints/step-00000004/model.safetensors"));
    for name in ["run", "run/checkpoints"] {
        assert_eq!(nll(name), before, "{name}");
        each_reader(&place, &data, name, |code, said, args| {
            let warned = said.contains("warning: checkpoint run/checkpoints/step-00000004: ")
                && said.contains("model.safetensors is damaged")
                && said.contains("the one before is used: run/checkpoints/step-00000002");
            assert!(code == 0 && warned, "{args:?}: {code} {said}");
        });
    }
    fs::remove_file(place.path("run/checkpoints/step-00000002/config.json")).unwrap();
    place.refused(&["eval", "run", "--data", &data], 3, &["no good checkpoint left", "0004"]);
    fs::remove_file(place.path("run/checkpoints/step-00000004/config.json")).unwrap();
    place.refused(&["eval", "run", "--data", &data], 3, &[]);
}
