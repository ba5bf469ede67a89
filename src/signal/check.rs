//! What lies in a signal's folder: whole or damaged, and what its bytes are for.

use super::block::Parts;
use super::header::{Header, Kind, Shard};
use super::mix::{MixedPart, is_mix, parts_of};
use super::shard::{Begun, ShardReader, begun_in};
use super::stored::{Stored, shards_in};
use crate::error::{ErrorKind, Result};
use crate::files::children;
use crate::loss::Signal;
use crate::progress::Progress;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What `signal verify` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The folder.
    pub signal: PathBuf,
    /// Blocks that were read.
    pub blocks: u64,
    /// Positions that can be read.
    pub positions: u64,
    /// What is damaged, a line each.
    pub damaged: Vec<String>,
    /// Files of shards that are not there.
    pub missing: Vec<String>,
}

/// Reads every block of every shard that is there, decodes it, and says what is damaged; of a mix
/// that of all parts, and whether they are those that were mixed.
pub fn verify(dir: &Path, progress: &dyn Progress) -> Result<Verified> {
    if !is_mix(dir) {
        return verify_part(dir, progress);
    }
    let signal = dir.to_path_buf();
    let (damaged, missing) = (Vec::new(), Vec::new());
    let mut out = Verified { signal, blocks: 0, positions: 0, damaged, missing };
    for MixedPart { signal, .. } in parts_of(dir)? {
        match verify_part(&signal, progress) {
            Ok(part) => {
                out.blocks += part.blocks;
                out.positions += part.positions;
                out.damaged.extend(part.damaged);
                let named = |file: String| signal.join(file).display().to_string();
                out.missing.extend(part.missing.into_iter().map(named));
            }
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted(_)) => return Err(e),
            Err(e) => out.damaged.push(e.to_string()),
        }
    }
    if out.damaged.is_empty() && out.missing.is_empty() {
        out.damaged.extend(Stored::open(dir).err().map(|e| e.to_string()));
    }
    Ok(out)
}

fn verify_part(dir: &Path, progress: &dyn Progress) -> Result<Verified> {
    let found = shards_in(dir)?;
    if found.is_empty() {
        Stored::open(dir)?; // says why
    }
    let of = found.first().map_or(0, |shard| shard.of);
    let missing = (0..of).map(|index| Shard { index, of }).filter(|s| !found.contains(s));
    let mut out = Verified {
        signal: dir.to_path_buf(),
        blocks: 0,
        positions: 0,
        damaged: Vec::new(),
        missing: missing.map(Shard::file).collect(),
    };
    let bytes = crate::files::bytes_of_files(dir);
    progress.start(&format!("Verifying {}", dir.display()), Some(bytes), "bytes");
    let mut first: Option<Header> = None;
    for shard in &found {
        let shard = match ShardReader::open(dir, *shard) {
            Ok(shard) => shard,
            Err(e) => {
                out.damaged.push(e.to_string());
                continue;
            }
        };
        let header = first.get_or_insert_with(|| shard.header.clone());
        let differences = shard.header.differences(header);
        if !differences.is_empty() {
            let (path, differences) = (shard.path().display(), differences.join("; "));
            out.damaged.push(format!("{path}: of another signal ({differences})"));
        }
        for i in 0..shard.header.blocks() {
            crate::interrupt::check()?;
            let positions = shard.header.of_block(i);
            let read = shard.block(i).and_then(|block| {
                let n = (positions.end - positions.start) as usize;
                shard.decoded(&block, n, i).map(|_| ())
            });
            match read {
                Ok(()) => out.positions += positions.end - positions.start,
                Err(e) => out.damaged.push(e.to_string()),
            }
            out.blocks += 1;
        }
        progress.advance(shard.bytes);
    }
    progress.finish();
    Ok(out)
}

/// What `signal inspect` says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspected {
    /// The folder.
    pub signal: PathBuf,
    /// What it is of; shard and positions are those of its first file, or all of a mix.
    pub header: Header,
    /// The parts of a mix; what follows is then of the mixture, and bytes are those of all parts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<MixedPart>,
    /// What it is, whatever it is called.
    pub hash: String,
    /// Positions of all shards.
    pub positions: u64,
    /// Shards.
    pub shards: u32,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes of a position, everything counted.
    pub bytes_per_token: f64,
    /// The teacher's NLL of the target and its entropy.
    pub scalar_bytes_per_token: f64,
    /// Where the rows of a block begin.
    pub length_bytes_per_token: f64,
    /// What was drawn, or the largest entries.
    pub row_bytes_per_token: f64,
    /// Headers, tables of ranks, indices.
    pub frame_bytes_per_token: f64,
    /// Mean of the teacher's NLL, in nats.
    pub nll: f64,
    /// Mean of its entropy, in nats.
    pub entropy: f64,
    /// Mean number of ids that a position names.
    pub ids: f64,
    /// Positions by the number of ids that they name: 1, 2, 3 to 4, 5 to 8 and so on.
    pub histogram: Vec<(u32, u64)>,
}

/// What rows hold, added up.
#[derive(Default)]
struct Tally {
    positions: u64,
    nll: f64,
    entropy: f64,
    ids: u64,
    histogram: Vec<(u32, u64)>,
}

impl Tally {
    fn add(&mut self, signal: &Signal) {
        for row in 0..signal.rows() {
            let said = signal.said(row).unwrap_or_default();
            self.positions += 1;
            self.nll += f64::from(said.nll);
            self.entropy += f64::from(said.entropy);
            let named = match signal {
                Signal::Sampled(sampled) => sampled.row(row).len() as u32,
                Signal::TopK(top) => top.k as u32,
                Signal::Dense(_) => 0,
            };
            self.ids += u64::from(named);
            let upper = named.next_power_of_two();
            match self.histogram.iter_mut().find(|(u, _)| *u == upper) {
                Some((_, count)) => *count += 1,
                None => self.histogram.push((upper, 1)),
            }
        }
    }
}

/// Positions of a mix that are read at once.
const AT_ONCE: u64 = 4096;

/// Reads and decodes all of a signal.
pub fn inspect(dir: &Path, progress: &dyn Progress) -> Result<Inspected> {
    let stored = Stored::open(dir)?;
    let (mut parts, mut tally) = (Parts::default(), Tally::default());
    progress.start("Reading the signal", Some(stored.bytes()), "bytes");
    for shard in stored.shards() {
        for i in 0..shard.header.blocks() {
            crate::interrupt::check()?;
            let block = shard.block(i)?;
            let range = shard.header.of_block(i);
            let of_block = block.parts();
            parts.scalars += of_block.scalars;
            parts.lengths += of_block.lengths;
            parts.rows += of_block.rows;
            if !stored.is_mix() {
                tally.add(&shard.decoded(&block, (range.end - range.start) as usize, i)?);
            }
        }
        progress.advance(shard.bytes);
    }
    let total = stored.header().positions_in_all();
    for start in (0..if stored.is_mix() { total } else { 0 }).step_by(AT_ONCE as usize) {
        crate::interrupt::check()?;
        let positions: Vec<u64> = (start..(start + AT_ONCE).min(total)).collect();
        tally.add(&stored.fetch(&positions)?.signal(None)?);
    }
    progress.finish();
    let Tally { positions, nll, entropy, ids, mut histogram } = tally;
    histogram.sort_unstable();
    let each = |bytes: u64| bytes as f64 / positions.max(1) as f64;
    let frame = stored.bytes() - parts.scalars - parts.lengths - parts.rows;
    Ok(Inspected {
        signal: dir.to_path_buf(),
        hash: stored.hash().to_string(),
        positions,
        shards: stored.shards().count() as u32,
        parts: if stored.is_mix() { parts_of(dir)? } else { Vec::new() },
        bytes: stored.bytes(),
        bytes_per_token: each(stored.bytes()),
        scalar_bytes_per_token: each(parts.scalars),
        length_bytes_per_token: each(parts.lengths),
        row_bytes_per_token: each(parts.rows),
        frame_bytes_per_token: each(frame),
        nll: nll / positions.max(1) as f64,
        entropy: entropy / positions.max(1) as f64,
        ids: ids as f64 / positions.max(1) as f64,
        histogram: if stored.header().signal == Kind::Scores { Vec::new() } else { histogram },
        header: stored.header().clone(),
    })
}

/// A signal of a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listed {
    /// The folder.
    pub signal: PathBuf,
    /// The teacher's name.
    pub teacher: String,
    /// What positions hold.
    pub kind: String,
    /// Tokens that the teacher reads at once.
    pub context: u32,
    /// Positions of the shards that are there.
    pub positions: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Shards that are there, and that there should be.
    pub shards: (u32, u32),
    /// Why it cannot be read.
    pub damage: Option<String>,
}

/// The signals in a folder, three levels deep.
pub fn list(dir: &Path) -> Result<Vec<Listed>> {
    let mut found = Vec::new();
    walk(dir, 3, &mut found)?;
    Ok(found)
}

fn walk(dir: &Path, depth: u32, found: &mut Vec<Listed>) -> Result<()> {
    if is_mix(dir) {
        found.push(listed_mix(dir));
        return Ok(());
    }
    let shards = shards_in(dir);
    let is_there = shards.as_ref().map_or(true, |shards| !shards.is_empty());
    if is_there || !begun_in(dir).is_empty() {
        found.push(listed(dir, shards));
        return Ok(());
    }
    if depth == 0 {
        return Ok(());
    }
    for child in children(dir)?.iter().filter(|path| path.is_dir() && !path.is_symlink()) {
        // What cannot be listed is no signal of ours.
        let _ = walk(child, depth - 1, found);
    }
    Ok(())
}

/// A folder of which nothing is known yet.
fn unknown(dir: &Path) -> Listed {
    Listed {
        signal: dir.to_path_buf(),
        teacher: String::new(),
        kind: String::new(),
        context: 0,
        positions: 0,
        bytes: crate::files::bytes_of_files(dir),
        shards: (0, 0),
        damage: None,
    }
}

/// A mix; its shards are those of its parts, its bytes its own.
fn listed_mix(dir: &Path) -> Listed {
    match Stored::open(dir) {
        Err(e) => Listed { damage: Some(e.to_string()), ..unknown(dir) },
        Ok(stored) => {
            let (header, shards) = (stored.header().clone(), stored.shards().count() as u32);
            Listed {
                kind: format!("mix: {}", header.signal),
                context: header.window.context,
                positions: header.positions_in_all(),
                shards: (shards, shards),
                teacher: header.teacher.name,
                ..unknown(dir)
            }
        }
    }
}

fn listed(dir: &Path, shards: Result<Vec<Shard>>) -> Listed {
    let damage = shards.as_ref().err().map(ToString::to_string);
    let shards = shards.unwrap_or_default();
    let counts = (shards.len() as u32, shards.first().map_or(0, |s| s.of));
    let mut out = Listed { shards: counts, damage, ..unknown(dir) };
    for shard in shards {
        match ShardReader::open(dir, shard) {
            Ok(ShardReader { header, .. }) => {
                out.positions += header.positions.1 - header.positions.0;
                out.context = header.window.context;
                out.kind = header.signal.to_string();
                out.teacher = header.teacher.name;
            }
            Err(e) => out.damage = Some(e.to_string()),
        }
    }
    for Begun { header, positions } in begun_in(dir) {
        out.positions += positions;
        out.context = header.window.context;
        out.kind = header.signal.to_string();
        out.shards.1 = header.shard.of;
        out.teacher = header.teacher.name;
    }
    out
}
