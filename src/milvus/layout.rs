//! How passages lie in a collection: one row each, its words made here.
//!
//! The `words` field holds the terms of [`crate::index::lexical::Analyser`], with spaces between, and Milvus' BM25 counts these: so that
//! a question finds by the same stems at home and in a cluster, in every language that has some here, whatever the server's
//! own analysers are. `digest` tells a build that goes on which passages are there already, and are the same.

use std::collections::{BTreeMap, HashMap};

use milvus::v2 as sdk;
use milvus::v2::prelude::{EntityRow, Function, FunctionType, IndexParam, IndexType, MetricType};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::vector_index::VectorIndex;
use crate::digest::short_hex;
use crate::error::{Error, Result};
use crate::index::lexical::{SOURCE_FILE, Terms};
use crate::types::{Passage, SourceSpan};

pub(super) const KEY: &str = "key";
pub(super) const DOCUMENT: &str = "document";
pub(super) const TITLE: &str = "title";
pub(super) const TEXT: &str = "text";
pub(super) const WORDS: &str = "words";
pub(super) const SOURCE: &str = "source";
pub(super) const METADATA: &str = "metadata";
/// What a filter can name: the same without depth, a name with dots for each way into `metadata`.
pub(super) const FIELDS: &str = "fields";
pub(super) const DIGEST: &str = "digest";
pub(super) const VECTOR: &str = "vector";
pub(super) const SPARSE: &str = "sparse";
/// What makes a passage.
pub(super) const PASSAGE: [&str; 5] = [KEY, TITLE, TEXT, SOURCE, METADATA];
/// Bytes of Milvus' longest string.
const LONGEST: u32 = 65_535;
/// Bytes of the longest id.
const LONGEST_KEY: u32 = 1_024;

/// Numbers that a collection is made with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Numbers of a vector; 0 without.
    pub(super) dim: usize,
    /// Links of a graph node.
    pub(super) m: usize,
    /// Candidates while the graph is built.
    pub(super) ef_construction: usize,
    /// What is made of the vectors.
    pub(super) vectors: VectorIndex,
    /// BM25's two numbers.
    pub(super) bm25: (f32, f32),
}

/// The fields of a collection.
pub(super) fn schema(shape: Shape) -> sdk::CollectionSchema {
    let text = |name: &str, longest: u32| {
        sdk::FieldSchema::new().name(name).data_type(sdk::DataType::VarChar).max_length(longest)
    };
    let of = |name: &str, kind: sdk::DataType| sdk::FieldSchema::new().name(name).data_type(kind);
    let mut schema = sdk::CollectionSchema::new()
        .add_field(text(KEY, LONGEST_KEY).primary_key(true))
        .add_field(text(DOCUMENT, LONGEST_KEY))
        .add_field(text(TITLE, LONGEST))
        .add_field(text(TEXT, LONGEST))
        .add_field(text(WORDS, LONGEST).enable_analyzer(true).analyzer_params(json!({"tokenizer": "standard"})))
        .add_field(of(SOURCE, sdk::DataType::Json))
        .add_field(of(METADATA, sdk::DataType::Json))
        .add_field(of(FIELDS, sdk::DataType::Json))
        .add_field(text(DIGEST, 64))
        .add_field(of(SPARSE, sdk::DataType::SparseFloatVector))
        .add_function(
            Function::new()
                .name("words_bm25")
                .function_type(FunctionType::Bm25)
                .input_fields([WORDS])
                .output_fields([SPARSE]),
        );
    if shape.dim > 0 {
        schema = schema.add_field(of(VECTOR, sdk::DataType::FloatVector).dimension(shape.dim as u32));
    }
    schema
}

/// Its indexes.
pub(super) fn indexes(shape: Shape) -> Vec<IndexParam> {
    let sparse = IndexParam::new()
        .field_name(SPARSE)
        .index_type(IndexType::SparseInvertedIndex)
        .metric_type(MetricType::Bm25)
        .extra_params(settings([("bm25_k1", shape.bm25.0.to_string()), ("bm25_b", shape.bm25.1.to_string())]));
    let vector = shape.vectors.of_field(VECTOR, shape);
    std::iter::once(sparse).chain((shape.dim > 0).then_some(vector)).collect()
}

fn settings(settings: [(&str, String); 2]) -> HashMap<String, String> {
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What a passage is, in short: the same for the same content made the same way.
pub(super) fn digest(passage: &Passage) -> Result<String> {
    let all = serde_json::to_vec(passage).map_err(Error::internal("describing a passage"))?;
    Ok(short_hex(&Sha256::digest(&all)))
}

/// What a filter can name of a passage, as at home: the fields of its metadata, by names with dots on the way into others,
/// and the file it was read from.
pub(super) fn fields(passage: &Passage) -> Map<String, Value> {
    let mut all = BTreeMap::new();
    for (name, value) in &passage.metadata {
        flatten(name, value, &mut all);
    }
    all.entry(SOURCE_FILE.to_owned()).or_insert_with(|| vec![passage.source.file.as_str().into()]);
    all.into_iter().map(|(name, values)| (name, one_or_many(values))).collect()
}

fn flatten(name: &str, value: &Value, all: &mut BTreeMap<String, Vec<Value>>) {
    match value {
        Value::Null => {}
        Value::Array(values) => values.iter().for_each(|value| flatten(name, value, all)),
        Value::Object(fields) => {
            for (inner, value) in fields {
                flatten(&format!("{name}.{inner}"), value, all);
            }
        }
        plain => all.entry(name.to_owned()).or_default().push(plain.clone()),
    }
}

fn one_or_many(mut values: Vec<Value>) -> Value {
    match (values.pop(), values.is_empty()) {
        (Some(one), true) => one,
        (last, _) => values.into_iter().chain(last).collect(),
    }
}

/// A passage as a row.
///
/// # Errors
/// [`Error::Request`] naming the passage whose id or text is longer than Milvus takes.
pub(super) fn row(passage: &Passage, terms: &mut Terms, vector: Option<&[f32]>) -> Result<EntityRow> {
    let words = terms.of_passage(passage).join(" ");
    let limits = [
        ("id", passage.key.len(), LONGEST_KEY),
        ("title", passage.title.len(), LONGEST),
        ("text", passage.text.len(), LONGEST),
        ("words", words.len(), LONGEST),
    ];
    for (what, bytes, most) in limits {
        if bytes > most as usize {
            let key: String = passage.key.chars().take(60).collect();
            return Err(Error::request(
                format!("passage {key}: its {what} has {bytes} bytes, and Milvus takes {most}"),
                "split documents into passages (--passage-words 100), or shorten ids",
            ));
        }
    }
    let source = serde_json::to_value(&passage.source).map_err(Error::internal("describing a passage"))?;
    let mut row = Map::new();
    let fields = [
        (KEY, Value::from(passage.key.as_str())),
        (DOCUMENT, passage.document().into()),
        (TITLE, passage.title.as_str().into()),
        (TEXT, passage.text.as_str().into()),
        (WORDS, words.into()),
        (SOURCE, source),
        (METADATA, Value::Object(passage.metadata.clone())),
        (FIELDS, Value::Object(fields(passage))),
        (DIGEST, digest(passage)?.into()),
    ];
    row.extend(fields.map(|(name, value)| (name.to_owned(), value)));
    if let Some(vector) = vector {
        row.insert(VECTOR.to_owned(), vector.iter().copied().collect());
    }
    Ok(row)
}

/// The passage of a row; `None` if it is none of ours.
pub(super) fn passage(mut row: EntityRow) -> Option<Passage> {
    let mut text = |name: &str| match row.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let (key, title, passage) = (text(KEY)?, text(TITLE)?, text(TEXT)?);
    let source: SourceSpan = serde_json::from_value(row.remove(SOURCE)?).ok()?;
    let metadata = match row.remove(METADATA)? {
        Value::Object(metadata) => metadata,
        _ => return None,
    };
    Some(Passage { key, title, text: passage, source, metadata })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_side_by_side() {
        let metadata =
            json!({"a": 1, "b": {"c.d": "x", "e": {"f": [1, [2]]}}, "n": null, "o": [{"p": true}, {"p": "q"}]});
        let Value::Object(metadata) = metadata else { unreachable!() };
        let source = SourceSpan { file: "f.jsonl".into(), ..SourceSpan::default() };
        let mut passage = Passage { key: String::new(), title: String::new(), text: String::new(), source, metadata };
        let expected = json!({"a": 1, "b.c.d": "x", "b.e.f": [1, 2], "o.p": [true, "q"], "source_file": "f.jsonl"});
        assert_eq!(Value::Object(fields(&passage)), expected);
        passage.metadata = Map::from_iter([("source_file".to_owned(), json!("own"))]);
        assert_eq!(Value::Object(fields(&passage)), json!({"source_file": "own"}), "what is written goes first");
    }
}
