//! The model that a verb is about, and where its tensors live.

use super::Printer;
use crate::compare::quickstart::{TEACHER, trained_teacher};
use crate::config::DeviceSpec;
use crate::error::Result;
use crate::store::hub::HubOptions;
use crate::store::{Kind, OpenModel, Where, open};
use crate::train::session::device;
use std::borrow::Cow;
use std::path::Path;

/// `MODEL` and `--device`.
#[derive(Debug, Clone, clap::Args)]
pub struct ModelArgs {
    /// Run folder, checkpoint, Hugging Face folder, preset or Hub id
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Where tensors live: auto, cpu, cuda or cuda:INDEX
    #[arg(
        long,
        env = "ESLM_KD_DEVICE",
        hide_env_values = true,
        default_value = "auto",
        value_name = "DEVICE",
        display_order = 50
    )]
    pub device: DeviceSpec,
}

impl ModelArgs {
    /// The model, opened.
    pub fn open(&self, ui: &Printer) -> Result<OpenModel> {
        self.open_also(&self.model, ui)
    }

    /// Another model, beside it.
    pub fn open_also(&self, name: &str, ui: &Printer) -> Result<OpenModel> {
        let hub = HubOptions::from_env(ui.offline());
        let at = Where { hub: &hub, progress: ui };
        open(&kept(name), Kind::Any, &device(self.device)?, at)
    }
}

/// What a model's name means here: the quickstart's teacher is the one that was trained on this
/// machine, if it was.
pub fn kept(name: &str) -> Cow<'_, str> {
    let is_ours = name == TEACHER && !Path::new(name).exists();
    match is_ours.then(trained_teacher).flatten() {
        Some(place) => place.to_string_lossy().into_owned().into(),
        None => name.into(),
    }
}
