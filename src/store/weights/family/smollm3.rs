//! SmolLM3: Llama's files, with blocks whose queries and keys are not rotated.

use super::llama::{Defaults, read_with, stated_biases, write_shared};
use super::{Keys, window};
use crate::error::{Error, Result};
use crate::model::parts::{Blocks, Positions};
use crate::model::{Family, Gpt2Config};
use crate::store::weights::save::SpecialIds;
use serde_json::Value;

/// Where a key is absent, `SmolLM3Config`'s default counts.
pub(super) fn read(keys: &Keys) -> Result<Gpt2Config> {
    let defaults = Defaults {
        vocab_size: 128_256,
        n_embd: 2048,
        n_layer: 36,
        n_head: 16,
        positions: 32768,
        kv_heads: Some(4),
        theta: 2_000_000.0,
        tied: true,
        ..Defaults::of(Family::SmolLm3)
    };
    let mut config = read_with(keys, &defaults, stated_biases(keys)?)?;
    let without = unrotated(keys, config.n_layer)?;
    let size = match keys.get("use_sliding_window")?.unwrap_or(false) {
        false => None,
        true => keys.get("sliding_window")?,
    };
    config.parts.window = window::read(keys, &config, size, |l| without.contain(l))?;
    if let Positions::Rotary(rotary) = &mut config.parts.positions {
        rotary.without = without;
    }
    Ok(config)
}

/// The blocks that `no_rope_layers` marks with 0 (a 1 stands for one that is rotated), else every
/// `no_rope_layer_interval`th.
fn unrotated(keys: &Keys, n_layer: usize) -> Result<Blocks> {
    let key = "no_rope_layers";
    let Some(marks) = keys.get::<Vec<Value>>(key)? else {
        let interval: usize = keys.get("no_rope_layer_interval")?.unwrap_or(4);
        if interval == 0 {
            return Err(keys.unexpected("no_rope_layer_interval", "at least 1", &interval));
        }
        return Ok(Blocks::which(n_layer, |l| (l + 1).is_multiple_of(interval)));
    };
    if marks.len() < n_layer {
        return Err(Error::data(format!(
            "{key} must have a mark for each of the {n_layer} blocks, found {}",
            marks.len()
        )));
    }
    let rotated = |mark: &Value| mark.as_i64().map(|n| n != 0).or(mark.as_bool());
    let rotated: Option<Vec<bool>> = marks.iter().map(rotated).collect();
    let rotated = rotated.ok_or_else(|| keys.unexpected(key, "a list of 0 and 1", &keys.0[key]))?;
    Ok(Blocks::which(n_layer, |l| !rotated[l]))
}

pub(super) fn write(config: &Gpt2Config, ids: &SpecialIds) -> Value {
    let mut all = write_shared(config, ids, "SmolLM3ForCausalLM", "smollm3");
    all["attention_bias"] = config.parts.biases.qkv.into();
    all["mlp_bias"] = config.parts.biases.mlp.into();
    let rotated = |l: usize| match &config.parts.positions {
        Positions::Rotary(rotary) => u8::from(!rotary.without.contain(l)),
        Positions::Learned => 0,
    };
    all["no_rope_layers"] = (0..config.n_layer).map(rotated).collect();
    window::write(config, &mut all);
    all
}
