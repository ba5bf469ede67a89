//! A signal in its folder, open for reading.

use super::block::{Block, Decoder};
use super::header::{Header, Shard};
use super::shard::{PARTIAL, ShardReader, begun_in, hash_of_shards};
use crate::error::{Error, Result};
use crate::files::{children, is_bystander, name_of};
use crate::loss::{Said, Sampled, Signal, TopK};
use crate::report::text::amount;
use rayon::prelude::*;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What a teacher said of every position of a token file, read by position in any order. Cheap to
/// share: it holds files and an index.
#[derive(Debug)]
pub struct Stored {
    dir: PathBuf,
    shards: Vec<ShardReader>,
    hash: String,
    /// Planes that are read of a sampled signal.
    planes: usize,
    /// Blocks that were read ahead: those of the last two calls.
    ahead: Mutex<[Blocks; 2]>,
}

/// Blocks by shard and number.
type Blocks = HashMap<(usize, u64), Arc<Block>>;

/// Rows that are decoded by one task: some hundreds of microseconds.
const ROWS_OF_A_TASK: usize = 128;

impl Stored {
    /// Opens the folder that `eslm-kd signal write` made; all of its planes will be read. Headers and
    /// indices are checked here, blocks where they are read.
    pub fn open(dir: &Path) -> Result<Self> {
        let found = shards_in(dir)?;
        let Some(first) = found.first() else { return Err(no_signal(dir)) };
        let of = first.of;
        let missing: Vec<u32> =
            (0..of).filter(|&index| !found.contains(&Shard { index, of })).collect();
        if let Some(index) = missing.first() {
            return Err(Error::data(format!(
                "{}: {} of its {of} shards {} missing; the command that wrote the others, with --shard {index}/{of}, writes the \
                 first of them",
                dir.display(),
                missing.len(),
                if missing.len() == 1 { "is" } else { "are" }
            )));
        }
        let open = |shard: &Shard| ShardReader::open(dir, *shard);
        let shards = found.iter().map(open).collect::<Result<Vec<_>>>()?;
        let header = &shards[0].header;
        for other in &shards[1..] {
            let differences = other.header.differences(header);
            if !differences.is_empty() || other.ranks != shards[0].ranks {
                return Err(Error::data(format!(
                    "{}: of another signal than {} ({}); write one of them again",
                    other.path().display(),
                    shards[0].path().display(),
                    differences.join("; ")
                )));
            }
        }
        let planes = header.signal.planes().len();
        let hash = hash_of_shards(&shards);
        Ok(Self { dir: dir.to_path_buf(), shards, hash, planes, ahead: Mutex::default() })
    }

    /// The same, of which only the planes are read that hold the first `draws` draws. Errs where no
    /// plane ends there.
    pub fn with_draws(self, draws: u32) -> Result<Self> {
        let planes = self.header().signal.planes_for(draws)?;
        Ok(Self { planes, ..self })
    }

    /// What it is of. Shard and positions are those of its first file.
    pub fn header(&self) -> &Header {
        &self.shards[0].header
    }

    /// SHA-256 of headers, which hold the hash of the index, which holds those of the blocks: what
    /// the signal is, wherever it lies.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Where it was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    pub(super) fn shards(&self) -> &[ShardReader] {
        &self.shards
    }

    /// Shard and block of a position, and its place there.
    fn place(&self, position: u64) -> Result<(usize, u64, usize)> {
        let shard = self.shards.partition_point(|s| s.header.positions.1 <= position);
        let Some(header) = self.shards.get(shard).map(|s| &s.header) else {
            return Err(Error::internal(format!("position {position} of a signal asked for")));
        };
        let from = position - header.positions.0;
        let block = u64::from(header.block);
        Ok((shard, from / block, (from % block) as usize))
    }

    /// Block `key`, from what was read ahead or from the disk.
    fn block(&self, key: (usize, u64)) -> Result<Arc<Block>> {
        let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let known = ahead.iter().find_map(|blocks| blocks.get(&key).cloned());
        drop(ahead);
        match known {
            Some(block) => Ok(block),
            None => self.shards[key.0].block(key.1).map(Arc::new),
        }
    }

    /// Reads and checks the blocks of these positions for the [`Stored::fetch`] that comes, on
    /// whatever thread: a step then waits for no disk. What cannot be read, the fetch will say.
    pub fn read_ahead(&self, positions: &[u64]) {
        let mut blocks = Blocks::new();
        for &position in positions {
            let Ok((shard, block, _)) = self.place(position) else { continue };
            if let Entry::Vacant(free) = blocks.entry((shard, block))
                && let Ok(found) = self.block((shard, block))
            {
                free.insert(found);
            }
        }
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.swap(0, 1);
        ahead[1] = blocks;
    }

    /// Reads what the teacher said at these positions of the token file, each block once where
    /// positions of a block follow each other. Errs where a block is damaged.
    pub fn fetch(&self, positions: &[u64]) -> Result<Fetched<'_>> {
        let mut wanted: Vec<(usize, u64)> = Vec::new();
        let mut places = Vec::with_capacity(positions.len());
        for &position in positions {
            let (shard, block, row) = self.place(position)?;
            if wanted.last() != Some(&(shard, block)) {
                wanted.push((shard, block));
            }
            places.push((wanted.len() - 1, row));
        }
        let blocks = wanted.par_iter().map(|key| self.block(*key)).collect::<Result<Vec<_>>>()?;
        Ok(Fetched { stored: self, blocks, places })
    }
}

fn no_signal(dir: &Path) -> Error {
    if let Some(begun) = begun_in(dir).first() {
        return Error::data(format!(
            "{}: this signal is not finished: {}; the command that began it (`eslm-kd signal write --teacher {} ...`) goes on \
             with it",
            dir.display(),
            begun.progress(),
            begun.header.teacher.name
        ));
    }
    if children(dir).unwrap_or_default().iter().any(|path| name_of(path).ends_with(PARTIAL)) {
        return Error::data(format!(
            "{}: this signal is not finished, and nothing of it is whole; the command that began it begins again",
            dir.display()
        ));
    }
    let found = match (dir.is_dir(), dir.exists()) {
        (true, _) => "found none of its files",
        (false, true) => "found a file",
        (false, false) => "found nothing of that name",
    };
    let inside = children(dir).unwrap_or_default().into_iter().find(|path| is_signal(path));
    let above =
        dir.parent().filter(|above| dir.is_file() && is_signal(above)).map(Path::to_path_buf);
    let meant = match inside.or(above) {
        Some(place) => format!("; {} is one", place.display()),
        None => crate::files::near::did_you_mean(dir, is_signal),
    };
    Error::data(format!(
        "{}: expected a signal, a folder made by `eslm-kd signal write`; {found}{meant}",
        dir.display()
    ))
}

/// Whether a folder holds a signal, or a part of one.
pub fn is_signal(dir: &Path) -> bool {
    shards_in(dir).is_ok_and(|shards| !shards.is_empty())
}

/// Errs where a signal has no place in the folder `out`: it holds something else.
pub(super) fn check_out(out: &Path) -> Result<()> {
    let names: Vec<String> = children(out)?.iter().map(|path| name_of(path)).collect();
    let is_ours = |name: &String| name.ends_with(".signal") || name.ends_with(PARTIAL);
    match names.iter().find(|name| !is_bystander(name)) {
        Some(other) if !names.iter().any(is_ours) => Err(Error::usage(format!(
            "{}: holds {other}, and no signal; name a new folder with --out",
            out.display()
        ))),
        _ => Ok(()),
    }
}

/// The shards that are there, in order. Errs where they are of different divisions.
pub(super) fn shards_in(dir: &Path) -> Result<Vec<Shard>> {
    let mut found: Vec<Shard> = children(dir)
        .unwrap_or_default()
        .iter()
        .filter_map(|path| Shard::of_file(&path.file_name()?.to_string_lossy()))
        .collect();
    found.sort_by_key(|shard| (shard.of, shard.index));
    match (found.first(), found.last()) {
        (Some(a), Some(b)) if a.of != b.of => Err(Error::data(format!(
            "{}: parts of {} and of {}; remove those of one division",
            dir.display(),
            amount(a.of.into(), "shards"),
            b.of
        ))),
        _ => Ok(found),
    }
}

/// What was read for some positions, not decoded yet.
#[derive(Debug)]
pub struct Fetched<'a> {
    stored: &'a Stored,
    blocks: Vec<Arc<Block>>,
    places: Vec<(usize, usize)>,
}

impl Fetched<'_> {
    /// What is said beside the signal, position by position.
    pub fn said(&self) -> Vec<Said> {
        self.places.iter().map(|&(block, row)| self.blocks[block].said(row)).collect()
    }

    /// The signal of the positions at these places of what was asked for, in this order; None is all.
    pub fn signal(&self, rows: Option<&[u32]>) -> Result<Signal> {
        let places: Vec<(usize, usize)> = match rows {
            None => self.places.clone(),
            Some(rows) => rows.iter().map(|&r| self.places[r as usize]).collect(),
        };
        let (header, ranks) = (self.stored.header(), &self.stored.shards[0].ranks);
        let decoded = |places: &[(usize, usize)]| {
            let mut decoder = Decoder::new(header, ranks, self.stored.planes);
            for &(block, row) in places {
                // Its hash was right, so what wrote it was not.
                decoder.push(&self.blocks[block], row).ok_or_else(|| {
                    Error::data(format!(
                        "{}: a position's signal cannot be decoded; it was written by another program; write the signal again",
                        self.stored.dir.display()
                    ))
                })?;
            }
            Ok(decoder.finish())
        };
        let parts = places.par_chunks(ROWS_OF_A_TASK).map(decoded).collect::<Result<Vec<_>>>()?;
        let empty = Decoder::new(header, ranks, self.stored.planes).finish();
        Ok(parts.into_iter().fold(empty, joined))
    }
}

/// The rows of two signals of one kind.
fn joined(first: Signal, second: Signal) -> Signal {
    match (first, second) {
        (Signal::Sampled(mut a), Signal::Sampled(b)) => {
            let from = a.drawn.len();
            let Sampled { starts, drawn, said, .. } = b;
            a.drawn.extend(drawn);
            a.starts.extend(starts.iter().skip(1).map(|start| start + from));
            a.said.extend(said);
            Signal::Sampled(a)
        }
        (Signal::TopK(mut a), Signal::TopK(b)) => {
            let TopK { ids, logp, rest, said, .. } = b;
            a.ids.extend(ids);
            a.logp.extend(logp);
            a.rest.extend(rest);
            a.said.extend(said);
            Signal::TopK(a)
        }
        (_, b) => b,
    }
}
