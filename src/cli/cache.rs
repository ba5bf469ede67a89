//! `cache ls | verify | prune`: what lies in the model cache that Python's hub library shares.

use super::Printer;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::report::text::{Screen, Table, amount, bytes, count, seconds};
use crate::store::hub::HubOptions;
use crate::store::hub::audit::{Listed, Pruned, Verified, list, prune, verify};
use crate::store::names::{Kind, ModelRef};
use crate::store::preset::Provider;
use serde::Serialize;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// List, verify and tidy the cache of the Hub's models
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct CacheArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: CacheCommand,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd cache ls
  eslm-kd cache verify gpt2-medium         exit status 3 if anything is damaged
  eslm-kd cache verify --remove            what is damaged goes, to be fetched anew
  eslm-kd cache prune --dry-run            what would go, and how much it frees

The cache is the one of Python's hub library: HF_HUB_CACHE, or hub/ in HF_HOME. Only models are looked at.";

/// What the verb can do.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum CacheCommand {
    /// List models with their commits, sizes and last use.
    #[command(after_help = EXAMPLES)]
    Ls(CacheLsArgs),
    /// Hash every file against the hash that names it, and follow every link.
    #[command(after_help = EXAMPLES)]
    Verify(CacheVerifyArgs),
    /// Remove unfinished downloads, commits that no branch or tag names, and files that no commit
    /// links to.
    #[command(after_help = EXAMPLES)]
    Prune(CachePruneArgs),
}

/// Arguments of `cache ls`.
#[derive(Debug, Clone, clap::Args)]
pub struct CacheLsArgs {
    /// This model only: a Hub id (org/name) or a teacher preset.
    pub repo: Option<String>,
}

/// Arguments of `cache verify`.
#[derive(Debug, Clone, clap::Args)]
pub struct CacheVerifyArgs {
    /// This model only: a Hub id (org/name) or a teacher preset.
    pub repo: Option<String>,
    /// Remove what is damaged, so that the next download fetches it anew.
    #[arg(long)]
    pub remove: bool,
}

/// Arguments of `cache prune`.
#[derive(Debug, Clone, clap::Args)]
pub struct CachePruneArgs {
    /// This model only: a Hub id (org/name) or a teacher preset.
    pub repo: Option<String>,
    /// Remove nothing, only say what would go.
    #[arg(long)]
    pub dry_run: bool,
}

/// What `cache ls` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CacheList {
    /// The cache folder.
    pub cache: PathBuf,
    /// Sum over the repositories, unfinished downloads included.
    pub bytes: u64,
    /// The repositories, by name.
    pub repos: Vec<Listed>,
}

/// Runs the verb.
pub fn run(args: &CacheArgs, ui: &Printer) -> Result<()> {
    let options = HubOptions::from_env(ui.offline());
    match &args.command {
        CacheCommand::Ls(args) => {
            let listed = listed(args, &options)?;
            ui.result(&listed, |screen| table(&listed, screen))
        }
        CacheCommand::Verify(args) => {
            let found = verified(args, &options, ui)?;
            ui.result(&found, |_| found_text(&found))?;
            complaint(&found).map_or(Ok(()), Err)
        }
        CacheCommand::Prune(args) => {
            let pruned = pruned(args, &options)?;
            ui.result(&pruned, |_| pruned_text(&pruned))
        }
    }
}

/// `cache ls` without its printing.
pub fn listed(args: &CacheLsArgs, options: &HubOptions) -> Result<CacheList> {
    let repos = list(options.cache()?, repo_id(args.repo.as_deref())?.as_deref())?;
    Ok(CacheList {
        cache: options.cache()?.to_path_buf(),
        bytes: repos.iter().map(|r| r.bytes + r.partial_bytes).sum(),
        repos,
    })
}

/// `cache verify` without its printing; damage is in what it returns, and no error.
pub fn verified(
    args: &CacheVerifyArgs,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<Verified> {
    verify(options.cache()?, repo_id(args.repo.as_deref())?.as_deref(), args.remove, progress)
}

/// `cache prune` without its printing.
pub fn pruned(args: &CachePruneArgs, options: &HubOptions) -> Result<Pruned> {
    prune(options.cache()?, repo_id(args.repo.as_deref())?.as_deref(), args.dry_run)
}

/// The Hub id of a name; here a name is never a path.
fn repo_id(name: Option<&str>) -> Result<Option<String>> {
    let Some(name) = name else { return Ok(None) };
    match ModelRef::named(name, Kind::Any)? {
        ModelRef::Hub { id, .. } => Ok(Some(id)),
        ModelRef::Preset(preset) => match &preset.source {
            Some(Provider::Hub { repo, .. }) => Ok(Some(repo.clone())),
            _ => Err(Error::usage(format!(
                "the preset {name} does not come from the Hub; expected a Hub id (org/name)"
            ))),
        },
        ModelRef::Folder { .. } | ModelRef::Gguf(_) => {
            Err(Error::internal(format!("{name} was taken for a folder")))
        }
    }
}

fn table(listed: &CacheList, screen: &Screen) -> String {
    let cache = listed.cache.display();
    if listed.repos.is_empty() {
        return format!("no models in {cache}");
    }
    let mut table = Table::new(["model", "commit", "refs", "files", "size", "last used"]);
    for repo in &listed.repos {
        let when = repo.last_used.map_or("-".into(), ago);
        for s in &repo.snapshots {
            let commit = s.commit[..s.commit.len().min(12)].to_string();
            table.row([
                repo.id.clone(),
                commit,
                s.refs.join(" "),
                count(s.files as u64),
                bytes(s.bytes),
                when.clone(),
            ]);
        }
        if repo.snapshots.is_empty() || repo.partial_bytes > 0 {
            let size = bytes(repo.partial_bytes);
            table.row([
                repo.id.clone(),
                "unfinished".into(),
                String::new(),
                "-".into(),
                size,
                when,
            ]);
        }
    }
    format!("{}{} in {cache}", table.on(screen), bytes(listed.bytes))
}

/// `3 days ago`.
fn ago(then: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(then, |d| d.as_secs());
    match now.saturating_sub(then) {
        s if s < 86_400 => format!("{} ago", seconds(s as f64)),
        s if s < 2 * 86_400 => "1 day ago".into(),
        s => format!("{} days ago", s / 86_400),
    }
}

fn found_text(found: &Verified) -> String {
    let mut lines =
        vec![format!("{} in {} hashed", bytes(found.bytes), amount(found.blobs as u64, "files"))];
    for damage in &found.damaged {
        let what = if damage.removed { "damaged, removed" } else { "DAMAGED" };
        lines.push(format!("{what}: {} ({})", damage.path.display(), damage.problem));
    }
    lines.extend(found.partial.iter().map(|p| format!("unfinished download: {}", p.display())));
    lines.extend(
        found
            .unchecked
            .iter()
            .map(|p| format!("not checked, its hash is not known: {}", p.display())),
    );
    if found.damaged.is_empty() {
        lines.push("nothing is damaged".into());
    } else if complaint(found).is_none() {
        lines.extend(found.repairs().iter().map(|command| format!("next: {command}")));
    }
    lines.join("\n")
}

/// The error for what is damaged and still there.
fn complaint(found: &Verified) -> Option<Error> {
    let there: Vec<_> = found.damaged.iter().filter(|d| !d.removed).collect();
    let (first, more) = (there.first()?, there.len() - 1);
    let names: Vec<String> = there
        .iter()
        .map(|d| match d.files.first() {
            Some(file) => format!("{} {file}", d.id),
            None => d.path.display().to_string(),
        })
        .collect();
    let then: String =
        found.repairs().iter().map(|command| format!(", then `{command}`")).collect();
    let only = if there.iter().all(|d| d.id == first.id) {
        format!(" {}", first.id)
    } else {
        String::new()
    };
    let kind = if more == 0 { first.problem.to_string() } else { format!("{} files", more + 1) };
    Some(Error::data(format!(
        "damaged in the cache: {} ({kind}). To repair: `eslm-kd cache verify{only} --remove`{then}",
        names.join(", ")
    )))
}

fn pruned_text(pruned: &Pruned) -> String {
    let went = if pruned.dry_run { "would remove" } else { "removed" };
    let freed = if pruned.dry_run { "would free" } else { "freed" };
    let mut lines: Vec<String> = pruned
        .removed
        .iter()
        .map(|r| format!("{went} {}: {}", r.path.display(), r.reason))
        .collect();
    lines.extend(pruned.left.iter().map(|l| format!("left {}: {}", l.path.display(), l.reason)));
    lines.push(format!("{freed} {}", bytes(pruned.bytes)));
    lines.join("\n")
}
