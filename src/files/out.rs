//! Where results go: a folder or a file that a user named.
//!
//! Links are followed, also one that leads to nothing yet. A folder that is missing is written
//! beside its place and renamed; an ordinary one with an earlier result changes places with the new
//! one in a single step. Any other is filled from a hidden folder inside it, since a mount point,
//! the working folder and what a link leads to cannot be replaced. What cannot work is said when
//! the folder is claimed, before the work begins.

use super::atomic::{Temporary, sweep};
use super::input::same_file;
use super::{children, name_of, parent_of, read_bounded, sync_folder};
use crate::error::{Error, Result};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// A mark may hold the names of all inputs.
const MOST_MARK_BYTES: u64 = 64 << 20;
/// As many as Linux follows.
const MOST_LINKS: usize = 40;

/// What a verb writes into a folder of its own.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a> {
    /// The verb, for messages.
    pub verb: &'a str,
    /// Everything that it may write there.
    pub names: &'a [&'a str],
    /// The JSON file, and its field `format`, by which an earlier folder of this verb is known;
    /// without it, none is replaced.
    pub mark: Option<(&'a str, &'a str)>,
    /// What every reader asks for. It comes last and goes first, so that a folder whose filling
    /// was cut short is never taken for a whole one.
    pub last: &'a str,
}

impl Contents<'_> {
    /// Errs unless the folder is empty, or holds nothing but what this verb wrote before.
    fn check(&self, folder: &Path, out: &Path) -> Result<()> {
        let refuse = |what: String| {
            let out = out.display();
            Err(Error::usage(format!(
                "{out} exists and {what}; name a new folder with --out, or remove it yourself"
            )))
        };
        let found: Vec<String> = children(folder)?.iter().map(|path| name_of(path)).collect();
        let Some(first) = found.iter().find(|name| !is_bystander(name)) else { return Ok(()) };
        let Some((mark, format)) = self.mark else { return refuse(format!("holds {first}")) };
        let known = |name: &&String| is_bystander(name) || self.names.contains(&name.as_str());
        if let Some(name) = found.iter().find(|name| !known(name)) {
            return refuse(format!("holds {name}, which no earlier {} wrote", self.verb));
        }
        let written = read_bounded(&folder.join(mark), MOST_MARK_BYTES).ok();
        let written: Value =
            written.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        match written["format"] == format {
            true => Ok(()),
            false => refuse(format!("has no {mark} of an earlier {}", self.verb)),
        }
    }

    /// The names in the order in which they come: the mark, so that a folder whose filling was cut
    /// short can be filled again; what every reader asks for at the end.
    fn in_order(&self) -> Vec<&str> {
        let mut names = self.names.to_vec();
        names.sort_by_key(|name| match self.mark {
            Some((mark, _)) if *name == mark => 0,
            _ if *name == self.last => 2,
            _ => 1,
        });
        names
    }
}

/// Whether a name is one that systems and tools leave in any folder. Such things make no folder
/// taken, and stay where they are.
pub fn is_bystander(name: &str) -> bool {
    let of_systems =
        ["lost+found", "Thumbs.db", "desktop.ini", "System Volume Information", "$RECYCLE.BIN"];
    name.starts_with('.') || of_systems.contains(&name)
}

/// A folder that a user named, claimed before the work and whole after [`OutDir::commit`]. Dropped
/// before that, all is as it was.
#[derive(Debug)]
pub struct OutDir<'a> {
    contents: Contents<'a>,
    out: PathBuf,
    /// Where it is once links are followed.
    target: PathBuf,
    place: Place,
    temporary: Temporary,
}

/// How the result gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing is there yet.
    Missing,
    /// The folder changes places with the new one: at no time is there less than a whole result.
    Exchanged,
    /// The folder stays, and its contents are moved in.
    Filled,
}

impl<'a> OutDir<'a> {
    /// Claims the folder: errs where it holds something else, or cannot be written. What a killed
    /// process left of an earlier attempt is removed.
    pub fn create(out: &Path, contents: Contents<'a>) -> Result<Self> {
        let target = folder_behind(out)?;
        let claimed = |target, place, temporary| {
            Ok(Self { contents, out: out.to_path_buf(), target, place, temporary })
        };
        if !target.is_dir() {
            let temporary = claim(out, &target)?;
            return claimed(target, Place::Missing, temporary);
        }
        contents.check(&target, out)?;
        // Where it is, if it is reached by a link.
        let real = target.canonicalize().map_err(|e| Error::io("write to", out, e))?;
        sweep(&real);
        if is_ordinary(&real)
            && let Ok(beside) = Temporary::beside(&real)
            && takes_after(beside.path(), &real)
        {
            return claimed(real, Place::Exchanged, beside);
        }
        let temporary = claim(out, &target)?;
        claimed(target, Place::Filled, temporary)
    }

    /// Errs where [`OutDir::create`] would, and changes nothing.
    pub fn check(out: &Path, contents: Contents<'a>) -> Result<()> {
        Self::create(out, contents).map(drop)
    }

    /// Where to write until the commit.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Gives what was written its place; what an earlier run of the verb wrote there goes.
    pub fn commit(self) -> Result<()> {
        sync_folder(self.temporary.path())?;
        if self.place == Place::Missing {
            self.temporary.rename(&self.target)?;
            return sync_folder(parent_of(&self.target));
        }
        let names = self.contents.names;
        let written = children(self.temporary.path())?;
        if let Some(other) = written.iter().find(|path| !names.contains(&&*name_of(path))) {
            return Err(Error::internal(format!("{}: no known name", other.display())));
        }
        // Again: something may have come since.
        self.contents.check(&self.target, &self.out)?;
        if self.place == Place::Exchanged && exchange(self.temporary.path(), &self.target).is_ok() {
            return sync_folder(parent_of(&self.target)); // what was there goes with the temporary
        }
        let old = claim(&self.out, &self.target)?;
        self.replace(old.path())
    }

    /// Puts what was written in the place of what stands there, which goes to `old`; where that
    /// fails, it comes back.
    fn replace(&self, old: &Path) -> Result<()> {
        let mut moved = Vec::new();
        let done = self.fill(old, &mut moved).and_then(|()| sync_folder(&self.target));
        if done.is_err() {
            for (from, to) in moved.iter().rev() {
                let _ = fs::rename(to, from);
            }
        }
        done
    }

    /// Moves what stands there to `old` and what was written into its place; notes each move.
    fn fill(&self, old: &Path, moved: &mut Vec<(PathBuf, PathBuf)>) -> Result<()> {
        let (new, names) = (self.temporary.path(), self.contents.in_order());
        let stands = |path: &Path| fs::symlink_metadata(path).is_ok();
        for name in names.iter().rev().filter(|name| stands(&self.target.join(name))) {
            let (from, to) = (self.target.join(name), old.join(name));
            // The mark stands until the new one takes its place.
            let done = match self.contents.mark {
                Some((mark, _)) if *name == mark => fs::copy(&from, &to).map(drop),
                _ => fs::rename(&from, &to),
            };
            done.map_err(|e| Error::io("replace", &from, e))?;
            moved.push((from, to));
        }
        for name in names.iter().filter(|name| stands(&new.join(name))) {
            if *name == self.contents.last {
                sync_folder(&self.target)?; // all the rest is there before it
            }
            let (from, to) = (new.join(name), self.target.join(name));
            fs::rename(&from, &to).map_err(|e| Error::io("write", &to, e))?;
            moved.push((from, to));
        }
        Ok(())
    }
}

/// A hidden folder on the file system of `target`: inside it if it exists, else beside it.
fn claim(out: &Path, target: &Path) -> Result<Temporary> {
    let at = if target.is_dir() { target.join("eslm-kd") } else { target.to_path_buf() };
    sweep(&at);
    beside(out, &at)
}

fn beside(out: &Path, at: &Path) -> Result<Temporary> {
    Temporary::beside(at).map_err(|e| {
        let remedy = match children(out).is_ok_and(|found| !found.is_empty()) {
            true => {
                "make it writable, or name another place with --out (a copy of it, to go on with what it holds)"
            }
            false => "name a place that can be written to with --out",
        };
        Error::new(e.kind(), format!("{}: {e}; {remedy}", out.display()))
    })
}

/// Errs unless a folder of that name can be written into, or made; changes nothing.
pub fn check_folder(out: &Path) -> Result<()> {
    claim(out, &folder_behind(out)?).map(drop)
}

/// Makes a folder that a user named, and those above it; at the end of a link, the folder that it
/// leads to.
pub fn create_folder(out: &Path) -> Result<()> {
    fs::create_dir_all(folder_behind(out)?).map_err(|e| Error::io("create folder", out, e))
}

/// Errs unless a file of that name can be written; changes nothing.
pub fn check_file(out: &Path) -> Result<()> {
    let target = file_behind(out)?;
    sweep(&target);
    beside(out, &target).map(drop)
}

/// Errs unless a file of that name can be written, and what stands there is empty or begins as what
/// this program writes there; changes nothing. A file that is read is not written either.
pub fn check_file_like(out: &Path, what: &str, begins: &str, inputs: &[&Path]) -> Result<()> {
    check_file(out)?;
    let refuse = |found: &str| {
        let out = out.display();
        Err(Error::usage(format!(
            "{out}: expected a new file or {what} to replace, found {found}; name another file with --out, or remove it \
             yourself"
        )))
    };
    if inputs.iter().any(|input| same_file(out, input)) {
        return refuse("the file that is read");
    }
    let mut head = Vec::new();
    match File::open(out) {
        Ok(file) => {
            let read = file.take(begins.len() as u64).read_to_end(&mut head);
            read.map_err(|e| Error::io("read", out, e))?;
        }
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("read", out, e)),
    }
    match head.is_empty() || head == begins.as_bytes() {
        true => Ok(()),
        false => refuse("a file that eslm-kd did not write"),
    }
}

/// Where a folder of that name is, or would be made.
fn folder_behind(out: &Path) -> Result<PathBuf> {
    match fs::metadata(out) {
        Ok(meta) if meta.is_dir() => Ok(out.to_path_buf()),
        Ok(_) => Err(Error::usage(format!(
            "{} exists and is not a folder; name a new folder with --out, or remove it yourself",
            out.display()
        ))),
        Err(e) if e.kind() == ErrorKind::NotFound => behind_links(out),
        Err(e) => Err(Error::io("write to", out, e)),
    }
}

/// Where a file of that name is, or would be made.
pub(super) fn file_behind(out: &Path) -> Result<PathBuf> {
    let refuse = |what: &str| Err(Error::usage(format!("{} {what}", out.display())));
    match fs::metadata(out) {
        Ok(meta) if meta.is_dir() => refuse("is a folder; expected the name of a file to write"),
        // Renaming would put a file in the place of the device.
        Ok(meta) if !meta.is_file() => refuse("is a pipe or a device; name a file to write"),
        Ok(_) if is_mount_point(out) => {
            refuse("is mounted by itself and cannot be replaced; mount the folder around it")
        }
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("write to", out, e)),
        _ => behind_links(out),
    }
}

/// The place that a chain of links leads to, whether something stands there or not.
fn behind_links(out: &Path) -> Result<PathBuf> {
    // Put together anew, since a slash at its end would follow a link.
    let mut at: PathBuf = out.components().collect();
    for followed in 0..=MOST_LINKS {
        if let Ok(to) = fs::read_link(&at) {
            at = parent_of(&at).join(to).components().collect();
            continue;
        }
        if at.file_name().is_none() {
            return Err(Error::usage(format!("{} names nothing to write", out.display())));
        }
        // A link whose disk is not there must not be served by another.
        if followed > 0 && !parent_of(&at).is_dir() {
            return Err(Error::usage(format!(
                "{} is a link to {}, and there is no folder {}; mount or make it, or name another place",
                out.display(),
                at.display(),
                parent_of(&at).display()
            )));
        }
        return Ok(at);
    }
    Err(Error::usage(format!("{}: links that lead to links without end", out.display())))
}

/// Whether a folder holds something of ours alone, is no mount point and not where this process
/// works.
fn is_ordinary(real: &Path) -> bool {
    let holds_work = std::env::current_dir().is_ok_and(|here| here.starts_with(real));
    let found: Vec<String> =
        children(real).unwrap_or_default().iter().map(|path| name_of(path)).collect();
    let ours_alone = !found.is_empty() && !found.iter().any(|name| is_bystander(name));
    real.file_name().is_some() && !holds_work && !is_mount_point(real) && ours_alone
}

/// Gives a new folder the rights of `folder`; whether it then has its owner and rights.
#[cfg(unix)]
fn takes_after(new: &Path, folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let rights = fs::metadata(folder).map(|meta| meta.permissions());
    let taken = rights.and_then(|rights| fs::set_permissions(new, rights));
    let of = |path| fs::metadata(path).map(|meta| (meta.uid(), meta.gid(), meta.mode())).ok();
    taken.is_ok() && of(folder).is_some() && of(folder) == of(new)
}

#[cfg(not(unix))]
fn takes_after(_: &Path, _: &Path) -> bool {
    false
}

/// Lets two folders change their names; errs where the system or the file system cannot.
#[cfg(target_os = "linux")]
fn exchange(one: &Path, other: &Path) -> rustix::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn is_mount_point(path: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    statx(CWD, path, AtFlags::empty(), StatxFlags::empty())
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(not(target_os = "linux"))]
fn is_mount_point(_: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENTS: Contents = Contents {
        verb: "test",
        names: &["all.bin", "mark.json", "more"],
        mark: Some(("mark.json", "of a test")),
        last: "all.bin",
    };

    fn write(folder: &Path, text: &str) {
        fs::write(folder.join("all.bin"), text).unwrap();
        fs::write(
            folder.join("mark.json"),
            format!("{{\"format\":\"of a test\",\"is\":\"{text}\"}}"),
        )
        .unwrap();
        fs::create_dir(folder.join("more")).unwrap();
        fs::write(folder.join("more/a"), text).unwrap();
    }

    /// Names and texts.
    fn held(folder: &Path) -> Vec<(String, String)> {
        let text = |p: &Path| fs::read_to_string(p).or_else(|_| fs::read_to_string(p.join("a")));
        let found = children(folder).unwrap();
        found.iter().map(|p| (name_of(p), text(p).unwrap_or_default())).collect()
    }

    #[test]
    fn a_folder_that_exists_is_filled_and_replaced_and_keeps_what_is_not_ours() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        fs::create_dir_all(out.join("lost+found")).unwrap();
        fs::write(out.join(".gitkeep"), "").unwrap();
        for text in ["one", "two"] {
            let dir = OutDir::create(&out, CONTENTS).unwrap();
            assert_eq!(dir.path().parent(), Some(&*out));
            write(dir.path(), text);
            dir.commit().unwrap();
            let names: Vec<_> = held(&out).into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, [".gitkeep", "all.bin", "lost+found", "mark.json", "more"]);
            assert_eq!(fs::read_to_string(out.join("all.bin")).unwrap(), text);
            assert_eq!(fs::read_to_string(out.join("more/a")).unwrap(), text);
            assert!(fs::read_to_string(out.join("mark.json")).unwrap().contains(text));
        }
        let before = held(&out);
        let dir = OutDir::create(&out, CONTENTS).unwrap();
        write(dir.path(), "three");
        drop(dir);
        assert_eq!(held(&out), before);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_ordinary_folder_changes_places_with_the_new_one() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        for text in ["one", "two", "three"] {
            let dir = OutDir::create(&out, CONTENTS).unwrap();
            assert_eq!(dir.path().parent(), Some(root.path()), "beside it");
            write(dir.path(), text);
            if text == "three" {
                // Where the two cannot change places, the folder is filled.
                OutDir { place: Place::Filled, ..dir }.commit().unwrap();
            } else {
                dir.commit().unwrap();
            }
            assert_eq!(held(&out)[0], ("all.bin".into(), text.into()));
            assert_eq!((held(&out).len(), children(root.path()).unwrap().len()), (3, 1));
        }
        // Rights that a user gave it stay.
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&out, fs::Permissions::from_mode(0o750)).unwrap();
        let dir = OutDir::create(&out, CONTENTS).unwrap();
        assert_eq!(dir.place, Place::Exchanged);
        write(dir.path(), "four");
        dir.commit().unwrap();
        assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o750);
        assert_eq!(held(&out)[0], ("all.bin".into(), "four".into()));
    }

    #[test]
    fn where_replacing_fails_half_way_all_is_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "old");
        let before = held(root.path());
        // What is in the way stops the first, the second or the third of the moves.
        for name in CONTENTS.in_order() {
            let aside = tempfile::tempdir_in(root.path().parent().unwrap()).unwrap();
            fs::create_dir_all(aside.path().join(name).join("in the way")).unwrap();
            let dir = OutDir::create(root.path(), CONTENTS).unwrap();
            write(dir.path(), "new");
            assert!(dir.replace(aside.path()).is_err(), "{name}");
            assert_eq!(held(dir.path()).len(), 3);
            drop(dir);
            assert_eq!(held(root.path()), before, "{name}");
        }
        // A name that the verb is not known to write is a mistake of ours, seen before any move.
        let dir = OutDir::create(root.path(), CONTENTS).unwrap();
        write(dir.path(), "new");
        fs::write(dir.path().join("other"), "").unwrap();
        assert!(dir.commit().unwrap_err().to_string().contains("other"));
        assert_eq!(held(root.path()), before);
    }

    #[test]
    fn only_a_file_that_begins_as_ours_is_replaced_and_never_one_that_is_read() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for (name, text) in [("empty", ""), ("ours", "<ours>1"), ("read", "<ours>2"), ("b", "<our")]
        {
            fs::write(at(name), text).unwrap();
        }
        fs::hard_link(at("read"), at("also")).unwrap();
        let said = |name: &str| {
            let done = check_file_like(&at(name), "a page", "<ours>", &[&at("read")]);
            done.map_err(|e| e.to_string())
        };
        for name in ["new", "empty", "ours"] {
            assert_eq!(said(name), Ok(()), "{name}");
        }
        assert!(
            said("b").unwrap_err().contains("a page to replace, found a file that eslm-kd did")
        );
        for name in ["read", "also"] {
            assert!(said(name).unwrap_err().contains("found the file that is read"), "{name}");
        }
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        fs::create_dir(&out).unwrap();
        let left_file = root.path().join(".file.1-0.tmp");
        fs::write(&left_file, "left").unwrap();
        check_file(&root.path().join("file")).unwrap();
        assert!(!left_file.exists());
        for left in [out.join(".eslm-kd.1-0.tmp"), root.path().join(".new.1-0.tmp")] {
            fs::create_dir(&left).unwrap();
            fs::write(left.join("all.bin"), "left").unwrap();
        }
        let living = OutDir::create(&out, CONTENTS).unwrap();
        assert_eq!(children(&out).unwrap(), [living.path()]);
        let other = OutDir::create(&out, CONTENTS).unwrap();
        assert_ne!(living.path(), other.path());
        assert!(living.path().is_dir());
        let new = root.path().join("new");
        OutDir::check(&new, CONTENTS).unwrap();
        assert_eq!(children(root.path()).unwrap(), [&*out]);
        // A folder that was filled half when its process was killed can be filled again.
        drop((living, other));
        write(&out, "half");
        fs::remove_file(out.join("all.bin")).unwrap();
        let dir = OutDir::create(&out, CONTENTS).unwrap();
        write(dir.path(), "whole");
        dir.commit().unwrap();
        assert_eq!(fs::read_to_string(out.join("all.bin")).unwrap(), "whole");
    }

    #[test]
    fn folders_above_a_claim_go_with_it() {
        let root = tempfile::tempdir().unwrap();
        let dir = OutDir::create(&root.path().join("a/b/c"), CONTENTS).unwrap();
        write(dir.path(), "one");
        drop(dir);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        let dir = OutDir::create(&root.path().join("a/b/c"), CONTENTS).unwrap();
        write(dir.path(), "one");
        dir.commit().unwrap();
        assert!(root.path().join("a/b/c/all.bin").is_file());
        assert_eq!(fs::read_dir(root.path().join("a/b")).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_to_what_is_written() {
        use std::os::unix::fs::symlink;
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("disk")).unwrap();
        symlink("disk/new", at("second")).unwrap();
        symlink("second", at("first")).unwrap();
        assert_eq!(folder_behind(&at("first/")).unwrap(), at("disk/new"));
        super::super::write_atomic(&at("first"), |w| {
            w.write_all(b"x").map_err(|e| Error::data(e.to_string()))
        })
        .unwrap();
        assert!(at("first").is_symlink() && at("second").is_symlink());
        assert_eq!(fs::read(at("disk/new")).unwrap(), b"x");
        symlink("nowhere/new", at("far")).unwrap();
        let message = folder_behind(&at("far")).unwrap_err().to_string();
        assert!(message.contains("nowhere") && message.contains("mount or make it"), "{message}");
        symlink("round", at("round")).unwrap();
        assert!(folder_behind(&at("round")).is_err() && file_behind(&at("round")).is_err());
        assert!(folder_behind(&at("missing/..")).is_err());
    }
}
