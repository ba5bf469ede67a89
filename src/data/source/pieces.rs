//! Text files as documents, and long documents as pieces.

use super::{Documents, MOST_DOCUMENT_BYTES, Piece, Skipped, Source};
use crate::data::bpe::check_words;
use crate::data::tokens::END_OF_TEXT;
use crate::error::{Error, Result};
use crate::report::text;
use std::collections::VecDeque;
use std::io::{BufRead, Read};

/// The last place at or before `target` (else the first after it) where `text` may be cut without
/// changing its tokens under GPT-2's scheme: before a space or newline that follows a character
/// which is surely not white space.
///
/// Why this is safe: in GPT-2's pattern white space stands only at the start of a match or in
/// matches of white space alone, so a match that covers the earlier character ends there; the
/// pattern looks ahead but never back, and its one look-ahead, `\s+(?!\S)`, is used only where a
/// match ends in white space, which the first half does not.
pub fn split_point(text: &str, target: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let safe = |at: usize| {
        matches!(bytes[at], b' ' | b'\n')
            && text[..at].chars().next_back().is_some_and(surely_not_space)
    };
    let target = target.min(text.len().saturating_sub(1));
    (1..=target)
        .rev()
        .find(|&at| safe(at))
        .or_else(|| (target + 1..text.len()).find(|&at| safe(at)))
}

/// A class on which every regular-expression engine agrees: no control, format or exotic
/// white-space characters.
fn surely_not_space(c: char) -> bool {
    c.is_ascii_graphic()
        || c.is_alphanumeric()
        || matches!(c, '\u{3001}'..='\u{301F}' | '\u{2018}'..='\u{201F}')
}

/// Reads a text file a bit at a time.
pub struct TextReader {
    source: Source,
    input: Box<dyn BufRead + Send>,
    /// Read and decoded; `start..` is not yet handed out.
    buffer: String,
    start: usize,
    /// The bytes of a character that is not complete yet.
    partial: Vec<u8>,
    /// Bytes decoded so far, for messages.
    offset: u64,
    ended: bool,
    limit: Option<usize>,
    inside: bool,
}

impl TextReader {
    pub fn new(source: Source, input: Box<dyn BufRead + Send>, limit: Option<usize>) -> Self {
        let (buffer, partial) = (String::new(), Vec::new());
        Self {
            source,
            input,
            buffer,
            start: 0,
            partial,
            offset: 0,
            ended: false,
            limit,
            inside: false,
        }
    }

    fn fill(&mut self) -> Result<()> {
        self.buffer.drain(..std::mem::take(&mut self.start));
        let begin = self.partial.len();
        // In proportion to what could not be handed out yet: looking through that again stays
        // linear in all.
        let more = self.buffer.len().max(1 << 16) as u64;
        let read = (&mut self.input).take(more).read_to_end(&mut self.partial);
        read.map_err(|e| self.source.unreadable(&e))?;
        self.ended = self.partial.len() == begin;
        let valid = match std::str::from_utf8(&self.partial) {
            Ok(text) => text.len(),
            Err(e) if e.error_len().is_none() && !self.ended => e.valid_up_to(),
            Err(e) => {
                let (path, at) = (self.source.path.display(), self.offset + e.valid_up_to() as u64);
                return Err(Error::data(format!(
                    "{path}: not UTF-8 at byte {at}; convert the file to UTF-8"
                )));
            }
        };
        let mut text = std::str::from_utf8(&self.partial[..valid]).unwrap_or_default();
        if self.offset == 0 {
            text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
        }
        self.buffer.push_str(text);
        self.offset += valid as u64;
        self.partial.drain(..valid);
        Ok(())
    }

    /// Hands out `length` bytes and forgets `skip` more.
    fn take(&mut self, length: usize, skip: usize, ends_document: bool) -> Option<Piece> {
        let text = self.buffer[self.start..self.start + length].to_string();
        self.start += length + skip;
        let blank = !self.inside && ends_document && text.trim().is_empty();
        self.inside = !ends_document;
        (!blank).then_some(Piece { text, ends_document })
    }
}

impl Documents for TextReader {
    fn next_piece(&mut self) -> Result<Option<Piece>> {
        let limit = self.limit.unwrap_or(usize::MAX);
        loop {
            let rest = &self.buffer[self.start..];
            let mark = rest.find(END_OF_TEXT);
            if mark.is_some() || self.ended {
                let end = mark.unwrap_or(rest.len());
                if end == 0 && mark.is_none() && !self.inside {
                    return Ok(None);
                }
                let cut = (end > limit).then(|| split_point(&rest[..end], limit)).flatten();
                let skip = if mark.is_some() { END_OF_TEXT.len() } else { 0 };
                let piece = match cut {
                    Some(cut) => self.take(cut, 0, false),
                    None => self.take(end, skip, true),
                };
                match piece {
                    Some(piece) => return Ok(Some(piece)),
                    None => continue,
                }
            }
            // A mark may begin at the very end of what has been read; the cut must come before it.
            let known = rest.len().saturating_sub(END_OF_TEXT.len());
            if known > limit.saturating_mul(2) {
                let cut = split_point(rest, limit).filter(|cut| *cut < known);
                if let Some(piece) = cut.and_then(|cut| self.take(cut, 0, false)) {
                    return Ok(Some(piece));
                }
            }
            if self.buffer.len() - self.start > MOST_DOCUMENT_BYTES {
                return Err(Error::data(format!(
                    "{}: more than {} before byte {} that this tokenizer must be given whole; \
                     separate documents with {END_OF_TEXT}",
                    self.source.path.display(),
                    text::bytes(MOST_DOCUMENT_BYTES as u64),
                    self.offset
                )));
            }
            self.fill()?;
        }
    }

    fn place(&self) -> String {
        format!("{}, before byte {}", self.source.path.display(), self.offset)
    }
}

/// What a row of a table holds.
pub enum Row {
    /// Its text.
    Text(String),
    /// Why it has none.
    Bad(String),
}

/// Documents that are rows, in memory whole.
pub trait Rows: Send {
    /// The next one, or None at the end. Errs where nothing can be read any more.
    fn next_row(&mut self) -> Result<Option<Row>>;

    /// Its number, from 1.
    fn number(&self) -> u64;

    /// Where the last one came from, for messages.
    fn place(&self) -> String;
}

/// Cuts long documents; refuses rows without a text, or leaves them out.
pub struct Cut<R> {
    inner: R,
    source: Source,
    limit: Option<usize>,
    skip_bad: bool,
    skipped: Option<Skipped>,
    waiting: VecDeque<Piece>,
}

impl<R: Rows> Cut<R> {
    pub fn new(inner: R, source: &Source, limit: Option<usize>, skip_bad: bool) -> Self {
        let (source, waiting) = (source.clone(), VecDeque::new());
        Self { inner, source, limit, skip_bad, skipped: None, waiting }
    }

    /// The next text that can be read.
    fn next_text(&mut self) -> Result<Option<String>> {
        loop {
            let why = match self.inner.next_row()? {
                None => return Ok(None),
                Some(Row::Bad(why)) => why,
                Some(Row::Text(text)) if self.skip_bad && self.limit.is_some() => {
                    match check_words(&text) {
                        Ok(()) => return Ok(Some(text)),
                        Err(e) => e.to_string(),
                    }
                }
                Some(Row::Text(text)) => return Ok(Some(text)),
            };
            if !self.skip_bad {
                return Err(Error::data(format!(
                    "{}: {why}; correct it, or leave such rows out with --skip-bad (of prepare and tokenizer train)",
                    self.inner.place()
                )));
            }
            let first = self.inner.number();
            let input = self.source.name();
            self.skipped.get_or_insert(Skipped { input, rows: 0, first, why }).rows += 1;
        }
    }
}

impl<R: Rows> Documents for Cut<R> {
    fn next_piece(&mut self) -> Result<Option<Piece>> {
        while self.waiting.is_empty() {
            let Some(text) = self.next_text()? else { return Ok(None) };
            if text.trim().is_empty() {
                continue;
            }
            let limit = self.limit.unwrap_or(usize::MAX);
            if text.len() <= limit {
                return Ok(Some(Piece { text, ends_document: true }));
            }
            let mut rest = text.as_str();
            while let Some(cut) = (rest.len() > limit).then(|| split_point(rest, limit)).flatten() {
                let (piece, after) = rest.split_at(cut);
                self.waiting.push_back(Piece { text: piece.to_string(), ends_document: false });
                rest = after;
            }
            self.waiting.push_back(Piece { text: rest.to_string(), ends_document: true });
        }
        Ok(self.waiting.pop_front())
    }

    fn place(&self) -> String {
        self.inner.place()
    }

    fn skipped(&mut self) -> Option<Skipped> {
        self.skipped.take()
    }
}
