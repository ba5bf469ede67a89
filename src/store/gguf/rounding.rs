//! The types that numbers are stored in, rounded as ggml rounds them.

use crate::error::{Error, Result};
use half::{bf16, f16};

/// How the matrices of a GGUF file are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum GgufType {
    /// As they are.
    #[default]
    F32,
    /// Half precision.
    F16,
    /// The upper half of f32.
    Bf16,
    /// Blocks of 32 whole numbers of 8 bits with a scale of 16.
    #[value(name = "q8_0")]
    Q8_0,
}

/// Numbers of a block of `q8_0`, which share a scale.
pub(super) const BLOCK: usize = 32;

impl GgufType {
    /// The word on the command line.
    pub fn name(self) -> &'static str {
        ["f32", "f16", "bf16", "q8_0"][self as usize]
    }

    /// `ggml_type` of a tensor (ggml.h).
    pub(super) fn tensor_type(self) -> u32 {
        [0, 1, 30, 8][self as usize]
    }

    /// `llama_ftype` of a file whose matrices are of this type (llama.h).
    pub(super) fn file_type(self) -> u32 {
        [0, 1, 32, 7][self as usize]
    }

    /// Bytes of `elements` numbers; of whole blocks.
    pub(super) fn bytes(self, elements: u64) -> u64 {
        match self {
            Self::F32 => 4 * elements,
            Self::F16 | Self::Bf16 => 2 * elements,
            Self::Q8_0 => elements / BLOCK as u64 * (2 + BLOCK as u64),
        }
    }

    /// What a tensor with rows of this length can be stored in: `q8_0` needs whole blocks, and
    /// llama.cpp takes f16 where there are none.
    pub(super) fn of_rows(self, length: usize) -> Self {
        if self == Self::Q8_0 && !length.is_multiple_of(BLOCK) { Self::F16 } else { self }
    }

    /// Appends the bytes of these numbers, which are finite. A number too large for the type is an
    /// error: the reader would find an infinity.
    pub(super) fn encode(self, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
        let beyond = |value: f32| {
            Error::data(format!(
                "holds {value}, which is too large for {}; store it in another type (f32 always fits)",
                self.name()
            ))
        };
        match self {
            Self::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Self::F16 => {
                for &value in values {
                    let half = f16::from_f32(value);
                    out.extend(
                        half.is_finite()
                            .then(|| half.to_le_bytes())
                            .ok_or_else(|| beyond(value))?,
                    );
                }
            }
            Self::Bf16 => {
                for &value in values {
                    let half = bf16::from_f32(value);
                    out.extend(
                        half.is_finite()
                            .then(|| half.to_le_bytes())
                            .ok_or_else(|| beyond(value))?,
                    );
                }
            }
            Self::Q8_0 => {
                for block in values.chunks(BLOCK) {
                    let (scale, numbers) = q8_0(block);
                    if !scale.is_finite() {
                        let largest =
                            block.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs()));
                        return Err(beyond(largest.unwrap_or_default()));
                    }
                    out.extend(scale.to_le_bytes());
                    out.extend(numbers.map(|q| q as u8));
                }
            }
        }
        Ok(())
    }
}

/// `quantize_row_q8_0_ref` of ggml-quants.c: the scale is the largest modulus / 127, the numbers
/// are multiplied by its reciprocal before it is rounded to f16, and halves go away from zero.
fn q8_0(block: &[f32]) -> (f16, [i8; BLOCK]) {
    let largest = block.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut numbers = [0; BLOCK];
    for (number, x) in numbers.iter_mut().zip(block) {
        *number = (x * inverse).round() as i8;
    }
    (f16::from_f32(scale), numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(of: GgufType, values: &[f32]) -> Vec<u8> {
        let mut out = Vec::new();
        of.encode(values, &mut out).unwrap();
        assert_eq!(out.len() as u64, of.bytes(values.len() as u64));
        out
    }

    #[test]
    fn a_block_of_q8_0_is_what_one_computes_by_hand() {
        // The largest modulus is 127, so the scale is 1 (0x3C00 as f16) and each number is the
        // nearest whole one, halves away from zero.
        let mut block = [0.0f32; 32];
        block[..9].copy_from_slice(&[127.0, -126.5, 0.5, -0.5, 1.5, 2.5, -2.5, 0.49, -3.0]);
        let mut want = vec![0x00, 0x3C, 127, 0x81, 1, 0xFF, 2, 3, 0xFD, 0, 0xFD];
        want.resize(34, 0);
        assert_eq!(bytes(GgufType::Q8_0, &block), want);
        // A scale of 0.1 / 127 = 1.6126 x 2^-11, as f16 the exponent 4 and the fraction 627: 0x1273.
        // 0.025 is 31.75 of it, 0.075 is 95.25, 0.0003 is 0.38.
        let mut block = [0.0f32; 32];
        block[..4].copy_from_slice(&[-0.1, 0.025, 0.075, -0.0003]);
        let found = bytes(GgufType::Q8_0, &block);
        assert_eq!(found[..6], [0x73, 0x12, 0x81, 32, 95, 0]);
        // Nothing but zeros; and numbers whose scale f16 rounds to nothing.
        assert_eq!(bytes(GgufType::Q8_0, &[0.0; 32]), [0; 34]);
        assert_eq!(bytes(GgufType::Q8_0, &[1e-7; 32])[..2], [0, 0]);
        // Two blocks, each with its own scale.
        let two: Vec<f32> = (0..64).map(|i| if i < 32 { 127.0 } else { 254.0 }).collect();
        let found = bytes(GgufType::Q8_0, &two);
        assert_eq!((&found[..3], &found[34..37]), (&[0, 0x3C, 127][..], &[0, 0x40, 127][..]));
    }

    #[test]
    fn halves_are_rounded_to_even_and_what_does_not_fit_is_refused() {
        // 1 + 2^-11 lies between two numbers of f16, 1 + 2^-8 between two of bf16.
        let between = [1.0 + 2f32.powi(-11), 1.0 + 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-11)];
        assert_eq!(bytes(GgufType::F16, &between), [0x00, 0x3C, 0x04, 0x3C, 0x02, 0x3C]);
        assert_eq!(bytes(GgufType::Bf16, &between), [0x80, 0x3F, 0x80, 0x3F, 0x80, 0x3F]);
        assert_eq!(bytes(GgufType::F32, &[1.5]), 1.5f32.to_le_bytes());
        for (of, value) in
            [(GgufType::F16, 7e4), (GgufType::Bf16, f32::MAX), (GgufType::Q8_0, -1e7)]
        {
            let message = of.encode(&[value; 32], &mut Vec::new()).unwrap_err().to_string();
            assert!(
                message.contains(of.name()) && message.contains("f32 always fits"),
                "{message}"
            );
        }
    }

    #[test]
    fn rows_without_whole_blocks_are_not_cut_into_blocks() {
        assert_eq!(GgufType::Q8_0.of_rows(64), GgufType::Q8_0);
        assert_eq!(GgufType::Q8_0.of_rows(48), GgufType::F16);
        assert_eq!(GgufType::Bf16.of_rows(48), GgufType::Bf16);
    }
}
