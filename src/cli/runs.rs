//! `runs`, `runs show`: what lies in run folders. Nothing is touched.

use super::Printer;
use crate::config::Plan;
use crate::error::Result;
use crate::report::text::{PLAIN_WIDTH, Screen, Table, bytes, count, flops, seconds};
use crate::runs::{Row, Shown, State, defaults, rows, show};
use serde_json::json;
use std::path::PathBuf;

/// List run folders: state, step, losses, age; `runs show RUN` tells of one
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct RunsArgs {
    /// One run instead of a list
    #[command(subcommand)]
    pub command: Option<RunsCommand>,
    /// Run folders, or folders that hold some; without any, `runs` and the working folder itself
    #[arg(value_name = "FOLDER")]
    pub folders: Vec<PathBuf>,
}

/// What the verb can do besides listing.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum RunsCommand {
    /// Tell what one run is: models, data, how far, losses, checkpoints, and the command that goes
    /// on with it.
    #[command(after_help = EXAMPLES)]
    Show(RunsShowArgs),
}

/// Arguments of `runs show`.
#[derive(Debug, Clone, clap::Args)]
pub struct RunsShowArgs {
    /// Run folder
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd runs
  eslm-kd runs compare/first ~/other/runs           also those inside a comparison
  eslm-kd runs show runs/first
  eslm-kd runs --json | jq '.runs[] | select(.state == \"cut-off\") | .run'

States: running (a process of this machine holds the folder), finished (its model
is written), stopped (all it did is in a checkpoint), cut off (it failed or was
killed: steps after its last checkpoint are lost), damaged. Looking writes and
locks nothing.";

/// Runs the verb.
pub fn run(args: &RunsArgs, ui: &Printer) -> Result<()> {
    if let Some(RunsCommand::Show(args)) = &args.command {
        let shown = show(&args.run)?;
        return ui.result(&shown, |screen| told(&shown, screen));
    }
    let folders = if args.folders.is_empty() { defaults() } else { args.folders.clone() };
    let found = rows(&folders)?;
    ui.result(&json!({ "runs": found }), |screen| list(&found, screen))
}

fn list(rows: &[Row], screen: &Screen) -> String {
    if rows.is_empty() {
        return "no runs found; name the folders that hold some: `eslm-kd runs FOLDER...`".into();
    }
    let names: Vec<String> = rows.iter().map(|row| row.run.display().to_string()).collect();
    let width = |text: &str| text.chars().count();
    let bare = table(rows, |_| String::new()).to_string();
    let others = bare.lines().map(width).max().unwrap_or(0) - "run".len();
    let most = screen.width.unwrap_or(PLAIN_WIDTH).checked_sub(others);
    // A name that is too long has a line of its own, whole, so that it can be pasted; where there
    // is not even room for the other columns, the table is broken into two.
    let short = |i: usize| most.is_none_or(|most| width(&names[i]) <= most);
    let name = |i: usize| if short(i) { names[i].clone() } else { String::new() };
    let text = table(rows, name).on(screen);
    let mut lines: Vec<String> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        lines.extend(
            i.checked_sub(1).filter(|i| most.is_some() && !short(*i)).map(|i| names[i].clone()),
        );
        lines.push(line.to_string());
    }
    // The message names the place.
    lines.extend(rows.iter().filter_map(|row| Some(format!("damaged: {}", row.damage.as_ref()?))));
    if rows.iter().any(|row| row.state == State::CutOff) {
        lines.push("cut off: failed or killed; `eslm-kd runs show RUN` says how to go on".into());
    }
    lines.join("\n")
}

fn table(rows: &[Row], name: impl Fn(usize) -> String) -> Table {
    let mut table = Table::new(["run", "state", "step", "loss", "valid", "best", "age"]);
    for (i, row) in rows.iter().enumerate() {
        table.row([
            name(i),
            row.state.name().to_string(),
            row.steps
                .map_or_else(|| count(row.step), |n| format!("{}/{}", count(row.step), count(n))),
            number(row.loss),
            number(row.val_loss),
            number(row.best_val_loss),
            row.age.map_or_else(dash, age),
        ]);
    }
    table
}

fn dash() -> String {
    "-".into()
}

/// Five characters where a loss is sane.
fn number(x: Option<f64>) -> String {
    match x {
        None => dash(),
        Some(x) if x.abs() < 10.0 => format!("{x:.3}"),
        Some(x) if x.abs() < 1e4 => format!("{x:.1}"),
        Some(x) => format!("{x:.0e}"),
    }
}

/// The largest unit alone.
fn age(seconds: f64) -> String {
    match seconds as u64 {
        s if s < 60 => format!("{s} s"),
        s if s < 3600 => format!("{} min", s / 60),
        s if s < 48 * 3600 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

fn told(shown: &Shown, screen: &Screen) -> String {
    let Shown { row, plan, .. } = shown;
    let mut lines = Vec::new();
    let mut line = |name: &str, text: String| lines.push(format!("{name:<16}{text}"));
    line("run", row.run.display().to_string());
    let since = row.age.map(|s| format!(", last sign of life {} ago", age(s))).unwrap_or_default();
    let process = shown.process.map(|p| format!(" as process {p}")).unwrap_or_default();
    line("state", format!("{}{process}{since}", row.state.name()));
    if let Some(damage) = &row.damage {
        line("damage", damage.clone());
    }
    if let Some(plan) = plan {
        line("method", method(plan));
        line("student", student(shown, plan));
        let teacher = match &plan.data.signal {
            Some(signal) => Some(format!("what one said, in {signal}")),
            None => plan.teacher.clone(),
        };
        line("teacher", teacher.unwrap_or_else(|| "none".into()));
        let data = plan.data.dir.clone().unwrap_or_else(|| "the quickstart's stories".into());
        let (rows, context) = (count(plan.data.rows as u64), count(plan.data.context as u64));
        line("data", format!("{data}, {rows} sequences x {context} tokens a step"));
    }
    let of = |total: Option<u64>| total.map(|n| format!(" of {}", count(n))).unwrap_or_default();
    line("steps", format!("{}{}", count(row.step), of(row.steps)));
    if let Some(tokens) = shown.tokens {
        line("tokens", format!("{}{}", count(tokens), of(plan.as_ref().map(Plan::tokens))));
    }
    if let Some(n) = shown.flops {
        line("FLOPs", flops(n as u128));
    }
    if let Some(s) = shown.seconds {
        line("training time", seconds(s));
    }
    let at = |x: Option<f64>, step: Option<u64>| {
        x.zip(step).map(|(x, step)| format!("{x:.4} at step {}", count(step)))
    };
    // The objective's is that of the kept tokens; runs are compared by that of all.
    let objective = row.loss.map(|x| format!("{x:.4} of the objective"));
    match (shown.full_loss, objective) {
        (Some(full), Some(_)) if row.loss == Some(full) => {
            line("training loss", at(row.loss, shown.loss_step).unwrap_or_else(dash));
        }
        (full, Some(objective)) => {
            let full = full.map(|x| format!("{x:.4} of all tokens, ")).unwrap_or_default();
            let step = shown.loss_step.map(|n| format!(" at step {}", count(n)));
            line("training loss", format!("{full}{objective}{}", step.unwrap_or_default()));
        }
        (_, None) => {}
    }
    if let Some(text) = at(row.val_loss, shown.val_step) {
        let best = at(row.best_val_loss, shown.best_val_step);
        line("validation loss", format!("{text}, best {}", best.unwrap_or_else(dash)));
    }
    let mut text = lines.join("\n");
    text += &checkpoints(shown, screen);
    for note in &shown.notes {
        text += &format!("\nnote: {note}");
    }
    for command in &shown.next {
        text += &format!("\nnext: {command}");
    }
    text
}

fn method(plan: &Plan) -> String {
    if !plan.selects() {
        return format!("{}, every token", plan.method);
    }
    format!("{}, score {}, alpha {}", plan.method, plan.select.score, plan.select.alpha)
}

fn student(shown: &Shown, plan: &Plan) -> String {
    match shown.parameters.zip(shown.vocabulary) {
        Some((parameters, vocabulary)) => format!(
            "{}, {} parameters, {} of vocabulary",
            plan.student,
            count(parameters),
            count(vocabulary)
        ),
        None => plan.student.clone(),
    }
}

fn checkpoints(shown: &Shown, screen: &Screen) -> String {
    if shown.checkpoints.is_empty() {
        return String::new();
    }
    let mut table = Table::new(["checkpoint", "validation loss", "size"]);
    for checkpoint in &shown.checkpoints {
        table.row([
            format!("step {}", count(checkpoint.step)),
            checkpoint.val_loss.map_or_else(dash, |x| format!("{x:.4}")),
            checkpoint.bytes.map_or_else(|| "damaged".into(), bytes),
        ]);
    }
    let damage = shown.checkpoints.iter().filter_map(|c| c.damage.as_ref());
    let damage: String = damage.map(|what| format!("\n{what}")).collect();
    format!("\n\n{}{damage}\n", table.on(screen).trim_end())
}
