//! A thread that owns a pipeline and does the jobs of an index's lines, one after another.
//!
//! A job whose client is gone, or whose time is over, is dropped when its turn comes, or where it stands.
//!
//! When the index on disk changes, the new state is taken up between two jobs; only if that needs other models does another
//! thread open them, and the old state is served until they are there. A collection of a cluster that was built anew has no
//! old state: it is not served until then.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use crate::error::{Error, Result};
use crate::explain::Explanation;
use crate::index::Index;
use crate::pipeline::{Found, Pipeline};
use crate::progress;
use crate::read::reader::Reader;
use crate::serve::line::Line;
use crate::serve::workers::{
    Done, Facts, FoundFirst, FoundTitle, Heard, Job, ModelAtWork, Open, Refusal, SearchHit, Searched, Shared, State,
    Work,
};
use crate::types::{Hit, Passage};

/// How often a folder is looked at for a new index; it is one small file that is read.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same for a cluster, which is asked.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// Passages that a stream names before they are read.
const TOLD: usize = 10;

/// What such a thread has.
pub(super) struct Hand {
    open: Open,
    /// Its number among those of the index.
    thread: usize,
    shared: Arc<Shared>,
}

/// A pipeline on its way.
type Opening = mpsc::Receiver<Result<Pipeline>>;

/// What became of looking whether the index changed.
enum Look {
    /// What is at work is what is there.
    Current,
    /// Other models are needed; what is at work may be used meanwhile.
    Behind,
    /// Other models are needed, and what is at work is of no use.
    Gone,
}

impl Hand {
    pub(super) fn new(open: Open, thread: usize, shared: Arc<Shared>) -> Self {
        Self { open, thread, shared }
    }

    pub(super) fn run(self, mut line: Line<Job>) {
        let opened = proved(&self.open).and_then(|pipeline| self.ready(&pipeline).map(|()| pipeline));
        let mut pipeline = match opened {
            Ok(pipeline) => pipeline,
            Err(error) => {
                tracing::error!("{error}");
                return self.is(State::Failed(error.to_string()));
            }
        };
        let look_every = if pipeline.index().is_ok() { LOOK_EVERY } else { ASK_EVERY };
        let (mut looked, mut opening, mut usable, mut seen) = (Instant::now(), None::<Opening>, true, 0);
        loop {
            let job = match line.next(LOOK_EVERY) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Some(fresh) = opening.as_ref().and_then(|opening| opening.try_recv().ok()) {
                opening = None;
                match fresh.and_then(|fresh| self.ready(&fresh).map(|()| fresh)) {
                    Ok(fresh) => {
                        (pipeline, usable) = (fresh, true);
                        tracing::info!("the index was replaced");
                    }
                    Err(error) => tracing::error!("the index was replaced, and the new one cannot be opened: {error}"),
                }
            }
            // Before a job, what was changed through this server before it was asked for.
            let changes = self.shared.changes.load(Ordering::Acquire);
            let changed = job.is_some() && changes != seen;
            if opening.is_none() && (changed || looked.elapsed() >= look_every) {
                (looked, seen) = (Instant::now(), changes);
                match self.look(&mut pipeline, changed) {
                    Ok(Look::Current) => {}
                    Ok(Look::Behind) => opening = self.reopen(),
                    Ok(Look::Gone) => {
                        usable = false;
                        self.is(State::Opening);
                        opening = self.reopen();
                    }
                    Err(error) => tracing::error!("the index changed, and cannot be opened: {error}"),
                }
            }
            if let Some(job) = job {
                self.shared.waited(&job);
                if usable {
                    work(&mut pipeline, job);
                } else {
                    // Its client may be gone.
                    let _ = job.reply.send(Err(Refusal::Down));
                }
                self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Take up the index on disk if it is another than the one at work and the models at work will do.
    fn look(&self, pipeline: &mut Pipeline, changed: bool) -> Result<Look> {
        if pipeline.passages().is_current()? {
            // A cluster answers from what it has now; how much that is, is asked when it was changed here.
            if changed {
                self.ready(pipeline)?;
            }
            return Ok(Look::Current);
        }
        let Ok(before) = pipeline.index() else {
            tracing::warn!("the collection was built anew");
            return Ok(Look::Gone);
        };
        let index = Arc::new(Index::open(before.path())?);
        if !pipeline.take_up(&index)? {
            return Ok(Look::Behind);
        }
        tracing::info!("the index changed: now {} passages", index.manifest().passages);
        self.ready(pipeline)?;
        Ok(Look::Current)
    }

    fn ready(&self, pipeline: &Pipeline) -> Result<()> {
        self.is(State::Ready(facts(pipeline)?));
        Ok(())
    }

    fn is(&self, state: State) {
        self.shared.is(self.thread, state);
    }

    /// Open the pipeline anew beside the one at work.
    fn reopen(&self) -> Option<Opening> {
        let (sender, receiver) = mpsc::channel();
        let open = self.open.clone();
        let spawned = std::thread::Builder::new().name("reopening".into()).spawn(move || {
            // The server may be gone by then.
            let _ = sender.send(proved(&open));
        });
        spawned.ok().map(|_| receiver)
    }
}

/// Do a job.
fn work(pipeline: &mut Pipeline, job: Job) {
    drop(job.in_line);
    let _request = job.request.enter();
    if job.reply.is_closed() {
        return;
    }
    if Instant::now() >= job.deadline {
        // Nobody waits any more: the time is over for the client, too.
        let _ = job.reply.send(Err(Refusal::Late));
        return;
    }
    // What its client no longer waits for is not finished while others wait.
    let (reply, deadline) = (Rc::new(RefCell::new(Some(job.reply))), job.deadline);
    let asked = reply.clone();
    let wanted = move || Instant::now() < deadline && asked.borrow().as_ref().is_some_and(|reply| !reply.is_closed());
    let only_while = progress::only_while(wanted);
    let done = match job.work {
        Work::Answer { question, filter, prompt, min_confidence, recursion, events } => {
            pipeline.withhold_below(min_confidence);
            let mut tell = |row: usize, text: &str| {
                if let (0, Some(events)) = (row, &events) {
                    // A client that went away is noticed elsewhere.
                    let _ = events.send(Heard::Text(text.to_owned()));
                }
            };
            let mut answer = || {
                pipeline.read_behind(prompt.as_deref())?;
                pipeline.recur(recursion)?;
                pipeline.restrict(filter.as_ref())?;
                let found = pipeline.find(&question)?;
                if let Some(events) = &events {
                    let _ = events.send(Heard::Found(found_first(pipeline, &found)?));
                }
                pipeline.answer_from(&question, found, &mut tell)
            };
            answer().map(|answer| Done::Answer(Box::new(answer)))
        }
        Work::Search { question, filter, k, explain } => {
            let found = pipeline.restrict(filter.as_ref()).and_then(|_| pipeline.find_at_least(&question, k));
            found.and_then(|found| search(pipeline, &found, k, explain)).map(Done::Search)
        }
        Work::Look { id } => look(pipeline, &id).map(Done::Looked),
        Work::Renew => facts(pipeline).map(Done::Renewed),
        Work::Embed { texts } => embed(pipeline, &texts),
        Work::Score { question, texts } => pipeline.score(&question, &texts).map(|(scores, cuts)| Done::Scored {
            scores,
            truncated: cuts.passages,
            question_tokens: cuts.question_tokens,
        }),
    };
    drop(only_while);
    let refused = |error| match error {
        Error::Interrupted { .. } if Instant::now() >= deadline => Refusal::Late,
        error => Refusal::Failed(error),
    };
    if let Some(reply) = reply.take() {
        let _ = reply.send(done.map_err(refused));
    }
}

/// A pipeline of which every model has run.
fn proved(open: &Open) -> Result<Pipeline> {
    let mut pipeline = open()?;
    pipeline.prove()?;
    Ok(pipeline)
}

/// What is told of what was found while it is being read.
fn found_first(pipeline: &Pipeline, found: &Found) -> Result<FoundFirst> {
    let title = |hit: Hit| {
        let Passage { key, title, .. } = pipeline.passages().passage(hit.passage)?;
        Ok(FoundTitle { passage_id: key, title })
    };
    Ok(FoundFirst {
        retrieved: found.retrieved.len(),
        reranked: found.reranked.len(),
        best: found.ranking().into_iter().take(TOLD).map(title).collect::<Result<_>>()?,
        latency_ms: found.latency_ms,
    })
}

fn search(pipeline: &Pipeline, found: &Found, k: usize, explain: bool) -> Result<Searched> {
    let hit = |hit: Hit| {
        let passage = pipeline.passages().passage(hit.passage)?;
        let parts = explain.then(|| Explanation::of(hit.passage, found));
        Ok(SearchHit { passage, score: hit.score, parts })
    };
    Ok(Searched {
        hits: found.ranking().into_iter().take(k).map(hit).collect::<Result<_>>()?,
        beam: found.parts.beam.filter(|_| explain),
        cuts: Some(found.cuts).filter(|cuts| !cuts.is_empty()),
        latency_ms: found.latency_ms,
    })
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
    let models = pipeline.models().into_iter().map(|(role, name, device)| ModelAtWork { role, name, device });
    let prompts = pipeline.reader().map(Reader::prompts).unwrap_or_default();
    let (passages, checksum) = (identity.passages, identity.checksum);
    Ok(Facts { passages, checksum, encoder, models: models.collect(), prompts })
}
