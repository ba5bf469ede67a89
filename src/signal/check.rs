//! What lies in a signal's folder: whole or damaged, and what its bytes are for.

use super::block::Parts;
use super::header::{Header, Kind, Shard};
use super::shard::{Begun, ShardReader, begun_in};
use super::stored::{Stored, shards_in};
use crate::error::Result;
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

/// Reads every block of every shard that is there, decodes it, and says what is damaged.
pub fn verify(dir: &Path, progress: &dyn Progress) -> Result<Verified> {
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
    /// What it is of; shard and positions are those of its first file.
    pub header: Header,
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

/// Reads and decodes all of a signal.
pub fn inspect(dir: &Path, progress: &dyn Progress) -> Result<Inspected> {
    let stored = Stored::open(dir)?;
    let (mut parts, mut positions, mut nll, mut entropy, mut ids) =
        (Parts::default(), 0u64, 0.0, 0.0, 0u64);
    let mut histogram: Vec<(u32, u64)> = Vec::new();
    progress.start("Reading the signal", Some(stored.bytes()), "bytes");
    for shard in stored.shards() {
        for i in 0..shard.header.blocks() {
            crate::interrupt::check()?;
            let block = shard.block(i)?;
            let range = shard.header.of_block(i);
            let n = (range.end - range.start) as usize;
            let of_block = block.parts();
            parts.scalars += of_block.scalars;
            parts.lengths += of_block.lengths;
            parts.rows += of_block.rows;
            positions += n as u64;
            let signal = shard.decoded(&block, n, i)?;
            for row in 0..n {
                let said = block.said(row);
                nll += f64::from(said.nll);
                entropy += f64::from(said.entropy);
                let named = match &signal {
                    Signal::Sampled(sampled) => sampled.row(row).len() as u32,
                    Signal::TopK(top) => top.k as u32,
                    Signal::Dense(_) => 0,
                };
                ids += u64::from(named);
                let upper = named.next_power_of_two();
                match histogram.iter_mut().find(|(u, _)| *u == upper) {
                    Some((_, count)) => *count += 1,
                    None => histogram.push((upper, 1)),
                }
            }
        }
        progress.advance(shard.bytes);
    }
    progress.finish();
    histogram.sort_unstable();
    let each = |bytes: u64| bytes as f64 / positions.max(1) as f64;
    let frame = stored.bytes() - parts.scalars - parts.lengths - parts.rows;
    Ok(Inspected {
        signal: dir.to_path_buf(),
        hash: stored.hash().to_string(),
        positions,
        shards: stored.header().shard.of,
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

fn listed(dir: &Path, shards: Result<Vec<Shard>>) -> Listed {
    let damage = shards.as_ref().err().map(ToString::to_string);
    let shards = shards.unwrap_or_default();
    let mut out = Listed {
        signal: dir.to_path_buf(),
        teacher: String::new(),
        kind: String::new(),
        context: 0,
        positions: 0,
        bytes: crate::files::bytes_of_files(dir),
        shards: (shards.len() as u32, shards.first().map_or(0, |s| s.of)),
        damage,
    };
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
