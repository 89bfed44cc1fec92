//! Two runs over the same questions, side by side: what changed, by how much, and could it be chance?

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::Result;
use crate::eval::bootstrap::{Paired, PairedTest, paired, paired_of};
use crate::eval::out_dir::{predictions_of, read_predictions};
use crate::eval::pairing::pair;
use crate::eval::report::{CONFIDENCE, keep_telling, place};
use crate::eval::selective::Ordered;
use crate::eval::table::aligned;

/// A comparison of run B with run A.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Run A.
    pub a: PathBuf,
    /// Run B.
    pub b: PathBuf,
    /// Questions.
    pub n: usize,
    /// A row for each metric that both runs have.
    pub metrics: Vec<Row>,
}

/// One metric in both runs, over the questions that have it in both.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its name in `report.json`.
    pub metric: String,
    /// Mean of run A.
    pub a: f64,
    /// Mean of run B.
    pub b: f64,
    /// The difference and whether it could be chance.
    #[serde(flatten)]
    pub paired: Paired,
}

/// One question of a run.
struct Line {
    id: String,
    question: String,
    values: HashMap<String, f64>,
    /// Confidence and exact match, where both are known.
    scored: Option<(f64, f64)>,
}

/// Compare the runs `a` and `b` (folders, or `predictions.jsonl` files) question by question.
///
/// Each p-value is of one test; over many metrics some fall below 0.05 by chance, so name the metric that
/// decides before looking.
///
/// # Errors
/// [`crate::error::Error::Request`] when the runs are not over the same questions, naming the first that differs.
pub fn compare(a: &Path, b: &Path, seed: u64) -> Result<Comparison> {
    let lines_a = lines(a)?;
    let lines_b = lines(b)?;
    let pairs = pair((a, &lines_a), (b, &lines_b), |line| (&line.id, &line.question))?;
    let mut columns: HashMap<String, Vec<(f64, f64)>> = HashMap::new();
    for (line, other) in &pairs {
        for (name, value) in &line.values {
            if let Some(value_b) = other.values.get(name) {
                columns.entry(name.clone()).or_default().push((*value, *value_b));
            }
        }
    }
    let mut columns: Vec<(String, Vec<(f64, f64)>)> = columns.into_iter().collect();
    let row = |(name, column): (String, Vec<(f64, f64)>)| {
        let n = column.len() as f64;
        let a = column.iter().map(|(a, _)| a).sum::<f64>() / n;
        let b = column.iter().map(|(_, b)| b).sum::<f64>() / n;
        Some(Row { metric: name, a, b, paired: paired(&column, seed)? })
    };
    keep_telling(&mut columns, |answered| *answered == (1.0, 1.0));
    let mut metrics: Vec<Row> = columns.into_iter().filter_map(row).collect();
    metrics.extend(confidence_rows(&pairs, seed));
    metrics.sort_by(|a, b| (place(&a.metric), &a.metric).cmp(&(place(&b.metric), &b.metric)));
    Ok(Comparison { a: a.to_path_buf(), b: b.to_path_buf(), n: pairs.len(), metrics })
}

/// The measures of confidence that are no means over questions.
fn confidence_rows(pairs: &[(&Line, &Line)], seed: u64) -> Vec<Row> {
    let both: Vec<((f64, f64), (f64, f64))> = pairs.iter().filter_map(|(a, b)| a.scored.zip(b.scored)).collect();
    let (a, b) = (Ordered::new(both.iter().map(|p| p.0)), Ordered::new(both.iter().map(|p| p.1)));
    let row = |(name, statistic): (&str, fn(&Ordered) -> Option<f64>)| {
        let difference = |counts: &[u32]| Some(statistic(&b.resampled(counts))? - statistic(&a.resampled(counts))?);
        let paired = paired_of(both.len(), seed, difference)?;
        Some(Row { metric: name.to_owned(), a: statistic(&a)?, b: statistic(&b)?, paired })
    };
    CONFIDENCE.into_iter().filter_map(row).collect()
}

/// The lines of a run, given as its folder or as its predictions.
fn lines(run: &Path) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    read_predictions(&predictions_of(run)?, |prediction| {
        let values = prediction.values().map(|(name, value)| (name.to_owned(), value)).collect();
        let scored = prediction.scored().map(|s| (s.confidence, s.exact_match));
        lines.push(Line { values, scored, id: prediction.id, question: prediction.question });
        Ok(())
    })?;
    Ok(lines)
}

impl Comparison {
    /// The comparison for people.
    pub fn table(&self) -> String {
        let head = ["metric", "A", "B", "B - A", "95% interval", "p", "test", "questions"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for Row { metric, a, b, paired } in &self.metrics {
            let Paired { difference, interval, p, test, n } = paired;
            let p = if *p < 0.0001 { "<0.0001".to_owned() } else { format!("{p:.4}") };
            let test = match test {
                PairedTest::McNemar => "McNemar",
                PairedTest::Permutation => "permutation",
                PairedTest::Bootstrap => "bootstrap",
            };
            rows.push(vec![
                metric.clone(),
                format!("{a:.3}"),
                format!("{b:.3}"),
                format!("{difference:+.3}"),
                format!("{:+.3} .. {:+.3}", interval.low, interval.high),
                p,
                test.to_owned(),
                n.to_string(),
            ]);
        }
        format!("A  {}\nB  {}\n\n{}", self.a.display(), self.b.display(), aligned(&rows))
    }
}
