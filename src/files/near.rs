//! What to say of a path that is not there.

use crate::error::Error;
use crate::files::{children, name_of};
use std::path::{Path, PathBuf};

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

/// What is there of a similar name as what is not at `path`, and the folder in which it would be
/// with the names in it, the nearest first.
fn around(path: &Path) -> (Option<PathBuf>, PathBuf, Vec<String>) {
    let here = Path::new(".");
    let parent = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => here.to_path_buf(),
    };
    // The deepest folder that exists, and what is missing of it.
    let (mut folder, mut missing) = (parent(path), path.to_path_buf());
    while !folder.is_dir() && folder != here && folder.parent().is_some() {
        missing = folder.clone();
        folder = parent(&folder);
    }
    let wanted = name_of(&missing);
    let mut names: Vec<(f64, String)> = children(&folder)
        .unwrap_or_default()
        .iter()
        .map(|child| name_of(child))
        .filter(|name| !name.starts_with('.'))
        .map(|name| (strsim::jaro_winkler(&name, &wanted), name))
        .collect();
    names.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    // With the rest of the path, where that is right.
    let rest = path.strip_prefix(&missing).unwrap_or(Path::new(""));
    let near = |(score, name): &(f64, String)| {
        let near =
            (*score > 0.8 || name.eq_ignore_ascii_case(&wanted)).then(|| folder.join(name))?;
        let whole = near.join(rest);
        Some(if rest.components().next().is_some() && whole.exists() { whole } else { near })
    };
    let near = names.first().and_then(near);
    let near = near.map(|near| near.strip_prefix(here).unwrap_or(&near).to_path_buf());
    (near, folder, names.into_iter().map(|(_, name)| name).collect())
}

/// What is there of a similar name, where nothing is at `path`.
pub fn near_path(path: &Path) -> Option<PathBuf> {
    if path.exists() { None } else { around(path).0 }
}

/// `; did you mean data/mine?`, or nothing where nothing is near.
pub fn did_you_mean_path(path: &Path) -> String {
    let near = near_path(path);
    near.map_or_else(String::new, |near| format!("; did you mean {}?", near.display()))
}

/// That nothing is at `text`, and what is there of a similar name.
pub fn no_such_path(text: &str) -> Error {
    let (near, folder, names) = around(Path::new(text));
    let says = if let Some(near) = near {
        format!("; did you mean {}?", near.display())
    } else if names.is_empty() {
        format!("; {} is empty", folder.display())
    } else {
        let more = if names.len() > MOST_NAMES { ", ..." } else { "" };
        let shown: Vec<&str> = names.iter().take(MOST_NAMES).map(String::as_str).collect();
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
        let near = |path: &str| did_you_mean_path(&root.path().join(path));
        assert!(
            near("runs/fist").ends_with("runs/first?") && near("runs/fist").starts_with("; did")
        );
        assert_eq!((near("runs/zebra"), near("runs/first")), (String::new(), String::new()));
    }
}
