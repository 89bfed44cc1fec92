//! Prompts that depend on the input: from files of tasks to a generator, and what it makes of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use candle_core::Device;
use nunatak::eval::task_set::{self, target_tokens};
use nunatak::export::Precision;
use nunatak::export::prompt_generator::GeneratorShape;
use nunatak::progress::Quiet;
use nunatak::read::decode::Decoding;
use nunatak::read::lm::{FrozenLm, Prompt};
use nunatak::read::prefix::Prefix;
use nunatak::read::prompt_generator::{
    EncoderTarget, GENERATOR_FORMAT, GeneratorDescription, GeneratorFile, PromptGenerator, check_encoder,
    encoder_tokens,
};
use nunatak::read::soft_prompt::{PromptTarget, SoftPrompt};
use nunatak::runtime::model_dir::sha256_of;
use nunatak::runtime::session::RuntimeOptions;
use nunatak::runtime::setup;
use nunatak::runtime::tokenizer::{Cut, TextTokenizer};
use nunatak::train::encoder::FrozenEncoder;
use nunatak::train::generator::{Generator, Outer};
use nunatak::train::llama::Decoder;
use nunatak::train::task_prompt::{MixSettings, OuterTokens, TaskModule, Writer, samples};
use nunatak::train::trainer::Trainable;
use serde_json::{Value, json};

use crate::export_t5;

const ENCODER: &str = "all-MiniLM-L6-v2";

fn nunatak() -> Command {
    Command::cargo_bin("nunatak").unwrap()
}

/// Two tasks: one with choices, one without.
fn tasks(folder: &Path) -> PathBuf {
    let path = folder.join("tasks.jsonl");
    let things = ["ice", "snow", "fire", "lava", "sleet", "steam", "frost", "embers", "hail", "magma"];
    let mut lines = Vec::new();
    for (i, thing) in things.into_iter().enumerate() {
        let cold = ["ice", "snow", "sleet", "frost", "hail"].contains(&thing);
        let split = if i < 6 { "train" } else { "test" };
        let answer = if cold { "yes" } else { "no" };
        lines.push(json!({"input": format!("Thing: {thing}\nIs it cold?"), "target": answer, "task": "cold",
            "cluster": "yes/no", "split": split, "choices": ["yes", "no"]}));
        lines.push(json!({"input": format!("Say it again: {thing}\nAgain:"), "target": thing, "task": "echo",
            "cluster": "copying", "split": split}));
    }
    fs::write(&path, lines.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")).unwrap();
    path
}

fn json_of(command: &mut Command) -> Value {
    serde_json::from_slice(&command.arg("--json").assert().success().get_output().stdout).unwrap()
}

const SMALL: [&str; 12] =
    ["--examples", "8", "--batch", "4", "--dev", "1", "--positions", "4", "--encoder-positions", "2", "--window", "32"];

#[test]
fn a_generator_from_tasks_to_scores() {
    let folder = tempfile::tempdir().unwrap();
    let (tasks, out) = (tasks(folder.path()), folder.path().join("run"));
    let train = |out: &Path, words: &[&str]| {
        let mut command = nunatak();
        command.args(["train", "id-prompt", "--tasks"]).arg(&tasks).arg("--out").arg(out).args(SMALL).args(words);
        command
    };
    let record = json_of(&mut train(&out, &[]));
    assert_eq!(record["frozen"]["before"], record["frozen"]["after"]);
    assert_eq!(record["log"]["seen"], 8);
    assert_eq!(record["data"]["sets"]["mix"], json!({"cold": 5, "echo": 5}));
    let generator = out.join("id-prompt.safetensors");
    let eval = |prompt: &[&str], out: &str| {
        let mut command = nunatak();
        command.args(["eval", "tasks", "--tasks"]).arg(&tasks).args(prompt).arg("--out").arg(folder.path().join(out));
        command
    };
    let generator = generator.to_str().unwrap();
    let report = json_of(&mut eval(&["--prompt", generator], "a"));
    let of = |task: usize, field: &str| report["tasks"][task][field].clone();
    assert_eq!((of(0, "task"), of(0, "measure"), of(0, "n")), (json!("cold"), json!("accuracy"), json!(4)));
    assert_eq!((of(1, "task"), of(1, "measure"), of(1, "n")), (json!("echo"), json!("exact-match"), json!(4)));
    let mean = (of(0, "score").as_f64().unwrap() + of(1, "score").as_f64().unwrap()) / 2.0;
    assert!((report["average"].as_f64().unwrap() - mean).abs() < 1e-12);
    assert_eq!(report["clusters"]["copying"]["score"], of(1, "score"));
    let said = |run: &str| -> Vec<Value> {
        let text = fs::read_to_string(folder.path().join(run).join("predictions.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["prediction"].clone()).collect()
    };
    assert!(said("a").iter().take(4).all(|said| said == "yes" || said == "no"));
    json_of(&mut eval(&["--prompt", generator], "again"));
    assert_eq!(said("a"), said("again"));

    // The other ways to prompt go the same way, and runs are compared task by task.
    let shared = folder.path().join("shared");
    json_of(&mut train(&shared, &["--shared", "--only", "echo"]));
    let prompt = shared.join("prompt.safetensors");
    json_of(&mut eval(&["--prompt", prompt.to_str().unwrap()], "b"));
    fs::copy(&prompt, shared.join("echo.safetensors")).unwrap();
    json_of(&mut eval(&["--prompt", shared.to_str().unwrap(), "--only", "copying"], "c"));
    assert_eq!(said("c"), said("b")[4..]);
    json_of(&mut eval(&["--shots", "2"], "d"));
    let mut compare = nunatak();
    let rows = json_of(compare.args(["eval", "compare"]).args(["a", "b"].map(|run| folder.path().join(run))));
    let names: Vec<&str> = rows["metrics"].as_array().unwrap().iter().map(|m| m["metric"].as_str().unwrap()).collect();
    for name in ["task_score", "task_score/cold", "task_score/echo"] {
        assert!(names.contains(&name), "{names:?}");
    }

    let picture = folder.path().join("gate.svg");
    let mut gate = nunatak();
    gate.args(["eval", "gate", "--threshold", "-0.5", "--curve"]).arg(&picture);
    let gate = json_of(gate.args(["a", "b"].map(|run| folder.path().join(run))));
    let (rules, n) = (gate["rules"].as_array().unwrap(), gate["n"].as_u64().unwrap());
    assert_eq!((n, rules[0]["share"].as_f64(), rules[rules.len() - 1]["share"].as_f64()), (8, Some(0.0), Some(1.0)));
    assert!((rules[0]["value"].as_f64().unwrap() - mean).abs() < 1e-12, "both tasks have four examples");
    assert!(gate["given"]["against_first"]["p"].as_f64().unwrap() <= 1.0);
    assert!(fs::read_to_string(&picture).unwrap().starts_with("<svg"));
    let picture = folder.path().join("curves.svg");
    let mut curves = nunatak();
    curves.args(["train", "curves"]).arg(format!("one for all={}", shared.display())).arg(&out);
    let curves = curves.arg("--out").arg(&picture).assert().success().get_output().stdout.clone();
    let curves = String::from_utf8(curves).unwrap();
    assert!(
        curves.starts_with("one for all (exact match)  0: ") && curves.contains("\nrun (exact match)  0: "),
        "{curves}"
    );
    assert!(fs::read_to_string(&picture).unwrap().contains("one for all"));

    // A connector is trained and used the same way; the language model is its encoder.
    let connected = folder.path().join("connector");
    let mut connector = nunatak();
    connector.args(["train", "connector", "--tasks"]).arg(&tasks).arg("--out").arg(&connected).args(SMALL);
    let record = json_of(&mut connector);
    assert_eq!((record["module"].clone(), record["log"]["seen"].clone()), (json!("connector"), json!(8)));
    let connector = connected.join("id-prompt.safetensors");
    json_of(&mut eval(&["--prompt", connector.to_str().unwrap()], "f"));
    assert_eq!(said("f").len(), 8);
    // It can begin as a prompt that was learned before, and not as one of another size.
    let (begun, at) = (folder.path().join("begun"), prompt.to_str().unwrap());
    let mut command = nunatak();
    command.args(["train", "connector", "--lr", "1e-9", "--init-prompt", at, "--tasks"]).arg(&tasks);
    json_of(command.arg("--out").arg(&begun).args(SMALL));
    let begins = GeneratorFile::load(&begun.join("id-prompt.safetensors")).unwrap().tensors["base"].clone();
    let prompt = SoftPrompt::load(&prompt).unwrap();
    let apart = begins.iter().zip(prompt.values()).map(|(a, b)| (a - b).abs());
    assert!(apart.fold(0.0, f32::max) < 1e-3);
    let mut command = nunatak();
    command.args(["train", "connector", "--init-prompt", at, "--tasks"]).arg(&tasks).arg("--out").arg(&begun);
    command.args(&SMALL[..6]).assert().failure().stderr(predicates::str::contains("learned for something else"));

    // An encoder of one's own, here a T5, is kept beside the generator, which does not work without it.
    let (t5, own) = (folder.path().join("tiny-t5"), folder.path().join("own"));
    fs::create_dir(&t5).unwrap();
    export_t5::checkpoint(&t5, 30_522, false, &fs::read(source(ENCODER).join("tokenizer.json")).unwrap());
    json_of(&mut train(&own, &["--encoder", t5.to_str().unwrap()]));
    // Also if its folder has the name of a starter model.
    let (namesake, other) = (folder.path().join(ENCODER), folder.path().join("namesake"));
    fs::rename(&t5, &namesake).unwrap();
    json_of(&mut train(&other, &["--encoder", namesake.to_str().unwrap()]));
    assert!(other.join("id-prompt.encoder").join("model.safetensors").is_file());
    fs::remove_dir_all(&namesake).unwrap();
    let own = own.join("id-prompt.safetensors");
    json_of(&mut eval(&["--prompt", own.to_str().unwrap()], "h"));
    assert_eq!(said("h").len(), 8);
    let alone = folder.path().join("alone.safetensors");
    fs::copy(&own, &alone).unwrap();
    let error = eval(&["--prompt", alone.to_str().unwrap()], "i").assert().failure().get_output().stderr.clone();
    let error = String::from_utf8(error).unwrap();
    assert!(error.contains("reads with tiny-t5, which is no starter model"), "{error}");

    // What the first pass said becomes the input of a second.
    let second = folder.path().join("second.jsonl");
    let mut candidates = nunatak();
    candidates.args(["train", "candidates", "--samples", "3", "--only", "echo", "--tasks"]).arg(&tasks);
    let made = json_of(candidates.args(["--prompt", generator, "--out"]).arg(&second));
    assert_eq!(made["examples"], 10);
    let text = fs::read_to_string(&second).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        let input = line["input"].as_str().unwrap();
        assert!(input.starts_with("Candidates: ") && input.contains("\nSay it again: "), "{input}");
    }
    assert_eq!(lines.iter().filter(|line| line["split"] == "train").count(), 6);
    let mut read = nunatak();
    read.args(["eval", "tasks", "--likelihood", "--tasks"]).arg(&second).arg("--out").arg(folder.path().join("g"));
    let report = json_of(&mut read);
    assert!(report["tasks"][0]["log_likelihood"].as_f64().unwrap() < 0.0);
    assert!(report["tasks"][0]["f1"].as_f64().unwrap() >= report["tasks"][0]["score"].as_f64().unwrap());
    // Both passes know an example by the same name, so they can be compared.
    json_of(&mut eval(&["--prompt", generator, "--only", "echo"], "first"));
    let mut compare = nunatak();
    let rows = json_of(compare.args(["eval", "compare"]).args(["first", "g"].map(|run| folder.path().join(run))));
    assert_eq!(rows["n"], 4);

    // What is missing or damaged is named.
    let fails = |prompt: &[&str], message: &str| {
        let error = eval(prompt, "e").assert().failure().get_output().stderr.clone();
        let error = String::from_utf8(error).unwrap();
        assert!(error.contains(message), "{error}");
    };
    fails(&["--prompt", shared.to_str().unwrap()], "no prompt for the task cold");
    fails(&["--only", "nothing"], "no task or cluster \"nothing\"");
    let mut bytes = fs::read(generator).unwrap();
    let damaged = folder.path().join("damaged.safetensors");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&damaged, &bytes).unwrap();
    fails(&["--prompt", damaged.to_str().unwrap()], "damaged.safetensors: its numbers are not what was written");
    fs::write(&damaged, &bytes[..last]).unwrap();
    fails(&["--prompt", damaged.to_str().unwrap()], "damaged.safetensors");
    eval(&["--prompt", generator], "a").assert().failure().stderr(predicates::str::contains("another run lies"));
    train(&out, &["--resume", "--seed", "1"])
        .assert()
        .failure()
        .stderr(predicates::str::contains("other settings, data or models"));
    let mut other = nunatak();
    other.args(["train", "id-prompt", "--from", generator, "--tasks"]).arg(&tasks).arg("--out").arg(&out);
    other.args(&SMALL[..6]).assert().failure().stderr(predicates::str::contains("learned for something else"));
}

const LM: &str = "SmolLM2-135M-Instruct";

/// A starter model's folder or file, as it was published.
fn source(name: &str) -> PathBuf {
    let starter = setup::Manifest::get().unwrap().starter(name).unwrap();
    setup::source(starter, &RuntimeOptions::default(), &Quiet).unwrap()
}

/// A generator with random numbers in place of those that begin as zero, over the encoder or, a connector, without one.
fn random_generator(encoder: Option<(&str, &Path)>) -> (GeneratorFile, Generator) {
    let width = match encoder {
        Some((ENCODER, _)) => 384,
        Some(_) => export_t5::HIDDEN,
        None => 576,
    };
    let shape = GeneratorShape { positions: 3, hidden: 576, width, encoder_positions: 4, blocks: 2, heads: width / 64 };
    let device = Device::Cpu;
    let words = candle_core::Tensor::zeros((3, 576), candle_core::DType::F32, &device).unwrap();
    let outer = match encoder {
        Some((_, folder)) => Outer::Encoder(FrozenEncoder::load(folder, &device).unwrap()),
        None => Outer::Itself,
    };
    let mut generator = Generator::new(shape, outer, words, 7, &device).unwrap();
    let mut tensors: BTreeMap<String, Vec<f32>> = generator.tensors().unwrap();
    for (name, numbers) in &mut tensors {
        if name.starts_with("project") || name.ends_with("bias") || name == "base" {
            for (i, x) in numbers.iter_mut().enumerate() {
                *x = ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) / 5.0;
            }
        }
    }
    let target = PromptTarget { name: LM.into(), layers: 30, kv_width: 192, hidden: 576 };
    let sha256 = encoder.map_or(String::new(), |(_, folder)| sha256_of(&folder.join("model.safetensors")).unwrap());
    let name = encoder.map_or(LM, |(name, _)| name).to_owned();
    let description = GeneratorDescription {
        format: GENERATOR_FORMAT,
        target,
        encoder: EncoderTarget { name, sha256, tokens: 24, itself: encoder.is_none() },
        shape,
        behind: None,
        abstains: false,
        sha256: String::new(),
        training: Value::Null,
    };
    let mut file = GeneratorFile::new(description, &tensors).unwrap();
    file.encoder = encoder.filter(|(name, _)| *name != ENCODER).map(|(_, folder)| folder.to_owned());
    generator.set_tensors(&file.tensors).unwrap();
    (file, generator)
}

#[test]
fn the_graph_of_a_generator_computes_what_was_trained() {
    let options = RuntimeOptions::default();
    setup::model(ENCODER, &options, &Quiet).unwrap();
    let model = setup::model(&format!("{LM}@fp32"), &options, &Quiet).unwrap();
    let mut served = FrozenLm::open(&model, &options).unwrap();
    let lm = Decoder::open(&source(LM), &Device::Cpu).unwrap();
    let folder = source(ENCODER);
    let t5 = tempfile::tempdir().unwrap();
    export_t5::checkpoint(t5.path(), 30_522, true, &fs::read(folder.join("tokenizer.json")).unwrap());
    for encoder in [Some((ENCODER, folder.as_path())), Some(("tiny-t5", t5.path())), None] {
        let (file, generator) = random_generator(encoder);
        let own = encoder.map(|(_, folder)| TextTokenizer::from_file(&folder.join("tokenizer.json"), ENCODER).unwrap());
        // The last is longer than the encoder reads: its beginning and end count.
        let long = "one two three four five six seven eight nine ten ".repeat(5) + "the end";
        let inputs = ["Is ice cold?", "Ja", long.as_str()];
        let cuts: Vec<Cut> = inputs
            .iter()
            .map(|input| {
                let tokenizer = own.as_ref().unwrap_or(served.tokenizer());
                let ids = encoder_tokens(tokenizer, input, 24, encoder.is_some()).unwrap();
                assert!(ids.len() <= 24 && (encoder.is_none() || (ids[0] == 101 && ids.last() == Some(&102))));
                Cut { types: vec![0; ids.len()], ids, left_out: 0 }
            })
            .collect();
        let trained = generator.prompts(&cuts.iter().collect::<Vec<_>>(), &lm).unwrap();
        let trained: Vec<f32> = trained.flatten_all().unwrap().to_vec1().unwrap();
        let mut exact = PromptGenerator::open(&file, Precision::Fp32, &options, &Quiet).unwrap();
        let mut fast = PromptGenerator::open(&file, Precision::Int8, &options, &Quiet).unwrap();
        let base = &file.tensors["base"];
        let (mut differs, width) = (false, base.len());
        for (input, trained) in inputs.iter().zip(trained.chunks_exact(width)) {
            let prompt = exact.prompt(input, &mut served).unwrap();
            for (a, b) in prompt.values().iter().zip(trained) {
                // Prompts are rounded to 16-bit floats.
                assert!((a - b).abs() < 2e-3 * (1.0 + b.abs()), "{input}: {a} {b}");
            }
            differs |= trained.iter().zip(base).any(|(a, b)| (a - b).abs() > 0.1);
            let prompt = fast.prompt(input, &mut served).unwrap();
            let of_input = |values: &[f32]| values.iter().zip(base).map(|(x, base)| x - base).collect::<Vec<f32>>();
            let (a, b) = (of_input(prompt.values()), of_input(trained));
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
            let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
            assert!(cosine > 0.98, "{input}: {cosine}");
            assert_eq!(fast.prompt(input, &mut served).unwrap().hash(), prompt.hash());
        }
        assert!(differs);
        if let Some((name, folder)) = encoder {
            check_encoder(&file.description.encoder, folder).unwrap();
            // An encoder with other weights is refused, also where a graph over the right one is there.
            let other = EncoderTarget { sha256: "0".into(), ..file.description.encoder.clone() };
            let mut file = file.clone();
            file.description.encoder = other;
            let error = PromptGenerator::open(&file, Precision::Fp32, &options, &Quiet).unwrap_err().to_string();
            assert!(error.contains(&format!("another {name}")), "{error}");
        }
    }
}

#[test]
fn a_prompt_behind_a_prompt_reads_as_it_was_trained() {
    let options = RuntimeOptions::default();
    let model = setup::model("SmolLM2-135M-Instruct@fp32", &options, &Quiet).unwrap();
    let source =
        |name: &str| setup::source(setup::Manifest::get().unwrap().starter(name).unwrap(), &options, &Quiet).unwrap();
    setup::model(ENCODER, &options, &Quiet).unwrap();
    let encoder = source(ENCODER);
    let (file, generator) = random_generator(Some((ENCODER, &encoder)));
    let reader = nunatak::read::prompts::find("reader").unwrap();
    // Examples that are all the same: whichever is drawn is this one.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tasks.jsonl");
    let (input, target) = ("Question: what covers Greenland\nAnswer:", "a sheet of ice");
    let line = json!({"input": input, "target": target, "task": "t", "split": "train"}).to_string();
    fs::write(&path, [line.as_str(); 6].join("\n")).unwrap();
    let set = task_set::read(&[path], 0, &Quiet).unwrap();
    let mix = MixSettings { cap: 10, dev: 1, tokens: 64, encoder_tokens: 24, seed: 0 };
    let tokenizer = TextTokenizer::open(&model).unwrap();
    let outer = TextTokenizer::from_file(&encoder.join("tokenizer.json"), ENCODER).unwrap();
    let outer = OuterTokens { tokenizer: &outer, itself: false };
    let (train, dev, _) = samples(&set, &mix, &tokenizer, outer).unwrap();
    let lm = Decoder::open(&source("SmolLM2-135M-Instruct"), &Device::Cpu).unwrap();
    let writer = Writer::Generated(Box::new(generator));
    let module = TaskModule::new(&lm, (writer, 3), (&train, &dev), 512).behind(&reader).unwrap();
    let trained = -f64::from(module.loss(&[0], 0).unwrap().to_scalar::<f32>().unwrap());

    let mut generator = PromptGenerator::open(&file, Precision::Fp32, &options, &Quiet).unwrap();
    let mut served = FrozenLm::open(&model, &options).unwrap();
    let prefix = Prefix::Written { behind: Some(reader), prompt: generator.prompt(input, &mut served).unwrap() };
    assert_eq!(prefix.positions(), 3 + nunatak::read::prompts::find("reader").unwrap().positions());
    let prompt = Prompt { prefix, passages: Vec::new(), tail: tokenizer.encode(input, false).unwrap() };
    let wanted = target_tokens(&tokenizer, target).unwrap();
    let score = served.score(&prompt, std::slice::from_ref(&wanted)).unwrap()[0];
    let served = f64::from(score) / wanted.len() as f64;
    assert!((served - trained).abs() < 0.01 * trained.abs(), "{served} {trained}");
}

#[test]
fn a_generator_for_readers_writes_for_every_question() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("index");
    let demo = |name: &str| format!("{}/src/cli/demo/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let mut build = nunatak();
    build.args(["index", "build", "--no-dense", "--corpus", &demo("passages"), "--index"]).arg(&index);
    build.assert().success();
    let out = folder.path().join("run");
    let mut train = nunatak();
    train.args(["train", "id-prompt", "--questions", &demo("questions"), "--index"]).arg(&index);
    json_of(train.args(["--examples", "4", "--batch", "2", "--dev", "1", "--positions", "4", "--out"]).arg(&out));
    let generator = out.join("id-prompt.safetensors");
    let ask = |prompt: &str| {
        let mut command = nunatak();
        command.args(["ask", "How high does the tallest geyser throw water?", "--prompt", prompt]);
        json_of(command.args(["--rerank", "none", "--passages", "2", "--read-all", "--index"]).arg(&index))
    };
    let (written, plain) = (ask(generator.to_str().unwrap()), ask("reader"));
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(tokens(&written), tokens(&plain) + 2 * 4);
    assert_eq!(ask(generator.to_str().unwrap())["answer"], written["answer"]);
    // Continuing passages comes before, to begin from.
    let (begun, behind) = (folder.path().join("begun"), folder.path().join("behind"));
    let mut continuing = nunatak();
    continuing.args(["train", "connector", "--examples", "4", "--batch", "2", "--dev", "1", "--positions", "4"]);
    let record = json_of(continuing.arg("--index").arg(&index).arg("--out").arg(&begun));
    assert_eq!(record["metric"], "token accuracy");
    let mut from = nunatak();
    from.args(["train", "connector", "--examples", "2", "--batch", "2", "--dev", "1", "--positions", "4", "--index"]);
    from.arg(&index).args(["--questions", &demo("questions"), "--out"]).arg(&behind);
    json_of(from.arg("--from").arg(begun.join("id-prompt.safetensors")));
    let connected = ask(behind.join("id-prompt.safetensors").to_str().unwrap());
    assert_eq!(tokens(&connected), tokens(&written));
    // As the second of two passes: vectors that go on from the first one's prompt, and its candidates behind them.
    let again = |second: &Path| {
        let mut command = nunatak();
        command.args([
            "ask",
            "How high does the tallest geyser throw water?",
            "--recursion",
            "neural",
            "--samples",
            "0",
        ]);
        command.args(["--explain", "--rerank", "none", "--passages", "2", "--index"]).arg(&index);
        command.arg("--second").arg(second);
        command
    };
    let neural = json_of(&mut again(&behind.join("id-prompt.safetensors")));
    assert_eq!(tokens(&neural), tokens(&plain) + tokens(&connected));
    assert_eq!(neural["trace"]["second"]["first"], plain["answer"]);
    again(&generator).assert().failure().stderr(predicates::str::contains("reads with another model"));

    let mut warm = nunatak();
    warm.args(["index", "warm", "--all", "--prompt"]).arg(&generator).arg("--index").arg(&index);
    warm.assert().failure().stderr(predicates::str::contains("a prompt of its own"));
    let mut eval = nunatak();
    eval.args(["eval", "tasks", "--tasks"]).arg(tasks(folder.path())).arg("--prompt").arg(&generator);
    eval.arg("--out").arg(folder.path().join("e"));
    eval.assert().failure().stderr(predicates::str::contains("learned behind"));
}

#[test]
fn a_continuation_scores_what_generation_gave_it() {
    let options = RuntimeOptions::default();
    let model = setup::model("SmolLM2-135M-Instruct@fp32", &options, &Quiet).unwrap();
    let mut lm = FrozenLm::open(&model, &options).unwrap();
    let prompt = Prompt::of(lm.tokenizer().encode("The capital of France is", false).unwrap());
    let decoding = Decoding { max_new_tokens: 5, stop: Vec::new(), ..Decoding::default() };
    let written = lm.generate(std::slice::from_ref(&prompt), &decoding, None, &mut |_, _| {}).unwrap().0.remove(0);
    let continuations = vec![written.tokens.clone(), written.tokens[..1].to_vec(), Vec::new(), vec![5, 6, 7]];
    let scores = lm.score(&prompt, &continuations).unwrap();
    let wanted = [written.logprobs.iter().sum::<f32>(), written.logprobs[0], 0.0];
    for (score, wanted) in scores.iter().zip(wanted) {
        assert!((score - wanted).abs() < 1e-3, "{scores:?} {wanted}");
    }
    let alone = lm.score(&prompt, &continuations[3..]).unwrap();
    assert!((alone[0] - scores[3]).abs() < 1e-3 && alone[0] < scores[0]);
}
