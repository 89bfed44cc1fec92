//! The first stage over a collection in a cluster: searched there, fused here.

use std::collections::HashSet;
use std::sync::Arc;

use super::hybrid::Fusion;
use super::{Mode, Parts, Retriever};
use crate::error::Result;
use crate::filter::Filter;
use crate::index::allowed::Allowed;
use crate::index::lexical::Terms;
use crate::milvus::{Collection, Found};
use crate::types::{Hit, sort_hits};

/// Words, meaning or both, asked of a [`Collection`].
pub struct MilvusRetriever<E> {
    collection: Arc<Collection>,
    mode: Mode,
    fusion: Fusion,
    candidates: usize,
    encode: E,
    terms: Terms,
    only: String,
    parts: Parts,
}

impl<E: FnMut(&str) -> Result<Vec<f32>>> MilvusRetriever<E> {
    /// Search a collection with questions that `encode` turns into unit vectors of its encoder; it is not asked in
    /// [`Mode::Bm25`]. Hybrid fuses the best `candidates` (at least the depth asked for) of each side.
    pub fn new(collection: Arc<Collection>, mode: Mode, fusion: Fusion, candidates: usize, encode: E) -> Self {
        let terms = Terms::new(collection.analyser());
        Self { collection, mode, fusion, candidates, encode, terms, only: String::new(), parts: Parts::default() }
    }

    fn words(&mut self, question: &str, depth: usize) -> Result<Found> {
        self.collection.by_words(&self.terms.of_question(question), depth, &self.only)
    }

    fn hybrid(&mut self, question: &str, depth: usize) -> Result<Vec<Hit>> {
        let candidates = self.candidates.max(depth);
        let words = self.words(question, candidates)?;
        let vector = (self.encode)(question)?;
        let near = self.collection.by_vector(&vector, candidates, &self.only)?;
        let missing = match self.fusion {
            Fusion::Rrf => Found::default(),
            // The cosine of a passage that only BM25 found is not unknown: the cluster has its vector.
            Fusion::Convex(_) => {
                let found: HashSet<&str> = near.passages.iter().map(|(passage, _)| passage.key.as_str()).collect();
                let keys = words.passages.iter().map(|(passage, _)| passage.key.as_str());
                let missing: Vec<&str> = keys.filter(|key| !found.contains(key)).collect();
                self.collection.cosines(&vector, &missing, &self.only)?
            }
        };
        let meaning = self.collection.hits(near);
        let words = self.collection.hits(words);
        self.parts = Parts { words, meaning, cosines: self.collection.hits(missing) };
        Ok(self.fusion.fuse(&self.parts, depth))
    }
}

impl<E: FnMut(&str) -> Result<Vec<f32>> + Send> Retriever for MilvusRetriever<E> {
    fn retrieve(&mut self, question: &str, depth: usize, _only: Option<&Arc<Allowed>>) -> Result<Vec<Hit>> {
        self.collection.begin_question();
        self.parts = Parts::default();
        if depth == 0 {
            return Ok(Vec::new());
        }
        let found = match self.mode {
            Mode::Hybrid => return self.hybrid(question, depth),
            Mode::Bm25 => self.words(question, depth)?,
            Mode::Dense => {
                let vector = (self.encode)(question)?;
                self.collection.by_vector(&vector, depth, &self.only)?
            }
        };
        let mut hits = self.collection.hits(found);
        sort_hits(&mut hits);
        match self.mode {
            Mode::Bm25 => self.parts.words.clone_from(&hits),
            Mode::Dense | Mode::Hybrid => self.parts.meaning.clone_from(&hits),
        }
        Ok(hits)
    }

    fn take_parts(&mut self) -> Parts {
        std::mem::take(&mut self.parts)
    }

    fn restrict(&mut self, filter: Option<&Filter>) -> Result<()> {
        self.only = filter.map(|filter| self.collection.expression(filter)).transpose()?.unwrap_or_default();
        Ok(())
    }
}
