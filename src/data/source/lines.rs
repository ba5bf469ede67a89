//! Lines as bytes, for whoever parses them with a parser of their own.

use super::Source;
use crate::error::{Error, Result};
use crate::report::text;
use std::io::{BufRead, Read};
use std::sync::Arc;

/// Reads a file line by line; blank lines are left out.
pub(crate) struct Lines {
    source: Source,
    input: Box<dyn BufRead + Send>,
    /// Longest line.
    most: usize,
    number: u64,
}

impl Lines {
    /// Begins with the first line. One of more than `most` bytes will be an error.
    pub(crate) fn open(source: &Source, most: usize) -> Result<Self> {
        let input = source.decompressed(&Arc::default())?;
        Ok(Self { source: source.clone(), input, most, number: 0 })
    }

    /// The next line and its number, from 1; None at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>> {
        loop {
            let mut line = Vec::new();
            let read = (&mut self.input).take(self.most as u64 + 1).read_until(b'\n', &mut line);
            if read.map_err(|e| self.source.unreadable(&e))? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if line.len() > self.most {
                return Err(Error::data(format!(
                    "{}:{}: the line is longer than {}; expected one JSON object per line",
                    self.source.path.display(),
                    self.number,
                    text::bytes(self.most as u64)
                )));
            }
            if self.number == 1 && line.starts_with(b"\xEF\xBB\xBF") {
                line.drain(..3);
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some((self.number, line)));
            }
        }
    }
}
