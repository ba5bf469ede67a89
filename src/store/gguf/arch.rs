//! What llama.cpp calls a family, which keys it reads of one, and what it cannot compute
//! (`src/models/*.cpp` and `load_hparams` of llama.cpp; `conversion/*.py` for what is written).

use super::container::{Keys, Value};
use crate::error::{Error, Result};
use crate::model::parts::{Biases, Blocks, Norm, Positions, Residual, RopeScaling, Rotary};
use crate::model::{Family, Gpt2Config};
use crate::ops::activation::Activation;
use std::fmt::Display;

/// What `ggml_rope_yarn_corr_dims` and the architectures here take for granted.
const YARN_BETAS: (f64, f64) = (32.0, 1.0);
/// `n_no_rope_layer_step` of `smollm3`: every fourth block is not rotated.
const UNROTATED_STEP: usize = 4;

/// llama.cpp's name of the architecture; Mistral is a Llama there.
pub(super) fn name(family: Family) -> &'static str {
    match family {
        Family::Gpt2 => "gpt2",
        Family::Llama | Family::Mistral => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::Olmo2 => "olmo2",
        Family::SmolLm3 => "smollm3",
        Family::GptNeoX => "gptneox",
    }
}

/// Whether pairs of rotated columns lie side by side (`LLAMA_ROPE_TYPE_NORM`) and not, as in Hugging
/// Face's files, half a head apart (`LLAMA_ROPE_TYPE_NEOX`).
pub(super) fn pairs_side_by_side(family: Family) -> bool {
    matches!(name(family), "llama" | "smollm3")
}

/// Whether an output layer is needed also where it is the embedding.
pub(super) fn needs_head(family: Family) -> bool {
    matches!(family, Family::Olmo2 | Family::GptNeoX)
}

/// Errs with the name of the key of `config.json` that the architecture cannot follow; else what it
/// computes slightly otherwise, in words.
pub(super) fn check(config: &Gpt2Config) -> Result<Option<String>> {
    let parts = &config.parts;
    let arch = name(parts.family);
    let refuse =
        |key: &str, expected: &str, found: &dyn Display| Err(refused(arch, key, expected, found));
    let gated = parts.mlp.gated;
    let key = if parts.family == Family::Gpt2 { "activation_function" } else { "hidden_act" };
    let note = match (gated, parts.mlp.activation) {
        (true, Activation::Silu) | (false, Activation::GeluTanh) => None,
        (false, Activation::Gelu) => Some(format!(
            "{key} is exact GELU, and llama.cpp computes its tanh form: log-probabilities differ by about 1e-3"
        )),
        (true, other) => return refuse(key, "silu", &format!("{other:?}").to_lowercase()),
        (false, other) => {
            return refuse(key, "gelu_new or gelu", &format!("{other:?}").to_lowercase());
        }
    };
    if !parts.scores.by_width {
        return refuse("scale_attn_weights", "true", &false);
    }
    if parts.scores.by_layer {
        return refuse("scale_attn_by_inverse_layer_idx", "false", &true);
    }
    if let Some(window) = &parts.window {
        let expected = format!(
            "absent or null (or max_position_embeddings at most {}, where it hides nothing)",
            window.size
        );
        return refuse("sliding_window", &expected, &window.size);
    }
    let Biases { qkv, output, mlp } = parts.biases;
    match arch {
        "gptneox" if !(qkv && output) => return refuse("attention_bias", "true", &false),
        "qwen3" | "olmo2" | "smollm3" if output => return refuse("attention_bias", "false", &true),
        "smollm3" if mlp => return refuse("mlp_bias", "false", &true),
        _ => {}
    }
    let width = config.n_embd / config.n_head;
    if matches!(arch, "qwen2" | "olmo2") && config.head_dim() != width {
        let expected = format!("hidden_size / num_attention_heads ({width})");
        return refuse("head_dim", &expected, &config.head_dim());
    }
    if let Positions::Rotary(rotary) = &parts.positions {
        check_rotary(config, rotary)?;
    }
    Ok(note)
}

/// That an architecture cannot follow a key of `config.json`.
fn refused(arch: &str, key: &str, expected: &str, found: &dyn Display) -> Error {
    Error::usage(format!(
        "--format gguf: {key} must be {expected} in llama.cpp's architecture {arch}, found {found}; leave --format out \
         for a Hugging Face folder, which can say it"
    ))
}

fn check_rotary(config: &Gpt2Config, rotary: &Rotary) -> Result<()> {
    let arch = name(config.parts.family);
    let refuse =
        |key: &str, expected: &str, found: &dyn Display| Err(refused(arch, key, expected, found));
    if arch == "smollm3" {
        let usual = Blocks::which(config.n_layer, |l| (l + 1).is_multiple_of(UNROTATED_STEP));
        if rotary.without != usual {
            let marks = |b: &Blocks| -> Vec<u8> {
                (0..config.n_layer).map(|l| u8::from(!b.contain(l))).collect()
            };
            let found = format!("{:?}", marks(&rotary.without));
            return refuse("no_rope_layers", &format!("{:?}", marks(&usual)), &found);
        }
    }
    let rotated = rotated(config, rotary);
    if rotated == 0 || !rotated.is_multiple_of(2) {
        let expected = "an even number of a head's columns, at least 2,";
        return refuse("rotary_pct", expected, &format!("{} ({rotated} columns)", rotary.share));
    }
    match rotary.scaling {
        RopeScaling::Llama3 { .. } if arch != "llama" => {
            refuse("rope_type", "default, linear or yarn", &"llama3")
        }
        RopeScaling::Yarn { beta_fast, beta_slow, original, truncate, .. } => {
            if (beta_fast, beta_slow) != YARN_BETAS {
                let (fast, slow) = YARN_BETAS;
                let expected = format!("{fast} and {slow}");
                let found = format!("{beta_fast} and {beta_slow}");
                return refuse("beta_fast and beta_slow (yarn)", &expected, &found);
            }
            if !truncate {
                return refuse("truncate (yarn)", "true", &false);
            }
            if original.fract() != 0.0 || !(1.0..=f64::from(u32::MAX)).contains(&original) {
                let key = "original_max_position_embeddings";
                return refuse(key, "a whole number from 1 on", &original);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Columns of a head that are rotated, cut off as transformers does it.
fn rotated(config: &Gpt2Config, rotary: &Rotary) -> usize {
    (config.head_dim() as f64 * rotary.share) as usize
}

/// The keys that describe the model, with the architecture's name before each.
pub(super) fn metadata(config: &Gpt2Config) -> Keys {
    let parts = &config.parts;
    let arch = name(parts.family);
    let number = |value: usize| Value::U32(value as u32); // at most 2^24: Gpt2Config::validate
    let epsilon = match parts.norm {
        Norm::Layer => "attention.layer_norm_epsilon",
        Norm::Rms => "attention.layer_norm_rms_epsilon",
    };
    let mut keys = vec![
        ("block_count", number(config.n_layer)),
        ("context_length", number(config.n_positions)),
        ("embedding_length", number(config.n_embd)),
        ("feed_forward_length", number(config.inner())),
        ("attention.head_count", number(config.n_head)),
        (epsilon, Value::F32(config.layer_norm_epsilon as f32)),
    ];
    if parts.norm == Norm::Rms {
        keys.push(("attention.head_count_kv", number(config.kv_heads())));
        keys.push(("attention.key_length", number(config.head_dim())));
        keys.push(("attention.value_length", number(config.head_dim())));
        keys.push(("vocab_size", number(config.vocab_size)));
    }
    if arch == "gptneox" {
        let parallel = parts.residual == Residual::Parallel;
        keys.push(("use_parallel_residual", Value::Bool(parallel)));
    }
    if let Positions::Rotary(rotary) = &parts.positions {
        keys.push(("rope.dimension_count", number(rotated(config, rotary))));
        keys.push(("rope.freq_base", Value::F32(rotary.theta as f32)));
        keys.extend(scaling(&rotary.scaling));
    }
    keys.into_iter().map(|(key, value)| (format!("{arch}.{key}"), value)).collect()
}

/// Llama 3.1's bands have no key: they are a tensor ([`frequency_divisors`]).
fn scaling(scaling: &RopeScaling) -> Vec<(&'static str, Value)> {
    let text = |text: &str| Value::Text(text.into());
    let float = |value: f64| Value::F32(value as f32);
    match *scaling {
        RopeScaling::Default | RopeScaling::Llama3 { .. } => Vec::new(),
        RopeScaling::Linear { factor } => {
            vec![("rope.scaling.type", text("linear")), ("rope.scaling.factor", float(factor))]
        }
        RopeScaling::Yarn { factor, attention, beta_fast, beta_slow, original, .. } => {
            vec![
                ("rope.scaling.type", text("yarn")),
                ("rope.scaling.factor", float(factor)),
                ("rope.scaling.original_context_length", Value::U32(original as u32)),
                ("rope.scaling.attn_factor", float(attention / own_attention(factor))),
                ("rope.scaling.yarn_beta_fast", float(beta_fast)),
                ("rope.scaling.yarn_beta_slow", float(beta_slow)),
            ]
        }
    }
}

/// What llama.cpp multiplies cos and sin of YaRN by itself, beside `attn_factor`.
pub(super) fn own_attention(factor: f64) -> f64 {
    if factor > 1.0 { 1.0 + 0.1 * factor.ln() } else { 1.0 }
}

/// `rope_freqs.weight` of a model with Llama 3.1's bands: what llama.cpp divides each frequency of a
/// head by.
pub(super) fn frequency_divisors(config: &Gpt2Config) -> Option<Vec<f32>> {
    let Positions::Rotary(rotary) = &config.parts.positions else { return None };
    if !matches!(rotary.scaling, RopeScaling::Llama3 { .. }) {
        return None;
    }
    let plain = Rotary { scaling: RopeScaling::Default, ..rotary.clone() };
    let ([scaled, plain], dim) = ([rotary, &plain], config.head_dim());
    let pairs = plain.frequencies(dim).0.into_iter().zip(scaled.frequencies(dim).0);
    Some(pairs.map(|(plain, scaled)| (plain / scaled) as f32).collect())
}
