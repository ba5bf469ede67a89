//! One micro-batch: student and teacher forward, score, selection, head, backward.

use super::report::StepReport;
use super::step::Trainer;
use crate::config::arithmetic::{self, Work};
use crate::config::{BackwardMode, HeadMode, Pool, Score};
use crate::data::loader::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::embed::scatter_add;
use crate::ops::head::{self, Logits, Mix, RowStats, ScanOptions};
use crate::rng::{Rng, Stream};
use crate::select::{Mixture, Rows, ScoreContext, Selection, scores};
use candle_core::Tensor;
use std::time::Instant;

impl Trainer {
    /// Adds the gradients of `batch`, whose first sequence is number `first_sequence` of the run, and its sums.
    pub(super) fn micro_batch(
        &mut self,
        batch: &Batch,
        first_sequence: u64,
        mixture: Mixture,
        report: &mut StepReport,
    ) -> Result<()> {
        let mut clock = Clock::start();
        let (context, n) = (batch.context, batch.inputs.len());
        let keep = self.plan.machine.head != HeadMode::Recompute;
        let selecting = report.alpha > 0.0;
        let objective = &self.plan.objective;
        let mix = Mix {
            lambda: report.lambda as f32,
            temperature: if self.teacher.is_some() { report.temperature as f32 } else { 1.0 },
            divergence: objective.divergence(),
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
        let options = ScanOptions { tau, reverse_kl: selecting && score == Score::ReverseKl };
        let stats = head::scan(&mut logits, beside, &batch.targets, options)?;
        // Whatever the score: a NaN is never dropped in silence.
        let losses = (0..n).filter(|&i| batch.valid[i]).map(|i| (i, stats[i].student.nll));
        check_finite("loss of the student", losses, batch)?;
        clock.lap(&mut report.phases.scan);

        let selection = self.select(selecting.then_some(score), &stats, batch, first_sequence, report)?;
        report.add(&stats, batch, &selection);
        let numbers = ScoreContext::new(self.plan.seed, first_sequence);
        let rng = Rng::new(self.plan.seed, Stream::Rest);
        let draw = |i: u32| rng.uniform(0, numbers.token(i as usize, context));
        let Rows { rows, weights } =
            if selecting { mixture.rows(selection.rows, &batch.valid, draw) } else { Rows::plain(selection.rows) };
        report.rows += rows.len() as u64;
        clock.lap(&mut report.phases.select);
        let work = Work {
            sequences: batch.rows as u64,
            context: context as u64,
            kept: rows.len() as u64,
            selecting,
            distils: mix.lambda > 0.0,
        };
        let teacher_shape = self.teacher.as_ref().map(|t| &t.model().config);
        report.flops += arithmetic::flops(&self.student.config, teacher_shape, &self.plan, work);
        if rows.is_empty() {
            return Ok(());
        }

        // Without a gap in the rows there is nothing to gather: the same path, bit for bit, as plain training.
        let gaps = (rows.len() < n).then_some(rows.as_slice());
        let picked = Picked::new(gaps, &stats, &batch.targets);
        let (stats, targets) = (picked.stats.unwrap_or(stats), picked.targets.as_deref().unwrap_or(&batch.targets));
        let mut logits = select_rows(logits, gaps)?;
        let mut signal = match signal {
            Some(signal) => Some(select_rows(signal, gaps)?),
            None => None,
        };
        let stats = match &mut signal {
            Some(signal) if !together => head::scan(&mut logits, Some(signal), targets, mix.temperature)?,
            _ => stats,
        };
        if signal.is_some() && mix.lambda > 0.0 {
            let divergences = rows.iter().zip(&stats).map(|(&r, s)| (r as usize, s.kl));
            check_finite("KL to the teacher", divergences, batch)?;
        }
        let signal = match signal.filter(|_| mix.lambda > 0.0) {
            Some(dense) => {
                let tokens: Vec<u64> = rows.iter().map(|&r| numbers.token(r as usize, context)).collect();
                Some(objective.signal_kind().reduce(dense, &stats, mix.temperature, self.plan.seed, &tokens)?)
            }
            None => None,
        };
        clock.lap(&mut report.phases.teacher);
        let loss = head::loss(&logits, signal.as_ref(), &stats, targets, &weights, mix, self.grads.wte())?;
        report.loss += loss.sum;
        report.add_row_norms(&loss.d_hidden)?;
        drop(logits);
        clock.lap(&mut report.phases.head);
        match (gaps, self.plan.machine.backward) {
            (Some(rows), BackwardMode::Dense) => {
                let dense = Tensor::zeros((n, loss.d_hidden.dim(1)?), loss.d_hidden.dtype(), loss.d_hidden.device())?;
                scatter_add(&dense, &loss.d_hidden, rows)?;
                self.student.backward(tape, None, &dense, &self.grads)?;
            }
            _ => self.student.backward(tape, gaps, &loss.d_hidden, &self.grads)?,
        }
        clock.lap(&mut report.phases.backward);
        Ok(())
    }

    /// The kept positions: all that count where there is no score to select by.
    fn select(
        &self,
        score: Option<Score>,
        stats: &[RowStats],
        batch: &Batch,
        first_sequence: u64,
        report: &mut StepReport,
    ) -> Result<Selection> {
        let every = || (0..batch.valid.len() as u32).filter(|&i| batch.valid[i as usize]);
        let Some(score) = score else {
            return Ok(Selection { rows: every().collect(), ..Selection::default() });
        };
        let select = &self.plan.select;
        let context = ScoreContext::new(self.plan.seed, first_sequence);
        let scores = scores(score, select.pool, stats, batch, context)?;
        report.scores.extend(every().map(|i| scores[i as usize]));
        if select.pool != Pool::Carried {
            return Ok(self.plan.selector(report.alpha).select(&scores, &batch.valid, batch.context));
        }
        // Before there is a threshold every position is kept, and the step's scores make the first one.
        let keeps = |i: &u32| self.memory.carried.is_none_or(|carried| carried.keeps(scores[*i as usize], select.tail));
        let rows: Vec<u32> = every().filter(keeps).collect();
        let score_sum = rows.iter().map(|&i| f64::from(scores[i as usize])).sum();
        Ok(Selection { rows, score_sum, ..Selection::default() })
    }
}

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
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn lap(&mut self, phase: &mut f64) {
        let now = Instant::now();
        *phase += (now - self.0).as_secs_f64();
        self.0 = now;
    }
}
