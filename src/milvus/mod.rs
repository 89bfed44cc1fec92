//! A Milvus cluster as the index: for corpora and traffic that outgrow one machine.
//!
//! Passages, words and vectors lie in a collection (`layout.rs`), and a small one beside it says how it was made and how far it
//! is filled (`ledger.rs`). [`fill`] writes, from one machine or from many at once; [`Collection`] is what the pipeline
//! looks passages up in, and [`crate::retrieve::MilvusRetriever`] its first stage. What is fused, re-ranked, packed and
//! read stays the program's own work, so that a process that serves keeps nothing and any number of them can.

mod address;
mod collection;
mod connection;
pub mod fill;
mod filter;
mod layout;
mod ledger;
mod vector_index;

pub use address::{Address, Consistency, TOKEN};
pub use collection::{Collection, Found};
pub use vector_index::VectorIndex;
