//! A frozen T5 encoder, for the gradient of learned vectors before its input.
//!
//! The weights are constants, read from the same folders as the exporter's, and the formulas are composed of candle's operators, on
//! the processor as on a GPU: what is trained behind a T5 is small, and this is not where its time goes.

use std::path::Path;

use candle_core::{D, Device, Result as Candle, Tensor};

use crate::error::Result;
use crate::export::t5_source::{Part, T5Source};
use crate::export::weights::Weights;
use crate::train::llama::failed;
use crate::train::ops::rms_norm;
use crate::train::texts::{PackedTexts, Padding};

/// The encoder.
#[derive(Debug)]
pub struct T5Encoder {
    source: T5Source,
    device: Device,
    words: Tensor,
    /// `[heads, 2 * max_distance + 1]`: see [`T5Source::distance_biases`].
    distances: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
}

/// Matrices `[in, out]`, and the two normalisations.
#[derive(Debug)]
struct Layer {
    attention_norm: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    feed_forward_norm: Tensor,
    inner: Tensor,
    gated: Option<Tensor>,
    outer: Tensor,
}

impl T5Encoder {
    /// Load the encoder of the T5 in `folder` (safetensors, as the exporter reads it).
    ///
    /// # Errors
    /// What reading the folder says of it.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let weights = Weights::open(folder)?;
        let source = T5Source::read(folder, &weights)?;
        let tensor = |name: &str, shape: &[usize]| {
            Tensor::from_vec(weights.tensor_of(name, shape)?, shape, device).map_err(failed)
        };
        let piece = |layer: usize, part: Part| {
            let tensor = tensor(&source.name(layer, part), &source.shape(part))?;
            if tensor.rank() == 2 { tensor.t().and_then(|t| t.contiguous()).map_err(failed) } else { Ok(tensor) }
        };
        let layer = |number: usize| {
            Ok(Layer {
                attention_norm: piece(number, Part::AttentionNorm)?,
                query: piece(number, Part::Query)?,
                key: piece(number, Part::Key)?,
                value: piece(number, Part::Value)?,
                out: piece(number, Part::AttentionOut)?,
                feed_forward_norm: piece(number, Part::FeedForwardNorm)?,
                inner: piece(number, Part::In)?,
                gated: if source.gated { Some(piece(number, Part::Gated)?) } else { None },
                outer: piece(number, Part::Out)?,
            })
        };
        let layers = (0..source.layers).map(layer).collect::<Result<Vec<Layer>>>()?;
        let columns = 2 * source.max_distance + 1;
        let distances = source.distance_biases(&weights)?;
        Ok(Self {
            words: tensor(&source.words, &[source.vocab, source.hidden])?,
            distances: Tensor::from_vec(distances, (source.heads, columns), device).map_err(failed)?,
            norm: tensor("encoder.final_layer_norm.weight", &[source.hidden])?,
            layers,
            device: device.clone(),
            source,
        })
    }

    /// Width of the states.
    pub fn hidden(&self) -> usize {
        self.source.hidden
    }

    /// The last layer's states of texts that each stand behind the learned vectors `prompt [m,d]`: `[sum of m + T, d]`, text after
    /// text, and where each begins, with the end. The gradient goes to `prompt`.
    ///
    /// # Errors
    /// [`Error::Internal`](crate::error::Error::Internal) when an id passes the table of words.
    pub fn states_behind(&self, texts: &PackedTexts, prompt: &Tensor) -> Result<(Tensor, Vec<usize>)> {
        self.forward(texts, prompt).map_err(failed)
    }

    fn forward(&self, texts: &PackedTexts, prompt: &Tensor) -> Candle<(Tensor, Vec<usize>)> {
        let ids = Tensor::from_vec(texts.ids().to_vec(), texts.tokens(), &self.device)?;
        let (mut x, starts) = texts.behind(&self.words.index_select(&ids, 0)?, prompt)?; // [T,d]
        let padding = Padding::new(&starts, &self.device)?;
        let bias = self.bias(padding.longest)?.broadcast_add(&padding.mask)?; // [texts,heads,L,L]
        for layer in &self.layers {
            let normed = rms_norm(&x, &layer.attention_norm, self.source.eps)?;
            let context = self.attention(layer, &normed, &padding, &bias)?;
            x = (x + context.matmul(&layer.out)?)?;
            let normed = rms_norm(&x, &layer.feed_forward_norm, self.source.eps)?;
            let inner = normed.matmul(&layer.inner)?;
            let inner = match &layer.gated {
                Some(gated) => (inner.gelu()? * normed.matmul(gated)?)?,
                None => inner.relu()?,
            };
            x = (x + inner.matmul(&layer.outer)?)?;
        }
        Ok((rms_norm(&x, &self.norm, self.source.eps)?, starts))
    }

    /// softmax(Q Kᵀ + bias) V of all heads, side by side, `[T, heads * head_dim]`.
    fn attention(&self, layer: &Layer, x: &Tensor, padding: &Padding, bias: &Tensor) -> Candle<Tensor> {
        let (heads, dim) = (self.source.heads, self.source.head_dim);
        let (texts, longest) = (padding.texts, padding.longest);
        let split = |matrix: &Tensor| {
            let rows = padding.pad(&x.matmul(matrix)?)?;
            rows.reshape((texts, longest, heads, dim))?.transpose(1, 2)?.contiguous() // [texts,heads,L,dim]
        };
        let (q, k, v) = (split(&layer.query)?, split(&layer.key)?, split(&layer.value)?);
        let scores = q.matmul(&k.transpose(2, 3)?.contiguous()?)?.broadcast_add(bias)?;
        let context = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&v)?.transpose(1, 2)?.contiguous()?;
        padding.unpad(&context.reshape((texts * longest, heads * dim))?)
    }

    /// `[1,heads,L,L]`: the bias of every pair of query and key among `length` tokens.
    fn bias(&self, length: usize) -> Candle<Tensor> {
        let (length, reach) = (length as i64, self.source.max_distance as i64);
        let columns: Vec<u32> = (0..length)
            .flat_map(|query| (0..length).map(move |key| ((key - query).clamp(-reach, reach) + reach) as u32))
            .collect();
        let columns = Tensor::from_vec(columns, (length * length) as usize, &self.device)?;
        let (heads, length) = (self.source.heads, length as usize);
        self.distances.index_select(&columns, 1)?.reshape((1, heads, length, length))
    }
}
