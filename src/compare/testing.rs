//! Comparisons made by hand.

use super::arms::Arm;
use super::budget::Budget;
use super::evaluate::{Decile, Evaluation};
use super::runs::{Metrics, Point};
use super::state::{ArmState, DataState, State};
use super::summary::{ArmResult, RunResult, Summary};
use crate::config::{Overrides, load};
use crate::store::checkpoint::Models;

/// An arm with a finished run per loss, of the seeds 1, 2, ...
pub fn arm(label: &str, losses: &[f64], flops: f64) -> ArmResult {
    let plan = load(None, &Overrides::default()).unwrap().plan;
    let state = ArmState {
        label: label.into(),
        spec: label.into(),
        config: String::new(),
        models: Models::default(),
        parameters: 123_456,
        steps: Some(100),
        seconds_per_step: None,
    };
    let run = |(seed, loss): (u64, &f64)| {
        let point = |step: u64, fall: f64| Point {
            step,
            tokens: step as f64 * 64.0,
            flops: flops * step as f64 / 100.0,
            seconds: step as f64,
            loss: loss + fall,
        };
        let decile =
            |g: u64| Decile { least: g, most: g + 1, tokens: 10, ce: loss + 1.0 / (g + 1) as f64 };
        let evaluation = Evaluation {
            valid_hash: String::new(),
            context: 16,
            stride: 16,
            tokens: 100,
            ce: *loss,
            deciles: (0..10).map(decile).collect(),
            also: Vec::new(),
        };
        let curve = vec![point(0, 4.0), point(50, 0.3), point(75, 0.1), point(100, 0.0)];
        let metrics = Metrics { curve, tokens: 6400.0, flops, seconds: 100.0 };
        RunResult { seed, steps: 100, metrics, evaluation }
    };
    let runs: Vec<RunResult> = (1..).zip(losses).map(run).collect();
    let spec = Arm { label: label.into(), spec: label.into(), plan };
    ArmResult::with(spec, state, runs)
}

/// The arms as a comparison, the first one the baseline.
pub fn summary(mut arms: Vec<ArmResult>) -> Summary {
    let data = DataState {
        dir: "data".into(),
        train_hash: String::new(),
        valid_hash: String::new(),
        train_tokens: 6400,
        valid_tokens: 101,
        vocabulary: 50,
    };
    let mut state = State::new(Budget::Tokens, data);
    state.baseline = arms[0].arm.label.clone();
    state.seeds = (1..=arms.iter().map(|a| a.runs.len()).max().unwrap() as u64).collect();
    state.arms = arms.iter().map(|a| a.state.clone()).collect();
    let tests = super::summary::compare(&mut arms, Some(0));
    Summary {
        out: "somewhere/first".into(),
        state,
        arms,
        baseline: Some(0),
        missing: Vec::new(),
        tests,
        differing: vec!["select.score"],
    }
}
