//! Whole runs of decoders other than GPT-2: trained, stopped, distilled, measured and exported by the
//! binary, with every backward.

use crate::support::place::{Place, copy_data};
use crate::support::tiny;
use candle_core::Device;
use eslm_kd::model::Gpt2;
use eslm_kd::store::weights::{SaveOptions, SpecialIds, parse_config, save_model};
use serde_json::{Value, json};
use std::fs;

/// A student of Llama's kind, small: two queries' heads on one of keys.
const LLAMA: [&str; 20] = [
    "--student",
    "llama-30m",
    "--set",
    "shape.n_layer=2",
    "--set",
    "shape.n_head=6",
    "--set",
    "shape.n_embd=24",
    "--set",
    "shape.n_positions=16",
    "--set",
    "data.context=16",
    "--set",
    "data.rows=4",
    "--set",
    "log.every=1",
    "--set",
    "machine.device=cpu",
    "--lr",
    "0.01",
];

fn run(place: &Place, verb: &[&str], more: &[&str], out: &str) -> Value {
    place.json(&[verb, &["--data", "data"], &LLAMA, more, &["--out", out]].concat())
}

#[test]
fn a_llama_is_trained_resumed_and_read_again() {
    let place = Place::new();
    copy_data(&place.path("data"));
    let whole = run(&place, &["pretrain"], &["--steps", "6"], "whole");
    assert!(whole["val_loss"].as_f64().unwrap() < 5.7, "{whole}"); // ln 320 = 5.77
    // Stopped and gone on with: the same weights.
    run(&place, &["pretrain"], &["--steps", "3", "--set", "schedule.kind=constant"], "part");
    place.json(&["pretrain", "--resume", "--out", "part", "--steps", "6"]);
    run(&place, &["pretrain"], &["--steps", "6", "--set", "schedule.kind=constant"], "once");
    let weights = |run: &str| fs::read(place.path(run).join("model/model.safetensors")).unwrap();
    assert!(weights("part") == weights("once"));
    // What is exported is the same model, under Llama's names.
    place.json(&["export", "whole", "--out", "out"]);
    let config = fs::read_to_string(place.path("out/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(
        (&config["model_type"], &config["num_key_value_heads"]),
        (&"llama".into(), &2.into())
    );
    let nll = |model: &str| place.json(&["eval", model, "--data", "data"])["nll"].clone();
    assert_eq!(nll("out"), nll("whole"));
    let said = place.json(&["generate", "out", "--prompt", "One", "--max-tokens", "30"]);
    assert_eq!(said["tokens"], 30);
    let file = |model: &'static str| ["export", model, "--format", "gguf", "--out", "m.gguf"];
    place.json(&file("whole"));
    let written = fs::read(place.path("m.gguf")).unwrap();
    // What llama.cpp does not compute in this architecture.
    let text = config.to_string().replace("\"silu\"", "\"gelu\"");
    fs::write(place.path("out/config.json"), text).unwrap();
    place.refused(&file("out"), 2, &["hidden_act must be silu", "found gelu"]);
    assert!(fs::read(place.path("m.gguf")).unwrap() == written);
}

#[test]
fn a_llama_teaches_a_llama_and_a_gpt2_with_every_backward() {
    let place = Place::new();
    copy_data(&place.path("data"));
    run(&place, &["pretrain"], &["--steps", "3"], "teacher");
    let distill = ["distill", "--teacher", "teacher"];
    let select =
        ["--score", "kl", "--alpha", "0.5", "--set", "select.burn_in=0", "--set", "select.ramp=0"];
    let mut losses = Vec::new();
    for backward in ["exact", "dense", "sparse", "sampled"] {
        let set = format!("machine.backward={backward}");
        let more = [&select[..], &["--steps", "4", "--set", &set]].concat();
        let done = run(&place, &distill, &more, backward);
        let metrics = place.metrics(backward);
        assert!(metrics.iter().any(|line| line["kept_share"].as_f64() == Some(0.5)), "{backward}");
        losses.push(done["val_loss"].as_f64().unwrap());
    }
    assert!(
        (losses[0] - losses[1]).abs() < 1e-4,
        "exact and dense are the same numbers: {losses:?}"
    );
    assert!(losses.iter().all(|loss| *loss < 5.77), "{losses:?}");
    // Its blocks as a student's first weights, and a student of another family.
    let layers = ["--student", "llama-30m", "--set", "init=teacher-layers", "--set", "layers=[1]"];
    let common =
        ["--data", "data", "--set", "data.context=16", "--set", "data.rows=4", "--steps", "2"];
    place.json(&[&distill[..], &common, &layers, &["--out", "layers"]].concat());
    let tiny = [
        "--student",
        "tiny",
        "--set",
        "shape.n_layer=1",
        "--set",
        "shape.n_embd=8",
        "--set",
        "shape.n_head=2",
    ];
    place.json(&[&distill[..], &common, &tiny, &["--out", "gpt2"]].concat());
    let page =
        ["inspect", "layers", "--text", "page.txt", "--teacher", "teacher", "--out", "page.html"];
    fs::write(place.path("page.txt"), "One fine day the fox ran away.\n".repeat(5)).unwrap();
    assert_eq!(place.run(&page).0, 0);
    // The early exit, recomputed activations and products in bf16 where the chip has them.
    let exit = ["--steps", "2", "--set", "select.alpha_seq=0.5", "--set", "machine.micro_rows=4"];
    run(&place, &["pretrain", "--method", "eslm"], &exit, "exit");
    run(
        &place,
        &["pretrain"],
        &["--steps", "2", "--set", "machine.activations=recompute"],
        "again",
    );
}

/// A folder with random weights of what `config` says, and the tokenizer of the small data.
fn stored(place: &Place, name: &str, config: &Value) {
    let shape = parse_config(config.to_string().as_bytes()).unwrap();
    let model = Gpt2::scratch(shape, 5, &Device::Cpu).unwrap();
    let tokenizer = tiny::world().join("tokenizer");
    let save = SaveOptions { ids: SpecialIds::default(), tokenizer: Some(&tokenizer) };
    fs::create_dir_all(place.path(name)).unwrap();
    save_model(&place.path(name), &model.config, &model.params, &save).unwrap();
}

#[test]
fn models_of_every_other_family_are_trained_teach_and_are_exported() {
    let place = Place::new();
    copy_data(&place.path("data"));
    let sizes = json!({
        "vocab_size": tiny::VOCAB, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 40,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
    });
    let families = [
        json!({"model_type": "mistral", "sliding_window": 5}),
        json!({"model_type": "olmo2"}),
        json!({
            "model_type": "smollm3", "no_rope_layers": [1, 0], "use_sliding_window": true,
            "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"],
        }),
        json!({"model_type": "gpt_neox", "rotary_pct": 0.5}),
    ];
    for own in families {
        let mut config = sizes.clone();
        config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        let family = own["model_type"].as_str().unwrap();
        stored(&place, family, &config);
        let data = ["--data", "data", "--set", "data.context=16", "--set", "data.rows=4"];
        let common = [&data[..], &["--lr", "0.01", "--set", "schedule.kind=constant"]].concat();
        let run = |verb: &[&str], more: &[&str], out: &str| {
            let out = format!("{family}-{out}");
            place.json(&[verb, &common, more, &["--out", &out]].concat())
        };
        let loss = |done: &Value| done["val_loss"].as_f64().unwrap();
        let pretrain = ["pretrain", "--student", family];
        let done = run(&pretrain, &["--steps", "6"], "once");
        assert!(loss(&done) < 5.7, "{family}: {done}"); // ln 320 = 5.77
        // Stopped and gone on with: the same weights.
        run(&pretrain, &["--steps", "3"], "part");
        place.json(&["pretrain", "--resume", "--out", &format!("{family}-part"), "--steps", "6"]);
        let weights = |run: &str| {
            fs::read(place.path(&format!("{family}-{run}")).join("model/model.safetensors"))
                .unwrap()
        };
        assert!(weights("part") == weights("once"), "{family}");
        // It teaches, on selected tokens, with a backward that leaves the others out.
        let (once, out) = (format!("{family}-once"), format!("{family}-out"));
        let select = ["--score", "kl", "--alpha", "0.5", "--set", "machine.backward=sparse"];
        let few = ["--steps", "3", "--set", "select.burn_in=0", "--set", "select.ramp=0"];
        let distill = ["distill", "--teacher", &once, "--student", family];
        let student = run(&distill, &[&select[..], &few].concat(), "student");
        assert!(loss(&student).is_finite());
        // What is exported is the same model, under its family's keys.
        place.json(&["export", &once, "--out", &out]);
        let written = fs::read_to_string(place.path(&out).join("config.json")).unwrap();
        let written: Value = serde_json::from_str(&written).unwrap();
        for (key, said) in own.as_object().unwrap() {
            assert_eq!(&written[key], said, "{family}: {key}");
        }
        let nll = |model: &str| place.json(&["eval", model, "--data", "data"])["nll"].clone();
        assert_eq!(nll(&out), nll(&once), "{family}");
        let said = place.json(&["generate", &out, "--prompt", "One", "--max-tokens", "20"]);
        assert_eq!(said["tokens"], 20, "{family}");
    }
}
