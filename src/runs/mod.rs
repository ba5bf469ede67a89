//! What run folders hold, as far as it can be told without touching them: nothing is written, locked
//! or hashed, so a run in progress is not disturbed, and what another process replaces meanwhile
//! costs a number at most.

mod find;
mod next;

pub use find::{defaults, find};

use crate::config::{Overrides, Plan, RunFile, load};
use crate::error::{Error, Result};
use crate::files::near::{did_you_mean, shortlist};
use crate::report::text::quoted;
use crate::store::checkpoint::{Glance, holder, is_checkpoint, list};
use crate::store::places::find_again;
use crate::store::weights::{check_model, read_config};
use crate::train::events::{Outline, Totals, outline};
use crate::train::run::{CONFIG_FILE, METRICS_FILE, MODEL_FOLDER, diverged, plan_of};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What has become of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// A process of this machine holds its folder.
    Running,
    /// Its model is written, which is the last that a run does, and no steps are left.
    Finished,
    /// It ended before, and all that it did is in a checkpoint.
    Stopped,
    /// It ended before, and steps were done that no checkpoint has: it failed or was killed.
    CutOff,
    /// Its folder cannot be read as one of a run.
    Damaged,
}

impl State {
    /// In a word or two.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Stopped => "stopped",
            Self::CutOff => "cut off",
            Self::Damaged => "damaged",
        }
    }
}

/// One run in a list. Numbers that are not there are None.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its folder.
    pub run: PathBuf,
    /// What has become of it.
    pub state: State,
    /// Why it is damaged.
    pub damage: Option<String>,
    /// Optimizer steps done.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: Option<u64>,
    /// Loss of the last logged step, in nats per kept token.
    pub loss: Option<f64>,
    /// Loss of the last validation, in nats per token.
    pub val_loss: Option<f64>,
    /// The lowest one.
    pub best_val_loss: Option<f64>,
    /// Seconds since anything in the folder changed.
    pub age: Option<f64>,
}

/// All that is read of a run.
struct Found {
    row: Row,
    plan: Option<Plan>,
    metrics: Outline,
    /// At the row's step, or at the last one before of which they are known.
    totals: Option<Totals>,
    checkpoints: Vec<(u64, PathBuf)>,
    process: Option<u32>,
}

/// The runs in `folders` (a run, or what holds some, at any depth up to six), newest first.
pub fn rows(folders: &[PathBuf]) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for run in find(folders)? {
        crate::interrupt::check()?;
        rows.push(look(&run).row);
    }
    let age = |row: &Row| row.age.unwrap_or(f64::INFINITY);
    rows.sort_by(|a, b| age(a).total_cmp(&age(b)).then_with(|| a.run.cmp(&b.run)));
    Ok(rows)
}

/// What has become of the run in that folder.
pub fn state_of(run: &Path) -> State {
    look(run).row.state
}

/// Looks at the run folder; what is wrong with it is part of the answer.
fn look(run: &Path) -> Found {
    let mut damage = None;
    let mut read = |e: Error| {
        damage.get_or_insert_with(|| e.to_string());
    };
    let plan = plan_of(run).map_err(&mut read).ok();
    let path = run.join(METRICS_FILE);
    let metrics = match path.exists() {
        true => outline(&path).map_err(&mut read).unwrap_or_default(),
        false => Outline::default(),
    };
    let checkpoints = list(run).map_err(&mut read).unwrap_or_default();
    let process = holder(run);
    let saved = checkpoints.last().map(|(step, _)| *step);
    let newest = checkpoints.last().map(|(_, path)| Glance::of(path));
    // A run that a signal stopped was saved behind its last logged step.
    let of_newest = newest.as_ref().and_then(|n| n.as_ref().ok()).map(|n| (&n.counters).into());
    let totals = Totals::latest(metrics.totals, of_newest);
    let step = metrics.step.max(saved.unwrap_or(0));
    // A run that was made longer has the model of its earlier end.
    let longer = plan.as_ref().is_some_and(|plan| step > 0 && step < plan.steps);
    let finished = run.join(MODEL_FOLDER).is_dir() && !longer;
    if process.is_none() {
        // What a run would go on from, and what it made.
        newest.map(|newest| newest.map_err(&mut read));
        finished.then(|| check_model(&run.join(MODEL_FOLDER)).map_err(&mut read));
    }
    let state = if process.is_some() {
        State::Running
    } else if damage.is_some() {
        State::Damaged
    } else if finished {
        State::Finished
    } else if saved.is_some_and(|saved| saved >= metrics.step) {
        State::Stopped
    } else {
        State::CutOff
    };
    let lowest = metrics.validations.iter().map(|(_, loss)| *loss).reduce(f64::min);
    let row = Row {
        run: run.to_path_buf(),
        state,
        damage,
        step,
        steps: plan.as_ref().map(|plan| plan.steps),
        loss: metrics.last["loss"].as_f64(),
        val_loss: metrics.validations.last().map(|(_, loss)| *loss),
        best_val_loss: lowest,
        age: last_change(run, &checkpoints),
    };
    Found { row, plan, metrics, totals, checkpoints, process }
}

/// Seconds since the last sign of life.
fn last_change(run: &Path, checkpoints: &[(u64, PathBuf)]) -> Option<f64> {
    let places = [CONFIG_FILE, METRICS_FILE, MODEL_FOLDER, ".lock"].map(|name| run.join(name));
    let newest = checkpoints.last().map(|(_, path)| path);
    let changed =
        places.iter().chain(newest).filter_map(|path| path.metadata().ok()?.modified().ok());
    let changed = changed.max()?;
    // A clock of another machine may be ahead.
    Some(SystemTime::now().duration_since(changed).map_or(0.0, |d| d.as_secs_f64()))
}

/// One run, as `runs show` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    /// As in a list.
    #[serde(flatten)]
    pub row: Row,
    /// The process that holds the folder.
    pub process: Option<u32>,
    /// What is trained.
    pub plan: Option<Plan>,
    /// Parameters of the student, once a checkpoint or a model is stored.
    pub parameters: Option<u64>,
    /// Its vocabulary.
    pub vocabulary: Option<u64>,
    /// Training tokens seen at the row's step: by `metrics.jsonl`, or the newest checkpoint.
    pub tokens: Option<u64>,
    /// Operations executed.
    pub flops: Option<f64>,
    /// Seconds of training.
    pub seconds: Option<f64>,
    /// Loss of the last logged step over all its tokens, if all were scored.
    pub full_loss: Option<f64>,
    /// Steps done at the last logged step, at the last validation and at the best one.
    pub loss_step: Option<u64>,
    /// See [`Shown::loss_step`].
    pub val_step: Option<u64>,
    /// See [`Shown::loss_step`].
    pub best_val_step: Option<u64>,
    /// Checkpoints, oldest first.
    pub checkpoints: Vec<Checkpoint>,
    /// Commands that go on with the run, or use what it made.
    pub next: Vec<String>,
    /// What else there is to know.
    pub notes: Vec<String>,
}

/// A checkpoint of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checkpoint {
    /// Optimizer steps done.
    pub step: u64,
    /// Validation loss of its weights, if they were validated.
    pub val_loss: Option<f64>,
    /// Bytes of its files; None where it is damaged.
    pub bytes: Option<u64>,
    /// Its folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub damage: Option<String>,
}

/// The run in the folder `run`; an error where there is none.
pub fn show(run: &Path) -> Result<Shown> {
    if !find::is_run(run) {
        let below = if run.is_dir() { find(&[run.to_path_buf()])? } else { Vec::new() };
        let beside = run.parent().filter(|p| p.is_dir()).unwrap_or(Path::new("."));
        let near = did_you_mean(run, find::is_run);
        let says = match &below[..] {
            [] if !run.exists() && !near.is_empty() => near.trim_start_matches("; ").to_string(),
            [] => format!("`eslm-kd runs {}` lists those that there are", quoted(beside)),
            below => format!("below it: {}; `runs show` takes one of them", shortlist(below)),
        };
        return Err(Error::data(format!(
            "no run in {}: expected a run folder (config.toml, {METRICS_FILE}, checkpoints/); {says}",
            run.display(),
        )));
    }
    let Found { row, plan, metrics, totals, checkpoints, process } = look(run);
    let model = [Some(run.join(MODEL_FOLDER)), checkpoints.last().map(|(_, path)| path.clone())];
    let shape = model.iter().flatten().find_map(|dir| read_config(&dir.join("config.json")).ok());
    // Of equal ones the later, as for `RUN/best`.
    let best = metrics.validations.iter().rev().min_by(|a, b| a.1.total_cmp(&b.1));
    let located = plan.as_ref().map(|_| located(run).ok()).unwrap_or_default();
    let positions = shape.as_ref().map(|shape| shape.n_positions);
    let plan_here = located.as_ref().or(plan.as_ref());
    let (next, notes) = next::steps(run, &row, is_ruined(&metrics), plan_here, positions);
    Ok(Shown {
        process,
        parameters: shape.as_ref().map(|s| s.parameters() as u64),
        vocabulary: shape.as_ref().map(|s| s.vocab_size as u64),
        tokens: totals.map(|totals| totals.tokens),
        flops: totals.map(|totals| totals.flops),
        seconds: totals.map(|totals| totals.seconds),
        full_loss: metrics.last["full_loss"].as_f64(),
        loss_step: metrics.last["step"].as_u64(),
        val_step: metrics.validations.last().map(|(step, _)| *step),
        best_val_step: best.map(|(step, _)| *step),
        checkpoints: checkpoints.into_iter().map(|(step, path)| glanced(step, path)).collect(),
        next,
        notes,
        plan,
        row,
    })
}

/// The plan of the run whose final model or checkpoint the folder is; None of other folders.
pub fn plan_behind(model: &Path) -> Option<Plan> {
    let run = match is_checkpoint(model) {
        true => model.parent()?.parent()?,
        false if model.ends_with(MODEL_FOLDER) => model.parent()?,
        false => return None,
    };
    plan_of(run).ok()
}

/// Whether the run in the folder ended with weights that are of no use, by its metrics.
pub fn has_diverged(run: &Path) -> bool {
    outline(&run.join(METRICS_FILE)).is_ok_and(|metrics| is_ruined(&metrics))
}

/// Whether the metrics end as those of a run whose weights are no longer of use. The first logged
/// step may be the last one, too; then the first validation says where it began.
fn is_ruined(metrics: &Outline) -> bool {
    let Outline { first, last, validations, .. } = metrics;
    let risen = |from: Option<f64>, to: Option<f64>| {
        from.zip(to).is_some_and(|(from, to)| diverged(from, to))
    };
    metrics.ends_in_skip
        // What is not finite is written as null.
        || last.get("loss").is_some_and(serde_json::Value::is_null)
        || risen(first["loss"].as_f64(), last["loss"].as_f64())
        || risen(validations.first().map(|(_, loss)| *loss), last["full_loss"].as_f64())
}

/// The plan with its data where it is to be found from here, as a run that goes on would find it.
fn located(run: &Path) -> Result<Plan> {
    let file = RunFile::find(&run.join(CONFIG_FILE).to_string_lossy())?;
    let mut resolved = load(Some(&file), &Overrides::default())?;
    find_again(&mut resolved, &file, None)?;
    Ok(resolved.plan)
}

fn glanced(step: u64, path: PathBuf) -> Checkpoint {
    match Glance::of(&path) {
        Ok(Glance { counters, val_loss, bytes }) => {
            Checkpoint { step: counters.step, val_loss, bytes: Some(bytes), path, damage: None }
        }
        Err(e) => {
            Checkpoint { step, val_loss: None, bytes: None, path, damage: Some(e.to_string()) }
        }
    }
}
