//! `train id-prompt`: prompts for many tasks at once through the frozen language model, by gradient descent on examples.
//!
//! What is learned is a generator that writes a prompt for each input, or, to compare with, one soft prompt for all of them
//! (Lester et al., 2021). Either stands before the input, and neither is told which task it is.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::eval::task_set::{TaskExample, TaskSet, draw, input_tokens, target_tokens};
use crate::index::Index;
use crate::progress::{Progress, check_interrupt};
use crate::read::prompt_generator::{encoder_tokens, reading_input};
use crate::read::soft_prompt::{PromptKind, SoftPrompt};
use crate::runtime::tokenizer::{Cut, TextTokenizer};
use crate::train::generator::Generator;
use crate::train::llama::{Decoder, failed};
use crate::train::ops::Packed;
use crate::train::targets::{cross_entropy, likeliest};
use crate::train::trainer::Trainable;
use crate::train::windows::{Asked, Windows};
use crate::types::PassageId;

/// What writes the prompts.
#[derive(Debug)]
pub enum Writer {
    /// A prompt for each input.
    Generated(Box<Generator>),
    /// The same for all: `[positions, hidden]`.
    Shared(Var),
}

/// An example in tokens.
#[derive(Debug, Clone)]
pub struct TaskSample {
    /// The task, by its place among the names.
    task: usize,
    /// Tokens of the input for the language model.
    input: Vec<u32>,
    /// Tokens of what should be said, and of the line end that closes it.
    target: Vec<u32>,
    /// Tokens of the input for the encoder.
    outer: Cut,
}

impl TaskSample {
    fn len(&self) -> usize {
        self.input.len() + self.target.len().saturating_sub(1)
    }
}

/// How tasks become examples.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct MixSettings {
    /// Most examples of one task in a round: tasks are mixed in proportion to their examples, up to so many (Raffel et al.,
    /// 2020, examples-proportional mixing).
    pub cap: usize,
    /// Examples of each task that are held out to measure on.
    pub dev: usize,
    /// Longest input in tokens of the language model; of a longer one the beginning is lost.
    pub tokens: usize,
    /// Tokens of an input that the encoder reads.
    pub encoder_tokens: usize,
    /// Decides every draw.
    pub seed: u64,
}

/// What became of the examples.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Mix {
    /// Examples to train on, by task.
    pub train: BTreeMap<String, usize>,
    /// Inputs that were cut.
    pub cut: usize,
}

/// How inputs become tokens for whoever's states a generator looks at.
#[derive(Debug, Clone, Copy)]
pub struct OuterTokens<'a> {
    /// The encoder's tokenizer, or the language model's.
    pub tokenizer: &'a TextTokenizer,
    /// Whether it is a connector, whose language model gets no special tokens.
    pub itself: bool,
}

impl OuterTokens<'_> {
    fn of(self, input: &str, most: usize) -> Result<Cut> {
        let ids = encoder_tokens(self.tokenizer, input, most, !self.itself)?;
        Ok(Cut { types: vec![0; ids.len()], ids, left_out: 0 })
    }
}

/// Samples to train on and to measure on.
pub fn samples(
    set: &TaskSet,
    settings: &MixSettings,
    lm: &TextTokenizer,
    outer: OuterTokens,
) -> Result<(Vec<TaskSample>, Vec<TaskSample>, Mix)> {
    let (mut train, mut dev, mut mix) = (Vec::new(), Vec::new(), Mix::default());
    for (number, (name, task)) in set.tasks.iter().enumerate() {
        // Small tasks are for training too: no more than a fifth of one is held out.
        let held = settings.dev.min(task.train.len() / 5);
        let drawn = draw(&task.train, held + settings.cap, settings.seed);
        let mut make = |example: &TaskExample| -> Result<TaskSample> {
            let (input, lost) = input_tokens(lm, &example.input, settings.tokens)?;
            mix.cut += usize::from(lost > 0);
            let outer = outer.of(&example.input, settings.encoder_tokens)?;
            Ok(TaskSample { task: number, input, target: target_tokens(lm, &example.target)?, outer })
        };
        let (held, rest) = drawn.split_at(held);
        dev.extend(held.iter().map(|e| make(e)).collect::<Result<Vec<_>>>()?);
        let rest = rest.iter().map(|e| make(e)).collect::<Result<Vec<_>>>()?;
        if !rest.is_empty() {
            mix.train.insert(name.clone(), rest.len());
        }
        train.extend(rest);
    }
    Ok((train, dev, mix))
}

/// Up to `count` samples that `make` gives for places in an order, as many as it has for each.
fn gather(
    count: usize,
    order: Vec<usize>,
    (stage, unit): (&str, &'static str),
    progress: &dyn Progress,
    mut make: impl FnMut(usize) -> Result<Vec<TaskSample>>,
) -> Result<Vec<TaskSample>> {
    let mut samples = Vec::new();
    progress.start(stage, Some(count as u64), unit);
    for place in order {
        if samples.len() >= count {
            break;
        }
        check_interrupt(|| "nothing was trained".to_owned())?;
        let before = samples.len();
        samples.extend(make(place)?);
        samples.truncate(count);
        progress.advance((samples.len() - before) as u64);
    }
    progress.finish();
    Ok(samples)
}

/// Samples of a reader: windows as [`Windows`] makes them, `count` of them in an order that the seed decides, each of their
/// questions a sample of its own, because each gets a prompt of its own.
pub fn window_samples(
    windows: &Windows,
    count: usize,
    settings: &MixSettings,
    lm: &TextTokenizer,
    outer: OuterTokens,
    progress: &dyn Progress,
) -> Result<Vec<TaskSample>> {
    let mut order: Vec<usize> = (0..windows.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(settings.seed));
    gather(count, order, ("making windows", "questions"), progress, |i| {
        let window = windows.sample(i)?;
        let passages = lm.decode(&window.passages)?;
        let sample = |asked: &Asked| {
            let told = reading_input(&lm.decode(&asked.tail)?, &passages);
            let outer = outer.of(&told, settings.encoder_tokens)?;
            let input = [window.passages.as_slice(), &asked.tail].concat();
            Ok(TaskSample { task: 0, input, target: asked.target.clone(), outer })
        };
        window.asked.iter().map(sample).collect()
    })
}

/// Tokens of a passage's continuation that are to be foretold.
const CONTINUATION: usize = 48;
/// Tokens that an input and a continuation have at least.
const LEAST: usize = 16;

/// Samples of language modelling: passages of an index, cut somewhere, and what follows. `count` of them, drawn by the seed.
pub fn corpus_samples(
    index: &Index,
    count: usize,
    settings: &MixSettings,
    lm: &TextTokenizer,
    outer: OuterTokens,
    progress: &dyn Progress,
) -> Result<Vec<TaskSample>> {
    let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
    let mut order: Vec<usize> = index.passages().map(PassageId::row).collect();
    order.shuffle(&mut random);
    gather(count, order, ("cutting passages", "passages"), progress, |row| {
        let tokens = lm.encode(&index.passage(PassageId(row as u32))?.titled_text(), false)?;
        if tokens.len() < 2 * LEAST {
            return Ok(Vec::new());
        }
        let cut = random.random_range(LEAST..=(tokens.len() - LEAST).min(settings.tokens.max(LEAST)));
        let (input, rest) = tokens.split_at(cut);
        let outer = outer.of(&lm.decode(input)?, settings.encoder_tokens)?;
        let target = rest[..rest.len().min(CONTINUATION)].to_vec();
        Ok(vec![TaskSample { task: 0, input: input.to_vec(), target, outer }])
    })
}

/// Prompts with the examples they learn from.
pub struct TaskModule<'a> {
    lm: &'a Decoder,
    /// States of a learned prompt that stands before what is written, layer by layer; none stands there without.
    behind: Vec<Tensor>,
    /// Measure tokens, and not whole targets.
    by_token: bool,
    writer: Writer,
    positions: usize,
    train: &'a [TaskSample],
    dev: &'a [TaskSample],
    tokens_per_pass: usize,
}

impl<'a> TaskModule<'a> {
    /// Learn `writer`, which writes so many `positions`.
    pub fn new(
        lm: &'a Decoder,
        (writer, positions): (Writer, usize),
        (train, dev): (&'a [TaskSample], &'a [TaskSample]),
        tokens_per_pass: usize,
    ) -> Self {
        Self { lm, behind: Vec::new(), by_token: false, writer, positions, train, dev, tokens_per_pass }
    }

    /// Let every prompt go on from a learned one of states, which stays as it is.
    ///
    /// # Errors
    /// [`Error::Request`] when its numbers are no states.
    pub fn behind(mut self, prompt: &SoftPrompt) -> Result<Self> {
        if prompt.description.kind != PromptKind::States {
            let hint = "name one that `nunatak train prompt --kind states` wrote";
            return Err(Error::request("a prompt can be written behind a prompt of states alone", hint));
        }
        let shape = [2, prompt.positions(), prompt.description.target.kv_width];
        let layers = prompt.values().chunks_exact(shape.iter().product::<usize>().max(1));
        let tensors = layers.map(|layer| Tensor::from_slice(layer, &shape[..], self.lm.device()));
        self.behind = tensors.collect::<candle_core::Result<_>>().map_err(failed)?;
        Ok(self)
    }

    /// Measure the share of tokens that are foretold.
    pub fn by_token(self) -> Self {
        Self { by_token: true, ..self }
    }

    /// What writes the prompts.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Trainable numbers.
    pub fn parameters(&self) -> usize {
        self.variables().iter().map(|(_, var)| var.elem_count()).sum()
    }

    /// Logits `[targets, vocab]` of every sample's target tokens, one sample behind another, and these targets.
    fn logits(&self, samples: &[&TaskSample]) -> Result<(Tensor, Vec<u32>)> {
        let prompts: Vec<Tensor> = match &self.writer {
            Writer::Generated(generator) => {
                let all = generator.prompts(&samples.iter().map(|s| &s.outer).collect::<Vec<_>>(), self.lm)?;
                let of = |i: usize| all.narrow(0, i * self.positions, self.positions);
                (0..samples.len()).map(of).collect::<candle_core::Result<_>>().map_err(failed)?
            }
            Writer::Shared(prompt) => vec![prompt.as_tensor().clone(); samples.len()],
        };
        let (mut parts, mut packed, mut rows, mut targets) = (Vec::new(), Packed::default(), Vec::new(), Vec::new());
        for (prompt, sample) in prompts.into_iter().zip(samples) {
            parts.push(prompt);
            let shown = &sample.target[..sample.target.len().saturating_sub(1)];
            parts.push(self.lm.embed(&[&sample.input, shown].concat())?);
            let own = packed.push(self.positions + sample.len(), 0..0);
            let first = own.start + self.positions + sample.input.len() - 1;
            rows.extend((first..first + sample.target.len()).map(|row| row as u32));
            targets.extend_from_slice(&sample.target);
        }
        let embeds = Tensor::cat(&parts, 0).map_err(failed)?;
        let behind = (!self.behind.is_empty()).then_some(self.behind.as_slice());
        let hidden = self.lm.forward(&embeds, &packed, behind, &rows)?;
        Ok((self.lm.logits(&hidden)?, targets))
    }

    fn length(&self, sample: &TaskSample) -> usize {
        self.positions + sample.len()
    }
}

impl Trainable for TaskModule<'_> {
    fn examples(&self) -> usize {
        self.train.len()
    }

    fn tokens(&self, example: usize) -> usize {
        self.train.get(example).map_or(0, |sample| self.length(sample))
    }

    /// Cross-entropy of the target tokens, each example's own mean, averaged over examples: long targets do not outweigh
    /// short ones.
    fn loss(&self, batch: &[usize], _: u64) -> Result<Tensor> {
        let samples: Vec<&TaskSample> = batch.iter().filter_map(|&i| self.train.get(i)).collect();
        let (logits, targets) = self.logits(&samples)?;
        let weights: Vec<f32> = samples
            .iter()
            .flat_map(|s| std::iter::repeat_n(1.0 / (s.target.len() * samples.len()) as f32, s.target.len()))
            .collect();
        cross_entropy(&logits, &targets, &weights).map_err(failed)
    }

    fn variables(&self) -> Vec<(String, Var)> {
        match &self.writer {
            Writer::Generated(generator) => generator.variables(),
            Writer::Shared(prompt) => vec![("prompt".to_owned(), prompt.clone())],
        }
    }

    /// Share of held-out examples to which greedy decoding would write exactly the target, averaged over tasks; for language
    /// modelling the share of tokens.
    fn evaluate(&mut self) -> Result<f64> {
        let mut of_task: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
        let mut begin = 0;
        while begin < self.dev.len() {
            check_interrupt(|| "the last checkpoint is kept; go on with --resume".to_owned())?;
            let (mut samples, mut tokens) = (Vec::new(), 0);
            while let Some(sample) = self.dev.get(begin).filter(|_| samples.is_empty() || tokens < self.tokens_per_pass)
            {
                tokens += self.length(sample);
                samples.push(sample);
                begin += 1;
            }
            let (logits, targets) = self.logits(&samples)?;
            let best = likeliest(&logits).map_err(failed)?;
            let mut at = 0;
            for sample in samples {
                let end = at + sample.target.len();
                let (right, all) = of_task.entry(sample.task).or_default();
                if self.by_token {
                    let pairs = best.iter().zip(&targets).take(end).skip(at);
                    *right += pairs.filter(|(best, target)| best == target).count();
                    *all += sample.target.len();
                } else {
                    *right += usize::from(best.get(at..end) == targets.get(at..end));
                    *all += 1;
                }
                at = end;
            }
        }
        let shares = of_task.values().map(|(right, all)| *right as f64 / *all as f64).sum::<f64>();
        Ok(shares / of_task.len().max(1) as f64)
    }

    fn metric(&self) -> &'static str {
        if self.by_token { "token accuracy" } else { "exact match" }
    }
}
