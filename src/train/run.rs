//! A whole run: validation, steps, metrics, checkpoints, the exported model; resumable between any
//! two steps.

use super::Trainer;
use super::events::{
    Event, EventSink, Jsonl, SkipEvent, Summary, TENSORBOARD_FOLDER, Tee, TensorBoard, Terminal,
    ValEvent,
};
use super::prepared::{Prepared, RunConfig, taken};
use super::session::{Session, label_of};
use super::threads::Threads;
use super::window::Window;
use crate::config::{MicroRows, OnNonfinite, Overrides, Plan, RunFile, load};
use crate::data::loader::Ahead;
use crate::data::tokens::TokenFile;
use crate::error::{Error, ErrorKind, Result};
use crate::eval::perplexity::{EvalOptions, evaluate_among};
use crate::files::{AtomicDir, write_atomic};
use crate::interrupt::stopped_by;
use crate::optim::adamw;
use crate::progress::{Progress, Silent};
use crate::report::text::{amount, count, quoted};
use crate::select::SelectionState;
use crate::store::checkpoint::{self, Counters, Manifest, RunLock, TrainState};
use crate::store::weights::{SaveOptions, save_model};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The exported model inside a run folder.
pub const MODEL_FOLDER: &str = "model";
/// The resolved plan inside a run folder.
pub const CONFIG_FILE: &str = "config.toml";
/// The metrics inside a run folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// Between two updates of the progress line.
const REFRESH: Duration = Duration::from_millis(500);

/// One run in the folder `out` from open to end, with metrics on disk and figures for `progress`.
pub fn train(
    session: Session,
    out: &Path,
    resume: bool,
    progress: &dyn Progress,
) -> Result<Summary> {
    let mut run = Run::open(session, out, resume, progress)?;
    let sinks = match run.trainer.world().is_root() {
        true => sinks(&run, out, resume, progress)?,
        false => Vec::new(),
    };
    let done = run.train(&mut Tee(sinks));
    if done.is_err() {
        progress.finish();
    }
    done
}

/// Where the events of a run in `out` go.
fn sinks<'a>(
    run: &Run,
    out: &Path,
    resume: bool,
    progress: &'a dyn Progress,
) -> Result<Vec<Box<dyn EventSink + 'a>>> {
    let metrics = out.join(METRICS_FILE);
    let jsonl = if resume {
        Jsonl::resume(&metrics, run.step(), run.validated())?
    } else {
        Jsonl::create(&metrics)?
    };
    let mut sinks: Vec<Box<dyn EventSink + 'a>> =
        vec![Box::new(jsonl), Box::new(Terminal::new(progress, REFRESH))];
    if run.trainer.plan.log.tensorboard {
        let folder = out.join(TENSORBOARD_FOLDER);
        sinks.push(Box::new(TensorBoard::create(&folder, run.step(), run.validated())?));
    }
    Ok(sinks)
}

/// The resolved plan of a run folder.
pub fn plan_of(run: &Path) -> Result<Plan> {
    let path = run.join(CONFIG_FILE);
    if !path.exists() {
        return Err(Error::data(format!(
            "{} is missing, which says what the run there is",
            path.display()
        )));
    }
    let file = RunFile::find(&path.to_string_lossy())?;
    Ok(load(Some(&file), &Overrides::default())?.plan)
}

/// What of the mathematics differs between the plan of a run folder and `plan` (settled), one line
/// per key; models may have other names.
pub fn differences(run: &Path, plan: &Plan) -> Result<Vec<String>> {
    Ok(plan.as_stored()?.differences_beside(&plan_of(run)?.mathematics(), &["teacher", "student"]))
}

/// The command that begins a run of this plan, whose weights were ruined, again in a folder beside
/// it with a lower rate.
pub fn begin_again(run: &Path, plan: &Plan) -> String {
    let mut new = run.as_os_str().to_owned();
    new.push("-lower-lr");
    format!(
        "eslm-kd {} {} --lr {:.1e} --out {}",
        plan.verb(),
        quoted(run),
        plan.optim.lr / 10.0,
        quoted(Path::new(&new))
    )
}

/// Whether a loss is so far above the first one that the weights are ruined: no single batch does
/// that.
pub fn diverged(first: f64, last: f64) -> bool {
    !last.is_finite() || last > 2.0 * first.max(1.0)
}

/// A run in its folder, ready to train.
pub struct Run {
    lock: RunLock,
    trainer: Trainer,
    counters: Counters,
    /// Steps done in the checkpoint that was loaded or saved last.
    saved_at: Option<u64>,
    /// Loss of the first step of this session and of the last one.
    losses: Option<(f64, f64)>,
    loader: Ahead,
    valid: Option<Arc<TokenFile>>,
    config: RunConfig,
    threads: Threads,
}

impl Run {
    /// Takes the run folder `out`, which must be new or empty unless `resume`; then the newest good
    /// checkpoint is loaded, if there is one. Writes the resolved plan as `config.toml`. A folder
    /// that is refused is left as it was.
    pub fn open(
        session: Session,
        out: &Path,
        resume: bool,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let world = session.world.clone();
        let lock = world.together(taken(out, resume, &world))?;
        // Again, now that nobody else can begin a run there.
        let prepared =
            if resume || !world.is_root() { Ok(()) } else { checkpoint::check_free(out) }
                .and_then(|()| Prepared::new(session, &lock, resume, progress));
        let Prepared { trainer, world, saved, loader, valid, config } =
            match world.together(prepared).and_then(|prepared| {
                world.same(|| prepared.told(out))?;
                Ok(prepared)
            }) {
                Ok(prepared) => prepared,
                Err(e) => {
                    lock.abandon();
                    return Err(e);
                }
            };
        let mut trainer = trainer.among(world.clone())?;
        trainer.take_memory(saved.is_none())?;
        world.from_root(|| {
            let text = trainer.plan.to_toml()?;
            let path = out.join(CONFIG_FILE);
            write_atomic(&path, |w| {
                w.write_all(text.as_bytes()).map_err(|e| Error::io("write", &path, e))
            })
        })?;
        let mut counters = Counters::default();
        let known = world.from_root(|| {
            let known = |saved: &TrainState| {
                (saved.counters.clone(), saved.optimizer.step, saved.selector.clone())
            };
            Ok(saved.as_ref().map(known))
        })?;
        let saved_at = known.as_ref().map(|(counters, ..)| counters.step);
        if let Some((known, updates, selector)) = known {
            trainer.take_state(saved.map(|saved| saved.optimizer), updates)?;
            counters = known;
            trainer.selection = read_selection(selector)?;
            let possible = trainer.selection.check(counters.step, counters.tokens);
            possible.map_err(|what| checkpoint::impossible(&lock.place(counters.step), &what))?;
        }
        let on_cpu = trainer.student.params.wte().device().is_cpu();
        let threads =
            if on_cpu { Threads::of(trainer.plan.machine.threads)? } else { Threads::default() };
        Ok(Self { lock, trainer, saved_at, losses: None, counters, loader, valid, config, threads })
    }

    /// Steps done before, 0 unless resumed.
    pub fn step(&self) -> u64 {
        self.counters.step
    }

    /// Steps done at the last validation that the state knows of; later ones will be made again.
    pub fn validated(&self) -> Option<u64> {
        let Counters { step, last_validation, best_val_loss, .. } = &self.counters;
        // A checkpoint from before the last validation was noted knows of one by its loss alone.
        last_validation.map(|(step, _)| step).or(best_val_loss.map(|_| *step))
    }

    /// Trains to the end of the plan. On a stop signal the state is saved first, then
    /// [`ErrorKind::Interrupted`] says where. Any other error leaves the last checkpoint as it was.
    /// Each names the command that goes on ([`Error::go_on`]).
    pub fn train(&mut self, sink: &mut dyn EventSink) -> Result<Summary> {
        let steps = self.trainer.plan.steps;
        let label = self.config.label.clone();
        let (step, seconds) = (self.counters.step, self.counters.seconds);
        sink.event(&Event::RunStarted { label, step, steps, seconds })?;
        let size = count(self.trainer.student.config.parameters() as u64);
        sink.event(&Event::Note(format!("{} of {size} parameters", label_of(&self.trainer.plan))))?;
        let ended = match self.steps(sink) {
            Err(e) => match e.kind() {
                ErrorKind::Interrupted(signal) => self.stopped(signal, sink),
                // It says itself how to go on.
                ErrorKind::NonFinite => return Err(e),
                _ => e,
            },
            Ok(()) => match self.finish(sink) {
                Ok(summary) => return Ok(summary),
                Err(e) => e,
            },
        };
        Err(ended.going_on_with(self.command("")))
    }

    /// The command that goes on with the run; `more` stands between verb and folder.
    fn command(&self, more: &str) -> String {
        // The folder's own config has the rest.
        let verb = self.trainer.plan.verb();
        format!("eslm-kd {verb} --resume{more} --out {}", quoted(self.lock.dir()))
    }

    /// Saves, and says where the run stands.
    fn stopped(&mut self, signal: i32, sink: &mut dyn EventSink) -> Error {
        self.trainer.world().forgive();
        let at = format!(
            "{} at step {} of {}",
            stopped_by(signal),
            count(self.counters.step),
            count(self.trainer.plan.steps)
        );
        match self.save(sink) {
            Ok(path) => Error::new(
                ErrorKind::Interrupted(signal),
                format!("{at}, saved in {}", path.display()),
            ),
            Err(e) => e.context(format!("{at}, and what it came to since could not be saved")),
        }
    }

    /// A validation's error. A model that is not finite is so again however the run goes on.
    fn not_valid(&self, e: Error) -> Error {
        let Counters { step, .. } = self.counters;
        if e.kind() != ErrorKind::NonFinite || step == 0 {
            return e;
        }
        let begin = begin_again(self.lock.dir(), &self.trainer.plan);
        e.context(format!("validation after step {}", count(step))).going_on_with(begin)
    }

    /// What was not finite in a batch, what is left, and what to do.
    fn not_finite(&self, e: Error) -> Error {
        if e.kind() != ErrorKind::NonFinite {
            return e;
        }
        let saved = match self.saved_at {
            Some(step) => format!(
                "the checkpoint of step {} stands in {}",
                count(step),
                self.lock.place(step).display()
            ),
            None => "no checkpoint was written yet".to_string(),
        };
        if let Some(why) = self.is_ruined() {
            let begin = begin_again(self.lock.dir(), &self.trainer.plan);
            let next = "begin again with a lower optim.lr";
            return Error::new(e.kind(), format!("{e}; {saved}; {why}; {next}"))
                .going_on_with(begin);
        }
        let optim = &self.trainer.plan.optim;
        let (next, set) = match optim.on_nonfinite {
            OnNonfinite::Skip => (
                format!(
                    "{} before, which is optim.max_skips; a larger one passes over more, a lower optim.lr may need none",
                    were_skipped(self.counters.skipped)
                ),
                format!(" --set optim.max_skips={}", optim.max_skips.saturating_mul(2)),
            ),
            OnNonfinite::Stop => (
                "optim.on_nonfinite=skip passes over such batches".to_string(),
                " --set optim.on_nonfinite=skip".to_string(),
            ),
        };
        Error::new(e.kind(), format!("{e}; {saved}; {next}")).going_on_with(self.command(&set))
    }

    /// Why passing over a batch would not help; None where it may.
    fn is_ruined(&self) -> Option<String> {
        let (first, last) = self.losses?;
        if diverged(first, last) {
            return Some(format!("the loss went from {first:.4} to {last:.4}"));
        }
        // There is nothing to go on from, and the steps before may have broken the weights.
        let unsaved = self.saved_at.is_none_or(|step| step == 0);
        unsaved.then(|| format!("it came after {}", amount(self.counters.step, "steps")))
    }

    fn steps(&mut self, sink: &mut dyn EventSink) -> Result<()> {
        let mut window = Window::default();
        let done = self.each_step(sink, &mut window);
        // How far it came is told also where it failed between two steps that are logged. A run that
        // is stopped has a checkpoint that says so; such a line would stay when it goes on.
        if let Err(e) = &done
            && !matches!(e.kind(), ErrorKind::Interrupted(_))
            && self.saved_at != Some(self.counters.step)
            && let Some(report) = window.last.take()
        {
            // Its own failure says less than the one before.
            let _ = sink.event(&Event::Step(window.event(&report, &self.counters)));
        }
        done
    }

    fn each_step(&mut self, sink: &mut dyn EventSink, window: &mut Window) -> Result<()> {
        let plan = self.trainer.plan.clone();
        let due = |every: u64, step: u64| every > 0 && step.is_multiple_of(every);
        let mut is_first = true;
        loop {
            let step = self.counters.step;
            // Step 0, too: a broken evaluation or a hopeless start shows now, not after an hour.
            // And here rather than after the step, so that a run stopped while it validated makes
            // up for it when it goes on.
            if step == 0 || step == plan.steps || due(plan.eval.every, step) {
                self.validate(sink).map_err(|e| self.not_valid(e))?;
            }
            if step == plan.steps {
                return Ok(());
            }
            let is_asked = self.is_save_asked()?;
            if step > 0 && due(plan.checkpoint.every, step) || is_asked {
                self.save(sink)?;
            }
            let started = Instant::now();
            // Within a step numbers travel before words do, so whoever cannot begin it says so here.
            let batch = self.trainer.world().together(self.loader.batch(self.counters.cursor))?;
            let data_seconds = started.elapsed().as_secs_f64();
            let Counters { step, cursor, .. } = self.counters;
            let stepped = self.threads.install(|| self.trainer.step(step, cursor, &batch));
            let seconds = started.elapsed().as_secs_f64();
            let skip = plan.optim.on_nonfinite == OnNonfinite::Skip;
            if let Err(e) = &stepped
                && e.kind() == ErrorKind::NonFinite
                && skip
                && self.counters.skipped < plan.optim.max_skips
            {
                self.trainer.world().forgive();
                self.counters.skipped += 1;
                window.last = None; // the line of the skip says how far it came
                let all = batch.valid_count() * self.trainer.world().size();
                self.counters.pass(&plan, all as u64, seconds);
                let Counters { step, skipped, tokens, .. } = self.counters;
                sink.event(&Event::Skipped(SkipEvent {
                    step,
                    skipped,
                    tokens,
                    reason: e.to_string(),
                }))?;
                continue;
            }
            let mut report = stepped.map_err(|e| self.not_finite(e))?;
            report.sums.phases.data = data_seconds;
            self.counters.pass(&plan, report.sums.tokens, seconds);
            self.counters.flops += report.sums.flops;
            // The first one waits for memory that later ones have.
            window.add(&report, seconds, std::mem::take(&mut is_first));
            let (step, loss) = (self.counters.step, report.mean_loss());
            self.losses = Some((self.losses.map_or(loss, |(first, _)| first), loss));
            if due(plan.log.every, step) || step == plan.steps {
                sink.event(&Event::Step(std::mem::take(window).event(&report, &self.counters)))?;
            } else {
                window.last = Some(report);
            }
        }
    }

    /// Whether the state is to be saved before the next step; errs where the run is to stop. What is
    /// asked of one process is asked of all.
    fn is_save_asked(&self) -> Result<bool> {
        let save = crate::interrupt::save_is_asked();
        let mine = crate::interrupt::check().map(|()| vec![u8::from(save)]);
        Ok(self.trainer.world().agree(mine)?.concat().contains(&1))
    }

    fn finish(&mut self, sink: &mut dyn EventSink) -> Result<Summary> {
        self.save(sink)?;
        let exported = if self.trainer.world().is_root() { self.export() } else { Ok(()) };
        self.trainer.world().together(exported)?;
        let summary = Summary {
            step: self.counters.step,
            val_loss: self.counters.last_validation.map(|(_, loss)| loss),
            best_val_loss: self.counters.best_val_loss,
            tokens: self.counters.tokens,
            flops: self.counters.flops,
            seconds: self.counters.seconds,
        };
        sink.event(&Event::Finished(summary.clone()))?;
        Ok(summary)
    }

    /// Mean cross-entropy of the validation tokens; nothing without them, or if this step has been
    /// validated.
    fn validate(&mut self, sink: &mut dyn EventSink) -> Result<()> {
        let Some(valid) = &self.valid else { return Ok(()) };
        if self.counters.last_validation.is_some_and(|(step, _)| step == self.counters.step) {
            return Ok(());
        }
        let plan = &self.trainer.plan;
        let options = EvalOptions {
            context: plan.data.context,
            stride: plan.eval.stride,
            rows_limit: plan.eval.rows,
            rows_per_batch: match plan.machine.micro_rows {
                MicroRows::Rows(n) => n,
                MicroRows::Auto => 1,
            },
        };
        let student = &self.trainer.student;
        let world = self.trainer.world();
        let evaluate = || evaluate_among(world, student, valid, options, &Silent, |_| ());
        let val_loss = self.threads.install(evaluate)?.nll;
        if !val_loss.is_finite() {
            return Err(Error::new(
                ErrorKind::NonFinite,
                format!("validation loss is {val_loss} after step {}", self.counters.step),
            ));
        }
        let Counters { step, tokens, flops, seconds, .. } = self.counters;
        sink.event(&Event::Validation(ValEvent {
            step,
            val_loss,
            tokens,
            flops: flops.total(),
            seconds,
        }))?;
        self.counters.last_validation = Some((step, val_loss));
        let best = self.counters.best_val_loss.map_or(val_loss, |best| best.min(val_loss));
        self.counters.best_val_loss = Some(best);
        Ok(())
    }

    /// Writes a checkpoint of the state between two steps, unless the one of this step stands:
    /// replacing a good copy by an equal one has only risks.
    fn save(&mut self, sink: &mut dyn EventSink) -> Result<PathBuf> {
        let step = self.counters.step;
        let standing = self.lock.place(step);
        let world = self.trainer.world();
        if world.from_root(|| Ok(self.saved_at == Some(step) && standing.is_dir()))? {
            return Ok(standing);
        }
        let optimizer = self.trainer.whole_state()?;
        let saved = if world.is_root() { self.saved(optimizer) } else { Ok(standing) };
        let path = world.together(saved)?;
        self.saved_at = Some(step);
        sink.event(&Event::CheckpointSaved { path: path.clone(), step })?;
        Ok(path)
    }

    /// Writes the checkpoint.
    fn saved(&self, optimizer: adamw::State) -> Result<PathBuf> {
        let state = TrainState {
            plan: self.trainer.plan.clone(),
            config: self.trainer.student.config.clone(),
            params: self.trainer.student.params.clone(),
            optimizer,
            counters: self.counters.clone(),
            selector: serde_json::to_value(&self.trainer.selection).map_err(|e| {
                Error::internal(format!("cannot describe the state of the selection: {e}"))
            })?,
            inputs: self.config.inputs.clone(),
        };
        checkpoint::save(&self.lock, &state, &self.save_options(), &self.trainer.plan.checkpoint)
    }

    /// Writes `model/` in Hugging Face layout, whole or not at all, with a manifest by which damage
    /// is found.
    fn export(&self) -> Result<()> {
        let _hold = crate::interrupt::hold();
        let dir = AtomicDir::create(&self.lock.dir().join(MODEL_FOLDER))?;
        save_model(
            dir.path(),
            &self.trainer.student.config,
            &self.trainer.student.params,
            &self.save_options(),
        )?;
        Manifest::write(dir.path(), self.counters.step, &self.config.inputs)?;
        dir.commit()
    }

    fn save_options(&self) -> SaveOptions<'_> {
        SaveOptions { ids: self.config.ids.clone(), tokenizer: Some(&self.config.tokenizer) }
    }
}

/// `1 step was skipped`, `3 steps were skipped`.
fn were_skipped(steps: u64) -> String {
    format!("{} {} skipped", amount(steps, "steps"), if steps == 1 { "was" } else { "were" })
}

/// What selection remembered; a checkpoint from before it remembered anything holds null.
fn read_selection(stored: Value) -> Result<SelectionState> {
    if stored.is_null() {
        return Ok(SelectionState::default());
    }
    serde_json::from_value(stored).map_err(|e| {
        Error::data(format!("the checkpoint's selector state was written by another version ({e})"))
    })
}
