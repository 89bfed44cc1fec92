//! Vectors that are already encoded, so that a build which was stopped goes on where it was.
//!
//! A chunk of passages' vectors is a file of its own in the index folder's `encode-cache`, named after the
//! hash of the encoder and of the chunk's texts. A file that is not whole is as good as none.

use std::path::{Path, PathBuf};

use half::f16;

use super::store::content_hash;
use crate::durable;
use crate::error::{Error, Result};

/// Name of the cache in an index folder.
pub(crate) const CACHE: &str = "encode-cache";

/// The vectors encoded so far.
#[derive(Debug)]
pub(super) struct EncodeCache {
    folder: PathBuf,
    /// What the vectors depend on beside the text.
    salt: String,
}

impl EncodeCache {
    /// The cache of the index at `dir` for one encoder.
    pub fn open(dir: &Path, fingerprint: &str, dim: usize) -> Result<Self> {
        let folder = dir.join(CACHE);
        std::fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        Ok(Self { folder, salt: format!("{fingerprint}/{dim}") })
    }

    fn path(&self, texts: &[String]) -> PathBuf {
        self.folder.join(format!("{}.f16", content_hash(texts, &self.salt)))
    }

    /// The vectors `[n, dim]` of these texts, if they were kept whole.
    pub fn get(&self, texts: &[String], dim: usize) -> Option<Vec<f16>> {
        let bytes = std::fs::read(self.path(texts)).ok()?;
        let (sum, vectors) = bytes.split_last_chunk::<4>().map(|(vectors, sum)| (sum, vectors))?;
        if u32::from_le_bytes(*sum) != crc32fast::hash(vectors) {
            return None;
        }
        let (vectors, _) = vectors.as_chunks::<2>();
        let vectors: Vec<f16> = vectors.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect();
        (vectors.len() == texts.len() * dim).then_some(vectors)
    }

    /// Keep the vectors of these texts, durably.
    pub fn put(&self, texts: &[String], vectors: &[f16]) -> Result<()> {
        let mut bytes = bytemuck::cast_slice::<f16, u8>(vectors).to_vec();
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        durable::replace(&self.path(texts), &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_come_back_only_whole_and_only_for_the_same_texts_and_encoder() {
        let dir = tempfile::tempdir().unwrap();
        let cache = EncodeCache::open(dir.path(), "a", 2).unwrap();
        let texts = vec!["x".to_owned(), "yz".to_owned()];
        let vectors: Vec<f16> = [0.5, -1.0, 0.25, 2.0].map(f16::from_f32).to_vec();
        assert_eq!(cache.get(&texts, 2), None);
        cache.put(&texts, &vectors).unwrap();
        assert_eq!(cache.get(&texts, 2), Some(vectors));
        assert_eq!(cache.get(&["xy".to_owned(), "z".to_owned()], 2), None);
        assert_eq!(EncodeCache::open(dir.path(), "b", 2).unwrap().get(&texts, 2), None);
        let path = cache.path(&texts);
        let whole = std::fs::read(&path).unwrap();
        for i in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[i] ^= 4;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(cache.get(&texts, 2), None);
            std::fs::write(&path, &whole[..i]).unwrap();
            assert_eq!(cache.get(&texts, 2), None);
        }
    }
}
