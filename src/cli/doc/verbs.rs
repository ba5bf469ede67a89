//! The page of verbs, from clap.

use super::super::Cli;
use clap::{Arg, Command, CommandFactory};

pub(super) fn page() -> String {
    let mut command = Cli::command().disable_help_subcommand(true).disable_help_flag(true);
    command.build();
    let mut text = String::from(
        "# Verbs

What `eslm-kd VERB --help` says, on one page. Results go to stdout, everything else to stderr. MODEL is a run folder (its
final model, else its newest checkpoint), `RUN/last` or `RUN/best`, a checkpoint, a Hugging Face folder, a
[preset](presets.md) or a Hub id with or without `@REVISION`; what exists on disk wins over a name. CONFIG is a TOML file, a
run folder, or the name of a [built-in run file](run-files.md).
",
    );
    text += "\n## Options of every verb\n\n";
    text += &table(command.get_arguments().filter(|arg| arg.is_global_set()));
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        text += &section(verb, verb.get_name(), 2);
    }
    text
}

fn section(verb: &Command, name: &str, level: usize) -> String {
    let about = verb.get_long_about().or(verb.get_about()).map(ToString::to_string);
    let mut text =
        format!("\n{} {name}\n\n{}\n", "#".repeat(level), sentence(&about.unwrap_or_default()));
    let own = |arg: &&Arg| !arg.is_global_set() && !arg.is_hide_set() && arg.get_id() != "help";
    if verb.get_arguments().any(|arg| own(&arg)) {
        text += "\n";
        text += &table(verb.get_arguments().filter(own));
    }
    if let Some(examples) = verb.get_after_help() {
        text += &format!("\n```text\n{}\n```\n", examples.to_string().trim_end());
    }
    for inner in verb.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        text += &section(inner, &format!("{name} {}", inner.get_name()), level + 1);
    }
    text
}

fn table<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    let mut text = String::from("| argument | meaning | default |\n|---|---|---|\n");
    for arg in arguments {
        let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string);
        let values = arg.get_possible_values();
        let mut meaning = sentence(&help.unwrap_or_default());
        if arg.get_action().takes_values() && !values.is_empty() && values.len() < 9 {
            let words: Vec<String> = values
                .iter()
                .filter(|value| !value.is_hide_set())
                .map(|value| format!("`{}`", value.get_name()))
                .collect();
            meaning += &format!(" One of {}.", words.join(", "));
        }
        if let Some(variable) = arg.get_env() {
            meaning += &format!(" Variable: `{}`.", variable.to_string_lossy());
        }
        let default: Vec<String> = (arg.get_default_values().iter())
            .filter(|_| arg.get_action().takes_values())
            .map(|value| format!("`{}`", value.to_string_lossy()))
            .collect();
        let cells = [format!("`{}`", usage(arg)), meaning, default.join(" ")];
        let cells = cells.map(|cell| cell.replace('|', "\\|"));
        text += &format!("| {} |\n", cells.join(" | "));
    }
    text
}

/// `-q, --quiet`, `--out DIR`, `[CONFIG]`.
fn usage(arg: &Arg) -> String {
    let names: Vec<&str> =
        arg.get_value_names().into_iter().flatten().map(|n| n.as_str()).collect();
    let many = arg.get_num_args().is_some_and(|n| n.max_values() > names.len().max(1));
    let values = names.join(" ") + if many { "..." } else { "" };
    let Some(long) = arg.get_long() else {
        return if arg.is_required_set() { values } else { format!("[{values}]") };
    };
    let short = arg.get_short().map(|c| format!("-{c}, ")).unwrap_or_default();
    let optional = arg.get_num_args().is_some_and(|n| n.min_values() == 0);
    match (arg.get_action().takes_values(), optional) {
        (false, _) => format!("{short}--{long}"),
        (true, true) => format!("{short}--{long}[={values}]"),
        (true, false) => format!("{short}--{long} {values}"),
    }
}

/// With a full stop, on one line.
fn sentence(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() || text.ends_with('.') { text } else { text + "." }
}
