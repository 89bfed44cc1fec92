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

/// Bytes of the files directly in a folder; 0 when there is none.
pub(crate) fn size_of_files_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|e| e.ok()?.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
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
        assert_eq!((size_of_files_in(dir.path()), size_of_files_in(&dir.path().join("b"))), (7, 0));
    }
}
