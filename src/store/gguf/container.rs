//! The container: GGUF version 3, little-endian
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).
//!
//! candle has a writer, too; it writes version 2 and wants every tensor in memory at once.

use super::rounding::GgufType;
use std::io::Write;

/// Where tensors begin, the first one in the file and each behind another.
pub(super) const ALIGNMENT: u64 = 32;

/// Metadata, in its order.
pub(super) type Keys = Vec<(String, Value)>;

/// A value of the metadata; only the types that are needed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<i32>),
    Floats(Vec<f32>),
}

impl Value {
    fn write(&self, out: &mut Vec<u8>) {
        // The numbers of the types are those of `gguf_metadata_value_type`.
        let mut of_type = |number: u32, bytes: &[u8]| {
            out.extend(number.to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Self::U32(value) => of_type(4, &value.to_le_bytes()),
            Self::F32(value) => of_type(6, &value.to_le_bytes()),
            Self::Bool(value) => of_type(7, &[u8::from(*value)]),
            Self::Text(text) => {
                of_type(8, &[]);
                write_text(text, out);
            }
            Self::Texts(texts) => {
                of_type(9, &8u32.to_le_bytes());
                out.extend((texts.len() as u64).to_le_bytes());
                texts.iter().for_each(|text| write_text(text, out));
            }
            Self::Numbers(numbers) => {
                of_type(9, &5u32.to_le_bytes());
                out.extend((numbers.len() as u64).to_le_bytes());
                out.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
            }
            Self::Floats(numbers) => {
                of_type(9, &6u32.to_le_bytes());
                out.extend((numbers.len() as u64).to_le_bytes());
                out.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
            }
        }
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// What the header says of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Rows first, as everywhere here; the file has them the other way round.
    pub(super) shape: Vec<usize>,
    pub(super) of: GgufType,
}

impl Entry {
    /// Bytes of its values.
    pub(super) fn bytes(&self) -> u64 {
        self.of.bytes(self.shape.iter().product::<usize>() as u64)
    }
}

/// All that stands before the values, with the padding behind it.
pub(super) fn header<'a>(
    metadata: &[(String, Value)],
    tensors: impl ExactSizeIterator<Item = &'a Entry>,
) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        write_text(key, &mut out);
        value.write(&mut out);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        write_text(&tensor.name, &mut out);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&n| out.extend((n as u64).to_le_bytes()));
        out.extend(tensor.of.tensor_type().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = (offset + tensor.bytes()).next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    out
}

/// The zeros behind the values of a tensor.
pub(super) fn pad(w: &mut dyn Write, bytes: u64) -> std::io::Result<()> {
    w.write_all(&[0; ALIGNMENT as usize][..(bytes.next_multiple_of(ALIGNMENT) - bytes) as usize])
}

/// Whether the head of a file is that of a GGUF file whose metadata has this key.
pub(super) fn has_key(head: &[u8], key: &str) -> bool {
    head.starts_with(b"GGUF") && head.windows(key.len()).any(|part| part == key.as_bytes())
}
