//! `distill` without arguments: everything is generated, trained and compared here, with nothing to
//! download.

use super::train::out_folder;
use super::{Printer, Resume, RunArgs};
use crate::compare::quickstart::{FIRST, Quickstart, cache_folder, quickstart};
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::report::text::{Table, count, flops, quoted, seconds};
use crate::store::Where;
use crate::store::hub::HubOptions;
use crate::train::threads::use_everywhere;

/// Runs the whole of it.
pub fn run(args: &RunArgs, plan: &Plan, ui: &Printer) -> Result<()> {
    use_everywhere(plan.machine.threads)?;
    let out = out_folder("quickstart", args)?;
    let holds_one = out.join(FIRST).is_dir();
    if args.resume == Some(Resume::Must) && !holds_one {
        return Err(Error::usage(format!(
            "nothing to resume in {}: it holds no quickstart; name its folder with --out, or write --resume=auto to begin \
             one there",
            out.display()
        )));
    }
    let resume = args.resume.is_some() && holds_one;
    let hub = HubOptions::from_env(ui.offline());
    let around = Where { hub: &hub, progress: ui };
    let done = quickstart(plan, &out, resume, &cache_folder()?, around)?;
    ui.result(&done, || human(&done))
}

fn human(done: &Quickstart) -> String {
    let mut table = Table::new([
        "",
        "parameters",
        "tokens",
        "FLOPs",
        "time",
        "validation loss",
        "validation perplexity",
    ]);
    for model in &done.models {
        table.row([
            model.model.to_string(),
            count(model.parameters),
            count(model.tokens),
            flops(model.flops as u128),
            seconds(model.seconds),
            format!("{:.4}", model.val_loss),
            format!("{:.3}", model.perplexity),
        ]);
    }
    let (run, model) = (done.run.display(), quoted(&done.model));
    format!("{table}\nrun folder: {run}\nnext: eslm-kd generate {model} --prompt \"One morning\"")
}
