//! The optimizer's work divided among processes: each owns whole parameters, keeps their moments and
//! steps them (ZeRO stage 1; Rajbhandari et al., "ZeRO: memory optimizations toward training trillion
//! parameter models", SC 2020, section 5.1).
//!
//! A step sums gradients where their parameters are owned (reduce-scatter), steps there, and hands the
//! new parameters to all (all-gather). A transport promises no order of additions, so it adds nothing:
//! parts travel, and the owner adds them as a tree ([`tree`]).

use super::adamw::{self, State};
use crate::error::Result;
use crate::model::{Layout, ParamSet};
use crate::ops::{Backend, buffer};
use crate::world::{AT_ONCE, World, tree};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Numbers that one task adds.
const CHUNK: usize = 1 << 14;

/// Who owns which parameters.
#[derive(Debug, Clone)]
pub struct Shards {
    world: World,
    /// Which parameters of the layout each process owns, in order.
    owned: Vec<Vec<usize>>,
    /// Elements of each process's.
    elements: Vec<usize>,
}

/// Elements that each of `processes` owns, and which parameters these are: from the largest on, each
/// goes to whoever has least.
fn divided(layout: &Layout, processes: usize) -> (Vec<Vec<usize>>, Vec<usize>) {
    let sizes: Vec<usize> = layout.entries().iter().map(|spec| spec.elements()).collect();
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(sizes[i]), i));
    let (mut owned, mut elements) = (vec![Vec::new(); processes], vec![0; processes]);
    for i in order {
        let least = (0..processes).min_by_key(|&r| (elements[r], r)).unwrap_or(0);
        owned[least].push(i);
        elements[least] += sizes[i];
    }
    owned.iter_mut().for_each(|owned| owned.sort_unstable());
    (owned, elements)
}

impl Shards {
    /// Divides the parameters of `layout` among the processes.
    pub fn new(world: World, layout: &Layout) -> Self {
        let (owned, elements) = divided(layout, world.size());
        Self { world, owned, elements }
    }

    /// The processes that share the work.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Whether parameter `i` of the layout is this process's.
    pub fn owns(&self, i: usize) -> bool {
        self.owned[self.world.rank()].binary_search(&i).is_ok()
    }

    /// Moments before the first step, of what this process owns.
    pub fn fresh(&self, layout: &Layout, device: &Device) -> Result<State> {
        let zeros = || ParamSet::zeros_where(layout, DType::F32, device, |i| self.owns(i));
        Ok(State { step: 0, m: zeros()?, v: zeros()? })
    }

    /// Adds up the gradients of all processes, each where its parameter is owned. The others keep
    /// what they have.
    pub fn sum(&self, grads: &ParamSet) -> Result<()> {
        self.travel(grads, grads, |_, to| to..to + 1)
    }

    /// The norm of gradients that were summed ([`Shards::sum`]), as [`adamw::global_norm`].
    pub fn norm(&self, grads: &ParamSet) -> Result<f64> {
        let heard = self.world.agree_on(adamw::squares(grads, |i| self.owns(i)))?;
        let mut squares = vec![0.0; grads.tensors().len()];
        for (owned, heard) in self.owned.iter().zip(&heard) {
            owned.iter().for_each(|&i| squares[i] = heard[i]);
        }
        adamw::norm_of(grads.layout(), &squares)
    }

    /// Hands what each process owns of `params` to all.
    pub fn spread(&self, params: &ParamSet) -> Result<()> {
        self.travel(params, params, |from, _| from..from + 1)
    }

    /// Makes all `params` those of process 0.
    pub fn from_root(&self, params: &ParamSet) -> Result<()> {
        let all = 0..self.world.size();
        self.travel(params, params, |from, _| if from == 0 { all.clone() } else { 0..0 })
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
            self.travel(part, &to, |from, to| if to == 0 { from..from + 1 } else { 0..0 })?;
            Ok(to)
        };
        Ok(State { step: state.step, m: whole(&state.m)?, v: whole(&state.v)? })
    }

    /// The other way: what each process owns of the moments that process 0 has of all parameters. In
    /// the others `whole` is as [`Shards::fresh`].
    pub fn deal(&self, whole: &State) -> Result<State> {
        if self.world.size() == 1 {
            return Ok(whole.clone());
        }
        let device = whole.m.tensors()[0].device();
        let mine = self.world.or_abort(self.fresh(whole.m.layout(), device))?;
        for (from, to) in [(&whole.m, &mine.m), (&whole.v, &mine.v)] {
            self.travel(from, to, |from, to| if from == 0 { to..to + 1 } else { 0..0 })?;
        }
        Ok(State { step: whole.step, ..mine })
    }

    /// What process `a` has in `from` of the parts that `carries(a, b)` names, by their owners, goes to
    /// process `b` and stands in its `to`: the sum where several send the same. Nothing is to be done
    /// for one process alone.
    fn travel(
        &self,
        from: &ParamSet,
        to: &ParamSet,
        carries: impl Fn(usize, usize) -> Range<usize>,
    ) -> Result<()> {
        let (rank, size) = (self.world.rank(), self.world.size());
        if size == 1 {
            return Ok(());
        }
        let longest = self.elements.iter().copied().max().unwrap_or(0);
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

    /// The tensors that hold elements `range` of an owner's, and which of theirs these are.
    fn places<'a>(
        &'a self,
        set: &'a ParamSet,
        owner: usize,
        range: Range<usize>,
    ) -> impl Iterator<Item = (&'a Tensor, Range<usize>)> {
        let mut at = 0;
        self.owned[owner].iter().filter_map(move |&i| {
            let n = set.layout().entries()[i].elements();
            let within = range.start.clamp(at, at + n) - at..range.end.clamp(at, at + n) - at;
            at += n;
            (!within.is_empty()).then(|| (&set.tensors()[i], within))
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
                _ => out.extend(
                    tensor
                        .flatten_all()?
                        .narrow(0, within.start, within.len())?
                        .to_vec1::<f32>()?,
                ),
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
        Layout::new(&Gpt2Config::new(40, 8, 12, 3, 2))
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
    fn every_parameter_has_one_owner_and_the_load_is_even() {
        let layout = layout();
        for size in 1..6 {
            let (owned, elements) = divided(&layout, size);
            let mut all: Vec<usize> = owned.into_iter().flatten().collect();
            all.sort_unstable();
            assert_eq!(all, (0..layout.entries().len()).collect::<Vec<_>>());
            let total: usize = elements.iter().sum();
            let largest = layout.entries().iter().map(|spec| spec.elements()).max().unwrap();
            let most = elements.into_iter().max().unwrap();
            assert!(most <= total / size + largest, "{most} of {total} among {size}");
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
                shards.sum(&grads).unwrap();
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
                true => State { step: 7, m: moments(0.0), v: moments(0.5) },
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
