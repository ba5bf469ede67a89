//! `export`: a trained model as a Hugging Face folder.

use super::Printer;
use crate::error::Result;
use crate::report::text;
use crate::store::export::export;
use std::path::PathBuf;

/// Write a run's or a checkpoint's model as a Hugging Face folder that transformers can load
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ExportArgs {
    /// Run folder (its newest state) or checkpoint
    #[arg(value_name = "RUN|CHECKPOINT")]
    pub source: PathBuf,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd export runs/first --out models/first
  eslm-kd export runs/first/checkpoints/step-00000500 --out models/first-500";

/// Runs the verb.
pub fn run(args: &ExportArgs, ui: &Printer) -> Result<()> {
    let report = export(&args.source, &args.out, ui)?;
    ui.result(&report, || {
        format!(
            "{}: {} parameters, {}, from {}",
            report.out.display(),
            text::count(report.parameters as u64),
            text::bytes(report.bytes),
            report.origin
        )
    })
}
