//! What a BERT-family model folder says about itself: sizes from `config.json`, and the names its tensors go by.
//!
//! Graphs are not built here.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::export::sentence::{Head, json, max_tokens, of_json};
use crate::export::weights::Weights;

/// A model of the BERT family, by its naming of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Bert,
    /// RoBERTa and XLM-RoBERTa: positions begin after the padding id, and there are no token types.
    Roberta,
    /// DistilBERT: no token types, no pooler.
    DistilBert,
}

/// The activation between the two feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// x Φ(x).
    Gelu,
    /// Its approximation by tanh.
    GeluTanh,
    Relu,
}

/// Sizes and conventions of a model.
#[derive(Debug)]
pub(crate) struct BertSource {
    pub(crate) family: Family,
    /// `model_type` of `config.json`.
    pub(crate) model_type: String,
    /// Width of the hidden states.
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    /// Width between the two feed-forward layers.
    pub(crate) intermediate: usize,
    pub(crate) vocab: usize,
    /// Rows of the position table.
    pub(crate) position_rows: usize,
    /// Row of the first token's position.
    pub(crate) first_position: usize,
    /// Rows of the token type table; 0 without one.
    pub(crate) token_types: usize,
    pub(crate) activation: Activation,
    pub(crate) layer_norm_eps: f32,
    pub(crate) head: Head,
    /// Longest input in tokens.
    pub(crate) max_tokens: usize,
    /// What all tensor names of the encoder begin with: empty, or `bert.` and the like.
    pub(crate) prefix: String,
}

/// `config.json`; DistilBERT has names of its own for the same sizes.
#[derive(Deserialize)]
struct Config {
    model_type: String,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    #[serde(alias = "activation")]
    hidden_act: String,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default)]
    type_vocab_size: usize,
    #[serde(default = "default_eps")]
    layer_norm_eps: f32,
    pad_token_id: Option<usize>,
    position_embedding_type: Option<String>,
}

/// DistilBERT does not state it: its code has this constant.
fn default_eps() -> f32 {
    1e-12
}

impl BertSource {
    /// Read the folder's configuration; `weights` tell which prefix the names have.
    ///
    /// # Errors
    /// [`Error::File`] without `config.json`, [`Error::Model`] for an architecture, activation, pooling or
    /// module that the exporter has no graph for.
    pub(crate) fn read(folder: &Path, weights: &Weights) -> Result<Self> {
        let path = folder.join("config.json");
        let config: Value = json(&path)?;
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let refuse = |problem: String, hint: &str| Error::model(folder.display().to_string(), problem, hint);
        let (family, root) = match model_type {
            "bert" => (Family::Bert, "bert."),
            "roberta" | "xlm-roberta" => (Family::Roberta, "roberta."),
            "distilbert" => (Family::DistilBert, "distilbert."),
            other => {
                return Err(refuse(
                    format!("its architecture `{other}` is neither of the BERT family nor a T5's"),
                    "use a bert, roberta, xlm-roberta, distilbert, t5 or mt5 model, or bring a finished ONNX export",
                ));
            }
        };
        let config: Config = of_json(config, &path)?;
        let activation = match config.hidden_act.as_str() {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            other => {
                return Err(refuse(
                    format!("its activation `{other}` is not known"),
                    "models with gelu, gelu_new or relu can be exported",
                ));
            }
        };
        if config.position_embedding_type.as_deref().is_some_and(|t| t != "absolute") {
            return Err(refuse("its positions are relative".into(), "models with absolute positions can be exported"));
        }
        let sizes = [config.hidden_size, config.intermediate_size, config.vocab_size];
        let first_position =
            if family == Family::Roberta { config.pad_token_id.unwrap_or(1).saturating_add(1) } else { 0 };
        if sizes.contains(&0) || config.max_position_embeddings <= first_position {
            return Err(refuse(
                "one of its sizes is zero, or it has no positions".into(),
                "config.json is damaged: fetch the model again",
            ));
        }
        if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(refuse(
                format!("its width {} cannot be shared by {} heads", config.hidden_size, config.num_attention_heads),
                "config.json is damaged: fetch the model again",
            ));
        }
        let positions = config.max_position_embeddings - first_position;
        let prefix = if weights.contains(&format!("{root}embeddings.word_embeddings.weight")) { root } else { "" };
        Ok(Self {
            family,
            hidden: config.hidden_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            intermediate: config.intermediate_size,
            vocab: config.vocab_size,
            position_rows: config.max_position_embeddings,
            first_position,
            token_types: if family == Family::DistilBert { 0 } else { config.type_vocab_size },
            activation,
            layer_norm_eps: config.layer_norm_eps,
            head: Head::read(folder, config.hidden_size)?,
            max_tokens: max_tokens(folder)?.min(positions),
            prefix: prefix.to_owned(),
            model_type: config.model_type,
        })
    }

    /// Name of a tensor of layer `layer`, by its BERT name without the layer: `attention.self.query`.
    pub(crate) fn layer(&self, layer: usize, part: Part) -> String {
        let name = match (self.family, part) {
            (Family::DistilBert, Part::Query) => "attention.q_lin",
            (Family::DistilBert, Part::Key) => "attention.k_lin",
            (Family::DistilBert, Part::Value) => "attention.v_lin",
            (Family::DistilBert, Part::AttentionOut) => "attention.out_lin",
            (Family::DistilBert, Part::AttentionNorm) => "sa_layer_norm",
            (Family::DistilBert, Part::FeedForwardIn) => "ffn.lin1",
            (Family::DistilBert, Part::FeedForwardOut) => "ffn.lin2",
            (Family::DistilBert, Part::OutputNorm) => "output_layer_norm",
            (_, Part::Query) => "attention.self.query",
            (_, Part::Key) => "attention.self.key",
            (_, Part::Value) => "attention.self.value",
            (_, Part::AttentionOut) => "attention.output.dense",
            (_, Part::AttentionNorm) => "attention.output.LayerNorm",
            (_, Part::FeedForwardIn) => "intermediate.dense",
            (_, Part::FeedForwardOut) => "output.dense",
            (_, Part::OutputNorm) => "output.LayerNorm",
        };
        let stack = if self.family == Family::DistilBert { "transformer" } else { "encoder" };
        format!("{}{stack}.layer.{layer}.{name}", self.prefix)
    }
}

/// The learned pieces of one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    Query,
    Key,
    Value,
    AttentionOut,
    AttentionNorm,
    FeedForwardIn,
    FeedForwardOut,
    OutputNorm,
}
