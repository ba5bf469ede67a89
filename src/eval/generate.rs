//! Text from a model, a token at a time.

use super::sampler::Sampler;
use crate::data::tokenizer::Tokenizer;
use crate::error::Result;
use crate::model::Gpt2;
use crate::ops::matmul::{Precision, matmul};
use candle_core::{DType, Tensor};
use serde::Serialize;

/// An incomplete character has at most four bytes, so at most four tokens; after more, what is
/// there is no text.
const MOST_PENDING: usize = 8;

/// How to choose tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Divides the logits before sampling; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Sample among the K likeliest tokens only.
    pub top_k: Option<usize>,
    /// Sample among the likeliest tokens that together have probability P only; after `top_k`.
    pub top_p: Option<f64>,
    /// Seed of the sampling: the same seed gives the same text.
    pub seed: u64,
    /// Tokens to add at most.
    pub max_tokens: usize,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// The model ended the text.
    EndOfText,
    /// `max_tokens` were added.
    MaxTokens,
}

/// What was generated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Generation {
    /// The continuation alone, without end-of-text.
    pub text: String,
    /// Tokens of the prompt that the model read.
    pub prompt_tokens: usize,
    /// Tokens added, end-of-text included.
    pub tokens: usize,
    /// Why it ended.
    pub stop: Stop,
}

/// Continues `prompt`, with what the tokenizer's template puts around it (an empty one starts a new
/// document, after end-of-text), and hands each piece
/// of text to `take` as soon as it is whole characters. Of a prompt longer than the context the end
/// counts; a full context slides ([`Gpt2::step`]).
pub fn generate(
    model: &Gpt2,
    tokenizer: &Tokenizer,
    prompt: &str,
    options: &GenerateOptions,
    mut take: impl FnMut(&str) -> Result<()>,
) -> Result<Generation> {
    let mut ids = tokenizer.encode_prompt(prompt)?;
    if ids.is_empty() {
        ids.push(tokenizer.eot());
    }
    let ids = &ids[ids.len().saturating_sub(model.config.n_positions)..];
    let mut sampler = Sampler::new(options.temperature, options.top_k, options.top_p, options.seed);
    let ends = tokenizer.end_ids();
    let mut stream = TextStream::after(tokenizer, if prompt.is_empty() { &[] } else { ids });
    let mut text = String::new();
    let mut emit = |piece: String| {
        text.push_str(&piece);
        if piece.is_empty() { Ok(()) } else { take(&piece) }
    };
    let (mut cache, mut hidden) = model.prefill(ids)?;
    let (mut tokens, mut stop) = (0, Stop::MaxTokens);
    while tokens < options.max_tokens {
        crate::interrupt::check()?;
        let token = sampler.sample(&logits(model, tokenizer, &hidden)?)?;
        tokens += 1;
        if ends.contains(&token) {
            stop = Stop::EndOfText;
            break;
        }
        emit(stream.push(token)?)?;
        if tokens < options.max_tokens {
            hidden = model.step(token, &mut cache)?;
        }
    }
    emit(stream.finish()?)?;
    Ok(Generation { text, prompt_tokens: ids.len(), tokens, stop })
}

/// Logits of the ids that the tokenizer knows: a padded embedding has more, which are left out, and
/// some vocabularies have gaps, whose logits are so low that they are never drawn.
fn logits(model: &Gpt2, tokenizer: &Tokenizer, hidden: &Tensor) -> Result<Vec<f32>> {
    let known = model.config.vocab_size.min(tokenizer.vocab_size() as usize);
    let all = matmul(hidden, &model.params.head().t()?, Precision::F32)?
        .squeeze(0)?
        .narrow(0, 0, known)?;
    let mut logits = all.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    for gap in tokenizer.gaps() {
        let end = known.min(gap.end as usize);
        logits[end.min(gap.start as usize)..end].fill(f32::MIN);
    }
    Ok(logits)
}

/// Turns tokens into text as they come. A token may end inside a character, and some tokenizers
/// decode a token differently after another one, so text is the difference between two decodings
/// that start a piece earlier.
struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Decoding starts here ...
    from: usize,
    /// ... and up to here the text is out already.
    done: usize,
}

impl<'a> TextStream<'a> {
    /// A stream of what follows `before`. Its last ids are decoded with what comes: some tokenizers
    /// take away the space of a first word.
    fn after(tokenizer: &'a Tokenizer, before: &[u32]) -> Self {
        let ids = before[before.len().saturating_sub(MOST_PENDING)..].to_vec();
        Self { tokenizer, from: 0, done: ids.len(), ids }
    }

    fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.pending()?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) && self.ids.len() - self.done < MOST_PENDING
        {
            return Ok(String::new());
        }
        (self.from, self.done) = (self.done, self.ids.len());
        Ok(text)
    }

    /// Whatever is left, whole or not.
    fn finish(mut self) -> Result<String> {
        let text = self.pending()?;
        self.done = self.ids.len();
        Ok(text)
    }

    fn pending(&self) -> Result<String> {
        let old = self.tokenizer.decode(&self.ids[self.from..self.done])?;
        let new = self.tokenizer.decode(&self.ids[self.from..])?;
        Ok(match new.strip_prefix(&old) {
            Some(rest) => rest.to_string(),
            None => self.tokenizer.decode(&self.ids[self.done..])?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::train_tokenizer::TrainOptions;
    use crate::model::Gpt2Config;
    use crate::progress::Silent;
    use candle_core::Device;

    const TEXT: &str = "Anna's höher 日本語 👍🏽 cats, 日本 and höhere dogs; naïve café \u{1F468}\u{200d}\u{1F469}.\n";

    fn tokenizer() -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        std::fs::write(&path, TEXT.repeat(3)).unwrap();
        // Few merges: characters of several bytes stay several tokens.
        Tokenizer::train(
            &[path],
            &TrainOptions { vocab_size: 262, ..TrainOptions::default() },
            &Silent,
        )
        .unwrap()
        .0
    }

    /// Random weights; the vocabulary is padded beyond the tokenizer's.
    fn model(positions: usize) -> Gpt2 {
        let config =
            Gpt2Config { initializer_range: 0.3, ..Gpt2Config::new(272, positions, 24, 2, 3) };
        Gpt2::scratch(config, 1, &Device::Cpu).unwrap()
    }

    fn options() -> GenerateOptions {
        GenerateOptions { temperature: 1.0, top_k: None, top_p: None, seed: 3, max_tokens: 40 }
    }

    fn run(model: &Gpt2, options: &GenerateOptions, prompt: &str) -> (Generation, Vec<String>) {
        let mut pieces = Vec::new();
        let done = generate(model, &tokenizer(), prompt, options, |piece| {
            pieces.push(piece.to_string());
            Ok(())
        });
        (done.unwrap(), pieces)
    }

    #[test]
    fn pieces_are_whole_characters_and_add_up() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(TEXT).unwrap();
        assert!(
            ids.len() > TEXT.chars().count() + 10,
            "characters must span tokens for this test to mean anything"
        );
        let mut stream = TextStream::after(&tokenizer, &[]);
        let mut all = String::new();
        for id in ids {
            let piece = stream.push(id).unwrap();
            assert!(!piece.contains(char::REPLACEMENT_CHARACTER), "{piece:?}");
            all.push_str(&piece);
        }
        assert_eq!(all + &stream.finish().unwrap(), TEXT);
    }

    #[test]
    fn bytes_that_are_no_text_come_out_as_replacements_and_do_not_hold_back_the_rest() {
        let tokenizer = tokenizer();
        let letter = tokenizer.encode("a").unwrap()[0];
        let mut stream = TextStream::after(&tokenizer, &[]);
        // A byte that is no character by itself.
        let lone = (0..256).find(|&id| tokenizer.decode(&[id]).unwrap() == "\u{FFFD}").unwrap();
        let mut pieces: Vec<String> = (0..20).map(|_| stream.push(lone).unwrap()).collect();
        assert!(pieces.iter().any(|p| !p.is_empty()), "held back for ever");
        pieces.push(stream.push(letter).unwrap());
        pieces.push(stream.finish().unwrap());
        let text = pieces.concat();
        assert!(
            text.ends_with('a') && text.chars().filter(|c| *c == '\u{FFFD}').count() == 20,
            "{text:?}"
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_text_and_another_seed_another() {
        let model = model(64);
        let (first, pieces) = run(&model, &options(), "Anna");
        assert_eq!(first.text, pieces.concat());
        assert!(
            first.tokens > 5 && (first.stop == Stop::EndOfText || first.tokens == 40),
            "{first:?}"
        );
        assert_eq!(run(&model, &options(), "Anna").0, first);
        assert_ne!(
            run(&model, &GenerateOptions { seed: 4, ..options() }, "Anna").0.text,
            first.text
        );
    }

    #[test]
    fn greedy_takes_the_likeliest_token_of_a_full_forward() {
        let (model, tokenizer) = (model(64), tokenizer());
        let mut ids = tokenizer.encode("Anna").unwrap();
        let start = ids.len();
        for _ in 0..20 {
            let hidden =
                model.forward(&ids, ids.len()).unwrap().narrow(0, ids.len() - 1, 1).unwrap();
            let z = logits(&model, &tokenizer, &hidden).unwrap();
            let best = (0..z.len()).max_by(|&a, &b| z[a].total_cmp(&z[b])).unwrap();
            ids.push(best as u32);
        }
        let want = tokenizer.decode(&ids[start..]).unwrap();
        assert!(
            !ids[start..].contains(&tokenizer.eot()),
            "choose another seed: the test is about what comes before"
        );
        for cold in [0.0, 1e-30] {
            let greedy = GenerateOptions { temperature: cold, max_tokens: 20, ..options() };
            assert_eq!(run(&model, &greedy, "Anna").0.text, want);
            // One candidate is no choice.
            let one = GenerateOptions { top_k: Some(1), max_tokens: 20, ..options() };
            assert_eq!(run(&model, &one, "Anna").0.text, want);
            let little =
                GenerateOptions { top_p: Some(1e-9), top_k: Some(5), max_tokens: 20, ..options() };
            assert_eq!(run(&model, &little, "Anna").0.text, want);
        }
    }

    /// Rows of the embedding that no token has stand for nothing, behind the last token and before.
    #[test]
    fn ids_without_a_token_are_never_drawn() {
        let mut json = tokenizer().json().clone();
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        let (last, gone) = (vocab["<|endoftext|>"].clone(), vocab["Q"].as_u64().unwrap());
        vocab.remove("Q");
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        assert!(tokenizer.gaps().iter().cloned().flatten().eq([gone as u32]));
        let model = model(8);
        let hidden = model.forward(&[1, 2], 2).unwrap().narrow(0, 1, 1).unwrap();
        let z = logits(&model, &tokenizer, &hidden).unwrap();
        assert_eq!((z.len() as u64, model.config.vocab_size), (last.as_u64().unwrap() + 1, 272));
        let mut sampler = Sampler::new(50.0, None, None, 1);
        for _ in 0..20_000 {
            assert_ne!(u64::from(sampler.sample(&z).unwrap()), gone);
        }
    }

    #[test]
    fn end_of_text_stops_and_long_texts_slide() {
        let model = model(10);
        // Over enough seeds some end by themselves: 1 of 262 tokens does.
        let ends = |seed| {
            run(
                &model,
                &GenerateOptions { seed, max_tokens: 60, temperature: 3.0, ..options() },
                "",
            )
            .0
        };
        let all: Vec<Generation> = (0..20).map(ends).collect();
        assert!(all.iter().any(|g| g.stop == Stop::EndOfText && g.tokens < 60));
        assert!(all.iter().any(|g| g.stop == Stop::MaxTokens && g.tokens == 60));
        assert!(all.iter().all(|g| !g.text.contains("<|endoftext|>") && g.prompt_tokens == 1));
        let long = run(&model, &options(), TEXT).0;
        assert!(long.prompt_tokens == 10 && long.tokens > 10, "{long:?}");
    }
}
