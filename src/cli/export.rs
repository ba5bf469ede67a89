//! `export`: a trained model as a Hugging Face folder or a GGUF file.

use super::Printer;
use crate::error::{Error, Result};
use crate::report::text;
use crate::store::export::{self, ExportOptions, Vocab, export};
use crate::store::gguf::GgufType;
use std::path::PathBuf;

/// Write a run's or a checkpoint's model as a Hugging Face folder that transformers can load, or as
/// a GGUF file for llama.cpp
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ExportArgs {
    /// Run folder (its newest state), checkpoint or model folder
    #[arg(value_name = "RUN|FOLDER")]
    pub source: PathBuf,
    /// Folder or, with --format gguf, file to write
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
    /// How a GGUF file stores matrices and the embedding; the rest is f32. Without it, f32
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    pub of: Option<GgufType>,
    /// Rows of the embedding: all of the model's, or those that stand for a token
    #[arg(long, value_enum, default_value_t, value_name = "ROWS")]
    pub vocab: Vocab,
}

/// The formats that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// A Hugging Face folder
    #[default]
    Hf,
    /// One file, with the tokenizer in it
    Gguf,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd export runs/first --out models/first
  eslm-kd export runs/first/checkpoints/step-00000500 --out models/first-500
  eslm-kd export runs/first --format gguf --type q8_0 --out first-q8_0.gguf";

/// Runs the verb.
pub fn run(args: &ExportArgs, ui: &Printer) -> Result<()> {
    let format = match (args.format, args.of) {
        (Format::Hf, None) => export::Format::HuggingFace,
        (Format::Gguf, of) => export::Format::Gguf(of.unwrap_or_default()),
        (Format::Hf, Some(of)) => {
            return Err(Error::usage(format!(
                "--type {} is for --format gguf; a Hugging Face folder is written in f32",
                of.name()
            )));
        }
    };
    if args.format == Format::Hf && args.out.extension().is_some_and(|e| e == "gguf") {
        return Err(Error::usage(format!(
            "--out {}: the name of a GGUF file, and a Hugging Face folder would be written; add --format gguf, or name a \
             folder",
            args.out.display()
        )));
    }
    let options = ExportOptions { format, vocab: args.vocab };
    let report = export(&args.source, &args.out, &options, ui)?;
    ui.result(&report, |_| {
        format!(
            "{}: {} parameters, {}, from {}",
            report.out.display(),
            text::count(report.parameters as u64),
            text::bytes(report.bytes),
            report.origin
        )
    })
}
