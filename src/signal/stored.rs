//! A signal in its folder, open for reading.

use super::block::{Block, Decoder};
use super::header::{Header, Shard};
use super::mix::{self, Mixture, is_mix};
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

/// What a teacher said of every position of a token file, read by position in any order; or what
/// several said, mixed by weight as it is read. Cheap to share: it holds files and an index.
#[derive(Debug)]
pub struct Stored {
    dir: PathBuf,
    /// One, or those of a mix.
    parts: Vec<Part>,
    mix: Option<Mixture>,
    hash: String,
}

impl Stored {
    /// Opens the folder that `eslm-kd signal write`, `import` or `mix` made; all planes will be read
    /// that there are. Headers and indices are checked here, blocks where they are read.
    pub fn open(dir: &Path) -> Result<Self> {
        if is_mix(dir) {
            return mix::open(dir);
        }
        let part = Part::open(dir)?;
        let hash = hash_of_shards(&part.shards);
        Ok(Self { dir: dir.to_path_buf(), parts: vec![part], mix: None, hash })
    }

    /// Of several, which `mixture` says how to hear as one.
    pub(super) fn mixed(dir: &Path, parts: Vec<Part>, mixture: Mixture, hash: String) -> Self {
        Self { dir: dir.to_path_buf(), parts, mix: Some(mixture), hash }
    }

    /// The same, of which only the planes are read that hold the first `draws` draws of every part.
    /// Errs where no plane ends there.
    pub fn with_draws(self, draws: u32) -> Result<Self> {
        self.header().signal.planes_for(draws)?; // a mix names those of all parts
        let parts = self.parts.into_iter().map(|part| part.with_draws(draws));
        Ok(Self { parts: parts.collect::<Result<_>>()?, ..self })
    }

    /// What it is of. Shard and positions are those of its first file, or all of a mix. A mix has no
    /// teacher but a name, and the seed of its first part.
    pub fn header(&self) -> &Header {
        match &self.mix {
            Some(mixture) => &mixture.header,
            None => self.parts[0].header(),
        }
    }

    /// SHA-256 of headers, which hold the hash of the index, which holds those of the blocks: what
    /// the signal is, wherever it lies. Of a mix that of its weights and its parts' hashes.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Where it was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes of its files, those of a mix's parts included.
    pub fn bytes(&self) -> u64 {
        self.shards().map(|shard| shard.bytes).sum()
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = &ShardReader> {
        self.parts.iter().flat_map(|part| &part.shards)
    }

    pub(super) fn is_mix(&self) -> bool {
        self.mix.is_some()
    }

    /// Reads and checks the blocks of these positions for the [`Stored::fetch`] that comes, on
    /// whatever thread: a step then waits for no disk. What cannot be read, the fetch will say.
    pub fn read_ahead(&self, positions: &[u64]) {
        self.parts.iter().for_each(|part| part.read_ahead(positions));
    }

    /// Reads what the teacher said at these positions of the token file, each block once where
    /// positions of a block follow each other. Errs where a block is damaged.
    pub fn fetch(&self, positions: &[u64]) -> Result<Fetched<'_>> {
        let parts = self.parts.iter().map(|part| part.fetch(positions)).collect::<Result<_>>();
        let parts =
            parts.map_err(|e| if self.is_mix() { e.context(self.dir.display()) } else { e });
        Ok(Fetched { mix: self.mix.as_ref(), parts: parts?, rows: positions.len() as u32 })
    }
}

/// A signal that was written, open for reading.
#[derive(Debug)]
pub(super) struct Part {
    dir: PathBuf,
    shards: Vec<ShardReader>,
    /// Planes that are read of a sampled signal.
    planes: usize,
    /// Blocks that were read ahead: those of the last two calls.
    ahead: Mutex<[Blocks; 2]>,
}

/// Blocks by shard and number.
type Blocks = HashMap<(usize, u64), Arc<Block>>;

/// Rows that are decoded by one task: some hundreds of microseconds.
const ROWS_OF_A_TASK: usize = 128;

impl Part {
    pub(super) fn open(dir: &Path) -> Result<Self> {
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
        Ok(Self { dir: dir.to_path_buf(), shards, planes, ahead: Mutex::default() })
    }

    pub(super) fn with_draws(self, draws: u32) -> Result<Self> {
        let planes = self.header().signal.planes_for(draws)?;
        Ok(Self { planes, ..self })
    }

    pub(super) fn header(&self) -> &Header {
        &self.shards[0].header
    }

    pub(super) fn hash(&self) -> String {
        hash_of_shards(&self.shards)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
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

    fn read_ahead(&self, positions: &[u64]) {
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

    fn fetch(&self, positions: &[u64]) -> Result<Found<'_>> {
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
        Ok(Found { part: self, blocks, places })
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

/// Whether a folder holds a signal, a part of one, or a mix.
pub fn is_signal(dir: &Path) -> bool {
    is_mix(dir) || shards_in(dir).is_ok_and(|shards| !shards.is_empty())
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
    mix: Option<&'a Mixture>,
    parts: Vec<Found<'a>>,
    rows: u32,
}

impl Fetched<'_> {
    /// What is said beside the signal, position by position.
    pub fn said(&self) -> Vec<Said> {
        match self.mix {
            None => self.parts[0].said(),
            Some(mixture) => mixture.said(&self.parts.iter().map(Found::said).collect::<Vec<_>>()),
        }
    }

    /// The signal of the positions at these places of what was asked for, in this order; None is all.
    pub fn signal(&self, rows: Option<&[u32]>) -> Result<Signal> {
        let all: Vec<u32>;
        let rows = match rows {
            Some(rows) => rows,
            None => {
                all = (0..self.rows).collect();
                &all
            }
        };
        let decoded = |rows: &[u32]| match self.mix {
            None => self.parts[0].decoded(rows),
            Some(mixture) => {
                let parts = self.parts.iter().map(|part| part.decoded(rows));
                mixture.signal(&parts.collect::<Result<Vec<_>>>()?)
            }
        };
        let done = rows.par_chunks(ROWS_OF_A_TASK).map(decoded).collect::<Result<Vec<_>>>()?;
        Ok(done.into_iter().fold(decoded(&[])?, joined))
    }
}

/// What was read of one signal.
#[derive(Debug)]
struct Found<'a> {
    part: &'a Part,
    blocks: Vec<Arc<Block>>,
    places: Vec<(usize, usize)>,
}

impl Found<'_> {
    fn said(&self) -> Vec<Said> {
        self.places.iter().map(|&(block, row)| self.blocks[block].said(row)).collect()
    }

    fn decoded(&self, rows: &[u32]) -> Result<Signal> {
        let Part { dir, shards, planes, .. } = self.part;
        let mut decoder = Decoder::new(self.part.header(), &shards[0].ranks, *planes);
        for &row in rows {
            let (block, row) = self.places[row as usize];
            // Its hash was right, so what wrote it was not.
            decoder.push(&self.blocks[block], row).ok_or_else(|| {
                Error::data(format!(
                    "{}: a position's signal cannot be decoded; it was written by another program; write the signal again",
                    dir.display()
                ))
            })?;
        }
        Ok(decoder.finish())
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
