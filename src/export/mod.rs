//! Weights (safetensors, GGUF) to ONNX graphs that we control.

pub mod bert;
pub mod gguf;
pub mod llama;
pub mod onnx;
pub mod weights;
