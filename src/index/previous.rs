//! Vectors that are there already: of the index that a build is about to replace, and of others that it is made from.
//!
//! A vector is taken over only when the same encoder made it and the passage of the same key has the same title
//! and text. An old index that cannot be read is no loss: everything is encoded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::f16;

use super::Index;
use super::manifest::EncoderIdentity;
use super::ruins::Ruins;
use crate::types::Passage;

/// What has vectors that can be of use.
#[derive(Debug)]
pub(crate) enum Previous {
    /// Whole indexes.
    Indexes(Vec<Index>),
    /// A damaged one, which is repaired.
    Ruins(Arc<Ruins>),
}

impl Previous {
    /// Of the index at `dir` and the others those with vectors of this encoder.
    pub fn open(dir: &Path, others: &[PathBuf], encoder: &EncoderIdentity) -> Self {
        let indexes =
            std::iter::once(dir).chain(others.iter().map(PathBuf::as_path)).filter_map(|d| Index::open(d).ok());
        let fits = |index: &Index| {
            let old = index.dense().map(super::Dense::encoder);
            old.is_some_and(|old| old.fingerprint == encoder.fingerprint && old.dim == encoder.dim)
        };
        Self::Indexes(indexes.filter(fits).collect())
    }

    /// The vector `[dim]` of this passage.
    pub fn vector(&self, passage: &Passage) -> Option<&[f16]> {
        let indexes = match self {
            Self::Indexes(indexes) => indexes,
            Self::Ruins(ruins) => return ruins.vector(passage),
        };
        indexes.iter().find_map(|index| {
            let row = index.row_of(&passage.key).ok()??;
            let old = index.passage(row).ok()?;
            (old.title == passage.title && old.text == passage.text).then_some(())?;
            index.dense()?.vector(row).ok()
        })
    }
}
