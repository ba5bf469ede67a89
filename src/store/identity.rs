//! What a stored model is, whatever it is called and wherever it lies.

use super::names::ModelFolder;
use super::weights::weights_hash;
use crate::error::Result;

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
    /// That of the model in a folder; reads its weights once. Those of a GGUF file are the file's
    /// bytes: the same model in another file is another.
    pub fn of(folder: &ModelFolder) -> Result<Self> {
        let function = Some(folder.config()?.function());
        Ok(Self { weights: weights_hash(folder.weights())?, function })
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

    /// Whether the model in a folder is this one.
    pub(crate) fn is_in(&self, folder: &ModelFolder) -> bool {
        Self::of(folder).is_ok_and(|found| found.differences(self).is_empty())
    }
}
