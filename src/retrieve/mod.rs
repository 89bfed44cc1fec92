//! Candidate passages for a question. [`Retriever`] is the pipeline's one trait: bring your own first stage.

use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::index::Index;
use crate::index::allowed::Allowed;
use crate::index::recall::Beam;
use crate::types::Hit;

mod bm25;
mod dense;
pub mod fuse;
mod hybrid;
mod milvus;
mod pairs;

pub use bm25::Bm25Retriever;
pub use dense::DenseRetriever;
pub use hybrid::{Candidates, DENSE_WEIGHT, Fusion, HybridRetriever, PAIR_WEIGHT};
pub use milvus::MilvusRetriever;
pub use pairs::Pairs;

/// What the parts of a first stage found for a question, each best first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parts {
    /// By words, with their scores; empty if words took no part.
    pub words: Vec<Hit>,
    /// By meaning, with their cosines; empty if meaning took no part.
    pub meaning: Vec<Hit>,
    /// Cosines of passages that only words found.
    pub cosines: Vec<Hit>,
    /// BM25 of passages that only meaning found, of those that have a word of the question.
    pub bm25: Vec<Hit>,
    /// [`Pairs::share`] of those that have a pair of the question's words, in no order.
    pub pairs: Vec<Hit>,
    /// The beam that walked the graph for `meaning`; none if every vector was compared, or a cluster did it.
    pub beam: Option<Beam>,
}

/// A first stage: question in, scored passages out.
pub trait Retriever: Send {
    /// The best `depth` passages for `question`, best first, ties by passage id, of those in `only` if it is given.
    /// Questions are plain text.
    fn retrieve(&mut self, question: &str, depth: usize, only: Option<&Arc<Allowed>>) -> Result<Vec<Hit>>;

    /// What its parts found for the last question, for those who want to know, once; nothing if it does not say.
    fn take_parts(&mut self) -> Parts {
        Parts::default()
    }

    /// The beam that a wanted recall came to; none if none was wanted.
    fn wanted_beam(&self) -> Option<Beam> {
        None
    }

    /// Find only passages that meet this filter from now on, where passages are not in an index here, which could say as
    /// `only` which these are.
    ///
    /// # Errors
    /// [`Error::Request`] when it cannot filter.
    fn restrict(&mut self, filter: Option<&Filter>) -> Result<()> {
        match filter {
            Some(_) => Err(Error::request("this first stage cannot filter", "leave the filter out")),
            None => Ok(()),
        }
    }

    /// Search this state of the index from now on, if that can be done with the models at hand; gives whether it is.
    fn take_up(&mut self, _index: &Arc<Index>) -> Result<bool> {
        Ok(false)
    }
}

/// Which first stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Words: the inverted index.
    Bm25,
    /// Meaning: vectors.
    Dense,
    /// Both, fused.
    Hybrid,
}

impl Mode {
    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bm25 => "bm25",
            Self::Dense => "dense",
            Self::Hybrid => "hybrid",
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        [Self::Bm25, Self::Dense, Self::Hybrid].into_iter().find(|mode| mode.name() == word).ok_or_else(|| {
            Error::request(format!("there is no retrieval mode {word:?}"), "use one of bm25, dense, hybrid")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_what_it_is_called() {
        for mode in [Mode::Bm25, Mode::Dense, Mode::Hybrid] {
            assert_eq!(mode.to_string().parse::<Mode>().unwrap(), mode);
        }
        assert!("BM26".parse::<Mode>().is_err());
    }
}
