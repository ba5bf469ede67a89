//! Folders that a run file names, found again from another working directory, or after the run's
//! folder moved together with them.
//!
//! A name that the file writes means, in this order, what it means from the working directory, from
//! the file's own folder, and from each folder above. Of a run with a checkpoint the one counts
//! whose content is the checkpoint's, so that a name is a hint; then an absolute path is tried by
//! its last parts, too. Where a checkpoint of an earlier version does not know the content, a name
//! that could mean several things is asked for.

use crate::config::{Origin, Resolved, RunFile};
use crate::data::prepare::{TRAIN, VALID};
use crate::data::tokens::TokenFile;
use crate::error::{Error, Result};
use crate::files::hex;
use crate::signal::{Stored, is_signal};
use crate::store::checkpoint::{known, list};
use crate::store::identity::Identity;
use crate::store::names::{Kind, ModelFolder, ModelRef};
use std::path::{Path, PathBuf};

/// The key of a stored signal.
const SIGNAL: &str = "data.signal";

/// Replaces what `file` names and the working directory does not have by what is found around the
/// file; each replacement is a note of `resolved`. The content that counts is that of the run
/// folder which is `resumed`, or else of the run that the file describes.
pub fn find_again(resolved: &mut Resolved, file: &RunFile, resumed: Option<&Path>) -> Result<()> {
    let Some(home) = file.folder() else { return Ok(()) };
    // A folder or a file named by a link stands where it leads to, too.
    let of_file = Path::new(&file.name).canonicalize().ok();
    let mut homes = vec![home];
    homes.extend(of_file.as_deref().and_then(Path::parent).map(Path::to_path_buf));
    let known = match resumed {
        Some(run) => known(run)?,
        None => homes.iter().map(|home| known(home)).find_map(Result::transpose).transpose()?,
    };
    homes.extend(resumed.map(Path::to_path_buf));
    homes.extend(resumed.and_then(|run| run.canonicalize().ok()));
    let Some(known) = known else {
        return ["data.dir", SIGNAL, "teacher", "student"]
            .into_iter()
            .try_for_each(|key| find(resolved, &homes, key, &Content::New, false));
    };
    let (data, models) = (&known.inputs, &known.inputs.models);
    let data = Content::Data(&data.data_hash, data.valid_hash.as_ref());
    let is_resumed = resumed.is_some();
    find(resolved, &homes, "data.dir", &data, is_resumed)?;
    if let Some(hash) = &models.signal_hash {
        find(resolved, &homes, SIGNAL, &Content::Signal(hash), is_resumed)?;
    }
    let model = |noted: Option<Identity>| noted.map_or(Content::NotNoted, Content::Model);
    // What came from the Hub is no folder, and what is not asked is noted nowhere.
    if models.teacher_revision.is_none() && resolved.plan.live_teacher().is_some() {
        find(resolved, &homes, "teacher", &model(models.teacher()), is_resumed)?;
    }
    // A run that goes on has its student in its checkpoint.
    let has_student = resumed.is_some() && known.plan.student == resolved.plan.student;
    if models.student_revision.is_none() && !has_student {
        find(resolved, &homes, "student", &model(models.student()), is_resumed)?;
    }
    Ok(())
}

/// What is known of what a name stands for.
enum Content<'a> {
    /// There is no run yet.
    New,
    /// There is one, of an earlier version, which did not note it.
    NotNoted,
    /// Training and validation tokens.
    Data(&'a str, Option<&'a String>),
    /// A signal's hash.
    Signal(&'a str),
    Model(Identity),
}

impl Content<'_> {
    fn is_in(&self, place: &Path, kind: Kind) -> bool {
        match self {
            Self::New | Self::NotNoted => true,
            Self::Data(train, valid) => content_of_data(place)
                .is_some_and(|found| found.0 == *train && valid.is_none_or(|v| found.1 == *v)),
            Self::Signal(hash) => Stored::open(place).is_ok_and(|found| found.hash() == *hash),
            Self::Model(identity) => {
                model_in(place, kind).is_some_and(|found| identity.is_in(&found))
            }
        }
    }

    /// Whether two places that it is in may differ nonetheless.
    fn is_partly_noted(&self) -> bool {
        match self {
            Self::New => false,
            Self::NotNoted => true,
            Self::Data(_, valid) => valid.is_none(),
            Self::Signal(_) => false,
            Self::Model(identity) => identity.function.is_none(),
        }
    }
}

/// Hashes of the training and validation tokens in a data folder.
fn content_of_data(place: &Path) -> Option<(String, String)> {
    let hash = |name| {
        TokenFile::open(&place.join(name)).map(|tokens| hex(&tokens.header().content_hash)).ok()
    };
    Some((hash(TRAIN)?, hash(VALID).unwrap_or_default()))
}

/// Whether two places hold the same data, or the same model.
fn are_same(key: &str, one: &Path, other: &Path, kind: Kind) -> bool {
    if key == "data.dir" {
        return content_of_data(one) == content_of_data(other);
    }
    if key == SIGNAL {
        let hash = |place| Stored::open(place).map(|found| found.hash().to_string()).ok();
        return hash(one) == hash(other);
    }
    let identity = |place| model_in(place, kind).and_then(|found| Identity::of(&found).ok());
    identity(one) == identity(other)
}

/// The model that a path stands for.
fn model_in(place: &Path, kind: Kind) -> Option<ModelFolder> {
    ModelRef::parse(place.to_str()?, kind).ok()?.local()
}

/// Puts what `key` names in order, seen from `homes`.
fn find(
    resolved: &mut Resolved,
    homes: &[PathBuf],
    key: &'static str,
    content: &Content,
    is_resumed: bool,
) -> Result<()> {
    let Some(value) = resolved.value(key) else { return Ok(()) };
    let (Some(text), Origin::File { .. }) =
        (value.value.as_ref().and_then(|v| v.as_str()), &value.origin)
    else {
        return Ok(());
    };
    let here = Path::new(text);
    let kind = if key == "student" { Kind::Student } else { Kind::Teacher };
    let names_a_preset =
        !key.starts_with("data.") && matches!(ModelRef::named(text, kind), Ok(ModelRef::Preset(_)));
    let was_stored = matches!(content, Content::Model(_));
    if names_a_preset && !was_stored && (!is_there(here) || matches!(content, Content::NotNoted)) {
        if is_there(here) {
            let note = format!(
                "warning: {}: {key} = {text:?} is the folder of that name here; the run there had no stored model",
                value.origin
            );
            resolved.note(note);
        }
        return Ok(());
    }
    let is_known = matches!(content, Content::Data(..) | Content::Signal(_) | Content::Model(_));
    let mut places: Vec<PathBuf> = Vec::new();
    for place in homes.iter().flat_map(|home| around(home, here, is_known)) {
        let is_one = match key {
            "data.dir" => place.join(TRAIN).is_file(),
            SIGNAL => is_signal(&place),
            _ => model_in(&place, kind).is_some(),
        };
        if is_one && !places.contains(&place) {
            places.push(place);
        }
    }
    if is_there(here) {
        // What the name means from here is another thing only if it leads elsewhere.
        let real = here.canonicalize().ok();
        places.retain(|place| place.canonicalize().ok() != real);
        if matches!(content, Content::New) {
            return Ok(());
        }
        places.insert(0, here.to_path_buf());
    }
    // A resumed run compares what it reads again, and says more.
    if let ([_], true) = (&*places, is_there(here) && is_resumed) {
        return Ok(());
    }
    let mut fitting: Vec<PathBuf> = Vec::new();
    for place in places {
        // All of them only where they need to be told apart.
        if (fitting.is_empty() || content.is_partly_noted()) && content.is_in(&place, kind) {
            fitting.push(place);
        }
    }
    let Some(found) = fitting.first() else {
        if is_there(here) {
            let note = format!(
                "warning: {}: {key} = {text:?} is not what the run there read, which is not found",
                value.origin
            );
            resolved.note(note);
        }
        return Ok(());
    };
    if let Some(other) = fitting[1..].iter().find(|other| !are_same(key, found, other, kind)) {
        let flag = match key {
            "data.dir" => "data",
            SIGNAL => "signal",
            _ => key,
        };
        return Err(Error::usage(format!(
            "{}: {key} = {text:?} is {} or {}, which differ, and the checkpoints there, of an earlier version, do not say \
             which it was; name it with --{flag}",
            value.origin,
            found.display(),
            other.display()
        )));
    }
    if found != here {
        let note = format!("{}: {key} = {text:?} is found at {}", value.origin, found.display());
        resolved.found_at(key, found, note);
    }
    Ok(())
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
