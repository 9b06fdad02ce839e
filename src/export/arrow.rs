//! Samples as Parquet and as Arrow IPC files. Knows nothing of where samples come from.
//!
//! Rows become record batches, and batches go to the file as soon as they are full, so that memory is that of a row
//! group. Types are those that every reader has: text, lists of text, 64-bit numbers, booleans, all of them nullable.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use arrow_array::builder::{
    BooleanBuilder, Float64Builder, Int64Builder, ListBuilder, StringBuilder,
};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::columns::{Cell, Columns, Kind, each_row};
use super::{ExportError, Source};
use crate::store::Store;

/// Rows of a batch, at most.
const BATCH_ROWS: usize = 1024;
/// Bytes of text of a batch, about.
const BATCH_BYTES: usize = 4 << 20;
/// Rows of a row group, at most.
const GROUP_ROWS: usize = 64 * 1024;
/// Bytes of a row group that wait in memory, about.
const GROUP_BYTES: usize = 32 << 20;
/// Version of the columns, in the file's own table of facts.
const VERSION: &str = "1";

pub(super) fn parquet(
    sources: &[Source],
    store: &Store,
    out: impl Write + Send,
) -> Result<(), ExportError> {
    let columns = Columns::of(sources, store)?;
    let schema = schema(&columns);
    let level = ZstdLevel::try_new(3).expect("BUG: zstd has a level 3");
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .build();
    let mut writer = ArrowWriter::try_new(out, schema.clone(), Some(properties)).map_err(form)?;
    batches(sources, store, &columns, &schema, |batch| {
        writer.write(batch).map_err(form)?;
        if writer.in_progress_size() >= GROUP_BYTES {
            writer.flush().map_err(form)?;
        }
        Ok(())
    })?;
    writer.close().map(drop).map_err(form)
}

pub(super) fn ipc(sources: &[Source], store: &Store, out: impl Write) -> Result<(), ExportError> {
    let columns = Columns::of(sources, store)?;
    let schema = schema(&columns);
    let mut writer = FileWriter::try_new(out, &schema).map_err(form)?;
    batches(sources, store, &columns, &schema, |batch| writer.write(batch).map_err(form))?;
    writer.finish().map_err(form)
}

fn form(error: impl std::fmt::Display) -> ExportError {
    ExportError::Form(error.to_string())
}

fn data_type(kind: Kind) -> DataType {
    match kind {
        Kind::Text | Kind::Json => DataType::Utf8,
        Kind::Texts => DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))),
        Kind::Integer => DataType::Int64,
        Kind::Number => DataType::Float64,
        Kind::Flag => DataType::Boolean,
    }
}

fn schema(columns: &Columns) -> SchemaRef {
    let fields = columns.head().map(|(name, kind)| Field::new(name, data_type(kind), true));
    let facts = [("forge_samples_version".to_owned(), VERSION.to_owned())];
    Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), HashMap::from(facts)))
}

/// A column of the batch under way.
enum Builder {
    Text(StringBuilder),
    Texts(ListBuilder<StringBuilder>),
    Integer(Int64Builder),
    Number(Float64Builder),
    Flag(BooleanBuilder),
}

impl Builder {
    fn new(kind: Kind) -> Builder {
        match kind {
            Kind::Text | Kind::Json => Builder::Text(StringBuilder::new()),
            Kind::Texts => Builder::Texts(ListBuilder::new(StringBuilder::new())),
            Kind::Integer => Builder::Integer(Int64Builder::new()),
            Kind::Number => Builder::Number(Float64Builder::new()),
            Kind::Flag => Builder::Flag(BooleanBuilder::new()),
        }
    }

    /// Adds a cell, and gives the bytes of its text.
    fn push(&mut self, cell: &Cell<'_>) -> usize {
        match (self, cell) {
            (Builder::Text(builder), Cell::Text(text)) => {
                builder.append_value(text);
                text.len()
            }
            (Builder::Text(builder), _) => {
                builder.append_null();
                0
            }
            (Builder::Texts(builder), Cell::Texts(texts)) => {
                texts.iter().for_each(|text| builder.values().append_value(text));
                builder.append(true);
                texts.iter().map(String::len).sum()
            }
            (Builder::Texts(builder), _) => {
                builder.append_null();
                0
            }
            (Builder::Integer(builder), cell) => {
                builder.append_option(match cell {
                    Cell::Integer(number) => Some(*number),
                    _ => None,
                });
                8
            }
            (Builder::Number(builder), cell) => {
                builder.append_option(match cell {
                    Cell::Number(number) => Some(*number),
                    _ => None,
                });
                8
            }
            (Builder::Flag(builder), cell) => {
                builder.append_option(match cell {
                    Cell::Flag(flag) => Some(*flag),
                    _ => None,
                });
                1
            }
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Builder::Text(builder) => Arc::new(builder.finish()),
            Builder::Texts(builder) => Arc::new(builder.finish()),
            Builder::Integer(builder) => Arc::new(builder.finish()),
            Builder::Number(builder) => Arc::new(builder.finish()),
            Builder::Flag(builder) => Arc::new(builder.finish()),
        }
    }
}

/// Calls `write` with all rows, a batch at a time.
fn batches(
    sources: &[Source],
    store: &Store,
    columns: &Columns,
    schema: &SchemaRef,
    mut write: impl FnMut(&RecordBatch) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let mut builders: Vec<Builder> = columns.head().map(|(_, kind)| Builder::new(kind)).collect();
    let (mut rows, mut bytes) = (0, 0);
    let mut flush = |builders: &mut Vec<Builder>| {
        let arrays = builders.iter_mut().map(Builder::finish).collect();
        write(&RecordBatch::try_new(schema.clone(), arrays).map_err(form)?)
    };
    each_row(sources, store, |row| {
        for (builder, cell) in builders.iter_mut().zip(columns.cells(row)) {
            bytes += builder.push(&cell);
        }
        rows += 1;
        if rows >= BATCH_ROWS || bytes >= BATCH_BYTES {
            (rows, bytes) = (0, 0);
            flush(&mut builders)?;
        }
        Ok(())
    })?;
    if rows > 0 { flush(&mut builders) } else { Ok(()) }
}
