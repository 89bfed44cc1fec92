//! The frozen language model of a reader: one pass over the windows of a question.

use crate::error::Result;
use crate::pack::Window;
use crate::read::decode::{Decoding, Generation};
use crate::read::lm::{FrozenLm, OnText, Prompt};
use crate::read::prefix::Prefix;
use crate::read::prompt_generator::{PromptGenerator, reading_input};
use crate::read::reader::ReaderSettings;
use crate::read::second_pass::Second;
use crate::read::spans::{Span, SpanConstraint};
use crate::read::template::Template;

/// A frozen language model with what stands before every window, and perhaps a generator of that.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) lm: FrozenLm,
    pub(super) prefix: Prefix,
    pub(super) generator: Option<PromptGenerator>,
    pub(super) second: Second,
}

/// What was said to each window.
pub(super) struct Said {
    pub(super) generations: Vec<Generation>,
    pub(super) spans: Vec<Option<Span>>,
    pub(super) prompt_tokens: usize,
    pub(super) cached_tokens: usize,
    pub(super) answer_tokens: usize,
}

impl Frozen {
    /// What stands before the windows of a question.
    pub(super) fn prefix_for(&mut self, tail: &[u32], windows: &[Window]) -> Result<Prefix> {
        let Some(generator) = &mut self.generator else { return Ok(self.prefix.clone()) };
        let input = generator_input(&self.lm, tail, windows)?;
        let prompt = generator.prompt(&input, &mut self.lm)?;
        let behind = match &self.prefix {
            Prefix::Learned(behind) => Some(behind.clone()),
            Prefix::Words(_) | Prefix::Written { .. } => None,
        };
        Ok(Prefix::Written { behind, prompt })
    }

    pub(super) fn read(
        &mut self,
        question: &str,
        windows: &[Window],
        template: &Template,
        settings: &ReaderSettings,
        on_text: OnText,
    ) -> Result<Said> {
        let tail = template.tail(question, self.lm.tokenizer())?;
        let prefix = self.prefix_for(&tail, windows)?;
        let prompts: Vec<Prompt> = windows.iter().map(|window| prompt(&prefix, window, &tail)).collect();
        let vocabulary = settings.grounded.then(|| self.lm.vocabulary());
        let constraints = vocabulary.as_ref().map(|vocabulary| {
            windows.iter().map(|window| SpanConstraint::new(vocabulary, texts(window), template.lead)).collect()
        });
        let decoding = Decoding { stop: template.stop.clone(), ..settings.decoding.clone() };
        let cached = self.lm.cache_statistics().hit_tokens;
        let (generations, spans) = self.lm.generate(&prompts, &decoding, constraints, on_text)?;
        Ok(Said {
            spans,
            prompt_tokens: prompts.iter().map(Prompt::positions).sum(),
            cached_tokens: (self.lm.cache_statistics().hit_tokens - cached) as usize,
            answer_tokens: generations.iter().map(|answer| answer.tokens.len()).sum(),
            generations,
        })
    }
}

/// The prompt of a window.
pub(super) fn prompt(prefix: &Prefix, window: &Window, tail: &[u32]) -> Prompt {
    Prompt { prefix: prefix.clone(), passages: tokens(window).collect(), tail: tail.to_vec() }
}

/// The tokens of a window's passages.
fn tokens(window: &Window) -> impl Iterator<Item = u32> + '_ {
    window.iter().flat_map(|packed| packed.ids.iter().copied())
}

/// The texts of a window's passages.
pub(super) fn texts(window: &Window) -> Vec<&str> {
    window.iter().map(|packed| packed.passage.text.as_str()).collect()
}

/// What a generator is told of a question and its windows.
pub(super) fn generator_input(lm: &FrozenLm, tail: &[u32], windows: &[Window]) -> Result<String> {
    let passages: Vec<u32> = windows.first().into_iter().flat_map(tokens).collect();
    Ok(reading_input(&lm.tokenizer().decode(tail)?, &lm.tokenizer().decode(&passages)?))
}
