//! What is read: pipes, and what merely stands in the place of a file.
#![cfg(unix)]

use crate::hostile::samples;
use crate::support::place::{Place, TINY, copy_data, copy_folder, pretrain, save_random};
use crate::support::tiny;
use parquet::basic::Compression;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a pointer is, and what its refusal says.
const POINTERS: [(&str, &str); 4] = [
    (
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345678\n",
        "is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder",
    ),
    (
        "version https://hawser.github.com/spec/v1\r\next-0-foo sha256:4d7a\r\noid sha256:4d7a\r\nsize 1\r\n",
        "is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder",
    ),
    (
        "/annex/objects/SHA256E-s12345678--4d7a.bin\n",
        "is a git-annex pointer, not the file itself; run `git annex get` on it",
    ),
    (
        "../.git/annex/objects/x1/y2/SHA256E-s1--4d7a/SHA256E-s1--4d7a",
        "is a git-annex pointer, not the file itself; run `git annex get` on it",
    ),
];

fn tokenizer() -> String {
    tiny::world().join("tokenizer").display().to_string()
}

#[test]
fn a_pointer_in_the_place_of_text_is_refused() {
    let place = Place::new();
    save_random(&place.path("model"), tiny::VOCAB, 16, true);
    fs::write(place.path("good.txt"), "One and two.").unwrap();
    let tokenizer = tokenizer();
    for (pointer, sentence) in POINTERS {
        for name in ["a.txt", "a.md", "a.jsonl", "a.jsonl.gz", "a.parquet", "a.txt.zst"] {
            fs::write(place.path(name), pointer).unwrap();
            let with = ["--tokenizer", &tokenizer, "--out", "d"];
            for verb in [
                &[&["prepare", "--input", name], &with[..]].concat()[..],
                &[&["prepare", "--input", "good.txt", name], &with[..]].concat(),
                &[&["prepare", "--input", "good.txt", "--valid", name], &with[..]].concat(),
                &["tokenizer", "train", "--input", name, "--vocab-size", "300", "--out", "d"],
                &["eval", "model", "--data", name],
                &["inspect", "model", "--text", name],
            ] {
                place.refused(verb, 3, &[name, sentence]);
                assert!(!place.path("d").exists());
            }
        }
    }
    // A long text may begin with the words of a pointer, and be a web page.
    let about = format!("{}{}", POINTERS[0].0, "That is what a pointer looks like. ".repeat(40));
    for text in [about.as_str(), "<!DOCTYPE html><p>One and two.</p>"] {
        fs::write(place.path("b.txt"), text).unwrap();
        let done =
            place.json(&["prepare", "--input", "b.txt", "--tokenizer", &tokenizer, "--out", "d"]);
        assert_eq!(done["train"]["bytes"], text.len());
    }
    for name in ["c.jsonl", "c.parquet", "c.txt.gz"] {
        fs::write(place.path(name), "\n<!doctype HTML>\n<html><p>Sign in").unwrap();
        place.refused(&["eval", "model", "--data", name], 3, &[name, "is an HTML page"]);
    }
}

#[test]
fn a_pointer_in_a_folder_is_refused() {
    let place = Place::new();
    save_random(&place.path("model"), tiny::VOCAB, 16, true);
    fs::write(place.path("good.txt"), "One and two and three and four.").unwrap();
    copy_data(&place.path("data"));
    let at = |path: &str| path.to_string();
    let run = |data: &str| {
        [&pretrain(data, &["--steps", "2"])[..], &["--out", "r"]]
            .concat()
            .iter()
            .map(|a| at(a))
            .collect::<Vec<_>>()
    };
    let (code, _, stderr) = place.run(&run("data").iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, 0, "{stderr}");
    let eval = ["eval", "broken", "--data", "good.txt"].map(at).to_vec();
    let prepare =
        ["prepare", "--input", "good.txt", "--tokenizer", "broken", "--out", "d"].map(at).to_vec();
    let train = [&["pretrain", "--data", "broken"][..], &TINY, &["--steps", "2", "--out", "s"]]
        .concat()
        .into_iter()
        .map(at)
        .collect::<Vec<_>>();
    let checkpoint = "r/checkpoints/step-00000002";
    for (folder, file, args) in [
        ("model", "config.json", &eval),
        ("model", "generation_config.json", &["export", "broken", "--out", "d"].map(at).to_vec()),
        ("model", "model.safetensors", &eval),
        ("model", "tokenizer.json", &eval),
        ("model", "tokenizer_config.json", &eval),
        ("model", "tokenizer.json", &prepare),
        ("model", "special_tokens_map.json", &prepare),
        ("data", "train.bin", &train),
        ("data", "valid.bin", &train),
        ("data", "tokenizer/tokenizer.json", &train),
        (checkpoint, "model.safetensors", &eval),
        (checkpoint, "manifest.json", &["export", "broken", "--out", "d"].map(at).to_vec()),
        (checkpoint, "state.json", &["export", "broken", "--out", "d"].map(at).to_vec()),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let broken = place.path("broken").join(file);
        for (pointer, sentence) in POINTERS {
            let _ = fs::remove_dir_all(place.path("broken"));
            copy_folder(&place.path(folder), &place.path("broken"));
            assert!(broken.is_file(), "{file}");
            if file == "special_tokens_map.json" {
                fs::write(place.path("broken/tokenizer_config.json"), "{}").unwrap();
            }
            fs::write(&broken, pointer).unwrap();
            place.refused(&args, 3, &[file, sentence]);
        }
        fs::remove_file(&broken).unwrap();
        if folder != checkpoint
            && file != "train.bin"
            && file != "valid.bin"
            && file != "config.json"
        {
            symlink("../.git/annex/objects/x/y/key/key", &broken).unwrap();
            place.refused(&args, 3, &[file, "a link of git-annex", "git annex get"]);
        }
        for left in ["d", "s"] {
            assert!(!place.path(left).exists(), "{file}");
        }
    }
    // GPT-2's pair, an index, a run file.
    for file in ["vocab.json", "merges.txt", "model.safetensors.index.json", "run.toml"] {
        let _ = fs::remove_dir_all(place.path("broken"));
        copy_folder(&place.path("model"), &place.path("broken"));
        let instead = if file.contains("index") { "model.safetensors" } else { "tokenizer.json" };
        fs::remove_file(place.path("broken").join(instead)).unwrap();
        fs::write(place.path("broken").join(file), POINTERS[0].0).unwrap();
        let of_run = ["plan", "broken/run.toml"].map(at).to_vec();
        let args = if file == "run.toml" { &of_run } else { &eval };
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        place.refused(&args, 3, &[file, POINTERS[0].1]);
    }
    fs::write(place.path("broken/run.toml"), "<!DOCTYPE html>").unwrap();
    place.refused(&["plan", "broken/run.toml"], 3, &["is an HTML page"]);
}

#[test]
fn a_link_to_what_is_missing_is_said_in_words() {
    let place = Place::new();
    let tokenizer = tokenizer();
    symlink(".git/annex/objects/x/y/key/key", place.path("a.txt")).unwrap();
    symlink("gone.txt", place.path("b.txt")).unwrap();
    let args = |name| ["prepare", "--input", name, "--tokenizer", &tokenizer, "--out", "d"];
    place.refused(&args("a.txt"), 3, &["a.txt", "git annex get"]);
    place.refused(&args("b.txt"), 6, &["b.txt is a link to gone.txt, which is not there"]);
    place.refused(&args("-"), 6, &["/dev/stdin"]);
}

/// Makes a named pipe and writes to it.
fn pipe(path: &Path, bytes: Vec<u8>) -> JoinHandle<()> {
    let _ = fs::remove_file(path);
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let path = path.to_path_buf();
    std::thread::spawn(move || {
        // In small parts, as they may come.
        let mut file = File::options().write(true).open(path).unwrap();
        for part in bytes.chunks(700) {
            if file.write_all(part).is_err() {
                break; // whoever refused it has gone
            }
            std::thread::yield_now();
        }
    })
}

#[test]
fn a_pipe_is_read_once_and_whole() {
    let place = Place::new();
    let tokenizer = tokenizer();
    let lines = fs::read(tiny::world().join("stories.jsonl")).unwrap();
    let documents: Vec<String> = String::from_utf8(lines.clone())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().into())
        .collect();
    let text = documents.join("<|endoftext|>").into_bytes();
    let table = samples::parquet(Compression::SNAPPY);
    fs::write(place.path("plain.jsonl"), &lines).unwrap();
    fs::write(place.path("plain.txt"), &text).unwrap();
    fs::write(place.path("plain.parquet"), &table).unwrap();
    let prepare = |name: &str| {
        let args = ["prepare", "--input", name, "--tokenizer", &tokenizer, "--out", "d"];
        place.json(&args)["train"].clone()
    };
    let zstd = zstd::encode_all(&text[..], 3).unwrap();
    for (name, plain, bytes) in [
        ("p.txt", "plain.txt", text.clone()),
        ("p", "plain.txt", text.clone()),
        ("p.jsonl", "plain.jsonl", lines.clone()),
        ("lines", "plain.jsonl", lines.clone()),
        ("p.jsonl.gz", "plain.jsonl", samples::gzip(&lines)),
        ("packed", "plain.jsonl", samples::gzip(&lines)),
        ("packed.zst", "plain.txt", zstd.clone()),
        ("frames", "plain.txt", zstd),
        ("table", "plain.parquet", table.clone()),
        ("table.parquet", "plain.parquet", table),
    ] {
        let writer = pipe(&place.path(name), bytes);
        assert_eq!(prepare(name), prepare(plain), "{name}");
        writer.join().unwrap();
    }
    // What told the kind is said.
    let writer = pipe(&place.path("lines"), lines.clone());
    let args = ["prepare", "--input", "lines", "--tokenizer", &tokenizer, "--out", "d"];
    let (code, _, stderr) = place.run(&args);
    assert!(code == 0 && stderr.contains("lines: read as JSON lines"), "{stderr}");
    writer.join().unwrap();
    // A wrong name, a pointer, and what is no text are refused as in a file.
    for (name, bytes, part) in [
        ("p.txt.gz", text.clone(), "its name says Gzip"),
        ("p.jsonl", POINTERS[0].0.into(), "git-lfs pointer"),
        ("p.txt", vec![0xFF; 3000], "not UTF-8 at byte 0"),
        ("p.txt.gz", samples::gzip(&lines)[..3000].to_vec(), "truncated or damaged"),
    ] {
        let writer = pipe(&place.path(name), bytes);
        let args = ["prepare", "--input", name, "--tokenizer", &tokenizer, "--out", "e"];
        place.refused(&args, 3, &[name, part]);
        writer.join().unwrap();
    }
    // The other verbs.
    save_random(&place.path("model"), tiny::VOCAB, 16, true);
    let writer = pipe(&place.path("p"), lines.clone());
    let piped = place.json(&["eval", "model", "--data", "p"]);
    writer.join().unwrap();
    assert_eq!(piped, place.json(&["eval", "model", "--data", "plain.jsonl"]));
    let writer = pipe(&place.path("p"), documents[0].clone().into_bytes());
    place.json(&["inspect", "model", "--text", "p"]);
    writer.join().unwrap();
    let learn = |input, out| {
        place.json(&["tokenizer", "train", "--input", input, "--vocab-size", "300", "--out", out])
    };
    let writer = pipe(&place.path("p"), lines);
    assert_eq!(learn("p", "t1"), learn("plain.jsonl", "t2"));
    writer.join().unwrap();
    let writer =
        pipe(&place.path("run"), b"steps = 7\nstudent = 'tiny'\n[data]\ncontext = 16\n".to_vec());
    let plan = place.json(&["plan", "run"]);
    let said = plan["values"].as_array().unwrap().iter().find(|v| v["key"] == "steps").unwrap();
    assert_eq!(said["value"], 7);
    writer.join().unwrap();
    // Twice is once too often, by whatever names.
    symlink("p", place.path("q")).unwrap();
    for more in [&["p"][..], &["q"], &["plain.txt", "--valid", "q"]] {
        let args = [&["prepare", "--tokenizer", &tokenizer, "--out", "e", "--input", "p"], more];
        place.refused(&args.concat(), 2, &["named twice"]);
    }
}

#[test]
fn standard_input_is_a_pipe_or_a_file() {
    let place = Place::new();
    let tokenizer = tokenizer();
    let lines = fs::read(tiny::world().join("stories.jsonl")).unwrap();
    fs::write(place.path("plain.jsonl"), &lines).unwrap();
    fs::write(place.path("packed"), samples::gzip(&lines)).unwrap();
    let args =
        |name| ["prepare", "--input", name, "--tokenizer", &tokenizer, "--out", "d", "--json"];
    let expected = place.json(&args("plain.jsonl")[..7])["train"].clone();
    let file = |name| Stdio::from(File::open(place.path(name)).unwrap());
    for (name, stdin) in [
        ("/dev/stdin", Some(file("plain.jsonl"))),
        ("/dev/fd/0", Some(file("packed"))),
        ("/proc/self/fd/0", None),
        ("/dev/stdin", None),
    ] {
        if !Path::new(name).exists() {
            eprintln!("skipped: this machine has no {name}");
            continue;
        }
        let piped = stdin.is_none();
        let mut command = place.command(&args(name));
        command
            .stdin(stdin.unwrap_or(Stdio::piped()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        if piped {
            child.stdin.take().unwrap().write_all(&lines).unwrap();
        }
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&stderr);
        assert!(status.success(), "{name}, {piped}: {stderr}");
        let done: Value = serde_json::from_slice(&stdout).unwrap();
        assert_eq!(done["train"], expected, "{name}, {piped}");
    }
}

/// Sends a signal and waits; exit status and stderr.
fn ended(mut child: Child, signal: &str) -> (Option<i32>, String) {
    std::thread::sleep(Duration::from_millis(400));
    assert!(child.try_wait().unwrap().is_none(), "it did not wait");
    let kill = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let give_up = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > give_up {
            child.kill().unwrap();
            panic!("{signal} does not end it");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn one_signal_ends_a_wait_for_a_pipe() {
    let place = Place::new();
    let tokenizer = tokenizer();
    save_random(&place.path("model"), tiny::VOCAB, 16, true);
    let path = place.path("p.txt");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let verbs: [&[&str]; 4] = [
        &["prepare", "--input", "p.txt", "--tokenizer", &tokenizer, "--out", "d"],
        &["tokenizer", "train", "--input", "p.txt", "--vocab-size", "300", "--out", "d"],
        &["eval", "model", "--data", "p.txt"],
        &["inspect", "model", "--text", "p.txt"],
    ];
    // Nobody writes; somebody holds it open and is silent; somebody stops in the middle.
    for bytes in [None, Some(0), Some(5000)] {
        for (verb, signal, status) in
            verbs.iter().flat_map(|v| [(*v, "-TERM", 143), (*v, "-INT", 130)])
        {
            let writer = bytes.map(|n| {
                let mut file = File::options().read(true).write(true).open(&path).unwrap();
                file.write_all(&vec![b'a'; n]).unwrap();
                file
            });
            let mut command = place.command(&[verb, &["--quiet"][..]].concat());
            let child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
            let (code, stderr) = ended(child, signal);
            assert_eq!((code, stderr.lines().count()), (Some(status), 1), "{verb:?}: {stderr}");
            assert!(stderr.contains("stopped by SIG"), "{verb:?}: {stderr}");
            assert!(!place.path("d").exists());
            drop(writer);
        }
    }
}

#[test]
fn validation_on_what_is_trained_on_is_said() {
    let place = Place::new();
    let tokenizer = tokenizer();
    fs::write(place.path("a.txt"), "One and two.").unwrap();
    fs::copy(place.path("a.txt"), place.path("copy.txt")).unwrap();
    fs::write(place.path("other.txt"), "Two and one.").unwrap();
    fs::hard_link(place.path("a.txt"), place.path("hard.txt")).unwrap();
    symlink("a.txt", place.path("soft.txt")).unwrap();
    let stderr = |valid: &str| {
        let args = ["prepare", "--input", "other.txt", "a.txt", "--tokenizer", &tokenizer];
        let (code, _, stderr) = place.run(
            &[&args[..], &["--valid", valid, "--out", &format!("d-{valid}").replace('/', "-")]]
                .concat(),
        );
        assert_eq!(code, 0, "{stderr}");
        stderr
    };
    for valid in ["a.txt", "./a.txt", "copy.txt", "hard.txt", "soft.txt"] {
        let said = stderr(valid);
        let parts = [valid, "validated on and trained on", "a.txt is the same text"];
        assert!(parts.iter().all(|part| said.contains(part)), "{valid}: {said}");
    }
    fs::write(place.path("new.txt"), "Six and ten.").unwrap();
    assert!(!stderr("new.txt").contains("trained on"));
}
