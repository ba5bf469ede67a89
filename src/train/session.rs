//! From a plan to what a run works with: data, student, teacher and device, each found, checked and named.

use crate::config::{Birth as BirthWord, DeviceSpec, Plan};
use crate::cost::{check_fit, settle};
use crate::data::prepare::{DataDir, TOKENIZER};
use crate::data::tokenizer::Tokenizer;
use crate::data::tokens::TokenFile;
use crate::error::{Error, Result};
use crate::files::hex;
use crate::model::{Gpt2, Gpt2Config};
use crate::ops::gpu;
use crate::ops::matmul::Precision;
use crate::progress::Progress;
use crate::store::checkpoint::Inputs;
use crate::store::hub::HubOptions;
use crate::store::names::{Kind, ModelRef, ModelSource, has_tokenizer, locate};
use crate::store::preset::{Birth, Preset, Source};
use crate::store::weights::{load_model, weights_hash};
use crate::teacher::Teacher;
use candle_core::Device;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a token file whose verification takes a noticeable time.
const LARGE: u64 = 1 << 28;

/// Everything a run works with.
#[derive(Debug)]
pub struct Session {
    /// The plan, settled.
    pub plan: Plan,
    /// Training tokens.
    pub train: Arc<TokenFile>,
    /// Validation tokens, if the data folder has some.
    pub valid: Option<Arc<TokenFile>>,
    /// Folder of the tokenizer that made them.
    pub tokenizer: PathBuf,
    /// Id of its end-of-text token.
    pub eot: u32,
    /// The student as born.
    pub student: Gpt2,
    /// The teacher, if the plan has one.
    pub teacher: Option<Teacher>,
    /// Where tensors live.
    pub device: Device,
    /// What is read, by hash.
    pub inputs: Inputs,
}

/// Where the Hub is and who hears about long phases.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Hub access.
    pub hub: &'a HubOptions,
    /// Who hears.
    pub progress: &'a dyn Progress,
}

impl Session {
    /// Opens the plan's data folder, loads or fetches its teacher, and gives birth to its student.
    pub fn open(plan: &Plan, around: Surroundings<'_>) -> Result<Self> {
        let Some(dir) = &plan.data.dir else {
            return Err(Error::usage(
                "the run names no data: add --data DIR (a folder made by `eslm-kd prepare`), or run `eslm-kd distill` \
                 without arguments for the built-in quickstart",
            ));
        };
        Self::with_data(plan, Path::new(dir), around)
    }

    /// As [`Session::open`], on the given data folder.
    pub fn with_data(plan: &Plan, dir: &Path, around: Surroundings<'_>) -> Result<Self> {
        let device = device(plan.machine.device)?;
        let mut plan = plan.clone();
        if let (DeviceSpec::Auto, true) = (plan.machine.device, device.is_cuda()) {
            plan.machine.device = DeviceSpec::Cuda(0); // what was found: a micro-batch is sized by it
        }
        let plan = &plan;
        Precision::of(plan.machine.dtype, &device)?; // before anything takes time
        let data = DataDir::open(dir)?;
        // Once for the whole run: a flipped bit below the vocabulary's size would pass every later check.
        for tokens in [Some(&data.train), data.valid.as_ref()].into_iter().flatten() {
            verify(tokens, around.progress)?;
        }
        let (mut teacher, mut teacher_hash, mut teacher_revision) = (None, None, None);
        if let Some(name) = plan.teacher.as_deref().filter(|_| plan.uses_teacher()) {
            let found = find(name, Kind::Teacher, &data.tokenizer, around)?;
            teacher = Some(load_folder(&found.dir, &device)?);
            teacher_hash = Some(weights_hash(&found.dir)?);
            teacher_revision = found.pinned();
        }
        let (student, student_revision) = student(plan, teacher.as_ref(), &data.tokenizer, around, &device)?;
        check_fit(&student.config, teacher.as_ref().map(|t| &t.config), plan)?;
        let teacher = teacher.map(|t| Teacher::new(t, &student.config)).transpose()?;
        for tokens in [Some(&data.train), data.valid.as_ref()].into_iter().flatten() {
            tokens.check_vocab(student.config.vocab_size)?;
        }
        let inputs = Inputs {
            data_hash: hex(&data.train.header().content_hash),
            tokenizer_hash: hex(&data.tokenizer.hash()),
            teacher_hash,
            teacher_revision,
            student_revision,
        };
        Ok(Self {
            plan: settle(&student.config, plan),
            train: data.train,
            valid: data.valid,
            tokenizer: dir.join(TOKENIZER),
            eot: data.tokenizer.eot(),
            student,
            teacher,
            device,
            inputs,
        })
    }
}

/// The device of a plan, ready for training. `auto` is the first CUDA device where this build and this machine have one,
/// else the CPU.
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
        DeviceSpec::Cuda(i) => Device::new_cuda(i)
            .map_err(|e| Error::usage(format!("CUDA device {i} cannot be used: {e}; use --device cpu"))),
    }
}

/// Compares a token file with its content hash; a large one is heard of.
fn verify(tokens: &TokenFile, progress: &dyn Progress) -> Result<()> {
    let bytes = tokens.len() * tokens.header().dtype.bytes() as u64;
    if bytes < LARGE {
        return tokens.verify();
    }
    progress.start(&format!("Verifying {}", tokens.path().display()), None, "bytes");
    let done = tokens.verify();
    progress.finish();
    done
}

/// A model, and `org/name@commit` if it is the Hub's.
type Pinned = (Gpt2, Option<String>);

/// A stored model; one that brings a tokenizer must have been trained on tokens of the data's.
fn load(name: &str, kind: Kind, tokenizer: &Tokenizer, around: Surroundings<'_>, device: &Device) -> Result<Pinned> {
    let found = find(name, kind, tokenizer, around)?;
    Ok((load_folder(&found.dir, device)?, found.pinned()))
}

/// A stored model's folder; the model fits the data.
fn find(name: &str, kind: Kind, tokenizer: &Tokenizer, around: Surroundings<'_>) -> Result<ModelSource> {
    let found = locate(ModelRef::parse(name, kind)?, name, None, around.hub, around.progress)?;
    if has_tokenizer(&found.dir) {
        let (own, data) = (Tokenizer::load(&found.dir)?.hash(), tokenizer.hash());
        if own != data {
            return Err(Error::data(format!(
                "{name}: its tokenizer is {}, but the data was made by {}; prepare the data with --tokenizer {name}",
                hex(&own[..6]),
                hex(&data[..6])
            )));
        }
    }
    Ok(found)
}

fn load_folder(dir: &Path, device: &Device) -> Result<Gpt2> {
    let (config, params) = load_model(dir, device)?;
    Ok(Gpt2::new(config, params))
}

/// The student of a plan: a preset is born as it says unless the plan says otherwise; anything else is loaded.
fn student(
    plan: &Plan,
    teacher: Option<&Gpt2>,
    tokenizer: &Tokenizer,
    around: Surroundings<'_>,
    device: &Device,
) -> Result<Pinned> {
    let born = |student: Gpt2| (student, None);
    let vocabulary = tokenizer.vocab_size() as usize;
    let meant = ModelRef::parse(&plan.student, Kind::Student).or_else(|e| {
        // A teacher's name is a shape, too: `--student gpt2` trains GPT-2 124M.
        ModelRef::parse(&plan.student, Kind::Teacher).map_err(|_| e)
    })?;
    check_birth(plan, if let ModelRef::Preset(preset) = meant { Some(preset) } else { None })?;
    let ModelRef::Preset(preset) = meant else {
        return match plan.birth {
            None | Some(BirthWord::Checkpoint) => load(&plan.student, Kind::Student, tokenizer, around, device),
            Some(other) => Err(Error::usage(format!(
                "birth = \"{other}\" needs a student preset, found the stored model {}; its birth is \"checkpoint\"",
                plan.student
            ))),
        };
    };
    match (plan.birth, &preset.birth, &preset.source) {
        (Some(BirthWord::Scratch), ..) | (None, Some(Birth::Scratch {}), _) => {
            scratch(plan, preset, teacher, vocabulary, device).map(born)
        }
        (Some(BirthWord::TeacherLayers), ..) | (None, Some(Birth::TeacherLayers { .. }), _) => {
            let default = match &preset.birth {
                Some(Birth::TeacherLayers { layers }) => Some(layers.clone()),
                _ => None,
            };
            let Some(layers) = plan.layers.clone().or(default) else {
                return Err(Error::usage(
                    "birth = \"teacher-layers\" needs layers = [..]: which of the teacher's blocks",
                ));
            };
            let Some(teacher) = teacher else {
                return Err(Error::usage("birth = \"teacher-layers\" needs a teacher"));
            };
            Gpt2::from_layers(teacher, &layers).map(born)
        }
        (None, Some(Birth::Checkpoint { path }), _) => load(path, Kind::Any, tokenizer, around, device),
        (Some(BirthWord::Checkpoint), _, Some(Source::Hub { .. })) => {
            load(&plan.student, Kind::Teacher, tokenizer, around, device)
        }
        (Some(BirthWord::Checkpoint), ..) => Err(Error::usage(format!(
            "birth = \"checkpoint\" needs a student with weights, and the preset {} has none; name a folder or Hub id",
            plan.student
        ))),
        (None, None, _) => scratch(plan, preset, teacher, vocabulary, device).map(born),
    }
}

/// Errs where the plan says `[shape]` or `layers` and the student's birth reads none: nothing that is asked for is
/// ignored. `preset` is the student's; a stored model has none.
pub fn check_birth(plan: &Plan, preset: Option<&Preset>) -> Result<()> {
    let birth = plan.birth.unwrap_or(match preset.map(|p| &p.birth) {
        Some(None | Some(Birth::Scratch {})) => BirthWord::Scratch,
        Some(Some(Birth::TeacherLayers { .. })) => BirthWord::TeacherLayers,
        None | Some(Some(Birth::Checkpoint { .. })) => BirthWord::Checkpoint,
    });
    let whose = match birth {
        BirthWord::Scratch => "",
        BirthWord::TeacherLayers => "has its teacher's shape (birth = \"teacher-layers\"; layers = [..] says how deep)",
        BirthWord::Checkpoint => "starts from stored weights and has their shape",
    };
    if birth != BirthWord::Scratch && !plan.shape.is_empty() {
        return Err(Error::usage(format!(
            "[shape] cannot change the student {}, which {whose}; remove it, or set birth = \"scratch\"",
            plan.student
        )));
    }
    if birth != BirthWord::TeacherLayers && plan.layers.is_some() {
        return Err(Error::usage(format!(
            "layers names the teacher's layers to start from, but the student {} has birth = \"{birth}\"; remove \
             layers, or set birth = \"teacher-layers\"",
            plan.student
        )));
    }
    Ok(())
}

fn scratch(plan: &Plan, preset: &Preset, teacher: Option<&Gpt2>, vocabulary: usize, device: &Device) -> Result<Gpt2> {
    Gpt2::scratch(scratch_shape(plan, preset, teacher.map(|t| &t.config), Some(vocabulary)), plan.seed, device)
}

/// Shape of a student from scratch: the preset's under the plan's overrides, with the teacher's vocabulary, or else the
/// data's, or else the preset's own.
pub fn scratch_shape(
    plan: &Plan,
    preset: &Preset,
    teacher: Option<&Gpt2Config>,
    vocabulary: Option<usize>,
) -> Gpt2Config {
    let base = preset.config();
    let vocab_size = teacher.map(|t| t.vocab_size).or(vocabulary).unwrap_or(base.vocab_size);
    Gpt2Config { vocab_size, ..base }.overridden(&plan.shape)
}
