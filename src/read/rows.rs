//! The answers that the language model is writing, side by side: their next tokens chosen, their ends found.

use crate::error::{Error, Result};
use crate::read::decode::{Decoding, Finish, Generation, Next, Sampler, log_probability, pick_within};
use crate::read::lm::OnText;
use crate::read::spans::{Span, SpanConstraint};
use crate::runtime::tokenizer::TextTokenizer;

/// The answers under way, one a prompt.
pub(super) struct Rows<'a> {
    decoding: &'a Decoding,
    ends: Vec<u32>,
    constraints: Vec<Option<SpanConstraint<'a>>>,
    samplers: Vec<Sampler>,
    answers: Vec<Generation>,
    running: Vec<bool>,
}

impl<'a> Rows<'a> {
    /// None of which has a token yet.
    pub(super) fn new(
        count: usize,
        decoding: &'a Decoding,
        constraints: Option<Vec<SpanConstraint<'a>>>,
        ends: Vec<u32>,
    ) -> Self {
        let unfinished = Generation {
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            nothing: None,
            finish: Finish::Length,
        };
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

    /// How many.
    pub(super) fn count(&self) -> usize {
        self.answers.len()
    }

    /// Whether one of them is not complete.
    pub(super) fn running(&self) -> bool {
        self.running.contains(&true)
    }

    /// The newest token of each; of one that is complete, its last.
    pub(super) fn last_tokens(&self) -> Vec<u32> {
        self.answers.iter().map(|a| a.tokens.last().copied().unwrap_or_default()).collect()
    }

    /// Choose a row's next token from the logits before it.
    pub(super) fn step(
        &mut self,
        row: usize,
        logits: &[f32],
        tokenizer: &TextTokenizer,
        on_text: OnText,
    ) -> Result<()> {
        if !self.running[row] {
            return Ok(());
        }
        let first = self.answers[row].tokens.is_empty();
        let mut without = Vec::new();
        if first && let Some(nothing) = self.decoding.nothing {
            self.answers[row].nothing = Some(log_probability(logits, nothing as usize));
            // The answer is wanted whatever the model thinks of its chances: who asked decides by the probability.
            without = logits.to_vec();
            if let Some(logit) = without.get_mut(nothing as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let choosable = if without.is_empty() { logits } else { &without };
        let next = match &self.constraints[row] {
            Some(constraint) => pick_within(constraint, choosable, &self.ends),
            None => {
                let token = self.samplers[row].pick(choosable);
                if self.ends.contains(&token) { Next::End(token) } else { Next::Token(token) }
            }
        };
        let (Next::Token(token) | Next::End(token)) = next;
        let answer = &mut self.answers[row];
        let logprob = log_probability(logits, token as usize);
        if logprob.is_nan() {
            // Nothing could be chosen, and going on would look like an answer.
            return Err(Error::Internal {
                doing: "reading with the language model",
                message: "it gave logits that are no numbers (NaN)".to_owned(),
            });
        }
        answer.logprobs.push(logprob);
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
        // A character of several tokens is shown when it is whole.
        on_text(row, answer.text.trim_end_matches('\u{fffd}'));
        if answer.tokens.len() >= self.decoding.max_new_tokens {
            self.running[row] = false;
        }
        Ok(())
    }

    /// What they became, and where in the passages those that were held to a span stand.
    pub(super) fn finish(self) -> (Vec<Generation>, Vec<Option<Span>>) {
        let spans = self.constraints.iter().map(|c| c.as_ref().and_then(SpanConstraint::span)).collect();
        (self.answers, spans)
    }
}

/// Where a stop text stands in an answer. White space before the answer's first word stops nothing.
fn stop_at(text: &str, stop: &str) -> Option<usize> {
    let lead = text.len() - text.trim_start().len();
    text[lead..].find(stop).map(|at| lead + at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::tokenizer::TOKENIZER;

    #[test]
    fn a_character_of_two_tokens_is_shown_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKENIZER);
        // The two bytes of `é`.
        let file = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": {"\u00c3": 0, "\u00a9": 1}, "merges": []}}"#;
        std::fs::write(&path, file).unwrap();
        let tokenizer = TextTokenizer::from_file(&path, "it").unwrap();
        let decoding = Decoding::default();
        let (mut rows, mut heard) = (Rows::new(1, &decoding, None, Vec::new()), Vec::new());
        for logits in [[1.0, 0.0], [0.0, 1.0]] {
            rows.step(0, &logits, &tokenizer, &mut |_, text| heard.push(text.to_owned())).unwrap();
        }
        assert_eq!(heard, ["", "é"]);
        assert_eq!(rows.finish().0[0].text, "é");
    }
}
