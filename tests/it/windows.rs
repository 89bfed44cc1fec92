//! Windows that were read before, and windows that compete: `index warm`, `--choose`, `--per-window`, `eval sweep`.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/demo/passages.jsonl");
const DEMO_QUESTIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/demo/questions.jsonl");
const QUESTION: &str = "Which people's language gave us the word nunatak?";

fn nunatak(words: &[&str], index: &Path) -> Command {
    let mut command = Command::cargo_bin("nunatak").unwrap();
    command.args(words).arg("--index").arg(index);
    command
}

/// An index of the bundled corpus that a test may change.
fn index(folder: &Path) -> PathBuf {
    let path = folder.join("index");
    nunatak(&["index", "build", "--no-dense", "--corpus", DEMO], &path).assert().success();
    path
}

/// What a command prints with `--json`.
fn json(words: &[&str], index: &Path) -> Value {
    let output = nunatak(words, index).arg("--json").assert().success().get_output().stdout.clone();
    serde_json::from_slice(&output).unwrap()
}

/// The first file under a folder that is one.
fn first_file(folder: &Path) -> PathBuf {
    let entry = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).min().unwrap();
    if entry.is_dir() { first_file(&entry) } else { entry }
}

#[test]
fn warm_passages_change_the_time_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let (index, questions) = (index(folder.path()), folder.path().join("questions.jsonl"));
    fs::write(&questions, serde_json::json!({"question": QUESTION}).to_string()).unwrap();
    let ask = || {
        let mut answer = json(&["ask", QUESTION, "--explain", "--read-all"], &index);
        let usage = answer["usage"].take();
        (answer, usage["cached_tokens"].as_u64().unwrap(), usage["prompt_tokens"].as_u64().unwrap())
    };
    let (cold, cached, _) = ask();
    assert_eq!(cached, 0);

    let warm = |more: &[&str]| json(&[&["index", "warm"], more].concat(), &index);
    let questions = questions.to_str().unwrap();
    let first = warm(&["--questions", questions]);
    assert_eq!((&first["wanted"], &first["computed"], &first["there"]), (&5.into(), &5.into(), &0.into()));
    let again = warm(&["--questions", questions, "--ids", "nunatak"]);
    assert_eq!((&again["wanted"], &again["computed"], &again["there"]), (&5.into(), &0.into(), &5.into()));
    assert_eq!((&again["files"], &again["bytes"]), (&first["files"], &first["bytes"]));

    let (warmed, cached, tokens) = ask();
    assert_eq!(warmed, cold);
    let packed: u64 =
        cold["trace"]["windows"].as_array().unwrap().iter().map(|w| w[0]["tokens"].as_u64().unwrap()).sum();
    assert_eq!(cached, packed);
    assert!(cached < tokens, "the question is read all the same");

    // An index with states beside it is the index that it was.
    nunatak(&["index", "verify"], &index).assert().success();
    let file = first_file(&index.join("states"));
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let (damaged, fewer, _) = ask();
    assert_eq!(damaged, cold);
    assert!(fewer < cached);
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    nunatak(&["ask", QUESTION, "--read-all"], &index).assert().success().stderr(predicates::str::contains(name));

    // A build beside them leaves those of unchanged passages warm.
    nunatak(&["index", "build", "--no-dense", "--overwrite", "--corpus", DEMO], &index).assert().success();
    let (rebuilt, still, _) = ask();
    assert_eq!((rebuilt, still), (cold, fewer));
}

#[test]
fn warming_says_what_it_cannot_do() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path());
    let fails = |more: &[&str], message: &str| {
        let command = nunatak(&[&["index", "warm"], more].concat(), &index).assert().failure().get_output().clone();
        let said = String::from_utf8(command.stderr).unwrap();
        assert!(said.contains(message), "{said}");
    };
    fails(&[], "nothing says which passages to warm");
    fails(&["--ids", "nobody"], "the index has no passage nobody");
    fails(&["--all", "--most-gb", "0"], "--most-gb must be above 0");
    fails(&["--ids", "nunatak", "--filter", "year>1900"], "cannot be used with");
    let little = json(&["index", "warm", "--ids", "nunatak", "glacier", "--most-gb", "0.000001"], &index);
    assert_eq!((&little["computed"], &little["left_out"]), (&1.into(), &1.into()));
}

#[test]
fn what_a_filter_leaves_out_is_not_warmed() {
    let folder = tempfile::tempdir().unwrap();
    let (index, corpus) = (folder.path().join("index"), folder.path().join("c.jsonl"));
    let lines =
        "{\"id\":\"a\",\"text\":\"Ice ships.\",\"year\":1892}\n{\"id\":\"b\",\"text\":\"Ice.\",\"year\":1990}\n";
    fs::write(&corpus, lines).unwrap();
    let build = ["index", "build", "--no-dense", "--corpus", corpus.to_str().unwrap()];
    nunatak(&build, &index).assert().success();
    let warmed = json(&["index", "warm", "--all", "--filter", "year>=1900"], &index);
    assert_eq!((&warmed["wanted"], &warmed["computed"]), (&1.into(), &1.into()));
    assert_eq!(json(&["index", "warm", "--all"], &index)["wanted"], 2);
}

#[test]
fn windows_hold_what_they_are_told_to_and_compete_as_they_are_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path());
    let ask = |more: &[&str]| json(&[&["ask", QUESTION, "--explain", "--passages", "3"], more].concat(), &index);
    let counts = |answer: &Value| -> Vec<usize> {
        answer["trace"]["windows"].as_array().unwrap().iter().map(|w| w.as_array().unwrap().len()).collect()
    };
    assert_eq!(counts(&ask(&["--per-window", "2"])), [2, 1]);
    let vote = ask(&["--choose", "vote"]);
    assert_eq!(counts(&vote), [1, 1, 1]);
    let said = vote["trace"]["said"].as_array().unwrap();
    assert_eq!(said.len(), 3);
    assert!(said.iter().any(|window| window["answer"] == vote["answer"]), "{vote}");
    let wrong = nunatak(&["ask", QUESTION, "--choose", "luck"], &index).assert().code(2).get_output().clone();
    assert!(String::from_utf8(wrong.stderr).unwrap().contains("there is no way to choose \"luck\""));
}

#[test]
fn what_cannot_be_better_is_not_read_and_the_answer_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(folder.path());
    let lines = fs::read_to_string(DEMO_QUESTIONS).unwrap();
    let questions: Vec<Value> = lines.lines().take(6).map(|line| serde_json::from_str(line).unwrap()).collect();
    let asked: String = questions.iter().map(|q| format!("{}\n", q["question"].as_str().unwrap())).collect();
    let ask = |more: &[&str]| -> Vec<Value> {
        let mut command = nunatak(&[&["ask", "-", "--explain", "--json"], more].concat(), &index);
        let output = command.write_stdin(asked.clone()).assert().success().get_output().stdout.clone();
        String::from_utf8(output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let read =
        |answers: &[Value]| -> usize { answers.iter().map(|a| a["trace"]["said"].as_array().unwrap().len()).sum() };
    for more in [&[][..], &["--grounded"]] {
        let (some, all) = (ask(more), ask(&[more, &["--read-all"]].concat()));
        assert_eq!(read(&all), 5 * questions.len());
        assert!(read(&some) < read(&all), "{}", read(&some));
        for (some, all) in some.iter().zip(&all) {
            assert_eq!((&some["answer"], &some["evidence"]), (&all["answer"], &all["evidence"]));
            // Rows of a batch of another size may differ in the last bits.
            let close = |of: &str| (some[of].as_f64().unwrap() - all[of].as_f64().unwrap()).abs() < 1e-3;
            assert!(close("score") && close("confidence"), "{} {}", some["score"], all["score"]);
            let (some, all) = (some["trace"]["said"].as_array().unwrap(), all["trace"]["said"].as_array().unwrap());
            assert!(some.iter().zip(all).all(|(some, all)| some["answer"] == all["answer"]));
        }
    }
}

#[test]
fn a_sweep_over_a_run_agrees_with_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let (index, out) = (index(folder.path()), folder.path().join("run"));
    let run = ["eval", "--questions", DEMO_QUESTIONS, "--limit", "8", "--passages", "3", "--read-all", "--out"];
    let report = json(&[&run[..], &[out.to_str().unwrap()]].concat(), &index);
    let sweep = |words: &[&str]| {
        let mut command = Command::cargo_bin("nunatak").unwrap();
        command.args(["eval", "sweep", "--run"]).arg(&out).args(words);
        String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
    };
    let swept: Value = serde_json::from_str(&sweep(&["--json"])).unwrap();
    assert_eq!((&swept["n"], swept["any_window"].as_array().unwrap().len()), (&8.into(), 3));
    let settings = swept["settings"].as_array().unwrap();
    let same =
        settings.iter().find(|s| s["windows"] == 3 && s["choose"] == "best" && s["score_weight"] == 1.0).unwrap();
    assert_eq!(same["exact_match"], report["metrics"]["exact_match"]);
    let best = settings.iter().map(|s| s["exact_match"].as_f64().unwrap()).fold(0.0, f64::max);
    assert_eq!(swept["best"]["exact_match"], best);
    assert!(sweep(&[]).contains("exact match over 8 questions"));
    // A run that read no more than it had to knows nothing of other choices.
    let some = folder.path().join("some");
    let words =
        ["eval", "--questions", DEMO_QUESTIONS, "--limit", "8", "--passages", "3", "--out", some.to_str().unwrap()];
    let report = json(&words, &index);
    assert_eq!(report["metrics"]["exact_match"], same["exact_match"]);
    let mut command = Command::cargo_bin("nunatak").unwrap();
    let failed = command.args(["eval", "sweep", "--run"]).arg(&some).assert().failure().get_output().clone();
    assert!(String::from_utf8(failed.stderr).unwrap().contains("--read-all"));
    // A run that measured retrieval alone has nothing to choose from.
    let alone = folder.path().join("alone");
    let words = ["eval", "--questions", DEMO_QUESTIONS, "--limit", "2", "--reader", "none", "--out"];
    json(&[&words[..], &[alone.to_str().unwrap()]].concat(), &index);
    let mut command = Command::cargo_bin("nunatak").unwrap();
    let failed = command.args(["eval", "sweep", "--run"]).arg(&alone).assert().code(1);
    failed.stderr(predicates::str::contains("does not say what was read in which window"));
}
