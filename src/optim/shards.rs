//! The optimizer's work divided among processes: each keeps the moments of its part of the parameters
//! and steps it (ZeRO stage 1; Rajbhandari et al., "ZeRO: memory optimizations toward training trillion
//! parameter models", SC 2020, section 5.1).
//!
//! Parameters are cut into pieces of a fixed size, dealt out evenly in their order: so every process
//! owns a part of each large matrix, and the gradients of one block go to many.
//!
//! A step sums gradients where their pieces are owned (reduce-scatter), steps there, and hands the
//! new parameters to all (all-gather). A transport promises no order of additions, so it adds nothing:
//! parts travel, and the owner adds them as a tree ([`tree`]).

use super::adamw::{self, SQUARES, State};
use super::held::{Held, cut};
use super::travel::{Arrived, Travel};
use crate::error::Result;
use crate::model::{Layout, ParamSet, ParamSpec};
use crate::ops::{Backend, buffer};
use crate::world::{AT_ONCE, Link, World, tree};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Numbers that one task adds.
const CHUNK: usize = 1 << 14;

/// Elements of a piece, of which a process owns all or nothing: 1 MiB. Small enough to deal the smallest
/// model evenly among a hundred processes, and large enough to be sent alone.
const PIECE: usize = 4 * SQUARES;

/// A part of a parameter that one process steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// The parameter's place in the layout.
    pub(super) parameter: usize,
    pub(super) place: Range<usize>,
    /// Where it begins among what its owner holds of the parameter.
    held: usize,
}

/// Who owns which pieces.
#[derive(Debug, Clone)]
pub struct Shards {
    world: World,
    /// What carries numbers between GPUs, if the model is on one and there is such a thing; else they
    /// go through the host.
    link: Option<Arc<dyn Link>>,
    /// How many processes each machine has, if all have as many and these follow each other; else 1.
    on_a_machine: usize,
    /// The pieces of each process, in order.
    owned: Vec<Vec<Piece>>,
    /// Elements of each process's.
    elements: Vec<usize>,
    /// What each process steps of every parameter.
    held: Vec<Held>,
}

/// The pieces of each of `processes`: in the layout's order, each goes to whoever has least.
fn divided(layout: &Layout, processes: usize) -> Vec<Vec<Piece>> {
    let mut owned: Vec<Vec<Piece>> = vec![Vec::new(); processes];
    let mut held = vec![(0, 0); processes]; // of all parameters, of this one
    for (parameter, spec) in layout.entries().iter().enumerate() {
        held.iter_mut().for_each(|(_, here)| *here = 0);
        for place in cut(std::slice::from_ref(&(0..spec.elements())), PIECE) {
            let least = (0..processes).min_by_key(|&r| (held[r].0, r)).unwrap_or(0);
            let (all, here) = &mut held[least];
            owned[least].push(Piece { parameter, place: place.clone(), held: *here });
            *all += place.len();
            *here += place.len();
        }
    }
    owned
}

impl Shards {
    /// Divides the parameters of `layout` among the processes.
    pub fn new(world: World, layout: &Layout) -> Self {
        let owned = divided(layout, world.size());
        let elements = |of: &Vec<Piece>| of.iter().map(|piece| piece.place.len()).sum();
        let held = |of: &Vec<Piece>| {
            let mut places = vec![Vec::new(); layout.entries().len()];
            of.iter().for_each(|piece| places[piece.parameter].push(piece.place.clone()));
            Held::of(places)
        };
        let (elements, held) =
            (owned.iter().map(elements).collect(), owned.iter().map(held).collect());
        Self { world, link: None, on_a_machine: 1, owned, elements, held }
    }

    /// The same of a model on `device`. Collective.
    pub fn on(self, device: &Device) -> Result<Self> {
        let Some(link) = self.world.linked(device)? else { return Ok(self) };
        let on_a_machine = self.world.seats()?.on_a_machine;
        Ok(Self { link: Some(link), on_a_machine, ..self })
    }

    /// How many processes each machine has, where that helps.
    pub(super) fn on_a_machine(&self) -> usize {
        self.on_a_machine
    }

    /// As if each machine had so many processes.
    #[cfg(test)]
    pub(crate) fn by_machines_of(self, on_a_machine: usize) -> Self {
        Self { on_a_machine, ..self }
    }

    /// The processes that share the work.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Moments before the first step, of what this process owns.
    pub fn fresh(&self, layout: &Layout, device: &Device) -> Result<State> {
        State::of(self.held[self.world.rank()].clone(), layout, device)
    }

    /// The most elements that a process owns.
    pub(super) fn most(&self) -> usize {
        self.elements.iter().copied().max().unwrap_or(0)
    }

    /// The pieces of a process, of these parameters.
    pub(super) fn pieces(&self, owner: usize, parameters: &Range<usize>) -> &[Piece] {
        let before = |n: usize| self.owned[owner].partition_point(|piece| piece.parameter < n);
        &self.owned[owner][before(parameters.start)..before(parameters.end)]
    }

    /// Gradients that travel as they become final, where they do not go through the host. They end in
    /// [`Shards::sum`]. Collective.
    pub fn travel<'a>(&'a self, grads: &'a ParamSet) -> Option<Travel<'a>> {
        self.link.as_deref().map(|link| Travel::new(self, link, grads))
    }

    /// Adds up the gradients of all processes, each piece where it is owned, from what has arrived if
    /// they travelled. The others keep what they have.
    pub fn sum(&self, grads: &ParamSet, arrived: Option<Arrived>) -> Result<()> {
        match arrived {
            Some(arrived) => self.world.or_abort(self.add(grads, arrived)),
            None => self.carry(grads, grads, |_, to| to..to + 1),
        }
    }

    /// The norm of gradients that were summed ([`Shards::sum`]), as [`adamw::global_norm`].
    pub fn norm(&self, grads: &ParamSet) -> Result<f64> {
        let mine = adamw::squares(grads, &self.held[self.world.rank()]);
        let heard = self.world.agree_on(mine.map(|squares| squares.concat()))?;
        let sums = |spec: &ParamSpec| vec![0.0; spec.elements().div_ceil(SQUARES)];
        let mut squares: Vec<Vec<f64>> = grads.layout().entries().iter().map(sums).collect();
        for (held, heard) in self.held.iter().zip(heard) {
            let mut heard = heard.into_iter();
            for (all, places) in squares.iter_mut().zip(held.by_parameter()) {
                let places = cut(places, SQUARES).map(|place| place.start / SQUARES);
                places.zip(&mut heard).for_each(|(at, sum)| all[at] = sum);
            }
        }
        adamw::norm_of(grads.layout(), &squares)
    }

    /// Hands what each process owns of `params` to all.
    pub fn spread(&self, params: &ParamSet) -> Result<()> {
        match self.link.as_deref() {
            Some(link) => self.world.or_abort(self.gather_owned(link, params)),
            None => self.carry(params, params, |from, _| from..from + 1),
        }
    }

    /// Makes all `params` those of process 0.
    pub fn from_root(&self, params: &ParamSet) -> Result<()> {
        if let Some(link) = self.link.as_deref() {
            return self.world.or_abort(self.broadcast_all(link, params));
        }
        let all = 0..self.world.size();
        self.carry(params, params, |from, _| if from == 0 { all.clone() } else { 0..0 })
    }

    /// The moments of all parameters, in process 0; elsewhere those that it has.
    pub fn collect(&self, state: &State) -> Result<State> {
        let whole = |part: &ParamSet| -> Result<ParamSet> {
            let to = match self.world.size() > 1 && self.world.is_root() {
                true => self.world.or_abort(ParamSet::zeros(
                    part.layout(),
                    DType::F32,
                    part.tensors()[0].device(),
                ))?,
                false => part.clone(),
            };
            self.carry(part, &to, |from, to| if to == 0 { from..from + 1 } else { 0..0 })?;
            Ok(to)
        };
        Ok(match self.world.is_root() {
            true => State::whole(state.step, whole(&state.m)?, whole(&state.v)?),
            false => State { m: whole(&state.m)?, v: whole(&state.v)?, ..state.clone() },
        })
    }

    /// The other way: what each process owns of the moments that process 0 has of all of them. In
    /// the others `whole` is as [`Shards::fresh`].
    pub fn deal(&self, whole: &State) -> Result<State> {
        if self.world.size() == 1 {
            return Ok(whole.clone());
        }
        let device = whole.m.tensors()[0].device();
        let mine = self.world.or_abort(self.fresh(whole.m.layout(), device))?;
        for (from, to) in [(&whole.m, &mine.m), (&whole.v, &mine.v)] {
            self.carry(from, to, |from, to| if from == 0 { to..to + 1 } else { 0..0 })?;
        }
        Ok(State { step: whole.step, ..mine })
    }

    /// What process `a` has in `from` of the parts that `carries(a, b)` names, by their owners, goes to
    /// process `b` and stands in its `to`: the sum where several send the same. Nothing is to be done
    /// for one process alone.
    fn carry(
        &self,
        from: &ParamSet,
        to: &ParamSet,
        carries: impl Fn(usize, usize) -> Range<usize>,
    ) -> Result<()> {
        let (rank, size) = (self.world.rank(), self.world.size());
        if size == 1 {
            return Ok(());
        }
        let longest = self.most();
        let mut into = Vec::new();
        for begin in (0..longest).step_by(AT_ONCE) {
            let part =
                |o: usize| begin.min(self.elements[o])..(begin + AT_ONCE).min(self.elements[o]);
            let mut send = Vec::new();
            let mut sent = Vec::with_capacity(size);
            for other in 0..size {
                let before = send.len();
                for owner in carries(rank, other) {
                    self.world.or_abort(self.read(from, owner, part(owner), &mut send))?;
                }
                sent.push(send.len() - before);
            }
            let comes = |other: usize| carries(other, rank).map(|owner| part(owner).len());
            let received: Vec<usize> = (0..size).map(|other| comes(other).sum()).collect();
            into.resize(received.iter().sum(), 0.0);
            self.world.all_to_all(&send, &sent, &mut into, &received);

            let mut parts: Vec<Vec<&mut [f32]>> = (0..size).map(|_| Vec::new()).collect();
            let mut rest = &mut into[..];
            for owner in (0..size).flat_map(|other| carries(other, rank)) {
                let (one, others) = rest.split_at_mut(part(owner).len());
                parts[owner].push(one);
                rest = others;
            }
            for (owner, parts) in parts.into_iter().enumerate() {
                if let Some(sum) = tree(parts, &mut added) {
                    self.world.or_abort(self.write(to, owner, part(owner), sum))?;
                }
            }
        }
        Ok(())
    }

    /// The tensors that hold elements `range` of an owner's, and which of theirs these are. Moments are
    /// those of a whole parameter, or what the owner holds of it.
    fn places<'a>(
        &'a self,
        set: &'a ParamSet,
        owner: usize,
        range: Range<usize>,
    ) -> impl Iterator<Item = (&'a Tensor, Range<usize>)> {
        let mut at = 0;
        self.owned[owner].iter().filter_map(move |piece| {
            let n = piece.place.len();
            let within = range.start.clamp(at, at + n) - at..range.end.clamp(at, at + n) - at;
            at += n;
            let tensor = &set.tensors()[piece.parameter];
            let whole = tensor.elem_count() == set.layout().entries()[piece.parameter].elements();
            let begin = if whole { piece.place.start } else { piece.held };
            (!within.is_empty()).then(|| (tensor, begin + within.start..begin + within.end))
        })
    }

    fn read(
        &self,
        set: &ParamSet,
        owner: usize,
        range: Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        for (tensor, within) in self.places(set, owner, range) {
            match Backend::of(tensor) {
                Backend::Cpu => out.extend_from_slice(&buffer::read(tensor)?[within]),
                // A copy of the part alone: what is read off a GPU is a whole storage.
                _ => {
                    let part = tensor.flatten_all()?.narrow(0, within.start, within.len())?;
                    out.extend(part.force_contiguous()?.to_vec1::<f32>()?);
                }
            }
        }
        Ok(())
    }

    fn write(
        &self,
        set: &ParamSet,
        owner: usize,
        range: Range<usize>,
        mut values: &[f32],
    ) -> Result<()> {
        for (tensor, within) in self.places(set, owner, range) {
            let (new, rest) = values.split_at(within.len());
            match Backend::of(tensor) {
                Backend::Cpu => buffer::with_mut(tensor, |all| all[within].copy_from_slice(new))?,
                _ => {
                    let place = tensor.flatten_all()?.narrow(0, within.start, within.len())?;
                    buffer::assign(&place, &Tensor::from_slice(new, new.len(), tensor.device())?)?;
                }
            }
            values = rest;
        }
        Ok(())
    }
}

/// The sum of two parts, in the place of the first.
fn added<'a>(left: &'a mut [f32], right: &'a mut [f32]) -> &'a mut [f32] {
    let pairs = left.par_chunks_mut(CHUNK).zip(right.par_chunks(CHUNK));
    pairs.for_each(|(left, right)| left.iter_mut().zip(right).for_each(|(a, b)| *a += b));
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Gpt2Config;
    use crate::world::in_threads;

    fn layout() -> Layout {
        // An embedding of more than two pieces, the last of them not whole.
        Layout::new(&Gpt2Config::new(2 * PIECE / 12 + 40, 8, 12, 3, 2))
    }

    /// Element j of parameter i is f(i, j).
    fn filled(layout: &Layout, f: impl Fn(usize, usize) -> f32) -> ParamSet {
        let one = |(i, spec): (usize, &crate::model::ParamSpec)| {
            let values: Vec<f32> = (0..spec.elements()).map(|j| f(i, j)).collect();
            Tensor::from_vec(values, spec.shape.as_slice(), &Device::Cpu).unwrap()
        };
        let tensors = layout.entries().iter().enumerate().map(one).collect();
        ParamSet::new(layout.clone(), tensors)
    }

    fn values(set: &ParamSet) -> Vec<Vec<f32>> {
        let one = |t: &Tensor| t.flatten_all().unwrap().to_vec1().unwrap();
        set.tensors().iter().map(one).collect()
    }

    #[test]
    fn every_element_has_one_owner_and_the_load_is_even() {
        let layout = layout();
        for size in 1..6 {
            let owned = divided(&layout, size);
            for (i, spec) in layout.entries().iter().enumerate() {
                let of = |piece: &&Piece| piece.parameter == i;
                let mut all: Vec<usize> = owned
                    .iter()
                    .flatten()
                    .filter(of)
                    .flat_map(|piece| piece.place.clone())
                    .collect();
                all.sort_unstable();
                assert_eq!(all, (0..spec.elements()).collect::<Vec<_>>());
            }
            let elements = |of: &Vec<Piece>| of.iter().map(|p| p.place.len()).sum::<usize>();
            let (least, most) =
                (owned.iter().map(elements).min(), owned.iter().map(elements).max());
            assert!(most.unwrap() - least.unwrap() <= PIECE, "among {size}");
        }
    }

    #[test]
    fn gradients_are_added_as_a_tree_where_they_are_owned() {
        // Of a size at which the order of additions shows.
        let term = |rank: usize, i: usize, j: usize| {
            (1.0 + (rank * 7 + i * 3 + j) as f32).sin() * 10f32.powi((rank as i32) * 3 - 4)
        };
        for size in [1, 2, 3, 4] {
            let sums = in_threads(size, |world| {
                let layout = layout();
                let rank = world.rank();
                let grads = filled(&layout, |i, j| term(rank, i, j));
                let shards = Shards::new(world, &layout);
                shards.sum(&grads, None).unwrap();
                shards.spread(&grads).unwrap();
                values(&grads)
            });
            let want = filled(&layout(), |i, j| {
                let terms = (0..size).map(|rank| term(rank, i, j)).collect();
                tree(terms, &mut |a: f32, b: f32| a + b).unwrap()
            });
            assert!(sums.iter().all(|sum| *sum == values(&want)), "{size} processes");
        }
    }

    #[test]
    fn what_is_collected_and_dealt_is_what_it_was() {
        let found = in_threads(3, |world| {
            let layout = layout();
            let root = world.is_root();
            let shards = Shards::new(world, &layout);
            let moments = |add: f32| filled(&layout, |i, j| add + (i * 1000 + j) as f32);
            let fresh = shards.fresh(&layout, &Device::Cpu).unwrap();
            let whole = match root {
                true => State::whole(7, moments(0.0), moments(0.5)),
                false => State { step: 7, ..fresh },
            };
            let mine = shards.deal(&whole).unwrap();
            let held: usize = mine.m.tensors().iter().map(Tensor::elem_count).sum();
            assert!(held < layout.entries().iter().map(|s| s.elements()).sum::<usize>());
            let back = shards.collect(&mine).unwrap();
            assert_eq!((mine.step, back.step), (7, 7));
            root.then(|| {
                assert_eq!(values(&back.m), values(&moments(0.0)));
                assert_eq!(values(&back.v), values(&moments(0.5)));
            })
            .is_some()
        });
        assert_eq!(found, [true, false, false]);
    }

    #[test]
    fn all_begin_with_the_parameters_of_process_0() {
        let all = in_threads(3, |world| {
            let layout = layout();
            let params = filled(&layout, |i, j| (world.rank() * 5000 + i * 100 + j) as f32);
            Shards::new(world, &layout).from_root(&params).unwrap();
            values(&params)
        });
        assert!(all[0] == all[1] && all[1] == all[2]);
        assert_eq!(all[0][0][1], 1.0);
    }
}
