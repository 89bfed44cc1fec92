//! Words and meaning together.

use std::collections::HashSet;
use std::sync::Arc;

use super::dense::vectors;
use super::{DenseRetriever, Retriever, fuse};
use crate::error::Result;
use crate::index::Index;
use crate::index::allowed::Allowed;
use crate::index::lexical::Bm25;
use crate::types::{Hit, PassageId};

/// How two rankings become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fusion {
    /// [`fuse::rrf`] with the usual k of 60.
    Rrf,
    /// [`fuse::convex`]: this weight on the cosine, the rest on BM25 over the question's best BM25.
    Convex(f32),
}

impl Default for Fusion {
    /// Four fifths on meaning: near the best of either alone on every development set.
    fn default() -> Self {
        Self::Convex(0.8)
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
}

impl<E: FnMut(&str) -> Result<Vec<f32>>> HybridRetriever<E> {
    /// Fuse the best `candidates` (at least the depth asked for) of each side.
    pub fn new(index: Arc<Index>, dense: DenseRetriever<E>, fusion: Fusion, candidates: usize) -> Self {
        Self { index, dense, fusion, candidates, bm25: Bm25::default() }
    }

    /// With these numbers for words.
    pub fn with_bm25(self, bm25: Bm25) -> Self {
        Self { bm25, ..self }
    }
}

impl<E: FnMut(&str) -> Result<Vec<f32>> + Send> Retriever for HybridRetriever<E> {
    fn retrieve(&mut self, question: &str, depth: usize, only: Option<&Arc<Allowed>>) -> Result<Vec<Hit>> {
        let candidates = self.candidates.max(depth);
        let lexical = self.index.lexical().search_by(question, candidates, only, self.bm25)?;
        let (vector, mut dense) = self.dense.search(question, candidates, only.map(Arc::as_ref))?;
        Ok(match self.fusion {
            Fusion::Rrf => fuse::rrf(&[&dense, &lexical], fuse::RRF_K, depth),
            Fusion::Convex(weight) => {
                // The cosine of a passage that only BM25 found is not unknown: its vector is at hand.
                let found: HashSet<PassageId> = dense.iter().map(|hit| hit.passage).collect();
                let missing: Vec<PassageId> =
                    lexical.iter().map(|hit| hit.passage).filter(|id| !found.contains(id)).collect();
                dense.extend(vectors(&self.index)?.cosines(&vector, &missing)?);
                fuse::convex(&[(&dense, weight), (&fuse::by_top(&lexical), 1.0 - weight)], depth)
            }
        })
    }

    fn take_up(&mut self, index: &Arc<Index>) -> Result<bool> {
        let same = self.dense.take_up(index)?;
        if same {
            self.index = Arc::clone(index);
        }
        Ok(same)
    }
}
