//! `nunatak eval`: measure a pipeline over a set of questions, and compare two such runs.
//!
//! This file knows words and output; what to measure with is opened by the caller ([`run_with`]'s `open`).

mod open;
mod tasks;

pub(super) use tasks::open_prompts;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, FromArgMatches, Subcommand, ValueEnum};
use serde_json::{Map, Value};

use crate::cli::Globals;
use crate::cli::output;
use crate::cli::pipeline_args::{ReadingArgs, RetrievalArgs, merge, merge_reading};
use crate::error::{Error, Result};
use crate::eval::compare::compare;
use crate::eval::dataset::{self, Question};
use crate::eval::fit;
use crate::eval::gate;
use crate::eval::out_dir::Existing;
use crate::eval::page;
use crate::eval::patience;
use crate::eval::prediction::Outcome;
use crate::eval::provenance::Setup;
use crate::eval::run::{self, DEFAULT_KS, RunOptions};
use crate::eval::sweep;
use crate::progress::Progress;

/// Measure over a set of questions: exact match, F1, recall, latency.
#[derive(Debug, Clone, Args)]
#[command(subcommand_negates_reqs = true)]
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
            Some(name) => no_run_beside(name, matches).map(|()| Self(None)),
            None => RunArgs::from_arg_matches(matches).map(|run| Self(Some(run))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Fail if an option of a run was typed before the subcommand `name`. (clap's `args_conflicts_with_subcommands` would refuse the
/// global options there, too.)
fn no_run_beside(name: &str, matches: &ArgMatches) -> Result<(), clap::Error> {
    let run = RunArgs::augment_args(clap::Command::new("eval"));
    let typed = |option: &&Arg| matches.value_source(option.get_id().as_str()) == Some(ValueSource::CommandLine);
    match run.get_arguments().filter(typed).find_map(Arg::get_long) {
        None => Ok(()),
        Some(option) => {
            let problem = format!("the subcommand '{name}' cannot be used with '--{option}'");
            Err(clap::Error::raw(ErrorKind::ArgumentConflict, problem))
        }
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
    /// Fit the probabilities of --min-confidence to a run on training questions
    Calibrate(CalibrateArgs),
    /// Try every way to choose among the windows that a run read
    Sweep(AtRunArgs),
    /// Find how early re-ranking may stop, from a run that read every candidate
    Patience(PatienceArgs),
    /// Find for which questions a second, dearer run is worth its cost: those that the first is least sure of
    Gate(GateArgs),
    /// Make the page report.html of a run again
    Report(AtRunArgs),
    /// Measure a prompt over many tasks: accuracy, exact match or ROUGE-L of each
    Tasks(Box<tasks::TasksArgs>),
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
    /// Folder for predictions.jsonl, run.trec, report.json and report.html
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

/// A fit.
#[derive(Debug, Clone, Args)]
pub struct CalibrateArgs {
    /// The --out folder of a complete run; its questions must not be those that will measure
    #[arg(long, value_name = "DIR")]
    pub run: PathBuf,
    /// The file to write, for --calibration
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    pub overwrite: bool,
}

/// A promise.
#[derive(Debug, Clone, Args)]
pub struct PatienceArgs {
    /// The --out folder of a complete run with a re-ranker; its questions must not be those that it was trained on
    #[arg(long, value_name = "DIR")]
    pub run: PathBuf,
    /// Places that count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    pub keep: usize,
    /// The most that may be lost of recall there, or of the reciprocal rank, on average over questions
    #[arg(long, value_name = "SHARE", default_value_t = 0.003)]
    pub loss: f64,
}

/// A second pass.
#[derive(Debug, Clone, Args)]
pub struct GateArgs {
    /// The first pass: its --out folder or its predictions.jsonl
    #[arg(value_name = "FIRST")]
    pub first: PathBuf,
    /// The second pass over the same questions
    #[arg(value_name = "SECOND")]
    pub second: PathBuf,
    /// Test this threshold, which should come from other questions
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true)]
    pub threshold: Option<f64>,
    /// A picture of the metric against the cost
    #[arg(long, value_name = "FILE.svg")]
    pub curve: Option<PathBuf>,
    /// Replace a picture that is there
    #[arg(long)]
    pub overwrite: bool,
    /// Seed of resampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// A run that is there.
#[derive(Debug, Clone, Args)]
pub struct AtRunArgs {
    /// The --out folder of a complete run
    #[arg(long, value_name = "DIR")]
    pub run: PathBuf,
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReaderChoice {
    /// Nobody
    None,
    /// The frozen language model
    Lm,
}

pub(super) fn at_least_one(typed: &str) -> Result<usize, String> {
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
            merge_reading(&mut settings, &self.reading, &self.retrieval)?;
        }
        let reader = self.reader.to_possible_value();
        settings.insert("reader".into(), reader.map(|v| Value::from(v.get_name())).into());
        Ok(settings)
    }

    fn options(&self) -> Result<RunOptions> {
        if self.gold && self.retrieval.filter.is_some() {
            return Err(Error::request(
                "--gold gives the gold passages, and --filter is for finding some",
                "leave one of them out",
            ));
        }
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
    if let Some(EvalCommand::Tasks(args)) = &args.command {
        return tasks::run(args, globals);
    }
    let progress = globals.progress();
    let mut out = std::io::stdout().lock();
    run_with(args, |args| open::open(args, globals, progress.as_ref()), globals.json, progress.as_ref(), &mut out)
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
        (Some(EvalCommand::Calibrate(args)), _) => {
            output::check_new(&args.out, args.overwrite)?;
            let calibration = fit::calibrate(&args.run)?;
            write_whole(&args.out, &calibration)?;
            if json { to_json(&calibration)? } else { calibration.summary() }
        }
        (Some(EvalCommand::Sweep(args)), _) => {
            let sweep = sweep::sweep(&args.run)?;
            if json { to_json(&sweep)? } else { sweep.table() }
        }
        (Some(EvalCommand::Patience(args)), _) => {
            let rules = patience::patience(&args.run, args.keep, args.loss)?;
            if json { to_json(&rules)? } else { rules.table() }
        }
        (Some(EvalCommand::Gate(args)), _) => {
            args.curve.iter().try_for_each(|path| output::check_new(path, args.overwrite))?;
            let gate = gate::gate(&args.first, &args.second, args.threshold, args.seed)?;
            if let Some(path) = &args.curve {
                std::fs::write(path, gate.curve()).map_err(Error::file("write", path))?;
            }
            if json { to_json(&gate)? } else { gate.table() }
        }
        (Some(EvalCommand::Report(args)), _) => {
            let page = page::remake(&args.run)?;
            let page = page.display().to_string();
            if json { to_json(&serde_json::json!({"page": page}))? } else { format!("{page}\n") }
        }
        (None, Some(args)) => {
            let options = args.options()?;
            let dataset = dataset::read(&args.questions, args.skip_bad, progress)?;
            let Bench { setup, mut answer } = open(args)?;
            note_calibration(&setup, &dataset.sha256, progress);
            let report = run::run(&dataset, setup, &args.out, &options, &mut *answer, progress)?;
            progress.note(&format!("the page is {}", args.out.join(page::PAGE).display()));
            if json { to_json(&report)? } else { report.table() }
        }
        (Some(EvalCommand::Tasks(_)), _) | (None, None) => {
            return Err(Error::request("nothing to measure", "say `nunatak eval --help`"));
        }
    };
    match out.write_all(printed.as_bytes()) {
        Err(error) if output::is_closed_pipe(&error) => Ok(()),
        done => done.map_err(Error::file("write", "standard output")),
    }
}

/// Say what stands between the confidences and being probabilities.
fn note_calibration(setup: &Setup, questions_sha256: &str, progress: &dyn Progress) {
    let Some(calibration) = &setup.calibration else { return };
    if calibration.fitted_on.as_deref() == Some(questions_sha256) {
        progress.note("the confidences were fitted on these very questions: they will look better than they are");
    } else if let Some(reason) = &calibration.mismatch {
        progress.note(&format!("the confidences are guesses, because {} {reason}", calibration.name));
    }
}

/// Write a JSON file for people, whole or not at all.
fn write_whole(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(Error::internal("writing JSON"))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut part = tempfile::NamedTempFile::new_in(folder).map_err(Error::file("create a file in", folder))?;
    writeln!(part, "{text}").map_err(Error::file("write", path))?;
    part.persist(path).map(drop).map_err(|e| Error::file("write", path)(e.error))
}

fn to_json(value: &impl serde::Serialize) -> Result<String> {
    let mut text = serde_json::to_string(value).map_err(Error::internal("writing JSON"))?;
    text.push('\n');
    Ok(text)
}
