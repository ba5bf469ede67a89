//! Imports run one way: a folder of `src` uses only what stands below it. ARCHITECTURE.md quotes
//! the same list.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The floors of the house, the ground first. What stands on one line may not use its neighbours.
const LAYERS: [&[&str]; 15] = [
    &["error"],
    &["interrupt", "progress", "guard", "rng", "allocator", "json", "machine"],
    &["files", "report", "world"],
    &["config", "data"],
    &["ops"],
    &["loss"],
    &["model", "select"],
    &["optim", "teacher", "cost"],
    &["signal"],
    &["store"],
    &["eval"],
    &["train"],
    &["compare", "inspect", "runs", "doctor"],
    &["cli"],
    &["lib", "main", "prelude", "testing"],
];

fn floor(room: &str) -> usize {
    let found = LAYERS.iter().position(|floor| floor.contains(&room));
    found.unwrap_or_else(|| {
        panic!("{room} stands on no floor: add it to LAYERS and to ARCHITECTURE.md")
    })
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// The rooms that follow `crate::` in a text, also in braces.
fn rooms(text: &str) -> BTreeSet<String> {
    let name =
        |s: &str| s.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for rest in text.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(list) => found.extend(
                list.split('}').next().unwrap_or_default().split(',').map(|s| name(s.trim())),
            ),
            None => drop(found.insert(name(rest))),
        }
    }
    // Types at the root, such as `crate::Error`.
    found.remove("");
    found
}

/// A source without its tests, and without what its comments speak of.
fn code(text: &str) -> String {
    let product = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    product
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn imports_run_downward() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut upward = Vec::new();
    for file in files {
        let within = file.strip_prefix(&src).unwrap();
        let room = within.components().next().unwrap().as_os_str().to_string_lossy();
        let room = room.trim_end_matches(".rs");
        let is_test = within
            .file_stem()
            .is_some_and(|s| s.to_string_lossy().ends_with("tests") || s == "testing");
        if is_test {
            continue;
        }
        for used in rooms(&code(&fs::read_to_string(&file).unwrap())) {
            if used != room && floor(&used) >= floor(room) {
                upward.push(format!("{} uses {used}", within.display()));
            }
        }
    }
    assert!(upward.is_empty(), "these imports run upward:\n{}", upward.join("\n"));
}

#[test]
fn architecture_quotes_the_floors() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    let quoted: Vec<String> = LAYERS.iter().rev().skip(1).map(|floor| floor.join(" ")).collect();
    let quoted = quoted.join("\n");
    assert!(text.contains(&quoted), "ARCHITECTURE.md should hold, in a block:\n{quoted}");
}
