//! Runs that begin or go on by one command, and runs that become longer.

use crate::support::place::{Place, TINY, data};
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
