//! What lies in the cache: listed, checked against the hashes that name it, tidied.
//!
//! Only `models--*` folders are looked at. Nothing is removed that another process, of ours or of
//! Python's, may be downloading: the locks of [`super::cache`] are taken, and where locks do
//! nothing, what is young is left alone.

use super::cache::{Claim, PARTIAL, RepoCache, SETTLED, is_settled};
use super::names::{Etag, is_commit, valid_repo_id};
use crate::error::{Error, Result};
use crate::files::{children, name_of};
use crate::progress::Progress;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// One repository of the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// `org/name`.
    pub id: String,
    /// Its snapshots.
    pub snapshots: Vec<ListedSnapshot>,
    /// Sum of the blobs' lengths, and of the files that snapshots hold themselves where there are no
    /// links.
    pub bytes: u64,
    /// Sum of what unfinished downloads left.
    pub partial_bytes: u64,
    /// When one of these files was last read or written, in seconds since 1970; None without any.
    pub last_used: Option<u64>,
}

/// One commit's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedSnapshot {
    /// The commit.
    pub commit: String,
    /// Branches and tags that meant it when last asked.
    pub refs: Vec<String>,
    /// How many files it has.
    pub files: usize,
    /// Sum of their lengths; commits share blobs.
    pub bytes: u64,
}

/// What [`verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Blobs read and hashed.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs whose bytes have not the hash that names them, and links to blobs that are not there.
    pub damaged: Vec<Damage>,
    /// What unfinished downloads left; no damage, the next download goes on from there.
    pub partial: Vec<PathBuf>,
    /// Files that no hash is known of: they are no blobs, or their names are no hashes.
    pub unchecked: Vec<PathBuf>,
}

/// A damaged file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// `org/name`.
    pub id: String,
    /// The blob, or the link that dangles.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: &'static str,
    /// The files that it stands for, as `commit/file`; none for a blob that nothing links to.
    pub files: Vec<String>,
    /// Whether it, and the links to it, were removed.
    pub removed: bool,
}

/// What [`prune`] did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Nothing was removed, only looked for.
    pub dry_run: bool,
    /// Bytes freed.
    pub bytes: u64,
    /// What was removed.
    pub removed: Vec<Removed>,
    /// What was left although nothing needs it, and why.
    pub left: Vec<Left>,
}

/// Something that was of no use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Where it was.
    pub path: PathBuf,
    /// Why it was of no use.
    pub reason: &'static str,
    /// Its length; a snapshot's links take next to nothing.
    pub bytes: u64,
}

/// Something that was not touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Where it is.
    pub path: PathBuf,
    /// Why it stays.
    pub reason: &'static str,
}

/// Lists the model repositories of the cache folder, by name; `only` restricts to one. Errs if that
/// one is not there.
pub fn list(cache: &Path, only: Option<&str>) -> Result<Vec<Listed>> {
    repos(cache, only)?.iter().map(Repo::listed).collect()
}

/// Hashes every blob and follows every link. With `remove`, what is damaged is removed together
/// with the links to it, so that the next download fetches it anew; a blob that another process
/// holds stays. Polls the stop signal.
pub fn verify(
    cache: &Path,
    only: Option<&str>,
    remove: bool,
    progress: &dyn Progress,
) -> Result<Verified> {
    let repos = repos(cache, only)?;
    let mut total = 0;
    for repo in &repos {
        total += repo.blobs()?.iter().map(|b| length(b)).sum::<u64>();
    }
    progress.start("verify", Some(total), "bytes");
    let mut found = Verified::default();
    let done = repos.iter().try_for_each(|repo| repo.verify(&mut found, remove, progress));
    progress.finish();
    done.map(|()| found)
}

/// Removes partial files, snapshots that no ref names, and blobs that no snapshot links to; with
/// `dry_run`, only says which. What another process is downloading stays.
pub fn prune(cache: &Path, only: Option<&str>, dry_run: bool) -> Result<Pruned> {
    let mut done = Pruned { dry_run, ..Pruned::default() };
    for repo in repos(cache, only)? {
        crate::interrupt::check()?;
        repo.prune(&mut done)?;
    }
    Ok(done)
}

/// A `models--org--name` folder.
struct Repo {
    id: String,
    cache: RepoCache,
}

/// A `snapshots/<commit>` folder.
struct Snapshot {
    commit: String,
    dir: PathBuf,
    files: Vec<Pointer>,
}

/// A file of a snapshot.
struct Pointer {
    /// `commit/file`.
    name: String,
    path: PathBuf,
    /// Name of the blob that it links to; None for a plain file.
    blob: Option<String>,
}

fn repos(cache: &Path, only: Option<&str>) -> Result<Vec<Repo>> {
    let mut found = Vec::new();
    for path in children(cache)? {
        let id = name_of(&path).strip_prefix("models--").map(|n| n.replace("--", "/"));
        let Some(id) = id.filter(|id| valid_repo_id(id) && path.is_dir()) else { continue };
        if only.is_none_or(|o| o == id) {
            found.push(Repo { cache: RepoCache::new(cache, &id), id });
        }
    }
    match only {
        Some(id) if found.is_empty() => Err(Error::data(format!(
            "{id} is not in the cache {}; `eslm-kd cache ls` lists what is, `eslm-kd download {id}` fetches it",
            cache.display()
        ))),
        _ => Ok(found),
    }
}

impl Repo {
    fn blobs(&self) -> Result<Vec<PathBuf>> {
        Ok(self.blob_files()?.into_iter().filter(|p| !is_partial(p)).collect())
    }

    fn blob_files(&self) -> Result<Vec<PathBuf>> {
        children(&self.cache.folder().join("blobs"))
    }

    fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let dirs = children(&self.cache.folder().join("snapshots"))?
            .into_iter()
            .filter(|p| is_real_dir(p));
        dirs.map(|dir| {
            let commit = name_of(&dir);
            let mut files = Vec::new();
            for path in walk(&dir)? {
                let inside =
                    path.strip_prefix(&dir).unwrap_or(&path).to_string_lossy().into_owned();
                let blob = fs::read_link(&path).ok().map(|target| name_of(&target));
                files.push(Pointer {
                    name: format!("{commit}/{}", inside.escape_debug()),
                    path,
                    blob,
                });
            }
            Ok(Snapshot { commit, dir, files })
        })
        .collect()
    }

    /// (ref, commit) of every ref.
    fn refs(&self) -> Result<Vec<(String, String)>> {
        let dir = self.cache.folder().join("refs");
        let named = |path: PathBuf| {
            let name = path.strip_prefix(&dir).ok()?.to_string_lossy().into_owned();
            let commit = fs::read_to_string(&path).ok()?.trim().to_string();
            is_commit(&commit).then_some((name, commit))
        };
        Ok(walk(&dir)?.into_iter().filter_map(named).collect())
    }

    fn listed(&self) -> Result<Listed> {
        let (mut holding, refs, snapshots) = (self.blobs()?, self.refs()?, self.snapshots()?);
        let unlinked = snapshots.iter().flat_map(|s| &s.files).filter(|f| f.blob.is_none());
        holding.extend(unlinked.map(|f| f.path.clone()));
        let listed = |s: Snapshot| ListedSnapshot {
            refs: refs
                .iter()
                .filter(|(_, c)| *c == s.commit)
                .map(|(name, _)| name.clone())
                .collect(),
            commit: s.commit,
            files: s.files.len(),
            bytes: s.files.iter().map(|f| fs::metadata(&f.path).map_or(0, |m| m.len())).sum(),
        };
        Ok(Listed {
            id: self.id.clone(),
            snapshots: snapshots.into_iter().map(listed).collect(),
            bytes: holding.iter().map(|b| length(b)).sum(),
            partial_bytes: self
                .blob_files()?
                .iter()
                .filter(|p| is_partial(p))
                .map(|p| length(p))
                .sum(),
            last_used: holding.iter().filter_map(|b| used(b)).max(),
        })
    }

    fn verify(&self, found: &mut Verified, remove: bool, progress: &dyn Progress) -> Result<()> {
        let snapshots = self.snapshots()?;
        let pointers: Vec<&Pointer> = snapshots.iter().flat_map(|s| &s.files).collect();
        for path in self.blob_files()? {
            if is_partial(&path) {
                found.partial.push(path);
                continue;
            }
            let Some(etag) = Etag::parse(&name_of(&path)) else {
                found.unchecked.push(path);
                continue;
            };
            // A blob whose own link dangles (Python may share one among repositories) is found
            // below.
            if !path.exists() {
                continue;
            }
            let bytes = length(&path);
            if !etag.matches(&path)? {
                let linked: Vec<_> =
                    pointers.iter().filter(|p| p.blob.as_deref() == Some(etag.as_str())).collect();
                let removed = remove
                    && self.remove_damaged(&etag, linked.iter().map(|p| p.path.as_path()))?;
                let files = linked.iter().map(|p| p.name.clone()).collect();
                found.damaged.push(Damage {
                    id: self.id.clone(),
                    path,
                    problem: "its bytes have not the hash that names it",
                    files,
                    removed,
                });
            }
            found.blobs += 1;
            found.bytes += bytes;
            progress.advance(bytes);
        }
        for pointer in pointers {
            if pointer.blob.is_none() {
                found.unchecked.push(pointer.path.clone());
            } else if is_dangling(&pointer.path) {
                let removed = remove && delete(&pointer.path)?;
                found.damaged.push(Damage {
                    id: self.id.clone(),
                    path: pointer.path.clone(),
                    problem: "it links to a blob that is not there",
                    files: vec![pointer.name.clone()],
                    removed,
                });
            }
        }
        Ok(())
    }

    /// Removes a damaged blob and the links to it; false if another process is at it.
    fn remove_damaged<'a>(
        &self,
        etag: &Etag,
        links: impl Iterator<Item = &'a Path>,
    ) -> Result<bool> {
        let Claim::Held(_lock) = self.cache.try_lock(etag) else { return Ok(false) };
        let blob = self.cache.blob(etag);
        // Another process may have replaced it before the lock was ours.
        if blob.exists() && etag.matches(&blob)? {
            return Ok(true);
        }
        for link in links {
            delete(link)?;
        }
        delete(&blob)?;
        Ok(true)
    }

    fn prune(&self, done: &mut Pruned) -> Result<()> {
        let busy = "another process is downloading into this repository";
        let Claim::Held(_lock) = self.cache.claim_repo()? else {
            done.left.push(Left { path: self.cache.folder().to_path_buf(), reason: busy });
            return Ok(());
        };
        let named: BTreeSet<String> = self.refs()?.into_iter().map(|(_, commit)| commit).collect();
        let mut linked = BTreeSet::new();
        for snapshot in self.snapshots()? {
            let goes = !named.contains(&snapshot.commit) && done.may_go(&snapshot.dir);
            if !goes {
                linked.extend(snapshot.files.into_iter().filter_map(|f| f.blob));
                continue;
            }
            let bytes =
                snapshot.files.iter().filter(|f| f.blob.is_none()).map(|f| length(&f.path)).sum();
            if !done.dry_run {
                fs::remove_dir_all(&snapshot.dir)
                    .map_err(|e| Error::io("remove", &snapshot.dir, e))?;
            }
            done.bytes += bytes;
            done.removed.push(Removed {
                path: snapshot.dir,
                reason: "no branch or tag names this commit",
                bytes,
            });
        }
        for path in self.blob_files()? {
            self.prune_blob(&path, &linked, done)?;
        }
        Ok(())
    }

    /// Removes one file of `blobs/` if it is of no use.
    fn prune_blob(&self, path: &Path, linked: &BTreeSet<String>, done: &mut Pruned) -> Result<()> {
        let name = name_of(path);
        let (hash, reason) = match name.split_once('.') {
            Some((hash, _)) if is_partial(path) => (hash, "left by an unfinished download"),
            _ => (name.as_str(), "no commit links to it"),
        };
        // What is not named by a hash is not ours to judge.
        let Some(etag) = Etag::parse(hash) else { return Ok(()) };
        // Nobody writes to a partial file under its common name: a process renames it first.
        let released = name == format!("{hash}{PARTIAL}");
        if linked.contains(&name) || !(released || done.may_go(path)) {
            return Ok(());
        }
        let bytes = length(path);
        if !done.dry_run {
            let Claim::Held(_lock) = self.cache.try_lock(&etag) else {
                let reason = "another process is downloading it";
                done.left.push(Left { path: path.to_path_buf(), reason });
                return Ok(());
            };
            // Python's library may have linked it before the lock was ours.
            let snapshots = self.snapshots()?;
            if snapshots.iter().flat_map(|s| &s.files).any(|f| f.blob.as_ref() == Some(&name))
                || !delete(path)?
            {
                return Ok(());
            }
        }
        done.bytes += bytes;
        done.removed.push(Removed { path: path.to_path_buf(), reason, bytes });
        Ok(())
    }
}

impl Pruned {
    /// Whether something of no use is old enough to be nobody's.
    fn may_go(&mut self, path: &Path) -> bool {
        let settled = is_settled(path);
        if !settled {
            self.left.push(Left { path: path.to_path_buf(), reason: YOUNG });
        }
        settled
    }
}

const YOUNG: &str = "written within the last five minutes, so perhaps part of a download";
const _: () = assert!(SETTLED.as_secs() == 300, "YOUNG says five minutes");

impl Verified {
    /// The commands that fetch what was damaged, each once.
    pub fn repairs(&self) -> Vec<String> {
        let commit = |file: &String| file.split('/').next().unwrap_or_default().to_string();
        let commands = self.damaged.iter().flat_map(|d| {
            d.files
                .iter()
                .map(move |f| format!("eslm-kd download {} --revision {}", d.id, commit(f)))
        });
        commands.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// Every file and link below a folder. Links to folders are not followed.
fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in children(dir)? {
        if is_real_dir(&path) {
            files.extend(walk(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

fn is_real_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_dir())
}

/// A link whose target is not there; no longer one that was removed meanwhile.
fn is_dangling(path: &Path) -> bool {
    let absent = |e: std::io::Error| e.kind() == std::io::ErrorKind::NotFound;
    fs::symlink_metadata(path).is_ok() && fs::metadata(path).is_err_and(absent)
}

/// Ours and Python's end alike.
fn is_partial(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "incomplete")
}

/// Bytes that removing it would free: those of a link are not those of what it names.
fn length(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |m| m.len())
}

fn used(path: &Path) -> Option<u64> {
    let metadata = fs::metadata(path).ok()?;
    let times = [metadata.accessed().ok(), metadata.modified().ok()];
    let seconds = |t: SystemTime| t.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs());
    times.into_iter().flatten().filter_map(seconds).max()
}

/// Removes a file; false if it was gone already.
fn delete(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("remove", path, e)),
    }
}
