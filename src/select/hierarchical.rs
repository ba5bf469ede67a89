//! The early exit of hierarchical selection: whole sequences, judged after a few blocks on some of
//! their positions.

use super::{ScoreContext, Selector, score_is_finite, score_of};
use crate::config::{Pool, SelectPlan, Tail};
use crate::data::loader::Batch;
use crate::error::Result;
use crate::loss::head::RowStats;

/// The probed positions of `sequences` sequences of `context` positions, as rows of the
/// micro-batch: every `stride`-th, the last of each stride (so with more context than its first),
/// and always at least a sequence's last.
pub fn probe_rows(sequences: usize, context: usize, stride: usize) -> Vec<u32> {
    let stride = stride.clamp(1, context.max(1));
    let within = || (stride - 1..context).step_by(stride);
    (0..sequences).flat_map(|s| within().map(move |i| (s * context + i) as u32)).collect()
}

/// The sequences of a micro-batch that go on at confidence level `alpha`, ascending, by the
/// statistics of its `probes` ([`probe_rows`]). Errs where a probe that counts has a score that is
/// not finite.
pub fn judge_sequences(
    plan: &SelectPlan,
    alpha: f64,
    batch: &Batch,
    numbers: ScoreContext<'_>,
    probes: &[u32],
    stats: &[RowStats],
) -> Result<Vec<u32>> {
    let score = plan.probe_score.of_tokens();
    let valid: Vec<bool> = probes.iter().map(|&row| batch.valid[row as usize]).collect();
    let one = |(i, &row): (usize, &u32)| {
        let value = score_of(
            score,
            &stats[i],
            || numbers.token(row as usize, batch.context),
            numbers.rng(),
        );
        if valid[i] { score_is_finite(score, value, row as usize, batch) } else { Ok(0.0) }
    };
    let scores = probes.iter().enumerate().map(one).collect::<Result<Vec<f32>>>()?;
    Ok(keep_sequences(alpha, batch.sequences, &scores, &valid))
}

/// The sequences that go on, ascending: the ceil((1 - alpha) B) with the largest score, ties to the
/// lower index. A sequence's score is the mean score of its probed positions that count (pinned);
/// one without any ranks last. `scores` and `valid` are those of [`probe_rows`].
fn keep_sequences(alpha: f64, sequences: usize, scores: &[f32], valid: &[bool]) -> Vec<u32> {
    let probes = scores.len() / sequences.max(1);
    let means: Vec<f32> = (scores.chunks(probes.max(1)).zip(valid.chunks(probes.max(1))))
        .map(|(scores, valid)| {
            let counted: Vec<f64> =
                scores.iter().zip(valid).filter(|(_, v)| **v).map(|(s, _)| f64::from(*s)).collect();
            if counted.is_empty() {
                f32::MIN
            } else {
                (counted.iter().sum::<f64>() / counted.len() as f64) as f32
            }
        })
        .collect();
    let selector = Selector { alpha, pool: Pool::MicroBatch, tail: Tail::High };
    selector.select(&means, &vec![true; means.len()], 1).rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_end_their_strides() {
        assert_eq!(probe_rows(2, 6, 2), [1, 3, 5, 7, 9, 11]);
        assert_eq!(probe_rows(2, 7, 3), [2, 5, 9, 12]);
        assert_eq!(probe_rows(1, 3, 1), [0, 1, 2]);
        assert_eq!(
            probe_rows(2, 3, 50),
            [2, 5],
            "a stride beyond the context probes the last position"
        );
        assert!(probe_rows(0, 3, 1).is_empty());
    }

    #[test]
    fn sequences_with_the_largest_mean_go_on() {
        let scores = [1.0, 1.0, 5.0, 0.0, 2.0, 2.0, 0.0, 5.0];
        assert_eq!(keep_sequences(0.5, 4, &scores, &[true; 8]), [1, 3]);
        assert_eq!(keep_sequences(0.25, 4, &scores, &[true; 8]), [1, 2, 3]);
        assert_eq!(keep_sequences(0.9, 4, &scores, &[true; 8]), [1], "ties go to the lower index");
        assert_eq!(keep_sequences(0.0, 4, &scores, &[true; 8]), [0, 1, 2, 3]);
        // Only what counts is averaged, and nothing at all ranks last.
        let valid = [true, true, true, false, false, false, true, true];
        assert_eq!(keep_sequences(0.25, 4, &scores, &valid), [0, 1, 3]);
    }
}
