//! `nunatak train id-prompt`: a generator that writes a prompt for each input, learned from many tasks at once; and `train
//! connector`, the same with the language model itself in the encoder's place.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::Globals;
use crate::cli::output;
use crate::cli::pipeline_args::DEFAULT_LM;
use crate::cli::train::{LoopArgs, lm_weights};
use crate::error::{Error, Result};
use crate::eval::task_set::{self, TaskSet};
use crate::progress::Progress;
use crate::runtime::device::Device;
use crate::runtime::session::RuntimeOptions;
use crate::runtime::setup::{self, Manifest};
use crate::train::device;
use crate::train::optimiser::OptimiserSettings;
use crate::train::prompt_run::PROMPT;
use crate::train::task_prompt::MixSettings;
use crate::train::task_prompt_run::{self, GENERATOR, Places, Reading, TaskPromptRun};
use crate::train::windows::WindowSettings;

/// Options of `nunatak train id-prompt`.
#[derive(Debug, Args)]
pub struct IdPromptArgs {
    /// Learn one soft prompt for all inputs of the tasks instead of a generator, to compare with
    #[arg(long, conflicts_with_all = ["index", "init_prompt"])]
    shared: bool,
    /// Frozen encoder inside the generator: a starter encoder's name, or the folder of one of the BERT or T5 family (safetensors),
    /// which is copied beside what is learned
    #[arg(long, default_value = "all-MiniLM-L6-v2", value_name = "MODEL")]
    encoder: String,
    #[command(flatten)]
    common: GeneratorArgs,
}

/// Options of `nunatak train connector`.
#[derive(Debug, Args)]
// There is no --shared here, which the common words name.
#[command(mut_arg("lr", |lr| lr.help("Largest learning rate [default: 0.0005]")))]
pub struct ConnectorArgs {
    #[command(flatten)]
    common: GeneratorArgs,
}

/// What both take.
#[derive(Debug, Args)]
struct GeneratorArgs {
    /// Tasks: JSONL of `input`, `target`, `task`, `cluster`, `split` and perhaps `choices` or `answers`, or a folder of such
    /// files
    #[arg(long, required_unless_present = "index", conflicts_with = "index", value_name = "PATH")]
    tasks: Vec<PathBuf>,
    /// Learn to read instead: folder of the index that holds the gold passages of --questions; without those, learn to
    /// continue its passages, as a beginning for something else (--from)
    #[arg(long, value_name = "DIR")]
    index: Option<PathBuf>,
    /// Questions with `answers` and `positive_ids`; may be given several times
    #[arg(long, requires = "index", value_name = "FILE")]
    questions: Vec<PathBuf>,
    /// The learned prompt, by name, that what is written goes on from, or none [default: reader for --questions, else none]
    #[arg(long, requires = "index", value_name = "NAME")]
    behind: Option<String>,
    /// Learn from these tasks or clusters alone
    #[arg(long, value_name = "NAME", value_delimiter = ',', conflicts_with = "index")]
    only: Vec<String>,
    /// Leave these tasks or clusters out, to see how what is learned carries over to them
    #[arg(long, value_name = "NAME", value_delimiter = ',', conflicts_with_all = ["only", "index"])]
    without: Vec<String>,
    /// Frozen language model: a name or folder
    #[arg(long, default_value = DEFAULT_LM, value_name = "MODEL")]
    lm: String,
    /// Its weights (safetensors folder or GGUF file), if it is not a starter model
    #[arg(long, value_name = "PATH")]
    weights: Option<PathBuf>,
    /// Positions of a prompt
    #[arg(long, default_value_t = 32, value_name = "N")]
    positions: usize,
    /// Learned vectors before the encoder's input
    #[arg(long, default_value_t = 16, value_name = "N")]
    encoder_positions: usize,
    /// Blocks of the cross-attention network
    #[arg(long, default_value_t = 1, value_name = "N")]
    blocks: usize,
    /// Words that every prompt begins as [default: a sentence that says to do what the input asks]
    #[arg(long, value_name = "TEXT")]
    init_words: Option<String>,
    /// A soft prompt in a file (a shared one was learned) that what is written begins as, in place of words
    #[arg(long, value_name = "FILE", conflicts_with = "init_words")]
    init_prompt: Option<PathBuf>,
    /// A module of the same kind to go on from
    #[arg(long, value_name = "FILE", conflicts_with = "init_words")]
    from: Option<PathBuf>,
    /// Largest learning rate [default: 0.0005, or 0.01 with --shared]
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,
    /// Share of the run over which the rate rises
    #[arg(long, default_value_t = 0.05, value_name = "SHARE")]
    warm_up: f64,
    /// Most examples of one task in a round
    #[arg(long, default_value_t = 1000, value_name = "N")]
    cap: usize,
    /// Examples of each task held out to measure on; of a reader's questions ten times as many
    #[arg(long, default_value_t = 10, value_name = "N")]
    dev: usize,
    /// Longest input in tokens; of a longer one the beginning is lost
    #[arg(long, default_value_t = 384, value_name = "TOKENS")]
    window: usize,
    /// Tokens of an input that the encoder reads
    #[arg(long, default_value_t = 192, value_name = "TOKENS")]
    encoder_tokens: usize,
    #[command(flatten)]
    training: LoopArgs,
}

/// Tokens to a pass.
const TOKENS_PER_PASS: usize = 1536;

impl GeneratorArgs {
    fn check(&self) -> Result<()> {
        let training = &self.training;
        let counts = [self.positions, self.encoder_positions, self.blocks, self.cap, self.dev, training.batch];
        if counts.contains(&0) || training.examples == 0 || self.window < 32 || self.encoder_tokens < 16 {
            return Err(Error::request(
                "--positions, --encoder-positions, --blocks, --cap, --dev, --batch and --examples must be at least 1, \
                 --window at least 32 and --encoder-tokens at least 16",
                "leave them out for the defaults",
            ));
        }
        if !(0.0..1.0).contains(&self.warm_up) || self.lr.is_some_and(|lr| !(lr > 0.0 && lr.is_finite())) {
            return Err(Error::request(
                "--warm-up must be at least 0 and below 1, and --lr above 0",
                "leave them out for the defaults",
            ));
        }
        Ok(())
    }

    fn set(&self, progress: &dyn Progress) -> Result<TaskSet> {
        task_set::read(&self.tasks, self.training.skip_bad, progress)?.select(&self.only, &self.without)
    }

    fn run(&self, on: Device, shared: bool, encoder: Option<&str>) -> Result<TaskPromptRun> {
        let learning_rate = self.lr.unwrap_or(if shared { 1e-2 } else { 5e-4 });
        let optimiser = OptimiserSettings { learning_rate, warm_up: self.warm_up, weight_decay: 0.0, clip: 1.0 };
        let seed = self.training.seed;
        let reading = self.index.as_ref().map(|index| Reading {
            index: index.clone(),
            questions: self.questions.clone(),
            skip_bad: self.training.skip_bad,
            dev: 10 * self.dev,
            windows: WindowSettings { tokens: self.window, seed, ..WindowSettings::default() },
            behind: match &self.behind {
                Some(name) => Some(name.clone()).filter(|name| name != "none"),
                None => (!self.questions.is_empty()).then(|| "reader".to_owned()),
            },
        });
        Ok(TaskPromptRun {
            reading,
            shared,
            positions: self.positions,
            words: self.init_words.clone(),
            begin: self.init_prompt.clone(),
            encoder: encoder
                .map(|name| Path::new(name).file_name().unwrap_or(name.as_ref()).to_string_lossy().into_owned()),
            encoder_positions: self.encoder_positions,
            blocks: self.blocks,
            from: self.from.clone(),
            mix: MixSettings {
                cap: self.cap,
                dev: self.dev,
                tokens: self.window,
                encoder_tokens: self.encoder_tokens,
                seed,
            },
            trainer: self.training.settings(on, TOKENS_PER_PASS, optimiser)?,
        })
    }
}

/// Run `nunatak train id-prompt`.
pub fn run(args: &IdPromptArgs, globals: &Globals) -> Result<()> {
    train(&args.common, args.shared, Some(&args.encoder), globals)
}

/// Run `nunatak train connector`.
pub fn run_connector(args: &ConnectorArgs, globals: &Globals) -> Result<()> {
    train(&args.common, false, None, globals)
}

/// The weights of an encoder, by a starter's name or a folder, and whether it is the latter.
fn encoder_folder(name: &str, options: &RuntimeOptions, progress: &dyn Progress) -> Result<(PathBuf, bool)> {
    match Manifest::get()?.starter(name) {
        Some(starter) if starter.kind != "lm" => Ok((setup::source(starter, options, progress)?, false)),
        None if Path::new(name).is_dir() => Ok((PathBuf::from(name), true)),
        _ => {
            let hint = "name a starter encoder, such as all-MiniLM-L6-v2, or a folder with config.json, tokenizer.json and model.safetensors";
            Err(Error::model(name, "it is no starter encoder, and no folder", hint))
        }
    }
}

fn train(args: &GeneratorArgs, shared: bool, encoder: Option<&str>, globals: &Globals) -> Result<()> {
    args.check()?;
    let (options, progress) = (globals.runtime_on_cpu(), globals.progress());
    let progress = progress.as_ref();
    let set = if args.index.is_some() { None } else { Some(args.set(progress)?) };
    let run = args.run(globals.device, shared, encoder)?;
    let device = device::open(globals.device)?;
    let model = setup::locate(&args.lm, &options, progress)?;
    let lm = lm_weights(&model, args.weights.as_deref(), &options, progress)?;
    let encoder = encoder.map(|name| encoder_folder(name, &options, progress)).transpose()?;
    let (encoder, keep_encoder) = encoder.map_or((None, false), |(folder, own)| (Some(folder), own));
    let out = &args.training.out;
    let places = Places { weights: &lm, encoder: encoder.as_deref(), keep_encoder, device: &device, out };
    let record = task_prompt_run::train(&run, set.as_ref(), &model, places, args.training.resume, progress)?;
    if globals.json {
        return output::json(&record);
    }
    output::line(record.summary("examples"))?;
    let file = args.training.out.join(if shared { PROMPT } else { GENERATOR });
    let file = file.display();
    output::line(match (&args.index, args.questions.is_empty()) {
        (Some(_), true) => format!("go on from it: nunatak train ... --from {file}"),
        (Some(_), false) => format!("use it: nunatak ask \"...\" --index DIR --prompt {file}"),
        (None, _) => format!("use it: nunatak eval tasks --tasks PATH --prompt {file} --out DIR"),
    })
}
