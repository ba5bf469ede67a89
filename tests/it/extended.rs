//! Runs that begin or go on by one command, and runs that become longer.

use crate::support::place::{Place, TINY, contents, data};
use eslm_kd::progress::Silent;
use eslm_kd::store::Where;
use eslm_kd::store::hub::HubOptions;
use eslm_kd::train::run::{plan_of, train};
use eslm_kd::train::session::Session;
use std::fs;

/// `pretrain` of a tiny model into `out`.
fn pretrain<'a>(data: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let every = ["--set", "checkpoint.every=2", "--set", "checkpoint.keep=9", "--device", "cpu"];
    [&["pretrain", "--data", data, "--out", out][..], &TINY, &every, more].concat()
}

fn succeeds(place: &Place, args: &[&str]) -> String {
    let (code, _, stderr) = place.run(args);
    assert_eq!(code, 0, "{args:?}: {stderr}");
    stderr
}

fn weights(place: &Place, run: &str) -> Vec<u8> {
    fs::read(place.path(run).join("model/model.safetensors")).unwrap()
}

#[test]
fn one_command_begins_a_run_or_goes_on_with_it() {
    let place = Place::new();
    let data = data();
    let auto = ["--steps", "4", "--resume=auto"];
    succeeds(&place, &pretrain(&data, "whole", &["--steps", "4"]));
    succeeds(&place, &pretrain(&data, "r", &auto));
    assert_eq!(weights(&place, "r"), weights(&place, "whole"));
    // Killed between two checkpoints, before the first, and before anything was written.
    let run = place.path("r");
    fs::remove_dir_all(run.join("model")).unwrap();
    fs::remove_dir_all(run.join("checkpoints/step-00000004")).unwrap();
    let said = succeeds(&place, &pretrain(&data, "r", &auto));
    assert!(said.contains("resuming from r/checkpoints/step-00000002"), "{said}");
    assert_eq!(weights(&place, "r"), weights(&place, "whole"));
    for gone in [&["model", "checkpoints"][..], &["model", "checkpoints", "config.toml"]] {
        for name in gone {
            let at = run.join(name);
            let _ = if at.is_dir() { fs::remove_dir_all(&at) } else { fs::remove_file(&at) };
        }
        if gone.len() == 3 {
            fs::remove_file(run.join("metrics.jsonl")).unwrap();
        }
        succeeds(&place, &pretrain(&data, "r", &auto));
        assert_eq!(weights(&place, "r"), weights(&place, "whole"), "{gone:?}");
        assert_eq!(place.metrics("r").len(), place.metrics("whole").len());
    }
    // A finished run is finished; without its settings, too.
    succeeds(&place, &["pretrain", "--out", "r", "--resume=auto"]);
    assert_eq!(weights(&place, "r"), weights(&place, "whole"));
    // Neither form takes a folder of something else, and only auto begins.
    fs::create_dir(place.path("other")).unwrap();
    fs::write(place.path("other/thesis.txt"), "").unwrap();
    place.refused(&pretrain(&data, "other", &auto), 2, &["thesis.txt"]);
    let must = pretrain(&data, "nothing", &["--resume"]);
    place.refused(&must, 2, &["nothing to resume", "--resume=auto"]);
    place.refused(&["distill", "--resume", "--out", "nothing"], 2, &["nothing to resume"]);
    assert!(!place.path("nothing").exists());
}

#[test]
fn a_finished_run_without_checkpoints_stays_as_it_is() {
    let place = Place::new();
    let data = data();
    let four = ["--steps", "4"];
    let made = place.json(&pretrain(&data, "r", &four));
    fs::remove_dir_all(place.path("r/checkpoints")).unwrap();
    let files = || {
        let mut found = contents(&place.path("r"));
        found.retain(|path, _| !path.ends_with(".lock")); // which names the process
        found
    };
    let before = files();
    let whole = pretrain(&data, "r", &[&four[..], &["--resume=auto"]].concat());
    for again in [&["pretrain", "--resume", "--out", "r"][..], &whole] {
        let found = place.json(again);
        for key in ["steps", "tokens", "flops", "seconds", "val_loss", "parameters", "model"] {
            assert_eq!(found[key], made[key], "{key}");
        }
        assert!(files() == before, "{again:?}");
    }
    // Other models and data than the run's are no reason to print its result.
    for (verb, more, part) in [
        ("pretrain", &["--student", "gpt2-30m"][..], "student: tiny before, gpt2-30m now"),
        ("pretrain", &["--data", "nowhere"], "nowhere now"),
        ("distill", &["--teacher", "r"], "teacher: none before, r now"),
    ] {
        let args = [&[verb, "--resume", "--out", "r"], more].concat();
        place.refused(&args, 2, &["the run there is another one", part]);
        assert!(files() == before, "{args:?}");
    }
    // A program is refused, too.
    let plan = plan_of(&place.path("r")).unwrap();
    let hub =
        HubOptions { offline: true, ..HubOptions::new("http://127.0.0.1:9", &place.path("")) };
    let session = Session::open(&plan, Where { hub: &hub, progress: &Silent }).unwrap();
    let refused = train(session, &place.path("r"), true, &Silent).unwrap_err().to_string();
    assert!(refused.contains("is finished and its checkpoints are gone"), "{refused}");

    let longer = ["pretrain", "--resume", "--out", "r", "--steps", "6"];
    place.refused(&longer, 2, &["checkpoints of this run are gone", "steps: 4 before, 6 now"]);
    let (_, _, said) = place.run(&longer);
    let (_, command) = said.trim().rsplit_once("eslm-kd ").unwrap();
    assert!(command.ends_with("--student r --steps 2 --out r-2"), "{command}");
    let command = shlex::split(command).unwrap();
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    assert_eq!(place.json(&command)["steps"], 2, "the command is whole");
    assert!(files() == before, "whatever was asked for");

    // A longer run that was cut off, and lost its checkpoints.
    let config = fs::read_to_string(place.path("r/config.toml")).unwrap();
    fs::write(place.path("r/config.toml"), config.replace("steps = 4\n", "steps = 6\n")).unwrap();
    let resume = ["pretrain", "--resume", "--out", "r"];
    place.refused(&resume, 2, &["has done 4 of 6 steps", "--steps 2 --out r-3"]);
}

#[test]
fn a_run_without_a_teacher_takes_none_later() {
    let place = Place::new();
    let data = data();
    succeeds(&place, &pretrain(&data, "r", &["--steps", "2"]));
    let config = || fs::read(place.path("r/config.toml")).unwrap();
    let before = config();
    let args = ["distill", "--resume", "--out", "r", "--teacher", "r"];
    place.refused(&args, 2, &["teacher: none before, r now"]);
    assert!(config() == before);
}

#[test]
fn a_plan_reads_the_names_and_shapes_of_weights_that_are_here() {
    let place = Place::new();
    let data = data();
    succeeds(&place, &pretrain(&data, "r", &["--steps", "2"]));
    let file = place.path("r/model/model.safetensors");
    fs::write(&file, &fs::read(&file).unwrap()[..100]).unwrap();
    let plan = ["plan", "--student", "r/model", "--data", &data];
    place.refused(&plan, 3, &["model.safetensors"]);
}

#[test]
fn a_run_without_its_settings_says_so() {
    let place = Place::new();
    let data = data();
    succeeds(&place, &pretrain(&data, "r", &["--steps", "2"]));
    fs::remove_file(place.path("r/config.toml")).unwrap();
    let (code, stdout, _) = place.run(&["runs", "r"]);
    assert!(code == 0 && stdout.contains("r/config.toml is missing"), "{stdout}");
    // Who names all of it again goes on.
    succeeds(&place, &pretrain(&data, "r", &["--steps", "2", "--resume"]));
    assert!(place.path("r/config.toml").is_file());
}

#[test]
fn a_run_becomes_longer_where_its_steps_so_far_would_be_the_same() {
    let place = Place::new();
    let data = data();
    let constant = |out, steps| {
        pretrain(
            &data,
            out,
            &[
                "--set",
                "schedule.kind=constant",
                "--set",
                "schedule.warmup=1",
                "--set",
                "select.burn_in=1",
                "--set",
                "select.ramp=1",
                "--steps",
                steps,
            ],
        )
    };
    succeeds(&place, &constant("whole", "8"));
    succeeds(&place, &constant("r", "4"));
    succeeds(&place, &["pretrain", "--out", "r", "--resume", "--steps", "8"]);
    assert_eq!(weights(&place, "r"), weights(&place, "whole"));
    let rate = ["pretrain", "--out", "r", "--resume", "--steps", "9", "--lr", "1e-3"];
    let (_, _, said) = place.run(&rate);
    assert!(said.contains("optim.lr") && !said.contains("steps:"), "steps may grow: {said}");
    let shorter = ["pretrain", "--out", "r", "--resume", "--steps", "6"];
    place.refused(&shorter, 2, &["cannot become one of 6", "at step 8 already"]);

    // Over the last quarter of its steps the rate falls.
    let wsd = |out, steps| {
        let mut args = constant(out, steps);
        let kind = args.iter().position(|arg| *arg == "schedule.kind=constant").unwrap();
        args[kind] = "schedule.kind=wsd";
        [args, vec!["--set", "schedule.decay=0.25"]].concat()
    };
    succeeds(&place, &wsd("whole-wsd", "16"));
    succeeds(&place, &wsd("w", "8"));
    let longer = ["pretrain", "--out", "w", "--resume", "--steps", "16"];
    let parts = ["wsd", "remove the checkpoints after step 6", "eslm-kd pretrain", "--student w"];
    place.refused(&longer, 2, &parts);
    fs::remove_dir_all(place.path("w/checkpoints/step-00000008")).unwrap();
    succeeds(&place, &longer);
    assert_eq!(weights(&place, "w"), weights(&place, "whole-wsd"));

    succeeds(&place, &pretrain(&data, "c", &["--steps", "4"]));
    let longer = ["pretrain", "--out", "c", "--resume", "--steps", "8"];
    place.refused(
        &longer,
        2,
        &["a run of 4 steps cannot become one of 8", "cosine", "--student c"],
    );
}
