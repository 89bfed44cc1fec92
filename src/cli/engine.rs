//! From options to a pipeline: what `search`, `ask`, `eval` and `demo` share.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use crate::cli::Globals;
use crate::error::{Error, Result};
use crate::index::Index;
use crate::pipeline::{Depths, Pipeline};
use crate::progress::Progress;
use crate::read::decode::Decoding;
use crate::read::reader::{Reader, ReaderSettings};
use crate::read::template::TemplateKind;
use crate::rerank::CrossEncoder;
use crate::retrieve::{Mode, Retriever, open};
use crate::runtime::setup;

/// The frozen language model that is used when none is named.
pub const DEFAULT_LM: &str = "SmolLM2-135M-Instruct";

/// How passages are found.
#[derive(Debug, Clone, Args, Serialize)]
#[command(next_help_heading = "Retrieval")]
pub struct RetrievalArgs {
    /// Folder of the index
    #[arg(long, value_name = "DIR")]
    pub index: PathBuf,
    /// First stage: bm25, dense or hybrid [default: hybrid, or bm25 for an index without vectors]
    #[arg(long)]
    pub mode: Option<Mode>,
    /// Cross-encoder that re-ranks: a model's name or folder [default: none]
    #[arg(long, value_name = "MODEL")]
    pub rerank: Option<String>,
    /// How many passages it reads
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub rerank_depth: usize,
}

/// How the answer is read.
#[derive(Debug, Clone, Args, Serialize)]
#[command(next_help_heading = "Reading")]
pub struct ReadingArgs {
    /// Frozen language model: a name or folder
    #[arg(long, default_value = DEFAULT_LM, value_name = "MODEL")]
    pub lm: String,
    /// Passages that the reader sees
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub passages: usize,
    /// Put all passages into one window (default: read each in a window of its own and take the best answer)
    #[arg(long)]
    pub together: bool,
    /// Hold the answer to a stretch of a passage
    #[arg(long)]
    pub grounded: bool,
    /// Prompt: few-shot or chat
    #[arg(long, default_value = "few-shot")]
    pub template: TemplateKind,
    /// Tokens of a window, prompt and answer included
    #[arg(long, default_value_t = 2048, value_name = "TOKENS")]
    pub window: usize,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 24, value_name = "TOKENS")]
    pub max_answer: usize,
    /// Sample the answer at this temperature; 0 takes the likeliest tokens
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    pub temperature: f32,
    /// Sample among the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    pub top_p: f32,
    /// Sample among the K likeliest tokens; 0 takes all
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub top_k: usize,
    /// Weight of a passage's rank score beside the answer's log-likelihood when windows compete
    #[arg(long, default_value_t = ReaderSettings::default().score_weight, value_name = "W")]
    pub score_weight: f32,
}

impl ReadingArgs {
    fn settings(&self, seed: u64) -> Result<ReaderSettings> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::request("--temperature must be 0 or more", "0 takes the likeliest tokens"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::request("--top-p must be above 0 and at most 1", "1 keeps all tokens"));
        }
        if self.grounded && self.temperature > 0.0 {
            return Err(Error::request(
                "--grounded takes the likeliest span and cannot sample",
                "leave --temperature or --grounded out",
            ));
        }
        if self.passages == 0 || self.max_answer == 0 {
            return Err(Error::request("--passages and --max-answer must be at least 1", "the defaults are 5 and 24"));
        }
        Ok(ReaderSettings {
            template: self.template,
            grounded: self.grounded,
            window: self.window,
            score_weight: self.score_weight,
            decoding: Decoding {
                max_new_tokens: self.max_answer,
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                seed,
                ..Decoding::default()
            },
        })
    }
}

/// A pipeline with the settings that made it, for reports.
pub struct Engine {
    /// The pipeline.
    pub pipeline: Pipeline,
    /// The first stage in use.
    pub mode: Mode,
    /// Names and fingerprints of the models in use, by role.
    pub models: Vec<(&'static str, String, String)>,
}

/// Open the index and load what the options ask for. Without `reading` there is no reader.
pub fn build(
    retrieval: &RetrievalArgs,
    reading: Option<&ReadingArgs>,
    depth: usize,
    seed: u64,
    globals: &Globals,
    progress: &dyn Progress,
) -> Result<Engine> {
    let options = globals.runtime();
    let index = Arc::new(Index::open(&retrieval.index)?);
    let mode = retrieval.mode.unwrap_or(if index.dense().is_some() { Mode::Hybrid } else { Mode::Bm25 });
    let mut models = Vec::new();
    let retriever: Box<dyn Retriever> = {
        let (retriever, encoder) = open(&index, mode, &options, progress)?;
        models.extend(encoder.map(|(name, fingerprint)| ("encoder", name, fingerprint)));
        retriever
    };
    let reranker = match &retrieval.rerank {
        Some(name) => {
            let model = setup::model(name, &options, progress)?;
            models.push(("reranker", model.name(), model.fingerprint()));
            Some(CrossEncoder::open(&model, &options)?)
        }
        None => None,
    };
    let reader = match reading {
        Some(args) => {
            let settings = args.settings(seed)?;
            let model = setup::model(&args.lm, &options, progress)?;
            models.push(("lm", model.name(), model.fingerprint()));
            Some(Reader::open(&model, settings, &options)?)
        }
        None => None,
    };
    let depths = Depths {
        retrieve: depth,
        rerank: retrieval.rerank_depth,
        read: reading.map_or(0, |r| r.passages),
        apart: reading.is_none_or(|r| !r.together),
    };
    Ok(Engine { pipeline: Pipeline::new(index, retriever, reranker, reader, depths), mode, models })
}
