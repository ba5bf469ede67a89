//! Writing safetensors: one tensor at a time, the same bytes every time, readable by whom the umask
//! allows.
//!
//! The safetensors crate's own writer creates files of mode 0600, which other users cannot read;
//! the format is a header and the raw values, so it is written here.

use super::family::{self, pieces};
use super::files::read_json_bytes;
use super::with_values;
use crate::data::tokenizer::{TOKENIZER_FILES, Tokenizer};
use crate::error::{Error, Result};
use crate::files::{is_named, read_bounded, write_atomic};
use crate::model::{Gpt2Config, ParamSet};
use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// As much as is read of a tokenizer anywhere.
const MOST_TOKENIZER_BYTES: u64 = 256 << 20;

/// Ids of special tokens, as `config.json` and `generation_config.json` state them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Beginning of a text.
    pub bos: Option<u32>,
    /// Ends of a text; of several, any ends generation.
    pub eos: Vec<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// What else `generation_config.json` says: how its authors sample.
    pub generation: Map<String, Value>,
}

/// What we write into `generation_config.json` ourselves.
const GENERATION: [&str; 6] = [
    "_from_model_config",
    "bos_token_id",
    "eos_token_id",
    "max_length",
    "pad_token_id",
    "transformers_version",
];

impl SpecialIds {
    /// One token that begins and ends texts, as GPT-2's.
    pub fn end_of_text(id: u32) -> Self {
        Self { bos: Some(id), eos: vec![id], ..Self::default() }
    }

    /// What a tokenizer declares; where it declares no beginning, the end-of-text token is it.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let eot = tokenizer.eot();
        let bos = tokenizer.role("bos_token").or(Some(eot));
        Self { bos, eos: vec![eot], pad: tokenizer.role("pad_token"), ..Self::default() }
    }

    /// What the two files of a model folder state: of ends what counts for generation, else what
    /// `config.json` says.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut stated = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            let path = dir.join(name);
            if is_named(&path) {
                let parsed = crate::json::parse(&read_json_bytes(&path)?);
                stated.push(parsed.map_err(|e| Error::data(format!("{}: {e}", path.display())))?);
            }
        }
        let ids = |key: &str| -> Vec<u32> {
            stated
                .iter()
                .map(|config: &Value| crate::json::ids(&config[key]))
                .find(|ids| !ids.is_empty())
                .unwrap_or_default()
        };
        let one = |key: &str| ids(key).first().copied();
        let (bos, eos, pad) = (one("bos_token_id"), ids("eos_token_id"), one("pad_token_id"));
        let mut generation = Map::new();
        if let (true, Some(Value::Object(said))) =
            (dir.join("generation_config.json").is_file(), stated.into_iter().next())
        {
            generation.extend(
                said.into_iter().filter(|(k, v)| !v.is_null() && !GENERATION.contains(&k.as_str())),
            );
        }
        Ok(Self { bos, eos, pad, generation })
    }

    pub(super) fn eos_json(&self) -> Value {
        match self.eos.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        }
    }
}

/// What goes into a model folder beside the weights.
#[derive(Debug, Clone, Default)]
pub struct SaveOptions<'a> {
    /// Ids of special tokens.
    pub ids: SpecialIds,
    /// A folder whose tokenizer files are copied.
    pub tokenizer: Option<&'a Path>,
}

/// Writes a Hugging Face folder into `dir`, which exists (usually a temporary one that is renamed
/// when all is there): `config.json`, `generation_config.json`, `model.safetensors` and the
/// tokenizer's files.
pub fn save_model(
    dir: &Path,
    config: &Gpt2Config,
    params: &ParamSet,
    options: &SaveOptions,
) -> Result<()> {
    write_json(&dir.join("config.json"), &family::write(config, &options.ids))?;
    write_json(&dir.join("generation_config.json"), &generation_json(config, &options.ids))?;
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let mut tensors = Vec::new();
    for (spec, tensor) in params.layout().entries().iter().zip(params.tensors()) {
        for piece in pieces(config, spec) {
            let stored = piece.stored(tensor)?;
            tensors.push((piece.name, stored));
        }
    }
    save_tensors(&dir.join(super::WEIGHTS_FILE), tensors, &metadata)?;
    let Some(tokenizer) = options.tokenizer else { return Ok(()) };
    let mut copied = 0;
    for name in TOKENIZER_FILES {
        let from = tokenizer.join(name);
        if is_named(&from) {
            // Bytes rather than fs::copy, which would copy a cache's private mode too.
            let bytes = read_bounded(&from, MOST_TOKENIZER_BYTES)?;
            let to = dir.join(name);
            write_atomic(&to, |w| w.write_all(&bytes).map_err(|e| Error::io("write", &to, e)))?;
            copied += 1;
        }
    }
    if copied == 0 {
        return Err(Error::data(format!(
            "{}: expected a tokenizer's files (tokenizer.json, or vocab.json and merges.txt), found none",
            tokenizer.display()
        )));
    }
    state_length(dir, config.n_positions)
}

/// Says in a folder's `tokenizer_config.json`, if it has one, how many tokens the model beside it
/// reads.
pub fn state_length(dir: &Path, positions: usize) -> Result<()> {
    let path = dir.join("tokenizer_config.json");
    if !path.is_file() {
        return Ok(());
    }
    // What is no JSON is kept as it came: it is not ours to judge here.
    if let Ok(Value::Object(mut config)) = crate::json::parse(&read_json_bytes(&path)?) {
        config.insert("model_max_length".into(), positions.into());
        write_json(&path, &Value::Object(config))?;
    }
    Ok(())
}

/// Writes parameters, gradients or moments as one plain safetensors file, atomically: exact f32
/// bits, names of the layout, and the same bytes whenever the values are the same.
pub fn save_params(
    path: &Path,
    params: &ParamSet,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let named = params.named().map(|(name, tensor)| (name.to_string(), tensor.clone()));
    save_tensors(path, named.collect(), metadata)
}

fn save_tensors(
    path: &Path,
    mut tensors: Vec<(String, Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    // Sorted by name, as the format's reference implementation does for tensors of one dtype.
    tensors.sort_by(|a, b| a.0.cmp(&b.0));

    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut end = 0;
    for (name, tensor) in &tensors {
        if tensor.dtype() != DType::F32 {
            return Err(Error::internal(format!(
                "tensor {name} must be f32 to be saved, found {:?}",
                tensor.dtype()
            )));
        }
        let start = end;
        end += 4 * tensor.elem_count();
        header.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": tensor.dims(), "data_offsets": [start, end]}),
        );
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // The values start on a multiple of eight, so that a mapped file can be read in place.
    header.resize(header.len().next_multiple_of(8), b' ');

    write_atomic(path, |w| {
        let failed = |e| Error::io("write", path, e);
        w.write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| w.write_all(&header))
            .map_err(failed)?;
        for (_, tensor) in &tensors {
            crate::interrupt::check()?;
            with_values(tensor, |values| write_values(w, values))?.map_err(failed)?;
        }
        Ok(())
    })
}

/// Little-endian bytes, a block at a time.
fn write_values(w: &mut dyn Write, values: &[f32]) -> std::io::Result<()> {
    let mut block = Vec::with_capacity(1 << 18);
    for part in values.chunks(1 << 16) {
        block.clear();
        block.extend(part.iter().flat_map(|v| v.to_le_bytes()));
        w.write_all(&block)?;
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_atomic(path, |w| writeln!(w, "{value:#}").map_err(|e| Error::io("write", path, e)))
}

/// `max_length`: without it `pipeline("text-generation")` asks for more tokens than a short model
/// has positions.
fn generation_json(config: &Gpt2Config, ids: &SpecialIds) -> Value {
    let own = json!({
        "_from_model_config": ids.generation.is_empty(),
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos_json(),
        "max_length": config.n_positions,
        "pad_token_id": ids.pad,
    });
    let mut all = ids.generation.clone();
    all.extend(own.as_object().cloned().unwrap_or_default());
    Value::Object(all)
}
