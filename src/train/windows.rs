//! Questions with answers as windows to train a reader on: what it will see, and what it should say.
//!
//! Questions about one passage share its window: a passage is several times as long as a question, and it is computed
//! once for all of them. A window holds the gold passage alone, the gold passage at a random place among passages that were found for the
//! question and do not hold its answer, or only such passages; then the right answer is nothing. Some gold passages
//! are cut down to the sentences around the answer: windows of all lengths teach, and short ones cost less.

use std::collections::{BTreeMap, BTreeSet};
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
use crate::read::template::{Template, tokens_behind, without_line_ends};
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

/// A window and what is asked about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Tokens of the passages.
    pub passages: Vec<u32>,
    /// The questions, which know nothing of each other.
    pub asked: Vec<Asked>,
}

/// A question about a window and what should be said to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Tokens of the question and of what asks for the answer.
    pub tail: Vec<u32>,
    /// Tokens of the answer and of the line end that closes it.
    pub target: Vec<u32>,
}

impl Asked {
    /// Tokens that go into the model: all but the last, which is only predicted.
    pub fn input(&self) -> Vec<u32> {
        [&self.tail, &self.target[..self.target.len().saturating_sub(1)]].concat()
    }
}

impl Sample {
    /// Tokens that go into the model.
    pub fn len(&self) -> usize {
        self.passages.len()
            + self.asked.iter().map(|a| (a.tail.len() + a.target.len()).saturating_sub(1)).sum::<usize>()
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
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

/// A passage with questions that it answers, one at least.
#[derive(Debug, Clone)]
struct Source {
    passage: PassageId,
    questions: Vec<Located>,
}

/// A question, and where its answer stands in the passage.
#[derive(Debug, Clone)]
struct Located {
    question: String,
    answers: Vec<String>,
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
/// Most questions to a window; a passage that has more gets several.
const MOST_QUESTIONS: usize = 6;

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
        for dataset in datasets {
            let mut of_passage = BTreeMap::<PassageId, Vec<Located>>::new();
            for question in &dataset.questions {
                if let Some((passage, located)) = locate(question, index, &mut intake)? {
                    of_passage.entry(passage).or_default().push(located);
                    intake.used += 1;
                }
            }
            sources.extend(of_passage.into_iter().flat_map(|(passage, questions)| {
                let windows = questions.len().div_ceil(MOST_QUESTIONS);
                let of = |questions: &[Located]| Source { passage, questions: questions.to_vec() };
                questions.chunks(questions.len().div_ceil(windows)).map(of).collect::<Vec<_>>()
            }));
        }
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

    /// Split off windows for measuring, with `count` questions or a few more, all of a passage on the same side.
    pub fn hold_out(mut self, count: usize) -> (Self, Self) {
        let mut passages: Vec<PassageId> = self.sources.iter().map(|s| s.passage).collect();
        passages.sort_unstable();
        passages.dedup();
        passages.shuffle(&mut ChaCha8Rng::seed_from_u64(self.settings.seed));
        let mut held = BTreeSet::new();
        let mut of_passage = BTreeMap::<PassageId, usize>::new();
        for source in &self.sources {
            *of_passage.entry(source.passage).or_default() += source.questions.len();
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
            let asked = source.questions.iter().take(1).map(|q| self.asked(q, "")).collect::<Result<_>>()?;
            return Ok(Sample { passages: block, asked });
        }
        let gold = self.index.passage(source.passage)?;
        let asked = |q: &Located| self.asked(q, gold.text.get(q.start..q.end).unwrap_or_default());
        let span = source.questions.first().map_or((0, 0), |q| (q.start, q.end));
        let whole = self.template.block(&gold.title, &gold.text, &self.tokenizer)?;
        let lone = source.questions.len() == 1;
        if (lone || whole.len() > tokens) && others.is_empty() {
            // What is cut down to one answer can be asked for that one alone.
            let cut = whole.len() > tokens || random.random::<f64>() < short;
            let block = if cut { self.short_block(&gold, span, random)? } else { None };
            let passages = match block.filter(|b| b.len() <= tokens) {
                Some(block) => block,
                None => self.fitting_block(&gold, Some(span), tokens, random)?,
            };
            return Ok(Sample { passages, asked: source.questions.iter().take(1).map(asked).collect::<Result<_>>()? });
        }
        let kept = if whole.len() > tokens { 1 } else { source.questions.len() };
        let asked = source.questions.iter().take(kept).map(asked).collect::<Result<_>>()?;
        if others.is_empty() {
            return Ok(Sample { passages: whole, asked });
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
        Ok(Sample { passages: blocks.concat(), asked })
    }

    fn asked(&self, source: &Located, answer: &str) -> Result<Asked> {
        let tail = self.template.tail(&source.question, &self.tokenizer)?;
        let lead = if self.template.lead { " " } else { "" };
        let mut target = if answer.is_empty() {
            Vec::new()
        } else {
            tokens_behind(&format!("{lead}{}", without_line_ends(answer)), &self.tokenizer)?
        };
        target.extend(tokens_behind("\n", &self.tokenizer)?);
        Ok(Asked { tail, target })
    }

    /// Passages that were found for the first question and do not hold its answer, best first.
    fn others(&self, source: &Source) -> Result<Vec<Passage>> {
        let Some(first) = source.questions.first() else { return Ok(Vec::new()) };
        let matcher = AnswerMatcher::new(&first.answers);
        let gold = self.index.passage(source.passage)?;
        let mut others = Vec::new();
        for hit in self.index.lexical().search(&first.question, SEARCH_DEPTH, None)? {
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
fn locate(question: &Question, index: &Index, intake: &mut Intake) -> Result<Option<(PassageId, Located)>> {
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
                    return Ok(Some((passage, Located { question, answers, start: span.start, end: span.end })));
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
