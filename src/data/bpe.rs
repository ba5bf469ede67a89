//! Training of a byte-level byte-pair encoding (Sennrich et al. 2016; bytes as in GPT-2).
//!
//! Why not the trainer of the `tokenizers` crate: its pair counts are 32 bits wide and wrap on a
//! few gigabytes of text, its order of equal candidates can depend on a randomly seeded hash map,
//! and it can not be interrupted. On inputs where neither matters both give the same merges, which
//! a test checks.

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::report::text;
use rayon::prelude::*;
use std::collections::{BinaryHeap, HashMap, HashSet};
use tokenizers::utils::SysRegex;

/// GPT-2's pre-tokenizer: contractions, words, numbers, punctuation (each with one leading space),
/// white space.
pub const GPT2_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Distinct words above which the rarest are forgotten, so that memory stays bounded on any input.
const MAX_WORDS: usize = 4_000_000;

/// How often each pre-token occurs.
#[derive(Default)]
pub struct WordCounts {
    counts: HashMap<Box<str>, u64>,
}

impl WordCounts {
    /// Counts the words of some texts in parallel. `special` strings are cut out first.
    pub fn add(&mut self, texts: &[String], special: &str) -> Result<()> {
        let count = |text: &String| -> Result<HashMap<Box<str>, u64>> {
            thread_local! { static REGEX: Option<SysRegex> = SysRegex::new(GPT2_PATTERN).ok(); }
            let mut counts: HashMap<Box<str>, u64> = HashMap::new();
            REGEX.with(|regex| {
                let regex = regex
                    .as_ref()
                    .ok_or_else(|| Error::internal("GPT-2's pattern does not compile"))?;
                check_words(text)?;
                for part in text.split(special) {
                    for (start, end) in regex.find_iter(part) {
                        match counts.get_mut(&part[start..end]) {
                            Some(n) => *n += 1,
                            None => drop(counts.insert(part[start..end].into(), 1)),
                        }
                    }
                }
                Ok(counts)
            })
        };
        for counted in texts.par_iter().map(count).collect::<Result<Vec<_>>>()? {
            for (word, n) in counted {
                *self.counts.entry(word).or_default() += n;
            }
        }
        // Depends on the texts and their grouping only, so it is as deterministic as its input.
        let mut floor = 1;
        while self.counts.len() > MAX_WORDS {
            self.counts.retain(|_, n| *n > floor);
            floor *= 2;
        }
        Ok(())
    }

    /// Number of distinct words.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Whether nothing has been counted.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}

/// Longest run that is still a word: finding it takes tens of times its bytes of memory, merging it
/// a hundred times.
const MOST_WORD_BYTES: usize = 4 << 20;

/// Errs for a text with a run of letters, digits, other signs or white space that is no word any
/// more. Looks only into texts that are long enough, which is what could not be cut into pieces.
pub(super) fn check_words(text: &str) -> Result<()> {
    if text.len() <= MOST_WORD_BYTES {
        return Ok(());
    }
    let class = |c: char| (c.is_whitespace(), c.is_alphabetic(), c.is_numeric());
    let (mut start, mut current) = (0, None);
    for (at, c) in text.char_indices() {
        if current != Some(class(c)) {
            (start, current) = (at, Some(class(c)));
        } else if at - start >= MOST_WORD_BYTES {
            let begin: String = text[start..].chars().take(40).collect();
            return Err(Error::data(format!(
                "a word of more than {}, which begins with {begin:?}: expected text; remove it from \
                 the input",
                text::bytes(MOST_WORD_BYTES as u64)
            )));
        }
    }
    Ok(())
}

/// A trained model: tokens by id (the 256 bytes first, in GPT-2's order) and merges by rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bpe {
    /// Each token in GPT-2's printable spelling; the id is the index.
    pub tokens: Vec<String>,
    /// Pairs of spellings, most important first.
    pub merges: Vec<(String, String)>,
}

/// GPT-2's printable stand-in for every byte: itself if printable Latin-1, else the next code point
/// from 256 on.
pub fn byte_spelling() -> [char; 256] {
    let mut next = 256u32;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or('?') // 256..324: always a character
        }
    })
}

type Pair = (u32, u32);

/// A candidate in the queue: highest count first, then the lowest pair. Its count may be out of
/// date.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    count: i64,
    pair: std::cmp::Reverse<Pair>,
}

struct Trainer {
    words: Vec<Vec<u32>>,
    frequency: Vec<i64>,
    counts: HashMap<Pair, i64>,
    /// Words that contained the pair when it appeared; they may have lost it since.
    places: HashMap<Pair, Vec<u32>>,
    queue: BinaryHeap<Candidate>,
}

impl Trainer {
    fn new(counts: WordCounts, id_of_byte: &[u32; 256]) -> Self {
        let mut list: Vec<(Box<str>, u64)> = counts.counts.into_iter().collect();
        list.sort_unstable();
        let mut trainer = Self {
            words: Vec::with_capacity(list.len()),
            frequency: Vec::with_capacity(list.len()),
            counts: HashMap::new(),
            places: HashMap::new(),
            queue: BinaryHeap::new(),
        };
        for (index, (word, n)) in list.into_iter().enumerate() {
            let ids: Vec<u32> = word.bytes().map(|b| id_of_byte[usize::from(b)]).collect();
            for pair in ids.windows(2).map(|w| (w[0], w[1])) {
                *trainer.counts.entry(pair).or_default() += n as i64;
                let places = trainer.places.entry(pair).or_default();
                if places.last() != Some(&(index as u32)) {
                    places.push(index as u32);
                }
            }
            trainer.words.push(ids);
            trainer.frequency.push(n as i64);
        }
        let candidates = trainer
            .counts
            .iter()
            .map(|(pair, count)| Candidate { count: *count, pair: std::cmp::Reverse(*pair) });
        trainer.queue = candidates.collect();
        trainer
    }

    /// The most frequent pair that occurs at least `min` times.
    fn best(&mut self, min: i64) -> Option<Pair> {
        while let Some(Candidate { count, pair }) = self.queue.pop() {
            let current = self.counts.get(&pair.0).copied().unwrap_or(0);
            if current == count && count >= min {
                return Some(pair.0);
            }
            if current >= min && current < count {
                self.queue.push(Candidate { count: current, pair });
            }
        }
        None
    }

    /// Replaces `pair` by `id` everywhere.
    fn merge(&mut self, pair: Pair, id: u32) {
        let mut places = self.places.remove(&pair).unwrap_or_default();
        places.sort_unstable();
        places.dedup();
        let mut grown: HashSet<Pair> = HashSet::new();
        for place in places {
            let word = &mut self.words[place as usize];
            if !word.windows(2).any(|w| (w[0], w[1]) == pair) {
                continue;
            }
            let n = self.frequency[place as usize];
            for old in word.windows(2) {
                *self.counts.entry((old[0], old[1])).or_default() -= n;
            }
            let mut to = 0;
            let mut from = 0;
            while from < word.len() {
                let hit = from + 1 < word.len() && (word[from], word[from + 1]) == pair;
                word[to] = if hit { id } else { word[from] };
                from += if hit { 2 } else { 1 };
                to += 1;
            }
            word.truncate(to);
            for new in word.windows(2) {
                let new = (new[0], new[1]);
                *self.counts.entry(new).or_default() += n;
                if new.0 == id || new.1 == id {
                    let places = self.places.entry(new).or_default();
                    if places.last() != Some(&place) {
                        places.push(place);
                    }
                    grown.insert(new);
                }
            }
        }
        self.counts.remove(&pair);
        for pair in grown {
            let count = self.counts.get(&pair).copied().unwrap_or(0);
            self.queue.push(Candidate { count, pair: std::cmp::Reverse(pair) });
        }
    }
}

/// Learns up to `size` tokens (the 256 bytes included); fewer when no pair occurs `min_frequency`
/// times any more.
pub fn train(
    counts: WordCounts,
    size: usize,
    min_frequency: u64,
    progress: &dyn Progress,
) -> Result<Bpe> {
    let spelling = byte_spelling();
    let mut alphabet: Vec<u8> = (0..=255).collect();
    alphabet.sort_unstable_by_key(|b| spelling[usize::from(*b)]);
    let mut id_of_byte = [0u32; 256];
    alphabet.iter().enumerate().for_each(|(id, b)| id_of_byte[usize::from(*b)] = id as u32);
    let mut tokens: Vec<String> =
        alphabet.iter().map(|b| spelling[usize::from(*b)].to_string()).collect();
    let mut ids: HashMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
    let mut merges: Vec<Pair> = Vec::new();
    let mut merged: HashSet<Pair> = HashSet::new();

    let mut trainer = Trainer::new(counts, &id_of_byte);
    progress.start("Learning merges", Some(size.saturating_sub(tokens.len()) as u64), "merges");
    while tokens.len() < size {
        if merges.len().is_multiple_of(64) {
            crate::interrupt::check()?;
        }
        let Some(pair) = trainer.best(min_frequency.max(1) as i64) else { break };
        let name = format!("{}{}", tokens[pair.0 as usize], tokens[pair.1 as usize]);
        // The same string can come from two pairs (a+bc, ab+c): two merges, one token.
        let id = ids.get(&name).copied().unwrap_or_else(|| {
            tokens.push(name.clone());
            ids.insert(name, tokens.len() as u32 - 1);
            tokens.len() as u32 - 1
        });
        // Such a shared token can bring back a pair that is merged already: its rank stays.
        if merged.insert(pair) {
            merges.push(pair);
            progress.advance(1);
        }
        trainer.merge(pair, id);
    }
    progress.finish();
    let name = |id: u32| tokens[id as usize].clone();
    let merges = merges.into_iter().map(|(a, b)| (name(a), name(b))).collect();
    Ok(Bpe { tokens, merges })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    fn counted(text: &str) -> WordCounts {
        let mut counts = WordCounts::default();
        counts.add(&[text.to_string()], "<|endoftext|>").unwrap();
        counts
    }

    #[test]
    fn bytes_are_spelled_as_in_gpt2() {
        let spelling = byte_spelling();
        assert_eq!(
            (spelling[b' ' as usize], spelling[b'\n' as usize], spelling[b'!' as usize]),
            ('Ġ', 'Ċ', '!')
        );
        assert_eq!(spelling.iter().collect::<HashSet<_>>().len(), 256);
    }

    #[test]
    fn the_worked_example_of_the_paper() {
        // Sennrich et al. 2016, algorithm 1: low 5, lower 2, newest 6, widest 3; the first merges
        // are e+s, es+t, l+o.
        let words = [("low", 5), ("lower", 2), ("newest", 6), ("widest", 3)];
        let counts = WordCounts { counts: words.iter().map(|(w, n)| ((*w).into(), *n)).collect() };
        let bpe = train(counts, 256 + 3, 1, &Silent).unwrap();
        let merges: Vec<String> = bpe.merges.iter().map(|(a, b)| format!("{a}+{b}")).collect();
        assert_eq!(merges, ["e+s", "es+t", "l+o"]);
    }

    #[test]
    fn merges_equal_those_of_the_tokenizers_crate() {
        use tokenizers::models::bpe::{BPE, BpeTrainer};
        use tokenizers::pre_tokenizers::byte_level::ByteLevel;
        let text: String = (0..60)
            .map(|i| {
                format!(
                    "The {}th cat's höhle wasn't  warm;\n\tshe slept {} times, abcabc bcabca.",
                    i % 7,
                    i * 37
                )
            })
            .collect();
        let ours = train(counted(&text), 400, 2, &Silent).unwrap();

        let alphabet = ByteLevel::alphabet().into_iter().collect();
        let trainer = BpeTrainer::builder().vocab_size(400).min_frequency(2).show_progress(false);
        let trainer = trainer.initial_alphabet(alphabet).build();
        let mut oracle = tokenizers::TokenizerImpl::<
            BPE,
            tokenizers::NormalizerWrapper,
            ByteLevel,
            ByteLevel,
            ByteLevel,
        >::new(BPE::default());
        oracle.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
        oracle.train(&mut trainer.clone(), std::iter::once(text.as_str())).unwrap();
        let model: serde_json::Value = serde_json::to_value(oracle.get_model()).unwrap();
        let theirs: Vec<(String, String)> =
            serde_json::from_value(model["merges"].clone()).unwrap();
        assert!(ours.merges.len() > 60, "{}", ours.merges.len());
        assert_eq!(ours.merges, theirs);
    }

    #[test]
    fn too_little_text_gives_a_smaller_vocabulary() {
        let bpe = train(counted("ab ab"), 1000, 2, &Silent).unwrap();
        assert_eq!(bpe.merges, [("a".to_string(), "b".to_string())]);
        assert_eq!(train(counted(""), 1000, 2, &Silent).unwrap().tokens.len(), 256);
    }
}
