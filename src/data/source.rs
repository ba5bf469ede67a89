//! Readers: text, JSON lines and Parquet, each also compressed with gzip or Zstandard, in bounded
//! memory.
//!
//! What a document is: in text files, what stands between `<|endoftext|>` marks (the whole file if
//! there is none); in JSON lines, the text field of a line; in Parquet, a row of the text column.
//! Documents of nothing but white space are left out. Long documents arrive in pieces, cut where no
//! token of GPT-2's scheme can cross.

mod lines;
mod packed;
mod parquet;
mod parquet_pages;
mod pieces;
mod records;
mod stream;
mod table;

pub(crate) use lines::Lines;
pub use pieces::split_point;
pub(crate) use table::Table;

use crate::data::bpe::check_words;
use crate::error::{Error, Result};
use crate::files::{HEAD_BYTES, Input, check_no_pointer, check_real, same_file, unread};
use crate::progress::Progress;
use crate::report::text::count;
use packed::{Compression, read_up_to};
use serde::Serialize;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use stream::Stream;

/// Bytes of text that a piece should not exceed much.
const PIECE_BYTES: usize = 64 << 10;
/// Bytes of text that are read ahead and worked on together; the same on every machine, so results
/// are too.
const BATCH_BYTES: usize = 4 << 20;

/// Longest text that is held whole: a line of JSON, a value of Parquet, a stretch of a text file
/// that may not be cut. Far above any real document, and what keeps a small file that unpacks to
/// gigabytes from filling the memory.
const MOST_DOCUMENT_BYTES: usize = 64 << 20;

/// What the bytes of a file mean once decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// UTF-8 text.
    Text,
    /// One JSON object per line.
    JsonLines,
    /// Apache Parquet.
    Parquet,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::JsonLines => "JSON lines",
            Self::Parquet => "Parquet",
        }
    }
}

/// An input file whose kind is known.
#[derive(Debug, Clone)]
pub struct Source {
    path: PathBuf,
    format: Format,
    compression: Compression,
    size: u64,
    /// What comes through a pipe.
    stream: Option<Stream>,
    /// Whether its first bytes told the format, and not its name.
    told: bool,
}

impl Source {
    /// Looks at a file's name and first bytes. The format follows the name (`.txt .text .md`,
    /// `.jsonl .ndjson .json`, `.parquet`, each with `.gz` or `.zst` behind); compression follows
    /// the first bytes, which must fit the name. A pipe is read once, and needs no name: its first
    /// bytes say what it is.
    pub fn open(path: &Path) -> Result<Self> {
        let bad = |what: String| Err(Error::data(format!("{}: {what}", path.display())));
        if path.is_dir() {
            return bad("is a folder; name the files in it".into());
        }
        let mut input = Input::open(path)?;
        let failed = |e| unread(path, e);
        let head = read_up_to(&mut input, HEAD_BYTES as u64).map_err(failed)?;
        let (format, named) = by_name(path);
        match (format, named) {
            // Text may well be a web page.
            (None | Some(Format::Text), None) => check_no_pointer(path, &head)?,
            _ => check_real(path, &head)?,
        }
        let (magic, size) = (&head[..head.len().min(4)], input.metadata().len());
        let once = input.is_stream() || (format.is_none() && stream::is_of_process(path));
        let compression = match once {
            true => Compression::of_stream(magic),
            false => Compression::of(input.rewound().map_err(failed)?).map_err(failed)?,
        };
        if let Some(named) = named.filter(|n| *n != compression) {
            return bad(match compression {
                Compression::None => format!(
                    "its name says {named:?}, but its first bytes are {magic:02x?}: damaged or misnamed"
                ),
                found => format!(
                    "its name says {named:?}, but its first bytes are those of {found:?}: rename it"
                ),
            });
        }
        let path = path.to_path_buf();
        if once {
            let stream = Stream::new(head, input, compression);
            let stream = stream.map_err(|e| compression.failure(&path, &e))?;
            let told = format.is_none();
            let format = format.unwrap_or(stream.format());
            return Ok(Self { path, format, compression, size: 0, stream: Some(stream), told });
        }
        let Some(format) = format else {
            return bad(
                "unknown kind of file: expected .txt, .jsonl or .parquet, also with .gz or .zst"
                    .into(),
            );
        };
        if magic == b"PAR1" && format != Format::Parquet {
            return bad("is a Parquet file; give it the extension .parquet".into());
        }
        Ok(Self { path, format, compression, size, stream: None, told: false })
    }

    /// Looks at all, so that a typing error in the last name shows before the first file is read.
    pub fn open_all(paths: &[PathBuf]) -> Result<Vec<Self>> {
        if paths.is_empty() {
            return Err(Error::usage("no input files given"));
        }
        for (n, path) in paths.iter().enumerate() {
            let is_pipe = path.exists() && !path.is_file() && !path.is_dir();
            if is_pipe && paths[..n].iter().any(|other| same_file(path, other)) {
                let place = path.display();
                return Err(Error::usage(format!(
                    "{place}: a pipe can be read only once, and it is named twice; write it to a file first"
                )));
            }
        }
        paths.iter().map(|path| Self::open(path)).collect()
    }

    /// The file's name without its folder.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its bytes mean once decompressed.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes on disk, None for what comes through a pipe.
    pub fn size(&self) -> Option<u64> {
        self.stream.is_none().then_some(self.size)
    }

    fn decompressed(&self, consumed: &Arc<AtomicU64>) -> Result<Box<dyn BufRead + Send>> {
        let consumed = Arc::clone(consumed);
        if let Some(stream) = &self.stream {
            let inner = stream.take().ok_or_else(|| {
                Error::internal(format!("{}: a pipe was to be read twice", self.path.display()))
            })?;
            return Ok(Box::new(BufReader::with_capacity(1 << 18, Counting { inner, consumed })));
        }
        let inner = File::open(&self.path).map_err(|e| Error::io("open", &self.path, e))?;
        let file = BufReader::with_capacity(1 << 18, Counting { inner, consumed });
        self.compression.unpack(file).map_err(|e| self.unreadable(&e))
    }

    fn unreadable(&self, e: &std::io::Error) -> Error {
        self.compression.failure(&self.path, e)
    }

    fn reader(
        &self,
        options: &ReadOptions,
        consumed: &Arc<AtomicU64>,
    ) -> Result<Box<dyn Documents>> {
        let limit = options.split.then_some(PIECE_BYTES);
        Ok(match self.format {
            Format::Text => {
                Box::new(pieces::TextReader::new(self.clone(), self.decompressed(consumed)?, limit))
            }
            Format::JsonLines => {
                let input = self.decompressed(consumed)?;
                let lines = records::LineReader::new(self, input, options);
                Box::new(pieces::Cut::new(lines, self, limit, options.skip_bad))
            }
            Format::Parquet => {
                let rows = parquet::RowReader::open(self, &options.text_field, consumed)?;
                Box::new(pieces::Cut::new(rows, self, limit, options.skip_bad))
            }
        })
    }
}

/// What a name says.
fn by_name(path: &Path) -> (Option<Format>, Option<Compression>) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let (stem, named) = match name.rsplit_once('.') {
        Some((stem, "gz" | "gzip")) => (stem, Some(Compression::Gzip)),
        Some((stem, "zst" | "zstd")) => (stem, Some(Compression::Zstd)),
        _ => (name.as_str(), None),
    };
    let format = match stem.rsplit_once('.').map(|(_, extension)| extension) {
        Some("txt" | "text" | "md") => Some(Format::Text),
        Some("jsonl" | "ndjson" | "json") => Some(Format::JsonLines),
        Some("parquet") => Some(Format::Parquet),
        _ => None,
    };
    (format, named)
}

struct Counting<R> {
    inner: R,
    consumed: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.consumed.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// How inputs are read.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Field of JSON lines, column of Parquet.
    pub text_field: String,
    /// Whether long documents may arrive in pieces cut at [`split_point`].
    pub split: bool,
    /// Whether rows of JSON lines and Parquet without a readable text are left out and counted; else
    /// the first is an error.
    pub skip_bad: bool,
}

/// The rows of an input that were left out since they have no readable text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Name of the file, without its folder.
    pub input: String,
    /// How many.
    pub rows: u64,
    /// Number of the first: its line in JSON lines, its row in Parquet; both count from 1.
    pub first: u64,
    /// What is wrong with the first.
    pub why: String,
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { input, rows, first, why } = self;
        let (rows, noun) = (count(*rows), if *rows == 1 { "row" } else { "rows" });
        write!(f, "{input}: {rows} {noun} skipped; the first is {first}: {why}")
    }
}

/// The error for inputs without a document.
pub(super) fn no_text(place: &str, skipped: &[Skipped]) -> Error {
    let why = if skipped.is_empty() { "is empty" } else { "is empty or was skipped" };
    let skipped: String = skipped.iter().map(|s| format!("; {s}")).collect();
    Error::data(format!("no text found in {place}: every document {why}{skipped}"))
}

/// A document or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// Whether the document ends here.
    pub ends_document: bool,
}

/// Consecutive pieces.
#[derive(Debug, Default)]
pub struct PieceBatch {
    /// In input order.
    pub pieces: Vec<Piece>,
    /// Input bytes (as on disk) that reading it took, for progress.
    pub consumed: u64,
}

/// A stream of pieces.
trait Documents: Send {
    fn next_piece(&mut self) -> Result<Option<Piece>>;

    /// Where the last piece came from, for messages.
    fn place(&self) -> String;

    /// The rows left out, after the last piece.
    fn skipped(&mut self) -> Option<Skipped> {
        None
    }
}

/// Reads all sources in order on a thread of its own, a batch ahead, and hands batches of about 4
/// MB to `handle`. Starts and finishes a phase `label` of `progress`, in bytes on disk. Says which
/// inputs had rows that were left out.
pub fn for_each_batch(
    sources: &[Source],
    options: &ReadOptions,
    label: &str,
    progress: &dyn Progress,
    mut handle: impl FnMut(PieceBatch) -> Result<()>,
) -> Result<Vec<Skipped>> {
    for source in sources.iter().filter(|source| source.told) {
        let (place, format) = (source.path.display(), source.format.name());
        progress.note(&format!("{place}: read as {format}, by its first bytes"));
    }
    progress.start(label, sources.iter().map(Source::size).sum(), "bytes");
    let (sender, receiver) = sync_channel::<Result<PieceBatch>>(1);
    let done = std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let outcome = read_batches(sources, options, |batch| sender.send(Ok(batch)).is_ok());
            outcome.unwrap_or_else(|e| {
                let _ = sender.send(Err(e)); // the receiver is gone only when it has an error of its own
                Vec::new()
            })
        });
        let mut run = || {
            for batch in &receiver {
                crate::interrupt::check()?;
                let batch = batch?;
                let consumed = batch.consumed;
                handle(batch)?;
                progress.advance(consumed);
            }
            Ok(())
        };
        let outcome = run();
        drop(receiver); // lets a reader that is ahead stop
        let skipped = reader.join().map_err(|_| Error::internal("the reading thread panicked"))?;
        outcome.map(|()| skipped)
    });
    progress.finish();
    done
}

/// Calls `send` with each batch until it says false.
fn read_batches(
    sources: &[Source],
    options: &ReadOptions,
    mut send: impl FnMut(PieceBatch) -> bool,
) -> Result<Vec<Skipped>> {
    let consumed = Arc::new(AtomicU64::new(0));
    let (mut batch, mut bytes, mut reported) = (PieceBatch::default(), 0, 0);
    let mut skipped = Vec::new();
    for source in sources {
        let mut reader = source.reader(options, &consumed)?;
        while let Some(piece) = reader.next_piece()? {
            if options.split {
                // Who works on the words knows no file.
                check_words(&piece.text).map_err(|e| e.context(reader.place()))?;
            }
            bytes += piece.text.len();
            batch.pieces.push(piece);
            if bytes >= BATCH_BYTES {
                let now = consumed.load(Ordering::Relaxed);
                batch.consumed = now - std::mem::replace(&mut reported, now);
                bytes = 0;
                if !send(std::mem::take(&mut batch)) {
                    return Ok(skipped);
                }
            }
        }
        skipped.extend(reader.skipped());
    }
    batch.consumed = consumed.load(Ordering::Relaxed).saturating_sub(reported);
    send(batch);
    Ok(skipped)
}

#[cfg(test)]
pub(crate) mod tests;
