//! Llama, Mistral, Qwen2 and Qwen3 as frozen-LM graphs.
