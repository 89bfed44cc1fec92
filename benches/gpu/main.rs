//! Models on a GPU: whether they compute what the processor computes, and how fast they are.
//!
//! `gpu [cuda|tensorrt[:n]]`, the first GPU without an argument. Texts are the demo's passages, again and again. Every
//! measure is a JSON line on stdout: `parity` lines with their tolerance, and `speed` lines with every repeat, the floating-point
//! operations they need (2 for each weight and token; attention left out) and the rate that this makes. Ends with 1 if a
//! parity is outside its tolerance. It shows neither retrieval nor whole questions: `run.sh` beside it does.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench is a script")]

use std::time::Instant;

use nunatak::encode::Encoder;
use nunatak::progress::Quiet;
use nunatak::read::decode::Decoding;
use nunatak::read::lm::{FrozenLm, Prompt};
use nunatak::read::prefix::Prefix;
use nunatak::read::prompts;
use nunatak::rerank::CrossEncoder;
use nunatak::runtime::device::Device;
use nunatak::runtime::kv_session::KvSession;
use nunatak::runtime::model_dir::{ModelDir, ModelKind};
use nunatak::runtime::session::RuntimeOptions;
use nunatak::runtime::setup;
use serde_json::{Value, json};

const ENCODER: &str = "all-MiniLM-L6-v2";
const LM: &str = "SmolLM2-135M-Instruct";
const PASSAGES: &str = include_str!("../../src/cli/demo/passages.jsonl");
const QUESTIONS: &str = include_str!("../../src/cli/demo/questions.jsonl");
const REPEATS: usize = 5;
/// Tokens of a prompt, and of an answer.
const PROMPT_TOKENS: usize = 701;
const NEW_TOKENS: usize = 64;

fn main() {
    let device: Device = match std::env::args().nth(1).filter(|a| !a.starts_with("--")) {
        Some(name) => name.parse().unwrap(),
        None => Device::Cuda(0),
    };
    let gpu = RuntimeOptions { device, offline: true, ..RuntimeOptions::default() };
    let cpu = RuntimeOptions { device: Device::Cpu, beside: Some(device), ..gpu.clone() };
    let texts: Vec<String> =
        of(PASSAGES, |p| format!("{}. {}", p["title"].as_str().unwrap(), p["text"].as_str().unwrap()));
    let questions: Vec<String> = of(QUESTIONS, |q| q["question"].as_str().unwrap().to_owned());
    let good = [
        encoder_parity(&texts, &gpu, &cpu),
        reranker_parity(&questions, &texts, &gpu, &cpu),
        lm_parity(&texts, &gpu, &cpu),
        reader_parity(&questions, &texts, &gpu, &cpu),
    ];
    encode(&texts, &gpu);
    rerank(&questions, &texts, &gpu);
    prefill(&texts, &gpu);
    decode("decode", &texts, &gpu);
    decode("decode without CUDA graphs", &texts, &RuntimeOptions { unrecorded: true, ..gpu.clone() });
    println!("{}", json!({"memory": memory()}));
    std::process::exit(i32::from(good.contains(&false)));
}

fn of<T>(lines: &str, make: impl Fn(Value) -> T) -> Vec<T> {
    lines.lines().map(|line| make(serde_json::from_str(line).unwrap())).collect()
}

fn model(name: &str, precision: &str, options: &RuntimeOptions) -> ModelDir {
    setup::model(&format!("{name}@{precision}"), options, &Quiet).unwrap()
}

fn parity(what: &str, value: f32, tolerance: &str, good: bool) -> bool {
    println!("{}", json!({"parity": what, "value": value, "tolerance": tolerance, "good": good}));
    good
}

fn encoder_parity(texts: &[String], gpu: &RuntimeOptions, cpu: &RuntimeOptions) -> bool {
    let vectors = |precision: &str, options: &RuntimeOptions| {
        Encoder::open(&model(ENCODER, precision, options), options).unwrap().encode(texts).unwrap()
    };
    let (ours, exact) = (vectors("fp16", gpu), vectors("fp32", cpu));
    let width = exact.len() / texts.len();
    let cosines = ours.chunks(width).zip(exact.chunks(width)).map(|(a, b)| a.iter().zip(b).map(|(x, y)| x * y).sum());
    let least = cosines.fold(f32::INFINITY, f32::min);
    parity("encoder fp16 on the GPU to fp32 on the processor: smallest cosine", least, ">= 0.999", least >= 0.999)
}

fn reranker_parity(questions: &[String], texts: &[String], gpu: &RuntimeOptions, cpu: &RuntimeOptions) -> bool {
    let scores = |precision: &str, options: &RuntimeOptions| -> Vec<f32> {
        let mut model = CrossEncoder::open(&model("reranker", precision, options), options).unwrap();
        questions.iter().take(8).flat_map(|q| model.score(q, &texts[..40]).unwrap()).collect()
    };
    let (ours, exact) = (scores("fp16", gpu), scores("fp32", cpu));
    let most = ours.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    parity(
        "re-ranker fp16 on the GPU to fp32 on the processor: largest difference of a score",
        most,
        "<= 0.1",
        most <= 0.1,
    )
}

fn lm_parity(texts: &[String], gpu: &RuntimeOptions, cpu: &RuntimeOptions) -> bool {
    let decoding = Decoding { max_new_tokens: 16, stop: Vec::new(), ..Decoding::default() };
    let answers = |precision: &str, options: &RuntimeOptions| {
        let mut lm = FrozenLm::open(&model(LM, precision, options), options).unwrap();
        let prompts: Vec<Prompt> =
            texts.iter().take(16).map(|text| Prompt::of(lm.tokenizer().encode(text, false).unwrap())).collect();
        // One at a time, and all at once: batches must not change an answer.
        let mut alone = Vec::new();
        for prompt in &prompts {
            alone.extend(lm.generate(std::slice::from_ref(prompt), &decoding, None, &mut |_, _| {}).unwrap().0);
        }
        (alone, lm.generate(&prompts, &decoding, None, &mut |_, _| {}).unwrap().0)
    };
    let ((ours, batched), (exact, _)) = (answers("fp16", gpu), answers("fp32", cpu));
    let first = ours.iter().zip(&exact).map(|(a, b)| match a.tokens.first() == b.tokens.first() {
        true => (a.logprobs[0] - b.logprobs[0]).abs(),
        false => 0.0,
    });
    let most = first.fold(0.0, f32::max);
    let like = |a: &[nunatak::read::decode::Generation], b: &[nunatak::read::decode::Generation]| {
        let pairs = a.iter().zip(b).flat_map(|(a, b)| a.tokens.iter().zip(&b.tokens));
        pairs.clone().filter(|(a, b)| a == b).count() as f32 / pairs.count() as f32
    };
    let (same, in_batch) = (like(&ours, &exact), like(&ours, &batched));
    let what = "language model fp16 on the GPU to fp32 on the processor";
    // A greedy answer parts for good where two tokens are all but equally likely.
    let far = parity(
        &format!("{what}: largest difference of a first token's log-probability"),
        most,
        "<= 0.05",
        most <= 0.05,
    );
    let apart = parity(&format!("{what}: share of 16 x 16 tokens that are the same"), same, ">= 0.8", same >= 0.8);
    let together = parity(
        "language model on the GPU, alone to 16 in a batch: share of tokens that are the same",
        in_batch,
        ">= 0.8",
        in_batch >= 0.8,
    );
    far && apart && together
}

/// Answers behind the reader's prompt, five windows at a time as a reader has them, after a long pass has used the memory; with
/// steps of decoding recorded as CUDA graphs, and without.
fn reader_parity(questions: &[String], texts: &[String], gpu: &RuntimeOptions, cpu: &RuntimeOptions) -> bool {
    let Ok(reader) = prompts::find("reader") else {
        return parity("the reader's prompt", 0.0, "found", false);
    };
    let decoding = Decoding { max_new_tokens: 8, ..Decoding::default() };
    let answers = |precision: &str, options: &RuntimeOptions| -> nunatak::error::Result<Vec<Vec<u32>>> {
        let mut lm = FrozenLm::open(&model(LM, precision, options), options)?;
        let long = Prompt::of(tokens(&lm, texts));
        lm.generate(&vec![long; 8], &decoding, None, &mut |_, _| {})?;
        let mut answers = Vec::new();
        for (question, texts) in questions.iter().zip(texts.chunks(5)).take(20) {
            let tail = lm.tokenizer().encode(&format!("Question: {question}\nAnswer:"), false)?;
            let prompt = |text: &String| Prompt {
                prefix: Prefix::Learned(reader.clone()),
                passages: lm.tokenizer().encode(&format!("{text}\n"), false).unwrap(),
                tail: tail.clone(),
            };
            let prompts: Vec<Prompt> = texts.iter().map(prompt).collect();
            let made = lm.generate(&prompts, &decoding, None, &mut |_, _| {})?.0;
            answers.extend(made.into_iter().map(|answer| answer.tokens));
        }
        Ok(answers)
    };
    let exact = answers("fp32", cpu).unwrap();
    let compare = |how: &str, options: &RuntimeOptions| {
        let same = match answers("fp16", options) {
            Ok(ours) => ours.iter().zip(&exact).filter(|(a, b)| a == b).count() as f32 / exact.len() as f32,
            Err(error) => {
                println!("{}", json!({"failed": error.to_string(), "how": how}));
                0.0
            }
        };
        let what = "answers behind the reader's prompt, fp16 on the GPU to fp32 on the processor";
        parity(&format!("{what}, {how}: share that is the same"), same, ">= 0.8", same >= 0.8)
    };
    let recorded = compare("steps recorded", gpu);
    compare("steps not recorded", &RuntimeOptions { unrecorded: true, ..gpu.clone() }) && recorded
}

/// Time `work` a few times after two runs to warm up; `units` a run, `flops` in all.
fn speed(what: &str, unit: &str, units: usize, flops: f64, mut work: impl FnMut()) {
    let mut once = || {
        let begin = Instant::now();
        work();
        begin.elapsed().as_secs_f64()
    };
    once();
    once();
    let mut seconds: Vec<f64> = (0..REPEATS).map(|_| once()).collect();
    let repeats = seconds.clone();
    seconds.sort_by(f64::total_cmp);
    let median = seconds[REPEATS / 2];
    println!(
        "{}",
        json!({
            "speed": what, "unit": unit, "per_second": units as f64 / median, "units": units, "seconds": repeats,
            "tflops": flops / median / 1e12,
        })
    );
}

fn encode(texts: &[String], options: &RuntimeOptions) {
    let many: Vec<String> = texts.iter().cycle().take(8192).cloned().collect();
    let mut encoder = Encoder::open(&model(ENCODER, "fp16", options), options).unwrap();
    let tokens = encoder.count_tokens(&many).unwrap();
    let flops = tokens as f64 * 2.0 * 6.0 * 12.0 * 384.0 * 384.0;
    speed(&format!("encode, {} tokens a passage", tokens / many.len()), "passages", many.len(), flops, || {
        encoder.encode(&many).unwrap();
    });
}

fn rerank(questions: &[String], texts: &[String], options: &RuntimeOptions) {
    let mut reranker = CrossEncoder::open(&model("reranker", "fp16", options), options).unwrap();
    let passages: Vec<String> = texts.iter().cycle().take(100).cloned().collect();
    speed("re-rank 100 passages of a question", "pairs", 1000, 0.0, || {
        for question in questions.iter().take(10) {
            reranker.score(question, &passages).unwrap();
        }
    });
}

/// The graph alone, many prompts in one pass behind no past.
fn prefill(texts: &[String], options: &RuntimeOptions) {
    let model = model(LM, "fp16", options);
    let ModelKind::Lm(shape) = &model.description.kind else { return };
    let mut lm = FrozenLm::open(&model, options).unwrap();
    let embeds = lm.embed(&tokens(&lm, texts)).unwrap();
    drop(lm);
    let mut graph = KvSession::open(&model, shape, options).unwrap();
    for batch in [1, 8, 32] {
        let all: Vec<f32> = std::iter::repeat_n(&embeds, batch).flatten().copied().collect();
        let last: Vec<usize> = (1..=batch).map(|b| b * PROMPT_TOKENS - 1).collect();
        let flops = (batch * PROMPT_TOKENS) as f64 * 2.0 * 106e6;
        speed(&format!("prefill, batch {batch}"), "tokens", batch * PROMPT_TOKENS, flops, || {
            let mut cache = graph.new_cache(batch, PROMPT_TOKENS).unwrap();
            graph.forward(&mut cache, all.clone(), &vec![PROMPT_TOKENS; batch], &last, false).unwrap();
            graph.give_back(cache);
        });
    }
}

fn tokens(lm: &FrozenLm, texts: &[String]) -> Vec<u32> {
    let mut prompt = lm.tokenizer().encode(&texts.join("\n"), false).unwrap();
    prompt.truncate(PROMPT_TOKENS);
    prompt
}

fn decode(what: &str, texts: &[String], options: &RuntimeOptions) {
    let mut lm = FrozenLm::open(&model(LM, "fp16", options), options).unwrap();
    let prompt = Prompt::of(tokens(&lm, texts));
    for batch in [1, 8, 32] {
        let prompts = vec![prompt.clone(); batch];
        let mut made = Vec::new();
        let mut run = |tokens: usize| {
            let decoding = Decoding { max_new_tokens: tokens, stop: Vec::new(), ..Decoding::default() };
            let begin = Instant::now();
            made = lm.generate(&prompts, &decoding, None, &mut |_, _| {}).unwrap().0;
            (begin.elapsed().as_secs_f64(), made.iter().map(|m| m.tokens.len()).max().unwrap())
        };
        run(2);
        run(NEW_TOKENS + 1);
        let mut each: Vec<f64> = (0..REPEATS)
            .map(|_| {
                let (first, _) = run(1);
                let (all, steps) = run(NEW_TOKENS + 1);
                (all - first) / (steps - 1) as f64
            })
            .collect();
        let repeats = each.clone();
        each.sort_by(f64::total_cmp);
        let step = each[REPEATS / 2];
        println!(
            "{}",
            json!({
                "speed": format!("{what}, batch {batch}"), "unit": "tokens", "per_second": batch as f64 / step,
                "ms_a_step": step * 1e3, "seconds_a_step": repeats, "weights_read_gb_s": 2.0 * 134.5e6 / step / 1e9,
            })
        );
    }
}

/// What NVIDIA's tool says of the memory in use.
fn memory() -> String {
    let query = ["--query-gpu=name,memory.used,memory.total,driver_version", "--format=csv,noheader"];
    let output = std::process::Command::new("nvidia-smi").args(query).output();
    output.map_or_else(|e| format!("unknown: {e}"), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}
