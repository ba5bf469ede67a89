//! How long the pages of a Parquet file become, found out before the Parquet reader makes room for
//! them.
//!
//! The reader takes a page's word for its length, up to 2 GiB, and unpacks gzip, Brotli and LZ4 to
//! wherever they end.

use crate::report::text;
use parquet::basic::Compression;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::ChunkReader;
use std::collections::HashMap;
use std::io::{self, Read, sink};

/// Longest page: a hundred times the usual, and room for a few of the longest documents.
const MOST_PAGE_BYTES: u64 = 256 << 20;
/// A terabyte of pages of the usual size; what is remembered of so many takes 50 MB.
const MOST_PAGES: usize = 1 << 20;
/// How deep headers may nest; they nest twice.
const MOST_DEPTH: u8 = 8;

/// The pages of some columns: by where they begin, their length, how they are packed, and how many
/// of their first bytes are not.
#[derive(Debug)]
pub struct Pages(HashMap<u64, (usize, Compression, usize)>);

impl Pages {
    /// Goes through the headers of all pages of the columns (leaves) that `wanted` names; errs for
    /// one that says it is too long.
    pub fn find(
        file: &impl ChunkReader,
        metadata: &ParquetMetaData,
        wanted: impl Fn(usize) -> bool,
    ) -> ParquetResult<Self> {
        let mut pages = HashMap::new();
        for group in metadata.row_groups() {
            for column in group
                .columns()
                .iter()
                .enumerate()
                .filter(|(i, _)| wanted(*i))
                .map(|(_, column)| column)
            {
                let (mut at, length) = column.byte_range();
                let end = at.saturating_add(length).min(file.len());
                while at < end {
                    let mut input = file.get_read(at)?.take(end - at);
                    let header = Header::read(&mut input)?;
                    let start = end - input.limit();
                    if !(0..=MOST_PAGE_BYTES as i64).contains(&header.unpacked) {
                        return Err(ParquetError::General(format!(
                            "the page at byte {at} says that it has {} bytes; expected at most {}",
                            header.unpacked,
                            text::count(MOST_PAGE_BYTES)
                        )));
                    }
                    let length = usize::try_from(header.packed)
                        .ok()
                        .filter(|length| *length as u64 <= end - start)
                        .ok_or_else(|| {
                            ParquetError::EOF(format!(
                                "the page at byte {at} ends after its column"
                            ))
                        })?;
                    let bare = usize::try_from(header.bare).unwrap_or(0).min(length);
                    // One place with two meanings would be checked by one and read by the other.
                    if pages.insert(start, (length, column.compression(), bare)).is_some()
                        || pages.len() > MOST_PAGES
                    {
                        return Err(ParquetError::General(format!(
                            "the page at byte {at} belongs to two columns, or is one of more than {}",
                            text::count(MOST_PAGES as u64)
                        )));
                    }
                    at = start + length as u64;
                }
            }
        }
        Ok(Self(pages))
    }

    /// Errs unless `bytes`, which begin at `start`, are one of the pages and unpack to no more than
    /// a page may have.
    pub fn check(&self, start: u64, bytes: &[u8]) -> ParquetResult<()> {
        let Some((_, packing, bare)) =
            self.0.get(&start).filter(|(length, ..)| *length == bytes.len())
        else {
            return Err(ParquetError::General(format!(
                "byte {start} is not the beginning of a page"
            )));
        };
        if unpacks_to_more(*packing, &bytes[*bare..]) {
            return Err(ParquetError::General(format!(
                "the page at byte {start} unpacks to more than {}",
                text::bytes(MOST_PAGE_BYTES)
            )));
        }
        Ok(())
    }
}

/// Whether a page becomes longer than it may. The reader gives other packings no more room than
/// their header claims. A page that is damaged before it is too long is left to the reader.
fn unpacks_to_more(packing: Compression, bytes: &[u8]) -> bool {
    let longer = |unpacked: &mut dyn Read| {
        io::copy(&mut unpacked.take(MOST_PAGE_BYTES + 1), &mut sink())
            .is_ok_and(|length| length > MOST_PAGE_BYTES)
    };
    match packing {
        Compression::GZIP(_) => longer(&mut flate2::read::MultiGzDecoder::new(bytes)),
        Compression::BROTLI(_) => longer(&mut brotli::Decompressor::new(bytes, 1 << 16)),
        Compression::LZ4 => longer(&mut lz4_flex::frame::FrameDecoder::new(bytes)),
        _ => false,
    }
}

/// What matters here of Parquet's `PageHeader`.
#[derive(Debug, Default)]
struct Header {
    /// `uncompressed_page_size`
    unpacked: i64,
    /// `compressed_page_size`
    packed: i64,
    /// Bytes of repetition and definition levels, which version 2 does not pack.
    bare: i64,
}

impl Header {
    fn read(input: &mut impl Read) -> io::Result<Self> {
        let mut header = Self::default();
        read_struct(input, MOST_DEPTH, 0, &mut |outer, id, value| match (outer, id) {
            (0, 2) => header.unpacked = value,
            (0, 3) => header.packed = value,
            // definition_levels_byte_length and repetition_levels_byte_length of
            // data_page_header_v2
            (8, 5 | 6) => header.bare = header.bare.saturating_add(value),
            _ => {}
        })?;
        Ok(header)
    }
}

/// Reads a struct of Thrift's compact protocol and tells of its integers: the field that the struct
/// is itself (0 outside), their own field, their value.
fn read_struct(
    input: &mut impl Read,
    depth: u8,
    outer: i16,
    see: &mut impl FnMut(i16, i16, i64),
) -> io::Result<()> {
    let mut id = 0i16;
    loop {
        let byte = read_byte(input)?;
        if byte & 15 == 0 {
            return Ok(());
        }
        id = match byte >> 4 {
            0 => read_integer(input)? as i16,
            step => id.wrapping_add(i16::from(step)),
        };
        match byte & 15 {
            1 | 2 => {} // a boolean is its own type
            kind => read_value(input, kind, depth, (outer, id), see)?,
        }
    }
}

fn read_value(
    input: &mut impl Read,
    kind: u8,
    depth: u8,
    (outer, id): (i16, i16),
    see: &mut impl FnMut(i16, i16, i64),
) -> io::Result<()> {
    let depth = depth.checked_sub(1).ok_or_else(|| damaged("nests too deep"))?;
    match kind {
        1..=3 => read_byte(input).map(|_| ()),
        4..=6 => read_integer(input).map(|value| see(outer, id, value)),
        7 => skip(input, 8),
        8 => {
            let length = read_unsigned(input)?;
            skip(input, length)
        }
        9 | 10 => {
            let header = read_byte(input)?;
            let count =
                if header >> 4 == 15 { read_unsigned(input)? } else { u64::from(header >> 4) };
            // Every element takes at least a byte, so the input's end bounds this.
            (0..count).try_for_each(|_| read_value(input, header & 15, depth, (-1, -1), see))
        }
        12 => read_struct(input, depth, if outer == 0 { id } else { -1 }, see),
        13 => skip(input, 16),
        _ => Err(damaged("holds a field of unknown type")),
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a page header {what}"))
}

fn read_byte(input: &mut impl Read) -> io::Result<u8> {
    let mut byte = [0];
    input.read_exact(&mut byte).map(|()| byte[0])
}

fn read_unsigned(input: &mut impl Read) -> io::Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = read_byte(input)?;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Ok(value);
        }
    }
    Err(damaged("holds a number of more than 64 bits"))
}

/// Zigzag.
fn read_integer(input: &mut impl Read) -> io::Result<i64> {
    read_unsigned(input).map(|n| (n >> 1) as i64 ^ -((n & 1) as i64))
}

fn skip(input: &mut impl Read, length: u64) -> io::Result<()> {
    match io::copy(&mut input.take(length), &mut sink())? {
        skipped if skipped == length => Ok(()),
        _ => Err(damaged("ends early")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_both_versions_give_their_lengths() {
        let read =
            |bytes: &[u8]| Header::read(&mut &*bytes).map(|h| (h.unpacked, h.packed, h.bare));
        // type 0, 300 and 150 bytes, then data_page_header: 3 values and, as binary, a statistic
        // whose bytes look like fields.
        let first =
            [0x15, 0, 0x15, 0xD8, 0x04, 0x15, 0xAC, 0x02, 0x2C, 0x15, 6, 0x48, 2, 0x15, 0x15, 0, 0];
        assert_eq!(read(&first).unwrap(), (300, 150, 0));
        // type 3, then data_page_header_v2 (field 8, by its long form) with 2 and 3 bytes of
        // levels, and true.
        let second = [0x15, 6, 0x15, 20, 0x15, 18, 0x0C, 16, 0x55, 4, 0x15, 6, 0x11, 0, 0];
        assert_eq!(read(&second).unwrap(), (10, 9, 5));
        for cut in 0..first.len() {
            assert!(read(&first[..cut]).is_err(), "{cut}");
        }
        assert!(read(&[0x1C; 40]).unwrap_err().to_string().contains("too deep"));
        assert!(
            read(&[0x15, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]).is_err(),
            "a number without an end"
        );
        assert!(
            read(&[0x19, 0xF5, 255, 255, 255, 255, 7]).is_err(),
            "a list longer than the input"
        );
    }
}
