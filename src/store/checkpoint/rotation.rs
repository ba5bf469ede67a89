//! The `checkpoints/` folder of a run: who may write to it, what it holds, what goes.

use crate::config::CheckpointPlan;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{children, create_folder, is_bystander, name_of};
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

const FOLDER: &str = "checkpoints";
const PREFIX: &str = "step-";
/// In the name of a checkpoint that is being removed.
const OLD: &str = "old-";
pub(super) const LOCK_FILE: &str = ".lock";

/// The right to write into a run folder: one process at a time. Released when dropped, and by the
/// system when the process dies, however it dies.
#[derive(Debug)]
pub struct RunLock {
    dir: PathBuf,
    /// Whether the folder was made for this lock.
    fresh: bool,
    // The lock lives as long as the open file; None where another process of the run has it.
    _file: Option<File>,
}

impl RunLock {
    /// Takes the lock of `run_dir`, creating the folder if need be; refuses while another process
    /// holds it. What a killed process left unfinished in `checkpoints/` is removed; what was whole
    /// but for its name gets it.
    pub fn acquire(run_dir: &Path) -> Result<Self> {
        let fresh = !run_dir.exists();
        create_folder(run_dir)?;
        let path = run_dir.join(LOCK_FILE);
        let failed = |e| Error::io("lock", &path, e);
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder); // only for the message
                return Err(Error::usage(format!(
                    "run folder {} is in use by another process ({}); wait until it ends, stop it, or choose another \
                     folder",
                    run_dir.display(),
                    if holder.trim().is_empty() { "unknown" } else { holder.trim() }
                )));
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "process {}", std::process::id()))
            .map_err(failed)?;
        let lock = Self { dir: run_dir.to_path_buf(), fresh, _file: Some(file) };
        lock.sweep()?;
        Ok(lock)
    }

    /// For the processes of a run beside the one that writes: they know the folder.
    pub fn beside(run_dir: &Path) -> Self {
        Self { dir: run_dir.to_path_buf(), fresh: false, _file: None }
    }

    /// The run folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Gives up before anything was written: a folder that was made for this lock goes with it.
    pub(crate) fn abandon(self) {
        if self.fresh && names(&self.dir).is_ok_and(|names| names == [LOCK_FILE]) {
            // A link stays, and the folder behind it goes.
            let _ = fs::remove_file(self.dir.join(LOCK_FILE))
                .and_then(|()| fs::remove_dir(fs::canonicalize(&self.dir)?));
        }
    }

    /// Where the checkpoint of `step` stands.
    pub(crate) fn place(&self, step: u64) -> PathBuf {
        self.dir.join(FOLDER).join(format!("{PREFIX}{step:08}"))
    }

    /// Removes all but the newest `plan.keep` checkpoints up to `step` (0 keeps all) and the
    /// `plan.keep_best` best of them. Later ones belong to a future that this run did not come
    /// from, and are not ours to remove.
    pub(super) fn prune(&self, step: u64, plan: &CheckpointPlan) -> Result<()> {
        if plan.keep == 0 {
            return Ok(());
        }
        let ours: Vec<_> = list(&self.dir)?.into_iter().filter(|(s, _)| *s <= step).collect();
        // Ranking reads every state: not for nothing.
        let mut spared = if plan.keep_best > 0 { ranked(&ours) } else { Vec::new() };
        spared.truncate(plan.keep_best);
        let old = ours.iter().rev().skip(plan.keep).map(|(_, path)| path);
        for path in old.filter(|path| !spared.contains(path)) {
            // Renamed first: a crash while deleting must not leave half a checkpoint under its
            // name.
            let gone = set_aside(path, |name, n| format!(".{name}.{OLD}{n}.tmp"))?;
            fs::remove_dir_all(&gone).map_err(|e| Error::io("remove", &gone, e))?;
        }
        Ok(())
    }

    /// Renames a checkpoint so that it no longer counts as one: `damaged-step-N`.
    pub(super) fn condemn(&self, path: &Path) -> Result<PathBuf> {
        set_aside(path, |name, n| {
            if n == 0 { format!("damaged-{name}") } else { format!("damaged-{name}-{n}") }
        })
    }

    /// Removes what a killed process left, except where it is the only copy of a checkpoint: whole,
    /// but without its name, because it was to be renamed next or was being replaced.
    fn sweep(&self) -> Result<()> {
        let folder = self.dir.join(FOLDER);
        for name in names(&folder)? {
            let middle = name.strip_prefix('.').and_then(|rest| rest.strip_suffix(".tmp"));
            let Some((target, rest)) =
                middle.filter(|m| m.starts_with(PREFIX)).and_then(|m| m.split_once('.'))
            else {
                continue;
            };
            let (path, target) = (folder.join(&name), folder.join(target));
            // What is named "old" was pruned: newer ones stand.
            let whole = !rest.starts_with(OLD) && !target.exists() && is_whole(&path)?;
            if whole {
                fs::rename(&path, &target).map_err(|e| Error::io("rename", &path, e))?;
            } else {
                fs::remove_dir_all(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
        }
        Ok(())
    }
}

/// Errs unless `run_dir` is free for a new run: it does not exist, or is a folder with nothing in
/// it (a lock file, which outlives its process, does not count). Touches nothing.
pub fn check_free(run_dir: &Path) -> Result<()> {
    let refuse = |what: &str| {
        Err(Error::usage(format!("run folder {} {what} with --out", run_dir.display())))
    };
    if !run_dir.exists() {
        return Ok(());
    }
    if !run_dir.is_dir() {
        return refuse("exists and is not a folder; choose another place");
    }
    let found = names(run_dir)?;
    if found.iter().any(|name| name == "config.toml") || latest(run_dir)?.is_some() {
        return refuse(
            "already holds a run, which --resume goes on with if it is this one; choose another",
        );
    }
    match found.iter().find(|name| !is_bystander(name)) {
        Some(name) => refuse(&format!(
            "is not empty (it holds {name}), and a run takes a folder of its own; choose another"
        )),
        None => Ok(()),
    }
}

/// Checkpoints of a run folder as (step, folder), oldest first. Temporaries and other names are
/// ignored.
pub fn list(run_dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    list_in(&run_dir.join(FOLDER))
}

/// The same of a `checkpoints` folder itself.
pub(crate) fn list_in(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found: Vec<(u64, PathBuf)> = names(folder)?
        .into_iter()
        .filter_map(|name| Some((step_of(&name)?, folder.join(&name))))
        .filter(|(_, path)| path.is_dir())
        .collect();
    found.sort();
    Ok(found)
}

fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

/// Whether a folder is one of a run's checkpoints, by its name and the one above.
pub(crate) fn is_checkpoint(dir: &Path) -> bool {
    let above = dir.parent().and_then(Path::file_name);
    above.is_some_and(|name| name == FOLDER) && step_of(&name_of(dir)).is_some()
}

/// The newest checkpoint of a run folder, judged by its name alone.
pub fn latest(run_dir: &Path) -> Result<Option<PathBuf>> {
    Ok(list(run_dir)?.pop().map(|(_, path)| path))
}

/// The checkpoint whose weights had the lowest validation loss, by the states as stored; None if
/// none was validated.
pub fn best(run_dir: &Path) -> Result<Option<PathBuf>> {
    Ok(ranked(&list(run_dir)?).first().map(|path| (*path).clone()))
}

/// The validated ones, best first; of equal ones the later.
fn ranked(checkpoints: &[(u64, PathBuf)]) -> Vec<&PathBuf> {
    let mut found: Vec<_> = checkpoints
        .iter()
        .rev()
        .filter_map(|(_, path)| Some((super::validated(path)?, path)))
        .collect();
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    found.into_iter().map(|(_, path)| path).collect()
}

/// Whether every file of a checkpoint is as its manifest says.
fn is_whole(path: &Path) -> Result<bool> {
    match super::verify(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == ErrorKind::Data => Ok(false),
        Err(e) => Err(e), // could not be read or was interrupted: no reason to remove it
    }
}

/// Gives a folder another, free name in the same place.
fn set_aside(path: &Path, name: impl Fn(&str, u32) -> String) -> Result<PathBuf> {
    let old = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let to = (0..).map(|n| path.with_file_name(name(&old, n))).find(|to| !to.exists());
    let to =
        to.ok_or_else(|| Error::internal(format!("no free name beside {}", path.display())))?;
    fs::rename(path, &to).map_err(|e| Error::io("rename", path, e))?;
    Ok(to)
}

/// Names in a folder; none if it does not exist.
fn names(folder: &Path) -> Result<Vec<String>> {
    Ok(children(folder)?.iter().map(|path| name_of(path)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_folder_has_one_writer() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let first = RunLock::acquire(&run).unwrap();
        let message = RunLock::acquire(&run).unwrap_err().to_string();
        assert!(
            message.contains("in use")
                && message.contains(&format!("process {}", std::process::id())),
            "{message}"
        );
        drop(first);
        RunLock::acquire(&run).unwrap();
    }

    #[test]
    fn only_a_folder_without_content_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let message = |run: &Path| check_free(run).unwrap_err().to_string();
        check_free(&run).unwrap();
        assert!(!run.exists());
        RunLock::acquire(&run).unwrap().abandon();
        assert!(!run.exists(), "what was made for the lock goes with it");
        drop(RunLock::acquire(&run).unwrap());
        check_free(&run).unwrap();
        RunLock::acquire(&run).unwrap().abandon();
        assert!(run.exists(), "what was there before stays");
        fs::write(run.join("notes.txt"), "mine").unwrap();
        assert!(message(&run).contains("is not empty (it holds notes.txt)"));
        fs::write(run.join("config.toml"), "").unwrap();
        assert!(message(&run).contains("already holds a run, which --resume"));
        assert!(message(&run.join("notes.txt")).contains("is not a folder"));
        RunLock::acquire(&run).unwrap().abandon();
        assert_eq!(fs::read(run.join("notes.txt")).unwrap(), b"mine");
    }

    #[test]
    fn only_finished_checkpoints_count() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(latest(folder.path()).unwrap(), None);
        let inside = folder.path().join(FOLDER);
        for name in [
            "step-00000090",
            "step-100000000",
            ".step-00000200.1-2.tmp",
            "damaged-step-00000300",
            "step-x",
            "step-",
        ] {
            fs::create_dir_all(inside.join(name)).unwrap();
        }
        fs::write(inside.join("step-999999999"), "a file").unwrap();
        assert_eq!(latest(folder.path()).unwrap(), Some(inside.join("step-100000000")));
        let _lock = RunLock::acquire(folder.path()).unwrap();
        assert!(
            !inside.join(".step-00000200.1-2.tmp").exists(),
            "what a killed process left is swept"
        );
        assert!(inside.join("damaged-step-00000300").exists());
    }
}
