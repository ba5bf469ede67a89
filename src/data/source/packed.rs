//! What gzip and Zstandard files may look like: several streams in a row, padding, frames that hold
//! no data.

use crate::error::Error;
use crate::report::text::bytes;
use flate2::bufread::GzDecoder;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek};
use std::path::Path;

/// Largest window that is read, as a power of two: what `zstd --long=31` reads, and zstd's own
/// limit.
const WINDOW_LOG: u32 = 31;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// What the first bytes of a file say. Zstandard's data may come behind
    /// skippable frames; pzstd writes one before every frame.
    pub fn of(file: &mut File) -> io::Result<Self> {
        let mut input = BufReader::new(file);
        let first = read_up_to(&mut input, 4)?;
        let mut magic = first.clone();
        while is_skippable(&magic) {
            let length = read_up_to(&mut input, 4)?;
            input.seek_relative(number(&length) as i64)?;
            magic = read_up_to(&mut input, 4)?;
            if magic.is_empty() {
                return Ok(Self::Zstd); // nothing is packed in it
            }
        }
        Ok(match Self::by_magic(&magic) {
            Self::Gzip if magic != first => Self::None,
            kind => kind,
        })
    }

    /// Reads `input`, which is packed so.
    pub fn unpack(
        self,
        input: impl BufRead + Send + 'static,
    ) -> io::Result<Box<dyn BufRead + Send>> {
        Ok(match self {
            Self::None => Box::new(input),
            Self::Gzip => Box::new(BufReader::with_capacity(1 << 18, Gunzip::new(input))),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(input)?;
                decoder.window_log_max(WINDOW_LOG)?;
                Box::new(BufReader::with_capacity(1 << 18, decoder))
            }
        })
    }

    /// What the first bytes of a pipe say, which cannot be read twice.
    pub fn of_stream(magic: &[u8]) -> Self {
        if is_skippable(magic) { Self::Zstd } else { Self::by_magic(magic) }
    }

    fn by_magic(magic: &[u8]) -> Self {
        match magic {
            [0x1F, 0x8B, ..] => Self::Gzip,
            // 0x28 since version 0.8; zstd reads what 0.5 to 0.7 wrote, too.
            [0x25..=0x28, 0xB5, 0x2F, 0xFD] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// The message for a failed read: with compression, mostly a damaged stream.
    pub fn failure(self, path: &Path, e: &io::Error) -> Error {
        if let Err(stopped) = crate::interrupt::check() {
            return stopped; // which is how a wait for a pipe may end
        }
        let place = path.display();
        if self == Self::None {
            return Error::data(format!("cannot read {place}: {e}"));
        }
        if let Some(what) = e.get_ref().and_then(|e| e.downcast_ref::<Foreign>()) {
            return Error::data(format!("{place}: {what}"));
        }
        // The numbers of these errors do not come through the crate; their texts do.
        let text = e.to_string();
        let file =
            || if path.is_file() { File::open(path) } else { Err(ErrorKind::NotFound.into()) };
        let window = || file().and_then(|file| largest_window(&mut BufReader::new(file)));
        let largest = 1 << WINDOW_LOG;
        Error::data(match (text.as_str(), window().unwrap_or(0)) {
            ("Frame requires too much memory for decoding", window) => format!(
                "{place}: its Zstandard window is {}; expected at most {}, what `zstd --long=31` reads; compress it again \
                 with a smaller one",
                bytes(window),
                bytes(largest)
            ),
            ("Allocation error : not enough memory", window) => format!(
                "{place}: its Zstandard window takes {} of memory, which the system refused; free memory, or compress it \
                 again elsewhere: zstd -dc --long=31 FILE | zstd > NEW",
                bytes(window.min(largest))
            ),
            ("Dictionary mismatch", _) => format!(
                "{place}: it was packed with a dictionary; unpack it with that first: zstd -d -D DICTIONARY FILE"
            ),
            ("Unknown frame descriptor", _) => format!(
                "{place}: other bytes follow its Zstandard frames; expected another frame or the end; leave them out, or \
                 compress it again"
            ),
            _ => format!("{place}: the {self:?} stream is truncated or damaged ({e})"),
        })
    }
}

/// Fewer bytes at the end.
pub(super) fn read_up_to(input: &mut impl Read, bytes: u64) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    input.take(bytes).read_to_end(&mut out)?;
    Ok(out)
}

/// Little-endian.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, byte| (n << 8) | u64::from(*byte))
}

fn is_skippable(magic: &[u8]) -> bool {
    matches!(magic, [0x50..=0x5F, 0x2A, 0x4D, 0x18])
}

/// The largest window that a Zstandard file's frames ask for, from their headers (RFC 8878); what is
/// no frame ends the search.
fn largest_window(input: &mut (impl Read + Seek)) -> io::Result<u64> {
    let mut largest = 0;
    loop {
        let magic = read_up_to(input, 4)?;
        if is_skippable(&magic) {
            let length = number(&read_up_to(input, 4)?);
            input.seek_relative(length as i64)?;
            continue;
        }
        if magic != [0x28, 0xB5, 0x2F, 0xFD] {
            return Ok(largest);
        }
        let Some(&flags) = read_up_to(input, 1)?.first() else { return Ok(largest) };
        let single = flags & 0x20 != 0;
        let window = if single { 0 } else { number(&read_up_to(input, 1)?) };
        read_up_to(input, [0, 1, 2, 4][usize::from(flags & 3)])?; // the dictionary's number
        let size_bytes = [u64::from(single), 2, 4, 8][usize::from(flags >> 6)];
        let size = number(&read_up_to(input, size_bytes)?);
        let base = 1u64 << (10 + (window >> 3));
        largest = largest.max(if single { size } else { base + base / 8 * (window & 7) });
        loop {
            let block = read_up_to(input, 3)?;
            if block.len() < 3 {
                return Ok(largest);
            }
            let header = number(&block);
            let repeated = header >> 1 & 3 == 1; // one byte stands for many
            input.seek_relative(if repeated { 1 } else { (header >> 3) as i64 })?;
            if header & 1 != 0 {
                break;
            }
        }
        input.seek_relative(if flags & 4 != 0 { 4 } else { 0 })?;
    }
}

/// Gzip members in a row, with zeros between or behind them as tapes leave them. flate2's own
/// reader of several takes zeros for a damaged member; `gzip` accepts them at the end, Python
/// everywhere.
struct Gunzip<R> {
    /// None once there are no more.
    member: Option<GzDecoder<Counted<R>>>,
    /// Where the member begins.
    begin: u64,
}

impl<R: BufRead> Gunzip<R> {
    fn new(inner: R) -> Self {
        Self { member: Some(GzDecoder::new(Counted { inner, consumed: 0 })), begin: 0 }
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = self.member.as_mut().filter(|_| !out.is_empty()) {
            match member.read(out) {
                Ok(0) => {}
                Err(e)
                    if self.begin > 0
                        && member.header().is_none()
                        && e.kind() == ErrorKind::InvalidInput =>
                {
                    return Err(io::Error::new(ErrorKind::InvalidData, Foreign(self.begin)));
                }
                read => return read,
            }
            let next = skip_zeros(member.get_mut())?;
            let Some(input) = self.member.take().filter(|_| next.is_some()) else { break };
            let input = input.into_inner();
            self.begin = input.consumed;
            if next != Some(0x1F) {
                return Err(io::Error::new(ErrorKind::InvalidData, Foreign(self.begin)));
            }
            self.member = Some(GzDecoder::new(input));
        }
        Ok(0)
    }
}

/// The byte that follows them.
fn skip_zeros(input: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        let buffer = input.fill_buf()?;
        let (length, zeros) = (buffer.len(), buffer.iter().take_while(|byte| **byte == 0).count());
        let next = buffer.get(zeros).copied();
        input.consume(zeros);
        if next.is_some() || length == 0 {
            return Ok(next);
        }
    }
}

/// Where something begins that belongs to no gzip file.
#[derive(Debug)]
struct Foreign(u64);

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "what its gzip stream holds is whole, but other bytes follow from byte {} on; expected another gzip member, \
             zeros or the end; if they do not belong there, leave them out: gzip -dc FILE | gzip > NEW",
            self.0
        )
    }
}

impl std::error::Error for Foreign {}

struct Counted<R> {
    inner: R,
    consumed: u64,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.consumed += n as u64;
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.consumed += n as u64;
        self.inner.consume(n);
    }
}
