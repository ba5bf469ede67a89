//! What a served teacher said of a token file, as JSON lines or Parquet, becomes a signal.

mod position;
mod record;
#[cfg(test)]
mod tests;

use super::block::{BlockWriter, Row};
use super::codec::Ranks;
use super::header::{DataId, Header, Kind, Shard, TeacherId, Window};
use super::shard::ShardWriter;
use super::stored::{check_out, shards_in};
use super::write::{Written, block_of};
use crate::data::source::{Format, Lines, Source, Table};
use crate::data::tokens::TokenFile;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{check_folder, check_space, create_folder, hex};
use crate::progress::Progress;
use crate::report::text::{amount, count};
use position::{Asked, reduced};
use rayon::prelude::*;
use record::{COLUMNS, Position, Record, Sequence, check_columns, of_line, of_row};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Longest line: a window of 8,192 tokens, each with 128 entries and their texts, takes a fifth.
const MOST_LINE_BYTES: usize = 512 << 20;
/// Bytes of lines that are parsed together.
const BATCH_BYTES: usize = 16 << 20;
/// Lines or rows that are parsed together.
const BATCH_ROWS: usize = 4096;
/// Tokens of the data that are read ahead of positions.
const TOKENS_AT_ONCE: u64 = 1 << 14;

/// What to import, and where to.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// JSON lines and Parquet, in the order of the data.
    pub inputs: Vec<PathBuf>,
    /// The signal's folder.
    pub out: PathBuf,
    /// Inputs of each window that the teacher read; windows follow each other.
    pub context: u32,
    /// Entries to keep of each position; None is as many as the first has.
    pub top_k: Option<u32>,
    /// What the teacher is called.
    pub name: String,
    /// Ids that the teacher may name, at least the data's; None is as many.
    pub vocab_size: Option<u32>,
}

/// Writes the signal of kind top-k that the `inputs` hold for `tokens`, all of its positions, in one
/// shard. Errs where they are of other tokens, have gaps, or hold no log-probabilities; then, and on
/// an interrupt, nothing of it stays.
pub fn import(
    tokens: &TokenFile,
    options: &ImportOptions,
    progress: &dyn Progress,
) -> Result<Written> {
    tokens.verify(progress)?;
    let sources = Source::open_all(&options.inputs)?;
    if let Some(other) = sources.iter().find(|source| source.format() == Format::Text) {
        return Err(Error::data(format!(
            "{}: expected JSON lines (.jsonl) or Parquet (.parquet), also with .gz or .zst",
            other.path().display()
        )));
    }
    if !shards_in(&options.out)?.is_empty() {
        return Err(Error::usage(format!(
            "{}: holds a signal already; choose another --out, or remove it",
            options.out.display()
        )));
    }
    check_folder(&options.out)?;
    check_out(&options.out)?;
    let mut job = Job::new(tokens, options)?;
    progress.start("Importing the signal", Some(job.total()), "tokens");
    let started = Instant::now();
    let read = job.run(&sources, progress).and_then(|()| job.check_whole());
    progress.finish();
    let (header, written) = match read.and_then(|()| job.shard()) {
        Ok(shard) => (job.header, shard.finish()),
        Err(e) => (job.header, Err(e)),
    };
    let bytes = written.map_err(|e| {
        job.made.remove();
        match e.kind() {
            ErrorKind::Interrupted(_) => e.followed_by("; nothing is kept of what was read"),
            _ => e,
        }
    })?;
    let positions = header.positions_in_all();
    Ok(Written {
        signal: options.out.clone(),
        shard: header.shard.file(),
        positions,
        bytes,
        bytes_per_token: bytes as f64 / positions as f64,
        computed: positions,
        seconds: started.elapsed().as_secs_f64(),
        complete: true,
    })
}

/// What an import has made, which goes where it fails.
#[derive(Default)]
struct Made {
    /// The file that is being written.
    partial: Option<PathBuf>,
    /// Folders that were not there before, the innermost first.
    folders: Vec<PathBuf>,
}

impl Made {
    /// Makes the folder.
    fn folder(&mut self, out: &Path) -> Result<()> {
        let missing = out.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists());
        self.folders = missing.map(Path::to_path_buf).collect();
        create_folder(out)
    }

    /// Removes all of it; what somebody else has written meanwhile stays, and what cannot be removed.
    fn remove(&self) {
        if let Some(partial) = &self.partial {
            let _ = fs::remove_file(partial);
        }
        for folder in &self.folders {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// A signal that is being imported.
struct Job<'a> {
    tokens: &'a TokenFile,
    options: &'a ImportOptions,
    /// Its k is 0 until the first record tells it.
    header: Header,
    shard: Option<ShardWriter>,
    block: BlockWriter,
    /// The next position.
    at: u64,
    /// Where `ahead` begins among the tokens.
    ahead_at: u64,
    ahead: Vec<u32>,
    made: Made,
}

/// Where something stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    path: &'a Path,
    format: Format,
    /// Line or row, from 1.
    number: u64,
}

impl Place<'_> {
    fn error(self, what: impl std::fmt::Display) -> Error {
        let (path, number) = (self.path.display(), self.number);
        Error::data(match self.format {
            Format::Parquet => format!("{path}: row {number}: {what}"),
            Format::JsonLines | Format::Text => format!("{path}:{number}: {what}"),
        })
    }
}

impl<'a> Job<'a> {
    fn new(tokens: &'a TokenFile, options: &'a ImportOptions) -> Result<Self> {
        let of_data = tokens.header();
        if of_data.tokens < 2 {
            return Err(Error::data(format!(
                "{}: {}; no token has a next one",
                tokens.path().display(),
                amount(of_data.tokens, "tokens")
            )));
        }
        let vocab_size = options.vocab_size.unwrap_or(of_data.vocab_size);
        if vocab_size < of_data.vocab_size {
            return Err(Error::usage(format!(
                "--vocab-size {vocab_size}: the data's vocabulary has {}; expected at least as many",
                amount(of_data.vocab_size.into(), "tokens")
            )));
        }
        let header = Header {
            data: DataId {
                content_hash: hex(&of_data.content_hash),
                tokenizer_hash: hex(&of_data.tokenizer_hash),
                tokens: of_data.tokens,
            },
            teacher: TeacherId {
                name: options.name.clone(),
                weights: None,
                function: None,
                revision: None,
                dtype: None,
            },
            window: Window { context: options.context, stride: options.context },
            signal: Kind::TopK { k: options.top_k.unwrap_or(0), temperature: 1.0 },
            vocab_size,
            block: block_of(options.context),
            shard: Shard::ALL,
            positions: (0, 0),
        }
        .for_shard(Shard::ALL);
        Ok(Self {
            tokens,
            options,
            header,
            shard: None,
            block: BlockWriter::default(),
            at: 0,
            ahead_at: 0,
            ahead: Vec::new(),
            made: Made::default(),
        })
    }

    fn total(&self) -> u64 {
        self.header.positions_in_all()
    }

    fn run(&mut self, sources: &[Source], progress: &dyn Progress) -> Result<()> {
        for source in sources {
            let mut reader = Reader::open(source)?;
            loop {
                crate::interrupt::check()?;
                let batch = reader.batch()?;
                if batch.is_empty() {
                    break;
                }
                let before = self.at;
                for (number, record) in batch {
                    let place = Place { path: source.path(), format: source.format(), number };
                    let record = record.map_err(|what| place.error(what))?;
                    self.take(place, record)?;
                }
                self.forecast(before)?;
                progress.advance(self.at - before);
            }
        }
        Ok(())
    }

    /// Errs where the disk has no room for the rest, which the first batch tells.
    fn forecast(&self, before: u64) -> Result<()> {
        let Some(shard) = self.shard.as_ref().filter(|s| before == 0 && s.done() > 0) else {
            return Ok(());
        };
        let each = shard.bytes_of_blocks() as f64 / shard.done() as f64;
        let rest = each * (self.total() - self.at) as f64;
        check_space(&self.options.out, rest as u64, "the rest of the signal")
    }

    /// Appends what a record says.
    fn take(&mut self, place: Place<'_>, record: Record) -> Result<()> {
        if self.at >= self.total() {
            return Err(place.error(format!(
                "more than the data have: {} of {}, with {} and --context {}, are all said before it; leave it and what \
                 follows out, or name the data that it is of",
                amount(self.total(), "positions"),
                self.tokens.path().display(),
                amount(self.tokens.len(), "tokens"),
                self.options.context
            )));
        }
        match record {
            Record::Sequence(sequence) => self.take_sequence(place, sequence),
            Record::Position(position) => self.take_position(place, position),
        }
    }

    fn take_sequence(&mut self, place: Place<'_>, sequence: Sequence) -> Result<()> {
        let context = u64::from(self.options.context);
        if !self.at.is_multiple_of(context) {
            return Err(place.error(format!(
                "a window, but the lines before it end in the middle of one, at position {}; expected lines of one form",
                self.at
            )));
        }
        let window = self.at..(self.at + context + 1).min(self.tokens.len());
        let expected = self.tokens.to_vec(window.clone())?;
        self.check_tokens(&sequence.tokens, &expected, &window)
            .map_err(|what| place.error(what))?;
        let Sequence { said, .. } = sequence;
        if said.len() != expected.len() || said.first().is_some_and(Option::is_some) {
            return Err(place.error(format!(
                "prompt_logprobs has {}, {}; expected one for each of {}, and null first",
                amount(said.len() as u64, "entries"),
                if said.first().is_some_and(Option::is_some) {
                    "the first not null"
                } else {
                    "the first null"
                },
                amount(expected.len() as u64, "tokens")
            )));
        }
        if self.shard.is_none() {
            let k = position::k_of(&said, &expected);
            self.begin(place, k)?;
        }
        for (i, (of_token, target)) in said.into_iter().zip(expected).enumerate().skip(1) {
            let entries = of_token.ok_or_else(|| {
                place.error(format!("prompt_logprobs says nothing (null) of token {i}; only the first has nothing before it"))
            })?;
            let position = Position { number: None, entries, target: None };
            self.push(place, position, target)?;
        }
        Ok(())
    }

    /// Says how a prompt differs from its window of the data.
    fn check_tokens(
        &self,
        found: &[u32],
        expected: &[u32],
        window: &Range<u64>,
    ) -> std::result::Result<(), String> {
        let data = self.tokens.path().display();
        let should = format!(
            "expected window {} of the data, tokens {} to {} of {data} (--context {} and one more)",
            window.start / u64::from(self.options.context),
            window.start,
            window.end - 1,
            self.options.context
        );
        let Some(i) = found.iter().zip(expected).position(|(a, b)| a != b) else {
            return match found.len() == expected.len() {
                true => Ok(()),
                false => Err(format!(
                    "its prompt has {}, its window {}; {should}",
                    amount(found.len() as u64, "tokens"),
                    count(expected.len() as u64)
                )),
            };
        };
        let behind = found.get(1..).unwrap_or_default().iter().zip(expected);
        if i == 0 && found.len() > 2 && behind.clone().all(|(a, b)| a == b) {
            return Err(format!(
                "its prompt begins with id {}, and the tokens of its window ({}, ...) follow: something put a token in \
                 front, such as a bos; send the ids themselves as the prompt, not a text; {should}",
                found[0], expected[0]
            ));
        }
        Err(format!(
            "token {i} of its prompt is {}, and token {} of the data {}; {should}",
            found[i],
            window.start + i as u64,
            expected[i]
        ))
    }

    fn take_position(&mut self, place: Place<'_>, position: Position) -> Result<()> {
        if let Some(number) = position.number.filter(|n| *n != self.at) {
            return Err(place.error(format!(
                "position {number}; expected {}, the next one: positions come in the order of the data, from 0",
                self.at
            )));
        }
        if self.shard.is_none() {
            self.begin(place, position.entries.len())?;
        }
        let target = self.token(self.at + 1)?;
        self.push(place, position, target)
    }

    /// Token `i` of the data.
    fn token(&mut self, i: u64) -> Result<u32> {
        if !(self.ahead_at..self.ahead_at + self.ahead.len() as u64).contains(&i) {
            let end = (i + TOKENS_AT_ONCE).min(self.tokens.len());
            (self.ahead_at, self.ahead) = (i, self.tokens.to_vec(i..end)?);
        }
        Ok(self.ahead[(i - self.ahead_at) as usize])
    }

    /// Opens the file: `k` is what the first record has.
    fn begin(&mut self, place: Place<'_>, k: usize) -> Result<()> {
        let k = self.options.top_k.unwrap_or(k as u32);
        if k == 0 {
            return Err(place.error(
                "its first position names no id beside the token itself; ask the server for more: prompt_logprobs=64",
            ));
        }
        self.header.signal = Kind::TopK { k, temperature: 1.0 };
        if k > self.header.vocab_size {
            return Err(Error::usage(format!(
                "--top-k {k}: the vocabulary has {}; expected at most as many, or the teacher's own with --vocab-size",
                amount(self.header.vocab_size.into(), "tokens")
            )));
        }
        self.header.check().map_err(|what| Error::usage(format!("no signal can be of {what}")))?;
        let counts = self.tokens.counts(self.header.vocab_size as usize)?;
        self.made.folder(&self.options.out)?;
        let shard = ShardWriter::open(&self.options.out, self.header.clone(), Ranks::of(&counts))?;
        // From here on the file is ours.
        self.made.partial = Some(shard.partial().to_path_buf());
        self.shard.insert(shard).start_over(&self.header.teacher)
    }

    /// Appends a position.
    fn push(&mut self, place: Place<'_>, position: Position, target: u32) -> Result<()> {
        let wrong = |at: u64, what: String| place.error(format!("position {at}: {what}"));
        let Kind::TopK { k, .. } = self.header.signal else {
            return Err(Error::internal("an import of another kind than top-k"));
        };
        let asked = Asked { target, k: k as usize, vocab: self.header.vocab_size };
        let top = reduced(position, asked).map_err(|what| wrong(self.at, what))?;
        let shard =
            self.shard.as_mut().ok_or_else(|| Error::internal("an import without a file"))?;
        shard.append(&mut self.block, top.said[0], Row::Top(&top, 0))?;
        self.at += 1;
        Ok(())
    }

    /// Errs unless every position is there.
    fn check_whole(&self) -> Result<()> {
        let (at, total) = (self.at, self.total());
        if at == total {
            return Ok(());
        }
        let inputs: Vec<String> =
            self.options.inputs.iter().map(|path| path.display().to_string()).collect();
        let context = u64::from(self.options.context);
        let window = match at.is_multiple_of(context) {
            true => format!(" (window {})", at / context),
            false => String::new(),
        };
        Err(Error::data(format!(
            "{}: {} of {} of {} are there, {} are missing, from position {at}{window} on; name all the files, in the order of \
             the data",
            inputs.join(", "),
            count(at),
            amount(total, "positions"),
            self.tokens.path().display(),
            count(total - at)
        )))
    }

    fn shard(&mut self) -> Result<ShardWriter> {
        self.shard.take().ok_or_else(|| Error::internal("an import without a file"))
    }
}

/// A line or row by its number, and what it says or what is wrong with it.
type Numbered = (u64, std::result::Result<Record, String>);

/// An input that is being read.
enum Reader {
    Lines(Lines),
    Table(Box<Table>),
}

impl Reader {
    fn open(source: &Source) -> Result<Self> {
        if source.format() != Format::Parquet {
            return Lines::open(source, MOST_LINE_BYTES).map(Self::Lines);
        }
        let table = Table::open(source, &COLUMNS)?;
        check_columns(&source.path().display().to_string(), &table)?;
        Ok(Self::Table(Box::new(table)))
    }

    /// The next records; none at the end.
    fn batch(&mut self) -> Result<Vec<Numbered>> {
        match self {
            Self::Lines(lines) => {
                let (mut batch, mut bytes) = (Vec::new(), 0);
                while bytes < BATCH_BYTES && batch.len() < BATCH_ROWS {
                    let Some((number, line)) = lines.next()? else { break };
                    bytes += line.len();
                    batch.push((number, line));
                }
                Ok(batch.into_par_iter().map(|(number, line)| (number, of_line(&line))).collect())
            }
            Self::Table(table) => {
                let mut batch = Vec::new();
                while batch.len() < BATCH_ROWS {
                    let Some((number, row)) = table.next()? else { break };
                    batch.push((number, of_row(row)));
                }
                Ok(batch)
            }
        }
    }
}
