//! `nunatak search`: passages for a question.

use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::cli::Globals;
use crate::cli::engine;
use crate::cli::eval::at_least_one;
use crate::cli::output::{self, BOLD, DIM};
use crate::cli::pipeline_args::RetrievalArgs;
use crate::error::Result;
use crate::explain::Explanation;
use crate::index::recall::Beam;
use crate::retrieve::Parts;
use crate::types::Passage;

/// Options of `nunatak search`.
#[derive(Debug, Args)]
pub struct SearchArgs {
    /// The question, or any words; plain text, no query syntax
    question: String,
    #[command(flatten)]
    retrieval: RetrievalArgs,
    /// How many passages to show
    #[arg(long, short, default_value_t = 10, value_parser = at_least_one)]
    k: usize,
    /// Candidates that the first stage finds (at least k)
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = at_least_one)]
    depth: usize,
    /// Show what each part of the ranking gave a passage: words, meaning, both, and the re-ranker
    #[arg(long)]
    explain: bool,
}

/// One line of `search --json`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    rank: usize,
    passage_id: &'a str,
    title: &'a str,
    text: &'a str,
    score: f32,
    #[serde(skip_serializing_if = "Map::is_empty")]
    metadata: &'a Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Explanation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beam: Option<Beam>,
}

/// Run `nunatak search`.
pub fn run(args: &SearchArgs, globals: &Globals) -> Result<()> {
    let progress = globals.progress();
    let depth = args.depth.max(args.k);
    let mut engine = engine::build(&args.retrieval, None, depth, 0, globals, progress.as_ref())?;
    let found = engine.pipeline.find(&args.question)?;
    if let Some(words) = found.cuts.words() {
        tracing::warn!("{words}");
    }
    let hits = found.ranking();
    if args.explain && !globals.json && !hits.is_empty() {
        output::line(format_args!("{DIM}{}{DIM:#}\n", candidates(&found.parts)))?;
    }
    let beam = found.parts.beam.filter(|_| args.explain);
    for (i, hit) in hits.iter().take(args.k).enumerate() {
        let passage = engine.pipeline.passages().passage(hit.passage)?;
        let (rank, score) = (i + 1, hit.score);
        let parts = args.explain.then(|| Explanation::of(hit.passage, &found));
        if globals.json {
            let Passage { key, title, text, metadata, .. } = &passage;
            output::json(&Line { rank, passage_id: key, title, text, score, metadata, parts, beam })?;
        } else {
            output::line(format_args!(
                "{BOLD}{rank:>3}. {}{BOLD:#}  {DIM}{} · {score:.4}{DIM:#}",
                passage.title, passage.key
            ))?;
            if let Some(parts) = parts {
                output::line(format_args!("     {DIM}{parts}{DIM:#}"))?;
            }
            output::line(format_args!("     {}", passage.text))?;
            if passage.metadata.is_empty() {
                output::line("")?;
            } else {
                output::line(format_args!("     {DIM}{}{DIM:#}\n", Value::Object(passage.metadata)))?;
            }
        }
    }
    if hits.is_empty() && !globals.json {
        output::line(match args.retrieval.filter {
            Some(_) => "No passage that meets --filter matches. Try other words, or other conditions.",
            None => "No passage matches. Try other words, or --mode dense.",
        })?;
    }
    Ok(())
}

/// How many candidates each part of the first stage gave, and by which beam.
fn candidates(parts: &Parts) -> String {
    let words = Some(format!("words {}", parts.words.len())).filter(|_| !parts.words.is_empty());
    let beam = parts.beam.map_or_else(String::new, |beam| format!(" ({beam})"));
    let meaning = Some(format!("meaning {}{beam}", parts.meaning.len())).filter(|_| !parts.meaning.is_empty());
    format!("candidates: {}", words.into_iter().chain(meaning).collect::<Vec<_>>().join(" · "))
}
