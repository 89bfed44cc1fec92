//! One run: put every question to a pipeline and write down what comes back.
//!
//! The pipeline is a closure from [`Question`] to [`Outcome`], so the same run measures a retriever alone, the
//! whole pipeline, or a reader that is given the gold passages.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::eval::dataset::{Dataset, Question};
use crate::eval::out_dir::{Existing, Opened, OutDir};
use crate::eval::prediction::{Outcome, Prediction};
use crate::eval::provenance::{Provenance, Setup};
use crate::eval::report::Report;
use crate::progress::{Progress, check_interrupt};

/// Ranks at which passages are counted: DPR's.
pub const DEFAULT_KS: [usize; 4] = [1, 5, 20, 100];

/// How a run is made.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Ranks at which passages are counted. Leave out those beyond the depth that the pipeline retrieves: a
    /// recall@100 over 20 passages would be a wrong label.
    pub ks: Vec<usize>,
    /// Ask only the first so many questions.
    pub limit: Option<usize>,
    /// What to do about a run that is already in the folder.
    pub existing: Existing,
}

/// Ask the questions of `dataset` through `answer` and write the run into `out`.
///
/// An error of `answer` stops the run; what was answered before stays in the folder and [`Existing::Resume`]
/// goes on behind it. So does Ctrl-C, which is looked for between questions.
///
/// # Errors
/// Those of `answer` and of the folder ([`OutDir::open`]); [`Error::Interrupted`].
pub fn run(
    dataset: &Dataset,
    mut setup: Setup,
    out: &Path,
    options: &RunOptions,
    answer: &mut dyn FnMut(&Question) -> Result<Outcome>,
    progress: &dyn Progress,
) -> Result<Report> {
    let limit = options.limit.unwrap_or(usize::MAX).min(dataset.questions.len());
    let questions = dataset.questions.get(..limit).unwrap_or_default();
    if questions.is_empty() {
        return Err(Error::request("no questions are left to ask", "raise --limit"));
    }
    setup.settings.insert("k".into(), Value::from(options.ks.clone()));
    let provenance = Provenance::new(setup, dataset, questions.len());
    let mut out_dir = match OutDir::open(out, options.existing, &provenance, questions)? {
        Opened::Open(out_dir) => out_dir,
        Opened::Complete(report) => {
            progress.note("this run was complete already; nothing was asked");
            return Ok(*report);
        }
    };
    progress.start("answering", Some(questions.len() as u64), "questions");
    progress.advance(out_dir.done as u64);
    for question in questions.iter().skip(out_dir.done) {
        check_interrupt(|| format!("{} answers are kept in {}; go on with --resume", out_dir.done, out.display()))?;
        let outcome = answer(question).map_err(|e| in_question(e, &question.id))?;
        out_dir.append(&Prediction::score(question, outcome, &options.ks))?;
        progress.advance(1);
    }
    progress.finish();
    out_dir.finish(provenance)
}

/// An error that is about the question names it.
fn in_question(error: Error, id: &str) -> Error {
    match error {
        Error::Request { problem, hint } => Error::Request { problem: format!("question {id}: {problem}"), hint },
        other => other,
    }
}
