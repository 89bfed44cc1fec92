//! `nunatak eval`: measure a pipeline over a set of questions, and compare two such runs.
//!
//! This file knows words and output; what to measure with is opened by the caller ([`run_with`]'s `open`).

use std::io::Write;
use std::path::PathBuf;

use clap::{ArgMatches, Args, FromArgMatches, Subcommand, ValueEnum};
use serde_json::{Map, Value};

use crate::cli::Globals;
use crate::cli::engine::{self, Engine, ReadingArgs, RetrievalArgs};
use crate::error::{Error, Result};
use crate::eval::compare::compare;
use crate::eval::dataset::{self, Question};
use crate::eval::out_dir::Existing;
use crate::eval::prediction::{Outcome, Retrieved};
use crate::eval::provenance::{IndexIdentity, Setup};
use crate::eval::run::{self, DEFAULT_KS, RunOptions};
use crate::index::Index;
use crate::pipeline::Found;
use crate::progress::Progress;
use crate::retrieve::Mode;
use crate::runtime::session::runtime_version;
use crate::types::Hit;

/// Measure over a set of questions: exact match, F1, recall, latency.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct EvalArgs {
    /// A run. Stands first: it looks for the subcommand before that is taken away.
    #[command(flatten)]
    pub run: MaybeRun,
    /// What else there is to do.
    #[command(subcommand)]
    pub command: Option<EvalCommand>,
}

/// The words of a run, unless there is a subcommand. (`Option<RunArgs>` would be clap's way, but its derive takes
/// options within flattened structs for absent.)
#[derive(Debug, Clone)]
pub struct MaybeRun(pub Option<RunArgs>);

impl FromArgMatches for MaybeRun {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        match matches.subcommand_name() {
            Some(_) => Ok(Self(None)),
            None => RunArgs::from_arg_matches(matches).map(|run| Self(Some(run))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for MaybeRun {
    fn augment_args(command: clap::Command) -> clap::Command {
        RunArgs::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        RunArgs::augment_args_for_update(command)
    }
}

/// What else there is to do.
#[derive(Debug, Clone, Subcommand)]
pub enum EvalCommand {
    /// Test run B against run A, question by question
    Compare(CompareArgs),
}

/// A run.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// How passages are found.
    #[command(flatten)]
    pub retrieval: RetrievalArgs,
    /// How the answer is read.
    #[command(flatten)]
    pub reading: ReadingArgs,
    /// Questions: JSONL, a DPR JSON file, a BEIR folder or one of its qrels
    #[arg(long, value_name = "FILE")]
    pub questions: PathBuf,
    /// Folder for predictions.jsonl, run.trec and report.json
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Ask only the first N questions
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub limit: Option<usize>,
    /// Who answers; `none` measures retrieval only
    #[arg(long, value_enum, default_value_t = ReaderChoice::Lm)]
    pub reader: ReaderChoice,
    /// Give the reader the gold passages instead of retrieving: what reading alone can reach
    #[arg(long)]
    pub gold: bool,
    /// Passages to retrieve
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = at_least_one)]
    pub depth: usize,
    /// Ranks at which recall is counted; those beyond the depth are left out
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_values_t = DEFAULT_KS, value_parser = at_least_one)]
    pub k: Vec<usize>,
    /// Seed of everything drawn, the intervals included
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Leave out up to N bad lines of the questions
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip_bad: usize,
    /// Go on with the run in the --out folder
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Replace the run in the --out folder
    #[arg(long)]
    pub overwrite: bool,
}

/// A comparison.
#[derive(Debug, Clone, Args)]
pub struct CompareArgs {
    /// A run: its --out folder or its predictions.jsonl
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// The run to test against it
    #[arg(value_name = "B")]
    pub b: PathBuf,
    /// Seed of resampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReaderChoice {
    /// Nobody
    None,
    /// The frozen language model
    Lm,
}

fn at_least_one(typed: &str) -> Result<usize, String> {
    match typed.parse() {
        Ok(0) => Err("it must be 1 or more".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("not a whole number".into()),
    }
}

impl RunArgs {
    /// The settings that may move a result, by their names on the command line.
    pub fn settings(&self) -> Result<Map<String, Value>> {
        let mut settings = Map::new();
        settings.insert("depth".into(), self.depth.into());
        settings.insert("gold".into(), self.gold.into());
        merge(&mut settings, &self.retrieval)?;
        if self.reader == ReaderChoice::Lm {
            merge(&mut settings, &self.reading)?;
        }
        // Where the index lies does not move a result; what it holds is recorded beside the settings.
        settings.remove("index");
        let reader = self.reader.to_possible_value();
        settings.insert("reader".into(), reader.map(|v| Value::from(v.get_name())).into());
        Ok(settings)
    }

    fn options(&self) -> Result<RunOptions> {
        let mut ks: Vec<usize> = self.k.iter().copied().filter(|k| *k <= self.depth).collect();
        ks.sort_unstable();
        ks.dedup();
        if ks.is_empty() {
            return Err(Error::request("every --k is beyond --depth", "raise --depth"));
        }
        let existing = match (self.resume, self.overwrite) {
            (true, _) => Existing::Resume,
            (_, true) => Existing::Overwrite,
            _ => Existing::Refuse,
        };
        Ok(RunOptions { ks, limit: self.limit, existing })
    }
}

/// A pipeline as a run sees it.
pub type Ask = Box<dyn FnMut(&Question) -> Result<Outcome>>;

/// What a run is made with: who answers, and where the answers come from.
pub struct Bench {
    /// What goes into the report: see [`RunArgs::settings`].
    pub setup: Setup,
    /// The pipeline.
    pub answer: Ask,
}

/// Run `nunatak eval`.
pub fn run(args: &EvalArgs, globals: &Globals) -> Result<()> {
    let progress = globals.progress();
    let mut out = std::io::stdout().lock();
    run_with(args, |args| open(args, globals, progress.as_ref()), globals.json, progress.as_ref(), &mut out)
}

/// The pipeline that `ask` would use, as a bench.
fn open(args: &RunArgs, globals: &Globals, progress: &dyn Progress) -> Result<Bench> {
    let reads = args.reader == ReaderChoice::Lm;
    let reading = reads.then_some(&args.reading);
    let Engine { mut pipeline, mode, models } =
        engine::build(&args.retrieval, reading, args.depth, args.seed, globals, progress)?;
    let mut settings = args.settings()?;
    settings.insert("mode".into(), mode.name().into());
    let index = pipeline.index();
    let setup = Setup {
        settings,
        seed: args.seed,
        models: models.into_iter().map(|(role, _, fingerprint)| (role.to_owned(), fingerprint)).collect(),
        index: Some(IndexIdentity {
            path: index.path().display().to_string(),
            manifest_sha256: index.manifest().checksum.clone(),
            passages: index.manifest().passages,
        }),
        onnxruntime: if mode == Mode::Bm25 && !reads { None } else { Some(runtime_version(&globals.runtime())?) },
    };
    let gold = args.gold;
    let mut told = false;
    let answer = move |question: &Question| {
        let found =
            if gold { gold_passages(question, pipeline.index())? } else { pipeline.find(&question.question)? };
        if let (false, Some(words)) = (told, found.cuts.words()) {
            // Said once, or it would be said for every other question of a corpus with long passages.
            tracing::warn!("question {}: {words}; further ones are not named", question.id);
            told = true;
        }
        let (answer, found) = if reads {
            let answer = pipeline.answer_from(&question.question, found, &mut |_, _| {})?;
            let trace = answer.trace.clone().unwrap_or_default();
            let latency_ms = answer.usage.latency_ms;
            let found = Found { retrieved: trace.retrieved, reranked: trace.reranked, latency_ms, ..Found::default() };
            (Some(answer), found)
        } else {
            (None, found)
        };
        let retrieved = found
            .ranking()
            .into_iter()
            .map(|hit| {
                let passage = pipeline.index().passage(hit.passage)?;
                Ok(Retrieved { key: passage.key, text: passage.text, score: hit.score })
            })
            .collect::<Result<_>>()?;
        let windows = answer.as_ref().and_then(|a| a.trace.as_ref()).map(|t| t.windows.concat());
        Ok(Outcome { answer, retrieved, reader_passages: windows.unwrap_or_default(), latency: found.latency_ms })
    };
    Ok(Bench { setup, answer: Box::new(answer) })
}

/// The gold passages of a question as if they had been found: every piece of each gold document, in order.
fn gold_passages(question: &Question, index: &Index) -> Result<Found> {
    let mut found = Found::default();
    let relevant = question.gold.iter().flatten().filter(|(_, grade)| **grade > 0).map(|(document, _)| document);
    for document in relevant {
        let mut next = index.row_of(document)?;
        let mut piece = 0;
        loop {
            found.retrieved.extend(next.map(|passage| Hit { passage, score: 1.0 }));
            piece += 1;
            next = index.row_of(&format!("{document}#{piece}"))?;
            if next.is_none() {
                break;
            }
        }
    }
    if found.retrieved.is_empty() {
        return Err(Error::request(
            "none of its gold passages is in the index",
            "leave --gold out, or name the index of this question set's corpus",
        ));
    }
    Ok(found)
}

/// Add the fields of some options to the settings.
fn merge(settings: &mut Map<String, Value>, options: &impl serde::Serialize) -> Result<()> {
    if let Value::Object(fields) = serde_json::to_value(options).map_err(Error::internal("recording settings"))? {
        settings.extend(fields);
    }
    Ok(())
}

/// Do what was typed. `open` opens the index and the models, after the questions were found to be readable;
/// the result goes to `out`.
pub fn run_with(
    args: &EvalArgs,
    open: impl FnOnce(&RunArgs) -> Result<Bench>,
    json: bool,
    progress: &dyn Progress,
    out: &mut dyn Write,
) -> Result<()> {
    let printed = match (&args.command, &args.run.0) {
        (Some(EvalCommand::Compare(args)), _) => {
            let comparison = compare(&args.a, &args.b, args.seed)?;
            if json { to_json(&comparison)? } else { comparison.table() }
        }
        (None, Some(args)) => {
            let options = args.options()?;
            let dataset = dataset::read(&args.questions, args.skip_bad)?;
            if dataset.skipped > 0 {
                progress.note(&format!("{} bad lines of {} left out", dataset.skipped, args.questions.display()));
            }
            let Bench { setup, mut answer } = open(args)?;
            let report = run::run(&dataset, setup, &args.out, &options, &mut *answer, progress)?;
            if json { to_json(&report)? } else { report.table() }
        }
        (None, None) => return Err(Error::request("nothing to measure", "say `nunatak eval --help`")),
    };
    out.write_all(printed.as_bytes()).map_err(Error::file("write", "standard output"))
}

fn to_json(value: &impl serde::Serialize) -> Result<String> {
    let mut text = serde_json::to_string(value).map_err(Error::internal("writing JSON"))?;
    text.push('\n');
    Ok(text)
}
