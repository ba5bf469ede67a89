//! The trunk of a decoder (GPT-2, Radford et al. 2019, or of other [`Parts`](super::Parts)): forward,
//! and the backward by hand beside it.
//!
//! The trunk ends with the final norm; the head is [`crate::loss::head`]. Activations live on
//! a [`Tape`] that the backward consumes block by block. The backward is row-aware: given the rows
//! (positions) of the micro-batch whose final hidden vector carries gradient, the final norm and
//! the last block's MLP, output projection and queries work on those rows only, which is exact;
//! below the last block's keys and values every row carries gradient again. [`Flow`] says what
//! happens there instead: nothing (exact), only the given rows go on (sparse), or drawn ones do
//! (sampled).

use super::heads::Raw;
use super::parts::Residual;
use super::residual::{Half, NormTape};
use super::{Gpt2Config, ParamSet, RowSampler};
use crate::config::Activations;
use crate::error::{Error, Result};
use crate::loss::head::Logits;
use crate::ops::attention::{self, Attended, Keys, Shape};
use crate::ops::embed::{self, gather, scatter_add};
use crate::ops::matmul::{Precision, accumulate, accumulate_column_sums, linear, matmul};
use crate::ops::rotary::{Rows, Table};
use crate::ops::{activation, layer_norm};
use candle_core::Tensor;
use std::borrow::Cow;
use std::sync::Arc;

/// A model: its shape and its parameters.
#[derive(Debug, Clone)]
pub struct Gpt2 {
    /// Shape and constants.
    pub config: Gpt2Config,
    /// Weights in the layout of the shape.
    pub params: ParamSet,
    /// What the products with weights do with their factors, forward and backward. Attention's own
    /// stay f32.
    pub precision: Precision,
    /// What a tape keeps of each block.
    pub activations: Activations,
}

/// Which rows carry gradient below the last block's keys and values.
#[derive(Debug, Clone, Copy)]
pub enum Flow<'a> {
    /// Every row, as the chain rule has it.
    Exact,
    /// Only the rows that carry gradient at the trunk's end, in every block: keys and values of the
    /// others count as constants. Their queries are not cut: dQ of a row meets all keys and values
    /// it sees. Biased.
    Sparse,
    /// Rows drawn at each block's output and among its keys and values, so that every gradient
    /// keeps its expectation.
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
    pub(super) common: Common,
    pub(super) blocks: Vec<Taped>,
    /// Input of the final norm and its statistics.
    pub(super) last: Tensor,
    pub(super) last_stats: Tensor,
}

/// What the blocks of one forward have in common.
#[derive(Debug, Clone)]
pub(super) struct Common {
    pub(super) shape: Shape,
    /// Of the positions, where these are rotary.
    pub(super) rotary: Option<Arc<Table>>,
}

/// What a tape holds of a block.
#[derive(Debug)]
pub(super) enum Taped {
    Whole(BlockTape),
    /// Its input alone, from which the rest is formed again.
    Input(Tensor),
}

/// Kept per block: 6 D + F floats per position or so with GPT-2's parts; outputs of norms and
/// activations are formed again.
#[derive(Debug)]
pub(super) struct BlockTape {
    /// Input, [B T, D].
    pub(super) x: Tensor,
    /// Of the attention's norm.
    pub(super) norm_1: NormTape,
    /// Queries and keys before their norm, where heads have one.
    pub(super) raw: Option<Raw>,
    /// Queries, keys and values side by side as attention reads them, [B T, Q + 2 K].
    pub(super) qkv: Tensor,
    /// Output [B T, Q] and log-sum-exp [B, H, T].
    pub(super) attended: Attended,
    /// The residual stream between attention and MLP, [B T, D].
    pub(super) mid: Tensor,
    /// Of the MLP's norm.
    pub(super) norm_2: NormTape,
    /// The MLP before its activation, [B T, F]; gate and up, [B T, 2 F].
    pub(super) fc: Tensor,
}

impl Gpt2 {
    /// A model that works in f32 and keeps its activations.
    pub fn new(config: Gpt2Config, params: ParamSet) -> Self {
        Self { config, params, precision: Precision::F32, activations: Activations::Keep }
    }

    /// Hidden vectors after the final norm, [B T, D], for `tokens` [B, T] in row-major order. Keeps
    /// nothing.
    pub fn forward(&self, tokens: &[u32], context: usize) -> Result<Tensor> {
        let common = self.common(tokens.len() / context, context);
        let mut x = self.embed(tokens, context)?;
        for l in 0..self.config.n_layer {
            // A forward of a large model takes seconds, and nothing is lost.
            crate::interrupt::check()?;
            x = self.block_output(l, &self.block_tape(l, x, &common)?)?;
        }
        Ok(self.final_norm(&x)?.out)
    }

    /// As [`Gpt2::forward`], with the tape that [`Gpt2::backward`] consumes.
    pub fn forward_with_tape(&self, tokens: &[u32], context: usize) -> Result<(Tensor, Tape)> {
        self.finish(self.begin(tokens, context, 0)?)
    }

    /// The head's logits of rows of hidden vectors, as [`Logits::new`].
    pub fn logits(&self, hidden: Tensor) -> Logits {
        Logits::new(hidden, self.params.head().clone()).with_precision(self.precision)
    }

    /// Adds the trunk's gradients to `grads`. `d_hidden` is the upstream gradient of the hidden
    /// vectors: [k, D] for the k ascending `rows` that carry gradient, or [B T, D] when `rows` is
    /// None. The two give the same numbers when the missing rows are zero.
    pub fn backward(
        &self,
        tape: Tape,
        rows: Option<&[u32]>,
        d_hidden: &Tensor,
        grads: &ParamSet,
    ) -> Result<()> {
        self.backward_through(tape, rows, d_hidden, grads, Flow::Exact, &mut |_| Ok(())).map(|_| ())
    }

    /// As [`Gpt2::backward`], with a choice of the rows that carry gradient further down. Returns
    /// how many did. Where nothing more is added to the gradients of parameter `n` of the layout and of
    /// those behind it, `is_final` is told `n`; what is left when this returns, it is not told of.
    pub fn backward_through(
        &self,
        tape: Tape,
        rows: Option<&[u32]>,
        d_hidden: &Tensor,
        grads: &ParamSet,
        flow: Flow<'_>,
        is_final: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Reached> {
        let mut reached = Reached::default();
        if rows.is_some_and(<[u32]>::is_empty) {
            return Ok(reached); // a micro-batch may select nothing
        }
        let Tape { tokens, common, mut blocks, last, last_stats } = tape;
        let mut d = d_hidden.zeros_like()?; // [k, D], or [B T, D] where no rows are given
        let (x, stats) = (pick(&last, rows)?, pick(&last_stats, rows)?);
        let (w, dw, db) = (self.params.ln_f_w(), grads.ln_f_w(), grads.ln_f_b());
        layer_norm::backward(layer_norm::Backward {
            dy: d_hidden,
            x: &x,
            stats: &stats,
            w,
            dx: &d,
            dw,
            db,
        })?;
        drop((last, last_stats, x, stats));
        let layout = grads.layout();
        is_final(layout.block(self.config.n_layer).start)?;
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
                Taped::Input(x) => self.block_tape(l, x, &common)?,
            };
            let call = BlockCall { rows: rows.as_deref(), grads, common: &common, flow };
            let (d_in, keys) = self.block_backward(l, tape, d, call)?;
            d = d_in;
            is_final(layout.block(l).start)?;
            reached.keys += keys;
            if !matches!(flow, Flow::Sparse) {
                rows = None;
            }
        }
        if let Some(rows) = rows {
            let every = Tensor::zeros((tokens.len(), d.dim(1)?), d.dtype(), d.device())?;
            scatter_add(&every, &d, &rows)?;
            d = every; // [B T, D]
        }
        embed::backward(grads.wte(), grads.wpe(), &d, &tokens, common.shape.context)?;
        Ok(reached)
    }

    /// What the blocks have in common for `batch` sequences of `context` positions.
    pub(super) fn common(&self, batch: usize, context: usize) -> Common {
        let (heads, kv_heads) = (self.config.n_head, self.config.kv_heads());
        let shape = Shape { batch, context, heads, kv_heads, scale: None, window: None };
        Common { shape, rotary: self.rotary(0, context).map(Arc::new) }
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

    /// Block `l` up to its MLP's activation, or to the norm after the MLP.
    pub(super) fn block_tape(&self, l: usize, x: Tensor, common: &Common) -> Result<BlockTape> {
        let p = self.params.block(l);
        let (input, before) = self.enter(Half::attention(l), &x)?; // [B T, D]
        let qkv = linear(&input, p.attn_w, p.attn_b, self.precision)?; // [B T, Q + 2 K]
        drop(input);
        let rows = Rows::Sequences(common.shape.context);
        let raw = self.prepare_heads(l, &qkv, common.rotary.as_deref(), rows)?;
        let attended = attention::forward(&qkv, self.of_block(l, common.shape))?; // [B T, Q]
        let (mid, after) = self.leave(Half::attention(l), &x, &attended.out)?; // [B T, D]
        let norm_1 = one_of(before, after)?;
        let (input, before) = self.enter(Half::mlp(l), self.mlp_reads(&x, &mid))?; // [B T, D]
        let fc = linear(&input, p.fc_w, p.fc_b, self.precision)?; // [B T, F] or [B T, 2 F]
        drop(input);
        let norm_2 = match before {
            Some(norm) => norm,
            None => {
                let active = activation::forward(self.config.parts.mlp, &fc)?; // [B T, F]
                self.norm_after(Half::mlp(l), &active)?
            }
        };
        Ok(BlockTape { x, norm_1, raw, qkv, attended, mid, norm_2, fc })
    }

    /// The rest of block `l`: its output, the next one's input.
    pub(super) fn block_output(&self, l: usize, tape: &BlockTape) -> Result<Tensor> {
        if tape.norm_2.input.is_some() {
            return self.leave_again(Half::mlp(l), &tape.mid, &tape.norm_2);
        }
        let active = activation::forward(self.config.parts.mlp, &tape.fc)?; // [B T, F]
        Ok(self.leave(Half::mlp(l), &tape.mid, &active)?.0)
    }

    /// Takes the gradient `d` of block `l`'s output, [k, D] of the given rows, and returns that of
    /// its input: [B T, D], or [k, D] where only the rows' own keys carry gradient; and how many
    /// rows' keys and values did.
    ///
    /// Rows that carry gradient, from the output down, where k of the B T positions are given:
    ///
    /// ```text
    ///                             Exact      Sparse   Sampled
    /// d of the output             k          k        k, drawn before the call
    /// MLP, ln_2, c_proj           k          k        k
    /// attention: queries (dq)     k          k        k
    /// attention: keys, values     B T        k        B T, then m of them drawn
    /// c_attn, part q              k          k        k
    /// c_attn, parts k and v       B T        k        m
    /// ln_1, d of the input        B T        k        B T
    /// ```
    ///
    /// A query's output depends on the keys and values of every position it sees: they alone widen
    /// k rows to all.
    ///
    /// ```text
    /// d [k, D] -+-> MLP, c_proj -> attention -+-> dq [k, Q] ------> W_q, scatter_add -+
    ///           |                             +-> dkv [B T, 2 K] -> W_kv -------------+-> ln_1 -+
    ///           +-> residual: scatter_add into zeros [B T, D] ----------------------------------+-> d [B T, D]
    /// ```
    ///
    /// This is with norms before attention and MLP; elsewhere ([`Residual`](super::parts::Residual))
    /// the same rows carry gradient.
    fn block_backward(
        &self,
        l: usize,
        tape: BlockTape,
        d: Tensor,
        call: BlockCall<'_>,
    ) -> Result<(Tensor, u64)> {
        let BlockCall { rows, grads, common, flow } = call;
        let keys = if matches!(flow, Flow::Sparse) { Keys::OfRows } else { Keys::All };
        let (p, g, precision) = (self.params.block(l), grads.block(l), self.precision);
        let (q, kv) = (self.config.query_width(), 2 * self.config.kv_width());
        // d [k, D] is of the block's output: of `mid` as well, as the residual stream has it.
        let half = Half::attention(l);
        let d_mid = self.mlp_backward(l, &tape, rows, &d, grads)?; // [k, D]
        let d_out = self.leave_backward(half, &d_mid, &tape.norm_1, rows, grads)?; // [k, D]
        let d_att = matmul(&d_out, &p.attn_proj_w.t()?, precision)?; // [k, Q]
        accumulate(g.attn_proj_w, &pick(&tape.attended.out, rows)?.t()?, &d_out, precision)?; // [Q, k] [k, D]
        accumulate_column_sums(g.attn_proj_b, &d_out)?;
        drop((d_out, d_mid));
        let (qkv, attended, dout) = (&tape.qkv, &tape.attended, &d_att);
        let shape = self.of_block(l, common.shape);
        let of_attention =
            attention::backward(attention::Backward { qkv, attended, dout, rows, keys, shape })?;

        // The n rows of the input that carry gradient: all, or (sparse) the k given ones. Where n
        // is more than k, `apart` says where among them the k rows lie.
        let below = if keys == Keys::All { None } else { rows };
        let apart = rows.filter(|_| keys == Keys::All);
        let (dq, dkv) =
            self.heads_backward(l, of_attention, &tape, grads, [rows, below], common)?;
        let (x, stats) = (pick(&tape.x, below)?, pick(&tape.norm_1.stats, below)?); // [n, D], [n, 2]
        drop(tape);
        let input = self.enter_again(half, &x, &stats)?; // [n, D]
        // Queries: k rows.
        accumulate(&g.attn_w.narrow(1, 0, q)?, &pick(&input, apart)?.t()?, &dq, precision)?; // [D, k] [k, Q]
        accumulate_column_sums(part(g.attn_b, 0, q)?.as_ref(), &dq)?;
        // Keys and values: n rows, or the m drawn ones.
        let (dkv, of_keys) = match flow {
            Flow::Sampled(sampler) => sampler.draw_keys(l, self.config.n_layer, dkv)?, // [m, 2 K]
            Flow::Exact | Flow::Sparse => (dkv, None),
        };
        let key_rows = dkv.dim(0)? as u64;
        accumulate(
            &g.attn_w.narrow(1, q, kv)?,
            &pick(&input, of_keys.as_deref())?.t()?,
            &dkv,
            precision,
        )?;
        accumulate_column_sums(part(g.attn_b, q, kv)?.as_ref(), &dkv)?;
        let through_keys = matmul(&dkv, &p.attn_w.narrow(1, q, kv)?.t()?, precision)?; // [m, D]
        let d_input = spread(through_keys, of_keys.as_deref(), &input)?; // [n, D]
        let w_q = p.attn_w.narrow(1, 0, q)?.t()?;
        match apart {
            None => accumulate(&d_input, &dq, &w_q, precision)?, // k = n
            Some(rows) => scatter_add(&d_input, &matmul(&dq, &w_q, precision)?, rows)?,
        }
        let d = spread(d, apart, &x)?; // the residual's share [n, D]
        self.enter_backward(half, &d_input, [&x, &stats], &d, grads)?;
        Ok((d, key_rows))
    }

    /// Adds the gradient of what the MLP's half reads of the stream to `d` [k, D], in place; that of
    /// the block's middle.
    fn mlp_backward(
        &self,
        l: usize,
        tape: &BlockTape,
        rows: Option<&[u32]>,
        d: &Tensor,
        grads: &ParamSet,
    ) -> Result<Tensor> {
        let (mlp, precision, half) = (self.config.parts.mlp, self.precision, Half::mlp(l));
        let (p, g) = (self.params.block(l), grads.block(l));
        // Where the MLP reads the block's input, nothing of it comes through the middle.
        let apart = self.config.parts.residual == Residual::Parallel;
        let d_mid = if apart { d.copy()? } else { d.clone() };
        let d_out = self.leave_backward(half, d, &tape.norm_2, rows, grads)?; // [k, D]
        let fc = pick(&tape.fc, rows)?; // [k, F] or [k, 2 F]
        let d_active = matmul(&d_out, &p.proj_w.t()?, precision)?; // [k, D] [D, F]
        accumulate(g.proj_w, &activation::forward(mlp, &fc)?.t()?, &d_out, precision)?; // [F, k] [k, D]
        accumulate_column_sums(g.proj_b, &d_out)?;
        drop(d_out);
        let d_fc = activation::backward(mlp, d_active, &fc)?; // as fc
        let x = pick(self.mlp_reads(&tape.x, &tape.mid), rows)?; // [k, D]
        let stats = pick(&tape.norm_2.stats, rows)?; // [k, 2]
        let input = self.enter_again(half, &x, &stats)?; // [k, D]
        accumulate(g.fc_w, &input.t()?, &d_fc, precision)?; // [D, k] [k, F]
        accumulate_column_sums(g.fc_b, &d_fc)?;
        let d_input = matmul(&d_fc, &p.fc_w.t()?, precision)?; // [k, F] [F, D]
        self.enter_backward(half, &d_input, [&x, &stats], d, grads)?;
        Ok(d_mid)
    }
}

/// What a block's backward is told beside its tape and the gradient from above.
#[derive(Clone, Copy)]
struct BlockCall<'a> {
    /// The rows that carry gradient at the block's output, ascending; None: all.
    rows: Option<&'a [u32]>,
    /// Where the gradients of the parameters are added up.
    grads: &'a ParamSet,
    common: &'a Common,
    flow: Flow<'a>,
}

/// Columns of a bias, if there is one.
fn part(bias: Option<&Tensor>, from: usize, width: usize) -> Result<Option<Tensor>> {
    Ok(bias.map(|bias| bias.narrow(0, from, width)).transpose()?)
}

/// The norm stands in one of two places.
fn one_of(before: Option<NormTape>, after: Option<NormTape>) -> Result<NormTape> {
    before.or(after).ok_or_else(|| Error::internal("a block's half has no norm"))
}

/// The given rows, or the tensor itself when every row counts.
pub(super) fn pick(x: &Tensor, rows: Option<&[u32]>) -> Result<Tensor> {
    match rows {
        None => Ok(x.clone()),
        Some(rows) => gather(x, rows),
    }
}

/// `d` [k, D] at the given rows of zeros of the shape of `like` [n, D]; `d` itself when every row
/// counts.
fn spread(d: Tensor, rows: Option<&[u32]>, like: &Tensor) -> Result<Tensor> {
    let Some(rows) = rows else { return Ok(d) };
    let every = Tensor::zeros(like.shape(), d.dtype(), d.device())?;
    scatter_add(&every, &d, rows)?;
    Ok(every)
}

#[cfg(test)]
mod bf16_tests;
#[cfg(test)]
mod tests;
