//! Vectors of the index that a build is about to replace: a passage that has not changed is not encoded again.
//!
//! A vector is taken over only when the same encoder made it and the passage of the same key has the same title
//! and text. An old index that cannot be read is no loss: everything is encoded.

use std::path::Path;

use super::Index;
use super::manifest::EncoderIdentity;
use crate::types::Passage;

/// The old index, if it can be of use.
#[derive(Debug)]
pub(super) struct Previous(Option<Index>);

impl Previous {
    /// The index at `dir`, if there is one with vectors of this encoder.
    pub fn open(dir: &Path, encoder: &EncoderIdentity) -> Self {
        let index = Index::open(dir).ok();
        Self(index.filter(|index| {
            let old = index.dense().map(super::Dense::encoder);
            old.is_some_and(|old| old.fingerprint == encoder.fingerprint && old.dim == encoder.dim)
        }))
    }

    /// The vector `[dim]` of this passage.
    pub fn vector(&self, passage: &Passage) -> Option<Vec<f32>> {
        let index = self.0.as_ref()?;
        let row = index.row_of(&passage.key).ok()??;
        let old = index.passage(row).ok()?;
        (old.title == passage.title && old.text == passage.text).then_some(())?;
        index.dense()?.vector(row).ok()
    }
}
