//! OLMo 2: Llama's files, with norms after attention and MLP, and norms of all queries and of all
//! keys.

use super::Keys;
use super::llama::{Defaults, read_with, stated_biases, write_shared};
use crate::error::Result;
use crate::model::parts::{Biases, QkNorm, Residual};
use crate::model::{Family, Gpt2Config};
use crate::store::weights::save::SpecialIds;
use serde_json::Value;

/// Where a key is absent, `Olmo2Config`'s default counts.
pub(super) fn read(keys: &Keys) -> Result<Gpt2Config> {
    let defaults = Defaults { vocab_size: 50304, epsilon: 1e-5, ..Defaults::of(Family::Olmo2) };
    // Its MLP has none, whatever is said.
    let biases = Biases { mlp: false, ..stated_biases(keys)? };
    let mut config = read_with(keys, &defaults, biases)?;
    config.parts.residual = Residual::PostNorm;
    config.parts.qk_norm = QkNorm::Whole;
    Ok(config)
}

pub(super) fn write(config: &Gpt2Config, ids: &SpecialIds) -> Value {
    let mut all = write_shared(config, ids, "Olmo2ForCausalLM", "olmo2");
    all["attention_bias"] = config.parts.biases.qkv.into();
    all
}
