//! Numbers as people write them on a command line: `.5`, `5.`, `5.e-4`, `1_000`, `1e3` for a whole
//! one. Those of a run file are TOML's.

/// The finite number that `text` says.
pub fn finite(text: &str) -> Option<f64> {
    plain(text)?.parse().ok().filter(|x: &f64| x.is_finite())
}

/// The whole number that `text` says; `1e3` is 1000, and 1000.0 is none.
pub fn whole(text: &str) -> Option<i64> {
    let plain = plain(text)?;
    if let Some(n) = plain.strip_prefix("0x").and_then(|n| i64::from_str_radix(n, 16).ok()) {
        return Some(n);
    }
    if let Ok(n) = plain.parse() {
        return Some(n);
    }
    // Above 2^53 not every whole number is a float.
    let most = (1_u64 << 53) as f64;
    let float = || finite(&plain).filter(|x| x.fract() == 0.0 && x.abs() <= most);
    if plain.contains(['e', 'E']) { float().map(|x| x as i64) } else { None }
}

/// Without the underscores between digits; None where one stands elsewhere.
fn plain(text: &str) -> Option<String> {
    let text = text.trim();
    let digit = |c: Option<&u8>| c.is_some_and(u8::is_ascii_digit);
    let bytes = text.as_bytes();
    let placed = |i: usize| i > 0 && digit(bytes.get(i - 1)) && digit(bytes.get(i + 1));
    let ordinary = text.bytes().enumerate().all(|(i, b)| b != b'_' || placed(i));
    ordinary.then(|| text.replace('_', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        for (text, x) in [
            (".5", 0.5),
            ("5.", 5.0),
            ("5.e-4", 5e-4),
            (" +.001", 1e-3),
            ("-.25", -0.25),
            ("1_000.5", 1000.5),
            ("1E3", 1000.0),
            ("007", 7.0),
        ] {
            assert_eq!(finite(text), Some(x), "{text}");
        }
        for (text, n) in [
            ("1_000", 1000),
            ("1e3", 1000),
            ("2.5e1", 25),
            ("-3", -3),
            ("+4", 4),
            ("010", 10),
            ("0x10", 16),
        ] {
            assert_eq!(whole(text), Some(n), "{text}");
        }
        for text in
            ["", ".", "_1", "1_", "1__0", "1_.5", "inf", "nan", "1,5", "0.5.1", "1k", "1e999"]
        {
            assert_eq!(finite(text), None, "{text}");
        }
        for text in ["1000.0", ".5", "1e-3", "1e300", "9223372036854775808", "1e16"] {
            assert_eq!(whole(text), None, "{text}");
        }
        assert_eq!(whole("9223372036854775807"), Some(i64::MAX));
    }
}
