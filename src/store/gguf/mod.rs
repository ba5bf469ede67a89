//! A model as one GGUF file, which llama.cpp and what is built on it read; and such a file as a model
//! (`read.rs`).
//!
//! Names, keys and what is rounded are those of llama.cpp's `convert_hf_to_gguf.py`: a matrix is
//! stored `[out, in]`; positions, norms and biases stay f32; a tied head has no tensor, unless the
//! architecture wants one. (The converter writes 4 D as the width of every GPT-2's MLP and no rotary
//! base for GPT-NeoX; here they are the model's.) What llama.cpp would compute otherwise is refused.

mod arch;
mod container;
mod described;
mod header;
mod pre;
mod read;
mod rounding;
mod sentencepiece;
mod tensors;
mod vocab;

pub(super) use read::{GgufModel, all_in, is_gguf};
pub use rounding::GgufType;

use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::files::{AtomicFile, name_of};
use crate::model::{Gpt2Config, ParamSet};
use crate::store::weights::SpecialIds;
use candle_core::Device;
use candle_core::quantized::gguf_file::Content;
use container::{Entry, Keys, Value};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;
use tensors::Stored;

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
    /// What is otherwise than one might think, in words.
    pub(super) notes: Vec<String>,
}

/// Writes the file, reads it back with candle's reader, and gives it its name only if that finds
/// every tensor as it was meant.
pub(super) fn write(path: &Path, contents: &Contents) -> Result<Written> {
    let Contents { config, params, of, .. } = *contents;
    let computed = arch::check(config)?;
    let (metadata, encoded) = metadata(contents, path)?;
    let all = tensors::of_model(config, params, of)?;
    let mut file = AtomicFile::create(path)?;
    let failed = |e| Error::io("write", path, e);
    let header = container::header(&metadata, all.iter().map(|stored| &stored.entry));
    file.write_all(&header).map_err(failed)?;
    let mut bytes = header.len() as u64;
    for stored in &all {
        stored.in_pieces(|piece| file.write_all(piece).map_err(failed))?;
        let length = stored.entry.bytes();
        container::pad(&mut file, length).map_err(failed)?;
        bytes += length.next_multiple_of(container::ALIGNMENT);
    }
    file.check(|temporary| verify(temporary, &all))?;
    file.commit()?;
    let halved = |entry: &Entry| entry.shape.len() == 2 && entry.of == GgufType::F16;
    let unblocked =
        all.iter().filter(|stored| of == GgufType::Q8_0 && halved(&stored.entry)).count();
    let unblocked = (unblocked > 0).then(|| {
        format!(
            "{unblocked} matrices have rows that are no multiple of 32, which q8_0 needs; they are f16, as in llama.cpp"
        )
    });
    Ok(Written { bytes, notes: computed.into_iter().chain(encoded).chain(unblocked).collect() })
}

/// Whether an earlier export wrote this file.
pub(super) fn is_export(path: &Path) -> Result<bool> {
    let mut head = Vec::new();
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    file.take(HEAD_BYTES).read_to_end(&mut head).map_err(|e| Error::io("read", path, e))?;
    Ok(container::has_key(&head, MARK))
}

fn metadata(contents: &Contents, path: &Path) -> Result<(Keys, Vec<String>)> {
    let Contents { config, tokenizer, ids, of, .. } = contents;
    let text = |text: &str| Value::Text(text.into());
    let mut metadata: Keys = [
        ("general.architecture", text(arch::name(config.parts.family))),
        (MARK, Value::U32(1)),
        ("general.type", text("model")),
        ("general.name", Value::Text(model_name(path))),
        ("general.file_type", Value::U32(of.file_type())),
        // Of the layout of blocks; ggml's GGML_QNT_VERSION.
        ("general.quantization_version", Value::U32(2)),
    ]
    .map(|(key, value)| (key.to_string(), value))
    .into();
    metadata.extend(arch::metadata(config));
    let (of_tokens, notes) = vocab::metadata(tokenizer, config.vocab_size, ids)?;
    metadata.extend(of_tokens);
    Ok((metadata, notes))
}

/// The file's name without its ending. llama.cpp reads it, too: added tokens of a model named after
/// Phi-3 or ModernBERT take white space beside them.
fn model_name(path: &Path) -> String {
    let name = path.file_stem().map_or_else(|| name_of(path), |s| s.to_string_lossy().into_owned());
    let lower = name.to_lowercase();
    if ["phi-3", "phi3", "modern-bert"].iter().any(|other| lower.contains(other)) {
        "model".into()
    } else {
        name
    }
}

/// Someone else's reader finds these tensors, and their bytes are those of the parameters.
fn verify(path: &Path, all: &[Stored]) -> Result<()> {
    let differs = |what: String| {
        Error::internal(format!(
            "{}: what was written differs from the model: {what}",
            path.display()
        ))
    };
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut file = BufReader::with_capacity(1 << 20, file);
    let found = Content::read(&mut file)?;
    if found.tensor_infos.len() != all.len() {
        return Err(differs(format!("{} tensors", found.tensor_infos.len())));
    }
    for stored in all {
        let entry = &stored.entry;
        let there = found.tensor(&mut file, &entry.name, &Device::Cpu)?;
        let data = there.data()?;
        let mut at = 0;
        stored.in_pieces(|piece| {
            let same = data.get(at..at + piece.len()) == Some(piece);
            at += piece.len();
            if same { Ok(()) } else { Err(differs(format!("tensor {}", entry.name))) }
        })?;
        if there.shape().dims() != entry.shape || at != data.len() {
            return Err(differs(format!("the shape of tensor {}", entry.name)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod family_tests;
#[cfg(test)]
mod read_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vocab_tests;
