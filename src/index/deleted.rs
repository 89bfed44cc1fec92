//! Deleted passages: a bit a row in one file, read whole when the index is opened. What was deleted stays on disk, unfindable,
//! until `index compact` writes the rest anew.

use std::path::Path;

use super::allowed::Allowed;
use super::checked::damaged;
use super::disk;
use super::manifest::{DELETED, Deleted, FileEntry, Manifest, generation_name};
use crate::durable;
use crate::error::{Error, Result};

/// The rows of the index at `dir` that were not deleted.
pub(super) fn alive(dir: &Path, manifest: &Manifest) -> Result<Allowed> {
    let rows = manifest.rows() as usize;
    let Some(deleted) = &manifest.deleted else { return Ok(Allowed::but(rows, &[])) };
    let path = dir.join(generation_name(deleted.generation)).join(DELETED);
    let bytes = std::fs::read(&path).map_err(|e| super::missing_or("read", &path, e))?;
    let (words, rest) = bytes.as_chunks::<8>();
    if bytes.len() as u64 != deleted.file.bytes || disk::sha256(&bytes) != deleted.file.sha256 {
        return Err(damaged(&path, "is damaged: its checksum does not match".into()));
    }
    let words: Vec<u64> = words.iter().map(|&word| u64::from_le_bytes(word)).collect();
    let alive = Allowed::but(rows, &words);
    if !rest.is_empty() || words.len() != rows.div_ceil(64) || alive.len() as u64 != manifest.passages {
        return Err(damaged(&path, "does not hold as many deleted passages as the manifest says".into()));
    }
    Ok(alive)
}

/// Write, durably, that only `alive` of so many rows are left, into the folder of `generation`. `None` if that is all of them.
pub(super) fn write(dir: &Path, generation: u64, rows: usize, alive: &Allowed) -> Result<Option<Deleted>> {
    let gone = rows - alive.len();
    if gone == 0 {
        return Ok(None);
    }
    let dead = Allowed::of(rows, |row| !alive.contains(row));
    let bytes: Vec<u8> = dead.words().iter().flat_map(|word| word.to_le_bytes()).collect();
    let path = dir.join(generation_name(generation)).join(DELETED);
    std::fs::write(&path, &bytes).map_err(Error::file("write", &path))?;
    durable::sync(&path)?;
    let file = FileEntry { bytes: bytes.len() as u64, sha256: disk::sha256(&bytes) };
    Ok(Some(Deleted { generation, passages: gone as u64, file }))
}
