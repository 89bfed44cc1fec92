//! What a training run leaves beside its module: `run.json`, with everything needed to do it again, and `loss.svg`.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::plot::{Chart, Series, lines};
use crate::train::trainer::RunLog;

/// The content of `run.json`.
#[derive(Debug, Clone, Serialize)]
pub struct RunRecord {
    /// Version of nunatak.
    pub nunatak: &'static str,
    /// What was trained: `prompt`, `reranker`.
    pub module: &'static str,
    /// Every setting.
    pub settings: Value,
    /// Data: path, sha256 and what became of each question.
    pub data: Value,
    /// Trainable numbers.
    pub parameters: usize,
    /// Numbers of the frozen language model, and the sha256 over them before and after; absent where none takes part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
    /// What the evaluations measured.
    pub metric: &'static str,
    /// How it went.
    pub log: RunLog,
    /// Training examples a second, evaluations not counted.
    pub examples_per_second: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
}

impl RunRecord {
    /// What the measure was before and is now, for people; `what` was held out.
    pub fn summary(&self, what: &str) -> String {
        let first = self.log.evaluations.first().map_or(0.0, |(_, value)| *value);
        let (at, best) = self.log.best.unwrap_or_default();
        format!(
            "{} on held-out {what} {:.1}% -> {:.1}% (after {at} examples; {:.2} examples/s)",
            self.metric,
            100.0 * first,
            100.0 * best,
            self.examples_per_second,
        )
    }
}

/// The proof that a language model stayed as it was.
#[derive(Debug, Clone, Serialize)]
pub struct Frozen {
    /// Its name.
    pub model: String,
    /// Its numbers.
    pub parameters: usize,
    /// sha256 over them before the first step.
    pub before: String,
    /// The same after the last.
    pub after: String,
}

impl Frozen {
    /// Fail unless both hashes are the same.
    pub fn check(&self) -> Result<()> {
        if self.before == self.after {
            return Ok(());
        }
        Err(Error::Internal {
            doing: "checking that the language model stayed frozen",
            message: format!("its weights were {} and are {}", self.before, self.after),
        })
    }
}

/// Speed of a run in examples and tokens a second.
pub fn speed(log: &RunLog) -> (f64, f64) {
    let seconds = log.seconds.max(1e-9);
    (log.seen as f64 / seconds, log.tokens as f64 / seconds)
}

/// Write `run.json` and `loss.svg` into `folder`.
pub fn write(record: &RunRecord, folder: &Path) -> Result<()> {
    let path = folder.join("run.json");
    let text = serde_json::to_string_pretty(record).map_err(Error::internal("writing run.json"))?;
    std::fs::write(&path, text + "\n").map_err(Error::file("write", &path))?;
    let path = folder.join("loss.svg");
    std::fs::write(&path, curve(record)).map_err(Error::file("write", &path))
}

/// Steps of which a point of the loss curve is the mean: a single step's examples say little.
const SMOOTHED: usize = 10;

/// The loss and the measure over the examples seen, as a picture.
fn curve(record: &RunRecord) -> String {
    let loss = record.log.losses.chunks(SMOOTHED).filter_map(|steps| {
        let mean = steps.iter().map(|(_, loss)| loss).sum::<f64>() / steps.len() as f64;
        Some((steps.last()?.0 as f64, mean))
    });
    let measure = record.log.evaluations.iter().map(|(seen, value)| (*seen as f64, *value));
    lines(&Chart {
        title: format!("Training a {}", record.module),
        x_label: "examples seen".into(),
        y_label: "loss, and the measure on held-out examples".into(),
        series: vec![Series::new("loss", loss.collect()), Series::new(record.metric, measure.collect())],
        ..Chart::default()
    })
}
