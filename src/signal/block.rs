//! A block: what lies in a file for some consecutive positions.
//!
//! | part | what |
//! |---|---|
//! | width | 1 byte: bytes of a length, 1 or 2; 0 where positions have no rows |
//! | nll | f16 for each position: -ln q(next token) at temperature 1 |
//! | entropy | f16 for each position: H(q) at temperature 1 |
//! | entropy at the signal's temperature | f16 for each position; only where that is not 1 |
//! | lengths | bytes of each position's row |
//! | rows | as [`super::codec`] writes them |

use super::codec::{self, Ranks, Scratch};
use super::header::{Header, Kind};
use crate::error::{Error, Result};
use crate::loss::{Said, Sampled, Signal, TopK};
use half::f16;

/// What a writer knows of a position.
#[derive(Debug, Clone, Copy)]
pub(super) enum Row<'a> {
    /// What was drawn, plane by plane.
    Draws(&'a [Sampled], usize),
    /// A row of the largest entries.
    Top(&'a TopK, usize),
    /// Nothing but the scalars.
    Nothing,
}

/// Collects positions of a block.
#[derive(Debug, Default)]
pub(super) struct BlockWriter {
    said: Vec<Said>,
    lengths: Vec<u16>,
    rows: Vec<u8>,
    bits: super::bits::BitWriter,
    scratch: Scratch,
}

impl BlockWriter {
    pub(super) fn len(&self) -> usize {
        self.said.len()
    }

    /// Appends a position.
    pub(super) fn push(
        &mut self,
        header: &Header,
        ranks: &Ranks,
        said: Said,
        row: Row<'_>,
    ) -> Result<()> {
        let before = self.rows.len();
        match (row, &header.signal) {
            (Row::Draws(planes, i), Kind::Sampled { planes: sizes, .. }) => {
                let rows: Vec<_> = planes.iter().map(|plane| plane.row(i)).collect();
                codec::write_draws(ranks, &mut self.bits, &mut self.scratch, &rows, sizes);
            }
            (Row::Top(top, i), Kind::TopK { .. }) => {
                let entries = i * top.k..(i + 1) * top.k;
                let levels: Vec<u32> = top.logp[entries.clone()]
                    .iter()
                    .map(|l| TopK::level(f64::from(*l).exp()))
                    .collect();
                codec::write_top(ranks, &mut self.bits, &top.ids[entries], &levels);
            }
            (Row::Nothing, Kind::Scores) => {}
            _ => return Err(Error::internal("a signal of another kind than the file's")),
        }
        self.bits.end(&mut self.rows);
        let length = u16::try_from(self.rows.len() - before).map_err(|_| {
            Error::usage("a position of this signal takes more than 65,535 bytes; ask for fewer draws or entries")
        })?;
        self.said.push(said);
        self.lengths.push(length);
        Ok(())
    }

    /// The bytes of the block, and where their rows begin; the writer is then empty.
    pub(super) fn take(&mut self, header: &Header) -> Vec<u8> {
        let has_rows = header.signal != Kind::Scores;
        let wide = self.lengths.iter().any(|l| *l > u16::from(u8::MAX));
        let width = if !has_rows { 0 } else { 1 + u8::from(wide) };
        let mut out = vec![width];
        let mut scalars = |of: fn(&Said) -> f32| {
            out.extend(self.said.iter().flat_map(|s| f16::from_f32(of(s)).to_le_bytes()));
        };
        scalars(|s| s.nll);
        scalars(|s| s.entropy);
        if header.signal.has_entropy_tau() {
            scalars(|s| s.entropy_tau);
        }
        match width {
            1 => out.extend(self.lengths.iter().map(|l| *l as u8)),
            2 => out.extend(self.lengths.iter().flat_map(|l| l.to_le_bytes())),
            _ => {}
        }
        out.append(&mut self.rows);
        self.said.clear();
        self.lengths.clear();
        out
    }
}

/// A block as it was read.
#[derive(Debug)]
pub(super) struct Block {
    said: Vec<Said>,
    /// Where each row begins in `bytes`, and where the last ends.
    starts: Vec<u32>,
    bytes: Vec<u8>,
}

/// Bytes by what they are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) scalars: u64,
    pub(super) lengths: u64,
    pub(super) rows: u64,
}

impl Block {
    /// Of `n` positions. None where the bytes are no such block.
    pub(super) fn parse(header: &Header, n: usize, bytes: Vec<u8>) -> Option<Self> {
        let (width, mut at) = (usize::from(*bytes.first()?), 1);
        let expected = if header.signal == Kind::Scores { 0..=0 } else { 1..=2 };
        if !expected.contains(&width) {
            return None;
        }
        let mut scalars = || {
            let part = bytes.get(at..at + 2 * n)?;
            at += 2 * n;
            Some(part.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()))
        };
        let (nll, entropy) = (scalars()?, scalars()?);
        let at_tau = if header.signal.has_entropy_tau() { Some(scalars()?) } else { None };
        let mut said: Vec<Said> = nll
            .zip(entropy)
            .map(|(nll, entropy)| Said { nll, entropy, entropy_tau: entropy })
            .collect();
        if let Some(at_tau) = at_tau {
            said.iter_mut().zip(at_tau).for_each(|(s, tau)| s.entropy_tau = tau);
        }
        let lengths = bytes.get(at..at + width * n)?;
        let mut end = at + width * n;
        let mut starts = vec![end as u32];
        if width > 0 {
            for length in lengths.chunks_exact(width) {
                let high = length.get(1).map_or(0, |b| usize::from(*b) << 8);
                end += usize::from(length[0]) | high;
                starts.push(end as u32);
            }
        }
        (end == bytes.len()).then_some(Self { said, starts, bytes })
    }

    pub(super) fn said(&self, i: usize) -> Said {
        self.said[i]
    }

    fn row(&self, i: usize) -> &[u8] {
        &self.bytes[self.starts[i] as usize..self.starts[i + 1] as usize]
    }

    pub(super) fn parts(&self) -> Parts {
        let rows = self.bytes.len() as u64 - u64::from(self.starts[0]);
        let scalars = (self.said.len() * 4) as u64;
        Parts { scalars, rows, lengths: self.bytes.len() as u64 - rows - scalars }
    }
}

/// The signal of some rows, appended one by one.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    ranks: &'a Ranks,
    sizes: &'a [u32],
    out: Signal,
    scratch: Scratch,
}

impl<'a> Decoder<'a> {
    /// Of the first `planes` planes of a sampled signal.
    pub(super) fn new(header: &'a Header, ranks: &'a Ranks, planes: usize) -> Self {
        let sizes = &header.signal.planes()[..planes];
        let out = match &header.signal {
            Kind::TopK { k, .. } => Signal::TopK(TopK {
                k: *k as usize,
                ids: Vec::new(),
                logp: Vec::new(),
                rest: Vec::new(),
                said: Vec::new(),
            }),
            Kind::Sampled { .. } | Kind::Scores => Signal::Sampled(Sampled {
                draws: sizes.iter().sum(),
                starts: vec![0],
                drawn: Vec::new(),
                said: Vec::new(),
            }),
        };
        Self { ranks, sizes, out, scratch: Scratch::default() }
    }

    /// Appends row `i` of a block. None where its bits are no such row.
    pub(super) fn push(&mut self, block: &Block, i: usize) -> Option<()> {
        match &mut self.out {
            Signal::Sampled(sampled) => {
                if !self.sizes.is_empty() {
                    let drawn = &mut sampled.drawn;
                    codec::read_draws(
                        self.ranks,
                        block.row(i),
                        &mut self.scratch,
                        self.sizes,
                        drawn,
                    )?;
                }
                sampled.starts.push(sampled.drawn.len());
                sampled.said.push(block.said(i));
            }
            Signal::TopK(top) => {
                codec::read_top(self.ranks, block.row(i), top.k, top)?;
                top.said.push(block.said(i));
            }
            Signal::Dense(_) => return None,
        }
        Some(())
    }

    pub(super) fn finish(self) -> Signal {
        self.out
    }
}
