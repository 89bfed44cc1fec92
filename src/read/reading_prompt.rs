//! What windows are read behind: a learned prompt, a generator of prompts, or words, each with the template that its passages and
//! its question stand in. A reader may have several over its one language model: each has a name, and one is chosen at a time.

use serde::Serialize;
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::pack::Window;
use crate::read::decode::Decoding;
use crate::read::frozen::generator_input;
use crate::read::lm::FrozenLm;
use crate::read::prefix::{Prefix, check_target};
use crate::read::prompt_generator::PromptGenerator;
use crate::read::prompts;
use crate::read::reader::Learned;
use crate::read::template::{Template, TemplateKind, tokens_behind};
use crate::runtime::model_dir::ModelDir;

/// A prompt by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptName {
    /// Its name; `none` is a prompt in words.
    pub name: String,
    /// Hash of what was learned; absent where nothing was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl PromptName {
    /// A prompt in words, of which nothing was learned.
    pub(super) fn of_words() -> Self {
        Self { name: prompts::NONE.to_owned(), sha256: None }
    }
}

/// A prompt with all that goes with it.
#[derive(Debug)]
pub(super) struct ReadingPrompt {
    pub(super) named: PromptName,
    pub(super) prefix: Prefix,
    /// Writes the rest of what stands before the windows of a question.
    pub(super) generator: Option<PromptGenerator>,
    pub(super) template: Template,
    /// Token that an answer of nothing begins with, where it learned to give one.
    nothing: Option<u32>,
}

impl ReadingPrompt {
    /// A prompt for this model, its states computed; without one that was learned, words of the template `words`.
    ///
    /// # Errors
    /// [`Error::Request`] naming the prompt when it was learned for another model, or behind another prompt.
    pub(super) fn new(
        name: &str,
        learned: Option<Learned>,
        words: TemplateKind,
        model: &ModelDir,
        lm: &mut FrozenLm,
    ) -> Result<Self> {
        let template = |kind: TemplateKind| Template::new(kind, lm.shape(), lm.tokenizer(), lm.name());
        let (what, shape) = (format!("the prompt {name}"), lm.shape());
        let named = |sha256: &str| PromptName { name: name.to_owned(), sha256: Some(sha256.to_owned()) };
        let (named, prefix, generator, template, abstains) = match learned {
            None => {
                let template = template(words)?;
                let prefix = Prefix::Words(template.prefix().to_vec());
                (PromptName { name: name.to_owned(), sha256: None }, prefix, None, template, false)
            }
            Some(Learned::Soft(prompt)) => {
                check_target(&what, &prompt.description.target, model, shape)?;
                let (template, abstains) = (template(prompt.description.template)?, prompt.description.abstains);
                (named(prompt.hash()), Prefix::Learned(prompt), None, template, abstains)
            }
            Some(Learned::Generator(generator)) => {
                let description = generator.description();
                check_target(&what, &description.target, model, shape)?;
                let behind = description.behind.as_ref().map(prompts::behind).transpose()?;
                if let Some(behind) = &behind {
                    check_target(&format!("the prompt behind {name}"), &behind.description.target, model, shape)?;
                }
                let abstains = description.abstains || behind.as_ref().is_some_and(|p| p.description.abstains);
                let prefix = behind.map_or(Prefix::Words(Vec::new()), Prefix::Learned);
                (named(&description.sha256), prefix, Some(*generator), template(TemplateKind::Plain)?, abstains)
            }
        };
        let nothing = abstains.then(|| tokens_behind("\n", lm.tokenizer())).transpose()?;
        let nothing = nothing.and_then(|tokens| tokens.first().copied());
        if prefix.positions() < lm.window() {
            lm.prepare_prefix(&prefix)?;
        }
        Ok(Self { named, prefix, generator, template, nothing })
    }

    /// Words for a model behind an endpoint.
    pub(super) fn of_text(template: Template) -> Self {
        let prefix = Prefix::Words(template.prefix().to_vec());
        Self { named: PromptName::of_words(), prefix, generator: None, template, nothing: None }
    }

    /// Positions that it takes in a window.
    pub(super) fn positions(&self) -> usize {
        self.prefix.positions() + self.generator.as_ref().map_or(0, |g| g.description().shape.positions)
    }

    /// What stands before the windows of a question.
    pub(super) fn prefix_for(&mut self, lm: &mut FrozenLm, tail: &[u32], windows: &[Window]) -> Result<Prefix> {
        let Some(generator) = &mut self.generator else { return Ok(self.prefix.clone()) };
        let input = generator_input(lm, tail, windows)?;
        let prompt = generator.prompt(&input, lm)?;
        let behind = match &self.prefix {
            Prefix::Learned(behind) => Some(behind.clone()),
            Prefix::Words(_) | Prefix::Written { .. } => None,
        };
        Ok(Prefix::Written { behind, prompt })
    }

    /// How answers behind it are decoded, by the reader's settings.
    pub(super) fn decoding(&self, settings: &Decoding) -> Decoding {
        Decoding { stop: self.template.stop.clone(), nothing: self.nothing, ..settings.clone() }
    }
}

/// The prompts of a reader, one of which is chosen.
#[derive(Debug)]
pub(super) struct Prompts {
    /// The one that is read behind when nobody says otherwise.
    usual: ReadingPrompt,
    others: Vec<ReadingPrompt>,
    /// Which of the others is chosen.
    chosen: Option<usize>,
}

impl Prompts {
    pub(super) fn of(usual: ReadingPrompt) -> Self {
        Self { usual, others: Vec::new(), chosen: None }
    }

    /// Have one more to choose.
    ///
    /// # Errors
    /// [`Error::Request`] when its name is another's.
    pub(super) fn add(&mut self, prompt: ReadingPrompt) -> Result<()> {
        let name = &prompt.named.name;
        if self.names().iter().any(|other| other.name == *name) {
            return Err(two_of_a_name(name));
        }
        self.others.push(prompt);
        Ok(())
    }

    /// Choose by name; the usual one without a name.
    ///
    /// # Errors
    /// [`Error::Request`] listing the names that there are.
    pub(super) fn choose(&mut self, name: Option<&str>) -> Result<()> {
        self.chosen = match name.filter(|name| *name != self.usual.named.name) {
            None => None,
            Some(name) => {
                let at = self.others.iter().position(|prompt| prompt.named.name == name);
                Some(at.ok_or_else(|| unknown(name, &self.names()))?)
            }
        };
        Ok(())
    }

    pub(super) fn chosen(&self) -> &ReadingPrompt {
        self.chosen.and_then(|at| self.others.get(at)).unwrap_or(&self.usual)
    }

    pub(super) fn chosen_mut(&mut self) -> &mut ReadingPrompt {
        self.chosen.and_then(|at| self.others.get_mut(at)).unwrap_or(&mut self.usual)
    }

    /// Their names, the usual one first.
    pub(super) fn names(&self) -> Vec<PromptName> {
        std::iter::once(&self.usual).chain(&self.others).map(|prompt| prompt.named.clone()).collect()
    }
}

/// The error of two prompts that cannot be told apart.
pub(crate) fn two_of_a_name(name: &str) -> Error {
    Error::request(format!("two prompts are called {name}"), "give one another name: --also-prompt NAME=FILE")
}

/// The error of a prompt that is not among these.
pub(crate) fn unknown(name: &str, among: &[PromptName]) -> Error {
    let names: Vec<&str> = among.iter().map(|prompt| prompt.name.as_str()).collect();
    Error::request(
        format!("no prompt here is called {name:?}: there are {}", names.join(", ")),
        "leave the prompt out for the first of them, or have the server load it with --also-prompt",
    )
}
