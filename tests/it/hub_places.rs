//! Where the cache lies and what it lies on: paths that hold variables, no home, caches that may
//! only be read, file systems without links, no certificates, a proxy for the CDN alone.

use crate::hub::{ID, model_files};
use crate::hub_binary::{Home, ended};
use crate::support::place::{TINY, data};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const DOWNLOAD: [&str; 2] = ["download", ID];

fn outcome(command: &mut Command) -> (i32, String, String) {
    ended(command.output().unwrap())
}

/// The same command, started by another program that lies before it.
fn through(program: &str, args: &[&str], command: &Command) -> Command {
    let mut outer = Command::new(program);
    outer.args(args).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

/// Whether the tests may act as another user.
fn can_be_nobody() -> bool {
    let can = Command::new("setpriv").args(NOBODY).arg("true").output();
    let can = can.is_ok_and(|out| out.status.success());
    if !can {
        eprintln!("skipped: this machine does not let a test act as another user");
    }
    can
}

#[test]
fn variables_in_paths_are_expanded() {
    let home = Home::new();
    let root = home.dir.path();
    fs::write(root.join("token"), "hf_own\r\n").unwrap();
    for (name, value, lies) in [
        ("HF_HOME", "$PLACE/a b/hf", "a b/hf/hub"),
        ("HF_HUB_CACHE", "${PLACE}/hub", "hub"),
        ("HUGGINGFACE_HUB_CACHE", "$PLACE/old", "old"),
        ("XDG_CACHE_HOME", "$PLACE/xdg", "xdg/huggingface/hub"),
        ("HF_HOME", "~/h", "h/hub"),
    ] {
        let mut command = home.command(&DOWNLOAD);
        command.env_remove("HF_HOME").env("PLACE", root).env("HOME", root).env(name, value);
        let work = tempfile::tempdir().unwrap();
        let (code, _, stderr) =
            outcome(command.current_dir(work.path()).env("HF_TOKEN_PATH", "$PLACE/token"));
        assert_eq!(code, 0, "{stderr}");
        assert!(root.join(lies).join("models--org--tiny/refs/main").exists(), "{name}={value}");
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0, "{name}={value}");
        let seen = home.server.seen();
        assert!(seen.iter().any(|r| r.header("authorization") == Some("Bearer hf_own")));
    }
}

#[test]
fn local_models_need_neither_a_home_nor_an_endpoint() {
    let home = Home::new();
    let data = data();
    let args =
        [&["pretrain", "--data", &data, "--steps", "1", "--quiet", "--out", "run"][..], &TINY]
            .concat();
    let mut command = home.command(&args);
    command.env("HF_ENDPOINT", "no address").env("HF_TOKEN", "no token");
    let (code, _, stderr) = outcome(&mut command);
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = outcome(home.command(&DOWNLOAD).env("HF_ENDPOINT", "no address"));
    assert!(code == 2 && stderr.contains("HF_ENDPOINT must be"), "{stderr}");

    if !can_be_nobody() {
        return;
    }
    // A user whom the system does not know has a home nowhere.
    let nobody = ["--reuid=54321", "--regid=54321", "--clear-groups", "env", "-i"];
    let run = home.dir.path().join("run");
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    open(home.dir.path());
    let inside = |args: &[&str]| {
        let binary = env!("CARGO_BIN_EXE_eslm-kd");
        outcome(Command::new("setpriv").args(nobody).arg(binary).args(args))
    };
    let shown = ["plan", "--teacher", run.to_str().unwrap(), "--set", "data.context=8"];
    let (code, _, stderr) = inside(&[&shown[..], &["--student", "tiny"]].concat());
    assert_eq!(code, 0, "{stderr}");
    for args in [&DOWNLOAD[..], &["cache", "ls"]] {
        let (code, _, stderr) = inside(args);
        assert!(code == 2 && stderr.contains("set HF_HOME"), "{args:?}: {stderr}");
    }
}

/// Of a cache that may only be read: what is there, by branch and without a ref; what is not.
fn read_only(home: &Home, run: impl Fn(&[&str]) -> (i32, String, String)) {
    for (args, what) in [
        (&DOWNLOAD[..], "the ref says so already"),
        (&["download", ID, "--offline"], "offline"),
        (&["cache", "ls"], "ls"),
        (&["cache", "verify"], "verify"),
        (&["cache", "prune"], "nothing to prune"),
    ] {
        let (code, _, stderr) = run(args);
        assert_eq!(code, 0, "{what}: {stderr}");
    }
    home.server.add_repo("org/other", &model_files());
    home.server.seen();
    let (code, _, stderr) = run(&["download", "org/other"]);
    assert_eq!(code, 6, "{stderr}");
    for part in ["cannot write to", "hub/models--org--other", "HF_HOME", "HF_HUB_CACHE"] {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    let bodies = home.server.seen().into_iter().filter(|r| r.method == "GET");
    assert!(bodies.into_iter().all(|r| r.path.starts_with("/api/models/")), "before any download");
}

fn open_to_all(folder: &Path) {
    let all = Command::new("chmod").args(["-R", "a+rX,go-w"]).arg(folder).status().unwrap();
    assert!(all.success());
}

#[test]
fn a_cache_of_another_user_is_usable() {
    let home = Home::new();
    home.json(&DOWNLOAD);
    if !can_be_nobody() {
        return;
    }
    open_to_all(home.dir.path());
    let run = |args: &[&str]| outcome(&mut through("setpriv", &NOBODY, &home.command(args)));
    read_only(&home, run);
    // What the branch means cannot be noted, and need not be.
    fs::remove_file(home.repo().join("refs/main")).unwrap();
    let (code, _, stderr) = run(&DOWNLOAD);
    assert_eq!(code, 0, "{stderr}");
    assert!(!home.repo().join("refs/main").exists());
}

#[test]
#[cfg(target_os = "linux")]
fn a_cache_on_a_read_only_mount_is_usable() {
    let home = Home::new();
    home.json(&DOWNLOAD);
    let place = home.dir.path().to_str().unwrap();
    let mounted = "mount --bind \"$0\" \"$0\" && mount -o remount,ro,bind \"$0\" && exec \"$@\"";
    let inside = ["-rm", "sh", "-c", mounted, place];
    if !Command::new("unshare").args(inside).arg("true").output().is_ok_and(|o| o.status.success())
    {
        return eprintln!("skipped: this machine does not let a test mount a file system");
    }
    read_only(&home, |args| outcome(&mut through("unshare", &inside, &home.command(args))));
}

/// A library that makes the system calls of a poor file system fail, as these do: no links, no locks,
/// no sync of folders. None where there is no C compiler.
fn poor_file_system(folder: &Path) -> Option<PathBuf> {
    let (source, library) = (folder.join("poor.c"), folder.join("poor.so"));
    let code = "
        #include <errno.h>
        #include <sys/stat.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int symlink(const char *a, const char *b) { (void)a; (void)b; errno = EPERM; return -1; }
        int link(const char *a, const char *b) { (void)a; (void)b; errno = EPERM; return -1; }
        int flock(int f, int how) { (void)f; (void)how; errno = ENOLCK; return -1; }
        int fsync(int f) {
            struct stat s;
            if (fstat(f, &s) == 0 && S_ISDIR(s.st_mode)) { errno = EINVAL; return -1; }
            return syscall(SYS_fsync, f);
        }";
    fs::write(&source, code).unwrap();
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).output();
    match built {
        Ok(out) if out.status.success() => Some(library),
        _ => {
            eprintln!("skipped: no C compiler to make a poor file system with");
            None
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_system_without_links_holds_a_cache() {
    let home = Home::new();
    let Some(library) = poor_file_system(home.dir.path()) else { return };
    let poor = |args: &[&str]| {
        let (code, stdout, stderr) = outcome(home.command(args).env("LD_PRELOAD", &library));
        assert_eq!(code, 0, "{args:?}: {stderr}");
        stdout
    };
    poor(&DOWNLOAD);
    let commit = fs::read_to_string(home.repo().join("refs/main")).unwrap();
    let snapshot = home.repo().join("snapshots").join(&commit);
    let plain = || {
        let files = fs::read_dir(&snapshot).unwrap().map(|e| e.unwrap());
        let files: Vec<_> = files.map(|e| e.file_type().unwrap()).collect();
        assert!(files.len() == 4 && files.iter().all(|t| t.is_file()), "{files:?}");
    };
    let blobs = || fs::read_dir(home.repo().join("blobs")).unwrap().count();
    plain();
    assert_eq!(blobs(), 0, "as Python does, moved and not copied");
    // They are found there, with links and without.
    home.server.seen();
    poor(&DOWNLOAD);
    home.json(&DOWNLOAD);
    assert!(
        home.server.seen().iter().all(|r| r.method == "HEAD" || r.path.starts_with("/api/models/"))
    );
    let listed = home.json(&["cache", "ls"]);
    let bytes = |files: &[&str]| -> usize {
        model_files().iter().filter(|f| files.contains(&f.0)).map(|f| f.1.len()).sum()
    };
    let all = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(listed["bytes"], bytes(&all));
    assert!(listed["repos"][0]["last_used"].is_u64());
    assert_eq!(home.json(&["cache", "verify"])["unchecked"].as_array().unwrap().len(), 4);
    poor(&["cache", "prune"]);
    plain();
    // One that is damaged is seen by its hash or length, and fetched anew.
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    poor(&DOWNLOAD);
    assert_eq!(fs::read(snapshot.join("config.json")).unwrap(), model_files()[0].1);

    // A blob that was there before, and that others may point at, is copied.
    fs::remove_dir_all(home.repo()).unwrap();
    home.json(&DOWNLOAD);
    fs::remove_dir_all(&snapshot).unwrap();
    home.server.seen();
    poor(&DOWNLOAD);
    plain();
    assert_eq!(blobs(), 4);
    assert!(
        home.server.seen().iter().all(|r| r.method == "HEAD" || r.path.starts_with("/api/models/"))
    );
}

#[test]
fn certificates_are_needed_for_https_alone() {
    let home = Home::new();
    let with = |args: &[&str], endpoint: &str| {
        let mut command = home.command(args);
        command.env("HF_ENDPOINT", endpoint).env_remove("SSL_CERT_DIR");
        outcome(command.env("SSL_CERT_FILE", "/dev/null"))
    };
    let https = home.server.endpoint.replace("http:", "https:");
    let started = Instant::now();
    let (code, _, stderr) = with(&DOWNLOAD, &https);
    assert_eq!(code, 4, "{stderr}");
    for part in
        ["no trusted certificates for https in /dev/null", "SSL_CERT_FILE", "ca-certificates"]
    {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    assert!(started.elapsed() < Duration::from_secs(3), "there is nothing to wait for");
    let (code, _, stderr) = with(&DOWNLOAD, &home.server.endpoint);
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = with(&DOWNLOAD, &https);
    assert!(code == 0 && stderr.contains("using the cached commit"), "{stderr}");
    // A variable that is empty names nothing: the system's are used, and the server speaks no TLS.
    fs::remove_dir_all(home.repo()).unwrap();
    let mut command = home.command(&DOWNLOAD);
    command.env("HF_ENDPOINT", &https).env("SSL_CERT_FILE", "").env("SSL_CERT_DIR", "");
    let (code, _, stderr) = outcome(&mut command);
    assert!(code == 4 && !stderr.contains("no trusted certificates"), "{stderr}");
}

/// The endpoint is on this machine, where no proxy stands; the CDN is not.
#[test]
fn a_local_endpoint_leaves_the_proxy_to_others() {
    let home = Home::new();
    home.server.cdn_at("http://cdn.invalid:81");
    let (code, _, stderr) =
        outcome(home.command(&DOWNLOAD).env("http_proxy", &home.server.endpoint));
    assert_eq!(code, 0, "{stderr}");
    let seen = home.server.seen();
    let (proxied, direct): (Vec<_>, Vec<_>) =
        seen.iter().partition(|r| r.path.starts_with("http://cdn.invalid:81/cdn/org/tiny/"));
    assert_eq!(proxied.len(), 1, "{seen:?}");
    assert!(direct.len() > 5 && direct.iter().all(|r| r.path.starts_with('/')));
    let (code, _, stderr) =
        outcome(home.command(&["download", ID, "--offline"]).env("http_proxy", " "));
    assert_eq!(code, 0, "{stderr}");
}

/// A folder of the cache that transformers left without a tokenizer, named by its path.
#[test]
fn a_folder_of_the_cache_without_a_tokenizer_says_how_to_fetch_it() {
    let home = Home::new();
    let fetched = home.json(&DOWNLOAD);
    let folder = PathBuf::from(fetched["dir"].as_str().unwrap());
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    fs::write(home.dir.path().join("text.txt"), "some text").unwrap();
    let asked = |name: &str, args: &[&str]| {
        let (code, _, stderr) = home
            .run(&[&["eval", name, "--data", "text.txt", "--offline", "--quiet"], args].concat());
        (code, stderr)
    };
    for name in [folder.to_str().unwrap(), ID] {
        let (code, stderr) = asked(name, &[]);
        assert!(code == 4 && stderr.contains("`eslm-kd download org/tiny`"), "{name}: {stderr}");
    }
    let prepare = ["prepare", "--input", "text.txt", "--out", "d", "--quiet", "--tokenizer"];
    let (code, _, stderr) = home.run(&[&prepare[..], &[folder.to_str().unwrap()]].concat());
    assert!(code == 4 && stderr.contains("`eslm-kd download org/tiny`"), "{stderr}");
    // A copy elsewhere is nobody's to fetch.
    let copy = home.dir.path().join("copy");
    fs::create_dir(&copy).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(folder.join(file), copy.join(file)).unwrap();
    }
    let (code, stderr) = asked("./copy", &[]);
    assert!(code == 3 && stderr.contains("no tokenizer beside it"), "{stderr}");
}
