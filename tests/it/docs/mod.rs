//! The documents: links and anchors resolve, quoted numbers are those of their records, what is made
//! from the code is as the code says, and the commands of the book run.

mod commands;
mod markdown;

use crate::support::place::Place;
use markdown::{Link, Page, anchor, numbers};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Markdown file of the repository, by its path from the root.
fn pages() -> Vec<Page> {
    let mut folders: Vec<PathBuf> =
        ["docs", "benches", "configs", "students", "teachers", "tests/reference"]
            .map(|name| root().join(name))
            .into();
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.extend(fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()));
    files.retain(|path| path.extension().is_some_and(|e| e == "md"));
    files.sort();
    files.iter().map(|path| Page::read(path)).collect()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// What `eslm-kd doc` writes; with UPDATE=1 it is written.
#[test]
fn reference_pages_are_as_the_code_says() {
    let place = Place::new();
    for name in ["keys", "metrics", "verbs", "run-files", "presets"] {
        let path = root().join(format!("docs/reference/{name}.md"));
        let (code, stdout, stderr) = place.run(&["doc", name]);
        assert_eq!(code, 0, "{stderr}");
        if std::env::var_os("UPDATE").is_some_and(|set| !set.is_empty()) {
            fs::write(&path, &stdout).unwrap();
        }
        let held = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            held == stdout,
            "docs/reference/{name}.md is not what `eslm-kd doc {name}` prints; UPDATE=1 cargo test --release --test it -- docs"
        );
    }
}

#[test]
fn links_and_anchors_resolve() {
    let pages = pages();
    assert!(pages.len() > 100, "{} pages", pages.len());
    let mut wrong = Vec::new();
    for page in &pages {
        for Link { target, line, .. } in page.links() {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, section) = target.split_once('#').unwrap_or((&target, ""));
            let path = if file.is_empty() { page.path.clone() } else { page.beside(file) };
            let place = format!("{}:{line}: {target}", shown(&page.path));
            if !path.exists() {
                wrong.push(format!("{place}: no such file"));
            } else if !section.is_empty() && !Page::read(&path).anchors().contains(section) {
                wrong.push(format!("{place}: no such heading"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A number stands in its record or on a page of evidence. Elsewhere it is the text of a link to
/// that section, or in a table under `<!-- quote: PATH#section -->`.
#[test]
fn quoted_numbers_stand_in_the_sections_that_they_link_to() {
    let (mut quotes, mut wrong) = (0, Vec::new());
    for page in pages() {
        let mut quoted = page.links();
        quoted.retain(|link| link.target.contains('#') && !link.target.contains("://"));
        quoted.extend(page.quoted_tables());
        for Link { text, target, line } in quoted {
            let (file, section) = target.split_once('#').unwrap();
            let path = if file.is_empty() { page.path.clone() } else { page.beside(file) };
            let name = shown(&path);
            let records = ["benches/records/", "docs/evidence/", "LOG.md"];
            if !records.iter().any(|start| name.starts_with(start)) {
                continue;
            }
            let Some(held) = Page::read(&path).section(section) else { continue };
            let held: BTreeSet<String> = numbers(&held).into_iter().collect();
            for number in numbers(&text) {
                quotes += 1;
                if number.len() > 4 && number.bytes().all(|b| b.is_ascii_digit()) {
                    let place = format!("{}:{line}", shown(&page.path));
                    wrong.push(format!("{place}: {number} has no separators, as in 12,345"));
                }
                if !held.contains(&number) {
                    wrong
                        .push(format!("{}:{line}: {number} is not in {target}", shown(&page.path)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(quotes > 500, "{quotes} quotes");
}

#[test]
fn the_front_pages_are_short_and_quote_their_numbers() {
    for (name, most) in [("README.md", 180), ("ARCHITECTURE.md", 150)] {
        let page = Page::read(&root().join(name));
        assert!(page.text.lines().count() <= most, "{name}: more than {most} lines");
        for (i, line) in page.text.lines().enumerate() {
            assert!(line.chars().count() <= 120, "{name}:{}: more than 120 columns", i + 1);
        }
    }
    // A decimal that is no quote would be a second place for a number.
    let readme = Page::read(&root().join("README.md"));
    let rust = env!("CARGO_PKG_RUST_VERSION").trim_end_matches(".0");
    for (line, text) in readme.unquoted() {
        // With two points it is a version.
        for number in numbers(&text).into_iter().filter(|n| n.matches('.').count() == 1) {
            assert_eq!(number, rust, "README.md:{line}: {number} stands outside of a quote");
        }
    }
}

#[test]
fn the_book_lists_every_page_once() {
    let summary = Page::read(&root().join("docs/SUMMARY.md"));
    let listed: Vec<PathBuf> =
        summary.links().iter().map(|link| summary.beside(&link.target)).collect();
    let once: BTreeSet<&PathBuf> = listed.iter().collect();
    assert_eq!(listed.len(), once.len(), "a page is listed twice");
    for page in pages().into_iter().filter(|page| shown(&page.path).starts_with("docs/")) {
        let known = page.path == summary.path || once.contains(&page.path);
        assert!(known, "docs/SUMMARY.md does not list {}", shown(&page.path));
    }
}

/// The items of a recipe begin with a path.
#[test]
fn recipes_name_files_that_exist() {
    let page = Page::read(&root().join("CONTRIBUTING.md"));
    for recipe in ["score", "divergence", "metric", "key", "op", "verb", "family"] {
        let section = ["a", "an"]
            .iter()
            .find_map(|a| page.section(&format!("{a}-{recipe}")))
            .unwrap_or_else(|| panic!("CONTRIBUTING.md has no recipe for a {recipe}"));
        let files: Vec<&str> = (section.lines())
            .filter_map(|line| line.trim_start().strip_prefix("* `")?.split('`').next())
            .collect();
        assert!(!files.is_empty(), "the recipe for a {recipe} names no file");
        for file in files {
            assert!(root().join(file).exists(), "CONTRIBUTING.md, {recipe}: there is no {file}");
        }
    }
}

#[test]
fn headings_become_anchors_as_on_github() {
    for (heading, name) in [
        ("The quickstart, 2026-11-29", "the-quickstart-2026-11-29"),
        ("`excess`", "excess"),
        ("What is known, in one table", "what-is-known-in-one-table"),
        ("Parity with the CPU ([gpu](x.md))", "parity-with-the-cpu-gpu"),
        ("Keys: `a_b`, c/d", "keys-a_b-cd"),
    ] {
        assert_eq!(anchor(heading), name);
    }
    assert_eq!(
        numbers("-0.1923 (x3), 1,024 and 3.7e-6; 2 to 4 %."),
        ["0.1923", "3", "1,024", "3.7e-6", "2", "4"]
    );
}
