//! Alpha that follows the run: Ada-ESLM (arXiv 2505.19893), and the share of tokens that are easy.

use crate::config::SelectPlan;
use serde::{Deserialize, Serialize};

/// State of Ada-ESLM.
///
/// Every `interval` steps, with C the mean conditional value at risk (mean score of the kept
/// tokens) over the interval:
///
/// ```text
/// delta = (C - C_before) / |C_before|        alpha <- clamp(alpha exp(-gamma delta), alpha_min, alpha_max)
/// ```
///
/// so alpha rises, and fewer tokens are kept, while CVaR falls. The first interval only measures,
/// and so does one whose predecessor had a CVaR of 0. The modulus keeps the direction where scores
/// are negative, as `excess` may be (pinned).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdaEslm {
    /// Alpha now.
    pub alpha: f64,
    /// CVaR of the interval before.
    pub cvar: Option<f64>,
    /// The last relative change of CVaR.
    pub delta: Option<f64>,
    score_sum: f64,
    kept: u64,
    steps: u64,
}

impl AdaEslm {
    /// Starts at `alpha`.
    pub fn new(alpha: f64) -> Self {
        Self { alpha, cvar: None, delta: None, score_sum: 0.0, kept: 0, steps: 0 }
    }

    /// Whether a run of `steps` steps and `tokens` tokens can have brought this about.
    pub(super) fn is_possible(&self, steps: u64, tokens: u64) -> bool {
        (0.0..1.0).contains(&self.alpha) && self.kept <= tokens && self.steps <= steps
    }

    /// Takes the sum of kept scores and the number of kept tokens of one step; moves alpha at the
    /// end of an interval.
    pub fn observe(&mut self, rule: &SelectPlan, score_sum: f64, kept: u64) {
        self.score_sum += score_sum;
        self.kept += kept;
        self.steps += 1;
        if self.steps < rule.interval || self.kept == 0 {
            return;
        }
        let cvar = self.score_sum / self.kept as f64;
        if let Some(before) = self.cvar.filter(|c| *c != 0.0) {
            let delta = (cvar - before) / before.abs();
            self.alpha =
                (self.alpha * (-rule.gamma * delta).exp()).clamp(rule.alpha_min, rule.alpha_max);
            self.delta = Some(delta);
        }
        self.cvar = Some(cvar);
        (self.score_sum, self.kept, self.steps) = (0.0, 0, 0);
    }
}

/// Running mean of the share of tokens whose target is more probable than 0.9.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EasyShare {
    mean: Option<f64>,
}

impl EasyShare {
    /// Whether it is a share.
    pub(super) fn is_possible(&self) -> bool {
        self.mean.is_none_or(|mean| (0.0..=1.0).contains(&mean))
    }

    /// Takes the share of one step; the mean has a time constant of `interval` steps.
    pub fn observe(&mut self, share: f64, interval: u64) {
        let mean = self.mean.unwrap_or(share);
        self.mean = Some(mean + (share - mean) / interval as f64);
    }

    /// Alpha: the share of easy tokens, at most `most`; 0 before anything was seen.
    pub fn alpha(&self, most: f64) -> f64 {
        self.mean.unwrap_or(0.0).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load};
    use proptest::prelude::*;

    fn rule(interval: u64, gamma: f64) -> SelectPlan {
        let mut rule = load(None, &Overrides::default()).unwrap().plan.select;
        (rule.interval, rule.gamma, rule.alpha_min, rule.alpha_max) = (interval, gamma, 0.05, 0.6);
        rule
    }

    #[test]
    fn alpha_moves_against_the_change_of_cvar_at_the_end_of_an_interval() {
        let rule = rule(2, 1.0);
        let mut ada = AdaEslm::new(0.2);
        ada.observe(&rule, 40.0, 10);
        ada.observe(&rule, 20.0, 10);
        assert_eq!(
            (ada.alpha, ada.cvar, ada.delta),
            (0.2, Some(3.0), None),
            "the first interval measures"
        );
        ada.observe(&rule, 30.0, 20);
        assert_eq!(ada.alpha, 0.2, "not before the interval ends");
        ada.observe(&rule, 60.0, 20);
        assert_eq!((ada.cvar, ada.delta), (Some(2.25), Some(-0.25)));
        assert!((ada.alpha - 0.2 * 0.25f64.exp()).abs() < 1e-15, "CVaR fell: {}", ada.alpha);
        let before = ada.alpha;
        ada.observe(&rule, 90.0, 20);
        ada.observe(&rule, 90.0, 20);
        assert!(
            (ada.alpha - before * (-1.0f64).exp()).abs() < 1e-15,
            "CVaR doubled: {}",
            ada.alpha
        );
    }

    #[test]
    fn negative_scores_keep_the_direction_and_a_cvar_of_0_only_measures() {
        let rule = rule(1, 1.0);
        let mut ada = AdaEslm::new(0.2);
        ada.observe(&rule, -1.0, 1);
        ada.observe(&rule, -2.0, 1);
        assert!(ada.alpha > 0.2 && ada.delta == Some(-1.0), "from -1 to -2 CVaR falls: {ada:?}");
        ada.observe(&rule, 0.0, 1);
        let before = ada.alpha;
        ada.observe(&rule, 5.0, 1);
        assert_eq!((ada.alpha, ada.cvar), (before, Some(5.0)));
        ada.observe(&rule, 7.0, 0);
        assert_eq!(ada.alpha, before, "an interval without kept tokens goes on");
    }

    proptest! {
        #[test]
        fn alpha_stays_in_its_clamp(cvars in proptest::collection::vec(-10.0f64..10.0, 1..40), gamma in 0.0f64..20.0) {
            let rule = rule(1, gamma);
            let mut ada = AdaEslm::new(0.3);
            for cvar in cvars {
                let (alpha, before) = (ada.alpha, ada.cvar);
                ada.observe(&rule, cvar, 1);
                prop_assert!((0.05..=0.6).contains(&ada.alpha));
                if let Some(before) = before {
                    let stated = (cvar < before && ada.alpha >= alpha) || (cvar >= before && ada.alpha <= alpha);
                    prop_assert!(stated);
                }
            }
        }
    }

    #[test]
    fn a_state_survives_json_to_the_bit() {
        let rule = rule(3, 0.7);
        let mut ada = AdaEslm::new(0.1);
        for i in 0..7 {
            ada.observe(&rule, 1.0 / f64::from(i + 3), 3);
        }
        let text = serde_json::to_string(&ada).unwrap();
        assert_eq!(serde_json::from_str::<AdaEslm>(&text).unwrap(), ada);
    }

    #[test]
    fn the_easy_share_is_a_running_mean_below_its_bound() {
        let mut easy = EasyShare::default();
        assert_eq!(easy.alpha(0.5), 0.0);
        easy.observe(0.2, 4);
        assert_eq!(easy.alpha(0.5), 0.2);
        easy.observe(0.6, 4);
        assert!((easy.alpha(0.5) - 0.3).abs() < 1e-15);
        assert_eq!(easy.alpha(0.25), 0.25);
    }
}
