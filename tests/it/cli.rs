//! The built binary: streams, exit statuses, environment.

use crate::support::place::save_random;
use crate::support::tiny;
use std::process::{Command, Output, Stdio};

/// The binary with a clean environment.
fn eslm_kd(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eslm-kd"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ESLM_KD_")) {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn plan_prints_json_that_a_program_can_read() {
    let (code, stdout, stderr) = run(&mut eslm_kd(&["plan", "quickstart", "--json"]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(stdout.lines().count(), 1);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["tokens"]["per_step"], 1024);
    assert_eq!(json["student"]["parameters"], 646_912);
}

#[test]
fn environment_twins_count_less_than_flags_and_more_than_files() {
    let origin = |command: &mut Command, key: &str| {
        let (code, stdout, stderr) = run(command);
        assert_eq!(code, 0, "{stderr}");
        let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        let values = json["values"].as_array().unwrap();
        let entry = values.iter().find(|v| v["key"] == key).unwrap();
        (entry["value"].clone(), entry["origin"].as_str().unwrap().to_string())
    };
    let args = ["plan", "quickstart", "--json"];
    let (value, from) = origin(eslm_kd(&args).env("ESLM_KD_ALPHA", "0.4"), "select.alpha");
    assert_eq!((value, from.as_str()), (0.4.into(), "environment ESLM_KD_ALPHA"));
    let flags = ["plan", "quickstart", "--json", "--alpha", "0.6"];
    let (value, from) = origin(eslm_kd(&flags).env("ESLM_KD_ALPHA", "0.4"), "select.alpha");
    assert_eq!((value, from.as_str()), (0.6.into(), "--alpha"));
    // Set but empty is not set; and the global flags have twins, too.
    let mut empty = eslm_kd(&["plan", "quickstart"]);
    let (_, from) = origin(empty.env("ESLM_KD_ALPHA", "").env("ESLM_KD_JSON", "1"), "select.alpha");
    assert!(from.starts_with("built-in quickstart.toml:"), "{from}");
}

#[test]
fn mistakes_exit_with_2_and_speak_on_stderr() {
    for (args, part) in [
        (
            &["plan", "quickstart", "--alpha", "2"][..],
            "--alpha: select.alpha: expected a number in [0, 1), found 2",
        ),
        (&["plan", "quickstart", "--set", "selct.alpha=0"], "did you mean \"select.alpha\"?"),
        (&["plan", "quickstart", "--set", "steps"], "section.key=value"),
        (&["plan", "quickstart", "--alhpa", "0"], "--alpha"),
        (&["plna"], "plan"),
        (&["plan", "-q", "-v"], "--quiet and --verbose exclude each other"),
    ] {
        let (code, stdout, stderr) = run(&mut eslm_kd(args));
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(stderr.contains(part), "{args:?}: no {part:?} in {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

#[test]
fn the_doctor_says_what_is_wrong_and_shows_no_secret() {
    let home = tempfile::tempdir().unwrap();
    let doctor = |more: &[(&str, &str)], args: &[&str]| {
        let mut command = eslm_kd(&[&["doctor"], args].concat());
        crate::support::place::without_settings(&mut command);
        command.env("HOME", home.path()).env_remove("XDG_CACHE_HOME").current_dir(home.path());
        run(command.envs(more.iter().copied()))
    };
    let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let (code, stdout, stderr) = doctor(&[("HF_TOKEN", "hf_secret")], &["--json"]);
    assert_eq!((code, stdout.lines().count(), stderr.as_str()), (0, 1, ""), "{stdout}");
    let health = read(&stdout);
    assert!(health["products"]["gflops"].as_f64().unwrap() > 0.0);
    assert!(health["chip"]["threads"].as_u64().unwrap() >= 1);
    assert_eq!((&health["hub"]["token"], &health["hub"]["offline"]), (&true.into(), &false.into()));
    assert_eq!(health["hub"]["cache"]["exists"], false);
    assert!(health["gpu"]["built"] == cfg!(feature = "cuda") && !stdout.contains("secret"));
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "nothing was written");

    let wrong =
        [("HF_ENDPOINT", "nowhere"), ("ESLM_KD_CACHE", "/dev/null/x"), ("HF_TOKEN", "hf_s")];
    let (code, stdout, _) = doctor(&wrong, &["--offline"]);
    assert_eq!(code, 0, "what hinders some of it prevents nothing: {stdout}");
    for part in [
        "warning: HF_ENDPOINT must be an http or https address",
        "warning: /dev/null/x/quickstart-2 cannot be written to",
        "set ESLM_KD_CACHE",
        "nowhere, a token, offline",
        "GFLOP/s in f32",
    ] {
        assert!(stdout.contains(part), "no {part:?} in\n{stdout}");
    }
    assert!(!stdout.contains("hf_s"), "{stdout}");

    // A file system of the kernel's takes no results.
    if std::path::Path::new("/proc/self").is_dir() {
        let mut command = eslm_kd(&["doctor", "--json"]);
        let (code, stdout, stderr) = run(command.current_dir("/proc"));
        let findings = read(&stdout)["findings"].clone();
        assert!(code == 6 && stderr.starts_with("error: "), "{code} {stderr}");
        assert_eq!(findings[0]["prevents"], true, "{findings}");
    }
}

#[test]
fn manual_pages_and_completions_are_written() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("man");
    let (code, stdout, _) = run(&mut eslm_kd(&["man", "--out", out.to_str().unwrap(), "--json"]));
    assert_eq!(code, 0);
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    for page in report["pages"].as_array().unwrap() {
        let text = std::fs::read_to_string(out.join(page.as_str().unwrap())).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
    let (_, main, _) = run(&mut eslm_kd(&["man"]));
    assert_eq!(main, std::fs::read_to_string(out.join("eslm-kd.1")).unwrap());
    let (code, script, _) = run(&mut eslm_kd(&["completions", "bash"]));
    assert!(code == 0 && script.contains("complete -F"), "{script}");
    let (code, _, stderr) = run(&mut eslm_kd(&["completions", "csh"]));
    assert!(code == 2 && stderr.contains("expected one of bash"), "{stderr}");
}

#[test]
fn help_has_examples() {
    let verbs = [
        "prepare",
        "tokenizer",
        "pretrain",
        "distill",
        "signal",
        "compare",
        "inspect",
        "download",
        "cache",
        "plan",
        "eval",
        "generate",
        "report",
        "export",
        "runs",
        "doctor",
        "completions",
        "man",
    ];
    let (_, top, _) = run(&mut eslm_kd(&["--help"]));
    for args in verbs
        .map(|verb| vec![verb, "--help"])
        .into_iter()
        .chain([vec!["--help"], vec!["tokenizer", "train", "--help"]])
    {
        let (code, stdout, _) = run(&mut eslm_kd(&args));
        assert!(
            code == 0 && stdout.contains("Examples:") && stdout.contains("--offline"),
            "{args:?}: {stdout}"
        );
        assert!(
            args.len() == 1 || top.contains(&format!("\n  {} ", args[0])),
            "{} is missing:\n{top}",
            args[0]
        );
    }
    let listed = top.split("Commands:").nth(1).and_then(|s| s.split("Options").next()).unwrap();
    // A longer description goes on further to the right.
    let found =
        listed.lines().filter_map(|l| l.strip_prefix("  ")).filter(|l| !l.starts_with(' ')).count();
    assert_eq!(found, verbs.len() + 1, "a verb is missing above (help is one):\n{listed}");
}

/// A reader that has gone away is no reason to panic or to fail.
#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = eslm_kd(&["plan", "quickstart"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!((status.code(), String::from_utf8(stderr).unwrap().as_str()), (Some(0), ""));
}

/// A model with random weights; it lives as long as the folder.
fn model() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    save_random(folder.path(), tiny::VOCAB, 16, true);
    let name = folder.path().display().to_string();
    (folder, name)
}

#[test]
fn values_begin_with_a_dash_and_numbers_are_written_as_people_do() {
    let (_folder, model) = model();
    let generate = ["generate", &model, "--max-tokens", "2", "--temperature", "0", "--json"];
    for prompt in ["- one", "-5 degrees", "--- a title"] {
        let (code, stdout, stderr) =
            run(&mut eslm_kd(&[&generate[..], &["--prompt", prompt]].concat()));
        assert_eq!(code, 0, "{stderr}");
        let found: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(found["prompt"], *prompt);
    }
    // A flag stays a flag.
    let (code, _, stderr) = run(&mut eslm_kd(&["generate", &model, "--prompt", "--json"]));
    assert!(code == 2 && stderr.contains("--prompt"), "{stderr}");

    for (args, key, value) in [
        (&["--lr", ".001"][..], "optim.lr", 1e-3),
        (&["--set", "optim.lr=5.e-4"], "optim.lr", 5e-4),
        (&["--steps", "1_000"], "steps", 1000.0),
        (&["--steps", "1e3"], "steps", 1000.0),
        (&["--seed", "007"], "seed", 7.0),
    ] {
        let plan = [&["plan", "pretrain-14m", "--json"], args].concat();
        let (code, stdout, stderr) = run(&mut eslm_kd(&plan));
        assert_eq!(code, 0, "{args:?}: {stderr}");
        let found: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        let values = found["values"].as_array().unwrap();
        let found = values.iter().find(|v| v["key"] == key).unwrap()["value"].as_f64();
        assert_eq!(found, Some(value), "{args:?}");
    }
    let (code, _, stderr) = run(eslm_kd(&["plan", "pretrain-14m"])
        .env("ESLM_KD_ALPHA", ".5")
        .env("ESLM_KD_LR", "1__0"));
    assert!(code == 2 && stderr.contains("ESLM_KD_LR"), "{stderr}");
    for (flag, text) in [("--temperature", ".5"), ("--seed", "1_000"), ("--top-k", "1e1")] {
        let (code, _, stderr) = run(&mut eslm_kd(&[&generate[..4], &[flag, text]].concat()));
        assert_eq!(code, 0, "{flag} {text}: {stderr}");
    }
}

#[test]
fn an_empty_variable_is_no_variable() {
    let (_folder, model) = model();
    let mut command = eslm_kd(&["generate", &model, "--max-tokens", "1"]);
    for name in
        ["ESLM_KD_SEED", "ESLM_KD_DEVICE", "ESLM_KD_JSON", "ESLM_KD_QUIET", "ESLM_KD_OFFLINE"]
    {
        command.env(name, "");
    }
    let (code, _, stderr) = run(&mut command);
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn text_does_not_steer_a_terminal() {
    let (_folder, model) = model();
    let prompt = "a\u{1b}]0;title\u{7}\rb\u{9b}31mc";
    let args = ["generate", &model, "--max-tokens", "1", "--temperature", "0", "--prompt", prompt];
    let (code, stdout, stderr) = run(&mut eslm_kd(&args));
    assert!(code == 0 && stdout.starts_with(prompt), "a pipe gets the text as it is: {stderr}");
    // `script` runs a command on a terminal of its own.
    let mut terminal = Command::new("script");
    let quoted: Vec<String> = args.iter().map(|a| format!("'{a}'")).collect();
    let whole = format!("{} {} --quiet", env!("CARGO_BIN_EXE_eslm-kd"), quoted.join(" "));
    terminal.args(["-qec", &whole, "/dev/null"]).stdin(Stdio::null());
    let Ok(Output { stdout, .. }) = terminal.output() else {
        eprintln!("skipped: there is no program `script` here");
        return;
    };
    let shown = String::from_utf8(stdout).unwrap();
    assert!(shown.contains("a␛]0;title␇␍b\u{fffd}31mc"), "{shown:?}");
}
