//! Models from GGUF files that the test writes itself, by candle's writer.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Tensor;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use nunatak::export::Precision;
use nunatak::export::llama::export_lm;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::assert_close;
use super::graph::Graphs;
use super::tiny::{Family, VOCAB, prompt};

/// llama.cpp's name for a published one.
fn own_name(name: &str) -> String {
    let name = name.replace("model.layers.", "blk.").replace("self_attn.", "").replace("mlp.", "");
    match name.as_str() {
        "model.embed_tokens.weight" => "token_embd.weight".into(),
        "model.norm.weight" => "output_norm.weight".into(),
        "lm_head.weight" => "output.weight".into(),
        _ => [
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("q_norm", "attn_q_norm"),
            ("k_norm", "attn_k_norm"),
            ("q_proj", "attn_q"),
            ("k_proj", "attn_k"),
            ("v_proj", "attn_v"),
            ("o_proj", "attn_output"),
            ("gate_proj", "ffn_gate"),
            ("up_proj", "ffn_up"),
            ("down_proj", "ffn_down"),
        ]
        .iter()
        .fold(name.clone(), |name, (from, to)| name.replace(from, to)),
    }
}

/// The order in which llama.cpp keeps Llama's query and key rows: the converter's own recipe
/// (`reshape(heads, 2, head_dim / 2, ..).swapaxes(1, 2)`).
fn permuted(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = weight.dims2().unwrap();
    let apart = weight.reshape((heads, 2, rows / heads / 2, columns)).unwrap();
    apart.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, columns)).unwrap()
}

/// Write the model; matrices whose rows fit the block are packed as `format`, the others kept as floats.
/// Returns the weights as packing left them, under their published names.
fn write(family: Family, format: GgmlDType, path: &Path) -> HashMap<String, Tensor> {
    let device = candle_core::Device::Cpu;
    let config = family.config();
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let (heads, kv_heads) = (number("num_attention_heads"), number("num_key_value_heads"));
    let mut left = HashMap::new();
    let mut packed = Vec::new();
    let weights = family.weights(21);
    let mut names: Vec<&String> = weights.keys().collect();
    names.sort();
    for name in names {
        let weight = &weights[name];
        let fits = weight.rank() == 2 && weight.dims()[1].is_multiple_of(format.block_size());
        let rounded = |w: &Tensor| QTensor::quantize(w, if fits { format } else { GgmlDType::F32 }).unwrap();
        left.insert(name.clone(), rounded(weight).dequantize(&device).unwrap());
        let turned = match () {
            () if family != Family::Llama || weight.rank() != 2 => weight.clone(),
            () if name.contains("q_proj") => permuted(weight, heads),
            () if name.contains("k_proj") => permuted(weight, kv_heads),
            () => weight.clone(),
        };
        packed.push((own_name(name), rounded(&turned)));
    }
    let architecture = if family == Family::Llama { "llama" } else { config["model_type"].as_str().unwrap() };
    let mut metadata = vec![("general.architecture".to_owned(), Value::String(architecture.into()))];
    let mut count = |key: &str, n: usize| metadata.push((format!("{architecture}.{key}"), Value::U32(n as u32)));
    count("block_count", number("num_hidden_layers"));
    count("embedding_length", number("hidden_size"));
    count("feed_forward_length", number("intermediate_size"));
    count("context_length", number("max_position_embeddings"));
    count("attention.head_count", heads);
    count("attention.head_count_kv", kv_heads);
    if family == Family::Qwen3 {
        count("attention.key_length", number("head_dim"));
        count("attention.value_length", number("head_dim"));
    }
    let epsilon = config["rms_norm_eps"].as_f64().unwrap() as f32;
    metadata.push((format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::F32(epsilon)));
    let texts = |list: Vec<String>| Value::Array(list.into_iter().map(Value::String).collect());
    metadata.push(("tokenizer.ggml.model".into(), Value::String("gpt2".into())));
    metadata.push(("tokenizer.ggml.pre".into(), Value::String("gpt-2".into())));
    let tokens = (0..VOCAB).map(|i| char::from_u32(0x21 + i as u32).unwrap().to_string());
    metadata.push(("tokenizer.ggml.tokens".into(), texts(tokens.collect())));
    metadata.push(("tokenizer.ggml.merges".into(), texts(vec![])));
    metadata.push(("tokenizer.ggml.eos_token_id".into(), Value::U32(2)));
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = packed.iter().map(|(k, v)| (k.as_str(), v)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
    left
}

fn compare(family: Family, format: GgmlDType) {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let weights = write(family, format, &source.path().join("model.gguf"));
    // The folder stands for the one file in it.
    export_lm(source.path(), out.path(), Precision::Fp32).unwrap();
    let mut graphs = Graphs::open(out.path());
    let ids = prompt(12, 8);
    let empty = graphs.cache(1, 0);
    let step = graphs.run(&[&ids], &[12], &empty);
    let theirs = family.logits(&weights, &ids).concat();
    assert_close(&step.logits.data, &theirs, 1e-4, &format!("{family:?} packed as {format:?}"));
    assert_eq!(graphs.shape.eos, [2]);
}

#[test]
fn every_format() {
    for format in [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q8_0,
        GgmlDType::Q5_0,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
    ] {
        compare(Family::Llama, format);
    }
}

#[test]
fn every_architecture() {
    for family in [Family::Qwen2, Family::Qwen3] {
        compare(family, GgmlDType::Q8_0);
    }
}

#[test]
fn a_missing_tensor_and_a_second_file_are_named() {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let problem = |path: &Path| export_lm(path, out.path(), Precision::Fp32).unwrap_err().to_string();
    assert!(problem(source.path()).contains("neither a config.json nor a .gguf file"));
    write(Family::Qwen2, GgmlDType::F32, &source.path().join("a.gguf"));
    std::fs::copy(source.path().join("a.gguf"), source.path().join("b.gguf")).unwrap();
    assert!(problem(source.path()).contains("holds 2 GGUF files"));
    // The same file under another architecture's name lacks what that one needs.
    let mut bytes = std::fs::read(source.path().join("a.gguf")).unwrap();
    let needle = b"qwen2";
    for at in 0..bytes.len() - needle.len() {
        if &bytes[at..at + needle.len()] == needle {
            bytes[at..at + needle.len()].copy_from_slice(b"qwen3");
        }
    }
    let other = source.path().join("b.gguf");
    std::fs::write(&other, bytes).unwrap();
    let said = problem(&other);
    assert!(said.contains("no tensor named blk.0.attn_q_norm.weight"), "{said}");
}

/// What a flipped byte does to the whole export: an error, or a model; never a panic.
#[test]
fn no_flipped_byte_panics() {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = source.path().join("model.gguf");
    write(Family::Qwen3, GgmlDType::Q8_0, &path);
    let whole = std::fs::read(&path).unwrap();
    // Everything before the weights, whose bytes mean nothing by themselves.
    let header = whole.windows(9).rposition(|w| w == b"blk.1.ffn").unwrap() + 40;
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut refused = 0;
    for _ in 0..300 {
        let mut bytes = whole.clone();
        bytes[random.random_range(4..header)] ^= 1 << random.random_range(0..8);
        std::fs::write(&path, bytes).unwrap();
        refused += usize::from(export_lm(&path, out.path(), Precision::Int8).is_err());
    }
    assert!(refused > 100, "{refused} of 300 were refused");
}
