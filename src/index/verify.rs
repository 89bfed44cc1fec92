//! Is an index whole? Every byte of every file against the manifest, and the parts against each other.

use std::path::Path;

use serde::Serialize;

use super::manifest::Manifest;
use super::{Index, disk};
use crate::error::{Error, Result};
use crate::progress::{Progress, check_interrupt};

/// What a check of an index found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Files that were read.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Passages the index holds.
    pub passages: u64,
    /// What is wrong; empty for a whole index.
    pub damage: Vec<Damage>,
}

/// A file that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Its name, with that of its generation folder.
    pub file: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Read the whole index at `dir` and compare it with its manifest.
///
/// # Errors
/// The manifest itself cannot be read, or is damaged: then nothing else can be judged. Damage to any
/// other file is not an error but in the report.
pub fn verify(dir: &Path, progress: &dyn Progress) -> Result<VerifyReport> {
    let manifest = Manifest::read(dir)?;
    let bytes = manifest.bytes();
    let mut damage = Vec::new();
    progress.start("verifying", Some(bytes), "bytes");
    let mut files = 0;
    for (name, expected) in manifest.files() {
        files += 1;
        check_interrupt(|| "nothing was changed".into())?;
        let problem = match disk::digest(&dir.join(&name)) {
            Ok((found, _)) if found.bytes != expected.bytes => {
                Some(format!("is {} bytes long where the manifest says {}", found.bytes, expected.bytes))
            }
            Ok((found, _)) if found.sha256 != expected.sha256 => Some("its content has changed".into()),
            Ok(_) => None,
            Err(Error::File { source, .. }) => Some(source.to_string()),
            Err(other) => return Err(other),
        };
        damage.extend(problem.map(|problem| Damage { file: name, problem }));
        progress.advance(expected.bytes);
    }
    progress.finish();
    if damage.is_empty() {
        // Every byte is as written; now whether what was written agrees: opening compares the counts.
        one_of_each(&Index::open(dir)?)?;
    }
    Ok(VerifyReport { files, bytes, passages: manifest.passages, damage })
}

/// Fail if two passages of one id can be found: a segment cannot hold two, but two segments could.
fn one_of_each(index: &Index) -> Result<()> {
    if index.manifest().segments.len() < 2 {
        return Ok(());
    }
    for row in index.passages() {
        let key = index.key(row)?;
        if index.row_of(key)? != Some(row) {
            return Err(Error::index(
                index.path(),
                format!("two passages have the id {key:?}"),
                "build the index again with --overwrite",
            ));
        }
    }
    Ok(())
}
