//! A comparison: arms (methods) times seeds on the same data, trained, evaluated and reported.
//!
//! [`arms`] reads what is compared, [`budget`] sets steps, [`runs`] trains one run in a folder of
//! its own (by a [`Crew`] of processes), [`evaluate`] measures it, [`state`] remembers all of that in `compare.json`,
//! [`summary`] brings the finished runs together with [`stats`], [`verdict`] says which arm to use,
//! and [`page`] draws the page with its [`figures`]. [`live`] draws runs that may still be training.
//! [`quickstart`] is a comparison of its own kind.

mod ahead;
#[doc(hidden)]
pub mod arms;
#[doc(hidden)]
pub mod budget;
mod crew;
#[doc(hidden)]
pub mod evaluate;
#[doc(hidden)]
pub mod figures;
#[doc(hidden)]
pub mod live;
#[doc(hidden)]
pub mod page;
pub mod quickstart;
#[doc(hidden)]
pub mod runs;
#[doc(hidden)]
pub mod state;
#[doc(hidden)]
pub mod stats;
#[doc(hidden)]
pub mod summary;
#[cfg(test)]
mod testing;
#[doc(hidden)]
pub mod verdict;

use crate::config::Plan;
use crate::data::prepare::DataDir;
use crate::data::tokens::TokenFile;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{check_folder, children, create_folder, hex, is_bystander, name_of};
use crate::report::text;
use crate::store::Where;
use crate::store::checkpoint::Models;
use crate::store::open_tokens_by;
use crate::store::sizes::misnamed;
use crate::train::session::{Session, Shapes, verify};
use ahead::Ahead;
use arms::Arm;
use budget::{Budget, seconds_per_step, steps_for_flops, steps_for_seconds, with_steps};
use candle_core::Device;
pub use crew::Crew;
use evaluate::{OtherText, Texts};
use runs::Metrics;
use state::{ArmState, DataState, State};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The page inside the folder of a comparison.
pub const REPORT_HTML: &str = "report.html";

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// What is compared.
    pub arms: Vec<Arm>,
    /// Seeds of every arm.
    pub seeds: Vec<u64>,
    /// The folder of the comparison.
    pub out: PathBuf,
    /// What is held equal.
    pub budget: Budget,
    /// Name and place of other text.
    pub also: Vec<(String, PathBuf)>,
    /// Label of the arm that the others are measured against; None finds it.
    pub baseline: Option<String>,
    /// Whether finished runs keep their checkpoints.
    pub keep_checkpoints: bool,
    /// Most tokens of each text that finished runs are evaluated on; None is what the comparison
    /// had before, or all.
    pub eval_tokens: Option<u64>,
}

/// What an arm needs besides its plan, found before anything is trained.
struct Probe {
    /// The plan with its machine half decided, as written otherwise, and what it trains.
    shapes: Shapes,
    models: Models,
    device: Device,
}

impl Probe {
    fn new(arm: &Arm, around: Where<'_>) -> Result<Self> {
        let found = Session::survey(&arm.plan, around).and_then(|survey| {
            let models = survey.models()?;
            Ok(Self { shapes: survey.shapes, models, device: survey.device })
        });
        found.map_err(|e| e.context(format!("arm \"{}\"", arm.label)))
    }
}

/// Trains and evaluates what is not there yet, seed by seed. What is finished stays; what was
/// interrupted goes on.
///
/// On a stop signal the run at hand is saved, and the same call goes on with it.
pub fn compare(asked: &Comparison, crew: &Crew, around: Where<'_>) -> Result<()> {
    compare_all(asked, crew, around).map_err(|e| match e.kind() {
        ErrorKind::Interrupted(_) => {
            let also = "`compare --report-only` reports on the runs that are finished";
            Error::new(e.kind(), format!("{e}; {also}"))
        }
        _ => e,
    })
}

fn compare_all(asked: &Comparison, crew: &Crew, around: Where<'_>) -> Result<()> {
    let out = &asked.out;
    let known = State::read(out)?;
    if known.is_none() {
        check_free(out)?;
    }
    check_folder(out)?; // before data are read
    if asked.budget == Budget::Flops {
        asked.arms.iter().try_for_each(check_forecast)?;
    }
    let eval_tokens =
        asked.eval_tokens.or(known.as_ref().map(|known| known.eval_tokens)).unwrap_or(0);
    let (texts, data) = open_data(asked, eval_tokens, around)?;
    let mut probes = Vec::with_capacity(asked.arms.len());
    for arm in &asked.arms {
        let probe = Probe::new(arm, around)?;
        let student = &probe.shapes.student;
        // Once for a student, and not again where a comparison goes on.
        let is_new = known.is_none() && probes.iter().all(|p: &Probe| p.shapes.student != *student);
        let note = misnamed(Some(arm.config()), &arm.plan, student).filter(|_| is_new);
        if let Some(note) = note {
            around.progress.note(&format!("note: {note}"));
        }
        probes.push(probe);
    }
    let mut state = agree(known, asked, &probes, data)?;
    state.eval_tokens = eval_tokens;
    // It may be an arm of an earlier call.
    let baseline = asked.arms.iter().position(|arm| arm.label == state.baseline);
    for (arm, probe) in asked.arms.iter().zip(&probes) {
        check_runs(&state, arm, probe, asked)?;
    }
    create_folder(out)?;
    state.write(out)?;

    // The baseline first: with a budget of seconds, the others' steps follow from it.
    let mut order: Vec<usize> = (0..asked.arms.len()).collect();
    order.sort_by_key(|i| Some(*i) != baseline);
    let all = asked.seeds.len() * order.len();
    let mut done = 0;
    let flops = probes.iter().map(|probe| probe.shapes.flops()).collect();
    let mut ahead = Ahead::new(flops, asked.seeds.len());
    for &seed in &asked.seeds {
        for &i in &order {
            crate::interrupt::check()?;
            done += 1;
            let (arm, probe) = (&asked.arms[i], &probes[i]);
            let steps =
                steps_of(&mut state, asked, &probes, (i, baseline.unwrap_or(i)), crew, around)?;
            let plan = Plan { seed, ..with_steps(&probe.shapes.plan, steps) };
            let folder = runs::folder(out, &arm.label, seed);
            let stands = if runs::is_finished(&folder) { ", found" } else { "" };
            let left = ahead.left();
            let label = format!("{}, seed {seed}", arm.label);
            around.progress.note(&format!("run {done} of {all}: {label}{stands}{left}"));
            let started = Instant::now();
            let is_new = !runs::is_finished(&folder);
            let telling = ahead.telling(i, around.progress);
            let told = Where { progress: &telling, ..around };
            runs::run(&plan, &folder, &label, asked.keep_checkpoints, crew, told)?;
            texts.evaluate(&folder, &plan, &probe.device, crew, around.progress)?;
            ahead.one_done(i, is_new.then(|| started.elapsed().as_secs_f64()));
        }
    }
    Ok(())
}

/// Errs if the arm's FLOPs are known only once it has run.
fn check_forecast(arm: &Arm) -> Result<()> {
    if arm.plan.draws_by_variance() {
        return Err(Error::usage(format!(
            "arm \"{}\": machine.rho = \"auto\" spends as many FLOPs as the text asks for, so that --budget flops cannot set \
             its steps; give it a share (+machine.rho=0.5), or steps of its own under --budget tokens (+steps=N)",
            arm.label
        )));
    }
    Ok(())
}

/// Errs unless `out` is new or empty.
fn check_free(out: &Path) -> Result<()> {
    if children(out)?.iter().any(|path| !is_bystander(&name_of(path))) {
        return Err(Error::usage(format!(
            "--out {}: the folder is not empty and holds no comparison ({}); choose another",
            out.display(),
            state::FILE
        )));
    }
    Ok(())
}

/// The data folder that all arms share, and the other texts in its tokens.
fn open_data(
    asked: &Comparison,
    eval_tokens: u64,
    around: Where<'_>,
) -> Result<(Texts, DataState)> {
    let dir = asked.arms.first().and_then(|a| a.plan.data.dir.clone()).ok_or_else(|| {
        Error::usage(
            "the arms name no data: add --data DIR, a folder made by `eslm-kd prepare` with a validation split",
        )
    })?;
    let data = DataDir::open(Path::new(&dir))?;
    verify(&data, around.progress)?;
    let valid = data.valid.ok_or_else(|| {
        Error::usage(format!(
            "{dir}: the folder has no validation split, and a comparison needs one; prepare it again with --valid or \
             --valid-fraction"
        ))
    })?;
    let mut also = Vec::with_capacity(asked.also.len());
    for (name, place) in &asked.also {
        let tokens = open_tokens_by(place, Ok(&data.tokenizer), around.progress)
            .map_err(|e| e.context(format!("--also {name}")))?;
        if tokens.len() < 2 {
            return Err(Error::data(format!(
                "--also {name}: nothing to predict in {}; name a longer text",
                text::amount(tokens.len(), "tokens")
            )));
        }
        also.push(OtherText { name: name.clone(), tokens: tokens.bounded(eval_tokens)? });
    }
    let hash = |file: &TokenFile| hex(&file.header().content_hash);
    let state = DataState {
        dir,
        train_hash: hash(&data.train),
        valid_hash: hash(&valid),
        train_tokens: data.train.len(),
        valid_tokens: if eval_tokens == 0 { valid.len() } else { valid.len().min(eval_tokens) },
        vocabulary: data.train.header().vocab_size,
    };
    Ok((Texts::new(&data.train, valid.bounded(eval_tokens)?, also)?, state))
}

/// The comparison that stands in the folder, extended by what is asked for; errs where the two
/// contradict each other.
fn agree(
    known: Option<State>,
    asked: &Comparison,
    probes: &[Probe],
    data: DataState,
) -> Result<State> {
    let refuse = |what: String| {
        Err(Error::usage(format!("--out {}: {what}; choose another --out", asked.out.display())))
    };
    let was_there = known.is_some();
    let mut state = known.unwrap_or_else(|| State::new(asked.budget, data.clone()));
    let hashes = |d: &DataState| (d.train_hash.clone(), d.valid_hash.clone());
    if hashes(&state.data) != hashes(&data) {
        return refuse(format!("the comparison there read other data ({})", state.data.dir));
    }
    if let Some(asked) = asked.eval_tokens.filter(|asked| *asked != state.eval_tokens && was_there)
    {
        return refuse(format!(
            "the comparison there has --eval-tokens {}, this one {asked} (0 is all)",
            state.eval_tokens
        ));
    }
    if state.budget != asked.budget {
        let (was, is) = (state.budget.name(), asked.budget.name());
        return refuse(format!("the comparison there has --budget {was}, this one {is}"));
    }
    state.data = data;
    for (arm, probe) in asked.arms.iter().zip(probes) {
        let now = ArmState {
            label: arm.label.clone(),
            spec: arm.spec.clone(),
            config: arm.plan.to_toml()?,
            models: probe.models.clone(),
            parameters: probe.shapes.student.parameters() as u64,
            steps: None,
            seconds_per_step: None,
        };
        let started = asked.out.join("runs").join(arms::folder_name(&arm.label)).exists();
        let Some(old) = state.find(&arm.label) else {
            state.arms.push(now);
            continue;
        };
        if !started {
            *old = now;
            continue;
        }
        // Models are compared by their content where that is known; names may change.
        let models = [
            ("teacher", old.models.teacher(), now.models.teacher()),
            ("student", old.models.student(), now.models.student()),
        ];
        let known: Vec<&str> = models
            .iter()
            .filter_map(|(key, was, is)| (was.is_some() && is.is_some()).then_some(*key))
            .collect();
        let mut differences = arm.plan.differences_beside(&old.arm()?.plan.mathematics(), &known);
        for (key, was, is) in models {
            let (Some(was), Some(is)) = (was, is) else { continue };
            differences.extend(is.differences(&was).iter().map(|found| format!("{key}'s {found}")));
        }
        if !differences.is_empty() {
            return Err(Error::usage(format!(
                "arm \"{}\": the comparison in {} has another arm of that name ({}); give this one another label, or \
                 choose another --out",
                arm.label,
                asked.out.display(),
                differences.join("; ")
            )));
        }
        *old = ArmState { steps: old.steps, seconds_per_step: old.seconds_per_step, ..now };
    }
    let old = state.baseline.clone();
    state.find_baseline(asked.baseline.as_deref())?;
    if asked.budget != Budget::Tokens {
        let (now, budget) = (&state.baseline, asked.budget.name());
        let theirs = format!("the {budget} of the comparison there are those of \"{old}\"");
        if was_there && old != *now {
            return refuse(format!("{theirs}, now of \"{now}\""));
        }
        if asked.arms.iter().all(|arm| arm.label != *now) {
            return refuse(format!("{theirs}, which is not among the arms; name it, too"));
        }
    }
    state.seeds.extend(&asked.seeds);
    state.seeds.sort_unstable();
    state.seeds.dedup();
    for (name, _) in &asked.also {
        if !state.also.contains(name) {
            state.also.push(name.clone());
        }
    }
    Ok(state)
}

/// Errs if a finished run of the arm is another one than it would be now.
fn check_runs(state: &State, arm: &Arm, probe: &Probe, asked: &Comparison) -> Result<()> {
    let stored = state.arms.iter().find(|a| a.label == arm.label).and_then(|a| a.steps);
    let Some(steps) = stored.or((asked.budget == Budget::Tokens).then_some(arm.plan.steps)) else {
        return Ok(());
    };
    for &seed in &asked.seeds {
        let folder = runs::folder(&asked.out, &arm.label, seed);
        if runs::is_finished(&folder) {
            runs::check_same(&folder, &Plan { seed, ..with_steps(&probe.shapes.plan, steps) })?;
        }
    }
    Ok(())
}

/// Mean seconds of a step over a whole run of `plan`, which leaves nothing behind: how few rows
/// `rho = "auto"` does with depends on what the student has learnt, which no sample of steps can
/// tell.
fn seconds_of_a_run(
    plan: &Plan,
    out: &Path,
    label: &str,
    crew: &Crew,
    around: Where<'_>,
) -> Result<f64> {
    let pilot = out.join("pilot");
    let folder = pilot.join(arms::folder_name(label));
    runs::run(plan, &folder, &format!("{label}, measured"), false, crew, around)?;
    let seconds = Metrics::read(&folder)?.seconds;
    std::fs::remove_dir_all(&pilot).map_err(|e| Error::io("remove", &pilot, e))?;
    Ok(seconds / plan.steps as f64)
}

/// The arm's steps under the budget; decided once and kept in `compare.json`.
fn steps_of(
    state: &mut State,
    asked: &Comparison,
    probes: &[Probe],
    (i, baseline): (usize, usize),
    crew: &Crew,
    around: Where<'_>,
) -> Result<u64> {
    let (arm, probe) = (&asked.arms[i], &probes[i]);
    let label = &arm.label;
    if let Some(steps) = state.find(label).and_then(|a| a.steps) {
        return Ok(steps);
    }
    let base = &asked.arms[baseline];
    let mut measured = None;
    let steps = if *label == base.label {
        base.plan.steps
    } else {
        match asked.budget {
            Budget::Tokens => arm.plan.steps,
            Budget::Flops => steps_for_flops(probes[baseline].shapes.flops(), &probe.shapes),
            Budget::Seconds => {
                let first = asked.seeds.first().copied().unwrap_or_default();
                let target = Metrics::read(&runs::folder(&asked.out, &base.label, first))?.seconds;
                around.progress.note(&format!("{label}: measuring seconds per step"));
                let per_step = if arm.plan.draws_by_variance() {
                    let steps = base.plan.steps;
                    seconds_of_a_run(
                        &with_steps(&probe.shapes.plan, steps),
                        &asked.out,
                        label,
                        crew,
                        around,
                    )?
                } else {
                    seconds_per_step(Session::open(&arm.plan, around)?)?
                };
                measured = Some(per_step);
                steps_for_seconds(target, per_step)
            }
        }
    };
    if asked.budget != Budget::Tokens {
        let how = measured.map_or_else(String::new, |s| format!(" at {s:.4} s each"));
        around.progress.note(&format!(
            "{label}: {}{how}, for the {} of {}",
            text::amount(steps, "steps"),
            asked.budget.name(),
            base.label
        ));
    }
    if let Some(known) = state.find(label) {
        (known.steps, known.seconds_per_step) = (Some(steps), measured);
    }
    state.write(&asked.out)?;
    Ok(steps)
}
