//! Questions with answers as windows to train a reader on: what it will see, and what it should say.
//!
//! A window holds the gold passage alone, the gold passage at a random place among passages that were found for the
//! question and do not hold its answer, or only such passages; then the right answer is nothing. Some gold passages
//! are cut down to the sentences around the answer: windows of all lengths teach, and short ones cost less.

use std::sync::{Arc, OnceLock};

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use unicode_segmentation::UnicodeSegmentation;

use crate::error::{Error, Result};
use crate::eval::dataset::{Dataset, Question};
use crate::eval::has_answer::AnswerMatcher;
use crate::index::Index;
use crate::read::ground;
use crate::read::template::Template;
use crate::runtime::tokenizer::TextTokenizer;
use crate::types::{Passage, PassageId};

/// What windows are made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowSettings {
    /// Most tokens of passages in a window.
    pub tokens: usize,
    /// Share of windows with further passages beside the gold one.
    pub several: f64,
    /// Share of windows without the answer.
    pub absent: f64,
    /// Share of the windows with one gold passage in which it is cut down to a few sentences.
    pub short: f64,
    /// Decides every draw.
    pub seed: u64,
}

impl Default for WindowSettings {
    fn default() -> Self {
        Self { tokens: 512, several: 0.2, absent: 0.15, short: 0.4, seed: 0 }
    }
}

/// A window and what should be said to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Tokens of the passages, the question, and what asks for the answer.
    pub input: Vec<u32>,
    /// Tokens of the answer and of the line end that closes it.
    pub target: Vec<u32>,
}

/// What became of the questions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Intake {
    /// Questions that are used.
    pub used: usize,
    /// Questions without answers or gold passages.
    pub unlabelled: usize,
    /// Questions whose gold passages the index does not have.
    pub not_in_index: usize,
    /// Questions whose answers do not stand in their gold passages.
    pub not_in_passage: usize,
}

/// Where a question's answer stands.
#[derive(Debug, Clone)]
struct Source {
    question: String,
    answers: Vec<String>,
    passage: PassageId,
    start: usize,
    end: usize,
}

/// Windows of a question set, each made when it is first needed.
#[derive(Debug)]
pub struct Windows {
    index: Arc<Index>,
    tokenizer: Arc<TextTokenizer>,
    template: Arc<Template>,
    settings: WindowSettings,
    sources: Vec<Source>,
    made: Vec<OnceLock<Sample>>,
}

/// Passages looked through for ones without the answer.
const SEARCH_DEPTH: usize = 20;
/// Most passages beside the gold one.
const MOST_OTHERS: usize = 3;

impl Windows {
    /// Windows over the questions of `datasets`, and what could not be used. A set that is given twice counts twice.
    pub fn new(
        datasets: &[Dataset],
        index: &Arc<Index>,
        tokenizer: &Arc<TextTokenizer>,
        template: &Arc<Template>,
        settings: &WindowSettings,
    ) -> Result<(Self, Intake)> {
        let mut intake = Intake::default();
        let mut sources = Vec::new();
        for question in datasets.iter().flat_map(|d| &d.questions) {
            if let Some(source) = locate(question, index, &mut intake)? {
                sources.push(source);
            }
        }
        intake.used = sources.len();
        let made = sources.iter().map(|_| OnceLock::new()).collect();
        let (index, tokenizer, template) = (index.clone(), tokenizer.clone(), template.clone());
        Ok((Self { index, tokenizer, template, settings: settings.clone(), sources, made }, intake))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Split off windows for measuring: `count` of them or a few more, all questions of a passage on the same side.
    pub fn hold_out(mut self, count: usize) -> (Self, Self) {
        let mut passages: Vec<PassageId> = self.sources.iter().map(|s| s.passage).collect();
        passages.sort_unstable();
        passages.dedup();
        passages.shuffle(&mut ChaCha8Rng::seed_from_u64(self.settings.seed));
        let mut held = std::collections::BTreeSet::new();
        let mut of_passage = std::collections::BTreeMap::<PassageId, usize>::new();
        for source in &self.sources {
            *of_passage.entry(source.passage).or_default() += 1;
        }
        let mut total = 0;
        for passage in passages {
            if total >= count {
                break;
            }
            total += of_passage.get(&passage).copied().unwrap_or(0);
            held.insert(passage);
        }
        let (out, kept): (Vec<Source>, Vec<Source>) =
            std::mem::take(&mut self.sources).into_iter().partition(|s| held.contains(&s.passage));
        let of = |sources: Vec<Source>| Self {
            index: self.index.clone(),
            tokenizer: self.tokenizer.clone(),
            template: self.template.clone(),
            settings: self.settings.clone(),
            made: sources.iter().map(|_| OnceLock::new()).collect(),
            sources,
        };
        (of(kept), of(out))
    }

    /// The i-th window.
    pub fn sample(&self, i: usize) -> Result<&Sample> {
        let (Some(slot), Some(source)) = (self.made.get(i), self.sources.get(i)) else {
            return Err(Error::Internal { doing: "making a window", message: format!("there is no example {i}") });
        };
        if let Some(sample) = slot.get() {
            return Ok(sample);
        }
        let mut random = ChaCha8Rng::seed_from_u64(self.settings.seed);
        random.set_stream(i as u64 + 1);
        let sample = self.make(source, &mut random)?;
        Ok(slot.get_or_init(|| sample))
    }

    fn make(&self, source: &Source, random: &mut ChaCha8Rng) -> Result<Sample> {
        let WindowSettings { tokens, several, absent, short, .. } = self.settings;
        let draw: f64 = random.random();
        let others = if draw < several + absent { self.others(source)? } else { Vec::new() };
        if draw < absent
            && let Some(other) = others.choose(random)
        {
            let block = self.fitting_block(other, None, tokens, random)?;
            return self.sample_of(vec![block], source, "");
        }
        let gold = self.index.passage(source.passage)?;
        let span = (source.start, source.end);
        let answer = gold.text.get(span.0..span.1).unwrap_or_default().to_owned();
        if others.is_empty() {
            let cut = random.random::<f64>() < short;
            let block = if cut { self.short_block(&gold, span, random)? } else { None };
            let block = match block.filter(|b| b.len() <= tokens) {
                Some(block) => block,
                None => self.fitting_block(&gold, Some(span), tokens, random)?,
            };
            return self.sample_of(vec![block], source, &answer);
        }
        let mut blocks = vec![self.fitting_block(&gold, Some(span), tokens, random)?];
        let wanted = random.random_range(1..=MOST_OTHERS);
        for other in others.sample(random, wanted) {
            let block = self.template.block(&other.title, &other.text, &self.tokenizer)?;
            if blocks.iter().map(Vec::len).sum::<usize>() + block.len() <= tokens {
                blocks.push(block);
            }
        }
        blocks.shuffle(random);
        self.sample_of(blocks, source, &answer)
    }

    fn sample_of(&self, blocks: Vec<Vec<u32>>, source: &Source, answer: &str) -> Result<Sample> {
        let mut input = blocks.concat();
        input.extend(self.template.tail(&source.question, &self.tokenizer)?);
        let lead = if self.template.lead { " " } else { "" };
        let mut target = if answer.is_empty() {
            Vec::new()
        } else {
            // Within an answer a line end would be the end of it.
            let answer = answer.replace(['\n', '\r'], " ");
            self.tokenizer.encode(&format!("{lead}{answer}"), false)?
        };
        target.extend(self.tokenizer.encode("\n", false)?);
        Ok(Sample { input, target })
    }

    /// Passages that were found for the question and do not hold its answer, best first.
    fn others(&self, source: &Source) -> Result<Vec<Passage>> {
        let matcher = AnswerMatcher::new(&source.answers);
        let gold = self.index.passage(source.passage)?;
        let mut others = Vec::new();
        for hit in self.index.lexical().search(&source.question, SEARCH_DEPTH)? {
            let passage = self.index.passage(hit.passage)?;
            if passage.document() != gold.document() && !matcher.matches(&passage.titled_text()) {
                others.push(passage);
            }
        }
        Ok(others)
    }

    /// A passage as a block of at most `tokens` tokens: whole, or the sentences around `span` that fit.
    fn fitting_block(
        &self,
        passage: &Passage,
        span: Option<(usize, usize)>,
        tokens: usize,
        random: &mut ChaCha8Rng,
    ) -> Result<Vec<u32>> {
        let whole = self.template.block(&passage.title, &passage.text, &self.tokenizer)?;
        if whole.len() <= tokens {
            return Ok(whole);
        }
        if let Some(span) = span
            && let Some(short) = self.short_block(passage, span, random)?.filter(|b| b.len() <= tokens)
        {
            return Ok(short);
        }
        // One sentence is longer than a window: its end is lost, and an answer in it with it, which is what
        // packing would do to it too.
        let mut cut = whole;
        cut.truncate(tokens);
        Ok(cut)
    }

    /// One to three sentences of a passage, among them those that hold `span`.
    fn short_block(
        &self,
        passage: &Passage,
        (start, end): (usize, usize),
        random: &mut ChaCha8Rng,
    ) -> Result<Option<Vec<u32>>> {
        let bounds: Vec<(usize, usize)> =
            passage.text.split_sentence_bound_indices().map(|(at, s)| (at, at + s.len())).collect();
        let Some(first) = bounds.iter().rposition(|(from, _)| *from <= start) else { return Ok(None) };
        let Some(last) = bounds.iter().position(|(_, to)| *to >= end) else { return Ok(None) };
        let first = first.saturating_sub(random.random_range(0..=1));
        let last = (last.max(first) + random.random_range(0..=1)).min(bounds.len() - 1);
        let text = passage.text.get(bounds[first].0..bounds[last].1).unwrap_or_default().trim();
        self.template.block(&passage.title, text, &self.tokenizer).map(Some)
    }
}

/// Find a question's answer in its gold passages.
fn locate(question: &Question, index: &Index, intake: &mut Intake) -> Result<Option<Source>> {
    let answers = question.answers.clone().unwrap_or_default();
    let gold: Vec<&String> =
        question.gold.iter().flatten().filter(|(_, grade)| **grade > 0).map(|(document, _)| document).collect();
    if answers.is_empty() || gold.is_empty() {
        intake.unlabelled += 1;
        return Ok(None);
    }
    let mut found = false;
    for document in gold {
        for passage in index.pieces_of(document)? {
            found = true;
            let text = index.passage(passage)?.text;
            for answer in &answers {
                if let Some(span) = ground::find(answer, &[&text]).first() {
                    let question = question.question.clone();
                    return Ok(Some(Source { question, answers, passage, start: span.start, end: span.end }));
                }
            }
        }
    }
    if found {
        intake.not_in_passage += 1;
    } else {
        intake.not_in_index += 1;
    }
    Ok(None)
}
