//! A model as a Hugging Face folder of its own, or as a GGUF file.

use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::files::{Contents, OutDir, check_file, write_atomic};
use crate::model::{Gpt2, Gpt2Config, Layout, ParamSet};
use crate::progress::Progress;
use crate::store::gguf::{self, GgufType};
use crate::store::hub::What;
use crate::store::names::{Kind, ModelFolder, ModelRef};
use crate::store::weights::{
    SaveOptions, SpecialIds, TOKENIZER_FILES, WEIGHTS_FILE, load_model, save_model, state_length,
};
use candle_core::{Device, Tensor};
use serde::Serialize;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// Marks a folder as written by `export`, so that a later one may replace it.
const MARK_FILE: &str = "export.json";
const FORMAT: &str = "eslm-kd export";
/// Beside the mark and the tokenizer, what an export consists of.
const MODEL_FILES: [&str; 3] = ["config.json", "generation_config.json", WEIGHTS_FILE];

/// What an export is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// A Hugging Face folder, in f32.
    #[default]
    HuggingFace,
    /// One GGUF file with matrices of this type.
    Gguf(GgufType),
}

/// How many rows the embedding has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Vocab {
    /// All that the model has.
    #[default]
    Model,
    /// One for each of the tokenizer's tokens, none for padding.
    Exact,
}

/// How to export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExportOptions {
    /// What is written.
    pub format: Format,
    /// How many rows the embedding has in it.
    pub vocab: Vocab,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// The folder or file written.
    pub out: PathBuf,
    /// What it was made of.
    pub origin: String,
    /// Number of parameters, the tied head counted once.
    pub parameters: usize,
    /// Whether a tokenizer lies beside the model, or in the file.
    pub tokenizer: bool,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Writes the model of a run (its final model, or else its newest checkpoint), a checkpoint or a
/// model folder as a Hugging Face folder or a GGUF file, and checks that what was written is read
/// back with the same bits. It appears whole or not at all; an earlier export at `out` is replaced,
/// anything else is refused.
pub fn export(
    source: &Path,
    out: &Path,
    options: &ExportOptions,
    progress: &dyn Progress,
) -> Result<ExportReport> {
    let name = source.to_string_lossy();
    let meant = ModelRef::parse(&name, Kind::Any)?.verified(&name, What::Model, progress)?;
    let Some(from) = meant.local() else {
        return Err(Error::data(format!(
            "there is no folder {}; export takes a run folder, a checkpoint, a model folder or a GGUF file (`eslm-kd download` \
             makes one of a model of the Hub)",
            source.display()
        )));
    };
    let names = folder_names();
    let folder = match options.format {
        Format::HuggingFace => Some(OutDir::create(out, contents(&names))?),
        Format::Gguf(_) => check_replaceable_file(out).map(|()| None)?,
    };
    let mut model = from.load(&Device::Cpu)?;
    if options.vocab == Vocab::Exact {
        model = cut_vocab(model, &from)?;
    }
    let bytes = match (folder, options.format) {
        (Some(folder), _) => write_folder(&from, &model, folder, progress)?,
        (None, Format::Gguf(of)) => write_gguf(&from, &model, of, out, progress)?,
        (None, Format::HuggingFace) => return Err(Error::internal("no folder was claimed")),
    };
    Ok(ExportReport {
        out: out.to_path_buf(),
        parameters: model.config.parameters(),
        tokenizer: from.has_tokenizer(),
        origin: from.origin,
        bytes,
    })
}

/// Writes and checks a Hugging Face folder; its bytes.
fn write_folder(
    from: &ModelFolder,
    model: &Gpt2,
    folder: OutDir,
    progress: &dyn Progress,
) -> Result<u64> {
    let Gpt2 { config, params, .. } = model;
    if !from.has_tokenizer() {
        progress.note(&format!(
            "{}: no tokenizer beside the model, so none is exported",
            from.dir.display()
        ));
    }
    let options = SaveOptions {
        ids: from.special_ids()?,
        tokenizer: from.has_tokenizer().then_some(from.dir.as_path()),
    };
    save_model(folder.path(), config, params, &options)?;
    // Written anew, so that every reader takes it alike; what we cannot read is kept as it is.
    match from.tokenizer() {
        Ok(Some(tokenizer)) => {
            tokenizer.save(folder.path())?;
            state_length(folder.path(), config.n_positions)?;
        }
        Ok(None) => {}
        Err(e) => progress.note(&format!("warning: the tokenizer is copied as it is: {e}")),
    }
    let mark = folder.path().join(MARK_FILE);
    write_atomic(&mark, |w| {
        let text = json!({"format": FORMAT, "version": 1, "parameters": config.parameters()});
        writeln!(w, "{text:#}").map_err(|e| Error::io("write", &mark, e))
    })?;
    let (again, stored) = load_model(folder.path(), &Device::Cpu)?;
    if again != *config || !same_bits(&stored, params)? {
        return Err(Error::internal(format!(
            "{}: what was written differs from the model",
            folder.path().display()
        )));
    }
    let bytes = folder_bytes(folder.path())?;
    folder.commit()?;
    Ok(bytes)
}

/// Writes and checks a GGUF file; its bytes.
fn write_gguf(
    from: &ModelFolder,
    model: &Gpt2,
    of: GgufType,
    out: &Path,
    progress: &dyn Progress,
) -> Result<u64> {
    let rows = model.config.vocab_size;
    let Some(tokenizer) = from.tokenizer()? else {
        return Err(Error::usage(format!(
            "{}: no tokenizer beside the model; a GGUF file holds one, and llama.cpp ends where it is missing. Put \
             tokenizer.json beside the model, or write a Hugging Face folder (--format hf)",
            from.dir.display()
        )));
    };
    let padding = rows - tokens_within(&tokenizer, &model.config, from)?;
    if padding > 0 {
        progress.note(&format!(
            "{}: {padding} of {rows} rows of the embedding have no token; the file names them [PADn], and \
             `--vocab exact` leaves them out",
            from.dir.display()
        ));
    }
    let contents = gguf::Contents {
        config: &model.config,
        params: &model.params,
        tokenizer: &tokenizer,
        ids: from.special_ids()?,
        of,
    };
    let written = gguf::write(out, &contents).map_err(|e| e.context(from.dir.display()))?;
    for note in &written.notes {
        progress.note(&format!("{}: {note}", out.display()));
    }
    Ok(written.bytes)
}

/// How many tokens the tokenizer has; the model has a row for each.
fn tokens_within(tokenizer: &Tokenizer, config: &Gpt2Config, from: &ModelFolder) -> Result<usize> {
    let (tokens, rows) = (tokenizer.vocab_size() as usize, config.vocab_size);
    if tokens > rows {
        return Err(Error::data(format!(
            "{}: its tokenizer has {tokens} tokens, its model only {rows}; they do not belong together",
            from.dir.display()
        )));
    }
    Ok(tokens)
}

/// The model without the rows of the embedding that stand for no token.
fn cut_vocab(model: Gpt2, from: &ModelFolder) -> Result<Gpt2> {
    let Some(tokenizer) = from.tokenizer()? else {
        return Err(Error::usage(format!(
            "{}: --vocab exact needs a tokenizer beside the model, which says how many tokens there are; found none. \
             Leave --vocab out to keep all {} rows",
            from.dir.display(),
            model.config.vocab_size
        )));
    };
    let tokens = tokens_within(&tokenizer, &model.config, from)?;
    let SpecialIds { bos, eos, pad, .. } = from.special_ids()?;
    let stated = bos.map(|id| ("bos", id)).into_iter().chain(eos.into_iter().map(|id| ("eos", id)));
    let mut stated = stated.chain(pad.map(|id| ("pad", id)));
    if let Some((role, id)) = stated.find(|(_, id)| *id as usize >= tokens) {
        return Err(Error::data(format!(
            "{}: its config says {role}_token_id = {id}, but the tokenizer has {tokens} tokens, so --vocab exact would \
             cut its row; correct the config, or leave --vocab out",
            from.dir.display()
        )));
    }
    let config = Gpt2Config { vocab_size: tokens, ..model.config };
    // A row for each token: the embedding, and the head where it is a matrix of its own.
    let cut = |(name, tensor): (&str, &Tensor)| match name {
        "wte.weight" | "lm_head.weight" => tensor.narrow(0, 0, tokens)?.contiguous(),
        _ => Ok(tensor.clone()),
    };
    let tensors = model.params.named().map(cut).collect::<candle_core::Result<_>>()?;
    let params = ParamSet::new(Layout::new(&config), tensors);
    Ok(Gpt2::new(config, params))
}

/// A file is replaced only if an earlier export wrote it.
fn check_replaceable_file(out: &Path) -> Result<()> {
    let refuse = |what: &str| {
        let out = out.display();
        Err(Error::usage(format!(
            "{out} exists and {what}; name a new file with --out, or remove it yourself"
        )))
    };
    if out.is_dir() {
        return refuse("is a folder, and --format gguf writes one file");
    }
    check_file(out)?;
    if out.exists() && !gguf::is_export(out)? {
        return refuse("is no GGUF file of an earlier export");
    }
    Ok(())
}

/// Everything that an exported folder may hold.
fn folder_names() -> Vec<&'static str> {
    [MARK_FILE].iter().chain(&MODEL_FILES).chain(&TOKENIZER_FILES).copied().collect()
}

fn contents<'a>(names: &'a [&'a str]) -> Contents<'a> {
    Contents { verb: "export", names, mark: Some((MARK_FILE, FORMAT)), last: MODEL_FILES[0] }
}

fn same_bits(a: &ParamSet, b: &ParamSet) -> Result<bool> {
    for (a, b) in a.tensors().iter().zip(b.tensors()) {
        crate::interrupt::check()?;
        let (a, b) = (a.flatten_all()?.to_vec1::<f32>()?, b.flatten_all()?.to_vec1::<f32>()?);
        if !a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits())) {
            return Ok(false);
        }
    }
    Ok(a.layout() == b.layout())
}

fn folder_bytes(dir: &Path) -> Result<u64> {
    let failed = |e| Error::io("list", dir, e);
    let mut bytes = 0;
    for entry in fs::read_dir(dir).map_err(failed)? {
        bytes += entry.and_then(|e| e.metadata()).map_err(failed)?.len();
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Gpt2Config;
    use crate::progress::Silent;

    /// A run folder with a final model and, if asked for, a tokenizer (to `export` just files).
    fn run(root: &Path, tokenizer: bool) -> (PathBuf, Gpt2) {
        let dir = root.join("run");
        let model = Gpt2::scratch(Gpt2Config::new(40, 8, 12, 2, 3), 1, &Device::Cpu).unwrap();
        fs::create_dir_all(dir.join("model")).unwrap();
        let options = SaveOptions { ids: SpecialIds::end_of_text(39), tokenizer: None };
        save_model(&dir.join("model"), &model.config, &model.params, &options).unwrap();
        if tokenizer {
            fs::write(dir.join("model/tokenizer.json"), "{}").unwrap();
        }
        (dir, model)
    }

    #[test]
    fn an_export_is_the_model_and_replaces_only_an_export() {
        let root = tempfile::tempdir().unwrap();
        let (source, model) = run(root.path(), true);
        let out = root.path().join("out");
        fs::create_dir(&out).unwrap();
        let report = export(&source, &out, &ExportOptions::default(), &Silent).unwrap();
        assert_eq!((report.parameters, report.tokenizer), (model.config.parameters(), true));
        assert_eq!(report.bytes, folder_bytes(&out).unwrap());
        let (config, params) = load_model(&out, &Device::Cpu).unwrap();
        assert!(config == model.config && same_bits(&params, &model.params).unwrap());
        assert_eq!(SpecialIds::read(&out).unwrap(), SpecialIds::end_of_text(39));
        let before = fs::read(out.join(WEIGHTS_FILE)).unwrap();
        assert_eq!(export(&source, &out, &ExportOptions::default(), &Silent).unwrap(), report);
        assert_eq!(fs::read(out.join(WEIGHTS_FILE)).unwrap(), before);

        fs::write(out.join("README.md"), "mine").unwrap();
        let message =
            export(&source, &out, &ExportOptions::default(), &Silent).unwrap_err().to_string();
        assert!(message.contains("README.md"), "{message}");
        fs::remove_file(out.join("README.md")).unwrap();
        fs::remove_file(out.join(MARK_FILE)).unwrap();
        assert!(
            export(&source, &out, &ExportOptions::default(), &Silent)
                .unwrap_err()
                .to_string()
                .contains(MARK_FILE)
        );
        assert!(
            export(&source, &source.join("model"), &ExportOptions::default(), &Silent).is_err(),
            "a run is not replaced by its export"
        );
        assert!(
            export(&source, &out.join("config.json"), &ExportOptions::default(), &Silent)
                .unwrap_err()
                .to_string()
                .contains("not a folder")
        );
        // Nothing but the run and the first export is left behind.
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_no_folder_or_is_damaged_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let (source, _) = run(root.path(), false);
        let out = root.path().join("out");
        assert!(
            export(Path::new("gpt2"), &out, &ExportOptions::default(), &Silent)
                .unwrap_err()
                .to_string()
                .contains("no folder gpt2")
        );
        let weights = source.join("model").join(WEIGHTS_FILE);
        let bytes = fs::read(&weights).unwrap();
        fs::write(&weights, &bytes[..bytes.len() - 4]).unwrap();
        assert!(export(&source, &out, &ExportOptions::default(), &Silent).is_err());
        fs::write(&weights, bytes).unwrap();
        assert!(!export(&source, &out, &ExportOptions::default(), &Silent).unwrap().tokenizer);
        fs::write(source.join("model/manifest.json"), "{\"format\": \"of another\"}").unwrap();
        export(&source, &out, &ExportOptions::default(), &Silent).unwrap();
        fs::write(source.join("model/manifest.json"), "{").unwrap();
        assert!(
            export(&source, &out, &ExportOptions::default(), &Silent)
                .unwrap_err()
                .to_string()
                .contains("manifest.json")
        );
    }

    #[test]
    fn of_a_head_of_its_own_the_rows_without_a_token_go_too() {
        let root = tempfile::tempdir().unwrap();
        let (tokenizer, _) = crate::data::train_tokenizer::tests::trained(root.path(), 270);
        let mut config = Gpt2Config::new(277, 8, 12, 2, 3);
        config.parts.own_head = true;
        let model = Gpt2::scratch(config, 1, &Device::Cpu).unwrap();
        let source = root.path().join("model");
        fs::create_dir(&source).unwrap();
        let options = SaveOptions { ids: SpecialIds::of(&tokenizer), tokenizer: None };
        save_model(&source, &model.config, &model.params, &options).unwrap();
        tokenizer.save(&source).unwrap();
        let out = root.path().join("out");
        let exact = ExportOptions { vocab: Vocab::Exact, ..Default::default() };
        let report = export(&source, &out, &exact, &Silent).unwrap();
        assert_eq!(report.parameters, model.config.parameters() - 2 * 7 * 12);
        let (config, params) = load_model(&out, &Device::Cpu).unwrap();
        assert_eq!(config.vocab_size, 270);
        for name in ["wte.weight", "lm_head.weight"] {
            let of = |params: &ParamSet| {
                let tensor = params.named().find(|(n, _)| *n == name).unwrap().1.clone();
                tensor.narrow(0, 0, 270).unwrap().to_vec2::<f32>().unwrap()
            };
            assert_eq!(of(&params), of(&model.params), "{name}");
        }
    }
}
