//! Room on the disk, asked for before hours of work and not found missing after them.

use std::path::Path;

use crate::error::{Error, Result};

/// Room that must be left on a disk for documents to be added: an index on a full disk answers, but cannot be changed.
pub(crate) const LEAST_ROOM: u64 = 1_000_000_000;

/// Fail unless the disk that `path` is on, or will be on, has `bytes` free.
///
/// # Errors
/// [`Error::NoRoom`] saying how much there is and how much is needed; [`Error::File`] when the system does not say.
pub(crate) fn require(path: &Path, bytes: u64) -> Result<()> {
    let there = path.ancestors().find(|p| p.exists()).filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let free = fs4::available_space(there).map_err(Error::file("ask for free space at", there))?;
    if free >= bytes {
        return Ok(());
    }
    let (needed, free) = (gb(bytes), gb(free));
    Err(Error::NoRoom {
        path: path.to_path_buf(),
        problem: format!("about {needed:.1} GB of disk are needed, and {free:.1} GB are free"),
    })
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// Who takes documents in without anybody looking stops before the disk is full, and begins again when clearly more is free
/// (one point), so that it does not go back and forth with every document.
#[derive(Debug)]
pub(crate) struct Floor {
    /// Percent of the disk that stay free, and [`LEAST_ROOM`] at least.
    percent: u8,
    /// Whether it stopped.
    stopped: bool,
}

impl Floor {
    pub(crate) fn new(percent: u8) -> Self {
        Self { percent, stopped: false }
    }

    /// Fail if the disk that the folder `path` is on has too little room left.
    ///
    /// # Errors
    /// [`Error::NoRoom`] saying how much is free and how much has to be; [`Error::File`] when the system does not say.
    pub(crate) fn check(&mut self, path: &Path) -> Result<()> {
        let asked = || Error::file("ask for free space at", path);
        let free = fs4::available_space(path).map_err(asked())?;
        let total = fs4::total_space(path).map_err(asked())?;
        match self.missing(free, total) {
            None => Ok(()),
            Some(needed) => Err(Error::NoRoom {
                path: path.to_path_buf(),
                problem: format!(
                    "documents are taken in again when {:.1} GB of the disk are free, and {:.1} GB are",
                    gb(needed),
                    gb(free)
                ),
            }),
        }
    }

    /// How much has to be free, if less is.
    fn missing(&mut self, free: u64, total: u64) -> Option<u64> {
        let point = total / 100;
        let stop = (point * u64::from(self.percent)).max(LEAST_ROOM);
        let go_on = (stop + point).min(total);
        self.stopped = free < if self.stopped { go_on } else { stop };
        self.stopped.then_some(go_on)
    }
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
            assert!(error.contains("about 18446744073.7 GB of disk are needed"), "{error}");
        }
        std::fs::write(dir.path().join("a"), [0; 7]).unwrap();
        assert_eq!((usage(dir.path()).unwrap(), usage(&dir.path().join("b")).unwrap()), ((1, 7), (0, 0)));
    }
    #[test]
    fn a_floor_stops_in_time_and_goes_on_a_point_later() {
        let gb = 1_000_000_000;
        let mut floor = Floor::new(5);
        let answers = [60, 50, 49, 50, 59, 60, 59, 50].map(|free| floor.missing(free * gb, 1000 * gb));
        assert_eq!(answers, [None, None, Some(60 * gb), Some(60 * gb), Some(60 * gb), None, None, None]);
        // Of a small disk it is a gigabyte, and of any never more than all.
        let mut small = Floor::new(5);
        assert_eq!((small.missing(gb, 10 * gb), small.missing(gb - 1, 10 * gb)), (None, Some(gb + gb / 10)));
        assert_eq!(Floor::new(100).missing(9 * gb, 10 * gb), Some(10 * gb));
        assert_eq!(Floor::new(0).missing(gb, 1000 * gb), None);
    }
}
