//! The vector graph of an index beside hnsw_rs: build time, recall@10 against exact search, questions a second.
//!
//! Both get the same clustered unit vectors (seeded; 256 centres, 384 components), M 16, ef_construction 200 and all
//! cores to build; both are asked by one thread. The graph alone is timed on both sides: what else an index build does
//! (passages stored, files hashed and synced) is left out of ours. Ours searches from the mapped files, over 16-bit
//! vectors; hnsw_rs holds 32-bit vectors in memory. Recall is against exact search over our 16-bit vectors, on both
//! sides: where rounding swaps two neighbours, that counts against hnsw_rs. Synthetic vectors are kinder than text; the
//! numbers compare the two graphs, nothing else. An argument sets the number of vectors (default 50,000).
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench is a script")]

use std::collections::HashSet;
use std::time::Instant;

use hnsw_rs::prelude::{DistDot, Hnsw};
use nunatak::index::Index;
use nunatak::index::manifest::EncoderIdentity;
use nunatak::index::writer::{BuildOptions, build};
use nunatak::progress::Quiet;
use nunatak::types::{Passage, SourceSpan};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DIM: usize = 384;
const CENTRES: usize = 256;
const QUESTIONS: usize = 500;
const K: usize = 10;

fn unit(random: &mut ChaCha8Rng, around: Option<&[f32]>) -> Vec<f32> {
    let mut v: Vec<f32> =
        (0..DIM).map(|i| random.random_range(-1.0f32..1.0) + around.map_or(0.0, |c| c[i] * 12.0)).collect();
    let length = v.iter().map(|x| x * x).sum::<f32>().sqrt();
    v.iter_mut().for_each(|x| *x /= length);
    v
}

fn main() {
    let n = std::env::args().find_map(|a| a.parse().ok()).unwrap_or(50_000);
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let centres: Vec<Vec<f32>> = (0..CENTRES).map(|_| unit(&mut random, None)).collect();
    let mut draw = |count: usize| -> Vec<Vec<f32>> {
        (0..count)
            .map(|_| {
                let centre = random.random_range(0..CENTRES);
                unit(&mut random, Some(&centres[centre]))
            })
            .collect()
    };
    let vectors = draw(n);
    let questions = draw(QUESTIONS);

    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("index");
    let mut source = |sink: &mut dyn FnMut(Passage) -> nunatak::error::Result<()>| {
        (0..n).try_for_each(|i| {
            let source = SourceSpan::default();
            sink(Passage {
                key: i.to_string(),
                title: String::new(),
                text: format!("passage {i}"),
                source,
                metadata: Default::default(),
            })
        })
    };
    let mut at = 0;
    let mut encode = |texts: &[String]| {
        at += texts.len();
        Ok(vectors[at - texts.len()..at].concat())
    };
    let encoder = EncoderIdentity { name: "bench".into(), fingerprint: "bench".into(), dim: DIM };
    let options = BuildOptions { encoder: Some(encoder), ..BuildOptions::default() };
    let report = build(&dir, &mut source, Some(&mut encode), &options, &Quiet).unwrap();
    let index = Index::open(&dir).unwrap();
    let dense = index.dense().unwrap();
    let exact: Vec<HashSet<usize>> = questions
        .iter()
        .map(|q| dense.search_exact(q, K, None).unwrap().iter().map(|h| h.passage.row()).collect())
        .collect();

    let begin = Instant::now();
    let peer = Hnsw::<f32, DistDot>::new(16, n, 16, 200, DistDot {});
    let rows: Vec<(&[f32], usize)> = vectors.iter().enumerate().map(|(i, v)| (v.as_slice(), i)).collect();
    peer.parallel_insert_slice(&rows);
    let peer_build = begin.elapsed().as_secs_f64();

    let measure = |engine: &str, ef: usize, search: &dyn Fn(&[f32]) -> Vec<usize>| {
        questions.iter().take(50).for_each(|q| drop(search(q))); // pages are mapped and caches filled
        let begin = Instant::now();
        let found: Vec<Vec<usize>> = questions.iter().map(|q| search(q)).collect();
        let rate = QUESTIONS as f64 / begin.elapsed().as_secs_f64();
        let hits: usize = found.iter().zip(&exact).map(|(f, e)| f.iter().filter(|i| e.contains(i)).count()).sum();
        let recall = hits as f64 / (QUESTIONS * K) as f64;
        let build = if engine == "nunatak" { report.seconds.graph } else { peer_build };
        println!(
            "{}",
            serde_json::json!({"engine": engine, "vectors": n, "ef": ef, "recall@10": recall, "questions_s": rate, "graph_build_s": build})
        );
    };
    for ef in [16, 32, 64, 128] {
        measure("nunatak", ef, &|q| dense.search(q, K, ef, None).unwrap().iter().map(|h| h.passage.row()).collect());
        measure("hnsw_rs", ef, &|q| peer.search(q, K, ef).iter().map(|n| n.d_id).collect());
    }
}
