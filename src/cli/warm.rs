//! `nunatak index warm`: compute what the reader makes of passages before anybody asks.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::cli::Globals;
use crate::cli::engine;
use crate::cli::eval::at_least_one;
use crate::cli::output::{self, GOOD};
use crate::cli::pipeline_args::{DEFAULT_LM, ReadingArgs, RetrievalArgs};
use crate::error::{Error, Result};
use crate::eval::dataset;
use crate::milvus::Address;
use crate::pipeline::{Pipeline, no_reader};
use crate::progress::{Progress, check_interrupt};
use crate::read::template::TemplateKind;
use crate::types::PassageId;

/// Tokens that a window leaves for a question: a passage that leaves fewer is cut when it is read, and its whole states
/// would never be asked for.
const QUESTION_TOKENS: usize = 64;
/// Gigabytes of states beside an index, unless more are allowed.
const MOST_GB: f64 = 4.0;

/// Options of `nunatak index warm`.
#[derive(Debug, Args)]
pub struct WarmArgs {
    #[command(flatten)]
    retrieval: RetrievalArgs,
    /// Warm the passages that would be read for these questions
    #[arg(long, value_name = "FILE")]
    questions: Vec<PathBuf>,
    /// Warm these passages or documents
    #[arg(long, value_name = "ID", num_args = 1.., conflicts_with = "filter")]
    ids: Vec<String>,
    /// Warm every passage, or every one that meets --filter
    #[arg(long, conflicts_with_all = ["questions", "ids"])]
    all: bool,
    /// Frozen language model: a name or folder
    #[arg(long, default_value = DEFAULT_LM, value_name = "MODEL")]
    lm: String,
    /// Prompt that the passages will be read behind [default: as of `nunatak ask`]
    #[arg(long, value_name = "NAME|FILE")]
    prompt: Option<String>,
    /// Prompt in words, without a learned one: few-shot, chat or plain
    #[arg(long)]
    template: Option<TemplateKind>,
    /// Passages that the reader sees of each question
    #[arg(long, default_value_t = 5, value_name = "N")]
    passages: usize,
    /// Candidates that the first stage finds for a question
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = at_least_one)]
    depth: usize,
    /// Leave out up to N bad lines of the questions
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip_bad: usize,
    /// Stop when the states beside the index take this much
    #[arg(long, default_value_t = MOST_GB, value_name = "GB")]
    most_gb: f64,
}

/// What a warming did.
#[derive(Debug, Default, Serialize)]
struct Warmed {
    /// Passages that were asked for.
    wanted: usize,
    /// Of these, those whose states were there.
    there: usize,
    /// Those that were computed.
    computed: usize,
    /// Those that are too long to be read whole.
    too_long: usize,
    /// Those that did not get in before the limit.
    left_out: usize,
    /// Files in the folder now.
    files: u64,
    /// Their bytes.
    bytes: u64,
    /// The folder.
    folder: String,
}

/// Run `nunatak index warm`.
pub fn run(args: &WarmArgs, globals: &Globals) -> Result<()> {
    if !args.all && args.questions.is_empty() && args.ids.is_empty() {
        return Err(Error::request(
            "nothing says which passages to warm",
            "give --questions FILE, --ids ID ..., or --all",
        ));
    }
    if !(args.most_gb > 0.0 && args.most_gb.is_finite()) {
        return Err(Error::request("--most-gb must be above 0", "the default is 4"));
    }
    let progress = globals.progress();
    let reading = ReadingArgs {
        prompt: args.prompt.clone(),
        template: args.template,
        passages: Some(args.passages),
        // Nothing is read twice here.
        passage_cache: Some(0),
        ..ReadingArgs::with_lm(&args.lm)
    };
    Address::refuse(&args.retrieval.index)?;
    let mut pipeline =
        engine::build(&args.retrieval, Some(&reading), args.depth, 0, globals, progress.as_ref())?.pipeline;
    let wanted = wanted(args, &mut pipeline, progress.as_ref())?;
    let warmed = warm(args, &wanted, &mut pipeline, progress.as_ref())?;
    if globals.json {
        return output::json(&warmed);
    }
    let Warmed { computed, there, too_long, left_out, files, bytes, folder, .. } = &warmed;
    let more = [(too_long, "too long to be read whole"), (left_out, "left out: --most-gb is reached")];
    let more: String = more.iter().filter(|(n, _)| **n > 0).map(|(n, what)| format!(", {n} {what}")).collect();
    output::line(format_args!("{GOOD}{computed} passages warmed{GOOD:#}, {there} were warm{more}"))?;
    output::line(format_args!("{files} of them take {} in {folder}", output::bytes(*bytes)))
}

/// The passages that are asked for, each once.
fn wanted(args: &WarmArgs, pipeline: &mut Pipeline, progress: &dyn Progress) -> Result<Vec<PassageId>> {
    if args.all {
        let all = pipeline.index()?.passages();
        return Ok(all.filter(|row| pipeline.only().is_none_or(|only| only.contains(*row))).collect());
    }
    let mut rows = BTreeSet::new();
    for id in &args.ids {
        let pieces = pipeline.passages().pieces_of(id)?;
        if pieces.is_empty() {
            return Err(Error::request(
                format!("the index has no passage {id}"),
                "`nunatak search` shows the ids of passages",
            ));
        }
        rows.extend(pieces);
    }
    for path in &args.questions {
        let questions = dataset::read(path, args.skip_bad, progress)?.questions;
        progress.start("finding passages", Some(questions.len() as u64), "questions");
        for question in questions {
            check_interrupt(|| "nothing was changed".to_owned())?;
            let found = pipeline.find(&question.question)?;
            rows.extend(pipeline.read_of(&found)?);
            progress.advance(1);
        }
        progress.finish();
    }
    Ok(rows.into_iter().collect())
}

fn warm(args: &WarmArgs, rows: &[PassageId], pipeline: &mut Pipeline, progress: &dyn Progress) -> Result<Warmed> {
    let reader = pipeline.reader().ok_or_else(no_reader)?;
    if reader.writes_prompts() {
        let problem = "every question gets a prompt of its own, so that nothing that is read can be kept for another";
        return Err(Error::request(problem, "warm passages for a soft prompt: --prompt reader"));
    }
    let folder = reader.state_folder(&args.retrieval.index)?;
    let most = (args.most_gb * 1e9) as u64;
    let (_, mut bytes) = folder.usage()?;
    let mut warmed = Warmed { wanted: rows.len(), folder: folder.path().display().to_string(), ..Warmed::default() };
    progress.start("warming", Some(rows.len() as u64), "passages");
    for &row in rows {
        check_interrupt(|| format!("{} passages are warm; the same command goes on", warmed.computed + warmed.there))?;
        let passage = pipeline.passages().passage(row)?;
        let reader = pipeline.reader_mut().ok_or_else(no_reader)?;
        let block = reader.block(&passage.title, &passage.text)?;
        if folder.holds(&block) {
            warmed.there += 1;
        } else if block.len() + QUESTION_TOKENS > reader.budget("")? {
            warmed.too_long += 1;
        } else if bytes >= most {
            warmed.left_out += 1;
        } else {
            let states = reader.passage_states(&block)?;
            bytes += folder.put(&block, &states)?;
            warmed.computed += 1;
        }
        progress.advance(1);
    }
    progress.finish();
    (warmed.files, warmed.bytes) = folder.usage()?;
    Ok(warmed)
}
