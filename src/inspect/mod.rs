//! What selection makes of a text: every token's score, the thresholds at several confidence
//! levels, what they keep.
//!
//! Scores and thresholds are those of training ([`crate::select`]): a token's score is that of the
//! position that predicts it, so the text's first token has none.

mod page;

pub use page::page;

use crate::config::{Pool, Score, Tail};
use crate::data::loader::Batch;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::loss::head::{RowStats, ScanOptions, scan};
use crate::model::Gpt2;
use crate::select::{Ranking, ScoreContext};
use crate::teacher::Teacher;
use serde::Serialize;

/// What to look at, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// What ranks the tokens.
    pub score: Score,
    /// Temperature of the divergences.
    pub temperature: f32,
    /// Confidence levels, each in [0, 1).
    pub alphas: Vec<f64>,
    /// The level whose kept tokens are marked; one of `alphas`.
    pub mark: f64,
    /// The tokens that share a threshold: a window of `context` tokens, or (`micro-batch`) the
    /// whole text.
    pub pool: Pool,
    /// Which end is kept.
    pub tail: Tail,
    /// Tokens per window.
    pub context: usize,
    /// Tokens of the text that are looked at, from the first.
    pub max_tokens: usize,
}

/// One token of the text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its text; bytes that are no text by themselves as `\xNN`.
    pub text: String,
    /// The text that it makes only together with its neighbours, where a character's bytes are
    /// spread over tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joined: Option<Joined>,
    /// Figures of its prediction; None for the first token.
    pub figures: Option<Figures>,
}

/// A token's part in a text that several tokens make together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Joined {
    /// The whole text of these tokens.
    pub text: String,
    /// Place of this token among them, from 0.
    pub at: usize,
    /// How many they are.
    pub of: usize,
}

impl Token {
    /// What a reader sees at this token, so that the tokens' texts join to the whole: its text, or
    /// the joined text at the first of the tokens that make it, and nothing at the others.
    pub fn shown(&self) -> &str {
        match &self.joined {
            None => &self.text,
            Some(joined) if joined.at == 0 => &joined.text,
            Some(_) => "",
        }
    }
}

/// Figures of a token's prediction, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// By the chosen score.
    pub score: f32,
    /// Whether it is kept at the marked level.
    pub kept: bool,
    /// -ln p(token) of the model.
    pub nll: f32,
    /// Entropy of the model's prediction.
    pub entropy: f32,
    /// -ln q(token) of the teacher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_nll: Option<f32>,
    /// KL(teacher || model).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f32>,
}

/// What one confidence level keeps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cut {
    /// Confidence level.
    pub alpha: f64,
    /// Value at risk: the threshold, averaged over pools.
    pub var: f64,
    /// Conditional value at risk: mean score of the kept tokens.
    pub cvar: f64,
    /// Kept tokens.
    pub kept: usize,
    /// Mean cross-entropy of these.
    pub kept_ce: f64,
    /// Mean cross-entropy of the others; None if there are none.
    pub dropped_ce: Option<f64>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The model, as the user named it.
    pub model: String,
    /// The teacher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// The score.
    pub score: Score,
    /// The level whose kept tokens are marked.
    pub mark: f64,
    /// Tokens of the whole text, of which `tokens` may be the first.
    pub tokens_of_text: usize,
    /// Mean score.
    pub score_mean: f64,
    /// Mean cross-entropy of the model.
    pub ce: f64,
    /// By alpha, as asked.
    pub levels: Vec<Cut>,
    /// In order.
    pub tokens: Vec<Token>,
}

/// Scores `text`. `names` are the model's and the teacher's, for people.
pub fn inspect(
    model: &Gpt2,
    teacher: Option<&Teacher>,
    tokenizer: &Tokenizer,
    text: &str,
    names: (&str, Option<&str>),
    options: &Options,
) -> Result<Inspection> {
    if options.pool == Pool::Carried {
        return Err(Error::usage(
            "a carried threshold needs steps before this one; choose --pool sequence or micro-batch",
        ));
    }
    if options.score.needs_teacher() && teacher.is_none() {
        return Err(Error::usage(format!(
            "the score \"{}\" compares with a teacher, but there is none; add --teacher NAME, or choose entropy or loss",
            options.score
        )));
    }
    let longest =
        teacher.map_or(usize::MAX, |t| t.model().config.n_positions).min(model.config.n_positions);
    if options.context == 0 || options.context > longest {
        return Err(Error::usage(format!(
            "--context must lie between 1 and {longest}, found {}",
            options.context
        )));
    }
    let mut ids = tokenizer.encode(text)?;
    let tokens_of_text = ids.len();
    ids.truncate(options.max_tokens);
    if ids.len() < 2 {
        return Err(Error::data(format!("the text has {} tokens; expected at least 2", ids.len())));
    }
    let batch = windows(&ids, options.context);
    let stats = statistics(model, teacher, &batch, options)?;
    let ranking =
        Ranking::new(options.score, options.pool, &stats, &batch, ScoreContext::new(0, 0))?;
    let scores = &ranking.scores;
    let n = ids.len() - 1;
    let selected = |alpha: f64| ranking.cut(alpha, options.tail);
    let nll = |i: usize| f64::from(stats[i].student.nll);
    let all: f64 = (0..n).map(nll).sum();
    let level = |&alpha: &f64| {
        let s = selected(alpha);
        let (kept, sum) = (s.rows.len(), s.rows.iter().map(|&r| nll(r as usize)).sum::<f64>());
        Cut {
            alpha,
            var: s.var_sum / s.pools as f64,
            cvar: s.score_sum / kept as f64,
            kept,
            kept_ce: sum / kept as f64,
            dropped_ce: (kept < n).then(|| (all - sum) / (n - kept) as f64),
        }
    };
    let levels = options.alphas.iter().map(level).collect();
    let mut kept = vec![false; batch.valid.len()];
    selected(options.mark).rows.iter().for_each(|&r| kept[r as usize] = true);
    let figures = |i: usize| Figures {
        score: scores[i],
        kept: kept[i],
        nll: stats[i].student.nll,
        entropy: stats[i].student.entropy,
        teacher_nll: teacher.map(|_| stats[i].teacher.nll),
        kl: teacher.map(|_| stats[i].kl),
    };
    let tokens = tokens(tokenizer, &ids, figures)?;
    Ok(Inspection {
        model: names.0.into(),
        teacher: names.1.map(Into::into),
        score: options.score,
        mark: options.mark,
        tokens_of_text,
        score_mean: scores[..n].iter().map(|s| f64::from(*s)).sum::<f64>() / n as f64,
        ce: all / n as f64,
        levels,
        tokens,
    })
}

fn tokens(
    tokenizer: &Tokenizer,
    ids: &[u32],
    figures: impl Fn(usize) -> Figures,
) -> Result<Vec<Token>> {
    let token = |(i, (&id, joined)): (usize, (&u32, Option<Joined>))| {
        let text = tokenizer.text_of(id)?;
        Ok(Token { id, text, joined, figures: i.checked_sub(1).map(&figures) })
    };
    ids.iter().zip(joined(tokenizer, ids)?).enumerate().map(token).collect()
}

/// Tokens that may make one text together: a character has at most four bytes, and each token may
/// end one and begin the next.
const MOST_JOINED: usize = 16;

/// Of every token, its part in a text whose characters are spread over tokens.
fn joined(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Vec<Option<Joined>>> {
    let is_broken = |text: &String| text.contains(char::REPLACEMENT_CHARACTER);
    let mut parts: Vec<Option<Joined>> = vec![None; ids.len()];
    let mut i = 0;
    while i < ids.len() {
        let most = MOST_JOINED.min(ids.len() - i);
        let mut of = 1;
        let mut text = tokenizer.decode(&ids[i..i + 1])?;
        while is_broken(&text) && of < most {
            of += 1;
            text = tokenizer.decode(&ids[i..i + of])?;
        }
        if of == 1 || is_broken(&text) {
            i += 1; // whole by itself, or bytes that make no text
            continue;
        }
        for at in 0..of {
            parts[i + at] = Some(Joined { text: text.clone(), at, of });
        }
        i += of;
    }
    Ok(parts)
}

/// The text in windows side by side; position i predicts token i + 1, and what the last window
/// lacks does not count.
fn windows(ids: &[u32], context: usize) -> Batch {
    let n = ids.len() - 1;
    let context = context.min(n);
    let rows = n.div_ceil(context);
    let padded =
        |from: &[u32]| (0..rows * context).map(|i| from.get(i).copied().unwrap_or(0)).collect();
    Batch {
        sequences: rows,
        context,
        inputs: padded(&ids[..n]),
        targets: padded(&ids[1..]),
        valid: (0..rows * context).map(|i| i < n).collect(),
        sequence_ids: (0..rows as u64).collect(),
    }
}

/// A window at a time, so that the logits in memory are one window's.
fn statistics(
    model: &Gpt2,
    teacher: Option<&Teacher>,
    batch: &Batch,
    options: &Options,
) -> Result<Vec<RowStats>> {
    let mut stats = Vec::with_capacity(batch.inputs.len());
    for row in 0..batch.sequences {
        crate::interrupt::check()?;
        let window = batch.slice(row..row + 1);
        let hidden = model.forward(&window.inputs, window.context)?;
        let logits = model.logits(hidden);
        let signal = teacher.map(|t| t.signal(&window.inputs, window.context)).transpose()?;
        let tau = if teacher.is_some() { options.temperature } else { 1.0 };
        let measured = ScanOptions { reverse_kl: options.score.needs_reverse_kl(), ..tau.into() };
        stats.extend(scan(&logits, signal.as_ref(), &window.targets, measured)?);
    }
    Ok(stats)
}

/// A histogram of `values` in `bins` equal bins: lower end of the first, width, counts.
pub fn histogram(values: &[f32], bins: usize) -> (f64, f64, Vec<usize>) {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (low, high) = (f64::from(low), f64::from(high));
    let width = if high > low { (high - low) / bins as f64 } else { 1.0 };
    let mut counts = vec![0; bins];
    for value in values {
        let bin = ((f64::from(*value) - low) / width) as usize;
        counts[bin.min(bins - 1)] += 1;
    }
    (low, width, counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::train_tokenizer::TrainOptions;
    use crate::model::Gpt2Config;
    use crate::progress::Silent;
    use crate::select::kept_of;
    use candle_core::Device;

    const TEXT: &str =
        "one fine day, two fine days; three naïve geese & <four> \"fine\" days ✓ and a day";

    fn tokenizer() -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.txt");
        std::fs::write(&path, "one fine day two fine days three fine geese ".repeat(30)).unwrap();
        let options = TrainOptions { vocab_size: 270, ..TrainOptions::default() };
        Tokenizer::train(&[path], &options, &Silent).unwrap().0
    }

    fn model(seed: u64) -> Gpt2 {
        let config = Gpt2Config { initializer_range: 0.3, ..Gpt2Config::new(280, 16, 12, 2, 2) };
        Gpt2::scratch(config, seed, &Device::Cpu).unwrap()
    }

    pub(super) fn options(score: Score) -> Options {
        Options {
            score,
            temperature: 1.0,
            alphas: vec![0.0, 0.3, 0.8],
            mark: 0.3,
            pool: Pool::MicroBatch,
            tail: Tail::High,
            context: 16,
            max_tokens: 1000,
        }
    }

    pub(super) fn found(score: Score, teacher: bool) -> Inspection {
        let student = model(1);
        let teacher = teacher.then(|| Teacher::new(model(2), &student.config).unwrap());
        inspect(
            &student,
            teacher.as_ref(),
            &tokenizer(),
            TEXT,
            ("m", teacher.as_ref().map(|_| "t")),
            &options(score),
        )
        .unwrap()
    }

    #[test]
    fn levels_keep_what_they_say_and_their_figures_are_those_of_the_tokens() {
        for (score, teacher) in [
            (Score::Entropy, false),
            (Score::Loss, true),
            (Score::Kl, true),
            (Score::ReverseKl, true),
        ] {
            let found = found(score, teacher);
            let n = found.tokens.len() - 1;
            assert_eq!(found.tokens[0].figures, None);
            let figures: Vec<Figures> = found.tokens.iter().filter_map(|t| t.figures).collect();
            assert_eq!(figures.len(), n);
            for level in &found.levels {
                assert_eq!(level.kept, kept_of(level.alpha, n));
                let mut sorted: Vec<f32> = figures.iter().map(|f| f.score).collect();
                sorted.sort_by(|a, b| b.total_cmp(a));
                assert_eq!(level.var, f64::from(sorted[level.kept - 1]), "{score}");
                let cvar = sorted[..level.kept].iter().map(|s| f64::from(*s)).sum::<f64>()
                    / level.kept as f64;
                assert!((level.cvar - cvar).abs() < 1e-9 && level.cvar >= level.var);
                let dropped = level.dropped_ce.unwrap_or(0.0) * (n - level.kept) as f64;
                assert!(
                    (level.kept_ce * level.kept as f64 + dropped - found.ce * n as f64).abs()
                        < 1e-6
                );
            }
            let marked = figures.iter().filter(|f| f.kept).count();
            assert_eq!(marked, kept_of(0.3, n));
            assert!(
                figures
                    .iter()
                    .all(|f| f.kl.is_some() == teacher && f.teacher_nll.is_some() == teacher)
            );
        }
    }

    #[test]
    fn windows_are_scored_as_if_each_were_alone() {
        let (student, tokenizer) = (model(1), tokenizer());
        let ids = tokenizer.encode(TEXT).unwrap();
        let all = found(Score::Loss, false);
        // The second window begins with token 16 as its first input.
        let hidden = student.forward(&ids[16..20], 4).unwrap();
        let logits = student.logits(hidden);
        let alone = scan(&logits, None, &ids[17..21], 1.0).unwrap();
        for (i, s) in alone.iter().enumerate() {
            assert!((all.tokens[17 + i].figures.unwrap().nll - s.student.nll).abs() < 1e-5);
        }
    }

    #[test]
    fn a_character_over_several_tokens_is_whole() {
        let found = found(Score::Entropy, false);
        let shown: String = found.tokens.iter().map(Token::shown).collect();
        assert_eq!(shown, TEXT);
        let joined: Vec<&Joined> = found.tokens.iter().filter_map(|t| t.joined.as_ref()).collect();
        let of = |text: &str| {
            joined.iter().filter(|j| j.text == text).map(|j| (j.at, j.of)).collect::<Vec<_>>()
        };
        assert_eq!(of("ï"), [(0, 2), (1, 2)]);
        assert_eq!(of("✓"), [(0, 3), (1, 3), (2, 3)]);
        assert_eq!(joined.len(), 5);
        // A text that ends inside of a character: its bytes are all that can be shown.
        let tokenizer = tokenizer();
        let ids = tokenizer.encode("✓ ✓").unwrap();
        let cut = super::joined(&tokenizer, &ids[..ids.len() - 1]).unwrap();
        assert!(cut[..3].iter().all(Option::is_some) && cut[3..].iter().all(Option::is_none));
    }

    #[test]
    fn texts_of_tokens_join_to_the_text_and_broken_ones_show_their_bytes() {
        let found = found(Score::Entropy, false);
        let joined: String = found.tokens.iter().map(|t| t.text.as_str()).collect();
        assert_eq!(joined, TEXT.replace('ï', "\\xC3\\xAF").replace('✓', "\\xE2\\x9C\\x93"));
    }

    #[test]
    fn what_cannot_be_is_said() {
        let (student, tokenizer) = (model(1), tokenizer());
        let message = |text: &str, options: &Options| {
            inspect(&student, None, &tokenizer, text, ("m", None), options).unwrap_err().to_string()
        };
        assert!(message(TEXT, &options(Score::Kl)).contains("--teacher"));
        assert!(message("", &options(Score::Loss)).contains("0 tokens"));
        assert!(
            message(TEXT, &Options { context: 17, ..options(Score::Loss) })
                .contains("between 1 and 16")
        );
        assert!(
            message(TEXT, &Options { pool: Pool::Carried, ..options(Score::Loss) })
                .contains("carried")
        );
    }

    #[test]
    fn a_histogram_counts_every_value_once() {
        let (low, width, counts) = histogram(&[0.0, 1.0, 1.0, 2.0, 4.0], 4);
        assert_eq!((low, width, counts), (0.0, 1.0, vec![1, 2, 1, 1]));
        assert_eq!(histogram(&[3.0; 5], 3).2, [5, 0, 0]);
    }
}
