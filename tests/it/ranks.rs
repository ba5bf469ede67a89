//! Several processes that `mpirun` starts, in a build with MPI: what they train is what one trains,
//! and they end together. What steps do is tried by threads, in `src/train/among_tests.rs`.
#![cfg(all(feature = "mpi", unix))]

use crate::support::place::{Place, TINY, data, numbers, pretrain, save_random, timeless};
use crate::support::tiny;
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Far above what anything here takes, far below what hangs.
const LONGEST: Duration = Duration::from_secs(120);
/// Until all processes are gone after one of them is.
const TOGETHER: Duration = Duration::from_secs(30);

/// `mpirun`, as a user of a small machine calls it; None where there is none, which is said.
fn mpirun(place: &Place, words: &[&str]) -> Option<Command> {
    if Command::new("mpirun").arg("--version").output().is_err() {
        // Not through the test's captured output.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no mpirun is installed");
        return None;
    }
    let command = place.command(&[]);
    let program = command.get_program().to_os_string();
    let mut launched = Command::new("mpirun");
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => launched.env(name, value),
            None => launched.env_remove(name),
        };
    }
    launched.envs([
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("OMPI_MCA_rmaps_base_oversubscribe", "true"),
        ("OMPI_MCA_hwloc_base_binding_policy", "none"),
        // Sums in the order of a ring, if anything were summed by MPI.
        ("OMPI_MCA_coll_tuned_use_dynamic_rules", "true"),
        ("OMPI_MCA_coll_tuned_allreduce_algorithm", "4"),
    ]);
    for word in words {
        match *word {
            "PROGRAM" => launched.arg(&program),
            word => launched.arg(word),
        };
    }
    launched.current_dir(place.path(".")).stdin(Stdio::null());
    Some(launched)
}

/// The program with `args` in so many processes.
fn ranks(place: &Place, n: &str, args: &[&str]) -> Option<Command> {
    mpirun(place, &[&["-n", n, "PROGRAM", "--offline"], args].concat())
}

/// Exit status, stdout, stderr; panics where it takes too long.
fn ended(command: &mut Command) -> (i32, String, String) {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(LONGEST) else {
        let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        panic!("{command:?} hangs");
    };
    let Output { status, stdout, stderr } = output.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

/// That it went well.
fn done(place: &Place, n: &str, args: &[&str]) -> Option<String> {
    let (code, stdout, stderr) = ended(&mut ranks(place, n, args)?);
    assert_eq!(code, 0, "{n} processes, {args:?}: {stderr}");
    Some(stdout)
}

fn solo(place: &Place, args: &[&str]) {
    let (code, _, stderr) = place.run(args);
    assert_eq!(code, 0, "{args:?}: {stderr}");
}

/// Twenty steps in four groups that can be stopped and lengthened.
const TWENTY: [&str; 14] = [
    "--steps",
    "20",
    "--set",
    "select.burn_in=2",
    "--set",
    "select.ramp=3",
    "--set",
    "machine.groups=4",
    "--set",
    "schedule.kind=constant",
    "--set",
    "schedule.warmup=0",
    "--set",
    "eval.every=10",
];

#[test]
fn any_number_of_processes_trains_the_same_model() {
    let (place, data) = (Place::new(), data());
    save_random(&place.path("teacher"), tiny::VOCAB, 64, true);
    let write = ["signal", "write", "--teacher", "teacher", "--data", &data, "--context", "16"];
    let kind = ["--signal", "sampled=8", "--out", "signal", "--json"];
    let Some(written) = done(&place, "2", &[&write[..], &kind].concat()) else { return };
    let written: Value = serde_json::from_str(&written).unwrap();
    let whole = place.json(&["signal", "inspect", "signal"]);
    assert_eq!((&written["positions"], &written["complete"]), (&whole["positions"], &true.into()));
    assert_eq!(fs::read_dir(place.path("signal")).unwrap().count(), 2, "each wrote its part");
    place.json(&["signal", "verify", "signal"]);
    let distil =
        |more: &[&'static str]| [&["distill", "--data", &data][..], &TINY, &TWENTY, more].concat();
    let ways = [
        ("clm", pretrain(&data, &[&TWENTY[..], &["--method", "clm"]].concat())),
        ("eslm", pretrain(&data, &[&TWENTY[..], &["--alpha", "0.5", "--score", "loss"]].concat())),
        ("live", distil(&["--teacher", "teacher", "--alpha", "0.3"])),
        ("stored", distil(&["--signal", "signal", "--alpha", "0"])),
    ];
    for (name, args) in ways {
        let out = |n: &str| format!("{name}-{n}");
        let one = out("1");
        solo(&place, &[&args[..], &["--out", &one]].concat());
        for n in ["2", "4"] {
            let out = out(n);
            done(&place, n, &[&args[..], &["--out", &out]].concat()).unwrap();
            let same = numbers(&place.path(&out)) == numbers(&place.path(&one));
            assert!(same, "{name}: {n} processes came to other numbers than one");
            assert_eq!(timeless(place.metrics(&out)), timeless(place.metrics(&one)), "{name}, {n}");
        }
    }
}

#[test]
fn a_run_goes_on_in_another_number_of_processes() {
    let (place, data) = (Place::new(), data());
    let args = pretrain(&data, &[&TWENTY[..], &["--alpha", "0.5", "--score", "loss"]].concat());
    solo(&place, &[&args[..], &["--out", "whole"]].concat());
    let begin: Vec<&str> = args.iter().map(|a| if *a == "20" { "6" } else { a }).collect();
    if done(&place, "2", &[&begin[..], &["--out", "run"]].concat()).is_none() {
        return;
    }
    solo(&place, &["pretrain", "--resume", "--steps", "13", "--out", "run"]);
    done(&place, "4", &["pretrain", "--resume", "--steps", "20", "--out", "run"]).unwrap();
    assert!(numbers(&place.path("run")) == numbers(&place.path("whole")));
    // As it is by now, whoever asks.
    let found = done(&place, "2", &["pretrain", "--resume", "--out", "run", "--json"]).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&found).unwrap()["steps"], 20);
    // A run that began in one group goes on in two, and says that it rounds otherwise.
    solo(&place, &[&begin[..], &["--set", "machine.groups=1", "--out", "one"]].concat());
    let more = ["pretrain", "--resume", "--steps", "9", "--out", "one"];
    assert!(done(&place, "2", &more).is_some());
    assert!(numbers(&place.path("one"))[0] != numbers(&place.path("whole"))[0]);
}

#[test]
fn a_comparison_is_trained_by_all_and_led_by_one() {
    let (place, data) = (Place::new(), data());
    let set = ["--set", "steps=8", "--set", "machine.groups=2", "--set", "student=tiny"];
    let tiny: Vec<&str> = TINY[2..].to_vec();
    let args = [&["compare", "clm", "eslm-loss", "--data", &data, "--seeds", "2"][..], &set, &tiny];
    let with = |out: &'static str| [&args.concat()[..], &["--out", out]].concat();
    let Some(said) = done(&place, "2", &with("two")) else { return };
    assert!(said.contains("eslm-loss"), "{said}");
    solo(&place, &with("one"));
    for run in ["clm/seed-1", "clm/seed-2", "eslm-loss/seed-1", "eslm-loss/seed-2"] {
        let read = |out: &str, file: &str| {
            fs::read(place.path(out).join("runs").join(run).join(file)).unwrap()
        };
        for file in ["model/model.safetensors", "evaluation.json"] {
            assert!(read("two", file) == read("one", file), "{run}/{file}");
        }
    }
    // It stands, and is not trained again.
    let again = done(&place, "2", &[&with("two")[..], &["--json"]].concat()).unwrap();
    assert!(serde_json::from_str::<Value>(&again).is_ok(), "{again}");
    let seconds = [&with("new")[..], &["--budget", "seconds"]].concat();
    let (code, _, stderr) = ended(&mut ranks(&place, "2", &seconds).unwrap());
    assert!(code == 2 && stderr.contains("measures steps of one process"), "{stderr}");
}

#[test]
fn they_evaluate_together_and_do_alone_what_one_does() {
    let (place, data) = (Place::new(), data());
    save_random(&place.path("model"), tiny::VOCAB, 64, true);
    let eval = ["eval", "model", "--data", &data, "--context", "16", "--json"];
    let Some(found) = done(&place, "3", &eval) else { return };
    let (_, one, _) = place.run(&eval);
    assert_eq!(found, one, "one object, from one process");
    let planned =
        ["plan", "--student", "tiny", "--data", &data, "--set", "data.context=16", "--json"];
    let of = |more: &[&str]| place.json(&[&planned[..7], more].concat())["memory"].clone();
    let found = done(&place, "2", &planned).unwrap();
    let found = serde_json::from_str::<Value>(&found).unwrap()["memory"].clone();
    assert_eq!(found, of(&["--processes", "2"]), "what each of those that were started takes");
    let less = |key: &str| found[key].as_u64().unwrap() < of(&[])[key].as_u64().unwrap();
    assert!(less("moments") && less("batch") && !less("weights"));
    let listed = done(&place, "2", &["runs", "."]).unwrap();
    let (_, one, _) = place.run(&["runs", "."]);
    assert_eq!(listed, one);
    // What is wrong is said once, and every process ends with its status.
    let mistakes: [(&[&str], i32, &str); 4] = [
        (&["pretrain", "--dta", "x"], 2, "--dta"),
        (&["pretrain", "--data", "nowhere", "--out", "run"], 3, "nowhere"),
        (&["generate", "nowhere", "--prompt", "a"], 3, "nowhere"),
        (
            &[
                "pretrain",
                "--data",
                &data,
                "--student",
                "tiny",
                "--set",
                "data.rows=3",
                "--out",
                "run",
            ],
            2,
            "data.rows = 3",
        ),
    ];
    for (args, status, part) in mistakes {
        let (code, stdout, stderr) = ended(&mut ranks(&place, "2", args).unwrap());
        let said = stderr.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!((code, said, stdout.as_str()), (status, 1, ""), "{args:?}: {stderr}");
        assert!(stderr.contains(part), "{args:?}: {stderr}");
    }
    assert!(!place.path("run").exists());
}

/// A run of many steps in two processes.
fn long(place: &Place, data: &str, more: &[&str]) -> Option<Child> {
    let args = pretrain(data, &[&["--steps", "100000", "--out", "run", "--set"], more].concat());
    let mut command = ranks(place, "2", &args)?;
    Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LONGEST, "waited for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the run's metrics have a line of that step.
fn has_come_to(place: &Place, step: u64) -> bool {
    let text = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap_or_default();
    text.contains(&format!("{{\"step\":{step},\"loss\""))
}

fn kill(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// Exit status and stderr; panics unless it ends in time.
fn ends(child: Child) -> (Option<i32>, String) {
    let (begun, pid) = (Instant::now(), child.id());
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(TOGETHER) else {
        kill("-9", pid);
        panic!("processes hang");
    };
    let output = output.unwrap();
    assert!(begun.elapsed() < TOGETHER);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The processes that a launcher started, by the kernel's word.
fn children(of: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn checkpoints(run: &Path) -> Vec<String> {
    let Ok(found) = fs::read_dir(run.join("checkpoints")) else { return Vec::new() };
    let mut names: Vec<String> =
        found.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.starts_with("step-"));
    names.sort();
    names
}

#[test]
fn a_process_that_is_killed_takes_the_others_along_and_leaves_the_last_checkpoint() {
    let (place, data) = (Place::new(), data());
    let Some(child) = long(&place, &data, &["checkpoint.every=20"]) else { return };
    wait_until("a checkpoint", || checkpoints(&place.path("run")).len() == 2);
    let processes = children(child.id());
    assert_eq!(processes.len(), 2, "mpirun starts its processes itself on one machine");
    kill("-9", processes[1]);
    let (code, stderr) = ends(child);
    assert!(code != Some(0), "{stderr}");
    wait_until("all to be gone", || {
        processes.iter().all(|pid| !Path::new(&format!("/proc/{pid}/exe")).exists())
    });
    let newest = checkpoints(&place.path("run")).pop().unwrap();
    let mut resumed = ranks(&place, "2", &["pretrain", "--resume", "--out", "run"]).unwrap();
    let resumed = resumed.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it to go on", || checkpoints(&place.path("run")).pop().unwrap() > newest);
    kill("-USR2", resumed.id());
    let (_, stderr) = ends(resumed);
    assert!(stderr.contains(&format!("resuming from run/checkpoints/{newest}")), "{stderr}");
}

#[test]
fn a_signal_to_one_saves_and_stops_all_at_the_same_step() {
    let (place, data) = (Place::new(), data());
    let Some(child) = long(&place, &data, &["checkpoint.every=0"]) else { return };
    wait_until("steps", || has_come_to(&place, 3));
    let processes = children(child.id());
    kill("-USR1", processes[1]);
    wait_until("a checkpoint", || checkpoints(&place.path("run")).len() == 1);
    let saved = checkpoints(&place.path("run"))[0]["step-".len()..].parse::<u64>().unwrap();
    wait_until("steps", || has_come_to(&place, saved + 2));
    kill("-USR2", processes[1]);
    let (code, stderr) = ends(child);
    assert_eq!(code, Some(140), "{stderr}");
    let stopped: Vec<&str> = stderr.lines().filter(|l| l.starts_with("stopped by ")).collect();
    assert_eq!(stopped.len(), 1, "{stderr}");
    assert!(stopped[0].starts_with("stopped by SIGUSR2 at step "), "{stderr}");
    assert!(stderr.contains("go on: eslm-kd pretrain --resume --out run"), "{stderr}");
    assert_eq!(checkpoints(&place.path("run")).len(), 2);
}

#[test]
fn a_disk_that_fails_ends_all_of_them() {
    let (place, data) = (Place::new(), data());
    let Some(child) = long(&place, &data, &["checkpoint.every=0"]) else { return };
    wait_until("steps", || has_come_to(&place, 3));
    // Where checkpoints are to go, something else stands.
    fs::write(place.path("run/checkpoints"), "").unwrap();
    kill("-USR1", children(child.id())[0]);
    let (code, stderr) = ends(child);
    assert_eq!(code, Some(6), "{stderr}");
    assert!(stderr.contains("error: process 0 of 2: "), "{stderr}");
    assert_eq!(stderr.lines().filter(|l| l.starts_with("error: ")).count(), 1, "{stderr}");
}

#[test]
fn what_fails_in_one_process_is_told_with_its_number() {
    let (place, data) = (Place::new(), data());
    let args = pretrain(&data, &["--out", "run"]);
    let other = args.iter().map(|a| if *a == data { "nowhere" } else { a }).collect::<Vec<_>>();
    let (one, two) =
        (["-n", "1", "PROGRAM", "--offline"], [":", "-n", "1", "PROGRAM", "--offline"]);
    let words = [&one[..], &args, &two, &other].concat();
    let Some(mut command) = mpirun(&place, &words) else { return };
    let (code, stdout, stderr) = ended(&mut command);
    assert_eq!((code, stdout.as_str()), (3, ""), "{stderr}");
    assert!(stderr.contains("error: process 1 of 2: nowhere"), "{stderr}");
    assert!(!place.path("run").exists());
    // What two were told otherwise is found before they wait for each other.
    save_random(&place.path("a"), tiny::VOCAB, 16, true);
    save_random(&place.path("b"), tiny::VOCAB, 32, true);
    let eval = |model: &'static str| {
        ["eval", model, "--data", &data, "--context", "16"].map(str::to_string).to_vec()
    };
    let owned = |args: &[&str]| args.iter().map(|a| a.to_string()).collect::<Vec<_>>();
    let signal = ["signal", "write", "--teacher", "a", "--data", &data, "--context", "16"];
    let kind = ["--signal", "sampled=8"];
    let write = |more: &[&str]| {
        let out: &[&str] = if more.contains(&"--out") { &[] } else { &["--out", "run"] };
        owned(&[&signal[..], &kind, out, more].concat())
    };
    let with = |more: &[&str]| owned(&[&args[..], more].concat());
    for (first, second, what) in [
        (with(&[]), with(&["--seed", "7"]), "seed is 7 here and 42 in process 0"),
        (with(&[]), with(&["--micro-rows", "1"]), "machine.micro_rows is 1 here"),
        (with(&[]), with(&["--set", "eval.rows=1"]), "eval.rows is 1 here and 0 in process 0"),
        (with(&[]), owned(&["runs", "."]), "the verb is runs here and pretrain in process 0"),
        (eval("a"), eval("b"), "the model (SHA-256) is "),
        (write(&[]), write(&["--stride", "8"]), "the signal's windows is "),
        (write(&[]), write(&["--seed", "7"]), "the signal's seed is 7 here and 42 in process 0"),
        (
            write(&[]),
            write(&["--out", "elsewhere"]),
            "--out is elsewhere here and run in process 0",
        ),
    ] {
        let words: Vec<&str> = (one.iter().copied())
            .chain(first.iter().map(String::as_str))
            .chain(two)
            .chain(second.iter().map(String::as_str))
            .collect();
        let (code, stdout, stderr) = ended(&mut mpirun(&place, &words).unwrap());
        assert_eq!((code, stdout.as_str()), (2, ""), "{what}: {stderr}");
        assert!(stderr.contains(&format!("error: process 1 of 2: {what}")), "{what}: {stderr}");
        assert!(!place.path("run").exists(), "{what}");
    }
    // A word that one alone was given.
    let typo = with(&["--sed", "7"]);
    let words = [&one[..], &args, &two].concat();
    let words: Vec<&str> = words.into_iter().chain(typo.iter().map(String::as_str)).collect();
    let (code, _, stderr) = ended(&mut mpirun(&place, &words).unwrap());
    assert!(
        code == 2 && stderr.contains("error: process 1 of 2: eslm-kd pretrain has no --sed"),
        "{stderr}"
    );
}
