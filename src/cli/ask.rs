//! `nunatak ask`: an answer with the evidence it rests on.

use std::io::BufRead;

use clap::Args;

use crate::answer::{Answer, Trace};
use crate::cli::Globals;
use crate::cli::engine::{self, Engine};
use crate::cli::eval::at_least_one;
use crate::cli::output::{self, BAD, BOLD, DIM, GOOD};
use crate::cli::pipeline_args::{ReadingArgs, RetrievalArgs};
use crate::confidence::FEATURES;
use crate::error::{Error, Result};
use crate::index::passages::Passages;
use crate::progress::check_interrupt;
use crate::types::Evidence;

/// Longest line of a question, in bytes: far beyond any window, far below what hurts.
const MAX_QUESTION_BYTES: usize = 1 << 20;

/// Options of `nunatak ask`.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// The question; `-` reads one question a line from stdin
    question: String,
    #[command(flatten)]
    retrieval: RetrievalArgs,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Candidates that the first stage finds
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = at_least_one)]
    depth: usize,
    /// Seed of sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Show every stage
    #[arg(long)]
    explain: bool,
    /// Show the answer as it is written (as it stands in the first window when several compete)
    #[arg(long)]
    stream: bool,
}

/// Run `nunatak ask`.
pub fn run(args: &AskArgs, globals: &Globals) -> Result<()> {
    let progress = globals.progress();
    if args.stream && args.reading.min_confidence > 0.0 {
        return Err(Error::request(
            "--stream shows an answer before it is known how sure it is",
            "leave --stream or --min-confidence out",
        ));
    }
    if args.stream && globals.json {
        return Err(Error::request(
            "--stream shows an answer as it is written, and --json prints it whole",
            "leave one of them out",
        ));
    }
    let mut engine =
        engine::build(&args.retrieval, Some(&args.reading), args.depth, args.seed, globals, progress.as_ref())?;
    if args.question != "-" {
        return ask(&args.question, &mut engine, args, globals);
    }
    for line in std::io::stdin().lock().lines() {
        check_interrupt(|| "questions answered so far are printed".to_owned())?;
        let question = line.map_err(Error::file("read", "stdin"))?;
        if !question.trim().is_empty() {
            ask(&question, &mut engine, args, globals)?;
        }
    }
    Ok(())
}

fn ask(question: &str, engine: &mut Engine, args: &AskArgs, globals: &Globals) -> Result<()> {
    if question.trim().is_empty() {
        return Err(Error::request("the question is empty", "ask in plain words: nunatak ask \"who ...\" --index DIR"));
    }
    if question.len() > MAX_QUESTION_BYTES {
        return Err(Error::request(
            format!("the question has {} bytes, more than {MAX_QUESTION_BYTES}", question.len()),
            "ask a shorter question",
        ));
    }
    let mut shown = 0;
    let mut answer = engine.pipeline.answer(question, &mut |row, text| {
        // Only text that grows by more is shown; a token can also complete a character behind it.
        if let (true, 0, Some(new)) = (args.stream, row, text.get(shown..)) {
            shown = text.len();
            // A closed pipe ends the process inside `piece`; another write error will come up again below.
            let _ = output::piece(new);
        }
    })?;
    if args.stream {
        output::line("")?;
    }
    if let Some(words) = answer.usage.rerank_cuts.and_then(|cuts| cuts.words()) {
        tracing::warn!("{words}");
    }
    if globals.json {
        if !args.explain {
            answer.trace = None;
        }
        return output::json(&answer);
    }
    print(&answer, engine.pipeline.passages(), args.explain)?;
    match engine.calibration.as_ref().and_then(|c| Some((&c.name, c.mismatch.as_ref()?))) {
        Some((name, reason)) if args.explain => {
            output::line(format_args!("  {DIM}the confidence is a guess: {name} {reason}{DIM:#}"))
        }
        _ => Ok(()),
    }
}

/// An answer for people.
pub fn print(answer: &Answer, passages: &dyn Passages, explain: bool) -> Result<()> {
    if let (true, Some(trace)) = (explain, &answer.trace) {
        explain_trace(trace, passages)?;
    }
    if answer.abstained {
        output::line(format_args!("{BAD}The corpus does not seem to hold the answer.{BAD:#}"))?;
        let withheld = answer.trace.as_ref().and_then(|t| t.withheld.as_ref());
        if let (true, Some(withheld)) = (explain, withheld) {
            output::line(format_args!(
                "best guess: {}   {DIM}confidence {:.2}, and {:.2} was asked for; log-likelihood {:.2} a token{DIM:#}",
                withheld.answer, answer.confidence, withheld.min_confidence, answer.score
            ))?;
            quote(&withheld.evidence, passages)?;
        }
    } else {
        let support =
            if answer.supported { format!("{GOOD}supported{GOOD:#}") } else { format!("{BAD}not supported{BAD:#}") };
        output::line(format_args!(
            "{GOOD}{}{GOOD:#}   {DIM}confidence {:.2}, log-likelihood {:.2} a token,{DIM:#} {support}",
            answer.answer, answer.confidence, answer.score
        ))?;
        quote(&answer.evidence, passages)?;
    }
    if explain {
        let usage = &answer.usage;
        let ms = &usage.latency_ms;
        output::line(format_args!(
            "\n  {DIM}{} prompt tokens ({} of them kept from before), {} answer tokens; ms: retrieve {:.0}, rerank {:.0}, pack {:.0}, read {:.0}, total {:.0}{DIM:#}",
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.answer_tokens,
            ms.retrieve,
            ms.rerank,
            ms.pack,
            ms.read,
            ms.total
        ))?;
    }
    Ok(())
}

/// The evidence in its passages.
fn quote(evidence: &[Evidence], passages: &dyn Passages) -> Result<()> {
    for evidence in evidence {
        let key = &evidence.passage_id;
        let page = evidence.page.map(|page| format!(", page {page}")).unwrap_or_default();
        output::line(format_args!(
            "\n  {BOLD}{}{BOLD:#}  {DIM}{key}{page}, bytes {}..{}{DIM:#}",
            evidence.title, evidence.start, evidence.end
        ))?;
        if let Some(row) = passages.row_of(key)? {
            let text = passages.passage(row)?.text;
            let before = text.get(..evidence.start).unwrap_or_default();
            let after = text.get(evidence.end..).unwrap_or_default();
            output::line(format_args!("  {before}{GOOD}{}{GOOD:#}{after}", evidence.text))?;
        }
    }
    Ok(())
}

fn explain_trace(trace: &Trace, passages: &dyn Passages) -> Result<()> {
    const SHOWN: usize = 10;
    if let Some(beam) = trace.beam {
        output::line(format_args!("{BOLD}graph{BOLD:#} walked with {beam}"))?;
    }
    for (stage, hits) in [("retrieved", &trace.retrieved), ("re-ranked", &trace.reranked)] {
        if hits.is_empty() {
            continue;
        }
        output::line(format_args!("{BOLD}{stage}{BOLD:#} ({}, best {})", hits.len(), SHOWN.min(hits.len())))?;
        for (i, hit) in hits.iter().take(SHOWN).enumerate() {
            let passage = passages.passage(hit.passage)?;
            output::line(format_args!(
                "{:>4}. {:<9.4} {}  {DIM}{}{DIM:#}",
                i + 1,
                hit.score,
                passage.title,
                passage.key
            ))?;
        }
    }
    output::line(format_args!("{BOLD}packed{BOLD:#} into {} window(s)", trace.windows.len()))?;
    for (i, window) in trace.windows.iter().enumerate() {
        for passage in window {
            output::line(format_args!(
                "{:>4}. {:>4} tokens  {}  {DIM}{}{DIM:#}",
                i + 1,
                passage.tokens,
                passage.title,
                passage.key
            ))?;
        }
    }
    if trace.windows.len() > 1 {
        output::line(format_args!("{BOLD}read{BOLD:#}"))?;
        for (i, said) in trace.said.iter().enumerate() {
            let abstain = said.p_abstain.map(|p| format!(", nothing there {p:.2}")).unwrap_or_default();
            output::line(format_args!(
                "{:>4}. {}  {DIM}log-likelihood {:.2}{abstain}{DIM:#}",
                i + 1,
                if said.answer.is_empty() { "-" } else { &said.answer },
                said.log_likelihood
            ))?;
        }
        let unread = trace.windows.len().saturating_sub(trace.said.len());
        if unread > 0 {
            output::line(format_args!(
                "   -  {DIM}{unread} more not read: no answer there could have been better{DIM:#}"
            ))?;
        }
    }
    if let Some(second) = &trace.second {
        output::line(format_args!(
            "{BOLD}read again{BOLD:#} with {} candidates  {DIM}{:.0} ms; the first pass said {}{DIM:#}",
            second.candidates.len(),
            second.ms,
            second.first
        ))?;
        for candidate in second.candidates.iter().take(SHOWN) {
            output::line(format_args!(
                "{:>4}. {}  {DIM}worth {:.2}{}{DIM:#}",
                candidate.window + 1,
                candidate.answer,
                candidate.worth,
                if candidate.sampled { ", sampled" } else { "" }
            ))?;
        }
    }
    for left in &trace.left_out {
        output::line(format_args!("   -  {:>4} tokens of {} left out: {}", left.tokens, left.key, left.reason))?;
    }
    let features = FEATURES.iter().zip(trace.features.values());
    let known: Vec<String> = features.filter_map(|(name, value)| Some(format!("{name} {:.3}", value?))).collect();
    output::line(format_args!("{BOLD}confidence{BOLD:#} from {}", known.join(", ")))?;
    output::line("")
}
