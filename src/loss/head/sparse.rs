//! Divergences to a sparse signal: a few ids, and everything else as one.
//!
//! To the k ids of a [`TopK`] both distributions add a bucket for the rest, and D is the divergence
//! of these k + 1 numbers, by the same formulas as over the vocabulary: never more than the dense
//! one (data processing). With g and h = g / P of [`crate::loss::divergence`], the gradient by a
//! logit is p (h of its bucket - G). Drawn ids give KL(q || p) with q replaced by the share of
//! draws: the gradient p - count / draws is right in expectation.

use super::{Logits, Objective, RowStats, cpu, reference};
use crate::error::{Error, Result};
use crate::loss::Divergence;
use crate::loss::divergence::RowDivergence;
use crate::loss::signal::{DrawnId, Sampled, Signal, TopK};
use crate::ops::buffer::read;
use crate::ops::simd::{LANES, exp, multiversion, sum_lanes};
use rayon::prelude::*;

/// The student's mass outside the ids counts as at least this: what 1 - sum p is known to.
pub(super) const LEAST_REST: f64 = f32::EPSILON as f64;

/// What the gradient of a row needs: g of its ids, h of everything else, and G.
#[derive(Debug, Default)]
pub(super) struct SparseRow {
    g: Vec<(u32, f32)>,
    h_rest: f32,
    sums: RowDivergence,
}

impl SparseRow {
    /// D.
    pub(super) fn value(&self) -> f64 {
        self.sums.value
    }

    /// (id, g) of its ids, ascending.
    pub(super) fn ids(&self) -> &[(u32, f32)] {
        &self.g
    }

    /// h of everything else, and G.
    pub(super) fn rest(&self) -> [f32; 2] {
        [self.h_rest, self.sums.gradient as f32]
    }

    /// Adds the divergence's part to a tile of a row's gradient that holds the cross-entropy's,
    /// `ce` times p at temperature 1, itself `scale` times. The tile begins at id `start`.
    pub(super) fn add(
        &self,
        dz: &mut [f32],
        z: &[f32],
        start: usize,
        s: &RowStats,
        objective: Objective,
        (ce, scale): (f32, f32),
    ) {
        let (s, total, inverse_tau) =
            (&s.student, self.sums.gradient as f32, 1.0 / objective.temperature);
        add_softmax(dz, z, s.max, s.log_sum_tau, inverse_tau, scale * (self.h_rest - total));
        let from = self.g.partition_point(|(id, _)| (*id as usize) < start);
        let inside = self.g[from..].iter().map(|(id, g)| (*id as usize - start, *g));
        for (i, g) in inside.take_while(|(i, _)| *i < z.len()) {
            // Written anew: next to a large h of the rest, what the ids have would be lost in
            // rounding.
            let p = exp((z[i] - s.max) * inverse_tau - s.log_sum_tau);
            dz[i] = ce * exp(z[i] - s.max - s.log_sum) + scale * (g - p * total);
        }
    }
}

/// Every row's part of the gradient, in the order of `stats`.
pub(super) fn rows(
    student: &Logits,
    signal: &Signal,
    stats: &[RowStats],
    objective: Objective,
) -> Result<Vec<SparseRow>> {
    check(signal, objective)?;
    let d = student.hidden.dim(1)?;
    let (hidden, weight) = (read(&student.hidden)?, read(&student.weight)?);
    let (hidden, weight): (&[f32], &[f32]) = (&hidden, &weight);
    // Few products, formed here however the logits are held: the same bits in every head mode.
    rows_of(signal, 0, stats, objective, |i, _, id| {
        dot(&hidden[i * d..][..d], &weight[id as usize * d..][..d])
    })
}

/// As [`rows`], of rows `first..` of the signal, whose statistics are `stats`: `logit` gives the
/// student's from a row's number among these, an id's place among the row's, and the id.
pub(super) fn rows_of(
    signal: &Signal,
    first: usize,
    stats: &[RowStats],
    objective: Objective,
    logit: impl Fn(usize, usize, u32) -> f32 + Sync,
) -> Result<Vec<SparseRow>> {
    let one = |i: usize| {
        let s = &stats[i].student;
        let log_p = |place: usize, id: u32| {
            (logit(i, place, id) - s.max) / objective.temperature - s.log_sum_tau
        };
        match signal {
            Signal::Dense(_) => SparseRow::default(),
            Signal::TopK(top) => bucketed(top, first + i, objective.divergence, log_p),
            Signal::Sampled(sampled) => drawn(sampled, first + i, log_p),
        }
    };
    Ok((0..stats.len()).into_par_iter().map(one).collect())
}

/// Only forward KL is linear in q, so only there draws are right on average; and without draws
/// there is nothing to learn from.
pub(super) fn check(signal: &Signal, objective: Objective) -> Result<()> {
    match signal {
        Signal::Sampled(_) if objective.divergence != Divergence::ForwardKl => Err(
            Error::internal("a sampled teacher needs forward KL: no other divergence is unbiased"),
        ),
        Signal::Sampled(Sampled { draws: 0, .. }) if objective.lambda != 0.0 => {
            Err(Error::internal(
                "expected a teacher's signal to learn from, found its scores alone (a sample of 0 \
                 draws)",
            ))
        }
        _ => Ok(()),
    }
}

fn bucketed(
    top: &TopK,
    row: usize,
    divergence: Divergence,
    log_p: impl Fn(usize, u32) -> f32,
) -> SparseRow {
    let mut out = SparseRow::default();
    let range = row * top.k..(row + 1) * top.k;
    let mut outside = 1.0;
    let mut add = |log_p: f32, log_q: f32| {
        let (term, g) = divergence.entry(log_p, log_q);
        out.sums.value += f64::from(term);
        out.sums.gradient += f64::from(g);
        g
    };
    for (place, (&id, &log_q)) in top.ids[range.clone()].iter().zip(&top.logp[range]).enumerate() {
        let log_p = log_p(place, id);
        outside -= f64::from(log_p).exp();
        out.g.push((id, add(log_p, log_q)));
    }
    if top.rest[row] > f32::NEG_INFINITY {
        let outside = outside.max(LEAST_REST);
        out.h_rest = (f64::from(add(outside.ln() as f32, top.rest[row])) / outside) as f32;
    }
    out.sums.value = cpu::not_negative(out.sums.value);
    out
}

fn drawn(sampled: &Sampled, row: usize, log_p: impl Fn(usize, u32) -> f32) -> SparseRow {
    let ids = sampled.row(row);
    let share = |d: &DrawnId| d.count as f32 / sampled.draws as f32;
    let terms = ids.iter().enumerate();
    let cross: f64 = terms.map(|(i, d)| f64::from(share(d)) * f64::from(-log_p(i, d.id))).sum();
    // Below 0 where few draws say so: the estimate of KL is right on average.
    let value = cross - f64::from(sampled.said[row].entropy_tau);
    // h = 1 everywhere and g = p - share at the ids; up to p, which sums to 1, that is -share there
    // and nothing elsewhere.
    let g = ids.iter().map(|d| (d.id, -share(d))).collect();
    SparseRow { g, h_rest: 0.0, sums: RowDivergence { value, gradient: -1.0 } }
}

/// The divergence of each row by its formulas, in candle operations: `[N]`. `log_p` [N, V] is the
/// student's.
pub(super) fn by_reference(
    log_p: &candle_core::Tensor,
    signal: &Signal,
    objective: Objective,
) -> Result<candle_core::Tensor> {
    use candle_core::{D, Tensor};
    check(signal, objective)?;
    let (n, vocab) = log_p.dims2()?;
    let here = |data: Vec<f32>, columns: usize| -> Result<Tensor> {
        Ok(Tensor::from_vec(data, (n, columns), log_p.device())?.to_dtype(log_p.dtype())?)
    };
    match signal {
        Signal::Dense(_) => Err(Error::internal("a dense signal has no ids")),
        Signal::TopK(top) => {
            let ids = Tensor::from_slice(&top.ids, (n, top.k), log_p.device())?;
            let (p, q) = (log_p.gather(&ids, 1)?, here(top.logp.clone(), top.k)?);
            if top.k == vocab {
                return reference::divergence(objective.divergence, &p, &q);
            }
            let outside = (1.0 - p.exp()?.sum_keepdim(D::Minus1)?)?;
            let outside = outside.maximum(&(outside.ones_like()? * LEAST_REST)?)?.log()?;
            let (p, q) =
                (Tensor::cat(&[p, outside], 1)?, Tensor::cat(&[q, here(top.rest.clone(), 1)?], 1)?);
            reference::divergence(objective.divergence, &p, &q)
        }
        Signal::Sampled(sampled) => {
            let mut shares = vec![0.0; n * vocab];
            for i in 0..n {
                for d in sampled.row(i) {
                    shares[i * vocab + d.id as usize] = d.count as f32 / sampled.draws as f32;
                }
            }
            let cross = (here(shares, vocab)? * log_p)?.sum(D::Minus1)?.neg()?;
            let entropy = sampled.said.iter().map(|said| said.entropy_tau).collect();
            Ok((cross - here(entropy, 1)?.squeeze(1)?)?)
        }
    }
}

multiversion! {
    fn add_softmax(out: &mut [f32], z: &[f32], max: f32, log_sum: f32, inverse_tau: f32, scale: f32) {
        for (out, z) in out.iter_mut().zip(z) {
            *out += scale * exp((z - max) * inverse_tau - log_sum);
        }
    }

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut sum = [0.0f32; LANES];
        let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        let (a_tail, b_tail) = (a.remainder(), b.remainder());
        for (a, b) in a.zip(b) {
            for l in 0..LANES {
                sum[l] += a[l] * b[l];
            }
        }
        for (l, (a, b)) in a_tail.iter().zip(b_tail).enumerate() {
            sum[l] += a * b;
        }
        sum_lanes(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::SignalKind;
    use crate::loss::head::tests::scanned;
    use crate::loss::head::{LossGradient, LossInput, Scanned, loss, scan};
    use crate::loss::signal::Said;
    use crate::ops::testing::{assert_close, check_finite_differences, random};
    use candle_core::{DType, Tensor};

    const V: usize = 5003;
    const DIVERGENCES: [Divergence; 6] = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::Jsd { beta: 0.3 },
        Divergence::SkewKl { skew: 0.1 },
        Divergence::SkewReverseKl { skew: 0.1 },
        Divergence::TotalVariation,
    ];

    fn objective(divergence: Divergence) -> Objective {
        Objective { lambda: 0.7, temperature: 2.0, divergence }
    }

    fn pair(dtype: DType, vocab: usize) -> (Logits, Logits) {
        let logits = |width: usize, tag| {
            let (hidden, weight) = (random((6, width), tag), random((vocab, width), tag + 1));
            Logits::new(hidden.to_dtype(dtype).unwrap(), weight.to_dtype(dtype).unwrap())
        };
        (logits(8, 1), logits(5, 3))
    }

    /// Loss and gradients (the last with respect to the head) with a signal of some kind.
    fn taught(
        dtype: DType,
        keep: bool,
        vocab: usize,
        kind: SignalKind,
        objective: Objective,
        seed: u64,
    ) -> (LossGradient, Tensor) {
        let (s, t) = pair(dtype, vocab);
        let targets = [0, 3, 1, 2, vocab as u32 - 1, 7];
        let Scanned { stats, student: s, teacher } =
            scanned(s, Some(t), &targets, objective.temperature, keep);
        let t = teacher.unwrap();
        let signal =
            kind.reduce(t, &stats, objective.temperature, seed, &[4, 5, 6, 10, 11, 12]).unwrap();
        let d_weight = s.weight.zeros_like().unwrap();
        let weights = [1.0, 0.5, 2.0, 1.0, 1.0, 3.0];
        (
            loss(
                LossInput {
                    student: &s,
                    signal: Some(&signal),
                    stats: &stats,
                    targets: &targets,
                    weights: &weights,
                    objective,
                },
                &d_weight,
            )
            .unwrap(),
            d_weight,
        )
    }

    #[test]
    fn the_whole_vocabulary_in_the_top_is_the_dense_signal() {
        for divergence in DIVERGENCES {
            let of = |kind| taught(DType::F32, false, 301, kind, objective(divergence), 1);
            let ((dense, dense_dw), (top, top_dw)) =
                (of(SignalKind::Dense), of(SignalKind::TopK(1000)));
            assert!(
                (dense.sum - top.sum).abs() < 1e-3 * dense.sum,
                "{divergence:?}: {} vs {}",
                top.sum,
                dense.sum
            );
            // But for the levels that its probabilities are rounded to.
            assert_close(&top.d_hidden, &dense.d_hidden, 5e-3);
            assert_close(&top_dw, &dense_dw, 5e-3);
        }
    }

    #[test]
    fn buckets_never_tell_more_than_the_vocabulary() {
        for divergence in DIVERGENCES {
            let only = Objective { lambda: 1.0, ..objective(divergence) };
            let dense = taught(DType::F32, false, V, SignalKind::Dense, only, 1).0.sum;
            let mut before = 0.0;
            for k in [1, 16, 256, 4500] {
                let top = taught(DType::F32, false, V, SignalKind::TopK(k), only, 1).0.sum;
                assert!(
                    before < top + 1e-4 && top < dense * (1.0 + 1e-5),
                    "{divergence:?}, {k}: {top} of {dense}"
                );
                before = top;
            }
            assert!(before > 0.9 * dense, "{divergence:?}: nearly all ids tell nearly all");
        }
    }

    #[test]
    fn fast_path_and_reference_agree_and_no_head_mode_or_thread_count_matters() {
        let kinds = [SignalKind::TopK(1), SignalKind::TopK(40), SignalKind::Sampled(50)];
        for (kind, divergence) in kinds.into_iter().flat_map(|kind| DIVERGENCES.map(|d| (kind, d)))
        {
            let objective = objective(divergence);
            if matches!(kind, SignalKind::Sampled(_)) && divergence != Divergence::ForwardKl {
                continue;
            }
            let (fast, fast_dw) = taught(DType::F32, true, V, kind, objective, 1);
            let (slow, slow_dw) = taught(DType::F64, false, V, kind, objective, 1);
            assert!(
                (fast.sum - slow.sum).abs() < 1e-5 * slow.sum.abs().max(1.0),
                "{kind:?} {objective:?}: {} {}",
                fast.sum,
                slow.sum
            );
            assert_close(&fast.d_hidden, &slow.d_hidden, 2e-5);
            assert_close(&fast_dw, &slow_dw, 2e-5);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            let (other, other_dw) =
                pool.install(|| taught(DType::F32, false, V, kind, objective, 1));
            let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(
                other.sum.to_bits() == fast.sum.to_bits()
                    && bits(&other.d_hidden) == bits(&fast.d_hidden)
            );
            assert!(bits(&other_dw) == bits(&fast_dw), "{kind:?}");
        }
    }

    #[test]
    fn the_references_are_right_by_finite_differences() {
        let q = random((2, 9), 5);
        for divergence in DIVERGENCES {
            let objective = objective(divergence);
            let log_q = reference::log_softmax(&q, 2.0).unwrap().to_vec2::<f32>().unwrap();
            let ids = vec![1, 4, 8, 0, 2, 3];
            let logp: Vec<f32> =
                ids.iter().enumerate().map(|(i, &id)| log_q[i / 3][id as usize]).collect();
            let rest = logp
                .chunks(3)
                .map(|l| (1.0 - l.iter().map(|l| l.exp()).sum::<f32>()).ln())
                .collect();
            let said = vec![Said::default(); 2];
            let signal = Signal::TopK(TopK { k: 3, ids, logp, rest, said });
            check_finite_differences(&[&random((2, 9), 6)], |z| {
                reference::per_token_sparse(&z[0], &signal, &[2, 4], objective)
            });
        }
    }

    /// The mean over many seeds against the dense gradient, in standard errors of the mean.
    #[test]
    fn a_sample_is_right_on_average() {
        const SEEDS: u64 = 400;
        let objective = objective(Divergence::ForwardKl);
        let flat = |(out, dw): (LossGradient, Tensor)| -> Vec<f64> {
            let all =
                [&out.d_hidden, &dw].map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            std::iter::once(out.sum).chain(all.concat().into_iter().map(f64::from)).collect()
        };
        let want = flat(taught(DType::F32, false, 33, SignalKind::Dense, objective, 0));
        let (mut sum, mut square) = (vec![0.0; want.len()], vec![0.0; want.len()]);
        for seed in 0..SEEDS {
            for (i, x) in
                flat(taught(DType::F32, false, 33, SignalKind::Sampled(4), objective, seed))
                    .into_iter()
                    .enumerate()
            {
                sum[i] += x;
                square[i] += x * x;
            }
        }
        let n = SEEDS as f64;
        let mut chi = 0.0;
        for ((sum, square), want) in sum.iter().zip(&square).zip(&want) {
            let (mean, variance) = (sum / n, (square / n - (sum / n).powi(2)).max(1e-12));
            let z = (mean - want) / (variance / n).sqrt();
            assert!(z.abs() < 5.0, "{z} standard errors from {want}");
            chi += z * z;
        }
        let mean_square = chi / want.len() as f64;
        assert!((0.5..1.7).contains(&mean_square), "mean square of the z values: {mean_square}");
    }

    #[test]
    fn the_top_is_the_top_and_draws_belong_to_their_token() {
        let (_, t) = pair(DType::F32, V);
        let (s, _) = pair(DType::F32, V);
        let stats = scan(&s, Some(&t), &[0; 6], 2.0).unwrap();
        let Signal::TopK(top) = SignalKind::TopK(7).reduce(t.clone(), &stats, 2.0, 1, &[]).unwrap()
        else {
            panic!()
        };
        for (i, row) in reference::host_rows(&t).unwrap().iter().enumerate() {
            let mut order: Vec<u32> = (0..V as u32).collect();
            order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
            order.truncate(7);
            order.sort_unstable();
            assert_eq!(top.ids[i * 7..][..7], order);
            let inside: f64 = top.logp[i * 7..][..7].iter().map(|l| f64::from(*l).exp()).sum();
            assert!((inside + f64::from(top.rest[i]).exp() - 1.0).abs() < 1e-5);
        }
        let draw = |rows: &[u32], tokens: &[u64]| {
            let picked: Vec<RowStats> = rows.iter().map(|&r| stats[r as usize]).collect();
            match SignalKind::Sampled(9)
                .reduce(t.select(rows).unwrap(), &picked, 2.0, 3, tokens)
                .unwrap()
            {
                Signal::Sampled(sampled) => {
                    (0..rows.len()).map(|i| sampled.row(i).to_vec()).collect::<Vec<_>>()
                }
                other => panic!("{other:?}"),
            }
        };
        let all = draw(&[0, 1, 2, 3, 4, 5], &[20, 21, 22, 23, 24, 25]);
        assert!(all.iter().all(|row| row.iter().map(|d| d.count).sum::<u32>() == 9));
        assert_eq!(draw(&[2, 4], &[22, 24]), [all[2].clone(), all[4].clone()]);
        assert_ne!(draw(&[2], &[23])[0], all[2]);
    }

    #[test]
    fn only_forward_kl_takes_a_sample_and_ids_lie_in_the_vocabulary() {
        let (s, t) = pair(DType::F32, 33);
        let stats = scan(&s, Some(&t), &[0; 6], 2.0).unwrap();
        let sampled = SignalKind::Sampled(3).reduce(t, &stats, 2.0, 1, &[0; 6]).unwrap();
        let dw = s.weight.zeros_like().unwrap();
        let refused = |objective| {
            loss(
                LossInput {
                    student: &s,
                    signal: Some(&sampled),
                    stats: &stats,
                    targets: &[0; 6],
                    weights: &[1.0; 6],
                    objective,
                },
                &dw,
            )
            .is_err()
        };
        assert!(
            refused(objective(Divergence::ReverseKl)) && !refused(objective(Divergence::ForwardKl))
        );
        assert!(sampled.check_vocab(1).unwrap_err().to_string().contains("vocabulary has 1"));
    }
}
