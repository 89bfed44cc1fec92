//! One pass over the windows of a question by a model behind an endpoint, which gets text or tokens.

use crate::error::Result;
use crate::pack::Window;
use crate::read::decode::Decoding;
use crate::read::frozen::Said;
use crate::read::lm::OnText;
use crate::read::reader::ReaderSettings;
use crate::read::remote::{RemoteLm, Sent};
use crate::read::template::Template;

/// Read the windows of a question. Answers come whole, not word by word.
pub(super) fn read(
    lm: &RemoteLm,
    question: &str,
    windows: &[Window],
    template: &Template,
    settings: &ReaderSettings,
    on_text: OnText,
) -> Result<Said> {
    let tail = template.tail(question, lm.tokenizer())?;
    let opening = lm.tokenizer().encode("", true)?;
    let tokens = |window: &Window| {
        let passages = window.iter().flat_map(|p| &p.ids);
        opening.iter().chain(template.prefix()).chain(passages).chain(&tail).copied().collect()
    };
    let text = |window: &Window| {
        template.text(question, window.iter().map(|p| (p.passage.title.as_str(), p.passage.text.as_str())))
    };
    let prompt = |window| if lm.is_exact() { Sent::Tokens(tokens(window)) } else { Sent::Text(text(window)) };
    let prompts: Vec<Sent> = windows.iter().map(prompt).collect();
    let decoding = Decoding { stop: template.stop.clone(), ..settings.decoding.clone() };
    let completions = lm.complete(&prompts, &decoding)?;
    let mut said = Said {
        generations: Vec::with_capacity(windows.len()),
        spans: vec![None; windows.len()],
        prompt_tokens: 0,
        cached_tokens: 0,
        answer_tokens: 0,
    };
    for (row, (completion, prompt)) in completions.into_iter().zip(&prompts).enumerate() {
        on_text(row, completion.generation.text.trim());
        said.prompt_tokens += match (completion.prompt_tokens, prompt) {
            (Some(tokens), _) => tokens,
            (None, Sent::Tokens(tokens)) => tokens.len(),
            (None, Sent::Text(text)) => lm.tokenizer().count(text)?,
        };
        said.answer_tokens += completion.answer_tokens;
        said.generations.push(completion.generation);
    }
    Ok(said)
}
