//! `generate`: text from a model.

use super::number::{finite, whole};
use super::{ModelArgs, Printer};
use crate::eval::generate::{GenerateOptions, generate};
use crate::model::Gpt2;
use crate::report::text::{self, visible};
use crate::train::threads::use_everywhere;
use serde_json::json;
use std::time::Instant;

/// Continue a prompt
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Text to continue; empty starts a new document
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub prompt: String,
    /// Divides the logits before sampling; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.8, value_parser = temperature, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Sample among the K likeliest tokens
    #[arg(long, value_name = "K", value_parser = whole::<u32>(1..=u32::MAX.into()))]
    pub top_k: Option<u32>,
    /// Sample among the likeliest tokens that together have probability P
    #[arg(long, value_name = "P", value_parser = top_p, allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Seed of the sampling
    #[arg(
        long,
        env = "ESLM_KD_SEED",
        hide_env_values = true,
        value_name = "N",
        value_parser = whole::<u64>(0..=i64::MAX),
        default_value_t = 42
    )]
    pub seed: u64,
    /// Tokens to add at most
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = whole::<u32>(1..=u32::MAX.into()))]
    pub max_tokens: u32,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd generate runs/first --prompt 'Once upon a time'
  eslm-kd generate gpt2 --prompt 'The ship' --temperature 0
  eslm-kd generate runs/first --prompt 'She said' --top-k 40 --top-p 0.9 --seed 7 --max-tokens 50";

fn temperature(text: &str) -> Result<f64, String> {
    match finite(text) {
        Ok(t) if t >= 0.0 => Ok(t),
        _ => Err("expected a finite number of at least 0".into()),
    }
}

fn top_p(text: &str) -> Result<f64, String> {
    match finite(text) {
        Ok(p) if p > 0.0 && p <= 1.0 => Ok(p),
        _ => Err("expected a number in (0, 1]".into()),
    }
}

/// Bytes of weights that every token reads: all but the tables of which one row is looked up.
fn read_per_token(model: &Gpt2) -> usize {
    let (config, params) = (&model.config, &model.params);
    let positions = if config.learns_positions() { config.n_positions * config.n_embd } else { 0 };
    let rows = if config.parts.own_head { config.vocab_size * config.n_embd } else { 0 };
    (config.parameters() - positions - rows) * params.wte().dtype().size_in_bytes()
}

/// Runs the verb: the prompt and its continuation, as they come; under `--json` one object at the
/// end.
pub fn run(args: &GenerateArgs, ui: &Printer) -> crate::error::Result<()> {
    use_everywhere(0)?;
    let opened = args.model.open(ui)?;
    let options = GenerateOptions {
        temperature: args.temperature,
        top_k: args.top_k.map(|k| k as usize),
        top_p: args.top_p,
        seed: args.seed,
        max_tokens: args.max_tokens as usize,
    };
    let tokenizer = opened.tokenizer()?; // before anything is shown
    let started = Instant::now();
    let stream = !ui.json();
    let show = |text: &str| match ui.screen().width.is_some() {
        true => ui.stdout(&visible(text)),
        false => ui.stdout(text),
    };
    if stream {
        show(&args.prompt)?;
    }
    // The first piece comes after the prompt was read.
    let mut first = None;
    let done = generate(&opened.model, tokenizer, &args.prompt, &options, |piece| {
        first.get_or_insert_with(Instant::now);
        if stream { show(piece) } else { Ok(()) }
    });
    if stream {
        // Also after an error or a signal: what follows starts on a line of its own.
        ui.stdout("\n")?;
    }
    let done = done?;
    let seconds = started.elapsed().as_secs_f64();
    if stream {
        let later = done.tokens.saturating_sub(1) as f64;
        let rate = first.map_or(0.0, |first| later / first.elapsed().as_secs_f64());
        let bytes = read_per_token(&opened.model) as f64;
        ui.detail(&format!(
            "{} in {}; after the first {} tok/s, {:.1} GB/s of weights read",
            text::amount(done.tokens as u64, "tokens"),
            text::seconds(seconds),
            text::decimal(rate, 1),
            rate * bytes / 1e9
        ));
        return Ok(());
    }
    let report = json!({
        "prompt": args.prompt,
        "text": done.text,
        "prompt_tokens": done.prompt_tokens,
        "tokens": done.tokens,
        "stop": done.stop,
        "seconds": seconds,
    });
    ui.result(&report, |_| String::new())
}
