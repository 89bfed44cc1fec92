//! `nunatak train`: small modules around the frozen language model, from your own questions.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use crate::cli::Globals;
use crate::cli::output;
use crate::cli::pipeline_args::DEFAULT_LM;
use crate::cli::train_candidates::{self, CandidatesArgs};
use crate::cli::train_curves::{self, CurvesArgs};
use crate::cli::train_id_prompt::{self, ConnectorArgs, IdPromptArgs};
use crate::cli::train_reranker::{self, RerankerArgs};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::read::soft_prompt::PromptKind;
use crate::runtime::device::Device;
use crate::runtime::model_dir::ModelDir;
use crate::runtime::session::RuntimeOptions;
use crate::runtime::setup::{self, Manifest};
use crate::train::device;
use crate::train::ops;
use crate::train::optimiser::OptimiserSettings;
use crate::train::prompt_run::{self, PROMPT, PromptRun};
use crate::train::trainer::TrainerSettings;
use crate::train::windows::WindowSettings;

/// Options of `nunatak train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    #[command(subcommand)]
    command: TrainCommand,
}

#[derive(Debug, Subcommand)]
enum TrainCommand {
    /// A soft prompt that makes the frozen language model a reader
    Prompt(Box<PromptArgs>),
    /// A cross-encoder that ranks passages again
    Reranker(Box<RerankerArgs>),
    /// A generator that writes a prompt for each input, from many tasks at once
    IdPrompt(Box<IdPromptArgs>),
    /// The same with the language model in the encoder's place: it reads every input twice
    Connector(Box<ConnectorArgs>),
    /// Tasks with what the language model answered before, for a second prompt to learn from
    Candidates(CandidatesArgs),
    /// How several trainings went, side by side
    Curves(CurvesArgs),
}

/// What every training takes: where it is kept, how long it goes on, and in what order.
#[derive(Debug, Args)]
pub(super) struct LoopArgs {
    /// Folder for what is learned, its record and its checkpoint
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Go on from the checkpoint in the folder
    #[arg(long)]
    pub resume: bool,
    /// Examples to see (for a re-ranker, questions); more than there are means going round again
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub examples: u64,
    /// Examples to a step
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub batch: usize,
    /// Examples between two measures [default: a fifth of --examples]
    #[arg(long, value_name = "N")]
    evaluate_every: Option<u64>,
    /// Stop after so many measures that brought nothing better; 0 never stops
    #[arg(long, default_value_t = 0, value_name = "N")]
    patience: usize,
    /// Keep what there is at the end, not what measured best: where few questions are held out, measures are noisy, and the end,
    /// with its small steps, tends to be better
    #[arg(long)]
    keep_last: bool,
    /// Bad lines to leave out of each file before giving up
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub skip_bad: usize,
    /// Seed of everything drawn
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// How exact large matrix products are [default: bf16 where the processor has it, tf32 on a GPU: faster]
    #[arg(long, value_enum)]
    precision: Option<Precision>,
}

/// How exact large matrix products are, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Precision {
    /// 32-bit floats
    F32,
    /// Operands rounded to 16-bit brain floats, sums in 32 bits
    Bf16,
    /// Operands rounded to 19 bits, sums in 32 bits, on a GPU
    Tf32,
}

impl LoopArgs {
    /// Set the precision of this process's products; gives it.
    fn set_precision(&self, on_gpu: bool) -> Result<ops::Precision> {
        let precision = match self.precision {
            None => ops::Precision::fastest(on_gpu),
            Some(Precision::F32) => ops::Precision::F32,
            Some(Precision::Bf16) => ops::Precision::Bf16,
            Some(Precision::Tf32) => ops::Precision::Tf32,
        };
        ops::set_precision(precision, on_gpu)?;
        Ok(precision)
    }

    /// The settings of the loop; the precision is in force from here on. A pass has `cpu_tokens` tokens on the processor.
    pub(super) fn settings(
        &self,
        device: Device,
        cpu_tokens: usize,
        optimiser: OptimiserSettings,
    ) -> Result<TrainerSettings> {
        let on_gpu = matches!(device, Device::Cuda(_));
        let tokens_per_pass = if on_gpu { GPU_TOKENS_PER_PASS } else { cpu_tokens };
        let settings = TrainerSettings {
            precision: self.set_precision(on_gpu)?,
            examples: self.examples,
            batch: self.batch,
            tokens_per_pass,
            optimiser,
            evaluate_every: self.evaluate_every.unwrap_or(self.examples.div_ceil(5)).max(1),
            patience: self.patience,
            keep_last: self.keep_last,
            seed: self.seed,
        };
        Ok(settings)
    }
}

/// What a prompt's numbers are, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Keys and values of every layer: reads better
    States,
    /// Input embeddings: fewer numbers
    Embeddings,
}

#[derive(Debug, Args)]
struct PromptArgs {
    /// Folder of the index that holds the gold passages
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Questions with `answers` and `positive_ids`; may be given several times, and a file given twice counts twice
    #[arg(long, required = true, value_name = "FILE")]
    questions: Vec<PathBuf>,
    /// Frozen language model: a name or folder
    #[arg(long, default_value = DEFAULT_LM, value_name = "MODEL")]
    lm: String,
    /// Its weights (safetensors folder or GGUF file), if it is not a starter model
    #[arg(long, value_name = "PATH")]
    weights: Option<PathBuf>,
    /// What is learned
    #[arg(long, value_enum, default_value = "states")]
    kind: Kind,
    /// Positions of the prompt, at most
    #[arg(long, default_value_t = 64, value_name = "N")]
    positions: usize,
    /// Words that the prompt begins as [default: the few-shot template's, as far as they fit]
    #[arg(long, value_name = "TEXT")]
    init_words: Option<String>,
    /// A prompt to go on from: `reader`, which comes with nunatak, or a file; it has its own positions
    #[arg(long, value_name = "NAME|FILE", conflicts_with_all = ["init_words", "positions"])]
    from: Option<String>,
    /// Largest learning rate
    #[arg(long, default_value_t = 3e-3, value_name = "RATE")]
    lr: f64,
    /// Share of the run over which the rate rises
    #[arg(long, default_value_t = 0.05, value_name = "SHARE")]
    warm_up: f64,
    /// Questions held out to measure on
    #[arg(long, default_value_t = 100, value_name = "N")]
    dev: usize,
    /// Most tokens of passages in a window
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    window: usize,
    /// Share of windows with further passages beside the gold one
    #[arg(long, default_value_t = WindowSettings::default().several, value_name = "SHARE")]
    several: f64,
    /// Share of windows without the answer, for which the right answer is nothing
    #[arg(long, default_value_t = WindowSettings::default().absent, value_name = "SHARE")]
    absent: f64,
    /// Share of one-passage windows cut down to the sentences around the answer
    #[arg(long, default_value_t = WindowSettings::default().short, value_name = "SHARE")]
    short: f64,
    #[command(flatten)]
    training: LoopArgs,
}

/// Tokens to a pass on a GPU, which wants large products.
const GPU_TOKENS_PER_PASS: usize = 8192;
/// The same on the processor: more would not be faster, and takes memory.
const TOKENS_PER_PASS: usize = 1536;

impl PromptArgs {
    fn run(&self, device: Device) -> Result<PromptRun> {
        for (name, share) in
            [("several", self.several), ("absent", self.absent), ("short", self.short), ("warm-up", self.warm_up)]
        {
            if !(0.0..1.0).contains(&share) {
                return Err(Error::request(format!("--{name} must be at least 0 and below 1"), "it is a share"));
            }
        }
        if self.training.batch == 0
            || self.positions == 0
            || self.training.examples == 0
            || self.dev == 0
            || self.window < 32
        {
            return Err(Error::request(
                "--batch, --positions, --examples and --dev must be at least 1, and --window at least 32",
                "leave them out for the defaults",
            ));
        }
        if !(self.lr > 0.0 && self.lr.is_finite()) {
            return Err(Error::request("--lr must be above 0", "the default is 0.003"));
        }
        Ok(PromptRun {
            index: self.index.clone(),
            questions: self.questions.clone(),
            skip_bad: self.training.skip_bad,
            kind: match self.kind {
                Kind::States => PromptKind::States,
                Kind::Embeddings => PromptKind::Embeddings,
            },
            positions: self.positions,
            words: self.init_words.clone(),
            from: self.from.clone(),
            dev: self.dev,
            windows: WindowSettings {
                tokens: self.window,
                several: self.several,
                absent: self.absent,
                short: self.short,
                seed: self.training.seed,
            },
            trainer: self.training.settings(
                device,
                TOKENS_PER_PASS,
                OptimiserSettings { learning_rate: self.lr, warm_up: self.warm_up, weight_decay: 0.0, clip: 1.0 },
            )?,
        })
    }
}

/// Run `nunatak train`.
pub fn run(args: &TrainArgs, globals: &Globals) -> Result<()> {
    match &args.command {
        TrainCommand::Prompt(args) => prompt(args, globals),
        TrainCommand::Reranker(args) => train_reranker::run(args, globals),
        TrainCommand::IdPrompt(args) => train_id_prompt::run(args, globals),
        TrainCommand::Connector(args) => train_id_prompt::run_connector(args, globals),
        TrainCommand::Candidates(args) => train_candidates::run(args, globals),
        TrainCommand::Curves(args) => train_curves::run(args, globals),
    }
}

/// Where a language model's weights are: as typed, or those of a starter model.
pub(super) fn lm_weights(
    model: &ModelDir,
    typed: Option<&Path>,
    options: &RuntimeOptions,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    match (typed, Manifest::get()?.starter(model.stem())) {
        (Some(path), _) => Ok(path.to_path_buf()),
        (None, Some(starter)) => setup::source(starter, options, progress),
        (None, None) => Err(Error::model(
            model.name(),
            "only its graphs are kept, and training needs its weights",
            "say where they are with --weights",
        )),
    }
}

fn prompt(args: &PromptArgs, globals: &Globals) -> Result<()> {
    let run = args.run(globals.device)?;
    let device = device::open(globals.device)?;
    let (options, progress) = (globals.runtime_on_cpu(), globals.progress());
    let model = setup::locate(&args.lm, &options, progress.as_ref())?;
    let weights = lm_weights(&model, args.weights.as_deref(), &options, progress.as_ref())?;
    let record = prompt_run::train(
        &run,
        &model,
        (&weights, &device),
        &args.training.out,
        args.training.resume,
        progress.as_ref(),
    )?;
    if globals.json {
        return output::json(&record);
    }
    output::line(record.summary("questions"))?;
    output::line(format!(
        "use it: nunatak ask \"...\" --index DIR --prompt {}",
        args.training.out.join(PROMPT).display()
    ))
}
