//! Scores: one number per position from the statistics of a head scan.
//!
//! A score is a word of [`Score`], which says what it means and which statistics it reads, and a
//! line of [`score_of`], its formula. Whether a teacher is needed and what a scan must form follow
//! from the statistics.

use super::selector::{Selection, Selector, pools};
use crate::config::{Pool, Score, Tail};
use crate::data::loader::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::loss::head::RowStats;
use crate::rng::{Rng, Stream};

/// What a score needs beside the statistics.
#[derive(Debug, Clone, Copy)]
pub struct ScoreContext<'a> {
    rng: Rng,
    first_sequence: u64,
    among: Option<&'a [u32]>,
}

impl<'a> ScoreContext<'a> {
    /// For the micro-batch whose first sequence is number `first_sequence` of the run with this
    /// seed.
    pub fn new(seed: u64, first_sequence: u64) -> Self {
        Self { rng: Rng::new(seed, Stream::Score), first_sequence, among: None }
    }

    /// The same for the probes of an early exit, whose random scores are no token's.
    #[must_use]
    pub fn for_probes(self, seed: u64) -> Self {
        Self { rng: Rng::new(seed, Stream::Probe), ..self }
    }

    /// The generator of `random` scores.
    pub fn rng(&self) -> Rng {
        self.rng
    }

    /// Where only these sequences of the micro-batch, ascending, are left.
    #[must_use]
    pub fn among(self, sequences: Option<&'a [u32]>) -> Self {
        Self { among: sequences, ..self }
    }

    /// The number in the run of position `i` of the micro-batch: draws by it depend neither on the
    /// micro-batch nor on where a run was interrupted.
    pub fn token(&self, i: usize, context: usize) -> u64 {
        let row = i / context;
        let sequence =
            self.first_sequence + self.among.map_or(row as u64, |among| u64::from(among[row]));
        sequence * context as u64 + (i % context) as u64
    }
}

/// Positions ranked by a score, before any cut.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking<'a> {
    /// The score of every position `[B T]`; 0 where one does not count.
    pub scores: Vec<f32>,
    pool: Pool,
    batch: &'a Batch,
}

impl<'a> Ranking<'a> {
    /// Ranks the positions of `batch` by their statistics. Errs at the first position that counts
    /// and whose score is not finite.
    pub fn new(
        score: Score,
        pool: Pool,
        stats: &[RowStats],
        batch: &'a Batch,
        numbers: ScoreContext<'_>,
    ) -> Result<Self> {
        Ok(Self { scores: scores(score, pool, stats, batch, numbers)?, pool, batch })
    }

    /// By scores of the caller's own.
    pub(super) fn of(scores: Vec<f32>, pool: Pool, batch: &'a Batch) -> Self {
        Self { scores, pool, batch }
    }

    /// What confidence level `alpha` keeps of each pool.
    pub fn cut(&self, alpha: f64, tail: Tail) -> Selection {
        let selector = Selector { alpha, pool: self.pool, tail };
        selector.select(&self.scores, &self.batch.valid, self.batch.context)
    }
}

/// The score of every position of `batch` [B T]. Errs at the first valid position whose score is
/// not finite, naming sequence and position; scores of positions that do not count are 0.
///
/// `entropy-kl` (SE-KD, arXiv 2602.01395) is H(p) times KL(q || p), each mapped to [0, 1] by its
/// least and largest value among the valid positions of its `pool` (to 0 where these are equal).
/// Every other score is [`score_of`] its position.
fn scores(
    score: Score,
    pool: Pool,
    stats: &[RowStats],
    batch: &Batch,
    context: ScoreContext<'_>,
) -> Result<Vec<f32>> {
    let mut scores = (0..stats.len())
        .map(|i| {
            if !batch.valid[i] {
                return Ok(0.0);
            }
            score_is_finite(
                score,
                score_of(score, &stats[i], || context.token(i, batch.context), context.rng),
                i,
                batch,
            )
        })
        .collect::<Result<Vec<f32>>>()?;
    if score == Score::EntropyKl {
        let kl = scores_of_kl(stats, batch)?;
        for members in pools(pool, stats.len(), batch.context) {
            let unit = |values: &[f32]| {
                let valid = || members.clone().filter(|&i| batch.valid[i]).map(|i| values[i]);
                let (low, high) = (
                    valid().fold(f32::INFINITY, f32::min),
                    valid().fold(f32::NEG_INFINITY, f32::max),
                );
                move |x: f32| if high > low { (x - low) / (high - low) } else { 0.0 }
            };
            let (unit_entropy, unit_kl) = (unit(&scores), unit(&kl));
            for i in members.clone().filter(|&i| batch.valid[i]) {
                scores[i] = unit_entropy(scores[i]) * unit_kl(kl[i]);
            }
        }
    }
    Ok(scores)
}

fn scores_of_kl(stats: &[RowStats], batch: &Batch) -> Result<Vec<f32>> {
    let one = |(i, s): (usize, &RowStats)| {
        if batch.valid[i] { score_is_finite(Score::EntropyKl, s.kl, i, batch) } else { Ok(0.0) }
    };
    stats.iter().enumerate().map(one).collect()
}

/// The formulas: the score of one position as far as its own statistics go, in nats (of
/// `entropy-kl` the entropy; `random` is uniform in [0, 1)). `token` is the position's number in
/// the run.
pub(super) fn score_of(
    score: Score,
    stats: &RowStats,
    token: impl FnOnce() -> u64,
    rng: Rng,
) -> f32 {
    match score {
        Score::Entropy | Score::EntropyKl => stats.student.entropy,
        Score::Loss => stats.student.nll,
        Score::Kl => stats.kl,
        Score::ReverseKl => stats.reverse_kl,
        Score::TeacherEntropy => stats.teacher.entropy,
        Score::Excess => stats.student.nll - stats.teacher.nll,
        Score::Random => rng.uniform(0, token()),
    }
}

/// The score of position `i` of `batch`, or an error that names it unless it is finite.
pub(super) fn score_is_finite(score: Score, value: f32, i: usize, batch: &Batch) -> Result<f32> {
    if value.is_finite() {
        return Ok(value);
    }
    Err(Error::new(
        ErrorKind::NonFinite,
        format!("expected a finite {score} score, found {value} at {}", batch.place(i)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Statistic;
    use crate::loss::head::Stats;

    fn batch(rows: usize, context: usize) -> Batch {
        let n = rows * context;
        Batch {
            sequences: rows,
            context,
            inputs: vec![0; n],
            targets: vec![0; n],
            valid: vec![true; n],
            sequence_ids: (0..rows as u64).map(|i| 40 + i).collect(),
        }
    }

    fn row(nll: f32, entropy: f32, t_nll: f32, t_entropy: f32, kl: f32) -> RowStats {
        let stats = |nll, entropy| Stats { nll, entropy, ..Stats::default() };
        RowStats {
            student: stats(nll, entropy),
            teacher: stats(t_nll, t_entropy),
            kl,
            reverse_kl: 2.0 * kl,
        }
    }

    fn scores(
        score: Score,
        stats: &[RowStats],
        batch: &Batch,
        context: ScoreContext<'_>,
    ) -> Result<Vec<f32>> {
        super::scores(score, Pool::Sequence, stats, batch, context)
    }

    #[test]
    fn each_score_reads_its_statistic() {
        let stats = [row(5.0, 2.0, 1.5, 0.5, 0.25)];
        let of = |score| scores(score, &stats, &batch(1, 1), ScoreContext::new(1, 0)).unwrap()[0];
        assert_eq!(of(Score::Entropy), 2.0);
        assert_eq!(of(Score::Loss), 5.0);
        assert_eq!(of(Score::Kl), 0.25);
        assert_eq!(of(Score::ReverseKl), 0.5);
        assert_eq!(of(Score::TeacherEntropy), 0.5);
        assert_eq!(of(Score::Excess), 3.5);
    }

    #[test]
    fn a_score_reads_the_statistics_it_names_and_no_other() {
        // Three positions, so that what entropy-kl normalises has a range; one statistic of the
        // middle one moves.
        let stats = [
            row(1.0, 1.0, 1.0, 1.0, 1.0),
            row(2.0, 2.0, 2.0, 2.0, 2.0),
            row(5.0, 5.0, 5.0, 5.0, 5.0),
        ];
        let of = |score, stats: &[RowStats]| {
            scores(score, stats, &batch(1, 3), ScoreContext::new(1, 0)).unwrap()
        };
        type Move = (Statistic, fn(&mut RowStats));
        let moves: [Move; 6] = [
            (Statistic::Nll, |s| s.student.nll += 1.0),
            (Statistic::Entropy, |s| s.student.entropy += 1.0),
            (Statistic::TeacherNll, |s| s.teacher.nll += 1.0),
            (Statistic::TeacherEntropy, |s| s.teacher.entropy += 1.0),
            (Statistic::Kl, |s| s.kl += 1.0),
            (Statistic::ReverseKl, |s| s.reverse_kl += 1.0),
        ];
        for &score in Score::ALL {
            for (statistic, change) in moves {
                let mut moved = stats;
                change(&mut moved[1]);
                let changed = of(score, &moved) != of(score, &stats);
                assert_eq!(
                    changed,
                    score.reads().contains(&statistic),
                    "{score} and {statistic:?}"
                );
            }
        }
    }

    #[test]
    fn random_scores_do_not_depend_on_the_micro_batch() {
        let stats = vec![RowStats::default(); 12];
        let of = |rows, first, n: usize| {
            scores(Score::Random, &stats[..n], &batch(rows, 3), ScoreContext::new(9, first))
                .unwrap()
        };
        let whole = of(4, 10, 12);
        assert_eq!(whole[6..], of(2, 12, 6));
        assert_ne!(whole[..6], of(2, 12, 6));
        assert!(whole.iter().all(|s| (0.0..1.0).contains(s)));
    }

    #[test]
    fn entropy_kl_is_the_product_of_what_is_normalised_in_the_pool() {
        let of = |entropy, kl| row(0.0, entropy, 0.0, 0.0, kl);
        let stats =
            [of(1.0, 0.5), of(3.0, 0.0), of(2.0, 1.0), of(9.0, 0.3), of(9.0, 0.3), of(9.0, 8.0)];
        let mut batch = batch(2, 3);
        let by = |pool, batch: &Batch| {
            super::scores(Score::EntropyKl, pool, &stats, batch, ScoreContext::new(1, 0))
        };
        // First sequence: entropies 0, 1, 1/2 and divergences 1/2, 0, 1; in the second every
        // entropy is the same.
        assert_eq!(by(Pool::Sequence, &batch).unwrap(), [0.0, 0.0, 0.5, 0.0, 0.0, 0.0]);
        let whole = by(Pool::MicroBatch, &batch).unwrap();
        assert_eq!((whole[0], whole[2], whole[5]), (0.0, 0.125 * 0.125, 1.0));
        // What does not count neither has a score nor widens the range.
        batch.valid[5] = false;
        assert_eq!(by(Pool::MicroBatch, &batch).unwrap()[2], 0.125);
        let mut broken = stats;
        broken[1].kl = f32::INFINITY;
        let failed = super::scores(
            Score::EntropyKl,
            Pool::Sequence,
            &broken,
            &batch,
            ScoreContext::new(1, 0),
        );
        assert!(
            failed
                .unwrap_err()
                .to_string()
                .contains("entropy-kl score, found inf at sequence 40, position 1")
        );
    }

    #[test]
    fn sequences_that_are_left_keep_their_numbers() {
        let stats = vec![RowStats::default(); 6];
        let context = ScoreContext::new(9, 10);
        let whole = scores(Score::Random, &stats, &batch(2, 3), context).unwrap();
        let second =
            scores(Score::Random, &stats[..3], &batch(1, 3), context.among(Some(&[1]))).unwrap();
        assert_eq!(whole[3..], second);
    }

    #[test]
    fn a_score_that_is_not_finite_is_named_where_it_counts() {
        let mut stats = vec![row(1.0, 1.0, 1.0, 1.0, 1.0); 6];
        stats[4].student.nll = f32::NAN;
        let mut batch = batch(2, 3);
        let failed = scores(Score::Loss, &stats, &batch, ScoreContext::new(1, 0)).unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::NonFinite);
        let message = failed.to_string();
        assert!(
            message.contains("NaN") && message.contains("sequence 41, position 1"),
            "{message}"
        );
        assert!(scores(Score::Entropy, &stats, &batch, ScoreContext::new(1, 0)).is_ok());
        batch.valid[4] = false;
        assert_eq!(scores(Score::Loss, &stats, &batch, ScoreContext::new(1, 0)).unwrap()[4], 0.0);
    }
}
