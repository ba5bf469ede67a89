//! Which tensors a file has, and how each is made of a parameter (gguf-py's `tensor_mapping.py`, and
//! `modify_tensors` of llama.cpp's converters).

use super::container::Entry;
use super::rounding::GgufType;
use super::{AT_ONCE, arch};
use crate::error::{Error, Result};
use crate::model::parts::Residual;
use crate::model::{Gpt2Config, ParamKind, ParamSet, ParamSpec};
use crate::store::weights::with_values;
use candle_core::{D, Device, Tensor};
use std::ops::Range;

/// What frequencies of rotary positions are divided by.
pub(super) const DIVISORS: &str = "rope_freqs.weight";

/// A tensor of the file.
pub(super) struct Stored {
    pub(super) entry: Entry,
    /// Columns of a parameter, `[in, out]` where it is a matrix.
    columns: Tensor,
    /// Whether the file has them the other way round.
    turned: bool,
    /// Where pairs of rotated columns are put side by side, how many heads there are.
    heads: Option<usize>,
}

impl Stored {
    /// The bytes, a piece at a time.
    pub(super) fn in_pieces(&self, mut piece: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let columns = match self.heads {
            None => self.columns.clone(),
            Some(heads) => paired(&self.columns, heads, Pairs::Apart)?,
        };
        let rows = if self.turned { columns.t()? } else { columns };
        let mut bytes = Vec::new();
        with_values(&rows, |values| {
            for part in values.chunks(AT_ONCE) {
                crate::interrupt::check()?;
                bytes.clear();
                let encoded = self.entry.of.encode(part, &mut bytes);
                encoded.map_err(|e| e.context(format!("tensor {}", self.entry.name)))?;
                piece(&bytes)?;
            }
            Ok(())
        })?
    }
}

/// How pairs of rotated columns stand.
#[derive(Clone, Copy)]
enum Pairs {
    /// Columns are `[heads, 2, half]`: Hugging Face's files rotate column i of a head with column
    /// i + half.
    Apart,
    /// Columns are `[heads, half, 2]`: llama.cpp's architecture `llama` rotates a column with the
    /// next one, as Meta's files do.
    SideBySide,
}

/// Columns that stand as `from` says, the other way.
fn paired(columns: &Tensor, heads: usize, from: Pairs) -> Result<Tensor> {
    let dims = columns.dims().to_vec();
    let width = dims[dims.len() - 1];
    let (rows, half) = (columns.elem_count() / width, width / heads / 2);
    let columns = columns.contiguous()?;
    let columns = match from {
        Pairs::Apart => columns.reshape((rows, heads, 2, half))?,
        Pairs::SideBySide => columns.reshape((rows, heads, half, 2))?,
    };
    Ok(columns.transpose(D::Minus1, D::Minus2)?.contiguous()?.reshape(dims)?)
}

/// Every tensor, in the order of the parameters; `of` is the type of matrices and embedding.
pub(super) fn of_model(
    config: &Gpt2Config,
    params: &ParamSet,
    of: GgufType,
) -> Result<Vec<Stored>> {
    let mut all = Vec::new();
    for (spec, tensor) in params.layout().entries().iter().zip(params.tensors()) {
        for piece in pieces(config, spec)? {
            all.push(stored(spec, tensor, piece, of)?);
        }
        if spec.name == "wte.weight"
            && !config.parts.own_head
            && arch::needs_head(config.parts.family)
        {
            let name = "output.weight".into();
            let head = Piece { name, columns: 0..config.n_embd, heads: None };
            all.push(stored(spec, tensor, head, of)?);
        }
    }
    if let Some(divisors) = arch::frequency_divisors(config) {
        let shape = vec![divisors.len()];
        all.push(Stored {
            columns: Tensor::from_vec(divisors, shape.as_slice(), &Device::Cpu)?,
            entry: Entry { name: DIVISORS.into(), shape, of: GgufType::F32 },
            turned: false,
            heads: None,
        });
    }
    Ok(all)
}

/// Where some columns of a parameter go.
pub(super) struct Piece {
    pub(super) name: String,
    columns: Range<usize>,
    /// The heads whose pairs are put side by side.
    heads: Option<usize>,
}

impl Piece {
    /// The shape in the file, rows first.
    pub(super) fn shape(&self, spec: &ParamSpec) -> Vec<usize> {
        let mut shape = spec.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = self.columns.len();
        }
        if spec.kind.is_matrix() {
            shape.reverse();
        }
        shape
    }

    /// The columns of the parameter from the tensor of the file: what [`Stored::in_pieces`] does,
    /// backwards.
    pub(super) fn read(&self, spec: &ParamSpec, stored: Tensor) -> Result<Tensor> {
        let columns = if spec.kind.is_matrix() { stored.t()?.contiguous()? } else { stored };
        match self.heads {
            None => Ok(columns),
            Some(heads) => paired(&columns, heads, Pairs::SideBySide),
        }
    }
}

fn stored(spec: &ParamSpec, tensor: &Tensor, piece: Piece, of: GgufType) -> Result<Stored> {
    let (shape, turned) = (piece.shape(spec), spec.kind.is_matrix());
    let Piece { name, columns, heads } = piece;
    let columns = tensor.narrow(D::Minus1, columns.start, columns.len())?;
    let of = match spec.kind {
        ParamKind::Position | ParamKind::Norm | ParamKind::Bias => GgufType::F32,
        ParamKind::Embedding | ParamKind::Head | ParamKind::Matrix | ParamKind::ResidualMatrix => {
            of.of_rows(shape.last().copied().unwrap_or_default())
        }
    };
    Ok(Stored { entry: Entry { name, shape, of }, columns, turned, heads })
}

/// llama.cpp's tensors that hold the columns of one of our parameters.
pub(super) fn pieces(config: &Gpt2Config, spec: &ParamSpec) -> Result<Vec<Piece>> {
    let unknown = || Error::internal(format!("no GGUF name for the parameter {}", spec.name));
    let (stem, end) = spec.name.rsplit_once('.').ok_or_else(unknown)?;
    let (block, part) = match stem.strip_prefix("h.").and_then(|rest| rest.split_once('.')) {
        Some((number, part)) => (format!("blk.{number}."), part),
        None => (String::new(), stem),
    };
    let whole = spec.shape.last().copied().unwrap_or_default();
    let (q, kv, f) = (config.query_width(), config.kv_width(), config.inner());
    let family = config.parts.family;
    // GPT-2 and GPT-NeoX have queries, keys and values in one tensor there, too.
    let joined = matches!(arch::name(family), "gpt2" | "gptneox");
    let heads = |count: usize| arch::pairs_side_by_side(family).then_some(count);
    let (norm_1, norm_2) = match config.parts.residual {
        Residual::PostNorm => ("post_attention_norm", "post_ffw_norm"),
        Residual::PreNorm | Residual::Parallel => ("attn_norm", "ffn_norm"),
    };
    let parts = match part {
        "attn.c_attn" if !joined => vec![
            ("attn_q", 0..q, heads(config.n_head)),
            ("attn_k", q..q + kv, heads(config.kv_heads())),
            ("attn_v", q + kv..q + 2 * kv, None),
        ],
        "mlp.c_fc" if config.parts.mlp.gated => {
            vec![("ffn_gate", 0..f, None), ("ffn_up", f..2 * f, None)]
        }
        _ => {
            let name = match part {
                "wte" => "token_embd",
                "wpe" => "position_embd",
                "ln_f" => "output_norm",
                "lm_head" => "output",
                "ln_1" => norm_1,
                "ln_2" => norm_2,
                "attn.c_attn" => "attn_qkv",
                "attn.q_norm" => "attn_q_norm",
                "attn.k_norm" => "attn_k_norm",
                "attn.c_proj" => "attn_output",
                "mlp.c_fc" => "ffn_up",
                "mlp.c_proj" => "ffn_down",
                _ => return Err(unknown()),
            };
            vec![(name, 0..whole, None)]
        }
    };
    let named = |(name, columns, heads): (&str, _, _)| Piece {
        name: format!("{block}{name}.{end}"),
        columns,
        heads,
    };
    Ok(parts.into_iter().map(named).collect())
}
