//! The built binary: streams, exit statuses, environment.

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
    assert_eq!(json["tokens"]["per_step"], 4096);
    assert_eq!(json["student"]["parameters"], 675_328);
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
        (&["plan", "nowhere.toml"][..], "no run file at nowhere.toml"),
        (
            &["plan", "quickstart", "--alpha", "2"],
            "--alpha: select.alpha: expected a number in [0, 1), found 2",
        ),
        (&["plan", "quickstart", "--set", "selct.alpha=0"], "did you mean \"select.alpha\"?"),
        (&["plan", "quickstart", "--set", "steps"], "section.key=value"),
        (&["plan", "quickstart", "--alhpa", "0"], "--alpha"),
        (&["plna"], "plan"),
        (&["plan", "-q", "-v"], "cannot be used with"),
    ] {
        let (code, stdout, stderr) = run(&mut eslm_kd(args));
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(stderr.contains(part), "{args:?}: no {part:?} in {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

#[test]
fn help_has_examples() {
    let verbs = [
        "prepare",
        "tokenizer",
        "pretrain",
        "distill",
        "compare",
        "inspect",
        "download",
        "cache",
        "plan",
        "eval",
        "generate",
        "export",
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
