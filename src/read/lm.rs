//! The frozen language model: prompts of token ids in, generations with log-probabilities out.
//!
//! Nothing here changes a weight. What is learned reaches the model as input embeddings
//! ([`FrozenLm::embed`] shows where they come from) or as states in its cache ([`Prefix`]), and its last hidden states
//! are there for who wants to learn from them ([`FrozenLm::hidden_states`]).
//!
//! A prompt is read in three parts: what stands before every window, the passages, and the question. States of the
//! first two do not depend on what follows, so each part is a pass of its own whether its states are kept or not, and
//! keeping them changes nothing but the time.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::progress::check_interrupt;
use crate::read::decode::{Decoding, Generation, log_probability};
use crate::read::prefix::{Prefix, cache_order};
use crate::read::rows::Rows;
use crate::read::soft_prompt::{PromptKind, SoftPrompt};
use crate::read::spans::{Span, SpanConstraint, Vocabulary};
use crate::read::state_folder::StateFolder;
use crate::read::states::{CacheStatistics, StateCache};
use crate::runtime::device::Device;
use crate::runtime::kv_session::{KvCache, KvSession};
use crate::runtime::kv_states::States;
use crate::runtime::model_dir::{LmShape, ModelDir, ModelKind};
use crate::runtime::session::{Input, RuntimeOptions, Session};
use crate::runtime::tokenizer::TextTokenizer;

/// A language model whose weights stay as they are.
#[derive(Debug)]
pub struct FrozenLm {
    embed: Session,
    graph: KvSession,
    tokenizer: TextTokenizer,
    shape: LmShape,
    window: usize,
    name: String,
    fingerprint: String,
    vocabulary: OnceLock<Arc<Vocabulary>>,
    /// States of prefixes by their keys; model and device are this object's own.
    prefixes: HashMap<String, Arc<States>>,
    /// States of the last prefix that was written for one input: all windows of a question share them.
    written: Option<(String, Arc<States>)>,
    /// On a GPU, the states of the last prefix where they are needed, in its memory.
    resident: Option<(String, KvCache)>,
    /// States of passages behind a prefix.
    passages: StateCache,
    /// Index beside which more of them are kept.
    beside: Option<PathBuf>,
}

/// Prefixes whose states are kept; more at once begin anew. Each takes a few megabytes.
const MOST_PREFIXES: usize = 64;

/// One prompt in its three parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// What stands before every window.
    pub prefix: Prefix,
    /// Tokens of the passages.
    pub passages: Vec<u32>,
    /// Tokens of the question and of what asks for the answer; at least one.
    pub tail: Vec<u32>,
}

impl Prompt {
    /// Tokens and nothing before them.
    pub fn of(tokens: Vec<u32>) -> Self {
        Self { prefix: Prefix::Words(Vec::new()), passages: Vec::new(), tail: tokens }
    }

    /// Positions that it takes.
    pub fn positions(&self) -> usize {
        self.prefix.positions() + self.passages.len() + self.tail.len()
    }
}

/// Told of every new piece of text: the row of the batch and the text of its answer so far.
pub type OnText<'a> = &'a mut dyn FnMut(usize, &str);

impl FrozenLm {
    /// Load a model folder of kind [`ModelKind::Lm`].
    pub fn open(model: &ModelDir, options: &RuntimeOptions) -> Result<Self> {
        let ModelKind::Lm(shape) = &model.description.kind else {
            return Err(Error::model(
                model.name(),
                "it is not a language model",
                "`nunatak models list` shows what each model is",
            ));
        };
        // The table of embeddings stays in the processor's memory: looking rows up there and copying them is all there is
        // to do, and the graph takes its inputs from there.
        let beside = (options.device != Device::Cpu).then_some(options.device);
        let of_table = RuntimeOptions { device: Device::Cpu, beside: beside.or(options.beside), ..options.clone() };
        Ok(Self {
            embed: Session::open(&model.file("embed.onnx"), &of_table)?,
            graph: KvSession::open(model, shape, options)?,
            tokenizer: TextTokenizer::open(model)?,
            shape: shape.clone(),
            window: model.description.max_tokens,
            name: model.name(),
            fingerprint: model.fingerprint(),
            vocabulary: OnceLock::new(),
            prefixes: HashMap::new(),
            written: None,
            resident: None,
            passages: StateCache::default(),
            beside: None,
        })
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hash of the model's graph.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Sizes and special tokens.
    pub fn shape(&self) -> &LmShape {
        &self.shape
    }

    /// Longest sequence in tokens.
    pub fn window(&self) -> usize {
        self.window
    }

    /// Where it runs.
    pub fn device(&self) -> Device {
        self.graph.device()
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The bytes of every token, for [`SpanConstraint`]; made on the first call.
    pub fn vocabulary(&self) -> Arc<Vocabulary> {
        self.vocabulary.get_or_init(|| Arc::new(Vocabulary::new(self.tokenizer.token_bytes()))).clone()
    }

    /// Input embeddings of tokens, `[tokens, hidden]`.
    pub fn embed(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let ids: Vec<i64> = tokens.iter().map(|&t| i64::from(t)).collect();
        let outputs = self.embed.run(&[("input_ids", Input::I64(&ids, &[1, ids.len()]))], &["inputs_embeds"])?;
        Ok(outputs.into_iter().next().map(|o| o.data).unwrap_or_default())
    }

    /// Last hidden states of one sequence, `[tokens, hidden]`, computed afresh.
    pub fn hidden_states(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let embeds = self.embed(tokens)?;
        self.states_after(embeds, tokens.len())
    }

    /// The same of input embeddings `[positions, hidden]`.
    pub fn states_after(&mut self, embeds: Vec<f32>, positions: usize) -> Result<Vec<f32>> {
        let mut cache = self.graph.new_cache(1, positions)?;
        let pass = self.graph.forward(&mut cache, embeds, &[positions], &[], true)?;
        pass.hidden_states.ok_or(Error::Internal { doing: "reading hidden states", message: "none came".into() })
    }

    /// Keep states of passages in up to so many bytes of memory; 0 (the default) keeps none.
    pub fn keep_passages(&mut self, bytes: u64) {
        self.passages = StateCache::new(bytes);
    }

    /// Look for states of passages beside this index too, where `nunatak index warm` put them.
    pub fn look_beside(&mut self, index: &Path) {
        self.beside = Some(index.to_path_buf());
    }

    /// Where states behind a prefix are kept beside an index.
    pub fn state_folder(&self, index: &Path, prefix: &Prefix) -> StateFolder {
        StateFolder::new(index, &self.fingerprint, &prefix.key(), &self.shape)
    }

    /// How the kept states of passages have done.
    pub fn cache_statistics(&self) -> CacheStatistics {
        self.passages.statistics()
    }

    /// Continue every prompt until it ends, all of them in one batch, each behind its own prefix.
    ///
    /// With `constraints` (one a prompt) answers are held to spans of passages and decoding is greedy.
    ///
    /// # Errors
    /// [`Error::Request`] when a prompt and its answer do not fit the window.
    pub fn generate(
        &mut self,
        prompts: &[Prompt],
        decoding: &Decoding,
        constraints: Option<Vec<SpanConstraint>>,
        on_text: OnText,
    ) -> Result<(Vec<Generation>, Vec<Option<Span>>)> {
        let longest = prompts.iter().map(Prompt::positions).max().unwrap_or(0);
        let capacity = longest + decoding.max_new_tokens;
        self.check_window(longest, decoding.max_new_tokens)?;
        let ends = self.ends(decoding, constraints.is_some());
        let mut rows = Rows::new(prompts.len(), decoding, constraints, ends);
        // One prompt is decoded in the cache it was prefilled in; several are put together as they are read, so that
        // no more than one of them is held twice.
        let mut cache = match prompts.len() {
            0 => return Ok(rows.finish()),
            1 => None,
            count => Some(self.graph.new_cache(count, capacity)?),
        };
        for (row, prompt) in prompts.iter().enumerate() {
            let room = if prompts.len() == 1 { capacity } else { prompt.positions() };
            let (one, logits) = self.prefill(prompt, room)?;
            match &mut cache {
                Some(batch) => {
                    self.graph.place(&one, batch, row)?;
                    self.graph.give_back(one);
                }
                None => cache = Some(one),
            }
            // The first token of a row is known before the next row is read: who waits for it sees it now.
            rows.step(row, &logits, &self.tokenizer, on_text)?;
        }
        if let Some(mut cache) = cache {
            self.decode(&mut cache, &mut rows, on_text)?;
            self.graph.give_back(cache);
        }
        Ok(rows.finish())
    }

    fn check_window(&self, prompt: usize, answer: usize) -> Result<()> {
        if prompt + answer <= self.window {
            return Ok(());
        }
        Err(Error::request(
            format!(
                "the prompt of {prompt} tokens and an answer of up to {answer} do not fit the window of {} tokens of {}",
                self.window, self.name
            ),
            "ask a shorter question, or choose a language model with a larger window",
        ))
    }

    /// Log-likelihood of each continuation of a prompt: the sum of the log-probabilities of its tokens. A continuation of
    /// none has 0.
    ///
    /// # Errors
    /// [`Error::Request`] when a prompt and its continuation do not fit the window.
    pub fn score(&mut self, prompt: &Prompt, continuations: &[Vec<u32>]) -> Result<Vec<f32>> {
        let longest = continuations.iter().map(Vec::len).max().unwrap_or(0);
        self.check_window(prompt.positions(), longest)?;
        let (read, logits) = self.prefill(prompt, prompt.positions())?;
        let states = self.graph.states(&read, 0)?;
        let mut scores = Vec::with_capacity(continuations.len());
        for tokens in continuations {
            check_interrupt(unread)?;
            let Some((&first, further)) = tokens.split_first() else {
                scores.push(0.0);
                continue;
            };
            let mut score = log_probability(&logits, first as usize);
            if !further.is_empty() {
                // One at a time: the graph takes several new positions behind old ones for one sequence alone.
                let mut cache = self.graph.new_cache(1, states.positions() + further.len())?;
                self.graph.append(&states, &mut cache)?;
                let embeds = self.embed(&tokens[..further.len()])?;
                let rows: Vec<usize> = (0..further.len()).collect();
                let pass = self.graph.forward(&mut cache, embeds, &[further.len()], &rows, false)?;
                let vocabulary = (pass.logits.len() / further.len()).max(1);
                let each = further.iter().zip(pass.logits.chunks_exact(vocabulary));
                score += each.map(|(&token, logits)| log_probability(logits, token as usize)).sum::<f32>();
            }
            scores.push(score);
        }
        Ok(scores)
    }

    /// The states of `prefix`, computed on the first call; [`Self::generate`] asks for them too.
    pub fn prepare_prefix(&mut self, prefix: &Prefix) -> Result<Arc<States>> {
        self.prefix_states(prefix, &prefix.key())
    }

    fn prefix_states(&mut self, prefix: &Prefix, key: &str) -> Result<Arc<States>> {
        if let Some(states) = self.prefixes.get(key) {
            return Ok(states.clone());
        }
        if let Some((_, states)) = self.written.as_ref().filter(|(written, _)| written == key) {
            return Ok(states.clone());
        }
        let positions = prefix.positions();
        let states = match prefix {
            Prefix::Written { behind, prompt } => {
                let states = Arc::new(self.states_behind(behind.as_ref(), prompt)?);
                self.written = Some((key.to_owned(), states.clone()));
                return Ok(states);
            }
            Prefix::Learned(prompt) if prompt.description.kind == PromptKind::States => {
                self.graph.states_of(cache_order(prompt, &self.shape), positions)
            }
            Prefix::Learned(prompt) => self.states_of(prompt.values().to_vec(), positions)?,
            Prefix::Words(tokens) => {
                let embeds = if tokens.is_empty() { Vec::new() } else { self.embed(tokens)? };
                self.states_of(embeds, positions)?
            }
        };
        if self.prefixes.len() >= MOST_PREFIXES {
            self.prefixes.clear();
        }
        let states = Arc::new(states);
        self.prefixes.insert(key.to_owned(), states.clone());
        Ok(states)
    }

    /// The states of passages behind a prefix, computed or taken from where they are kept.
    pub fn passage_states(&mut self, prefix: &Prefix, passages: &[u32]) -> Result<Arc<States>> {
        let mut cache = self.graph.new_cache(1, prefix.positions() + passages.len())?;
        self.read_passages(prefix, passages, &mut cache, true)
    }

    /// States of a written prompt behind a learned one, those of the learned one included.
    fn states_behind(&mut self, behind: Option<&Arc<SoftPrompt>>, prompt: &Arc<SoftPrompt>) -> Result<States> {
        let (embeds, positions) = (prompt.values().to_vec(), prompt.positions());
        let Some(behind) = behind else { return self.states_of(embeds, positions) };
        let before = self.prepare_prefix(&Prefix::Learned(behind.clone()))?;
        let mut cache = self.graph.new_cache(1, before.positions() + positions)?;
        self.graph.append(&before, &mut cache)?;
        self.graph.forward(&mut cache, embeds, &[positions], &[], false)?;
        self.graph.states(&cache, 0)
    }

    /// States of input embeddings with nothing before them.
    fn states_of(&mut self, embeds: Vec<f32>, positions: usize) -> Result<States> {
        let mut cache = self.graph.new_cache(1, positions.max(1))?;
        if positions > 0 {
            self.graph.forward(&mut cache, embeds, &[positions], &[], false)?;
        }
        self.graph.states(&cache, 0)
    }

    /// Fill an empty cache with the states of a prefix and of the passages behind it; gives the latter, or none behind a
    /// written prefix, or where they are not `wanted` and nobody keeps them.
    fn read_passages(
        &mut self,
        prefix: &Prefix,
        passages: &[u32],
        cache: &mut KvCache,
        wanted: bool,
    ) -> Result<Arc<States>> {
        let key = prefix.key();
        let before = self.begin_with(prefix, &key, cache)?;
        if passages.is_empty() {
            return Ok(Arc::new(States::short(Vec::new(), 0)));
        }
        if prefix.is_written() || (!wanted && !self.keeps(prefix)) {
            let embeds = self.embed(passages)?;
            self.graph.forward(cache, embeds, &[passages.len()], &[], false)?;
            return Ok(Arc::new(States::short(Vec::new(), 0)));
        }
        if let Some(states) = self.passages.get(&key, passages) {
            self.graph.append(&states, cache)?;
            return Ok(states);
        }
        let found = self.beside.as_ref().and_then(|index| self.state_folder(index, prefix).get(passages));
        let states = match found {
            Some(states) => {
                self.passages.found_elsewhere(passages);
                self.graph.append(&states, cache)?;
                states
            }
            None => {
                let embeds = self.embed(passages)?;
                self.graph.forward(cache, embeds, &[passages.len()], &[], false)?;
                self.graph.rounded_states(cache, before)?
            }
        };
        let states = Arc::new(states);
        self.passages.put(&key, passages, states.clone());
        Ok(states)
    }

    /// Fill an empty cache with the states of a prefix; gives their positions.
    fn begin_with(&mut self, prefix: &Prefix, key: &str, cache: &mut KvCache) -> Result<usize> {
        let states = self.prefix_states(prefix, key)?;
        let positions = states.positions();
        if self.device() == Device::Cpu || positions == 0 {
            self.graph.append(&states, cache)?;
            return Ok(positions);
        }
        if self.resident.as_ref().is_none_or(|(of, _)| of != key) {
            let mut resident = self.graph.new_cache(1, positions)?;
            self.graph.append(&states, &mut resident)?;
            if let Some((_, old)) = self.resident.replace((key.to_owned(), resident)) {
                self.graph.give_back(old);
            }
        }
        if let Some((_, resident)) = &self.resident {
            self.graph.place(resident, cache, 0)?;
        }
        Ok(positions)
    }

    /// Whether states of passages behind a prefix are kept or looked for. Behind a written one nobody else will ask for them, and
    /// keeping them would push out what somebody asks for. States of 32 bits count as kept: rounded like those that are, they
    /// give the same answers.
    fn keeps(&self, prefix: &Prefix) -> bool {
        let warm = || self.beside.as_ref().is_some_and(|index| self.state_folder(index, prefix).path().exists());
        !prefix.is_written() && (!self.graph.is_short() || self.passages.keeps() || warm())
    }

    /// States of a prompt, and the logits after its last token.
    fn prefill(&mut self, prompt: &Prompt, capacity: usize) -> Result<(KvCache, Vec<f32>)> {
        check_interrupt(unread)?;
        let mut cache = self.graph.new_cache(1, capacity)?;
        // A GPU reads some hundreds of tokens in the time of one: where nobody keeps passages, one pass does.
        let at_once = self.device() != Device::Cpu && !self.keeps(&prompt.prefix);
        let tokens = if at_once {
            self.begin_with(&prompt.prefix, &prompt.prefix.key(), &mut cache)?;
            [prompt.passages.as_slice(), &prompt.tail].concat()
        } else {
            self.read_passages(&prompt.prefix, &prompt.passages, &mut cache, false)?;
            prompt.tail.clone()
        };
        let embeds = self.embed(&tokens)?;
        let last = tokens.len().saturating_sub(1);
        let pass = self.graph.forward(&mut cache, embeds, &[tokens.len()], &[last], false)?;
        Ok((cache, pass.logits))
    }

    /// Step after step, all rows in one batch, until none is running.
    fn decode(&mut self, cache: &mut KvCache, rows: &mut Rows, on_text: OnText) -> Result<()> {
        let count = rows.count();
        let mut logits = Vec::new();
        while rows.running() {
            check_interrupt(unread)?;
            // Rows that are done take part with their last token: one batch shape, and nobody reads the result.
            let embeds = self.embed(&rows.last_tokens())?;
            self.graph.step(cache, embeds, &mut logits)?;
            let vocabulary = (logits.len() / count).max(1);
            for (row, logits) in logits.chunks_exact(vocabulary).enumerate() {
                rows.step(row, logits, &self.tokenizer, on_text)?;
            }
        }
        Ok(())
    }

    /// Tokens that end an answer: the model's own, and under a span constraint, which chooses among tokens before
    /// any text is written, also those that begin a new line where that is a stop text.
    fn ends(&self, decoding: &Decoding, constrained: bool) -> Vec<u32> {
        let mut ends = self.shape.eos.clone();
        if constrained && decoding.stop.iter().any(|s| s == "\n") {
            ends.extend(self.vocabulary().beginning_with(b'\n'));
        }
        ends
    }
}

/// What is kept of reading that was stopped.
fn unread() -> String {
    "nothing of the windows being read is kept".to_owned()
}
