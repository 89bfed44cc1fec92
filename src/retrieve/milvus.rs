//! The first stage over a collection in a cluster: searched there, fused here.

use std::sync::Arc;

use super::hybrid::{Candidates, Fusion};
use super::{Mode, Pairs, Parts, Retriever, fuse};
use crate::error::Result;
use crate::filter::Filter;
use crate::index::allowed::Allowed;
use crate::index::lexical::{Stems, Terms};
use crate::milvus::{Collection, Found};
use crate::types::{Hit, sort_hits};

/// Words, meaning or both, asked of a [`Collection`].
pub struct MilvusRetriever<E> {
    collection: Arc<Collection>,
    mode: Mode,
    fusion: Fusion,
    candidates: Candidates,
    encode: E,
    terms: Terms,
    stems: Stems,
    only: String,
    parts: Parts,
}

impl<E: FnMut(&str) -> Result<Vec<f32>>> MilvusRetriever<E> {
    /// Search a collection with questions that `encode` turns into unit vectors of its encoder; it is not asked in
    /// [`Mode::Bm25`]. Hybrid fuses the best `candidates` of each side, as at home.
    pub fn new(
        collection: Arc<Collection>,
        mode: Mode,
        fusion: Fusion,
        candidates: impl Into<Candidates>,
        encode: E,
    ) -> Self {
        let candidates = candidates.into();
        let (terms, stems) = (Terms::new(collection.analyser()), Stems::new(collection.analyser()));
        Self {
            collection,
            mode,
            fusion,
            candidates,
            encode,
            terms,
            stems,
            only: String::new(),
            parts: Parts::default(),
        }
    }

    /// What each of these passages has of the question's pairs, in their order; nothing if it has none.
    fn shares(&mut self, question: &str, found: &[&Found]) -> Vec<f32> {
        let pairs = Pairs::of(question, &mut self.stems);
        let passages = found.iter().flat_map(|found| &found.passages).filter(|_| !pairs.is_empty());
        passages.map(|(passage, _)| pairs.share(&passage.title, &passage.text, &mut self.stems)).collect()
    }

    fn hybrid(&mut self, question: &str, depth: usize) -> Result<Vec<Hit>> {
        let (of_words, of_meaning) = self.candidates.at(depth);
        let (terms, vector) = (self.terms.of_question(question), (self.encode)(question)?);
        let words = self.collection.by_words(&terms, of_words, &self.only)?;
        let meaning = self.collection.by_vector(&vector, of_meaning, &self.only)?;
        let (cosines, bm25) = match self.fusion {
            Fusion::Rrf => (Found::default(), Found::default()),
            // What one side did not find is not unknown to it: the cluster has vectors and words.
            Fusion::Convex { .. } => (
                self.collection.cosines(&vector, &fuse::beyond(words.keys(), meaning.keys()))?,
                self.collection.scores(&terms, &fuse::beyond(meaning.keys(), words.keys()))?,
            ),
        };
        let shares = if self.fusion.wants_pairs() { self.shares(question, &[&words, &bm25]) } else { Vec::new() };
        let [meaning, words, cosines, bm25] = [meaning, words, cosines, bm25].map(|found| self.collection.hits(found));
        let pairs = words.iter().chain(&bm25).zip(shares).map(|(hit, score)| Hit { score, ..*hit });
        let pairs = pairs.filter(|hit| hit.score > 0.0).collect();
        self.parts = Parts { words, meaning, cosines, bm25, pairs, beam: None };
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
            Mode::Bm25 => self.collection.by_words(&self.terms.of_question(question), depth, &self.only)?,
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
