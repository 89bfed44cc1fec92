//! Document files: read whole, checked to be text, and plain text as one section.

use std::io::Read;
use std::path::Path;

use super::intake::{Intake, Place};
use super::open::{Format, LARGEST_DOCUMENT, Opened, failed};
use super::outline::Outline;
use super::{html, markdown};
use crate::error::Result;

/// Give the document in `opened` to `intake`, in sections.
pub(super) fn read(path: &Path, file: &str, opened: Opened, intake: &mut dyn Intake) -> Result<()> {
    let mut bytes = Vec::new();
    let mut limited = opened.reader.take(LARGEST_DOCUMENT as u64 + 1);
    limited.read_to_end(&mut bytes).map_err(|e| failed(path, e, opened.compressed))?;
    let place = Place { path, file, line: 1 };
    if bytes.len() > LARGEST_DOCUMENT {
        let problem = format!("a document may have {} MiB and this one has more", LARGEST_DOCUMENT >> 20);
        return intake.bad(place, format!("{problem}: cut it up, or make a record file of it"));
    }
    if let Some(at) = bytes.iter().position(|&b| b == 0) {
        return intake.bad(line_of(place, &bytes, at), "there is a zero byte: this is no text".to_string());
    }
    let source = match std::str::from_utf8(&bytes) {
        Ok(source) => source,
        Err(e) => {
            let problem = "this is not UTF-8 (iconv -f LATIN1 -t UTF-8 mends most old files)".to_string();
            return intake.bad(line_of(place, &bytes, e.valid_up_to()), problem);
        }
    };
    // Offsets count from the start of the file, whose byte order mark is no text.
    let base = source.len() - source.trim_start_matches('\u{feff}').len();
    let body = source.get(base..).unwrap_or_default();
    let mut outline = Outline::new(base);
    match opened.format {
        Format::Markdown => markdown::outline(body, &mut outline),
        Format::Html => html::outline(body, &mut outline),
        _ => outline.push(body, 0..body.len()),
    }
    let name = file.rsplit('/').next().unwrap_or(file);
    let stem = super::open::strip_compression(name);
    let stem = stem.rsplit_once('.').map_or(stem, |(stem, _)| stem);
    intake.document(place, file, &outline.finish(stem))
}

/// The place of the byte `at`.
fn line_of<'a>(place: Place<'a>, bytes: &[u8], at: usize) -> Place<'a> {
    Place { line: 1 + bytes.iter().take(at).filter(|&&b| b == b'\n').count() as u64, ..place }
}
