//! What a server tells of itself, in Prometheus' text form.

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::answer::{Latency, Usage};
use crate::error::{Error, Result};

/// Upper bounds of latencies, in seconds.
const BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The counters of a server.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    seconds: HistogramVec,
    stages: HistogramVec,
    tokens: IntCounterVec,
    waiting: IntGaugeVec,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Result<Self> {
        let failed = "making metrics";
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let histogram = |name: &str, help: &str, label: &str| {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), &[label])
        };
        let make = || -> prometheus::Result<Self> {
            let metrics = Self {
                requests: counter("nunatak_requests_total", "Requests by route and status.", &["route", "status"])?,
                seconds: histogram("nunatak_request_seconds", "Time of requests, waiting included.", "route")?,
                stages: histogram("nunatak_stage_seconds", "Time of the stages of an answer, and in line.", "stage")?,
                tokens: counter("nunatak_tokens_total", "Tokens of the language model by kind.", &["kind"])?,
                waiting: IntGaugeVec::new(Opts::new("nunatak_waiting", "Requests in line by index."), &["index"])?,
                registry: registry.clone(),
            };
            registry.register(Box::new(metrics.requests.clone()))?;
            registry.register(Box::new(metrics.seconds.clone()))?;
            registry.register(Box::new(metrics.stages.clone()))?;
            registry.register(Box::new(metrics.tokens.clone()))?;
            registry.register(Box::new(metrics.waiting.clone()))?;
            Ok(metrics)
        };
        make().map_err(Error::internal(failed))
    }

    /// Count a request.
    pub fn request(&self, route: &str, status: u16, seconds: f64) {
        self.requests.with_label_values(&[route, &status.to_string()]).inc();
        self.seconds.with_label_values(&[route]).observe(seconds);
    }

    /// Count what an answer cost.
    pub fn answer(&self, usage: &Usage) {
        let ms = usage.latency_ms;
        self.found(&ms);
        for (stage, ms) in [("pack", ms.pack), ("read", ms.read)] {
            self.stages.with_label_values(&[stage]).observe(ms / 1000.0);
        }
        for (kind, tokens) in
            [("prompt", usage.prompt_tokens), ("cached", usage.cached_tokens), ("answer", usage.answer_tokens)]
        {
            self.tokens.with_label_values(&[kind]).inc_by(tokens as u64);
        }
    }

    /// Count what finding passages took.
    pub fn found(&self, ms: &Latency) {
        for (stage, ms) in [("retrieve", ms.retrieve), ("rerank", ms.rerank)] {
            self.stages.with_label_values(&[stage]).observe(ms / 1000.0);
        }
    }

    /// What counts the time that requests are in line.
    pub fn waits(&self) -> Histogram {
        self.stages.with_label_values(&["wait"])
    }

    /// Say how many wait for an index.
    pub fn waiting(&self, index: &str, jobs: usize) {
        self.waiting.with_label_values(&[index]).set(jobs as i64);
    }

    /// All of it, as text.
    pub fn text(&self) -> Result<String> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).map_err(Error::internal("writing metrics"))?;
        String::from_utf8(text).map_err(Error::internal("writing metrics"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told() {
        let metrics = Metrics::new().unwrap();
        metrics.request("/v1/answer", 200, 0.3);
        metrics.answer(&Usage { prompt_tokens: 40, ..Usage::default() });
        metrics.waiting("wiki", 2);
        metrics.waits().observe(0.2);
        let text = metrics.text().unwrap();
        for line in [
            "nunatak_requests_total{route=\"/v1/answer\",status=\"200\"} 1",
            "nunatak_request_seconds_bucket{route=\"/v1/answer\",le=\"0.5\"} 1",
            "nunatak_request_seconds_bucket{route=\"/v1/answer\",le=\"0.25\"} 0",
            "nunatak_tokens_total{kind=\"prompt\"} 40",
            "nunatak_waiting{index=\"wiki\"} 2",
            "nunatak_stage_seconds_bucket{stage=\"wait\",le=\"0.25\"} 1",
            "nunatak_stage_seconds_bucket{stage=\"wait\",le=\"0.1\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
