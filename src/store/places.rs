//! Folders that a run file names, found again from another working directory, or after the run's
//! folder moved together with them.
//!
//! A name that the file writes means, in this order, what it means from the working directory, from
//! the file's own folder, and from each folder above. Of a run with a checkpoint the one counts
//! whose content is the checkpoint's, so that a name is a hint; then an absolute path is tried by
//! its last parts, too.

use crate::config::{Origin, Resolved, RunFile};
use crate::data::prepare::TRAIN;
use crate::data::tokens::TokenFile;
use crate::error::Result;
use crate::files::hex;
use crate::store::checkpoint::{known, list};
use crate::store::names::{Kind, ModelRef};
use crate::store::weights::weights_hash;
use std::path::{Path, PathBuf};

/// Replaces what `file` names and the working directory does not have by what is found around the
/// file; each replacement is a note of `resolved`.
pub fn find_again(resolved: &mut Resolved, file: &RunFile) -> Result<()> {
    let Some(home) = file.folder() else { return Ok(()) };
    let known = known(&home)?;
    let known = known.as_ref();
    let begun = known.is_some();
    find(resolved, &home, "data.dir", begun, |place| {
        let Ok(tokens) = TokenFile::open(&place.join(TRAIN)) else { return false };
        known.is_none_or(|k| hex(&tokens.header().content_hash) == k.inputs.data_hash)
    });
    let model = |kind| {
        move |place: &Path| {
            let meant = place.to_str().map(|text| ModelRef::parse(text, kind));
            let Some(Ok(ModelRef::Folder { dir, .. })) = meant else { return false };
            let hash = known.and_then(|k| k.inputs.teacher_hash.as_ref());
            hash.is_none_or(|hash| weights_hash(&dir).is_ok_and(|found| found == *hash))
        }
    };
    // What came from the Hub is no folder, and a student of which there is a checkpoint has its
    // weights there.
    if known.is_none_or(|known| known.inputs.teacher_revision.is_none()) {
        find(resolved, &home, "teacher", begun, model(Kind::Teacher));
    }
    if !begun {
        find(resolved, &home, "student", begun, model(Kind::Student));
    }
    Ok(())
}

/// Puts what `key` names in order; `begun` if `fits` knows the content.
fn find(
    resolved: &mut Resolved,
    home: &Path,
    key: &'static str,
    begun: bool,
    fits: impl Fn(&Path) -> bool,
) {
    let Some(value) = resolved.value(key) else { return };
    let (Some(text), Origin::File { .. }) =
        (value.value.as_ref().and_then(|v| v.as_str()), &value.origin)
    else {
        return;
    };
    let here = Path::new(text);
    let names_a_preset = matches!(ModelRef::named(text, Kind::Any), Ok(ModelRef::Preset(_)));
    if !is_there(here) && key != "data.dir" && names_a_preset {
        return;
    }
    let mut places = around(home, here, begun);
    if is_there(here) {
        // What the name means from here is another thing only if it has other content, which is not
        // looked at where all names lead to the same folder.
        let real = here.canonicalize().ok();
        places.retain(|place| place.canonicalize().ok() != real);
        if !begun || places.is_empty() {
            return;
        }
        places.insert(0, here.to_path_buf());
    }
    let Some(found) = places.into_iter().find(|place| fits(place)) else { return };
    if found != here {
        let note = format!("{}: {key} = {text:?} is found at {}", value.origin, found.display());
        resolved.found_at(key, &found, note);
    }
}

/// Where `named` may lie, seen from `home` and the folders above; what exists, nearest first. An
/// absolute path counts by its last parts, the more the better, if `moved`.
fn around(home: &Path, named: &Path, moved: bool) -> Vec<PathBuf> {
    let absolute = named.is_absolute();
    let parts: Vec<_> = named.components().skip(usize::from(absolute)).collect();
    let skips = match (absolute, moved) {
        (false, _) => 1,
        (true, true) => parts.len(),
        (true, false) => 0,
    };
    let mut found: Vec<PathBuf> = Vec::new();
    for skipped in 0..skips {
        let tail: PathBuf = parts[skipped..].iter().collect();
        for place in home.ancestors().map(|folder| folder.join(&tail)) {
            if is_there(&place) && !found.contains(&place) {
                found.push(place);
            }
        }
    }
    found
}

/// Whether a path means something; `RUN/best` and `RUN/last` are derived.
fn is_there(path: &Path) -> bool {
    let derived = path.ends_with("best") || path.ends_with("last");
    path.exists()
        || derived && path.parent().is_some_and(|run| list(run).is_ok_and(|l| !l.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_from_its_file_upwards() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for folder in ["p/runs/r", "p/data/d", "d", "p/runs/r/d"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        let from = |named: &Path, moved| around(&at("p/runs/r"), named, moved);
        assert_eq!(from(Path::new("data/d"), false), [at("p/data/d")]);
        assert_eq!(from(Path::new("d"), false), [at("p/runs/r/d"), at("d")]);
        assert_eq!(from(Path::new("nowhere"), true), [] as [PathBuf; 0]);
        let old = Path::new("/nonexistent/p/data/d");
        assert_eq!(from(old, false), [] as [PathBuf; 0], "its content is not known");
        assert_eq!(from(old, true), [at("p/data/d"), at("p/runs/r/d"), at("d")]);
    }
}
