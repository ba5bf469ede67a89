//! Qwen2, Qwen2.5 and Qwen3: Llama's files, with biases of queries, keys and values, or a norm of
//! each head's queries and keys.

use super::Keys;
use super::llama::{Defaults, read_with, write_shared};
use crate::error::{Error, Result};
use crate::model::parts::Biases;
use crate::model::{Family, Gpt2Config};
use crate::store::weights::save::SpecialIds;
use serde_json::Value;

/// Where a key is absent, the default of `Qwen2Config` or `Qwen3Config` counts.
pub(super) fn read(keys: &Keys, family: Family) -> Result<Gpt2Config> {
    let of_3 = family == Family::Qwen3;
    let defaults = Defaults {
        family,
        vocab_size: 151_936,
        inner: 22016,
        positions: 32768,
        kv_heads: Some(32),
        head_dim: of_3.then_some(128),
    };
    // Qwen2 has biases whatever is said, and none at the output.
    let said = of_3 && keys.get("attention_bias")?.unwrap_or(false);
    let biases = Biases { qkv: !of_3 || said, output: said, mlp: false };
    let config = read_with(keys, &defaults, biases)?;
    check_window(keys, &config)?;
    Ok(config)
}

/// Errs where some layer sees fewer positions than the model has.
fn check_window(keys: &Keys, config: &Gpt2Config) -> Result<()> {
    if !keys.get("use_sliding_window")?.unwrap_or(false) {
        return Ok(());
    }
    let stated = keys.0.contains_key("sliding_window");
    let window: Option<usize> = if stated { keys.get("sliding_window")? } else { Some(4096) };
    let Some(window) = window.filter(|window| *window < config.n_positions) else { return Ok(()) };
    let from: usize = keys.get("max_window_layers")?.unwrap_or(28);
    let windowed = match keys.get::<Vec<String>>("layer_types")? {
        Some(types) => types.iter().any(|of| of == "sliding_attention"),
        None => from < config.n_layer,
    };
    if !windowed {
        return Ok(());
    }
    Err(Error::data(format!(
        "sliding_window = {window} (use_sliding_window) is shorter than max_position_embeddings = {}: attention within a \
         window is not supported",
        config.n_positions
    )))
}

pub(super) fn write(config: &Gpt2Config, ids: &SpecialIds) -> Value {
    let of_3 = config.parts.family == Family::Qwen3;
    let (class, model_type) =
        if of_3 { ("Qwen3ForCausalLM", "qwen3") } else { ("Qwen2ForCausalLM", "qwen2") };
    let mut all = write_shared(config, ids, class, model_type);
    if of_3 {
        all["attention_bias"] = config.parts.biases.qkv.into();
    }
    all["max_window_layers"] = config.n_layer.into();
    all["sliding_window"] = Value::Null;
    all["use_sliding_window"] = false.into();
    all
}
