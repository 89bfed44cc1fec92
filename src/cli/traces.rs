//! Traces of requests for an OpenTelemetry collector: OTLP over HTTP, and only where `serve --otlp` names one.

use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{KeyValue, global};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::LookupSpan;

use crate::error::{Error, Result};

/// Where a collector takes traces.
const PATH: &str = "/v1/traces";
/// Time for one delivery.
const PATIENCE: Duration = Duration::from_secs(10);
/// Name under which the program stands in traces, unless `OTEL_SERVICE_NAME` says another.
const SERVICE: &str = "nunatak";

/// What sends traces; what it still has is sent when it goes.
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Send traces to the collector at `url`, as `http://localhost:4318`; `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME`,
    /// `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_BSP_*` mean what OpenTelemetry says.
    ///
    /// # Errors
    /// [`Error::Request`] for what is no address.
    pub fn to(url: &str) -> Result<Self> {
        let bad = |problem: String| {
            Error::request(format!("--otlp {url}: {problem}"), "name a collector as http://localhost:4318")
        };
        let address: ureq::http::Uri = url.parse().map_err(|e| bad(format!("it is no address: {e}")))?;
        if !matches!(address.scheme_str(), Some("http" | "https")) || address.host().is_none() {
            return Err(bad("it is no address of the form http://HOST:PORT".to_owned()));
        }
        let endpoint = if matches!(address.path(), "" | "/") {
            format!("{}{PATH}", url.trim_end_matches('/'))
        } else {
            url.to_owned()
        };
        let agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(Client(agent.into()))
            .with_endpoint(endpoint)
            .build()
            .map_err(|e| bad(e.to_string()))?;
        let mut resource =
            Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(SERVICE);
        }
        // So that a request that is part of somebody's trace stays part of it.
        global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Self(SdkTracerProvider::builder().with_resource(resource.build()).with_batch_exporter(exporter).build()))
    }

    /// What hears of this crate's spans.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        let own = Targets::new().with_target(env!("CARGO_CRATE_NAME"), LevelFilter::INFO);
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer(SERVICE))
            .with_location(false)
            .with_threads(false)
            .with_filter(own)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!("the last traces were not delivered: {error}");
        }
    }
}

/// The HTTP client that the rest of the program uses.
#[derive(Debug)]
struct Client(ureq::Agent);

#[async_trait]
impl HttpClient for Client {
    // It blocks, and may: batches are sent by a thread of their own.
    async fn send_bytes(&self, request: Request<Bytes>) -> std::result::Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let (head, mut body) = self.0.run(Request::from_parts(head, body.to_vec()))?.into_parts();
        Ok(Response::from_parts(head, body.read_to_vec()?.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_refused() {
        for url in ["", "localhost:4318", "ftp://localhost", "http:// x"] {
            let error = Traces::to(url).err().unwrap();
            assert!(error.to_string().starts_with(&format!("--otlp {url}: ")), "{error}");
        }
    }
}
