//! `distill`: a teacher's knowledge into a student, on selected tokens.

use super::{Printer, RunArgs, quickstart, train};
use crate::compare::quickstart::{SETTINGS, TEACHER, is_quickstart};
use crate::config::{Resolved, RunFile};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::report::text::quoted;
use crate::train::run::CONFIG_FILE;

/// Distil a teacher into a student; without arguments, the quickstart: everything is generated here
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DistillArgs {
    /// The run.
    #[command(flatten)]
    pub run: RunArgs,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd distill                                              the quickstart, nothing to download
  eslm-kd distill --teacher gpt2-medium --student gpt2-124m --data data/mine
  eslm-kd distill distill-gpt2-medium --data data/mine --score kl --alpha 0.8
  eslm-kd distill my-run.toml --set objective.lambda=0.9 --set objective.temperature=2
  eslm-kd distill my-run.toml --out runs/first --resume";

/// The run file of `distill` without CONFIG.
pub const QUICKSTART: &str = "quickstart";

impl DistillArgs {
    /// The settings of the quickstart that is gone on with.
    fn earlier(&self) -> Result<Option<RunFile>> {
        let (Some(out), Some(_)) = (&self.run.out, self.run.resume) else { return Ok(None) };
        let settings = out.join(SETTINGS);
        if !settings.is_file() {
            return Ok(None);
        }
        RunFile::find(&settings.to_string_lossy()).map(Some)
    }

    /// The run as asked for. Without CONFIG it is the quickstart, unless another teacher than its own
    /// or data are named: those start from the defaults.
    pub fn resolve(&self) -> Result<Resolved> {
        // As given: without the run file they belong to they need not fit together.
        let overrides = self.run.config.overrides()?;
        let own = overrides.names("data.dir")
            || overrides.names("data.signal")
            || overrides.value("teacher").is_some_and(|name| name.as_str() != Some(TEACHER));
        let fallback = match own {
            true => None,
            false => self.earlier()?.or_else(|| RunFile::embedded(QUICKSTART)),
        };
        let resolved = self.run.resolve("distill", fallback)?;
        if !resolved.plan.is_taught() {
            if let (Some(out), true) = (&self.run.out, self.run.resume.is_some())
                && out.join(CONFIG_FILE).is_file()
            {
                return Err(Error::usage(format!(
                    "{0}: the run there has no teacher; it goes on with `eslm-kd pretrain --resume --out {1}`",
                    out.display(),
                    quoted(out)
                )));
            }
            return Err(Error::usage(
                "distill needs a teacher: add teacher = \"NAME\" at the top of the run file or --teacher NAME \
                 (a preset such as gpt2-medium, a model folder or a Hub id), or --signal DIR with what one wrote; `pretrain` \
                 trains without one",
            ));
        }
        Ok(resolved)
    }
}

/// Runs the verb.
pub fn run(args: &DistillArgs, ui: &Printer) -> Result<()> {
    let resolved = args.resolve()?;
    let plan = &resolved.plan;
    if is_quickstart(plan) {
        resolved.notes().iter().for_each(|note| ui.note(&format!("note: {note}")));
        return quickstart::run(&args.run, plan, ui);
    }
    train::run("distill", &args.run, &resolved, ui)
}
