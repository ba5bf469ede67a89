//! Raw text to a data folder: `train.bin`, `valid.bin`, `tokenizer/`, `manifest.json`, all or
//! nothing.

use crate::data::encoder::Encoder;
use crate::data::source::{self, Piece, ReadOptions, Skipped, Source};
use crate::data::split::End;
use crate::data::tokenizer::Tokenizer;
use crate::data::tokens::{TokenFile, TokenHeader, TokenWriter};
use crate::error::{Error, Result};
use crate::files::{Contents, OutDir, hex, same_bytes, same_file, write_atomic};
use crate::progress::Progress;
use crate::report::text::{percent, quoted};
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
    /// Tokens, one end-of-text per document included.
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
    /// The training tokens.
    pub train: SplitReport,
    /// The validation tokens.
    pub valid: Option<SplitReport>,
    /// Inputs with rows that were left out, validation files last.
    pub skipped: Vec<Skipped>,
}

/// Tokenises the inputs. Documents keep their order and end with the end-of-text token; the bytes
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
                append(writer, piece, tokens, &tokenizer)
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
                    append(valid, piece, tokens, &tokenizer)
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

fn append(
    writer: &mut TokenWriter,
    piece: &Piece,
    tokens: &[u32],
    tokenizer: &Tokenizer,
) -> Result<()> {
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
            "note: too few documents ({}) to draw {fraction} of them: the last {share} of the text are validation, parted {from}",
            self.number
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
                    "found a file; make a folder of it: eslm-kd prepare --input {} --tokenizer gpt2 --out data/mine",
                    quoted(folder)
                ),
                (_, true) => format!("it has no {TRAIN}"),
                (_, false) => "found nothing of that name".to_string(),
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
mod tests {
    use super::*;
    use crate::data::train_tokenizer::TrainOptions;
    use crate::progress::Silent;
    use std::fs;

    struct Setup {
        folder: tempfile::TempDir,
        documents: Vec<String>,
    }

    #[derive(Default)]
    struct Notes(std::sync::Mutex<Vec<String>>);

    impl Progress for Notes {
        fn start(&self, _: &str, _: Option<u64>, _: &str) {}
        fn advance(&self, _: u64) {}
        fn finish(&self) {}
        fn note(&self, text: &str) {
            self.0.lock().unwrap().push(text.into());
        }
    }

    impl Notes {
        fn lines(&self) -> Vec<String> {
            self.0.lock().unwrap().clone()
        }
    }

    impl Setup {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let documents: Vec<String> = (0..300)
                .map(|i| match i {
                    17 => "A long one. ".repeat(20_000),
                    _ => format!(
                        "Document {i} has its {} own words,\n\n  and \"{}\" too.",
                        i * 7,
                        i * i
                    ),
                })
                .collect();
            let lines: String = documents
                .iter()
                .map(|d| serde_json::json!({ "text": d }).to_string() + "\n")
                .collect();
            fs::write(folder.path().join("in.jsonl"), lines).unwrap();
            fs::write(folder.path().join("in.txt"), documents.join("<|endoftext|>")).unwrap();
            let options = TrainOptions { vocab_size: 500, ..TrainOptions::default() };
            let (tokenizer, _) =
                Tokenizer::train(&[folder.path().join("in.txt")], &options, &Silent).unwrap();
            tokenizer.save(&folder.path().join("tok")).unwrap();
            Self { folder, documents }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn options(&self, input: &str, out: &str, validation: Validation) -> PrepareOptions {
            PrepareOptions {
                inputs: vec![self.path(input)],
                tokenizer: self.path("tok"),
                out: self.path(out),
                text_field: "text".into(),
                validation,
                end_token: None,
                skip_bad: false,
            }
        }
    }

    #[test]
    fn documents_come_back_whole_in_order_from_either_format() {
        let setup = Setup::new();
        let report = prepare(&setup.options("in.jsonl", "a", Validation::None), &Silent).unwrap();
        let from_text = prepare(&setup.options("in.txt", "b", Validation::None), &Silent).unwrap();
        assert_eq!(report.train, from_text.train);
        let data = DataDir::open(&setup.path("a")).unwrap();
        let tokens = data.train.to_vec(0..data.train.len()).unwrap();
        data.train.verify().unwrap();
        assert!(data.valid.is_none());
        // The long document was encoded in pieces; the oracle encodes it whole.
        let expected: Vec<u32> = setup
            .documents
            .iter()
            .flat_map(|d| {
                data.tokenizer.encode(d).unwrap().into_iter().chain([data.tokenizer.eot()])
            })
            .collect();
        assert!(tokens == expected);
        assert_eq!((report.train.documents, report.train.tokens), (300, expected.len() as u64));
        assert_eq!(
            report.train.bytes as usize,
            setup.documents.iter().map(String::len).sum::<usize>()
        );
        let manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(setup.path("a/manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest, serde_json::to_value(&report).unwrap());
        assert_eq!(manifest["inputs"], serde_json::json!(["in.jsonl"]));
    }

    #[test]
    fn a_fraction_splits_by_document_and_threads_change_nothing() {
        let setup = Setup::new();
        let mut files = Vec::new();
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let options = setup.options("in.jsonl", "a", Validation::Fraction(0.2));
            let report = pool.install(|| prepare(&options, &Silent)).unwrap();
            let valid = report.valid.unwrap();
            assert_eq!(valid.documents + report.train.documents, 300);
            // Binomial(300, 0.2): mean 60, three standard deviations 21.
            assert!((39..=81).contains(&valid.documents), "{}", valid.documents);
            files.push(
                ["train.bin", "valid.bin", "manifest.json"]
                    .map(|n| fs::read(setup.path("a").join(n)).unwrap()),
            );
        }
        assert!(files[0] == files[1]);
        let data = DataDir::open(&setup.path("a")).unwrap();
        let text = |f: &TokenFile| data.tokenizer.decode(&f.to_vec(0..f.len()).unwrap()).unwrap();
        let (train, valid) = (text(&data.train), text(data.valid.as_ref().unwrap()));
        for document in &setup.documents {
            let marked = format!("{document}<|endoftext|>");
            assert!(train.contains(&marked) != valid.contains(&marked));
        }
    }

    #[test]
    fn a_fraction_of_few_documents_is_the_end_of_the_text() {
        let setup = Setup::new();
        let line = |i: usize| format!("The {i} lamps stood by the sea.\n");
        let chapter = |n: usize| (n * 40..n * 40 + 40).map(line).collect::<String>() + "\n";
        let novel = |n: usize| (n * 5..n * 5 + 5).map(chapter).collect::<String>();
        let write = |name: &str, novels: usize| {
            let rows = (0..novels).map(|n| serde_json::json!({"text": novel(n)}).to_string());
            fs::write(setup.path(name), rows.collect::<Vec<_>>().join("\n")).unwrap();
        };
        write("one.jsonl", 1);
        write("three.jsonl", 3);
        fs::write(setup.path("short.txt"), "No line ends here, and no paragraph.").unwrap();
        for (input, novels, fraction, cuts) in [
            ("one.jsonl", 1, 0.1, true),
            ("one.jsonl", 1, 0.99, true),
            ("three.jsonl", 3, 0.02, true),
            ("three.jsonl", 3, 0.3, false),
            ("short.txt", 1, 0.3, true),
        ] {
            // Whichever side all documents were drawn for, the split is the same.
            let options = setup.options(input, "a", Validation::Fraction(fraction));
            let notes = Notes::default();
            let report = prepare(&options, &notes).unwrap();
            let (train, valid) = (&report.train, report.valid.as_ref().unwrap());
            if novels == 3 && train.documents + valid.documents == 3 && notes.lines().is_empty() {
                continue; // drawn
            }
            assert!(notes.lines()[0].contains("the last"), "{:?}", notes.lines());
            assert_eq!(train.documents + valid.documents, novels + u64::from(cuts), "{input}");
            let share = valid.tokens as f64 / (valid.tokens + train.tokens) as f64;
            assert!((0.5..1.6).contains(&(share / fraction)), "{input}, {fraction}: {share}");
            let data = DataDir::open(&setup.path("a")).unwrap();
            let text = |f: &TokenFile| {
                f.verify().unwrap();
                data.tokenizer.decode(&f.to_vec(0..f.len()).unwrap()).unwrap()
            };
            let (head, tail) = (text(&data.train), text(data.valid.as_ref().unwrap()));
            let head = if cuts { head.strip_suffix("<|endoftext|>").unwrap() } else { &head };
            let whole = prepare(&setup.options(input, "b", Validation::None), &Silent).unwrap();
            let all = DataDir::open(&setup.path("b")).unwrap();
            assert_eq!(head.to_string() + &tail, text(&all.train));
            assert_eq!(train.bytes + valid.bytes, whole.train.bytes);
            if input != "short.txt" {
                assert!(head.ends_with(if cuts { "\n" } else { "<|endoftext|>" }), "{input}");
            }
        }
    }

    #[test]
    fn validation_files_and_empty_splits() {
        let setup = Setup::new();
        fs::write(setup.path("v.txt"), "Own words.").unwrap();
        fs::write(setup.path("blank.txt"), "\n").unwrap();
        let own = Validation::Files(vec![setup.path("v.txt")]);
        let report = prepare(&setup.options("in.txt", "a", own), &Silent).unwrap();
        assert_eq!((report.valid.unwrap().documents, report.train.documents), (1, 300));
        let error = |input, validation| {
            let failed = prepare(&setup.options(input, "z", validation), &Silent);
            assert!(!setup.path("z").exists());
            failed.unwrap_err().to_string()
        };
        assert!(error("v.txt", Validation::Fraction(1.0)).contains("between 0 and 1"));
        assert!(error("v.txt", Validation::Fraction(f64::NAN)).contains("between 0 and 1"));
        assert!(error("blank.txt", Validation::None).contains("no text"));
        assert!(
            error("v.txt", Validation::Files(vec![setup.path("blank.txt")]))
                .contains("validation files")
        );
        assert!(error("none.txt", Validation::None).contains("none.txt"));
        let left: Vec<_> =
            fs::read_dir(setup.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|n| !n.to_string_lossy().ends_with(".tmp")), "{left:?}");
    }

    #[test]
    fn an_end_mark_inside_a_row_has_no_bytes() {
        let setup = Setup::new();
        let (first, second) = ("The lamp.", "\n The sea: höher.");
        let row = |text: &str| serde_json::json!({ "text": text }).to_string() + "\n";
        let marked = format!("{first}<|endoftext|>{second}");
        fs::write(setup.path("a.txt"), &marked).unwrap();
        fs::write(setup.path("b.jsonl"), row(first) + &row(second)).unwrap();
        fs::write(setup.path("c.jsonl"), row(&marked)).unwrap();
        // Long enough to be cut, and with marks at both ends of a row.
        let long = "<|endoftext|>".to_string() + &"the lamp ".repeat(20_000) + "<|endoftext|>";
        fs::write(setup.path("d.jsonl"), row(&long)).unwrap();
        let train =
            |input| prepare(&setup.options(input, "z", Validation::None), &Silent).unwrap().train;
        let [a, b, c] = ["a.txt", "b.jsonl", "c.jsonl"].map(train);
        assert_eq!(a, b);
        assert_eq!((&c.content_hash, c.tokens, c.bytes), (&a.content_hash, a.tokens, a.bytes));
        assert_eq!((a.documents, c.documents), (2, 1), "a row is a document");
        assert_eq!(a.bytes as usize, first.len() + second.len());
        assert_eq!(train("d.jsonl").bytes, 9 * 20_000);
    }

    #[test]
    fn skipped_rows_are_in_the_manifest() {
        let setup = Setup::new();
        fs::write(setup.path("bad.jsonl"), "{\"text\":\"one\"}\n{}\n{\"text\":1}\n").unwrap();
        fs::write(setup.path("none.jsonl"), "{}\n").unwrap();
        let own = Validation::Files(vec![setup.path("bad.jsonl")]);
        let options =
            |input| PrepareOptions { skip_bad: true, ..setup.options(input, "a", own.clone()) };
        let report = prepare(&options("in.jsonl"), &Silent).unwrap();
        let bytes = fs::read(setup.path("a/manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(manifest, serde_json::to_value(&report).unwrap());
        let skipped = &manifest["skipped"];
        assert_eq!(skipped.as_array().map(Vec::len), Some(1), "{skipped}");
        assert_eq!((&skipped[0]["input"], &skipped[0]["rows"]), (&"bad.jsonl".into(), &2.into()));
        assert_eq!(skipped[0]["first"], 2);
        assert!(skipped[0]["why"].as_str().unwrap().contains("no field \"text\""));
        let message = prepare(&options("none.jsonl"), &Silent).unwrap_err().to_string();
        assert!(message.contains("no text") && message.contains("none.jsonl: 1 row"), "{message}");
        let train = TrainOptions { vocab_size: 300, ..TrainOptions::default() };
        let inputs = [setup.path("in.jsonl"), setup.path("bad.jsonl")];
        let message = Tokenizer::train(&inputs, &train, &Silent).unwrap_err().to_string();
        assert!(message.contains("bad.jsonl:2: ") && message.contains("--skip-bad"), "{message}");
        let train = TrainOptions { skip_bad: true, ..train };
        let (_, learned) = Tokenizer::train(&inputs, &train, &Silent).unwrap();
        assert_eq!(learned.skipped, report.skipped);
    }

    #[test]
    fn only_its_own_folder_is_replaced() {
        let setup = Setup::new();
        let options = |out| setup.options("in.txt", out, Validation::None);
        let refused = |out| prepare(&options(out), &Silent).unwrap_err().to_string();
        assert!(refused("").contains("exists and holds"));
        assert!(refused("in.txt").contains("is not a folder"));
        fs::create_dir(setup.path("a")).unwrap();
        prepare(&options("a"), &Silent).unwrap();
        prepare(&options("a"), &Silent).unwrap();
        fs::write(setup.path("a/notes.txt"), "mine").unwrap();
        assert!(refused("a").contains("notes.txt"));
        assert_eq!(fs::read(setup.path("a/notes.txt")).unwrap(), b"mine");
        fs::remove_file(setup.path("a/notes.txt")).unwrap();
        fs::remove_file(setup.path("a/manifest.json")).unwrap();
        assert!(refused("a").contains("manifest.json"));
    }

    #[test]
    fn a_folder_with_another_tokenizer_is_refused() {
        let setup = Setup::new();
        prepare(&setup.options("in.txt", "a", Validation::None), &Silent).unwrap();
        let options = TrainOptions { vocab_size: 400, ..TrainOptions::default() };
        let (other, _) = Tokenizer::train(&[setup.path("in.txt")], &options, &Silent).unwrap();
        other.save(&setup.path("a/tokenizer")).unwrap();
        assert!(
            DataDir::open(&setup.path("a")).unwrap_err().to_string().contains("made by tokenizer")
        );
        assert!(
            DataDir::open(&setup.path("tok")).unwrap_err().to_string().contains("eslm-kd prepare")
        );
    }
}
