//! Changing an index that is there: documents added, replaced and taken out, and indexes put together.
//!
//! What is added becomes a segment of its own, beside those that are there; what is deleted is marked. Both are published as
//! a build is, so that readers keep their snapshot and a crash leaves the old state or the new one. Small segments are taken
//! into the new one, so that there are few (`staying`); [`compact`] writes all anew, and leaves the deleted out: the index
//! that a build of the same passages in the same order would have made. Only what is new is encoded.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Index;
use super::allowed::Allowed;
use super::manifest::{FORMAT, Manifest, SegmentEntry};
use super::writer::{self, BuildOptions, BuildReport, Encode, Source};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::types::{Passage, PassageId, document_of};

/// A segment is taken into a new one that has more than a quarter of its passages. So every passage is written anew once
/// for each time its segment grows by a quarter, and an index of n passages has about log n / log 5 segments. One that is more
/// than half as large as memory lets a segment be stays as it is: it would only be cut again.
const SMALL: u64 = 4;

/// What a change did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChangeReport {
    /// Passages that came in.
    pub added: u64,
    /// Passages that went out, those of replaced documents included.
    pub removed: u64,
    /// What was written.
    pub build: BuildReport,
}

/// Which of the index's documents may be given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// None: the first that is there already is an error.
    Refuse,
    /// All: their passages are replaced.
    Replace,
}

/// Add the passages of `source`, which is gone through twice. `encode` makes the vectors of an index that has some;
/// `options.encoder` names what it is, and the change is refused if that is not what the index has when its turn comes.
///
/// # Errors
/// As [`writer::build`]; [`Error::Request`] naming the first document that is there already, when those are refused.
pub fn add(
    dir: &Path,
    source: &mut Source,
    known: Known,
    encode: Option<&mut Encode>,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<ChangeReport> {
    let options = with_encoder_of(options, of(&Manifest::read(dir)?, options));
    let (mut added, mut removed) = (0, 0);
    let build = writer::write(dir, &options, progress, |writer| {
        let index = open_as(dir, &options)?;
        if encode.is_some() != has_vectors(index.manifest()) {
            return Err(made_otherwise(dir));
        }
        let mut incoming = Incoming { index: &index, known, last: String::new(), replaced: BTreeSet::new() };
        source(&mut |passage| {
            added += 1;
            incoming.look_at(&passage)
        })?;
        let replaced = incoming.replaced;
        removed = replaced.len() as u64;
        let stays = |row: PassageId| index.is_alive(row) && !replaced.contains(&row);
        let segments = segments(&index, &stays);
        let keep = if is_outdated(index.manifest()) { 0 } else { staying(&segments, added, options.segment_passages) };
        let moved = segments.get(keep..).unwrap_or_default();
        let new = writer.segments(
            &mut |sink| {
                for row in moved.iter().flat_map(|segment| segment.rows.clone()).map(PassageId) {
                    if stays(row) {
                        sink(index.passage(row)?)?;
                    }
                }
                source(sink)
            },
            encode,
        )?;
        publish(writer, &index, segments.get(..keep).unwrap_or_default(), new, &stays)
    })?;
    Ok(ChangeReport { added, removed, build })
}

/// What is known about the passages that come.
struct Incoming<'a> {
    index: &'a Index,
    known: Known,
    /// The passage before.
    last: String,
    replaced: BTreeSet<PassageId>,
}

impl Incoming<'_> {
    /// Note what a passage that comes replaces, or refuse it.
    fn look_at(&mut self, passage: &Passage) -> Result<()> {
        let document = document_of(&passage.key);
        if passage.key == document || is_split(&self.last, &passage.key) {
            self.replace(document, self.index.pieces_of(document)?)?;
        }
        self.last.clone_from(&passage.key);
        let same = self.index.row_of(&passage.key)?;
        self.replace(&passage.key, same.filter(|row| !self.replaced.contains(row)).into_iter().collect())
    }

    fn replace(&mut self, document: &str, rows: Vec<PassageId>) -> Result<()> {
        if self.known == Known::Refuse && !rows.is_empty() {
            return Err(Error::Known { document: document.to_owned() });
        }
        self.replaced.extend(rows);
        Ok(())
    }
}

/// Whether a document was split into these two passages, which come one behind the other: pieces come in their order, from 1 on, so
/// a `paper#7` by itself is no piece but a record that is called so.
pub(crate) fn is_split(first: &str, second: &str) -> bool {
    let document = document_of(second);
    second.strip_prefix(document) == Some("#2") && first.strip_prefix(document) == Some("#1")
}

/// The error of an id that should be deleted and is not there.
pub(crate) fn unknown_document(id: &str) -> Error {
    Error::request(
        format!("the index has no document or passage {id:?}; nothing was deleted"),
        "`nunatak search` shows the ids of passages",
    )
}

/// Take out the documents and passages of these ids. They are marked, which takes no longer for many passages than for few;
/// [`compact`] removes them from the disk.
///
/// # Errors
/// As [`writer::build`]; [`Error::Request`] naming an id that the index does not have, or when nothing would be left.
pub fn delete(dir: &Path, ids: &[String], options: &BuildOptions, progress: &dyn Progress) -> Result<ChangeReport> {
    let options = of(&Manifest::read(dir)?, options);
    let mut removed = 0;
    let build = writer::write(dir, &options, progress, |writer| {
        let index = open_as(dir, &options)?;
        let mut rows = BTreeSet::new();
        for id in ids {
            let pieces = index.pieces_of(id)?;
            if pieces.is_empty() {
                return Err(unknown_document(id));
            }
            rows.extend(pieces);
        }
        if rows.is_empty() {
            return Err(Error::request("there are no ids of what to take out", "give some"));
        }
        if rows.len() == index.len() {
            return Err(Error::request("that would leave no passage in the index", "remove its folder instead"));
        }
        removed = rows.len() as u64;
        let stays = |row: PassageId| index.is_alive(row) && !rows.contains(&row);
        if is_outdated(index.manifest()) {
            let mut encode = no_encoder(dir);
            let encode = has_vectors(index.manifest()).then_some(&mut encode as &mut Encode);
            let mut left = index.passages().filter(|&row| stays(row));
            let new = writer.segments(&mut |sink| left.try_for_each(|row| sink(index.passage(row)?)), encode)?;
            return publish(writer, &index, &[], new, &stays);
        }
        publish(writer, &index, &segments(&index, &stays), Vec::new(), &stays)
    })?;
    Ok(ChangeReport { added: 0, removed, build })
}

/// Write the passages of an index anew, without those that were deleted, as one segment or as few as memory allows: the index
/// that a build of the same passages would have made. `None` if it is that already.
///
/// # Errors
/// As [`writer::build`].
pub fn compact(dir: &Path, options: &BuildOptions, progress: &dyn Progress) -> Result<Option<ChangeReport>> {
    let manifest = Manifest::read(dir)?;
    let options = of(&manifest, options);
    if manifest.format == FORMAT && manifest.deleted.is_none() && is_whole(&manifest, options.segment_passages) {
        return Ok(None);
    }
    let mut encode = no_encoder(dir);
    let build = writer::write(dir, &options, progress, |writer| {
        let index = open_as(dir, &options)?;
        let encode = has_vectors(index.manifest()).then_some(&mut encode as &mut Encode);
        let segments = writer.segments(&mut |sink| give(&index, sink), encode)?;
        writer.publish(segments, &Allowed::but(index.len(), &[]))
    })?;
    Ok(Some(ChangeReport { added: 0, removed: 0, build }))
}

/// Whether its segments are those that a build makes: all but the last as large as one may be.
fn is_whole(manifest: &Manifest, most: u64) -> bool {
    let Some((last, others)) = manifest.segments.split_last() else { return true };
    others.iter().all(|segment| segment.passages == most) && (most == 0 || last.passages <= most)
}

/// Whether the segments are of a kind that does not go beside new ones; then a change writes all of them anew. Format 3
/// changed nothing in a segment.
fn is_outdated(manifest: &Manifest) -> bool {
    manifest.format < 2
}

/// A segment that is there, and what stays of it.
struct There {
    entry: SegmentEntry,
    rows: std::ops::Range<u32>,
    staying: u64,
}

/// The segments of an index in the order of rows.
fn segments(index: &Index, stays: &dyn Fn(PassageId) -> bool) -> Vec<There> {
    let mut first = 0;
    let there = |entry: &SegmentEntry| {
        let rows = first..first + entry.passages as u32;
        first = rows.end;
        let staying = rows.clone().filter(|&row| stays(PassageId(row))).count() as u64;
        There { entry: entry.clone(), rows, staying }
    };
    index.manifest().segments.iter().map(there).collect()
}

/// How many segments, from the first on, stay as they are when `added` passages come. The others go into the new segment:
/// from the end those that are small beside it, and all from the first on of which less than half is left.
fn staying(segments: &[There], added: u64, most: u64) -> usize {
    let is_full = |segment: &There| most > 0 && 2 * segment.staying > most;
    let mut keep = segments.iter().position(|s| 2 * s.staying < s.entry.passages).unwrap_or(segments.len());
    let mut new = added + segments.get(keep..).unwrap_or_default().iter().map(|s| s.staying).sum::<u64>();
    while let Some(last) =
        keep.checked_sub(1).and_then(|at| segments.get(at)).filter(|s| s.staying < SMALL * new && !is_full(s))
    {
        new += last.staying;
        keep -= 1;
    }
    keep
}

/// Publish what stays of some segments and, behind it, new ones.
fn publish(
    writer: &mut writer::Writer,
    index: &Index,
    there: &[There],
    new: Vec<SegmentEntry>,
    stays: &dyn Fn(PassageId) -> bool,
) -> Result<Manifest> {
    // A segment of which nothing is left is left out, which moves the rows behind it.
    let there: Vec<&There> = there.iter().filter(|segment| segment.staying > 0).collect();
    let mut parts: Vec<(usize, Allowed)> = there
        .iter()
        .map(|segment| {
            let first = segment.rows.start;
            (segment.rows.len(), Allowed::of(segment.rows.len(), |row| stays(PassageId(first + row.0))))
        })
        .collect();
    for new in &new {
        let rows = new.passages as usize;
        parts.push((rows, Allowed::but(rows, &[])));
    }
    if parts.is_empty() {
        return Err(Error::index(index.path(), "nothing would be left", "remove its folder instead"));
    }
    let entries = there.iter().map(|segment| segment.entry.clone()).chain(new).collect();
    writer.publish(entries, &Allowed::concat(&parts))
}

/// Put the indexes `from` together, in their order, in a new one at `dir`.
///
/// # Errors
/// As [`writer::build`], also for two documents of one id; [`Error::Index`] when one was made by another encoder, or has
/// no vectors and another has.
pub fn merge(dir: &Path, from: &[PathBuf], options: &BuildOptions, progress: &dyn Progress) -> Result<ChangeReport> {
    let indexes = of_one_kind(from)?;
    let Some(first) = indexes.first() else {
        return Err(Error::request("there are no indexes to put together", "name them"));
    };
    let mut encode = no_encoder(dir);
    let build = writer::build(
        dir,
        &mut |sink| indexes.iter().try_for_each(|index| give(index, sink)),
        has_vectors(first.manifest()).then_some(&mut encode),
        &BuildOptions { vectors_from: from.to_vec(), overwrite: options.overwrite, ..of(first.manifest(), options) },
        progress,
    )?;
    Ok(ChangeReport { added: build.passages, removed: 0, build })
}

/// Open indexes that are to be put together.
///
/// # Errors
/// [`Error::Index`] when one was made by another encoder than the first, or with other words.
pub(crate) fn of_one_kind(from: &[PathBuf]) -> Result<Vec<Index>> {
    let indexes = from.iter().map(|path| Index::open(path)).collect::<Result<Vec<Index>>>()?;
    let Some(first) = indexes.first() else { return Ok(indexes) };
    let maker = |index: &Index| index.manifest().encoder.as_ref().map(|e| (e.fingerprint.clone(), e.dim));
    let name = |index: &Index| index.manifest().encoder.as_ref().map_or("none".to_owned(), |e| e.name.clone());
    if let Some(other) = indexes.iter().find(|index| maker(index) != maker(first)) {
        return Err(Error::index(
            other.path(),
            format!(
                "its vectors were made by another encoder ({}) than those of the first ({})",
                name(other),
                name(first)
            ),
            "build it again with the same encoder",
        ));
    }
    let analyser = |index: &Index| index.manifest().analyser.clone();
    if let Some(other) = indexes.iter().find(|index| analyser(index) != analyser(first)) {
        return Err(Error::index(
            other.path(),
            format!(
                "its words were made otherwise ({}) than those of the first ({})",
                analyser(other),
                analyser(first)
            ),
            "build it again with the same --language and what goes with it",
        ));
    }
    Ok(indexes)
}

/// Give the passages of an index to `sink`, in order.
pub(crate) fn give(index: &Index, sink: &mut dyn FnMut(Passage) -> Result<()>) -> Result<()> {
    index.passages().try_for_each(|row| sink(index.passage(row)?))
}

/// The options that an index was built with, for the rest as `options` say; it is replaced by the change.
pub(super) fn of(manifest: &Manifest, options: &BuildOptions) -> BuildOptions {
    let mut options = BuildOptions {
        encoder: manifest.encoder.clone(),
        passage_words: manifest.corpus.passage_words,
        analyser: manifest.analyser.clone(),
        overwrite: true,
        ..options.clone()
    };
    if let Some(graph) = manifest.segments.first().and_then(|segment| segment.graph.as_ref()) {
        (options.m, options.ef_construction, options.seed) = (graph.m, graph.ef_construction, graph.seed);
    }
    options
}

/// The options `of` an index with the encoder that the `caller` has loaded, if it names one: the index may have another by now.
fn with_encoder_of(caller: &BuildOptions, of: BuildOptions) -> BuildOptions {
    BuildOptions { encoder: caller.encoder.clone().or(of.encoder), ..of }
}

/// The index as it is now that no other change can come, if it is still made as `options` say: those were read before the
/// lock was had, and the index may have been built anew since.
fn open_as(dir: &Path, options: &BuildOptions) -> Result<Index> {
    let index = Index::open(dir)?;
    let manifest = index.manifest();
    if manifest.encoder != options.encoder || manifest.analyser != options.analyser {
        return Err(made_otherwise(dir));
    }
    Ok(index)
}

fn made_otherwise(dir: &Path) -> Error {
    let problem = "it was built anew with another encoder or other words while this change began; nothing was changed";
    Error::index(dir, problem, "make the change again")
}

fn has_vectors(manifest: &Manifest) -> bool {
    manifest.encoder.is_some()
}

/// Where every vector is at hand, only one that cannot be read is asked for.
pub(crate) fn no_encoder(dir: &Path) -> impl FnMut(&[String]) -> Result<Vec<f32>> {
    let dir = dir.to_path_buf();
    move |_| {
        let hint = "`nunatak index verify` names the damaged file, and `nunatak index repair` mends it";
        Err(Error::index(&dir, "a vector that should be taken over cannot be read", hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::manifest::EncoderIdentity;

    #[test]
    fn an_index_built_anew_since_its_options_were_read_is_not_changed() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat/index_v3");
        let read = of(&Manifest::read(&dir).unwrap(), &BuildOptions::default());
        assert!(open_as(&dir, &read).is_ok());
        let mut words = read.clone();
        words.analyser.title_weight += 1;
        // What the caller loaded is what counts, also where the manifest that is read next names another.
        let loaded = EncoderIdentity { name: "other".into(), fingerprint: "other".into(), dim: 384 };
        let loaded = BuildOptions { encoder: Some(loaded), ..BuildOptions::default() };
        let vectors = with_encoder_of(&loaded, read);
        for since in [words, vectors] {
            let refused = open_as(&dir, &since).unwrap_err().to_string();
            assert!(refused.contains("built anew"), "{refused}");
        }
    }
}
