//! A model, or only its tokenizer or config, as a folder: from the cache, or from the Hub into the
//! cache.

use super::cache::{RepoCache, holds_tokenizer};
use super::client::{Client, Info, Remote};
use super::names::{What, is_commit, valid_repo_id, valid_revision};
use super::options::HubOptions;
use super::retry::{Attempt, Failure};
use super::transfer::{Job, bring, link_cached};
use crate::error::{Error, Result};
use crate::files::check_space;
use crate::progress::Progress;
use crate::store::weights::{INDEX_FILE, TOKENIZER_FILES, WEIGHTS_FILE, shard_names};
use std::path::{Path, PathBuf};

/// A fetched snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The folder with the files, inside the cache.
    pub dir: PathBuf,
    /// The commit they belong to.
    pub commit: String,
}

/// Brings a model repository (`org/name`) into the cache and returns its snapshot folder. Only
/// safetensors, JSON and the tokenizer's text files are fetched, never pickles. Offline, or when
/// the Hub cannot be reached or is busy, the cache alone must do.
pub fn fetch_model(
    id: &str,
    revision: Option<&str>,
    what: What,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<Fetched> {
    let revision = revision.unwrap_or("main");
    if !valid_repo_id(id) {
        return Err(Error::usage(format!(
            "{id:?} is not a Hub id; expected org/name, such as openai-community/gpt2"
        )));
    }
    if !valid_revision(revision) {
        return Err(Error::usage(format!(
            "{revision:?} is not a revision; expected a branch, a tag or a commit hash"
        )));
    }
    let cache = RepoCache::new(options.cache()?, id);
    let held = cached(&cache, revision, what);
    if options.offline {
        return held.map_err(|lacks| not_cached(id, revision, &lacks, options.cache()));
    }
    let whole =
        held.as_ref().is_ok_and(|h| what != What::Model || !cache.may_lack_tokenizer(&h.commit));
    let held = match held {
        Ok(held) if whole && is_commit(revision) => return Ok(held),
        held => held.ok(),
    };
    match (online(&cache, (id, revision), what, options, whole, progress), held) {
        (Ok(fetched), _) => Ok(fetched),
        // What the Hub does not say, the cache does.
        (Err(Failure::Passing(error, _) | Failure::Barred(error)), Some(held)) => {
            progress.note(&format!("warning: {error}; using the cached commit {}", held.commit));
            Ok(held)
        }
        (Err(Failure::Passing(e, _) | Failure::Barred(e) | Failure::Final(e)), _) => Err(e),
    }
}

/// Asks the Hub for a revision of `(id, revision)`, and brings what the cache lacks of it; `hasty`
/// asks once.
fn online(
    cache: &RepoCache,
    (id, revision): (&str, &str),
    what: What,
    options: &HubOptions,
    hasty: bool,
    progress: &dyn Progress,
) -> Attempt<Fetched> {
    let client = Client::new(options, hasty)?;
    let info = client.ask(|| client.info(id, revision))?;
    let dir = cache.snapshot(&info.commit);
    let files = wanted(id, &info, what)?;
    let _lock = cache.announce(progress)?;
    let all = Brought { client: &client, cache, id, commit: &info.commit, progress };
    let mut fetched = all.bring(&files)?;
    if files.iter().any(|f| f == INDEX_FILE) {
        // The names come from outside: shard_names takes plain file names only, so none can leave
        // the folder.
        let shards =
            shard_names(&dir.join(INDEX_FILE)).map_err(|e| Error::hub(format!("{id}: {e}")))?;
        if let Some(absent) = shards.iter().find(|s| !info.files.contains(s)) {
            return Err(Error::hub(format!(
                "{id}: {INDEX_FILE} names {absent}, which the repository does not have"
            ))
            .into());
        }
        fetched |= all.bring(&shards)?;
    }
    let has = |name: &str| info.files.iter().any(|f| f == name);
    if what == What::Model && !holds_tokenizer(has) {
        for file in ["tokenizer.json", "vocab.json", "merges.txt"].into_iter().filter(|f| !has(f)) {
            cache.note_absent(&info.commit, file);
        }
    }
    match cache.set_commit(revision, &info.commit) {
        Err(e) if fetched => Err(e.into()),
        // Of a cache that cannot be written, what lies there is as good without the note.
        _ => Ok(Fetched { dir, commit: info.commit }),
    }
}

/// A snapshot that can be used, or the name of what is lacking.
fn cached(cache: &RepoCache, revision: &str, what: What) -> std::result::Result<Fetched, String> {
    let commit = cache.commit_of(revision).ok_or_else(|| format!("revision {revision}"))?;
    match cache.lacks(&commit, what) {
        None => Ok(Fetched { dir: cache.snapshot(&commit), commit }),
        Some(lacks) => Err(lacks),
    }
}

/// The error of a model without a tokenizer whose folder lies in the cache, where the Hub may have
/// one: who loads a model alone with Python's libraries never asks for it.
pub(crate) fn lacking_tokenizer(dir: &Path) -> Option<Error> {
    let dir = std::fs::canonicalize(dir).ok()?;
    let (commit, snapshots) = (dir.file_name()?.to_str()?, dir.parent()?);
    let (repo, root) = (snapshots.parent()?, snapshots.parent()?.parent()?);
    let id = repo.file_name()?.to_str()?.strip_prefix("models--")?.replace("--", "/");
    if !snapshots.ends_with("snapshots") || !is_commit(commit) || !valid_repo_id(&id) {
        return None;
    }
    let cache = RepoCache::new(root, &id);
    let main = cache.commit_of("main").is_some_and(|c| c == commit);
    let revision = if main { "main" } else { commit };
    cache.may_lack_tokenizer(commit).then(|| not_cached(&id, revision, "its tokenizer", Ok(root)))
}

fn not_cached(id: &str, revision: &str, lacks: &str, cache: Result<&Path>) -> Error {
    let suffix = if revision == "main" { String::new() } else { format!(" --revision {revision}") };
    let place = cache.map_or(String::new(), |cache| format!(" {}", cache.display()));
    Error::hub(format!(
        "{id}: {lacks} is not in the cache{place}. Fetch it once with a connection: `eslm-kd download {id}{suffix}`"
    ))
}

/// The files to fetch, of those that the repository has.
fn wanted(id: &str, info: &Info, what: What) -> Result<Vec<String>> {
    let has = |name: &str| info.files.iter().any(|f| f == name);
    let mut files: Vec<&str> = TOKENIZER_FILES.into_iter().filter(|f| has(f)).collect();
    if what == What::TokenizerOnly {
        if !holds_tokenizer(has) {
            return Err(Error::hub(format!(
                "{id} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt"
            )));
        }
        // They say which class reads it, and where texts end.
        files.extend(["config.json", "generation_config.json"].into_iter().filter(|f| has(f)));
        return Ok(files.into_iter().map(str::to_string).collect());
    }
    if !has("config.json") {
        return Err(Error::hub(format!(
            "{id} has no config.json; expected a model in the layout of transformers"
        )));
    }
    if what == What::ConfigOnly {
        return Ok(vec!["config.json".to_string()]);
    }
    files.push("config.json");
    files.extend(["generation_config.json"].into_iter().filter(|f| has(f)));
    match [WEIGHTS_FILE, INDEX_FILE].into_iter().find(|f| has(f)) {
        Some(weights) => files.push(weights),
        None if info.files.iter().any(|f| f.ends_with(".bin") || f.ends_with(".pt")) => {
            return Err(Error::hub(format!(
                "{id} has its weights as pickle files only. They can run code and are never fetched. Convert once with \
                 Python: `from transformers import GPT2LMHeadModel; \
                 GPT2LMHeadModel.from_pretrained('{id}').save_pretrained('FOLDER')`, then name FOLDER instead"
            )));
        }
        None => {
            return Err(Error::hub(format!("{id} has neither {WEIGHTS_FILE} nor {INDEX_FILE}")));
        }
    }
    Ok(files.into_iter().map(str::to_string).collect())
}

/// Where a set of files goes.
struct Brought<'a> {
    client: &'a Client,
    cache: &'a RepoCache,
    id: &'a str,
    commit: &'a str,
    progress: &'a dyn Progress,
}

impl Brought<'_> {
    /// Brings files of the commit into the cache and links them into the snapshot; whether any had
    /// to be fetched.
    fn bring(&self, files: &[String]) -> Attempt<bool> {
        let mut missing: Vec<(&str, Remote)> = Vec::new();
        for file in files {
            let remote = self.client.ask(|| self.client.head(self.id, self.commit, file))?;
            if !link_cached(self.cache, &self.job(file, &remote), self.progress)? {
                missing.push((file, remote));
            }
        }
        if missing.is_empty() {
            return Ok(false);
        }
        let remotes = || missing.iter().map(|(_, remote)| remote);
        self.cache.check_writable(self.commit)?;
        check_space(
            self.cache.folder(),
            still_to_fetch(self.cache, remotes()),
            &format!("{}: it", self.id),
        )?;
        let total = sum(remotes().map(|r| r.size.unwrap_or(0)));
        self.progress.start(&format!("download {}", self.id), Some(total), "bytes");
        let done = missing.iter().try_for_each(|(file, remote)| {
            bring(self.client, self.cache, &self.job(file, remote), self.progress)
        });
        self.progress.finish();
        done.map(|()| true)
    }

    fn job<'a>(&'a self, file: &'a str, remote: &'a Remote) -> Job<'a> {
        Job { id: self.id, commit: self.commit, file, remote }
    }
}

/// Bytes that these files still need on disk: what an earlier call left is there already.
fn still_to_fetch<'a>(cache: &RepoCache, remotes: impl Iterator<Item = &'a Remote>) -> u64 {
    sum(remotes.map(|r| r.size.unwrap_or(0).saturating_sub(cache.partial_bytes(&r.etag))))
}

/// The lengths come from outside, where nothing keeps them from adding up to more than there is.
fn sum(lengths: impl Iterator<Item = u64>) -> u64 {
    lengths.fold(0, u64::saturating_add)
}

/// The files of a snapshot folder with their lengths, sorted by name: what a report lists.
pub fn snapshot_files(dir: &Path) -> Result<Vec<(String, u64)>> {
    let failed = |e| Error::io("list", dir, e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let bytes = std::fs::metadata(entry.path()).map_err(failed)?.len();
        files.push((entry.file_name().to_string_lossy().into_owned(), bytes));
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::hub::names::Etag;

    #[test]
    fn space_is_needed_for_what_is_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(dir.path(), "a/b");
        let remote = |c: &str, size| Remote { etag: Etag::parse(&c.repeat(64)).unwrap(), size };
        let files = [remote("a", Some(100)), remote("b", Some(10)), remote("c", None)];
        assert_eq!(still_to_fetch(&cache, files.iter()), 110);
        let partial = cache.claim_partial(&files[0].etag).unwrap();
        std::fs::write(&partial, [0; 30]).unwrap();
        cache.release_partial(&files[0].etag, &partial);
        assert_eq!(still_to_fetch(&cache, files.iter()), 80);
        let absurd = [remote("d", Some(u64::MAX)), remote("e", Some(u64::MAX))];
        assert_eq!(still_to_fetch(&cache, absurd.iter()), u64::MAX);
    }
}
