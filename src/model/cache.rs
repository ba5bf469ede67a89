//! One token at a time: keys and values of earlier positions are kept, not formed again.

use super::Gpt2;
use super::residual::Half;
use crate::error::{Error, Result};
use crate::ops::buffer::assign;
use crate::ops::matmul::linear;
use crate::ops::rotary::Rows;
use crate::ops::{activation, attention, embed};
use candle_core::Tensor;

/// What a model remembers of the tokens it has read.
#[derive(Debug)]
pub struct Cache {
    /// Keys beside values of each block, [room, 2 K]; the first `tokens.len()` rows are filled.
    keys: Vec<Tensor>,
    tokens: Vec<u32>,
}

/// Positions that a cache has room for at first; it grows to the model's.
const ROOM: usize = 1024;

impl Cache {
    /// Makes room for one more position, of at most `most`.
    fn grow(&mut self, most: usize) -> Result<()> {
        let n = self.tokens.len();
        for keys in &mut self.keys {
            let (room, width) = keys.dims2()?;
            if n == room {
                let wider = (2 * room).min(most);
                let fresh = Tensor::zeros((wider, width), keys.dtype(), keys.device())?;
                assign(&fresh.narrow(0, 0, n)?, keys)?;
                *keys = fresh;
            }
        }
        Ok(())
    }

    /// The tokens it holds, oldest first: all that were read, until the context was full for the
    /// first time.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}

impl Gpt2 {
    /// Reads `tokens` at once, at least one and at most `n_positions`: the cache, and the last
    /// position's hidden vector after the final norm, [1, D].
    pub fn prefill(&self, tokens: &[u32]) -> Result<(Cache, Tensor)> {
        let (n, most) = (tokens.len(), self.config.n_positions);
        let (queries, width) = (self.config.query_width(), 2 * self.config.kv_width());
        if n == 0 || n > most {
            return Err(Error::internal(format!(
                "a cache starts with 1 to {most} tokens, found {n}"
            )));
        }
        let common = self.common(1, n);
        let mut x = embed::forward(self.params.wte(), self.params.wpe(), tokens, n, 0)?;
        let mut keys = Vec::with_capacity(self.config.n_layer);
        for l in 0..self.config.n_layer {
            let tape = self.block_tape(l, x, &common)?;
            let rows = (2 * n).max(ROOM).min(most);
            let room = Tensor::zeros((rows, width), tape.qkv.dtype(), tape.qkv.device())?;
            assign(&room.narrow(0, 0, n)?, &tape.qkv.narrow(1, queries, width)?)?;
            keys.push(room);
            x = self.block_output(l, &tape)?;
        }
        let hidden = self.final_norm(&x.narrow(0, n - 1, 1)?)?.out;
        Ok((Cache { keys, tokens: tokens.to_vec() }, hidden))
    }

    /// Reads one more token: its hidden vector after the final norm, [1, D].
    ///
    /// When all positions are taken, the cache is built again from the newest half of them and the
    /// token: keys hold their positions and cannot move. The model then forgets the older half at
    /// once.
    pub fn step(&self, token: u32, cache: &mut Cache) -> Result<Tensor> {
        let (at, most) = (cache.tokens.len(), self.config.n_positions);
        let (queries, width) = (self.config.query_width(), 2 * self.config.kv_width());
        if at == most {
            let mut kept = cache.tokens[most - most / 2..].to_vec();
            kept.push(token);
            let (fresh, hidden) = self.prefill(&kept)?;
            *cache = fresh;
            return Ok(hidden);
        }
        cache.grow(most)?;
        let (shape, rotary) = (self.common(1, 1).shape, self.rotary(at, 1));
        let mut x = embed::forward(self.params.wte(), self.params.wpe(), &[token], 1, at)?;
        for (l, keys) in cache.keys.iter().enumerate() {
            let p = self.params.block(l);
            let input = self.enter(Half::attention(l), &x)?.0;
            let qkv = linear(&input, p.attn_w, p.attn_b, self.precision)?;
            self.prepare_heads(l, &qkv, rotary.as_ref(), Rows::At(at))?;
            assign(&keys.narrow(0, at, 1)?, &qkv.narrow(1, queries, width)?)?;
            let q = qkv.narrow(1, 0, queries)?;
            let attended =
                attention::step(&q, &keys.narrow(0, 0, at + 1)?, self.of_block(l, shape))?;
            let mid = self.leave(Half::attention(l), &x, &attended)?.0;
            let input = self.enter(Half::mlp(l), self.mlp_reads(&x, &mid))?.0;
            let fc = linear(&input, p.fc_w, p.fc_b, self.precision)?;
            let active = activation::forward(self.config.parts.mlp, &fc)?;
            x = self.leave(Half::mlp(l), &mid, &active)?.0;
        }
        cache.tokens.push(token);
        Ok(self.final_norm(&x)?.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Gpt2Config;
    use crate::model::testing::{of_other_parts, scratch};
    use crate::ops::matmul::{Precision, matmul};
    use crate::ops::testing::assert_close;
    use candle_core::DType;

    const POSITIONS: usize = 12;

    fn model(dtype: DType) -> Gpt2 {
        scratch(
            Gpt2Config { initializer_range: 0.2, ..Gpt2Config::new(50, POSITIONS, 24, 3, 3) },
            dtype,
        )
    }

    fn token(i: usize) -> u32 {
        (i * i + 3 * i) as u32 % 50
    }

    fn logits(model: &Gpt2, hidden: &Tensor) -> Tensor {
        matmul(hidden, &model.params.wte().t().unwrap(), Precision::F32).unwrap()
    }

    #[test]
    fn cached_logits_equal_a_full_forward_at_every_position() {
        for dtype in [DType::F32, DType::F64] {
            let model = model(dtype);
            let tokens: Vec<u32> = (0..POSITIONS).map(token).collect();
            let full = logits(&model, &model.forward(&tokens, POSITIONS).unwrap());
            for start in [1, 5, POSITIONS] {
                let (mut cache, mut hidden) = model.prefill(&tokens[..start]).unwrap();
                for at in start - 1..POSITIONS {
                    assert_close(&logits(&model, &hidden), &full.narrow(0, at, 1).unwrap(), 1e-5);
                    assert_eq!(cache.tokens(), &tokens[..=at]);
                    if let Some(&next) = tokens.get(at + 1) {
                        hidden = model.step(next, &mut cache).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn it_grows_and_holds_for_every_part() {
        for dtype in [DType::F32, DType::F64] {
            for model in of_other_parts(dtype) {
                let most = model.config.n_positions;
                let tokens: Vec<u32> = (0..most).map(|i| token(i) % 29).collect();
                let full = model.forward(&tokens, most).unwrap();
                let (mut cache, mut hidden) = model.prefill(&tokens[..2]).unwrap();
                // As if it had no more room than that.
                for keys in &mut cache.keys {
                    *keys = keys.narrow(0, 0, 2).unwrap().contiguous().unwrap();
                }
                for at in 1..most {
                    assert_close(&hidden, &full.narrow(0, at, 1).unwrap(), 2e-5);
                    if let Some(&next) = tokens.get(at + 1) {
                        hidden = model.step(next, &mut cache).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn a_full_context_slides_by_half() {
        let model = model(DType::F32);
        let (mut cache, _) = model.prefill(&[token(0)]).unwrap();
        for i in 1..40 {
            let hidden = model.step(token(i), &mut cache).unwrap();
            let seen = cache.tokens().len();
            // Whatever was forgotten, the rest is the newest tokens, and the answer is the full
            // forward's.
            let want: Vec<u32> = (i + 1 - seen..=i).map(token).collect();
            assert_eq!(cache.tokens(), want);
            assert!(seen == i + 1 || (POSITIONS / 2 < seen && seen <= POSITIONS), "{i}: {seen}");
            let full = model.forward(&want, seen).unwrap().narrow(0, seen - 1, 1).unwrap();
            assert_close(&hidden, &full, 1e-5);
        }
    }

    #[test]
    fn impossible_starts_are_errors() {
        let model = model(DType::F32);
        assert!(model.prefill(&[]).is_err());
        assert!(model.prefill(&[0; POSITIONS + 1]).is_err());
        assert!(model.prefill(&[50]).unwrap_err().to_string().contains("50"));
        let (mut cache, _) = model.prefill(&[1]).unwrap();
        assert!(model.step(50, &mut cache).is_err());
    }
}
