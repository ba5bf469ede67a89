//! GPT-2: names and layout of its files are ours.

use super::keys::name_of;
use super::{Keys, Names, Piece};
use crate::error::Result;
use crate::model::parts::Scores;
use crate::model::{Gpt2Config, ParamSpec, Parts};
use crate::ops::activation::{Activation, Mlp};
use crate::store::weights::save::SpecialIds;
use serde_json::{Value, json};

pub(super) const NAMES: Names = Names {
    body: "transformer.",
    embedding: "wte.weight",
    heads: &["lm_head.weight"],
    parts: &["wte", "wpe", "h", "ln_f", "lm_head"],
    is_buffer: is_mask,
};

/// The causal masks that old checkpoints store with each block: `h.N.attn.bias` and
/// `h.N.attn.masked_bias`.
fn is_mask(name: &str) -> bool {
    name.strip_prefix("h.").and_then(|rest| rest.split_once('.')).is_some_and(|(n, rest)| {
        n.parse::<usize>().is_ok() && matches!(rest, "attn.bias" | "attn.masked_bias")
    })
}

/// Where a key is absent, `GPT2Config`'s default counts. Generic names of shapes
/// (`GPT2Config.attribute_map`) win over GPT-2's, as in transformers.
pub(super) fn read(keys: &Keys) -> Result<Gpt2Config> {
    // `reorder_and_upcast_attn` is the same function in f32.
    let scores = Scores {
        by_width: keys.get("scale_attn_weights")?.unwrap_or(true),
        by_layer: keys.get("scale_attn_by_inverse_layer_idx")?.unwrap_or(false),
    };
    let activation = keys.activation("activation_function", Activation::GeluTanh)?;
    let parts = Parts {
        scores,
        mlp: Mlp { activation, gated: false },
        own_head: keys.get("tie_word_embeddings")? == Some(false),
        ..Parts::default()
    };
    Ok(Gpt2Config {
        vocab_size: keys.get("vocab_size")?.unwrap_or(50257),
        n_positions: keys.first(&["max_position_embeddings", "n_positions"])?.unwrap_or(1024),
        n_embd: keys.first(&["hidden_size", "n_embd"])?.unwrap_or(768),
        n_layer: keys.first(&["num_hidden_layers", "n_layer"])?.unwrap_or(12),
        n_head: keys.first(&["num_attention_heads", "n_head"])?.unwrap_or(12),
        n_inner: keys.get("n_inner")?,
        layer_norm_epsilon: keys.get("layer_norm_epsilon")?.unwrap_or(1e-5),
        initializer_range: keys.initializer_range(),
        parts,
    })
}

pub(super) fn write(config: &Gpt2Config, ids: &SpecialIds) -> Value {
    json!({
        "activation_function": name_of(config.parts.mlp.activation),
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.0,
        "bos_token_id": ids.bos,
        "embd_pdrop": 0.0,
        "eos_token_id": ids.eos_json(),
        "initializer_range": config.initializer_range,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "model_type": "gpt2",
        "n_ctx": config.n_positions,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_inner": config.n_inner,
        "n_layer": config.n_layer,
        "n_positions": config.n_positions,
        "pad_token_id": ids.pad,
        "reorder_and_upcast_attn": false,
        "resid_pdrop": 0.0,
        "scale_attn_by_inverse_layer_idx": config.parts.scores.by_layer,
        "scale_attn_weights": config.parts.scores.by_width,
        "tie_word_embeddings": !config.parts.own_head,
        "torch_dtype": "float32",
        "use_cache": true,
        "vocab_size": config.vocab_size,
    })
}

/// Bare names, as in openai-community/gpt2: transformers reads them with and without a prefix,
/// mlx-lm without alone. Beside a head of its own they have the prefix: transformers 4 takes such
/// a file without for a damaged one.
pub(super) fn piece(config: &Gpt2Config, spec: &ParamSpec) -> Piece {
    let bare = !config.parts.own_head || spec.name == "lm_head.weight";
    let body = if bare { "" } else { NAMES.body };
    Piece::whole(format!("{body}{}", spec.name), spec)
}
