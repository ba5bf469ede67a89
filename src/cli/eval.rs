//! `eval`: mean loss, perplexity and bits per byte of a model on text.

use super::number::whole;
use super::seats::seated;
use super::{ModelArgs, Printer};
use crate::data::tokenizer::Tokenizer;
use crate::data::tokens::TokenFile;
use crate::error::Result;
use crate::eval::perplexity::{EvalOptions, evaluate_among};
use crate::files::hex;
use crate::progress::Progress;
use crate::report::text;
use crate::runs::plan_behind;
use crate::store::identity::Identity;
use crate::store::{OpenModel, begins_with, behind_first, open_tokens};
use std::path::PathBuf;

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
    /// Put in front what the tokenizer puts before a text (Llama's `<s>`), else end-of-text, so that
    /// the first token is predicted, too, as lm-evaluation-harness does
    #[arg(long)]
    pub bos: bool,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd eval runs/first --data data/mine
  eslm-kd eval gpt2 --data novel.txt --stride 512
  eslm-kd eval runs/first/checkpoints/step-00000500 --data data/mine --json | jq .perplexity";

/// Says so where transformers' tokenizer would put a token before the text and nothing is there:
/// models that were trained with one may be far worse without.
fn note_begin(tokens: &TokenFile, tokenizer: Option<&Tokenizer>, ui: &Printer) -> Result<()> {
    let Some(tokenizer) = tokenizer.filter(|t| !t.document_begin().is_empty()) else {
        return Ok(());
    };
    if !begins_with(tokens, tokenizer.begin())? {
        let token = tokenizer.names(tokenizer.begin());
        ui.note(&format!(
            "note: measured without {token}, which the tokenizer puts before a text; --bos puts it there"
        ));
    }
    Ok(())
}

/// Says so where a run's model is asked for more context than it was trained on: it never saw such
/// positions, and its own validation had fewer.
fn note_context(model: &OpenModel, context: usize, ui: &Printer) {
    let trained = plan_behind(&model.folder.dir).map_or(context, |plan| plan.data.context);
    if trained < context {
        ui.note(&format!(
            "note: {} was trained on {} of context and is measured with {}; --context {trained} is what its own validation had",
            model.folder.origin,
            text::amount(trained as u64, "tokens"),
            text::count(context as u64)
        ));
    }
}

/// Runs the verb.
pub fn run(args: &EvalArgs, ui: &Printer) -> Result<()> {
    seated(0, ui)?;
    let model = ui.world().root_first(|| args.model.open(ui))?;
    let mut tokens = open_tokens(&args.data, &model, ui)?;
    let tokenizer = model.tokenizer().ok();
    if args.bos {
        tokens = behind_first(&tokens, tokenizer)?;
    } else {
        note_begin(&tokens, tokenizer, ui)?;
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
    let world = ui.world();
    world.same(|| {
        let Identity { weights, function } = model.folder.identity()?;
        Ok(vec![
            ("the model (SHA-256)".to_string(), weights),
            ("the model's config.json".to_string(), function.unwrap_or_default()),
            ("the data".to_string(), hex(&tokens.header().content_hash)),
            ("the evaluation".to_string(), format!("{options:?}")),
        ])
    })?;
    let found = evaluate_among(world, &model.model, &tokens, options, ui, |_| ())?;
    note_context(&model, options.context, ui);
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
