//! `pretrain`: a student on text, with or without selection.

use super::{Printer, RunArgs, train};
use crate::config::Resolved;
use crate::error::Result;

/// Pretrain a model on prepared text, on every token (clm) or on selected ones (eslm)
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct PretrainArgs {
    /// The run.
    #[command(flatten)]
    pub run: RunArgs,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd pretrain --data data/mine --student gpt2-124m --out runs/first
  eslm-kd pretrain pretrain-eslm --data data/mine --score loss --alpha 0.05
  eslm-kd pretrain my-run.toml --method clm --seed 7 --set optim.weight_decay=0.05
  eslm-kd pretrain --out runs/first --resume";

impl PretrainArgs {
    /// The run as asked for.
    pub fn resolve(&self) -> Result<Resolved> {
        self.run.resolve("pretrain", None)
    }
}

/// Runs the verb.
pub fn run(args: &PretrainArgs, ui: &Printer) -> Result<()> {
    train::run("pretrain", &args.run, &args.resolve()?, ui)
}
