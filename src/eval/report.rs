//! What a run came to: `report.json`, and the same as a table for people.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::eval::bootstrap::{interval, interval_of, mean, quantile};
use crate::eval::calibration::{BINS, bins, expected_calibration_error};
use crate::eval::prediction::Prediction;
use crate::eval::provenance::Provenance;
use crate::eval::selective::{Ordered, Scored, best_threshold};
use crate::eval::table::aligned;

/// The order in which metrics are reported; what stands before an `@` is looked up.
const ORDER: [&str; 18] = [
    "exact_match",
    "f1",
    "exact_match_has_ans",
    "f1_has_ans",
    "exact_match_no_ans",
    "coverage",
    "exact_match_of_answered",
    "aurc",
    "ece",
    "brier",
    "has_answer",
    "recall",
    "mrr",
    "ndcg",
    "map",
    "document_recall",
    "recall_at_reader",
    "has_answer_at_reader",
];

/// The content of `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Questions asked.
    pub n: usize,
    /// Means over the questions that have the metric, in [0, 1], and `aurc` and `ece`, which are no means;
    /// `latency_ms` by stage, `tokens` of the reader, `risk_coverage`, `reliability` and `oracle_threshold` (chosen
    /// with the answers at hand: no result) as objects of their own.
    pub metrics: Map<String, Value>,
    /// 95% bootstrap interval of each mean, and the number of questions it is over.
    pub intervals: Map<String, Value>,
    /// Where the numbers come from.
    #[serde(flatten)]
    pub provenance: Provenance,
}

/// The raw numbers of a run, question by question; the text of the questions is not kept.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    n: usize,
    metrics: HashMap<String, Vec<f64>>,
    pub(super) scored: Vec<Scored>,
    /// Milliseconds: retrieve, rerank, pack, read, total.
    pub(super) latency: [Vec<f64>; 5],
    prompt_tokens: Vec<f64>,
    answer_tokens: Vec<f64>,
    cached_tokens: Vec<f64>,
}

pub(super) const STAGES: [&str; 5] = ["retrieve", "rerank", "pack", "read", "total"];

impl Columns {
    /// Add one question.
    pub fn push(&mut self, prediction: &Prediction) {
        self.n += 1;
        for (name, value) in prediction.values() {
            match self.metrics.get_mut(name) {
                Some(column) => column.push(value),
                None => drop(self.metrics.insert(name.to_owned(), vec![value])),
            }
        }
        self.scored.extend(prediction.scored());
        let ms = &prediction.latency_ms;
        for (column, value) in self.latency.iter_mut().zip([ms.retrieve, ms.rerank, ms.pack, ms.read, ms.total]) {
            column.push(value);
        }
        if prediction.prediction.is_some() {
            self.prompt_tokens.push(prediction.prompt_tokens as f64);
            self.answer_tokens.push(prediction.answer_tokens as f64);
            self.cached_tokens.push(prediction.cached_tokens as f64);
        }
    }
}

/// Drop what says nothing new: the parts of a question set that has only one, and the share of answered questions when
/// all are. `answered` reads a value of that.
pub(super) fn keep_telling<T>(columns: &mut Vec<(String, Vec<T>)>, answered: impl Fn(&T) -> bool) {
    let has = |name: &str| columns.iter().any(|(n, _)| n == name);
    let both = has("exact_match_has_ans") && has("exact_match_no_ans");
    let withheld = columns.iter().any(|(n, column)| n == "coverage" && !column.iter().all(&answered));
    columns.retain(|(name, _)| match name.as_str() {
        "exact_match_has_ans" | "f1_has_ans" | "exact_match_no_ans" => both,
        "coverage" | "exact_match_of_answered" => withheld,
        _ => true,
    });
}

/// Place of a metric in a report: its kind, then its k.
pub(super) fn place(name: &str) -> (usize, usize) {
    let (kind, k) = name.split_once('@').unwrap_or((name, "0"));
    (ORDER.iter().position(|known| *known == kind).unwrap_or(ORDER.len()), k.parse().unwrap_or(usize::MAX))
}

impl Report {
    /// Sum up a run; intervals are drawn with the run's own seed.
    pub fn new(columns: Columns, provenance: Provenance) -> Self {
        let Columns { n, metrics: values, scored, latency, prompt_tokens, answer_tokens, cached_tokens } = columns;
        let mut values: Vec<(String, Vec<f64>)> = values.into_iter().collect();
        keep_telling(&mut values, |answered| *answered == 1.0);
        values.sort_by(|(a, _), (b, _)| (place(a), a).cmp(&(place(b), b)));
        let ordered = Ordered::new(scored.iter().map(|s| (s.confidence, s.exact_match)));
        let mut metrics = Map::new();
        let mut intervals = Map::new();
        for (name, column) in values {
            let (Some(mean), Some(ends)) = (mean(&column), interval(&column, provenance.seed)) else { continue };
            // In the order of the table: these two stand before the mean that follows them.
            if name == "brier" {
                for (name, statistic) in CONFIDENCE {
                    let Some(value) = statistic(&ordered) else { continue };
                    let resampled = |counts: &[u32]| statistic(&ordered.resampled(counts));
                    let Some(ends) = interval_of(ordered.len(), provenance.seed, resampled) else { continue };
                    intervals.insert(name.into(), json!({"low": ends.low, "high": ends.high, "n": ordered.len()}));
                    metrics.insert(name.into(), value.into());
                }
            }
            intervals.insert(name.clone(), json!({"low": ends.low, "high": ends.high, "n": column.len()}));
            metrics.insert(name, mean.into());
        }
        if !ordered.is_empty() {
            metrics.insert("risk_coverage".into(), json!(curve(&ordered)));
            metrics.insert("reliability".into(), json!(bins(&ordered, BINS)));
        }
        if scored.iter().any(|s| !s.answerable) && scored.iter().any(|s| s.answerable) {
            let exact_match = best_threshold(&scored, |s| s.exact_match);
            let f1 = best_threshold(&scored, |s| s.f1);
            metrics.insert("oracle_threshold".into(), json!({"exact_match": exact_match, "f1": f1}));
        }
        let stages = STAGES.into_iter().zip(latency).map(|(stage, column)| {
            let [p50, p90, p95, p99] = percentiles(column);
            (stage.to_owned(), json!({"p50": p50, "p90": p90, "p95": p95, "p99": p99}))
        });
        metrics.insert("latency_ms".into(), Value::Object(stages.collect()));
        if !prompt_tokens.is_empty() {
            let tokens = json!({
                "prompt": token_summary(prompt_tokens),
                "cached": token_summary(cached_tokens),
                "answer": token_summary(answer_tokens),
            });
            metrics.insert("tokens".into(), tokens);
        }
        Self { n, metrics, intervals, provenance }
    }

    /// The mean of a metric by its name in `report.json`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.get(name)?.as_f64()
    }

    /// Read a `report.json`.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
        let hint = "make the run again with --overwrite";
        serde_json::from_slice(&bytes).map_err(|e| Error::bad_file(path, format!("not a report: {e}"), hint))
    }

    /// The report for people.
    pub fn table(&self) -> String {
        let number = |value: Option<&Value>| value.and_then(Value::as_f64);
        let mut rows = vec![["metric", "mean", "95% interval", "questions"].map(str::to_owned).to_vec()];
        for (name, value) in &self.metrics {
            let Some(mean) = value.as_f64() else { continue };
            let ends = self.intervals.get(name);
            let end = |which: &str| number(ends.and_then(|e| e.get(which))).map_or("?".into(), |x| format!("{x:.3}"));
            let n = ends.and_then(|e| e.get("n")).map_or("?".into(), Value::to_string);
            rows.push(vec![name.clone(), format!("{mean:.3}"), format!("{} .. {}", end("low"), end("high")), n]);
        }
        let mut text = aligned(&rows);
        if let Some(Value::Array(points)) = self.metrics.get("risk_coverage") {
            let mut rows =
                [vec!["if only the surest are answered".to_owned()], vec!["exact match of these".to_owned()]];
            for hundredth in [10, 25, 50, 75, 100] {
                let point = points.get(hundredth - 1).and_then(|p| p.get("exact_match"));
                rows[0].push(format!("{hundredth}%"));
                rows[1].push(number(point).map_or("?".into(), |x| format!("{x:.3}")));
            }
            text.push('\n');
            text.push_str(&aligned(&rows));
        }
        if let Some(best) = self.metrics.get("oracle_threshold").and_then(|o| o.get("exact_match")) {
            let cell = |name: &str| number(best.get(name)).map_or("?".into(), |x| format!("{x:.3}"));
            let (score, threshold) = (cell("score"), cell("min_confidence"));
            text.push_str(&format!("\noracle (in hindsight): exact match {score} with --min-confidence {threshold}\n"));
        }
        let ms = |stage: &str, p: &str| {
            let value = self.metrics.get("latency_ms").and_then(|l| l.get(stage)).and_then(|s| s.get(p));
            number(value).map_or("?".into(), |x| format!("{x:.1}"))
        };
        let line = |first: &str, rest: [String; 5]| std::iter::once(first.to_owned()).chain(rest).collect::<Vec<_>>();
        let mut rows = vec![line("latency, ms", STAGES.map(str::to_owned))];
        for p in ["p50", "p95"] {
            rows.push(line(p, STAGES.map(|stage| ms(stage, p))));
        }
        text.push('\n');
        text.push_str(&aligned(&rows));
        if let Some(Value::Object(tokens)) = self.metrics.get("tokens") {
            let mut rows = vec![["tokens", "mean", "p95", "total"].map(str::to_owned).to_vec()];
            for (kind, summary) in tokens {
                let cell = |name: &str, digits: usize| {
                    number(summary.get(name)).map_or("?".into(), |x| format!("{x:.digits$}"))
                };
                rows.push(vec![kind.clone(), cell("mean", 1), cell("p95", 0), cell("total", 0)]);
            }
            text.push('\n');
            text.push_str(&aligned(&rows));
        }
        text
    }
}

/// A measure of answers in the order of their confidence.
type OfOrdered = fn(&Ordered) -> Option<f64>;

/// What is not a mean over questions, by name.
pub(super) const CONFIDENCE: [(&str, OfOrdered); 2] = [("aurc", Ordered::aurc), ("ece", expected_calibration_error)];

/// The risk-coverage curve at each hundredth of coverage.
fn curve(ordered: &Ordered) -> Vec<Value> {
    let selective = ordered.selective();
    let at = |hundredth: usize| {
        let answered = (ordered.len() * hundredth).div_ceil(100);
        let exact_match = selective.get(answered.checked_sub(1)?)?;
        Some(json!({"coverage": hundredth as f64 / 100.0, "exact_match": exact_match}))
    };
    (1..=100).filter_map(at).collect()
}

fn percentiles(mut column: Vec<f64>) -> [f64; 4] {
    column.sort_by(f64::total_cmp);
    [0.5, 0.9, 0.95, 0.99].map(|q| quantile(&column, q).unwrap_or(0.0))
}

fn token_summary(column: Vec<f64>) -> Value {
    let total: f64 = column.iter().sum();
    let mean = mean(&column).unwrap_or(0.0);
    let [p50, _, p95, _] = percentiles(column);
    json!({"mean": mean, "p50": p50, "p95": p95, "total": total as u64})
}
