//! Rotary positions in `config.json`. transformers 5 writes `rope_parameters` with the base in it;
//! releases before read `rope_theta` and `rope_scaling` alone and take 10,000 where they find no
//! base. Both are read, and both are written.

use super::Keys;
use crate::error::{Error, Result};
use crate::model::parts::{RopeScaling, Rotary};
use serde_json::{Value, json};

/// What a family has where the tables say nothing.
pub(super) struct Defaults<'a> {
    /// The key beside the tables that holds the base.
    pub base: &'a str,
    /// The base without that.
    pub theta: f64,
    /// The rotated share of a head, where it need not be all of it.
    pub share: Option<f64>,
}

impl Default for Defaults<'_> {
    fn default() -> Self {
        Self { base: "rope_theta", theta: 10_000.0, share: None }
    }
}

/// `rope_scaling`, else `rope_parameters`, as transformers 5 has it; `positions` are the model's.
pub(super) fn read(keys: &Keys, positions: usize, defaults: Defaults<'_>) -> Result<Rotary> {
    let (old, new) = ("rope_scaling", "rope_parameters");
    let name = if keys.table(old)?.0.is_empty() { new } else { old };
    let table = keys.table(name)?;
    let theta: Option<f64> = match table.get("rope_theta")? {
        None => keys.get(defaults.base)?,
        stated => stated,
    };
    let said: Option<f64> = table.get("partial_rotary_factor")?;
    let share = match defaults.share {
        Some(share) => said.unwrap_or(share),
        None => {
            let said = [said, keys.get("partial_rotary_factor")?];
            if let Some(share) = said.into_iter().flatten().find(|share| *share != 1.0) {
                return Err(keys.unexpected("partial_rotary_factor", "1", &share));
            }
            1.0
        }
    };
    let kind: Option<String> = table.first(&["rope_type", "type"])?;
    let need = |key: &str| -> Result<f64> {
        table.get(key)?.ok_or_else(|| {
            Error::data(format!("{name} of type {:?} lacks {key}", kind.as_deref().unwrap_or("")))
        })
    };
    // Beside the table it counts as well, and before what the table says, as in transformers 5.
    let original = || -> Result<f64> {
        let key = "original_max_position_embeddings";
        let own: Option<f64> = keys.get(key)?;
        Ok(own.or(table.get(key)?).unwrap_or(positions as f64))
    };
    let scaling = match kind.as_deref() {
        // Dynamic is the default up to the model's own positions, and there are no others here.
        None | Some("default" | "dynamic") => RopeScaling::Default,
        Some("linear") => RopeScaling::Linear { factor: need("factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original: original()?,
        },
        Some("yarn") => {
            // Without one the ratio of the contexts, as in transformers 5.
            let factor = match table.get("factor")? {
                Some(factor) => factor,
                None => positions as f64 / original()?,
            };
            RopeScaling::Yarn {
                factor,
                attention: attention_factor(&table, factor)?,
                beta_fast: table.get("beta_fast")?.unwrap_or(32.0),
                beta_slow: table.get("beta_slow")?.unwrap_or(1.0),
                original: original()?,
                truncate: table.get("truncate")?.unwrap_or(true),
            }
        }
        Some(other) => {
            return Err(keys.unexpected(
                &format!("rope_type ({name})"),
                "default, linear, dynamic, llama3 or yarn",
                &format!("{other:?}"),
            ));
        }
    };
    Ok(Rotary { share, ..Rotary::new(theta.unwrap_or(defaults.theta), scaling) })
}

/// What YaRN multiplies cos and sin by: what is stated, or 0.1 ln(factor) + 1, or a ratio of such.
fn attention_factor(table: &Keys, factor: f64) -> Result<f64> {
    if let Some(stated) = table.get("attention_factor")? {
        return Ok(stated);
    }
    let of = |scale: f64| if factor > 1.0 { 0.1 * scale * factor.ln() + 1.0 } else { 1.0 };
    let (one, all): (Option<f64>, Option<f64>) =
        (table.get("mscale")?, table.get("mscale_all_dim")?);
    Ok(match (one.filter(|x| *x != 0.0), all.filter(|x| *x != 0.0)) {
        (Some(one), Some(all)) => of(one) / of(all),
        _ => of(1.0),
    })
}

/// Adds the keys of both generations.
pub(super) fn write(rotary: &Rotary, all: &mut Value) {
    let scaling = match rotary.scaling {
        RopeScaling::Default => json!({"rope_type": "default"}),
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original as u64,
        }),
        RopeScaling::Yarn { factor, attention, beta_fast, beta_slow, original, truncate } => {
            json!({
                "rope_type": "yarn",
                "factor": factor,
                "attention_factor": attention,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "original_max_position_embeddings": original as u64,
                "truncate": truncate,
            })
        }
    };
    all["rope_theta"] = rotary.theta.into();
    all["rope_scaling"] = match rotary.scaling {
        RopeScaling::Default => Value::Null,
        _ => scaling.clone(),
    };
    let mut parameters = scaling;
    parameters["rope_theta"] = rotary.theta.into();
    all["rope_parameters"] = parameters;
}
