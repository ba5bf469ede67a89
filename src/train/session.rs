//! From a plan to what a run works with: data, student, teacher and device, each found, checked and
//! named.

use crate::config::{DeviceSpec, Plan, Signal};
use crate::cost::{self, MemoryByPart, check_fit, settle};
use crate::data::prepare::{DataDir, TOKENIZER};
use crate::data::tokens::TokenFile;
use crate::error::{Error, ErrorKind, Result};
use crate::files::hex;
use crate::machine::total_memory;
use crate::model::{Gpt2, Gpt2Config, Layout, ParamSet};
use crate::ops::gpu;
use crate::ops::matmul::Precision;
use crate::progress::{Progress, Silent};
use crate::report::text::amount;
use crate::signal::{Kind as SignalOnDisk, Stored, Window};
use crate::store::checkpoint::{self, Inputs, Known, Models};
use crate::store::hub::{HubOptions, What};
use crate::store::names::{ModelRef, locate};
use crate::store::student::Start;
use crate::store::weights::SpecialIds;
use crate::store::{Kind, ModelFolder, Where, shape_of};
use crate::teacher::Teacher;
use crate::world::World;
use candle_core::{DType, Device};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Everything a run works with.
#[derive(Debug)]
pub struct Session {
    /// What the run is called where it says how far it is; at first its method and its student.
    pub label: String,
    /// The plan, settled.
    pub plan: Plan,
    /// Training tokens.
    pub train: Arc<TokenFile>,
    /// Validation tokens, if the data folder has some.
    pub valid: Option<Arc<TokenFile>>,
    /// Folder of the tokenizer that made them.
    pub tokenizer: PathBuf,
    /// Ids of special tokens that the student is stored with.
    pub ids: SpecialIds,
    /// The student before its first step.
    pub student: Gpt2,
    /// The teacher, if the plan has one beside the run.
    pub teacher: Option<Teacher>,
    /// What a teacher said of the training tokens, if the plan has that.
    pub signal: Option<Arc<Stored>>,
    /// Where tensors live.
    pub device: Device,
    /// What is read, by hash.
    pub inputs: Inputs,
    /// The processes that train together; at first this one alone.
    pub world: World,
    /// Whether the student is a shape alone, whose weights the run's checkpoint has.
    pub(super) begun: bool,
}

/// The shapes that a plan comes to, and the plan settled for them.
#[derive(Debug, Clone, PartialEq)]
pub struct Shapes {
    /// The plan with its machine half decided.
    pub plan: Plan,
    /// The student's.
    pub student: Gpt2Config,
    /// That of the teacher, if the run asks one.
    pub teacher: Option<Gpt2Config>,
}

impl Shapes {
    /// Errs if they do not fit each other or the plan.
    fn new(plan: &Plan, student: Gpt2Config, teacher: Option<Gpt2Config>) -> Result<Self> {
        check_fit(&student, teacher.as_ref(), plan)?;
        Ok(Self { plan: settle(&student, plan), student, teacher })
    }

    /// What the run would take, in bytes by part.
    pub fn memory(&self) -> MemoryByPart {
        self.memory_among(1)
    }

    /// What one of so many processes would take.
    pub fn memory_among(&self, processes: usize) -> MemoryByPart {
        cost::memory_among(&self.student, self.teacher.as_ref(), &self.plan, processes)
    }

    /// Operations of the whole run, by forecast.
    pub fn flops(&self) -> f64 {
        cost::flops_of_run(&self.student, self.teacher.as_ref(), &self.plan)
    }
}

/// All that a run works with, found and checked but for the weights' values: a session that is not
/// open yet.
#[derive(Debug)]
pub struct Survey {
    /// Plan and shapes.
    pub shapes: Shapes,
    /// Where tensors will live.
    pub device: Device,
    dir: PathBuf,
    data: DataDir,
    teacher: Option<ModelFolder>,
    signal: Option<Stored>,
    start: Start,
    stored: Option<ModelFolder>,
    /// The models that the run read before, if it has begun.
    begun: Option<Models>,
}

impl Survey {
    /// Of the plan on the opened data folder `dir`; models are downloaded if need be. A run of
    /// which something is `known` takes its teacher at the commit that it had, and its student as
    /// it has become.
    fn new(
        plan: &Plan,
        (dir, data): (&Path, DataDir),
        device: Device,
        known: Option<&Known>,
        at: Where<'_>,
    ) -> Result<Self> {
        let mut plan = plan.clone();
        if let (DeviceSpec::Auto, true) = (plan.machine.device, device.is_cuda()) {
            plan.machine.device = DeviceSpec::Cuda(0); // what was found: a micro-batch is sized by it
        }
        let signal = opened_signal(&mut plan, Some(&data.train), known)?;
        if let Some(Window { context, .. }) = signal.as_ref().map(|signal| signal.header().window)
            && context as usize > plan.data.context
        {
            at.progress.note(&format!(
                "note: the teacher of the signal read {} at once, and the student reads {}: beside this run it would have read less",
                amount(context.into(), "tokens"),
                plan.data.context
            ));
        }
        let teacher = plan
            .live_teacher()
            .map(|name| {
                let meant = ModelRef::parse(name, Kind::Teacher)?;
                let recorded =
                    known.and_then(|known| known.inputs.models.teacher_revision.as_deref());
                find_fitting(name, meant.at_recorded(recorded), &data, at)
            })
            .transpose()?;
        let teacher_shape = teacher.as_ref().map(ModelFolder::checked_config).transpose()?;
        // A student under another name is looked at: it must be the one that the run began with.
        let begun = known.filter(|k| (&k.plan.student, k.plan.init) == (&plan.student, plan.init));
        let start = match begun {
            Some(known) => {
                let was_stored = known.inputs.models.student_hash.is_some();
                Start::of_begun(&plan, &known.dir, was_stored)?
            }
            None => Start::of(&plan)?,
        };
        let mut stored = None;
        let vocabulary = vocabulary(signal.as_ref(), data.tokenizer.vocab_size());
        let student =
            start.shape(&plan, teacher_shape.as_ref(), Some(vocabulary), |name, meant| {
                stored.insert(find_fitting(name, meant.clone(), &data, at)?).checked_config()
            })?;
        let shapes = Shapes::new(&plan, student, teacher_shape)?;
        check_signal_fits(signal.as_ref(), &shapes)?;
        if device.is_cpu() {
            let total = total_memory().unwrap_or(u64::MAX);
            cost::check_memory(&shapes.memory(), total, &shapes.plan)?;
        }
        for tokens in data.files() {
            tokens.check_vocab(shapes.student.vocab_size)?;
        }
        let begun = begun.map(|known| known.inputs.models.clone());
        let dir = dir.to_path_buf();
        Ok(Self { shapes, device, dir, data, teacher, signal, start, stored, begun })
    }

    /// The stored models that it reads, by their content; reads their weights once.
    pub fn models(&self) -> Result<Models> {
        let noted = |folder: &Option<ModelFolder>| -> Result<_> {
            let found = folder.as_ref().map(ModelFolder::identity).transpose()?;
            let (weights, function) = found.map(|i| (i.weights, i.function)).unzip();
            Ok((weights, function.flatten(), folder.as_ref().and_then(ModelFolder::revision)))
        };
        let (teacher_hash, teacher_function, teacher_revision) = match &self.signal {
            Some(signal) => {
                let teacher = signal.header().teacher.clone();
                (teacher.weights, teacher.function, teacher.revision)
            }
            None => noted(&self.teacher)?,
        };
        let (student_hash, student_function, student_revision) = match &self.begun {
            Some(Models { student_hash, student_function, student_revision, .. }) => {
                (student_hash.clone(), student_function.clone(), student_revision.clone())
            }
            None => noted(&self.stored)?,
        };
        Ok(Models {
            teacher_hash,
            teacher_function,
            teacher_revision,
            student_hash,
            student_function,
            student_revision,
            signal_hash: self.signal.as_ref().map(|signal| signal.hash().to_string()),
        })
    }

    /// Reads the weights.
    pub fn open(self) -> Result<Session> {
        let teacher = self.teacher.as_ref().map(|folder| folder.load(&self.device)).transpose()?;
        let inputs = inputs_of(&self.data, self.models()?);
        let begun = self.begun.is_some() && self.stored.is_some();
        let Self { shapes, device, dir, data, signal, start, stored, .. } = self;
        let Shapes { plan, student, .. } = shapes;
        let mut ids = SpecialIds::of(&data.tokenizer);
        if let Some(own) = stored.as_ref().map(ModelFolder::special_ids).transpose()?
            && !own.eos.is_empty()
        {
            // What came is kept, and the mark that these documents end with ends texts, too.
            let here = std::mem::replace(&mut ids, own).eos;
            let new: Vec<u32> = here.into_iter().filter(|id| !ids.eos.contains(id)).collect();
            ids.eos.extend(new);
        }
        let shape = student.clone();
        let load = || match stored {
            Some(_) if begun => {
                let zeros = ParamSet::zeros(&Layout::new(&shape), DType::F32, &device)?;
                Ok(Gpt2::new(shape, zeros))
            }
            Some(stored) => stored.load(&device),
            None => Err(Error::internal("the student was not looked for")),
        };
        let student = start.student(student, plan.seed, teacher.as_ref(), &device, load)?;
        Ok(Session {
            label: label_of(&plan),
            teacher: teacher.map(|t| Teacher::new(t, &student.config)).transpose()?,
            signal: signal.map(Arc::new),
            train: data.train,
            valid: data.valid.map(|valid| valid.bounded(plan.eval.tokens)).transpose()?,
            plan,
            tokenizer: dir.join(TOKENIZER),
            ids,
            student,
            device,
            inputs,
            world: World::solo(),
            begun,
        })
    }
}

impl Session {
    /// The shapes of the run that `plan` describes, by the rules of [`Session::open`]: what it
    /// refuses is refused, as far as that can be told without weights, and none are fetched or read.
    /// A plan may name no data yet.
    pub fn shapes(plan: &Plan, at: Where<'_>) -> Result<Shapes> {
        let mut plan = plan.clone();
        let data = plan.data.dir.as_deref().map(|dir| DataDir::open(Path::new(dir))).transpose()?;
        let shape = |name: &str, meant: &ModelRef| match &data {
            Some(data) => shape_fitting(name, meant, data, at),
            None => shape_of(meant.clone(), name, at),
        };
        let signal = opened_signal(&mut plan, data.as_ref().map(|data| &*data.train), None)?;
        let plan = &plan;
        let teacher = plan
            .live_teacher()
            .map(|name| shape(name, &ModelRef::parse(name, Kind::Teacher)?))
            .transpose()?;
        let of_data = data.as_ref().map(|data| data.tokenizer.vocab_size());
        let vocabulary = of_data.map(|size| vocabulary(signal.as_ref(), size));
        let student = Start::of(plan)?.shape(plan, teacher.as_ref(), vocabulary, shape)?;
        let shapes = Shapes::new(plan, student, teacher)?;
        check_signal_fits(signal.as_ref(), &shapes)?;
        for tokens in data.iter().flat_map(DataDir::files) {
            tokens.check_vocab(shapes.student.vocab_size)?;
        }
        Ok(shapes)
    }

    /// Finds and checks all that the run works with, downloads what is not here, and reads no
    /// weights.
    pub fn survey(plan: &Plan, at: Where<'_>) -> Result<Survey> {
        let (dir, device) = (data_dir(plan)?, checked_device(plan)?);
        Survey::new(plan, (dir, DataDir::open(dir)?), device, None, at)
    }

    /// Opens the plan's data folder, loads or fetches its teacher, and makes its student.
    pub fn open(plan: &Plan, at: Where<'_>) -> Result<Self> {
        Self::with_data(plan, data_dir(plan)?, at)
    }

    /// As [`Session::open`], for the run folder `run`: if it holds a checkpoint, its teacher comes
    /// at the commit that it had, and its student's weights are the checkpoint's.
    pub fn resume(plan: &Plan, run: &Path, at: Where<'_>) -> Result<Self> {
        Self::on(plan, data_dir(plan)?, checkpoint::known(run)?.as_ref(), at)
    }

    /// As [`Session::open`], on the given data folder.
    pub fn with_data(plan: &Plan, dir: &Path, at: Where<'_>) -> Result<Self> {
        Self::on(plan, dir, None, at)
    }

    /// The same under the name that its progress is shown with.
    #[must_use]
    pub fn called(self, label: &str) -> Self {
        Self { label: label.to_string(), ..self }
    }

    /// The same as one of the processes of `world`, all of which have opened it.
    #[must_use]
    pub fn among(self, world: World) -> Self {
        Self { world, ..self }
    }

    fn on(plan: &Plan, dir: &Path, known: Option<&Known>, at: Where<'_>) -> Result<Self> {
        let device = checked_device(plan)?;
        let data = DataDir::open(dir)?;
        // Once for the whole run: a flipped bit below the vocabulary's size would pass every later
        // check.
        verify(&data, at.progress)?;
        Survey::new(plan, (dir, data), device, known, at)?.open()
    }
}

/// `eslm gpt2-30m`; of a path the last name.
pub(super) fn label_of(plan: &Plan) -> String {
    let student = Path::new(&plan.student).file_name().map(|name| name.to_string_lossy());
    format!("{} {}", plan.method, student.unwrap_or_default())
}

/// The stored signal of the plan, if it is asked anything, of these training tokens; the plan then
/// says what the loss uses of it.
fn opened_signal(
    plan: &mut Plan,
    data: Option<&TokenFile>,
    known: Option<&Known>,
) -> Result<Option<Stored>> {
    let Some(dir) = plan.data.signal.as_deref().filter(|_| plan.uses_teacher()) else {
        return Ok(None);
    };
    let stored = Stored::open(Path::new(dir))?;
    let header = stored.header().clone();
    if let Some(was) = known.and_then(|known| known.inputs.models.signal_hash.as_ref())
        && was != stored.hash()
    {
        return Err(Error::usage(format!(
            "{dir}: the run learned from another signal: signal (SHA-256): {was} before, {} now; name that one with --signal, \
             or start a new run folder",
            stored.hash()
        )));
    }
    if let Some(data) = data {
        let here = hex(&data.header().content_hash);
        if here != header.data.content_hash {
            return Err(Error::data(format!(
                "{dir}: of other training tokens than {} (SHA-256 {} there, {} here); write a signal of these data",
                data.path().display(),
                &header.data.content_hash[..12.min(header.data.content_hash.len())],
                &here[..12]
            )));
        }
    }
    header.window.check_fits(plan.data.context).map_err(|e| e.context(dir))?;
    let objective = &mut plan.objective;
    let of_dir = |what: String| Error::usage(format!("{dir}: {what}"));
    let kind = match &header.signal {
        SignalOnDisk::Sampled { .. } => Signal::Sampled,
        SignalOnDisk::TopK { .. } => Signal::TopK,
        SignalOnDisk::Scores if objective.distils() => {
            return Err(of_dir(
                "holds scores and nothing that a loss could learn from; set objective.lambda = 0, or write a signal with --signal sampled=50"
                    .into(),
            ));
        }
        SignalOnDisk::Scores => Signal::Stored,
    };
    if ![Signal::Stored, kind].contains(&objective.signal) {
        return Err(of_dir(format!(
            "holds {}, and objective.signal is {}; leave it out, or write another signal",
            header.signal, objective.signal
        )));
    }
    objective.signal = kind;
    let constant = objective.temperature_end.is_none_or(|end| end == objective.temperature);
    let tau = header.signal.temperature();
    if objective.distils()
        && !(constant && tau.is_none_or(|tau| tau == objective.temperature as f32))
    {
        return Err(of_dir(format!(
            "was written at temperature {}, and objective.temperature is {}{}; train at the signal's, or write a signal with --temperature {}",
            tau.unwrap_or(1.0),
            objective.temperature,
            if constant { "" } else { " and moves" },
            objective.temperature
        )));
    }
    if kind == Signal::Sampled
        && objective.divergence != crate::config::Divergence::ForwardKl
        && objective.distils()
    {
        return Err(of_dir(format!(
            "holds draws, which estimate forward-kl and no other divergence, and objective.divergence is {}; choose \
             forward-kl, or write a signal with --signal top-k=64",
            objective.divergence
        )));
    }
    match &header.signal {
        SignalOnDisk::Sampled { planes, .. } => {
            if objective.samples == 0 {
                objective.samples = planes.iter().sum();
            }
            return stored.with_draws(objective.samples).map(Some).map_err(|e| e.context(dir));
        }
        SignalOnDisk::TopK { k, .. } => objective.top_k = *k as usize,
        SignalOnDisk::Scores => {}
    }
    Ok(Some(stored))
}

/// Tokens of a student that begins from a shape: all that the signal may name.
fn vocabulary(signal: Option<&Stored>, of_data: u32) -> usize {
    signal.map_or(of_data, |signal| signal.header().vocab_size.max(of_data)) as usize
}

/// Errs where a signal may name what the student does not have.
fn check_signal_fits(signal: Option<&Stored>, shapes: &Shapes) -> Result<()> {
    let Some(signal) = signal else { return Ok(()) };
    let (named, held) = (signal.header().vocab_size as usize, shapes.student.vocab_size);
    if named <= held {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{}: of a teacher with a vocabulary of {}, and the student has {}; choose a student of the teacher's family",
        signal.dir().display(),
        amount(named as u64, "tokens"),
        amount(held as u64, "tokens")
    )))
}

fn data_dir(plan: &Plan) -> Result<&Path> {
    plan.data.dir.as_deref().map(Path::new).ok_or_else(|| {
        Error::usage(
            "the run names no data: add --data DIR (a folder made by `eslm-kd prepare`), or run `eslm-kd distill` \
             without arguments for the built-in quickstart",
        )
    })
}

/// The plan's device, which can do its kind of numbers; before anything takes time.
fn checked_device(plan: &Plan) -> Result<Device> {
    let device = device(plan.machine.device)?;
    Precision::of(plan.machine.dtype, &device)?;
    Ok(device)
}

/// The device of a plan, ready for training. `auto` is the first CUDA device where this build and
/// this machine have one, else the CPU.
pub fn device(spec: DeviceSpec) -> Result<Device> {
    let device = opened(spec)?;
    gpu::prepare(&device)?;
    Ok(device)
}

fn opened(spec: DeviceSpec) -> Result<Device> {
    match spec {
        DeviceSpec::Cpu => Ok(Device::Cpu),
        DeviceSpec::Auto => Ok(Device::cuda_if_available(0)?),
        DeviceSpec::Cuda(_) if !candle_core::utils::cuda_is_available() => Err(Error::usage(
            "this build has no CUDA: build with `cargo build --release --features cuda`, or use --device cpu",
        )),
        DeviceSpec::Cuda(i) => Device::new_cuda(i).map_err(|e| {
            Error::usage(format!("CUDA device {i} cannot be used: {e}; use --device cpu"))
        }),
    }
}

/// What a run reads, by hashes.
pub(crate) fn inputs_of(data: &DataDir, models: Models) -> Inputs {
    Inputs {
        data_hash: hex(&data.train.header().content_hash),
        valid_hash: data.valid.as_ref().map(|valid| hex(&valid.header().content_hash)),
        // By the data's word: what made it may have been an earlier version.
        tokenizer_hash: hex(&data.train.header().tokenizer_hash),
        models,
    }
}

/// Compares the data's token files with their content hashes.
pub(crate) fn verify(data: &DataDir, progress: &dyn Progress) -> Result<()> {
    data.files().try_for_each(|tokens| tokens.verify(progress))
}

/// The folder of a stored model that fits the data: one that brings a tokenizer must have been
/// trained on tokens of the data's.
fn find_fitting(name: &str, meant: ModelRef, data: &DataDir, at: Where<'_>) -> Result<ModelFolder> {
    let folder = locate(meant, name, None, What::Model, at)?;
    check_tokenizer(name, &folder, data)?;
    Ok(folder)
}

/// The shape of a model that fits the data, without its weights. Of one of the Hub's whose tokenizer
/// is not in the cache, another vocabulary is noted: a run will fetch and compare it.
fn shape_fitting(
    name: &str,
    meant: &ModelRef,
    data: &DataDir,
    at: Where<'_>,
) -> Result<Gpt2Config> {
    let cache = HubOptions { offline: true, ..at.hub.clone() };
    let here = Where { hub: &cache, progress: &Silent };
    let is_known = match locate(meant.clone(), name, None, What::TokenizerOnly, here) {
        Ok(folder) => check_tokenizer(name, &folder, data).map(|()| true)?,
        Err(e) if e.kind() == ErrorKind::Hub => false,
        Err(e) => return Err(e),
    };
    let shape = shape_of(meant.clone(), name, at)?;
    let of_data = u64::from(data.tokenizer.vocab_size());
    if !is_known && shape.vocab_size as u64 != of_data {
        at.progress.note(&format!(
            "warning: {name} has a vocabulary of {}, the data one of {}; a run compares the tokenizers once it has fetched \
             {name}, and refuses data that were made by another",
            amount(shape.vocab_size as u64, "tokens"),
            amount(of_data, "tokens")
        ));
    }
    Ok(shape)
}

/// Errs where the tokenizer that lies beside a model is not that of the data.
pub(crate) fn check_tokenizer(name: &str, folder: &ModelFolder, data: &DataDir) -> Result<()> {
    if let Some(own) = folder.tokenizer()? {
        let Some(shared) = own.shares_with(&data.tokenizer) else {
            return Err(Error::data(format!(
                "{name}: its tokenizer is {}, but the data was made by {}; prepare the data with --tokenizer {name}",
                hex(&own.hash()[..6]),
                hex(&data.tokenizer.hash()[..6])
            )));
        };
        for tokens in data.files() {
            tokens.check_vocab(shared as usize).map_err(|e| e.context(name))?;
        }
    }
    Ok(())
}
