//! Files and folders: those that are written appear whole or not at all, where the user named them
//! (`atomic`, `out`); those that are read are told from what stands in their place (`input`), and what
//! is not there from what is (`near`).

mod atomic;
mod input;
pub mod near;
mod out;

pub use atomic::{AtomicDir, AtomicFile, write_atomic};
pub use input::{
    HEAD_BYTES, Input, check_no_pointer, check_real, is_named, same_bytes, same_file, unread,
};
pub use out::{
    Contents, OutDir, check_file, check_file_like, check_folder, create_folder, is_bystander,
};

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The whole of a file that has no reason to be longer than `most` bytes; a longer one is refused
/// before it can fill the memory, and so is what only stands in the place of a file.
pub fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = Input::open(path)?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(|e| unread(path, e))?;
    if bytes.len() as u64 > most {
        return Err(Error::data(format!(
            "{}: longer than {most} bytes, which no such file is; it is damaged or of another kind",
            path.display()
        )));
    }
    check_real(path, &bytes)?;
    Ok(bytes)
}

/// A place that a command to paste can name as its result: `path`, or the first of `path-2`,
/// `path-3` and so on where nothing is.
pub fn free(path: &str) -> PathBuf {
    let named = PathBuf::from(path);
    let others = (2..).map(|n: u32| PathBuf::from(format!("{path}-{n}")));
    std::iter::once(named.clone()).chain(others).find(|place| !place.exists()).unwrap_or(named)
}

/// Bytes of the files in a folder, not of those below it; 0 if it is not there.
pub fn bytes_of_files(dir: &Path) -> u64 {
    let children = children(dir).unwrap_or_default();
    children.iter().filter_map(|p| p.metadata().ok().filter(|m| m.is_file())).map(|m| m.len()).sum()
}

/// What a folder holds, sorted; nothing if it is not there.
pub(crate) fn children(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io("list", dir, e);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut paths =
        entries.map(|e| e.map(|e| e.path()).map_err(failed)).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The last part of a path, for people and comparisons.
pub(crate) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Errs unless the file system that `path` is to lie on has `bytes` free, for `what`. A path that
/// does not exist counts where it would be made. Where the system does not say how much is free,
/// nothing is refused.
pub fn check_space(path: &Path, bytes: u64, what: &str) -> Result<()> {
    match free_space(path) {
        Some(free) if free < bytes => Err(Error::new(
            crate::ErrorKind::Io,
            format!(
                "{what} needs {} MB in {}, whose file system has {} MB free; make room, or choose another place",
                bytes.div_ceil(1_000_000),
                path.display(),
                free / 1_000_000
            ),
        )),
        _ => Ok(()),
    }
}

/// Bytes that this user may still write to the file system of `path`, or of its nearest folder that
/// exists.
#[cfg(unix)]
pub(crate) fn free_space(path: &Path) -> Option<u64> {
    let there = path.ancestors().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    let stat = there.filter(|p| p.exists()).find_map(|p| rustix::fs::statvfs(p).ok())?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
pub(crate) fn free_space(_: &Path) -> Option<u64> {
    None
}

/// Lower-case hexadecimal, as digests are written.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Some file systems (SMB, FAT through FUSE) cannot sync a folder, and say so; nothing is lost that
/// they could keep.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    use std::io::ErrorKind::{InvalidInput, Unsupported};
    match File::open(folder).and_then(|f| f.sync_all()) {
        Err(e) if !matches!(e.kind(), InvalidInput | Unsupported) => {
            Err(Error::io("sync folder", folder, e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_place_is_named_where_one_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("first").display().to_string();
        let named = || free(&path).display().to_string();
        assert_eq!(named(), path);
        fs::create_dir(&path).unwrap();
        assert_eq!(named(), format!("{path}-2"));
        fs::write(format!("{path}-2"), "").unwrap();
        assert_eq!(named(), format!("{path}-3"));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomic(&path, |w| w.write_all(b"one").map_err(|e| Error::data(e.to_string())))
            .unwrap();
        let failed = write_atomic(&path, |w| {
            w.write_all(b"two").unwrap();
            Err(Error::data("no"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn space_is_asked_for_where_a_path_will_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("not/yet/there");
        check_space(&path, 1, "a test").unwrap();
        let message = check_space(&path, u64::MAX, "a test").unwrap_err().to_string();
        assert!(message.starts_with("a test needs") && message.contains("make room"), "{message}");
        assert!(!folder.path().join("not").exists());
    }

    #[test]
    fn a_folder_replaces_the_old_one_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        for text in ["one", "two"] {
            let dir = AtomicDir::create(&path).unwrap();
            fs::write(dir.path().join(text), text).unwrap();
            dir.commit().unwrap();
        }
        drop(AtomicDir::create(&path).unwrap());
        assert!(path.join("two").exists() && !path.join("one").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
