//! A teacher writes what it says of a token file.

use super::block::{BlockWriter, Row};
use super::codec::Ranks;
use super::header::{DataId, Header, Kind, Shard, TeacherId, Window};
use super::shard::{ShardReader, ShardWriter, begun_in};
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
use crate::world::World;
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
    /// The part that this call writes, in one process; several divide the whole.
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

/// Runs the teacher over `tokens` and writes what it says: a shard of it, or with the processes of `world`
/// all of it, a shard each. Goes on with what an earlier call has left; on a stop signal what is done
/// stays. A shard that is there already is left as it is, unless it is of another signal, which is an
/// error. The error of one process is that of all, and ends them after the batch in hand.
pub fn write(
    teacher: &Teacher,
    id: TeacherId,
    tokens: &Arc<TokenFile>,
    options: &WriteOptions,
    world: &World,
    progress: &dyn Progress,
) -> Result<Written> {
    let mut options = options.clone();
    if world.size() > 1 {
        options.shard = Shard { index: world.rank() as u32, of: world.size() as u32 };
    }
    // A signal says of which tokens it is.
    let verified = tokens.verify(progress).and_then(|()| header(teacher, id, tokens, &options));
    let header = world.together(verified)?;
    world.same(|| {
        let facts = header.facts().map(|(name, value)| (format!("the signal's {name}"), value));
        let out = ("--out".to_string(), options.out.display().to_string());
        Ok(std::iter::once(out).chain(facts).collect())
    })?;
    let started = Instant::now();
    let mut part = world.together(Part::begin(header, tokens, &options))?;
    let label = match (options.shard, world.size()) {
        (Shard::ALL, _) | (_, 2..) => "Writing the signal".into(),
        (shard, _) => format!("Writing shard {shard} of the signal"),
    };
    progress.start(&label, Some(sum(world, part.total())?), "tokens");
    progress.resume(sum(world, part.done())?);
    let ended = part.run(teacher, &options.out, world, progress);
    progress.finish();
    if let Err(e) = ended {
        world.forgive();
        let flushed = world.together(part.flush());
        return Err(match flushed.and_then(|()| Ok((sum(world, part.done())?, part.total()))) {
            Ok((done, mine)) if matches!(e.kind(), ErrorKind::Interrupted(_)) => {
                let with = match world.size() {
                    1 => String::new(),
                    size => format!(" with {size} processes"),
                };
                e.followed_by(&format!(
                    "; {} of {} are written in {}, and the same command goes on{with}",
                    count(done),
                    amount(sum(world, mine)?, "positions"),
                    options.out.display()
                ))
            }
            _ => e,
        });
    }
    let mine = world.together(part.finish(&options, started))?;
    of_all(mine, world, &options)
}

/// The sum of what each process has.
fn sum(world: &World, mine: u64) -> Result<u64> {
    let all = world.agree_on(Ok(vec![mine as f64]))?;
    Ok(all.concat().iter().sum::<f64>() as u64)
}

/// What the parts of all processes come to; of the files it names its own.
fn of_all(mine: Written, world: &World, options: &WriteOptions) -> Result<Written> {
    if world.size() == 1 {
        return Ok(mine);
    }
    let numbers = [mine.positions as f64, mine.bytes as f64, mine.computed as f64, mine.seconds];
    let all = world.agree_on(Ok(numbers.to_vec()))?;
    let sum = |i: usize| all.iter().map(|numbers| numbers[i]).sum::<f64>();
    Ok(Written {
        positions: sum(0) as u64,
        bytes: sum(1) as u64,
        bytes_per_token: sum(1) / sum(0),
        computed: sum(2) as u64,
        seconds: all.iter().map(|numbers| numbers[3]).fold(0.0, f64::max),
        complete: shards_in(&options.out)?.len() == world.size(),
        ..mine
    })
}

/// Errs where a folder holds shards of another division than in `of`, finished or not.
fn check_division(out: &Path, of: u32) -> Result<()> {
    let (finished, begun) = (shards_in(out)?, begun_in(out));
    let divisions = finished.iter().map(|shard| shard.of);
    let mut divisions = divisions.chain(begun.iter().map(|begun| begun.header.shard.of));
    let Some(other) = divisions.find(|other| *other != of) else { return Ok(()) };
    let there = out.display();
    Err(Error::usage(match finished.len() as u32 == other {
        true => format!(
            "{there}: holds a whole signal, in {}, and another number of shards is asked for, {of}; use it, or choose \
             another --out",
            amount(other.into(), "shards")
        ),
        false => format!(
            "{there}: holds a signal that was begun in {} and is not finished, and another number of shards is asked for, \
             {of}; go on with as many, remove what is there, or choose another --out",
            amount(other.into(), "shards")
        ),
    }))
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

/// A process's part of a signal.
enum Part {
    /// An earlier call has finished it.
    There(Written),
    Begun(Box<Job>),
}

/// A shard that is being written.
struct Job {
    header: Header,
    shard: ShardWriter,
    block: BlockWriter,
    /// What the teacher is still to read.
    batches: Option<EvalWindows>,
    /// Positions of the shard that are encoded.
    at: u64,
    computed: u64,
    /// Whether the forecast has been told.
    told: bool,
    started: Instant,
    flushed: Instant,
}

impl Part {
    fn begin(header: Header, tokens: &Arc<TokenFile>, options: &WriteOptions) -> Result<Self> {
        check_out(&options.out)?;
        check_division(&options.out, header.shard.of)?;
        let target = options.out.join(header.shard.file());
        if target.exists() {
            return there(&target, &header, options).map(Self::There);
        }
        let counts = match header.signal {
            Kind::Scores => Vec::new(),
            Kind::Sampled { .. } | Kind::TopK { .. } => {
                tokens.counts(header.vocab_size as usize)?
            }
        };
        create_folder(&options.out)?;
        let shard = ShardWriter::open(&options.out, header.clone(), Ranks::of(&counts))?;
        let at = shard.done();

        let Window { context, stride } = header.window;
        let total = header.positions_in_all();
        let windows = header.shard.windows(header.window.count(total));
        let next = header.positions.0 + at;
        let first = windows.clone().find(|&w| header.window.of(w, total).end > next);
        let rows = (POSITIONS_AT_ONCE / context as usize).max(1);
        let batches = first.map(|first| {
            EvalWindows::new(Arc::clone(tokens), context as usize, stride as usize, rows)
                .map(|batches| batches.between(first..windows.end))
        });
        let now = Instant::now();
        Ok(Self::Begun(Box::new(Job {
            batches: batches.transpose()?,
            header,
            shard,
            block: BlockWriter::default(),
            at,
            computed: 0,
            told: false,
            started: now,
            flushed: now,
        })))
    }

    /// Positions that are whole on their way to the disk.
    fn done(&self) -> u64 {
        match self {
            Self::There(written) => written.positions,
            Self::Begun(job) => job.shard.done(),
        }
    }

    fn total(&self) -> u64 {
        match self {
            Self::There(written) => written.positions,
            Self::Begun(job) => job.header.positions.1 - job.header.positions.0,
        }
    }

    /// Batch after batch, which all processes begin together, until all are through.
    fn run(
        &mut self,
        teacher: &Teacher,
        out: &Path,
        world: &World,
        progress: &dyn Progress,
    ) -> Result<()> {
        loop {
            let one = match self {
                Self::There(_) => Ok(None),
                Self::Begun(job) => job.batch(teacher, out, world, progress),
            };
            let said = one.map(|n| match n {
                Some(n) => vec![n as f64, 0.0],
                None => vec![0.0, 1.0],
            });
            let all = world.agree_on(said)?;
            progress.advance(all.iter().map(|said| said[0]).sum::<f64>() as u64);
            if all.iter().all(|said| said[1] == 1.0) {
                return Ok(());
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        match self {
            Self::There(_) => Ok(()),
            Self::Begun(job) => job.shard.flush(),
        }
    }

    fn finish(self, options: &WriteOptions, started: Instant) -> Result<Written> {
        let job = match self {
            Self::There(written) => return Ok(written),
            Self::Begun(job) => *job,
        };
        let Job { header, shard, computed, .. } = job;
        let bytes = shard.finish()?;
        let seconds = started.elapsed().as_secs_f64();
        Ok(Written { seconds, computed, ..summary(&header, bytes, options)? })
    }
}

impl Job {
    /// The positions of the next batch, which is appended; None behind the last.
    fn batch(
        &mut self,
        teacher: &Teacher,
        out: &Path,
        world: &World,
        progress: &dyn Progress,
    ) -> Result<Option<u64>> {
        crate::interrupt::check()?;
        let Some(batch) = self.batches.as_mut().and_then(Iterator::next) else { return Ok(None) };
        let before = self.at;
        self.take(teacher, &batch?)?;
        self.computed += self.at - before;
        // A first batch may complete no block, and says nothing of bytes then.
        if !self.told && self.shard.done() > 0 {
            self.told = true;
            self.forecast(out, world, progress)?;
        }
        if self.flushed.elapsed() > FLUSH {
            self.shard.flush()?;
            self.flushed = Instant::now();
        }
        Ok(Some(self.at - before))
    }

    /// Says, from the first blocks, what this shard and those of other processes take in time and bytes.
    /// Errs where the disk has no room for it.
    fn forecast(&self, out: &Path, world: &World, progress: &dyn Progress) -> Result<()> {
        let mine = self.header.positions.1 - self.header.positions.0 - self.at;
        if mine == 0 || self.computed == 0 {
            return Ok(());
        }
        let left = mine * world.size() as u64;
        let each = self.shard.bytes_of_blocks() as f64 / self.shard.done() as f64;
        let taken = self.started.elapsed().as_secs_f64();
        let (size, time) =
            ((each * left as f64) as u64, taken / self.computed as f64 * mine as f64);
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
