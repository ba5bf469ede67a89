//! What this machine has.

/// Bytes of memory that this process may still take: what the system has available, within the
/// limit of its control group. None where neither is known.
pub fn available_memory() -> Option<u64> {
    let system = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    let number =
        |path: &str| -> Option<u64> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
    // Version 2 of control groups; "max" is no number.
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(most, used)| most.saturating_sub(used));
    least(system, group)
}

/// Bytes of memory of this machine, within the limit of the process's control group. None where
/// neither is known.
pub fn total_memory() -> Option<u64> {
    let system = std::fs::read_to_string("/proc/meminfo").ok();
    let system = system.and_then(|text| field(&text, "MemTotal:"));
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse::<u64>().ok());
    least(system, group)
}

/// The least of what is known.
fn least(system: Option<u64>, group: Option<u64>) -> Option<u64> {
    system.into_iter().chain(group).min()
}

fn available(text: &str) -> Option<u64> {
    field(text, "MemAvailable:")
}

/// A number of `/proc/meminfo`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        let text = "MemTotal:       24589136 kB\nMemAvailable:   20971520 kB\n";
        assert_eq!(available(text), Some(20 << 30));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
        assert_eq!(field(text, "MemTotal:"), Some(24_589_136 << 10));
        if cfg!(target_os = "linux") {
            assert!(available_memory().unwrap() > 1 << 20);
            assert!(total_memory() >= available_memory());
        }
    }
}
