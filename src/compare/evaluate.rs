//! What a finished run is worth: cross-entropy on every validation token, by how frequent the token
//! is in training, and on other text.

use super::crew::Crew;
use crate::config::Plan;
use crate::data::tokens::TokenFile;
use crate::error::{Error, Result};
use crate::eval::perplexity::{EvalOptions, evaluate};
use crate::files::{hex, read_bounded, write_atomic};
use crate::model::Gpt2;
use crate::progress::Progress;
use crate::store::checkpoint::verify_model;
use crate::store::weights::load_model;
use crate::train::run::MODEL_FOLDER;
use candle_core::Device;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// The file beside a run's metrics.
const FILE: &str = "evaluation.json";
/// A hundred bytes for each other text.
const MOST_BYTES: u64 = 1 << 20;
/// Groups of equal numbers of validation tokens.
pub const GROUPS: usize = 10;
/// Tokens that are counted at a time.
const CHUNK: u64 = 1 << 20;

/// Other text to evaluate on.
#[derive(Debug, Clone)]
pub struct OtherText {
    /// Its name in the report.
    pub name: String,
    /// Its tokens.
    pub tokens: Arc<TokenFile>,
}

/// Everything that runs are evaluated on.
#[derive(Debug)]
pub struct Texts {
    valid: Arc<TokenFile>,
    deciles: Deciles,
    also: Vec<OtherText>,
}

/// Validation targets in ten groups, from rare to frequent in the training tokens.
#[derive(Debug)]
struct Deciles {
    /// Of every prediction.
    group: Vec<u8>,
    /// Of every group: fewest and most occurrences of its tokens in the training data.
    range: Vec<(u64, u64)>,
}

/// Cross-entropy of one group of validation tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decile {
    /// Fewest occurrences in the training data of a token of the group.
    pub least: u64,
    /// Most occurrences.
    pub most: u64,
    /// Tokens.
    pub tokens: u64,
    /// Mean cross-entropy in nats.
    pub ce: f64,
}

/// Cross-entropy on one other text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Other {
    /// Its name.
    pub name: String,
    /// Hash of its tokens.
    pub hash: String,
    /// Predictions.
    pub tokens: u64,
    /// Mean cross-entropy in nats.
    pub ce: f64,
}

/// `evaluation.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Hash of the validation tokens.
    pub valid_hash: String,
    /// Tokens per window.
    pub context: usize,
    /// Tokens by which windows advance.
    pub stride: usize,
    /// Predictions: all validation tokens but the first.
    pub tokens: u64,
    /// Their mean cross-entropy in nats.
    pub ce: f64,
    /// By frequency in the training tokens, rare first.
    pub deciles: Vec<Decile>,
    /// On other text.
    pub also: Vec<Other>,
}

impl Texts {
    /// Counts the training tokens once.
    pub fn new(train: &TokenFile, valid: Arc<TokenFile>, also: Vec<OtherText>) -> Result<Self> {
        if valid.len() < 2 {
            return Err(Error::data(format!(
                "{}: nothing to predict in {}",
                valid.path().display(),
                crate::report::text::amount(valid.len(), "tokens")
            )));
        }
        let deciles = Deciles::new(train, &valid)?;
        Ok(Self { valid, deciles, also })
    }

    /// Hash of the validation tokens.
    pub fn valid_hash(&self) -> String {
        hex(&self.valid.header().content_hash)
    }

    /// Evaluates the model of the finished run in `run`; what `evaluation.json` already says of the
    /// same text is taken from there.
    pub fn evaluate(
        &self,
        run: &Path,
        plan: &Plan,
        device: &Device,
        crew: &Crew,
        progress: &dyn Progress,
    ) -> Result<Evaluation> {
        let (context, stride) = (plan.data.context, plan.eval.stride);
        let known = Evaluation::read(run)?.filter(|e| {
            e.valid_hash == self.valid_hash()
                && e.context == context
                && e.stride == stride
                && e.deciles.len() == GROUPS
        });
        let other = |o: &OtherText| {
            let hash = hex(&o.tokens.header().content_hash);
            known.as_ref().and_then(|e| e.also.iter().find(|k| k.name == o.name && k.hash == hash))
        };
        if let Some(known) = known.as_ref().filter(|_| self.also.iter().all(|o| other(o).is_some()))
        {
            return Ok(known.clone());
        }
        let folder = run.join(MODEL_FOLDER);
        verify_model(&folder, true)?;
        let (config, params) = load_model(&folder, device)?;
        let model = Gpt2::new(config, params);
        let mut also = Vec::with_capacity(self.also.len());
        for o in &self.also {
            also.push(match other(o) {
                Some(known) => known.clone(),
                None => {
                    // A text shorter than one window needs no padding.
                    let window =
                        usize::try_from(o.tokens.len() - 1).unwrap_or(usize::MAX).min(context);
                    let options =
                        EvalOptions { stride: stride.min(window), ..EvalOptions::new(window) };
                    let found = evaluate(&model, &o.tokens, options, progress)?;
                    let hash = hex(&o.tokens.header().content_hash);
                    Other { name: o.name.clone(), hash, tokens: found.tokens, ce: found.nll }
                }
            });
        }
        let evaluation = match known {
            Some(known) => {
                // What was evaluated on before stays, unless it has another content now.
                let mut old = known.also.clone();
                old.retain(|k| also.iter().all(|a| a.name != k.name));
                also.extend(old);
                Evaluation { also, ..known }
            }
            None => self.full((plan, &folder, &model), also, crew, progress)?,
        };
        evaluation.write(run)?;
        Ok(evaluation)
    }

    fn full(
        &self,
        of: (&Plan, &Path, &Gpt2),
        also: Vec<Other>,
        crew: &Crew,
        progress: &dyn Progress,
    ) -> Result<Evaluation> {
        let (context, stride) = (of.0.data.context, of.0.eval.stride);
        let mut sums = [0.0; GROUPS];
        let mut counts = [0u64; GROUPS];
        let mut groups = self.deciles.group.iter();
        let options = EvalOptions { stride, ..EvalOptions::new(context) };
        let found = crew.evaluate(of, &self.valid, options, progress, |losses| {
            for (loss, group) in losses.iter().zip(&mut groups) {
                sums[usize::from(*group)] += f64::from(*loss);
                counts[usize::from(*group)] += 1;
            }
        })?;
        let deciles = (self.deciles.range.iter().zip(sums).zip(counts))
            .map(|((&(least, most), sum), tokens)| Decile {
                least,
                most,
                tokens,
                ce: sum / tokens.max(1) as f64,
            })
            .collect();
        Ok(Evaluation {
            valid_hash: self.valid_hash(),
            context,
            stride,
            tokens: found.tokens,
            ce: found.nll,
            deciles,
            also,
        })
    }
}

impl Deciles {
    /// The targets of `valid` (every token but the first) sorted by the count of their type in
    /// `train`, ties by id and then by position, cut into ten groups whose sizes differ by at most
    /// one.
    fn new(train: &TokenFile, valid: &TokenFile) -> Result<Self> {
        let mut counts = vec![0u64; valid.header().vocab_size as usize];
        let mut chunk = Vec::new();
        for start in (0..train.len()).step_by(CHUNK as usize) {
            chunk.clear();
            train.read(start..train.len().min(start + CHUNK), &mut chunk)?;
            for &id in &chunk {
                if let Some(count) = counts.get_mut(id as usize) {
                    *count += 1;
                }
            }
        }
        let targets = valid.to_vec(1..valid.len())?;
        let count = |position: u32| {
            let id = targets[position as usize];
            (counts[id as usize], id, position)
        };
        let mut order: Vec<u32> = (0..targets.len() as u32).collect();
        order.sort_unstable_by_key(|&p| count(p));
        let mut group = vec![0; targets.len()];
        let mut range = vec![(0, 0); GROUPS];
        for (g, range) in range.iter_mut().enumerate() {
            let part = &order[order.len() * g / GROUPS..order.len() * (g + 1) / GROUPS];
            if let (Some(&first), Some(&last)) = (part.first(), part.last()) {
                *range = (count(first).0, count(last).0);
            }
            for &p in part {
                group[p as usize] = g as u8;
            }
        }
        Ok(Self { group, range })
    }
}

impl Evaluation {
    /// Of a run folder, if there is one.
    pub fn read(run: &Path) -> Result<Option<Self>> {
        let path = run.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        Ok(serde_json::from_slice(&read_bounded(&path, MOST_BYTES)?).ok())
    }

    fn write(&self, run: &Path) -> Result<()> {
        let path = run.join(FILE);
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::internal(format!("cannot describe the evaluation: {e}")))?;
        write_atomic(&path, |w| writeln!(w, "{text}").map_err(|e| Error::io("write", &path, e)))
    }

    /// On the other text of that name.
    pub fn other(&self, name: &str) -> Option<f64> {
        self.also.iter().find(|o| o.name == name).map(|o| o.ce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokens::TokenOrigin;

    fn file(ids: &[u32]) -> TokenFile {
        let origin = TokenOrigin { vocab_size: 8, eot: 0, tokenizer_hash: [0; 32] };
        TokenFile::from_tokens(ids, origin, 1, 1).unwrap()
    }

    #[test]
    fn deciles_are_equal_groups_from_rare_to_frequent() {
        // Counts in training: id 1 once, 2 twice, 3 three times, 4 four times, 5 never, 6 twice.
        let train = file(&[1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 6, 6]);
        // 20 targets after the first token, which nobody predicts.
        let valid = file(&[7, 4, 4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 3, 6, 6, 2, 2, 2, 1, 1, 5]);
        let deciles = Deciles::new(&train, &valid).unwrap();
        let counts: Vec<usize> = (0..GROUPS)
            .map(|g| deciles.group.iter().filter(|x| usize::from(**x) == g).count())
            .collect();
        assert_eq!(counts, [2; GROUPS]);
        // Order: 5 | 1 1 | 2 2 2 | 6 6 | 3 3 3 3 | 4 x 8, ties of frequency (2 and 6) by id.
        assert_eq!(
            deciles.range,
            [(0, 1), (1, 2), (2, 2), (2, 2), (3, 3), (3, 3), (4, 4), (4, 4), (4, 4), (4, 4)]
        );
        // The 20th target is the 5; the 18th and 19th are the 1s; the 15th to 17th the 2s; the 13th
        // and 14th the 6s.
        assert_eq!(deciles.group[19], 0);
        assert_eq!(deciles.group[17..19], [0, 1]);
        assert_eq!(deciles.group[14..17], [1, 2, 2]);
        assert_eq!(deciles.group[12..14], [3, 3]);
        assert_eq!(deciles.group[0..2], [6, 6]);
    }

    #[test]
    fn fewer_tokens_than_groups_leave_some_empty() {
        let deciles = Deciles::new(&file(&[1, 2]), &file(&[1, 1, 2])).unwrap();
        assert_eq!(deciles.group, [4, 9]);
    }
}
