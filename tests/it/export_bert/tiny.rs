//! Tiny random checkpoints of every family, laid out as their publishers would, and what candle's forward
//! pass gives for them.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, VarBuilder, linear};
use candle_transformers::models::{bert, distilbert, xlm_roberta};
use nunatak::runtime::session::{Input, RuntimeOptions, Session};
use nunatak::runtime::tokenizer::Cut;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

pub(super) const HIDDEN: usize = 32;
const INTERMEDIATE: usize = 48;
const HEADS: usize = 4;
const LAYERS: usize = 2;
const VOCAB: usize = 60;
/// Usable positions; RoBERTa's table has two more.
const POSITIONS: usize = 16;
const PAD: i64 = 1;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Family {
    Bert,
    Roberta,
    DistilBert,
}

pub(super) const FAMILIES: [Family; 3] = [Family::Bert, Family::Roberta, Family::DistilBert];

/// A tiny checkpoint on disk, as its publisher would lay it out.
pub(super) struct Checkpoint {
    pub(super) family: Family,
    pub(super) dir: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Checkpoint {
    /// Random weights from `seed`; `root` is what the tensor names begin with, `labels` the width of the head.
    pub(super) fn new(family: Family, root: &str, labels: usize, seed: u64) -> Self {
        let bytes = random_weights(shapes(family, root, labels), seed);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.safetensors"), &bytes).unwrap();
        std::fs::write(dir.path().join("config.json"), config(family).to_string()).unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        Self { family, dir, bytes }
    }

    pub(super) fn pool(&self, cls: bool) {
        let dir = self.dir.path().join("1_Pooling");
        std::fs::create_dir(&dir).unwrap();
        let config = json!({"pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": !cls});
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    }

    fn variables(&self) -> VarBuilder<'static> {
        VarBuilder::from_buffered_safetensors(self.bytes.clone(), DType::F32, &Device::Cpu).unwrap()
    }

    /// candle's last hidden states `[B,S,hidden]`.
    fn hidden_states(&self, root: &str, batch: &Batch) -> Tensor {
        let vb = if root.is_empty() { self.variables() } else { self.variables().pp(root.trim_end_matches('.')) };
        let config = config(self.family).to_string();
        let (ids, mask, types) = batch.tensors();
        match self.family {
            Family::Bert => {
                let config: bert::Config = serde_json::from_str(&config).unwrap();
                bert::BertModel::load(vb, &config).unwrap().forward(&ids, &types, Some(&mask)).unwrap()
            }
            Family::Roberta => {
                let config: xlm_roberta::Config = serde_json::from_str(&config).unwrap();
                let model = xlm_roberta::XLMRobertaModel::new(&config, vb).unwrap();
                model.forward(&ids, &mask, &types.zeros_like().unwrap(), None, None, None).unwrap()
            }
            Family::DistilBert => {
                let config: distilbert::Config = serde_json::from_str(&config).unwrap();
                let hidden = mask.eq(0u32).unwrap().unsqueeze(1).unwrap().unsqueeze(1).unwrap();
                distilbert::DistilBertModel::load(vb, &config).unwrap().forward(&ids, &hidden).unwrap()
            }
        }
    }

    /// What the encoder has to give: pooled by hand, of unit length.
    pub(super) fn embeddings(&self, root: &str, batch: &Batch, cls: bool) -> Vec<f32> {
        let states = self.hidden_states(root, batch).to_vec3::<f32>().unwrap();
        let mut out = Vec::new();
        for (states, &length) in states.iter().zip(&batch.lengths) {
            let used = if cls { &states[..1] } else { &states[..length] };
            let pooled: Vec<f32> = (0..HIDDEN).map(|d| used.iter().map(|s| s[d]).sum::<f32>()).collect();
            let norm = pooled.iter().map(|x| x * x).sum::<f32>().sqrt();
            out.extend(pooled.iter().map(|x| x / norm));
        }
        out
    }

    /// What the cross-encoder has to give.
    pub(super) fn scores(&self, root: &str, batch: &Batch) -> Vec<f32> {
        let first = self.hidden_states(root, batch).get_on_dim(1, 0).unwrap().contiguous().unwrap();
        let vb = self.variables();
        let dense = |name: &str, out, x: &Tensor| linear(HIDDEN, out, vb.pp(name)).unwrap().forward(x).unwrap();
        let logits = match self.family {
            Family::Bert => dense("classifier", 1, &dense("bert.pooler.dense", HIDDEN, &first).tanh().unwrap()),
            Family::Roberta => {
                dense("classifier.out_proj", 1, &dense("classifier.dense", HIDDEN, &first).tanh().unwrap())
            }
            Family::DistilBert => dense("classifier", 1, &dense("pre_classifier", HIDDEN, &first).relu().unwrap()),
        };
        logits.flatten_all().unwrap().to_vec1().unwrap()
    }
}

pub(super) fn root(family: Family) -> &'static str {
    match family {
        Family::Bert => "bert.",
        Family::Roberta => "roberta.",
        Family::DistilBert => "distilbert.",
    }
}

/// DistilBERT has `relu` here, because candle computes its `gelu` by the tanh approximation.
pub(super) fn config(family: Family) -> Value {
    let sizes = json!({
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS, "vocab_size": VOCAB, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
        "position_embedding_type": "absolute", "pad_token_id": PAD,
    });
    let (mut config, own) = match family {
        Family::Bert => {
            (sizes, json!({"model_type": "bert", "type_vocab_size": 2, "max_position_embeddings": POSITIONS}))
        }
        Family::Roberta => (
            sizes,
            json!({"model_type": "xlm-roberta", "type_vocab_size": 1, "max_position_embeddings": POSITIONS + 2}),
        ),
        Family::DistilBert => (
            json!({}),
            json!({
                "model_type": "distilbert", "dim": HIDDEN, "hidden_dim": INTERMEDIATE, "n_heads": HEADS,
                "n_layers": LAYERS, "vocab_size": VOCAB, "activation": "relu", "pad_token_id": PAD,
                "max_position_embeddings": POSITIONS, "initializer_range": 0.02,
            }),
        ),
    };
    config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    config
}

fn shapes(family: Family, root: &str, labels: usize) -> Vec<(String, Vec<usize>)> {
    let mut all = Vec::new();
    let mut dense = |name: String, rows: usize, columns: usize| {
        all.push((format!("{name}.weight"), vec![rows, columns]));
        all.push((format!("{name}.bias"), vec![rows]));
    };
    let (stack, names, last) = if family == Family::DistilBert {
        (
            "transformer",
            ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"],
            ["sa_layer_norm", "output_layer_norm"],
        )
    } else {
        (
            "encoder",
            [
                "attention.self.query",
                "attention.self.key",
                "attention.self.value",
                "attention.output.dense",
                "intermediate.dense",
                "output.dense",
            ],
            ["attention.output.LayerNorm", "output.LayerNorm"],
        )
    };
    for layer in 0..LAYERS {
        let sizes =
            [[HIDDEN; 2], [HIDDEN; 2], [HIDDEN; 2], [HIDDEN; 2], [INTERMEDIATE, HIDDEN], [HIDDEN, INTERMEDIATE]];
        for (name, [rows, columns]) in names.iter().zip(sizes) {
            dense(format!("{root}{stack}.layer.{layer}.{name}"), rows, columns);
        }
    }
    match family {
        Family::Bert => dense(format!("{root}pooler.dense"), HIDDEN, HIDDEN),
        Family::Roberta => dense("classifier.dense".into(), HIDDEN, HIDDEN),
        Family::DistilBert => dense("pre_classifier".into(), HIDDEN, HIDDEN),
    }
    dense(if family == Family::Roberta { "classifier.out_proj" } else { "classifier" }.into(), labels, HIDDEN);
    let mut norm = |name: String| {
        all.push((format!("{name}.weight"), vec![HIDDEN]));
        all.push((format!("{name}.bias"), vec![HIDDEN]));
    };
    norm(format!("{root}embeddings.LayerNorm"));
    for layer in 0..LAYERS {
        last.iter().for_each(|name| norm(format!("{root}{stack}.layer.{layer}.{name}")));
    }
    let positions = if family == Family::Roberta { POSITIONS + 2 } else { POSITIONS };
    all.push((format!("{root}embeddings.word_embeddings.weight"), vec![VOCAB, HIDDEN]));
    all.push((format!("{root}embeddings.position_embeddings.weight"), vec![positions, HIDDEN]));
    match family {
        Family::Bert => all.push((format!("{root}embeddings.token_type_embeddings.weight"), vec![2, HIDDEN])),
        Family::Roberta => all.push((format!("{root}embeddings.token_type_embeddings.weight"), vec![1, HIDDEN])),
        Family::DistilBert => {}
    }
    all
}

/// A safetensors file of random tensors: matrices wide enough that attention is not flat and activations are not linear, and
/// normalisations around 1.
pub(crate) fn random_weights(shapes: Vec<(String, Vec<usize>)>, seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let count: usize = shape.iter().product();
            let norm = name.contains("orm.weight");
            let reach = if shape.len() == 2 { 3.0 / (shape[1] as f32).sqrt() } else { 0.3 };
            let values = (0..count).flat_map(|_| {
                let x: f32 = rng.random_range(-reach..reach) + f32::from(u8::from(norm));
                x.to_le_bytes()
            });
            (name, shape, values.collect())
        })
        .collect();
    let views: HashMap<&str, TensorView> = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()))
        .collect();
    safetensors::serialize(&views, None).unwrap()
}

/// Token ids, padded on the right.
pub(crate) struct Batch {
    pub(crate) lengths: Vec<usize>,
    width: usize,
    ids: Vec<i64>,
    mask: Vec<i64>,
    types: Vec<i64>,
}

impl Batch {
    pub(crate) fn random(lengths: &[usize], seed: u64, two_segments: bool) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rows = lengths.iter().map(|&n| (0..n).map(|_| rng.random_range(PAD + 1..VOCAB as i64)).collect());
        Self::of(rows.collect(), two_segments)
    }

    /// Of these tokens, in one segment.
    pub(crate) fn of_rows(rows: &[Vec<u32>]) -> Self {
        Self::of(rows.iter().map(|row| row.iter().map(|&id| i64::from(id)).collect()).collect(), false)
    }

    fn of(rows: Vec<Vec<i64>>, two_segments: bool) -> Self {
        let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
        let width = lengths.iter().copied().max().unwrap();
        let cells = || lengths.iter().flat_map(|&n| (0..width).map(move |i| (i, n)));
        let ids = rows.iter().flat_map(|r| (0..width).map(|i| r.get(i).copied().unwrap_or(PAD))).collect();
        let mask = cells().map(|(i, n)| i64::from(i < n)).collect();
        let types = cells().map(|(i, n)| i64::from(two_segments && i >= n / 2 && i < n)).collect();
        Self { width, ids, mask, types, lengths }
    }

    pub(crate) fn row(&self, row: usize) -> Self {
        let start = row * self.width;
        Self::of(vec![self.ids[start..start + self.lengths[row]].to_vec()], false)
    }

    /// The rows without their padding, as the tokenizer would give them.
    pub(crate) fn cuts(&self) -> Vec<Cut> {
        let row = |all: &[i64], row: usize| {
            all[row * self.width..][..self.lengths[row]].iter().map(|&x| x as u32).collect::<Vec<u32>>()
        };
        (0..self.lengths.len())
            .map(|i| Cut { ids: row(&self.ids, i), types: row(&self.types, i), left_out: 0 })
            .collect()
    }

    fn tensors(&self) -> (Tensor, Tensor, Tensor) {
        let shape = (self.lengths.len(), self.width);
        let tensor =
            |v: &[i64]| Tensor::from_vec(v.iter().map(|&x| x as u32).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap();
        (tensor(&self.ids), tensor(&self.mask), tensor(&self.types))
    }

    pub(crate) fn run(&self, folder: &Path, output: &str) -> Vec<f32> {
        let options = RuntimeOptions { threads: 1, ..Default::default() };
        let mut session = Session::open(&folder.join("model.onnx"), &options).unwrap();
        let shape = [self.lengths.len(), self.width];
        let mut inputs = vec![("input_ids", Input::I64(&self.ids, &shape))];
        inputs.push(("attention_mask", Input::I64(&self.mask, &shape)));
        if output == "score" {
            inputs.push(("token_type_ids", Input::I64(&self.types, &shape)));
        }
        session.run(&inputs, &[output]).unwrap().remove(0).data
    }
}
