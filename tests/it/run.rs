//! Whole runs of the built binary: the way from text to a distilled student, what a run folder
//! holds, stopping and going on, and what is refused.

use crate::support::place::{
    Place, TINY, copy_data, data, everything, pretrain, save_random, stop, timeless,
};
use crate::support::tiny;
use candle_core::Device;
use eslm_kd::config::{self, Overrides, RunFile};
use eslm_kd::store::checkpoint::RunLock;
use eslm_kd::store::weights::{load_model, weights_hash};
use serde_json::Value;
use std::fs;
use std::process::Stdio;

#[test]
fn from_text_to_a_distilled_student() {
    let place = Place::new();
    let world = tiny::world();
    fs::copy(world.join("stories.jsonl"), place.path("stories.jsonl")).unwrap();
    let tokenizer = place.json(&[
        "tokenizer",
        "train",
        "--input",
        "stories.jsonl",
        "--vocab-size",
        "300",
        "--out",
        "tok",
    ]);
    assert_eq!(tokenizer["vocab_size"], 300);
    let split = ["--tokenizer", "tok", "--valid-fraction", "0.05", "--out", "data"];
    let prepared = place.json(&[&["prepare", "--input", "stories.jsonl"][..], &split].concat());
    assert!(prepared["valid"]["documents"].as_u64().unwrap() > 0, "{prepared}");

    let lengths =
        ["--steps", "30", "--set", "eval.every=10", "--set", "checkpoint.every=10", "--lr", "0.01"];
    let args =
        pretrain("data", &[&lengths[..], &["--method", "clm", "--out", "runs/teacher"]].concat());
    let report = place.json(&args);
    assert_eq!(
        (report["run"].as_str(), report["steps"].as_u64()),
        (Some("runs/teacher"), Some(30))
    );
    assert_eq!(report["tokens"], 30 * 8 * 16);
    let keys: Vec<&str> = report.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "run",
            "model",
            "steps",
            "tokens",
            "flops",
            "seconds",
            "val_loss",
            "perplexity",
            "parameters"
        ]
    );

    // What the run folder holds.
    for file in [
        "config.toml",
        "metrics.jsonl",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
    ] {
        assert!(place.path("runs/teacher").join(file).is_file(), "{file}");
    }
    let mut saved: Vec<_> = fs::read_dir(place.path("runs/teacher/checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    saved.sort();
    assert_eq!(saved, ["step-00000020", "step-00000030"], "checkpoint.keep is 2");
    load_model(&place.path("runs/teacher/model"), &Device::Cpu).unwrap();
    let (steps, validations): (Vec<Value>, Vec<Value>) =
        place.metrics("runs/teacher").into_iter().partition(|line| line["val_loss"].is_null());
    let at =
        |lines: &[Value]| lines.iter().map(|l| l["step"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(at(&steps), (1..=30).collect::<Vec<_>>());
    assert_eq!(at(&validations), [0, 10, 20, 30]);
    for line in &steps {
        for key in [
            "loss",
            "full_loss",
            "kept",
            "alpha",
            "grad_norm",
            "lr",
            "tokens",
            "tokens_per_second",
            "flops",
            "seconds",
        ] {
            assert!(line[key].is_number(), "{key}: {line}");
        }
        assert!(line["var"].is_null() && line["cvar"].is_null(), "nothing was selected: {line}");
        assert_eq!((line["kept"].as_u64(), &line["loss"]), (Some(128), &line["full_loss"]));
    }
    let loss = |line: &Value| line["val_loss"].as_f64().unwrap();
    assert!(loss(&validations[3]) < loss(&validations[0]) - 0.5, "{validations:?}");
    assert_eq!(report["val_loss"], validations[3]["val_loss"]);

    // The model is the run's, whoever loads it; config.toml is the run.
    let eval = place.json(&["eval", "runs/teacher", "--data", "data"]);
    assert!(
        (eval["nll"].as_f64().unwrap() - loss(&validations[3])).abs() < 1e-6,
        "{eval} {report}"
    );
    let file = RunFile::find(&place.path("runs/teacher").display().to_string()).unwrap();
    let plan = config::load(Some(&file), &Overrides::default()).unwrap().plan;
    assert_eq!(plan.to_toml().unwrap(), file.text);
    place.json(&["pretrain", "runs/teacher", "--out", "runs/again"]);
    let weights = |run: &str| fs::read(place.path(run).join("model/model.safetensors")).unwrap();
    assert!(weights("runs/again") == weights("runs/teacher"), "config.toml repeats the run");

    let args = [
        &[
            "distill",
            "--data",
            "data",
            "--teacher",
            "runs/teacher",
            "--out",
            "runs/student",
            "--seed",
            "5",
        ][..],
        &TINY,
        &lengths,
        &["--score", "kl", "--alpha", "0.5", "--micro-rows", "4"],
        &["--set", "select.burn_in=0", "--set", "select.ramp=0"],
    ]
    .concat();
    let student = place.json(&args);
    assert!(student["val_loss"].as_f64().unwrap() < loss(&validations[0]) - 0.3, "{student}");
    for line in place.metrics("runs/student").iter().filter(|line| line["val_loss"].is_null()) {
        let number = |key: &str| line[key].as_f64().unwrap();
        assert_eq!((number("kept"), number("kept_share"), number("alpha")), (64.0, 0.5, 0.5));
        assert!(number("cvar") >= number("var") && number("cvar") > number("score_mean"), "{line}");
        let parts = &line["flops_by_part"];
        let sum: f64 = parts.as_object().unwrap().values().map(|v| v.as_f64().unwrap()).sum();
        assert!(
            (sum - number("flops")).abs() < 1.0 && parts["teacher"].as_f64().unwrap() > 0.0,
            "{line}"
        );
    }
    // `plan` forecast it.
    let planned = place.json(&["plan", "runs/student"]);
    assert_eq!(planned["flops"]["total"], student["flops"]);
    assert_eq!(planned["tokens"]["total"], student["tokens"]);

    let text = place.json(&[
        "generate",
        "runs/student",
        "--prompt",
        "Once",
        "--max-tokens",
        "8",
        "--seed",
        "1",
    ]);
    assert_eq!(text["tokens"], 8);
    place.json(&["export", "runs/student", "--out", "exported"]);
    let nll = |model: &str| place.json(&["eval", model, "--data", "data"])["nll"].clone();
    assert_eq!(nll("exported"), nll("runs/student"));
}

#[test]
fn a_run_that_was_stopped_and_killed_ends_like_one_that_was_not() {
    let place = Place::new();
    save_random(&place.path("teacher"), tiny::VOCAB, 16, true);
    let data = data();
    let args = |out: &'static str| {
        let rhythm = [
            "--steps",
            "240",
            "--set",
            "eval.every=4",
            "--set",
            "checkpoint.every=9",
            "--out",
            out,
        ];
        everything(&data, &rhythm)
    };
    let (code, _, stderr) = place.run(&args("whole"));
    assert_eq!(code, 0, "{stderr}");
    let whole = timeless(place.metrics("whole"));
    assert_eq!(whole.len(), 240 + 61);
    let weights = |run: &str| fs::read(place.path(run).join("model/model.safetensors")).unwrap();

    // A machine that looks away may see a run end before its signal; then the attempt says nothing.
    let caught = (0..5).any(|_| {
        let _ = fs::remove_dir_all(place.path("parts"));
        let metrics = place.path("parts/metrics.jsonl");
        let spawn = |resume: &[&str]| {
            let mut command = place.command(&[&args("parts")[..], resume].concat());
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let mut child = spawn(&[]);
        if !stop(&mut child, &metrics, 40, "-INT") {
            return false;
        }
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        if output.status.code() == Some(0) {
            return false;
        }
        assert_eq!(output.status.code(), Some(130), "{stderr}");
        assert!(stderr.contains("\nstopped by SIGINT at step "), "{stderr}");
        assert!(stderr.ends_with("\ngo on: eslm-kd distill --resume --out parts\n"), "{stderr}");

        let stood = fs::read(&metrics).unwrap().iter().filter(|b| **b == b'\n').count();
        let mut child = spawn(&["--resume"]);
        if !stop(&mut child, &metrics, stood + 60, "-KILL") {
            return false;
        }
        let killed = child.wait_with_output().unwrap();
        if killed.status.code().is_some() {
            return false;
        }
        let before: u64 = place.metrics_step("parts");
        let (code, _, stderr) = place.run(&["distill", "--resume", "--out", "parts"]);
        assert_eq!(code, 0, "{stderr}");
        assert!(stderr.contains("resuming from"), "{stderr}");
        assert!(before > 40 && before < 240, "killed in the middle, after step {before}");
        true
    });
    assert!(caught, "the run always ended before the signal");
    assert!(weights("parts") == weights("whole"), "the weights differ");
    assert_eq!(timeless(place.metrics("parts")), whole);

    // Once more on what is finished changes nothing.
    let manifest = place.path("parts/checkpoints/step-00000240/manifest.json");
    let stood = fs::metadata(&manifest).unwrap().modified().unwrap();
    let (code, _, stderr) = place.run(&["distill", "--resume", "--out", "parts"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(weights("parts") == weights("whole"));
    assert_eq!(timeless(place.metrics("parts")), whole);
    assert_eq!(
        fs::metadata(&manifest).unwrap().modified().unwrap(),
        stood,
        "a standing checkpoint is not replaced"
    );
}

#[test]
fn a_run_folder_belongs_to_one_run_and_one_process() {
    let place = Place::new();
    let data = data();
    let args = pretrain(&data, &["--method", "eslm", "--steps", "2", "--out", "run"]);
    let lock = RunLock::acquire(&place.path("run")).unwrap();
    place.refused(
        &args,
        2,
        &["run folder run is in use by another process", &std::process::id().to_string()],
    );
    drop(lock);
    place.json(&args);
    let before = fs::read(place.path("run/metrics.jsonl")).unwrap();
    place.refused(&args, 2, &["already holds a run", "--resume", "--out"]);
    // The same run or none at all: what differs is said.
    let other = [&args[..], &["--resume", "--seed", "8", "--alpha", "0.2"]].concat();
    place.refused(
        &other,
        2,
        &["belongs to another run", "seed: 42 before, 8 now", "select.alpha: 0.1 before, 0.2 now"],
    );
    let elsewhere = place.path("data");
    copy_data(&elsewhere);
    let moved =
        pretrain("data", &["--steps", "2", "--out", "run", "--resume", "--set", "eval.every=1"]);
    assert_eq!(
        place.run(&moved).0,
        0,
        "another place of the same data, or another rhythm, is no other run"
    );
    assert_eq!(fs::read(place.path("run/metrics.jsonl")).unwrap(), before);
    place.refused(&["pretrain", "--resume"], 2, &["--resume needs --out RUN"]);
}

#[test]
fn a_folder_that_holds_anything_is_left_alone() {
    let place = Place::new();
    let data = data();
    for name in ["mine/model/model.safetensors", "mine/config.toml", "mine/notes.txt", ".hidden"] {
        let file = place.path("out").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "mine").unwrap();
        let out = file.parent().unwrap().display().to_string();
        place.refused(&pretrain(&data, &["--steps", "2", "--out", &out]), 2, &[&out, "--out"]);
        place.refused(&["distill", "--out", &out], 2, &[&out, "--out"]);
        assert_eq!(fs::read(&file).unwrap(), b"mine");
        assert!(!file.with_file_name(".lock").exists());
    }
    place.refused(
        &pretrain(&data, &["--out", "out/.hidden"]),
        2,
        &["out/.hidden exists and is not a folder"],
    );
    // Refused for what it reads: no folder is left behind; an empty one is as good as none.
    let long = [
        "--set",
        "shape.n_positions=65536",
        "--set",
        "data.context=65536",
        "--set",
        "eval.stride=65536",
    ];
    place.refused(&pretrain(&data, &[&long[..], &["--out", "fresh"]].concat()), 3, &["65536"]);
    assert!(!place.path("fresh").exists());
    fs::create_dir(place.path("empty")).unwrap();
    place.json(&pretrain(&data, &["--steps", "1", "--out", "empty"]));
}

#[test]
fn resuming_needs_something_to_resume() {
    let place = Place::new();
    let data = data();
    let args = pretrain(&data, &["--steps", "2", "--out", "run", "--resume"]);
    place.refused(&args, 2, &["nothing to resume in run", "config.toml"]);
    assert!(!place.path("run").exists());
    fs::create_dir(place.path("run")).unwrap();
    fs::write(place.path("run/notes.txt"), "mine").unwrap();
    place.refused(&args, 2, &["nothing to resume in run"]);
    assert_eq!(fs::read_dir(place.path("run")).unwrap().count(), 1);

    // Killed before its first checkpoint.
    place.json(&pretrain(&data, &["--steps", "2", "--out", "early"]));
    let whole = timeless(place.metrics("early"));
    fs::remove_dir_all(place.path("early/checkpoints")).unwrap();
    fs::remove_dir_all(place.path("early/model")).unwrap();
    let (code, _, stderr) = place.run(&["pretrain", "--resume", "--out", "early"]);
    assert!(code == 0 && stderr.contains("no checkpoint yet: from step 0"), "{stderr}");
    assert!(place.path("early/model").is_dir());
    assert_eq!(timeless(place.metrics("early")), whole);
}

#[test]
fn a_run_does_not_go_on_with_another_teacher_of_the_same_name() {
    let place = Place::new();
    let data = data();
    save_random(&place.path("teacher"), tiny::VOCAB, 16, true);
    let args = [
        &["distill", "--data", &data, "--teacher", "teacher", "--steps", "2", "--out", "run"][..],
        &TINY,
    ]
    .concat();
    place.json(&args);
    let manifest = fs::read(place.path("run/checkpoints/step-00000002/manifest.json")).unwrap();
    let hash = weights_hash(&place.path("teacher")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&manifest).unwrap()["teacher_hash"], hash);
    let weights = place.path("teacher/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let resume = [&args[..], &["--resume"]].concat();
    place.refused(
        &resume,
        2,
        &["belongs to another run", "teacher's weights (SHA-256)", &format!("{hash} before")],
    );
}

#[test]
fn what_does_not_fit_is_refused_in_one_line() {
    let place = Place::new();
    let data = data();
    copy_data(&place.path("mixed"));
    fs::write(place.path("short.txt"), "Anna put a pear in the basket, and a pear beside it.")
        .unwrap();
    place.json(&[
        "tokenizer",
        "train",
        "--input",
        "short.txt",
        "--vocab-size",
        "270",
        "--out",
        "other",
    ]);
    for name in fs::read_dir(place.path("mixed/tokenizer")).unwrap().map(|e| e.unwrap().file_name())
    {
        fs::copy(place.path("other").join(&name), place.path("mixed/tokenizer").join(&name))
            .unwrap();
    }
    place.json(&["prepare", "--input", "short.txt", "--tokenizer", "other", "--out", "short"]);
    for name in ["train", "valid"] {
        let folder = place.path(&format!("flipped-{name}"));
        copy_data(&folder);
        let file = folder.join(format!("{name}.bin"));
        let mut bytes = fs::read(&file).unwrap();
        let low_byte = bytes.len() - 2;
        bytes[low_byte] ^= 1;
        fs::write(&file, bytes).unwrap();
    }
    save_random(&place.path("teacher"), tiny::VOCAB, 16, true);
    save_random(&place.path("wide"), tiny::VOCAB + 8, 16, false);
    save_random(&place.path("narrow"), 100, 16, false);
    save_random(&place.path("brief"), tiny::VOCAB, 8, true);

    let refused = |more: &[&str], code: i32, parts: &[&str]| {
        place.refused(&[more, &["--steps", "2", "--out", "run"]].concat(), code, parts);
        assert!(!place.path("run").exists(), "{more:?} left a run folder");
    };
    refused(&[&["pretrain"][..], &TINY].concat(), 2, &["--data DIR"]);
    refused(&pretrain("nowhere", &[]), 3, &["nowhere", "eslm-kd prepare"]);
    refused(
        &pretrain("mixed", &[]),
        3,
        &["mixed/train.bin", "made by tokenizer", "prepare the data again"],
    );
    refused(
        &pretrain("flipped-train", &[]),
        3,
        &["flipped-train/train.bin", "damaged; prepare the data again"],
    );
    refused(
        &pretrain("flipped-valid", &[]),
        3,
        &["flipped-valid/valid.bin", "damaged; prepare the data again"],
    );
    refused(
        &pretrain(&data, &["--set", "data.context=17"]),
        2,
        &["data.context = 17", "16 positions", "student tiny"],
    );
    refused(&pretrain(&data, &["--set", "student=tinny"]), 3, &["tinny", "tiny"]);
    refused(
        &pretrain(&data, &["--score", "kl"]),
        2,
        &["compares with a teacher", "--teacher NAME"],
    );
    let distill = |teacher: &'static str| {
        [&["distill", "--data", &data, "--teacher", teacher][..], &TINY].concat()
    };
    refused(&distill("gpt2-meduim"), 3, &["gpt2-meduim", "gpt2-medium"]);
    refused(&distill("brief"), 2, &["data.context = 16", "8 positions", "teacher brief"]);
    refused(&distill("narrow"), 3, &["token 3 is id 272, and the model has only 100"]);
    let preset = |more: &[&'static str]| [&distill("teacher")[..], more].concat();
    refused(
        &preset(&["--set", "layers=[0]"]),
        2,
        &["layers", "student tiny", "init = \"scratch\""],
    );
    let layers = ["--set", "init=teacher-layers", "--set", "layers=[0]"];
    refused(&preset(&layers), 2, &["[shape] cannot change the student tiny", "teacher-layers"]);
    let fixed = ["--data", &data, "--set", "data.context=16", "--set", "data.rows=8"];
    let stored = |more: &[&'static str]| [&["distill"][..], more, &fixed].concat();
    let deep = ["--teacher", "teacher", "--student", "teacher", "--set", "shape.n_layer=2"];
    refused(&stored(&deep), 2, &["[shape] cannot change the student teacher", "stored weights"]);
    let layers = ["--teacher", "teacher", "--student", "teacher", "--set", "layers=[0]"];
    refused(&stored(&layers), 2, &["layers", "student teacher", "init = \"checkpoint\""]);
    refused(
        &stored(&["--teacher", "wide", "--student", "teacher"]),
        2,
        &["share a vocabulary", "328", "320"],
    );
    // Ids of another tokenizer would be noise to this teacher, though its vocabulary is large
    // enough.
    let short = ["--data", "short", "--set", "data.context=8", "--set", "data.rows=2"];
    let args = [&["distill", "--teacher", "teacher", "--student", "tiny"][..], &short].concat();
    refused(&args, 3, &["teacher: its tokenizer is", "--tokenizer teacher"]);
    let args = [&["pretrain", "--student", "teacher"][..], &short].concat();
    refused(&args, 3, &["teacher: its tokenizer is"]);
}

#[test]
fn without_validation_tokens_a_run_trains_and_validates_nothing() {
    let place = Place::new();
    copy_data(&place.path("data"));
    fs::remove_file(place.path("data/valid.bin")).unwrap();
    let (code, stdout, stderr) =
        place.run(&pretrain("data", &["--steps", "3", "--out", "run", "--json"]));
    assert_eq!(code, 0, "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert!(
        report["val_loss"].is_null() && report["perplexity"].is_null() && report["steps"] == 3,
        "{report}"
    );
    assert!(!stderr.contains("NaN") && !stderr.contains("validation"), "{stderr}");
    let lines = place.metrics("run");
    assert!(lines.len() == 3 && lines.iter().all(|l| l.get("val_loss").is_none()), "{lines:?}");
}

#[test]
#[cfg(not(feature = "nccl"))]
fn processes_that_this_build_cannot_join_are_told_so() {
    let (place, data) = (Place::new(), data());
    let mut command = place.command(&pretrain(&data, &["--steps", "1", "--out", "run"]));
    let torchrun = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")];
    command.envs(torchrun).env("MASTER_PORT", "29500").env("LOCAL_RANK", "0");
    let stderr = String::from_utf8(command.output().unwrap().stderr).unwrap();
    let told = "2 processes were started, and this build has no NCCL (build with --features nccl)";
    assert!(stderr.contains(told), "{stderr}");
    // WORLD_SIZE and RANK alone are anybody's.
    command.env_remove("MASTER_ADDR");
    let stderr = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(!stderr.contains("processes were started"), "{stderr}");
}
