//! A prompt generator in training: gradients for what is learned, none for the encoder inside.
//!
//! The network is that of [`crate::export::prompt_generator`], computed on candle over a batch of inputs at once. It begins
//! as a soft prompt made of real words, the same for every input: the last projection is zero, so that what depends on the
//! input grows from there.

use std::collections::BTreeMap;

use candle_core::{D, Device, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::export::prompt_generator::{GeneratorShape, NORM_EPS};
use crate::runtime::tokenizer::Cut;
use crate::train::bert::layer_norm;
use crate::train::encoder::FrozenEncoder;
use crate::train::llama::{Decoder, failed};
use crate::train::ops::Packed;
use crate::train::texts::{PackedTexts, Padding};

/// Spread of the numbers that nothing gives.
const INITIAL_RANGE: f32 = 0.02;
/// The words' embeddings move so many times as far as the other numbers for the same learning rate: a network's rate is too
/// small for them, and theirs too large for a network.
const BASE_STEP: f64 = 10.0;

/// Whose states of an input a generator looks at. Either is frozen.
#[derive(Debug)]
pub enum Outer {
    /// An encoder's.
    Encoder(FrozenEncoder),
    /// Those of the language model itself: a connector.
    Itself,
}

/// The learned part of a generator, and the encoder.
#[derive(Debug)]
pub struct Generator {
    shape: GeneratorShape,
    outer: Outer,
    /// Every tensor of [`GeneratorShape::tensors`]; under `base` is how far it went from the words, by [`BASE_STEP`].
    variables: BTreeMap<String, Var>,
    words: Tensor,
}

impl Generator {
    /// A generator that writes the embeddings `words [positions, hidden]` for every input until it is trained.
    pub fn new(shape: GeneratorShape, outer: Outer, words: Tensor, seed: u64, device: &Device) -> Result<Self> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut variables = BTreeMap::new();
        for (name, dims) in shape.tensors() {
            let count = dims.iter().product();
            let data: Vec<f32> = if name.ends_with("norm.weight") {
                vec![1.0; count]
            } else if name.ends_with(".bias") || name.starts_with("project") || name == "base" {
                vec![0.0; count]
            } else {
                // Uniform, of the standard deviation INITIAL_RANGE; latents and the encoder's prompt are as wide as states.
                let spread = if name.contains('.') { INITIAL_RANGE } else { 10.0 * INITIAL_RANGE };
                let reach = spread * 3f32.sqrt();
                (0..count).map(|_| reach * random.random_range(-1.0..1.0)).collect()
            };
            let var = Tensor::from_vec(data, dims, device).and_then(|t| Var::from_tensor(&t)).map_err(failed)?;
            variables.insert(name, var);
        }
        Ok(Self { shape, outer, variables, words })
    }

    /// What is trained, by name.
    pub fn variables(&self) -> Vec<(String, Var)> {
        self.variables.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
    }

    /// Its tensors as a file holds them.
    pub fn tensors(&self) -> Result<BTreeMap<String, Vec<f32>>> {
        let numbers = |tensor: &Tensor| tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(failed);
        let mut tensors = BTreeMap::new();
        for (name, var) in &self.variables {
            let tensor = if name == "base" { numbers(&self.base()?)? } else { numbers(var)? };
            tensors.insert(name.clone(), tensor);
        }
        Ok(tensors)
    }

    /// Put a file's tensors in place.
    pub fn set_tensors(&mut self, tensors: &BTreeMap<String, Vec<f32>>) -> Result<()> {
        let names: Vec<String> = self.variables.keys().cloned().collect();
        names.iter().try_for_each(|name| self.set(name, tensors.get(name).map_or(&[], Vec::as_slice)))
    }

    /// Let every prompt begin as the embeddings `values`, `[positions, hidden]` in rows, in place of what it began as.
    pub fn begin_as(&mut self, values: &[f32]) -> Result<()> {
        self.set("base", values)
    }

    fn set(&mut self, name: &str, numbers: &[f32]) -> Result<()> {
        let var = self.variables.get(name).filter(|var| var.elem_count() == numbers.len()).ok_or_else(|| {
            let message = format!("{name} is missing, or has another size");
            Error::Internal { doing: "setting a prompt generator", message }
        })?;
        let tensor = Tensor::from_slice(numbers, var.shape(), var.device()).map_err(failed)?;
        if name == "base" {
            self.words = tensor;
            return var.zero_set().map_err(failed);
        }
        var.set(&tensor).map_err(failed)
    }

    fn base(&self) -> Result<Tensor> {
        (self.variable("base")? * BASE_STEP).and_then(|step| &self.words + step).map_err(failed)
    }

    fn variable(&self, name: &str) -> Result<&Tensor> {
        self.variables.get(name).map(|var| var.as_tensor()).ok_or_else(|| Error::Internal {
            doing: "computing a prompt",
            message: format!("there is no tensor {name}"),
        })
    }

    /// A prompt for each text, given in tokens of the encoder, or of `lm` in a connector: `[texts * positions, hidden]`.
    pub fn prompts(&self, texts: &[&Cut], lm: &Decoder) -> Result<Tensor> {
        let before = self.variable("encoder_prompt")?;
        let (states, starts) = match &self.outer {
            Outer::Encoder(encoder) => encoder.states_behind(&PackedTexts::new(texts.iter().copied()), before)?,
            Outer::Itself => {
                let (mut parts, mut packed, mut starts) = (Vec::new(), Packed::default(), vec![0]);
                for text in texts {
                    parts.extend([before.clone(), lm.embed(&text.ids)?]);
                    starts.push(packed.push(self.shape.encoder_positions + text.ids.len(), 0..0).end);
                }
                let embeds = Tensor::cat(&parts, 0).map_err(failed)?;
                let every: Vec<u32> = (0..packed.tokens() as u32).collect();
                (lm.forward(&embeds, &packed, None, &every)?, starts)
            }
        };
        let padding = Padding::new(&starts, states.device()).map_err(failed)?;
        let states = padding.pad(&states).map_err(failed)?; // [texts * longest, width]
        let GeneratorShape { positions, width, hidden, blocks, .. } = self.shape;
        let count = padding.texts;
        let repeat = |x: &Tensor, columns: usize| {
            x.unsqueeze(0)?
                .broadcast_as((count, positions, columns))?
                .contiguous()?
                .reshape((count * positions, columns))
        };
        let mut x = repeat(self.variable("latents")?, width).map_err(failed)?;
        for block in 0..blocks {
            let name = |part: &str| format!("block.{block}.{part}");
            let query = self.dense(&self.norm(&x, &name("query_norm"))?, &name("query"))?;
            let (key, value) = (self.dense(&states, &name("key"))?, self.dense(&states, &name("value"))?);
            let context = self.attend(&query, &key, &value, &padding).map_err(failed)?;
            x = (x + self.dense(&context, &name("out"))?).map_err(failed)?;
            let inner = self.dense(&self.norm(&x, &name("mlp_norm"))?, &name("up"))?.gelu_erf().map_err(failed)?;
            x = (x + self.dense(&inner, &name("down"))?).map_err(failed)?;
        }
        let written = self.dense(&self.norm(&x, "norm")?, "project")?;
        let base = repeat(&self.base()?, hidden).map_err(failed)?;
        (written + base).map_err(failed)
    }

    /// Attention of every text's latents `[texts * positions, width]` over its states, padded to `[texts * longest, width]`.
    fn attend(&self, query: &Tensor, key: &Tensor, value: &Tensor, padding: &Padding) -> candle_core::Result<Tensor> {
        let GeneratorShape { positions, width, heads, .. } = self.shape;
        let dim = width / heads;
        let split = |x: &Tensor, rows: usize| {
            x.reshape((padding.texts, rows, heads, dim))?.transpose(1, 2)?.contiguous() // [texts, heads, rows, dim]
        };
        let (query, key, value) =
            (split(query, positions)?, split(key, padding.longest)?, split(value, padding.longest)?);
        let scores = (query.matmul(&key.transpose(2, 3)?.contiguous()?)? / (dim as f64).sqrt())?;
        let shares = candle_nn::ops::softmax(&scores.broadcast_add(&padding.mask)?, D::Minus1)?;
        shares.matmul(&value)?.transpose(1, 2)?.contiguous()?.reshape((padding.texts * positions, width))
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (weight, bias) = (self.variable(&format!("{name}.weight"))?, self.variable(&format!("{name}.bias"))?);
        layer_norm(x, weight, bias, NORM_EPS).map_err(failed)
    }

    fn dense(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (weight, bias) = (self.variable(&format!("{name}.weight"))?, self.variable(&format!("{name}.bias"))?);
        weight.t().and_then(|w| x.matmul(&w)).and_then(|y| y.broadcast_add(bias)).map_err(failed)
    }
}
