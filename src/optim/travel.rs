//! Gradients on their way between GPUs while the backward pass goes on, and parameters on their way
//! back: what [`Shards`] does with numbers of the host, without a way through it.

use super::shards::{Piece, Shards};
use crate::error::Result;
use crate::model::{Layout, ParamSet};
use crate::ops::gpu::{Address, Grid, Module, contiguous, floats, launch, uninitialised, upload};
use crate::world::{Link, Move};
use candle_core::{DType, Tensor};
use std::ops::Range;

/// Elements of a bucket at least: 16 MiB, so that an exchange takes longer than to begin it.
const BUCKET: usize = if cfg!(test) { 1 << 11 } else { 1 << 22 };

/// Parameters that travel together, from the last on: those whose gradients are final at the same time,
/// and as many of these as make a bucket. The embedding is final last, and has one of its own.
fn buckets(layout: &Layout) -> Vec<Range<usize>> {
    let ends = (0..=layout.blocks()).rev().map(|l| layout.block(l).start);
    let mut all = Vec::new();
    let mut end = layout.entries().len();
    for begin in ends {
        let elements: usize = layout.entries()[begin..end].iter().map(|spec| spec.elements()).sum();
        if elements >= BUCKET {
            all.push(begin..end);
            end = begin;
        }
    }
    let first = layout.block(0).start;
    all.extend([first..end, 0..first].into_iter().filter(|bucket| !bucket.is_empty()));
    all
}

/// A stage of a sum: processes that hand each other parts, each of what it then holds the sum of.
#[derive(Debug, PartialEq, Eq)]
struct Stage {
    /// In the order in which their parts are added, this process among them.
    peers: Vec<usize>,
    /// This process's place among them.
    mine: usize,
    /// Whose pieces each of them is to hold.
    owners: Vec<Vec<usize>>,
}

/// One stage between all. Or two, where every machine has the same power of two of processes, which is
/// a subtree: within a machine, and then between those that have the same place on theirs, so that of
/// what a machine's processes have to say one number goes to another machine, and not one of each.
fn stages(rank: usize, size: usize, on_a_machine: usize) -> Vec<Stage> {
    let n = on_a_machine;
    let is_a_subtree = n.is_power_of_two() && size.is_multiple_of(n);
    if !is_a_subtree || n == 1 || n == size {
        let owners = (0..size).map(|rank| vec![rank]).collect();
        return vec![Stage { peers: (0..size).collect(), mine: rank, owners }];
    }
    let (machine, place) = (rank / n, rank % n);
    let like = |place: usize| (place..size).step_by(n);
    vec![
        Stage {
            peers: (machine * n..(machine + 1) * n).collect(),
            mine: place,
            owners: (0..n).map(|place| like(place).collect()).collect(),
        },
        Stage {
            peers: like(place).collect(),
            mine: machine,
            owners: like(place).map(|rank| vec![rank]).collect(),
        },
    ]
}

/// Gradients that are summed as they become final.
pub struct Travel<'a> {
    shards: &'a Shards,
    link: &'a dyn Link,
    grads: &'a ParamSet,
    stages: Vec<Stage>,
    /// What has not set out yet, the last parameters last.
    waiting: Vec<Range<usize>>,
    /// What is in the first of two stages.
    between: Option<(Range<usize>, Vec<Parts>)>,
    arrived: Vec<Parts>,
}

/// What other processes have of a piece.
#[derive(Debug)]
struct Parts {
    piece: Piece,
    /// [peers - 1, elements], in their order.
    others: Tensor,
    /// This process's place among the peers.
    mine: usize,
}

/// What the other processes have of the pieces of this one.
#[derive(Debug)]
pub struct Arrived(Vec<Parts>);

impl<'a> Travel<'a> {
    pub(super) fn new(shards: &'a Shards, link: &'a dyn Link, grads: &'a ParamSet) -> Self {
        let world = shards.world();
        let mut waiting = buckets(grads.layout());
        waiting.reverse();
        Self {
            shards,
            link,
            grads,
            stages: stages(world.rank(), world.size(), shards.on_a_machine()),
            waiting,
            between: None,
            arrived: Vec::new(),
        }
    }

    /// The gradients from parameter `from` on are final. What fails here ends all processes: others wait
    /// for numbers.
    pub fn ready(&mut self, from: usize) -> Result<()> {
        while let Some(bucket) = self.waiting.pop_if(|bucket| bucket.start >= from) {
            self.shards.world().or_abort(self.set_out(bucket))?;
        }
        Ok(())
    }

    /// Sends what has not set out yet, whatever it holds. Where a step has failed in this process the
    /// others learn of it only after that.
    pub fn finish(mut self) -> Result<Arrived> {
        self.ready(0)?;
        let done = self.go_on().and_then(|()| self.link.arrive());
        self.shards.world().or_abort(done)?;
        Ok(Arrived(self.arrived))
    }

    fn set_out(&mut self, bucket: Range<usize>) -> Result<()> {
        // By now the one before has come through its first stage.
        self.go_on()?;
        let parts = self.hand_over(&self.stages[0], &bucket)?;
        match self.stages.len() {
            1 => self.arrived.extend(parts),
            _ => self.between = Some((bucket, parts)),
        }
        Ok(())
    }

    /// Takes what is in the first of two stages into the second.
    fn go_on(&mut self) -> Result<()> {
        let Some((bucket, parts)) = self.between.take() else { return Ok(()) };
        self.link.arrive()?;
        add(self.grads, parts)?;
        let parts = self.hand_over(&self.stages[1], &bucket)?;
        self.arrived.extend(parts);
        Ok(())
    }

    /// Begins a stage; what will be there when it is over.
    fn hand_over(&self, stage: &Stage, bucket: &Range<usize>) -> Result<Vec<Parts>> {
        let Stage { peers, mine, owners } = stage;
        let (mut moves, mut parts) = (Vec::new(), Vec::new());
        for (&peer, owners) in peers.iter().zip(owners) {
            for piece in owners.iter().flat_map(|owner| self.shards.pieces(*owner, bucket)) {
                let (part, n) = (part(self.grads, piece)?, piece.place.len());
                if peer != peers[*mine] {
                    moves.push(Move::Send { to: peer, address: floats(&part)?.number(), n });
                    continue;
                }
                let others = uninitialised((peers.len() - 1, n), DType::F32, &part)?;
                let address = floats(&others)?.number();
                for (row, &from) in peers.iter().filter(|from| **from != peer).enumerate() {
                    let address = address + (row * n * size_of::<f32>()) as u64;
                    moves.push(Move::Receive { from, address, n });
                }
                parts.push(Parts { piece: piece.clone(), others, mine: *mine });
            }
        }
        exchange(self.link, moves)?;
        Ok(parts)
    }
}

/// Adds what others have to what `grads` hold of the same pieces, as trees.
fn add(grads: &ParamSet, parts: Vec<Parts>) -> Result<()> {
    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Sum {
        own: Address,
        others: Address,
        n: u64,
        rank: u32,
        size: u32,
    }
    const THREADS: u32 = 256;
    for Parts { piece, others, mine } in parts {
        let own = part(grads, &piece)?;
        let n = piece.place.len();
        let args = Sum {
            own: floats(&own)?,
            others: floats(&others)?,
            n: n as u64,
            rank: mine as u32,
            size: others.dim(0)? as u32 + 1,
        };
        let grid = Grid::of(n.div_ceil(THREADS as usize), THREADS);
        launch(&own, Module::Travel, "tree_sum", grid, args)?;
    }
    Ok(())
}

impl Shards {
    /// Adds what has arrived to this process's gradients.
    pub(super) fn add(&self, grads: &ParamSet, arrived: Arrived) -> Result<()> {
        add(grads, arrived.0)
    }

    /// Hands what each process owns of `params` to all: one behind the other, so that one all-gather
    /// carries all of it.
    pub(super) fn gather_owned(&self, link: &dyn Link, params: &ParamSet) -> Result<()> {
        let (rank, size) = (self.world().rank(), self.world().size());
        let most = self.most();
        let like = &params.tensors()[0];
        let mine = uninitialised(most, DType::F32, like)?;
        let all = uninitialised((size, most), DType::F32, like)?;
        let (from, to) = (floats(&mine)?.number(), floats(&all)?.number());
        let packed = self.copies(params, rank, from)?.into_iter().map(Carried::back);
        copy(&packed.collect::<Vec<_>>(), like)?;
        gather(link, (from, to), most)?;
        link.arrive()?;
        let row = |owner: usize| to + (owner * most * size_of::<f32>()) as u64;
        let others = (0..size).filter(|owner| *owner != rank);
        let copies = others.map(|owner| self.copies(params, owner, row(owner)));
        copy(&copies.collect::<Result<Vec<_>>>()?.concat(), like)
    }

    /// What brings an owner's elements, packed from `packed` on, to their places in `params`.
    fn copies(&self, params: &ParamSet, owner: usize, packed: u64) -> Result<Vec<Carried>> {
        let mut from = packed;
        let one = |piece: &Piece| {
            let (to, n) = (floats(&part(params, piece)?)?.number(), piece.place.len() as u64);
            let copy = Carried { from, to, n };
            from += n * size_of::<f32>() as u64;
            Ok(copy)
        };
        self.pieces(owner, &(0..params.tensors().len())).iter().map(one).collect()
    }

    /// Makes all `params` those of process 0.
    pub(super) fn broadcast_all(&self, link: &dyn Link, params: &ParamSet) -> Result<()> {
        let one = |tensor: &Tensor| {
            let address = floats(tensor)?.number();
            Ok(Move::Broadcast { root: 0, address, n: tensor.elem_count() })
        };
        exchange(link, params.tensors().iter().map(one).collect::<Result<_>>()?)?;
        link.arrive()
    }
}

/// Numbers that go from one place on a GPU to another.
#[derive(Debug, Clone, Copy)]
struct Carried {
    from: u64,
    to: u64,
    n: u64,
}

impl Carried {
    fn back(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }

    /// As a kernel reads it.
    fn words(self) -> impl Iterator<Item = u32> {
        [self.from, self.to, self.n].into_iter().flat_map(|x| [x as u32, (x >> 32) as u32])
    }
}

/// Makes all copies at once, on the device of `like`.
fn copy(copies: &[Carried], like: &Tensor) -> Result<()> {
    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Copies {
        table: Address,
    }
    const THREADS: u32 = 256;
    const BLOCKS: usize = if cfg!(test) { 3 } else { 32 }; // for each copy
    if copies.is_empty() {
        return Ok(()); // of a model with fewer pieces than there are processes
    }
    let table: Vec<u32> = copies.iter().flat_map(|copy| copy.words()).collect();
    let table = upload(&table, like)?;
    let grid = Grid::of(BLOCKS, THREADS).by(copies.len());
    launch(like, Module::Travel, "copy_many", grid, Copies { table: contiguous(&table)? })
}

#[allow(unsafe_code)]
fn gather(link: &dyn Link, (from, to): (u64, u64), n: usize) -> Result<()> {
    // SAFETY: as of `exchange`; both are packed tensors that live until `Link::arrive`.
    unsafe { link.all_gather(from, to, n) }
}

/// Where a piece lies in whole parameters.
fn part(set: &ParamSet, piece: &Piece) -> Result<Tensor> {
    let Piece { parameter, place, .. } = piece;
    Ok(set.tensors()[*parameter].flatten_all()?.narrow(0, place.start, place.len())?)
}

#[allow(unsafe_code)]
fn exchange(link: &dyn Link, moves: Vec<Move>) -> Result<()> {
    // SAFETY: the addresses are of gradients and parameters, which outlive the step, and of tensors that
    // `Arrived` holds; whatever reads, writes or frees these comes after `Link::arrive` on the model's stream.
    unsafe { link.exchange(&mut moves.into_iter()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Gpt2Config;

    #[test]
    fn buckets_go_from_the_last_parameter_to_the_first_and_leave_none() {
        // 12 D^2 + 13 D in each of 4 blocks: 3,280 at D = 16, more than a bucket; 872 at D = 8.
        for (width, expected) in [(16, 5), (8, 3)] {
            let layout = Layout::new(&Gpt2Config::new(300, 20, width, 4, 2));
            let all = buckets(&layout);
            assert_eq!(all.len(), expected, "{all:?}");
            assert_eq!((all[0].end, all.last().unwrap().start), (layout.entries().len(), 0));
            assert!(all.windows(2).all(|two| two[0].start == two[1].end));
            // What is final last does not keep others waiting.
            assert_eq!(all.last().unwrap(), &(0..2));
        }
    }

    #[test]
    fn machines_of_equal_powers_of_two_add_up_before_they_talk() {
        let flat = |rank, size| Stage {
            peers: (0..size).collect(),
            mine: rank,
            owners: (0..size).map(|rank| vec![rank]).collect(),
        };
        for (size, on_a_machine) in [(4, 1), (4, 4), (6, 3), (6, 4)] {
            assert_eq!(stages(1, size, on_a_machine), [flat(1, size)]);
        }
        let [within, between] = stages(4, 6, 2).try_into().unwrap();
        let owners = vec![vec![0, 2, 4], vec![1, 3, 5]];
        assert_eq!(within, Stage { peers: vec![4, 5], mine: 0, owners });
        let owners = vec![vec![0], vec![2], vec![4]];
        assert_eq!(between, Stage { peers: vec![0, 2, 4], mine: 2, owners });
    }
}
