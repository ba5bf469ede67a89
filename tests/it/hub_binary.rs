//! The built binary against the fault server, with the environment of Python's hub library: several
//! processes at once, stop signals, exit statuses, what a run records.

use crate::hub::{ID, model_files};
use crate::support::hub_server::{HubServer, Kind, On};
use crate::support::place::without_settings;
use crate::support::tiny;
use candle_core::Device;
use eslm_kd::model::{Gpt2, Gpt2Config};
use eslm_kd::store::weights::{SaveOptions, SpecialIds, save_model};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const WEIGHTS: &str = "model.safetensors";

/// A server and a home for the cache.
pub struct Home {
    pub server: HubServer,
    pub dir: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Self {
        let server = HubServer::start(0).unwrap();
        server.add_repo(ID, &model_files());
        Self { server, dir: tempfile::tempdir().unwrap() }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eslm-kd"));
        without_settings(&mut command);
        command.env("HF_ENDPOINT", &self.server.endpoint).env("HF_HOME", self.dir.path());
        command.args(args).current_dir(self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Exit status, stdout, stderr.
    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        ended(self.command(args).output().unwrap())
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let (code, stdout, stderr) = self.run(&[args, &["--json"]].concat());
        assert_eq!((code, stdout.lines().count()), (0, 1), "{args:?}: {stdout}{stderr}");
        serde_json::from_str(&stdout).unwrap()
    }

    pub fn repo(&self) -> PathBuf {
        self.dir.path().join("hub/models--org--tiny")
    }

    /// The blob of a file of `main`.
    fn blob(&self, file: &str) -> PathBuf {
        let commit = fs::read_to_string(self.repo().join("refs/main")).unwrap();
        fs::canonicalize(self.repo().join("snapshots").join(commit).join(file)).unwrap()
    }
}

pub fn ended(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn two_processes_download_a_file_once() {
    let home = Home::new();
    home.server.fault(On::Body, WEIGHTS, Kind::Pause(1000, 3000), 1);
    let download = ["download", ID, "--json"];
    let first = home.command(&download).spawn().unwrap();
    home.server.wait_for_body(WEIGHTS);
    let second = home.command(&download).spawn().unwrap();
    let outcomes = [second, first].map(|child| ended(child.wait_with_output().unwrap()));
    for (code, _, stderr) in &outcomes {
        assert_eq!(*code, 0, "{stderr}");
    }
    assert_eq!(outcomes[0].1, outcomes[1].1, "both report the same snapshot");
    let asked = home.server.seen();
    assert_eq!(
        asked.iter().filter(|r| r.cdn && r.method == "GET").count(),
        1,
        "the second waited for the first"
    );
    let heads = asked.iter().filter(|r| r.method == "HEAD" && r.path.contains(WEIGHTS)).count();
    assert_eq!(heads, 2, "and it did begin");
    assert!(home.json(&["cache", "verify"])["damaged"].as_array().unwrap().is_empty());
}

#[test]
fn a_stopped_download_goes_on_where_it_was() {
    let home = Home::new();
    home.server.fault(On::Body, WEIGHTS, Kind::Stall(3000), 1);
    let child = home.command(&["download", ID]).spawn().unwrap();
    let claimed = |bytes: u64| {
        let files = fs::read_dir(home.repo().join("blobs")).into_iter().flatten().flatten();
        let partial = |p: &Path| p.extension().is_some_and(|e| e == "incomplete");
        files
            .map(|e| e.path())
            .find(|p| partial(p) && fs::metadata(p).is_ok_and(|m| m.len() == bytes))
    };
    let give_up = Instant::now() + Duration::from_secs(60);
    while claimed(3000).is_none() {
        assert!(Instant::now() < give_up, "no partial file");
        std::thread::sleep(Duration::from_millis(5));
    }
    let stopped = Instant::now();
    assert!(
        Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success()
    );
    let (code, stdout, stderr) = ended(child.wait_with_output().unwrap());
    assert_eq!((code, stdout.as_str()), (143, ""), "{stderr}");
    assert!(stderr.contains("stopped by SIGTERM"), "{stderr}");
    assert!(
        stopped.elapsed() < Duration::from_secs(5),
        "the socket was silent, the signal was not"
    );
    assert!(claimed(3000).is_some(), "the partial file is kept");
    assert!(!home.repo().join("refs/main").exists());

    home.server.seen();
    home.json(&["download", ID]);
    let ranges: Vec<String> = home
        .server
        .seen()
        .iter()
        .filter(|r| r.cdn)
        .filter_map(|r| r.header("range").map(str::to_string))
        .collect();
    assert_eq!(ranges, ["bytes=3000-"]);
    assert!(claimed(3000).is_none());
    assert!(home.json(&["cache", "verify"])["damaged"].as_array().unwrap().is_empty());
}

/// A Hub behind a proxy: its name means nothing here. What a proxy is asked is what curl and Python
/// ask.
#[test]
fn a_proxy_of_the_environment_is_asked_for_other_machines() {
    let home = Home::new();
    let download = |proxy: &str, except: &str| {
        let mut command = home.command(&["download", ID]);
        let named = proxy.replace("ADDRESS", home.server.endpoint.trim_start_matches("http://"));
        command.env("HF_ENDPOINT", "http://hub.invalid:81").env("HF_TOKEN", "hf_own");
        command.env("http_proxy", named).env("no_proxy", except);
        ended(command.output().unwrap())
    };
    let (code, _, stderr) = download("ADDRESS", "invalid");
    assert!(code == 4 && stderr.contains("cannot reach http://hub.invalid:81"), "{stderr}");
    assert!(home.server.seen().is_empty(), "NO_PROXY is heard");
    let (code, _, stderr) = download("ftp://ADDRESS", "");
    assert!(code == 2 && stderr.contains("the proxy \"ftp://127.0.0.1"), "{stderr}");

    let (code, _, stderr) = download("http://me:p%40ss@ADDRESS", "");
    assert_eq!(code, 0, "{stderr}");
    // The server for large files is on this machine, where no proxy stands, and is not the Hub,
    // whose token it must not see.
    let (large, small): (Vec<_>, Vec<_>) =
        home.server.seen().into_iter().partition(|request| request.cdn);
    assert!(small.len() > 5 && large.len() == 1, "{small:?}");
    for request in small {
        assert!(request.path.starts_with("http://hub.invalid:81/"), "{}", request.path);
        assert_eq!(request.header("host"), Some("hub.invalid:81"));
        // base64 of me:p@ss
        assert_eq!(request.header("proxy-authorization"), Some("Basic bWU6cEBzcw=="));
        assert_eq!(request.header("authorization"), Some("Bearer hf_own"));
    }
    assert_eq!(
        (large[0].header("proxy-authorization"), large[0].header("authorization")),
        (None, None)
    );
}

#[test]
fn offline_is_a_flag_or_pythons_variable() {
    let home = Home::new();
    let missing = |command: &mut Command| {
        let (code, stdout, stderr) = ended(command.output().unwrap());
        assert_eq!((code, stdout.as_str()), (4, ""), "{stderr}");
        assert!(stderr.contains("`eslm-kd download org/tiny`"), "{stderr}");
    };
    missing(&mut home.command(&["download", ID, "--offline"]));
    missing(home.command(&["download", ID]).env("HF_HUB_OFFLINE", "1"));
    assert!(home.server.seen().is_empty());
    let fetched = home.json(&["download", ID]);
    home.server.seen();
    let args = ["download", ID, "--json"];
    let (code, stdout, stderr) =
        ended(home.command(&args).env("HF_HUB_OFFLINE", "1").output().unwrap());
    assert_eq!((code, serde_json::from_str::<Value>(&stdout).unwrap()), (0, fetched), "{stderr}");
    assert!(home.server.seen().is_empty());
}

#[test]
fn the_cache_verb_lists_verifies_and_prunes() {
    let home = Home::new();
    let (code, stdout, _) = home.run(&["cache", "ls"]);
    assert!(code == 0 && stdout.starts_with("no models in "), "{stdout}");
    let fetched = home.json(&["download", ID]);
    let listed = home.json(&["cache", "ls", ID]);
    assert_eq!(listed["bytes"], fetched["bytes"]);
    assert_eq!(listed["repos"][0]["snapshots"][0]["commit"], fetched["commit"]);
    let (_, stdout, _) = home.run(&["cache", "ls"]);
    let commit = fetched["commit"].as_str().unwrap();
    assert!(
        stdout.lines().nth(1).is_some_and(|l| l.contains(ID) && l.contains(&commit[..12])),
        "{stdout}"
    );
    let (code, stdout, _) = home.run(&["cache", "verify"]);
    assert!(
        code == 0 && stdout.contains("4 files hashed") && stdout.contains("nothing is damaged"),
        "{stdout}"
    );

    let blob = home.blob(WEIGHTS);
    let mut bytes = fs::read(&blob).unwrap();
    bytes[0] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let (code, stdout, stderr) = home.run(&["cache", "verify", "--json", "--quiet"]);
    assert_eq!((code, stderr.lines().count()), (3, 1), "{stderr}");
    let found: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(found["damaged"][0]["id"], ID);
    let repair = format!("eslm-kd download org/tiny --revision {commit}");
    for part in [
        WEIGHTS,
        "not the hash",
        "`eslm-kd cache verify org/tiny --remove`",
        &format!("then `{repair}`"),
    ] {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    // The commands that the error names do repair it.
    let (code, stdout, stderr) = home.run(&["cache", "verify", ID, "--remove"]);
    assert!(code == 0 && stdout.contains(&repair), "{stdout}{stderr}");
    assert_eq!(home.run(&["cache", "verify"]).0, 0);
    home.json(&repair.split_whitespace().skip(1).collect::<Vec<_>>());
    assert_eq!(home.json(&["cache", "verify"])["blobs"], 4);

    let left = home.repo().join(format!("blobs/{}.eslm-kd.incomplete", "a".repeat(64)));
    fs::write(&left, [0; 2048]).unwrap();
    let (code, stdout, _) = home.run(&["cache", "prune", "--dry-run"]);
    assert!(code == 0 && stdout.contains("would free 2.00 KiB") && left.exists(), "{stdout}");
    let (code, stdout, _) = home.run(&["cache", "prune"]);
    assert!(code == 0 && stdout.contains("\nfreed 2.00 KiB") && !left.exists(), "{stdout}");
    assert_eq!(home.json(&["cache", "verify"])["blobs"], 4);

    for (args, code, part) in [
        (&["cache", "ls", "org/none"][..], 3, "`eslm-kd cache ls` lists what is"),
        (&["cache", "prune", "../x"], 3, "there is no ../x"),
        (&["cache", "verify", "tiny"], 2, "does not come from the Hub"),
    ] {
        let (found, _, stderr) = home.run(args);
        assert!(found == code && stderr.contains(part), "{args:?}: {found} {stderr}");
    }
}

#[test]
fn a_run_records_the_commits_of_its_models() {
    let home = Home::new();
    let folder = |name: &str, seed| {
        let dir = home.dir.path().join(name);
        let tokenizer = tiny::world().join("tokenizer");
        let model =
            Gpt2::scratch(Gpt2Config::new(tiny::VOCAB, 16, 16, 1, 2), seed, &Device::Cpu).unwrap();
        fs::create_dir_all(&dir).unwrap();
        let options = SaveOptions { ids: SpecialIds::default(), tokenizer: Some(&tokenizer) };
        save_model(&dir, &model.config, &model.params, &options).unwrap();
        let id = format!("org/{name}");
        let commit = home.server.add_folder(&id, &dir).unwrap();
        format!("{id}@{commit}")
    };
    let (teacher, student) = (folder("teacher", 1), folder("student", 2));
    let data = tiny::data().display().to_string();
    let args = [
        &["distill", "--data", &data, "--teacher", "org/teacher", "--student", "org/student"][..],
        &["--set", "data.context=16", "--set", "data.rows=8", "--out", "run"],
    ]
    .concat();
    let rhythm = ["--steps", "4", "--set", "checkpoint.every=2"];
    home.json(&[&args[..], &rhythm].concat());
    let manifest = |step: u64| -> Value {
        let path = home.dir.path().join(format!("run/checkpoints/step-{step:08}/manifest.json"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    assert_eq!(manifest(2)["teacher_revision"], teacher);
    assert_eq!(manifest(2)["student_revision"], student);

    // The branches move, and the run goes on with what it had, also after an attempt that was
    // refused.
    let run = home.dir.path().join("run");
    let whole = fs::read(run.join("model").join(WEIGHTS)).unwrap();
    let (new_teacher, _) = (folder("teacher", 3), folder("student", 4));
    let again = |more: &[&str]| {
        let _ = fs::remove_dir_all(run.join("checkpoints/step-00000004"));
        let _ = fs::remove_dir_all(run.join("model"));
        home.run(&[&["distill", "--resume", "--out", "run"], more].concat())
    };
    for (more, code, part) in [
        (&[][..], 0, ""),
        (&["--teacher", &new_teacher], 2, "teacher's weights (SHA-256)"),
        (&["--student", "org/student@main"], 2, "student's first weights (SHA-256)"),
        (&["--teacher", "org/teacher", "--student", "org/student"], 0, ""),
        (&["--teacher", "org/teacher@main"], 2, "teacher's weights (SHA-256)"),
        (&["--offline"], 0, ""),
        (&["--teacher", &teacher, "--student", &student, "--offline"], 0, ""),
    ] {
        let (found, _, stderr) = again(more);
        assert!(found == code && stderr.contains(part), "{more:?}: {found} {stderr}");
        if code == 0 {
            assert_eq!(fs::read(run.join("model").join(WEIGHTS)).unwrap(), whole, "{more:?}");
        }
    }
    assert_eq!(manifest(4)["teacher_revision"], teacher);
    assert_eq!(manifest(4)["student_revision"], student);
    // Any model may be named with its revision.
    let commit = teacher.split_once('@').unwrap().1;
    let found = home.json(&["download", &teacher, "--offline"]);
    assert_eq!(found["commit"], commit);
    let (code, _, stderr) = home.run(&["download", &teacher, "--revision", "main"]);
    assert!(code == 2 && stderr.contains("names a revision"), "{stderr}");
    let text = home.dir.path().join("text.txt");
    fs::write(&text, "Anna put a pear in the basket.").unwrap();
    let nll =
        |model: &str| home.json(&["eval", model, "--data", text.to_str().unwrap()])["nll"].clone();
    assert_ne!(nll(&teacher), nll("org/teacher"));
}

#[test]
fn a_plan_asks_the_hub_for_a_shape_and_for_no_weights() {
    let home = Home::new();
    let args = ["plan", "--teacher", ID, "--student", "tiny", "--set", "data.context=8", "--json"];
    let offline = [&args[..], &["--offline"]].concat();
    let (code, stdout, stderr) = home.run(&offline);
    assert_eq!((code, stdout.as_str()), (4, ""), "{stderr}");
    assert!(
        stderr.contains("`eslm-kd download org/tiny`") && home.server.seen().is_empty(),
        "{stderr}"
    );

    let (code, planned, stderr) = home.run(&args);
    assert_eq!(code, 0, "{stderr}");
    let asked = home.server.seen();
    assert!(!asked.is_empty() && asked.iter().all(|r| !r.path.contains(WEIGHTS)), "{asked:?}");
    let config: Value =
        serde_json::from_slice(&fs::read(home.blob("config.json")).unwrap()).unwrap();
    let json: Value = serde_json::from_str(&planned).unwrap();
    assert_eq!(json["teacher"]["shape"]["n_embd"], config["n_embd"]);
    // From the cache, without a question; it is not the model.
    let (code, again, stderr) = home.run(&offline);
    let untimed = |text: &str| {
        let mut plan: Value = serde_json::from_str(text).unwrap();
        plan["seconds"] = Value::Null; // measured
        plan
    };
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(untimed(&again), untimed(&planned));
    assert!(home.server.seen().is_empty());
    let distill = [
        "distill",
        "--offline",
        "--data",
        "d",
        "--teacher",
        ID,
        "--student",
        "tiny",
        "--out",
        "run",
    ];
    std::os::unix::fs::symlink(tiny::data(), home.dir.path().join("d")).unwrap();
    let (code, _, stderr) = home.run(&distill);
    assert!(code == 4 && stderr.contains(&format!("{WEIGHTS} is not in the cache")), "{stderr}");
}
