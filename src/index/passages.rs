//! What the pipeline asks of the place that passages lie in, whether that is a folder or a cluster.

use super::Index;
use super::manifest::{EncoderIdentity, Manifest};
use crate::error::{Error, Result};
use crate::types::{Passage, PassageId};

/// What names a state of an index, for records and for who serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its folder or address.
    pub place: String,
    /// Differs when what was built differs.
    pub checksum: String,
    /// Passages that can be found.
    pub passages: u64,
    /// What made its vectors, if it has some.
    pub encoder: Option<EncoderIdentity>,
}

/// A place that passages are looked up in.
///
/// A [`PassageId`] is this place's own: that of an [`Index`] is a row and stays, that of a
/// [`crate::milvus::Collection`] is good until the next question is asked of it.
pub trait Passages: Send + Sync {
    /// What it is now.
    fn identity(&self) -> Result<Identity>;

    /// Whether what lies there now is what was opened: a folder with the same manifest, a collection that was made the same way
    /// (passages may have come and gone: it answers from what it has).
    fn is_current(&self) -> Result<bool>;

    /// The passage of an id.
    fn passage(&self, id: PassageId) -> Result<Passage>;

    /// The passage of a corpus id, if it is there.
    fn row_of(&self, key: &str) -> Result<Option<PassageId>>;

    /// The passages that a document became, in order; none if it is not there.
    fn pieces_of(&self, document: &str) -> Result<Vec<PassageId>>;

    /// The index in a folder that this is.
    ///
    /// # Errors
    /// [`Error::Request`] if it is none.
    fn files(&self) -> Result<&Index> {
        Err(Error::request(
            "this works on an index in a folder, and this one is in a cluster",
            "name a folder, or leave the option out that wants one",
        ))
    }
}

impl Passages for Index {
    fn identity(&self) -> Result<Identity> {
        let manifest = self.manifest();
        Ok(Identity {
            place: self.path().display().to_string(),
            checksum: manifest.checksum.clone(),
            passages: manifest.passages,
            encoder: manifest.encoder.clone(),
        })
    }

    fn is_current(&self) -> Result<bool> {
        Ok(Manifest::read(self.path())?.checksum == self.manifest().checksum)
    }

    fn passage(&self, id: PassageId) -> Result<Passage> {
        Self::passage(self, id)
    }

    fn row_of(&self, key: &str) -> Result<Option<PassageId>> {
        Self::row_of(self, key)
    }

    fn pieces_of(&self, document: &str) -> Result<Vec<PassageId>> {
        Self::pieces_of(self, document)
    }

    fn files(&self) -> Result<&Index> {
        Ok(self)
    }
}
