//! What every reader gives its documents to: checks ids, splits, counts, and decides about bad lines.

use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::outline::Section;
use super::split::{split, split_record};
use super::{CorpusOptions, CorpusReport, KEPT_PROBLEMS, files};
use crate::error::{Error, Result};
use crate::types::{PAGE, Passage, SourceSpan, document_of};

/// Where a reader is: a file of the corpus, and a line (or row) of it counted from 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// The file as it can be opened, for messages.
    pub path: &'a Path,
    /// The file as it is cited: relative to the corpus that was given, with `/`.
    pub file: &'a str,
    /// Line or row.
    pub line: u64,
}

/// A record of a record format.
#[derive(Debug)]
pub(super) struct Record<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its title; may be empty.
    pub title: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Its further fields.
    pub metadata: Map<String, Value>,
}

/// Takes what readers find.
pub(super) trait Intake {
    /// A record of a record format.
    fn record(&mut self, place: Place<'_>, record: Record<'_>) -> Result<()>;
    /// A document file, in sections.
    fn document(&mut self, place: Place<'_>, id: &str, sections: &[Section]) -> Result<()>;
    /// Something that is not as its format asks. An error means: stop.
    fn bad(&mut self, place: Place<'_>, problem: String) -> Result<()>;
    /// A file is about to be read, or (`false`) was left alone.
    fn file(&mut self, read: bool);
}

/// The intake of [`super::read`].
pub(super) struct Emitter<'a> {
    paths: &'a [PathBuf],
    options: &'a CorpusOptions,
    sink: &'a mut dyn FnMut(Passage) -> Result<()>,
    /// Hashes of the ids of documents and of the keys of pieces. Two ids of a corpus of 21 million share a hash
    /// with odds of about one to 80,000; `place_of` finds out before a document is refused for it.
    keys: HashSet<u64>,
    /// Records and documents offered so far.
    offered: u64,
    report: CorpusReport,
}

impl<'a> Emitter<'a> {
    /// An intake that gives passages to `sink`. The paths are for looking a duplicate's first place up.
    pub fn new(
        paths: &'a [PathBuf],
        options: &'a CorpusOptions,
        sink: &'a mut dyn FnMut(Passage) -> Result<()>,
    ) -> Self {
        Self { paths, options, sink, keys: HashSet::new(), offered: 0, report: CorpusReport::default() }
    }

    /// What was taken in.
    pub fn into_report(self) -> CorpusReport {
        self.report
    }

    /// Remember `key`. If it was given before, the sentence that says so.
    fn claim(&mut self, key: &str, is_piece: bool) -> Option<String> {
        if self.keys.insert(hash(key)) {
            return None;
        }
        let what = if is_piece { "the name of the piece" } else { "id" };
        let stops = self.report.skipped >= self.options.skip_bad;
        if !stops {
            return Some(format!("{what} \"{key}\" is taken by an earlier document"));
        }
        match place_of(self.paths, key, self.offered) {
            FirstPlace::At(first) => Some(format!("{what} \"{key}\" is taken: it was given at {first}")),
            FirstPlace::Unknown => Some(format!("{what} \"{key}\" is taken by an earlier document")),
            FirstPlace::Nowhere => None, // two keys of one hash
        }
    }

    fn give(&mut self, passage: Passage, words: usize) -> Result<()> {
        self.report.passages += 1;
        self.report.words += words as u64;
        (self.sink)(passage)
    }

    /// Claim the id and the names of its `pieces`; `false` if one was taken and the document is left out.
    fn claim_all(&mut self, place: Place<'_>, id: &str, pieces: usize) -> Result<bool> {
        let mut problem = self.claim(id, false);
        if pieces > 1 {
            for n in 1..=pieces {
                problem = problem.or_else(|| self.claim(&format!("{id}#{n}"), true));
            }
        }
        match problem {
            Some(problem) => self.bad(place, problem).map(|()| false),
            None => Ok(true),
        }
    }
}

impl Intake for Emitter<'_> {
    fn record(&mut self, place: Place<'_>, record: Record<'_>) -> Result<()> {
        let Record { id, title, text, mut metadata } = record;
        self.offered += 1;
        if id.is_empty() {
            return self.bad(place, "the id is empty".to_string());
        }
        metadata.retain(|_, value| !value.is_null());
        if let Some(name) = unnameable(&metadata) {
            return self.bad(place, format!("the name of the field {name:?} has a control character in it"));
        }
        let pieces = split_record(text, self.options.passage_words);
        if pieces.is_empty() {
            return self.bad(place, "the text is empty".to_string());
        }
        if !self.claim_all(place, id, pieces.len())? {
            return Ok(());
        }
        self.report.documents += 1;
        let only = pieces.len() == 1;
        for (n, piece) in (1..).zip(pieces) {
            let source = SourceSpan {
                file: place.file.to_string(),
                start: piece.range.start as u64,
                end: piece.range.end as u64,
            };
            let key = if only { id.to_string() } else { format!("{id}#{n}") };
            let text = text.get(piece.range).unwrap_or_default().to_string();
            let (title, metadata) = (title.to_string(), metadata.clone());
            self.give(Passage { key, title, text, source, metadata }, piece.words)?;
        }
        Ok(())
    }

    fn document(&mut self, place: Place<'_>, id: &str, sections: &[Section]) -> Result<()> {
        self.offered += 1;
        let pieces: Vec<_> = sections
            .iter()
            .flat_map(|section| {
                split(&section.text, self.options.passage_words).into_iter().map(move |piece| (section, piece))
            })
            .collect();
        if pieces.is_empty() || !self.claim_all(place, id, pieces.len())? {
            return Ok(()); // a file without text is no fault of a folder
        }
        self.report.documents += 1;
        let only = pieces.len() == 1;
        for (n, (section, piece)) in (1..).zip(pieces) {
            let span = section.source(&piece.range);
            let source = SourceSpan { file: place.file.to_string(), start: span.start as u64, end: span.end as u64 };
            let key = if only { id.to_string() } else { format!("{id}#{n}") };
            let text = section.text.get(piece.range).unwrap_or_default().to_string();
            let title = section.title.clone();
            let mut metadata = Map::new();
            if section.paged {
                metadata.insert(PAGE.to_owned(), span.start.into());
            }
            self.give(Passage { key, title, text, source, metadata }, piece.words)?;
        }
        Ok(())
    }

    fn bad(&mut self, place: Place<'_>, problem: String) -> Result<()> {
        let allowed = self.options.skip_bad;
        if self.report.skipped >= allowed {
            let problem = match allowed {
                0 => problem,
                _ => format!("{problem}; this is bad line number {}, and {allowed} are allowed", allowed + 1),
            };
            return Err(Error::BadLine { path: place.path.to_path_buf(), line: place.line, problem });
        }
        self.report.skipped += 1;
        if self.report.first_skipped.len() < KEPT_PROBLEMS {
            self.report.first_skipped.push(format!("{}:{}: {problem}", place.path.display(), place.line));
        }
        Ok(())
    }

    fn file(&mut self, read: bool) {
        if read {
            self.report.files += 1;
        } else {
            self.report.ignored_files += 1;
        }
    }
}

/// The first name among the fields, and those in them, that has a control character: no filter could name it.
fn unnameable(fields: &Map<String, Value>) -> Option<&str> {
    fields.iter().find_map(|(name, value)| match value {
        _ if name.chars().any(char::is_control) => Some(name.as_str()),
        Value::Object(inner) => unnameable(inner),
        Value::Array(values) => values.iter().filter_map(Value::as_object).find_map(unnameable),
        _ => None,
    })
}

/// A key as 64 bits. Nothing of it is kept on disk, so the hasher may change from one Rust to the next.
fn hash(key: &str) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// Where a key was given first.
enum FirstPlace {
    At(String),
    /// No earlier document has it.
    Nowhere,
    /// The corpus cannot be read twice.
    Unknown,
}

/// Read the corpus again, up to the `second` document with it, for the place where `key` was given first. It happens once, right
/// before the work stops, and saves a path and a line for every document until then.
fn place_of(paths: &[PathBuf], key: &str, second: u64) -> FirstPlace {
    if paths.iter().any(|path| !path.is_file() && !path.is_dir()) {
        return FirstPlace::Unknown; // a pipe
    }
    let mut finder = Finder { key, second, offered: 0, found: None };
    // It stops by an error; any other error would have stopped the work earlier.
    let _ = files::read_all(paths, &mut finder);
    match finder.found {
        Some(Some(first)) => FirstPlace::At(first),
        Some(None) => FirstPlace::Nowhere,
        None => FirstPlace::Unknown,
    }
}

/// Looks for the first document with a key, or whose piece may have it.
struct Finder<'a> {
    key: &'a str,
    second: u64,
    offered: u64,
    /// Its place, or that there is none before `second`.
    found: Option<Option<String>>,
}

impl Finder<'_> {
    fn look(&mut self, place: Place<'_>, id: &str) -> Result<()> {
        self.offered += 1;
        if self.offered == self.second {
            self.found = Some(None);
        } else if id == self.key || id == document_of(self.key) {
            self.found = Some(Some(format!("{}:{}", place.path.display(), place.line)));
        }
        match self.found {
            Some(_) => Err(Error::Internal { doing: "looking for a duplicate", message: "found".to_string() }),
            None => Ok(()),
        }
    }
}

impl Intake for Finder<'_> {
    fn record(&mut self, place: Place<'_>, record: Record<'_>) -> Result<()> {
        self.look(place, record.id)
    }

    fn document(&mut self, place: Place<'_>, id: &str, _sections: &[Section]) -> Result<()> {
        self.look(place, id)
    }

    fn bad(&mut self, _place: Place<'_>, _problem: String) -> Result<()> {
        Ok(())
    }

    fn file(&mut self, _read: bool) {}
}
