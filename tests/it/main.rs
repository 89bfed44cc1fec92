//! The integration tests, in one binary because linking it is the slow part. One module a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // clippy.toml's allowance stops at helper functions of tests

mod answer; // questions answered through the starter models: contract, evidence, exactness
mod cli; // the command line as a user meets it: bad words, bad files, snapshots
mod common;
mod corpus; // corpora of every format, whole and broken, through real files
mod corpus_office; // the same of PDF and Word files
mod eval; // measurement: official values, whole runs, comparisons
mod export_bert; // exported encoders and cross-encoders against candle's forward pass
mod export_lm; // exported language models against candle's forward pass, and the KV cache contract
mod export_t5; // the same of T5 encoders, and the gradient behind one
mod index; // building, opening, searching, damaging and killing an index
mod milvus; // a collection in a cluster in the place of the index: Milvus Lite, a real server
mod page; // the pages of the server in a real browser, where there is one
mod recursion; // questions that are read twice
mod remote_lm; // a language model behind an endpoint as the reader
mod serve; // the same over HTTP
mod setup; // first use, doctor and models: real failures, one clear sentence each
mod tasks; // prompts for many tasks: generated, shared, measured
mod train; // small modules from a user's own questions to answers
mod windows; // windows that were read before, and windows that compete
