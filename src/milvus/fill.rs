//! Writing into a collection: built by one process or by many at once, added to, and taken from.
//!
//! Every write is an upsert by the passage's id, so that doing it twice does the same as once: a build that was stopped, or
//! whose machine died, is run again, asks the collection which of its passages are there as they should be, and encodes and
//! writes the others. Nobody reads a collection before all its shards are complete ([`super::Collection::open`]).

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use milvus::v2::prelude::{DeleteRequest, EntityRow};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::address::{Address, Consistency};
use super::collection::Collection;
use super::connection::{Connection, MOST_ROWS};
use super::filter::among;
use super::layout::{self, DIGEST, DOCUMENT, KEY, Shape};
use super::ledger::{self, FORMAT, Ledger, Made, Shard};
use super::vector_index::VectorIndex;
use crate::error::{Error, Result};
use crate::index::change::{Known, is_split, unknown_document};
use crate::index::lexical::{Analyser, Bm25, Terms};
use crate::index::manifest::EncoderIdentity;
use crate::index::previous::Previous;
use crate::index::writer::{Encode, Source};
use crate::progress::{Progress, check_interrupt};
use crate::types::{Passage, document_of};

/// Passages that are encoded and written at a time. With their vectors they are well below the 4 MB that a call may have.
const BATCH: usize = 256;
/// Bytes of text of a batch, at most.
const BATCH_BYTES: usize = 1 << 20;
/// How long a write goes on against a server that does not answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a shard is looked through for passages that the server lost.
const PASSES: usize = 3;
/// Ids of an expression: far below what a server parses, and what it gives for them below the rows of an answer.
const IDS: usize = 64;

/// How a collection is built.
#[derive(Debug, Clone)]
pub struct FillOptions {
    /// What makes the vectors; with an `encode` function and only then.
    pub encoder: Option<EncoderIdentity>,
    /// What makes the words.
    pub analyser: Analyser,
    /// Words a passage was split to.
    pub passage_words: usize,
    /// Hash of the whole corpus ([`CorpusHash`]).
    pub corpus: String,
    /// Passages in the whole corpus.
    pub passages: u64,
    /// The shard that is written, from 1, of how many.
    pub shard: (u64, u64),
    /// Passages of the shard.
    pub shard_passages: u64,
    /// Links of a graph node.
    pub m: usize,
    /// Candidates while the graph is built.
    pub ef_construction: usize,
    /// What the cluster makes of the vectors.
    pub vectors: VectorIndex,
    /// Drop a collection that is there before.
    pub overwrite: bool,
    /// Indexes whose vectors of the same passages are taken over.
    pub vectors_from: Vec<PathBuf>,
}

/// What a build did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FillReport {
    /// Passages of this shard.
    pub passages: u64,
    /// Of these, how many were there already.
    pub kept: u64,
    /// Of these, how many were written.
    pub written: u64,
    /// Shards that are complete now.
    pub complete: u64,
    /// Of how many.
    pub shards: u64,
    /// Passages in the collection, once all shards are complete.
    pub total: Option<u64>,
    /// Seconds it took.
    pub seconds: f64,
}

/// What a change did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ChangeReport {
    /// Passages that came in.
    pub added: u64,
    /// Passages that went out, those of replaced documents included.
    pub removed: u64,
    /// Passages that are there now.
    pub passages: u64,
}

/// A hash of passages in their order, by which builds of shards know that they have the same corpus.
#[derive(Debug, Clone, Default)]
pub struct CorpusHash(Sha256);

impl CorpusHash {
    /// With this passage behind the others.
    pub fn add(&mut self, passage: &Passage) {
        for text in [&passage.key, &passage.title, &passage.text] {
            self.0.update((text.len() as u64).to_le_bytes());
            self.0.update(text);
        }
    }

    /// Of those that were added.
    pub fn finish(self) -> String {
        crate::digest::short_hex(&self.0.finalize())
    }
}

/// Fail unless a server answers there: before a corpus is read for minutes.
///
/// # Errors
/// [`Error::Index`].
pub fn reach(address: &Address) -> Result<()> {
    Connection::open(address).map(drop)
}

/// Fill a collection, or a shard of it, from the passages of `source`.
///
/// # Errors
/// [`Error::Index`] when no server answers or a collection is there that was made otherwise; [`Error::Request`] for two
/// passages of one id, or one that is too long; [`Error::Interrupted`] on Ctrl-C. What was written stays, and the same
/// call goes on behind it.
pub fn fill(
    address: &Address,
    source: &mut Source,
    mut encode: Option<&mut Encode>,
    options: &FillOptions,
    progress: &dyn Progress,
) -> Result<FillReport> {
    let begin = Instant::now();
    let connection = Connection::open(address)?.with_patience(PATIENCE);
    let ledger = Ledger::of(&connection);
    let made = prepare(&connection, &ledger, options)?;
    let (number, shards) = options.shard;
    let mut shard = Shard { number, complete: false, fields: BTreeSet::new() };
    // A shard that was complete stays so while it is looked through again.
    let was = ledger.shards()?.into_iter().find(|was| was.number == number);
    if was.as_ref().is_none_or(|was| !was.complete) {
        ledger.mark(&shard)?;
    }
    let previous = made.encoder.as_ref().and_then(|encoder| {
        let (first, others) = options.vectors_from.split_first()?;
        Some(Previous::open(first, others, encoder))
    });
    let mut terms = Terms::new(&made.analyser);
    let mut known = HashSet::new();
    let mut look = |passage: &Passage| {
        if !known.insert(hash(&passage.key)) {
            return Err(Error::request(
                format!("two passages have the id {:?}", passage.key),
                "give every document of the corpus an id of its own",
            ));
        }
        shard.fields.extend(layout::fields(passage).into_iter().map(|(name, _)| name));
        Ok(())
    };
    let mut pass = |doing, look: &mut dyn FnMut(&Passage) -> Result<()>| {
        progress.start(doing, Some(options.shard_passages), "passages");
        let (mut kept, mut written) = (0, 0);
        writing(&connection, |send| {
            in_batches(source, look, &mut |passages| {
                let count = passages.len() as u64;
                let new = changed(&connection, passages)?;
                kept += count - new.len() as u64;
                written += new.len() as u64;
                send(rows(&new, &mut terms, previous.as_ref(), encode.as_deref_mut())?)?;
                progress.advance(count);
                check_interrupt(|| "what was written is kept; the same command goes on".to_owned())
            })
        })?;
        progress.finish();
        connection.flush(&address.collection)?;
        Ok::<_, Error>((kept, written))
    };
    let (kept, written) = pass("filling", &mut look)?;
    let mut report = FillReport { passages: kept + written, kept, written, shards, ..FillReport::default() };
    // Where other shards are counted too, only a pass over this one tells.
    let all_there = || {
        let counted = || connection.count(&address.collection, "", Consistency::Strong);
        Ok::<_, Error>(shards == 1 && counted()? >= made.passages)
    };
    settle(&connection, written, all_there, || Ok(pass("checking", &mut |_| Ok(()))?.1))?;
    shard.complete = true;
    ledger.mark(&shard)?;
    report.complete = ledger.shards()?.iter().filter(|shard| shard.complete && shard.number > 0).count() as u64;
    if report.complete == shards {
        let total = connection.count(&address.collection, "", Consistency::Strong)?;
        report.total = Some(total);
        if total < made.passages {
            return Err(connection.error(
                format!("it holds {total} passages where the corpus has {}: some ids are there twice", made.passages),
                "give every document of the corpus an id of its own, and build again with --overwrite",
            ));
        }
    }
    report.seconds = begin.elapsed().as_secs_f64();
    Ok(report)
}

/// Look for what of `written` rows a server lost, and have that written `again`, which says how many it were.
///
/// A server that dies can lose rows that it had taken. It is believed when it counts as many as there are, or when a pass over
/// all of them finds none that is missing.
fn settle(
    connection: &Connection,
    written: u64,
    all_there: impl Fn() -> Result<bool>,
    mut again: impl FnMut() -> Result<u64>,
) -> Result<()> {
    let mut lost = written;
    for _ in 0..PASSES {
        if lost == 0 || all_there()? {
            return Ok(());
        }
        lost = again()?;
    }
    if lost == 0 || all_there()? {
        return Ok(());
    }
    Err(connection.error(
        format!("of the passages that the server took, {lost} were not there afterwards, {PASSES} times over"),
        "see why the server loses what it was given; then the same command goes on, `index add` with --update",
    ))
}

/// Have the collection there, made as it should be.
fn prepare(connection: &Connection, ledger: &Ledger, options: &FillOptions) -> Result<Made> {
    let bm25 = if options.encoder.is_some() { Bm25::BESIDE_VECTORS } else { Bm25::default() };
    let wanted = Made {
        format: FORMAT,
        encoder: options.encoder.clone(),
        analyser: options.analyser.clone(),
        passage_words: options.passage_words,
        corpus: options.corpus.clone(),
        passages: options.passages,
        shards: options.shard.1,
        bm25: (bm25.k1, bm25.b),
        vectors: options.vectors,
    };
    let name = &connection.address().collection;
    if options.overwrite {
        connection.drop(name)?;
        connection.drop(ledger.name())?;
    }
    if !ledger.exists()? && connection.has(name)? {
        return Err(connection.error(
            "there is a collection of this name that nunatak did not make",
            "choose another name, or add --overwrite to drop it",
        ));
    }
    ledger.create()?;
    if ledger.made()?.is_none() {
        ledger.make(&wanted)?;
    }
    // Read again: another shard's process may have said it at the same time, and otherwise.
    let made = ledger.made()?.unwrap_or_else(|| wanted.clone());
    if made != wanted {
        return Err(connection.error(
            format!("it is there already, {}", difference(&made, &wanted)),
            "choose another name, add documents with `nunatak index add`, or add --overwrite to drop it",
        ));
    }
    let dim = made.encoder.as_ref().map_or(0, |encoder| encoder.dim);
    let (m, ef_construction) = (options.m, options.ef_construction);
    let shape = Shape { dim, m, ef_construction, vectors: made.vectors, bm25: made.bm25 };
    ledger::create(connection, name, layout::schema(shape), layout::indexes(shape))?;
    Ok(made)
}

/// What is another in a collection than it should be.
fn difference(made: &Made, wanted: &Made) -> String {
    let name = |made: &Made| match &made.encoder {
        Some(encoder) => format!("{} ({})", encoder.name, encoder.fingerprint.get(..8).unwrap_or_default()),
        None => "no encoder".to_owned(),
    };
    if made.encoder != wanted.encoder {
        format!("with vectors by {}, where {} is asked for", name(made), name(wanted))
    } else if made.analyser != wanted.analyser {
        format!("with other words ({}, where {} is asked for)", made.analyser, wanted.analyser)
    } else if made.vectors != wanted.vectors {
        format!("with vectors in {}, where {} is asked for", made.vectors, wanted.vectors)
    } else if made.bm25 != wanted.bm25 {
        let told = |(k1, b): (f32, f32)| format!("k1 {k1} and b {b}");
        format!("with BM25's {}, where {} are used now", told(made.bm25), told(wanted.bm25))
    } else if made.shards != wanted.shards {
        format!("built in {} shards, not in {}", made.shards, wanted.shards)
    } else {
        "built from another corpus, or one that was split otherwise".to_owned()
    }
}

/// Run `work` with a function that has rows written behind its back, one batch while the next is made.
fn writing(
    connection: &Connection,
    work: impl FnOnce(&mut dyn FnMut(Vec<EntityRow>) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let (sender, receiver) = sync_channel::<Vec<EntityRow>>(1);
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || write(connection, &receiver));
        let done = work(&mut |rows| {
            // The writer is gone only after an error, which is looked at below.
            sender.send(rows).map_err(|_| Error::Internal { doing: "writing", message: "the writer stopped".into() })
        });
        drop(sender);
        let written = writer
            .join()
            .map_err(|_| Error::Internal { doing: "writing passages", message: "the thread panicked".into() })?;
        written.and(done)
    })
}

fn write(connection: &Connection, batches: &Receiver<Vec<EntityRow>>) -> Result<()> {
    for rows in batches {
        if !rows.is_empty() {
            connection.upsert(&connection.address().collection, &rows)?;
        }
    }
    Ok(())
}

/// Have every passage of a source looked at, and put in batches that are small enough for a call.
fn in_batches(
    source: &mut Source,
    look: &mut dyn FnMut(&Passage) -> Result<()>,
    put: &mut dyn FnMut(Vec<Passage>) -> Result<()>,
) -> Result<()> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    source(&mut |passage| {
        look(&passage)?;
        bytes += passage.text.len() + passage.title.len();
        batch.push(passage);
        if batch.len() < BATCH && bytes < BATCH_BYTES {
            return Ok(());
        }
        bytes = 0;
        put(std::mem::take(&mut batch))
    })?;
    if batch.is_empty() { Ok(()) } else { put(batch) }
}

/// Those of the passages that the collection does not have, or has otherwise.
fn changed(connection: &Connection, passages: Vec<Passage>) -> Result<Vec<Passage>> {
    let these = among(KEY, passages.iter().map(|passage| passage.key.as_str()));
    let rows = connection.query(&connection.address().collection, &these, &[KEY, DIGEST], Consistency::Strong)?;
    let there: HashSet<(&str, &str)> =
        rows.iter().filter_map(|row| Some((row.get(KEY)?.as_str()?, row.get(DIGEST)?.as_str()?))).collect();
    let mut new = Vec::new();
    for passage in passages {
        if !there.contains(&(passage.key.as_str(), layout::digest(&passage)?.as_str())) {
            new.push(passage);
        }
    }
    Ok(new)
}

/// Passages as rows, with vectors that `previous` has or `encode` makes.
fn rows(
    passages: &[Passage],
    terms: &mut Terms,
    previous: Option<&Previous>,
    encode: Option<&mut Encode>,
) -> Result<Vec<EntityRow>> {
    let Some(encode) = encode else {
        return passages.iter().map(|passage| layout::row(passage, terms, None)).collect();
    };
    let taken = |passage: &Passage| Some(previous?.vector(passage)?.iter().map(|half| half.to_f32()).collect());
    let taken: Vec<Option<Vec<f32>>> = passages.iter().map(taken).collect();
    let missing = || passages.iter().zip(&taken).filter(|(_, vector)| vector.is_none()).map(|(passage, _)| passage);
    let texts: Vec<String> = missing().map(Passage::titled_text).collect();
    let encoded = if texts.is_empty() { Vec::new() } else { encode(&texts)? };
    let dim = encoded.len() / texts.len().max(1);
    let mut encoded = encoded.chunks_exact(dim.max(1));
    let vectors: Vec<Option<&[f32]>> = taken.iter().map(|taken| taken.as_deref().or_else(|| encoded.next())).collect();
    passages.iter().zip(vectors).map(|(passage, vector)| layout::row(passage, terms, vector)).collect()
}

/// Enough of a hash that no two ids of a shard share it.
fn hash(key: &str) -> [u8; 16] {
    let digest = Sha256::digest(key);
    std::array::from_fn(|i| digest.get(i).copied().unwrap_or_default())
}

/// Add the passages of `source` to a complete collection. `encode` makes the vectors of one that has some.
///
/// # Errors
/// As [`fill`]; [`Error::Request`] naming the first document that is there already, when those are refused. What was
/// written before an error stays.
pub fn add(
    collection: &Collection,
    source: &mut Source,
    known: Known,
    mut encode: Option<&mut Encode>,
    progress: &dyn Progress,
) -> Result<ChangeReport> {
    let connection = &Connection::open(collection.connection().address())?.with_patience(PATIENCE);
    // All is looked at before anything is changed: a document that is refused, or a bad line, leaves the collection as it is.
    let (mut documents, mut keys, mut added) = (BTreeSet::new(), HashSet::new(), 0);
    let mut last = String::new();
    source(&mut |passage| {
        added += 1;
        let document = document_of(&passage.key);
        if is_split(&last, &passage.key) {
            documents.insert(document.to_owned());
        }
        // Further pieces are their document's.
        if document_of(&last) != document || !documents.contains(document) {
            documents.insert(passage.key.clone());
        }
        last.clone_from(&passage.key);
        keys.insert(passage.key);
        Ok(())
    })?;
    let documents: Vec<String> = documents.into_iter().collect();
    let there = keys_of(connection, &documents)?;
    if let (Known::Refuse, Some(first)) = (known, there.first()) {
        return Err(Error::Known { document: document_of(first).to_owned() });
    }
    let mut shard = Shard { number: 0, complete: true, fields: collection.fields().clone() };
    let mut terms = Terms::new(collection.analyser());
    progress.start("adding", Some(added), "passages");
    let mut look = |passage: &Passage| {
        shard.fields.extend(layout::fields(passage).into_iter().map(|(name, _)| name));
        Ok(())
    };
    let mut pass = |look: &mut dyn FnMut(&Passage) -> Result<()>, missing: bool| {
        let mut written = 0;
        writing(connection, |send| {
            in_batches(source, look, &mut |passages| {
                let count = passages.len() as u64;
                let passages = if missing { changed(connection, passages)? } else { passages };
                written += passages.len() as u64;
                send(rows(&passages, &mut terms, None, encode.as_deref_mut())?)?;
                progress.advance(count);
                check_interrupt(|| "what was written is kept; the same command goes on with --update".to_owned())
            })
        })?;
        progress.finish();
        connection.flush(&connection.address().collection)?;
        Ok::<_, Error>(written)
    };
    let written = pass(&mut look, false)?;
    settle(
        connection,
        written,
        || Ok(false),
        || {
            progress.start("checking", Some(added), "passages");
            pass(&mut |_| Ok(()), true)
        },
    )?;
    // What is new stands; now what it replaced, and does not have again, goes.
    let gone: Vec<String> = there.iter().filter(|key| !keys.contains(*key)).cloned().collect();
    remove(connection, &gone)?;
    connection.flush(&connection.address().collection)?;
    if shard.fields != *collection.fields() {
        Ledger::of(connection).mark(&shard)?;
    }
    let passages = connection.count(&connection.address().collection, "", Consistency::Strong)?;
    Ok(ChangeReport { added, removed: there.len() as u64, passages })
}

/// Take the documents and passages of these ids out.
///
/// # Errors
/// [`Error::Request`] naming an id that is not there; then nothing was deleted.
pub fn delete(collection: &Collection, ids: &[String]) -> Result<ChangeReport> {
    let connection = &Connection::open(collection.connection().address())?.with_patience(PATIENCE);
    let mut gone = BTreeSet::new();
    for id in ids {
        let keys = keys_of(connection, std::slice::from_ref(id))?;
        if keys.is_empty() {
            return Err(unknown_document(id));
        }
        gone.extend(keys);
    }
    let gone: Vec<String> = gone.into_iter().collect();
    remove(connection, &gone)?;
    connection.flush(&connection.address().collection)?;
    let passages = connection.count(&connection.address().collection, "", Consistency::Strong)?;
    Ok(ChangeReport { added: 0, removed: gone.len() as u64, passages })
}

/// The ids of the passages that these documents are, or were split into.
fn keys_of(connection: &Connection, documents: &[String]) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    let mut asked: Vec<&[String]> = documents.chunks(IDS).collect();
    while let Some(some) = asked.pop() {
        let ids = || some.iter().map(String::as_str);
        let filter = format!("{} or {}", among(DOCUMENT, ids()), among(KEY, ids()));
        let rows = connection.query(&connection.address().collection, &filter, &[KEY], Consistency::Strong)?;
        // An answer that is full may have left some out.
        match some {
            [one] if rows.len() as i64 >= MOST_ROWS => {
                let problem =
                    format!("{one} has {MOST_ROWS} passages or more, and an answer of the server has no more");
                return Err(connection.error(problem, "take its passages out by their own ids"));
            }
            _ if rows.len() as i64 >= MOST_ROWS => {
                let (a, b) = some.split_at(some.len() / 2);
                asked.extend([a, b]);
                continue;
            }
            _ => {}
        }
        keys.extend(rows.into_iter().filter_map(|row| row.get(KEY)?.as_str().map(str::to_owned)));
    }
    Ok(keys)
}

fn remove(connection: &Connection, keys: &[String]) -> Result<()> {
    for some in keys.chunks(IDS) {
        let filter = among(KEY, some.iter().map(String::as_str));
        connection.insist(|| async {
            let request = DeleteRequest::builder()
                .collection_name(connection.address().collection.as_str())
                .filter(filter.as_str());
            connection.client().delete(request.build()?).await
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    #[test]
    fn a_corpus_is_its_passages_in_order() {
        let passage = |key: &str, text: &str| Passage {
            key: key.into(),
            title: String::new(),
            text: text.into(),
            source: crate::types::SourceSpan::default(),
            metadata: Map::new(),
        };
        let hash = |passages: &[Passage]| {
            let mut hash = CorpusHash::default();
            passages.iter().for_each(|passage| hash.add(passage));
            hash.finish()
        };
        let (a, b) = (passage("a", "bc"), passage("b", "c"));
        assert_eq!(hash(&[a.clone(), b.clone()]), hash(&[a.clone(), b.clone()]));
        assert_ne!(hash(&[a.clone(), b.clone()]), hash(&[b, a.clone()]));
        // No letter moves from one field to the next unseen.
        assert_ne!(hash(&[a]), hash(&[passage("ab", "c")]));
    }
}
