//! Hugging Face's `config.json` of a GPT-2, read strictly where it changes the mathematics.

use super::files::read_json_bytes;
use crate::error::{Error, Result};
use crate::json;
use crate::model::{Gpt2Config, Parts};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::Path;

/// Generic names of shapes (`GPT2Config.attribute_map`); where both names stand, these win, as in
/// transformers.
const ALIASES: [(&str, &str); 4] = [
    ("n_positions", "max_position_embeddings"),
    ("n_embd", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
];

/// Names of the tanh form of GELU; plain "gelu" is the erf form and would be a different model.
const TANH_GELU: [&str; 5] =
    ["gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"];

/// Reads and checks a `config.json`.
pub fn read_config(path: &Path) -> Result<Gpt2Config> {
    parse_config(&read_json_bytes(path)?).map_err(|e| e.context(path.display()))
}

/// Checks the bytes of a `config.json`: the model must be a GPT-2 of the one kind this program
/// computes. Keys that do not change the forward pass may hold anything; where a key is absent,
/// `GPT2Config`'s default counts.
pub fn parse_config(json: &[u8]) -> Result<Gpt2Config> {
    let parsed =
        json::parse(json).map_err(|e| Error::data(format!("not a GPT-2 config.json: {e}")))?;
    let Value::Object(keys) = parsed else {
        return Err(Error::data("not a GPT-2 config.json: expected an object"));
    };
    let keys = Keys(keys);
    keys.check_function()?;
    let config = Gpt2Config {
        vocab_size: keys.get("vocab_size")?.unwrap_or(50257),
        n_positions: keys.get("n_positions")?.unwrap_or(1024),
        n_embd: keys.get("n_embd")?.unwrap_or(768),
        n_layer: keys.get("n_layer")?.unwrap_or(12),
        n_head: keys.get("n_head")?.unwrap_or(12),
        n_inner: keys.get("n_inner")?,
        layer_norm_epsilon: keys.get("layer_norm_epsilon")?.unwrap_or(1e-5),
        // It says how weights began, and of stored ones nothing.
        initializer_range: keys
            .0
            .get("initializer_range")
            .and_then(Value::as_f64)
            .filter(|range| *range >= 0.0)
            .unwrap_or(0.02),
        parts: Parts::default(),
    };
    config.validate().map_err(|e| Error::data(e.to_string()))?;
    Ok(config)
}

/// Whether a `config.json` says that the head is a matrix of its own.
pub(super) fn says_untied(path: &Path) -> Result<bool> {
    let config = json::parse(&read_json_bytes(path)?).unwrap_or_default();
    Ok(config["tie_word_embeddings"] == Value::Bool(false))
}

/// The keys of a `config.json`.
struct Keys(Map<String, Value>);

impl Keys {
    /// What a key says, by either of its names.
    fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let alias = ALIASES.iter().find(|(name, _)| *name == key).map(|(_, alias)| *alias);
        let said = |name: &&str| self.0.get(*name).is_some_and(|v| !v.is_null());
        let Some(name) = alias.into_iter().chain([key]).find(said) else { return Ok(None) };
        let value = self.0[name].clone();
        serde_json::from_value(value.clone())
            .map(Some)
            .map_err(|e| Error::data(format!("not a GPT-2 config.json: {name} = {value}: {e}")))
    }

    /// Errs with the name of the first key by which the model is another function than the one
    /// that is computed here.
    fn check_function(&self) -> Result<()> {
        let expect = |key: &str, expected: &str, found: &dyn std::fmt::Display| {
            Err(Error::data(format!(
                "{key} must be {expected}, found {found}; other models are not supported"
            )))
        };
        // Files of before there was a model_type name the class alone.
        let class = self.0.get("architectures").and_then(|a| a[0].as_str()).unwrap_or_default();
        match self.get::<Value>("model_type")?.as_ref().map(|t| t.as_str().unwrap_or_default()) {
            Some("gpt2") => {}
            None if class.starts_with("GPT2") => {}
            other => {
                return expect("model_type", "\"gpt2\"", &format!("{:?}", other.unwrap_or("none")));
            }
        }
        let activation: Option<String> = self.get("activation_function")?;
        if let Some(found) = activation.filter(|name| !TANH_GELU.contains(&name.as_str())) {
            let names = TANH_GELU.map(|name| format!("\"{name}\"")).join(" or ");
            return expect("activation_function", &names, &format!("{found:?}"));
        }
        // `reorder_and_upcast_attn` is the same function in f32; whether a head that is said to be
        // its own is the embedding all the same shows in the weights.
        for (key, wanted) in [
            ("scale_attn_weights", true),
            ("scale_attn_by_inverse_layer_idx", false),
            ("add_cross_attention", false),
        ] {
            if let Some(found) = self.get::<bool>(key)?.filter(|found| *found != wanted) {
                return expect(key, &wanted.to_string(), &found);
            }
        }
        for key in ["quantization_config", "pruned_heads"] {
            let none = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
            let empty = |v: &Value| none(v) || v.as_object().is_some_and(|o| o.values().all(none));
            if let Some(found) = self.0.get(key).filter(|v| !empty(v)) {
                return expect(key, "absent", found);
            }
        }
        Ok(())
    }
}
