//! How fast a cross-encoder reads: pairs a second and milliseconds a question, tokenisation included.
//!
//! Takes a cross-encoder's folder and a file of questions with their passages, one JSON object a line (`question`,
//! `passages`: as the re-ranker gets them), which `benches/peers/rerank.py` makes. Every question is a call of its own, as
//! in `ask`. Prints one JSON line with every question's milliseconds. It does not show the quality of the order.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench is a script")]

use std::path::Path;
use std::time::Instant;

use nunatak::rerank::CrossEncoder;
use nunatak::runtime::model_dir::ModelDir;
use nunatak::runtime::session::RuntimeOptions;
use serde::Deserialize;

#[derive(Deserialize)]
struct Asked {
    question: String,
    passages: Vec<String>,
}

fn main() {
    let mut paths = std::env::args().skip(1).filter(|a| Path::new(a).exists());
    let (Some(model), Some(file)) = (paths.next(), paths.next()) else {
        println!("usage: cargo bench --bench rerank -- MODEL_FOLDER PAIRS.jsonl (see benches/peers/rerank.py)");
        return;
    };
    let options = RuntimeOptions::default();
    nunatak::runtime::setup::model("all-MiniLM-L6-v2", &options, &nunatak::progress::Quiet).unwrap(); // fetches the runtime
    let model = ModelDir::open(Path::new(&model)).unwrap();
    let mut reranker = CrossEncoder::open(&model, &options).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let asked: Vec<Asked> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    reranker.score(&asked[0].question, &asked[0].passages).unwrap(); // the first run allocates
    let mut milliseconds: Vec<f64> = asked
        .iter()
        .map(|a| {
            let begin = Instant::now();
            std::hint::black_box(reranker.score(&a.question, &a.passages).unwrap());
            begin.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    let pairs: usize = asked.iter().map(|a| a.passages.len()).sum();
    let seconds = milliseconds.iter().sum::<f64>() / 1000.0;
    let raw = milliseconds.clone();
    milliseconds.sort_by(f64::total_cmp);
    let line = serde_json::json!({
        "system": "nunatak", "threads": options.thread_count(), "questions": asked.len(), "pairs": pairs,
        "pairs_s": pairs as f64 / seconds, "p50_ms": milliseconds[milliseconds.len() / 2], "milliseconds": raw,
    });
    println!("{line}");
}
