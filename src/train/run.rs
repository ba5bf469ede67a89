//! A whole run: validation, steps, metrics, checkpoints, the exported model; resumable between any
//! two steps.

use super::events::{
    Event, EventSink, Jsonl, Phases, SkipEvent, StepEvent, Summary, TENSORBOARD_FOLDER, Tee,
    TensorBoard, Terminal, ValEvent,
};
use super::session::{Session, label_of};
use super::threads::Threads;
use super::{StepReport, Trainer};
use crate::config::{MicroRows, OnNonfinite, Overrides, Plan, RunFile, load};
use crate::cost::{checkpoint_bytes, disk_at_peak};
use crate::data::loader::{Ahead, Loader};
use crate::data::tokens::TokenFile;
use crate::error::{Error, ErrorKind, Result};
use crate::eval::perplexity::{EvalOptions, evaluate};
use crate::files::{AtomicDir, bytes_of_files, check_space, write_atomic};
use crate::interrupt::stopped_by;
use crate::progress::{Progress, Silent};
use crate::report::text::{amount, count, quoted};
use crate::select::SelectionState;
use crate::store::checkpoint::{self, Counters, Expected, Manifest, RunLock, TrainState};
use crate::store::weights::{SaveOptions, SpecialIds, save_model};
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
    let metrics = out.join(METRICS_FILE);
    let jsonl = if resume {
        Jsonl::resume(&metrics, run.step(), run.validated())?
    } else {
        Jsonl::create(&metrics)?
    };
    let mut sinks: Vec<Box<dyn EventSink + '_>> =
        vec![Box::new(jsonl), Box::new(Terminal::new(progress, REFRESH))];
    if run.trainer.plan.log.tensorboard {
        let folder = out.join(TENSORBOARD_FOLDER);
        sinks.push(Box::new(TensorBoard::create(&folder, run.step(), run.validated())?));
    }
    let done = run.train(&mut Tee(sinks));
    if done.is_err() {
        progress.finish();
    }
    done
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

/// What stays the same over a run.
struct RunConfig {
    label: String,
    tokenizer: PathBuf,
    ids: SpecialIds,
    inputs: checkpoint::Inputs,
}

/// What a run starts from, found before anything is written.
struct Prepared {
    trainer: Trainer,
    saved: Option<TrainState>,
    loader: Ahead,
    valid: Option<Arc<TokenFile>>,
    config: RunConfig,
}

impl Prepared {
    fn new(
        session: Session,
        lock: &RunLock,
        resume: bool,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let Session {
            mut plan,
            train,
            valid,
            tokenizer,
            ids,
            student,
            teacher,
            signal,
            device,
            label,
            ..
        } = session;
        let (inputs, begun) = (session.inputs, session.begun);
        let expected = Expected { plan: &plan, config: &student.config, inputs: &inputs };
        let saved = if resume {
            checkpoint::load_latest_good(lock, &expected, &device, progress)?
        } else {
            None
        };
        if let Some(saved) = &saved {
            // It is the same student under another name; nobody looks for it any more.
            plan.student.clone_from(&saved.plan.student);
        }
        if begun && saved.is_none() {
            return Err(Error::usage(format!(
                "{}: the checkpoint that was there is gone; restore it, or start a new run folder",
                lock.dir().display()
            )));
        }
        if resume && saved.is_none() {
            check_unsaved(lock.dir(), progress)?;
        }
        // A run whose first checkpoint cannot be written would lose all it did; one that may fill
        // the disk later is told.
        check_space(lock.dir(), checkpoint_bytes(&student.config), "the run's first checkpoint")?;
        let disk = disk_at_peak(&student.config, &plan, bytes_of_files(&tokenizer)).bytes;
        if let Err(e) = check_space(lock.dir(), disk, "the run") {
            progress.note(&format!("warning: {e}"));
        }
        let mut loader =
            Ahead::new(Loader::new(train, plan.data.context, plan.seed)?, plan.data.rows);
        if let Some(signal) = signal.clone() {
            loader = loader.with(move |batch| signal.read_ahead(&batch.positions()));
        }
        let trainer = Trainer::new(plan, student, teacher)?.learning_from(signal);
        Ok(Self {
            trainer,
            saved,
            loader,
            valid,
            config: RunConfig { label, tokenizer, ids, inputs },
        })
    }
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
        if !resume {
            checkpoint::check_free(out)?;
        }
        let lock = RunLock::acquire(out)?;
        // Again, now that nobody else can begin a run there.
        let prepared = if resume { Ok(()) } else { checkpoint::check_free(out) }
            .and_then(|()| Prepared::new(session, &lock, resume, progress));
        let Prepared { mut trainer, saved, loader, valid, config } = match prepared {
            Ok(prepared) => prepared,
            Err(e) => {
                lock.abandon();
                return Err(e);
            }
        };
        let text = trainer.plan.to_toml()?;
        let path = out.join(CONFIG_FILE);
        write_atomic(&path, |w| {
            w.write_all(text.as_bytes()).map_err(|e| Error::io("write", &path, e))
        })?;
        let mut counters = Counters::default();
        let saved_at = saved.as_ref().map(|saved| saved.counters.step);
        trainer.take_memory(saved.is_none())?;
        if let Some(saved) = saved {
            trainer.student.params = saved.params;
            trainer.state = saved.optimizer;
            counters = saved.counters;
            trainer.selection = read_selection(saved.selector)?;
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
            if step > 0 && due(plan.checkpoint.every, step) || crate::interrupt::save_is_asked() {
                self.save(sink)?;
            }
            crate::interrupt::check()?;
            let started = Instant::now();
            let batch = self.loader.batch(self.counters.cursor)?;
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
                self.counters.skipped += 1;
                window.last = None; // the line of the skip says how far it came
                self.counters.pass(&plan, batch.valid_count() as u64, seconds);
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

    fn finish(&mut self, sink: &mut dyn EventSink) -> Result<Summary> {
        self.save(sink)?;
        self.export()?;
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
        let val_loss = self.threads.install(|| evaluate(student, valid, options, &Silent))?.nll;
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
        if self.saved_at == Some(step) && standing.is_dir() {
            return Ok(standing);
        }
        let state = TrainState {
            plan: self.trainer.plan.clone(),
            config: self.trainer.student.config.clone(),
            params: self.trainer.student.params.clone(),
            optimizer: self.trainer.state.clone(),
            counters: self.counters.clone(),
            selector: serde_json::to_value(&self.trainer.selection).map_err(|e| {
                Error::internal(format!("cannot describe the state of the selection: {e}"))
            })?,
            inputs: self.config.inputs.clone(),
        };
        let path = checkpoint::save(
            &self.lock,
            &state,
            &self.save_options(),
            &self.trainer.plan.checkpoint,
        )?;
        self.saved_at = Some(step);
        sink.event(&Event::CheckpointSaved { path: path.clone(), step })?;
        Ok(path)
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

/// A run without a checkpoint begins at step 0, unless it was over: that would undo it.
fn check_unsaved(run: &Path, progress: &dyn Progress) -> Result<()> {
    if run.join(MODEL_FOLDER).is_dir() {
        return Err(Error::usage(format!(
            "{}: the run there is finished and its checkpoints are gone, so it cannot go on; begin another in a folder of \
             its own",
            run.display()
        )));
    }
    if run.join(CONFIG_FILE).is_file() {
        progress.note(&format!("{}: no checkpoint yet: from step 0", run.display()));
    }
    Ok(())
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

/// Steps since the last logged one.
#[derive(Default)]
struct Window {
    tokens: u64,
    seconds: f64,
    phases: Phases,
    /// Tokens and seconds of a first step, if it is among them.
    first: Option<(u64, f64)>,
    /// The last of them.
    last: Option<StepReport>,
}

impl Window {
    fn add(&mut self, report: &StepReport, seconds: f64, is_first: bool) {
        if is_first {
            self.first = Some((report.sums.tokens, seconds));
        }
        self.tokens += report.sums.tokens;
        self.seconds += seconds;
        self.phases += report.sums.phases;
    }

    /// Tokens per second without a first step, unless it is the only one.
    fn speed(&self) -> f64 {
        let (tokens, seconds) = match self.first {
            Some((tokens, seconds)) if self.tokens > tokens => {
                (self.tokens - tokens, self.seconds - seconds)
            }
            _ => (self.tokens, self.seconds),
        };
        tokens as f64 / seconds
    }

    fn event(self, report: &StepReport, counters: &Counters) -> StepEvent {
        let StepReport { settings, sums, .. } = report;
        let (tokens, valid, kept) = (sums.tokens as f64, sums.valid as f64, sums.kept as f64);
        let dropped = valid - kept;
        let score_sum = || sums.scores.iter().map(|s| f64::from(*s)).sum::<f64>();
        StepEvent {
            step: counters.step,
            loss: report.mean_loss(),
            full_loss: (sums.valid == sums.tokens).then(|| sums.nll / valid),
            kept_loss: sums.kept_nll / kept,
            dropped_loss: (dropped > 0.0).then(|| (sums.nll - sums.kept_nll) / dropped),
            kept: sums.kept,
            kept_share: kept / tokens,
            sequences_share: sums.sequences.1 as f64 / sums.sequences.0 as f64,
            alpha: settings.alpha,
            var: (sums.pools > 0).then(|| sums.var / sums.pools as f64),
            cvar: (sums.pools > 0).then(|| sums.cvar / kept),
            score_mean: (!sums.scores.is_empty()).then(|| score_sum() / valid),
            rows: sums.rows,
            effective_rows: sums.effective_rows(),
            backward_share: sums.block_rows.0 as f64 / sums.block_rows.1 as f64,
            threshold: report.carried.map(|c| c.threshold),
            threshold_lag: report.carried.map(|c| c.lag),
            threshold_error: report.carried.map(|c| c.error),
            ada_delta: report.ada_delta,
            easy_share: sums.easy_share(),
            grad_norm: report.grad_norm,
            lambda: settings.lambda,
            temperature: settings.temperature,
            lr: settings.lr,
            tokens: counters.tokens,
            tokens_per_second: self.speed(),
            flops: counters.flops.total(),
            flops_by_part: counters.flops,
            seconds: counters.seconds,
            seconds_by_phase: self.phases,
        }
    }
}
