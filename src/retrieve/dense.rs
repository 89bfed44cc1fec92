//! The first stage by meaning.

use std::sync::Arc;

use super::{Parts, Retriever};
use crate::error::{Error, Result};
use crate::index::allowed::Allowed;
use crate::index::{Dense, Index};
use crate::types::Hit;

/// Nearest neighbours of the question's vector.
#[derive(Debug)]
pub struct DenseRetriever<E> {
    index: Arc<Index>,
    encode: E,
    ef: usize,
    exact: bool,
    /// What was found for the last question.
    found: Vec<Hit>,
}

impl<E: FnMut(&str) -> Result<Vec<f32>>> DenseRetriever<E> {
    /// Search this index with questions that `encode` turns into unit vectors. `ef` is the width of the
    /// beam, 0 for the default; with `exact` every vector is compared instead.
    ///
    /// # Errors
    /// [`Error::Index`] when the index has no vectors or `fingerprint` is not its encoder's.
    pub fn new(index: Arc<Index>, encode: E, fingerprint: &str, ef: usize, exact: bool) -> Result<Self> {
        let encoder = vectors(&index)?.encoder();
        if encoder.fingerprint != fingerprint {
            return Err(Error::index(
                index.path(),
                format!("its vectors were made by another encoder: {}", encoder.name),
                format!("use that encoder ({}), or build the index again", encoder.name),
            ));
        }
        Ok(Self { index, encode, ef, exact, found: Vec::new() })
    }

    /// The question's vector, and the best `depth` passages.
    pub(super) fn search(
        &mut self,
        question: &str,
        depth: usize,
        only: Option<&Allowed>,
    ) -> Result<(Vec<f32>, Vec<Hit>)> {
        let vector = (self.encode)(question)?;
        let dense = vectors(&self.index)?;
        let hits = match self.exact {
            true => dense.search_exact(&vector, depth, only)?,
            false => dense.search(&vector, depth, self.ef, only)?,
        };
        Ok((vector, hits))
    }
}

/// The vectors of an index that must have them.
pub(super) fn vectors(index: &Index) -> Result<&Dense> {
    index.dense().ok_or_else(|| {
        Error::index(
            index.path(),
            "it has no vectors, so it can only be searched by words",
            "use --mode bm25, or build the index with an encoder",
        )
    })
}

impl<E: FnMut(&str) -> Result<Vec<f32>> + Send> Retriever for DenseRetriever<E> {
    fn retrieve(&mut self, question: &str, depth: usize, only: Option<&Arc<Allowed>>) -> Result<Vec<Hit>> {
        let (_, found) = self.search(question, depth, only.map(Arc::as_ref))?;
        self.found.clone_from(&found);
        Ok(found)
    }

    fn take_parts(&mut self) -> Parts {
        Parts { meaning: std::mem::take(&mut self.found), ..Parts::default() }
    }

    fn take_up(&mut self, index: &Arc<Index>) -> Result<bool> {
        // Vectors of another encoder want questions of another.
        let same = index.dense().map(Dense::encoder) == self.index.dense().map(Dense::encoder);
        if same {
            self.index = Arc::clone(index);
        }
        Ok(same)
    }
}
