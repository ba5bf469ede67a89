//! The file of a shard.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | magic `ESLMSIG\0` |
//! | 8..12 | format version (u32) |
//! | 12..16 | J, bytes of the JSON header (u32) |
//! | 16..20 | R, ids in the table of ranks (u32): the vocabulary, or 0 where positions have no rows |
//! | 20..24 | zero |
//! | 24..32 | where the index begins (u64); 0 in a file that is not finished |
//! | 32..64 | SHA-256 of the index; zeros likewise |
//! | 64..96 | SHA-256 of bytes 0..64, the JSON header and the table |
//! | 96.. | JSON header ([`Header`]), then the table: the id of each rank (u32), most frequent first |
//! | then | the blocks, each behind 24 bytes: its bytes (u32), its positions (u32), the first half of the SHA-256 of its bytes |
//! | then | the index: for each block where it begins (u64), and the same half of its hash |
//!
//! Numbers are little-endian. While a shard is written its name ends in `.partial`; what is whole of
//! it is found again by the blocks' hashes.

use super::block::{Block, BlockWriter, Decoder, Row};
use super::codec::Ranks;
use super::header::{Header, Kind, Shard, TeacherId};
use crate::data::tokens::Hash;
use crate::error::{Error, Result};
use crate::files::{children, hex, name_of, sync_folder};
use crate::loss::{Said, Signal};
use crate::report::text::{amount, count};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Newest format version that this build writes, and the only one that it reads.
pub const FORMAT_VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"ESLMSIG\0";
/// What the name of a shard ends with until it is whole.
pub(super) const PARTIAL: &str = ".signal.partial";
const FIXED: usize = 96;
const CHECKED: usize = 64;
/// In front of a block, and an entry of the index.
const PREFIX: usize = 24;
/// Far above any header.
const MOST_HEADER: u32 = 1 << 20;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

fn half_hash(bytes: &[u8]) -> [u8; 16] {
    let hash: Hash = Sha256::digest(bytes).into();
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    half
}

/// What stands in front of a block.
fn prefix(bytes: usize, positions: u32, half: [u8; 16]) -> [u8; PREFIX] {
    let mut out = [0; PREFIX];
    out[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
    out[4..8].copy_from_slice(&positions.to_le_bytes());
    out[8..].copy_from_slice(&half);
    out
}

/// Everything in front of the blocks.
fn head(header: &Header, ranks: &Ranks, index: Option<(u64, Hash)>) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(header)
        .map_err(|e| Error::internal(format!("cannot describe the signal: {e}")))?;
    let mut out = vec![0; FIXED];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&(json.len() as u32).to_le_bytes());
    out[16..20].copy_from_slice(&(ranks.ids.len() as u32).to_le_bytes());
    if let Some((at, hash)) = index {
        out[24..32].copy_from_slice(&at.to_le_bytes());
        out[32..64].copy_from_slice(&hash);
    }
    out.extend(&json);
    out.extend(ranks.ids.iter().flat_map(|id| id.to_le_bytes()));
    let hash = hash_of(&out);
    out[CHECKED..FIXED].copy_from_slice(&hash);
    Ok(out)
}

fn hash_of(head: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(&head[..CHECKED]);
    hasher.update(&head[FIXED..]);
    hasher.finalize().into()
}

/// What stands in front of the blocks of a file.
struct Head {
    header: Header,
    ranks: Ranks,
    bytes: u64,
    index: u64,
    index_hash: Hash,
    /// Of all of it: what a finished shard is.
    hash: Hash,
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::data(format!(
        "{}: {what}; remove this file, and the command that wrote the signal writes it again",
        path.display()
    ))
}

fn read_head(file: &mut File, path: &Path) -> Result<Head> {
    let io = |e| Error::io("read", path, e);
    let length = file.metadata().map_err(io)?.len();
    let mut bytes = Vec::new();
    Read::by_ref(file).take(FIXED as u64).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() < 8 || &bytes[..8] != MAGIC {
        return Err(damaged(path, "not a signal (it does not start with \"ESLMSIG\\0\")"));
    }
    if bytes.len() < FIXED {
        return Err(damaged(path, "a signal that is cut off in its header"));
    }
    let version = u32_at(&bytes, 8);
    if version != FORMAT_VERSION {
        return Err(Error::data(format!(
            "{}: a signal of format version {version}; this build reads {FORMAT_VERSION}",
            path.display()
        )));
    }
    let (json, ids) = (u32_at(&bytes, 12), u32_at(&bytes, 16));
    let more = u64::from(json) + 4 * u64::from(ids);
    if json > MOST_HEADER || FIXED as u64 + more > length {
        return Err(damaged(path, "a signal that is cut off in its header"));
    }
    Read::by_ref(file).take(more).read_to_end(&mut bytes).map_err(io)?;
    let hash = hash_of(&bytes);
    if hash[..] != bytes[CHECKED..FIXED] {
        return Err(damaged(path, "damaged header (its checksum does not fit)"));
    }
    let table = FIXED + json as usize;
    let header: Header = serde_json::from_slice(&bytes[FIXED..table]).map_err(|e| {
        Error::data(format!("{}: a header that this build does not know: {e}", path.display()))
    })?;
    header.check().map_err(|what| damaged(path, what))?;
    let ids: Vec<u32> =
        bytes[table..].as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    let expected = if header.signal == Kind::Scores { 0 } else { header.vocab_size as usize };
    let ranks = Ranks::read(ids).filter(|ranks| ranks.ids.len() == expected);
    let ranks =
        ranks.ok_or_else(|| damaged(path, "a table of ranks that does not name every id once"))?;
    let mut index_hash = [0; 32];
    index_hash.copy_from_slice(&bytes[32..64]);
    let (index, bytes) = (u64_at(&bytes, 24), bytes.len() as u64);
    Ok(Head { header, ranks, bytes, index, index_hash, hash })
}

/// Writes a shard block by block; it takes its name when it is whole, and what is written before
/// stays for whoever goes on.
#[derive(Debug)]
pub(super) struct ShardWriter {
    header: Header,
    pub(super) ranks: Ranks,
    target: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    /// Where the next block begins.
    at: u64,
    /// Where blocks begin, and half of their hashes.
    index: Vec<(u64, [u8; 16])>,
}

impl ShardWriter {
    /// Begins the shard of `header` in the folder `dir`, or goes on with what is there of it. Errs
    /// where that is of another signal, or where another process is writing it.
    pub(super) fn open(dir: &Path, mut header: Header, ranks: Ranks) -> Result<Self> {
        let target = dir.join(header.shard.file());
        let partial = target.with_extension("signal.partial");
        let io = |e| Error::io("write", &partial, e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial)
            .map_err(io)?;
        if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::usage(format!(
                "{}: another process is writing it",
                partial.display()
            )));
        }
        let mut at = 0;
        let mut index = Vec::new();
        if file.metadata().map_err(io)?.len() > 0 {
            match read_head(&mut file, &partial) {
                Ok(head) => {
                    let differences = head.header.differences(&header);
                    if !differences.is_empty() || head.ranks != ranks {
                        return Err(Error::usage(format!(
                            "{}: begun for another signal ({}); remove it, or choose another --out",
                            partial.display(),
                            differences.join("; ")
                        )));
                    }
                    // The name may be another: a longer one would not fit before the blocks.
                    header.teacher = head.header.teacher;
                    at = head.bytes;
                    for block in whole_blocks(&mut file, &partial, &header, at)? {
                        at += (PREFIX + block.0) as u64;
                        index.push((at - block.0 as u64 - PREFIX as u64, block.1));
                    }
                }
                // Not even the header was written out.
                Err(_) => at = 0,
            }
        }
        file.set_len(at).map_err(io)?;
        file.seek(SeekFrom::Start(at)).map_err(io)?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        if at == 0 {
            let head = head(&header, &ranks, None)?;
            file.write_all(&head).map_err(io)?;
            at = head.len() as u64;
        }
        Ok(Self { header, ranks, target, partial, file, at, index })
    }

    /// Forgets what is there and begins anew, for a teacher of this name.
    pub(super) fn start_over(&mut self, teacher: &TeacherId) -> Result<()> {
        self.header.teacher = teacher.clone();
        let head = head(&self.header, &self.ranks, None)?;
        self.index.clear();
        self.at = head.len() as u64;
        let file = &mut self.file;
        let begun = file.seek(SeekFrom::Start(0)).and_then(|_| file.get_ref().set_len(0));
        begun.and_then(|()| file.write_all(&head)).map_err(|e| Error::io("write", &self.partial, e))
    }

    /// What the file is called until it is whole.
    pub(super) fn partial(&self) -> &Path {
        &self.partial
    }

    /// Positions that are there.
    pub(super) fn done(&self) -> u64 {
        (self.index.len() as u64 * u64::from(self.header.block))
            .min(self.header.positions.1 - self.header.positions.0)
    }

    /// Bytes of the blocks that are there.
    pub(super) fn bytes_of_blocks(&self) -> u64 {
        self.index.first().map_or(0, |first| self.at - first.0)
    }

    /// Appends a position to `block`, and the block to the file where that fills it.
    pub(super) fn append(
        &mut self,
        block: &mut BlockWriter,
        said: Said,
        row: Row<'_>,
    ) -> Result<()> {
        block.push(&self.header, &self.ranks, said, row)?;
        let (n, total) = (block.len(), self.header.positions.1 - self.header.positions.0);
        if n == self.header.block as usize || self.done() + n as u64 == total {
            let bytes = block.take(&self.header);
            self.push(&bytes, n as u32)?;
        }
        Ok(())
    }

    /// Appends a block of `positions`.
    pub(super) fn push(&mut self, bytes: &[u8], positions: u32) -> Result<()> {
        let half = half_hash(bytes);
        let prefix = prefix(bytes.len(), positions, half);
        let written = self.file.write_all(&prefix).and_then(|()| self.file.write_all(bytes));
        written.map_err(|e| Error::io("write", &self.partial, e))?;
        self.index.push((self.at, half));
        self.at += (PREFIX + bytes.len()) as u64;
        Ok(())
    }

    /// Writes out what is there, so that a later call goes on behind it.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|e| Error::io("write", &self.partial, e))
    }

    /// Writes index and header, syncs, and names the file. Returns its bytes.
    pub(super) fn finish(mut self) -> Result<u64> {
        if self.index.len() as u64 != self.header.blocks() {
            return Err(Error::internal("a shard that is to be finished misses blocks"));
        }
        let mut index = Vec::with_capacity(self.index.len() * PREFIX);
        for (at, half) in &self.index {
            index.extend(at.to_le_bytes());
            index.extend(half);
        }
        let head = head(&self.header, &self.ranks, Some((self.at, Sha256::digest(&index).into())))?;
        let io = |e| Error::io("write", &self.partial, e);
        self.file.write_all(&index).map_err(io)?;
        self.file.seek(SeekFrom::Start(0)).map_err(io)?;
        self.file.write_all(&head).map_err(io)?;
        self.file.flush().and_then(|()| self.file.get_ref().sync_all()).map_err(io)?;
        fs::rename(&self.partial, &self.target).map_err(|e| Error::io("name", &self.target, e))?;
        sync_folder(self.target.parent().unwrap_or(Path::new(".")))?;
        Ok(self.at + index.len() as u64)
    }
}

/// Bytes and half of the hash of the whole blocks from `at` on.
fn whole_blocks(
    file: &mut File,
    path: &Path,
    header: &Header,
    at: u64,
) -> Result<Vec<(usize, [u8; 16])>> {
    let io = |e| Error::io("read", path, e);
    file.seek(SeekFrom::Start(at)).map_err(io)?;
    let mut found = Vec::new();
    for i in 0..header.blocks() {
        crate::interrupt::check()?;
        let mut bytes = Vec::new();
        Read::by_ref(file).take(PREFIX as u64).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() < PREFIX {
            break;
        }
        let (length, positions) = (u32_at(&bytes, 0) as usize, u64::from(u32_at(&bytes, 4)));
        let half: [u8; 16] = bytes[8..].try_into().unwrap_or_default();
        let of_block = header.of_block(i);
        bytes.clear();
        Read::by_ref(file).take(length as u64).read_to_end(&mut bytes).map_err(io)?;
        let whole = bytes.len() == length && half_hash(&bytes) == half;
        if !whole || positions != of_block.end - of_block.start {
            break;
        }
        found.push((length, half));
    }
    Ok(found)
}

/// A shard that is not finished.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) header: Header,
    /// Positions whose blocks are there, by their lengths: their hashes are not looked at.
    pub(super) positions: u64,
}

impl Begun {
    /// `2,048 of 9,999 positions are written`.
    pub(super) fn progress(&self) -> String {
        let (from, to) = self.header.positions;
        format!("{} of {} are written", count(self.positions), amount(to - from, "positions"))
    }
}

/// The shards in a folder that are not finished.
pub(super) fn begun_in(dir: &Path) -> Vec<Begun> {
    let begun = |path: &PathBuf| {
        let mut file = File::open(path).ok()?;
        let Head { header, bytes: mut at, .. } = read_head(&mut file, path).ok()?;
        let (length, mut positions, mut prefix) = (file.metadata().ok()?.len(), 0, [0; PREFIX]);
        while file.read_exact_at(&mut prefix, at).is_ok() {
            at += PREFIX as u64 + u64::from(u32_at(&prefix, 0));
            if at > length {
                break;
            }
            positions += u64::from(u32_at(&prefix, 4));
        }
        let most = header.positions.1 - header.positions.0;
        Some(Begun { header, positions: positions.min(most) })
    };
    let files = children(dir).unwrap_or_default();
    files.iter().filter(|path| name_of(path).ends_with(PARTIAL)).filter_map(begun).collect()
}

/// A finished shard, open for reading. It is read and not mapped: a page of a mapping that someone
/// cuts off would end the process.
#[derive(Debug)]
pub(super) struct ShardReader {
    pub(super) header: Header,
    pub(super) ranks: Ranks,
    /// What it is, whatever it is called.
    pub(super) hash: Hash,
    pub(super) bytes: u64,
    path: PathBuf,
    file: File,
    /// Where blocks begin and, behind the last, the index; and half of their hashes.
    index: Vec<(u64, [u8; 16])>,
    end: u64,
}

impl ShardReader {
    /// That of `shard` in the folder `dir`. Checks header and index; blocks are checked as they are
    /// read.
    pub(super) fn open(dir: &Path, shard: Shard) -> Result<Self> {
        let path = &dir.join(shard.file());
        let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let head = read_head(&mut file, path)?;
        let found = head.header.shard;
        if found != shard {
            return Err(Error::data(format!(
                "{}: holds shard {found}, and its name is that of {shard}; give it its own name, {}, or write {shard} again",
                path.display(),
                found.file()
            )));
        }
        let Head { header, ranks, hash, index: end, .. } = head;
        let length = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        let size = header.blocks() * PREFIX as u64;
        if end < head.bytes || end.checked_add(size) != Some(length) {
            return Err(damaged(path, "the file was cut or extended"));
        }
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, end).map_err(|e| Error::io("read", path, e))?;
        if Sha256::digest(&bytes)[..] != head.index_hash {
            return Err(damaged(path, "damaged index (its checksum does not fit)"));
        }
        let entry = |e: &[u8]| (u64_at(e, 0), e[8..].try_into().unwrap_or_default());
        let index: Vec<(u64, [u8; 16])> = bytes.chunks_exact(PREFIX).map(entry).collect();
        let starts = index.iter().map(|e| e.0).chain([end]);
        let apart = |(a, b): (u64, u64)| a >= head.bytes && a + (PREFIX as u64) <= b;
        if !starts.clone().zip(starts.skip(1)).all(apart) {
            return Err(damaged(path, "an index whose blocks overlap"));
        }
        Ok(Self { header, ranks, hash, bytes: length, path: path.to_path_buf(), file, index, end })
    }

    /// All that the `n` positions of block `i` hold.
    pub(super) fn decoded(&self, block: &Block, n: usize, i: u64) -> Result<Signal> {
        let planes = self.header.signal.planes().len();
        let mut decoder = Decoder::new(&self.header, &self.ranks, planes);
        let whole = (0..n).all(|row| decoder.push(block, row).is_some());
        if whole {
            return Ok(decoder.finish());
        }
        Err(damaged(&self.path, format!("block {i} holds a position that cannot be decoded")))
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Block `i`, checked against its hash.
    pub(super) fn block(&self, i: u64) -> Result<Block> {
        let at = i as usize;
        let (start, half) = self.index[at];
        let end = self.index.get(at + 1).map_or(self.end, |next| next.0);
        let positions = self.header.of_block(i);
        let wrong = |what: &str| {
            damaged(
                &self.path,
                format!(
                    "block {i} (positions {} to {}) {what}",
                    positions.start,
                    positions.end - 1
                ),
            )
        };
        let mut bytes = vec![0; (end - start) as usize];
        self.file
            .read_exact_at(&mut bytes, start)
            .map_err(|e| wrong(&format!("cannot be read: {e}")))?;
        let n = (positions.end - positions.start) as usize;
        let before = prefix(bytes.len() - PREFIX, n as u32, half);
        if bytes[..PREFIX] != before || half_hash(&bytes[PREFIX..]) != half {
            return Err(wrong("is damaged (its checksum does not fit)"));
        }
        bytes.drain(..PREFIX);
        Block::parse(&self.header, n, bytes).ok_or_else(|| wrong("is no block of this signal"))
    }
}

/// Hash of a signal of these shards, in hexadecimal.
pub(super) fn hash_of_shards(shards: &[ShardReader]) -> String {
    let mut hasher = Sha256::new();
    shards.iter().for_each(|shard| hasher.update(shard.hash));
    let hash: Hash = hasher.finalize().into();
    hex(&hash)
}
