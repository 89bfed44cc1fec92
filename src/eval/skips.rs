//! Bad lines that a file of questions or tasks may have: left out, named and counted.

use std::path::Path;

use crate::corpus::KEPT_PROBLEMS;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// Bad lines so far.
pub(super) struct Skips<'a> {
    most: usize,
    count: usize,
    progress: &'a dyn Progress,
}

impl<'a> Skips<'a> {
    /// None yet, of `most` that may be.
    pub fn new(most: usize, progress: &'a dyn Progress) -> Self {
        Self { most, count: 0, progress }
    }

    /// Leave out a line; the first ones are named.
    ///
    /// # Errors
    /// [`Error::BadLine`] for one too many.
    pub fn leave_out(&mut self, path: &Path, line: u64, problem: String) -> Result<()> {
        if self.count >= self.most {
            return Err(Error::BadLine { path: path.to_path_buf(), line, problem });
        }
        self.count += 1;
        if self.count <= KEPT_PROBLEMS {
            self.progress.note(&format!("skipped: {}:{line}: {problem}", path.display()));
        }
        Ok(())
    }

    /// How many there were in all.
    pub fn end(self) -> usize {
        if self.count > KEPT_PROBLEMS {
            self.progress.note(&format!("skipped: {} lines in all", self.count));
        }
        self.count
    }
}
