//! The pool of a whole optimizer step: one threshold for all its tokens, over micro-batches and
//! processes.
//!
//! Scores travel whole: 4 bytes a token, where a step's gradients are 4 bytes a parameter. So every
//! process has all of them and cuts the same ranking, exactly; histograms would save what is not
//! worth saving.

use super::Selector;
use crate::config::{Pool, SelectPlan};
use crate::error::Result;
use crate::world::World;

/// What the step's pool keeps of a process's tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepPool {
    /// Their numbers in the run, ascending.
    kept: Vec<u64>,
    /// The value at risk of the whole step.
    pub var: f64,
    /// 1, or 0 of a step without positions that count.
    pub pools: usize,
}

impl StepPool {
    /// Of all processes' tokens, each with its score and in the order of the step; of equal ones at
    /// the threshold the earlier is kept. Collective; an error of one process is everyone's.
    pub fn agreed(
        world: &World,
        plan: &SelectPlan,
        alpha: f64,
        scored: Result<Vec<(u64, f32)>>,
    ) -> Result<Self> {
        let mut tokens = Vec::new();
        let scores = scored.map(|scored| {
            let (mine, scores): (Vec<u64>, Vec<f64>) =
                scored.into_iter().map(|(token, score)| (token, f64::from(score))).unzip();
            tokens = mine;
            scores
        });
        let all = world.agree_on(scores)?;
        let before: usize = all[..world.rank()].iter().map(Vec::len).sum();
        let scores: Vec<f32> = all.into_iter().flatten().map(|score| score as f32).collect();
        let selector = Selector { pool: Pool::MicroBatch, ..Selector::of(plan, alpha) };
        let cut = selector.select(&scores, &vec![true; scores.len()], scores.len());
        let mine = |row: u32| tokens.get((row as usize).checked_sub(before)?).copied();
        let kept = cut.rows.into_iter().filter_map(mine).collect();
        Ok(Self { kept, var: cut.var_sum, pools: cut.pools })
    }

    /// Whether it keeps the token of that number.
    pub fn keeps(&self, token: u64) -> bool {
        self.kept.binary_search(&token).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::plan;
    use crate::world::in_threads;

    #[test]
    fn a_threshold_is_that_of_all_and_ties_go_to_the_earlier() {
        let plan = plan(&["select.pool=step"]);
        let scores = [3.0, 1.0, 2.0, 2.0, 0.5, 2.0, 4.0, 1.0];
        let kept = |size: usize| {
            let of = in_threads(size, |world| {
                let mine = world.share(scores.len());
                let scored = mine.clone().map(|i| (10 + i as u64, scores[i])).collect();
                let pool = StepPool::agreed(&world, &plan.select, 0.5, Ok(scored)).unwrap();
                assert_eq!(pool.var, 2.0);
                mine.map(|i| 10 + i as u64).filter(|&token| pool.keeps(token)).collect::<Vec<_>>()
            });
            of.concat()
        };
        for size in [1, 2, 4] {
            assert_eq!(kept(size), [10, 12, 13, 16], "{size} processes");
        }
    }
}
