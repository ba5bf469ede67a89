//! One optimizer step: the house in one function. Losses are sums and counts; the one division is
//! at its end, so micro-batches and selection add up.

use crate::config::{MicroRows, Plan};
use crate::cost::{Route, StepFacts};
use crate::data::loader::Batch;
use crate::error::{Error, Result};
use crate::loss::head::RowStats;
use crate::model::{Gpt2, ParamSet};
use crate::ops::matmul::Precision;
use crate::optim::adamw::{self, AdamW, global_norm};
use crate::optim::schedule;
use crate::select::{Observed, OwnScore, SelectionState, StepSelection};
use crate::signal::Stored;
use crate::teacher::Teacher;
use crate::train::micro::Clock;
use crate::train::sums::{CarriedReport, StepReport, StepSettings, Sums};
use std::sync::Arc;

/// What a step learns from: a student, perhaps a teacher, and the plan that says how.
#[derive(Debug)]
pub struct Trainer {
    /// The plan, settled ([`crate::cost::settle`]).
    pub plan: Plan,
    /// The student, trained in place.
    pub student: Gpt2,
    /// The teacher, if the plan has one beside the run.
    pub teacher: Option<Teacher>,
    /// What a teacher said of the training tokens, which stands for one
    /// ([`Trainer::learning_from`]).
    pub signal: Option<Arc<Stored>>,
    /// AdamW's moments.
    pub state: adamw::State,
    /// What selection remembers from step to step.
    pub selection: SelectionState,
    /// Whether a GPU is waited for at the end of every phase, so that its seconds are its own and
    /// not those of handing over its work. For measurements: it makes steps slower. On the CPU they
    /// always are.
    pub phases_apart: bool,
    pub(super) grads: ParamSet,
    own_score: Option<OwnScore>,
}

/// What the micro-batches of a step share.
pub(super) struct StepWork<'a> {
    pub settings: StepSettings,
    pub selection: StepSelection<'a>,
    pub route: Route,
}

impl Trainer {
    /// A trainer with fresh moments. The plan must be settled and must have been checked against
    /// both shapes. Both models then work at the plan's `machine.dtype`, and the teacher is stored
    /// as its `machine.teacher_dtype` says.
    pub fn new(plan: Plan, student: Gpt2, teacher: Option<Teacher>) -> Result<Self> {
        let device = student.params.wte().device().clone();
        let precision = Precision::of(plan.machine.dtype, &device)?;
        let activations = plan.machine.activations;
        let student = Gpt2 { precision, activations, ..student };
        let teacher =
            teacher.map(|t| t.working_at(precision, plan.machine.teacher_dtype)).transpose()?;
        let layout = student.params.layout();
        let state = adamw::State::new(layout, &device)?;
        let grads = ParamSet::zeros(layout, student.params.wte().dtype(), &device)?;
        Ok(Self {
            plan,
            student,
            teacher,
            signal: None,
            state,
            selection: SelectionState::default(),
            phases_apart: false,
            grads,
            own_score: None,
        })
    }

    /// The same, which reads what a teacher said of the training tokens in place of asking one.
    #[must_use]
    pub fn learning_from(self, signal: Option<Arc<Stored>>) -> Self {
        Self { signal, ..self }
    }

    /// Takes the memory of moments and gradients, so that the first step takes no longer than the
    /// next. `fresh` if the moments are zeros.
    pub(crate) fn take_memory(&self, fresh: bool) -> Result<()> {
        if fresh {
            self.state.m.fill(0.0)?;
            self.state.v.fill(0.0)?;
        }
        self.grads.fill(0.0)
    }

    /// Ranks tokens by a function of the caller's in place of the plan's score. It is asked once
    /// per micro-batch, with the statistics of its positions in order (the teacher's too, if the
    /// plan has one), and returns a score for each: the largest are kept, or the smallest where the
    /// plan says so. A checkpoint does not know of it.
    pub fn score_with(&mut self, score: impl FnMut(&[RowStats]) -> Vec<f32> + Send + 'static) {
        self.own_score = Some(OwnScore::new(score));
    }

    /// Trains on `batch`, the step's sequences, of which the run consumed `cursor` before. `step`
    /// counts from 0, while errors and metrics count steps done. On an error no parameter has
    /// changed.
    pub fn step(&mut self, step: u64, cursor: u64, batch: &Batch) -> Result<StepReport> {
        let done = self.try_step(step, cursor, batch);
        if done.is_err() {
            // The next step must not see half of this one.
            let wte = self.grads.head();
            self.grads = ParamSet::zeros(self.grads.layout(), wte.dtype(), wte.device())?;
        }
        done.map_err(|e| e.context(format!("step {}", step + 1)))
    }

    fn try_step(&mut self, step: u64, cursor: u64, batch: &Batch) -> Result<StepReport> {
        // Lent to the micro-batches, which otherwise only read the trainer.
        let mut own_score = self.own_score.take();
        let summed = self.gradients(step, cursor, batch, own_score.as_mut());
        self.own_score = own_score;
        let mut report = summed?;
        let mut clock = Clock::start(self);
        if report.sums.rows > 0 {
            self.update(&mut report)?;
        }
        self.observe(step, &mut report);
        clock.lap(&mut report.sums.phases.optimizer);
        Ok(report)
    }

    /// The gradients of a step, added up over its micro-batches, and its sums.
    fn gradients(
        &self,
        step: u64,
        cursor: u64,
        batch: &Batch,
        mut own: Option<&mut OwnScore>,
    ) -> Result<StepReport> {
        let plan = &self.plan;
        let settings = StepSettings {
            alpha: self.selection.alpha(plan, step),
            alpha_seq: plan.level_at(step).alpha_seq,
            lambda: plan.objective.lambda_at(step, plan.steps),
            temperature: plan.objective.temperature_at(step, plan.steps),
            lr: schedule::lr(step, &plan.schedule, plan.optim.lr, plan.steps),
        };
        let MicroRows::Rows(micro_rows) = plan.machine.micro_rows else {
            return Err(Error::internal("the plan's micro_rows must be settled before training"));
        };
        let selection =
            StepSelection::new(plan, &self.selection, settings.alpha, batch, micro_rows);
        let facts = StepFacts {
            selects: selection.selects(),
            weighs_teacher: settings.lambda > 0.0,
            threshold: selection.has_threshold(),
            own_score: own.is_some(),
        };
        let work = StepWork { settings, selection, route: Route::of(plan, facts) };
        let mut sums = Sums { tokens: batch.valid_count() as u64, ..Sums::default() };
        for first in (0..batch.sequences).step_by(micro_rows) {
            // A step of a large model takes minutes on a CPU: a stop discards what there is of it.
            crate::interrupt::check()?;
            let micro = batch.slice(first..batch.sequences.min(first + micro_rows));
            sums += self.micro_batch(&work, &micro, cursor + first as u64, own.as_deref_mut())?;
        }
        let denominator = selection.denominator(sums.kept, sums.valid);
        Ok(StepReport { settings, denominator, sums, ..StepReport::default() })
    }

    /// Clips by the global norm of the mean gradient and steps; everything is checked before
    /// anything moves.
    fn update(&mut self, report: &mut StepReport) -> Result<()> {
        let optim = &self.plan.optim;
        report.grad_norm = global_norm(&self.grads)? / report.denominator;
        let clip = if optim.clip > 0.0 && report.grad_norm > optim.clip {
            optim.clip / report.grad_norm
        } else {
            1.0
        };
        let adamw = AdamW {
            beta1: optim.beta1,
            beta2: optim.beta2,
            eps: optim.eps,
            weight_decay: optim.weight_decay,
        };
        let scale = (clip / report.denominator) as f32;
        adamw.update(&self.student.params, &self.grads, &mut self.state, report.settings.lr, scale)
    }

    /// What the next steps' selection learns from this one; nothing may fail any more.
    fn observe(&mut self, step: u64, report: &mut StepReport) {
        let used = self.selection.carried;
        let sums = &mut report.sums;
        let seen = Observed {
            step,
            alpha: report.settings.alpha,
            scores: &sums.scores,
            kept_score: sums.cvar,
            kept: sums.kept,
            easy_share: sums.easy_share(),
        };
        if let Some(exact) = self.selection.observe(&self.plan, seen) {
            (sums.var, sums.pools) = (exact, 1);
            report.carried = used.map(|used| {
                let threshold = f64::from(used.threshold);
                CarriedReport { threshold, lag: used.lag, error: threshold - exact }
            });
        }
        report.ada_delta = self.selection.ada.as_ref().and_then(|ada| ada.delta);
    }
}
