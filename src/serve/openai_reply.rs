//! What the routes for OpenAI's tools give back, and the common form of a re-ranking.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::answer::Latency;
use crate::read::reading_prompt::PromptName;
use crate::rerank::PairCuts;
use crate::types::Evidence;

/// The indexes as models.
#[derive(Debug, Serialize, ToSchema)]
pub struct Models {
    /// `list`.
    pub(super) object: &'static str,
    pub(super) data: Vec<Model>,
}

/// An index as a model.
#[derive(Debug, Serialize, ToSchema)]
pub struct Model {
    /// Its name.
    pub(super) id: String,
    /// `model`.
    pub(super) object: &'static str,
    /// 0: nobody knows.
    pub(super) created: u64,
    /// `nunatak`.
    pub(super) owned_by: &'static str,
}

/// An answer as a chat completion.
#[derive(Debug, Serialize, ToSchema)]
pub struct Completion {
    pub(super) id: String,
    /// `chat.completion`.
    pub(super) object: &'static str,
    /// Seconds since 1970.
    pub(super) created: u64,
    /// The index.
    pub(super) model: String,
    /// One.
    pub(super) choices: [CompletionChoice; 1],
    pub(super) usage: CompletionUsage,
    pub(super) nunatak: Grounds,
}

/// The one choice.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    pub(super) index: usize,
    pub(super) message: CompletionMessage,
    pub(super) logprobs: Option<Value>,
    /// `stop`.
    pub(super) finish_reason: &'static str,
}

/// The answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionMessage {
    /// `assistant`.
    pub(super) role: &'static str,
    pub(super) content: String,
    pub(super) refusal: Option<String>,
    /// The evidence.
    pub(super) annotations: Vec<Value>,
}

/// Tokens that it cost.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionUsage {
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
    pub(super) total_tokens: usize,
    pub(super) prompt_tokens_details: PromptTokens,
}

/// Of the tokens of prompts.
#[derive(Debug, Serialize, ToSchema)]
pub struct PromptTokens {
    /// Those whose states were at hand.
    pub(super) cached_tokens: usize,
}

/// What the answer rests on (an addition to OpenAI's fields).
#[derive(Debug, Serialize, ToSchema)]
pub struct Grounds {
    pub(super) confidence: f64,
    /// Why the confidence is a guess; absent when it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uncalibrated: Option<String>,
    /// The prompt that the answer was read behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt: Option<PromptName>,
    pub(super) abstained: bool,
    pub(super) supported: bool,
    pub(super) evidence: Vec<Evidence>,
    /// Whether any passage was cut or left out for lack of room.
    pub(super) truncated: bool,
    /// What the first stage and the cross-encoder could not read; absent when they read all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rerank_cuts: Option<PairCuts>,
    pub(super) latency_ms: Latency,
}

/// Vectors of texts. Not a [`Value`]: that would write a 32-bit float with the digits of a 64-bit one.
#[derive(Debug, Serialize, ToSchema)]
pub struct Embeddings {
    /// `list`.
    pub(super) object: &'static str,
    /// As it was asked for.
    pub(super) model: String,
    /// In the order of the texts.
    pub(super) data: Vec<Embedding>,
    /// Texts that were too long for the encoder and were cut (an addition to OpenAI's fields).
    pub(super) truncated: usize,
    pub(super) usage: EmbeddingsUsage,
}

/// The vector of a text.
#[derive(Debug, Serialize, ToSchema)]
pub struct Embedding {
    /// `embedding`.
    pub(super) object: &'static str,
    /// Place of the text in the request.
    pub(super) index: usize,
    pub(super) embedding: Vector,
}

/// Numbers, or base64 of them.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Vector {
    Numbers(Vec<f32>),
    Bytes(String),
}

/// What vectors cost.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingsUsage {
    /// Tokens of the texts.
    pub(super) prompt_tokens: usize,
    /// The same.
    pub(super) total_tokens: usize,
}

/// Texts in order.
#[derive(Debug, Serialize, ToSchema)]
pub struct Reranked {
    /// The index whose re-ranker was used.
    pub(super) model: String,
    /// Best first.
    pub(super) results: Vec<RerankedText>,
    /// Texts that were too long for the re-ranker and were cut.
    pub(super) truncated: usize,
    /// Tokens of the question that the re-ranker could not read.
    pub(super) question_tokens: usize,
}

/// A text in its place.
#[derive(Debug, Serialize, ToSchema)]
pub struct RerankedText {
    /// Its place in the request.
    pub(super) index: usize,
    /// The logistic function of its score, between 0 and 1.
    pub(super) relevance_score: f64,
    /// The re-ranker's own score.
    pub(super) score: f64,
    /// The text, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) document: Option<DocumentText>,
}

/// A text that is given back.
#[derive(Debug, Serialize, ToSchema)]
pub struct DocumentText {
    pub(super) text: String,
}
