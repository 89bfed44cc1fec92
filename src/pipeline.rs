//! The whole pipeline on one screen: retrieve, re-rank, pack, read.

use serde::Serialize;

use crate::types::{Evidence, Hit, PackedPassage};

/// An answer with what it rests on: the content of `ask --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// The question as it was asked.
    pub question: String,
    /// The short answer; empty when the reader found none.
    pub answer: String,
    /// Mean log-probability per answer token; higher is surer.
    pub score: f32,
    /// Whether the answer is a stretch of a passage the reader saw.
    pub supported: bool,
    /// Where it stands.
    pub evidence: Vec<Evidence>,
    /// What it cost.
    pub usage: Usage,
    /// Every stage, for `--explain` and for evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<Trace>,
}

/// What an answer cost.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Usage {
    /// Tokens put into the language model.
    pub prompt_tokens: usize,
    /// Tokens it generated.
    pub answer_tokens: usize,
    /// Whether any passage was cut or left out for lack of room.
    pub truncated: bool,
    /// Milliseconds by stage.
    pub latency_ms: Latency,
}

/// Milliseconds by stage.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Latency {
    /// First stage, the question's encoding included.
    pub retrieve: f64,
    /// Cross-encoder; 0 without one.
    pub rerank: f64,
    /// Packing.
    pub pack: f64,
    /// Language model.
    pub read: f64,
    /// All of it.
    pub total: f64,
}

/// What every stage did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Trace {
    /// What the first stage found, best first.
    pub retrieved: Vec<Hit>,
    /// The same after the cross-encoder; empty without one.
    pub reranked: Vec<Hit>,
    /// What the reader saw, window by window.
    pub windows: Vec<Vec<PackedPassage>>,
    /// What did not get in whole, and why.
    pub left_out: Vec<LeftOut>,
}

/// A passage that is not, or not whole, in the reader's windows.
#[derive(Debug, Clone, Serialize)]
pub struct LeftOut {
    /// Its corpus id.
    pub key: String,
    /// Tokens of it that did not get in.
    pub tokens: usize,
    /// Why.
    pub reason: String,
}
