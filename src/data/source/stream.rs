//! What comes through a pipe: it is read once, and may have no name that says what it is.

use super::Format;
use super::packed::{Compression, read_up_to};
use crate::files::Input;
use std::fmt;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::sync::{Arc, Mutex};

type Unpacked = Box<dyn BufRead + Send>;

/// Bytes that tell the format.
const BEGIN_BYTES: u64 = 64;

#[derive(Clone)]
pub struct Stream {
    format: Format,
    /// None once it is being read.
    input: Arc<Mutex<Option<Unpacked>>>,
}

impl Stream {
    /// The rest of `input` behind its `head`, unpacked.
    pub fn new(head: Vec<u8>, input: Input, compression: Compression) -> io::Result<Self> {
        let packed = BufReader::with_capacity(1 << 18, Cursor::new(head).chain(input));
        let mut unpacked = compression.unpack(packed)?;
        let begin = read_up_to(&mut unpacked, BEGIN_BYTES)?;
        let text = begin.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&begin).trim_ascii_start();
        let format = match text {
            [b'P', b'A', b'R', b'1', ..] => Format::Parquet,
            [b'{', ..] => Format::JsonLines,
            _ => Format::Text,
        };
        let whole: Unpacked = Box::new(Cursor::new(begin).chain(unpacked));
        Ok(Self { format, input: Arc::new(Mutex::new(Some(whole))) })
    }

    /// What its first bytes say it is.
    pub fn format(&self) -> Format {
        self.format
    }

    /// All of it, the first time.
    pub fn take(&self) -> Option<Unpacked> {
        self.input.lock().ok()?.take()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Stream({:?})", self.format)
    }
}

/// Whether a name is that of something a process has open, such as /dev/stdin, which a shell may
/// have made of a file.
pub fn is_of_process(path: &Path) -> bool {
    ["/dev", "/proc"].iter().any(|folder| path.starts_with(folder))
}
