//! The command line: one file per verb, thin; results on stdout, everything else on stderr.

mod arguments;
pub mod cache;
pub mod compare;
pub mod completions;
pub mod distill;
mod doc;
pub mod doctor;
pub mod download;
pub mod eval;
pub mod export;
pub mod generate;
mod help;
pub mod inspect;
mod knobs;
pub mod man;
mod mistakes;
mod model;
mod number;
pub mod plan;
pub mod prepare;
pub mod pretrain;
mod printer;
mod quickstart;
pub mod report;
mod resume;
pub mod runs;
mod seats;
pub mod signal;
pub mod terminal;
#[cfg(test)]
mod tests;
mod tokenizer;
mod train;

pub use knobs::{ConfigArgs, KNOBS, Knob, Knobs, Resume, RunArgs};
pub use model::ModelArgs;
pub use printer::Printer;

use crate::error::{ErrorKind, Result};
use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand};

/// The program, as a shell knows it.
const NAME: &str = "eslm-kd";

/// Distils and pretrains small language models on the tokens that matter.
#[derive(Debug, Parser)]
#[command(name = NAME, version, after_help = EXAMPLES)]
pub struct Cli {
    /// Options of every verb.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd distill                         the quickstart: data, teacher, student
  eslm-kd tokenizer train --input books.txt --vocab-size 8192 --out tok
  eslm-kd prepare --input books.txt --valid-fraction 0.01 --tokenizer tok \\
      --out data
  eslm-kd pretrain --data data --student gpt2-30m --out runs/first
  eslm-kd pretrain --resume --out runs/first           goes on after a stop
  eslm-kd distill --data data --teacher runs/first --student tiny \\
      --set data.context=128 --out runs/second
  eslm-kd runs                            what there is, and how far it is
  eslm-kd eval runs/second --data data    perplexity, bits per byte
  eslm-kd generate runs/second --prompt \"Once upon\"
  eslm-kd export runs/second --out my-model            a Hugging Face folder
  eslm-kd plan quickstart                 what a run would cost; trains nothing
  eslm-kd doctor                          what is wrong with this machine

Every verb has examples of its own: eslm-kd VERB --help.
Exit status: 0 done, 2 wrong usage, 3 wrong input, 4 Hub, 5 non-finite numbers,
6 file system, 128 + N stopped by signal N.";

/// Options that every verb takes, before or after it.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Options of every verb")]
pub struct Globals {
    /// Print the result as one line of JSON on stdout
    #[arg(long, env = "ESLM_KD_JSON", global = true, value_parser = FalseyValueParser::new(), hide_env_values = true)]
    #[arg(display_order = 100)]
    pub json: bool,
    /// Print nothing but results and errors
    #[arg(short, long, env = "ESLM_KD_QUIET", global = true, value_parser = FalseyValueParser::new(), hide_env_values = true)]
    #[arg(display_order = 101, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print more about what is going on
    #[arg(short, long, env = "ESLM_KD_VERBOSE", global = true, value_parser = FalseyValueParser::new(), hide_env_values = true)]
    #[arg(display_order = 102)]
    pub verbose: bool,
    /// Never use the network: models must be in the cache
    #[arg(long, env = "ESLM_KD_OFFLINE", global = true, value_parser = FalseyValueParser::new(), hide_env_values = true)]
    #[arg(display_order = 103)]
    pub offline: bool,
}

/// The verbs: one line here and one in [`Verb::run`] each.
#[derive(Debug, Subcommand)]
pub enum Verb {
    Prepare(prepare::PrepareArgs),
    Tokenizer(tokenizer::TokenizerArgs),
    Pretrain(pretrain::PretrainArgs),
    Distill(distill::DistillArgs),
    Signal(signal::SignalArgs),
    Compare(compare::CompareArgs),
    Download(download::DownloadArgs),
    Cache(cache::CacheArgs),
    Plan(plan::PlanArgs),
    Eval(eval::EvalArgs),
    Generate(generate::GenerateArgs),
    Inspect(inspect::InspectArgs),
    Report(report::ReportArgs),
    Export(export::ExportArgs),
    Runs(runs::RunsArgs),
    Doctor(doctor::DoctorArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
    #[command(hide = true)]
    Doc(doc::DocArgs),
}

impl Verb {
    /// Does it. An error that ends a run names the command that goes on.
    pub fn run(&self, ui: &Printer) -> Result<()> {
        self.done(ui).map_err(|e| {
            let stopped = matches!(e.kind(), ErrorKind::Interrupted(_));
            let again = match self {
                // Before the first step: a run that has begun names its own.
                Self::Pretrain(_) | Self::Distill(_) => stopped && e.go_on().is_none(),
                // A run inside names itself; what continues the whole is this command.
                Self::Compare(_) => stopped || e.go_on().is_some(),
                // These begin anew, or go on with what they have fetched.
                _ => stopped && arguments::repeatable(),
            };
            let e = match self {
                _ if !stopped => e,
                Self::Generate(_) => e.followed_by("; the same command writes the same text"),
                _ if self.begins_anew() => {
                    e.followed_by("; nothing was kept, and the same command begins anew")
                }
                _ => e,
            };
            if again { e.going_on_with(arguments::again(&[])) } else { e }
        })
    }

    /// Whether it writes all of its result or nothing.
    fn begins_anew(&self) -> bool {
        matches!(
            self,
            Self::Prepare(_)
                | Self::Tokenizer(_)
                | Self::Eval(_)
                | Self::Inspect(_)
                | Self::Export(_)
        )
    }

    fn done(&self, ui: &Printer) -> Result<()> {
        ui.world().same(|| {
            let verb = format!("{self:?}").split('(').next().unwrap_or_default().to_lowercase();
            Ok(vec![("the verb".to_string(), verb)])
        })?;
        // What one process does.
        let alone = |work: &dyn Fn() -> Result<()>| ui.world().alone(work);
        match self {
            Self::Pretrain(args) => pretrain::run(args, ui),
            Self::Distill(args) => distill::run(args, ui),
            Self::Signal(args) => signal::run(args, ui),
            Self::Compare(args) => compare::run(args, ui),
            Self::Eval(args) => eval::run(args, ui),
            Self::Prepare(args) => alone(&|| prepare::run(args, ui)),
            Self::Tokenizer(args) => alone(&|| tokenizer::run(args, ui)),
            Self::Download(args) => alone(&|| download::run(args, ui)),
            Self::Cache(args) => alone(&|| cache::run(args, ui)),
            Self::Plan(args) => alone(&|| plan::run(args, ui)),
            Self::Generate(args) => alone(&|| generate::run(args, ui)),
            Self::Inspect(args) => alone(&|| inspect::run(args, ui)),
            Self::Report(args) => alone(&|| report::run(args, ui)),
            Self::Export(args) => alone(&|| export::run(args, ui)),
            Self::Runs(args) => alone(&|| runs::run(args, ui)),
            Self::Doctor(args) => alone(&|| doctor::run(args, ui)),
            Self::Completions(args) => alone(&|| completions::run(args, ui)),
            Self::Man(args) => alone(&|| man::run(args, ui)),
            Self::Doc(args) => alone(&|| doc::run(args, ui)),
        }
    }
}
