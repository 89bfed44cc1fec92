//! The first stage by words.

use std::sync::Arc;

use super::{Parts, Retriever};
use crate::error::Result;
use crate::index::Index;
use crate::index::allowed::Allowed;
use crate::index::lexical::Bm25;
use crate::types::Hit;

/// BM25 over the inverted index.
#[derive(Debug, Clone)]
pub struct Bm25Retriever {
    index: Arc<Index>,
    bm25: Bm25,
    /// What was found for the last question.
    found: Vec<Hit>,
}

impl Bm25Retriever {
    /// Search this index.
    pub fn new(index: Arc<Index>) -> Self {
        Self { index, bm25: Bm25::default(), found: Vec::new() }
    }

    /// With these numbers.
    pub fn with_bm25(self, bm25: Bm25) -> Self {
        Self { bm25, ..self }
    }
}

impl Retriever for Bm25Retriever {
    fn retrieve(&mut self, question: &str, depth: usize, only: Option<&Arc<Allowed>>) -> Result<Vec<Hit>> {
        let found = self.index.lexical().search_by(question, depth, only, self.bm25)?;
        self.found.clone_from(&found);
        Ok(found)
    }

    fn take_parts(&mut self) -> Parts {
        Parts { words: std::mem::take(&mut self.found), ..Parts::default() }
    }

    fn take_up(&mut self, index: &Arc<Index>) -> Result<bool> {
        // An index that has vectors now may be wanted for them.
        let same = index.dense().is_some() == self.index.dense().is_some();
        if same {
            self.index = Arc::clone(index);
        }
        Ok(same)
    }
}
