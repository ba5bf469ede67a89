//! A plan written in a program.

use super::choice::{DeviceSpec, Init, Method, Score};
use super::file::{Origin, Overrides, RunFile};
use super::load::{Resolved, load};
use super::plan::Plan;
use crate::error::Result;
use toml::Value;

/// Builds a [`Plan`]: typed setters for what most programs set, [`PlanBuilder::set`] for every
/// other key, the defaults of the table of keys for the rest. Checked by the same rules as a run
/// file.
///
/// ```
/// use eslm_kd::prelude::*;
///
/// let plan = Plan::builder()
///     .student("tiny")
///     .steps(200)
///     .score(Score::Entropy)
///     .alpha(0.3)
///     .set("select.pool", Pool::MicroBatch)
///     .set("machine.micro_rows", 8)
///     .build()?;
/// assert_eq!((plan.select.alpha, plan.schedule.warmup), (0.3, 6));
///
/// let error = Plan::builder().alpha(1.5).build().unwrap_err();
/// assert_eq!(error.to_string(), "plan builder: select.alpha: expected a number in [0, 1), found 1.5");
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct PlanBuilder {
    file: Option<RunFile>,
    values: Vec<(String, Value)>,
}

impl Plan {
    /// A builder that starts from the defaults.
    pub fn builder() -> PlanBuilder {
        PlanBuilder::default()
    }
}

/// Whole numbers beyond TOML's stay a text, which the key then refuses by name.
fn whole(n: u64) -> Value {
    i64::try_from(n).map_or_else(|_| Value::String(n.to_string()), Value::Integer)
}

impl PlanBuilder {
    /// Starts from a run file instead of the defaults; what is set here has the later word.
    pub fn run_file(mut self, file: RunFile) -> Self {
        self.file = Some(file);
        self
    }

    /// Sets any key by its name, such as `"optim.clip"`. An unknown name and a value that the key
    /// does not accept are errors of [`PlanBuilder::build`].
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.values.push((key.to_string(), value.into()));
        self
    }

    /// `method`: whether tokens are selected.
    pub fn method(self, method: Method) -> Self {
        self.set("method", method)
    }

    /// `seed` of every random stream, at most 2^63 - 1.
    pub fn seed(self, seed: u64) -> Self {
        self.set("seed", whole(seed))
    }

    /// `steps`: optimizer steps.
    pub fn steps(self, steps: u64) -> Self {
        self.set("steps", whole(steps))
    }

    /// `teacher`: preset, model folder or Hub id.
    pub fn teacher(self, name: &str) -> Self {
        self.set("teacher", name)
    }

    /// `student`: preset, model folder or Hub id.
    pub fn student(self, name: &str) -> Self {
        self.set("student", name)
    }

    /// `init`: initialisation of the student.
    pub fn init(self, init: Init) -> Self {
        self.set("init", init)
    }

    /// `data.dir`: folder written by [`crate::data::prepare::prepare`].
    pub fn data(self, folder: &str) -> Self {
        self.set("data.dir", folder)
    }

    /// `data.context`: tokens per sequence.
    pub fn context(self, tokens: usize) -> Self {
        self.set("data.context", whole(tokens as u64))
    }

    /// `data.rows`: sequences per optimizer step.
    pub fn sequences(self, sequences: usize) -> Self {
        self.set("data.rows", whole(sequences as u64))
    }

    /// `select.score`: what ranks the tokens.
    pub fn score(self, score: Score) -> Self {
        self.set("select.score", score)
    }

    /// `select.alpha`: share of the tokens that is dropped, in [0, 1).
    pub fn alpha(self, share: f64) -> Self {
        self.set("select.alpha", share)
    }

    /// `objective.lambda`: weight of the teacher's divergence, in [0, 1].
    pub fn lambda(self, weight: f64) -> Self {
        self.set("objective.lambda", weight)
    }

    /// `objective.temperature` of teacher and student in the divergence.
    pub fn temperature(self, temperature: f64) -> Self {
        self.set("objective.temperature", temperature)
    }

    /// `optim.lr`: peak learning rate.
    pub fn learning_rate(self, rate: f64) -> Self {
        self.set("optim.lr", rate)
    }

    /// `machine.device`.
    pub fn device(self, device: DeviceSpec) -> Self {
        self.set("machine.device", device.to_string())
    }

    /// `machine.threads` of the CPU; 0 is one per core.
    pub fn threads(self, threads: usize) -> Self {
        self.set("machine.threads", whole(threads as u64))
    }

    /// The plan.
    ///
    /// # Errors
    /// Usage, where a key is unknown, or a value is not accepted or does not fit another; the
    /// message names the key.
    pub fn build(self) -> Result<Plan> {
        Ok(self.resolve()?.plan)
    }

    /// The plan with the origin of every value, and notes on what is allowed but probably not
    /// meant.
    pub fn resolve(self) -> Result<Resolved> {
        let mut overrides = Overrides::default();
        for (key, value) in self.values {
            overrides.put_value(&key, value, Origin::Builder)?;
        }
        load(self.file.as_ref(), &overrides)
    }
}
