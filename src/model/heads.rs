//! What happens to queries and keys between their projection and attention: a norm of each head
//! (Qwen3) or of all together (OLMo 2), and the rotation by position; forward and backward.

use super::gpt2::{BlockTape, Common, pick};
use super::parts::{Positions, Scores};
use super::{Gpt2, ParamSet};
use crate::error::Result;
use crate::ops::attention::{Gradients, Shape};
use crate::ops::buffer::assign;
use crate::ops::layer_norm;
use crate::ops::rotary::{self, Heads, Rows, Table};
use candle_core::Tensor;

/// Queries and keys before their norm, and its statistics of each head; of H = G = 1 where one norm
/// runs over all of them.
#[derive(Debug)]
pub(super) struct Raw {
    /// [B T, Q].
    pub(super) q: Tensor,
    /// [B T, H x 2].
    pub(super) q_stats: Tensor,
    /// [B T, K].
    pub(super) k: Tensor,
    /// [B T, G x 2].
    pub(super) k_stats: Tensor,
}

impl Gpt2 {
    /// Cosines and sines of `count` positions from `first` on, where positions are rotary.
    pub(super) fn rotary(&self, first: usize, count: usize) -> Option<Table> {
        let Positions::Rotary(rotary) = &self.config.parts.positions else { return None };
        let (frequencies, factor) = rotary.frequencies(self.config.head_dim());
        Some(Table::new(&frequencies, factor, first, count))
    }

    /// Whether block `l` rotates queries and keys.
    fn rotates(&self, l: usize) -> bool {
        match &self.config.parts.positions {
            Positions::Learned => false,
            Positions::Rotary(rotary) => !rotary.without.contain(l),
        }
    }

    /// The shape with what block `l` has of its own: scale, where that is not the usual one, and
    /// window.
    pub(super) fn of_block(&self, l: usize, shape: Shape) -> Shape {
        let scores = self.config.parts.scores;
        let unusual = scores != Scores::default();
        let scale = unusual.then(|| scores.factor(l, self.config.head_dim()));
        Shape { scale, window: self.config.window(l), ..shape }
    }

    /// Norms and rotates queries and keys of block `l` inside `qkv` [N, Q + 2 K], in place; what the
    /// backward of the norm needs.
    pub(super) fn prepare_heads(
        &self,
        l: usize,
        qkv: &Tensor,
        table: Option<&Table>,
        rows: Rows<'_>,
    ) -> Result<Option<Raw>> {
        let (q, k) = (self.config.query_width(), self.config.kv_width());
        let p = self.params.block(l);
        let raw = match (p.q_norm_w, p.k_norm_w) {
            (Some(q_norm), Some(k_norm)) => {
                let (q, q_stats) = self.norm_heads(qkv, 0, q, q_norm)?;
                let (k, k_stats) = self.norm_heads(qkv, q.dim(1)?, k, k_norm)?;
                Some(Raw { q, q_stats, k, k_stats })
            }
            _ => None,
        };
        if let Some(table) = table.filter(|_| self.rotates(l)) {
            // Keys follow queries: heads of one width.
            let heads = self.config.n_head + self.config.kv_heads();
            let dim = self.config.head_dim();
            rotary::forward(qkv, table, Heads { column: 0, heads, dim, rows })?;
        }
        Ok(raw)
    }

    /// Norms some columns in place, as many at a time as `w` is wide: what they were, and the
    /// statistics.
    fn norm_heads(
        &self,
        qkv: &Tensor,
        from: usize,
        width: usize,
        w: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (n, eps) = (qkv.dim(0)?, self.config.layer_norm_epsilon);
        let part = qkv.narrow(1, from, width)?;
        let was = part.force_contiguous()?;
        let heads = was.reshape(((), w.dim(0)?))?;
        let normed = layer_norm::forward(&heads, w, None, eps, self.precision)?;
        assign(&part, &normed.out.reshape((n, width))?)?;
        Ok((was, normed.stats.reshape((n, ()))?))
    }

    /// From the gradients of what attention read to those of the projection's output: dq [k, Q] of
    /// the first of `rows`, dkv [n, 2 K] of the second (None: every row).
    pub(super) fn heads_backward(
        &self,
        l: usize,
        of_attention: Gradients,
        tape: &BlockTape,
        grads: &ParamSet,
        rows: [Option<&[u32]>; 2],
        common: &Common,
    ) -> Result<(Tensor, Tensor)> {
        let Gradients { mut dq, dkv } = of_attention;
        let context = common.shape.context;
        if let Some(table) = common.rotary.as_ref().filter(|_| self.rotates(l)) {
            let dim = self.config.head_dim();
            for (d, rows, heads) in
                [(&dq, rows[0], self.config.n_head), (&dkv, rows[1], self.config.kv_heads())]
            {
                let rows = match rows {
                    Some(rows) => Rows::Of(rows, context),
                    None => Rows::Sequences(context),
                };
                rotary::backward(d, table, Heads { column: 0, heads, dim, rows })?;
            }
        }
        let (p, g) = (self.params.block(l), grads.block(l));
        if let (Some(raw), Some(q_norm), Some(dq_norm), Some(k_norm), Some(dk_norm)) =
            (&tape.raw, p.q_norm_w, g.q_norm_w, p.k_norm_w, g.k_norm_w)
        {
            let (q, q_stats) = (pick(&raw.q, rows[0])?, pick(&raw.q_stats, rows[0])?);
            dq = self.norm_heads_backward(&dq, &q, &q_stats, q_norm, dq_norm)?;
            let (k, k_stats) = (pick(&raw.k, rows[1])?, pick(&raw.k_stats, rows[1])?);
            let dk = dkv.narrow(1, 0, self.config.kv_width())?;
            let before =
                self.norm_heads_backward(&dk.contiguous()?, &k, &k_stats, k_norm, dk_norm)?;
            assign(&dk, &before)?;
        }
        Ok((dq, dkv))
    }

    /// The gradient of heads before their norm; adds that of the norm's scale to `dw`.
    fn norm_heads_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        stats: &Tensor,
        w: &Tensor,
        dw: &Tensor,
    ) -> Result<Tensor> {
        let (shape, dim) = (x.dims2()?, w.dim(0)?);
        let (dy, x) = (dy.reshape(((), dim))?, x.reshape(((), dim))?);
        let (dx, stats) = (x.zeros_like()?, stats.reshape(((), 2))?);
        let args = layer_norm::Backward { dy: &dy, x: &x, stats: &stats, w, dx: &dx, dw, db: None };
        layer_norm::backward(args)?;
        Ok(dx.reshape(shape)?)
    }
}
