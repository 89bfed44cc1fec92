//! Words typed: what each command takes, and what it prints.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::progress::{Progress, Quiet};
use crate::runtime::device::Device;
use crate::runtime::session::RuntimeOptions;

pub mod doctor;
pub mod models;
pub mod output;
pub mod progress;
pub mod setup;

/// What every command understands.
#[derive(Debug, Clone, clap::Args)]
pub struct Globals {
    /// Never fetch anything
    #[arg(long, global = true)]
    pub offline: bool,
    /// One JSON object a line on stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// Where models run: cpu, cuda, tensorrt or auto
    #[arg(long, global = true, default_value = "cpu", value_name = "DEVICE")]
    pub device: Device,
    /// Threads of a model; 0 takes all cores
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    pub threads: usize,
    /// No progress
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

impl Globals {
    /// How models are run.
    pub fn runtime(&self) -> RuntimeOptions {
        RuntimeOptions { device: self.device, threads: self.threads, offline: self.offline }
    }

    /// Who is told how far the work is.
    pub fn progress(&self) -> Box<dyn Progress> {
        match (self.quiet, std::io::stderr().is_terminal()) {
            (true, _) => Box::new(Quiet),
            (false, true) => Box::new(progress::Bars::default()),
            (false, false) => Box::new(progress::Lines::default()),
        }
    }
}

#[derive(Debug, Parser)]
#[command(name = "nunatak", version, about)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch ONNX Runtime and the starter models
    Setup(setup::SetupArgs),
    /// Prove that everything runs
    Doctor(doctor::DoctorArgs),
    /// The models on this machine, and more of them
    Models(models::ModelsArgs),
}

/// Run the command that was typed.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    output::init_log(cli.globals.quiet);
    let done = match &cli.command {
        Command::Setup(args) => setup::run(args, &cli.globals),
        Command::Doctor(args) => doctor::run(args, &cli.globals),
        Command::Models(args) => models::run(args, &cli.globals),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::print_error(&error);
            ExitCode::FAILURE
        }
    }
}
