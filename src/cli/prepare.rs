//! `eslm-kd prepare`: raw text to a data folder.

use super::number::finite;
use super::{ConfigArgs, Printer};
use crate::data::prepare::{PrepareOptions, PrepareReport, TRAIN, Validation, check_out, prepare};
use crate::data::source::Source;
use crate::data::tokens::END_OF_TEXT;
use crate::error::Result;
use crate::files::free;
use crate::machine::available_memory;
use crate::progress::{Progress, Silent};
use crate::report::text::{Screen, Table, bytes, count, quoted};
use crate::store::Where;
use crate::store::hub::HubOptions;
use crate::store::names::resolve_tokenizer;
use crate::store::preset::{self, Role};
use crate::train::pace::speed;
use crate::train::session::Session;
use std::path::{Path, PathBuf};

/// Tokenise text, JSON lines or Parquet into a data folder.
///
/// Reads .txt, .jsonl and .parquet, each also with .gz or .zst, in bounded memory. Documents end
/// with the tokenizer's end-of-text token, and begin with what its template puts before a text
/// (Llama's `<s>`; mostly nothing). In text files `<|endoftext|>` separates documents; a
/// file without it is one document. Inside a row it is one end-of-text token, and has no bytes. A
/// pipe such as /dev/stdin is read once, and its first bytes say what it is.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  eslm-kd prepare --input books.jsonl.gz --valid held-out.jsonl.gz --tokenizer gpt2 --out data/books
  eslm-kd prepare --input a.parquet b.parquet --text-field content --valid-fraction 0.01 \\
      --tokenizer runs/tokenizer --out data/mine")]
pub struct PrepareArgs {
    /// Input files, in this order.
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub input: Vec<PathBuf>,
    /// Tokenizer: a folder or tokenizer.json, a Hub id, or a preset.
    #[arg(long, value_name = "DIR|HUB-ID|PRESET")]
    pub tokenizer: String,
    /// Folder to write; one that prepare wrote before is replaced.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Field of JSON lines, column of Parquet.
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_field: String,
    /// Token that ends every document; without it, the one that the tokenizer declares.
    #[arg(long, value_name = "TOKEN")]
    pub end_token: Option<String>,
    /// Validation files.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "valid_fraction")]
    pub valid: Vec<PathBuf>,
    /// Share of the input documents to set aside for validation.
    #[arg(long, value_name = "F", value_parser = finite)]
    pub valid_fraction: Option<f64>,
    /// Leave out rows of JSON lines and Parquet without a readable text, and count them, instead of
    /// stopping at the first.
    #[arg(long)]
    pub skip_bad: bool,
}

/// Runs the verb.
pub fn run(args: &PrepareArgs, ui: &Printer) -> Result<()> {
    let hub = HubOptions::from_env(ui.offline());
    let report = prepared(args, &hub, ui)?;
    ui.result(&report, |screen| human(args, &report, screen))
}

fn prepared(
    args: &PrepareArgs,
    hub: &HubOptions,
    progress: &dyn Progress,
) -> Result<PrepareReport> {
    let validation = match args.valid_fraction {
        Some(fraction) => Validation::Fraction(fraction),
        None if args.valid.is_empty() => Validation::None,
        None => Validation::Files(args.valid.clone()),
    };
    // Before a tokenizer is fetched.
    check_out(&args.out)?;
    let replaces = args.out.join(TRAIN).is_file();
    for path in args.input.iter().chain(&args.valid).filter(|path| !path.exists()) {
        Source::open(path)?;
    }
    let options = PrepareOptions {
        inputs: args.input.clone(),
        tokenizer: resolve_tokenizer(&args.tokenizer, None, hub, progress)?,
        out: args.out.clone(),
        text_field: args.text_field.clone(),
        validation,
        end_token: args.end_token.clone(),
        skip_bad: args.skip_bad,
    };
    let report = prepare(&options, progress)?;
    if replaces {
        progress.note(&format!("note: {}: the data folder there was replaced", args.out.display()));
    }
    Ok(report)
}

/// Seconds that a first run may take.
const A_RUN: f64 = 3600.0;

fn human(args: &PrepareArgs, report: &PrepareReport, screen: &Screen) -> String {
    let mut table = Table::new(["", "documents", "tokens", "text"]);
    for (name, split) in [("train", Some(&report.train)), ("valid", report.valid.as_ref())] {
        if let Some(split) = split {
            table.row([
                name.to_string(),
                count(split.documents),
                count(split.tokens),
                bytes(split.bytes),
            ]);
        }
    }
    let (out, quoted) = (args.out.display(), quoted(&args.out));
    let around = around(report);
    let skipped: String = report.skipped.iter().map(|s| format!("\n{s}")).collect();
    let (student, fits) = match student_for(&args.out, report.train.tokens) {
        Some((name, parameters, time)) => {
            let fits = format!(
                "\na student for this machine: {name}, {} parameters, roughly {} min of training",
                count(parameters),
                (time / 60.0).ceil()
            );
            (name, fits)
        }
        None => {
            return format!(
                "{}{around}{skipped}\ndata folder: {out}\ntoo little text to train on",
                table.on(screen)
            );
        }
    };
    format!(
        "{}{around}{skipped}\ndata folder: {out}{fits}\nnext: eslm-kd pretrain --data {quoted} --student {student} --out {}",
        table.on(screen),
        free("runs/first").display()
    )
}

/// What stands around each document, where it is not GPT-2's end mark alone.
fn around(report: &PrepareReport) -> String {
    match &report.begin_token {
        Some(begin) => {
            format!("\neach document begins with {begin} and ends with {}", report.end_token)
        }
        None if report.end_token == END_OF_TEXT => String::new(),
        None => format!("\neach document ends with {}", report.end_token),
    }
}

/// The largest student preset that fits into this machine's memory and whose run by default takes
/// at most [`A_RUN`] here: its name, parameters and seconds. Without one that does, the smallest;
/// None where `tokens` fill no sequence of any.
fn student_for(data: &Path, tokens: u64) -> Option<(&'static str, u64, f64)> {
    let hub = HubOptions::from_env(true);
    let speed = speed();
    let mut known: Vec<_> = preset::names(Some(Role::Student))
        .into_iter()
        .filter_map(|name| {
            let config = ConfigArgs {
                set: vec![format!("student={name}"), format!("data.dir={}", data.display())],
                ..ConfigArgs::default()
            };
            let plan = config.resolve(None).ok()?.plan;
            if tokens <= plan.data.context as u64 {
                return None;
            }
            let shapes = Session::shapes(&plan, Where { hub: &hub, progress: &Silent }).ok()?;
            let memory = shapes.memory().total();
            let time = shapes.flops() / speed;
            Some((name, shapes.student.parameters() as u64, time, memory))
        })
        .collect();
    known.sort_by_key(|(_, parameters, ..)| *parameters);
    let free = available_memory().unwrap_or(u64::MAX);
    let fits = known.iter().rev().find(|(_, _, time, memory)| *time <= A_RUN && *memory <= free);
    fits.or(known.first()).map(|&(name, parameters, time, _)| (name, parameters, time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tokenizer::{self, TokenizerArgs};
    use crate::progress::Silent;
    use clap::Parser;

    #[derive(Parser)]
    enum Cli {
        Prepare(PrepareArgs),
        Tokenizer(TokenizerArgs),
    }

    #[test]
    fn train_a_tokenizer_then_prepare() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(at("a.txt"), "One and two.<|endoftext|>Two and three and one.").unwrap();
        let words = [
            "x",
            "tokenizer",
            "train",
            "--input",
            &at("a.txt"),
            "--vocab-size",
            "270",
            "--out",
            &at("tok"),
        ];
        let Cli::Tokenizer(args) = Cli::try_parse_from(words).unwrap() else { panic!("verb") };
        let report = tokenizer::trained(&args, &Silent).unwrap();
        assert_eq!((report.documents, report.vocab_size > 260), (2, true));
        let common = [
            "x",
            "prepare",
            "--input",
            &at("a.txt"),
            &at("a.txt"),
            "--tokenizer",
            &at("tok"),
            "--out",
            &at("d"),
        ];
        let prepared = |more: &[&str]| {
            let Cli::Prepare(args) = Cli::try_parse_from([&common, more].concat()).unwrap() else {
                panic!("verb")
            };
            prepared(&args, &HubOptions::from_env(true), &Silent)
        };
        assert_eq!(prepared(&[]).unwrap().train.documents, 4);
        assert_eq!(prepared(&["--valid", &at("a.txt")]).unwrap().valid.unwrap().documents, 2);
        assert!(prepared(&["--valid-fraction", "2"]).is_err());
        assert!(
            Cli::try_parse_from(
                [&common[..], &["--valid", "b", "--valid-fraction", "0.5"]].concat()
            )
            .is_err()
        );
        let offline = HubOptions::from_env(true);
        assert!(resolve_tokenizer(&at("nothing"), None, &offline, &Silent).is_err());
        // A tokenizer is not overwritten by accident.
        assert!(tokenizer::trained(&args, &Silent).unwrap_err().to_string().contains("exists"));
    }
}
