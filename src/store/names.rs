//! What MODEL and TOKENIZER arguments mean, and the folders that they stand for.
//!
//! In this order, the first that fits:
//!
//! 1. **An existing path.** A Hugging Face folder or a checkpoint (it has `config.json`); a run
//!    folder (its `model/`, or else its newest `checkpoints/step-N`); a `checkpoints/` folder (the
//!    newest of it); `RUN/last` and `RUN/best`, its newest checkpoint and the one of the lowest
//!    validation loss. What has a manifest of ours is verified by it. A GGUF file, or a folder without other weights that holds one; its
//!    tokenizer lies beside it.
//! 2. **A preset**: a name from `teachers/` or `students/`.
//! 3. **A Hub id**: `org/name`.
//!
//! A preset of the Hub and a Hub id may go on with `@REVISION`: a branch, a tag or a commit.
//!
//! A path that exists always wins, so that what is on disk cannot be shadowed by a name: a folder
//! `gpt2` in the working directory hides the preset, and `openai-community/gpt2` still names the
//! Hub's. Text that looks like a path (it starts with `.`, `/` or `~`, or has more than one slash)
//! is never taken for a Hub id, nor is `a/b` where a folder `a` is here; `a/b@main` always is one.

use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::files::children;
use crate::files::near::{self, shortlist};
use crate::model::{Gpt2, Gpt2Config};
use crate::progress::Progress;
use crate::report::text::amount;
use crate::store::checkpoint;
use crate::store::gguf::{self, GgufModel};
use crate::store::hub::names::valid_repo_id;
use crate::store::hub::{HubOptions, What, fetch_model, holds_tokenizer, lacking_tokenizer};
use crate::store::identity::Identity;
use crate::store::preset::{self, Preset, Provider, Role};
use crate::store::verified::Chosen;
use crate::store::weights::{
    INDEX_FILE, SpecialIds, WEIGHTS_FILE, check_model, load_model, read_config, unused_tensors,
};
use candle_core::Device;
use std::path::{Path, PathBuf};

/// Which presets a name may mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Teacher,
    /// Students first, then teachers, whose name is a shape, too: `--student gpt2` trains GPT-2
    /// 124M.
    Student,
    /// Teachers first, then students.
    Any,
}

/// Where models are looked for.
#[derive(Clone, Copy)]
pub struct Where<'a> {
    /// Hub access.
    pub hub: &'a HubOptions,
    /// Receives progress of long phases.
    pub progress: &'a dyn Progress,
}

impl Kind {
    fn role(self) -> Option<Role> {
        match self {
            Kind::Teacher => Some(Role::Teacher),
            Kind::Student => Some(Role::Student),
            Kind::Any => None,
        }
    }
}

/// What a MODEL argument means; found without the network.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelRef {
    /// A folder in Hugging Face layout, how it was found, and why it is this one.
    Folder { dir: PathBuf, origin: String, chosen: Chosen },
    /// A GGUF file.
    Gguf(PathBuf),
    /// A preset: a teacher of the Hub, a teacher that is generated here, or a student, which is a
    /// shape.
    Preset(&'static Preset),
    /// A repository of the Hub, and the branch, tag or commit that was named with it.
    Hub { id: String, revision: Option<String> },
}

impl ModelRef {
    /// Decides by the rules of this module.
    pub fn parse(text: &str, kind: Kind) -> Result<Self> {
        let path = Path::new(text);
        if let Some(found) = derived(path)? {
            return Ok(found);
        }
        if path.exists() {
            return on_disk(path);
        }
        Self::named(text, kind)
    }

    /// What lies on disk; None of presets and what is on the Hub.
    pub(crate) fn local(self) -> Option<ModelFolder> {
        match self {
            Self::Folder { dir, origin, .. } => {
                Some(ModelFolder { dir, origin, commit: None, gguf: None })
            }
            Self::Gguf(file) => {
                let dir = folder_of(&file);
                let origin = format!("file {}", file.display());
                Some(ModelFolder { dir, origin, commit: None, gguf: Some(file) })
            }
            Self::Preset(_) | Self::Hub { .. } => None,
        }
    }

    /// The same without the first rule: a preset or a Hub id, whatever lies on disk.
    pub fn named(text: &str, kind: Kind) -> Result<Self> {
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision.to_string())),
            None => (text, None),
        };
        let by_name = match kind {
            Kind::Teacher => preset::teacher(name),
            Kind::Student => preset::for_student(name),
            Kind::Any => preset::teacher(name).or_else(|| preset::student(name)),
        };
        match (by_name, by_name.and_then(|preset| preset.source.as_ref())) {
            (Some(preset), _) if revision.is_none() => Ok(Self::Preset(preset)),
            (Some(_), Some(Provider::Hub { repo, .. })) => {
                Ok(Self::Hub { id: repo.clone(), revision })
            }
            (Some(_), _) => Err(Error::usage(format!(
                "{text}: the preset {name} is not on the Hub and has no revisions; write {name}"
            ))),
            (None, _) if revision.is_none() && near::is_of_this_machine(name) => {
                let hub = match valid_repo_id(name) && !looks_like_path(name) {
                    true => format!(" (if the Hub's is meant, write {name}@main)"),
                    false => String::new(),
                };
                let missing = near::no_such_path(text);
                Err(Error::new(missing.kind(), format!("{missing}{hub}")))
            }
            (None, _) if !looks_like_path(name) && name.contains('/') && valid_repo_id(name) => {
                Ok(Self::Hub { id: name.to_string(), revision })
            }
            _ => Err(neither(text, kind)),
        }
    }

    /// The same model at the commit that a run recorded of it ([`ModelFolder::revision`]), unless
    /// a revision was named.
    pub(crate) fn at_recorded(self, revision: Option<&str>) -> Self {
        let Some((id, commit)) = revision.and_then(|r| r.split_once('@')) else { return self };
        let same = match &self {
            Self::Hub { id: named, revision: None } => named == id,
            Self::Preset(preset) => {
                matches!(&preset.source, Some(Provider::Hub { repo, .. }) if repo == id)
            }
            _ => false,
        };
        if same { Self::Hub { id: id.into(), revision: Some(commit.into()) } } else { self }
    }
}

/// A folder in Hugging Face layout that holds a model, or a GGUF file with a tokenizer beside it, and
/// how it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    /// The folder.
    pub dir: PathBuf,
    /// Where it comes from, for people and manifests: "folder X", "Hub org/name", ...
    pub origin: String,
    /// The Hub's commit, if it comes from there.
    pub commit: Option<String>,
    /// The file that holds the model in place of what the folder would.
    pub gguf: Option<PathBuf>,
}

/// How the origin of a model of the Hub begins.
const HUB: &str = "Hub ";

impl ModelFolder {
    /// `org/name@commit`: what a run's manifest records of a model of the Hub.
    pub fn revision(&self) -> Option<String> {
        let (commit, id) = (self.commit.as_ref()?, self.origin.strip_prefix(HUB)?);
        Some(format!("{id}@{commit}"))
    }

    /// Whether a tokenizer lies there, too.
    pub fn has_tokenizer(&self) -> bool {
        has_tokenizer(&self.dir)
    }

    /// That tokenizer.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        self.has_tokenizer().then(|| Tokenizer::load(&self.dir)).transpose()
    }

    /// The shape that `config.json` states, or the metadata of a GGUF file.
    pub fn config(&self) -> Result<Gpt2Config> {
        match &self.gguf {
            Some(file) => GgufModel::open(file)?.config(),
            None => read_config(&self.dir.join("config.json")),
        }
    }

    /// The same, with names and shapes of the stored tensors checked against it; none of their
    /// values is read.
    pub fn checked_config(&self) -> Result<Gpt2Config> {
        match &self.gguf {
            Some(_) => self.config(),
            None => check_model(&self.dir),
        }
    }

    /// Ids of special tokens that the folder's files state, else the GGUF file.
    pub(crate) fn special_ids(&self) -> Result<SpecialIds> {
        let stated = SpecialIds::read(&self.dir)?;
        match &self.gguf {
            Some(file) if stated.eos.is_empty() => Ok(GgufModel::open(file)?.special_ids()),
            _ => Ok(stated),
        }
    }

    /// What it is known by; reads the weights.
    pub fn identity(&self) -> Result<Identity> {
        Identity::of(self)
    }

    /// Where the weights are: the file, or else the folder.
    pub(crate) fn weights(&self) -> &Path {
        self.gguf.as_deref().unwrap_or(&self.dir)
    }

    /// The model with its weights on `device`; those of a GGUF file are dequantised.
    pub fn load(&self, device: &Device) -> Result<Gpt2> {
        if let Some(file) = &self.gguf {
            return GgufModel::open(file)?.load(device);
        }
        let (config, params) = load_model(&self.dir, device)?;
        Ok(Gpt2::new(config, params))
    }
}

/// The folder that `name` means, with its weights, downloaded if need be. Presets without weights
/// of their own (the generated teacher, students from scratch) are an error.
pub fn find(name: &str, kind: Kind, at: Where<'_>) -> Result<ModelFolder> {
    locate(ModelRef::parse(name, kind)?, name, None, What::Model, at)
}

/// The folder of what `name` was found to mean, with the files of `what` at least; a `revision` is
/// for models of the Hub.
pub(crate) fn locate(
    meant: ModelRef,
    name: &str,
    revision: Option<&str>,
    what: What,
    at: Where<'_>,
) -> Result<ModelFolder> {
    let folder = place(meant, name, revision, what, at)?;
    // What cannot be read yet is the loader's to say.
    if what == What::Model
        && folder.gguf.is_none()
        && let Ok(unused) = unused_tensors(&folder.dir)
        && let [first, more @ ..] = unused.as_slice()
    {
        let more =
            if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        at.progress.note(&format!(
            "{}: tensors of another task's head are not used: {first}{more}",
            folder.dir.display()
        ));
    }
    Ok(folder)
}

fn place(
    meant: ModelRef,
    name: &str,
    revision: Option<&str>,
    what: What,
    at: Where<'_>,
) -> Result<ModelFolder> {
    let hub = |id: &str, revision: Option<&str>| {
        let fetched = fetch_model(id, revision, what, at.hub, at.progress)?;
        Ok(ModelFolder {
            dir: fetched.dir,
            origin: format!("{HUB}{id}"),
            commit: Some(fetched.commit),
            gguf: None,
        })
    };
    let unfinished = matches!(meant, ModelRef::Folder { chosen: Chosen::NewestOfRun, .. });
    match meant.verified(name, what, at.progress)? {
        ModelRef::Folder { .. } | ModelRef::Gguf(_) if revision.is_some() => {
            Err(Error::usage(format!(
                "{name} is on this machine; revision {} is for models of the Hub",
                revision.unwrap_or_default()
            )))
        }
        ModelRef::Folder { dir, origin, .. } => {
            if unfinished {
                at.progress.note(&format!(
                    "warning: {name} is a run that has not finished; its newest checkpoint is used: {}",
                    dir.display()
                ));
            }
            Ok(ModelFolder { dir, origin, commit: None, gguf: None })
        }
        ModelRef::Gguf(file) => {
            let dir = folder_of(&file);
            if !has_tokenizer(&dir) {
                return Err(Error::data(format!(
                    "{}: expected the model's tokenizer beside it, found none; put its tokenizer.json (and \
                     tokenizer_config.json) into the file's folder. The one inside a GGUF file is not read",
                    file.display()
                )));
            }
            let origin = format!("file {}", file.display());
            Ok(ModelFolder { dir, origin, commit: None, gguf: Some(file) })
        }
        // A mistyped path looks like a Hub id: say how it was read.
        ModelRef::Hub { id, revision: own } => {
            let revision = one_revision(name, own.as_deref(), revision)?;
            hub(&id, revision).map_err(|e: Error| {
                e.context(format!("{id} (no folder here, so taken for a Hub id)"))
            })
        }
        ModelRef::Preset(preset) => match &preset.source {
            Some(Provider::Hub { repo, revision: r }) => hub(repo, revision.or(Some(r))),
            Some(Provider::Generated {}) => Err(Error::usage(format!(
                "the preset {name} has no weights to fetch: `eslm-kd distill` without arguments pretrains it, and it is \
                 found by this name afterwards; run that first, or name a run folder, a model folder or a Hub id"
            ))),
            None => Err(Error::usage(format!(
                "the preset {name} is a student's shape without weights; name a run folder, a checkpoint, a model \
                 folder or a teacher ({})",
                preset::names(Some(Role::Teacher)).join(", ")
            ))),
        },
    }
}

/// Resolves TOKENIZER to a folder that holds a tokenizer's files: a folder of those files, anything
/// that [`find`] takes (only the tokenizer is fetched), or the path of a `tokenizer.json`.
pub fn resolve_tokenizer(
    text: &str,
    revision: Option<&str>,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let path = Path::new(text);
    if path.is_file() && path.file_name().is_some_and(|n| n == "tokenizer.json") {
        return Ok(folder_of(path));
    }
    if path.is_file() && !gguf::is_gguf(path) {
        return Err(Error::usage(format!(
            "{text} is a file; name the tokenizer's folder, or its tokenizer.json"
        )));
    }
    if path.exists() {
        // A folder that is no model may still hold a tokenizer.
        let found = if has_tokenizer(path) { None } else { on_disk(path).ok() };
        let found = found.and_then(ModelRef::local);
        let dir = found.map_or_else(|| path.to_path_buf(), |folder| folder.dir);
        return match has_tokenizer(&dir) {
            true => checkpoint::verify_model(&dir, false).map(|()| dir),
            false => Err(lacking_tokenizer(&dir).unwrap_or_else(|| {
                Error::data(format!(
                    "{}: expected a tokenizer (tokenizer.json, or vocab.json and merges.txt), found none",
                    dir.display()
                ))
            })),
        };
    }
    let meant = ModelRef::parse(text, Kind::Any).map_err(|e| {
        let near = near::did_you_mean(path, has_tokenizer);
        let said = e.to_string().to_lowercase().contains("did you mean ");
        if said { e } else { e.followed_by(&near) }
    })?;
    let (id, revision) = match meant {
        ModelRef::Folder { dir, .. } => return Ok(dir),
        ModelRef::Gguf(file) => return Ok(folder_of(&file)),
        ModelRef::Hub { id, revision: own } => {
            (id, one_revision(text, own.as_deref(), revision)?.map(str::to_string))
        }
        ModelRef::Preset(preset) => match &preset.source {
            Some(Provider::Hub { repo, revision: r }) => {
                (repo.clone(), Some(revision.unwrap_or(r).to_string()))
            }
            _ => {
                return Err(Error::usage(format!(
                    "the preset {text} has no tokenizer of its own; use gpt2, or train one with \
                     `eslm-kd tokenizer train`"
                )));
            }
        },
    };
    let fetched = fetch_model(&id, revision.as_deref(), What::TokenizerOnly, options, progress);
    Ok(fetched.map_err(|e| e.context(format!("{id} (no folder here, so taken for a Hub id)")))?.dir)
}

/// The revision of NAME@REVISION, or that of `--revision`.
fn one_revision<'a>(
    name: &str,
    own: Option<&'a str>,
    flag: Option<&'a str>,
) -> Result<Option<&'a str>> {
    match (own, flag) {
        (Some(own), Some(flag)) if own != flag => {
            Err(Error::usage(format!("{name} names a revision, and --revision {flag} another")))
        }
        (own, flag) => Ok(own.or(flag)),
    }
}

/// The folder that a file lies in.
fn folder_of(file: &Path) -> PathBuf {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_path_buf()
}

/// Whether a folder holds a tokenizer's files.
pub fn has_tokenizer(dir: &Path) -> bool {
    holds_tokenizer(|name| dir.join(name).exists())
}

/// `RUN/best` and `RUN/last`: a checkpoint of a run by what its state says, verified before it is
/// used. Nothing of that name lies on disk, so nothing can point at the wrong one.
fn derived(path: &Path) -> Result<Option<ModelRef>> {
    let (Some(name), Some(run)) = (path.file_name().and_then(|n| n.to_str()), path.parent()) else {
        return Ok(None);
    };
    if path.exists() || !run.is_dir() || !matches!(name, "best" | "last") {
        return Ok(None);
    }
    let found = if name == "best" { checkpoint::best(run)? } else { checkpoint::latest(run)? };
    let Some(dir) = found else {
        let what = if name == "best" { "validated checkpoint" } else { "checkpoint" };
        return Err(Error::data(format!("{}: the run has no {what}", run.display())));
    };
    let step = checkpoint::verify(&dir)?.step;
    let origin = format!("{name} checkpoint (step {step}) of {}", run.display());
    Ok(Some(ModelRef::Folder { dir, origin, chosen: Chosen::Verified }))
}

/// How the origin of a checkpoint is said.
pub(super) fn checkpoint_of(step: u64, name: &str) -> String {
    format!("checkpoint at step {step} of {name}")
}

/// What an existing path stands for.
fn on_disk(path: &Path) -> Result<ModelRef> {
    let shown = path.display();
    if gguf::is_gguf(path) {
        return Ok(ModelRef::Gguf(path.to_path_buf()));
    }
    if path.is_file() {
        return Err(Error::data(format!(
            "{shown} is a file; name the model's folder, which holds config.json, or a .gguf file"
        )));
    }
    let folder = |dir, origin, chosen| Ok(ModelRef::Folder { dir, origin, chosen });
    let ggufs = gguf::all_in(path);
    let whole = |dir: &Path| dir.join("config.json").exists();
    if whole(path) {
        // A config.json may have come with the tokenizer of a GGUF file.
        let has_weights = [WEIGHTS_FILE, INDEX_FILE].iter().any(|file| path.join(file).exists());
        return match ggufs.as_slice() {
            [file] if !has_weights => Ok(ModelRef::Gguf(file.clone())),
            _ => folder(path.to_path_buf(), format!("folder {shown}"), Chosen::Itself),
        };
    }
    let model = path.join("model");
    if whole(&model) {
        return folder(model, format!("final model of run {shown}"), Chosen::Itself);
    }
    for (checkpoints, chosen) in [
        (checkpoint::list(path)?, Chosen::NewestOfRun),
        (checkpoint::list_in(path)?, Chosen::Newest),
    ] {
        if let Some((step, dir)) = checkpoints.into_iter().rev().find(|(_, dir)| whole(dir)) {
            return folder(dir, checkpoint_of(step, &shown.to_string()), chosen);
        }
    }
    let has = |name: &str| path.join(name).is_file();
    if has("config.toml") && (has("metrics.jsonl") || path.join("checkpoints").is_dir()) {
        return Err(Error::data(format!(
            "{shown} is a run that has saved nothing yet; its model is there from its first checkpoint on: every \
             checkpoint.every steps, or after kill -USR1 of its process"
        )));
    }
    if has("train.bin") {
        return Err(Error::data(format!(
            "{shown} is a data folder, made by `eslm-kd prepare`, and no model; name the folder of a run or a model"
        )));
    }
    if has(ADAPTER) {
        let base = adapted(&path.join(ADAPTER)).map(|base| format!(" of {base}"));
        return Err(Error::data(format!(
            "{shown} holds an adapter{} and no model ({ADAPTER}); merge it into its base with Python (peft's \
             merge_and_unload) and name the merged folder",
            base.unwrap_or_default()
        )));
    }
    match ggufs.as_slice() {
        [] => {}
        [file] => return Ok(ModelRef::Gguf(file.clone())),
        _ => {
            return Err(Error::data(format!(
                "{shown} holds {}; name one: {}",
                amount(ggufs.len() as u64, "GGUF files"),
                shortlist(&ggufs)
            )));
        }
    }
    if has_tokenizer(path) {
        return Err(Error::data(format!(
            "{shown} holds a tokenizer and no model; name the folder of a run or a model"
        )));
    }
    // A quickstart or a folder of runs; a comparison keeps them in folders of their arms.
    let arms = if has("compare.json") { children(&path.join("runs"))? } else { Vec::new() };
    let seeds = arms.iter().flat_map(|arm| children(arm).unwrap_or_default());
    let below: Vec<PathBuf> =
        children(path)?.into_iter().chain(seeds).filter(|p| holds_a_model(p)).collect();
    if !below.is_empty() {
        return Err(Error::data(format!(
            "{shown} holds {}, and is none itself; name one: {}",
            amount(below.len() as u64, "models"),
            shortlist(&below)
        )));
    }
    Err(Error::data(format!(
        "{shown} exists but is no model: expected a folder with config.json, or a run folder with model/ or \
         checkpoints/step-N/. If a preset or a Hub id is meant, write org/name or call from another folder"
    )))
}

/// Whether [`on_disk`] finds one there.
fn holds_a_model(path: &Path) -> bool {
    path.is_dir() && on_disk(path).is_ok()
}

/// The config of a LoRA adapter or its like.
const ADAPTER: &str = "adapter_config.json";

/// The base of an adapter, as far as its config says.
fn adapted(path: &Path) -> Option<String> {
    let parsed = crate::json::parse(&std::fs::read(path).ok()?).ok()?;
    parsed["base_model_name_or_path"].as_str().map(str::to_string)
}

fn looks_like_path(text: &str) -> bool {
    text.starts_with(['.', '/', '~', '\\']) || text.matches('/').count() > 1 || text.ends_with('/')
}

fn neither(text: &str, kind: Kind) -> Error {
    if looks_like_path(text) {
        return near::no_such_path(text);
    }
    let folder = near::similar(Path::new(text), holds_a_model);
    let near: Vec<String> = (preset::nearest(text, kind.role()).map(str::to_string).into_iter())
        .chain(folder.map(|folder| folder.display().to_string()))
        .collect();
    let near = match near.is_empty() {
        true => String::new(),
        false => format!(" Did you mean {}?", near.join(" or ")),
    };
    Error::data(format!(
        "{text:?} is neither an existing folder, nor a preset, nor a Hub id (org/name).{near} Presets: {}",
        preset::names(kind.role()).join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use std::fs;

    fn model(dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("config.json"), "{}").unwrap();
    }

    fn found(path: &Path) -> PathBuf {
        match ModelRef::parse(path.to_str().unwrap(), Kind::Any).unwrap() {
            ModelRef::Folder { dir, .. } => dir,
            other => panic!("{other:?}"),
        }
    }

    fn refused(text: &str, kind: Kind) -> String {
        ModelRef::parse(text, kind).unwrap_err().to_string()
    }

    #[test]
    fn a_run_means_its_model_or_its_newest_checkpoint() {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("run");
        for step in ["step-00000900", "step-00001000", "step-00000100"] {
            model(&run.join("checkpoints").join(step));
        }
        // Neither a temporary folder nor an empty one is a checkpoint.
        model(&run.join("checkpoints/.step-00002000.1-0.tmp"));
        fs::create_dir_all(run.join("checkpoints/step-00003000")).unwrap();
        assert_eq!(found(&run), run.join("checkpoints/step-00001000"));
        assert_eq!(found(&run.join("checkpoints")), run.join("checkpoints/step-00001000"));
        assert_eq!(
            found(&run.join("checkpoints/step-00000100")),
            run.join("checkpoints/step-00000100")
        );
        model(&run.join("model"));
        assert_eq!(found(&run), run.join("model"));
        let empty = root.path().join("empty");
        fs::create_dir(&empty).unwrap();
        assert!(refused(empty.to_str().unwrap(), Kind::Any).contains("is no model"));
        // A folder of several names them, a comparison, too.
        model(&empty.join("runs/arm/seed-1/model"));
        assert!(refused(empty.to_str().unwrap(), Kind::Any).contains("is no model"));
        fs::write(empty.join("compare.json"), "{}").unwrap();
        let said = refused(empty.to_str().unwrap(), Kind::Any);
        assert!(said.contains("holds 1 model") && said.ends_with("runs/arm/seed-1"), "{said}");
        let file = run.join("model/config.json");
        assert!(refused(file.to_str().unwrap(), Kind::Any).contains("is a file"));
    }

    #[test]
    fn names_are_presets_and_org_name_is_the_hub() {
        assert!(
            matches!(ModelRef::parse("gpt2", Kind::Teacher), Ok(ModelRef::Preset(p)) if p.name == "gpt2")
        );
        assert!(
            matches!(ModelRef::parse("tiny", Kind::Student), Ok(ModelRef::Preset(p)) if p.role == Role::Student)
        );
        assert!(
            matches!(ModelRef::parse("gpt2", Kind::Student), Ok(ModelRef::Preset(p)) if p.role == Role::Teacher)
        );
        assert!(
            matches!(ModelRef::parse("me/x", Kind::Any), Ok(ModelRef::Hub { id, revision: None }) if id == "me/x")
        );
        let pinned = |text: &str| match ModelRef::parse(text, Kind::Teacher) {
            Ok(ModelRef::Hub { id, revision: Some(revision) }) => (id, revision),
            other => panic!("{other:?}"),
        };
        for (text, id, revision) in [
            ("me/x@v1", "me/x", "v1"),
            ("me/x@refs/pr/3", "me/x", "refs/pr/3"),
            ("gpt2@main", "openai-community/gpt2", "main"),
        ] {
            assert_eq!(pinned(text), (id.to_string(), revision.to_string()));
        }
        assert!(refused("tiny@v1", Kind::Student).contains("no revisions"));
        // What a run recorded of a model is what it gets again, unless it is asked for another.
        let again = |text: &str| {
            let meant = ModelRef::parse(text, Kind::Any).unwrap();
            match meant.at_recorded(Some("openai-community/gpt2@c1")) {
                ModelRef::Hub { revision: Some(revision), .. } => revision,
                other => format!("{other:?}"),
            }
        };
        assert_eq!(again("gpt2"), "c1");
        assert_eq!(again("openai-community/gpt2"), "c1");
        assert_eq!(again("gpt2@c2"), "c2");
        assert!(again("me/x").contains("None") && again("gpt2-medium").contains("Preset"));
        let message = refused("gpt2-meduim", Kind::Teacher);
        assert!(
            message.contains("Did you mean gpt2-medium?") && message.contains("distilgpt2"),
            "{message}"
        );
        assert!(refused("gpt2-30m", Kind::Teacher).contains("neither"));
        for path in ["./me/x", "/me/x", "~/x", "a/b/c", "me/"] {
            assert!(refused(path, Kind::Any).contains("there is no"), "{path}");
        }
        // Tests run in the package's folder, where `src` is a path, and no model.
        assert!(refused("src", Kind::Any).contains("src exists but is no model"));
        assert!(ModelRef::named("src", Kind::Any).unwrap_err().to_string().contains("neither"));
        assert!(refused("../nowhere", Kind::Any).contains("there is no"));
        // A name whose parent folder is here is a path, unless it names a revision.
        let missing = ModelRef::parse("src/storr", Kind::Any).unwrap_err();
        let said = "there is no src/storr; did you mean src/store? (if the Hub's is meant, write src/storr@main)";
        assert_eq!((missing.exit_code(), missing.to_string().as_str()), (3, said));
        assert!(matches!(ModelRef::parse("src/storr@main", Kind::Any), Ok(ModelRef::Hub { .. })));
        assert!(refused("runs/first", Kind::Student).contains("there is no runs/first"));
    }

    #[test]
    fn presets_without_weights_say_what_to_do() {
        let options = HubOptions {
            offline: true,
            ..HubOptions::new("http://127.0.0.1:9", Path::new("/nonexistent"))
        };
        let at = Where { hub: &options, progress: &Silent };
        let model = |text| find(text, Kind::Any, at).unwrap_err().to_string();
        assert!(model("quickstart").contains("eslm-kd distill"));
        assert!(model("tiny").contains("without weights"));
        assert!(model("gpt2").contains("`eslm-kd download openai-community/gpt2`"));
        let tokenizer = resolve_tokenizer("tiny", None, &options, &Silent).unwrap_err().to_string();
        assert!(tokenizer.contains("tokenizer train"));
    }

    #[test]
    fn a_tokenizer_is_a_folder_of_its_files_or_a_models_folder() {
        let root = tempfile::tempdir().unwrap();
        let options =
            HubOptions { offline: true, ..HubOptions::new("http://127.0.0.1:9", root.path()) };
        let resolve = |p: &Path| resolve_tokenizer(p.to_str().unwrap(), None, &options, &Silent);
        let plain = root.path().join("tok");
        fs::create_dir(&plain).unwrap();
        fs::write(plain.join("vocab.json"), "{}").unwrap();
        assert!(resolve(&plain).is_err());
        fs::write(plain.join("merges.txt"), "").unwrap();
        assert_eq!(resolve(&plain).unwrap(), plain);
        let run = root.path().join("run");
        model(&run.join("model"));
        assert!(resolve(&run).unwrap_err().to_string().contains("found none"));
        fs::write(run.join("model/tokenizer.json"), "{}").unwrap();
        assert_eq!(resolve(&run).unwrap(), run.join("model"));
        assert_eq!(resolve(&run.join("model/tokenizer.json")).unwrap(), run.join("model"));
    }
}
