//! What `--resume` finds in a run folder, and whether a run begins there, goes on or is over.

use super::Resume;
use crate::compare::quickstart::holds_one;
use crate::config::{Origin, Plan, Resolved};
use crate::cost::settle;
use crate::data::prepare::DataDir;
use crate::error::{Error, Result};
use crate::progress::Silent;
use crate::report::text::{count, quoted};
use crate::runs::{Shown, State, show};
use crate::signal::Stored;
use crate::store::Where;
use crate::store::checkpoint::{
    Expected, Inputs, Known, check_free, from_its_weights, known, latest,
};
use crate::store::hub::{HubOptions, What};
use crate::store::identity::Identity;
use crate::store::names::{Kind, ModelRef, locate};
use crate::store::weights::read_config;
use crate::train::run::{CONFIG_FILE, MODEL_FOLDER, differences, plan_of};
use crate::train::session::{inputs_of, verify};
use std::path::{Path, PathBuf};

/// What a run folder is to the command that names it.
pub enum Found {
    /// Free: a run begins there.
    Nothing,
    /// A run that goes on.
    Begun,
    /// A finished one, asked for as it is: what it came to.
    Over(Box<Shown>),
}

impl Found {
    /// Looks at the folder `out` of a run of `plan`. Errs where it is not what was asked for: what
    /// is to continue must not begin in silence, and nothing is written over.
    pub fn at(
        out: &Path,
        resume: Option<Resume>,
        resolved: &Resolved,
        at: Where<'_>,
    ) -> Result<Self> {
        let Some(resume) = resume else { return check_free(out).map(|()| Self::Nothing) };
        let has_config = out.join(CONFIG_FILE).is_file();
        if latest(out)?.is_some() {
            if has_config {
                check_teacher(out, &resolved.plan)?;
                if let Some(shown) = finished(out, &resolved.plan, at)? {
                    return Ok(Self::Over(Box::new(shown)));
                }
            }
            return Ok(Self::Begun);
        }
        if out.join(MODEL_FOLDER).is_dir() && has_config {
            check_named(out, resolved)?;
            return over(out, &resolved.plan).map(|shown| Self::Over(Box::new(shown)));
        }
        if out.join(CONFIG_FILE).is_file() {
            return Ok(Self::Begun);
        }
        if let Some(whole) = of_several(out) {
            return Err(Error::usage(format!("nothing to resume in {}: {whole}", out.display())));
        }
        if resume == Resume::Auto {
            return check_free(out).map(|()| Self::Nothing);
        }
        Err(Error::usage(format!(
            "nothing to resume in {}: it holds neither {CONFIG_FILE} nor a checkpoint; name the run folder with --out, or \
             write --resume=auto to begin one there",
            out.display()
        )))
    }
}

/// What the run in `out` came to, which has its checkpoints, if it is finished and `plan` is its own.
/// What it read may be gone; what is here must be the same. None where that takes more than a look.
fn finished(out: &Path, plan: &Plan, at: Where<'_>) -> Result<Option<Shown>> {
    let shown = show(out)?;
    let Some(known) = known(out)? else { return Ok(None) };
    if shown.row.state != State::Finished || shown.tokens.is_none() {
        return Ok(None);
    }
    let config = read_config(&out.join(MODEL_FOLDER).join("config.json"))?;
    let plan = settle(&config, plan);
    if !differences(out, &plan)?.is_empty() || plan.student != known.plan.student {
        return Ok(None);
    }
    let Some(inputs) = inputs_here(&plan, &known, at)? else { return Ok(None) };
    known.check(&Expected { plan: &plan, config: &config, inputs: &inputs })?;
    Ok(Some(shown))
}

/// What a run reads, as far as it is here; of what is gone from where the run had it, what the run
/// noted. None where something else is named that is not here.
fn inputs_here(plan: &Plan, known: &Known, at: Where<'_>) -> Result<Option<Inputs>> {
    let is_noted = |now: &Option<String>, was: &Option<String>| {
        now.as_deref().map(whole) == was.as_deref().map(whole)
    };
    let mut inputs = known.inputs.clone();
    match plan.data.dir.as_deref().map(Path::new).filter(|dir| dir.exists()) {
        Some(dir) => {
            let data = DataDir::open(dir)?;
            verify(&data, at.progress)?;
            inputs = inputs_of(&data, inputs.models);
        }
        None if is_noted(&plan.data.dir, &known.plan.data.dir) => {}
        None => return Ok(None),
    }
    match plan.data.signal.as_deref().map(Path::new).filter(|_| plan.uses_teacher()) {
        Some(dir) if dir.exists() => {
            inputs.models.signal_hash = Some(Stored::open(dir)?.hash().to_string());
        }
        Some(_) if is_noted(&plan.data.signal, &known.plan.data.signal) => {}
        Some(_) => return Ok(None),
        None => {}
    }
    let Some(name) = plan.live_teacher() else {
        return Ok(Some(inputs));
    };
    let cache = HubOptions { offline: true, ..at.hub.clone() };
    let found = ModelRef::parse(name, Kind::Teacher).and_then(|meant| {
        let meant = meant.at_recorded(inputs.models.teacher_revision.as_deref());
        locate(meant, name, None, What::Model, Where { hub: &cache, progress: &Silent })
    });
    match found {
        Ok(folder) => {
            let Identity { weights, function } = folder.identity()?;
            inputs.models.teacher_hash = Some(weights);
            inputs.models.teacher_function = function;
        }
        Err(_) if !Path::new(name).exists() && is_noted(&plan.teacher, &known.plan.teacher) => {}
        Err(_) => return Ok(None),
    }
    Ok(Some(inputs))
}

/// A path from the root, so that two that mean one place are equal.
fn whole(text: &str) -> PathBuf {
    std::path::absolute(text).unwrap_or_else(|_| text.into())
}

/// Errs where the run has no teacher and the command names one: it was trained without.
fn check_teacher(out: &Path, plan: &Plan) -> Result<()> {
    match (&plan_of(out)?.teacher, &plan.teacher) {
        (None, Some(teacher)) => Err(another(out, "teacher", None, Some(teacher))),
        _ => Ok(()),
    }
}

/// Errs where the command names models or data that are not the finished run's: without a checkpoint
/// nothing tells whether others are the same.
fn check_named(out: &Path, resolved: &Resolved) -> Result<()> {
    let (was, is) = (plan_of(out)?, &resolved.plan);
    for (key, was, is) in [
        ("teacher", was.teacher.as_deref(), is.teacher.as_deref()),
        ("student", Some(was.student.as_str()), Some(is.student.as_str())),
        ("data.dir", was.data.dir.as_deref(), is.data.dir.as_deref()),
    ] {
        let origin = resolved.value(key).map(|value| &value.origin);
        let named = matches!(origin, Some(Origin::Flag(_) | Origin::Set | Origin::Env(_)));
        if named && was.map(whole) != is.map(whole) {
            return Err(another(out, key, was, is));
        }
    }
    Ok(())
}

fn another(out: &Path, key: &str, was: Option<&str>, is: Option<&str>) -> Error {
    Error::usage(format!(
        "{}: the run there is another one ({key}: {} before, {} now); leave the value away to go on with it, or name another \
         folder with --out",
        out.display(),
        was.unwrap_or("none"),
        is.unwrap_or("none")
    ))
}

/// A folder of several runs, which one command goes on with.
pub fn of_several(out: &Path) -> Option<String> {
    if holds_one(out) {
        let command = format!("eslm-kd distill --resume --out {}", quoted(out));
        return Some(format!(
            "it holds the runs of a quickstart; go on with all of them: {command}"
        ));
    }
    out.join("compare.json").is_file().then(|| {
        "it holds a comparison, and the `eslm-kd compare` command that began it goes on with all of it".to_string()
    })
}

/// What the run in `out` came to, whose model stands and whose checkpoints do not; errs where `plan`
/// asks for more than there is.
fn over(out: &Path, plan: &Plan) -> Result<Shown> {
    let shown = show(out)?;
    if let Some(damage) = shown.row.damage {
        return Err(Error::data(damage));
    }
    let was = plan_of(out)?;
    let shape = read_config(&out.join(MODEL_FOLDER).join("config.json"))?;
    let differences = differences(out, &settle(&shape, plan))?;
    let what = match (shown.row.state, differences.is_empty()) {
        (State::Finished, true) => return Ok(shown),
        (State::Finished, false) => differences.join("; "),
        _ => format!("it has done {} of {} steps", count(shown.row.step), count(was.steps)),
    };
    Err(Error::usage(format!(
        "{}: the checkpoints of this run are gone, so it cannot go on ({what}); {}",
        out.display(),
        from_its_weights(out, &was, shown.row.step, plan.steps)
    )))
}

/// Errs where `out` holds a run without its `config.toml`, which alone says what the run is.
pub fn check_config(verb: &str, out: &Path) -> Result<()> {
    let holds_a_run = latest(out)?.is_some() || out.join(MODEL_FOLDER).is_dir();
    if !holds_a_run || out.join(CONFIG_FILE).is_file() {
        return Ok(());
    }
    Err(Error::data(format!(
        "{} is missing, which says what the run there is; restore it, or name the run's file: eslm-kd {verb} CONFIG \
         --resume --out {}",
        out.join(CONFIG_FILE).display(),
        quoted(out)
    )))
}
