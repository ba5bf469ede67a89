//! JSON lines: one object per line, of which one field is the document.

use super::pieces::WholeDocuments;
use super::{MOST_DOCUMENT_BYTES, Source};
use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::io::{BufRead, Read};

pub struct LineReader {
    source: Source,
    input: Box<dyn BufRead + Send>,
    field: String,
    line: Vec<u8>,
    number: u64,
    offset: u64,
}

impl LineReader {
    pub fn new(source: Source, input: Box<dyn BufRead + Send>, field: String) -> Self {
        Self { source, input, field, line: Vec::new(), number: 0, offset: 0 }
    }

    fn parse(&self) -> Result<Option<String>> {
        let text = std::str::from_utf8(&self.line).map_err(|e| {
            let at = self.offset + e.valid_up_to() as u64;
            Error::data(format!(
                "{}: not UTF-8 at byte {at} of the file; convert it to UTF-8",
                self.place()
            ))
        })?;
        let text =
            if self.number == 1 { text.strip_prefix('\u{FEFF}').unwrap_or(text) } else { text };
        if text.trim().is_empty() {
            return Ok(None);
        }
        let mut json = serde_json::Deserializer::from_str(text);
        let found =
            json.deserialize_map(Field(&self.field)).and_then(|found| json.end().map(|()| found));
        found.map(Some).map_err(|e| {
            let what = e.to_string();
            let what = what.split(" at line ").next().unwrap_or(&what);
            Error::data(format!("{}: {what} (column {})", self.place(), e.column()))
        })
    }
}

impl WholeDocuments for LineReader {
    fn next_document(&mut self) -> Result<Option<String>> {
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
                return Err(Error::data(format!(
                    "{}: the line is longer than {MOST_DOCUMENT_BYTES} bytes; expected one JSON object per line",
                    self.place()
                )));
            }
            if let Some(text) = self.parse()? {
                return Ok(Some(text));
            }
        }
    }

    fn place(&self) -> String {
        format!("{}:{}", self.source.path.display(), self.number)
    }
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
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
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
            None => Err(A::Error::custom(format!(
                "no field {:?}; name the right one with --text-field",
                self.0
            ))),
        }
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
