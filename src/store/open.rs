//! The two doors: [`open`] turns a name into a model, [`shape`] into a shape, by the same rules and
//! without weights.

use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::model::{Gpt2, Gpt2Config};
use crate::store::hub::{What, lacking_tokenizer};
use crate::store::names::{Kind, ModelFolder, ModelRef, Where, find, locate};
use crate::store::weights::{INDEX_FILE, WEIGHTS_FILE};
use candle_core::Device;

/// A model, ready to be used, and where it lies.
#[derive(Debug)]
pub struct OpenModel {
    /// Shape and weights.
    pub model: Gpt2,
    /// The tokenizer that lies beside the weights, if any.
    pub tokenizer: Option<Tokenizer>,
    /// The folder, its origin and commit; its hash for the asking.
    pub folder: ModelFolder,
}

impl OpenModel {
    /// The tokenizer, or an error that says where it should be.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            let dir = &self.folder.dir;
            lacking_tokenizer(dir).unwrap_or_else(|| {
                Error::data(format!(
                    "{}: the model has no tokenizer beside it; expected tokenizer.json, or vocab.json and merges.txt",
                    dir.display()
                ))
            })
        })
    }
}

/// Opens a run folder, a checkpoint, a Hugging Face folder, a GGUF file, a preset or a Hub id on
/// `device`; downloads if need be.
pub fn open(name: &str, kind: Kind, device: &Device, at: Where<'_>) -> Result<OpenModel> {
    let folder = find(name, kind, at)?;
    let model = folder.load(device)?;
    let tokenizer = folder.tokenizer()?;
    Ok(OpenModel { model, tokenizer, folder })
}

/// The shape of the model that [`open`] would open, without its weights, and of presets that have
/// none. A folder's config says it, a preset states it; of a Hub id the config alone is asked for,
/// offline of the cache.
pub fn shape(name: &str, kind: Kind, at: Where<'_>) -> Result<Gpt2Config> {
    shape_of(ModelRef::parse(name, kind)?, name, at)
}

/// The same of what `name` was found to mean.
pub(crate) fn shape_of(meant: ModelRef, name: &str, at: Where<'_>) -> Result<Gpt2Config> {
    match meant {
        ModelRef::Preset(preset) => Ok(preset.shape.clone()),
        meant => {
            let folder = locate(meant, name, None, What::ConfigOnly, at)?;
            // Names and shapes of tensors that are here are read with the config.
            match [WEIGHTS_FILE, INDEX_FILE].iter().any(|file| folder.dir.join(file).is_file()) {
                true => folder.checked_config(),
                false => folder.config(),
            }
        }
    }
}
