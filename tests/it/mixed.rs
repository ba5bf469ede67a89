//! Several signals mixed by weight, through the program. This is what `signal mix` does.

use crate::support::place::{Place, TINY, copy_folder, data, numbers, save_random, trained};
use crate::support::tiny;
use candle_core::Device;
use eslm_kd::model::{Gpt2, Gpt2Config};
use eslm_kd::store::weights::{SaveOptions, SpecialIds, save_model};
use serde_json::{Value, json};
use std::fs;

/// A place with two teachers and a signal of each.
fn place(kind: &str) -> (Place, String) {
    let (place, data) = (Place::new(), data());
    save_random(&place.path("teacher"), tiny::VOCAB, 64, true);
    let shape = Gpt2Config::new(tiny::VOCAB, 64, 16, 1, 2);
    let model = Gpt2::scratch(shape, 10, &Device::Cpu).unwrap();
    let folder = tiny::world().join("tokenizer");
    let options = SaveOptions { ids: SpecialIds::default(), tokenizer: Some(&folder) };
    fs::create_dir(place.path("other")).unwrap();
    save_model(&place.path("other"), &model.config, &model.params, &options).unwrap();
    for (teacher, seed, out) in [("teacher", "1", "signals/a"), ("other", "2", "signals/b")] {
        let own = ["signal", "write", "--teacher", teacher, "--data", &data, "--out", out];
        let more = ["--signal", kind, "--context", "16", "--seed", seed];
        place.json(&[&own[..], &more].concat());
    }
    (place, data)
}

fn distill<'a>(data: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let steps = ["--steps", "6", "--set", "checkpoint.every=2", "--set", "checkpoint.keep=9"];
    [&["distill", "--data", data, "--out", out][..], &steps, &TINY, more].concat()
}

#[test]
fn a_mix_is_taken_wherever_a_signal_is() {
    let (place, data) = place("sampled=4+4");
    let (both, out) = ("signals/both", ["--out", "signals/both"]);
    let args = [&["signal", "mix", "signals/a=7", "signals/b=3"][..], &out].concat();
    let made = place.json(&args);
    let names = "0.7 teacher + 0.3 other";
    assert_eq!(made["header"]["teacher"]["name"], names);
    assert_eq!(
        (&made["parts"][1]["signal"], &made["parts"][1]["weight"]),
        (&json!("../b"), &json!(0.3))
    );
    let (code, stdout, stderr) = place.run(&args);
    assert!(
        code == 0 && stdout.contains("next: eslm-kd distill --signal signals/both"),
        "{stderr}"
    );
    let listed = place.run(&["signal", "ls"]).1;
    assert!(listed.contains(names) && listed.contains("mix: sampled=8 (4 + 4)"), "{listed}");
    let found = place.json(&["signal", "inspect", both]);
    assert_eq!((&found["hash"], found["parts"].as_array().unwrap().len()), (&made["hash"], 2));
    let text = place.run(&["signal", "inspect", both]).1;
    assert!(text.contains("0.7000 of signals/a") && text.contains(names), "{text}");
    let (code, stdout, _) = place.run(&["signal", "verify", both]);
    assert!(code == 0 && stdout.contains("signals/both: "), "{stdout}");
    // It is no part and no other signal's folder.
    let again = ["signal", "mix", "signals/a", both, "--out", "x"];
    place.refused(
        &again,
        2,
        &["found a mix; name its parts in its place: signals/a=0.7 signals/b=0.3"],
    );
    let own = ["signal", "write", "--teacher", "teacher", "--data", &data, "--out", both];
    place.refused(&own, 2, &["holds mix.json, and no signal"]);
    place.refused(
        &["signal", "mix", "signals/a=1", "signals/b", "--out", "x"],
        2,
        &["signals/b: expected a weight as the others have"],
    );
    // Any score, fewer draws, a plan, an arm; the same after the run has stopped and all has moved.
    place.json(&[&["plan", "kd", "--signal", both, "--data", &data][..], &TINY].concat());
    let way =
        ["--signal", both, "--score", "excess", "--alpha", "0.5", "--set", "objective.samples=4"];
    let early = ["--set", "select.burn_in=1", "--set", "select.ramp=1"];
    let way = [&way[..], &early].concat();
    let whole = trained(&place, &distill(&data, "runs/run", &way), "runs/run");
    for part in ["signals/a", "signals/b"] {
        let out = format!("runs/{}", &part[8..]);
        let more = [&["--signal", part], &way[2..]].concat();
        assert!(trained(&place, &distill(&data, &out, &more), &out) != whole, "{part}");
    }
    place.refused(
        &distill(&data, "runs/x", &["--signal", both, "--set", "objective.divergence=reverse-kl"]),
        2,
        &["holds draws"],
    );
    fs::remove_dir_all(place.path("runs/run/model")).unwrap();
    for step in ["00000004", "00000006"] {
        fs::remove_dir_all(place.path("runs/run/checkpoints").join(format!("step-{step}")))
            .unwrap();
    }
    fs::create_dir(place.path("moved")).unwrap();
    for folder in ["runs", "signals"] {
        fs::rename(place.path(folder), place.path("moved").join(folder)).unwrap();
    }
    let again = ["distill", "--resume", "--out", "moved/runs/run"];
    let (code, _, stderr) = place.run(&again);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("is found at ") && stderr.contains("signals/both"), "{stderr}");
    assert!(numbers(&place.path("moved/runs/run")) == whole);
    // Other weights are another signal; and what a part lost is said of the mix.
    copy_folder(&place.path("moved/runs/run"), &place.path("moved/runs/more"));
    let other = ["signal", "mix", "moved/signals/a", "moved/signals/b", "--out"];
    let both = [&other[..], &["moved/signals/both"]].concat();
    place.refused(&both, 2, &["holds another mix (moved/signals/a=0.7 moved/signals/b=0.3)"]);
    place.json(&[&other[..], &["moved/signals/other"]].concat());
    let more = ["distill", "--resume", "--out", "moved/runs/more", "--steps", "8"];
    let more = [&more[..], &["--signal", "moved/signals/other"]].concat();
    place.refused(&more, 2, &["learned from another signal"]);
    fs::rename(place.path("moved/signals/a"), place.path("moved/signals/c")).unwrap();
    let gone = ["signal", "inspect", "moved/signals/both"];
    place.refused(&gone, 3, &["moved/signals/both: a part of this mix: moved/signals/a: is gone"]);
    let (code, stdout, _) = place.run(&["signal", "verify", "moved/signals/both"]);
    assert!(code == 3 && stdout.contains("moved/signals/a: expected a signal"), "{stdout}");
}

#[test]
fn a_run_on_a_signal_mixed_with_itself_has_the_bits_of_one_on_that_signal() {
    let ways: [&[&str]; 4] = [
        &["--alpha", "0"],
        &["--score", "excess", "--alpha", "0.5"],
        &["--score", "kl", "--alpha", "0.5", "--micro-rows", "2"],
        &["--score", "teacher-entropy", "--alpha", "0.4", "--set", "select.pool=carried"],
    ];
    let early = ["--set", "select.burn_in=1", "--set", "select.ramp=1"];
    for kind in ["sampled=4+4", "top-k=9"] {
        let (place, data) = place(kind);
        place.json(&["signal", "mix", "signals/a", "signals/a", "--out", "twice"]);
        // A folder whose name looks like a weight's.
        fs::rename(place.path("signals/b"), place.path("signals/b=x")).unwrap();
        place.json(&["signal", "mix", "signals/a=0.5", "signals/b=x=0.5", "--out", "both"]);
        for (i, way) in ways.iter().enumerate() {
            let run = |signal: &str, name: &str| {
                let out = format!("{name}-{i}");
                let more = [&["--signal", signal], *way, &early].concat();
                let done = trained(&place, &distill(&data, &out, &more), &out);
                let losses: Vec<Value> =
                    place.metrics(&out).iter().map(|line| line["loss"].clone()).collect();
                (done, losses)
            };
            let one = run("signals/a", "one");
            assert!(one == run("twice", "twice"), "{kind} {way:?}");
            assert!(one != run("both", "both"), "{kind} {way:?}");
        }
    }
}
