//! Weights in and out: a Hugging Face GPT-2 folder -> (shape, parameters) and back; plain parameter
//! files for checkpoints.
//!
//! Files are memory-mapped and read tensor by tensor: beside the parameters themselves, at most one
//! tensor is held.

mod config_json;
mod files;
mod save;

pub use crate::data::tokenizer::TOKENIZER_FILES;
use config_json::says_untied;
pub use config_json::{parse_config, read_config};
pub use files::{INDEX_FILE, WEIGHTS_FILE, plain_file_name, shard_names};
pub use save::{SaveOptions, SpecialIds, save_model, save_params, state_length};

use crate::error::{Error, Result};
use crate::model::{Gpt2Config, Layout, ParamSet, ParamSpec};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use files::{TensorFiles, own_name};
use safetensors::{Dtype, tensor::TensorView};
use std::collections::HashMap;
use std::path::Path;

/// Reads a Hugging Face GPT-2 folder: `config.json` with `model.safetensors`, or with
/// `model.safetensors.index.json` and its shards.
///
/// Tensors may be stored in f64, f32, f16 or bf16; the parameters are f32 on `device`. The
/// `transformer.` prefix and those of wrappers are optional; mask buffers and heads of other tasks
/// ([`unused_tensors`]) are ignored. The matrix that embedding and head share may be stored under
/// either name; under both it must have the same bits.
pub fn load_model(dir: &Path, device: &Device) -> Result<(Gpt2Config, ParamSet)> {
    let config = read_config(&dir.join("config.json"))?;
    let files = TensorFiles::open_model(dir)?;
    let stored = Stored::of(&files, true)?;
    stored.check_head(dir)?;
    let params = stored.read(&config, dir, device)?;
    if let Some(head) = stored.head {
        check_tied(&to_f32("lm_head.weight", &head)?, params.wte(), dir)?;
    }
    Ok((config, params))
}

/// The shape that `config.json` of such a folder states, with names and shapes of the stored
/// tensors checked against it. None of their values is read.
pub fn check_model(dir: &Path) -> Result<Gpt2Config> {
    let config = read_config(&dir.join("config.json"))?;
    let files = TensorFiles::open_model(dir)?;
    let stored = Stored::of(&files, true)?;
    stored.check_head(dir)?;
    stored.layout(&config, dir)?;
    Ok(config)
}

/// Names of the tensors of such a folder that [`load_model`] does not read because they are a head
/// of another task's: a value head, a classifier.
pub fn unused_tensors(dir: &Path) -> Result<Vec<String>> {
    let files = TensorFiles::open_model(dir)?;
    Ok(Stored::of(&files, true)?.unused)
}

/// SHA-256 of the weights of a folder that [`load_model`] reads, in hexadecimal: of
/// `model.safetensors`, or of its shards one after the other in the order of their names. Who
/// fetched or copied them, and where to, does not matter.
pub fn weights_hash(dir: &Path) -> Result<String> {
    TensorFiles::open_model(dir)?.hash()
}

/// Reads a file that [`save_params`] wrote: exactly the tensors of `layout`, in f32, with every bit
/// kept (NaN too: for that there is [`check_finite`]).
pub fn load_params(path: &Path, layout: &Layout, device: &Device) -> Result<ParamSet> {
    let files = TensorFiles::open_one(path)?;
    let stored = Stored::of(&files, false)?;
    stored.check(layout, path)?;
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

/// Tensors by their names without prefix; what a GPT-2 checkpoint may carry beside its parameters
/// is set apart.
struct Stored<'a> {
    files: &'a TensorFiles,
    tensors: HashMap<String, TensorView<'a>>,
    head: Option<TensorView<'a>>,
    /// What belongs to a head of another task.
    unused: Vec<String>,
}

impl<'a> Stored<'a> {
    fn of(files: &'a TensorFiles, hugging_face: bool) -> Result<Self> {
        let mut stored = Self { files, tensors: HashMap::new(), head: None, unused: Vec::new() };
        for (path, file) in files.iter() {
            for (full, view) in file? {
                let name = if hugging_face { own_name(&full).to_string() } else { full };
                if hugging_face && is_mask(&name) {
                    continue;
                }
                if hugging_face && is_other_head(&name) {
                    stored.unused.push(name);
                    continue;
                }
                // A shard may hold a tensor that the index takes from another.
                let held = stored.tensors.contains_key(&name)
                    || (name == "lm_head.weight" && stored.head.is_some());
                let listed = files.listed(&name).filter(|_| held);
                if listed.is_some_and(|shard| path.file_name().is_none_or(|file| file != shard)) {
                    continue;
                }
                if listed.is_some() {
                    stored.tensors.remove(&name);
                    stored.head.take_if(|_| name == "lm_head.weight");
                }
                let twice = if hugging_face && name == "lm_head.weight" {
                    stored.head.replace(view).is_some()
                } else {
                    stored.tensors.insert(name.clone(), view).is_some()
                };
                if twice {
                    return Err(Error::data(format!(
                        "{}: tensor {name} is stored twice (with and without `transformer.`, or in two files)",
                        path.display()
                    )));
                }
            }
        }
        // One matrix, two names: some writers keep the head's.
        if !stored.tensors.contains_key("wte.weight")
            && let Some(head) = stored.head.take()
        {
            stored.tensors.insert("wte.weight".into(), head);
        }
        Ok(stored)
    }

    /// Errs where the config says that the head is not the embedding and none is stored; one that is
    /// stored is compared.
    fn check_head(&self, dir: &Path) -> Result<()> {
        if self.head.is_some() || !says_untied(&dir.join("config.json"))? {
            return Ok(());
        }
        Err(Error::data(format!(
            "{}: config.json says tie_word_embeddings = false, and no lm_head.weight is stored beside wte.weight; expected \
             true, or a head with the embedding's values: other heads are not supported",
            dir.display()
        )))
    }

    /// The layout of `config`, which the stored tensors have.
    fn layout(&self, config: &Gpt2Config, dir: &Path) -> Result<Layout> {
        // A shape from a file is a claim: the list of names it implies is made only once its length
        // is plausible.
        if config.n_layer > self.tensors.len() {
            return Err(Error::data(format!(
                "{}: config.json says n_layer = {}, but the weights hold only {} tensors",
                dir.display(),
                config.n_layer,
                self.tensors.len()
            )));
        }
        let layout = Layout::new(config);
        self.check(&layout, dir)?;
        Ok(layout)
    }

    fn read(&self, config: &Gpt2Config, dir: &Path, device: &Device) -> Result<ParamSet> {
        let layout = self.layout(config, dir)?;
        let mut tensors = Vec::with_capacity(layout.entries().len());
        for ParamSpec { name, .. } in layout.entries() {
            crate::interrupt::check()?;
            let view = &self.tensors[name.as_str()];
            let tensor = to_f32(name, view).map_err(|e| e.context(dir.display()))?;
            self.files.release(view.data());
            tensor_is_finite(name, &tensor).map_err(|e| e.context(dir.display()))?;
            tensors.push(tensor.to_device(device)?);
        }
        Ok(ParamSet::new(layout, tensors))
    }

    /// Every tensor of the layout is there with its shape, and nothing else is.
    fn check(&self, layout: &Layout, place: &Path) -> Result<()> {
        let expected: HashMap<&str, &[usize]> = layout
            .entries()
            .iter()
            .map(|spec| (spec.name.as_str(), spec.shape.as_slice()))
            .collect();
        let missing: Vec<&str> = layout
            .entries()
            .iter()
            .map(|spec| spec.name.as_str())
            .filter(|n| !self.tensors.contains_key(*n))
            .collect();
        let mut extra: Vec<&str> =
            self.tensors.keys().map(String::as_str).filter(|n| !expected.contains_key(n)).collect();
        extra.sort_unstable();
        if !missing.is_empty() || !extra.is_empty() {
            let mut what = Vec::new();
            if !missing.is_empty() {
                what.push(format!("missing {}", some_of(&missing)));
                if let Some(shard) = self.files.listed(missing[0]) {
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
                layout.entries().len(),
                self.tensors.len()
            )));
        }
        for ParamSpec { name, shape, .. } in layout.entries() {
            let found = self.tensors[name.as_str()].shape();
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

/// The causal masks that old checkpoints store with each block: `h.N.attn.bias` and
/// `h.N.attn.masked_bias`.
fn is_mask(name: &str) -> bool {
    name.strip_prefix("h.").and_then(|rest| rest.split_once('.')).is_some_and(|(n, rest)| {
        n.parse::<usize>().is_ok() && matches!(rest, "attn.bias" | "attn.masked_bias")
    })
}

/// Whether a tensor lies outside the parts of a GPT-2, whose names are these.
fn is_other_head(name: &str) -> bool {
    let part = name.split('.').next().unwrap_or_default();
    !["wte", "wpe", "h", "ln_f", "lm_head"].contains(&part)
}

/// At most five names, then how many more.
fn some_of(names: &[&str]) -> String {
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

fn tensor_is_finite(name: &str, tensor: &Tensor) -> Result<()> {
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

fn check_tied(head: &Tensor, wte: &Tensor, dir: &Path) -> Result<()> {
    let untied = || {
        Error::data(format!(
            "{}: lm_head.weight differs from wte.weight; untied heads are not supported, GPT-2 shares the two",
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
