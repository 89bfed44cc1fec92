//! `nunatak train` as a user meets it: from a small file of questions to a prompt that `ask` uses.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
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
