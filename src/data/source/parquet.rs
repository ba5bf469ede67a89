//! Parquet: one string column, a row at a time.

use super::parquet_pages::Pages;
use super::pieces::WholeDocuments;
use super::{Compression, MOST_DOCUMENT_BYTES, Source};
use crate::error::{Error, Result};
use crate::guard::guarded;
use arrow_array::{Array, ArrayRef, StringArray};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rows decoded together.
const ROWS: usize = 256;

pub struct RowReader {
    source: Source,
    field: String,
    batches: ParquetRecordBatchReader,
    current: Option<(ArrayRef, usize)>,
    rows_read: u64,
    rows: u64,
    reported: u64,
    consumed: Arc<AtomicU64>,
    /// Removed when reading is over.
    _unpacked: Option<Unpacked>,
}

impl RowReader {
    pub fn open(source: &Source, field: &str, consumed: &Arc<AtomicU64>) -> Result<Self> {
        let place = source.path.display();
        // Parquet starts reading at its end, so a compressed one has to be unpacked first.
        let unpacked = (source.compression != Compression::None).then(|| Unpacked::new(source)).transpose()?;
        let path = unpacked.as_ref().map_or(&source.path, |u| &u.path);
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let failed = |e: &dyn std::fmt::Display| Error::data(format!("{place}: not a readable Parquet file: {e}"));
        // Without the writer's own schema text has 32-bit offsets: a batch of a few long values, repeated, ends at 2 GiB
        // with an error of the reader.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let size = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        let mut input = Checked { file, size, pages: None };
        let metadata = guarded(&place, || ArrowReaderMetadata::load(&input, options))?.map_err(|e| failed(&e))?;
        let columns: Vec<String> = metadata.schema().fields().iter().map(|f| f.name().clone()).collect();
        let Some(index) = columns.iter().position(|name| name == field) else {
            let known = columns.join(", ");
            return Err(Error::data(format!(
                "{place}: no column {field:?}; it has {known}: name one with --text-field"
            )));
        };
        let found = guarded(&place, || {
            let schema = metadata.parquet_schema();
            Pages::find(&input, metadata.metadata(), |leaf| schema.get_column_root_idx(leaf) == index)
        })?;
        input.pages = Some(found.map_err(|e| failed(&e))?);
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(input, metadata);
        let mask = ProjectionMask::roots(builder.parquet_schema(), [index]);
        let rows = builder.metadata().file_metadata().num_rows().max(0) as u64;
        let built = guarded(&place, || builder.with_projection(mask).with_batch_size(ROWS).build())?;
        let batches = built.map_err(|e| failed(&e))?;
        Ok(Self {
            source: source.clone(),
            field: field.into(),
            batches,
            current: None,
            rows_read: 0,
            rows,
            reported: 0,
            consumed: Arc::clone(consumed),
            _unpacked: unpacked,
        })
    }

    /// Progress in bytes on disk, by the share of rows.
    fn report(&mut self, rows: u64) {
        self.rows_read += rows;
        let share = u128::from(self.source.size) * u128::from(self.rows_read) / u128::from(self.rows.max(1));
        let share = (share as u64).min(self.source.size);
        self.consumed.fetch_add(share - self.reported.min(share), Ordering::Relaxed);
        self.reported = self.reported.max(share);
    }
}

impl WholeDocuments for RowReader {
    fn next_document(&mut self) -> Result<Option<String>> {
        loop {
            if let Some((array, row)) = &mut self.current
                && *row < array.len()
            {
                *row += 1;
                let text = text_at(array, *row - 1).map(|t| Some(t.to_string()));
                return text.map_err(|what| Error::data(format!("{}: column {:?} {what}", self.place(), self.field)));
            }
            match guarded(self.source.path.display(), || self.batches.next())? {
                None => return Ok(None),
                Some(Err(e)) => {
                    let place = self.source.path.display();
                    return Err(Error::data(format!("{place}: damaged after row {}: {e}", self.rows_read)));
                }
                Some(Ok(batch)) => {
                    self.report(batch.num_rows() as u64);
                    self.current = Some((Arc::clone(batch.column(0)), 0));
                }
            }
        }
    }

    fn place(&self) -> String {
        let left = self.current.as_ref().map_or(0, |(array, row)| array.len() - row);
        format!("{}: row {}", self.source.path.display(), self.rows_read - left as u64)
    }
}

/// A file that allocates for what it holds, not for what its footer says: lengths there are anyone's claim. Once its pages
/// are known, it gives out nothing else.
struct Checked {
    file: File,
    size: u64,
    pages: Option<Pages>,
}

impl Length for Checked {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Checked {
    type T = <File as ChunkReader>::T;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        self.file.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<bytes::Bytes> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.size) {
            let size = self.size;
            return Err(ParquetError::EOF(format!(
                "{length} bytes from byte {start} are claimed, the file has {size}"
            )));
        }
        let bytes = self.file.get_bytes(start, length)?;
        self.pages.as_ref().map_or(Ok(()), |pages| pages.check(start, &bytes))?;
        Ok(bytes)
    }
}

fn text_at(array: &ArrayRef, row: usize) -> std::result::Result<&str, String> {
    let text = string_at(array, row)?;
    if text.len() > MOST_DOCUMENT_BYTES {
        return Err(format!("has {} bytes; expected at most {MOST_DOCUMENT_BYTES}", text.len()));
    }
    Ok(text)
}

fn string_at(array: &ArrayRef, row: usize) -> std::result::Result<&str, String> {
    if array.is_null(row) {
        return Err("is null; expected a string".into());
    }
    match array.as_any().downcast_ref::<StringArray>() {
        Some(strings) => Ok(strings.value(row)),
        None => Err(format!("holds {}; expected strings", array.data_type())),
    }
}

/// A decompressed copy in the folder for temporary files.
struct Unpacked {
    path: PathBuf,
}

impl Unpacked {
    fn new(source: &Source) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("eslm-kd-{}-{n}.parquet", std::process::id()));
        let file = File::create_new(&path).map_err(|e| Error::io("create", &path, e))?;
        let unpacked = Self { path };
        let mut input = source.decompressed(&Arc::default())?;
        let mut output = std::io::BufWriter::new(file);
        loop {
            crate::signal::check()?;
            let bytes = input.fill_buf().map_err(|e| source.unreadable(&e))?;
            if bytes.is_empty() {
                break;
            }
            let failed = |e| Error::io("write", &unpacked.path, e);
            std::io::Write::write_all(&mut output, bytes).map_err(failed)?;
            let n = bytes.len();
            input.consume(n);
        }
        std::io::Write::flush(&mut output).map_err(|e| Error::io("write", &unpacked.path, e))?;
        Ok(unpacked)
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
