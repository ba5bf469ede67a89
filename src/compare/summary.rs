//! The finished runs of a comparison brought together: figures per arm, tests between arms, CSV.

use super::arms::Arm;
use super::evaluate::Evaluation;
use super::runs::{self, Metrics, Point};
use super::state::{self, ArmState, State};
use super::stats::{Difference, Spread, Test, holm};
use super::verdict::Verdict;
use crate::config::keys::KEYS;
use crate::error::{Error, Result};
use crate::files::write_atomic;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One finished run.
#[derive(Debug, Clone)]
pub struct RunResult {
    /// Its seed.
    pub seed: u64,
    /// Steps done.
    pub steps: u64,
    /// Curve and totals.
    pub metrics: Metrics,
    /// What it is worth.
    pub evaluation: Evaluation,
}

/// One arm with its finished runs.
#[derive(Debug, Clone)]
pub struct ArmResult {
    /// As compared.
    pub arm: Arm,
    /// As remembered.
    pub state: ArmState,
    /// Finished runs by seed.
    pub runs: Vec<RunResult>,
    /// Index of its control at equal keep.
    pub control: Option<usize>,
    /// Difference of full validation cross-entropy to the baseline, over the seeds that both have.
    pub to_baseline: Option<Difference>,
    /// The same to its control.
    pub to_control: Option<Difference>,
    /// Validations, mean over the seeds.
    pub curve: Vec<Point>,
    /// Lowest and highest loss of every point of the curve.
    pub band: Vec<(f64, f64)>,
    /// What it takes to reach the baseline's last loss.
    pub reaches: Option<Point>,
}

/// Everything that tables and charts say.
#[derive(Debug)]
pub struct Summary {
    /// The folder.
    pub out: PathBuf,
    /// As remembered.
    pub state: State,
    /// Arms with at least one finished run.
    pub arms: Vec<ArmResult>,
    /// Index of the baseline; None if it has no finished run.
    pub baseline: Option<usize>,
    /// Runs that were asked for and are not finished, as (label, seed).
    pub missing: Vec<(String, u64)>,
    /// Number of t-tests made.
    pub tests: usize,
    /// Keys in which the arms differ.
    pub differing: Vec<&'static str>,
}

impl Summary {
    /// Reads the folder of a comparison. `wanted` is another baseline than the remembered one.
    pub fn read(out: &Path, wanted: Option<&str>) -> Result<Self> {
        let mut state = State::read(out)?.ok_or_else(|| {
            Error::usage(format!(
                "{}: expected a folder of `eslm-kd compare` with {}, found none",
                out.display(),
                state::FILE
            ))
        })?;
        if wanted.is_some() {
            state.find_baseline(wanted)?;
        }
        let (mut arms, mut missing) = (Vec::new(), Vec::new());
        for arm in &state.arms {
            let mut found = Vec::new();
            for &seed in &state.seeds {
                match result(&runs::folder(out, &arm.label, seed), seed)? {
                    Some(run) => found.push(run),
                    None => missing.push((arm.label.clone(), seed)),
                }
            }
            if !found.is_empty() {
                arms.push(ArmResult::new(arm, found)?);
            }
        }
        if arms.is_empty() {
            return Err(Error::usage(format!(
                "{}: no run is finished, so there is nothing to report",
                out.display()
            )));
        }
        let base = arms.iter().position(|a| a.arm.label == state.baseline);
        let tests = compare(&mut arms, base);
        let differing = differing(&arms);
        Ok(Self { out: out.to_path_buf(), state, arms, baseline: base, missing, tests, differing })
    }

    /// Indices of the arms by loss, the lowest first: by the mean over the seeds that every arm has,
    /// if there is one, so that a missing run moves no arm.
    pub fn ranking(&self) -> Vec<usize> {
        let has = |a: &ArmResult, seed: u64| a.runs.iter().any(|r| r.seed == seed);
        let common: Vec<u64> = (self.state.seeds.iter().copied())
            .filter(|seed| self.arms.iter().all(|a| has(a, *seed)))
            .collect();
        let loss = |i: usize| {
            let counts = |seed| common.is_empty() || common.contains(&seed);
            let of = |r: &RunResult| counts(r.seed).then_some(r.evaluation.ce);
            self.arms[i].spread(of).map_or(f64::INFINITY, |s| s.mean)
        };
        let mut order: Vec<usize> = (0..self.arms.len()).collect();
        order.sort_by(|a, b| loss(*a).total_cmp(&loss(*b)));
        order
    }

    /// How an arm looks in every chart and table of every page of this comparison: 0 is the
    /// baseline, the others follow as they were named, finished or not.
    pub fn style(&self, arm: usize) -> usize {
        let label = &self.arms[arm].arm.label;
        if *label == self.state.baseline {
            return 0;
        }
        let others = self.state.arms.iter().filter(|a| a.label != self.state.baseline);
        1 + others.take_while(|a| a.label != *label).count()
    }

    /// Writes `report.csv`, one row per run, and `curves.csv`, one row per validation.
    pub fn write_csv(&self) -> Result<()> {
        let write = |name: &str, text: String| {
            let path = self.out.join(name);
            write_atomic(&path, |w| {
                w.write_all(text.as_bytes()).map_err(|e| Error::io("write", &path, e))
            })
        };
        write(REPORT_CSV, self.report_csv())?;
        write(CURVES_CSV, self.curves_csv())
    }

    fn report_csv(&self) -> String {
        let mut header = vec!["label".to_string(), "seed".into()];
        header.extend(self.differing.iter().map(ToString::to_string));
        header.extend(["steps", "tokens", "flops", "seconds", "val_ce"].map(String::from));
        header.extend(self.state.also.iter().map(|name| format!("ce_{name}")));
        header.extend((1..=super::evaluate::GROUPS).map(|g| format!("ce_decile_{g}")));
        let mut lines = vec![csv_line(&header)];
        for arm in &self.arms {
            let values = arm.values(&self.differing);
            for run in &arm.runs {
                let mut cells = vec![arm.arm.label.clone(), run.seed.to_string()];
                cells.extend(values.iter().cloned());
                cells.push(run.steps.to_string());
                let m = &run.metrics;
                cells.extend(
                    [m.tokens, m.flops, m.seconds, run.evaluation.ce].map(|x| x.to_string()),
                );
                let also = self.state.also.iter().map(|name| run.evaluation.other(name));
                cells.extend(also.map(|x| x.map_or_else(String::new, |x| x.to_string())));
                cells.extend(run.evaluation.deciles.iter().map(|d| d.ce.to_string()));
                lines.push(csv_line(&cells));
            }
        }
        lines.concat()
    }

    fn curves_csv(&self) -> String {
        let mut lines =
            vec![csv_line(&["label", "seed", "step", "tokens", "flops", "seconds", "val_loss"])];
        for arm in &self.arms {
            for run in &arm.runs {
                for p in &run.metrics.curve {
                    let mut cells =
                        vec![arm.arm.label.clone(), run.seed.to_string(), p.step.to_string()];
                    cells.extend([p.tokens, p.flops, p.seconds, p.loss].map(|x| x.to_string()));
                    lines.push(csv_line(&cells));
                }
            }
        }
        lines.concat()
    }

    /// What `--json` prints.
    pub fn json(&self) -> Value {
        let label = |i: Option<usize>| i.map(|i| self.arms[i].arm.label.clone());
        let arms: Vec<Value> = (self.arms.iter())
            .map(|a| {
                let also: BTreeMap<&String, Option<Spread>> = self
                    .state
                    .also
                    .iter()
                    .map(|name| (name, a.spread(|r| r.evaluation.other(name))))
                    .collect();
                json!({
                    "label": a.arm.label,
                    "seeds": a.runs.iter().map(|r| r.seed).collect::<Vec<_>>(),
                    "parameters": a.state.parameters,
                    "steps": a.runs[0].steps,
                    "tokens": a.runs[0].metrics.tokens,
                    "flops": a.spread(|r| Some(r.metrics.flops)),
                    "seconds": a.spread(|r| Some(r.metrics.seconds)),
                    "val_ce": a.ce(),
                    "also": also,
                    "to_baseline": a.to_baseline,
                    "control": label(a.control),
                    "to_control": a.to_control,
                    "flops_to_baseline": a.reaches.map(|p| p.flops),
                    "seconds_to_baseline": a.reaches.map(|p| p.seconds),
                })
            })
            .collect();
        json!({
            "out": self.out,
            "report": self.out.join(super::REPORT_HTML),
            "runs": self.out.join(REPORT_CSV),
            "curves": self.out.join(CURVES_CSV),
            "budget": self.state.budget,
            "baseline": label(self.baseline),
            "seeds": self.state.seeds,
            "tests": self.tests,
            "missing": self.missing.len(),
            "verdict": Verdict::of(self),
            "arms": arms,
        })
    }
}

/// One row per run.
pub const REPORT_CSV: &str = "report.csv";
/// One row per validation.
pub const CURVES_CSV: &str = "curves.csv";

/// Cells joined by commas; one that holds a comma, a quote or a line's end is quoted (RFC 4180).
fn csv_line<S: AsRef<str>>(cells: &[S]) -> String {
    let quoted = cells.iter().map(|cell| {
        let cell = cell.as_ref();
        match cell.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", cell.replace('"', "\"\"")),
            false => cell.to_string(),
        }
    });
    quoted.collect::<Vec<_>>().join(",") + "\n"
}

/// A run that is finished and evaluated.
fn result(folder: &Path, seed: u64) -> Result<Option<RunResult>> {
    if !runs::is_finished(folder) {
        return Ok(None);
    }
    let Some(evaluation) = Evaluation::read(folder)? else { return Ok(None) };
    let steps = crate::train::run::plan_of(folder)?.steps;
    Ok(Some(RunResult { seed, steps, metrics: Metrics::read(folder)?, evaluation }))
}

/// Fills in everything that needs two arms; the number of tests made.
pub(super) fn compare(arms: &mut [ArmResult], base: Option<usize>) -> usize {
    let last = base.and_then(|b| arms[b].curve.last().copied());
    for i in 0..arms.len() {
        let control = (0..arms.len()).find(|&j| arms[i].arm.has_control(&arms[j].arm));
        let to = |j: usize| (j != i).then(|| arms[i].difference(&arms[j])).flatten();
        let (to_baseline, to_control) = (base.and_then(to), control.and_then(to));
        let reaches = last.and_then(|last| reach(&arms[i].curve, last.loss));
        let arm = &mut arms[i];
        (arm.control, arm.to_baseline, arm.to_control, arm.reaches) =
            (control, to_baseline, to_control, reaches);
    }
    let mut all: Vec<&mut Test> = (arms.iter_mut())
        .flat_map(|a| [a.to_baseline.as_mut(), a.to_control.as_mut()])
        .filter_map(|d| d.and_then(|d| d.test.as_mut()))
        .collect();
    holm(&mut all);
    all.len()
}

impl ArmResult {
    fn new(state: &ArmState, runs: Vec<RunResult>) -> Result<Self> {
        Ok(Self::with(state.arm()?, state.clone(), runs))
    }

    /// An arm that is not compared yet.
    pub(super) fn with(arm: Arm, state: ArmState, runs: Vec<RunResult>) -> Self {
        let (curve, band) = mean_curve(&runs);
        Self {
            arm,
            state,
            runs,
            control: None,
            to_baseline: None,
            to_control: None,
            curve,
            band,
            reaches: None,
        }
    }

    /// Mean and spread over the runs of what `figure` gives.
    pub fn spread(&self, figure: impl Fn(&RunResult) -> Option<f64>) -> Option<Spread> {
        Spread::of(&self.runs.iter().filter_map(figure).collect::<Vec<_>>())
    }

    /// Full validation cross-entropy.
    pub fn ce(&self) -> Option<Spread> {
        self.spread(|r| Some(r.evaluation.ce))
    }

    /// Loss less that of `other`, over the seeds that both have.
    pub fn difference(&self, other: &Self) -> Option<Difference> {
        let pairs = self.runs.iter().filter_map(|r| {
            let twin = other.runs.iter().find(|o| o.seed == r.seed)?;
            Some(r.evaluation.ce - twin.evaluation.ce)
        });
        Difference::of(&pairs.collect::<Vec<_>>())
    }

    /// The values of `keys`, as texts; empty where a key is absent.
    pub fn values(&self, keys: &[&str]) -> Vec<String> {
        let all = flat(&self.arm);
        keys.iter().map(|k| all.get(*k).cloned().unwrap_or_default()).collect()
    }
}

/// Every key of the arm's plan as written, as text.
pub fn flat(arm: &Arm) -> BTreeMap<String, String> {
    let mut leaves = Vec::new();
    crate::config::flatten("", &json!(arm.plan), &mut leaves);
    let text = |v: Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
    let mut all: BTreeMap<String, String> = leaves.into_iter().map(|(k, v)| (k, text(v))).collect();
    if !arm.plan.selects() {
        // What selects nothing has no score either.
        all.retain(|k, _| !k.starts_with("select."));
    }
    if !arm.plan.uses_teacher() {
        all.retain(|k, _| !k.starts_with("objective."));
    }
    all
}

/// Keys that say what is what even where only some of the arms have them.
const TELLING: [&str; 5] =
    ["teacher", "data.signal", "select.score", "select.alpha", "objective.lambda"];

/// Keys of which two arms that have them have different values, in the order of the table of keys.
fn differing(arms: &[ArmResult]) -> Vec<&'static str> {
    let all: Vec<BTreeMap<String, String>> = arms.iter().map(|a| flat(&a.arm)).collect();
    let differs = |key: &str| {
        let mut values: Vec<&String> = all.iter().filter_map(|a| a.get(key)).collect();
        let lacking = values.len() < all.len();
        values.sort_unstable();
        values.dedup();
        key != "seed"
            && (values.len() > 1 || (values.len() == 1 && lacking && TELLING.contains(&key)))
    };
    KEYS.iter().map(|k| k.name).filter(|k| differs(k)).collect()
}

/// Means over the runs of an arm, point by point, and the extremes of the loss. Steps at which not
/// every run was validated are left out.
fn mean_curve(runs: &[RunResult]) -> (Vec<Point>, Vec<(f64, f64)>) {
    let Some((first, others)) = runs.split_first() else { return Default::default() };
    let mut points = Vec::new();
    let mut band = Vec::new();
    for p in &first.metrics.curve {
        let mut same = vec![*p];
        same.extend(
            others
                .iter()
                .filter_map(|r| r.metrics.curve.iter().find(|q| q.step == p.step).copied()),
        );
        if same.len() < runs.len() {
            continue;
        }
        let mean = |f: &dyn Fn(&Point) -> f64| same.iter().map(f).sum::<f64>() / same.len() as f64;
        points.push(Point {
            step: p.step,
            tokens: mean(&|p| p.tokens),
            flops: mean(&|p| p.flops),
            seconds: mean(&|p| p.seconds),
            loss: mean(&|p| p.loss),
        });
        let losses = || same.iter().map(|p| p.loss);
        band.push((
            losses().fold(f64::INFINITY, f64::min),
            losses().fold(f64::NEG_INFINITY, f64::max),
        ));
    }
    (points, band)
}

/// Where a curve first comes down to `loss`, on the straight line between two validations; None if
/// it never does.
fn reach(curve: &[Point], loss: f64) -> Option<Point> {
    let at = curve.iter().position(|p| p.loss <= loss)?;
    let (Some(before), after) = (at.checked_sub(1).map(|i| curve[i]), curve[at]) else {
        return Some(curve[at]);
    };
    let share = (before.loss - loss) / (before.loss - after.loss);
    let between = |a: f64, b: f64| a + share * (b - a);
    Some(Point {
        step: between(before.step as f64, after.step as f64).round() as u64,
        tokens: between(before.tokens, after.tokens),
        flops: between(before.flops, after.flops),
        seconds: between(before.seconds, after.seconds),
        loss,
    })
}

/// A figure over the seeds as `4.5216 ± 0.0031`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Shown(pub Spread);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.sd {
            Some(sd) => write!(f, "{:.4} ± {sd:.4}", self.0.mean),
            None => write!(f, "{:.4}", self.0.mean),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: u64, loss: f64) -> Point {
        Point {
            step,
            tokens: step as f64 * 8.0,
            flops: step as f64 * 10.0,
            seconds: step as f64,
            loss,
        }
    }

    #[test]
    fn the_way_to_a_loss_is_interpolated() {
        let curve = [point(0, 9.0), point(10, 5.0), point(20, 4.0), point(30, 4.2)];
        let found = reach(&curve, 4.5).unwrap();
        assert_eq!((found.step, found.flops, found.seconds), (15, 150.0, 15.0));
        assert_eq!(reach(&curve, 4.0).unwrap().flops, 200.0);
        assert_eq!(reach(&curve, 9.5).unwrap().flops, 0.0);
        assert!(reach(&curve, 3.9).is_none());
    }

    #[test]
    fn cells_are_quoted_where_csv_needs_it() {
        assert_eq!(csv_line(&["a", "b,c", "say \"x\""]), "a,\"b,c\",\"say \"\"x\"\"\"\n");
    }
}
