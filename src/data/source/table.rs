//! Parquet: rows of several columns, which may be lists.

use super::Source;
use super::parquet::{Opened, checked};
use super::parquet_pages::Pages;
use crate::error::{Error, Result};
use crate::guard::guarded;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::page_index::RowGroupPageIndex;
use parquet::file::properties::ReaderProperties;
use parquet::file::serialized_reader::SerializedRowGroupReader;
use parquet::record::Row;
use parquet::record::reader::{ReaderIter, TreeBuilder};
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor, Type};
use std::sync::Arc;

/// Rows decoded together: lists make them long.
const ROWS: usize = 64;

/// Reads some columns of a file row by row.
pub(crate) struct Table {
    source: Source,
    opened: Opened,
    /// The columns that are read.
    schema: SchemaDescPtr,
    /// Names of all columns.
    columns: Vec<String>,
    /// Row groups opened so far.
    groups: usize,
    rows: Option<ReaderIter>,
    number: u64,
}

impl Table {
    /// Begins with the first row of those of the columns `wanted` that the file has.
    pub(crate) fn open(source: &Source, wanted: &[&str]) -> Result<Self> {
        let place = source.path.display();
        let mut opened = checked(source)?;
        let file = opened.metadata.file_metadata().schema_descr_ptr();
        let fields = file.root_schema().get_fields();
        let columns = fields.iter().map(|field| field.name().to_string()).collect();
        let read: Vec<bool> = fields.iter().map(|field| wanted.contains(&field.name())).collect();
        let found = guarded(&place, || {
            let of_leaf = |leaf: usize| read[file.get_column_root_idx(leaf)];
            let pages = Pages::find(&*opened.input, &opened.metadata, of_leaf)?;
            let fields =
                fields.iter().zip(&read).filter(|(_, read)| **read).map(|(f, _)| f.clone());
            let root = Type::group_type_builder("rows").with_fields(fields.collect()).build()?;
            Ok((pages, SchemaDescriptor::new(Arc::new(root))))
        })?;
        let (pages, schema) = found.map_err(|e: ParquetError| {
            Error::data(format!("{place}: not a readable Parquet file: {e}"))
        })?;
        opened.only(pages)?;
        let (source, schema) = (source.clone(), Arc::new(schema));
        Ok(Self { source, opened, schema, columns, groups: 0, rows: None, number: 0 })
    }

    /// Names of all columns of the file.
    pub(crate) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The next row, with its columns in the order of the file, and its number, from 1; None at the
    /// end.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Row)>> {
        let place = self.source.path.display().to_string();
        let row = guarded(&place, || self.row())?
            .map_err(|e| Error::data(format!("{place}: damaged after row {}: {e}", self.number)))?;
        self.number += u64::from(row.is_some());
        Ok(row.map(|row| (self.number, row)))
    }

    fn row(&mut self) -> ParquetResult<Option<Row>> {
        loop {
            if let Some(row) = self.rows.as_mut().and_then(Iterator::next) {
                return row.map(Some);
            }
            let Some(group) = self.opened.metadata.row_groups().get(self.groups) else {
                return Ok(None);
            };
            let (input, index) =
                (Arc::clone(&self.opened.input), RowGroupPageIndex::new(self.groups, None));
            self.groups += 1;
            // Columns advance to their first row as they are opened, which there must be.
            if group.num_rows() > 0 {
                let properties = Arc::new(ReaderProperties::builder().build());
                let reader = SerializedRowGroupReader::new(input, group, index, properties)?;
                let rows = TreeBuilder::new().with_batch_size(ROWS);
                self.rows = Some(rows.as_iter(Arc::clone(&self.schema), &reader)?);
            }
        }
    }
}
