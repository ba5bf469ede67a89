//! Token files (`.bin`): a checked header of 256 bytes, then the tokens, little-endian,
//! memory-mapped on reading.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | magic `ESLMTOK\0` |
//! | 8..12 | format version (u32) |
//! | 12..16 | bytes per token (u32): 2 up to a vocabulary of 65,536, else 4 |
//! | 16..24 | tokens (u64) |
//! | 24..32 | documents (u64) |
//! | 32..40 | bytes of source text (u64), end-of-text tokens not counted |
//! | 40..44 | vocabulary size (u32) |
//! | 44..48 | id of the end-of-text token (u32) |
//! | 48..80 | tokenizer hash (SHA-256) |
//! | 80..112 | content hash (SHA-256 of the bytes after the header) |
//! | 112..224 | zero |
//! | 224..256 | SHA-256 of bytes 0..224 |

use crate::error::{Error, Result};
use crate::files::{AtomicFile, Input, check_real, hex};
use crate::progress::Progress;
use memmap2::Mmap;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 256;
/// Newest format version that this build writes and the only one it reads.
pub const FORMAT_VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"ESLMTOK\0";
const CHECKED: usize = 224;
/// Bytes whose verification takes a noticeable time.
const LARGE: u64 = 1 << 28;

/// Tokens that a walk over a file holds at once.
const PIECE: u64 = 1 << 20;

/// GPT-2's end-of-text token, which stands between documents.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// A SHA-256 digest.
pub type Hash = [u8; 32];

/// How a token is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenDtype {
    /// Two bytes, for vocabularies of up to 65,536.
    U16,
    /// Four bytes.
    U32,
}

impl TokenDtype {
    /// The narrowest type that holds every id below `vocab_size`.
    pub fn for_vocab(vocab_size: u32) -> Self {
        if vocab_size <= 1 << 16 { Self::U16 } else { Self::U32 }
    }

    /// Bytes per token.
    pub fn bytes(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }
}

/// What a token file says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenHeader {
    /// Width of a token.
    pub dtype: TokenDtype,
    /// Number of tokens, end-of-text tokens included.
    pub tokens: u64,
    /// Number of documents.
    pub documents: u64,
    /// UTF-8 bytes of the source text, for bits per byte.
    pub source_bytes: u64,
    /// Size of the tokenizer's vocabulary: every id is below it.
    pub vocab_size: u32,
    /// Id of the end-of-text token.
    pub eot: u32,
    /// [`crate::data::tokenizer::Tokenizer::hash`] of the tokenizer that made the file.
    pub tokenizer_hash: Hash,
    /// SHA-256 of everything after the header.
    pub content_hash: Hash,
}

impl TokenHeader {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0u8; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&(self.dtype.bytes() as u32).to_le_bytes());
        out[16..24].copy_from_slice(&self.tokens.to_le_bytes());
        out[24..32].copy_from_slice(&self.documents.to_le_bytes());
        out[32..40].copy_from_slice(&self.source_bytes.to_le_bytes());
        out[40..44].copy_from_slice(&self.vocab_size.to_le_bytes());
        out[44..48].copy_from_slice(&self.eot.to_le_bytes());
        out[48..80].copy_from_slice(&self.tokenizer_hash);
        out[80..112].copy_from_slice(&self.content_hash);
        let check: Hash = Sha256::digest(&out[..CHECKED]).into();
        out[CHECKED..].copy_from_slice(&check);
        out
    }

    fn decode(bytes: &[u8], path: &Path) -> Result<Self> {
        let bad = |what: String| {
            Error::data(format!("{}: {what}; prepare the data again", path.display()))
        };
        let foreign = || format!("not a token file (it does not start with {:?})", "ESLMTOK\\0");
        if bytes.len() < 8 || &bytes[..8] != MAGIC {
            return Err(bad(foreign()));
        }
        if bytes.len() < HEADER_BYTES {
            let found = bytes.len();
            return Err(bad(format!(
                "truncated token file: a header has {HEADER_BYTES} bytes, this file {found}"
            )));
        }
        let version = u32_at(bytes, 8);
        if version != FORMAT_VERSION {
            return Err(bad(format!(
                "token file of format version {version}; this build reads {FORMAT_VERSION}"
            )));
        }
        let check: Hash = Sha256::digest(&bytes[..CHECKED]).into();
        if check != bytes[CHECKED..HEADER_BYTES] {
            return Err(bad("damaged header (its checksum does not fit)".into()));
        }
        let dtype = match u32_at(bytes, 12) {
            2 => TokenDtype::U16,
            4 => TokenDtype::U32,
            other => return Err(bad(format!("{other} bytes per token; expected 2 or 4"))),
        };
        let header = Self {
            dtype,
            tokens: u64_at(bytes, 16),
            documents: u64_at(bytes, 24),
            source_bytes: u64_at(bytes, 32),
            vocab_size: u32_at(bytes, 40),
            eot: u32_at(bytes, 44),
            tokenizer_hash: hash_at(bytes, 48),
            content_hash: hash_at(bytes, 80),
        };
        if header.eot >= header.vocab_size {
            let (eot, vocab) = (header.eot, header.vocab_size);
            return Err(bad(format!(
                "end-of-text id {eot} is not below the vocabulary size {vocab}"
            )));
        }
        Ok(header)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

fn hash_at(bytes: &[u8], at: usize) -> Hash {
    let mut out = [0; 32];
    out.copy_from_slice(&bytes[at..at + 32]);
    out
}

/// The parts of a header that are known before the first token.
#[derive(Debug, Clone, Copy)]
pub struct TokenOrigin {
    /// Size of the tokenizer's vocabulary.
    pub vocab_size: u32,
    /// Id of the end-of-text token.
    pub eot: u32,
    /// Hash of the tokenizer.
    pub tokenizer_hash: Hash,
}

/// Writes a token file of any size in bounded memory; the file takes its name on
/// [`TokenWriter::finish`].
#[derive(Debug)]
pub struct TokenWriter {
    file: AtomicFile,
    path: PathBuf,
    header: TokenHeader,
    hasher: Sha256,
    buffer: Vec<u8>,
}

impl TokenWriter {
    /// Starts a file at `path`.
    pub fn create(path: &Path, origin: TokenOrigin) -> Result<Self> {
        let mut file = AtomicFile::create(path)?;
        // Counts and hashes are known at the end; until then the header is not a header.
        file.write_all(&[0; HEADER_BYTES]).map_err(|e| Error::io("write", path, e))?;
        let header = empty_header(origin);
        Ok(Self {
            file,
            path: path.to_path_buf(),
            header,
            hasher: Sha256::new(),
            buffer: Vec::new(),
        })
    }

    /// Appends tokens; an id outside the vocabulary is an error.
    pub fn push(&mut self, tokens: &[u32]) -> Result<()> {
        for part in tokens.chunks(1 << 18) {
            self.buffer.clear();
            encode_tokens(part, &self.header, &mut self.buffer)?;
            self.hasher.update(&self.buffer);
            self.file.write_all(&self.buffer).map_err(|e| Error::io("write", &self.path, e))?;
            self.header.tokens += part.len() as u64;
        }
        Ok(())
    }

    /// Counts one finished document.
    pub fn end_document(&mut self) {
        self.header.documents += 1;
    }

    /// Counts bytes of source text.
    pub fn add_source_bytes(&mut self, bytes: u64) {
        self.header.source_bytes += bytes;
    }

    /// The file that it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tokens written so far.
    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    /// Writes the header, syncs, names the file.
    pub fn finish(mut self) -> Result<TokenHeader> {
        self.header.content_hash = self.hasher.finalize().into();
        self.file.seek(0)?;
        self.file
            .write_all(&self.header.encode())
            .map_err(|e| Error::io("write", &self.path, e))?;
        self.file.commit()?;
        Ok(self.header)
    }
}

fn empty_header(origin: TokenOrigin) -> TokenHeader {
    TokenHeader {
        dtype: TokenDtype::for_vocab(origin.vocab_size),
        tokens: 0,
        documents: 0,
        source_bytes: 0,
        vocab_size: origin.vocab_size,
        eot: origin.eot,
        tokenizer_hash: origin.tokenizer_hash,
        content_hash: [0; 32],
    }
}

fn encode_tokens(tokens: &[u32], header: &TokenHeader, out: &mut Vec<u8>) -> Result<()> {
    let vocab = header.vocab_size;
    if let Some(id) = tokens.iter().find(|&&t| t >= vocab) {
        return Err(Error::data(format!("token id {id} is not below the vocabulary size {vocab}")));
    }
    match header.dtype {
        TokenDtype::U16 => {
            tokens.iter().for_each(|&t| out.extend_from_slice(&(t as u16).to_le_bytes()))
        }
        TokenDtype::U32 => tokens.iter().for_each(|&t| out.extend_from_slice(&t.to_le_bytes())),
    }
    Ok(())
}

#[derive(Debug)]
enum Payload {
    Mapped { map: Mmap, file: File, modified: Option<SystemTime> },
    Owned(Vec<u8>),
}

/// A token file, open for reading: memory-mapped, so its size costs no memory. Files of this crate
/// are never changed in place; where something else cuts or changes one that is open, the next
/// [`TokenFile::read`] says so: it reads the file itself, since a page of a mapping that is cut off
/// ends the process.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    header: TokenHeader,
    payload: Payload,
}

impl TokenFile {
    /// Opens and checks everything but the content hash (for that: [`TokenFile::verify`]).
    pub fn open(path: &Path) -> Result<Self> {
        let input = Input::open(path)?;
        if input.is_stream() {
            return Err(Error::data(format!(
                "{}: expected a token file, found a pipe or a device",
                path.display()
            )));
        }
        let (meta, mut file) = (input.metadata().clone(), input.into_file());
        let mut start = Vec::with_capacity(HEADER_BYTES);
        (&mut file)
            .take(HEADER_BYTES as u64)
            .read_to_end(&mut start)
            .map_err(|e| Error::io("read", path, e))?;
        check_real(path, &start)?;
        let header = TokenHeader::decode(&start, path)?;
        // u128: a count near 2^64 must not wrap into a plausible length.
        let expected =
            HEADER_BYTES as u128 + u128::from(header.tokens) * header.dtype.bytes() as u128;
        if u128::from(meta.len()) != expected {
            return Err(Error::data(format!(
                "{}: {} tokens need {expected} bytes, the file has {}: it was cut or extended; prepare the data again",
                path.display(),
                header.tokens,
                meta.len()
            )));
        }
        // SAFETY: read-only private view of a file that this crate never changes in place (see the
        // type's doc).
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        if map.len() as u128 != expected {
            return Err(Error::data(format!("{}: changed while it was opened", path.display())));
        }
        let modified = meta.modified().ok();
        Ok(Self {
            path: path.to_path_buf(),
            header,
            payload: Payload::Mapped { map, file, modified },
        })
    }

    /// The same thing in memory, for text that is tokenised on the fly.
    pub fn from_tokens(
        tokens: &[u32],
        origin: TokenOrigin,
        documents: u64,
        source_bytes: u64,
    ) -> Result<Self> {
        let mut header = TokenHeader { documents, source_bytes, ..empty_header(origin) };
        let mut bytes = vec![0; HEADER_BYTES];
        encode_tokens(tokens, &header, &mut bytes)?;
        header.tokens = tokens.len() as u64;
        header.content_hash = Sha256::digest(&bytes[HEADER_BYTES..]).into();
        Ok(Self { path: PathBuf::from("(memory)"), header, payload: Payload::Owned(bytes) })
    }

    /// A copy in memory of the first `most` tokens. How many bytes of text they were is not known.
    pub fn first(&self, most: u64) -> Result<Self> {
        let tokens = self.to_vec(0..most.min(self.len()))?;
        let TokenHeader { vocab_size, eot, tokenizer_hash, .. } = self.header;
        let origin = TokenOrigin { vocab_size, eot, tokenizer_hash };
        let documents = tokens.iter().filter(|id| **id == eot).count() as u64;
        Ok(Self { path: self.path.clone(), ..Self::from_tokens(&tokens, origin, documents, 0)? })
    }

    /// The same where it has more, and 0 is all.
    pub fn bounded(self: Arc<Self>, most: u64) -> Result<Arc<Self>> {
        if most == 0 || most >= self.len() { Ok(self) } else { self.first(most).map(Arc::new) }
    }

    /// The same, with the file that the text came from, for messages.
    #[must_use]
    pub fn read_from(self, path: &Path) -> Self {
        Self { path: path.to_path_buf(), ..self }
    }

    /// A copy in memory that begins with `ids`, end-of-text or what the tokenizer puts before a text,
    /// so that the first token has something before it.
    pub fn behind(&self, ids: &[u32]) -> Result<Self> {
        self.check_unchanged()?;
        let tokens = self.len() + ids.len() as u64;
        let mut header = TokenHeader { tokens, ..self.header.clone() };
        let mut bytes = vec![0; HEADER_BYTES];
        encode_tokens(ids, &header, &mut bytes)?;
        bytes.extend_from_slice(self.payload());
        header.content_hash = Sha256::digest(&bytes[HEADER_BYTES..]).into();
        Ok(Self { path: self.path.clone(), header, payload: Payload::Owned(bytes) })
    }

    /// The header.
    pub fn header(&self) -> &TokenHeader {
        &self.header
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of tokens.
    pub fn len(&self) -> u64 {
        self.header.tokens
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.header.tokens == 0
    }

    /// Errs if the file is no longer what was opened.
    fn check_unchanged(&self) -> Result<()> {
        let Payload::Mapped { map, file, modified } = &self.payload else { return Ok(()) };
        let now = file.metadata().map_err(|e| Error::io("read", &self.path, e))?;
        if now.len() == map.len() as u64 && now.modified().ok() == *modified {
            return Ok(());
        }
        Err(Error::data(format!(
            "{}: changed while it was in use ({} bytes when opened, {} now); prepare the data again",
            self.path.display(),
            map.len(),
            now.len()
        )))
    }

    /// Appends the tokens of `range` to `out`. A range past the end, an id outside the vocabulary
    /// and a file that was changed since it was opened are errors.
    pub fn read(&self, range: Range<u64>, out: &mut Vec<u32>) -> Result<()> {
        if range.start > range.end || range.end > self.len() {
            let (path, len) = (self.path.display(), self.len());
            return Err(Error::internal(format!("{path}: tokens {range:?} of {len} asked for")));
        }
        self.check_unchanged()?;
        let width = self.header.dtype.bytes();
        let bytes = self.bytes(range.start as usize * width..range.end as usize * width)?;
        let from = out.len();
        match self.header.dtype {
            TokenDtype::U16 => out
                .extend(bytes.as_chunks::<2>().0.iter().map(|b| u32::from(u16::from_le_bytes(*b)))),
            TokenDtype::U32 => {
                out.extend(bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)))
            }
        }
        let vocab = self.header.vocab_size;
        match out[from..].iter().position(|&t| t >= vocab) {
            None => Ok(()),
            Some(at) => Err(Error::data(format!(
                "{}: token {} is {}, not below the vocabulary size {vocab}: the file is damaged; prepare the data again",
                self.path.display(),
                range.start + at as u64,
                out[from + at]
            ))),
        }
    }

    /// Bytes of the payload.
    fn bytes(&self, range: Range<usize>) -> Result<Cow<'_, [u8]>> {
        let Payload::Mapped { file, .. } = &self.payload else {
            return Ok(Cow::Borrowed(&self.payload()[range]));
        };
        let mut bytes = vec![0; range.len()];
        file.read_exact_at(&mut bytes, (HEADER_BYTES + range.start) as u64).or_else(|e| {
            // What was cut meanwhile is said to be.
            self.check_unchanged()?;
            Err(Error::io("read", &self.path, e))
        })?;
        Ok(Cow::Owned(bytes))
    }

    /// The tokens of `range`.
    pub fn to_vec(&self, range: Range<u64>) -> Result<Vec<u32>> {
        let mut out = Vec::new();
        self.read(range, &mut out)?;
        Ok(out)
    }

    /// Reads everything and compares with the content hash: a flipped bit below the vocabulary's size
    /// would pass every later check. `progress` hears of a large file.
    pub fn verify(&self, progress: &dyn Progress) -> Result<()> {
        let bytes = self.payload().len() as u64;
        if bytes < LARGE {
            return self.verified();
        }
        progress.start(&format!("Verifying {}", self.path().display()), None, "bytes");
        let done = self.verified();
        progress.finish();
        done
    }

    fn verified(&self) -> Result<()> {
        let mut hasher = Sha256::new();
        for part in self.payload().chunks(1 << 24) {
            crate::interrupt::check()?;
            hasher.update(part);
        }
        let found: Hash = hasher.finalize().into();
        if found == self.header.content_hash {
            return Ok(());
        }
        Err(Error::data(format!(
            "{}: content hash {} differs from the header's {}: the file is damaged; prepare the data again",
            self.path.display(),
            hex(&found),
            hex(&self.header.content_hash)
        )))
    }

    /// How often each of `vocab_size` ids is there, at least as many as the file may name.
    pub fn counts(&self, vocab_size: usize) -> Result<Vec<u64>> {
        let mut counts = vec![0; vocab_size];
        for start in (0..self.len()).step_by(PIECE as usize) {
            crate::interrupt::check()?;
            for id in self.to_vec(start..(start + PIECE).min(self.len()))? {
                let count = counts.get_mut(id as usize);
                *count.ok_or_else(|| {
                    let path = self.path.display();
                    Error::data(format!(
                        "{path}: id {id} lies outside the vocabulary of {vocab_size}"
                    ))
                })? += 1;
            }
        }
        Ok(counts)
    }

    /// Errs unless a model with `vocab_size` embeddings can read every id. A tokenizer may have
    /// more (a padding token that was added later); what counts is whether the text uses one.
    pub fn check_vocab(&self, vocab_size: usize) -> Result<()> {
        if self.header.vocab_size as usize <= vocab_size {
            return Ok(());
        }
        for start in (0..self.len()).step_by(PIECE as usize) {
            crate::interrupt::check()?;
            let ids = self.to_vec(start..(start + PIECE).min(self.len()))?;
            if let Some(at) = ids.iter().position(|&id| id as usize >= vocab_size) {
                return Err(Error::data(format!(
                    "{}: token {} is id {}, and the model has only {vocab_size}; prepare the data with the model's tokenizer",
                    self.path.display(),
                    start + at as u64,
                    ids[at]
                )));
            }
        }
        Ok(())
    }

    fn payload(&self) -> &[u8] {
        match &self.payload {
            Payload::Mapped { map, .. } => &map[HEADER_BYTES..],
            Payload::Owned(bytes) => &bytes[HEADER_BYTES..],
        }
    }
}

#[cfg(test)]
mod tests;
