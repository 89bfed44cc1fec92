//! Documents in, passages out: one file a format, and the splitter.
//!
//! [`read`] takes files and folders of any mix of formats and gives passages one at a time, so that the memory it
//! takes does not grow with the corpus but for one hash a key (10 to 21 bytes, to refuse duplicates).
//! `open.rs` finds out what a file is, each reader gives its records or documents to `intake.rs`, which
//! checks, splits and counts. What becomes of the passages is the caller's business.

mod arrow;
mod columns;
mod document;
mod docx;
mod files;
mod html;
mod intake;
mod jsonl;
mod markdown;
mod open;
mod outline;
mod pdf;
pub mod sentences;
pub mod split;
mod tsv;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::types::Passage;

pub(crate) use outline::one_line;

/// How a corpus is read.
#[derive(Debug, Clone)]
pub struct CorpusOptions {
    /// Words a passage should have, about; 0 keeps every text as it is.
    pub passage_words: usize,
    /// How many bad lines are left out before one stops the work.
    pub skip_bad: u64,
}

impl Default for CorpusOptions {
    /// Passages of 100 words as in DPR, and no bad line.
    fn default() -> Self {
        Self { passage_words: 100, skip_bad: 0 }
    }
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct CorpusReport {
    /// Files that were read.
    pub files: u64,
    /// Files in the given folders that are of no known kind and were left alone.
    pub ignored_files: u64,
    /// Records, or files that are documents.
    pub documents: u64,
    /// Passages given to the sink.
    pub passages: u64,
    /// Words in them, as [`split::count_words`] counts.
    pub words: u64,
    /// Bad lines that were left out.
    pub skipped: u64,
    /// The first of them, at most [`KEPT_PROBLEMS`].
    pub first_skipped: Vec<String>,
}

/// How many bad lines a report names.
pub const KEPT_PROBLEMS: usize = 10;

/// Read the files and folders `paths` in order and give their passages to `sink` one at a time.
///
/// Errors: the first bad line past `options.skip_bad` (named by file and line), a duplicate id (named with both
/// places), a file that cannot be read or is of no known kind, a corpus without any passage, and whatever `sink`
/// returns. Passages given before the error have been given: the sink must not publish before `read` returns.
pub fn read(
    paths: &[PathBuf],
    options: &CorpusOptions,
    sink: &mut dyn FnMut(Passage) -> Result<()>,
) -> Result<CorpusReport> {
    let mut emitter = intake::Emitter::new(paths, options, sink);
    files::read_all(paths, &mut emitter)?;
    some(emitter.into_report(), paths.first().cloned().unwrap_or_default())
}

/// Fail if one of these is a pipe: for who reads a corpus twice.
///
/// # Errors
/// [`Error::BadFile`] naming it.
pub fn refuse_pipes(paths: &[PathBuf]) -> Result<()> {
    match paths.iter().find(|path| path.exists() && !path.is_file() && !path.is_dir()) {
        Some(pipe) => Err(Error::bad_file(
            pipe,
            "a corpus is read twice, and this can be read only once",
            "write it to a file first; .gz and .zst are read as they are",
        )),
        None => Ok(()),
    }
}

/// Read records from memory, given as JSON lines, as [`read`] reads a file of them; `name` is what messages and citations call
/// it.
///
/// # Errors
/// As [`read`].
pub fn read_records(
    name: &str,
    lines: &[u8],
    options: &CorpusOptions,
    sink: &mut dyn FnMut(Passage) -> Result<()>,
) -> Result<CorpusReport> {
    let mut emitter = intake::Emitter::new(&[], options, sink);
    let (path, reader) = (Path::new(name), Box::new(std::io::Cursor::new(lines.to_vec())));
    jsonl::read(path, name, reader, false, &mut emitter)?;
    some(emitter.into_report(), path.to_path_buf())
}

/// Fail if nothing was read from `path`.
fn some(report: CorpusReport, path: PathBuf) -> Result<CorpusReport> {
    if report.passages > 0 {
        return Ok(report);
    }
    Err(match report.first_skipped.first() {
        Some(first) => Error::bad_file(
            path,
            format!("no passage is left: all {} lines are bad, the first because of {first}", report.skipped),
            "mend the lines, or give another corpus",
        ),
        None => Error::bad_file(path, "there is no text in it", format!("a corpus is {}", open::ACCEPTED)),
    })
}
