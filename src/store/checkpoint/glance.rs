//! What can be told of a run folder from outside: nothing is locked, written or hashed.

use super::rotation::LOCK_FILE;
use super::{Counters, Manifest, STATE_FILE, read_state, required};
use crate::error::{Error, Result};
use crate::files::read_bounded;
use std::fs;
use std::path::Path;

/// A checkpoint by its small files.
#[derive(Debug, Clone, PartialEq)]
pub struct Glance {
    /// How far the run was.
    pub counters: Counters,
    /// Validation loss of its weights; None if they were not validated.
    pub val_loss: Option<f64>,
    /// Bytes of its files.
    pub bytes: u64,
}

impl Glance {
    /// Of the checkpoint `path`. Errs where files are missing or have other sizes than its manifest
    /// says; what they hold is not compared.
    pub fn of(path: &Path) -> Result<Self> {
        let manifest = Manifest::read(path)?;
        let unlisted = required(&manifest).into_iter().find(|n| !manifest.files.contains_key(*n));
        let found = |name: &str| fs::metadata(path.join(name)).map_or(0, |file| file.len());
        let other = manifest.files.iter().find(|(name, sum)| found(name) != sum.size);
        if let Some(name) = unlisted.or(other.map(|(name, _)| name.as_str())) {
            return Err(Error::data(format!(
                "checkpoint {}: {name} is missing or cut short",
                path.display()
            )));
        }
        let saved = read_state(path)?;
        if saved.counters.step != manifest.step {
            return Err(Error::data(format!(
                "{}: not the state of step {}",
                path.join(STATE_FILE).display(),
                manifest.step
            )));
        }
        Ok(Self {
            val_loss: saved.counters.validated_now(),
            counters: saved.counters,
            bytes: manifest.files.values().map(|sum| sum.size).sum(),
        })
    }
}

/// The process of this machine that holds the run folder's lock, if one does and the system says
/// so. A lock that was asked for could be in the way of a run that begins; so who has the file open
/// is what counts.
pub fn holder(run_dir: &Path) -> Option<u32> {
    let path = run_dir.join(LOCK_FILE);
    let text = read_bounded(&path, 1 << 10).ok()?;
    let process = std::str::from_utf8(&text).ok()?.trim().strip_prefix("process ")?;
    let process = process.parse().ok().filter(|p: &u32| *p > 0)?;
    holds(process, &path).then_some(process)
}

/// Whether the process has the file open. Its number may be another's by now.
#[cfg(target_os = "linux")]
fn holds(process: u32, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(lock) = fs::metadata(path) else { return false };
    let same = |m: fs::Metadata| (m.dev(), m.ino()) == (lock.dev(), lock.ino());
    match fs::read_dir(format!("/proc/{process}/fd")) {
        Ok(open) => open.flatten().any(|file| fs::metadata(file.path()).is_ok_and(same)),
        // Another user's: only the list of locks can be read, which names process and file.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
            locks.lines().any(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let file = words.iter().position(|w| *w == process.to_string());
                let file = file.and_then(|at| words.get(at + 1));
                file.and_then(|w| w.rsplit(':').next()) == Some(lock.ino().to_string().as_str())
            })
        }
        Err(_) => false,
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
fn holds(process: u32, _: &Path) -> bool {
    use rustix::process::{Pid, test_kill_process};
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    // EPERM: it is there, and another user's.
    process.is_some_and(|p| !matches!(test_kill_process(p), Err(rustix::io::Errno::SRCH)))
}

#[cfg(not(unix))]
fn holds(_: u32, _: &Path) -> bool {
    false
}
