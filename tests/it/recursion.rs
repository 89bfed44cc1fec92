//! Questions that are read twice: `--recursion`, with the second pass's own prompt and without.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/demo/passages.jsonl");
const QUESTION: &str = "Which people's language gave us the word nunatak?";
/// One that windows answer differently.
const OPEN: &str = "Why do explorers die?";

fn nunatak() -> Command {
    Command::cargo_bin("nunatak").unwrap()
}

fn index(folder: &Path) -> PathBuf {
    let path = folder.join("index");
    nunatak().args(["index", "build", "--no-dense", "--corpus", DEMO, "--index"]).arg(&path).assert().success();
    path
}

fn ask(question: &str, index: &Path, more: &[&str]) -> Value {
    let mut command = nunatak();
    command.args(["ask", question, "--explain", "--json", "--index"]).arg(index).args(more);
    serde_json::from_slice(&command.assert().success().get_output().stdout).unwrap()
}

fn candidates(answer: &Value) -> Vec<(&str, usize, f64, f64)> {
    let of = |c: &'_ Value| (c["window"].as_u64().unwrap() as usize, c["log_likelihood"].as_f64(), c["worth"].as_f64());
    let all = answer["trace"]["second"]["candidates"].as_array().unwrap().iter();
    all.map(|c| (c["answer"].as_str().unwrap(), of(c).0, of(c).1.unwrap(), of(c).2.unwrap())).collect()
}

#[test]
fn a_second_pass_scores_what_the_first_one_said() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path());
    let once = ask(OPEN, &index, &["--read-all"]);
    assert!(once["trace"].get("second").is_none());
    let twice = ask(OPEN, &index, &["--recursion", "textual", "--samples", "0"]);
    assert_eq!(twice["trace"]["said"], once["trace"]["said"], "the first pass is the same");
    assert_eq!(twice["trace"]["second"]["first"], once["answer"]);
    let (said, found) = (once["trace"]["said"].as_array().unwrap(), candidates(&twice));
    assert!(found.len() > 1, "{found:?}");
    assert_eq!(twice["answer"], found[0].0);
    assert!(found.windows(2).all(|pair| pair[0].3 >= pair[1].3));
    for (answer, window, log_likelihood, worth) in found {
        // Where a window gave the candidate itself, its likelihood in the second pass is that of the first.
        if said[window]["answer"] == answer {
            let first = said[window]["log_likelihood"].as_f64().unwrap();
            assert!((first - log_likelihood).abs() < 0.3, "{answer}: {first} {log_likelihood}");
        }
        assert!(said.iter().any(|said| said["answer"] == answer));
        let rank = said[window]["rank_score"].as_f64().unwrap();
        assert!(worth >= log_likelihood + rank - 1e-3, "all windows count, so none counts for more: {answer}");
    }
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(tokens(&twice), 2 * tokens(&once));
    let windows = once["trace"]["windows"].as_array().unwrap();
    let packed: u64 = windows.iter().map(|window| window[0]["tokens"].as_u64().unwrap()).sum();
    assert_eq!(twice["usage"]["cached_tokens"], packed, "passages are not computed twice");

    let sampled = ask(OPEN, &index, &["--recursion", "textual", "--samples", "6", "--seed", "3"]);
    let marked = |answer: &Value| {
        let all = answer["trace"]["second"]["candidates"].as_array().unwrap().clone();
        all.iter().filter(|c| c["sampled"] == true).count()
    };
    assert!(marked(&sampled) > 0 && marked(&twice) == 0);
    let again = ask(OPEN, &index, &["--recursion", "textual", "--samples", "6", "--seed", "3"]);
    assert_eq!(candidates(&again), candidates(&sampled));
    let grounded = ask(OPEN, &index, &["--recursion", "textual", "--grounded"]);
    assert_eq!(grounded["answer"], grounded["evidence"][0]["text"]);
    assert_eq!(grounded["supported"], true);
}

#[test]
fn auto_reads_again_what_it_is_not_sure_of() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path());
    let once = ask(QUESTION, &index, &[]);
    let never = ask(QUESTION, &index, &["--recursion", "auto", "--sure", "0"]);
    let always = ask(QUESTION, &index, &["--recursion", "auto", "--sure", "1"]);
    assert!(never["trace"].get("second").is_none());
    assert_eq!(always["trace"]["second"]["first"], once["answer"]);
    // Its own confidence is the border: just above it is sure enough, just below it is not.
    let sure = never["confidence"].as_f64().unwrap();
    let at = |sure: f64| ask(QUESTION, &index, &["--recursion", "auto", "--sure", &format!("{sure}")]);
    assert!(at(sure - 0.01)["trace"].get("second").is_none());
    assert!(at(sure + 0.01)["trace"].get("second").is_some());
    // Another learned prompt may stand before the second pass.
    let same = ask(QUESTION, &index, &["--recursion", "textual", "--second", "reader", "--samples", "0"]);
    let plain = ask(QUESTION, &index, &["--recursion", "textual", "--samples", "0"]);
    assert_eq!(candidates(&same), candidates(&plain));

    let out = folder.path().join("run");
    let questions = folder.path().join("questions.jsonl");
    let line = serde_json::json!({"id": "q", "question": QUESTION, "answers": ["Greenlandic"]});
    fs::write(&questions, line.to_string()).unwrap();
    let mut eval = nunatak();
    eval.args(["eval", "--recursion", "textual", "--index"]).arg(&index).arg("--questions").arg(&questions);
    eval.arg("--out").arg(&out).assert().success();
    let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["settings"]["recursion"], "textual");
    let prediction: Value = serde_json::from_slice(&fs::read(out.join("predictions.jsonl")).unwrap()).unwrap();
    assert_eq!(prediction["trace"]["second"]["candidates"][0]["answer"], prediction["prediction"]);
}

#[test]
fn a_second_pass_that_cannot_be_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path());
    let refused = |more: &[&str], part: &str| {
        let mut command = nunatak();
        command.args(["ask", QUESTION, "--index"]).arg(&index).args(more);
        command.assert().failure().stderr(predicates::str::contains(part));
    };
    refused(&["--recursion", "neural"], "there is no connector");
    refused(&["--recursion", "twice"], "there is no recursion \"twice\"");
    refused(&["--second", "reader"], "there is none");
    refused(&["--sure", "0.4", "--recursion", "textual"], "--recursion auto");
    refused(&["--sure", "1.5", "--recursion", "auto"], "between 0 and 1");
    refused(&["--samples", "1000", "--recursion", "textual"], "at most 64");
    refused(&["--recursion", "textual", "--second", "no-such"], "there is no prompt no-such");
    refused(&["--recursion", "textual", "--lm-url", "http://127.0.0.1:9/v1"], "an endpoint does not say");
}
