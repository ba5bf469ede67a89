//! The body that `pretrain` and `distill` share: a plan becomes a run folder.

use super::{Printer, Resume, RunArgs};
use crate::config::{Level, Plan, Resolved};
use crate::cost;
use crate::error::{Error, Result};
use crate::files::check_folder;
use crate::progress::Progress;
use crate::report::text::{self, Screen, Table, count, flops, quoted, seconds};
use crate::store::Where;
use crate::store::checkpoint;
use crate::store::hub::HubOptions;
use crate::store::sizes::misnamed;
use crate::teacher::Teacher;
use crate::train::pace;
use crate::train::run::{CONFIG_FILE, MODEL_FOLDER, train};
use crate::train::session::Session;
use crate::train::threads::use_everywhere;
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

/// Trains as `resolved` says and prints the summary.
pub fn run(verb: &str, args: &RunArgs, resolved: &Resolved, ui: &Printer) -> Result<()> {
    for note in resolved.notes() {
        ui.note(&format!("note: {note}"));
    }
    let plan = &resolved.plan;
    use_everywhere(plan.machine.threads)?;
    let out = out_folder(verb, args)?;
    let resume = goes_on(&out, args.resume, ui)?;
    if resume && plan.data.dir.is_none() {
        let whole = out.parent().filter(|parent| !parent.as_os_str().is_empty());
        return Err(Error::usage(format!(
            "{}: the run names no data; name it with --data DIR, or, of a quickstart's student, go on with the whole: eslm-kd \
             distill --resume --out {}",
            out.display(),
            quoted(whole.unwrap_or(Path::new(".")))
        )));
    }
    check_folder(&out)?; // before a teacher is fetched
    let hub = HubOptions::from_env(ui.offline());
    let at = Where { hub: &hub, progress: ui };
    let session = match resume {
        true => Session::resume(plan, &out, at)?,
        false => Session::open(plan, at)?,
    };
    let student = &session.student.config;
    let parameters = student.parameters() as u64;
    // A run that goes on was told at its start.
    if !resume && let Some(note) = misnamed(args.config.config.as_deref(), plan, student) {
        ui.note(&format!("note: {note}"));
    }
    say_what_is_coming(&session, ui);
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

/// Whether the run in `out` goes on, or a new one begins. Errs where that is not what was asked for:
/// what is to continue must not begin in silence, and nothing is written over.
fn goes_on(out: &Path, resume: Option<Resume>, ui: &Printer) -> Result<bool> {
    let Some(resume) = resume else { return checkpoint::check_free(out).map(|()| false) };
    if checkpoint::latest(out)?.is_some() {
        return Ok(true);
    }
    if !out.join(CONFIG_FILE).is_file() {
        if resume == Resume::Auto {
            return checkpoint::check_free(out).map(|()| false);
        }
        return Err(Error::usage(format!(
            "nothing to resume in {}: it holds neither {CONFIG_FILE} nor a checkpoint; name the run folder with --out, or \
             write --resume=auto to begin one there",
            out.display()
        )));
    }
    ui.note(&format!("{}: no checkpoint yet: from step 0", out.display()));
    Ok(true)
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
    format!(
        "{}\nrun folder: {run}\nnext: eslm-kd generate {model} --prompt \"...\"",
        table.on(screen)
    )
}

/// `--out`, or `runs/NAME-N` with the lowest free N.
pub fn out_folder(name: &str, args: &RunArgs) -> Result<PathBuf> {
    let place = |n: u32| Path::new("runs").join(format!("{name}-{n}"));
    match (&args.out, args.resume.is_some()) {
        (Some(out), _) => Ok(out.clone()),
        (None, true) => Err(Error::usage("--resume needs --out RUN: the run folder to continue")),
        (None, false) => Ok((1..).map(place).find(|p| !p.exists()).unwrap_or_else(|| place(0))),
    }
}
