//! `export`: a trained model as a Hugging Face folder.

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
  eslm-kd export runs/first/checkpoints/step-500 --out models/first-500";
