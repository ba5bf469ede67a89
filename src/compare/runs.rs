//! One run of a comparison: where it lies, how far it is, training it, and what its metrics say.

use crate::config::{Overrides, Plan, RunFile, load};
use crate::error::{Error, Result};
use crate::store::Where;
use crate::train::events::each_metric;
use crate::train::run::{METRICS_FILE, MODEL_FOLDER};
use serde_json::Value;
use std::path::{Path, PathBuf};

use super::arms::folder_name;
use super::crew::Crew;

/// Checkpoints inside a run folder.
const CHECKPOINTS: &str = "checkpoints";

/// The run folder of an arm and a seed.
pub fn folder(out: &Path, label: &str, seed: u64) -> PathBuf {
    out.join("runs").join(folder_name(label)).join(format!("seed-{seed}"))
}

/// Whether the run is over: the exported model is the last thing that it writes.
pub fn is_finished(run: &Path) -> bool {
    run.join(MODEL_FOLDER).is_dir()
}

/// Errs if `run`, a folder or its settings, is another one than `plan` says; whether its models are the
/// same, the comparison's state knows.
pub fn check_same(run: &Path, plan: &Plan) -> Result<()> {
    let stored = RunFile::find(&run.to_string_lossy())?;
    let stored = load(Some(&stored), &Overrides::default())?.plan.mathematics();
    let differences = plan.as_stored()?.differences_beside(&stored, &["teacher", "student"]);
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{}: the run there is another one ({}); choose another --out, or in a comparison another label",
        run.display(),
        differences.join("; ")
    )))
}

/// Trains `plan` in the folder `run`, from its newest checkpoint if it has one; progress shows it as
/// `label`. A finished run stays as it is. Afterwards its checkpoints go, unless they are to be kept.
pub fn run(
    plan: &Plan,
    run: &Path,
    label: &str,
    keep_checkpoints: bool,
    crew: &Crew,
    around: Where<'_>,
) -> Result<()> {
    if !is_finished(run) {
        crew.train(plan, None, run, Some(label), around)?;
    }
    let checkpoints = run.join(CHECKPOINTS);
    if !keep_checkpoints && checkpoints.is_dir() {
        std::fs::remove_dir_all(&checkpoints).map_err(|e| Error::io("remove", &checkpoints, e))?;
    }
    Ok(())
}

/// A loss of a run and what it took: a validation, or a logged step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Optimizer steps done.
    pub step: u64,
    /// Training tokens seen.
    pub tokens: f64,
    /// Operations executed.
    pub flops: f64,
    /// Seconds of training.
    pub seconds: f64,
    /// Mean cross-entropy: of a validation, over the sequences that `eval.rows` names.
    pub loss: f64,
}

impl Point {
    /// Of a line of metrics, if it has the loss of that name.
    pub fn of(line: &Value, loss: &str) -> Option<Self> {
        Some(Self {
            step: line["step"].as_u64()?,
            loss: line[loss].as_f64()?,
            tokens: line["tokens"].as_f64()?,
            flops: line["flops"].as_f64()?,
            seconds: line["seconds"].as_f64()?,
        })
    }
}

/// What the metrics of a finished run say.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// Validations, in order.
    pub curve: Vec<Point>,
    /// Training tokens seen.
    pub tokens: f64,
    /// Operations executed.
    pub flops: f64,
    /// Seconds of training.
    pub seconds: f64,
}

impl Metrics {
    /// Reads `metrics.jsonl` of a run folder.
    pub fn read(run: &Path) -> Result<Self> {
        let path = run.join(METRICS_FILE);
        let (mut curve, mut totals) =
            (Vec::new(), [("tokens", None), ("flops", None), ("seconds", None)]);
        each_metric(&path, |line| {
            curve.extend(Point::of(&line, "val_loss"));
            for (key, last) in &mut totals {
                *last = line[*key].as_f64().or(*last);
            }
        })?;
        let missing = |key| {
            let place = path.display();
            Error::data(format!(
                "{place}: no line has \"{key}\"; remove the run folder and start again"
            ))
        };
        let [tokens, flops, seconds] = totals.map(|(key, last)| last.ok_or_else(|| missing(key)));
        Ok(Self { curve, tokens: tokens?, flops: flops?, seconds: seconds? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_give_the_curve_and_the_totals() {
        let folder = tempfile::tempdir().unwrap();
        let lines = [
            r#"{"step":0,"val_loss":9.0,"tokens":0,"flops":0.0,"seconds":0.0}"#,
            r#"{"step":1,"loss":8.0,"tokens":64,"flops":10.0,"seconds":0.5}"#,
            r#"{"step":2,"loss":7.0,"tokens":128,"flops":20.0,"seconds":1.0}"#,
            r#"{"step":2,"val_loss":7.5,"tokens":128,"flops":20.0,"seconds":1.0}"#,
        ];
        std::fs::write(folder.path().join(METRICS_FILE), lines.join("\n")).unwrap();
        let found = Metrics::read(folder.path()).unwrap();
        let losses: Vec<(u64, f64)> = found.curve.iter().map(|p| (p.step, p.loss)).collect();
        assert_eq!(losses, [(0, 9.0), (2, 7.5)]);
        assert_eq!((found.tokens, found.flops, found.seconds), (128.0, 20.0, 1.0));
        std::fs::write(folder.path().join(METRICS_FILE), "").unwrap();
        assert!(Metrics::read(folder.path()).unwrap_err().to_string().contains("no line has"));
    }
}
