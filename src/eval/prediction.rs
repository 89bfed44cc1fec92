//! What a pipeline made of one question, scored: a line of `predictions.jsonl`.
//!
//! A line holds all that aggregation, comparison and run files need, so a stopped run is taken up from its
//! lines alone, and two runs are compared without the index they came from.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::answer::{Answer, Latency};
use crate::confidence::Features;
use crate::eval::calibration::brier;
use crate::eval::dataset::Question;
use crate::eval::has_answer::AnswerMatcher;
use crate::eval::normalise::exact_match_and_f1;
use crate::eval::ranking::{Judged, first_gold_passage, hit_at};
use crate::eval::selective::Scored;
use crate::eval::task_set::TaskExample;
use crate::eval::trace::QuestionTrace;
use crate::types::PackedPassage;

/// Rank at which the reciprocal rank and nDCG are cut, as BEIR and MS MARCO report them.
const CUT: usize = 10;

/// What a pipeline gives back for one question.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The reader's answer; `None` when nobody read.
    pub answer: Option<Answer>,
    /// The final ranking, best first: re-ranked if there is a re-ranker.
    pub retrieved: Vec<Retrieved>,
    /// Ids in the order of the first stage, if a re-ranker changed it.
    pub first_stage: Option<Vec<String>>,
    /// How many of the ranking a re-ranker read; 0 without one.
    pub reranked: usize,
    /// What the reader saw, in any order; empty when nobody read.
    pub reader_passages: Vec<PackedPassage>,
    /// What every stage did, for people.
    pub trace: Option<QuestionTrace>,
    /// Milliseconds by stage.
    pub latency: Latency,
}

/// A ranked passage.
#[derive(Debug, Clone)]
pub struct Retrieved {
    /// Its corpus id.
    pub key: String,
    /// Its text without the title, in which DPR looks for answers.
    pub text: String,
    /// Its score; comparable only within the list.
    pub score: f32,
}

/// A line of `predictions.jsonl`. Metrics that a question does not have (no gold known, nobody read) are absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Question id.
    pub id: String,
    /// The question.
    pub question: String,
    /// The answer given; null when nobody read.
    pub prediction: Option<String>,
    /// The reader's score of it.
    pub score: Option<f64>,
    /// Acceptable answers; null when unknown.
    pub answers: Option<Vec<String>>,
    /// Probability that the answer, or the one that was withheld, is right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// Whether no answer was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abstained: Option<bool>,
    /// The answer that was withheld, its confidence being too low.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Candidate>,
    /// 1 or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact_match: Option<f64>,
    /// Token F1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f1: Option<f64>,
    /// All other metrics of this question, by the names of `report.json`.
    pub metrics: Map<String, Value>,
    /// Whether the answer is a stretch of a passage the reader saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supported: Option<bool>,
    /// Passage ids in ranked order.
    pub passages: Vec<String>,
    /// Their scores.
    pub passage_scores: Vec<f32>,
    /// Of those that a re-ranker read, their ranks before, from 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks_before: Vec<usize>,
    /// Ids of the passages the reader saw.
    pub reader_passages: Vec<String>,
    /// Ids of all gold passages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gold: Vec<String>,
    /// Where the first hits stand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<Ranks>,
    /// What the confidence was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Features>,
    /// What every stage did, bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<QuestionTrace>,
    /// Milliseconds by stage.
    pub latency_ms: Stages,
    /// Tokens put into the language model.
    pub prompt_tokens: usize,
    /// Tokens it generated.
    pub answer_tokens: usize,
    /// Of the prompt's tokens those of passages whose states were kept from before.
    #[serde(default)]
    pub cached_tokens: usize,
}

/// An answer that was not given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The answer.
    pub answer: String,
    /// Its exact match, 1 or 0.
    pub exact_match: Option<f64>,
    /// Its token F1.
    pub f1: Option<f64>,
}

/// Ranks, counted from 1; absent when nothing was found, or the question set does not say what to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranks {
    /// Passages in the ranking.
    pub depth: usize,
    /// First piece of a gold document.
    pub gold: Option<usize>,
    /// The same before re-ranking; absent without a re-ranker too.
    pub gold_first_stage: Option<usize>,
    /// First passage with an acceptable answer in it.
    pub answer: Option<usize>,
}

/// Milliseconds by stage, as [`Latency`], which has no need to be read back.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Stages {
    /// First stage.
    pub retrieve: f64,
    /// Cross-encoder.
    pub rerank: f64,
    /// Packing.
    pub pack: f64,
    /// Language model.
    pub read: f64,
    /// All of it.
    pub total: f64,
}

impl From<Latency> for Stages {
    fn from(Latency { retrieve, rerank, pack, read, total }: Latency) -> Self {
        Self { retrieve, rerank, pack, read, total }
    }
}

impl Prediction {
    /// What was said to an example of a task, with its score: no passages, and metrics of the task's own.
    pub fn of_task(
        task: &str,
        example: &TaskExample,
        (said, score): (String, f64),
        metrics: Map<String, Value>,
        ms: f64,
    ) -> Self {
        Self {
            id: format!("{task}:{}", example.id),
            question: example.question.clone(),
            prediction: Some(said),
            score: Some(score),
            answers: Some(example.answers.clone()),
            confidence: None,
            abstained: None,
            withheld: None,
            exact_match: None,
            f1: None,
            metrics,
            supported: None,
            passages: Vec::new(),
            passage_scores: Vec::new(),
            ranks_before: Vec::new(),
            reader_passages: Vec::new(),
            gold: Vec::new(),
            ranks: None,
            features: None,
            trace: None,
            latency_ms: Stages { read: ms, total: ms, ..Stages::default() },
            prompt_tokens: 0,
            answer_tokens: 0,
            cached_tokens: 0,
        }
    }

    /// Score an outcome; passages are counted at the ranks `ks`.
    pub fn score(question: &Question, outcome: Outcome, ks: &[usize]) -> Self {
        let Outcome { answer, retrieved, first_stage, reranked, reader_passages, trace, latency } = outcome;
        let before = |key: &String| first_stage.iter().flatten().position(|k| k == key).map_or(0, |i| i + 1);
        let ranks_before = retrieved.iter().take(reranked).map(|p| before(&p.key)).collect();
        let mut metrics = Map::new();
        let mut ranks = Ranks { depth: retrieved.len(), gold: None, gold_first_stage: None, answer: None };
        if let Some(answers) = question.answers.as_ref().filter(|answers| !answers.is_empty()) {
            let matcher = AnswerMatcher::new(answers);
            let first = retrieved.iter().position(|p| matcher.matches(&p.text)).map(|i| i + 1);
            ranks.answer = first;
            for &k in ks {
                metrics.insert(format!("has_answer@{k}"), hit_at(first, k).into());
            }
            if answer.is_some() {
                let seen = reader_passages.iter().any(|p| matcher.matches(&p.text));
                metrics.insert("has_answer_at_reader".into(), f64::from(u8::from(seen)).into());
            }
        }
        if let Some(gold) = &question.gold {
            let keys = || retrieved.iter().map(|p| p.key.as_str());
            let first = first_gold_passage(keys(), gold);
            let judged = Judged::new(keys(), gold);
            ranks.gold = first;
            ranks.gold_first_stage =
                first_stage.as_ref().and_then(|keys| first_gold_passage(keys.iter().map(String::as_str), gold));
            for &k in ks {
                metrics.insert(format!("recall@{k}"), hit_at(first, k).into());
            }
            metrics.insert(format!("mrr@{CUT}"), judged.reciprocal_rank(CUT).into());
            metrics.insert(format!("ndcg@{CUT}"), judged.ndcg(CUT).into());
            metrics.insert("map".into(), judged.average_precision().into());
            for &k in ks {
                metrics.insert(format!("document_recall@{k}"), judged.recall(k).into());
            }
            if answer.is_some() {
                let seen = first_gold_passage(reader_passages.iter().map(|p| p.key.as_str()), gold);
                metrics.insert("recall_at_reader".into(), f64::from(u8::from(seen.is_some())).into());
            }
        }
        let matching = |answer: &str| question.answers.as_ref().map(|answers| exact_match_and_f1(answer, answers));
        let matched = answer.as_ref().and_then(|a| matching(&a.answer));
        let stages = answer.as_ref().and_then(|a| a.trace.as_ref());
        let withheld = stages.and_then(|t| t.withheld.as_ref()).map(|withheld| {
            let (exact_match, f1) = matching(&withheld.answer).unzip();
            Candidate { answer: withheld.answer.clone(), exact_match, f1 }
        });
        let gold = question.gold.iter().flatten().filter(|(_, grade)| **grade > 0).map(|(key, _)| key.clone());
        Self {
            id: question.id.clone(),
            question: question.question.clone(),
            prediction: answer.as_ref().map(|a| a.answer.clone()),
            // A score that is not a number is no number in JSON either.
            score: answer.as_ref().map(|a| f64::from(a.score)).filter(|score| score.is_finite()),
            answers: question.answers.clone(),
            confidence: answer.as_ref().map(|a| f64::from(a.confidence)).filter(|c| c.is_finite()),
            abstained: answer.as_ref().map(|a| a.abstained),
            withheld,
            exact_match: matched.map(|(exact, _)| exact),
            f1: matched.map(|(_, f1)| f1),
            metrics,
            supported: answer.as_ref().map(|a| a.supported),
            passage_scores: retrieved.iter().map(|p| finite(p.score)).collect(),
            ranks_before,
            passages: retrieved.into_iter().map(|p| p.key).collect(),
            reader_passages: reader_passages.into_iter().map(|p| p.key).collect(),
            gold: gold.collect(),
            ranks: Some(ranks),
            features: stages.map(|t| t.features),
            trace,
            latency_ms: latency.into(),
            prompt_tokens: answer.as_ref().map_or(0, |a| a.usage.prompt_tokens),
            answer_tokens: answer.as_ref().map_or(0, |a| a.usage.answer_tokens),
            cached_tokens: answer.as_ref().map_or(0, |a| a.usage.cached_tokens),
        }
    }

    /// The answer that would have been given without a threshold, as it is judged against others; `None` when
    /// nobody read, when there is no confidence (a run of before), or when the right answer is not known.
    pub fn scored(&self) -> Option<Scored> {
        let given = (self.exact_match, self.f1);
        let (exact_match, f1) = self.withheld.as_ref().map_or(given, |w| (w.exact_match, w.f1));
        let text = self.withheld.as_ref().map_or(self.prediction.as_deref(), |w| Some(w.answer.as_str()))?;
        Some(Scored {
            confidence: self.confidence?,
            exact_match: exact_match?,
            f1: f1?,
            answerable: self.answerable()?,
            empty: text.is_empty(),
        })
    }

    /// Whether the question has an answer; `None` when nobody said.
    fn answerable(&self) -> Option<bool> {
        self.answers.as_ref().map(|answers| !answers.is_empty())
    }

    /// All metrics of this question, exact match and F1 first.
    pub fn values(&self) -> impl Iterator<Item = (&str, f64)> {
        let answerable = self.answerable();
        let when = |wanted: bool, value: Option<f64>| value.filter(|_| answerable == Some(wanted));
        let answered = self.abstained.map(|abstained| f64::from(u8::from(!abstained)));
        let matched = [
            ("exact_match", self.exact_match),
            ("f1", self.f1),
            ("exact_match_has_ans", when(true, self.exact_match)),
            ("f1_has_ans", when(true, self.f1)),
            ("exact_match_no_ans", when(false, self.exact_match)),
            ("coverage", answered),
            ("exact_match_of_answered", self.exact_match.filter(|_| self.abstained == Some(false))),
            ("brier", self.scored().map(|s| brier(s.confidence, s.exact_match))),
        ];
        let matched = matched.into_iter().filter_map(|(name, value)| Some((name, value?)));
        matched.chain(self.metrics.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?))))
    }
}

/// The score as JSON can carry it.
fn finite(score: f32) -> f32 {
    if score.is_nan() { f32::MIN } else { score.clamp(f32::MIN, f32::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Usage, Withheld};
    use crate::eval::ranking::Gold;
    use crate::types::PassageId;

    fn outcome(answer: Option<&str>) -> Outcome {
        let passage = |key: &str, text: &str, score| Retrieved { key: key.into(), text: text.into(), score };
        let answer = answer.map(|text| Answer {
            question: "q".into(),
            answer: text.into(),
            confidence: 0.25,
            abstained: text.is_empty(),
            score: -0.5,
            supported: true,
            evidence: Vec::new(),
            prompt: None,
            uncalibrated: None,
            usage: Usage { prompt_tokens: 40, answer_tokens: 3, ..Usage::default() },
            trace: None,
        });
        let packed = PackedPassage {
            passage: PassageId(4),
            key: "b#1".into(),
            title: String::new(),
            text: "Nansen went".into(),
            score: 2.0,
            tokens: 9,
            page: None,
        };
        Outcome {
            reader_passages: if answer.is_some() { vec![packed] } else { Vec::new() },
            answer,
            first_stage: None,
            reranked: 0,
            trace: None,
            retrieved: vec![
                passage("a#2", "nothing", 3.0),
                passage("b#1", "Nansen went in 1893.", 2.0),
                passage("a#1", "none", f32::NAN),
                passage("c", "1893", 1.0),
            ],
            latency: Latency { total: 12.5, ..Latency::default() },
        }
    }

    fn ask(answers: Option<&[&str]>, gold: &[&str]) -> Question {
        let gold: Gold = gold.iter().map(|id| ((*id).to_owned(), 1)).collect();
        Question {
            id: "q1".into(),
            question: "when?".into(),
            answers: answers.map(|list| list.iter().map(|a| (*a).to_owned()).collect()),
            gold: if gold.is_empty() { None } else { Some(gold) },
        }
    }

    fn value(prediction: &Prediction, name: &str) -> Option<f64> {
        prediction.values().find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    #[test]
    fn everything_known_is_scored() {
        let scored = Prediction::score(&ask(Some(&["1893"]), &["b", "c"]), outcome(Some("In 1893")), &[1, 2, 3]);
        assert_eq!((scored.exact_match, value(&scored, "f1")), (Some(0.0), Some(2.0 / 3.0)));
        assert_eq!((value(&scored, "has_answer@1"), value(&scored, "has_answer@2")), (Some(0.0), Some(1.0)));
        assert_eq!(value(&scored, "has_answer_at_reader"), Some(0.0), "the packed text was cut before the year");
        assert_eq!(value(&scored, "recall_at_reader"), Some(1.0));
        assert_eq!((value(&scored, "recall@1"), value(&scored, "recall@2")), (Some(0.0), Some(1.0)));
        // Documents in order: a, b, c.
        assert_eq!((value(&scored, "mrr@10"), value(&scored, "document_recall@2")), (Some(0.5), Some(0.5)));
        assert_eq!(value(&scored, "map"), Some((1.0 / 2.0 + 2.0 / 3.0) / 2.0));
        let line = serde_json::to_string(&scored).unwrap();
        assert_eq!(serde_json::from_str::<Prediction>(&line).unwrap(), scored);
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let unread = Prediction::score(&ask(Some(&["1893"]), &[]), outcome(None), &[1]);
        let names: Vec<&str> = unread.values().map(|(name, _)| name).collect();
        assert_eq!(names, ["has_answer@1"]);
        let unanswerable = Prediction::score(&ask(Some(&[]), &["b"]), outcome(Some("1893")), &[1]);
        assert_eq!(value(&unanswerable, "exact_match"), Some(0.0));
        assert_eq!(value(&unanswerable, "has_answer@1"), None);
        let judged_only = Prediction::score(&ask(None, &["b"]), outcome(Some("1893")), &[1]);
        assert_eq!(value(&judged_only, "exact_match"), None);
        assert_eq!(judged_only.scored(), None);
    }

    #[test]
    fn a_withheld_answer_is_right_where_there_is_none_and_is_still_judged() {
        let withhold = |answers: Option<&[&str]>| {
            let mut outcome = outcome(Some(""));
            let withheld =
                Withheld { answer: "1893".into(), supported: true, evidence: Vec::new(), min_confidence: 0.5 };
            let trace = crate::answer::Trace { withheld: Some(withheld), ..Default::default() };
            if let Some(answer) = &mut outcome.answer {
                answer.trace = Some(trace);
            }
            Prediction::score(&ask(answers, &[]), outcome, &[1])
        };
        let none = withhold(Some(&[]));
        assert_eq!(
            (none.exact_match, value(&none, "exact_match_no_ans"), value(&none, "coverage")),
            (Some(1.0), Some(1.0), Some(0.0))
        );
        let scored = none.scored().unwrap();
        assert_eq!((scored.exact_match, scored.answerable, scored.empty), (0.0, false, false));
        let some = withhold(Some(&["1893"]));
        assert_eq!((some.exact_match, value(&some, "exact_match_has_ans")), (Some(0.0), Some(0.0)));
        assert_eq!(value(&some, "exact_match_of_answered"), None);
        // (0.25 - 1)^2
        assert_eq!((some.scored().unwrap().f1, value(&some, "brier")), (1.0, Some(0.5625)));
        let line = serde_json::to_string(&some).unwrap();
        assert_eq!(serde_json::from_str::<Prediction>(&line).unwrap(), some);
    }

    #[test]
    fn a_line_of_the_first_version_is_read() {
        let line = r#"{"id":"q","question":"when?","prediction":"1893","score":-0.5,"answers":["1893"],"exact_match":1.0,
            "f1":1.0,"metrics":{"recall@1":1.0},"supported":true,"passages":["a"],"passage_scores":[1.5],
            "reader_passages":["a"],"latency_ms":{"retrieve":1.0,"rerank":0.0,"pack":0.1,"read":9.0,"total":10.1},
            "prompt_tokens":40,"answer_tokens":3}"#;
        let old: Prediction = serde_json::from_str(line).unwrap();
        assert_eq!((old.scored(), old.ranks, old.trace.clone()), (None, None, None));
        assert_eq!(value(&old, "exact_match_has_ans"), Some(1.0));
    }
}
