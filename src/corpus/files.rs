//! The files of a corpus, in a fixed order, each given to the reader of its format.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::intake::Intake;
use super::open::{ACCEPTED, Format, open};
use super::{arrow, document, jsonl, tsv};
use crate::error::{Error, Result};

/// Give everything in the files and folders `paths` to `intake`.
pub(super) fn read_all(paths: &[PathBuf], intake: &mut dyn Intake) -> Result<()> {
    for path in paths {
        if path.is_dir() {
            read_folder(path, intake)?;
        } else {
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
            read_file(path, &name, intake)?;
        }
    }
    Ok(())
}

/// The files of a folder and its folders, by name; hidden ones and those of unknown kind are left alone. Links
/// are followed, because people collect corpora by linking; a loop of links is an error.
fn read_folder(folder: &Path, intake: &mut dyn Intake) -> Result<()> {
    let visible = |entry: &walkdir::DirEntry| entry.depth() == 0 || !is_hidden(entry.path());
    let mut found = false;
    for entry in WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter().filter_entry(visible) {
        let entry = match entry {
            Ok(entry) => entry,
            // A link that leads nowhere is met before `visible` is asked: editors leave hidden ones beside open files.
            Err(error) if error.depth() > 0 && error.path().is_some_and(is_hidden) => continue,
            Err(error) => return Err(walk_error(folder, error)),
        };
        if entry.file_type().is_dir() {
            continue;
        }
        let file = relative(folder, entry.path());
        if Format::of_name(&file).is_none() {
            intake.file(false);
            continue;
        }
        found = true;
        read_file(entry.path(), &file, intake)?;
    }
    if found {
        return Ok(());
    }
    Err(Error::bad_file(folder, "the folder holds no file that can be read", format!("a corpus is {ACCEPTED}")))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// The path within the folder, with `/` on every system.
fn relative(folder: &Path, path: &Path) -> String {
    let parts = path.strip_prefix(folder).unwrap_or(path).components();
    parts.map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

fn walk_error(folder: &Path, error: walkdir::Error) -> Error {
    let path = error.path().unwrap_or(folder).to_path_buf();
    if error.loop_ancestor().is_some() {
        return Error::bad_file(path, "this link leads back to a folder that it is in", "remove the link");
    }
    Error::file("read", path)(error.into())
}

/// Read one file, cited as `file`.
fn read_file(path: &Path, file: &str, intake: &mut dyn Intake) -> Result<()> {
    let opened = open(path)?;
    intake.file(true);
    match opened.format {
        Format::Jsonl => jsonl::read(path, file, opened.reader, opened.compressed, intake),
        Format::Tsv => tsv::read(path, file, opened.reader, opened.compressed, intake),
        Format::Parquet => arrow::read_parquet(path, file, opened, intake),
        Format::Arrow => arrow::read_ipc(path, file, opened, intake),
        Format::Markdown | Format::Text | Format::Html | Format::Pdf | Format::Docx => {
            document::read(path, file, opened, intake)
        }
    }
}
