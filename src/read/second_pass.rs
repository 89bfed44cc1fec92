//! A second pass over the windows of a question ([`super::recursion`]) by the frozen language model.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::Result;
use crate::pack::Window;
use crate::read::frozen::{Frozen, generator_input, of_window, texts};
use crate::read::ground;
use crate::read::prefix::Prefix;
use crate::read::prompt_generator::PromptGenerator;
use crate::read::reader::{ReaderSettings, Reading};
use crate::read::reading_prompt::ReadingPrompt;
use crate::read::recursion::{self, Candidate, Candidates, Recursion};
use crate::read::soft_prompt::SoftPrompt;
use crate::read::template::Template;

/// What stands before the windows in a second pass.
#[derive(Debug)]
pub(super) enum Second {
    /// What stood before them in the first.
    Same,
    /// Another learned prompt.
    Learned(Arc<SoftPrompt>, Template),
    /// Vectors that a connector writes for the question and its best passage, perhaps behind a learned prompt.
    Written(Box<PromptGenerator>, Option<Arc<SoftPrompt>>, Template),
}

/// What a second pass took.
#[derive(Default)]
pub(super) struct Asked {
    /// Tokens of each candidate and its end.
    pub(super) lengths: HashMap<String, usize>,
    pub(super) prompt_tokens: usize,
    pub(super) cached_tokens: usize,
    pub(super) answer_tokens: usize,
}

impl Second {
    /// Positions that it takes, beside what the first pass takes.
    pub(super) fn positions(&self) -> usize {
        match self {
            Self::Same => 0,
            Self::Learned(prompt, _) => prompt.positions(),
            Self::Written(generator, behind, _) => {
                behind.as_ref().map_or(0, |behind| behind.positions()) + generator.description().shape.positions
            }
        }
    }

    /// The template of the prompts of the second pass, where the first one's is `first`.
    fn template<'a>(&'a self, how: Recursion, first: &'a Template) -> &'a Template {
        match self {
            Self::Learned(_, own) => own,
            Self::Written(_, _, own) if how != Recursion::Textual => own,
            Self::Written(..) | Self::Same => first,
        }
    }
}

impl Frozen {
    /// What stands before the windows of a question in a second pass, and the rest of the prompt; `None` when both are those of
    /// the first.
    fn second_prefix(
        &mut self,
        question: &str,
        windows: &[Window],
        how: Recursion,
        template: &Template,
    ) -> Result<Option<(Prefix, Vec<u32>)>> {
        let tail = self.second.template(how, template).tail(question, self.lm.tokenizer())?;
        match &mut self.second {
            Second::Learned(prompt, _) => Ok(Some((Prefix::Learned(prompt.clone()), tail))),
            Second::Written(connector, behind, _) if how != Recursion::Textual => {
                let input = generator_input(&self.lm, &tail, windows)?;
                let prompt = connector.prompt(&input, &mut self.lm)?;
                Ok(Some((Prefix::Written { behind: behind.clone(), prompt }, tail)))
            }
            Second::Same | Second::Written(..) => Ok(None),
        }
    }

    /// All candidates of a first pass, the best first.
    pub(super) fn second_pass(
        &mut self,
        question: &str,
        windows: &[Window],
        first: &Reading,
        how: Recursion,
        prompt: &mut ReadingPrompt,
        settings: &ReaderSettings,
    ) -> Result<(Vec<Candidate>, Asked)> {
        let (said, mut asked, mut candidates) = (&first.windows, Asked::default(), Candidates::default());
        let cached = self.lm.cache_statistics().hit_tokens;
        let worth = |at: &usize| said.get(*at).map_or(f32::MIN, |said| said.worth(settings.score_weight));
        let mut order: Vec<usize> = (0..windows.len()).collect();
        order.sort_by(|a, b| worth(b).total_cmp(&worth(a)));
        // The first pass's answer is the first candidate, so that of equal ones it stays.
        candidates.add(&first.answer, false);
        // A grounded answer is a stretch of a passage, and so is a grounded candidate.
        let kept = |at: usize, answer: &str| -> Option<String> {
            if !settings.grounded {
                return Some(answer.to_owned());
            }
            let texts = texts(windows.get(at)?);
            let span = *ground::find(answer, &texts).first()?;
            texts.get(span.passage)?.get(span.start..span.end).map(str::to_owned)
        };
        let answers = order.iter().filter_map(|&at| kept(at, &said.get(at)?.answer));
        answers.for_each(|answer| candidates.add(&answer, false));
        let tail = prompt.template.tail(question, self.lm.tokenizer())?;
        let prefix = prompt.prefix_for(&mut self.lm, &tail, windows)?;
        let sampled = if settings.sampling.answers == 0 { 0 } else { settings.sampling.windows };
        let (decoding, template) = (prompt.decoding(&settings.decoding), &prompt.template);
        for &at in order.iter().take(sampled) {
            let prompt = of_window(&prefix, &windows[at], &tail);
            let kept = |answer: &str| kept(at, answer);
            asked.prompt_tokens += settings.sampling.answers * prompt.positions();
            asked.answer_tokens +=
                recursion::sample(&mut self.lm, &prompt, settings.sampling, &decoding, &mut candidates, kept)?;
        }
        let (prefix, tail) = self.second_prefix(question, windows, how, template)?.unwrap_or((prefix, tail));
        let template = self.second.template(how, template);
        let end = self.lm.shape().eos.first().copied();
        let mut continuations = Vec::new();
        for answer in candidates.answers() {
            let mut tokens = template.answer(answer, end, self.lm.tokenizer())?;
            // What was cut at the longest answer has no end of its own.
            tokens.truncate(settings.decoding.max_new_tokens);
            asked.lengths.insert(answer.to_owned(), tokens.len());
            continuations.push(tokens);
        }
        let mut scores = Vec::with_capacity(windows.len());
        for (window, said) in windows.iter().zip(said) {
            let prompt = of_window(&prefix, window, &tail);
            asked.prompt_tokens += prompt.positions();
            scores.push((self.lm.score(&prompt, &continuations)?, settings.score_weight * said.rank_score));
        }
        asked.cached_tokens = (self.lm.cache_statistics().hit_tokens - cached) as usize;
        Ok((candidates.ranked(scores), asked))
    }
}
