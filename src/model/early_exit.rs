//! A forward pass that stops after some blocks and goes on for some sequences only: phase one of hierarchical selection.
//! Activations formed so far are reused, so what was spent on the sequences that go on is not spent again.

use super::gpt2::{BlockTape, Gpt2, Tape};
use crate::error::{Error, Result};
use crate::ops::attention::{Attended, Shape};
use crate::ops::embed::gather;
use candle_core::Tensor;

/// A forward pass that has come through some blocks.
#[derive(Debug)]
pub struct Partial {
    tokens: Vec<u32>,
    shape: Shape,
    blocks: Vec<BlockTape>,
    /// Output of the last of them, [B T, D].
    x: Tensor,
}

impl Gpt2 {
    /// Embeds `tokens` [B, T] and runs the first `layers` blocks, with tape.
    pub fn begin(&self, tokens: &[u32], context: usize, layers: usize) -> Result<Partial> {
        if layers > self.config.n_layer {
            return Err(Error::internal(format!("cannot run {layers} of {} blocks", self.config.n_layer)));
        }
        let x = self.embed(tokens, context)?;
        let blocks = Vec::with_capacity(self.config.n_layer);
        let partial = Partial { tokens: tokens.to_vec(), shape: self.shape(tokens, context), blocks, x };
        self.advance(partial, layers)
    }

    /// Runs the remaining blocks and the final norm: hidden vectors [B T, D], and the tape that [`Gpt2::backward`]
    /// consumes, of the sequences that are left.
    pub fn finish(&self, partial: Partial) -> Result<(Tensor, Tape)> {
        let Partial { tokens, shape, blocks, x } = self.advance(partial, self.config.n_layer)?;
        let normed = self.final_norm(&x)?;
        Ok((normed.out, Tape { tokens, shape, blocks, last: x, last_stats: normed.stats }))
    }

    /// What the head would read of these positions if the trunk ended here: ln_f of the residual stream, [P, D].
    pub fn probe(&self, partial: &Partial, positions: &[u32]) -> Result<Tensor> {
        Ok(self.final_norm(&gather(&partial.x, positions)?)?.out)
    }

    fn advance(&self, mut partial: Partial, layers: usize) -> Result<Partial> {
        for l in partial.blocks.len()..layers {
            let (tape, next) = self.block_forward(l, partial.x, partial.shape)?;
            partial.blocks.push(tape);
            partial.x = next;
        }
        Ok(partial)
    }
}

impl Partial {
    /// The same pass of the given sequences only, ascending and at least one; all of them cost nothing.
    pub fn keep(self, sequences: &[u32]) -> Result<Self> {
        let Shape { batch, context, heads } = self.shape;
        if sequences.len() == batch {
            return Ok(self);
        }
        let rows: Vec<u32> = sequences.iter().flat_map(|&s| s * context as u32..(s + 1) * context as u32).collect();
        let of_rows = |x: &Tensor| gather(x, &rows);
        let of_heads = |lse: &Tensor| -> Result<Tensor> {
            Ok(gather(&lse.reshape((batch, heads * context))?, sequences)?.flatten_all()?)
        };
        let blocks = self.blocks.iter().map(|tape| {
            Ok(BlockTape {
                x: of_rows(&tape.x)?,
                ln_1_stats: of_rows(&tape.ln_1_stats)?,
                qkv: of_rows(&tape.qkv)?,
                attended: Attended { out: of_rows(&tape.attended.out)?, lse: of_heads(&tape.attended.lse)? },
                mid: of_rows(&tape.mid)?,
                ln_2_stats: of_rows(&tape.ln_2_stats)?,
                fc: of_rows(&tape.fc)?,
            })
        });
        Ok(Self {
            tokens: rows.iter().map(|&r| self.tokens[r as usize]).collect(),
            shape: Shape { batch: sequences.len(), context, heads },
            blocks: blocks.collect::<Result<_>>()?,
            x: of_rows(&self.x)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Gpt2Config, ParamSet};
    use crate::ops::testing::{assert_close, random};
    use candle_core::{DType, Device};

    const CONTEXT: usize = 7;

    fn model() -> Gpt2 {
        let config = Gpt2Config { initializer_range: 0.2, ..Gpt2Config::new(31, 9, 12, 3, 2) };
        Gpt2::scratch(config, 5, &Device::Cpu).unwrap()
    }

    fn tokens(sequences: usize) -> Vec<u32> {
        (0..(sequences * CONTEXT) as u32).map(|i| (i * i + 3 * i) % 31).collect()
    }

    fn gradients(model: &Gpt2, hidden: &Tensor, tape: Tape) -> ParamSet {
        let grads = ParamSet::zeros(model.params.layout(), DType::F32, &Device::Cpu).unwrap();
        let upstream = random(hidden.dims(), 9);
        model.backward(tape, None, &upstream, &grads).unwrap();
        grads
    }

    #[test]
    fn sequences_that_go_on_are_as_if_the_others_had_never_been() {
        let (model, all) = (model(), tokens(4));
        for kept in [&[0u32, 1, 2, 3][..], &[1, 2, 3], &[0, 1, 2], &[2], &[0, 3]] {
            let alone: Vec<u32> =
                kept.iter().flat_map(|&s| all[s as usize * CONTEXT..(s as usize + 1) * CONTEXT].to_vec()).collect();
            let (expected, tape) = model.forward_with_tape(&alone, CONTEXT).unwrap();
            let expected_gradients = gradients(&model, &expected, tape);
            for exit in 0..=3 {
                let partial = model.begin(&all, CONTEXT, exit).unwrap().keep(kept).unwrap();
                let (hidden, tape) = model.finish(partial).unwrap();
                // A product's sums may be ordered by its number of rows: rounding, no more.
                assert_close(&hidden, &expected, 1e-6);
                let gradients = gradients(&model, &hidden, tape);
                for (found, wanted) in gradients.tensors().iter().zip(expected_gradients.tensors()) {
                    assert_close(found, wanted, 1e-5);
                }
            }
        }
    }

    #[test]
    fn a_probe_after_the_last_block_is_what_the_head_reads() {
        let (model, all) = (model(), tokens(3));
        let (hidden, _) = model.forward_with_tape(&all, CONTEXT).unwrap();
        let positions = [6, 13, 20];
        let probe = model.probe(&model.begin(&all, CONTEXT, 3).unwrap(), &positions).unwrap();
        assert_close(&probe, &gather(&hidden, &positions).unwrap(), 1e-6);
        let early = model.probe(&model.begin(&all, CONTEXT, 1).unwrap(), &positions).unwrap();
        assert_ne!(early.to_vec2::<f32>().unwrap(), probe.to_vec2::<f32>().unwrap());
        assert!(model.begin(&all, CONTEXT, 4).is_err());
    }
}
