//! A model is read from a checkpoint only if its files are as the manifest says.

use super::rotation::{is_checkpoint, list_in};
use super::{FIRST_MOMENT, FIRST_MOMENT_1, Manifest, SECOND_MOMENT, SECOND_MOMENT_1, required};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::store::weights::WEIGHTS_FILE;
use std::path::{Path, PathBuf};

/// What a model does not need of a checkpoint.
const MOMENTS: [&str; 4] = [FIRST_MOMENT, SECOND_MOMENT, FIRST_MOMENT_1, SECOND_MOMENT_1];

/// Compares the model in `dir` with the manifest beside it: its small files, and its weights if they
/// are to be read. A folder that is no checkpoint may do without a manifest, or have another
/// program's.
pub(crate) fn verify_model(dir: &Path, with_weights: bool) -> Result<()> {
    compare(dir, with_weights).map_err(|e| match e.kind() {
        ErrorKind::Data => e.followed_by(&way_out(dir)),
        _ => e,
    })
}

fn compare(dir: &Path, with_weights: bool) -> Result<()> {
    let in_run = is_checkpoint(dir);
    if !in_run && Manifest::is_of_another(dir) {
        return Ok(());
    }
    let manifest = Manifest::read(dir)?;
    let required = if in_run { &required(&manifest)[..] } else { &[] };
    manifest.verify(dir, required, |name| {
        !MOMENTS.contains(&name) && (with_weights || name != WEIGHTS_FILE)
    })
}

/// What to do where the model in `dir` is damaged.
fn way_out(dir: &Path) -> String {
    let in_run = is_checkpoint(dir);
    let beside = match (in_run, dir.parent()) {
        (true, Some(checkpoints)) => list_in(checkpoints),
        (false, Some(run)) => super::list(run),
        (_, None) => Ok(Vec::new()),
    };
    let other = beside.unwrap_or_default().into_iter().rev().find(|(_, other)| other != dir);
    let other = other.map(|(_, other)| format!(", or use {}", other.display())).unwrap_or_default();
    let changed = if in_run { "" } else { "; if it was changed on purpose, remove manifest.json" };
    format!("; restore it from a copy{other}{changed}")
}

/// The newest checkpoint in the folder `checkpoints` whose model is as its manifest says, with its
/// step. Later ones that are not are named in a warning; if none is, the newest is the error.
pub(crate) fn newest_sound(
    checkpoints: &Path,
    with_weights: bool,
    progress: &dyn Progress,
) -> Result<(u64, PathBuf)> {
    let mut damaged: Vec<Error> = Vec::new();
    for (step, dir) in list_in(checkpoints)?.into_iter().rev() {
        match compare(&dir, with_weights) {
            Ok(()) => {
                for damage in damaged {
                    let used = dir.display();
                    progress.note(&format!("warning: {damage}; the one before is used: {used}"));
                }
                return Ok((step, dir));
            }
            Err(e) if e.kind() == ErrorKind::Data => damaged.push(e),
            Err(e) => return Err(e),
        }
    }
    let none = format!("{} has no good checkpoint", checkpoints.display());
    Err(match damaged.into_iter().next() {
        Some(newest) => newest.context(format!("{none} left; restore one from a copy. The newest")),
        None => Error::data(none),
    })
}
