//! One file from the Hub into the cache: resumed, bounded, verified, and only then given its name.

use super::cache::RepoCache;
use super::client::{Client, Remote};
use super::names::Etag;
use super::retry::{Attempt, Failure};
use crate::error::{Error, Result};
use crate::files::sync_folder;
use crate::progress::Progress;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use ureq::http::StatusCode;

/// Longest body taken when the server does not say how long the file is. Large files always come
/// with a length.
const MOST_UNANNOUNCED: u64 = 64 << 20;
/// Cached files up to this size are hashed again whenever they are used; longer ones are checked by
/// their length.
const ALWAYS_HASHED: u64 = 16 << 20;

/// A file to bring into the cache.
pub(super) struct Job<'a> {
    pub id: &'a str,
    pub commit: &'a str,
    pub file: &'a str,
    pub remote: &'a Remote,
}

/// Where a file lies already.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lies {
    /// In its snapshot: a link to its blob, or, where there are no links, the file itself.
    InPlace,
    /// As a blob that nothing points at yet.
    AsBlob,
    Nowhere,
}

/// Looks for a file in the cache. A read-only cache is left as it is.
pub(super) fn find(cache: &RepoCache, job: &Job) -> Result<Lies> {
    let pointer = cache.snapshot(job.commit).join(job.file);
    let blob = cache.blob(&job.remote.etag);
    let is_file = fs::symlink_metadata(&pointer).is_ok_and(|m| m.is_file());
    if is_file && is_good(&pointer, job.remote)? {
        return Ok(Lies::InPlace);
    }
    if !is_good(&blob, job.remote)? {
        return Ok(Lies::Nowhere);
    }
    let real = fs::canonicalize(&pointer).ok();
    let linked = real.is_some() && real == fs::canonicalize(&blob).ok();
    Ok(if linked { Lies::InPlace } else { Lies::AsBlob })
}

/// Whether a file is there and is what it should be, as far as can be told without reading
/// gigabytes.
fn is_good(path: &Path, remote: &Remote) -> Result<bool> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(false) };
    if remote.size.is_some_and(|s| s != metadata.len()) {
        return Ok(false);
    }
    Ok(metadata.len() > ALWAYS_HASHED || remote.etag.matches(path)?)
}

/// Brings one blob into the cache and links it. Whatever fails, no file takes the blob's name
/// unless its length and hash are the ones that the Hub announced. The lock is held until the link
/// stands: `cache prune` removes blobs that have none.
pub(super) fn bring(
    client: &Client,
    cache: &RepoCache,
    job: &Job,
    progress: &dyn Progress,
) -> Attempt<()> {
    let etag = &job.remote.etag;
    let _lock = cache.lock(etag, progress)?;
    let lies = find(cache, job)?;
    if lies != Lies::Nowhere {
        // Another process was faster.
        progress.advance(job.remote.size.unwrap_or(0));
        return point(cache, job, &lies).map_err(Failure::from);
    }
    let partial = cache.claim_partial(etag)?;
    let done = fill(client, &partial, job, progress)
        .and_then(|()| keep(cache, etag, &partial).map_err(Failure::from));
    if done.is_err() {
        cache.release_partial(etag, &partial);
    }
    done.and_then(|()| cache.link(job.commit, job.file, etag, true).map_err(Failure::from))
}

/// Sees to it that the snapshot has the file, if it lies in the cache; false if it does not.
pub(super) fn link_cached(cache: &RepoCache, job: &Job, progress: &dyn Progress) -> Result<bool> {
    match find(cache, job)? {
        Lies::InPlace => Ok(true),
        Lies::Nowhere => Ok(false),
        Lies::AsBlob => {
            cache.check_writable(job.commit)?;
            let _lock = cache.lock(&job.remote.etag, progress)?;
            // Removed before the lock was ours, as nothing linked to it yet?
            let lies = find(cache, job)?;
            point(cache, job, &lies).map(|()| lies != Lies::Nowhere)
        }
    }
}

fn point(cache: &RepoCache, job: &Job, lies: &Lies) -> Result<()> {
    match lies {
        Lies::AsBlob => cache.link(job.commit, job.file, &job.remote.etag, false),
        Lies::InPlace | Lies::Nowhere => Ok(()),
    }
}

/// Downloads and verifies, with retries. Retries start anew once a megabyte has come through, so
/// that a long file on a poor line ends; a file that arrives whole but wrong is tried once more
/// from its first byte.
fn fill(client: &Client, partial: &Path, job: &Job, progress: &dyn Progress) -> Attempt<()> {
    let (mut wrong, mut shown) = (0, 0);
    loop {
        // An empty file is a file too.
        File::options()
            .create(true)
            .append(true)
            .open(partial)
            .map_err(|e| Error::io("create", partial, e))?;
        let before = length(partial);
        match client.retry(|| receive(client, partial, job, &mut shown, progress)) {
            Err(Failure::Passing(..)) if length(partial) > before + (1 << 20) => continue,
            ended => ended?,
        }
        let bytes = length(partial);
        let same_length = job.remote.size.is_none_or(|s| s == bytes);
        if same_length && job.remote.etag.matches(partial)? {
            return Ok(());
        }
        fs::remove_file(partial).map_err(|e| Error::io("remove", partial, e))?;
        wrong += 1;
        if wrong > 1 {
            return Err(Error::hub(format!(
                "{}: {} came as {bytes} bytes whose hash or length is not the announced {} ({} bytes); nothing was \
                 kept. A proxy may have changed it, or the server is damaged",
                job.id,
                job.file,
                job.remote.etag.as_str(),
                job.remote.size.map_or("unknown".into(), |s| s.to_string()),
            ))
            .into());
        }
    }
}

/// One attempt to complete the partial file.
fn receive(
    client: &Client,
    partial: &Path,
    job: &Job,
    shown: &mut u64,
    progress: &dyn Progress,
) -> Attempt<()> {
    let most = job.remote.size.unwrap_or(MOST_UNANNOUNCED);
    let mut have = length(partial);
    if job.remote.size == Some(have) {
        return Ok(());
    }
    if have > most {
        have = 0;
    }
    let mut response = client.get(job.id, job.commit, job.file, have)?;
    let header = |name: &str| response.header(name).unwrap_or_default();
    if response.status == StatusCode::RANGE_NOT_SATISFIABLE {
        let _ = fs::remove_file(partial);
        return Err(Failure::passing(format!(
            "{}: {} changed while it was fetched",
            job.id, job.file
        )));
    }
    if response.status == StatusCode::PARTIAL_CONTENT {
        let expected = format!("bytes {have}-");
        if !header("content-range").starts_with(&expected) {
            let _ = fs::remove_file(partial);
            return Err(Failure::passing(format!(
                "{}: the server sent another part of {}",
                job.id, job.file
            )));
        }
    } else {
        // The server ignored the range and sends everything.
        have = 0;
    }
    if header("content-type").starts_with("text/html") {
        return Err(Failure::passing(format!(
            "{}: expected {}, got an HTML page; a proxy or a login page may stand between us and the Hub",
            job.id, job.file
        )));
    }
    if let (Some(size), Some(coming)) = (job.remote.size, response.content_length())
        && have.saturating_add(coming) != size
    {
        return Err(Failure::passing(format!(
            "{}: {} has {size} bytes, the server sends {}",
            job.id,
            job.file,
            have.saturating_add(coming)
        )));
    }
    let failed = |e| Failure::Final(Error::io("write", partial, e));
    let mut file = File::options().create(true).append(true).open(partial).map_err(failed)?;
    file.set_len(have).map_err(failed)?;
    while let Some(bytes) = client.chunk(&mut response)? {
        have += bytes.len() as u64;
        if have > most {
            let _ = fs::remove_file(partial);
            return Err(Failure::passing(format!(
                "{}: {} is longer than its {most} bytes",
                job.id, job.file
            )));
        }
        file.write_all(&bytes).map_err(failed)?;
        // Shown once, however often it is sent.
        progress.advance(have.saturating_sub(*shown));
        *shown = have.max(*shown);
        crate::interrupt::check()?;
    }
    if job.remote.size.is_some_and(|s| s != have) {
        return Err(Failure::passing(format!(
            "{}: {} broke off after {have} of {most} bytes",
            job.id, job.file
        )));
    }
    file.sync_all().map_err(failed)
}

/// Gives a verified file its name.
fn keep(cache: &RepoCache, etag: &Etag, partial: &Path) -> Result<()> {
    let blob = cache.blob(etag);
    fs::rename(partial, &blob).map_err(|e| Error::io("rename to", &blob, e))?;
    sync_folder(blob.parent().unwrap_or(Path::new(".")))
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |m| m.len())
}
