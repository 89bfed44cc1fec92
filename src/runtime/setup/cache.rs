//! The cache folder: where it is, who may write, and how a folder in it comes to be whole or not at all.
//!
//! `NUNATAK_HOME` (default: `nunatak` in the user's cache folder) holds `runtime/`, `sources/` and `models/`.
//! A folder there is filled under `tmp/`, flushed to disk and renamed into place while a file lock is held,
//! and its last file is a stamp with the version and the size of each file, so that a later run sees at once,
//! without hashing, that it is whole. Readers take no lock.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::progress::{Progress, check_interrupt};

/// Name of the stamp in each folder.
const STAMP: &str = ".stamp.json";
/// Pause between two looks at a lock that somebody else holds.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// What a folder was when it was put into place.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Stamp {
    version: String,
    /// Size of each file by its path in the folder.
    files: BTreeMap<String, u64>,
}

/// The cache folder. It need not exist.
///
/// # Errors
/// [`Error::Setup`] when neither `NUNATAK_HOME` nor a home folder is set.
pub fn home() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(home) = variable("NUNATAK_HOME") {
        return std::path::absolute(&home).map_err(Error::file("find", &home));
    }
    let cache = if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        variable("HOME").map(|h| h.join("Library/Caches"))
    } else {
        variable("XDG_CACHE_HOME").filter(|p| p.is_absolute()).or_else(|| variable("HOME").map(|h| h.join(".cache")))
    };
    cache.map(|c| c.join("nunatak")).ok_or_else(|| Error::Setup {
        problem: "there is no folder to keep models in: no home folder is set".into(),
        hint: Some("set NUNATAK_HOME to a folder".into()),
    })
}

/// Whether `dir` holds this version, whole. Costs one small file and a look at each file's size.
pub(super) fn is_installed(dir: &Path, version: &str) -> bool {
    stamp(dir).is_some_and(|s| s.version == version) && is_whole(dir)
}

/// Whether every file of `dir` has the size it was put into place with.
pub(super) fn is_whole(dir: &Path) -> bool {
    let same = |(name, size): (&String, &u64)| fs::metadata(dir.join(name)).is_ok_and(|m| m.len() == *size);
    stamp(dir).is_some_and(|s| s.files.iter().all(same))
}

fn stamp(dir: &Path) -> Option<Stamp> {
    serde_json::from_str(&fs::read_to_string(dir.join(STAMP)).ok()?).ok()
}

/// Make `dir`, a folder of the cache at `home`, be this `version`: nothing if it is already, else let `fill`
/// write its files into an empty folder and put that into place. Whatever goes wrong, `dir` is afterwards
/// what it was before.
///
/// `fill` is given the folder to fill and another for its own use, which goes away afterwards.
///
/// # Errors
/// [`Error::Setup`] when the cache cannot be written or the disk is full; what `fill` says.
pub(super) fn install(
    home: &Path,
    dir: &Path,
    version: &str,
    progress: &dyn Progress,
    fill: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<()> {
    if is_installed(dir, version) {
        return Ok(());
    }
    put_in_place(home, dir, version, progress, fill).map_err(|e| explain(e, home))
}

fn put_in_place(
    home: &Path,
    dir: &Path,
    version: &str,
    progress: &dyn Progress,
    fill: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<()> {
    let _lock = lock(home, progress)?;
    if is_installed(dir, version) {
        return Ok(());
    }
    // Whoever holds the lock owns tmp/; what lies there is of a process that was killed.
    let tmp = home.join("tmp");
    if tmp.exists() {
        fs::remove_dir_all(&tmp).map_err(Error::file("remove", &tmp))?;
    }
    fs::create_dir_all(&tmp).map_err(Error::file("create", &tmp))?;
    let work = tempfile::tempdir_in(&tmp).map_err(Error::file("create a folder in", &tmp))?;
    let (filled, scratch, old) = (work.path().join("new"), work.path().join("scratch"), work.path().join("old"));
    for folder in [&filled, &scratch] {
        fs::create_dir(folder).map_err(Error::file("create", folder))?;
    }
    fill(&filled, &scratch)?;
    seal(&filled, version)?;
    let parent = dir.parent().unwrap_or(home);
    fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
    if dir.exists() {
        fs::rename(dir, &old).map_err(Error::file("replace", dir))?;
    }
    if let Err(error) = fs::rename(&filled, dir).map_err(Error::file("create", dir)) {
        if old.exists() {
            fs::rename(&old, dir).map_err(Error::file("restore", dir))?;
        }
        return Err(error);
    }
    sync(parent)
}

/// Flush every file of `dir` to the disk, then write the stamp, then flush that.
fn seal(dir: &Path, version: &str) -> Result<()> {
    let mut stamp = Stamp { version: version.to_owned(), files: BTreeMap::new() };
    for entry in walkdir::WalkDir::new(dir) {
        let entry = entry.map_err(Error::internal("listing a folder"))?;
        let path = entry.path();
        sync(path)?;
        if let (true, Ok(name)) = (entry.file_type().is_file(), path.strip_prefix(dir)) {
            let size = fs::metadata(path).map_err(Error::file("read", path))?.len();
            stamp.files.insert(name.to_string_lossy().into_owned(), size);
        }
    }
    let path = dir.join(STAMP);
    let text = serde_json::to_string_pretty(&stamp).map_err(Error::internal("writing a stamp"))?;
    fs::write(&path, text + "\n").map_err(Error::file("write", &path))?;
    sync(&path)?;
    sync(dir)
}

/// Flush a file or folder. Windows has no way to flush a folder and needs none.
fn sync(path: &Path) -> Result<()> {
    if cfg!(windows) {
        return Ok(());
    }
    File::open(path).and_then(|f| f.sync_all()).map_err(Error::file("flush", path))
}

/// The one lock of the cache at `home`, held until it is dropped.
fn lock(home: &Path, progress: &dyn Progress) -> Result<File> {
    fs::create_dir_all(home).map_err(Error::file("create", home))?;
    let path = home.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(Error::file("open", &path))?;
    let mut noted = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(e)) => return Err(Error::file("lock", &path)(e)),
            Err(TryLockError::WouldBlock) => {}
        }
        if !noted {
            progress.note("waiting for another nunatak that is setting up");
            noted = true;
        }
        check_interrupt(|| "nothing was set up".to_owned())?;
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// Say what a refused file operation means for the cache.
pub(super) fn explain(error: Error, home: &Path) -> Error {
    let Error::File { path, source, .. } = &error else { return error };
    let (problem, hint) = match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (
            format!("the disk that holds the cache folder {} is full", home.display()),
            "free 1 GB there, or set NUNATAK_HOME to a folder on another disk",
        ),
        // Elsewhere it is a file of the user's that cannot be read.
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotADirectory
            if path.starts_with(home) =>
        {
            (
                format!("the cache folder {} cannot be written: {}: {source}", home.display(), path.display()),
                "set NUNATAK_HOME to a folder that you may write to",
            )
        }
        _ => return error,
    };
    Error::Setup { problem: format!("{problem}; nothing was installed"), hint: Some(hint.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Quiet;

    fn write(name: &'static str, text: &'static str) -> impl FnOnce(&Path, &Path) -> Result<()> {
        move |dir, _| fs::write(dir.join(name), text).map_err(Error::file("write", dir))
    }

    #[test]
    fn a_folder_is_filled_once_a_version() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("models/m");
        install(home.path(), &dir, "1", &Quiet, write("a", "one")).unwrap();
        install(home.path(), &dir, "1", &Quiet, |_, _| panic!("it is there already")).unwrap();
        install(home.path(), &dir, "2", &Quiet, write("b", "two")).unwrap();
        assert!(!dir.join("a").exists());
        assert_eq!(fs::read_to_string(dir.join("b")).unwrap(), "two");
        assert_eq!(fs::read_dir(home.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_failure_leaves_what_was_there() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("models/m");
        install(home.path(), &dir, "1", &Quiet, write("a", "one")).unwrap();
        let failed = install(home.path(), &dir, "2", &Quiet, |dir, _| {
            fs::write(dir.join("half"), "").unwrap();
            Err(Error::request("no", "no"))
        });
        assert!(failed.is_err());
        assert!(is_installed(&dir, "1"));
        assert_eq!(fs::read_dir(home.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_truncated_or_missing_file_is_seen_and_mended() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("models/m");
        install(home.path(), &dir, "1", &Quiet, write("a", "one")).unwrap();
        fs::write(dir.join("a"), "on").unwrap();
        assert!(!is_installed(&dir, "1"));
        install(home.path(), &dir, "1", &Quiet, write("a", "one")).unwrap();
        assert!(is_installed(&dir, "1"));
        fs::remove_file(dir.join("a")).unwrap();
        assert!(!is_installed(&dir, "1"));
    }

    #[test]
    fn two_at_once_fill_it_once() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("models/m");
        let fills = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    install(home.path(), &dir, "1", &Quiet, |dir, _| {
                        fills.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        fs::write(dir.join("a"), "one").map_err(Error::file("write", dir))
                    })
                    .unwrap();
                });
            }
        });
        assert_eq!(fills.into_inner(), 1);
    }
}
