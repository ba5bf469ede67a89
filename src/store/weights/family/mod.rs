//! Whose files a model's are: each family's `config.json` to our description and back, and the names
//! and layout of its weights. A family is a file here, a line in [`read`], [`write`], [`pieces`] and
//! [`Names::of`], and a word of [`Family`].

mod gpt2;
mod gpt_neox;
mod keys;
mod llama;
mod mistral;
mod olmo2;
mod qwen;
mod rope;
mod smollm3;
mod window;

pub(super) use keys::Keys;

use super::save::SpecialIds;
use crate::error::{Error, Result};
use crate::model::{Family, Gpt2Config, ParamSpec};
use candle_core::{D, Tensor};
use serde_json::Value;
use std::ops::Range;

/// A stored tensor that holds some columns of one of our parameters.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    /// Its whole name, as transformers writes it.
    pub name: String,
    /// Which columns of the parameter.
    pub columns: Range<usize>,
    /// Whether it is stored the other way round: `[out, in]`, as `torch.nn.Linear` has it.
    pub turned: bool,
    /// Where queries, keys and values are stored head by head, how many heads there are: the
    /// columns are [heads, 3, width], and ours [3, heads, width].
    pub heads: Option<usize>,
}

impl Piece {
    /// All of a parameter, as it is.
    fn whole(name: String, spec: &ParamSpec) -> Self {
        let columns = 0..spec.shape.last().copied().unwrap_or_default();
        Self { name, columns, turned: false, heads: None }
    }

    /// These columns of the parameter from the stored tensor.
    pub fn read(&self, stored: Tensor) -> Result<Tensor> {
        let columns = if self.turned { stored.t()?.contiguous()? } else { stored };
        match self.heads {
            None => Ok(columns),
            Some(heads) => permuted(&columns, [heads, 3]),
        }
    }

    /// The tensor to store, from the parameter.
    pub fn stored(&self, parameter: &Tensor) -> Result<Tensor> {
        let columns = parameter.narrow(D::Minus1, self.columns.start, self.columns.len())?;
        let columns = match self.heads {
            None => columns,
            Some(heads) => permuted(&columns, [3, heads])?,
        };
        Ok(if self.turned { columns.t()? } else { columns })
    }

    /// The stored shape of these columns of `spec`.
    pub fn shape(&self, spec: &ParamSpec) -> Vec<usize> {
        let mut shape = spec.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = self.columns.len();
        }
        if self.turned {
            shape.reverse();
        }
        shape
    }
}

/// Columns [a, b, rest] as [b, a, rest].
fn permuted(x: &Tensor, [a, b]: [usize; 2]) -> Result<Tensor> {
    let dims = x.dims().to_vec();
    let (rows, width) = (x.elem_count() / dims[dims.len() - 1], dims[dims.len() - 1] / (a * b));
    let apart = x.contiguous()?.reshape((rows, a, b, width))?.transpose(1, 2)?;
    Ok(apart.contiguous()?.reshape(dims)?)
}

/// The model that `config.json` describes.
pub(super) fn read(keys: &Keys) -> Result<Gpt2Config> {
    keys.refuse_what_is_not_here()?;
    // Files of before there was a model_type name the class alone.
    let class = keys.class();
    match keys.get::<String>("model_type")?.as_deref() {
        Some("gpt2") => gpt2::read(keys),
        None if class.starts_with("GPT2") => gpt2::read(keys),
        Some("llama") => llama::read(keys),
        Some("qwen2") => qwen::read(keys, Family::Qwen2),
        Some("qwen3") => qwen::read(keys, Family::Qwen3),
        Some("mistral") => mistral::read(keys),
        Some("olmo2") => olmo2::read(keys),
        Some("smollm3") => smollm3::read(keys),
        Some("gpt_neox") => gpt_neox::read(keys),
        other => {
            let own = keys
                .has("auto_map")
                .then_some("; auto_map names code of its own, which is not run");
            Err(Error::data(format!(
                "model_type must be \"gpt2\", \"gpt_neox\", \"llama\", \"mistral\", \"olmo2\", \"qwen2\", \"qwen3\" or \
                 \"smollm3\", found {:?}; other models are not supported{}",
                other.unwrap_or("none"),
                own.unwrap_or_default()
            )))
        }
    }
}

/// `config.json` of a model, as transformers 4 and 5 read it.
pub(super) fn write(config: &Gpt2Config, ids: &SpecialIds) -> Value {
    match config.parts.family {
        Family::Gpt2 => gpt2::write(config, ids),
        Family::Llama => llama::write(config, ids),
        Family::Qwen2 | Family::Qwen3 => qwen::write(config, ids),
        Family::Mistral => mistral::write(config, ids),
        Family::Olmo2 => olmo2::write(config, ids),
        Family::SmolLm3 => smollm3::write(config, ids),
        Family::GptNeoX => gpt_neox::write(config, ids),
    }
}

/// The stored tensors of a parameter.
pub(super) fn pieces(config: &Gpt2Config, spec: &ParamSpec) -> Vec<Piece> {
    match config.parts.family {
        Family::Gpt2 => vec![gpt2::piece(config, spec)],
        Family::GptNeoX => vec![gpt_neox::piece(config, spec)],
        _ => llama::pieces(config, spec),
    }
}

/// What the names of a family's tensors mean.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    /// The name of the model inside its head, with a dot.
    pub body: &'static str,
    /// The token embedding, without that.
    pub embedding: &'static str,
    /// The head's, the one that is written first. The others are read as well.
    pub heads: &'static [&'static str],
    /// How the names of a decoder's own tensors begin.
    pub parts: &'static [&'static str],
    /// Whether a name is that of a buffer, which says nothing.
    pub is_buffer: fn(&str) -> bool,
}

impl Names {
    /// Those of a family.
    pub fn of(family: Family) -> Self {
        match family {
            Family::Gpt2 => gpt2::NAMES,
            Family::GptNeoX => gpt_neox::NAMES,
            _ => llama::NAMES,
        }
    }

    /// A tensor's name without what wrappers put before it: the model inside a head,
    /// `torch.compile`, data parallelism.
    pub fn own<'a>(&self, full: &'a str) -> &'a str {
        let mut name = full;
        while let Some(rest) =
            [self.body, "_orig_mod.", "module."].iter().find_map(|prefix| name.strip_prefix(prefix))
        {
            name = rest;
        }
        name
    }

    /// Whether a tensor lies outside the decoder: a head of another task.
    pub fn is_other_head(&self, name: &str) -> bool {
        !self.parts.contains(&name.split('.').next().unwrap_or_default())
    }
}
