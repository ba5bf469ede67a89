//! Whole runs that meet numbers that are not finite, data that changes, and the folder's own rules.

use crate::faults::spawn;
use crate::support::place::{Place, TINY, copy_data, data, numbers, pretrain, timeless};
use crate::support::tiny;
use candle_core::Device;
use eslm_kd::data::tokens::TokenFile;
use eslm_kd::model::{Gpt2, Gpt2Config};
use eslm_kd::store::checkpoint::{self, list, verify};
use eslm_kd::store::weights::{SaveOptions, SpecialIds, save_model};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// A teacher of one block whose rows are finite unless the sequence holds `token`: its embedding
/// and any position's together are beyond f32. Its logit stays 0, since the final norm gives every
/// position the same vector, at right angles to it.
fn save_teacher_that_fails_at(token: u32, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let model = Gpt2::scratch(Gpt2Config::new(tiny::VOCAB, 16, 16, 1, 2), 9, &Device::Cpu).unwrap();
    let set = |name: &str, change: &dyn Fn(&mut [f32])| {
        let (_, tensor) =
            model.params.named().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no {name}"));
        let mut values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        change(&mut values);
        let new = candle_core::Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap();
        tensor.slice_set(&new, 0, 0).unwrap();
    };
    set("ln_f.weight", &|v| v.fill(0.0));
    set("ln_f.bias", &|v| {
        v.fill(0.0);
        v[..2].fill(1.0);
    });
    set("wte.weight", &|v| {
        let row = &mut v[token as usize * 16..][..16];
        row.fill(0.0);
        (row[0], row[1]) = (f32::MAX, -f32::MAX);
    });
    set("wpe.weight", &|v| {
        v.chunks_mut(16).for_each(|row| (row[0], row[1]) = (f32::MAX / 2.0, -f32::MAX / 2.0))
    });
    let folder = tiny::world().join("tokenizer");
    let options = SaveOptions { ids: SpecialIds::default(), tokenizer: Some(&folder) };
    save_model(to, &model.config, &model.params, &options).unwrap();
}

/// A token that a few of the training sequences hold.
fn rare_token() -> u32 {
    let tokens = TokenFile::open(&tiny::data().join("train.bin")).unwrap();
    let all = tokens.to_vec(0..tokens.len()).unwrap();
    let count = |t: u32| all.iter().filter(|x| **x == t).count();
    let wanted = all.len() / 1500;
    (0..tiny::VOCAB as u32)
        .filter(|t| count(*t) > 0)
        .min_by_key(|t| count(*t).abs_diff(wanted))
        .unwrap()
}

#[test]
fn what_is_not_finite_stops_the_run_or_is_skipped() {
    let place = Place::new();
    let data = data();
    save_teacher_that_fails_at(rare_token(), &place.path("teacher"));
    let args = |out: &'static str, more: &[&'static str]| {
        let lengths =
            ["--steps", "40", "--set", "checkpoint.every=1", "--set", "checkpoint.keep=99"];
        [
            &["distill", "--data", &data, "--teacher", "teacher", "--score", "kl", "--out", out][..],
            &TINY,
            &lengths,
            &["--micro-rows", "4"],
            more,
        ]
        .concat()
        .into_iter()
        .map(str::to_string)
        .collect::<Vec<_>>()
    };
    let run = |args: &[String]| place.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let (code, _, stderr) = run(&args("stop", &[]));
    assert_eq!(code, 5, "{stderr}");
    let said: Vec<&str> = stderr.lines().skip_while(|l| !l.starts_with("error: ")).collect();
    for part in ["step ", "sequence ", "position ", "on_nonfinite=skip"] {
        assert!(said[0].contains(part), "no {part:?} in {stderr}");
    }
    let next = "go on: eslm-kd distill --resume --set optim.on_nonfinite=skip --out stop";
    assert_eq!(said[1..], [next], "{stderr}");
    assert!(!place.path("stop/model").exists());

    // The decision to go on may be taken then; the rest is as if it had been taken at the start.
    let skip = ["--set", "optim.on_nonfinite=skip", "--set", "optim.max_skips=40"];
    let (code, _, stderr) = run(&args("stop", &[&skip[..], &["--resume"]].concat()));
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = run(&args("skip", &skip));
    assert!(code == 0 && stderr.contains("batch skipped (1 so far)"), "{stderr}");
    let skipped = |run: &str| place.metrics(run).iter().filter(|l| l["skipped"].is_u64()).count();
    assert!((1..40).contains(&skipped("skip")), "{} of 40 steps skipped", skipped("skip"));
    assert_eq!(timeless(place.metrics("stop")), timeless(place.metrics("skip")));
    assert!(numbers(&place.path("stop")) == numbers(&place.path("skip")));

    // As often as allowed, and no more.
    let (code, _, stderr) =
        run(&args("once", &["--set", "optim.on_nonfinite=skip", "--set", "optim.max_skips=1"]));
    assert!(code == 5 && stderr.contains("1 step was skipped before"), "{stderr}");
    let next = "go on: eslm-kd distill --resume --set optim.max_skips=2 --out once\n";
    assert!(stderr.ends_with(next), "{stderr}");
    assert!(skipped("skip") > 1, "the limit was met");
}

#[test]
fn a_model_that_is_broken_is_begun_again_with_a_lower_rate() {
    let place = Place::new();
    let data = data();
    let rate = ["--steps", "3", "--lr", "1e9", "--set", "optim.on_nonfinite=skip", "--out", "run"];
    let args = [&["pretrain", "--data", &data][..], &TINY, &rate].concat();
    let (code, _, stderr) = place.run(&args);
    assert_eq!(code, 5, "{stderr}");
    let ends = "\ngo on: eslm-kd pretrain run --lr 1.0e8 --out run-lower-lr\n";
    assert!(
        stderr.ends_with(ends) && stderr.contains("\nerror: validation after step 3: "),
        "{stderr}"
    );
    let again = ["pretrain", "run", "--lr", "1e-4", "--out", "run-lower-lr"];
    assert_eq!(place.run(&again).0, 0);
}

#[test]
fn a_run_that_diverges_says_how_far_it_came_and_is_begun_again() {
    let place = Place::new();
    let data = data();
    let mut counted = Vec::new();
    for (name, every) in [("each", "log.every=1"), ("tenth", "log.every=10")] {
        let args = ["--steps", "60", "--lr", "1e9", "--out", name, "--set", every];
        let (code, _, stderr) =
            place.run(&[&["pretrain", "--data", &data][..], &TINY, &args].concat());
        assert_eq!(code, 5, "{stderr}");
        let again = format!("eslm-kd pretrain {name} --lr 1.0e8 --out {name}-lower-lr");
        assert!(stderr.ends_with(&format!("\ngo on: {again}\n")), "{stderr}");
        assert!(!stderr.contains("on_nonfinite=skip"), "{stderr}");
        let report = &place.json(&["report", name])["runs"][0];
        let row = &place.json(&["runs", name])["runs"][0];
        assert_eq!(row["step"], report["step"], "{stderr}");
        let steps = row["step"].as_u64().unwrap();
        let said = format!(": {steps} step");
        assert!(stderr.lines().any(|l| l.contains(&said) && l.contains(" in ")), "{stderr}");
        assert_eq!(place.json(&["runs", "show", name])["next"][0], again.as_str());
        counted.push(steps);
    }
    // All that was done is counted, logged or not.
    assert!(counted[0] > 0 && counted[0] % 10 > 0 && counted[0] == counted[1], "{counted:?}");
}

#[test]
fn data_that_vanishes_or_changes_is_noticed() {
    let place = Place::new();
    let data = place.path("data");
    copy_data(&data);
    let args = pretrain("data", &["--steps", "2", "--out", "run", "--set", "checkpoint.every=1"]);
    place.json(&args);
    let tokens = data.join("train.bin");
    let good = fs::read(&tokens).unwrap();
    let resume = [&args[..], &["--resume"]].concat();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(&tokens, bad).unwrap();
    place.refused(&resume, 3, &["train.bin", "content hash"]);
    fs::remove_file(&tokens).unwrap();
    place.refused(
        &resume,
        3,
        &["data: expected a folder made by `eslm-kd prepare`; it has no train.bin"],
    );
    fs::write(&tokens, &good).unwrap();
    assert_eq!(place.run(&resume).0, 0, "with its data it goes on");

    // Cut under a run: an error, where a memory map alone would end in SIGBUS; the last checkpoint
    // stands.
    let args =
        pretrain("data", &["--steps", "100000", "--out", "cut", "--set", "checkpoint.every=5"]);
    let child = spawn(&place, &args);
    let started = Instant::now();
    while checkpoint::latest(&place.path("cut")).unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    fs::File::options().write(true).open(&tokens).unwrap().set_len(4096).unwrap();
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(3), "{stderr}");
    assert!(
        stderr.contains("\nerror: data/train.bin: changed while it was in use")
            && stderr.ends_with("\ngo on: eslm-kd pretrain --resume --out cut\n"),
        "{stderr}"
    );
    verify(&checkpoint::latest(&place.path("cut")).unwrap().unwrap()).unwrap();
}

#[test]
#[cfg(unix)]
fn files_and_folders_obey_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let data = data();
    let under = |mask: &str, args: &[&str]| {
        let script = format!("umask {mask}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command
            .args(["-c", &script, env!("CARGO_BIN_EXE_eslm-kd")])
            .args(args)
            .args(["--offline", "--quiet"]);
        let out = command.current_dir(place.path("")).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    fn modes(folder: &Path, found: &mut Vec<(String, u32)>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let meta = entry.metadata().unwrap();
            found.push((entry.path().display().to_string(), meta.permissions().mode() & 0o777));
            if meta.is_dir() {
                modes(&entry.path(), found);
            }
        }
    }
    for (mask, file, folder) in [("027", 0o640, 0o750), ("022", 0o644, 0o755)] {
        under(mask, &pretrain(&data, &["--steps", "1", "--out", "run"]));
        under(mask, &["export", "run", "--out", "exported"]);
        let mut found = Vec::new();
        for top in ["run", "exported"] {
            modes(&place.path(top), &mut found);
        }
        assert!(found.len() > 15, "{found:?}");
        for (path, mode) in found {
            let expected = if Path::new(&path).is_dir() { folder } else { file };
            assert_eq!(mode, expected, "{path}: {mode:o} under umask {mask}");
        }
        for top in ["run", "exported"] {
            fs::remove_dir_all(place.path(top)).unwrap();
        }
    }
}

#[test]
fn the_best_checkpoint_stays_and_has_a_name() {
    let place = Place::new();
    let data = data();
    // A rate that soon ruins what was learnt: the best validation is early.
    let more = [
        "--steps",
        "12",
        "--lr",
        "3",
        "--set",
        "schedule.warmup=12",
        "--set",
        "eval.every=2",
        "--out",
        "run",
    ];
    let keep = [
        "--set",
        "checkpoint.every=2",
        "--set",
        "checkpoint.keep=1",
        "--set",
        "checkpoint.keep_best=1",
    ];
    place.json(&pretrain(&data, &[&more[..], &keep].concat()));
    let losses: Vec<(u64, f64)> = place
        .metrics("run")
        .iter()
        .filter_map(|l| Some((l["step"].as_u64()?, l["val_loss"].as_f64()?)))
        .filter(|(step, _)| *step > 0)
        .collect();
    let best = losses.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_ne!(best.0, 12, "{losses:?}");
    let steps: Vec<u64> =
        list(&place.path("run")).unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [best.0, 12]);
    let nll = |model: &str| place.json(&["eval", model, "--data", &data])["nll"].as_f64().unwrap();
    assert!((nll("run/best") - best.1).abs() < 1e-6, "{} is not {}", nll("run/best"), best.1);
    assert!(nll("run/last") > best.1);
    assert_eq!(nll("run/last"), nll("run"));

    let weights = place.path(&format!("run/checkpoints/step-{:08}/model.safetensors", best.0));
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    place.refused(
        &["eval", "run/best", "--data", &data],
        3,
        &["model.safetensors is damaged", "SHA-256"],
    );
    let odd = pretrain(
        &data,
        &[
            "--set",
            "checkpoint.keep_best=1",
            "--set",
            "checkpoint.every=3",
            "--set",
            "eval.every=2",
        ],
    );
    place.refused(&odd, 2, &["checkpoint.keep_best = 1 needs a validation at every checkpoint"]);
}
