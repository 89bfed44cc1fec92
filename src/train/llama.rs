//! The frozen language model for training: the forward pass of the Llama family, with gradients for what is put into
//! it and none for its weights.
//!
//! Weights come from the files that the exporter reads and in the same words (`LmSource`), in f32. What is learned
//! enters as input embeddings or as a prefix of keys and values in each layer.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use crate::digest::hex;
use crate::error::{Error, Result};
use crate::export::llama_source::{LmConfig, LmSource};
use crate::train::ops::{Attention, FrozenLinear, Packed, causal_attention, rms_norm, swiglu};

/// A language model whose weights are constants.
#[derive(Debug)]
pub struct Decoder {
    config: LmConfig,
    device: Device,
    embeddings: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: FrozenLinear,
    weights: Vec<Tensor>,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Tensor,
    /// Queries, keys and values in one product.
    qkv: FrozenLinear,
    /// Norms of each query and key head, which Qwen3 has.
    head_norms: Option<(Tensor, Tensor)>,
    out: FrozenLinear,
    mlp_norm: Tensor,
    /// Gate and up in one product.
    gate_up: FrozenLinear,
    down: FrozenLinear,
}

/// The error of a tensor operation, for `map_err`.
pub(in crate::train) fn failed(e: candle_core::Error) -> Error {
    Error::Internal { doing: "computing in training", message: e.to_string() }
}

impl Decoder {
    /// Load the weights at `path`: a safetensors folder or a GGUF file.
    ///
    /// # Errors
    /// What is missing or damaged, by name.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        Self::load(&LmSource::open(path)?, device)
    }

    /// Load all weights of `source` in f32.
    fn load(source: &LmSource, device: &Device) -> Result<Self> {
        let config = source.config.clone();
        let mut loader = Loader { source, device, weights: Vec::new() };
        let embeddings = loader.tensor("model.embed_tokens.weight", &[config.vocab, config.hidden])?;
        let layers = (0..config.layers).map(|layer| loader.layer(layer)).collect::<Result<_>>()?;
        let norm = loader.tensor("model.norm.weight", &[config.hidden])?;
        let head = if config.tied {
            FrozenLinear::new(embeddings.clone(), None)
        } else {
            FrozenLinear::new(loader.tensor("lm_head.weight", &[config.vocab, config.hidden])?, None)
        };
        let weights = loader.weights;
        Ok(Self { config, device: device.clone(), embeddings, layers, norm, head, weights })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Transformer layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Width of an input embedding.
    pub fn hidden(&self) -> usize {
        self.config.hidden
    }

    /// Width of the keys (and of the values) of one position in one layer: `kv_heads * head_dim`.
    pub fn kv_width(&self) -> usize {
        self.config.kv_heads * self.config.head_dim
    }

    /// Numbers in its weights.
    pub fn parameters(&self) -> usize {
        self.weights.iter().map(Tensor::elem_count).sum()
    }

    /// sha256 over every weight as it lies in memory, in hexadecimal: equal before and after a training, or the model
    /// was not frozen.
    pub fn weights_hash(&self) -> Result<String> {
        let mut hash = Sha256::new();
        for weight in &self.weights {
            let data: Vec<f32> = weight.flatten_all().and_then(|t| t.to_vec1()).map_err(failed)?;
            hash.update(bytemuck::cast_slice::<f32, u8>(&data));
        }
        Ok(hex(&hash.finalize()))
    }

    /// Input embeddings of tokens, `[tokens, hidden]`.
    pub fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let ids = Tensor::new(tokens, &self.device).map_err(failed)?;
        self.embeddings.index_select(&ids, 0).map_err(failed)
    }

    /// Hidden states after the final norm, `[rows.len(), hidden]`, of the wanted rows of a packed batch.
    ///
    /// `embeds [tokens, hidden]` are its inputs. `prefix` gives each layer's `[2, positions, kv_width]`: keys with
    /// their positions applied, and values.
    pub fn forward(&self, embeds: &Tensor, packed: &Packed, prefix: Option<&[Tensor]>, rows: &[u32]) -> Result<Tensor> {
        let start = match prefix.and_then(<[Tensor]>::first) {
            Some(first) => first.dim(1).map_err(failed)?,
            None => 0,
        };
        let attention = Arc::new(self.attention(packed.clone(), start));
        let mut x = embeds.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            x = self.layer(layer, &x, prefix.and_then(|p| p.get(i)), &attention).map_err(failed)?;
        }
        let rows = Tensor::new(rows, &self.device).map_err(failed)?;
        let x = x.index_select(&rows, 0).map_err(failed)?;
        rms_norm(&x, &self.norm, self.config.norm_eps).map_err(failed)
    }

    /// Logits `[rows, vocab]` of hidden states `[rows, hidden]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(hidden).map_err(failed)
    }

    /// The keys and values that tokens leave in each layer's cache, `[2, tokens, kv_width]`: what a prefix made of
    /// these words would be.
    pub fn states(&self, tokens: &[u32]) -> Result<Vec<Tensor>> {
        let packed = Packed::new([tokens.len()]);
        let attention = Arc::new(self.attention(packed, 0));
        let mut x = self.embed(tokens)?;
        let mut states = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            states.push(self.layer_states(layer, &x, &attention).map_err(failed)?);
            x = self.layer(layer, &x, None, &attention).map_err(failed)?;
        }
        Ok(states)
    }

    fn attention(&self, packed: Packed, start: usize) -> Attention {
        Attention {
            heads: self.config.heads,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            sliding_window: self.config.sliding_window,
            inverse_frequencies: self.config.inverse_frequencies.clone(),
            packed,
            start,
            plan: OnceLock::new(),
        }
    }

    fn layer(
        &self,
        layer: &Layer,
        x: &Tensor,
        prefix: Option<&Tensor>,
        attention: &Arc<Attention>,
    ) -> candle_core::Result<Tensor> {
        let qkv = self.qkv(layer, x)?;
        let x = layer.out.forward_onto(&causal_attention(&qkv, prefix, attention)?, x)?;
        let normed = rms_norm(&x, &layer.mlp_norm, self.config.norm_eps)?;
        layer.down.forward_onto(&swiglu(&layer.gate_up.forward(&normed)?)?, &x)
    }

    fn qkv(&self, layer: &Layer, x: &Tensor) -> candle_core::Result<Tensor> {
        let qkv = layer.qkv.forward(&rms_norm(x, &layer.attention_norm, self.config.norm_eps)?)?;
        let Some((query, key)) = &layer.head_norms else { return Ok(qkv) };
        let LmConfig { heads, kv_heads, head_dim, norm_eps, .. } = self.config;
        let tokens = qkv.dim(0)?;
        let normed = |first: usize, count: usize, weight: &Tensor| {
            let part = qkv.narrow(1, first * head_dim, count * head_dim)?.contiguous()?;
            rms_norm(&part.reshape((tokens * count, head_dim))?, weight, norm_eps)?.reshape((tokens, count * head_dim))
        };
        let values = qkv.narrow(1, (heads + kv_heads) * head_dim, kv_heads * head_dim)?;
        Tensor::cat(&[normed(0, heads, query)?, normed(heads, kv_heads, key)?, values], 1)
    }

    fn layer_states(&self, layer: &Layer, x: &Tensor, attention: &Attention) -> candle_core::Result<Tensor> {
        let LmConfig { heads, kv_heads, head_dim, .. } = self.config;
        let qkv = self.qkv(layer, x)?;
        let (tokens, width) = (qkv.dim(0)?, kv_heads * head_dim);
        let keys = qkv.narrow(1, heads * head_dim, width)?.reshape((tokens, kv_heads, head_dim))?;
        let (cos, sin) = attention.rotations(tokens);
        let table = |data: Vec<f32>| Tensor::from_vec(data, (tokens, 1, head_dim / 2), &self.device);
        let (cos, sin) = (table(cos)?, table(sin)?);
        let (a, b) = (keys.narrow(2, 0, head_dim / 2)?, keys.narrow(2, head_dim / 2, head_dim / 2)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        let keys = Tensor::cat(&[first, second], 2)?.reshape((tokens, width))?;
        let values = qkv.narrow(1, (heads + kv_heads) * head_dim, width)?.contiguous()?;
        Tensor::stack(&[keys, values], 0)
    }
}

struct Loader<'a> {
    source: &'a LmSource,
    device: &'a Device,
    weights: Vec<Tensor>,
}

impl Loader<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = Tensor::from_vec(self.source.tensor(name, shape)?, shape, self.device).map_err(failed)?;
        self.weights.push(tensor.clone());
        Ok(tensor)
    }

    /// Several linear layers of one input as one: their names and rows.
    fn linear(&mut self, parts: &[(String, usize)], columns: usize) -> Result<FrozenLinear> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for (name, rows) in parts {
            weight.extend(self.source.tensor(&format!("{name}.weight"), &[*rows, columns])?);
            let bias_name = format!("{name}.bias");
            if self.source.contains(&bias_name) {
                bias.extend(self.source.tensor(&bias_name, &[*rows])?);
            }
        }
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        let mut keep = |data: Vec<f32>, shape: &[usize]| -> Result<Tensor> {
            let tensor = Tensor::from_vec(data, shape, self.device).map_err(failed)?;
            self.weights.push(tensor.clone());
            Ok(tensor)
        };
        let weight = keep(weight, &[rows, columns])?;
        let bias = if bias.len() == rows { Some(keep(bias, &[rows])?) } else { None };
        Ok(FrozenLinear::new(weight, bias))
    }

    fn layer(&mut self, layer: usize) -> Result<Layer> {
        let LmConfig { hidden, intermediate, heads, kv_heads, head_dim, .. } = self.source.config;
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let q_norm = name("self_attn.q_norm.weight");
        let head_norms = if self.source.contains(&q_norm) {
            let k_norm = name("self_attn.k_norm.weight");
            Some((self.tensor(&q_norm, &[head_dim])?, self.tensor(&k_norm, &[head_dim])?))
        } else {
            None
        };
        let attention =
            [("q", queries), ("k", keys), ("v", keys)].map(|(p, n)| (name(&format!("self_attn.{p}_proj")), n));
        let mlp = ["gate", "up"].map(|part| (name(&format!("mlp.{part}_proj")), intermediate));
        Ok(Layer {
            attention_norm: self.tensor(&name("input_layernorm.weight"), &[hidden])?,
            qkv: self.linear(&attention, hidden)?,
            head_norms,
            out: self.linear(&[(name("self_attn.o_proj"), hidden)], queries)?,
            mlp_norm: self.tensor(&name("post_attention_layernorm.weight"), &[hidden])?,
            gate_up: self.linear(&mlp, hidden)?,
            down: self.linear(&[(name("mlp.down_proj"), hidden)], intermediate)?,
        })
    }
}
