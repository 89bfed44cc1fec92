//! Passages on disk: text store, inverted index and vectors, published together by one manifest.
//!
//! [`Index::open`] gives a snapshot that stays valid while a writer replaces the index; [`writer::build`]
//! makes an index, [`verify::verify`] checks one. What lies on disk is described in `index/README.md`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::allowed::Allowed;
use self::checked::{BLOCK, CheckedFile, SUMS, block_count};
pub use self::dense::Dense;
pub use self::lexical::Lexical;
use self::manifest::Manifest;
use self::store::Store;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::types::{Passage, PassageId};

pub mod allowed;
pub mod change;
mod checked;
pub mod dense;
mod disk;
pub(crate) mod encode_cache;
pub mod estimate;
mod hnsw;
mod kernel;
pub mod lexical;
pub mod manifest;
mod previous;
pub(crate) mod site;
mod store;
pub mod verify;
mod walk;
pub mod writer;

/// An opened index.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    manifest: Manifest,
    store: Store,
    lexical: Lexical,
    dense: Option<Dense>,
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
            match Self::open_generation(dir, &manifest) {
                Ok(index) => return Ok(index),
                Err(error) => {
                    // A writer may have replaced the generation between our reading of the manifest and
                    // of its files; then, and only then, look again.
                    let now = Manifest::read(dir)?;
                    if now.checksum == manifest.checksum {
                        return Err(error);
                    }
                    manifest = now;
                }
            }
        }
    }

    fn open_generation(dir: &Path, manifest: &Manifest) -> Result<Self> {
        let folder = manifest.folder(dir);
        let mut files = Files::open(&folder, manifest)?;
        let store =
            Store::open(files.take(store::PASSAGES)?, files.take(store::KEY_HASHES)?, files.take(store::KEY_ROWS)?)?;
        let dense = match (&manifest.encoder, &manifest.graph) {
            (Some(encoder), Some(graph)) => {
                use dense::{CODES, HALVES, LINKS, SCALES, UPPER, UPPER_AT};
                let mut take = |name| files.take(name);
                let six = [take(CODES)?, take(SCALES)?, take(HALVES)?, take(LINKS)?, take(UPPER_AT)?, take(UPPER)?];
                Some(Dense::open(six, manifest.vectors as usize, encoder.clone(), graph.clone())?)
            }
            _ => None,
        };
        if manifest.analyser != lexical::ANALYSER {
            return Err(Error::index(
                dir,
                format!("its words were analysed by {}, questions by {}", manifest.analyser, lexical::ANALYSER),
                "build the index again",
            ));
        }
        let lexical = Lexical::open(&folder, files.rest())?;
        let index = Self { path: dir.to_path_buf(), manifest: manifest.clone(), store, lexical, dense };
        index.check_counts()?;
        Ok(index)
    }

    /// Fail if the parts disagree on how many passages there are.
    fn check_counts(&self) -> Result<()> {
        let (stored, indexed) = (self.store.len() as u64, self.lexical.len() as u64);
        let vectors = self.dense.as_ref().map_or(0, |dense| dense.len() as u64);
        if stored == self.manifest.passages && indexed == stored && (self.dense.is_none() || vectors == stored) {
            return Ok(());
        }
        Err(Error::index(
            &self.path,
            format!(
                "its parts disagree: {} passages in the manifest, {stored} stored, {indexed} indexed, {vectors} vectors",
                self.manifest.passages
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

    /// Number of passages.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether there are none; a build never makes such an index.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The passage at a row.
    pub fn passage(&self, id: PassageId) -> Result<Passage> {
        self.store.passage(id)
    }

    /// The corpus id of the passage at a row.
    pub fn key(&self, id: PassageId) -> Result<&str> {
        self.store.key(id)
    }

    /// The row of a corpus id, if the index has it.
    pub fn row_of(&self, key: &str) -> Result<Option<PassageId>> {
        self.store.row_of(key)
    }

    /// The passages that a document became, in order; none if the index does not have it.
    pub fn pieces_of(&self, document: &str) -> Result<Vec<PassageId>> {
        let mut pieces: Vec<PassageId> = self.row_of(document)?.into_iter().collect();
        let mut number = 1;
        while let Some(piece) = self.row_of(&format!("{document}#{number}"))? {
            pieces.push(piece);
            number += 1;
        }
        Ok(pieces)
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

/// The files of a generation, opened with their checksums, on their way to who reads them.
struct Files {
    folder: PathBuf,
    open: std::collections::BTreeMap<String, CheckedFile>,
}

impl Files {
    fn open(folder: &Path, manifest: &Manifest) -> Result<Self> {
        let sums_path = folder.join(SUMS);
        let sums = std::fs::read(&sums_path).map_err(|e| missing_or("read", &sums_path, e))?;
        let expected = manifest.files.get(SUMS);
        if expected.is_none_or(|entry| entry.bytes != sums.len() as u64 || entry.sha256 != disk::sha256(&sums)) {
            return Err(checked::damaged(&sums_path, "is damaged: its checksum does not match".into()));
        }
        let (sums, _) = sums.as_chunks::<4>();
        let mut sums = sums.iter().map(|&bytes| u32::from_le_bytes(bytes));
        let mut open = std::collections::BTreeMap::new();
        for (name, entry) in manifest.files.iter().filter(|(name, _)| *name != SUMS) {
            let blocks = sums.by_ref().take(block_count(entry.bytes)).collect();
            let path = folder.join(name);
            let file = CheckedFile::open(&path, entry.bytes, blocks).map_err(|e| match e {
                Error::File { action, source, .. } => missing_or(action, &path, source),
                other => other,
            })?;
            open.insert(name.clone(), file);
        }
        Ok(Self { folder: folder.to_path_buf(), open })
    }

    fn take(&mut self, name: &str) -> Result<CheckedFile> {
        self.open.remove(name).ok_or_else(|| checked::damaged(&self.folder.join(name), "is missing".into()))
    }

    fn rest(self) -> std::collections::BTreeMap<String, CheckedFile> {
        self.open
    }
}

/// A file error, or what a missing file of an index means.
fn missing_or(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    if source.kind() == std::io::ErrorKind::NotFound {
        return checked::damaged(path, "is missing".into());
    }
    Error::file(action, path)(source)
}

// The files hold numbers as this processor keeps them in memory.
#[cfg(target_endian = "big")]
compile_error!("nunatak's index files are little-endian");

const _: () = assert!(BLOCK.is_multiple_of(64), "blocks hold whole numbers of every width");
