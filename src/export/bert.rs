//! BERT-family graphs: encoders that give one unit vector a text, and cross-encoders that give one score
//! a pair.
//!
//! The operators are ONNX Runtime's contributed ones (fused attention, fused normalisation), so these
//! graphs run in ONNX Runtime only. Inputs are padded on the right.

use std::path::Path;

use crate::error::{Error, Result};
use crate::export::Precision;
use crate::export::bert_source::{Activation, BertSource, Family, Part};
use crate::export::encoder::{self, About, Behind};
use crate::export::onnx::{Attr, DType, Dim, GraphBuilder, Initializer};
use crate::export::quantize::{Product, float, linear, transpose};
use crate::export::weights::Weights;
use crate::runtime::model_dir::ModelKind;

/// Export an encoder: see [`export_encoder`](crate::export::encoder::export_encoder).
pub(super) fn export_encoder(source: &Path, out: &Path, precision: Precision) -> Result<()> {
    let weights = Weights::open(source)?;
    let bert = BertSource::read(source, &weights)?;
    let mut graph = Graph::new(&bert, &weights, precision);
    graph.inputs();
    let hidden = graph.hidden_states(TokenTypes::AllZero, Asking::All)?;
    let hidden = graph.cast_to_f32(&hidden);
    bert.head.finish(&mut graph.g, &hidden, bert.hidden);
    graph.write(
        source,
        out,
        ModelKind::Encoder { pooling: bert.head.pooling.name().to_owned() },
        bert.head.width(bert.hidden),
    )
}

/// Export the cross-encoder in the folder `source` to the folder `out`, like
/// [`export_encoder`](crate::export::encoder::export_encoder).
///
/// The graph takes `input_ids`, `attention_mask` and `token_type_ids` `[B,S]` and gives `score` `[B]`,
/// the single logit of the model's sequence classification head. Families without token types ignore
/// theirs.
///
/// # Errors
/// As [`export_encoder`](crate::export::encoder::export_encoder); a head with another number of labels than one is an [`Error::Model`].
pub fn export_cross_encoder(source: &Path, out: &Path, precision: Precision) -> Result<()> {
    let weights = Weights::open(source)?;
    let bert = BertSource::read(source, &weights)?;
    let mut graph = Graph::new(&bert, &weights, precision);
    graph.inputs();
    graph.g.input("token_type_ids", DType::I64, &[Dim::Free("B"), Dim::Free("S")]);
    let hidden = graph.hidden_states(TokenTypes::Given, Asking::First)?;
    graph.score(&hidden)?;
    graph.write(source, out, ModelKind::CrossEncoder, bert.hidden)
}

/// An encoder behind learned vectors, which have no positions of their own: see
/// [`encoder_states`](crate::export::encoder::encoder_states).
pub(super) fn encoder_states(source: &Path, precision: Precision, behind: Behind) -> Result<(GraphBuilder, String)> {
    let weights = Weights::open(source)?;
    let bert = BertSource::read(source, &weights)?;
    let mut graph = Graph::new(&bert, &weights, precision);
    graph.inputs();
    let mask = graph.cast("attention_mask", DType::I32);
    let x = graph.embeddings(TokenTypes::AllZero)?;
    let (mut x, mask) = behind.put_before(&mut graph.g, precision, &x, &mask, bert.hidden);
    for layer in 0..bert.layers {
        x = graph.layer(layer, &x, &mask, Asking::All)?;
    }
    let x = graph.cast_to_f32(&x);
    Ok((graph.g, x))
}

/// Where token types come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenTypes {
    /// Encoders see one segment.
    AllZero,
    /// The graph's `token_type_ids`.
    Given,
}

/// Whose states the last layer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// Every token's.
    All,
    /// The first token's, which is all that a classification head looks at: a sixth of the work of a layer, and
    /// with it 14% of a model of six.
    First,
}

/// A graph in the making, with what it is made from.
struct Graph<'a> {
    g: GraphBuilder,
    bert: &'a BertSource,
    weights: &'a Weights,
    precision: Precision,
}

impl<'a> Graph<'a> {
    fn new(bert: &'a BertSource, weights: &'a Weights, precision: Precision) -> Self {
        Self { g: GraphBuilder::new(&bert.model_type), bert, weights, precision }
    }

    fn write(self, source: &Path, out: &Path, kind: ModelKind, width: usize) -> Result<()> {
        let about = About { family: &self.bert.model_type, max_tokens: self.bert.max_tokens, width };
        encoder::write(self.g, source, out, kind, self.precision, &about)
    }

    fn inputs(&mut self) {
        for name in ["input_ids", "attention_mask"] {
            self.g.input(name, DType::I64, &[Dim::Free("B"), Dim::Free("S")]);
        }
    }

    /// The last layer's states `[B,S,hidden]`, or `[B,1,hidden]` of the first token, in the graph's float type.
    fn hidden_states(&mut self, token_types: TokenTypes, last: Asking) -> Result<String> {
        let mask = self.cast("attention_mask", DType::I32); // [B,S]
        let mut x = self.embeddings(token_types)?;
        for layer in 0..self.bert.layers {
            let asking = if layer + 1 == self.bert.layers { last } else { Asking::All };
            x = self.layer(layer, &x, &mask, asking)?;
        }
        Ok(x)
    }

    /// Word, position and token type embeddings, summed and normalised.
    fn embeddings(&mut self, token_types: TokenTypes) -> Result<String> {
        let BertSource { hidden, vocab, token_types: rows, .. } = *self.bert;
        let name = |table: &str| format!("{}embeddings.{table}", self.bert.prefix);
        let words = self.weights.tensor_of(&name("word_embeddings.weight"), &[vocab, hidden])?;
        // The graph counts positions from 0: rows before the first token's are cut off.
        let positions =
            self.weights.tensor_of(&name("position_embeddings.weight"), &[self.bert.position_rows, hidden])?;
        let mut positions = positions.get(self.bert.first_position * hidden..).unwrap_or_default().to_vec();
        let types = match rows {
            0 => Vec::new(),
            _ => self.weights.tensor_of(&name("token_type_embeddings.weight"), &[rows, hidden])?,
        };
        let norm = name("LayerNorm");
        let (mut segments, mut segment_table) = (String::new(), String::new());
        if token_types == TokenTypes::Given && rows > 1 {
            segments = self.cast("token_type_ids", DType::I32);
            segment_table = self.g.constant(float(self.precision, &[rows, hidden], &types));
        } else if rows > 0 {
            // One segment: its row is the same at every position, so it is part of the position table.
            for row in positions.chunks_exact_mut(hidden) {
                row.iter_mut().zip(&types).for_each(|(p, t)| *p += t);
            }
        }
        let ids = self.cast("input_ids", DType::I32);
        let word_table = self.g.constant(float(self.precision, &[vocab, hidden], &words));
        let position_rows = positions.len() / hidden;
        let position_table = self.g.constant(float(self.precision, &[position_rows, hidden], &positions));
        let (gamma, beta) = self.norm(&norm)?;
        let (out, unused) = (self.g.fresh_name("embeddings"), self.g.fresh_name("mask_index"));
        let inputs = [&ids, &segments, &word_table, &position_table, &segment_table, &gamma, &beta];
        let eps = Attr::Float(self.bert.layer_norm_eps);
        self.g.node(
            crate::export::onnx::MICROSOFT,
            "EmbedLayerNormalization",
            &inputs.map(String::as_str),
            &[&out, &unused],
            &[("epsilon", eps)],
        );
        Ok(out)
    }

    /// One transformer layer: attention and feed-forward, each added to its input and normalised.
    fn layer(&mut self, layer: usize, x: &str, mask: &str, asking: Asking) -> Result<String> {
        let BertSource { hidden, intermediate, .. } = *self.bert;
        let (context, x) = match asking {
            Asking::All => (self.attention(layer, x, mask)?, x.to_owned()), // [B,S,hidden]
            Asking::First => {
                let place = self.g.constant(Initializer::i64(&[1], &[0]));
                let first = self.g.op("Gather", &[x, &place], &[("axis", Attr::Int(1))]); // [B,1,hidden]
                (self.attention_of(layer, &first, x, mask)?, first)
            }
        };
        let name = |part| self.bert.layer(layer, part);
        let (out, norm) = (name(Part::AttentionOut), name(Part::AttentionNorm));
        let (up, down, last) = (name(Part::FeedForwardIn), name(Part::FeedForwardOut), name(Part::OutputNorm));

        let (matrix, bias) = self.dense(&out, hidden, hidden)?;
        let attended = linear(&mut self.g, self.precision, &context, &matrix, &bias);
        let x = self.add_and_norm(&attended.value, &attended.bias, &x, &norm)?;

        let (matrix, bias) = self.dense(&up, hidden, intermediate)?;
        let inner = linear(&mut self.g, self.precision, &x, &matrix, &bias); // [B,S,intermediate]
        let inner = self.activate(&inner.value, &inner.bias);
        let (matrix, bias) = self.dense(&down, intermediate, hidden)?;
        let outer = linear(&mut self.g, self.precision, &inner, &matrix, &bias);
        self.add_and_norm(&outer.value, &outer.bias, &x, &last)
    }

    /// softmax(Q Kᵀ / √d) V of all heads, side by side.
    fn attention(&mut self, layer: usize, x: &str, mask: &str) -> Result<String> {
        let BertSource { hidden, heads, .. } = *self.bert;
        let names = [Part::Query, Part::Key, Part::Value].map(|part| self.bert.layer(layer, part));
        // One product for the three: [in, out] each, side by side in a row.
        let mut parts = Vec::with_capacity(3);
        let mut bias = Vec::with_capacity(3 * hidden);
        for name in &names {
            let (matrix, b) = self.dense(name, hidden, hidden)?;
            parts.push(matrix);
            bias.extend(b);
        }
        let mut matrix = Vec::with_capacity(3 * hidden * hidden);
        for row in 0..hidden {
            for part in &parts {
                matrix.extend(part.iter().skip(row * hidden).take(hidden));
            }
        }
        let heads = ("num_heads", Attr::Int(heads as i64));
        if matches!(self.precision, Precision::Fp32 | Precision::Fp16) {
            let weight = self.g.constant(float(self.precision, &[hidden, 3 * hidden], &matrix));
            let bias = self.g.constant(float(self.precision, &[3 * hidden], &bias));
            return Ok(self.g.ms_op("Attention", &[x, &weight, &bias, mask], &[heads]));
        }
        let Product { value: qkv, bias } = linear(&mut self.g, self.precision, x, &matrix, &bias); // [B,S,3*hidden]
        let [q, k, v] = ["q", "k", "v"].map(|stem| self.g.fresh_name(stem));
        let thirds = [("axis", Attr::Int(-1)), ("num_outputs", Attr::Int(3))];
        self.g.node("", "Split", &[&qkv], &[&q, &k, &v], &thirds);
        Ok(self.g.ms_op("MultiHeadAttention", &[&q, &k, &v, &bias, mask], &[heads]))
    }

    /// The same for the tokens of `asking` `[B,N,hidden]` alone, over the keys and values of all of `x`.
    fn attention_of(&mut self, layer: usize, asking: &str, x: &str, mask: &str) -> Result<String> {
        let BertSource { hidden, heads, .. } = *self.bert;
        let inputs = [(Part::Query, asking), (Part::Key, x), (Part::Value, x)];
        let mut projected = Vec::with_capacity(3);
        for (part, input) in inputs {
            let (matrix, bias) = self.dense(&self.bert.layer(layer, part), hidden, hidden)?;
            let product = linear(&mut self.g, self.precision, input, &matrix, &bias);
            projected.push(match product.bias.as_str() {
                "" => product.value,
                bias => self.g.op("Add", &[&product.value, bias], &[]),
            });
        }
        let [q, k, v] = [0, 1, 2].map(|i| projected.get(i).map_or("", String::as_str));
        let heads = ("num_heads", Attr::Int(heads as i64));
        Ok(self.g.ms_op("MultiHeadAttention", &[q, k, v, "", mask], &[heads]))
    }

    /// Add the residual and normalise.
    fn add_and_norm(&mut self, value: &str, bias: &str, residual: &str, norm: &str) -> Result<String> {
        let (gamma, beta) = self.norm(norm)?;
        let eps = ("epsilon", Attr::Float(self.bert.layer_norm_eps));
        if self.precision == Precision::Fp16 {
            return Ok(self.g.ms_op("SkipLayerNormalization", &[value, residual, &gamma, &beta, bias], &[eps]));
        }
        // On a CPU the fused operator is not vectorised: 1.6 us a token of width 384, against 0.2 us for the
        // two apart (ONNX Runtime 1.32). `Sum` and not `Add`, because the optimiser would fuse an `Add`.
        let terms = [value, residual, bias];
        let given = if bias.is_empty() { &terms[..2] } else { &terms[..] };
        let sum = self.g.op("Sum", given, &[]);
        Ok(self.g.op("LayerNormalization", &[&sum, &gamma, &beta], &[eps]))
    }

    fn activate(&mut self, value: &str, bias: &str) -> String {
        match (self.bert.activation, bias.is_empty()) {
            (Activation::Gelu, true) => self.g.ms_op("Gelu", &[value], &[]),
            (Activation::Gelu, false) => self.g.ms_op("BiasGelu", &[value, bias], &[]),
            (Activation::GeluTanh, true) => self.g.ms_op("FastGelu", &[value], &[]),
            (Activation::GeluTanh, false) => self.g.ms_op("FastGelu", &[value, bias], &[]),
            (Activation::Relu, true) => self.g.op("Relu", &[value], &[]),
            (Activation::Relu, false) => {
                let sum = self.g.op("Add", &[value, bias], &[]);
                self.g.op("Relu", &[&sum], &[])
            }
        }
    }

    /// The classification head over the first token, in 32-bit floats: it is small, and scores are compared.
    fn score(&mut self, hidden: &str) -> Result<()> {
        let (inner, outer) = match self.bert.family {
            Family::Bert => (format!("{}pooler.dense", self.bert.prefix), "classifier"),
            Family::Roberta => ("classifier.dense".to_owned(), "classifier.out_proj"),
            Family::DistilBert => ("pre_classifier".to_owned(), "classifier"),
        };
        let labels = self.weights.shape(&format!("{outer}.weight"))?.first().copied().unwrap_or_default();
        if labels != 1 {
            return Err(Error::model(
                self.weights.path().display().to_string(),
                format!("its head has {labels} labels; a cross-encoder gives one score"),
                "use a model trained for ranking, with a single label",
            ));
        }
        let hidden = self.cast_to_f32(hidden);
        let first = self.first_token(&hidden);
        let width = self.bert.hidden;
        let inner = self.dense_f32(&first, &inner, width, width)?;
        let activation = if self.bert.family == Family::DistilBert { "Relu" } else { "Tanh" };
        let inner = self.g.op(activation, &[&inner], &[]);
        let score = self.dense_f32(&inner, outer, width, 1)?; // [B,1]
        let axis = self.g.constant(Initializer::i64(&[1], &[1]));
        self.g.node("", "Squeeze", &[&score, &axis], &["score"], &[]);
        self.g.output("score", DType::F32, &[Dim::Free("B")]);
        Ok(())
    }

    fn dense_f32(&mut self, x: &str, name: &str, rows: usize, columns: usize) -> Result<String> {
        let (matrix, bias) = self.dense(name, rows, columns)?;
        let matrix = self.g.constant(Initializer::f32(&[rows, columns], &matrix));
        let bias = self.g.constant(Initializer::f32(&[columns], &bias));
        Ok(self.g.op("Gemm", &[x, &matrix, &bias], &[]))
    }

    /// `[B,S,hidden]` -> `[B,hidden]`: the state of the first token.
    fn first_token(&mut self, hidden: &str) -> String {
        let zero = self.g.constant(Initializer::i64(&[], &[0]));
        self.g.op("Gather", &[hidden, &zero], &[("axis", Attr::Int(1))])
    }

    /// A dense layer's matrix as `[rows, columns]` (in, out), and its bias `[columns]`.
    fn dense(&self, name: &str, rows: usize, columns: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let matrix = self.weights.tensor_of(&format!("{name}.weight"), &[columns, rows])?;
        let bias = self.weights.tensor_of(&format!("{name}.bias"), &[columns])?;
        Ok((transpose(&matrix, columns, rows), bias))
    }

    /// Constants of a layer normalisation; old checkpoints call its weight and bias gamma and beta.
    fn norm(&mut self, name: &str) -> Result<(String, String)> {
        let old = self.weights.contains(&format!("{name}.gamma"));
        let names = if old { ["gamma", "beta"] } else { ["weight", "bias"] };
        let [gamma, beta] = names.map(|n| self.weights.tensor_of(&format!("{name}.{n}"), &[self.bert.hidden]));
        let (gamma, beta) = (gamma?, beta?);
        let shape = [self.bert.hidden];
        let gamma = self.g.constant(float(self.precision, &shape, &gamma));
        Ok((gamma, self.g.constant(float(self.precision, &shape, &beta))))
    }

    fn cast(&mut self, value: &str, to: DType) -> String {
        self.g.op("Cast", &[value], &[("to", Attr::Int(to as i64))])
    }

    fn cast_to_f32(&mut self, value: &str) -> String {
        if self.precision == Precision::Fp16 { self.cast(value, DType::F32) } else { value.to_owned() }
    }
}
