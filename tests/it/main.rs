//! The integration tests, in one binary because linking it is the slow part. One module a subject.

#![allow(clippy::unwrap_used, clippy::panic)] // clippy.toml's allowance stops at helper functions of tests
mod common;
mod export_bert; // exported encoders and cross-encoders against candle's forward pass
mod setup; // first use, doctor and models: real failures, one clear sentence each
