//! Someone's GGUF file as a model, dequantised to f32 tensor by tensor: beside the parameters one
//! tensor is held. Names and order of rows are the writer's (`tensors.rs`), read backwards.

use super::described;
use super::header::Header;
use super::tensors::{DIVISORS, pieces};
use crate::error::{Error, Result};
use crate::files::{Input, check_real};
use crate::model::{Gpt2, Gpt2Config, Layout};
use crate::store::weights::{SpecialIds, some_of, tensor_is_finite};
use candle_core::quantized::gguf_file::TensorInfo;
use candle_core::{Device, Tensor};
use memmap2::Mmap;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Whether a file is GGUF by its name.
pub(in crate::store) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf")) && path.is_file()
}

/// The GGUF files of a folder, by name.
pub(in crate::store) fn all_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|e| e.path()).filter(|path| is_gguf(path)).collect();
    found.sort();
    found
}

/// An open file whose header was read.
pub(in crate::store) struct GgufModel {
    path: PathBuf,
    file: File,
    header: Header,
}

impl GgufModel {
    /// Errs if it is not a whole file of types that are read.
    pub(in crate::store) fn open(path: &Path) -> Result<Self> {
        let input = Input::open(path)?;
        if input.is_stream() {
            return Err(Error::data(format!(
                "{}: expected a GGUF file, found a pipe or a device",
                path.display()
            )));
        }
        let file = input.into_file();
        // SAFETY: the mapping is read-only and lives no longer than this function. A file that
        // another process truncates meanwhile is outside what a program can guard against.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        check_real(path, &map)?;
        let header = Header::parse(&map).map_err(|e| e.context(path.display()))?;
        Ok(Self { path: path.to_path_buf(), file, header })
    }

    /// The shape, with names and shapes of the stored tensors checked against it; of their values
    /// the divisors of rotary frequencies alone are read.
    pub(in crate::store) fn config(&self) -> Result<Gpt2Config> {
        self.checked().map(|(config, _)| config).map_err(|e| e.context(self.path.display()))
    }

    /// The model with its weights on `device`.
    pub(in crate::store) fn load(&self, device: &Device) -> Result<Gpt2> {
        self.read(device).map_err(|e| e.context(self.path.display()))
    }

    /// Ids of special tokens, as `tokenizer.ggml` states them.
    pub(in crate::store) fn special_ids(&self) -> SpecialIds {
        let id = |role: &str| {
            let said = self.header.keys.get(&format!("tokenizer.ggml.{role}_token_id"));
            said.and_then(|id| u32::try_from(id.as_u64()?).ok())
        };
        let eos = id("eos").into_iter().collect();
        SpecialIds { bos: id("bos"), eos, pad: id("padding"), ..Default::default() }
    }

    /// Where the values of tensors begin.
    #[cfg(test)]
    pub(super) fn values_start(&self) -> u64 {
        self.header.start
    }

    fn checked(&self) -> Result<(Gpt2Config, Layout)> {
        let tensors = &self.header.tensors;
        let divisors = match tensors.get(DIVISORS) {
            // A head has fewer pairs than this; the length of a list is a file's claim.
            Some(info) if info.shape.elem_count() <= 1 << 16 => {
                Some(self.tensor(DIVISORS)?.flatten_all()?.to_vec1::<f32>()?)
            }
            Some(_) => return Err(Error::data(format!("tensor {DIVISORS} is too long"))),
            None => None,
        };
        let config = described::config(&self.header, divisors.as_deref())?;
        if config.n_layer > tensors.len() {
            return Err(Error::data(format!(
                "block_count says {} blocks, but the file holds only {} tensors",
                config.n_layer,
                tensors.len()
            )));
        }
        let layout = Layout::new(&config);
        let mut unread: BTreeSet<&str> = tensors.keys().map(String::as_str).collect();
        unread.remove(DIVISORS);
        let mut missing = Vec::new();
        for spec in layout.entries() {
            for piece in pieces(&config, spec)? {
                let expected = piece.shape(spec);
                match tensors.get(&piece.name).map(|info| info.shape.dims()) {
                    None => missing.push(piece.name),
                    Some(found) if found == expected => drop(unread.remove(piece.name.as_str())),
                    Some(found) => {
                        return Err(Error::data(format!(
                            "tensor {} must have shape {expected:?}, found {found:?}",
                            piece.name
                        )));
                    }
                }
            }
        }
        let (missing, unread): (Vec<&str>, Vec<&str>) =
            (missing.iter().map(String::as_str).collect(), unread.into_iter().collect());
        let said = [("missing", missing), ("unexpected", unread)];
        let said: Vec<String> = (said.into_iter().filter(|(_, names)| !names.is_empty()))
            .map(|(what, names)| format!("{what} {}", some_of(&names)))
            .collect();
        if !said.is_empty() {
            return Err(Error::data(format!(
                "tensors do not match the metadata: {}; other models are not supported",
                said.join("; ")
            )));
        }
        Ok((config, layout))
    }

    fn read(&self, device: &Device) -> Result<Gpt2> {
        let (config, layout) = self.checked()?;
        let mut tensors = Vec::with_capacity(layout.entries().len());
        for spec in layout.entries() {
            crate::interrupt::check()?;
            let mut parts = Vec::new();
            for piece in pieces(&config, spec)? {
                let tensor = self.tensor(&piece.name)?;
                tensor_is_finite(&piece.name, &tensor)?;
                parts.push(piece.read(spec, tensor)?);
            }
            let whole = match parts.len() {
                1 => parts.swap_remove(0),
                _ => Tensor::cat(&parts, spec.shape.len() - 1)?,
            };
            tensors.push(whole.to_device(device)?);
        }
        Ok(Gpt2::new(config, crate::model::ParamSet::new(layout, tensors)))
    }

    /// A tensor as f32 on the CPU, rows first.
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let info: &TensorInfo = (self.header.tensors.get(name))
            .ok_or_else(|| Error::internal(format!("tensor {name} was not looked for")))?;
        let stored = info.read(&mut &self.file, self.header.start, &Device::Cpu)?;
        Ok(stored.dequantize(&Device::Cpu)?)
    }
}
