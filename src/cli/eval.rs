//! `eval`: mean loss, perplexity and bits per byte of a model on text.

use crate::config::DeviceSpec;
use clap::value_parser;
use std::path::PathBuf;

/// Measure a model: mean NLL, perplexity, bits per byte, tokens
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct EvalArgs {
    /// Run folder, checkpoint, Hugging Face folder, preset or Hub id
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Folder written by `prepare` (its validation split), or a text, jsonl or parquet file
    #[arg(long, env = "ESLM_KD_DATA", hide_env_values = true, value_name = "DIR|FILE")]
    pub data: PathBuf,
    /// Tokens per window; without it, all positions of the model
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub context: Option<u32>,
    /// Tokens by which windows advance; fewer than the context gives every token more left context, at more cost;
    /// without it, the context
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub stride: Option<u32>,
    /// Where tensors live: auto, cpu, cuda or cuda:INDEX
    #[arg(long, env = "ESLM_KD_DEVICE", hide_env_values = true, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceSpec,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd eval runs/first --data data/mine
  eslm-kd eval gpt2 --data novel.txt --stride 512
  eslm-kd eval runs/first/checkpoints/step-500 --data data/mine --json | jq .perplexity";
