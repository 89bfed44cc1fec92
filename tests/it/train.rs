//! `nunatak train` as a user meets it: from a small file of questions to a prompt that `ask` uses.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use assert_cmd::Command;
use nunatak::eval::dataset::{self, Dataset};
use nunatak::export::Precision;
use nunatak::export::bert::export_cross_encoder;
use nunatak::export::learned::unfold;
use nunatak::index::Index;
use nunatak::progress::Quiet;
use nunatak::read::template::{Template, TemplateKind};
use nunatak::runtime::model_dir::{ModelKind, Prior};
use nunatak::runtime::session::RuntimeOptions;
use nunatak::runtime::setup::{self, Manifest};
use nunatak::runtime::tokenizer::TextTokenizer;
use nunatak::train::windows::{WindowSettings, Windows};
use serde_json::Value;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/demo/passages.jsonl");
const DEMO_QUESTIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/demo/questions.jsonl");

fn nunatak() -> Command {
    Command::cargo_bin("nunatak").unwrap()
}

fn index(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("index");
    nunatak().args(["index", "build", "--no-dense", "--corpus", DEMO, "--index"]).arg(&path).assert().success();
    path
}

fn train(index: &Path, questions: &Path, out: &Path) -> Command {
    let mut command = nunatak();
    command.args(["train", "prompt", "--index"]).arg(index).arg("--questions").arg(questions).arg("--out").arg(out);
    command
}

#[test]
fn a_prompt_from_questions_to_answers() {
    let folder = tempfile::tempdir().unwrap();
    let (index, out) = (index(folder.path()), folder.path().join("prompt"));
    let small = ["--examples", "8", "--batch", "4", "--dev", "2", "--positions", "16", "--short", "0.9", "--json"];
    let mut command = train(&index, Path::new(DEMO_QUESTIONS), &out);
    let printed = command.args(small).assert().success().get_output().stdout.clone();
    let record: Value = serde_json::from_slice(&printed).unwrap();
    assert_eq!(record["frozen"]["before"], record["frozen"]["after"]);
    assert_eq!(record["log"]["seen"], 8);
    assert_eq!(record["log"]["steps"], 2);
    let written: Value = serde_json::from_str(&fs::read_to_string(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(written, record);
    let prompt = out.join("prompt.safetensors");
    let ask = |words: &[&str]| -> Value {
        let question = "How high does the tallest geyser throw water?";
        let mut command = nunatak();
        command.args(["ask", question, "--json", "--index"]).arg(&index).args(words);
        serde_json::from_slice(&command.assert().success().get_output().stdout).unwrap()
    };
    let learned = ask(&["--prompt", prompt.to_str().unwrap()]);
    let words = ask(&["--prompt", "none"]);
    // The few-shot template is far longer than 16 positions.
    assert!(learned["usage"]["prompt_tokens"].as_u64().unwrap() < words["usage"]["prompt_tokens"].as_u64().unwrap());
    assert_eq!(ask(&["--prompt", prompt.to_str().unwrap()])["answer"], learned["answer"]);
    // Ready-made runs are taken up, and other settings are not mixed into them.
    train(&index, Path::new(DEMO_QUESTIONS), &out).args(small).arg("--resume").assert().success();
    let mut other = train(&index, Path::new(DEMO_QUESTIONS), &out);
    other
        .args(small)
        .args(["--resume", "--seed", "1"])
        .assert()
        .failure()
        .stderr(predicates::str::contains("other settings, data or models"));
    // The prompt that comes with the program is a place to begin, at its own length.
    let further = |words: &[&str]| {
        let mut command = train(&index, Path::new(DEMO_QUESTIONS), &folder.path().join("further"));
        command.args(["--examples", "4", "--batch", "4", "--dev", "2", "--short", "0.9", "--json"]).args(words).assert()
    };
    let printed = further(&["--from", "reader"]).success().get_output().stdout.clone();
    let further_record: Value = serde_json::from_slice(&printed).unwrap();
    assert!(further_record["parameters"].as_u64() > record["parameters"].as_u64());
    further(&["--from", "nobody"]).failure().stderr(predicates::str::contains("there is no prompt nobody"));
    further(&["--from", "reader", "--positions", "16"])
        .failure()
        .stderr(predicates::str::contains("cannot be used with"));
}

#[test]
fn questions_about_one_passage_share_its_window() {
    let folder = tempfile::tempdir().unwrap();
    let index = Arc::new(Index::open(&index(folder.path())).unwrap());
    let answers = ["bare rock", "Inuit", "Greenland", "landmarks", "bedrock", "Lichens and mosses", "snow petrel"];
    let line = |answer: &str| {
        let question = format!("what about {answer}");
        serde_json::json!({"question": question, "answers": [answer], "positive_ids": ["nunatak"]}).to_string()
    };
    let questions = folder.path().join("questions.jsonl");
    fs::write(&questions, answers.map(line).join("\n")).unwrap();
    let set = dataset::read(&questions, 0, &Quiet).unwrap();
    let model = setup::model("SmolLM2-135M-Instruct", &RuntimeOptions::default(), &Quiet).unwrap();
    let ModelKind::Lm(shape) = &model.description.kind else { panic!("no language model") };
    let tokenizer = Arc::new(TextTokenizer::open(&model).unwrap());
    let template = Arc::new(Template::new(TemplateKind::Plain, shape, &tokenizer, &model.name()).unwrap());
    let windows = |sets: &[Dataset], settings: WindowSettings| {
        Windows::new(sets, &index, &tokenizer, &template, &settings).unwrap()
    };
    let plain = WindowSettings { several: 0.0, absent: 0.0, short: 0.0, ..WindowSettings::default() };

    let (whole, intake) = windows(std::slice::from_ref(&set), plain.clone());
    assert_eq!((whole.len(), intake.used), (2, 7), "at most six to a window, shared out evenly");
    let mut said = Vec::new();
    for sample in (0..2).map(|i| whole.sample(i).unwrap()) {
        let text = tokenizer.decode(&sample.passages).unwrap();
        assert!(text.starts_with("Passage: Nunatak. A nunatak is") && text.ends_with("open water.\n"), "{text}");
        for asked in &sample.asked {
            assert_eq!(asked.input().len(), asked.tail.len() + asked.target.len() - 1);
            let tail = tokenizer.decode(&asked.tail).unwrap();
            let target = tokenizer.decode(&asked.target).unwrap();
            assert_eq!(tail, format!("Question: what about{}Answer:", target), "{tail} {target}");
            said.push(target.trim().to_owned());
        }
        let asked: usize = sample.asked.iter().map(|a| a.input().len()).sum();
        assert_eq!(sample.len(), sample.passages.len() + asked);
    }
    assert_eq!(said, answers);

    // A set that is given twice has windows of its own, and held-out questions share no passage with the others.
    let (twice, _) = windows(&[set.clone(), set.clone()], plain.clone());
    assert_eq!(twice.len(), 4);
    let (kept, held) = twice.hold_out(1);
    assert_eq!((kept.len(), held.len()), (0, 4));
    // What is cut down to one answer is asked for that one alone, and so is a passage without it.
    let (absent, _) = windows(std::slice::from_ref(&set), WindowSettings { absent: 0.999, ..plain });
    let sample = absent.sample(0).unwrap();
    assert_eq!(sample.asked.len(), 1);
    assert_eq!(tokenizer.decode(&sample.asked[0].target).unwrap(), "\n");
    assert!(!tokenizer.decode(&sample.passages).unwrap().contains("bare rock"));
}

#[test]
fn what_cannot_be_learned_from_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (index, out) = (index(folder.path()), folder.path().join("prompt"));
    let questions = folder.path().join("questions.jsonl");
    let fails = |text: &str, message: &str| {
        fs::write(&questions, text).unwrap();
        let output = train(&index, &questions, &out).assert().failure().get_output().stderr.clone();
        let output = String::from_utf8(output).unwrap();
        assert!(output.contains(message), "{output}");
        assert!(!out.join("prompt.safetensors").exists());
    };
    fails("{\"question\": 3}\n", "questions.jsonl:1:");
    fails("{\"question\": \"who?\", \"answers\": [\"x\"]}\n", "1 without answers or positive_ids");
    fails(
        "{\"question\": \"who?\", \"answers\": [\"x\"], \"positive_ids\": [\"nowhere\"]}\n",
        "1 whose gold passages are not in the index",
    );
    fails(
        "{\"question\": \"who?\", \"answers\": [\"xyzzy\"], \"positive_ids\": [\"nunatak\"]}\n",
        "1 whose answers do not stand in their gold passages",
    );
}

/// A small run of `train reranker`.
fn train_reranker(index: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = nunatak();
    command.args(["train", "reranker", "--questions", DEMO_QUESTIONS, "--index"]).arg(index).arg("--out").arg(out);
    command.args(["--examples", "8", "--batch", "4", "--dev", "4", "--dev-depth", "5", "--depth", "20"]);
    command.args(["--negatives", "2", "--max-tokens", "64", "--layers", "2"]).args(more);
    command
}

#[test]
fn a_reranker_learns_from_another() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path());
    let run = |name: &str, more: &[&str]| -> Value {
        let out = folder.path().join(name);
        let printed = train_reranker(&index, &out, more).arg("--json").assert().success().get_output().stdout.clone();
        assert!(out.join("reranker/nunatak.json").is_file());
        serde_json::from_slice(&printed).unwrap()
    };
    let alone = run("alone", &[]);
    assert_eq!(alone["settings"]["teacher"], Value::Null);
    // A teacher that has hardly learned is sure of nothing, as the labels are: one that is would say what they say.
    let teacher = folder.path().join("alone/reranker").display().to_string();
    let taught = run("taught", &["--teacher", &teacher, "--teacher-weight", "0.5"]);
    assert_eq!(taught["settings"]["teacher"], serde_json::json!([teacher, 0.5]));
    assert_eq!(taught["log"]["seen"], 8);
    // The same groups in the same order: only what the teacher says can have made another loss of them.
    assert_ne!(taught["log"]["losses"], alone["log"]["losses"]);
    // Its weight means nothing without it.
    let mut weight_alone = train_reranker(&index, &folder.path().join("none"), &["--teacher-weight", "0.5"]);
    weight_alone.assert().code(2).stderr(predicates::str::contains("--teacher"));
}

#[test]
fn a_reranker_from_questions_to_search() {
    let folder = tempfile::tempdir().unwrap();
    let (index, out) = (index(folder.path()), folder.path().join("reranker"));
    let train = |more: &[&str]| train_reranker(&index, &out, more);
    let printed = train(&["--json"]).assert().success().get_output().stdout.clone();
    let record: Value = serde_json::from_slice(&printed).unwrap();
    assert_eq!((&record["log"]["seen"], &record["log"]["steps"]), (&8.into(), &2.into()));
    assert_eq!(record["data"]["questions"]["dev"], 4);
    let mined = fs::read_to_string(out.join("mined.jsonl")).unwrap();
    // A finished run is taken up, and what was mined is not mined again.
    train(&["--resume"]).assert().success().stdout(predicates::str::contains("MRR@10 on held-out questions"));
    assert_eq!(fs::read_to_string(out.join("mined.jsonl")).unwrap(), mined);
    let search = |more: &[&str]| -> Vec<Value> {
        let mut command = nunatak();
        command.args(["search", "what is a nunatak", "--json", "-k", "10", "--index"]).arg(&index).args(more);
        let output = command.assert().success().get_output().stdout.clone();
        String::from_utf8(output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let scores = |model: &str| -> Vec<(String, f64)> {
        let model = out.join(model);
        let hits = search(&["--rerank", model.to_str().unwrap(), "--rerank-depth", "10"]);
        hits.iter().map(|h| (h["passage_id"].to_string(), h["score"].as_f64().unwrap())).collect()
    };
    let (exact, short) = (scores("reranker-fp32"), scores("reranker"));
    assert!(exact.is_sorted_by(|a, b| a.1 >= b.1), "{exact:?}");
    let ids = |scores: &[(String, f64)]| scores.iter().map(|s| s.0.clone()).collect::<std::collections::BTreeSet<_>>();
    let plain = search(&["--rerank", "none"]).iter().map(|h| h["passage_id"].to_string()).collect();
    assert_eq!((ids(&exact), ids(&short)), (plain, ids(&exact)), "the ten are ordered again, and stay the ten");
    // What it learned can be learned on from, and its small file is the same model: the graph comes out the same.
    let (file, whole) = (fs::read(out.join("reranker.safetensors")).unwrap(), folder.path().join("whole"));
    let starter = Manifest::get().unwrap().starter("all-MiniLM-L6-v2").unwrap();
    let base = setup::source(starter, &RuntimeOptions::default(), &Quiet).unwrap();
    let learned = unfold(&file, Path::new("reranker.safetensors"), &base, &whole).unwrap();
    assert!(learned.borrowed.contains_key("bert.embeddings.word_embeddings.weight"), "they were left alone");
    assert_eq!(learned.priors.len(), 1, "an index without vectors has one first stage");
    let graph = folder.path().join("graph");
    export_cross_encoder(&whole, &graph, Precision::Int8).unwrap();
    let published = |file: &str| fs::read(out.join("reranker").join(file)).unwrap();
    assert!(fs::read(graph.join("model.onnx")).unwrap() == published("model.onnx"));
    let description: Value = serde_json::from_slice(&published("nunatak.json")).unwrap();
    let priors: Vec<Prior> = serde_json::from_value(description["priors"].clone()).unwrap();
    assert_eq!(priors, learned.priors);
}

#[test]
fn prompts_that_are_none_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path());
    let ask = |prompt: &str| {
        let mut command = nunatak();
        command.args(["ask", "why?", "--prompt", prompt, "--index"]).arg(&index);
        String::from_utf8(command.assert().failure().get_output().stderr.clone()).unwrap()
    };
    assert!(ask("nobody").contains("there is no prompt nobody"));
    assert!(ask(DEMO).contains("passages.jsonl: it is no prompt"));
}
