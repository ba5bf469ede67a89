//! Checkpoints: everything a run needs to go on as if it had never stopped.
//!
//! `<run>/checkpoints/step-00000100/` appears whole or not at all and holds
//!
//! | file | what |
//! |---|---|
//! | `model.safetensors`, `config.json`, tokenizer files | the student, a Hugging Face folder that others can load |
//! | `adam_m.moments`, `adam_v.moments` | AdamW's moments, safetensors of f32, names of the layout |
//! | `state.json` | steps, tokens, cursor, FLOPs, seconds, best validation, selector state, the plan |
//! | `manifest.json` | size and SHA-256 of each file, hashes of data, tokenizer and teacher, version of this layout |
//!
//! Random draws are pure functions of the seed and the step, so no generator state is among them.
//!
//! # A run and its parts, in the order in which they come to be
//!
//! | type | what it is |
//! |---|---|
//! | `config::Plan` | what is asked for: mathematics, and a machine of which something may still be `auto` |
//! | `train::session::Shapes` | the shapes of the plan's models, and the plan settled for them; needs no weights |
//! | `train::session::Survey` | shapes, opened data, folders of weights: all that a run reads, found and checked |
//! | [`Inputs`] | the hashes of that: a run goes on with the same bytes or not at all |
//! | `train::session::Session` | the survey with weights in memory; no step is done, no folder is taken |
//! | `train::Trainer` | what a step changes: student, [`adamw::State`], selector memory; beside plan and teacher |
//! | [`adamw::State`] | AdamW's moments and how often it stepped |
//! | `select::Memory` | what selection learned from earlier steps |
//! | [`Counters`] | how far the run is: totals that a step adds to |
//! | `train::run::Run` | trainer, counters and loader, in a run folder that a [`RunLock`] holds |
//! | [`TrainState`] | all of it between two steps: what a checkpoint stores and a resumed run starts from |
//!
//! In memory a run is a `Run`, on disk a [`TrainState`]; `state.json` is the part of it that is no
//! tensor.

mod glance;
mod manifest;
mod rotation;
mod sound;

pub use glance::{Glance, holder};
pub use manifest::{FileSum, MANIFEST_FILE, Manifest};
pub use rotation::{RunLock, best, check_free, latest, list};
pub(crate) use rotation::{is_checkpoint, list_in};
pub(crate) use sound::{newest_sound, verify_model};

use crate::config::{CheckpointPlan, Plan};
use crate::cost::Flops;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{AtomicDir, read_bounded, write_atomic};
use crate::json::exact;
use crate::model::{Gpt2Config, Layout, ParamSet};
use crate::optim::{adamw, schedule};
use crate::progress::Progress;
use crate::report::text::{amount, count, quoted};
use crate::store::identity::Identity;
use crate::store::preset;
use crate::store::weights::{
    SaveOptions, check_finite, load_model, load_params, read_config, save_model, save_params,
};
use candle_core::Device;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// In the format of safetensors, not under its name: tools that load every `*.safetensors` of a
/// folder would take them for weights.
const FIRST_MOMENT: &str = "adam_m.moments";
const SECOND_MOMENT: &str = "adam_v.moments";
/// Their names in checkpoints of layout version 1.
const FIRST_MOMENT_1: &str = "adam_m.safetensors";
const SECOND_MOMENT_1: &str = "adam_v.safetensors";
const STATE_FILE: &str = "state.json";
/// Far above any plan and selector state.
const MOST_STATE_BYTES: u64 = 64 << 20;

/// What no checkpoint can do without.
fn required(manifest: &Manifest) -> [&'static str; 5] {
    let [m, v] = moment_files(manifest);
    ["model.safetensors", "config.json", m, v, STATE_FILE]
}

fn moment_files(manifest: &Manifest) -> [&'static str; 2] {
    match manifest.version {
        1 => [FIRST_MOMENT_1, SECOND_MOMENT_1],
        _ => [FIRST_MOMENT, SECOND_MOMENT],
    }
}

/// A run between two optimizer steps.
#[derive(Debug, Clone)]
pub struct TrainState {
    /// The run as resolved.
    pub plan: Plan,
    /// The student's shape.
    pub config: Gpt2Config,
    /// The student's parameters.
    pub params: ParamSet,
    /// AdamW's moments and step count.
    pub optimizer: adamw::State,
    /// How far the run is.
    pub counters: Counters,
    /// What an adaptive selector remembers; `Null` if nothing.
    pub selector: Value,
    /// What the run reads.
    pub inputs: Inputs,
}

/// How far a run is; totals since its start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Optimizer steps done.
    pub step: u64,
    /// Tokens seen, before selection.
    pub tokens: u64,
    /// Sequences consumed from the loader.
    pub cursor: u64,
    /// Operations executed.
    pub flops: Flops,
    /// Seconds of training.
    pub seconds: f64,
    /// Lowest validation loss so far.
    pub best_val_loss: Option<f64>,
    /// The last validation: steps done then, and its loss.
    #[serde(default)]
    pub last_validation: Option<(u64, f64)>,
    /// Steps that were not finite and were passed over; they count among `step`.
    #[serde(default)]
    pub skipped: u64,
}

impl Counters {
    /// One batch further, trained on or passed over.
    pub(crate) fn pass(&mut self, plan: &Plan, tokens: u64, seconds: f64) {
        self.step += 1;
        self.cursor += plan.data.rows as u64;
        self.tokens += tokens;
        self.seconds += seconds;
    }

    /// Validation loss of the weights as they are; None if they were not validated.
    fn validated_now(&self) -> Option<f64> {
        self.last_validation.filter(|(at, _)| *at == self.step).map(|(_, loss)| loss)
    }

    /// Errs with what no run of `plan` can have counted: a state that says so was not written by
    /// one.
    fn check(&self, plan: &Plan, optimizer_step: u64) -> std::result::Result<(), String> {
        let Self { step, tokens, cursor, skipped, seconds, last_validation, .. } = *self;
        let validated = last_validation.map_or(0, |(at, _)| at);
        let most = |what, found: u64, most: u64, why| {
            if found <= most {
                Ok(())
            } else {
                Err(format!("{what} is {found}; expected at most {most}, {why}"))
            }
        };
        most("step", step, plan.steps, "the steps of the run")?;
        let sequences = step.saturating_mul(plan.data.rows as u64);
        if cursor != sequences {
            return Err(format!(
                "cursor is {cursor}; expected {sequences}, the sequences of {step} steps"
            ));
        }
        most(
            "tokens",
            tokens,
            step.saturating_mul(plan.tokens_per_step()),
            "the tokens of its steps",
        )?;
        most("skipped", skipped, step, "its steps")?;
        most("optimizer_step", optimizer_step, step - skipped, "the steps that were not skipped")?;
        most("last_validation", validated, step, "its steps")?;
        if seconds < 0.0 {
            return Err(format!("seconds is {seconds}; expected at least 0"));
        }
        Ok(())
    }
}

/// What a run reads, by hashes in hexadecimal: a run goes on with the same bytes or not at all. As
/// it stands in the manifest; what is None was not there, or not noted by the version that wrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// Content hash of the training tokens.
    pub data_hash: String,
    /// That of the validation tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_hash: Option<String>,
    /// Hash of the tokenizer that made them.
    pub tokenizer_hash: String,
    /// Stored models.
    #[serde(flatten)]
    pub models: Models,
}

/// The stored models that a run reads, by their content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Models {
    /// The teacher's weights ([`Identity::weights`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_hash: Option<String>,
    /// The constants of its function ([`Identity::function`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_function: Option<String>,
    /// `org/name@commit` of a teacher from the Hub; recorded, not compared: the hash says whether
    /// it is the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_revision: Option<String>,
    /// The weights that the student began with, if a stored model gave them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student_hash: Option<String>,
    /// The constants of the function that they were of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student_function: Option<String>,
    /// `org/name@commit` of the Hub's model that it started as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student_revision: Option<String>,
    /// What the teacher said, where it was read and not computed (the hash of the stored signal).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal_hash: Option<String>,
}

impl Models {
    /// The teacher, as far as it was noted.
    pub fn teacher(&self) -> Option<Identity> {
        Identity::noted(self.teacher_hash.as_ref(), self.teacher_function.as_ref())
    }

    /// The stored model that the student began as, as far as it was noted.
    pub fn student(&self) -> Option<Identity> {
        Identity::noted(self.student_hash.as_ref(), self.student_function.as_ref())
    }
}

/// What a checkpoint says of its run, read before anything large is.
#[derive(Debug, Clone)]
pub struct Known {
    /// The checkpoint.
    pub dir: PathBuf,
    /// What the run reads.
    pub inputs: Inputs,
    /// The run as resolved.
    pub plan: Plan,
}

impl Known {
    /// Errs where what is `expected` is another run than the checkpoint's.
    pub fn check(&self, expected: &Expected) -> Result<()> {
        expected.check(&self.dir, &Manifest::read(&self.dir)?, &self.plan)
    }
}

/// That of the newest checkpoint of `run` that says it; None without one. What is damaged comes to
/// light when it is loaded.
pub fn known(run: &Path) -> Result<Option<Known>> {
    let read = |dir: PathBuf| {
        let inputs = Manifest::read(&dir).ok()?.inputs;
        read_config(&dir.join("config.json")).ok()?;
        let plan = serde_json::from_value(read_state(&dir).ok()?.plan).ok()?;
        Some(Known { dir, inputs, plan })
    };
    Ok(list(run)?.into_iter().rev().find_map(|(_, dir)| read(dir)))
}

/// `state.json`.
#[derive(Serialize, Deserialize)]
struct Saved {
    #[serde(flatten)]
    counters: Counters,
    optimizer_step: u64,
    selector: Value,
    plan: Value,
}

/// Writes the checkpoint of `state.counters.step` and then removes all but the newest `keep` (0
/// keeps all) and the `keep_best` of the lowest validation loss. Returns its folder. `model` says
/// which tokenizer files go along.
///
/// A stop signal that arrives meanwhile is noticed after the checkpoint stands.
pub fn save(
    run: &RunLock,
    state: &TrainState,
    model: &SaveOptions,
    plan: &CheckpointPlan,
) -> Result<PathBuf> {
    // The loop saves because of a signal, too: the polls inside the writers must not stop exactly
    // that.
    let _hold = crate::interrupt::hold();
    let step = state.counters.step;
    let target = run.place(step);
    let dir = AtomicDir::create(&target)?;
    let inside = |name: &str| dir.path().join(name);
    save_model(dir.path(), &state.config, &state.params, model)?;
    save_params(&inside(FIRST_MOMENT), &state.optimizer.m, &BTreeMap::new())?;
    save_params(&inside(SECOND_MOMENT), &state.optimizer.v, &BTreeMap::new())?;
    write_state(&inside(STATE_FILE), state)?;
    Manifest::write(dir.path(), step, &state.inputs)?;
    dir.commit()?;
    run.prune(step, plan)?;
    Ok(target)
}

fn write_state(path: &Path, state: &TrainState) -> Result<()> {
    let internal =
        |e: serde_json::Error| Error::internal(format!("cannot describe the run's state: {e}"));
    let saved = Saved {
        counters: state.counters.clone(),
        optimizer_step: state.optimizer.step,
        selector: state.selector.clone(),
        plan: serde_json::to_value(&state.plan).map_err(internal)?,
    };
    let value = exact::freeze(serde_json::to_value(saved).map_err(internal)?);
    write_atomic(path, |w| writeln!(w, "{value:#}").map_err(|e| Error::io("write", path, e)))
}

/// Validation loss of the weights in the checkpoint `path`; None if they were not validated, or if
/// `state.json` cannot be read.
fn validated(path: &Path) -> Option<f64> {
    read_state(path).ok()?.counters.validated_now()
}

/// `state.json` of the checkpoint `path`.
fn read_state(path: &Path) -> Result<Saved> {
    let state_path = path.join(STATE_FILE);
    let text = read_bounded(&state_path, MOST_STATE_BYTES)?;
    serde_json::from_slice(&text)
        .and_then(|value| serde_json::from_value(exact::thaw(value)))
        .map_err(|e| of_another_version(path, &e))
}

/// The hashes are right, so this is no accident of a disk.
pub(crate) fn impossible(path: &Path, what: &str) -> Error {
    Error::data(format!(
        "{}: {what}. No run writes that: it was changed by hand or by another program; remove this checkpoint to go on from \
         the one before",
        path.join(STATE_FILE).display()
    ))
}

fn of_another_version(path: &Path, e: &serde_json::Error) -> Error {
    Error::data(format!(
        "{}: written by another version of this program ({e})",
        path.join(STATE_FILE).display()
    ))
}

/// Checks every file of the checkpoint `path` against its manifest; the error names the first
/// damaged file.
pub fn verify(path: &Path) -> Result<Manifest> {
    let manifest = Manifest::read(path)?;
    manifest.verify(path, &required(&manifest), |_| true)?;
    Ok(manifest)
}

/// What a run that wants to resume expects of a checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The run as it is now; its mathematics must be the checkpoint's, its machine may differ.
    pub plan: &'a Plan,
    /// The student.
    pub config: &'a Gpt2Config,
    /// What it reads.
    pub inputs: &'a Inputs,
}

impl Expected<'_> {
    /// Refuses a checkpoint of another run and shows what differs. Models are the same if their
    /// content is; names count where that is not known: of a model that no run asks, of a student
    /// that starts from no stored weights, in checkpoints of earlier versions.
    fn check(&self, path: &Path, manifest: &Manifest, plan: &Plan) -> Result<()> {
        let (before, now) = (&manifest.inputs, self.inputs);
        let teachers = before.models.teacher().zip(now.models.teacher());
        let students = before.models.student().zip(now.models.student());
        let mut known = Vec::new();
        if teachers.is_some()
            || !(plan.uses_teacher() || self.plan.uses_teacher())
            || plan.teacher.as_ref().zip(self.plan.teacher.as_ref()).is_some_and(may_be_same)
        {
            known.push("teacher");
        }
        // An earlier version noted no hash of a stored student; its shape is compared later.
        if students.is_some()
            || now.models.student_hash.is_some() && preset::for_student(&plan.student).is_none()
        {
            known.push("student");
        }
        // More steps are the same run if the steps so far would have been the same.
        let longer = Plan { steps: self.plan.steps, ..plan.clone() };
        if longer.steps >= manifest.step && same_until(plan, &longer, manifest.step) {
            known.push("steps");
        }
        let mut differences = self.plan.differences_beside(&plan.mathematics(), &known);
        let none = "none".to_string();
        let valid = before.valid_hash.as_ref();
        for (what, was, is) in [
            ("training tokens (SHA-256)", &before.data_hash, &now.data_hash),
            (
                "validation tokens (SHA-256)",
                valid.unwrap_or(&none),
                valid.and(now.valid_hash.as_ref()).unwrap_or(&none),
            ),
            ("tokenizer (SHA-256)", &before.tokenizer_hash, &now.tokenizer_hash),
            (
                "signal (SHA-256)",
                before.models.signal_hash.as_ref().unwrap_or(&none),
                now.models.signal_hash.as_ref().unwrap_or(&none),
            ),
        ] {
            if was != is {
                differences.push(format!("{what}: {was} before, {is} now"));
            }
        }
        for (what, models) in [("teacher's", teachers), ("student's first", students)] {
            let Some((was, is)) = models else { continue };
            differences.extend(is.differences(&was).iter().map(|found| format!("{what} {found}")));
        }
        if differences.is_empty() {
            return Ok(());
        }
        if let ([one], true) = (&*differences, self.plan.steps != plan.steps)
            && one.starts_with("steps:")
        {
            return Err(not_to_be_extended(path, manifest.step, plan, self.plan));
        }
        Err(Error::usage(format!(
            "{} belongs to another run and cannot be resumed with this one: {}. Restore the old values, or start a new \
             run folder",
            path.display(),
            differences.join("; ")
        )))
    }
}

/// Whether the first `steps` steps of two plans that differ in their number of steps are the same:
/// rates and weights that fall over a whole run are not.
fn same_until(was: &Plan, is: &Plan, steps: u64) -> bool {
    let at = |plan: &Plan, step| {
        let (objective, all) = (&plan.objective, plan.steps);
        [
            schedule::lr(step, &plan.schedule, plan.optim.lr, all),
            objective.lambda_at(step, all),
            objective.temperature_at(step, all),
        ]
    };
    (0..steps).all(|step| at(was, step) == at(is, step))
}

/// What to do where a run cannot have another number of steps.
fn not_to_be_extended(path: &Path, step: u64, was: &Plan, is: &Plan) -> Error {
    let run = path.parent().and_then(Path::parent).unwrap_or(path);
    let mut earlier = list(run).unwrap_or_default().into_iter().rev().map(|(step, _)| step);
    let fits = earlier.find(|at| *at <= is.steps && same_until(was, is, *at));
    let why = match is.steps < step {
        true => format!("it is at step {step} already"),
        false => format!(
            "the rates of its first {step} steps would have been others (schedule.kind = {})",
            was.schedule.kind
        ),
    };
    let here = match fits.filter(|at| *at > 0) {
        Some(at) => format!("remove the checkpoints after step {at} and resume from there, or "),
        None => String::new(),
    };
    let again = from_its_weights(run, was, step, is.steps);
    Error::usage(format!(
        "{}: a run of {} cannot become one of {}: {why}; {here}{again}",
        path.display(),
        amount(was.steps, "steps"),
        count(is.steps)
    ))
}

/// The command that begins a run where the one in `run` is after `step` steps, which was asked for
/// `steps`.
pub(crate) fn from_its_weights(run: &Path, was: &Plan, step: u64, steps: u64) -> String {
    let Some(data) = &was.data.dir else { return "begin a new one in another folder".into() };
    let steps = if steps > step { steps - step } else { steps };
    let name = run.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let place = |n: u32| run.with_file_name(format!("{name}-{n}"));
    let new = (2..).map(place).find(|path| !path.exists()).unwrap_or_else(|| place(0));
    let (run, new) = (quoted(run), quoted(&new));
    let verb = was.verb();
    // The run as a run file has all of its settings; a shape would contradict stored weights.
    if was.shape.is_empty() && was.init.is_none() {
        return format!(
            "begin a new run from its weights: eslm-kd {verb} {run} --student {run} --steps {steps} --out {new}"
        );
    }
    let flag = |name: &str, value: &str| format!(" --{name} {}", quoted(Path::new(value)));
    let teacher = was.teacher.as_ref().map(|t| flag("teacher", t));
    let teacher = teacher.or(was.data.signal.as_ref().map(|s| flag("signal", s)));
    format!(
        "begin a new run from its weights, and name its other settings, which are in {run}/config.toml: eslm-kd {verb} --data \
         {}{} --student {run} --steps {steps} --out {new}",
        quoted(Path::new(data)),
        teacher.unwrap_or_default()
    )
}

/// Whether two names may mean one folder, seen from two places: one ends as the other.
fn may_be_same((one, other): (&String, &String)) -> bool {
    Path::new(one).ends_with(other) || Path::new(other).ends_with(one)
}

/// Reads the checkpoint `path` onto `device`: verifies every file first, then that it belongs to
/// the run that `expected` describes.
pub fn load(path: &Path, expected: &Expected, device: &Device) -> Result<TrainState> {
    let manifest = verify(path)?;
    read(path, &manifest, expected, device)
}

fn read(
    path: &Path,
    manifest: &Manifest,
    expected: &Expected,
    device: &Device,
) -> Result<TrainState> {
    let saved = read_state(path)?;
    let plan: Plan =
        serde_json::from_value(saved.plan).map_err(|e| of_another_version(path, &e))?;
    expected.check(path, manifest, &plan)?;
    let named = match saved.counters.step == manifest.step {
        true => Ok(()),
        false => Err(format!(
            "step is {}; expected {}, as in {MANIFEST_FILE}",
            saved.counters.step, manifest.step
        )),
    };
    named
        .and_then(|()| saved.counters.check(&plan, saved.optimizer_step))
        .map_err(|what| impossible(path, &what))?;
    let (config, params) = load_model(path, device)?;
    let same_function = config.function() == expected.config.function();
    let layout = Layout::new(expected.config);
    if params.layout() != &layout || !same_function {
        let shown = |config: &Gpt2Config| {
            format!("{} parameters, {}", config.parameters(), config.function())
        };
        return Err(Error::usage(format!(
            "{}: the student there has another shape ({}) than this run's ({})",
            path.display(),
            shown(&config),
            shown(expected.config)
        )));
    }
    let [first, second] = moment_files(manifest);
    let moments = |name| {
        let file = path.join(name);
        let moments = load_params(&file, &layout, device)?;
        check_finite(&moments, &file).map(|()| moments)
    };
    Ok(TrainState {
        plan,
        config,
        params,
        optimizer: adamw::State::whole(saved.optimizer_step, moments(first)?, moments(second)?),
        counters: saved.counters,
        selector: saved.selector,
        inputs: manifest.inputs.clone(),
    })
}

/// Reads the newest checkpoint that is not damaged; None if the run has no checkpoint.
///
/// Damaged ones are named in a warning and, once an older good one is found, renamed to
/// `damaged-step-N`. If none is good, that is an error and nothing is renamed: a run never starts
/// over in silence. A good checkpoint of another run is an error as well.
pub fn load_latest_good(
    run: &RunLock,
    expected: &Expected,
    device: &Device,
    progress: &dyn Progress,
) -> Result<Option<TrainState>> {
    let mut damaged: Vec<(PathBuf, Error)> = Vec::new();
    for (_, path) in list(run.dir())?.into_iter().rev() {
        match verify(&path) {
            Ok(manifest) => {
                let state = read(&path, &manifest, expected, device)?;
                for (path, damage) in damaged {
                    let aside = run.condemn(&path)?;
                    progress.note(&format!("warning: {damage}; set aside as {}", aside.display()));
                }
                progress.note(&format!("resuming from {}", path.display()));
                return Ok(Some(state));
            }
            Err(e) if e.kind() == ErrorKind::Data => damaged.push((path, e)),
            Err(e) => return Err(e), // could not be read or was interrupted: says nothing about the checkpoint
        }
    }
    let Some((_, newest)) = damaged.into_iter().next() else { return Ok(None) };
    Err(newest.context(format!(
        "{} has no good checkpoint left; restore one from a copy, or start a new run folder. The newest",
        run.dir().display()
    )))
}

#[cfg(test)]
mod tests;
