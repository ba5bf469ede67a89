//! `report`: a page of loss curves, also while training goes on.

use super::Printer;
use crate::compare::live::{Fingerprint, Live, Place, RunState, find, is_closed, page};
use crate::error::{Error, Result};
use crate::files::{check_file_like, write_atomic};
use crate::interrupt;
use crate::progress::Progress;
use crate::report::page::BEGINS;
use crate::report::text::{Screen, Table, count, quoted, seconds};
use crate::runs::state_of;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Draw a page of the loss curves of runs, also while they train
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ReportArgs {
    /// Run folders, or folders of runs: a comparison, a quickstart
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// Write the page here
    #[arg(long, value_name = "PAGE.html", default_value = "curves.html")]
    pub out: PathBuf,
    /// Write it again whenever a run has written more, until all are finished; an open page loads
    /// itself again
    #[arg(long)]
    pub watch: bool,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd report runs/first --watch                  beside the training; Ctrl-C ends it, and the page stays
  eslm-kd report runs/first runs/second --out curves.html
  eslm-kd report compare/first --json | jq '.runs[].val_loss'";

/// Between two looks at the runs; an interrupt is heard ten times as often.
const LOOK: Duration = Duration::from_secs(1);
/// Seconds after which an open page loads itself again.
const REFRESH: u32 = 5;

/// Looks at a folder of runs that are all finished, before it is taken for granted that no other
/// begins: the students of a quickstart follow each other.
const PATIENCE: u32 = 30;

/// What the verb prints.
#[derive(Debug, Serialize)]
struct Report {
    page: PathBuf,
    runs: Vec<RunState>,
}

/// Runs the verb.
pub fn run(args: &ReportArgs, ui: &Printer) -> Result<()> {
    check_file_like(&args.out, "a page", BEGINS, &[])?;
    let found =
        if args.watch { watch(args, ui)? } else { draw(&find(&args.runs)?, &args.out, false)? };
    let report = Report { page: args.out.clone(), runs: found.iter().map(Live::state).collect() };
    ui.result(&report, |screen| human(&report, &found, screen))
}

/// Reads the runs and writes the page, which loads itself again while it is `watched`.
fn draw(places: &[Place], out: &Path, watched: bool) -> Result<Vec<Live>> {
    let found = places.iter().map(Place::read).collect::<Result<Vec<_>>>()?;
    let text = page(&found, watched.then_some(REFRESH));
    write_atomic(out, |w| w.write_all(text.as_bytes()).map_err(|e| Error::io("write", out, e)))?;
    Ok(found)
}

/// Draws until all runs are finished.
fn watch(args: &ReportArgs, ui: &Printer) -> Result<Vec<Live>> {
    let mut seen: Option<Vec<(Place, Fingerprint)>> = None;
    let closed = args.runs.iter().all(|name| is_closed(name));
    let (mut idle, mut open) = (0, 0);
    loop {
        let places = find(&args.runs)?;
        let now: Vec<_> = places.iter().map(|p| (p.clone(), p.fingerprint())).collect();
        let first = seen.is_none();
        if seen.as_ref() != Some(&now) {
            open = draw(&places, &args.out, true)?.iter().filter(|run| !run.finished).count();
            seen = Some(now);
            idle = 0;
        }
        if open == 0 && (closed || first || idle >= PATIENCE) {
            return draw(&places, &args.out, false);
        }
        if first {
            ui.note(&format!(
                "{}: written again while {open} of {} runs are not finished; Ctrl-C ends that",
                args.out.display(),
                places.len()
            ));
        }
        idle += u32::from(open == 0);
        for _ in 0..10 {
            if let Err(stopped) = interrupt::check() {
                return Err(last_page(args, &stopped));
            }
            std::thread::sleep(LOOK / 10);
        }
    }
}

/// The page as it stays: nobody writes it again, so it does not load itself again.
fn last_page(args: &ReportArgs, stopped: &Error) -> Error {
    match find(&args.runs).and_then(|places| draw(&places, &args.out, false)) {
        Ok(_) => Error::new(
            stopped.kind(),
            format!("{stopped}; {} shows the runs up to here", quoted(&args.out)),
        ),
        Err(e) => e,
    }
}

fn human(report: &Report, found: &[Live], screen: &Screen) -> String {
    let mut table = Table::new([
        "run",
        "state",
        "step",
        "validation loss",
        "lowest",
        "training loss",
        "time",
        "left",
    ]);
    let loss = |x: Option<f64>| x.map_or_else(|| "-".into(), |x| format!("{x:.4}"));
    for (run, state) in found.iter().zip(&report.runs) {
        table.row([
            run.place.name.clone(),
            if run.last().is_none() { "not begun" } else { state_of(&state.run).name() }
                .to_string(),
            count(state.step),
            loss(state.val_loss),
            loss(state.best_val_loss),
            loss(state.train_loss) + if run.kept_only { " kept" } else { "" },
            seconds(state.seconds),
            run.left().map_or_else(|| "-".into(), seconds),
        ]);
    }
    format!("{}\npage: {}", table.on(screen), report.page.display())
}
