//! What the system says of the machine: files of Linux, `sysctl` elsewhere. What it does not say is
//! None.

use crate::machine::available_memory;
use serde::Serialize;
use std::path::Path;

/// Bytes of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Of the machine.
    pub total: Option<u64>,
    /// What may be taken without harm.
    pub available: Option<u64>,
    /// The most that the control group may take, where it is less than the machine has.
    pub limit: Option<u64>,
}

fn text(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The value behind `name :` in lines such as those of `/proc/cpuinfo`.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim()).filter(|value| !value.is_empty())
    })
}

#[cfg(target_os = "macos")]
fn sysctl(name: &str) -> Option<String> {
    let output = std::process::Command::new("sysctl").args(["-n", name]).output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_string()).filter(|text| !text.is_empty())
}

#[cfg(not(target_os = "macos"))]
fn sysctl(_: &str) -> Option<String> {
    None
}

/// What the chip calls itself.
pub(super) fn chip() -> Option<String> {
    let info = text("/proc/cpuinfo").unwrap_or_default();
    let name = field(&info, "model name").or_else(|| field(&info, "Model"));
    name.map(str::to_string).or_else(|| sysctl("machdep.cpu.brand_string"))
}

/// Logical cores of the machine.
pub(super) fn cores() -> Option<usize> {
    let listed = text("/proc/cpuinfo").map(|info| {
        info.lines()
            .filter(|line| line.split(':').next().map(str::trim) == Some("processor"))
            .count()
    });
    listed.filter(|n| *n > 0).or_else(|| sysctl("hw.logicalcpu")?.parse().ok())
}

/// Memory of the machine and of the control group.
pub(super) fn memory() -> Memory {
    let info = text("/proc/meminfo").unwrap_or_default();
    let kilobytes = |name| Some(field(&info, name)?.split(' ').next()?.parse::<u64>().ok()? << 10);
    let total = kilobytes("MemTotal").or_else(|| sysctl("hw.memsize")?.parse().ok());
    let group = text("/proc/self/cgroup").unwrap_or_default();
    let limit = limits(&group, text).min().filter(|limit| total.is_none_or(|total| *limit < total));
    let available = available_memory().map(|free| free.min(limit.unwrap_or(u64::MAX)));
    Memory { total, available, limit }
}

/// Limits of memory of the control groups that `/proc/self/cgroup` names and of those above them,
/// in either version; `read` gives the text of a file.
pub(super) fn limits(
    groups: &str,
    read: impl Fn(&str) -> Option<String>,
) -> impl Iterator<Item = u64> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|c| c == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for group in Path::new(path).ancestors() {
            let group = group.display().to_string();
            let limit = read(&format!("{root}{}/{file}", group.trim_end_matches('/')));
            found.extend(limit.and_then(|limit| limit.trim().parse::<u64>().ok()));
        }
    }
    found.into_iter()
}

/// NVIDIA's GPUs by name, as the driver lists them.
pub(super) fn gpus() -> Vec<String> {
    let Ok(found) = std::fs::read_dir("/proc/driver/nvidia/gpus") else { return Vec::new() };
    let name = |dir: std::fs::DirEntry| {
        let about = std::fs::read_to_string(dir.path().join("information")).unwrap_or_default();
        field(&about, "Model").unwrap_or("of unknown model").to_string()
    };
    let mut names: Vec<String> = found.flatten().map(name).collect();
    names.sort();
    names
}

/// Whether the folder, or the nearest above it that exists, may be written to; asks the system, and
/// writes nothing.
#[cfg(unix)]
pub(super) fn may_write(folder: &Path) -> bool {
    use rustix::fs::{Access, access};
    let there =
        folder.ancestors().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    // What exists, also where it may not be looked at or is a link to nowhere.
    let nearest = there.into_iter().find(|p| p.symlink_metadata().is_ok());
    nearest.is_some_and(|p| p.is_dir() && access(p, Access::WRITE_OK | Access::EXEC_OK).is_ok())
}

#[cfg(not(unix))]
pub(super) fn may_write(folder: &Path) -> bool {
    let nearest = folder.ancestors().find(|p| p.exists());
    nearest
        .and_then(|p| p.metadata().ok())
        .is_some_and(|m| m.is_dir() && !m.permissions().readonly())
}
