//! What a T5 model folder says of its encoder: sizes from `config.json`, the names of its tensors, and how far apart two tokens
//! count as (Raffel et al. 2020, arXiv:1910.10683; gated feed-forward layers: Shazeer 2020, arXiv:2002.05202).
//!
//! Graphs are not built here. T5 and mT5 share one bias for relative positions among all layers; UMT5, which does not, is not known.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::export::sentence::{Head, json, max_tokens};
use crate::export::weights::Weights;

/// Sizes and conventions of a T5 encoder.
#[derive(Debug)]
pub(crate) struct T5Source {
    /// `model_type` of `config.json`.
    pub(crate) model_type: String,
    /// Width of the states.
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    /// Width of a head, which need not be `hidden / heads`.
    pub(crate) head_dim: usize,
    /// Width between the two feed-forward layers.
    pub(crate) intermediate: usize,
    pub(crate) vocab: usize,
    /// Kinds of distance between two tokens, half of them for each direction.
    pub(crate) buckets: usize,
    /// From here on, all distances are of the last kind.
    pub(crate) max_distance: usize,
    /// Whether one feed-forward layer gates another (T5 1.1, with GELU by tanh); one with ReLU otherwise.
    pub(crate) gated: bool,
    pub(crate) eps: f32,
    pub(crate) head: Head,
    /// Longest input in tokens.
    pub(crate) max_tokens: usize,
    /// Name of the table of word embeddings.
    pub(crate) words: String,
}

#[derive(Deserialize)]
struct Config {
    model_type: String,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
    vocab_size: usize,
    relative_attention_num_buckets: usize,
    #[serde(default = "default_max_distance")]
    relative_attention_max_distance: usize,
    #[serde(default = "default_feed_forward")]
    feed_forward_proj: String,
    #[serde(default = "default_eps")]
    layer_norm_epsilon: f32,
}

/// What a `config.json` of the first T5s does not state.
fn default_max_distance() -> usize {
    128
}

fn default_feed_forward() -> String {
    "relu".into()
}

fn default_eps() -> f32 {
    1e-6
}

/// The learned matrices of one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    Query,
    Key,
    Value,
    AttentionOut,
    AttentionNorm,
    /// Into the feed-forward layer; what passes the activation.
    In,
    /// What is multiplied with it, in a gated layer.
    Gated,
    Out,
    FeedForwardNorm,
}

/// The farthest that relative positions may reach: T5 has 128, and each has a bias of its own in the graph.
const FARTHEST: usize = 1 << 16;

impl T5Source {
    /// Read the folder's configuration; `weights` tell what the table of words is called.
    ///
    /// # Errors
    /// [`Error::File`] without `config.json`, [`Error::Model`] for an activation, pooling or module that there is no graph for.
    pub(crate) fn read(folder: &Path, weights: &Weights) -> Result<Self> {
        let config: Config = json(&folder.join("config.json"))?;
        let refuse = |problem: String, hint: &str| Error::model(folder.display().to_string(), problem, hint);
        let gated = match config.feed_forward_proj.as_str() {
            "relu" => false,
            "gated-gelu" => true,
            other => {
                let hint = "models with relu or gated-gelu can be exported";
                return Err(refuse(format!("its feed-forward layers are `{other}`"), hint));
            }
        };
        // A quarter of the kinds are single distances, and there is at least one of them; the rest reach up to the largest.
        let exact = config.relative_attention_num_buckets / 4;
        let counts = [config.d_model, config.d_ff, config.d_kv, config.num_heads, config.num_layers];
        let distances = exact + 1..=FARTHEST;
        if counts.contains(&0) || exact == 0 || !distances.contains(&config.relative_attention_max_distance) {
            let problem = "its sizes cannot be: a count is 0, or relative positions reach less far than they are counted one by one, or beyond all reason";
            return Err(refuse(problem.into(), "config.json is damaged: fetch the model again"));
        }
        let tables = ["shared.weight", "encoder.embed_tokens.weight"];
        let words = tables.into_iter().find(|name| weights.contains(name)).unwrap_or("shared.weight").to_owned();
        Ok(Self {
            hidden: config.d_model,
            layers: config.num_layers,
            heads: config.num_heads,
            head_dim: config.d_kv,
            intermediate: config.d_ff,
            vocab: config.vocab_size,
            buckets: config.relative_attention_num_buckets,
            max_distance: config.relative_attention_max_distance,
            gated,
            eps: config.layer_norm_epsilon,
            head: Head::read(folder, config.d_model)?,
            max_tokens: max_tokens(folder)?,
            words,
            model_type: config.model_type,
        })
    }

    /// Name of a matrix or normalisation of layer `layer`, with `.weight`; there are no biases.
    pub(crate) fn name(&self, layer: usize, part: Part) -> String {
        let name = match part {
            Part::Query => "0.SelfAttention.q",
            Part::Key => "0.SelfAttention.k",
            Part::Value => "0.SelfAttention.v",
            Part::AttentionOut => "0.SelfAttention.o",
            Part::AttentionNorm => "0.layer_norm",
            Part::In if self.gated => "1.DenseReluDense.wi_0",
            Part::In => "1.DenseReluDense.wi",
            Part::Gated => "1.DenseReluDense.wi_1",
            Part::Out => "1.DenseReluDense.wo",
            Part::FeedForwardNorm => "1.layer_norm",
        };
        format!("encoder.block.{layer}.layer.{name}.weight")
    }

    /// `[out, in]` of a matrix, `[hidden]` of a normalisation.
    pub(crate) fn shape(&self, part: Part) -> Vec<usize> {
        let (hidden, inner) = (self.hidden, self.heads * self.head_dim);
        match part {
            Part::Query | Part::Key | Part::Value => vec![inner, hidden],
            Part::AttentionOut => vec![hidden, inner],
            Part::In | Part::Gated => vec![self.intermediate, hidden],
            Part::Out => vec![hidden, self.intermediate],
            Part::AttentionNorm | Part::FeedForwardNorm => vec![hidden],
        }
    }

    /// What is added to attention's scores by how far the key stands from the query, `[heads, 2 * max_distance + 1]`: the column of
    /// `max_distance + d` is for a key `d` tokens later, and whatever is farther counts as the first or last.
    pub(crate) fn distance_biases(&self, weights: &Weights) -> Result<Vec<f32>> {
        let name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let table = weights.tensor_of(name, &[self.buckets, self.heads])?;
        let reach = self.max_distance as i64;
        let mut biases = Vec::with_capacity(self.heads * (2 * self.max_distance + 1));
        for head in 0..self.heads {
            biases.extend((-reach..=reach).map(|distance| {
                let row = bucket(distance, self.buckets, self.max_distance);
                table.get(row * self.heads + head).copied().unwrap_or_default()
            }));
        }
        Ok(biases)
    }
}

/// The kind of a distance, `key - query` in tokens: keys before and after have `buckets / 2` kinds each; half of these are single
/// distances, the others grow by a factor up to `max_distance`, beyond which all is the last kind.
fn bucket(distance: i64, buckets: usize, max_distance: usize) -> usize {
    let half = buckets / 2;
    let side = if distance > 0 { half } else { 0 };
    let apart = distance.unsigned_abs() as usize;
    let exact = half / 2;
    if apart < exact {
        return side + apart;
    }
    let farther = (apart as f32 / exact as f32).ln() / (max_distance as f32 / exact as f32).ln();
    side + (exact + (farther * (half - exact) as f32) as usize).min(half - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_fall_into_the_kinds_of_the_paper() {
        // In integers: distance n is of kind 8 + k, where k is the largest with (n / 8)^8 >= 16^k, at most 7.
        let kind = |n: u128| match n {
            0..8 => n as usize,
            _ => 8 + (0..8u32).rev().find(|&k| n.pow(8) >= 8u128.pow(8) * 16u128.pow(k)).unwrap() as usize,
        };
        for n in 0..1000 {
            assert_eq!(bucket(-(n as i64), 32, 128), kind(n), "{n} before");
            let after = if n == 0 { 0 } else { 16 + kind(n) };
            assert_eq!(bucket(n as i64, 32, 128), after, "{n} after");
        }
    }
}
