//! The graph of a decoder-only language model of the Llama family, layer by layer.
//!
//! Attention is ONNX Runtime's GroupQueryAttention, which turns positions, appends to the KV cache (in
//! place, when past and present are the same buffer) and never computes what the causal mask hides. Weights
//! are read one layer at a time, so that beside the graph itself only one matrix is in memory as 32-bit
//! floats.

use crate::error::Result;
use crate::export::Precision;
use crate::export::blockwise::{self, BLOCK};
use crate::export::llama_source::LmSource;
use crate::export::onnx::{Attr, DType, Dim, GraphBuilder, Initializer};
use crate::export::turned::Turned;
use crate::export::{quantize, rope};

/// `embed.onnx`: `input_ids` `[B,S]` to `inputs_embeds` `[B,S,hidden]` (f32). The table is stored in 16 bits
/// unless the model is exported in 32.
pub(in crate::export) fn embedding_graph(source: &LmSource, precision: Precision) -> Result<GraphBuilder> {
    let config = &source.config;
    let table = source.tensor("model.embed_tokens.weight", &[config.vocab, config.hidden])?;
    let mut g = GraphBuilder::new("embed");
    let ids = g.input("input_ids", DType::I64, &[Dim::Free("batch"), Dim::Free("sequence")]);
    let shape = [config.vocab, config.hidden];
    if precision == Precision::Fp32 {
        let table = g.init("table", Initializer::f32(&shape, &table));
        g.node("", "Gather", &[&table, &ids], &["inputs_embeds"], &[]);
    } else {
        let table = g.init("table", Initializer::f16(&shape, &table));
        let rows = g.op("Gather", &[&table, &ids], &[]);
        g.node("", "Cast", &[&rows], &["inputs_embeds"], &[("to", Attr::Int(DType::F32 as i64))]);
    }
    g.output("inputs_embeds", DType::F32, &[Dim::Free("batch"), Dim::Free("sequence"), Dim::Fixed(config.hidden)]);
    Ok(g)
}

/// `model.onnx`, with the inputs and outputs of [`crate::runtime::model_dir::ModelKind::Lm`].
pub(in crate::export) fn decoder_graph(source: &LmSource, precision: Precision) -> Result<GraphBuilder> {
    let mut decoder = Decoder::new(source, precision);
    for layer in 0..source.config.layers {
        decoder.layer(layer)?;
    }
    decoder.finish()
}

/// The float type of activations and of the KV cache.
pub(in crate::export) fn float_type(precision: Precision) -> DType {
    if precision == Precision::Fp16 { DType::F16 } else { DType::F32 }
}

struct Decoder<'a> {
    g: GraphBuilder,
    source: &'a LmSource,
    precision: Precision,
    float: DType,
    /// `[B]`, i32: tokens in the cache after this run, less one, for each prompt.
    last: String,
    /// Scalar, i32: the longest of them.
    total: String,
    cos: String,
    sin: String,
    /// The residual stream before the last block's output was added: `[B,S,hidden]`.
    residual: String,
    /// What the last block put out, not yet added; `None` before the first.
    pending: Option<String>,
    /// Its weights in turned coordinates, for 8 bits with a scale a token.
    turned: Option<Turned<'a>>,
}

impl<'a> Decoder<'a> {
    fn new(source: &'a LmSource, precision: Precision) -> Self {
        let config = &source.config;
        let float = float_type(precision);
        let mut g = GraphBuilder::new(config.family);
        let batch = Dim::Free("batch");
        let embeds =
            g.input("inputs_embeds", DType::F32, &[batch.clone(), Dim::Free("sequence"), Dim::Fixed(config.hidden)]);
        let mask = g.input("attention_mask", DType::I64, &[batch, Dim::Free("total")]);
        g.input("logit_rows", DType::I64, &[Dim::Free("logits")]);

        let axis_1 = g.constant(Initializer::i64(&[1], &[1]));
        let one = g.constant(Initializer::i64(&[], &[1]));
        let lengths = g.op("ReduceSum", &[&mask, &axis_1], &[("keepdims", Attr::Int(0))]);
        let last = g.op("Sub", &[&lengths, &one], &[]);
        let last = cast(&mut g, &last, DType::I32);
        let shape = g.op("Shape", &[&mask], &[]);
        let total = g.op("Gather", &[&shape, &one], &[]);
        let total = cast(&mut g, &total, DType::I32);

        let (cos, sin) = rope::tables(&config.inverse_frequencies, config.context);
        let shape = [config.context, config.head_dim / 2];
        let cos = g.init("cos", quantize::float(precision, &shape, &cos));
        let sin = g.init("sin", quantize::float(precision, &shape, &sin));
        let turned = (precision == Precision::W8A8).then(|| Turned::new(source));
        let residual = match &turned {
            Some(turned) => {
                let matrix = Initializer::f32(&[config.hidden, config.hidden], &turned.turn.matrix());
                let matrix = g.init("turn", matrix);
                g.op("MatMul", &[&embeds, &matrix], &[])
            }
            None if float == DType::F32 => embeds,
            None => cast(&mut g, &embeds, float),
        };
        Self { g, source, precision, float, last, total, cos, sin, residual, pending: None, turned }
    }

    /// A weight, in the coordinates of the graph.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        match &self.turned {
            Some(turned) => turned.tensor(name, shape),
            None => self.source.tensor(name, shape),
        }
    }

    fn layer(&mut self, layer: usize) -> Result<()> {
        let config = &self.source.config;
        let prefix = format!("model.layers.{layer}");
        let name = |part: &str| format!("{prefix}.{part}");
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);

        let x = self.norm(&name("input_layernorm"))?;
        let (q, k, v) = (name("self_attn.q_proj"), name("self_attn.k_proj"), name("self_attn.v_proj"));
        let packed =
            self.linear(&x, config.hidden, &[(&q, q_width), (&k, kv_width), (&v, kv_width)], config.family == "qwen2")?;
        let attended = self.attention(layer, &packed)?;
        let out = self.linear(&attended, q_width, &[(&name("self_attn.o_proj"), config.hidden)], false)?;
        self.pending = Some(out);

        let x = self.norm(&name("post_attention_layernorm"))?;
        let (gate, up) = (name("mlp.gate_proj"), name("mlp.up_proj"));
        let both =
            self.linear(&x, config.hidden, &[(&gate, config.intermediate), (&up, config.intermediate)], false)?;
        let (gate, up) = (self.g.fresh_name("gate"), self.g.fresh_name("up"));
        let halves = [("axis", Attr::Int(-1)), ("num_outputs", Attr::Int(2))];
        self.g.node("", "Split", &[&both], &[&gate, &up], &halves);
        // x sigmoid(x), in one pass.
        let gate = self.g.ms_op("QuickGelu", &[&gate], &[("alpha", Attr::Float(1.0))]);
        let product = self.g.op("Mul", &[&gate, &up], &[]);
        let out = self.linear(&product, config.intermediate, &[(&name("mlp.down_proj"), config.hidden)], false)?;
        self.pending = Some(out);
        Ok(())
    }

    /// GroupQueryAttention over packed queries, keys and values `[B,S,(heads + 2 kv_heads) head_dim]`.
    fn attention(&mut self, layer: usize, packed: &str) -> Result<String> {
        let config = &self.source.config;
        let (past_key, past_value) = (format!("past_key_values.{layer}.key"), format!("past_key_values.{layer}.value"));
        let (key, value) = (format!("present.{layer}.key"), format!("present.{layer}.value"));
        let cache =
            |axis| [Dim::Free("batch"), Dim::Fixed(config.kv_heads), Dim::Free(axis), Dim::Fixed(config.head_dim)];
        for name in [&past_key, &past_value] {
            self.g.input(name, self.float, &cache("past"));
        }
        for name in [&key, &value] {
            self.g.output(name, self.float, &cache("present"));
        }
        let (q, k, v) = if config.family == "qwen3" {
            self.normed_heads(layer, packed)?
        } else {
            (packed.to_owned(), String::new(), String::new())
        };
        let out = self.g.fresh_name("attended");
        self.g.node(
            crate::export::onnx::MICROSOFT,
            "GroupQueryAttention",
            &[&q, &k, &v, &past_key, &past_value, &self.last, &self.total, &self.cos, &self.sin],
            &[&out, &key, &value],
            &[
                ("num_heads", Attr::Int(config.heads as i64)),
                ("kv_num_heads", Attr::Int(config.kv_heads as i64)),
                ("scale", Attr::Float(1.0 / (config.head_dim as f32).sqrt())),
                ("do_rotary", Attr::Int(1)),
                ("rotary_interleaved", Attr::Int(0)),
                ("local_window_size", Attr::Int(config.sliding_window.map_or(-1, |n| n as i64))),
            ],
        );
        Ok(out)
    }

    /// Qwen3 norms each head of the queries and keys before it turns them.
    fn normed_heads(&mut self, layer: usize, packed: &str) -> Result<(String, String, String)> {
        let config = &self.source.config;
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let widths = self.g.constant(Initializer::i64(&[3], &[q_width as i64, kv_width as i64, kv_width as i64]));
        let (q, k, v) = (self.g.fresh_name("q"), self.g.fresh_name("k"), self.g.fresh_name("v"));
        self.g.node("", "Split", &[packed, &widths], &[&q, &k, &v], &[("axis", Attr::Int(-1))]);
        let mut normed = |x: &str, part: &str, width: usize| -> Result<String> {
            let gamma = self.gamma(&format!("model.layers.{layer}.self_attn.{part}.weight"), config.head_dim)?;
            let apart = self.g.constant(Initializer::i64(&[4], &[0, 0, -1, config.head_dim as i64]));
            let heads = self.g.op("Reshape", &[x, &apart], &[]);
            let heads = self.g.op("SimplifiedLayerNormalization", &[&heads, &gamma], &norm_attrs(config.norm_eps));
            let together = self.g.constant(Initializer::i64(&[3], &[0, 0, width as i64]));
            Ok(self.g.op("Reshape", &[&heads, &together], &[]))
        };
        Ok((normed(&q, "q_norm", q_width)?, normed(&k, "k_norm", kv_width)?, v))
    }

    /// Add the pending output to the residual stream, and norm the sum.
    fn norm(&mut self, name: &str) -> Result<String> {
        let out = self.g.fresh_name("normed");
        self.norm_into(name, &out)?;
        Ok(out)
    }

    fn norm_into(&mut self, name: &str, out: &str) -> Result<()> {
        let config = &self.source.config;
        let gamma = self.gamma(&format!("{name}.weight"), config.hidden)?;
        match self.pending.take() {
            None => {
                let attrs = norm_attrs(config.norm_eps);
                self.g.node("", "SimplifiedLayerNormalization", &[&self.residual, &gamma], &[out], &attrs);
            }
            Some(pending) => {
                let sum = self.g.fresh_name("residual");
                self.g.node(
                    crate::export::onnx::MICROSOFT,
                    "SkipSimplifiedLayerNormalization",
                    &[&pending, &self.residual, &gamma],
                    &[out, "", "", &sum],
                    &[("epsilon", Attr::Float(config.norm_eps))],
                );
                self.residual = sum;
            }
        }
        Ok(())
    }

    fn gamma(&mut self, name: &str, width: usize) -> Result<String> {
        let gamma = self.tensor(name, &[width])?;
        Ok(self.g.init(name, quantize::float(self.precision, &[width], &gamma)))
    }

    /// One multiplication for several layers of the same input: `x` `[..,columns]` to the outputs of
    /// `parts` (name, rows) side by side.
    fn linear(&mut self, x: &str, columns: usize, parts: &[(&str, usize)], must_have_bias: bool) -> Result<String> {
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        let mut weights = Vec::new();
        let mut bias = Vec::new();
        for (name, rows) in parts {
            weights.extend(self.tensor(&format!("{name}.weight"), &[*rows, columns])?);
            let bias_name = format!("{name}.bias");
            if must_have_bias || self.source.contains(&bias_name) {
                bias.extend(self.tensor(&bias_name, &[*rows])?);
            }
        }
        let name = parts.first().map_or("linear", |(name, _)| name);
        let product = self.multiply(x, name, weights, columns);
        if bias.is_empty() {
            return Ok(product);
        }
        bias.resize(rows, 0.0);
        let bias = self.g.init(&format!("{name}.bias"), quantize::float(self.precision, &[rows], &bias));
        Ok(self.g.op("Add", &[&product, &bias], &[]))
    }

    /// `x` times the transpose of `weights` `[rows, columns]`.
    fn multiply(&mut self, x: &str, name: &str, weights: Vec<f32>, columns: usize) -> String {
        let rows = weights.len() / columns;
        if self.precision == Precision::Int8 {
            let layer = blockwise::quantise(&weights, columns);
            drop(weights);
            let bytes = self.g.init(&format!("{name}.q8"), Initializer::u8(&[rows, layer.blocks, BLOCK], layer.bytes));
            let scales = Initializer::f32(&[rows * layer.blocks], &layer.scales);
            let scales = self.g.init(&format!("{name}.scales"), scales);
            return self.g.ms_op(
                "MatMulNBits",
                &[x, &bytes, &scales],
                &[
                    ("K", Attr::Int(columns as i64)),
                    ("N", Attr::Int(rows as i64)),
                    ("bits", Attr::Int(8)),
                    ("block_size", Attr::Int(BLOCK as i64)),
                    // Activations become 8-bit integers too, block by block.
                    ("accuracy_level", Attr::Int(4)),
                ],
            );
        }
        let transposed = quantize::transpose(&weights, rows, columns);
        drop(weights);
        if self.precision == Precision::W8A8 {
            return quantize::by_token(&mut self.g, x, name, &transposed, rows);
        }
        let transposed =
            self.g.init(&format!("{name}.weight"), quantize::float(self.precision, &[columns, rows], &transposed));
        self.g.op("MatMul", &[x, &transposed], &[])
    }

    /// The final norm, and the logits of the asked rows.
    fn finish(mut self) -> Result<GraphBuilder> {
        let config = &self.source.config;
        let is_f32 = self.float == DType::F32;
        let states = match &self.turned {
            Some(_) => "turned_states",
            None if is_f32 => "hidden_states",
            None => "hidden_states_f16",
        };
        self.norm_into("model.norm", states)?;
        let flat = self.g.constant(Initializer::i64(&[2], &[-1, config.hidden as i64]));
        let rows = self.g.op("Reshape", &[states, &flat], &[]);
        let asked = self.g.op("Gather", &[&rows, "logit_rows"], &[]);
        let shape = [config.vocab, config.hidden];
        let head = if config.tied { "model.embed_tokens" } else { "lm_head" };
        let weights = self.tensor(&format!("{head}.weight"), &shape)?;
        let logits = self.multiply(&asked, "lm_head", weights, config.hidden);
        let to_f32 = [("to", Attr::Int(DType::F32 as i64))];
        self.g.node("", "Cast", &[&logits], &["logits"], &to_f32);
        if let Some(turned) = &self.turned {
            let back = quantize::transpose(&turned.turn.matrix(), config.hidden, config.hidden);
            let gamma = self.source.tensor("model.norm.weight", &[config.hidden])?;
            let back = self.g.init("turn_back", Initializer::f32(&[config.hidden, config.hidden], &back));
            let gamma = self.g.init("last_norm", Initializer::f32(&[config.hidden], &gamma));
            let turned_back = self.g.op("MatMul", &[states, &back], &[]);
            self.g.node("", "Mul", &[&turned_back, &gamma], &["hidden_states"], &[]);
        } else if !is_f32 {
            self.g.node("", "Cast", &[states], &["hidden_states"], &to_f32);
        }
        self.g.output("logits", DType::F32, &[Dim::Free("logits"), Dim::Fixed(config.vocab)]);
        let states_shape = [Dim::Free("batch"), Dim::Free("sequence"), Dim::Fixed(config.hidden)];
        self.g.output("hidden_states", DType::F32, &states_shape);
        Ok(self.g)
    }
}

fn norm_attrs(epsilon: f32) -> [(&'static str, Attr); 3] {
    [("epsilon", Attr::Float(epsilon)), ("axis", Attr::Int(-1)), ("stash_type", Attr::Int(1))]
}

fn cast(g: &mut GraphBuilder, x: &str, to: DType) -> String {
    g.op("Cast", &[x], &[("to", Attr::Int(to as i64))])
}
