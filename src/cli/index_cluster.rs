//! `nunatak index build`, `merge`, `add`, `update`, `delete` and `info` where `--index` is a collection in a cluster.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::Globals;
use crate::cli::index::note_skipped;
use crate::cli::index_change::{KeptEncoder, encoder};
use crate::cli::output::{self, BOLD, DIM, GOOD};
use crate::corpus::{self, CorpusOptions, CorpusReport};
use crate::encode::Encoder;
use crate::error::{Error, Result};
use crate::index::Index;
use crate::index::change::{self, Known};
use crate::index::manifest::EncoderIdentity;
use crate::index::passages::Passages;
use crate::index::writer::{BuildOptions, Encode, Source};
use crate::milvus::fill::{self, ChangeReport, CorpusHash, FillOptions, FillReport};
use crate::milvus::{Address, Collection, VectorIndex};
use crate::progress::{Progress, Quiet, check_interrupt};
use crate::serve::workers::{Changed, Edit};
use crate::types::Passage;

/// Fill a collection, or a shard of it, and say how far it is.
pub fn build(
    address: &Address,
    source: &mut Source,
    encoder: Option<&mut Encoder>,
    options: &FillOptions,
    globals: &Globals,
) -> Result<()> {
    let progress = globals.progress();
    let mut encode = encoder.map(|encoder| |texts: &[String]| encoder.encode(texts));
    let encode = encode.as_mut().map(|encode| encode as &mut Encode);
    print_fill(address, fill::fill(address, source, encode, options, progress.as_ref())?, globals)
}

fn print_fill(address: &Address, report: FillReport, globals: &Globals) -> Result<()> {
    if globals.json {
        return output::json(&serde_json::json!({ "build": report }));
    }
    let FillReport { passages, kept, written, complete, shards, total, seconds } = report;
    output::line(format_args!(
        "{GOOD}{passages} passages{GOOD:#} in {address}: {written} written, {kept} were there, {} ({:.0} passages/s)",
        output::seconds(seconds),
        written as f64 / seconds.max(1e-9),
    ))?;
    match total {
        Some(total) if shards > 1 => {
            output::line(format_args!("{DIM}all {shards} shards are complete: {total} passages{DIM:#}"))?;
        }
        Some(_) => {}
        None => {
            return output::line(format_args!(
                "{complete} of {shards} shards are complete; it can be searched when all are"
            ));
        }
    }
    output::line(format_args!("next: nunatak ask \"your question\" --index {address}"))
}

/// Put indexes together in a collection: what has outgrown its machine moves, and nothing is encoded again.
pub fn merge(
    address: &Address,
    from: &[PathBuf],
    vectors: VectorIndex,
    overwrite: bool,
    globals: &Globals,
) -> Result<()> {
    let indexes = change::of_one_kind(from)?;
    let Some(first) = indexes.first().map(Index::manifest) else { return Ok(()) };
    let (mut hash, progress) = (CorpusHash::default(), globals.progress());
    let passages = indexes.iter().map(|index| index.len() as u64).sum();
    progress.start("reading", Some(passages), "passages");
    let mut read = |passage| {
        hash.add(&passage);
        progress.advance(1);
        check_interrupt(|| "nothing was changed".to_owned())
    };
    indexes.iter().try_for_each(|index| change::give(index, &mut read))?;
    progress.finish();
    let graph = first.segments.first().and_then(|segment| segment.graph.as_ref());
    let usual = BuildOptions::default();
    let options = FillOptions {
        encoder: first.encoder.clone(),
        analyser: first.analyser.clone(),
        passage_words: first.corpus.passage_words,
        corpus: hash.finish(),
        passages,
        shard: (1, 1),
        shard_passages: passages,
        m: graph.map_or(usual.m, |graph| graph.m),
        ef_construction: graph.map_or(usual.ef_construction, |graph| graph.ef_construction),
        vectors,
        overwrite,
        vectors_from: from.to_vec(),
    };
    let mut no_encoder = change::no_encoder(from.first().map_or(Path::new(""), PathBuf::as_path));
    let encode = first.encoder.is_some().then_some(&mut no_encoder as &mut Encode);
    let mut source =
        |sink: &mut dyn FnMut(Passage) -> Result<()>| indexes.iter().try_for_each(|index| change::give(index, sink));
    print_fill(address, fill::fill(address, &mut source, encode, &options, progress.as_ref())?, globals)
}

/// Add documents to a collection.
pub fn add(address: &Address, files: &[PathBuf], skip_bad: u64, known: Known, globals: &Globals) -> Result<()> {
    let progress = globals.progress();
    let collection = Collection::open(address)?;
    let open = |identity| encoder(address.to_string().as_ref(), identity, globals, progress.as_ref());
    let mut encoder = collection.encoder().map(open).transpose()?;
    let options = CorpusOptions { passage_words: collection.passage_words(), skip_bad };
    let mut read = CorpusReport::default();
    let mut source = |sink: &mut dyn FnMut(Passage) -> Result<()>| -> Result<()> {
        read = corpus::read(files, &options, sink)?;
        Ok(())
    };
    let report = put(&collection, &mut source, known, encoder.as_mut(), progress.as_ref())?;
    note_skipped(&read, progress.as_ref());
    print(address, &report, globals)
}

fn put(
    collection: &Collection,
    source: &mut Source,
    known: Known,
    encoder: Option<&mut Encoder>,
    progress: &dyn Progress,
) -> Result<ChangeReport> {
    let mut encode = encoder.map(|encoder| |texts: &[String]| encoder.encode(texts));
    fill::add(collection, source, known, encode.as_mut().map(|encode| encode as &mut Encode), progress)
}

/// Take documents out of a collection.
pub fn delete(address: &Address, ids: &[String], globals: &Globals) -> Result<()> {
    let report = fill::delete(&Collection::open(address)?, ids)?;
    print(address, &report, globals)
}

/// A change that came over HTTP.
pub fn edit(address: &Address, edit: Edit, kept: &mut KeptEncoder, globals: &Globals) -> Result<Changed> {
    let collection = Collection::open(address)?;
    let report = match edit {
        Edit::Put { lines, known } => {
            let encoder = kept.of(address.to_string().as_ref(), collection.encoder(), globals)?;
            let options = CorpusOptions { passage_words: collection.passage_words(), skip_bad: 0 };
            let mut source = |sink: &mut dyn FnMut(Passage) -> Result<()>| {
                corpus::read_records("passages", &lines, &options, sink).map(drop)
            };
            put(&collection, &mut source, known, encoder, &Quiet)?
        }
        Edit::Delete { id } => fill::delete(&collection, &[id])?,
    };
    let ChangeReport { added, removed, passages } = report;
    Ok(Changed { added, removed, passages, checksum: collection.identity()?.checksum })
}

fn print(address: &Address, report: &ChangeReport, globals: &Globals) -> Result<()> {
    if globals.json {
        return output::json(report);
    }
    let ChangeReport { added, removed, passages } = report;
    output::line(format_args!("{GOOD}{added} passages added, {removed} removed{GOOD:#}: {passages} in {address}"))
}

/// What `index info` prints of a collection.
#[derive(Debug, Serialize)]
struct Info<'a> {
    path: String,
    checksum: String,
    passages: u64,
    encoder: Option<&'a EncoderIdentity>,
    passage_words: usize,
    fields: Vec<&'a str>,
}

/// Run `nunatak index info`.
pub fn info(address: &Address, globals: &Globals) -> Result<()> {
    let collection = Collection::open(address)?;
    let identity = collection.identity()?;
    let fields: Vec<&str> = collection.fields().iter().map(String::as_str).collect();
    let (encoder, passage_words) = (collection.encoder(), collection.passage_words());
    if globals.json {
        let (path, checksum, passages) = (identity.place, identity.checksum, identity.passages);
        return output::json(&Info { path, checksum, passages, encoder, passage_words, fields });
    }
    let row = |word: &str, value: String| output::line(format_args!("{DIM}{word:<12}{DIM:#} {value}"));
    output::line(format_args!("{BOLD}{address}{BOLD:#}"))?;
    row("passages", identity.passages.to_string())?;
    row("split", output::split(passage_words))?;
    row(
        "vectors",
        encoder.map_or_else(|| "none (BM25 only)".to_owned(), |e| format!("{} numbers, by {}", e.dim, e.name)),
    )?;
    row("words", collection.analyser().to_string())?;
    if !fields.is_empty() {
        row("fields", format!("{} (for --filter)", fields.join(", ")))?;
    }
    row("checksum", identity.checksum)
}

/// Refuse a kind of index over vectors for a folder.
///
/// # Errors
/// [`Error::Request`] if one is given.
pub fn refuse_vector_index(given: Option<VectorIndex>) -> Result<()> {
    match given {
        None => Ok(()),
        Some(kind) => Err(Error::request(
            format!(
                "--vector-index {kind}: an index in a folder has one kind, a graph over 8-bit integers on the disk"
            ),
            "leave the option out, or build a collection: --index milvus://host:port/collection",
        )),
    }
}
