//! The quickstart: one student trained several ways on a little generated text ([`stories`]), with a
//! teacher that has read much of it; nothing to download.
//!
//! Plain pretraining, dense distillation, and distillation on tokens drawn at random and on selected
//! ones, of equal tokens and seeds, each a run in the folder of the comparison. What the teacher says
//! of the students' text is written once, beside them. Data and teacher are made on first use, in a
//! cache folder that the next one finds.

pub mod stories;
mod told;
mod whole;

use super::crew::Crew;
use super::runs::{Metrics, check_same, is_finished};
use crate::config::{self, DataPlan, Method, Overrides, Plan, RunFile, Score};
use crate::data::prepare::{PrepareOptions, TRAIN, Validation, prepare};
use crate::data::tokenizer::Tokenizer;
use crate::data::train_tokenizer::TrainOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{AtomicDir, check_folder, create_folder, write_atomic};
use crate::interrupt::stopped_by;
use crate::progress::{Progress, Silent};
use crate::report::text;
use crate::store::Where;
use crate::store::checkpoint::{check_free, list};
use crate::store::hub::paths::{cache_base, expanded, set};
use crate::store::weights::read_config;
use crate::train::pace::Pace;
use crate::train::run::MODEL_FOLDER;
use crate::train::session::{Session, Shapes, device};
use serde::Serialize;
use std::path::{Path, PathBuf};
use told::Told;
use whole::Whole;

/// Name of the generated teacher, as `--teacher` takes it.
pub const TEACHER: &str = "quickstart";
/// The run file of the teacher's pretraining.
const TEACHER_RUN: &str = "quickstart-teacher";
/// Stories that the teacher learns from (about 5 MB, over twice what it reads), those that the
/// students do (35,000 tokens, which they read ten times), and those to validate on.
const STORIES: std::ops::Range<u64> = 0..6_000;
const FEW_STORIES: std::ops::Range<u64> = 500_000..500_180;
const VALID_STORIES: std::ops::Range<u64> = 1_000_000..1_000_120;
const STORIES_SEED: u64 = 1;
/// Run folders of the students that learn from the teacher.
const DENSE: &str = "dense";
const RANDOM: &str = "random";
/// The run folder that comes first.
const FIRST: &str = "plain";
const ESLM: &str = "eslm";
/// The settings of the whole, in its folder, which is known by it.
pub const SETTINGS: &str = "quickstart.toml";
/// Most tokens of the vocabulary. The stories have no more than the teacher's preset says.
const VOCABULARY: usize = 2048;
/// Part of the cache folder's name: a new number when the stories or the way they are prepared
/// change.
const CACHE_VERSION: u32 = 2;

/// Whether a run of `plan` is the quickstart: its teacher, and no data of one's own.
pub fn is_quickstart(plan: &Plan) -> bool {
    plan.teacher.as_deref() == Some(TEACHER) && plan.data.dir.is_none()
}

/// Whether `out` holds a quickstart whose teacher was there.
pub fn holds_one(out: &Path) -> bool {
    out.join(SETTINGS).is_file()
}

/// One trained model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trained {
    /// What it is, in a word.
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
    /// The teacher, if it is kept still, then the students in order.
    pub models: Vec<Trained>,
}

impl Quickstart {
    /// What the table says, in a sentence for distillation and one for selection.
    pub fn findings(&self) -> Vec<String> {
        let named = |name: &str| self.models.iter().find(|model| model.model == name);
        let Some((plain, dense)) = named(FIRST).zip(named(DENSE)) else { return Vec::new() };
        let than = |a: f64, b: f64| {
            let word = if a < b { "lower" } else { "higher" };
            format!("{:.3} {word}", (a - b).abs())
        };
        let mut said = vec![format!(
            "Distillation: from the teacher the student's loss is {} than alone, on the same text.",
            than(dense.val_loss, plain.val_loss)
        )];
        if let Some((random, eslm)) = named(RANDOM).zip(named("ESLM")) {
            if eslm.flops == dense.flops {
                said.push("Selection: no token was dropped in so few steps.".into());
                return said;
            }
            let share = 100.0 * (eslm.flops / dense.flops - 1.0);
            let cost = match share.round() {
                0.0 => "about as many FLOPs".into(),
                share if share < 0.0 => format!("{:.0} % fewer FLOPs", -share),
                share => format!("{share:.0} % more FLOPs"),
            };
            said.push(format!(
                "Selection: on the tokens that ESLM keeps it is {} than on as many random ones, and {} than on every token, \
                 for {cost}; with one seed that may be chance.",
                than(eslm.val_loss, random.val_loss),
                than(eslm.val_loss, dense.val_loss)
            ));
        }
        said
    }
}

/// Trains and measures what is not there yet. `plan` is that of the last student; `out` must be new
/// or empty unless `resume`. On a stop signal the run at hand is saved; the same call with `resume`
/// goes on with the whole.
pub fn quickstart(
    plan: &Plan,
    out: &Path,
    resume: bool,
    cache: &Path,
    crew: &Crew,
    around: Where<'_>,
) -> Result<Quickstart> {
    if !resume {
        check_free(out)?;
    }
    check_folder(out)?; // before a teacher is trained
    let data = [cache.join("teacher-data"), cache.join("data")];
    let parts = parts(plan, out, cache, data.each_ref().map(PathBuf::as_path))?;
    let models = compared(plan, out, &parts, crew, around).map_err(|e| match e.kind() {
        ErrorKind::Interrupted(signal) => stopped(signal, &parts).unwrap_or(e),
        _ => e,
    })?;
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

/// The teacher's run that an earlier quickstart kept, if it is finished.
pub fn trained_teacher() -> Option<PathBuf> {
    let run = cache_folder().ok()?.join("teacher");
    is_finished(&run).then_some(run)
}

/// One of the runs: name of its folder, what it is, the data that it reads, its plan.
struct Part<'a> {
    name: &'static str,
    model: &'static str,
    data: &'a Path,
    folder: PathBuf,
    plan: Plan,
    /// What it learns from, if that is on disk.
    told: Option<Told>,
}

impl Part<'_> {
    /// One word for tables and programs: `teacher`, `plain`, `dense`, `random`, `ESLM`.
    fn word(&self) -> &'static str {
        self.model.split(' ').next().unwrap_or(self.model)
    }
}

/// The runs, the teacher first.
fn parts<'a>(plan: &Plan, out: &Path, cache: &Path, data: [&'a Path; 2]) -> Result<Vec<Part<'a>>> {
    let [much, little] = data;
    let folder = cache.join("teacher");
    let told = Told::of(plan, out);
    let dir = told.as_ref().map(|told| told.dir.as_path());
    let students = students(plan, &folder.join(MODEL_FOLDER), dir)?;
    let plan = teacher_plan(plan)?;
    let model = "teacher";
    let mut parts = vec![Part { name: TEACHER, model, data: much, folder, plan, told: None }];
    parts.extend(students.into_iter().map(|(name, model, plan)| Part {
        name,
        model,
        data: little,
        folder: out.join(name),
        told: told.clone().filter(|_| plan.data.signal.is_some()),
        plan,
    }));
    Ok(parts)
}

/// Data, teacher and students, each made or found.
fn compared(
    plan_of_all: &Plan,
    out: &Path,
    parts: &[Part<'_>],
    crew: &Crew,
    around: Where<'_>,
) -> Result<Vec<Trained>> {
    // What stands must be of this plan; the teacher is shared by all.
    let settings = out.join(SETTINGS);
    if settings.is_file() {
        check_same(&settings, plan_of_all)?;
    }
    for part in parts.iter().filter(|part| part.name != TEACHER && is_finished(&part.folder)) {
        check_same(&part.folder, &part.plan)?;
    }
    // A finished whole needs no data, and no teacher.
    let over = parts[1..].iter().all(|part| is_finished(&part.folder));
    let gone = over && !is_finished(&parts[0].folder);
    if !over {
        make_data(parts[0].data, parts[1].data, around.progress).map_err(|e| match e.kind() {
            ErrorKind::Io => {
                e.context("the quickstart's cache (ESLM_KD_CACHE names another folder)")
            }
            _ => e,
        })?;
    }
    let teacher = parts[0].folder.join(MODEL_FOLDER);
    let shapes = forecast_of_all(plan_of_all, around)?;
    let (parts, shapes) = (&parts[usize::from(gone)..], &shapes[usize::from(gone)..]);
    let done = parts.iter().map(steps_done).collect::<Result<Vec<u64>>>()?;
    let forecast: Vec<f64> = (shapes.iter().zip(&done))
        .map(|((_, shapes), done)| seconds_left(shapes, *done))
        .collect::<Result<_>>()?;
    let all: f64 = forecast.iter().sum();
    let done: u64 = done.iter().sum();
    if all > 0.0 {
        let what = if done == 0 { "in all" } else { "left" };
        around.progress.note(&format!("about {} {what}", text::seconds(all)));
    }
    let steps = (parts.iter().map(|part| part.plan.steps).sum(), done);
    let whole = Whole::start(around.progress, "quickstart", steps, forecast);
    let around = Where { progress: &whole, ..around };
    let mut models = Vec::with_capacity(parts.len());
    for (i, part) in parts.iter().enumerate() {
        let Part { name, model, data, folder, plan, told } = part;
        if *name == FIRST {
            create_folder(out)?;
            note_settings(plan_of_all, &out.join(SETTINGS))?;
        }
        whole.begin(i);
        around.progress.note(&match (is_finished(folder), *name == TEACHER) {
            (true, true) => format!("{model}: found in {}", folder.display()),
            (true, false) => format!("student, {model}: found in {}", folder.display()),
            (false, true) => format!("{model}, pretrained once and kept:"),
            (false, false) => format!("student, {model}:"),
        });
        if !is_finished(folder) {
            if let Some(told) = told {
                told.write(&teacher, data, plan, around)?;
            }
            crew.train(plan, Some(data), folder, None, around)?;
        }
        models.push(trained(part.word(), folder)?);
    }
    Ok(models)
}

/// Writes the settings by which the whole goes on, once.
fn note_settings(plan: &Plan, path: &Path) -> Result<()> {
    if path.is_file() {
        return Ok(());
    }
    let text = plan.to_toml()?;
    write_atomic(path, |w| w.write_all(text.as_bytes()).map_err(|e| Error::io("write", path, e)))
}

/// Where the whole stands that a signal stopped, whatever it was at.
fn stopped(signal: i32, parts: &[Part<'_>]) -> Result<Error> {
    let mut said = stopped_by(signal);
    if let Some(part) = parts.iter().find(|part| !is_finished(&part.folder)) {
        let step = text::count(steps_done(part)?);
        said +=
            &format!(" at step {step} of {} of '{}'", text::count(part.plan.steps), part.word());
        if let Some((_, saved)) = list(&part.folder)?.last() {
            said += &format!(", saved in {}", saved.display());
        }
    }
    Ok(Error::new(ErrorKind::Interrupted(signal), said))
}

/// Steps of a run that need not be made again.
fn steps_done(part: &Part) -> Result<u64> {
    if is_finished(&part.folder) {
        return Ok(part.plan.steps);
    }
    Ok(list(&part.folder)?.last().map_or(0, |(step, _)| *step))
}

/// What the quickstart of `plan` trains, the teacher first: what each is, and its shapes.
pub fn forecast_of_all(plan: &Plan, around: Where<'_>) -> Result<Vec<(&'static str, Shapes)>> {
    let teacher = shapes(&teacher_plan(plan)?, around)?;
    let vocabulary = teacher.student.vocab_size;
    let mut all = vec![("teacher", teacher)];
    let told = Told::of(plan, Path::new(TEACHER));
    let told = told.as_ref().map(|told| told.dir.as_path());
    for (_, model, plan) in students(plan, Path::new(TEACHER), told)? {
        let mut run = shapes(&plan, around)?;
        // The one that learns alone has the vocabulary of the same stories.
        run.student.vocab_size = vocabulary;
        all.push((model, run));
    }
    Ok(all)
}

/// The shapes of one of the runs.
fn shapes(plan: &Plan, around: Where<'_>) -> Result<Shapes> {
    if plan.data.signal.is_some() {
        // It may not be there yet. The student's shape does not depend on it.
        let data = DataPlan { signal: None, ..plan.data.clone() };
        let mut run = Session::shapes(&Plan { data, ..plan.clone() }, around)?;
        run.plan.data.signal = plan.data.signal.clone();
        return Ok(run);
    }
    // The teacher may not be there yet; its preset has its shape.
    let teacher = plan.teacher.as_ref().map(|_| TEACHER.to_string());
    Session::shapes(&Plan { teacher, ..plan.clone() }, around)
}

/// Seconds that a run takes on this machine after `done` of its steps: a step is timed.
fn seconds_left(shapes: &Shapes, done: u64) -> Result<f64> {
    if done >= shapes.plan.steps {
        return Ok(0.0);
    }
    let device = device(shapes.plan.machine.device)?;
    let pace = Pace::measure(shapes, &device, u64::MAX)?;
    Ok(pace.map_or(0.0, |pace| pace.seconds_per_step * (shapes.plan.steps - done) as f64))
}

/// The teacher's plan, on the machine of the student's.
fn teacher_plan(student: &Plan) -> Result<Plan> {
    let file = RunFile::embedded(TEACHER_RUN)
        .ok_or_else(|| Error::internal("the teacher's run file is missing"))?;
    let plan = config::load(Some(&file), &Overrides::default())?.plan;
    Ok(Plan { machine: student.machine.clone(), ..plan })
}

/// Plain, dense and, if the plan selects, at random and selected: equal tokens, equal seeds, one
/// difference at a time. Those that are taught learn from the folder `teacher`, or from what it said,
/// in the folder `told`.
fn students(
    plan: &Plan,
    teacher: &Path,
    told: Option<&Path>,
) -> Result<Vec<(&'static str, &'static str, Plan)>> {
    let mut eslm = plan.clone();
    eslm.data.signal = told.map(|told| told.display().to_string());
    eslm.teacher = told.is_none().then(|| teacher.display().to_string());
    let mut random = eslm.clone();
    random.select.score = Score::Random;
    // As its own folder has it, by which it goes on alone.
    let dense = Plan { method: Method::Clm, ..eslm.clone() }.as_stored()?;
    let mut plain = dense.clone();
    (plain.teacher, plain.data.signal) = (None, None);
    plain.objective.lambda = 0.0;
    plain.objective.lambda_end = None;
    let mut students = vec![
        (FIRST, "plain pretraining", plain),
        (DENSE, "dense distillation", dense),
        (RANDOM, "random distillation", random),
        (ESLM, "ESLM distillation", eslm),
    ];
    students.truncate(if plan.selects() { 4 } else { 2 });
    Ok(students)
}

/// The generated stories, tokenised: many in `much`, few in `little`; made on first use.
fn make_data(much: &Path, little: &Path, progress: &dyn Progress) -> Result<()> {
    if much.join(TRAIN).is_file() && little.join(TRAIN).is_file() {
        return Ok(());
    }
    progress.note("stories and their tokenizer, made once and kept");
    // Dropped, and so removed, at the end.
    let scratch = AtomicDir::create(&much.with_file_name("text"))?;
    let at = |name: &str| scratch.path().join(name);
    let sets = [("much", STORIES), ("little", FEW_STORIES), ("valid", VALID_STORIES)];
    for (name, stories) in sets {
        stories::write(&at(&format!("{name}.jsonl")), STORIES_SEED, stories, &Silent)?;
    }
    let options = TrainOptions { vocab_size: VOCABULARY, ..TrainOptions::default() };
    let (tokenizer, _) = Tokenizer::train(&[at("much.jsonl")], &options, &Silent)?;
    tokenizer.save(&at("tokenizer"))?;
    for (name, out) in [("much", much), ("little", little)] {
        let options = PrepareOptions {
            inputs: vec![at(&format!("{name}.jsonl"))],
            tokenizer: at("tokenizer"),
            out: out.to_path_buf(),
            text_field: "text".into(),
            validation: Validation::Files(vec![at("valid.jsonl")]),
            end_token: None,
            skip_bad: false,
        };
        prepare(&options, &Silent)?;
    }
    Ok(())
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
    use crate::model::{Gpt2, Gpt2Config};
    use crate::store::hub::HubOptions;
    use crate::store::weights::{SaveOptions, SpecialIds, save_model};
    use candle_core::Device;

    #[test]
    fn a_finished_student_is_found_by_its_own_plan_alone() {
        let plan = |set: &str| {
            let mut wanted = Overrides::default();
            wanted.set(set).unwrap();
            config::load(Some(&RunFile::embedded("quickstart").unwrap()), &wanted).unwrap().plan
        };
        let place = tempfile::tempdir().unwrap();
        let run = place.path();
        for (i, (name, _, of)) in
            students(&plan("seed=42"), Path::new("t"), None).unwrap().iter().enumerate()
        {
            std::fs::write(run.join("config.toml"), of.to_toml().unwrap()).unwrap();
            check_same(run, of).unwrap();
            assert_eq!(of.as_stored().unwrap(), *of, "{name} goes on alone");
            for (set, changes) in [("steps=300", true), ("select.alpha=0.5", of.selects())] {
                let (_, _, other) = &students(&plan(set), Path::new("t"), None).unwrap()[i];
                assert_eq!(check_same(run, other).is_err(), changes, "{name}, {set}");
            }
        }
    }

    #[test]
    fn a_signal_between_two_runs_says_which_of_them_is_where() {
        let place = tempfile::tempdir().unwrap();
        let (out, cache) = (place.path().join("q"), place.path().join("cache"));
        let plan = config::load(RunFile::embedded("quickstart").as_ref(), &Overrides::default());
        let parts = parts(&plan.unwrap().plan, &out, &cache, [place.path(); 2]).unwrap();
        let said = || stopped(2, &parts).unwrap().to_string();
        assert!(said().starts_with("stopped by SIGINT at step 0 of "), "{}", said());
        assert!(said().ends_with(" of 'teacher'"), "{}", said());
        for run in [cache.join("teacher"), out.join("plain")] {
            std::fs::create_dir_all(run.join(MODEL_FOLDER)).unwrap();
        }
        let saved = out.join("dense/checkpoints/step-00000007");
        std::fs::create_dir_all(&saved).unwrap();
        assert!(said().starts_with("stopped by SIGINT at step 7 of "), "{}", said());
        let end = format!(" of 'dense', saved in {}", saved.display());
        assert!(said().ends_with(&end), "{}", said());
    }

    #[test]
    fn a_finished_quickstart_needs_no_teacher_and_has_its_own_settings() {
        let place = tempfile::tempdir().unwrap();
        let (out, cache) = (place.path().join("q"), place.path().join("cache"));
        let plan = |set: &str| {
            let mut wanted = Overrides::default();
            wanted.set(set).unwrap();
            config::load(RunFile::embedded("quickstart").as_ref(), &wanted).unwrap().plan
        };
        let of = plan("steps=100");
        let shape = Gpt2Config::new(300, 8, 16, 1, 2);
        let model = Gpt2::scratch(shape, 1, &Device::Cpu).unwrap();
        for (name, _, student) in students(&of, Path::new("t"), None).unwrap() {
            let run = out.join(name);
            let save = SaveOptions { ids: SpecialIds::default(), tokenizer: None };
            save_model(&run.join(MODEL_FOLDER), &model.config, &model.params, &save).unwrap();
            std::fs::write(run.join("config.toml"), student.to_toml().unwrap()).unwrap();
            let line = r#"{"step":100,"val_loss":1.0,"tokens":1,"flops":1.0,"seconds":1.0}"#;
            std::fs::write(run.join("metrics.jsonl"), line).unwrap();
        }
        let hub = HubOptions::new("http://127.0.0.1:9", place.path());
        let again = |plan: &Plan| {
            quickstart(
                plan,
                &out,
                true,
                &cache,
                &Crew::default(),
                Where { hub: &hub, progress: &Silent },
            )
        };
        let done = again(&of).unwrap();
        let names: Vec<&str> = done.models.iter().map(|model| model.model).collect();
        assert_eq!(names, ["plain", "dense", "random", "ESLM"]);
        assert!(done.findings().len() == 2 && !cache.exists());
        // As it began it goes on, and as nothing else.
        std::fs::remove_dir_all(out.join("plain")).unwrap();
        let refused = again(&plan("steps=90")).unwrap_err().to_string();
        assert!(refused.contains("steps: 100 before, 90 now"), "{refused}");
        assert!(!cache.exists());
    }

    #[test]
    fn the_teachers_preset_has_the_vocabulary_of_the_stories() {
        let place = tempfile::tempdir().unwrap();
        let text = place.path().join("much.jsonl");
        stories::write(&text, STORIES_SEED, STORIES, &Silent).unwrap();
        let options = TrainOptions { vocab_size: VOCABULARY, ..TrainOptions::default() };
        let (tokenizer, _) = Tokenizer::train(&[text], &options, &Silent).unwrap();
        let preset = crate::store::preset::teacher(TEACHER).unwrap();
        assert_eq!(tokenizer.vocab_size() as usize, preset.shape.vocab_size);
    }

    #[test]
    fn findings_are_those_of_the_table() {
        let trained = |model, val_loss: f64, flops| Trained {
            model,
            parameters: 1,
            tokens: 1,
            flops,
            seconds: 1.0,
            val_loss,
            perplexity: val_loss.exp(),
        };
        let mut done = Quickstart {
            run: PathBuf::new(),
            model: PathBuf::new(),
            models: vec![
                trained("teacher", 1.0, 9.0),
                trained("plain", 1.5, 1.0),
                trained("dense", 1.25, 2.0),
                trained("random", 1.375, 1.5),
                trained("ESLM", 1.125, 1.5),
            ],
        };
        let said = done.findings();
        assert!(said[0].contains("0.250 lower than alone"), "{said:?}");
        let selection = "0.250 lower than on as many random ones, and 0.125 lower than on every token, for 25 % fewer";
        assert!(said[1].contains(selection), "{said:?}");
        done.models[4].val_loss = 1.5;
        assert!(done.findings()[1].contains("0.125 higher than on as many random ones"));
        done.models[4].flops = 1.999;
        assert!(
            done.findings()[1]
                .ends_with("for about as many FLOPs; with one seed that may be chance.")
        );
        done.models[4].flops = 2.0;
        assert!(done.findings()[1].contains("no token was dropped"));
        done.models.truncate(3);
        assert_eq!(done.findings().len(), 1, "nothing was selected");
    }

    #[test]
    fn the_students_differ_in_one_thing_each() {
        let file = RunFile::embedded("quickstart").unwrap();
        let plan = config::load(Some(&file), &Overrides::default()).unwrap().plan;
        for told in [None, Some(Path::new("s"))] {
            differ_in_one_thing(&students(&plan, Path::new("t"), told).unwrap());
        }
    }

    fn differ_in_one_thing(students: &[(&str, &str, Plan)]) {
        let [(_, _, plain), (_, _, dense), (_, _, random), (_, _, eslm)] = students else {
            panic!("four students")
        };
        let sources = students.iter().map(|(_, _, plan)| (&plan.teacher, &plan.data.signal));
        assert!(sources.skip(1).all(|of| of == (&eslm.teacher, &eslm.data.signal)));
        assert!(!plain.uses_teacher() && dense.uses_teacher() && eslm.uses_teacher());
        assert!(!plain.selects() && !dense.selects() && eslm.selects() && random.selects());
        let mut chosen = random.clone();
        chosen.select.score = eslm.select.score;
        assert!(random.select.score == Score::Random && chosen == *eslm);
        assert!(
            [plain, dense, random]
                .iter()
                .all(|p| (p.tokens(), p.seed, &p.optim) == (eslm.tokens(), eslm.seed, &eslm.optim))
        );
    }
}
