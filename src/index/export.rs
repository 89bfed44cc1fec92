//! The passages of an index as a corpus again.

use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value};

use super::Index;
use crate::error::{Error, Result};
use crate::progress::{Progress, check_interrupt};

/// Write all passages to `out` as JSON lines that `index build --passage-words 0` takes: `id`, `title` (if it has one),
/// `text`, and the further fields. Returns how many. `to` is what messages call `out`.
///
/// # Errors
/// [`Error::Index`] on damage, [`Error::File`] when `out` fails.
pub fn export(index: &Index, out: &mut dyn Write, to: &Path, progress: &dyn Progress) -> Result<u64> {
    progress.start("exporting", Some(index.len() as u64), "passages");
    let mut count = 0;
    for row in index.passages() {
        if count % 256 == 0 {
            check_interrupt(|| "the index was only read".into())?;
        }
        let passage = index.passage(row)?;
        let mut record = Map::new();
        record.insert("id".into(), passage.key.into());
        if !passage.title.is_empty() {
            record.insert("title".into(), passage.title.into());
        }
        record.insert("text".into(), passage.text.into());
        // A further field cannot have one of those names: they were taken for what they are.
        for (name, value) in passage.metadata {
            record.entry(name).or_insert(value);
        }
        writeln!(out, "{}", Value::Object(record)).map_err(Error::file("write", to))?;
        count += 1;
        progress.advance(1);
    }
    progress.finish();
    Ok(count)
}
