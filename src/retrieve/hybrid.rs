//! Words and meaning together.

use std::sync::Arc;

use super::dense::vectors;
use super::{DenseRetriever, Parts, Retriever, fuse};
use crate::error::Result;
use crate::index::Index;
use crate::index::allowed::Allowed;
use crate::index::lexical::Bm25;
use crate::types::Hit;

/// How two rankings become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fusion {
    /// [`fuse::rrf`] with the usual k of 60.
    Rrf,
    /// [`fuse::convex`]: this weight on the cosine, the rest on BM25 over the question's best BM25.
    Convex(f32),
}

/// The usual weight of the cosine in [`Fusion::Convex`]: the best of 13, by recall at 20 and by MRR, on 3,000 training questions each of NQ
/// and SQuAD (benches/fusion.rs, benches/README.md).
pub const DENSE_WEIGHT: f32 = 0.7;

impl Default for Fusion {
    fn default() -> Self {
        Self::Convex(DENSE_WEIGHT)
    }
}

impl Fusion {
    /// The best `depth` of what both sides found.
    pub(super) fn fuse(self, parts: &Parts, depth: usize) -> Vec<Hit> {
        match self {
            Self::Rrf => fuse::rrf(&[&parts.meaning, &parts.words], fuse::RRF_K, depth),
            Self::Convex(weight) => {
                let dense = [parts.meaning.as_slice(), &parts.cosines].concat();
                let lexical = fuse::by_top(&[parts.words.as_slice(), &parts.bm25].concat());
                fuse::convex(&[(&dense, weight), (&lexical, 1.0 - weight)], depth)
            }
        }
    }
}

/// BM25 and dense search, fused.
#[derive(Debug)]
pub struct HybridRetriever<E> {
    index: Arc<Index>,
    dense: DenseRetriever<E>,
    fusion: Fusion,
    candidates: usize,
    bm25: Bm25,
    parts: Parts,
}

impl<E: FnMut(&str) -> Result<Vec<f32>>> HybridRetriever<E> {
    /// Fuse the best `candidates` (at least the depth asked for) of each side.
    pub fn new(index: Arc<Index>, dense: DenseRetriever<E>, fusion: Fusion, candidates: usize) -> Self {
        Self { index, dense, fusion, candidates, bm25: Bm25::default(), parts: Parts::default() }
    }

    /// With these numbers for words.
    pub fn with_bm25(self, bm25: Bm25) -> Self {
        Self { bm25, ..self }
    }
}

impl<E: FnMut(&str) -> Result<Vec<f32>> + Send> Retriever for HybridRetriever<E> {
    fn retrieve(&mut self, question: &str, depth: usize, only: Option<&Arc<Allowed>>) -> Result<Vec<Hit>> {
        let candidates = self.candidates.max(depth);
        let words = self.index.lexical().search_by(question, candidates, only, self.bm25)?;
        let (vector, meaning) = self.dense.search(question, candidates, only.map(Arc::as_ref))?;
        // What one side did not find is not unknown to it: vectors and lists of words are at hand.
        let of = |hits: &[Hit], others: &[Hit]| {
            fuse::beyond(hits.iter().map(|hit| hit.passage), others.iter().map(|hit| hit.passage))
        };
        let cosines = vectors(&self.index)?.cosines(&vector, &of(&words, &meaning))?;
        let bm25 = self.index.lexical().scores(question, &of(&meaning, &words), self.bm25)?;
        self.parts = Parts { words, meaning, cosines, bm25 };
        Ok(self.fusion.fuse(&self.parts, depth))
    }

    fn take_parts(&mut self) -> Parts {
        std::mem::take(&mut self.parts)
    }

    fn take_up(&mut self, index: &Arc<Index>) -> Result<bool> {
        let same = self.dense.take_up(index)?;
        if same {
            self.index = Arc::clone(index);
        }
        Ok(same)
    }
}
