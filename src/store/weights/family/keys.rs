//! The keys of a `config.json`, read strictly where they change the mathematics.

use crate::error::{Error, Result};
use crate::ops::activation::Activation;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Names of the tanh form of GELU.
const TANH_GELU: [&str; 5] =
    ["gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"];

/// The keys of a `config.json`, or of a table in it.
#[derive(Debug, Clone)]
pub(in crate::store::weights) struct Keys(pub Map<String, Value>);

impl Keys {
    /// What a key says; null counts as absent.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        self.first(&[name])
    }

    /// What the first of several names says that is there.
    pub fn first<T: DeserializeOwned>(&self, names: &[&str]) -> Result<Option<T>> {
        let Some(name) = names.iter().find(|name| self.has(name)) else { return Ok(None) };
        let value = self.0[*name].clone();
        serde_json::from_value(value.clone())
            .map(Some)
            .map_err(|e| Error::data(format!("config.json: {name} = {value}: {e}")))
    }

    /// Whether a key is there and not null.
    pub fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|v| !v.is_null())
    }

    /// The table under a key; empty where there is none.
    pub fn table(&self, name: &str) -> Result<Self> {
        Ok(Self(self.get(name)?.unwrap_or_default()))
    }

    /// The first of `architectures`.
    pub fn class(&self) -> &str {
        self.0.get("architectures").and_then(|a| a[0].as_str()).unwrap_or_default()
    }

    /// `initializer_range`: how weights began, which says nothing of stored ones.
    pub fn initializer_range(&self) -> f64 {
        let said = self.0.get("initializer_range").and_then(Value::as_f64);
        said.filter(|range| *range >= 0.0).unwrap_or(0.02)
    }

    /// The activation under a key.
    pub fn activation(&self, name: &str, default: Activation) -> Result<Activation> {
        let Some(said) = self.get::<String>(name)? else { return Ok(default) };
        match said.as_str() {
            "gelu" | "gelu_python" => Ok(Activation::Gelu),
            "relu" => Ok(Activation::Relu),
            "silu" | "swish" => Ok(Activation::Silu),
            tanh if TANH_GELU.contains(&tanh) => Ok(Activation::GeluTanh),
            other => Err(Error::data(format!(
                "{name} must be gelu, relu, silu or a tanh form of gelu such as gelu_new, found {other:?}; other models \
                 are not supported"
            ))),
        }
    }

    /// Errs with the name of a key that asks for something else than a plain decoder.
    pub fn refuse_what_is_not_here(&self) -> Result<()> {
        if let Some(found) = self.get::<bool>("add_cross_attention")?.filter(|found| *found) {
            return Err(self.unexpected("add_cross_attention", "false", &found));
        }
        for key in ["quantization_config", "pruned_heads"] {
            let none = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
            let empty = |v: &Value| none(v) || v.as_object().is_some_and(|o| o.values().all(none));
            if let Some(found) = self.0.get(key).filter(|v| !empty(v)) {
                return Err(self.unexpected(key, "absent", found));
            }
        }
        Ok(())
    }

    /// That a key makes another model of it.
    pub fn unexpected(&self, key: &str, expected: &str, found: &dyn std::fmt::Display) -> Error {
        Error::data(format!(
            "{key} must be {expected}, found {found}; other models are not supported"
        ))
    }
}

/// transformers' name of an activation.
pub(super) fn name_of(activation: Activation) -> &'static str {
    match activation {
        Activation::GeluTanh => "gelu_new",
        Activation::Gelu => "gelu",
        Activation::Relu => "relu",
        Activation::Silu => "silu",
    }
}
