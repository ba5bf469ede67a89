//! `cache ls | verify | prune` on a cache that the fault server filled. Promise: damage is found,
//! nothing that anybody uses or downloads is removed.

use crate::hub::{Bench, ID, model_files};
use crate::support::hub_server::{Kind, On};
use eslm_kd::ErrorKind;
use eslm_kd::progress::Silent;
use eslm_kd::store::hub::audit::{Pruned, Verified, list, prune, verify};
use eslm_kd::store::hub::{HubOptions, What, fetch_model};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// As if it had been there for an hour.
fn age(path: &Path) {
    let hour = SystemTime::now() - Duration::from_secs(3600);
    File::open(path).unwrap().set_modified(hour).unwrap();
}

fn age_all(dir: &Path) {
    fs::read_dir(dir).unwrap().flatten().for_each(|e| age(&e.path()));
}

fn check(bench: &Bench, remove: bool) -> Verified {
    verify(bench.cache.path(), Some(ID), remove, &Silent).unwrap()
}

fn tidy(bench: &Bench, dry_run: bool) -> Pruned {
    prune(bench.cache.path(), None, dry_run).unwrap()
}

fn bytes_of(files: &[&str]) -> u64 {
    model_files().iter().filter(|f| files.contains(&f.0)).map(|f| f.1.len() as u64).sum()
}

/// Two commits, `main` being the second: they share all but config.json and README.md.
fn two_commits() -> (Bench, String, String) {
    let bench = Bench::with_model();
    let old = bench.fetch().unwrap().commit;
    let mut files = model_files();
    files[0].1.push(b'\n');
    bench.server.add_repo(ID, &files);
    let new = bench.fetch().unwrap().commit;
    assert_ne!(old, new);
    (bench, old, new)
}

#[test]
fn ls_names_commits_refs_and_sizes() {
    let (bench, old, new) = two_commits();
    // What is no model of the Hub is not looked at.
    for other in ["datasets--org--text/blobs", "models--../blobs", "models--a--b--c/blobs", "notes"]
    {
        fs::create_dir_all(bench.cache.path().join(other)).unwrap();
    }
    let listed = list(bench.cache.path(), None).unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    let repo = &listed[0];
    let all = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!((repo.id.as_str(), repo.partial_bytes), (ID, 0));
    assert_eq!(repo.bytes, bytes_of(&all) + bytes_of(&["config.json"]) + 1);
    let found = |commit: &str| repo.snapshots.iter().find(|s| s.commit == commit).unwrap();
    assert_eq!((found(&old).files, found(&old).bytes), (4, bytes_of(&all)));
    assert!(found(&old).refs.is_empty());
    assert_eq!(
        (found(&new).refs.as_slice(), found(&new).bytes),
        (&["main".to_string()][..], bytes_of(&all) + 1)
    );
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(now - repo.last_used.unwrap() < 300);
    let error = list(bench.cache.path(), Some("org/none")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains("`eslm-kd download org/none`"), "{error}");
    assert!(list(&bench.cache.path().join("nowhere"), None).unwrap().is_empty());
}

#[test]
fn verify_finds_damage_and_the_next_download_repairs_it() {
    let bench = Bench::with_model();
    let fetched = bench.fetch().unwrap();
    let sound = check(&bench, false);
    let everything =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!((sound.blobs, sound.bytes, sound.damaged.len()), (4, bytes_of(&everything), 0));

    // One bit of a large file (same length), a cut small file, and a link to nothing.
    let weights = fs::canonicalize(fetched.dir.join("model.safetensors")).unwrap();
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, &bytes).unwrap();
    let config = fs::canonicalize(fetched.dir.join("config.json")).unwrap();
    fs::write(&config, "{").unwrap();
    fs::remove_file(fs::canonicalize(fetched.dir.join("tokenizer.json")).unwrap()).unwrap();
    let partial = bench.repo().join(format!("blobs/{}.1234abcd.incomplete", "a".repeat(40)));
    fs::write(&partial, "abc").unwrap();
    let found = check(&bench, false);
    let damaged = |path: &PathBuf| {
        found.damaged.iter().find(|d| d.path.ends_with(path.file_name().unwrap())).unwrap()
    };
    assert_eq!(found.damaged.len(), 3, "{found:?}");
    assert_eq!(damaged(&weights).files, [format!("{}/model.safetensors", fetched.commit)]);
    assert!(damaged(&config).problem.contains("hash") && !damaged(&config).removed);
    let link = fetched.dir.join("tokenizer.json");
    assert!(damaged(&link).problem.contains("not there"));
    assert_eq!(found.partial, std::slice::from_ref(&partial));
    assert_eq!(
        found.repairs(),
        [format!("eslm-kd download org/tiny --revision {}", fetched.commit)]
    );
    assert_eq!(check(&bench, false), found, "looking changes nothing");

    // A process that holds the blob keeps it.
    let name = weights.file_name().unwrap().to_str().unwrap();
    let lock = File::open(bench.cache.path().join(format!(".locks/models--org--tiny/{name}.lock")))
        .unwrap();
    lock.lock().unwrap();
    let removed = check(&bench, true);
    let left: Vec<&Path> =
        removed.damaged.iter().filter(|d| !d.removed).map(|d| d.path.as_path()).collect();
    assert_eq!(left.len(), 1);
    assert!(weights.exists() && !config.exists() && fs::symlink_metadata(&link).is_err());
    drop(lock);
    assert!(check(&bench, true).damaged.iter().all(|d| d.removed));
    assert!(
        !weights.exists() && fs::symlink_metadata(fetched.dir.join("model.safetensors")).is_err()
    );

    let again =
        fetch_model(ID, Some(&fetched.commit), What::Model, &bench.options, &Silent).unwrap();
    assert_eq!((again, bench.blobs()), (fetched, 4));
    assert_eq!(check(&bench, false), Verified { partial: vec![partial], ..sound });
}

#[test]
fn prune_removes_what_nothing_names_and_says_how_much() {
    let (bench, old, new) = two_commits();
    let blobs = bench.repo().join("blobs");
    let snapshot = |commit: &str| bench.repo().join("snapshots").join(commit);
    let etag = "b".repeat(64);
    let released = blobs.join(format!("{etag}.eslm-kd.incomplete"));
    let claimed = blobs.join(format!("{etag}.77-0.eslm-kd.incomplete"));
    let pythons = blobs.join(format!("{etag}.0a1b2c3d.incomplete"));
    let strange = blobs.join("notes.txt");
    for (path, bytes) in [(&released, 1), (&claimed, 10), (&pythons, 100), (&strange, 1000)] {
        fs::write(path, vec![0; bytes]).unwrap();
    }
    // What is young may belong to a process whose lock cannot be seen; a released partial file
    // belongs to nobody.
    let dry = tidy(&bench, true);
    assert_eq!(
        dry.removed.iter().map(|r| r.path.clone()).collect::<Vec<_>>(),
        std::slice::from_ref(&released)
    );
    let left: Vec<&PathBuf> = dry.left.iter().map(|l| &l.path).collect();
    assert_eq!(left, [&snapshot(&old), &pythons, &claimed]);
    assert!(released.exists() && dry.dry_run);

    age_all(&blobs);
    age_all(&bench.repo().join("snapshots"));
    let dry = tidy(&bench, true);
    assert_eq!(dry.bytes, 111 + bytes_of(&["config.json"]));
    assert!(dry.left.is_empty() && snapshot(&old).exists() && claimed.exists());
    assert_eq!(tidy(&bench, false), Pruned { dry_run: false, ..dry });
    assert!(!snapshot(&old).exists() && strange.exists());
    assert_eq!(fs::read_dir(&blobs).unwrap().count(), 5);
    fs::remove_file(&strange).unwrap();
    assert_eq!(bench.blobs(), 4);
    let offline = HubOptions { offline: true, ..bench.options.clone() };
    assert_eq!(fetch_model(ID, None, What::Model, &offline, &Silent).unwrap().commit, new);
    assert_eq!(tidy(&bench, false), Pruned::default(), "once is enough");
}

#[test]
fn prune_keeps_away_from_a_download() {
    let (bench, old, _) = two_commits();
    age_all(&bench.repo().join("blobs"));
    age_all(&bench.repo().join("snapshots"));
    fs::remove_file(bench.repo().join("refs/main")).unwrap();
    let weights =
        fs::canonicalize(bench.repo().join("snapshots").join(&old).join("model.safetensors"))
            .unwrap();
    fs::remove_file(&weights).unwrap();

    // Ours: the shared lock of the repository.
    bench.server.seen();
    bench.server.fault(On::Body, "model.safetensors", Kind::Pause(1000, 3000), 1);
    let patient = HubOptions { idle_timeout: Duration::from_secs(20), ..bench.options.clone() };
    std::thread::scope(|scope| {
        let download = scope.spawn(|| fetch_model(ID, None, What::Model, &patient, &Silent));
        bench.server.wait_for_body("model.safetensors");
        let during = tidy(&bench, false);
        assert!(
            during.removed.is_empty() && during.left[0].reason.contains("downloading"),
            "{during:?}"
        );
        download.join().unwrap().unwrap();
    });
    bench.blobs();

    // Python's: the lock of a blob.
    let lock = bench.cache.path().join(format!(".locks/models--org--tiny/{}.lock", "c".repeat(40)));
    let lock = File::create(&lock).unwrap();
    lock.lock().unwrap();
    assert!(tidy(&bench, false).removed.is_empty());
    drop(lock);
    assert!(!tidy(&bench, false).removed.is_empty(), "now it may");
}
