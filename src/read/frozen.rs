//! The frozen language model of a reader: one pass over the windows of a question.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::pack::Window;
use crate::read::choose::{Choice, Extent, deciding};
use crate::read::decode::{Decoding, Generation};
use crate::read::lm::{FrozenLm, OnText, Prompt};
use crate::read::prefix::Prefix;
use crate::read::prompt_generator::reading_input;
use crate::read::reader::{ReaderSettings, rank_score, window_answer};
use crate::read::reading_prompt::ReadingPrompt;
use crate::read::second_pass::Second;
use crate::read::spans::{Span, SpanConstraint, Vocabulary};
use crate::runtime::device::Device;

/// A frozen language model with what stands before every window in a second pass.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) lm: FrozenLm,
    pub(super) second: Second,
}

/// What was said to the windows that were read.
#[derive(Default)]
pub(super) struct Said {
    pub(super) generations: Vec<Generation>,
    pub(super) spans: Vec<Option<Span>>,
    pub(super) prompt_tokens: usize,
    pub(super) cached_tokens: usize,
    pub(super) answer_tokens: usize,
}

impl Frozen {
    /// Read windows of a question: all, or the best first, and then those that could give a better answer.
    pub(super) fn read(
        &mut self,
        question: &str,
        windows: &[Window],
        extent: Extent,
        prompt: &mut ReadingPrompt,
        settings: &ReaderSettings,
        on_text: OnText,
    ) -> Result<Said> {
        let tail = prompt.template.tail(question, self.lm.tokenizer())?;
        let asked = Asked {
            prefix: prompt.prefix_for(&mut self.lm, &tail, windows)?,
            tail: &tail,
            windows,
            decoding: prompt.decoding(&settings.decoding),
            vocabulary: settings.grounded.then(|| self.lm.vocabulary()),
            lead: prompt.template.lead,
        };
        // Samples are drawn by row of a batch; and a GPU reads five windows in little more than the time of one.
        let in_steps = extent == Extent::Deciding
            && settings.choice == Choice::Best
            && settings.decoding.temperature <= 0.0
            && self.lm.device() == Device::Cpu;
        let cached = self.lm.cache_statistics().hit_tokens;
        let mut said = Said::default();
        if in_steps {
            self.read_some(&asked, 0..1, &mut said, on_text)?;
            let rank_scores: Vec<f32> = windows.iter().map(rank_score).collect();
            let first =
                said.generations.first().zip(windows.first()).map(|(answer, window)| window_answer(answer, window));
            let deciding = first.map_or(1, |first| deciding(&first, &rank_scores, settings.score_weight));
            self.read_some(&asked, 1..deciding, &mut said, on_text)?;
        } else {
            self.read_some(&asked, 0..windows.len(), &mut said, on_text)?;
        }
        said.cached_tokens = (self.lm.cache_statistics().hit_tokens - cached) as usize;
        Ok(said)
    }

    /// Read some of the windows as a batch.
    fn read_some(&mut self, asked: &Asked, some: Range<usize>, said: &mut Said, on_text: OnText) -> Result<()> {
        let (first, windows) = (some.start, asked.windows.get(some).unwrap_or_default());
        if windows.is_empty() {
            return Ok(());
        }
        let prompts: Vec<Prompt> = windows.iter().map(|window| of_window(&asked.prefix, window, asked.tail)).collect();
        let constraints = asked.vocabulary.as_ref().map(|vocabulary| {
            windows.iter().map(|window| SpanConstraint::new(vocabulary, texts(window), asked.lead)).collect()
        });
        let mut tell = |row: usize, text: &str| on_text(first + row, text);
        let (generations, spans) = self.lm.generate(&prompts, &asked.decoding, constraints, &mut tell)?;
        said.prompt_tokens += prompts.iter().map(Prompt::positions).sum::<usize>();
        said.answer_tokens += generations.iter().map(|answer| answer.tokens.len()).sum::<usize>();
        said.generations.extend(generations);
        said.spans.extend(spans);
        Ok(())
    }
}

/// What the windows of a question are read with.
struct Asked<'a> {
    prefix: Prefix,
    tail: &'a [u32],
    windows: &'a [Window],
    decoding: Decoding,
    /// For answers that are held to spans.
    vocabulary: Option<Arc<Vocabulary>>,
    lead: bool,
}

/// The prompt of a window.
pub(super) fn of_window(prefix: &Prefix, window: &Window, tail: &[u32]) -> Prompt {
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
