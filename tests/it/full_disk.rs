//! A disk that fills up under every verb that writes: what was there before stays, and nothing
//! half-written is left.
//!
//! Each test runs its command with ever more room, so that it fails at ever later writes, until it
//! succeeds.
#![cfg(target_os = "linux")]

use crate::support::place::{Place, contents, copy_data, data, on_file_system, save_random};
use crate::support::tiny;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// KiB that a folder takes on a tmpfs.
fn kib(folder: &Path) -> u64 {
    contents(folder).values().map(|bytes| bytes.len().div_ceil(4096) as u64 * 4).sum()
}

/// Runs with 8 KiB of room and then twice as much each time; `failed` looks at `copied` after each
/// failure. Returns how often it failed; None where nobody may mount.
fn with_ever_more_room(place: &Place, args: &[&str], failed: impl Fn(&Path)) -> Option<usize> {
    fs::create_dir_all(place.path("seed")).unwrap();
    let seed = kib(&place.path("seed"));
    for failures in 0..14 {
        let size = format!("size={}k", seed + (8 << failures));
        let (code, stderr) = on_file_system(place, &size, args)?;
        if code == 0 {
            return Some(failures);
        }
        assert_eq!(code, 6, "{size}: {stderr}");
        let lines = stderr.lines().filter(|line| !line.starts_with("go on: eslm-kd ")).count();
        let plain = stderr.starts_with("error: ") && lines == 1;
        let clear = stderr.contains("No space left on device") || stderr.contains("MB free");
        assert!(plain && clear, "{size}: {stderr}");
        failed(&place.path("copied"));
    }
    panic!("{args:?} failed with 64 MB of room");
}

/// As above, and every failure leaves what was there before and nothing else.
fn leaves_what_was_there(place: &Place, args: &[&str]) -> Option<usize> {
    with_ever_more_room(place, args, |copied| {
        assert_same(&contents(copied), &contents(&place.path("seed")))
    })
}

fn assert_same(found: &BTreeMap<PathBuf, Vec<u8>>, expected: &BTreeMap<PathBuf, Vec<u8>>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (path, bytes) in expected {
        assert!(found[path] == *bytes, "{} has changed", path.display());
    }
}

#[test]
fn prepare_leaves_the_data_that_was_there() {
    let place = Place::new();
    copy_data(&place.path("seed/data"));
    let text = fs::read(tiny::world().join("stories.jsonl")).unwrap();
    fs::write(place.path("long.jsonl"), text.repeat(3)).unwrap();
    let tokenizer = tiny::world().join("tokenizer").display().to_string();
    let args = |out| {
        ["prepare", "--input", "long.jsonl", "--tokenizer", &tokenizer, "--out", out]
            .map(String::from)
    };
    let args = (args("mount/data"), args("whole"));
    let Some(failures) = leaves_what_was_there(&place, &args.0.each_ref().map(String::as_str))
    else {
        return;
    };
    assert!(failures >= 4, "{failures}");
    assert_eq!(place.run(&args.1.each_ref().map(String::as_str)).0, 0);
    assert_same(&contents(&place.path("copied/data")), &contents(&place.path("whole")));
}

#[test]
fn tokenizer_train_leaves_nothing() {
    let place = Place::new();
    let stories = tiny::world().join("stories.jsonl").display().to_string();
    let args = |out| {
        ["tokenizer", "train", "--input", &stories, "--vocab-size", "900", "--out", out]
            .map(String::from)
    };
    let args = (args("mount/tok"), args("whole"));
    let Some(failures) = leaves_what_was_there(&place, &args.0.each_ref().map(String::as_str))
    else {
        return;
    };
    assert!(failures >= 2, "{failures}");
    assert_eq!(place.run(&args.1.each_ref().map(String::as_str)).0, 0);
    assert_same(&contents(&place.path("copied/tok")), &contents(&place.path("whole")));
}

#[test]
fn export_leaves_the_model_that_was_there() {
    let place = Place::new();
    save_random(&place.path("with"), tiny::VOCAB, 16, true);
    save_random(&place.path("without"), tiny::VOCAB, 16, false);
    fs::create_dir(place.path("seed")).unwrap();
    assert_eq!(place.run(&["export", "without", "--out", "seed/model"]).0, 0);
    let Some(failures) = leaves_what_was_there(&place, &["export", "with", "--out", "mount/model"])
    else {
        return;
    };
    assert!(failures >= 2, "{failures}");
    assert_eq!(place.run(&["export", "with", "--out", "whole"]).0, 0);
    assert_same(&contents(&place.path("copied/model")), &contents(&place.path("whole")));
}

#[test]
fn export_leaves_the_gguf_file_that_was_there() {
    let place = Place::new();
    save_random(&place.path("old"), tiny::VOCAB, 16, true);
    save_random(&place.path("new"), tiny::VOCAB, 16, true);
    let args = |model, of, out| ["export", model, "--format", "gguf", "--type", of, "--out", out];
    fs::create_dir(place.path("seed")).unwrap();
    assert_eq!(place.run(&args("old", "f16", "seed/model.gguf")).0, 0);
    let args_of_new = args("new", "f32", "mount/model.gguf");
    let Some(failures) = leaves_what_was_there(&place, &args_of_new) else { return };
    assert!(failures >= 1, "{failures}");
    assert_eq!(place.run(&args("new", "f32", "whole/model.gguf")).0, 0);
    assert_same(&contents(&place.path("copied")), &contents(&place.path("whole")));
}

#[test]
fn compare_leaves_its_finished_runs_and_goes_on() {
    let place = Place::new();
    let data = data();
    let run_file = "steps = 4\nstudent = 'tiny'\nmethod = 'clm'\n[shape]\nn_layer = 1\nn_head = 2\nn_embd = 16\n\
                    n_positions = 16\n[data]\ncontext = 16\nrows = 4\n[eval]\nrows = 8\n";
    fs::write(place.path("run.toml"), run_file).unwrap();
    let args =
        |seeds, out| ["compare", "a:run.toml", "--data", &data, "--seeds", seeds, "--out", out];
    fs::create_dir(place.path("seed")).unwrap();
    for (seeds, out) in [("1", "seed/cmp"), ("2", "whole")] {
        let (code, _, stderr) = place.run(&args(seeds, out));
        assert_eq!(code, 0, "{stderr}");
    }
    // Everything but what time says.
    let figures = |out: &str| {
        let text = fs::read_to_string(place.path(out).join("report.csv")).unwrap();
        let seconds = text.lines().next().unwrap().split(',').position(|c| c == "seconds").unwrap();
        let without = |line: &str| {
            line.split(',')
                .enumerate()
                .filter(|(i, _)| *i != seconds)
                .map(|(_, c)| c.into())
                .collect()
        };
        text.lines().map(without).collect::<Vec<Vec<String>>>()
    };
    let finished: BTreeMap<_, _> = contents(&place.path("seed"))
        .into_iter()
        .filter(|(path, _)| path.starts_with("cmp/runs/a/seed-1"))
        .collect();
    assert!(finished.contains_key(Path::new("cmp/runs/a/seed-1/model/model.safetensors")));
    let failed = |copied: &Path| {
        let mut found = contents(copied);
        let temporary = |path: &Path| path.to_string_lossy().ends_with(".tmp");
        assert!(!found.keys().any(|path| temporary(path)), "{:?}", found.keys());
        assert!(
            String::from_utf8_lossy(&found[Path::new("cmp/report.html")])
                .trim_end()
                .ends_with("</html>")
        );
        found.retain(|path, _| path.starts_with("cmp/runs/a/seed-1"));
        assert_same(&found, &finished);
        let (code, _, stderr) = place.run(&args("2", "copied/cmp"));
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(figures("copied/cmp"), figures("whole"));
    };
    let Some(failures) = with_ever_more_room(&place, &args("2", "mount/cmp"), failed) else {
        return;
    };
    assert!(failures >= 3, "{failures}");
    assert_eq!(figures("copied/cmp"), figures("whole"));
}
