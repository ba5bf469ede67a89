//! `download NAME`: a model into the cache that Python's hub library shares.

use crate::error::{Error, Result};
use crate::hub::{HubOptions, Kind, ModelRef, resolve_model, snapshot_files};
use crate::progress::Progress;
use serde::Serialize;
use std::path::PathBuf;

/// Fetch a model of the Hub into the cache, verified.
///
/// Examples:
///   eslm-kd download gpt2-medium
///   eslm-kd download org/name --revision v1.0
#[derive(Debug, Clone, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct DownloadArgs {
    /// A teacher preset or a Hub id (org/name).
    pub name: String,
    /// Branch, tag or commit hash; a preset's own, or `main`, unless given.
    #[arg(long)]
    pub revision: Option<String>,
}

/// What was fetched, or was there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DownloadReport {
    /// The name as asked for.
    pub name: String,
    /// Where it comes from.
    pub origin: String,
    /// The commit it is pinned to.
    pub commit: String,
    /// The snapshot folder.
    pub dir: PathBuf,
    /// Sum of the files' lengths.
    pub bytes: u64,
    /// The files of the snapshot, by name.
    pub files: Vec<DownloadedFile>,
}

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DownloadedFile {
    pub name: String,
    pub bytes: u64,
}

/// Runs the verb.
pub fn run(args: &DownloadArgs, options: &HubOptions, progress: &dyn Progress) -> Result<DownloadReport> {
    if let Ok(ModelRef::Folder { dir, .. }) = ModelRef::parse(&args.name, Kind::Any) {
        return Err(Error::usage(format!("{} is a folder ({}); nothing to download", args.name, dir.display())));
    }
    let source = resolve_model(&args.name, args.revision.as_deref(), Kind::Any, options, progress)?;
    let files: Vec<DownloadedFile> =
        snapshot_files(&source.dir)?.into_iter().map(|(name, bytes)| DownloadedFile { name, bytes }).collect();
    Ok(DownloadReport {
        name: args.name.clone(),
        origin: source.origin,
        commit: source.commit.unwrap_or_default(),
        dir: source.dir,
        bytes: files.iter().map(|f| f.bytes).sum(),
        files,
    })
}
