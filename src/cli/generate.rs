//! `generate`: text from a model.

use crate::config::DeviceSpec;
use clap::value_parser;

/// Continue a prompt
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct GenerateArgs {
    /// Run folder, checkpoint, Hugging Face folder, preset or Hub id
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Text to continue; empty starts a new document
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub prompt: String,
    /// Divides the logits before sampling; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.8, value_parser = temperature, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Sample among the K likeliest tokens
    #[arg(long, value_name = "K", value_parser = value_parser!(u32).range(1..))]
    pub top_k: Option<u32>,
    /// Sample among the likeliest tokens that together have probability P
    #[arg(long, value_name = "P", value_parser = top_p, allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Seed of the sampling
    #[arg(long, env = "ESLM_KD_SEED", hide_env_values = true, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Tokens to add at most
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = value_parser!(u32).range(1..))]
    pub max_tokens: u32,
    /// Where tensors live: auto, cpu, cuda or cuda:INDEX
    #[arg(long, env = "ESLM_KD_DEVICE", hide_env_values = true, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceSpec,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd generate runs/first --prompt 'Once upon a time'
  eslm-kd generate gpt2 --prompt 'The ship' --temperature 0
  eslm-kd generate runs/first --prompt 'She said' --top-k 40 --top-p 0.9 --seed 7 --max-tokens 50";

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(t) if t.is_finite() && t >= 0.0 => Ok(t),
        _ => Err("expected a finite number of at least 0".into()),
    }
}

fn top_p(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if p > 0.0 && p <= 1.0 => Ok(p),
        _ => Err("expected a number in (0, 1]".into()),
    }
}
