//! One optimizer step: the house in one function. Losses are sums and counts; the one division is
//! at its end, so micro-batches and selection add up.

use crate::config::{MicroRows, Plan};
use crate::cost::{Route, StepFacts, scores_first};
use crate::data::loader::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::loss::head::RowStats;
use crate::model::{Gpt2, ParamSet};
use crate::ops::matmul::Precision;
use crate::optim::adamw::{self, AdamW};
use crate::optim::{Arrived, Shards, schedule};
use crate::select::{Observed, OwnScore, SelectionState, StepPool, StepSelection};
use crate::signal::Stored;
use crate::teacher::Teacher;
use crate::train::events::Phases;
use crate::train::groups::{Summing, mine, total};
use crate::train::micro::Clock;
use crate::train::sums::{CarriedReport, StepReport, StepSettings, Sums};
use crate::world::World;
use std::ops::Range;
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
    /// AdamW's moments, of the parameters that this process steps.
    pub state: adamw::State,
    /// What selection remembers from step to step.
    pub selection: SelectionState,
    /// Whether a GPU is waited for at the end of every phase, so that its seconds are its own and
    /// not those of handing over its work. For measurements: it makes steps slower. On the CPU they
    /// always are.
    pub phases_apart: bool,
    pub(super) grads: ParamSet,
    own_score: Option<OwnScore>,
    /// The processes that train together, and who of them steps what.
    pub(super) shards: Shards,
}

/// A process's sequences of a step.
struct Part<'a> {
    batch: &'a Batch,
    micro_rows: usize,
    /// The number in the run of the first.
    cursor: u64,
}

impl Part<'_> {
    /// Some of its sequences, by micro-batch, each with the number of its first.
    fn micro_batches(&self, of: Range<usize>) -> impl Iterator<Item = (u64, Batch)> {
        of.clone().step_by(self.micro_rows).map(move |first| {
            let micro = self.batch.slice(first..of.end.min(first + self.micro_rows));
            (self.cursor + first as u64, micro)
        })
    }
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
        let shards = Shards::new(World::solo(), layout);
        let state = shards.fresh(layout, &device)?;
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
            shards,
        })
    }

    /// The same as one of the processes that train together, before its first step: all begin with
    /// the parameters of process 0. Each then steps on its share of every batch: as many sequences
    /// as the others have, in the order of ranks, every position of which counts. What a step returns
    /// is the whole step's.
    pub fn among(self, world: World) -> Result<Self> {
        let layout = self.student.params.layout();
        let device = self.student.params.wte().device();
        let shards = Shards::new(world, layout).on(device)?;
        shards.from_root(&self.student.params)?;
        let state = shards.fresh(layout, device)?;
        Ok(Self { shards, state, ..self })
    }

    /// The moments of all parameters in process 0, for a checkpoint; elsewhere this process's.
    pub(super) fn whole_state(&self) -> Result<adamw::State> {
        self.shards.collect(&self.state)
    }

    /// Goes on with the moments that process 0 has of all parameters (None in the others), after so
    /// many updates.
    pub(super) fn take_state(&mut self, whole: Option<adamw::State>, step: u64) -> Result<()> {
        let whole = whole.unwrap_or_else(|| adamw::State { step, ..self.state.clone() });
        self.state = self.shards.deal(&whole)?;
        Ok(())
    }

    /// The processes that train together.
    pub fn world(&self) -> &World {
        self.shards.world()
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

    /// Trains on `batch`, the step's sequences (of several processes this one's share), the step
    /// beginning where the run has consumed `cursor` sequences. `step` counts from 0, while errors
    /// and metrics count steps done. On an error no parameter has changed, and every process has it.
    /// Where one process does not come to a step, the others wait for it.
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
        let (mut report, arrived) = summed?;
        let mut clock = Clock::start(self);
        if report.sums.rows > 0 {
            self.update(&mut report, arrived)?;
        }
        self.observe(step, &mut report);
        clock.lap(&mut report.sums.phases.optimizer);
        Ok(report)
    }

    /// The gradients of a step, added up over its micro-batches, its sums, and what has come of other
    /// processes' gradients meanwhile.
    fn gradients(
        &self,
        step: u64,
        cursor: u64,
        batch: &Batch,
        mut own: Option<&mut OwnScore>,
    ) -> Result<(StepReport, Option<Arrived>)> {
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
        let selection = StepSelection::new(
            plan,
            &self.selection,
            settings.alpha,
            batch,
            micro_rows,
            self.world(),
        );
        let facts = StepFacts {
            selects: selection.selects(),
            weighs_teacher: settings.lambda > 0.0,
            threshold: selection.has_threshold(),
            own_score: own.is_some(),
        };
        let work = StepWork { settings, selection, route: Route::of(plan, facts) };
        let cursor = cursor + (self.world().rank() * batch.sequences) as u64;
        let part = Part { batch, micro_rows, cursor };
        let pool = match selection.selects() && scores_first(plan, batch.sequences) {
            true => Some(self.step_pool(&work, &part, own.as_deref_mut())?),
            false => None,
        };
        let work = match &pool {
            Some((pool, _)) => StepWork { selection: selection.within(pool), ..work },
            None => work,
        };
        let mut summing = Summing::new(&self.grads, self.shards.travel(&self.grads));
        let mine = self.by_group(&work, &part, own, &mut summing);
        // Also where this process has failed: others wait for its numbers before they can learn of it.
        let arrived = summing.finish();
        let (mine, arrived) = match arrived {
            Ok(arrived) => (mine, arrived),
            Err(e) => (mine.and(Err(e)), None),
        };
        let mut sums = self.agreed(mine)?;
        if let Some((pool, flops)) = &pool {
            (sums.var, sums.pools) = (pool.var, pool.pools);
            sums.flops.scoring += flops;
        }
        let denominator = selection.denominator(sums.kept, sums.valid);
        Ok((StepReport { settings, denominator, sums, ..StepReport::default() }, arrived))
    }

    /// Scores all tokens of the step, and cuts the ranking of all processes; with the operations that
    /// took.
    fn step_pool(
        &self,
        work: &StepWork<'_>,
        part: &Part<'_>,
        mut own: Option<&mut OwnScore>,
    ) -> Result<(StepPool, f64)> {
        let mut flops = 0.0;
        let mut scored = || -> Result<Vec<(u64, f32)>> {
            let mut all = Vec::new();
            for (first, micro) in part.micro_batches(0..part.batch.sequences) {
                crate::interrupt::check()?;
                let (scored, operations) = self.scored(work, &micro, first, own.as_deref_mut())?;
                flops += operations;
                all.extend(scored);
            }
            Ok(all)
        };
        let scored = scored();
        let (world, alpha) = (self.world(), work.settings.alpha);
        let pool = StepPool::agreed(world, &self.plan.select, alpha, scored)?;
        Ok((pool, world.agree_on(Ok(vec![flops]))?.concat().iter().sum()))
    }

    /// The sums of this process's groups, whose gradients go to `summing`.
    fn by_group(
        &self,
        work: &StepWork<'_>,
        part: &Part<'_>,
        mut own: Option<&mut OwnScore>,
        summing: &mut Summing<'_>,
    ) -> Result<Vec<Sums>> {
        let (groups, rows) = mine(&self.plan, self.world(), part.batch.sequences)?;
        let mut all = Vec::with_capacity(groups);
        for group in 0..groups {
            let mut sums = Sums::default();
            let mut micros = part.micro_batches(group * rows..(group + 1) * rows).peekable();
            while let Some((first, micro)) = micros.next() {
                // A step of a large model takes minutes on a CPU: a stop discards what there is of
                // it.
                crate::interrupt::check()?;
                sums.tokens += micro.valid_count() as u64;
                let is_last = group + 1 == groups && micros.peek().is_none();
                let mut is_final = |from| if is_last { summing.ready(from) } else { Ok(()) };
                let own = own.as_deref_mut();
                sums += self.micro_batch(work, &micro, first, own, &mut is_final)?;
            }
            all.push(sums);
            if group + 1 < groups {
                summing.next()?;
            }
        }
        Ok(all)
    }

    /// The sums of the groups of all processes. Where one of these failed, its error is everyone's.
    fn agreed(&self, mine: Result<Vec<Sums>>) -> Result<Sums> {
        if self.world().size() == 1 {
            return mine.map(total);
        }
        let phases = mine.iter().flatten().map(|sums| sums.phases);
        let phases = phases.fold(Phases::default(), |mut all, phases| {
            all += phases;
            all
        });
        let heard = self
            .world()
            .agree_on(mine.map(|sums| sums.iter().flat_map(Sums::numbers).collect()))?;
        let all = heard.into_iter().flat_map(|numbers| Sums::of_numbers(&numbers)).collect();
        // Everyone's sums, and this process's seconds.
        Ok(Sums { phases, ..total(all) })
    }

    /// Clips by the global norm of the mean gradient and steps; everything is checked before
    /// anything moves.
    fn update(&mut self, report: &mut StepReport, arrived: Option<Arrived>) -> Result<()> {
        let optim = &self.plan.optim;
        self.shards.sum(&self.grads, arrived)?;
        report.grad_norm = self.shards.norm(&self.grads)? / report.denominator;
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
        let (params, lr) = (&self.student.params, report.settings.lr);
        match adamw.update(params, &self.grads, &mut self.state, lr, scale) {
            // What the numbers forbid they forbid everywhere.
            Err(e) if e.kind() == ErrorKind::NonFinite => return Err(e),
            done => self.world().or_abort(done)?,
        }
        self.shards.spread(params)
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
