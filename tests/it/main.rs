//! The integration tests, in one binary because linking it is the slow part. One module a subject.

mod common;
mod export_bert; // exported encoders and cross-encoders against candle's forward pass
mod export_lm; // exported language models against candle's forward pass, and the KV cache contract
mod index; // building, opening, searching, damaging and killing an index
// Measurement: official values, whole runs, comparisons.
mod eval;
