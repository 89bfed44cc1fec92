//! A model on disk: a folder with graphs, a tokenizer, and `nunatak.json` that says what they are.
//!
//! Folders that this crate exported carry `nunatak.json`. A user's own ONNX encoder or cross-encoder (a
//! standard export with `input_ids` and `attention_mask`) has none; what it would say is then read from
//! the folder's `config.json` and its graph.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::digest::{hex, short_hex};
use crate::error::{Error, Result};
use crate::runtime::standard_export;

/// Name of the description inside a model folder.
pub const DESCRIPTION: &str = "nunatak.json";
/// Name of the main graph inside a model folder.
pub const GRAPH: &str = "model.onnx";
/// Version of [`Description`]'s format.
pub const FORMAT: u32 = 1;

/// What a model folder holds: the content of `nunatak.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Version of this description's format, [`FORMAT`].
    pub format: u32,
    /// What the model is for, with what only that kind has.
    #[serde(flatten)]
    pub kind: ModelKind,
    /// Architecture family: `bert`, `llama`, `mistral`, `qwen2`, `qwen3`.
    pub family: String,
    /// Weights in the graph: `fp32`, `fp16`, `int8`; `onnx` for a user's own graph.
    pub precision: String,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Longest input in tokens, special tokens included.
    pub max_tokens: usize,
    /// Where the weights came from, for people: a package, a hub name, a folder.
    pub source: String,
    /// Of a re-ranker: what the score of each first stage counts beside its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub priors: Vec<Prior>,
    /// sha256 of each file in the folder, by name.
    pub files: BTreeMap<String, String>,
}

/// What a first stage's score counts beside a cross-encoder's: the sum `score + weight * first` ranks better than either,
/// the less the cross-encoder has learned the more so. The weight was found on the questions held out in its training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prior {
    /// Weight of the first stage's score.
    pub weight: f32,
    /// The first stage that it holds for (`mode`, `fusion`, `dense_weight`, `pair_weight`): scores of another have another scale.
    pub retrieval: serde_json::Value,
}

/// What a model is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ModelKind {
    /// Text to one unit vector. Graph `model.onnx`: `input_ids`, `attention_mask` `[B,S]` (i64) ->
    /// `sentence_embedding` `[B,hidden]` (f32), pooled and of unit length. A user's own graph may also give
    /// token vectors `[B,S,hidden]`, which are then pooled outside it; its `token_type_ids` are optional.
    Encoder {
        /// How token vectors become one: `mean`, `cls`, or `graph` when a user's own graph pools by itself.
        pooling: String,
    },
    /// Question and passage to one score. Graph `model.onnx`: `input_ids`, `attention_mask`,
    /// `token_type_ids` `[B,S]` (i64) -> `score` `[B]` (f32, no sigmoid).
    CrossEncoder,
    /// A frozen language model, in two graphs. `embed.onnx`: `input_ids` `[B,S]` (i64) ->
    /// `inputs_embeds` `[B,S,hidden]` (f32). `model.onnx`: `inputs_embeds` `[B,S,hidden]` (f32),
    /// `attention_mask` `[B,T]` (i64, past and present, right-padded), `logit_rows` `[N]` (i64, rows of
    /// the flattened `[B*S]` positions whose logits are wanted), and per layer i
    /// `past_key_values.i.key|value` `[B,kv_heads,P,head_dim]` -> `logits` `[N,vocab]` (f32),
    /// `hidden_states` `[B,S,hidden]` (f32, after the final norm), `present.i.key|value`
    /// `[B,kv_heads,T or buffer,head_dim]`. KV tensors have the graph's float type.
    Lm(LmShape),
}

/// The sizes of a language model that its callers need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LmShape {
    /// Transformer layers.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the token embedding.
    pub vocab: usize,
    /// Float type of the KV cache: `f32` or `f16`.
    pub kv_dtype: String,
    /// Token put before every text, if the tokenizer asks for one.
    pub bos: Option<u32>,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    /// The chat template (Jinja), if the model has one.
    pub chat_template: Option<String>,
}

/// An opened model folder.
#[derive(Debug, Clone)]
pub struct ModelDir {
    /// The folder.
    pub path: PathBuf,
    /// What it holds.
    pub description: Description,
    /// What people call it.
    name: String,
    /// The main graph, relative to the folder.
    graph: PathBuf,
}

impl ModelKind {
    /// The kind's name, as people type it: `encoder`, `cross-encoder`, `lm`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Encoder { .. } => "encoder",
            Self::CrossEncoder => "cross-encoder",
            Self::Lm(_) => "lm",
        }
    }
}

impl ModelDir {
    /// Open a model folder: one with `nunatak.json`, or a user's own standard ONNX export.
    ///
    /// The files of a described folder are checked to be there; their hashes are left to
    /// [`Self::verify`], because hashing hundreds of megabytes would be felt at every start.
    ///
    /// # Errors
    /// [`Error::Model`] when the folder is not there, lacks a file, or is of a kind that cannot be run.
    pub fn open(path: &Path) -> Result<Self> {
        let name = name_of(path);
        if !path.is_dir() {
            return Err(Error::model(
                path.display().to_string(),
                "there is no such model folder",
                "name a folder that has a model.onnx, or a model that `nunatak models list` shows",
            ));
        }
        let described = path.join(DESCRIPTION);
        if !described.is_file() {
            let (description, graph) = standard_export::describe(path, &name)?;
            return Ok(Self { path: path.to_path_buf(), description, name, graph });
        }
        let text = std::fs::read_to_string(&described).map_err(Error::file("read", &described))?;
        let description: Description = serde_json::from_str(&text).map_err(|e| {
            Error::model(&name, format!("its {DESCRIPTION} is not valid: {e}"), "import or export the model again")
        })?;
        if description.format != FORMAT {
            return Err(Error::model(
                &name,
                format!(
                    "its {DESCRIPTION} is of format {}, and this program reads format {FORMAT}",
                    description.format
                ),
                "export it again with this version, or use the version that wrote it",
            ));
        }
        for file in description.files.keys() {
            if !path.join(file).is_file() {
                return Err(Error::model(&name, format!("its file {file} is missing"), "import or export it again"));
            }
        }
        Ok(Self { path: path.to_path_buf(), description, name, graph: PathBuf::from(GRAPH) })
    }

    /// A file of this folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The main graph.
    pub fn graph(&self) -> PathBuf {
        self.path.join(&self.graph)
    }

    /// What people call it: the name it was asked for by, with its precision (`all-MiniLM-L6-v2@int8`), which
    /// [`setup::model`](crate::runtime::setup::model) takes again; for a folder of the user's, the folder's name.
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// The same without its precision.
    pub fn stem(&self) -> &str {
        self.name.split('@').next().unwrap_or(&self.name)
    }

    /// The same model, called so.
    pub(super) fn called(self, name: String) -> Self {
        Self { name, ..self }
    }

    /// What makes this model's output what it is, as 32 hexadecimal digits: a hash over its files and over
    /// those parts of the description that change what it computes. Two folders with equal fingerprints
    /// give equal vectors.
    pub fn fingerprint(&self) -> String {
        let Description { kind, max_tokens, files, .. } = &self.description;
        let mut hash = Sha256::new();
        hash.update(format!("{kind:?}\n{max_tokens}\n"));
        for (name, sha256) in files {
            hash.update(format!("{name} {sha256}\n"));
        }
        short_hex(&hash.finalize())
    }

    /// Hash every file of the folder and compare with its description.
    ///
    /// # Errors
    /// [`Error::Model`] naming the first file that differs.
    pub fn verify(&self) -> Result<()> {
        for (file, expected) in &self.description.files {
            if &sha256_of(&self.path.join(file))? != expected {
                return Err(Error::model(
                    self.name(),
                    format!("its file {file} is not what was written (sha256 differs)"),
                    "export or import the model again",
                ));
            }
        }
        Ok(())
    }

    /// Bytes on disk of the files that the description names.
    pub fn size(&self) -> u64 {
        let size = |file: &String| std::fs::metadata(self.path.join(file)).map_or(0, |m| m.len());
        self.description.files.keys().map(size).sum()
    }
}

impl Description {
    /// Hash the files of `dir` into [`Self::files`] and write `nunatak.json` there: the last step of an
    /// export, when every other file is in place.
    pub fn write(&mut self, dir: &Path) -> Result<()> {
        self.files.clear();
        for entry in std::fs::read_dir(dir).map_err(Error::file("read", dir))? {
            let path = entry.map_err(Error::file("read", dir))?.path();
            let name = name_of(&path);
            if path.is_file() && name != DESCRIPTION {
                self.files.insert(name, sha256_of(&path)?);
            }
        }
        let text = serde_json::to_string_pretty(self).map_err(Error::internal("describing a model"))?;
        let path = dir.join(DESCRIPTION);
        std::fs::write(&path, text + "\n").map_err(Error::file("write", &path))
    }
}

/// sha256 of a file, in hexadecimal.
pub fn sha256_of(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).map_err(Error::file("read", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(Error::file("read", path))?;
        let Some(bytes) = buffer.get(..n).filter(|b| !b.is_empty()) else { break };
        hash.update(bytes);
    }
    Ok(hex(&hash.finalize()))
}

fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder() -> Description {
        Description {
            format: FORMAT,
            kind: ModelKind::Encoder { pooling: "mean".into() },
            family: "bert".into(),
            precision: "int8".into(),
            hidden: 384,
            max_tokens: 256,
            source: "a test".into(),
            priors: Vec::new(),
            files: BTreeMap::new(),
        }
    }

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.onnx"), "graph").unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        dir
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = folder();
        let mut description = encoder();
        description.write(dir.path()).unwrap();
        let model = ModelDir::open(dir.path()).unwrap();
        assert_eq!(model.description, description);
        assert_eq!(model.description.files.len(), 2);
        // printf graph | sha256sum
        assert_eq!(
            model.description.files["model.onnx"],
            "eef93e1d14482804277fca0172464032d1a4fdbcc338524059fa1e861454ad4d"
        );
        model.verify().unwrap();
    }

    #[test]
    fn the_fingerprint_follows_the_files_and_the_pooling_but_not_the_folder() {
        let (a, b) = (folder(), folder());
        encoder().write(a.path()).unwrap();
        encoder().write(b.path()).unwrap();
        let fingerprint = |dir: &tempfile::TempDir| ModelDir::open(dir.path()).unwrap().fingerprint();
        assert_eq!(fingerprint(&a), fingerprint(&b));
        assert_eq!(fingerprint(&a).len(), 32);
        let before = fingerprint(&b);
        Description { kind: ModelKind::Encoder { pooling: "cls".into() }, ..encoder() }.write(b.path()).unwrap();
        assert_ne!(fingerprint(&b), before);
        std::fs::write(a.path().join("tokenizer.json"), "{ }").unwrap();
        encoder().write(a.path()).unwrap();
        assert_ne!(fingerprint(&a), before);
    }

    #[test]
    fn damage_is_named() {
        let dir = folder();
        encoder().write(dir.path()).unwrap();
        let model = ModelDir::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("model.onnx"), "grapH").unwrap();
        assert!(model.verify().unwrap_err().to_string().contains("model.onnx"));
        std::fs::remove_file(dir.path().join("model.onnx")).unwrap();
        assert!(ModelDir::open(dir.path()).unwrap_err().to_string().contains("model.onnx is missing"));
    }

    #[test]
    fn a_description_of_another_format_is_refused() {
        let dir = folder();
        Description { format: 2, ..encoder() }.write(dir.path()).unwrap();
        assert!(ModelDir::open(dir.path()).unwrap_err().to_string().contains("format 2"));
    }

    #[test]
    fn every_kind_survives_json() {
        let shape = LmShape {
            layers: 2,
            kv_heads: 1,
            head_dim: 8,
            vocab: 100,
            kv_dtype: "f32".into(),
            bos: None,
            eos: vec![2],
            chat_template: Some("{{ x }}".into()),
        };
        for kind in [ModelKind::CrossEncoder, ModelKind::Lm(shape), ModelKind::Encoder { pooling: "cls".into() }] {
            let description = Description { kind, ..encoder() };
            let text = serde_json::to_string(&description).unwrap();
            assert_eq!(serde_json::from_str::<Description>(&text).unwrap(), description);
        }
    }
}
