//! Gradients of groups of sequences, added as a tree, so that a step has the same bits however many
//! processes its groups are divided among.

use crate::config::Plan;
use crate::error::{Error, Result};
use crate::model::ParamSet;
use crate::optim::{Arrived, Travel};
use crate::world::{World, tree};
use candle_core::Tensor;
use std::ops::Range;

/// Groups of this process, and sequences of each; errs where the process's `sequences` cannot be
/// divided so.
pub(super) fn mine(plan: &Plan, world: &World, sequences: usize) -> Result<(usize, usize)> {
    let all = plan.groups(world.size());
    let groups = all / world.size();
    if !sequences.is_multiple_of(groups) {
        return Err(Error::usage(format!(
            "a step of {} sequences cannot be divided into {all} groups of equal size; set machine.groups or data.rows so \
             that it can",
            sequences * world.size()
        )));
    }
    Ok((groups, sequences / groups))
}

/// The gradients of a step as they become final: those of the groups before join those of the last one,
/// and where they need not go through the host they set out for the processes that own them.
pub(super) struct Summing<'a> {
    grads: &'a ParamSet,
    pile: Pile,
    travel: Option<Travel<'a>>,
    /// Parameters from this one on have joined.
    joined: usize,
}

impl<'a> Summing<'a> {
    pub(super) fn new(grads: &'a ParamSet, travel: Option<Travel<'a>>) -> Self {
        Self { grads, pile: Pile::default(), travel, joined: grads.tensors().len() }
    }

    /// A group is done, and not the last.
    pub(super) fn next(&mut self) -> Result<()> {
        self.pile.push(self.grads)
    }

    /// Nothing more comes to the gradients of parameters from number `from` on.
    pub(super) fn ready(&mut self, from: usize) -> Result<()> {
        self.pile.join(self.grads, from..self.joined)?;
        self.joined = self.joined.min(from);
        self.travel.as_mut().map_or(Ok(()), |travel| travel.ready(from))
    }

    /// Nothing more comes at all. What is to be added to this process's, if it has not gone through the
    /// host. The others wait for what is sent here, whatever came before.
    pub(super) fn finish(self) -> Result<Option<Arrived>> {
        let joined = self.pile.join(self.grads, 0..self.joined);
        let arrived = self.travel.map(Travel::finish).transpose();
        joined.and(arrived)
    }
}

/// Sums of groups whose trees wait for their right halves: log2(groups) of them at most, beside the
/// buffer in which a group adds up. One group takes no memory and no time.
#[derive(Default)]
struct Pile {
    waiting: Vec<(u32, ParamSet)>,
}

impl Pile {
    /// Takes the sum of the next group out of `grads`, which is left at zero.
    fn push(&mut self, grads: &ParamSet) -> Result<()> {
        let (mut height, mut joined) = (0, None::<ParamSet>);
        while let Some((_, left)) = self.waiting.pop_if(|(top, _)| *top == height) {
            left.add_assign(joined.as_ref().unwrap_or(grads))?;
            joined = Some(left);
            height += 1;
        }
        let part = match joined {
            Some(part) => part,
            None => copied(grads)?,
        };
        self.waiting.push((height, part));
        grads.zero()
    }

    /// Adds what waits to some parameters of the last group, in `grads`: whether their trees are of equal
    /// height or not, they join from the right.
    fn join(&self, grads: &ParamSet, parameters: Range<usize>) -> Result<()> {
        let mut left = self.waiting.iter().rev();
        left.try_for_each(|(_, left)| grads.add_assign_of(left, parameters.clone()))
    }
}

fn copied(set: &ParamSet) -> Result<ParamSet> {
    let tensors = set.tensors().iter().map(Tensor::copy).collect::<candle_core::Result<_>>()?;
    Ok(ParamSet::new(set.layout().clone(), tensors))
}

/// The sum of the groups' `parts`, in the order of their sequences.
pub(super) fn total<T: Default + std::ops::AddAssign>(parts: Vec<T>) -> T {
    let mut add = |mut left: T, right: T| {
        left += right;
        left
    };
    tree(parts, &mut add).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Gpt2Config, Layout};
    use crate::testing::plan;
    use crate::world::in_threads;
    use candle_core::Device;

    #[test]
    fn a_process_has_its_share_of_the_groups() {
        let plan = plan(&["machine.groups=4"]);
        assert_eq!(mine(&plan, &World::solo(), 8).unwrap(), (4, 2));
        let shares = in_threads(2, |world| mine(&plan, &world, 8).unwrap());
        assert_eq!(shares, [(2, 4); 2]);
        let refused = mine(&plan, &World::solo(), 6).unwrap_err().to_string();
        assert!(refused.contains("6 sequences cannot be divided into 4 groups"), "{refused}");
    }

    #[test]
    fn a_pile_adds_as_the_tree() {
        let layout = Layout::new(&Gpt2Config::new(8, 4, 6, 1, 2));
        for groups in [1, 2, 4, 8, 3] {
            let term = |g: usize| (1.0 + g as f32).sin() * 10f32.powi(g as i32 - 3);
            let grads = ParamSet::zeros(&layout, candle_core::DType::F32, &Device::Cpu).unwrap();
            let mut sums = Summing::new(&grads, None);
            let mut most = 0;
            for g in 0..groups {
                grads.fill(term(g)).unwrap();
                if g + 1 < groups {
                    sums.next().unwrap();
                }
                most = most.max(sums.pile.waiting.len());
            }
            // Some parameters earlier than others.
            [3, 3, 1].into_iter().for_each(|from| sums.ready(from).unwrap());
            assert!(sums.finish().unwrap().is_none());
            let mut add = |a: f32, b: f32| a + b;
            let want = tree((0..groups).map(term).collect(), &mut add).unwrap();
            for grad in grads.tensors() {
                let found: Vec<f32> = grad.flatten_all().unwrap().to_vec1().unwrap();
                assert!(found.iter().all(|x| x.to_bits() == want.to_bits()), "{groups} groups");
            }
            assert!(most <= groups.ilog2() as usize + usize::from(!groups.is_power_of_two()));
        }
    }
}
