//! Evaluation from outside: official values, whole runs on disk, what the command prints.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::Path;

use clap::Parser;
use insta::assert_snapshot;
use nunatak::answer::{Answer, Latency, Trace, Usage};
use nunatak::cli::Globals;
use nunatak::cli::eval::{Bench, EvalArgs, RunArgs, run_with};
use nunatak::confidence::{Calibration, Features};
use nunatak::error::{Error, Result};
use nunatak::eval::dataset::{self, Question};
use nunatak::eval::normalise::{exact_match_and_f1, normalise};
use nunatak::eval::prediction::{Outcome, Retrieved};
use nunatak::eval::provenance::Setup;
use nunatak::eval::ranking::{Gold, Judged, first_gold_passage, hit_at};
use nunatak::eval::report::Report;
use nunatak::eval::trec;
use nunatak::progress::Quiet;
use nunatak::types::{PackedPassage, PassageId};
use serde::Deserialize;

#[test]
fn exact_match_and_f1_equal_the_squad_formulas() {
    #[derive(Deserialize)]
    struct Case {
        prediction: String,
        answers: Vec<String>,
        normalised: String,
        exact_match: f64,
        f1: f64,
    }
    let cases: Vec<Case> = serde_json::from_str(include_str!("../fixtures/eval/answers.json")).unwrap();
    assert!(cases.len() > 100);
    for case in cases {
        assert_eq!(normalise(&case.prediction), case.normalised, "{:?}", case.prediction);
        let (exact_match, f1) = exact_match_and_f1(&case.prediction, &case.answers);
        assert_eq!(exact_match, case.exact_match, "{:?} {:?}", case.prediction, case.answers);
        assert!((f1 - case.f1).abs() < 1e-9, "{:?} {:?}: {f1}", case.prediction, case.answers);
    }
}

/// The first case by hand. Gold d4 (grade 2) on rank 2, d1 (1) on rank 4, d9 (1) not found:
/// ndcg = (2/log2 3 + 1/log2 5) / (2/log2 2 + 1/log2 3 + 1/log2 4) = 1.692536 / 3.130930 = 0.540586;
/// map = (1/2 + 2/4) / 3 = 1/3; reciprocal rank 1/2; recall 2/3.
#[test]
fn rankings_equal_trec_eval() {
    #[derive(Deserialize)]
    struct Case {
        ranking: Vec<String>,
        gold: Gold,
        map: f64,
        recip_rank: f64,
        recip_rank_10: f64,
        recall_5: f64,
        recall_20: f64,
        ndcg_cut_5: f64,
        ndcg_cut_10: f64,
        success_1: f64,
        success_5: f64,
    }
    let cases: Vec<Case> = serde_json::from_str(include_str!("../fixtures/eval/rankings.json")).unwrap();
    assert!((cases[0].ndcg_cut_10 - 0.540586).abs() < 1e-6 && (cases[0].map - 1.0 / 3.0).abs() < 1e-12);
    for case in cases {
        // Split documents must not change what is said of documents: each second one comes in two pieces.
        let pieces: Vec<String> = case
            .ranking
            .iter()
            .enumerate()
            .flat_map(|(i, d)| if i % 2 == 0 { vec![d.clone()] } else { vec![format!("{d}#3"), format!("{d}#1")] })
            .collect();
        for keys in [&case.ranking, &pieces] {
            let judged = Judged::new(keys.iter().map(String::as_str), &case.gold);
            let pairs = [
                (judged.average_precision(), case.map),
                (judged.reciprocal_rank(usize::MAX), case.recip_rank),
                (judged.reciprocal_rank(10), case.recip_rank_10),
                (judged.recall(5), case.recall_5),
                (judged.recall(20), case.recall_20),
                (judged.ndcg(5), case.ndcg_cut_5),
                (judged.ndcg(10), case.ndcg_cut_10),
            ];
            for (i, (ours, theirs)) in pairs.into_iter().enumerate() {
                assert!((ours - theirs).abs() < 1e-9, "measure {i} of {:?}: {ours}, not {theirs}", case.ranking);
            }
        }
        let first = first_gold_passage(case.ranking.iter().map(String::as_str), &case.gold);
        assert_eq!((hit_at(first, 1), hit_at(first, 5)), (case.success_1, case.success_5));
    }
}

#[test]
fn a_passage_counts_for_its_document_and_for_itself() {
    let gold = Gold::from([("x".to_owned(), 1), ("issue#7".to_owned(), 1)]);
    assert_eq!(first_gold_passage(["y", "x#2"], &gold), Some(2));
    assert_eq!(first_gold_passage(["issue", "issue#7"], &gold), Some(2), "an id that looks like a piece");
    assert_eq!(first_gold_passage(["y#1"], &gold), None);
    // Where gold ids are passages, other pieces of their document are not they.
    let gold = Gold::from([("issue#7".to_owned(), 1)]);
    let judged = Judged::new(["issue#3", "issue#5", "issue#7"], &gold);
    assert_eq!((judged.reciprocal_rank(10), judged.recall(2)), (1.0 / 3.0, 0.0));
    assert_eq!(Judged::new(["issue#3", "issue#7#2", "issue#7#1"], &gold).reciprocal_rank(10), 0.5, "pieces of gold");
    let gold = Gold::from([("issue".to_owned(), 1)]);
    assert_eq!(Judged::new(["other#1", "other#2", "issue#7"], &gold).reciprocal_rank(10), 0.5, "documents");
}

/// Words as a user types them.
#[derive(Debug, Parser)]
struct Typed {
    #[command(flatten)]
    globals: Globals,
    #[command(flatten)]
    eval: EvalArgs,
}

const QUESTIONS: &str = r#"{"id": "q1", "question": "When did the Fram leave?", "answers": ["1893"], "positive_ids": ["fram"]}
{"id": "q2", "question": "Who led it?", "answers": ["Fridtjof Nansen", "Nansen"], "positive_ids": ["nansen"]}
{"id": "q3", "question": "Why did it sink?", "answers": [], "positive_ids": ["fram"]}
{"id": "q4", "question": "Where did it drift?", "answers": ["Arctic Ocean"], "positive_ids": ["drift", "fram"]}
"#;

/// A pipeline with fixed answers: `answers[i]` for question q(i+1); the fixed ranking fram#2, nansen, fram#1.
fn bench(args: &RunArgs, answers: &'static [&'static str], stop_at: Option<&'static str>) -> Bench {
    let passages =
        [("fram#2", "It left in 1893 with Nansen.", 3.0), ("nansen", "He led it.", 2.0), ("fram#1", "Fram.", 1.0)];
    let answer = move |question: &Question| -> Result<Outcome> {
        if stop_at == Some(question.id.as_str()) {
            return Err(Error::request("the question does not fit the window", "use a larger model"));
        }
        let number: usize = question.id[1..].parse().unwrap();
        let latency = Latency { retrieve: number as f64, total: 10.0 * number as f64, ..Latency::default() };
        Ok(Outcome {
            answer: answers.get(number - 1).map(|text| Answer {
                question: question.question.clone(),
                answer: (*text).to_owned(),
                // Surest of the first question.
                confidence: 1.0 - 0.2 * number as f32,
                abstained: text.is_empty(),
                score: -0.25,
                supported: true,
                evidence: Vec::new(),
                prompt: None,
                uncalibrated: None,
                usage: Usage {
                    prompt_tokens: 100 + number,
                    answer_tokens: 2,
                    cached_tokens: 0,
                    truncated: false,
                    latency_ms: latency,
                    rerank_cuts: None,
                },
                trace: None,
            }),
            retrieved: passages
                .iter()
                .map(|(key, text, score)| Retrieved { key: (*key).into(), text: (*text).into(), score: *score })
                .collect(),
            reader_passages: vec![PackedPassage {
                passage: PassageId(0),
                key: "fram#2".into(),
                title: "Fram".into(),
                text: "It left in 1893".into(),
                score: 3.0,
                tokens: 8,
                page: None,
            }],
            first_stage: None,
            reranked: 0,
            trace: None,
            latency,
        })
    };
    let setup = Setup {
        settings: args.settings().unwrap(),
        seed: args.seed,
        models: [("reader".to_owned(), "f00d".to_owned())].into(),
        ..Setup::default()
    };
    Bench { setup, answer: Box::new(answer) }
}

const GOOD: &[&str] = &["In 1893", "Nansen", "", "the Arctic ocean."];
const POOR: &[&str] = &["1894", "Nansen", "ice", "the Arctic"];

/// Run `eval` in `folder` with its questions and the words `words`; what it printed, or its error and hint.
fn eval(
    folder: &Path,
    out: &str,
    words: &str,
    answers: &'static [&'static str],
    stop_at: Option<&'static str>,
) -> Result<String, String> {
    let questions = folder.join("questions.jsonl");
    if !questions.exists() {
        fs::write(&questions, QUESTIONS).unwrap();
    }
    let fixed = ["eval", "--index", "none", "--questions"].map(String::from);
    let mut typed = fixed.to_vec();
    typed.extend([questions.display().to_string(), "--out".into(), folder.join(out).display().to_string()]);
    typed.extend(words.split_whitespace().map(String::from));
    let args = Typed::try_parse_from(typed).map_err(|e| e.to_string())?;
    act(folder, &args, answers, stop_at)
}

fn act(
    folder: &Path,
    args: &Typed,
    answers: &'static [&'static str],
    stop_at: Option<&'static str>,
) -> Result<String, String> {
    let mut printed = Vec::new();
    let open = |args: &RunArgs| Ok(bench(args, answers, stop_at));
    let result = run_with(&args.eval, open, args.globals.json, &Quiet, &mut printed);
    let tidy = |text: String| text.replace(&folder.display().to_string(), "DIR");
    match result {
        Ok(()) => Ok(tidy(String::from_utf8(printed).unwrap())),
        Err(e) => Err(tidy(format!("{e} ({})", e.hint().unwrap_or("no hint")))),
    }
}

fn compare(folder: &Path, a: &str, b: &str) -> Result<String, String> {
    let at = |run: &str| folder.join(run).display().to_string();
    let args = Typed::try_parse_from(["eval", "compare", &at(a), &at(b)]).map_err(|e| e.to_string())?;
    act(folder, &args, &[], None)
}

/// The confidences are 0.8, 0.6, 0.4, 0.2 and only the first answer is wrong. By hand: aurc = the mean of 1, 1/2, 1/3,
/// 1/4; ece, a bin an answer, = the mean of 0.8, 0.4, 0.6, 0.8; brier = that of 0.64, 0.16, 0.36, 0.64.
#[test]
fn a_run_prints_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let table = eval(folder.path(), "run", "--depth 5", GOOD, None).unwrap();
    assert_snapshot!(table, @r"
    metric                    mean    95% interval  questions
    exact_match              0.750  0.250 .. 1.000          4
    f1                       0.917  0.750 .. 1.000          4
    exact_match_has_ans      0.667  0.000 .. 1.000          3
    f1_has_ans               0.889  0.667 .. 1.000          3
    exact_match_no_ans       1.000  1.000 .. 1.000          1
    coverage                 0.750  0.250 .. 1.000          4
    exact_match_of_answered  0.667  0.000 .. 1.000          3
    aurc                     0.521  0.000 .. 0.938          4
    ece                      0.650  0.500 .. 0.800          4
    brier                    0.450  0.260 .. 0.640          4
    has_answer@1             0.667  0.000 .. 1.000          3
    has_answer@5             0.667  0.000 .. 1.000          3
    recall@1                 0.750  0.250 .. 1.000          4
    recall@5                 1.000  1.000 .. 1.000          4
    mrr@10                   0.875  0.625 .. 1.000          4
    ndcg@10                  0.811  0.622 .. 1.000          4
    map                      0.750  0.500 .. 1.000          4
    document_recall@1        0.625  0.250 .. 1.000          4
    document_recall@5        0.875  0.625 .. 1.000          4
    recall_at_reader         0.750  0.250 .. 1.000          4
    has_answer_at_reader     0.333  0.000 .. 1.000          3

    if only the surest are answered    10%    25%    50%    75%   100%
    exact match of these             0.000  0.000  0.500  0.667  0.750

    oracle (in hindsight): exact match 0.750 with --min-confidence 0.000

    latency, ms  retrieve  rerank  pack  read  total
    p50               2.5     0.0   0.0   0.0   25.0
    p95               3.8     0.0   0.0   0.0   38.5

    tokens   mean  p95  total
    prompt  102.5  104    410
    cached    0.0    0      0
    answer    2.0    2      8
    ");
}

#[test]
fn a_run_leaves_the_files_of_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let printed = eval(folder.path(), "run", "--k 1,5 --seed 3 --json", GOOD, None).unwrap();
    let mut names: Vec<String> =
        fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["predictions.jsonl", "report.html", "report.json", "run.trec"]);

    let report = Report::open(&out.join("report.json")).unwrap();
    let printed = printed.replace("DIR", &folder.path().display().to_string());
    assert_eq!(serde_json::from_str::<Report>(&printed).unwrap(), report);
    assert_eq!((report.n, report.metric("exact_match"), report.metric("f1")), (4, Some(0.75), Some(11.0 / 12.0)));
    assert_eq!(report.metrics["latency_ms"]["retrieve"]["p50"], 2.5);
    assert_eq!(report.metrics["tokens"]["prompt"]["total"], 410);
    assert_eq!((report.provenance.seed, &report.provenance.settings["depth"]), (3, &100.into()));
    assert_eq!(report.provenance.questions.sha256.len(), 64);

    let lines = fs::read_to_string(out.join("predictions.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    for key in ["id", "question", "prediction", "score", "answers", "exact_match", "f1", "passages", "reader_passages"]
    {
        assert!(first.get(key).is_some(), "{key}");
    }
    assert_eq!(first["passages"], serde_json::json!(["fram#2", "nansen", "fram#1"]));

    let path = out.join("run.trec");
    let run = trec::read(fs::read(&path).unwrap().as_slice(), &path).unwrap();
    assert_eq!(run.len(), 8, "two documents for each of four questions");
    assert_eq!((run[1].document.as_str(), run[1].rank), ("nansen", 2));
}

#[test]
fn without_a_reader_only_retrieval_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    eval(folder.path(), "run", "--reader none --k 1", &[], None).unwrap();
    let report = Report::open(&folder.path().join("run/report.json")).unwrap();
    let names: Vec<&str> = report.metrics.keys().map(String::as_str).collect();
    assert_eq!(names, ["has_answer@1", "recall@1", "mrr@10", "ndcg@10", "map", "document_recall@1", "latency_ms"]);
}

#[test]
fn a_stopped_run_is_resumed_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    eval(folder.path(), "whole", "", GOOD, None).unwrap();
    let error = eval(folder.path(), "stopped", "", GOOD, Some("q3")).unwrap_err();
    assert_snapshot!(error, @"question q3: the question does not fit the window (use a larger model)");
    assert!(!path("stopped/report.json").exists() && path("stopped/predictions.jsonl.partial").exists());
    let error = eval(folder.path(), "stopped", "", GOOD, None).unwrap_err();
    assert_snapshot!(error, @"DIR/stopped: another run lies in this folder (give another --out, or go on with it (--resume), or replace it (--overwrite))");
    let error = eval(folder.path(), "stopped", "--resume --depth 50", GOOD, None).unwrap_err();
    assert_snapshot!(error, @"DIR/stopped: the run in this folder cannot be resumed: --depth is not the same (resume with what the run was begun with, or begin anew with --overwrite)");
    assert_snapshot!(compare(folder.path(), "whole", "stopped").unwrap_err(), @"DIR/stopped: there is no complete run here (give the --out folder of a complete run, or its predictions.jsonl; finish a stopped run with --resume)");
    // As if the power went in the middle of a line.
    let mut torn = fs::read(path("stopped/predictions.jsonl.partial")).unwrap();
    torn.extend(b"{\"id\": \"q3\", \"ques");
    fs::write(path("stopped/predictions.jsonl.partial"), torn).unwrap();
    eval(folder.path(), "stopped", "--resume", GOOD, None).unwrap();
    for name in ["predictions.jsonl", "run.trec", "report.json", "report.html"] {
        assert_eq!(
            fs::read(path("stopped").join(name)).unwrap(),
            fs::read(path("whole").join(name)).unwrap(),
            "{name}"
        );
    }
    // A complete run is not made again: q1 would fail.
    eval(folder.path(), "stopped", "--resume", GOOD, Some("q1")).unwrap();
    let error = eval(folder.path(), "stopped", "", GOOD, None).unwrap_err();
    assert!(error.contains("another run lies in this folder"), "{error}");
    eval(folder.path(), "stopped", "--overwrite --limit 2", GOOD, None).unwrap();
    assert_eq!(Report::open(&path("stopped/report.json")).unwrap().n, 2);
}

#[test]
fn a_run_stopped_between_two_names_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    eval(folder.path(), "whole", "", GOOD, None).unwrap();
    eval(folder.path(), "stopped", "", GOOD, Some("q4")).unwrap_err();
    fs::copy(path("whole/predictions.jsonl"), path("stopped/predictions.jsonl")).unwrap();
    fs::remove_file(path("stopped/predictions.jsonl.partial")).unwrap();
    eval(folder.path(), "stopped", "--resume", GOOD, Some("q1")).unwrap();
    assert_eq!(fs::read(path("stopped/report.json")).unwrap(), fs::read(path("whole/report.json")).unwrap());
}

#[test]
fn a_damaged_run_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let partial = folder.path().join("run/predictions.jsonl.partial");
    eval(folder.path(), "run", "", GOOD, Some("q3")).unwrap_err();
    let lines = fs::read_to_string(&partial).unwrap();
    fs::write(&partial, lines.replace("\"id\":\"q2\"", "\"id\":\"q7\"")).unwrap();
    let error = eval(folder.path(), "run", "--resume", GOOD, None).unwrap_err();
    assert!(error.contains("line 2 answers q7, which is not asked there"), "{error}");
    fs::write(&partial, "rubbish\n").unwrap();
    let error = eval(folder.path(), "run", "--resume", GOOD, None).unwrap_err();
    assert!(error.contains("predictions.jsonl.partial: the run in this folder cannot be resumed: line 1"), "{error}");
}

#[test]
fn two_runs_are_compared_question_by_question() {
    let folder = tempfile::tempdir().unwrap();
    eval(folder.path(), "poor", "--depth 5 --k 1", POOR, None).unwrap();
    eval(folder.path(), "good", "--depth 5 --k 1", GOOD, None).unwrap();
    assert_snapshot!(compare(folder.path(), "poor", "good").unwrap(), @r"
    A  DIR/poor
    B  DIR/good

    metric                       A      B   B - A      95% interval       p         test  questions
    exact_match              0.250  0.750  +0.500  +0.000 .. +1.000  0.5000      McNemar          4
    f1                       0.417  0.917  +0.500  +0.167 .. +0.833  0.2561  permutation          4
    exact_match_has_ans      0.333  0.667  +0.333  +0.000 .. +1.000  1.0000      McNemar          3
    f1_has_ans               0.556  0.889  +0.333  +0.000 .. +0.667  0.5032  permutation          3
    exact_match_no_ans       0.000  1.000  +1.000  +1.000 .. +1.000  1.0000      McNemar          1
    coverage                 1.000  0.750  -0.250  -0.750 .. +0.000  1.0000      McNemar          4
    exact_match_of_answered  0.333  0.667  +0.333  +0.000 .. +1.000  1.0000      McNemar          3
    aurc                     0.729  0.521  -0.208  -1.000 .. +0.000  0.1219    bootstrap          4
    ece                      0.450  0.650  +0.200  +0.000 .. +0.450  0.1219    bootstrap          4
    brier                    0.250  0.450  +0.200  +0.000 .. +0.450  0.5032  permutation          4
    has_answer@1             0.667  0.667  +0.000  +0.000 .. +0.000  1.0000      McNemar          3
    recall@1                 0.750  0.750  +0.000  +0.000 .. +0.000  1.0000      McNemar          4
    mrr@10                   0.875  0.875  +0.000  +0.000 .. +0.000  1.0000  permutation          4
    ndcg@10                  0.811  0.811  +0.000  +0.000 .. +0.000  1.0000  permutation          4
    map                      0.750  0.750  +0.000  +0.000 .. +0.000  1.0000  permutation          4
    document_recall@1        0.625  0.625  +0.000  +0.000 .. +0.000  1.0000  permutation          4
    recall_at_reader         0.750  0.750  +0.000  +0.000 .. +0.000  1.0000      McNemar          4
    has_answer_at_reader     0.333  0.333  +0.000  +0.000 .. +0.000  1.0000      McNemar          3
    ");
    let by_file = compare(folder.path(), "poor/predictions.jsonl", "good/predictions.jsonl").unwrap();
    assert!(by_file.contains("exact_match"), "{by_file}");
}

/// A pipe whose reader went away.
struct Closed;

impl std::io::Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_subcommand_takes_global_options_before_it_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    eval(folder.path(), "a", "--depth 5 --k 1", POOR, None).unwrap();
    let a = folder.path().join("a").display().to_string();
    let typed = Typed::try_parse_from(["eval", "--json", "compare", &a, &a]).unwrap();
    assert!(act(folder.path(), &typed, &[], None).unwrap().starts_with('{'));
    for option in ["--index=ix", "--gold", "--k=1"] {
        let error = Typed::try_parse_from(["eval", option, "compare", &a, &a]).unwrap_err().to_string();
        let name = option.split('=').next().unwrap();
        assert!(error.contains(&format!("the subcommand 'compare' cannot be used with '{name}'")), "{error}");
    }
    let open = |args: &RunArgs| Ok(bench(args, &[], None));
    run_with(&typed.eval, open, true, &Quiet, &mut Closed).unwrap();
}

#[test]
fn different_questions_are_not_compared() {
    let folder = tempfile::tempdir().unwrap();
    eval(folder.path(), "all", "", GOOD, None).unwrap();
    eval(folder.path(), "two", "--limit 2", GOOD, None).unwrap();
    assert_snapshot!(compare(folder.path(), "all", "two").unwrap_err(), @"the runs are not over the same questions: question q3 is not in DIR/two (compare runs of the same --questions and --limit)");
    assert_snapshot!(compare(folder.path(), "two", "all").unwrap_err(), @"the runs are not over the same questions: question q3 is not in DIR/two (compare runs of the same --questions and --limit)");
    assert_snapshot!(compare(folder.path(), "two", "nowhere").unwrap_err(), @"DIR/nowhere: there is no complete run here (give the --out folder of a complete run, or its predictions.jsonl; finish a stopped run with --resume)");
}

#[test]
fn wrong_words_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (words, problem) in [
        ("--limit 0", "it must be 1 or more"),
        ("--k 5,x", "not a whole number"),
        ("--resume --overwrite", "cannot be used with"),
        ("--reader oracle", "possible values: none, lm"),
        ("--gold --filter year>1", "--filter is for finding some (leave one of them out)"),
        ("--depth 3 --k 5", "every --k is beyond --depth (raise --depth)"),
    ] {
        let error = eval(folder.path(), "run", words, GOOD, None).unwrap_err();
        assert!(error.contains(problem), "{words}: {error}");
        assert!(!folder.path().join("run").exists(), "{words}");
    }
    fs::write(folder.path().join("questions.jsonl"), "{\"question\": \"q\"}\n{\n").unwrap();
    let error = eval(folder.path(), "run", "", GOOD, None).unwrap_err();
    assert!(error.starts_with("DIR/questions.jsonl:2: not JSON"), "{error}");
}

#[test]
fn questions_of_a_beir_folder_come_with_their_judgements() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("qrels")).unwrap();
    fs::write(folder.path().join("queries.jsonl"), "{\"_id\": \"7\", \"text\": \"t\"}\n").unwrap();
    fs::write(folder.path().join("qrels/test.tsv"), "query-id\tcorpus-id\tscore\n7\td1\t1\n").unwrap();
    let set = dataset::read(folder.path(), 0, &Quiet).unwrap();
    assert_eq!((set.questions[0].question.as_str(), set.questions[0].answers.as_ref()), ("t", None));
}

/// A run over 80 questions of which every answer with a score above -1 is right, and one in eight of the others.
fn run_with_features(folder: &Path, out: &str) -> Result<String, String> {
    let questions: String = (0..80)
        .map(|i| format!("{{\"id\": \"q{i}\", \"question\": \"question {i}?\", \"answers\": [\"ice\"]}}\n"))
        .collect();
    fs::write(folder.join("train.jsonl"), questions).unwrap();
    let at = |name: &str| folder.join(name).display().to_string();
    let words = ["eval", "--index", "none", "--questions", &at("train.jsonl"), "--out", &at(out), "--k", "1"];
    let args = Typed::try_parse_from(words).map_err(|e| e.to_string())?;
    let open = |args: &RunArgs| {
        let mut bench = bench(args, &[], None);
        bench.answer = Box::new(|question| {
            let number: usize = question.id[1..].parse().unwrap();
            let score = -(number as f32) / 40.0;
            let features = Features { score: Some(score), supported: Some(1.0), ..Features::default() };
            let right = score > -1.0 || number.is_multiple_of(8);
            let answer = Answer {
                question: question.question.clone(),
                answer: if right { "ice" } else { "rock" }.to_owned(),
                confidence: 0.5,
                abstained: false,
                score,
                supported: true,
                evidence: Vec::new(),
                prompt: None,
                uncalibrated: None,
                usage: Usage::default(),
                trace: Some(Trace { features, ..Trace::default() }),
            };
            let latency = Latency::default();
            let retrieved = Vec::new();
            let reader_passages = Vec::new();
            let (first_stage, reranked) = (None, 0);
            let answer = Some(answer);
            Ok(Outcome { answer, retrieved, first_stage, reranked, reader_passages, trace: None, latency })
        });
        Ok(bench)
    };
    let mut printed = Vec::new();
    run_with(&args.eval, open, false, &Quiet, &mut printed).map_err(|e| e.to_string())?;
    Ok(String::from_utf8(printed).unwrap())
}

#[test]
fn a_run_with_known_answers_calibrates() {
    let folder = tempfile::tempdir().unwrap();
    run_with_features(folder.path(), "train").unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let calibrate = |run: &str| {
        let words = ["eval", "calibrate", "--run", &at(run), "--out", &at("c.json")];
        act(folder.path(), &Typed::try_parse_from(words).unwrap(), &[], None)
    };
    let said = calibrate("train").unwrap();
    assert!(said.starts_with("fitted on 80 answers to train.jsonl, 56.2% of them right; log loss 0."), "{said}");
    let (calibration, _) = Calibration::open(Path::new(&at("c.json"))).unwrap();
    let names: Vec<&str> = calibration.terms.iter().map(|t| t.feature.as_str()).collect();
    assert_eq!(names, ["score"], "what is the same for all answers says nothing");
    let sure = |score| calibration.confidence(&Features { score: Some(score), ..Features::default() });
    assert!(sure(0.0) > 0.9 && sure(-2.0) < 0.25, "{} {}", sure(0.0), sure(-2.0));

    let there = calibrate("train").unwrap_err();
    assert!(there.contains("c.json is there already (add --overwrite"), "{there}");
    let words = ["eval", "calibrate", "--overwrite", "--run", &at("train"), "--out", &at("c.json")];
    act(folder.path(), &Typed::try_parse_from(words).unwrap(), &[], None).unwrap();

    fs::remove_file(at("c.json")).unwrap();
    fs::create_dir(at("taken")).unwrap();
    let words = ["eval", "calibrate", "--run", &at("train"), "--out", &at("taken")];
    let error = act(folder.path(), &Typed::try_parse_from(words).unwrap(), &[], None).unwrap_err();
    assert!(error.contains("taken: it is no plain file"), "{error}");
    eval(folder.path(), "few", "", GOOD, None).unwrap();
    let error = calibrate("few").unwrap_err();
    assert!(error.contains("0 answers with a confidence, 0 of them right, are no ground"), "{error}");
    assert!(calibrate("nowhere").unwrap_err().contains("no complete run here"));
    assert!(!folder.path().join("c.json").exists());
}

#[test]
fn the_page_of_a_run_is_made_again_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    eval(folder.path(), "run", "", GOOD, None).unwrap();
    let page = folder.path().join("run/report.html");
    let made = fs::read(&page).unwrap();
    fs::remove_file(&page).unwrap();
    let report = |run: &str| {
        let words = ["eval", "report", "--run", &folder.path().join(run).display().to_string()];
        act(folder.path(), &Typed::try_parse_from(words).unwrap(), &[], None)
    };
    assert_eq!(report("run").unwrap(), "DIR/run/report.html\n");
    assert_eq!(fs::read(&page).unwrap(), made);
    assert!(report("nowhere").unwrap_err().contains("no complete run here"));
}
