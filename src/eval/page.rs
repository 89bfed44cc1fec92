//! A run as a page for people: `report.html`, one file without anything from outside and without scripts.
//!
//! Numbers come from the report, curves from the predictions. The page is made line by line from a run's files, so
//! that `nunatak eval report` can make it again; a run of an older version has no confidences or traces, and its
//! page goes without.

use std::cmp::Ordering;
use std::path::Path;

use minijinja::value::{Serde, Value as Jinja};
use minijinja::{AutoEscape, Environment, context};
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::eval::calibration::{BINS, bins};
use crate::eval::out_dir::{PREDICTIONS, REPORT, read_predictions};
use crate::eval::prediction::Prediction;
use crate::eval::report::{Columns, Report, STAGES};
use crate::eval::selective::Ordered;
use crate::plot::{self, Bars, Chart, Series, Stroke};
use crate::types::document_of;

/// The page's name in a run's folder.
pub const PAGE: &str = "report.html";
/// Questions that are shown with their trace.
const WORST: usize = 25;
const TEMPLATE: &str = include_str!("report.html.j2");

/// What a page needs of the predictions, collected one by one.
#[derive(Debug, Default)]
pub struct Page {
    columns: Columns,
    worst: Vec<Prediction>,
    gold: Reach,
    gold_first_stage: Reach,
    answer: Reach,
}

/// How often the first hit stood at each rank.
#[derive(Debug, Default)]
struct Reach {
    /// `at[r]`: questions with the first hit on rank r + 1.
    at: Vec<usize>,
    questions: usize,
}

impl Reach {
    fn push(&mut self, rank: Option<usize>, depth: usize) {
        self.questions += 1;
        let needed = depth.max(rank.unwrap_or(0));
        if self.at.len() < needed {
            self.at.resize(needed, 0);
        }
        if let Some(count) = rank.and_then(|rank| self.at.get_mut(rank.checked_sub(1)?)) {
            *count += 1;
        }
    }

    /// Share of the questions with a hit among the top k, for each k.
    fn curve(&self) -> Vec<(f64, f64)> {
        let sums = self.at.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        (1..)
            .zip(sums)
            .map(|(k, sum): (u32, usize)| (f64::from(k), sum as f64 / self.questions.max(1) as f64))
            .collect()
    }
}

/// The worse question first: wrong before right, then the surer, then the one found at a lower place, then by id.
fn worse(a: &Prediction, b: &Prediction) -> Ordering {
    let wrong = |p: &Prediction| p.exact_match.is_some_and(|right| right < 1.0);
    // A withheld answer was not given: it is no error to be sure of.
    let sure = |p: &Prediction| if p.withheld.is_some() { -1.0 } else { p.confidence.or(p.score).unwrap_or(f64::MIN) };
    let rank = |p: &Prediction| p.ranks.and_then(|r| r.gold.or(r.answer)).unwrap_or(usize::MAX);
    let by_answer = wrong(b).cmp(&wrong(a)).then(sure(b).total_cmp(&sure(a)));
    by_answer.then(rank(b).cmp(&rank(a))).then_with(|| a.id.cmp(&b.id))
}

impl Page {
    /// Take one question into account.
    pub fn push(&mut self, prediction: &Prediction) {
        self.columns.push(prediction);
        if let Some(ranks) = prediction.ranks {
            if !prediction.gold.is_empty() {
                self.gold.push(ranks.gold, ranks.depth);
                if prediction.trace.as_ref().is_some_and(|t| !t.reranked.is_empty()) {
                    self.gold_first_stage.push(ranks.gold_first_stage, ranks.depth);
                }
            }
            if prediction.answers.as_ref().is_some_and(|answers| !answers.is_empty()) {
                self.answer.push(ranks.answer, ranks.depth);
            }
        }
        let at = self.worst.partition_point(|kept| worse(kept, prediction).is_lt());
        if at < WORST {
            self.worst.insert(at, prediction.clone());
            self.worst.truncate(WORST);
        }
    }

    /// The columns that a report is summed up from.
    pub fn columns(&self) -> Columns {
        self.columns.clone()
    }

    /// The page of a run with this report.
    pub fn render(&self, report: &Report) -> Result<String> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.add_filter("fixed", |value: f64, digits: usize| format!("{value:.digits$}"));
        environment.add_filter("percent", |value: f64| format!("{:.1}", value * 100.0));
        environment.add_filter("document", |key: &str| document_of(key).to_owned());
        environment.add_filter("file_name", |path: &str| {
            Path::new(path).file_name().map_or(path.to_owned(), |name| name.to_string_lossy().into_owned())
        });
        environment.add_filter("shown", |value: Jinja| match value.as_str() {
            Some(text) => text.to_owned(),
            None if value.is_none() => "none".to_owned(),
            // Settings are 32 bits wide: 0.8 is not to be shown as 0.800000011920929.
            None => f64::try_from(value.clone()).map_or_else(|_| value.to_string(), |x| (x as f32).to_string()),
        });
        let latency: Vec<(&str, Option<&Value>)> = STAGES.iter().map(|s| (*s, self.latency_of(report, s))).collect();
        let context = context! {
            report => Jinja::from(Serde(report)),
            metrics => Jinja::from(Serde(metric_rows(report))),
            charts => self.charts().into_iter().map(Jinja::from_safe_string).collect::<Vec<_>>(),
            latency => Jinja::from(Serde(latency)),
            worst => Jinja::from(Serde(&self.worst)),
            wrong => self.worst.iter().filter(|p| p.exact_match.is_some_and(|right| right < 1.0)).count(),
            same_questions => report.provenance.calibration.as_ref()
                .is_some_and(|c| c.fitted_on.as_ref() == Some(&report.provenance.questions.sha256)),
        };
        environment.render_named_str("report.html", TEMPLATE, context).map_err(Error::internal("writing report.html"))
    }

    fn latency_of<'a>(&self, report: &'a Report, stage: &str) -> Option<&'a Value> {
        report.metrics.get("latency_ms")?.get(stage)
    }

    /// The charts for which there are numbers.
    fn charts(&self) -> Vec<String> {
        let recall = (self.gold.questions + self.answer.questions > 0).then(|| self.recall());
        let scored = &self.columns.scored;
        let ordered = Ordered::new(scored.iter().map(|s| (s.confidence, s.exact_match)));
        let confidence = (!ordered.is_empty()).then(|| [risk_coverage(&ordered), reliability(&ordered)]);
        recall.into_iter().chain(confidence.into_iter().flatten()).chain(self.latency()).collect()
    }

    fn recall(&self) -> String {
        let reach = [
            ("gold passage", &self.gold),
            ("gold passage, first stage", &self.gold_first_stage),
            ("answer in the text", &self.answer),
        ];
        let series = reach.into_iter().filter(|(_, reach)| reach.questions > 0);
        plot::lines(&Chart {
            title: "Recall at depth".into(),
            x_label: "passages from the top (logarithmic)".into(),
            y_label: "share of questions".into(),
            series: series.map(|(name, reach)| Series::new(name, reach.curve())).collect(),
            y_range: Some((0.0, 1.0)),
            x_log: true,
            ..Chart::default()
        })
    }

    /// The stages of the questions whose total time lies around a quantile: 2% of the questions to either side, on
    /// average. So the parts add up, which the quantiles of the parts do not.
    fn latency(&self) -> Option<String> {
        let [retrieve, rerank, pack, read, total] = &self.columns.latency;
        let mut order: Vec<usize> = (0..total.len()).collect();
        let at = |column: &[f64], i: usize| column.get(i).copied().unwrap_or(0.0);
        order.sort_by(|a, b| at(total, *a).total_cmp(&at(total, *b)).then(a.cmp(b)));
        let last = order.len().checked_sub(1)?;
        let reach = order.len() / 50;
        let bar = |(name, quantile): (&str, f64)| {
            let middle = (quantile * last as f64).round() as usize;
            let near = order.get(middle.saturating_sub(reach)..=(middle + reach).min(last)).unwrap_or_default();
            let mean = |column: &Vec<f64>| near.iter().map(|i| at(column, *i)).sum::<f64>() / near.len().max(1) as f64;
            (name.to_owned(), [retrieve, rerank, pack, read].map(mean).to_vec())
        };
        Some(plot::bars(&Bars {
            title: "Latency by stage".into(),
            x_label: "milliseconds a question, around each percentile of the total".into(),
            parts: STAGES.iter().take(4).map(|s| (*s).to_owned()).collect(),
            bars: [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)].map(bar).to_vec(),
        }))
    }
}

fn risk_coverage(ordered: &Ordered) -> String {
    let curve = |ordered: &Ordered| {
        let selective = ordered.selective();
        let n = selective.len() as f64;
        (1u32..).zip(selective).map(|(i, value)| (f64::from(i) / n, 1.0 - value)).collect::<Vec<_>>()
    };
    let ours = curve(ordered);
    let all = ours.last().map_or(0.0, |point| point.1);
    plot::lines(&Chart {
        title: "Risk and coverage".into(),
        x_label: "share of questions answered, the surest first".into(),
        y_label: "share of wrong answers".into(),
        series: vec![
            Series::new("by confidence", ours),
            Series::new("perfect order", curve(&ordered.perfect())).drawn(Stroke::Reference),
            Series::new("", vec![(0.0, all), (1.0, all)]).drawn(Stroke::Reference),
        ],
        x_range: Some((0.0, 1.0)),
        y_range: Some((0.0, 1.0)),
        ..Chart::default()
    })
}

fn reliability(ordered: &Ordered) -> String {
    let bins = bins(ordered, BINS).into_iter().map(|bin| (bin.confidence, bin.accuracy)).collect();
    plot::lines(&Chart {
        title: "Reliability".into(),
        x_label: "confidence, in bins of equally many answers".into(),
        y_label: "share that is right".into(),
        series: vec![
            Series::new("bins", bins).drawn(Stroke::Dotted),
            Series::new("calibrated", vec![(0.0, 0.0), (1.0, 1.0)]).drawn(Stroke::Reference),
        ],
        x_range: Some((0.0, 1.0)),
        y_range: Some((0.0, 1.0)),
        ..Chart::default()
    })
}

/// A mean with its interval.
#[derive(Serialize)]
struct MetricRow<'a> {
    name: &'a str,
    mean: f64,
    low: Option<f64>,
    high: Option<f64>,
    n: Option<u64>,
    /// Among the headline numbers.
    headline: bool,
}

fn metric_rows<'a>(report: &'a Report) -> Vec<MetricRow<'a>> {
    const HEADLINES: [&str; 6] = ["exact_match", "f1", "recall_at_reader", "coverage", "aurc", "ece"];
    const FOUND: [&str; 4] = ["has_answer@5", "recall@5", "recall@20", "mrr@10"];
    let read = report.metrics.contains_key("exact_match");
    let row = |(name, value): (&'a String, &Value)| {
        let end = |which: &str| report.intervals.get(name).and_then(|ends| ends.get(which));
        Some(MetricRow {
            name,
            mean: value.as_f64()?,
            low: end("low").and_then(Value::as_f64),
            high: end("high").and_then(Value::as_f64),
            n: end("n").and_then(Value::as_u64),
            headline: HEADLINES.contains(&name.as_str()) || (!read && FOUND.contains(&name.as_str())),
        })
    };
    report.metrics.iter().filter_map(row).collect()
}

/// Make the page of the complete run in `folder` from its files; where it was written.
///
/// # Errors
/// [`Error::BadFile`] when there is no complete run, or its files are damaged.
pub fn remake(folder: &Path) -> Result<std::path::PathBuf> {
    let report = folder.join(REPORT);
    if !report.is_file() {
        let hint = "give the --out folder of a complete run; finish a stopped one with --resume";
        return Err(Error::bad_file(folder, "there is no complete run here", hint));
    }
    let report = Report::open(&report)?;
    let mut page = Page::default();
    read_predictions(&folder.join(PREDICTIONS), |prediction| {
        page.push(&prediction);
        Ok(())
    })?;
    let text = page.render(&report)?;
    let path = folder.join(PAGE);
    let part = folder.join(format!("{PAGE}.partial"));
    std::fs::write(&part, text).map_err(Error::file("write", &part))?;
    std::fs::rename(&part, &path).map_err(Error::file("rename", &part))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use html5gum::{Token, Tokenizer};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::eval::dataset::Dataset;
    use crate::eval::provenance::{Provenance, Setup};

    fn prediction(id: &str, text: &str, right: bool, confidence: f64) -> Prediction {
        let ranked = |key: &str, from: Option<usize>| json!({"key": key, "title": text, "score": 1.5, "from": from});
        serde_json::from_value(json!({
            "id": id, "question": text, "prediction": text, "score": -0.5, "answers": [text], "confidence": confidence,
            "abstained": false, "exact_match": f64::from(u8::from(right)), "f1": 0.5, "metrics": {"recall@1": 1.0},
            "supported": true, "passages": ["a", "b"], "passage_scores": [2.0, 1.0], "reader_passages": ["a"],
            "gold": ["b"], "ranks": {"depth": 2, "gold": 1, "gold_first_stage": 2, "answer": null},
            "features": {"score": -0.5, "lead": null, "log_likelihood": -1.0, "rank_score": 2.0, "rank_lead": 1.0,
                "supported": 1.0, "p_abstain": null},
            "trace": {
                "retrieved": [ranked("a", None), ranked("b", None)],
                "reranked": [ranked("b", Some(2)), ranked("a", Some(1))],
                "packed": [{"key": "b", "title": text, "window": 1, "tokens": 9, "excerpt": text}],
                "left_out": [{"key": "a", "tokens": 7, "reason": text}],
                "evidence": [{"key": "b", "title": text, "before": text, "text": text, "after": text}]
            },
            "latency_ms": {"retrieve": 1.0, "rerank": 2.0, "pack": 0.5, "read": 6.5, "total": 10.0},
            "prompt_tokens": 40, "answer_tokens": 3
        }))
        .unwrap()
    }

    fn page_of(predictions: &[Prediction]) -> String {
        page_with(r#"{"mode": "hybrid", "rerank": null}"#, predictions)
    }

    fn page_with(settings: &str, predictions: &[Prediction]) -> String {
        let mut page = Page::default();
        predictions.iter().for_each(|p| page.push(p));
        let dataset = Dataset { questions: Vec::new(), path: "data/q.jsonl".into(), sha256: "00".into(), skipped: 0 };
        let setup = Setup { settings: serde_json::from_str(settings).unwrap(), ..Setup::default() };
        let report = Report::new(page.columns(), Provenance::new(setup, &dataset, predictions.len()));
        page.render(&report).unwrap()
    }

    /// Every start tag with its attributes.
    fn tags(page: &str) -> Vec<(String, Vec<String>)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Tokenizer::new(page)
            .flatten()
            .filter_map(|token| match token {
                Token::StartTag(tag) => Some((text(&tag.name), tag.attributes.keys().map(|k| text(k)).collect())),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn a_page_asks_for_nothing_and_runs_nothing() {
        let page = page_of(&[prediction("q1", "ice", false, 0.9), prediction("q2", "rock", true, 0.4)]);
        for word in ["<script", "url(", "@import", "<link", "<img", "<iframe", " src=", " href="] {
            assert!(!page.contains(word), "{word}");
        }
        assert_eq!(page.matches("<svg").count(), 4, "recall, risk, reliability, latency");
        for said in ["gold passage on rank 1 (first stage: 2)", "&#9650;1", "&#9660;1", "--rerank", "q.jsonl"] {
            assert!(page.contains(said), "{said}");
        }
    }

    #[test]
    fn what_was_given_was_not_retrieved() {
        let page = |gold: bool| {
            let settings = json!({"mode": "hybrid", "rerank": "reranker", "gold": gold}).to_string();
            page_with(&settings, &[prediction("q1", "ice", false, 0.9)])
        };
        let (found, given) = (page(false), page(true));
        assert!(found.contains(", hybrid retrieval, re-ranked by reranker") && !found.contains("gold passages given"));
        assert!(given.contains("gold passages given"));
        assert!(!given.contains("hybrid retrieval") && !given.contains("re-ranked by"), "nobody looked for them");
    }

    #[test]
    fn the_sure_and_wrong_come_first_and_no_more_than_are_shown() {
        let mut all: Vec<Prediction> = (0..60)
            .map(|i| prediction(&format!("q{i}"), &format!("question {i}"), i % 2 == 0, f64::from(i * 7 % 60) / 60.0))
            .collect();
        let mut page = Page::default();
        all.iter().for_each(|p| page.push(p));
        all.sort_by(worse);
        assert_eq!(page.worst, all[..WORST]);
        assert!(page.worst[0].exact_match == Some(0.0) && page.worst[0].confidence > page.worst[1].confidence);
    }

    #[test]
    fn a_run_of_before_has_a_page() {
        let mut old = prediction("q1", "ice", false, 0.9);
        (old.confidence, old.abstained, old.ranks, old.features, old.trace) = (None, None, None, None, None);
        old.gold = Vec::new();
        let page = page_of(&[old.clone()]);
        assert_eq!(page.matches("<svg").count(), 1, "latency");
        assert!(page.contains("<code>a</code>"), "what was retrieved");
        (old.prediction, old.exact_match, old.f1, old.answers) = (None, None, None, None);
        assert!(page_of(&[old]).contains("Hardest questions"));
    }

    #[test]
    fn reach_counts_upwards() {
        let mut reach = Reach::default();
        for rank in [Some(1), Some(3), None, Some(3)] {
            reach.push(rank, 4);
        }
        assert_eq!(reach.curve(), [(1.0, 0.25), (2.0, 0.25), (3.0, 0.75), (4.0, 0.75)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn no_text_becomes_markup(text in "[<>&\"'/a-z{}%# \\-]{0,30}|\\PC{0,20}") {
            let plain = page_of(&[prediction("q1", "ice", false, 0.9)]);
            let hostile = page_of(&[prediction("q1", &text, false, 0.9)]);
            // An empty title shows the key instead, in the same tags.
            prop_assert_eq!(tags(&plain), tags(&hostile));
        }
    }
}
