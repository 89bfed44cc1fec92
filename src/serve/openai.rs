//! The routes that tools for OpenAI's API know: models, chat completions, embeddings; and the common form of `/v1/rerank`.
//!
//! A model is an index that is served. A chat completion answers the last message of the user, by itself: this engine
//! answers questions, and does not chat. What an answer rests on comes as annotations. Settings of a chat that have no
//! meaning here (temperature, penalties, ...) are taken and left alone; those that would promise something else (`tools`, `n`
//! above 1) are refused.

use std::convert::Infallible;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tracing::Instrument;
use utoipa::ToSchema;

use crate::answer::Answer;
use crate::serve::api::{
    Body, find_index, finish, index_named, parse_filter, prompt_exists, question_fits, unprocessable,
};
use crate::serve::openai_reply::{
    Completion, CompletionChoice, CompletionMessage, CompletionUsage, DocumentText, Embedding, Embeddings,
    EmbeddingsUsage, Grounds, Model, Models, PromptTokens, Reranked, RerankedText, Vector,
};
use crate::serve::problem::{ListRefused, NameRefused, Problem, Refused};
use crate::serve::whole;
use crate::serve::workers::{Done, Refusal, Work};
use crate::serve::{Server, Shared};
use crate::types::Evidence;

/// Most texts of one request.
const MOST_TEXTS: usize = 1000;
/// What is said when there is no answer.
const NO_ANSWER: &str = "The documents do not seem to hold an answer.";

/// The indexes as models, for OpenAI's clients.
#[utoipa::path(get, path = "/v1/models", responses(
    (status = 200, description = "All of them", body = Models), ListRefused,
))]
pub async fn models(State(server): State<Server>) -> Json<Models> {
    Json(Models { object: "list", data: server.indexes.iter().map(|(name, _)| as_model(name)).collect() })
}

/// An index as a model, for OpenAI's clients.
#[utoipa::path(get, path = "/v1/models/{model}", params(("model" = String, Path, description = "An index", example = "my-index")), responses(
    (status = 200, description = "The index, as a model", body = Model), NameRefused,
))]
pub async fn model(State(server): State<Server>, Path(name): Path<String>) -> Result<Json<Model>, Problem> {
    find_index(&server, Some(&name)).map(|(name, _)| Json(as_model(name)))
}

fn as_model(name: &str) -> Model {
    Model { id: name.to_owned(), object: "model", created: 0, owned_by: "nunatak" }
}

/// A chat to go on with. Fields of OpenAI's that are not here are left alone.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "my-index", "messages": [{"role": "user", "content": "who crossed Greenland first"}]}))]
pub struct ChatRequest {
    /// Which index.
    pub model: String,
    /// The last one of the user is the question.
    #[schema(min_items = 1)]
    pub messages: Vec<Message>,
    /// Send chunks.
    #[serde(default)]
    #[schema(default = false)]
    pub stream: bool,
    /// What they hold besides.
    pub stream_options: Option<StreamOptions>,
    /// Not more than 1.
    #[serde(default, deserialize_with = "whole::optional")]
    #[schema(minimum = 1, maximum = 1)]
    pub n: Option<u32>,
    /// Not supported.
    #[schema(value_type = Option<Vec<Object>>, max_items = 0)]
    pub tools: Option<Vec<Value>>,
    /// The name of the prompt that the answer is read behind (an addition to OpenAI's fields, as `filter` is).
    pub prompt: Option<String>,
    /// Only from passages whose metadata meets these conditions (an addition to OpenAI's fields).
    #[schema(min_length = 1)]
    pub filter: Option<String>,
}

/// What chunks hold besides the answer.
#[derive(Debug, Default, Clone, Copy, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// A last one without choices, with the tokens of it all.
    #[serde(default)]
    #[schema(default = false)]
    pub include_usage: bool,
}

/// One message.
#[derive(Debug, Deserialize, ToSchema)]
pub struct Message {
    /// Who said it.
    pub role: String,
    /// What; a text, or parts of one.
    pub content: Option<Content>,
}

/// What was said.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Content {
    /// In one.
    Text(String),
    /// In parts.
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Debug, Deserialize, ToSchema)]
pub struct Part {
    /// Its text; without one it is of a kind that cannot be answered.
    pub text: Option<String>,
}

impl ChatRequest {
    fn question(&self) -> Result<String, Problem> {
        let last = self.messages.iter().rev().find(|message| message.role == "user");
        let content = last.and_then(|message| message.content.as_ref());
        match content.ok_or_else(|| unprocessable("there is no message of the user"))? {
            Content::Text(text) => Ok(text.clone()),
            Content::Parts(parts) => {
                let texts: Option<Vec<&str>> = parts.iter().map(|part| part.text.as_deref()).collect();
                texts.map(|t| t.join("\n")).ok_or_else(|| unprocessable("only parts of text can be answered"))
            }
        }
    }
}

/// Answer the last message of the user, in the form of OpenAI's chat completions.
#[utoipa::path(post, path = "/v1/chat/completions", request_body = ChatRequest, responses(
    (status = 200, description = "A chat completion, or server-sent chunks of one",
        content((Completion = "application/json"), ("text/event-stream"))),
    Refused,
))]
pub async fn chat(State(server): State<Server>, Body(request): Body<ChatRequest>) -> Result<Response, Problem> {
    if request.n.unwrap_or(1) != 1 || request.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
        return Err(unprocessable("one answer is given, and no tool is called: leave n and tools out"));
    }
    let question = request.question()?;
    question_fits(&server, &question)?;
    let worker = index_named(&server, Some(&request.model))?.clone();
    prompt_exists(&worker, request.prompt.as_deref())?;
    let filter = parse_filter(request.filter.as_deref())?;
    let deadline = Instant::now() + server.limits.deadline;
    let (min_confidence, recursion) = (server.limits.min_confidence, server.limits.recursion);
    let prompt = request.prompt;
    let work = Work::Answer { question, filter, prompt, min_confidence, recursion, events: None };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let head = Head { id: format!("chatcmpl-{:x}", now.as_nanos()), created: now.as_secs(), model: request.model };
    if !request.stream {
        let answer = finish(worker.ask(work, deadline).await?, false, &server)?;
        return Ok(Json(head.completion(answer)).into_response());
    }
    if worker.is_full() {
        return Err(Refusal::Busy.into());
    }
    let counts = request.stream_options.unwrap_or_default().include_usage;
    let (events, receiver) = mpsc::unbounded_channel();
    // Windows compete, so that what the first one says need not be the answer: it is sent when it is known.
    let work = async move {
        let send = |data: Value| {
            // The client may be gone.
            let _ = events.send(Event::default().data(data.to_string()));
        };
        send(head.chunk(json!({"role": "assistant", "content": ""}), None));
        let done = tokio::select! {
            done = worker.ask(work, deadline) => done,
            // The client is gone, and its job goes with it.
            () = events.closed() => return,
        };
        match done.map_err(Problem::from).and_then(|done| finish(done, false, &server)) {
            Ok(answer) => {
                send(head.chunk(json!({"content": content(&answer), "annotations": annotations(&answer)}), None));
                send(head.chunk(json!({}), Some("stop")));
                if counts {
                    send(head.usage(&answer));
                }
            }
            Err(problem) => send(serde_json::to_value(&problem).unwrap_or_default()),
        }
        let _ = events.send(Event::default().data("[DONE]"));
    };
    tokio::spawn(work.in_current_span());
    let stream = UnboundedReceiverStream::new(receiver).map(Ok::<_, Infallible>);
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()).into_response())
}

/// What all parts of a completion begin with.
struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    fn completion(self, answer: Answer) -> Completion {
        let message = CompletionMessage {
            role: "assistant",
            content: content(&answer).to_owned(),
            refusal: None,
            annotations: annotations(&answer),
        };
        let tokens = tokens(&answer);
        Completion {
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: self.model,
            choices: [CompletionChoice { index: 0, message, logprobs: None, finish_reason: "stop" }],
            usage: tokens,
            nunatak: Grounds {
                confidence: digits(answer.confidence),
                uncalibrated: answer.uncalibrated,
                prompt: answer.prompt,
                abstained: answer.abstained,
                supported: answer.supported,
                evidence: answer.evidence,
                truncated: answer.usage.truncated,
                rerank_cuts: answer.usage.rerank_cuts,
                latency_ms: answer.usage.latency_ms,
            },
        }
    }

    /// The last chunk of a stream that counts tokens.
    fn usage(&self, answer: &Answer) -> Value {
        json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "choices": [], "usage": tokens(answer),
        })
    }

    fn chunk(&self, delta: Value, finish: Option<&str>) -> Value {
        json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}],
        })
    }
}

fn tokens(answer: &Answer) -> CompletionUsage {
    let usage = &answer.usage;
    CompletionUsage {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.answer_tokens,
        total_tokens: usage.prompt_tokens + usage.answer_tokens,
        prompt_tokens_details: PromptTokens { cached_tokens: usage.cached_tokens },
    }
}

fn content(answer: &Answer) -> &str {
    if answer.abstained { NO_ANSWER } else { &answer.answer }
}

/// Evidence as citations of the whole answer, which is a few words. The url names the passage and the bytes of it.
fn annotations(answer: &Answer) -> Vec<Value> {
    let end = answer.answer.chars().count();
    let of = |evidence: &Evidence| {
        let url = format!("passage:{}#bytes={}-{}", evidence.passage_id, evidence.start, evidence.end);
        let title = if evidence.title.is_empty() { &evidence.passage_id } else { &evidence.title };
        json!({"type": "url_citation", "url_citation": {"start_index": 0, "end_index": end, "title": title, "url": url}})
    };
    answer.evidence.iter().map(of).collect()
}

/// Texts to turn into vectors.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "my-index", "input": ["a moulin", "the Fram"]}))]
pub struct EmbeddingsRequest {
    /// Which index: its encoder is used.
    pub model: String,
    /// A text, or several.
    pub input: Input,
    /// Numbers a vector: as many as the encoder gives, or left out.
    #[serde(default, deserialize_with = "whole::optional")]
    pub dimensions: Option<usize>,
    /// `float` or `base64`, which is of little-endian 32-bit floats.
    #[serde(default)]
    pub encoding_format: Encoding,
}

/// One text or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Input {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// How vectors are written.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(default = "float")]
pub enum Encoding {
    /// Numbers.
    #[default]
    Float,
    /// Bytes.
    Base64,
}

/// Turn texts into vectors by the encoder of an index, in OpenAI's form.
#[utoipa::path(post, path = "/v1/embeddings", request_body = EmbeddingsRequest, responses(
    (status = 200, description = "Unit vectors, in the order of the texts; `truncated` counts texts that were too long",
        body = Embeddings),
    Refused,
))]
pub async fn embeddings(
    State(server): State<Server>,
    Body(request): Body<EmbeddingsRequest>,
) -> Result<Json<Embeddings>, Problem> {
    let texts = match request.input {
        Input::One(text) => vec![text],
        Input::Several(texts) => texts,
    };
    texts_fit(&texts)?;
    let worker = index_named(&server, Some(&request.model))?;
    let done = worker.ask(Work::Embed { texts }, Instant::now() + server.limits.deadline).await?;
    let Done::Embedded { vectors, dim, tokens, truncated } = done else { return Err(Problem::confused()) };
    if request.dimensions.is_some_and(|wanted| wanted != dim) {
        return Err(unprocessable(&format!("the encoder's vectors have {dim} dimensions: leave dimensions out")));
    }
    let data = vectors
        .chunks_exact(dim.max(1))
        .enumerate()
        .map(|(index, vector)| {
            let embedding = match request.encoding_format {
                Encoding::Float => Vector::Numbers(vector.to_vec()),
                Encoding::Base64 => {
                    Vector::Bytes(STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()))
                }
            };
            Embedding { object: "embedding", index, embedding }
        })
        .collect();
    let usage = EmbeddingsUsage { prompt_tokens: tokens, total_tokens: tokens };
    Ok(Json(Embeddings { object: "list", model: request.model, data, truncated, usage }))
}

/// The 64-bit float that is written with a 32-bit one's digits.
fn digits(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// Texts to order by how well they answer a question.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"query": "what is a moulin", "documents": ["A moulin is a shaft in a glacier.", "The Fram is a ship."]}))]
pub struct RerankRequest {
    /// Which index: its re-ranker is used; the first without it.
    pub model: Option<String>,
    /// The question.
    #[schema(min_length = 1, max_length = 4096)]
    pub query: String,
    /// The texts.
    #[schema(min_items = 1, max_items = 1000)]
    pub documents: Vec<Document>,
    /// How many to give back, if there are so many; all without it.
    #[serde(default, deserialize_with = "whole::optional")]
    pub top_n: Option<usize>,
    /// Give the texts back, too.
    #[serde(default)]
    #[schema(default = false)]
    pub return_documents: bool,
}

/// A text to order.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Document {
    /// By itself.
    Text(String),
    /// In a field.
    Field {
        /// The text.
        text: String,
    },
}

/// Order texts by how well they answer a question, in the form that Cohere, Jina and others share.
#[utoipa::path(post, path = "/v1/rerank", request_body = RerankRequest, responses(
    (status = 200, description = "Places of the texts in the request, best first, with scores between 0 and 1",
        body = Reranked),
    Refused,
))]
pub async fn rerank(
    State(server): State<Server>,
    Body(request): Body<RerankRequest>,
) -> Result<Json<Reranked>, Problem> {
    let texts: Vec<String> = request
        .documents
        .into_iter()
        .map(|document| match document {
            Document::Text(text) | Document::Field { text } => text,
        })
        .collect();
    question_fits(&server, &request.query)?;
    texts_fit(&texts)?;
    let worker = index_named(&server, request.model.as_deref())?;
    let work = Work::Score { question: request.query, texts: texts.clone() };
    let done = worker.ask(work, Instant::now() + server.limits.deadline).await?;
    let Done::Scored { scores, truncated, question_tokens } = done else { return Err(Problem::confused()) };
    let mut order: Vec<(usize, f32)> = scores.into_iter().enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    order.truncate(request.top_n.unwrap_or(usize::MAX));
    let result = |(index, score): (usize, f32)| {
        let relevance = 1.0 / (1.0 + (-f64::from(score)).exp());
        let document = texts.get(index).filter(|_| request.return_documents);
        let document = document.map(|text| DocumentText { text: text.clone() });
        RerankedText { index, relevance_score: relevance, score: digits(score), document }
    };
    let results = order.into_iter().map(result).collect();
    Ok(Json(Reranked { model: model_name(&server, request.model), results, truncated, question_tokens }))
}

fn model_name(server: &Shared, named: Option<String>) -> String {
    named.or_else(|| server.indexes.first().map(|(name, _)| name.clone())).unwrap_or_default()
}

fn texts_fit(texts: &[String]) -> Result<(), Problem> {
    if texts.is_empty() || texts.len() > MOST_TEXTS {
        return Err(unprocessable(&format!("there are {} texts; between 1 and {MOST_TEXTS} are taken", texts.len())));
    }
    match texts.iter().position(|text| text.trim().is_empty()) {
        Some(at) => Err(unprocessable(&format!("text {at} is empty"))),
        None => Ok(()),
    }
}
