//! How a block's attention and MLP join the residual stream x ([`Residual`]), forward and backward:
//!
//! ```text
//! PreNorm    m = x + a(norm(x))         y = m + f(norm(m))
//! PostNorm   m = x + norm(a(x))         y = m + norm(f(m))
//! Parallel   m = x + a(norm(x))         y = m + f(norm(x))
//! ```
//!
//! with a and f for attention and MLP, their last product included. x, m and y are [N, D].

use super::gpt2::pick;
use super::parts::Residual;
use super::{Gpt2, ParamSet};
use crate::error::Result;
use crate::ops::matmul::{Precision, linear, linear_onto};
use crate::ops::{buffer, layer_norm};
use candle_core::Tensor;

/// One of the two halves of block `l`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Half {
    pub(super) l: usize,
    pub(super) is_mlp: bool,
}

impl Half {
    pub(super) fn attention(l: usize) -> Self {
        Self { l, is_mlp: false }
    }

    pub(super) fn mlp(l: usize) -> Self {
        Self { l, is_mlp: true }
    }

    /// Scale and shift of its norm, or their gradients.
    fn norm(self, params: &ParamSet) -> (&Tensor, Option<&Tensor>) {
        let p = params.block(self.l);
        if self.is_mlp { (p.ln_2_w, p.ln_2_b) } else { (p.ln_1_w, p.ln_1_b) }
    }

    /// Matrix and bias of its last product.
    fn last(self, params: &ParamSet) -> (&Tensor, Option<&Tensor>) {
        let p = params.block(self.l);
        if self.is_mlp { (p.proj_w, p.proj_b) } else { (p.attn_proj_w, p.attn_proj_b) }
    }
}

/// What the backward of a half's norm needs.
#[derive(Debug)]
pub(super) struct NormTape {
    /// Its input [B T, D], where that is not the residual stream.
    pub(super) input: Option<Tensor>,
    /// [B T, 2].
    pub(super) stats: Tensor,
}

impl Gpt2 {
    /// Whether norms come after attention and MLP.
    fn norms_after(&self) -> bool {
        self.config.parts.residual == Residual::PostNorm
    }

    /// What the MLP's half reads of the stream: a block's input `x` or its middle.
    pub(super) fn mlp_reads<'a>(&self, x: &'a Tensor, mid: &'a Tensor) -> &'a Tensor {
        match self.config.parts.residual {
            Residual::PreNorm | Residual::PostNorm => mid,
            Residual::Parallel => x,
        }
    }

    /// What a half's first product reads of the stream `x` [N, D], and of the norm, if it stands
    /// here.
    pub(super) fn enter(&self, half: Half, x: &Tensor) -> Result<(Tensor, Option<NormTape>)> {
        if self.norms_after() {
            return Ok((self.as_factor(x)?, None));
        }
        let (w, b) = half.norm(&self.params);
        let eps = self.config.layer_norm_epsilon;
        let normed = layer_norm::forward(x, w, b, eps, self.precision)?;
        Ok((normed.out, Some(NormTape { input: None, stats: normed.stats })))
    }

    /// The same again from the norm's statistics [N, 2].
    pub(super) fn enter_again(&self, half: Half, x: &Tensor, stats: &Tensor) -> Result<Tensor> {
        if self.norms_after() {
            return self.as_factor(x);
        }
        let (w, b) = half.norm(&self.params);
        layer_norm::replay(x, stats, w, b, self.precision)
    }

    /// Adds the gradient with respect to `x` [N, D] to `dx`, from that of what [`Gpt2::enter`] gave
    /// for it.
    pub(super) fn enter_backward(
        &self,
        half: Half,
        dy: &Tensor,
        [x, stats]: [&Tensor; 2],
        dx: &Tensor,
        grads: &ParamSet,
    ) -> Result<()> {
        if self.norms_after() {
            return buffer::add_assign(dx, &dy.to_dtype(dx.dtype())?);
        }
        let ((w, _), (dw, db)) = (half.norm(&self.params), half.norm(grads));
        layer_norm::backward(layer_norm::Backward { dy, x, stats, w, dx, dw, db })
    }

    /// The stream after a half: `x` [N, D] and the last product of `inner` [N, ..]; and of the norm,
    /// if it stands here.
    pub(super) fn leave(
        &self,
        half: Half,
        x: &Tensor,
        inner: &Tensor,
    ) -> Result<(Tensor, Option<NormTape>)> {
        if self.norms_after() {
            let tape = self.norm_after(half, inner)?;
            return Ok((self.leave_again(half, x, &tape)?, Some(tape)));
        }
        let (w, b) = half.last(&self.params);
        Ok((linear_onto(x, inner, w, b, self.precision)?, None))
    }

    /// The last product of `inner` [N, ..] and what its norm needs, where that comes after it.
    pub(super) fn norm_after(&self, half: Half, inner: &Tensor) -> Result<NormTape> {
        let (w, b) = half.last(&self.params);
        let y = linear(inner, w, b, self.precision)?;
        let y = if self.precision == Precision::Mixed {
            y.to_dtype(self.params.wte().dtype())?
        } else {
            y
        };
        let (w, b) = half.norm(&self.params);
        let eps = self.config.layer_norm_epsilon;
        let stats = layer_norm::forward(&y, w, b, eps, Precision::F32)?.stats;
        Ok(NormTape { input: Some(y), stats })
    }

    /// The stream after a half of which [`Gpt2::norm_after`] is known.
    pub(super) fn leave_again(&self, half: Half, x: &Tensor, tape: &NormTape) -> Result<Tensor> {
        let y = tape.input.as_ref().unwrap_or(x);
        let (w, b) = half.norm(&self.params);
        Ok((x + layer_norm::replay(y, &tape.stats, w, b, Precision::F32)?)?)
    }

    /// The gradient of a half's last product, [k, D], from that of the stream after it at the given
    /// rows.
    pub(super) fn leave_backward(
        &self,
        half: Half,
        d: &Tensor,
        tape: &NormTape,
        rows: Option<&[u32]>,
        grads: &ParamSet,
    ) -> Result<Tensor> {
        let Some(y) = tape.input.as_ref().filter(|_| self.norms_after()) else {
            return Ok(d.clone());
        };
        let (x, stats, dx) = (&pick(y, rows)?, &pick(&tape.stats, rows)?, &d.zeros_like()?);
        let ((w, _), (dw, db)) = (half.norm(&self.params), half.norm(grads));
        layer_norm::backward(layer_norm::Backward { dy: d, x, stats, w, dx, dw, db })?;
        Ok(dx.clone())
    }

    /// The stream as products read it: bf16 where activations are.
    fn as_factor(&self, x: &Tensor) -> Result<Tensor> {
        let mixed = self.precision == Precision::Mixed;
        Ok(if mixed { x.to_dtype(self.precision.activations())? } else { x.clone() })
    }
}
