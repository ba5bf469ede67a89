//! JSON lines: one object per line, of which one field is the document.

use super::Source;
use super::pieces::WholeDocuments;
use crate::error::{Error, Result};
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::fmt;
use std::io::BufRead;

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
        let place = || format!("{}:{}", self.source.path.display(), self.number);
        let text = std::str::from_utf8(&self.line).map_err(|e| {
            let at = self.offset + e.valid_up_to() as u64;
            Error::data(format!("{}: not UTF-8 at byte {at} of the file; convert it to UTF-8", place()))
        })?;
        let text = if self.number == 1 { text.strip_prefix('\u{FEFF}').unwrap_or(text) } else { text };
        if text.trim().is_empty() {
            return Ok(None);
        }
        let mut json = serde_json::Deserializer::from_str(text);
        let found = json.deserialize_map(Field(&self.field)).and_then(|found| json.end().map(|()| found));
        found.map(Some).map_err(|e| {
            let what = e.to_string();
            let what = what.split(" at line ").next().unwrap_or(&what);
            Error::data(format!("{}: {what} (column {})", place(), e.column()))
        })
    }
}

impl WholeDocuments for LineReader {
    fn next_document(&mut self) -> Result<Option<String>> {
        loop {
            self.offset += self.line.len() as u64;
            self.line.clear();
            let read = self.input.read_until(b'\n', &mut self.line);
            if read.map_err(|e| self.source.unreadable(&e))? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if let Some(text) = self.parse()? {
                return Ok(Some(text));
            }
        }
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
                found = Some(map.next_value::<serde_json::Value>()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        match found {
            Some(serde_json::Value::String(text)) => Ok(text),
            Some(other) => {
                let kind = match other {
                    serde_json::Value::Null => "null",
                    serde_json::Value::Bool(_) => "a boolean",
                    serde_json::Value::Number(_) => "a number",
                    serde_json::Value::Array(_) => "an array",
                    _ => "an object",
                };
                Err(A::Error::custom(format!("field {:?} is {kind}; expected a string", self.0)))
            }
            None => Err(A::Error::custom(format!("no field {:?}; name the right one with --text-field", self.0))),
        }
    }
}
