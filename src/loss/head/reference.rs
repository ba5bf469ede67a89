//! The head by its formulas, with whole [N, V] matrices in candle ops: oracle of the tests and the
//! path off the CPU.

use super::{Logits, LossGradient, Objective, RowStats, ScanOptions, Stats, sparse};
use crate::error::{Error, Result};
use crate::loss::Divergence;
use crate::loss::Signal;
use crate::ops::buffer;
use candle_core::{D, DType, Tensor, Var};

/// z = hidden · weightᵀ, [N, V].
pub fn logits(hidden: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(hidden.matmul(&weight.t()?.contiguous()?)?)
}

/// log softmax(z / tau) over the vocabulary.
pub fn log_softmax(z: &Tensor, tau: f64) -> Result<Tensor> {
    let z = (z * (1.0 / tau))?;
    let shifted = z.broadcast_sub(&z.max_keepdim(D::Minus1)?.detach())?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

/// Per-token objective `[N]` for student logits `z` and teacher logits `t`, both [N, V]:
/// differentiable by candle.
pub fn per_token(
    z: &Tensor,
    t: Option<&Tensor>,
    targets: &[u32],
    objective: Objective,
) -> Result<Tensor> {
    let (lambda, tau) = (f64::from(objective.lambda), f64::from(objective.temperature));
    let nll = nll(z, targets)?;
    match t {
        None => Ok((nll * (1.0 - lambda))?),
        Some(t) => Ok(((nll * (1.0 - lambda))?
            + (divergence(objective.divergence, &log_softmax(z, tau)?, &log_softmax(t, tau)?)?
                * (lambda * tau * tau))?)?),
    }
}

/// As [`per_token`], with a top-k or sampled signal.
pub fn per_token_sparse(
    z: &Tensor,
    signal: &Signal,
    targets: &[u32],
    objective: Objective,
) -> Result<Tensor> {
    let (lambda, tau) = (f64::from(objective.lambda), f64::from(objective.temperature));
    let divergence = sparse::by_reference(&log_softmax(z, tau)?, signal, objective)?;
    Ok(((nll(z, targets)? * (1.0 - lambda))? + (divergence * (lambda * tau * tau))?)?)
}

fn nll(z: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let index = Tensor::new(targets, z.device())?.unsqueeze(1)?;
    Ok(log_softmax(z, 1.0)?.gather(&index, 1)?.squeeze(1)?.neg()?)
}

/// The rows of logits, in f32 on the host.
pub(super) fn host_rows(of: &Logits) -> Result<Vec<Vec<f32>>> {
    if of.rows() == 0 {
        return Ok(Vec::new());
    }
    let hidden = of.hidden.to_dtype(of.weight.dtype())?;
    Ok(logits(&hidden, &of.weight)?.to_dtype(DType::F32)?.to_vec2()?)
}

/// The divergence of each row of log q from that of log p, both [N, V]: `[N]`, differentiable by
/// candle.
pub fn divergence(divergence: Divergence, log_p: &Tensor, log_q: &Tensor) -> Result<Tensor> {
    // ln (share e^x + (1 - share) e^y)
    let mixture = |x: &Tensor, y: &Tensor, share: f32| {
        let (share, max) = (f64::from(share), x.maximum(y)?.detach());
        let (x, y) = ((x - &max)?.exp()?, (y - &max)?.exp()?);
        Ok::<Tensor, Error>((((x * share)? + (y * (1.0 - share))?)?.log()? + max)?)
    };
    // KL(x || y)
    let kl = |x: &Tensor, y: &Tensor| Ok::<Tensor, Error>((x.exp()? * (x - y)?)?.sum(D::Minus1)?);
    match divergence {
        Divergence::ForwardKl | Divergence::SkewKl { skew: 0.0 } => kl(log_q, log_p),
        Divergence::ReverseKl | Divergence::SkewReverseKl { skew: 0.0 } => kl(log_p, log_q),
        Divergence::Jsd { beta } => {
            let m = mixture(log_q, log_p, beta)?;
            Ok(((kl(log_q, &m)? * f64::from(beta))? + (kl(log_p, &m)? * (1.0 - f64::from(beta)))?)?)
        }
        Divergence::SkewKl { skew } => kl(log_q, &mixture(log_q, log_p, skew)?),
        Divergence::SkewReverseKl { skew } => kl(log_p, &mixture(log_p, log_q, skew)?),
        Divergence::TotalVariation => {
            let difference = (log_p.exp()? - log_q.exp()?)?;
            let sign = difference.detach().sign()?; // so that the slope at 0 is 0
            Ok(((difference * sign)?.sum(D::Minus1)? * 0.5)?)
        }
    }
}

pub(super) fn scan(
    student: &Logits,
    teacher: Option<&Logits>,
    targets: &[u32],
    ScanOptions { tau, reverse_kl, .. }: ScanOptions,
) -> Result<Vec<RowStats>> {
    if targets.is_empty() {
        return Ok(Vec::new()); // candle reduces no empty tensors
    }
    let z = logits(&student.hidden, &student.weight)?;
    let students = stats(&z, targets, f64::from(tau))?;
    let Some(teacher) = teacher else {
        return Ok(students
            .into_iter()
            .map(|student| RowStats { student, ..RowStats::default() })
            .collect());
    };
    let t = logits(&teacher.hidden, &teacher.weight)?;
    let teachers = stats(&t, targets, f64::from(tau))?;
    let (log_p, log_q) = (log_softmax(&z, f64::from(tau))?, log_softmax(&t, f64::from(tau))?);
    let forward = host(&divergence(Divergence::ForwardKl, &log_p, &log_q)?)?;
    let reverse = match reverse_kl {
        true => host(&divergence(Divergence::ReverseKl, &log_p, &log_q)?)?,
        false => vec![0.0; forward.len()],
    };
    let rows = students.into_iter().zip(teachers).zip(forward.into_iter().zip(reverse));
    let row = |((student, teacher), (kl, reverse)): (_, (f64, f64))| RowStats {
        student,
        teacher,
        kl: kl as f32,
        reverse_kl: reverse as f32,
    };
    Ok(rows.map(row).collect())
}

/// As [`super::hear`], by the formulas.
pub(super) fn hear(
    student: &Logits,
    signal: &Signal,
    stats: &mut [RowStats],
    options: ScanOptions,
) -> Result<()> {
    if stats.is_empty() {
        return Ok(());
    }
    let tau = options.tau;
    let log_p = log_softmax(&logits(&student.hidden, &student.weight)?, f64::from(tau))?;
    let of = |asked: bool, divergence: Divergence| match asked {
        true => {
            let objective = Objective { lambda: 1.0, temperature: tau, divergence };
            host(&sparse::by_reference(&log_p, signal, objective)?)
        }
        false => Ok(vec![0.0; stats.len()]),
    };
    let forward = of(options.sparse_kl, Divergence::ForwardKl)?;
    let reverse = of(options.reverse_kl, Divergence::ReverseKl)?;
    for (i, s) in stats.iter_mut().enumerate() {
        let silent = ScanOptions::from(tau);
        sparse::hear_row(signal, i, s, silent, |_| 0.0);
        (s.kl, s.reverse_kl) = (forward[i] as f32, reverse[i] as f32);
    }
    Ok(())
}

fn stats(z: &Tensor, targets: &[u32], tau: f64) -> Result<Vec<Stats>> {
    let max = z.max_keepdim(D::Minus1)?;
    let shifted = z.broadcast_sub(&max)?;
    let log_sum = shifted.exp()?.sum(D::Minus1)?.log()?;
    let log_sum_tau = (&shifted * (1.0 / tau))?.exp()?.sum(D::Minus1)?.log()?;
    let log_p = log_softmax(z, 1.0)?;
    let index = Tensor::new(targets, z.device())?.unsqueeze(1)?;
    let nll = log_p.gather(&index, 1)?.squeeze(1)?.neg()?;
    let entropy = (log_p.exp()? * &log_p)?.sum(D::Minus1)?.neg()?;
    let log_p_tau = log_softmax(z, tau)?;
    let entropy_tau = (log_p_tau.exp()? * &log_p_tau)?.sum(D::Minus1)?.neg()?;
    let [max, log_sum, log_sum_tau] =
        [host(&max.squeeze(1)?)?, host(&log_sum)?, host(&log_sum_tau)?];
    let [nll, entropy, entropy_tau] = [host(&nll)?, host(&entropy)?, host(&entropy_tau)?];
    let row = |i: usize| Stats {
        max: max[i] as f32,
        log_sum: log_sum[i] as f32,
        log_sum_tau: log_sum_tau[i] as f32,
        nll: nll[i] as f32,
        entropy: entropy[i] as f32,
        entropy_tau: entropy_tau[i] as f32,
    };
    Ok((0..targets.len()).map(row).collect())
}

pub(super) fn loss(
    student: &Logits,
    teacher: Option<&Signal>,
    targets: &[u32],
    weights: &[f32],
    objective: Objective,
    d_weight: &Tensor,
) -> Result<LossGradient> {
    if targets.is_empty() {
        return Ok(LossGradient { sum: 0.0, d_hidden: student.hidden.clone() });
    }
    let z = logits(&student.hidden, &student.weight)?;
    let t = match teacher {
        Some(Signal::Dense(t)) => Some(logits(&t.hidden, &t.weight)?),
        _ => None,
    };
    let w = Tensor::new(weights, z.device())?.to_dtype(z.dtype())?;
    let weighed = |z: &Tensor| match teacher {
        Some(signal @ (Signal::TopK(_) | Signal::Sampled(_))) => {
            Ok::<Tensor, Error>((per_token_sparse(z, signal, targets, objective)? * &w)?.sum_all()?)
        }
        _ => Ok((per_token(z, t.as_ref(), targets, objective)? * &w)?.sum_all()?),
    };
    if teacher.is_some_and(|_| t.is_none() || objective.divergence != Divergence::ForwardKl) {
        let z = Var::from_tensor(&z)?;
        let sum = weighed(&z)?;
        let grads = sum.backward()?;
        let dz =
            grads.get(&z).ok_or_else(|| Error::internal("the reference loss has no gradient"))?;
        return finish(student, &sum, dz, d_weight);
    }
    let sum = weighed(&z)?;
    let (lambda, tau) = (f64::from(objective.lambda), f64::from(objective.temperature));
    let index = Tensor::new(targets, z.device())?.unsqueeze(1)?;
    let minus = Tensor::ones((targets.len(), 1), z.dtype(), z.device())?.neg()?;
    let mut dz = (log_softmax(&z, 1.0)?.exp()?.scatter_add(&index, &minus, 1)? * (1.0 - lambda))?;
    if let Some(t) = &t {
        let difference = (log_softmax(&z, tau)?.exp()? - log_softmax(t, tau)?.exp()?)?;
        dz = (dz + (difference * (lambda * tau))?)?;
    }
    let dz = dz.broadcast_mul(&w.unsqueeze(1)?)?;
    finish(student, &sum, &dz, d_weight)
}

/// From the gradient of the logits to those of their factors.
fn finish(student: &Logits, sum: &Tensor, dz: &Tensor, d_weight: &Tensor) -> Result<LossGradient> {
    buffer::add_assign(d_weight, &dz.t()?.contiguous()?.matmul(&student.hidden)?)?;
    let sum = sum.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    Ok(LossGradient { sum, d_hidden: dz.matmul(&student.weight)? })
}

fn host(x: &Tensor) -> Result<Vec<f64>> {
    Ok(x.to_dtype(DType::F64)?.to_vec1()?)
}
