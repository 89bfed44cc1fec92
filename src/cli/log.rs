//! Where what happens inside is told: the log on stderr, and traces of requests at a collector.

use std::io;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::cli::traces::Traces;

/// Send the library's log to stderr: warnings, or what `NUNATAK_LOG` asks for; one JSON object a line, with the time, if
/// `NUNATAK_LOG_FORMAT` is `json`. `traces` hears of every span besides.
pub fn init(quiet: bool, traces: Option<&Traces>) {
    let default = if quiet { "error" } else { "warn,ort=error,tantivy=error" };
    let filter = EnvFilter::try_from_env("NUNATAK_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let lines = fmt::layer().with_writer(io::stderr).with_target(false);
    let lines = if std::env::var("NUNATAK_LOG_FORMAT").is_ok_and(|format| format == "json") {
        lines.json().flatten_event(true).boxed()
    } else {
        let ansi = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
        lines.with_ansi(ansi).without_time().boxed()
    };
    // A second subscriber in one process is refused; the first one serves.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).with(traces.map(Traces::layer)).try_init();
}
