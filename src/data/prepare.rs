//! Raw text to a data folder: `train.bin`, `valid.bin`, `tokenizer/`, `manifest.json`, all or
//! nothing.

use crate::data::encoder::Encoder;
use crate::data::source::{self, Piece, ReadOptions, Skipped, Source};
use crate::data::split::End;
use crate::data::tokenizer::Tokenizer;
use crate::data::tokens::{TokenFile, TokenHeader, TokenWriter};
use crate::error::{Error, Result};
use crate::files::near::did_you_mean;
use crate::files::{Contents, OutDir, free, hex, same_bytes, same_file, write_atomic};
use crate::progress::Progress;
use crate::report::text::{amount, percent, quoted};
use crate::rng::{Rng, Stream};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Training tokens of a data folder.
pub const TRAIN: &str = "train.bin";
/// The validation tokens' name in a data folder.
pub const VALID: &str = "valid.bin";
/// Folder of the tokenizer inside a data folder.
pub const TOKENIZER: &str = "tokenizer";
const MANIFEST: &str = "manifest.json";
/// First field of the manifest.
const FORMAT: &str = "eslm-kd data";
const CONTENTS: Contents = Contents {
    verb: "prepare",
    names: &[TRAIN, VALID, TOKENIZER, MANIFEST],
    mark: Some((MANIFEST, FORMAT)),
    last: TRAIN,
};
/// The split is a property of the data, not of a run: its seed never changes.
const SPLIT_SEED: u64 = 0;

/// Where validation documents come from.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Validation {
    /// There are none.
    #[default]
    None,
    /// From files of their own.
    Files(Vec<PathBuf>),
    /// Each document of the inputs with this probability, in (0, 1); decided by its number in the
    /// input. Where that leaves no document on one side, this share at the end of the text, from a
    /// document's begin or, if none is near, from a line's.
    Fraction(f64),
}

impl Validation {
    fn fraction(&self) -> Option<f64> {
        match self {
            Self::Fraction(f) => Some(*f),
            _ => None,
        }
    }
}

/// What to prepare.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// Input files, in this order.
    pub inputs: Vec<PathBuf>,
    /// Folder or file of the tokenizer.
    pub tokenizer: PathBuf,
    /// The folder to write. One that `prepare` wrote before is replaced, any other is refused.
    pub out: PathBuf,
    /// Field of JSON lines, column of Parquet.
    pub text_field: String,
    /// Where validation documents come from.
    pub validation: Validation,
    /// The token that ends documents; without it, the tokenizer's own.
    pub end_token: Option<String>,
    /// Whether rows of JSON lines and Parquet without a readable text are left out and counted; else
    /// the first is an error.
    pub skip_bad: bool,
}

/// One token file in figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SplitReport {
    /// Documents.
    pub documents: u64,
    /// Tokens, what begins and ends each document included.
    pub tokens: u64,
    /// UTF-8 bytes of text, without those of end marks.
    pub bytes: u64,
    /// SHA-256 of the tokens.
    pub content_hash: String,
}

impl SplitReport {
    fn new(header: &TokenHeader) -> Self {
        Self {
            documents: header.documents,
            tokens: header.tokens,
            bytes: header.source_bytes,
            content_hash: hex(&header.content_hash),
        }
    }
}

/// What was prepared; also the manifest, so nothing in it depends on machine, folder or time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PrepareReport {
    /// Always `eslm-kd data`.
    pub format: &'static str,
    /// Version of the folder's contents.
    pub version: u32,
    /// Names of the input files, without folders.
    pub inputs: Vec<String>,
    /// Names of the validation files, if there were any.
    pub valid_inputs: Vec<String>,
    /// The fraction asked for, if there was one.
    pub valid_fraction: Option<f64>,
    /// [`Tokenizer::hash`] in hexadecimal.
    pub tokenizer_hash: String,
    /// Size of the vocabulary.
    pub vocab_size: u32,
    /// Id of the end-of-text token that closes every document.
    pub eot: u32,
    /// That token.
    pub end_token: String,
    /// Ids that open every document: what the tokenizer's template puts before a text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub begin: Vec<u32>,
    /// Those tokens, if there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub begin_token: Option<String>,
    /// The training tokens.
    pub train: SplitReport,
    /// The validation tokens.
    pub valid: Option<SplitReport>,
    /// Inputs with rows that were left out, validation files last.
    pub skipped: Vec<Skipped>,
}

/// Tokenises the inputs. Documents keep their order, begin with what the tokenizer's template puts
/// before a text ([`Tokenizer::document_begin`]) and end with the end-of-text token; the bytes
/// written depend on the inputs and the tokenizer alone.
pub fn prepare(options: &PrepareOptions, progress: &dyn Progress) -> Result<PrepareReport> {
    if let Some(f) = options.validation.fraction().filter(|f| !(*f > 0.0 && *f < 1.0)) {
        return Err(Error::usage(format!(
            "valid-fraction must lie between 0 and 1, both excluded; found {f}"
        )));
    }
    let folder = OutDir::create(&options.out, CONTENTS)?;
    let tokenizer = match &options.end_token {
        None => Tokenizer::load(&options.tokenizer)?,
        Some(token) => Tokenizer::load_ending_with(&options.tokenizer, token)?,
    };
    let (sources, valid_sources) = open_inputs(options, progress)?;
    let reading = ReadOptions {
        text_field: options.text_field.clone(),
        split: tokenizer.splits_safely(),
        skip_bad: options.skip_bad,
    };

    tokenizer.save(&folder.path().join(TOKENIZER))?;
    let mut train = TokenWriter::create(&folder.path().join(TRAIN), tokenizer.origin())?;
    let mut valid = match options.validation {
        Validation::None => None,
        _ => Some(TokenWriter::create(&folder.path().join(VALID), tokenizer.origin())?),
    };
    let encoder = Encoder::new(&tokenizer)?;
    let (mut number, split) = (0u64, Rng::new(SPLIT_SEED, Stream::Split));
    let mut begins = true;
    let mut skipped =
        source::for_each_batch(&sources, &reading, "Tokenising", progress, |batch| {
            encode_batch(&encoder, &batch.pieces, |piece, tokens| {
                let writer = match (&options.validation, &mut valid) {
                    (Validation::Fraction(f), Some(valid))
                        if f64::from(split.uniform(0, number)) < *f =>
                    {
                        valid
                    }
                    _ => &mut train,
                };
                number += u64::from(piece.ends_document);
                append(writer, piece, tokens, &tokenizer, &mut begins)
            })
        })?;
    if let (Validation::Files(_), Some(valid)) = (&options.validation, &mut valid) {
        let more = source::for_each_batch(
            &valid_sources,
            &reading,
            "Tokenising validation",
            progress,
            |batch| {
                encode_batch(&encoder, &batch.pieces, |piece, tokens| {
                    append(valid, piece, tokens, &tokenizer, &mut begins)
                })
            },
        )?;
        skipped.extend(more);
    }
    check_not_empty(&options.validation, number, &train, valid.as_ref(), &skipped)?;
    let parts = match (&options.validation, valid) {
        (Validation::Fraction(f), Some(valid)) if train.tokens() == 0 || valid.tokens() == 0 => {
            let (writer, empty) = if train.tokens() > 0 { (train, valid) } else { (valid, train) };
            drop(empty);
            let whole = Whole { writer, number };
            let (train, valid) = whole.split(*f, folder.path(), &tokenizer, progress)?;
            (train, Some(valid))
        }
        (_, valid) => (train.finish()?, valid.map(TokenWriter::finish).transpose()?),
    };

    let names = |sources: &[Source]| sources.iter().map(Source::name).collect();
    let report = PrepareReport {
        format: FORMAT,
        version: 1,
        inputs: names(&sources),
        valid_inputs: names(&valid_sources),
        valid_fraction: options.validation.fraction(),
        tokenizer_hash: hex(&tokenizer.hash()),
        vocab_size: tokenizer.vocab_size(),
        eot: tokenizer.eot(),
        end_token: tokenizer.end_token(),
        begin: tokenizer.document_begin().to_vec(),
        begin_token: Some(tokenizer.names(tokenizer.document_begin())).filter(|t| !t.is_empty()),
        train: SplitReport::new(&parts.0),
        valid: parts.1.as_ref().map(SplitReport::new),
        skipped,
    };
    report.write(&folder.path().join(MANIFEST))?;
    folder.commit()?;
    Ok(report)
}

/// Errs where [`prepare`] could not write its folder, before anything is fetched for it.
pub fn check_out(out: &Path) -> Result<()> {
    OutDir::check(out, CONTENTS)
}

/// The inputs and the validation files. What is in both is said: a loss on it says nothing of
/// other text.
fn open_inputs(
    options: &PrepareOptions,
    progress: &dyn Progress,
) -> Result<(Vec<Source>, Vec<Source>)> {
    let valid = match &options.validation {
        Validation::Files(paths) => {
            if paths.is_empty() {
                return Err(Error::usage("no validation files given"));
            }
            &paths[..]
        }
        _ => &[],
    };
    let mut sources = Source::open_all(&[&options.inputs, valid].concat())?;
    let valid = sources.split_off(options.inputs.len());
    for held_out in &valid {
        for input in &sources {
            let (a, b) = (input.path(), held_out.path());
            if same_file(a, b) || same_bytes(a, b)? {
                progress.note(&format!(
                    "warning: {} is validated on and trained on ({} is the same text), so its loss says nothing of other \
                     text; name a file that is no input, or use --valid-fraction",
                    held_out.path().display(),
                    input.path().display()
                ));
                break;
            }
        }
    }
    Ok((sources, valid))
}

impl PrepareReport {
    fn write(&self, manifest: &Path) -> Result<()> {
        write_atomic(manifest, |w| {
            serde_json::to_writer_pretty(&mut *w, self)
                .map_err(|e| Error::io("write", manifest, e.into()))?;
            w.write_all(b"\n").map_err(|e| Error::io("write", manifest, e))
        })
    }
}

/// Encodes in parallel, then hands over in order.
fn encode_batch(
    encoder: &Encoder,
    pieces: &[Piece],
    mut take: impl FnMut(&Piece, &[u32]) -> Result<()>,
) -> Result<()> {
    let texts: Vec<&str> = pieces.iter().map(|p| p.text.as_str()).collect();
    let encoded = encoder.encode_all(&texts)?;
    pieces.iter().zip(&encoded).try_for_each(|(piece, tokens)| take(piece, tokens))
}

/// `begins` says whether a document begins with this piece, and is told whether one does with the
/// next.
fn append(
    writer: &mut TokenWriter,
    piece: &Piece,
    tokens: &[u32],
    tokenizer: &Tokenizer,
    begins: &mut bool,
) -> Result<()> {
    // A text that begins so by itself, as a chat template makes it, gets no second.
    if *begins && !tokens.starts_with(tokenizer.document_begin()) {
        writer.push(tokenizer.document_begin())?;
    }
    *begins = piece.ends_document;
    writer.push(tokens)?;
    writer.add_source_bytes(tokenizer.source_bytes(&piece.text, tokens));
    if piece.ends_document {
        writer.push(&[tokenizer.eot()])?;
        writer.end_document();
    }
    Ok(())
}

fn check_not_empty(
    validation: &Validation,
    documents: u64,
    train: &TokenWriter,
    valid: Option<&TokenWriter>,
    skipped: &[Skipped],
) -> Result<()> {
    let held_out = valid.map_or(0, TokenWriter::tokens);
    if documents == 0 || train.tokens() + held_out < 2 {
        return Err(source::no_text("the inputs", skipped));
    }
    if held_out == 0 && matches!(validation, Validation::Files(_)) {
        return Err(source::no_text("the validation files", skipped));
    }
    Ok(())
}

/// All documents in one file, of which a part is to be held out.
struct Whole {
    writer: TokenWriter,
    number: u64,
}

impl Whole {
    /// Training and validation tokens in `folder`, and a note that says how they were parted.
    fn split(
        self,
        fraction: f64,
        folder: &Path,
        tokenizer: &Tokenizer,
        progress: &dyn Progress,
    ) -> Result<(TokenHeader, TokenHeader)> {
        let written = self.writer.path().to_path_buf();
        self.writer.finish()?;
        let whole = folder.join("whole.bin");
        std::fs::rename(&written, &whole).map_err(|e| Error::io("rename", &written, e))?;
        let tokens = TokenFile::open(&whole)?;
        let end = End::of(&tokens, fraction, tokenizer)?;
        let share = percent((tokens.len() - end.at) as f64 / tokens.len() as f64);
        let from = if end.cuts { "inside a document" } else { "at a document's begin" };
        progress.note(&format!(
            "note: drawing {fraction} of {} left none on one side: the last {share} of the tokens are validation, parted {from}",
            amount(self.number, "documents")
        ));
        let parts = end.write(&tokens, (&folder.join(TRAIN), &folder.join(VALID)), tokenizer)?;
        drop(tokens);
        std::fs::remove_file(&whole).map_err(|e| Error::io("remove", &whole, e))?;
        Ok(parts)
    }
}

/// A prepared folder, open for training.
#[derive(Debug, Clone)]
pub struct DataDir {
    /// Training tokens.
    pub train: Arc<TokenFile>,
    /// Validation tokens, if the folder has some.
    pub valid: Option<Arc<TokenFile>>,
    /// The tokenizer that made both.
    pub tokenizer: Tokenizer,
}

impl DataDir {
    /// Training tokens, then validation tokens.
    pub fn files(&self) -> impl Iterator<Item = &TokenFile> {
        std::iter::once(&self.train).chain(self.valid.as_ref()).map(Arc::as_ref)
    }

    /// Opens the folder and checks that both files were made by its tokenizer.
    pub fn open(folder: &Path) -> Result<Self> {
        if !folder.join(TRAIN).is_file() {
            let place = folder.display();
            let found = match (folder.is_file(), folder.exists()) {
                (true, _) if folder.extension().is_some_and(|e| e == "bin") => {
                    "found one of its files; name the folder".to_string()
                }
                (true, _) => format!(
                    "found a file; make a folder of it: eslm-kd prepare --input {} --tokenizer gpt2 --out {}",
                    quoted(folder),
                    free("data/mine").display()
                ),
                (_, true) => format!("it has no {TRAIN}"),
                (_, false) => format!(
                    "found nothing of that name{}",
                    did_you_mean(folder, |path| path.join(TRAIN).is_file())
                ),
            };
            return Err(Error::data(format!(
                "{place}: expected a folder made by `eslm-kd prepare`; {found}"
            )));
        }
        let tokenizer = Tokenizer::load(&folder.join(TOKENIZER))?;
        let open = |name: &str| {
            let file = TokenFile::open(&folder.join(name))?;
            let (found, expected) = (file.header(), tokenizer.origin());
            if !tokenizer.reads(&found.tokenizer_hash)
                || (found.vocab_size, found.eot) != (expected.vocab_size, expected.eot)
            {
                return Err(Error::data(format!(
                    "{}: made by tokenizer {}, but the folder's is {}; prepare the data again",
                    file.path().display(),
                    hex(&found.tokenizer_hash[..6]),
                    hex(&expected.tokenizer_hash[..6])
                )));
            }
            Ok(Arc::new(file))
        };
        let train = open(TRAIN)?;
        let valid = folder.join(VALID).exists().then(|| open(VALID)).transpose()?;
        Ok(Self { train, valid, tokenizer })
    }
}

#[cfg(test)]
mod tests;
