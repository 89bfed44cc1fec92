//! How fast the frozen language model reads and writes: prefill and decode, tokens a second.
//!
//! The prompt is the first 701 tokens of the bundled passages (`title. text`, a line each), the model the
//! starter model on all cores. Prefill is the time to the first token; decode the further tokens after it, greedy,
//! over the cache bound in place. Prints one JSON line with every repeat; `benches/peers/llama.py --against` runs it
//! in turns with llama.cpp, because the machine's speed moves. `-- NAME@PRECISION` takes another model. It does not show batches.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench is a script")]

use std::time::Instant;

use nunatak::progress::Quiet;
use nunatak::read::decode::Decoding;
use nunatak::read::lm::{FrozenLm, Prompt};
use nunatak::runtime::session::RuntimeOptions;
use nunatak::runtime::setup;

const PROMPT_TOKENS: usize = 701;
const NEW_TOKENS: usize = 64;
const REPEATS: usize = 7;
const PASSAGES: &str = include_str!("../src/cli/demo/passages.jsonl");

fn main() {
    let options = RuntimeOptions::default();
    let named = std::env::args().skip(1).find(|word| !word.starts_with("--"));
    let model = setup::model(named.as_deref().unwrap_or("SmolLM2-135M-Instruct"), &options, &Quiet).unwrap();
    let mut lm = FrozenLm::open(&model, &options).unwrap();
    let passages = PASSAGES.lines().map(|line| {
        let passage: serde_json::Value = serde_json::from_str(line).unwrap();
        format!("{}. {}", passage["title"].as_str().unwrap(), passage["text"].as_str().unwrap())
    });
    let text = passages.collect::<Vec<_>>().join("\n");
    let mut prompt = lm.tokenizer().encode(&text, false).unwrap();
    prompt.truncate(PROMPT_TOKENS);
    let prompt = Prompt::of(prompt);
    let mut run = |tokens: usize| {
        let decoding = Decoding { max_new_tokens: tokens, stop: Vec::new(), ..Decoding::default() };
        let begin = Instant::now();
        let made = lm.generate(std::slice::from_ref(&prompt), &decoding, None, &mut |_, _| {}).unwrap().0;
        (begin.elapsed().as_secs_f64(), made[0].tokens.len())
    };
    run(2); // the first run allocates
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        let (first, _) = run(1);
        let (all, made) = run(NEW_TOKENS + 1);
        prefill.push(PROMPT_TOKENS as f64 / first);
        decode.push((made - 1) as f64 / (all - first));
    }
    let median = |values: &[f64]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    let line = serde_json::json!({
        "engine": "nunatak", "model": model.name(), "threads": options.thread_count(), "prompt_tokens": PROMPT_TOKENS,
        "prefill_tok_s": median(&prefill), "decode_tok_s": median(&decode), "n": REPEATS,
        "repeats": {"prefill": prefill, "decode": decode},
    });
    println!("{line}");
}
