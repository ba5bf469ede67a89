use super::machine::{chip, cores, field, limits, may_write, memory};
use super::*;

#[test]
fn limits_of_memory_are_those_of_the_groups_above_too() {
    let read = |path: &str| {
        let limit = match path {
            "/sys/fs/cgroup/a/b/memory.max" => "max\n",
            "/sys/fs/cgroup/a/memory.max" => "4096\n",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes" => "9223372036854771712",
            "/sys/fs/cgroup/memory/c/memory.limit_in_bytes" => "8192",
            _ => return None,
        };
        Some(limit.to_string())
    };
    assert_eq!(limits("0::/a/b\n", read).collect::<Vec<_>>(), [4096]);
    let both = limits("4:cpu,memory:/c\n3:cpu:/a\n", read).collect::<Vec<_>>();
    assert_eq!(both, [8192, 9_223_372_036_854_771_712]);
    assert_eq!(limits("", read).count(), 0);
}

#[test]
fn a_field_is_found_by_its_whole_name() {
    let text = "vendor_id\t: X\nmodel\t\t: 2\nmodel name\t: Some Chip\nempty :\n";
    assert_eq!(field(text, "model name"), Some("Some Chip"));
    assert_eq!((field(text, "name"), field(text, "empty")), (None, None));
}

#[test]
#[cfg(target_os = "linux")]
fn the_machine_is_read() {
    assert!(cores().unwrap() >= 1 && (chip().is_some() || !cfg!(target_arch = "x86_64")));
    let found = memory();
    assert!(found.available.unwrap() <= found.total.unwrap() && found.available.unwrap() > 1 << 20);
}

#[test]
#[cfg(unix)]
fn a_place_is_judged_without_writing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(may_write(folder.path()) && may_write(&folder.path().join("a/b")));
    assert!(!may_write(&file) && !may_write(&file.join("below")));
    assert!(!may_write(Path::new("/proc/self/nothing")));
    let place = Place::of(Some(&file));
    let found = place.findings(false, "models", "set THIS").unwrap();
    assert!(found.what.contains("file cannot be written to") && found.what.ends_with("set THIS"));
    assert!(found.what.contains("no place for models"), "{found:?}");
    let filled = Place { writable: false, ..Place::of(Some(folder.path())) };
    let found = filled.findings(false, "models", "set THIS").unwrap();
    assert!(found.what.contains("what it holds is used"), "{found:?}");
    assert_eq!(Place::of(None).findings(true, "models", "x").map(|f| f.prevents), Some(true));
    let full = Place { free: Some(1 << 20), ..Place::of(Some(folder.path())) };
    assert!(full.findings(true, "results", "x").unwrap().what.starts_with("1.00 MiB free"));
    let roomy = Place { free: Some(1 << 40), ..full };
    assert_eq!(roomy.findings(true, "results", "x"), None);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was written");
}

#[test]
fn what_is_wrong_is_named_and_what_prevents_work_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let hub = HubOptions::new("http://127.0.0.1:9", folder.path());
    let mut health = examine(&hub, Some(folder.path()));
    assert!(health.products.gflops > 0.0 && !health.gpu.built);
    // Not what this machine happens to lack.
    health.memory.available = Some(1 << 40);
    health.gpu.found.clear();
    health.chip.instructions = "AVX-512";
    (health.here, health.products.share) = (Place::of(Some(folder.path())), Some(0.9));
    for place in [&mut health.here, &mut health.hub.cache, &mut health.quickstart.cache] {
        place.free = Some(1 << 40);
    }
    assert_eq!(health.judged(&hub), []);
    health.memory.available = Some(1 << 20);
    health.gpu.found.push("NVIDIA X".into());
    health.products.share = Some(0.2);
    health.quickstart.cache = Place::of(None);
    health.here.free = Some(5);
    let bad = HubOptions::new("ftp://hub", folder.path());
    let found = health.judged(&bad);
    for part in
        ["5 B free", "--features cuda", "memory free", "20.0 %", "ESLM_KD_CACHE", "HF_ENDPOINT"]
    {
        assert!(found.iter().any(|f| f.what.contains(part)), "no {part} in {found:?}");
    }
    let prevents: Vec<bool> = found.iter().map(|f| f.prevents).collect();
    assert_eq!(prevents, [true, false, false, false, false, false]);
}

#[test]
fn the_ceiling_is_above_what_a_plain_loop_does() {
    let Some(flops) = peak::measured(1) else { return };
    // A multiply-add per clock of the slowest chip in use is 1 GFLOP/s; vectors do far more.
    assert!(flops > 1e9 && flops.is_finite(), "{flops}");
}
