//! Which way of fusing words and meaning finds most: a table of rules and weights, over training questions.
//!
//! Takes an index with vectors and files of questions (`question`, `positive_ids`, a JSON object a line). The best of words and
//! of meaning are candidates, and each gets its cosine and its BM25, whichever side found it. Prints a JSON line for each
//! file, depth of candidates, rule and weight of the cosine: how often a gold passage is first, among the first 5 and the first 20, and
//! the mean of one over its place among the first 10. `--dump FILE` writes the candidates, a JSON object a question.
//!
//! Rules differ in what stands beside the cosine: BM25 over the best passage's (`top`; `top, found` knows only the
//! BM25 of what words found), over the most that the question's words could give (`most`), or over 50 (`fixed`).
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench is a script")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use nunatak::encode::Encoder;
use nunatak::index::Index;
use nunatak::index::lexical::Bm25;
use nunatak::progress::Quiet;
use nunatak::retrieve::fuse;
use nunatak::runtime::session::RuntimeOptions;
use nunatak::runtime::setup;
use nunatak::types::{Hit, PassageId, sort_hits};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Asked {
    question: String,
    positive_ids: Vec<String>,
}

/// What both sides found for a question, at one depth.
struct Found {
    positives: BTreeSet<PassageId>,
    words: Vec<Hit>,
    meaning: Vec<Hit>,
    /// Of all candidates.
    cosines: Vec<Hit>,
    /// Of all candidates that have some of the words.
    bm25: Vec<Hit>,
    most: f32,
}

/// Candidates of each side.
const DEPTHS: [usize; 2] = [100, 300];
/// Weights of the cosine that are tried.
const WEIGHTS: [f32; 13] = [0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.96];

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let dump = arguments.iter().position(|a| a == "--dump").map(|at| arguments.drain(at..at + 2).nth(1).unwrap());
    let [index, files @ ..] = &arguments[..] else {
        println!("usage: cargo bench --bench fusion -- INDEX QUESTIONS.jsonl ... [--dump FILE]");
        return;
    };
    let index = Index::open(Path::new(index)).unwrap();
    let options = RuntimeOptions::default();
    let model = setup::model(&index.dense().unwrap().encoder().name, &options, &Quiet).unwrap();
    let mut encoder = Encoder::open(&model, &options).unwrap();
    let mut dump = dump.map(|path| std::io::BufWriter::new(std::fs::File::create(path).unwrap()));
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        let asked: Vec<Asked> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let texts: Vec<String> = asked.iter().map(|a| a.question.clone()).collect();
        let vectors = encoder.encode(&texts).unwrap();
        let vectors: Vec<&[f32]> = vectors.chunks_exact(index.dense().unwrap().encoder().dim).collect();
        for depth in DEPTHS {
            let found: Vec<Found> = asked.iter().zip(&vectors).map(|(a, v)| find(&index, a, v, depth)).collect();
            tables(file, depth, &found);
            if let Some(out) = dump.as_mut().filter(|_| depth == DEPTHS[1]) {
                found.iter().zip(&asked).for_each(|(found, a)| write(out, file, a, found));
            }
        }
    }
}

fn find(index: &Index, asked: &Asked, vector: &[f32], depth: usize) -> Found {
    let (lexical, dense) = (index.lexical(), index.dense().unwrap());
    let words = lexical.search(&asked.question, depth, None).unwrap();
    let meaning = dense.search(vector, depth, 0, None).unwrap();
    let candidates: Vec<PassageId> =
        words.iter().chain(&meaning).map(|hit| hit.passage).collect::<BTreeSet<_>>().into_iter().collect();
    let positives = asked.positive_ids.iter().flat_map(|id| index.pieces_of(id).unwrap()).collect();
    let cosines = dense.cosines(vector, &candidates).unwrap();
    let bm25 = lexical.scores(&asked.question, &candidates, Bm25::default()).unwrap();
    Found { positives, words, meaning, cosines, bm25, most: lexical.most(&asked.question, Bm25::default()).unwrap() }
}

/// A line for each rule and weight.
fn tables(file: &str, depth: usize, found: &[Found]) {
    let line = |rule: &str, weight: f32, rank: &dyn Fn(&Found) -> Vec<Hit>| {
        let places: Vec<Option<usize>> = found
            .iter()
            .map(|found| rank(found).iter().position(|hit| found.positives.contains(&hit.passage)))
            .collect();
        let share = |k: usize| {
            places.iter().filter(|place| place.is_some_and(|place| place < k)).count() as f64 / places.len() as f64
        };
        let reciprocal = |place: &Option<usize>| place.filter(|&at| at < 10).map_or(0.0, |at| 1.0 / (at + 1) as f64);
        let mrr = places.iter().map(reciprocal).sum::<f64>() / places.len() as f64;
        println!(
            "{}",
            json!({
                "questions": Path::new(file).file_stem().unwrap().to_string_lossy(), "n": found.len(), "candidates": depth,
                "rule": rule, "weight": weight, "recall_1": share(1), "recall_5": share(5), "recall_20": share(20),
                "recall_100": share(100), "mrr_10": mrr,
            })
        );
    };
    line("words", 0.0, &|found| found.words.clone());
    line("meaning", 1.0, &|found| found.meaning.clone());
    line("rrf", 0.5, &|found| fuse::rrf(&[&found.meaning, &found.words], fuse::RRF_K, depth));
    for weight in WEIGHTS {
        let fused =
            |found: &Found, words: &[Hit]| fuse::convex(&[(&found.cosines, weight), (words, 1.0 - weight)], depth);
        line("top, found", weight, &|found| fused(found, &fuse::by_top(&found.words)));
        line("top", weight, &|found| fused(found, &fuse::by_top(&found.bm25)));
        line("most", weight, &|found| fused(found, &over(&found.bm25, found.most)));
        line("fixed", weight, &|found| fused(found, &over(&found.bm25, 50.0)));
    }
}

fn over(hits: &[Hit], divisor: f32) -> Vec<Hit> {
    hits.iter().map(|hit| Hit { score: hit.score / divisor, ..*hit }).collect()
}

/// The candidates of a question, the best cosine first.
fn write(out: &mut impl Write, file: &str, asked: &Asked, found: &Found) {
    let bm25: BTreeMap<PassageId, f32> = found.bm25.iter().map(|hit| (hit.passage, hit.score)).collect();
    let mut hits = found.cosines.clone();
    sort_hits(&mut hits);
    let rows: Vec<u32> = hits.iter().map(|hit| hit.passage.0).collect();
    let cosines: Vec<f32> = hits.iter().map(|hit| hit.score).collect();
    let bm25: Vec<f32> = hits.iter().map(|hit| bm25.get(&hit.passage).copied().unwrap_or(0.0)).collect();
    let line = json!({
        "file": file, "question": asked.question, "positives": found.positives.iter().map(|p| p.0).collect::<Vec<_>>(),
        "rows": rows, "cosines": cosines, "bm25": bm25, "most": found.most,
    });
    writeln!(out, "{line}").unwrap();
}
