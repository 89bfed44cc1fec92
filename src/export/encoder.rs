//! An encoder's folder to its graph, whatever its family: BERT's (`bert.rs`) or T5's (`t5.rs`); with what the families share.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::export::onnx::{Attr, GraphBuilder, Initializer};
use crate::export::quantize::float;
use crate::export::sentence::json;
use crate::export::{Precision, bert, t5};
use crate::runtime::model_dir::{Description, ModelKind};

/// Whether `config.json` names a T5 encoder; every other name is left to the BERT family, which refuses those that it does not know.
pub(crate) fn is_t5(source: &Path) -> Result<bool> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        model_type: String,
    }
    let config: Config = json(&source.join("config.json"))?;
    Ok(["t5", "mt5"].contains(&config.model_type.as_str()))
}

/// The precision nearest to `wanted` that the encoder in `source` can be exported in: the states of a T5 do not fit 16-bit floats.
///
/// # Errors
/// [`Error::File`] or [`Error::BadFile`] about its `config.json`.
pub(crate) fn fitting(source: &Path, wanted: Precision) -> Result<Precision> {
    Ok(if wanted == Precision::Fp16 && is_t5(source)? { Precision::Fp32 } else { wanted })
}

/// Export the encoder in the folder `source` to the folder `out`: `model.onnx`, `tokenizer.json` and
/// `nunatak.json`. Of a T5 that also decodes, only the encoder is taken.
///
/// The graph takes `input_ids` and `attention_mask` `[B,S]` and gives `sentence_embedding` `[B,width]`,
/// pooled as `1_Pooling/config.json` says (mean without one), projected if the folder has a dense layer for it, and of unit length.
/// The longest input is `max_seq_length` of `sentence_bert_config.json` (512 without one).
///
/// # Errors
/// [`Error::File`], [`Error::BadFile`] or [`Error::Model`], naming the file or tensor that is missing,
/// damaged or of a kind without a graph.
pub fn export_encoder(source: &Path, out: &Path, precision: Precision) -> Result<()> {
    if is_t5(source)? {
        t5::export_encoder(source, out, precision)
    } else {
        bert::export_encoder(source, out, precision)
    }
}

/// A graph that gives the last states `[1, positions + S, hidden]` of one text behind learned vectors,
/// and the name of these states; it takes `input_ids` and `attention_mask` `[1,S]`.
///
/// # Errors
/// As [`export_encoder`].
pub(super) fn encoder_states(source: &Path, precision: Precision, behind: Behind) -> Result<(GraphBuilder, String)> {
    if is_t5(source)? {
        t5::encoder_states(source, precision, behind)
    } else {
        bert::encoder_states(source, precision, behind)
    }
}

/// Learned vectors before an encoder's input, `[positions, hidden]`.
pub(super) struct Behind<'a> {
    pub(super) positions: usize,
    pub(super) values: &'a [f32],
}

impl Behind<'_> {
    /// Put the vectors before the embeddings `x [1,S,hidden]` and ones before the mask `[1,S]`, which is of 32-bit integers: both by
    /// name.
    pub(super) fn put_before(
        &self,
        g: &mut GraphBuilder,
        precision: Precision,
        x: &str,
        mask: &str,
        hidden: usize,
    ) -> (String, String) {
        let learned = g.constant(float(precision, &[1, self.positions, hidden], self.values));
        let ones = g.constant(Initializer::i32(&[1, self.positions], &vec![1; self.positions]));
        let axis = ("axis", Attr::Int(1));
        let x = g.op("Concat", &[&learned, x], std::slice::from_ref(&axis));
        (x, g.op("Concat", &[&ones, mask], &[axis]))
    }
}

/// What the description of an exported model says of it.
pub(super) struct About<'a> {
    pub(super) family: &'a str,
    pub(super) max_tokens: usize,
    /// Width of what it gives.
    pub(super) width: usize,
}

/// Write a model's folder: graph, tokenizer, description.
pub(super) fn write(
    graph: GraphBuilder,
    source: &Path,
    out: &Path,
    kind: ModelKind,
    precision: Precision,
    about: &About,
) -> Result<()> {
    std::fs::create_dir_all(out).map_err(Error::file("create", out))?;
    graph.save(&out.join("model.onnx"))?;
    let tokenizer = source.join("tokenizer.json");
    std::fs::copy(&tokenizer, out.join("tokenizer.json")).map_err(Error::file("read", &tokenizer))?;
    let mut description = Description {
        format: 1,
        kind,
        family: about.family.to_owned(),
        precision: precision.name().to_owned(),
        hidden: about.width,
        max_tokens: about.max_tokens,
        source: source.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
        priors: Vec::new(),
        files: Default::default(),
    };
    description.write(out)
}
