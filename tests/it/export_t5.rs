//! Exported T5 encoders against candle's forward pass over the same weights, tiny and random; and the encoder that learned vectors
//! are trained behind against the graph, and its gradient against differences.

use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use candle_transformers::models::t5;
use nunatak::export::Precision;
use nunatak::export::encoder::export_encoder;
use nunatak::train::encoder::FrozenEncoder;
use nunatak::train::texts::PackedTexts;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::export_bert::tiny::{Batch, random_weights};

pub(crate) const HIDDEN: usize = 64;
/// Heads times their width is not the width of the states, as in T5 1.1.
const HEADS: usize = 3;
const HEAD: usize = 16;
const INNER: usize = 40;
const LAYERS: usize = 2;
const BUCKETS: usize = 8;
/// Below the longest text, so that far is far.
const MAX_DISTANCE: usize = 12;

fn config(vocab: usize, gated: bool) -> Value {
    json!({
        "model_type": "t5", "architectures": ["T5EncoderModel"], "d_model": HIDDEN, "d_kv": HEAD, "d_ff": INNER,
        "num_layers": LAYERS, "num_heads": HEADS, "vocab_size": vocab, "relative_attention_num_buckets": BUCKETS,
        "relative_attention_max_distance": MAX_DISTANCE, "dropout_rate": 0.1, "layer_norm_epsilon": 1e-6,
        "initializer_factor": 1.0, "feed_forward_proj": if gated { "gated-gelu" } else { "relu" },
        "pad_token_id": 0, "eos_token_id": 1, "is_encoder_decoder": true,
    })
}

/// A tiny random checkpoint in `folder`, as its publisher would lay it out, without a tokenizer of its own; its weights.
pub(crate) fn checkpoint(folder: &Path, vocab: usize, gated: bool, tokenizer: &[u8]) -> Vec<u8> {
    let inner = HEADS * HEAD;
    let mut shapes = vec![
        ("shared.weight".to_owned(), vec![vocab, HIDDEN]),
        ("encoder.final_layer_norm.weight".to_owned(), vec![HIDDEN]),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight".to_owned(), vec![BUCKETS, HEADS]),
    ];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("encoder.block.{layer}.layer.{name}.weight"), shape.to_vec()));
        };
        for name in ["q", "k", "v"] {
            add(&format!("0.SelfAttention.{name}"), &[inner, HIDDEN]);
        }
        add("0.SelfAttention.o", &[HIDDEN, inner]);
        for name in if gated { &["wi_0", "wi_1"][..] } else { &["wi"] } {
            add(&format!("1.DenseReluDense.{name}"), &[INNER, HIDDEN]);
        }
        add("1.DenseReluDense.wo", &[HIDDEN, INNER]);
        add("0.layer_norm", &[HIDDEN]);
        add("1.layer_norm", &[HIDDEN]);
    }
    let bytes = random_weights(shapes, 5);
    std::fs::write(folder.join("model.safetensors"), &bytes).unwrap();
    std::fs::write(folder.join("config.json"), config(vocab, gated).to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
    bytes
}

/// Beside the encoder a dense layer of this activation, as sentence-t5 has one; its matrix `[out, in]`.
fn project(folder: &Path, out: usize, activation: &str) -> Tensor {
    let dense = folder.join("2_Dense");
    std::fs::create_dir(&dense).unwrap();
    let bytes = random_weights(vec![("linear.weight".to_owned(), vec![out, HIDDEN])], 9);
    std::fs::write(dense.join("model.safetensors"), &bytes).unwrap();
    let config = json!({"in_features": HIDDEN, "out_features": out, "bias": false, "activation_function": activation});
    std::fs::write(dense.join("config.json"), config.to_string()).unwrap();
    let modules =
        ["Transformer", "Pooling", "Dense", "Normalize"].iter().zip(["", "1_Pooling", "2_Dense", "3_Normalize"]);
    let modules: Vec<Value> =
        modules.map(|(m, path)| json!({"type": format!("sentence_transformers.models.{m}"), "path": path})).collect();
    std::fs::write(folder.join("modules.json"), json!(modules).to_string()).unwrap();
    let vars = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu).unwrap();
    vars.get((out, HIDDEN), "linear.weight").unwrap()
}

/// candle's states `[S, hidden]` of every text.
fn states(bytes: &[u8], vocab: usize, gated: bool, batch: &Batch) -> Vec<Tensor> {
    let config: t5::Config = serde_json::from_str(&config(vocab, gated).to_string()).unwrap();
    let vars = VarBuilder::from_buffered_safetensors(bytes.to_vec(), DType::F32, &Device::Cpu).unwrap();
    let mut model = t5::T5EncoderModel::load(vars, &config).unwrap();
    let mut alone = |ids: Vec<u32>| {
        let ids = Tensor::from_vec(ids.clone(), (1, ids.len()), &Device::Cpu).unwrap();
        model.forward(&ids).unwrap().squeeze(0).unwrap()
    };
    batch.cuts().into_iter().map(|cut| alone(cut.ids)).collect()
}

fn unit(x: &Tensor) -> Vec<f32> {
    let x: Vec<f32> = x.to_vec1().unwrap();
    let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt();
    x.iter().map(|x| x / norm).collect()
}

#[test]
fn encoders_equal_candle() {
    const VOCAB: usize = 60;
    let batch = Batch::random(&[40, 3, 13, 1], 7, false);
    for gated in [false, true] {
        for dense in [None, Some("torch.nn.modules.linear.Identity"), Some("torch.nn.modules.activation.Tanh")] {
            let folder = tempfile::tempdir().unwrap();
            let bytes = checkpoint(folder.path(), VOCAB, gated, b"{}");
            let matrix = dense.map(|activation| project(folder.path(), 24, activation));
            let vector = |states: &Tensor| {
                let mean = states.mean(0).unwrap();
                let Some(matrix) = &matrix else { return unit(&mean) };
                let projected = matrix.matmul(&mean.unsqueeze(1).unwrap()).unwrap().squeeze(1).unwrap();
                unit(&if dense.unwrap().ends_with("Tanh") { projected.tanh().unwrap() } else { projected })
            };
            let expected: Vec<Vec<f32>> = states(&bytes, VOCAB, gated, &batch).iter().map(vector).collect();
            for precision in [Precision::Fp32, Precision::Int8, Precision::W8A8] {
                let out = tempfile::tempdir().unwrap();
                export_encoder(folder.path(), out.path(), precision).unwrap();
                let found = batch.run(out.path(), "sentence_embedding");
                let width = expected[0].len();
                assert_eq!(found.len(), expected.len() * width);
                for (text, (a, b)) in expected.iter().zip(found.chunks_exact(width)).enumerate() {
                    let cosine = a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
                    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    let case = format!("gated={gated} {dense:?} {precision} text {text}: {off} {cosine}");
                    println!("{case}");
                    assert!(if precision == Precision::Fp32 { off < 1e-4 } else { cosine > 0.98 }, "{case}");
                }
                let description = std::fs::read_to_string(out.path().join("nunatak.json")).unwrap();
                assert!(description.contains(&format!("\"hidden\": {width}")), "{description}");
            }
            let error = export_encoder(folder.path(), &folder.path().join("no"), Precision::Fp16).unwrap_err();
            assert!(error.to_string().contains("do not fit 16-bit floats"), "{error}");
        }
    }
}

#[test]
fn what_has_no_graph_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    checkpoint(folder.path(), 60, true, b"{}");
    let says = |key: &str, value: Value, words: &str| {
        let mut config = config(60, true);
        config[key] = value;
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let message = export_encoder(folder.path(), out.path(), Precision::Fp32).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
        assert!(!out.path().join("nunatak.json").exists());
    };
    says("feed_forward_proj", json!("gated-silu"), "`gated-silu`");
    says("model_type", json!("umt5"), "`umt5`");
    says("num_layers", json!(3), "encoder.block.2.layer.0");
    says("d_ff", json!(41), "wi_0");
    says("relative_attention_num_buckets", json!(2), "sizes cannot be");
    says("relative_attention_max_distance", json!(2), "sizes cannot be");
    says("d_kv", json!("wide"), "config.json");
    std::fs::write(folder.path().join("config.json"), config(60, true).to_string()).unwrap();
    project(folder.path(), 24, "torch.nn.modules.activation.ReLU");
    let message = export_encoder(folder.path(), folder.path(), Precision::Fp32).unwrap_err().to_string();
    assert!(message.contains("`ReLU`"), "{message}");
}

#[test]
fn learned_vectors_are_tokens_before_the_first_and_get_their_gradient() {
    const VOCAB: usize = 60;
    let batch = Batch::random(&[20, 2, 7], 8, false);
    for gated in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let bytes = checkpoint(folder.path(), VOCAB, gated, b"{}");
        let encoder = FrozenEncoder::load(folder.path(), &Device::Cpu).unwrap();
        assert_eq!((encoder.hidden(), encoder.longest()), (HIDDEN, None));
        let texts = PackedTexts::new(&batch.cuts());

        // Behind the embedding of a token, a text has the states that it has behind that token.
        let vars = VarBuilder::from_buffered_safetensors(bytes.clone(), DType::F32, &Device::Cpu).unwrap();
        let words = vars.get((VOCAB, HIDDEN), "shared.weight").unwrap();
        let (found, starts) = encoder.states_behind(&texts, &words.narrow(0, 5, 1).unwrap()).unwrap();
        let longer: Vec<Vec<u32>> = batch.cuts().iter().map(|cut| [&[5], cut.ids.as_slice()].concat()).collect();
        let expected = states(&bytes, VOCAB, gated, &Batch::of_rows(&longer));
        assert_eq!(starts, [0, 21, 24, 32]);
        let expected = Tensor::cat(&expected, 0).unwrap();
        let off = (found - expected).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        assert!(off.to_scalar::<f32>().unwrap() < 1e-4, "gated={gated}: {off}");

        // The gradient of a sum with random weights, against its differences.
        // The same numbers each time: where a ReLU happens to bend between the two, differences say something else.
        let mut random = ChaCha8Rng::seed_from_u64(11);
        let mut numbers = |rows: usize, reach: f32| {
            let numbers: Vec<f32> = (0..rows * HIDDEN).map(|_| random.random_range(-reach..reach)).collect();
            Tensor::from_vec(numbers, (rows, HIDDEN), &Device::Cpu).unwrap()
        };
        let start = numbers(2, 1.0);
        let prompt = Var::from_tensor(&start).unwrap();
        let rows = texts.tokens() + 3 * 2;
        let weights = numbers(rows, 2.0);
        let value = |prompt: &Tensor| {
            let (states, _) = encoder.states_behind(&texts, prompt).unwrap();
            (states * &weights).unwrap().sum_all().unwrap()
        };
        let gradient = value(prompt.as_tensor()).backward().unwrap().get(&prompt).unwrap().to_vec2::<f32>().unwrap();
        let size = gradient.iter().flatten().map(|g| g * g).sum::<f32>().sqrt();
        for (row, column) in [(0, 0), (0, 31), (1, 7), (1, 63)] {
            let step = 2e-3f32;
            let moved = |by: f32| {
                let mut numbers = start.to_vec2::<f32>().unwrap();
                numbers[row][column] += by;
                value(&Tensor::new(numbers, &Device::Cpu).unwrap()).to_scalar::<f32>().unwrap()
            };
            let difference = (moved(step) - moved(-step)) / (2.0 * step);
            let exact = gradient[row][column];
            assert!((difference - exact).abs() < 0.02 * size, "gated={gated} {row} {column}: {difference} {exact}");
        }
    }
}
