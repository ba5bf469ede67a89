//! `distill` without arguments: everything is generated, trained and compared here, with nothing to
//! download.

use super::arguments::again;
use super::seats::{placed, seated, shared};
use super::train::out_folder;
use super::{Printer, Resume, RunArgs};
use crate::compare::Crew;
use crate::compare::quickstart::{Quickstart, cache_folder, holds_one, quickstart};
use crate::config::Plan;
use crate::error::{Error, ErrorKind, Result};
use crate::report::text::{Screen, Table, count, flops, perplexity, quoted, seconds};
use crate::store::Where;
use crate::store::hub::HubOptions;

/// Runs the whole of it.
pub fn run(args: &RunArgs, plan: &Plan, ui: &Printer) -> Result<()> {
    let seat = seated(plan.machine.threads, ui)?;
    let plan = &shared(plan.clone(), seat, ui);
    let hub = HubOptions::from_env(ui.offline());
    let around = Where { hub: &hub, progress: ui };
    let own = |plan: Plan| placed(plan, seat);
    let done = Crew::led(ui.world(), around, own, |crew| made(args, plan, crew, around))?;
    done.map_or(Ok(()), |done| ui.result(&done, |screen| human(&done, screen)))
}

fn made(args: &RunArgs, plan: &Plan, crew: &Crew, around: Where<'_>) -> Result<Quickstart> {
    let out = out_folder("quickstart", args)?;
    let begun = holds_one(&out);
    if args.resume == Some(Resume::Must) && !begun {
        let begin = format!("{} ", again(&[])).replacen(" --resume ", " --resume=auto ", 1);
        return Err(Error::usage(format!(
            "nothing to resume in {}: it holds no quickstart; name its folder with --out, or begin one there (its teacher \
             goes on from where it was stopped): {}",
            out.display(),
            begin.trim_end()
        )));
    }
    if args.resume.is_none() && begun {
        return Err(Error::usage(format!(
            "{} already holds a quickstart; add --resume to go on with it, or choose another folder with --out",
            out.display()
        )));
    }
    let resume = args.resume.is_some() && begun;
    quickstart(plan, &out, resume, &cache_folder()?, crew, around).map_err(|e| {
        // A run inside names its own folder; what continues the whole is this command.
        let stopped = matches!(e.kind(), ErrorKind::Interrupted(_));
        if !stopped && e.go_on().is_none() {
            return e;
        }
        let mut more = Vec::new();
        if args.resume.is_none() {
            // Before the first student there is nothing that must be there.
            let auto = if holds_one(&out) { "" } else { "=auto" };
            more.push(format!("--resume{auto}"));
        }
        if args.out.is_none() {
            more.extend(["--out".to_string(), quoted(&out)]);
        }
        e.going_on_with(again(&more))
    })
}

fn human(done: &Quickstart, screen: &Screen) -> String {
    let header = ["model", "parameters", "tokens", "FLOPs", "time", "val loss", "perplexity"];
    let mut table = Table::new(header);
    for model in &done.models {
        table.row([
            model.model.to_string(),
            count(model.parameters),
            count(model.tokens),
            flops(model.flops as u128),
            seconds(model.seconds),
            format!("{:.4}", model.val_loss),
            perplexity(model.val_loss),
        ]);
    }
    let (run, model) = (done.run.display(), quoted(&done.model));
    let says = done.findings().join("\n");
    let there = |name: &str| done.models.iter().any(|model| model.model == name);
    let some = if there("random") { ", random and ESLM on some" } else { "" };
    format!(
        "{}\nplain learns alone, dense from the teacher on every token{some}.\n{says}\n\nrun folder: {run}\nnext: eslm-kd generate {model} --prompt \"One morning\"",
        table.on(screen)
    )
}
