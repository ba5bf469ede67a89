//! `completions`: what a shell asks to complete the command line.

use super::{Cli, KNOBS, NAME, Printer};
use crate::config::keys;
use crate::error::Result;
use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, CommandFactory};
use clap_complete::{Shell, generate};

/// Print the completions of a shell
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

const EXAMPLES: &str = "\
Examples:
  source <(eslm-kd completions bash)                this session
  eslm-kd completions bash > ~/.local/share/bash-completion/completions/eslm-kd
  eslm-kd completions zsh > ~/.zfunc/_eslm-kd       with ~/.zfunc in fpath
  eslm-kd completions fish > ~/.config/fish/completions/eslm-kd.fish";

/// Prints them.
pub fn run(args: &CompletionsArgs, ui: &Printer) -> Result<()> {
    let text = text(args.shell);
    ui.document(&text)
}

/// The script of a shell.
pub(super) fn text(shell: Shell) -> String {
    let whole = Cli::command();
    let shown = whole.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned();
    let mut command = Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .args(whole.get_arguments().cloned())
        .subcommands(shown.map(with_words));
    // clap_complete 4.6.11 writes a script for bash that finds no verb of a program with a dash in
    // its name: made for another name, and said to be ours.
    const DASHLESS: &str = "eslm_kd";
    let name = if shell == Shell::Bash { DASHLESS } else { NAME };
    let mut bytes = Vec::new();
    generate(shell, &mut command, name, &mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.replace(&format!(" -o default {DASHLESS}\n"), &format!(" -o default {NAME}\n"))
}

/// The words that keys take, which the config checks and clap need not know elsewhere.
fn with_words(command: Command) -> Command {
    let told = |arg: Arg| {
        let knob = KNOBS.iter().find(|knob| arg.get_long() == Some(knob.flag));
        let words = knob.and_then(|k| keys::find(k.key)).map_or(&[][..], |key| key.kind.words());
        match words.is_empty() || !arg.get_possible_values().is_empty() {
            true => arg,
            false => arg.value_parser(PossibleValuesParser::new(words)),
        }
    };
    command.mut_args(told).mut_subcommands(with_words)
}
