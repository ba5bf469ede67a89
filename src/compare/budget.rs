//! What the arms have in common: tokens as their run files say, or steps set so that FLOPs or
//! seconds agree.

use crate::config::Plan;
use crate::cost::flops_of_run;
use crate::data::loader::Loader;
use crate::error::{Error, Result};
use crate::train::Trainer;
use crate::train::session::{Session, Shapes};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// What is held equal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Budget {
    /// Every arm trains for the steps of its run file
    #[default]
    Tokens,
    /// Steps are set so that every arm executes as many FLOPs as the baseline, by forecast
    Flops,
    /// Steps are set so that every arm takes the seconds that the baseline took, by measured
    /// seconds per step
    Seconds,
}

impl Budget {
    /// The word of the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Flops => "flops",
            Self::Seconds => "seconds",
        }
    }
}

/// The most steps a plan may have.
const MOST_STEPS: u64 = 1 << 30;
/// A measurement ends after so many steps, or after that time and at least three steps.
const MEASURED_STEPS: usize = 30;
const MEASURED_TIME: Duration = Duration::from_secs(4);

/// The plan with `steps` steps: what is counted in steps (warm-up, burn-in, ramp, steps between
/// validations) keeps its share of the run, to the nearest step; what is not 0 stays at least 1.
pub fn with_steps(plan: &Plan, steps: u64) -> Plan {
    let ratio = steps as f64 / plan.steps as f64;
    let scale = |n: u64| if n == 0 { 0 } else { ((n as f64 * ratio).round() as u64).max(1) };
    let mut scaled = plan.clone();
    scaled.steps = steps;
    scaled.schedule.warmup = scale(plan.schedule.warmup);
    scaled.select.burn_in = scale(plan.select.burn_in);
    scaled.select.ramp = scale(plan.select.ramp);
    scaled.eval.every = scale(plan.eval.every);
    scaled
}

/// The number of steps whose forecast FLOPs are nearest to `target`.
pub fn steps_for_flops(target: f64, shapes: &Shapes) -> u64 {
    let Shapes { plan, student, teacher } = shapes;
    let flops = |steps| flops_of_run(student, teacher.as_ref(), &with_steps(plan, steps));
    // The last number of steps that does not go over the target, or 1.
    let (mut low, mut high) = (1, MOST_STEPS);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if flops(middle) <= target { low = middle } else { high = middle - 1 }
    }
    let above = (low + 1).min(MOST_STEPS);
    if (flops(above) - target).abs() < (target - flops(low)).abs() { above } else { low }
}

/// The number of steps that take `target` seconds at `per_step` seconds each.
pub fn steps_for_seconds(target: f64, per_step: f64) -> u64 {
    ((target / per_step).round() as u64).clamp(1, MOST_STEPS)
}

/// Mean seconds of a step over the run of `session`'s plan: real steps at its end and, where it
/// starts on all tokens, at its start, each the median after one that is not counted. The session
/// is used up.
pub fn seconds_per_step(session: Session) -> Result<f64> {
    let plan = session.plan;
    let loader = Loader::new(session.train, plan.data.context, plan.seed)?;
    let mut trainer =
        Trainer::new(plan.clone(), session.student, session.teacher)?.learning_from(session.signal);
    let mut cursor = 0;
    let mut median_at = |at: u64| -> Result<f64> {
        let mut seconds = Vec::with_capacity(MEASURED_STEPS);
        let mut begun = Instant::now();
        for i in 0..=MEASURED_STEPS {
            crate::interrupt::check()?;
            let started = Instant::now();
            let batch = loader.batch(cursor, plan.data.rows)?;
            trainer.step(at, cursor, &batch)?;
            cursor += plan.data.rows as u64;
            if i == 0 {
                begun = Instant::now();
                continue;
            }
            seconds.push(started.elapsed().as_secs_f64());
            if seconds.len() >= 3 && begun.elapsed() >= MEASURED_TIME {
                break;
            }
        }
        seconds.sort_by(f64::total_cmp);
        seconds
            .get(seconds.len() / 2)
            .copied()
            .ok_or_else(|| Error::internal("no step was measured"))
    };
    let full = median_at(plan.steps - 1)?;
    if !plan.selects() || plan.select.burn_in + plan.select.ramp == 0 {
        return Ok(full);
    }
    let plain = median_at(0)?;
    let burn_in = plan.select.burn_in.min(plan.steps);
    let ramp = plan.select.ramp.min(plan.steps - burn_in);
    let rest = plan.steps - burn_in - ramp;
    let sum = burn_in as f64 * plain + ramp as f64 * 0.5 * (plain + full) + rest as f64 * full;
    Ok(sum / plan.steps as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, RunFile, load};
    use crate::cost::settle;
    use crate::model::Gpt2Config;

    fn plan(set: &[&str]) -> Plan {
        let mut over = Overrides::default();
        set.iter().for_each(|s| over.set(s).unwrap());
        load(RunFile::embedded("distill-4m").as_ref(), &over).unwrap().plan
    }

    #[test]
    fn what_is_counted_in_steps_keeps_its_share() {
        let base = plan(&[]);
        let double = with_steps(&base, 2 * base.steps);
        assert_eq!((double.steps, double.schedule.warmup, double.eval.every), (1200, 80, 400));
        assert_eq!((double.select.burn_in, double.select.ramp), (120, 120));
        assert_eq!(with_steps(&base, base.steps), base);
        let short = with_steps(&plan(&["select.ramp=0"]), 1);
        assert_eq!((short.schedule.warmup, short.select.burn_in, short.select.ramp), (1, 1, 0));
    }

    #[test]
    fn steps_for_flops_are_the_nearest() {
        let (student, teacher) =
            (Gpt2Config::new(512, 256, 96, 2, 3), Gpt2Config::new(512, 256, 192, 4, 3));
        let base = settle(&student, &plan(&["method=clm"]));
        let target = flops_of_run(&student, None, &base);
        let of = |plan: &Plan, teacher: Option<&Gpt2Config>| Shapes {
            plan: plan.clone(),
            student: student.clone(),
            teacher: teacher.cloned(),
        };
        assert_eq!(steps_for_flops(target, &of(&base, None)), base.steps);
        let distils = settle(&student, &plan(&["teacher=t"]));
        let steps = steps_for_flops(target, &of(&distils, Some(&teacher)));
        let off =
            |n| (flops_of_run(&student, Some(&teacher), &with_steps(&distils, n)) - target).abs();
        assert!(
            steps < base.steps && off(steps) <= off(steps - 1) && off(steps) <= off(steps + 1),
            "{steps}"
        );
        assert_eq!(steps_for_flops(0.0, &of(&base, None)), 1);
    }

    #[test]
    fn steps_for_seconds_round() {
        assert_eq!((steps_for_seconds(10.0, 0.3), steps_for_seconds(0.1, 3.0)), (33, 1));
    }
}
