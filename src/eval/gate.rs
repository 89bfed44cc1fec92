//! Which questions are worth a second, dearer pass: those that the first pass is least sure of.
//!
//! Two runs over the same questions, a first and a second one, say what every rule "ask again when the first answer's score is
//! below t" would have given and cost. The threshold is to be chosen on training questions and then held against others: the
//! best of many thresholds looks better on the questions it was chosen by than it is.

use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::eval::bootstrap::{Paired, paired};
use crate::eval::out_dir::{predictions_of, read_predictions};
use crate::eval::pairing::pair;
use crate::eval::table::aligned;
use crate::plot::{Chart, Series, Stroke, lines};

/// Metrics that may decide, the preferred first.
const METRICS: [&str; 2] = ["exact_match", "task_score"];
/// Shares of questions that are asked again.
const STEPS: usize = 20;

/// How sure a first answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sureness {
    /// Its confidence, which `--recursion auto --sure` goes by.
    Confidence,
    /// Its log-likelihood a token, for runs without.
    Score,
}

/// What a rule gives and costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rule {
    /// Questions whose first answer is less sure than this are asked again; below none at the lowest score.
    pub threshold: f64,
    /// Their share.
    pub share: f64,
    /// Mean metric.
    pub value: f64,
    /// Mean milliseconds a question.
    pub ms: f64,
}

/// All rules over a pair of runs.
#[derive(Debug, Clone, Serialize)]
pub struct Gate {
    /// The metric.
    pub metric: &'static str,
    /// What thresholds are of.
    pub by: Sureness,
    /// Questions.
    pub n: usize,
    /// Rules by share: nobody is asked again at first, everybody at last.
    pub rules: Vec<Rule>,
    /// Of them the best; of equal ones the cheapest.
    pub best: Rule,
    /// The rule that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub given: Option<Given>,
}

/// A rule that came from elsewhere, tested here.
#[derive(Debug, Clone, Serialize)]
pub struct Given {
    /// What it gives.
    pub rule: Rule,
    /// Against never asking again.
    pub against_first: Paired,
    /// Against always asking again.
    pub against_second: Paired,
}

/// A question in both runs.
#[derive(Debug, Clone, Copy)]
struct Question {
    /// How sure the first answer is.
    score: f64,
    first: f64,
    second: f64,
    /// Milliseconds of each pass.
    ms: [f64; 2],
}

/// Try every rule over two runs (folders, or `predictions.jsonl` files), and `threshold` if one is given.
///
/// # Errors
/// [`Error::Request`] when the runs are not over the same questions, or have no metric in common.
pub fn gate(first: &Path, second: &Path, threshold: Option<f64>, seed: u64) -> Result<Gate> {
    let (a, b) = (read(first)?, read(second)?);
    let metric = METRICS.into_iter().find(|metric| [&a, &b].iter().all(|run| run.iter().all(|q| q.has(metric))));
    let metric = metric.ok_or_else(|| {
        Error::request("the runs have no metric in common", "give runs with answers: eval, or eval tasks")
    })?;
    let by = if a.iter().all(|line| line.confidence.is_some()) { Sureness::Confidence } else { Sureness::Score };
    let mut questions: Vec<Question> = pair((first, &a), (second, &b), |line| (&line.id, &line.question))?
        .into_iter()
        .map(|(line, other)| Question {
            score: line.confidence.filter(|_| by == Sureness::Confidence).unwrap_or(line.score),
            first: line.value(metric),
            second: other.value(metric),
            ms: [line.ms, other.ms],
        })
        .collect();
    questions.sort_by(|a, b| a.score.total_cmp(&b.score));
    rules(&questions, (metric, by), threshold, seed)
}

fn rules(
    questions: &[Question],
    (metric, by): (&'static str, Sureness),
    threshold: Option<f64>,
    seed: u64,
) -> Result<Gate> {
    let n = questions.len();
    let none = || Error::request("the runs are empty", "give runs with answers: eval, or eval tasks");
    let rule = |again: usize| {
        let threshold = match (questions.get(again), questions.last()) {
            (Some(next), _) => next.score,
            // Above all: everybody is asked again.
            (None, last) => last.map_or(0.0, |q| q.score.next_up()),
        };
        let value = |(i, q): (usize, &Question)| if i < again { q.second } else { q.first };
        let cost = |(i, q): (usize, &Question)| q.ms[0] + if i < again { q.ms[1] } else { 0.0 };
        let mean =
            |of: &dyn Fn((usize, &Question)) -> f64| questions.iter().enumerate().map(of).sum::<f64>() / n as f64;
        Rule { threshold, share: again as f64 / n as f64, value: mean(&value), ms: mean(&cost) }
    };
    // Equal scores are on one side of every threshold.
    let below = |again: usize| questions.get(again).map_or(n, |at| questions.partition_point(|q| q.score < at.score));
    let mut counts: Vec<usize> = (0..=STEPS).map(|step| below((step * n).div_ceil(STEPS))).collect();
    counts.dedup();
    let rules: Vec<Rule> = counts.into_iter().map(rule).collect();
    let best = rules.iter().copied().reduce(|best, next| if next.value > best.value { next } else { best });
    let given = threshold.map(|threshold| -> Result<Given> {
        let again = questions.partition_point(|q| q.score < threshold);
        let with = |i: usize, q: &Question| if i < again { q.second } else { q.first };
        let pairs = |of: fn(&Question) -> f64| -> Vec<(f64, f64)> {
            questions.iter().enumerate().map(|(i, q)| (of(q), with(i, q))).collect()
        };
        Ok(Given {
            rule: Rule { threshold, ..rule(again) },
            against_first: paired(&pairs(|q| q.first), seed).ok_or_else(none)?,
            against_second: paired(&pairs(|q| q.second), seed).ok_or_else(none)?,
        })
    });
    Ok(Gate { metric, by, n, best: best.filter(|_| n > 0).ok_or_else(none)?, rules, given: given.transpose()? })
}

/// One question of a run.
struct Line {
    id: String,
    question: String,
    score: f64,
    confidence: Option<f64>,
    ms: f64,
    values: Vec<(String, f64)>,
}

impl Line {
    fn has(&self, metric: &str) -> bool {
        self.values.iter().any(|(name, _)| name == metric)
    }

    fn value(&self, metric: &str) -> f64 {
        self.values.iter().find(|(name, _)| name == metric).map_or(0.0, |(_, value)| *value)
    }
}

fn read(run: &Path) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    read_predictions(&predictions_of(run)?, |prediction| {
        let values = prediction.values().map(|(name, value)| (name.to_owned(), value)).collect();
        // No answer is the least sure one.
        let score = prediction.score.unwrap_or(f64::NEG_INFINITY);
        lines.push(Line {
            score,
            confidence: prediction.confidence,
            ms: prediction.latency_ms.total,
            values,
            id: prediction.id,
            question: prediction.question,
        });
        Ok(())
    })?;
    Ok(lines)
}

impl Gate {
    /// The rules for people.
    pub fn table(&self) -> String {
        let head = ["asked again", "below", self.metric, "ms a question"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        let cells = |rule: &Rule| {
            vec![
                format!("{:.0}%", 100.0 * rule.share),
                format!("{:.3}", rule.threshold),
                format!("{:.3}", rule.value),
                format!("{:.0}", rule.ms),
            ]
        };
        rows.extend(self.rules.iter().map(cells));
        let mut text = aligned(&rows);
        let Rule { threshold, share, value, .. } = self.best;
        text.push_str(&format!("\nbest: below {threshold:.3}, {:.0}% asked again, {value:.3}\n", 100.0 * share));
        text.push_str(match self.by {
            Sureness::Confidence => {
                "by the confidence of the first answer: `--recursion auto --sure T` asks again below T\n"
            }
            Sureness::Score => "by the log-likelihood a token of the first answer, as not all have a confidence\n",
        });
        if let Some(Given { rule, against_first, against_second }) = &self.given {
            let Rule { threshold, share, value, ms } = rule;
            text.push_str(&format!(
                "below {threshold:.3}: {:.0}% asked again, {value:.3}, {ms:.0} ms; against the first pass {:+.3} (p {:.4}), \
                 against always asking again {:+.3} (p {:.4})\n",
                100.0 * share,
                against_first.difference,
                against_first.p,
                against_second.difference,
                against_second.p,
            ));
        }
        text
    }

    /// The metric against the cost, as a picture.
    pub fn curve(&self) -> String {
        let points = self.rules.iter().map(|rule| (rule.ms, rule.value)).collect();
        lines(&Chart {
            title: "A second pass for those that the first is least sure of".into(),
            x_label: "milliseconds a question".into(),
            y_label: self.metric.into(),
            series: vec![Series::new("asked again: 0% to 100%", points).drawn(Stroke::Dotted)],
            ..Chart::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(score: f64, first: f64, second: f64) -> Question {
        Question { score, first, second, ms: [10.0, 30.0] }
    }

    #[test]
    fn the_least_sure_are_asked_again() {
        // The two least sure gain, the surest would lose.
        let questions =
            [question(-4.0, 0.0, 1.0), question(-3.0, 0.0, 1.0), question(-2.0, 1.0, 1.0), question(-1.0, 1.0, 0.0)];
        let gate = rules(&questions, ("exact_match", Sureness::Score), Some(-2.5), 0).unwrap();
        assert_eq!(gate.rules.len(), 5);
        assert_eq!(gate.best, Rule { threshold: -2.0, share: 0.5, value: 1.0, ms: 25.0 });
        let last = gate.rules.last().unwrap();
        assert_eq!((last.share, last.value, last.ms), (1.0, 0.75, 40.0));
        assert!(last.threshold > -1.0);
        let given = gate.given.as_ref().unwrap();
        assert_eq!((given.rule.share, given.rule.value), (0.5, 1.0));
        assert_eq!((given.against_first.difference, given.against_second.difference), (0.5, 0.25));
        assert!(gate.table().contains("best: below -2.000, 50% asked again, 1.000"));
        // No threshold parts equal scores.
        let equal =
            [question(-1.0, 0.0, 1.0), question(-1.0, 0.0, 1.0), question(-1.0, 0.0, 1.0), question(0.0, 1.0, 0.0)];
        let gate = rules(&equal, ("exact_match", Sureness::Score), None, 0).unwrap();
        assert_eq!(gate.rules.iter().map(|rule| rule.share).collect::<Vec<_>>(), [0.0, 0.75, 1.0]);
        assert!(rules(&[], ("exact_match", Sureness::Score), None, 0).is_err());
    }
}
