//! States of passages in a folder beside the index, for ever: the language model is frozen.
//!
//! A safetensors file a passage, `states [2 * layers, kv_heads, positions, head_dim]` in 16-bit floats, named by the hash
//! of the passage's tokens, in a folder named by what else the states depend on: the language model's fingerprint and
//! the prefix's key. A passage that changes has other tokens, so nothing here can be out of date, only unused. Only
//! `nunatak index warm` writes here; a reader that finds a damaged file says so and computes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use crate::digest::short_hex;
use crate::disk;
use crate::durable;
use crate::error::{Error, Result};
use crate::index::site::STATES;
use crate::runtime::kv_states::States;
use crate::runtime::model_dir::LmShape;

/// Name of the tensor.
const TENSOR: &str = "states";
/// Key of the checksum of its bytes (CRC-32, hexadecimal) in a file's metadata.
const CHECKSUM: &str = "crc32";
/// Digits of the language model's fingerprint in a folder's name.
const MODEL_DIGITS: usize = 16;

/// The states of passages behind one prefix of one language model.
#[derive(Debug, Clone)]
pub struct StateFolder {
    path: PathBuf,
    /// `[2 * layers, kv_heads, _, head_dim]`.
    shape: [usize; 3],
}

impl StateFolder {
    /// The folder inside the index at `index`; it need not exist.
    pub fn new(index: &Path, model: &str, prefix: &str, shape: &LmShape) -> Self {
        let model = model.get(..MODEL_DIGITS).unwrap_or(model);
        let path = index.join(STATES).join(format!("{model}-{prefix}"));
        Self { path, shape: [2 * shape.layers, shape.kv_heads, shape.head_dim] }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self, passages: &[u32]) -> PathBuf {
        let mut hash = Sha256::new();
        passages.iter().for_each(|t| hash.update(t.to_le_bytes()));
        self.path.join(format!("{}.safetensors", short_hex(&hash.finalize())))
    }

    /// Whether there is a file for these tokens.
    pub fn holds(&self, passages: &[u32]) -> bool {
        self.file(passages).is_file()
    }

    /// The states of these tokens, if they are kept and whole; a file that is damaged is told in the log.
    pub fn get(&self, passages: &[u32]) -> Option<States> {
        let path = self.file(passages);
        // An index that was never warmed has no folder, which is no news.
        let bytes = std::fs::read(&path).ok()?;
        match self.parse(&bytes, passages.len(), &path) {
            Ok(states) => Some(states),
            Err(error) => {
                tracing::warn!("{error}; the passage is computed again");
                None
            }
        }
    }

    fn parse(&self, bytes: &[u8], positions: usize, path: &Path) -> Result<States> {
        let bad = |problem: String| Error::bad_file(path, problem, "delete it; `nunatak index warm` makes it again");
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| bad(format!("it holds no states: {e}")))?;
        let file = SafeTensors::deserialize(bytes).map_err(|e| bad(format!("it is damaged: {e}")))?;
        let view = file.tensor(TENSOR).map_err(|e| bad(format!("it holds no states: {e}")))?;
        let [tensors, heads, width] = self.shape;
        let expected = [tensors, heads, positions, width];
        if view.dtype() != Dtype::F16 || view.shape() != expected {
            return Err(bad(format!("its states have the shape {:?}, not {expected:?}", view.shape())));
        }
        let checksum = header.metadata().as_ref().and_then(|m| m.get(CHECKSUM).cloned());
        if checksum != Some(checksum_of(view.data())) {
            return Err(bad("its checksum does not fit its content".into()));
        }
        let halves = |bytes: &[u8]| bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
        let tensor = 2 * heads * positions * width;
        Ok(States::short(view.data().chunks_exact(tensor.max(1)).map(halves).collect(), positions))
    }

    /// Keep states; gives the bytes of the file.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be written.
    pub fn put(&self, passages: &[u32], states: &States) -> Result<u64> {
        const DOING: &str = "keeping states";
        let data: Vec<u8> = states.halves().iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
        let [tensors, heads, width] = self.shape;
        let shape = vec![tensors, heads, states.positions(), width];
        let view = TensorView::new(Dtype::F16, shape, &data).map_err(Error::internal(DOING))?;
        let metadata = HashMap::from([(CHECKSUM.to_owned(), checksum_of(&data))]);
        let bytes = safetensors::serialize([(TENSOR, view)], Some(metadata)).map_err(Error::internal(DOING))?;
        std::fs::create_dir_all(&self.path).map_err(Error::file("create", &self.path))?;
        durable::replace(&self.file(passages), &bytes)?;
        Ok(bytes.len() as u64)
    }

    /// Files in it, and their bytes.
    ///
    /// # Errors
    /// [`Error::File`] when the folder cannot be read; one that is not there is empty.
    pub fn usage(&self) -> Result<(u64, u64)> {
        disk::usage(&self.path)
    }
}

fn checksum_of(data: &[u8]) -> String {
    format!("{:08x}", crc32fast::hash(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(at: &Path) -> StateFolder {
        StateFolder { path: at.join("m-p"), shape: [4, 2, 3] }
    }

    fn states(positions: usize) -> States {
        let tensor = |t: usize| (0..2 * positions * 3).map(|i| f16::from_f32((t * 100 + i) as f32 / 7.0)).collect();
        States::short((0..4).map(tensor).collect(), positions)
    }

    #[test]
    fn what_is_kept_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        assert_eq!((folder.get(&[1, 2]), folder.usage().unwrap()), (None, (0, 0)));
        let bytes = folder.put(&[1, 2], &states(2)).unwrap();
        assert_eq!(folder.get(&[1, 2]), Some(states(2)));
        assert!(folder.holds(&[1, 2]) && !folder.holds(&[2, 1]) && folder.get(&[1]).is_none());
        assert_eq!(folder.usage().unwrap(), (1, bytes));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_a_miss() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        folder.put(&[5], &states(1)).unwrap();
        let path = folder.file(&[5]);
        let whole = std::fs::read(&path).unwrap();
        let data = whole.len() - 4 * 2 * 3 * 2;
        for at in data..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(folder.parse(&bad, 1, &path).is_err(), "{at}");
        }
        for cut in 0..whole.len() {
            assert!(folder.parse(&whole[..cut], 1, &path).is_err(), "{cut}");
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(folder.get(&[5]), None);
    }

    #[test]
    fn other_models_and_prefixes_have_other_folders() {
        let shape = LmShape {
            layers: 2,
            kv_heads: 2,
            head_dim: 3,
            vocab: 9,
            kv_dtype: "f32".into(),
            bos: None,
            eos: Vec::new(),
            chat_template: None,
        };
        let of = |model: &str, prefix: &str| StateFolder::new(Path::new("i"), model, prefix, &shape).path;
        assert_eq!(of("abcdefabcdefabcdefabcdef", "p"), Path::new("i/states/abcdefabcdefabcd-p"));
        assert_ne!(of("a", "p"), of("a", "q"));
        assert_ne!(of("a", "p"), of("b", "p"));
    }
}
