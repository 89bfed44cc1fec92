//! `nunatak demo`: from nothing to cited answers over a small bundled corpus, with its score.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::cli::engine;
use crate::cli::index::DEFAULT_ENCODER;
use crate::cli::output::{self, BOLD, DIM, GOOD};
use crate::cli::pipeline_args::{DEFAULT_LM, ReadingArgs, RetrievalArgs};
use crate::cli::{Globals, ask};
use crate::corpus::{self, CorpusOptions};
use crate::encode::Encoder;
use crate::error::{Error, Result};
use crate::eval::normalise::exact_match_and_f1;
use crate::index::manifest::EncoderIdentity;
use crate::index::writer::{self, BuildOptions};
use crate::progress::{Progress, check_interrupt};
use crate::runtime::setup::{self, home};

/// Passages about ice, glaciers and polar exploration, written for this project.
const PASSAGES: &str = include_str!("passages.jsonl");
/// Questions that they answer.
const QUESTIONS: &str = include_str!("questions.jsonl");
/// How many of the questions are shown with their evidence.
const SHOWN: usize = 3;

/// Nothing but what every command takes.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {}

/// A bundled question.
#[derive(Debug, serde::Deserialize)]
struct Question {
    question: String,
    answers: Vec<String>,
}

/// Run `nunatak demo`.
pub fn run(_: &DemoArgs, globals: &Globals) -> Result<()> {
    let progress = globals.progress();
    let index = build_index(globals, progress.as_ref())?;
    let (retrieval, reading) = (RetrievalArgs::at(&index), ReadingArgs::with_lm(DEFAULT_LM));
    let mut engine = engine::build(&retrieval, Some(&reading), 100, 0, globals, progress.as_ref())?;
    let questions = questions()?;
    let say = |text: &str| if globals.json { Ok(()) } else { output::line(text) };
    say("")?;
    let mut scored = Vec::with_capacity(questions.len());
    let begin = Instant::now();
    for (i, question) in questions.iter().enumerate() {
        check_interrupt(|| format!("the demo's index is in {}", index.display()))?;
        if i == SHOWN {
            progress.start("answering the other questions", Some((questions.len() - SHOWN) as u64), "questions");
        }
        let mut answer = engine.pipeline.answer(&question.question, &mut |_, _| {})?;
        scored.push(exact_match_and_f1(&answer.answer, &question.answers));
        if globals.json {
            answer.trace = None;
            output::json(&answer)?;
        } else if i < SHOWN {
            output::line(format_args!("{BOLD}{}{BOLD:#}", question.question))?;
            show(&answer, &engine.pipeline)?;
        }
        if i >= SHOWN {
            progress.advance(1);
        }
    }
    progress.finish();
    let n = questions.len() as f64;
    let exact = scored.iter().map(|s| s.0).sum::<f64>() / n;
    let f1 = scored.iter().map(|s| s.1).sum::<f64>() / n;
    let each = begin.elapsed().as_secs_f64() / n;
    if globals.json {
        let summary: Value =
            json!({ "questions": questions.len(), "exact_match": exact, "f1": f1, "seconds_each": each });
        return output::json(&summary);
    }
    output::line(format_args!(
        "{GOOD}{:.0}% exact match, {:.0}% F1{GOOD:#} over all {} questions, {} each",
        exact * 100.0,
        f1 * 100.0,
        questions.len(),
        output::seconds(each)
    ))?;
    output::line(format_args!(
        "\nNow your own:\n  nunatak ask \"who first reached the south pole\" --index {0}\n  nunatak ask \"how thick is \
         the Antarctic ice sheet\" --index {0} --explain\n  nunatak index build --index my-index --corpus \
         my-documents/\n  {DIM}(nunatak is {1} here){DIM:#}",
        index.display(),
        std::env::current_exe().map_or_else(|_| "this program".to_owned(), |p| p.display().to_string()),
    ))
}

fn show(answer: &Answer, pipeline: &crate::pipeline::Pipeline) -> Result<()> {
    ask::print(answer, pipeline.passages(), false)?;
    output::line("")
}

/// Index the bundled passages in the cache folder; an index from before is replaced.
fn build_index(globals: &Globals, progress: &dyn Progress) -> Result<PathBuf> {
    let options = globals.runtime();
    let folder = home()?.join("demo");
    fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
    let corpus_file = folder.join("passages.jsonl");
    fs::write(&corpus_file, PASSAGES).map_err(Error::file("write", &corpus_file))?;
    let model = setup::model(DEFAULT_ENCODER, &options, progress)?;
    let mut encoder = Encoder::open(&model, &options)?;
    let index = folder.join("index");
    let build_options = BuildOptions {
        encoder: Some(EncoderIdentity {
            name: DEFAULT_ENCODER.to_owned(),
            fingerprint: encoder.fingerprint().to_owned(),
            dim: encoder.dim(),
        }),
        passage_words: CorpusOptions::default().passage_words,
        threads: globals.threads,
        overwrite: true,
        ..BuildOptions::default()
    };
    let report = writer::build(
        &index,
        &mut |sink| corpus::read(std::slice::from_ref(&corpus_file), &CorpusOptions::default(), sink).map(drop),
        Some(&mut |texts: &[String]| encoder.encode(texts)),
        &build_options,
        progress,
    )?;
    progress.note(&format!("{} passages about ice and polar exploration are indexed", report.passages));
    Ok(index)
}

fn questions() -> Result<Vec<Question>> {
    QUESTIONS
        .lines()
        .map(|line| serde_json::from_str(line).map_err(Error::internal("reading the bundled questions")))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    #[test]
    fn every_bundled_question_is_answered_by_a_bundled_passage() {
        let passages: Vec<Value> = PASSAGES.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let texts: HashMap<&str, &str> =
            passages.iter().map(|p| (p["id"].as_str().unwrap(), p["text"].as_str().unwrap())).collect();
        assert!(passages.len() >= 150);
        assert_eq!(texts.len(), passages.len(), "passage ids are unique");
        let questions: Vec<Value> = QUESTIONS.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert!(questions.len() >= 40);
        let words: HashSet<&str> = questions.iter().map(|q| q["question"].as_str().unwrap()).collect();
        assert_eq!(words.len(), questions.len(), "questions are unique");
        for question in &questions {
            let answer = question["answers"][0].as_str().unwrap();
            let gold = question["positive_ids"].as_array().unwrap();
            assert!(
                gold.iter().any(|id| texts[id.as_str().unwrap()].contains(answer)),
                "{answer} stands in a passage of {question}"
            );
        }
    }
}
