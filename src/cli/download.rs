//! `download NAME`: a model into the cache that Python's hub library shares.

use super::Printer;
use crate::error::Result;
use crate::progress::Progress;
use crate::report::text::{amount, bytes};
use crate::store::hub::{HubOptions, What, lacking_tokenizer, snapshot_files};
use crate::store::names::{Kind, ModelRef, Where, locate};
use serde::Serialize;
use std::path::PathBuf;

/// Fetch a model of the Hub into the cache, verified
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  eslm-kd download gpt2-medium
  eslm-kd download org/name --revision v1.0")]
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
pub fn run(args: &DownloadArgs, ui: &Printer) -> Result<()> {
    let report = fetched(args, &HubOptions::from_env(ui.offline()), ui)?;
    ui.result(&report, |_| {
        let (size, files) = (bytes(report.bytes), amount(report.files.len() as u64, "files"));
        format!(
            "{} at commit {}: {size} in {files}\n{}",
            report.origin,
            report.commit,
            report.dir.display()
        )
    })
}

/// The verb without its printing: fetches and says what there is.
pub fn fetched(
    args: &DownloadArgs,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<DownloadReport> {
    // A folder of the same name is no obstacle: here a name is never a path.
    let meant = ModelRef::named(&args.name, Kind::Any)?;
    let source = locate(
        meant,
        &args.name,
        args.revision.as_deref(),
        What::Model,
        Where { hub: options, progress },
    )?;
    if let Some(lacks) = lacking_tokenizer(&source.dir).filter(|_| options.offline) {
        return Err(lacks);
    }
    let files: Vec<DownloadedFile> = snapshot_files(&source.dir)?
        .into_iter()
        .map(|(name, bytes)| DownloadedFile { name, bytes })
        .collect();
    Ok(DownloadReport {
        name: args.name.clone(),
        origin: source.origin,
        commit: source.commit.unwrap_or_default(),
        dir: source.dir,
        bytes: files.iter().map(|f| f.bytes).sum(),
        files,
    })
}
