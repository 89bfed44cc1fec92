//! How a server holds under load, from outside: many clients that ask over HTTP, and how long each waits.
//!
//! In a closed loop a number of clients ask one question after the other, so a slow server is asked less. In an open loop
//! questions come at a rate, whatever the server does, and a wait counts from the moment a question should have been sent: a
//! server that stands still for a second is charged for every question of that second.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::eval::bootstrap::quantile;
use crate::progress::interrupted;

/// Most clients of an open loop: beyond them the loop is closed by the number of threads.
const MOST_CLIENTS: usize = 512;

/// Whom to ask what.
#[derive(Debug, Clone)]
pub struct Target {
    /// Whole address of the route.
    pub url: String,
    /// Bearer token.
    pub key: Option<String>,
    /// Bodies, taken in turn.
    pub bodies: Vec<String>,
    /// A request that has no reply by then counts as hung.
    pub patience: Duration,
}

/// How the load comes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// So many clients, each asking again when it has its answer.
    Clients(usize),
    /// So many questions a second.
    Rate(f64),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadReport {
    /// How the load came.
    pub shape: Shape,
    /// Seconds from the first request to the last reply.
    pub seconds: f64,
    /// Requests by HTTP status.
    pub statuses: BTreeMap<u16, usize>,
    /// Requests without a whole reply.
    pub broken: usize,
    /// Requests that were answered (status 200), a second.
    pub answered_per_second: f64,
    /// How long those waited.
    pub answered_ms: Waits,
    /// How long those waited that were turned away (status 429).
    pub refused_ms: Waits,
}

/// Quantiles of waits in milliseconds; absent without any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Waits {
    /// The median.
    pub p50: Option<f64>,
    /// 19 of 20 waited less.
    pub p95: Option<f64>,
    /// 99 of 100 waited less.
    pub p99: Option<f64>,
}

impl Waits {
    fn of(mut milliseconds: Vec<f64>) -> Self {
        milliseconds.sort_by(f64::total_cmp);
        let at = |q| quantile(&milliseconds, q);
        Self { p50: at(0.5), p95: at(0.95), p99: at(0.99) }
    }
}

/// One request: its status, or none without a whole reply, and how long it took.
type Reply = (Option<u16>, f64);

/// Put load on a server for some time.
///
/// # Errors
/// [`Error::Request`] when nobody answers at the address, or there is nothing to ask; [`Error::Interrupted`].
pub fn run(target: &Target, shape: Shape, time: Duration) -> Result<LoadReport> {
    if target.bodies.is_empty() {
        return Err(Error::request("there is no question to ask", "give a file that has some"));
    }
    if let Err(error) = Client::new(target).ask(0) {
        let problem = format!("nobody answers at {}: {error}", target.url);
        return Err(Error::request(problem, "start `nunatak serve`, or say --url"));
    }
    let begin = Instant::now();
    let (next, replies) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let client = || {
        let client = Client::new(target);
        let mut mine = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let due = match shape {
                Shape::Clients(_) => begin.elapsed(),
                // What is due beyond all time never is.
                Shape::Rate(rate) => Duration::try_from_secs_f64(number as f64 / rate).unwrap_or(Duration::MAX),
            };
            if due >= time || interrupted() {
                break;
            }
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
            let status = client.ask(number).ok();
            mine.push((status, (begin.elapsed().saturating_sub(due)).as_secs_f64() * 1e3));
        }
        replies.lock().unwrap_or_else(PoisonError::into_inner).extend(mine);
    };
    let clients = match shape {
        Shape::Clients(clients) => clients,
        // As many as could wait at once, if all waited until they are given up.
        Shape::Rate(rate) => ((rate * target.patience.as_secs_f64()).ceil() as usize).clamp(1, MOST_CLIENTS),
    };
    std::thread::scope(|scope| {
        (0..clients).for_each(|_| drop(scope.spawn(client)));
    });
    if interrupted() {
        return Err(Error::Interrupted { kept: "nothing was measured".into() });
    }
    let replies = replies.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(report(shape, begin.elapsed().as_secs_f64(), &replies))
}

fn report(shape: Shape, seconds: f64, replies: &[Reply]) -> LoadReport {
    let mut statuses = BTreeMap::new();
    for status in replies.iter().filter_map(|(status, _)| *status) {
        *statuses.entry(status).or_default() += 1;
    }
    let waits = |wanted: u16| {
        let with = replies.iter().filter(|(status, _)| *status == Some(wanted));
        Waits::of(with.map(|(_, milliseconds)| *milliseconds).collect())
    };
    let answered = statuses.get(&200).copied().unwrap_or(0);
    LoadReport {
        shape,
        seconds,
        broken: replies.iter().filter(|(status, _)| status.is_none()).count(),
        answered_per_second: answered as f64 / seconds.max(1e-9),
        answered_ms: waits(200),
        refused_ms: waits(429),
        statuses,
    }
}

/// A client with a connection of its own, which is kept.
struct Client<'a> {
    agent: ureq::Agent,
    target: &'a Target,
}

impl<'a> Client<'a> {
    fn new(target: &'a Target) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(target.patience))
            .http_status_as_error(false)
            .proxy(None)
            .build();
        Self { agent: config.into(), target }
    }

    /// The status of a reply that came whole.
    fn ask(&self, number: usize) -> std::result::Result<u16, ureq::Error> {
        let body = self.target.bodies.get(number % self.target.bodies.len()).map_or("", String::as_str);
        let mut request = self.agent.post(&self.target.url).content_type("application/json");
        if let Some(key) = &self.target.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut reply = request.send(body)?;
        reply.body_mut().read_to_vec()?;
        Ok(reply.status().as_u16())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_each_reply_once() {
        let mut replies: Vec<Reply> = (1..=100).map(|n| (Some(200), f64::from(n))).collect();
        replies.extend([(Some(429), 2.0), (Some(429), 4.0), (None, 9.0)]);
        let report = report(Shape::Clients(4), 10.0, &replies);
        assert_eq!(report.statuses, BTreeMap::from([(200, 100), (429, 2)]));
        assert_eq!((report.broken, report.answered_per_second), (1, 10.0));
        assert_eq!(report.answered_ms.p50, Some(50.5));
        assert!(report.answered_ms.p99.is_some_and(|p| (99.0..=100.0).contains(&p)));
        assert_eq!(report.refused_ms.p50, Some(3.0));
    }

    #[test]
    fn a_rate_beyond_all_time_asks_once() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1/search", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, mut asked, mut byte) = (stream.unwrap(), Vec::new(), [0]);
                while !asked.ends_with(b"{}") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                    asked.extend(byte);
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            }
        });
        let target = Target { url, key: None, bodies: vec!["{}".into()], patience: Duration::from_secs(5) };
        let report = run(&target, Shape::Rate(1e-300), Duration::from_millis(50)).unwrap();
        assert_eq!(report.statuses.values().sum::<usize>() + report.broken, 1);
    }

    #[test]
    fn a_server_that_is_not_there_is_named() {
        let target = Target {
            url: "http://127.0.0.1:1/v1/answer".into(),
            key: None,
            bodies: vec!["{}".into()],
            patience: Duration::from_secs(1),
        };
        let error = run(&target, Shape::Clients(1), Duration::from_millis(10)).unwrap_err();
        assert!(error.to_string().contains("nobody answers at http://127.0.0.1:1"), "{error}");
    }
}
