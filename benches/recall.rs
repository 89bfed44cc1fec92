//! What a wanted recall of dense search comes to: the beam that is chosen, what it finds of questions' exact neighbours, and how fast.
//!
//! Takes an index, whose folder gets a recall.json, and questions (`question`, a JSON object a line). First come texts of several forms
//! that could stand for questions, of 200 passages, beside 200 of the questions: what beams find for them. Then recalls that are
//! wanted, on questions that are not among these 200, asked on one thread. Prints a JSON line a measurement.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench is a script")]

use std::path::Path;
use std::time::Instant;

use nunatak::encode::Encoder;
use nunatak::index::dense::default_ef;
use nunatak::index::recall::{self, Beam, Ladder};
use nunatak::index::{Dense, Index};
use nunatak::progress::Quiet;
use nunatak::runtime::session::RuntimeOptions;
use nunatak::runtime::setup;
use nunatak::types::PassageId;
use serde_json::{Value, json};

/// Texts of a form.
const TEXTS: usize = 200;
/// Questions at most that are asked with a wanted recall.
const ASKED: usize = 1000;
const DEPTHS: [usize; 2] = [10, 100];
const WANTED: [f32; 5] = [0.9, 0.95, 0.97, 0.99, 0.999];
/// Rounds; the median counts.
const ROUNDS: usize = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [index, questions] = &arguments[..] else {
        println!("usage: cargo bench --bench recall -- INDEX QUESTIONS.jsonl");
        return;
    };
    let text = std::fs::read_to_string(questions).unwrap();
    let questions: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["question"].as_str().unwrap().to_owned())
        .collect();
    let index = Index::open(Path::new(index)).unwrap();
    let dense = index.dense().unwrap();
    let options = RuntimeOptions::default();
    let mut encoder = Encoder::open(&setup::model(&dense.encoder().name, &options, &Quiet).unwrap(), &options).unwrap();
    let mut encode = |texts: &[String]| {
        let flat = encoder.encode(texts).unwrap();
        flat.chunks_exact(dense.encoder().dim).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };

    let begin = Instant::now();
    let mut one = |text: &str| Ok(encode(&[text.to_owned()]).remove(0));
    let ladders = DEPTHS.map(|depth| recall::ladder(&index, dense, depth, &mut one, &Quiet).unwrap());
    println!("{}", json!({"passages": index.len(), "depths": DEPTHS, "measured_in_s": begin.elapsed().as_secs_f64()}));

    let stride = (questions.len() / TEXTS).max(1);
    let is_shown = |at: usize| at.is_multiple_of(stride) && at / stride < TEXTS;
    let (shown, asked): (Vec<_>, Vec<_>) = questions.iter().cloned().enumerate().partition(|(at, _)| is_shown(*at));
    let [shown, asked] = [shown, asked].map(|part| part.into_iter().map(|(_, text)| text).collect::<Vec<String>>());
    let rows = (0..TEXTS).map(|i| PassageId((i * index.rows() / TEXTS) as u32));
    let stored = rows.clone().map(|row| dense.vector(row).unwrap().iter().map(|x| x.to_f32()).collect()).collect();
    forms("stored vectors", stored, dense, &ladders);
    for (name, title, words) in [
        ("4 words", false, 4),
        ("8 words", false, 8),
        ("16 words", false, 16),
        ("title and 4 words", true, 4),
        ("title and 8 words", true, 8),
    ] {
        let texts: Vec<String> = rows.clone().map(|row| form(&index, row, title, words)).collect();
        forms(name, encode(&texts), dense, &ladders);
    }
    forms("questions", encode(&shown), dense, &ladders);
    wanted(encode(&asked[..asked.len().min(ASKED)]), dense, &ladders);
}

/// Words from the middle of a passage, behind its title perhaps.
fn form(index: &Index, row: PassageId, title: bool, words: usize) -> String {
    let (named, text) = index.title_and_text(row).unwrap();
    let all: Vec<&str> = text.split_whitespace().collect();
    let first = all.len().saturating_sub(words) / 2;
    let middle = all[first..all.len().min(first + words)].join(" ");
    if title { format!("{named} {middle}") } else { middle }
}

/// What the beams of each ladder find for these vectors.
fn forms(name: &str, vectors: Vec<Vec<f32>>, dense: &Dense, ladders: &[Ladder]) {
    let exact = exact(&vectors, dense);
    for (ladder, exact) in ladders.iter().zip(&exact) {
        let found = |ef: usize| recall_to(&vectors, dense, exact, ladder.depth, ladder.depth, ef);
        let beams: Vec<Value> = ladder.beams.iter().map(|beam| json!([beam.ef, found(beam.ef)])).collect();
        println!("{}", json!({"texts": name, "count": vectors.len(), "depth": ladder.depth, "ef_recall": beams}));
    }
}

/// What wanted recalls come to.
fn wanted(vectors: Vec<Vec<f32>>, dense: &Dense, ladders: &[Ladder]) {
    let begin = Instant::now();
    let exact = exact(&vectors, dense);
    let exact_s = vectors.len() as f64 / begin.elapsed().as_secs_f64();
    println!("{}", json!({"exact": true, "threads": rayon::current_num_threads(), "questions_s": exact_s}));
    for ladder in ladders {
        let depth = ladder.depth;
        for wanted in WANTED {
            match ladder.reach(wanted) {
                Ok(beam) => ask(&vectors, dense, &exact, depth, json!(wanted), beam),
                Err(e) => println!("{}", json!({"depth": depth, "wanted": wanted, "error": e.to_string()})),
            }
        }
        ask(&vectors, dense, &exact, depth, json!("default"), Beam { ef: default_ef(depth), recall: None });
    }
}

/// Ask all with one beam, and print what it finds.
fn ask(vectors: &[Vec<f32>], dense: &Dense, exact: &[Vec<f32>], depth: usize, wanted: Value, beam: Beam) {
    let ef = beam.ef;
    let round = |_| {
        let begin = Instant::now();
        vectors.iter().for_each(|vector| drop(dense.search(vector, depth, ef, None).unwrap()));
        begin.elapsed().as_secs_f64()
    };
    let mut seconds: Vec<f64> = (0..ROUNDS).map(round).collect();
    seconds.sort_by(f64::total_cmp);
    let recalls: Vec<f64> = DEPTHS
        .iter()
        .zip(exact)
        .filter(|(k, _)| **k <= depth)
        .map(|(k, exact)| recall_to(vectors, dense, exact, *k, depth, ef))
        .collect();
    let line = json!({
        "depth": depth, "questions": vectors.len(), "wanted": wanted, "ef": ef, "measured": beam.recall,
        "recall_10": recalls.first(), "recall_100": recalls.get(1),
        "questions_s": vectors.len() as f64 / seconds[ROUNDS / 2], "rounds": seconds,
    });
    println!("{line}");
}

/// The cosine of the last of the nearest, for each of the depths and of the vectors.
fn exact(vectors: &[Vec<f32>], dense: &Dense) -> Vec<Vec<f32>> {
    let most = DEPTHS.into_iter().max().unwrap();
    let all: Vec<_> = vectors.iter().map(|vector| dense.search_exact(vector, most, None).unwrap()).collect();
    DEPTHS.iter().map(|depth| all.iter().map(|hits| hits[depth - 1].score).collect()).collect()
}

/// The part of the `k` nearest that is among `depth` found.
fn recall_to(vectors: &[Vec<f32>], dense: &Dense, exact: &[f32], k: usize, depth: usize, ef: usize) -> f64 {
    let found = vectors.iter().zip(exact).map(|(vector, least)| {
        let hits = dense.search(vector, depth, ef, None).unwrap();
        hits.iter().take(k).filter(|hit| hit.score >= *least).count()
    });
    found.sum::<usize>() as f64 / (vectors.len() * k) as f64
}
