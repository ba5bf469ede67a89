//! Hugging Face's `config.json` of a GPT-2, read strictly where it changes the mathematics.

use super::files::read_json_bytes;
use crate::error::{Error, Result};
use crate::model::Gpt2Config;
use serde::Deserialize;
use std::path::Path;

/// What transformers' `GPT2Config` says, with its defaults. Keys that do not change the forward
/// pass are not listed and may hold anything.
#[derive(Deserialize)]
#[serde(default)]
struct Raw {
    model_type: Option<String>,
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    activation_function: String,
    layer_norm_epsilon: f64,
    initializer_range: f64,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    reorder_and_upcast_attn: bool,
    add_cross_attention: bool,
    tie_word_embeddings: bool,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            model_type: None,
            vocab_size: 50257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: "gelu_new".into(),
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            reorder_and_upcast_attn: false,
            add_cross_attention: false,
            tie_word_embeddings: true,
        }
    }
}

/// Reads and checks a `config.json`.
pub fn read_config(path: &Path) -> Result<Gpt2Config> {
    parse_config(&read_json_bytes(path)?).map_err(|e| e.context(path.display()))
}

/// Checks the bytes of a `config.json`: the model must be a GPT-2 of the one kind this program
/// computes.
pub fn parse_config(json: &[u8]) -> Result<Gpt2Config> {
    let raw: Raw = serde_json::from_slice(json)
        .map_err(|e| Error::data(format!("not a GPT-2 config.json: {e}")))?;
    let expect = |key: &str, expected: &str, found: &dyn std::fmt::Debug| {
        Err(Error::data(format!(
            "{key} must be {expected}, found {found:?}; other models are not supported"
        )))
    };
    match raw.model_type.as_deref() {
        Some("gpt2") => {}
        other => return expect("model_type", "\"gpt2\"", &other.unwrap_or("none")),
    }
    // Both names mean the tanh form of GELU; plain "gelu" is the erf form and would be a different
    // model.
    if !matches!(raw.activation_function.as_str(), "gelu_new" | "gelu_pytorch_tanh") {
        return expect(
            "activation_function",
            "\"gelu_new\" or \"gelu_pytorch_tanh\"",
            &raw.activation_function,
        );
    }
    for (key, found, wanted) in [
        ("scale_attn_weights", raw.scale_attn_weights, true),
        ("scale_attn_by_inverse_layer_idx", raw.scale_attn_by_inverse_layer_idx, false),
        ("reorder_and_upcast_attn", raw.reorder_and_upcast_attn, false),
        ("add_cross_attention", raw.add_cross_attention, false),
        ("tie_word_embeddings", raw.tie_word_embeddings, true),
    ] {
        if found != wanted {
            return expect(key, &wanted.to_string(), &found);
        }
    }
    let config = Gpt2Config {
        vocab_size: raw.vocab_size,
        n_positions: raw.n_positions,
        n_embd: raw.n_embd,
        n_layer: raw.n_layer,
        n_head: raw.n_head,
        n_inner: raw.n_inner,
        layer_norm_epsilon: raw.layer_norm_epsilon,
        initializer_range: raw.initializer_range,
    };
    config.validate().map_err(|e| Error::data(e.to_string()))?;
    Ok(config)
}
