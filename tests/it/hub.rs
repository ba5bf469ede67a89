//! Downloads against a server that speaks the Hub's protocol, well and badly. Promise: no wrong
//! byte enters the cache.

use crate::support::hub_server::{HubServer, Kind, On, hex};
use eslm_kd::cli::download::{self, DownloadArgs};
use eslm_kd::model::{Gpt2Config, Layout, ParamSet};
use eslm_kd::progress::{Progress, Silent};
use eslm_kd::store::hub::{self, Fetched, HubOptions, What, fetch_model};
use eslm_kd::store::weights::{SaveOptions, load_model, save_model};
use eslm_kd::{Error, ErrorKind, Result};
use sha1::Digest;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub const ID: &str = "org/tiny";

pub struct Bench {
    pub server: HubServer,
    pub cache: tempfile::TempDir,
    pub options: HubOptions,
}

impl Bench {
    pub fn new() -> Self {
        let server = HubServer::start(0).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let options = HubOptions {
            retries: 2,
            backoff: Duration::from_millis(2),
            idle_timeout: Duration::from_millis(700),
            ..HubOptions::new(&server.endpoint, cache.path())
        };
        Self { server, cache, options }
    }

    /// A server with one good model.
    pub fn with_model() -> Self {
        let bench = Self::new();
        bench.server.add_repo(ID, &model_files());
        bench
    }

    pub fn fetch(&self) -> Result<Fetched> {
        fetch_model(ID, None, What::Model, &self.options, &Silent)
    }

    pub fn repo(&self) -> PathBuf {
        self.cache.path().join("models--org--tiny")
    }

    /// Every blob is what its name says, whatever has happened; returns how many there are.
    pub fn blobs(&self) -> usize {
        let mut count = 0;
        for entry in fs::read_dir(self.repo().join("blobs")).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let bytes = fs::read(entry.path()).unwrap();
            if name.ends_with(".incomplete") {
                continue;
            }
            let git = [format!("blob {}\0", bytes.len()).as_bytes(), &bytes].concat();
            let expected = match name.len() {
                64 => hex(&sha2::Sha256::digest(&bytes)),
                _ => hex(&sha1::Sha1::digest(&git)),
            };
            assert_eq!(name, expected, "a blob with wrong bytes");
            count += 1;
        }
        count
    }

    pub fn refused(&self) -> String {
        let error = self.fetch().unwrap_err();
        self.blobs();
        assert_eq!(error.kind(), ErrorKind::Hub, "{error}");
        assert!(
            !self.repo().join("refs/main").exists(),
            "a failed download must not look complete"
        );
        error.to_string()
    }
}

pub fn model_files() -> Vec<(&'static str, Vec<u8>)> {
    let config = Gpt2Config::new(300, 16, 16, 2, 2);
    let params =
        ParamSet::zeros(&Layout::new(&config), candle_core::DType::F32, &candle_core::Device::Cpu)
            .unwrap();
    let dir = tempfile::tempdir().unwrap();
    save_model(dir.path(), &config, &params, &SaveOptions::default()).unwrap();
    let read = |name| (name, fs::read(dir.path().join(name)).unwrap());
    vec![
        read("config.json"),
        read("generation_config.json"),
        read("model.safetensors"),
        ("tokenizer.json", b"{\"a\": 1}".to_vec()),
        ("pytorch_model.bin", vec![1; 100]),
        ("README.md", b"# hello".to_vec()),
        ("onnx/model.onnx", vec![2; 100]),
    ]
}

#[test]
fn a_download_has_pythons_layout_and_then_loads_offline() {
    let bench = Bench::with_model();
    let fetched = bench.fetch().unwrap();
    let repo = bench.repo();
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), fetched.commit);
    assert_eq!(fetched.dir, repo.join("snapshots").join(&fetched.commit));
    let names: Vec<String> =
        hub::snapshot_files(&fetched.dir).unwrap().into_iter().map(|f| f.0).collect();
    assert_eq!(
        names,
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    );
    for (name, bytes) in model_files().into_iter().filter(|f| names.iter().any(|n| n == f.0)) {
        let target = fs::read_link(fetched.dir.join(name)).unwrap();
        assert!(target.starts_with("../../blobs"), "{}", target.display());
        assert_eq!(fs::read(fetched.dir.join(name)).unwrap(), bytes, "{name}");
    }
    assert_eq!(bench.blobs(), 4);
    load_model(&fetched.dir, &candle_core::Device::Cpu).unwrap();
    assert!(
        bench.server.seen().iter().all(|r| !r.path.contains(".bin") && !r.path.contains(".onnx"))
    );

    // Again: nothing but questions. By commit: not even those. Offline: nothing at all.
    assert_eq!(bench.fetch().unwrap(), fetched);
    assert!(bench.server.seen().iter().all(|r| r.method == "HEAD" || r.path.starts_with("/api/")));
    let pinned =
        fetch_model(ID, Some(&fetched.commit), What::Model, &bench.options, &Silent).unwrap();
    let offline = HubOptions { offline: true, ..bench.options.clone() };
    assert_eq!(pinned, fetched);
    assert_eq!(fetch_model(ID, None, What::Model, &offline, &Silent).unwrap(), fetched);
    assert!(bench.server.seen().is_empty());
}

#[test]
fn offline_names_the_command_that_would_fetch() {
    let bench = Bench::with_model();
    let offline = HubOptions { offline: true, ..bench.options.clone() };
    let message = |revision| {
        fetch_model(ID, revision, What::Model, &offline, &Silent).unwrap_err().to_string()
    };
    assert!(message(None).contains("`eslm-kd download org/tiny`"));
    assert!(message(Some("v1")).contains("`eslm-kd download org/tiny --revision v1`"));
    // The tokenizer alone is not the model.
    fetch_model(ID, None, What::TokenizerOnly, &bench.options, &Silent).unwrap();
    fetch_model(ID, None, What::TokenizerOnly, &offline, &Silent).unwrap();
    assert!(message(None).contains("model.safetensors is not in the cache"));
    assert!(bench.server.seen().iter().all(|r| !r.path.contains("model.safetensors")));
}

/// Remembers what it hears: notes, phases with their totals, units done.
#[derive(Default)]
pub struct Ear {
    pub notes: Mutex<Vec<String>>,
    phases: Mutex<Vec<(String, Option<u64>)>>,
    done: AtomicU64,
}

impl Progress for Ear {
    fn start(&self, label: &str, total: Option<u64>, _: &str) {
        self.phases.lock().unwrap().push((label.into(), total));
    }
    fn advance(&self, n: u64) {
        self.done.fetch_add(n, Ordering::Relaxed);
    }
    fn finish(&self) {}
    fn note(&self, text: &str) {
        self.notes.lock().unwrap().push(text.into());
    }
}

#[test]
fn progress_counts_every_byte_once_however_often_it_is_sent() {
    let bench = Bench::with_model();
    let file = "model.safetensors";
    bench.server.fault(On::Body, file, Kind::Cut(5000), 1);
    bench.server.fault(On::Body, file, Kind::RangeIgnored, 1);
    let ear = Ear::default();
    let fetched = fetch_model(ID, None, What::Model, &bench.options, &ear).unwrap();
    let total: u64 = hub::snapshot_files(&fetched.dir).unwrap().iter().map(|f| f.1).sum();
    assert_eq!(*ear.phases.lock().unwrap(), [(format!("download {ID}"), Some(total))]);
    assert_eq!(ear.done.load(Ordering::Relaxed), total);
    // Nothing to do is no phase.
    fetch_model(ID, None, What::Model, &bench.options, &ear).unwrap();
    assert_eq!(ear.phases.lock().unwrap().len(), 1);
}

#[test]
fn a_file_that_does_not_fit_on_the_disk_is_not_begun() {
    let bench = Bench::with_model();
    let huge: &str = "X-Linked-Etag: \"0000000000000000000000000000000000000000000000000000000000000000\"\r\n\
                      X-Linked-Size: 9000000000000000000\r\n";
    bench.server.fault(On::Head, "model.safetensors", Kind::Status(200, huge), 1);
    let error = bench.fetch().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    let message = error.to_string();
    assert!(
        message.starts_with("org/tiny: it needs 9000000000") && message.contains("MB free"),
        "{message}"
    );
    assert!(message.contains(bench.cache.path().to_str().unwrap()), "{message}");
    assert!(
        bench.server.seen().iter().all(|r| r.method != "GET" || r.path.starts_with("/api/models/"))
    );
    assert_eq!(bench.blobs(), 0);
    bench.fetch().unwrap();
}

#[test]
fn an_unreachable_hub_is_made_up_for_by_the_cache() {
    let bench = Bench::with_model();
    let gone = HubOptions { endpoint: "http://127.0.0.1:9".into(), ..bench.options.clone() };
    let error = fetch_model(ID, None, What::Model, &gone, &Silent).unwrap_err().to_string();
    assert!(
        error.contains("cannot reach http://127.0.0.1:9") && error.contains("3 attempts"),
        "{error}"
    );
    let fetched = bench.fetch().unwrap();
    let ear = Ear::default();
    assert_eq!(fetch_model(ID, None, What::Model, &gone, &ear).unwrap(), fetched);
    assert!(ear.notes.lock().unwrap()[0].contains("using the cached commit"));
    // That there is no such revision is an answer, not an outage.
    bench.server.fault(On::Info, "", Kind::Status(404, ""), 1);
    assert!(bench.fetch().unwrap_err().to_string().contains("no revision main"));
}

#[test]
fn shards_come_with_their_index() {
    let bench = Bench::new();
    let mut files = model_files();
    let whole = files.remove(2).1;
    let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let mut names = tensors.names();
    names.sort_unstable();
    let (first, second) = names.split_at(10);
    let shard = |names: &[&str]| {
        let views = names.iter().map(|n| (n.to_string(), tensors.tensor(n).unwrap()));
        safetensors::serialize(views, None).unwrap()
    };
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let map = |name: &str| shards[usize::from(second.contains(&name))];
    let index = |map: &dyn Fn(&str) -> String| {
        let map: serde_json::Map<_, _> =
            names.iter().map(|n| (n.to_string(), map(n).into())).collect();
        serde_json::json!({"metadata": {}, "weight_map": map}).to_string().into_bytes()
    };
    files.push((shards[0], shard(first)));
    files.push((shards[1], shard(second)));
    files.push(("model.safetensors.index.json", index(&|n| map(n).to_string())));
    bench.server.add_repo(ID, &files);
    let fetched = bench.fetch().unwrap();
    load_model(&fetched.dir, &candle_core::Device::Cpu).unwrap();
    bench.blobs();
    let offline = HubOptions { offline: true, ..bench.options.clone() };
    fs::remove_file(fetched.dir.join(shards[1])).unwrap();
    let error = fetch_model(ID, None, What::Model, &offline, &Silent).unwrap_err().to_string();
    assert!(error.contains(shards[1]), "{error}");

    // Names that leave the folder, or that the repository lacks.
    for bad in [
        "../x.safetensors",
        "/etc/x.safetensors",
        "C:\\x.safetensors",
        "a\u{7}b.safetensors",
        "no.safetensors",
    ] {
        let bench = Bench::new();
        files.last_mut().unwrap().1 =
            index(&|n| if n == names[0] { bad.to_string() } else { map(n).to_string() });
        bench.server.add_repo(ID, &files);
        let message = bench.refused();
        assert!(
            message.contains("plain name") || message.contains("does not have"),
            "{bad}: {message}"
        );
        let asked = bench.server.seen();
        assert!(
            asked.iter().all(|r| !r.path.contains("model-0000")),
            "nothing of a bad index is fetched"
        );
        assert!(!bench.cache.path().join("x.safetensors").exists());
    }
}

#[test]
fn passing_faults_are_outlived_and_lasting_ones_leave_no_blob() {
    let file = "model.safetensors";
    let page = "Content-Type: text/html\r\n";
    for (on, kind, says) in [
        (On::Body, Kind::Status(503, page), "503"),
        (On::Body, Kind::Status(429, "Retry-After: 0\r\n"), "429"),
        (On::Body, Kind::Short(1000), "the server sends 1000"),
        (On::Body, Kind::Unannounced(1000), "broke off after"),
        (On::Body, Kind::Html, "login page"),
        (On::Body, Kind::Flipped, "nothing was kept"),
        (On::Body, Kind::Stall(1000), "no byte within"),
        (On::Head, Kind::Status(503, ""), "503"),
        (On::Head, Kind::Html, "without an ETag"),
    ] {
        let bench = Bench::with_model();
        bench.server.fault(on, file, kind.clone(), 1);
        let fetched = bench.fetch().unwrap_or_else(|e| panic!("{kind:?} once: {e}"));
        load_model(&fetched.dir, &candle_core::Device::Cpu).unwrap();
        assert_eq!(bench.blobs(), 4);

        let bench = Bench::with_model();
        bench.server.fault(on, file, kind.clone(), usize::MAX);
        let message = bench.refused();
        assert!(message.contains(says), "{kind:?}: {message}");
        let snapshots =
            fs::read_dir(bench.repo().join("snapshots")).into_iter().flatten().flatten();
        assert!(
            snapshots.into_iter().all(|s| fs::symlink_metadata(s.path().join(file)).is_err()),
            "{kind:?}"
        );
    }
}

#[test]
fn an_error_page_never_becomes_a_small_file_either() {
    for kind in
        [Kind::Status(503, ""), Kind::Html, Kind::Flipped, Kind::Short(3), Kind::Unannounced(0)]
    {
        let bench = Bench::with_model();
        bench.server.fault(On::Body, "config.json", kind.clone(), usize::MAX);
        bench.refused();
        let bench = Bench::with_model();
        bench.server.fault(On::Body, "config.json", kind, 1);
        bench.fetch().unwrap();
        assert_eq!(bench.blobs(), 4);
    }
}

#[test]
fn a_cut_download_resumes_where_it_broke() {
    let file = "model.safetensors";
    let ranges = |bench: &Bench| -> Vec<String> {
        let of_body = bench.server.seen().into_iter().filter(|r| r.cdn && r.method == "GET");
        of_body.filter_map(|r| r.header("range").map(str::to_string)).collect()
    };
    // Within a call.
    let bench = Bench::with_model();
    bench.server.fault(On::Body, file, Kind::Cut(5000), 1);
    bench.fetch().unwrap();
    assert_eq!(ranges(&bench), ["bytes=5000-"]);

    // Across calls.
    let bench = Bench::with_model();
    bench.server.fault(On::Body, file, Kind::Cut(4000), 3);
    bench.refused();
    assert_eq!(ranges(&bench), ["bytes=4000-", "bytes=8000-"]);
    bench.fetch().unwrap();
    assert_eq!(ranges(&bench), ["bytes=12000-"]);
    assert_eq!(bench.blobs(), 4);

    // A server that ignores the range sends everything, which must not be appended.
    let bench = Bench::with_model();
    bench.server.fault(On::Body, file, Kind::Cut(5000), 1);
    bench.server.fault(On::Body, file, Kind::RangeIgnored, usize::MAX);
    bench.fetch().unwrap();

    // What an earlier call left may be damaged: found by the hash, and fetched anew.
    let bench = Bench::with_model();
    bench.server.fault(On::Body, file, Kind::Cut(4000), 3);
    bench.refused();
    let blobs = fs::read_dir(bench.repo().join("blobs")).unwrap().flatten();
    let partial =
        blobs.map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "incomplete")).unwrap();
    let mut bytes = fs::read(&partial).unwrap();
    bytes[100] ^= 1;
    fs::write(&partial, bytes).unwrap();
    bench.fetch().unwrap();
    assert_eq!(bench.blobs(), 4);
    assert!(!partial.exists());
}

#[test]
fn connections_cut_at_random_bytes_give_the_same_file() {
    let file = "model.safetensors";
    let len = model_files().iter().find(|f| f.0 == file).unwrap().1.len();
    // Fixed draws, and the edges.
    let mut draw = 12345_usize;
    let mut next = || {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (draw >> 33) % len
    };
    let pairs: Vec<[usize; 2]> = (0..10).map(|_| [next(), next()]).collect();
    for cuts in [[0, 0], [1, len - 2], [len - 1, 0], [0, len - 1]].into_iter().chain(pairs) {
        let bench = Bench::with_model();
        for cut in cuts {
            bench.server.fault(On::Body, file, Kind::Cut(cut), 1);
        }
        let fetched = bench.fetch().unwrap_or_else(|e| panic!("{cuts:?}: {e}"));
        load_model(&fetched.dir, &candle_core::Device::Cpu).unwrap();
        assert_eq!(bench.blobs(), 4, "{cuts:?}");
    }
}

#[test]
fn a_damaged_blob_in_the_cache_is_replaced() {
    let bench = Bench::with_model();
    let fetched = bench.fetch().unwrap();
    for (file, damage) in [("config.json", "}{"), ("model.safetensors", "short")] {
        let blob = fs::canonicalize(fetched.dir.join(file)).unwrap();
        fs::write(&blob, damage).unwrap();
        bench.fetch().unwrap();
        bench.blobs();
    }
}

#[test]
fn refusals_say_what_to_do() {
    let bench = Bench::with_model();
    let other = fetch_model("org/none", None, What::Model, &bench.options, &Silent)
        .unwrap_err()
        .to_string();
    assert!(other.contains("no token is set") && other.contains("HF_TOKEN"), "{other}");
    let cases: [(On, &str, u16, &'static str, &str); 5] = [
        (On::Info, "", 403, "X-Error-Code: GatedRepo\r\n", "grants access on request"),
        (On::Info, "", 404, "", "no revision main"),
        (On::Head, "config.json", 401, "", "private"),
        (On::Head, "config.json", 403, "", "access refused"),
        (On::Body, "model.safetensors", 404, "", "has no file model.safetensors"),
    ];
    for (on, file, status, header, says) in cases {
        bench.server.seen();
        bench.server.fault(on, file, Kind::Status(status, header), 1);
        let message = bench.refused();
        assert!(message.contains(says), "{status}: {message}");
    }
    for id in ["../../etc", "a b", "x/y/z", ""] {
        let error = fetch_model(id, None, What::Model, &bench.options, &Silent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{id}");
    }
    assert!(fetch_model(ID, Some("../x"), What::Model, &bench.options, &Silent).is_err());
}

#[test]
fn pickles_are_refused_with_the_way_to_convert() {
    let bench = Bench::new();
    bench
        .server
        .add_repo(ID, &[("config.json", b"{}".to_vec()), ("pytorch_model.bin", vec![0; 9])]);
    let message = bench.refused();
    assert!(message.contains("never fetched") && message.contains("save_pretrained"), "{message}");
    assert_eq!(bench.blobs(), 0);
}

#[test]
fn the_token_stays_with_the_hub() {
    let bench = Bench::with_model();
    let options = HubOptions { token: Some("hf_secret".into()), ..bench.options.clone() };
    fetch_model(ID, None, What::Model, &options, &Silent).unwrap();
    let seen = bench.server.seen();
    let (cdn, hub): (Vec<_>, Vec<_>) = seen.iter().partition(|r| r.cdn);
    assert!(!cdn.is_empty());
    assert!(cdn.iter().all(|r| r.header("authorization").is_none()), "sent to another host");
    assert!(hub.iter().all(|r| r.header("authorization") == Some("Bearer hf_secret")));

    let bench = Bench::with_model();
    bench.fetch().unwrap();
    assert!(bench.server.seen().iter().all(|r| r.header("authorization").is_none()));
}

#[test]
fn a_hash_that_cannot_be_checked_is_refused() {
    let bench = Bench::with_model();
    let header = "X-Repo-Commit: x\r\nETag: \"../../x\"\r\n";
    bench.server.fault(On::Head, "config.json", Kind::Status(200, header), 1);
    assert!(bench.fetch().unwrap_err().to_string().contains("told of another"));
    let header = "ETag: \"../../x\"\r\n";
    bench.server.fault(On::Head, "config.json", Kind::Status(200, header), 1);
    assert!(bench.refused().contains("cannot be verified"));
    assert!(!bench.repo().join("x").exists());
}

#[test]
fn two_downloads_at_once_make_one_cache() {
    let bench = Bench::with_model();
    bench.server.fault(On::Body, "model.safetensors", Kind::Stall(1000), 1);
    let results: Vec<Result<Fetched>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| bench.fetch())).collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err(Error::internal("panicked"))))
            .collect()
    });
    results.into_iter().for_each(|r| drop(r.unwrap()));
    assert_eq!(bench.blobs(), 4);
    let bodies = bench.server.seen().iter().filter(|r| r.cdn && r.method == "GET").count();
    assert_eq!(bodies, 2, "one stalled, one resumed; the others waited");
}

#[test]
fn the_environment_decides_where_and_whether() {
    let bench = Bench::with_model();
    let (home, endpoint) =
        (bench.cache.path().to_str().unwrap().to_string(), bench.server.endpoint.clone());
    let vars = |name: &str| match name {
        "HF_HOME" => Some(home.clone()),
        "HF_ENDPOINT" => Some(endpoint.clone()),
        _ => None,
    };
    let args = DownloadArgs { name: ID.into(), revision: None };
    let online = HubOptions::from_vars(false, vars);
    let report = download::fetched(&args, &online, &Silent).unwrap();
    assert!(report.dir.starts_with(Path::new(&home).join("hub/models--org--tiny/snapshots")));
    assert_eq!((report.origin.as_str(), report.files.len()), ("Hub org/tiny", 4));
    assert_eq!(report.bytes, report.files.iter().map(|f| f.bytes).sum::<u64>());
    bench.server.seen();
    let offline = HubOptions::from_vars(false, |n| {
        if n == "HF_HUB_OFFLINE" { Some("1".into()) } else { vars(n) }
    });
    assert_eq!(download::fetched(&args, &offline, &Silent).unwrap(), report);
    assert!(bench.server.seen().is_empty());
}

/// On some file systems a lock locks nothing. Here the second download finds another lock file than
/// the first holds.
#[test]
fn two_downloads_without_a_lock_between_them_make_one_good_cache() {
    let bench = Bench::with_model();
    let file = "model.safetensors";
    bench.server.fault(On::Body, file, Kind::Pause(1000, 3000), 1);
    let patient = HubOptions { idle_timeout: Duration::from_secs(20), ..bench.options.clone() };
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| fetch_model(ID, None, What::Model, &patient, &Silent));
        bench.server.wait_for_body(file);
        fs::remove_dir_all(bench.cache.path().join(".locks")).unwrap();
        let fast = fetch_model(ID, None, What::Model, &patient, &Silent).unwrap();
        assert!(!slow.is_finished(), "it waited for the slow one");
        assert_eq!(slow.join().unwrap().unwrap(), fast);
    });
    let bodies: Vec<_> =
        bench.server.seen().into_iter().filter(|r| r.cdn && r.method == "GET").collect();
    assert_eq!(bodies.len(), 2);
    assert!(
        bodies.iter().all(|r| r.header("range").is_none()),
        "neither took the other's partial file"
    );
    assert_eq!(bench.blobs(), 4);
    assert_eq!(
        fs::read_dir(bench.repo().join("blobs")).unwrap().count(),
        4,
        "and no partial file is left"
    );
}
