//! `eslm-kd tokenizer train`: a byte-level byte-pair encoding from text.

use super::Printer;
use super::number::whole;
use crate::data::tokenizer::{TOKENIZER_FILES, Tokenizer};
use crate::data::train_tokenizer::{TrainOptions, TrainReport};
use crate::error::Result;
use crate::files::{Contents, OutDir, free};
use crate::progress::Progress;
use crate::report::text::{bytes, count, quoted};
use std::path::PathBuf;

/// Train a tokenizer
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct TokenizerArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TokenizerCommand,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd tokenizer train --input books.jsonl.gz --vocab-size 8192 --out runs/tokenizer
  eslm-kd tokenizer train --input a.parquet b.parquet --text-field content --vocab-size 32000 --out tok";

/// What the verb can do.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum TokenizerCommand {
    /// Learn a byte-level byte-pair encoding (GPT-2's scheme) and write Hugging Face's files.
    #[command(after_help = EXAMPLES)]
    Train(TokenizerTrainArgs),
}

/// Arguments of `tokenizer train`.
#[derive(Debug, Clone, clap::Args)]
pub struct TokenizerTrainArgs {
    /// Input files: .txt, .jsonl or .parquet, each also with .gz or .zst.
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub input: Vec<PathBuf>,
    /// Tokens to learn, the 256 bytes and <|endoftext|> included.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(257..=i64::MAX))]
    pub vocab_size: usize,
    /// New folder to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Field of JSON lines, column of Parquet.
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_field: String,
    /// Occurrences that a pair of tokens needs to become one.
    #[arg(long, value_name = "N", value_parser = whole::<u64>(0..=i64::MAX), default_value_t = 2)]
    pub min_frequency: u64,
    /// Leave out rows of JSON lines and Parquet without a readable text, and count them, instead of
    /// stopping at the first.
    #[arg(long)]
    pub skip_bad: bool,
}

/// Runs the verb.
pub fn run(args: &TokenizerArgs, ui: &Printer) -> Result<()> {
    let report = trained(args, ui)?;
    let TokenizerCommand::Train(args) = &args.command;
    let (tokens, text) = (count(report.vocab_size.into()), bytes(report.bytes));
    ui.result(&report, |_| {
        let (out, quoted) = (args.out.display(), quoted(&args.out));
        let skipped: String = report.skipped.iter().map(|s| format!("{s}\n")).collect();
        format!("{skipped}tokenizer of {tokens} tokens from {text} of text: {out}\nnext: eslm-kd prepare --input FILE --tokenizer {quoted} --out {}", free("data/mine").display())
    })
}

/// The verb without its printing: trains, writes and says what was learned.
pub fn trained(args: &TokenizerArgs, progress: &dyn Progress) -> Result<TrainReport> {
    let TokenizerCommand::Train(args) = &args.command;
    // A folder of that name may hold a model or another tokenizer: never replace it.
    let (names, last) = (&TOKENIZER_FILES, TOKENIZER_FILES[0]);
    let contents = Contents { verb: "tokenizer", names, mark: None, last };
    let folder = OutDir::create(&args.out, contents)?;
    let options = TrainOptions {
        vocab_size: args.vocab_size,
        min_frequency: args.min_frequency,
        text_field: args.text_field.clone(),
        skip_bad: args.skip_bad,
    };
    let (tokenizer, report) = Tokenizer::train(&args.input, &options, progress)?;
    tokenizer.save(folder.path())?;
    folder.commit()?;
    Ok(report)
}
