//! What a request gets when it gets no answer: a status, one sentence, and what to do.

use std::collections::BTreeMap;
use std::io;

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::{Content, Ref, RefOr, Response as Described, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

use crate::error::Error;
use crate::serve::workers::Refusal;

/// The body of every error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// What went wrong.
    pub error: ProblemBody,
    /// The HTTP status.
    #[serde(skip)]
    pub status: u16,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ProblemBody {
    /// In a word: `bad_request`, `conflict`, `unauthorized`, `not_found`, `too_long`, `busy`, `late`, `not_ready`, `no_room`,
    /// `failed`.
    pub code: &'static str,
    /// In a sentence.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// For the description of the API: what a question may get instead of its answer.
pub struct Refused;

/// What a change that comes as a body may get.
pub struct PutRefused;

/// What a change without a body may get.
pub struct DeleteRefused;

/// What a list may get.
pub struct ListRefused;

/// What a look at what has a name may get.
pub struct NameRefused;

/// What a look at passages may get.
pub struct LookRefused;

/// Statuses of routes that anybody with a key gets a reply from.
const OF_KEYS: [u16; 2] = [401, 403];
/// Of those that look at passages, through a worker.
const OF_LOOKS: [u16; 8] = [400, 401, 403, 404, 429, 500, 503, 504];
/// Statuses of every route that does something.
const ALWAYS: [u16; 9] = [400, 401, 403, 404, 422, 429, 500, 503, 504];
/// Of those that read a body.
const OF_BODIES: [u16; 2] = [408, 413];
/// Of those that change an index.
const OF_CHANGES: [u16; 2] = [409, 507];

impl IntoResponses for Refused {
    fn responses() -> BTreeMap<String, RefOr<Described>> {
        ALWAYS.into_iter().chain(OF_BODIES).map(described).collect()
    }
}

impl IntoResponses for PutRefused {
    fn responses() -> BTreeMap<String, RefOr<Described>> {
        ALWAYS.into_iter().chain(OF_BODIES).chain(OF_CHANGES).map(described).collect()
    }
}

impl IntoResponses for DeleteRefused {
    fn responses() -> BTreeMap<String, RefOr<Described>> {
        ALWAYS.into_iter().chain(OF_CHANGES).map(described).collect()
    }
}

impl IntoResponses for ListRefused {
    fn responses() -> BTreeMap<String, RefOr<Described>> {
        OF_KEYS.into_iter().map(described).collect()
    }
}

impl IntoResponses for NameRefused {
    fn responses() -> BTreeMap<String, RefOr<Described>> {
        OF_KEYS.into_iter().chain([404]).map(described).collect()
    }
}

impl IntoResponses for LookRefused {
    fn responses() -> BTreeMap<String, RefOr<Described>> {
        OF_LOOKS.into_iter().map(described).collect()
    }
}

/// A status whose body is a [`Problem`].
fn described(status: u16) -> (String, RefOr<Described>) {
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    let body = Content::new(Some(Ref::from_schema_name("Problem")));
    (status.to_string(), ResponseBuilder::new().description(reason).content("application/json", body).into())
}

impl Problem {
    /// A problem of this status.
    pub fn new(status: StatusCode, message: impl Into<String>, hint: impl Into<Option<String>>) -> Self {
        let code = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "unauthorized",
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => "not_found",
            StatusCode::PAYLOAD_TOO_LARGE => "too_long",
            StatusCode::TOO_MANY_REQUESTS => "busy",
            StatusCode::CONFLICT => "conflict",
            StatusCode::GATEWAY_TIMEOUT => "late",
            StatusCode::SERVICE_UNAVAILABLE => "not_ready",
            StatusCode::INSUFFICIENT_STORAGE => "no_room",
            status if status.is_client_error() => "bad_request",
            _ => "failed",
        };
        Self { error: ProblemBody { code, message: message.into(), hint: hint.into() }, status: status.as_u16() }
    }
}

impl Problem {
    /// The pipeline did something else than it was asked.
    pub fn confused() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the pipeline gave something else", None)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Busy => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "the queue is full",
                Some("ask again after the seconds that Retry-After says".to_owned()),
            ),
            Refusal::Late => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "the time for a request was over before it was answered",
                Some("ask again when fewer are asking, or let the server allow more with --deadline".to_owned()),
            ),
            Refusal::Down => Self::new(StatusCode::SERVICE_UNAVAILABLE, "the index is not ready", None),
            Refusal::Failed(error) => {
                let status = match &error {
                    Error::Request { .. } | Error::BadLine { .. } | Error::BadFile { .. } => {
                        StatusCode::UNPROCESSABLE_ENTITY
                    }
                    Error::Locked { .. } | Error::Known { .. } => StatusCode::CONFLICT,
                    Error::Interrupted { .. } => StatusCode::SERVICE_UNAVAILABLE,
                    Error::NoRoom { .. } => StatusCode::INSUFFICIENT_STORAGE,
                    Error::File { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                        StatusCode::INSUFFICIENT_STORAGE
                    }
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                if status.is_server_error() {
                    tracing::error!("{error}");
                }
                Self::new(status, error.to_string(), hint_over_http(&error).map(str::to_owned))
            }
        }
    }
}

/// What to do about an error, for who has no command line before them.
fn hint_over_http(error: &Error) -> Option<&str> {
    match error {
        Error::Known { .. } => Some("leave out \"replace\": false to replace it, or give the new one another id"),
        Error::NoRoom { .. } => Some("free some space on the server's disk; deleting works all the same"),
        Error::BadLine { .. } => Some("mend it and send all again; nothing was changed"),
        error => error.hint(),
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self)).into_response();
        let header = match status {
            StatusCode::TOO_MANY_REQUESTS => Some((RETRY_AFTER, "1")),
            // RFC 9110, 15.5.2: a 401 says how to be let in.
            StatusCode::UNAUTHORIZED => Some((WWW_AUTHENTICATE, "Bearer")),
            _ => None,
        };
        response.headers_mut().extend(header.map(|(name, value)| (name, HeaderValue::from_static(value))));
        response
    }
}
