//! Tables of passages: Parquet, and Arrow IPC as a file or a stream, one batch of rows in memory at a time.
//!
//! The columns have the names of the JSONL fields. Texts are strings of any Arrow kind, ids strings or integers; further
//! columns are metadata.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek};
use std::path::Path;

use arrow::array::{Array, ArrayRef, LargeStringArray, RecordBatch};
use arrow::datatypes::{DataType, Schema};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

use super::columns;
use super::intake::{Intake, Place, Record};
use super::open::{LONGEST_LINE, Opened, failed, too_long};
use crate::error::{Error, Result};
use crate::guard;

/// Rows that are decoded at a time from Parquet. Arrow files fix this themselves.
const BATCH_ROWS: usize = 1024;

/// What an Arrow file, but not a stream, begins and ends with.
const ARROW_FILE: &[u8] = b"ARROW1";

/// Writers pad the beginning of a file to 8 bytes, or to 64.
const PADDING: &[u8] = &[0; 8];

/// What to do about a damaged table.
const AGAIN: &str = "write the file again, or get it again";

/// Give every row of a Parquet file to `intake`.
pub(super) fn read_parquet(path: &Path, file: &str, opened: Opened, intake: &mut dyn Intake) -> Result<()> {
    let table = seekable(path, opened)?;
    let damaged = |e: &dyn std::fmt::Display| Error::bad_file(path, format!("cannot be read as Parquet: {e}"), AGAIN);
    let builder = guarded(path, || ParquetRecordBatchReaderBuilder::try_new(table))?.map_err(|e| damaged(&e))?;
    let columns = Columns::of(builder.schema(), path)?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), columns.indices());
    let builder = builder.with_projection(mask).with_batch_size(BATCH_ROWS);
    let mut reader = guarded(path, || builder.build())?.map_err(|e| damaged(&e))?;
    let mut rows = Rows { path, file, row: 0 };
    while let Some(batch) = guarded(path, || reader.next())? {
        let batch = batch.map_err(|e| damaged(&e))?;
        // The projection may have moved the columns.
        let columns = Columns::of(&batch.schema(), path)?;
        rows.give(&batch, &columns, intake)?;
    }
    Ok(())
}

/// Do a step of decoding. On some damaged tables the libraries panic (offsets beyond a buffer, in Arrow 60); to the
/// user that is a damaged file like any other.
fn guarded<T>(path: &Path, step: impl FnOnce() -> T) -> Result<T> {
    guard::guarded(step).ok_or_else(|| Error::bad_file(path, "the table is damaged", AGAIN))
}

/// Parquet is read from its end, which neither a compressed file nor a pipe allows: these go through a
/// temporary file.
fn seekable(path: &Path, mut opened: Opened) -> Result<File> {
    if !opened.compressed && path.is_file() {
        return File::open(path).map_err(Error::file("read", path));
    }
    let mut whole = tempfile::tempfile().map_err(Error::file("create a temporary copy of", path))?;
    loop {
        // Reading and writing are told apart, because only one of them is the corpus' fault.
        let bytes = opened.reader.fill_buf().map_err(|e| failed(path, e, opened.compressed))?;
        if bytes.is_empty() {
            break;
        }
        let count = bytes.len();
        io::Write::write_all(&mut whole, bytes).map_err(Error::file("write a temporary copy of", path))?;
        opened.reader.consume(count);
    }
    whole.rewind().map_err(Error::file("read the temporary copy of", path))?;
    Ok(whole)
}

/// Give every row of an Arrow IPC file or stream to `intake`.
///
/// A file is read as the stream that it holds behind its first bytes: so it needs no seeking, and works
/// compressed too.
pub(super) fn read_ipc(path: &Path, file: &str, opened: Opened, intake: &mut dyn Intake) -> Result<()> {
    let Opened { mut reader, compressed, .. } = opened;
    let damaged = |e: ArrowError| match e {
        ArrowError::IoError(_, e) if compressed || e.raw_os_error().is_some() => failed(path, e, compressed),
        e => Error::bad_file(path, format!("cannot be read as Arrow: {e}"), AGAIN),
    };
    let mut start = Vec::new();
    reader.by_ref().take(8).read_to_end(&mut start).map_err(|e| failed(path, e, compressed))?;
    let is_file = start.starts_with(ARROW_FILE);
    while is_file && start == PADDING || start.starts_with(ARROW_FILE) {
        start.clear();
        reader.by_ref().take(8).read_to_end(&mut start).map_err(|e| failed(path, e, compressed))?;
    }
    let reader = io::Cursor::new(start).chain(reader);
    let mut stream = guarded(path, || StreamReader::try_new(reader, None))?.map_err(damaged)?;
    let columns = Columns::of(&stream.schema(), path)?;
    let mut rows = Rows { path, file, row: 0 };
    while let Some(batch) = guarded(path, || stream.next())? {
        rows.give(&batch.map_err(damaged)?, &columns, intake)?;
    }
    if is_file && !ends_with(stream.get_mut(), ARROW_FILE).map_err(|e| failed(path, e, compressed))? {
        return Err(Error::bad_file(path, "the Arrow file is cut short", AGAIN));
    }
    Ok(())
}

/// Read to the end: whether the last bytes are `end`.
fn ends_with(reader: &mut impl Read, end: &[u8]) -> io::Result<bool> {
    let mut tail = Vec::new();
    loop {
        let read = reader.by_ref().take(64 << 10).read_to_end(&mut tail)?;
        if read == 0 {
            return Ok(tail == end);
        }
        let surplus = tail.len().saturating_sub(end.len());
        tail.drain(..surplus);
    }
}

/// Which columns hold what.
struct Columns {
    id: usize,
    text: usize,
    title: Option<usize>,
    /// Those that are metadata, with their names.
    others: Vec<(usize, String)>,
}

impl Columns {
    fn of(schema: &Schema, path: &Path) -> Result<Self> {
        const NAMES: [&str; 6] = ["id", "_id", "docid", "title", "text", "contents"];
        let find = |names: &[&str]| names.iter().find_map(|name| schema.index_of(name).ok());
        let missing = |what: &str| {
            let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            let problem = format!("there is no column {what}: the columns are {}", names.join(", "));
            Error::bad_file(path, problem, "rename the columns to id, title and text")
        };
        let id = find(&["id", "_id", "docid"]).ok_or_else(|| missing("`id` (or `_id`, `docid`)"))?;
        let text = find(&["text", "contents"]).ok_or_else(|| missing("`text` (or `contents`)"))?;
        let title = find(&["title"]);
        let is_other = |i: usize| ![Some(id), Some(text), title].contains(&Some(i));
        let others = schema.fields().iter().enumerate();
        let others = others.filter(|(i, field)| is_other(*i) && columns::is_metadata(field.data_type()));
        // Other names of the id and the text are no metadata, as in JSONL.
        let others = others.filter(|(_, field)| !NAMES.contains(&field.name().as_str()));
        let others = others.map(|(i, field)| (i, field.name().clone())).collect();
        let columns = Self { id, text, title, others };
        for index in [Some(id), Some(text), title].into_iter().flatten() {
            let field = schema.field(index);
            let kind = match field.data_type() {
                DataType::Dictionary(_, values) => values.as_ref(),
                kind => kind,
            };
            let fits = matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null)
                || index == id && kind.is_integer();
            if !fits {
                let what = if index == id { "strings or integers are" } else { "strings are" };
                let problem = format!("the column `{}` is of {kind} where {what} expected", field.name());
                return Err(Error::bad_file(path, problem, "write the column with that type"));
            }
        }
        Ok(columns)
    }

    fn indices(&self) -> impl Iterator<Item = usize> {
        let others = self.others.iter().map(|(i, _)| *i);
        [Some(self.id), Some(self.text), self.title].into_iter().flatten().chain(others)
    }
}

/// Gives rows, and counts them.
struct Rows<'a> {
    path: &'a Path,
    file: &'a str,
    row: u64,
}

impl Rows<'_> {
    fn give(&mut self, batch: &RecordBatch, columns: &Columns, intake: &mut dyn Intake) -> Result<()> {
        let column = |index| guarded(self.path, || strings(batch, index))?;
        let (ids, texts) = (column(columns.id)?, column(columns.text)?);
        let titles = columns.title.map(column).transpose()?;
        let mut others = Vec::new();
        for (index, name) in &columns.others {
            others.push((name, self.values(batch.column(*index))));
        }
        let metadata = |row: usize| -> Result<Map<String, Value>, String> {
            let value = |(name, values): &(&String, Vec<Result<Value, String>>)| match values.get(row)? {
                Ok(value) => Some(Ok(((*name).clone(), value.clone()))),
                Err(problem) => Some(Err(format!("the column `{name}` cannot be read here: {problem}"))),
            };
            others.iter().filter_map(value).collect()
        };
        for row in 0..batch.num_rows() {
            self.row += 1;
            let place = Place { path: self.path, file: self.file, line: self.row };
            if ids.is_null(row) {
                intake.bad(place, "there is no id in this row".to_string())?;
            } else if texts.is_null(row) {
                intake.bad(place, "there is no text in this row".to_string())?;
            } else if texts.value(row).len() > LONGEST_LINE {
                intake.bad(place, format!("the text: {}", too_long()))?;
            } else {
                let title = titles.as_ref().filter(|titles| titles.is_valid(row)).map_or("", |t| t.value(row));
                match metadata(row) {
                    Ok(metadata) => {
                        intake.record(place, Record { id: ids.value(row), title, text: texts.value(row), metadata })?;
                    }
                    Err(problem) => intake.bad(place, problem)?,
                }
            }
        }
        Ok(())
    }

    /// The values of a column, and what is wrong with those that cannot be had: one bad value shall not cost all rows.
    fn values(&self, column: &ArrayRef) -> Vec<Result<Value, String>> {
        let read = |column: &ArrayRef| guarded(self.path, || columns::values(column)).map_err(|e| e.to_string());
        if let Ok(Ok(values)) = read(column) {
            return values.into_iter().map(Ok).collect();
        }
        let one = |row| match read(&column.slice(row, 1))? {
            Ok(values) => Ok(values.into_iter().next().unwrap_or(Value::Null)),
            Err(ArrowError::CastError(problem)) => Err(problem),
            Err(problem) => Err(problem.to_string()),
        };
        (0..column.len()).map(one).collect()
    }
}

/// A column as strings, whatever kind of strings or integers it has.
fn strings(batch: &RecordBatch, index: usize) -> Result<LargeStringArray> {
    let reading = "reading a column of a table";
    let column = arrow::compute::cast(batch.column(index), &DataType::LargeUtf8).map_err(Error::internal(reading))?;
    let strings = column.as_any().downcast_ref::<LargeStringArray>();
    strings.cloned().ok_or_else(|| Error::internal(reading)("cast to strings gave something else"))
}
