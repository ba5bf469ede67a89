//! The selection of one optimizer step: the one door through which training ranks tokens, cuts the
//! ranking and weighs rows.

use super::{
    Carried, Mixture, Ranking, Rows, ScoreContext, Selection, SelectionState, Selector, StepPool,
    kept_of, score_is_finite, score_of,
};
use crate::config::{Plan, Pool, SelectPlan};
use crate::data::loader::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::loss::head::RowStats;
use crate::rng::{Rng, Stream};
use crate::world::World;
use std::fmt;

/// A score of the user's own: from the statistics of a micro-batch's positions `[B T]`, in order,
/// to their scores; the largest are kept.
pub struct OwnScore(Box<ScoreFn>);

type ScoreFn = dyn FnMut(&[RowStats]) -> Vec<f32> + Send;

impl OwnScore {
    /// Wraps a function.
    pub fn new(score: impl FnMut(&[RowStats]) -> Vec<f32> + Send + 'static) -> Self {
        Self(Box::new(score))
    }

    /// The scores of a micro-batch; 0 where a position does not count. Errs unless there is a
    /// finite one for each that does.
    fn of(&mut self, stats: &[RowStats], batch: &Batch) -> Result<Vec<f32>> {
        let mut scores = (self.0)(stats);
        if scores.len() != stats.len() {
            return Err(Error::usage(format!(
                "the own score returned {} numbers for {} positions; expected one for each",
                scores.len(),
                stats.len()
            )));
        }
        for (i, score) in scores.iter_mut().enumerate() {
            if !batch.valid[i] {
                *score = 0.0;
            } else if !score.is_finite() {
                return Err(Error::new(
                    ErrorKind::NonFinite,
                    format!("expected a finite own score, found {score} at {}", batch.place(i)),
                ));
            }
        }
        Ok(scores)
    }
}

impl fmt::Debug for OwnScore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnScore")
    }
}

/// What a step selects by: the score, the cut (a pool's own or a carried threshold), the mixture's
/// weights.
#[derive(Debug, Clone, Copy)]
pub struct StepSelection<'a> {
    plan: &'a SelectPlan,
    alpha: f64,
    threshold: Option<Carried>,
    mixture: Mixture,
    rest: Rng,
    pool: Pooled<'a>,
}

/// Where the pool of a whole step stands.
#[derive(Debug, Clone, Copy)]
enum Pooled<'a> {
    /// The pool is another one.
    No,
    /// Its tokens were scored before.
    Known(&'a StepPool),
    /// The micro-batch at hand is all that these processes have of it, each.
    Now(&'a World),
}

/// What became of a micro-batch's positions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decision {
    /// The kept positions: all that count where nothing is selected.
    pub kept: Selection,
    /// The rows that carry gradient, the kept ones and those that the mixture drew, with their
    /// weights.
    pub rows: Rows,
    /// Scores of the positions that count, in order; none where nothing is selected.
    pub scores: Vec<f32>,
}

impl<'a> StepSelection<'a> {
    /// The selection of a step at confidence level `alpha`, whose `batch` is cut into micro-batches
    /// of `micro_rows` sequences; it is this process's share of the step. The share of tokens that will
    /// be kept must be known before the first of them, for the mixture's weights.
    pub fn new(
        plan: &'a Plan,
        memory: &SelectionState,
        alpha: f64,
        batch: &Batch,
        micro_rows: usize,
        world: &'a World,
    ) -> Self {
        let select = &plan.select;
        let threshold = memory.carried.filter(|_| select.pool == Pool::Carried);
        let counted = batch.valid_count();
        let share = match select.pool {
            _ if alpha == 0.0 || counted == 0 => 1.0,
            Pool::Carried if threshold.is_none() => 1.0,
            Pool::Carried => 1.0 - alpha,
            Pool::Step => {
                let all = counted * world.size();
                kept_of(alpha, all) as f64 / all as f64
            }
            Pool::Sequence | Pool::MicroBatch => {
                let selector = Selector::of(select, alpha);
                let micro_batches = batch.valid.chunks(micro_rows * batch.context);
                let kept: usize =
                    micro_batches.map(|valid| selector.kept(valid, batch.context)).sum();
                kept as f64 / counted as f64
            }
        };
        let mixture = Mixture::new(select, share);
        let rest = Rng::new(plan.seed, Stream::Rest);
        let pool = if select.pool == Pool::Step { Pooled::Now(world) } else { Pooled::No };
        Self { plan: select, alpha, threshold, mixture, rest, pool }
    }

    /// The same whose tokens were all scored before.
    #[must_use]
    pub fn within(self, pool: &'a StepPool) -> Self {
        Self { pool: Pooled::Known(pool), ..self }
    }

    /// The positions of a micro-batch that count, by their number in the run, with their scores.
    pub fn scored(
        &self,
        batch: &Batch,
        numbers: ScoreContext<'_>,
        stats: &[RowStats],
        own: Option<&mut OwnScore>,
    ) -> Result<Vec<(u64, f32)>> {
        Ok(self.numbered(&self.ranking(batch, numbers, stats, own)?, batch, numbers))
    }

    fn numbered(
        &self,
        ranking: &Ranking<'_>,
        batch: &Batch,
        numbers: ScoreContext<'_>,
    ) -> Vec<(u64, f32)> {
        let counted = (0..batch.valid.len()).filter(|&i| batch.valid[i]);
        counted.map(|i| (numbers.token(i, batch.context), ranking.scores[i])).collect()
    }

    fn ranking<'b>(
        &self,
        batch: &'b Batch,
        numbers: ScoreContext<'_>,
        stats: &[RowStats],
        own: Option<&mut OwnScore>,
    ) -> Result<Ranking<'b>> {
        match own {
            Some(own) => Ok(Ranking::of(own.of(stats, batch)?, self.plan.pool, batch)),
            None => Ranking::new(self.plan.score, self.plan.pool, stats, batch, numbers),
        }
    }

    /// Whether positions are scored and can be dropped.
    pub fn selects(&self) -> bool {
        self.alpha > 0.0
    }

    /// Whether a carried threshold is at hand.
    pub fn has_threshold(&self) -> bool {
        self.threshold.is_some()
    }

    /// What the step's sum of weighted losses is divided by, given how many of how many positions
    /// were kept.
    pub fn denominator(&self, kept: u64, counted: u64) -> f64 {
        self.mixture.denominator(kept, counted)
    }

    /// Decides about every position of a micro-batch from their statistics `[B T]`.
    pub fn decide(
        &self,
        batch: &Batch,
        numbers: ScoreContext<'_>,
        stats: &[RowStats],
        own: Option<&mut OwnScore>,
    ) -> Result<Decision> {
        let counted = || (0..batch.valid.len() as u32).filter(|&i| batch.valid[i as usize]);
        if !self.selects() {
            return Ok(Decision::all(counted().collect()));
        }
        let ranking = self.ranking(batch, numbers, stats, own);
        let now;
        let pool = match self.pool {
            Pooled::No => None,
            Pooled::Known(pool) => Some(pool),
            Pooled::Now(world) => {
                let scored = ranking.as_ref().map_err(Clone::clone);
                let scored = scored.map(|ranking| self.numbered(ranking, batch, numbers));
                now = StepPool::agreed(world, self.plan, self.alpha, scored)?;
                Some(&now)
            }
        };
        let ranking = ranking?;
        let scores = &ranking.scores;
        let by = |keeps: &dyn Fn(u32) -> bool| {
            let rows: Vec<u32> = counted().filter(|&i| keeps(i)).collect();
            let score_sum = rows.iter().map(|&i| f64::from(scores[i as usize])).sum();
            Selection { rows, score_sum, ..Selection::default() }
        };
        let kept = match (pool, self.plan.pool) {
            (Some(pool), _) => by(&|i| pool.keeps(numbers.token(i as usize, batch.context))),
            // Before there is a threshold every position is kept, and the step's scores make the
            // first one.
            (None, Pool::Carried) => {
                by(&|i| self.threshold.is_none_or(|t| t.keeps(scores[i as usize], self.plan.tail)))
            }
            (None, _) => ranking.cut(self.alpha, self.plan.tail),
        };
        let kept = match self.pool {
            // Of the one pool that all have, one process tells.
            Pooled::Now(world) if world.is_root() => {
                let (var_sum, pools) = pool.map_or((0.0, 0), |pool| (pool.var, pool.pools));
                Selection { var_sum, pools, ..kept }
            }
            _ => kept,
        };
        let draw = |i: u32| self.draw(numbers, batch, i as usize);
        let rows = self.mixture.rows(kept.rows.clone(), &batch.valid, draw);
        let scores = counted().map(|i| scores[i as usize]).collect();
        Ok(Decision { kept, rows, scores })
    }

    /// Decides row after row, each with its score, by the carried threshold; None where there is
    /// none, or nothing to select.
    pub fn by_row<'b>(&'b self, batch: &'b Batch, numbers: ScoreContext<'b>) -> Option<ByRow<'b>> {
        let threshold = self.threshold.filter(|_| self.selects())?;
        Some(ByRow { of: self, batch, numbers, threshold, decision: Decision::default() })
    }

    /// The draw from [0, 1) that decides whether the mixture takes position `i`.
    fn draw(&self, numbers: ScoreContext<'_>, batch: &Batch, i: usize) -> f32 {
        self.rest.uniform(0, numbers.token(i, batch.context))
    }
}

impl Decision {
    /// All of the given positions, at weight 1.
    pub fn all(positions: Vec<u32>) -> Self {
        let kept = Selection { rows: positions.clone(), ..Selection::default() };
        Self { kept, rows: Rows::plain(positions), scores: Vec::new() }
    }
}

/// Decides about the positions of a micro-batch one by one, in order.
#[derive(Debug)]
pub struct ByRow<'a> {
    of: &'a StepSelection<'a>,
    batch: &'a Batch,
    numbers: ScoreContext<'a>,
    threshold: Carried,
    decision: Decision,
}

impl ByRow<'_> {
    /// The weight of position `i`, 0 where it carries no gradient.
    pub fn weigh(&mut self, i: usize, stats: &RowStats) -> Result<f32> {
        if !self.batch.valid[i] {
            return Ok(0.0);
        }
        let (plan, batch) = (self.of.plan, self.batch);
        let value = score_of(
            plan.score,
            stats,
            || self.numbers.token(i, batch.context),
            self.numbers.rng(),
        );
        let value = score_is_finite(plan.score, value, i, batch)?;
        let decision = &mut self.decision;
        decision.scores.push(value);
        let kept = self.threshold.keeps(value, plan.tail);
        if kept {
            decision.kept.rows.push(i as u32);
            decision.kept.score_sum += f64::from(value);
        }
        let weight = self.of.mixture.weight(kept, || self.of.draw(self.numbers, batch, i));
        if weight > 0.0 {
            decision.rows.rows.push(i as u32);
            decision.rows.weights.push(weight);
        }
        Ok(weight)
    }

    /// What was decided about all of them.
    pub fn finish(self) -> Decision {
        self.decision
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::head::Stats;
    use crate::testing::plan;

    /// Two sequences of four positions, of which the last does not count.
    fn batch() -> Batch {
        let mut valid = vec![true; 8];
        valid[7] = false;
        Batch {
            sequences: 2,
            context: 4,
            inputs: vec![0; 8],
            targets: vec![0; 8],
            valid,
            sequence_ids: vec![7, 9],
        }
    }

    fn stats(losses: &[f32]) -> Vec<RowStats> {
        let row = |nll: &f32| RowStats {
            student: Stats { nll: *nll, ..Stats::default() },
            ..RowStats::default()
        };
        losses.iter().map(row).collect()
    }

    static SOLO: World = World::SOLO;

    const LOSSES: [f32; 8] = [3.0, 1.0, 2.0, 0.5, 0.1, 0.4, 0.3, 9.0];

    #[test]
    fn row_by_row_is_the_same_decision_as_all_at_once() {
        for mixture in ["select.cvar_weight=1", "select.cvar_weight=0.4"] {
            let plan = plan(&[
                "select.score=loss",
                "select.pool=carried",
                mixture,
                "select.rest_rate=0.5",
            ]);
            let memory = SelectionState {
                carried: Some(Carried { threshold: 0.45, lag: 1.0 }),
                ..SelectionState::default()
            };
            let (batch, stats) = (batch(), stats(&LOSSES));
            let selection = StepSelection::new(&plan, &memory, 0.5, &batch, 2, &SOLO);
            let numbers = ScoreContext::new(plan.seed, 3);
            let whole = selection.decide(&batch, numbers, &stats, None).unwrap();
            let mut by_row = selection.by_row(&batch, numbers).unwrap();
            for (i, stats) in stats.iter().enumerate() {
                by_row.weigh(i, stats).unwrap();
            }
            assert_eq!(by_row.finish(), whole);
            assert_eq!(whole.kept.rows, [0, 1, 2, 3]);
            assert_eq!(whole.scores, &LOSSES[..7]);
        }
    }

    #[test]
    fn the_kept_share_of_the_mixture_is_the_steps() {
        let of = |settings: &[&str], memory: &SelectionState| {
            let plan = plan(&[&["select.score=loss", "select.cvar_weight=0.5"], settings].concat());
            StepSelection::new(&plan, memory, 0.5, &batch(), 1, &SOLO).mixture
        };
        let share = |settings: &[&str], share: f64| {
            let plan = plan(&[&["select.score=loss", "select.cvar_weight=0.5"], settings].concat());
            Mixture::new(&plan.select, share)
        };
        let none = SelectionState::default();
        // 2 of 4, and 2 of 3: rounded up in every pool.
        assert_eq!(of(&["select.pool=sequence"], &none), share(&[], 4.0 / 7.0));
        assert_eq!(
            of(&["select.pool=carried"], &none),
            share(&[], 1.0),
            "before there is a threshold all are kept"
        );
        let carried = SelectionState {
            carried: Some(Carried { threshold: 1.0, lag: 1.0 }),
            ..SelectionState::default()
        };
        assert_eq!(of(&["select.pool=carried"], &carried), share(&[], 0.5));
    }

    #[test]
    fn an_own_score_ranks_and_is_checked() {
        let plan = plan(&["select.score=entropy", "select.pool=micro-batch"]);
        let batch = batch();
        let selection =
            StepSelection::new(&plan, &SelectionState::default(), 0.5, &batch, 2, &SOLO);
        let decide = |score: fn(&[RowStats]) -> Vec<f32>| {
            let numbers = ScoreContext::new(plan.seed, 0);
            selection.decide(&batch, numbers, &stats(&LOSSES), Some(&mut OwnScore::new(score)))
        };
        let lowest = decide(|stats| stats.iter().map(|s| -s.student.nll).collect()).unwrap();
        assert_eq!(lowest.kept.rows, [3, 4, 5, 6]);
        assert_eq!(lowest.scores[0], -3.0);
        let short = decide(|_| vec![0.0; 3]).unwrap_err().to_string();
        assert!(short.contains("3 numbers for 8 positions"), "{short}");
        let broken = decide(|stats| stats.iter().map(|s| 1.0 / (s.student.nll - 0.4)).collect())
            .unwrap_err();
        assert!(
            broken.to_string().contains("own score, found inf at sequence 9, position 1"),
            "{broken}"
        );
        let unseen = decide(|stats| stats.iter().map(|s| 1.0 / (s.student.nll - 9.0)).collect());
        assert!(unseen.is_ok(), "a position that does not count may score as it likes");
    }
}
