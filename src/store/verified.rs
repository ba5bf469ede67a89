//! The model that a name means is read only from files that are as they were written.

use crate::error::Result;
use crate::progress::Progress;
use crate::store::checkpoint::{newest_sound, verify_model};
use crate::store::hub::What;
use crate::store::names::{ModelRef, checkpoint_of};

/// Why a folder is the one that a name means, which says what becomes of a damaged checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    /// It was named, or is the only one: damage is an error.
    Itself,
    /// The newest of a `checkpoints` folder: where it is damaged, the one before is taken.
    Newest,
    /// The same of a run that has no final model yet, which is noted.
    NewestOfRun,
    /// It is verified elsewhere.
    Verified,
}

impl ModelRef {
    /// This, with the files of a checkpoint compared with its manifest, those of `what` at
    /// least: damage is an error, or a note where the checkpoint before is taken. `name` is what
    /// stands for the model.
    pub(crate) fn verified(self, name: &str, what: What, progress: &dyn Progress) -> Result<Self> {
        let Self::Folder { dir, origin, chosen } = self else { return Ok(self) };
        let with_weights = what == What::Model;
        let (dir, origin) = match (chosen, dir.parent()) {
            (Chosen::Newest | Chosen::NewestOfRun, Some(folder)) => {
                let (step, dir) = newest_sound(folder, with_weights, progress)?;
                (dir, checkpoint_of(step, name))
            }
            (Chosen::Verified, _) => (dir, origin),
            _ => {
                verify_model(&dir, with_weights)?;
                (dir, origin)
            }
        };
        Ok(Self::Folder { dir, origin, chosen: Chosen::Verified })
    }
}
