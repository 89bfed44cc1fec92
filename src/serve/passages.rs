//! The routes under `/v1/passages`: look at passages, and change an index while it answers.
//!
//! A change is made beside the worker, by the same code as `nunatak index add` and `delete`, and the reply comes when the
//! worker answers from the new state: who has it can ask about what was sent.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use crate::index::change::Known;
use crate::serve::Server;
use crate::serve::api::{Body, index_named, unprocessable};
use crate::serve::problem::{DeleteRefused, LookRefused, Problem, PutRefused};
use crate::serve::workers::{Changed, Done, Edit, Refusal, Work, Workers};

/// Records to put into an index.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"passages": [{"id": "fram", "title": "Fram", "text": "The Fram was built by Colin Archer.", "year": 1892}]}))]
pub struct PutRequest {
    /// Which index; the first without it.
    pub index: Option<String>,
    /// Objects with `id`, `text`, perhaps `title`, and further fields, which are kept for filters. Long texts are split as
    /// those of the index were.
    #[schema(value_type = Vec<Object>, min_items = 1)]
    pub passages: Vec<Map<String, Value>>,
    /// Whether documents that are there already are replaced; if not, one such is an error and nothing is changed.
    #[serde(default = "yes")]
    #[schema(default = yes)]
    pub replace: bool,
}

fn yes() -> bool {
    true
}

/// What a change did.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChangeResponse {
    /// Passages that came in.
    pub added: u64,
    /// Passages that went out, those of replaced documents included.
    pub removed: u64,
    /// Passages in the index now.
    pub passages: u64,
    /// The index's identity now.
    pub checksum: String,
}

/// A stored passage.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StoredPassage {
    /// Its corpus id.
    pub passage_id: String,
    /// Its title; may be empty.
    pub title: String,
    /// Its text.
    pub text: String,
    /// Its further fields; absent without any.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
}

/// The passages of a document, or one.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Passages {
    /// In order.
    pub passages: Vec<StoredPassage>,
}

/// Which index is meant.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Which {
    /// Its name; the first without it.
    pub index: Option<String>,
}

/// Put passages into an index, of a server that was started with `--writable`.
///
/// The reply comes when they are found.
#[utoipa::path(post, path = "/v1/passages", request_body = PutRequest, responses(
    (status = 200, description = "They can be found now", body = ChangeResponse),
    PutRefused,
))]
pub async fn put(
    State(server): State<Server>,
    headers: HeaderMap,
    Body(request): Body<PutRequest>,
) -> Result<Json<ChangeResponse>, Problem> {
    let worker = writable(&server, &headers, request.index.as_deref())?;
    if request.passages.is_empty() {
        return Err(unprocessable("there are no passages"));
    }
    let lines: Vec<u8> =
        request.passages.into_iter().flat_map(|record| format!("{}\n", Value::Object(record)).into_bytes()).collect();
    let known = if request.replace { Known::Replace } else { Known::Refuse };
    change(&server, worker, Edit::Put { lines, known }).await
}

/// Delete a document or a passage, of a server that was started with `--writable`.
///
/// The reply comes when it is found no longer.
#[utoipa::path(delete, path = "/v1/passages/{id}", params(("id" = String, Path, description = "Of a document, all of \
    whose passages go, or of a passage", example = "fram"), Which), responses(
    (status = 200, description = "It is found no longer", body = ChangeResponse),
    DeleteRefused,
))]
pub async fn delete(
    State(server): State<Server>,
    headers: HeaderMap,
    id: Result<Path<String>, PathRejection>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<ChangeResponse>, Problem> {
    let (Path(id), Query(which)) = (understood(id)?, understood(which)?);
    let worker = writable(&server, &headers, which.index.as_deref())?;
    look(&server, worker, &id).await?;
    change(&server, worker, Edit::Delete { id }).await
}

/// The passages of a document, or one passage, as they are stored.
#[utoipa::path(get, path = "/v1/passages/{id}", params(("id" = String, Path, description = "Of a document or of a \
    passage", example = "fram"), Which), responses(
    (status = 200, description = "As they are stored", body = Passages),
    LookRefused,
))]
pub async fn get(
    State(server): State<Server>,
    id: Result<Path<String>, PathRejection>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Passages>, Problem> {
    let (Path(id), Query(which)) = (understood(id)?, understood(which)?);
    look(&server, index_named(&server, which.index.as_deref())?, &id).await.map(Json)
}

/// A part of the address, or in our own form what is wrong with it.
fn understood<T>(part: Result<T, impl std::fmt::Display>) -> Result<T, Problem> {
    part.map_err(|error| {
        let hint = "/docs says what an address holds".to_owned();
        Problem::new(StatusCode::BAD_REQUEST, error.to_string(), Some(hint))
    })
}

async fn look(server: &Server, worker: &Workers, id: &str) -> Result<Passages, Problem> {
    let work = Work::Look { id: id.to_owned() };
    let Done::Looked(found) = worker.ask(work, Instant::now() + server.limits.deadline).await? else {
        return Err(Problem::confused());
    };
    if found.is_empty() {
        return Err(Problem::new(StatusCode::NOT_FOUND, format!("there is no document or passage {id:?}"), None));
    }
    let stored = found.into_iter().map(|passage| StoredPassage {
        passage_id: passage.key,
        title: passage.title,
        text: passage.text,
        metadata: passage.metadata,
    });
    Ok(Passages { passages: stored.collect() })
}

/// The worker of the index that is named, if who asks may change it.
fn writable<'a>(server: &'a Server, headers: &HeaderMap, index: Option<&str>) -> Result<&'a Workers, Problem> {
    let forbidden = |message: &str, hint: &str| Problem::new(StatusCode::FORBIDDEN, message, Some(hint.to_owned()));
    if !server.keys.may_write(headers) {
        return Err(forbidden("this key may read only", "use one whose line in the file of keys is without read-only"));
    }
    let worker = index_named(server, index)?;
    if !worker.is_writable() {
        return Err(forbidden("the indexes here are read only", "start the server with --writable"));
    }
    Ok(worker)
}

/// Time between two looks whether the queue has room.
const FULL_QUEUE: Duration = Duration::from_millis(50);

/// Make a change, and wait until it is served. A client that goes away, or whose time is over, does not stop it.
async fn change(server: &Server, worker: &Workers, edit: Edit) -> Result<Json<ChangeResponse>, Problem> {
    let deadline = Instant::now() + server.limits.deadline;
    let worker = worker.clone();
    let work = tokio::spawn(async move {
        let report = worker.change(edit).await?;
        loop {
            match worker.ask(Work::Renew, deadline).await {
                Ok(Done::Renewed(_)) => return Ok(report),
                Ok(_) => return Err(Refusal::Down),
                // The change is made: a full queue only delays that it is served, and is no reason to refuse it.
                Err(Refusal::Busy) => tokio::time::sleep(FULL_QUEUE).await,
                Err(refusal) => return Err(refusal),
            }
        }
    });
    let done = tokio::time::timeout_at(deadline.into(), work).await.map_err(|_| {
        let hint = "it goes on, or waits for another; /v1/indexes says what is served".to_owned();
        Problem::new(StatusCode::GATEWAY_TIMEOUT, "the change takes longer than a request may", Some(hint))
    })?;
    let changed: Result<Changed, Refusal> = done.map_err(|_| Refusal::Down)?;
    let Changed { added, removed, passages, checksum } = changed?;
    Ok(Json(ChangeResponse { added, removed, passages, checksum }))
}
