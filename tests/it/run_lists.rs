//! `runs` and `runs show`: what is told of run folders, and that looking touches nothing.

use crate::support::place::{Place, copy_data, copy_folder, data, pretrain, stop};
use eslm_kd::store::checkpoint::RunLock;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

const LENGTHS: [&str; 8] = [
    "--steps",
    "12",
    "--set",
    "eval.every=4",
    "--set",
    "checkpoint.every=4",
    "--set",
    "checkpoint.keep=9",
];

fn trained(place: &Place, run: &str) -> String {
    let data = data();
    place.json(&pretrain(&data, &[&LENGTHS[..], &["--out", run]].concat()));
    data
}

/// As if the process had been killed after step 12 and before its checkpoint.
fn cut(place: &Place, run: &str) {
    fs::remove_dir_all(place.path(run).join("model")).unwrap();
    fs::remove_dir_all(place.path(run).join("checkpoints/step-00000012")).unwrap();
}

fn row<'a>(rows: &'a Value, run: &str) -> &'a Value {
    let rows = rows["runs"].as_array().unwrap();
    rows.iter().find(|row| row["run"] == run).unwrap_or_else(|| panic!("no {run} in {rows:?}"))
}

/// Every path below a folder, with size and time of its last change.
fn everything_in(dir: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, meta) = (entry.path(), entry.metadata().unwrap());
        if meta.is_dir() {
            found.extend(everything_in(&path));
        }
        found.insert(path, (meta.len(), meta.modified().unwrap()));
    }
    found
}

/// Runs a command that was printed to be pasted.
fn paste(place: &Place, command: &str) {
    let binary = format!("'{}'", env!("CARGO_BIN_EXE_eslm-kd"));
    let command = command.replacen("eslm-kd", &binary, 1) + " --offline --quiet";
    let mut shell = Command::new("sh");
    crate::support::place::without_settings(&mut shell);
    let status = shell.args(["-c", &command]).current_dir(place.path(".")).stdin(Stdio::null());
    assert!(status.stdout(Stdio::null()).status().unwrap().success(), "{command}");
}

/// A run in each state, one of them inside a comparison, whose folder is returned; and what is no
/// run.
fn runs_of_all_kinds(place: &Place) -> String {
    trained(place, "runs/done");
    for name in ["cut", "stopped", "running", "no plan", "cut checkpoint", "sealed", "longer"] {
        copy_folder(&place.path("runs/done"), &place.path("runs").join(name));
    }
    cut(place, "runs/cut");
    cut(place, "runs/cut checkpoint");
    fs::remove_dir_all(place.path("runs/stopped/model")).unwrap();
    fs::remove_dir_all(place.path("runs/running/model")).unwrap();
    let config = fs::read_to_string(place.path("runs/longer/config.toml")).unwrap();
    let longer = config.replace("steps = 12\n", "steps = 20\n");
    fs::write(place.path("runs/longer/config.toml"), longer).unwrap();
    fs::write(place.path("runs/no plan/config.toml"), "steps = \"many\"\n").unwrap();
    fs::write(place.path("runs/cut checkpoint/checkpoints/step-00000008/state.json"), "{").unwrap();
    fs::remove_file(place.path("runs/sealed/metrics.jsonl")).unwrap();
    fs::create_dir(place.path("runs/sealed/metrics.jsonl")).unwrap();
    let label = "a-method-with-quite-a-long-label+select.score=entropy";
    let deep = format!("runs/compared/runs/{label}/seed-1");
    copy_folder(&place.path("runs/done"), &place.path(&deep));
    fs::write(place.path("runs/notes.txt"), "no run").unwrap();
    fs::create_dir_all(place.path("runs/other")).unwrap();
    fs::write(place.path("runs/other/config.toml"), "[build]\n").unwrap();
    let old = SystemTime::now() - Duration::from_secs(5 * 86_400);
    for name in ["config.toml", "metrics.jsonl", "model", ".lock", "checkpoints/step-00000012"] {
        let file = fs::File::open(place.path("runs/done").join(name)).unwrap();
        file.set_modified(old).unwrap();
    }
    deep
}

#[test]
fn a_list_tells_the_states_of_runs_apart_and_touches_nothing() {
    let place = Place::new();
    let deep = runs_of_all_kinds(&place);
    let lock = RunLock::acquire(&place.path("runs/running")).unwrap();
    let before = everything_in(&place.path("runs"));
    let rows = place.json(&["runs"]);
    let (code, text, stderr) = place.run(&["runs"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(everything_in(&place.path("runs")), before, "looking touches nothing");
    let state = |run: &str| row(&rows, run)["state"].as_str().unwrap().to_string();
    for (run, expected) in [
        ("runs/done", "finished"),
        (&deep, "finished"),
        ("runs/cut", "cut-off"),
        ("runs/stopped", "stopped"),
        ("runs/longer", "stopped"),
        ("runs/running", "running"),
        ("runs/no plan", "damaged"),
        ("runs/cut checkpoint", "damaged"),
        ("runs/sealed", "damaged"),
    ] {
        assert_eq!(state(run), expected, "{run}");
    }
    assert_eq!(rows["runs"].as_array().unwrap().len(), 9, "{rows}");
    assert_eq!(rows["runs"][8]["run"], "runs/done", "the oldest comes last: {rows}");
    let done = row(&rows, "runs/done");
    let (steps, validations): (Vec<Value>, Vec<Value>) =
        place.metrics("runs/done").into_iter().partition(|line| line["val_loss"].is_null());
    let losses = validations.iter().map(|v| v["val_loss"].as_f64().unwrap());
    assert_eq!((&done["step"], &done["steps"]), (&12.into(), &12.into()));
    assert_eq!(done["loss"], steps.last().unwrap()["loss"]);
    assert_eq!(done["val_loss"], validations.last().unwrap()["val_loss"]);
    assert_eq!(done["best_val_loss"].as_f64(), losses.reduce(f64::min));
    assert!((done["age"].as_f64().unwrap() - 5.0 * 86_400.0).abs() < 3600.0);

    // For people: every row, every name whole, what is damaged in a line each.
    assert!(text.lines().take(11).all(|line| line.chars().count() <= 80), "{text}");
    let line = |of: &str| {
        text.lines().find(|l| l.starts_with(of)).unwrap_or_else(|| panic!("{of}\n{text}"))
    };
    assert!(line("runs/done ").contains("finished") && line("runs/done ").ends_with("5 d"));
    assert!(line("runs/cut  ").contains("cut off   12/12"));
    assert_eq!(line("runs/compared"), deep);
    let damaged: Vec<&str> = text.lines().filter(|l| l.starts_with("damaged: ")).collect();
    assert_eq!(damaged.len(), 3, "{text}");
    for part in [
        "runs/no plan/config.toml:1: steps: expected a whole number",
        "runs/cut checkpoint/checkpoints/step-00000008: state.json is missing or cut short",
        "runs/sealed/metrics.jsonl",
    ] {
        assert!(damaged.iter().any(|line| line.contains(part)), "{text}");
    }
    drop(lock);
    assert_eq!(row(&place.json(&["runs"]), "runs/running")["state"], "stopped");
}

#[test]
fn runs_are_found_in_the_working_folder_and_in_named_ones() {
    let place = Place::new();
    runs_of_all_kinds(&place);
    let inside = |folder: &str, args: &[&str]| {
        let output =
            place.command(&[args, &["--json"]].concat()).current_dir(place.path(folder)).output();
        serde_json::from_slice::<Value>(&output.unwrap().stdout).unwrap()
    };
    assert_eq!(inside("runs/cut", &["runs"])["runs"][0]["run"], ".");
    assert_eq!(inside("runs/compared", &["runs"])["runs"][0]["state"], "finished");
    let named = place.json(&["runs", "runs/cut", "runs/cut", "runs/compared"]);
    assert_eq!(named["runs"].as_array().unwrap().len(), 2);
    assert_eq!(inside("runs/other", &["runs"])["runs"].as_array().map(Vec::len), Some(0));
    place.refused(&["runs", "nowhere"], 3, &["nowhere: expected a run folder"]);
}

#[test]
fn one_run_is_told_whole_with_the_command_that_goes_on() {
    let place = Place::new();
    let data = trained(&place, "my runs/first");
    let shown = place.json(&["runs", "show", "my runs/first"]);
    let last =
        place.metrics("my runs/first").into_iter().rfind(|l| l["val_loss"].is_null()).unwrap();
    for (key, value) in [
        ("state", Value::from("finished")),
        ("tokens", (12 * 8 * 16).into()),
        ("flops", last["flops"].clone()),
        ("seconds", last["seconds"].clone()),
        ("loss_step", 12.into()),
        ("vocabulary", 320.into()),
        // 320 x 16 + 16 x 16 + 2 (12 x 16^2 + 13 x 16) + 2 x 16
        ("parameters", 11_968.into()),
    ] {
        assert_eq!(shown[key], value, "{key}");
    }
    assert_eq!(shown["plan"]["student"], "tiny");
    let checkpoints = shown["checkpoints"].as_array().unwrap();
    assert_eq!(checkpoints.len(), 3);
    for (checkpoint, step) in checkpoints.iter().zip([4, 8, 12]) {
        let path = place.path(checkpoint["path"].as_str().unwrap());
        let files = everything_in(&path);
        let sizes: u64 =
            files.iter().filter(|(p, _)| !p.ends_with("manifest.json")).map(|f| f.1.0).sum();
        assert_eq!((&checkpoint["step"], &checkpoint["bytes"]), (&step.into(), &sizes.into()));
        let metrics = place.metrics("my runs/first");
        let validated = metrics.iter().find(|l| l["step"] == step && !l["val_loss"].is_null());
        assert_eq!(checkpoint["val_loss"], validated.unwrap()["val_loss"]);
    }
    for command in shown["next"].as_array().unwrap() {
        paste(&place, command.as_str().unwrap());
    }
    let (_, text, _) = place.run(&["runs", "show", "my runs/first"]);
    for part in [
        "tiny, 11,968 parameters, 320 of vocabulary",
        &data,
        "12 of 12",
        "next: eslm-kd generate 'my runs/first'",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }

    let weights = || fs::read(place.path("my runs/first/model/model.safetensors")).unwrap();
    let expected = weights();
    cut(&place, "my runs/first");
    let shown = place.json(&["runs", "show", "my runs/first"]);
    assert_eq!(shown["state"], "cut-off");
    paste(&place, shown["next"][0].as_str().unwrap());
    assert!(weights() == expected, "the command finished the run");

    fs::write(place.path("my runs/first/checkpoints/step-00000004/model.safetensors"), "").unwrap();
    let shown = place.json(&["runs", "show", "my runs/first"]);
    assert_eq!(shown["state"], "finished");
    assert!(shown["checkpoints"][0]["damage"].as_str().unwrap().contains("model.safetensors"));
    place.refused(
        &["runs", "show", "my runs"],
        3,
        &["no run in my runs", "`runs show` takes one of them"],
    );
    place.refused(&["runs", "show", "nowhere"], 3, &["no run in nowhere"]);
}

#[test]
fn commands_hold_from_where_they_were_asked_for() {
    let place = Place::new();
    copy_data(&place.path("data"));
    place.json(&pretrain("data", &["--steps", "1", "--out", "runs/a"]));
    fs::create_dir(place.path("elsewhere")).unwrap();
    let mut command = place.command(&["runs", "show", "../runs/a", "--json"]);
    let output = command.current_dir(place.path("elsewhere")).output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["plan"]["data"]["dir"], "data", "as it was written");
    let eval = shown["next"][1].as_str().unwrap();
    let data = Path::new(eval.split(" --data ").nth(1).unwrap());
    assert!(place.path("elsewhere").join(data).join("train.bin").exists(), "{eval}");
}

#[test]
fn a_run_in_another_process_is_running_until_it_stops() {
    let place = Place::new();
    let data = data();
    let args =
        pretrain(&data, &["--steps", "1000000", "--set", "log.every=1", "--out", "runs/long"]);
    let mut child =
        place.command(&args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    // A signal that only saves: the run is in full swing.
    assert!(stop(&mut child, &place.path("runs/long/metrics.jsonl"), 20, "-USR1"));
    let shown = place.json(&["runs", "show", "runs/long"]);
    assert_eq!((&shown["state"], &shown["process"]), (&"running".into(), &child.id().into()));
    assert_eq!(shown["next"].as_array().map(Vec::len), Some(0));
    assert!(stop(&mut child, &place.path("runs/long/metrics.jsonl"), 40, "-TERM"));
    assert_eq!(child.wait().unwrap().code(), Some(143), "looking disturbs nobody");
    let shown = place.json(&["runs", "show", "runs/long"]);
    assert_eq!((&shown["state"], &shown["process"]), (&"stopped".into(), &Value::Null));
}

#[test]
fn what_a_finished_run_has_lost_makes_it_damaged() {
    let place = Place::new();
    trained(&place, "run");
    copy_folder(&place.path("run"), &place.path("whole"));
    let state = || place.json(&["runs", "show", "run"])["state"].clone();
    assert_eq!(state(), "finished");
    for file in ["model/model.safetensors", "checkpoints/step-00000012/state.json"] {
        let path = place.path("run").join(file);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(state(), "damaged", "{file}");
        fs::write(&path, bytes).unwrap();
    }
    assert_eq!(state(), "finished");
    // One name, one number: what `report` calls the training loss is that of all tokens.
    let (_, text, _) = place.run(&["runs", "show", "run"]);
    let report = place.json(&["report", "run"]);
    let loss = format!("{:.4}", report["runs"][0]["train_loss"].as_f64().unwrap());
    let line = text.lines().find(|line| line.starts_with("training loss")).unwrap();
    assert!(line.contains(&loss), "{loss} is not in {line}");
    let shown = place.json(&["runs", "show", "run"]);
    assert_eq!(shown["full_loss"], report["runs"][0]["train_loss"]);
}

#[test]
fn totals_are_those_of_the_step_that_is_shown() {
    let place = Place::new();
    let data = data();
    let every = ["--set", "log.every=5", "--set", "eval.every=4", "--set", "checkpoint.every=4"];
    let args = [&["--steps", "12"][..], &every, &["--out", "r"]].concat();
    let whole = place.json(&pretrain(&data, &args));
    fs::remove_dir_all(place.path("r/model")).unwrap();
    let metrics = place.path("r/metrics.jsonl");
    let lines: Vec<(u64, String)> = fs::read_to_string(&metrics)
        .unwrap()
        .lines()
        .map(|line| {
            let value: Value = serde_json::from_str(line).unwrap();
            (value["step"].as_u64().unwrap(), line.to_string() + "\n")
        })
        .collect();
    let each = whole["tokens"].as_u64().unwrap() / 12;
    // As a signal leaves it behind: what was done since the last logged step is in a checkpoint
    // alone. Then as a kill does, where the last line may be a validation's.
    for (logged, saved, step) in [(10, Some(12), 12), (8, Some(8), 8), (8, None, 8)] {
        let kept: String = lines.iter().filter(|l| l.0 <= logged).map(|l| l.1.as_str()).collect();
        fs::write(&metrics, kept).unwrap();
        if saved != Some(12) {
            let _ = fs::remove_dir_all(place.path("r/checkpoints/step-00000012"));
        }
        if saved.is_none() {
            fs::remove_dir_all(place.path("r/checkpoints")).unwrap();
        }
        let shown = place.json(&["runs", "show", "r"]);
        assert_eq!((&shown["step"], &shown["tokens"]), (&step.into(), &(step * each).into()));
        if step == 12 {
            assert_eq!(shown["flops"], whole["flops"]);
            assert_eq!(shown["seconds"], whole["seconds"]);
        }
        let page = place.json(&["report", "r", "--out", "page.html"]);
        let run = &page["runs"][0];
        assert_eq!((&run["step"], &run["tokens"]), (&step.into(), &(step * each).into()));
    }
}

#[test]
fn the_eval_that_is_suggested_is_the_runs_own_validation() {
    let place = Place::new();
    let data = data();
    let narrow = ["--set", "data.context=12", "--set", "eval.stride=5", "--set", "eval.rows=0"];
    let args = [&["--steps", "2"][..], &narrow, &["--out", "r"]].concat();
    let loss = place.json(&pretrain(&data, &args))["val_loss"].as_f64().unwrap();
    let shown = place.json(&["runs", "show", "r"]);
    let command = shown["next"][1].as_str().unwrap();
    let own: Vec<&str> = command.split(' ').skip(1).collect();
    assert_eq!(own[4..], ["--context", "12", "--stride", "5"], "{command}");
    let measured = place.json(&own)["nll"].as_f64().unwrap();
    assert!((measured - loss).abs() < 1e-6, "{command}: {measured}, validated {loss}");
    // With all positions of the model it is another number, and that is said.
    let note = "was trained on 12 tokens of context and is measured with 16";
    for model in ["r", "r/model", "r/last", "r/checkpoints/step-00000002"] {
        let (code, _, said) = place.run(&["eval", model, "--data", &data]);
        assert!(code == 0 && said.contains(note) && said.contains("--context 12"), "{said}");
        let (_, _, said) = place.run(&["eval", model, "--data", &data, "--context", "12"]);
        assert!(!said.contains("was trained on"), "{said}");
    }
}

#[test]
fn a_run_that_diverged_is_no_success() {
    let place = Place::new();
    let data = data();
    let args = ["--steps", "12", "--lr", "50", "--set", "schedule.warmup=0", "--out", "r"];
    let (code, text, said) = place.run(&pretrain(&data, &args));
    let warned = text.contains("warning: ") && text.contains("the training diverged");
    let again = "next: eslm-kd pretrain r --lr 5.0e0 --out r-lower-lr";
    assert!(code == 0 && warned && text.contains(again), "{text}{said}");
    assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    let shown = place.json(&["runs", "show", "r"]);
    assert_eq!(shown["next"].as_array().unwrap().len(), 1, "{shown}");
    assert!(again.ends_with(shown["next"][0].as_str().unwrap()));
}
