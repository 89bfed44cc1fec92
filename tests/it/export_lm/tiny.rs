//! Tiny random language models of every family, on disk as their publishers would lay them out, and
//! candle's answer for them.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mistral, qwen2, qwen3};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Also the width of the hidden states: an identity as the head then shows them.
pub const VOCAB: usize = 64;
const HIDDEN: usize = VOCAB;
/// Two and a half blocks of the 8-bit format.
const INTERMEDIATE: usize = 80;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const CONTEXT: usize = 128;
/// Shorter than the prompts, so that it matters.
const WINDOW: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Family {
    Llama,
    /// With its positions stretched as in Llama 3.1.
    Llama3,
    Mistral,
    Qwen2,
    Qwen3,
}

pub const FAMILIES: [Family; 5] = [Family::Llama, Family::Llama3, Family::Mistral, Family::Qwen2, Family::Qwen3];

impl Family {
    fn head_dim(self) -> usize {
        // Qwen3 says its own, which is not hidden / heads.
        if self == Self::Qwen3 { 32 } else { HIDDEN / HEADS }
    }

    fn tied(self) -> bool {
        matches!(self, Self::Llama | Self::Qwen3)
    }

    pub fn config(self) -> Value {
        let mut config = json!({
            "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
            "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "hidden_act": "silu", "tie_word_embeddings": self.tied(), "eos_token_id": [2, 3],
            "sliding_window": WINDOW, "max_window_layers": LAYERS, "use_sliding_window": false,
        });
        config["model_type"] = match self {
            Self::Llama => "llama".into(),
            Self::Llama3 => {
                config["rope_scaling"] = json!({
                    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                });
                "llama".into()
            }
            Self::Mistral => "mistral".into(),
            Self::Qwen2 => "qwen2".into(),
            Self::Qwen3 => {
                config["head_dim"] = self.head_dim().into();
                config["attention_bias"] = false.into();
                "qwen3".into()
            }
        };
        config
    }

    /// Random weights under their published names.
    pub fn weights(self, seed: u64) -> HashMap<String, Tensor> {
        let (q, kv) = (HEADS * self.head_dim(), KV_HEADS * self.head_dim());
        let mut shapes: Vec<(String, Vec<usize>)> =
            vec![("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN]), ("model.norm.weight".into(), vec![HIDDEN])];
        if !self.tied() {
            shapes.push(("lm_head.weight".into(), vec![VOCAB, HIDDEN]));
        }
        for layer in 0..LAYERS {
            let mut push = |part: &str, shape: &[usize]| {
                shapes.push((format!("model.layers.{layer}.{part}"), shape.to_vec()));
            };
            push("input_layernorm.weight", &[HIDDEN]);
            push("post_attention_layernorm.weight", &[HIDDEN]);
            for (part, rows) in [("q", q), ("k", kv), ("v", kv)] {
                push(&format!("self_attn.{part}_proj.weight"), &[rows, HIDDEN]);
                if self == Self::Qwen2 {
                    push(&format!("self_attn.{part}_proj.bias"), &[rows]);
                }
            }
            if self == Self::Qwen3 {
                push("self_attn.q_norm.weight", &[self.head_dim()]);
                push("self_attn.k_norm.weight", &[self.head_dim()]);
            }
            push("self_attn.o_proj.weight", &[HIDDEN, q]);
            push("mlp.gate_proj.weight", &[INTERMEDIATE, HIDDEN]);
            push("mlp.up_proj.weight", &[INTERMEDIATE, HIDDEN]);
            push("mlp.down_proj.weight", &[HIDDEN, INTERMEDIATE]);
        }
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        shapes
            .into_iter()
            .map(|(name, shape)| {
                let is_norm = name.contains("norm");
                // Wide enough that attention is not flat and activations are not linear.
                let reach = if shape.len() == 2 { 2.0 / (shape[1] as f32).sqrt() } else { 0.4 };
                let count = shape.iter().product();
                let numbers: Vec<f32> =
                    (0..count).map(|_| random.random_range(-reach..reach) + f32::from(u8::from(is_norm))).collect();
                (name, Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap())
            })
            .collect()
    }

    /// Write the model as a safetensors folder.
    pub fn write(self, weights: &HashMap<String, Tensor>, folder: &Path) {
        candle_core::safetensors::save(weights, folder.join("model.safetensors")).unwrap();
        std::fs::write(folder.join("config.json"), self.config().to_string()).unwrap();
        let tokenizer = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
        });
        std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    }

    /// candle's logits at every position of `ids`.
    pub fn logits(self, weights: &HashMap<String, Tensor>, ids: &[u32]) -> Vec<Vec<f32>> {
        // The models answer for the last position only, so every prefix is run anew.
        (1..=ids.len()).map(|length| self.last_logits(weights, &ids[..length])).collect()
    }

    /// candle's hidden states at every position: what a head that changes nothing gives.
    pub fn states(self, weights: &HashMap<String, Tensor>, ids: &[u32]) -> Vec<Vec<f32>> {
        let mut weights = weights.clone();
        weights.insert("lm_head.weight".into(), Tensor::eye(HIDDEN, DType::F32, &Device::Cpu).unwrap());
        (1..=ids.len()).map(|length| self.last(&weights, &ids[..length], false)).collect()
    }

    fn last_logits(self, weights: &HashMap<String, Tensor>, ids: &[u32]) -> Vec<f32> {
        self.last(weights, ids, self.tied())
    }

    fn last(self, weights: &HashMap<String, Tensor>, ids: &[u32], tied: bool) -> Vec<f32> {
        let vb = VarBuilder::from_tensors(weights.clone(), DType::F32, &Device::Cpu);
        let input = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let mut config = self.config();
        config["tie_word_embeddings"] = tied.into();
        let logits = match self {
            Self::Llama | Self::Llama3 => {
                let config: llama::LlamaConfig = serde_json::from_value(config).unwrap();
                let config = config.into_config(false);
                let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
                llama::Llama::load(vb, &config).unwrap().forward(&input, 0, &mut cache).unwrap().unsqueeze(1).unwrap()
            }
            Self::Mistral => {
                // candle lets a token see `window` others, the published model `window - 1` and itself.
                config["sliding_window"] = (WINDOW - 1).into();
                let config: mistral::Config = serde_json::from_value(config).unwrap();
                mistral::Model::new(&config, vb).unwrap().forward(&input, 0).unwrap()
            }
            Self::Qwen2 => {
                // candle slides whatever `use_sliding_window` says; a window over everything undoes it.
                config["sliding_window"] = CONTEXT.into();
                let config: qwen2::Config = serde_json::from_value(config).unwrap();
                qwen2::ModelForCausalLM::new(&config, vb).unwrap().forward(&input, 0).unwrap()
            }
            Self::Qwen3 => {
                let config: qwen3::Config = serde_json::from_value(config).unwrap();
                qwen3::ModelForCausalLM::new(&config, vb).unwrap().forward(&input, 0).unwrap()
            }
        };
        logits.i((0, 0)).unwrap().to_vec1().unwrap()
    }
}

/// A prompt of random tokens.
pub fn prompt(length: usize, seed: u64) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..length).map(|_| random.random_range(0..VOCAB as u32)).collect()
}
