//! The words of the command line that say how a pipeline finds, ranks and reads, with their defaults, and what is refused of them.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::cli::eval::at_least_one;
use crate::error::{Error, Result};
use crate::index::recall;
use crate::progress::Progress;
use crate::read::choose::{Choice, Extent};
use crate::read::decode::Decoding;
use crate::read::prompts;
use crate::read::reader::ReaderSettings;
use crate::read::reading_prompt::two_of_a_name;
use crate::read::recursion::{Recursion, Sampling};
use crate::read::remote::RemoteLm;
use crate::read::template::TemplateKind;
use crate::retrieve::{Candidates, DENSE_WEIGHT, Fusion, Mode, PAIR_WEIGHT};
use crate::runtime::device::Device;
use crate::runtime::model_dir::ModelDir;
use crate::runtime::session::RuntimeOptions;
use crate::runtime::setup;
use crate::runtime::tokenizer::{TOKENIZER, TextTokenizer};

/// The frozen language model that is used when none is named.
pub const DEFAULT_LM: &str = "SmolLM2-135M-Instruct";
/// The cross-encoder that comes with the program.
const DEFAULT_RERANKER: &str = "reranker";
/// What is typed for no cross-encoder.
const NO_RERANKER: &str = "none";
/// Passages a cross-encoder reads.
const RERANK_DEPTH: usize = 50;
/// Passages the reader sees.
pub(super) const PASSAGES: usize = 5;
/// Weight of a cross-encoder's score when windows compete: it learned the softmax of its scores as the probability of
/// being the right passage, so the score is that log-probability but for a constant, as the likelihood is the answer's.
const RERANK_SCORE_WEIGHT: f32 = 1.0;
/// Most answers that are sampled from a window: they are decoded in one batch.
const MOST_SAMPLES: usize = 64;

/// How passages are found.
#[derive(Debug, Clone, Args, Serialize)]
#[command(next_help_heading = "Retrieval")]
pub struct RetrievalArgs {
    /// Folder of the index, or milvus://host:port/collection
    // Where it lies does not move a result; what it holds is recorded beside the settings.
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    pub index: PathBuf,
    /// Find only passages whose metadata meets these conditions: 'source=wiki year>=1990'; `nunatak index info` lists the
    /// fields
    #[arg(long, value_name = "CONDITIONS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// How they are found and ranked.
    #[command(flatten)]
    #[serde(flatten)]
    pub ranking: RankingArgs,
}

/// How passages are found and ranked, in whatever index.
#[derive(Debug, Clone, Args, Serialize)]
#[command(next_help_heading = "Retrieval")]
pub struct RankingArgs {
    /// First stage: bm25, dense or hybrid [default: hybrid, or bm25 for an index without vectors]
    #[arg(long)]
    pub mode: Option<Mode>,
    /// How hybrid fuses: rrf (ranks only), or convex (weighs scores)
    #[arg(long, value_enum, default_value = "convex")]
    pub fusion: FusionKind,
    /// Weight of the cosine in convex fusion; words have the rest
    #[arg(long, default_value_t = DENSE_WEIGHT, value_name = "W")]
    pub dense_weight: f32,
    /// What two words that stand side by side in the question and in a passage add to BM25 in convex fusion: at 1 as much as a word
    /// does on average
    #[arg(long, default_value_t = PAIR_WEIGHT, value_name = "W")]
    pub pair_weight: f32,
    /// How much a word that stands in a passage again counts for BM25 [default: 1.2, beside vectors 0.4]
    #[arg(long, value_name = "K1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bm25_k1: Option<f32>,
    /// How much BM25 holds a passage's length against it, 0 to 1 [default: 0.75]
    #[arg(long, value_name = "B")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bm25_b: Option<f32>,
    /// Candidates by words that hybrid fuses; 0 is as many as --depth, at least 100
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bm25_depth: Option<usize>,
    /// Candidates by meaning that hybrid fuses; 0 is as many as --depth, at least 100
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dense_depth: Option<usize>,
    /// Part of the exact nearest vectors that walking the graph is to find, for example 0.99: the beam is as wide as that takes,
    /// measured once on texts of this index that are like questions, and kept in its recall.json
    #[arg(long, value_name = "R", conflicts_with_all = ["exact", "ef"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recall: Option<f32>,
    /// Width of the beam that walks the graph, never less than the candidates [default: four times these, at least 128]
    #[arg(long, value_name = "N", conflicts_with = "exact", value_parser = at_least_one)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ef: Option<usize>,
    /// Compare the question with every vector instead of walking the graph
    #[arg(long)]
    pub exact: bool,
    /// Cross-encoder that re-ranks: a model's name or folder, or none
    #[arg(long, default_value = DEFAULT_RERANKER, value_name = "MODEL")]
    pub rerank: String,
    /// How many passages it reads at most
    #[arg(long, default_value_t = RERANK_DEPTH, value_name = "N")]
    pub rerank_depth: usize,
    /// Weight of the first stage's score beside its own [default: what it learned for this first stage, else 0]
    #[arg(long, value_name = "W")]
    pub rerank_prior: Option<f32>,
    /// Where the encoder runs, if not on --device
    #[arg(long, value_name = "DEVICE")]
    #[serde(skip)]
    pub encoder_device: Option<Device>,
    /// Where the cross-encoder runs, if not on --device
    #[arg(long, value_name = "DEVICE")]
    #[serde(skip)]
    pub reranker_device: Option<Device>,
    /// Stop it after so many passages in a row that did not come among the best (those that the reader sees, else
    /// ten); 0 never stops. `nunatak eval patience` says what that loses
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub rerank_patience: usize,
}

/// How two rankings become one, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FusionKind {
    /// Reciprocal ranks
    Rrf,
    /// Weighted scores
    Convex,
}

/// How the answer is read.
#[derive(Debug, Clone, Args, Serialize)]
#[command(next_help_heading = "Reading")]
pub struct ReadingArgs {
    /// Frozen language model: a name or folder
    #[arg(long, default_value = DEFAULT_LM, value_name = "MODEL")]
    pub lm: String,
    /// Ask a language model behind an endpoint of OpenAI's form (vLLM, llama.cpp's server), which --lm names there:
    /// http://host:8000/v1. It takes prompts in words only
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lm_url: Option<String>,
    /// Its tokenizer: a tokenizer.json, a folder with one, or the name of a model here. Windows are measured by it, and sent as
    /// tokens. Without it they are measured by the tokenizer of the default language model and sent as text
    #[arg(long, value_name = "FILE", requires = "lm_url")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lm_tokenizer: Option<String>,
    /// Where the language model runs, if not on --device
    #[arg(long, value_name = "DEVICE")]
    #[serde(skip)]
    pub reader_device: Option<Device>,
    /// Passages that the reader sees [default: 5, or as many as fit --budget]
    #[arg(long, value_name = "N")]
    pub passages: Option<usize>,
    /// Tokens of passages that the reader sees, over all windows: passages are taken best first until it is full
    #[arg(long, value_name = "TOKENS")]
    pub budget: Option<usize>,
    /// Passages to a window
    #[arg(long, default_value_t = 1, value_name = "N", conflicts_with = "together")]
    pub per_window: usize,
    /// Put all passages into one window
    #[arg(long)]
    pub together: bool,
    /// Let the reader see passages that say nearly what a better one says, too
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keep_duplicates: bool,
    /// How windows compete: best (the answer that looks best in one), or vote (windows that say the same add up)
    #[arg(long, default_value_t = ReaderSettings::default().choice, value_name = "HOW")]
    pub choose: Choice,
    /// Read all passages, those too in which there can be no better answer any more. The answer is the same: it is for `eval sweep`,
    /// and to see what they say
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_all: bool,
    /// Hold the answer to a stretch of a passage
    #[arg(long)]
    pub grounded: bool,
    /// Read a question twice, the second time with the answers of the first: textual (behind a soft prompt), neural (behind
    /// vectors that a connector writes from the model's own states), auto (only where the first answer is not sure), or none
    #[arg(long, default_value_t = Recursion::None, value_name = "HOW")]
    #[serde(skip_serializing_if = "is_none")]
    pub recursion: Recursion,
    /// What stands before the windows in the second pass: a soft prompt's name or file, or a connector's file [default: what
    /// stood before them in the first]
    #[arg(long, value_name = "NAME|FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second: Option<String>,
    /// Answers that are sampled for the second pass in each of the two best windows; 0 leaves it at what the windows said
    /// [default: 4]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
    /// Confidence from which `--recursion auto` leaves an answer as it is [default: 0.5]
    #[arg(long, value_name = "P")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sure: Option<f32>,
    /// Learned prompt, or generator of prompts: a name, a file that `nunatak train` wrote, or none [default: reader, for
    /// the default language model]
    #[arg(long, value_name = "NAME|FILE")]
    pub prompt: Option<String>,
    /// Further prompts over the same language model, by name: those of `nunatak serve`, where a request chooses.
    #[arg(skip)]
    #[serde(skip)]
    pub also_prompts: Vec<NamedPrompt>,
    /// Prompt in words, without a learned one: few-shot, chat or plain
    #[arg(long)]
    pub template: Option<TemplateKind>,
    /// Memory for the states of passages already read, in MB: a passage that comes again is not computed again, and
    /// answers stay the same; `nunatak index warm` keeps them on disk [default: 256, on a GPU 0, where reading is as
    /// fast]
    #[arg(long, value_name = "MB")]
    pub passage_cache: Option<u64>,
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
    /// Weight of a passage's rank score beside the answer's log-likelihood when windows compete [default: 10, or 1
    /// behind a cross-encoder]
    #[arg(long, value_name = "W")]
    pub score_weight: Option<f32>,
    /// Withhold an answer whose probability of being right is below this; 0 gives them all
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    pub min_confidence: f32,
    /// Where that probability comes from: a file of `eval calibrate` [default: the one that is built in]
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub calibration: Option<PathBuf>,
}

/// A further prompt, as it was typed: `NAME=PROMPT`, or `PROMPT`, which then is its own name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPrompt {
    /// What it is called here.
    pub name: String,
    /// A prompt's name or file, or `none`.
    pub prompt: String,
}

impl FromStr for NamedPrompt {
    type Err = Infallible;

    fn from_str(typed: &str) -> std::result::Result<Self, Infallible> {
        let (name, prompt) = match typed.split_once('=') {
            Some((name, prompt)) if !name.is_empty() && !name.contains(['/', '\\']) => (name.to_owned(), prompt),
            _ => (prompts::called(typed), typed),
        };
        Ok(Self { name, prompt: prompt.to_owned() })
    }
}

impl NamedPrompt {
    /// What it stands for; nothing where it is a prompt in words.
    pub(super) fn find(&self) -> Result<Option<prompts::Found>> {
        (self.prompt != prompts::NONE).then(|| prompts::find_any(&self.prompt)).transpose()
    }
}

/// Whether questions are read once: what is not asked for is not recorded, and older records stay comparable.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_none(recursion: &Recursion) -> bool {
    *recursion == Recursion::None
}

impl RetrievalArgs {
    /// The defaults over this index.
    pub fn at(index: &Path) -> Self {
        Self { index: index.to_path_buf(), filter: None, ranking: RankingArgs::default() }
    }
}

impl Default for RankingArgs {
    fn default() -> Self {
        Self {
            bm25_k1: None,
            bm25_b: None,
            mode: None,
            fusion: FusionKind::Convex,
            dense_weight: DENSE_WEIGHT,
            pair_weight: PAIR_WEIGHT,
            bm25_depth: None,
            dense_depth: None,
            recall: None,
            ef: None,
            exact: false,
            rerank: DEFAULT_RERANKER.to_owned(),
            rerank_depth: RERANK_DEPTH,
            rerank_prior: None,
            encoder_device: None,
            reranker_device: None,
            rerank_patience: 0,
        }
    }
}

impl RankingArgs {
    /// How two rankings become one.
    pub(crate) fn fusion(&self) -> Result<Fusion> {
        let (dense, pairs) = (self.dense_weight, self.pair_weight);
        match self.fusion {
            FusionKind::Rrf => Ok(Fusion::Rrf),
            FusionKind::Convex if !(0.0..=1.0).contains(&dense) => {
                Err(Error::request("--dense-weight must be between 0 and 1", format!("the default is {DENSE_WEIGHT}")))
            }
            FusionKind::Convex if !(pairs.is_finite() && pairs >= 0.0) => {
                Err(Error::request("--pair-weight must be 0 or more", format!("the default is {PAIR_WEIGHT}")))
            }
            FusionKind::Convex => Ok(Fusion::Convex { dense, pairs }),
        }
    }

    /// How many candidates each side of hybrid search gives, at least `least` where nothing is said.
    pub(crate) fn candidates(&self, least: usize) -> Candidates {
        let said = |depth: Option<usize>| depth.filter(|&depth| depth > 0);
        Candidates { least, words: said(self.bm25_depth), meaning: said(self.dense_depth) }
    }

    /// Fail on options that say nothing to this first stage.
    pub(super) fn check(&self, mode: Mode) -> Result<()> {
        let Candidates { words, meaning, .. } = self.candidates(0);
        if mode != Mode::Hybrid && (words.is_some() || meaning.is_some()) {
            return Err(Error::request(
                format!(
                    "--bm25-depth and --dense-depth are of the two sides of hybrid search, and this is --mode {mode}"
                ),
                "leave them out: --depth says how many candidates one side gives",
            ));
        }
        if mode == Mode::Bm25 && (self.recall.is_some() || self.ef.is_some()) {
            return Err(Error::request(
                "--recall and --ef are of the graph of vectors, which --mode bm25 does not walk",
                "leave them out, or say --mode dense or hybrid over an index with vectors",
            ));
        }
        self.recall.map_or(Ok(()), recall::check_wanted)
    }

    /// Whether a cross-encoder ranks last.
    pub(super) fn reranks(&self) -> bool {
        self.rerank != NO_RERANKER
    }
}

impl ReadingArgs {
    /// The defaults with this language model.
    pub fn with_lm(lm: &str) -> Self {
        let settings = ReaderSettings::default();
        Self {
            lm: lm.to_owned(),
            lm_url: None,
            lm_tokenizer: None,
            reader_device: None,
            passages: None,
            budget: None,
            per_window: 1,
            together: false,
            keep_duplicates: false,
            choose: settings.choice,
            read_all: false,
            grounded: settings.grounded,
            recursion: Recursion::None,
            second: None,
            samples: None,
            sure: None,
            prompt: None,
            also_prompts: Vec::new(),
            template: None,
            passage_cache: None,
            window: settings.window,
            max_answer: settings.decoding.max_new_tokens,
            temperature: settings.decoding.temperature,
            top_p: settings.decoding.top_p,
            top_k: settings.decoding.top_k,
            score_weight: None,
            min_confidence: 0.0,
            calibration: None,
        }
    }

    /// The learned prompt, or the generator of prompts, that is asked for, or that stands ready for this model, with what it is
    /// called; nothing where words are to be read behind.
    pub(super) fn learned_prompt(&self, model: &ModelDir) -> Result<Option<(String, prompts::Found)>> {
        match (self.prompt.as_deref(), self.template) {
            (Some(prompts::NONE), _) => Ok(None),
            (Some(_), Some(_)) => Err(Error::request(
                "a learned prompt has a template of its own",
                "leave --template out, or say --prompt none",
            )),
            (Some(name), None) => prompts::find_any(name).map(|prompt| Some((name.to_owned(), prompt))),
            (None, Some(_)) => Ok(None),
            (None, None) => Ok(prompts::default_for(model)?.map(|(name, prompt)| (name, prompts::Found::Soft(prompt)))),
        }
    }

    /// Fail where an endpoint is named beside a learned prompt, or beside a choice of prompts.
    fn check_endpoint(&self) -> Result<()> {
        let learned = self.prompt.as_deref().is_some_and(|prompt| prompt != prompts::NONE);
        if self.lm_url.is_some() && (learned || !self.also_prompts.is_empty()) {
            return Err(Error::request(
                "a learned prompt goes into a model as embeddings, and an endpoint takes text only",
                "leave --prompt and --also-prompt out: --template few-shot stands in for them",
            ));
        }
        Ok(())
    }

    /// Fail where a prompt is named that there is not, or whose file is broken, or where two of them have one name, or which an
    /// endpoint does not take.
    pub(super) fn check_prompts(&self) -> Result<()> {
        self.check_endpoint()?;
        let usual = self.prompt.as_deref();
        for named in usual.into_iter().chain(self.second.as_deref()).filter(|name| *name != prompts::NONE) {
            prompts::find_any(named)?;
        }
        let mut names: Vec<String> = usual.map(prompts::called).into_iter().collect();
        for also in &self.also_prompts {
            also.find()?;
            if names.contains(&also.name) {
                return Err(two_of_a_name(&also.name));
            }
            names.push(also.name.clone());
        }
        Ok(())
    }

    /// The language model that is asked for behind an endpoint.
    pub(super) fn remote(&self, options: &RuntimeOptions, progress: &dyn Progress) -> Result<Option<RemoteLm>> {
        let Some(url) = &self.lm_url else { return Ok(None) };
        self.check_endpoint()?;
        let named = self.lm_tokenizer.as_deref().unwrap_or(DEFAULT_LM);
        let path = Path::new(named);
        let tokenizer = if path.join(TOKENIZER).is_file() {
            TextTokenizer::from_file(&path.join(TOKENIZER), &self.lm)?
        } else if path.is_file() || named.contains(['/', '\\']) {
            TextTokenizer::from_file(path, &self.lm)?
        } else {
            TextTokenizer::open(&setup::locate(named, options, progress)?)?
        };
        RemoteLm::new(url, &self.lm, tokenizer, self.lm_tokenizer.is_some()).map(Some)
    }

    /// How many passages are offered to the reader.
    pub(super) fn passages(&self) -> usize {
        self.passages.unwrap_or(if self.budget.is_some() { usize::MAX } else { PASSAGES })
    }

    /// The weight of the rank score that is asked for, or that fits what ranks last.
    pub fn score_weight(&self, retrieval: &RetrievalArgs) -> f32 {
        let fitting =
            if retrieval.ranking.reranks() { RERANK_SCORE_WEIGHT } else { ReaderSettings::default().score_weight };
        self.score_weight.unwrap_or(fitting)
    }

    fn check_recursion(&self) -> Result<()> {
        if self.sure.is_some_and(|sure| !(0.0..=1.0).contains(&sure)) {
            return Err(Error::request("--sure is a probability, between 0 and 1", "the default is 0.5"));
        }
        if self.samples.is_some_and(|samples| samples > MOST_SAMPLES) {
            return Err(Error::request(format!("--samples must be at most {MOST_SAMPLES}"), "the default is 4"));
        }
        if self.sure.is_some() && self.recursion != Recursion::Auto {
            return Err(Error::request("--sure says when --recursion auto reads again", "add --recursion auto"));
        }
        if (self.second.is_some() || self.samples.is_some()) && self.recursion == Recursion::None {
            return Err(Error::request(
                "--second and --samples are for a second pass, and there is none",
                "add --recursion textual, neural or auto",
            ));
        }
        Ok(())
    }

    pub(super) fn settings(&self, retrieval: &RetrievalArgs, seed: u64) -> Result<ReaderSettings> {
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
        if !(0.0..=1.0).contains(&self.min_confidence) {
            return Err(Error::request(
                "--min-confidence is a probability, between 0 and 1",
                "0 gives every answer; `nunatak eval` shows what a threshold costs",
            ));
        }
        self.check_recursion()?;
        if [self.passages(), self.max_answer, self.per_window, self.budget.unwrap_or(1)].contains(&0) {
            return Err(Error::request(
                "--passages, --budget, --per-window and --max-answer must be at least 1",
                "leave them out for the defaults",
            ));
        }
        Ok(ReaderSettings {
            template: self.template.unwrap_or_default(),
            grounded: self.grounded,
            window: self.window,
            choice: self.choose,
            extent: if self.read_all { Extent::All } else { Extent::Deciding },
            score_weight: self.score_weight(retrieval),
            decoding: Decoding {
                max_new_tokens: self.max_answer,
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                seed,
                ..Decoding::default()
            },
            sampling: Sampling { answers: self.samples.unwrap_or(Sampling::default().answers), ..Sampling::default() },
        })
    }
}

/// Add the options of reading to the settings, with what stands for those that were left out.
pub fn merge_reading(
    settings: &mut Map<String, Value>,
    reading: &ReadingArgs,
    retrieval: &RetrievalArgs,
) -> Result<()> {
    merge(settings, reading)?;
    settings.insert("score_weight".into(), reading.score_weight(retrieval).into());
    if reading.budget.is_none() {
        settings.insert("passages".into(), reading.passages().into());
    }
    Ok(())
}

/// Add the fields of some options to the settings.
pub fn merge(settings: &mut Map<String, Value>, options: &impl Serialize) -> Result<()> {
    if let Value::Object(fields) = serde_json::to_value(options).map_err(Error::internal("recording settings"))? {
        settings.extend(fields);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, prompt: &str) -> NamedPrompt {
        NamedPrompt { name: name.to_owned(), prompt: prompt.to_owned() }
    }

    #[test]
    fn a_further_prompt_has_the_name_that_it_is_given_or_its_own() {
        for (typed, name, prompt) in [
            ("tasks", "tasks", "tasks"),
            ("law=runs/a=b.safetensors", "law", "runs/a=b.safetensors"),
            ("./a=b.safetensors", "a=b", "./a=b.safetensors"),
            ("none", "none", "none"),
        ] {
            assert_eq!(typed.parse(), Ok(named(name, prompt)));
        }
    }

    #[test]
    fn prompts_are_found_and_told_apart_before_anything_is_loaded() {
        let with = |prompt: Option<&str>, also: &[(&str, &str)]| {
            let also_prompts = also.iter().map(|(name, prompt)| named(name, prompt)).collect();
            let prompt = prompt.map(str::to_owned);
            ReadingArgs { prompt, also_prompts, ..ReadingArgs::with_lm(DEFAULT_LM) }.check_prompts()
        };
        let problem = |result: Result<()>| result.unwrap_err().to_string();
        assert!(with(None, &[("tasks", "tasks"), ("words", "none")]).is_ok());
        assert!(problem(with(None, &[("law", "nowhere")])).contains("there is no prompt nowhere"));
        assert!(problem(with(Some("reader"), &[("reader", "tasks")])).contains("two prompts are called reader"));
        assert!(problem(with(None, &[("a", "none"), ("a", "tasks")])).contains("two prompts are called a"));
        let lm_url = Some("http://127.0.0.1:8000/v1".to_owned());
        let remote = ReadingArgs { lm_url, also_prompts: vec![named("a", "none")], ..ReadingArgs::with_lm(DEFAULT_LM) };
        assert!(problem(remote.check_prompts()).contains("an endpoint takes text only"));
    }
}
