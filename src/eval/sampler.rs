//! The next token from logits: temperature, then top-k, then top-p, in transformers' order and by
//! its rules.
//!
//! * temperature: `z / T`; 0 takes the likeliest token, of equals the lowest id.
//! * top-k: every token whose logit is at least the k-th largest, so that equals stay together.
//! * top-p (Holtzman et al. 2020, arXiv 1904.09751): of what is left, renormalised, the fewest
//!   likeliest tokens whose probabilities reach p, and at least one; p = 1 leaves all. Of equals at
//!   the border the lower ids stay (with transformers any may: PyTorch's sort does not promise which).

use crate::error::{Error, ErrorKind, Result};
use crate::rng::{Rng, Stream};

/// Temperatures below this are 0: dividing by them would overflow.
const COLDEST: f64 = 1e-6;

/// Draws tokens; the same seed gives the same draws.
pub struct Sampler {
    temperature: f64,
    top_k: Option<usize>,
    top_p: Option<f64>,
    rng: Rng,
    drawn: u64,
}

impl Sampler {
    /// A sampler at its first draw.
    pub fn new(temperature: f64, top_k: Option<usize>, top_p: Option<f64>, seed: u64) -> Self {
        Self { temperature, top_k, top_p, rng: Rng::new(seed, Stream::Sample), drawn: 0 }
    }

    /// The next token, given the logits `[V]` of all. Errors where a logit is not finite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        if logits.iter().any(|z| !z.is_finite()) {
            return Err(Error::new(
                ErrorKind::NonFinite,
                "the model's logits are not finite; the model is broken",
            ));
        }
        let kept = self.kept(logits);
        let point = f64::from(self.rng.uniform(0, self.drawn));
        self.drawn += 1;
        let mut sum = 0.0;
        let reached = kept.iter().find(|(_, p)| {
            sum += p;
            sum > point
        });
        // The probabilities add up to 1 but for rounding.
        let chosen =
            reached.or(kept.last()).ok_or_else(|| Error::internal("a model without logits"))?;
        Ok(chosen.0)
    }

    /// The candidates and their probabilities, which add up to 1, the likeliest first.
    fn kept(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let k = match self.top_k {
            _ if self.temperature < COLDEST => 1,
            Some(k) => k.clamp(1, logits.len()),
            None => logits.len(),
        };
        let mut ranked: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        if k < ranked.len() {
            let kth = ranked.select_nth_unstable_by(k - 1, |a, b| b.1.total_cmp(&a.1)).1.1;
            ranked = (0..).zip(logits.iter().copied()).filter(|(_, z)| *z >= kth).collect();
        }
        // Stable: equals stay in the order of their ids.
        ranked.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal));
        if self.temperature < COLDEST {
            ranked.truncate(1);
        }
        let largest = ranked.first().map_or(0.0, |r| f64::from(r.1));
        let weight = |z: f32| ((f64::from(z) - largest) / self.temperature.max(COLDEST)).exp();
        let mut kept: Vec<(u32, f64)> = ranked.into_iter().map(|(id, z)| (id, weight(z))).collect();
        normalise(&mut kept);
        if let Some(p) = self.top_p.filter(|p| *p < 1.0) {
            let mut sum = 0.0;
            let reached = kept.iter().position(|(_, share)| {
                sum += share;
                sum >= p
            });
            kept.truncate(reached.map_or(kept.len(), |last| last + 1));
            normalise(&mut kept);
        }
        kept
    }
}

fn normalise(kept: &mut [(u32, f64)]) {
    let sum: f64 = kept.iter().map(|(_, w)| w).sum();
    kept.iter_mut().for_each(|(_, w)| *w /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use candle_transformers::generation::{LogitsProcessor, Sampling};
    use serde_json::Value;
    use std::collections::BTreeSet;

    /// Normal logits, all different.
    fn logits(n: u64, scale: f64) -> Vec<f32> {
        let rng = Rng::new(5, Stream::Init);
        (0..n).map(|i| (scale * rng.normal(0, i)) as f32).collect()
    }

    fn ids(kept: &[(u32, f64)]) -> Vec<u32> {
        kept.iter().map(|k| k.0).collect()
    }

    #[test]
    fn draws_come_as_often_as_their_probabilities_say() {
        let z = logits(40, 1.5);
        let total: f64 = z.iter().map(|z| (f64::from(*z) / 0.8).exp()).sum();
        let mut sampler = Sampler::new(0.8, None, None, 9);
        let draws = 40_000;
        let mut counts = [0.0f64; 40];
        (0..draws).for_each(|_| counts[sampler.sample(&z).unwrap() as usize] += 1.0);
        for (id, count) in counts.iter().enumerate() {
            let p = (f64::from(z[id]) / 0.8).exp() / total;
            let spread = (p * (1.0 - p) / f64::from(draws)).sqrt();
            assert!(
                (count / f64::from(draws) - p).abs() < 5.0 * spread + 1e-4,
                "{id}: {p} {count}"
            );
        }
    }

    /// candle-transformers draws from the same candidates where both mean the same: top-k alone and
    /// top-p alone.
    #[test]
    fn candidates_are_those_of_another_sampler() {
        let z = logits(60, 2.0);
        let tensor = Tensor::new(z.as_slice(), &Device::Cpu).unwrap();
        for (ours, theirs) in [
            (Sampler::new(1.3, Some(5), None, 0), Sampling::TopK { k: 5, temperature: 1.3 }),
            (Sampler::new(0.7, None, Some(0.8), 0), Sampling::TopP { p: 0.8, temperature: 0.7 }),
        ] {
            let kept: BTreeSet<u32> = ids(&ours.kept(&z)).into_iter().collect();
            let mut other = LogitsProcessor::from_sampling(3, theirs);
            let drawn: BTreeSet<u32> = (0..5000).map(|_| other.sample(&tensor).unwrap()).collect();
            assert_eq!(kept, drawn);
        }
    }

    #[test]
    fn top_p_is_measured_in_what_top_k_left() {
        // Probabilities 0.4, 0.3, 0.2, 0.1: of the first two, 0.57 and 0.43.
        let z: Vec<f32> = [0.4f32, 0.3, 0.2, 0.1].iter().map(|p| p.ln()).collect();
        let kept = Sampler::new(1.0, Some(2), Some(0.5), 0).kept(&z);
        assert_eq!(ids(&kept), [0]);
        assert_eq!(ids(&Sampler::new(1.0, None, Some(0.5), 0).kept(&z)), [0, 1]);
        let kept = Sampler::new(1.0, Some(3), Some(0.7), 0).kept(&z);
        assert_eq!(ids(&kept), [0, 1]);
        assert!((kept[0].1 - 4.0 / 7.0).abs() < 1e-6, "{kept:?}");
    }

    /// The whole chain against transformers' warpers (`tests/reference/make_sampler_golden.py`).
    #[test]
    fn candidates_and_probabilities_are_those_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sampler.json");
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let floats = |list: &Value| -> Vec<f64> {
            list.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
        };
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() > 90, "{} cases", cases.len());
        for case in cases {
            let (row, setting) = (case["row"].as_u64().unwrap() as usize, &case["setting"]);
            let z: Vec<f32> = floats(&golden["logits"][row]).iter().map(|z| *z as f32).collect();
            let [temperature, k, p] = [0, 1, 2].map(|i| setting[i].as_f64());
            let sampler = Sampler::new(temperature.unwrap(), k.map(|k| k as usize), p, 0);
            let mut kept = sampler.kept(&z);
            kept.sort_by_key(|k| k.0);
            let want: Vec<u32> = floats(&case["ids"]).iter().map(|id| *id as u32).collect();
            let mut shares = floats(&case["shares"]);
            if case["among_equals"] == true {
                // As many, the lowest of the equals among them.
                let least = want.iter().map(|id| z[*id as usize]).fold(f32::MAX, f32::min);
                let all: Vec<u32> = (0..).zip(&z).filter(|p| *p.1 >= least).map(|p| p.0).collect();
                let mut likeliest = all.clone();
                likeliest.sort_by(|a, b| z[*b as usize].total_cmp(&z[*a as usize]));
                likeliest.truncate(want.len());
                likeliest.sort();
                assert!(all.len() > want.len(), "row {row}, {setting}");
                assert_eq!(ids(&kept), likeliest, "row {row}, {setting}");
                kept.sort_by(|a, b| a.1.total_cmp(&b.1));
                shares.sort_by(f64::total_cmp);
            } else {
                assert_eq!(ids(&kept), want, "row {row}, {setting}");
            }
            for ((id, share), want) in kept.iter().zip(shares) {
                let far = (share - want).abs() / want;
                assert!(far < 1e-6, "row {row}, {setting}, token {id}: {share}, not {want}");
            }
        }
    }

    #[test]
    fn equals_at_the_kth_place_stay_and_one_is_always_left() {
        let z = [1.0, 3.0, 2.0, 2.0, 0.0, -0.0];
        assert_eq!(ids(&Sampler::new(1.0, Some(2), None, 0).kept(&z)), [1, 2, 3]);
        assert_eq!(ids(&Sampler::new(1.0, Some(5), None, 0).kept(&z)), [1, 2, 3, 0, 4, 5]);
        assert_eq!(ids(&Sampler::new(1.0, Some(99), Some(1e-12), 0).kept(&z)), [1]);
        assert_eq!(ids(&Sampler::new(0.0, Some(3), None, 0).kept(&z)), [1]);
        assert_eq!(ids(&Sampler::new(0.0, None, None, 0).kept(&[2.0, 5.0, 5.0])), [1]);
        assert!(Sampler::new(1.0, None, None, 0).sample(&[1.0, f32::NAN]).is_err());
        assert!(Sampler::new(1.0, None, None, 0).sample(&[]).is_err());
    }
}
