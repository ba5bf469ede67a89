//! What the shell hands over, made ready for clap: empty variables are unset ones, and a value that
//! is due may begin with a dash.

use super::Cli;
use super::help::laid_out;
use super::mistakes::of_command_line;
use crate::report::text::{PLAIN_WIDTH, Screen, shell_word};
use crate::world::Launched;
use clap::{Arg, Command, CommandFactory, FromArgMatches};
use std::ffi::OsString;
use std::path::Path;

impl Cli {
    /// The command line of this process; ends it where that asks for help.
    pub fn of_process() -> crate::error::Result<Self> {
        let width = Screen::of_stdout().width.unwrap_or(PLAIN_WIDTH);
        let mut command = laid_out(without_empty_variables(Self::command()), width);
        let arguments = joined(&command, std::env::args_os());
        let found = (command.try_get_matches_from_mut(arguments.clone()))
            .and_then(|mut matches| Self::from_arg_matches_mut(&mut matches));
        found.or_else(|e| match of_command_line(&e, &command, &arguments) {
            Some(error) => Err(error),
            // Of several processes one shows help for all.
            None if Launched::here().is_some_and(|launched| launched.rank > 0) => {
                std::process::exit(e.exit_code())
            }
            None => e.exit(),
        })
    }
}

/// Whether the command of this process, run again, reads the same: none of its arguments is a pipe
/// or a device, which the shell's line around it fed.
pub(super) fn repeatable() -> bool {
    std::env::args_os().skip(1).all(|argument| {
        let path = Path::new(&argument);
        path.metadata().map_or(true, |found| found.is_file() || found.is_dir())
    })
}

/// The command of this process, for a shell to run again, with `more` behind its verb.
pub(super) fn again(more: &[String]) -> String {
    let arguments = std::env::args_os().skip(1).map(|a| shell_word(&a.to_string_lossy()));
    with_more(&Cli::command(), arguments.collect(), more)
}

fn with_more(command: &Command, arguments: Vec<String>, more: &[String]) -> String {
    let mut words = vec!["eslm-kd".to_string()];
    let mut more = Some(more);
    for argument in arguments {
        let verb = command.find_subcommand(&argument).is_some();
        words.push(argument);
        words.extend_from_slice(more.take_if(|_| verb).unwrap_or_default());
    }
    words.join(" ")
}

/// A variable that is set and empty, as compose files and CI leave it, says nothing.
fn without_empty_variables(command: Command) -> Command {
    let unset = |arg: Arg| match arg.get_env() {
        Some(name) if std::env::var_os(name).is_some_and(|value| value.is_empty()) => {
            arg.env(None::<&str>)
        }
        _ => arg,
    };
    command.mut_args(unset).mut_subcommands(without_empty_variables)
}

/// `--flag -value` as `--flag=-value`, where the flag takes one value and the next argument is no
/// flag of its own.
fn joined(command: &Command, arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut command = command;
    let mut ready: Vec<OsString> = Vec::new();
    let mut arguments = arguments.into_iter().peekable();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            ready.push(argument);
            break;
        }
        if let Some(verb) = argument.to_str().and_then(|name| command.find_subcommand(name)) {
            command = verb;
        }
        let due = argument.to_str().is_some_and(|name| takes_one_value(command, name));
        let dashed = |next: &OsString| {
            next.to_str().is_some_and(|text| text.starts_with('-') && !is_flag(command, text))
        };
        let Some(value) = arguments.next_if(|next| due && dashed(next)) else {
            ready.push(argument);
            continue;
        };
        let mut whole = argument;
        whole.push("=");
        whole.push(value);
        ready.push(whole);
    }
    ready.extend(arguments);
    ready
}

fn takes_one_value(command: &Command, name: &str) -> bool {
    let long = name.strip_prefix("--").filter(|long| !long.is_empty());
    command.get_arguments().any(|arg| {
        long.is_some()
            && arg.get_long() == long
            && arg.get_action().takes_values()
            && arg.get_num_args().is_none_or(|n| n.max_values() == 1)
    })
}

fn is_flag(command: &Command, text: &str) -> bool {
    let mut letters = text.chars().skip(1);
    let short = letters.next().filter(|_| letters.next().is_none());
    let long = text.strip_prefix("--").map(|long| long.split('=').next().unwrap_or(long));
    command.get_arguments().any(|arg| {
        long.is_some_and(|long| arg.get_long() == Some(long))
            || short.is_some() && arg.get_short() == short
    }) || text == "--"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(arguments: &[&str]) -> Vec<String> {
        let mut command = Cli::command();
        command.build();
        let all = joined(&command, arguments.iter().map(OsString::from));
        all.into_iter().map(|a| a.into_string().unwrap()).collect()
    }

    #[test]
    fn a_command_is_said_again_with_what_continues_it() {
        let again = |arguments: &[&str], more: &[&str]| {
            let owned = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
            with_more(&Cli::command(), owned(arguments), &owned(more))
        };
        assert_eq!(
            again(&["-v", "distill", "--steps", "7"], &["--resume", "--out", "'my run'"]),
            "eslm-kd -v distill --resume --out 'my run' --steps 7"
        );
        assert_eq!(again(&["compare", "a", "compare"], &["-x"]), "eslm-kd compare -x a compare");
        assert_eq!(again(&["compare", "a:x.toml"], &[]), "eslm-kd compare a:x.toml");
    }

    #[test]
    fn a_value_that_is_due_may_begin_with_a_dash() {
        for value in ["- one", "-5 degrees", "--- title", "-quiet is no flag", "--nosuchflag"] {
            assert_eq!(
                ready(&["eslm-kd", "generate", "m", "--prompt", value, "-q"]),
                ["eslm-kd", "generate", "m", &format!("--prompt={value}"), "-q"]
            );
        }
        for untouched in [
            &["eslm-kd", "generate", "m", "--prompt", "--temperature", "0"][..],
            &["eslm-kd", "generate", "m", "--prompt", "--temperature=0"],
            &["eslm-kd", "generate", "m", "--prompt", "-q"],
            &["eslm-kd", "prepare", "--input", "a", "-x", "--out", "b"],
            &["eslm-kd", "generate", "m", "--json", "-x"],
            &["eslm-kd", "-q", "generate", "--", "--prompt", "-x"],
        ] {
            assert_eq!(ready(untouched), untouched);
        }
    }
}
