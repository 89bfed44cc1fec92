//! tantivy's view of a committed index: read-only, and every byte it gets was checked first.
//!
//! tantivy itself checks nothing on reading and may panic on a damaged file; behind this directory it
//! never sees one.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tantivy::HasLen;
use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    Directory, DirectoryLock, FileHandle, Lock, MmapDirectory, OwnedBytes, WatchCallback, WatchHandle, WritePtr,
};
use tantivy::index::SegmentId;

use super::Files;
use crate::error::{Error, Result};
use crate::index::checked::CheckedFile;
use crate::index::disk;

/// tantivy's list of segments.
const META: &str = "meta.json";

/// Every inverted index is one segment of this name, so that the same corpus gives the same bytes.
const SEGMENT: &str = "00000000000000000000000000000001";

/// Rename the files of the only segment in `folder` to [`SEGMENT`] and remove what only a writer needs.
pub(super) fn settle_names(folder: &Path) -> Result<()> {
    let meta = folder.join(META);
    let text = std::fs::read_to_string(&meta).map_err(Error::file("read", &meta))?;
    let internal = |message: String| Error::Internal { doing: "finishing the inverted index", message };
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| internal(e.to_string()))?;
    let id = value.pointer("/segments/0/segment_id").and_then(|id| id.as_str());
    let id = id.ok_or_else(|| internal("it has no segment".into()))?;
    let simple = SegmentId::from_uuid_string(id).map_err(|e| internal(e.to_string()))?.uuid_string();
    for entry in std::fs::read_dir(folder).map_err(Error::file("list", folder))? {
        let path = entry.map_err(Error::file("list", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(extension) = name.strip_prefix(&simple) {
            std::fs::rename(&path, folder.join(format!("{SEGMENT}{extension}")))
                .map_err(Error::file("rename", &path))?;
        } else if name.starts_with('.') || name == ".managed.json" {
            disk::remove(&path)?;
        }
    }
    let name = SegmentId::from_uuid_string(SEGMENT).map_err(|e| internal(e.to_string()))?;
    let hyphened = serde_json::to_value(name).map_err(|e| internal(e.to_string()))?;
    let text = text.replace(id, hyphened.as_str().unwrap_or(SEGMENT));
    // tantivy's own is readable by its maker only; the other files are as the user's umask has it.
    disk::remove(&meta)?;
    std::fs::write(&meta, text).map_err(Error::file("write", &meta))
}

/// The files of a committed inverted index.
#[derive(Debug, Clone)]
pub(super) struct ReadOnly {
    /// Maps the files a second time: its buffers are the only ones tantivy takes without unsafe code.
    maps: MmapDirectory,
    files: Files,
}

impl ReadOnly {
    pub fn new(folder: &Path, files: BTreeMap<String, CheckedFile>) -> Result<Self> {
        let maps = MmapDirectory::open(folder)
            .map_err(|e| Error::index(folder, e.to_string(), "build the index again with `nunatak index build`"))?;
        Ok(Self { maps, files: Arc::new(files) })
    }

    fn name(path: &Path) -> String {
        path.to_string_lossy().into_owned()
    }
}

/// A file whose blocks are checked before tantivy reads them.
#[derive(Debug)]
struct Guarded {
    name: String,
    files: Files,
    bytes: Arc<dyn FileHandle>,
}

impl HasLen for Guarded {
    fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl FileHandle for Guarded {
    fn read_bytes(&self, range: Range<usize>) -> io::Result<OwnedBytes> {
        let file = self.files.get(&self.name).ok_or(io::ErrorKind::NotFound)?;
        file.slice(range.clone()).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        self.bytes.read_bytes(range)
    }
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a committed index is not written to")
}

impl Directory for ReadOnly {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        let name = Self::name(path);
        if !self.files.contains_key(&name) {
            return Err(OpenReadError::FileDoesNotExist(path.to_path_buf()));
        }
        let bytes = self.maps.get_file_handle(path)?;
        Ok(Arc::new(Guarded { name, files: Arc::clone(&self.files), bytes }))
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        Err(DeleteError::IoError { io_error: Arc::new(read_only()), filepath: path.to_path_buf() })
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        Ok(self.files.contains_key(&Self::name(path)))
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        Err(OpenWriteError::IoError { io_error: Arc::new(read_only()), filepath: path.to_path_buf() })
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        let missing = || OpenReadError::FileDoesNotExist(path.to_path_buf());
        let file = self.files.get(&Self::name(path)).ok_or_else(missing)?;
        let bytes = file.slice(0..file.len()).map_err(|e| OpenReadError::IoError {
            io_error: Arc::new(io::Error::new(io::ErrorKind::InvalidData, e)),
            filepath: PathBuf::from(path),
        })?;
        Ok(bytes.to_vec())
    }

    fn atomic_write(&self, _: &Path, _: &[u8]) -> io::Result<()> {
        Err(read_only())
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    fn acquire_lock(&self, _: &Lock) -> Result<DirectoryLock, LockError> {
        // Nothing writes here, so there is nothing to exclude.
        Ok(DirectoryLock::from(Box::new(())))
    }

    fn watch(&self, _: WatchCallback) -> tantivy::Result<WatchHandle> {
        Ok(WatchHandle::empty())
    }
}
