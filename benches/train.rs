//! How fast a cross-encoder of the starter encoder's size trains: tokens a second through forward and backward pass.
//!
//! Pairs are groups of 8 with lengths as passages have them, from a seed. Prints one JSON line; the rate of
//! floating-point operations counts the dense layers alone (2 a weight forward, 4 backward), so attention, the
//! elementwise part and the optimiser's step are losses in it. It does not show reading, tokenising or evaluation.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench is a script")]

use std::time::Instant;

use candle_core::Device;
use nunatak::progress::Quiet;
use nunatak::runtime::session::RuntimeOptions;
use nunatak::runtime::setup::{self, Manifest};
use nunatak::runtime::tokenizer::Cut;
use nunatak::train::bert::Bert;
use nunatak::train::texts::PackedTexts;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const ROUNDS: usize = 5;

fn main() {
    let starter = Manifest::get().unwrap().starter("all-MiniLM-L6-v2").unwrap();
    let folder = setup::source(starter, &RuntimeOptions::default(), &Quiet).unwrap();
    let bert = Bert::load(&folder, None, 0, &Device::Cpu).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let texts: Vec<Cut> = (0..24)
        .map(|_| {
            let length = rng.random_range(90..250);
            let ids = (0..length).map(|_| rng.random_range(1000..30000)).collect();
            Cut { ids, types: (0..length).map(|i| u32::from(i > 12)).collect(), left_out: 0 }
        })
        .collect();
    let packed = PackedTexts::new(&texts);
    let d = bert.hidden() as f64;
    // The last layer works on the first token alone, but for its keys and values.
    let weights = (bert.layers() - 1) as f64 * 12.0 * d * d + 2.0 * d * d;
    let seconds: Vec<[f64; 2]> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            let loss = bert.scores(&packed, true).unwrap().sqr().unwrap().sum_all().unwrap();
            let forward = begin.elapsed().as_secs_f64();
            let grads = loss.backward().unwrap();
            std::hint::black_box(&grads);
            [forward, begin.elapsed().as_secs_f64() - forward]
        })
        .collect();
    let best = seconds.iter().map(|s| s[0] + s[1]).fold(f64::INFINITY, f64::min);
    let tokens = packed.tokens() as f64;
    let line = serde_json::json!({
        "tokens": tokens, "pairs": texts.len(), "tokens_s": tokens / best,
        "gflop_s": 6.0 * weights * tokens / best / 1e9, "forward_backward_s": seconds,
    });
    println!("{line}");
}
