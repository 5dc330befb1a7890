//! Rows of Parquet files as records: one row group's pages are in memory at a time.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use minijinja::value::Value;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};

use crate::data::template::Json;
use crate::error::{Error, Result};

/// A Parquet file being read.
pub(super) struct Table {
    rows: RowIter<'static>,
    /// The row read last, from 1.
    row: u64,
    all: u64,
    bytes: u64,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Table at row {} of {}", self.row, self.all)
    }
}

/// What the reader says of a file; some damage makes it panic.
fn guarded<T>(path: &Path, read: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T> {
    let wrong = |what: String| match what.rsplit_once("Disabled feature at compile time: ") {
        Some((_, codec)) => {
            let message =
                format!("is compressed by {codec}, which is not read here; write it with snappy, gzip or zstd");
            Error::file(path, message)
        }
        None => Error::file(path, format!("is no Parquet file that can be read: {what}")),
    };
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(|error| wrong(error.to_string())),
        Err(_) => Err(wrong("its pages are damaged".into())),
    }
}

impl Table {
    pub fn open(path: &Path) -> Result<Table> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        let reader = guarded(path, || SerializedFileReader::new(file))?;
        let all = reader.metadata().file_metadata().num_rows().max(0) as u64;
        let rows = RowIter::from_file_into(Box::new(reader));
        Ok(Table { rows, row: 0, all, bytes })
    }

    /// The next row's number and fields.
    pub fn next(&mut self, path: &Path) -> Result<Option<(u64, Json)>> {
        let Some(row) = guarded(path, || self.rows.next().transpose())? else { return Ok(None) };
        self.row += 1;
        Ok(Some((self.row, of_row(&row))))
    }

    /// About as many bytes as were read.
    pub fn bytes_read(&self) -> u64 {
        (u128::from(self.bytes) * u128::from(self.row) / u128::from(self.all.max(1))) as u64
    }
}

fn of_row(row: &Row) -> Json {
    Value::from_pairs(row.get_column_iter().map(|(name, field)| (name.as_str(), value(field))))
}

/// A field as JSON would have it. Times are numbers, as they are stored.
fn value(field: &Field) -> Json {
    match field {
        Field::Null => Value::from(()),
        Field::Bool(b) => Value::from(*b),
        Field::Byte(n) => Value::from(*n),
        Field::Short(n) => Value::from(*n),
        Field::Int(n) | Field::Date(n) | Field::TimeMillis(n) => Value::from(*n),
        Field::Long(n) | Field::TimeMicros(n) | Field::TimestampMillis(n) | Field::TimestampMicros(n) => {
            Value::from(*n)
        }
        Field::UByte(n) => Value::from(*n),
        Field::UShort(n) => Value::from(*n),
        Field::UInt(n) => Value::from(*n),
        Field::ULong(n) => Value::from(*n),
        Field::Float16(x) => Value::from(f64::from(x.to_f32())),
        Field::Float(x) => Value::from(f64::from(*x)),
        Field::Double(x) => Value::from(*x),
        Field::Str(text) => Value::from(text.as_str()),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::from(text),
            Err(_) => Value::from_bytes(bytes.data().to_vec()),
        },
        Field::Decimal(_) => Value::from(field.to_string()),
        Field::Group(row) => of_row(row),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            Value::from_pairs(map.entries().iter().map(|(key, field)| (value(key).to_string(), value(field))))
        }
    }
}
