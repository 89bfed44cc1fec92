//! The inverted index: BM25 over words, as the index's [`Analyser`] makes them.
//!
//! A question is a bag of words, put through the analyser that the passages went through: no character
//! of it is syntax. Each segment of the index is one of tantivy's, whose document numbers are its passages' rows, so
//! tantivy's own tie rule (the smaller document) is ours. How often words are, and how long passages are, is counted over all
//! segments together, so scores do not depend on how the passages came in. Deleted passages are counted until `index compact`.
//!
//! One field holds title and text together. A field of its own for the title, added with a weight of 0.2,
//! gave gold recall@1/20 of .498/.860 instead of .469/.833 on nq-dev but .609/.902 instead of .625/.905 on
//! squad-dev (1,500 questions) and .127/.348 instead of .131/.350 on ottqa-dev, at 0.6 of the speed; title
//! and text apart lost on all three.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tantivy::directory::error::{LockError, OpenDirectoryError, OpenReadError, OpenWriteError};
use tantivy::index::SegmentId;
use tantivy::indexer::NoMergePolicy;
use tantivy::schema::{Field, IndexRecordOption, NumericOptions, Schema, TextFieldIndexing, TextOptions};
use tantivy::tokenizer::TextAnalyzer;
use tantivy::{IndexReader, ReloadPolicy, Searcher, SegmentReader, TantivyDocument, TantivyError, Term};

use super::checked::{CheckedFile, damaged};
use crate::error::{Error, Result};
use crate::filter::{Filter, unknown_field};
use crate::index::allowed::Allowed;
use crate::types::{Hit, Passage, PassageId};

mod analyser;
mod bm25;
mod directory;
mod metadata;
mod stems;
mod stop_words;
mod words;

pub use analyser::{Analyser, HEAVIEST_TITLE, Language, Terms};
pub use bm25::Bm25;
use bm25::{Asked, Best, Scratch, Words};
pub(crate) use metadata::SOURCE_FILE;
pub use stems::{FirstLetters, Stems};
pub use stop_words::{StopWordList, StopWords};
pub use words::{composed, words};

/// Filters whose passages are remembered: an eighth of a byte a passage each.
const KNOWN_FILTERS: usize = 16;

/// Most different words of a question that are searched; the rarest are kept. Far above any question a
/// person asks, and it bounds the time that a pasted document takes.
const MOST_WORDS: usize = 256;

/// Memory of the writer before it starts another segment.
const WRITER_MEMORY: usize = 256 << 20;

/// Names of the fields: the text with its title, and the row.
const BODY: &str = "body";
const ROW: &str = "row";

fn schema(analyser: &Analyser) -> Schema {
    let mut schema = Schema::builder();
    let indexing =
        TextFieldIndexing::default().set_tokenizer(&analyser.name()).set_index_option(IndexRecordOption::WithFreqs);
    schema.add_text_field(BODY, TextOptions::default().set_indexing_options(indexing));
    schema.add_u64_field(ROW, NumericOptions::default().set_fast());
    metadata::add_field(&mut schema);
    schema.build()
}

/// Writes the inverted index, passage by passage, in row order.
pub(super) struct LexicalWriter {
    writer: tantivy::IndexWriter,
    index: tantivy::Index,
    body: Field,
    row: Field,
    meta: Field,
    rows: u64,
    title_weight: u32,
    folder: PathBuf,
}

impl LexicalWriter {
    /// A new inverted index in the (existing, empty) folder.
    pub fn create(folder: &Path, analyser: &Analyser) -> Result<Self> {
        let schema = schema(analyser);
        let (body, row, meta) = (field(&schema, BODY)?, field(&schema, ROW)?, field(&schema, metadata::META)?);
        let mut index = tantivy::Index::create_in_dir(folder, schema).map_err(unwritten(folder))?;
        index.set_tokenizers(analyser.tokenizers());
        // One thread: the order of documents is the order of passages.
        let writer = index.writer_with_num_threads(1, WRITER_MEMORY).map_err(unwritten(folder))?;
        writer.set_merge_policy(Box::new(NoMergePolicy));
        let (rows, title_weight, folder) = (0, analyser.title_weight, folder.to_path_buf());
        Ok(Self { writer, index, body, row, meta, rows, title_weight, folder })
    }

    /// Add the passage at the next row.
    pub fn add(&mut self, passage: &Passage) -> Result<()> {
        let mut document = TantivyDocument::new();
        match self.title_weight {
            0 => document.add_text(self.body, &passage.text),
            _ => document.add_text(self.body, passage.titled_text()),
        }
        for _ in 1..self.title_weight {
            document.add_text(self.body, &passage.title);
        }
        document.add_u64(self.row, self.rows);
        document.add_object(self.meta, metadata::object(passage));
        self.writer.add_document(document).map_err(unwritten(&self.folder))?;
        self.rows += 1;
        Ok(())
    }

    /// Merge everything into one segment in row order, and give its files names that are always the same.
    pub fn finish(mut self) -> Result<()> {
        let fail = || unwritten(&self.folder);
        self.writer.commit().map_err(fail())?;
        let searcher = searcher(&self.index).map_err(fail())?;
        let mut segments = Vec::new();
        for segment in searcher.segment_readers() {
            let rows = segment.fast_fields().u64(ROW).map_err(fail())?;
            segments.push((rows.first(0), segment.segment_id()));
        }
        drop(searcher);
        segments.sort_unstable();
        if segments.len() > 1 {
            let ids: Vec<SegmentId> = segments.iter().map(|&(_, id)| id).collect();
            self.writer.merge(&ids).wait().map_err(fail())?;
        }
        self.writer.garbage_collect_files().wait().map_err(fail())?;
        self.writer.wait_merging_threads().map_err(unwritten(&self.folder))?;
        check_rows(&self.index, self.rows).map_err(unwritten(&self.folder))??;
        drop(self.index);
        directory::settle_names(&self.folder)
    }
}

/// A look at what is committed now.
fn searcher(index: &tantivy::Index) -> tantivy::Result<Searcher> {
    let reader: IndexReader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
    Ok(reader.searcher())
}

/// Fail unless document numbers are rows.
fn check_rows(index: &tantivy::Index, expected: u64) -> tantivy::Result<Result<()>> {
    let searcher = searcher(index)?;
    let mut row = 0;
    for segment in searcher.segment_readers() {
        let rows = segment.fast_fields().u64(ROW)?;
        for document in 0..segment.max_doc() {
            if rows.first(document) != Some(row) {
                break;
            }
            row += 1;
        }
    }
    Ok(if row == expected && searcher.segment_readers().len() <= 1 {
        Ok(())
    } else {
        Err(Error::Internal {
            doing: "merging the inverted index",
            message: format!("only {row} of {expected} passages are in order"),
        })
    })
}

fn field(schema: &Schema, name: &str) -> Result<Field> {
    schema.get_field(name).map_err(Error::internal("reading the schema of an inverted index"))
}

/// A tantivy error, in our words.
fn failed(folder: &Path) -> impl FnOnce(TantivyError) -> Error {
    let folder = folder.to_path_buf();
    move |e| match e {
        TantivyError::IoError(source) => from_io(folder, &source),
        TantivyError::OpenReadError(OpenReadError::IoError { io_error, .. })
        | TantivyError::OpenWriteError(OpenWriteError::IoError { io_error, .. })
        | TantivyError::OpenDirectoryError(OpenDirectoryError::IoError { io_error, .. })
        | TantivyError::LockFailure(LockError::IoError(io_error), _) => from_io(folder, &io_error),
        TantivyError::OpenReadError(OpenReadError::FileDoesNotExist(name)) => {
            damaged(&folder.join(name), "is missing".into())
        }
        TantivyError::DataCorruption(e) => damaged(&folder, format!("is damaged: {e:?}")),
        other => Error::Internal { doing: "using the inverted index", message: other.to_string() },
    }
}

/// An error of tantivy's writer, in our words. It tells of a disk that fails in several ways, some of them mere words.
fn unwritten(folder: &Path) -> impl FnOnce(TantivyError) -> Error {
    let folder = folder.to_path_buf();
    move |e| match e {
        TantivyError::ErrorInThread(words) | TantivyError::InternalError(words) | TantivyError::SystemError(words) => {
            Error::File { action: "write the inverted index in", path: folder, source: io::Error::other(words) }
        }
        other => failed(&folder)(other),
    }
}

/// An io error that went through tantivy: our own about a damaged file, or the system's.
fn from_io(folder: PathBuf, source: &io::Error) -> Error {
    match source.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(Error::Index { path, problem, .. }) => damaged(path, problem.clone()),
        _ => Error::File {
            action: "read or write",
            path: folder,
            source: io::Error::new(source.kind(), source.to_string()),
        },
    }
}

/// The inverted index, mapped.
pub struct Lexical {
    searcher: Searcher,
    body: Field,
    folder: PathBuf,
    analyser: TextAnalyzer,
    /// Where the rows of the segments are, in order.
    segments: Vec<Rows>,
    /// The passages that were not deleted, if some were.
    alive: Option<Arc<Allowed>>,
    /// The last filters that were applied, and what they gave.
    filters: Mutex<VecDeque<(Filter, Arc<Allowed>)>>,
    /// Memory that no search is using.
    idle: Mutex<Vec<Scratch>>,
}

/// A segment's run of rows, and its number among tantivy's.
#[derive(Debug, Clone, Copy)]
struct Rows {
    first: u32,
    count: u32,
    ordinal: u32,
}

impl std::fmt::Debug for Lexical {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lexical").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Lexical {
    /// Open the inverted indexes of segments, given by their folders and checked files in the order of rows, as one.
    /// `folder` is the index's, `alive` what was not deleted, if something was.
    pub(super) fn open(
        folder: &Path,
        segments: Vec<(PathBuf, BTreeMap<String, CheckedFile>)>,
        alive: Option<Arc<Allowed>>,
        analyser: &Analyser,
    ) -> Result<Self> {
        let mut index = tantivy::Index::open(directory::ReadOnly::new(segments)?).map_err(failed(folder))?;
        index.set_tokenizers(analyser.tokenizers());
        let body = field(&index.schema(), BODY)?;
        let searcher = searcher(&index).map_err(failed(folder))?;
        let segments = rows_of(&searcher)?;
        let (folder, analyser) = (folder.to_path_buf(), analyser.of_questions());
        Ok(Self {
            searcher,
            body,
            folder,
            analyser,
            segments,
            alive,
            filters: Mutex::default(),
            idle: Mutex::default(),
        })
    }

    /// Number of passages that can be found.
    pub fn len(&self) -> usize {
        self.alive.as_deref().map_or(self.rows(), Allowed::len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of passages, deleted ones included.
    pub(super) fn rows(&self) -> usize {
        self.segments.iter().map(|rows| rows.count as usize).sum()
    }

    /// The passages that meet a filter; see [`crate::index::Index::allowed`].
    pub fn allowed(&self, filter: &Filter) -> Result<Arc<Allowed>> {
        if let Ok(known) = self.filters.lock()
            && let Some((_, allowed)) = known.iter().find(|(other, _)| other == filter)
        {
            return Ok(Arc::clone(allowed));
        }
        let segments: Vec<(Rows, &SegmentReader)> = self.in_row_order().collect();
        if self.searcher.schema().get_field(metadata::META).is_err() {
            return Err(Error::request(
                "the index is of the first format, which kept no metadata to filter by",
                "build it again with --overwrite, or leave the filter out",
            ));
        }
        for condition in &filter.conditions {
            let has = |(_, segment): &(Rows, &SegmentReader)| metadata::has(segment, &condition.field);
            let known =
                segments.iter().map(has).collect::<tantivy::Result<Vec<bool>>>().map_err(failed(&self.folder))?;
            if !known.contains(&true) {
                return Err(unknown_field(&condition.field, &self.fields()?.join(", ")));
            }
        }
        let parts = segments
            .iter()
            .map(|(rows, segment)| Ok((rows.count as usize, metadata::allowed(segment, filter)?)))
            .collect::<tantivy::Result<Vec<_>>>()
            .map_err(failed(&self.folder))?;
        let allowed = Allowed::concat(&parts);
        let allowed = Arc::new(self.alive.as_ref().map_or_else(|| allowed.clone(), |alive| allowed.and(alive)));
        if let Ok(mut known) = self.filters.lock() {
            known.truncate(KNOWN_FILTERS - 1);
            known.push_front((filter.clone(), Arc::clone(&allowed)));
        }
        Ok(allowed)
    }

    /// Names of the fields that a filter can name, in order.
    pub fn fields(&self) -> Result<Vec<String>> {
        let mut fields = BTreeSet::new();
        for segment in self.searcher.segment_readers() {
            fields.extend(metadata::fields(segment).map_err(failed(&self.folder))?);
        }
        Ok(fields.into_iter().collect())
    }

    /// [`Self::search_by`] with the usual numbers.
    pub fn search(&self, question: &str, depth: usize, only: Option<&Arc<Allowed>>) -> Result<Vec<Hit>> {
        self.search_by(question, depth, only, Bm25::default())
    }

    /// The best `depth` passages for a question in plain text, by BM25, best first, ties by passage id.
    /// Passages without a word of the question are not among them, nor those outside of `only`.
    pub fn search_by(&self, question: &str, depth: usize, only: Option<&Arc<Allowed>>, bm25: Bm25) -> Result<Vec<Hit>> {
        let depth = depth.min(only.map_or(self.len(), |only| only.len()));
        if depth == 0 {
            return Ok(Vec::new());
        }
        let words = self.words(question, bm25)?;
        let only = only.or(self.alive.as_ref());
        let accept = |row: PassageId| only.is_none_or(|only| only.contains(row));
        let mut scratch = self.idle.lock().ok().and_then(|mut idle| idle.pop()).unwrap_or_default();
        let mut best = Best::new(depth);
        for (rows, segment) in self.in_row_order() {
            words.search(segment, rows.first, &accept, &mut best, &mut scratch).map_err(failed(&self.folder))?;
        }
        if let Ok(mut idle) = self.idle.lock() {
            idle.push(scratch);
        }
        Ok(best.into_hits())
    }

    /// BM25 of these passages for a question, as [`Self::search_by`] gives it, by passage id; those without a word of the
    /// question are left out. Each is there once however often it is asked for.
    pub fn scores(&self, question: &str, passages: &[PassageId], bm25: Bm25) -> Result<Vec<Hit>> {
        if passages.is_empty() {
            return Ok(Vec::new());
        }
        let words = self.words(question, bm25)?;
        let mut wanted = passages.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        let mut hits = Vec::with_capacity(wanted.len());
        let mut wanted = wanted.as_slice();
        for (rows, segment) in self.in_row_order() {
            let (here, behind) = wanted.split_at(wanted.partition_point(|row| row.0 < rows.first + rows.count));
            wanted = behind;
            let documents: Vec<u32> = here.iter().map(|row| row.0 - rows.first).collect();
            let scores = words.scores(segment, &documents).map_err(failed(&self.folder))?;
            hits.extend(here.iter().zip(scores).map(|(&passage, score)| Hit { passage, score }));
        }
        hits.retain(|hit| hit.score > 0.0);
        Ok(hits)
    }

    /// tantivy's segments in the order of rows.
    fn in_row_order(&self) -> impl Iterator<Item = (Rows, &SegmentReader)> {
        self.segments.iter().map(|rows| (*rows, self.searcher.segment_reader(rows.ordinal)))
    }

    /// The words of a question that the index has, weighted; none if it has none of them.
    fn words(&self, question: &str, bm25: Bm25) -> Result<Words> {
        Words::new(&self.searcher, self.terms(question)?, bm25).map_err(failed(&self.folder))
    }

    /// How many different words of a question that the index has are not searched for, as there are too many.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn left_out(&self, question: &str) -> Result<usize> {
        // A word has a byte at least: most questions need not be looked up once more.
        if question.len() <= MOST_WORDS {
            return Ok(0);
        }
        Ok(self.all_terms(question)?.len().saturating_sub(MOST_WORDS))
    }

    /// The words of a question that are searched for.
    fn terms(&self, question: &str) -> Result<Vec<Asked>> {
        let mut terms = self.all_terms(question)?;
        terms.sort_by(|a, b| a.frequency.cmp(&b.frequency).then_with(|| a.term.cmp(&b.term)));
        terms.truncate(MOST_WORDS);
        Ok(terms)
    }

    /// The words of a question that the index has.
    fn all_terms(&self, question: &str) -> Result<Vec<Asked>> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let mut analyser = self.analyser.clone();
        analyser.token_stream(question).process(&mut |token| *counts.entry(token.text.clone()).or_default() += 1);
        let mut terms = Vec::with_capacity(counts.len());
        for (word, count) in counts {
            let term = Term::from_field_text(self.body, &word);
            let frequency = self.searcher.doc_freq(&term).map_err(failed(&self.folder))?;
            if frequency > 0 {
                terms.push(Asked { term, count, frequency });
            }
        }
        Ok(terms)
    }
}

/// The rows of tantivy's segments, in order.
fn rows_of(searcher: &Searcher) -> Result<Vec<Rows>> {
    let mut places = Vec::new();
    for (ordinal, segment) in (0..).zip(searcher.segment_readers()) {
        let part = directory::part_of(segment.segment_id()).ok_or_else(|| Error::Internal {
            doing: "opening the inverted index",
            message: "a segment has an unknown name".into(),
        })?;
        places.push((part, ordinal, segment.max_doc()));
    }
    places.sort_unstable();
    let mut behind = 0;
    let rows = places.into_iter().map(|(_, ordinal, count)| {
        let first = behind;
        behind += count;
        Rows { first, count, ordinal }
    });
    Ok(rows.collect())
}
