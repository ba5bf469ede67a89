//! Hugging Face's `config.json` of a decoder.

use super::family::{self, Keys};
use super::files::read_json_bytes;
use crate::error::{Error, Result};
use crate::json;
use crate::model::Gpt2Config;
use serde_json::{Map, Value};
use std::path::Path;

/// Reads and checks a `config.json`.
pub fn read_config(path: &Path) -> Result<Gpt2Config> {
    parse_config(&read_json_bytes(path)?).map_err(|e| e.context(path.display()))
}

/// Checks the bytes of a `config.json`: the model must be of a family and of parts that this program
/// computes. Keys that do not change the forward pass may hold anything; where a key is absent, the
/// default of the family's configuration in transformers counts.
pub fn parse_config(json: &[u8]) -> Result<Gpt2Config> {
    let parsed = json::parse(json).map_err(|e| Error::data(format!("not a config.json: {e}")))?;
    let Value::Object(keys) = parsed else {
        return Err(Error::data("not a config.json: expected an object"));
    };
    parse_config_keys(keys)
}

/// The same of its keys.
pub fn parse_config_keys(keys: Map<String, Value>) -> Result<Gpt2Config> {
    let config = family::read(&Keys(keys))?;
    config.validate().map_err(|e| Error::data(e.to_string()))?;
    Ok(config)
}
