//! What re-ranking does to a frozen reader: table 2 of "Standing on the Shoulders of Giant Frozen Language Models" in our
//! setting.
//!
//!     cargo bench --bench frozen_reader -- INDEX QUESTIONS N OUT.jsonl
//!
//! Recall at the reader's input (by gold id, and by an answer that stands in it) and exact match, without and with the
//! re-ranker, behind every first stage and for every reader budget, each pair with its paired test, over the first N
//! questions; then recall of the ranked lists. All is as `eval` has it by default, but a pair or a window that several
//! of the settings read is read once. OUT.jsonl gets a line a question, and a run that was stopped goes on behind its
//! last line. It does not show latency.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench is a script")]

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use nunatak::encode::Encoder;
use nunatak::eval::bootstrap::paired;
use nunatak::eval::dataset::{self, Question};
use nunatak::eval::has_answer::AnswerMatcher;
use nunatak::eval::normalise::exact_match_and_f1;
use nunatak::eval::ranking::{first_gold_passage, hit_at};
use nunatak::index::Index;
use nunatak::pack::Window;
use nunatak::pipeline::{Depths, Found, Pipeline};
use nunatak::progress::Quiet;
use nunatak::read::choose::{Choice, Extent, WindowAnswer, choose, deciding};
use nunatak::read::prompts;
use nunatak::read::reader::{Reader, ReaderSettings, rank_score};
use nunatak::rerank::CrossEncoder;
use nunatak::retrieve::{Bm25Retriever, DenseRetriever, Fusion, HybridRetriever, Mode, Retriever};
use nunatak::runtime::session::RuntimeOptions;
use nunatak::runtime::setup;
use nunatak::types::{Hit, PassageId, sort_hits};
use serde::{Deserialize, Serialize};

const MODES: [Mode; 3] = [Mode::Bm25, Mode::Dense, Mode::Hybrid];
const BUDGETS: [usize; 3] = [512, 1024, 2048];
/// Weight of a window's rank score: of a first stage's, and of the re-ranker's, as `eval` has them.
const SCORE_WEIGHTS: [f32; 2] = [10.0, 1.0];
/// Windows that are read at once.
const BATCH: usize = 16;

/// One setting's measures of one question.
#[derive(Serialize, Deserialize)]
struct Cell {
    mode: Mode,
    budget: usize,
    reranked: bool,
    /// Gold passage, and any answer, among what was read.
    recall: f64,
    has_answer: f64,
    exact_match: f64,
    prediction: String,
}

/// One list's rank of the first gold passage.
#[derive(Serialize, Deserialize)]
struct List {
    mode: Mode,
    reranked: bool,
    gold: Option<usize>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    id: String,
    cells: Vec<Cell>,
    lists: Vec<List>,
}

struct Bench {
    index: Arc<Index>,
    retrievers: Vec<Box<dyn Retriever>>,
    reranker: CrossEncoder,
    pipeline: Pipeline,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let [index, questions, n, out] = words.as_slice() else {
        println!("usage: cargo bench --bench frozen_reader -- INDEX QUESTIONS N OUT.jsonl");
        return;
    };
    let questions = dataset::read(Path::new(questions), 0, &Quiet).unwrap().questions;
    let questions = &questions[..questions.len().min(n.parse().unwrap())];
    let lines = || -> Vec<Line> {
        let text = std::fs::read_to_string(out).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let done = lines().len();
    if done < questions.len() {
        let mut bench = Bench::open(Path::new(index));
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(out).unwrap();
        for question in &questions[done..] {
            let line = serde_json::to_string(&bench.ask(question)).unwrap();
            file.write_all((line + "\n").as_bytes()).unwrap();
        }
    }
    tables(&lines()[..questions.len()]);
}

impl Bench {
    fn open(path: &Path) -> Self {
        let options = RuntimeOptions::default();
        let model = |name: &str| setup::model(name, &options, &Quiet).unwrap();
        let index = Arc::new(Index::open(path).unwrap());
        let encoder = Encoder::open(&model(&index.manifest().encoder.as_ref().unwrap().name), &options).unwrap();
        let fingerprint = encoder.fingerprint().to_owned();
        let encoder = Arc::new(Mutex::new(encoder));
        let dense = || {
            let encoder = Arc::clone(&encoder);
            let encode = move |question: &str| encoder.lock().unwrap().encode(&[question.to_owned()]);
            DenseRetriever::new(Arc::clone(&index), encode, &fingerprint, 0, false).unwrap()
        };
        let retrievers: Vec<Box<dyn Retriever>> = vec![
            Box::new(Bm25Retriever::new(Arc::clone(&index))),
            Box::new(dense()),
            Box::new(HybridRetriever::new(Arc::clone(&index), dense(), Fusion::default(), 0)),
        ];
        let reranker = CrossEncoder::open(&model("reranker"), &options).unwrap();
        let lm = model("SmolLM2-135M-Instruct");
        let prompt = prompts::default_for(&lm).unwrap().map(|(_, prompt)| prompt);
        let reader = Reader::open(&lm, ReaderSettings::default(), prompt, &options).unwrap();
        let first = Box::new(Bm25Retriever::new(Arc::clone(&index)));
        let pipeline = Pipeline::new(Arc::<Index>::clone(&index), first, None, Some(reader), Depths::default());
        Self { index, retrievers, reranker, pipeline }
    }

    fn ask(&mut self, question: &Question) -> Line {
        let lists = self.lists(question);
        let mut packed: Vec<(usize, usize, Vec<Window>)> = Vec::new();
        for (at, (_, _, found)) in lists.iter().enumerate() {
            for budget in BUDGETS {
                let depths = Depths { read: usize::MAX, tokens: Some(budget), ..Depths::default() };
                self.pipeline.set_depths(depths);
                packed.push((at, budget, self.pipeline.pack(&question.question, found).unwrap().0.windows));
            }
        }
        let weighed = |at: &usize| SCORE_WEIGHTS[usize::from(lists[*at].1)];
        let firsts = packed.iter().filter_map(|(_, _, windows)| windows.first());
        let mut said = HashMap::new();
        self.read(&question.question, firsts, &mut said);
        // As `eval` has it: the first window's answer says which others could give a better one.
        let decide = packed.iter().map(|(at, _, windows)| {
            let scores: Vec<f32> = windows.iter().map(rank_score).collect();
            windows.first().map_or(0, |w| deciding(&answer(&said, w), &scores, weighed(at)))
        });
        let decide: Vec<usize> = decide.collect();
        let others = packed.iter().zip(&decide).flat_map(|((_, _, windows), decide)| &windows[..*decide]);
        self.read(&question.question, others, &mut said);
        let answers = question.answers.clone().unwrap_or_default();
        let (matcher, gold) = (AnswerMatcher::new(&answers), question.gold.clone().unwrap_or_default());
        let cells = packed.iter().zip(&decide).map(|((at, budget, windows), decide)| {
            let (mode, reranked, _) = &lists[*at];
            let own: Vec<WindowAnswer> = windows[..*decide].iter().map(|w| answer(&said, w)).collect();
            let chosen = choose(&own, &[], Choice::default(), weighed(at));
            let prediction = chosen.map(|c| own[c.window].answer.clone()).unwrap_or_default();
            let read = || windows.iter().flatten().map(|p| &p.passage);
            Cell {
                mode: *mode,
                budget: *budget,
                reranked: *reranked,
                recall: number(first_gold_passage(read().map(|p| p.key.as_str()), &gold).is_some()),
                has_answer: number(read().any(|p| matcher.matches(&p.text))),
                exact_match: exact_match_and_f1(&prediction, &answers).0,
                prediction,
            }
        });
        let cells = cells.collect();
        let lists = lists.iter().map(|(mode, reranked, found)| {
            let keys: Vec<&str> = found.ranking().iter().map(|hit| self.index.key(hit.passage).unwrap()).collect();
            List { mode: *mode, reranked: *reranked, gold: first_gold_passage(keys, &gold) }
        });
        Line { id: question.id.clone(), cells, lists: lists.collect() }
    }

    /// Read the windows that were not read yet.
    fn read<'a>(
        &mut self,
        question: &str,
        windows: impl Iterator<Item = &'a Window>,
        said: &mut HashMap<Vec<u32>, WindowAnswer>,
    ) {
        let mut seen: HashSet<Vec<u32>> = said.keys().cloned().collect();
        let new: Vec<Window> = windows.filter(|window| seen.insert(tokens(window))).cloned().collect();
        let reader = self.pipeline.reader_mut().unwrap();
        for batch in new.chunks(BATCH) {
            let answers = reader.read(question, batch, Extent::All, &mut |_, _| {}).unwrap().windows;
            said.extend(batch.iter().map(tokens).zip(answers));
        }
    }

    /// Every first stage's list, without and with the re-ranker, which reads a passage once.
    fn lists(&mut self, question: &Question) -> Vec<(Mode, bool, Found)> {
        let mut scores: HashMap<PassageId, f32> = HashMap::new();
        let mut lists = Vec::new();
        for (mode, retriever) in MODES.into_iter().zip(&mut self.retrievers) {
            let depths = Depths::default();
            let retrieved = retriever.retrieve(&question.question, depths.retrieve, None).unwrap();
            let candidates = &retrieved[..retrieved.len().min(depths.rerank)];
            let new: Vec<PassageId> =
                candidates.iter().map(|hit| hit.passage).filter(|passage| !scores.contains_key(passage)).collect();
            let texts: Vec<String> = new.iter().map(|p| self.index.passage(*p).unwrap().titled_text()).collect();
            scores.extend(new.into_iter().zip(self.reranker.score(&question.question, &texts).unwrap()));
            let known = self.reranker.priors().iter().find(|prior| prior.retrieval["mode"] == mode.name());
            let weight = known.map_or(0.0, |prior| prior.weight);
            let score = |hit: &Hit| Hit { passage: hit.passage, score: scores[&hit.passage] + weight * hit.score };
            let mut reranked: Vec<Hit> = candidates.iter().map(score).collect();
            sort_hits(&mut reranked);
            lists.push((mode, false, Found { retrieved: retrieved.clone(), ..Found::default() }));
            lists.push((mode, true, Found { retrieved, reranked, ..Found::default() }));
        }
        lists
    }
}

/// What was said to a window, with its rank score in this list.
fn answer(said: &HashMap<Vec<u32>, WindowAnswer>, window: &Window) -> WindowAnswer {
    WindowAnswer { rank_score: rank_score(window), ..said[&tokens(window)].clone() }
}

fn tokens(window: &Window) -> Vec<u32> {
    window.iter().flat_map(|p| p.ids.iter().copied()).collect()
}

fn number(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn tables(lines: &[Line]) {
    println!("n {}", lines.len());
    println!(
        "| first stage | budget | recall at the reader | with re-ranker | p | answer in what is read | with | p | exact match | with | p |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for mode in MODES {
        for budget in BUDGETS {
            let measure = |of: fn(&Cell) -> f64| {
                let cell = |line: &Line, reranked: bool| {
                    let is = |c: &&Cell| c.mode == mode && c.budget == budget && c.reranked == reranked;
                    of(line.cells.iter().find(is).unwrap())
                };
                row(&lines.iter().map(|line| (cell(line, false), cell(line, true))).collect::<Vec<_>>())
            };
            let measures = [measure(|c| c.recall), measure(|c| c.has_answer), measure(|c| c.exact_match)];
            println!("| {mode} | {budget} | {} |", measures.join(" | "));
        }
    }
    println!();
    println!("| first stage | recall@1 | with re-ranker | p | recall@5 | with | p |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for mode in MODES {
        let measures = [1, 5].map(|k| {
            let hit = |line: &Line, reranked: bool| {
                hit_at(line.lists.iter().find(|l| l.mode == mode && l.reranked == reranked).unwrap().gold, k)
            };
            row(&lines.iter().map(|line| (hit(line, false), hit(line, true))).collect::<Vec<_>>())
        });
        println!("| {mode} | {} |", measures.join(" | "));
    }
}

/// Both means, and the difference with its interval and p-value.
fn row(pairs: &[(f64, f64)]) -> String {
    let n = pairs.len() as f64;
    let (a, b) = (pairs.iter().map(|p| p.0).sum::<f64>() / n, pairs.iter().map(|p| p.1).sum::<f64>() / n);
    let test = paired(pairs, 0).unwrap();
    let (low, high) = (100.0 * test.interval.low, 100.0 * test.interval.high);
    format!(
        "{:.1} | {:.1} ({:+.1} [{low:+.1}, {high:+.1}]) | {:.4}",
        100.0 * a,
        100.0 * b,
        100.0 * test.difference,
        test.p
    )
}
