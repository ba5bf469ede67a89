//! As much of Markdown as the documents use.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A page.
pub struct Page {
    pub path: PathBuf,
    pub text: String,
}

/// A link, or a table that quotes: what is shown and where it leads.
#[derive(Debug, Clone)]
pub struct Link {
    pub text: String,
    pub target: String,
    pub line: usize,
}

/// GitHub's name for a heading.
pub fn anchor(heading: &str) -> String {
    // A link counts by its text.
    let mut text = heading.to_string();
    while let Some((start, end)) = text.find("](").and_then(|i| Some((i, i + text[i..].find(')')?)))
    {
        text.replace_range(start..=end, "");
        text = text.replacen('[', "", 1);
    }
    text.trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// The numbers of a text as written, without their signs.
pub fn numbers(text: &str) -> Vec<String> {
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        rest = &rest[start..];
        let mut end = digits(rest);
        // Points, groups of three, and an exponent belong to it where digits follow.
        while let Some(more) = rest[end..].strip_prefix(['.', ',']).map(digits).filter(|n| *n > 0) {
            if rest[end..].starts_with(',') && more != 3 {
                break;
            }
            end += 1 + more;
        }
        if let Some(power) = rest[end..].strip_prefix('e') {
            let sign = usize::from(power.starts_with(['-', '+']));
            let more = digits(&power[sign..]);
            end += if more > 0 { 1 + sign + more } else { 0 };
        }
        // A date names a record.
        let date = rest.get(..10).filter(|d| {
            d.bytes().enumerate().all(|(i, b)| match i {
                4 | 7 => b == b'-',
                _ => b.is_ascii_digit(),
            })
        });
        end = date.map_or(end, str::len);
        if date.is_none() {
            found.push(rest[..end].to_string());
        }
        rest = &rest[end..];
    }
    found
}

impl Page {
    pub fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { path: path.to_path_buf(), text }
    }

    /// The file that a relative link names.
    pub fn beside(&self, file: &str) -> PathBuf {
        let mut path = self.path.parent().unwrap().to_path_buf();
        for part in file.split('/') {
            match part {
                "." | "" => {}
                ".." => assert!(path.pop()),
                name => path.push(name),
            }
        }
        path
    }

    /// Line numbers and lines outside of fenced code, inline code blanked.
    fn prose(&self) -> Vec<(usize, String)> {
        let (mut fenced, mut lines) = (false, Vec::new());
        for (i, line) in self.text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
                lines.push((i + 1, String::new()));
            } else if fenced {
                lines.push((i + 1, String::new()));
            } else {
                let parts: Vec<&str> = line.split('`').collect();
                // An odd backtick closes in another line; nothing of the kind is in a link.
                let blank = |(n, part): (usize, &&str)| match n % 2 {
                    1 => " ".repeat(part.len()),
                    _ => (*part).to_string(),
                };
                let line: Vec<String> = parts.iter().enumerate().map(blank).collect();
                lines.push((i + 1, line.join("`")));
            }
        }
        lines
    }

    fn whole_prose(&self) -> (String, Vec<(usize, usize)>) {
        let (mut text, mut starts) = (String::new(), Vec::new());
        for (number, line) in self.prose() {
            starts.push((text.len(), number));
            text += &line;
            text.push('\n');
        }
        (text, starts)
    }

    /// Every link, also one that is broken over lines.
    pub fn links(&self) -> Vec<Link> {
        let (text, starts) = self.whole_prose();
        let mut links = Vec::new();
        let mut from = 0;
        while let Some(middle) = text[from..].find("](").map(|i| from + i) {
            from = middle + 2;
            let Some(end) = text[from..].find(')').map(|i| from + i) else { break };
            let Some(open) = text[..middle].rfind('[') else { continue };
            let line = starts.iter().rev().find(|(at, _)| *at <= open).unwrap().1;
            let target = text[from..end].trim().to_string();
            links.push(Link { text: text[open + 1..middle].replace('\n', " "), target, line });
        }
        links
    }

    /// Tables under a comment that names whom they quote: their cells.
    pub fn quoted_tables(&self) -> Vec<Link> {
        let mut found: Vec<Link> = Vec::new();
        let mut open = false;
        for (i, line) in self.text.lines().enumerate() {
            if let Some(target) = line.strip_prefix("<!-- quote: ") {
                let target = target.trim_end_matches("-->").trim().to_string();
                // Its own page's name may stand for this page.
                found.push(Link { text: String::new(), target, line: i + 1 });
                open = true;
            } else if open && line.starts_with('|') {
                let last = found.last_mut().unwrap();
                last.text += line;
                last.text.push('\n');
            } else if open && !line.trim().is_empty() {
                open = false;
            }
        }
        found
    }

    /// Lines outside of code, links and quoted tables.
    pub fn unquoted(&self) -> Vec<(usize, String)> {
        let (mut text, starts) = self.whole_prose();
        while let Some(middle) = text.find("](") {
            let end = middle + text[middle..].find(')').unwrap();
            let open = text[..middle].rfind('[').unwrap();
            text.replace_range(open..=end, &" ".repeat(end + 1 - open));
        }
        let mut quoted = false;
        let mut lines = Vec::new();
        for (n, (start, number)) in starts.iter().enumerate() {
            let end = starts.get(n + 1).map_or(text.len(), |(next, _)| *next);
            let line = text[*start..end].to_string();
            quoted = line.starts_with("<!-- quote: ")
                || quoted && (line.starts_with('|') || line.trim().is_empty());
            if !quoted {
                lines.push((*number, line));
            }
        }
        lines
    }

    /// Levels, anchors and line indices of the headings.
    fn headings(&self) -> Vec<(usize, String, usize)> {
        let mut found: Vec<(usize, String, usize)> = Vec::new();
        let mut fenced = false;
        for (i, line) in self.text.lines().enumerate() {
            fenced ^= line.trim_start().starts_with("```");
            let level = line.bytes().take_while(|b| *b == b'#').count();
            if fenced || level == 0 || !line[level..].starts_with(' ') {
                continue;
            }
            let name = anchor(&line[level..]);
            let same = found.iter().filter(|(_, other, _)| {
                *other == name
                    || other
                        .strip_prefix(&name)
                        .is_some_and(|n| n.starts_with('-') && n[1..].parse::<u32>().is_ok())
            });
            let name = match same.count() {
                0 => name,
                n => format!("{name}-{n}"),
            };
            found.push((level, name, i));
        }
        found
    }

    pub fn anchors(&self) -> BTreeSet<String> {
        self.headings().into_iter().map(|(_, name, _)| name).collect()
    }

    /// A heading with all up to the next one of its level or above.
    pub fn section(&self, anchor: &str) -> Option<String> {
        let headings = self.headings();
        let at = headings.iter().position(|(_, name, _)| name == anchor)?;
        let (level, _, start) = headings[at];
        let end = headings[at + 1..].iter().find(|(other, ..)| *other <= level);
        let end = end.map_or(usize::MAX, |(_, _, line)| *line);
        let lines = self.text.lines().enumerate().filter(|(i, _)| (start..end).contains(i));
        Some(lines.map(|(_, line)| line).collect::<Vec<_>>().join("\n"))
    }
}
