//! The only code that knows ONNX Runtime: sessions, devices, batches, tokenizers, model folders, and how
//! all of them get onto the machine.

pub mod batch;
pub mod cuda_memory;
pub mod device;
mod gpu_buffers;
pub mod gpu_libraries;
pub mod kv_session;
pub mod kv_states;
pub mod memory;
pub mod model_dir;
pub mod session;
pub mod setup;
mod standard_export;
mod step_graph;
mod token_bytes;
pub mod tokenizer;
