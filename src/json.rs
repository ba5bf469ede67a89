//! JSON as Python writes it, and with every bit.

pub mod exact;

use serde_json::Value;

/// Parses JSON in which, as Python's `json` writes and reads them, `NaN`, `Infinity` and
/// `-Infinity` may stand for numbers. They become null: JSON has no value for them.
pub fn parse(bytes: &[u8]) -> serde_json::Result<Value> {
    match serde_json::from_slice(bytes) {
        Ok(value) => Ok(value),
        // What is wrong with a file is said of the file as it is.
        Err(e) => {
            without_constants(bytes, "null").map_or(Err(e), |plain| serde_json::from_slice(&plain))
        }
    }
}

/// The token ids that a config states under a key: a number or a list.
pub fn ids(value: &Value) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    }
}

/// The same text with `by` for the numbers that Python's json writes and reads and JSON does not
/// have, in as many bytes at least; None if there are none.
pub fn without_constants(text: &[u8], by: &str) -> Option<Vec<u8>> {
    replaced_constants(text, |_| by)
}

/// The same with another word for each: `by` is given `NaN`, `Infinity` or `-Infinity`.
pub fn replaced_constants<'a>(text: &[u8], by: impl Fn(&str) -> &'a str) -> Option<Vec<u8>> {
    let (mut out, mut at, mut quoted, mut found) = (Vec::new(), 0, false, false);
    while let Some(&byte) = text.get(at) {
        // An escaped character inside a string ends nothing.
        let taken = if quoted && byte == b'\\' { 2 } else { 1 };
        out.extend(text[at..].iter().take(taken));
        at += taken;
        quoted ^= byte == b'"';
        if quoted || !matches!(byte, b':' | b',' | b'[') {
            continue;
        }
        let space = text[at..].iter().take_while(|b| b.is_ascii_whitespace()).count();
        let constant = ["NaN", "Infinity", "-Infinity"].into_iter().find(|name| {
            let rest = text[at + space..].strip_prefix(name.as_bytes());
            rest.is_some_and(|rest| {
                rest.first().is_none_or(|b| !b.is_ascii_alphanumeric() && *b != b'.')
            })
        });
        if let Some(name) = constant {
            let (width, by) = (space + name.len(), by(name));
            out.extend(format!("{by:<width$}").bytes());
            (at, found) = (at + width, true);
        }
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
