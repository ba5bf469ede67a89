//! One micro-batch: student and teacher forward, score, selection, head, backward.
//!
//! Three numberings of positions meet here. `positions` are places in the micro-batch `[B T]`;
//! `rows` are the positions that carry gradient, ascending; `indices` are places among these rows,
//! where a sampled backward draws a part of them.

use super::heard::{Heard, Speaker};
use super::step::{StepWork, Trainer};
use super::sums::Sums;
use crate::config::{BackwardMode, HeadMode, Rho, Statistic};
use crate::cost::{self, Drawn, Probe, TeacherRows, Work};
use crate::data::loader::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::loss::head::{
    self, Found, Fused, Logits, Objective, RowStats, ScanOptions, Scanned, Weigh,
};
use crate::loss::{Divergence, Signal};
use crate::model::{Chosen, Flow, Partial, Reached, RowBudget, RowSampler, Tape};
use crate::ops::embed::scatter_add;
use crate::select::{Decision, OwnScore, Rows, ScoreContext, judge_sequences, kept_of, probe_rows};
use candle_core::{Device, Tensor};
use std::borrow::Cow;
use std::time::Instant;

/// What is told which gradients are final, by [`Gpt2::backward_through`].
type IsFinal<'a> = &'a mut dyn FnMut(usize) -> Result<()>;

/// What the stages of a micro-batch share.
pub(super) struct Micro<'a> {
    pub(super) work: &'a StepWork<'a>,
    pub(super) batch: &'a Batch,
    numbers: ScoreContext<'a>,
    pub(super) objective: Objective,
    /// Draws the rows of a sampled backward.
    sampler: Option<RowSampler>,
    /// Whether KL(p || q) is measured: the score needs it.
    reverse_kl: bool,
    /// Whether KL(q || p) is measured of a sparse signal, for the score.
    sparse_kl: bool,
}

/// A forward pass after the early exit.
struct Begun {
    partial: Partial,
    /// What the early exit cost; None without one.
    probe: Option<Probe>,
    /// The sequences that go on; None where all do.
    left: Option<Vec<u32>>,
}

/// Rows that carry gradient, ascending, and their gradient at the head's input [k, D].
struct HeadGradient {
    rows: Vec<u32>,
    d_hidden: Tensor,
    /// How many there were before a sampled backward drew these.
    before: usize,
    /// What one pass over the head found, if it was one, and what was decided by it.
    found: Option<(Found, Decision)>,
}

impl Trainer {
    /// Adds the gradients of `batch`, whose first sequence is number `first_sequence` of the run,
    /// to those of the step, and returns its sums. `is_final` is that of [`Gpt2::backward_through`].
    pub(super) fn micro_batch(
        &self,
        work: &StepWork<'_>,
        batch: &Batch,
        first_sequence: u64,
        own: Option<&mut OwnScore>,
        is_final: IsFinal<'_>,
    ) -> Result<Sums> {
        let mut sums = Sums::default();
        let mut clock = Clock::start(self);
        let numbers = ScoreContext::new(self.plan.seed, first_sequence);
        let Begun { partial, probe, left } =
            self.early_exit(batch, numbers, work.settings.alpha_seq)?;
        let picked = left.as_ref().map(|left| batch.pick(left));
        let (sequences, batch) = (batch.sequences, picked.as_ref().unwrap_or(batch));
        sums.sequences.0 += sequences as u64;
        sums.sequences.1 += batch.sequences as u64;
        let numbers = numbers.among(left.as_deref());
        let micro = self.micro(work, batch, numbers, own.is_some());

        let (hidden, tape) = self.student.finish(partial)?; // [B T, D]
        clock.lap(&mut sums.phases.forward);
        let speaker = self.speaker(&micro)?;
        let signal = self.heard_before_selection(&micro, speaker.as_ref())?;
        clock.lap(&mut sums.phases.teacher);
        let logits = self.student.logits(hidden);
        let head = if work.route.one_pass {
            Some(self.one_pass(&micro, &logits, signal.as_ref(), &mut sums, &mut clock)?)
        } else {
            let heard = Heard { signal, speaker };
            self.two_passes(&micro, own, logits, heard, &mut sums, &mut clock)?
        };

        let mut done = Work {
            sequences: batch.sequences as u64,
            context: batch.context as u64,
            kept: head.as_ref().map_or(0, |head| head.before as u64),
            probe,
            drawn: None,
        };
        if let Some(HeadGradient { rows, d_hidden, found, .. }) = head {
            if !rows.is_empty() {
                done.drawn = self.trunk(&micro, tape, (&rows, &d_hidden), is_final, &mut sums)?;
            }
            if let Some((found, decision)) = found {
                micro.take_in(found, decision, &mut sums)?;
            }
        }
        let teacher = self.teacher.as_ref().map(|t| &t.model().config);
        sums.flops += cost::flops(&self.student.config, teacher, &self.plan, work.route, done);
        clock.lap(&mut sums.phases.backward);
        Ok(sums)
    }

    /// The positions of `batch` that count, by their number in the run, with their scores, and the
    /// operations that took: what [`Trainer::micro_batch`] will find of them again.
    pub(super) fn scored(
        &self,
        work: &StepWork<'_>,
        batch: &Batch,
        first_sequence: u64,
        own: Option<&mut OwnScore>,
    ) -> Result<(Vec<(u64, f32)>, f64)> {
        let numbers = ScoreContext::new(self.plan.seed, first_sequence);
        let Begun { partial, probe, left } =
            self.early_exit(batch, numbers, work.settings.alpha_seq)?;
        let picked = left.as_ref().map(|left| batch.pick(left));
        let batch = picked.as_ref().unwrap_or(batch);
        let micro = self.micro(work, batch, numbers.among(left.as_deref()), own.is_some());
        let (hidden, _) = self.student.finish(partial)?;
        let speaker = self.speaker(&micro)?;
        let signal = self.heard_before_selection(&micro, speaker.as_ref())?;
        let (stats, ..) = self.scan(&micro, self.student.logits(hidden), signal)?;
        let scored = work.selection.scored(batch, micro.numbers, &stats, own)?;
        let done = Work {
            sequences: batch.sequences as u64,
            context: batch.context as u64,
            kept: 0,
            probe,
            drawn: None,
        };
        let teacher = self.teacher.as_ref().map(|t| &t.model().config);
        Ok((scored, cost::flops_of_scoring(&self.student.config, teacher, work.route, done)))
    }

    fn micro<'a>(
        &self,
        work: &'a StepWork<'a>,
        batch: &'a Batch,
        numbers: ScoreContext<'a>,
        own_score: bool,
    ) -> Micro<'a> {
        let (score, selects) = (self.plan.select.score, work.route.selects);
        Micro {
            work,
            batch,
            numbers,
            objective: self.objective(work),
            sampler: self.row_sampler(batch, numbers),
            reverse_kl: selects && score.needs_reverse_kl(),
            // An own score may read it.
            sparse_kl: selects && (own_score || score.reads().contains(&Statistic::Kl)),
        }
    }

    /// What is known of the teacher at every position before selection, if the route reads it there.
    fn heard_before_selection(
        &self,
        micro: &Micro<'_>,
        speaker: Option<&Speaker<'_>>,
    ) -> Result<Option<Signal>> {
        let reads = |_: &&Speaker<'_>| micro.work.route.teacher == TeacherRows::All;
        speaker
            .filter(reads)
            .map(|speaker| self.signal_before_selection(micro, speaker))
            .transpose()
    }

    /// Cross-entropy and divergence of the step.
    fn objective(&self, work: &StepWork<'_>) -> Objective {
        Objective {
            lambda: work.settings.lambda as f32,
            temperature: if self.teacher.is_some() || self.signal.is_some() {
                work.settings.temperature as f32
            } else {
                1.0
            },
            divergence: Divergence::of(&self.plan.objective),
        }
    }

    /// What draws the rows of a sampled backward; None in every other mode.
    fn row_sampler(&self, batch: &Batch, numbers: ScoreContext<'_>) -> Option<RowSampler> {
        let machine = &self.plan.machine;
        if machine.backward != BackwardMode::Sampled {
            return None;
        }
        let budget = match machine.rho {
            Rho::Share(rho) => RowBudget::Share(rho),
            // Each draw multiplies the variance of what the draws above left, so that together they
            // come to what is allowed.
            Rho::Auto => {
                let draws = (2 * self.student.config.n_layer + 1) as f64;
                RowBudget::Variance((1.0 + machine.added_variance).powf(1.0 / draws) - 1.0)
            }
        };
        let tokens = (0..batch.inputs.len()).map(|i| numbers.token(i, batch.context)).collect();
        Some(RowSampler::new(budget, self.plan.seed, tokens, batch.context))
    }

    /// The backward pass below the head. Returns what a sampled one drew.
    fn trunk(
        &self,
        micro: &Micro<'_>,
        tape: Tape,
        (rows, d_hidden): (&[u32], &Tensor),
        is_final: IsFinal<'_>,
        sums: &mut Sums,
    ) -> Result<Option<Drawn>> {
        sums.rows += rows.len() as u64;
        let Reached { outputs, keys } =
            self.trunk_backward(micro, tape, rows, d_hidden, is_final)?;
        sums.block_rows.0 += outputs;
        sums.block_rows.1 += (self.student.config.n_layer * micro.batch.inputs.len()) as u64;
        // Only now, with all of its work handed over, is a GPU waited for.
        sums.add_row_norms(d_hidden)?;
        Ok(micro.sampler.is_some().then_some(Drawn {
            head: rows.len() as u64,
            blocks: outputs,
            keys,
        }))
    }

    /// From the head's input down. Returns the rows that carried gradient.
    fn trunk_backward(
        &self,
        micro: &Micro<'_>,
        tape: Tape,
        rows: &[u32],
        d_hidden: &Tensor,
        is_final: IsFinal<'_>,
    ) -> Result<Reached> {
        let mode = self.plan.machine.backward;
        let n = micro.batch.inputs.len();
        let flow = match (mode, &micro.sampler) {
            // Without selection there is nothing to be sparse about, whatever positions of the
            // batch do not count.
            (BackwardMode::Sparse, _) if micro.work.route.selects => Flow::Sparse,
            (_, Some(sampler)) => Flow::Sampled(sampler),
            _ => Flow::Exact,
        };
        let (grads, student) = (&self.grads, &self.student);
        match gaps(rows, n) {
            Some(rows) if mode == BackwardMode::Dense => {
                let dense =
                    Tensor::zeros((n, d_hidden.dim(1)?), d_hidden.dtype(), d_hidden.device())?;
                scatter_add(&dense, d_hidden, rows)?;
                student.backward_through(tape, None, &dense, grads, flow, is_final)
            }
            rows => student.backward_through(tape, rows, d_hidden, grads, flow, is_final),
        }
    }

    /// The student's first blocks, and the sequences that go on from there.
    fn early_exit(
        &self,
        batch: &Batch,
        numbers: ScoreContext<'_>,
        alpha_seq: f64,
    ) -> Result<Begun> {
        let select = &self.plan.select;
        if kept_of(alpha_seq, batch.sequences) == batch.sequences {
            let partial = self.student.begin(&batch.inputs, batch.context, 0)?;
            return Ok(Begun { partial, probe: None, left: None });
        }
        let mut partial = self.student.begin(&batch.inputs, batch.context, select.exit_layer)?;
        let probes = probe_rows(batch.sequences, batch.context, select.probe_stride);
        let hidden = self.student.probe(&partial, &probes)?;
        let logits = self.student.logits(hidden);
        let stats = head::scan(&logits, None, &pick(Some(&probes), &batch.targets), 1.0)?;
        let numbers = numbers.for_probes(self.plan.seed);
        let left = judge_sequences(select, alpha_seq, batch, numbers, &probes, &stats)?;
        let probe = Probe {
            sequences: batch.sequences as u64,
            exit_layer: select.exit_layer as u64,
            rows: probes.len() as u64,
        };
        partial.keep(&left)?;
        Ok(Begun { partial, probe: Some(probe), left: Some(left) })
    }

    /// The statistics of every row, with what was scanned for them.
    fn scan(
        &self,
        micro: &Micro<'_>,
        logits: Logits,
        signal: Option<Signal>,
    ) -> Result<(Vec<RowStats>, Logits, Option<Signal>)> {
        let Micro { batch, objective, work, .. } = *micro;
        let route = work.route;
        // Where every row of the teacher is read anyway, one scan serves score and loss; a sparse
        // signal needs no scan of its own.
        let all = route.teacher == TeacherRows::All;
        let later = route.distils && !route.dense;
        let tau = if all || later || !route.selects { objective.temperature } else { 1.0 };
        let (with, sparse) = match signal {
            Some(Signal::Dense(teacher)) => (Some(teacher), None),
            sparse => (None, sparse),
        };
        let Scanned { mut stats, student: logits, teacher: with } =
            if self.plan.machine.head == HeadMode::Recompute {
                let stats = head::scan(&logits, with.as_ref(), &batch.targets, micro.options(tau))?;
                Scanned { stats, student: logits, teacher: with }
            } else {
                head::scan_and_store(logits, with, &batch.targets, micro.options(tau))?
            };
        if let Some(sparse) = &sparse {
            head::hear(&logits, sparse, &mut stats, micro.options(tau))?;
        }
        // Whatever the score: a NaN is never dropped in silence.
        stats
            .iter()
            .enumerate()
            .try_for_each(|(i, s)| micro.check("loss of the student", i, s.student.nll))?;
        Ok((stats, logits, with.map(Signal::Dense).or(sparse)))
    }

    /// Scans every row, selects in the pools, then forms loss and gradient of the chosen rows. None
    /// if there are none.
    fn two_passes(
        &self,
        micro: &Micro<'_>,
        own: Option<&mut OwnScore>,
        logits: Logits,
        heard: Heard<'_>,
        sums: &mut Sums,
        clock: &mut Clock,
    ) -> Result<Option<HeadGradient>> {
        let Micro { batch, objective, work, .. } = *micro;
        let route = work.route;
        let Heard { signal, speaker } = heard;
        let (stats, logits, signal) = self.scan(micro, logits, signal)?;
        clock.lap(&mut sums.phases.scan);

        let Decision { kept, rows, scores } =
            work.selection.decide(batch, micro.numbers, &stats, own)?;
        sums.scores.extend(scores);
        sums.add(&stats, batch, &kept);
        clock.lap(&mut sums.phases.select);
        if rows.rows.is_empty() {
            return Ok(None);
        }

        let picked = gaps(&rows.rows, batch.inputs.len());
        let (targets, mut stats) = (pick(picked, &batch.targets), pick(picked, &stats));
        let logits = select_rows(logits, picked)?;
        let signal = match (signal, &speaker) {
            (Some(signal), _) if !(route.distils && signal.is_scores()) => Some(match picked {
                Some(rows) => signal.select(rows)?,
                None => signal,
            }),
            (_, Some(speaker)) => Some(self.signal_for(micro, speaker, picked)?),
            (_, None) => None,
        };
        match &signal {
            Some(Signal::Dense(teacher)) if route.scans_again() => {
                stats = head::scan(&logits, Some(teacher), &targets, objective.temperature)?.into();
            }
            Some(sparse) if !route.dense && route.teacher != TeacherRows::All => {
                head::hear(&logits, sparse, stats.to_mut(), objective.temperature)?;
            }
            _ => {}
        }
        let signal = signal.filter(|_| route.distils);
        if signal.is_some() {
            let mut rows = rows.rows.iter().zip(stats.iter());
            rows.try_for_each(|(&r, s)| micro.check_teacher(r as usize, s))?;
        }
        let chosen = ChosenRows { rows, targets, stats, logits, signal };
        self.differentiate(micro, chosen, sums, clock)
    }

    /// Loss and gradient of the chosen rows, or of those that a sampled backward draws of them.
    fn differentiate(
        &self,
        micro: &Micro<'_>,
        mut chosen: ChosenRows<'_>,
        sums: &mut Sums,
        clock: &mut Clock,
    ) -> Result<Option<HeadGradient>> {
        let objective = micro.objective;
        let before = chosen.rows.rows.len();
        let mut sampled = false;
        if let Some(drawn) = self.draw_at_head(micro, &chosen) {
            // The loss is that of all rows; only its gradient is a sample.
            sums.loss += head::loss_of(&chosen.stats, &chosen.rows.weights, objective);
            if drawn.indices.is_empty() {
                return Ok(None);
            }
            sampled = true;
            chosen = chosen.only(&drawn)?;
        }
        let ChosenRows { rows: Rows { rows, weights }, targets, stats, logits, signal } = chosen;
        clock.lap(&mut sums.phases.teacher);
        let loss = head::loss(
            head::LossInput {
                student: &logits,
                signal: signal.as_ref(),
                stats: &stats,
                targets: &targets,
                weights: &weights,
                objective,
            },
            self.grads.head(),
        )?;
        sums.loss += if sampled { 0.0 } else { loss.sum };
        clock.lap(&mut sums.phases.head);
        Ok(Some(HeadGradient { rows, d_hidden: loss.d_hidden, before, found: None }))
    }

    /// Which of the rows a sampled backward differentiates at the head, None for all, by what is
    /// known of the norms of their logits' gradients before these are formed.
    fn draw_at_head(&self, micro: &Micro<'_>, chosen: &ChosenRows<'_>) -> Option<Chosen> {
        let sampler = micro.sampler.as_ref().filter(|_| micro.work.route.draws_at_head)?;
        let Rows { rows, weights } = &chosen.rows;
        let bound =
            |(s, w): (&RowStats, &f32)| f64::from(*w) * head::gradient_bound(s, micro.objective);
        let norms: Vec<f64> = chosen.stats.iter().zip(weights).map(bound).collect();
        sampler.choose(self.student.config.n_layer, Some(rows), &norms)
    }

    /// Scores, decides and differentiates row after row: every row that counts where nothing is
    /// scored.
    fn one_pass(
        &self,
        micro: &Micro<'_>,
        logits: &Logits,
        signal: Option<&Signal>,
        sums: &mut Sums,
        clock: &mut Clock,
    ) -> Result<HeadGradient> {
        let Micro { batch, objective, .. } = *micro;
        let (options, d_head) = (micro.options(objective.temperature), self.grads.head());
        let run = |weigh: Weigh<'_>| {
            head::fused(
                head::PassInput {
                    student: logits,
                    signal,
                    targets: &batch.targets,
                    options,
                    objective,
                },
                weigh,
                d_head,
            )
        };
        let (done, decision) = match micro.work.selection.by_row(batch, micro.numbers) {
            None => {
                let weights: Vec<f32> =
                    batch.valid.iter().map(|valid| f32::from(u8::from(*valid))).collect();
                let done = run(Weigh::Known(&weights))?;
                let decision = Decision::all(done.rows.clone());
                (done, decision)
            }
            Some(mut by_row) => {
                let mut weigh = |i: usize, stats: &RowStats| -> Result<f32> {
                    micro.check("loss of the student", i, stats.student.nll)?;
                    by_row.weigh(i, stats)
                };
                let done = run(Weigh::Asking(&mut weigh))?;
                (done, by_row.finish())
            }
        };
        clock.lap(&mut sums.phases.head);
        let Fused { found, rows, d_hidden, .. } = done;
        Ok(HeadGradient { before: rows.len(), rows, d_hidden, found: Some((found, decision)) })
    }
}

/// The rows that carry gradient, with what the head needs of each.
struct ChosenRows<'a> {
    rows: Rows,
    targets: Cow<'a, [u32]>,
    stats: Cow<'a, [RowStats]>,
    logits: Logits,
    signal: Option<Signal>,
}

impl<'a> ChosenRows<'a> {
    /// Those of them that a draw took, at their new weights.
    fn only(self, drawn: &Chosen) -> Result<Self> {
        let Chosen { indices, weights: inverse } = drawn;
        let weight = |(&i, w): (&u32, &f32)| self.rows.weights[i as usize] * w;
        Ok(Self {
            rows: Rows {
                rows: indices.iter().map(|&i| self.rows.rows[i as usize]).collect(),
                weights: indices.iter().zip(inverse).map(weight).collect(),
            },
            targets: gathered(indices, &self.targets),
            stats: gathered(indices, &self.stats),
            logits: self.logits.select(indices)?,
            signal: self.signal.map(|signal| signal.select(indices)).transpose()?,
        })
    }
}

impl Micro<'_> {
    /// Whether the score compares student and teacher beyond the target.
    pub(super) fn compares(&self) -> bool {
        self.sparse_kl || self.reverse_kl
    }

    fn options(&self, tau: f32) -> ScanOptions {
        ScanOptions { tau, reverse_kl: self.reverse_kl, sparse_kl: self.sparse_kl }
    }

    /// What enters the loss must be finite where it counts.
    fn check(&self, what: &str, i: usize, value: f32) -> Result<()> {
        if value.is_finite() || !self.batch.valid[i] {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NonFinite,
            format!("expected a finite {what}, found {value} at {}", self.batch.place(i)),
        ))
    }

    /// The same of what a loss reads of the teacher. A sparse signal's levels and draws say nothing
    /// of a NaN; its entropy does.
    fn check_teacher(&self, i: usize, stats: &RowStats) -> Result<()> {
        if !self.work.route.dense {
            self.check("entropy of the teacher", i, stats.teacher.entropy_tau)?;
        }
        self.check("KL to the teacher", i, stats.kl)
    }

    /// What one pass over the head found: it must be finite where it counts.
    fn take_in(&self, found: Found, decision: Decision, sums: &mut Sums) -> Result<()> {
        let (stats, loss) = found.read()?;
        for (i, s) in stats.iter().enumerate() {
            self.check("loss of the student", i, s.student.nll)?;
            if self.objective.lambda > 0.0 {
                self.check_teacher(i, s)?;
            }
        }
        sums.scores.extend(decision.scores);
        sums.add(&stats, self.batch, &decision.kept);
        sums.loss += loss;
        Ok(())
    }
}

/// The rows, unless they are all of `n`: without a gap there is nothing to gather, and the trunk's
/// path is that of plain training, bit for bit.
fn gaps(rows: &[u32], n: usize) -> Option<&[u32]> {
    (rows.len() < n).then_some(rows)
}

pub(super) fn pick<'a, T: Clone>(rows: Option<&[u32]>, all: &'a [T]) -> Cow<'a, [T]> {
    rows.map_or(Cow::Borrowed(all), |rows| gathered(rows, all))
}

fn gathered<'a, T: Clone>(rows: &[u32], all: &[T]) -> Cow<'a, [T]> {
    rows.iter().map(|&r| all[r as usize].clone()).collect()
}

pub(super) fn select_rows(logits: Logits, rows: Option<&[u32]>) -> Result<Logits> {
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
