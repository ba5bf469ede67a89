//! Tables for people, as wide as they are or as wide as a terminal.

use super::screen::Screen;
use super::text::{HEADING, MARKED, visible};
use std::iter::once;
use unicode_width::UnicodeWidthStr;

/// Between two columns.
const GAP: usize = 2;
/// A column of words is not broken narrower than this.
const LEAST_COLUMN: usize = 12;

/// Rows of text under a header, aligned: columns that hold only numbers (with a unit, perhaps) to
/// the right.
#[derive(Debug, Clone)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// How a column is shown.
#[derive(Debug, Clone, Copy)]
struct Column {
    width: usize,
    right: bool,
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

    /// The table for a stream. On a terminal it is no wider than that: words go on in a second
    /// line of their cell, and columns that still find no room follow in a second table below,
    /// behind the first column. Headers are marked with [`HEADING`] there. A pipe or a file gets
    /// one line a row, as wide as it is.
    pub fn on(&self, screen: &Screen) -> String {
        let Some(width) = screen.width else { return self.to_string() };
        // Broken into lines first and made harmless then, a name could still steer.
        let safe = |row: &Vec<String>| row.iter().map(|cell| visible(cell).into_owned()).collect();
        let table = Self { header: safe(&self.header), rows: self.rows.iter().map(safe).collect() };
        let columns = table.fitted(width);
        let mut blocks = Vec::new();
        let mut next = 0;
        while next < columns.len() {
            // The first column again, then as many as there is room for, one at least.
            let mut shown: Vec<usize> = if next == 0 { Vec::new() } else { vec![0] };
            let mut used: usize = shown.iter().map(|&c| columns[c].width).sum();
            while next < columns.len() {
                let more = columns[next].width + if shown.is_empty() { 0 } else { GAP };
                if used + more > width && shown.iter().any(|&c| c > 0) {
                    break;
                }
                used += more;
                shown.push(next);
                next += 1;
            }
            blocks.push(match table.breaks_words(&columns, &shown, width) {
                true => table.stacked(shown[1], width),
                false => table.block(&columns, &shown),
            });
        }
        blocks.join("\n")
    }

    /// The columns as wide as they are.
    fn natural(&self) -> Vec<Column> {
        let column = |c: usize| {
            let cells = || self.rows.iter().map(move |r| r[c].as_str());
            let width = cells().map(UnicodeWidthStr::width).max().unwrap_or(0);
            let mut filled = cells().filter(|t| !t.is_empty()).peekable();
            let right = filled.peek().is_some() && filled.all(is_number);
            Column { width: width.max(self.header[c].width()), right }
        };
        (0..self.header.len()).map(column).collect()
    }

    /// The columns so narrow that all fit `width`, or as narrow as they get: headers break first,
    /// then the widest words.
    fn fitted(&self, width: usize) -> Vec<Column> {
        let mut columns = self.natural();
        let excess = |columns: &[Column]| {
            let all = columns.iter().map(|c| c.width + GAP).sum::<usize>().saturating_sub(GAP);
            all.saturating_sub(width)
        };
        for (c, header) in self.header.iter().enumerate() {
            let over = excess(&columns);
            if over > 0 && columns[c].right {
                let cells = self.rows.iter().map(|r| r[c].width()).max().unwrap_or(0);
                let word = header.split(' ').map(UnicodeWidthStr::width).max().unwrap_or(0);
                columns[c].width = columns[c].width.saturating_sub(over).max(cells).max(word);
            }
        }
        let longest = |c: usize| self.longest_word(c);
        // Between words as long as that is enough, inside them only then; the first column, which
        // names the rows, as late as a window of its width allows.
        let whole: Vec<usize> = (0..columns.len()).map(|c| longest(c).max(LEAST_COLUMN)).collect();
        let mut least = vec![LEAST_COLUMN; columns.len()];
        if let Some(first) = least.first_mut().filter(|_| 3 * whole[0] <= 2 * width) {
            *first = whole[0];
        }
        for least in [whole, least] {
            while excess(&columns) > 0 {
                let narrower =
                    |(c, column): &(usize, &mut Column)| !column.right && column.width > least[*c];
                let candidates = columns.iter_mut().enumerate().filter(narrower);
                let Some((_, widest)) = candidates.max_by_key(|(_, c)| c.width) else { break };
                widest.width -= 1;
            }
        }
        if excess(&columns) > 0 {
            // Some must follow below, where there is room for headers as they are.
            for (column, natural) in columns.iter_mut().zip(self.natural()) {
                column.width = if column.right { natural.width } else { column.width };
            }
        }
        // What stands alone in its line must still fit there.
        columns.iter_mut().for_each(|c| c.width = c.width.min(width));
        columns
    }

    fn longest_word(&self, c: usize) -> usize {
        let cells = once(&self.header).chain(&self.rows).map(move |row| row[c].as_str());
        cells.flat_map(|cell| cell.split(' ')).map(UnicodeWidthStr::width).max().unwrap_or(0)
    }

    /// Whether a column beside the first one is narrower than a word of its own that a line of
    /// `width` has room for.
    fn breaks_words(&self, columns: &[Column], shown: &[usize], width: usize) -> bool {
        let &[0, c] = shown else { return false };
        (columns[c].width + 1..=width - GAP).contains(&self.longest_word(c))
    }

    /// The first column, and each cell of the column `c` in lines of its own below.
    fn stacked(&self, c: usize, width: usize) -> String {
        let mut out = String::new();
        for (i, row) in once(&self.header).chain(&self.rows).enumerate() {
            let below = broken(&row[c], width - GAP).into_iter();
            let below = below.map(|line| format!("{}{line}", " ".repeat(GAP)));
            for line in broken(&row[0], width).into_iter().chain(below) {
                if i == 0 {
                    out.push(HEADING);
                }
                out += line.trim_end();
                out.push('\n');
            }
        }
        out
    }

    /// The columns `shown`, with their header.
    fn block(&self, columns: &[Column], shown: &[usize]) -> String {
        let mut out = String::new();
        for (i, row) in once(&self.header).chain(&self.rows).enumerate() {
            let cells: Vec<Vec<String>> =
                shown.iter().map(|&c| broken(&row[c], columns[c].width)).collect();
            let lines = cells.iter().map(Vec::len).max().unwrap_or(1).max(1);
            for l in 0..lines {
                let mut line = String::new();
                for (cell, &c) in cells.iter().zip(shown) {
                    let text = cell.get(l).map_or("", String::as_str);
                    put(&mut line, text, columns[c], c != shown[0]);
                }
                if i == 0 {
                    out.push(HEADING);
                }
                out += line.trim_end();
                out.push('\n');
            }
        }
        out
    }
}

/// One cell after what stands in the line.
fn put(line: &mut String, text: &str, column: Column, follows: bool) {
    let pad = " ".repeat(column.width.saturating_sub(text.width()));
    if follows {
        *line += &" ".repeat(GAP);
    }
    let (before, after) = if column.right { (pad.as_str(), "") } else { ("", pad.as_str()) };
    *line += before;
    *line += text;
    *line += after;
}

/// A cell in lines of at most `width` columns, broken between words and, where a word is longer,
/// inside it.
pub fn broken(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let gap = usize::from(!line.is_empty());
        if !line.is_empty() && line.width() + gap + word.width() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        for c in word.chars() {
            if !line.is_empty() && line.width() + c.to_string().width() > width {
                lines.push(std::mem::take(&mut line));
            }
            line.push(c);
        }
    }
    lines.push(line);
    lines
}

/// A line of prose in lines of at most `width` columns, broken between words; behind a name and a
/// gap (`chip        x86-64`) all of it stays there. What is longer than a line (a path), and a
/// command, in backticks or bare, stays whole, so that it can be pasted.
pub fn folded(line: &str, width: usize) -> String {
    let columns = |text: &str| text.replace(MARKED, "").width();
    if columns(line) <= width {
        return line.to_string();
    }
    let gap = line.find("  ").map(|at| at + line[at..].len() - line[at..].trim_start().len());
    let hang = gap.map_or(0, |at| columns(&line[..at]));
    let hang = if hang <= width / 2 { hang } else { 0 };
    let (mut out, mut used) = (String::new(), 0);
    for (i, word) in words(line).into_iter().enumerate() {
        let room = width.saturating_sub(used + 1);
        if i > 0 && used > hang && !word.is_empty() && columns(word) > room {
            out.truncate(out.trim_end().len());
            out += &format!("\n{}", " ".repeat(hang));
            used = hang;
        } else if i > 0 {
            out.push(' ');
            used += 1;
        }
        out += word;
        used += columns(word);
    }
    out
}

/// How a command begins that stands in prose without backticks, behind a colon in a sentence; it ends
/// with the sentence's part.
const COMMAND: &str = "eslm-kd ";

/// What stands between spaces; with what stands in backticks, and a bare command, as one.
fn words(line: &str) -> Vec<&str> {
    let pairs = line.matches('`').count().is_multiple_of(2);
    let (mut words, mut rest) = (Vec::new(), line);
    loop {
        let mut inside = false;
        // The first word is a label: `error:`.
        let follows =
            words.len() > 1 && words.last().is_some_and(|word: &&str| word.ends_with(':'));
        let end = match follows && rest.starts_with(COMMAND) {
            true => rest.find("; ").map(|at| at + 1),
            false => rest.find(|c: char| {
                inside ^= pairs && c == '`';
                c == ' ' && !inside
            }),
        };
        let Some(end) = end else {
            words.push(rest);
            return words;
        };
        words.push(&rest[..end]);
        rest = &rest[end + 1..];
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.natural();
        for row in once(&self.header).chain(&self.rows) {
            let mut line = String::new();
            for (c, (cell, column)) in row.iter().zip(&columns).enumerate() {
                put(&mut line, cell, *column, c > 0);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numeric_columns_align_to_the_right() {
        let mut table = Table::new(["model", "tokens", "size", "ppl"]);
        table
            .row(["teacher", "1,000", "1.50 GiB", "9.5"])
            .row(["a student", "12", "512 B", "-"])
            .row(["x"]);
        let plain = "model      tokens      size  ppl\n\
                     teacher     1,000  1.50 GiB  9.5\n\
                     a student      12     512 B    -\n\
                     x\n";
        assert_eq!(table.to_string(), plain);
        // A file does not know how wide a window is; a window with room shows the same.
        assert_eq!(table.on(&Screen::default()), plain);
        let wide = Screen { width: Some(80), ..Screen::default() };
        assert_eq!(table.on(&wide).replace(HEADING, ""), plain);
    }

    #[test]
    fn a_table_is_no_wider_than_the_terminal_and_nothing_of_it_is_lost() {
        let mut table =
            Table::new(["arm", "steps", "tokens", "time", "validation CE", "to baseline", "p"]);
        let path = "runs/a-folder-with-a-very-long-name/that-goes-on/and-on/checkpoints";
        for arm in ["plain", "distilled on selected tokens by the loss", path, "\u{65e5}\u{672c}"] {
            table.row([
                arm,
                "10,000",
                "655,360,000",
                "12 h 05 min",
                "3.2345 ± 0.0123",
                "-0.1234",
                "0.047",
            ]);
        }
        for width in [40, 60, 80, 100] {
            let shown = table.on(&Screen { width: Some(width), ..Screen::default() });
            let plain = shown.replace(HEADING, "");
            for line in plain.lines() {
                assert!(line.width() <= width, "{width}: {} in\n{plain}", line.width());
            }
            let letters =
                |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            for part in ["655,360,000", "12 h 05 min", "3.2345 ± 0.0123", "-0.1234", "0.047"] {
                assert_eq!(plain.matches(part).count(), 4, "{width}: {part} in\n{plain}");
            }
            // The names, put together again from the first column.
            let first: String = plain
                .lines()
                .map(|l| l.split("  ").next().unwrap_or_default())
                .map(letters)
                .collect();
            assert!(
                first.contains(path) && first.contains("onselectedtokens"),
                "{width}:\n{plain}"
            );
        }
    }

    #[test]
    fn names_of_rows_are_whole_where_a_window_has_room_for_them() {
        let mut table = Table::new(["key", "value", "origin"]);
        table.row(["objective.temperature_end", "2.0", "built-in/quickstart.toml:17"]);
        table.row(["steps", "a-value-with-a-long-name", "default"]);
        for width in [40, 60, 80] {
            let shown = table.on(&Screen { width: Some(width), ..Screen::default() });
            assert!(shown.contains("objective.temperature_end"), "{width}:\n{shown}");
            assert!(shown.lines().all(|line| line.width() <= width), "{width}:\n{shown}");
        }
    }

    #[test]
    fn a_word_that_finds_no_room_beside_the_first_column_stands_below() {
        let mut table = Table::new(["key", "origin"]);
        table.row(["objective.temperature_end", "built-in quickstart.toml:17"]);
        let shown = table.on(&Screen { width: Some(40), ..Screen::default() });
        assert_eq!(
            shown.replace(HEADING, ""),
            "key\n  origin\nobjective.temperature_end\n  built-in quickstart.toml:17\n"
        );
        let wide = table.on(&Screen { width: Some(60), ..Screen::default() });
        assert_eq!(wide.lines().count(), 2, "{wide}");
    }

    #[test]
    fn prose_breaks_between_words_and_what_can_be_pasted_stays_whole() {
        let line = "no data in it; name a folder, made by `eslm-kd prepare --out data`, or a file";
        assert_eq!(
            folded(line, 30),
            "no data in it; name a folder,\nmade by\n`eslm-kd prepare --out data`,\nor a file"
        );
        assert_eq!(folded(line, 80), line);
        let bare = "found a file; make a folder: eslm-kd prepare --input a.gz --out data/mine; or name one";
        assert_eq!(
            folded(bare, 30),
            "found a file; make a folder:\neslm-kd prepare --input a.gz --out data/mine;\nor name one"
        );
        let last = bare.split_once("; or").unwrap().0;
        assert!(folded(last, 30).ends_with("\neslm-kd prepare --input a.gz --out data/mine"));
        let verb = "error: eslm-kd eval needs --data, as in the help";
        assert_eq!(folded(verb, 30), "error: eslm-kd eval needs\n--data, as in the help");
        assert_eq!(folded("see runs/a/very/long/path now", 10), "see\nruns/a/very/long/path\nnow");
        // Behind a name; gaps stay as wide as they are.
        assert_eq!(
            folded("chip    one two  three", 16),
            "chip    one two  three".replace("  three", "\n        three")
        );
        assert_eq!(folded("a name    with a gap far off", 12), "a name\nwith a gap\nfar off");
        // Marks have no width; a single backtick quotes nothing.
        assert_eq!(folded("\u{2}one\u{3} two", 7), "\u{2}one\u{3} two");
        assert_eq!(folded("a ` b c", 3), "a `\nb c");
        // No word of a text is lost at any width.
        for width in 1..60 {
            let all = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
            assert_eq!(all(&folded(line, width)), all(line), "{width}");
        }
    }

    #[test]
    fn words_break_between_and_long_ones_inside() {
        assert_eq!(broken("one two three", 7), ["one two", "three"]);
        assert_eq!(broken("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(broken("", 5), [""]);
        assert_eq!(broken("x", 0), ["x"]);
    }
}
