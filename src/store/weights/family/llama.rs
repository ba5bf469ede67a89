//! Llama and those whose files have its names (`LlamaForCausalLM` in transformers).

use super::keys::name_of;
use super::{Keys, Names, Piece, rope};
use crate::error::{Error, Result};
use crate::model::parts::{Biases, Norm, Positions, Residual};
use crate::model::{Family, Gpt2Config, ParamSpec, Parts};
use crate::ops::activation::{Activation, Mlp};
use crate::store::weights::save::SpecialIds;
use serde_json::{Value, json};

pub(super) const NAMES: Names = Names {
    body: "model.",
    embedding: "embed_tokens.weight",
    heads: &["lm_head.weight"],
    parts: &["embed_tokens", "layers", "norm", "lm_head", "rotary_emb"],
    is_buffer: |name| name.ends_with("rotary_emb.inv_freq"),
};

/// What a family of these files has where `config.json` says nothing.
pub(super) struct Defaults {
    pub family: Family,
    pub vocab_size: usize,
    pub n_embd: usize,
    pub n_layer: usize,
    pub n_head: usize,
    pub inner: usize,
    pub positions: usize,
    /// Heads of keys and values; None: as many as of queries.
    pub kv_heads: Option<usize>,
    /// Width of a head; None: `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    pub epsilon: f64,
    /// Base of the rotary positions.
    pub theta: f64,
    /// Whether the head is the embedding.
    pub tied: bool,
}

impl Defaults {
    /// `LlamaConfig`'s.
    pub fn of(family: Family) -> Self {
        Self {
            family,
            vocab_size: 32000,
            n_embd: 4096,
            n_layer: 32,
            n_head: 32,
            inner: 11008,
            positions: 2048,
            kv_heads: None,
            head_dim: None,
            epsilon: 1e-6,
            theta: 10_000.0,
            tied: false,
        }
    }
}

/// Where a key is absent, `LlamaConfig`'s default counts.
pub(super) fn read(keys: &Keys) -> Result<Gpt2Config> {
    read_with(keys, &Defaults::of(Family::Llama), stated_biases(keys)?)
}

/// Biases as `attention_bias` and `mlp_bias` say; absent: none.
pub(super) fn stated_biases(keys: &Keys) -> Result<Biases> {
    let attention = keys.get("attention_bias")?.unwrap_or(false);
    let mlp = keys.get("mlp_bias")?.unwrap_or(false);
    Ok(Biases { qkv: attention, output: attention, mlp })
}

/// What these families share.
pub(super) fn read_with(keys: &Keys, defaults: &Defaults, biases: Biases) -> Result<Gpt2Config> {
    let n_head = keys.get("num_attention_heads")?.unwrap_or(defaults.n_head);
    let n_embd: usize = keys.get("hidden_size")?.unwrap_or(defaults.n_embd);
    let n_positions = keys.get("max_position_embeddings")?.unwrap_or(defaults.positions);
    // A null says as many as of queries, an absent key the family's number.
    let kv: Option<usize> = match keys.0.contains_key("num_key_value_heads") {
        true => keys.get("num_key_value_heads")?,
        false => defaults.kv_heads,
    };
    let head_dim = match keys.0.contains_key("head_dim") {
        true => keys.get("head_dim")?,
        false => defaults.head_dim,
    };
    let activation = keys.activation("hidden_act", Activation::Silu)?;
    let of_rope = rope::Defaults { theta: defaults.theta, ..rope::Defaults::default() };
    let parts = Parts {
        family: defaults.family,
        n_kv_head: kv.filter(|kv| *kv != n_head),
        head_dim: head_dim.filter(|dim| Some(*dim) != n_embd.checked_div(n_head)),
        positions: Positions::Rotary(rope::read(keys, n_positions, of_rope)?),
        norm: Norm::Rms,
        biases,
        mlp: Mlp { activation, gated: true },
        own_head: !keys.get("tie_word_embeddings")?.unwrap_or(defaults.tied),
        ..Parts::default()
    };
    let config = Gpt2Config {
        vocab_size: keys.get("vocab_size")?.unwrap_or(defaults.vocab_size),
        n_positions,
        n_embd,
        n_layer: keys.get("num_hidden_layers")?.unwrap_or(defaults.n_layer),
        n_head,
        n_inner: Some(keys.get("intermediate_size")?.unwrap_or(defaults.inner)),
        layer_norm_epsilon: keys.get("rms_norm_eps")?.unwrap_or(defaults.epsilon),
        initializer_range: keys.initializer_range(),
        parts,
    };
    // Families go through the blocks that a file claims there are.
    config.validate().map_err(|e| Error::data(e.to_string()))?;
    Ok(config)
}

pub(super) fn write(config: &Gpt2Config, ids: &SpecialIds) -> Value {
    let mut all = write_shared(config, ids, "LlamaForCausalLM", "llama");
    all["attention_bias"] = config.parts.biases.qkv.into();
    all["mlp_bias"] = config.parts.biases.mlp.into();
    all
}

/// transformers' name of an activation, as gated families call it.
fn name_of_gate(activation: Activation) -> &'static str {
    match activation {
        Activation::GeluTanh => "gelu_pytorch_tanh",
        other => name_of(other),
    }
}

/// The keys that these families share.
pub(super) fn write_shared(
    config: &Gpt2Config,
    ids: &SpecialIds,
    class: &str,
    model_type: &str,
) -> Value {
    let mut all = json!({
        "architectures": [class],
        "attention_dropout": 0.0,
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos_json(),
        "head_dim": config.head_dim(),
        "hidden_act": name_of_gate(config.parts.mlp.activation),
        "hidden_size": config.n_embd,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.inner(),
        "max_position_embeddings": config.n_positions,
        "model_type": model_type,
        "num_attention_heads": config.n_head,
        "num_hidden_layers": config.n_layer,
        "num_key_value_heads": config.kv_heads(),
        "pad_token_id": ids.pad,
        "rms_norm_eps": config.layer_norm_epsilon,
        "tie_word_embeddings": !config.parts.own_head,
        "torch_dtype": "float32",
        "use_cache": true,
        "vocab_size": config.vocab_size,
    });
    if let Positions::Rotary(rotary) = &config.parts.positions {
        rope::write(rotary, &mut all);
    }
    all
}

/// Queries, keys and values, and gate and up, are tensors of their own, all `[out, in]`.
pub(super) fn pieces(config: &Gpt2Config, spec: &ParamSpec) -> Vec<Piece> {
    let whole = spec.shape.last().copied().unwrap_or_default();
    let at = |name: String, from: usize, to: usize, turned: bool| Piece {
        name,
        columns: from..to,
        turned,
        heads: None,
    };
    let Some((layer, part)) = spec.name.strip_prefix("h.").and_then(|rest| rest.split_once('.'))
    else {
        let name = match spec.name.as_str() {
            "wte.weight" => "model.embed_tokens.weight",
            "ln_f.weight" => "model.norm.weight",
            other => other, // lm_head.weight
        };
        return vec![at(name.into(), 0, whole, false)];
    };
    let (stem, end) = part.rsplit_once('.').unwrap_or((part, "weight"));
    // Norms are called by what they come after, or before.
    let (norm_1, norm_2) = match config.parts.residual {
        Residual::PostNorm => ("post_attention_layernorm", "post_feedforward_layernorm"),
        Residual::PreNorm | Residual::Parallel => ("input_layernorm", "post_attention_layernorm"),
    };
    let turned = spec.shape.len() == 2;
    let (q, kv, f) = (config.query_width(), config.kv_width(), config.inner());
    let parts: Vec<(&str, usize, usize)> = match stem {
        "attn.c_attn" => vec![
            ("self_attn.q_proj", 0, q),
            ("self_attn.k_proj", q, q + kv),
            ("self_attn.v_proj", q + kv, q + 2 * kv),
        ],
        "mlp.c_fc" => vec![("mlp.gate_proj", 0, f), ("mlp.up_proj", f, 2 * f)],
        "ln_1" => vec![(norm_1, 0, whole)],
        "ln_2" => vec![(norm_2, 0, whole)],
        "attn.q_norm" => vec![("self_attn.q_norm", 0, whole)],
        "attn.k_norm" => vec![("self_attn.k_norm", 0, whole)],
        "attn.c_proj" => vec![("self_attn.o_proj", 0, whole)],
        other => vec![(if other == "mlp.c_proj" { "mlp.down_proj" } else { other }, 0, whole)],
    };
    parts
        .into_iter()
        .map(|(name, from, to)| at(format!("model.layers.{layer}.{name}.{end}"), from, to, turned))
        .collect()
}
