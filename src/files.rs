//! Files and folders that appear whole or not at all, and how their digests are written.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The whole of a file that has no reason to be longer than `most` bytes; a longer one is refused
/// before it can fill the memory.
pub fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    if file.metadata().map_err(|e| Error::io("read", path, e))?.is_dir() {
        return Err(Error::data(format!("{}: expected a file, found a folder", path.display())));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    if bytes.len() as u64 > most {
        return Err(Error::data(format!(
            "{}: longer than {most} bytes, which no such file is; it is damaged or of another kind",
            path.display()
        )));
    }
    Ok(bytes)
}

/// Writes `path` through a temporary file in the same folder: synced, renamed, folder synced. On
/// any error the temporary file is removed and what stood at `path` before is untouched.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    write(&mut file)?;
    file.commit()
}

/// A file that takes its name only on [`AtomicFile::commit`]; dropped before that, it vanishes.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl AtomicFile {
    /// Opens a temporary file beside `path`, creating the folder if need be.
    pub fn create(path: &Path) -> Result<Self> {
        let parent = parent_of(path);
        fs::create_dir_all(parent).map_err(|e| Error::io("create folder", parent, e))?;
        let temporary = temporary_beside(path);
        // Plain creation rather than a private temporary file: the result obeys the umask.
        let file = File::create(&temporary).map_err(|e| Error::io("create", &temporary, e))?;
        Ok(Self {
            target: path.to_path_buf(),
            temporary,
            writer: Some(BufWriter::with_capacity(1 << 20, file)),
        })
    }

    /// Goes to an absolute position, for headers that are known only at the end.
    pub fn seek(&mut self, position: u64) -> Result<()> {
        let to = SeekFrom::Start(position);
        self.writer().seek(to).map(|_| ()).map_err(|e| Error::io("write", &self.temporary, e))
    }

    /// Lets `check` read what was written so far, under its temporary name.
    pub fn check(&mut self, check: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.writer().flush().map_err(|e| Error::io("write", &self.temporary, e))?;
        check(&self.temporary)
    }

    /// Flushes, syncs and gives the file its name.
    pub fn commit(mut self) -> Result<()> {
        let failed = |e| Error::io("write", &self.target, e);
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let done = writer
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .and_then(|f| f.sync_all());
        let done = done.and_then(|()| fs::rename(&self.temporary, &self.target));
        if let Err(e) = done {
            let _ = fs::remove_file(&self.temporary);
            return Err(failed(e));
        }
        sync_folder(parent_of(&self.target))
    }

    fn writer(&mut self) -> &mut BufWriter<File> {
        self.writer.as_mut().expect("present until commit")
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writer().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer().flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.writer.take().is_some() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A folder that takes its name only on [`AtomicDir::commit`]; dropped before that, it vanishes
/// with its contents.
#[derive(Debug)]
pub struct AtomicDir {
    target: PathBuf,
    temporary: PathBuf,
    committed: bool,
}

impl AtomicDir {
    /// Makes a temporary folder beside `path`.
    pub fn create(path: &Path) -> Result<Self> {
        let temporary = temporary_beside(path);
        fs::create_dir_all(&temporary).map_err(|e| Error::io("create folder", &temporary, e))?;
        Ok(Self { target: path.to_path_buf(), temporary, committed: false })
    }

    /// Where to write until the commit.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Renames the folder to its name, replacing a folder of that name if there is one.
    pub fn commit(mut self) -> Result<()> {
        sync_folder(&self.temporary)?;
        let old = temporary_beside(&self.target);
        let replaced = self.target.exists();
        if replaced {
            fs::rename(&self.target, &old).map_err(|e| Error::io("replace", &self.target, e))?;
        }
        if let Err(e) = fs::rename(&self.temporary, &self.target) {
            if replaced {
                let _ = fs::rename(&old, &self.target);
            }
            return Err(Error::io("rename to", &self.target, e));
        }
        self.committed = true;
        if replaced {
            fs::remove_dir_all(&old).map_err(|e| Error::io("remove", &old, e))?;
        }
        sync_folder(parent_of(&self.target))
    }
}

impl Drop for AtomicDir {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
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
fn free_space(path: &Path) -> Option<u64> {
    let there = path.ancestors().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    let stat = there.filter(|p| p.exists()).find_map(|p| rustix::fs::statvfs(p).ok())?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn free_space(_: &Path) -> Option<u64> {
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

/// `.NAME.PID-N.tmp`: hidden, in the same folder (renames must not cross file systems), unique in
/// this process.
fn temporary_beside(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().map_or_else(|| "out".into(), |n| n.to_string_lossy().into_owned());
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    parent_of(path).join(format!(".{name}.{}-{n}.tmp", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
