//! Files of a committed index, mapped into memory and checked as they are read.
//!
//! Every 4 KiB block of every file has a CRC-32 in the index's [`SUMS`] file. A block is compared with its
//! checksum the first time a byte of it is asked for, and never again while the file stays open. So opening
//! an index reads none of it, a search pays only for the blocks it touches, and a damaged byte is an
//! error that names the file: never a panic in a decoder, never a wrong passage. What this does not see is
//! a byte that changes after its block was checked.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use memmap2::Mmap;

use crate::error::{Error, Result};

/// Bytes that share one checksum. The size of a memory page: a random read touches one anyway, and the
/// checksums take a thousandth of the index.
pub(super) const BLOCK: usize = 4096;

/// Name of the file that holds the block checksums of all others, in the order of their names: per file
/// one little-endian `u32` a block.
pub(super) const SUMS: &str = "sums.crc";

/// The number of blocks of a file of so many bytes.
pub(super) fn block_count(bytes: u64) -> usize {
    bytes.div_ceil(BLOCK as u64) as usize
}

/// A mapped file whose blocks are checked on first touch.
#[derive(Debug)]
pub(super) struct CheckedFile {
    path: PathBuf,
    map: Bytes,
    /// One checksum a block; `None` for a file this process has just written itself.
    sums: Option<Vec<u32>>,
    /// One bit a block, set once it has been found whole.
    seen: Vec<AtomicU64>,
}

impl CheckedFile {
    /// Map `path`, which must be `bytes` long and have these block checksums.
    pub fn open(path: &Path, bytes: u64, sums: Vec<u32>) -> Result<Self> {
        let map = map(path)?;
        if map.len() as u64 != bytes {
            return Err(damaged(path, format!("is {} bytes long where the manifest says {bytes}", map.len())));
        }
        if sums.len() != block_count(bytes) {
            return Err(damaged(path, "has the wrong number of block checksums".into()));
        }
        let seen = std::iter::repeat_with(AtomicU64::default).take(sums.len().div_ceil(64)).collect();
        Ok(Self { path: path.to_path_buf(), map, sums: Some(sums), seen })
    }

    /// Map a file that this process has just written, without checksums.
    pub fn open_own(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_path_buf(), map: map(path)?, sums: None, seen: Vec::new() })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of `range`, their blocks checked.
    #[inline]
    pub fn slice(&self, range: Range<usize>) -> Result<&[u8]> {
        self.check(&range)?;
        self.map.get(range).ok_or_else(|| self.outside())
    }

    /// The same as a shared buffer that keeps the map alive.
    pub fn share(&self, range: Range<usize>) -> Result<Bytes> {
        self.check(&range)?;
        if range.start > range.end || range.end > self.map.len() {
            return Err(self.outside());
        }
        Ok(self.map.slice(range))
    }

    /// `count` little-endian numbers from the `first`-th on.
    #[inline]
    pub fn numbers<T: bytemuck::Pod>(&self, first: usize, count: usize) -> Result<&[T]> {
        let size = size_of::<T>();
        let range = first
            .checked_mul(size)
            .zip(count.checked_mul(size))
            .and_then(|(start, bytes)| Some(start..start.checked_add(bytes)?))
            .ok_or_else(|| self.outside())?;
        bytemuck::try_cast_slice(self.slice(range)?).map_err(|_| self.outside())
    }

    /// All bytes, for code that has checked what it will read of them.
    pub fn raw(&self) -> &[u8] {
        &self.map
    }

    /// Check the blocks of `range`.
    #[inline]
    pub fn check(&self, range: &Range<usize>) -> Result<()> {
        let Some(sums) = &self.sums else { return Ok(()) };
        if range.is_empty() {
            return Ok(());
        }
        for block in range.start / BLOCK..=(range.end - 1) / BLOCK {
            let seen = self.seen.get(block / 64).ok_or_else(|| self.outside())?;
            let bit = 1 << (block % 64);
            // Relaxed: the bit guards no other memory; two threads may both check a block, with one result.
            if seen.load(Ordering::Relaxed) & bit == 0 {
                self.check_block(block, sums)?;
                seen.fetch_or(bit, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    #[cold]
    fn check_block(&self, block: usize, sums: &[u32]) -> Result<()> {
        let start = block * BLOCK;
        let bytes = self.map.get(start..self.map.len().min(start + BLOCK)).ok_or_else(|| self.outside())?;
        if sums.get(block) == Some(&crc32fast::hash(bytes)) {
            return Ok(());
        }
        Err(damaged(&self.path, format!("is damaged near byte {start}")))
    }

    fn outside(&self) -> Error {
        damaged(&self.path, "refers to a place outside itself".into())
    }
}

fn map(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    #[expect(unsafe_code, reason = "committed index files are never written to or truncated, only unlinked")]
    // SAFETY: see the reason above; who changes an index file by other means breaks the index anyway, and
    // the checksums are there to notice.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::file("map", path))?;
    Ok(Bytes::from_owner(map))
}

/// The error for a damaged file of an index.
pub(super) fn damaged(path: &Path, problem: String) -> Error {
    Error::index(
        path,
        problem,
        "`nunatak index verify` shows all damage, and `nunatak index repair` mends what can be mended",
    )
}

/// The CRC-32 of every block of `bytes`.
#[cfg(test)]
pub(super) fn block_sums(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(BLOCK).map(crc32fast::hash).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_block_is_an_error_and_its_neighbours_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut bytes: Vec<u8> = (0..3 * BLOCK + 10).map(|i| (i * 7 % 251) as u8).collect();
        let sums = block_sums(&bytes);
        bytes[BLOCK + 5] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let file = CheckedFile::open(&path, bytes.len() as u64, sums).unwrap();
        assert!(file.slice(0..BLOCK).is_ok());
        assert!(file.slice(2 * BLOCK..3 * BLOCK + 10).is_ok());
        for range in [BLOCK..BLOCK + 1, 0..BLOCK + 1, 2 * BLOCK - 1..2 * BLOCK + 1] {
            let error = file.slice(range).unwrap_err().to_string();
            assert!(error.contains("damaged near byte 4096"), "{error}");
        }
        assert!(file.slice(3 * BLOCK..3 * BLOCK + 11).is_err());
        assert!(file.numbers::<u32>(usize::MAX, 2).is_err());
    }

    #[test]
    fn an_empty_file_maps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"").unwrap();
        let file = CheckedFile::open(&path, 0, Vec::new()).unwrap();
        assert_eq!(file.slice(0..0).unwrap(), b"");
    }
}
