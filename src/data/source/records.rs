//! JSON lines: one object per line, of which one field is the document.

use super::pieces::{Row, Rows};
use super::{MOST_DOCUMENT_BYTES, ReadOptions, Source};
use crate::error::Result;
use crate::json;
use crate::report::text;
use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, Read};

pub struct LineReader {
    source: Source,
    input: Box<dyn BufRead + Send>,
    field: String,
    skip_bad: bool,
    line: Vec<u8>,
    number: u64,
    offset: u64,
}

impl LineReader {
    pub fn new(source: &Source, input: Box<dyn BufRead + Send>, options: &ReadOptions) -> Self {
        let (source, field, skip_bad) =
            (source.clone(), options.text_field.clone(), options.skip_bad);
        Self { source, input, field, skip_bad, line: Vec::new(), number: 0, offset: 0 }
    }

    /// What the line holds; None if it is blank.
    fn parse(&self) -> Option<Row> {
        let text = match std::str::from_utf8(&self.line) {
            Ok(text) => text,
            Err(e) => {
                let at = self.offset + e.valid_up_to() as u64;
                return Some(Row::Bad(format!("not UTF-8 at byte {at} of the file")));
            }
        };
        let text =
            if self.number == 1 { text.strip_prefix('\u{FEFF}').unwrap_or(text) } else { text };
        if text.trim().is_empty() {
            return None;
        }
        let found = text_of(text, &self.field).or_else(|e| {
            // ASCII for ASCII, as long: columns stay.
            let plain = json::without_constants(text.as_bytes(), "0");
            let plain = plain.and_then(|bytes| String::from_utf8(bytes).ok());
            plain.map_or(Err(e), |plain| text_of(&plain, &self.field))
        });
        Some(found.map_or_else(
            |e| {
                let what = e.to_string();
                let what = what.split(" at line ").next().unwrap_or(&what);
                Row::Bad(match what.starts_with(NO_FIELD) {
                    true => format!("{what}{}", other_fields(text)),
                    false => format!("{what} (column {})", e.column()),
                })
            },
            Row::Text,
        ))
    }

    /// Goes past the end of a line that is too long to be held.
    fn pass_over(&mut self) -> Result<()> {
        while self.line.last() != Some(&b'\n') {
            self.offset += self.line.len() as u64;
            self.line.clear();
            let more = (&mut self.input).take(1 << 16).read_until(b'\n', &mut self.line);
            if more.map_err(|e| self.source.unreadable(&e))? == 0 {
                break;
            }
        }
        Ok(())
    }
}

impl Rows for LineReader {
    fn next_row(&mut self) -> Result<Option<Row>> {
        loop {
            self.offset += self.line.len() as u64;
            self.line.clear();
            let read = (&mut self.input)
                .take(MOST_DOCUMENT_BYTES as u64 + 1)
                .read_until(b'\n', &mut self.line);
            if read.map_err(|e| self.source.unreadable(&e))? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if self.line.len() > MOST_DOCUMENT_BYTES {
                if self.skip_bad {
                    self.pass_over()?;
                }
                return Ok(Some(Row::Bad(format!(
                    "the line is longer than {}; expected one JSON object per line",
                    text::bytes(MOST_DOCUMENT_BYTES as u64)
                ))));
            }
            if let Some(row) = self.parse() {
                return Ok(Some(row));
            }
        }
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn place(&self) -> String {
        format!("{}:{}", self.source.path.display(), self.number)
    }
}

/// How the error of a row without the field begins.
const NO_FIELD: &str = "no field";
/// Most fields that it names.
const MOST_FIELDS: usize = 8;

/// What to name instead, of an object without the field.
fn other_fields(line: &str) -> String {
    let fields: BTreeMap<String, IgnoredAny> = serde_json::from_str(line).unwrap_or_default();
    let more = if fields.len() > MOST_FIELDS { ", ..." } else { "" };
    let names: Vec<String> = fields.keys().take(MOST_FIELDS).map(|f| format!("{f:?}")).collect();
    match names.is_empty() {
        true => "; expected one of that name, or another named with --text-field".to_string(),
        false => format!("; it has {}{more}: name one with --text-field", names.join(", ")),
    }
}

fn text_of(line: &str, field: &str) -> serde_json::Result<String> {
    let mut json = serde_json::Deserializer::from_str(line);
    let text = json.deserialize_map(Field(field))?;
    json.end().map(|()| text)
}

/// Takes one string field out of an object without building the others.
struct Field<'a>(&'a str);

impl<'de> Visitor<'de> for Field<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a JSON object with the text field {:?}", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<String, A::Error> {
        let mut found = None;
        while let Some(named) = map.next_key_seed(Named(self.0))? {
            if named {
                found = Some(map.next_value::<Found>()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        match found {
            Some(Found::Text(text)) => Ok(text),
            Some(Found::Other(kind)) => {
                Err(A::Error::custom(format!("field {:?} is {kind}; expected a string", self.0)))
            }
            None => Err(A::Error::custom(format!("{NO_FIELD} {:?}", self.0))),
        }
    }
}

/// Whether a key is the field's. As bytes: a key may hold half a surrogate pair, which is no text
/// and none of ours.
struct Named<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> std::result::Result<bool, D::Error> {
        key.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Named<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E>(self, key: &[u8]) -> std::result::Result<bool, E> {
        Ok(key == self.0.as_bytes())
    }
}

/// What the field holds. Anything but a text is read over, not built: a list of numbers would take
/// many times its bytes.
enum Found {
    Text(String),
    Other(&'static str),
}

impl<'de> Deserialize<'de> for Found {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Found, E> {
        Ok(Found::Text(text.to_string()))
    }

    fn visit_unit<E>(self) -> std::result::Result<Found, E> {
        Ok(Found::Other("null"))
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<Found, E> {
        Ok(Found::Other("a boolean"))
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<Found, E> {
        Ok(Found::Other("a number"))
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<Found, E> {
        Ok(Found::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<Found, E> {
        Ok(Found::Other("a number"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Found, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Found::Other("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Found, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Found::Other("an object"))
    }
}
