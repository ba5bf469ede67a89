//! The few knobs of a run that everybody turns: a flag and an environment variable each. The rest
//! live in the run file and `--set`. The config checks the values, so that a flag, a variable and a
//! file give the same messages.

use super::distill::QUICKSTART;
use super::model::kept;
use super::resume::check_config;
use crate::compare::quickstart::is_quickstart;
use crate::config::{Origin, Overrides, Resolved, RunFile, keys, load};
use crate::error::{Error, Result};
use crate::store::context::fit_context;
use crate::store::places::find_again;
use crate::train::threads::aside;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use std::path::{Path, PathBuf};

/// A key of the run file that is a flag, too.
#[derive(Debug)]
pub struct Knob {
    /// `--flag`.
    pub flag: &'static str,
    /// Its environment twin.
    pub env: &'static str,
    /// The key it sets.
    pub key: &'static str,
    value_name: &'static str,
}

const fn knob(
    flag: &'static str,
    env: &'static str,
    key: &'static str,
    value_name: &'static str,
) -> Knob {
    Knob { flag, env, key, value_name }
}

/// All of them.
pub const KNOBS: &[Knob] = &[
    knob("teacher", "ESLM_KD_TEACHER", "teacher", "NAME"),
    knob("signal", "ESLM_KD_SIGNAL", "data.signal", "DIR"),
    knob("student", "ESLM_KD_STUDENT", "student", "NAME"),
    knob("data", "ESLM_KD_DATA", "data.dir", "DIR"),
    knob("method", "ESLM_KD_METHOD", "method", "METHOD"),
    knob("score", "ESLM_KD_SCORE", "select.score", "SCORE"),
    knob("alpha", "ESLM_KD_ALPHA", "select.alpha", "SHARE"),
    knob("steps", "ESLM_KD_STEPS", "steps", "N"),
    knob("seed", "ESLM_KD_SEED", "seed", "N"),
    knob("lr", "ESLM_KD_LR", "optim.lr", "RATE"),
    knob("micro-rows", "ESLM_KD_MICRO_ROWS", "machine.micro_rows", "N"),
    knob("device", "ESLM_KD_DEVICE", "machine.device", "DEVICE"),
];

/// The knobs that were turned.
#[derive(Debug, Clone, Default)]
pub struct Knobs {
    turned: Vec<(&'static Knob, String, Origin)>,
}

impl Args for Knobs {
    fn augment_args(command: Command) -> Command {
        KNOBS.iter().fold(command, |command, knob| command.arg(knob.arg()))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Knobs {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let mut knobs = Self::default();
        knobs.update_from_arg_matches(matches)?;
        Ok(knobs)
    }

    fn update_from_arg_matches(
        &mut self,
        matches: &ArgMatches,
    ) -> std::result::Result<(), clap::Error> {
        for knob in KNOBS {
            let Some(text) = matches.get_one::<String>(knob.flag) else { continue };
            let origin = match matches.value_source(knob.flag) {
                // An empty variable is how a shell says "not set".
                Some(ValueSource::EnvVariable) if text.is_empty() => continue,
                Some(ValueSource::EnvVariable) => Origin::Env(knob.env),
                _ => Origin::Flag(knob.flag),
            };
            self.turned.push((knob, text.clone(), origin));
        }
        Ok(())
    }
}

impl Knob {
    fn arg(&self) -> Arg {
        let words = keys::find(self.key).map_or(&[][..], |k| k.kind.words());
        let help = keys::find(self.key).map_or("", |k| k.help);
        let mut help: String = help[..1].to_uppercase() + &help[1..];
        if words.len() > 1 && self.flag != "device" && self.flag != "method" {
            help += &format!(" ({})", words.join(", "));
        }
        Arg::new(self.flag)
            .long(self.flag)
            .env(self.env)
            .hide_env_values(true)
            .value_name(self.value_name)
            .allow_negative_numbers(true)
            .help(help)
    }
}

/// What describes a run.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// Run file, run folder, or the name of a built-in run file
    #[arg(value_name = "CONFIG")]
    pub config: Option<String>,
    /// Set any key of the run file; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// The knobs.
    #[command(flatten)]
    pub knobs: Knobs,
}

impl ConfigArgs {
    /// Everything that goes over the run file.
    pub fn overrides(&self) -> Result<Overrides> {
        let mut overrides = Overrides::default();
        for (knob, text, origin) in &self.knobs.turned {
            overrides.put(knob.key, text, origin.clone())?;
        }
        for assignment in &self.set {
            overrides.set(assignment)?;
        }
        Ok(overrides)
    }

    /// The run: CONFIG, or else `fallback`, or else defaults alone, under the overrides.
    pub fn resolve(&self, fallback: Option<RunFile>) -> Result<Resolved> {
        self.resolve_for(fallback, None)
    }

    /// The same for the run folder that is `resumed`.
    fn resolve_for(&self, fallback: Option<RunFile>, resumed: Option<&Path>) -> Result<Resolved> {
        let mut file = match &self.config {
            Some(place) => Some(RunFile::find(place)?),
            None => fallback,
        };
        let overrides = self.overrides()?;
        let mut resolved = load(file.as_ref(), &overrides)?;
        if file.is_none() && is_quickstart(&resolved.plan) {
            // Its teacher is named, and no data: the rest is the quickstart's as well.
            file = RunFile::embedded(QUICKSTART);
            resolved = load(file.as_ref(), &overrides)?;
        }
        if !is_quickstart(&resolved.plan)
            && let Some(teacher) = &mut resolved.plan.teacher
        {
            *teacher = kept(teacher).into_owned();
        }
        aside(move || {
            if let Some(file) = &file {
                find_again(&mut resolved, file, resumed)?;
            }
            fit_context(&mut resolved)?;
            Ok(resolved)
        })
    }
}

/// What describes a run and where it goes.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// The run.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Run folder to write: config.toml, metrics.jsonl, checkpoints/, model/
    #[arg(long, value_name = "RUN")]
    pub out: Option<PathBuf>,
    /// Continue from the newest checkpoint of the run folder; `--resume=auto` begins the run where
    /// there is none, for schedulers that start a job again
    #[arg(
        long,
        value_enum,
        value_name = "auto",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "must",
        hide_possible_values = true
    )]
    pub resume: Option<Resume>,
}

/// What `--resume` does where no run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Resume {
    /// Errs.
    Must,
    /// Begins one.
    Auto,
}

impl RunArgs {
    /// The run: CONFIG; else, with `--resume`, the run folder's own config; else `fallback`; else
    /// defaults.
    pub fn resolve(&self, verb: &str, fallback: Option<RunFile>) -> Result<Resolved> {
        if self.config.config.as_deref() == Some("auto") && self.resume == Some(Resume::Must) {
            return Err(Error::usage("write --resume=auto, with an equals sign"));
        }
        let own = match &self.out {
            Some(out)
                if self.resume.is_some()
                    && self.config.config.is_none()
                    && out.join("config.toml").is_file() =>
            {
                Some(RunFile::find(&out.to_string_lossy())?)
            }
            _ => None,
        };
        let resumed = self.out.as_deref().filter(|_| self.resume.is_some());
        if let (Some(out), None, false) =
            (resumed, &self.config.config, self.config.overrides()?.names("data.dir"))
        {
            check_config(verb, out)?;
        }
        self.config.resolve_for(own.or(fallback), resumed)
    }
}
