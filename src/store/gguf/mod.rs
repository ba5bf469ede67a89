//! A model as one GGUF file, which llama.cpp and what is built on it read.
//!
//! Names, keys and what is rounded are those of llama.cpp's `convert_hf_to_gguf.py` for
//! `GPT2LMHeadModel`: a matrix is stored `[out, in]`, Conv1D's other way round; positions, norms
//! and biases stay f32; the head is tied, so it has no tensor. (The converter writes 4 D as the
//! width of every MLP; here it is the model's.)

mod container;
mod rounding;
mod vocab;

pub use rounding::GgufType;

use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::files::{AtomicFile, name_of};
use crate::model::{Gpt2Config, ParamKind, ParamSet, ParamSpec};
use crate::store::weights::SpecialIds;
use crate::store::weights::with_values;
use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use container::{Entry, Value};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

/// Marks a file as written by `export`, so that a later one may replace it.
const MARK: &str = "eslm_kd.export";
/// The mark is among the first keys.
const HEAD_BYTES: u64 = 4096;
/// Values that are rounded at a time; whole blocks.
const AT_ONCE: usize = 1 << 16;

/// What goes into the file.
pub(super) struct Contents<'a> {
    pub(super) config: &'a Gpt2Config,
    pub(super) params: &'a ParamSet,
    pub(super) tokenizer: &'a Tokenizer,
    /// Ids of special tokens.
    pub(super) ids: SpecialIds,
    pub(super) of: GgufType,
}

/// What was written.
pub(super) struct Written {
    pub(super) bytes: u64,
    /// Tensors whose rows have no whole blocks and are f16 instead.
    pub(super) unblocked: usize,
}

/// Writes the file, reads it back with candle's reader, and gives it its name only if that finds
/// every tensor as it was meant.
pub(super) fn write(path: &Path, contents: &Contents) -> Result<Written> {
    if !contents.config.parts.are_gpt2s() {
        return Err(Error::usage(
            "--format gguf is for models with GPT-2's own parts, which this one has not; export a Hugging Face folder, and \
             convert that with llama.cpp's convert_hf_to_gguf.py",
        ));
    }
    let metadata = metadata(contents, path)?;
    let entries = entries(contents)?;
    let mut file = AtomicFile::create(path)?;
    let failed = |e| Error::io("write", path, e);
    let header = container::header(&metadata, &entries);
    file.write_all(&header).map_err(failed)?;
    let mut bytes = header.len() as u64;
    for (entry, (_, tensor)) in entries.iter().zip(contents.params.named()) {
        in_pieces(entry, tensor, |piece| file.write_all(piece).map_err(failed))?;
        container::pad(&mut file, entry.bytes()).map_err(failed)?;
        bytes += entry.bytes().next_multiple_of(container::ALIGNMENT);
    }
    file.check(|temporary| verify(temporary, &entries, contents.params))?;
    file.commit()?;
    let asked = |e: &&Entry| e.shape.len() == 2 && e.of == GgufType::F16;
    let unblocked = match contents.of {
        GgufType::Q8_0 => entries.iter().filter(asked).count(),
        _ => 0,
    };
    Ok(Written { bytes, unblocked })
}

/// Whether an earlier export wrote this file.
pub(super) fn is_export(path: &Path) -> Result<bool> {
    let mut head = Vec::new();
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    file.take(HEAD_BYTES).read_to_end(&mut head).map_err(|e| Error::io("read", path, e))?;
    Ok(container::has_key(&head, MARK))
}

fn metadata(contents: &Contents, path: &Path) -> Result<Vec<(String, Value)>> {
    let config = contents.config;
    let number = |value: usize| Value::U32(value as u32); // at most 2^24: Gpt2Config::validate
    let text = |text: &str| Value::Text(text.into());
    let mut metadata: Vec<(String, Value)> = [
        ("general.architecture", text("gpt2")),
        (MARK, Value::U32(1)),
        ("general.type", text("model")),
        ("general.name", Value::Text(model_name(path))),
        ("general.file_type", Value::U32(contents.of.file_type())),
        // Of the layout of blocks; ggml's GGML_QNT_VERSION.
        ("general.quantization_version", Value::U32(2)),
        ("gpt2.block_count", number(config.n_layer)),
        ("gpt2.context_length", number(config.n_positions)),
        ("gpt2.embedding_length", number(config.n_embd)),
        ("gpt2.feed_forward_length", number(config.inner())),
        ("gpt2.attention.head_count", number(config.n_head)),
        ("gpt2.attention.layer_norm_epsilon", Value::F32(config.layer_norm_epsilon as f32)),
    ]
    .map(|(key, value)| (key.to_string(), value))
    .into();
    metadata.extend(vocab::metadata(contents.tokenizer, config.vocab_size, &contents.ids)?);
    Ok(metadata)
}

/// The file's name without its ending. llama.cpp reads it, too: added tokens of a model named after
/// Phi-3 take the white space behind them.
fn model_name(path: &Path) -> String {
    let name = path.file_stem().map_or_else(|| name_of(path), |s| s.to_string_lossy().into_owned());
    let lower = name.to_lowercase();
    if ["phi-3", "phi3"].iter().any(|other| lower.contains(other)) { "gpt2".into() } else { name }
}

/// The header's entries, in the order of the parameters.
fn entries(contents: &Contents) -> Result<Vec<Entry>> {
    let entry = |spec: &ParamSpec| {
        let mut shape = spec.shape.clone();
        let turned = spec.kind.is_matrix();
        if turned {
            shape.reverse();
        }
        let of = match spec.kind {
            ParamKind::Position | ParamKind::Norm | ParamKind::Bias => GgufType::F32,
            ParamKind::Embedding
            | ParamKind::Head
            | ParamKind::Matrix
            | ParamKind::ResidualMatrix => {
                contents.of.of_rows(shape.last().copied().unwrap_or_default())
            }
        };
        Ok(Entry { name: tensor_name(&spec.name)?, shape, turned, of })
    };
    contents.params.layout().entries().iter().map(entry).collect()
}

/// llama.cpp's name of one of our parameters (gguf-py's `tensor_mapping.py`).
fn tensor_name(name: &str) -> Result<String> {
    let unknown = || Error::internal(format!("no GGUF name for the parameter {name}"));
    let (stem, end) = name.rsplit_once('.').ok_or_else(unknown)?;
    let (block, part) = match stem.strip_prefix("h.").and_then(|rest| rest.split_once('.')) {
        Some((number, part)) => (format!("blk.{number}."), part),
        None => (String::new(), stem),
    };
    let part = match part {
        "wte" => "token_embd",
        "wpe" => "position_embd",
        "ln_f" => "output_norm",
        "ln_1" => "attn_norm",
        "attn.c_attn" => "attn_qkv",
        "attn.c_proj" => "attn_output",
        "ln_2" => "ffn_norm",
        "mlp.c_fc" => "ffn_up",
        "mlp.c_proj" => "ffn_down",
        _ => return Err(unknown()),
    };
    Ok(format!("{block}{part}.{end}"))
}

/// The bytes of a parameter, a piece at a time.
fn in_pieces(
    entry: &Entry,
    tensor: &Tensor,
    mut piece: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let tensor = if entry.turned { tensor.t()? } else { tensor.clone() };
    let mut bytes = Vec::new();
    with_values(&tensor, |values| {
        for part in values.chunks(AT_ONCE) {
            crate::interrupt::check()?;
            bytes.clear();
            let encoded = entry.of.encode(part, &mut bytes);
            encoded.map_err(|e| e.context(format!("tensor {}", entry.name)))?;
            piece(&bytes)?;
        }
        Ok(())
    })?
}

/// Someone else's reader finds these tensors, and their bytes are those of the parameters.
fn verify(path: &Path, entries: &[Entry], params: &ParamSet) -> Result<()> {
    let differs = |what: String| {
        Error::internal(format!(
            "{}: what was written differs from the model: {what}",
            path.display()
        ))
    };
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut file = BufReader::with_capacity(1 << 20, file);
    let found = Content::read(&mut file)?;
    if found.tensor_infos.len() != entries.len() {
        return Err(differs(format!("{} tensors", found.tensor_infos.len())));
    }
    for (entry, (_, tensor)) in entries.iter().zip(params.named()) {
        let stored = found.tensor(&mut file, &entry.name, &Device::Cpu)?;
        let data = stored.data()?;
        let mut at = 0;
        in_pieces(entry, tensor, |piece| {
            let same = data.get(at..at + piece.len()) == Some(piece);
            at += piece.len();
            if same { Ok(()) } else { Err(differs(format!("tensor {}", entry.name))) }
        })?;
        if stored.shape().dims() != entry.shape || at != data.len() {
            return Err(differs(format!("the shape of tensor {}", entry.name)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
