//! The value-at-risk selector (ESLM, arXiv 2505.19893).
//!
//! Of a pool of M valid positions the k = ceil((1 - alpha) M) with the largest scores are kept (the
//! smallest with `tail = "low"`); the k-th is the value at risk. Ties at the threshold go to the
//! lower position, so exactly k are kept.

use crate::config::{Pool, SelectPlan, Tail};
use std::ops::Range;

/// Keeps the tail of a score distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Selector {
    /// Confidence level in [0, 1): the share that is dropped.
    pub alpha: f64,
    /// Positions that share a threshold.
    pub pool: Pool,
    /// Which end is kept.
    pub tail: Tail,
}

/// What was kept of one micro-batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    /// Kept positions, ascending, as row indices into the micro-batch `[k]`.
    pub rows: Vec<u32>,
    /// Sum over pools of the pool's value at risk, and the number of pools that had positions.
    pub var_sum: f64,
    /// See `var_sum`.
    pub pools: usize,
    /// Sum of the kept positions' scores: over `rows.len()` it is the conditional value at risk.
    pub score_sum: f64,
}

/// How many of `m` positions confidence level `alpha` keeps: ceil((1 - alpha) m).
///
/// The product is formed in f64, where (1 - 0.7) 10 is 3.0000000000000004; what exceeds an integer
/// by less than 1e-9 is that integer (pinned), so that alpha = 0.7 keeps 3 of 10.
pub fn kept_of(alpha: f64, m: usize) -> usize {
    (((1.0 - alpha) * m as f64 - 1e-9).ceil().max(0.0) as usize).clamp(m.min(1), m)
}

/// The pools of `n` positions. That of a step, and one with a carried threshold for its exact
/// threshold, are given a whole step's.
pub(super) fn pools(pool: Pool, n: usize, context: usize) -> impl Iterator<Item = Range<usize>> {
    let size = match pool {
        Pool::MicroBatch | Pool::Step | Pool::Carried => n,
        Pool::Sequence => context,
    };
    (0..n).step_by(size.max(1)).map(move |start| start..n.min(start + size))
}

impl Selector {
    /// How a plan divides tokens at confidence level `alpha`.
    pub fn of(plan: &SelectPlan, alpha: f64) -> Self {
        Self { alpha, pool: plan.pool, tail: plan.tail }
    }

    /// Selects among the valid positions. `scores` and `valid` are [B T] with `context` positions
    /// per sequence; scores of valid positions are finite (see `select/score.rs`).
    pub fn select(&self, scores: &[f32], valid: &[bool], context: usize) -> Selection {
        let mut selection = Selection::default();
        for pool in pools(self.pool, scores.len(), context) {
            let members: Vec<u32> = pool.filter(|&i| valid[i]).map(|i| i as u32).collect();
            self.select_pool(scores, members, &mut selection);
        }
        selection
    }

    /// How many of the valid positions [`Selector::select`] would keep; with a carried threshold,
    /// how many it aims at.
    pub fn kept(&self, valid: &[bool], context: usize) -> usize {
        let members = |pool: Range<usize>| valid[pool].iter().filter(|v| **v).count();
        pools(self.pool, valid.len(), context).map(|pool| kept_of(self.alpha, members(pool))).sum()
    }

    fn select_pool(&self, scores: &[f32], mut members: Vec<u32>, selection: &mut Selection) {
        let k = kept_of(self.alpha, members.len());
        if k == 0 {
            return;
        }
        let rank = |a: &u32, b: &u32| {
            let (x, y) = (scores[*a as usize], scores[*b as usize]);
            let by_score = if self.tail == Tail::High { y.total_cmp(&x) } else { x.total_cmp(&y) };
            // -0.0 and 0.0 are one score.
            let by_score = if x == y { std::cmp::Ordering::Equal } else { by_score };
            by_score.then(a.cmp(b))
        };
        let (_, threshold, _) = members.select_nth_unstable_by(k - 1, rank);
        selection.var_sum += f64::from(scores[*threshold as usize]);
        selection.pools += 1;
        members.truncate(k);
        members.sort_unstable();
        selection.score_sum += members.iter().map(|&i| f64::from(scores[i as usize])).sum::<f64>();
        selection.rows.append(&mut members);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn selector(alpha: f64, pool: Pool, tail: Tail) -> Selector {
        Selector { alpha, pool, tail }
    }

    #[test]
    fn k_is_the_ceiling_without_rounding_noise() {
        for (alpha, m, k) in [
            (0.7, 10, 3),
            (0.0, 7, 7),
            (0.5, 7, 4),
            (0.9, 10, 1),
            (0.999, 10, 1),
            (0.1, 30, 27),
            (0.3, 0, 0),
        ] {
            assert_eq!(kept_of(alpha, m), k, "alpha {alpha}, M {m}");
        }
        for percent in 0..100 {
            for m in 0..200usize {
                // In integers: ceil((100 - p) m / 100).
                assert_eq!(
                    kept_of(f64::from(percent) / 100.0, m),
                    ((100 - percent as usize) * m).div_ceil(100)
                );
            }
        }
    }

    #[test]
    fn ties_go_to_the_lower_position() {
        let scores = [1.0, 2.0, 1.0, 2.0, 1.0, 0.0];
        let s = selector(0.5, Pool::MicroBatch, Tail::High).select(&scores, &[true; 6], 6);
        assert_eq!((s.rows, s.var_sum, s.score_sum), (vec![0, 1, 3], 1.0, 5.0));
        let s = selector(0.5, Pool::MicroBatch, Tail::Low).select(&scores, &[true; 6], 6);
        assert_eq!((s.rows, s.var_sum), (vec![0, 2, 5], 1.0));
        let s = selector(0.5, Pool::MicroBatch, Tail::High).select(
            &[0.0, -0.0, 0.0, -0.0],
            &[true; 4],
            4,
        );
        assert_eq!(s.rows, [0, 1]);
    }

    #[test]
    fn sequences_have_their_own_threshold_and_invalid_positions_never_count() {
        let scores = [9.0, 8.0, 7.0, 1.0, 2.0, 3.0, 5.0, 5.0, 5.0];
        let valid = [true, true, true, true, true, true, false, false, false];
        let s = selector(0.6, Pool::Sequence, Tail::High).select(&scores, &valid, 3);
        assert_eq!((s.rows, s.pools, s.var_sum), (vec![0, 1, 4, 5], 2, 8.0 + 2.0));
        let s = selector(0.5, Pool::MicroBatch, Tail::High).select(&scores, &valid, 3);
        assert_eq!(s.rows, [0, 1, 2]);
        let none = selector(0.5, Pool::Sequence, Tail::High).select(&scores, &[false; 9], 3);
        assert_eq!(none, Selection::default());
        for (pool, kept) in [(Pool::Sequence, 4), (Pool::MicroBatch, 3)] {
            assert_eq!(selector(0.6, pool, Tail::High).kept(&valid, 3), kept);
        }
    }

    proptest! {
        #[test]
        fn exactly_k_are_kept_and_none_dropped_ranks_higher(
            scores in proptest::collection::vec(-4i8..4, 1..60), alpha in 0.0f64..1.0, low in any::<bool>(),
        ) {
            let scores: Vec<f32> = scores.into_iter().map(|s| f32::from(s) * 0.5).collect();
            let tail = if low { Tail::Low } else { Tail::High };
            let s = selector(alpha, Pool::MicroBatch, tail).select(&scores, &vec![true; scores.len()], 1);
            prop_assert_eq!(s.rows.len(), kept_of(alpha, scores.len()));
            prop_assert!(s.rows.is_sorted_by(|a, b| a < b));
            let sign = if low { -1.0 } else { 1.0 };
            for dropped in (0..scores.len() as u32).filter(|i| !s.rows.contains(i)) {
                for &kept in &s.rows {
                    let (d, k) = (sign * scores[dropped as usize], sign * scores[kept as usize]);
                    prop_assert!(d < k || (d == k && dropped > kept));
                }
            }
        }

        #[test]
        fn whole_sequences_may_change_places(
            scores in proptest::collection::vec(-4i8..4, 12), order in Just([0usize, 1, 2, 3]).prop_shuffle(),
            alpha in 0.0f64..1.0,
        ) {
            // Positions within a pool do matter, by ties alone: across pools nothing may.
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let moved: Vec<f32> = order.iter().flat_map(|&s| scores[3 * s..3 * s + 3].to_vec()).collect();
            let select = |scores: &[f32]| selector(alpha, Pool::Sequence, Tail::High).select(scores, &[true; 12], 3).rows;
            let back: Vec<u32> = select(&moved).iter().map(|&i| (3 * order[i as usize / 3]) as u32 + i % 3).collect();
            let mut back = back;
            back.sort_unstable();
            prop_assert_eq!(back, select(&scores));
        }

        #[test]
        fn distinct_scores_are_kept_wherever_they_stand(
            order in Just((0u8..20).collect::<Vec<_>>()).prop_shuffle(), alpha in 0.0f64..1.0, low in any::<bool>(),
        ) {
            let tail = if low { Tail::Low } else { Tail::High };
            let scores: Vec<f32> = order.iter().map(|&s| f32::from(s)).collect();
            let kept = selector(alpha, Pool::MicroBatch, tail).select(&scores, &[true; 20], 20).rows;
            let mut kept: Vec<u8> = kept.iter().map(|&i| order[i as usize]).collect();
            kept.sort_unstable();
            let k = kept_of(alpha, 20) as u8;
            let expected: Vec<u8> = if low { (0..k).collect() } else { (20 - k..20).collect() };
            prop_assert_eq!(kept, expected);
        }

        #[test]
        fn the_kept_set_maximises_the_masked_score_sum(
            scores in proptest::collection::vec(-9i8..9, 1..10), alpha in 0.0f64..1.0,
        ) {
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let s = selector(alpha, Pool::MicroBatch, Tail::High).select(&scores, &vec![true; scores.len()], 1);
            let best = (0u32..1 << scores.len())
                .filter(|mask| mask.count_ones() as usize == s.rows.len())
                .map(|mask| (0..scores.len()).filter(|i| mask >> i & 1 == 1).map(|i| f64::from(scores[i])).sum::<f64>())
                .fold(f64::NEG_INFINITY, f64::max);
            prop_assert_eq!(s.score_sum, best);
        }

        #[test]
        fn alpha_zero_keeps_every_valid_position(valid in proptest::collection::vec(any::<bool>(), 1..40)) {
            let scores: Vec<f32> = (0..valid.len()).map(|i| (i * 7 % 5) as f32).collect();
            let s = selector(0.0, Pool::MicroBatch, Tail::High).select(&scores, &valid, 1);
            let every: Vec<u32> = (0..valid.len() as u32).filter(|&i| valid[i as usize]).collect();
            prop_assert_eq!(s.rows, every);
        }
    }
}
