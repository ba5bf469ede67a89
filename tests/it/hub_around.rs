//! What stands around a download: a busy Hub, mirrors that send elsewhere, tokens, tokenizers that
//! nobody asked for. Promise: a model that is wholly cached is used, and what is lacking is fetched.

use crate::hub::{Bench, Ear, ID, model_files};
use crate::support::hub_server::{Kind, On};
use eslm_kd::cli::download::{self, DownloadArgs};
use eslm_kd::progress::Silent;
use eslm_kd::store::hub::{Fetched, HubOptions, What, fetch_model};
use eslm_kd::{ErrorKind, Result};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// What is fetched, and the notes.
fn noted(options: &HubOptions, revision: Option<&str>) -> (Result<Fetched>, Vec<String>) {
    let ear = Ear::default();
    let fetched = fetch_model(ID, revision, What::Model, options, &ear);
    (fetched, ear.notes.into_inner().unwrap())
}

/// A patient client: one that waited would take minutes.
fn patient(bench: &Bench) -> HubOptions {
    let backoff = Duration::from_secs(10);
    HubOptions { retries: 4, backoff, ..bench.options.clone() }
}

#[test]
fn a_busy_hub_is_not_waited_for_where_nothing_is_missing() {
    let bench = Bench::with_model();
    let fetched = bench.fetch().unwrap();
    for (on, file) in [(On::Info, ""), (On::Head, "config.json"), (On::Head, "model.safetensors")] {
        for status in [429, 500, 502, 503, 504] {
            bench.server.fault(on, file, Kind::Status(status, "Retry-After: 300\r\n"), 1);
            let started = Instant::now();
            let (found, notes) = noted(&patient(&bench), None);
            assert_eq!(found.unwrap(), fetched, "{on:?} {status}");
            assert!(started.elapsed() < Duration::from_secs(5), "{on:?} {status}");
            assert!(notes[0].contains(&status.to_string()), "{notes:?}");
            assert!(notes[0].ends_with(&format!("using the cached commit {}", fetched.commit)));
        }
    }
    // Each fault was met once, so the Hub answers again.
    assert_eq!(noted(&bench.options, None).1, [""; 0]);
}

#[test]
fn a_busy_hub_is_waited_for_where_something_is_missing() {
    let bench = Bench::with_model();
    let fetched = bench.fetch().unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        fs::remove_file(fetched.dir.join(file)).unwrap();
        bench.server.fault(On::Info, "", Kind::Status(503, ""), 1);
        bench.server.fault(On::Head, file, Kind::Status(429, "Retry-After: 0\r\n"), 2);
        let (found, notes) = noted(&bench.options, None);
        assert_eq!((found.unwrap(), notes.len()), (fetched.clone(), 0));
        assert!(fetched.dir.join(file).exists());
    }
}

#[test]
fn a_new_commit_that_cannot_be_had_leaves_the_old_one() {
    let bench = Bench::with_model();
    let old = bench.fetch().unwrap();
    let mut files = model_files();
    files[0].1.push(b'\n');
    bench.server.add_repo(ID, &files);
    bench.server.fault(On::Body, "config.json", Kind::Status(503, ""), 3);
    let (found, notes) = noted(&bench.options, None);
    assert_eq!(found.unwrap(), old);
    assert!(notes[0].contains("(3 attempts); using the cached commit"), "{notes:?}");
    assert_ne!(bench.fetch().unwrap(), old);
}

#[test]
fn a_refused_token_is_named_and_keeps_nobody_from_the_cache() {
    let bench = Bench::with_model();
    let options = HubOptions { token: Some("hf_old".into()), ..bench.options.clone() };
    let stale = "X-Error-Message: Invalid credentials in Authorization header\r\n";
    let refused = |on, file, header| {
        bench.server.fault(on, file, Kind::Status(401, header), 1);
        let (found, notes) = noted(&options, None);
        found.map(|found| (found, notes))
    };
    for (on, file) in [(On::Info, ""), (On::Head, "config.json")] {
        let error = refused(on, file, stale).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Hub);
        let message = error.to_string();
        for part in [
            "invalid or expired",
            "A public model needs none",
            "HF_TOKEN",
            "The server says: \"Invalid credentials in Authorization header\"",
        ] {
            assert!(message.contains(part), "no {part:?} in {message}");
        }
    }
    // Whom the Hub knows, it tells what it has not.
    let message = refused(On::Info, "", "X-Error-Code: RepoNotFound\r\n").unwrap_err().to_string();
    assert!(message.contains("the token in use has no access"), "{message}");
    let fetched = bench.fetch().unwrap();
    let (found, notes) = refused(On::Info, "", stale).unwrap();
    assert_eq!(found, fetched);
    assert!(notes[0].contains("invalid or expired") && notes[0].contains("using the cached"));
}

/// A server that sends every request on with `status` and the Location that `to` makes of its path.
fn mirror(status: u16, to: impl Fn(&str) -> String + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let lines = BufReader::new(&stream).lines().map_while(|line| line.ok());
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)) else { continue };
            let location = to(path);
            let _ = write!(
                &stream,
                "HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
    });
    address
}

#[test]
fn a_file_s_hash_is_taken_from_nobody_but_the_hub() {
    let bench = Bench::with_model();
    let hub = bench.server.endpoint.clone();
    for status in [301, 302, 307, 308] {
        let to = hub.clone();
        let endpoint = mirror(status, move |path| format!("{to}{path}"));
        let options = HubOptions { endpoint, token: Some("hf_own".into()), ..patient(&bench) };
        let started = Instant::now();
        let message = noted(&options, None).0.unwrap_err().to_string();
        assert!(message.contains(&format!("sends us for tokenizer.json to {hub}, ")), "{message}");
        assert!(started.elapsed() < Duration::from_secs(5), "there is nothing to wait for");
        let seen = bench.server.seen();
        assert!(
            seen.iter().all(|r| r.header("authorization").is_none()),
            "the token left its host"
        );
        assert!(seen.iter().all(|r| r.path.starts_with("/api/models/")), "{seen:?}");
    }
    assert_eq!(bench.blobs(), 0);
}

#[test]
fn redirects_in_a_circle_end() {
    let bench = Bench::with_model();
    for to in ["/same", "same"] {
        let endpoint = mirror(302, |_| to.to_string());
        let options = HubOptions { endpoint, ..patient(&bench) };
        let started = Instant::now();
        let message = noted(&options, None).0.unwrap_err().to_string();
        assert!(message.contains("more than 10 redirects"), "{message}");
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}

fn by_commit(bench: &Bench, commit: &str, what: What) -> Fetched {
    fetch_model(ID, Some(commit), what, &bench.options, &Silent).unwrap()
}

/// What GPT2LMHeadModel of transformers leaves: config and weights.
#[test]
fn a_tokenizer_that_nobody_asked_for_is_fetched() {
    let bench = Bench::with_model();
    let fetched = bench.fetch().unwrap();
    let tokenizer = fetched.dir.join("tokenizer.json");
    let blob = fs::canonicalize(&tokenizer).unwrap();
    let offline = HubOptions { offline: true, ..bench.options.clone() };
    for revision in [None, Some(fetched.commit.clone())] {
        fs::remove_file(&tokenizer).unwrap();
        fs::remove_file(&blob).unwrap();
        // Who needs no tokenizer can go on offline.
        let lacking = fetch_model(ID, revision.as_deref(), What::Model, &offline, &Silent);
        assert_eq!(lacking.unwrap(), fetched);
        let args = DownloadArgs { name: ID.into(), revision: revision.clone() };
        let error = download::fetched(&args, &offline, &Silent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Hub);
        assert!(error.to_string().contains("`eslm-kd download org/tiny`"), "{error}");
        assert_eq!(download::fetched(&args, &bench.options, &Silent).unwrap().files.len(), 4);
        assert_eq!(download::fetched(&args, &offline, &Silent).unwrap().files.len(), 4);
    }
    // What is not on the Hub is asked for once; which files are wanted is seen from the config, too.
    let bench = Bench::new();
    let files: Vec<_> = model_files().into_iter().filter(|f| f.0 != "tokenizer.json").collect();
    let commit = bench.server.add_repo(ID, &files);
    by_commit(&bench, &commit, What::ConfigOnly);
    by_commit(&bench, &commit, What::Model);
    assert!(bench.repo().join(".no_exist").join(&commit).join("tokenizer.json").exists());
    bench.server.seen();
    by_commit(&bench, &commit, What::Model);
    assert!(bench.server.seen().is_empty());
    let args = DownloadArgs { name: ID.into(), revision: Some(commit) };
    let offline = HubOptions { offline: true, ..bench.options.clone() };
    assert_eq!(download::fetched(&args, &offline, &Silent).unwrap().files.len(), 3);
}
