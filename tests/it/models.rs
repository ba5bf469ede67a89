//! The verbs that take a model: eval, generate, export, through the built binary.

use crate::support::place::{Place, TINY, copy_data, data, pretrain, without_settings};
use candle_core::Device;
use eslm_kd::data::tokenizer::Tokenizer;
use eslm_kd::data::train_tokenizer::TrainOptions;
use eslm_kd::model::{Gpt2, Gpt2Config};
use eslm_kd::progress::Silent;
use eslm_kd::store::weights::{SaveOptions, SpecialIds, save_model};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A folder with `text.txt` and a run of a random model with a tokenizer.
struct World {
    root: TempDir,
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let text: String = (0..60)
            .map(|i| format!("Anna put {i} pears in the basket; höher than {}.\n", i * 7))
            .collect();
        let path = root.path().join("text.txt");
        std::fs::write(&path, &text).unwrap();
        let options = TrainOptions { vocab_size: 300, ..TrainOptions::default() };
        let tokenizer = Tokenizer::train(&[path], &options, &Silent).unwrap().0;
        let model = root.path().join("run/model");
        tokenizer.save(&model).unwrap();
        let config = Gpt2Config { initializer_range: 0.2, ..Gpt2Config::new(300, 32, 24, 2, 3) };
        let gpt2 = Gpt2::scratch(config, 1, &Device::Cpu).unwrap();
        let options = SaveOptions { ids: SpecialIds::of(&tokenizer), tokenizer: None };
        save_model(&model, &gpt2.config, &gpt2.params, &options).unwrap();
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Exit status, stdout, stderr of the binary, called inside the folder.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eslm-kd"));
        without_settings(&mut command);
        let out =
            command.args(args).current_dir(self.root.path()).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
    }

    fn json(&self, args: &[&str]) -> Value {
        let (code, stdout, stderr) = self.run(&[args, &["--json"]].concat());
        assert_eq!((code, stdout.lines().count()), (0, 1), "{stdout}{stderr}");
        serde_json::from_str(&stdout).unwrap()
    }

    fn refused(&self, args: &[&str], code: i32, message: &str) {
        let (found, stdout, stderr) = self.run(args);
        assert_eq!((found, stdout.as_str()), (code, ""), "{args:?}: {stderr}");
        assert!(stderr.contains(message), "{args:?}: {stderr}");
    }
}

#[test]
fn eval_prints_four_numbers_and_an_export_has_the_same() {
    let world = World::new();
    let found = world.json(&["eval", "run", "--data", "text.txt"]);
    let keys: Vec<&str> = found.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["tokens", "nll", "perplexity", "bits_per_byte"]);
    let number = |key: &str| found[key].as_f64().unwrap();
    let bytes = std::fs::metadata(world.path("text.txt")).unwrap().len() as f64;
    assert!((number("perplexity") - number("nll").exp()).abs() < 1e-9 * number("perplexity"));
    let bits = number("nll") * number("tokens") / 2f64.ln() / bytes;
    assert!((number("bits_per_byte") - bits).abs() < 1e-9 * bits);
    // Random weights: each of 300 tokens is about as likely as another, or worse.
    assert!(number("nll") > 5.0 && number("nll") < 12.0, "{found}");
    let other =
        world.json(&["eval", "run", "--data", "text.txt", "--stride", "5", "--context", "20"]);
    assert!(other["tokens"] == found["tokens"] && other["nll"] != found["nll"]);

    let exported = world.json(&["export", "run", "--out", "out"]);
    assert_eq!(
        (exported["out"].as_str(), exported["tokenizer"].as_bool()),
        (Some("out"), Some(true))
    );
    assert_eq!(world.json(&["eval", "out", "--data", "text.txt"]), found);
    let (code, stdout, _) = world.run(&["eval", "./out", "--data", "text.txt"]);
    assert!(code == 0 && stdout.contains("perplexity"), "{stdout}");
    let gguf = ["export", "run", "--format", "gguf", "--type", "q8_0", "--out"];
    let exported = world.json(&[&gguf[..], &["out.gguf"]].concat());
    let bytes = std::fs::read(world.path("out.gguf")).unwrap();
    assert!(bytes.starts_with(b"GGUF") && exported["bytes"] == bytes.len());
    world.refused(&[&gguf[..], &["out"]].concat(), 2, "is a folder");
    world.refused(&["export", "run", "--type", "f16", "--out", "new"], 2, "--format gguf");
    std::fs::write(world.path("out/notes.txt"), "mine").unwrap();
    world.refused(&["export", "run", "--out", "out"], 2, "notes.txt");
    assert_eq!(std::fs::read_to_string(world.path("out/notes.txt")).unwrap(), "mine");
}

#[test]
fn generate_continues_the_prompt_and_repeats_itself_for_the_same_seed() {
    let world = World::new();
    let base = ["generate", "run", "--prompt", "Anna put", "--max-tokens", "25"];
    fn with<'a>(base: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
        [base, more].concat()
    }
    // A seed with which the text does not end by itself.
    let whole = |seed: &&str| world.json(&with(&base, &["--seed", seed]))["tokens"] == 25;
    let seed = ["7", "8", "9", "10"]
        .into_iter()
        .find(whole)
        .expect("most texts are longer than 25 tokens");
    let (code, first, _) = world.run(&with(&base, &["--seed", seed]));
    assert!(code == 0 && first.starts_with("Anna put") && first.ends_with('\n'), "{first:?}");
    assert_eq!(world.run(&with(&base, &["--seed", seed])).1, first);
    assert_ne!(world.run(&with(&base, &["--seed", "11"])).1, first);
    let json = world.json(&with(&base, &["--seed", seed]));
    assert_eq!(first, format!("Anna put{}\n", json["text"].as_str().unwrap()));
    assert_eq!((json["prompt"].as_str(), json["tokens"].as_u64()), (Some("Anna put"), Some(25)));
    assert_eq!(json["stop"], "max-tokens");
    let greedy = |seed| world.run(&with(&base, &["--temperature", "0", "--seed", seed])).1;
    assert_eq!(greedy("1"), greedy("2"));
    assert_eq!(world.run(&with(&base, &["--top-k", "1", "--seed", "3"])).1, greedy("1"));
    // Beyond the 32 positions, and from nothing.
    assert_eq!(
        world.json(&["generate", "run", "--max-tokens", "90", "--temperature", "0"])["prompt_tokens"],
        1
    );
}

#[test]
fn mistakes_end_with_a_message_and_their_status() {
    let world = World::new();
    world.refused(&["eval", "run", "--data", "text.txt", "--stride", "33"], 2, "stride");
    world.refused(&["eval", "run", "--data", "text.txt", "--context", "33"], 2, "32 positions");
    world.refused(&["eval", "run", "--data", "nowhere.txt"], 3, "nowhere.txt");
    world.refused(&["eval", "nowhere", "--data", "text.txt"], 3, "nowhere");
    world.refused(&["eval", "run", "--data", "run"], 3, "prepare");
    world.refused(&["generate", "tiny"], 2, "without weights");
    world.refused(&["eval", "run", "--data", "text.txt", "--device", "cuda:99"], 2, "CUDA");
    world.refused(&["export", "gpt2", "--out", "out"], 3, "gpt2");
    for name in ["tokenizer.json", "vocab.json"] {
        std::fs::remove_file(world.path("run/model").join(name)).unwrap();
    }
    world.refused(&["eval", "run", "--data", "text.txt"], 3, "no tokenizer");
    std::fs::remove_file(world.path("run/model/model.safetensors")).unwrap();
    world.refused(&["generate", "run"], 3, "model.safetensors");
    assert!(!Path::new(&world.path("out")).exists());
}

#[test]
fn a_plan_finds_models_by_the_rules_of_a_run() {
    let place = Place::new();
    let data = data();
    place.json(&pretrain(&data, &["--steps", "2", "--out", "teacher"]));
    let plan = |teacher: &str, more: &[&str]| {
        let args = ["plan", "--data", &data, "--teacher", teacher, "--set", "data.context=16"];
        place.json(&[&args[..], more].concat())
    };
    let step = "teacher/checkpoints/step-00000002";
    for name in
        ["teacher", "teacher/model", "teacher/best", "teacher/last", "teacher/checkpoints", step]
    {
        let planned = plan(name, &["--student", "tiny"]);
        assert_eq!(planned["teacher"]["name"], name);
        let shape = &planned["teacher"]["shape"];
        assert_eq!(
            (&shape["n_layer"], &shape["n_embd"]),
            (&2.into(), &16.into()),
            "{name}: {planned}"
        );
        let stored = plan("teacher", &["--student", name]);
        assert_eq!(stored["student"]["parameters"], planned["teacher"]["parameters"], "{name}");
    }
    // What `distill` refuses is no plan.
    for (teacher, code, part) in [
        ("tiny", 3, "nor a preset"),
        ("teacher/config.toml", 3, "is a file"),
        ("./no", 3, "there is no ./no"),
    ] {
        for verb in ["plan", "distill"] {
            place.refused(
                &[verb, "--data", &data, "--teacher", teacher, "--student", "tiny"],
                code,
                &[part],
            );
        }
    }
    // The student's shape is that of the run, also where the teacher decides it.
    let layers =
        ["--student", "distil-82m", "--set", "layers=[1]", "--steps", "1", "--set", "data.rows=2"];
    let planned = plan("teacher", &layers);
    let args = [
        "distill",
        "--data",
        &data,
        "--teacher",
        "teacher",
        "--set",
        "data.context=16",
        "--out",
        "run",
    ];
    place.json(&[&args[..], &layers].concat());
    let config: Value =
        serde_json::from_slice(&std::fs::read(place.path("run/model/config.json")).unwrap())
            .unwrap();
    for key in ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"] {
        assert_eq!(planned["student"]["shape"][key], config[key], "{key}");
    }
}

#[test]
fn a_run_that_has_not_finished_is_used_with_a_warning() {
    let place = Place::new();
    let data = data();
    place.json(&pretrain(&data, &["--steps", "2", "--out", "teacher"]));
    let distill = |teacher: &str, out: &str| {
        let args = ["distill", "--data", &data, "--teacher", teacher, "--steps", "1", "--out", out];
        let (code, _, stderr) = place.run(&[&args[..], &TINY].concat());
        assert_eq!(code, 0, "{stderr}");
        stderr
            .lines()
            .filter(|line| line.contains("not finished"))
            .map(String::from)
            .collect::<Vec<_>>()
    };
    assert_eq!(distill("teacher", "a"), [""; 0], "its final model");
    std::fs::remove_dir_all(place.path("teacher/model")).unwrap();
    let said = distill("teacher", "b");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].starts_with("warning: teacher is a run") && said[0].ends_with("step-00000002"),
        "{said:?}"
    );
    assert_eq!(distill("teacher/last", "c"), [""; 0], "who names the checkpoint knows");
}

/// Of the quickstart a small run stands in for the teacher.
#[test]
fn the_quickstarts_teacher_is_found_by_its_name() {
    let place = Place::new();
    let (data, cache) = (data(), place.path("cache"));
    place.json(&pretrain(&data, &["--steps", "2", "--out", "cache/quickstart-2/teacher"]));
    let json = |args: &[&str]| -> Value {
        let args = [args, &["--json"]].concat();
        let done = place.command(&args).env("ESLM_KD_CACHE", &cache).output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice(&done.stdout).unwrap()
    };
    let eval = |model: &str| json(&["eval", model, "--data", &data])["nll"].clone();
    assert_eq!(eval("quickstart"), eval("cache/quickstart-2/teacher"));
    let teacher = ["--teacher", "quickstart"];
    let run = pretrain(&data, &["--steps", "2", "--out", "student"]);
    json(&[&["distill"], &run[1..], &teacher[..]].concat());
    let config = std::fs::read_to_string(place.path("student/config.toml")).unwrap();
    assert!(config.contains("quickstart-2/teacher"), "{config}");
    // Without data it is the quickstart, with the quickstart's student.
    let student = |args: &[&str]| json(&[&["plan"], args].concat())["student"].clone();
    assert_eq!(student(&teacher), student(&["quickstart"]));
}

/// The quickstart with a small teacher, which says once what three students learn from.
#[test]
fn the_quickstarts_teacher_speaks_once() {
    let place = Place::new();
    let (data, cache) = (data(), place.path("cache"));
    let [much, little] = ["teacher-data", "data"].map(|of| cache.join("quickstart-2").join(of));
    [&much, &little].into_iter().for_each(|of| copy_data(of));
    let distill = |args: &[&str]| {
        let short =
            ["distill", "--steps", "6", "--set", "select.burn_in=2", "--set", "select.ramp=2"];
        let args = [&short[..], &["--device", "cpu"], args].concat();
        let done = place.command(&args).env("ESLM_KD_CACHE", &cache).output().unwrap();
        let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{args:?}: {stderr}");
        stderr
    };
    let wrote = |out: &str| {
        let said = distill(&["--out", out]);
        assert_eq!(said.matches("what the teacher says of the students'").count(), 1, "{said}");
    };
    let teacher = |seed: &str| {
        let out = ["--out", "cache/quickstart-2/teacher", "--set", "shape.n_positions=128"];
        let _ = std::fs::remove_dir_all(place.path("cache/quickstart-2/teacher"));
        place.json(&[&pretrain(&data, &["--steps", "2", "--seed", seed])[..], &out].concat());
    };
    let weights =
        |run: &str| std::fs::read(place.path(run).join("model/model.safetensors")).unwrap();
    teacher("1");
    distill(&["--out", "beside", "--set", "objective.signal=dense"]);
    assert!(!place.path("beside/signal").exists());
    wrote("q");
    // A student learns what it would learn beside the teacher from the same 64 entries.
    let little = little.display().to_string();
    let model = place.path("cache/quickstart-2/teacher/model").display().to_string();
    distill(&["quickstart", "--teacher", &model, "--data", &little, "--out", "live"]);
    assert_eq!(weights("live"), weights("q/eslm"));
    assert_ne!(weights("beside/eslm"), weights("q/eslm"), "dense is more than 64 entries");
    // Another teacher says something else.
    teacher("2");
    wrote("other");
    assert_ne!(weights("other/dense"), weights("q/dense"));
    assert_eq!(weights("other/plain"), weights("q/plain"));
}

#[test]
fn a_gguf_file_is_a_model_and_a_teacher() {
    let world = World::new();
    std::fs::create_dir(world.path("g")).unwrap();
    let measure = |model: &str| {
        let measured = world.json(&["eval", model, "--data", "text.txt"]);
        measured["nll"].as_f64().unwrap().to_bits()
    };
    let (code, _, stderr) = world.run(&["export", "run", "--format", "gguf", "--out", "g/a.gguf"]);
    assert_eq!(code, 0, "{stderr}");
    world.refused(&["generate", "g/a.gguf", "--prompt", "Anna"], 3, "put its tokenizer.json");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(world.path("run/model").join(name), world.path("g").join(name)).unwrap();
    }
    assert_eq!(measure("g/a.gguf"), measure("run"));
    assert_eq!(measure("g"), measure("run"));
    let (code, _, stderr) = world.run(&["export", "g", "--out", "again"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(measure("again"), measure("run"));

    let prepare = ["prepare", "--input", "text.txt", "--tokenizer", "g/a.gguf", "--out", "data"];
    let (code, _, stderr) = world.run(&prepare);
    assert_eq!(code, 0, "{stderr}");
    let distill = |more: &[&str]| {
        let args = ["distill", "--data", "data", "--teacher", "g/a.gguf", "--student", "tiny"];
        let small = ["--device", "cpu", "--set", "data.rows=2", "--out", "kd"];
        world.json(&[&args[..], &small, more].concat())
    };
    distill(&["--steps", "2"]);
    // The file is known again by its content, and another is refused.
    let resume = ["distill", "--resume", "--out", "kd", "--steps", "3", "--device", "cpu"];
    let q8_0 = ["export", "run", "--format", "gguf", "--type", "q8_0", "--out", "g/a.gguf"];
    let whole = std::fs::read(world.path("g/a.gguf")).unwrap();
    assert_eq!(world.run(&q8_0).0, 0);
    world.refused(&resume, 2, "weights (SHA-256)");
    std::fs::write(world.path("g/a.gguf"), whole).unwrap();
    let (code, _, stderr) = world.run(&resume);
    assert_eq!(code, 0, "{stderr}");
}
