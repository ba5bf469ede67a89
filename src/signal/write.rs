//! A teacher writes what it says of a token file.

use super::block::{BlockWriter, Row};
use super::codec::Ranks;
use super::header::{DataId, Header, Kind, Shard, TeacherId, Window};
use super::shard::{PARTIAL, ShardReader, ShardWriter, begun_in};
use super::stored::{check_out, shards_in};
use crate::data::loader::{Batch, EvalWindows};
use crate::data::tokens::TokenFile;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{check_space, create_folder, hex};
use crate::loss::head::{self, Logits};
use crate::loss::{Said, Sampled, Signal};
use crate::progress::Progress;
use crate::report::text::{amount, bytes, count, seconds};
use crate::teacher::Teacher;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Positions of a forward pass.
const POSITIONS_AT_ONCE: usize = 4096;
/// Positions of a block where the teacher's context does not say it better.
const BLOCK: u32 = 1024;
/// Between two times that what is written goes to the disk.
const FLUSH: Duration = Duration::from_secs(10);

/// What to write, and where.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// The signal's folder.
    pub out: PathBuf,
    /// What each position holds.
    pub kind: Kind,
    /// How the teacher reads.
    pub window: Window,
    /// The part that this call writes.
    pub shard: Shard,
}

/// What a call wrote.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Written {
    /// The signal's folder.
    pub signal: PathBuf,
    /// The file.
    pub shard: String,
    /// Its positions.
    pub positions: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Bytes of a position, everything counted.
    pub bytes_per_token: f64,
    /// Positions that this call ran the teacher over.
    pub computed: u64,
    /// Seconds that this took.
    pub seconds: f64,
    /// Whether all shards are there now.
    pub complete: bool,
}

/// Positions of a block, of a teacher that reads so many tokens at once. A block is read at once:
/// that of a student's sequence holds nothing else.
pub(super) fn block_of(context: u32) -> u32 {
    if (128..=2048).contains(&context) { context } else { BLOCK }
}

/// The header of the signal that `options` ask for.
fn header(
    teacher: &Teacher,
    id: TeacherId,
    tokens: &TokenFile,
    options: &WriteOptions,
) -> Result<Header> {
    let context = options.window.context;
    let of_data = tokens.header();
    let header = Header {
        data: DataId {
            content_hash: hex(&of_data.content_hash),
            tokenizer_hash: hex(&of_data.tokenizer_hash),
            tokens: tokens.len(),
        },
        teacher: id,
        window: options.window,
        signal: options.kind.clone(),
        vocab_size: teacher.config().vocab_size as u32,
        block: block_of(context),
        shard: options.shard,
        positions: (0, 0),
    }
    .for_shard(options.shard);
    header.check().map_err(|what| Error::usage(format!("no signal can be of {what}")))?;
    let positions = teacher.config().n_positions;
    if context as usize > positions {
        return Err(Error::usage(format!(
            "--context {context}: the teacher has {positions} positions; use at most as many"
        )));
    }
    Ok(header)
}

/// Runs the teacher over `tokens` and writes a shard of what it says, in its folder. Goes on with
/// what an earlier call has left; on a stop signal what is done stays. A shard that is there already
/// is left as it is, unless it is of another signal, which is an error.
pub fn write(
    teacher: &Teacher,
    id: TeacherId,
    tokens: &Arc<TokenFile>,
    options: &WriteOptions,
    progress: &dyn Progress,
) -> Result<Written> {
    tokens.verify(progress)?; // a signal says of which tokens it is
    let header = header(teacher, id, tokens, options)?;
    check_out(&options.out)?;
    let target = options.out.join(header.shard.file());
    let of = header.shard.of;
    if shards_in(&options.out)?.iter().any(|there| there.of != of) {
        return Err(Error::usage(format!(
            "{}: holds a signal in another number of shards than {of}; choose another --out",
            options.out.display(),
        )));
    }
    if let Some(begun) = begun_in(&options.out).iter().find(|begun| begun.header.shard.of != of) {
        return Err(Error::usage(format!(
            "{}: holds a signal that was begun in {} and is not finished, and {of} are asked for; go on with as many, \
             remove its *{PARTIAL}, or choose another --out",
            options.out.display(),
            amount(begun.header.shard.of.into(), "shards")
        )));
    }
    if target.exists() {
        return there(&target, &header, options);
    }
    let counts = match header.signal {
        Kind::Scores => Vec::new(),
        Kind::Sampled { .. } | Kind::TopK { .. } => tokens.counts(header.vocab_size as usize)?,
    };
    create_folder(&options.out)?;
    let shard = ShardWriter::open(&options.out, header.clone(), Ranks::of(&counts))?;
    let total = header.positions.1 - header.positions.0;
    let done = shard.done();
    progress.start(&label(&header), Some(total), "tokens");
    progress.resume(done);
    let mut job = Job { header, shard, block: BlockWriter::default(), at: done, computed: 0 };
    let started = Instant::now();
    let ended = job.run(teacher, tokens, &options.out, progress);
    progress.finish();
    if let Err(e) = ended {
        return Err(match job.shard.flush() {
            Ok(()) if matches!(e.kind(), ErrorKind::Interrupted(_)) => e.followed_by(&format!(
                "; {} of {} are written in {}, and the same command goes on",
                count(job.shard.done()),
                amount(total, "positions"),
                options.out.display()
            )),
            _ => e,
        });
    }
    let Job { header, shard, computed, .. } = job;
    let written = shard.finish()?;
    Ok(Written {
        seconds: started.elapsed().as_secs_f64(),
        computed,
        ..summary(&header, written, options)?
    })
}

fn label(header: &Header) -> String {
    match header.shard {
        Shard::ALL => "Writing the signal".into(),
        shard => format!("Writing shard {shard} of the signal"),
    }
}

fn summary(header: &Header, bytes: u64, options: &WriteOptions) -> Result<Written> {
    let positions = header.positions.1 - header.positions.0;
    Ok(Written {
        signal: options.out.clone(),
        shard: header.shard.file(),
        positions,
        bytes,
        bytes_per_token: bytes as f64 / positions.max(1) as f64,
        computed: 0,
        seconds: 0.0,
        complete: shards_in(&options.out)?.len() == header.shard.of as usize,
    })
}

/// A shard that an earlier call has finished.
fn there(target: &Path, header: &Header, options: &WriteOptions) -> Result<Written> {
    let found = ShardReader::open(&options.out, header.shard)?;
    let differences = found.header.differences(header);
    if differences.is_empty() {
        return summary(header, found.bytes, options);
    }
    Err(Error::usage(format!(
        "{}: holds another signal ({}); choose another --out, or remove it",
        target.display(),
        differences.join("; ")
    )))
}

/// A shard that is being written.
struct Job {
    header: Header,
    shard: ShardWriter,
    block: BlockWriter,
    /// Positions of the shard that are encoded.
    at: u64,
    computed: u64,
}

impl Job {
    fn run(
        &mut self,
        teacher: &Teacher,
        tokens: &Arc<TokenFile>,
        out: &Path,
        progress: &dyn Progress,
    ) -> Result<()> {
        let Window { context, stride } = self.header.window;
        let total = self.header.positions_in_all();
        let windows = self.header.shard.windows(self.header.window.count(total));
        let next = self.header.positions.0 + self.at;
        let first = windows.clone().find(|&w| self.header.window.of(w, total).end > next);
        let Some(first) = first else { return Ok(()) };
        let rows = (POSITIONS_AT_ONCE / context as usize).max(1);
        let batches =
            EvalWindows::new(Arc::clone(tokens), context as usize, stride as usize, rows)?;
        let (started, mut flushed) = (Instant::now(), Instant::now());
        let mut told = false;
        for batch in batches.between(first..windows.end) {
            crate::interrupt::check()?;
            let before = self.at;
            self.take(teacher, &batch?)?;
            progress.advance(self.at - before);
            self.computed += self.at - before;
            // A first batch may complete no block, and says nothing of bytes then.
            if !told && self.shard.done() > 0 {
                told = true;
                self.forecast(started.elapsed(), out, progress)?;
            }
            if flushed.elapsed() > FLUSH {
                self.shard.flush()?;
                flushed = Instant::now();
            }
        }
        Ok(())
    }

    /// Says, from the first blocks, what the shard takes in time and bytes. Errs where the disk has no
    /// room for it.
    fn forecast(&self, taken: Duration, out: &Path, progress: &dyn Progress) -> Result<()> {
        let left = self.header.positions.1 - self.header.positions.0 - self.at;
        if left == 0 || self.computed == 0 {
            return Ok(());
        }
        let each = self.shard.bytes_of_blocks() as f64 / self.shard.done() as f64;
        let (size, time) =
            ((each * left as f64) as u64, taken.as_secs_f64() / self.computed as f64 * left as f64);
        check_space(out, size, "the rest of the signal")?;
        progress.note(&format!(
            "{} left: roughly {}, {}",
            amount(left, "tokens"),
            seconds(time),
            bytes(size)
        ));
        Ok(())
    }

    /// Appends what the teacher says of a batch's positions, from the next one on.
    fn take(&mut self, teacher: &Teacher, batch: &Batch) -> Result<()> {
        let context = batch.context as u64;
        let stride = u64::from(self.header.window.stride);
        let next = self.header.positions.0 + self.at;
        let position =
            |i: usize| batch.sequence_ids[i / batch.context] * stride + i as u64 % context;
        let rows: Vec<u32> = (0..batch.inputs.len())
            .filter(|&i| batch.valid[i] && position(i) >= next)
            .map(|i| i as u32)
            .collect();
        let positions: Vec<u64> = rows.iter().map(|&r| position(r as usize)).collect();
        let targets: Vec<u32> = rows.iter().map(|&r| batch.targets[r as usize]).collect();
        let logits = teacher.signal(&batch.inputs, batch.context)?;
        let logits =
            if rows.len() == batch.inputs.len() { logits } else { logits.select(&rows)? };
        let said = Reduced::of(&logits, &self.header.signal, &targets, &positions)?;
        for i in 0..positions.len() {
            let row = match &said {
                Reduced::Draws(planes) => Row::Draws(planes, i),
                Reduced::Other(Signal::TopK(top)) => Row::Top(top, i),
                Reduced::Other(_) => Row::Nothing,
            };
            self.shard.append(&mut self.block, said.said(i), row)?;
            self.at += 1;
        }
        Ok(())
    }
}

/// What a teacher says of some rows, in the form that is stored.
enum Reduced {
    Draws(Vec<Sampled>),
    Other(Signal),
}

impl Reduced {
    fn of(logits: &Logits, kind: &Kind, targets: &[u32], positions: &[u64]) -> Result<Self> {
        let tau = kind.temperature().unwrap_or(1.0);
        if let Kind::Sampled { planes, seed, .. } = kind {
            return Ok(Self::Draws(head::reduce_planes(
                logits, targets, planes, tau, *seed, positions,
            )?));
        }
        Ok(Self::Other(head::reduce(logits, targets, kind.all(), tau, 0, positions)?))
    }

    fn said(&self, i: usize) -> Said {
        match self {
            Self::Draws(planes) => planes[0].said[i],
            Self::Other(signal) => signal.said(i).unwrap_or_default(),
        }
    }
}
