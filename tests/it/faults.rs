//! Whole runs under faults: killed at any moment, stopped in any phase, no space, numbers that are
//! not finite, data that changes. Promise: nothing that was saved is lost, nothing half-written is
//! left behind, and one line says what to do.

#[cfg(target_os = "linux")]
use crate::support::place::on_file_system;
use crate::support::place::{
    Place, copy_data, copy_folder, data, everything, numbers, pretrain, save_random, timeless,
    without_settings,
};
use crate::support::tiny;
use eslm_kd::report::text::count;
use eslm_kd::store::checkpoint::{self, list, verify};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// When a run is killed.
enum Moment {
    /// So many milliseconds after its start.
    After(u64),
    /// As soon as a checkpoint is being written.
    Saving,
    /// Once a step is logged whose validation is not.
    Validating,
}

impl Moment {
    fn has_come(&self, run: &Path, started: Instant) -> bool {
        match self {
            Self::After(ms) => started.elapsed() >= Duration::from_millis(*ms),
            Self::Saving => fs::read_dir(run.join("checkpoints")).is_ok_and(|all| {
                all.flatten().any(|e| e.file_name().to_string_lossy().ends_with(".tmp"))
            }),
            Self::Validating => {
                let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
                let last: Option<Value> =
                    text.lines().last().and_then(|line| serde_json::from_str(line).ok());
                last.is_some_and(|line| {
                    line["val_loss"].is_null()
                        && line["step"].as_u64().is_some_and(|step| step.is_multiple_of(4))
                })
            }
        }
    }
}

/// Waits for the moment and sends SIGKILL; false if the run ended before.
fn kill(child: &mut Child, run: &Path, moment: &Moment) -> bool {
    let started = Instant::now();
    loop {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if moment.has_come(run, started) {
            child.kill().unwrap();
            return child.wait().unwrap().code().is_none();
        }
        assert!(started.elapsed() < Duration::from_secs(60), "the moment never came");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Waits for `ready`, then sends the signal; exit status and stderr.
fn stopped(mut child: Child, name: &str, ready: impl Fn() -> bool) -> (Option<i32>, String) {
    let started = Instant::now();
    while !ready() && child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_secs(180), "never ready for its signal");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Where the child has ended already, its status says so.
    let _ =
        Command::new("kill").args([name, &child.id().to_string()]).stderr(Stdio::null()).status();
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

pub fn spawn(place: &Place, args: &[&str]) -> Child {
    place.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn lines(path: &Path) -> usize {
    fs::read(path).map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count())
}

#[test]
fn a_run_killed_at_any_moment_ends_like_one_that_was_not() {
    let place = Place::new();
    save_random(&place.path("teacher"), tiny::VOCAB, 16, true);
    let data = data();
    let args = |out: &'static str| {
        let rhythm = [
            "--steps",
            "200",
            "--set",
            "eval.every=4",
            "--set",
            "checkpoint.every=3",
            "--out",
            out,
        ];
        everything(&data, &rhythm)
    };
    let (code, _, stderr) = place.run(&args("whole"));
    assert_eq!(code, 0, "{stderr}");

    let run = place.path("parts");
    let mut random = 20_261_125_u64;
    let mut after = |least: u64, most: u64| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Moment::After(least + (random >> 33) % (most - least))
    };
    let mut moments = Vec::new();
    for _ in 0..4 {
        moments.extend([after(60, 400), Moment::Saving, after(150, 400), Moment::Validating]);
    }
    let (mut killed, mut ended) = (0, false);
    for moment in &moments {
        let resume = checkpoint::latest(&run).unwrap().is_some();
        if !resume {
            let _ = fs::remove_dir_all(&run);
        }
        let more: &[&str] = if resume { &["--resume"] } else { &[] };
        ended = !kill(&mut spawn(&place, &[&args("parts")[..], more].concat()), &run, moment);
        if ended {
            break;
        }
        killed += 1;
        // Whatever the moment, what has a checkpoint's name is one.
        for (_, path) in list(&run).unwrap() {
            verify(&path).unwrap();
        }
    }
    assert!(killed >= 3, "the run ended before it could be killed more than {killed} times");
    if !ended {
        let (code, _, stderr) = place.run(&[&args("parts")[..], &["--resume"]].concat());
        assert_eq!(code, 0, "{stderr}");
    }
    assert!(
        numbers(&run) == numbers(&place.path("whole")),
        "weights or moments differ after {killed} kills"
    );
    assert_eq!(timeless(place.metrics("parts")), timeless(place.metrics("whole")));
}

/// The test above could fail: with moments of zero, everything else equal, a resumed run ends
/// elsewhere.
#[test]
fn resuming_needs_the_moments() {
    let place = Place::new();
    let data = data();
    let args = [
        "--steps",
        "20",
        "--out",
        "whole",
        "--set",
        "checkpoint.every=10",
        "--set",
        "checkpoint.keep=9",
    ];
    place.json(&pretrain(&data, &args));
    for run in ["warm", "cold"] {
        copy_folder(&place.path("whole"), &place.path(run));
        fs::remove_dir_all(place.path(run).join("checkpoints/step-00000020")).unwrap();
        fs::remove_dir_all(place.path(run).join("model")).unwrap();
    }
    let at = place.path("cold/checkpoints/step-00000010");
    let manifest = at.join("manifest.json");
    let mut said: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    for name in ["adam_m.moments", "adam_v.moments"] {
        let mut bytes = fs::read(at.join(name)).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[header..].fill(0);
        said["files"][name]["sha256"] = format!("{:x}", Sha256::digest(&bytes)).into();
        fs::write(at.join(name), bytes).unwrap();
    }
    fs::write(&manifest, said.to_string()).unwrap();
    let weights = |run: &str| fs::read(place.path(run).join("model/model.safetensors")).unwrap();
    for run in ["warm", "cold"] {
        let (code, _, stderr) = place.run(&["pretrain", "--resume", "--out", run]);
        assert!(code == 0 && stderr.contains("step-00000010"), "{stderr}");
    }
    assert!(weights("warm") == weights("whole"));
    assert!(weights("cold") != weights("whole"));
}

/// A text file of about `megabytes`: the world's stories again and again.
fn long_text(place: &Place, megabytes: usize) -> String {
    let stories = fs::read(tiny::world().join("stories.jsonl")).unwrap();
    let mut file = fs::File::create(place.path("long.jsonl")).unwrap();
    for _ in 0..(megabytes << 20) / stories.len() {
        file.write_all(&stories).unwrap();
    }
    "long.jsonl".into()
}

#[test]
fn every_long_phase_stops_when_asked() {
    let place = Place::new();
    let data = data();
    let long = long_text(&place, 24);
    let tokenizer = tiny::world().join("tokenizer").display().to_string();
    let soon = |ms: u64| {
        let started = Instant::now();
        move || started.elapsed() >= Duration::from_millis(ms)
    };
    let one_line = |stderr: &str| {
        let said: Vec<&str> = stderr.lines().skip_while(|l| !l.starts_with("stopped by")).collect();
        assert!((1..=2).contains(&said.len()) && !stderr.contains("error"), "{stderr}");
        said.join("\n")
    };

    // Tokenising, and learning a tokenizer: nothing is left.
    let prepare = [
        "prepare",
        "--input",
        &long,
        "--tokenizer",
        &tokenizer,
        "--valid-fraction",
        "0.1",
        "--out",
        "out",
    ];
    let train = ["tokenizer", "train", "--input", &long, "--vocab-size", "2000", "--out", "out"];
    for (args, name, code) in [(&prepare[..], "-TERM", 143), (&train[..], "-INT", 130)] {
        let (found, stderr) = stopped(spawn(&place, args), name, soon(250));
        assert_eq!(found, Some(code), "{args:?}: {stderr}");
        one_line(&stderr);
        let left: Vec<_> =
            fs::read_dir(place.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["long.jsonl"], "{args:?} left something behind");
    }

    // Evaluation of a long text.
    save_random(&place.path("model"), tiny::VOCAB, 16, true);
    let (code, stderr) =
        stopped(spawn(&place, &["eval", "model", "--data", &long]), "-INT", soon(400));
    assert_eq!(code, Some(130), "{stderr}");
    one_line(&stderr);

    // Training: saved, and the way on is said. Pretraining a teacher is no other phase.
    let args = pretrain(&data, &["--steps", "100000", "--out", "run", "--set", "eval.every=0"]);
    let metrics = place.path("run/metrics.jsonl");
    let (code, stderr) = stopped(spawn(&place, &args), "-TERM", || lines(&metrics) > 5);
    assert_eq!(code, Some(143), "{stderr}");
    let said = one_line(&stderr);
    let saved = checkpoint::latest(&place.path("run")).unwrap().unwrap();
    let step = verify(&saved).unwrap().step;
    assert!(step >= 5);
    let (at, name) = (count(step), saved.file_name().unwrap().display());
    let expected = format!(
        "stopped by SIGTERM at step {at} of 100,000, saved in run/checkpoints/{name}\n\
         go on: eslm-kd pretrain --resume --out run"
    );
    assert_eq!(said, expected);
    // The command goes on from there, as it stands.
    let next: Vec<&str> = said.lines().last().unwrap().split(' ').skip(3).collect();
    let before = lines(&metrics);
    let (code, stderr) = stopped(spawn(&place, &next), "-INT", || lines(&metrics) > before + 2);
    assert_eq!(code, Some(130), "{stderr}");
    assert!(stderr.contains(&format!("resuming from run/checkpoints/{name}")), "{stderr}");
    let saved = checkpoint::latest(&place.path("run")).unwrap().unwrap();

    // A second signal does not wait for anything; what was saved before stands.
    let child = spawn(&place, &[&args[..], &["--resume"]].concat());
    let before = lines(&metrics);
    let started = Instant::now();
    while lines(&metrics) <= before {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success()
    );
    let _ =
        Command::new("kill").args(["-INT", &child.id().to_string()]).stderr(Stdio::null()).status();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    verify(&saved).unwrap();
    for (_, path) in list(&place.path("run")).unwrap() {
        verify(&path).unwrap();
    }

    // A comparison goes on where it was.
    let run_file = "steps = 60\nstudent = 'tiny'\nmethod = 'clm'\n[shape]\nn_layer = 1\nn_head = 2\nn_embd = 16\n\
                    n_positions = 16\n[data]\ncontext = 16\nrows = 4\n[log]\nevery = 1\n";
    fs::write(place.path("run.toml"), run_file).unwrap();
    let args = [
        "compare",
        "a:run.toml",
        "b:run.toml+optim.lr=1e-3",
        "--data",
        &data,
        "--seeds",
        "1",
        "--out",
        "cmp",
    ];
    let begun = || fs::read_dir(place.path("cmp/runs")).is_ok_and(|mut all| all.next().is_some());
    let (code, stderr) = stopped(spawn(&place, &args), "-INT", begun);
    assert_eq!(code, Some(130), "{stderr}");
    let said = one_line(&stderr);
    let command = said.lines().last().unwrap().strip_prefix("go on: eslm-kd ").unwrap();
    let next: Vec<String> = shlex::split(command).unwrap();
    assert_eq!(next, [&args[..], &["--offline"]].concat());
    let (code, _, stderr) = place.run(&args);
    assert_eq!(code, 0, "{stderr}");
    assert!(place.path("cmp/report.html").is_file());
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_costs_no_checkpoint() {
    let place = Place::new();
    let data = data();
    let rhythm =
        ["--set", "checkpoint.every=2", "--set", "checkpoint.keep=500", "--set", "eval.every=0"];
    let args = |out: &'static str, steps: &'static str| {
        [&pretrain(&data, &["--steps", steps, "--out", out])[..], &rhythm].concat()
    };
    let Some((code, stderr)) = on_file_system(&place, "size=2m", &args("mount/run", "60")) else {
        return;
    };
    assert_eq!(code, 6, "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains("No space left on device"), "{stderr}");
    let run = place.path("copied/run");
    let stands = list(&run).unwrap();
    assert!(stands.len() >= 2, "some fitted");
    for (_, path) in &stands {
        verify(path).unwrap();
    }
    let temporary = |e: fs::DirEntry| e.file_name().to_string_lossy().ends_with(".tmp");
    assert!(
        !fs::read_dir(run.join("checkpoints")).unwrap().any(|e| temporary(e.unwrap())),
        "half a checkpoint is left"
    );

    // With room it goes on, and ends like one that never met the end of a disk.
    let (code, _, stderr) = place.run(&[&args("copied/run", "60")[..], &["--resume"]].concat());
    assert_eq!(code, 0, "{stderr}");
    place.json(&args("whole", "60"));
    assert!(numbers(&run) == numbers(&place.path("whole")));
    assert_eq!(timeless(place.metrics("copied/run")), timeless(place.metrics("whole")));
}

#[test]
#[cfg(target_os = "linux")]
fn a_run_that_cannot_save_does_not_begin() {
    let place = Place::new();
    let data = data();
    let args = pretrain(&data, &["--steps", "2", "--out", "mount/run"]);
    let Some((code, stderr)) = on_file_system(&place, "size=64k", &args) else { return };
    assert_eq!(code, 6, "{stderr}");
    assert!(
        stderr.contains("the run's first checkpoint needs") && stderr.lines().count() == 1,
        "{stderr}"
    );
    assert_eq!(fs::read_dir(place.path("copied")).unwrap().count(), 0, "nothing is left of it");

    let Some((code, stderr)) = on_file_system(&place, "size=2m,ro", &args) else { return };
    assert_eq!(code, 6, "{stderr}");
    assert!(stderr.contains("Read-only file system") && stderr.lines().count() == 1, "{stderr}");
}

/// The quickstart on a corpus that is small and there already; its teacher is the real one, and
/// does not get far.
#[test]
fn the_quickstarts_teacher_stops_and_goes_on() {
    let place = Place::new();
    let cache = place.path("cache");
    copy_data(&cache.join("quickstart-2/data"));
    copy_data(&cache.join("quickstart-2/teacher-data"));
    let teacher = cache.join("quickstart-2/teacher");
    let metrics = teacher.join("metrics.jsonl");
    let distill = |args: &[&str]| {
        let mut command = place.command(args);
        command
            .env("ESLM_KD_CACHE", &cache)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    // The first line is the validation of step 0, the second one comes after ten steps.
    let (code, stderr) =
        stopped(distill(&["distill", "--out", "run"]), "-TERM", || lines(&metrics) > 1);
    assert_eq!(code, Some(143), "{stderr}");
    let last = stderr.lines().last().unwrap();
    let next = last.strip_prefix("go on: eslm-kd ").unwrap();
    assert_eq!(next, "distill --resume=auto --out run --offline");
    assert!(
        stderr.contains("\nstopped by SIGTERM at step ") && !stderr.contains("error"),
        "{stderr}"
    );
    assert!(stderr.contains(" of 'teacher', saved in "), "{stderr}");
    let saved = checkpoint::latest(&teacher).unwrap().unwrap();
    let step = verify(&saved).unwrap().step;
    assert!(step >= 10, "{step}");

    let next: Vec<&str> = next.split(' ').filter(|word| *word != "--offline").collect();
    let (code, stderr) = stopped(distill(&next), "-INT", || lines(&metrics) > 2);
    assert_eq!(code, Some(130), "{stderr}");
    assert!(stderr.contains(&format!("resuming from {}", saved.display())), "{stderr}");
    let steps: Vec<u64> = fs::read_to_string(&metrics)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps[..3], [0, 10, 20]);
    assert!(verify(&checkpoint::latest(&teacher).unwrap().unwrap()).unwrap().step >= 20);
}

#[test]
fn more_memory_than_there_is_is_refused_before_anything_is_written() {
    let (place, data) = (Place::new(), data());
    let long = ["--set", "shape.n_positions=256", "--set", "data.context=256"];
    let rows = ["--set", "data.rows=1_000_000_000", "--out", "run"]; // 4.6 TB of tokens
    let run = pretrain(&data, &[&long[..], &rows].concat());
    let parts = ["lower data.rows (data.rows = 1,000,000,000", "and this machine has"];
    place.refused(&run, 2, &parts);
    assert!(!place.path("run").exists());
    let plan = place.json(&[&["plan"], &run[1..run.len() - 2]].concat());
    assert_eq!(plan["memory"]["batch"], 2 * 9 * 256_000_000_000_u64);
}

fn signal(child: &Child, name: &str) {
    let done = Command::new("kill").args([name, &child.id().to_string()]).status();
    assert!(done.unwrap().success());
}

#[test]
fn the_signals_of_terminals_and_schedulers_save() {
    let place = Place::new();
    let data = data();
    let never = ["--steps", "100000", "--set", "eval.every=0", "--set", "checkpoint.every=0"];
    let args = |out| pretrain(&data, &[&never[..], &["--out", out]].concat());
    for (name, out, code) in [("-HUP", "hup", 129), ("-USR2", "usr2", 140)] {
        let run = place.path(out);
        let metrics = run.join("metrics.jsonl");
        let (found, stderr) = stopped(spawn(&place, &args(out)), name, || lines(&metrics) > 3);
        assert_eq!(found, Some(code), "{stderr}");
        let next = format!("go on: eslm-kd pretrain --resume --out {out}\n");
        assert!(stderr.ends_with(&next), "{stderr}");
        assert!(verify(&checkpoint::latest(&run).unwrap().unwrap()).unwrap().step >= 3);
    }

    // SIGUSR1 saves as often as it comes, and the run goes on. A SIGHUP that is ignored, as under
    // nohup, does nothing.
    let program = place.command(&args("on"));
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]);
    command.arg(program.get_program()).args(program.get_args()).current_dir(place.path(""));
    without_settings(&mut command);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (run, started) = (place.path("on"), Instant::now());
    for wanted in 1..=2 {
        let before = lines(&run.join("metrics.jsonl"));
        while lines(&run.join("metrics.jsonl")) < before + 3 {
            assert!(child.try_wait().unwrap().is_none() && started.elapsed().as_secs() < 60);
            std::thread::sleep(Duration::from_millis(1));
        }
        signal(&child, "-HUP");
        signal(&child, "-USR1");
        while list(&run).unwrap().len() < wanted {
            assert!(child.try_wait().unwrap().is_none(), "the run ended");
            assert!(started.elapsed().as_secs() < 60, "nothing was saved");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    signal(&child, "-TERM");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(143));
    for (_, path) in list(&run).unwrap() {
        verify(&path).unwrap();
    }
}
