//! The wire to a cluster: calls that wait, errors in plain words, and patience with a server that is away for a moment.

use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use milvus::v2::prelude::{
    ClientV2, ConnectConfig, DropCollectionRequest, EntityRow, Error as Reply, FlushRequest, HasCollectionRequest,
    InsertRequest, LoadCollectionRequest, QueryRequest, RetryConfig, TelemetryConfig, UpsertRequest,
};
use tokio::runtime::Runtime;

use super::address::{Address, Consistency, TOKEN};
use crate::error::{Error, Result};

/// The first pause between two tries; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Passages that a query may give back; Milvus' own limit.
pub(super) const MOST_ROWS: i64 = 16_384;

/// A connection to a server.
pub(super) struct Connection {
    address: Address,
    client: ClientV2,
    /// How long a call that fails for a reason that passes is made again.
    patience: Duration,
    /// Drives the connection, also between calls; behind the client, so that it is dropped after it.
    runtime: Runtime,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connect.
    pub(super) fn open(address: &Address) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("milvus")
            .enable_all()
            .build()
            .map_err(Error::internal("starting the client of Milvus"))?;
        let mut config = ConnectConfig::new()
            .uri(address.uri())
            .database(address.database.clone())
            .connect_timeout(address.timeout.min(Duration::from_secs(10)))
            .rpc_timeout(address.timeout)
            .retry(RetryConfig::new().max_attempts(5).max_retry_timeout(address.timeout))
            // Nothing about this machine is told to anybody.
            .telemetry(TelemetryConfig::new().enabled(false));
        if let Ok(token) = std::env::var(TOKEN) {
            config.set_token(token);
        }
        let client = runtime.block_on(ClientV2::new(&config)).map_err(|reply| failed(address, &reply))?;
        Ok(Self { address: address.clone(), client, patience: Duration::ZERO, runtime })
    }

    /// Make calls that fail for a reason that passes again for so long; without it only as the client does, some times.
    pub(super) fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Where it leads.
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// The client, for calls that [`Self::wait`] waits for.
    pub(super) fn client(&self) -> &ClientV2 {
        &self.client
    }

    /// Wait for a call.
    pub(super) fn wait<T>(&self, call: impl Future<Output = std::result::Result<T, Reply>>) -> Result<T> {
        self.runtime.block_on(call).map_err(|reply| failed(&self.address, &reply))
    }

    /// Wait for a call that may be made again if it fails for a reason that passes: with pauses, as long as there is patience.
    pub(super) fn insist<T, F: Future<Output = std::result::Result<T, Reply>>>(
        &self,
        mut call: impl FnMut() -> F,
    ) -> Result<T> {
        let (begin, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            match self.runtime.block_on(call()) {
                Ok(done) => return Ok(done),
                Err(reply) if passes(&reply) && begin.elapsed() + pause < self.patience => {
                    tracing::warn!("{}: {}; trying again in {pause:?}", self.address, plain(&reply));
                    crate::progress::check_interrupt(|| {
                        "what was written is kept; the same command goes on".to_owned()
                    })?;
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(reply) => return Err(failed(&self.address, &reply)),
            }
        }
    }

    /// Wait for a call that reads a collection. One that is not in the memory of those who search it, as after their restart, is
    /// put there first.
    pub(super) fn read<T, F: Future<Output = std::result::Result<T, Reply>>>(
        &self,
        collection: &str,
        call: impl Fn() -> F,
    ) -> Result<T> {
        self.insist(|| async {
            match call().await {
                Err(reply) if is_not_loaded(&reply) => {
                    self.load_now(collection).await?;
                    call().await
                }
                done => done,
            }
        })
    }

    /// Have a collection in the memory of those who search it.
    pub(super) fn load(&self, collection: &str) -> Result<()> {
        self.insist(|| self.load_now(collection))
    }

    async fn load_now(&self, collection: &str) -> std::result::Result<(), Reply> {
        self.client.load_collection(LoadCollectionRequest::builder().collection_name(collection).build()?).await
    }

    /// Whether a collection is there.
    pub(super) fn has(&self, collection: &str) -> Result<bool> {
        let request = built(HasCollectionRequest::builder().collection_name(collection).build())?;
        self.insist(|| self.client.has_collection(request.clone())).map(|said| said.exists())
    }

    /// Drop a collection, if it is there.
    pub(super) fn drop(&self, collection: &str) -> Result<()> {
        if !self.has(collection)? {
            return Ok(());
        }
        let request = built(DropCollectionRequest::builder().collection_name(collection).build())?;
        self.wait(self.client.drop_collection(request))
    }

    /// Write rows, over those of the same keys. The same call twice does the same as once.
    pub(super) fn upsert(&self, collection: &str, rows: &[EntityRow]) -> Result<()> {
        self.insist(|| async {
            let insert = InsertRequest::builder().collection_name(collection).rows(rows.iter().cloned()).build()?;
            self.client.upsert(UpsertRequest::builder().insert(insert).build()?).await
        })
        .map(drop)
    }

    /// The rows that meet an expression, with these fields.
    pub(super) fn query(
        &self,
        collection: &str,
        expression: &str,
        fields: &[&str],
        consistency: Consistency,
    ) -> Result<Vec<EntityRow>> {
        let request = QueryRequest::builder()
            .collection_name(collection)
            .filter(expression)
            .output_fields(fields.iter().copied())
            .limit(MOST_ROWS)
            .consistency_level(consistency.level());
        let request = built(request.build())?;
        let said = self.read(collection, || self.client.query(request.clone()))?;
        said.results().get_output_rows().map_err(|reply| failed(&self.address, &reply))
    }

    /// How many rows meet an expression; an empty one is met by all.
    pub(super) fn count(&self, collection: &str, expression: &str, consistency: Consistency) -> Result<u64> {
        let request = QueryRequest::builder()
            .collection_name(collection)
            .filter(expression)
            .output_fields(["count(*)"])
            .consistency_level(consistency.level());
        let request = built(request.build())?;
        let said = self.read(collection, || self.client.query(request.clone()))?;
        let rows = said.results().get_output_rows().map_err(|reply| failed(&self.address, &reply))?;
        let count = rows.first().and_then(|row| row.get("count(*)")).and_then(serde_json::Value::as_u64);
        count.ok_or_else(|| self.error("the server does not say how many passages there are", "is it a Milvus server?"))
    }

    /// Make what was written last through a crash of the server.
    pub(super) fn flush(&self, collection: &str) -> Result<()> {
        let waiting = self.address.timeout.as_millis() as i64 * 10;
        self.insist(|| async {
            let request = FlushRequest::builder().collection_names([collection]).wait_flushed_ms(waiting).build()?;
            self.client.flush(request).await
        })
        .map(drop)
    }

    /// An error about what is at the address.
    pub(super) fn error(&self, problem: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::index(self.address.to_string(), problem, hint)
    }
}

/// A request, which the client checks as it is built.
pub(super) fn built<T>(request: std::result::Result<T, Reply>) -> Result<T> {
    request.map_err(Error::internal("building a request for Milvus"))
}

/// Whether the same call may succeed later.
fn passes(reply: &Reply) -> bool {
    match reply {
        Reply::Timeout(_) => true,
        Reply::RetryExhausted { source, .. } => passes(source),
        Reply::Grpc(status) => {
            // The codes of gRPC: 4 deadline exceeded, 8 resource exhausted, 10 aborted, 14 unavailable.
            [4, 8, 10, 14].contains(&(status.code() as i32)) || is_transport(status.message())
        }
        _ => false,
    }
}

/// Whether a collection is there, and not in memory.
fn is_not_loaded(reply: &Reply) -> bool {
    /// Milvus' own number for it.
    const NOT_LOADED: i32 = 101;
    match reply {
        Reply::Server(error) => error.code() == NOT_LOADED || error.reason().contains("'released'"),
        _ => false,
    }
}

/// A connection that broke under a call comes as an unknown error with these words.
fn is_transport(message: &str) -> bool {
    ["transport error", "connection", "broken pipe", "timeout expired"]
        .iter()
        .any(|part| message.to_lowercase().contains(part))
}

/// What the server or the wire said, without the client's own words around it.
fn plain(reply: &Reply) -> String {
    match reply {
        Reply::RetryExhausted { source, .. } => plain(source),
        Reply::Grpc(status) => status.message().to_owned(),
        Reply::Server(error) => error.reason().trim().to_owned(),
        other => other.to_string(),
    }
}

fn failed(address: &Address, reply: &Reply) -> Error {
    let said = plain(reply);
    if passes(reply) {
        let seconds = address.timeout.as_secs();
        let hint = "start it, or check host, port and tls; a slow one may be given longer by ?timeout=SECONDS";
        return Error::index(
            address.to_string(),
            format!("the Milvus server does not answer within {seconds} s ({said})"),
            hint,
        );
    }
    let lower = said.to_lowercase();
    if ["auth", "permission", "privilege"].iter().any(|part| lower.contains(part)) {
        let hint = format!("put user:password, or an API key, into the environment variable {TOKEN}");
        return Error::index(address.to_string(), format!("the Milvus server lets nobody in like this ({said})"), hint);
    }
    Error::index(address.to_string(), format!("the Milvus server refuses: {said}"), "see its log for more")
}
