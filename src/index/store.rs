//! The passages themselves: an Arrow IPC file that is mapped, and a table from corpus id to row.
//!
//! `passages.arrow` has the columns key, title, text, source_file, start, end, metadata (a JSON
//! object, or nothing), in record batches of
//! [`BATCH`] rows, so that a row's batch is a division away; any Arrow reader can read the file. A batch
//! is decoded (without copying) when the first of its rows is asked for, and kept. `keys.hash` holds the
//! sorted 64-bit hashes of all keys, `keys.row` the row of each.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use arrow::array::{Array, LargeStringArray, RecordBatch, UInt64Array};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::Block;
use arrow::ipc::reader::{FileDecoder, read_footer_length};
use arrow::ipc::writer::FileWriter;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::checked::{CheckedFile, damaged};
use crate::digest::hex;
use crate::error::{Error, Result};
use crate::types::{Passage, PassageId, SourceSpan};

/// Rows a record batch. Small, because the first touch of a row checks and validates its whole batch:
/// 256 rows of Wikipedia are ~170 kB, ~0.05 ms.
pub(super) const BATCH: usize = 256;

/// The passage file, and the two columns of the key table.
pub(super) const PASSAGES: &str = "passages.arrow";
pub(super) const KEY_HASHES: &str = "keys.hash";
pub(super) const KEY_ROWS: &str = "keys.row";

/// Number of the column that the first format did not have.
const METADATA: usize = 6;

fn schema() -> SchemaRef {
    let text = |name| Field::new(name, DataType::LargeUtf8, false);
    let number = |name| Field::new(name, DataType::UInt64, false);
    Arc::new(Schema::new(vec![
        text("key"),
        text("title"),
        text("text"),
        text("source_file"),
        number("start"),
        number("end"),
        text("metadata"),
    ]))
}

/// A passage's further fields as text.
fn metadata(passage: &Passage) -> String {
    match passage.metadata.is_empty() {
        true => String::new(),
        false => Value::Object(passage.metadata.clone()).to_string(),
    }
}

/// What a key is filed under: the first 8 bytes of its sha256, little-endian.
pub(super) fn key_hash(key: &str) -> u64 {
    Sha256::digest(key.as_bytes()).iter().take(8).rev().fold(0, |hash, &byte| hash << 8 | u64::from(byte))
}

/// Writes passages, row by row.
pub(super) struct StoreWriter {
    writer: FileWriter<BufWriter<File>>,
    schema: SchemaRef,
    pending: Vec<Passage>,
    /// Hash and row of every key so far: 16 bytes a passage.
    keys: Vec<(u64, u32)>,
    folder: std::path::PathBuf,
}

impl StoreWriter {
    /// A new store in `folder`.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(PASSAGES);
        let file = File::create(&path).map_err(Error::file("create", &path))?;
        let schema = schema();
        let writer = FileWriter::try_new(BufWriter::with_capacity(1 << 18, file), &schema).map_err(written(&path))?;
        Ok(Self { writer, schema, pending: Vec::new(), keys: Vec::new(), folder: folder.to_path_buf() })
    }

    /// Append a passage; its row is the number of passages before it.
    pub fn add(&mut self, passage: Passage) -> Result<PassageId> {
        let row = u32::try_from(self.keys.len()).ok().filter(|&row| row < u32::MAX).ok_or_else(|| {
            Error::request(
                format!("the corpus has more than {} passages", u32::MAX - 1),
                "split it over several indexes",
            )
        })?;
        self.keys.push((key_hash(&passage.key), row));
        self.pending.push(passage);
        if self.pending.len() == BATCH {
            self.flush()?;
        }
        Ok(PassageId(row))
    }

    fn flush(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.pending);
        let text = |f: fn(&Passage) -> &str| Arc::new(LargeStringArray::from_iter_values(rows.iter().map(f))) as _;
        let number = |f: fn(&Passage) -> u64| Arc::new(UInt64Array::from_iter_values(rows.iter().map(f))) as _;
        let columns = vec![
            text(|p| &p.key),
            text(|p| &p.title),
            text(|p| &p.text),
            text(|p| &p.source.file),
            number(|p| p.source.start),
            number(|p| p.source.end),
            Arc::new(LargeStringArray::from_iter_values(rows.iter().map(metadata))) as _,
        ];
        let path = self.folder.join(PASSAGES);
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(written(&path))?;
        self.writer.write(&batch).map_err(written(&path))
    }

    /// Finish the files and open them. Two passages with the same key are an error.
    pub fn finish(mut self) -> Result<Store> {
        if !self.pending.is_empty() {
            self.flush()?;
        }
        self.writer.finish().map_err(written(&self.folder.join(PASSAGES)))?;
        drop(self.writer);
        let mut keys = self.keys;
        keys.sort_unstable();
        let write = |name: &str, bytes: &[u8]| {
            let path = self.folder.join(name);
            std::fs::write(&path, bytes).map_err(Error::file("write", &path))
        };
        let hashes: Vec<u64> = keys.iter().map(|&(hash, _)| hash).collect();
        write(KEY_HASHES, bytemuck::cast_slice(&hashes))?;
        let rows: Vec<u32> = keys.iter().map(|&(_, row)| row).collect();
        write(KEY_ROWS, bytemuck::cast_slice(&rows))?;
        let open = |name| CheckedFile::open_own(&self.folder.join(name));
        let store = Store::open(open(PASSAGES)?, open(KEY_HASHES)?, open(KEY_ROWS)?)?;
        store.refuse_twins(&keys)?;
        Ok(store)
    }
}

/// A write error of arrow, which may wrap the system's.
fn written(path: &Path) -> impl FnOnce(ArrowError) -> Error {
    let path = path.to_path_buf();
    move |e| match e {
        ArrowError::IoError(_, source) => Error::File { action: "write", path, source },
        other => Error::Internal { doing: "writing the passage store", message: other.to_string() },
    }
}

/// Hashes of all ids, sorted, and the row of each.
#[derive(Debug)]
struct KeyTable {
    hashes: CheckedFile,
    rows: CheckedFile,
}

impl KeyTable {
    fn hash_at(&self, i: usize) -> Result<u64> {
        Ok(self.hashes.numbers::<u64>(i, 1)?.first().copied().unwrap_or(u64::MAX))
    }

    fn row_at(&self, i: usize) -> Result<PassageId> {
        Ok(PassageId(self.rows.numbers::<u32>(i, 1)?.first().copied().unwrap_or(u32::MAX)))
    }
}

/// The stored passages, mapped.
#[derive(Debug)]
pub(super) struct Store {
    file: CheckedFile,
    /// The table from ids to rows; none where it could not be read, and passages are had by row alone.
    keys: Option<KeyTable>,
    decoder: FileDecoder,
    blocks: Vec<Block>,
    /// Decoded batches, each made when first needed.
    batches: Vec<OnceLock<RecordBatch>>,
    len: usize,
}

impl Store {
    /// Open a store over its three files. Reads the footer of the passage file and nothing else.
    pub fn open(file: CheckedFile, hashes: CheckedFile, rows: CheckedFile) -> Result<Self> {
        let len = rows.len() / size_of::<u32>();
        if hashes.len() != len * size_of::<u64>() {
            return Err(damaged(hashes.path(), "does not hold as many ids as there are rows".into()));
        }
        Ok(Self { keys: Some(KeyTable { hashes, rows }), ..Self::open_texts(file, len)? })
    }

    /// Open the passage file of a store of `len` passages alone: they are had by row, and not by id.
    pub fn open_texts(file: CheckedFile, len: usize) -> Result<Self> {
        let broken = |problem: &str| damaged(file.path(), format!("is not a passage store: {problem}"));
        let trailer = file.len().checked_sub(10).ok_or_else(|| broken("it is too short"))?;
        let mut tail = [0; 10];
        tail.copy_from_slice(file.slice(trailer..file.len())?);
        let footer_bytes = read_footer_length(tail).map_err(|e| broken(&e.to_string()))?;
        let start = trailer.checked_sub(footer_bytes).ok_or_else(|| broken("its footer is too long"))?;
        let footer = arrow::ipc::root_as_footer(file.slice(start..trailer)?).map_err(|e| broken(&e.to_string()))?;
        let found = footer.schema().ok_or_else(|| broken("it has no schema"))?;
        let found = arrow::ipc::convert::try_fb_to_schema(found).map_err(|e| broken(&e.to_string()))?;
        let schema = schema();
        // The first format had no metadata.
        let columns = found.fields().len();
        if columns + 1 < schema.fields().len() || schema.fields().get(..columns) != Some(found.fields()) {
            return Err(broken("its columns are others"));
        }
        let blocks: Vec<Block> = footer.recordBatches().map(|b| b.iter().copied().collect()).unwrap_or_default();
        let decoder = FileDecoder::new(Arc::new(found), footer.version()).with_require_alignment(true);
        let batches = std::iter::repeat_with(OnceLock::new).take(blocks.len()).collect();
        if len.div_ceil(BATCH) != blocks.len() {
            return Err(broken("it does not hold as many passages as its key table"));
        }
        Ok(Self { file, keys: None, decoder, blocks, batches, len })
    }

    /// Number of passages.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The passage at a row.
    pub fn passage(&self, id: PassageId) -> Result<Passage> {
        let (batch, row) = self.batch_of(id)?;
        Ok(Passage {
            key: self.text(batch, 0, row)?.to_owned(),
            title: self.text(batch, 1, row)?.to_owned(),
            text: self.text(batch, 2, row)?.to_owned(),
            source: SourceSpan {
                file: self.text(batch, 3, row)?.to_owned(),
                start: self.number(batch, 4, row)?,
                end: self.number(batch, 5, row)?,
            },
            metadata: if batch.num_columns() > METADATA {
                self.metadata(self.text(batch, METADATA, row)?)?
            } else {
                Map::new()
            },
        })
    }

    /// Title and text of the passage at a row.
    pub fn title_and_text(&self, id: PassageId) -> Result<(&str, &str)> {
        let (batch, row) = self.batch_of(id)?;
        Ok((self.text(batch, 1, row)?, self.text(batch, 2, row)?))
    }

    fn metadata(&self, text: &str) -> Result<Map<String, Value>> {
        if text.is_empty() {
            return Ok(Map::new());
        }
        serde_json::from_str(text).map_err(|e| damaged(self.file.path(), format!("has metadata that is no JSON: {e}")))
    }

    /// The corpus id of the passage at a row.
    pub fn key(&self, id: PassageId) -> Result<&str> {
        let (batch, row) = self.batch_of(id)?;
        self.text(batch, 0, row)
    }

    /// The row of a corpus id.
    pub fn row_of(&self, key: &str) -> Result<Option<PassageId>> {
        let (keys, hash) = (self.keys()?, key_hash(key));
        let (mut low, mut high) = (0, self.len);
        while low < high {
            let middle = low.midpoint(high);
            if keys.hash_at(middle)? < hash { low = middle + 1 } else { high = middle }
        }
        while low < self.len && keys.hash_at(low)? == hash {
            let row = keys.row_at(low)?;
            if self.key(row)? == key {
                return Ok(Some(row));
            }
            low += 1;
        }
        Ok(None)
    }

    fn keys(&self) -> Result<&KeyTable> {
        self.keys.as_ref().ok_or_else(|| damaged(self.file.path(), "was opened without its table of ids".into()))
    }

    /// Fail if two passages share a key, given the sorted key table.
    fn refuse_twins(&self, keys: &[(u64, u32)]) -> Result<()> {
        for pair in keys.chunk_by(|a, b| a.0 == b.0).filter(|run| run.len() > 1) {
            let mut names = pair.iter().map(|&(_, row)| self.key(PassageId(row))).collect::<Result<Vec<_>>>()?;
            names.sort_unstable();
            if let Some(twin) = names.windows(2).find(|w| w.first() == w.last()).and_then(|w| w.first()) {
                return Err(twins(twin));
            }
        }
        Ok(())
    }

    /// A key that is in both stores. Both tables are sorted, so each is gone through once.
    fn common_key(&self, other: &Self) -> Result<Option<&str>> {
        let (ours, others) = (self.keys()?, other.keys()?);
        let (mut here, mut there) = (0, 0);
        while here < self.len && there < other.len {
            let (hash, theirs) = (ours.hash_at(here)?, others.hash_at(there)?);
            if hash == theirs {
                let key = self.key(ours.row_at(here)?)?;
                if other.row_of(key)?.is_some() {
                    return Ok(Some(key));
                }
            }
            if hash <= theirs { here += 1 } else { there += 1 }
        }
        Ok(None)
    }

    fn batch_of(&self, id: PassageId) -> Result<(&RecordBatch, usize)> {
        let missing = || Error::Internal {
            doing: "reading a passage",
            message: format!("there is no passage {} among {}", id.0, self.len),
        };
        let slot = self.batches.get(id.row() / BATCH).filter(|_| id.row() < self.len).ok_or_else(missing)?;
        let batch = match slot.get() {
            Some(batch) => batch,
            None => {
                let batch = self.decode(id.row() / BATCH)?;
                slot.get_or_init(|| batch)
            }
        };
        let row = id.row() % BATCH;
        if row < batch.num_rows() { Ok((batch, row)) } else { Err(missing()) }
    }

    fn decode(&self, number: usize) -> Result<RecordBatch> {
        let broken = |problem: String| damaged(self.file.path(), format!("batch {number} is damaged: {problem}"));
        let block = self.blocks.get(number).ok_or_else(|| broken("it is not there".into()))?;
        let range = usize::try_from(block.offset())
            .ok()
            .zip(usize::try_from(block.metaDataLength()).ok())
            .zip(usize::try_from(block.bodyLength()).ok())
            .and_then(|((start, metadata), body)| Some(start..start.checked_add(metadata)?.checked_add(body)?))
            .ok_or_else(|| broken("its place is impossible".into()))?;
        let bytes = Buffer::from(self.file.share(range)?);
        // Offsets and UTF-8 are validated by arrow here, once a batch.
        let batch = self.decoder.read_record_batch(block, &bytes).map_err(|e| broken(e.to_string()))?;
        batch.ok_or_else(|| broken("it is empty".into()))
    }

    fn text<'a>(&self, batch: &'a RecordBatch, column: usize, row: usize) -> Result<&'a str> {
        let column = batch.columns().get(column).and_then(|c| c.as_any().downcast_ref::<LargeStringArray>());
        match column.filter(|c| row < c.len()) {
            Some(column) => Ok(column.value(row)),
            None => Err(damaged(self.file.path(), "has a column of another type".into())),
        }
    }

    fn number(&self, batch: &RecordBatch, column: usize, row: usize) -> Result<u64> {
        let column = batch.columns().get(column).and_then(|c| c.as_any().downcast_ref::<UInt64Array>());
        match column.filter(|c| row < c.len()) {
            Some(column) => Ok(column.value(row)),
            None => Err(damaged(self.file.path(), "has a column of another type".into())),
        }
    }
}

/// Fail if a key is in two of the stores.
pub(super) fn refuse_twins(stores: &[Store]) -> Result<()> {
    for (at, store) in stores.iter().enumerate() {
        for earlier in stores.iter().take(at) {
            if let Some(key) = store.common_key(earlier)? {
                return Err(twins(key));
            }
        }
    }
    Ok(())
}

fn twins(key: &str) -> Error {
    Error::request(format!("the corpus has two passages with the id {key:?}"), "give every record its own id")
}

/// Hash of passages' content, for the encode cache.
pub(super) fn content_hash(texts: &[String], salt: &str) -> String {
    let mut hash = Sha256::new();
    hash.update((salt.len() as u64).to_le_bytes());
    hash.update(salt.as_bytes());
    for text in texts {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passage(n: usize) -> Passage {
        Passage {
            key: format!("doc{n}"),
            title: if n.is_multiple_of(3) { String::new() } else { format!("Ice {n}") },
            text: format!("Text number {n}, with an é and a 冰."),
            source: SourceSpan { file: "a.jsonl".into(), start: n as u64, end: n as u64 * 2 },
            metadata: match serde_json::json!({"n": n, "tags": ["ice", "é"], "of": {"x": null}}) {
                Value::Object(fields) if n.is_multiple_of(2) => fields,
                _ => Map::new(),
            },
        }
    }

    fn store(count: usize) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = StoreWriter::create(dir.path()).unwrap();
        for n in 0..count {
            assert_eq!(writer.add(passage(n)).unwrap(), PassageId(n as u32));
        }
        let store = writer.finish().unwrap();
        (dir, store)
    }

    #[test]
    fn what_went_in_comes_out_by_row_and_by_key() {
        for count in [1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH + 7] {
            let (_dir, store) = store(count);
            assert_eq!(store.len(), count);
            for n in 0..count {
                assert_eq!(store.passage(PassageId(n as u32)).unwrap(), passage(n));
                assert_eq!(store.row_of(&format!("doc{n}")).unwrap(), Some(PassageId(n as u32)));
            }
            assert!(store.passage(PassageId(count as u32)).is_err());
            assert_eq!(store.row_of("doc").unwrap(), None);
        }
    }

    #[test]
    fn twins_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = StoreWriter::create(dir.path()).unwrap();
        for n in [1, 2, 1] {
            writer.add(passage(n)).unwrap();
        }
        let error = writer.finish().unwrap_err().to_string();
        assert!(error.contains("\"doc1\""), "{error}");
    }

    #[test]
    fn a_store_is_zero_copy() {
        let (_dir, store) = store(300);
        let key = store.key(PassageId(299)).unwrap().as_ptr() as usize;
        let map = store.file.slice(0..store.file.len()).unwrap().as_ptr_range();
        assert!((map.start as usize..map.end as usize).contains(&key));
    }
}
