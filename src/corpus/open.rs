//! Opens a corpus file: finds out by its first bytes whether it is compressed and, where its name does not tell,
//! of what format it is; reads lines of bounded length; words what goes wrong with it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// What a corpus can be, for error messages.
pub(super) const ACCEPTED: &str = "JSONL (.jsonl), TSV (.tsv), Parquet (.parquet), Arrow (.arrow), Markdown (.md), \
    text (.txt), HTML (.html), PDF (.pdf) or Word (.docx), each also as .gz or .zst, or a folder of such files";

/// The longest line or record that is read, in bytes. More is never held in memory.
pub(super) const LONGEST_LINE: usize = 8 << 20;

/// The largest document file that is read, in bytes: these are held in memory whole.
pub(super) const LARGEST_DOCUMENT: usize = 64 << 20;

/// The largest PDF or Word file, most of which is mostly pictures.
const LARGEST_PICTURED: usize = 256 << 20;

/// How many bytes are looked at to find out what a file is.
const HEAD: usize = 4096;

/// The formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Jsonl,
    Tsv,
    Parquet,
    /// Arrow IPC, as a file or a stream.
    Arrow,
    Markdown,
    Text,
    Html,
    Pdf,
    Docx,
}

impl Format {
    /// The format that the extension of `name` stands for; one of .gz or .zst at the end is looked beneath.
    pub fn of_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let name = strip_compression(&name);
        Some(match name.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" => Self::Jsonl,
            "tsv" => Self::Tsv,
            "parquet" | "pq" => Self::Parquet,
            "arrow" | "arrows" | "feather" | "ipc" => Self::Arrow,
            "md" | "markdown" => Self::Markdown,
            "txt" => Self::Text,
            "html" | "htm" | "xhtml" => Self::Html,
            "pdf" => Self::Pdf,
            "docx" => Self::Docx,
            _ => return None,
        })
    }

    /// The largest document of this format that is read, in bytes.
    pub fn largest(self) -> usize {
        if matches!(self, Self::Pdf | Self::Docx) { LARGEST_PICTURED } else { LARGEST_DOCUMENT }
    }
}

/// The name without .gz or .zst.
pub(super) fn strip_compression(name: &str) -> &str {
    [".gz", ".zst", ".zstd"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// A corpus file, decompressed.
pub(super) struct Opened {
    pub format: Format,
    /// Whether `reader` decompresses, so that it cannot seek and its errors are about the data.
    pub compressed: bool,
    pub reader: Box<dyn BufRead>,
}

/// Open `path` and find out what it is.
pub(super) fn open(path: &Path) -> Result<Opened> {
    let file = File::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            Error::bad_file(path, "there is no such file or folder", "a path counts from the current folder")
        }
        ErrorKind::PermissionDenied => {
            Error::bad_file(path, "you may not read this file", "change its permissions, or copy it as its owner")
        }
        _ => Error::file("read", path)(e),
    })?;
    let (head, reader) = peek(file).map_err(|e| failed(path, e, false))?;
    let (compressed, decoder): (bool, Box<dyn Read>) = if head.starts_with(&[0x1f, 0x8b]) {
        (true, Box::new(flate2::bufread::MultiGzDecoder::new(buffered(reader))))
    } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder = zstd::Decoder::with_buffer(buffered(reader)).map_err(|e| failed(path, e, true))?;
        (true, Box::new(decoder))
    } else {
        (false, Box::new(reader))
    };
    let (head, reader) = peek(decoder).map_err(|e| failed(path, e, compressed))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let format = format_of(path, &name, &head)?;
    Ok(Opened { format, compressed, reader: Box::new(buffered(reader)) })
}

fn buffered<R: Read>(reader: R) -> BufReader<R> {
    BufReader::with_capacity(256 << 10, reader)
}

/// The first bytes of a reader, and the reader with them still in it.
fn peek<R: Read>(mut reader: R) -> io::Result<(Vec<u8>, impl Read)> {
    let mut head = Vec::with_capacity(HEAD);
    reader.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    Ok((head.clone(), Cursor::new(head).chain(reader)))
}

/// What a file is by its first bytes where these are certain, else by its name, else by what it looks like.
fn format_of(path: &Path, name: &str, head: &[u8]) -> Result<Format> {
    if head.starts_with(b"PAR1") {
        return Ok(Format::Parquet);
    }
    if head.starts_with(b"ARROW1") {
        return Ok(Format::Arrow);
    }
    if head.starts_with(b"%PDF-") {
        return Ok(Format::Pdf);
    }
    let named = Format::of_name(name);
    if let Some(format @ (Format::Parquet | Format::Arrow | Format::Pdf | Format::Docx)) = named {
        return Ok(format);
    }
    if head.starts_with(&[0xd0, 0xcf, 0x11, 0xe0]) {
        let problem = "this is a file of an old word processor or spreadsheet";
        return Err(Error::bad_file(path, problem, "save it as .docx, PDF or HTML"));
    }
    if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
        return Err(Error::bad_file(path, "the text is UTF-16", "save it as UTF-8"));
    }
    if head.contains(&0) {
        let problem = "this is a binary file, not text or a table of passages";
        return Err(Error::bad_file(path, problem, format!("a corpus is {ACCEPTED}")));
    }
    if let Some(format) = named {
        return Ok(format);
    }
    let text = String::from_utf8_lossy(head);
    match text.trim_start_matches('\u{feff}').trim_start().chars().next() {
        Some('{') => Ok(Format::Jsonl),
        Some('[') => Err(Error::bad_file(
            path,
            "this looks like one JSON array",
            "write one object a line instead (jq -c '.[]' does it)",
        )),
        _ => Err(Error::bad_file(
            path,
            "neither the name nor the first bytes tell what this file is",
            format!("a corpus is {ACCEPTED}"),
        )),
    }
}

/// The error for a read that failed: of the machine, or, in a compressed file, of the data.
pub(super) fn failed(path: &Path, error: io::Error, compressed: bool) -> Error {
    match error.kind() {
        _ if !compressed || error.raw_os_error().is_some() => Error::file("read", path)(error),
        ErrorKind::UnexpectedEof => Error::bad_file(
            path,
            "the compressed file is cut short",
            "it was not copied or downloaded to its end: get it again",
        ),
        _ => Error::bad_file(path, format!("the compressed data are damaged ({error})"), "get the file again"),
    }
}

/// What [`Lines::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line, without its end, is in the buffer.
    Whole,
    /// A line longer than [`LONGEST_LINE`] was passed over.
    TooLong,
    /// There are no more.
    End,
}

/// Reads lines, and holds at most [`LONGEST_LINE`] bytes.
pub(super) struct Lines {
    reader: Box<dyn BufRead>,
    /// The number of the line that was read last, from 1.
    pub number: u64,
}

impl Lines {
    /// The lines of a reader.
    pub fn new(reader: Box<dyn BufRead>) -> Self {
        Self { reader, number: 0 }
    }

    /// Append the next line to `buffer`, without `\n`; `\r` stays, and so does nothing of a byte order mark.
    pub fn next(&mut self, buffer: &mut Vec<u8>) -> io::Result<Line> {
        let start = buffer.len();
        let read = self.reader.by_ref().take(LONGEST_LINE as u64 + 1).read_until(b'\n', buffer)?;
        if read == 0 {
            return Ok(Line::End);
        }
        self.number += 1;
        if buffer.last() == Some(&b'\n') {
            buffer.pop();
        } else if read > LONGEST_LINE {
            buffer.truncate(start);
            self.reader.skip_until(b'\n')?;
            return Ok(Line::TooLong);
        }
        if self.number == 1 && buffer.get(start..).is_some_and(|line| line.starts_with(&[0xef, 0xbb, 0xbf])) {
            buffer.drain(start..start + 3);
        }
        Ok(Line::Whole)
    }
}

/// What is said about a line that is too long.
pub(super) fn too_long() -> String {
    format!("the line is longer than {} MiB", LONGEST_LINE >> 20)
}
