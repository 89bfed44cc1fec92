//! The first stage alone: questions a second of BM25 and of dense search, memory, time to open, recall.
//!
//! Takes an index and questions (`question`, perhaps `positive_ids`, a JSON object a line), and asks them on one thread. For
//! words: the best 100 of each. For an index with vectors: the best 10, by beams of several widths, each with its recall
//! against comparing with all (of the first 300 questions); the questions are encoded beforehand. `--dump FOLDER` writes the vectors
//! as `passages.npy` and `questions.npy` (float32), for `benches/peers/vectors.py`. Prints a JSON line a measurement. Memory is what the
//! system counts: `anon_mb` is the process's own, `file_mb` the pages of mapped files that were touched, which the
//! system takes back when it needs them.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench is a script")]

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nunatak::encode::Encoder;
use nunatak::index::Index;
use nunatak::progress::Quiet;
use nunatak::runtime::session::RuntimeOptions;
use nunatak::runtime::setup;
use nunatak::types::{Hit, PassageId};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Asked {
    question: String,
    #[serde(default)]
    positive_ids: Vec<String>,
}

/// Questions whose exact neighbours are computed.
const EXACT: usize = 300;
/// Rounds; the first is thrown away.
const ROUNDS: usize = 4;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [index, questions, rest @ ..] = &arguments[..] else {
        println!("usage: cargo bench --bench retrieve -- INDEX QUESTIONS.jsonl [--dump FOLDER]");
        return;
    };
    let text = std::fs::read_to_string(questions).unwrap();
    let asked: Vec<Asked> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let begin = Instant::now();
    let index = Index::open(Path::new(index)).unwrap();
    index.lexical().search(&asked[0].question, 100, None).unwrap();
    let open_ms = begin.elapsed().as_secs_f64() * 1e3;
    words(&index, &asked, open_ms);
    if index.dense().is_some() {
        let dump = rest.iter().position(|a| a == "--dump").and_then(|at| rest.get(at + 1)).map(PathBuf::from);
        vectors(&index, &asked, dump.as_deref());
    }
}

fn words(index: &Index, asked: &[Asked], open_ms: f64) {
    let mut found = Vec::new();
    let seconds = rounds(|| {
        found = asked.iter().map(|a| index.lexical().search(&a.question, 100, None).unwrap()).collect::<Vec<_>>();
    });
    let keys =
        |hits: &[Hit]| hits.iter().map(|hit| index.key(hit.passage).unwrap().to_owned()).collect::<Vec<String>>();
    let recall = |k: usize| {
        let found = found.iter().zip(asked).filter(|(hits, a)| {
            let keys = keys(&hits[..hits.len().min(k)]);
            a.positive_ids.iter().any(|id| keys.contains(id))
        });
        found.count() as f64 / asked.len() as f64
    };
    let recalls = [1, 5, 20, 100].map(recall);
    let (anon, file) = memory();
    println!(
        "{}",
        json!({
            "system": "nunatak", "search": "bm25", "passages": index.len(), "questions": asked.len(),
            "questions_s": asked.len() as f64 / median(&seconds), "rounds": seconds, "open_to_first_hit_ms": open_ms,
            "anon_mb": anon, "file_mb": file, "recall_1_5_20_100": recalls,
        })
    );
}

fn vectors(index: &Index, asked: &[Asked], dump: Option<&Path>) {
    let dense = index.dense().unwrap();
    let options = RuntimeOptions::default();
    let mut encoder = Encoder::open(&setup::model(&dense.encoder().name, &options, &Quiet).unwrap(), &options).unwrap();
    let texts: Vec<String> = asked.iter().map(|a| a.question.clone()).collect();
    let flat = encoder.encode(&texts).unwrap();
    drop(encoder);
    let questions: Vec<&[f32]> = flat.chunks_exact(dense.encoder().dim).collect();
    if let Some(folder) = dump {
        std::fs::create_dir_all(folder).unwrap();
        npy(&folder.join("questions.npy"), questions.iter().map(|q| q.to_vec()), dense.encoder().dim, questions.len());
        let rows: Vec<PassageId> = index.passages().collect();
        let rows = rows.iter().map(|&row| dense.vector(row).unwrap().iter().map(|x| x.to_f32()).collect());
        npy(&folder.join("passages.npy"), rows, dense.encoder().dim, index.len());
    }
    let ids = |hits: Vec<Hit>| hits.iter().map(|hit| hit.passage).collect::<HashSet<PassageId>>();
    let first = &questions[..questions.len().min(EXACT)];
    let exact: Vec<HashSet<PassageId>> = first.iter().map(|q| ids(dense.search_exact(q, 10, None).unwrap())).collect();
    for ef in [10, 16, 24, 32, 48, 64, 96, 128, 256] {
        let mut found = Vec::new();
        let seconds =
            rounds(|| found = questions.iter().map(|q| dense.search(q, 10, ef, None).unwrap()).collect::<Vec<_>>());
        let same = exact.iter().zip(found).map(|(exact, hits)| exact.intersection(&ids(hits)).count()).sum::<usize>();
        let (anon, file) = memory();
        println!(
            "{}",
            json!({
                "system": "nunatak", "search": "dense", "passages": index.len(), "questions": questions.len(), "ef": ef,
                "recall_10": same as f64 / (10 * exact.len()) as f64, "questions_s": questions.len() as f64 / median(&seconds),
                "rounds": seconds, "anon_mb": anon, "file_mb": file,
            })
        );
    }
}

/// Seconds of each round but the first.
fn rounds(mut work: impl FnMut()) -> Vec<f64> {
    let mut round = || {
        let begin = Instant::now();
        work();
        begin.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(|_| round()).skip(1).collect()
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Megabytes of the process's own memory, and of files that it has mapped and touched.
fn memory() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let megabytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
    };
    (megabytes("RssAnon:"), megabytes("RssFile:"))
}

/// An array `[count, dim]` of 32-bit floats in numpy's format.
fn npy(path: &Path, rows: impl Iterator<Item = Vec<f32>>, dim: usize, count: usize) {
    let mut out = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {dim}), }}");
    header.extend(std::iter::repeat_n(' ', 63 - (10 + header.len()) % 64));
    header.push('\n');
    out.write_all(b"\x93NUMPY\x01\x00").unwrap();
    out.write_all(&(header.len() as u16).to_le_bytes()).unwrap();
    out.write_all(header.as_bytes()).unwrap();
    for row in rows {
        for x in row {
            out.write_all(&x.to_le_bytes()).unwrap();
        }
    }
    out.flush().unwrap();
}
