//! The pipeline over HTTP.
//!
//! `worker.rs` owns the models, `api.rs`, `passages.rs` and `openai.rs` have the routes, and this file binds them to a port: limits, keys, metrics, and a
//! stop that lets what is under way end.

mod api;
mod keys;
mod metrics;
mod openai;
mod page;
mod passages;
mod problem;
pub mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::StatusCode;
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
use utoipa::OpenApi;

pub use keys::Keys;
use metrics::Metrics;
use problem::Problem;
use worker::{State as WorkerState, Worker};

use crate::error::{Error, Result};

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
    /// Time for what is under way when the server is stopped.
    pub stop: Duration,
    /// Least confidence of an answer that is given, for requests that name none.
    pub min_confidence: f32,
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
            stop: seconds(10),
            min_confidence: 0.0,
        }
    }
}

/// What all requests share.
#[derive(Debug)]
struct Shared {
    indexes: Vec<(String, Worker)>,
    limits: Limits,
    keys: Keys,
    metrics: Metrics,
}

type Server = Arc<Shared>;

#[derive(OpenApi)]
#[openapi(
    info(title = "nunatak", description = "Answers from your own documents, with the evidence they rest on."),
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
        openai::rerank
    )
)]
struct Description;

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
    indexes: Vec<(String, Worker)>,
    limits: Limits,
    keys: Keys,
    bound: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()>,
) -> Result<()> {
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
    let server = Arc::new(Shared { indexes, limits, keys, metrics: Metrics::new()? });
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
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(server.limits.headers);
        let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app.clone()));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
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
        .route("/v1/rerank", post(openai::rerank))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn_with_state(server.clone(), admit));
    let open = Router::new()
        .route("/", get(page::page))
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
        .layer(middleware::from_fn_with_state(server.clone(), count))
        .with_state(server)
}

/// Let only those pass who have a key.
async fn admit(State(server): State<Server>, request: Request, next: Next) -> Response {
    if server.keys.admit(request.headers()) {
        return next.run(request).await;
    }
    let hint = "send `Authorization: Bearer KEY`".to_owned();
    Problem::new(StatusCode::UNAUTHORIZED, "a key is needed", Some(hint)).into_response()
}

/// Count every request, by the route it matched: what clients make up would fill the memory.
async fn count(State(server): State<Server>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("other".to_owned(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    server.metrics.request(&route, response.status().as_u16(), began.elapsed().as_secs_f64());
    response
}

/// Whether every index answers.
async fn ready(State(server): State<Server>) -> Response {
    let ready = server.indexes.iter().all(|(_, worker)| matches!(worker.state(), WorkerState::Ready(_)));
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"ready": ready}))).into_response()
}

/// Versions and the state of every index.
async fn health(State(server): State<Server>) -> Response {
    let body = json!({"nunatak": env!("CARGO_PKG_VERSION"), "indexes": api::entries(&server)});
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
