//! A position's signal as bits: ids by how frequent they are in the data, counts, levels.
//!
//! Ids are named by rank: 0 is the id that the data has most often. A teacher draws frequent tokens
//! most of the time, so small ranks are dense and large ones rare, and a gap behind rank r is about
//! as large as r. So the gaps of ascending ranks are coded by exponential Golomb codes whose k grows
//! with the rank ([`gap_bits`]): within 1 % of the bits that a model of independent ids by frequency
//! would need, at a few nanoseconds an id.

use super::bits::{BitReader, BitWriter};
use crate::loss::{DrawnId, TopK};

/// Ids and their ranks by frequency.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ranks {
    /// The id of each rank.
    pub(super) ids: Vec<u32>,
    /// The rank of each id.
    ranks: Vec<u32>,
}

impl Ranks {
    /// By the number of times that the data has each id; of equal ones the lower first.
    pub(super) fn of(counts: &[u64]) -> Self {
        let mut ids: Vec<u32> = (0..counts.len() as u32).collect();
        ids.sort_by_key(|&id| (std::cmp::Reverse(counts[id as usize]), id));
        Self { ranks: inverse(&ids), ids }
    }

    /// From the table of a file; None unless it names every id once.
    pub(super) fn read(ids: Vec<u32>) -> Option<Self> {
        let mut seen = vec![false; ids.len()];
        for &id in &ids {
            if std::mem::replace(seen.get_mut(id as usize)?, true) {
                return None;
            }
        }
        Some(Self { ranks: inverse(&ids), ids })
    }

    fn rank(&self, id: u32) -> u32 {
        self.ranks[id as usize]
    }

    fn id(&self, rank: u32) -> Option<u32> {
        self.ids.get(rank as usize).copied()
    }
}

fn inverse(ids: &[u32]) -> Vec<u32> {
    let mut ranks = vec![0; ids.len()];
    for (rank, &id) in ids.iter().enumerate() {
        ranks[id as usize] = rank as u32;
    }
    ranks
}

/// k of the gap behind rank `next - 1`, among `count` ranks.
fn gap_bits(next: u32, count: u32) -> u32 {
    let dense = count.ilog2().saturating_sub(2);
    (next + 1).ilog2().saturating_sub(dense)
}

fn write_ranks(out: &mut BitWriter, ranks: impl ExactSizeIterator<Item = u32>) {
    let (count, mut next) = (ranks.len() as u32, 0);
    for rank in ranks {
        out.golomb(rank - next, gap_bits(next, count));
        next = rank + 1;
    }
}

fn read_rank(bits: &mut BitReader<'_>, next: &mut u32, count: u32) -> u32 {
    // Bounded: what is damaged names a rank beyond every table.
    let rank = next.saturating_add(bits.golomb(gap_bits(*next, count))).min(u32::MAX - 2);
    *next = rank + 1;
    rank
}

/// A rank and how often it was drawn.
type Counted = (u32, u32);

/// What was drawn of a row plane by plane, with nothing to allocate for the next row.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// By rank, ascending.
    known: Vec<Counted>,
    /// Places in `known`, the most often drawn first.
    order: Vec<u32>,
    new: Vec<Counted>,
    merged: Vec<Counted>,
}

impl Scratch {
    /// Sorts what is known by count, of equal ones by rank.
    fn sort(&mut self) {
        self.order.clear();
        self.order.extend(0..self.known.len() as u32);
        let known = &self.known;
        self.order.sort_unstable_by_key(|&i| (std::cmp::Reverse(known[i as usize].1), i));
    }

    /// Adds the new ones to what is known.
    fn merge(&mut self) {
        if self.known.is_empty() {
            std::mem::swap(&mut self.known, &mut self.new);
            return;
        }
        self.merged.clear();
        let (mut a, mut b) = (self.known.iter().peekable(), self.new.iter().peekable());
        while let Some(&one) = match (a.peek(), b.peek()) {
            (Some(x), Some(y)) if x.0 <= y.0 => a.next(),
            (Some(_), None) => a.next(),
            _ => b.next(),
        } {
            self.merged.push(one);
        }
        std::mem::swap(&mut self.known, &mut self.merged);
    }
}

/// k of the increment of an id that has `count` of the `of` draws so far, when `left` draws of the
/// plane are to be shared out.
fn increment_bits(left: u32, count: u32, of: u32) -> u32 {
    (u64::from(left) * u64::from(count))
        .checked_div(u64::from(of))
        .map_or(0, |expected| if expected == 0 { 0 } else { expected.ilog2() })
}

/// Writes the draws of a row: `planes` are those of each, ids ascending; `sizes` their numbers of
/// draws. A plane says how many of its draws are of ids that no plane before it drew; then how often
/// each known id was drawn, the most frequent first, until none is left; then the new ids and their
/// counts, but for the last.
pub(super) fn write_draws(
    ranks: &Ranks,
    out: &mut BitWriter,
    scratch: &mut Scratch,
    planes: &[&[DrawnId]],
    sizes: &[u32],
) {
    scratch.known.clear();
    for (drawn, &size) in planes.iter().zip(sizes) {
        scratch.new.clear();
        scratch.new.extend(drawn.iter().map(|d| (ranks.rank(d.id), d.count)));
        scratch.new.sort_unstable();
        let mut left = 0;
        if !scratch.known.is_empty() {
            scratch.sort();
            let Scratch { known, order, new, .. } = &mut *scratch;
            let of_known = |rank: u32, new: &[Counted]| {
                new.binary_search_by_key(&rank, |n| n.0).map_or(0, |i| new[i].1)
            };
            left = known.iter().map(|(rank, _)| of_known(*rank, new)).sum();
            out.gamma(size - left + 1);
            let (mut rest, mut of) = (left, known.iter().map(|k| k.1).sum::<u32>());
            for (place, &i) in order.iter().enumerate() {
                if rest == 0 {
                    break;
                }
                let (rank, count) = known[i as usize];
                let more = of_known(rank, new);
                if place + 1 < order.len() {
                    out.rice(more, increment_bits(rest, count, of));
                }
                known[i as usize].1 += more;
                (rest, of) = (rest - more, of - count);
            }
            new.retain(|(rank, _)| known.binary_search_by_key(rank, |k| k.0).is_err());
        }
        write_new(out, &scratch.new, size - left);
        scratch.merge();
    }
}

fn write_new(out: &mut BitWriter, new: &[Counted], draws: u32) {
    let Some((_, but_last)) = new.split_last() else { return };
    out.gamma(new.len() as u32);
    write_ranks(out, new.iter().map(|n| n.0));
    if (new.len() as u32) < draws {
        but_last.iter().for_each(|n| out.gamma(n.1));
    }
}

/// Reads the first planes of a row's draws and appends them to `drawn`, ids ascending. None where
/// the bits are no row of these planes.
pub(super) fn read_draws(
    ranks: &Ranks,
    bytes: &[u8],
    scratch: &mut Scratch,
    sizes: &[u32],
    drawn: &mut Vec<DrawnId>,
) -> Option<()> {
    let mut bits = BitReader::new(bytes);
    scratch.known.clear();
    for &size in sizes {
        let mut fresh = size;
        if !scratch.known.is_empty() {
            fresh = bits.gamma() - 1;
            let mut rest = size.checked_sub(fresh)?;
            if rest > 0 {
                scratch.sort();
            }
            let Scratch { known, order, .. } = &mut *scratch;
            let mut of = known.iter().map(|k| k.1).sum::<u32>();
            for (place, &i) in order.iter().enumerate() {
                if rest == 0 {
                    break;
                }
                let known = &mut known[i as usize];
                let more = match place + 1 < order.len() {
                    true => bits.rice(increment_bits(rest, known.1, of)),
                    false => rest,
                };
                of -= known.1;
                known.1 = known.1.checked_add(more)?;
                rest = rest.checked_sub(more)?;
            }
        }
        read_new(&mut bits, &mut scratch.new, fresh)?;
        scratch.merge();
    }
    let from = drawn.len();
    for &(rank, count) in &scratch.known {
        drawn.push(DrawnId { id: ranks.id(rank)?, count });
    }
    drawn[from..].sort_unstable_by_key(|d| d.id);
    bits.is_whole().then_some(())
}

fn read_new(bits: &mut BitReader<'_>, new: &mut Vec<Counted>, draws: u32) -> Option<()> {
    new.clear();
    if draws == 0 {
        return Some(());
    }
    let count = bits.gamma();
    let mut extra = draws.checked_sub(count)?;
    let mut next = 0;
    new.extend((0..count).map(|_| (read_rank(bits, &mut next, count), 1)));
    if extra > 0 {
        let (last, but_last) = new.split_last_mut()?;
        for one in but_last {
            let more = bits.gamma() - 1;
            one.1 += more;
            extra = extra.checked_sub(more)?;
        }
        last.1 += extra;
    }
    Some(())
}

/// Writes a row's largest entries: ranks, then the least level, and by how much each lies above it,
/// in codes whose k is the least level's size: levels spread over a few times that.
pub(super) fn write_top(ranks: &Ranks, out: &mut BitWriter, ids: &[u32], levels: &[u32]) {
    let mut entries: Vec<Counted> =
        ids.iter().zip(levels).map(|(id, level)| (ranks.rank(*id), *level)).collect();
    entries.sort_unstable();
    write_ranks(out, entries.iter().map(|e| e.0));
    let least = entries.iter().map(|e| e.1).min().unwrap_or(1);
    out.gamma(least);
    entries.iter().for_each(|e| out.golomb(e.1 - least, least.ilog2()));
}

/// Reads the `k` entries of a row and appends them to `top`, ids ascending. None where the bits are
/// no such row.
pub(super) fn read_top(ranks: &Ranks, bytes: &[u8], k: usize, top: &mut TopK) -> Option<()> {
    let (mut bits, mut next) = (BitReader::new(bytes), 0);
    let mut entries = Vec::with_capacity(k);
    for _ in 0..k {
        entries.push((ranks.id(read_rank(&mut bits, &mut next, k as u32))?, 0));
    }
    let least = bits.gamma();
    for entry in &mut entries {
        entry.1 = bits.golomb(least.ilog2()).checked_add(least)?;
    }
    entries.sort_unstable();
    top.ids.extend(entries.iter().map(|e| e.0));
    top.logp.extend(entries.iter().map(|e| TopK::logp_of(e.1)));
    let whole = k == ranks.ids.len();
    let rest = TopK::rest_of(entries.iter().map(|e| e.1));
    top.rest.push(if whole { f32::NEG_INFINITY } else { rest });
    bits.is_whole().then_some(())
}
