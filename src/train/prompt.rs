//! `train prompt`: a soft prompt through the frozen language model, by gradient descent on windows.
//!
//! Prompt tuning (Lester et al., 2021) for [`PromptKind::Embeddings`]; prefix tuning (Li and Liang, 2021) without a
//! reparametrisation, in every layer (Liu et al., 2022), for [`PromptKind::States`]. Both begin as what the model
//! makes of real words: a prompt that begins as noise needs many times the examples.

use candle_core::{Tensor, Var};

use crate::error::{Error, Result};
use crate::progress::check_interrupt;
use crate::read::soft_prompt::PromptKind;
use crate::train::llama::{Decoder, failed};
use crate::train::ops::Packed;
use crate::train::targets::{cross_entropy, likeliest};
use crate::train::trainer::Trainable;
use crate::train::windows::{Sample, Windows};

/// A soft prompt with the windows it learns from.
pub struct PromptModule<'a> {
    lm: &'a Decoder,
    kind: PromptKind,
    variables: Vec<Var>,
    train: &'a Windows,
    dev: &'a Windows,
    /// Windows to measure on, at most.
    dev_limit: usize,
    tokens_per_pass: usize,
}

impl<'a> PromptModule<'a> {
    /// A prompt that begins as `words`, one position a token.
    pub fn new(
        lm: &'a Decoder,
        kind: PromptKind,
        words: &[u32],
        (train, dev): (&'a Windows, &'a Windows),
        dev_limit: usize,
        tokens_per_pass: usize,
    ) -> Result<Self> {
        let initial = match kind {
            PromptKind::Embeddings => vec![lm.embed(words)?],
            PromptKind::States => lm.states(words)?,
        };
        let variables = initial.iter().map(Var::from_tensor).collect::<candle_core::Result<_>>().map_err(failed)?;
        Ok(Self { lm, kind, variables, train, dev, dev_limit, tokens_per_pass })
    }

    /// Its numbers in the order that [`PromptKind`] gives.
    pub fn values(&self) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        for variable in &self.variables {
            values.extend(variable.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(failed)?);
        }
        Ok(values)
    }

    /// Put numbers in place: those of a prompt to go on from.
    pub fn set_values(&self, values: &[f32]) -> Result<()> {
        let mut rest = values;
        for variable in &self.variables {
            let (own, after) = rest
                .split_at_checked(variable.elem_count())
                .ok_or_else(|| Error::Internal { doing: "setting a prompt", message: "it has another size".into() })?;
            let tensor = Tensor::from_slice(own, variable.shape(), variable.device()).map_err(failed)?;
            variable.set(&tensor).map_err(failed)?;
            rest = after;
        }
        Ok(())
    }

    /// Trainable numbers.
    pub fn parameters(&self) -> usize {
        self.variables.iter().map(|v| v.elem_count()).sum()
    }

    fn positions(&self) -> usize {
        match self.kind {
            PromptKind::Embeddings => self.variables.first().and_then(|v| v.dim(0).ok()).unwrap_or(0),
            PromptKind::States => 0,
        }
    }

    /// Logits `[targets, vocab]` for every target token of the samples' questions one behind another, and these
    /// targets.
    fn logits(&self, samples: &[&Sample]) -> Result<(Tensor, Vec<u32>)> {
        let positions = self.positions();
        let (mut tokens, mut packed, mut rows, mut targets) = (Vec::new(), Packed::default(), Vec::new(), Vec::new());
        for sample in samples {
            let passages = packed.push(positions + sample.passages.len(), 0..0);
            tokens.push(sample.passages.clone());
            for asked in &sample.asked {
                let input = asked.input();
                let own = packed.push(input.len(), passages.clone());
                let first = own.start + asked.tail.len() - 1;
                rows.extend((first..first + asked.target.len()).map(|row| row as u32));
                targets.extend_from_slice(&asked.target);
                if let Some(tokens) = tokens.last_mut() {
                    tokens.extend(input);
                }
            }
        }
        let embeds = match self.kind {
            PromptKind::States => self.lm.embed(&tokens.concat())?,
            PromptKind::Embeddings => {
                let mut parts = Vec::new();
                for tokens in &tokens {
                    parts.extend(self.variables.first().map(|v| v.as_tensor().clone()));
                    parts.push(self.lm.embed(tokens)?);
                }
                Tensor::cat(&parts, 0).map_err(failed)?
            }
        };
        let states: Vec<Tensor> = match self.kind {
            PromptKind::States => self.variables.iter().map(|v| v.as_tensor().clone()).collect(),
            PromptKind::Embeddings => Vec::new(),
        };
        let prefix = (!states.is_empty()).then_some(states.as_slice());
        let hidden = self.lm.forward(&embeds, &packed, prefix, &rows)?;
        Ok((self.lm.logits(&hidden)?, targets))
    }

    fn length(&self, sample: &Sample) -> usize {
        self.positions() + sample.len()
    }
}

impl Trainable for PromptModule<'_> {
    fn examples(&self) -> usize {
        self.train.len()
    }

    fn tokens(&self, example: usize) -> usize {
        self.train.sample(example).map_or(0, |sample| self.length(sample))
    }

    /// Cross-entropy of the target tokens, each question's own mean, averaged over a window's questions and then over
    /// windows: long answers do not outweigh short ones, an answer that is nothing counts as one, and neither does a
    /// passage with many questions.
    fn loss(&self, batch: &[usize], _: u64) -> Result<Tensor> {
        let samples = batch.iter().map(|&i| self.train.sample(i)).collect::<Result<Vec<_>>>()?;
        let (logits, targets) = self.logits(&samples)?;
        let weights: Vec<f32> = samples
            .iter()
            .flat_map(|s| s.asked.iter().map(move |a| (a.target.len(), s.asked.len())))
            .flat_map(|(tokens, asked)| std::iter::repeat_n(1.0 / (tokens * asked * samples.len()) as f32, tokens))
            .collect();
        cross_entropy(&logits, &targets, &weights).map_err(failed)
    }

    fn variables(&self) -> Vec<(String, Var)> {
        self.variables.iter().enumerate().map(|(i, v)| (format!("prompt.{i}"), v.clone())).collect()
    }

    /// Share of held-out questions to which greedy decoding would write exactly the target: at every target token, given
    /// those before it, the target is the likeliest token.
    fn evaluate(&mut self) -> Result<f64> {
        let count = self.dev.len().min(self.dev_limit);
        let (mut right, mut all, mut begin) = (0, 0, 0);
        while begin < count {
            check_interrupt(|| "the last checkpoint is kept; go on with --resume".to_owned())?;
            let (mut samples, mut tokens) = (Vec::new(), 0);
            while begin < count && (samples.is_empty() || tokens < self.tokens_per_pass) {
                let sample = self.dev.sample(begin)?;
                tokens += self.length(sample);
                samples.push(sample);
                begin += 1;
            }
            let (logits, targets) = self.logits(&samples)?;
            let best = likeliest(&logits).map_err(failed)?;
            let mut at = 0;
            for asked in samples.iter().flat_map(|s| &s.asked) {
                let end = at + asked.target.len();
                right += usize::from(best.get(at..end) == targets.get(at..end));
                all += 1;
                at = end;
            }
        }
        Ok(right as f64 / all.max(1) as f64)
    }

    fn metric(&self) -> &'static str {
        "exact match"
    }
}
