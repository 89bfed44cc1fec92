//! `nunatak train reranker`: options in, a model folder out.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use crate::cli::Globals;
use crate::cli::engine::first_stage;
use crate::cli::first_stage::open_retriever;
use crate::cli::output;
use crate::cli::pipeline_args::{RankingArgs, RetrievalArgs};
use crate::cli::train::LoopArgs;
use crate::error::{Error, Result};
use crate::index::Index;
use crate::progress::Progress;
use crate::rerank::CrossEncoder;
use crate::retrieve::Mode;
use crate::runtime::device::Device;
use crate::runtime::session::RuntimeOptions;
use crate::runtime::setup::{self, Manifest};
use crate::train::device;
use crate::train::optimiser::OptimiserSettings;
use crate::train::reranker::GroupSettings;
use crate::train::reranker_run::{self, MINED, Parts, RERANKER, RerankerRun};

/// What a re-ranker begins as when nothing is named.
const DEFAULT_INIT: &str = "all-MiniLM-L6-v2";
/// Tokens to a pass: more would not be faster, and takes memory.
const TOKENS_PER_PASS: usize = 4096;

/// Options of `nunatak train reranker`.
#[derive(Debug, Args)]
pub struct RerankerArgs {
    /// Folder of the index that passages come from
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Questions with `answers` or `positive_ids`; may be given several times, and a file given twice counts twice
    #[arg(long, required = true, value_name = "FILE")]
    questions: Vec<PathBuf>,
    /// Encoder or cross-encoder to begin with: a starter model, or a folder of safetensors weights
    #[arg(long, default_value = DEFAULT_INIT, value_name = "MODEL")]
    init: String,
    /// Keep only so many of its layers
    #[arg(long, value_name = "K")]
    layers: Option<usize>,
    /// Train the word embeddings too: slower, and most words are hardly seen
    #[arg(long)]
    train_words: bool,
    /// Cross-encoder to learn from
    #[arg(long, value_name = "MODEL")]
    teacher: Option<String>,
    /// Weight of what it says; the labels have the rest
    #[arg(long, default_value_t = 0.7, value_name = "W", requires = "teacher")]
    teacher_weight: f64,
    /// First stage that finds negatives [default: hybrid, or bm25 for an index without vectors]
    #[arg(long)]
    mode: Option<Mode>,
    /// Candidates it finds for a question
    #[arg(long, default_value_t = 50, value_name = "N")]
    depth: usize,
    /// File of mined negatives, to share between runs [default: mined.jsonl in the --out folder]
    #[arg(long, value_name = "FILE")]
    mined: Option<PathBuf>,
    /// Negatives in a group
    #[arg(long, default_value_t = 7, value_name = "N")]
    negatives: usize,
    /// Longest pair in tokens
    #[arg(long, default_value_t = 256, value_name = "TOKENS")]
    max_tokens: usize,
    /// Largest learning rate
    #[arg(long, default_value_t = 1e-4, value_name = "RATE")]
    lr: f64,
    /// Share of the run over which the rate rises
    #[arg(long, default_value_t = 0.1, value_name = "SHARE")]
    warm_up: f64,
    /// Decoupled weight decay
    #[arg(long, default_value_t = 0.01, value_name = "RATE")]
    weight_decay: f64,
    /// Questions to measure on, instead of holding some out
    #[arg(long, value_name = "FILE")]
    dev_questions: Option<PathBuf>,
    /// How many questions are measured on
    #[arg(long, default_value_t = 100, value_name = "N")]
    dev: usize,
    /// How many candidates of each are ranked again
    #[arg(long, default_value_t = 20, value_name = "N")]
    dev_depth: usize,
    #[command(flatten)]
    training: LoopArgs,
}

impl RerankerArgs {
    fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.warm_up) {
            return Err(Error::request("--warm-up must be at least 0 and below 1", "it is a share"));
        }
        if !(0.0..=1.0).contains(&self.teacher_weight) {
            return Err(Error::request("--teacher-weight must be between 0 and 1", "the default is 0.7"));
        }
        let counts = [
            self.training.batch,
            self.negatives,
            self.dev,
            self.dev_depth,
            self.depth,
            self.training.examples as usize,
        ];
        if counts.contains(&0) || self.max_tokens < 16 {
            return Err(Error::request(
                "--batch, --negatives, --dev, --dev-depth, --depth and --examples must be at least 1, and --max-tokens \
                 at least 16",
                "leave them out for the defaults",
            ));
        }
        if !(self.lr > 0.0 && self.lr.is_finite() && self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return Err(Error::request("--lr must be above 0, and --weight-decay 0 or more", "the default is 0.0001"));
        }
        Ok(())
    }

    fn run(&self, on: Device, retrieval: &RetrievalArgs, mode: Mode) -> Result<RerankerRun> {
        Ok(RerankerRun {
            index: self.index.clone(),
            questions: self.questions.clone(),
            dev_questions: self.dev_questions.clone(),
            skip_bad: self.training.skip_bad,
            dev: self.dev,
            dev_depth: self.dev_depth,
            retrieval: first_stage(retrieval, mode),
            depth: self.depth,
            init: self.init.clone(),
            layers: self.layers,
            train_words: self.train_words,
            teacher: self.teacher.clone().map(|name| (name, self.teacher_weight)),
            groups: GroupSettings { negatives: self.negatives, max_tokens: self.max_tokens, seed: self.training.seed },
            trainer: self.training.settings(
                on,
                TOKENS_PER_PASS,
                OptimiserSettings {
                    learning_rate: self.lr,
                    warm_up: self.warm_up,
                    weight_decay: self.weight_decay,
                    clip: 1.0,
                },
            )?,
        })
    }
}

/// Run `nunatak train reranker`.
pub fn run(args: &RerankerArgs, globals: &Globals) -> Result<()> {
    args.check()?;
    let device = device::open(globals.device)?;
    let (options, progress) = (globals.runtime_on_cpu(), globals.progress());
    let progress = progress.as_ref();
    let init = weights(&args.init, &options, progress)?;
    let index = Arc::new(Index::open(&args.index)?);
    let mode = args.mode.unwrap_or(if index.dense().is_some() { Mode::Hybrid } else { Mode::Bm25 });
    let ranking = RankingArgs { mode: Some(mode), ..RankingArgs::default() };
    let retrieval = RetrievalArgs { ranking, ..RetrievalArgs::at(&args.index) };
    let open = |retrieval: &RetrievalArgs, mode| {
        Ok(open_retriever(&index, mode, retrieval, args.depth, &options, progress, &mut Vec::new())?.0)
    };
    let mut retriever = open(&retrieval, mode)?;
    let possible: &[Mode] =
        if index.dense().is_some() { &[Mode::Hybrid, Mode::Dense, Mode::Bm25] } else { &[Mode::Bm25] };
    let others = possible
        .iter()
        .filter(|other| **other != mode)
        .map(|&other| Ok((first_stage(&retrieval, other), open(&retrieval, other)?)))
        .collect::<Result<Vec<_>>>()?;
    let teacher = match &args.teacher {
        Some(name) => Some(CrossEncoder::open(&setup::model(name, &options, progress)?, &options)?),
        None => None,
    };
    let mined = args.mined.clone().unwrap_or_else(|| args.training.out.join(MINED));
    let parts = Parts { index: index.clone(), retriever: retriever.as_mut(), others, init, teacher, mined, device };
    let record = reranker_run::train(
        &args.run(globals.device, &retrieval, mode)?,
        parts,
        &args.training.out,
        args.training.resume,
        progress,
    )?;
    if globals.json {
        return output::json(&record);
    }
    let first = record.data.pointer("/held_out/first_stage/mrr10").and_then(|v| v.as_f64()).unwrap_or_default();
    let (at, best) = record.log.best.unwrap_or_default();
    output::line(format!(
        "MRR@10 on held-out questions: first stage {first:.4}, re-ranked {best:.4} (after {at} questions; {:.2} \
         questions/s, {:.0} tokens/s)",
        record.examples_per_second, record.tokens_per_second,
    ))?;
    output::line(format!(
        "use it: nunatak search \"...\" --index DIR --rerank {}",
        args.training.out.join(RERANKER).display()
    ))
}

/// Folder of the weights of a starter model, or of one that somebody brings.
fn weights(name: &str, options: &RuntimeOptions, progress: &dyn Progress) -> Result<PathBuf> {
    let folder = PathBuf::from(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    match Manifest::get()?.starter(name) {
        Some(starter) if starter.kind != "lm" => setup::source(starter, options, progress),
        _ => Err(Error::model(
            name,
            "there is no such encoder to begin with",
            "name a starter encoder (all-MiniLM-L6-v2) or a folder with config.json and model.safetensors",
        )),
    }
}
