//! The validation split of few documents: where drawing whole ones leaves none on one side, the end
//! of the text is held out.

use super::tokenizer::Tokenizer;
use super::tokens::{TokenFile, TokenHeader, TokenWriter};
use crate::error::Result;
use std::path::Path;

/// Tokens that are copied at once.
const CHUNK: u64 = 1 << 20;
/// Most tokens before and after the wanted place among which a line's begin is looked for.
const NEAR: u64 = 1 << 16;
/// Fewest tokens on either side, where there are as many.
const LEAST: u64 = 8;

/// Where the held-out end begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Its first token.
    pub at: u64,
    /// Whether that is inside a document.
    pub cuts: bool,
}

impl End {
    /// About the last `fraction` of `tokens`, of which there are at least two: from the document
    /// that begins nearest, if that makes it at most a quarter longer or shorter; else from the
    /// paragraph, line or token nearest.
    pub fn of(tokens: &TokenFile, fraction: f64, tokenizer: &Tokenizer) -> Result<Self> {
        let all = tokens.len();
        // Some words at least, not the end mark alone.
        let few = LEAST.min(all / 2).max(1);
        let wanted = ((all as f64 * fraction).round() as u64).clamp(few, all - few);
        let at = all - wanted;
        let near = wanted / 4;
        let (least, most) = (at.saturating_sub(near).max(few), (at + near).min(all - few));
        // The end mark of the last document begins nothing.
        let document = nearest(tokens, at, (least, most), |id, _| Ok(id == tokenizer.eot()))?;
        if let Some(at) = document {
            return Ok(Self { at, cuts: false });
        }
        let near = (least.max(at.saturating_sub(NEAR)), most.min(at + NEAR));
        for line in ["\n\n", "\n"] {
            let begins = |id, before: Option<u32>| {
                let ends = |text: &str| text.ends_with(line);
                // One token often has one of two line breaks.
                let text = tokenizer.text_of(id)?;
                let earlier = before.map(|id| tokenizer.text_of(id)).transpose()?;
                Ok(ends(&text) || text == "\n" && ends(&(earlier.unwrap_or_default() + &text)))
            };
            if let Some(at) = nearest(tokens, at, near, begins)? {
                return Ok(Self { at, cuts: true });
            }
        }
        Ok(Self { at, cuts: true })
    }

    /// Writes what is before the end, and the end. `tokens` are all of both.
    pub fn write(
        self,
        tokens: &TokenFile,
        (train, valid): (&Path, &Path),
        tokenizer: &Tokenizer,
    ) -> Result<(TokenHeader, TokenHeader)> {
        let whole = tokens.header();
        let (mut ids, mut bytes, mut documents) = (Vec::new(), 0, 0);
        let mut held_out = TokenWriter::create(valid, tokenizer.origin())?;
        if self.cuts {
            held_out.push(tokenizer.document_begin())?;
        }
        each_chunk(tokens, self.at..tokens.len(), &mut ids, |ids| {
            let text = tokenizer.decode(ids)?;
            bytes += tokenizer.source_bytes(&text, ids);
            documents += ids.iter().filter(|id| **id == tokenizer.eot()).count() as u64;
            held_out.push(ids)
        })?;
        // A mark inside a row ends no document.
        let documents = documents.min(whole.documents);
        let bytes = bytes.min(whole.source_bytes);
        let mut rest = TokenWriter::create(train, tokenizer.origin())?;
        each_chunk(tokens, 0..self.at, &mut ids, |ids| rest.push(ids))?;
        if self.cuts {
            rest.push(&[tokenizer.eot()])?;
        }
        held_out.add_source_bytes(bytes);
        rest.add_source_bytes(whole.source_bytes - bytes);
        (0..documents).for_each(|_| held_out.end_document());
        let before = whole.documents - documents + u64::from(self.cuts);
        (0..before).for_each(|_| rest.end_document());
        Ok((rest.finish()?, held_out.finish()?))
    }
}

/// The place between `least` and `most`, nearest to `at`, before which stands a token that `ends`
/// accepts; it also sees the token before that.
fn nearest(
    tokens: &TokenFile,
    at: u64,
    (least, most): (u64, u64),
    ends: impl Fn(u32, Option<u32>) -> Result<bool>,
) -> Result<Option<u64>> {
    let (mut ids, mut found) = (Vec::new(), None::<u64>);
    let mut place = least.saturating_sub(1);
    let mut before = None;
    each_chunk(tokens, place..most, &mut ids, |ids| {
        for &id in ids {
            place += 1;
            let is_nearer = found.is_none_or(|found| place.abs_diff(at) < found.abs_diff(at));
            if is_nearer && place >= least && ends(id, before)? {
                found = Some(place);
            }
            before = Some(id);
        }
        Ok(())
    })?;
    Ok(found)
}

fn each_chunk(
    tokens: &TokenFile,
    range: std::ops::Range<u64>,
    ids: &mut Vec<u32>,
    mut take: impl FnMut(&[u32]) -> Result<()>,
) -> Result<()> {
    let mut start = range.start;
    while start < range.end {
        crate::interrupt::check()?;
        let end = range.end.min(start + CHUNK);
        ids.clear();
        tokens.read(start..end, ids)?;
        take(ids)?;
        start = end;
    }
    Ok(())
}
