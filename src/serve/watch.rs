//! What is told of every request: counted, logged, and traced where a collector is named. What was asked is not told.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use opentelemetry::global;
use opentelemetry_http::HeaderExtractor;
use tokio_stream::StreamExt;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::serve::Server;

/// Name of the header by which a request is found again in logs.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest one that is taken from a client.
const LONGEST_ID: usize = 128;

/// The span of a request, part of the trace that its client names if it does. What was asked is not in it.
fn span(request: &Request, route: &str, id: &HeaderValue) -> Span {
    let method = request.method().as_str();
    let span = tracing::info_span!(
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        otel.status_code = Empty,
        request_id = id.to_str().unwrap_or_default(),
    );
    let parent = global::get_text_map_propagator(|names| names.extract(&HeaderExtractor(request.headers())));
    // Nobody collects traces: nothing to be part of.
    let _ = span.set_parent(parent);
    span
}

/// Count and log every request, by the route it matched: what clients make up would fill the memory. What was asked is not
/// logged. A request's id is the client's, or a new one, and comes back with the reply.
pub(super) async fn watch(State(server): State<Server>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("other".to_owned(), |path| path.as_str().to_owned());
    let given = request.headers().get(REQUEST_ID).filter(|id| id.len() <= LONGEST_ID && id.to_str().is_ok()).cloned();
    let id = given.unwrap_or_else(|| {
        HeaderValue::from_str(&format!("{:016x}", rand::random::<u64>())).unwrap_or(HeaderValue::from_static("none"))
    });
    let method = request.method().clone();
    let span = span(&request, &route, &id);
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    span.record("http.response.status_code", i64::from(status));
    if response.status().is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    let told = id.clone();
    let at_end = AtEnd(move || {
        let seconds = began.elapsed().as_secs_f64();
        server.metrics.request(&route, status, seconds);
        let (request_id, milliseconds) = (told.to_str().unwrap_or_default(), (seconds * 1e3) as u64);
        tracing::info!(request_id, %method, route, status, milliseconds, "request");
    });
    // A stream has only begun: it is told of when its last part was sent, or its client is gone.
    if response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes() == b"text/event-stream") {
        response = response.map(|body| {
            Body::from_stream(body.into_data_stream().map(move |part| {
                let _open = &at_end;
                part
            }))
        });
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// Does something when it is dropped.
struct AtEnd<F: Fn()>(F);

impl<F: Fn()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
