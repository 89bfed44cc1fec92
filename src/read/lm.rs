//! The frozen language model: prompts of token ids in, generations with log-probabilities out.
//!
//! Nothing here changes a weight. What is learned reaches the model as input embeddings
//! ([`FrozenLm::embed`] shows where they come from), and its last hidden states are there for who wants
//! to learn from them ([`FrozenLm::hidden_states`]).

use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::read::decode::{Decoding, Finish, Generation, Next, Sampler, log_probability, pick_within};
use crate::read::spans::{Span, SpanConstraint, Vocabulary};
use crate::runtime::kv_session::{KvCache, KvSession};
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
    /// States of the prefix that the last prompts began with. The prefix tokens are its whole key, since
    /// model and device are this object's own.
    prefix: Option<(Vec<u32>, KvCache)>,
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
        let hidden = model.description.hidden;
        Ok(Self {
            embed: Session::open(&model.file("embed.onnx"), options)?,
            graph: KvSession::open(&model.graph(), shape, hidden, options)?,
            tokenizer: TextTokenizer::open(model)?,
            shape: shape.clone(),
            window: model.description.max_tokens,
            name: model.name(),
            fingerprint: model.fingerprint(),
            vocabulary: OnceLock::new(),
            prefix: None,
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
        let mut cache = self.graph.new_cache(1, tokens.len())?;
        let embeds = self.embed(tokens)?;
        let pass = self.graph.forward(&mut cache, embeds, &[tokens.len()], &[], true)?;
        pass.hidden_states.ok_or(Error::Internal { doing: "reading hidden states", message: "none came".into() })
    }

    /// Continue every prompt, `prefix ++ prompts[i]`, until it ends, all of them in one batch.
    ///
    /// With `constraints` (one a prompt) answers are held to spans of passages and decoding is greedy.
    ///
    /// # Errors
    /// [`Error::Request`] when a prompt and its answer do not fit the window.
    pub fn generate(
        &mut self,
        prefix: &[u32],
        prompts: &[Vec<u32>],
        decoding: &Decoding,
        constraints: Option<Vec<SpanConstraint>>,
        on_text: OnText,
    ) -> Result<(Vec<Generation>, Vec<Option<Span>>)> {
        let longest = prefix.len() + prompts.iter().map(Vec::len).max().unwrap_or(0);
        let capacity = longest + decoding.max_new_tokens;
        if capacity > self.window {
            return Err(Error::request(
                format!(
                    "the prompt of {longest} tokens and an answer of up to {} do not fit the window of {} tokens of {}",
                    decoding.max_new_tokens, self.window, self.name
                ),
                "ask a shorter question, or choose a language model with a larger window",
            ));
        }
        self.prepare_prefix(prefix)?;
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
            let room = if prompts.len() == 1 { capacity } else { prefix.len() + prompt.len() };
            let (one, logits) = self.prefill(prompt, room)?;
            match &mut cache {
                Some(batch) => self.graph.place(&one, batch, row)?,
                None => cache = Some(one),
            }
            // The first token of a row is known before the next row is read: who waits for it sees it now.
            rows.step(row, &logits, &self.tokenizer, on_text)?;
        }
        if let Some(cache) = cache.as_mut().filter(|_| rows.running()) {
            self.decode(cache, &mut rows, on_text)?;
        }
        Ok(rows.finish())
    }

    /// Make sure that the states of `prefix` are at hand; the next [`Self::generate`] does it otherwise.
    pub fn prepare_prefix(&mut self, prefix: &[u32]) -> Result<()> {
        if self.prefix.as_ref().is_some_and(|(tokens, _)| tokens == prefix) {
            return Ok(());
        }
        let mut cache = self.graph.new_cache(1, prefix.len().max(1))?;
        if !prefix.is_empty() {
            let embeds = self.embed(prefix)?;
            self.graph.forward(&mut cache, embeds, &[prefix.len()], &[], false)?;
        }
        self.prefix = Some((prefix.to_vec(), cache));
        Ok(())
    }

    /// States of the prepared prefix and `prompt`, and the logits after its last token.
    fn prefill(&mut self, prompt: &[u32], capacity: usize) -> Result<(KvCache, Vec<f32>)> {
        let embeds = self.embed(prompt)?;
        let mut cache = self.graph.new_cache(1, capacity)?;
        if let Some((_, prefix)) = &self.prefix {
            self.graph.place(prefix, &mut cache, 0)?;
        }
        let last = prompt.len().saturating_sub(1);
        let pass = self.graph.forward(&mut cache, embeds, &[prompt.len()], &[last], false)?;
        Ok((cache, pass.logits))
    }

    /// Step after step, all rows in one batch, until none is running.
    fn decode(&mut self, cache: &mut KvCache, rows: &mut Rows, on_text: OnText) -> Result<()> {
        let count = rows.answers.len();
        let (fresh, every) = (vec![1; count], (0..count).collect::<Vec<usize>>());
        for _ in 1..rows.decoding.max_new_tokens {
            // Rows that are done take part with their last token: one batch shape, and nobody reads the result.
            let embeds = self.embed(&rows.last_tokens())?;
            let pass = self.graph.forward(cache, embeds, &fresh, &every, false)?;
            let vocabulary = (pass.logits.len() / count).max(1);
            for (row, logits) in pass.logits.chunks_exact(vocabulary).enumerate() {
                rows.step(row, logits, &self.tokenizer, on_text)?;
            }
            if !rows.running() {
                break;
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

/// The answers under way, one a prompt.
struct Rows<'a> {
    decoding: &'a Decoding,
    ends: Vec<u32>,
    constraints: Vec<Option<SpanConstraint<'a>>>,
    samplers: Vec<Sampler>,
    answers: Vec<Generation>,
    running: Vec<bool>,
}

impl<'a> Rows<'a> {
    fn new(count: usize, decoding: &'a Decoding, constraints: Option<Vec<SpanConstraint<'a>>>, ends: Vec<u32>) -> Self {
        let unfinished =
            Generation { text: String::new(), tokens: Vec::new(), logprobs: Vec::new(), finish: Finish::Length };
        let mut constraints: Vec<_> = constraints.into_iter().flatten().map(Some).collect();
        constraints.resize_with(count, || None);
        Self {
            decoding,
            ends,
            constraints,
            samplers: (0..count).map(|row| Sampler::new(decoding, row)).collect(),
            answers: vec![unfinished; count],
            running: vec![decoding.max_new_tokens > 0; count],
        }
    }

    fn running(&self) -> bool {
        self.running.contains(&true)
    }

    fn last_tokens(&self) -> Vec<u32> {
        self.answers.iter().map(|a| a.tokens.last().copied().unwrap_or_default()).collect()
    }

    /// Choose a row's next token from the logits before it.
    fn step(&mut self, row: usize, logits: &[f32], tokenizer: &TextTokenizer, on_text: OnText) -> Result<()> {
        if !self.running[row] {
            return Ok(());
        }
        let next = match &self.constraints[row] {
            Some(constraint) => pick_within(constraint, logits, &self.ends),
            None => {
                let token = self.samplers[row].pick(logits);
                if self.ends.contains(&token) { Next::End(token) } else { Next::Token(token) }
            }
        };
        let (Next::Token(token) | Next::End(token)) = next;
        let answer = &mut self.answers[row];
        answer.logprobs.push(log_probability(logits, token as usize));
        answer.tokens.push(token);
        if let Next::End(_) = next {
            answer.finish = Finish::Stop;
            self.running[row] = false;
            return Ok(());
        }
        if let Some(constraint) = &mut self.constraints[row] {
            constraint.advance(token);
        }
        let text = tokenizer.decode(&answer.tokens)?;
        match self.decoding.stop.iter().filter_map(|s| stop_at(&text, s)).min() {
            Some(at) => {
                answer.text = text[..at].to_owned();
                answer.finish = Finish::Stop;
                self.running[row] = false;
            }
            None => answer.text = text,
        }
        on_text(row, &answer.text);
        if answer.tokens.len() >= self.decoding.max_new_tokens {
            self.running[row] = false;
        }
        Ok(())
    }

    fn finish(self) -> (Vec<Generation>, Vec<Option<Span>>) {
        let spans = self.constraints.iter().map(|c| c.as_ref().and_then(SpanConstraint::span)).collect();
        (self.answers, spans)
    }
}

/// Where a stop text stands in an answer. White space before the answer's first word stops nothing.
fn stop_at(text: &str, stop: &str) -> Option<usize> {
    let lead = text.len() - text.trim_start().len();
    text[lead..].find(stop).map(|at| lead + at)
}
