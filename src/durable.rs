//! Writes that survive a power cut.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// Wait until the content of `path`, a file or a folder, is on the disk.
pub(crate) fn sync(path: &Path) -> Result<()> {
    // Windows cannot open a folder as a file; its file system journals folder entries by itself.
    if cfg!(windows) && path.is_dir() {
        return Ok(());
    }
    let open = if path.is_dir() { File::open(path) } else { File::options().write(true).open(path) };
    open.and_then(|f| f.sync_all()).map_err(Error::file("sync", path))
}

/// Replace `path` by `bytes`, durably: readers see the old content or the new, whatever happens.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new).map_err(Error::file("create", &new))?;
    file.write_all(bytes).map_err(Error::file("write", &new))?;
    file.sync_all().map_err(Error::file("sync", &new))?;
    drop(file);
    fs::rename(&new, path).map_err(Error::file("rename", &new))?;
    // The parent of a bare name is empty, and means the folder of the process.
    sync(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}
