//! nunatak: open-domain question answering over your own corpus, by a language model that stays frozen.
//!
//! A question goes through these stages, in the order of the modules below:
//!
//! 1. [`corpus`] reads documents and splits them into passages (once, when the index is built).
//! 2. [`index`] keeps the passages on disk: text, inverted index and vectors, as one thing.
//! 3. [`encode`] turns texts into unit vectors.
//! 4. [`retrieve`] finds candidate passages for a question: BM25, dense, or both fused.
//! 5. [`rerank`] reads question and passage together and orders the candidates again.
//! 6. [`pack`] fills the language model's window with the best of them, token by token.
//! 7. [`read`] lets the frozen language model answer, and checks what the answer rests on.
//!
//! [`pipeline`] is these stages on one screen. Beneath them, [`runtime`] runs models and [`export`] makes
//! them; [`milvus`] is the index in a cluster; beside them, [`eval`] measures and
//! [`train`] learns the small modules around the frozen model; above them, [`cli`] is what people type, and [`serve`] what
//! programs ask.

mod digest;
mod disk;
mod durable;
pub mod error;
mod guard;
mod math;
pub mod plot;
pub mod progress;
pub mod types;

pub mod export;
pub mod runtime;

pub mod answer;
pub mod confidence;
pub mod corpus;
pub mod encode;
pub mod explain;
pub mod filter;
pub mod index;
pub mod milvus;
pub mod near_duplicate;
pub mod pack;
pub mod pipeline;
pub mod read;
pub mod rerank;
pub mod retrieve;

pub mod cli;
pub mod eval;
pub mod serve;
pub mod train;
