//! The body that `pretrain` and `distill` share: a plan becomes a run folder.

use super::resume::{Found, of_several};
use super::seats::{seated, shared};
use super::{Printer, RunArgs};
use crate::config::{Level, Plan, Resolved};
use crate::cost;
use crate::error::{Error, Result};
use crate::files::check_folder;
use crate::machine::total_memory;
use crate::progress::Progress;
use crate::report::text::{self, Screen, Table, count, flops, quoted, seconds};
use crate::runs::{Shown, has_diverged};
use crate::store::Where;
use crate::store::hub::HubOptions;
use crate::store::sizes::misnamed;
use crate::teacher::Teacher;
use crate::train::pace;
use crate::train::run::{METRICS_FILE, MODEL_FOLDER, begin_again, train};
use crate::train::session::Session;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Seconds.
const LONG_STEP: f64 = 5.0;

/// What a run prints at its end; one object under `--json`.
#[derive(Debug, Serialize)]
struct RunReport {
    run: PathBuf,
    model: PathBuf,
    steps: u64,
    tokens: u64,
    flops: f64,
    seconds: f64,
    val_loss: Option<f64>,
    perplexity: Option<f64>,
    parameters: u64,
}

impl RunReport {
    /// What the metrics and the model of a finished run say.
    fn of_finished(out: PathBuf, shown: &Shown) -> Result<Self> {
        let missing = || {
            let place = out.join(METRICS_FILE);
            Error::data(format!("{}: no line says what the run came to", place.display()))
        };
        Ok(Self {
            steps: shown.row.step,
            tokens: shown.tokens.ok_or_else(missing)?,
            flops: shown.flops.ok_or_else(missing)?,
            seconds: shown.seconds.ok_or_else(missing)?,
            val_loss: shown.row.val_loss,
            perplexity: shown.row.val_loss.map(f64::exp),
            parameters: shown.parameters.unwrap_or_default(),
            model: out.join(MODEL_FOLDER),
            run: out,
        })
    }
}

/// Trains as `resolved` says and prints the summary.
pub fn run(verb: &str, args: &RunArgs, resolved: &Resolved, ui: &Printer) -> Result<()> {
    let world = ui.world();
    let hub = HubOptions::from_env(ui.offline());
    let at = Where { hub: &hub, progress: ui };
    // One looks, for all of them: the folder that is free is taken next.
    let mut over = None;
    let (out, resume, is_over) = world.from_root(|| {
        let out = out_folder(verb, args)?;
        let resume = match Found::at(&out, args.resume, resolved, at)? {
            Found::Nothing => false,
            Found::Begun => true,
            Found::Over(shown) => {
                over = Some(shown);
                true
            }
        };
        Ok((out, resume, over.is_some()))
    })?;
    if let Some(shown) = over {
        ui.note(&format!("{}: the run is finished, and stays as it is", out.display()));
        let report = RunReport::of_finished(out, &shown)?;
        return ui.result(&report, |screen| human(&report, &resolved.plan, screen));
    }
    if is_over {
        return Ok(());
    }
    let seat = seated(resolved.plan.machine.threads, ui)?;
    let plan = &shared(resolved.plan.clone(), seat, ui);
    if resume && plan.data.dir.is_none() {
        let above = out.parent().filter(|parent| !parent.as_os_str().is_empty());
        let above = above.unwrap_or(Path::new("."));
        let whole = match of_several(above) {
            Some(whole) => format!("; {}: {whole}", above.display()),
            None => String::new(),
        };
        return Err(Error::usage(format!(
            "{}: the run names no data; name it with --data DIR{whole}",
            out.display(),
        )));
    }
    check_folder(&out)?; // before a teacher is fetched
    let session = world.root_first(|| match resume {
        true => Session::resume(plan, &out, at),
        false => Session::open(plan, at),
    })?;
    let session = session.among(world.clone());
    let student = &session.student.config;
    if world.size() > 1 && session.device.is_cpu() {
        let teacher = session.teacher.as_ref().map(Teacher::config);
        let needed = cost::memory_among(student, teacher, &session.plan, world.size());
        let share = total_memory().unwrap_or(u64::MAX) / seat.local_size as u64;
        let fits = cost::check_memory(&needed, share, &session.plan);
        world.together(fits.map_err(|e| {
            e.context(format!("each of {} processes of a machine", seat.local_size))
        }))?;
    }
    let parameters = student.parameters() as u64;
    // A run that goes on was told at its start.
    if !resume && let Some(note) = misnamed(args.config.config.as_deref(), plan, student) {
        ui.note(&format!("note: {note}"));
    }
    // Here, where nothing is left to be refused: beside an error they would only distract.
    for note in resolved.notes() {
        ui.note(&format!("note: {note}"));
    }
    if world.is_root() {
        say_what_is_coming(&session, ui);
    }
    let summary = train(session, &out, resume, ui)?;
    let report = RunReport {
        model: out.join(MODEL_FOLDER),
        run: out,
        steps: summary.step,
        tokens: summary.tokens,
        flops: summary.flops.total(),
        seconds: summary.seconds,
        val_loss: summary.val_loss,
        perplexity: summary.val_loss.map(f64::exp),
        parameters,
    };
    ui.result(&report, |screen| human(&report, plan, screen))
}

/// A step that takes long is announced: until it is over nothing moves.
fn say_what_is_coming(session: &Session, ui: &Printer) {
    let Session { plan, student, teacher, .. } = session;
    let teacher = teacher.as_ref().map(Teacher::config);
    let flops = cost::flops_per_step(&student.config, teacher, plan, Level::default()).total();
    // Far below what a machine takes a second for; a GPU's steps are short.
    if flops < 1e11 || session.device.is_cuda() {
        return;
    }
    let step = flops / pace::speed();
    if step > LONG_STEP {
        ui.note(&format!(
            "a step is {} here, roughly {}: {} roughly {}",
            text::flops(flops as u128),
            seconds(step),
            text::amount(plan.steps, "steps"),
            seconds(step * plan.steps as f64)
        ));
    }
}

fn human(report: &RunReport, plan: &Plan, screen: &Screen) -> String {
    let mut table = Table::new([
        "",
        "parameters",
        "steps",
        "tokens",
        "FLOPs",
        "time",
        "val loss",
        "perplexity",
    ]);
    table.row([
        plan.method.to_string(),
        count(report.parameters),
        count(report.steps),
        count(report.tokens),
        flops(report.flops as u128),
        seconds(report.seconds),
        report.val_loss.map_or_else(|| "-".into(), |loss| format!("{loss:.4}")),
        report.val_loss.map_or_else(|| "-".into(), text::perplexity),
    ]);
    let (run, model) = (report.run.display(), quoted(&report.model));
    let next = match plan.data.dir.is_some() && has_diverged(&report.run) {
        true => format!(
            "warning: its loss ended far above where it began: the training diverged\nnext: {}",
            begin_again(&report.run, plan)
        ),
        false => format!("next: eslm-kd generate {model} --prompt \"...\""),
    };
    format!("{}\nrun folder: {run}\n{next}", table.on(screen))
}

/// `--out`, or `runs/NAME-N` with the lowest free N.
pub fn out_folder(name: &str, args: &RunArgs) -> Result<PathBuf> {
    let place = |n: u32| Path::new("runs").join(format!("{name}-{n}"));
    match (&args.out, args.resume.is_some()) {
        (Some(out), _) => Ok(out.clone()),
        (None, true) => {
            let verb = if name == "quickstart" { "distill" } else { name };
            // A folder that is named in the place of CONFIG is the one that is meant.
            let named = args.config.config.as_deref().map(Path::new).filter(|path| path.is_dir());
            let command = named.map_or_else(String::new, |run| {
                format!("; for this one: eslm-kd {verb} --resume --out {}", quoted(run))
            });
            Err(Error::usage(format!(
                "--resume needs --out RUN: the run folder to continue{command}"
            )))
        }
        (None, false) => Ok((1..).map(place).find(|p| !p.exists()).unwrap_or_else(|| place(0))),
    }
}
