//! The starter language model: its rebuilt tokenizer against published ids and a naive BPE, its graphs
//! against candle's forward pass over weights that candle unpacked.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama;
use nunatak::export::Precision;
use nunatak::export::gguf::Gguf;
use nunatak::export::llama::export_lm;
use nunatak::progress::Quiet;
use nunatak::runtime::session::RuntimeOptions;
use nunatak::runtime::setup::{self, Manifest};
use proptest::prelude::*;
use tokenizers::Tokenizer;

use super::graph::Graphs;
use super::{assert_close, noise};

const PROMPTS: [&str; 3] = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital of France is",
    "The Antarctic ice sheet holds most of the fresh water of the Earth. It is up to 4,776 metres thick. \
     Question: How thick is the ice sheet at most?\nAnswer:",
    "A nunatak is a rocky peak that",
];

/// The published GGUF file, fetched on first use.
fn source() -> PathBuf {
    let starter = Manifest::get().unwrap().starter("SmolLM2-135M-Instruct").unwrap();
    setup::source(starter, &RuntimeOptions::default(), &Quiet).unwrap()
}

fn export(precision: Precision) -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    export_lm(&source(), out.path(), precision).unwrap();
    out
}

/// The tokenizer, once for all tests: with its embedding table an export takes seconds.
fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let model = setup::model("SmolLM2-135M-Instruct", &RuntimeOptions::default(), &Quiet).unwrap();
        Tokenizer::from_file(model.file("tokenizer.json")).unwrap()
    })
}

fn ids(text: &str) -> Vec<u32> {
    tokenizer().encode(text, false).unwrap().get_ids().to_vec()
}

/// candle's Llama with the weights of the GGUF file: unpacked by candle, and put back into the published
/// order by the inverse of llama.cpp's recipe (`reshape(heads, head_dim / 2, 2, ..).swapaxes(1, 2)`).
struct Reference {
    model: llama::Llama,
    config: llama::Config,
}

impl Reference {
    fn open() -> Self {
        let mut file = std::fs::File::open(source()).unwrap();
        let content = gguf_file::Content::read(&mut file).unwrap();
        let config = llama::Config {
            hidden_size: 576,
            intermediate_size: 1536,
            vocab_size: 49152,
            num_hidden_layers: 30,
            num_attention_heads: 9,
            num_key_value_heads: 3,
            use_flash_attn: false,
            rms_norm_eps: 1e-5,
            rope_theta: 100_000.0,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: 8192,
            tie_word_embeddings: true,
        };
        let names = [
            ("blk.", "model.layers."),
            ("token_embd", "model.embed_tokens"),
            ("output_norm", "model.norm"),
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("attn_output", "self_attn.o_proj"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ];
        let mut weights: HashMap<String, Tensor> = HashMap::new();
        for own in content.tensor_infos.keys() {
            let tensor = content.tensor(&mut file, own, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
            let heads = if own.contains("attn_q") { Some(9) } else { own.contains("attn_k").then_some(3) };
            let tensor = match heads {
                None => tensor,
                Some(heads) => {
                    let pairs = tensor.reshape((heads, 32, 2, 576)).unwrap();
                    pairs.transpose(1, 2).unwrap().contiguous().unwrap().reshape((heads * 64, 576)).unwrap()
                }
            };
            weights.insert(names.iter().fold(own.clone(), |name, (from, to)| name.replace(from, to)), tensor);
        }
        let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        Self { model: llama::Llama::load(vb, &config).unwrap(), config }
    }

    /// Logits after the last token.
    fn logits(&self, ids: &[u32]) -> Vec<f32> {
        let input = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let mut cache = llama::Cache::new(false, DType::F32, &self.config, &Device::Cpu).unwrap();
        self.model.forward(&input, 0, &mut cache).unwrap().squeeze(0).unwrap().to_vec1().unwrap()
    }
}

fn best(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap()
}

/// What 8 bits may cost. The last bits of floats decide which way a number is rounded, thirty layers carry that on, and so each
/// processor has a noise of its own: with the same exact products of `w8a8`, one prompt's was 0.127 and 0.167, and `int8`, whose kernel
/// for processors without 8-bit dot products is not exact, had 0.216 there. Products that overflow, the mistake to be found, gave 0.55.
///
/// With dot products both stay below the smaller bound.
fn int8_noise() -> f32 {
    #[cfg(target_arch = "x86_64")]
    if !std::is_x86_feature_detected!("avx512vnni") && !std::is_x86_feature_detected!("avxvnni") {
        return 0.25;
    }
    0.15
}

#[test]
fn graphs_agree_with_candle() {
    let reference = Reference::open();
    let expected: Vec<Vec<f32>> = PROMPTS.iter().map(|prompt| reference.logits(&ids(prompt))).collect();
    for precision in [Precision::Fp32, Precision::Int8, Precision::W8A8] {
        let out = export(precision);
        let mut graphs = Graphs::open(out.path());
        for (prompt, theirs) in PROMPTS.iter().zip(&expected) {
            let ids = ids(prompt);
            let empty = graphs.cache(1, 0);
            let ours = graphs.run_for(&[&ids], &[ids.len()], &empty, &[ids.len() as i64 - 1]).logits.data;
            assert_eq!(best(&ours), best(theirs), "{precision}: {prompt}");
            match precision {
                Precision::Fp32 => assert_close(&ours, theirs, 1e-3, prompt),
                // Weights and activations in 8 bits; what that costs in answers is measured on questions.
                _ => assert!(noise(&ours, theirs) < int8_noise(), "{precision}: {prompt}: {}", noise(&ours, theirs)),
            }
        }
    }
}

#[test]
fn known_texts_have_their_published_ids() {
    // The system prompt of the model's own chat template.
    let system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n";
    let published = [
        1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2,
        198,
    ];
    assert_eq!(ids(system), published);
    // Every digit alone, and the space before them too.
    assert_eq!(ids(" 2024"), [216, 34, 32, 34, 36]);
    assert_eq!(ids(" caf\u{e9}"), [37366]);
}

#[test]
fn control_tokens_are_one_token_and_hidden() {
    for (id, token) in [(0, "<|endoftext|>"), (1, "<|im_start|>"), (2, "<|im_end|>")] {
        assert_eq!(ids(token), [id]);
        assert_eq!(ids(&format!("ice{token}ice")).iter().filter(|&&i| i == id).count(), 1);
        assert_eq!(tokenizer().decode(&[id], true).unwrap(), "");
        assert_eq!(tokenizer().decode(&[id], false).unwrap(), token);
    }
}

/// The vocabulary was made without a few control characters and bytes of unassigned planes; as in the
/// published tokenizer, they vanish.
#[test]
fn bytes_that_the_vocabulary_lacks_vanish() {
    assert_eq!(ids("ice\u{4}berg"), [ids("ice"), ids("berg")].concat());
}

/// Vocabulary and merge ranks straight from the file.
struct Naive {
    vocabulary: HashMap<String, u32>,
    ranks: HashMap<(String, String), usize>,
}

impl Naive {
    fn get() -> &'static Self {
        static NAIVE: OnceLock<Naive> = OnceLock::new();
        NAIVE.get_or_init(|| {
            let gguf = Gguf::open(&source()).unwrap();
            let tokens = gguf.texts("tokenizer.ggml.tokens").unwrap();
            let merges = gguf.texts("tokenizer.ggml.merges").unwrap();
            let pair = |merge: &str| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
            Self {
                vocabulary: tokens.iter().enumerate().map(|(id, t)| ((*t).to_owned(), id as u32)).collect(),
                ranks: merges.iter().enumerate().map(|(rank, merge)| (pair(merge), rank)).collect(),
            }
        })
    }

    /// Byte-pair encoding as it is defined: merge the pair of best rank until none is left.
    fn encode(&self, word: &str) -> Vec<u32> {
        let mut parts: Vec<String> = word.chars().map(String::from).collect();
        while let Some((_, at)) = (1..parts.len())
            .filter_map(|at| Some((*self.ranks.get(&(parts[at - 1].clone(), parts[at].clone()))?, at)))
            .min()
        {
            let right = parts.remove(at);
            parts[at - 1].push_str(&right);
        }
        parts.iter().map(|part| self.vocabulary[part]).collect()
    }
}

proptest! {
    #[test]
    fn any_text_comes_back(text in "\\PC{0,60}|[ \t\r\n\u{a0}a1.]{0,20}") {
        prop_assert_eq!(tokenizer().decode(&ids(&text), false).unwrap(), text);
    }

    #[test]
    fn words_are_merged_by_rank(words in prop::collection::vec("[A-Z]?[a-z]{1,12}", 1..6)) {
        let naive = Naive::get();
        // A space is written as U+0120 and belongs to the word behind it.
        let expected: Vec<u32> = words.iter().flat_map(|word| naive.encode(&format!("\u{120}{word}"))).collect();
        let text: String = words.iter().map(|word| format!(" {word}")).collect();
        prop_assert_eq!(ids(&text), expected);
    }
}
