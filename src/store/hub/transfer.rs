//! One file from the Hub into the cache: resumed, bounded, verified, and only then given its name.

use super::cache::RepoCache;
use super::client::{Client, Remote};
use super::names::Etag;
use super::retry::{Attempt, Failure};
use crate::error::{Error, Result};
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

/// Whether the blob is there and is what it should be, as far as can be told without reading
/// gigabytes.
pub(super) fn is_cached(cache: &RepoCache, remote: &Remote) -> Result<bool> {
    let blob = cache.blob(&remote.etag);
    let Ok(metadata) = fs::metadata(&blob) else { return Ok(false) };
    if remote.size.is_some_and(|s| s != metadata.len()) {
        return Ok(false);
    }
    Ok(metadata.len() > ALWAYS_HASHED || remote.etag.matches(&blob)?)
}

/// Brings one blob into the cache and has it linked. Whatever fails, no file takes the blob's name
/// unless its length and hash are the ones that the Hub announced. The lock is held until the link
/// stands: `cache prune` removes blobs that have none.
pub(super) fn bring(
    client: &Client,
    cache: &RepoCache,
    job: &Job,
    progress: &dyn Progress,
    link: impl Fn() -> Result<()>,
) -> Result<()> {
    let etag = &job.remote.etag;
    let _lock = cache.lock(etag, progress)?;
    if is_cached(cache, job.remote)? {
        progress.advance(job.remote.size.unwrap_or(0));
        return link();
    }
    let partial = cache.claim_partial(etag)?;
    let done = fill(client, &partial, job, progress).and_then(|()| keep(cache, etag, &partial));
    if done.is_err() {
        cache.release_partial(etag, &partial);
    }
    done.and_then(|()| link())
}

/// Downloads and verifies, with retries. Retries start anew once a megabyte has come through, so
/// that a long file on a poor line ends; a file that arrives whole but wrong is tried once more
/// from its first byte.
fn fill(client: &Client, partial: &Path, job: &Job, progress: &dyn Progress) -> Result<()> {
    let (mut wrong, mut shown) = (0, 0);
    loop {
        // An empty file is a file too.
        File::options()
            .create(true)
            .append(true)
            .open(partial)
            .map_err(|e| Error::io("create", partial, e))?;
        let before = length(partial);
        let ended = client
            .retry(|| receive(client, partial, job, &mut shown, progress))
            .map_err(|(e, _)| e);
        match ended {
            Err(e) if e.kind() == crate::ErrorKind::Hub && length(partial) > before + (1 << 20) => {
                continue;
            }
            Err(e) => return Err(e),
            Ok(()) => {}
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
            )));
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
    let folder = blob.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io("sync folder", folder, e))
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |m| m.len())
}
