//! Candidate passages for a question. [`Retriever`] is the pipeline's one trait: bring your own first stage.

use crate::error::Result;
use crate::types::Hit;

pub mod fuse;

/// A first stage: question in, scored passages out.
pub trait Retriever {
    /// The best `depth` passages for `question`, best first, ties by passage id. Questions are plain text.
    fn retrieve(&mut self, question: &str, depth: usize) -> Result<Vec<Hit>>;
}
