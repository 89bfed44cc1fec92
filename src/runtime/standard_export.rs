//! What a user's own ONNX folder would say about itself if it had a `nunatak.json`.
//!
//! Such a folder is what common exporters write: a graph that takes `input_ids` and `attention_mask`, a
//! `tokenizer.json`, the published `config.json`, and perhaps the pooling and length files of a sentence
//! encoder. Only encoders and cross-encoders can be used so; a language model has to be exported by this
//! crate, because common graphs neither take embeddings nor give hidden states.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prost::Message;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::runtime::model_dir::{Description, FORMAT, ModelKind, sha256_of};
use crate::runtime::tokenizer::TOKENIZER;

/// Where exporters put the graph, the likeliest place first.
const GRAPHS: [&str; 2] = ["model.onnx", "onnx/model.onnx"];
/// A published length above this means "no limit was set".
const SANE_LENGTH: u64 = 1 << 20;
/// The length of a model that states none: that of BERT.
const DEFAULT_LENGTH: u64 = 512;

/// The description of the folder, and its graph's place in it. Its files are hashed on every call; a folder
/// that is imported by `nunatak models import` is hashed once.
pub(super) fn describe(dir: &Path, name: &str) -> Result<(Description, PathBuf)> {
    let graph = GRAPHS.iter().map(PathBuf::from).find(|g| dir.join(g).is_file()).ok_or_else(|| {
        let weights = ["model.safetensors", "model.safetensors.index.json"].iter().any(|w| dir.join(w).is_file());
        match weights {
            true => Error::model(
                name,
                "it holds weights but no model.onnx",
                format!("make one with: nunatak models import {}", dir.display()),
            ),
            false => Error::model(name, "it holds no model.onnx", "a model folder needs model.onnx and tokenizer.json"),
        }
    })?;
    if !dir.join(TOKENIZER).is_file() {
        return Err(Error::model(
            name,
            format!("it holds no {TOKENIZER}"),
            "put the tokenizer.json that was published with the model beside its config.json",
        ));
    }
    let config = json(&dir.join("config.json"))?.unwrap_or(Value::Null);
    let header = read_header(&dir.join(&graph), name)?;
    let kind = kind(dir, name, &config, &header)?;
    let width = |keys: &[&str]| keys.iter().find_map(|k| config.get(*k)).and_then(Value::as_u64);
    let hidden = width(&["hidden_size", "dim", "d_model"])
        .or_else(|| header.outputs.iter().filter_map(|o| o.shape.last().copied().flatten()).next())
        .ok_or_else(|| {
            Error::model(name, "neither config.json nor the graph says how wide it is", "add its config.json")
        })?;

    let mut files = BTreeMap::new();
    let external = graph.with_extension("onnx_data");
    let data = PathBuf::from(format!("{}.data", graph.display()));
    for file in [&graph, &external, &data, &PathBuf::from(TOKENIZER)] {
        if dir.join(file).is_file() {
            files.insert(file.display().to_string(), sha256_of(&dir.join(file))?);
        }
    }
    let description = Description {
        format: FORMAT,
        kind,
        family: config.get("model_type").and_then(Value::as_str).unwrap_or("bert").to_owned(),
        precision: "onnx".to_owned(),
        hidden: hidden as usize,
        max_tokens: max_tokens(dir, &config)? as usize,
        source: dir.display().to_string(),
        priors: Vec::new(),
        files,
    };
    Ok((description, graph))
}

/// Outputs decide, except that a score and an already pooled vector look alike: there `config.json` does.
fn kind(dir: &Path, name: &str, config: &Value, header: &Header) -> Result<ModelKind> {
    let architecture = config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default();
    if !header.inputs.iter().any(|i| i == "input_ids") || architecture.contains("ForCausalLM") {
        return Err(Error::model(
            name,
            "its graph is not a standard encoder or cross-encoder (inputs `input_ids` and `attention_mask`)",
            "language models are exported from their weights: nunatak models import FOLDER_OR_GGUF --kind lm",
        ));
    }
    let classes = |shape: &[Option<u64>]| matches!(shape.last(), Some(Some(1 | 2)));
    let scores = header.outputs.iter().any(|o| o.shape.len() <= 2 && (o.name == "logits" || classes(&o.shape)));
    if architecture.ends_with("ForSequenceClassification") || scores {
        return Ok(ModelKind::CrossEncoder);
    }
    let pooled = header.outputs.iter().any(|o| o.name == "sentence_embedding");
    Ok(ModelKind::Encoder { pooling: if pooled { "graph".to_owned() } else { pooling(dir, name)? } })
}

/// The pooling that the folder asks for; mean, the commonest, when it says nothing.
fn pooling(dir: &Path, name: &str) -> Result<String> {
    let Some(config) = json(&dir.join("1_Pooling/config.json"))? else { return Ok("mean".to_owned()) };
    let on = |mode: &str| config.get(mode).and_then(Value::as_bool).unwrap_or(false);
    match (on("pooling_mode_mean_tokens"), on("pooling_mode_cls_token")) {
        (true, false) => Ok("mean".to_owned()),
        (false, true) => Ok("cls".to_owned()),
        _ => Err(Error::model(
            name,
            "its 1_Pooling/config.json asks for a pooling other than mean or cls",
            "export it with the pooling inside the graph, as an output named sentence_embedding",
        )),
    }
}

/// The smallest of the lengths that the folder states.
fn max_tokens(dir: &Path, config: &Value) -> Result<u64> {
    let mut lengths = Vec::new();
    for (file, key) in [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")]
    {
        lengths.extend(json(&dir.join(file))?.and_then(|v| v.get(key).and_then(Value::as_u64)));
    }
    if let Some(positions) = config.get("max_position_embeddings").and_then(Value::as_u64) {
        // RoBERTa's positions start after its padding id, which costs two of them.
        let offset =
            if config.get("model_type").and_then(Value::as_str).is_some_and(|t| t.contains("roberta")) { 2 } else { 0 };
        lengths.push(positions.saturating_sub(offset));
    }
    Ok(lengths.into_iter().filter(|&n| n > 0 && n < SANE_LENGTH).min().unwrap_or(DEFAULT_LENGTH))
}

/// The content of a JSON file, if the file is there.
fn json(path: &Path) -> Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
    let value = serde_json::from_str(&text).map_err(|e| {
        Error::bad_file(path, format!("not valid JSON: {e}"), "take it again from where the model was published")
    })?;
    Ok(Some(value))
}

/// What a graph takes and gives.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    inputs: Vec<String>,
    outputs: Vec<OutputShape>,
}

/// An output of a graph; an axis of free length is `None`.
#[derive(Debug, PartialEq, Eq)]
struct OutputShape {
    name: String,
    shape: Vec<Option<u64>>,
}

/// Read a graph's inputs and outputs from the file itself, so that a folder can be described without the
/// runtime library. The messages below list only the fields that are wanted; the rest is skipped.
fn read_header(path: &Path, name: &str) -> Result<Header> {
    let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
    let model = Model::decode(bytes.as_slice()).ok().and_then(|m| m.graph).filter(|g| !g.output.is_empty());
    let graph = model.ok_or_else(|| {
        Error::model(name, format!("{} is not an ONNX graph", path.display()), "export or download the model again")
    })?;
    let outputs = graph.output.into_iter().map(|o| {
        let dims = o.r#type.and_then(|t| t.tensor).and_then(|t| t.shape).map(|s| s.dim).unwrap_or_default();
        let shape = dims.into_iter().map(|d| d.value.and_then(|v| u64::try_from(v).ok())).collect();
        OutputShape { name: o.name, shape }
    });
    Ok(Header { inputs: graph.input.into_iter().map(|i| i.name).collect(), outputs: outputs.collect() })
}

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    r#type: Option<Type>,
}

#[derive(Clone, PartialEq, Message)]
struct Type {
    #[prost(message, optional, tag = "1")]
    tensor: Option<Tensor>,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Axis>,
}

#[derive(Clone, PartialEq, Message)]
struct Axis {
    #[prost(int64, optional, tag = "1")]
    value: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::onnx::{DType, Dim, GraphBuilder};

    /// A folder with a graph of this output, and these other files.
    fn folder(output: &str, shape: &[Dim], files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut graph = GraphBuilder::new("test");
        let ids = graph.input("input_ids", DType::I64, &[Dim::Free("B"), Dim::Free("S")]);
        graph.input("attention_mask", DType::I64, &[Dim::Free("B"), Dim::Free("S")]);
        graph.node("", "Identity", &[&ids], &[output], &[]);
        graph.output(output, DType::F32, shape);
        graph.save(&dir.path().join("model.onnx")).unwrap();
        for (name, text) in [("tokenizer.json", "{}")].iter().chain(files) {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    const HIDDEN: [Dim; 3] = [Dim::Free("B"), Dim::Free("S"), Dim::Fixed(32)];

    #[test]
    fn hidden_states_make_an_encoder_with_the_pooling_the_folder_asks_for() {
        let bert = r#"{"architectures": ["BertModel"], "hidden_size": 32, "max_position_embeddings": 512}"#;
        let cls = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
        let dir = folder(
            "last_hidden_state",
            &HIDDEN,
            &[
                ("config.json", bert),
                ("1_Pooling/config.json", cls),
                ("sentence_bert_config.json", r#"{"max_seq_length": 256}"#),
                ("tokenizer_config.json", r#"{"model_max_length": 1000000000000000019884624838656}"#),
            ],
        );
        let (description, graph) = describe(dir.path(), "it").unwrap();
        assert_eq!(description.kind, ModelKind::Encoder { pooling: "cls".into() });
        assert_eq!((description.hidden, description.max_tokens), (32, 256));
        assert_eq!(graph, Path::new("model.onnx"));
        assert_eq!(description.files.keys().collect::<Vec<_>>(), ["model.onnx", "tokenizer.json"]);
    }

    #[test]
    fn without_any_config_the_graph_is_enough() {
        let dir = folder("last_hidden_state", &HIDDEN, &[]);
        let (description, _) = describe(dir.path(), "it").unwrap();
        assert_eq!(description.kind, ModelKind::Encoder { pooling: "mean".into() });
        assert_eq!((description.hidden, description.max_tokens), (32, 512));
    }

    #[test]
    fn a_score_makes_a_cross_encoder() {
        let dir = folder("logits", &[Dim::Free("B"), Dim::Fixed(1)], &[("config.json", r#"{"hidden_size": 32}"#)]);
        assert_eq!(describe(dir.path(), "it").unwrap().0.kind, ModelKind::CrossEncoder);
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_the_reason() {
        let lm = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 32}"#;
        let dir = folder("logits", &HIDDEN, &[("config.json", lm)]);
        assert!(describe(dir.path(), "it").unwrap_err().hint().unwrap().contains("--kind lm"));

        let max = r#"{"pooling_mode_max_tokens": true}"#;
        let dir = folder("last_hidden_state", &HIDDEN, &[("1_Pooling/config.json", max)]);
        assert!(describe(dir.path(), "it").unwrap_err().to_string().contains("pooling"));

        let dir = folder("last_hidden_state", &HIDDEN, &[("config.json", "{")]);
        assert!(describe(dir.path(), "it").unwrap_err().to_string().contains("config.json: not valid JSON"));

        std::fs::write(dir.path().join("model.onnx"), "this is not a graph").unwrap();
        std::fs::remove_file(dir.path().join("config.json")).unwrap();
        assert!(describe(dir.path(), "it").unwrap_err().to_string().contains("not an ONNX graph"));

        let empty = tempfile::tempdir().unwrap();
        assert!(describe(empty.path(), "it").unwrap_err().to_string().contains("no model.onnx"));
        std::fs::write(empty.path().join("model.safetensors"), "").unwrap();
        assert!(describe(empty.path(), "it").unwrap_err().hint().unwrap().contains("models import"));
    }
}
