//! `compare`: methods x seeds on the same data, trained, evaluated and reported.

use super::Printer;
use super::number::whole;
use super::seats::{placed, seated, shared};
use crate::compare::arms::resolve_arms;
use crate::compare::budget::Budget;
use crate::compare::page;
use crate::compare::summary::{CURVES_CSV, REPORT_CSV, Shown, Summary};
use crate::compare::verdict::Verdict;
use crate::compare::{Comparison, Crew, REPORT_HTML, compare};
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::report::text::{Screen, Table, amount, count, flops, seconds, signed};
use crate::store::Where;
use crate::store::hub::HubOptions;
use std::path::PathBuf;

/// Compare methods: train several arms on the same data and seeds, test the differences, write a
/// report
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct CompareArgs {
    /// What to compare: a run file, run folder or built-in name; `+key=value` sets a key of this
    /// arm (`+teacher=none` takes the teacher away), `LABEL:` in front names it
    #[arg(value_name = "[LABEL:]CONFIG[+KEY=VALUE...]", required_unless_present = "report_only")]
    pub arms: Vec<String>,
    /// Set a key of every arm's run file; an arm's own value wins, and select.* and objective.* go
    /// only to arms that select or have a teacher; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Folder written by `prepare`, with a validation split, for every arm
    #[arg(long, env = "ESLM_KD_DATA", hide_env_values = true, value_name = "DIR")]
    pub data: Option<String>,
    /// Train every arm with the seeds 1 to N
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole::<u64>(1..=1000))]
    pub seeds: u64,
    /// Folder of the comparison; one that exists is continued
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// What the arms have in common
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    pub budget: Budget,
    /// Evaluate on other text, too: a name and a text file, token file or data folder; repeatable
    #[arg(long, value_name = "NAME=FILE|DIR")]
    pub also: Vec<String>,
    /// Measure differences to this arm; without it, the first that selects nothing and has no
    /// teacher
    #[arg(long, value_name = "LABEL")]
    pub baseline: Option<String>,
    /// Keep the checkpoints of finished runs
    #[arg(long)]
    pub keep_checkpoints: bool,
    /// Evaluate finished runs, and runs between their steps, on the first N tokens of each text;
    /// without it, all
    #[arg(long, value_name = "N", value_parser = whole::<u64>(2..=i64::MAX))]
    pub eval_tokens: Option<u64>,
    /// Train nothing: report on the runs that are finished
    #[arg(long, conflicts_with_all = ["arms", "set", "also", "keep_checkpoints", "eval_tokens"])]
    pub report_only: bool,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd compare plain:distill-4m+method=clm distill-4m+select.score=loss distill-4m+select.score=random \\
      --data data/mine --seeds 3 --out compare/scores
  eslm-kd compare plain:my.toml+method=clm dense:my.toml+method=clm+teacher=runs/t eslm:my.toml+teacher=runs/t \\
      --data data/mine --budget flops --also plays=shakespeare.txt --out compare/teacher
  eslm-kd compare --report-only --out compare/scores --json";

/// Runs the verb.
pub fn run(args: &CompareArgs, ui: &Printer) -> Result<()> {
    if !args.report_only {
        let mut asked = args.resolve()?;
        let world = ui.world();
        if world.size() > 1 && asked.budget == Budget::Seconds {
            return Err(Error::usage(
                "--budget seconds measures steps of one process; start the comparison with one",
            ));
        }
        let seat = seated(asked.arms.first().map_or(0, |a| a.plan.machine.threads), ui)?;
        for arm in &mut asked.arms {
            arm.plan = shared(arm.plan.clone(), seat, ui);
        }
        let hub = HubOptions::from_env(ui.offline());
        let at = Where { hub: &hub, progress: ui };
        let own = |plan: Plan| placed(plan, seat);
        if Crew::led(world, at, own, |crew| compare(&asked, crew, at))?.is_none() {
            return Ok(());
        }
    } else if !ui.world().is_root() {
        return Ok(());
    }
    let summary = Summary::read(&args.out, args.baseline.as_deref())?;
    summary.write_csv()?;
    page::write(&summary)?;
    ui.result(&summary.json(), |screen| human(&summary, screen))
}

impl CompareArgs {
    fn resolve(&self) -> Result<Comparison> {
        let data = self.data.as_deref().filter(|d| !d.is_empty());
        let mut also: Vec<(String, PathBuf)> = Vec::with_capacity(self.also.len());
        for text in &self.also {
            match text.split_once('=') {
                Some((name, place)) if !name.trim().is_empty() && !place.is_empty() => {
                    if also.iter().any(|(n, _)| n == name.trim()) {
                        return Err(Error::usage(format!(
                            "--also {text}: the name \"{name}\" is taken"
                        )));
                    }
                    also.push((name.trim().to_string(), place.into()));
                }
                _ => {
                    return Err(Error::usage(format!(
                        "--also: expected NAME=FILE or NAME=DIR, found \"{text}\""
                    )));
                }
            }
        }
        let bound = self.eval_tokens.map(|tokens| format!("eval.tokens={tokens}"));
        let set: Vec<String> = bound.into_iter().chain(self.set.iter().cloned()).collect();
        Ok(Comparison {
            arms: resolve_arms(&self.arms, &set, data)?,
            seeds: (1..=self.seeds).collect(),
            out: self.out.clone(),
            budget: self.budget,
            also,
            baseline: self.baseline.clone(),
            keep_checkpoints: self.keep_checkpoints,
            eval_tokens: self.eval_tokens,
        })
    }
}

fn human(summary: &Summary, screen: &Screen) -> String {
    let mut table = Table::new([
        "arm",
        "parameters",
        "seeds",
        "steps",
        "tokens",
        "FLOPs",
        "time",
        "validation CE",
        "minus baseline",
        "p (Holm)",
    ]);
    for i in summary.ranking() {
        let arm = &summary.arms[i];
        let mean = |s: Option<crate::compare::stats::Spread>| s.map_or(0.0, |s| s.mean);
        let difference = arm.to_baseline.map(|d| signed(d.mean, 4));
        let p = arm.to_baseline.and_then(|d| d.test).map(|t| format!("{:.3}", t.p_holm));
        let dash = || "-".to_string();
        table.row([
            arm.arm.label.clone(),
            count(arm.state.parameters),
            count(arm.runs.len() as u64),
            count(arm.runs[0].steps),
            count(arm.runs[0].metrics.tokens as u64),
            flops(mean(arm.spread(|r| Some(r.metrics.flops))) as u128),
            seconds(mean(arm.spread(|r| Some(r.metrics.seconds)))),
            arm.ce().map_or_else(dash, |s| Shown(s).to_string()),
            if summary.baseline == Some(i) {
                "baseline".into()
            } else {
                difference.unwrap_or_else(dash)
            },
            p.unwrap_or_else(dash),
        ]);
    }
    let at = |name: &str| summary.out.join(name).display().to_string();
    let mut text = format!(
        "{}\n\n{}\nreport: {}\nruns: {}\ncurves: {}\n",
        Verdict::of(summary).text,
        table.on(screen),
        at(REPORT_HTML),
        at(REPORT_CSV),
        at(CURVES_CSV)
    );
    if !summary.missing.is_empty() {
        let many = summary.missing.len();
        let are = if many == 1 { "is" } else { "are" };
        text += &format!("{} {are} not finished and not in it\n", amount(many as u64, "runs"));
    }
    text
}
