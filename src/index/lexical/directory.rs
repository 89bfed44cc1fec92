//! tantivy's view of a committed index: read-only, and every byte it gets was checked first.
//!
//! tantivy itself checks nothing on reading and may panic on a damaged file; behind this directory it
//! never sees one.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tantivy::HasLen;
use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    Directory, DirectoryLock, FileHandle, Lock, MmapDirectory, OwnedBytes, WatchCallback, WatchHandle, WritePtr,
};
use tantivy::index::SegmentId;

use crate::error::{Error, Result};
use crate::index::checked::{CheckedFile, damaged};
use crate::index::disk;

/// tantivy's list of segments.
const META: &str = "meta.json";

/// On disk every inverted index is one segment of this name, so that the same corpus gives the same bytes.
const SEGMENT: &str = "00000000000000000000000000000001";

/// Rename the files of the only segment in `folder` to [`SEGMENT`] and remove what only a writer needs.
pub(super) fn settle_names(folder: &Path) -> Result<()> {
    let meta = folder.join(META);
    let text = std::fs::read_to_string(&meta).map_err(Error::file("read", &meta))?;
    let internal = |message: String| Error::Internal { doing: "finishing the inverted index", message };
    let value: Value = serde_json::from_str(&text).map_err(|e| internal(e.to_string()))?;
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

/// The inverted indexes of some segments, seen as one of several segments.
#[derive(Debug, Clone)]
pub(super) struct ReadOnly(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    parts: Vec<Part>,
    /// The list of segments that tantivy reads, made of those of the parts.
    meta: Vec<u8>,
}

#[derive(Debug)]
struct Part {
    /// Maps the files a second time: its buffers are the only ones tantivy takes without unsafe code.
    maps: MmapDirectory,
    files: BTreeMap<String, Arc<CheckedFile>>,
}

/// The name of the segment of the part at `at`, where [`SEGMENT`] is the first's.
fn segment_name(at: usize) -> String {
    format!("{:032x}", at + 1)
}

/// Which part a segment is of.
pub(super) fn part_of(segment: SegmentId) -> Option<usize> {
    usize::from_str_radix(&segment.uuid_string(), 16).ok()?.checked_sub(1)
}

impl ReadOnly {
    /// Over the folders of segments and their checked files, in the order of rows.
    pub fn new(folders: Vec<(PathBuf, BTreeMap<String, CheckedFile>)>) -> Result<Self> {
        let mut metas = Vec::new();
        let mut parts = Vec::new();
        for (folder, files) in folders {
            let broken = |problem: String| damaged(&folder.join(META), problem);
            let meta = files.get(META).ok_or_else(|| broken("is missing".into()))?;
            let meta: Value = serde_json::from_slice(meta.slice(0..meta.len())?)
                .map_err(|e| broken(format!("is no list of segments: {e}")))?;
            metas.push(meta);
            let maps = MmapDirectory::open(&folder).map_err(|e| {
                Error::index(&folder, e.to_string(), "build the index again with `nunatak index build`")
            })?;
            parts.push(Part { maps, files: files.into_iter().map(|(name, file)| (name, Arc::new(file))).collect() });
        }
        let meta = joined(metas).ok_or_else(|| Error::Internal {
            doing: "opening the inverted index",
            message: "a list of segments has none".into(),
        })?;
        Ok(Self(Arc::new(Parts { parts, meta: meta.to_string().into_bytes() })))
    }

    /// The part that has the file of this name, and the file's name there.
    fn find(&self, path: &Path) -> Option<(&Part, String)> {
        let name = path.to_str()?;
        let (segment, extension) = name.split_once('.')?;
        let at = usize::from_str_radix(segment, 16).ok()?.checked_sub(1)?;
        let part = self.0.parts.get(at)?;
        let name = format!("{SEGMENT}.{extension}");
        part.files.contains_key(&name).then_some((part, name))
    }
}

/// One list of segments out of several that have one each.
fn joined(metas: Vec<Value>) -> Option<Value> {
    let mut segments = Vec::new();
    for (at, meta) in metas.iter().enumerate() {
        let mut segment = meta.pointer("/segments/0")?.clone();
        let name = SegmentId::from_uuid_string(&segment_name(at)).ok()?;
        *segment.get_mut("segment_id")? = serde_json::to_value(name).ok()?;
        segments.push(segment);
    }
    let mut first = metas.into_iter().next()?;
    *first.get_mut("segments")? = Value::Array(segments);
    Some(first)
}

/// A file whose blocks are checked before tantivy reads them.
#[derive(Debug)]
struct Guarded {
    file: Arc<CheckedFile>,
    bytes: Arc<dyn FileHandle>,
}

impl HasLen for Guarded {
    fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl FileHandle for Guarded {
    fn read_bytes(&self, range: Range<usize>) -> io::Result<OwnedBytes> {
        self.file.slice(range.clone()).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        self.bytes.read_bytes(range)
    }
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a committed index is not written to")
}

impl Directory for ReadOnly {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        let missing = || OpenReadError::FileDoesNotExist(path.to_path_buf());
        let (part, name) = self.find(path).ok_or_else(missing)?;
        let bytes = part.maps.get_file_handle(Path::new(&name))?;
        let file = Arc::clone(part.files.get(&name).ok_or_else(missing)?);
        Ok(Arc::new(Guarded { file, bytes }))
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        Err(DeleteError::IoError { io_error: Arc::new(read_only()), filepath: path.to_path_buf() })
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        Ok(path == Path::new(META) || self.find(path).is_some())
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        Err(OpenWriteError::IoError { io_error: Arc::new(read_only()), filepath: path.to_path_buf() })
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        // tantivy reads its list of segments so, and nothing else.
        if path == Path::new(META) {
            return Ok(self.0.meta.clone());
        }
        Err(OpenReadError::FileDoesNotExist(path.to_path_buf()))
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
