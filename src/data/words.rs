//! The words of a tokenizer: the pieces of a text that its model encodes one by one, each without a
//! look at the others. Finding them here, and not in the `tokenizers` crate, lets an encoder
//! remember their ids.
//!
//! Nothing is assumed of a pattern: a word goes to the model as the crate would give it. Two
//! schemes are known, and everything else is encoded the ordinary way:
//!
//! * **Byte-level**: patterns (and digits) part the text, and bytes are spelt by GPT-2's letters.
//!   Llama 3, Qwen, SmolLM, DeepSeek and GPT-2 itself.
//! * **Marks**: `▁` stands for a space, and the model merges over the whole text (sentencepiece;
//!   Llama 2, Gemma). No merge goes from a character to a `▁` behind it unless a token holds that
//!   pair, so a text may be parted there.

use super::bpe::{GPT2_PATTERN, byte_spelling, check_words};
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::HashSet;
use tokenizers::normalizers::NFC;
use tokenizers::utils::SysRegex;
use tokenizers::{NormalizedString, Normalizer};

/// What sentencepiece writes for a space.
const MARK: char = '▁';

/// A piece of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// An added token.
    Token(u32),
    /// A word, as it stands in the text after its normalizer.
    Word(&'a str),
}

/// How a tokenizer finds its words.
pub(super) struct Words {
    /// Added tokens that are looked for in the text as it came, ...
    added: Added,
    /// ... and in what lies between them, after the normalizer.
    added_later: Added,
    scheme: Scheme,
}

enum Scheme {
    Bytes { nfc: bool, steps: Vec<Step>, spelling: Box<[char; 256]> },
    Marks { prepend: bool, stuck: HashSet<char> },
}

/// One of several ways of parting, each of which parts what the one before left.
enum Step {
    /// Matches are pieces; so is what lies between them, unless it is dropped.
    Pattern { pattern: SysRegex, keeps_rest: bool },
    /// Digits by themselves, one by one or as they stand together.
    Digits { single: bool },
}

impl Words {
    /// The words of a tokenizer in its JSON; None where they cannot be told.
    pub fn of(json: &Value) -> Result<Option<Self>> {
        let model = &json["model"];
        let normalizer = listed(&json["normalizer"], "normalizers");
        let before = listed(&json["pre_tokenizer"], "pretokenizers");
        if model["type"] != "BPE" || !json["model"]["dropout"].is_null() {
            return Ok(None);
        }
        let scheme = match byte_level(&normalizer, &before)? {
            Some(scheme) => scheme,
            None => match marks(&normalizer, &before, model) {
                Some(scheme) => scheme,
                None => return Ok(None),
            },
        };
        let mut added = [Vec::new(), Vec::new()];
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let (Some(text), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) else {
                return Ok(None);
            };
            let plain = ["lstrip", "rstrip", "single_word"].iter().all(|k| token[*k] == false);
            let later = token["normalized"] == true;
            // Such a token is looked for in its own normal form.
            if !plain || later && !normalizer.is_empty() && !text.is_ascii() {
                return Ok(None);
            }
            added[usize::from(later)].push((text, id as u32));
        }
        if matches!(scheme, Scheme::Marks { .. }) && !added[1].is_empty() {
            return Ok(None);
        }
        let [added, added_later] = added.map(Added::new);
        Ok(Some(Self { added, added_later, scheme }))
    }

    /// Hands over the pieces of `text`, in order.
    pub fn each(&self, text: &str, mut take: impl FnMut(Piece) -> Result<()>) -> Result<()> {
        if matches!(self.scheme, Scheme::Bytes { .. }) {
            check_words(text)?;
        }
        self.added.part(text, &mut take, &mut |section, take| {
            let section = self.normal(section)?;
            self.added_later.part(&section, take, &mut |section, take| self.part(section, take))
        })
    }

    /// A word in the letters that the model reads.
    pub fn spelt<'a>(&self, word: &'a str) -> Cow<'a, str> {
        match &self.scheme {
            Scheme::Bytes { spelling, .. } => {
                Cow::Owned(word.bytes().map(|b| spelling[usize::from(b)]).collect())
            }
            Scheme::Marks { .. } => Cow::Borrowed(word),
        }
    }

    /// A section between added tokens, after the normalizer.
    fn normal<'a>(&self, text: &'a str) -> Result<Cow<'a, str>> {
        Ok(match &self.scheme {
            Scheme::Bytes { nfc: false, .. } => Cow::Borrowed(text),
            Scheme::Bytes { nfc: true, .. } => nfc(text)?,
            Scheme::Marks { prepend, .. } => {
                let mut marked = String::with_capacity(text.len() + text.len() / 2);
                marked.extend(prepend.then_some(MARK));
                marked.extend(text.chars().map(|c| if c == ' ' { MARK } else { c }));
                Cow::Owned(marked)
            }
        })
    }

    fn part(&self, text: &str, take: &mut Take) -> Result<()> {
        match &self.scheme {
            Scheme::Bytes { steps, .. } => by_steps(steps, text, take),
            Scheme::Marks { stuck, .. } => {
                let (mut start, mut before) = (0, MARK);
                for (at, c) in text.char_indices() {
                    if c == MARK && before != MARK && !stuck.contains(&before) {
                        take(Piece::Word(&text[start..at]))?;
                        start = at;
                    }
                    before = c;
                }
                take(Piece::Word(&text[start..]))
            }
        }
    }
}

type Take<'t> = dyn FnMut(Piece) -> Result<()> + 't;

fn by_steps(steps: &[Step], text: &str, take: &mut Take) -> Result<()> {
    let Some((step, rest)) = steps.split_first() else {
        return if text.is_empty() { Ok(()) } else { take(Piece::Word(text)) };
    };
    match step {
        Step::Pattern { pattern, keeps_rest } => {
            let mut done = 0;
            for (start, end) in pattern.find_iter(text) {
                if *keeps_rest && done < start {
                    by_steps(rest, &text[done..start], take)?;
                }
                by_steps(rest, &text[start..end], take)?;
                done = end;
            }
            if *keeps_rest { by_steps(rest, &text[done..], take) } else { Ok(()) }
        }
        Step::Digits { single } => {
            let (mut start, mut before) = (0, None);
            for (at, c) in text.char_indices() {
                let digit = c.is_numeric();
                if before.is_some_and(|before| digit != before || digit && *single) {
                    by_steps(rest, &text[start..at], take)?;
                    start = at;
                }
                before = Some(digit);
            }
            by_steps(rest, &text[start..], take)
        }
    }
}

/// The steps of a sequence, or the only one; none for null.
fn listed<'a>(step: &'a Value, name: &str) -> Vec<&'a Value> {
    match step {
        Value::Null => Vec::new(),
        step if step["type"] == "Sequence" => {
            step[name].as_array().into_iter().flatten().flat_map(|s| listed(s, name)).collect()
        }
        step => vec![step],
    }
}

fn byte_level(normalizer: &[&Value], before: &[&Value]) -> Result<Option<Scheme>> {
    let nfc = match normalizer {
        [] => false,
        [only] if only["type"] == "NFC" => true,
        _ => return Ok(None),
    };
    let Some((last, first)) = before.split_last().filter(|(last, _)| {
        last["type"] == "ByteLevel" && last["add_prefix_space"] == json!(false)
    }) else {
        return Ok(None);
    };
    let pattern = |text: &str, keeps_rest| {
        let failed = |e| Error::data(format!("tokenizer: its pattern {text:?}: {e}"));
        Ok::<_, Error>(Step::Pattern { pattern: SysRegex::new(text).map_err(failed)?, keeps_rest })
    };
    let mut steps = Vec::new();
    for step in first {
        let (kind, text) = (step["type"].as_str(), step["pattern"]["Regex"].as_str());
        steps.push(match (kind, text, step["behavior"].as_str(), step["invert"].as_bool()) {
            (Some("Split"), Some(text), Some("Isolated"), Some(false)) => pattern(text, true)?,
            (Some("Split"), Some(text), Some("Removed"), Some(true)) => pattern(text, false)?,
            (Some("Digits"), ..) => Step::Digits { single: step["individual_digits"] == true },
            _ => return Ok(None),
        });
    }
    if last["use_regex"] == true {
        steps.push(pattern(GPT2_PATTERN, true)?);
    }
    Ok(Some(Scheme::Bytes { nfc, steps, spelling: Box::new(byte_spelling()) }))
}

fn marks(normalizer: &[&Value], before: &[&Value], model: &Value) -> Option<Scheme> {
    let space = json!({"String": " "});
    let replaces = |step: &Value| {
        step["type"] == "Replace" && step["pattern"] == space && step["content"] == "▁"
    };
    let prepend = match normalizer {
        [only] if replaces(only) => false,
        [first, second] if first["type"] == "Prepend" && first["prepend"] == "▁" => {
            replaces(second).then_some(true)?
        }
        _ => return None,
    };
    // Gemma parts at spaces, of which none is left.
    let idle = |step: &&Value| step["pattern"] == space && step["invert"] == json!(false);
    let silent = |key: &str| [Value::Null, json!(""), json!(false)].contains(&model[key]);
    if !before.iter().all(idle)
        || !["ignore_merges", "continuing_subword_prefix", "end_of_word_suffix"]
            .into_iter()
            .all(silent)
    {
        return None;
    }
    let vocab = model["vocab"].as_object()?;
    if !vocab.contains_key("▁") {
        return None;
    }
    let mut stuck = HashSet::new();
    for token in vocab.keys() {
        for (at, _) in token.match_indices(MARK) {
            match token[..at].chars().next_back() {
                // The end of a byte's token, behind which any character may stand in the text.
                Some('>') if token[..at].contains("<0x") => return None,
                Some(MARK) | None => {}
                Some(before) => drop(stuck.insert(before)),
            }
        }
    }
    Some(Scheme::Marks { prepend, stuck })
}

/// The text in Unicode's form C. ASCII characters never change, and nothing before one composes with
/// it, so only runs of others, with the character before them, are looked at.
fn nfc(text: &str) -> Result<Cow<'_, str>> {
    let bytes = text.as_bytes();
    let next = |from: usize, ascii: bool| {
        bytes[from..].iter().position(|b| b.is_ascii() == ascii).map(|at| from + at)
    };
    let (mut out, mut copied, mut at) = (String::new(), 0, 0);
    while let Some(first) = next(at, false) {
        let start = first.saturating_sub(1).max(at);
        let end = next(first, true).unwrap_or(bytes.len());
        let mut run = NormalizedString::from(&text[start..end]);
        NFC.normalize(&mut run).map_err(|e| Error::data(format!("tokenizer: {e}")))?;
        if run.get() != &text[start..end] {
            out.push_str(&text[copied..start]);
            out.push_str(run.get());
            copied = end;
        }
        at = end;
    }
    if copied == 0 && out.is_empty() {
        return Ok(Cow::Borrowed(text));
    }
    out.push_str(&text[copied..]);
    Ok(Cow::Owned(out))
}

/// Added tokens by their first byte, longer ones first.
struct Added {
    by_first: Vec<Vec<(Box<str>, u32)>>,
}

impl Added {
    fn new(tokens: Vec<(&str, u32)>) -> Self {
        let mut by_first = vec![Vec::new(); 256];
        for (text, id) in tokens.into_iter().filter(|(text, _)| !text.is_empty()) {
            by_first[usize::from(text.as_bytes()[0])].push((Box::from(text), id));
        }
        by_first.iter_mut().for_each(|tokens: &mut Vec<(Box<str>, u32)>| {
            tokens.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        });
        Self { by_first }
    }

    /// Parts `text` at these tokens, the first and longest each time; what lies between goes to
    /// `section`.
    fn part<'t>(
        &self,
        text: &str,
        take: &mut Take<'t>,
        section: &mut dyn FnMut(&str, &mut Take<'t>) -> Result<()>,
    ) -> Result<()> {
        let bytes = text.as_bytes();
        let (mut start, mut at) = (0, 0);
        while at < bytes.len() {
            let tokens = &self.by_first[usize::from(bytes[at])];
            let Some((token, id)) =
                tokens.iter().find(|(token, _)| bytes[at..].starts_with(token.as_bytes()))
            else {
                at += 1;
                continue;
            };
            if start < at {
                section(&text[start..at], take)?;
            }
            take(Piece::Token(*id))?;
            at += token.len();
            start = at;
        }
        if start < bytes.len() { section(&text[start..], take) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
