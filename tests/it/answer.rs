//! Questions answered through the starter models over a small real corpus: the JSON that other tools rely on,
//! evidence that is a slice of the stored text, and the same bytes twice.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use assert_cmd::Command;
use serde_json::Value;

/// The bundled corpus, indexed once for all tests of this module by the command a user would type. In a folder of the
/// tests' own: a temporary one that lives as long as the process would never be removed.
fn index() -> &'static Path {
    static INDEX: OnceLock<PathBuf> = OnceLock::new();
    INDEX.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("answer-index");
        nunatak().args(["index", "build", "--overwrite", "--corpus", DEMO, "--index"]).arg(&path).assert().success();
        path
    })
}

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/demo/passages.jsonl");
const DEMO_QUESTIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/demo/questions.jsonl");

fn nunatak() -> Command {
    Command::cargo_bin("nunatak").unwrap()
}

/// What a command over the index prints with `--json`, line by line.
fn json_lines(words: &[&str]) -> Vec<Value> {
    let output = nunatak().args(words).args(["--json", "--index"]).arg(index()).assert().success().get_output().clone();
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn stored_text(key: &str) -> String {
    let corpus = fs::read_to_string(DEMO).unwrap();
    let record: Value = corpus
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .find(|record| record["id"] == *key)
        .unwrap();
    record["text"].as_str().unwrap().to_owned()
}

const QUESTION: &str = "Which people's language gave us the word nunatak?";

#[test]
fn search_prints_what_other_tools_rely_on() {
    for mode in ["bm25", "dense", "hybrid"] {
        let lines = json_lines(&["search", QUESTION, "--mode", mode, "-k", "3"]);
        assert_eq!(lines.len(), 3, "{mode}");
        for (i, line) in lines.iter().enumerate() {
            assert_eq!(keys(line), BTreeSet::from(["rank", "passage_id", "title", "text", "score"]));
            assert_eq!(line["rank"], i + 1);
        }
        assert_eq!(lines[0]["passage_id"], "nunatak", "{mode}");
        assert_eq!(lines[0]["text"], stored_text("nunatak"));
    }
}

#[test]
fn what_each_part_gave_a_passage_is_shown() {
    let question = "who first reached the South Pole";
    let of = |mode: &str, more: &[&str]| {
        json_lines(&[&["search", question, "--explain", "--mode", mode, "-k", "300"], more].concat())
    };
    let number = |value: &Value| value.as_f64().unwrap();
    let top = number(&of("bm25", &["--rerank", "none", "--bm25-k1", "0.4"])[0]["parts"]["bm25"]["score"]);
    let of_words = |parts: &Value| {
        let bm25 = if parts["bm25"].is_null() { 0.0 } else { number(&parts["bm25"]["score"]) / top };
        bm25 + 0.8 * parts["pairs"].as_f64().unwrap_or_default()
    };
    let lines = of("hybrid", &["--rerank", "none"]);
    let most = lines.iter().map(|line| of_words(&line["parts"])).fold(0.0, f64::max);
    assert!(most > 1.0, "a passage has a pair of the question's words");
    for line in lines {
        let parts = &line["parts"];
        assert_eq!(parts["first_stage"], serde_json::json!({"rank": line["rank"], "score": line["score"]}));
        assert!(parts["reranker"].is_null());
        let sum = 0.7 * number(&parts["cosine"]) + 0.3 * of_words(parts) / most;
        assert!((sum - number(&line["score"])).abs() < 1e-4, "{line}");
    }
    let reranked = of("hybrid", &[]).remove(0);
    assert_eq!(reranked["parts"]["reranker"], serde_json::json!({"rank": 1, "score": reranked["score"]}));
    assert!(of("bm25", &["--rerank", "none"])[0]["parts"]["cosine"].is_null());
    assert!(of("dense", &["--rerank", "none"])[0]["parts"]["bm25"].is_null());
    let people =
        nunatak().args(["search", question, "--explain", "-k", "10", "--index"]).arg(index()).output().unwrap();
    let people = String::from_utf8(people.stdout).unwrap();
    let lines: Vec<&str> = people.lines().filter(|line| line.contains(" · first stage ")).collect();
    assert_eq!(lines.len(), 10, "{people}");
    for part in ["words ", " · meaning 0.", " · re-ranker "] {
        assert!(lines[0].contains(part), "{people}");
    }
    assert!(lines.iter().any(|line| line.contains(" · pairs 0.")), "{people}");
}

#[test]
fn an_answer_carries_evidence_that_is_a_slice_of_the_stored_text() {
    for words in [&["ask", QUESTION, "--grounded"][..], &["ask", QUESTION], &["ask", QUESTION, "--together"]] {
        let answer = json_lines(words).remove(0);
        let expected =
            ["question", "answer", "confidence", "abstained", "score", "supported", "evidence", "prompt", "usage"];
        let mut keys_of_answer = keys(&answer);
        // It is fitted for neither of the two.
        assert!(keys_of_answer.remove("uncalibrated") || words.len() == 2, "{answer}");
        assert_eq!(keys_of_answer, BTreeSet::from(expected));
        assert_eq!(answer["prompt"]["name"], "reader");
        assert_eq!(answer["question"], QUESTION);
        assert!(answer["score"].as_f64().unwrap() < 0.0);
        for evidence in answer["evidence"].as_array().unwrap() {
            assert_eq!(keys(evidence), BTreeSet::from(["passage_id", "title", "start", "end", "text"]));
            let stored = stored_text(evidence["passage_id"].as_str().unwrap());
            let at = |name: &str| evidence[name].as_u64().unwrap() as usize;
            assert_eq!(stored[at("start")..at("end")], *evidence["text"].as_str().unwrap());
        }
        if words.contains(&"--grounded") {
            assert_eq!(answer["supported"], true);
            assert_eq!(answer["answer"], answer["evidence"][0]["text"]);
        }
    }
}

#[test]
fn explain_shows_every_stage() {
    let answer = json_lines(&["ask", QUESTION, "--explain", "--passages", "2"]).remove(0);
    let trace = &answer["trace"];
    assert_eq!(trace["retrieved"].as_array().unwrap().len(), 100);
    assert_eq!(trace["beam"], serde_json::json!({"ef": 400}), "nothing was wanted, and nothing measured");
    assert_eq!(trace["windows"].as_array().unwrap().len(), 2);
    let reranked = trace["reranked"].as_array().unwrap();
    assert!((2..=50).contains(&reranked.len()) && trace["windows"][0][0]["passage"] == reranked[0]["passage"]);
    let plain = json_lines(&["ask", QUESTION, "--explain", "--rerank", "none"]).remove(0);
    assert_eq!(plain["trace"]["reranked"], Value::Array(Vec::new()));
    assert!(trace["windows"][0][0]["tokens"].as_u64().unwrap() > 10);
    let together = json_lines(&["ask", QUESTION, "--explain", "--passages", "2", "--together"]).remove(0);
    assert_eq!(together["trace"]["windows"].as_array().unwrap().len(), 1);
    assert_eq!(together["trace"]["windows"][0].as_array().unwrap().len(), 2);
}

#[test]
fn an_answer_below_the_confidence_asked_for_is_withheld() {
    let given = json_lines(&["ask", QUESTION]).remove(0);
    let confidence = given["confidence"].as_f64().unwrap();
    assert!(confidence > 0.0 && confidence < 1.0 && given["abstained"] == false);
    let above = (confidence + 1.0) / 2.0;
    let words = ["ask", QUESTION, "--min-confidence", &above.to_string()];
    let withheld = json_lines(&words).remove(0);
    assert_eq!((&withheld["answer"], &withheld["abstained"]), (&Value::from(""), &Value::from(true)));
    assert_eq!((&withheld["confidence"], &withheld["supported"]), (&given["confidence"], &Value::from(false)));
    assert!(withheld["evidence"].as_array().unwrap().is_empty() && withheld.get("trace").is_none());
    let said = |more: &[&str]| {
        let output =
            nunatak().args(words).args(more).arg("--index").arg(index()).assert().success().get_output().clone();
        String::from_utf8(output.stdout).unwrap()
    };
    let answer = given["answer"].as_str().unwrap();
    assert_eq!(said(&[]), "The corpus does not seem to hold the answer.\n");
    assert!(said(&["--explain"]).contains(&format!("best guess: {answer} ")));
    nunatak().args(["ask", QUESTION, "--min-confidence", "1.5", "--index"]).arg(index()).assert().code(1);
    nunatak().args(words).args(["--stream", "--index"]).arg(index()).assert().code(1);
}

#[test]
fn an_answer_that_is_shown_as_it_is_written_ends_as_any_other() {
    let said = |more: &[&str]| {
        let output = nunatak()
            .args(["ask", QUESTION])
            .args(more)
            .arg("--index")
            .arg(index())
            .assert()
            .success()
            .get_output()
            .clone();
        String::from_utf8(output.stdout).unwrap()
    };
    let (whole, streamed) = (said(&[]), said(&["--stream"]));
    let written = streamed.strip_suffix(whole.as_str()).unwrap_or_else(|| panic!("{streamed}"));
    assert!(!written.trim().is_empty(), "{streamed}");
    let answer = json_lines(&["ask", QUESTION]).remove(0);
    assert!(whole.starts_with(answer["answer"].as_str().unwrap()), "{whole}");
    let evidence = answer["evidence"].as_array().unwrap();
    assert!(!evidence.is_empty());
    for piece in evidence {
        assert!(whole.contains(&stored_text(piece["passage_id"].as_str().unwrap())), "{whole}");
    }
}

#[test]
fn the_demo_answers_its_questions_and_says_how_well() {
    let output = nunatak().args(["demo", "--json"]).assert().success().get_output().clone();
    let lines: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (summary, answers) = lines.split_last().unwrap();
    let questions: Vec<Value> = fs::read_to_string(DEMO_QUESTIONS)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["question"].clone())
        .collect();
    let answered: Vec<Value> = answers.iter().map(|answer| answer["question"].clone()).collect();
    assert_eq!((answered.len(), &summary["questions"]), (109, &Value::from(109)));
    assert_eq!(answered, questions);
    assert!(summary["exact_match"].as_f64().unwrap() > 0.6, "{summary}");
}

#[test]
fn a_narrow_window_cuts_passages_and_says_so() {
    let words = ["ask", QUESTION, "--explain", "--together", "--window", "560", "--passages", "5"];
    let answer = json_lines(&words).remove(0);
    assert_eq!(answer["usage"]["truncated"], true);
    let left_out = answer["trace"]["left_out"].as_array().unwrap();
    assert!(!left_out.is_empty());
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() <= 560 - 24);
}

#[test]
fn the_same_question_gives_the_same_bytes() {
    let strip = |mut answer: Value| {
        answer["usage"]["latency_ms"].take();
        answer.to_string()
    };
    let ask = |words: &[&str]| strip(json_lines(words).remove(0));
    assert_eq!(ask(&["ask", QUESTION]), ask(&["ask", QUESTION]));
    let sampled = ["ask", QUESTION, "--temperature", "0.8", "--seed", "3"];
    assert_eq!(ask(&sampled), ask(&sampled));
}

#[test]
fn questions_come_by_the_line_too() {
    let output = nunatak()
        .args(["ask", "-", "--json", "--index"])
        .arg(index())
        .write_stdin(format!("{QUESTION}\n\nWhat does the French word moulin mean?\n"))
        .assert()
        .success()
        .get_output()
        .clone();
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
}

#[test]
fn a_run_is_measured_and_compared() {
    let out = tempfile::tempdir().unwrap();
    let run = |name: &str, words: &[&str]| {
        let folder = out.path().join(name);
        nunatak()
            .args(["eval", "--questions", DEMO_QUESTIONS, "--limit", "8", "--index"])
            .arg(index())
            .arg("--out")
            .arg(&folder)
            .args(words)
            .assert()
            .success();
        folder
    };
    let free = run("free", &[]);
    let report: Value = serde_json::from_slice(&fs::read(free.join("report.json")).unwrap()).unwrap();
    for name in ["exact_match", "f1", "has_answer@20", "recall@20", "mrr@10", "ndcg@10", "recall_at_reader"] {
        let value = report["metrics"][name].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&value), "{name} is {value}");
    }
    for stage in ["retrieve", "rerank", "pack", "read", "total"] {
        for quantile in ["p50", "p95"] {
            assert!(report["metrics"]["latency_ms"][stage][quantile].is_number(), "{stage} {quantile}");
        }
    }
    // The corpus is small and its questions were written for it: the right passage is nearly always near the top.
    assert!(report["metrics"]["recall@5"].as_f64().unwrap() >= 0.8);
    assert_eq!(fs::read_to_string(free.join("predictions.jsonl")).unwrap().lines().count(), 8);
    let grounded = run("grounded", &["--grounded"]);
    let compared =
        nunatak().args(["eval", "compare"]).arg(&free).arg(&grounded).assert().success().get_output().clone();
    assert!(String::from_utf8(compared.stdout).unwrap().contains("exact_match"));
    let retrieval = run("none", &["--reader", "none", "--mode", "bm25"]);
    let report: Value = serde_json::from_slice(&fs::read(retrieval.join("report.json")).unwrap()).unwrap();
    assert!(report["metrics"]["exact_match"].is_null());
}
