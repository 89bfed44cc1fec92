//! The lines of an index's requests, and the threads that serve them.
//!
//! ONNX Runtime's `run` needs a session for itself; so a thread that owns a pipeline (`hand.rs`) does one job after
//! another, and requests wait in line, long ones and short ones each in their own (`line.rs`): one that comes when its
//! line is full is turned away at once. One thread with all cores gives the shortest answer; several with fewer cores
//! each keep busy what one leaves idle (on two cores that is little).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use crossbeam_channel::{Sender, TrySendError};
use prometheus::Histogram;
use tokio::sync::{mpsc as stream, oneshot};
use tracing::{Span, info_span};

use crate::answer::{Answer, Latency};
use crate::error::{Error, Result};
use crate::explain::Explanation;
use crate::filter::Filter;
use crate::index::change::Known;
use crate::index::recall::Beam;
use crate::pipeline::Pipeline;
use crate::read::reading_prompt::PromptName;
use crate::read::recursion::Recursion;
use crate::rerank::PairCuts;
use crate::serve::hand::Hand;
use crate::serve::line::Line;
use crate::types::Passage;

/// Texts that are encoded or scored in a moment: with more of them, a request is a long one.
const FEW_TEXTS: usize = 32;

/// Opens the pipeline of an index, as it is on disk now.
pub type Open = Arc<dyn Fn() -> Result<Pipeline> + Send + Sync>;

/// A change of an index.
#[derive(Debug)]
pub enum Edit {
    /// Put records in.
    Put {
        /// As JSON lines.
        lines: Vec<u8>,
        /// What becomes of documents that are there already.
        known: Known,
    },
    /// Take a document or a passage out.
    Delete {
        /// Its id.
        id: String,
    },
}

/// What a change did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Passages that came in.
    pub added: u64,
    /// Passages that went out, those of replaced documents included.
    pub removed: u64,
    /// Passages that are there now.
    pub passages: u64,
    /// The index's identity now.
    pub checksum: String,
}

/// Changes the index where it lies.
pub type Editor = Arc<dyn Fn(Edit) -> Result<Changed> + Send + Sync>;

/// What is wanted.
#[derive(Debug)]
pub enum Work {
    /// An answer; what is written of it goes to `events` as it comes.
    Answer {
        /// In plain words.
        question: String,
        /// Of which passages; all without it.
        filter: Option<Filter>,
        /// The prompt that it is read behind; the usual one without it.
        prompt: Option<String>,
        /// Withhold an answer that is less sure.
        min_confidence: f32,
        /// Whether it is read twice.
        recursion: Recursion,
        /// Who hears of it as it comes.
        events: Option<stream::UnboundedSender<Heard>>,
    },
    /// The best passages.
    Search {
        /// In plain words.
        question: String,
        /// Of which passages; all without it.
        filter: Option<Filter>,
        /// How many.
        k: usize,
        /// Whether to say what each part of the ranking gave them.
        explain: bool,
    },
    /// The passages of a document, or one passage.
    Look {
        /// Its id.
        id: String,
    },
    /// Nothing but the state of the index that is on disk now.
    Renew,
    /// Vectors of texts.
    Embed {
        /// The texts.
        texts: Vec<String>,
    },
    /// The re-ranker's scores of texts.
    Score {
        /// In plain words.
        question: String,
        /// The texts.
        texts: Vec<String>,
    },
}

impl Work {
    /// Whether it keeps a thread so long that what is short should not wait behind it.
    fn is_long(&self) -> bool {
        match self {
            Self::Answer { .. } => true,
            Self::Embed { texts } | Self::Score { texts, .. } => texts.len() > FEW_TEXTS,
            Self::Search { .. } | Self::Look { .. } | Self::Renew => false,
        }
    }
}

/// What is heard of an answer before it is known.
#[derive(Debug)]
pub enum Heard {
    /// What was found for the question.
    Found(FoundFirst),
    /// Text of the first window's answer so far.
    Text(String),
}

/// What was found for a question, before anything of it is read.
#[derive(Debug, Clone, serde::Serialize)]
pub struct FoundFirst {
    /// Passages that the first stage found.
    pub retrieved: usize,
    /// Passages of these that were ranked again.
    pub reranked: usize,
    /// The best, best first.
    pub best: Vec<FoundTitle>,
    /// Milliseconds of each stage so far.
    pub latency_ms: Latency,
}

/// A passage that was found, by name.
#[derive(Debug, Clone, serde::Serialize)]
pub struct FoundTitle {
    /// Its corpus id.
    pub passage_id: String,
    /// Its title; may be empty.
    pub title: String,
}

/// What came of it.
#[derive(Debug)]
pub enum Done {
    /// An answer.
    Answer(Box<Answer>),
    /// Passages.
    Search(Searched),
    /// Passages in order; none if the id is unknown.
    Looked(Vec<Passage>),
    /// What is served now.
    Renewed(Facts),
    /// Vectors.
    Embedded {
        /// `[texts, dim]`.
        vectors: Vec<f32>,
        /// Numbers a vector.
        dim: usize,
        /// Tokens of the texts.
        tokens: usize,
        /// Texts that were cut because they are longer than the encoder can read.
        truncated: usize,
    },
    /// Scores.
    Scored {
        /// In the order of the texts.
        scores: Vec<f32>,
        /// Texts that were cut because they are longer than the re-ranker can read.
        truncated: usize,
        /// Tokens left out of the question for the same reason.
        question_tokens: usize,
    },
}

/// Passages that were found.
#[derive(Debug)]
pub struct Searched {
    /// Best first.
    pub hits: Vec<SearchHit>,
    /// The beam of the search by meaning, if that was asked for and there was one.
    pub beam: Option<Beam>,
    /// What could not be read in finding them.
    pub cuts: Option<PairCuts>,
    /// What it took.
    pub latency_ms: Latency,
}

/// A passage that was found.
#[derive(Debug)]
pub struct SearchHit {
    /// The passage.
    pub passage: Passage,
    /// Its score.
    pub score: f32,
    /// What it was given for, if that was asked for.
    pub parts: Option<Explanation>,
}

/// Why a job was not done.
#[derive(Debug)]
pub enum Refusal {
    /// The line is full.
    Busy,
    /// Its time was over before its turn came.
    Late,
    /// The pipeline could not be opened, or is being stopped.
    Down,
    /// What the pipeline says.
    Failed(Error),
}

pub(super) struct Job {
    pub(super) work: Work,
    pub(super) deadline: Instant,
    /// When it was put in line.
    pub(super) since: Instant,
    pub(super) reply: oneshot::Sender<std::result::Result<Done, Refusal>>,
    /// The request it is part of.
    pub(super) request: Span,
    /// Its time in line.
    pub(super) in_line: Span,
}

/// How an index is.
#[derive(Debug, Clone, Default)]
pub enum State {
    /// Loading and proving its models.
    #[default]
    Opening,
    /// It has answered a question.
    Ready(Facts),
    /// It could not be opened.
    Failed(String),
}

/// What is served.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Facts {
    /// Passages in the index.
    pub passages: u64,
    /// The index's identity: the checksum of its manifest.
    pub checksum: String,
    /// Encoder of its vectors, if it has some.
    pub encoder: Option<String>,
    /// The models at work, each of which has run.
    pub models: Vec<ModelAtWork>,
    /// The prompts that an answer may be read behind, each of which has been; the first is taken when a request names none.
    pub prompts: Vec<PromptName>,
}

/// A model at work.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct ModelAtWork {
    /// `encoder`, `reranker` or `reader`.
    pub role: &'static str,
    /// Its name.
    pub name: String,
    /// The device that it runs on, or the address of the server that runs it.
    pub device: String,
}

/// What the threads of an index share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Jobs in line and at work.
    pub(super) waiting: AtomicUsize,
    /// Changes that were made through this server: a thread that has not seen the last takes it up before its next job.
    pub(super) changes: AtomicU64,
    /// How each thread is.
    states: Vec<RwLock<State>>,
    /// Where the time in line is counted, once there is a server that does.
    waits: OnceLock<Histogram>,
}

impl Shared {
    pub(super) fn is(&self, thread: usize, state: State) {
        if let Some(own) = self.states.get(thread) {
            *own.write().unwrap_or_else(PoisonError::into_inner) = state;
        }
    }

    /// Count the time that a job was in line: its turn has come.
    pub(super) fn waited(&self, job: &Job) {
        if let Some(waits) = self.waits.get() {
            waits.observe(job.since.elapsed().as_secs_f64());
        }
    }

    /// Ready when all threads are, with what the first of them serves.
    fn state(&self) -> State {
        let mut facts = None;
        let mut opening = false;
        for state in &self.states {
            match state.read().unwrap_or_else(PoisonError::into_inner).clone() {
                State::Opening => opening = true,
                State::Ready(found) => facts = facts.or(Some(found)),
                failed @ State::Failed(_) => return failed,
            }
        }
        facts.filter(|_| !opening).map_or(State::Opening, State::Ready)
    }
}

/// The lines of an index, with the threads behind them.
#[derive(Clone)]
pub struct Workers {
    /// The line of jobs that take a moment.
    short: Sender<Job>,
    /// The line of all others.
    long: Sender<Job>,
    shared: Arc<Shared>,
    /// Changes the index, one change at a time; none for an index that is only read.
    editor: Option<Arc<tokio::sync::Mutex<Editor>>>,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Workers {
    /// Start `threads` threads that each open the pipeline of an index; up to `queue` long jobs and as
    /// many short ones wait for them.
    pub fn start(open: &Open, queue: usize, threads: usize) -> Result<Self> {
        let (short, short_line) = crossbeam_channel::bounded::<Job>(queue);
        let (long, long_line) = crossbeam_channel::bounded::<Job>(queue);
        let states = (0..threads).map(|_| RwLock::default()).collect();
        let shared = Arc::new(Shared { states, ..Shared::default() });
        for thread in 0..threads {
            let hand = Hand::new(open.clone(), thread, shared.clone());
            let line = Line::new(short_line.clone(), long_line.clone());
            std::thread::Builder::new()
                .name(format!("pipeline {thread}"))
                .spawn(move || hand.run(line))
                .map_err(Error::internal("starting the thread of a pipeline"))?;
        }
        Ok(Self { short, long, shared, editor: None })
    }

    /// Let the index be changed by `editor`.
    pub fn with_editor(self, editor: Editor) -> Self {
        Self { editor: Some(Arc::new(tokio::sync::Mutex::new(editor))), ..self }
    }

    /// Have the time of jobs in line counted by `waits`; the first that is named counts.
    pub(super) fn count_waits(&self, waits: Histogram) {
        let _ = self.shared.waits.set(waits);
    }

    /// Whether the index can be changed.
    pub fn is_writable(&self) -> bool {
        self.editor.is_some()
    }

    /// Change the index on disk, after the changes that came before. [`Work::Renew`] has it served, and so does every job that
    /// is asked for afterwards.
    pub async fn change(&self, edit: Edit) -> std::result::Result<Changed, Refusal> {
        let editor = self.editor.as_ref().ok_or(Refusal::Down)?.clone().lock_owned().await;
        // It encodes and writes files: not on the threads that serve connections.
        let done = tokio::task::spawn_blocking(move || editor(edit)).await;
        let changed = done.map_err(|_| Refusal::Down)?.map_err(Refusal::Failed)?;
        self.shared.changes.fetch_add(1, Ordering::Release);
        Ok(changed)
    }

    /// Have a job done by `deadline`.
    pub async fn ask(&self, work: Work, deadline: Instant) -> std::result::Result<Done, Refusal> {
        let (reply, answer) = oneshot::channel();
        let line = if work.is_long() { &self.long } else { &self.short };
        let (since, request, in_line) = (Instant::now(), Span::current(), info_span!("wait"));
        let job = Job { work, deadline, since, reply, request, in_line };
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        if let Err(refused) = line.try_send(job) {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(match refused {
                TrySendError::Full(_) => Refusal::Busy,
                TrySendError::Disconnected(_) => Refusal::Down,
            });
        }
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(Refusal::Down),
            Err(_) => Err(Refusal::Late),
        }
    }

    /// Whether the next answer would be turned away.
    pub fn is_full(&self) -> bool {
        self.long.is_full()
    }

    /// Jobs in both lines, those at work included.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// How it is.
    pub fn state(&self) -> State {
        self.shared.state()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(states: Vec<State>) -> Shared {
        let states = states.into_iter().map(RwLock::new).collect();
        Shared { states, ..Shared::default() }
    }

    #[test]
    fn answers_and_many_texts_are_long() {
        let texts = |n| vec![String::new(); n];
        let score = |n| Work::Score { question: String::new(), texts: texts(n) };
        assert!(!Work::Renew.is_long() && !Work::Look { id: "a".into() }.is_long());
        assert!(!Work::Embed { texts: texts(FEW_TEXTS) }.is_long() && !score(FEW_TEXTS).is_long());
        assert!(Work::Embed { texts: texts(FEW_TEXTS + 1) }.is_long() && score(FEW_TEXTS + 1).is_long());
    }

    #[test]
    fn an_index_is_ready_when_all_its_threads_are() {
        let ready = || State::Ready(Facts { passages: 3, ..Facts::default() });
        assert!(matches!(shared(vec![ready(), State::Opening]).state(), State::Opening));
        assert!(matches!(shared(vec![ready(), ready()]).state(), State::Ready(facts) if facts.passages == 3));
        let failed = shared(vec![State::Opening, State::Failed("no".into()), ready()]);
        assert!(matches!(failed.state(), State::Failed(problem) if problem == "no"));
        failed.is(1, ready());
        failed.is(0, ready());
        assert!(matches!(failed.state(), State::Ready(_)));
    }
}
