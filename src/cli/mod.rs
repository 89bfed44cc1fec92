//! Words typed: the command line, thin over the library.
//!
//! Data goes to stdout, everything else to stderr. Exit status 0: done; 1: the work failed; 2: the words
//! were wrong.

pub mod ask;
pub mod bench;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod engine;
pub mod eval;
pub mod first_stage;
pub mod index;
pub mod index_change;
mod index_cluster;
mod index_encoder;
mod index_memory;
mod log;
pub mod models;
pub mod output;
pub mod pipeline_args;
pub mod progress;
pub mod search;
pub mod serve;
pub mod setup;
mod traces;
pub mod train;
pub mod train_candidates;
pub mod train_curves;
pub mod train_id_prompt;
pub mod train_reranker;
pub mod warm;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::error::Result;
use crate::guard;
use crate::progress::{Progress, Quiet};
use crate::runtime::device::Device;
use crate::runtime::memory;
use crate::runtime::session::{RuntimeOptions, silence_telemetry};

/// Answers questions from your own documents with a frozen language model, and shows what each answer rests on.
#[derive(Debug, Parser)]
#[command(name = "nunatak", version, arg_required_else_help = true, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Print JSON on stdout, one object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Never fetch anything: what is missing is an error
    #[arg(long, global = true, env = "NUNATAK_OFFLINE", value_parser = clap::builder::FalseyValueParser::new())]
    pub offline: bool,
    /// Where models run: cpu, cuda, tensorrt (cuda:1 is the second GPU), or auto
    #[arg(long, global = true, default_value = "cpu", value_name = "DEVICE")]
    pub device: Device,
    /// Threads for models and builds; 0 takes all cores
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    pub threads: usize,
    /// No progress bars and no notes
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

impl Globals {
    /// How models are run.
    pub fn runtime(&self) -> RuntimeOptions {
        RuntimeOptions {
            device: self.device,
            threads: self.threads,
            offline: self.offline,
            ..RuntimeOptions::default()
        }
    }

    /// How models beside a training are run: its `--device` is where it computes, and they need no GPU build of ONNX Runtime.
    pub fn runtime_on_cpu(&self) -> RuntimeOptions {
        RuntimeOptions { device: Device::Cpu, ..self.runtime() }
    }

    /// Where progress is shown.
    pub fn progress(&self) -> Box<dyn Progress> {
        match (self.quiet, std::io::stderr().is_terminal()) {
            (true, _) => Box::new(Quiet),
            (false, true) => Box::new(progress::Bars::default()),
            (false, false) => Box::new(progress::Lines::default()),
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set up, index the bundled corpus, ask its questions
    Demo(demo::DemoArgs),
    /// Fetch ONNX Runtime and the starter models
    Setup(setup::SetupArgs),
    /// Prove that everything works by running it
    Doctor(doctor::DoctorArgs),
    /// List, import, export and pull models
    Models(models::ModelsArgs),
    /// Build an index and look after it
    Index(index::IndexArgs),
    /// Find passages
    Search(search::SearchArgs),
    /// Answer questions
    Ask(ask::AskArgs),
    /// Measure retrieval and answers on a question set, or compare two runs
    Eval(eval::EvalArgs),
    /// Answer over HTTP
    Serve(Box<serve::ServeArgs>),
    /// Measure a running server
    Bench(bench::BenchArgs),
    /// Print the options of `serve` as a file for `serve --config`
    Config(config::ConfigArgs),
    /// Learn small modules around the frozen language model
    Train(train::TrainArgs),
}

/// Run the command line of this process.
pub fn main() -> ExitCode {
    silence_telemetry();
    guard::print_no_guarded_panics();
    let words: Vec<OsString> = std::env::args_os().collect();
    let words = match config::expand(words, &Cli::command()) {
        Ok(words) => words,
        Err(error) => {
            output::print_error(&error);
            return ExitCode::FAILURE;
        }
    };
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            let wrong = error.use_stderr();
            // Printing help or a usage error can only fail on a closed pipe, where nobody reads.
            let _ = error.print();
            return ExitCode::from(if wrong { 2 } else { 0 });
        }
    };
    memory::keep_freed_memory();
    let traces = match &cli.command {
        Command::Serve(args) => args.traces(),
        _ => Ok(None),
    };
    let done = traces.and_then(|traces| {
        log::init(cli.globals.quiet, traces.as_ref());
        if let Err(error) = ctrlc::set_handler(crate::progress::interrupt) {
            tracing::warn!("Ctrl-C will stop the process at once: {error}");
        }
        run(&cli)
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let globals = &cli.globals;
    match &cli.command {
        Command::Demo(args) => demo::run(args, globals),
        Command::Setup(args) => setup::run(args, globals),
        Command::Doctor(args) => doctor::run(args, globals),
        Command::Models(args) => models::run(args, globals),
        Command::Index(args) => index::run(args, globals),
        Command::Search(args) => search::run(args, globals),
        Command::Ask(args) => ask::run(args, globals),
        Command::Eval(args) => eval::run(args, globals),
        Command::Serve(args) => serve::run(args, globals),
        Command::Bench(args) => bench::run(args, globals),
        Command::Config(_) => config::run(&Cli::command()),
        Command::Train(args) => train::run(args, globals),
    }
}
