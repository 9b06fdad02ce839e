//! Rows of Parquet files, group by group and page by page. Knows nothing of what rows mean.

use std::fs::File;

use base64::Engine;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Map, Number, Value};

use super::bad::RowError;
use super::rows::{Placed, Rest};
use crate::stage::StageError;

/// Every row as an object. Lists and tables stay what they are; numbers that are none (NaN) are null; bytes
/// that are no text are Base64; dates, times and decimals are text.
pub(super) fn rows(file: File, name: String) -> Result<Rest, StageError> {
    let fail = |error: parquet::errors::ParquetError| {
        StageError::User(format!("cannot read `{name}` as Parquet: {}", words(&error)))
    };
    let reader = SerializedFileReader::new(file).map_err(fail)?;
    check_codecs(&reader, &name)?;
    let mut rows = reader.into_iter();
    let mut number = 0_u64;
    let mut ended = false;
    Ok(Box::new(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        number += 1;
        let place = format!("{name}, row {number}");
        match rows.next()? {
            Ok(row) => {
                let columns = row.into_columns().into_iter();
                let value = columns.map(|(name, field)| (name, json(field))).collect();
                Some(Ok(Placed { value: Value::Object(value), place }))
            }
            Err(error) => {
                ended = true;
                let message = format!("{place}: this is no good Parquet: {}", words(&error));
                Some(Err(RowError::Fatal(StageError::User(message))))
            }
        }
    })))
}

/// Says at once, and not at the first page, that a column is compressed in a way that is not built in.
fn check_codecs(reader: &SerializedFileReader<File>, name: &str) -> Result<(), StageError> {
    use parquet::basic::Compression;
    for group in reader.metadata().row_groups() {
        for column in group.columns() {
            let codec = column.compression();
            let known = matches!(
                codec,
                Compression::UNCOMPRESSED
                    | Compression::SNAPPY
                    | Compression::GZIP(_)
                    | Compression::ZSTD(_)
            );
            if !known {
                return Err(StageError::User(format!(
                    "the column `{}` of `{name}` is compressed with {codec}; forge reads Snappy, gzip and zstd",
                    column.column_path().string()
                )));
            }
        }
    }
    Ok(())
}

fn words(error: &parquet::errors::ParquetError) -> String {
    error.to_string().trim_start_matches("Parquet error: ").to_owned()
}

fn json(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(flag) => flag.into(),
        Field::Byte(number) => number.into(),
        Field::Short(number) => number.into(),
        Field::Int(number) => number.into(),
        Field::Long(number) => number.into(),
        Field::UByte(number) => number.into(),
        Field::UShort(number) => number.into(),
        Field::UInt(number) => number.into(),
        Field::ULong(number) => number.into(),
        // As it is written, not as it looks with more bits: 0.1 stays 0.1.
        Field::Float16(number) => shortest(&number.to_string()),
        Field::Float(number) => shortest(&number.to_string()),
        Field::Double(number) => Number::from_f64(number).map_or(Value::Null, Value::Number),
        Field::Str(text) => text.into(),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => base64::engine::general_purpose::STANDARD.encode(bytes.data()).into(),
        },
        Field::Group(row) => {
            let columns = row.into_columns().into_iter();
            Value::Object(columns.map(|(name, field)| (name, json(field))).collect())
        }
        Field::ListInternal(list) => list.elements().iter().cloned().map(json).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter();
            let named: Option<Map<String, Value>> = entries
                .clone()
                .map(|(key, value)| match key {
                    Field::Str(key) => Some((key.clone(), json(value.clone()))),
                    _ => None,
                })
                .collect();
            let pair = |(key, value): &(Field, Field)| {
                Value::Array(vec![json(key.clone()), json(value.clone())])
            };
            named.map_or_else(|| entries.map(pair).collect(), Value::Object)
        }
        other @ (Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_)) => other.to_string().into(),
    }
}

fn shortest(text: &str) -> Value {
    let number = text.parse().ok().and_then(Number::from_f64);
    number.map_or(Value::Null, Value::Number)
}
