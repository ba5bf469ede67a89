//! What to say of a path that is not there, and what is there of a similar name.

use super::{children, name_of};
use crate::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// How similar two names are, by Jaro and Winkler, of which one may be meant by the other.
const ALIKE: f64 = 0.8;

/// Most names that a message lists.
const MOST_NAMES: usize = 4;

/// Whether a name of the form `a/b` is a path of this machine rather than a Hub id: its parent
/// folder is here, in whatever letters, or it is where runs go.
pub fn is_of_this_machine(name: &str) -> bool {
    let parent = Path::new(name).parent().filter(|parent| !parent.as_os_str().is_empty());
    // `Runs/a` where there is `runs`: a slip, or the same folder on some file systems.
    let slip = |parent: &Path| {
        let here = children(Path::new(".")).unwrap_or_default();
        here.iter().any(|p| p.is_dir() && name_of(p).eq_ignore_ascii_case(&name_of(parent)))
    };
    parent.is_some_and(|parent| {
        parent.is_dir()
            || name_of(parent).eq_ignore_ascii_case("runs")
            || parent.components().count() == 1 && slip(parent)
    })
}

/// The first of `paths`, for a message.
pub fn shortlist(paths: &[PathBuf]) -> String {
    let more = if paths.len() > MOST_NAMES { ", ..." } else { "" };
    let shown: Vec<String> =
        paths.iter().take(MOST_NAMES).map(|path| path.display().to_string()).collect();
    shown.join(", ") + more
}

/// What there is where a path that is missing would be.
struct Beside {
    /// The deepest folder of the path that exists.
    folder: PathBuf,
    /// What is missing of it.
    missing: PathBuf,
    /// Names in that folder, the most similar first, each with how similar it is.
    names: Vec<(f64, String)>,
}

impl Beside {
    fn of(path: &Path) -> Self {
        let here = Path::new(".");
        let parent = |path: &Path| match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => here.to_path_buf(),
        };
        let (mut folder, mut missing) = (parent(path), path.to_path_buf());
        while !folder.is_dir() && folder != here && folder.parent().is_some() {
            missing = folder.clone();
            folder = parent(&folder);
        }
        let wanted = name_of(&missing);
        let wanted = Path::new(&wanted);
        // What two names say, without the extension that they share.
        let likeness = |name: &str| {
            let (name, wanted) = match Path::new(name).extension() == wanted.extension() {
                true => (Path::new(name).file_stem(), wanted.file_stem()),
                false => (Some(name.as_ref()), Some(wanted.as_os_str())),
            };
            let text =
                |name: Option<&OsStr>| name.unwrap_or_default().to_string_lossy().into_owned();
            let (name, wanted) = (text(name), text(wanted));
            match name.eq_ignore_ascii_case(&wanted) {
                true => 1.0,
                false => strsim::jaro_winkler(&name, &wanted),
            }
        };
        let mut names: Vec<(f64, String)> = children(&folder)
            .unwrap_or_default()
            .iter()
            .map(|child| name_of(child))
            .filter(|name| !name.starts_with('.'))
            .map(|name| (likeness(&name), name))
            .collect();
        names.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        Self { folder, missing, names }
    }
}

/// What is there under a name similar to that of `path`, which is not, and which `accepts` takes.
pub fn similar(path: &Path, accepts: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let Beside { folder, missing, names } = Beside::of(path);
    // With the rest of the path, where that is right.
    let rest = path.strip_prefix(&missing).unwrap_or(Path::new(""));
    let near = |name: &String| {
        let near = folder.join(name);
        let whole = near.join(rest);
        let near = if rest.components().next().is_some() && whole.exists() { whole } else { near };
        near.strip_prefix(".").map(Path::to_path_buf).unwrap_or(near)
    };
    let alike = names.iter().take_while(|(likeness, _)| *likeness > ALIKE);
    alike.map(|(_, name)| near(name)).find(|path| accepts(path))
}

/// `; did you mean PATH?` of what [`similar`] finds, or nothing.
pub fn did_you_mean(path: &Path, accepts: impl Fn(&Path) -> bool) -> String {
    let near = similar(path, accepts);
    near.map_or_else(String::new, |near| format!("; did you mean {}?", near.display()))
}

/// That nothing is at `text`, and what is there of a similar name.
pub fn no_such_path(text: &str) -> Error {
    let Beside { folder, names, .. } = Beside::of(Path::new(text));
    let says = if let Some(near) = similar(Path::new(text), |_| true) {
        format!("; did you mean {}?", near.display())
    } else if names.is_empty() {
        format!("; {} is empty", folder.display())
    } else {
        let more = if names.len() > MOST_NAMES { ", ..." } else { "" };
        let shown: Vec<&str> =
            names.iter().take(MOST_NAMES).map(|(_, name)| name.as_str()).collect();
        format!("; {} has {}{more}", folder.display(), shown.join(", "))
    };
    Error::data(format!("there is no {text}{says}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_path_is_said_with_what_is_near() {
        let root = tempfile::tempdir().unwrap();
        let said = |path: &str| {
            let error = no_such_path(root.path().join(path).to_str().unwrap());
            assert_eq!(error.exit_code(), 3);
            error.to_string().replace(&root.path().display().to_string(), "T")
        };
        assert_eq!(said("runs/first"), "there is no T/runs/first; T is empty");
        std::fs::create_dir_all(root.path().join("runs/first")).unwrap();
        assert_eq!(said("runs/frist"), "there is no T/runs/frist; did you mean T/runs/first?");
        assert_eq!(said("rnus/first"), "there is no T/rnus/first; did you mean T/runs/first?");
        assert_eq!(said("RUNS/first"), "there is no T/RUNS/first; did you mean T/runs/first?");
        assert_eq!(said("rnus/last"), "there is no T/rnus/last; did you mean T/runs?");
        assert_eq!(said("runs/zebra"), "there is no T/runs/zebra; T/runs has first");
    }
}
