//! Layers to [`Plan`]: fills in defaults, applies the rules between keys, checks once.

use super::choice::{
    AlphaSchedule, Divergence, Init, Method, MicroRows, Pool, ScheduleKind, Score, Signal,
};
use super::file::{Origin, Overrides, RunFile, Written};
use super::keys::{Fallback, KEYS, Key};
use super::plan::Plan;
use crate::error::{Error, Result};
use crate::report::text::amount;
use serde::Deserialize;
use std::path::Path;
use toml::Value;

/// Far above any machine's cores, far below what makes the system fail.
const MOST_THREADS: usize = 1024;

/// A plan and where each of its values came from.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The run.
    pub plan: Plan,
    /// Every key in the order of [`KEYS`]; `None` is an absent key.
    pub values: Vec<ResolvedValue>,
    /// Old names of keys, folders found elsewhere.
    reading: Vec<String>,
}

/// One key's value and origin.
#[derive(Debug, Clone)]
pub struct ResolvedValue {
    /// The key.
    pub key: &'static Key,
    /// Its value.
    pub value: Option<Value>,
    /// Where it came from.
    pub origin: Origin,
}

/// Loads a run: `file` (or defaults only), then the environment, flags and `--set` of `overrides`.
pub fn load(file: Option<&RunFile>, overrides: &Overrides) -> Result<Resolved> {
    let mut written = Written::default();
    if let Some(file) = file {
        written.put_file(file)?;
    }
    overrides.apply(&mut written)?;
    resolve(&written)
}

/// The plan of what was written.
pub fn resolve(written: &Written) -> Result<Resolved> {
    let mut values: Vec<ResolvedValue> = Vec::with_capacity(KEYS.len());
    for key in KEYS {
        let (value, origin) = match (written.get(key.name), &key.default) {
            (Some((value, origin)), _) => (Some(value.clone()), origin.clone()),
            (None, Fallback::Absent) => (None, Origin::Default),
            (None, Fallback::Is(text)) => (Some(key.kind.read(text)), Origin::Default),
            (None, Fallback::Rule(why, rule)) => {
                let above = |name: &str| named(&values, name).and_then(|v| v.value.clone());
                let below = |name: &str| written.get(name).map(|(value, _)| value.clone());
                let get = |name: &str| above(name).or_else(|| below(name));
                (Some(rule(&get)), Origin::Rule((*why).to_string()))
            }
        };
        values.push(ResolvedValue { key, value, origin });
    }
    let mut resolved =
        Resolved { plan: build(&values)?, values, reading: written.old_names().to_vec() };
    if resolved.plan.method == Method::Clm {
        resolved.without_selection()?;
    }
    resolved.without_teacher()?;
    resolved.check()?;
    Ok(resolved)
}

fn named<'a>(values: &'a [ResolvedValue], name: &str) -> Option<&'a ResolvedValue> {
    values.iter().find(|v| v.key.name == name)
}

/// The flat list as the typed plan. Every value was accepted by its key, so a failure is a bug.
fn build(values: &[ResolvedValue]) -> Result<Plan> {
    let mut table = toml::Table::new();
    for ResolvedValue { key, value, .. } in values {
        let Some(value) = value.clone() else { continue };
        match key.name.split_once('.') {
            None => table.insert(key.name.to_string(), value),
            Some((section, name)) => {
                let inner =
                    table.entry(section).or_insert_with(|| Value::Table(toml::Table::new()));
                inner.as_table_mut().and_then(|t| t.insert(name.to_string(), value))
            }
        };
    }
    Plan::deserialize(table)
        .map_err(|e| Error::internal(format!("the table of keys does not fit the plan: {e}")))
}

impl Resolved {
    /// The value of a key and where it came from.
    pub fn value(&self, name: &str) -> Option<&ResolvedValue> {
        named(&self.values, name)
    }

    /// Takes the folder `place` for what a key names: data, teacher or student.
    pub(crate) fn found_at(&mut self, name: &str, place: &Path, note: String) {
        let text = place.to_string_lossy().into_owned();
        if let Some(value) = self.values.iter_mut().find(|v| v.key.name == name) {
            value.value = Some(Value::String(text.clone()));
        }
        match name {
            "data.dir" => self.plan.data.dir = Some(text),
            "data.signal" => self.plan.data.signal = Some(text),
            "teacher" => self.plan.teacher = Some(text),
            _ => self.plan.student = text,
        }
        self.reading.push(note);
    }

    /// Another default than the table's, with the reason; what follows from it follows anew.
    pub(crate) fn fall_back(&mut self, name: &str, default: Value, why: String) -> Result<()> {
        let Some(at) = self.values.iter().position(|v| v.key.name == name) else { return Ok(()) };
        self.values[at].value = Some(default);
        self.values[at].origin = Origin::Rule(why);
        for later in at + 1..self.values.len() {
            let ResolvedValue { key, origin, .. } = &self.values[later];
            let Fallback::Rule(why, rule) = &key.default else { continue };
            if *origin == Origin::Rule((*why).to_string()) {
                let get = |name: &str| named(&self.values, name).and_then(|v| v.value.clone());
                self.values[later].value = Some(rule(&get));
            }
        }
        self.plan = build(&self.values)?;
        self.check()
    }

    /// Adds a line to [`Resolved::notes`].
    pub(crate) fn note(&mut self, note: String) {
        self.reading.push(note);
    }

    /// Things that are allowed but probably not what was meant, and how the file was read.
    pub fn notes(&self) -> Vec<String> {
        let plan = &self.plan;
        let mut notes = self.reading.clone();
        let mut note = |text: String| notes.push(text);
        if plan.schedule.warmup >= plan.steps {
            note(format!(
                "schedule.warmup = {} is not over within steps = {}: the learning rate never reaches its peak",
                plan.schedule.warmup, plan.steps
            ));
        }
        if plan.schedule.kind == ScheduleKind::Wsd {
            let decay = plan.schedule.decay * plan.steps as f64;
            if plan.schedule.warmup as f64 + decay > plan.steps as f64 {
                note("schedule: warm-up and decay overlap".to_string());
            }
        }
        if plan.selects() && plan.select.burn_in >= plan.steps {
            note(format!(
                "select.burn_in = {} covers the whole run of {}: nothing is ever dropped",
                plan.select.burn_in,
                amount(plan.steps, "steps")
            ));
        }
        if plan.micro_rows_matter() && plan.machine.micro_rows == MicroRows::Auto {
            let why = if plan.select.alpha_seq > 0.0 {
                "alpha_seq > 0"
            } else {
                "pool = \"micro-batch\""
            };
            note(format!("select.{why} makes machine.micro_rows part of the mathematics"));
        }
        if plan.method == Method::Eslm && !plan.selects() {
            note(
                "method = \"eslm\" with select.alpha = 0 keeps every token, as \"clm\" does"
                    .to_string(),
            );
        }
        let of_file = |name: &str| {
            self.value(name)
                .is_some_and(|v| v.value.is_some() && matches!(v.origin, Origin::File { .. }))
        };
        if !of_file("student") && !plan.shape.is_empty() {
            let shape = ["n_layer", "n_head", "n_embd", "n_positions"];
            let kept: Vec<&str> =
                shape.into_iter().filter(|key| of_file(&format!("shape.{key}"))).collect();
            if !kept.is_empty() {
                note(format!(
                    "student = \"{}\" has the run file's [shape] ({}), not its own",
                    plan.student,
                    kept.join(", ")
                ));
            }
        }
        if plan.is_taught() && !plan.uses_teacher() {
            note(
                "the teacher is never asked: objective.lambda = 0 and the score does not need it"
                    .to_string(),
            );
        }
        notes
    }

    /// A stored signal says what its own teacher said. A run file's teacher is left out; one that is
    /// asked for beside it is a contradiction.
    fn without_teacher(&mut self) -> Result<()> {
        let (Some(teacher), Some(signal)) = (&self.plan.teacher, &self.plan.data.signal) else {
            return Ok(());
        };
        let (teacher, signal) = (teacher.clone(), signal.clone());
        let Some(entry) = self.values.iter_mut().find(|v| v.key.name == "teacher") else {
            return Ok(());
        };
        if !matches!(entry.origin, Origin::File { .. }) {
            return Err(Error::usage(format!(
                "{}: the teacher {teacher} has no place beside the signal {signal}, which says what its own teacher said; leave \
                 out one of them",
                entry.origin
            )));
        }
        self.reading.push(format!(
            "{}: the teacher {teacher} is left out: the signal {signal} has its own",
            entry.origin
        ));
        entry.value = None;
        entry.origin = Origin::Rule("data.signal has its own".to_string());
        self.plan = build(&self.values)?;
        Ok(())
    }

    /// `clm`: selection off. A file made for `eslm` stays usable with `--method clm`, but a flag
    /// for `eslm` only is a contradiction.
    fn without_selection(&mut self) -> Result<()> {
        let by_hand = |origin: &Origin| {
            matches!(origin, Origin::Flag(_) | Origin::Set | Origin::Arm | Origin::Builder)
        };
        let vain: Vec<&str> = (self.values.iter())
            .filter(|v| v.key.name.starts_with("select.") && by_hand(&v.origin))
            .map(|v| v.key.name)
            .filter(|name| *name != "select.alpha")
            .collect();
        if !vain.is_empty() {
            self.reading.push(format!(
                "method = \"clm\" trains on every token, and {} {} no meaning there",
                vain.join(", "),
                if vain.len() == 1 { "has" } else { "have" }
            ));
        }
        for (name, off) in [
            ("select.score", Value::String(Score::Loss.to_string())),
            ("select.alpha", Value::Float(0.0)),
            ("select.burn_in", Value::Integer(0)),
            ("select.ramp", Value::Integer(0)),
            ("select.schedule", Value::String(AlphaSchedule::Fixed.to_string())),
            ("select.cvar_weight", Value::Float(1.0)),
            ("select.alpha_seq", Value::Float(0.0)),
        ] {
            let Some(entry) = self.values.iter_mut().find(|v| v.key.name == name) else { continue };
            let alpha = name == "select.alpha"
                && by_hand(&entry.origin)
                && entry.value.as_ref() != Some(&off);
            let score = name == "select.score" && matches!(entry.origin, Origin::Flag(_));
            if alpha || score {
                return Err(Error::usage(format!(
                    "{}: {name} has no meaning with method = \"clm\", which trains on every token; \
                     use method = \"eslm\" or drop it",
                    entry.origin
                )));
            }
            if entry.value.as_ref() != Some(&off) {
                entry.origin = Origin::Rule("method = clm selects nothing".to_string());
                entry.value = Some(off);
            }
        }
        self.plan = build(&self.values)?;
        Ok(())
    }

    /// What no single key can check.
    fn check(&self) -> Result<()> {
        let plan = &self.plan;
        let origin =
            |name: &str| self.value(name).map_or_else(String::new, |v| v.origin.to_string());
        self.check_teacher(&origin)?;
        self.check_selection(&origin)?;
        self.check_objective(&origin)?;
        if plan.layers.is_some() && matches!(plan.init, Some(Init::Scratch | Init::Checkpoint)) {
            return Err(Error::usage(format!(
                "{}: layers names the teacher's layers for init = \"teacher-layers\", but init is \"{}\"",
                origin("layers"),
                plan.init.map_or("", Init::name)
            )));
        }
        if let MicroRows::Rows(micro) = plan.machine.micro_rows
            && !plan.data.rows.is_multiple_of(micro)
        {
            return Err(Error::usage(format!(
                "{}: machine.micro_rows = {micro} must divide data.rows = {} ({}); try {}",
                origin("machine.micro_rows"),
                plan.data.rows,
                origin("data.rows"),
                largest_divisor(plan.data.rows, micro)
            )));
        }
        if let (Some(width), Some(heads)) = (plan.shape.n_embd, plan.shape.n_head)
            && !width.is_multiple_of(heads)
        {
            return Err(Error::usage(format!(
                "{}: shape.n_embd = {width} must be a multiple of shape.n_head = {heads}",
                origin("shape.n_embd")
            )));
        }
        if plan.machine.threads > MOST_THREADS {
            return Err(Error::usage(format!(
                "{}: machine.threads = {} is more than any machine has use for: expected at most {MOST_THREADS}; 0 is one \
                 per core",
                origin("machine.threads"),
                plan.machine.threads
            )));
        }
        self.check_rhythm(&origin)
    }

    /// What asks for a teacher has one.
    fn check_teacher(&self, origin: &dyn Fn(&str) -> String) -> Result<()> {
        let plan = &self.plan;
        if !plan.is_taught() {
            let add = "add teacher = \"NAME\" at the top of the run file or --teacher NAME";
            if plan.score_needs_teacher() {
                return Err(Error::usage(format!(
                    "{}: select.score = \"{}\" compares with a teacher, but there is none; {add}, \
                     or choose entropy, loss or random",
                    origin("select.score"),
                    plan.select.score
                )));
            }
            let ends = [
                ("objective.lambda", Some(plan.objective.lambda)),
                ("objective.lambda_end", plan.objective.lambda_end),
            ];
            if let Some((name, Some(lambda))) =
                ends.into_iter().find(|(_, lambda)| lambda.is_some_and(|l| l > 0.0))
            {
                return Err(Error::usage(format!(
                    "{}: {name} = {lambda} weighs a teacher, but there is none; {add}, or set it to 0",
                    origin(name)
                )));
            }
            if plan.init == Some(Init::TeacherLayers) {
                return Err(Error::usage(format!(
                    "{}: init = \"teacher-layers\" copies from a teacher, but there is none; {add}",
                    origin("init")
                )));
            }
        }
        if let (Some(Init::TeacherLayers), Some(signal)) = (plan.init, &plan.data.signal) {
            return Err(Error::usage(format!(
                "{}: init = \"teacher-layers\" copies a teacher's weights, and the signal {signal} has none; leave out \
                 data.signal, or start the student from a folder",
                origin("init")
            )));
        }
        Ok(())
    }

    /// Validations and checkpoints come when they are needed.
    fn check_rhythm(&self, origin: &dyn Fn(&str) -> String) -> Result<()> {
        let plan = &self.plan;
        let (every, rhythm) = (plan.checkpoint.every, plan.eval.every);
        if plan.checkpoint.keep_best > 0
            && every > 0
            && (rhythm == 0 || !every.is_multiple_of(rhythm))
        {
            return Err(Error::usage(format!(
                "{}: checkpoint.keep_best = {} needs a validation at every checkpoint, but checkpoint.every = {every} is no \
                 multiple of eval.every = {rhythm}; set eval.every = {every}, or keep_best = 0",
                origin("checkpoint.keep_best"),
                plan.checkpoint.keep_best
            )));
        }
        if plan.eval.tokens == 1 {
            return Err(Error::usage(format!(
                "{}: eval.tokens = 1 leaves nothing to predict: expected at least 2, or 0 for all",
                origin("eval.tokens")
            )));
        }
        if plan.eval.stride > plan.data.context {
            return Err(Error::usage(format!(
                "{}: eval.stride = {} would skip tokens: expected at most data.context = {}",
                origin("eval.stride"),
                plan.eval.stride,
                plan.data.context
            )));
        }
        Ok(())
    }

    fn check_selection(&self, origin: &dyn Fn(&str) -> String) -> Result<()> {
        let (plan, select) = (&self.plan, &self.plan.select);
        if plan.method == Method::Eslm
            && matches!(select.pool, Pool::Carried | Pool::Step)
            && select.score == Score::EntropyKl
        {
            return Err(Error::usage(format!(
                "{}: select.score = \"entropy-kl\" is normalised within its pool, and pool = \"{}\" has none before scores are \
                 compared; choose pool = \"sequence\" or another score",
                origin("select.score"),
                select.pool
            )));
        }
        if select.alpha_seq > 0.0 && select.cvar_weight < 1.0 {
            return Err(Error::usage(format!(
                "{}: select.cvar_weight = {} weighs the mean of all tokens, but the early-exit filter (alpha_seq = {}) never computes those of the \
                 sequences it drops; set cvar_weight = 1 or alpha_seq = 0",
                origin("select.cvar_weight"),
                select.cvar_weight,
                select.alpha_seq
            )));
        }
        let clamp = select.alpha_min..=select.alpha_max;
        if select.schedule == AlphaSchedule::AdaEslm && !clamp.contains(&select.alpha) {
            return Err(Error::usage(format!(
                "{}: select.schedule = \"ada-eslm\" moves alpha between alpha_min = {} and alpha_max = {}, but it starts at \
                 alpha = {}; move the start or the bounds",
                origin("select.alpha"),
                select.alpha_min,
                select.alpha_max,
                select.alpha
            )));
        }
        Ok(())
    }
}

impl Resolved {
    fn check_objective(&self, origin: &dyn Fn(&str) -> String) -> Result<()> {
        let objective = &self.plan.objective;
        let stored = self.plan.data.signal.as_ref();
        if objective.signal == Signal::Stored && stored.is_none() {
            return Err(Error::usage(format!(
                "{}: objective.signal = \"stored\" reads a signal from a folder, but data.signal names none; add --signal DIR \
                 (`eslm-kd signal write` makes one), or choose dense, top-k or sampled",
                origin("objective.signal")
            )));
        }
        if let (Signal::Dense, Some(stored)) = (objective.signal, stored) {
            return Err(Error::usage(format!(
                "{}: objective.signal = \"dense\" asks for all of a teacher's output, which no stored signal has; leave it \
                 out, and the loss uses what {stored} holds",
                origin("objective.signal")
            )));
        }
        if objective.signal == Signal::Sampled && objective.samples == 0 && stored.is_none() {
            return Err(Error::usage(format!(
                "{}: objective.samples = 0 draws nothing; expected at least 1",
                origin("objective.samples")
            )));
        }
        if objective.signal == Signal::Sampled && objective.divergence != Divergence::ForwardKl {
            return Err(Error::usage(format!(
                "{}: objective.signal = \"sampled\" estimates forward-kl without bias, and no other divergence, but \
                 objective.divergence is \"{}\"; choose forward-kl, or signal = \"top-k\" or \"dense\"",
                origin("objective.signal"),
                objective.divergence
            )));
        }
        if objective.signal == Signal::Sampled
            && self.plan.method == Method::Eslm
            && self.plan.select.score.needs_reverse_kl()
        {
            return Err(Error::usage(format!(
                "{}: objective.signal = \"sampled\" estimates KL(q || p), but select.score = \"{}\" is KL(p || q), of \
                 which a sample of q knows nothing; choose score = \"kl\", or signal = \"top-k\" or \"dense\"",
                origin("select.score"),
                self.plan.select.score
            )));
        }
        Ok(())
    }
}

impl Plan {
    /// Whether scoring reads the teacher's logits at every position.
    pub fn score_needs_teacher(&self) -> bool {
        self.method == Method::Eslm && self.select.score.needs_teacher()
    }

    /// The verb that runs it.
    pub fn verb(&self) -> &'static str {
        if self.is_taught() { "distill" } else { "pretrain" }
    }

    /// Whether there is a teacher, beside the run or on disk.
    pub fn is_taught(&self) -> bool {
        self.teacher.is_some() || self.data.signal.is_some()
    }

    /// The teacher that is loaded, by name; None where none is asked, or what it said is read.
    pub fn live_teacher(&self) -> Option<&str> {
        self.teacher.as_deref().filter(|_| self.uses_teacher() && self.data.signal.is_none())
    }

    /// Whether the teacher is asked anything during training.
    pub fn uses_teacher(&self) -> bool {
        self.is_taught() && (self.score_needs_teacher() || self.objective.distils())
    }
}

/// The largest divisor of `n` that is at most `most` (both at least 1).
pub(crate) fn largest_divisor(n: usize, most: usize) -> usize {
    (1..=most.min(n)).rev().find(|d| n.is_multiple_of(*d)).unwrap_or(1)
}
