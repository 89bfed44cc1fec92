//! The one owner of a pipeline's sessions: a thread that takes jobs from a bounded queue.
//!
//! ONNX Runtime's `run` needs a session for itself, and uses every core; so requests wait in line, and one that comes when
//! the line is full is turned away at once. A job whose client is gone, or whose time is over, is dropped when its turn
//! comes. When the index on disk changes, the worker takes the new state up between two jobs; only if that needs other models
//! does another thread open them, and the worker goes on with those when they are there.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc as stream, oneshot};

use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::index::Index;
use crate::index::change::Known;
use crate::index::manifest::Manifest;
use crate::pipeline::{Answer, Found, Pipeline};
use crate::read::recursion::Recursion;
use crate::types::Passage;

/// How often the worker looks whether the index was replaced.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A question that proves, before anybody asks, that every model runs.
const PROOF: &str = "does it run";

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
        /// Withhold an answer that is less sure.
        min_confidence: f32,
        /// Whether it is read twice.
        recursion: Recursion,
        /// Text of the first window's answer so far.
        events: Option<stream::UnboundedSender<String>>,
    },
    /// The best passages.
    Search {
        /// In plain words.
        question: String,
        /// Of which passages; all without it.
        filter: Option<Filter>,
        /// How many.
        k: usize,
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

/// What came of it.
#[derive(Debug)]
pub enum Done {
    /// An answer.
    Answer(Box<Answer>),
    /// Passages with their scores, best first.
    Search(Vec<(Passage, f32)>),
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
    },
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

struct Job {
    work: Work,
    deadline: Instant,
    reply: oneshot::Sender<std::result::Result<Done, Refusal>>,
}

/// How a worker is.
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
}

/// A queue with the thread behind it.
#[derive(Clone)]
pub struct Worker {
    jobs: SyncSender<Job>,
    queue: usize,
    waiting: Arc<AtomicUsize>,
    state: Arc<RwLock<State>>,
    /// Changes the index, one change at a time; none for an index that is only read.
    editor: Option<Arc<tokio::sync::Mutex<Editor>>>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("state", &self.state()).field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

impl Worker {
    /// Start a thread that opens the pipeline of the index at `dir`, and serves up to `queue` waiting jobs.
    pub fn start(dir: PathBuf, open: Open, queue: usize) -> Result<Self> {
        let (jobs, line) = mpsc::sync_channel::<Job>(queue);
        let (waiting, state) = (Arc::<AtomicUsize>::default(), Arc::<RwLock<State>>::default());
        let thread = Thread { dir, open, waiting: waiting.clone(), state: state.clone() };
        let name = "pipeline".to_owned();
        std::thread::Builder::new()
            .name(name)
            .spawn(move || thread.run(&line))
            .map_err(Error::internal("starting the thread of a pipeline"))?;
        Ok(Self { jobs, queue, waiting, state, editor: None })
    }

    /// Let the index be changed by `editor`.
    pub fn with_editor(self, editor: Editor) -> Self {
        Self { editor: Some(Arc::new(tokio::sync::Mutex::new(editor))), ..self }
    }

    /// Whether the index can be changed.
    pub fn is_writable(&self) -> bool {
        self.editor.is_some()
    }

    /// Change the index on disk, after the changes that came before. [`Work::Renew`] has it served.
    pub async fn change(&self, edit: Edit) -> std::result::Result<Changed, Refusal> {
        let editor = self.editor.as_ref().ok_or(Refusal::Down)?.clone().lock_owned().await;
        // It encodes and writes files: not on the threads that serve connections.
        let done = tokio::task::spawn_blocking(move || editor(edit)).await;
        done.map_err(|_| Refusal::Down)?.map_err(Refusal::Failed)
    }

    /// Have a job done by `deadline`.
    pub async fn ask(&self, work: Work, deadline: Instant) -> std::result::Result<Done, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if let Err(refused) = self.jobs.try_send(Job { work, deadline, reply }) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
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

    /// Whether the next job would be turned away.
    pub fn is_full(&self) -> bool {
        self.waiting() > self.queue
    }

    /// Jobs in line, the one at work included.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How it is.
    pub fn state(&self) -> State {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the thread has.
struct Thread {
    dir: PathBuf,
    open: Open,
    waiting: Arc<AtomicUsize>,
    state: Arc<RwLock<State>>,
}

impl Thread {
    fn run(self, line: &mpsc::Receiver<Job>) {
        let mut pipeline = match proved(&self.open) {
            Ok(pipeline) => pipeline,
            Err(error) => {
                tracing::error!("{error}");
                return self.is(State::Failed(error.to_string()));
            }
        };
        if let Err(error) = self.ready(&pipeline) {
            tracing::error!("{error}");
            return self.is(State::Failed(error.to_string()));
        }
        let (mut looked, mut opening) = (Instant::now(), None::<mpsc::Receiver<Result<Pipeline>>>);
        loop {
            let job = match line.recv_timeout(LOOK_EVERY) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Some(fresh) = opening.as_ref().and_then(|opening| opening.try_recv().ok()) {
                opening = None;
                match fresh {
                    Ok(fresh) => {
                        pipeline = fresh;
                        tracing::info!("the index was replaced");
                        if let Err(error) = self.ready(&pipeline) {
                            tracing::error!("{error}");
                        }
                    }
                    Err(error) => tracing::error!("the index was replaced, and the new one cannot be opened: {error}"),
                }
            }
            let asked = job.as_ref().is_some_and(|job| matches!(job.work, Work::Renew));
            if opening.is_none() && (asked || looked.elapsed() >= LOOK_EVERY) {
                looked = Instant::now();
                match self.renew(&mut pipeline, asked) {
                    Ok(true) => {}
                    Ok(false) => opening = self.reopen(),
                    Err(error) => tracing::error!("the index changed, and cannot be opened: {error}"),
                }
            }
            if let Some(job) = job {
                self.work(&mut pipeline, job);
                self.waiting.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Take up the index on disk if it is another than the one at work. False if that needs other models.
    fn renew(&self, pipeline: &mut Pipeline, asked: bool) -> Result<bool> {
        let Ok(index) = pipeline.index() else {
            // A cluster answers from what it has now; how much that is, is asked when somebody wants to know.
            return if asked { self.ready(pipeline).map(|()| true) } else { Ok(true) };
        };
        let now = Manifest::read(&self.dir)?;
        if now.checksum == index.manifest().checksum {
            return Ok(true);
        }
        let taken = pipeline.take_up(&Arc::new(Index::open(&self.dir)?))?;
        if taken {
            tracing::info!("the index changed: now {} passages", now.passages);
            self.ready(pipeline)?;
        }
        Ok(taken)
    }

    fn ready(&self, pipeline: &Pipeline) -> Result<()> {
        self.is(State::Ready(facts(pipeline)?));
        Ok(())
    }

    /// Open the pipeline anew beside the one at work.
    fn reopen(&self) -> Option<mpsc::Receiver<Result<Pipeline>>> {
        let (sender, receiver) = mpsc::channel();
        let open = self.open.clone();
        let spawned = std::thread::Builder::new().name("reopening".into()).spawn(move || {
            // The worker may be gone by then.
            let _ = sender.send(proved(&open));
        });
        spawned.ok().map(|_| receiver)
    }

    fn work(&self, pipeline: &mut Pipeline, job: Job) {
        if job.reply.is_closed() {
            return;
        }
        if Instant::now() >= job.deadline {
            // Nobody waits any more: the time is over for the client, too.
            let _ = job.reply.send(Err(Refusal::Late));
            return;
        }
        let done = match job.work {
            Work::Answer { question, filter, min_confidence, recursion, events } => {
                pipeline.withhold_below(min_confidence);
                let mut tell = |row: usize, text: &str| {
                    if let (0, Some(events)) = (row, &events) {
                        // A client that went away is noticed with the next job.
                        let _ = events.send(text.to_owned());
                    }
                };
                let answer = pipeline
                    .recur(recursion)
                    .and_then(|()| pipeline.restrict(filter.as_ref()))
                    .and_then(|_| pipeline.answer(&question, &mut tell));
                answer.map(|answer| Done::Answer(Box::new(answer)))
            }
            Work::Search { question, filter, k } => {
                pipeline.restrict(filter.as_ref()).and_then(|_| search(pipeline, &question, k)).map(Done::Search)
            }
            Work::Look { id } => look(pipeline, &id).map(Done::Looked),
            Work::Renew => facts(pipeline).map(Done::Renewed),
            Work::Embed { texts } => embed(pipeline, &texts),
            Work::Score { question, texts } => pipeline
                .score(&question, &texts)
                .map(|(scores, cuts)| Done::Scored { scores, truncated: cuts.passages }),
        };
        let _ = job.reply.send(done.map_err(Refusal::Failed));
    }

    fn is(&self, state: State) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// A pipeline that has answered a question.
fn proved(open: &Open) -> Result<Pipeline> {
    let mut pipeline = open()?;
    pipeline.answer(PROOF, &mut |_, _| {})?;
    Ok(pipeline)
}

fn search(pipeline: &mut Pipeline, question: &str, k: usize) -> Result<Vec<(Passage, f32)>> {
    let found: Found = pipeline.find(question)?;
    let hits = found.ranking().into_iter().take(k);
    hits.map(|hit| Ok((pipeline.passages().passage(hit.passage)?, hit.score))).collect()
}

fn look(pipeline: &Pipeline, id: &str) -> Result<Vec<Passage>> {
    let passages = pipeline.passages();
    passages.pieces_of(id)?.into_iter().map(|row| passages.passage(row)).collect()
}

fn embed(pipeline: &Pipeline, texts: &[String]) -> Result<Done> {
    let mut encoder = pipeline.encoder()?;
    let before = encoder.truncation();
    let tokens = encoder.count_tokens(texts)?;
    let vectors = encoder.encode(texts)?;
    let truncated = (encoder.truncation().texts - before.texts) as usize;
    Ok(Done::Embedded { vectors, dim: encoder.dim(), tokens, truncated })
}

fn facts(pipeline: &Pipeline) -> Result<Facts> {
    let identity = pipeline.passages().identity()?;
    let encoder = identity.encoder.map(|encoder| encoder.name);
    Ok(Facts { passages: identity.passages, checksum: identity.checksum, encoder })
}
