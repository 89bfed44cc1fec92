//! A collection that is complete, to be searched and read.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use milvus::v2::prelude::{SearchRequest, SearchVectors};

use super::address::Address;
use super::connection::{Connection, built};
use super::filter::{among, expression, quoted};
use super::layout::{self, DOCUMENT, FIELDS, KEY, PASSAGE, SPARSE, VECTOR};
use super::ledger::{Ledger, Made};
use crate::error::{Error, Result};
use crate::filter::{Filter, unknown_field};
use crate::index::lexical::Analyser;
use crate::index::manifest::EncoderIdentity;
use crate::index::passages::{Identity, Passages};
use crate::types::{Hit, Passage, PassageId};

/// A collection, opened.
pub struct Collection {
    connection: Connection,
    made: Made,
    fields: BTreeSet<String>,
    /// Passages met since the last question, in the order of their ids.
    seen: Mutex<Seen>,
}

impl fmt::Debug for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collection").field("made", &self.made).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Seen {
    ids: HashMap<String, PassageId>,
    passages: Vec<Passage>,
}

impl Seen {
    fn id_of(&mut self, passage: Passage) -> PassageId {
        if let Some(&id) = self.ids.get(&passage.key) {
            return id;
        }
        let id = PassageId(self.passages.len() as u32);
        self.ids.insert(passage.key.clone(), id);
        self.passages.push(passage);
        id
    }
}

/// What one search found, best first, ties by corpus id.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Passages with their scores.
    pub passages: Vec<(Passage, f32)>,
}

impl Found {
    /// Ids of the passages in the corpus.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.passages.iter().map(|(passage, _)| passage.key.as_str())
    }
}

impl Collection {
    /// Open what is at an address.
    ///
    /// # Errors
    /// [`Error::Index`] if no server answers, there is no such collection, nunatak did not make it, or it is not filled yet.
    pub fn open(address: &Address) -> Result<Self> {
        let connection = Connection::open(address)?;
        if !connection.has(&address.collection)? {
            return Err(connection.error(
                "there is no such collection",
                format!("build it: nunatak index build --index {address} --corpus FILES"),
            ));
        }
        let ledger = Ledger::of(&connection);
        let made = if ledger.exists()? { ledger.made()? } else { None };
        let Some(made) = made else {
            return Err(connection.error(
                format!("nunatak did not make this collection: it finds no record of it in {}", ledger.name()),
                "build one under another name",
            ));
        };
        let shards = ledger.shards()?;
        let complete: BTreeSet<u64> = shards.iter().filter(|s| s.complete).map(|s| s.number).collect();
        let missing: Vec<String> =
            (1..=made.shards).filter(|n| !complete.contains(n)).take(10).map(|n| n.to_string()).collect();
        if let Some(first) = missing.first() {
            let again = match made.shards {
                1 => "run the same `nunatak index build` again: it goes on where it was".to_owned(),
                all => format!("run `nunatak index build --shard {first}/{all}` again: it goes on where it was"),
            };
            let (filled, all) = (complete.len(), made.shards);
            let problem =
                format!("it is half filled: {filled} of {all} shards are complete, missing {}", missing.join(", "));
            return Err(connection.error(problem, again));
        }
        connection.load(&address.collection)?;
        let fields = shards.into_iter().flat_map(|shard| shard.fields).collect();
        Ok(Self { connection, made, fields, seen: Mutex::default() })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        self.connection.address()
    }

    /// What makes its vectors, if it has some.
    pub fn encoder(&self) -> Option<&EncoderIdentity> {
        self.made.encoder.as_ref()
    }

    /// What makes its words.
    pub fn analyser(&self) -> &Analyser {
        &self.made.analyser
    }

    /// Words a passage was split to; 0 for whole texts.
    pub fn passage_words(&self) -> usize {
        self.made.passage_words
    }

    /// Fields that a filter can name.
    pub fn fields(&self) -> &BTreeSet<String> {
        &self.fields
    }

    /// Passages in it that meet a filter.
    pub fn count(&self, filter: Option<&Filter>) -> Result<u64> {
        let expression = filter.map(|filter| self.expression(filter)).transpose()?.unwrap_or_default();
        self.connection.count(&self.address().collection, &expression, self.address().consistency)
    }

    /// A filter as an expression of Milvus, for [`Self::by_words`] and [`Self::by_vector`].
    ///
    /// # Errors
    /// [`Error::Request`] for a field that no passage has.
    pub fn expression(&self, filter: &Filter) -> Result<String> {
        let unknown = |fields: &BTreeSet<String>| filter.conditions.iter().find(|c| !fields.contains(&c.field));
        if unknown(&self.fields).is_some() {
            // What was added since this was opened may have further ones.
            let shards = Ledger::of(&self.connection).shards()?;
            let fields: BTreeSet<String> = shards.into_iter().flat_map(|shard| shard.fields).collect();
            if let Some(condition) = unknown(&fields) {
                let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
                return Err(unknown_field(&condition.field, &fields.join(", ")));
            }
        }
        Ok(expression(filter, FIELDS))
    }

    /// The best passages by BM25 for these terms.
    pub fn by_words(&self, terms: &[String], depth: usize, only: &str) -> Result<Found> {
        if terms.is_empty() {
            return Ok(Found::default());
        }
        self.search(SPARSE, SearchVectors::EmbeddedText(vec![terms.join(" ")]), depth, only, None)
    }

    /// The passages nearest to a vector, with their cosines.
    pub fn by_vector(&self, vector: &[f32], depth: usize, only: &str) -> Result<Found> {
        let width = self.made.vectors.width(depth);
        self.search(VECTOR, SearchVectors::Float(vec![vector.to_vec()]), depth, only, Some(width))
    }

    /// The cosines of passages to a vector.
    pub fn cosines(&self, vector: &[f32], keys: &[&str]) -> Result<Found> {
        if keys.is_empty() {
            return Ok(Found::default());
        }
        self.by_vector(vector, keys.len(), &among(KEY, keys.iter().copied()))
    }

    /// BM25 of passages for these terms, of those that have one of them.
    pub fn scores(&self, terms: &[String], keys: &[&str]) -> Result<Found> {
        if keys.is_empty() {
            return Ok(Found::default());
        }
        self.by_words(terms, keys.len(), &among(KEY, keys.iter().copied()))
    }

    fn search(
        &self,
        field: &str,
        what: SearchVectors,
        depth: usize,
        only: &str,
        width: Option<(String, String)>,
    ) -> Result<Found> {
        let address = self.address();
        let request = SearchRequest::builder()
            .collection_name(address.collection.as_str())
            .vector_field(field)
            .vectors(what)
            .filter(only)
            .output_fields(PASSAGE)
            .limit(depth as i64)
            .extra_params(width.into_iter().collect())
            .consistency_level(address.consistency.level());
        let request = built(request.build())?;
        let said = self.connection.read(&address.collection, || self.connection.client().search(request.clone()))?;
        let mut passages = Vec::new();
        for result in said.results() {
            let rows = result.get_output_rows().map_err(|reply| self.unread(reply))?;
            for (row, &score) in rows.into_iter().zip(result.get_scores()) {
                // Milvus Lite gives BM25 as a distance, below zero; Milvus as a score, above.
                let score = if field == SPARSE { score.abs() } else { score };
                passages.push((layout::passage(row).ok_or_else(|| self.unread("a row is no passage"))?, score));
            }
        }
        passages.sort_by(|(a, x), (b, y)| y.total_cmp(x).then_with(|| a.key.cmp(&b.key)));
        Ok(Found { passages })
    }

    fn unread(&self, problem: impl fmt::Display) -> Error {
        self.connection.error(format!("what the server answers cannot be read: {problem}"), "which version is it?")
    }

    /// Forget the passages of the question before: ids begin anew.
    pub fn begin_question(&self) {
        *self.seen() = Seen::default();
    }

    /// Ids for what was found, in its order.
    pub fn hits(&self, found: Found) -> Vec<Hit> {
        let mut seen = self.seen();
        found.passages.into_iter().map(|(passage, score)| Hit { passage: seen.id_of(passage), score }).collect()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Passages for Collection {
    fn identity(&self) -> Result<Identity> {
        Ok(Identity {
            place: self.address().to_string(),
            checksum: self.made.checksum()?,
            passages: self.count(None)?,
            encoder: self.made.encoder.clone(),
        })
    }

    fn is_current(&self) -> Result<bool> {
        let ledger = Ledger::of(&self.connection);
        Ok(ledger.exists()? && ledger.made()?.as_ref() == Some(&self.made))
    }

    fn passage(&self, id: PassageId) -> Result<Passage> {
        self.seen().passages.get(id.row()).cloned().ok_or_else(|| Error::Internal {
            doing: "reading a passage",
            message: format!("there is no passage {} of this question", id.0),
        })
    }

    fn row_of(&self, key: &str) -> Result<Option<PassageId>> {
        if let Some(&id) = self.seen().ids.get(key) {
            return Ok(Some(id));
        }
        let address = self.address();
        let rows = self.connection.query(&address.collection, &among(KEY, [key]), &PASSAGE, address.consistency)?;
        let Some(row) = rows.into_iter().next() else { return Ok(None) };
        let passage = layout::passage(row).ok_or_else(|| self.unread("a row is no passage"))?;
        Ok(Some(self.seen().id_of(passage)))
    }

    fn pieces_of(&self, document: &str) -> Result<Vec<PassageId>> {
        let address = self.address();
        let name = quoted(document);
        let only = format!("{DOCUMENT} == {name} or {KEY} == {name}");
        let rows = self.connection.query(&address.collection, &only, &PASSAGE, address.consistency)?;
        let mut pieces = rows
            .into_iter()
            .map(|row| layout::passage(row).ok_or_else(|| self.unread("a row is no passage")))
            .collect::<Result<Vec<Passage>>>()?;
        // `id#10` behind `id#9`.
        pieces.sort_by(|a, b| a.key.len().cmp(&b.key.len()).then_with(|| a.key.cmp(&b.key)));
        let mut seen = self.seen();
        Ok(pieces.into_iter().map(|passage| seen.id_of(passage)).collect())
    }
}
