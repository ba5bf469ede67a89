//! What is read: files, pipes that a signal can end, and what merely stands in the place of a file.

use super::near::near_path;
use crate::error::{Error, Result};
use std::fs::{self, File, Metadata};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek};
use std::path::Path;

/// Bytes from which [`check_real`] can tell; a pointer of git-lfs is shorter.
pub const HEAD_BYTES: usize = 1024;

/// A file or a pipe, open for reading. A wait for a pipe ends when a signal asks the process to
/// stop, also the wait for the first who writes to it.
#[derive(Debug)]
pub struct Input {
    file: File,
    meta: Metadata,
}

impl Input {
    /// Opens it; a folder is refused.
    pub fn open(path: &Path) -> Result<Self> {
        // Looked at before it is opened: opening a pipe may wait for ever.
        let meta = fs::metadata(path).map_err(|e| missing(path, e))?;
        if meta.is_dir() {
            let place = path.display();
            return Err(Error::data(format!("{place}: expected a file, found a folder")));
        }
        let file = open(path, &meta).map_err(|e| missing(path, e))?;
        Ok(Self { file, meta })
    }

    /// Whether it can be read only once, and has no length: a pipe, a terminal, a device.
    pub fn is_stream(&self) -> bool {
        !self.meta.is_file()
    }

    /// What the system says of it.
    pub fn metadata(&self) -> &Metadata {
        &self.meta
    }

    /// The plain file.
    pub fn into_file(self) -> File {
        self.file
    }

    /// The plain file, at its beginning.
    pub fn rewound(&mut self) -> io::Result<&mut File> {
        self.file.rewind()?;
        Ok(&mut self.file)
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.is_stream() {
            return self.file.read(buffer);
        }
        loop {
            wait(&self.file)?;
            match self.file.read(buffer) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

#[cfg(unix)]
fn open(path: &Path, meta: &Metadata) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.read(true);
    if !meta.is_file() {
        // Does not wait for somebody who writes.
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    }
    options.open(path)
}

#[cfg(not(unix))]
fn open(path: &Path, _: &Metadata) -> io::Result<File> {
    File::open(path)
}

/// Waits until there is something to read, or the end.
#[cfg(unix)]
fn wait(file: &File) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let step = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    loop {
        crate::interrupt::check().map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&step)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            ready => return ready.map(drop).map_err(Into::into),
        }
    }
}

#[cfg(not(unix))]
fn wait(_: &File) -> io::Result<()> {
    crate::interrupt::check().map_err(io::Error::other)
}

/// The error for a failed read, which may be that a signal ended it.
pub fn unread(path: &Path, e: io::Error) -> Error {
    crate::interrupt::check().err().unwrap_or_else(|| Error::io("read", path, e))
}

/// The error for what cannot be opened.
fn missing(path: &Path, e: io::Error) -> Error {
    let place = path.display();
    let link = fs::read_link(path).ok().filter(|_| e.kind() == ErrorKind::NotFound);
    match link {
        Some(to) if to.to_string_lossy().contains("annex/objects/") => Error::data(format!(
            "{place} is a link of git-annex to a file that is not here; run `git annex get` on it"
        )),
        Some(to) => Error::io("open", path, e)
            .context(format!("{place} is a link to {}, which is not there", to.display())),
        None if path == Path::new("-") => {
            Error::io("open", path, e).context("for standard input name /dev/stdin")
        }
        None if e.kind() == ErrorKind::NotFound => {
            let says = match near_path(path) {
                Some(near) => format!("did you mean {}?", near.display()),
                None => "expected the name of one, from this folder on or whole".into(),
            };
            Error::data(format!("there is no file {place}; {says}"))
        }
        None => Error::io("open", path, e),
    }
}

/// Whether something of that name is there, be it only a link to what is missing: opening it then
/// says so.
pub fn is_named(path: &Path) -> bool {
    path.is_file() || fs::read_link(path).is_ok_and(|_| !path.exists())
}

/// Whether two names are those of one thing, by whatever path or link.
pub fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    let identity = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
    };
    #[cfg(not(unix))]
    let identity = |path: &Path| fs::canonicalize(path).ok();
    identity(a).is_some_and(|a| identity(b) == Some(a))
}

/// Whether two plain files hold the same bytes; read only as far as they are equal.
pub fn same_bytes(a: &Path, b: &Path) -> Result<bool> {
    let length = |path: &Path| fs::metadata(path).ok().filter(Metadata::is_file).map(|m| m.len());
    if length(a).is_none() || length(a) != length(b) {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::new(Input::open(a)?), BufReader::new(Input::open(b)?));
    loop {
        crate::interrupt::check()?;
        let left = one.fill_buf().map_err(|e| unread(a, e))?;
        let right = other.fill_buf().map_err(|e| unread(b, e))?;
        let n = left.len().min(right.len());
        if n == 0 || left[..n] != right[..n] {
            return Ok(left.len() == right.len() && n == 0);
        }
        one.consume(n);
        other.consume(n);
    }
}

/// Errs if what stands at `path` is not the file itself: a pointer that git-lfs or git-annex left,
/// or a web page. `head` is its first [`HEAD_BYTES`] or more, or all of it.
pub fn check_real(path: &Path, head: &[u8]) -> Result<()> {
    check_no_pointer(path, head)?;
    let head = begin(head);
    let begins = |with: &str| {
        head.get(..with.len()).is_some_and(|found| found.eq_ignore_ascii_case(with.as_bytes()))
    };
    if begins("<!doctype html") || begins("<html>") || begins("<html ") {
        return Err(Error::data(format!(
            "{} is an HTML page, not the file itself: a web site's page was saved in its place; download it again (from \
             the Hub, by a link with /resolve/)",
            path.display()
        )));
    }
    Ok(())
}

/// As [`check_real`], for text, which may well be a web page.
pub fn check_no_pointer(path: &Path, head: &[u8]) -> Result<()> {
    let text = begin(head);
    let starts = |with: &[&str]| with.iter().any(|start| text.starts_with(start.as_bytes()));
    let lfs =
        ["version https://git-lfs.github.com/spec/", "version https://hawser.github.com/spec/"];
    // A checkout without links holds, in the place of one, what it leads to.
    let annex = starts(&["/annex/objects/"])
        || head.len() < HEAD_BYTES
            && starts(&[".git/", "../"])
            && text.windows(19).any(|part| part == b".git/annex/objects/");
    let (what, how) = if head.len() < HEAD_BYTES && starts(&lfs) {
        ("git-lfs", "run `git lfs pull` in its folder")
    } else if annex {
        ("git-annex", "run `git annex get` on it")
    } else {
        return Ok(());
    };
    let place = path.display();
    Err(Error::data(format!("{place} is a {what} pointer, not the file itself; {how}")))
}

/// Without a byte-order mark and white space in front.
fn begin(head: &[u8]) -> &[u8] {
    head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head).trim_ascii_start()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_and_pages_are_told_from_files() {
        let word = |head: &[u8]| check_real(Path::new("x"), head).map_err(|e| e.to_string());
        for (head, part) in [
            ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
            ("version https://hawser.github.com/spec/v1\r\next-0-foo sha256:0\r\n", "git lfs pull"),
            ("\u{FEFF}version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            ("/annex/objects/SHA256E-s3--0.txt\n", "git annex get"),
            ("../../.git/annex/objects/x/y/k/k", "git annex get"),
            (".git/annex/objects/x/y/k/k", "git annex get"),
            ("<!DOCTYPE html><html>", "HTML"),
            (" \n<HTML lang=\"en\">", "HTML"),
        ] {
            assert!(word(head.as_bytes()).unwrap_err().contains(part), "{head}");
        }
        let long =
            "version https://git-lfs.github.com/spec/v1 is how a pointer begins. ".repeat(20);
        for head in ["", "{}", "version 1", "../readme", "a .git/annex/objects/ b", "<html5>"] {
            word(head.as_bytes()).unwrap();
        }
        assert!(word(long.as_bytes()).is_ok(), "a text about pointers is longer than one");
        check_no_pointer(Path::new("x"), b"<html>").unwrap();
    }

    #[test]
    fn equal_files_are_found() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let long = vec![7; 1 << 20];
        let mut other = long.clone();
        *other.last_mut().unwrap() = 8;
        for (name, bytes) in [("a", &long), ("b", &long), ("c", &other), ("d", &vec![])] {
            fs::write(at(name), bytes).unwrap();
        }
        assert!(same_bytes(&at("a"), &at("b")).unwrap() && same_bytes(&at("d"), &at("d")).unwrap());
        assert!(
            !same_bytes(&at("a"), &at("c")).unwrap() && !same_bytes(&at("a"), &at("d")).unwrap()
        );
        assert!(same_file(&at("a"), &root.path().join(".").join("a")));
        assert!(!same_file(&at("a"), &at("b")) && !same_file(&at("x"), &at("x")));
    }
}
