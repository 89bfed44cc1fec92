//! Passages on disk: text store, inverted index and vectors, published together by one manifest.
//!
//! [`Index::open`] gives a snapshot that stays valid while a writer changes the index; [`writer::build`]
//! makes an index, [`change`] changes one, [`verify::verify`] checks one and [`repair`] mends one. An index is made of segments: what a build or a
//! change brought, with rows of its own behind those of the segments before it. What lies on disk is described in
//! `index/README.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::allowed::Allowed;
use self::checked::{BLOCK, CheckedFile, SUMS, block_count, damaged};
pub use self::dense::Dense;
use self::lexical::Analyser;
pub use self::lexical::Lexical;
use self::manifest::{FileEntry, Manifest, SegmentEntry, generation_name};
use self::store::Store;
use self::vectors::Vectors;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::types::{Passage, PassageId, document_of};

pub mod allowed;
pub mod change;
mod checked;
mod deleted;
pub mod dense;
mod disk;
pub(crate) mod encode_cache;
pub mod estimate;
pub mod export;
mod hnsw;
mod kernel;
pub mod lexical;
pub mod manifest;
pub mod passages;
pub(crate) mod previous;
pub mod recall;
pub mod repair;
mod ruins;
pub(crate) mod site;
mod store;
mod vectors;
pub mod verify;
mod walk;
pub mod writer;

/// Numbers of pieces that are looked for before a document counts as unknown.
const FIRST_PIECES: usize = 4;

/// An opened index.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    manifest: Manifest,
    /// The stores of its segments, in the order of rows.
    stores: Vec<Store>,
    lexical: Lexical,
    dense: Option<Dense>,
    /// The passages that were not deleted, if some were.
    alive: Option<Arc<Allowed>>,
}

impl Index {
    /// Open the index at `dir`: read its manifest, check that its files are there and as long as they
    /// should be, and map them. Their content is checked as it is read.
    ///
    /// # Errors
    /// [`Error::Index`] naming the file that is missing, damaged or of another version.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut manifest = Manifest::read(dir)?;
        loop {
            match Self::open_as(dir, &manifest) {
                Ok(index) => return Ok(index),
                Err(error) => {
                    // A writer may have replaced files between our reading of the manifest and of them;
                    // then, and only then, look again.
                    let now = Manifest::read(dir)?;
                    if now.checksum == manifest.checksum {
                        return Err(error);
                    }
                    manifest = now;
                }
            }
        }
    }

    fn open_as(dir: &Path, manifest: &Manifest) -> Result<Self> {
        if manifest.analyser.version != Analyser::default().version {
            let version = manifest.analyser.version;
            return Err(Error::index(
                dir,
                format!("its words were made by version {version} of the analyser, which this program does not have"),
                "use the program that wrote it, or build the index again",
            ));
        }
        let alive = manifest.deleted.as_ref().map(|_| deleted::alive(dir, manifest).map(Arc::new)).transpose()?;
        let (mut stores, mut words, mut vectors) = (Vec::new(), Vec::new(), Vec::new());
        for segment in &manifest.segments {
            let folder = dir.join(generation_name(segment.generation));
            let mut files = Files::open(&folder, &segment.files)?;
            let store = files.store()?;
            if let Some(encoder) = &manifest.encoder {
                vectors.push(files.vectors(segment, encoder.dim)?);
            }
            if store.len() as u64 != segment.passages {
                return Err(damaged(
                    &folder,
                    format!("holds {} passages where the manifest says {}", store.len(), segment.passages),
                ));
            }
            stores.push(store);
            words.push((folder, files.rest()));
        }
        let dense = manifest.encoder.clone().map(|encoder| Dense::new(vectors, encoder, alive.clone()));
        let lexical = Lexical::open(dir, words, alive.clone(), &manifest.analyser)?;
        let index = Self { path: dir.to_path_buf(), manifest: manifest.clone(), stores, lexical, dense, alive };
        index.check_counts()?;
        Ok(index)
    }

    /// Fail if the parts disagree on how many passages there are.
    fn check_counts(&self) -> Result<()> {
        let (rows, indexed) = (self.rows(), self.lexical.rows());
        let vectors = self.dense.as_ref().map(Dense::rows);
        if indexed == rows && vectors.is_none_or(|vectors| vectors == rows) {
            return Ok(());
        }
        Err(Error::index(
            &self.path,
            format!(
                "its parts disagree: {rows} passages stored, {indexed} indexed, {} vectors",
                vectors.map_or("no".into(), |vectors| vectors.to_string())
            ),
            "build the index again",
        ))
    }

    /// The folder it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds and how it was made.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Number of passages that can be found.
    pub fn len(&self) -> usize {
        self.alive.as_deref().map_or(self.rows(), Allowed::len)
    }

    /// Whether there are none; neither a build nor a change makes such an index.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of rows, those of deleted passages included.
    pub fn rows(&self) -> usize {
        self.stores.iter().map(Store::len).sum()
    }

    /// The rows of passages that were not deleted, in order.
    pub fn passages(&self) -> impl Iterator<Item = PassageId> {
        (0..self.rows() as u32).map(PassageId).filter(|&row| self.is_alive(row))
    }

    /// Whether the passage at a row was not deleted.
    pub fn is_alive(&self, id: PassageId) -> bool {
        self.alive.as_deref().is_none_or(|alive| alive.contains(id))
    }

    /// The passage at a row.
    pub fn passage(&self, id: PassageId) -> Result<Passage> {
        let (store, row, _) = self.store_of(id);
        store.map_or_else(|| Err(self.no_row(id)), |store| store.passage(row))
    }

    /// Title and text of the passage at a row.
    pub fn title_and_text(&self, id: PassageId) -> Result<(&str, &str)> {
        let (store, row, _) = self.store_of(id);
        store.map_or_else(|| Err(self.no_row(id)), |store| store.title_and_text(row))
    }

    /// The corpus id of the passage at a row.
    pub fn key(&self, id: PassageId) -> Result<&str> {
        let (store, row, _) = self.store_of(id);
        store.map_or_else(|| Err(self.no_row(id)), |store| store.key(row))
    }

    /// The row of a corpus id, if the index has it.
    pub fn row_of(&self, key: &str) -> Result<Option<PassageId>> {
        let mut first = 0;
        for store in &self.stores {
            // A passage that was replaced is in an older segment, too, deleted.
            let row = store.row_of(key)?.map(|row| PassageId(first + row.0));
            if row.is_some_and(|row| self.is_alive(row)) {
                return Ok(row);
            }
            first += store.len() as u32;
        }
        Ok(None)
    }

    /// The store that has a row, the row in it, and its first row.
    fn store_of(&self, id: PassageId) -> (Option<&Store>, PassageId, u32) {
        let mut first = 0;
        for store in &self.stores {
            let behind = first + store.len() as u32;
            if id.0 < behind {
                return (Some(store), PassageId(id.0 - first), first);
            }
            first = behind;
        }
        (None, id, first)
    }

    fn no_row(&self, id: PassageId) -> Error {
        let message = format!("there is no passage {} among {}", id.0, self.rows());
        Error::Internal { doing: "reading a passage", message }
    }

    /// The passages that a document became, in order; none if the index does not have it.
    pub fn pieces_of(&self, document: &str) -> Result<Vec<PassageId>> {
        // Pieces that were deleted by themselves leave a gap in the numbers, or at their beginning; so look at some numbers
        // for one that is there, and at its neighbours for the rest: the pieces of a document have rows side by side.
        let mut known = self.row_of(document)?;
        for number in 1..=FIRST_PIECES {
            known = match known {
                None => self.row_of(&format!("{document}#{number}"))?,
                Some(_) => break,
            };
        }
        let Some(known) = known else { return Ok(Vec::new()) };
        let (store, _, first) = self.store_of(known);
        let behind = first + store.map_or(0, Store::len) as u32;
        let is_piece = |row: &u32| self.key(PassageId(*row)).map(|key| document_of(key) == document);
        let mut rows = Vec::new();
        for row in (first..known.0).rev() {
            if !is_piece(&row)? {
                break;
            }
            rows.push(PassageId(row));
        }
        rows.reverse();
        rows.push(known);
        for row in known.0 + 1..behind {
            if !is_piece(&row)? {
                break;
            }
            rows.push(PassageId(row));
        }
        rows.retain(|&row| self.is_alive(row));
        Ok(rows)
    }

    /// The passages that meet a filter.
    ///
    /// # Errors
    /// [`Error::Request`] for a field that no passage has, naming those that some have, and for an index of the first
    /// format, which kept no metadata; [`Error::Index`] on damage.
    pub fn allowed(&self, filter: &Filter) -> Result<Arc<Allowed>> {
        self.lexical.allowed(filter)
    }

    /// Names of the fields that a filter can name, in order.
    pub fn fields(&self) -> Result<Vec<String>> {
        self.lexical.fields()
    }

    /// The inverted index.
    pub fn lexical(&self) -> &Lexical {
        &self.lexical
    }

    /// The vectors, if the index was built with an encoder.
    pub fn dense(&self) -> Option<&Dense> {
        self.dense.as_ref()
    }
}

/// The files of a segment, opened with their checksums, on their way to who reads them.
struct Files {
    folder: PathBuf,
    open: BTreeMap<String, CheckedFile>,
}

impl Files {
    fn open(folder: &Path, files: &BTreeMap<String, FileEntry>) -> Result<Self> {
        let mut open = BTreeMap::new();
        for (name, (entry, blocks)) in with_sums(folder, files)? {
            let path = folder.join(name);
            let file = CheckedFile::open(&path, entry.bytes, blocks).map_err(|e| match e {
                Error::File { action, source, .. } => missing_or(action, &path, source),
                other => other,
            })?;
            open.insert(name.to_owned(), file);
        }
        Ok(Self { folder: folder.to_path_buf(), open })
    }

    fn take(&mut self, name: &str) -> Result<CheckedFile> {
        self.open.remove(name).ok_or_else(|| damaged(&self.folder.join(name), "is missing".into()))
    }

    fn store(&mut self) -> Result<Store> {
        Store::open(self.take(store::PASSAGES)?, self.take(store::KEY_HASHES)?, self.take(store::KEY_ROWS)?)
    }

    fn vectors(&mut self, segment: &SegmentEntry, dim: usize) -> Result<Vectors> {
        use vectors::{CODES, HALVES, LINKS, SCALES, UPPER, UPPER_AT};
        let mut take = |name| self.take(name);
        let six = [take(CODES)?, take(SCALES)?, take(HALVES)?, take(LINKS)?, take(UPPER_AT)?, take(UPPER)?];
        let graph = segment.graph.clone();
        let graph = graph.ok_or_else(|| damaged(&self.folder, "has vectors and no graph".into()))?;
        Vectors::open(six, segment.passages as usize, dim, graph)
    }

    fn rest(self) -> BTreeMap<String, CheckedFile> {
        self.open
    }
}

/// The files of a segment but for their checksums, each with those of its blocks.
fn with_sums<'a>(
    folder: &Path,
    files: &'a BTreeMap<String, FileEntry>,
) -> Result<BTreeMap<&'a str, (&'a FileEntry, Vec<u32>)>> {
    let path = folder.join(SUMS);
    let sums = std::fs::read(&path).map_err(|e| missing_or("read", &path, e))?;
    let expected = files.get(SUMS);
    if expected.is_none_or(|entry| entry.bytes != sums.len() as u64 || entry.sha256 != disk::sha256(&sums)) {
        return Err(damaged(&path, "is damaged: its checksum does not match".into()));
    }
    let (sums, _) = sums.as_chunks::<4>();
    let mut sums = sums.iter().map(|&bytes| u32::from_le_bytes(bytes));
    let others = files.iter().filter(|(name, _)| *name != SUMS);
    Ok(others
        .map(|(name, entry)| (name.as_str(), (entry, sums.by_ref().take(block_count(entry.bytes)).collect())))
        .collect())
}

/// A file error, or what a missing file of an index means.
fn missing_or(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    if source.kind() == std::io::ErrorKind::NotFound {
        return damaged(path, "is missing".into());
    }
    Error::file(action, path)(source)
}

// The files hold numbers as this processor keeps them in memory.
#[cfg(target_endian = "big")]
compile_error!("nunatak's index files are little-endian");

const _: () = assert!(BLOCK.is_multiple_of(64), "blocks hold whole numbers of every width");
