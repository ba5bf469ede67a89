//! What a step hears of the teacher, by its definition.

use super::net::{log_softmax, numbers};
use super::reference::{Margin, best, uniform53};
use candle_core::{Device, Result, Tensor};
use eslm_kd::config::{Plan, Signal, Tail};
use eslm_kd::data::loader::Batch;
use eslm_kd::rng::{Rng, Stream};

/// Each number as the nearest of 16 bits.
pub fn in_sixteen_bits(numbers: &[f64], rows: &[usize], margin: &mut Margin) -> Vec<f64> {
    let said: Vec<half::f16> = numbers.iter().map(|x| half::f16::from_f64(*x)).collect();
    for &i in rows {
        for other in [said[i].to_bits() + 1, said[i].to_bits().wrapping_sub(1)] {
            let edge = (said[i].to_f64() + half::f16::from_bits(other).to_f64()) / 2.0;
            margin.meet((numbers[i] - edge) * 10.0);
        }
    }
    said.iter().map(|x| x.to_f64()).collect()
}

/// What is heard of the teacher's distribution, all in logarithms.
pub enum Heard {
    /// All of it.
    Dense(Tensor),
    /// Some ids [n, k], and their probabilities with that of everything else [n, k + 1].
    Top(Tensor, Tensor),
    /// Shares of the draws [n, V], and the entropy.
    Drawn(Tensor, Tensor),
}

impl Heard {
    /// Of teacher logits `t`; decisions about `rows` matter.
    pub fn of(
        plan: &Plan,
        t: &Tensor,
        tau: f64,
        rows: &[usize],
        batch: &Batch,
        margin: &mut Margin,
    ) -> Result<Self> {
        let (objective, log_q) = (&plan.objective, log_softmax(t, tau)?);
        let (n, vocab) = log_q.dims2()?;
        let matrix = |data: Vec<f64>, columns| Tensor::from_vec(data, (n, columns), &Device::Cpu);
        let q = log_q.exp()?.to_vec2::<f64>()?;
        match objective.signal {
            Signal::Dense => Ok(Self::Dense(log_q)),
            Signal::TopK => {
                let (all, k): (Vec<usize>, _) = ((0..vocab).collect(), objective.top_k);
                let (mut ids, mut logs) = (Vec::new(), Vec::new());
                for (i, q) in q.iter().enumerate() {
                    let mut none = Margin(f64::INFINITY);
                    let margin = if rows.contains(&i) { &mut *margin } else { &mut none };
                    let mut left = 1.0;
                    for v in best(&all, &|v| q[v].ln(), k, Tail::High, margin) {
                        // The root in steps of 1/1023. It is known to 1e-7 of itself.
                        let root = q[v].sqrt() * 1023.0;
                        margin.meet(((root - 0.5).round() + 0.5 - root) / root * 100.0);
                        let level = root.round().max(1.0) / 1023.0;
                        ids.push(v as u32);
                        logs.push(2.0 * level.ln());
                        left -= level * level;
                    }
                    logs.push(left.max(1.0 / (1023.0 * 1023.0)).ln());
                }
                Ok(Self::Top(Tensor::from_vec(ids, (n, k), &Device::Cpu)?, matrix(logs, k + 1)?))
            }
            Signal::Stored => unreachable!("no run here has a signal on disk"),
            Signal::Sampled => {
                let rng = Rng::new(plan.seed, Stream::Teacher);
                let mut shares = vec![0.0; n * vocab];
                for &i in rows {
                    let (sequence, place) =
                        (batch.sequence_ids[i / batch.context], i % batch.context);
                    let position = sequence * batch.context as u64 + place as u64;
                    for draw in 0..objective.samples {
                        let u = uniform53(rng, draw, position);
                        let mut sum = 0.0;
                        let id = q[i].iter().position(|q| {
                            sum += q;
                            // Sums of probabilities of the order of 1/300 are known better than
                            // scores are.
                            margin.meet((u - sum) * 40.0);
                            u < sum
                        });
                        shares[i * vocab + id.unwrap_or(vocab - 1)] +=
                            1.0 / f64::from(objective.samples);
                    }
                }
                let at_tau = numbers(&(log_q.exp()? * &log_q)?.sum(1)?.neg()?);
                let at_tau = in_sixteen_bits(&at_tau, rows, margin);
                let at_tau = Tensor::from_vec(at_tau, n, &Device::Cpu)?;
                Ok(Self::Drawn(matrix(shares, vocab)?, at_tau))
            }
        }
    }

    /// `between` log p and log q; by draws, the cross-entropy less the entropy.
    pub fn divergence(
        &self,
        log_p: &Tensor,
        between: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match self {
            Self::Dense(log_q) => between(log_p, log_q),
            Self::Top(ids, log_q) => {
                let named = log_p.gather(ids, 1)?;
                let rest = (1.0 - named.exp()?.sum_keepdim(1)?)?.log()?;
                between(&Tensor::cat(&[named, rest], 1)?, log_q)
            }
            Self::Drawn(shares, entropy) => (shares * log_p)?.sum(1)?.neg()? - entropy,
        }
    }
}
