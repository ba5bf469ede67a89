//! Valid files to start from, and readers that go through everything a program would.

use crate::support::tiny;
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use candle_core::{Device, Tensor};
use eslm_kd::config::{self, Overrides, Plan, RunFile};
use eslm_kd::data::source::{ReadOptions, Source, for_each_batch};
use eslm_kd::data::tokenizer::Tokenizer;
use eslm_kd::data::tokens::{TokenFile, TokenOrigin, TokenWriter};
use eslm_kd::error::{Error, ErrorKind, Result};
use eslm_kd::model::{Gpt2, Gpt2Config, Layout, ParamSet};
use eslm_kd::optim::adamw;
use eslm_kd::progress::Silent;
use eslm_kd::store::checkpoint::{self, Counters, Expected, Inputs, RunLock, TrainState};
use eslm_kd::store::weights::{SaveOptions, save_model};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// An empty folder.
pub fn folder() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Holds for every outcome that hostile input may have: a value, or one line of bounded length that
/// names the place and blames the input.
pub fn fair<T>(outcome: Result<T>, place: &str) -> std::result::Result<(), String> {
    let Err(error) = outcome else { return Ok(()) };
    let text = error.to_string();
    let start: String = text.chars().take(600).collect();
    let kind = error.kind();
    if !matches!(kind, ErrorKind::Usage | ErrorKind::Data | ErrorKind::Io) {
        return Err(format!("of kind {kind:?}: {start}"));
    }
    if text.lines().count() != 1 || text.chars().any(char::is_control) {
        return Err(format!("not one plain line: {start:?}"));
    }
    if text.len() > 10_000 {
        return Err(format!("{} bytes long: {start}", text.len()));
    }
    if !text.contains(place) {
        return Err(format!("does not name {place}: {start}"));
    }
    Ok(())
}

/// A message of the refusal of `outcome`.
pub fn refused<T>(outcome: Result<T>, place: &str) -> String {
    let error = outcome.err().expect("refused");
    fair::<()>(Err(error.clone()), place).unwrap();
    error.to_string()
}

/// A token file of 40 tokens below 11.
pub fn token_file() -> Vec<u8> {
    let folder = folder();
    let path = folder.path().join("t.bin");
    let origin = TokenOrigin { vocab_size: 11, eot: 10, tokenizer_hash: [7; 32] };
    let mut writer = TokenWriter::create(&path, origin).unwrap();
    writer.push(&(0..40).map(|i| i % 11).collect::<Vec<u32>>()).unwrap();
    writer.end_document();
    writer.finish().unwrap();
    fs::read(path).unwrap()
}

/// Makes the checksum of a token file's header fit again.
pub fn fix_token_header(bytes: &mut [u8]) {
    if bytes.len() >= 256 {
        let check = Sha256::digest(&bytes[..224]);
        bytes[224..256].copy_from_slice(&check);
    }
}

/// Opens a token file, reads and verifies all of it.
pub fn read_tokens(path: &Path) -> Result<()> {
    let file = TokenFile::open(path)?;
    file.check_vocab(11)?;
    let tokens = file.to_vec(0..file.len())?;
    assert!(tokens.iter().all(|t| *t < file.header().vocab_size));
    file.verify(&Silent)
}

/// The shape of the models here.
pub fn shape() -> Gpt2Config {
    Gpt2Config::new(11, 5, 8, 1, 2)
}

/// A Hugging Face folder with a random model.
pub fn model(at: &Path) {
    fs::create_dir_all(at).unwrap();
    let model = Gpt2::scratch(shape(), 3, &Device::Cpu).unwrap();
    save_model(at, &model.config, &model.params, &SaveOptions::default()).unwrap();
}

/// Makes the length before a safetensors header fit again.
pub fn fix_header_length(bytes: &mut [u8], header: usize) {
    bytes[..8].copy_from_slice(&(header as u64).to_le_bytes());
}

fn constant(layout: &Layout, value: f32) -> ParamSet {
    let tensor = |shape: &Vec<usize>| Tensor::full(value, shape.as_slice(), &Device::Cpu).unwrap();
    ParamSet::new(layout.clone(), layout.entries().iter().map(|spec| tensor(&spec.shape)).collect())
}

fn plan() -> Plan {
    let file = RunFile {
        name: "run.toml".into(),
        text: "student = 'tiny'\n[data]\ncontext = 4\nrows = 4\n".into(),
    };
    config::load(Some(&file), &Overrides::default()).unwrap().plan
}

fn inputs() -> Inputs {
    Inputs { data_hash: "d".into(), tokenizer_hash: "t".into(), ..Inputs::default() }
}

/// Saves a checkpoint whose first and second moments are constants, in a run folder `run`; returns
/// its folder.
pub fn checkpoint_of(run: &Path, first: f32, second: f32) -> PathBuf {
    let model = Gpt2::scratch(shape(), 3, &Device::Cpu).unwrap();
    let layout = Layout::new(&model.config);
    let state = TrainState {
        plan: plan(),
        config: model.config,
        params: model.params,
        optimizer: adamw::State::whole(5, constant(&layout, first), constant(&layout, second)),
        counters: Counters { step: 5, tokens: 80, cursor: 20, ..Counters::default() },
        selector: json!({"alpha": 0.1}),
        inputs: inputs(),
    };
    let lock = RunLock::acquire(run).unwrap();
    checkpoint::save(&lock, &state, &SaveOptions::default(), &plan().checkpoint).unwrap()
}

/// Loads a checkpoint of [`checkpoint_of`] as a run that resumes.
pub fn load_checkpoint(path: &Path) -> Result<TrainState> {
    let (plan, config, inputs) = (plan(), shape(), inputs());
    checkpoint::load(
        path,
        &Expected { plan: &plan, config: &config, inputs: &inputs },
        &Device::Cpu,
    )
}

/// Writes a file of a checkpoint and makes the manifest agree.
pub fn replace_in_checkpoint(checkpoint: &Path, name: &str, bytes: &[u8]) {
    fs::write(checkpoint.join(name), bytes).unwrap();
    let path = checkpoint.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest["files"][name] =
        json!({"size": bytes.len(), "sha256": format!("{:x}", Sha256::digest(bytes))});
    fs::write(path, manifest.to_string()).unwrap();
}

/// The world's `tokenizer.json`.
pub fn tokenizer() -> Vec<u8> {
    fs::read(tiny::world().join("tokenizer/tokenizer.json")).unwrap()
}

/// Loads a tokenizer and uses it both ways.
pub fn use_tokenizer(path: &Path) -> Result<()> {
    let tokenizer = Tokenizer::load(path)?;
    let named = |e: Error| e.context(path.display());
    let ids = tokenizer.encode("Anna's pear, 12 \u{e9}\n<|endoftext|>").map_err(named)?;
    assert!(ids.iter().all(|id| *id < tokenizer.vocab_size()));
    tokenizer.decode(&ids).map_err(named)?;
    tokenizer.text_of(tokenizer.eot()).map_err(named)?;
    Ok(())
}

/// A Parquet file of text columns with these names, which hold the same.
pub fn parquet_of(columns: &[&str], texts: &[&str], properties: WriterProperties) -> Vec<u8> {
    let columns: String =
        columns.iter().map(|name| format!("REQUIRED BYTE_ARRAY {name} (STRING); ")).collect();
    let schema =
        ::parquet::schema::parser::parse_message_type(&format!("message rows {{ {columns} }}"))
            .unwrap();
    let texts: Vec<ByteArray> = texts.iter().map(|text| ByteArray::from(*text)).collect();
    let mut out = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut out, Arc::new(schema), Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    while let Some(mut column) = group.next_column().unwrap() {
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    out
}

/// A Parquet file with 600 texts in two columns.
pub fn parquet(compression: ::parquet::basic::Compression) -> Vec<u8> {
    let texts: Vec<String> = (0..600).map(|i| format!("text {}", i % 90)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    parquet_of(
        &["id", "text"],
        &texts,
        WriterProperties::builder().set_compression(compression).build(),
    )
}

/// gzip of bytes.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Reads a text, JSON lines or Parquet file to its end, with and without cutting; returns the
/// documents.
pub fn read_documents(path: &Path) -> Result<u64> {
    let mut documents = 0;
    for split in [true, false] {
        documents = 0;
        let options = ReadOptions { text_field: "text".into(), split, skip_bad: false };
        for_each_batch(&[Source::open(path)?], &options, "", &Silent, |batch| {
            documents += batch.pieces.iter().filter(|p| p.ends_document).count() as u64;
            Ok(())
        })?;
    }
    Ok(documents)
}
