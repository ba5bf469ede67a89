//! What selection remembers from step to step; part of every checkpoint.

use super::{AdaEslm, Carried, EasyShare, Selector};
use crate::config::{AlphaSchedule, Plan, Pool};
use serde::{Deserialize, Serialize};

/// State of the plan's schedule of alpha and of its carried threshold; empty where the plan needs
/// none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectionState {
    /// Ada-ESLM's, once it has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ada: Option<AdaEslm>,
    /// The share of easy tokens, where alpha follows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub easy: Option<EasyShare>,
    /// The threshold of `pool = "carried"`, after the first step that selected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<Carried>,
}

/// What a finished step tells.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// 0-based step.
    pub step: u64,
    /// Confidence level it had.
    pub alpha: f64,
    /// Scores of its valid positions, where alpha was above 0.
    pub scores: &'a [f32],
    /// Sum of the kept ones, and their number.
    pub kept_score: f64,
    /// See `kept_score`.
    pub kept: u64,
    /// Share of tokens whose target was more probable than 0.9.
    pub easy_share: f64,
}

impl SelectionState {
    /// Errs with what a run of `steps` steps and `tokens` tokens cannot have left behind.
    pub fn check(&self, steps: u64, tokens: u64) -> std::result::Result<(), String> {
        if let Some(ada) = self.ada.as_ref().filter(|ada| !ada.is_possible(steps, tokens)) {
            return Err(format!(
                "selector.ada is {ada:?}; expected alpha in [0, 1), at most {tokens} kept tokens and {steps} steps"
            ));
        }
        if let Some(easy) = self.easy.as_ref().filter(|easy| !easy.is_possible()) {
            return Err(format!("selector.easy is {easy:?}; expected a share in [0, 1]"));
        }
        match self.carried {
            // A number of the file that is too large for an f32 arrives as infinite.
            Some(carried) if !(carried.threshold.is_finite() && carried.lag >= 1.0) => {
                Err(format!(
                    "selector.carried is {carried:?}; expected a finite threshold and a lag of at least 1"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Alpha of a 0-based step: the schedule's, on its way up during burn-in and ramp.
    pub fn alpha(&self, plan: &Plan, step: u64) -> f64 {
        if !plan.selects() {
            return 0.0;
        }
        let select = &plan.select;
        let target = match select.schedule {
            AlphaSchedule::Fixed => select.alpha,
            AlphaSchedule::AdaEslm => self.ada.as_ref().map_or(select.alpha, |ada| ada.alpha),
            AlphaSchedule::EasyShare => {
                self.easy.as_ref().map_or(0.0, |easy| easy.alpha(select.alpha))
            }
        };
        target * select.ramp_at(step)
    }

    /// Learns from a step; returns the exact value at risk of its scores as one pool where a
    /// threshold is carried. Ada-ESLM begins after the ramp, whose own rise would look like a trend
    /// of CVaR.
    pub fn observe(&mut self, plan: &Plan, seen: Observed<'_>) -> Option<f64> {
        let select = &plan.select;
        match select.schedule {
            AlphaSchedule::Fixed => {}
            AlphaSchedule::AdaEslm if select.ramp_at(seen.step) < 1.0 => {}
            AlphaSchedule::AdaEslm => self
                .ada
                .get_or_insert_with(|| AdaEslm::new(select.alpha))
                .observe(select, seen.kept_score, seen.kept),
            AlphaSchedule::EasyShare => {
                self.easy.get_or_insert_default().observe(seen.easy_share, select.interval);
            }
        }
        if select.pool != Pool::Carried || seen.scores.is_empty() {
            return None;
        }
        let all = vec![true; seen.scores.len()];
        let exact = Selector::of(select, seen.alpha).select(seen.scores, &all, all.len()).var_sum;
        self.carried = Some(Carried::after(self.carried, exact, select.threshold_ema));
        Some(exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::plan;

    fn seen(step: u64, scores: &[f32]) -> Observed<'_> {
        let kept_score = scores.iter().map(|s| f64::from(*s)).sum();
        Observed {
            step,
            alpha: 0.5,
            scores,
            kept_score,
            kept: scores.len() as u64,
            easy_share: 0.4,
        }
    }

    #[test]
    fn ada_begins_after_the_ramp_and_every_schedule_obeys_the_burn_in() {
        let plan = plan(&[
            "select.schedule=ada-eslm",
            "select.interval=1",
            "select.burn_in=2",
            "select.ramp=2",
            "select.alpha=0.2",
        ]);
        let mut memory = SelectionState::default();
        for step in 0..4 {
            assert_eq!(memory.alpha(&plan, step), [0.0, 0.0, 0.0, 0.1][step as usize]);
            memory.observe(&plan, seen(step, &[3.0, 1.0]));
        }
        assert_eq!((memory.ada.as_ref(), memory.alpha(&plan, 4)), (None, 0.2));
        memory.observe(&plan, seen(4, &[3.0, 1.0]));
        memory.observe(&plan, seen(5, &[2.0, 1.0]));
        assert!(memory.alpha(&plan, 6) > 0.2, "CVaR fell: {memory:?}");
    }

    #[test]
    fn the_easy_share_is_alpha_up_to_the_plans() {
        let plan = plan(&[
            "select.schedule=easy-share",
            "select.alpha=0.3",
            "select.burn_in=1",
            "select.ramp=0",
        ]);
        let mut memory = SelectionState::default();
        assert_eq!(memory.alpha(&plan, 1), 0.0, "nothing is dropped before anything was seen");
        memory.observe(&plan, seen(0, &[]));
        assert_eq!((memory.alpha(&plan, 0), memory.alpha(&plan, 1)), (0.0, 0.3));
    }

    #[test]
    fn the_carried_threshold_is_made_of_exact_values_at_risk() {
        let plan = plan(&["select.pool=carried", "select.threshold_ema=0.5", "select.alpha=0.5"]);
        let mut memory = SelectionState::default();
        memory.observe(&plan, seen(0, &[]));
        assert_eq!(memory, SelectionState::default(), "a step that did not select");
        memory.observe(&plan, seen(1, &[1.0, 4.0, 2.0, 3.0]));
        assert_eq!(memory.carried, Some(Carried { threshold: 3.0, lag: 1.0 }));
        memory.observe(&plan, seen(2, &[1.0, 2.0]));
        assert_eq!(memory.carried, Some(Carried { threshold: 2.5, lag: 1.5 }));
    }

    #[test]
    fn what_no_run_leaves_behind_is_refused() {
        let check =
            |text: &str| serde_json::from_str::<SelectionState>(text).unwrap().check(10, 640);
        let ada = |alpha: &str, kept: u64, steps: u64| {
            check(&format!(
                r#"{{"ada":{{"alpha":{alpha},"cvar":1.5,"delta":null,"score_sum":2.5,"kept":{kept},"steps":{steps}}}}}"#
            ))
        };
        ada("0.5", 640, 10).unwrap();
        for bad in
            [ada("0.5", u64::MAX, 10), ada("0.5", 640, 11), ada("1.0", 1, 1), ada("-1e300", 1, 1)]
        {
            assert!(bad.unwrap_err().contains("at most 640 kept tokens and 10 steps"));
        }
        check(r#"{"easy":{"mean":1.0}}"#).unwrap();
        assert!(check(r#"{"easy":{"mean":1.1}}"#).unwrap_err().contains("selector.easy"));
        check(r#"{"carried":{"threshold":-3.0,"lag":1.0}}"#).unwrap();
        for bad in [r#"{"threshold":1e300,"lag":1.0}"#, r#"{"threshold":1.0,"lag":0.0}"#] {
            assert!(
                check(&format!(r#"{{"carried":{bad}}}"#)).unwrap_err().contains("selector.carried")
            );
        }
    }

    #[test]
    fn what_is_stored_is_what_is_loaded() {
        let stored = |memory: &SelectionState| serde_json::to_value(memory).unwrap();
        assert_eq!(stored(&SelectionState::default()).to_string(), "{}");
        let mut memory =
            SelectionState { ada: Some(AdaEslm::new(0.1)), ..SelectionState::default() };
        memory.carried = Some(Carried { threshold: 0.1, lag: 1.9 });
        memory.easy = Some(EasyShare::default());
        assert_eq!(serde_json::from_value::<SelectionState>(stored(&memory)).unwrap(), memory);
    }
}
