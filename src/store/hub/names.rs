//! What names things on the Hub: repositories, revisions, the hashes of files; all checked before
//! they become paths.

use crate::error::{Error, Result};
use crate::files::hex;
use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Which files of a repository are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Config, weights and tokenizer.
    Model,
    /// The tokenizer's files.
    TokenizerOnly,
    /// The config: a model's shape.
    ConfigOnly,
}

/// The hash that names a blob, and that its bytes must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Etag {
    /// Large (LFS or Xet) files: SHA-256 of the bytes.
    Sha256(String),
    /// Small files: git's blob hash, SHA-1 of `blob LENGTH\0` and the bytes.
    GitBlob(String),
}

impl Etag {
    /// Reads an ETag header's value; None if it is not a hash that the bytes could be checked
    /// against. What passes is lower-case hexadecimal, hence also safe as a file name.
    pub fn parse(header: &str) -> Option<Self> {
        let text = header.trim().trim_start_matches("W/").trim_matches('"');
        let hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match text.len() {
            64 if hex => Some(Self::Sha256(text.into())),
            40 if hex => Some(Self::GitBlob(text.into())),
            _ => None,
        }
    }

    /// The blob's file name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// Whether the file at `path` has this hash. Polls the stop signal.
    pub fn matches(&self, path: &Path) -> Result<bool> {
        let failed = |e| Error::io("read", path, e);
        let mut file = File::open(path).map_err(failed)?;
        let (mut sha256, mut sha1) = (Sha256::new(), Sha1::new());
        if let Self::GitBlob(_) = self {
            sha1.update(format!("blob {}\0", file.metadata().map_err(failed)?.len()));
        }
        let mut block = vec![0; 1 << 20];
        loop {
            crate::interrupt::check()?;
            let n = file.read(&mut block).map_err(failed)?;
            match self {
                _ if n == 0 => break,
                Self::Sha256(_) => sha256.update(&block[..n]),
                Self::GitBlob(_) => sha1.update(&block[..n]),
            }
        }
        let found = match self {
            Self::Sha256(_) => hex(&sha256.finalize()),
            Self::GitBlob(_) => hex(&sha1.finalize()),
        };
        Ok(found == self.as_str())
    }
}

/// `org/name` or `name`, by the Hub's rules; anything else never reaches a path or an address.
pub fn valid_repo_id(id: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && !p.starts_with(['-', '.'])
            && !p.ends_with(['-', '.'])
    };
    id.len() <= 96
        && id.split('/').count() <= 2
        && id.split('/').all(part)
        && !id.contains("--")
        && !id.contains("..")
        && !id.ends_with(".git")
}

/// A branch, tag, `refs/pr/N` or commit that is safe as a path below `refs/`.
pub fn valid_revision(revision: &str) -> bool {
    revision.len() <= 255
        && revision.chars().all(|c| {
            !c.is_control() && !c.is_whitespace() && !matches!(c, '\\' | ':' | '?' | '*' | '[')
        })
        && revision.split('/').all(|p| !p.is_empty() && !p.starts_with('.') && !p.ends_with('.'))
}

/// A full commit hash.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn ids_revisions_and_etags_are_checked_before_they_become_paths() {
        for id in ["gpt2", "openai-community/gpt2", "a/b_c.d-e"] {
            assert!(valid_repo_id(id), "{id}");
        }
        for id in [
            "", "/", "a/", "../x", "a/../b", "a/b/c", "a--b/c", ".a/b", "a b", "a/b.git", "a\\b",
            "C:/x", "é/x",
        ] {
            assert!(!valid_repo_id(id), "{id}");
        }
        for revision in ["main", "v1.0", "refs/pr/3", "feature/x"] {
            assert!(valid_revision(revision), "{revision}");
        }
        for revision in ["", "../x", "a/../b", "/etc", "a//b", "a\nb", "a\\b", "."] {
            assert!(!valid_revision(revision), "{revision}");
        }
        assert_eq!(
            Etag::parse(&format!("W/\"{}\"", "a".repeat(40))),
            Some(Etag::GitBlob("a".repeat(40)))
        );
        assert_eq!(
            Etag::parse(&format!("\"{}\"", "0".repeat(64))),
            Some(Etag::Sha256("0".repeat(64)))
        );
        for etag in ["", "\"abc\"", &"g".repeat(40), &"A".repeat(64), "../../x"] {
            assert_eq!(Etag::parse(etag), None, "{etag}");
        }
    }

    #[test]
    fn hashes_are_gits_and_sha256() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hello");
        fs::write(&path, "hello\n").unwrap();
        // `git hash-object` and `sha256sum` of the same file.
        let git = Etag::parse("ce013625030ba8dba906f756967f9e9ca394464a").unwrap();
        let sha = Etag::parse("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03")
            .unwrap();
        assert!(git.matches(&path).unwrap() && sha.matches(&path).unwrap());
        fs::write(&path, "hellp\n").unwrap();
        assert!(!git.matches(&path).unwrap() && !sha.matches(&path).unwrap());
    }
}
