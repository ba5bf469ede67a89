//! The model that a file's metadata describes, as the keys of a `config.json`: these have readers,
//! with defaults and refusals. Where a key is absent, llama.cpp's default counts (`load_hparams`).

use super::arch;
use super::header::Header;
use crate::error::{Error, Result};
use crate::model::parts::{Positions, RopeScaling, Rotary};
use crate::model::{Family, Gpt2Config};
use crate::store::weights::parse_config_keys;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Display;

/// A Mistral is a Llama there.
const FAMILIES: [Family; 7] = [
    Family::Gpt2,
    Family::Llama,
    Family::Qwen2,
    Family::Qwen3,
    Family::Olmo2,
    Family::SmolLm3,
    Family::GptNeoX,
];
/// Llama 3.1's bands in units of its first context: those of every model that has them.
const BANDS: (f64, f64) = (1.0, 4.0);

/// The model. `divisors` are the values of `rope_freqs.weight`, if there is one. Errs with the name
/// of a key that asks for something that is not computed here.
pub(super) fn config(header: &Header, divisors: Option<&[f32]>) -> Result<Gpt2Config> {
    let (arch, family) = architecture(header)?;
    let mut said = Said::of(header, arch);
    let has = |name: &str| header.tensors.contains_key(name);
    let vocab = header.tensors.get("token_embd.weight").map(|info| info.shape.dims()[0]);
    let vocab = vocab.ok_or_else(|| Error::data("no tensor token_embd.weight; expected one"))?;
    if let Some(other) = said.number("vocab_size")?.filter(|said| *said != vocab as u64) {
        let expected = format!("the rows of token_embd.weight ({vocab})");
        return Err(said.refused("vocab_size", &expected, &other));
    }
    let layers = said.needed("block_count")?;
    let positions = said.needed("context_length")?;
    let width = said.needed("embedding_length")?;
    let inner = said.needed("feed_forward_length")?;
    let heads = said.needed("attention.head_count")?;
    let tied = !has("output.weight");
    let mut keys = json!({
        "model_type": if family == Family::GptNeoX { "gpt_neox" } else { arch },
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "tie_word_embeddings": tied,
    });
    if family == Family::Gpt2 {
        keys["n_inner"] = inner.into();
        keys["layer_norm_epsilon"] = said.value("attention.layer_norm_epsilon")?;
    } else {
        keys["intermediate_size"] = inner.into();
    }
    if family == Family::GptNeoX {
        keys["layer_norm_eps"] = said.value("attention.layer_norm_epsilon")?;
        keys["use_parallel_residual"] =
            said.take("use_parallel_residual").unwrap_or(Value::Bool(true));
        keys["attention_bias"] = has("blk.0.attn_qkv.bias").into();
    } else if family != Family::Gpt2 {
        keys["rms_norm_eps"] = said.value("attention.layer_norm_rms_epsilon")?;
    }
    if family == Family::Llama {
        keys["attention_bias"] = has("blk.0.attn_q.bias").into();
        keys["mlp_bias"] = has("blk.0.ffn_up.bias").into();
    }
    // Where every head has its own keys, files of GPT-2 and GPT-NeoX may say so, too.
    let grouped = said.number("attention.head_count_kv")?.unwrap_or(heads);
    let usual = width.checked_div(heads).unwrap_or_default();
    let head = said.number("attention.key_length")?.unwrap_or(usual);
    let values = said.number("attention.value_length")?.unwrap_or(head);
    if values != head {
        return Err(said.refused("attention.value_length", &format!("as keys ({head})"), &values));
    }
    if matches!(family, Family::Gpt2 | Family::GptNeoX) {
        if grouped != heads {
            return Err(said.refused("attention.head_count_kv", &heads.to_string(), &grouped));
        }
        if head != usual {
            return Err(said.refused("attention.key_length", &usual.to_string(), &head));
        }
    } else {
        keys["num_key_value_heads"] = grouped.into();
        keys["head_dim"] = head.into();
    }
    if family != Family::Gpt2 {
        rotary(&mut said, &mut keys, family, head)?;
    }
    for (key, none) in [("expert_count", 0), ("expert_used_count", 0)] {
        if let Some(found) = said.number(key)?.filter(|found| *found != none) {
            return Err(said.refused(key, &none.to_string(), &found));
        }
    }
    let window = said.number("attention.sliding_window")?;
    if let Some(window) = window.filter(|window| (1..positions).contains(window)) {
        let expected = format!("absent, or at least context_length ({positions})");
        return Err(said.refused("attention.sliding_window", &expected, &window));
    }
    // What changes nothing: how rows are ordered is the architecture's.
    said.take("tensor_data_layout");
    said.take("rope.scaling.finetuned");
    said.check_all_read()?;
    let Value::Object(keys) = keys else { return Err(Error::internal("keys are no object")) };
    match divisors {
        None => parse_config_keys(keys),
        Some(divisors) => with_bands(keys, divisors),
    }
}

/// llama.cpp's name of the architecture, and ours. Errs where the file is no whole model of text.
fn architecture(header: &Header) -> Result<(&'static str, Family)> {
    let text = |key: &str| header.keys.get(key).and_then(Value::as_str);
    if let Some(other) = text("general.type").filter(|of| *of != "model") {
        return Err(Error::data(format!(
            "general.type must be model, found {other}; name the file of the whole model"
        )));
    }
    if let Some(parts) = header.keys.get("split.count").filter(|n| n.as_u64() != Some(1)) {
        return Err(Error::data(format!(
            "expected a whole model in one file, found one of {parts} files (split.count); join them with \
             `llama-gguf-split --merge`"
        )));
    }
    let found = text("general.architecture").unwrap_or("none");
    let known = FAMILIES.map(|family| (arch::name(family), family));
    known.into_iter().find(|(name, _)| *name == found).ok_or_else(|| {
        Error::data(format!(
            "general.architecture must be {}, found {found}; other models are not supported",
            known.map(|(name, _)| name).join(", ")
        ))
    })
}

/// The keys of rotary positions; `head` is a head's width.
fn rotary(said: &mut Said, keys: &mut Value, family: Family, head: u64) -> Result<()> {
    let theta = said.take("rope.freq_base").unwrap_or(json!(10_000.0));
    keys["rope_theta"] = theta.clone();
    let rotated = said.number("rope.dimension_count")?.unwrap_or(head);
    if family == Family::GptNeoX {
        keys["rotary_emb_base"] = theta;
        // The reader cuts the product with a head's width off; it must not fall below.
        let share = rotated as f64 / head as f64;
        let falls_short = ((head as f64 * share) as u64) < rotated;
        keys["rotary_pct"] = if falls_short { share.next_up() } else { share }.into();
    } else if rotated != head {
        let expected = format!("a head's width ({head})");
        return Err(said.refused("rope.dimension_count", &expected, &rotated));
    }
    let factor = said.real("rope.scaling.factor")?.filter(|factor| *factor != 0.0);
    let original = said.take("rope.scaling.original_context_length");
    let attention = said.real("rope.scaling.attn_factor")?.unwrap_or(1.0);
    let betas = ["fast", "slow"].map(|beta| said.take(&format!("rope.scaling.yarn_beta_{beta}")));
    let kind = said.take("rope.scaling.type").unwrap_or("linear".into());
    match (kind.as_str(), factor) {
        (Some("none"), _) | (Some("linear"), None) => {}
        (Some("linear"), Some(factor)) => {
            keys["rope_scaling"] = json!({"rope_type": "linear", "factor": factor});
        }
        (Some("yarn"), Some(factor)) => {
            let [fast, slow] = betas;
            // llama.cpp multiplies by a factor of its own.
            keys["rope_scaling"] = json!({
                "rope_type": "yarn",
                "factor": factor,
                "attention_factor": attention * arch::own_attention(factor),
                "beta_fast": fast,
                "beta_slow": slow,
                "original_max_position_embeddings": original,
            });
        }
        (Some("yarn"), None) => return Err(said.lacks("rope.scaling.factor")),
        _ => return Err(said.refused("rope.scaling.type", "none, linear or yarn", &kind)),
    }
    Ok(())
}

/// A model whose frequencies are divided. The bands of Llama 3.1 have no keys in such a file: their
/// factor is the largest divisor, and the first context is the one that gives these divisors.
fn with_bands(keys: Map<String, Value>, divisors: &[f32]) -> Result<Gpt2Config> {
    let mut config = parse_config_keys(keys)?;
    let refused = |why: &str| {
        Err(Error::data(format!(
            "rope_freqs.weight must hold the divisors of Llama 3.1's bands (low_freq_factor 1, high_freq_factor 4, in \
             an unscaled model of the architecture llama), found {why}; load the model from its Hugging Face folder"
        )))
    };
    let family = config.parts.family;
    let Positions::Rotary(rotary) = &config.parts.positions else {
        return refused("a model without rotary positions");
    };
    if (family, &rotary.scaling) != (Family::Llama, &RopeScaling::Default) {
        return refused(&format!("{:?} of {}", rotary.scaling, arch::name(family)));
    }
    let plain = rotary.clone();
    let factor = divisors.iter().copied().fold(1.0f32, f32::max).into();
    for original in (4..=24).map(|power| f64::from(1 << power)) {
        let (low_freq_factor, high_freq_factor) = BANDS;
        let scaling = RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original };
        config.parts.positions = Positions::Rotary(Rotary { scaling, ..plain.clone() });
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs();
        if arch::frequency_divisors(&config)
            .is_some_and(|own| own.len() == divisors.len() && own.iter().zip(divisors).all(close))
        {
            config.validate().map_err(|e| Error::data(e.to_string()))?;
            return Ok(config);
        }
    }
    refused("others")
}

/// The keys of an architecture that nobody has read yet.
struct Said {
    arch: &'static str,
    left: BTreeMap<String, Value>,
}

impl Said {
    fn of(header: &Header, arch: &'static str) -> Self {
        let own = |(key, value): (&String, &Value)| {
            let key = key.strip_prefix(arch)?.strip_prefix('.')?;
            Some((key.to_string(), value.clone()))
        };
        Self { arch, left: header.keys.iter().filter_map(own).collect() }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.left.remove(key)
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        self.take(key).ok_or_else(|| self.lacks(key))
    }

    fn number(&mut self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_u64() {
            Some(number) => Ok(Some(number)),
            None => Err(self.refused(key, "one whole number", &shown(&value))),
        }
    }

    fn needed(&mut self, key: &str) -> Result<u64> {
        self.number(key)?.ok_or_else(|| self.lacks(key))
    }

    fn real(&mut self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(self.refused(key, "a number", &shown(&value))),
        }
    }

    /// Nothing that a file asks for is ignored.
    fn check_all_read(&self) -> Result<()> {
        match self.left.first_key_value() {
            None => Ok(()),
            Some((key, value)) => Err(self.refused(key, "absent", &shown(value))),
        }
    }

    fn lacks(&self, key: &str) -> Error {
        Error::data(format!(
            "{}.{key} is not there; expected it: convert the model again with a llama.cpp of today",
            self.arch
        ))
    }

    fn refused(&self, key: &str, expected: &str, found: &dyn Display) -> Error {
        Error::data(format!(
            "{}.{key} must be {expected}, found {found}; other models are not supported",
            self.arch
        ))
    }
}

fn shown(value: &Value) -> String {
    if value.is_array() { "a list".into() } else { value.to_string() }
}
