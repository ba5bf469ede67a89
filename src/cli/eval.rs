//! `eval`: mean loss, perplexity and bits per byte of a model on text.

use super::number::whole;
use super::{ModelArgs, Printer};
use crate::error::Result;
use crate::eval::perplexity::{EvalOptions, evaluate};
use crate::report::text;
use crate::store::open_tokens;
use crate::train::threads::use_everywhere;
use std::path::PathBuf;
use std::sync::Arc;

/// Measure a model: mean NLL, perplexity, bits per byte, tokens
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Folder written by `prepare` (its validation split), or a text, jsonl or parquet file
    #[arg(long, env = "ESLM_KD_DATA", hide_env_values = true, value_name = "DIR|FILE")]
    pub data: PathBuf,
    /// Tokens per window; without it, all positions of the model
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1..=u32::MAX.into()))]
    pub context: Option<u32>,
    /// Tokens by which windows advance; fewer than the context gives every token more left context,
    /// at more cost; without it, the context
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1..=u32::MAX.into()))]
    pub stride: Option<u32>,
    /// Put end-of-text in front, so that the first token is predicted, too, as
    /// lm-evaluation-harness does
    #[arg(long)]
    pub bos: bool,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd eval runs/first --data data/mine
  eslm-kd eval gpt2 --data novel.txt --stride 512
  eslm-kd eval runs/first/checkpoints/step-00000500 --data data/mine --json | jq .perplexity";

/// Runs the verb.
pub fn run(args: &EvalArgs, ui: &Printer) -> Result<()> {
    use_everywhere(0)?;
    let model = args.model.open(ui)?;
    let mut tokens = open_tokens(&args.data, &model, ui)?;
    if args.bos {
        tokens = Arc::new(tokens.behind_end_of_text()?);
    }
    let asked = args.context.map_or(model.model.config.n_positions, |c| c as usize);
    let mut options = EvalOptions::new(asked);
    options.stride = args.stride.map_or(asked, |s| s as usize);
    if asked <= model.model.config.n_positions && tokens.len() > 1 && options.stride <= asked {
        // A text shorter than one window needs no padding.
        let needed = usize::try_from(tokens.len() - 1).unwrap_or(usize::MAX).min(asked);
        options = EvalOptions { stride: options.stride.min(needed), ..EvalOptions::new(needed) };
    }
    ui.detail(&format!(
        "{}: {} tokens in windows of {}, one every {}, {} at a time",
        model.folder.origin,
        text::count(tokens.len()),
        text::count(options.context as u64),
        text::count(options.stride as u64),
        options.rows_per_batch
    ));
    let found = evaluate(&model.model, &tokens, options, ui)?;
    ui.result(&found, |screen| {
        let mut table = text::Table::new(["tokens", "nll", "perplexity", "bits per byte"]);
        table.row([
            text::count(found.tokens),
            format!("{:.4}", found.nll),
            text::perplexity(found.nll),
            found.bits_per_byte.map_or_else(|| "-".into(), |b| format!("{b:.4}")),
        ]);
        table.on(screen)
    })
}
