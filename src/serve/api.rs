//! The routes under `/v1`: what they take, what they give.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tracing::Instrument;
use utoipa::ToSchema;

use crate::answer::{Answer, Latency};
use crate::error::Error;
use crate::explain::Explanation;
use crate::filter::Filter;
use crate::index::recall::Beam;
use crate::read::reading_prompt::unknown;
use crate::read::recursion::Recursion;
use crate::rerank::PairCuts;
use crate::serve::problem::{ListRefused, Problem, Refused};
use crate::serve::whole;
use crate::serve::workers::{Done, Facts, Heard, Refusal, SearchHit, Searched, State as WorkersState, Work, Workers};
use crate::serve::{Server, Shared};

/// Time for a body.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Most passages of a search.
const MOST_HITS: usize = 1000;

/// A question to answer.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"question": "who crossed Greenland first", "explain": true}))]
pub struct AnswerRequest {
    /// In plain words.
    #[schema(min_length = 1, max_length = 4096)]
    pub question: String,
    /// Which index; the first without it.
    pub index: Option<String>,
    /// Only from passages whose metadata meets these conditions: `source=wiki year>=1990`.
    #[schema(min_length = 1)]
    pub filter: Option<String>,
    /// The name of the prompt that it is read behind, one of those that `/v1/indexes` lists; the first without it.
    pub prompt: Option<String>,
    /// Withhold an answer whose probability of being right is below this, 0 to 1; without it what the server was
    /// started with.
    #[schema(minimum = 0, maximum = 1)]
    pub min_confidence: Option<f64>,
    /// Read the question twice; without it what the server was started with.
    pub recursion: Option<Recursion>,
    /// Add what every stage did.
    #[serde(default)]
    #[schema(default = false)]
    pub explain: bool,
    /// Send server-sent events: `found` (what was found, before it is read), `text` (the answer of the first window as it is
    /// written), then `answer`, or `error`.
    #[serde(default)]
    #[schema(default = false)]
    pub stream: bool,
}

/// A question to find passages for.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"question": "who crossed Greenland first", "k": 3}))]
pub struct SearchRequest {
    /// In plain words.
    #[schema(min_length = 1, max_length = 4096)]
    pub question: String,
    /// Which index; the first without it.
    pub index: Option<String>,
    /// Only from passages whose metadata meets these conditions: `source=wiki year>=1990`.
    #[schema(min_length = 1)]
    pub filter: Option<String>,
    /// How many passages.
    #[serde(default = "ten", deserialize_with = "whole::number")]
    #[schema(minimum = 1, maximum = 1000, default = ten)]
    pub k: usize,
    /// Add what each part of the ranking gave them.
    #[serde(default)]
    #[schema(default = false)]
    pub explain: bool,
}

fn ten() -> usize {
    10
}

/// Passages that were found.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SearchResponse {
    /// Best first.
    pub hits: Vec<FoundPassage>,
    /// The beam of the search by meaning, if an explanation was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beam: Option<Beam>,
    /// What could not be read in finding them; absent when all was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cuts: Option<PairCuts>,
    /// What finding them took.
    pub latency_ms: Latency,
}

/// A passage that was found.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FoundPassage {
    /// From 1.
    pub rank: usize,
    /// Its corpus id.
    pub passage_id: String,
    /// Its title; may be empty.
    pub title: String,
    /// Its text.
    pub text: String,
    /// Comparable within this list only.
    pub score: f32,
    /// Its further fields; absent without any.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    /// What each part of the ranking gave it, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parts: Option<Explanation>,
}

/// An index that is served.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct IndexEntry {
    /// Its name here.
    pub name: String,
    /// Whether it answers.
    pub ready: bool,
    /// What it holds, when it is ready.
    pub facts: Option<Facts>,
    /// Why it will never be ready.
    pub problem: Option<String>,
    /// Whether passages can be put into it and deleted.
    pub writable: bool,
    /// Requests in line.
    pub waiting: usize,
}

/// All indexes.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Indexes {
    /// The first is taken when a request names none.
    pub indexes: Vec<IndexEntry>,
}

/// A body of JSON, whatever its content type says; what is wrong with it is a [`Problem`].
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = tokio::time::timeout(BODY_TIME, Bytes::from_request(request, state))
            .await
            .map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to come", None))?;
        let bytes = bytes.map_err(|refused: BytesRejection| {
            Problem::new(refused.status(), refused.body_text(), Some("send a smaller body".to_owned()))
        })?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            let hint = "/docs says what a body holds".to_owned();
            Problem::new(StatusCode::BAD_REQUEST, format!("the body is not what is asked for: {error}"), Some(hint))
        })
    }
}

/// Answer a question, with the passages that the answer rests on.
#[utoipa::path(post, path = "/v1/answer", request_body = AnswerRequest, responses(
    (status = 200, description = "An answer with its evidence, or server-sent events",
        content((Answer = "application/json"), ("text/event-stream"))),
    Refused,
))]
pub async fn answer(State(server): State<Server>, Body(request): Body<AnswerRequest>) -> Result<Response, Problem> {
    let worker = prepare(&server, &request.question, request.index.as_deref())?;
    prompt_exists(worker, request.prompt.as_deref())?;
    // Judged before it is rounded to fewer digits: what is just outside stays outside.
    if request.min_confidence.is_some_and(|least| !(0.0..=1.0).contains(&least)) {
        return Err(unprocessable("min_confidence is a probability, between 0 and 1"));
    }
    let min_confidence = request.min_confidence.map_or(server.limits.min_confidence, |least| least as f32);
    let recursion = request.recursion.unwrap_or(server.limits.recursion);
    let deadline = Instant::now() + server.limits.deadline;
    let filter = parse_filter(request.filter.as_deref())?;
    let AnswerRequest { question, prompt, explain, stream, .. } = request;
    if !stream {
        let work = Work::Answer { question, filter, prompt, min_confidence, recursion, events: None };
        let answer = finish(worker.ask(work, deadline).await?, explain, &server)?;
        return Ok(Json(answer).into_response());
    }
    if min_confidence > 0.0 {
        return Err(unprocessable(
            "a stream shows an answer before it is known how sure it is: leave stream out, or say min_confidence 0",
        ));
    }
    let (events, texts) = mpsc::unbounded_channel();
    let (ends, end) = mpsc::unbounded_channel();
    // A refusal that is known at once has a status of its own.
    if worker.is_full() {
        return Err(Refusal::Busy.into());
    }
    let worker = worker.clone();
    let work = async move {
        let work = Work::Answer { question, filter, prompt, min_confidence, recursion, events: Some(events) };
        let done = tokio::select! {
            done = worker.ask(work, deadline) => done,
            // The client is gone, and its job goes with it.
            () = ends.closed() => return,
        };
        let last = match done.map_err(Problem::from).and_then(|done| finish(done, explain, &server)) {
            Ok(answer) => event("answer", &answer),
            Err(problem) => event("error", &problem),
        };
        // The client may be gone.
        let _ = ends.send(last);
    };
    tokio::spawn(work.in_current_span());
    let texts = UnboundedReceiverStream::new(texts).map(|heard| match heard {
        Heard::Found(found) => event("found", &found),
        Heard::Text(text) => event("text", &serde_json::json!({"text": text})),
    });
    let all = texts.chain(UnboundedReceiverStream::new(end)).map(Ok::<_, Infallible>);
    Ok(Sse::new(all).keep_alive(KeepAlive::default()).into_response())
}

fn event(name: &str, data: &impl Serialize) -> Event {
    Event::default().event(name).json_data(data).unwrap_or_else(|_| Event::default().event("error"))
}

pub(super) fn finish(done: Done, explain: bool, server: &Shared) -> Result<Answer, Problem> {
    let Done::Answer(mut answer) = done else {
        return Err(Problem::confused());
    };
    server.metrics.answer(&answer.usage);
    if !explain {
        answer.trace = None;
    }
    Ok(*answer)
}

/// Find passages for a question, best first; nothing is read.
#[utoipa::path(post, path = "/v1/search", request_body = SearchRequest, responses(
    (status = 200, description = "Passages, best first", body = SearchResponse),
    Refused,
))]
pub async fn search(
    State(server): State<Server>,
    Body(request): Body<SearchRequest>,
) -> Result<Json<SearchResponse>, Problem> {
    let worker = prepare(&server, &request.question, request.index.as_deref())?;
    if !(1..=MOST_HITS).contains(&request.k) {
        return Err(unprocessable(&format!("k is between 1 and {MOST_HITS}")));
    }
    let filter = parse_filter(request.filter.as_deref())?;
    let work = Work::Search { question: request.question, filter, k: request.k, explain: request.explain };
    let done = worker.ask(work, Instant::now() + server.limits.deadline).await?;
    let Done::Search(Searched { hits, beam, cuts, latency_ms }) = done else {
        return Err(Problem::confused());
    };
    let hits = hits.into_iter().enumerate().map(|(i, SearchHit { passage, score, parts })| FoundPassage {
        rank: i + 1,
        passage_id: passage.key,
        title: passage.title,
        text: passage.text,
        score,
        metadata: passage.metadata,
        parts,
    });
    server.metrics.found(&latency_ms);
    Ok(Json(SearchResponse { hits: hits.collect(), beam, cuts, latency_ms }))
}

/// The indexes that are served, and how they are.
#[utoipa::path(get, path = "/v1/indexes", responses((status = 200, description = "All of them", body = Indexes),
    ListRefused))]
pub async fn indexes(State(server): State<Server>) -> Json<Indexes> {
    Json(Indexes { indexes: entries(&server) })
}

/// The indexes as they are now.
pub fn entries(server: &Shared) -> Vec<IndexEntry> {
    let entry = |(name, worker): &(String, Workers)| {
        let (ready, facts, problem) = match worker.state() {
            WorkersState::Opening => (false, None, None),
            WorkersState::Ready(facts) => (true, Some(facts), None),
            WorkersState::Failed(problem) => (false, None, Some(problem)),
        };
        let (writable, waiting) = (worker.is_writable(), worker.waiting());
        IndexEntry { name: name.clone(), ready, facts, problem, writable, waiting }
    };
    server.indexes.iter().map(entry).collect()
}

/// The worker of the index that is named, if the question may be asked.
fn prepare<'a>(server: &'a Shared, question: &str, index: Option<&str>) -> Result<&'a Workers, Problem> {
    question_fits(server, question)?;
    index_named(server, index)
}

/// Fail if the question is empty or too long.
pub(super) fn question_fits(server: &Shared, question: &str) -> Result<(), Problem> {
    if question.trim().is_empty() {
        return Err(unprocessable("the question is empty"));
    }
    let (characters, most) = (question.chars().count(), server.limits.question);
    if characters > most {
        let message = format!("the question has {characters} characters, more than {most}");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, message, Some("ask a shorter question".to_owned())));
    }
    Ok(())
}

/// The worker of the index that is named, or of the first, if it is ready.
pub(super) fn index_named<'a>(server: &'a Shared, index: Option<&str>) -> Result<&'a Workers, Problem> {
    let (name, worker) = find_index(server, index)?;
    match worker.state() {
        WorkersState::Ready(_) => Ok(worker),
        WorkersState::Opening => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the index {name} is being opened"),
            Some("ask again when /ready says so".to_owned()),
        )),
        WorkersState::Failed(problem) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, problem, None)),
    }
}

/// Fail if an answer cannot be read behind the prompt of this name.
pub(super) fn prompt_exists(worker: &Workers, prompt: Option<&str>) -> Result<(), Problem> {
    let (Some(name), WorkersState::Ready(facts)) = (prompt, worker.state()) else { return Ok(()) };
    if facts.prompts.iter().any(|prompt| prompt.name == name) {
        return Ok(());
    }
    Err(Refusal::Failed(unknown(name, &facts.prompts)).into())
}

/// The index that is named, or the first, however it is.
pub(super) fn find_index<'a>(server: &'a Shared, index: Option<&str>) -> Result<&'a (String, Workers), Problem> {
    let named = |(name, _): &&(String, Workers)| index.is_none_or(|wanted| wanted == name);
    server.indexes.iter().find(named).ok_or_else(|| {
        let message = format!("there is no index {:?}", index.unwrap_or_default());
        Problem::new(StatusCode::NOT_FOUND, message, Some("/v1/indexes lists them".to_owned()))
    })
}

pub(super) fn parse_filter(text: Option<&str>) -> Result<Option<Filter>, Problem> {
    text.map(str::parse).transpose().map_err(|error: Error| Problem::from(Refusal::Failed(error)))
}

pub(super) fn unprocessable(message: &str) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, message, None)
}
