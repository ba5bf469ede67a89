//! What stands before the values of someone else's file. Every length is checked against the file
//! before anything of that length is made: candle's reader makes values of 32 bytes of each byte of
//! a list, and divides by an alignment of 0.

use super::container::ALIGNMENT;
use crate::error::{Error, Result};
use candle_core::Shape;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::TensorInfo;
use serde_json::{Number, Value};
use std::collections::BTreeMap;

/// Types that are read: `ggml_type` (ggml.h) and candle's name of it.
const TYPES: [(u32, GgmlDType); 13] = [
    (0, GgmlDType::F32),
    (1, GgmlDType::F16),
    (2, GgmlDType::Q4_0),
    (3, GgmlDType::Q4_1),
    (6, GgmlDType::Q5_0),
    (7, GgmlDType::Q5_1),
    (8, GgmlDType::Q8_0),
    (10, GgmlDType::Q2K),
    (11, GgmlDType::Q3K),
    (12, GgmlDType::Q4K),
    (13, GgmlDType::Q5K),
    (14, GgmlDType::Q6K),
    (30, GgmlDType::BF16),
];
/// `GGML_MAX_DIMS`.
const MOST_DIMENSIONS: u32 = 4;

/// Metadata and the table of tensors.
#[derive(Debug)]
pub(super) struct Header {
    /// Each value as `config.json` would have it; of a list an empty one, since none is needed.
    pub(super) keys: BTreeMap<String, Value>,
    /// Shapes have rows first; every tensor lies within the file.
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    /// Where their values begin.
    pub(super) start: u64,
}

impl Header {
    /// Of a whole file. Errs if it is not GGUF 2 or 3, is big-endian, cut short or of a type that is
    /// not read.
    pub(super) fn parse(file: &[u8]) -> Result<Self> {
        let mut bytes = Bytes { file, at: 0 };
        if bytes.take(4, "its first four letters")? != b"GGUF" {
            return Err(Error::data("expected a GGUF file, which begins with GGUF; found another"));
        }
        match bytes.u32("its version")? {
            2 | 3 => {}
            other if (1..=3).contains(&other.swap_bytes()) => {
                return Err(Error::data(
                    "expected a little-endian GGUF file, found a big-endian one; convert it with \
                     gguf_convert_endian.py of llama.cpp",
                ));
            }
            other => {
                return Err(Error::data(format!(
                    "expected GGUF version 2 or 3, found {other}; convert the model again with a llama.cpp of today"
                )));
            }
        }
        let tensors = bytes.u64("its number of tensors")?;
        let values = bytes.u64("its number of keys")?;
        let mut keys = BTreeMap::new();
        for _ in 0..values {
            let key = bytes.text("a key")?;
            let kind = bytes.u32(&key)?;
            let value = bytes.value(&key, kind)?;
            if keys.insert(key.clone(), value).is_some() {
                return Err(Error::data(format!("the key {key} stands there twice")));
            }
        }
        let alignment = match keys.get("general.alignment") {
            None => ALIGNMENT,
            Some(said) => said.as_u64().filter(|n| n.is_power_of_two()).ok_or_else(|| {
                Error::data(format!("general.alignment must be a power of two, found {said}"))
            })?,
        };
        let mut found = BTreeMap::new();
        for _ in 0..tensors {
            let name = bytes.text("the name of a tensor")?;
            let info = bytes.tensor(&name)?;
            if found.insert(name.clone(), info).is_some() {
                return Err(Error::data(format!("tensor {name} stands there twice")));
            }
        }
        let start = (bytes.at as u64).checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        let header = Self { keys, tensors: found, start };
        header.check_lengths(file.len() as u64)?;
        Ok(header)
    }

    fn check_lengths(&self, length: u64) -> Result<()> {
        for (name, TensorInfo { ggml_dtype: of, shape, offset }) in &self.tensors {
            let dims = shape.dims();
            let block = of.block_size();
            if !dims.last().is_some_and(|row| row.is_multiple_of(block)) {
                return Err(Error::data(format!(
                    "tensor {name} of shape {dims:?} is stored as {of:?}, whose rows must be a multiple of {block}; \
                     the file is damaged"
                )));
            }
            let bytes = (dims.iter())
                .try_fold(1u64, |n, &dim| n.checked_mul(dim as u64))
                .and_then(|n| (n / block as u64).checked_mul(of.type_size() as u64));
            let end = bytes.and_then(|bytes| self.start.checked_add(*offset)?.checked_add(bytes));
            if end.is_none_or(|end| end > length) {
                let end = end.map_or("beyond all files".into(), |end| format!("at byte {end}"));
                return Err(Error::data(format!(
                    "tensor {name} of shape {dims:?} ends {end}, but the file has {length} bytes; it is cut short or \
                     damaged: download it again"
                )));
            }
        }
        Ok(())
    }
}

/// A file's bytes, and how far they are read.
struct Bytes<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8]> {
        let rest = &self.file[self.at..];
        let taken = usize::try_from(count).ok().and_then(|count| rest.get(..count));
        let taken = taken.ok_or_else(|| {
            Error::data(format!(
                "{what} takes {count} bytes from byte {} on, but the file has {}; it is cut short or damaged: download \
                 it again",
                self.at,
                self.file.len()
            ))
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64, what)?);
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        Ok(String::from_utf8_lossy(self.take(length, what)?).into_owned())
    }

    /// A value of the metadata, of a `gguf_metadata_value_type`.
    fn value(&mut self, key: &str, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => self.array::<1>(key)?[0].into(),
            1 => i8::from_le_bytes(self.array(key)?).into(),
            2 => u16::from_le_bytes(self.array(key)?).into(),
            3 => i16::from_le_bytes(self.array(key)?).into(),
            4 => self.u32(key)?.into(),
            5 => i32::from_le_bytes(self.array(key)?).into(),
            // The shortest decimal that is this f32 is what config.json said: 1e-5 and not
            // 9.99999974e-6.
            6 => {
                let single = f32::from_le_bytes(self.array(key)?);
                finite(key, single.to_string().parse().unwrap_or(f64::NAN))?
            }
            7 => (self.array::<1>(key)? != [0]).into(),
            8 => self.text(key)?.into(),
            9 => {
                self.skip_list(key)?;
                Value::Array(Vec::new())
            }
            10 => self.u64(key)?.into(),
            11 => i64::from_le_bytes(self.array(key)?).into(),
            12 => finite(key, f64::from_le_bytes(self.array(key)?))?,
            other => return Err(unknown_kind(key, other)),
        })
    }

    fn skip_list(&mut self, key: &str) -> Result<()> {
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..count {
                    let length = self.u64(key)?;
                    self.take(length, key)?;
                }
                return Ok(());
            }
            other => return Err(unknown_kind(key, other)),
        };
        self.take(count.saturating_mul(width), key).map(drop)
    }

    fn tensor(&mut self, name: &str) -> Result<TensorInfo> {
        let count = self.u32(name)?;
        if !(1..=MOST_DIMENSIONS).contains(&count) {
            return Err(Error::data(format!(
                "tensor {name} must have 1 to {MOST_DIMENSIONS} dimensions, found {count}; the file is damaged"
            )));
        }
        let mut dims = Vec::new();
        for _ in 0..count {
            dims.push(usize::try_from(self.u64(name)?).unwrap_or(usize::MAX));
        }
        dims.reverse();
        let number = self.u32(name)?;
        let known = TYPES.iter().find(|(known, _)| *known == number);
        let of = known.map(|(_, of)| *of).ok_or_else(|| {
            Error::data(format!(
                "tensor {name} must be stored as F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K, found \
                 ggml's type {number}; take a file of one of these types, such as Q8_0 or Q4_K_M"
            ))
        })?;
        Ok(TensorInfo { ggml_dtype: of, shape: Shape::from(dims), offset: self.u64(name)? })
    }
}

fn finite(key: &str, value: f64) -> Result<Value> {
    Number::from_f64(value)
        .map(Value::Number)
        .ok_or_else(|| Error::data(format!("{key} must be a finite number, found {value}")))
}

fn unknown_kind(key: &str, kind: u32) -> Error {
    Error::data(format!(
        "{key} is of the unknown type {kind}; expected one of GGUF's: the file is damaged, or newer than this program"
    ))
}
