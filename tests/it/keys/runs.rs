//! What a run is made of and its rhythms: through the library's session and run on a tiny student.

use super::{Here, Proofs, There};
use crate::laws::bits;
use crate::support::place::copy_data;
use crate::support::tiny;
use candle_core::Device;
use eslm_kd::Result;
use eslm_kd::config::{self, Overrides, RunFile};
use eslm_kd::data::loader::Loader;
use eslm_kd::eval::perplexity::{EvalOptions, evaluate};
use eslm_kd::model::{Gpt2, Gpt2Config};
use eslm_kd::progress::Silent;
use eslm_kd::store::Where;
use eslm_kd::store::checkpoint;
use eslm_kd::store::hub::HubOptions;
use eslm_kd::store::weights::{SaveOptions, SpecialIds, load_model, save_model};
use eslm_kd::train::events::{Event, EventSink, Summary};
use eslm_kd::train::run::Run;
use eslm_kd::train::session::Session;
use eslm_kd::train::{Trainer, events};
use std::path::Path;
use tempfile::TempDir;

pub const KEYS: Proofs = &[
    ("seed", Here(seed)),
    ("steps", Here(seed)),
    ("teacher", Here(teacher)),
    ("student", Here(student)),
    ("init", Here(init)),
    ("layers", Here(layers)),
    ("shape.n_layer", Here(shape)),
    ("shape.n_head", Here(shape)),
    ("shape.n_embd", Here(shape)),
    ("shape.n_positions", Here(shape)),
    ("data.dir", Here(dir)),
    (
        "data.signal",
        There("signal.rs", "a_run_from_a_signal_has_the_bits_of_one_beside_its_teacher"),
    ),
    ("data.context", Here(seed)),
    ("data.rows", Here(seed)),
    ("eval.every", Here(rhythms)),
    ("eval.rows", Here(validation)),
    ("eval.stride", Here(validation)),
    ("eval.tokens", Here(validation)),
    ("checkpoint.every", Here(rhythms)),
    ("checkpoint.keep", Here(rhythms)),
    ("checkpoint.keep_best", There("bad_numbers.rs", "the_best_checkpoint_stays_and_has_a_name")),
    ("log.every", Here(rhythms)),
    ("log.tensorboard", Here(tensorboard)),
];

const RUN: &str = r#"
    student = "tiny"
    steps = 4
    seed = 9
    [shape]
    n_layer = 2
    n_head = 2
    n_embd = 16
    n_positions = 16
    [data]
    context = 16
    rows = 4
    [eval]
    every = 0
    [checkpoint]
    every = 0
    [machine]
    device = "cpu"
    micro_rows = 2
"#;

fn place() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn open(settings: &[&str]) -> Result<Session> {
    let mut overrides = Overrides::default();
    let dir = format!("data.dir={}", tiny::data().display());
    for setting in [dir.as_str()].iter().chain(settings) {
        overrides.set(setting)?;
    }
    let plan =
        config::load(Some(&RunFile { name: "keys".into(), text: RUN.into() }), &overrides)?.plan;
    // Nobody is asked: every model lies in a folder.
    let cache = tiny::world().join("no-cache");
    let hub = HubOptions { offline: true, ..HubOptions::new("http://127.0.0.1:9", &cache) };
    Session::open(&plan, Where { hub: &hub, progress: &Silent })
}

/// What a run said, in order.
#[derive(Default)]
struct Heard {
    steps: Vec<u64>,
    validations: Vec<(u64, f64)>,
    saved: Vec<u64>,
}

impl EventSink for Heard {
    fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Step(events::StepEvent { step, .. }) => self.steps.push(*step),
            Event::Validation(v) => self.validations.push((v.step, v.val_loss)),
            Event::CheckpointSaved { step, .. } => self.saved.push(*step),
            _ => {}
        }
        Ok(())
    }
}

fn run(settings: &[&str], out: &Path) -> (Summary, Heard) {
    let mut heard = Heard::default();
    let summary =
        Run::open(open(settings).unwrap(), out, false, &Silent).unwrap().train(&mut heard).unwrap();
    (summary, heard)
}

/// A run is its trainer on the batches that its loader gives: by the weights it leaves.
fn is_its_steps(settings: &[&str], (seed, steps, context, rows): (u64, u64, usize, usize)) {
    let place = place();
    let out = place.path().join("run");
    let (summary, _) = run(settings, &out);
    assert_eq!(
        (summary.step, summary.tokens),
        (steps, steps * (rows * context) as u64),
        "{settings:?}"
    );
    let session = open(settings).unwrap();
    let loader = Loader::new(session.train.clone(), context, seed).unwrap();
    let mut trainer = Trainer::new(session.plan, session.student, session.teacher).unwrap();
    for step in 0..steps {
        let cursor = step * rows as u64;
        trainer.step(step, cursor, &loader.batch(cursor, rows).unwrap()).unwrap();
    }
    let left = load_model(&out.join("model"), &Device::Cpu).unwrap().1;
    assert!(bits(&left) == bits(&trainer.student.params), "{settings:?}");
}

/// All at once, since a run waits for the disk: if one were ignored, its twin would leave other
/// weights.
fn lengths() {
    is_its_steps(&[], (9, 4, 16, 4));
    is_its_steps(&["steps=3", "data.context=8", "data.rows=6", "seed=77"], (77, 3, 8, 6));
}

fn seed() {
    lengths();
    let student = open(&["seed=77"]).unwrap().student;
    let fresh = Gpt2::scratch(student.config.clone(), 77, &Device::Cpu).unwrap();
    assert!(bits(&student.params) == bits(&fresh.params));
    assert!(bits(&student.params) != bits(&open(&[]).unwrap().student.params));
}

/// A model of two blocks in a folder of its own, which is the setting's value.
fn stored(place: &TempDir) -> (Gpt2, String) {
    let config = Gpt2Config::new(tiny::VOCAB, 16, 24, 2, 3);
    let model = Gpt2::scratch(config, 5, &Device::Cpu).unwrap();
    let folder = place.path().join("model");
    std::fs::create_dir_all(&folder).unwrap();
    let options = SaveOptions { ids: SpecialIds::default(), tokenizer: None };
    save_model(&folder, &model.config, &model.params, &options).unwrap();
    (model, folder.display().to_string())
}

fn teacher() {
    let place = place();
    let (model, folder) = stored(&place);
    let teacher = open(&[&format!("teacher={folder}")]).unwrap().teacher.unwrap();
    assert!(bits(&teacher.model().params) == bits(&model.params));
    assert!(open(&[]).unwrap().teacher.is_none());
}

/// Settings that take the base's shape away would need another file; a stored student refuses the
/// shape instead.
fn student() {
    let place = place();
    let (model, folder) = stored(&place);
    let refused = open(&[&format!("student={folder}")]).unwrap_err();
    assert!(refused.to_string().contains("[shape] cannot change the student"), "{refused}");
    let fresh = open_without_shape(&[&format!("student={folder}")]).student;
    assert!(fresh.config == model.config && bits(&fresh.params) == bits(&model.params));
    let preset = open_without_shape(&["student=tiny"]).student.config;
    assert!(preset.n_embd != model.config.n_embd && preset.vocab_size == tiny::VOCAB);
}

fn open_without_shape(settings: &[&str]) -> Session {
    let text = RUN.replace("[shape]", "").replace("n_layer = 2", "").replace("n_head = 2", "");
    let text = text.replace("n_embd = 16", "").replace("n_positions = 16", "");
    let mut overrides = Overrides::default();
    let dir = format!("data.dir={}", tiny::data().display());
    [dir.as_str()].iter().chain(settings).for_each(|setting| overrides.set(setting).unwrap());
    let plan = config::load(Some(&RunFile { name: "keys".into(), text }), &overrides).unwrap().plan;
    let cache = tiny::world().join("no-cache");
    let hub = HubOptions { offline: true, ..HubOptions::new("http://127.0.0.1:9", &cache) };
    Session::open(&plan, Where { hub: &hub, progress: &Silent }).unwrap()
}

fn init() {
    let place = place();
    let (model, folder) = stored(&place);
    let teacher = format!("teacher={folder}");
    let fresh = |init: &str| open_without_shape(&[&teacher, init, "layers=[1]"]).student;
    let copied = fresh("init=teacher-layers");
    assert!(bits(&copied.params) == bits(&Gpt2::from_layers(&model, &[1]).unwrap().params));
    let scratch = open(&[&teacher, "init=scratch"]).unwrap().student;
    assert!(
        bits(&scratch.params)
            == bits(&Gpt2::scratch(scratch.config.clone(), 9, &Device::Cpu).unwrap().params)
    );
    let kept = open_without_shape(&[&format!("student={folder}"), "init=checkpoint"]).student;
    assert!(bits(&kept.params) == bits(&model.params));
}

fn layers() {
    let place = place();
    let (model, folder) = stored(&place);
    let teacher = format!("teacher={folder}");
    for (setting, layers) in
        [("layers=[0]", &[0][..]), ("layers=[1,0]", &[1, 0]), ("layers=[1,1,0]", &[1, 1, 0])]
    {
        let fresh = open_without_shape(&[&teacher, "init=teacher-layers", setting]).student;
        assert!(
            bits(&fresh.params) == bits(&Gpt2::from_layers(&model, layers).unwrap().params),
            "{setting}"
        );
    }
}

fn shape() {
    let shape = |settings: &[&str]| {
        let c = open(settings).unwrap().student.config;
        [c.n_layer, c.n_head, c.n_embd, c.n_positions, c.inner(), c.vocab_size]
    };
    assert_eq!(shape(&[]), [2, 2, 16, 16, 64, 320]);
    assert_eq!(shape(&["shape.n_layer=3"]), [3, 2, 16, 16, 64, 320]);
    assert_eq!(shape(&["shape.n_head=4"]), [2, 4, 16, 16, 64, 320]);
    assert_eq!(shape(&["shape.n_embd=24"]), [2, 2, 24, 16, 96, 320]);
    assert_eq!(shape(&["shape.n_positions=40"]), [2, 2, 16, 40, 64, 320]);
}

fn dir() {
    let place = place();
    let folder = place.path().join("elsewhere");
    copy_data(&folder);
    let session = open(&[&format!("data.dir={}", folder.display())]).unwrap();
    assert_eq!(session.train.path(), folder.join("train.bin"));
    assert_eq!(session.valid.unwrap().path(), folder.join("valid.bin"));
    assert!(open(&["data.dir=nowhere-at-all"]).unwrap_err().to_string().contains("nowhere-at-all"));
}

/// Every rhythm has its own trace, so that each run shows all of them.
fn rhythms() {
    let place = place();
    let of = |name: &str, settings: &[&str]| {
        let out = place.path().join(name);
        let (_, heard) = run(&[&["steps=7"], settings].concat(), &out);
        let validated: Vec<u64> = heard.validations.iter().map(|v| v.0).collect();
        let kept: Vec<u64> =
            checkpoint::list(&out).unwrap().into_iter().map(|(step, _)| step).collect();
        (heard.steps, validated, heard.saved, kept)
    };
    let (logged, validated, saved, kept) =
        of("a", &["log.every=3", "eval.every=0", "checkpoint.every=2", "checkpoint.keep=3"]);
    assert_eq!(
        (logged, validated, saved, kept),
        (vec![3, 6, 7], vec![0, 7], vec![2, 4, 6, 7], vec![4, 6, 7])
    );
    let (logged, validated, saved, kept) =
        of("b", &["log.every=100", "eval.every=2", "checkpoint.every=0", "checkpoint.keep=1"]);
    assert_eq!((logged, validated, saved, kept), (vec![7], vec![0, 2, 4, 6, 7], vec![7], vec![7]));
    let (logged, validated, saved, kept) =
        of("c", &["log.every=2", "eval.every=3", "checkpoint.every=5", "checkpoint.keep=1"]);
    assert_eq!(
        (logged, validated, saved, kept),
        (vec![2, 4, 6, 7], vec![0, 3, 6, 7], vec![5, 7], vec![7])
    );
}

/// With the key a file for each session, each saying from which step on it counts; the metrics and
/// the weights are as without.
fn tensorboard() {
    let place = place();
    let train = |name: &str, more: &[&str], resume: bool| {
        let out = place.path().join(name);
        let settings = [&["steps=4", "log.every=1", "checkpoint.every=2"], more].concat();
        eslm_kd::train::run::train(open(&settings).unwrap(), &out, resume, &Silent).unwrap();
        out
    };
    let steps = |file: &Path| {
        let (bytes, mut steps) = (std::fs::read(file).unwrap(), Vec::new());
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            // After the time, a double in its field, the step in one byte after its tag.
            assert_eq!((rest[12], rest[12 + 9]), (1 << 3 | 1, 2 << 3), "{}", file.display());
            steps.push(rest[12 + 10]);
            rest = &rest[12 + length + 4..];
        }
        steps
    };
    let (with, without) =
        (train("with", &["log.tensorboard=true"], false), train("without", &[], false));
    assert!(!without.join("tensorboard").exists());
    let files = || {
        let found = std::fs::read_dir(with.join("tensorboard")).unwrap();
        let mut found: Vec<_> = found.map(|e| e.unwrap().path()).collect();
        found.sort();
        found
    };
    // Version, start of the session, validation, steps, validation.
    assert_eq!(steps(&files()[0]), [0, 0, 0, 1, 2, 3, 4, 4]);
    // As if the process had been killed after step 4 and before its checkpoint.
    std::fs::remove_dir_all(with.join("checkpoints/step-00000004")).unwrap();
    std::fs::remove_dir_all(with.join("model")).unwrap();
    train("with", &["log.tensorboard=true"], true);
    assert_eq!(files().len(), 2);
    assert_eq!(steps(&files()[1]), [3, 3, 3, 4, 4]);
    let weights = |out: &Path| std::fs::read(out.join("model/model.safetensors")).unwrap();
    assert!(weights(&with) == weights(&without));
}

fn validation() {
    let place = place();
    let session = open(&[]).unwrap();
    let valid = session.valid.unwrap();
    let mut losses = Vec::new();
    for (name, rows, stride) in [("some", 3, 7), ("all", 0, 5)] {
        let settings = ["steps=1", &format!("eval.rows={rows}"), &format!("eval.stride={stride}")];
        let (_, heard) = run(&settings, &place.path().join(name));
        // Before the first step, of the student as fresh.
        let options = EvalOptions { context: 16, stride, rows_limit: rows, rows_per_batch: 2 };
        let want = evaluate(&session.student, &valid, options, &Silent).unwrap().nll;
        assert_eq!(heard.validations[0], (0, want), "{settings:?}");
        losses.push(want);
        // Neither is what it would be without the other.
        for options in
            [EvalOptions { stride: 16, ..options }, EvalOptions { rows_limit: 9, ..options }]
        {
            assert!(evaluate(&session.student, &valid, options, &Silent).unwrap().nll != want);
        }
    }
    assert!(losses[0] != losses[1], "{losses:?}");
    let (_, heard) = run(&["steps=1", "eval.tokens=40"], &place.path().join("first"));
    let options = EvalOptions { context: 16, stride: 16, rows_limit: 0, rows_per_batch: 2 };
    let first = valid.bounded(40).unwrap();
    assert_eq!(first.len(), 40);
    let want = evaluate(&session.student, &first, options, &Silent).unwrap().nll;
    assert_eq!(heard.validations[0], (0, want));
}
