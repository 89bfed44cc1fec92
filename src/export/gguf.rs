//! GGUF files: metadata, tensors and their block formats, and the tokenizer inside.
