//! A model's parameters as one ordered, named list. Gradients and optimizer moments use the same list.

use super::Gpt2Config;
use crate::error::Result;
use candle_core::{DType, Device, Tensor};

/// Names, shapes and order of a model's parameters; a pure function of the shape.
///
/// Names are Hugging Face's without the `transformer.` prefix. Matrices of a block keep the Conv1D layout
/// `[in, out]`. The head is tied to `wte.weight` and has no entry of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// (name, shape) in storage order.
    pub entries: Vec<(String, Vec<usize>)>,
}

/// Where the positions are in a layout.
const WPE: usize = 1;

/// Parameters per block, in the order of [`Block`].
const PER_BLOCK: usize = 12;

impl Layout {
    /// The list for a shape.
    pub fn new(config: &Gpt2Config) -> Self {
        let (d, f) = (config.n_embd, config.inner());
        let mut entries = vec![
            ("wte.weight".to_string(), vec![config.vocab_size, d]),
            ("wpe.weight".to_string(), vec![config.n_positions, d]),
        ];
        for l in 0..config.n_layer {
            let mut push = |name: &str, shape: Vec<usize>| entries.push((format!("h.{l}.{name}"), shape));
            push("ln_1.weight", vec![d]);
            push("ln_1.bias", vec![d]);
            push("attn.c_attn.weight", vec![d, 3 * d]);
            push("attn.c_attn.bias", vec![3 * d]);
            push("attn.c_proj.weight", vec![d, d]);
            push("attn.c_proj.bias", vec![d]);
            push("ln_2.weight", vec![d]);
            push("ln_2.bias", vec![d]);
            push("mlp.c_fc.weight", vec![d, f]);
            push("mlp.c_fc.bias", vec![f]);
            push("mlp.c_proj.weight", vec![f, d]);
            push("mlp.c_proj.bias", vec![d]);
        }
        entries.push(("ln_f.weight".to_string(), vec![d]));
        entries.push(("ln_f.bias".to_string(), vec![d]));
        Self { entries }
    }

    /// Weight decay is for matrices and embeddings only, never for biases and norms.
    pub fn decays(&self, index: usize) -> bool {
        self.entries[index].1.len() >= 2
    }
}

/// One tensor per entry of a [`Layout`], all on one device. Cloning shares the storage.
#[derive(Debug, Clone)]
pub struct ParamSet {
    layout: Layout,
    tensors: Vec<Tensor>,
}

/// The twelve parameters of one block.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    pub ln_1_w: &'a Tensor,
    pub ln_1_b: &'a Tensor,
    pub attn_w: &'a Tensor,
    pub attn_b: &'a Tensor,
    pub attn_proj_w: &'a Tensor,
    pub attn_proj_b: &'a Tensor,
    pub ln_2_w: &'a Tensor,
    pub ln_2_b: &'a Tensor,
    pub fc_w: &'a Tensor,
    pub fc_b: &'a Tensor,
    pub proj_w: &'a Tensor,
    pub proj_b: &'a Tensor,
}

impl ParamSet {
    /// Takes tensors in the layout's order. Panics only on a caller's bug: a count that differs from the layout's.
    pub fn new(layout: Layout, tensors: Vec<Tensor>) -> Self {
        assert_eq!(layout.entries.len(), tensors.len(), "one tensor per layout entry");
        Self { layout, tensors }
    }

    /// All zeros: fresh gradients or moments.
    pub fn zeros(layout: &Layout, dtype: DType, device: &Device) -> Result<Self> {
        let tensors = layout
            .entries
            .iter()
            .map(|(_, shape)| Tensor::zeros(shape.as_slice(), dtype, device))
            .collect::<candle_core::Result<_>>()?;
        Ok(Self::new(layout.clone(), tensors))
    }

    /// The same parameters with the factors of products, the token embedding among them, stored in `dtype`; positions, norms
    /// and biases stay as they are. Takes one tensor after the other, so that both copies of one are all that is held.
    pub fn with_factors_in(self, dtype: DType) -> Result<Self> {
        let Self { layout, tensors } = self;
        let stored = tensors.into_iter().enumerate().map(|(i, tensor)| {
            let factor = i != WPE && tensor.rank() == 2;
            Ok(if factor { tensor.to_dtype(dtype)? } else { tensor })
        });
        let tensors = stored.collect::<Result<_>>()?;
        Ok(Self { layout, tensors })
    }

    /// Names, shapes and order.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The tensors in the layout's order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// (name, tensor) in the layout's order.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.layout.entries.iter().map(|(name, _)| name.as_str()).zip(&self.tensors)
    }

    /// Token embedding and tied head, `[V, D]`.
    pub fn wte(&self) -> &Tensor {
        &self.tensors[0]
    }

    /// Learned positions, `[n_positions, D]`.
    pub fn wpe(&self) -> &Tensor {
        &self.tensors[WPE]
    }

    /// Scale of the final norm, `[D]`.
    pub fn ln_f_w(&self) -> &Tensor {
        &self.tensors[self.tensors.len() - 2]
    }

    /// Shift of the final norm, `[D]`.
    pub fn ln_f_b(&self) -> &Tensor {
        &self.tensors[self.tensors.len() - 1]
    }

    /// The parameters of block `l`.
    pub fn block(&self, l: usize) -> Block<'_> {
        let t = &self.tensors[2 + PER_BLOCK * l..2 + PER_BLOCK * (l + 1)];
        Block {
            ln_1_w: &t[0],
            ln_1_b: &t[1],
            attn_w: &t[2],
            attn_b: &t[3],
            attn_proj_w: &t[4],
            attn_proj_b: &t[5],
            ln_2_w: &t[6],
            ln_2_b: &t[7],
            fc_w: &t[8],
            fc_b: &t[9],
            proj_w: &t[10],
            proj_b: &t[11],
        }
    }
}
