//! The shape of a decoder: sizes under the names of GPT-2's `config.json`, and its parts.

use super::ParamKind;
use super::parts::{self, Family, Parts, Positions, QkNorm};
use crate::config::ShapePlan;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Shape and constants of a decoder. Sizes have the names of Hugging Face's `GPT2Config`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gpt2Config {
    /// Rows of the token embedding and columns of the head (V).
    pub vocab_size: usize,
    /// Longest context that the positions cover (T at most).
    pub n_positions: usize,
    /// Width of the residual stream (D).
    pub n_embd: usize,
    /// Number of transformer blocks (L).
    pub n_layer: usize,
    /// Attention heads per block (H).
    pub n_head: usize,
    /// Width of the MLP; absent means 4 D.
    #[serde(default)]
    pub n_inner: Option<usize>,
    /// Epsilon of every norm.
    #[serde(default = "default_epsilon")]
    pub layer_norm_epsilon: f64,
    /// Standard deviation of the initial weights; residual projections divide it by sqrt(2 L).
    #[serde(default = "default_range")]
    pub initializer_range: f64,
    /// What it is made of; absent: GPT-2's parts.
    #[serde(default, skip_serializing_if = "Parts::are_gpt2s")]
    pub parts: Parts,
}

fn default_epsilon() -> f64 {
    1e-5
}

fn default_range() -> f64 {
    0.02
}

impl Gpt2Config {
    /// Shape with GPT-2's constants: epsilon 1e-5, initialisation 0.02, MLP of 4 D.
    pub fn new(
        vocab_size: usize,
        n_positions: usize,
        n_embd: usize,
        n_layer: usize,
        n_head: usize,
    ) -> Self {
        Self {
            vocab_size,
            n_positions,
            n_embd,
            n_layer,
            n_head,
            n_inner: None,
            layer_norm_epsilon: default_epsilon(),
            initializer_range: default_range(),
            parts: Parts::default(),
        }
    }

    /// The same shape but for what a plan overrides. An MLP follows a new width.
    pub fn overridden(&self, by: &ShapePlan) -> Self {
        let mut shape = self.clone();
        shape.n_layer = by.n_layer.unwrap_or(self.n_layer);
        shape.n_head = by.n_head.unwrap_or(self.n_head);
        shape.n_positions = by.n_positions.unwrap_or(self.n_positions);
        if let Some(n_embd) = by.n_embd {
            shape.n_embd = n_embd;
            // 4 D of the new width; a gated MLP keeps its share.
            shape.n_inner = (self.n_inner)
                .filter(|_| self.parts.mlp.gated)
                .map(|inner| (inner * n_embd / self.n_embd).max(1));
            shape.parts.head_dim = None;
        }
        if let Some(kv) = shape.parts.n_kv_head
            && !shape.n_head.is_multiple_of(kv)
        {
            shape.parts.n_kv_head = None;
        }
        shape
    }

    /// How many positions a query of block `l` sees at most, where that is less than all.
    pub fn window(&self, l: usize) -> Option<usize> {
        self.parts.window.as_ref().filter(|window| window.blocks.contain(l)).map(|w| w.size)
    }

    /// Widths of the scales that queries and keys are normed with, where they are.
    pub fn qk_norm_widths(&self) -> Option<(usize, usize)> {
        match self.parts.qk_norm {
            QkNorm::None => None,
            QkNorm::Head => Some((self.head_dim(), self.head_dim())),
            QkNorm::Whole => Some((self.query_width(), self.kv_width())),
        }
    }

    /// Width of the MLP (F).
    pub fn inner(&self) -> usize {
        self.n_inner.unwrap_or(self.n_embd.saturating_mul(4))
    }

    /// What changes what the model computes and shows in no tensor's shape.
    pub fn function(&self) -> String {
        let Self { n_head, layer_norm_epsilon, parts, .. } = self;
        let sizes = format!("n_head = {n_head}, layer_norm_epsilon = {layer_norm_epsilon}");
        match serde_json::to_string(parts) {
            Ok(parts_said) if !parts.are_gpt2s() => format!("{sizes}, {parts_said}"),
            _ => sizes,
        }
    }

    /// Width of all queries of a position: H heads.
    pub fn query_width(&self) -> usize {
        self.n_head * self.head_dim()
    }

    /// Heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        self.parts.n_kv_head.unwrap_or(self.n_head)
    }

    /// Width of all keys of a position, and of all values.
    pub fn kv_width(&self) -> usize {
        self.kv_heads() * self.head_dim()
    }

    /// Columns of the MLP's first product: F, or gate and up side by side.
    pub fn mlp_width(&self) -> usize {
        if self.parts.mlp.gated { 2 * self.inner() } else { self.inner() }
    }

    /// Whether positions are learned vectors.
    pub fn learns_positions(&self) -> bool {
        self.parts.positions == Positions::Learned
    }

    /// Standard deviation of the initial weights that add to the residual stream: GPT-2 divides by
    /// sqrt(2 L), since two per block add up.
    pub fn residual_range(&self) -> f64 {
        match self.parts.family {
            Family::Gpt2 => self.initializer_range / ((2 * self.n_layer) as f64).sqrt(),
            _ => self.initializer_range,
        }
    }

    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.parts.head_dim.unwrap_or(self.n_embd / self.n_head)
    }

    /// Checks every limit; the error names the field, the value and what was expected.
    pub fn validate(&self) -> Result<()> {
        // Far above any GPT-2, far below where products of two fields overflow or an allocation
        // could not succeed.
        const MOST: usize = 1 << 24;
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("n_positions", self.n_positions),
            ("n_embd", self.n_embd),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("n_inner", self.inner()),
        ] {
            if value == 0 || value > MOST {
                return Err(Error::usage(format!(
                    "model shape: {name} must lie between 1 and {MOST}, found {value}"
                )));
            }
        }
        // Each field may be plausible and the whole not: sizes in bytes of all parameters must
        // still fit in 64 bits.
        const MOST_PARAMETERS: u128 = 1 << 44;
        let (d, f) = (self.n_embd as u128, self.inner() as u128);
        let of_blocks = self.n_layer as u128 * self.block_elements(ParamKind::is_matrix) as u128;
        let weights = (self.vocab_size + self.n_positions) as u128 * d + of_blocks;
        if weights > MOST_PARAMETERS {
            return Err(Error::usage(format!(
                "model shape: {weights} weights (n_layer = {}, n_embd = {d}, MLP {f}, vocab_size = {}) are more than any \
                 machine holds; expected at most {MOST_PARAMETERS}",
                self.n_layer, self.vocab_size
            )));
        }
        if self.parts.head_dim.is_none() && !self.n_embd.is_multiple_of(self.n_head) {
            return Err(Error::usage(format!(
                "model shape: n_embd must be a multiple of n_head, found n_embd = {} and n_head = {}",
                self.n_embd, self.n_head
            )));
        }
        parts::check(&self.parts, self.n_head, self.head_dim())?;
        if !(self.layer_norm_epsilon.is_finite() && self.layer_norm_epsilon > 0.0) {
            return Err(Error::usage(format!(
                "model shape: layer_norm_epsilon must be a positive number, found {}",
                self.layer_norm_epsilon
            )));
        }
        if !(self.initializer_range.is_finite() && self.initializer_range >= 0.0) {
            return Err(Error::usage(format!(
                "model shape: initializer_range must be a number of at least 0, found {}",
                self.initializer_range
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_the_published_ones() {
        assert_eq!(Gpt2Config::new(50257, 1024, 768, 12, 12).parameters(), 124_439_808);
        assert_eq!(Gpt2Config::new(50257, 1024, 1024, 24, 16).parameters(), 354_823_168);
        assert_eq!(Gpt2Config::new(50257, 1024, 1280, 36, 20).parameters(), 774_030_080);
        assert_eq!(Gpt2Config::new(50257, 1024, 1600, 48, 25).parameters(), 1_557_611_200);
    }

    #[test]
    fn shape_overrides_replace_only_what_they_name() {
        let base = Gpt2Config { n_inner: Some(10), ..Gpt2Config::new(100, 64, 8, 2, 2) };
        let shape = base.overridden(&ShapePlan { n_layer: Some(5), ..ShapePlan::default() });
        assert_eq!((shape.n_layer, shape.n_inner, shape.n_embd), (5, Some(10), 8));
        let wide = base.overridden(&ShapePlan { n_embd: Some(16), ..ShapePlan::default() });
        assert_eq!((wide.n_embd, wide.inner()), (16, 64), "the MLP follows a new width");
    }

    #[test]
    fn impossible_shapes_are_named() {
        let message = Gpt2Config::new(10, 8, 10, 1, 3).validate().unwrap_err().to_string();
        assert!(message.contains("n_embd = 10") && message.contains("n_head = 3"), "{message}");
        assert!(
            Gpt2Config::new(10, 0, 8, 1, 2)
                .validate()
                .unwrap_err()
                .to_string()
                .contains("n_positions")
        );
    }
}
