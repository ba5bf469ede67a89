//! `distill` without arguments: everything is generated, trained and compared here, with nothing to download.
//!
//! The corpus, its tokenizer and the teacher go to a cache folder and are reused; the three students of equal tokens go
//! to the run folder: plain pretraining, dense distillation, distillation on selected tokens.

use super::train::out_folder;
use super::{Printer, RunArgs};
use crate::config::{self, Method, Overrides, Plan, RunFile};
use crate::data::corpus;
use crate::data::prepare::{PrepareOptions, TRAIN, Validation, prepare};
use crate::data::tokenizer::{Tokenizer, TrainOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::files::AtomicDir;
use crate::progress::Progress;
use crate::report::text::{Table, count, flops, seconds};
use crate::store::checkpoint::check_free;
use crate::store::hub::HubOptions;
use crate::store::weights::read_config;
use crate::train::events::each_metric;
use crate::train::run::{METRICS_FILE, MODEL_FOLDER, train};
use crate::train::session::{Session, Surroundings};
use crate::train::threads::use_everywhere;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The run file of the teacher's pretraining.
const TEACHER_RUN: &str = "quickstart-teacher";
/// Name of the generated teacher, as `--teacher` takes it.
pub const TEACHER: &str = "quickstart";
/// Stories to train on (about 16 MB, over three times what a student reads) and to validate on.
const STORIES: std::ops::Range<u64> = 0..20_000;
const VALID_STORIES: std::ops::Range<u64> = 1_000_000..1_000_300;
const CORPUS_SEED: u64 = 1;
/// Run folders of the students that learn from the teacher.
const DENSE: &str = "dense";
const ESLM: &str = "eslm";
const VOCABULARY: usize = 2048;
/// Part of the cache folder's name: a new number when the corpus or the way it is prepared changes.
const CACHE_VERSION: u32 = 1;

/// One line of the closing table.
#[derive(Debug, Serialize)]
struct Line {
    model: &'static str,
    parameters: u64,
    tokens: u64,
    flops: f64,
    seconds: f64,
    val_loss: f64,
    perplexity: f64,
}

/// What the quickstart prints; one object under `--json`.
#[derive(Debug, Serialize)]
struct Report {
    run: PathBuf,
    model: PathBuf,
    models: Vec<Line>,
}

/// Runs the whole of it.
pub fn run(args: &RunArgs, plan: &Plan, ui: &Printer) -> Result<()> {
    use_everywhere(plan.machine.threads)?;
    let out = out_folder("quickstart", args)?;
    if !args.resume {
        check_free(&out)?;
    }
    let hub = HubOptions::from_env(ui.offline())?;
    let around = Surroundings { hub: &hub, progress: ui };
    let models = compared(plan, &out, args.resume, around, ui).map_err(|e| match e.kind() {
        // A run inside names its own folder; what continues the whole is this verb.
        ErrorKind::Interrupted(_) => Error::new(
            e.kind(),
            format!("stopped, and all state saved; continue with: eslm-kd distill --resume --out {}", out.display()),
        ),
        _ => e,
    })?;
    let last = if plan.selects() { ESLM } else { DENSE };
    let report = Report { model: out.join(last).join(MODEL_FOLDER), run: out, models };
    ui.result(&report, || human(&report))
}

/// Data, teacher and students, each made or found; a line for each model.
fn compared(plan: &Plan, out: &Path, resume: bool, around: Surroundings<'_>, ui: &Printer) -> Result<Vec<Line>> {
    let cache = cache_folder()?;
    let data = data_folder(&cache, ui)?;
    let teacher = teacher_folder(&cache, &data, plan, around, ui)?;
    let mut models = vec![line("teacher", &teacher)?];
    for (folder, model, plan) in students(plan, &teacher.join(MODEL_FOLDER)) {
        let folder = out.join(folder);
        if resume && is_finished(&folder) {
            ui.note(&format!("{model}: found in {}", folder.display()));
        } else {
            ui.note(&format!("{model}:"));
            train(Session::with_data(&plan, &data, around)?, &folder, resume, ui)?;
        }
        models.push(line(model, &folder)?);
    }
    Ok(models)
}

/// Plain, dense and, if the plan selects, selected: equal tokens, equal seeds, one difference at a time.
fn students(plan: &Plan, teacher: &Path) -> Vec<(&'static str, &'static str, Plan)> {
    let mut eslm = plan.clone();
    eslm.teacher = Some(teacher.display().to_string());
    let mut dense = eslm.clone();
    dense.method = Method::Clm;
    let mut plain = dense.clone();
    plain.teacher = None;
    plain.objective.lambda = 0.0;
    plain.objective.lambda_end = None;
    let mut students = vec![
        ("plain", "student, plain pretraining", plain),
        (DENSE, "student, dense distillation", dense),
        (ESLM, "student, ESLM distillation", eslm),
    ];
    students.truncate(if plan.selects() { 3 } else { 2 });
    students
}

/// Where the quickstart keeps what the next one can use: `ESLM_KD_CACHE`, or `eslm-kd` in the user's cache folder.
fn cache_folder() -> Result<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = var("ESLM_KD_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|c| c.join("eslm-kd")))
        .or_else(|| var("HOME").map(|h| h.join(".cache/eslm-kd")));
    let base =
        base.ok_or_else(|| Error::usage("no place for the quickstart's cache: set ESLM_KD_CACHE to a folder"))?;
    Ok(base.join(format!("quickstart-{CACHE_VERSION}")))
}

/// The generated corpus, tokenised; made on first use.
fn data_folder(cache: &Path, ui: &Printer) -> Result<PathBuf> {
    let data = cache.join("data");
    if data.join(TRAIN).is_file() {
        return Ok(data);
    }
    let scratch = AtomicDir::create(&cache.join("text"))?; // dropped, and so removed, at the end
    let at = |name: &str| scratch.path().join(name);
    corpus::write(&at("train.jsonl"), CORPUS_SEED, STORIES, ui)?;
    corpus::write(&at("valid.jsonl"), CORPUS_SEED, VALID_STORIES, ui)?;
    let options = TrainOptions { vocab_size: VOCABULARY, ..TrainOptions::default() };
    let (tokenizer, _) = Tokenizer::train(&[at("train.jsonl")], &options, ui)?;
    tokenizer.save(&at("tokenizer"))?;
    let options = PrepareOptions {
        inputs: vec![at("train.jsonl")],
        tokenizer: at("tokenizer"),
        out: data.clone(),
        text_field: "text".into(),
        validation: Validation::Files(vec![at("valid.jsonl")]),
    };
    prepare(&options, ui)?;
    Ok(data)
}

/// The run folder of the teacher; pretrained on first use, and continued where it was interrupted.
fn teacher_folder(
    cache: &Path,
    data: &Path,
    student: &Plan,
    around: Surroundings<'_>,
    ui: &Printer,
) -> Result<PathBuf> {
    let folder = cache.join("teacher");
    if is_finished(&folder) {
        ui.note(&format!("teacher: found in {}", folder.display()));
        return Ok(folder);
    }
    let file = RunFile::embedded(TEACHER_RUN).ok_or_else(|| Error::internal("the teacher's run file is missing"))?;
    let mut plan = config::load(Some(&file), &Overrides::default())?.plan;
    plan.machine = student.machine.clone();
    ui.note("teacher, pretrained once and kept:");
    train(Session::with_data(&plan, data, around)?, &folder, true, ui)?;
    Ok(folder)
}

/// The exported model is the last thing that a run writes.
fn is_finished(run: &Path) -> bool {
    run.join(MODEL_FOLDER).is_dir()
}

/// The totals of a finished run, from its metrics.
fn line(model: &'static str, run: &Path) -> Result<Line> {
    let config = read_config(&run.join(MODEL_FOLDER).join("config.json"))?;
    let path = run.join(METRICS_FILE);
    let mut totals = [("tokens", None), ("flops", None), ("seconds", None), ("val_loss", None)];
    each_metric(&path, |line| {
        for (key, last) in &mut totals {
            *last = line[*key].as_f64().or(*last);
        }
    })?;
    let missing = || Error::data(format!("{}: no finished run; remove the folder and start again", path.display()));
    let [tokens, flops, seconds, val_loss] = totals.map(|(_, last)| last.ok_or_else(missing));
    let val_loss = val_loss?;
    Ok(Line {
        model,
        parameters: config.parameters() as u64,
        tokens: tokens? as u64,
        flops: flops?,
        seconds: seconds?,
        val_loss,
        perplexity: val_loss.exp(),
    })
}

fn human(report: &Report) -> String {
    let mut table =
        Table::new(["", "parameters", "tokens", "FLOPs", "time", "validation loss", "validation perplexity"]);
    for line in &report.models {
        table.row([
            line.model.to_string(),
            count(line.parameters),
            count(line.tokens),
            flops(line.flops as u128),
            seconds(line.seconds),
            format!("{:.4}", line.val_loss),
            format!("{:.3}", line.perplexity),
        ]);
    }
    let (run, model) = (report.run.display(), report.model.display());
    format!("{table}\nrun folder: {run}\nnext: eslm-kd generate {model} --prompt \"One morning\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_students_differ_in_one_thing_each() {
        let file = RunFile::embedded("quickstart").unwrap();
        let plan = config::load(Some(&file), &Overrides::default()).unwrap().plan;
        let students = students(&plan, Path::new("t"));
        let [(_, _, plain), (_, _, dense), (_, _, eslm)] = students.as_slice() else { panic!("three students") };
        assert!(!plain.uses_teacher() && dense.uses_teacher() && eslm.uses_teacher());
        assert!(!plain.selects() && !dense.selects() && eslm.selects());
        assert!(
            [plain, dense].iter().all(|p| (p.tokens(), p.seed, &p.optim) == (eslm.tokens(), eslm.seed, &eslm.optim))
        );
    }
}
