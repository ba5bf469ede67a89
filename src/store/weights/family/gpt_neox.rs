//! GPT-NeoX and Pythia: queries, keys and values in one tensor, head by head, and both halves of a
//! block beside each other.

use super::keys::name_of;
use super::{Keys, Names, Piece, rope};
use crate::error::Result;
use crate::model::parts::{Biases, Positions, Residual};
use crate::model::{Family, Gpt2Config, ParamSpec, Parts};
use crate::ops::activation::{Activation, Mlp};
use crate::store::weights::save::SpecialIds;
use serde_json::{Value, json};

pub(super) const NAMES: Names = Names {
    body: "gpt_neox.",
    embedding: "embed_in.weight",
    // transformers writes the first; its module has the second as its name since 5.13.
    heads: &["embed_out.weight", "lm_head.weight"],
    parts: &["embed_in", "layers", "final_layer_norm", "embed_out", "lm_head", "rotary_emb"],
    is_buffer: |name| {
        ["attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"]
            .iter()
            .any(|buffer| name.ends_with(buffer))
    },
};

/// Where a key is absent, `GPTNeoXConfig`'s default counts.
pub(super) fn read(keys: &Keys) -> Result<Gpt2Config> {
    let n_head = keys.get("num_attention_heads")?.unwrap_or(64);
    let n_embd: usize = keys.get("hidden_size")?.unwrap_or(6144);
    let n_positions = keys.get("max_position_embeddings")?.unwrap_or(2048);
    // transformers 5 would take the frequencies of such a head and the width of another.
    let head_dim: Option<usize> = keys.get("head_dim")?;
    if let Some(dim) = head_dim.filter(|dim| Some(*dim) != n_embd.checked_div(n_head)) {
        return Err(keys.unexpected("head_dim", "hidden_size / num_attention_heads", &dim));
    }
    let of_rope = rope::Defaults {
        base: "rotary_emb_base",
        share: Some(keys.get("rotary_pct")?.unwrap_or(0.25)),
        ..rope::Defaults::default()
    };
    let attention = keys.get("attention_bias")?.unwrap_or(true);
    let parallel = keys.get("use_parallel_residual")?.unwrap_or(true);
    let parts = Parts {
        family: Family::GptNeoX,
        positions: Positions::Rotary(rope::read(keys, n_positions, of_rope)?),
        residual: if parallel { Residual::Parallel } else { Residual::PreNorm },
        biases: Biases { qkv: attention, output: attention, mlp: true },
        mlp: Mlp { activation: keys.activation("hidden_act", Activation::Gelu)?, gated: false },
        own_head: !keys.get("tie_word_embeddings")?.unwrap_or(false),
        ..Parts::default()
    };
    Ok(Gpt2Config {
        vocab_size: keys.get("vocab_size")?.unwrap_or(50432),
        n_positions,
        n_embd,
        n_layer: keys.get("num_hidden_layers")?.unwrap_or(44),
        n_head,
        n_inner: Some(keys.get("intermediate_size")?.unwrap_or(24576)),
        layer_norm_epsilon: keys.get("layer_norm_eps")?.unwrap_or(1e-5),
        initializer_range: keys.initializer_range(),
        parts,
    })
}

pub(super) fn write(config: &Gpt2Config, ids: &SpecialIds) -> Value {
    let parts = &config.parts;
    let mut all = json!({
        "architectures": ["GPTNeoXForCausalLM"],
        "attention_bias": parts.biases.qkv,
        "attention_dropout": 0.0,
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos_json(),
        "hidden_act": name_of(parts.mlp.activation),
        "hidden_dropout": 0.0,
        "hidden_size": config.n_embd,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.inner(),
        "layer_norm_eps": config.layer_norm_epsilon,
        "max_position_embeddings": config.n_positions,
        "model_type": "gpt_neox",
        "num_attention_heads": config.n_head,
        "num_hidden_layers": config.n_layer,
        "pad_token_id": ids.pad,
        "tie_word_embeddings": !parts.own_head,
        "torch_dtype": "float32",
        "use_cache": true,
        "use_parallel_residual": parts.residual == Residual::Parallel,
        "vocab_size": config.vocab_size,
    });
    if let Positions::Rotary(rotary) = &parts.positions {
        rope::write(rotary, &mut all);
        all["rope_parameters"]["partial_rotary_factor"] = rotary.share.into();
        all["rotary_pct"] = rotary.share.into();
        all["rotary_emb_base"] = rotary.theta.into();
    }
    all
}

/// All matrices are `[out, in]`.
pub(super) fn piece(config: &Gpt2Config, spec: &ParamSpec) -> Piece {
    let of_block = spec.name.strip_prefix("h.").and_then(|rest| rest.split_once('.'));
    let Some((layer, part)) = of_block else {
        let name = match spec.name.as_str() {
            "wte.weight" => "gpt_neox.embed_in.weight",
            "ln_f.weight" => "gpt_neox.final_layer_norm.weight",
            "ln_f.bias" => "gpt_neox.final_layer_norm.bias",
            _ => NAMES.heads[0],
        };
        return Piece::whole(name.into(), spec);
    };
    let (stem, end) = part.rsplit_once('.').unwrap_or((part, "weight"));
    let name = match stem {
        "ln_1" => "input_layernorm",
        "ln_2" => "post_attention_layernorm",
        "attn.c_attn" => "attention.query_key_value",
        "attn.c_proj" => "attention.dense",
        "mlp.c_fc" => "mlp.dense_h_to_4h",
        "mlp.c_proj" => "mlp.dense_4h_to_h",
        other => other,
    };
    Piece {
        turned: spec.shape.len() == 2,
        heads: (stem == "attn.c_attn").then_some(config.n_head),
        ..Piece::whole(format!("gpt_neox.layers.{layer}.{name}.{end}"), spec)
    }
}
