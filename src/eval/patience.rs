//! How early re-ranking may stop, from a run that read every candidate: `nunatak eval patience`.
//!
//! The run keeps each candidate's score and its rank before, so every rule of [`crate::rerank::patience`] can be tried on it
//! without a model. The run should be on questions that the re-ranker was not trained on.

use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::eval::out_dir::{PREDICTIONS, REPORT, read_predictions};
use crate::eval::prediction::Prediction;
use crate::eval::report::Report;
use crate::eval::table::aligned;
use crate::rerank::patience::{List, Outcome, calibrate, outcomes};
use crate::types::document_of;

/// Rules that the table for people shows, besides the chosen one.
const SHOWN: [usize; 8] = [4, 8, 12, 16, 24, 32, 40, 48];

/// What rules cost and save on a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rules {
    /// Questions with a gold passage among their candidates or not, but known.
    pub n: usize,
    /// What is promised: the most that a rule may lose.
    pub limit: f64,
    /// The least patient rule that keeps the promise; `None` when there are too few questions to promise it.
    pub chosen: Option<Outcome>,
    /// All rules, from the one that reads everything down.
    pub rules: Vec<Outcome>,
}

/// Try all rules on the run in the folder `run`: places that count are the best `keep`, and the chosen rule loses at most
/// `limit` of recall there, or of the reciprocal rank.
///
/// # Errors
/// [`Error::BadFile`] when the run has no re-ranker, stopped early itself, or knows no gold passages.
pub fn patience(run: &Path, keep: usize, limit: f64) -> Result<Rules> {
    let report = Report::open(&run.join(REPORT))?;
    let refuse = |problem: &str| {
        let hint = "take a run with a re-ranker and --rerank-patience 0, over questions with gold passages";
        Error::bad_file(run, problem, hint)
    };
    if report.provenance.settings.get("rerank_patience").and_then(|p| p.as_u64()).unwrap_or(0) != 0 {
        return Err(refuse("it stopped early itself, and does not show what it left unread"));
    }
    let mut lists: Vec<List> = Vec::new();
    read_predictions(&run.join(PREDICTIONS), |prediction| {
        lists.extend(list(&prediction));
        Ok(())
    })?;
    if lists.is_empty() {
        return Err(refuse("it does not say what a re-ranker made of which candidates, or which of them are gold"));
    }
    let rules = outcomes(&lists, keep);
    Ok(Rules { n: lists.len(), limit, chosen: calibrate(&rules, limit), rules })
}

/// The re-ranked candidates in their order before; `None` when they, or the gold passages, are not known.
fn list(prediction: &Prediction) -> Option<List> {
    if prediction.gold.is_empty() || prediction.ranks_before.is_empty() {
        return None;
    }
    let gold = |key: &str| prediction.gold.iter().any(|gold| gold == key || gold == document_of(key));
    let read = prediction.passages.iter().zip(&prediction.passage_scores).zip(&prediction.ranks_before);
    let mut read: Vec<(usize, (f32, bool))> =
        read.map(|((key, score), before)| (*before, (*score, gold(key)))).collect();
    read.sort_by_key(|(before, _)| *before);
    Some(read.into_iter().map(|(_, candidate)| candidate).collect())
}

impl Rules {
    /// For people.
    pub fn table(&self) -> String {
        let head = ["patience", "read", "recall", "MRR@10", "loses", "loses at most"].map(str::to_owned).to_vec();
        let chosen = self.chosen.map(|o| o.patience.candidates);
        let shown = |o: &&Outcome| {
            let candidates = o.patience.candidates;
            SHOWN.contains(&candidates) || Some(candidates) == chosen
        };
        let row = |o: &Outcome| {
            let percent = |x: f64| format!("{:.2}%", 100.0 * x);
            let mut row = vec![o.patience.candidates.to_string(), format!("{:.1}", o.read)];
            row.extend([percent(o.recall), format!("{:.4}", o.mrr10), percent(o.loss), percent(o.bound)]);
            row
        };
        let all = self.rules.first();
        let rows: Vec<Vec<String>> = std::iter::once(head)
            .chain(all.into_iter().chain(self.rules.iter().skip(1).filter(shown)).map(row))
            .collect();
        let keep = all.map_or(0, |o| o.patience.keep);
        let promise = format!("at most {:.2} points of recall at {keep} or of MRR@10", 100.0 * self.limit);
        let last = match &self.chosen {
            Some(o) => format!("to lose {promise}: --rerank-patience {}", o.patience.candidates),
            None => format!("{} questions are too few to promise {promise}", self.n),
        };
        format!("{} questions\n{}{last}\n", self.n, aligned(&rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_stand_in_their_order_before() {
        let prediction: Prediction = serde_json::from_value(serde_json::json!({
            "id": "q", "question": "q", "prediction": null, "score": null, "answers": null, "metrics": {},
            "passages": ["b#2", "a", "c", "unread"], "passage_scores": [3.0, 2.0, 1.0, 0.9], "ranks_before": [3, 1, 2],
            "reader_passages": [], "gold": ["b"],
            "latency_ms": {"retrieve": 1.0, "rerank": 2.0, "pack": 0.0, "read": 0.0, "total": 3.0},
            "prompt_tokens": 0, "answer_tokens": 0,
        }))
        .unwrap();
        assert_eq!(list(&prediction), Some(vec![(2.0, false), (1.0, false), (3.0, true)]));
        assert_eq!(list(&Prediction { gold: Vec::new(), ..prediction.clone() }), None);
        assert_eq!(list(&Prediction { ranks_before: Vec::new(), ..prediction }), None);
    }

    #[test]
    fn the_table_names_what_is_promised() {
        let lists: Vec<List> = (0..20).map(|_| (0..30).map(|i| (-(i as f32), i == 0)).collect()).collect();
        let rules = |limit| {
            let rules = outcomes(&lists, 5);
            Rules { n: lists.len(), limit, chosen: calibrate(&rules, limit), rules }
        };
        let easy = rules(0.1).table();
        assert!(easy.contains("at most 10.00 points of recall at 5 or of MRR@10: --rerank-patience 1\n"), "{easy}");
        assert!(easy.contains("\n30  ") && easy.contains("\n16  "), "{easy}");
        assert!(rules(0.01).table().contains("20 questions are too few to promise"));
    }
}
