//! Signals on disk, through the program: a run learns the same from what a teacher wrote as from the
//! teacher beside it. This is what `data.signal` does.

use crate::crossings::net::{Net, log_softmax};
use crate::support::place::{Place, TINY, copy_folder, data, save_random, stop, trained};
use crate::support::tiny;
use candle_core::Device;
use eslm_kd::data::tokens::TokenFile;
use eslm_kd::loss::Signal;
use eslm_kd::model::Gpt2;
use eslm_kd::signal::Stored;
use eslm_kd::store::weights::load_model;
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

/// A place with a teacher of 64 positions.
fn place() -> Place {
    let place = Place::new();
    save_random(&place.path("teacher"), tiny::VOCAB, 64, true);
    place
}

fn write<'a>(data: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let own = ["signal", "write", "--teacher", "teacher", "--data", data, "--out", out];
    [&own[..], &["--context", "16"], more].concat()
}

fn distill<'a>(data: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let steps = if more.contains(&"--steps") { &[][..] } else { &["--steps", "6"] };
    [&["distill", "--data", data, "--out", out][..], steps, &TINY, more].concat()
}

#[test]
fn a_run_from_a_signal_has_the_bits_of_one_beside_its_teacher() {
    let (place, data) = (place(), data());
    let kinds = [
        (
            "sampled",
            "sampled=4+4+8",
            &["--set", "objective.signal=sampled", "--set", "objective.samples=16"],
        ),
        ("top", "top-k=9", &["--set", "objective.signal=top-k", "--set", "objective.top_k=9"]),
    ];
    // Plain distillation in one pass; selection by what is said beside the signal, by the signal
    // itself and by the student; a threshold that is carried; sequences that exit early; draws of
    // rows; other temperatures are another signal.
    let ways: [&[&str]; 7] = [
        &["--alpha", "0"],
        &["--score", "excess", "--alpha", "0.5"],
        &["--score", "kl", "--alpha", "0.5", "--micro-rows", "2"],
        &["--score", "entropy", "--alpha", "0.5"],
        &["--score", "excess", "--alpha", "0.4", "--set", "select.pool=carried"],
        &["--alpha", "0.3", "--set", "select.alpha_seq=0.5"],
        &["--alpha", "0", "--set", "machine.backward=sampled", "--set", "machine.rho=0.5"],
    ];
    let early = ["--set", "select.burn_in=1", "--set", "select.ramp=1"];
    for (name, kind, live) in kinds {
        let signal = format!("signal-{name}");
        let written = place.json(&write(&data, &signal, &["--signal", kind]));
        assert_eq!(written["complete"], true);
        for (i, way) in ways.iter().enumerate() {
            let (a, b) = (format!("{name}-{i}-live"), format!("{name}-{i}-read"));
            let more = [&["--teacher", "teacher"], *way, &early, &live[..]].concat();
            let beside = trained(&place, &distill(&data, &a, &more), &a);
            let more = [&["--signal", &signal], *way, &early].concat();
            let read = trained(&place, &distill(&data, &b, &more), &b);
            assert!(beside == read, "{name}, {way:?}");
            let losses = |run: &str| -> Vec<Value> {
                place.metrics(run).iter().map(|line| line["loss"].clone()).collect()
            };
            assert_eq!(losses(&a), losses(&b));
        }
    }
}

#[test]
fn fewer_draws_are_the_first_planes_and_scores_need_no_signal() {
    let (place, data) = (place(), data());
    place.json(&write(&data, "signal", &["--signal", "sampled=4+4+8"]));
    let eight = ["--set", "objective.samples=8", "--alpha", "0"];
    let live =
        [&["--teacher", "teacher", "--set", "objective.signal=sampled"][..], &eight].concat();
    let beside = trained(&place, &distill(&data, "live", &live), "live");
    let read = [&["--signal", "signal"][..], &eight].concat();
    assert!(beside == trained(&place, &distill(&data, "read", &read), "read"));
    let ten = [&["--signal", "signal"][..], &["--set", "objective.samples=10"]].concat();
    place.refused(&distill(&data, "ten", &ten), 2, &["signal", "4 or 8 or 16 draws"]);

    // Static scores: the file with draws and the file without select alike.
    place.json(&write(&data, "scores", &["--signal", "none"]));
    let alone = ["--set", "objective.lambda=0", "--score", "excess", "--alpha", "0.5"];
    let early = ["--set", "select.burn_in=0", "--set", "select.ramp=0"];
    let [a, b] = ["signal", "scores"].map(|signal| {
        let out = format!("by-{signal}");
        let more = [&["--signal", signal][..], &alone, &early].concat();
        trained(&place, &distill(&data, &out, &more), &out)
    });
    assert!(a == b);
    let weighs = ["--signal", "scores"];
    place.refused(
        &distill(&data, "no", &weighs),
        2,
        &["scores: ", "nothing that a loss could learn from"],
    );
}

#[test]
fn order_batch_and_workers_read_the_same_signal() {
    let (place, data) = (place(), data());
    // In four parts, of which one is written in two goes.
    for shard in ["3/4", "0/4", "2/4", "1/4"] {
        place.json(&write(&data, "parts", &["--signal", "sampled=16", "--shard", shard]));
    }
    place.json(&write(&data, "whole", &["--signal", "sampled=16"]));
    let run = |signal: &'static str, out: &'static str, more: &[&str]| {
        let more = [&["--signal", signal, "--alpha", "0"][..], more].concat();
        trained(&place, &distill(&data, out, &more), out)
    };
    let whole = run("whole", "a", &["--micro-rows", "8"]);
    assert!(whole == run("parts", "b", &["--micro-rows", "8"]));
    assert!(whole == run("whole", "c", &["--micro-rows", "8", "--set", "machine.threads=1"]));
    assert!(whole != run("whole", "d", &["--micro-rows", "8", "--seed", "2"]));
    // Longer than an epoch of a context that divides the teacher's.
    run("whole", "e", &["--set", "data.context=8", "--steps", "700", "--set", "machine.threads=1"]);
}

#[test]
fn a_run_knows_its_signal_by_content() {
    let (place, data) = (place(), data());
    place.json(&write(&data, "signal", &["--signal", "sampled=8"]));
    place.json(&write(&data, "other", &["--signal", "sampled=8", "--seed", "2"]));
    let args = distill(
        &data,
        "run",
        &["--signal", "signal", "--set", "checkpoint.every=2", "--set", "checkpoint.keep=9"],
    );
    let whole = trained(&place, &args, "run");
    let stopped = |out: &str| {
        copy_folder(&place.path("run"), &place.path(out));
        fs::remove_dir_all(place.path(out).join("model")).unwrap();
        for step in ["00000004", "00000006"] {
            let _ =
                fs::remove_dir_all(place.path(out).join("checkpoints/step-".to_string() + step));
        }
    };
    // Moved with the run's knowledge of it; another under its name.
    stopped("again");
    fs::create_dir(place.path("elsewhere")).unwrap();
    fs::rename(place.path("signal"), place.path("elsewhere/signal")).unwrap();
    let again = ["distill", "--resume", "--out", "again", "--signal", "elsewhere/signal"];
    assert!(whole == trained(&place, &again, "again"));
    stopped("wrong");
    let wrong = ["distill", "--resume", "--out", "wrong", "--signal", "other"];
    place.refused(&wrong, 2, &["learned from another signal", "signal (SHA-256)"]);
    place.json(&write(&data, "top", &["--signal", "top-k=8"]));
    let wrong = ["distill", "--resume", "--out", "wrong", "--signal", "top"];
    place.refused(&wrong, 2, &["learned from another signal"]);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let (place, data) = (place(), data());
    place.json(&write(&data, "signal", &["--signal", "sampled=8"]));
    let with =
        |more: &[&'static str]| distill(&data, "run", &[&["--signal", "signal"], more].concat());
    place.refused(
        &with(&["--set", "data.context=12"]),
        2,
        &["windows of 16 tokens", "--context 12"],
    );
    place.refused(&with(&["--set", "objective.temperature=2"]), 2, &["--temperature 2"]);
    place.refused(&with(&["--set", "objective.divergence=reverse-kl"]), 2, &["top-k=64"]);
    place.refused(&with(&["--set", "objective.signal=dense"]), 2, &["leave it out"]);
    place.refused(&with(&["--set", "objective.signal=top-k"]), 2, &["holds sampled=8", "top-k"]);
    place.refused(&distill(&data, "run", &["--signal", "signl"]), 3, &["did you mean signal?"]);
    let stored = ["--teacher", "teacher", "--set", "objective.signal=stored"];
    place.refused(&distill(&data, "run", &stored), 2, &["--signal DIR"]);
    place.refused(&write(&data, "signal", &["--signal", "sampled=9"]), 2, &["sampled=8 (8) there"]);
    place.refused(&write(&data, "signal", &["--shard", "0/2"]), 2, &["another number of shards"]);
    // Begun by more machines or processes, and not finished.
    place.json(&write(&data, "begun", &["--shard", "0/3"]));
    let file = fs::read_dir(place.path("begun")).unwrap().next().unwrap().unwrap().path();
    fs::rename(&file, file.with_extension("signal.partial")).unwrap();
    let begun = ["begun in 3 shards", "asked for, 2"];
    place.refused(&write(&data, "begun", &["--shard", "1/2"]), 2, &begun);
    place.refused(&write(&data, "new", &["--stride", "17"]), 2, &["skip tokens"]);
    place.refused(&write(&data, "new", &["--signal", "sampled=70000"]), 2, &["at most 65536"]);
    assert!(!place.path("new").exists() && !place.path("run").exists());
    place.refused(&write(&data, "teacher", &[]), 2, &["holds config.json, and no signal"]);
    place.refused(&with(&["--teacher", "teacher"]), 2, &["--teacher: ", "has no place beside"]);
    // Data of other tokens.
    let other = place.path("other-data");
    copy_folder(Path::new(&data), &other);
    fs::rename(other.join("valid.bin"), other.join("train.bin")).unwrap();
    let other = other.display().to_string();
    place.refused(&distill(&other, "run", &["--signal", "signal"]), 3, &["other training tokens"]);
    // A flipped byte is named, and what was trained before it stands.
    let file = place.path("signal/00000-of-00001.signal");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    let (code, stdout, stderr) = place.run(&["signal", "verify", "signal"]);
    assert!(
        code == 3 && stdout.contains("is damaged (its checksum does not fit)"),
        "{stdout}{stderr}"
    );
    let long = distill(&data, "run", &["--signal", "signal", "--steps", "400"]);
    place.refused(&long, 3, &["step ", "00000-of-00001.signal: block ", "is damaged"]);
}

#[test]
fn what_reads_tokens_finds_a_damaged_file_before_it_says_anything_of_them() {
    let (place, whole) = (place(), data());
    for name in ["train.bin", "valid.bin"] {
        let dir = place.path(&format!("damaged-{name}"));
        copy_folder(Path::new(&whole), &dir);
        let mut bytes = fs::read(dir.join(name)).unwrap();
        let at = bytes.len() - 8;
        bytes[at] ^= 1; // another token of the vocabulary
        fs::write(dir.join(name), bytes).unwrap();
    }
    let damaged = "damaged-train.bin";
    let says = ["train.bin: content hash", "the file is damaged", "prepare the data again"];
    place.refused(&write(damaged, "signal", &[]), 3, &says);
    place.refused(&write(damaged, "signal", &["--signal", "none"]), 3, &says);
    fs::write(place.path("said.jsonl"), "{}\n").unwrap();
    place.refused(&import(damaged, "said.jsonl", "signal", &[]), 3, &says);
    place.refused(&distill(damaged, "run", &["--teacher", "teacher"]), 3, &says);
    place.refused(&["eval", "teacher", "--data", "damaged-train.bin/train.bin"], 3, &says);
    let says = ["valid.bin: content hash", "the file is damaged"];
    place.refused(&["eval", "teacher", "--data", "damaged-valid.bin"], 3, &says);
    assert!(!place.path("signal").exists() && !place.path("run").exists());
    place.json(&["eval", "teacher", "--data", &whole]);
}

#[test]
fn what_a_signal_will_take_is_told_from_whole_blocks() {
    let (place, data) = (place(), data());
    // Windows that overlap so much that a first batch completes no block.
    let args = write(&data, "signal", &["--stride", "2"]);
    let (code, _, stderr) = place.run(&args);
    assert_eq!(code, 0, "{stderr}");
    let told = stderr.lines().find(|line| line.contains(" left: roughly ")).unwrap();
    assert!(!told.ends_with(", 0 B"), "{told}");
}

#[test]
fn a_teacher_that_reads_more_than_it_was_trained_on_is_named() {
    let (place, data) = (Place::new(), data());
    let wider = ["--steps", "2", "--set", "shape.n_positions=32", "--out", "t"];
    trained(&place, &[&["pretrain", "--data", &data][..], &TINY, &wider].concat(), "t");
    let write = |out: &str, more: &[&str]| {
        let own = ["signal", "write", "--teacher", "t", "--data", &data, "--out", out];
        let (code, _, stderr) = place.run(&[&own[..], more].concat());
        assert_eq!(code, 0, "{stderr}");
        stderr
    };
    let said = write("wide", &[]);
    assert!(said.contains("trained on 16 tokens of context and reads 32 here"), "{said}");
    assert!(!write("known", &["--context", "16"]).contains("was trained on"));
}

#[test]
fn a_stopped_writer_goes_on_to_the_same_bytes() {
    let (place, data) = (place(), data());
    place.json(&write(&data, "whole", &["--signal", "sampled=8", "--stride", "1"]));
    let args = write(&data, "parts", &["--signal", "sampled=8", "--stride", "1"]);
    let mut child =
        place.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let partial = place.path("parts/00000-of-00001.signal.partial");
    while !partial.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let stopped = stop(&mut child, &partial, 0, "-INT");
    let out = child.wait_with_output().unwrap();
    if stopped && out.status.code() == Some(130) {
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert!(stderr.contains("are written in parts, and the same command goes on"), "{stderr}");
        assert!(partial.exists());
    }
    place.json(&args);
    let file = |folder: &str| fs::read(place.path(folder).join("00000-of-00001.signal")).unwrap();
    assert!(file("whole") == file("parts"));
    let found = place.json(&["signal", "inspect", "whole"]);
    assert!(found["bytes_per_token"].as_f64().unwrap() > 4.0);
    assert_eq!(found["header"]["signal"]["planes"], serde_json::json!([8]));
    let listed = place.json(&["signal", "ls"]);
    assert_eq!(listed.as_array().unwrap().len(), 2);
}

/// A list of position, for each its ids and ln q of them, and ln q of the token that follows.
type Lines = Vec<(Vec<u32>, Vec<f64>, f64)>;

/// What a server would say of every position: the `k` largest of the teacher, as the library's
/// formulas compute them in double precision.
fn served(place: &Place, tokens: &[u32], k: usize) -> Lines {
    let (config, params) = load_model(&place.path("teacher"), &Device::Cpu).unwrap();
    let net = Net::new(&Gpt2::new(config, params)).unwrap();
    let mut out = Lines::new();
    for start in (0..tokens.len() - 1).step_by(16) {
        let end = (start + 16).min(tokens.len() - 1);
        let hidden = net.hidden(&tokens[start..end], end - start, net.layers(), None).unwrap();
        let log_q = log_softmax(&net.logits(&hidden).unwrap(), 1.0).unwrap();
        for (i, row) in log_q.to_vec2::<f64>().unwrap().into_iter().enumerate() {
            let mut ids: Vec<u32> = (0..row.len() as u32).collect();
            ids.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
            ids.truncate(k);
            let logprobs = ids.iter().map(|id| row[*id as usize]).collect();
            out.push((ids, logprobs, row[tokens[start + i + 1] as usize]));
        }
    }
    out
}

/// The same as vLLM says it, a window of 16 tokens a line.
fn as_windows(lines: &Lines, tokens: &[u32]) -> String {
    let entry = |p: usize| {
        let (ids, logprobs, target) = &lines[p];
        let rank = |i: usize| json!({"logprob": logprobs[i], "rank": i + 1, "decoded_token": "x"});
        let mut all: serde_json::Map<String, Value> =
            ids.iter().enumerate().map(|(i, id)| (id.to_string(), rank(i))).collect();
        let own = json!({"logprob": target, "rank": ids.len() + 7});
        all.entry(tokens[p + 1].to_string()).or_insert(own);
        Value::Object(all)
    };
    let window = |start: usize| {
        let end = (start + 17).min(tokens.len());
        let said = (start + 1..end).map(|i| entry(i - 1));
        let said: Vec<Value> = std::iter::once(Value::Null).chain(said).collect();
        json!({"prompt_token_ids": tokens[start..end], "prompt_logprobs": said}).to_string() + "\n"
    };
    (0..tokens.len() - 1).step_by(16).map(window).collect()
}

fn as_positions(lines: &Lines) -> String {
    let line = |(ids, logprobs, target): &(Vec<u32>, Vec<f64>, f64)| {
        json!({"ids": ids, "logprobs": logprobs, "target_logprob": target}).to_string() + "\n"
    };
    lines.iter().map(line).collect()
}

fn import<'a>(data: &'a str, input: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let own = ["signal", "import", "--input", input, "--data", data, "--out", out];
    [&own[..], &["--context", "16"], more].concat()
}

#[test]
fn a_run_learns_the_same_from_what_a_server_said_of_the_data() {
    let (place, data) = (place(), data());
    place.json(&write(&data, "written", &["--signal", "top-k=9"]));
    let tokens = TokenFile::open(&Path::new(&data).join("train.bin")).unwrap();
    let tokens = tokens.to_vec(0..tokens.len()).unwrap();
    let all: Vec<u64> = (0..tokens.len() as u64 - 1).collect();
    let read = |folder: &str| {
        let stored = Stored::open(&place.path(folder)).unwrap();
        let Signal::TopK(top) = stored.fetch(&all).unwrap().signal(None).unwrap() else { panic!() };
        top
    };
    // From what the teacher computes: its own levels and NLLs, but where double precision rounds
    // another way.
    let lines = served(&place, &tokens, 9);
    fs::write(place.path("windows.jsonl"), as_windows(&lines, &tokens)).unwrap();
    fs::write(place.path("positions.jsonl"), as_positions(&lines)).unwrap();
    let found = place.json(&import(&data, "windows.jsonl", "windows", &[]));
    assert_eq!((&found["positions"], &found["complete"]), (&json!(all.len()), &json!(true)));
    place.json(&import(&data, "positions.jsonl", "positions", &["--name", "windows.jsonl"]));
    let file = |folder: &str| fs::read(place.path(folder).join("00000-of-00001.signal")).unwrap();
    assert!(file("windows") == file("positions"));
    let (want, got) = (read("written"), read("windows"));
    let differ = |same: usize| all.len() * 9 - same;
    let ids = differ(want.ids.iter().zip(&got.ids).filter(|(a, b)| a == b).count());
    let levels = differ(want.logp.iter().zip(&got.logp).filter(|(a, b)| a == b).count());
    let close = |a: f32, b: f32| (a - b).abs() <= a.abs() / 500.0;
    assert!(ids * 1000 <= all.len() && levels * 500 <= all.len() * 9, "{ids} {levels}");
    for (a, b) in want.said.iter().zip(&got.said) {
        // The entropy that is known is the less.
        assert!(close(a.nll, b.nll) && b.entropy < a.entropy, "{a:?} {b:?}");
    }
    // With the levels and NLLs that were written, a run ends with the same bits.
    let said = |p: usize| {
        let (ids, logp) = (&want.ids[p * 9..][..9], &want.logp[p * 9..][..9]);
        let logp = logp.iter().map(|l| f64::from(*l)).collect();
        (ids.to_vec(), logp, -f64::from(want.said[p].nll))
    };
    let exact: Lines = (0..all.len()).map(said).collect();
    fs::write(place.path("exact.jsonl"), as_positions(&exact)).unwrap();
    place.json(&import(&data, "exact.jsonl", "exact", &["--vocab-size", "320", "--top-k", "9"]));
    let got = read("exact");
    assert!(got.ids == want.ids && got.logp == want.logp && got.rest == want.rest);
    for way in [&["--alpha", "0"][..], &["--score", "excess", "--alpha", "0.5"]] {
        let run = |signal: &'static str| {
            let out = format!("{signal}-{}", way.len());
            trained(&place, &distill(&data, &out, &[&["--signal", signal], way].concat()), &out)
        };
        assert!(run("written") == run("exact"), "{way:?}");
    }
    let text = place.run(&["signal", "inspect", "windows"]).1;
    assert!(text.contains("windows.jsonl") && text.contains("top-k=9"), "{text}");
    assert_eq!(place.run(&["signal", "verify", "windows"]).0, 0);
}

#[test]
fn an_import_that_fails_or_is_stopped_leaves_nothing() {
    let (place, data) = (place(), data());
    let line = json!({"ids": [1, 2], "logprobs": [-1.0, -2.0]}).to_string() + "\n";
    fs::write(place.path("short.jsonl"), line.repeat(5000)).unwrap();
    let args = import(&data, "short.jsonl", "a/b/signal", &[]);
    place.refused(&args, 3, &["short.jsonl: 5,000 of ", "are missing, from position 5000 on"]);
    assert!(!place.path("a").exists());
    fs::write(place.path("logits.jsonl"), line.replace("-2.0", "2.0")).unwrap();
    let args = import(&data, "logits.jsonl", "signal", &[]);
    place.refused(&args, 3, &["logits.jsonl:1: position 0: ", "are these logits?"]);
    place.refused(&import(&data, "absent.jsonl", "signal", &[]), 3, &["absent.jsonl"]);
    // A server that goes on speaking is interrupted.
    let args = import(&data, "/dev/stdin", "signal", &[]);
    let mut child = place
        .command(&args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut speaks = child.stdin.take().unwrap();
    speaks.write_all(line.repeat(5000).as_bytes()).unwrap();
    let partial = place.path("signal/00000-of-00001.signal.partial");
    while !partial.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    stop(&mut child, &partial, 0, "-INT");
    let out = child.wait_with_output().unwrap();
    drop(speaks);
    assert_eq!(out.status.code(), Some(130), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(!place.path("signal").exists());
}

#[test]
fn the_command_that_follows_runs_as_it_stands() {
    let (place, data) = (place(), data());
    let small = ["--steps", "2", "--set", "data.rows=2", "--set", "shape.n_layer=1"];
    let kinds: [&[&str]; 4] = [
        &["--signal", "none"],
        &["--signal", "sampled=8", "--temperature", "2"],
        &["--signal", "top-k=8", "--stride", "4"],
        &["--signal", "sampled=8"],
    ];
    for (i, kind) in kinds.iter().enumerate() {
        let (out, run) = (format!("signal {i}"), format!("run-{i}"));
        let (code, stdout, stderr) = place.run(&write(&data, &out, kind));
        assert_eq!(code, 0, "{stderr}");
        let next = stdout.lines().find_map(|line| line.strip_prefix("next: eslm-kd ")).unwrap();
        let next = next.replace("NAME", "tiny").replace(&format!("'{out}'"), "SIGNAL");
        let words: Vec<&str> =
            next.split_whitespace().map(|w| if w == "SIGNAL" { &*out } else { w }).collect();
        let (code, _, stderr) = place.run(&[&words[..], &small, &["--out", &run]].concat());
        assert_eq!(code, 0, "{next}: {stderr}");
    }
}
