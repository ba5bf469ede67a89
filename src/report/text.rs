//! Numbers and tables for people.

use std::borrow::Cow;
use std::path::Path;

/// `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|c| std::str::from_utf8(c).unwrap_or_default())
        .collect();
    groups.join(",")
}

/// `512 B`, `1.50 KiB`, `2.00 GiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 { format!("{n} B") } else { scaled(n as f64, 1024.0, &UNITS) }
}

/// `950 FLOP`, `1.23 GFLOP`, `4.56 PFLOP`.
pub fn flops(n: u128) -> String {
    const UNITS: [&str; 8] =
        ["kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP", "YFLOP"];
    if n < 1000 { format!("{n} FLOP") } else { scaled(n as f64, 1000.0, &UNITS) }
}

/// `0.8 s`, `42 s`, `3 min 05 s`, `2 h 07 min`.
pub fn seconds(s: f64) -> String {
    let whole = s.round() as u64;
    if s < 10.0 {
        format!("{s:.1} s")
    } else if whole < 60 {
        format!("{whole} s")
    } else if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
    }
}

/// `12.5 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn scaled(mut x: f64, base: f64, units: &[&str]) -> String {
    let mut unit = "";
    for name in units {
        if x < base {
            break;
        }
        (x, unit) = (x / base, name);
    }
    // Three significant digits.
    let decimals = if x < 10.0 { 2 } else { usize::from(x < 100.0) };
    format!("{x:.decimals$} {unit}")
}

/// Rows of text under a header, aligned: columns that hold only numbers (with a unit, perhaps) to
/// the right.
#[derive(Debug, Clone)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        Self { header: header.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty, surplus ones are dropped.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Self {
        let mut cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        cells.resize(self.header.len(), String::new());
        self.rows.push(cells);
        self
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |text: &str| text.chars().count();
        let columns: Vec<(usize, bool)> = (0..self.header.len())
            .map(|c| {
                let cells = || self.rows.iter().map(move |r| r[c].as_str());
                let widest = cells().map(width).max().unwrap_or(0).max(width(&self.header[c]));
                let mut filled = cells().filter(|t| !t.is_empty()).peekable();
                (widest, filled.peek().is_some() && filled.all(is_number))
            })
            .collect();
        for row in std::iter::once(&self.header).chain(&self.rows) {
            let mut line = String::new();
            for (cell, (widest, right)) in row.iter().zip(&columns) {
                let pad = " ".repeat(widest - width(cell));
                let gap = if line.is_empty() { "" } else { "  " };
                line += gap;
                line += &if *right { pad + cell } else { cell.clone() + &pad };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Digits with separators, sign, decimal point or exponent, perhaps followed by one unit; or a dash
/// for "none".
fn is_number(text: &str) -> bool {
    let mut words = text.split_whitespace();
    let first = words.next().unwrap_or_default();
    let plain: String = first.chars().filter(|c| *c != ',').collect();
    first == "-"
        || (plain.parse::<f64>().is_ok()
            && words.all(|w| {
                w.chars().next().is_some_and(|c| !c.is_ascii_alphabetic()) || w.len() <= 6
            }))
}

/// A path as a shell takes it, for commands to paste.
pub fn quoted(path: &Path) -> String {
    let mut text = path.display().to_string();
    if text.starts_with('-') {
        text.insert_str(0, "./"); // else it is a flag
    }
    // A name that no shell can be given is shown as it is.
    shlex::try_quote(&text).map_or_else(|_| text.clone(), Cow::into_owned)
}

/// Text of a model or a server for a terminal: what would steer it (escape sequences, a return to
/// the line's begin) is shown as a sign instead. Line breaks and tabs stay.
pub fn visible(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let sign = |c: char| match u32::from(c) {
        _ if !steers(c) => c,
        // Unicode has pictures of the old control characters.
        code @ 0..0x20 => char::from_u32(0x2400 + code).unwrap_or(char::REPLACEMENT_CHARACTER),
        0x7f => '\u{2421}',
        _ => char::REPLACEMENT_CHARACTER,
    };
    Cow::Owned(text.chars().map(sign).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_where_a_shell_asks_for_it() {
        assert_eq!(quoted(Path::new("runs/first-1")), "runs/first-1");
        assert_eq!(quoted(Path::new("my run")), "'my run'");
        assert_eq!(quoted(Path::new("-r")), "./-r");
        assert_eq!(quoted(Path::new("it's;rm")), "\"it's;rm\"");
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [1023, 1536, 2 << 30, 123 << 20].map(bytes),
            ["1023 B", "1.50 KiB", "2.00 GiB", "123 MiB"]
        );
        assert_eq!(
            [999, 1000, 4_560_000_000_000_000].map(flops),
            ["999 FLOP", "1.00 kFLOP", "4.56 PFLOP"]
        );
        assert_eq!(
            [0.84, 42.4, 59.7, 185.0, 7620.0].map(seconds),
            ["0.8 s", "42 s", "1 min 00 s", "3 min 05 s", "2 h 07 min"]
        );
        assert_eq!(percent(0.125), "12.5 %");
    }

    #[test]
    fn numeric_columns_align_to_the_right() {
        let mut table = Table::new(["model", "tokens", "size", "ppl"]);
        table
            .row(["teacher", "1,000", "1.50 GiB", "9.5"])
            .row(["a student", "12", "512 B", "-"])
            .row(["x"]);
        assert_eq!(
            table.to_string(),
            "model      tokens      size  ppl\n\
             teacher     1,000  1.50 GiB  9.5\n\
             a student      12     512 B    -\n\
             x\n"
        );
    }

    #[test]
    fn nothing_steers_a_terminal() {
        assert_eq!(visible("a\tb\nc é"), "a\tb\nc é");
        assert_eq!(visible("\x1b]0;title\x07\r\x7f\u{9b}31m"), "␛]0;title␇␍␡\u{fffd}31m");
    }
}
