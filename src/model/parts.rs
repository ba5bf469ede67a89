//! What a decoder is made of beside its sizes. The default is GPT-2's.

use crate::error::{Error, Result};
pub use crate::ops::activation::{Activation, Mlp};
use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;

/// Whose files a model's are: names and layout of weights, keys of `config.json`, initialisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// GPT-2 (Radford et al. 2019).
    #[default]
    Gpt2,
    /// Llama (Touvron et al., arXiv 2302.13971), and models of its class such as SmolLM2.
    Llama,
    /// Qwen2 and Qwen2.5 (arXiv 2412.15115).
    Qwen2,
    /// Qwen3 (arXiv 2505.09388).
    Qwen3,
    /// Mistral (arXiv 2310.06825).
    Mistral,
    /// OLMo 2 (arXiv 2501.00656).
    Olmo2,
    /// SmolLM3.
    #[serde(rename = "smollm3")]
    SmolLm3,
    /// GPT-NeoX (arXiv 2204.06745), and Pythia (arXiv 2304.01373).
    GptNeoX,
}

/// The parts of a decoder.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Parts {
    /// Whose files its are.
    #[serde(skip_serializing_if = "is_default")]
    pub family: Family,
    /// Heads of keys and values, each shared by `n_head / n_kv_head` queries' heads (grouped-query
    /// attention, Ainslie et al., arXiv 2305.13245); absent: `n_head`.
    #[serde(skip_serializing_if = "is_default")]
    pub n_kv_head: Option<usize>,
    /// Width of a head; absent: `n_embd / n_head`.
    #[serde(skip_serializing_if = "is_default")]
    pub head_dim: Option<usize>,
    /// How positions are told.
    #[serde(skip_serializing_if = "is_default")]
    pub positions: Positions,
    /// What norms are.
    #[serde(skip_serializing_if = "is_default")]
    pub norm: Norm,
    /// How attention and MLP join the residual stream.
    #[serde(skip_serializing_if = "is_default")]
    pub residual: Residual,
    /// What of queries and keys is normed (RMS) before they are rotated.
    #[serde(skip_serializing_if = "is_default")]
    pub qk_norm: QkNorm,
    /// Which products have a bias.
    #[serde(skip_serializing_if = "is_default")]
    pub biases: Biases,
    /// What the MLP is.
    #[serde(skip_serializing_if = "is_default")]
    pub mlp: Mlp,
    /// How scores of attention are scaled.
    #[serde(skip_serializing_if = "is_default")]
    pub scores: Scores,
    /// Which blocks see the newest positions alone.
    #[serde(skip_serializing_if = "is_default")]
    pub window: Option<Window>,
    /// Whether the head (output layer) is a matrix of its own; else it is the token embedding.
    #[serde(skip_serializing_if = "is_default")]
    pub own_head: bool,
}

/// A part that is GPT-2's is not named, so that what is stored of a model stays the same when there
/// are more kinds of parts.
fn is_default<T: Default + PartialEq>(part: &T) -> bool {
    *part == T::default()
}

impl Parts {
    /// Whether they are GPT-2's, which every device has kernels for.
    pub fn are_gpt2s(&self) -> bool {
        *self == Self::default()
    }
}

/// How positions are told.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// A learned vector is added to the embedding.
    #[default]
    Learned,
    /// Queries and keys are rotated (RoFormer, arXiv 2104.09864), in halves.
    Rotary(Rotary),
}

/// Frequencies of a rotary embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rotary {
    /// Base theta of the frequencies `theta^(-2 i / d)`.
    pub theta: f64,
    /// What is made of them.
    pub scaling: RopeScaling,
    /// Share of each head's width, from its first column on, that is rotated.
    #[serde(default = "whole", skip_serializing_if = "is_whole")]
    pub share: f64,
    /// Blocks whose queries and keys stay as they are.
    #[serde(default, skip_serializing_if = "is_default")]
    pub without: Blocks,
}

fn whole() -> f64 {
    1.0
}

fn is_whole(share: &f64) -> bool {
    *share == whole()
}

/// What is made of the frequencies for contexts longer than those of pretraining.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum RopeScaling {
    /// Nothing.
    #[default]
    Default,
    /// All are divided by `factor` (Chen et al., arXiv 2306.15595).
    Linear { factor: f64 },
    /// Llama 3.1's bands: long waves are divided by `factor`, short ones stay.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original: f64 },
    /// YaRN (Peng et al., arXiv 2309.00071). `attention` multiplies cos and sin.
    Yarn {
        factor: f64,
        attention: f64,
        beta_fast: f64,
        beta_slow: f64,
        original: f64,
        truncate: bool,
    },
}

impl Rotary {
    /// Of every column, in every block.
    pub fn new(theta: f64, scaling: RopeScaling) -> Self {
        Self { theta, scaling, share: whole(), without: Blocks::default() }
    }

    /// How many columns of a head are rotated, cut off as transformers does it.
    fn columns(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.share) as usize
    }

    /// Angular frequencies of the pairs of a head's rotated columns, and what cos and sin are
    /// multiplied by. `head_dim` is the head's width.
    pub fn frequencies(&self, head_dim: usize) -> (Vec<f64>, f64) {
        // An odd number of columns takes one more, as in transformers.
        let dim = self.columns(head_dim);
        let half = dim.div_ceil(2);
        let plain = |i: usize| self.theta.powf(-2.0 * i as f64 / dim as f64);
        match self.scaling {
            RopeScaling::Default => ((0..half).map(plain).collect(), 1.0),
            RopeScaling::Linear { factor } => ((0..half).map(|i| plain(i) / factor).collect(), 1.0),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let scaled = |i: usize| {
                    let f = plain(i);
                    let wave = TAU / f;
                    if wave < original / high_freq_factor {
                        return f;
                    }
                    if wave > original / low_freq_factor {
                        return f / factor;
                    }
                    let smooth =
                        (original / wave - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                };
                ((0..half).map(scaled).collect(), 1.0)
            }
            RopeScaling::Yarn { factor, attention, beta_fast, beta_slow, original, truncate } => {
                // The pair that turns so often within the original context.
                let pair = |turns: f64| {
                    dim as f64 * (original / (turns * TAU)).ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let scaled = |i: usize| {
                    let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    plain(i) / factor * stretched + plain(i) * (1.0 - stretched)
                };
                ((0..half).map(scaled).collect(), attention)
            }
        }
    }
}

/// Some of a model's blocks, counted from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blocks {
    /// Every one.
    All,
    /// These, ascending.
    Of(Vec<usize>),
}

impl Default for Blocks {
    /// None.
    fn default() -> Self {
        Self::Of(Vec::new())
    }
}

impl Blocks {
    /// Those of `count` blocks for which `is` holds.
    pub fn which(count: usize, is: impl Fn(usize) -> bool) -> Self {
        let of: Vec<usize> = (0..count).filter(|l| is(*l)).collect();
        if count > 0 && of.len() == count { Self::All } else { Self::Of(of) }
    }

    /// Whether block `l` is among them.
    pub fn contain(&self, l: usize) -> bool {
        match self {
            Self::All => true,
            Self::Of(blocks) => blocks.contains(&l),
        }
    }

    /// The same blocks where a model consists of these `layers` of another.
    pub fn of_layers(&self, layers: &[usize]) -> Self {
        match self {
            Self::All => Self::All,
            Self::Of(_) => {
                Self::Of((0..layers.len()).filter(|l| self.contain(layers[*l])).collect())
            }
        }
    }
}

/// Attention within a window (Longformer, arXiv 2004.05150; Mistral, arXiv 2310.06825).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// How many positions a query sees, its own among them.
    pub size: usize,
    /// The blocks that have it.
    pub blocks: Blocks,
}

/// How a block's attention and MLP join the residual stream x.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Residual {
    /// m = x + attention(norm(x)), then m + mlp(norm(m)).
    #[default]
    PreNorm,
    /// m = x + norm(attention(x)), then m + norm(mlp(m)), as OLMo 2 has it.
    PostNorm,
    /// x + attention(norm(x)) + mlp(norm(x)), each with a norm of its own, as GPT-NeoX has it.
    Parallel,
}

/// What of queries and keys is normed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QkNorm {
    /// Nothing.
    #[default]
    None,
    /// Each head, with one scale for all, as Qwen3 has it.
    Head,
    /// All heads as one vector, as OLMo 2 has it.
    Whole,
}

/// What norms are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// Layer norm with scale and shift.
    #[default]
    Layer,
    /// RMS norm with a scale (Zhang and Sennrich, arXiv 1910.07467).
    Rms,
}

/// Which products have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Biases {
    /// That of queries, keys and values.
    pub qkv: bool,
    /// That of attention's output.
    pub output: bool,
    /// Those of the MLP.
    pub mlp: bool,
}

impl Default for Biases {
    fn default() -> Self {
        Self { qkv: true, output: true, mlp: true }
    }
}

/// How scores of attention are scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scores {
    /// Divided by the root of the head's width.
    pub by_width: bool,
    /// Divided by the number of the block, from 1 on.
    pub by_layer: bool,
}

impl Default for Scores {
    fn default() -> Self {
        Self { by_width: true, by_layer: false }
    }
}

impl Scores {
    /// The factor in block `l` for heads of that width.
    pub fn factor(self, l: usize, head_dim: usize) -> f32 {
        // As attention has it without being told, to the bit.
        let by_width = if self.by_width { 1.0 / (head_dim as f32).sqrt() } else { 1.0 };
        if self.by_layer { by_width / (l + 1) as f32 } else { by_width }
    }
}

/// Errs where heads and their widths cannot be.
pub(super) fn check(parts: &Parts, n_head: usize, head_dim: usize) -> Result<()> {
    let wrong = |what: String| Err(Error::usage(format!("model shape: {what}")));
    if let Some(kv) = parts.n_kv_head
        && (kv == 0 || !n_head.is_multiple_of(kv))
    {
        return wrong(format!(
            "n_head must be a multiple of the heads of keys and values, found {n_head} and {kv}"
        ));
    }
    if head_dim == 0 || head_dim > 1 << 14 {
        return wrong(format!(
            "the width of a head must lie between 1 and 16384, found {head_dim}"
        ));
    }
    if let Positions::Rotary(rotary) = &parts.positions {
        if !(0.0..=1.0).contains(&rotary.share) {
            return wrong(format!(
                "the rotated share of a head must lie between 0 and 1, found {}",
                rotary.share
            ));
        }
        let columns = rotary.columns(head_dim);
        let rotated = columns.next_multiple_of(2);
        if rotated > head_dim {
            return wrong(format!(
                "rotary positions take columns in pairs, and {rotated} are more than a head's {head_dim}"
            ));
        }
        // transformers has a ramp for each whole pair, and fails or takes the first one's for all.
        if matches!(rotary.scaling, RopeScaling::Yarn { .. }) && columns % 2 == 1 {
            return wrong(format!(
                "yarn takes an even number of rotated columns, found {columns} of a head's {head_dim}"
            ));
        }
        if !(rotary.theta.is_finite() && rotary.theta > 0.0) {
            return wrong(format!(
                "rotary theta must be a positive number, found {}",
                rotary.theta
            ));
        }
    }
    if parts.window.as_ref().is_some_and(|window| window.size == 0) {
        return wrong("a window of attention must have at least 1 position, found 0".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_are_transformers() {
        let of = |theta, scaling| Rotary::new(theta, scaling).frequencies(8);
        let close = |got: &[f64], want: &[f64]| {
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() <= 1e-7 * want.abs(), "{got} for {want}");
            }
        };
        let (plain, one) = of(10000.0, RopeScaling::Default);
        close(&plain, &[1.0, 0.1, 0.01, 0.001]);
        assert_eq!(one, 1.0);
        close(&of(10000.0, RopeScaling::Linear { factor: 4.0 }).0, &[0.25, 0.025, 0.0025, 0.00025]);
        // The first wave is short, the last long, the others between.
        let bands = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original: 128.0,
        };
        let (bands, _) = of(10000.0, bands);
        assert_eq!(bands[0], 1.0);
        assert_eq!((bands[2], bands[3]), (plain[2] / 8.0, plain[3] / 8.0));
        // The first 5.6 of 8 columns are 5, which take three pairs.
        let part = Rotary { share: 0.7, ..Rotary::new(10000.0, RopeScaling::Default) };
        close(&part.frequencies(8).0, &[1.0, 10f64.powf(-1.6), 10f64.powf(-3.2)]);
        let (factor, attention, beta_fast, beta_slow) = (4.0, 1.0, 32.0, 1.0);
        let scaling = || RopeScaling::Yarn {
            factor,
            attention,
            beta_fast,
            beta_slow,
            original: 64.0,
            truncate: true,
        };
        let with = |share| {
            let rotary = Rotary { share, ..Rotary::new(10000.0, scaling()) };
            Parts { positions: Positions::Rotary(rotary), ..Parts::default() }
        };
        assert!(check(&with(0.5), 2, 8).is_ok());
        assert!(check(&with(0.7), 2, 8).unwrap_err().to_string().contains("found 5 of a head's 8"));
        let smooth = (128.0 / (TAU / 0.1) - 1.0) / 3.0;
        close(&bands[1..2], &[(1.0 - smooth) * 0.1 / 8.0 + smooth * 0.1]);
    }
}
