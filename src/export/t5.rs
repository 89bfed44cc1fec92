//! Graphs of T5 encoders: one unit vector a text, or the states of a text behind learned vectors.
//!
//! Normalisation is by the root of the mean square and stands before each part; attention is not scaled and adds a bias by the
//! distance between two tokens, gathered from a table, so that any length works; there are no other biases. Inputs are padded on
//! the right.

use std::path::Path;

use crate::error::{Error, Result};
use crate::export::Precision;
use crate::export::encoder::{self, About, Behind};
use crate::export::onnx::{Attr, DType, Dim, GraphBuilder, Initializer};
use crate::export::quantize::{product, transpose};
use crate::export::t5_source::{Part, T5Source};
use crate::export::weights::Weights;
use crate::runtime::model_dir::ModelKind;

/// Export an encoder: see [`export_encoder`](crate::export::encoder::export_encoder).
pub(super) fn export_encoder(source: &Path, out: &Path, precision: Precision) -> Result<()> {
    let weights = Weights::open(source)?;
    let t5 = T5Source::read(source, &weights)?;
    let mut graph = Graph::new(source, &t5, &weights, precision)?;
    let (x, mask) = graph.inputs()?;
    let states = graph.states(x, &mask)?;
    t5.head.finish(&mut graph.g, &states, t5.hidden);
    let about = About { family: &t5.model_type, max_tokens: t5.max_tokens, width: t5.head.width(t5.hidden) };
    let kind = ModelKind::Encoder { pooling: t5.head.pooling.name().to_owned() };
    encoder::write(graph.g, source, out, kind, precision, &about)
}

/// An encoder behind learned vectors, which are tokens before the first to it: see
/// [`encoder_states`](crate::export::encoder::encoder_states).
pub(super) fn encoder_states(source: &Path, precision: Precision, behind: Behind) -> Result<(GraphBuilder, String)> {
    let weights = Weights::open(source)?;
    let t5 = T5Source::read(source, &weights)?;
    let mut graph = Graph::new(source, &t5, &weights, precision)?;
    let (x, mask) = graph.inputs()?;
    let (x, mask) = behind.put_before(&mut graph.g, precision, &x, &mask, t5.hidden);
    let states = graph.states(x, &mask)?;
    Ok((graph.g, states))
}

/// A graph in the making, with what it is made from.
struct Graph<'a> {
    g: GraphBuilder,
    t5: &'a T5Source,
    weights: &'a Weights,
    precision: Precision,
}

impl<'a> Graph<'a> {
    fn new(source: &Path, t5: &'a T5Source, weights: &'a Weights, precision: Precision) -> Result<Self> {
        if precision == Precision::Fp16 {
            // Their states grow past 65,504 from layer to layer, which is known of the published models.
            let hint = "take it in fp32, int8 or w8a8";
            return Err(Error::model(
                source.display().to_string(),
                "the states of a T5 do not fit 16-bit floats",
                hint,
            ));
        }
        Ok(Self { g: GraphBuilder::new(&t5.model_type), t5, weights, precision })
    }

    /// Embeddings `[B,S,hidden]` of the tokens, and the mask `[B,S]` of 32-bit integers.
    fn inputs(&mut self) -> Result<(String, String)> {
        for name in ["input_ids", "attention_mask"] {
            self.g.input(name, DType::I64, &[Dim::Free("B"), Dim::Free("S")]);
        }
        let shape = [self.t5.vocab, self.t5.hidden];
        let table = self.weights.tensor_of(&self.t5.words, &shape)?;
        let table = self.g.constant(Initializer::f32(&shape, &table));
        let x = self.g.op("Gather", &[&table, "input_ids"], &[]);
        let mask = self.g.op("Cast", &["attention_mask"], &[("to", Attr::Int(DType::I32 as i64))]);
        Ok((x, mask))
    }

    /// The last layer's states `[B,S,hidden]`, normalised.
    fn states(&mut self, mut x: String, mask: &str) -> Result<String> {
        let bias = self.distance_biases(mask)?;
        for layer in 0..self.t5.layers {
            let normed = self.norm(&x, &self.t5.name(layer, Part::AttentionNorm))?;
            let [q, k, v] = [Part::Query, Part::Key, Part::Value].map(|part| self.matrix(&normed, layer, part));
            let heads = ("num_heads", Attr::Int(self.t5.heads as i64));
            let unscaled = ("scale", Attr::Float(1.0));
            let context = self.g.ms_op("MultiHeadAttention", &[&q?, &k?, &v?, "", mask, &bias], &[heads, unscaled]);
            let attended = self.matrix(&context, layer, Part::AttentionOut)?;
            x = self.g.op("Add", &[&x, &attended], &[]);

            let normed = self.norm(&x, &self.t5.name(layer, Part::FeedForwardNorm))?;
            let inner = self.matrix(&normed, layer, Part::In)?;
            let inner = if self.t5.gated {
                let gated = self.matrix(&normed, layer, Part::Gated)?;
                let active = self.g.ms_op("FastGelu", &[&inner], &[]);
                self.g.op("Mul", &[&active, &gated], &[])
            } else {
                self.g.op("Relu", &[&inner], &[])
            };
            let outer = self.matrix(&inner, layer, Part::Out)?;
            x = self.g.op("Add", &[&x, &outer], &[]);
        }
        self.norm(&x, "encoder.final_layer_norm.weight")
    }

    /// `[1,heads,S,S]`: the bias of every pair of query and key.
    fn distance_biases(&mut self, mask: &str) -> Result<String> {
        let reach = self.t5.max_distance as i64;
        let table = self.t5.distance_biases(self.weights)?;
        let table = self.g.constant(Initializer::f32(&[self.t5.heads, 2 * self.t5.max_distance + 1], &table));
        let number = |g: &mut GraphBuilder, n: i64| g.constant(Initializer::i64(&[], &[n]));
        let (zero, one) = (number(&mut self.g, 0), number(&mut self.g, 1));
        let (least, most) = (number(&mut self.g, -reach), number(&mut self.g, reach));
        let shape = self.g.op("Shape", &[mask], &[]);
        let length = self.g.op("Gather", &[&shape, &one], &[]);
        let places = self.g.op("Range", &[&zero, &length, &one], &[]); // [S]
        let axis = |g: &mut GraphBuilder, n: i64| g.constant(Initializer::i64(&[1], &[n]));
        let (first, second) = (axis(&mut self.g, 0), axis(&mut self.g, 1));
        let keys = self.g.op("Unsqueeze", &[&places, &first], &[]); // [1,S]
        let queries = self.g.op("Unsqueeze", &[&places, &second], &[]); // [S,1]
        let apart = self.g.op("Sub", &[&keys, &queries], &[]);
        let apart = self.g.op("Clip", &[&apart, &least, &most], &[]);
        let columns = self.g.op("Add", &[&apart, &most], &[]);
        let biases = self.g.op("Gather", &[&table, &columns], &[("axis", Attr::Int(1))]); // [heads,S,S]
        Ok(self.g.op("Unsqueeze", &[&biases, &first], &[]))
    }

    /// `x` through a matrix of a layer.
    fn matrix(&mut self, x: &str, layer: usize, part: Part) -> Result<String> {
        let shape = self.t5.shape(part);
        let matrix = self.weights.tensor_of(&self.t5.name(layer, part), &shape)?;
        let [columns, rows] = [0, 1].map(|i| shape.get(i).copied().unwrap_or(1));
        Ok(product(&mut self.g, self.precision, x, &transpose(&matrix, columns, rows), columns))
    }

    fn norm(&mut self, x: &str, name: &str) -> Result<String> {
        let shape = [self.t5.hidden];
        let gamma = self.weights.tensor_of(name, &shape)?;
        let gamma = self.g.constant(Initializer::f32(&shape, &gamma));
        let attrs = [("epsilon", Attr::Float(self.t5.eps)), ("axis", Attr::Int(-1)), ("stash_type", Attr::Int(1))];
        Ok(self.g.op("SimplifiedLayerNormalization", &[x, &gamma], &attrs))
    }
}
