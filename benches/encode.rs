//! How fast passages become vectors: passages a second through the starter encoder, tokenisation included.
//!
//! Texts are the first 2,000 passages of a JSONL file (`title`, `text`) given as an argument, else the bundled
//! corpus repeated; all cores. Prints one JSON line with every repeat. `benches/peers/encode.py` runs
//! sentence-transformers over texts of the same corpus. It does not show the index around it.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench is a script")]

use std::path::Path;
use std::time::Instant;

use nunatak::encode::Encoder;
use nunatak::progress::Quiet;
use nunatak::runtime::session::RuntimeOptions;
use nunatak::runtime::setup;

const TEXTS: usize = 2000;
const REPEATS: usize = 3;

fn main() {
    let options = RuntimeOptions::default();
    let model = setup::model("all-MiniLM-L6-v2", &options, &Quiet).unwrap();
    let mut encoder = Encoder::open(&model, &options).unwrap();
    let file = std::env::args().skip(1).find(|a| Path::new(a).is_file());
    let lines = file.map_or_else(
        || include_str!("../src/cli/demo/passages.jsonl").repeat(8),
        |f| std::fs::read_to_string(f).unwrap(),
    );
    let texts: Vec<String> = lines
        .lines()
        .take(TEXTS)
        .map(|line| {
            let passage: serde_json::Value = serde_json::from_str(line).unwrap();
            format!("{}. {}", passage["title"].as_str().unwrap_or_default(), passage["text"].as_str().unwrap())
        })
        .collect();
    encoder.encode(&texts[..texts.len().min(64)]).unwrap(); // the first run allocates
    let rates: Vec<f64> = (0..REPEATS)
        .map(|_| {
            let begin = Instant::now();
            encoder.encode(&texts).unwrap();
            texts.len() as f64 / begin.elapsed().as_secs_f64()
        })
        .collect();
    let best = rates.iter().copied().fold(0.0, f64::max);
    let line = serde_json::json!({
        "engine": "nunatak", "model": model.name(), "threads": options.thread_count(), "texts": texts.len(),
        "passages_s": best, "repeats": rates,
    });
    println!("{line}");
}
