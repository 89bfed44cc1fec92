//! Weights (safetensors, GGUF) to ONNX graphs that we control.
//!
//! Common exports take token ids and hide what a frozen model's users need; these graphs have the inputs
//! and outputs that [`crate::runtime::model_dir::ModelKind`] names, and nothing else.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

pub mod bert;
pub(crate) mod bert_source;
mod blockwise;
pub mod encoder;
pub mod gguf;
mod gguf_blocks;
mod gguf_header;
pub mod gguf_tokenizer;
pub mod learned;
pub mod llama;
mod llama_folder;
mod llama_graph;
pub(crate) mod llama_source;
pub mod onnx;
pub mod prompt_generator;
mod quantize;
mod rope;
mod sentence;
mod t5;
pub(crate) mod t5_source;
mod turned;
pub mod weights;

/// How the weights stand in the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// 32-bit floats: the yardstick.
    Fp32,
    /// 16-bit floats, for GPUs; a CPU computes such a graph in 32 bits and only saves memory.
    Fp16,
    /// 8-bit integers. A language model's weights share a scale in runs of 128, and what they are multiplied by is rounded in runs, too.
    #[default]
    Int8,
    /// 8-bit integers with a scale an output of a layer, and one a token for what they are multiplied by: the fastest on a CPU, and the
    /// same for a token whatever it is batched with. A language model is turned for it (`turned.rs`), so that outliers among its states do
    /// not cost the rest their accuracy.
    W8A8,
}

impl Precision {
    /// The name in `nunatak.json` and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
            Self::W8A8 => "w8a8",
        }
    }

    /// What is taken in its place for a starter model of this kind: the language model that comes with nunatak loses nothing by a
    /// scale a token (of 600 training questions 45.5% are right with it and 45.2% in int8, p 0.83), and reads 1.6 times as fast.
    pub fn of_starter(self, kind: &str) -> Self {
        if self == Self::Int8 && kind == "lm" { Self::W8A8 } else { self }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "fp32" => Ok(Self::Fp32),
            "fp16" => Ok(Self::Fp16),
            "int8" => Ok(Self::Int8),
            "w8a8" => Ok(Self::W8A8),
            _ => Err(Error::request(format!("unknown precision `{name}`"), "use fp32, fp16, int8 or w8a8")),
        }
    }
}
