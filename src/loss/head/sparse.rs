//! Divergences to a sparse signal: a few ids, and everything else as one.
//!
//! To the k ids of a [`TopK`] both distributions add a bucket for the rest, and D is the divergence
//! of these k + 1 numbers, by the same formulas as over the vocabulary: never more than the dense
//! one (data processing). With g and h = g / P of [`crate::loss::divergence`], the gradient by a
//! logit is p (h of its bucket - G). Drawn ids give KL(q || p) with q replaced by the share of
//! draws: the gradient p - count / draws is right in expectation.

use super::{Logits, Objective, RowStats, ScanOptions, Stats, cpu, reference};
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

    /// Writes a tile of a row's gradient, but for the target's own part: cross-entropy's `ce` times
    /// p at temperature 1, and `scale` times the divergence's. The tile begins at id `start`.
    pub(super) fn write(
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
        let outside = scale * (self.h_rest - total);
        if objective.temperature == 1.0 {
            // One p serves both: no more work than cross-entropy's gradient.
            cpu::ce_gradient(dz, z, s.max, s.log_sum, ce + outside);
        } else {
            cpu::ce_gradient(dz, z, s.max, s.log_sum, ce);
            add_softmax(dz, z, s.max, s.log_sum_tau, inverse_tau, outside);
        }
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
    let logit = |i: usize, id: u32| dot(&hidden[i * d..][..d], &weight[id as usize * d..][..d]);
    // Few products, formed here however the logits are held: the same bits in every head mode.
    let one = |i: usize| row_of(signal, i, &stats[i], objective, |id| logit(i, id));
    Ok((0..stats.len()).into_par_iter().map(one).collect())
}

/// What the gradient of row `row` of a sparse signal needs, at the objective's temperature.
/// `logit` gives the student's logit of an id.
pub(super) fn row_of(
    signal: &Signal,
    row: usize,
    s: &RowStats,
    objective: Objective,
    logit: impl Fn(u32) -> f32,
) -> SparseRow {
    let s = &s.student;
    let log_p = |id: u32| (logit(id) - s.max) / objective.temperature - s.log_sum_tau;
    match signal {
        Signal::Dense(_) => SparseRow::default(),
        Signal::TopK(top) => bucketed(top, row, objective.divergence, log_p),
        Signal::Sampled(sampled) => drawn(sampled, row, log_p),
    }
}

/// Writes what row `row` of a sparse signal says into its statistics: the teacher's cross-entropy
/// and entropies, and the divergences that `options` ask for.
pub(super) fn hear_row(
    signal: &Signal,
    row: usize,
    s: &mut RowStats,
    options: ScanOptions,
    logit: impl Fn(u32) -> f32,
) {
    let Some(said) = signal.said(row) else { return };
    s.teacher = Stats {
        nll: said.nll,
        entropy: said.entropy,
        entropy_tau: said.entropy_tau,
        ..Stats::default()
    };
    let of = |divergence| {
        let objective = Objective { lambda: 1.0, temperature: options.tau, divergence };
        row_of(signal, row, s, objective, &logit).value() as f32
    };
    let (kl, reverse_kl) = (
        if options.sparse_kl { of(Divergence::ForwardKl) } else { 0.0 },
        if options.reverse_kl { of(Divergence::ReverseKl) } else { 0.0 },
    );
    (s.kl, s.reverse_kl) = (kl, reverse_kl);
}

/// As [`super::hear`], of every row on the CPU.
pub(super) fn hear(
    student: &Logits,
    signal: &Signal,
    stats: &mut [RowStats],
    options: ScanOptions,
) -> Result<()> {
    let d = student.hidden.dim(1)?;
    let (hidden, weight) = (read(&student.hidden)?, read(&student.weight)?);
    let (hidden, weight): (&[f32], &[f32]) = (&hidden, &weight);
    stats.par_iter_mut().enumerate().for_each(|(i, s)| {
        hear_row(signal, i, s, options, |id| {
            dot(&hidden[i * d..][..d], &weight[id as usize * d..][..d])
        });
    });
    Ok(())
}

/// Whether a signal can say what `options` ask for.
pub(super) fn check_options(signal: &Signal, options: ScanOptions) -> Result<()> {
    let asked = |divergence| Objective { lambda: 1.0, temperature: options.tau, divergence };
    if options.sparse_kl {
        check(signal, asked(Divergence::ForwardKl))?;
    }
    if options.reverse_kl {
        check(signal, asked(Divergence::ReverseKl))?;
    }
    Ok(())
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
    log_p: impl Fn(u32) -> f32,
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
    for (&id, &log_q) in top.ids[range.clone()].iter().zip(&top.logp[range]) {
        let log_p = log_p(id);
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

fn drawn(sampled: &Sampled, row: usize, log_p: impl Fn(u32) -> f32) -> SparseRow {
    let ids = sampled.row(row);
    let share = |d: &DrawnId| d.count as f32 / sampled.draws as f32;
    let cross: f64 = ids.iter().map(|d| f64::from(share(d)) * f64::from(-log_p(d.id))).sum();
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
