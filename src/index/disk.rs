//! What a durable index asks of the file system: hashes of files, and their removal. Durable writes are in
//! [`durable`](crate::durable).

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::checked::BLOCK;
use super::manifest::FileEntry;
use crate::digest::hex;
use crate::error::{Error, Result};

/// sha256 in lower-case hexadecimal digits.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
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

/// Remove a file or folder that may not be there.
pub(super) fn remove(path: &Path) -> Result<()> {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path)(e)),
        _ => Ok(()),
    }
}
