//! `nunatak train candidates`: tasks whose inputs say what the language model answered before.

use std::path::PathBuf;

use clap::Args;

use crate::cli::Globals;
use crate::cli::eval::{at_least_one, open_prompts};
use crate::cli::output;
use crate::cli::pipeline_args::DEFAULT_LM;
use crate::error::{Error, Result};
use crate::eval::candidates::{self, Sampling};
use crate::eval::task_set;
use crate::read::lm::FrozenLm;
use crate::runtime::setup;

/// Options of `nunatak train candidates`.
#[derive(Debug, Args)]
pub struct CandidatesArgs {
    /// Tasks: JSONL of `input`, `target`, `task`, `cluster`, `split` and perhaps `choices` or `answers`, or a folder of such
    /// files
    #[arg(long, required = true, value_name = "PATH")]
    tasks: Vec<PathBuf>,
    /// Of these tasks or clusters alone
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// The prompt of the first pass: a soft prompt, a generator, or a folder with one for each task
    #[arg(long, value_name = "PATH")]
    prompt: Option<PathBuf>,
    /// The file of tasks to write
    #[arg(long, value_name = "FILE.jsonl")]
    out: PathBuf,
    /// Answers to each input: the greedy one, and sampled ones; equal ones are named once
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = at_least_one)]
    samples: usize,
    /// Temperature of the sampled ones
    #[arg(long, default_value_t = 1.0, value_name = "T")]
    temperature: f32,
    /// Examples of each task to train on, and to measure on, at most
    #[arg(long, default_value_t = 4000, value_name = "N", value_parser = at_least_one)]
    per_task: usize,
    /// Longest input in tokens; of a longer one the beginning is lost
    #[arg(long, default_value_t = 384, value_name = "TOKENS", value_parser = at_least_one)]
    window: usize,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 16, value_name = "TOKENS", value_parser = at_least_one)]
    max_answer: usize,
    /// Frozen language model: a name or folder
    #[arg(long, default_value = DEFAULT_LM, value_name = "MODEL")]
    lm: String,
    /// Seed of everything drawn
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Leave out up to N bad lines of the tasks
    #[arg(long, default_value_t = 0, value_name = "N")]
    skip_bad: usize,
    /// Replace a file that is there
    #[arg(long)]
    overwrite: bool,
}

/// Run `nunatak train candidates`.
pub fn run(args: &CandidatesArgs, globals: &Globals) -> Result<()> {
    if !(args.temperature > 0.0 && args.temperature.is_finite()) {
        return Err(Error::request("--temperature must be above 0", "the default is 1"));
    }
    output::check_new(&args.out, args.overwrite)?;
    let (options, progress) = (globals.runtime(), globals.progress());
    let progress = progress.as_ref();
    let set = task_set::read(&args.tasks, args.skip_bad, progress)?.select(&args.only, &[])?;
    let model = setup::model(&args.lm, &options, progress)?;
    let mut lm = FrozenLm::open(&model, &options)?;
    let precision = setup::default_precision(&options, progress)?;
    let (mut prompts, _) = open_prompts(args.prompt.as_deref(), &set, precision, (&model, &lm), &options, progress)?;
    let sampling = Sampling {
        samples: args.samples,
        temperature: args.temperature,
        per_task: args.per_task,
        window: args.window,
        longest: args.max_answer,
        seed: args.seed,
    };
    let examples = candidates::write(&set, &mut lm, &mut prompts, sampling, &args.out, progress)?;
    if globals.json {
        return output::json(&serde_json::json!({"tasks": args.out.display().to_string(), "examples": examples}));
    }
    output::line(format!("{examples} examples with candidates in {}", args.out.display()))
}
