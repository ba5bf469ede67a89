//! What a person sees: lines that fit the window, colours where they may be, nothing of both in a
//! pipe.

use crate::support::place::{Place, TINY, data, save_random};
use crate::support::tiny;
use std::fs;
use std::process::Command;

/// What a command shows on a terminal of so many columns; None where this machine has no program
/// `script`, which makes terminals.
fn shown(place: &Place, columns: usize, args: &[&str], env: &[(&str, &str)]) -> Option<String> {
    let plain = place.command(args);
    let mut words = vec![plain.get_program().to_string_lossy().into_owned()];
    words.extend(plain.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    let words: Vec<String> =
        words.iter().map(|word| shlex::try_quote(word).unwrap().into_owned()).collect();
    let whole = format!("stty cols {columns}; {}", words.join(" "));
    let mut command = Command::new("script");
    command.args(["-qec", &whole, "/dev/null"]).current_dir(place.path(""));
    command.env("TERM", "xterm").env_remove("NO_COLOR");
    crate::support::place::without_settings(&mut command);
    command.envs(env.iter().copied());
    let Ok(output) = command.output() else {
        eprintln!("skipped: there is no program `script` here");
        return None;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let refused = text.contains("error:");
    assert!(output.status.success() != refused, "{args:?}: {text}");
    Some(text)
}

/// The lines of a terminal, also those drawn over, without styles.
fn lines(text: &str) -> Vec<String> {
    let mut plain = String::new();
    let mut letters = text.chars();
    while let Some(c) = letters.next() {
        match c {
            '\u{1b}' => drop(letters.by_ref().skip(1).find(char::is_ascii_alphabetic)),
            '\r' => plain.push('\n'),
            c => plain.push(c),
        }
    }
    plain.lines().map(|line| line.trim_end().to_string()).filter(|l| !l.is_empty()).collect()
}

#[test]
fn lines_fit_the_window() {
    let place = Place::new();
    let data = data();
    save_random(&place.path("model"), tiny::VOCAB, 16, true);
    fs::write(place.path("text.txt"), "One fine day the fox ran.\n".repeat(9)).unwrap();
    for columns in [40, 60, 80] {
        let out = format!("run-{columns}");
        let train = [
            &["pretrain", "--data", &data][..],
            &TINY,
            &["--score", "loss", "--alpha", "0.5", "--steps", "30", "--out", &out],
            &["--set", "select.burn_in=0", "--set", "select.ramp=0", "--set", "eval.every=10"],
        ]
        .concat();
        let commands: [&[&str]; 8] = [
            &["--help"],
            &["compare", "--help"],
            &["prepare", "-h"],
            &["plan", "quickstart"],
            &["plan", "quickstart", "--verbose"],
            &train,
            &["inspect", "model", "--text", "text.txt"],
            &["eval", "model", "--data", &data],
        ];
        // Help is laid out for 60 at least.
        let from = if columns < 60 { 3 } else { 0 };
        for args in &commands[from..] {
            let Some(text) = shown(&place, columns, args, &[]) else { return };
            let lines = lines(&text);
            assert!(lines.len() > 1, "{args:?}: {text}");
            for line in &lines {
                let width = line.chars().count();
                let fits = width <= columns || line.starts_with("next: ");
                assert!(fits, "{columns}: {args:?}: {width} columns in {line:?}");
            }
            if args.contains(&"pretrain") && columns < 60 {
                // The figures alone, in one line.
                let bar = |l: &&String| l.contains("/30 steps, ") && l.ends_with(" left");
                assert!(lines.iter().any(|l| bar(&l)), "{lines:#?}");
            } else if args.contains(&"pretrain") {
                // The bar has the run's label and the time that is left, which the lines then need
                // not say.
                let bar = |l: &&String| l.starts_with("eslm tiny ") && l.contains(" steps, ");
                assert!(lines.iter().filter(bar).any(|l| l.ends_with(" left")), "{lines:#?}");
                assert!(!lines.iter().any(|l| l.starts_with("step ") && l.contains("left")));
            }
        }
    }
}

/// The widest column of names behind which lines go on.
const HANG: usize = 16;

/// Notes, errors and sentences go on in a next line between two words, and tables fit.
#[test]
fn prose_breaks_between_words() {
    let place = Place::new();
    let data = data();
    let long = "a-folder-with-a-name/that-is/longer-than-a-narrow-window-has-columns";
    let train = [
        &["pretrain", "--data", &data][..],
        &TINY,
        &["--method", "clm", "--steps", "2", "--out", long, "--set", "shape.n_layer=1"],
    ]
    .concat();
    assert_eq!(place.run(&train).0, 0);
    let commands: [&[&str]; 8] = [
        &["plan", "quickstart"],
        &["runs", long],
        &["runs", "show", long],
        &["doctor"],
        &["eval", "nothing", "--data", "text.txt"],
        &["eval", long, "--data", "nothing.txt"],
        &["runs", "show"],
        &["pretrain", "--resume", "--out", "nowhere"],
    ];
    for args in commands {
        let (_, stdout, stderr) = place.run(args);
        let whole = stdout + &stderr;
        // Figures are measured anew.
        let is_figure = |word: &str| word.contains(|c: char| c.is_ascii_digit());
        for columns in [40, 60, 80] {
            let Some(text) = shown(&place, columns, args, &[]) else { return };
            let lines = lines(&text);
            assert!(!lines.is_empty());
            for line in &lines {
                let long = |word: &str| word.chars().count() + HANG > columns;
                let alone = line.split_whitespace().any(long) || line.contains('`');
                let pasted = line.starts_with("next: ") || line.starts_with("go on: ");
                let width = line.chars().count();
                assert!(width <= columns || alone || pasted, "{columns}: {args:?}: {line:?}");
            }
            if columns == 40 && args[0] == "runs" {
                continue; // a table in two parts
            }
            if args[0] == "doctor" {
                continue; // what it advises depends on what it measures: another call, other words
            }
            for word in lines.iter().flat_map(|line| line.split_whitespace()) {
                let known = whole.split_whitespace().any(|w| w == word);
                // The unit of what is measured anew may be another.
                let bare = word.trim_matches(|c: char| !c.is_ascii_alphabetic());
                let unit = ["s", "ms", "min", "h", "bytes", "KiB", "MiB", "GiB"].contains(&bare);
                let whole_word = is_figure(word) || unit || known;
                assert!(whole_word, "{columns}: {args:?}: part of a word: {word}");
            }
        }
    }
}

#[test]
fn colours_are_for_terminals_that_may_show_them() {
    let place = Place::new();
    save_random(&place.path("model"), tiny::VOCAB, 16, true);
    fs::write(place.path("text.txt"), "One fine day the fox ran.\n".repeat(9)).unwrap();
    let inspect = ["inspect", "model", "--text", "text.txt"];
    let eval = ["eval", "model", "--data", "text.txt"];
    for args in [&inspect[..], &eval] {
        let Some(text) = shown(&place, 80, args, &[]) else { return };
        assert!(text.contains("\u{1b}[1m"), "headings are bold: {text:?}");
        for env in [[("NO_COLOR", "1")], [("TERM", "dumb")]] {
            let text = shown(&place, 80, args, &env).unwrap();
            // A bar is no colour; a dumb terminal can draw none.
            let styled = text.contains("\u{1b}[1") || text.contains("\u{1b}[3");
            let drawn = env[0].0 == "TERM" && text.contains('\u{1b}');
            assert!(!styled && !drawn, "{env:?}: {text:?}");
        }
        let (code, stdout, stderr) = place.run(args);
        assert!(code == 0 && !(stdout + &stderr).contains('\u{1b}'));
    }
    let text = shown(&place, 80, &inspect, &[]).unwrap();
    assert!(text.contains("\u{1b}[1;4m"), "kept tokens are marked: {text:?}");

    // Errors are red, those of the command line, too.
    for wrong in [&["eval", "model"][..], &["eval", "model", "--data", "nothing.txt"]] {
        let whole = format!("{} {}; true", env!("CARGO_BIN_EXE_eslm-kd"), wrong.join(" "));
        let on_terminal = |env: &[(&str, &str)]| {
            let mut command = Command::new("script");
            command.args(["-qec", &whole, "/dev/null"]).current_dir(place.path(""));
            command.env("TERM", "xterm").env_remove("NO_COLOR").envs(env.iter().copied());
            String::from_utf8(command.output().unwrap().stdout).unwrap()
        };
        assert!(on_terminal(&[]).contains("\u{1b}[1;31merror:\u{1b}[0m "), "{wrong:?}");
        for env in [[("NO_COLOR", "1")], [("TERM", "dumb")]] {
            let text = on_terminal(&env);
            assert!(text.starts_with("error: ") && !text.contains('\u{1b}'), "{env:?}: {text:?}");
        }
    }
}

/// In a pipe, too, a text has the width of a page, brackets included.
#[test]
fn inspects_text_has_80_columns_in_a_pipe() {
    let place = Place::new();
    save_random(&place.path("model"), tiny::VOCAB, 16, true);
    let text = format!("{}\n\n{}.\n", "The fox ran far. ".repeat(20), "a".repeat(99));
    fs::write(place.path("text.txt"), &text).unwrap();
    let (code, out, stderr) = place.run(&["inspect", "model", "--text", "text.txt"]);
    assert_eq!(code, 0, "{stderr}");
    let widest = out.lines().max_by_key(|line| line.chars().count()).unwrap();
    assert!(widest.chars().count() <= 80, "{widest}");
    let letters = |text: &str| text.replace(|c: char| c.is_whitespace() || "[]".contains(c), "");
    assert!(letters(&out).starts_with(&letters(&text)), "nothing of it is lost: {out}");
}

/// What a program reads does not depend on a window.
#[test]
fn a_pipe_has_one_line_a_row_whatever_the_window() {
    let place = Place::new();
    let (code, stdout, _) = place.run(&["plan", "quickstart", "--verbose"]);
    assert_eq!(code, 0);
    let models = stdout.lines().find(|l| l.starts_with("model ")).unwrap();
    assert!(models.contains("parameters") && models.ends_with("heads"), "{models}");
    assert!(stdout.lines().any(|line| line.len() > 100), "help texts stay whole");
    let narrow = place.command(&["plan", "quickstart", "--verbose"]).env("COLUMNS", "40").output();
    let narrow = String::from_utf8(narrow.unwrap().stdout).unwrap();
    // How long a step takes is measured each time anew.
    let same = |text: &str| text.split("time here").next().unwrap_or_default().to_string();
    assert_eq!(same(&narrow), same(&stdout));
    assert!(same(&stdout).contains("memory in all"));
    // What the quickstart takes as a whole, and each of its models.
    let whole = stdout.split("the quickstart trains").nth(1).unwrap();
    let all = whole.lines().find(|line| line.starts_with("in all ")).unwrap();
    assert!(all.ends_with(" s") || all.ends_with(" min"), "{all}");
    let json = place.json(&["plan", "quickstart"]);
    let runs = json["quickstart"].as_array().unwrap();
    assert!(runs.len() == 5 && runs.iter().all(|run| run["seconds"].as_f64().unwrap() > 0.0));
}
