//! What a stored model is, whatever it is called and wherever it lies.

use super::weights::{read_config, weights_hash};
use crate::error::Result;
use std::path::Path;

/// By what a model is known again: its weights, and what of its `config.json` no weight shows. Where
/// an earlier version of this program noted the weights alone, these alone are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// SHA-256 of the weights, in hexadecimal ([`weights_hash`]).
    pub weights: String,
    /// The constants of its function
    /// ([`Gpt2Config::function`](crate::model::Gpt2Config::function)); None where they were not
    /// noted.
    pub function: Option<String>,
}

impl Identity {
    /// That of the model in `dir`; reads its weights once.
    pub fn of(dir: &Path) -> Result<Self> {
        let function = Some(read_config(&dir.join("config.json"))?.function());
        Ok(Self { weights: weights_hash(dir)?, function })
    }

    /// From what a manifest notes.
    pub(crate) fn noted(weights: Option<&String>, function: Option<&String>) -> Option<Self> {
        Some(Self { weights: weights?.clone(), function: function.cloned() })
    }

    /// What differs from what was noted `before`, in words; empty if it is the same model.
    pub fn differences(&self, before: &Self) -> Vec<String> {
        let pairs = [
            ("weights (SHA-256)", Some(&before.weights), Some(&self.weights)),
            ("config.json", before.function.as_ref(), self.function.as_ref()),
        ];
        let known = pairs.into_iter().filter_map(|(what, was, is)| Some((what, was?, is?)));
        known
            .filter(|(_, was, is)| was != is)
            .map(|(what, was, is)| format!("{what}: {was} before, {is} now"))
            .collect()
    }

    /// Whether the model in `dir` is this one.
    pub(crate) fn is_in(&self, dir: &Path) -> bool {
        Self::of(dir).is_ok_and(|found| found.differences(self).is_empty())
    }
}
