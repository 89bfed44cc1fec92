//! The folder of an index while somebody writes to it: whose it is, and what is left in it afterwards.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::disk;
use super::encode_cache::CACHE;
use super::manifest::{MANIFEST, Manifest, generation_name};
use super::recall::RECALLS;
use crate::error::{Error, Result};
use crate::milvus::Address;

/// Name of the lock file in an index folder.
const LOCK: &str = "writer.lock";

/// Name of the folder in which readers keep what they made of passages. It goes by the passages' text and not by their
/// rows, so a build leaves it alone.
pub(crate) const STATES: &str = "states";

/// The folder a build works in, locked against other writers.
pub(super) struct Site {
    dir: PathBuf,
    /// The first generation that will be written.
    pub next: u64,
    /// Whether this build made the folder.
    made: bool,
    /// Held until the end; the system lets go of it even when the process is killed.
    lock: File,
}

impl Site {
    /// Make or take the folder at `dir`, lock it, and clear away what a crashed build left.
    pub fn prepare(dir: &Path, overwrite: bool) -> Result<Self> {
        Address::refuse(dir)?;
        let made = !dir.exists();
        if !made {
            refuse_strangers(dir)?;
        }
        fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
        let lock_path = dir.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(Error::file("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(Error::Locked { path: dir.to_path_buf() });
            }
            Err(fs::TryLockError::Error(e)) => return Err(Error::file("lock", &lock_path)(e)),
        }
        let mut site = Self { dir: dir.to_path_buf(), next: 1, made, lock };
        refuse_existing(dir, overwrite)?;
        // A number that no folder has, also where the manifest cannot be read.
        site.next = generations(dir)?.iter().map(|&(number, _)| number).max().unwrap_or(0) + 1;
        remove_generations(dir, in_use(dir))?;
        let folder = dir.join(generation_name(site.next));
        fs::create_dir(&folder).map_err(Error::file("create", &folder))?;
        Ok(site)
    }

    /// Remove what is no longer of use: after a commit the generations that `committed` does not name, after a failure the
    /// new ones.
    pub fn leave(&mut self, committed: Option<&Manifest>, keep_cache: bool) -> Result<()> {
        if let Some(manifest) = committed {
            remove_generations(&self.dir, |number| manifest.uses(number))?;
            if !keep_cache {
                disk::remove(&self.dir.join(CACHE))?;
            }
            return Ok(());
        }
        // What failed may have been the sync after the manifest's rename: then the new folder is the index. One that is of no
        // use is removed by the next who writes.
        remove_generations(&self.dir, in_use(&self.dir))?;
        // Only if empty: it may hold vectors for the next build.
        let _ = fs::remove_dir(self.dir.join(CACHE));
        if self.made && fs::read_dir(&self.dir).is_ok_and(|entries| entries.count() == 1) {
            disk::remove(&self.dir.join(LOCK))?;
            let _ = fs::remove_dir(&self.dir);
        }
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

/// Fail if there is an index at `dir` that may not be replaced. A build asks first of all, so that nobody waits for a
/// corpus to be read before hearing it.
pub fn refuse_existing(dir: &Path, overwrite: bool) -> Result<()> {
    if overwrite || !dir.join(MANIFEST).exists() {
        return Ok(());
    }
    Err(Error::index(dir, "there is an index here already", "add --overwrite to replace it, or choose another folder"))
}

/// The generation folders of an index.
fn generations(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::file("list", dir))? {
        let path = entry.map_err(Error::file("list", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(number) = name.strip_prefix("gen-").and_then(|n| n.parse().ok()) {
            found.push((number, path));
        }
    }
    Ok(found)
}

/// Which generations the index at `dir` is made of. A manifest that cannot be read is no reason to remove what it may name.
fn in_use(dir: &Path) -> impl Fn(u64) -> bool {
    let (there, current) = (dir.join(MANIFEST).exists(), Manifest::read(dir).ok());
    move |number| there && current.as_ref().is_none_or(|current| current.uses(number))
}

/// Remove the generation folders that do not stay.
fn remove_generations(dir: &Path, stays: impl Fn(u64) -> bool) -> Result<()> {
    for (number, path) in generations(dir)? {
        if !stays(number) {
            disk::remove(&path)?;
        }
    }
    Ok(())
}

/// Fail for a folder that holds anything an index does not.
fn refuse_strangers(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::file("list", dir))? {
        let name = entry.map_err(Error::file("list", dir))?.file_name().to_string_lossy().into_owned();
        let ours = [MANIFEST, "manifest.new", LOCK, CACHE, STATES, RECALLS, "recall.new"].contains(&name.as_str())
            || name.strip_prefix("gen-").is_some_and(|n| n.parse::<u64>().is_ok());
        if !ours {
            return Err(Error::request(
                format!("{} holds other things than an index, for example {name}", dir.display()),
                "choose an empty or new folder for the index",
            ));
        }
    }
    Ok(())
}
