//! Where results go: mount points, links, the working folder, places that cannot be written.
#![cfg(target_os = "linux")]

use crate::support::place::{
    Place, TINY, contents, data, on_file_system, pretrain, save_random, without_settings,
};
use crate::support::tiny;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

/// Every verb that writes a folder, its arguments without `--out`, and a file that is then in it.
fn verbs(place: &Place) -> Vec<(&'static str, Vec<String>, &'static str)> {
    save_random(&place.path("model"), tiny::VOCAB, 16, true);
    let at = |path: &Path| path.display().to_string();
    let stories = at(&tiny::world().join("stories.jsonl"));
    let tokenizer = at(&tiny::world().join("tokenizer"));
    let model = at(&place.path("model"));
    let run_file = "steps = 1\nstudent = 'tiny'\nmethod = 'clm'\n[shape]\nn_layer = 1\nn_head = 2\nn_embd = 16\n\
                    n_positions = 16\n[data]\ncontext = 16\nrows = 4\n[eval]\nrows = 8\n";
    fs::write(place.path("run.toml"), run_file).unwrap();
    let arm = format!("a:{}", at(&place.path("run.toml")));
    let data = data();
    let owned = |args: &[&str]| args.iter().map(|arg| arg.to_string()).collect::<Vec<_>>();
    let steps = ["--steps", "2", "--device", "cpu"];
    let pretrain = [&["pretrain", "--data", &data][..], &TINY, &steps].concat();
    let distill = [&["distill", "--data", &data, "--teacher", &model][..], &TINY, &steps].concat();
    vec![
        ("export", owned(&["export", &model]), "config.json"),
        (
            "prepare",
            owned(&["prepare", "--input", &stories, "--tokenizer", &tokenizer]),
            "train.bin",
        ),
        (
            "tokenizer",
            owned(&["tokenizer", "train", "--input", &stories, "--vocab-size", "300"]),
            "tokenizer.json",
        ),
        ("pretrain", owned(&pretrain), "model/config.json"),
        ("distill", owned(&distill), "model/config.json"),
        ("compare", owned(&["compare", &arm, "--data", &data, "--seeds", "1"]), "report.html"),
    ]
}

fn with_out<'a>(args: &'a [String], out: &'a str) -> Vec<&'a str> {
    args.iter().map(String::as_str).chain(["--out", out]).collect()
}

/// Names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    found
}

fn succeeds(place: &Place, args: &[&str]) {
    let (code, _, stderr) = place.run(&[args, &["--quiet"]].concat());
    assert_eq!(code, 0, "{args:?}: {stderr}");
}

#[test]
fn a_mount_point_is_filled_and_filled_again() {
    let place = Place::new();
    for (verb, args, file) in verbs(&place) {
        // What a fresh file system or a version control system has put there.
        let _ = fs::remove_dir_all(place.path("seed"));
        fs::create_dir_all(place.path("seed/lost+found")).unwrap();
        fs::write(place.path("seed/.gitkeep"), "").unwrap();
        let args = with_out(&args, "mount");
        let Some((code, stderr)) = on_file_system(&place, "size=64m", &args) else { return };
        assert_eq!(code, 0, "{verb}: {stderr}");
        let copied = place.path("copied");
        assert!(copied.join(file).is_file(), "{verb}: {:?}", names(&copied));
        assert!(copied.join("lost+found").is_dir() && copied.join(".gitkeep").is_file(), "{verb}");
        assert!(!names(&copied).iter().any(|name| name.ends_with(".tmp")), "{verb}");
        assert!(names(&place.path("mount")).is_empty(), "{verb}");
        if ["export", "prepare"].contains(&verb) {
            let before = contents(&copied);
            fs::remove_dir_all(place.path("seed")).unwrap();
            fs::rename(&copied, place.path("seed")).unwrap();
            let (code, stderr) = on_file_system(&place, "size=64m", &args).unwrap();
            assert_eq!(code, 0, "{verb}: {stderr}");
            assert!(contents(&place.path("copied")) == before, "{verb}");
        }
    }
}

#[test]
fn a_mount_point_that_is_full_or_read_only_stays_as_it_was() {
    let place = Place::new();
    for (verb, args, _) in verbs(&place) {
        let args = with_out(&args, "mount");
        for options in ["size=8k", "size=1m,ro"] {
            let Some((code, stderr)) = on_file_system(&place, options, &args) else { return };
            assert_eq!((code, stderr.lines().count()), (6, 1), "{verb}, {options}: {stderr}");
            let copied = contents(&place.path("copied"));
            let read_only = options.ends_with("ro");
            if read_only {
                let said = stderr.contains("Read-only file system") && stderr.contains("--out");
                assert!(said, "{verb}: {stderr}");
            }
            if read_only || ["export", "prepare", "tokenizer"].contains(&verb) {
                assert!(copied.is_empty(), "{verb}, {options}: {:?}", copied.keys());
            }
        }
    }
}

#[test]
fn links_stay_and_what_they_lead_to_is_written() {
    let place = Place::new();
    for (verb, args, file) in verbs(&place) {
        let at = |name: &str| place.path(verb).join(name);
        fs::create_dir_all(at("disk/there")).unwrap();
        symlink("disk/there", at("there")).unwrap();
        symlink("disk/new", at("one")).unwrap();
        symlink(at("one"), at("new")).unwrap();
        symlink("unmounted/new", at("far")).unwrap();
        for name in ["there", "new"] {
            let out = at(name).display().to_string();
            succeeds(&place, &with_out(&args, &out));
            assert!(at(name).is_symlink() && at("one").is_symlink(), "{verb}, {name}");
            assert!(at("disk").join(name).join(file).is_file(), "{verb}, {name}");
        }
        assert_eq!(names(&at("disk")), ["new", "there"], "{verb}");
        let far = at("far").display().to_string();
        place.refused(&with_out(&args, &far), 2, &["unmounted", "mount or make it"]);
        assert_eq!(names(&at("")), ["disk", "far", "new", "one", "there"], "{verb}");
    }
}

#[test]
fn the_working_folder_is_filled() {
    let place = Place::new();
    for (verb, args, file) in verbs(&place) {
        let here = place.path(&format!("in-{verb}"));
        fs::create_dir(&here).unwrap();
        let args = with_out(&args, ".");
        for time in 0..if ["export", "prepare"].contains(&verb) { 2 } else { 1 } {
            let mut command = place.command(&[&args[..], &["--quiet"]].concat());
            let done = command.current_dir(&here).output().unwrap();
            let stderr = String::from_utf8_lossy(&done.stderr);
            assert_eq!(done.status.code(), Some(0), "{verb}, {time}: {stderr}");
            assert!(here.join(file).is_file(), "{verb}");
        }
    }
}

/// The binary as somebody who may write little; None where this machine cannot.
fn as_nobody(place: &Place, args: &[&str]) -> Option<(i32, String)> {
    let binary = env!("CARGO_BIN_EXE_eslm-kd");
    let wrapped = |args: &[&str]| {
        let mut command = match is_root() {
            true => Command::new("setpriv"),
            false => Command::new(args[0]),
        };
        without_settings(&mut command);
        let ids = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        match is_root() {
            true => command.args(ids).args(args),
            false => command.args(&args[1..]),
        };
        command.env("HOME", "/nonexistent").current_dir(place.path("")).stdin(Stdio::null());
        command.output()
    };
    if !wrapped(&[binary, "--version"]).is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: this machine does not let a test run the binary as another user");
        return None;
    }
    let out = wrapped(&[&[binary], args, &["--offline", "--quiet"]].concat()).unwrap();
    Some((out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap()))
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn what_may_not_be_written_is_said_before_the_work() {
    let place = Place::new();
    let mode = |name: &str, mode| {
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("", 0o755);
    fs::create_dir_all(place.path("closed/open")).unwrap();
    fs::create_dir_all(place.path("closed/shut")).unwrap();
    mode("closed/open", 0o777);
    mode("closed/shut", 0o555);
    mode("closed", 0o555);
    fs::write(place.path("a.txt"), "One and two.").unwrap();
    // The inputs are not there: whoever speaks of the place has not looked for them.
    for verb in [
        &["prepare", "--input", "no.txt", "--tokenizer", "some/where"][..],
        &["tokenizer", "train", "--input", "no.txt", "--vocab-size", "300"],
    ] {
        for out in ["closed/new", "closed/deep/new", "closed/shut"] {
            let Some((code, stderr)) = as_nobody(&place, &[verb, &["--out", out]].concat()) else {
                return;
            };
            assert_eq!((code, stderr.lines().count()), (6, 1), "{out}: {stderr}");
            for part in [out, "Permission denied", "name a place that can be written to"] {
                assert!(stderr.contains(part), "{out}: {stderr}");
            }
            assert!(!stderr.contains(".tmp") && !stderr.contains("no.txt"), "{stderr}");
        }
    }
    // A run goes on in its own folder: another, empty one would be no remedy.
    let data = data();
    place.json(&pretrain(&data, &["--steps", "2", "--out", "run"]));
    mode("run", 0o555);
    let again = ["pretrain", "--resume", "--out", "run", "--steps", "4"];
    let (code, stderr) = as_nobody(&place, &again).unwrap();
    assert_eq!(code, 6, "{stderr}");
    assert!(stderr.contains("run: ") && stderr.contains("make it writable, or"), "{stderr}");
    assert!(stderr.contains("a copy of it"), "{stderr}");
    // A folder of one's own below one that is not is filled.
    let tokenizer = ["tokenizer", "train", "--input", "a.txt", "--vocab-size", "258", "--out"];
    let (code, stderr) = as_nobody(&place, &[&tokenizer[..], &["closed/open"]].concat()).unwrap();
    assert_eq!(code, 0, "{stderr}");
    assert!(place.path("closed/open/tokenizer.json").is_file());
    assert_eq!(names(&place.path("closed")), ["open", "shut"]);
}

#[test]
fn a_file_is_written_behind_its_link_and_never_over_a_pipe() {
    let place = Place::new();
    save_random(&place.path("model"), tiny::VOCAB, 16, true);
    fs::write(place.path("text.txt"), "The old lamp stood by the sea and gave its light.").unwrap();
    fs::create_dir(place.path("disk")).unwrap();
    let verbs: [(&[&str], &str); 2] = [
        (&["inspect", "model", "--text", "text.txt", "--out"], "page.html"),
        (&["export", "model", "--format", "gguf", "--out"], "model.gguf"),
    ];
    for (verb, name) in verbs {
        symlink(format!("disk/{name}"), place.path(name)).unwrap();
        for _ in 0..2 {
            succeeds(&place, &[verb, &[name]].concat());
            assert!(place.path(name).is_symlink());
            assert!(fs::metadata(place.path("disk").join(name)).unwrap().len() > 100);
        }
        let pipe = format!("pipe-{name}");
        assert!(Command::new("mkfifo").arg(place.path(&pipe)).status().unwrap().success());
        place.refused(&[verb, &[&pipe]].concat(), 2, &["pipe or a device"]);
        assert!(fs::symlink_metadata(place.path(&pipe)).unwrap().file_type().is_fifo());
        place.refused(&[verb, &["disk"]].concat(), 2, &["is a folder"]);
    }
    assert_eq!(names(&place.path("disk")), ["model.gguf", "page.html"]);
}

#[test]
fn a_file_that_is_mounted_by_itself_is_refused_before_the_work() {
    let place = Place::new();
    fs::write(place.path("page.html"), "mine").unwrap();
    fs::create_dir(place.path("out")).unwrap();
    fs::write(place.path("out/page.html"), "").unwrap();
    let wrapped = |script: &str| {
        let mut command = Command::new("unshare");
        without_settings(&mut command);
        command.args(["-rm", "sh", "-c", script, env!("CARGO_BIN_EXE_eslm-kd")]);
        command.current_dir(place.path("")).stdin(Stdio::null()).output()
    };
    let mount = "mount --bind page.html out/page.html";
    if !wrapped(mount).is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: this machine does not let a test mount a file");
        return;
    }
    let script = format!("{mount}; \"$0\" inspect none --text no.txt --out out/page.html");
    let done = wrapped(&script).unwrap();
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("mounted by itself") && !stderr.contains("no.txt"), "{stderr}");
    assert_eq!(fs::read_to_string(place.path("page.html")).unwrap(), "mine");
}
