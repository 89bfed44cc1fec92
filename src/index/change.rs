//! Changing an index that is there: documents added, replaced and taken out, and indexes put together.
//!
//! A change is a build whose passages come from the index itself: it writes a whole new generation and publishes it as a
//! build does, so that readers keep their snapshot, a crash leaves the old state or the new one, and the result is the index
//! that a build of the same passages in the same order would have made. What takes the time of a build, encoding, is done
//! only for what is new; the rest, the graph above all, is done for everything and takes up to a minute a hundred thousand
//! passages (benches/README.md).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Index;
use super::manifest::Manifest;
use super::writer::{self, BuildOptions, BuildReport, Encode, Source};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::types::{Passage, PassageId, document_of};

/// What a change did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChangeReport {
    /// Passages that came in.
    pub added: u64,
    /// Passages that went out, those of replaced documents included.
    pub removed: u64,
    /// The new generation.
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

/// Add the passages of `source`, which is gone through twice. `encode` makes the vectors of an index that has some.
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
    let index = Index::open(dir)?;
    let mut documents = BTreeSet::new();
    let mut added = 0;
    source(&mut |passage| {
        let document = document_of(&passage.key);
        if !documents.contains(document) {
            if known == Known::Refuse && !index.pieces_of(document)?.is_empty() {
                return Err(Error::request(
                    format!("the index has a document {document:?} already"),
                    "say --update to replace it, or give the new one another id",
                ));
            }
            documents.insert(document.to_owned());
        }
        added += 1;
        Ok(())
    })?;
    let mut removed = 0;
    let build = writer::build(
        dir,
        &mut |sink| {
            removed = stay(&index, &|key| !documents.contains(document_of(key)), sink)?;
            source(sink)
        },
        encode,
        &BuildOptions { overwrite: true, ..of(index.manifest(), options) },
        progress,
    )?;
    Ok(ChangeReport { added, removed, build })
}

/// Take out the documents and passages of these ids.
///
/// # Errors
/// As [`writer::build`]; [`Error::Request`] naming an id that the index does not have, or when nothing would be left.
pub fn delete(dir: &Path, ids: &[String], options: &BuildOptions, progress: &dyn Progress) -> Result<ChangeReport> {
    let index = Index::open(dir)?;
    let mut rows = BTreeSet::new();
    for id in ids {
        let pieces = index.pieces_of(id)?;
        if pieces.is_empty() {
            return Err(Error::request(
                format!("the index has no document or passage {id:?}; nothing was deleted"),
                "`nunatak search` shows the ids of passages",
            ));
        }
        rows.extend(pieces);
    }
    if rows.is_empty() {
        return Err(Error::request("there are no ids of what to take out", "give some"));
    }
    if rows.len() == index.len() {
        return Err(Error::request("that would leave no passage in the index", "remove its folder instead"));
    }
    let gone = rows.iter().map(|&row| index.key(row)).collect::<Result<BTreeSet<&str>>>()?;
    let mut encode = no_encoder(dir);
    let build = writer::build(
        dir,
        &mut |sink| stay(&index, &|key| !gone.contains(key), sink).map(drop),
        has_vectors(index.manifest()).then_some(&mut encode),
        &BuildOptions { overwrite: true, ..of(index.manifest(), options) },
        progress,
    )?;
    Ok(ChangeReport { added: 0, removed: rows.len() as u64, build })
}

/// Put the indexes `from` together, in their order, in a new one at `dir`.
///
/// # Errors
/// As [`writer::build`], also for two documents of one id; [`Error::Index`] when one was made by another encoder, or has
/// no vectors and another has.
pub fn merge(dir: &Path, from: &[PathBuf], options: &BuildOptions, progress: &dyn Progress) -> Result<ChangeReport> {
    let indexes = from.iter().map(|path| Index::open(path)).collect::<Result<Vec<Index>>>()?;
    let Some(first) = indexes.first() else {
        return Err(Error::request("there are no indexes to put together", "name them"));
    };
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
    let mut encode = no_encoder(dir);
    let build = writer::build(
        dir,
        &mut |sink| indexes.iter().try_for_each(|index| stay(index, &|_| true, sink).map(drop)),
        has_vectors(first.manifest()).then_some(&mut encode),
        &BuildOptions { vectors_from: from.to_vec(), ..of(first.manifest(), options) },
        progress,
    )?;
    Ok(ChangeReport { added: build.passages, removed: 0, build })
}

/// Give the passages whose keys `stays` wants to `sink`; how many it did not want.
fn stay(index: &Index, stays: &dyn Fn(&str) -> bool, sink: &mut dyn FnMut(Passage) -> Result<()>) -> Result<u64> {
    let mut removed = 0;
    for row in 0..index.len() {
        let row = PassageId(row as u32);
        if stays(index.key(row)?) {
            sink(index.passage(row)?)?;
        } else {
            removed += 1;
        }
    }
    Ok(removed)
}

/// The options that an index was built with, for the rest as `options` say.
fn of(manifest: &Manifest, options: &BuildOptions) -> BuildOptions {
    let mut options = BuildOptions {
        encoder: manifest.encoder.clone(),
        passage_words: manifest.corpus.passage_words,
        ..options.clone()
    };
    if let Some(graph) = &manifest.graph {
        (options.m, options.ef_construction, options.seed) = (graph.m, graph.ef_construction, graph.seed);
    }
    options
}

fn has_vectors(manifest: &Manifest) -> bool {
    manifest.encoder.is_some()
}

/// Where every vector is at hand, only one that cannot be read is asked for.
fn no_encoder(dir: &Path) -> impl FnMut(&[String]) -> Result<Vec<f32>> {
    let dir = dir.to_path_buf();
    move |_| {
        let hint = "`nunatak index verify` names the damaged file; build the index again";
        Err(Error::index(&dir, "a vector that should be taken over cannot be read", hint))
    }
}
