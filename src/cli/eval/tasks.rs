//! `nunatak eval tasks`: what a prompt, or a generator of prompts, makes of many tasks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::cli::Globals;
use crate::cli::output;
use crate::cli::pipeline_args::DEFAULT_LM;
use crate::error::{Error, Result};
use crate::eval::out_dir::REPORT;
use crate::eval::task_set::{self, TaskSet, draw, input_tokens};
use crate::eval::tasks::{self, Prompts, TasksOptions};
use crate::export::Precision;
use crate::progress::Progress;
use crate::read::lm::FrozenLm;
use crate::read::prefix::{Prefix, check_target};
use crate::read::prompt_generator::PromptGenerator;
use crate::read::prompts::{self, Found};
use crate::read::soft_prompt::SoftPrompt;
use crate::runtime::model_dir::ModelDir;
use crate::runtime::session::RuntimeOptions;
use crate::runtime::setup;

/// Tasks.
#[derive(Debug, Clone, Args)]
pub struct TasksArgs {
    /// Tasks: JSONL of `input`, `target`, `task`, `cluster`, `split` and perhaps `choices` or `answers`, or a folder of such
    /// files
    #[arg(long, required = true, value_name = "PATH")]
    pub tasks: Vec<PathBuf>,
    /// Measure these tasks or clusters alone
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Leave these tasks or clusters out
    #[arg(long, value_name = "NAME", value_delimiter = ',', conflicts_with = "only")]
    pub without: Vec<String>,
    /// Folder for predictions.jsonl and report.json
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// A generator or a soft prompt, by name (`tasks` comes with the program) or in a file that `nunatak train` wrote, or a
    /// folder with a prompt TASK.safetensors for each task; without it the model is given the input alone
    #[arg(long, value_name = "NAME|PATH", conflicts_with = "shots")]
    pub prompt: Option<PathBuf>,
    /// Show the model so many training examples of the task before the input instead
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub shots: usize,
    /// Frozen language model: a name or folder
    #[arg(long, default_value = DEFAULT_LM, value_name = "MODEL")]
    pub lm: String,
    /// Measure how likely the target is, too: one more pass for each example, and the most sensitive measure
    #[arg(long)]
    pub likelihood: bool,
    /// Examples of each task, at most
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = super::at_least_one)]
    pub per_task: usize,
    /// Longest input in tokens; of a longer one the beginning is lost
    #[arg(long, default_value_t = 384, value_name = "TOKENS", value_parser = super::at_least_one)]
    pub window: usize,
    /// Precision of the encoder inside a generator: int8, fp16 or fp32 [default: int8, or fp16 on a GPU]
    #[arg(long, value_name = "PRECISION")]
    pub encoder_precision: Option<Precision>,
    /// Seed of everything drawn, the intervals included
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Leave out up to N bad lines of the tasks
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub skip_bad: usize,
    /// Replace the run in the --out folder
    #[arg(long)]
    pub overwrite: bool,
}

/// Tokens of an example that is shown: a few long ones would fill the window.
const SHOT_TOKENS: usize = 256;

/// Run `nunatak eval tasks`.
pub fn run(args: &TasksArgs, globals: &Globals) -> Result<()> {
    if args.out.join(REPORT).exists() && !args.overwrite {
        let hint = "give another --out, or replace it (--overwrite)";
        return Err(Error::bad_file(&args.out, "another run lies in this folder", hint));
    }
    let (options, progress) = (globals.runtime(), globals.progress());
    let progress = progress.as_ref();
    let set = task_set::read(&args.tasks, args.skip_bad, progress)?.select(&args.only, &args.without)?;
    let model = setup::model(&args.lm, &options, progress)?;
    let mut lm = FrozenLm::open(&model, &options)?;
    let (mut prompts, hash) = if args.shots > 0 {
        (Prompts::PerTask(shots(args, &set, &lm)?), None)
    } else {
        let own = args.encoder_precision.map_or_else(|| setup::default_precision(&options, progress), Ok)?;
        open_prompts(args.prompt.as_deref(), &set, own, (&model, &lm), &options, progress)?
    };
    let settings = json!({
        "tasks": set.sha256,
        "names": set.tasks.keys().collect::<Vec<_>>(),
        "lm": model.fingerprint(),
        "prompt": args.prompt.as_ref().map(|path| path.display().to_string()),
        "prompt_hash": hash,
        "shots": args.shots,
        "per_task": args.per_task,
        "window": args.window,
        "seed": args.seed,
    });
    let measured =
        TasksOptions { per_task: args.per_task, window: args.window, likelihood: args.likelihood, seed: args.seed };
    let report = tasks::run(&set, &mut lm, &mut prompts, measured, settings, &args.out, progress)?;
    if globals.json {
        return output::json(&report);
    }
    output::line(report.table().trim_end())
}

/// What stands before inputs: what the name or the file or the folder `path` stands for, or nothing; and its hash, but for a folder.
pub(in crate::cli) fn open_prompts(
    path: Option<&Path>,
    set: &TaskSet,
    precision: Precision,
    (model, lm): (&ModelDir, &FrozenLm),
    options: &RuntimeOptions,
    progress: &dyn Progress,
) -> Result<(Prompts, Option<String>)> {
    match path {
        None => Ok((Prompts::Fixed(Prefix::Words(Vec::new())), None)),
        Some(path) if path.is_dir() && !prompts::is_shipped(&path.to_string_lossy()) => {
            Ok((Prompts::PerTask(of_folder(path, set, model, lm)?), None))
        }
        Some(path) => of_file(path, precision, (model, lm), options, progress),
    }
}

/// A soft prompt or a generator, whichever the file holds, and its hash.
fn of_file(
    path: &Path,
    precision: Precision,
    (model, lm): (&ModelDir, &FrozenLm),
    options: &RuntimeOptions,
    progress: &dyn Progress,
) -> Result<(Prompts, Option<String>)> {
    let found = prompts::find_any(&path.to_string_lossy())?;
    let (what, hash) = (format!("the prompt {}", path.display()), Some(found.hash().to_owned()));
    let file = match found {
        Found::Soft(prompt) => {
            check_target(&what, &prompt.description.target, model, lm.shape())?;
            return Ok((Prompts::Fixed(Prefix::Learned(prompt)), hash));
        }
        Found::Generator(file) => file,
    };
    check_target(&what, &file.description.target, model, lm.shape())?;
    if let Some(behind) = &file.description.behind {
        let hint = "train one with `nunatak train id-prompt --tasks PATH`";
        return Err(Error::request(format!("this generator was learned behind {}, to read", behind.name), hint));
    }
    let generator = PromptGenerator::open(&file, precision, options, progress)?;
    Ok((Prompts::Generated(Box::new(generator)), hash))
}

/// A soft prompt for each task, from a folder.
fn of_folder(folder: &Path, set: &TaskSet, model: &ModelDir, lm: &FrozenLm) -> Result<BTreeMap<String, Prefix>> {
    let mut prompts = BTreeMap::new();
    for task in set.tasks.keys() {
        let path = folder.join(format!("{task}.safetensors"));
        if path.is_file() {
            let (what, prompt) = (format!("the prompt {}", path.display()), SoftPrompt::load(&path)?);
            check_target(&what, &prompt.description.target, model, lm.shape())?;
            prompts.insert(task.clone(), Prefix::Learned(prompt));
        }
    }
    Ok(prompts)
}

/// Training examples of each task as words; a task without any has none.
fn shots(args: &TasksArgs, set: &TaskSet, lm: &FrozenLm) -> Result<BTreeMap<String, Prefix>> {
    let tokenizer = lm.tokenizer();
    let mut prompts = BTreeMap::new();
    for (name, task) in &set.tasks {
        let mut words = Vec::new();
        for example in draw(&task.train, args.shots, args.seed) {
            words.extend(input_tokens(tokenizer, &example.input, SHOT_TOKENS)?.0);
            words.extend(tokenizer.encode(&format!(" {}\n\n", example.target), false)?);
        }
        prompts.insert(name.clone(), Prefix::Words(words));
    }
    Ok(prompts)
}
