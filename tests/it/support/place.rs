//! The built binary in a folder of its own.

use super::tiny;
use candle_core::Device;
use eslm_kd::model::{Gpt2, Gpt2Config};
use eslm_kd::store::checkpoint;
use eslm_kd::store::weights::{SaveOptions, SpecialIds, save_model};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A student of two narrow blocks on sequences of 16 tokens.
pub const TINY: [&str; 16] = [
    "--student",
    "tiny",
    "--set",
    "shape.n_layer=2",
    "--set",
    "shape.n_head=2",
    "--set",
    "shape.n_embd=16",
    "--set",
    "shape.n_positions=16",
    "--set",
    "data.context=16",
    "--set",
    "data.rows=8",
    "--set",
    "log.every=1",
];

/// An empty folder and the binary inside it.
pub struct Place {
    root: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { root: TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.online(args);
        command.arg("--offline");
        command
    }

    /// The binary as a user calls it.
    pub fn online(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eslm-kd"));
        without_settings(&mut command);
        command.args(args).current_dir(self.root.path()).stdin(Stdio::null());
        command
    }

    /// Exit status, stdout, stderr.
    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.command(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (status.code().unwrap(), text(stdout), text(stderr))
    }

    /// The one JSON object on stdout.
    pub fn json(&self, args: &[&str]) -> Value {
        let (code, stdout, stderr) = self.run(&[args, &["--json"]].concat());
        assert_eq!((code, stdout.lines().count()), (0, 1), "{args:?}: {stdout}{stderr}");
        serde_json::from_str(&stdout).unwrap()
    }

    /// Ends with `code` and one line on stderr that has `parts`.
    pub fn refused(&self, args: &[&str], code: i32, parts: &[&str]) {
        let (found, stdout, stderr) = self.run(&[args, &["--quiet"]].concat());
        assert_eq!((found, stdout.as_str()), (code, ""), "{args:?}: {stderr}");
        // Where a run ended, the command that goes on follows.
        let lines = stderr.lines().filter(|line| !line.starts_with("go on: eslm-kd ")).count();
        assert!(stderr.starts_with("error: ") && lines == 1, "{args:?}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{args:?}: no {part:?} in {stderr}");
        }
    }

    /// The lines of a run's metrics.
    pub fn metrics(&self, run: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub fn data() -> String {
    tiny::data().display().to_string()
}

/// A pretraining of the tiny student.
pub fn pretrain<'a>(data: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["pretrain", "--data", data][..], &TINY, more].concat()
}

/// A copy of the world's data folder under another name.
pub fn copy_data(to: &Path) {
    copy_folder(&tiny::data(), to);
}

/// Weights and moments at the end of a run that these words start.
pub fn trained(place: &Place, args: &[&str], out: &str) -> [Vec<u8>; 4] {
    let (code, _, stderr) = place.run(args);
    assert_eq!(code, 0, "{args:?}: {stderr}");
    numbers(&place.path(out))
}

/// A copy of a folder and all in it.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.path().is_dir() {
            true => copy_folder(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// Keeps the settings of whoever runs the tests from a command.
pub fn without_settings(command: &mut Command) {
    let ours = |name: &str| {
        name.starts_with("ESLM_KD_")
            || name.starts_with("HF_")
            || name.to_lowercase().ends_with("_proxy")
    };
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
}

/// A distillation with everything on that a run remembers: accumulation, a carried threshold,
/// Ada-ESLM, the mixture's draws; from the model `teacher` beside it.
pub fn everything<'a>(data: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [
        &["distill", "--data", data, "--teacher", "teacher"][..],
        &TINY,
        &["--score", "kl", "--alpha", "0.4", "--micro-rows", "2", "--set", "machine.threads=1"],
        &["--set", "select.burn_in=10", "--set", "select.ramp=20", "--set", "select.pool=carried"],
        &[
            "--set",
            "select.schedule=ada-eslm",
            "--set",
            "select.interval=7",
            "--set",
            "select.cvar_weight=0.5",
        ],
        more,
    ]
    .concat()
}

/// A Hugging Face folder with random weights and perhaps the world's tokenizer.
pub fn save_random(to: &Path, vocab: usize, positions: usize, tokenizer: bool) {
    fs::create_dir_all(to).unwrap();
    let model =
        Gpt2::scratch(Gpt2Config::new(vocab, positions, 16, 1, 2), 9, &Device::Cpu).unwrap();
    let folder = tiny::world().join("tokenizer");
    let options =
        SaveOptions { ids: SpecialIds::default(), tokenizer: tokenizer.then_some(&folder) };
    save_model(to, &model.config, &model.params, &options).unwrap();
}

/// Sends a signal to a run once its metrics have `lines` lines; false if it ended before.
pub fn stop(child: &mut Child, metrics: &Path, lines: usize, signal: &str) -> bool {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let found =
            fs::read(metrics).map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count());
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if found >= lines {
            return Command::new("kill")
                .args([signal, &child.id().to_string()])
                .status()
                .unwrap()
                .success();
        }
        assert!(Instant::now() < give_up, "no progress in {}", metrics.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Weights and moments of the last checkpoint, and the exported weights.
pub fn numbers(run: &Path) -> [Vec<u8>; 4] {
    let last = checkpoint::latest(run).unwrap().unwrap();
    let read = |path: &Path| fs::read(path).unwrap();
    [
        read(&run.join("model/model.safetensors")),
        read(&last.join("model.safetensors")),
        read(&last.join("adam_m.moments")),
        read(&last.join("adam_v.moments")),
    ]
}

/// Runs the binary where `mount` is a file system of its own, which begins with what `seed` holds,
/// and leaves a copy of its content in `copied`. None where this machine lets nobody mount.
#[cfg(target_os = "linux")]
pub fn on_file_system(place: &Place, options: &str, args: &[&str]) -> Option<(i32, String)> {
    let _ = fs::remove_dir_all(place.path("copied"));
    for folder in ["mount", "seed"] {
        fs::create_dir_all(place.path(folder)).unwrap();
    }
    let wrapped = |script: &str, args: &[&str]| {
        let mut command = Command::new("unshare");
        without_settings(&mut command);
        command.args(["-rm", "sh", "-c", script, env!("CARGO_BIN_EXE_eslm-kd")]).args(args);
        command.current_dir(place.path("")).stdin(Stdio::null()).output()
    };
    let mount = format!("mount -t tmpfs -o {options} tmpfs mount");
    if !wrapped(&mount, &[]).is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: this machine does not let a test mount a file system");
        return None;
    }
    // A seed that does not fit is a mistake of the test; on a read-only mount there is none to
    // copy.
    let seeded = "[ -z \"$(ls -A seed)\" ] || cp -r seed/. mount/ || exit 98";
    let script = format!(
        "{mount} || exit 99; {seeded}; \"$0\" \"$@\"; code=$?; cp -r mount copied; exit $code"
    );
    let out = wrapped(&script, &[args, &["--offline", "--quiet"]].concat()).unwrap();
    Some((out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap()))
}

/// Whatever a folder holds, by path.
pub fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        let name = PathBuf::from(path.file_name().unwrap());
        if path.is_dir() {
            found.extend(
                contents(&path).into_iter().map(|(inner, bytes)| (name.join(inner), bytes)),
            );
            found.insert(name, Vec::new());
        } else {
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}

/// Metrics without what a clock said.
pub fn timeless(lines: Vec<Value>) -> Vec<Value> {
    let strip = |mut line: Value| {
        for key in ["seconds", "tokens_per_second", "seconds_by_phase"] {
            line.as_object_mut().unwrap().shift_remove(key);
        }
        line
    };
    lines.into_iter().map(strip).collect()
}

impl Place {
    /// The last step in a run's metrics, whose last line may be cut short.
    pub fn metrics_step(&self, run: &str) -> u64 {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        let steps =
            text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()?["step"].as_u64());
        steps.max().unwrap()
    }
}
