//! One micro-batch: student and teacher forward, score, selection, head, backward.

use super::report::StepReport;
use super::step::Trainer;
use crate::config::{BackwardMode, HeadMode, Pool, Rho, Score};
use crate::cost::{self, Drawn, Probe, Work};
use crate::data::loader::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::loss::head::{self, Found, Fused, Logits, Mix, RowStats, ScanOptions, Weigh};
use crate::loss::{Divergence, SignalKind};
use crate::model::{Chosen, Flow, Partial, Reached, RowBudget, RowSampler, Tape};
use crate::ops::embed::scatter_add;
use crate::rng::{Rng, Stream};
use crate::select::{
    Carried, Mixture, Rows, ScoreContext, Selection, Selector, keep_sequences, kept_of, probe_rows, score_is_finite,
    score_of, scores,
};
use candle_core::{Device, Tensor};
use std::borrow::Cow;
use std::time::Instant;

/// What the steps of a micro-batch share.
struct Micro<'a> {
    batch: &'a Batch,
    numbers: ScoreContext<'a>,
    /// What tokens are ranked by; None where every one counts.
    score: Option<Score>,
    mix: Mix,
    mixture: Mixture,
    /// Whether the teacher's logits are read at every position, for the score or because every position counts.
    together: bool,
    /// Draws the rows of a sampled backward.
    sampler: Option<RowSampler>,
}

/// A forward pass after phase one.
struct Begun {
    partial: Partial,
    /// What phase one cost; None without it.
    probe: Option<Probe>,
    /// The sequences that go on; None where all do.
    left: Option<Vec<u32>>,
}

/// Rows that carry gradient, ascending, and their gradient at the head's input [k, D].
struct Head {
    rows: Vec<u32>,
    d_hidden: Tensor,
    /// How many there were before a sampled backward drew these.
    before: usize,
    /// What one pass over the head found, if it was one, and what was selected by it.
    found: Option<(Found, Selection)>,
}

impl Trainer {
    /// Adds the gradients of `batch`, whose first sequence is number `first_sequence` of the run, and its sums.
    pub(super) fn micro_batch(
        &mut self,
        batch: &Batch,
        first_sequence: u64,
        mixture: Mixture,
        report: &mut StepReport,
    ) -> Result<()> {
        let mut clock = Clock::start(self);
        let numbers = ScoreContext::new(self.plan.seed, first_sequence);
        let Begun { partial, probe, left } = self.phase_one(batch, numbers, report.alpha_seq)?;
        let picked = left.as_ref().map(|left| batch.pick(left));
        let (sequences, batch) = (batch.rows, picked.as_ref().unwrap_or(batch));
        let numbers = numbers.among(left.as_deref());
        report.sequences.0 += sequences as u64;
        report.sequences.1 += batch.rows as u64;
        let context = batch.context;
        let keep = self.plan.machine.head != HeadMode::Recompute;
        let score = (report.alpha > 0.0).then_some(self.plan.select.score);
        let teacher_scores = score.is_some_and(Score::needs_teacher);
        let objective = &self.plan.objective;
        let mix = Mix {
            lambda: report.lambda as f32,
            temperature: if self.teacher.is_some() { report.temperature as f32 } else { 1.0 },
            divergence: Divergence::of(objective),
        };
        let together = teacher_scores || score.is_none();
        let sampler = self.row_sampler(batch, numbers);
        let micro = Micro { batch, numbers, score, mix, mixture, together, sampler };

        let (hidden, tape) = self.student.finish(partial)?;
        clock.lap(&mut report.phases.forward);
        let signal = match &self.teacher {
            Some(teacher) if mix.lambda > 0.0 || teacher_scores => {
                Some(teacher.signal(&batch.inputs, context, keep)?)
            }
            _ => None,
        };
        clock.lap(&mut report.phases.teacher);
        let logits = self.student.logits(hidden, keep);
        let carried = self.memory.carried.filter(|_| score.is_some() && self.plan.select.pool == Pool::Carried);
        // A row's fate is known beforehand, or with its score and a threshold at hand; unless its teacher is asked for kept
        // rows only. That is what the plan foresees, but for a first step without a threshold and one without lambda.
        let one_pass = match score {
            None => self.plan.one_pass(false),
            Some(_) => {
                carried.is_some() && (signal.is_none() || (together && (mix.lambda == 0.0 || objective.is_dense())))
            }
        };
        let head = if one_pass {
            Some(self.one_pass(&micro, carried, &logits, signal.as_ref(), report, &mut clock)?)
        } else {
            self.two_passes(&micro, carried, logits, signal, report, &mut clock)?
        };
        let mut work = Work {
            sequences: batch.rows as u64,
            context: context as u64,
            kept: head.as_ref().map_or(0, |head| head.before as u64),
            selecting: score.is_some(),
            one_pass,
            probe,
            distils: mix.lambda > 0.0,
            drawn: None,
        };
        let teacher_shape = self.teacher.as_ref().map(|t| &t.model().config);
        if let Some(Head { rows, d_hidden, found, .. }) = head {
            if !rows.is_empty() {
                report.rows += rows.len() as u64;
                let reached = self.trunk_backward(&micro, tape, &rows, &d_hidden)?;
                report.block_rows.0 += reached.outputs;
                report.block_rows.1 += (self.student.config.n_layer * batch.inputs.len()) as u64;
                let Reached { outputs: blocks, keys } = reached;
                work.drawn = micro.sampler.is_some().then_some(Drawn { head: rows.len() as u64, blocks, keys });
                // Only now, with all of its work handed over, is a GPU waited for.
                report.add_row_norms(&d_hidden)?;
            }
            if let Some((found, selection)) = found {
                self.take_in(&micro, found, &selection, report)?;
            }
        }
        report.flops += cost::flops(&self.student.config, teacher_shape, &self.plan, work);
        clock.lap(&mut report.phases.backward);
        Ok(())
    }

    /// What draws the rows of a sampled backward; None in every other mode.
    fn row_sampler(&self, batch: &Batch, numbers: ScoreContext<'_>) -> Option<RowSampler> {
        let machine = &self.plan.machine;
        if machine.backward != BackwardMode::Sampled {
            return None;
        }
        let budget = match machine.rho {
            Rho::Share(rho) => RowBudget::Share(rho),
            // Each draw multiplies the variance of what the draws above left, so that together they come to what is allowed.
            Rho::Auto => {
                let draws = (2 * self.student.config.n_layer + 1) as f64;
                RowBudget::Variance((1.0 + machine.added_variance).powf(1.0 / draws) - 1.0)
            }
        };
        let tokens = (0..batch.inputs.len()).map(|i| numbers.token(i, batch.context)).collect();
        Some(RowSampler::new(budget, self.plan.seed, tokens, batch.context))
    }

    /// From the head's input down. Returns the rows that carried gradient.
    fn trunk_backward(&self, micro: &Micro<'_>, tape: Tape, rows: &[u32], d_hidden: &Tensor) -> Result<Reached> {
        let mode = self.plan.machine.backward;
        let n = micro.batch.inputs.len();
        let flow = match (mode, &micro.sampler) {
            // Without selection there is nothing to be sparse about, whatever positions of the batch do not count.
            (BackwardMode::Sparse, _) if micro.score.is_some() => Flow::Sparse,
            (_, Some(sampler)) => Flow::Sampled(sampler),
            _ => Flow::Exact,
        };
        match gaps(rows, n) {
            Some(rows) if mode == BackwardMode::Dense => {
                let dense = Tensor::zeros((n, d_hidden.dim(1)?), d_hidden.dtype(), d_hidden.device())?;
                scatter_add(&dense, d_hidden, rows)?;
                self.student.backward_through(tape, None, &dense, &self.grads, flow)
            }
            rows => self.student.backward_through(tape, rows, d_hidden, &self.grads, flow),
        }
    }

    /// The student's first blocks, and the sequences that go on from there.
    fn phase_one(&self, batch: &Batch, numbers: ScoreContext<'_>, alpha_seq: f64) -> Result<Begun> {
        let select = &self.plan.select;
        if kept_of(alpha_seq, batch.rows) == batch.rows {
            let partial = self.student.begin(&batch.inputs, batch.context, 0)?;
            return Ok(Begun { partial, probe: None, left: None });
        }
        let mut partial = self.student.begin(&batch.inputs, batch.context, select.exit_layer)?;
        let rows = probe_rows(batch.rows, batch.context, select.probe_stride);
        let hidden = self.student.probe(&partial, &rows)?;
        let mut logits = self.student.logits(hidden, false);
        let stats = head::scan(&mut logits, None, &pick(Some(&rows), &batch.targets), 1.0)?;
        let (score, numbers) = (select.probe_score.of_tokens(), numbers.for_probes(self.plan.seed));
        let valid = pick(Some(&rows), &batch.valid);
        let one = |(i, &row): (usize, &u32)| {
            let value = score_of(score, &stats[i], || numbers.token(row as usize, batch.context), numbers.rng());
            if valid[i] { score_is_finite(score, value, row as usize, batch) } else { Ok(0.0) }
        };
        let scores = rows.iter().enumerate().map(one).collect::<Result<Vec<f32>>>()?;
        let left = keep_sequences(alpha_seq, batch.rows, &scores, &valid);
        let probe =
            Probe { sequences: batch.rows as u64, exit_layer: select.exit_layer as u64, rows: rows.len() as u64 };
        partial.keep(&left)?;
        Ok(Begun { partial, probe: Some(probe), left: Some(left) })
    }

    /// Scans every row, selects in the pools, then forms loss and gradient of the chosen rows. None if there are none.
    fn two_passes(
        &self,
        micro: &Micro<'_>,
        carried: Option<Carried>,
        mut logits: Logits,
        mut signal: Option<Logits>,
        report: &mut StepReport,
        clock: &mut Clock,
    ) -> Result<Option<Head>> {
        let Micro { batch, mix, .. } = *micro;
        // Where every row of the teacher is read anyway, one scan serves score and loss.
        let beside = if micro.together { signal.as_mut() } else { None };
        let tau = if micro.together { mix.temperature } else { 1.0 };
        let stats = head::scan(&mut logits, beside, &batch.targets, micro.options(tau))?;
        // Whatever the score: a NaN is never dropped in silence.
        stats.iter().enumerate().try_for_each(|(i, s)| micro.check("loss of the student", i, s.student.nll))?;
        clock.lap(&mut report.phases.scan);

        let selection = self.select(micro, carried, &stats, report)?;
        report.add(&stats, batch, &selection);
        let Rows { mut rows, mut weights } = match micro.score {
            Some(_) => micro.mixture.rows(selection.rows, &batch.valid, |i| self.draw(micro, i as usize)),
            None => Rows::plain(selection.rows),
        };
        clock.lap(&mut report.phases.select);
        if rows.is_empty() {
            return Ok(None);
        }

        let picked = gaps(&rows, batch.inputs.len());
        let (mut targets, mut stats) = (pick(picked, &batch.targets), pick(picked, &stats));
        let mut logits = select_rows(logits, picked)?;
        let mut signal = signal.map(|signal| select_rows(signal, picked)).transpose()?;
        if let Some(signal) = signal.as_mut().filter(|_| !micro.together) {
            stats = head::scan(&mut logits, Some(signal), &targets, mix.temperature)?.into();
        }
        if signal.is_some() && mix.lambda > 0.0 {
            let mut rows = rows.iter().zip(stats.iter());
            rows.try_for_each(|(&r, s)| micro.check("KL to the teacher", r as usize, s.kl))?;
        }
        let before = rows.len();
        let mut loss_of_all = None;
        if let Some(Chosen { indices, weights: inverse }) = self.choose_at_head(micro, &rows, &stats, &weights) {
            // The loss is that of all rows; only its gradient is a sample.
            let loss = head::loss_of(&stats, &weights, mix);
            if indices.is_empty() {
                report.loss += loss;
                return Ok(None);
            }
            loss_of_all = Some(loss);
            weights = indices.iter().zip(inverse).map(|(&i, w)| weights[i as usize] * w).collect();
            rows = indices.iter().map(|&i| rows[i as usize]).collect();
            (targets, stats) = (gathered(&indices, &targets), gathered(&indices, &stats));
            logits = logits.select(&indices)?;
            signal = signal.map(|signal| signal.select(&indices)).transpose()?;
        }
        let signal = match signal.filter(|_| mix.lambda > 0.0) {
            Some(dense) => {
                let tokens: Vec<u64> = rows.iter().map(|&r| micro.numbers.token(r as usize, batch.context)).collect();
                let kind = SignalKind::of(&self.plan.objective);
                Some(kind.reduce(dense, &stats, mix.temperature, self.plan.seed, &tokens)?)
            }
            None => None,
        };
        clock.lap(&mut report.phases.teacher);
        let loss = head::loss(&logits, signal.as_ref(), &stats, &targets, &weights, mix, self.grads.wte())?;
        report.loss += loss_of_all.unwrap_or(loss.sum);
        clock.lap(&mut report.phases.head);
        Ok(Some(Head { rows, d_hidden: loss.d_hidden, before, found: None }))
    }

    /// Which of the rows a sampled backward differentiates at the head, None for all, by what is known of the norms of
    /// their logits' gradients before these are formed.
    fn choose_at_head(&self, micro: &Micro<'_>, rows: &[u32], stats: &[RowStats], weights: &[f32]) -> Option<Chosen> {
        let bounded = micro.mix.lambda == 0.0 || cost::forward_kl(&self.plan);
        let sampler = micro.sampler.as_ref().filter(|_| bounded)?;
        let bound = |(s, w): (&RowStats, &f32)| f64::from(*w) * head::gradient_bound(s, micro.mix);
        let norms: Vec<f64> = stats.iter().zip(weights).map(bound).collect();
        sampler.choose(self.student.config.n_layer, Some(rows), &norms)
    }

    /// Scores, decides and differentiates row after row: every row that counts where nothing is scored.
    fn one_pass(
        &self,
        micro: &Micro<'_>,
        carried: Option<Carried>,
        logits: &Logits,
        signal: Option<&Logits>,
        report: &mut StepReport,
        clock: &mut Clock,
    ) -> Result<Head> {
        let Micro { batch, mix, .. } = *micro;
        let (options, d_head) = (micro.options(mix.temperature), self.grads.wte());
        let run = |weigh: Weigh<'_>| head::fused(logits, signal, &batch.targets, options, mix, weigh, d_head);
        let mut selection = Selection::default();
        let Some((score, carried)) = micro.score.zip(carried) else {
            let weights: Vec<f32> = batch.valid.iter().map(|valid| f32::from(u8::from(*valid))).collect();
            let done = run(Weigh::Known(&weights))?;
            selection.rows.clone_from(&done.rows);
            clock.lap(&mut report.phases.head);
            return Ok(Head::of(done, selection));
        };
        let mut weigh = |i: usize, stats: &RowStats| -> Result<f32> {
            micro.check("loss of the student", i, stats.student.nll)?;
            if !batch.valid[i] {
                return Ok(0.0);
            }
            let value = score_of(score, stats, || micro.numbers.token(i, batch.context), micro.numbers.rng());
            let value = score_is_finite(score, value, i, batch)?;
            report.scores.push(value);
            let kept = carried.keeps(value, self.plan.select.tail);
            if kept {
                selection.rows.push(i as u32);
                selection.score_sum += f64::from(value);
            }
            Ok(micro.mixture.weight(kept, || self.draw(micro, i)))
        };
        let done = run(Weigh::Asking(&mut weigh))?;
        clock.lap(&mut report.phases.head);
        Ok(Head::of(done, selection))
    }

    /// What one pass over the head found: it must be finite where it counts.
    fn take_in(&self, micro: &Micro<'_>, found: Found, selection: &Selection, report: &mut StepReport) -> Result<()> {
        let (stats, loss) = found.read()?;
        for (i, s) in stats.iter().enumerate() {
            micro.check("loss of the student", i, s.student.nll)?;
            if micro.mix.lambda > 0.0 {
                micro.check("KL to the teacher", i, s.kl)?;
            }
        }
        report.add(&stats, micro.batch, selection);
        report.loss += loss;
        Ok(())
    }

    /// The kept positions: all that count where there is no score to select by.
    fn select(
        &self,
        micro: &Micro<'_>,
        carried: Option<Carried>,
        stats: &[RowStats],
        report: &mut StepReport,
    ) -> Result<Selection> {
        let batch = micro.batch;
        let every = || (0..batch.valid.len() as u32).filter(|&i| batch.valid[i as usize]);
        let Some(score) = micro.score else {
            return Ok(Selection { rows: every().collect(), ..Selection::default() });
        };
        let select = &self.plan.select;
        let scores = scores(score, select.pool, stats, batch, micro.numbers)?;
        report.scores.extend(every().map(|i| scores[i as usize]));
        if select.pool != Pool::Carried {
            return Ok(Selector::of(select, report.alpha).select(&scores, &batch.valid, batch.context));
        }
        // Before there is a threshold every position is kept, and the step's scores make the first one.
        let keeps = |i: &u32| carried.is_none_or(|carried| carried.keeps(scores[*i as usize], select.tail));
        let rows: Vec<u32> = every().filter(keeps).collect();
        let score_sum = rows.iter().map(|&i| f64::from(scores[i as usize])).sum();
        Ok(Selection { rows, score_sum, ..Selection::default() })
    }

    /// The draw from [0, 1) that decides whether the mixture takes position `i`.
    fn draw(&self, micro: &Micro<'_>, i: usize) -> f32 {
        Rng::new(self.plan.seed, Stream::Rest).uniform(0, micro.numbers.token(i, micro.batch.context))
    }
}

impl Head {
    /// Of one pass, before which nothing was dropped.
    fn of(done: Fused, selection: Selection) -> Self {
        let Fused { found, rows, d_hidden, .. } = done;
        Self { before: rows.len(), rows, d_hidden, found: Some((found, selection)) }
    }
}

impl Micro<'_> {
    fn options(&self, tau: f32) -> ScanOptions {
        ScanOptions { tau, reverse_kl: self.score.is_some_and(Score::needs_reverse_kl) }
    }

    /// What enters the loss must be finite where it counts.
    fn check(&self, what: &str, i: usize, value: f32) -> Result<()> {
        if value.is_finite() || !self.batch.valid[i] {
            return Ok(());
        }
        let (sequence, position) = (self.batch.sequence_ids[i / self.batch.context], i % self.batch.context);
        Err(Error::new(
            ErrorKind::NonFinite,
            format!("expected a finite {what}, found {value} at sequence {sequence}, position {position}"),
        ))
    }
}

/// The rows, unless they are all of `n`: without a gap there is nothing to gather, and the trunk's path is that of plain
/// training, bit for bit.
fn gaps(rows: &[u32], n: usize) -> Option<&[u32]> {
    (rows.len() < n).then_some(rows)
}

fn pick<'a, T: Clone>(rows: Option<&[u32]>, all: &'a [T]) -> Cow<'a, [T]> {
    rows.map_or(Cow::Borrowed(all), |rows| gathered(rows, all))
}

fn gathered<'a, T: Clone>(rows: &[u32], all: &[T]) -> Cow<'a, [T]> {
    rows.iter().map(|&r| all[r as usize].clone()).collect()
}

fn select_rows(logits: Logits, rows: Option<&[u32]>) -> Result<Logits> {
    match rows {
        Some(rows) => logits.select(rows),
        None => Ok(logits),
    }
}

/// Adds the time since the last lap to a phase.
pub(super) struct Clock {
    since: Instant,
    /// What is waited for at the end of each phase, if that is asked for.
    device: Option<Device>,
}

impl Clock {
    pub(super) fn start(trainer: &Trainer) -> Self {
        let device = trainer.phases_apart.then(|| trainer.student.params.wte().device().clone());
        Self { since: Instant::now(), device }
    }

    pub(super) fn lap(&mut self, phase: &mut f64) {
        if let Some(device) = &self.device {
            // A device that fails says so to the next operation, too.
            let _ = device.synchronize();
        }
        let now = Instant::now();
        *phase += (now - self.since).as_secs_f64();
        self.since = now;
    }
}
