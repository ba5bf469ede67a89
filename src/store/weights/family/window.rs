//! Attention within a window in `config.json`.

use super::Keys;
use crate::error::{Error, Result};
use crate::model::Gpt2Config;
use crate::model::parts::{Blocks, Window};
use serde_json::Value;

/// What `layer_types` calls blocks with a window, and those without.
const WINDOWED: &str = "sliding_attention";
const FULL: &str = "full_attention";

/// The window of `size` in the blocks that `layer_types` names, else in those for which `usual`
/// holds. One that is as long as the model's positions is none.
pub(super) fn read(
    keys: &Keys,
    config: &Gpt2Config,
    size: Option<usize>,
    usual: impl Fn(usize) -> bool,
) -> Result<Option<Window>> {
    let Some(size) = size else { return Ok(None) };
    if size == 0 {
        return Err(keys.unexpected("sliding_window", "at least 1, or null", &size));
    }
    let blocks = match keys.get::<Vec<String>>("layer_types")? {
        None => Blocks::which(config.n_layer, usual),
        Some(types) => {
            if types.len() != config.n_layer {
                return Err(Error::data(format!(
                    "layer_types must name each of the {} blocks, found {} names",
                    config.n_layer,
                    types.len()
                )));
            }
            if let Some(other) = types.iter().find(|of| ![WINDOWED, FULL].contains(&of.as_str())) {
                return Err(keys.unexpected(
                    "layer_types",
                    &format!("{WINDOWED} or {FULL} for each block"),
                    other,
                ));
            }
            Blocks::which(config.n_layer, |l| types[l] == WINDOWED)
        }
    };
    let none = size >= config.n_positions || blocks == Blocks::default();
    Ok((!none).then_some(Window { size, blocks }))
}

/// Adds the keys of families whose `layer_types` says which blocks have the window.
pub(super) fn write(config: &Gpt2Config, all: &mut Value) {
    let windowed = |l: usize| config.window(l).is_some();
    let types = (0..config.n_layer).map(|l| if windowed(l) { WINDOWED } else { FULL });
    all["layer_types"] = types.collect();
    all["use_sliding_window"] = config.parts.window.is_some().into();
    all["sliding_window"] = config.parts.window.as_ref().map(|window| window.size).into();
}
