//! Parquet: one string column, a row at a time.

use super::parquet_pages::Pages;
use super::pieces::{Row, Rows};
use super::{Compression, MOST_DOCUMENT_BYTES, Source};
use crate::error::{Error, Result};
use crate::guard::guarded;
use crate::report::text;
use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as PhysicalType};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{AsBytes, ByteArray, ByteArrayType};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::Type;
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rows decoded together.
const ROWS: usize = 256;

pub struct RowReader {
    source: Source,
    field: String,
    input: Arc<Checked>,
    metadata: ParquetMetaData,
    /// The column among the leaves of the schema.
    leaf: usize,
    /// Row groups opened so far.
    groups: usize,
    column: Option<Column>,
    ready: std::vec::IntoIter<Option<ByteArray>>,
    rows_read: u64,
    rows: u64,
    reported: u64,
    consumed: Arc<AtomicU64>,
    /// Removed when reading is over.
    _unpacked: Option<Unpacked>,
}

/// The column in one row group.
struct Column {
    reader: ColumnReaderImpl<ByteArrayType>,
    /// Rows that the group still has to give.
    left: usize,
}

impl RowReader {
    pub fn open(source: &Source, field: &str, consumed: &Arc<AtomicU64>) -> Result<Self> {
        let place = source.path.display();
        let failed = |e: &dyn std::fmt::Display| unreadable(source, e);
        let mut opened = checked(source)?;
        let metadata = &opened.metadata;
        let schema = metadata.file_metadata().schema_descr_ptr();
        let columns = schema.root_schema().get_fields();
        let Some(index) = columns.iter().position(|column| column.name() == field) else {
            let known: Vec<&str> = columns.iter().map(|column| column.name()).collect();
            let known = known.join(", ");
            return Err(Error::data(format!(
                "{place}: no column {field:?}; it has {known}: name one with --text-field"
            )));
        };
        if let Some(other) = no_strings(&columns[index]) {
            return Err(Error::data(format!(
                "{place}: column {field:?} holds {other}; expected strings"
            )));
        }
        let leaf =
            (0..schema.num_columns()).find(|leaf| schema.get_column_root_idx(*leaf) == index);
        let leaf = leaf.ok_or_else(|| failed(&"its column has no data"))?;
        let found =
            guarded(&place, || Pages::find(&*opened.input, metadata, |other| other == leaf))?;
        let rows = metadata.file_metadata().num_rows().max(0) as u64;
        opened.only(found.map_err(|e| failed(&e))?)?;
        let Opened { input, metadata, unpacked } = opened;
        Ok(Self {
            source: source.clone(),
            field: field.into(),
            input,
            metadata,
            leaf,
            groups: 0,
            column: None,
            ready: Vec::new().into_iter(),
            rows_read: 0,
            rows,
            reported: 0,
            consumed: Arc::clone(consumed),
            _unpacked: unpacked,
        })
    }

    /// The next rows, of the current row group or of the next one that has any; none at the end.
    fn batch(&mut self) -> ParquetResult<Vec<Option<ByteArray>>> {
        loop {
            let column = match &mut self.column {
                Some(column) if column.left > 0 => column,
                _ => {
                    let Some(group) = self.metadata.row_groups().get(self.groups) else {
                        return Ok(Vec::new());
                    };
                    self.groups += 1;
                    let rows = usize::try_from(group.num_rows()).unwrap_or(0);
                    let (chunk, input) = (group.column(self.leaf), Arc::clone(&self.input));
                    let pages = SerializedPageReader::new(input, chunk, rows, None)?;
                    let reader = ColumnReaderImpl::new(chunk.column_descr_ptr(), Box::new(pages));
                    self.column.insert(Column { reader, left: rows })
                }
            };
            let wanted = column.left.min(ROWS);
            if wanted == 0 {
                continue;
            }
            let (mut levels, mut values) = (Vec::new(), Vec::new());
            let (rows, ..) =
                column.reader.read_records(wanted, Some(&mut levels), None, &mut values)?;
            if rows == 0 {
                let left = column.left;
                return Err(ParquetError::EOF(format!(
                    "the column ends {left} rows before its row group"
                )));
            }
            column.left -= rows;
            // A column that may hold nulls says of each row whether it has a value; another has one
            // in every row.
            if levels.is_empty() {
                return Ok(values.into_iter().map(Some).collect());
            }
            let mut values = values.into_iter();
            return Ok(levels
                .iter()
                .map(|level| if *level > 0 { values.next() } else { None })
                .collect());
        }
    }

    /// Progress in bytes on disk, by the share of rows.
    fn report(&mut self, rows: u64) {
        self.rows_read += rows;
        let share = u128::from(self.source.size) * u128::from(self.rows_read)
            / u128::from(self.rows.max(1));
        let share = (share as u64).min(self.source.size);
        self.consumed.fetch_add(share - self.reported.min(share), Ordering::Relaxed);
        self.reported = self.reported.max(share);
    }
}

impl Rows for RowReader {
    fn next_row(&mut self) -> Result<Option<Row>> {
        loop {
            if let Some(value) = self.ready.next() {
                return Ok(Some(match text_of(value.as_ref()) {
                    Ok(text) => Row::Text(text.to_string()),
                    Err(what) => Row::Bad(format!("column {:?} {what}", self.field)),
                }));
            }
            let place = self.source.path.display().to_string();
            let batch = guarded(&place, || self.batch())?.map_err(|e| {
                Error::data(format!("{place}: damaged after row {}: {e}", self.rows_read))
            })?;
            if batch.is_empty() {
                return Ok(None);
            }
            self.report(batch.len() as u64);
            self.ready = batch.into_iter();
        }
    }

    fn number(&self) -> u64 {
        self.rows_read - self.ready.len() as u64
    }

    fn place(&self) -> String {
        format!("{}: row {}", self.source.path.display(), self.number())
    }
}

/// A file whose footer is read.
pub(super) struct Opened {
    pub(super) input: Arc<Checked>,
    pub(super) metadata: ParquetMetaData,
    /// Removed when reading is over.
    unpacked: Option<Unpacked>,
}

impl Opened {
    /// From now on it gives out these pages and nothing else.
    pub(super) fn only(&mut self, pages: Pages) -> Result<()> {
        let input = Arc::get_mut(&mut self.input);
        let input = input.ok_or_else(|| Error::internal("a Parquet file is being read already"))?;
        input.pages = Some(pages);
        Ok(())
    }
}

/// Opens a Parquet file and reads its footer.
pub(super) fn checked(source: &Source) -> Result<Opened> {
    // Parquet starts reading at its end, so a compressed one has to be unpacked first, and one
    // from a pipe laid down.
    let in_place = source.compression == Compression::None && source.stream.is_none();
    let unpacked = (!in_place).then(|| Unpacked::new(source)).transpose()?;
    let path = unpacked.as_ref().map_or(&source.path, |u| &u.path);
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let size = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
    let input = Checked { file, size, pages: None };
    let footer = || ParquetMetaDataReader::new().parse_and_finish(&input);
    let metadata = guarded(source.path.display(), footer)?.map_err(|e| unreadable(source, &e))?;
    Ok(Opened { input: Arc::new(input), metadata, unpacked })
}

fn unreadable(source: &Source, e: &dyn std::fmt::Display) -> Error {
    Error::data(format!("{}: not a readable Parquet file: {e}", source.path.display()))
}

/// A file that allocates for what it holds, not for what its footer says: lengths there are
/// anyone's claim. Once its pages are known, it gives out nothing else.
pub(super) struct Checked {
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

/// What a column holds that is not text; None where it is text, a value a row.
fn no_strings(column: &Type) -> Option<String> {
    if column.is_group() {
        return Some("lists or structures".into());
    }
    let physical = column.get_physical_type();
    let info = column.get_basic_info();
    let text = matches!(
        info.logical_type_ref(),
        Some(LogicalType::String | LogicalType::Json | LogicalType::Enum)
    ) || matches!(
        info.converted_type(),
        ConvertedType::UTF8 | ConvertedType::JSON | ConvertedType::ENUM
    );
    if physical != PhysicalType::BYTE_ARRAY {
        Some(physical.to_string())
    } else if !text {
        Some("bytes that are not marked as text".into())
    } else if info.has_repetition() && info.repetition() == Repetition::REPEATED {
        Some("lists".into())
    } else {
        None
    }
}

fn text_of(value: Option<&ByteArray>) -> std::result::Result<&str, String> {
    let bytes = value.ok_or("is null; expected a string")?.as_bytes();
    if bytes.len() > MOST_DOCUMENT_BYTES {
        let [found, most] = [bytes.len(), MOST_DOCUMENT_BYTES].map(|n| text::bytes(n as u64));
        return Err(format!("has {found}; expected at most {most}"));
    }
    std::str::from_utf8(bytes).map_err(|e| format!("is not UTF-8 at its byte {}", e.valid_up_to()))
}

/// A decompressed copy in the folder for temporary files.
pub(super) struct Unpacked {
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
            crate::interrupt::check()?;
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
