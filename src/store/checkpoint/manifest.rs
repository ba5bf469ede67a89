//! `manifest.json`: size and SHA-256 of every file of a checkpoint, so that damage is found and
//! named before use.

use super::Inputs;
use crate::error::{Error, Result};
use crate::files::{HEAD_BYTES, read_bounded};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind as IoKind, Read};
use std::path::Path;

/// Name of the manifest in a checkpoint folder.
pub const MANIFEST_FILE: &str = "manifest.json";

const FORMAT: &str = "eslm-kd checkpoint";
const VERSION: u32 = 2;
/// Earlier ones that are read, too.
const EARLIEST: u32 = 1;
/// A manifest lists a dozen files.
const MOST_BYTES: u64 = 1 << 20;

/// What a checkpoint consists of and what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always "eslm-kd checkpoint".
    pub format: String,
    /// Version of the folder's layout: 1.
    pub version: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// What the run reads.
    #[serde(flatten)]
    pub inputs: Inputs,
    /// Every file but this one, by name.
    pub files: BTreeMap<String, FileSum>,
}

/// Size and content of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// Bytes.
    pub size: u64,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// Describes the files that `dir` holds now, and writes the description beside them.
    pub(crate) fn write(dir: &Path, step: u64, inputs: &Inputs) -> Result<()> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
            let entry = entry.map_err(|e| Error::io("list", dir, e))?;
            names.push(
                entry
                    .file_name()
                    .into_string()
                    .map_err(|n| Error::internal(format!("odd file name {n:?}")))?,
            );
        }
        let sums: Vec<_> =
            names.into_par_iter().map(|n| sum(&dir.join(&n)).map(|s| (n, s))).collect();
        let manifest = Self {
            format: FORMAT.into(),
            version: VERSION,
            step,
            inputs: inputs.clone(),
            files: sums.into_iter().collect::<Result<_>>()?,
        };
        let text =
            serde_json::to_string_pretty(&manifest).map_err(|e| Error::internal(e.to_string()))?;
        let path = dir.join(MANIFEST_FILE);
        crate::files::write_atomic(&path, |w| {
            writeln!(w, "{text}").map_err(|e| Error::io("write", &path, e))
        })
    }

    /// Reads the manifest of the checkpoint `dir`; nothing else is opened.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        if matches!(fs::metadata(&path), Err(e) if e.kind() == IoKind::NotFound) {
            return Err(damaged(
                dir,
                "manifest.json is missing, so this is no complete checkpoint",
            ));
        }
        let text = read_bounded(&path, MOST_BYTES)?;
        let manifest: Self = serde_json::from_slice(&text).map_err(|e| {
            damaged(dir, &format!("manifest.json is damaged or of another format ({e})"))
        })?;
        if manifest.format != FORMAT {
            return Err(damaged(
                dir,
                &format!("manifest.json says format {:?}, expected {FORMAT:?}", manifest.format),
            ));
        }
        if !(EARLIEST..=VERSION).contains(&manifest.version) {
            // Of kind usage, not data: another layout is no damage, and nobody should fall back
            // behind it.
            return Err(Error::usage(format!(
                "checkpoint {}: layout version {}, but this program reads versions {EARLIEST} to {VERSION}; use the program that \
                 wrote it",
                dir.display(),
                manifest.version
            )));
        }
        Ok(manifest)
    }

    /// Whether the folder's manifest, if it has one, is another program's: no checkpoint of ours.
    /// What cannot be read as anything may be the rest of ours.
    pub(super) fn is_of_another(dir: &Path) -> bool {
        let text = match read_bounded(&dir.join(MANIFEST_FILE), MOST_BYTES) {
            Ok(text) => text,
            Err(_) => return !dir.join(MANIFEST_FILE).exists(),
        };
        serde_json::from_slice::<Value>(&text).is_ok_and(|found| found["format"] != FORMAT)
    }

    /// Compares the files that `concerns` with their sizes and SHA-256; the error names the first
    /// one that differs. `required` must be listed.
    pub(super) fn verify(
        &self,
        dir: &Path,
        required: &[&str],
        concerns: impl Fn(&str) -> bool,
    ) -> Result<()> {
        if let Some(name) = required.iter().find(|name| !self.files.contains_key(**name)) {
            return Err(damaged(dir, &format!("manifest.json does not list {name}")));
        }
        let files: Vec<_> = self.files.iter().filter(|(name, _)| concerns(name)).collect();
        let checks: Vec<Result<()>> =
            files.into_par_iter().map(|(name, sum)| verify_file(dir, name, sum)).collect();
        checks.into_iter().collect()
    }
}

fn verify_file(dir: &Path, name: &str, expected: &FileSum) -> Result<()> {
    let mut parts = Path::new(name).components();
    if !matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None)) {
        return Err(damaged(
            dir,
            &format!("manifest.json lists {name:?}, which is no plain file name"),
        ));
    }
    let path = dir.join(name);
    let size = match fs::metadata(&path) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == IoKind::NotFound => {
            return Err(damaged(dir, &format!("{name} is missing")));
        }
        Err(e) => return Err(Error::io("read", &path, e)),
    };
    if size != expected.size {
        if size < HEAD_BYTES as u64 {
            // Says so where it is a pointer to the file.
            read_bounded(&path, size).map_err(|e| damaged(dir, &e.to_string()))?;
        }
        return Err(damaged(
            dir,
            &format!("{name} is damaged: expected {} bytes, found {size}", expected.size),
        ));
    }
    let found = sum(&path)?.sha256;
    if found != expected.sha256 {
        let text =
            format!("{name} is damaged: expected SHA-256 {}, found {found}", expected.sha256);
        return Err(damaged(dir, &text));
    }
    Ok(())
}

fn damaged(dir: &Path, what: &str) -> Error {
    Error::data(format!("checkpoint {}: {what}", dir.display()))
}

fn sum(path: &Path) -> Result<FileSum> {
    let failed = |e| Error::io("read", path, e);
    let mut file = File::open(path).map_err(failed)?;
    let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        crate::interrupt::check()?;
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
            Err(e) if e.kind() == IoKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(FileSum { size, sha256: format!("{:x}", hasher.finalize()) })
}
