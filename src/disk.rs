//! Room on the disk, asked for before hours of work and not found missing after them.

use std::path::Path;

use crate::error::{Error, Result};

/// Fail unless the disk that `path` is on, or will be on, has `bytes` free.
///
/// # Errors
/// [`Error::Request`] saying how much there is and how much is needed; [`Error::File`] when the system does not say.
pub(crate) fn require(path: &Path, bytes: u64) -> Result<()> {
    let there = path.ancestors().find(|p| p.exists()).filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let free = fs4::available_space(there).map_err(Error::file("ask for free space at", there))?;
    if free >= bytes {
        return Ok(());
    }
    let gb = |bytes: u64| bytes as f64 / 1e9;
    Err(Error::request(
        format!("{} needs about {:.1} GB of disk, and {:.1} GB are free there", path.display(), gb(bytes), gb(free)),
        "free some space, or give a folder on another disk",
    ))
}

/// What lies directly in a folder: how many entries, and their bytes; nothing in one that is not there.
///
/// # Errors
/// [`Error::File`] when the folder cannot be read.
pub(crate) fn usage(folder: &Path) -> Result<(u64, u64)> {
    if !folder.is_dir() {
        return Ok((0, 0));
    }
    let failed = || Error::file("read", folder);
    std::fs::read_dir(folder).map_err(failed())?.try_fold((0, 0), |(entries, bytes), entry| {
        let length = entry.and_then(|e| e.metadata()).map_err(failed())?.len();
        Ok((entries + 1, bytes + length))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_found_missing_beforehand() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_path_buf(), dir.path().join("not/yet/there"), "x".into()] {
            require(&path, 1).unwrap();
            let error = require(&path, u64::MAX).unwrap_err().to_string();
            assert!(error.contains("needs about 18446744073.7 GB of disk"), "{error}");
        }
        std::fs::write(dir.path().join("a"), [0; 7]).unwrap();
        assert_eq!((usage(dir.path()).unwrap(), usage(&dir.path().join("b")).unwrap()), ((1, 7), (0, 0)));
    }
}
