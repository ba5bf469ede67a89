//! A threshold carried from step to step, so that a token's fate is known the moment it is scored:
//! scoring and gradient are one pass over the head, and nothing waits for the rest of its pool.
//!
//! After each step the exact value at risk of its scores moves the threshold, t <- carry t + (1 -
//! carry) VaR. How many tokens a step keeps is then no longer exact; how far off, and how old the
//! estimate is, goes to the log.

use crate::config::Tail;
use serde::{Deserialize, Serialize};

/// The threshold and the age of what it was estimated from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Carried {
    /// Scores at least as large are kept (at most as large with `tail = "low"`).
    pub threshold: f32,
    /// Mean age in steps of the values at risk behind the threshold, by their weights; 1 is the
    /// step before.
    pub lag: f64,
}

impl Carried {
    /// Whether a score passes; ties do.
    pub fn keeps(&self, score: f32, tail: Tail) -> bool {
        match tail {
            Tail::High => score >= self.threshold,
            Tail::Low => score <= self.threshold,
        }
    }

    /// The threshold of the next step, after a step whose exact value at risk was `var`.
    #[must_use]
    pub fn after(before: Option<Self>, var: f64, carry: f64) -> Self {
        let Some(before) = before else { return Self { threshold: var as f32, lag: 1.0 } };
        let threshold = carry * f64::from(before.threshold) + (1.0 - carry) * var;
        Self { threshold: threshold as f32, lag: 1.0 + carry * before.lag }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_pass_at_either_end() {
        let carried = Carried { threshold: 1.0, lag: 1.0 };
        assert_eq!([0.5, 1.0, 1.5].map(|s| carried.keeps(s, Tail::High)), [false, true, true]);
        assert_eq!([0.5, 1.0, 1.5].map(|s| carried.keeps(s, Tail::Low)), [true, true, false]);
    }

    #[test]
    fn the_threshold_follows_the_value_at_risk_and_knows_its_age() {
        let mut carried = Carried::after(None, 4.0, 0.5);
        assert_eq!(carried, Carried { threshold: 4.0, lag: 1.0 });
        carried = Carried::after(Some(carried), 2.0, 0.5);
        assert_eq!(carried, Carried { threshold: 3.0, lag: 1.5 });
        for _ in 0..60 {
            carried = Carried::after(Some(carried), 2.0, 0.5);
        }
        // Weights 1/2, 1/4, ... on ages 1, 2, ...: mean age 2.
        assert!(
            (carried.threshold - 2.0).abs() < 1e-6 && (carried.lag - 2.0).abs() < 1e-12,
            "{carried:?}"
        );
        let latest = Carried::after(Some(carried), 7.0, 0.0);
        assert_eq!(
            latest,
            Carried { threshold: 7.0, lag: 1.0 },
            "nothing is carried over at carry 0"
        );
    }
}
