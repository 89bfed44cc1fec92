//! `nunatak bench serve`: how a server holds under load.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use crate::cli::Globals;
use crate::cli::output::{self, BOLD, DIM};
use crate::error::{Error, Result};
use crate::eval::dataset;
use crate::eval::load::{self, LoadReport, Shape, Target};
use crate::plot::{Chart, Series, Stroke, lines};

/// Options of `nunatak bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Put load on a running server and say how long its clients wait
    Serve(BenchServeArgs),
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Route {
    /// Passages
    Search,
    /// Answers
    Answer,
}

/// Options of `nunatak bench serve`.
#[derive(Debug, Args)]
struct BenchServeArgs {
    /// Address of the server
    #[arg(long, default_value = "http://127.0.0.1:7001", value_name = "URL")]
    url: String,
    /// Questions to ask, in turn
    #[arg(long, required = true, value_name = "FILE")]
    questions: PathBuf,
    /// Leave out up to N bad lines of the questions
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip_bad: usize,
    /// What to ask for
    #[arg(long, value_enum, default_value = "answer")]
    route: Route,
    /// Clients at once, each asking again when it has its answer; a measurement for each number
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64", value_name = "N,N,...")]
    connections: Vec<usize>,
    /// Questions a second, whatever the server does, in place of --connections; a measurement for each rate
    #[arg(long, value_delimiter = ',', value_name = "N,N,...")]
    rate: Vec<f64>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    seconds: f64,
    /// Seconds after which a request without a reply counts as broken
    #[arg(long, default_value_t = 70.0, value_name = "SECONDS")]
    patience: f64,
    /// Key for the server, if it wants one
    #[arg(long, env = "NUNATAK_API_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<String>,
    /// Picture of the waits to write
    #[arg(long, value_name = "FILE.svg")]
    out: Option<PathBuf>,
    /// Replace a picture that is there
    #[arg(long)]
    overwrite: bool,
}

/// Most of what is said in seconds, or a second: decades, and far below what a clock cannot count.
const MOST: f64 = 1e9;

/// Run `nunatak bench`.
pub fn run(args: &BenchArgs, globals: &Globals) -> Result<()> {
    match &args.command {
        BenchCommand::Serve(args) => serve(args, globals),
    }
}

fn serve(args: &BenchServeArgs, globals: &Globals) -> Result<()> {
    args.out.iter().try_for_each(|path| output::check_new(path, args.overwrite))?;
    let fits = |x: f64| x > 0.0 && x <= MOST;
    if args.connections.contains(&0) || !args.rate.iter().chain([&args.seconds, &args.patience]).all(|&x| fits(x)) {
        return Err(Error::request(
            "--connections, --rate, --seconds and --patience are above 0, and the last three at most 1e9",
            "leave them out",
        ));
    }
    let progress = globals.progress();
    let questions = dataset::read(&args.questions, args.skip_bad, progress.as_ref())?.questions;
    let (path, more) = match args.route {
        Route::Search => ("search", json!({"k": 10})),
        Route::Answer => ("answer", json!({})),
    };
    let body = |question: &str| {
        let mut body = more.clone();
        body["question"] = question.into();
        body.to_string()
    };
    let target = Target {
        url: format!("{}/v1/{path}", args.url.trim_end_matches('/')),
        key: args.key.clone(),
        bodies: questions.iter().map(|q| body(&q.question)).collect(),
        patience: Duration::from_secs_f64(args.patience),
    };
    let shapes: Vec<Shape> = match args.rate.is_empty() {
        true => args.connections.iter().map(|&n| Shape::Clients(n)).collect(),
        false => args.rate.iter().map(|&rate| Shape::Rate(rate)).collect(),
    };
    let mut reports = Vec::new();
    progress.start("asking", Some(shapes.len() as u64), "loads");
    for shape in shapes {
        let report = load::run(&target, shape, Duration::from_secs_f64(args.seconds))?;
        progress.advance(1);
        if reports.is_empty() && !globals.json {
            let head = "load           answered/s    p50 ms    p95 ms    p99 ms   429s (p99 ms)   others";
            output::line(format_args!("{BOLD}{head}{BOLD:#}"))?;
        }
        print(&report, globals)?;
        reports.push(report);
    }
    progress.finish();
    match &args.out {
        Some(path) => draw(path, &reports),
        None => Ok(()),
    }
}

fn print(report: &LoadReport, globals: &Globals) -> Result<()> {
    if globals.json {
        return output::json(report);
    }
    let load = match report.shape {
        Shape::Clients(1) => "1 client".to_owned(),
        Shape::Clients(n) => format!("{n} clients"),
        Shape::Rate(rate) => format!("{rate}/s"),
    };
    let ms = |wait: Option<f64>| wait.map_or("-".to_owned(), |wait| format!("{wait:.1}"));
    let of = |status: u16| report.statuses.get(&status).copied().unwrap_or(0);
    let others = report.statuses.values().sum::<usize>() - of(200) - of(429) + report.broken;
    let waits = report.answered_ms;
    output::line(format_args!(
        "{load:<14} {:>10.1} {:>9} {:>9} {:>9} {:>6} {DIM}({:>6}){DIM:#} {others:>8}",
        report.answered_per_second,
        ms(waits.p50),
        ms(waits.p95),
        ms(waits.p99),
        of(429),
        ms(report.refused_ms.p99),
    ))
}

fn draw(path: &Path, reports: &[LoadReport]) -> Result<()> {
    let x = |report: &LoadReport| match report.shape {
        Shape::Clients(n) => n as f64,
        Shape::Rate(rate) => rate,
    };
    let line = |name: &str, wait: fn(&LoadReport) -> Option<f64>| {
        let points = reports.iter().map(|report| (x(report), wait(report).unwrap_or(f64::NAN))).collect();
        Series::new(name, points).drawn(Stroke::Dotted)
    };
    let open = matches!(reports.first().map(|report| report.shape), Some(Shape::Rate(_)));
    let chart = Chart {
        title: "How long an answer takes under load".into(),
        x_label: if open { "questions a second" } else { "clients at once" }.into(),
        y_label: "milliseconds".into(),
        series: vec![
            line("p50", |report| report.answered_ms.p50),
            line("p95", |report| report.answered_ms.p95),
            line("p99", |report| report.answered_ms.p99),
        ],
        x_log: true,
        ..Chart::default()
    };
    std::fs::write(path, lines(&chart)).map_err(Error::file("write", path))
}
