//! The quickstart: one student trained three ways on generated [`stories`], compared with nothing
//! to download.
//!
//! Plain pretraining, dense distillation and distillation on selected tokens, of equal tokens and
//! seeds, each a run in the folder of the comparison. Data and teacher are made on first use, in a
//! cache folder that the next one finds.

pub mod stories;

use super::runs::{Metrics, finish, is_finished};
use crate::config::{self, Method, Overrides, Plan, RunFile};
use crate::data::prepare::{PrepareOptions, TRAIN, Validation, prepare};
use crate::data::tokenizer::Tokenizer;
use crate::data::train_tokenizer::TrainOptions;
use crate::error::{Error, Result};
use crate::files::{AtomicDir, check_folder, create_folder};
use crate::progress::Progress;
use crate::store::Where;
use crate::store::checkpoint::check_free;
use crate::store::hub::paths::{cache_base, expanded, set};
use crate::store::weights::read_config;
use crate::train::run::MODEL_FOLDER;
use crate::train::session::Session;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Name of the generated teacher, as `--teacher` takes it.
pub const TEACHER: &str = "quickstart";
/// The run file of the teacher's pretraining.
const TEACHER_RUN: &str = "quickstart-teacher";
/// Stories to train on (about 16 MB, over three times what a student reads) and to validate on.
const STORIES: std::ops::Range<u64> = 0..20_000;
const VALID_STORIES: std::ops::Range<u64> = 1_000_000..1_000_300;
const STORIES_SEED: u64 = 1;
/// Run folders of the students that learn from the teacher.
const DENSE: &str = "dense";
/// The run folder that comes first; by it a quickstart's folder is known.
pub const FIRST: &str = "plain";
const ESLM: &str = "eslm";
const VOCABULARY: usize = 2048;
/// Part of the cache folder's name: a new number when the stories or the way they are prepared
/// change.
const CACHE_VERSION: u32 = 1;

/// One trained model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trained {
    /// What it is, for people.
    pub model: &'static str,
    /// Number of parameters, the tied head counted once.
    pub parameters: u64,
    /// Training tokens seen.
    pub tokens: u64,
    /// Operations executed.
    pub flops: f64,
    /// Seconds of training.
    pub seconds: f64,
    /// Mean cross-entropy of the last validation, in nats.
    pub val_loss: f64,
    /// exp(`val_loss`).
    pub perplexity: f64,
}

/// The whole comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quickstart {
    /// The folder with a run folder for each student.
    pub run: PathBuf,
    /// The model of the last student, which learned from the teacher.
    pub model: PathBuf,
    /// The teacher, then the students in order.
    pub models: Vec<Trained>,
}

/// Trains and measures what is not there yet. `plan` is that of the last student; `out` must be new
/// or empty unless `resume`. On a stop signal the run at hand is saved; the same call with `resume`
/// goes on with the whole.
pub fn quickstart(
    plan: &Plan,
    out: &Path,
    resume: bool,
    cache: &Path,
    around: Where<'_>,
) -> Result<Quickstart> {
    if !resume {
        check_free(out)?;
    }
    check_folder(out)?; // before a teacher is trained
    let models = compared(plan, out, cache, around)?;
    let last = if plan.selects() { ESLM } else { DENSE };
    Ok(Quickstart { run: out.to_path_buf(), model: out.join(last).join(MODEL_FOLDER), models })
}

/// Where the quickstart keeps what the next one can use: `ESLM_KD_CACHE`, or `eslm-kd` in the
/// user's cache folder.
pub fn cache_folder() -> Result<PathBuf> {
    let var = |name: &str| std::env::var(name).ok();
    let base = set("ESLM_KD_CACHE", var)
        .map(|text| expanded(&text, &var))
        .or_else(|| cache_base(&var).map(|cache| cache.join("eslm-kd")));
    let base = base.ok_or_else(|| {
        Error::usage("no place for the quickstart's cache: set ESLM_KD_CACHE to a folder")
    })?;
    Ok(base.join(format!("quickstart-{CACHE_VERSION}")))
}

/// Data, teacher and students, each made or found.
fn compared(plan: &Plan, out: &Path, cache: &Path, around: Where<'_>) -> Result<Vec<Trained>> {
    let data = data_folder(cache, around.progress)?;
    let teacher = cache.join("teacher");
    let run = |model: &str, how: &str, plan: &Plan, folder: &Path| {
        let what = match is_finished(folder) {
            true => format!("{model}: found in {}", folder.display()),
            false => format!("{model}{how}"),
        };
        around.progress.note(&what);
        let session = || Ok(Session::with_data(plan, &data, around)?.called(model));
        finish(folder, session, around.progress)
    };
    run("teacher", ", pretrained once and kept", &teacher_plan(plan)?, &teacher)?;
    let mut models = vec![trained("teacher", &teacher)?];
    create_folder(out)?;
    for (name, model, plan) in students(plan, &teacher.join(MODEL_FOLDER)) {
        let folder = out.join(name);
        run(model, "", &plan, &folder)?;
        models.push(trained(model, &folder)?);
    }
    Ok(models)
}

/// The teacher's plan, on the machine of the student's.
fn teacher_plan(student: &Plan) -> Result<Plan> {
    let file = RunFile::embedded(TEACHER_RUN)
        .ok_or_else(|| Error::internal("the teacher's run file is missing"))?;
    let plan = config::load(Some(&file), &Overrides::default())?.plan;
    Ok(Plan { machine: student.machine.clone(), ..plan })
}

/// Plain, dense and, if the plan selects, selected: equal tokens, equal seeds, one difference at a
/// time.
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
        (FIRST, "student, plain pretraining", plain),
        (DENSE, "student, dense distillation", dense),
        (ESLM, "student, ESLM distillation", eslm),
    ];
    students.truncate(if plan.selects() { 3 } else { 2 });
    students
}

/// The generated stories, tokenised; made on first use.
fn data_folder(cache: &Path, progress: &dyn Progress) -> Result<PathBuf> {
    let data = cache.join("data");
    if data.join(TRAIN).is_file() {
        return Ok(data);
    }
    let scratch = AtomicDir::create(&cache.join("text"))?; // dropped, and so removed, at the end
    let at = |name: &str| scratch.path().join(name);
    stories::write(&at("train.jsonl"), STORIES_SEED, STORIES, progress)?;
    stories::write(&at("valid.jsonl"), STORIES_SEED, VALID_STORIES, progress)?;
    let options = TrainOptions { vocab_size: VOCABULARY, ..TrainOptions::default() };
    let (tokenizer, _) = Tokenizer::train(&[at("train.jsonl")], &options, progress)?;
    tokenizer.save(&at("tokenizer"))?;
    let options = PrepareOptions {
        inputs: vec![at("train.jsonl")],
        tokenizer: at("tokenizer"),
        out: data.clone(),
        text_field: "text".into(),
        validation: Validation::Files(vec![at("valid.jsonl")]),
        end_token: None,
        skip_bad: false,
    };
    prepare(&options, progress)?;
    Ok(data)
}

/// What the finished run in `run` came to.
fn trained(model: &'static str, run: &Path) -> Result<Trained> {
    let config = read_config(&run.join(MODEL_FOLDER).join("config.json"))?;
    let Metrics { curve, tokens, flops, seconds } = Metrics::read(run)?;
    let Some(val_loss) = curve.last().map(|point| point.loss) else {
        return Err(Error::data(format!(
            "{}: never validated; remove the folder and start again",
            run.display()
        )));
    };
    let (parameters, perplexity) = (config.parameters() as u64, val_loss.exp());
    Ok(Trained { model, parameters, tokens: tokens as u64, flops, seconds, val_loss, perplexity })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_students_differ_in_one_thing_each() {
        let file = RunFile::embedded("quickstart").unwrap();
        let plan = config::load(Some(&file), &Overrides::default()).unwrap().plan;
        let students = students(&plan, Path::new("t"));
        let [(_, _, plain), (_, _, dense), (_, _, eslm)] = students.as_slice() else {
            panic!("three students")
        };
        assert!(!plain.uses_teacher() && dense.uses_teacher() && eslm.uses_teacher());
        assert!(!plain.selects() && !dense.selects() && eslm.selects());
        assert!(
            [plain, dense]
                .iter()
                .all(|p| (p.tokens(), p.seed, &p.optim) == (eslm.tokens(), eslm.seed, &eslm.optim))
        );
    }
}
