//! The cache folder, laid out as Python's hub library does, so that both use one another's files:
//!
//! ```text
//! models--org--name/
//!   blobs/<etag>                     the bytes; the name is their SHA-256 (large files) or git blob hash (small ones)
//!   snapshots/<commit>/config.json   -> ../../blobs/<etag>
//!   refs/main                        the commit that `main` meant when last asked
//!   .no_exist/<commit>/vocab.json    empty: the repository has no such file
//! .locks/models--org--name/<etag>.lock
//! .locks/models--org--name/eslm-kd.lock       ours alone: shared by downloads, exclusive for `cache prune`
//! ```
//!
//! On a file system without symbolic links the snapshot holds the file itself, as with Python. A
//! cache that may only be read is good for all that lies in it.

use super::names::{Etag, What, is_commit};
use crate::error::{Error, Result};
use crate::files::{children, write_atomic};
use crate::progress::Progress;
use crate::store::weights::{INDEX_FILE, WEIGHTS_FILE, shard_names};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// One repository's part of the cache. Nothing is created before something is written.
#[derive(Debug, Clone)]
pub struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// The repository's part of the cache folder; `id` has passed [`super::names::valid_repo_id`].
    pub fn new(cache: &Path, id: &str) -> Self {
        let name = format!("models--{}", id.replace('/', "--"));
        Self { locks: cache.join(".locks").join(&name), folder: cache.join(name) }
    }

    /// The commit that a revision meant when last asked.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_string());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_string()).filter(|c| is_commit(c))
    }

    /// Remembers the commit of a branch or tag, if it is not known; hashes need no remembering.
    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if self.commit_of(revision).is_some_and(|known| known.eq_ignore_ascii_case(commit)) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        write_atomic(&path, |w| {
            w.write_all(commit.as_bytes()).map_err(|e| Error::io("write", &path, e))
        })
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Where the bytes of an ETag lie.
    pub fn blob(&self, etag: &Etag) -> PathBuf {
        self.folder.join("blobs").join(etag.as_str())
    }

    /// Makes `snapshots/<commit>/<file>` point at the blob. Where nothing can point, the file itself
    /// goes there: a `new` blob is moved, one that was there before is copied.
    pub fn link(&self, commit: &str, file: &str, etag: &Etag, new: bool) -> Result<()> {
        let folder = self.snapshot(commit);
        fs::create_dir_all(&folder).map_err(|e| Error::io("create folder", &folder, e))?;
        let (pointer, blob) = (folder.join(file), self.blob(etag));
        let temporary = folder.join(format!(".{file}.{}.tmp", unique()));
        #[cfg(unix)]
        let linked =
            std::os::unix::fs::symlink(Path::new("../../blobs").join(etag.as_str()), &temporary);
        #[cfg(not(unix))]
        let linked: std::io::Result<()> = Err(std::io::ErrorKind::Unsupported.into());
        let made = match linked {
            Ok(()) => Ok(()),
            Err(_) if new => fs::rename(&blob, &temporary),
            Err(_) => fs::copy(&blob, &temporary)
                .and_then(|_| File::options().append(true).open(&temporary)?.sync_all()),
        };
        made.and_then(|()| fs::rename(&temporary, &pointer)).map_err(|e| {
            let _ = fs::remove_file(&temporary);
            Error::io("create", &pointer, e)
        })
    }

    /// Remembers that a commit has no such file, as Python's library does. That this could not be
    /// noted costs a question next time.
    pub(super) fn note_absent(&self, commit: &str, file: &str) {
        let mark = self.folder.join(".no_exist").join(commit).join(file);
        if let (false, Some(folder)) = (mark.exists(), mark.parent()) {
            let _ = fs::create_dir_all(folder).and_then(|()| File::create(&mark));
        }
    }

    fn is_absent(&self, commit: &str, file: &str) -> bool {
        self.folder.join(".no_exist").join(commit).join(file).exists()
    }

    /// Errs unless files of a commit can be written, before any is fetched.
    pub(super) fn check_writable(&self, commit: &str) -> Result<()> {
        for folder in [self.folder.join("blobs"), self.snapshot(commit)] {
            let probe = folder.join(format!(".{}.tmp", unique()));
            let made = fs::create_dir_all(&folder)
                .and_then(|()| File::create(&probe))
                .and_then(|_| fs::remove_file(&probe));
            made.map_err(|e| {
                Error::new(
                    crate::ErrorKind::Io,
                    format!(
                        "cannot write to {}, and not all that is asked for lies there: {e}. Name a cache of your own \
                         with HF_HOME or HF_HUB_CACHE; --offline uses what is in this one",
                        folder.display()
                    ),
                )
            })?;
        }
        Ok(())
    }

    /// Waits for the lock that Python's library takes too. Where locks do nothing (some network
    /// file systems), or another user's cannot be opened, the unique names of partial files still
    /// keep two processes apart.
    pub fn lock(&self, etag: &Etag, progress: &dyn Progress) -> Result<Option<File>> {
        let Ok(file) = self.open_lock(etag.as_str()) else { return Ok(None) };
        wait(
            file,
            File::try_lock,
            "waiting for another process that downloads the same file",
            progress,
        )
    }

    /// The same lock without waiting.
    pub(super) fn try_lock(&self, etag: &Etag) -> Claim {
        self.claim(etag.as_str())
    }

    fn claim(&self, name: &str) -> Claim {
        self.open_lock(name).map_or(Claim::Held(None), claim)
    }

    /// Keeps `cache prune` away from the repository until dropped: a snapshot has no ref before it
    /// is complete. None where locks do nothing, and in a cache that is read-only, which nobody
    /// prunes.
    pub(super) fn announce(&self, progress: &dyn Progress) -> Result<Option<File>> {
        match self.open_lock(REPO_LOCK) {
            Ok(file) => {
                wait(file, File::try_lock_shared, "waiting for `eslm-kd cache prune`", progress)
            }
            Err(_) => Ok(None),
        }
    }

    /// Takes the repository for `cache prune`; busy if any process, of ours or of Python's,
    /// downloads into it.
    pub(super) fn claim_repo(&self) -> Result<Claim> {
        let Claim::Held(ours) = self.claim(REPO_LOCK) else { return Ok(Claim::Busy) };
        let own = self.locks.join(format!("{REPO_LOCK}.lock"));
        for path in children(&self.locks)?.into_iter().filter(|path| *path != own) {
            if let Ok(file) = File::options().append(true).open(path)
                && matches!(claim(file), Claim::Busy)
            {
                return Ok(Claim::Busy);
            }
        }
        Ok(Claim::Held(ours))
    }

    fn open_lock(&self, name: &str) -> Result<File> {
        fs::create_dir_all(&self.locks).map_err(|e| Error::io("create folder", &self.locks, e))?;
        let path = self.locks.join(format!("{name}.lock"));
        File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))
    }

    /// The repository's folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes a partial file for this process alone: what an earlier call left, or nothing yet. The
    /// rename is the claim, so two processes never write one file, with or without working locks.
    pub fn claim_partial(&self, etag: &Etag) -> Result<PathBuf> {
        let blobs = self.folder.join("blobs");
        fs::create_dir_all(&blobs).map_err(|e| Error::io("create folder", &blobs, e))?;
        let mine = blobs.join(format!("{}.{}{PARTIAL}", etag.as_str(), unique()));
        if fs::rename(self.partial(etag), &mine).is_ok() {
            return Ok(mine);
        }
        // A killed process leaves its claim.
        let orphan = |path: &Path| {
            let name =
                path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            name.starts_with(etag.as_str()) && name.ends_with(PARTIAL) && is_settled(path)
        };
        let entries = fs::read_dir(&blobs).map_err(|e| Error::io("list", &blobs, e))?;
        for path in entries.flatten().map(|e| e.path()).filter(|p| orphan(p)) {
            if fs::rename(&path, &mine).is_ok() {
                break;
            }
        }
        Ok(mine)
    }

    /// Leaves a partial file to the next call.
    pub fn release_partial(&self, etag: &Etag, mine: &Path) {
        let empty = fs::metadata(mine).map_or(true, |m| m.len() == 0);
        let _ = if empty { fs::remove_file(mine) } else { fs::rename(mine, self.partial(etag)) };
    }

    /// Bytes that an earlier call left, and that the next one need not fetch.
    pub(super) fn partial_bytes(&self, etag: &Etag) -> u64 {
        fs::metadata(self.partial(etag)).map_or(0, |m| m.len())
    }

    fn partial(&self, etag: &Etag) -> PathBuf {
        self.folder.join("blobs").join(format!("{}{PARTIAL}", etag.as_str()))
    }

    /// Whether a snapshot has no tokenizer, though the repository may have one: who loads a model
    /// alone with Python's libraries never asks for it.
    pub(super) fn may_lack_tokenizer(&self, commit: &str) -> bool {
        let dir = self.snapshot(commit);
        let absent = |file: &str| self.is_absent(commit, file);
        !holds_tokenizer(|name| dir.join(name).exists())
            && !(absent("tokenizer.json") && (absent("vocab.json") || absent("merges.txt")))
    }

    /// The first file that a snapshot lacks for the given use; None when it can be used.
    pub fn lacks(&self, commit: &str, what: What) -> Option<String> {
        let dir = self.snapshot(commit);
        let has = |name: &str| dir.join(name).exists();
        match what {
            What::TokenizerOnly => (!holds_tokenizer(has)).then(|| "tokenizer.json".to_string()),
            What::Model | What::ConfigOnly if !has("config.json") => Some("config.json".into()),
            What::ConfigOnly => None,
            What::Model if has(WEIGHTS_FILE) => None,
            What::Model if !has(INDEX_FILE) => Some(WEIGHTS_FILE.into()),
            What::Model => match shard_names(&dir.join(INDEX_FILE)) {
                Ok(names) => names.into_iter().find(|n| !has(n)),
                Err(_) => Some(INDEX_FILE.into()),
            },
        }
    }
}

/// Whether a tokenizer is among the files.
pub(crate) fn holds_tokenizer(has: impl Fn(&str) -> bool) -> bool {
    has("tokenizer.json") || (has("vocab.json") && has("merges.txt"))
}

/// Own suffix: Python's library has `<etag>....incomplete` files of its own.
pub(super) const PARTIAL: &str = ".eslm-kd.incomplete";

/// Own lock beside those of the blobs.
const REPO_LOCK: &str = "eslm-kd";

/// Without working locks, what was written less than this long ago may belong to a process that
/// lives: one writes, or gives up, well within this time.
pub(super) const SETTLED: Duration = Duration::from_secs(300);

/// Whether nobody has written to a file or folder for so long that nobody is about to.
pub(super) fn is_settled(path: &Path) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|m| m.modified()).ok();
    modified.and_then(|m| SystemTime::now().duration_since(m).ok()).is_some_and(|age| age > SETTLED)
}

/// The outcome of asking for a lock without waiting.
#[derive(Debug)]
pub(super) enum Claim {
    /// Ours until dropped; None where locks do nothing, or none can be made.
    Held(Option<File>),
    /// Another process has it.
    Busy,
}

fn claim(file: File) -> Claim {
    match file.try_lock() {
        Ok(()) => Claim::Held(Some(file)),
        Err(fs::TryLockError::Error(_)) => Claim::Held(None),
        Err(fs::TryLockError::WouldBlock) => Claim::Busy,
    }
}

/// Asks for a lock until it is there. Polls the stop signal.
fn wait(
    file: File,
    ask: impl Fn(&File) -> std::result::Result<(), fs::TryLockError>,
    what: &str,
    progress: &dyn Progress,
) -> Result<Option<File>> {
    let (started, mut told) = (Instant::now(), false);
    loop {
        match ask(&file) {
            Ok(()) => return Ok(Some(file)),
            Err(fs::TryLockError::Error(_)) => return Ok(None),
            Err(fs::TryLockError::WouldBlock) => {
                crate::interrupt::check()?;
                if !told && started.elapsed() > Duration::from_secs(2) {
                    progress.note(what);
                    told = true;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Differs between processes and within one.
fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_file_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(dir.path(), "a/b");
        let etag = Etag::parse(&"a".repeat(40)).unwrap();
        let first = cache.claim_partial(&etag).unwrap();
        fs::write(&first, "abc").unwrap();
        let second = cache.claim_partial(&etag).unwrap();
        assert!(second != first && !second.exists());
        cache.release_partial(&etag, &first);
        let third = cache.claim_partial(&etag).unwrap();
        assert_eq!(fs::read(&third).unwrap(), b"abc");
        // A claim that nobody has written to for long belongs to a process that was killed.
        let old = SystemTime::now() - Duration::from_secs(600);
        File::options().append(true).open(&third).unwrap().set_modified(old).unwrap();
        let fourth = cache.claim_partial(&etag).unwrap();
        assert!(fourth.exists() && !third.exists());
    }
}
