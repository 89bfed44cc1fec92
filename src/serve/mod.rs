//! The pipeline over HTTP.
//!
//! `workers.rs`, `line.rs` and `hand.rs` own the models, `api.rs`, `passages.rs` and `openai.rs` have the routes, and
//! this file binds them to a port: limits, keys, metrics, and a stop that lets what is under way end.

mod api;
mod docs;
mod docs_schema;
mod hand;
mod keys;
mod line;
mod metrics;
mod openai;
mod openai_reply;
mod page;
mod passages;
mod problem;
pub mod tls;
mod watch;
mod whole;
pub mod workers;

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tower_http::cors::CorsLayer;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

pub use keys::Keys;
use metrics::Metrics;
use problem::Problem;
use workers::{State as WorkersState, Workers};

use crate::error::{Error, Result};
use crate::read::recursion::Recursion;
use crate::runtime::device::fallback;
use crate::runtime::session::loaded_version;

/// What a server allows.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Time for a request, waiting included.
    pub deadline: Duration,
    /// Bytes of a body.
    pub body: usize,
    /// Characters of a question.
    pub question: usize,
    /// Connections at once; more wait to be accepted.
    pub connections: usize,
    /// Time for the headers of a request.
    pub headers: Duration,
    /// Time without a byte of a reply being taken, after which its connection is closed.
    pub unread: Duration,
    /// Time for what is under way when the server is stopped.
    pub stop: Duration,
    /// Least confidence of an answer that is given, for requests that name none.
    pub min_confidence: f32,
    /// Whether questions are read twice, for requests that do not say.
    pub recursion: Recursion,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            deadline: seconds(60),
            body: 2 << 20,
            question: 4096,
            connections: 512,
            headers: seconds(10),
            unread: seconds(30),
            stop: seconds(10),
            min_confidence: 0.0,
            recursion: Recursion::None,
        }
    }
}

/// Who may reach a server, and how.
#[derive(Default)]
pub struct Access {
    /// Keys; none are needed if there are none.
    pub keys: Keys,
    /// Origins whose pages may ask.
    pub origins: Vec<Origin>,
    /// What accepts connections; plain HTTP without it.
    pub tls: Option<TlsAcceptor>,
}

/// Where a page comes from: a scheme and a host.
#[derive(Debug, Clone)]
pub struct Origin(HeaderValue);

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let host = text.strip_prefix("http://").or(text.strip_prefix("https://"));
        let fits = host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*']));
        let value = text.parse().ok().filter(|_| fits);
        value.map(Self).ok_or_else(|| "an origin is https://HOST or https://HOST:PORT, each named by itself".to_owned())
    }
}

/// What all requests share.
#[derive(Debug)]
struct Shared {
    indexes: Vec<(String, Workers)>,
    limits: Limits,
    keys: Keys,
    /// Origins whose pages may ask.
    origins: Vec<Origin>,
    /// Whether it speaks TLS.
    secure: bool,
    metrics: Metrics,
}

type Server = Arc<Shared>;

#[derive(OpenApi)]
#[openapi(
    info(title = "nunatak", description = "Answers from your own documents, with the evidence they rest on."),
    // With keys or without: a server on this machine alone need not ask for one.
    security((), ("key" = [])),
    modifiers(&Key),
    // Refusals only name them.
    components(schemas(problem::Problem, problem::ProblemBody)),
    paths(
        api::answer,
        api::search,
        api::indexes,
        passages::put,
        passages::get,
        passages::delete,
        openai::chat,
        openai::embeddings,
        openai::models,
        openai::model,
        openai::rerank
    )
)]
struct Description;

/// Who needs a key, and how it is sent, for the description.
const KEY_RULE: &str = "A server that was started with keys (`--keys`, or the variable `NUNATAK_API_KEY`) answers only who sends one of them, as \
     `Authorization: Bearer KEY`; without one the reply is 401. A key that is read-only changes nothing: the reply is 403. A server that was started \
     without keys asks for none, and refuses pages of other origins.";

/// How a key is sent, for the description.
struct Key;

impl Modify for Key {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(KEY_RULE)).build();
        api.components.get_or_insert_default().add_security_scheme("key", SecurityScheme::Http(bearer));
    }
}

/// The description of the API, as OpenAPI.
pub fn openapi() -> serde_json::Value {
    serde_json::to_value(Description::openapi()).unwrap_or_default()
}

/// Serve these indexes at `address` until `stop` is done. `bound` hears the address that was taken.
///
/// # Errors
/// [`Error::Request`] for an address that others can reach without keys; what binding says.
pub async fn serve(
    address: SocketAddr,
    indexes: Vec<(String, Workers)>,
    limits: Limits,
    access: Access,
    bound: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let Access { keys, origins, tls } = access;
    if keys.is_empty() && !address.ip().is_loopback() {
        return Err(Error::request(
            format!("{address} can be reached by others, and no key is asked for"),
            "name a file of keys with --keys, or serve on 127.0.0.1",
        ));
    }
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Error::request(format!("{address} cannot be listened on: {error}"), "choose another with --listen")
    })?;
    bound(listener.local_addr().unwrap_or(address));
    let metrics = Metrics::new()?;
    for (_, worker) in &indexes {
        worker.count_waits(metrics.waits());
    }
    let server = Arc::new(Shared { indexes, limits, keys, origins, secure: tls.is_some(), metrics });
    let connections = Arc::new(Semaphore::new(server.limits.connections));
    let graceful = GracefulShutdown::new();
    let app = router(server.clone());
    tokio::pin!(stop);
    loop {
        let permit = tokio::select! {
            permit = connections.clone().acquire_owned() => permit,
            () = &mut stop => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        // A connection that broke before it was accepted, or too many open files: the next may do better.
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Who never reads what it asked for would hold its place among the connections for ever.
        let mut stream = Box::pin(TimeoutStream::new(stream));
        stream.as_mut().set_write_timeout_pinned(Some(server.limits.unread));
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(server.limits.headers);
        let (service, watcher) = (TowerToHyperService::new(app.clone()), graceful.watcher());
        let (tls, patience) = (tls.clone(), server.limits.headers);
        tokio::spawn(async move {
            let served = match tls {
                None => watcher.watch(builder.serve_connection(TokioIo::new(stream), service)).await,
                Some(tls) => match tokio::time::timeout(patience, tls.accept(stream)).await {
                    Ok(Ok(stream)) => watcher.watch(builder.serve_connection(TokioIo::new(stream), service)).await,
                    // Who speaks no TLS, or too slowly, is not served.
                    _ => Ok(()),
                },
            };
            if let Err(error) = served {
                tracing::debug!("a connection ended: {error}");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(server.limits.stop, graceful.shutdown()).await.is_err() {
        tracing::warn!("stopped with requests under way");
    }
    Ok(())
}

/// Time that a browser may remember what it may ask from another origin.
const REMEMBERED: Duration = Duration::from_secs(3600);

fn router(server: Server) -> Router {
    let closed = Router::new()
        .route("/v1/answer", post(api::answer))
        .route("/v1/search", post(api::search))
        .route("/v1/indexes", get(api::indexes))
        .route("/v1/passages", post(passages::put))
        .route("/v1/passages/{*id}", get(passages::get).delete(passages::delete))
        .route("/v1/chat/completions", post(openai::chat))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{model}", get(openai::model))
        .route("/v1/rerank", post(openai::rerank))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn_with_state(server.clone(), admit));
    let open = Router::new()
        .route("/", get(page::page))
        .route("/docs", get(docs::docs))
        .route("/live", get(|| async { Json(json!({"live": true})) }))
        .route("/ready", get(ready))
        .route("/openapi.json", get(|| async { Json(openapi()) }));
    closed
        .merge(open)
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "there is nothing here", None) })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this route takes another method", None)
        })
        .layer(DefaultBodyLimit::max(server.limits.body))
        .layer(
            CorsLayer::new()
                .allow_origin(server.origins.iter().map(|origin| origin.0.clone()).collect::<Vec<HeaderValue>>())
                .allow_methods([Method::GET, Method::POST, Method::DELETE])
                .allow_headers([AUTHORIZATION, CONTENT_TYPE])
                .max_age(REMEMBERED),
        )
        .layer(middleware::from_fn_with_state(server.clone(), watch::watch))
        .with_state(server)
}

/// Let only those pass who have a key or, where none is needed, do not ask for a page of somebody else.
async fn admit(State(server): State<Server>, request: Request, next: Next) -> Response {
    if server.keys.is_empty() && is_foreign(request.headers(), &server.origins) {
        let hint = "name its origin with --cors".to_owned();
        return Problem::new(StatusCode::FORBIDDEN, "pages of this origin may not ask", Some(hint)).into_response();
    }
    if server.keys.admit(request.headers()) {
        return next.run(request).await;
    }
    let hint = "send `Authorization: Bearer KEY`".to_owned();
    Problem::new(StatusCode::UNAUTHORIZED, "a key is needed", Some(hint)).into_response()
}

/// Whether a browser sends this for a page of another origin. It sends a POST of plain text without asking beforehand, so that CORS,
/// which keeps the reply from the page, would not keep the page from changing an index.
fn is_foreign(headers: &HeaderMap, origins: &[Origin]) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return false };
    if origins.iter().any(|known| known.0 == *origin) {
        return false;
    }
    if let Some(site) = headers.get("sec-fetch-site") {
        return site.as_bytes() != b"same-origin";
    }
    // A browser that does not say: an origin is a scheme and a host.
    let host = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host.as_bytes());
    host.is_none() || host != headers.get(HOST).map(HeaderValue::as_bytes)
}

/// Whether every index answers.
async fn ready(State(server): State<Server>) -> Response {
    let ready = server.indexes.iter().all(|(_, worker)| matches!(worker.state(), WorkersState::Ready(_)));
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"ready": ready}))).into_response()
}

/// Versions, why `auto` took the processor if it did, and the state of every index with the models at work.
async fn health(State(server): State<Server>) -> Response {
    let body = json!({
        "nunatak": env!("CARGO_PKG_VERSION"),
        "onnxruntime": loaded_version(),
        "fallback": fallback(),
        "indexes": api::entries(&server),
    });
    Json(body).into_response()
}

async fn metrics(State(server): State<Server>) -> Response {
    for (name, worker) in &server.indexes {
        server.metrics.waiting(name, worker.waiting());
    }
    match server.metrics.text() {
        Ok(text) => ([("content-type", "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string(), None).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn pages_of_others_are_told_by_what_browsers_send() {
        let foreign = |given: &[(&'static str, &str)]| {
            let headers = given.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            is_foreign(&headers.collect(), &["https://example.org".parse().unwrap()])
        };
        // A program, the page itself, and a page that was named.
        assert!(!foreign(&[("host", "127.0.0.1:7001")]));
        assert!(!foreign(&[("host", "127.0.0.1:7001"), ("origin", "http://127.0.0.1:7001")]));
        assert!(!foreign(&[
            ("host", "behind:80"),
            ("origin", "https://docs.example"),
            ("sec-fetch-site", "same-origin")
        ]));
        assert!(!foreign(&[("host", "127.0.0.1:7001"), ("origin", "https://example.org")]));
        // Others, a file, and another port of this machine.
        assert!(foreign(&[("host", "127.0.0.1:7001"), ("origin", "https://example.com")]));
        assert!(foreign(&[("host", "127.0.0.1:7001"), ("origin", "null")]));
        assert!(foreign(&[
            ("host", "localhost:7001"),
            ("origin", "http://localhost:8000"),
            ("sec-fetch-site", "same-site")
        ]));
    }

    /// More replies to it than the buffers of two sockets hold.
    const REQUEST: &str = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n";
    const REQUESTS: usize = 2000;

    #[test]
    fn who_never_reads_does_not_keep_the_only_connection() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let limits = Limits { connections: 1, unread: Duration::from_millis(200), ..Limits::default() };
            let (bound, address) = oneshot::channel();
            let local = "127.0.0.1:0".parse().unwrap();
            let bound = |address| bound.send(address).unwrap();
            tokio::spawn(serve(local, Vec::new(), limits, Access::default(), bound, std::future::pending()));
            let address = address.await.unwrap();
            let mut silent = TcpStream::connect(address).await.unwrap();
            silent.write_all(REQUEST.repeat(REQUESTS).as_bytes()).await.unwrap();
            let mut second = TcpStream::connect(address).await.unwrap();
            second.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut reply = String::new();
            let read = tokio::time::timeout(Duration::from_secs(60), second.read_to_string(&mut reply)).await;
            assert!(read.is_ok() && reply.starts_with("HTTP/1.1 200"), "the second client got {reply:?}");
            // The first was open until then.
            drop(silent);
        });
    }
}
