//! Document files: read whole, given to the reader of their format, and cut into sections by their headings.

use std::io::Read;
use std::path::Path;

use super::intake::{Intake, Place};
use super::open::{Format, Opened, failed};
use super::outline::Outline;
use super::{docx, html, markdown, pdf};
use crate::error::Result;
use crate::guard::guarded;

/// What a reader says of a document that it cannot read.
pub(super) type Problem = String;

/// Give the document in `opened` to `intake`, in sections.
pub(super) fn read(path: &Path, file: &str, opened: Opened, intake: &mut dyn Intake) -> Result<()> {
    let mut bytes = Vec::new();
    let largest = opened.format.largest();
    let mut limited = opened.reader.take(largest as u64 + 1);
    limited.read_to_end(&mut bytes).map_err(|e| failed(path, e, opened.compressed))?;
    let place = Place { path, file, line: 1 };
    if bytes.len() > largest {
        let problem = format!("a document may have {} MiB and this one has more", largest >> 20);
        return intake.bad(place, format!("{problem}: cut it up, or make a record file of it"));
    }
    let outline = match opened.format {
        Format::Pdf => guarded(|| pdf::outline(&bytes)).unwrap_or_else(|| Err("the PDF is damaged".to_owned())),
        Format::Docx => docx::outline(&bytes),
        format => match text(&bytes) {
            Ok(source) => Ok(of_text(source, format)),
            Err((at, problem)) => return intake.bad(line_of(place, &bytes, at), problem),
        },
    };
    let outline = match outline {
        Ok(outline) => outline,
        Err(problem) => return intake.bad(place, problem),
    };
    let name = file.rsplit('/').next().unwrap_or(file);
    let stem = super::open::strip_compression(name);
    let stem = stem.rsplit_once('.').map_or(stem, |(stem, _)| stem);
    intake.document(place, file, &outline.finish(stem))
}

/// The bytes as text, or where and why they are none.
fn text(bytes: &[u8]) -> std::result::Result<&str, (usize, Problem)> {
    if let Some(at) = bytes.iter().position(|&b| b == 0) {
        return Err((at, "there is a zero byte: this is no text".to_string()));
    }
    std::str::from_utf8(bytes).map_err(|e| {
        let problem = "this is not UTF-8 (iconv -f LATIN1 -t UTF-8 mends most old files)".to_string();
        (e.valid_up_to(), problem)
    })
}

/// The outline of Markdown, HTML, or text, which is one section.
fn of_text(source: &str, format: Format) -> Outline {
    // Offsets count from the start of the file, whose byte order mark is no text.
    let base = source.len() - source.trim_start_matches('\u{feff}').len();
    let body = source.get(base..).unwrap_or_default();
    let mut outline = Outline::new(base);
    match format {
        Format::Markdown => markdown::outline(body, &mut outline),
        Format::Html => html::outline(body, &mut outline),
        _ => outline.push(body, 0..body.len()),
    }
    outline
}

/// The place of the byte `at`.
fn line_of<'a>(place: Place<'a>, bytes: &[u8], at: usize) -> Place<'a> {
    Place { line: 1 + bytes.iter().take(at).filter(|&&b| b == b'\n').count() as u64, ..place }
}
