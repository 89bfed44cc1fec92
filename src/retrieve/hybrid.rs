//! Words and meaning together.

use std::sync::Arc;

use super::dense::vectors;
use super::{DenseRetriever, Pairs, Parts, Retriever, fuse};
use crate::error::Result;
use crate::index::Index;
use crate::index::allowed::Allowed;
use crate::index::lexical::{Bm25, Stems};
use crate::index::recall::Beam;
use crate::types::{Hit, PassageId};

/// How two rankings become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fusion {
    /// [`fuse::rrf`] with the usual k of 60.
    Rrf,
    /// [`fuse::convex`]: `dense` on the cosine, the rest on words. Those are BM25 over the question's best BM25, and `pairs` for
    /// each of the [`Pairs`] over the question's words, so that at 1 a pair counts as a word does on average; over the best again.
    Convex {
        /// Of 1.
        dense: f32,
        /// 0 and more.
        pairs: f32,
    },
}

/// The usual weight of the cosine in [`Fusion::Convex`]: the best of 13, by recall at 20 and by MRR, on 3,000 training questions each of NQ
/// and SQuAD (benches/fusion.rs, benches/README.md).
pub const DENSE_WEIGHT: f32 = 0.7;

/// The usual weight of pairs in [`Fusion::Convex`], chosen with the other.
pub const PAIR_WEIGHT: f32 = 0.8;

impl Default for Fusion {
    fn default() -> Self {
        Self::Convex { dense: DENSE_WEIGHT, pairs: PAIR_WEIGHT }
    }
}

impl Fusion {
    /// The best `depth` of what both sides found.
    pub fn fuse(self, parts: &Parts, depth: usize) -> Vec<Hit> {
        match self {
            Self::Rrf => fuse::rrf(&[&parts.meaning, &parts.words], fuse::RRF_K, depth),
            Self::Convex { dense: weight, pairs } => {
                let dense = [parts.meaning.as_slice(), &parts.cosines].concat();
                let bm25 = fuse::by_top(&[parts.words.as_slice(), &parts.bm25].concat());
                let words = fuse::by_top(&fuse::convex(&[(&bm25, 1.0), (&parts.pairs, pairs)], usize::MAX));
                fuse::convex(&[(&dense, weight), (&words, 1.0 - weight)], depth)
            }
        }
    }

    /// Whether it wants to know of pairs.
    pub(super) fn wants_pairs(self) -> bool {
        matches!(self, Self::Convex { pairs, .. } if pairs > 0.0)
    }
}

/// How many candidates each side of hybrid search gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Candidates {
    /// At least so many, so that the first few do not depend on how many are wanted; where more are wanted, those.
    pub least: usize,
    /// Exactly so many by words.
    pub words: Option<usize>,
    /// Exactly so many by meaning.
    pub meaning: Option<usize>,
}

impl Candidates {
    /// How many by words, and how many by meaning, where `depth` passages are wanted.
    pub fn at(self, depth: usize) -> (usize, usize) {
        let both = self.least.max(depth);
        (self.words.unwrap_or(both), self.meaning.unwrap_or(both))
    }
}

impl From<usize> for Candidates {
    fn from(least: usize) -> Self {
        Self { least, ..Self::default() }
    }
}

/// BM25 and dense search, fused.
#[derive(Debug)]
pub struct HybridRetriever<E> {
    index: Arc<Index>,
    dense: DenseRetriever<E>,
    fusion: Fusion,
    candidates: Candidates,
    bm25: Bm25,
    stems: Stems,
    parts: Parts,
}

impl<E: FnMut(&str) -> Result<Vec<f32>>> HybridRetriever<E> {
    /// Fuse the best `candidates` of each side: a number is that many, or the depth asked for where that is more.
    pub fn new(index: Arc<Index>, dense: DenseRetriever<E>, fusion: Fusion, candidates: impl Into<Candidates>) -> Self {
        let candidates = candidates.into();
        let stems = Stems::new(&index.manifest().analyser);
        Self { index, dense, fusion, candidates, bm25: Bm25::BESIDE_VECTORS, stems, parts: Parts::default() }
    }

    /// With these numbers for words.
    pub fn with_bm25(self, bm25: Bm25) -> Self {
        Self { bm25, ..self }
    }

    /// The pairs of words that passages share with a question, of those that share some.
    fn pairs(&mut self, question: &str, passages: &[PassageId]) -> Result<Vec<Hit>> {
        let pairs = Pairs::of(question, &mut self.stems);
        if pairs.is_empty() {
            return Ok(Vec::new());
        }
        let mut hits = Vec::new();
        for &passage in passages {
            let (title, text) = self.index.title_and_text(passage)?;
            hits.push(Hit { passage, score: pairs.share(title, text, &mut self.stems) });
        }
        hits.retain(|hit| hit.score > 0.0);
        Ok(hits)
    }
}

impl<E: FnMut(&str) -> Result<Vec<f32>> + Send> Retriever for HybridRetriever<E> {
    fn retrieve(&mut self, question: &str, depth: usize, only: Option<&Arc<Allowed>>) -> Result<Vec<Hit>> {
        let (of_words, of_meaning) = self.candidates.at(depth);
        let words = self.index.lexical().search_by(question, of_words, only, self.bm25)?;
        let (vector, meaning) = self.dense.search(question, of_meaning, only.map(Arc::as_ref))?;
        // What one side did not find is not unknown to it: vectors and lists of words are at hand.
        let of = |hits: &[Hit], others: &[Hit]| {
            fuse::beyond(hits.iter().map(|hit| hit.passage), others.iter().map(|hit| hit.passage))
        };
        let cosines = vectors(&self.index)?.cosines(&vector, &of(&words, &meaning))?;
        let bm25 = self.index.lexical().scores(question, &of(&meaning, &words), self.bm25)?;
        // A passage without a word has no pair.
        let with_words: Vec<PassageId> = words.iter().chain(&bm25).map(|hit| hit.passage).collect();
        let pairs = if self.fusion.wants_pairs() { self.pairs(question, &with_words)? } else { Vec::new() };
        self.parts = Parts { words, meaning, cosines, bm25, pairs, beam: self.dense.beam() };
        Ok(self.fusion.fuse(&self.parts, depth))
    }

    fn take_parts(&mut self) -> Parts {
        std::mem::take(&mut self.parts)
    }

    fn wanted_beam(&self) -> Option<Beam> {
        self.dense.wanted_beam()
    }

    fn take_up(&mut self, index: &Arc<Index>) -> Result<bool> {
        let same = self.dense.take_up(index)?;
        if same {
            self.index = Arc::clone(index);
            self.stems = Stems::new(&index.manifest().analyser);
        }
        Ok(same)
    }
}
