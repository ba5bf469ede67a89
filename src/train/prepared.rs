//! What a run starts from, found and checked before anything is written.

use super::Trainer;
use super::run::{CONFIG_FILE, MODEL_FOLDER};
use super::session::Session;
use crate::cost::{checkpoint_bytes, disk_at_peak};
use crate::data::loader::{Ahead, Loader};
use crate::data::tokens::TokenFile;
use crate::error::{Error, Result};
use crate::files::{bytes_of_files, check_space};
use crate::model::Gpt2;
use crate::progress::Progress;
use crate::store::checkpoint::{self, Expected, RunLock, TrainState};
use crate::store::weights::SpecialIds;
use crate::world::World;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What stays the same over a run.
pub(super) struct RunConfig {
    pub(super) label: String,
    pub(super) tokenizer: PathBuf,
    pub(super) ids: SpecialIds,
    pub(super) inputs: checkpoint::Inputs,
}

/// What a run starts from, found before anything is written.
pub(super) struct Prepared {
    pub(super) trainer: Trainer,
    pub(super) world: World,
    pub(super) saved: Option<TrainState>,
    pub(super) loader: Ahead,
    pub(super) valid: Option<Arc<TokenFile>>,
    pub(super) config: RunConfig,
}

impl Prepared {
    pub(super) fn new(
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
            world,
            ..
        } = session;
        let (inputs, begun) = (session.inputs, session.begun);
        let expected = Expected { plan: &plan, config: &student.config, inputs: &inputs };
        // Process 0 reads for all.
        let saved = if resume && world.is_root() {
            checkpoint::load_latest_good(lock, &expected, &device, progress)?
        } else {
            None
        };
        if let Some(saved) = &saved {
            // It is the same student under another name; nobody looks for it any more.
            plan.student.clone_from(&saved.plan.student);
        }
        if begun && saved.is_none() && world.is_root() {
            return Err(Error::usage(format!(
                "{}: the checkpoint that was there is gone; restore it, or start a new run folder",
                lock.dir().display()
            )));
        }
        if resume && saved.is_none() && world.is_root() {
            check_unsaved(lock.dir(), progress)?;
        }
        // A run whose first checkpoint cannot be written would lose all it did; one that may fill
        // the disk later is told.
        if world.is_root() {
            let first = checkpoint_bytes(&student.config);
            check_space(lock.dir(), first, "the run's first checkpoint")?;
            let disk = disk_at_peak(&student.config, &plan, bytes_of_files(&tokenizer)).bytes;
            if let Err(e) = check_space(lock.dir(), disk, "the run") {
                progress.note(&format!("warning: {e}"));
            }
        }
        let rows = plan.data.rows;
        let mut loader = Ahead::new(Loader::new(train, plan.data.context, plan.seed)?, rows)
            .share(world.share(rows));
        if let Some(signal) = signal.clone() {
            loader = loader.with(move |batch| signal.read_ahead(&batch.positions()));
        }
        let student = match &saved {
            Some(saved) => Gpt2 { params: saved.params.clone(), ..student },
            None => student,
        };
        let trainer = Trainer::new(plan, student, teacher)?.learning_from(signal);
        Ok(Self {
            trainer,
            world,
            saved,
            loader,
            valid,
            config: RunConfig { label, tokenizer, ids, inputs },
        })
    }

    /// What every process of a run must have been told: where the run lies, what it reads, what it trains
    /// and how; but not where data and models lie, and what a machine has.
    pub(super) fn told(&self, out: &Path) -> Result<Vec<(String, String)>> {
        let own =
            ["student", "teacher", "data.dir", "data.signal", "machine.device", "machine.threads"];
        let mut told = vec![("--out".to_string(), out.display().to_string())];
        let inputs = fields(&self.config.inputs)?.into_iter().map(|(name, value)| {
            let name = match name.as_str() {
                "data_hash" => "the data (SHA-256)",
                "valid_hash" => "the validation data (SHA-256)",
                "tokenizer_hash" => "the tokenizer (SHA-256)",
                other => other,
            };
            (name.to_string(), value)
        });
        told.extend(inputs);
        let student = fields(&self.trainer.student.config)?.into_iter();
        told.extend(student.map(|(name, value)| (format!("the student's {name}"), value)));
        let plan = self.trainer.plan.as_text().into_iter();
        told.extend(plan.filter(|(name, _)| !own.contains(&name.as_str())));
        Ok(told)
    }
}

/// The fields of a struct, each in words.
fn fields(of: &impl Serialize) -> Result<Vec<(String, String)>> {
    let value = serde_json::to_value(of)
        .map_err(|e| Error::internal(format!("cannot describe what a run is told: {e}")))?;
    let fields = value.as_object().into_iter().flatten();
    Ok(fields.map(|(name, value)| (name.clone(), value.to_string())).collect())
}

/// The run folder, for process 0 to write to and for the others to know.
pub(super) fn taken(out: &Path, resume: bool, world: &World) -> Result<RunLock> {
    if !world.is_root() {
        return Ok(RunLock::beside(out));
    }
    if !resume {
        checkpoint::check_free(out)?;
    }
    RunLock::acquire(out)
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
