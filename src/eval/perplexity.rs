//! Mean loss, perplexity and bits per byte on tokens in order.

use crate::data::loader::{Batch, EvalWindows};
use crate::data::tokens::TokenFile;
use crate::error::{Error, ErrorKind, Result};
use crate::loss::head;
use crate::model::Gpt2;
use crate::progress::Progress;
use crate::world::World;
use serde::Serialize;
use std::sync::Arc;

/// How to cut the tokens into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvalOptions {
    /// Tokens per window (T), at most the model's positions.
    pub context: usize,
    /// Tokens by which windows advance, at most the context. Below the context every prediction but
    /// the first window's sees at least `context - stride` tokens, at `context / stride` times the
    /// work.
    pub stride: usize,
    /// Windows to evaluate, from the first; 0 is all.
    pub rows_limit: usize,
    /// Windows per forward pass. Changes speed and memory, not the result.
    pub rows_per_batch: usize,
}

impl EvalOptions {
    /// Windows side by side without overlap, all of them.
    pub fn new(context: usize) -> Self {
        // About 4096 positions per pass: enough to fill the machine, about 100 MB beside the model.
        Self {
            context,
            stride: context,
            rows_limit: 0,
            rows_per_batch: (4096 / context.max(1)).max(1),
        }
    }
}

/// What an evaluation found; `eval --json` prints exactly these.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Predictions made: every token of the file but its first, each once, unless `rows_limit` ended it before.
    pub tokens: u64,
    /// Mean negative log-likelihood of a token, in nats.
    pub nll: f64,
    /// exp(nll).
    pub perplexity: f64,
    /// Sum of the negative log-likelihoods in bits, over the UTF-8 bytes of the source text.
    /// Predicting end-of-text costs bits and has no bytes. None if `rows_limit` left tokens out
    /// (how many bytes those have is unknown), or if the token file does not know its text.
    pub bits_per_byte: Option<f64>,
}

/// Evaluates `model` on `tokens`, in windows ([`EvalWindows`]). Sums are in f64 and in order, so
/// neither `rows_per_batch` nor the number of threads changes a bit.
pub fn evaluate(
    model: &Gpt2,
    tokens: &Arc<TokenFile>,
    options: EvalOptions,
    progress: &dyn Progress,
) -> Result<Evaluation> {
    evaluate_each(model, tokens, options, progress, |_| ())
}

/// As [`evaluate`], and hands every loss on: `each` gets the negative log-likelihoods in nats in
/// the order of the tokens, some at a time, from that of the file's second token on.
pub fn evaluate_each(
    model: &Gpt2,
    tokens: &Arc<TokenFile>,
    options: EvalOptions,
    progress: &dyn Progress,
    each: impl FnMut(&[f32]),
) -> Result<Evaluation> {
    evaluate_among(&World::solo(), model, tokens, options, progress, each)
}

/// As [`evaluate_each`], by processes that all have the model and share its work: each finds the same,
/// to the bit, as one alone.
pub fn evaluate_among(
    world: &World,
    model: &Gpt2,
    tokens: &Arc<TokenFile>,
    options: EvalOptions,
    progress: &dyn Progress,
    mut each: impl FnMut(&[f32]),
) -> Result<Evaluation> {
    tokens.check_vocab(model.config.vocab_size)?;
    let EvalOptions { context, stride, rows_limit, rows_per_batch } = options;
    if context == 0 || context > model.config.n_positions {
        return Err(Error::usage(format!(
            "context: expected at least 1 and at most the model's {} positions, found {context}",
            model.config.n_positions
        )));
    }
    let mut windows = EvalWindows::new(Arc::clone(tokens), context, stride, rows_per_batch)?;
    let limit = if rows_limit == 0 { u64::MAX } else { rows_limit as u64 };
    let whole = limit >= windows.windows();
    let all = windows.predictions();
    // Later windows add one stride each.
    let total = if whole { all } else { context as u64 + (limit - 1) * stride as u64 };
    progress.start("Evaluating", Some(total), "tokens");
    let (mut sum, mut count, mut left) = (0.0, 0u64, limit);
    let mut next = || -> Option<Result<Batch>> {
        let batch = windows.next().filter(|_| left > 0)?;
        Some(batch.map(|batch| {
            let rows = left.min(batch.sequences as u64);
            left -= rows;
            if rows < batch.sequences as u64 { batch.slice(0..rows as usize) } else { batch }
        }))
    };
    let mut run = || -> Result<()> {
        loop {
            // One batch for each process.
            let batches: Vec<_> = std::iter::from_fn(&mut next).take(world.size()).collect();
            if batches.is_empty() {
                return Ok(());
            }
            let mine = batches.into_iter().nth(world.rank()).map_or(Ok(Vec::new()), |batch| {
                crate::interrupt::check()?;
                losses(model, &batch?)
            });
            for losses in in_order(world, mine)? {
                if let Some(at) = losses.iter().position(|nll| !nll.is_finite()) {
                    return Err(Error::new(
                        ErrorKind::NonFinite,
                        format!(
                            "the loss of predicted token {} is {}; the model is broken",
                            count + at as u64,
                            losses[at]
                        ),
                    ));
                }
                sum = losses.iter().fold(sum, |sum, nll| sum + f64::from(*nll));
                each(&losses);
                count += losses.len() as u64;
                progress.advance(losses.len() as u64);
            }
        }
    };
    let outcome = run();
    progress.finish();
    outcome?;
    let nll = sum / count as f64;
    let bytes = tokens.header().source_bytes;
    let bits_per_byte = (whole && bytes > 0).then(|| sum / std::f64::consts::LN_2 / bytes as f64);
    Ok(Evaluation { tokens: count, nll, perplexity: nll.exp(), bits_per_byte })
}

/// The losses that all processes found, by rank.
fn in_order(world: &World, mine: Result<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
    if world.size() == 1 {
        return mine.map(|mine| vec![mine]);
    }
    let wide = mine.map(|losses| losses.into_iter().map(f64::from).collect());
    let narrow = |losses: Vec<f64>| losses.into_iter().map(|x| x as f32).collect();
    Ok(world.agree_on(wide)?.into_iter().map(narrow).collect())
}

/// Negative log-likelihoods of the predictions that count, in order.
fn losses(model: &Gpt2, batch: &Batch) -> Result<Vec<f32>> {
    let hidden = model.forward(&batch.inputs, batch.context)?;
    let mut logits = model.logits(hidden);
    let mut targets = batch.targets.clone();
    if batch.valid_count() < targets.len() {
        // Overlap and padding: the head runs on the rows that count.
        let rows: Vec<u32> =
            (0u32..).zip(&batch.valid).filter(|(_, v)| **v).map(|(i, _)| i).collect();
        targets = rows.iter().map(|&r| batch.targets[r as usize]).collect();
        logits = logits.select(&rows)?;
    }
    Ok(head::scan(&logits, None, &targets, 1.0)?.iter().map(|s| s.student.nll).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokens::TokenOrigin;
    use crate::loss::head::reference;
    use crate::model::Gpt2Config;
    use crate::progress::Silent;
    use crate::world::in_threads;
    use candle_core::{DType, Device};

    const VOCAB: u32 = 90;

    fn model() -> Gpt2 {
        let config =
            Gpt2Config { initializer_range: 0.2, ..Gpt2Config::new(VOCAB as usize, 16, 24, 2, 3) };
        Gpt2::scratch(config, 3, &Device::Cpu).unwrap()
    }

    fn tokens(n: u32) -> Arc<TokenFile> {
        let ids: Vec<u32> = (0..n).map(|i| (i * i + 7 * i) % VOCAB).collect();
        let origin = TokenOrigin { vocab_size: VOCAB, eot: 0, tokenizer_hash: [0; 32] };
        Arc::new(TokenFile::from_tokens(&ids, origin, 1, 4 * u64::from(n)).unwrap())
    }

    fn options(
        context: usize,
        stride: usize,
        rows_limit: usize,
        rows_per_batch: usize,
    ) -> EvalOptions {
        EvalOptions { context, stride, rows_limit, rows_per_batch }
    }

    /// Every prediction by itself, from the tokens that its window gives it, by the formulas.
    fn slowly(model: &Gpt2, tokens: &[u32], context: usize, stride: usize) -> f64 {
        let one = |target: usize| {
            let window = (target.saturating_sub(context)).div_ceil(stride);
            let history = &tokens[window * stride..target];
            let hidden = model.forward(history, history.len()).unwrap();
            let last =
                hidden.narrow(0, history.len() - 1, 1).unwrap().to_dtype(DType::F64).unwrap();
            let z = reference::logits(&last, &model.params.wte().to_dtype(DType::F64).unwrap())
                .unwrap();
            let log_p = reference::log_softmax(&z, 1.0).unwrap().to_vec2::<f64>().unwrap();
            -log_p[0][tokens[target] as usize]
        };
        (1..tokens.len()).map(one).sum::<f64>() / (tokens.len() - 1) as f64
    }

    #[test]
    fn every_token_is_predicted_once_from_its_window() {
        let model = model();
        for (n, context, stride) in
            [(50, 16, 16), (50, 16, 5), (33, 12, 1), (7, 16, 16), (2, 16, 4)]
        {
            let file = tokens(n);
            let got = evaluate(&model, &file, options(context, stride, 0, 3), &Silent).unwrap();
            let want = slowly(&model, &file.to_vec(0..u64::from(n)).unwrap(), context, stride);
            assert_eq!(got.tokens, u64::from(n) - 1);
            assert!(
                (got.nll - want).abs() < 1e-5,
                "n {n}, context {context}, stride {stride}: {} {want}",
                got.nll
            );
            assert_eq!(got.perplexity, got.nll.exp());
            let bits = got.nll * (f64::from(n) - 1.0) / 2f64.ln() / (4.0 * f64::from(n));
            assert!((got.bits_per_byte.unwrap() - bits).abs() < 1e-12);
        }
    }

    #[test]
    fn behind_end_of_text_every_token_is_predicted() {
        let (model, file) = (model(), tokens(50));
        let behind = Arc::new(file.behind(&[file.header().eot]).unwrap());
        let ids = behind.to_vec(0..51).unwrap();
        assert_eq!(ids[0], file.header().eot);
        for (context, stride) in [(16, 16), (16, 5)] {
            let got = evaluate(&model, &behind, options(context, stride, 0, 3), &Silent).unwrap();
            assert_eq!(got.tokens, 50);
            assert!((got.nll - slowly(&model, &ids, context, stride)).abs() < 1e-5);
            // The bytes are those of the text.
            let bits = got.nll * 50.0 / 2f64.ln() / 200.0;
            assert!((got.bits_per_byte.unwrap() - bits).abs() < 1e-12);
        }
    }

    #[test]
    fn every_loss_is_handed_on_in_order() {
        let (model, file) = (model(), tokens(50));
        let mut losses = Vec::new();
        let all = evaluate_each(&model, &file, options(16, 5, 0, 3), &Silent, |l| {
            losses.extend_from_slice(l)
        })
        .unwrap();
        assert_eq!(losses.len(), 49);
        assert_eq!(losses.iter().fold(0.0, |sum, l| sum + f64::from(*l)) / 49.0, all.nll);
        // The first window's losses are those of its tokens alone.
        let mut first = Vec::new();
        let head = tokens(17);
        evaluate_each(&model, &head, options(16, 16, 0, 1), &Silent, |l| {
            first.extend_from_slice(l)
        })
        .unwrap();
        assert!(first.iter().zip(&losses).all(|(a, b)| (a - b).abs() < 1e-5), "{first:?}");
    }

    #[test]
    fn batches_and_threads_do_not_change_a_bit() {
        let (model, file) = (model(), tokens(200));
        let run = |rows: usize, threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| evaluate(&model, &file, options(16, 6, 0, rows), &Silent).unwrap())
        };
        let one = run(1, 1);
        assert!(one == run(4, 3) && one == run(100, 2));
    }

    #[test]
    fn processes_that_share_the_work_find_the_same() {
        let file = tokens(200);
        for (limit, rows) in [(0, 3), (7, 2), (3, 4), (1, 1)] {
            let options = options(16, 6, limit, rows);
            let one = evaluate(&model(), &file, options, &Silent).unwrap();
            for size in [2, 3] {
                let all = in_threads(size, |world| {
                    let mut order = Vec::new();
                    let each = |losses: &[f32]| order.extend_from_slice(losses);
                    let found =
                        evaluate_among(&world, &model(), &file, options, &Silent, each).unwrap();
                    assert_eq!(order.len() as u64, found.tokens);
                    found
                });
                assert!(all.iter().all(|found| *found == one), "limit {limit}, {size} processes");
            }
        }
    }

    #[test]
    fn a_limit_evaluates_the_first_windows() {
        let (model, file) = (model(), tokens(200));
        let run = |limit: usize, rows: usize| {
            evaluate(&model, &file, options(16, 8, limit, rows), &Silent).unwrap()
        };
        let part = run(5, 3);
        assert_eq!((part.tokens, part.bits_per_byte), (16 + 4 * 8, None));
        let head = tokens(16 + 4 * 8 + 1);
        assert_eq!(part.nll, evaluate(&model, &head, options(16, 8, 0, 2), &Silent).unwrap().nll);
        assert_eq!(run(1000, 3), run(0, 3));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (model, file) = (model(), tokens(30));
        let message = |o| evaluate(&model, &file, o, &Silent).unwrap_err().to_string();
        assert!(message(options(17, 17, 0, 1)).contains("16 positions"));
        assert!(message(options(0, 1, 0, 1)).contains("found 0"));
        assert!(message(options(8, 9, 0, 1)).contains("the context, 8, found 9"));
        let origin = TokenOrigin { vocab_size: VOCAB + 1, eot: 0, tokenizer_hash: [0; 32] };
        let of = |ids: &[u32]| Arc::new(TokenFile::from_tokens(ids, origin, 1, 9).unwrap());
        let error =
            evaluate(&model, &of(&[1, VOCAB, 3]), EvalOptions::new(8), &Silent).unwrap_err();
        assert!(error.to_string().contains("token 1 is id 90"), "{error}");
        evaluate(&model, &of(&[1, 2, 3]), EvalOptions::new(8), &Silent).unwrap();
        crate::ops::buffer::with_mut(model.params.ln_f_w(), |w| w[0] = f32::NAN).unwrap();
        assert_eq!(
            evaluate(&model, &file, EvalOptions::new(8), &Silent).unwrap_err().kind(),
            ErrorKind::NonFinite
        );
    }
}
