//! What clap refuses, in one line like every other error: what was expected, what was found, what
//! to do. Flags and verbs of other programs are answered with ours.

use super::help::first_example;
use crate::config::keys::KEYS;
use crate::error::Error;
use crate::report::text::shell_word;
use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::error::Error as _;
use std::ffi::OsString;

/// Flags of other programs: the verbs that they are asked of (none: all), the names, what to do.
const FLAGS: &[(&[&str], &[&str], &str)] = &[
    (
        &["pretrain", "distill", "plan"],
        &["model", "model-name", "model-name-or-path"],
        "the model that is trained is --student NAME, the one that it learns from --teacher NAME",
    ),
    (&MODEL, &["model", "checkpoint", "ckpt", "run"], "MODEL stands without a flag"),
    (&["export"], &["model", "checkpoint", "ckpt", "run"], "RUN stands without a flag"),
    (&RUNS, &["config", "config-file"], "CONFIG stands without a flag"),
    (
        &RUNS,
        &["epochs", "num-epochs", "num-train-epochs", "epoch", "max-steps", "iters", "max-iters"],
        "a run is so many steps long: --steps N",
    ),
    (
        &RUNS,
        &["batch-size", "batch", "bs", "per-device-train-batch-size", "train-batch-size"],
        "the sequences of a step are --set data.rows=N, those computed at once --micro-rows N",
    ),
    (&RUNS, &["learning-rate", "max-lr"], "the learning rate is --lr RATE"),
    (
        &RUNS,
        &["dataset", "train", "train-file", "input", "text", "data-dir", "data-path"],
        "text is made ready by `eslm-kd prepare`, whose folder is --data DIR",
    ),
    (
        &RUNS,
        &["valid", "validation", "val-data", "valid-file", "tokenizer"],
        "it comes with the data folder: give it to `eslm-kd prepare`",
    ),
    (&RUNS, &["gpu", "gpus", "cuda"], "a GPU is --device cuda"),
    (&MODEL, &["gpu", "gpus", "cuda"], "a GPU is --device cuda"),
    (&[], &["cpu"], "the CPU is --device cpu, where a verb takes it"),
    (
        &RUNS,
        &["fp16", "bf16", "half", "amp", "mixed-precision", "precision"],
        "half precision is --set machine.dtype=bf16",
    ),
    (
        &RUNS,
        &["seq-len", "seq-length", "max-seq-length", "block-size", "max-length", "context-length"],
        "the tokens of a sequence are --set data.context=N",
    ),
    (
        &RUNS,
        &["temp", "tau", "kd-temperature"],
        "the temperature is --set objective.temperature=TAU",
    ),
    (
        &RUNS,
        &["gradient-accumulation-steps", "grad-accum", "accumulation-steps"],
        "a step's --set data.rows=N sequences are computed --micro-rows N at a time",
    ),
    (&RUNS, &["num-workers", "workers", "n-jobs"], "threads are --set machine.threads=N"),
    (&RUNS, &["save-steps", "save-every"], "checkpoints are written --set checkpoint.every=N"),
    (&RUNS, &["eval-steps", "eval-every"], "the model is validated --set eval.every=N"),
    (&RUNS, &["logging-steps", "log-every", "log-interval"], "metrics are --set log.every=N"),
    (&RUNS, &["warmup-steps"], "the warmup is --set schedule.warmup=N"),
    (&RUNS, &["wd"], "weight decay is --set optim.weight_decay=X"),
    (
        &RUNS,
        &["resume-from", "resume-from-checkpoint", "checkpoint", "continue", "load"],
        "a run goes on from its newest checkpoint with --resume --out RUN",
    ),
    (&RUNS, &["dry-run"], "`eslm-kd plan` says what a run would cost, and trains nothing"),
    (
        &["generate"],
        &["max-new-tokens", "n-predict", "num-tokens", "tokens", "length", "max-length", "n"],
        "the most tokens to add are --max-tokens N",
    ),
    (&["generate"], &["text", "input", "p"], "the text to continue is --prompt TEXT"),
    (&["generate"], &["temp", "t"], "the temperature is --temperature T"),
    (&["eval"], &["text", "input", "file", "dataset"], "what is measured on is --data DIR|FILE"),
    (&["inspect"], &["input", "file", "data", "prompt"], "the text to score is --text FILE"),
    (
        &["prepare"],
        &["val-split", "valid-split", "validation-split", "test-size", "split", "valid-share"],
        "a share for validation is --valid-fraction F",
    ),
    (
        &["prepare", "tokenizer"],
        &["field", "column", "text-column", "text-key"],
        "it is --text-field NAME",
    ),
    (
        &["prepare", "tokenizer"],
        &["data", "file", "files", "text", "dataset"],
        "text is --input FILE",
    ),
    (&["tokenizer"], &["vocab", "size", "num-tokens"], "the size is --vocab-size N"),
    (&["compare"], &["runs", "config", "arms"], "arms stand without a flag"),
    (&["compare"], &["seed"], "arms are trained with the seeds 1 to N: --seeds N"),
    (
        &[],
        &["output", "output-dir", "save", "save-dir", "outdir", "output-file", "o"],
        "results go to --out PATH",
    ),
    (
        &[],
        &["force", "overwrite", "f", "y", "yes"],
        "nothing of another kind is ever replaced: choose another --out",
    ),
    (&[], &["debug", "log-level", "loglevel"], "more is said with --verbose"),
    (
        &[],
        &["no-download", "local-files-only", "no-network"],
        "the network is forbidden by --offline",
    ),
];
const RUNS: [&str; 4] = ["pretrain", "distill", "plan", "compare"];
const MODEL: [&str; 3] = ["generate", "eval", "inspect"];

/// Verbs of other programs.
const VERBS: &[(&[&str], &str)] = &[
    (
        &["train", "fit", "run", "finetune", "fine-tune"],
        "training is `eslm-kd pretrain`, or `eslm-kd distill` with a teacher",
    ),
    (&["evaluate", "test", "measure", "perplexity"], "measuring is `eslm-kd eval`"),
    (
        &["sample", "chat", "complete", "predict", "infer", "prompt"],
        "text comes from `eslm-kd generate`",
    ),
    (&["pull", "fetch", "get"], "models are fetched by `eslm-kd download`"),
    (&["tokenize", "preprocess", "data", "encode"], "text is made ready by `eslm-kd prepare`"),
    (&["convert", "save"], "models are written by `eslm-kd export`"),
    (&["list", "ls", "verify", "prune", "models"], "models that were fetched: `eslm-kd cache ls`"),
    (
        &["resume", "continue"],
        "a run goes on with `eslm-kd pretrain --resume --out RUN`, or distill",
    ),
    (&["estimate", "cost", "dry-run"], "what a run would cost says `eslm-kd plan`"),
    (&["benchmark", "sweep"], "several methods are compared by `eslm-kd compare`"),
];

/// The error of a command line, if it is one; help and version are none.
pub(super) fn of_command_line(
    e: &clap::Error,
    command: &Command,
    arguments: &[OsString],
) -> Option<Error> {
    let verb = Verb::of(command, arguments);
    let found = |kind| match e.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(" and "),
        Some(ContextValue::Number(n)) => n.to_string(),
        _ => String::new(),
    };
    let flag = found(ContextKind::InvalidArg);
    // Of `--resume[=<auto>]` the flag alone.
    let ends: &[char] = if flag.starts_with('-') { &[' ', '[', '='] } else { &[' '] };
    let short = flag.split(ends).next().unwrap_or_default().trim_matches(['<', '>']);
    let value = found(ContextKind::InvalidValue);
    let what = match e.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => return None,
        ErrorKind::UnknownArgument if flag.starts_with('-') => {
            let advice = verb.unknown_flag(&flag, &found(ContextKind::SuggestedArg));
            verb.placed(advice, &flag, arguments)
        }
        ErrorKind::UnknownArgument | ErrorKind::TooManyValues => {
            verb.one_too_many(&flag, arguments)
        }
        ErrorKind::InvalidSubcommand => verb.unknown_verb(&found(ContextKind::InvalidSubcommand)),
        ErrorKind::MissingSubcommand => format!("expected a verb behind `{}`", verb.path),
        ErrorKind::InvalidValue if value.is_empty() => {
            let expected = flag.split_once(' ').map_or("a value", |(_, name)| name);
            format!("{short}: expected {}, found nothing", expected.replace(['<', '>'], ""))
        }
        ErrorKind::InvalidValue => {
            let near = match found(ContextKind::SuggestedValue) {
                near if near.is_empty() => String::new(),
                near => format!("; did you mean {near}?"),
            };
            let words = found(ContextKind::ValidValue).replace(" and ", ", ");
            format!("{short}: expected one of {words}, found \"{value}\"{near}")
        }
        ErrorKind::ValueValidation => {
            let why = e.source().map(ToString::to_string).unwrap_or_default();
            let found =
                if why.contains("found") { String::new() } else { format!(", found \"{value}\"") };
            format!("{short}: {why}{found}")
        }
        ErrorKind::MissingRequiredArgument => {
            let verb_name = &verb.path;
            let needed = flag.replace(['<', '>'], "");
            let example = verb.example();
            let report = match verb.name == "compare" && needed.contains("CONFIG") {
                true => "; a comparison that is there is reported on with --report-only",
                false => "",
            };
            format!("{verb_name} needs {needed}{example}{report}")
        }
        ErrorKind::ArgumentConflict if found(ContextKind::PriorArg) == flag => {
            format!("{short}: expected once, found twice")
        }
        ErrorKind::ArgumentConflict => {
            // The brackets of what may be left away are those of a usage line.
            let named = |text: String| match text.strip_prefix('[') {
                Some(inner) => inner.replacen("]...", "...", 1).trim_end_matches(']').to_string(),
                None => text,
            };
            let [this, other] = [flag, found(ContextKind::PriorArg)].map(named);
            format!("{this} and {other} exclude each other; give one of them")
                .replace(['<', '>'], "")
        }
        ErrorKind::InvalidUtf8 => "expected arguments in UTF-8".to_string(),
        // What else there is ends in clap's own first line.
        _ => {
            let text = e.to_string();
            let line = text.lines().next().unwrap_or_default();
            line.strip_prefix("error: ").unwrap_or(line).to_string()
        }
    };
    let end = if what.ends_with(['?', '!']) { " See" } else { "; see" };
    Some(Error::usage(format!("{what}{end} `{} --help`", verb.path)))
}

/// The verb that the arguments get to.
struct Verb<'a> {
    root: &'a Command,
    command: &'a Command,
    /// `eslm-kd cache ls`.
    path: String,
    /// `cache`; empty before a verb.
    name: &'a str,
}

impl<'a> Verb<'a> {
    fn of(root: &'a Command, arguments: &[OsString]) -> Self {
        let mut verb = Self { root, command: root, path: root.get_name().to_string(), name: "" };
        for argument in arguments.iter().skip(1).filter_map(|a| a.to_str()) {
            let Some(inner) = verb.command.find_subcommand(argument) else { continue };
            if verb.name.is_empty() {
                verb.name = inner.get_name();
            }
            verb.path = format!("{} {}", verb.path, inner.get_name());
            verb.command = inner;
        }
        verb
    }

    fn has(&self, long: &str) -> bool {
        has(self.command, long)
    }

    /// `: for example, eslm-kd eval runs/first --data data/mine`.
    fn example(&self) -> String {
        let help = self.command.get_after_help().map(ToString::to_string);
        match help.as_deref().and_then(|help| first_example(help, &self.path)) {
            Some(example) => format!(", as in `{example}`"),
            None => String::new(),
        }
    }

    fn unknown_flag(&self, flag: &str, near: &str) -> String {
        let name = flag.trim_start_matches('-').split('=').next().unwrap_or_default();
        let name = name.to_lowercase().replace('_', "-");
        let start = format!("{} has no {flag}", self.path);
        if self.has(&name) {
            return format!("{start}; did you mean --{name}?");
        }
        if let Some((_, _, advice)) = FLAGS.iter().find(|(verbs, names, _)| {
            (verbs.is_empty() || verbs.contains(&self.name)) && names.contains(&name.as_str())
        }) {
            return format!("{start}; {advice}");
        }
        let name = name.as_str();
        if self.has("set") {
            let last = |key: &str| key.rsplit('.').next().unwrap_or(key).replace('_', "-");
            let mut fitting =
                KEYS.iter().filter(|key| last(key.name) == name.rsplit('.').next().unwrap_or(name));
            if let (Some(key), None) = (fitting.next(), fitting.next()) {
                return format!("{start}; that key is set by --set {}=VALUE", key.name);
            }
        }
        if !near.is_empty() {
            return format!("{start}; did you mean {near}?");
        }
        if let Some(inner) = self.command.get_subcommands().find(|c| has(c, name)) {
            let path = &self.path;
            return format!("{start}; a verb comes first: `{path} {}`", inner.get_name());
        }
        let owner = self.root.get_subcommands().find(|c| !c.is_hide_set() && has(c, name));
        match owner {
            Some(verb) if !self.name.is_empty() => {
                format!("{start}; it is a flag of `eslm-kd {}`", verb.get_name())
            }
            _ if self.name.is_empty() => format!("{start}; a verb comes first: {}", self.verbs()),
            _ => start,
        }
    }

    /// Advice about what stands without a flag, with the command that does so.
    fn placed(&self, advice: String, flag: &str, arguments: &[OsString]) -> String {
        let Some(name) =
            advice.strip_suffix(" stands without a flag").and_then(|a| a.rsplit(' ').next())
        else {
            return advice;
        };
        let mut behind = arguments.iter().filter_map(|a| a.to_str()).skip_while(|a| {
            a.split_once('=').map_or(*a, |(flag, _)| flag) != flag.split('=').next().unwrap_or(flag)
        });
        let value = match behind.next().and_then(|a| a.split_once('=')) {
            Some((_, value)) => Some(value),
            None => behind.next().filter(|value| !value.starts_with('-')),
        };
        let value = value.map_or(name.to_string(), shell_word);
        format!("{advice}: `{} {value}`", self.path)
    }

    /// A value where none is expected.
    fn one_too_many(&self, value: &str, arguments: &[OsString]) -> String {
        let taken: Vec<String> = self
            .command
            .get_positionals()
            .filter_map(|a| Some(a.get_value_names()?.join(" ")))
            .collect();
        let takes = match taken.first() {
            None => format!("{} takes flags only", self.path),
            Some(name) => format!("{} takes one {name} and flags", self.path),
        };
        let quoted = shell_word(value);
        let meant: &[(&str, &str)] = match self.name {
            "generate" => &[("a text to continue is", "--prompt")],
            "eval" => &[("what is measured on is", "--data")],
            "inspect" => &[("the text to score is", "--text")],
            "export" => &[("what is written is", "--out")],
            "prepare" | "tokenizer" => &[("text is", "--input")],
            "pretrain" | "distill" => &[("data are", "--data"), ("a run folder is", "--out")],
            _ => &[],
        };
        // Who has named one means something else.
        let given = |flag: &str| {
            let mut words = arguments.iter().filter_map(|a| a.to_str());
            words.any(|word| word.split('=').next() == Some(flag))
        };
        let advice = match meant.iter().find(|(_, flag)| !given(flag)) {
            Some((what, flag)) => format!("; {what} {flag} {quoted}"),
            None => String::new(),
        };
        format!("{takes}, found \"{value}\"{advice}")
    }

    fn verbs(&self) -> String {
        let visible = self.command.get_subcommands().filter(|c| !c.is_hide_set());
        let names: Vec<&str> = visible.map(Command::get_name).filter(|n| *n != "help").collect();
        names.join(", ")
    }

    fn unknown_verb(&self, found: &str) -> String {
        let scored = self.command.get_subcommands().map(Command::get_name);
        let scored = scored.map(|name| (strsim::jaro_winkler(name, found), name));
        let near = scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0));
        let near = near.map_or("", |(_, name)| name);
        let start = format!("{} has no verb \"{found}\"", self.path);
        let foreign = VERBS.iter().find(|(names, _)| {
            self.name.is_empty() && names.contains(&found.to_lowercase().as_str())
        });
        match (foreign, near) {
            (Some((_, advice)), _) => format!("{start}; {advice}"),
            (None, "") => format!("{start}; there are {}", self.verbs()),
            (None, near) => format!("{start}; did you mean {near}?"),
        }
    }
}

fn has(command: &Command, long: &str) -> bool {
    command.get_arguments().any(|arg| arg.get_long() == Some(long))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;

    #[test]
    fn advice_is_of_verbs_and_keys_that_there_are_and_not_of_flags_that_exist() {
        let mut command = Cli::command();
        command.build();
        for (verbs, names, advice) in FLAGS {
            for verb in *verbs {
                let verb = command.find_subcommand(verb).expect("a verb");
                for name in *names {
                    assert!(!has(verb, name), "{} has --{name}", verb.get_name());
                }
            }
            for word in advice.split([' ', ',', '=', '`']) {
                if let Some(long) = word.strip_prefix("--") {
                    let known =
                        |c: &Command| has(c, long) || c.get_subcommands().any(|c| has(c, long));
                    assert!(known(&command) || command.get_subcommands().any(known), "{advice}");
                }
                if word.contains('.') {
                    assert!(crate::config::keys::find(word).is_some(), "{advice}");
                }
            }
        }
        for (names, advice) in VERBS {
            assert!(names.iter().all(|name| command.find_subcommand(name).is_none()), "{advice}");
            let verb = advice.split("`eslm-kd ").nth(1).unwrap().split([' ', '`']).next().unwrap();
            assert!(command.find_subcommand(verb).is_some(), "{advice}");
        }
    }
}
