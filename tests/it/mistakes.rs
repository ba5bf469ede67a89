//! What a new user gets wrong, and every word that is said then: `mistakes.txt` is the table.

use crate::support::place::{Place, TINY, copy_data, copy_folder, save_random};
use crate::support::tiny;
use std::fmt::Write;
use std::fs;
use std::net::TcpListener;
use std::path::Path;

/// Everything that the commands of the table name.
fn furnished() -> Place {
    let place = Place::new();
    let at = |name: &str| place.path(name);
    copy_data(&at("data"));
    copy_data(&at("novalid"));
    fs::remove_file(at("novalid/valid.bin")).unwrap();
    copy_folder(&tiny::world().join("tokenizer"), &at("tok"));
    save_random(&at("model"), tiny::VOCAB, 16, true);
    save_random(&at("bare"), tiny::VOCAB, 16, false);
    let run = [&["pretrain", "--data", "data"][..], &TINY, &["--steps", "2", "--out", "run"]];
    place.json(&run.concat());
    // A run in its first minute.
    fs::create_dir(at("begun")).unwrap();
    for file in ["config.toml", "metrics.jsonl"] {
        fs::copy(at("run").join(file), at("begun").join(file)).unwrap();
    }
    // Its checkpoints are gone; its settings are; what other commands leave.
    for (copy, gone) in [("over", "checkpoints"), ("unnamed", "config.toml")] {
        copy_folder(&at("run"), &at(copy));
        let gone = at(copy).join(gone);
        let _ = if gone.is_dir() { fs::remove_dir_all(gone) } else { fs::remove_file(gone) };
    }
    fs::create_dir_all(at("quick/plain")).unwrap();
    fs::write(at("quick/plain/config.toml"), "").unwrap();
    fs::create_dir(at("compared")).unwrap();
    fs::write(at("compared/compare.json"), "{}").unwrap();
    // A model of the data's vocabulary and another tokenizer.
    let other = tiny::world().join("valid.jsonl").display().to_string();
    let size = tiny::VOCAB.to_string();
    let train = ["tokenizer", "train", "--input", &other, "--vocab-size", &size, "--out", "other"];
    place.json(&train);
    save_random(&at("foreign"), tiny::VOCAB, 16, false);
    copy_folder(&at("other"), &at("foreign"));
    fs::remove_dir_all(at("other")).unwrap();
    fs::create_dir(at("notes")).unwrap();
    for (name, text) in [
        ("text.txt", "One fine day the fox ran away.\n".repeat(40).as_str()),
        ("text.pdf", "%PDF-1.7"),
        ("empty.txt", ""),
        ("notes/notes.txt", "buy milk\n"),
        ("broken.jsonl", "{\"text\": \"a\"\n"),
        ("field.jsonl", "{\"body\": \"a\"}\n"),
        (
            "run.toml",
            "steps = 3\nstudent = 'tiny'\nmethod = 'clm'\n[data]\ncontext = 16\nrows = 4\n",
        ),
        ("broken.toml", "steps = = 3\n"),
        ("typo.toml", "steps = 3\n[optim]\nlearning_rate = 1\n"),
        ("section.toml", "[optimizer]\nlr = 1\n"),
    ] {
        fs::write(at(name), text).unwrap();
    }
    fs::write(at("photo.txt"), [0xff, 0xd8, 0xff, 0xe0, 0, 16, b'J', b'F', b'I', b'F']).unwrap();
    place
}

#[test]
#[cfg(target_os = "linux")]
fn what_a_new_user_gets_wrong_is_answered_as_the_table_says() {
    let place = furnished();
    let hub = TcpListener::bind("127.0.0.1:0").unwrap();
    hub.set_nonblocking(true).unwrap();
    let endpoint = format!("http://{}", hub.local_addr().unwrap());
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/mistakes.txt");
    let stood = fs::read_to_string(&table).unwrap();
    let (mut found, mut mistakes, mut quiet) = (String::new(), 0, Vec::new());
    for line in stood.lines() {
        let Some(command) = line.strip_prefix("$ eslm-kd ") else {
            if !line.starts_with("    ") {
                writeln!(found, "{line}").unwrap();
            }
            continue;
        };
        let words = shlex::split(command).unwrap();
        let mut command = place.online(&words.iter().map(String::as_str).collect::<Vec<_>>());
        command.env("HF_ENDPOINT", &endpoint).env("HF_HOME", place.path("home"));
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let said = said.replace(&place.path("").display().to_string(), "HERE/");
        let status = output.status.code().unwrap();
        writeln!(found, "{line}\n    [{status}]").unwrap();
        // How long a phase took is no part of the answer.
        for line in said.lines().filter(|l| !l.contains(" in 0.") && !l.ends_with(" ms")) {
            writeln!(found, "    {line}").unwrap();
        }
        if hub.accept().is_ok() {
            quiet.push(format!("{line}: asked the network"));
        }
        if !matches!(status, 2 | 3 | 6) || !output.stdout.is_empty() {
            quiet.push(format!("{line}: status {status}, and it printed {:?}", output.stdout));
        }
        if said.lines().filter(|line| line.starts_with("error: ")).count() != 1 {
            quiet.push(format!("{line}: not one error line"));
        }
        mistakes += 1;
    }
    assert!(quiet.is_empty(), "{}", quiet.join("\n"));
    assert!(mistakes >= 60, "{mistakes} mistakes");
    for part in ["?.", "panicked", ".tmp", "(memory)", "os error", " 1 steps", "HERE"] {
        assert!(!found.contains(part), "{part} in\n{found}");
    }
    if std::env::var_os("UPDATE").is_some_and(|set| !set.is_empty()) {
        fs::write(&table, &found).unwrap();
    }
    let differs = found.lines().zip(stood.lines()).find(|(now, before)| now != before);
    assert!(
        found == fs::read_to_string(&table).unwrap(),
        "the first line that differs (now, in the table): {differs:#?}\nif that is meant: UPDATE=1 cargo test --test it mistakes"
    );
}

/// A place that cannot be written to is named as it was given.
#[test]
#[cfg(target_os = "linux")]
fn a_place_that_is_read_only_is_named_and_nothing_else() {
    use crate::support::place::on_file_system;
    let place = Place::new();
    let data = tiny::data().display().to_string();
    let tokenizer = tiny::world().join("tokenizer").display().to_string();
    let text = tiny::world().join("valid.jsonl").display().to_string();
    save_random(&place.path("model"), tiny::VOCAB, 16, true);
    fs::write(place.path("text.txt"), "One fine day.").unwrap();
    let pretrain =
        [&["pretrain", "--data", &data, "--steps", "1"][..], &TINY, &["--out", "mount/x"]].concat();
    let commands: [&[&str]; 6] = [
        &pretrain,
        &["prepare", "--input", &text, "--tokenizer", &tokenizer, "--out", "mount/x"],
        &["tokenizer", "train", "--input", &text, "--vocab-size", "270", "--out", "mount/x"],
        &["export", "model", "--out", "mount/x"],
        &["export", "model", "--format", "gguf", "--out", "mount/x"],
        &["inspect", "model", "--text", "text.txt", "--out", "mount/x"],
    ];
    for args in commands {
        let Some((code, stderr)) = on_file_system(&place, "size=2m,ro", args) else { return };
        assert_eq!(code, 6, "{args:?}: {stderr}");
        let named = stderr.contains("mount/x") && !stderr.contains(".tmp");
        assert!(named && stderr.contains("Read-only file system"), "{args:?}: {stderr}");
    }
}
