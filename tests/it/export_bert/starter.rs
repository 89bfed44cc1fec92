//! The starter encoder: its fp32 graph against candle's forward pass, and its other precisions against
//! that, on real passages.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert;
use nunatak::encode::Encoder;
use nunatak::progress::Quiet;
use nunatak::runtime::session::RuntimeOptions;
use nunatak::runtime::setup::{self, Manifest};
use nunatak::runtime::tokenizer::TextTokenizer;
use serde_json::Value;

const NAME: &str = "all-MiniLM-L6-v2";

/// Passages of the bundled corpus, as an index would encode them.
fn passages(count: usize) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/demo/passages.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let field = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let rows = text.lines().take(count).map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| format!("{}. {}", field(&row, "title"), field(&row, "text"))).collect()
}

fn encode(precision: &str, texts: &[String]) -> Vec<f32> {
    let options = RuntimeOptions::default();
    let model = setup::model(&format!("{NAME}@{precision}"), &options, &Quiet).unwrap();
    Encoder::open(&model, &options).unwrap().encode(texts).unwrap()
}

/// candle's vectors, a text at a time: mean of the states, of unit length.
fn reference(texts: &[String]) -> Vec<f32> {
    let options = RuntimeOptions::default();
    let folder = setup::source(Manifest::get().unwrap().starter(NAME).unwrap(), &options, &Quiet).unwrap();
    let config: bert::Config =
        serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    let vb = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu).unwrap();
    let model = bert::BertModel::load(vb, &config).unwrap();
    let tokenizer = TextTokenizer::from_file(&folder.join("tokenizer.json"), NAME).unwrap();
    let vector = |text: &String| {
        let ids = Tensor::new(tokenizer.encode(text, true).unwrap(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let states = model.forward(&ids, &ids.zeros_like().unwrap(), None).unwrap();
        let mean = states.mean(1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let norm = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
        mean.into_iter().map(move |x| x / norm)
    };
    texts.iter().flat_map(vector).collect()
}

/// Cosines of corresponding unit vectors: their mean and the least.
fn cosines(a: &[f32], b: &[f32], texts: usize) -> (f32, f32) {
    assert_eq!(a.len(), b.len());
    let dim = a.len() / texts;
    let all: Vec<f32> =
        a.chunks(dim).zip(b.chunks(dim)).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum()).collect();
    (all.iter().sum::<f32>() / texts as f32, all.iter().copied().fold(f32::INFINITY, f32::min))
}

#[test]
fn the_starter_encoder_equals_candle() {
    let texts = passages(12);
    let (expected, found) = (reference(&texts), encode("fp32", &texts));
    let difference = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference < 1e-4, "{difference}");
}

#[test]
fn the_starter_encoder_keeps_its_vectors_in_other_precisions() {
    let texts = passages(64);
    let exact = encode("fp32", &texts);
    for (precision, mean, least) in [("fp16", 0.99999, 0.9999), ("int8", 0.993, 0.985), ("w8a8", 0.993, 0.985)] {
        let found = cosines(&exact, &encode(precision, &texts), texts.len());
        assert!(found.0 > mean && found.1 > least, "{precision}: {found:?}");
    }
}
