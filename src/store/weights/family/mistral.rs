//! Mistral: Llama's files, with a window of attention in every block.

use super::llama::{Defaults, read_with, write_shared};
use super::{Keys, window};
use crate::error::Result;
use crate::model::parts::Biases;
use crate::model::{Family, Gpt2Config};
use crate::store::weights::save::SpecialIds;
use serde_json::Value;

/// Where a key is absent, `MistralConfig`'s default counts: also the window's.
pub(super) fn read(keys: &Keys) -> Result<Gpt2Config> {
    let defaults = Defaults {
        inner: 14336,
        positions: 4096 * 32,
        kv_heads: Some(8),
        ..Defaults::of(Family::Mistral)
    };
    let none = Biases { qkv: false, output: false, mlp: false };
    let mut config = read_with(keys, &defaults, none)?;
    if let Some(types) = keys.0.get("layer_types").filter(|types| !types.is_null()) {
        return Err(keys.unexpected("layer_types", "absent (every block has the window)", types));
    }
    let size = match keys.0.contains_key("sliding_window") {
        false => Some(4096),
        true => keys.get("sliding_window")?,
    };
    config.parts.window = window::read(keys, &config, size, |_| true)?;
    Ok(config)
}

pub(super) fn write(config: &Gpt2Config, ids: &SpecialIds) -> Value {
    let mut all = write_shared(config, ids, "MistralForCausalLM", "mistral");
    // Said even where there is none: absent means 4,096.
    all["sliding_window"] = config.parts.window.as_ref().map(|window| window.size).into();
    all
}
