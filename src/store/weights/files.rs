//! The safetensors files of a model folder, memory-mapped.

use super::family::Names;
use crate::error::{Error, Result};
use crate::files::{Input, check_real, is_named};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// All tensors in one file.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Which shard holds which tensor.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// Far above any real index or config, far below what could exhaust memory.
const MOST_JSON_BYTES: u64 = 64 << 20;

/// Open, mapped files.
pub(super) struct TensorFiles {
    files: Vec<(PathBuf, Mmap)>,
    /// Which shard the index says holds which tensor. Writers list tied tensors and buffers there
    /// that they then leave away, so it is believed only where something is missing.
    index: BTreeMap<String, String>,
}

impl TensorFiles {
    /// One file.
    pub fn open_one(path: &Path) -> Result<Self> {
        let input = Input::open(path)?;
        if input.is_stream() {
            return Err(Error::data(format!(
                "{}: expected a safetensors file, found a pipe or a device",
                path.display()
            )));
        }
        let file = input.into_file();
        // SAFETY: the mapping is read-only and lives no longer than the load. A file that another
        // process truncates meanwhile is outside what a program can guard against; the files we
        // write are renamed into place.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        Ok(Self { files: vec![(path.to_path_buf(), map)], index: BTreeMap::new() })
    }

    /// `model.safetensors`, or the shards that the index names.
    pub fn open_model(dir: &Path) -> Result<Self> {
        let single = dir.join(WEIGHTS_FILE);
        if is_named(&single) {
            return Self::open_one(&single);
        }
        let index = dir.join(INDEX_FILE);
        if !is_named(&index) {
            return Err(no_weights(dir));
        }
        let map = read_index(&index)?;
        let mut files = Vec::new();
        for name in unique(&map) {
            let path = dir.join(&name);
            if !is_named(&path) {
                return Err(Error::data(format!(
                    "{}: shard {name} is named by {INDEX_FILE} but is not in the folder; fetch the model again",
                    dir.display()
                )));
            }
            files.extend(Self::open_one(&path)?.files);
        }
        Ok(Self { files, index: map })
    }

    /// The shard that the index says holds a tensor, by its name without prefix.
    pub fn listed(&self, name: &str, names: Names) -> Option<&str> {
        let found = self.index.iter().find(|(full, _)| names.own(full) == name);
        found.map(|(_, shard)| shard.as_str())
    }

    /// The same for a message, whatever stands before the name.
    pub fn said_of(&self, name: &str) -> Option<&str> {
        let is =
            |full: &str| full.strip_suffix(name).is_some_and(|p| p.is_empty() || p.ends_with('.'));
        self.index.iter().find(|(full, _)| is(full)).map(|(_, shard)| shard.as_str())
    }

    /// SHA-256 of the files, one after the other.
    pub fn hash(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        for part in self.files.iter().flat_map(|(_, map)| map.chunks(1 << 24)) {
            crate::interrupt::check()?;
            hasher.update(part);
            self.release(part);
        }
        Ok(format!("{:x}", hasher.finalize()))
    }

    /// Tells the system that the mapped bytes of a tensor are not needed again soon, so that the
    /// file's pages do not pile up beside the parameters made from them. Reading them again is
    /// still right, only slower.
    pub fn release(&self, data: &[u8]) {
        #[cfg(unix)]
        for (_, map) in &self.files {
            let Some(offset) = (data.as_ptr() as usize).checked_sub(map.as_ptr() as usize) else {
                continue;
            };
            if offset + data.len() <= map.len() {
                // SAFETY: dropping clean pages of a read-only file mapping only means that they are
                // read again.
                let _ = unsafe {
                    map.unchecked_advise_range(
                        memmap2::UncheckedAdvice::DontNeed,
                        offset,
                        data.len(),
                    )
                };
            }
        }
    }

    /// (path, its tensors in the order of names).
    pub fn iter(&self) -> impl Iterator<Item = (&Path, Result<Vec<(String, TensorView<'_>)>>)> {
        self.files.iter().map(|(path, map)| (path.as_path(), tensors_of(path, map)))
    }
}

fn tensors_of<'a>(path: &Path, map: &'a Mmap) -> Result<Vec<(String, TensorView<'a>)>> {
    check_real(path, map)?;
    if is_pickle(map) {
        return Err(Error::data(format!(
            "{}: is a pickle under the name of a safetensors file. {}",
            path.display(),
            how_to_convert(path.parent().unwrap_or(path))
        )));
    }
    let file = SafeTensors::deserialize(map).map_err(|e| {
        Error::data(format!(
            "{}: not a valid safetensors file ({e}); it may be cut short or damaged",
            path.display()
        ))
    })?;
    let mut tensors = file.tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(tensors)
}

/// Whether bytes begin as `torch.save` writes them: a zip archive, or a bare pickle of protocol 2
/// to 5. Neither can be the low bytes of a safetensors file's header length: the first would be
/// beyond what the format allows, and the second is followed by something other than the zeros of a
/// length.
fn is_pickle(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04")
        || matches!(bytes, [0x80, 2..=5, c, ..] if c.is_ascii_graphic())
}

/// The sentence for whoever has only a pickle.
fn how_to_convert(dir: &Path) -> String {
    let dir = dir.display().to_string(); // `{:?}` quotes and escapes it, close enough to Python
    format!(
        "Pickle files can run code and are never read. Convert once with Python: `from transformers import \
         AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained({dir:?}).save_pretrained({dir:?})`"
    )
}

/// The file of a folder that looks like pickled weights, if there is one: the first by name.
fn pickled(dir: &Path) -> Option<String> {
    let names = std::fs::read_dir(dir).ok()?.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let pickled = |n: &String| {
        let ends = [".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".pkl"];
        ends.iter().any(|end| n.ends_with(end)) && !n.starts_with("training_args")
    };
    names.filter(pickled).min()
}

fn no_weights(dir: &Path) -> Error {
    match pickled(dir) {
        Some(name) => Error::data(format!(
            "{}: found {name}, but no {WEIGHTS_FILE}. {}",
            dir.display(),
            how_to_convert(dir)
        )),
        None => Error::data(format!(
            "{}: expected {WEIGHTS_FILE} or {INDEX_FILE} (a Hugging Face model folder), found neither",
            dir.display()
        )),
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let index: Index = crate::json::parse(&read_json_bytes(path)?)
        .and_then(serde_json::from_value)
        .map_err(|e| Error::data(format!("{}: not a safetensors index: {e}", path.display())))?;
    for shard in index.weight_map.values() {
        if !plain_file_name(shard) || !shard.ends_with(".safetensors") {
            return Err(Error::data(format!(
                "{}: shard name {shard:?} must be the plain name of a .safetensors file in the same folder",
                path.display()
            )));
        }
    }
    if index.weight_map.is_empty() {
        return Err(Error::data(format!("{}: weight_map is empty", path.display())));
    }
    Ok(index.weight_map)
}

/// The shard files that an index names, each once and sorted; every name is checked to be a plain
/// file name.
pub fn shard_names(index: &Path) -> Result<Vec<String>> {
    Ok(unique(&read_index(index)?))
}

fn unique(map: &BTreeMap<String, String>) -> Vec<String> {
    map.values().cloned().collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// Whether `name`, which came from outside, is just a file name: no separator of any system, no
/// drive, no leading dot, no control character, at most 255 bytes.
pub fn plain_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && name.chars().all(|c| !c.is_control() && !matches!(c, '/' | '\\' | ':'))
}

/// The bytes of a JSON file, refused when absurdly long.
pub(super) fn read_json_bytes(path: &Path) -> Result<Vec<u8>> {
    crate::files::read_bounded(path, MOST_JSON_BYTES)
}
