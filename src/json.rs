//! JSON as Python writes it.

use serde_json::Value;

/// Parses JSON in which, as Python's `json` writes and reads them, `NaN`, `Infinity` and
/// `-Infinity` may stand for numbers. They become null: JSON has no value for them.
pub fn parse(bytes: &[u8]) -> serde_json::Result<Value> {
    match serde_json::from_slice(bytes) {
        Ok(value) => Ok(value),
        // What is wrong with a file is said of the file as it is.
        Err(e) => without_specials(bytes).map_or(Err(e), |plain| serde_json::from_slice(&plain)),
    }
}

/// The same text with null for numbers that JSON does not know; None if there are none.
fn without_specials(bytes: &[u8]) -> Option<Vec<u8>> {
    const SPECIALS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
    let (mut out, mut found) = (Vec::with_capacity(bytes.len()), false);
    let (mut at, mut in_string) = (0, false);
    while let Some(&byte) = bytes.get(at) {
        let special = SPECIALS.iter().find(|s| !in_string && bytes[at..].starts_with(s));
        if let Some(special) = special {
            out.extend_from_slice(b"null");
            (at, found) = (at + special.len(), true);
            continue;
        }
        // An escaped character inside a string ends nothing.
        let length = if in_string && byte == b'\\' { 2 } else { 1 };
        in_string ^= byte == b'"';
        out.extend(bytes[at..].iter().take(length));
        at += length;
    }
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pythons_numbers_are_null_and_text_is_text() {
        let text =
            r#"{"a": NaN, "b": [Infinity, -Infinity, 1.5], "c": "NaN \" -Infinity \\", "d": -1}"#;
        let want = json!({"a": null, "b": [null, null, 1.5], "c": "NaN \" -Infinity \\", "d": -1});
        assert_eq!(parse(text.as_bytes()).unwrap(), want);
        for bad in ["", "{", "NaNs", r#"{"a": nan}"#, r#"{"a": NaN"#, "-", "\"NaN"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
