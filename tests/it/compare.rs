//! `compare`: methods x seeds, stopped, gone on with and reported.

use crate::support::place::without_settings;
use crate::support::tiny;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const RUN_FILE: &str = "\
steps = 6
student = 'tiny'
[shape]
n_layer = 1
n_head = 2
n_embd = 16
n_positions = 16
[data]
context = 16
rows = 4
[select]
alpha = 0.5
[eval]
every = 2
rows = 20
";

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        fs::write(place.path("run.toml"), RUN_FILE).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Exit status, stdout, stderr of `compare` with two arms.
    fn compare(&self, more: &[&str]) -> (i32, String, String) {
        let data = tiny::data().display().to_string();
        let arms =
            ["plain:run.toml+method=clm", "loss:run.toml+select.score=loss", "--data", &data];
        self.run(&[&arms, more].concat())
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eslm-kd"));
        without_settings(&mut command);
        command
            .arg("compare")
            .args(args)
            .arg("--offline")
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (status.code().unwrap(), text(stdout), text(stderr))
    }

    /// `report.csv` without the column of seconds.
    fn figures(&self, out: &str) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.path(out).join("report.csv")).unwrap();
        let rows: Vec<Vec<&str>> = text.lines().map(|l| l.split(',').collect()).collect();
        let seconds = rows[0].iter().position(|c| *c == "seconds").unwrap();
        let without = |row: &Vec<&str>| {
            row.iter()
                .enumerate()
                .filter(|(i, _)| *i != seconds)
                .map(|(_, c)| (*c).to_string())
                .collect()
        };
        rows.iter().map(without).collect()
    }
}

/// When the model of a run was written.
fn written(place: &Place, run: &str) -> std::time::SystemTime {
    fs::metadata(place.path(run).join("model/model.safetensors")).unwrap().modified().unwrap()
}

/// Elements that have no end.
const VOID: [&str; 4] = ["meta", "br", "wbr", "input"];

/// Every element that is opened is closed in order: the page is well-formed.
pub fn check_well_formed(page: &str) {
    let (mut open, mut rest) = (Vec::new(), page.strip_prefix("<!DOCTYPE html>").unwrap());
    while let Some(start) = rest.find('<') {
        if let Some(script) = rest[start..].strip_prefix("<script>") {
            rest = script.split_once("</script>").expect("a script ends").1;
            continue;
        }
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap().to_string();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "in order, before {:.60}", &rest[start..]);
        } else if !VOID.contains(&name.as_str()) {
            open.push(name);
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "{open:?} never closed");
}

#[test]
fn a_comparison_in_parts_ends_like_one_in_one_piece() {
    let place = Place::new();
    let valid = tiny::world().join("valid.jsonl");
    let also = format!("stories={}", valid.display());
    let (code, stdout, stderr) =
        place.compare(&["--seeds", "2", "--out", "whole", "--also", &also, "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let json: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&json["baseline"], &json["tests"]), (&"plain".into(), &1.into()));
    assert_eq!(json["arms"].as_array().unwrap().len(), 2);
    assert!(
        !place.path("whole/runs/plain/seed-1/checkpoints").exists(),
        "finished runs keep no checkpoints"
    );

    // One seed, then a run cut short (a checkpoint and no model), then the same command as above.
    let (code, _, stderr) =
        place.compare(&["--seeds", "1", "--out", "parts", "--keep-checkpoints", "-q"]);
    assert_eq!(code, 0, "{stderr}");
    let before = written(&place, "parts/runs/plain/seed-1");
    fs::remove_dir_all(place.path("parts/runs/loss/seed-1/model")).unwrap();
    let (code, stdout, _) = place.run(&["--report-only", "--out", "parts"]);
    assert!(code == 0 && stdout.contains("1 run is not finished"), "{stdout}");
    let (code, _, stderr) = place.compare(&["--seeds", "2", "--out", "parts", "--also", &also]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("run 1 of 4: plain, seed 1, found"), "{stderr}");
    assert_eq!(
        written(&place, "parts/runs/plain/seed-1"),
        before,
        "a finished run is not repeated"
    );
    assert_eq!(place.figures("parts"), place.figures("whole"));

    let page = fs::read_to_string(place.path("whole/report.html")).unwrap();
    check_well_formed(&page);
    for outside in ["http", "src=", "<link", "@import", "NaN"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let charts = page.matches("<figure class=\"chart\"").count();
    assert_eq!(charts, 4, "three curves and the deciles");
    // The first line is the same everywhere.
    let verdict = json["verdict"]["text"].as_str().unwrap();
    let escaped = verdict.replace('<', "&lt;").replace('>', "&gt;");
    assert!(verdict.starts_with("Use ") && page.contains(&escaped), "{verdict}");
    let (_, stdout, _) = place.run(&["--report-only", "--out", "whole"]);
    assert_eq!(stdout.lines().next(), Some(verdict));
    let value = |arm: &str| {
        let arms = json["arms"].as_array().unwrap();
        arms.iter().find(|a| a["label"] == arm).unwrap()["val_ce"]["mean"].as_f64().unwrap()
    };
    let rows: Vec<&str> =
        stdout.lines().filter(|l| l.starts_with("plain ") || l.starts_with("loss ")).collect();
    let best = if value("plain") <= value("loss") { "plain" } else { "loss" };
    assert!(rows[0].starts_with(best), "sorted by result: {stdout}");
}

#[test]
fn equal_seconds_are_measured_and_leave_nothing_behind() {
    let place = Place::new();
    let data = tiny::data().display().to_string();
    let arms = [
        "plain:run.toml+method=clm",
        "loss:run.toml",
        "drawn:run.toml+method=clm+machine.backward=sampled",
    ];
    let more = ["--data", &data, "--seeds", "1", "--out", "c", "--budget", "seconds"];
    let (status, _, said) = place.run(&[&arms[..], &more].concat());
    assert_eq!(status, 0, "{said}");
    let state: Value =
        serde_json::from_slice(&fs::read(place.path("c/compare.json")).unwrap()).unwrap();
    let arms = state["arms"].as_array().unwrap();
    assert_eq!(arms[0]["steps"], 6);
    for arm in &arms[1..] {
        assert!(
            arm["steps"].as_u64().unwrap() > 0 && arm["seconds_per_step"].as_f64().unwrap() > 0.0,
            "{arm}"
        );
    }
    assert!(!place.path("c/pilot").exists());
}

#[test]
fn an_evaluation_of_some_tokens_is_that_of_all_runs() {
    let place = Place::new();
    let some = ["--seeds", "2", "--out", "some", "--eval-tokens", "100"];
    let (code, _, stderr) = place.compare(&some);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("run 2 of 4: loss, seed 1, about "), "{stderr}");
    let (code, _, stderr) = place.compare(&["--seeds", "2", "--out", "all"]);
    assert_eq!(code, 0, "{stderr}");
    let evaluation = |out: &str, arm: &str| -> Value {
        let path = place.path(out).join("runs").join(arm).join("seed-1/evaluation.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    for arm in ["plain", "loss"] {
        let (some, all) = (evaluation("some", arm), evaluation("all", arm));
        assert_eq!(some["tokens"], 99);
        assert!(all["tokens"].as_u64().unwrap() > 99 && some["ce"] != all["ce"]);
    }
    // The same without being told again; another number would be another comparison.
    let (code, stdout, stderr) = place.compare(&["--seeds", "2", "--out", "some", "--json"]);
    assert_eq!((code, stdout.lines().count()), (0, 1), "{stderr}");
    assert_eq!(evaluation("some", "plain")["tokens"], 99);
    let (code, _, stderr) = place.compare(&["--out", "some", "--eval-tokens", "200"]);
    assert!(code == 2 && stderr.contains("has --eval-tokens 100, this one 200"), "{stderr}");
}

#[test]
fn the_baseline_is_found_among_all_arms_of_the_page() {
    let place = Place::new();
    let data = tiny::data().display().to_string();
    let (plain, loss) = ("plain:run.toml+method=clm", "loss:run.toml+select.score=loss");
    let baseline = |arms: &[&str], more: &[&str]| {
        let args = [arms, &["--seeds", "1", "--out", "c", "--json"], more].concat();
        let args = if arms.is_empty() { args } else { [&args[..], &["--data", &data]].concat() };
        let (code, stdout, stderr) = place.run(&args);
        assert_eq!(code, 0, "{stderr}");
        let json: Value = serde_json::from_str(&stdout).unwrap();
        json["baseline"].as_str().unwrap().to_string()
    };
    let only = &["--report-only"][..];
    assert_eq!(baseline(&[loss], &[]), "loss", "there is no other");
    assert_eq!(baseline(&[plain], &[]), "plain");
    assert_eq!(baseline(&[loss], &[]), "plain", "it is on the page");
    assert_eq!(baseline(&[], only), "plain");
    // What an earlier version left behind.
    let path = place.path("c/compare.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"baseline\": \"plain\"", "\"baseline\": \"loss\"")).unwrap();
    assert_eq!(baseline(&[], only), "plain");
    // Who names one keeps it, also by an arm of an earlier call.
    assert_eq!(baseline(&[], &["--report-only", "--baseline", "loss"]), "loss");
    assert_eq!(baseline(&[], only), "plain", "a report changes nothing");
    assert_eq!(baseline(&[plain], &["--baseline", "loss"]), "loss");
    assert_eq!((baseline(&[plain], &[]), baseline(&[], only)), ("loss".into(), "loss".into()));
}

#[test]
fn equal_flops_are_kept_and_contradictions_are_refused() {
    let place = Place::new();
    let flops = ["--seeds", "1", "--out", "c", "--budget", "flops", "-q"];
    let (code, _, stderr) = place.compare(&flops);
    assert_eq!(code, 0, "{stderr}");
    let rows = place.figures("c");
    let column = |name: &str| rows[0].iter().position(|c| c == name).unwrap();
    let number = |row: usize, name: &str| rows[row][column(name)].parse::<f64>().unwrap();
    let (base, other) = (number(1, "flops"), number(2, "flops"));
    assert!(
        number(2, "steps") >= 6.0 && (other - base).abs() <= 0.5 * other / number(2, "steps") + 1.0,
        "{rows:?}"
    );
    let refused = |args: &[&str], part: &str| {
        let (code, stdout, stderr) = place.compare(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
        assert!(stderr.contains(part) && stderr.lines().count() == 1, "{stderr}");
    };
    refused(&["--seeds", "1", "--out", "c", "-q"], "has --budget flops, this one tokens");
    refused(&[&flops[..], &["--set", "optim.lr=0.1"]].concat(), "optim.lr");
    refused(&[&flops[..], &["--baseline", "x"]].concat(), "no arm has the label \"x\"");
    refused(
        &[&flops[..], &["--baseline", "loss"]].concat(),
        "are those of \"plain\", now of \"loss\"",
    );
    let (code, _, stderr) = place.run(
        &[
            &["loss:run.toml+select.score=loss", "--data", &tiny::data().display().to_string()],
            &flops[..],
        ]
        .concat(),
    );
    assert!(code == 2 && stderr.contains("which is not among the arms; name it, too"), "{stderr}");
    refused(
        &[&flops[..], &["--set", "machine.backward=sampled"]].concat(),
        "--budget flops cannot set its steps",
    );
    fs::create_dir(place.path("full")).unwrap();
    fs::write(place.path("full/a"), "").unwrap();
    refused(&["--seeds", "1", "--out", "full", "-q"], "not empty and holds no comparison");
    assert!(Path::new(&place.path("full/a")).exists());
}
