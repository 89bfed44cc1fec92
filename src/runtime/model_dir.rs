//! A model on disk: a folder with graphs, a tokenizer, and `nunatak.json` that says what they are.
//!
//! Folders that this crate exported carry `nunatak.json`. A user's own ONNX encoder or cross-encoder (a
//! standard export with `input_ids` and `attention_mask`) has none; what it would say is then read from
//! the folder's `config.json` and its graph.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of the description inside a model folder.
pub const DESCRIPTION: &str = "nunatak.json";

/// What a model folder holds: the content of `nunatak.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Version of this description's format; 1.
    pub format: u32,
    /// What the model is for, with what only that kind has.
    #[serde(flatten)]
    pub kind: ModelKind,
    /// Architecture family: `bert`, `llama`, `mistral`, `qwen2`, `qwen3`.
    pub family: String,
    /// Weights in the graph: `fp32`, `fp16`, `int8`.
    pub precision: String,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Longest input in tokens, special tokens included.
    pub max_tokens: usize,
    /// Where the weights came from, for people: a package, a hub name, a folder.
    pub source: String,
    /// sha256 of each file in the folder, by name; the graph's hash is the model's fingerprint.
    pub files: BTreeMap<String, String>,
}

/// What a model is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ModelKind {
    /// Text to one unit vector. Graph `model.onnx`: `input_ids`, `attention_mask` `[B,S]` (i64) ->
    /// `sentence_embedding` `[B,hidden]` (f32), pooled and of unit length.
    Encoder {
        /// How token vectors become one: `mean` or `cls`.
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
}

impl ModelDir {
    /// A file of this folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The main graph.
    pub fn graph(&self) -> PathBuf {
        self.file("model.onnx")
    }

    /// The folder's name, for messages.
    pub fn name(&self) -> String {
        name_of(&self.path)
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}
