//! The GPT-2 trunk (Radford et al. 2019): forward, and the backward by hand beside it.
//!
//! The trunk ends with the final norm; the tied head is [`crate::loss::head`]. Activations live on a [`Tape`] that the
//! backward consumes block by block. The backward is row-aware: given the rows (positions) of the micro-batch whose
//! final hidden vector carries gradient, the final norm and the last block's MLP, output projection and queries work on
//! those rows only, which is exact; below the last block's keys and values every row carries gradient again. [`Flow`] says
//! what happens there instead: nothing (exact), only the given rows go on (sparse), or drawn ones do (sampled).

use super::{Block, Gpt2Config, ParamSet, RowSampler};
use crate::config::Activations;
use crate::error::Result;
use crate::loss::head::Logits;
use crate::ops::attention::{self, Attended, Keys, Shape};
use crate::ops::embed::{self, gather, scatter_add};
use crate::ops::matmul::{Precision, accumulate, accumulate_column_sums, linear, linear_onto, matmul};
use crate::ops::{gelu, layer_norm};
use candle_core::Tensor;
use std::borrow::Cow;

/// A model: its shape and its parameters.
#[derive(Debug, Clone)]
pub struct Gpt2 {
    /// Shape and constants.
    pub config: Gpt2Config,
    /// Weights in the layout of the shape.
    pub params: ParamSet,
    /// What the products with weights do with their factors, forward and backward. Attention's own stay f32.
    pub precision: Precision,
    /// What a tape keeps of each block.
    pub activations: Activations,
}

/// Which rows carry gradient below the last block's keys and values.
#[derive(Debug, Clone, Copy)]
pub enum Flow<'a> {
    /// Every row, as the chain rule has it.
    Exact,
    /// Only the rows that carry gradient at the trunk's end, in every block: keys and values of the others count as
    /// constants. Their queries are not cut: dQ of a row meets all keys and values it sees. Biased.
    Sparse,
    /// Rows drawn at each block's output and among its keys and values, so that every gradient keeps its expectation.
    Sampled(&'a RowSampler),
}

/// Rows that carried gradient in a backward, each summed over the blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// At the blocks' outputs.
    pub outputs: u64,
    /// At their keys and values.
    pub keys: u64,
}

/// What the backward needs of one forward over `batch x context` positions.
#[derive(Debug)]
pub struct Tape {
    pub(super) tokens: Vec<u32>,
    pub(super) shape: Shape,
    pub(super) blocks: Vec<Taped>,
    /// Input of the final norm and its statistics.
    pub(super) last: Tensor,
    pub(super) last_stats: Tensor,
}

/// What a tape holds of a block.
#[derive(Debug)]
pub(super) enum Taped {
    Whole(BlockTape),
    /// Its input alone, from which the rest is formed again.
    Input(Tensor),
}

/// Kept per block: 6 D + F floats per position or so; layer-norm outputs and activations are formed again.
#[derive(Debug)]
pub(super) struct BlockTape {
    pub(super) x: Tensor,
    pub(super) ln_1_stats: Tensor,
    /// Queries, keys and values side by side, [B T, 3 D].
    pub(super) qkv: Tensor,
    pub(super) attended: Attended,
    pub(super) mid: Tensor,
    pub(super) ln_2_stats: Tensor,
    pub(super) fc: Tensor,
}

impl Gpt2 {
    /// A model that works in f32 and keeps its activations.
    pub fn new(config: Gpt2Config, params: ParamSet) -> Self {
        Self { config, params, precision: Precision::F32, activations: Activations::Keep }
    }

    /// Hidden vectors after the final norm, [B T, D], for `tokens` [B, T] in row-major order. Keeps nothing.
    pub fn forward(&self, tokens: &[u32], context: usize) -> Result<Tensor> {
        let shape = self.shape(tokens, context);
        let mut x = self.embed(tokens, context)?;
        for l in 0..self.config.n_layer {
            x = self.block_output(l, &self.block_tape(l, x, shape)?)?;
        }
        Ok(self.final_norm(&x)?.out)
    }

    /// As [`Gpt2::forward`], with the tape that [`Gpt2::backward`] consumes.
    pub fn forward_with_tape(&self, tokens: &[u32], context: usize) -> Result<(Tensor, Tape)> {
        self.finish(self.begin(tokens, context, 0)?)
    }

    /// The head's logits of rows of hidden vectors, as [`Logits::new`].
    pub fn logits(&self, hidden: Tensor) -> Logits {
        Logits::new(hidden, self.params.wte().clone()).with_precision(self.precision)
    }

    /// Adds the trunk's gradients to `grads`. `d_hidden` is the upstream gradient of the hidden vectors: [k, D] for the k
    /// ascending `rows` that carry gradient, or [B T, D] when `rows` is None. The two give the same numbers when the
    /// missing rows are zero.
    pub fn backward(&self, tape: Tape, rows: Option<&[u32]>, d_hidden: &Tensor, grads: &ParamSet) -> Result<()> {
        self.backward_through(tape, rows, d_hidden, grads, Flow::Exact).map(|_| ())
    }

    /// As [`Gpt2::backward`], with a choice of the rows that carry gradient further down. Returns how many did.
    pub fn backward_through(
        &self,
        tape: Tape,
        rows: Option<&[u32]>,
        d_hidden: &Tensor,
        grads: &ParamSet,
        flow: Flow<'_>,
    ) -> Result<Reached> {
        let mut reached = Reached::default();
        if rows.is_some_and(<[u32]>::is_empty) {
            return Ok(reached); // a micro-batch may select nothing
        }
        let Tape { tokens, shape, mut blocks, last, last_stats } = tape;
        let d = d_hidden.zeros_like()?;
        let (ln_w, dw, db) = (self.params.ln_f_w(), grads.ln_f_w(), grads.ln_f_b());
        layer_norm::backward(&d, d_hidden, &pick(&last, rows)?, &pick(&last_stats, rows)?, ln_w, dw, db)?;
        drop((last, last_stats));
        let mut d = d;
        let mut rows = rows.map(Cow::Borrowed);
        for l in (0..self.config.n_layer).rev() {
            let Some(taped) = blocks.pop() else { break };
            if let Flow::Sampled(sampler) = flow
                && let Some(drawn) = sampler.draw(l, rows.as_deref(), &d)?
            {
                if drawn.rows.is_empty() {
                    return Ok(reached);
                }
                (rows, d) = (Some(Cow::Owned(drawn.rows)), drawn.d);
            }
            reached.outputs += d.dim(0)? as u64;
            let tape = match taped {
                Taped::Whole(tape) => tape,
                Taped::Input(x) => self.block_tape(l, x, shape)?,
            };
            let (d_in, keys) = self.block_backward(l, tape, rows.as_deref(), d, grads, shape, flow)?;
            d = d_in;
            reached.keys += keys;
            if !matches!(flow, Flow::Sparse) {
                rows = None;
            }
        }
        if let Some(rows) = rows {
            let every = Tensor::zeros((tokens.len(), d.dim(1)?), d.dtype(), d.device())?;
            scatter_add(&every, &d, &rows)?;
            d = every;
        }
        embed::backward(grads.wte(), grads.wpe(), &d, &tokens, shape.context)?;
        Ok(reached)
    }

    pub(super) fn shape(&self, tokens: &[u32], context: usize) -> Shape {
        Shape { batch: tokens.len() / context, context, heads: self.config.n_head }
    }

    pub(super) fn embed(&self, tokens: &[u32], context: usize) -> Result<Tensor> {
        embed::forward(self.params.wte(), self.params.wpe(), tokens, context, 0)
    }

    pub(super) fn final_norm(&self, x: &Tensor) -> Result<layer_norm::Normed> {
        layer_norm::forward(
            x,
            self.params.ln_f_w(),
            self.params.ln_f_b(),
            self.config.layer_norm_epsilon,
            self.precision,
        )
    }

    /// Block `l` up to its MLP's activation: x + attention(ln_1(x)), then the first half of mlp(ln_2(that)).
    pub(super) fn block_tape(&self, l: usize, x: Tensor, shape: Shape) -> Result<BlockTape> {
        let p = self.params.block(l);
        let eps = self.config.layer_norm_epsilon;
        let ln_1 = layer_norm::forward(&x, p.ln_1_w, p.ln_1_b, eps, self.precision)?;
        let qkv = linear(&ln_1.out, p.attn_w, p.attn_b, self.precision)?;
        let attended = attention::forward(&qkv, shape)?;
        let mid = linear_onto(&x, &attended.out, p.attn_proj_w, p.attn_proj_b, self.precision)?;
        let ln_2 = layer_norm::forward(&mid, p.ln_2_w, p.ln_2_b, eps, self.precision)?;
        let fc = linear(&ln_2.out, p.fc_w, p.fc_b, self.precision)?;
        Ok(BlockTape { x, ln_1_stats: ln_1.stats, qkv, attended, mid, ln_2_stats: ln_2.stats, fc })
    }

    /// The rest of block `l`: its output, the next one's input.
    pub(super) fn block_output(&self, l: usize, tape: &BlockTape) -> Result<Tensor> {
        let p = self.params.block(l);
        linear_onto(&tape.mid, &gelu::forward(&tape.fc)?, p.proj_w, p.proj_b, self.precision)
    }

    /// Takes the gradient of the block's output (of `rows`, or of all) and returns that of its input: of all rows, or of
    /// `rows` where only their keys carry gradient; and how many rows' keys and values did.
    #[allow(clippy::too_many_arguments)] // one block's share of a backward; a struct for one caller would say no more
    fn block_backward(
        &self,
        l: usize,
        tape: BlockTape,
        rows: Option<&[u32]>,
        d: Tensor,
        grads: &ParamSet,
        shape: Shape,
        flow: Flow<'_>,
    ) -> Result<(Tensor, u64)> {
        let keys = if matches!(flow, Flow::Sparse) { Keys::OfRows } else { Keys::All };
        let (p, g, precision) = (self.params.block(l), grads.block(l), self.precision);
        mlp_backward(&tape, rows, &d, p, g, precision)?;
        let d_att = matmul(&d, &p.attn_proj_w.t()?, precision)?;
        accumulate(g.attn_proj_w, &pick(&tape.attended.out, rows)?.t()?, &d, precision)?;
        accumulate_column_sums(g.attn_proj_b, &d)?;
        let attention::Gradients { dq, dkv } =
            attention::backward(&tape.qkv, &tape.attended, &d_att, rows, keys, shape)?;

        // Queries have gradient on the given rows only, keys and values on all, or on these rows as well.
        let below = if keys == Keys::All { None } else { rows };
        let (x, ln_1_stats) = (pick(&tape.x, below)?, pick(&tape.ln_1_stats, below)?);
        drop(tape);
        let apart = rows.filter(|_| keys == Keys::All);
        let width = self.config.n_embd;
        let ln_1 = layer_norm::replay(&x, &ln_1_stats, p.ln_1_w, p.ln_1_b, self.precision)?;
        accumulate(&g.attn_w.narrow(1, 0, width)?, &pick(&ln_1, apart)?.t()?, &dq, precision)?;
        accumulate_column_sums(&g.attn_b.narrow(0, 0, width)?, &dq)?;
        let (dkv, of_keys) = match flow {
            Flow::Sampled(sampler) => sampler.draw_keys(l, self.config.n_layer, dkv)?,
            Flow::Exact | Flow::Sparse => (dkv, None),
        };
        let key_rows = dkv.dim(0)? as u64;
        accumulate(&g.attn_w.narrow(1, width, 2 * width)?, &pick(&ln_1, of_keys.as_deref())?.t()?, &dkv, precision)?;
        accumulate_column_sums(&g.attn_b.narrow(0, width, 2 * width)?, &dkv)?;
        let through_keys = matmul(&dkv, &p.attn_w.narrow(1, width, 2 * width)?.t()?, precision)?;
        let d_ln_1 = match of_keys {
            None => through_keys,
            Some(rows) => {
                let every = Tensor::zeros(ln_1.shape(), through_keys.dtype(), through_keys.device())?;
                scatter_add(&every, &through_keys, &rows)?;
                every
            }
        };
        let w_q = p.attn_w.narrow(1, 0, width)?.t()?;
        let d = match apart {
            None => {
                accumulate(&d_ln_1, &dq, &w_q, precision)?;
                d
            }
            Some(rows) => {
                scatter_add(&d_ln_1, &matmul(&dq, &w_q, precision)?, rows)?;
                let every = x.zeros_like()?;
                scatter_add(&every, &d, rows)?;
                every
            }
        };
        layer_norm::backward(&d, &d_ln_1, &x, &ln_1_stats, p.ln_1_w, g.ln_1_w, g.ln_1_b)?;
        Ok((d, key_rows))
    }
}

/// Adds the MLP half's gradient with respect to its input to `d`, in place.
fn mlp_backward(
    tape: &BlockTape,
    rows: Option<&[u32]>,
    d: &Tensor,
    p: Block<'_>,
    g: Block<'_>,
    precision: Precision,
) -> Result<()> {
    let fc = pick(&tape.fc, rows)?;
    let d_fc = matmul(d, &p.proj_w.t()?, precision)?;
    accumulate(g.proj_w, &gelu::forward(&fc)?.t()?, d, precision)?;
    accumulate_column_sums(g.proj_b, d)?;
    gelu::backward(&d_fc, &fc)?;
    let (mid, stats) = (pick(&tape.mid, rows)?, pick(&tape.ln_2_stats, rows)?);
    let ln_2 = layer_norm::replay(&mid, &stats, p.ln_2_w, p.ln_2_b, precision)?;
    accumulate(g.fc_w, &ln_2.t()?, &d_fc, precision)?;
    accumulate_column_sums(g.fc_b, &d_fc)?;
    let d_ln_2 = matmul(&d_fc, &p.fc_w.t()?, precision)?;
    layer_norm::backward(d, &d_ln_2, &mid, &stats, p.ln_2_w, g.ln_2_w, g.ln_2_b)
}

/// The given rows, or the tensor itself when every row counts.
fn pick(x: &Tensor, rows: Option<&[u32]>) -> Result<Tensor> {
    match rows {
        None => Ok(x.clone()),
        Some(rows) => gather(x, rows),
    }
}

#[cfg(test)]
mod bf16_tests;
#[cfg(test)]
mod tests;
