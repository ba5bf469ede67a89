//! One optimizer step: the house in one function. Losses are sums and counts; the one division is by the kept tokens of
//! the whole step, so micro-batches and selection add up.

use crate::config::arithmetic::{self, Flops, Work};
use crate::config::{BackwardMode, HeadMode, MicroRows, Plan, Score};
use crate::data::loader::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Gpt2, ParamSet};
use crate::ops::adamw::{self, AdamW, global_norm};
use crate::ops::embed::scatter_add;
use crate::ops::head::{self, Logits, Mix, RowStats};
use crate::select::{ScoreContext, Selection, Selector, scores};
use crate::teacher::Teacher;
use crate::train::events::Phases;
use crate::train::schedule;
use candle_core::Tensor;
use std::time::Instant;

/// What a step learns from: a student, perhaps a teacher, and the plan that says how.
#[derive(Debug)]
pub struct Trainer {
    /// The plan, settled ([`crate::config::arithmetic::settle`]).
    pub plan: Plan,
    /// The student, trained in place.
    pub student: Gpt2,
    /// The teacher, if the plan has one.
    pub teacher: Option<Teacher>,
    /// AdamW's moments.
    pub state: adamw::State,
    grads: ParamSet,
}

/// What a step did; sums over its micro-batches, losses in nats.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepReport {
    /// Positions that count, and those of them that were kept.
    pub valid: u64,
    /// See `valid`.
    pub kept: u64,
    /// Sum of the objective over kept positions.
    pub loss: f64,
    /// Sum of the cross-entropy over all positions.
    pub nll: f64,
    /// Sum of the cross-entropy over kept positions.
    pub kept_nll: f64,
    /// Positions whose target has a probability above 0.9.
    pub easy: u64,
    /// Sum over all positions of the score; None where nothing was selected.
    pub score: Option<f64>,
    /// Sums of values at risk and of kept scores, over `pools` pools.
    pub var: f64,
    /// See `var`.
    pub cvar: f64,
    /// See `var`.
    pub pools: usize,
    /// Confidence level of the step.
    pub alpha: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Global norm of the mean loss's gradient, before clipping.
    pub grad_norm: f64,
    /// Operations executed.
    pub flops: Flops,
    /// Seconds by phase.
    pub phases: Phases,
}

impl Trainer {
    /// A trainer with fresh moments. The plan must be settled and must have been checked against both shapes.
    pub fn new(plan: Plan, student: Gpt2, teacher: Option<Teacher>) -> Result<Self> {
        let device = student.params.wte().device().clone();
        let layout = student.params.layout();
        let state = adamw::State::new(layout, &device)?;
        let grads = ParamSet::zeros(layout, student.params.wte().dtype(), &device)?;
        Ok(Self { plan, student, teacher, state, grads })
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
        let mut report = StepReport { alpha: self.plan.alpha_at(step), ..StepReport::default() };
        let MicroRows::Rows(micro_rows) = self.plan.machine.micro_rows else {
            return Err(Error::internal("the plan's micro_rows must be settled before training"));
        };
        for start in (0..batch.rows).step_by(micro_rows) {
            // A step of a large model takes minutes on a CPU: a stop discards what there is of it.
            crate::signal::check()?;
            let micro = batch.slice(start..batch.rows.min(start + micro_rows));
            self.micro_batch(&micro, cursor + start as u64, &mut report)?;
        }
        let mut clock = Clock::start();
        report.lr = schedule::lr(step, &self.plan.schedule, self.plan.optim.lr, self.plan.steps);
        if report.kept > 0 {
            self.update(&mut report)?;
        }
        clock.lap(&mut report.phases.optimizer);
        Ok(report)
    }

    fn micro_batch(&mut self, batch: &Batch, first_sequence: u64, report: &mut StepReport) -> Result<()> {
        let mut clock = Clock::start();
        let (context, n) = (batch.context, batch.inputs.len());
        let keep = self.plan.machine.head != HeadMode::Recompute;
        let selecting = report.alpha > 0.0;
        let mix = Mix {
            divergence: self.plan.objective.divergence(),
            lambda: self.plan.objective.lambda as f32,
            temperature: if self.teacher.is_some() { self.plan.objective.temperature as f32 } else { 1.0 },
        };

        let (hidden, tape) = self.student.forward_with_tape(&batch.inputs, context)?;
        clock.lap(&mut report.phases.forward);
        let score = self.plan.select.score;
        let teacher_scores = selecting && score.needs_teacher();
        let mut signal = match &self.teacher {
            Some(teacher) if mix.lambda > 0.0 || teacher_scores => {
                Some(teacher.signal(&batch.inputs, context, keep)?)
            }
            _ => None,
        };
        clock.lap(&mut report.phases.teacher);
        let mut logits = Logits::new(hidden, self.student.params.wte().clone(), keep);
        // Where every row of the teacher is read anyway, one pass serves score and loss.
        let together = teacher_scores || !selecting;
        let beside = if together { signal.as_mut() } else { None };
        let tau = if together { mix.temperature } else { 1.0 };
        let stats = head::scan(&mut logits, beside, &batch.targets, tau)?;
        // Whatever the score: a NaN is never dropped in silence.
        let losses = (0..n).filter(|&i| batch.valid[i]).map(|i| (i, stats[i].student.nll));
        check_finite("loss of the student", losses, batch)?;
        clock.lap(&mut report.phases.scan);

        let selection = self.select(selecting.then_some(score), &stats, batch, first_sequence, report)?;
        report.add(&stats, batch, &selection);
        clock.lap(&mut report.phases.select);
        let work = Work {
            sequences: batch.rows as u64,
            context: context as u64,
            kept: selection.rows.len() as u64,
            selecting,
        };
        let teacher_shape = self.teacher.as_ref().map(|t| &t.model().config);
        report.flops += arithmetic::flops(&self.student.config, teacher_shape, &self.plan, work);
        if selection.rows.is_empty() {
            return Ok(());
        }

        // Without a gap in the rows there is nothing to gather: the same path, bit for bit, as plain training.
        let rows = (selection.rows.len() < n).then_some(selection.rows.as_slice());
        let picked = Picked::new(rows, &stats, &batch.targets);
        let (stats, targets) = (picked.stats.unwrap_or(stats), picked.targets.as_deref().unwrap_or(&batch.targets));
        let mut logits = select_rows(logits, rows)?;
        let mut signal = match signal {
            Some(signal) => Some(select_rows(signal, rows)?),
            None => None,
        };
        let stats = match &mut signal {
            Some(signal) if !together => head::scan(&mut logits, Some(signal), targets, mix.temperature)?,
            _ => stats,
        };
        if signal.is_some() && mix.lambda > 0.0 {
            let divergences = selection.rows.iter().zip(&stats).map(|(&r, s)| (r as usize, s.kl));
            check_finite("KL to the teacher", divergences, batch)?;
        }
        clock.lap(&mut report.phases.teacher);
        let weights = vec![1.0; targets.len()];
        let signal = signal.as_ref().filter(|_| mix.lambda > 0.0);
        let loss = head::loss(&logits, signal, &stats, targets, &weights, mix, self.grads.wte())?;
        report.loss += loss.sum;
        drop(logits);
        clock.lap(&mut report.phases.head);
        match (rows, self.plan.machine.backward) {
            (Some(rows), BackwardMode::Dense) => {
                let dense = Tensor::zeros((n, loss.d_hidden.dim(1)?), loss.d_hidden.dtype(), loss.d_hidden.device())?;
                scatter_add(&dense, &loss.d_hidden, rows)?;
                self.student.backward(tape, None, &dense, &self.grads)?;
            }
            _ => self.student.backward(tape, rows, &loss.d_hidden, &self.grads)?,
        }
        clock.lap(&mut report.phases.backward);
        Ok(())
    }

    fn select(
        &self,
        score: Option<Score>,
        stats: &[RowStats],
        batch: &Batch,
        first_sequence: u64,
        report: &mut StepReport,
    ) -> Result<Selection> {
        let Some(score) = score else {
            let rows = (0..batch.valid.len() as u32).filter(|&i| batch.valid[i as usize]).collect();
            return Ok(Selection { rows, ..Selection::default() });
        };
        let scores = scores(score, stats, batch, ScoreContext::new(self.plan.seed, first_sequence))?;
        *report.score.get_or_insert(0.0) += scores.iter().map(|s| f64::from(*s)).sum::<f64>();
        let selector = Selector { alpha: report.alpha, pool: self.plan.select.pool, tail: self.plan.select.tail };
        Ok(selector.select(&scores, &batch.valid, batch.context))
    }

    /// Clips by the global norm of the mean gradient and steps; everything is checked before anything moves.
    fn update(&mut self, report: &mut StepReport) -> Result<()> {
        let optim = &self.plan.optim;
        let kept = report.kept as f64;
        report.grad_norm = global_norm(&self.grads)? / kept;
        let clip = if optim.clip > 0.0 && report.grad_norm > optim.clip { optim.clip / report.grad_norm } else { 1.0 };
        let adamw = AdamW { beta1: optim.beta1, beta2: optim.beta2, eps: optim.eps, weight_decay: optim.weight_decay };
        adamw.update(&self.student.params, &self.grads, &mut self.state, report.lr, (clip / kept) as f32)
    }
}

impl StepReport {
    fn add(&mut self, stats: &[RowStats], batch: &Batch, selection: &Selection) {
        for (s, _) in stats.iter().zip(&batch.valid).filter(|(_, valid)| **valid) {
            self.valid += 1;
            self.nll += f64::from(s.student.nll);
            self.easy += u64::from(s.student.nll < EASY_NLL);
        }
        self.kept += selection.rows.len() as u64;
        self.kept_nll += selection.rows.iter().map(|&r| f64::from(stats[r as usize].student.nll)).sum::<f64>();
        self.var += selection.var_sum;
        self.cvar += selection.score_sum;
        self.pools += selection.pools;
    }
}

/// -ln 0.9: a target more probable than 0.9 counts as easy.
const EASY_NLL: f32 = 0.105_360_52;

/// Statistics and targets of the kept rows; None where every row is kept.
struct Picked {
    stats: Option<Vec<RowStats>>,
    targets: Option<Vec<u32>>,
}

impl Picked {
    fn new(rows: Option<&[u32]>, stats: &[RowStats], targets: &[u32]) -> Self {
        Self {
            stats: rows.map(|rows| rows.iter().map(|&r| stats[r as usize]).collect()),
            targets: rows.map(|rows| rows.iter().map(|&r| targets[r as usize]).collect()),
        }
    }
}

fn select_rows(logits: Logits, rows: Option<&[u32]>) -> Result<Logits> {
    match rows {
        Some(rows) => logits.select(rows),
        None => Ok(logits),
    }
}

/// What enters the loss must be finite; `values` are (position in the micro-batch, value).
fn check_finite(what: &str, mut values: impl Iterator<Item = (usize, f32)>, batch: &Batch) -> Result<()> {
    let Some((i, value)) = values.find(|(_, value)| !value.is_finite()) else { return Ok(()) };
    let (sequence, position) = (batch.sequence_ids[i / batch.context], i % batch.context);
    Err(Error::new(
        ErrorKind::NonFinite,
        format!("expected a finite {what}, found {value} at sequence {sequence}, position {position}"),
    ))
}

/// Adds the time since the last lap to a phase.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn lap(&mut self, phase: &mut f64) {
        let now = Instant::now();
        *phase += (now - self.0).as_secs_f64();
        self.0 = now;
    }
}
