//! Event files of TensorBoard: `RUN/tensorboard/events.out.tfevents.SECONDS.eslm-kd`.
//!
//! A file is a sequence of TFRecords, each an `Event` in protobuf:
//!
//! ```text
//! u64 length | u32 masked CRC-32C of these 8 bytes | the message | u32 masked CRC-32C of it
//! ```
//!
//! all little-endian. The first event names the version; the second begins a session at a step, by
//! which TensorBoard forgets what an earlier session wrote at that step or later. So a run that
//! resumes writes a further file and changes none.

use super::{Event, EventSink};
use crate::error::{Error, Result};
use crate::files::{children, create_folder, name_of};
use crc::{CRC_32_ISCSI, Crc};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The folder inside a run folder.
pub const TENSORBOARD_FOLDER: &str = "tensorboard";
const PREFIX: &str = "events.out.tfevents.";
/// What TensorBoard asks of a file before it heeds session starts.
const FILE_VERSION: &str = "brain.Event:2";

/// Every number of `metrics.jsonl` as a scalar under its key (`seconds_by_phase/head`) over
/// optimizer steps. As in TensorBoard itself a scalar is an f32; one that does not exist or is not
/// finite is left out.
#[derive(Debug)]
pub struct TensorBoard {
    file: File,
    path: PathBuf,
}

impl TensorBoard {
    /// A new file in the folder `dir`, for a run that goes on after `step` steps and whose last
    /// validation was after `validated` of them. What earlier files say of later steps does not
    /// show any more.
    pub fn create(dir: &Path, step: u64, validated: Option<u64>) -> Result<Self> {
        create_folder(dir)?;
        // A run that has neither stepped nor validated begins again.
        let first = if step == 0 && validated.is_none() { 0 } else { step + 1 };
        // Files are read in the order of their names, whatever a clock says.
        let last = children(dir)?.iter().filter_map(|path| seconds_in(&name_of(path))).max();
        let seconds = (now() as u64).max(last.map_or(0, |last| last + 1));
        let path = dir.join(format!("{PREFIX}{seconds:010}.eslm-kd"));
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| Error::io("create", &path, e))?;
        let mut new = Self { file, path };
        new.write(first, &string(3, FILE_VERSION.as_bytes()))?;
        const SESSION_START: u64 = 1;
        new.write(first, &string(7, &number(1, SESSION_START)))?;
        Ok(new)
    }

    /// One event: its time, its step, and `what` it says, a field of the message.
    fn write(&mut self, step: u64, what: &[u8]) -> Result<()> {
        let mut message = double(1, now());
        message.extend(number(2, step));
        message.extend(what);
        // One write, as in metrics.jsonl: a crash cuts at most the last record, which TensorBoard
        // passes over.
        self.file.write_all(&record(&message)).map_err(|e| Error::io("write", &self.path, e))
    }
}

impl EventSink for TensorBoard {
    fn event(&mut self, event: &Event) -> Result<()> {
        // Totals come with steps; those of a validation are the same.
        let (step, line) = match event {
            Event::Step(e) => (e.step, serde_json::to_value(e)),
            Event::Validation(e) => (e.step, Ok(serde_json::json!({ "val_loss": e.val_loss }))),
            Event::Skipped(e) => (e.step, Ok(serde_json::json!({ "skipped": e.skipped }))),
            _ => return Ok(()),
        };
        let line =
            line.map_err(|e| Error::internal(format!("cannot write a metric as JSON: {e}")))?;
        let mut summary = Vec::new();
        scalars("", &line, &mut |tag, value| {
            let value = [string(1, tag.as_bytes()), float(2, value as f32)].concat();
            summary.extend(string(1, &value));
        });
        self.write(step, &string(5, &summary))
    }
}

/// Every number below `value` with its name; `step` is the axis.
fn scalars(name: &str, value: &Value, take: &mut impl FnMut(&str, f64)) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields.iter().filter(|(key, _)| *key != "step") {
                let name = if name.is_empty() { key.clone() } else { format!("{name}/{key}") };
                scalars(&name, value, take);
            }
        }
        Value::Number(number) => number.as_f64().into_iter().for_each(|x| take(name, x)),
        _ => {}
    }
}

fn seconds_in(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// A TFRecord.
fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let sums = [masked(&length), masked(message)].map(u32::to_le_bytes);
    [&length[..], &sums[0], message, &sums[1]].concat()
}

/// CRC-32C, turned and shifted, so that a checksum of data that holds checksums stays a good one.
fn masked(bytes: &[u8]) -> u32 {
    const CASTAGNOLI: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
    CASTAGNOLI.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

// Fields of a protobuf message: tag and type, then the value.

fn number(field: u8, value: u64) -> Vec<u8> {
    let mut bytes = vec![field << 3];
    varint(value, &mut bytes);
    bytes
}

fn double(field: u8, value: f64) -> Vec<u8> {
    [&[field << 3 | 1][..], &value.to_le_bytes()].concat()
}

fn float(field: u8, value: f32) -> Vec<u8> {
    [&[field << 3 | 5][..], &value.to_le_bytes()].concat()
}

/// A text or a message.
fn string(field: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![field << 3 | 2];
    varint(value.len() as u64, &mut bytes);
    bytes.extend(value);
    bytes
}

/// Seven bits a byte, the lowest first.
fn varint(mut value: u64, into: &mut Vec<u8>) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::super::{StepEvent, ValEvent};
    use super::*;

    /// An event as read back.
    #[derive(Debug, Default)]
    struct Read {
        step: u64,
        version: String,
        session: Option<u64>,
        values: Vec<(String, f32)>,
    }

    fn varint_of(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }

    fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
        let (head, rest) = bytes.split_at(n);
        *bytes = rest;
        head
    }

    /// Fields of a message: number, value of a varint, bytes of anything else.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = varint_of(&mut bytes);
            let (value, body) = match key & 7 {
                0 => (varint_of(&mut bytes), &[][..]),
                1 => (0, take(&mut bytes, 8)),
                5 => (0, take(&mut bytes, 4)),
                2 => {
                    let n = varint_of(&mut bytes) as usize;
                    (0, take(&mut bytes, n))
                }
                other => panic!("wire type {other}"),
            };
            found.push((key >> 3, value, body));
        }
        found
    }

    /// CRC-32C bit by bit, a second opinion on the crate's choice of polynomial.
    fn slow_crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 }
            })
        })
    }

    fn unmask(masked: u32) -> u32 {
        masked.wrapping_sub(0xa282_ead8).rotate_left(15)
    }

    fn read(path: &Path) -> Vec<Read> {
        let bytes = std::fs::read(path).unwrap();
        let (mut bytes, mut events) = (bytes.as_slice(), Vec::new());
        let sum = |bytes: &mut &[u8]| u32::from_le_bytes(take(bytes, 4).try_into().unwrap());
        while !bytes.is_empty() {
            let length = take(&mut bytes, 8);
            assert_eq!(unmask(sum(&mut bytes)), slow_crc(length));
            let message = take(&mut bytes, u64::from_le_bytes(length.try_into().unwrap()) as usize);
            assert_eq!(unmask(sum(&mut bytes)), slow_crc(message));
            let mut event = Read::default();
            for (field, value, body) in fields(message) {
                match field {
                    1 => assert!(f64::from_le_bytes(body.try_into().unwrap()) > 1.7e9),
                    2 => event.step = value,
                    3 => event.version = String::from_utf8(body.to_vec()).unwrap(),
                    7 => event.session = Some(fields(body)[0].1),
                    5 => event.values.extend(fields(body).iter().map(|(_, _, value)| {
                        let parts = fields(value);
                        let tag = String::from_utf8(parts[0].2.to_vec()).unwrap();
                        (tag, f32::from_le_bytes(parts[1].2.try_into().unwrap()))
                    })),
                    other => panic!("field {other}"),
                }
            }
            events.push(event);
        }
        events
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        children(dir).unwrap()
    }

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        for (bytes, sum) in [
            (vec![0; 32], 0x8a91_36aa),
            (vec![0xff; 32], 0x62a8_ab43),
            ((0..32).collect(), 0x46dd_794e),
            (b"123456789".to_vec(), 0xe306_9283),
        ] {
            assert_eq!((unmask(masked(&bytes)), slow_crc(&bytes)), (sum, sum));
        }
    }

    #[test]
    fn every_number_of_a_line_is_a_scalar_under_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join(TENSORBOARD_FOLDER);
        let mut sink = TensorBoard::create(&dir, 0, None).unwrap();
        let mut step = StepEvent { step: 300, loss: 2.5, tokens: 1 << 20, ..Default::default() };
        (step.full_loss, step.grad_norm) = (Some(2.75), f64::NAN);
        step.seconds_by_phase.head = 0.5;
        let val = ValEvent { step: 0, val_loss: 9.5, ..ValEvent::default() };
        sink.event(&Event::Validation(val)).unwrap();
        sink.event(&Event::Note("no number".into())).unwrap();
        sink.event(&Event::Step(step.clone())).unwrap();
        let [path] = files(&dir).try_into().unwrap();
        let events = read(&path); // while the sink is open
        let heads: Vec<_> =
            events.iter().map(|e| (e.step, e.version.as_str(), e.session)).collect();
        assert_eq!(
            heads,
            [(0, FILE_VERSION, None), (0, "", Some(1)), (0, "", None), (300, "", None)]
        );
        assert_eq!(events[2].values, [("val_loss".to_string(), 9.5)]);
        let value = |tag: &str| events[3].values.iter().find(|v| v.0 == tag).map(|v| v.1);
        assert_eq!(
            ["loss", "full_loss", "tokens", "seconds_by_phase/head", "lr"].map(value),
            [2.5, 2.75, 1_048_576.0, 0.5, 0.0].map(Some)
        );
        assert_eq!(["step", "grad_norm", "dropped_loss"].map(value), [None; 3]);
        let line = serde_json::to_value(&step).unwrap();
        for (key, value) in line.as_object().unwrap().iter().filter(|(key, _)| *key != "step") {
            let found = events[3].values.iter().any(|(tag, _)| tag.split('/').next() == Some(key));
            assert_eq!(found, !value.is_null(), "{key}");
        }
    }

    #[test]
    fn a_run_that_goes_on_begins_a_file_that_is_read_later_and_says_from_where() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        // As if the clock had been wrong by centuries.
        let ahead = dir.join(format!("{PREFIX}9999999998.eslm-kd"));
        std::fs::write(&ahead, "").unwrap();
        for (step, validated, first) in
            [(0, None, 0), (0, Some(0), 1), (4, None, 5), (4, Some(4), 5)]
        {
            drop(TensorBoard::create(dir, step, validated).unwrap());
            let newest = files(dir).into_iter().max_by_key(|p| seconds_in(&name_of(p))).unwrap();
            let starts: Vec<_> = read(&newest).iter().map(|e| (e.step, e.session)).collect();
            assert_eq!(starts, [(first, None), (first, Some(1))]);
        }
        assert_eq!(files(dir).len(), 5);
    }
}
