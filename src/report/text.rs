//! Numbers, units and paths for people.

pub use super::screen::{PLAIN_WIDTH, Screen};
pub use super::table::Table;

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

/// `1,234.50` with that many digits behind the point; `-` where it is none.
pub fn decimal(x: f64, digits: usize) -> String {
    if !x.is_finite() {
        return "-".into();
    }
    let text = format!("{:.digits$}", x.abs());
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    // What is too large for groups of digits says enough without.
    let whole = whole.parse().map_or_else(|_| whole.to_string(), count);
    format!("{}{whole}{rest}", if x < 0.0 { "-" } else { "" })
}

/// `+0.0123`, `-1.50`; what rounds to nothing has no sign.
pub fn signed(x: f64, digits: usize) -> String {
    let text = format!("{x:+.digits$}");
    match text.contains(|c: char| c.is_ascii_digit() && c != '0') {
        true => text,
        false => text[1..].to_string(),
    }
}

/// `1 step`, `1,200 steps`; the unit is given as of many. Bytes become `1.50 KiB`.
pub fn amount(n: u64, unit: &str) -> String {
    let one = || match unit.strip_suffix("ies") {
        Some(stem) => format!("{stem}y"),
        None => unit.strip_suffix('s').unwrap_or(unit).to_string(),
    };
    match (n, unit) {
        (n, "bytes") => bytes(n),
        (1, _) => format!("1 {}", one()),
        (n, _) => format!("{} {unit}", count(n)),
    }
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

/// The perplexity of a loss in nats: `237.59`; `2.0e43` where no model is so bad that counts.
pub fn perplexity(loss: f64) -> String {
    let perplexity = loss.exp();
    if perplexity < 1e12 { decimal(perplexity, 2) } else { format!("{perplexity:.1e}") }
}

/// `3.2 ms`, `0.8 s`, `42 s`, `3 min 05 s`, `2 h 07 min`.
pub fn seconds(s: f64) -> String {
    let s = if s.is_finite() { s.max(0.0) } else { 0.0 };
    let whole = s.round() as u64;
    if (5e-5..0.0995).contains(&s) {
        let digits = usize::from(s < 0.00995);
        format!("{:.digits$} ms", 1e3 * s)
    } else if s < 9.95 {
        format!("{s:.1} s")
    } else if whole < 60 {
        format!("{whole} s")
    } else if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
    }
}

/// A text of at most `width` characters: the middle of a longer one is left out.
pub fn shortened(text: &str, width: usize) -> String {
    let letters: Vec<char> = text.chars().collect();
    let Some(kept) = width.checked_sub(1).filter(|_| letters.len() > width) else {
        return text.to_string();
    };
    // The end of a path says more than its begin.
    let (head, tail) = (kept / 3, kept - kept / 3);
    let (head, tail) = (&letters[..head], &letters[letters.len() - tail..]);
    head.iter().chain(&['\u{2026}']).chain(tail).collect()
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

/// At the begin of a line: it is a heading. The printer makes it bold, or drops the mark.
pub const HEADING: char = '\u{1}';
/// Around what is marked in a text, for a terminal that shows it bold and underlined.
pub const MARKED: [char; 2] = ['\u{2}', '\u{3}'];

/// A word of a command as a shell takes it.
pub fn shell_word(text: &str) -> String {
    // What no shell can be given is shown as it is.
    // `--flag=value` needs no quotes; shlex knows `=` from assignments.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@%+".contains(c);
    if text.starts_with("--") && text.chars().all(plain) {
        return text.to_string();
    }
    shlex::try_quote(text).map_or_else(|_| text.to_string(), Cow::into_owned)
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
            [0.84, 9.96, 42.4, 59.7, 185.0, 7620.0, -1.0].map(seconds),
            ["0.8 s", "10 s", "42 s", "1 min 00 s", "3 min 05 s", "2 h 07 min", "0.0 s"]
        );
        assert_eq!(
            [0.0995, 0.0994, 0.00996, 0.0042, 0.00006, 0.0].map(seconds),
            ["0.1 s", "99 ms", "10 ms", "4.2 ms", "0.1 ms", "0.0 s"]
        );
        assert_eq!(percent(0.125), "12.5 %");
        assert_eq!(
            [(1, "steps"), (0, "steps"), (1, "stories"), (1200, "tokens"), (2048, "bytes")]
                .map(|(n, unit)| amount(n, unit)),
            ["1 step", "0 steps", "1 story", "1,200 tokens", "2.00 KiB"]
        );
    }

    #[test]
    fn decimals_have_groups_too() {
        let written = [1843.017, 3.0, -0.5, f64::INFINITY].map(|x| decimal(x, 2));
        assert_eq!(written, ["1,843.02", "3.00", "-0.50", "-"]);
        assert!(decimal(1e30, 1).starts_with("1000000"));
        let written = [0.01234, -1.5, 0.00004, -0.00004, 0.0].map(|x| signed(x, 4));
        assert_eq!(written, ["+0.0123", "-1.5000", "0.0000", "0.0000", "0.0000"]);
        assert_eq!(perplexity(3.0), "20.09");
        assert_eq!(perplexity(27.0), "532,048,240,601.80");
        assert_eq!((perplexity(100.0), perplexity(1e3)), ("2.7e43".into(), "inf".into()));
    }

    #[test]
    fn what_is_too_long_loses_its_middle() {
        assert_eq!(shortened("runs/first", 10), "runs/first");
        assert_eq!(shortened("data/books/train.bin", 10), "dat\u{2026}in.bin");
        assert_eq!(shortened("abc", 0), "abc");
    }

    #[test]
    fn nothing_steers_a_terminal() {
        assert_eq!(visible("a\tb\nc é"), "a\tb\nc é");
        assert_eq!(visible("\x1b]0;title\x07\r\x7f\u{9b}31m"), "␛]0;title␇␍␡\u{fffd}31m");
    }
}
