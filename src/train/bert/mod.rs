//! A BERT-family cross-encoder whose every weight is trained, from and to the folders that the exporter reads.
//!
//! Question and passage go through the encoder together; the last layer's state of the first token goes through the
//! family's classification head to one score (Nogueira & Cho 2019, arXiv:1901.04085). Texts are packed one after
//! another, without padding. There is no dropout: groups are seen once or twice, and evaluation then needs no other
//! mode.
//!
//! candle computes elementwise operators on one thread and gives every intermediate memory of its own; at the sizes
//! of small models that costs more than the products. So a layer is one operator here, with a backward pass written
//! by hand; on other devices than the CPU the same formulas are composed of candle's operators.

mod activation;
mod attention;
mod buffer;
mod dense;
mod layer;
mod layer_norm;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::export::bert_source::{BertSource, Family, Part};
use crate::export::weights::Weights;
use crate::runtime::model_dir::sha256_of;
use crate::runtime::tokenizer::TOKENIZER;
use crate::train::texts::PackedTexts;
use layer::{LayerShape, bert_layer};
pub(in crate::train) use layer_norm::layer_norm;

/// Spread of weights that no checkpoint gives, BERT's `initializer_range`.
const INITIAL_RANGE: f32 = 0.02;

/// A cross-encoder in training.
#[derive(Debug)]
pub struct Bert {
    source: BertSource,
    /// Where the architecture, and the tokenizer, were read from.
    folder: PathBuf,
    device: Device,
    embeddings: Embeddings,
    layers: Vec<Vec<Named>>,
    /// Inner weight and bias, outer weight and bias.
    head: [Named; 4],
    /// Whether word embeddings follow their gradient.
    train_words: bool,
}

type Named = (String, Var);

#[derive(Debug)]
struct Embeddings {
    words: Named,
    positions: Named,
    /// None in families without token types.
    types: Option<Named>,
    norm: [Named; 2],
}

/// Reads tensors of a checkpoint under the names they will be written by.
struct Loader<'a> {
    weights: &'a Weights,
    /// The prefix that names have in the checkpoint.
    from: &'a str,
    /// The prefix they get.
    to: &'a str,
    device: &'a Device,
    rng: ChaCha8Rng,
}

impl Loader<'_> {
    /// A tensor of the encoder, by its name with the prefix `to`.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Named> {
        let stored = name.strip_prefix(self.to).map_or(name.to_owned(), |rest| format!("{}{rest}", self.from));
        // Old checkpoints call weight and bias of a normalisation gamma and beta.
        let old = stored.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        let stored = if self.weights.contains(&stored) { stored } else { old };
        let data = self.weights.tensor_of(&stored, shape)?;
        self.var(name, data, shape)
    }

    /// The same, or small random numbers (zeros for a bias) where the checkpoint has none.
    fn tensor_or_random(&mut self, name: &str, shape: &[usize]) -> Result<Named> {
        let stored = name.strip_prefix(self.to).map_or(name.to_owned(), |rest| format!("{}{rest}", self.from));
        if self.weights.contains(&stored) && self.weights.shape(&stored)? == shape {
            return self.tensor(name, shape);
        }
        let count = shape.iter().product();
        let reach = if shape.len() == 1 { 0.0 } else { INITIAL_RANGE * 3f32.sqrt() };
        let data = (0..count).map(|_| reach * self.rng.random_range(-1.0..1.0)).collect();
        self.var(name, data, shape)
    }

    fn var(&self, name: &str, data: Vec<f32>, shape: &[usize]) -> Result<Named> {
        let tensor = Tensor::from_vec(data, shape, self.device).and_then(|t| Var::from_tensor(&t));
        Ok((name.to_owned(), tensor.map_err(candle)?))
    }
}

fn candle(error: candle_core::Error) -> Error {
    Error::internal("training a cross-encoder")(error)
}

impl Bert {
    /// Load the encoder or cross-encoder in `folder` (safetensors, as the exporter reads it). With `layers`, only so
    /// many of its layers are kept, evenly spaced from the first to the last. A head that the checkpoint does not
    /// have, or has for another number of labels, begins with small random numbers from `seed`.
    ///
    /// # Errors
    /// What [`Weights::open`] says of the folder; [`Error::Request`] for more layers than there are.
    pub fn load(folder: &Path, layers: Option<usize>, seed: u64, device: &Device) -> Result<Self> {
        let weights = Weights::open(folder)?;
        let mut source = BertSource::read(folder, &weights)?;
        let kept = kept_layers(source.layers, layers)?;
        let from = std::mem::replace(&mut source.prefix, root(source.family).to_owned());
        let to = source.prefix.clone();
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let mut load = Loader { weights: &weights, from: &from, to: &to, device, rng };

        let d = source.hidden;
        let name = |table: &str| format!("{to}embeddings.{table}");
        let table = |part: &str, rows: usize| load.tensor(&name(&format!("{part}_embeddings.weight")), &[rows, d]);
        let embeddings = Embeddings {
            words: table("word", source.vocab)?,
            positions: table("position", source.position_rows)?,
            types: if source.token_types > 0 { Some(table("token_type", source.token_types)?) } else { None },
            norm: [load.tensor(&name("LayerNorm.weight"), &[d])?, load.tensor(&name("LayerNorm.bias"), &[d])?],
        };
        let shapes = shape_of(&source).shapes();
        let mut stack = Vec::with_capacity(kept.len());
        for (new, &old) in kept.iter().enumerate() {
            let pieces = layer_names(&source, old).into_iter().zip(layer_names(&source, new)).zip(&shapes);
            let load_piece = |((old, new), shape): ((String, String), &Vec<usize>)| {
                load.tensor(&old, shape).map(|(_, var)| (new, var))
            };
            stack.push(pieces.map(load_piece).collect::<Result<Vec<Named>>>()?);
        }
        let [inner, outer] = head_names(&source);
        let head = [
            load.tensor_or_random(&format!("{inner}.weight"), &[d, d])?,
            load.tensor_or_random(&format!("{inner}.bias"), &[d])?,
            load.tensor_or_random(&format!("{outer}.weight"), &[1, d])?,
            load.tensor_or_random(&format!("{outer}.bias"), &[1])?,
        ];
        source.layers = kept.len();
        let device = device.clone();
        Ok(Self { source, folder: folder.to_path_buf(), device, embeddings, layers: stack, head, train_words: true })
    }

    /// Longest pair in tokens that the positions allow.
    pub fn longest(&self) -> usize {
        self.source.position_rows - self.source.first_position
    }

    /// Width of the hidden states.
    pub fn hidden(&self) -> usize {
        self.source.hidden
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Whether word embeddings are trained, which they are unless this says no. They are half of a small model's
    /// numbers, and most of them get no gradient from a batch.
    pub fn train_words(&mut self, train: bool) {
        self.train_words = train;
    }

    /// What is trained, by the names that publishers use, in a fixed order.
    pub fn variables(&self) -> Vec<(String, Var)> {
        let words = self.embeddings.words.0.as_str();
        self.all().filter(|(name, _)| self.train_words || name != words).cloned().collect()
    }

    fn all(&self) -> impl Iterator<Item = &Named> {
        let Embeddings { words, positions, types, norm } = &self.embeddings;
        let embeddings = [words, positions].into_iter().chain(types).chain(norm);
        embeddings.chain(self.layers.iter().flatten()).chain(&self.head)
    }

    /// sha256 over the weights that were loaded, as their files hold them.
    pub fn source_hash(&self) -> Result<String> {
        sha256_of(&self.folder.join("model.safetensors"))
    }

    /// One score `[B]` a text, higher is better. With `train`, what the backward pass needs is kept.
    ///
    /// # Errors
    /// [`Error::Internal`] when an id or a length passes the model's tables.
    pub fn scores(&self, texts: &PackedTexts, train: bool) -> Result<Tensor> {
        self.forward(texts, train).map_err(candle)
    }

    fn forward(&self, texts: &PackedTexts, train: bool) -> candle_core::Result<Tensor> {
        let mut x = self.embed(texts)?;
        let shape = shape_of(&self.source);
        for (number, layer) in self.layers.iter().enumerate() {
            let flat = layer.iter().map(|(_, var)| var.flatten_all()).collect::<candle_core::Result<Vec<_>>>()?;
            let params = Tensor::cat(&flat, 0)?;
            let last = number + 1 == self.layers.len();
            x = bert_layer(&x, &params, shape, texts.starts(), last, train)?;
        }
        let [inner, inner_bias, outer, outer_bias] = &self.head;
        let inner = x.matmul(&inner.1.t()?)?.broadcast_add(&inner_bias.1)?;
        let inner = if self.source.family == Family::DistilBert { inner.relu()? } else { inner.tanh()? };
        inner.matmul(&outer.1.t()?)?.broadcast_add(&outer_bias.1)?.squeeze(1)
    }

    /// The last layer's states of texts that each stand behind the learned vectors `prompt [m,d]`, which have no positions
    /// of their own: `[sum of m + T, d]`, text after text, and where each begins, with the end. The weights are constants;
    /// the gradient goes to `prompt`.
    ///
    /// # Errors
    /// [`Error::Internal`] when an id or a length passes the model's tables.
    pub fn states_behind(&self, texts: &PackedTexts, prompt: &Tensor) -> Result<(Tensor, Vec<usize>)> {
        self.frozen_states(texts, prompt).map_err(candle)
    }

    fn frozen_states(&self, texts: &PackedTexts, prompt: &Tensor) -> candle_core::Result<(Tensor, Vec<usize>)> {
        let (mut x, starts) = texts.behind(&self.embed(texts)?.detach(), prompt)?;
        let (shape, packed) = (shape_of(&self.source), Arc::<[usize]>::from(starts.as_slice()));
        for layer in &self.layers {
            let flat = layer.iter().map(|(_, var)| var.as_detached_tensor().flatten_all());
            let params = Tensor::cat(&flat.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
            x = bert_layer(&x, &params, shape, &packed, false, true)?;
        }
        Ok((x, starts))
    }

    /// Word, position and type embeddings `[T,d]`, summed and normalised.
    fn embed(&self, texts: &PackedTexts) -> candle_core::Result<Tensor> {
        let Embeddings { words, positions, types, norm } = &self.embeddings;
        let first = self.source.first_position;
        let places = texts.starts().windows(2).flat_map(|w| (0..w[1] - w[0]).map(|i| (first + i) as u32));
        let index = |v: Vec<u32>| Tensor::from_vec(v, texts.tokens(), &self.device);
        let words = if self.train_words { words.1.as_tensor().clone() } else { words.1.as_detached_tensor() };
        let mut x = words.index_select(&index(texts.ids().to_vec())?, 0)?;
        x = (x + positions.1.index_select(&index(places.collect())?, 0)?)?;
        if let Some((_, table)) = types {
            // Families with one row have one segment, whatever the tokenizer says.
            let types = texts.types().iter().map(|&t| if self.source.token_types > 1 { t } else { 0 });
            x = (x + table.index_select(&index(types.collect())?, 0)?)?;
        }
        layer_norm(&x, &norm[0].1, &norm[1].1, self.source.layer_norm_eps)
    }

    /// Round what is trained to 16-bit floats, as [`crate::export::learned`] keeps it: what is published is then what is
    /// measured, whichever way it comes.
    pub fn round(&self) -> Result<()> {
        let halves = |var: &Var| var.to_dtype(DType::F16)?.to_dtype(DType::F32).and_then(|rounded| var.set(&rounded));
        self.variables().iter().try_for_each(|(_, var)| halves(var)).map_err(candle)
    }

    /// Write a model folder to `out`: weights, configuration and tokenizer, which the exporter and other tools read.
    /// Pairs longer than `max_tokens` are to be cut.
    ///
    /// # Errors
    /// [`Error::File`] when the folder cannot be written.
    pub fn save(&self, out: &Path, max_tokens: usize) -> Result<()> {
        std::fs::create_dir_all(out).map_err(Error::file("create", out))?;
        let tensors: HashMap<&str, Tensor> =
            self.all().map(|(name, var)| (name.as_str(), var.as_detached_tensor())).collect();
        candle_core::safetensors::save(&tensors, out.join("model.safetensors")).map_err(candle)?;
        let read = |name: &str| {
            let path = self.folder.join(name);
            std::fs::read_to_string(&path).map_err(Error::file("read", &path))
        };
        let write = |name: &str, text: String| {
            let path = out.join(name);
            std::fs::write(&path, text).map_err(Error::file("write", &path))
        };
        let mut config: Value =
            serde_json::from_str(&read("config.json")?).map_err(Error::internal("writing a model"))?;
        let layers = if self.source.family == Family::DistilBert { "n_layers" } else { "num_hidden_layers" };
        config[layers] = json!(self.layers.len());
        config["architectures"] = json!([class(self.source.family, &self.source.model_type)]);
        config["num_labels"] = json!(1);
        config["id2label"] = json!({"0": "LABEL_0"});
        config["label2id"] = json!({"LABEL_0": 0});
        let text = |value: &Value| serde_json::to_string_pretty(value).map_err(Error::internal("writing a model"));
        write("config.json", text(&config)?)?;
        write("sentence_bert_config.json", text(&json!({"max_seq_length": max_tokens, "do_lower_case": false}))?)?;
        write(TOKENIZER, read(TOKENIZER)?)
    }
}

fn shape_of(source: &BertSource) -> LayerShape {
    LayerShape {
        hidden: source.hidden,
        heads: source.heads,
        intermediate: source.intermediate,
        activation: source.activation,
        eps: source.layer_norm_eps,
    }
}

/// Numbers of the layers that stay when `wanted` of `all` do.
fn kept_layers(all: usize, wanted: Option<usize>) -> Result<Vec<usize>> {
    match wanted {
        None => Ok((0..all).collect()),
        Some(wanted) if wanted == 0 || wanted > all => Err(Error::request(
            format!("--layers {wanted} cannot be had of {all} layers"),
            "keep fewer, or leave it out",
        )),
        Some(1) => Ok(vec![0]),
        Some(wanted) => Ok((0..wanted).map(|i| (i * (all - 1) + (wanted - 1) / 2) / (wanted - 1)).collect()),
    }
}

/// What the tensor names of a family's published classifiers begin with.
fn root(family: Family) -> &'static str {
    match family {
        Family::Bert => "bert.",
        Family::Roberta => "roberta.",
        Family::DistilBert => "distilbert.",
    }
}

/// What publishers call a classifier of a family. Two of them are one family here, and only `model_type` tells which.
fn class(family: Family, model_type: &str) -> &'static str {
    match family {
        Family::Bert => "BertForSequenceClassification",
        Family::Roberta if model_type == "roberta" => "RobertaForSequenceClassification",
        Family::Roberta => "XLMRobertaForSequenceClassification",
        Family::DistilBert => "DistilBertForSequenceClassification",
    }
}

/// The two dense layers of the head, as the exporter names them.
fn head_names(source: &BertSource) -> [String; 2] {
    match source.family {
        Family::Bert => [format!("{}pooler.dense", source.prefix), "classifier".into()],
        Family::Roberta => ["classifier.dense".into(), "classifier.out_proj".into()],
        Family::DistilBert => ["pre_classifier".into(), "classifier".into()],
    }
}

/// Names of a layer's parameters in the order of [`LayerShape::shapes`].
fn layer_names(source: &BertSource, layer: usize) -> Vec<String> {
    let of = |part, end: &str| format!("{}.{end}", source.layer(layer, part));
    let projections = [Part::Query, Part::Key, Part::Value];
    let rest = [Part::AttentionOut, Part::AttentionNorm, Part::FeedForwardIn, Part::FeedForwardOut, Part::OutputNorm];
    let weights = projections.map(|part| of(part, "weight"));
    let biases = projections.map(|part| of(part, "bias"));
    let rest = rest.into_iter().flat_map(|part| [of(part, "weight"), of(part, "bias")]);
    weights.into_iter().chain(biases).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -1 and 1.
    pub(super) fn random(count: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    pub(super) fn variable(shape: &[usize], seed: u64) -> Var {
        let data = random(shape.iter().product(), seed);
        Var::from_tensor(&Tensor::from_vec(data, shape, &Device::Cpu).unwrap()).unwrap()
    }

    /// Whether two slices differ by at most `tolerance`, relative where numbers are large.
    pub(super) fn close(a: &[f32], b: &[f32], tolerance: f32) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance * (1.0 + a.abs().max(b.abs())))
    }

    /// Both tensors are equal, and so are their gradients by `vars` when each number of theirs has a weight of its own.
    pub(super) fn agree(kernel: &Tensor, formula: &Tensor, vars: &[Var], tolerance: f32) {
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(close(&flat(kernel), &flat(formula), tolerance), "forward");
        let weights = Tensor::from_vec(random(kernel.elem_count(), 99), kernel.shape(), &Device::Cpu).unwrap();
        let grads = |x: &Tensor| x.mul(&weights).unwrap().sum_all().unwrap().backward().unwrap();
        let (kernel, formula) = (grads(kernel), grads(formula));
        for (i, var) in vars.iter().enumerate() {
            let [a, b] = [&kernel, &formula].map(|g| flat(g.get(var).unwrap()));
            let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(close(&a, &b, tolerance), "gradient of variable {i}: off by {worst}");
        }
    }

    #[test]
    fn a_classifier_is_called_as_its_type_says() {
        assert_eq!(class(Family::Roberta, "roberta"), "RobertaForSequenceClassification");
        assert_eq!(class(Family::Roberta, "xlm-roberta"), "XLMRobertaForSequenceClassification");
    }

    #[test]
    fn kept_layers_are_spread_from_the_first_to_the_last() {
        assert_eq!(kept_layers(6, Some(3)).unwrap(), [0, 3, 5]);
        assert_eq!(kept_layers(12, Some(6)).unwrap(), [0, 2, 4, 7, 9, 11]);
        assert_eq!(kept_layers(6, Some(6)).unwrap(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(kept_layers(4, None).unwrap(), [0, 1, 2, 3]);
        assert!(kept_layers(4, Some(5)).is_err());
    }
}
