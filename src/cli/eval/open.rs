//! The pipeline that `ask` would use, as what a run measures.

use crate::cli::Globals;
use crate::cli::engine::{self, Engine};
use crate::cli::eval::{Bench, ReaderChoice, RunArgs};
use crate::error::{Error, Result};
use crate::eval::dataset::Question;
use crate::eval::prediction::{Outcome, Retrieved};
use crate::eval::provenance::{IndexIdentity, Setup};
use crate::eval::trace::QuestionTrace;
use crate::index::passages::Passages;
use crate::pipeline::Found;
use crate::progress::Progress;
use crate::retrieve::Mode;
use crate::runtime::session::runtime_version;
use crate::types::Hit;

/// The pipeline that `ask` would use, as a bench.
pub(super) fn open(args: &RunArgs, globals: &Globals, progress: &dyn Progress) -> Result<Bench> {
    let reads = args.reader == ReaderChoice::Lm;
    let reading = reads.then_some(&args.reading);
    let Engine { mut pipeline, mode, models, calibration } =
        engine::build(&args.retrieval, reading, args.depth, args.seed, globals, progress)?;
    let mut settings = args.settings()?;
    settings.insert("mode".into(), mode.name().into());
    if let Some(beam) = pipeline.wanted_beam() {
        settings.insert("ef".into(), beam.ef.into());
    }
    let identity = pipeline.passages().identity()?;
    let setup = Setup {
        settings,
        seed: args.seed,
        models: models.into_iter().map(|(role, _, fingerprint)| (role.to_owned(), fingerprint)).collect(),
        index: Some(IndexIdentity {
            path: identity.place,
            manifest_sha256: identity.checksum,
            passages: identity.passages,
        }),
        calibration,
        onnxruntime: if mode == Mode::Bm25 && !reads { None } else { Some(runtime_version(&globals.runtime())?) },
    };
    let gold = args.gold;
    let mut told = false;
    let answer = move |question: &Question| {
        let found =
            if gold { gold_passages(question, pipeline.passages())? } else { pipeline.find(&question.question)? };
        if let (false, Some(words)) = (told, found.cuts.words()) {
            // Said once, or it would be said for every other question of a corpus with long passages.
            tracing::warn!("question {}: {words}; further ones are not named", question.id);
            told = true;
        }
        let (answer, found) = if reads {
            let answer = pipeline.answer_from(&question.question, found, &mut |_, _| {})?;
            let trace = answer.trace.clone().unwrap_or_default();
            let latency_ms = answer.usage.latency_ms;
            let found = Found { retrieved: trace.retrieved, reranked: trace.reranked, latency_ms, ..Found::default() };
            (Some(answer), found)
        } else {
            (None, found)
        };
        let passages = pipeline.passages();
        let retrieved = found
            .ranking()
            .into_iter()
            .map(|hit| {
                let passage = passages.passage(hit.passage)?;
                Ok(Retrieved { key: passage.key, text: passage.text, score: hit.score })
            })
            .collect::<Result<_>>()?;
        let key = |hit: &Hit| Ok(passages.passage(hit.passage)?.key);
        let first_stage = (!found.reranked.is_empty())
            .then(|| found.retrieved.iter().map(key).collect::<Result<Vec<String>>>())
            .transpose()?;
        let trace = QuestionTrace::of(&found, answer.as_ref(), passages)?;
        let windows = answer.as_ref().and_then(|a| a.trace.as_ref()).map(|t| t.windows.concat());
        let reader_passages = windows.unwrap_or_default();
        let latency = found.latency_ms;
        let reranked = found.reranked.len();
        Ok(Outcome { answer, retrieved, first_stage, reranked, reader_passages, trace: Some(trace), latency })
    };
    Ok(Bench { setup, answer: Box::new(answer) })
}

/// The gold passages of a question as if they had been found: every piece of each gold document, in order.
fn gold_passages(question: &Question, passages: &dyn Passages) -> Result<Found> {
    if question.gold.is_none() {
        return Err(Error::request(
            "nobody says which its gold passages are",
            "leave --gold out, or give questions with `positive_ids`",
        ));
    }
    let mut found = Found::default();
    let relevant = question.gold.iter().flatten().filter(|(_, grade)| **grade > 0).map(|(document, _)| document);
    for document in relevant {
        found.retrieved.extend(passages.pieces_of(document)?.into_iter().map(|passage| Hit { passage, score: 1.0 }));
    }
    if found.retrieved.is_empty() {
        return Err(Error::request(
            "none of its gold passages is in the index",
            "leave --gold out, or name the index of this question set's corpus",
        ));
    }
    Ok(found)
}
