//! The learning rate as a pure function of the step: nothing to save, nothing to resume.

use crate::config::{ScheduleKind as Kind, SchedulePlan};

/// Learning rate of step `step` (0-based) of a run of `steps` steps whose highest rate is `peak`.
///
/// Step s of the warm-up has peak (s + 1) / warmup, so the first step already learns and the last
/// one of the warm-up has the peak. A warm-up at least as long as the run is never left. With x =
/// (s - start) / (steps - start): linear low + (peak - low)(1 - x), cosine low + (peak - low)(1 +
/// cos(pi x))/2, where low = floor peak and start is the end of the warm-up; WSD is linear with
/// start = steps - round(decay steps), or the end of the warm-up if that is later.
pub fn lr(step: u64, schedule: &SchedulePlan, peak: f64, steps: u64) -> f64 {
    let SchedulePlan { kind, warmup, decay, .. } = *schedule;
    let floor = schedule.floor * peak;
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let start = match kind {
        Kind::Constant => return peak,
        Kind::Linear | Kind::Cosine => warmup,
        Kind::Wsd => {
            warmup.max(steps.saturating_sub((decay.clamp(0.0, 1.0) * steps as f64).round() as u64))
        }
    };
    if step >= steps {
        return floor; // nothing is left to fall through, and the division below would have no meaning
    }
    // Before a WSD decay begins x is 0, which is the peak.
    let x = step.saturating_sub(start) as f64 / (steps - start.min(step)) as f64;
    let share = match kind {
        Kind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * x).cos()),
        _ => 1.0 - x,
    };
    floor + (peak - floor) * share
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 4] = [Kind::Constant, Kind::Linear, Kind::Cosine, Kind::Wsd];

    fn schedule(kind: Kind, warmup: u64) -> SchedulePlan {
        SchedulePlan { kind, warmup, floor: 0.1, decay: 0.2 }
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} for {expected}");
    }

    #[test]
    fn warm_up_rises_from_one_share_to_the_peak() {
        for kind in KINDS {
            let s = schedule(kind, 4);
            for (step, expected) in [0.5, 1.0, 1.5, 2.0].into_iter().enumerate() {
                close(lr(step as u64, &s, 2.0, 100), expected);
            }
            close(lr(4, &s, 2.0, 100), 2.0); // the joint: the peak again, before any fall
            close(lr(100, &s, 2.0, 100), if kind == Kind::Constant { 2.0 } else { 0.2 }); // a share of the peak
        }
    }

    #[test]
    fn values_are_those_of_the_formulas() {
        let at = |kind, step| lr(step, &schedule(kind, 20), 1.0, 100);
        close(at(Kind::Constant, 99), 1.0);
        close(at(Kind::Linear, 60), 0.55);
        close(at(Kind::Linear, 99), 0.1 + 0.9 / 80.0);
        close(at(Kind::Cosine, 40), 0.1 + 0.9 * 0.5 * (1.0 + 0.5f64.sqrt()));
        close(at(Kind::Cosine, 60), 0.55);
        close(at(Kind::Wsd, 50), 1.0);
        close(at(Kind::Wsd, 80), 1.0); // the joint of WSD
        close(at(Kind::Wsd, 81), 1.0 - 0.9 / 20.0);
        close(at(Kind::Wsd, 90), 0.55);
        close(at(Kind::Wsd, 99), 0.1 + 0.9 / 20.0);
    }

    #[test]
    fn no_step_is_a_jump() {
        for kind in KINDS {
            let s = schedule(kind, 50);
            for step in 0..999 {
                let (a, b) = (lr(step, &s, 1.0, 1000), lr(step + 1, &s, 1.0, 1000));
                assert!(
                    (a - b).abs() <= 1.0 / 50.0 + 1e-12,
                    "{kind:?} jumps from {a} to {b} after step {step}"
                );
            }
            let end = if kind == Kind::Constant { 1.0 } else { 0.1 };
            assert!((lr(999, &s, 1.0, 1000) - end).abs() < 0.01, "{kind:?} ends near its floor");
            close(lr(1000, &s, 1.0, 1000), end);
        }
    }

    #[test]
    fn edges_stay_between_nothing_and_the_peak() {
        for kind in KINDS {
            for steps in [1, 2, 10] {
                for warmup in [0, 1, steps - 1, steps, steps + 7] {
                    for decay in [0.0, 0.5, 1.0] {
                        let s = SchedulePlan { kind, warmup, floor: 0.0, decay };
                        for step in 0..steps + 2 {
                            let rate = lr(step, &s, 1.0, steps);
                            assert!(
                                (0.0..=1.0).contains(&rate),
                                "{s:?} step {step} of {steps}: {rate}"
                            );
                            assert!(
                                step >= steps || rate > 0.0,
                                "{s:?} step {step} of {steps} learns nothing"
                            );
                        }
                    }
                }
            }
            close(lr(0, &schedule(kind, 0), 1.0, 1), 1.0); // one step, no warm-up: the peak
            close(lr(4, &schedule(kind, 20), 1.0, 10), 0.25); // a warm-up longer than the run
        }
    }
}
