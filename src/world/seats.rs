//! Where the processes of a run sit: which of them share a machine, and who has which cores.

use super::World;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a process knows of its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    host: String,
    /// Cores that it may run on; empty where the system does not say.
    cores: BTreeSet<usize>,
    /// Threads that make sense on them.
    parallel: usize,
    /// Cores of the machine.
    online: usize,
    /// Whether Open MPI's `mpirun` started it, which binds processes unless it is told not to.
    #[serde(default)]
    by_open_mpi: bool,
}

/// The seat of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// Its number among those of its machine: that of its GPU.
    pub local_rank: usize,
    /// How many there are.
    pub local_size: usize,
    /// Its share of the cores.
    pub threads: usize,
}

/// All seats, as far as they matter to one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seats {
    /// This process's.
    pub mine: Seat,
    /// How many processes each machine has, if all have as many and these follow each other; else 1.
    pub on_a_machine: usize,
    /// What is wrong with the division of cores, and what to pass to the launcher.
    pub warnings: Vec<String>,
}

impl World {
    /// Finds out who sits where. Collective.
    pub fn seats(&self) -> Result<Seats> {
        let internal =
            |e: serde_json::Error| Error::internal(format!("cannot describe a place: {e}"));
        let here = serde_json::to_vec(&Place::here()).map_err(internal);
        let heard = self.agree(here)?;
        let read = |text: &Vec<u8>| serde_json::from_slice(text).map_err(internal);
        let places: Vec<Place> = heard.iter().map(read).collect::<Result<_>>()?;
        Ok(seats(&places, self.rank()))
    }
}

impl Place {
    fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let status = read("/proc/self/status");
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let cores = cores(allowed.unwrap_or_default());
        let parallel = std::thread::available_parallelism().map_or(1, usize::from);
        let online = cores_of(&read("/sys/devices/system/cpu/online"), parallel);
        let host = read("/proc/sys/kernel/hostname").trim().to_string();
        let by_open_mpi = std::env::var_os("OMPI_COMM_WORLD_RANK").is_some();
        Self { host, cores, parallel, online, by_open_mpi }
    }
}

fn cores_of(list: &str, least: usize) -> usize {
    cores(list).len().max(least)
}

/// Of the kernel's notation: `0-3,8`.
fn cores(list: &str) -> BTreeSet<usize> {
    let range = |part: &str| -> Option<std::ops::RangeInclusive<usize>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

fn seats(places: &[Place], rank: usize) -> Seats {
    let here = &places[rank];
    let beside: Vec<&Place> = places.iter().filter(|place| place.host == here.host).collect();
    let local_rank = places[..rank].iter().filter(|place| place.host == here.host).count();
    let sharing = beside.iter().filter(|place| place.cores == here.cores).count();
    let threads = (here.parallel / sharing).max(1);
    let mine = Seat { local_rank, local_size: beside.len(), threads };
    let mut warnings = Vec::new();
    let used: BTreeSet<usize> = beside.iter().flat_map(|place| place.cores.clone()).collect();
    let busy = if used.is_empty() { here.parallel } else { used.len() };
    if beside.len() > busy {
        warnings.push(format!(
            "{} processes share {busy} of the cores of {}: each waits for the others; start at most as many as there are cores",
            beside.len(),
            here.host
        ));
    } else if busy < here.online && here.by_open_mpi {
        warnings.push(format!(
            "{busy} of {} cores of {} do all the work, as mpirun bound its processes; pass --bind-to none, or \
             --map-by slot:PE={} --bind-to core",
            here.online,
            here.host,
            (here.online / beside.len()).max(1)
        ));
    }
    Seats { mine, on_a_machine: on_a_machine(places), warnings }
}

fn on_a_machine(places: &[Place]) -> usize {
    let first = places.iter().take_while(|place| place.host == places[0].host).count();
    let are_alike = |machine: &[Place]| {
        machine.len() == first && machine.iter().all(|place| place.host == machine[0].host)
    };
    if places.chunks(first.max(1)).all(are_alike) { first.max(1) } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::in_threads;

    fn place(host: &str, list: &str, online: usize) -> Place {
        let cores = cores(list);
        Place { host: host.into(), parallel: cores.len(), cores, online, by_open_mpi: true }
    }

    #[test]
    fn the_kernels_lists_are_read() {
        assert_eq!(cores("0-2,8\n"), BTreeSet::from([0, 1, 2, 8]));
        assert_eq!(cores(" 5"), BTreeSet::from([5]));
        assert_eq!((cores("").len(), cores_of("", 3)), (0, 3));
    }

    #[test]
    fn processes_share_the_cores_of_their_machine() {
        let two = ["a", "a", "b"].map(|host| place(host, "0-7", 8));
        let seat = |rank| seats(&two, rank);
        assert_eq!(seat(0).on_a_machine, 1, "two and one");
        assert_eq!(seat(1).mine, Seat { local_rank: 1, local_size: 2, threads: 4 });
        assert_eq!(seat(2).mine, Seat { local_rank: 0, local_size: 1, threads: 8 });
        assert!((0..3).all(|rank| seat(rank).warnings.is_empty()));
    }

    #[test]
    fn machines_with_as_many_processes_each_are_known() {
        let on = |hosts: &[&str]| {
            let places: Vec<Place> = hosts.iter().map(|host| place(host, "0-7", 8)).collect();
            seats(&places, 0).on_a_machine
        };
        assert_eq!(on(&["a", "a", "b", "b"]), 2);
        assert_eq!(on(&["a", "a", "a"]), 3);
        assert_eq!(on(&["a", "b", "a", "b"]), 1, "dealt out in turns");
        assert_eq!(on(&["a", "b", "b"]), 1);
    }

    #[test]
    fn a_launcher_that_leaves_cores_idle_is_named() {
        let bound = [place("a", "0", 16), place("a", "1", 16)];
        let Seats { mine, warnings, .. } = seats(&bound, 0);
        assert_eq!(mine.threads, 1);
        assert!(warnings[0].starts_with("2 of 16 cores of a"), "{warnings:?}");
        assert!(warnings[0].contains("--map-by slot:PE=8"), "{warnings:?}");
        let many = ["a"; 4].map(|host| place(host, "0-1", 2));
        assert!(seats(&many, 3).warnings[0].starts_with("4 processes share 2 of the cores of a"));
        assert_eq!(seats(&many, 3).mine.threads, 1);
    }

    #[test]
    fn threads_of_one_process_sit_on_one_machine() {
        let all = in_threads(2, |world| world.seats().unwrap().mine);
        assert_eq!(all.iter().map(|seat| seat.local_rank).collect::<Vec<_>>(), [0, 1]);
        assert!(all.iter().all(|seat| seat.local_size == 2 && seat.threads >= 1));
    }
}
