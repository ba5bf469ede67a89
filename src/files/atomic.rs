//! Files and folders that take their names only when they are whole.

use super::out::file_behind;
use super::{children, parent_of, sync_folder};
use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes `path` through a temporary file in the same folder: synced, renamed, folder synced. On
/// any error the temporary file is removed and what stood at `path` before is untouched. Where
/// `path` is a link, it stays one, and the file behind it is written.
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
    /// Opens a temporary file beside `path` (beside the file that a link leads to), creating the
    /// folder if need be.
    pub fn create(path: &Path) -> Result<Self> {
        let target = file_behind(path)?;
        let parent = parent_of(&target);
        fs::create_dir_all(parent).map_err(|e| Error::io("create folder", parent, e))?;
        // Plain creation rather than a private temporary file: the result obeys the umask.
        let (temporary, file) = unused(&target, |at| File::create_new(at))
            .map_err(|e| Error::io("create a file in", parent, e).context(path.display()))?;
        // As long as it is written, so that another can tell what a killed process left; some file
        // systems have no locks, and then it stays.
        let _ = file.try_lock();
        Ok(Self { target, temporary, writer: Some(BufWriter::with_capacity(1 << 20, file)) })
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
/// with its contents. For folders inside those that we made; a folder that a user named is an
/// [`OutDir`](super::OutDir).
#[derive(Debug)]
pub struct AtomicDir {
    target: PathBuf,
    temporary: Temporary,
}

impl AtomicDir {
    /// Makes a temporary folder beside `path`.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self { target: path.to_path_buf(), temporary: Temporary::beside(path)? })
    }

    /// Where to write until the commit.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Renames the folder to its name, replacing a folder of that name if there is one.
    pub fn commit(self) -> Result<()> {
        let Self { target, temporary } = self;
        sync_folder(temporary.path())?;
        let old = free_name(&target);
        let replaced = target.exists();
        if replaced {
            fs::rename(&target, &old).map_err(|e| Error::io("replace", &target, e))?;
        }
        if let Err(e) = temporary.rename(&target) {
            if replaced {
                let _ = fs::rename(&old, &target);
            }
            return Err(e);
        }
        if replaced {
            fs::remove_dir_all(&old).map_err(|e| Error::io("remove", &old, e))?;
        }
        sync_folder(parent_of(&target))
    }
}

/// A hidden folder that vanishes with its contents when dropped, and with it the folders that were
/// made for it. It is locked as long as its process lives, so that another can tell what a killed
/// one left.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
    /// Folders above it that were not there before, the innermost first.
    made: Vec<PathBuf>,
    /// Whether it has its name.
    kept: bool,
    // The lock lives as long as the open folder; some file systems have none.
    _lock: Option<File>,
}

impl Temporary {
    /// Makes one beside `target`.
    pub(super) fn beside(target: &Path) -> Result<Self> {
        let parent = parent_of(target);
        let mut made: Vec<PathBuf> = parent
            .ancestors()
            .take_while(|p| !p.as_os_str().is_empty() && !p.exists())
            .map(Path::to_path_buf)
            .collect();
        let undo = |made: &[PathBuf]| made.iter().for_each(|p| drop(fs::remove_dir(p)));
        if let Err(e) = fs::create_dir_all(parent) {
            undo(&made);
            return Err(Error::io("create folder", parent, e));
        }
        let created = unused(target, |at| {
            fs::create_dir(at)?;
            match lock(at) {
                Some(locked) => Ok(locked),
                // Another process took it for an abandoned one in that instant.
                None => Err(ErrorKind::AlreadyExists.into()),
            }
        });
        match created {
            Ok((path, lock)) => {
                let made = std::mem::take(&mut made);
                Ok(Self { path, made, kept: false, _lock: lock })
            }
            Err(e) => {
                undo(&made);
                Err(Error::io("create a folder in", parent, e))
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, which nothing but an empty folder may have.
    pub(super) fn rename(mut self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target).map_err(|e| Error::io("rename to", target, e))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_dir_all(&self.path);
            self.made.iter().for_each(|folder| drop(fs::remove_dir(folder)));
        }
    }
}

/// The lock of a folder, `Some(None)` where the file system knows none; None if another holds it or
/// the folder is gone.
fn lock(folder: &Path) -> Option<Option<File>> {
    let file = File::open(folder).ok()?;
    match file.try_lock() {
        Ok(()) => folder.exists().then_some(Some(file)),
        Err(fs::TryLockError::WouldBlock) => None,
        Err(fs::TryLockError::Error(_)) => Some(None),
    }
}

/// Removes the temporary files and folders beside `target` whose processes were killed.
pub(super) fn sweep(target: &Path) {
    let prefix = format!(".{}.", shown_name(target));
    for path in children(parent_of(target)).unwrap_or_default() {
        let name = super::name_of(&path);
        let middle = name.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(".tmp"));
        let numbers = middle.and_then(|m| m.split_once('-'));
        let is_ours = numbers
            .is_some_and(|(process, n)| process.parse::<u32>().is_ok() && n.parse::<u64>().is_ok());
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let ours = is_ours && (meta.is_dir() || meta.is_file());
        if ours && matches!(lock(&path), Some(Some(_))) {
            let _ = if meta.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

fn shown_name(path: &Path) -> String {
    path.file_name().map_or_else(|| "out".into(), |n| n.to_string_lossy().into_owned())
}

/// `.NAME.PID-N.tmp`: hidden, in the same folder (renames must not cross file systems), unique in
/// this process.
fn free_name(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    parent_of(path).join(format!(".{}.{}-{n}.tmp", shown_name(path), std::process::id()))
}

/// Makes something new under such a name. Processes in containers share numbers, so a name may be
/// taken.
fn unused<T>(
    path: &Path,
    make: impl Fn(&Path) -> std::io::Result<T>,
) -> std::io::Result<(PathBuf, T)> {
    loop {
        let at = free_name(path);
        match make(&at) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            made => return made.map(|made| (at, made)),
        }
    }
}
