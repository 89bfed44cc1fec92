//! The whole pipeline on one screen: retrieve, re-rank, pack, read.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tracing::{Span, info_span};

use crate::answer::{Answer, Latency, assemble, features, judge};
use crate::confidence::Calibration;
use crate::encode::Encoder;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::index::Index;
use crate::index::allowed::Allowed;
use crate::index::passages::Passages;
use crate::index::recall::Beam;
use crate::near_duplicate::Runs;
use crate::pack::{self, Budget, Dealing, LeftOut, Packing};
use crate::read::choose::Extent;
use crate::read::lm::OnText;
use crate::read::reader::{Reader, Reading};
use crate::read::reading_prompt::PromptName;
use crate::read::recursion::Recursion;
use crate::rerank::{CrossEncoder, PairCuts, Patience};
use crate::retrieve::{Parts, Retriever};
use crate::types::{Hit, Passage, PassageId, sort_hits};

/// How many passages each stage hands to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Depths {
    /// Passages that the first stage finds.
    pub retrieve: usize,
    /// Of these, how many the cross-encoder reads, when there is one.
    pub rerank: usize,
    /// When the cross-encoder stops before that; without it never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<Patience>,
    /// Of these, how many are offered to the reader's windows.
    pub read: usize,
    /// Tokens of passages in all windows together; without it as many as their passages have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Passages to a window; 0 = one window for all.
    pub per_window: usize,
    /// Offer passages that say the same twice ([`crate::near_duplicate`]), too.
    #[serde(default)]
    pub duplicates: bool,
}

impl Default for Depths {
    fn default() -> Self {
        Self { retrieve: 100, rerank: 50, patience: None, read: 5, tokens: None, per_window: 1, duplicates: false }
    }
}

/// A question-answering engine over the passages of one place.
pub struct Pipeline {
    passages: Arc<dyn Passages>,
    retriever: Box<dyn Retriever>,
    reranker: Option<CrossEncoder>,
    prior_weight: f32,
    reader: Option<Reader>,
    depths: Depths,
    calibration: Calibration,
    mismatches: HashMap<String, String>,
    min_confidence: f32,
    recursion: Recursion,
    sure: f32,
    only: Option<Arc<Allowed>>,
    encoder: Option<SharedEncoder>,
}

/// Confidence from which [`Recursion::Auto`] leaves an answer as it is.
pub const SURE: f32 = 0.5;

/// The encoder of a dense first stage, for who wants its vectors.
pub type SharedEncoder = Arc<Mutex<Encoder>>;

/// What the first stages found for a question.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// What the parts of the first stage found.
    pub parts: Parts,
    /// The first stage's list, best first.
    pub retrieved: Vec<Hit>,
    /// The cross-encoder's list, best first; empty without one.
    pub reranked: Vec<Hit>,
    /// What the first stage and the cross-encoder could not read of the question and the passages.
    pub cuts: PairCuts,
    /// Milliseconds so far.
    pub latency_ms: Latency,
}

impl Found {
    /// The list that counts: the cross-encoder's followed by what it did not read, or the first stage's. The scores of two stages
    /// have two scales, so what was not read has the score of the last that was.
    pub fn ranking(&self) -> Vec<Hit> {
        let unread = &self.retrieved[self.reranked.len().min(self.retrieved.len())..];
        let least = self.reranked.last().map(|hit| hit.score);
        let unread = unread.iter().map(|hit| Hit { score: least.unwrap_or(hit.score), ..*hit });
        self.reranked.iter().copied().chain(unread).collect()
    }
}

impl Pipeline {
    /// Put the stages together. Without a reader only [`Self::find`] works.
    pub fn new(
        passages: Arc<dyn Passages>,
        retriever: Box<dyn Retriever>,
        reranker: Option<CrossEncoder>,
        reader: Option<Reader>,
        depths: Depths,
    ) -> Self {
        let calibration = Calibration::uninformed();
        Self {
            passages,
            retriever,
            reranker,
            prior_weight: 0.0,
            reader,
            depths,
            calibration,
            mismatches: HashMap::new(),
            min_confidence: 0.0,
            recursion: Recursion::None,
            sure: SURE,
            only: None,
            encoder: None,
        }
    }

    /// Add the first stage's score, weighted, to the cross-encoder's.
    pub fn with_prior(self, weight: f32) -> Self {
        Self { prior_weight: weight, ..self }
    }

    /// Judge answers by `calibration`, and withhold those of a confidence below `least`.
    pub fn with_confidence(self, calibration: Calibration, least: f32) -> Self {
        Self { calibration, min_confidence: least, ..self }
    }

    /// Say in answers why their confidence is a guess: by the name of the prompt that was read behind, what is not as it was where
    /// the calibration was fitted. How often a question is read is for each question to say, and no part of it.
    pub fn with_mismatches(self, mismatches: HashMap<String, String>) -> Self {
        Self { mismatches, ..self }
    }

    /// Leave answers of this confidence as they are when recursion is [`Recursion::Auto`].
    pub fn with_sure(self, sure: f32) -> Self {
        Self { sure, ..self }
    }

    /// Read questions twice in this way from now on.
    ///
    /// # Errors
    /// As [`Reader::check_recursion`]; [`Error::Request`] without a reader.
    pub fn recur(&mut self, how: Recursion) -> Result<()> {
        if how != Recursion::None {
            self.reader.as_ref().ok_or_else(no_reader)?.check_recursion(how)?;
        }
        self.recursion = how;
        Ok(())
    }

    /// Read behind the reader's prompt of this name from now on; behind its usual one without a name.
    ///
    /// # Errors
    /// As [`Reader::read_behind`]; [`Error::Request`] for a name without a reader.
    pub fn read_behind(&mut self, prompt: Option<&str>) -> Result<()> {
        match (&mut self.reader, prompt) {
            (Some(reader), prompt) => reader.read_behind(prompt),
            (None, None) => Ok(()),
            (None, Some(_)) => Err(no_reader()),
        }
    }

    /// Lend the first stage's encoder.
    pub fn with_encoder(self, encoder: Option<SharedEncoder>) -> Self {
        Self { encoder, ..self }
    }

    /// The first stage's encoder.
    ///
    /// # Errors
    /// [`Error::Request`] when the first stage has none.
    pub fn encoder(&self) -> Result<MutexGuard<'_, Encoder>> {
        self.lent_encoder().ok_or_else(|| {
            Error::request("there is no encoder: passages are found by words alone", "ask an index that has vectors")
        })
    }

    fn lent_encoder(&self) -> Option<MutexGuard<'_, Encoder>> {
        self.encoder.as_ref().map(|encoder| encoder.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The re-ranker's own scores of texts for a question, in their order, and what it could not read of them.
    ///
    /// # Errors
    /// [`Error::Request`] without a re-ranker; what it says.
    pub fn score(&mut self, question: &str, texts: &[String]) -> Result<(Vec<f32>, PairCuts)> {
        let reranker = self.reranker.as_mut().ok_or_else(|| {
            Error::request("there is no re-ranker: passages stay in the first stage's order", "leave --rerank none out")
        })?;
        Ok((reranker.score(question, texts)?, reranker.cuts()))
    }

    /// Withhold answers of a confidence below `least` from now on.
    pub fn withhold_below(&mut self, least: f32) {
        self.min_confidence = least;
    }

    /// Find passages that meet this filter only, from now on; gives whether there are some, as far as that is known without
    /// asking a cluster.
    ///
    /// # Errors
    /// As [`Index::allowed`].
    pub fn restrict(&mut self, filter: Option<&Filter>) -> Result<bool> {
        let Ok(index) = self.passages.files() else {
            return self.retriever.restrict(filter).map(|()| true);
        };
        self.only = filter.map(|filter| index.allowed(filter)).transpose()?;
        Ok(self.only.as_ref().map_or(index.len(), |only| only.len()) > 0)
    }

    /// The passages that [`Self::restrict`] left; all without it.
    pub fn only(&self) -> Option<&Arc<Allowed>> {
        self.only.as_ref()
    }

    /// Hand so many passages from stage to stage from now on.
    pub fn set_depths(&mut self, depths: Depths) {
        self.depths = depths;
    }

    /// Answer from this state of the index from now on, if that can be done with the models at hand; gives whether it is.
    /// A filter that was set is set no longer.
    ///
    /// # Errors
    /// What the first stage says.
    pub fn take_up(&mut self, index: &Arc<Index>) -> Result<bool> {
        let taken = self.retriever.take_up(index)?;
        if taken {
            self.passages = Arc::<Index>::clone(index);
            self.only = None;
        }
        Ok(taken)
    }

    /// The passages it answers from.
    pub fn passages(&self) -> &dyn Passages {
        self.passages.as_ref()
    }

    /// The index it answers from.
    ///
    /// # Errors
    /// [`Error::Request`] when its passages lie in a cluster.
    pub fn index(&self) -> Result<&Index> {
        self.passages.files()
    }

    /// The reader, if there is one.
    pub fn reader(&self) -> Option<&Reader> {
        self.reader.as_ref()
    }

    /// The reader, to let it work by itself.
    pub fn reader_mut(&mut self) -> Option<&mut Reader> {
        self.reader.as_mut()
    }

    /// Run every model once, the reader behind each of its prompts, whatever there is in the index.
    ///
    /// # Errors
    /// What the models say.
    pub fn prove(&mut self) -> Result<()> {
        const QUESTION: &str = "does it run";
        let passage = Passage { key: "proof".into(), text: "It runs.".into(), ..Passage::default() };
        // A first stage with an encoder needs it for any question; the others may get nothing to read.
        self.find(QUESTION)?;
        if let Some(reranker) = &mut self.reranker {
            reranker.score(QUESTION, &[passage.titled_text()])?;
        }
        let Some(reader) = &mut self.reader else { return Ok(()) };
        let offered = [(Hit { passage: PassageId(0), score: 0.0 }, passage)];
        for PromptName { name, .. } in reader.prompts() {
            reader.read_behind(Some(&name))?;
            let budget = Budget { window: reader.budget(QUESTION)?, total: None };
            let packing =
                pack::pack(&offered, Dealing::Together, budget, &mut |title, text| reader.block(title, text))?;
            reader.read(QUESTION, &packing.windows, Extent::All, &mut |_, _| {})?;
        }
        reader.read_behind(None)
    }

    /// The beam that a wanted recall of dense search came to; none if none was wanted.
    pub fn wanted_beam(&self) -> Option<Beam> {
        self.retriever.wanted_beam()
    }

    /// The models at work: role, name and device.
    pub fn models(&self) -> Vec<(&'static str, String, String)> {
        let encoder =
            self.lent_encoder().map(|encoder| ("encoder", encoder.name().to_owned(), encoder.device().to_string()));
        let reranker = self.reranker.as_ref().map(|r| ("reranker", r.name().to_owned(), r.device().to_string()));
        let reader = self.reader.as_ref().map(|reader| {
            let (name, place) = reader.model();
            ("reader", name, place)
        });
        encoder.into_iter().chain(reranker).chain(reader).collect()
    }

    /// Answer a question.
    pub fn answer(&mut self, question: &str, on_text: OnText) -> Result<Answer> {
        let found = self.find(question)?;
        self.answer_from(question, found, on_text)
    }

    /// Answer a question from what was found for it, or was given in its place.
    pub fn answer_from(&mut self, question: &str, found: Found, on_text: OnText) -> Result<Answer> {
        let ((packing, repeated), pack) = timed(info_span!("pack"), || self.pack(question, &found))?;
        let (reading, read) = timed(info_span!("read"), || self.read(question, &found, &packing, on_text))?;
        let total = found.latency_ms.total + pack + read;
        let latency_ms = Latency { pack, read, total, ..found.latency_ms };
        let mut answer = assemble(question, found, packing, reading, latency_ms);
        if let Some(trace) = &mut answer.trace {
            trace.left_out.extend(repeated);
        }
        answer.prompt = self.reader.as_ref().map(|reader| reader.prompt().clone());
        answer.uncalibrated = self.mismatch();
        Ok(judge(answer, &self.calibration, self.min_confidence))
    }

    /// Why the confidence of an answer is a guess now, if it is one.
    fn mismatch(&self) -> Option<String> {
        let of_prompt = self.reader.as_ref().and_then(|reader| self.mismatches.get(&reader.prompt().name));
        let reason = of_prompt.cloned().or_else(|| self.calibration.mismatch_of_recursion(self.recursion));
        reason.map(|reason| format!("the calibration {reason}"))
    }

    /// Retrieve and re-rank.
    pub fn find(&mut self, question: &str) -> Result<Found> {
        self.find_at_least(question, 0)
    }

    /// The same, with at least `count` passages where there are as many.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn find_at_least(&mut self, question: &str, count: usize) -> Result<Found> {
        let before = self.encoder_cuts();
        let (retrieved, retrieve) = timed(info_span!("retrieve"), || {
            self.retriever.retrieve(question, self.depths.retrieve.max(count), self.only.as_ref())
        })?;
        let encoder_cuts = self.encoder_cuts() - before;
        let (reranked, rerank) = timed(info_span!("rerank"), || self.rerank(question, &retrieved))?;
        let parts = self.retriever.take_parts();
        let cuts = PairCuts {
            encoder_question_tokens: encoder_cuts as usize,
            question_words: self.words_left_out(question, &parts)?,
            ..self.reranker.as_ref().map(CrossEncoder::cuts).unwrap_or_default()
        };
        let latency_ms = Latency { retrieve, rerank, total: retrieve + rerank, ..Latency::default() };
        Ok(Found { parts, retrieved, reranked, cuts, latency_ms })
    }

    /// Tokens that the first stage's encoder left out so far.
    fn encoder_cuts(&self) -> u64 {
        self.lent_encoder().map_or(0, |encoder| encoder.truncation().tokens)
    }

    /// Words of the question that an index here did not search for, if words took part; a cluster does not say.
    fn words_left_out(&self, question: &str, parts: &Parts) -> Result<usize> {
        match self.passages.files() {
            Ok(index) if !parts.words.is_empty() => index.lexical().left_out(question),
            _ => Ok(0),
        }
    }

    fn rerank(&mut self, question: &str, hits: &[Hit]) -> Result<Vec<Hit>> {
        let Some(reranker) = &mut self.reranker else { return Ok(Vec::new()) };
        let (passages, candidates) = (&self.passages, &hits[..hits.len().min(self.depths.rerank)]);
        let texts = |range: Range<usize>| {
            let block = candidates.get(range).unwrap_or_default();
            block.iter().map(|hit| Ok(passages.passage(hit.passage)?.titled_text())).collect()
        };
        let prior: Vec<f32> = candidates.iter().map(|hit| self.prior_weight * hit.score).collect();
        let scores = reranker.score_until(question, &prior, self.depths.patience, texts)?;
        let mut hits: Vec<Hit> =
            candidates.iter().zip(scores).map(|(hit, score)| Hit { passage: hit.passage, score }).collect();
        sort_hits(&mut hits);
        Ok(hits)
    }

    /// The reader's windows for what was found, and the passages passed over for saying what a better one says.
    ///
    /// # Errors
    /// [`Error::Request`] without a reader, or when the question does not fit the window.
    pub fn pack(&self, question: &str, found: &Found) -> Result<(Packing, Vec<LeftOut>)> {
        let reader = self.reader.as_ref().ok_or_else(no_reader)?;
        let budget = Budget { window: reader.budget(question)?, total: self.depths.tokens };
        let Offered { passages, repeated } = self.to_read(&found.ranking(), reader, budget.window)?;
        let dealing = match self.depths.per_window {
            0 => Dealing::Together,
            count => Dealing::Apart(count),
        };
        let packing = pack::pack(&passages, dealing, budget, &mut |title, text| reader.block(title, text))?;
        Ok((packing, repeated))
    }

    /// The passages of what was found that the reader is offered, best first.
    pub fn read_of(&self, found: &Found) -> Result<Vec<PassageId>> {
        let reader = self.reader.as_ref().ok_or_else(no_reader)?;
        Ok(self
            .to_read(&found.ranking(), reader, reader.budget("")?)?
            .passages
            .into_iter()
            .map(|(hit, _)| hit.passage)
            .collect())
    }

    /// The best passages of a ranking, as many as are read by windows of so many tokens, and those passed over for saying
    /// what a better one says.
    fn to_read(&self, ranking: &[Hit], reader: &Reader, window: usize) -> Result<Offered> {
        let (mut taken, mut repeated) = (Vec::<(Hit, Passage)>::new(), Vec::new());
        let mut runs = Vec::<Runs>::new();
        // One more than fits is offered, so that packing says where the budget ended; what is beyond is not compared.
        let mut room = self.depths.tokens.unwrap_or(usize::MAX);
        for &hit in ranking {
            if taken.len() >= self.depths.read || room == 0 {
                break;
            }
            let passage = self.passages.passage(hit.passage)?;
            if !self.depths.duplicates {
                let own = Runs::of(&passage.text);
                if let Some(at) = runs.iter().position(|better| own.repeats(better)) {
                    let better = taken.get(at).map_or("", |(_, better)| better.key.as_str());
                    let tokens = reader.block(&passage.title, &passage.text)?.len();
                    repeated.push(LeftOut { key: passage.key, tokens, reason: format!("it says what {better} says") });
                    continue;
                }
                runs.push(own);
            }
            if self.depths.tokens.is_some() {
                // What is longer than a window is cut to less than one, and may leave room for one more yet.
                let tokens = reader.block(&passage.title, &passage.text)?.len();
                room = room.saturating_sub(if tokens > window { 1 } else { tokens });
            }
            taken.push((hit, passage));
        }
        Ok(Offered { passages: taken, repeated })
    }

    fn read(&mut self, question: &str, found: &Found, packing: &Packing, on_text: OnText) -> Result<Reading> {
        let reader = self.reader.as_mut().ok_or_else(no_reader)?;
        // A second pass asks about what every window said.
        let extent = if self.recursion == Recursion::None { reader.settings().extent } else { Extent::All };
        let first = reader.read(question, &packing.windows, extent, on_text)?;
        let again = match self.recursion {
            Recursion::None => false,
            Recursion::Textual | Recursion::Neural => true,
            Recursion::Auto => self.calibration.confidence(&features(found, &first)) < self.sure,
        };
        if again { reader.read_again(question, &packing.windows, first, self.recursion) } else { Ok(first) }
    }
}

/// What the reader is offered.
struct Offered {
    /// Best first.
    passages: Vec<(Hit, Passage)>,
    /// Passed over for saying what a better passage says.
    repeated: Vec<LeftOut>,
}

/// The error of a pipeline that has no reader.
pub(crate) fn no_reader() -> Error {
    Error::request("there is no reader to answer with", "leave --reader none out, or use `nunatak search`")
}

/// Do a stage's work in its span, and say how many milliseconds it took.
fn timed<T>(stage: Span, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let begin = Instant::now();
    let result = stage.in_scope(work)?;
    Ok((result, millis(begin)))
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
