//! What this program finds on this machine, what is wrong with it, and what to do. Nothing is
//! written, and nothing is asked of the network.

mod machine;
mod speed;

use crate::config::DeviceSpec;
use crate::files::free_space;
use crate::ops::matmul::Bf16;
use crate::ops::{gpu, peak};
use crate::report::text::{bytes, percent, quoted};
use crate::store::hub::HubOptions;
use crate::train::session::device;
use crate::world::means;
use serde::Serialize;
use std::path::{Path, PathBuf};

pub use speed::Speed;

/// Free bytes below which a place is as good as full: no checkpoint of a small model fits.
const FULL: u64 = 100 << 20;
/// Free memory below which no run of a small model fits.
const LITTLE_MEMORY: u64 = 512 << 20;
/// Share of the ceiling below which something else is likely to use the cores.
const SLOW: f64 = 0.5;

/// The whole of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// Version of the program.
    pub version: &'static str,
    /// What it is built for: architecture and system.
    pub target: String,
    /// Features that it was built with.
    pub features: Vec<&'static str>,
    /// The chip.
    pub chip: Chip,
    /// Memory.
    pub memory: machine::Memory,
    /// GPUs.
    pub gpu: Gpu,
    /// What several processes of a run can talk through.
    pub processes: Vec<Means>,
    /// The cache of the Hub's models.
    pub hub: Hub,
    /// The quickstart's cache.
    pub quickstart: Quickstart,
    /// The working folder.
    pub here: Place,
    /// Matrix products in f32 on all threads.
    pub products: Speed,
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
}

/// Something that processes talk through.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Means {
    /// MPI or NCCL.
    pub name: &'static str,
    /// What is there; None if it cannot be opened.
    pub version: Option<String>,
}

/// The chip, and what of it we may use.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chip {
    /// As it calls itself.
    pub name: Option<String>,
    /// What the kernels use.
    pub instructions: &'static str,
    /// Whether `machine.dtype = "bf16"` runs on it.
    pub bf16: bool,
    /// Logical cores of the machine.
    pub cores: Option<usize>,
    /// Of these, those that this process may use: its affinity and its control group's share.
    pub allowed: usize,
    /// Threads of parallel loops, as `machine.threads = 0` has them.
    pub threads: usize,
}

/// GPUs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gpu {
    /// Whether this build can use one.
    pub built: bool,
    /// Those of NVIDIA that the driver names.
    pub found: Vec<String>,
    /// Whether the first can be opened.
    pub usable: bool,
    /// Bytes of its memory that nobody has taken.
    pub free: Option<u64>,
}

/// A folder that the program writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Where; None if nothing says where.
    pub folder: Option<PathBuf>,
    /// Whether it is there.
    pub exists: bool,
    /// Whether it can be written to, or made.
    pub writable: bool,
    /// Bytes free on its file system.
    pub free: Option<u64>,
}

/// The cache of the Hub's models, and how the Hub is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hub {
    /// The cache.
    pub cache: Place,
    /// The Hub's address.
    pub endpoint: String,
    /// Whether there is a token; it is not shown.
    pub token: bool,
    /// Whether the network is forbidden.
    pub offline: bool,
}

/// What the quickstart made before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quickstart {
    /// Its cache.
    pub cache: Place,
    /// Whether its data is there.
    pub data: bool,
    /// Whether its teacher is there.
    pub teacher: bool,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether nothing works until it is mended.
    pub prevents: bool,
    /// What is wrong, and what to do.
    pub what: String,
}

impl Finding {
    fn new(prevents: bool, what: String) -> Self {
        Self { prevents, what }
    }
}

impl Place {
    fn of(folder: Option<&Path>) -> Self {
        let writable = folder.is_some_and(machine::may_write);
        Self {
            folder: folder.map(Path::to_path_buf),
            exists: folder.is_some_and(Path::is_dir),
            writable,
            free: folder.and_then(free_space),
        }
    }

    /// What is wrong with it, for `purpose`; `other` names another place.
    fn findings(&self, prevents: bool, purpose: &str, other: &str) -> Option<Finding> {
        let Some(folder) = &self.folder else {
            return Some(Finding::new(prevents, format!("no place for {purpose}: {other}")));
        };
        let shown = quoted(folder);
        if !self.writable {
            let what = match self.exists {
                true => format!(
                    "{shown} cannot be written to: what it holds is used, and nothing comes to it; {other}"
                ),
                false => format!(
                    "{shown} cannot be written to, so there is no place for {purpose}: {other}"
                ),
            };
            return Some(Finding::new(prevents, what));
        }
        let free = self.free.filter(|free| *free < FULL)?;
        let what = format!("{} free for {purpose} in {shown}: make room, or {other}", bytes(free));
        Some(Finding::new(prevents, what))
    }
}

/// Looks and measures, for about a second. `quickstart` is the cache of the quickstart, if there is
/// a place for one.
pub fn examine(hub: &HubOptions, quickstart: Option<&Path>) -> Health {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let chip = Chip {
        name: machine::chip(),
        instructions: peak::instructions(),
        bf16: Bf16::detect().is_ok(),
        cores: machine::cores(),
        allowed,
        threads: rayon::current_num_threads(),
    };
    let mut health = Health {
        version: env!("CARGO_PKG_VERSION"),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        features: [
            ("cuda", cfg!(feature = "cuda")),
            ("mpi", cfg!(feature = "mpi")),
            ("nccl", cfg!(feature = "nccl")),
        ]
        .into_iter()
        .filter_map(|(name, is_there)| is_there.then_some(name))
        .collect(),
        chip,
        memory: machine::memory(),
        gpu: gpu_found(),
        hub: Hub {
            cache: Place::of(hub.cache.as_deref()),
            endpoint: hub.endpoint.clone(),
            token: hub.token.is_some(),
            offline: hub.offline,
        },
        quickstart: Quickstart {
            cache: Place::of(quickstart),
            data: quickstart.is_some_and(|dir| dir.join("data").is_dir()),
            teacher: quickstart.is_some_and(|dir| dir.join("teacher/model").is_dir()),
        },
        here: Place::of(Some(Path::new("."))),
        products: speed::measure(),
        processes: Vec::new(),
        findings: Vec::new(),
    };
    health.findings = health.judged(hub);
    for (name, version) in means() {
        if let Err(e) = &version {
            health.findings.push(Finding::new(false, e.to_string()));
        }
        health.processes.push(Means { name, version: version.ok() });
    }
    health
}

fn gpu_found() -> Gpu {
    let found = machine::gpus();
    let built = cfg!(feature = "cuda");
    let opened = if built { device(DeviceSpec::Cuda(0)).ok() } else { None };
    let memory = opened.as_ref().and_then(|device| gpu::memory(device).ok().flatten());
    Gpu { built, found, usable: opened.is_some(), free: memory.map(|memory| memory.free) }
}

impl Health {
    /// What prevents work, and then what hinders some of it.
    fn judged(&self, hub: &HubOptions) -> Vec<Finding> {
        let mut found: Vec<Finding> = Vec::new();
        let another = "work in another folder, or name one with --out";
        found.extend(self.here.findings(true, "results", another));
        let gpu = &self.gpu;
        if gpu.built && !gpu.usable {
            let what = "this build wants a GPU and can open none: use --device cpu, or mend the driver (nvidia-smi)";
            found.push(Finding::new(true, what.into()));
        }
        let mut warn = |what: String| found.push(Finding::new(false, what));
        if !gpu.built && !gpu.found.is_empty() {
            warn("there is a GPU, and this build cannot use it: cargo build --release --features cuda".into());
        }
        if let Some(free) = self.memory.available.filter(|free| *free < LITTLE_MEMORY) {
            warn(format!("{} of memory free: stop other programs", bytes(free)));
        }
        if self.chip.instructions == "SSE2" {
            warn("the chip has no AVX2: everything works, several times slower".into());
        }
        if let Err(e) = hub.check() {
            warn(e.to_string());
        }
        let hub_place = "set HF_HUB_CACHE to a folder that can be written to";
        let own_place = "set ESLM_KD_CACHE to a folder that can be written to";
        found.extend(self.hub.cache.findings(false, "models of the Hub", hub_place));
        found.extend(self.quickstart.cache.findings(false, "quickstart", own_place));
        if let Some(share) = self.products.share.filter(|share| *share < SLOW) {
            let what = format!(
                "products reach {} of the chip's ceiling: other programs may be using the cores (see top), then try again",
                percent(share)
            );
            found.push(Finding::new(false, what));
        }
        found
    }
}

#[cfg(test)]
mod tests;
