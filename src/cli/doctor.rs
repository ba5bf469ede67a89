//! `doctor`: what this program finds on this machine, and what is wrong.

use super::Printer;
use crate::compare::quickstart::cache_folder;
use crate::doctor::{Health, Place, examine};
use crate::error::{Error, ErrorKind, Result};
use crate::report::text::{bytes, decimal, percent};
use crate::store::hub::HubOptions;
use crate::train::threads::use_everywhere;

/// Look at chip, threads, GPU, caches, disk and settings, measure a product, say what is wrong
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DoctorArgs {}

const EXAMPLES: &str = "\
Examples:
  eslm-kd doctor                                    exit status 0 unless something prevents work
  eslm-kd doctor --json | jq .findings

Nothing is written, and nothing is asked of the network. The chip's ceiling is
measured: multiply-adds between registers, on the threads that a run would have.";

/// Runs the verb.
pub fn run(_: &DoctorArgs, ui: &Printer) -> Result<()> {
    use_everywhere(0)?; // as runs have them
    let hub = HubOptions::from_env(ui.offline());
    let health = examine(&hub, cache_folder().ok().as_deref());
    ui.result(&health, |_| text(&health))?;
    let prevents: Vec<&str> =
        health.findings.iter().filter(|f| f.prevents).map(|f| f.what.as_str()).collect();
    match prevents.is_empty() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Io, prevents.join("; "))),
    }
}

fn text(health: &Health) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, text: String| lines.push(format!("{name:<12}{text}"));
    let features = match health.features.is_empty() {
        true => "no features (CPU alone)".into(),
        false => health.features.join(", "),
    };
    line("eslm-kd", format!("{}, {}, {features}", health.version, health.target));
    let chip = &health.chip;
    let bf16 = if chip.bf16 { "bf16 products" } else { "no bf16 products" };
    let name = chip.name.as_deref().unwrap_or("unknown");
    line("chip", format!("{name}; kernels use {}, {bf16}", chip.instructions));
    let cores = chip.cores.map(|n| format!(" of {n}")).unwrap_or_default();
    line("cores", format!("{}{cores} allowed, {} threads", chip.allowed, chip.threads));
    let known = |n: Option<u64>| n.map_or_else(|| "unknown".into(), bytes);
    let memory = &health.memory;
    let limit = memory.limit.map(|n| format!(", {} allowed", bytes(n))).unwrap_or_default();
    line("memory", format!("{} free of {}{limit}", known(memory.available), known(memory.total)));
    line("GPU", gpu(health));
    let means = health.processes.iter().map(|means| match &means.version {
        Some(version) => format!("{}: {version}", means.name),
        None => format!("{}: cannot be opened", means.name),
    });
    let means = match health.processes.is_empty() {
        true => "one alone: this build has neither MPI nor NCCL".into(),
        false => means.collect::<Vec<_>>().join(", "),
    };
    line("processes", means);
    let hub = &health.hub;
    line("Hub cache", place(&hub.cache));
    let token = if hub.token { "a token" } else { "no token" };
    let network = if hub.offline { ", offline" } else { "" };
    line("Hub", format!("{}, {token}{network}", hub.endpoint));
    let own = &health.quickstart;
    let made = match (own.data, own.teacher) {
        (true, true) => "data and teacher are there",
        (true, false) => "data is there, no teacher yet",
        _ => "nothing made yet",
    };
    line("quickstart", format!("{}; {made}", place(&own.cache)));
    line("here", place(&health.here));
    let products = &health.products;
    let share = products.share.zip(products.ceiling).map_or_else(String::new, |(share, most)| {
        format!(", {} of {} measured between registers", percent(share), decimal(most, 0))
    });
    line("products", format!("{} GFLOP/s in f32{share}", decimal(products.gflops, 0)));
    for finding in &health.findings {
        let word = if finding.prevents { "PREVENTS WORK" } else { "warning" };
        lines.push(format!("{word}: {}", finding.what));
    }
    if health.findings.is_empty() {
        lines.push("nothing is wrong".into());
    }
    lines.join("\n")
}

fn gpu(health: &Health) -> String {
    let gpu = &health.gpu;
    let found = match gpu.found.is_empty() {
        true => "none found".to_string(),
        false => gpu.found.join(", "),
    };
    match (gpu.built, gpu.usable) {
        (false, _) => format!("{found}; this build uses none"),
        (true, false) => format!("{found}; none can be opened"),
        (true, true) => {
            let free = gpu.free.map(|n| format!(", {} free", bytes(n))).unwrap_or_default();
            format!("{found}; the first is in use by default{free}")
        }
    }
}

fn place(place: &Place) -> String {
    let Some(folder) = &place.folder else { return "no place".into() };
    let state = match (place.writable, place.exists) {
        (true, true) => "",
        (true, false) => ", not there yet",
        (false, _) => ", NOT WRITABLE",
    };
    let free = place.free.map(|n| format!(", {} free", bytes(n))).unwrap_or_default();
    format!("{}{state}{free}", folder.display())
}
