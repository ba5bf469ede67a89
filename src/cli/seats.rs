//! Threads and devices of a process among those that a launcher started.

use super::Printer;
use crate::config::{DeviceSpec, Plan};
use crate::error::Result;
use crate::ops::gpu;
use crate::progress::Progress;
use crate::report::text::amount;
use crate::train::threads::use_everywhere;
use crate::world::{Launched, Launcher, Seat};

/// Takes `threads` for every parallel loop of this process (0: a core each, of its share of them), and
/// tells what is wrong with where the processes sit.
pub fn seated(threads: usize, ui: &Printer) -> Result<Seat> {
    let seats = ui.world().seats()?;
    let alone = ui.world().size() == 1;
    if !alone || Launched::here().is_some() {
        seats.warnings.iter().for_each(|warning| ui.note(&format!("warning: {warning}")));
    }
    if alone && let Some(Launched { by, size: Some(started @ 2..), .. }) = Launched::here() {
        ui.note(&format!(
            "warning: {started} processes were started, and {}: each does all of the work by itself",
            match (by, by.is_served()) {
                (_, true) => "they cannot reach each other (is this the MPI that the program was built with?)",
                (Launcher::Mpi, _) => "this build has no MPI (build with --features mpi)",
                (Launcher::Torchrun, _) => "this build has no NCCL (build with --features nccl)",
            }
        ));
    }
    let mut mine = seats.mine;
    if let Some(by @ Launched { by: Launcher::Torchrun, .. }) = Launched::here()
        && by.by.is_served()
    {
        // NCCL was started with that one's GPU.
        mine.local_rank = by.local_rank;
    }
    let threads = if alone || threads > 0 { threads } else { mine.threads };
    if !alone {
        ui.note(&format!(
            "{} together, {} on this machine, {} each",
            amount(ui.world().size() as u64, "processes"),
            mine.local_size,
            amount(threads as u64, "threads")
        ));
    }
    use_everywhere(threads)?;
    Ok(mine)
}

/// The plan of this process's share: its device, and groups for all processes.
pub fn shared(mut plan: Plan, seat: Seat, ui: &Printer) -> Plan {
    let size = ui.world().size();
    if size == 1 {
        return plan;
    }
    let groups = plan.groups(size);
    if ![0, groups].contains(&plan.machine.groups) {
        ui.note(&format!(
            "note: machine.groups is {groups} and not {}, as there are {size} processes: sums round otherwise",
            plan.machine.groups
        ));
    }
    plan.machine.groups = groups;
    placed(plan, seat)
}

/// The plan on the device of this seat; process 0 has the first.
pub fn placed(mut plan: Plan, seat: Seat) -> Plan {
    plan.machine.device = own_device(plan.machine.device, seat);
    plan
}

/// GPUs are dealt out in the order of a machine's processes, from the one that is named on, in turns
/// where there are fewer. A launcher may show each process its own alone.
pub fn own_device(asked: DeviceSpec, seat: Seat) -> DeviceSpec {
    let there = gpu::count();
    let dealt = |first: usize| match first < there {
        true => DeviceSpec::Cuda((first + seat.local_rank) % there),
        false => DeviceSpec::Cuda(first), // which is refused, by name
    };
    match asked {
        DeviceSpec::Cuda(first) => dealt(first),
        DeviceSpec::Auto if there > 0 => dealt(0),
        other => other,
    }
}
