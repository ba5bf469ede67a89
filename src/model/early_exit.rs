//! A forward that stops between two blocks and goes on for some sequences only, reusing their
//! activations: the early exit of hierarchical batch selection (ESLM, arXiv 2505.19893). With e
//! blocks before the exit, b of B sequences kept:
//!
//! ```text
//! begin   tokens [B, T] -> embed -> blocks 0 .. e-1 -> x [B T, D]      tape: e blocks of B T rows
//! probe                                    P rows of x -> final norm -> [P, D], for the head; no tape
//! keep                                     x and tape: [B T, ..] -> [b T, ..]
//! finish                                   x -> blocks e .. L-1 -> final norm -> hidden [b T, D]
//! ```

use super::gpt2::{BlockTape, Common, Tape, Taped};
use super::heads::Raw;
use super::{Gpt2, Gpt2Config};
use crate::config::Activations;
use crate::error::{Error, Result};
use crate::ops::embed::gather;
use candle_core::Tensor;

/// A forward that has run its first blocks. [`Gpt2::finish`] makes hidden vectors and tape of it.
#[derive(Debug)]
pub struct Partial {
    tokens: Vec<u32>,
    common: Common,
    blocks: Vec<Taped>,
    /// The residual stream, [B T, D].
    x: Tensor,
}

impl Gpt2 {
    /// Embeds `tokens` [B, T] in row-major order and runs the first `exit_layer` blocks: 0 is the
    /// embedding alone.
    pub fn begin(&self, tokens: &[u32], context: usize, exit_layer: usize) -> Result<Partial> {
        let Gpt2Config { n_layer, .. } = self.config;
        if exit_layer > n_layer {
            return Err(Error::internal(format!(
                "cannot stop after {exit_layer} of {n_layer} blocks"
            )));
        }
        let (x, batch) = (self.embed(tokens, context)?, tokens.len() / context);
        let blocks = Vec::with_capacity(n_layer);
        let mut partial =
            Partial { tokens: tokens.to_vec(), common: self.common(batch, context), blocks, x };
        partial.run(self, exit_layer)?;
        Ok(partial)
    }

    /// What the head would see if the model ended here: the final norm of the given `rows`
    /// (positions of the micro-batch) of the residual stream, [P, D]. Leaves no trace on the tape.
    pub fn probe(&self, partial: &Partial, rows: &[u32]) -> Result<Tensor> {
        Ok(self.final_norm(&gather(&partial.x, rows)?)?.out)
    }

    /// The remaining blocks and the final norm: hidden vectors [B T, D] and the tape for
    /// [`Gpt2::backward`], as [`Gpt2::forward_with_tape`] would give for the sequences that are
    /// left.
    pub fn finish(&self, mut partial: Partial) -> Result<(Tensor, Tape)> {
        partial.run(self, self.config.n_layer)?;
        let Partial { tokens, common, blocks, x: last } = partial;
        let normed = self.final_norm(&last)?;
        Ok((normed.out, Tape { tokens, common, blocks, last, last_stats: normed.stats }))
    }
}

impl Partial {
    /// Sequences it holds.
    pub fn sequences(&self) -> usize {
        self.common.shape.batch
    }

    /// Goes on with the given sequences only, ascending and at least one; all of them copies
    /// nothing.
    pub fn keep(&mut self, sequences: &[u32]) -> Result<()> {
        let (all, context) = (self.common.shape.batch, self.common.shape.context);
        let in_order = sequences.is_sorted_by(|a, b| a < b)
            && sequences.last().is_some_and(|&s| (s as usize) < all);
        if !in_order {
            return Err(Error::internal(format!(
                "expected ascending sequences below {all}, found {sequences:?}"
            )));
        }
        if sequences.len() == all {
            return Ok(());
        }
        self.tokens = sequences
            .iter()
            .flat_map(|&s| &self.tokens[s as usize * context..][..context])
            .copied()
            .collect();
        for taped in &mut self.blocks {
            let tensors = match taped {
                Taped::Input(x) => vec![x],
                Taped::Whole(tape) => {
                    let BlockTape { x, norm_1, raw, qkv, attended, mid, norm_2, fc } = tape;
                    let mut tensors = vec![
                        x,
                        &mut norm_1.stats,
                        qkv,
                        &mut attended.out,
                        &mut attended.lse,
                        mid,
                        &mut norm_2.stats,
                        fc,
                    ];
                    tensors.extend(
                        [norm_1.input.as_mut(), norm_2.input.as_mut()].into_iter().flatten(),
                    );
                    if let Some(Raw { q, q_stats, k, k_stats }) = raw {
                        tensors.extend([q, q_stats, k, k_stats]);
                    }
                    tensors
                }
            };
            // One after the other, so that each is freed before the next is gathered.
            for tensor in tensors {
                *tensor = of_sequences(tensor, all, sequences)?;
            }
        }
        self.x = of_sequences(&self.x, all, sequences)?;
        self.common.shape.batch = sequences.len();
        Ok(())
    }

    /// Runs blocks until `end` of them are done.
    fn run(&mut self, model: &Gpt2, end: usize) -> Result<()> {
        for l in self.blocks.len()..end {
            let tape = model.block_tape(l, self.x.clone(), &self.common)?;
            self.x = model.block_output(l, &tape)?;
            self.blocks.push(match model.activations {
                Activations::Keep => Taped::Whole(tape),
                Activations::Recompute => Taped::Input(tape.x),
            });
        }
        Ok(())
    }
}

/// The parts that belong to the given of `all` sequences, which lie one after the other along the
/// first dimension.
fn of_sequences(x: &Tensor, all: usize, sequences: &[u32]) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    dims[0] = dims[0] / all * sequences.len();
    Ok(gather(&x.reshape((all, ()))?, sequences)?.reshape(dims)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ParamSet;
    use crate::model::testing::{of_other_parts, scratch};
    use crate::ops::testing::{assert_close, bits, random};
    use candle_core::{DType, Device};

    const CONTEXT: usize = 7;
    const LAYERS: usize = 3;

    fn model(dtype: DType) -> Gpt2 {
        scratch(
            Gpt2Config { initializer_range: 0.2, ..Gpt2Config::new(29, 11, 15, LAYERS, 3) },
            dtype,
        )
    }

    fn tokens(sequences: &[u32]) -> Vec<u32> {
        sequences
            .iter()
            .flat_map(|s| (0..CONTEXT as u32).map(move |t| (s * s + 5 * t + s * t) % 29))
            .collect()
    }

    /// Hidden vectors and the gradients of all parameters, of every row and of some.
    fn results(model: &Gpt2, forward: impl Fn() -> (Tensor, Tape)) -> Vec<Tensor> {
        let mut all = vec![forward().0];
        let n = all[0].dim(0).unwrap();
        let some: Vec<u32> = (0..n as u32).filter(|i| i % 3 != 1).collect();
        for rows in [None, Some(some.as_slice())] {
            let grads =
                ParamSet::zeros(model.params.layout(), model.params.wte().dtype(), &Device::Cpu)
                    .unwrap();
            let d = random((rows.map_or(n, <[u32]>::len), 15), 3)
                .to_dtype(model.params.wte().dtype())
                .unwrap();
            model.backward(forward().1, rows, &d, &grads).unwrap();
            all.extend(grads.tensors().iter().cloned());
        }
        all
    }

    #[test]
    fn sequences_that_go_on_are_a_forward_of_their_own() {
        // In f32 a product may take another kernel for another number of rows and round
        // differently; in f64, where there is next to no rounding, the two are the same.
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-13)] {
            // Norms of heads and norms behind attention and MLP have more on their tape.
            for kept_whole in [model(dtype)].into_iter().chain(of_other_parts(dtype)) {
                go_on(&kept_whole, tolerance);
            }
        }
    }

    fn go_on(kept_whole: &Gpt2, tolerance: f64) {
        let again = Gpt2 { activations: Activations::Recompute, ..kept_whole.clone() };
        let begun = tokens(&[0, 1, 2, 3, 4]);
        for (exit_layer, model) in (0..=LAYERS).flat_map(|l| [(l, kept_whole), (l, &again)]) {
            for kept in [&[1, 2, 3, 4][..], &[0, 1, 2, 3], &[0, 3], &[2], &[0, 1, 2, 3, 4]] {
                let alone = results(kept_whole, || {
                    kept_whole.forward_with_tape(&tokens(kept), CONTEXT).unwrap()
                });
                let went_on = results(model, || {
                    let mut partial = model.begin(&begun, CONTEXT, exit_layer).unwrap();
                    partial.keep(kept).unwrap();
                    assert_eq!(partial.sequences(), kept.len());
                    model.finish(partial).unwrap()
                });
                for (got, want) in went_on.iter().zip(&alone) {
                    assert_close(got, want, tolerance);
                }
            }
        }
    }

    #[test]
    fn stopping_without_dropping_changes_no_bit() {
        let model = model(DType::F32);
        let tokens = tokens(&[0, 1, 2]);
        let plain = bits(&results(&model, || model.forward_with_tape(&tokens, CONTEXT).unwrap()));
        for exit_layer in 0..=LAYERS {
            let stopped = results(&model, || {
                let mut partial = model.begin(&tokens, CONTEXT, exit_layer).unwrap();
                let before = partial.x.id();
                model.probe(&partial, &[0, 20]).unwrap();
                partial.keep(&[0, 1, 2]).unwrap();
                assert_eq!(partial.x.id(), before, "nothing is copied");
                model.finish(partial).unwrap()
            });
            assert!(bits(&stopped) == plain, "exit after {exit_layer}");
        }
        assert_eq!(bits(&[model.forward(&tokens, CONTEXT).unwrap()]), plain[..21 * 15]);
    }

    #[test]
    fn a_probe_is_the_hidden_vector_of_a_shallower_model() {
        let model = model(DType::F32);
        let tokens = tokens(&[4, 1]);
        let rows = [0, 6, 8, 13];
        for exit_layer in 1..=LAYERS {
            let shallow = Gpt2::from_layers(&model, &(0..exit_layer).collect::<Vec<_>>()).unwrap();
            let want = gather(&shallow.forward(&tokens, CONTEXT).unwrap(), &rows).unwrap();
            let partial = model.begin(&tokens, CONTEXT, exit_layer).unwrap();
            assert_close(&model.probe(&partial, &rows).unwrap(), &want, 1e-6);
        }
    }

    #[test]
    fn dropped_sequences_reach_no_gradient() {
        // Tokens of dropped sequences that no kept one has: their embedding keeps a gradient of
        // exactly 0.
        let model = model(DType::F32);
        let begun: Vec<u32> = [[28; CONTEXT], [3; CONTEXT], [27; CONTEXT]].concat();
        let mut partial = model.begin(&begun, CONTEXT, 2).unwrap();
        partial.keep(&[1]).unwrap();
        let grads = ParamSet::zeros(model.params.layout(), DType::F32, &Device::Cpu).unwrap();
        model
            .backward(model.finish(partial).unwrap().1, None, &random((CONTEXT, 15), 3), &grads)
            .unwrap();
        let of = |token: u32| {
            gather(grads.wte(), &[token]).unwrap().to_vec2::<f32>().unwrap()[0].clone()
        };
        assert!(
            [of(28), of(27)].iter().flatten().all(|g| *g == 0.0) && of(3).iter().any(|g| *g != 0.0)
        );
    }

    #[test]
    fn impossible_requests_are_errors() {
        let model = model(DType::F32);
        assert!(model.begin(&tokens(&[0]), CONTEXT, LAYERS + 1).is_err());
        let mut partial = model.begin(&tokens(&[0, 1]), CONTEXT, 1).unwrap();
        for wrong in [&[][..], &[2], &[1, 0], &[0, 0]] {
            assert!(partial.keep(wrong).unwrap_err().to_string().contains("below 2"), "{wrong:?}");
        }
        assert_eq!(partial.sequences(), 2);
    }
}
