//! The processes that work on a comparison: process 0 decides what comes next, and all of them do it.

use crate::config::Plan;
use crate::data::tokens::TokenFile;
use crate::error::Result;
use crate::eval::perplexity::{EvalOptions, Evaluation, evaluate_among};
use crate::model::Gpt2;
use crate::progress::{Progress, Silent};
use crate::store::Where;
use crate::store::weights::load_model;
use crate::train::run::train;
use crate::train::session::{Session, device};
use crate::world::World;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What all do together.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Job {
    /// See [`Crew::train`]. On the data folder `data`, or on its plan's.
    Train { plan: Box<Plan>, data: Option<PathBuf>, run: PathBuf, label: Option<String> },
    /// The model in a folder on the first tokens of a file.
    Evaluate {
        plan: Box<Plan>,
        model: PathBuf,
        text: PathBuf,
        tokens: u64,
        context: usize,
        stride: usize,
    },
}

/// The processes, as process 0 has them; one alone does it by itself.
#[derive(Debug, Clone, Default)]
pub struct Crew(World);

impl Crew {
    /// What `lead` does in process 0 with the others' help; None in the others, whose plans are made
    /// their own by `own`. Collective.
    pub fn led<T>(
        world: &World,
        around: Where<'_>,
        own: impl Fn(Plan) -> Plan,
        lead: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<Option<T>> {
        let crew = Self(world.clone());
        if world.is_root() {
            let done = lead(&crew)?;
            crew.tell(None)?;
            return Ok(Some(done));
        }
        while let Some(job) = crew.tell(None)? {
            crew.help(job, around, &own)?;
        }
        Ok(None)
    }

    /// Trains `plan` in the folder `run`, from its newest checkpoint if it has one.
    pub(super) fn train(
        &self,
        plan: &Plan,
        data: Option<&Path>,
        run: &Path,
        label: Option<&str>,
        around: Where<'_>,
    ) -> Result<()> {
        let job = Job::Train {
            plan: Box::new(plan.clone()),
            data: data.map(Path::to_path_buf),
            run: run.to_path_buf(),
            label: label.map(str::to_string),
        };
        self.tell(Some(job.clone()))?;
        self.help(job, around, |plan| plan)
    }

    /// Evaluates the model in the folder `at`, which was trained by `plan`, on all of a token file;
    /// `each` as in [`evaluate_among`].
    pub(super) fn evaluate(
        &self,
        (plan, at, model): (&Plan, &Path, &Gpt2),
        text: &Arc<TokenFile>,
        options: EvalOptions,
        progress: &dyn Progress,
        each: impl FnMut(&[f32]),
    ) -> Result<Evaluation> {
        self.tell(Some(Job::Evaluate {
            plan: Box::new(plan.clone()),
            model: at.to_path_buf(),
            text: text.path().to_path_buf(),
            tokens: text.len(),
            context: options.context,
            stride: options.stride,
        }))?;
        evaluate_among(&self.0, model, text, options, progress, each)
    }

    /// Process 0 says what comes next, or that nothing does; all have it.
    fn tell(&self, job: Option<Job>) -> Result<Option<Job>> {
        self.0.from_root(|| Ok(job))
    }

    fn help(&self, job: Job, around: Where<'_>, own: impl Fn(Plan) -> Plan) -> Result<()> {
        match job {
            Job::Train { plan, data, run, label } => {
                let plan = own(*plan);
                let session = self.0.root_first(|| match data {
                    Some(data) => Session::with_data(&plan, &data, around),
                    None => Session::resume(&plan, &run, around),
                })?;
                let session = session.among(self.0.clone());
                let session = match label {
                    Some(label) => session.called(&label),
                    None => session,
                };
                train(session, &run, true, around.progress).map(drop)
            }
            Job::Evaluate { plan, model, text, tokens, context, stride } => {
                let (config, params) = load_model(&model, &device(own(*plan).machine.device)?)?;
                let text = Arc::new(TokenFile::open(&text)?).bounded(tokens)?;
                let options = EvalOptions { stride, ..EvalOptions::new(context) };
                let model = Gpt2::new(config, params);
                evaluate_among(&self.0, &model, &text, options, &Silent, |_| ()).map(drop)
            }
        }
    }
}
