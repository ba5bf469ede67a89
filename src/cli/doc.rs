//! `doc`: the pages of `docs/reference` that are made from the code. Hidden: for those who write
//! the documentation.

mod presets;
mod run_files;
mod verbs;

use super::Printer;
use super::knobs::KNOBS;
use crate::config;
use crate::error::Result;

/// Print a page of docs/reference that is made from the code, as Markdown
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DocArgs {
    /// Which page: docs/reference/WHAT.md
    #[arg(value_name = "WHAT")]
    pub what: What,
}

/// The pages that there are.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum What {
    /// Every key of a run file.
    Keys,
    /// Every key of `metrics.jsonl`.
    Metrics,
    /// Every verb with its arguments.
    Verbs,
    /// Every built-in run file.
    RunFiles,
    /// Every preset of a teacher or student.
    Presets,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd doc keys > docs/reference/keys.md";

/// Prints it.
pub fn run(args: &DocArgs, ui: &Printer) -> Result<()> {
    let (name, body) = match args.what {
        What::Keys => ("keys", keys()),
        What::Metrics => ("metrics", metrics()),
        What::Verbs => ("verbs", verbs::page()),
        What::RunFiles => ("run-files", run_files::page()?),
        What::Presets => ("presets", presets::page()),
    };
    let text =
        format!("<!-- Made by `eslm-kd doc {name}`; do not edit. -->\n{}\n", body.trim_end());
    ui.document(&text)
}

fn keys() -> String {
    let mut text = String::from(
        "# Keys of a run file

A run file is TOML. It needs only the keys that differ from the defaults below. The environment, flags and
`--set KEY=VALUE` win over it, in this order ([which setting wins](environment.md#which-setting-wins)).
`eslm-kd plan CONFIG` shows every value and where it comes from. The last column says whether a resumed run must keep
the value or is free to change it. What the keys of `[select]` do is explained in
[token selection](../concepts/selection.md), those of `[objective]` in [distillation](../concepts/distillation.md), and
`machine.backward`, `machine.rho` and `machine.added_variance` in [backward modes](../concepts/backward-modes.md).

",
    );
    text += &config::reference();
    text += "\n## Flags and variables of keys\n\n| flag | variable | key |\n|---|---|---|\n";
    for knob in KNOBS {
        text += &format!("| `--{}` | `{}` | `{}` |\n", knob.flag, knob.env, knob.key);
    }
    text
}

fn metrics() -> String {
    format!(
        "# Metrics

The lines of `metrics.jsonl` in a run folder, one JSON object each. Losses are nats per token. `tokens`, `flops` and
`seconds` are totals since the start of the run, interruptions left out. What does not exist or is not finite is `null`.

{}",
        crate::train::events::reference()
    )
}

/// A number as people write it: 4,291,584.
fn grouped(n: usize) -> String {
    crate::report::text::count(n as u64)
}
