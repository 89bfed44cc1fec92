//! A learned prompt: numbers that stand before every window and steer the frozen language model.
//!
//! Two kinds. *Embeddings* are rows put in place of tokens' embeddings (Lester et al., 2021). *States* are keys and
//! values put straight into every layer's cache (Li and Liang, 2021; Liu et al., 2022): many more numbers for the
//! same positions, no pass through the model to prepare them, and what a small model needs to be tuned well.
//!
//! A prompt is one safetensors file: one tensor in 16-bit floats, and a [`PromptDescription`] in its metadata.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::digest::short_hex;
use crate::durable;
use crate::error::{Error, Result};
use crate::read::template::TemplateKind;

/// Key of the description in the file's metadata.
const DESCRIPTION: &str = "nunatak.prompt";
/// Name of the tensor.
const VALUES: &str = "prompt";
/// Version of the format.
pub const FORMAT: u32 = 1;

/// What a prompt's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptKind {
    /// Input embeddings `[positions, hidden]`.
    Embeddings,
    /// Keys (positions applied) and values of every layer, `[layers, 2, positions, kv_heads * head_dim]`.
    States,
}

/// The language model that a prompt was learned for. Every precision of one model takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTarget {
    /// The model's name without its precision.
    pub name: String,
    /// Transformer layers.
    pub layers: usize,
    /// Key and value heads times the width of a head.
    pub kv_width: usize,
    /// Width of an input embedding.
    pub hidden: usize,
}

/// What is known of a prompt besides its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptDescription {
    /// Version of the format, [`FORMAT`].
    pub format: u32,
    /// What its numbers are.
    pub kind: PromptKind,
    /// Positions it takes in a window.
    pub positions: usize,
    /// The model it was learned for.
    pub target: PromptTarget,
    /// How passages and question follow it.
    pub template: TemplateKind,
    /// Whether it was taught to answer nothing when the passages hold no answer.
    pub abstains: bool,
    /// [`SoftPrompt::hash`] of what was written, by which damage is found; files of the first versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// How it came to be, for people: data, settings, measures.
    pub training: serde_json::Value,
}

/// A learned prompt, ready to be put before windows.
#[derive(Debug, Clone, PartialEq)]
pub struct SoftPrompt {
    /// What it is.
    pub description: PromptDescription,
    values: Vec<f32>,
    hash: String,
}

impl SoftPrompt {
    /// From numbers in the order that [`PromptKind`] gives. They are rounded to 16-bit floats, as the file keeps
    /// them, so that a prompt just learned reads as it will for ever.
    ///
    /// # Errors
    /// [`Error::Internal`] when the numbers are not as many as the description says.
    pub fn new(mut description: PromptDescription, values: &[f32]) -> Result<Self> {
        if values.len() != description.shape().iter().product::<usize>() {
            return Err(Error::Internal {
                doing: "making a prompt",
                message: format!("{} numbers for the shape {:?}", values.len(), description.shape()),
            });
        }
        let halves: Vec<u8> = values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let values = floats(&halves);
        let hash = hash(&description, &halves);
        description.sha256 = Some(hash.clone());
        Ok(Self { description, values, hash })
    }

    /// The numbers, in the order that [`PromptKind`] gives.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Hash of everything that the prompt does to a reader: part of every key under which something computed behind it
    /// is kept.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Positions it takes in a window.
    pub fn positions(&self) -> usize {
        self.description.positions
    }

    /// Write the file.
    pub fn save(&self, path: &Path) -> Result<()> {
        durable::replace(path, &self.to_bytes()?)
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        let failed = "writing a prompt";
        let halves: Vec<u8> = self.values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F16, self.description.shape(), &halves).map_err(Error::internal(failed))?;
        // A file of the first versions that is written again gets its hash now.
        let sha256 = Some(hash(&self.description, &halves));
        let description = PromptDescription { sha256, ..self.description.clone() };
        let description = serde_json::to_string(&description).map_err(Error::internal(failed))?;
        let metadata = HashMap::from([(DESCRIPTION.to_owned(), description)]);
        safetensors::serialize([(VALUES, view)], Some(metadata)).map_err(Error::internal(failed))
    }

    /// Read a file.
    ///
    /// # Errors
    /// [`Error::File`], or [`Error::BadFile`] when it is no prompt, of another version, or damaged.
    pub fn load(path: &Path) -> Result<Arc<Self>> {
        let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
        Self::from_bytes(&bytes, path)
    }

    /// Read the content of a file; `path` is what messages call it.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Arc<Self>> {
        let bad = |problem: String| {
            Error::bad_file(path, problem, "give a file that `nunatak train prompt` wrote, with this version or before")
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| bad(format!("it is no prompt: {e}")))?;
        let description = header.metadata().as_ref().and_then(|m| m.get(DESCRIPTION));
        let description = description.ok_or_else(|| bad("it holds tensors, but no prompt".into()))?;
        let description: PromptDescription =
            serde_json::from_str(description).map_err(|e| bad(format!("its description cannot be read: {e}")))?;
        if description.format != FORMAT {
            return Err(bad(format!("it is of format {}, and this program reads {FORMAT}", description.format)));
        }
        let file = SafeTensors::deserialize(bytes).map_err(|e| bad(format!("it is damaged: {e}")))?;
        let view = file.tensor(VALUES).map_err(|e| bad(format!("it is damaged: {e}")))?;
        if view.dtype() != Dtype::F16 || view.shape() != description.shape() {
            return Err(bad(format!("its numbers have the shape {:?}, not {:?}", view.shape(), description.shape())));
        }
        let hash = hash(&description, view.data());
        if description.sha256.as_ref().is_some_and(|written| *written != hash) {
            return Err(bad("it is damaged: its numbers are not what was written (sha256 differs)".into()));
        }
        let values = floats(view.data());
        if values.iter().any(|x| !x.is_finite()) {
            return Err(bad("some of its numbers are not finite".into()));
        }
        Ok(Arc::new(Self { description, values, hash }))
    }
}

impl PromptDescription {
    /// Shape of the numbers.
    pub fn shape(&self) -> Vec<usize> {
        match self.kind {
            PromptKind::Embeddings => vec![self.positions, self.target.hidden],
            PromptKind::States => vec![self.target.layers, 2, self.positions, self.target.kv_width],
        }
    }
}

fn floats(halves: &[u8]) -> Vec<f32> {
    halves.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
}

fn hash(description: &PromptDescription, halves: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{:?} {:?} {:?}\n", description.kind, description.template, description.target));
    hash.update(halves);
    short_hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn prompt(kind: PromptKind, fill: f32) -> SoftPrompt {
        let description = PromptDescription {
            format: FORMAT,
            kind,
            positions: 3,
            target: PromptTarget { name: "tiny".into(), layers: 2, kv_width: 4, hidden: 8 },
            template: TemplateKind::Plain,
            abstains: true,
            sha256: None,
            training: serde_json::json!({"examples": 12}),
        };
        let count = description.shape().iter().product();
        let values: Vec<f32> = (0..count).map(|i| fill + i as f32 / 7.0).collect();
        SoftPrompt::new(description, &values).unwrap()
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [PromptKind::Embeddings, PromptKind::States] {
            let path = dir.path().join("p.safetensors");
            let saved = prompt(kind, 0.0);
            saved.save(&path).unwrap();
            assert_eq!(*SoftPrompt::load(&path).unwrap(), saved);
        }
    }

    #[test]
    fn the_hash_follows_the_numbers_and_not_the_story() {
        let mut same = prompt(PromptKind::States, 0.0);
        same.description.training = serde_json::json!("another story");
        let bytes = same.to_bytes().unwrap();
        let same = SoftPrompt::from_bytes(&bytes, Path::new("p")).unwrap();
        assert_eq!(same.hash(), prompt(PromptKind::States, 0.0).hash());
        assert_ne!(same.hash(), prompt(PromptKind::States, 0.5).hash());
    }

    #[test]
    fn damage_is_an_error() {
        let bytes = prompt(PromptKind::Embeddings, 0.0).to_bytes().unwrap();
        for cut in 0..bytes.len() {
            assert!(SoftPrompt::from_bytes(&bytes[..cut], Path::new("p")).is_err(), "{cut}");
        }
        assert!(SoftPrompt::from_bytes(b"not a prompt at all", Path::new("p")).is_err());
    }

    #[test]
    fn a_flipped_bit_is_damage() {
        let saved = prompt(PromptKind::States, 0.0);
        let mut bytes = saved.to_bytes().unwrap();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        let error = SoftPrompt::from_bytes(&bytes, Path::new("p")).unwrap_err();
        assert!(matches!(error, Error::BadFile { .. }) && error.to_string().contains("it is damaged"), "{error}");
    }

    #[test]
    fn a_file_without_a_hash_reads_as_before() {
        let saved = prompt(PromptKind::States, 0.0);
        let halves: Vec<u8> = saved.values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let description = PromptDescription { sha256: None, ..saved.description.clone() };
        let description = serde_json::to_string(&description).unwrap();
        assert!(!description.contains("sha256"));
        let view = TensorView::new(Dtype::F16, saved.description.shape(), &halves).unwrap();
        let metadata = HashMap::from([(DESCRIPTION.to_owned(), description)]);
        let bytes = safetensors::serialize([(VALUES, view)], Some(metadata)).unwrap();
        let old = SoftPrompt::from_bytes(&bytes, Path::new("p")).unwrap();
        assert_eq!((old.hash(), old.values()), (saved.hash(), saved.values()));
    }
}
