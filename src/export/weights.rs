//! Named tensors from safetensors folders or GGUF files.
