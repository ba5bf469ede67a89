//! `doc`: the parts of the documentation that are generated. Hidden: for those who write it.

use super::Printer;
use crate::config;
use crate::error::Result;

/// Print a generated part of the documentation as Markdown
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DocArgs {
    /// Which part
    #[arg(value_name = "WHAT")]
    pub what: What,
}

/// The parts that there are.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum What {
    /// Every key of a run file.
    Keys,
    /// Every key of `metrics.jsonl`.
    Metrics,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd doc keys                                  the tables of keys that the README holds
  eslm-kd doc metrics                               the tables of metrics, likewise";

/// Prints it.
pub fn run(args: &DocArgs, ui: &Printer) -> Result<()> {
    let text = match args.what {
        What::Keys => config::reference(),
        What::Metrics => crate::train::events::reference(),
    };
    ui.result(&text, |_| text.trim_end().to_string())
}
