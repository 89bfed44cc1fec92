//! `nunatak serve`: the same pipeline over HTTP.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;

use crate::cli::Globals;
use crate::cli::engine;
use crate::cli::eval::at_least_one;
use crate::cli::first_stage::Place;
use crate::cli::index_change::{self, KeptEncoder};
use crate::cli::index_cluster;
use crate::cli::output::{self, BOLD, DIM};
use crate::cli::pipeline_args::{NamedPrompt, RankingArgs, ReadingArgs, RetrievalArgs};
use crate::cli::traces::Traces;
use crate::disk::Floor;
use crate::error::{Error, Result};
use crate::milvus::Address;
use crate::progress::{self, Quiet};
use crate::runtime::device::Device;
use crate::serve::workers::{Editor, Open, Workers};
use crate::serve::{self, Access, Keys, Limits, Origin, tls};

/// Environment variable with a key, for who has no file.
const KEY_VARIABLE: &str = "NUNATAK_API_KEY";

/// Options of `nunatak serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// File with options, as `nunatak config` prints it
    // Read before the command line is: see config.rs.
    #[arg(long, value_name = "FILE")]
    #[allow(dead_code, reason = "it stands here for --help")]
    config: Option<PathBuf>,
    /// Index to serve, DIR or NAME=DIR; may be given several times, and the first is asked when a request names none
    #[arg(long = "index", required = true, value_name = "[NAME=]DIR")]
    indexes: Vec<String>,
    /// Address and port to listen on; others than this machine's own need keys
    #[arg(long, default_value = "127.0.0.1:7001", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// File with a key a line, or a key and `read-only`: requests then need one, as bearer token (the variable
    /// NUNATAK_API_KEY adds one)
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Origin whose pages may ask this server, as `https://example.org`; may be given several times
    #[arg(long, value_name = "ORIGIN")]
    cors: Vec<Origin>,
    /// Certificate in PEM, with those that vouch for it behind it: the server then speaks TLS alone
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its private key in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Let POST and DELETE on /v1/passages change the indexes
    #[arg(long)]
    writable: bool,
    /// Percent of the disk, and 1 GB at least, that stay free: below, nothing is added (507), and only deleted
    #[arg(long, default_value_t = 5, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    min_free_disk: u8,
    /// Requests that may wait for an index, long ones (answers, and more than 32 texts) and short ones each; more are
    /// turned away with 429
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    queue: u16,
    /// Requests of an index that are answered at once, each with its share of the cores and models of its own. One gives the
    /// shortest answer; more take their memory each, and pay where one does not keep all cores busy
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Seconds for a request, waiting included
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..))]
    deadline: u16,
    /// Largest body of a request, in MB; more is turned away with 413
    #[arg(long, default_value_t = 2, value_name = "MB", value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_body: u16,
    /// Connections at once; more wait to be accepted
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    max_connections: u16,
    /// Seconds for what is under way when the server is stopped
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    stop_within: u16,
    /// OpenTelemetry collector that gets a trace of every request, by OTLP over HTTP: http://localhost:4318
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    /// Prompt that a request may name instead of the one of --prompt: NAME, FILE, none, or NAME=FILE to give it another name; may be
    /// given several times. All are read behind by one language model
    #[arg(long = "also-prompt", value_name = "[NAME=]PROMPT", help_heading = "Reading")]
    also_prompts: Vec<NamedPrompt>,
    /// Candidates that the first stage finds
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = at_least_one)]
    depth: usize,
    #[command(flatten)]
    ranking: RankingArgs,
    #[command(flatten)]
    reading: ReadingArgs,
}

impl ServeArgs {
    /// What sends traces, where that is asked for.
    pub fn traces(&self) -> Result<Option<Traces>> {
        self.otlp.as_deref().map(Traces::to).transpose()
    }
}

/// Run `nunatak serve`.
pub fn run(args: &ServeArgs, globals: &Globals) -> Result<()> {
    let access = access(args)?;
    let scheme = if access.tls.is_some() { "https" } else { "http" };
    let limits = Limits {
        deadline: Duration::from_secs(args.deadline.into()),
        body: usize::from(args.max_body) << 20,
        connections: args.max_connections.into(),
        stop: Duration::from_secs(args.stop_within.into()),
        min_confidence: args.reading.min_confidence,
        recursion: args.reading.recursion,
        ..Limits::default()
    };
    let workers = usize::from(args.workers);
    let globals = &Globals { threads: threads_for(globals.runtime().thread_count(), workers), ..globals.clone() };
    let cache = match args.reading.passage_cache {
        None if workers == 1 || globals.device != Device::Cpu => None,
        megabytes => Some(megabytes.unwrap_or(engine::PASSAGE_CACHE) / workers as u64),
    };
    // Options that cannot be are an error before anything listens.
    args.ranking.fusion()?;
    args.reading.settings(&RetrievalArgs { ranking: args.ranking.clone(), ..RetrievalArgs::at(Path::new("")) }, 0)?;
    let reading = ReadingArgs { passage_cache: cache, also_prompts: args.also_prompts.clone(), ..args.reading.clone() };
    reading.check_prompts()?;
    let mut indexes = Vec::new();
    for named in &args.indexes {
        let (name, dir) = name_of(named);
        if indexes.iter().any(|(other, _)| *other == name) {
            return Err(Error::request(
                format!("two indexes are called {name}"),
                "give them names: --index one=DIR --index two=DIR",
            ));
        }
        // A place that is no index is an error before anything listens.
        Place::open(&dir)?;
        let retrieval = RetrievalArgs { ranking: args.ranking.clone(), ..RetrievalArgs::at(&dir) };
        let (reading, depth, with) = (reading.clone(), args.depth, globals.clone());
        let open = move || Ok(engine::build(&retrieval, Some(&reading), depth, 0, &with, &Quiet)?.pipeline);
        let open: Open = Arc::new(open);
        let served = Workers::start(&open, args.queue.into(), workers)?;
        let editor = args.writable.then(|| editor(dir, Floor::new(args.min_free_disk), globals.clone()));
        indexes.push((name, editor.into_iter().fold(served, Workers::with_editor)));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::internal("starting the server"))?;
    let json = globals.json;
    let bound = move |address: SocketAddr| {
        let said = if json {
            output::json(&serde_json::json!({"listening": address.to_string()}))
        } else {
            output::line(format_args!(
                "{BOLD}{scheme}://{address}{BOLD:#}  {DIM}the page; /docs describes the API; Ctrl-C stops{DIM:#}"
            ))
        };
        // Nobody reads it: no reason not to serve.
        let _ = said;
    };
    // A stop lets requests end; a change of an index that takes longer ends at its next safe point.
    progress::let_end(true);
    let served = runtime.block_on(serve::serve(args.listen, indexes, limits, access, bound, stopped()));
    progress::let_end(false);
    progress::interrupt();
    served
}

/// Threads of the pool that all workers' sessions share. Each worker's own thread works beside it, so that when all are at work,
/// so many threads run as there are cores, and a request that is alone still gets most of them.
fn threads_for(cores: usize, workers: usize) -> usize {
    (cores + 1).saturating_sub(workers).max(1)
}

/// What changes the index at `dir`.
fn editor(dir: PathBuf, floor: Floor, globals: Globals) -> Editor {
    let kept = Mutex::new((KeptEncoder::default(), floor));
    Arc::new(move |edit| {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (kept, floor) = &mut *kept;
        match Address::of(&dir)? {
            Some(address) => index_cluster::edit(&address, edit, kept, &globals),
            None => index_change::edit(&dir, edit, kept, floor, &globals),
        }
    })
}

/// Done when the process is asked to stop.
async fn stopped() {
    while !progress::stop_asked() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn access(args: &ServeArgs) -> Result<Access> {
    let tls = args.tls_cert.as_deref().zip(args.tls_key.as_deref());
    Ok(Access {
        keys: keys(args)?,
        origins: args.cors.clone(),
        tls: tls.map(|(certificate, key)| tls::acceptor(certificate, key)).transpose()?,
    })
}

fn keys(args: &ServeArgs) -> Result<Keys> {
    let from_file = match &args.keys {
        Some(path) => {
            let keys = Keys::parse(&std::fs::read_to_string(path).map_err(Error::file("read", path))?, path)?;
            if keys.is_empty() {
                return Err(Error::bad_file(path, "there is no key in it", "write one a line, or leave --keys out"));
            }
            keys
        }
        None => Keys::default(),
    };
    let variable = std::env::var_os(KEY_VARIABLE).unwrap_or_default();
    let from_variable = Keys::parse(&variable.to_string_lossy(), Path::new(KEY_VARIABLE))?;
    if from_variable.is_empty() && !variable.is_empty() {
        return Err(Error::bad_file(KEY_VARIABLE, "there is no key in it", "a key does not begin with #; or unset it"));
    }
    Ok(from_file.and(from_variable))
}

/// Name and folder of an index as it was typed.
fn name_of(typed: &str) -> (String, PathBuf) {
    match typed.split_once('=') {
        Some((name, dir)) if !name.is_empty() && !name.contains(['/', '\\']) => (name.to_owned(), PathBuf::from(dir)),
        _ => {
            let dir = PathBuf::from(typed);
            if let Ok(Some(address)) = Address::of(&dir) {
                return (address.collection, dir);
            }
            let name = dir.file_name().map_or_else(|| typed.to_owned(), |n| n.to_string_lossy().into_owned());
            (name, dir)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_and_their_pool_are_as_many_threads_as_cores() {
        let busy = |cores, workers| workers + threads_for(cores, workers) - 1;
        assert_eq!((busy(2, 1), busy(2, 2), busy(16, 4)), (2, 2, 16));
        // Who asks for more workers than cores gets them, without a pool.
        assert_eq!(threads_for(2, 5), 1);
    }
}
