//! Frozen language models of the Llama, Mistral, Qwen2 and Qwen3 families, as a model folder.
//!
//! What the graphs take and give is documented at [`crate::runtime::model_dir::ModelKind::Lm`]. The cache
//! contract of `model.onnx`, which decoding relies on:
//!
//! - the past may be longer than what is filled (a buffer of fixed capacity): the sum of a row of
//!   `attention_mask` says how much of it holds after this run, and new keys are written at that end;
//! - the same buffer may be bound as past and present: nothing is then copied;
//! - with an empty past, prompts of different lengths share a batch when they are padded on the right;
//! - with a filled past, a batch takes one new token for each prompt, and a single prompt any number
//!   (ONNX Runtime 1.32 refuses several tokens for several prompts with a past).

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use tokenizers::Tokenizer;

use crate::error::{Error, Result};
use crate::export::Precision;
use crate::export::llama_graph::{decoder_graph, embedding_graph};
use crate::export::llama_source::LmSource;
use crate::runtime::model_dir::{Description, LmShape, ModelKind};

/// Export the language model at `source` (a GGUF file, a folder that holds exactly one, or a safetensors
/// folder) into the folder `out`: `embed.onnx`, `model.onnx`, `tokenizer.json`, `nunatak.json`.
///
/// # Errors
/// [`Error::BadFile`] when the source is damaged, incomplete or of a family or format that is not known;
/// [`Error::File`] when `out` cannot be written.
pub fn export_lm(source: &Path, out: &Path, precision: Precision) -> Result<()> {
    let source = LmSource::open(source)?;
    let mut description = describe(&source, precision)?;
    std::fs::create_dir_all(out).map_err(Error::file("create", out))?;
    embedding_graph(&source, precision)?.save(&out.join("embed.onnx"))?;
    decoder_graph(&source, precision)?.save(&out.join("model.onnx"))?;
    let tokenizer = out.join("tokenizer.json");
    std::fs::write(&tokenizer, &source.tokenizer).map_err(Error::file("write", &tokenizer))?;
    description.write(out)
}

fn describe(source: &LmSource, precision: Precision) -> Result<Description> {
    let config = &source.config;
    Ok(Description {
        format: 1,
        kind: ModelKind::Lm(LmShape {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            vocab: config.vocab,
            kv_dtype: if precision == Precision::Fp16 { "f16" } else { "f32" }.to_owned(),
            bos: bos(source)?,
            eos: config.eos.clone(),
            chat_template: config.chat_template.clone(),
        }),
        family: config.family.to_owned(),
        precision: precision.name().to_owned(),
        hidden: config.hidden,
        max_tokens: config.context,
        source: source.path.file_name().unwrap_or(source.path.as_os_str()).to_string_lossy().into_owned(),
        priors: Vec::new(),
        files: BTreeMap::new(),
    })
}

/// The token that the tokenizer itself puts before a text, if it does.
fn bos(source: &LmSource) -> Result<Option<u32>> {
    let bad = |e: tokenizers::Error| {
        Error::bad_file(&source.path, format!("its tokenizer.json cannot be used: {e}"), "fetch the model again")
    };
    let tokenizer = Tokenizer::from_str(&source.tokenizer).map_err(bad)?;
    let ids = |special| tokenizer.encode("a", special).map(|e| e.get_ids().to_vec()).map_err(bad);
    let (with, without) = (ids(true)?, ids(false)?);
    Ok(with.first().copied().filter(|_| with.len() > without.len() && with.get(1) == without.first()))
}
