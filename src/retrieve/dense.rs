//! The first stage by meaning.

use std::sync::Arc;

use super::{Parts, Retriever};
use crate::error::{Error, Result};
use crate::index::allowed::Allowed;
use crate::index::dense::default_ef;
use crate::index::recall::{self, Beam, Ladder};
use crate::index::{Dense, Index};
use crate::progress::{Progress, Quiet};
use crate::types::Hit;

/// Nearest neighbours of the question's vector.
#[derive(Debug)]
pub struct DenseRetriever<E> {
    index: Arc<Index>,
    encode: E,
    ef: usize,
    exact: bool,
    wanted: Option<Wanted>,
    /// The beam of the last question.
    beam: Option<Beam>,
    /// What was found for the last question.
    found: Vec<Hit>,
}

/// A recall that is wanted, and the beam that has it.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    recall: f32,
    depth: usize,
    beam: Beam,
}

impl Wanted {
    /// The beam for a depth. Of fewer neighbours than were looked for it finds a larger part; for more it grows with them.
    fn beam(&self, depth: usize) -> Beam {
        let ef = self.beam.ef.max((self.beam.ef * depth).div_ceil(self.depth.max(1)));
        Beam { ef, ..self.beam }
    }
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
        Ok(Self { index, encode, ef, exact, wanted: None, beam: None, found: Vec::new() })
    }

    /// With the narrowest beam that finds this part (0 to 1) of the exact `depth` nearest passages, in place of `ef`:
    /// measured now, where it is not known yet ([`recall::ladder`]).
    ///
    /// # Errors
    /// [`crate::error::Error::Request`] when no beam that is measured finds so much; as [`recall::ladder`].
    pub fn with_recall(mut self, recall: f32, depth: usize, progress: &dyn Progress) -> Result<Self> {
        recall::check_wanted(recall)?;
        let index = Arc::clone(&self.index);
        let beam = self.ladder(&index, depth, progress)?.reach(recall)?;
        self.wanted = Some(Wanted { recall, depth, beam });
        Ok(self)
    }

    fn ladder(&mut self, index: &Index, depth: usize, progress: &dyn Progress) -> Result<Ladder> {
        recall::ladder(index, vectors(index)?, depth, &mut self.encode, progress)
    }

    /// The beam of the last question; none if every vector was compared.
    pub(super) fn beam(&self) -> Option<Beam> {
        self.beam
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
        self.beam = match (self.exact, self.wanted) {
            (true, _) => None,
            (false, Some(wanted)) => Some(wanted.beam(depth)),
            (false, None) if self.ef == 0 => Some(Beam { ef: default_ef(depth.min(dense.len())), recall: None }),
            (false, None) => Some(Beam { ef: self.ef.max(depth), recall: None }),
        };
        let hits = match self.beam {
            None => dense.search_exact(&vector, depth, only)?,
            Some(beam) => dense.search(&vector, depth, beam.ef, only)?,
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
        Parts { meaning: std::mem::take(&mut self.found), beam: self.beam, ..Parts::default() }
    }

    fn wanted_beam(&self) -> Option<Beam> {
        self.wanted.map(|wanted| wanted.beam)
    }

    fn take_up(&mut self, index: &Arc<Index>) -> Result<bool> {
        // Vectors of another encoder want questions of another.
        let same = index.dense().map(Dense::encoder) == self.index.dense().map(Dense::encoder);
        if same {
            if let Some(wanted) = self.wanted {
                let ladder = self.ladder(index, wanted.depth, &Quiet)?;
                // Whoever is being answered is answered as well as can be.
                let beam = ladder.reach(wanted.recall).unwrap_or_else(|e| {
                    tracing::warn!("{e}: that one is used");
                    ladder.widest()
                });
                self.wanted = Some(Wanted { beam, ..wanted });
            }
            self.index = Arc::clone(index);
        }
        Ok(same)
    }
}
