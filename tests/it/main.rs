//! The integration tests, in one binary because linking it is the slow part. One module a subject.

mod common;
mod export_bert; // exported encoders and cross-encoders against candle's forward pass
