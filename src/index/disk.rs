//! What a durable index asks of the file system: hashes, and writes that survive a power cut.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::checked::BLOCK;
use super::manifest::FileEntry;
use crate::error::{Error, Result};

/// sha256 in lower-case hexadecimal digits.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Length and hash of a file, and the CRC-32 of each of its blocks.
pub(super) fn digest(path: &Path) -> Result<(FileEntry, Vec<u32>)> {
    let read = || Error::file("read", path);
    let file = File::open(path).map_err(Error::file("open", path))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut hash = Sha256::new();
    let (mut sums, mut bytes) = (Vec::new(), 0);
    let mut block = [0; BLOCK];
    loop {
        let mut filled = 0;
        while filled < BLOCK {
            match reader.read(&mut block[filled..]).map_err(read())? {
                0 => break,
                n => filled += n,
            }
        }
        if filled == 0 {
            break;
        }
        hash.update(&block[..filled]);
        sums.push(crc32fast::hash(&block[..filled]));
        bytes += filled as u64;
    }
    Ok((FileEntry { bytes, sha256: hex(&hash.finalize()) }, sums))
}

/// Wait until the content of `path`, a file or a folder, is on the disk.
pub(super) fn sync(path: &Path) -> Result<()> {
    // Windows cannot open a folder as a file; its file system journals folder entries by itself.
    if cfg!(windows) && path.is_dir() {
        return Ok(());
    }
    let open = if path.is_dir() { File::open(path) } else { File::options().write(true).open(path) };
    open.and_then(|f| f.sync_all()).map_err(Error::file("sync", path))
}

/// Replace `path` by `bytes`, durably: readers see the old content or the new, whatever happens.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new).map_err(Error::file("create", &new))?;
    file.write_all(bytes).map_err(Error::file("write", &new))?;
    file.sync_all().map_err(Error::file("sync", &new))?;
    drop(file);
    fs::rename(&new, path).map_err(Error::file("rename", &new))?;
    path.parent().map_or(Ok(()), sync)
}

/// Remove a file or folder that may not be there.
pub(super) fn remove(path: &Path) -> Result<()> {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path)(e)),
        _ => Ok(()),
    }
}
