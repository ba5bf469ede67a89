//! The reference of keys as Markdown, written from the table: docs/reference/keys.md.

use super::keys::{Counts, Fallback, KEYS, Key, Kind};

/// A table for each section: every key with what it accepts, its default, its meaning, and whether
/// a resumed run must keep it (its mathematics) or is free to change it.
pub fn reference() -> String {
    let tables: Vec<String> = KEYS.chunk_by(|a, b| section(a) == section(b)).map(table).collect();
    tables.join("\n")
}

fn section(key: &Key) -> &'static str {
    key.name.split_once('.').map_or("", |(section, _)| section)
}

fn table(keys: &[Key]) -> String {
    let title = match keys.first().map_or("", section) {
        "" => "## At the top of the file".to_string(),
        name => format!("## `[{name}]`"),
    };
    let rows: String = keys.iter().map(row).collect();
    format!(
        "{title}\n\n| key | accepts | default | meaning | at resume |\n|---|---|---|---|---|\n{rows}"
    )
}

fn row(key: &Key) -> String {
    let default = match &key.default {
        Fallback::Absent => "absent".to_string(),
        Fallback::Is(value) => format!("`{value}`"),
        Fallback::Rule(rule, _) => (*rule).to_string(),
    };
    let resume = match &key.counts {
        Counts::Always => "keep".to_string(),
        Counts::Never => "free".to_string(),
        Counts::When(when, _) => format!("keep where {when}"),
    };
    let mut meaning = key.help.to_string();
    if let Some(was) = key.was {
        meaning += &format!(" (before: `{was}`)");
    }
    if let Kind::Choice(words, meanings) = &key.kind {
        meaning += ".";
        for (word, what) in words.iter().zip(*meanings) {
            meaning += &format!("<br>`{word}`: {what}");
        }
    }
    let cells = [key.kind.brief(), default, meaning, resume].map(|cell| cell.replace('|', "\\|"));
    format!("| `{}` | {} |\n", key.name, cells.join(" | "))
}
