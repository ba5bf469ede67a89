//! Weights in and out: a Hugging Face folder -> (shape, parameters) and back, by family; plain
//! parameter files for checkpoints.
//!
//! Files are memory-mapped and read tensor by tensor: beside the parameters themselves, at most one
//! tensor is held.

mod config_json;
mod family;
mod files;
mod save;

pub use crate::data::tokenizer::TOKENIZER_FILES;
pub use config_json::{parse_config, parse_config_keys, read_config};
pub use files::{INDEX_FILE, WEIGHTS_FILE, plain_file_name, shard_names};
pub use save::{SaveOptions, SpecialIds, save_model, save_params, state_length};

use crate::error::{Error, Result};
use crate::model::{Gpt2Config, Layout, ParamSet, ParamSpec};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use family::{Names, pieces};
use files::TensorFiles;
use safetensors::{Dtype, tensor::TensorView};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Reads a Hugging Face folder: `config.json` with `model.safetensors`, or with
/// `model.safetensors.index.json` and its shards.
///
/// Tensors may be stored in f64, f32, f16 or bf16; the parameters are f32 on `device`. The prefix of
/// the model inside its head and those of wrappers are optional; buffers and heads of other tasks
/// ([`unused_tensors`]) are ignored. A matrix that embedding and head share may be stored under
/// either name; under both it must have the same bits.
pub fn load_model(dir: &Path, device: &Device) -> Result<(Gpt2Config, ParamSet)> {
    let config = read_config(&dir.join("config.json"))?;
    let files = TensorFiles::open_model(dir)?;
    let mut stored = Stored::of_model(&files, &config, dir)?;
    let params = stored.read(&config, dir, device)?;
    if let Some(head) = stored.head.take() {
        let name = Names::of(config.parts.family).heads[0];
        check_tied(name, &to_f32(name, &head)?, params.wte(), dir)?;
    }
    Ok((config, params))
}

/// The shape that `config.json` of such a folder states, with names and shapes of the stored
/// tensors checked against it. None of their values is read.
pub fn check_model(dir: &Path) -> Result<Gpt2Config> {
    let config = read_config(&dir.join("config.json"))?;
    let files = TensorFiles::open_model(dir)?;
    Stored::of_model(&files, &config, dir)?.layout(&config, dir)?;
    Ok(config)
}

/// Names of the tensors of such a folder that [`load_model`] does not read because they are a head
/// of another task's: a value head, a classifier.
pub fn unused_tensors(dir: &Path) -> Result<Vec<String>> {
    let config = read_config(&dir.join("config.json"))?;
    let files = TensorFiles::open_model(dir)?;
    Ok(Stored::of(&files, Some(Names::of(config.parts.family)))?.unused)
}

/// SHA-256 of the weights of a folder that [`load_model`] reads, in hexadecimal: of
/// `model.safetensors`, or of its shards one after the other in the order of their names; of a file,
/// of that file. Who fetched or copied them, and where to, does not matter.
pub fn weights_hash(path: &Path) -> Result<String> {
    let files = match path.is_file() {
        true => TensorFiles::open_one(path)?,
        false => TensorFiles::open_model(path)?,
    };
    files.hash()
}

/// Reads a file that [`save_params`] wrote: exactly the tensors of `layout`, in f32, with every bit
/// kept (NaN too: for that there is [`check_finite`]).
pub fn load_params(path: &Path, layout: &Layout, device: &Device) -> Result<ParamSet> {
    let files = TensorFiles::open_one(path)?;
    let stored = Stored::of(&files, None)?;
    stored.check(layout.entries().iter().map(|s| (s.name.clone(), s.shape.clone())), path)?;
    let mut tensors = Vec::with_capacity(layout.entries().len());
    for ParamSpec { name, shape, .. } in layout.entries() {
        crate::interrupt::check()?;
        let view = &stored.tensors[name.as_str()];
        if view.dtype() != Dtype::F32 {
            return Err(Error::data(format!(
                "{}: tensor {name} must be stored in F32, found {:?}; the file was not written by this program",
                path.display(),
                view.dtype()
            )));
        }
        tensors.push(Tensor::from_raw_buffer(view.data(), DType::F32, shape, device)?);
        files.release(view.data());
    }
    Ok(ParamSet::new(layout.clone(), tensors))
}

/// Errs with the name of the first tensor that holds NaN or an infinity, of parameters read from
/// `place`.
pub fn check_finite(params: &ParamSet, place: &Path) -> Result<()> {
    params.named().try_for_each(|(name, tensor)| {
        crate::interrupt::check()?;
        tensor_is_finite(name, tensor).map_err(|e| e.context(place.display()))
    })
}

/// Tensors by their names without prefix; what a folder may carry beside the parameters is set
/// apart.
struct Stored<'a> {
    files: &'a TensorFiles,
    tensors: HashMap<String, TensorView<'a>>,
    /// The head that is stored beside the embedding it should be.
    head: Option<TensorView<'a>>,
    /// What belongs to a head of another task.
    unused: Vec<String>,
}

impl<'a> Stored<'a> {
    /// The tensors of a model of that shape.
    fn of_model(files: &'a TensorFiles, config: &Gpt2Config, dir: &Path) -> Result<Self> {
        let names = Names::of(config.parts.family);
        let mut stored = Self::of(files, Some(names))?;
        let written = names.heads[0];
        let mut heads = names.heads.iter().filter_map(|name| stored.tensors.remove(*name));
        let (head, another) = (heads.next(), heads.next());
        if another.is_some() {
            return Err(Error::data(format!(
                "{}: the head is stored twice, as {}",
                dir.display(),
                names.heads.join(" and as ")
            )));
        }
        match (config.parts.own_head, head) {
            (true, Some(head)) => drop(stored.tensors.insert(written.into(), head)),
            (true, None) => {
                return Err(Error::data(format!(
                    "{}: no {written} is stored, and the head is not the embedding (tie_word_embeddings is false, or absent \
                     where the family's default is false); expected that tensor, or tie_word_embeddings = true{}",
                    dir.display(),
                    match &stored.unused[..] {
                        [] => String::new(),
                        unused => format!("; found heads of another task: {}", unused.join(", ")),
                    }
                )));
            }
            // One matrix, two names: some writers keep the head's.
            (false, Some(head)) if !stored.tensors.contains_key(names.embedding) => {
                stored.tensors.insert(names.embedding.into(), head);
            }
            (false, head) => stored.head = head,
        }
        Ok(stored)
    }

    /// All tensors of files, or of a family's files by its names for them.
    fn of(files: &'a TensorFiles, names: Option<Names>) -> Result<Self> {
        let mut stored = Self { files, tensors: HashMap::new(), head: None, unused: Vec::new() };
        for (path, file) in files.iter() {
            for (full, view) in file? {
                let name = names.map_or(full.as_str(), |names| names.own(&full)).to_string();
                if names.is_some_and(|names| (names.is_buffer)(&name)) {
                    continue;
                }
                if names.is_some_and(|names| names.is_other_head(&name)) {
                    stored.unused.push(name);
                    continue;
                }
                // A shard may hold a tensor that the index takes from another.
                let held = stored.tensors.contains_key(&name);
                let listed = names.and_then(|names| files.listed(&name, names)).filter(|_| held);
                if listed.is_some_and(|shard| path.file_name().is_none_or(|file| file != shard)) {
                    continue;
                }
                if listed.is_some() {
                    stored.tensors.remove(&name);
                }
                if stored.tensors.insert(name.clone(), view).is_some() {
                    return Err(Error::data(format!(
                        "{}: tensor {name} is stored twice (with and without a prefix, or in two files)",
                        path.display()
                    )));
                }
            }
        }
        Ok(stored)
    }

    /// The layout of `config`, which the stored tensors have.
    fn layout(&self, config: &Gpt2Config, dir: &Path) -> Result<Layout> {
        // A shape from a file is a claim: the list of names it implies is made only once its length
        // is plausible.
        if config.n_layer > self.tensors.len() {
            return Err(Error::data(format!(
                "{}: config.json says {} blocks (n_layer, num_hidden_layers), but the weights hold only {} tensors",
                dir.display(),
                config.n_layer,
                self.tensors.len()
            )));
        }
        let layout = Layout::new(config);
        let names = Names::of(config.parts.family);
        let expected = layout.entries().iter().flat_map(|spec| {
            pieces(config, spec)
                .into_iter()
                .map(|piece| (names.own(&piece.name).to_string(), piece.shape(spec)))
        });
        self.check(expected, dir)?;
        Ok(layout)
    }

    fn read(&self, config: &Gpt2Config, dir: &Path, device: &Device) -> Result<ParamSet> {
        let layout = self.layout(config, dir)?;
        let names = Names::of(config.parts.family);
        let mut tensors = Vec::with_capacity(layout.entries().len());
        for spec in layout.entries() {
            crate::interrupt::check()?;
            let mut parts = Vec::new();
            for piece in pieces(config, spec) {
                let name = names.own(&piece.name);
                let view = &self.tensors[name];
                let tensor = to_f32(name, view).map_err(|e| e.context(dir.display()))?;
                self.files.release(view.data());
                tensor_is_finite(name, &tensor).map_err(|e| e.context(dir.display()))?;
                parts.push(piece.read(tensor)?);
            }
            let whole = match parts.len() {
                1 => parts.swap_remove(0),
                _ => Tensor::cat(&parts, spec.shape.len() - 1)?,
            };
            tensors.push(whole.to_device(device)?);
        }
        Ok(ParamSet::new(layout, tensors))
    }

    /// Every expected tensor is there with its shape, and nothing else is.
    fn check(
        &self,
        expected: impl Iterator<Item = (String, Vec<usize>)>,
        place: &Path,
    ) -> Result<()> {
        let expected: Vec<(String, Vec<usize>)> = expected.collect();
        let known: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let missing: Vec<&str> = expected
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !self.tensors.contains_key(*name))
            .collect();
        let mut extra: Vec<&str> =
            self.tensors.keys().map(String::as_str).filter(|n| !known.contains(n)).collect();
        extra.sort_unstable();
        if !missing.is_empty() || !extra.is_empty() {
            let mut what = Vec::new();
            if !missing.is_empty() {
                what.push(format!("missing {}", some_of(&missing)));
                if let Some(shard) = self.files.said_of(missing[0]) {
                    what.push(format!("{INDEX_FILE} says that {} is in {shard}", missing[0]));
                }
            }
            if !extra.is_empty() {
                what.push(format!("unexpected {}", some_of(&extra)));
            }
            return Err(Error::data(format!(
                "{}: tensors do not match the shape: {} (expected {} tensors, found {})",
                place.display(),
                what.join("; "),
                expected.len(),
                self.tensors.len()
            )));
        }
        for (name, shape) in &expected {
            let found = self.tensors[name].shape();
            if found != shape.as_slice() {
                return Err(Error::data(format!(
                    "{}: tensor {name} must have shape {shape:?}, found {found:?}",
                    place.display()
                )));
            }
        }
        Ok(())
    }
}

/// At most five names, then how many more.
pub(super) fn some_of(names: &[&str]) -> String {
    let mut text = names.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 5 {
        text += &format!(" and {} more", names.len() - 5);
    }
    text
}

/// One stored tensor as f32 on the CPU.
fn to_f32(name: &str, view: &TensorView) -> Result<Tensor> {
    let dtype = match view.dtype() {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => {
            return Err(Error::data(format!(
                "tensor {name} is stored as {other:?}; expected F64, F32, F16 or BF16"
            )));
        }
    };
    Ok(Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?
        .to_dtype(DType::F32)?)
}

/// Runs `f` on the values of a contiguous f32 tensor of the CPU without copying them.
pub(super) fn with_values<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let range = layout.contiguous_offsets();
    match (&*storage, range) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((from, to))) => Ok(f(&values[from..to])),
        _ => Err(Error::internal(format!("expected an f32 tensor, found {:?}", tensor.dtype()))),
    }
}

/// Errs with the name of a tensor that holds NaN or an infinity.
pub(super) fn tensor_is_finite(name: &str, tensor: &Tensor) -> Result<()> {
    let bad = with_values(tensor, |v| v.iter().position(|x| !x.is_finite()).map(|at| (at, v[at])))?;
    match bad {
        None => Ok(()),
        Some((at, value)) => Err(Error::data(format!(
            "tensor {name} of shape {:?} holds {value} at flat index {at}; expected finite numbers: the file is damaged \
             or its training diverged",
            tensor.dims()
        ))),
    }
}

fn check_tied(name: &str, head: &Tensor, wte: &Tensor, dir: &Path) -> Result<()> {
    let untied = || {
        Error::data(format!(
            "{}: {name} differs from the embedding, and config.json says that the two are one (tie_word_embeddings is true, \
             or absent where that is the default); write tie_word_embeddings = false if the head is a matrix of its own",
            dir.display()
        ))
    };
    if head.dims() != wte.dims() {
        return Err(untied());
    }
    let same = with_values(head, |h| {
        with_values(wte, |w| h.iter().zip(w).all(|(a, b)| a.to_bits() == b.to_bits()))
    })??;
    if same { Ok(()) } else { Err(untied()) }
}

#[cfg(test)]
mod tests;
