//! Scores: one number per position from the statistics of a head scan.

use crate::config::Score;
use crate::data::loader::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::head::RowStats;
use crate::rng::{Rng, Stream};

/// What a score needs beside the statistics.
#[derive(Debug, Clone, Copy)]
pub struct ScoreContext {
    /// Generator of the run, for `random`.
    rng: Rng,
    /// Sequences that the run consumed before this micro-batch: with the position it numbers every token of a run, so
    /// that a draw depends neither on the micro-batch nor on where a run was interrupted.
    first_sequence: u64,
}

impl ScoreContext {
    /// For the micro-batch whose first sequence is number `first_sequence` of the run with this seed.
    pub fn new(seed: u64, first_sequence: u64) -> Self {
        Self { rng: Rng::new(seed, Stream::Score), first_sequence }
    }
}

/// The score of every position of `batch` [B T]. Errs at the first valid position whose score is not finite, naming
/// sequence and position; scores of positions that do not count are 0.
///
/// `entropy` H(p) and `loss` nll are ESLM's VaR-entropy and CVaR-loss (arXiv 2505.19893); `excess` is the student's nll
/// minus the teacher's (Rho-1, arXiv 2404.07965); `kl` is KL(q || p) at the scan's temperature; `teacher-entropy` H(q);
/// `random` is uniform in [0, 1).
pub fn scores(score: Score, stats: &[RowStats], batch: &Batch, context: ScoreContext) -> Result<Vec<f32>> {
    let one = |i: usize, s: &RowStats| match score {
        Score::Entropy => s.student.entropy,
        Score::Loss => s.student.nll,
        Score::Kl => s.kl,
        Score::TeacherEntropy => s.teacher.entropy,
        Score::Excess => s.student.nll - s.teacher.nll,
        Score::Random => {
            let token = context.first_sequence * batch.context as u64 + i as u64;
            context.rng.uniform(0, token)
        }
    };
    let place = |i: usize| (batch.sequence_ids[i / batch.context], i % batch.context);
    stats
        .iter()
        .enumerate()
        .map(|(i, s)| match (batch.valid[i], one(i, s)) {
            (false, _) => Ok(0.0),
            (true, value) if value.is_finite() => Ok(value),
            (true, value) => {
                let (sequence, position) = place(i);
                Err(Error::new(
                    ErrorKind::NonFinite,
                    format!(
                        "expected a finite {score} score, found {value} at sequence {sequence}, position {position}"
                    ),
                ))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::head::Stats;

    fn batch(rows: usize, context: usize) -> Batch {
        let n = rows * context;
        Batch {
            rows,
            context,
            inputs: vec![0; n],
            targets: vec![0; n],
            valid: vec![true; n],
            sequence_ids: (0..rows as u64).map(|i| 40 + i).collect(),
        }
    }

    fn row(nll: f32, entropy: f32, t_nll: f32, t_entropy: f32, kl: f32) -> RowStats {
        let stats = |nll, entropy| Stats { nll, entropy, ..Stats::default() };
        RowStats { student: stats(nll, entropy), teacher: stats(t_nll, t_entropy), kl, ..RowStats::default() }
    }

    #[test]
    fn each_score_reads_its_statistic() {
        let stats = [row(5.0, 2.0, 1.5, 0.5, 0.25)];
        let of = |score| scores(score, &stats, &batch(1, 1), ScoreContext::new(1, 0)).unwrap()[0];
        assert_eq!(of(Score::Entropy), 2.0);
        assert_eq!(of(Score::Loss), 5.0);
        assert_eq!(of(Score::Kl), 0.25);
        assert_eq!(of(Score::TeacherEntropy), 0.5);
        assert_eq!(of(Score::Excess), 3.5);
    }

    #[test]
    fn random_scores_do_not_depend_on_the_micro_batch() {
        let stats = vec![RowStats::default(); 12];
        let of = |rows, first, n: usize| {
            scores(Score::Random, &stats[..n], &batch(rows, 3), ScoreContext::new(9, first)).unwrap()
        };
        let whole = of(4, 10, 12);
        assert_eq!(whole[6..], of(2, 12, 6));
        assert_ne!(whole[..6], of(2, 12, 6));
        assert!(whole.iter().all(|s| (0.0..1.0).contains(s)));
    }

    #[test]
    fn a_score_that_is_not_finite_is_named_where_it_counts() {
        let mut stats = vec![row(1.0, 1.0, 1.0, 1.0, 1.0); 6];
        stats[4].student.nll = f32::NAN;
        let mut batch = batch(2, 3);
        let failed = scores(Score::Loss, &stats, &batch, ScoreContext::new(1, 0)).unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::NonFinite);
        let message = failed.to_string();
        assert!(message.contains("NaN") && message.contains("sequence 41, position 1"), "{message}");
        assert!(scores(Score::Entropy, &stats, &batch, ScoreContext::new(1, 0)).is_ok());
        batch.valid[4] = false;
        assert_eq!(scores(Score::Loss, &stats, &batch, ScoreContext::new(1, 0)).unwrap()[4], 0.0);
    }
}
