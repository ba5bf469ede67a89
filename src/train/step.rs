//! One optimizer step: the house in one function. Losses are sums and counts; the one division is at its end, so
//! micro-batches and selection add up.

use crate::config::{MicroRows, Plan, Pool};
use crate::data::loader::Batch;
use crate::error::{Error, Result};
use crate::model::{Gpt2, ParamSet};
use crate::ops::matmul::Precision;
use crate::optim::adamw::{self, AdamW, global_norm};
use crate::optim::schedule;
use crate::select::{Memory, Mixture, Observed, Selector, exact_var};
use crate::teacher::Teacher;
use crate::train::micro::Clock;
use crate::train::report::{CarriedReport, StepReport};

/// What a step learns from: a student, perhaps a teacher, and the plan that says how.
#[derive(Debug)]
pub struct Trainer {
    /// The plan, settled ([`crate::cost::settle`]).
    pub plan: Plan,
    /// The student, trained in place.
    pub student: Gpt2,
    /// The teacher, if the plan has one.
    pub teacher: Option<Teacher>,
    /// AdamW's moments.
    pub state: adamw::State,
    /// What selection remembers from step to step.
    pub memory: Memory,
    /// Whether a GPU is waited for at the end of every phase, so that its seconds are its own and not those of handing over
    /// its work. For measurements: it makes steps slower. On the CPU they always are.
    pub phases_apart: bool,
    pub(super) grads: ParamSet,
}

impl Trainer {
    /// A trainer with fresh moments. The plan must be settled and must have been checked against both shapes.
    /// Both models then work at the plan's `machine.dtype`, and the teacher is stored as its `machine.teacher_dtype` says.
    pub fn new(plan: Plan, student: Gpt2, teacher: Option<Teacher>) -> Result<Self> {
        let device = student.params.wte().device().clone();
        let precision = Precision::of(plan.machine.dtype, &device)?;
        let activations = plan.machine.activations;
        let student = Gpt2 { precision, activations, ..student };
        let teacher = teacher.map(|t| t.working_at(precision, plan.machine.teacher_dtype)).transpose()?;
        let layout = student.params.layout();
        let state = adamw::State::new(layout, &device)?;
        let grads = ParamSet::zeros(layout, student.params.wte().dtype(), &device)?;
        Ok(Self { plan, student, teacher, state, memory: Memory::default(), phases_apart: false, grads })
    }

    /// Trains on `batch`, the step's sequences, of which the run consumed `cursor` before. `step` counts from 0, while
    /// errors and metrics count steps done. On an error no parameter has changed.
    pub fn step(&mut self, step: u64, cursor: u64, batch: &Batch) -> Result<StepReport> {
        let done = self.try_step(step, cursor, batch);
        if done.is_err() {
            // The next step must not see half of this one.
            let wte = self.grads.wte();
            self.grads = ParamSet::zeros(self.grads.layout(), wte.dtype(), wte.device())?;
        }
        done.map_err(|e| e.context(format!("step {}", step + 1)))
    }

    fn try_step(&mut self, step: u64, cursor: u64, batch: &Batch) -> Result<StepReport> {
        let mut report = StepReport {
            alpha: self.memory.alpha(&self.plan, step),
            alpha_seq: self.plan.level_at(step).alpha_seq,
            lambda: self.plan.objective.lambda_at(step, self.plan.steps),
            temperature: self.plan.objective.temperature_at(step, self.plan.steps),
            tokens: batch.valid_count() as u64,
            ..StepReport::default()
        };
        let MicroRows::Rows(micro_rows) = self.plan.machine.micro_rows else {
            return Err(Error::internal("the plan's micro_rows must be settled before training"));
        };
        let micro_batches = (0..batch.rows).step_by(micro_rows).map(|r| r..batch.rows.min(r + micro_rows));
        let mixture = self.mixture(report.alpha, batch, micro_batches.clone());
        for rows in micro_batches {
            // A step of a large model takes minutes on a CPU: a stop discards what there is of it.
            crate::interrupt::check()?;
            self.micro_batch(&batch.slice(rows.clone()), cursor + rows.start as u64, mixture, &mut report)?;
        }
        let mut clock = Clock::start(self);
        report.lr = schedule::lr(step, &self.plan.schedule, self.plan.optim.lr, self.plan.steps);
        report.denominator = mixture.denominator(report.kept, report.valid);
        if report.rows > 0 {
            self.update(&mut report)?;
        }
        self.observe(step, &mut report);
        clock.lap(&mut report.phases.optimizer);
        Ok(report)
    }

    /// The mixture of a step at confidence level `alpha`: the share of tokens that it will keep must be known first.
    fn mixture(
        &self,
        alpha: f64,
        batch: &Batch,
        micro_batches: impl Iterator<Item = std::ops::Range<usize>>,
    ) -> Mixture {
        let all = batch.valid_count();
        let share = match self.plan.select.pool {
            _ if alpha == 0.0 || all == 0 => 1.0,
            Pool::Carried if self.memory.carried.is_none() => 1.0,
            Pool::Carried => 1.0 - alpha,
            Pool::Sequence | Pool::MicroBatch => {
                let selector = Selector::of(&self.plan.select, alpha);
                let positions =
                    |r: std::ops::Range<usize>| &batch.valid[r.start * batch.context..r.end * batch.context];
                let kept: usize = micro_batches.map(|r| selector.kept(positions(r), batch.context)).sum();
                kept as f64 / all as f64
            }
        };
        Mixture::new(&self.plan.select, share)
    }

    /// Clips by the global norm of the mean gradient and steps; everything is checked before anything moves.
    fn update(&mut self, report: &mut StepReport) -> Result<()> {
        let optim = &self.plan.optim;
        report.grad_norm = global_norm(&self.grads)? / report.denominator;
        let clip = if optim.clip > 0.0 && report.grad_norm > optim.clip { optim.clip / report.grad_norm } else { 1.0 };
        let adamw = AdamW { beta1: optim.beta1, beta2: optim.beta2, eps: optim.eps, weight_decay: optim.weight_decay };
        let scale = (clip / report.denominator) as f32;
        adamw.update(&self.student.params, &self.grads, &mut self.state, report.lr, scale)
    }

    /// What the next steps' selection learns from this one; nothing may fail any more.
    fn observe(&mut self, step: u64, report: &mut StepReport) {
        if self.plan.select.pool == Pool::Carried && !report.scores.is_empty() {
            report.var = exact_var(&self.plan, report.alpha, &report.scores);
            report.pools = 1;
            report.carried = self.memory.carried.map(|carried| {
                let threshold = f64::from(carried.threshold);
                CarriedReport { threshold, lag: carried.lag, error: threshold - report.var }
            });
        }
        let seen = Observed {
            step,
            alpha: report.alpha,
            scores: &report.scores,
            kept_score: report.cvar,
            kept: report.kept,
            easy_share: report.easy_share(),
        };
        self.memory.observe(&self.plan, seen);
        report.ada_delta = self.memory.ada.as_ref().and_then(|ada| ada.delta);
    }
}
