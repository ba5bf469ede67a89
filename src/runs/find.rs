//! Where run folders are.

use crate::error::{Error, Result};
use crate::files::{children, name_of};
use crate::store::checkpoint::{latest, list_in};
use crate::train::run::{CONFIG_FILE, METRICS_FILE, MODEL_FOLDER};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Folders below one that is asked: `runs/COMPARISON/runs/ARM/seed-1` are five.
const DEPTH: u32 = 6;

/// Where to look if nobody says: the working folder itself, if it is a run, and its `runs`.
pub fn defaults() -> Vec<PathBuf> {
    let here = Path::new(".");
    let runs = Path::new("runs");
    let here = is_run(here).then(|| here.to_path_buf());
    here.into_iter().chain(runs.is_dir().then(|| runs.to_path_buf())).collect()
}

/// Whether a folder is that of a run, by the names in it. A `config.toml` alone may be anybody's.
pub fn is_run(dir: &Path) -> bool {
    let is_file = |name: &str| dir.join(name).is_file();
    is_file(METRICS_FILE)
        || is_file(CONFIG_FILE) && (is_file(".lock") || dir.join(MODEL_FOLDER).is_dir())
        || latest(dir).is_ok_and(|found| found.is_some())
}

/// The run folders in `folders`, each once; an error where one of these is no folder.
pub fn find(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    for folder in folders {
        if !folder.is_dir() {
            return Err(Error::data(format!(
                "{}: expected a run folder or a folder that holds some, found {}",
                folder.display(),
                if folder.exists() { "a file" } else { "nothing" }
            )));
        }
        descend(folder, DEPTH, &mut seen, &mut found)?;
    }
    Ok(found)
}

fn descend(
    dir: &Path,
    depth: u32,
    seen: &mut BTreeSet<PathBuf>,
    found: &mut Vec<PathBuf>,
) -> Result<()> {
    crate::interrupt::check()?;
    // Links may lead in circles, and folders be named twice.
    let Ok(place) = dir.canonicalize() else { return Ok(()) };
    if !seen.insert(place) {
        return Ok(());
    }
    if is_run(dir) {
        found.push(dir.to_path_buf());
        return Ok(());
    }
    // Checkpoints and models are no place for runs, whoever they belong to.
    if depth == 0 || list_in(dir).is_ok_and(|steps| !steps.is_empty()) {
        return Ok(());
    }
    // What may not be read holds nothing that could be shown.
    for path in children(dir).unwrap_or_default() {
        if path.is_dir() && !name_of(&path).starts_with('.') {
            descend(&path, depth - 1, seen, found)?;
        }
    }
    Ok(())
}
