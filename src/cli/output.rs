//! Writing for people: lines on stdout, errors and hints on stderr, colours only where a terminal shows them.

use std::io::{self, Write};
use std::path::Path;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::error::{Error, Result};

/// Headings and names.
pub const BOLD: Style = Style::new().bold();
/// What can be skipped over.
pub const DIM: Style = Style::new().dimmed();
/// Answers, and what went well.
pub const GOOD: Style = AnsiColor::Green.on_default().bold();
/// What went wrong.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// What to do.
pub const HINT: Style = AnsiColor::Cyan.on_default();

/// Print an error and what to do about it.
pub fn print_error(error: &Error) {
    let mut err = anstream::stderr();
    // Nothing can be done when stderr is closed.
    let _ = writeln!(err, "{BAD}error{BAD:#}: {error}");
    if let Some(hint) = error.hint() {
        let _ = writeln!(err, "{HINT}hint{HINT:#}: {hint}");
    }
}

/// Whether who reads has enough.
pub(super) fn is_closed_pipe(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// One line of text on stdout.
pub fn line(text: impl std::fmt::Display) -> Result<()> {
    writeln!(anstream::stdout(), "{text}").or_else(closed_pipe)
}

/// Text on stdout without a line end, shown at once.
pub fn piece(text: &str) -> Result<()> {
    let mut out = anstream::stdout();
    write!(out, "{text}").and_then(|()| out.flush()).or_else(closed_pipe)
}

/// One JSON object on a line of stdout.
pub fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(Error::internal("writing JSON"))?;
    writeln!(io::stdout(), "{text}").or_else(closed_pipe)
}

/// `nunatak search ... | head` closes the pipe when it has seen enough: the end, not an error.
fn closed_pipe(error: io::Error) -> Result<()> {
    if is_closed_pipe(&error) {
        std::process::exit(0);
    }
    Err(Error::file("write to", "stdout")(error))
}

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A duration for people.
pub fn seconds(s: f64) -> String {
    match s {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 90.0 => format!("{s:.1} s"),
        s if s < 5400.0 => format!("{:.0} min {:.0} s", (s / 60.0).floor(), s % 60.0),
        s => format!("{:.0} h {:.0} min", (s / 3600.0).floor(), (s % 3600.0) / 60.0),
    }
}

/// How long the passages are that documents were split into.
pub fn split(passage_words: usize) -> String {
    match passage_words {
        0 => "whole texts".to_owned(),
        words => format!("about {words} words"),
    }
}

/// Fail where renaming a file into place would put it where a device or a folder was.
///
/// # Errors
/// [`Error::BadFile`] when `path` is there and no plain file.
pub fn check_plain(path: &Path) -> Result<()> {
    if path.exists() && !path.is_file() {
        return Err(Error::bad_file(path, "it is no plain file, and is not replaced", "give the name of a new file"));
    }
    Ok(())
}

/// Fail where a new file would take the place of something: of a file only with `overwrite`.
///
/// # Errors
/// As [`check_plain`]; [`Error::Request`] when the file is there already.
pub fn check_new(path: &Path, overwrite: bool) -> Result<()> {
    check_plain(path)?;
    if path.exists() && !overwrite {
        return Err(Error::request(
            format!("{} is there already", path.display()),
            "add --overwrite to replace it, or choose another name",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_is_replaced_only_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.json");
        check_new(&path, false).unwrap();
        std::fs::write(&path, "mine").unwrap();
        let error = check_new(&path, false).unwrap_err();
        assert!(error.to_string().ends_with("out.json is there already"), "{error}");
        check_new(&path, true).unwrap();
        assert!(check_new(folder.path(), true).is_err(), "a folder is no file");
    }

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500_000), "1.5 MB");
        assert_eq!(seconds(0.25), "250 ms");
        assert_eq!(seconds(125.0), "2 min 5 s");
        assert_eq!(seconds(7500.0), "2 h 5 min");
    }
}
