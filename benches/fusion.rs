//! Which way of fusing words and meaning finds most: a table of rules and weights, over training questions.
//!
//! Takes an index with vectors and files of questions (`question`, `positive_ids`, a JSON object a line). The best of words and
//! of meaning are candidates, and each gets its cosine, its BM25 and its pairs, whichever side found it. Prints a JSON line for each
//! file, k1, b, depth of candidates, rule, weight of the cosine and weight of the pairs: how often a gold passage is first, among the
//! first 5, 20 and 100, and the mean of one over its place among the first 10.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench is a script")]

use std::collections::BTreeSet;
use std::path::Path;

use nunatak::encode::Encoder;
use nunatak::index::Index;
use nunatak::index::lexical::{Bm25, Stems};
use nunatak::progress::Quiet;
use nunatak::retrieve::{Fusion, Pairs, Parts};
use nunatak::runtime::session::RuntimeOptions;
use nunatak::runtime::setup;
use nunatak::types::{Hit, PassageId};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Asked {
    question: String,
    positive_ids: Vec<String>,
}

/// What both sides found for a question.
struct Found {
    positives: BTreeSet<PassageId>,
    parts: Parts,
}

/// BM25's k1 and b, and candidates of each side.
const FIRST_STAGES: [(f32, f32, usize); 9] = [
    (1.2, 0.75, 100),
    (0.9, 0.75, 100),
    (0.6, 0.75, 100),
    (0.4, 0.75, 100),
    (0.2, 0.75, 100),
    (0.4, 0.4, 100),
    (0.4, 0.6, 100),
    (0.4, 0.9, 100),
    (0.4, 0.75, 300),
];
/// Weights of the cosine that are tried.
const DENSE: [f32; 9] = [0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95];
/// Weights of the pairs that are tried.
const PAIRS: [f32; 6] = [0.0, 0.4, 0.8, 1.2, 1.6, 2.4];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [index, files @ ..] = &arguments[..] else {
        println!("usage: cargo bench --bench fusion -- INDEX QUESTIONS.jsonl ...");
        return;
    };
    let index = Index::open(Path::new(index)).unwrap();
    let options = RuntimeOptions::default();
    let model = setup::model(&index.dense().unwrap().encoder().name, &options, &Quiet).unwrap();
    let mut encoder = Encoder::open(&model, &options).unwrap();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        let asked: Vec<Asked> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let texts: Vec<String> = asked.iter().map(|a| a.question.clone()).collect();
        let vectors = encoder.encode(&texts).unwrap();
        let vectors: Vec<&[f32]> = vectors.chunks_exact(index.dense().unwrap().encoder().dim).collect();
        for (k1, b, depth) in FIRST_STAGES {
            let bm25 = Bm25 { k1, b };
            let found: Vec<Found> = asked.iter().zip(&vectors).map(|(a, v)| find(&index, a, v, bm25, depth)).collect();
            table(file, bm25, depth, &found);
        }
    }
}

fn find(index: &Index, asked: &Asked, vector: &[f32], bm25: Bm25, depth: usize) -> Found {
    let (lexical, dense) = (index.lexical(), index.dense().unwrap());
    let words = lexical.search_by(&asked.question, depth, None, bm25).unwrap();
    let meaning = dense.search(vector, depth, 0, None).unwrap();
    let beyond = |these: &[Hit], others: &[Hit]| {
        let others: BTreeSet<PassageId> = others.iter().map(|hit| hit.passage).collect();
        these.iter().map(|hit| hit.passage).filter(|passage| !others.contains(passage)).collect::<Vec<_>>()
    };
    let cosines = dense.cosines(vector, &beyond(&words, &meaning)).unwrap();
    let beside = lexical.scores(&asked.question, &beyond(&meaning, &words), bm25).unwrap();
    let mut stems = Stems::new(&index.manifest().analyser);
    let pairs = Pairs::of(&asked.question, &mut stems);
    let mut share = |&Hit { passage, .. }: &Hit| {
        let (title, text) = index.title_and_text(passage).unwrap();
        Hit { passage, score: pairs.share(title, text, &mut stems) }
    };
    let pairs = words.iter().chain(&beside).map(&mut share).collect();
    let positives = asked.positive_ids.iter().flat_map(|id| index.pieces_of(id).unwrap()).collect();
    Found { positives, parts: Parts { words, meaning, cosines, bm25: beside, pairs, beam: None } }
}

/// A line for each rule and weight.
fn table(file: &str, bm25: Bm25, depth: usize, found: &[Found]) {
    let line = |rule: &str, weights: (f32, f32), rank: &dyn Fn(&Parts) -> Vec<Hit>| {
        let place = |found: &Found| rank(&found.parts).iter().position(|hit| found.positives.contains(&hit.passage));
        let places: Vec<Option<usize>> = found.iter().map(place).collect();
        let share = |k: usize| {
            places.iter().filter(|place| place.is_some_and(|place| place < k)).count() as f64 / places.len() as f64
        };
        let reciprocal = |place: &Option<usize>| place.filter(|&at| at < 10).map_or(0.0, |at| 1.0 / (at + 1) as f64);
        let mrr = places.iter().map(reciprocal).sum::<f64>() / places.len() as f64;
        println!(
            "{}",
            json!({
                "questions": Path::new(file).file_stem().unwrap().to_string_lossy(), "n": found.len(), "k1": bm25.k1,
                "b": bm25.b, "candidates": depth, "rule": rule, "dense": weights.0, "pairs": weights.1, "recall_1": share(1),
                "recall_5": share(5), "recall_20": share(20), "recall_100": share(100), "mrr_10": mrr,
            })
        );
    };
    line("words", (0.0, 0.0), &|parts| parts.words.clone());
    line("meaning", (1.0, 0.0), &|parts| parts.meaning.clone());
    line("rrf", (0.5, 0.0), &|parts| Fusion::Rrf.fuse(parts, depth));
    for pairs in PAIRS {
        for dense in DENSE {
            line("convex", (dense, pairs), &|parts| Fusion::Convex { dense, pairs }.fuse(parts, depth));
        }
    }
}
