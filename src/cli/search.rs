//! `nunatak search`: passages for a question.

use std::collections::HashMap;

use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::cli::Globals;
use crate::cli::engine::{self, Engine, RetrievalArgs};
use crate::cli::output::{self, BOLD, DIM};
use crate::error::Result;
use crate::pipeline::Found;
use crate::retrieve::Mode;
use crate::types::{Hit, Passage, PassageId};

/// Options of `nunatak search`.
#[derive(Debug, Args)]
pub struct SearchArgs {
    /// The question, or any words; plain text, no query syntax
    question: String,
    #[command(flatten)]
    retrieval: RetrievalArgs,
    /// How many passages to show
    #[arg(long, short, default_value_t = 10)]
    k: usize,
    /// Candidates that the first stage finds (at least k)
    #[arg(long, default_value_t = 100, value_name = "N")]
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
    parts: Option<Parts>,
}

/// A place in a list, from 1, and what it was given for.
#[derive(Debug, Clone, Copy, Serialize)]
struct Place {
    rank: usize,
    score: f32,
}

/// What each part of the ranking gave a passage.
#[derive(Debug, Clone, Serialize)]
struct Parts {
    /// By words; none when it is not among the candidates, or words took no part.
    bm25: Option<Place>,
    /// By meaning: the cosine of question and passage.
    cosine: Option<f32>,
    /// In the first stage's list.
    first_stage: Option<Place>,
    /// In the re-ranker's, with the first stage's share in it.
    reranker: Option<Place>,
}

/// The lists that a ranking was made of.
struct Explanation {
    bm25: Vec<Hit>,
    cosines: HashMap<PassageId, f32>,
    first_stage: Vec<Hit>,
    reranker: Vec<Hit>,
}

impl Explanation {
    fn new(args: &SearchArgs, engine: &mut Engine, depth: usize, found: &Found) -> Result<Self> {
        let (mode, hits) = (engine.mode, found.ranking());
        let shown: Vec<PassageId> = hits.iter().take(args.k).map(|hit| hit.passage).collect();
        let index = engine.pipeline.index()?;
        let only = engine.pipeline.only();
        let bm25 = match mode {
            Mode::Dense => Vec::new(),
            Mode::Bm25 | Mode::Hybrid => index.lexical().search(&args.question, depth, only)?,
        };
        let mut cosines = HashMap::new();
        if mode != Mode::Bm25 {
            let vector = engine.pipeline.encoder()?.encode(std::slice::from_ref(&args.question))?;
            if let Some(dense) = engine.pipeline.index()?.dense() {
                cosines.extend(dense.cosines(&vector, &shown)?.into_iter().map(|hit| (hit.passage, hit.score)));
            }
        }
        Ok(Self { bm25, cosines, first_stage: found.retrieved.clone(), reranker: found.reranked.clone() })
    }

    fn of(&self, passage: PassageId) -> Parts {
        let place = |list: &[Hit]| {
            let at = list.iter().position(|hit| hit.passage == passage)?;
            Some(Place { rank: at + 1, score: list.get(at)?.score })
        };
        Parts {
            bm25: place(&self.bm25),
            cosine: self.cosines.get(&passage).copied(),
            first_stage: place(&self.first_stage),
            reranker: place(&self.reranker),
        }
    }
}

impl std::fmt::Display for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let place =
            |name: &str, place: &Option<Place>| place.map(|p| format!("{name} {:.3} (place {})", p.score, p.rank));
        let parts = [
            place("words", &self.bm25),
            self.cosine.map(|cosine| format!("meaning {cosine:.3}")),
            place("first stage", &self.first_stage),
            place("re-ranker", &self.reranker),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(" · "))
    }
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
    let explanation = if args.explain { Some(Explanation::new(args, &mut engine, depth, &found)?) } else { None };
    for (i, hit) in hits.iter().take(args.k).enumerate() {
        let passage = engine.pipeline.passages().passage(hit.passage)?;
        let (rank, score) = (i + 1, hit.score);
        let parts = explanation.as_ref().map(|explanation| explanation.of(hit.passage));
        if globals.json {
            let Passage { key, title, text, metadata, .. } = &passage;
            output::json(&Line { rank, passage_id: key, title, text, score, metadata, parts })?;
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
