//! Qwen2, Qwen2.5 and Qwen3: Llama's files, with biases of queries, keys and values, or a norm of
//! each head's queries and keys.

use super::Keys;
use super::llama::{Defaults, read_with, write_shared};
use super::window;
use crate::error::Result;
use crate::model::parts::{Biases, QkNorm};
use crate::model::{Family, Gpt2Config};
use crate::store::weights::save::SpecialIds;
use serde_json::Value;

/// Where a key is absent, the default of `Qwen2Config` or `Qwen3Config` counts.
pub(super) fn read(keys: &Keys, family: Family) -> Result<Gpt2Config> {
    let of_3 = family == Family::Qwen3;
    let defaults = Defaults {
        vocab_size: 151_936,
        inner: 22016,
        positions: 32768,
        kv_heads: Some(32),
        head_dim: of_3.then_some(128),
        ..Defaults::of(family)
    };
    // Qwen2 has biases whatever is said, and none at the output.
    let said = of_3 && keys.get("attention_bias")?.unwrap_or(false);
    let biases = Biases { qkv: !of_3 || said, output: said, mlp: false };
    let mut config = read_with(keys, &defaults, biases)?;
    if of_3 {
        config.parts.qk_norm = QkNorm::Head;
    }
    let size = match keys.get("use_sliding_window")?.unwrap_or(false) {
        false => None,
        true if !keys.0.contains_key("sliding_window") => Some(4096),
        true => keys.get("sliding_window")?,
    };
    let from: usize = keys.get("max_window_layers")?.unwrap_or(28);
    config.parts.window = window::read(keys, &config, size, |l| l >= from)?;
    Ok(config)
}

pub(super) fn write(config: &Gpt2Config, ids: &SpecialIds) -> Value {
    let of_3 = config.parts.family == Family::Qwen3;
    let (class, model_type) =
        if of_3 { ("Qwen3ForCausalLM", "qwen3") } else { ("Qwen2ForCausalLM", "qwen2") };
    let mut all = write_shared(config, ids, class, model_type);
    if of_3 {
        all["attention_bias"] = config.parts.biases.qkv.into();
    }
    window::write(config, &mut all);
    // For readers that do not know layer_types: the first block from which on all have it.
    let from = (0..config.n_layer).rev().take_while(|l| config.window(*l).is_some()).last();
    all["max_window_layers"] = from.unwrap_or(config.n_layer).into();
    all
}
