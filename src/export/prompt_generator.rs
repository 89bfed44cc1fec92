//! The graph of a prompt generator: a frozen encoder behind a learned prompt, and a learned cross-attention
//! network from its states, however many, to a fixed number of prompt vectors as wide as the language model.
//!
//! Levine et al. 2022, arXiv:2204.10019 (input-dependent prompt tuning) say the three parts; the network's form is this
//! project's: latents that look at the states, block by block, each block an attention and a feed-forward layer, both added
//! to their input, normalised before (Jaegle et al. 2021, arXiv:2103.03206).

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Result;
use crate::export::Precision;
use crate::export::encoder::{Behind, encoder_states};
use crate::export::onnx::{Attr, DType, Dim, GraphBuilder, Initializer};
use crate::export::quantize::transpose;

/// Epsilon of the network's normalisations.
pub const NORM_EPS: f32 = 1e-5;
/// A feed-forward layer is so many times as wide as the encoder.
const WIDENING: usize = 4;

/// Sizes of a generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GeneratorShape {
    /// Prompt vectors it writes.
    pub positions: usize,
    /// Width of one: the language model's input embedding.
    pub hidden: usize,
    /// Width of the encoder's states.
    pub width: usize,
    /// Learned vectors before the encoder's input.
    pub encoder_positions: usize,
    /// Blocks of the cross-attention network.
    pub blocks: usize,
    /// Attention heads of each.
    pub heads: usize,
}

impl GeneratorShape {
    /// Every tensor of a generator by name, with its shape. Matrices are `[out, in]`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let Self { positions, hidden, width: d, encoder_positions, blocks, .. } = *self;
        let mut tensors =
            vec![("encoder_prompt".to_owned(), vec![encoder_positions, d]), ("latents".to_owned(), vec![positions, d])];
        for block in 0..blocks {
            let mut add = |part: &str, shape: &[usize]| tensors.push((format!("block.{block}.{part}"), shape.to_vec()));
            for norm in ["query_norm", "mlp_norm"] {
                add(&format!("{norm}.weight"), &[d]);
                add(&format!("{norm}.bias"), &[d]);
            }
            for part in ["query", "key", "value", "out"] {
                add(&format!("{part}.weight"), &[d, d]);
                add(&format!("{part}.bias"), &[d]);
            }
            add("up.weight", &[WIDENING * d, d]);
            add("up.bias", &[WIDENING * d]);
            add("down.weight", &[d, WIDENING * d]);
            add("down.bias", &[d]);
        }
        tensors.extend([
            ("norm.weight".to_owned(), vec![d]),
            ("norm.bias".to_owned(), vec![d]),
            ("project.weight".to_owned(), vec![hidden, d]),
            ("project.bias".to_owned(), vec![hidden]),
            ("base".to_owned(), vec![positions, hidden]),
        ]);
        tensors
    }

    /// Numbers in all tensors.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }
}

/// Where the states come from that a generator's network looks at.
#[derive(Debug, Clone, Copy)]
pub enum Outer<'a> {
    /// An encoder, whose folder this is, in this precision: the graph takes `input_ids` and `attention_mask` `[1,S]`.
    Encoder(&'a Path, Precision),
    /// Whoever runs the graph: it takes `states` `[1,S,width]`.
    Given,
}

/// Write the graph of a generator to the file `path`. `tensors` holds every tensor of [`GeneratorShape::tensors`].
///
/// The graph takes what [`Outer`] says and gives `prompt` `[1,positions,hidden]`.
///
/// # Errors
/// As [`crate::export::encoder::export_encoder`].
pub fn export(outer: Outer, path: &Path, shape: &GeneratorShape, tensors: &BTreeMap<String, Vec<f32>>) -> Result<()> {
    let tensor = |name: &str| tensors.get(name).map_or(&[][..], Vec::as_slice);
    let (mut g, states) = match outer {
        Outer::Encoder(source, precision) => {
            let behind = Behind { positions: shape.encoder_positions, values: tensor("encoder_prompt") };
            encoder_states(source, precision, behind)?
        }
        Outer::Given => {
            let mut g = GraphBuilder::new("prompt_generator");
            let states = g.input("states", DType::F32, &[Dim::Fixed(1), Dim::Free("S"), Dim::Fixed(shape.width)]);
            (g, states)
        }
    };
    let net = Network { shape, tensor: &tensor };
    let d = shape.width;
    let mut x = g.constant(Initializer::f32(&[1, shape.positions, d], tensor("latents")));
    for block in 0..shape.blocks {
        let name = |part: &str| format!("block.{block}.{part}");
        let normed = net.norm(&mut g, &x, &name("query_norm"));
        let query = net.dense(&mut g, &normed, &name("query"), d, d);
        let key = net.dense(&mut g, &states, &name("key"), d, d);
        let value = net.dense(&mut g, &states, &name("value"), d, d);
        let heads = ("num_heads", Attr::Int(shape.heads as i64));
        let context = g.ms_op("MultiHeadAttention", &[&query, &key, &value], &[heads]);
        let attended = net.dense(&mut g, &context, &name("out"), d, d);
        x = g.op("Add", &[&x, &attended], &[]);
        let normed = net.norm(&mut g, &x, &name("mlp_norm"));
        let inner = net.dense(&mut g, &normed, &name("up"), d, WIDENING * d);
        let inner = g.ms_op("Gelu", &[&inner], &[]);
        let outer = net.dense(&mut g, &inner, &name("down"), WIDENING * d, d);
        x = g.op("Add", &[&x, &outer], &[]);
    }
    let normed = net.norm(&mut g, &x, "norm");
    let written = net.dense(&mut g, &normed, "project", d, shape.hidden);
    let base = g.constant(Initializer::f32(&[1, shape.positions, shape.hidden], tensor("base")));
    g.node("", "Add", &[&written, &base], &["prompt"], &[]);
    g.output("prompt", DType::F32, &[Dim::Fixed(1), Dim::Fixed(shape.positions), Dim::Fixed(shape.hidden)]);
    g.save(path)
}

struct Network<'a> {
    shape: &'a GeneratorShape,
    tensor: &'a dyn Fn(&str) -> &'a [f32],
}

impl Network<'_> {
    fn norm(&self, g: &mut GraphBuilder, x: &str, name: &str) -> String {
        let d = self.shape.width;
        let weight = g.constant(Initializer::f32(&[d], (self.tensor)(&format!("{name}.weight"))));
        let bias = g.constant(Initializer::f32(&[d], (self.tensor)(&format!("{name}.bias"))));
        g.op("LayerNormalization", &[x, &weight, &bias], &[("epsilon", Attr::Float(NORM_EPS))])
    }

    fn dense(&self, g: &mut GraphBuilder, x: &str, name: &str, from: usize, to: usize) -> String {
        let matrix = transpose((self.tensor)(&format!("{name}.weight")), to, from);
        let matrix = g.constant(Initializer::f32(&[from, to], &matrix));
        let bias = g.constant(Initializer::f32(&[to], (self.tensor)(&format!("{name}.bias"))));
        let product = g.op("MatMul", &[x, &matrix], &[]);
        g.op("Add", &[&product, &bias], &[])
    }
}
