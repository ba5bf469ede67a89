//! Batches from a token file: a seekable shuffled loader for training, ordered windows for
//! evaluation.
//!
//! Training sequence i of context T covers tokens `i*T ..= i*T+T`: inputs are the first T, targets
//! the same shifted by one, so within an epoch every token but the last few is predicted exactly
//! once. The order of an epoch is a permutation that is computed per index (a Feistel network with
//! cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002), so any
//! position is reached at no cost and nothing has to be saved but the cursor.

use crate::data::tokens::TokenFile;
use crate::error::{Error, Result};
use crate::report::text::{amount, count};
use crate::rng::{Rng, Stream};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// Sequences side by side; all `[rows * context]` row-major but `sequence_ids`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Number of sequences (B).
    pub sequences: usize,
    /// Positions of each.
    pub context: usize,
    /// Token ids `[rows * context]`.
    pub inputs: Vec<u32>,
    /// The token that follows each input `[rows * context]`.
    pub targets: Vec<u32>,
    /// Whether the prediction counts `[rows * context]`.
    pub valid: Vec<bool>,
    /// Which sequence (or evaluation window) each row is `[rows]`.
    pub sequence_ids: Vec<u64>,
}

impl Batch {
    fn with_capacity(rows: usize, context: usize) -> Self {
        let n = rows * context;
        Self {
            sequences: 0,
            context,
            inputs: Vec::with_capacity(n),
            targets: Vec::with_capacity(n),
            valid: Vec::with_capacity(n),
            sequence_ids: Vec::with_capacity(rows),
        }
    }

    /// A micro-batch: some consecutive rows.
    ///
    /// # Panics
    /// When the range does not lie within the rows, as slices do.
    #[must_use]
    pub fn slice(&self, rows: Range<usize>) -> Self {
        let positions = rows.start * self.context..rows.end * self.context;
        Self {
            sequences: rows.len(),
            context: self.context,
            inputs: self.inputs[positions.clone()].to_vec(),
            targets: self.targets[positions.clone()].to_vec(),
            valid: self.valid[positions].to_vec(),
            sequence_ids: self.sequence_ids[rows].to_vec(),
        }
    }

    /// Some rows, in the given order.
    ///
    /// # Panics
    /// When there is no such row, as slices do.
    #[must_use]
    pub fn pick(&self, rows: &[u32]) -> Self {
        let mut picked = Self::with_capacity(rows.len(), self.context);
        for row in rows.iter().map(|&r| r as usize) {
            let positions = row * self.context..(row + 1) * self.context;
            picked.inputs.extend_from_slice(&self.inputs[positions.clone()]);
            picked.targets.extend_from_slice(&self.targets[positions.clone()]);
            picked.valid.extend_from_slice(&self.valid[positions]);
            picked.sequence_ids.push(self.sequence_ids[row]);
        }
        picked.sequences = rows.len();
        picked
    }

    /// The number of position `i` in the data: that of its sequence times the context, and its place
    /// there. The same in every epoch.
    pub fn position(&self, i: usize) -> u64 {
        self.sequence_ids[i / self.context] * self.context as u64 + (i % self.context) as u64
    }

    /// The numbers of all positions `[rows * context]`.
    pub fn positions(&self) -> Vec<u64> {
        (0..self.inputs.len()).map(|i| self.position(i)).collect()
    }

    /// Where position `i` is, for messages.
    pub fn place(&self, i: usize) -> String {
        format!("sequence {}, position {}", self.sequence_ids[i / self.context], i % self.context)
    }

    /// Number of predictions that count.
    pub fn valid_count(&self) -> usize {
        self.valid.iter().filter(|v| **v).count()
    }
}

/// Shuffled training sequences; every batch is a pure function of the cursor.
#[derive(Debug, Clone)]
pub struct Loader {
    tokens: Arc<TokenFile>,
    context: usize,
    sequences: u64,
    rng: Rng,
}

impl Loader {
    /// A loader of sequences of `context` predictions in the order of `seed`.
    pub fn new(tokens: Arc<TokenFile>, context: usize, seed: u64) -> Result<Self> {
        if context == 0 {
            return Err(Error::usage("context must be at least 1"));
        }
        let sequences = tokens.len().saturating_sub(1) / context as u64;
        if sequences == 0 {
            return Err(Error::data(format!(
                "{}: {}, but one sequence of context {context} needs {}; add text or set a smaller context",
                tokens.path().display(),
                amount(tokens.len(), "tokens"),
                count(context as u64 + 1)
            )));
        }
        Ok(Self { tokens, context, sequences, rng: Rng::new(seed, Stream::Shuffle) })
    }

    /// Sequences that an epoch visits, each once.
    pub fn sequences_per_epoch(&self) -> u64 {
        self.sequences
    }

    /// Predictions per sequence.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The file behind it.
    pub fn tokens(&self) -> &Arc<TokenFile> {
        &self.tokens
    }

    /// The sequence that is consumed as number `index` since the start of training (epochs run on).
    pub fn sequence_at(&self, index: u64) -> u64 {
        let (epoch, position) = (index / self.sequences, index % self.sequences);
        permute(&self.rng, epoch as u32, position, self.sequences)
    }

    /// The `rows` sequences that follow after `cursor` sequences have been consumed; crosses
    /// epochs.
    pub fn batch(&self, cursor: u64, rows: usize) -> Result<Batch> {
        let mut batch = Batch::with_capacity(rows, self.context);
        let t = self.context as u64;
        for index in (cursor..).take(rows) {
            let id = self.sequence_at(index);
            self.tokens.read(id * t..id * t + t, &mut batch.inputs)?;
            self.tokens.read(id * t + 1..id * t + t + 1, &mut batch.targets)?;
            batch.sequence_ids.push(id);
        }
        batch.valid.resize(rows * self.context, true);
        batch.sequences = rows;
        Ok(batch)
    }
}

/// A loader that reads the batch after the one it hands out on a thread of its own, so that no step
/// waits for a disk.
#[derive(Debug)]
pub struct Ahead {
    loader: Arc<Loader>,
    /// The sequences of a step that are read.
    share: Range<usize>,
    /// All sequences of a step.
    rows: usize,
    next: Option<(u64, JoinHandle<Result<Batch>>)>,
    also: Also,
}

/// What else is done for a batch that was read ahead.
#[derive(Clone, Default)]
struct Also(Option<Arc<ForBatch>>);

type ForBatch = dyn Fn(&Batch) + Send + Sync;

impl fmt::Debug for Also {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Also({})", if self.0.is_some() { "something" } else { "nothing" })
    }
}

impl Ahead {
    /// Batches of `rows` sequences.
    pub fn new(loader: Loader, rows: usize) -> Self {
        Self { loader: Arc::new(loader), share: 0..rows, rows, next: None, also: Also::default() }
    }

    /// The same, of whose batches only these sequences are read.
    #[must_use]
    pub fn share(self, share: Range<usize>) -> Self {
        Self { share, ..self }
    }

    /// The same, whose thread also does this for each batch that it reads.
    #[must_use]
    pub fn with(self, also: impl Fn(&Batch) + Send + Sync + 'static) -> Self {
        Self { also: Also(Some(Arc::new(also))), ..self }
    }

    /// As [`Loader::batch`] of the step that begins at `cursor`; quick where the one before ended
    /// there.
    pub fn batch(&mut self, cursor: u64) -> Result<Batch> {
        let batch = match self.next.take() {
            Some((at, reading)) if at == cursor => reading
                .join()
                .map_err(|_| Error::internal("the thread that reads batches has panicked"))?,
            _ => self.loader.batch(cursor + self.share.start as u64, self.share.len()),
        }?;
        let (loader, share, at) =
            (Arc::clone(&self.loader), self.share.clone(), cursor + self.rows as u64);
        let also = self.also.clone();
        let read = move || {
            let batch = loader.batch(at + share.start as u64, share.len())?;
            if let Some(also) = also.0 {
                also(&batch);
            }
            Ok(batch)
        };
        self.next = Some((at, thread::spawn(read)));
        Ok(batch)
    }
}

/// Position `index` of the permutation of `0..n` that belongs to `epoch`.
fn permute(rng: &Rng, epoch: u32, index: u64, n: u64) -> u64 {
    const ROUNDS: u64 = 8;
    // Two halves of at least 3 bits: tiny domains would admit only few permutations.
    let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
    let half = bits.div_ceil(2).max(3);
    let mask = (1u64 << half) - 1;
    let mut value = index;
    loop {
        let (mut left, mut right) = (value >> half, value & mask);
        for round in 0..ROUNDS {
            let mixed = rng.bits(epoch, (round << 32) | right) & mask;
            (left, right) = (right, left ^ mixed);
        }
        value = (left << half) | right;
        // A bijection of the larger domain, followed until it is back inside 0..n, is a bijection
        // of 0..n.
        if value < n {
            return value;
        }
    }
}

/// Windows in order, such that every token after the first is predicted exactly once.
///
/// Window w covers inputs `w*stride .. w*stride+context`; its last `stride` positions count, in the
/// first window all do. What lies past the end of the file is padded with token 0 and does not
/// count. A stride below the context gives each prediction at least `context - stride` tokens of
/// history, at `context / stride` times the work.
#[derive(Debug, Clone)]
pub struct EvalWindows {
    tokens: Arc<TokenFile>,
    context: usize,
    stride: usize,
    rows: usize,
    next: u64,
    windows: u64,
}

impl EvalWindows {
    /// Windows over `tokens`, `rows` per batch (the last batch may have fewer).
    pub fn new(tokens: Arc<TokenFile>, context: usize, stride: usize, rows: usize) -> Result<Self> {
        if stride == 0 || stride > context {
            return Err(Error::usage(format!(
                "stride: expected at least 1 and at most the context, {context}, found {stride}"
            )));
        }
        if rows == 0 {
            return Err(Error::usage("rows of a batch: expected at least 1, found 0"));
        }
        let Some(predictions) = tokens.len().checked_sub(1).filter(|n| *n > 0) else {
            let (path, len) = (tokens.path().display(), amount(tokens.len(), "tokens"));
            return Err(Error::data(format!(
                "{path}: {len}, and an evaluation needs at least 2; name a longer text"
            )));
        };
        let windows = 1 + predictions.saturating_sub(context as u64).div_ceil(stride as u64);
        Ok(Self { tokens, context, stride, rows, next: 0, windows })
    }

    /// Only these of the windows.
    #[must_use]
    pub fn between(self, windows: Range<u64>) -> Self {
        Self { next: windows.start, windows: windows.end.min(self.windows), ..self }
    }

    /// Number of windows in all.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// Number of batches in all.
    pub fn batches(&self) -> u64 {
        self.windows.div_ceil(self.rows as u64)
    }

    /// Number of predictions that count, in all: the tokens after the first.
    pub fn predictions(&self) -> u64 {
        self.tokens.len() - 1
    }

    fn window(&self, w: u64, batch: &mut Batch) -> Result<()> {
        let start = w * self.stride as u64;
        let predictions = (self.predictions() - start).min(self.context as u64);
        self.tokens.read(start..start + predictions, &mut batch.inputs)?;
        self.tokens.read(start + 1..start + predictions + 1, &mut batch.targets)?;
        let first = if w == 0 { 0 } else { self.context - self.stride };
        let end = predictions as usize;
        batch.valid.extend((0..self.context).map(|i| i >= first && i < end));
        batch.sequences += 1;
        batch.inputs.resize(batch.sequences * self.context, 0);
        batch.targets.resize(batch.sequences * self.context, 0);
        batch.sequence_ids.push(w);
        Ok(())
    }
}

impl Iterator for EvalWindows {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = (self.windows - self.next).min(self.rows as u64);
        if rows == 0 {
            return None;
        }
        let mut batch = Batch::with_capacity(rows as usize, self.context);
        for w in self.next..self.next + rows {
            if let Err(e) = self.window(w, &mut batch) {
                self.next = self.windows;
                return Some(Err(e));
            }
        }
        self.next += rows;
        Some(Ok(batch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokens::TokenOrigin;
    use std::collections::BTreeSet;

    fn file(n: u32) -> Arc<TokenFile> {
        let origin = TokenOrigin { vocab_size: n.max(1), eot: 0, tokenizer_hash: [0; 32] };
        Arc::new(TokenFile::from_tokens(&(0..n).collect::<Vec<_>>(), origin, 1, 0).unwrap())
    }

    #[test]
    fn every_epoch_is_a_permutation_and_epochs_and_seeds_differ() {
        for n in [1u64, 2, 3, 7, 64, 65, 1000, 4097] {
            let rng = Rng::new(5, Stream::Shuffle);
            for epoch in [0, 1] {
                let seen: BTreeSet<u64> = (0..n).map(|i| permute(&rng, epoch, i, n)).collect();
                assert_eq!((seen.len() as u64, seen.last()), (n, Some(&(n - 1))), "n = {n}");
            }
        }
        let order = |seed, epoch| -> Vec<u64> {
            (0..100).map(|i| permute(&Rng::new(seed, Stream::Shuffle), epoch, i, 100)).collect()
        };
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        let fixed_points = order(1, 0).iter().enumerate().filter(|(i, v)| *i as u64 == **v).count();
        assert!(fixed_points < 8, "{fixed_points} fixed points; about 1 is expected");
    }

    #[test]
    fn reading_ahead_changes_no_batch() {
        let loader = Loader::new(file(101), 5, 3).unwrap();
        let mut ahead = Ahead::new(loader.clone(), 3);
        // In order, again from the same place, elsewhere, and over the end of an epoch.
        for cursor in [0, 3, 6, 6, 2, 5, 18, 21, 40] {
            assert_eq!(ahead.batch(cursor).unwrap(), loader.batch(cursor, 3).unwrap(), "{cursor}");
        }
    }

    #[test]
    fn the_order_shows_no_trend() {
        // Correlation of index and value over 2,000 positions; three standard errors are
        // 3/sqrt(2000) = 0.067.
        let (n, rng) = (2000u64, Rng::new(11, Stream::Shuffle));
        let mean = (n - 1) as f64 / 2.0;
        let variance = ((n * n - 1) as f64) / 12.0;
        let correlation = |lag: u64| {
            let pairs = (0..n)
                .map(|i| (i as f64 - mean) * (permute(&rng, 0, (i + lag) % n, n) as f64 - mean));
            pairs.sum::<f64>() / n as f64 / variance
        };
        assert!(correlation(0).abs() < 0.067, "{}", correlation(0));
    }

    #[test]
    fn a_batch_depends_on_the_cursor_alone_and_crosses_epochs() {
        let loader = Loader::new(file(45), 4, 3).unwrap();
        assert_eq!(loader.sequences_per_epoch(), 11);
        let all = loader.batch(0, 25).unwrap();
        let again = loader.batch(9, 5).unwrap();
        assert_eq!(again, all.slice(9..14));
        assert_eq!(again.valid_count(), 20);
        for row in 0..25 {
            let id = all.sequence_ids[row] as u32;
            assert_eq!(
                all.inputs[row * 4..row * 4 + 4],
                [id * 4, id * 4 + 1, id * 4 + 2, id * 4 + 3]
            );
            assert_eq!(
                all.targets[row * 4..row * 4 + 4],
                [id * 4 + 1, id * 4 + 2, id * 4 + 3, id * 4 + 4]
            );
        }
        for epoch in 0..2 {
            let ids: BTreeSet<u64> =
                all.sequence_ids[epoch * 11..epoch * 11 + 11].iter().copied().collect();
            assert_eq!(ids, (0..11).collect());
        }
        assert_ne!(all.sequence_ids[..11], all.sequence_ids[11..22]);
    }

    #[test]
    fn too_few_tokens_say_how_many_are_needed() {
        assert!(Loader::new(file(8), 8, 0).unwrap_err().to_string().contains("needs 9"));
        assert_eq!(Loader::new(file(9), 8, 0).unwrap().sequences_per_epoch(), 1);
        assert!(Loader::new(file(9), 0, 0).is_err());
        assert!(Loader::new(file(0), 8, 0).is_err());
    }

    #[test]
    fn windows_predict_every_token_after_the_first_exactly_once() {
        for n in [2u32, 5, 8, 9, 10, 16, 17, 23] {
            for (context, stride) in [(8, 8), (8, 3), (8, 1), (1, 1), (5, 4)] {
                let windows = EvalWindows::new(file(n), context, stride, 3).unwrap();
                let (total, batches) = (windows.windows(), windows.batches());
                let mut predicted = Vec::new();
                let mut seen = (0, 0);
                for batch in windows {
                    let batch = batch.unwrap();
                    seen = (seen.0 + batch.sequences as u64, seen.1 + 1);
                    assert_eq!(batch.inputs.len(), batch.sequences * context);
                    for i in 0..batch.inputs.len() {
                        let start = batch.sequence_ids[i / context] * stride as u64;
                        if batch.valid[i] {
                            assert_eq!(batch.inputs[i] + 1, batch.targets[i]);
                            assert_eq!(u64::from(batch.inputs[i]), start + (i % context) as u64);
                            predicted.push(batch.targets[i]);
                        } else if start + (i % context) as u64 >= u64::from(n) - 1 {
                            assert_eq!((batch.inputs[i], batch.targets[i]), (0, 0), "padding");
                        }
                    }
                    assert!(batch.valid_count() > 0);
                }
                assert_eq!(
                    predicted,
                    (1..n).collect::<Vec<_>>(),
                    "n {n} context {context} stride {stride}"
                );
                assert_eq!(seen, (total, batches));
            }
        }
        assert!(EvalWindows::new(file(9), 8, 9, 1).is_err());
        assert!(EvalWindows::new(file(9), 8, 0, 1).is_err());
        assert!(EvalWindows::new(file(1), 8, 8, 1).is_err());
    }
}
