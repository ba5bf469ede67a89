//! The mean-CVaR mixture: the kept tokens' mean and, unbiased from a sample, the mean of all
//! tokens.
//!
//! With K kept of M tokens, every kept row weighs mu / K + (1 - mu) / M. A dropped row is drawn
//! with probability r and, if drawn, weighs (1 - mu) / (r M). In expectation that is the gradient
//! of (1 - mu) mean + mu CVaR: mu = 1 is ESLM, mu = 0 plain training on a sample of the easy rows.
//! Weights here are relative to 1 / K, so that pure selection and plain training have weights of
//! exactly 1; the step divides by K once.

use crate::config::SelectPlan;

/// Rows that carry gradient, and their weights.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// Row indices into the micro-batch, ascending `[k]`.
    pub rows: Vec<u32>,
    /// Weights relative to 1 / K `[k]`.
    pub weights: Vec<f32>,
}

impl Rows {
    /// Every row at weight 1.
    pub fn plain(rows: Vec<u32>) -> Self {
        let weights = vec![1.0; rows.len()];
        Self { rows, weights }
    }
}

/// mu, r and K / M of the optimizer step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mixture {
    mix: f64,
    rest: f64,
    share: f64,
}

impl Mixture {
    /// The plan's mixture where `share` = K / M of the step's tokens are kept.
    pub fn new(select: &SelectPlan, share: f64) -> Self {
        Self { mix: select.cvar_weight, rest: select.rest_rate, share }
    }

    /// Whether dropped rows can be drawn.
    pub fn draws(&self) -> bool {
        self.mix < 1.0
    }

    /// Weight of a row, `uniform` being its draw from [0, 1); 0 where it carries no gradient.
    pub fn weight(&self, kept: bool, uniform: impl FnOnce() -> f32) -> f32 {
        let mean = (1.0 - self.mix) * self.share;
        match kept {
            _ if !self.draws() => f32::from(u8::from(kept)),
            true => (self.mix + mean) as f32,
            false if f64::from(uniform()) < self.rest => (mean / self.rest) as f32,
            false => 0.0,
        }
    }

    /// What the sum of weighted losses is divided by: K, given how many tokens were `kept` of how
    /// many. Where a draw makes use of K beforehand it is the one used then.
    pub fn denominator(&self, kept: u64, all: u64) -> f64 {
        if self.draws() { self.share * all as f64 } else { kept as f64 }
    }

    /// The kept rows and those drawn among the other valid ones; `uniform` draws for a row.
    pub fn rows(&self, kept: Vec<u32>, valid: &[bool], uniform: impl Fn(u32) -> f32) -> Rows {
        if !self.draws() {
            return Rows::plain(kept);
        }
        let mut is_kept = vec![false; valid.len()];
        kept.iter().for_each(|&i| is_kept[i as usize] = true);
        let mut rows = Rows::default();
        for i in (0..valid.len() as u32).filter(|&i| valid[i as usize]) {
            let weight = self.weight(is_kept[i as usize], || uniform(i));
            if weight > 0.0 {
                rows.rows.push(i);
                rows.weights.push(weight);
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, Stream};

    fn mixture(mix: f64, rest: f64, share: f64) -> Mixture {
        Mixture { mix, rest, share }
    }

    #[test]
    fn pure_selection_has_weights_of_one_and_draws_nothing() {
        let rows = mixture(1.0, 0.5, 0.3).rows(vec![1, 3], &[true; 5], |_| panic!("no draw"));
        assert_eq!(rows, Rows { rows: vec![1, 3], weights: vec![1.0, 1.0] });
        assert_eq!(mixture(1.0, 0.5, 0.3).denominator(2, 5), 2.0);
    }

    #[test]
    fn kept_rows_always_weigh_and_drawn_ones_as_much_as_they_are_rare() {
        let m = mixture(0.5, 0.25, 0.4);
        let rows =
            m.rows(
                vec![1, 3],
                &[true, true, false, true, true],
                |i| if i == 0 { 0.2 } else { 0.25 },
            );
        assert_eq!(rows.rows, [0, 1, 3]);
        let kept = 0.5 + 0.5 * 0.4;
        assert_eq!(rows.weights, [0.5 * 0.4 / 0.25, kept, kept].map(|w: f64| w as f32));
        // K = 4 of M = 10: a kept row's share of the sum is mu / K + (1 - mu) / M.
        let expected = 0.5 / 4.0 + 0.5 / 10.0;
        assert!((f64::from(rows.weights[1]) / m.denominator(4, 10) - expected).abs() < 1e-8);
    }

    #[test]
    fn the_mean_over_many_draws_is_the_mixture() {
        let values: Vec<f64> = (0..20).map(|i| f64::from(i * i % 13) - 3.0).collect();
        let kept: Vec<u32> = vec![2, 5, 7, 11, 19];
        let (mu, r, m) = (0.3, 0.4, values.len() as f64);
        let cvar = kept.iter().map(|&i| values[i as usize]).sum::<f64>() / kept.len() as f64;
        let expected = mu * cvar + (1.0 - mu) * values.iter().sum::<f64>() / m;
        let mixture = mixture(mu, r, kept.len() as f64 / m);
        let rng = Rng::new(5, Stream::Rest);
        let draws = 4000;
        let samples: Vec<f64> = (0..draws)
            .map(|d| {
                let rows =
                    mixture.rows(kept.clone(), &[true; 20], |i| rng.uniform(d, u64::from(i)));
                let pairs = rows.rows.iter().zip(&rows.weights);
                pairs.map(|(&i, &w)| values[i as usize] * f64::from(w)).sum::<f64>()
                    / mixture.denominator(5, 20)
            })
            .collect();
        let mean = samples.iter().sum::<f64>() / f64::from(draws);
        let variance = samples.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / f64::from(draws);
        let error = (variance / f64::from(draws)).sqrt();
        assert!((mean - expected).abs() < 4.0 * error, "{mean} for {expected} +- {error}");
        assert!(
            error > 0.0 && error < 0.02,
            "the draws must vary, and the bound must mean something: {error}"
        );
    }
}
