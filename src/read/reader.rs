//! The reader: question and packed windows in, one short answer with its evidence out. The language model runs here, frozen and
//! perhaps behind a learned prompt, or it is behind an endpoint and gets text.
//!
//! Several windows are read as a batch; `choose` says whose answer counts.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pack::Window;
use crate::read::choose::{Choice, Extent, WindowAnswer, choose, deciding};
use crate::read::decode::{Decoding, Generation};
use crate::read::frozen::{Frozen, Said, texts};
use crate::read::ground;
use crate::read::lm::{FrozenLm, OnText};
use crate::read::prefix::check_target;
use crate::read::prompt_generator::PromptGenerator;
use crate::read::prompts;
use crate::read::reading_prompt::{PromptName, Prompts, ReadingPrompt};
use crate::read::recursion::{Recursion, Sampling, SecondPass};
use crate::read::remote::RemoteLm;
use crate::read::remote_reading;
use crate::read::second_pass::Second;
use crate::read::soft_prompt::SoftPrompt;
use crate::read::spans::Span;
use crate::read::state_folder::StateFolder;
use crate::read::template::{Template, TemplateKind};
use crate::runtime::device::Device;
use crate::runtime::kv_states::States;
use crate::runtime::model_dir::ModelDir;
use crate::runtime::session::RuntimeOptions;
use crate::runtime::tokenizer::TextTokenizer;
use crate::types::Evidence;

/// How the reader works.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReaderSettings {
    /// Shape of a prompt in words; a learned one brings its own.
    pub template: TemplateKind,
    /// Hold the answer to a span of a passage.
    pub grounded: bool,
    /// Tokens of a window, prompt and answer included; never more than the model's own.
    pub window: usize,
    /// How windows compete.
    pub choice: Choice,
    /// Which are read.
    #[serde(default)]
    pub extent: Extent,
    /// Weight of a window's best passage score beside the answer's log-likelihood, when several windows compete.
    pub score_weight: f32,
    /// Decoding.
    pub decoding: Decoding,
    /// What a second pass asks about beside the windows' answers.
    pub sampling: Sampling,
}

impl Default for ReaderSettings {
    fn default() -> Self {
        Self {
            template: TemplateKind::FewShot,
            grounded: false,
            window: 2048,
            choice: Choice::default(),
            extent: Extent::default(),
            score_weight: 10.0,
            decoding: Decoding::default(),
            sampling: Sampling::default(),
        }
    }
}

/// What the reader made of the windows.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// The answer; empty when there is none.
    pub answer: String,
    /// Mean log-probability per token of the answer and its end.
    pub score: f32,
    /// Sum of the same.
    pub log_likelihood: f32,
    /// How far it was ahead of the best different answer of another window, in log-likelihood and weighted rank
    /// score; `None` when no window gave a different one.
    pub lead: Option<f32>,
    /// Probability of "there is no answer" under a prompt that learned to say so.
    pub p_abstain: Option<f32>,
    /// Where it stands in the passages.
    pub evidence: Vec<Evidence>,
    /// What was said to each window.
    pub windows: Vec<WindowAnswer>,
    /// What a second pass did.
    pub second: Option<SecondPass>,
    /// Tokens given to the model, over all windows.
    pub prompt_tokens: usize,
    /// Of these, tokens of passages whose states were at hand.
    pub cached_tokens: usize,
    /// Tokens it generated, over all windows.
    pub answer_tokens: usize,
}

/// A language model with the prompts that it reads behind, one of them at a time.
#[derive(Debug)]
pub struct Reader {
    model: Model,
    prompts: Prompts,
    settings: ReaderSettings,
}

/// Where the language model runs.
#[derive(Debug)]
enum Model {
    /// Here.
    Frozen(Box<Frozen>),
    /// Behind an endpoint.
    Remote(Box<RemoteLm>),
}

/// A prompt, or a generator of prompts, to read with.
pub enum Learned {
    /// A soft prompt.
    Soft(Arc<SoftPrompt>),
    /// A generator.
    Generator(Box<PromptGenerator>),
}

impl Reader {
    /// Load the model, prepare the template and compute its states. A learned `prompt` brings its own template.
    ///
    /// # Errors
    /// [`Error::Request`] when the prompt was learned for another model; what loading the model says.
    pub fn open(
        model: &ModelDir,
        settings: ReaderSettings,
        prompt: Option<Arc<SoftPrompt>>,
        options: &RuntimeOptions,
    ) -> Result<Self> {
        let name = if prompt.is_some() { "prompt" } else { prompts::NONE };
        Self::behind(name, prompt.map(Learned::Soft), model, settings, options)
    }

    /// The same behind a prompt with a name, or a generator, which writes a prompt for every question and its best passage; in words
    /// where there is neither.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn behind(
        name: &str,
        prompt: Option<Learned>,
        model: &ModelDir,
        settings: ReaderSettings,
        options: &RuntimeOptions,
    ) -> Result<Self> {
        let mut lm = FrozenLm::open(model, options)?;
        let prompt = ReadingPrompt::new(name, prompt, settings.template, model, &mut lm)?;
        let model = Model::Frozen(Box::new(Frozen { lm, second: Second::Same }));
        Ok(Self { model, prompts: Prompts::of(prompt), settings })
    }

    /// Have one more prompt over the same language model, for [`Self::read_behind`].
    ///
    /// # Errors
    /// [`Error::Request`] when it was learned for another model, or has the name of another.
    pub fn also_behind(mut self, name: &str, prompt: Option<Learned>, model: &ModelDir) -> Result<Self> {
        let frozen = frozen_mut(&mut self.model)?;
        self.prompts.add(ReadingPrompt::new(name, prompt, self.settings.template, model, &mut frozen.lm)?)?;
        Ok(self)
    }

    /// Read behind the prompt of this name from now on; behind the one it was opened with without a name.
    ///
    /// # Errors
    /// [`Error::Request`] listing the names that there are.
    pub fn read_behind(&mut self, name: Option<&str>) -> Result<()> {
        self.prompts.choose(name)
    }

    /// The prompt that it reads behind now.
    pub fn prompt(&self) -> &PromptName {
        &self.prompts.chosen().named
    }

    /// All its prompts, the one it was opened with first.
    pub fn prompts(&self) -> Vec<PromptName> {
        self.prompts.names()
    }

    /// Read by a model behind an endpoint.
    ///
    /// # Errors
    /// [`Error::Request`] for what needs a model at hand: grounded decoding, a chat template.
    pub fn remote(lm: RemoteLm, settings: ReaderSettings) -> Result<Self> {
        if settings.grounded {
            return Err(Error::request(
                "an answer is held to a passage token by token, which an endpoint does not let anybody do",
                "leave --grounded out: evidence is found, and missing evidence said, all the same",
            ));
        }
        let template = Template::of_text(settings.template, lm.tokenizer())?;
        Ok(Self {
            model: Model::Remote(Box::new(lm)),
            prompts: Prompts::of(ReadingPrompt::of_text(template)),
            settings,
        })
    }

    /// Let this stand before the windows in a second pass. Without it textual recursion reads as the first pass did, and
    /// there is no neural recursion.
    ///
    /// # Errors
    /// [`Error::Request`] when it was learned for another language model, or a generator is no connector.
    pub fn read_again_with(mut self, second: Learned, model: &ModelDir) -> Result<Self> {
        let frozen = frozen_mut(&mut self.model)?;
        let lm = &mut frozen.lm;
        frozen.second = match second {
            Learned::Soft(prompt) => {
                check_target("the second pass's prompt", &prompt.description.target, model, lm.shape())?;
                let template = Template::new(prompt.description.template, lm.shape(), lm.tokenizer(), lm.name())?;
                Second::Learned(prompt, template)
            }
            Learned::Generator(generator) => {
                let description = generator.description();
                check_target("the second pass's generator", &description.target, model, lm.shape())?;
                if !description.encoder.itself {
                    return Err(Error::request(
                        "the second pass goes on from the language model's own states, and this generator reads with another model",
                        "give a connector to --second (`nunatak train connector`), and this to --prompt",
                    ));
                }
                let behind = description.behind.as_ref().map(prompts::behind).transpose()?;
                let template = Template::new(TemplateKind::Plain, lm.shape(), lm.tokenizer(), lm.name())?;
                Second::Written(generator, behind, template)
            }
        };
        Ok(self)
    }

    /// Fail unless questions can be read twice in this way.
    ///
    /// # Errors
    /// [`Error::Request`] for a model behind an endpoint, and for neural recursion without a connector.
    pub fn check_recursion(&self, how: Recursion) -> Result<()> {
        match (&self.model, how) {
            (_, Recursion::None) => Ok(()),
            (Model::Remote(_), _) => Err(Error::request(
                "a second pass asks how likely each candidate is, which an endpoint does not say",
                "leave --recursion out, or name a model at hand",
            )),
            (Model::Frozen(frozen), Recursion::Neural) if !matches!(frozen.second, Second::Written(..)) => {
                Err(Error::request(
                    "there is no connector for a neural second pass",
                    "train one with `nunatak train connector --index DIR --questions FILE`, and give it to --second",
                ))
            }
            (Model::Frozen(_), _) => Ok(()),
        }
    }

    /// Whether every question gets a prompt of its own, so that nothing read for one is of use to another.
    pub fn writes_prompts(&self) -> bool {
        self.prompts.chosen().generator.is_some()
    }

    /// Keep states of passages in up to so many bytes of memory ([`FrozenLm::keep_passages`]); a model behind an endpoint
    /// keeps its own.
    pub fn keep_passages(&mut self, bytes: u64) {
        if let Model::Frozen(frozen) = &mut self.model {
            frozen.lm.keep_passages(bytes);
        }
    }

    /// Its language model's name, and the device or the address where it runs.
    pub fn model(&self) -> (String, String) {
        match &self.model {
            Model::Frozen(frozen) => (frozen.lm.name().to_owned(), frozen.lm.device().to_string()),
            Model::Remote(remote) => (remote.name().to_owned(), remote.url().to_owned()),
        }
    }

    /// Whether its language model runs on a GPU of this machine.
    pub fn is_on_gpu(&self) -> bool {
        matches!(&self.model, Model::Frozen(frozen) if frozen.lm.device() != Device::Cpu)
    }

    /// Look for states of passages beside this index too ([`FrozenLm::look_beside`]).
    pub fn look_beside(&mut self, index: &Path) {
        if let Model::Frozen(frozen) = &mut self.model {
            frozen.lm.look_beside(index);
        }
    }

    /// Where its states of passages are kept beside an index.
    ///
    /// # Errors
    /// [`Error::Request`] for a model behind an endpoint.
    pub fn state_folder(&self, index: &Path) -> Result<StateFolder> {
        match &self.model {
            Model::Frozen(frozen) => Ok(frozen.lm.state_folder(index, &self.prompts.chosen().prefix)),
            Model::Remote(_) => Err(not_here()),
        }
    }

    /// The states of passages as they go into a window.
    ///
    /// # Errors
    /// [`Error::Request`] for a model behind an endpoint.
    pub fn passage_states(&mut self, passages: &[u32]) -> Result<Arc<States>> {
        let frozen = frozen_mut(&mut self.model)?;
        frozen.lm.passage_states(&self.prompts.chosen().prefix, passages)
    }

    fn tokenizer(&self) -> &TextTokenizer {
        match &self.model {
            Model::Frozen(frozen) => frozen.lm.tokenizer(),
            Model::Remote(lm) => lm.tokenizer(),
        }
    }

    /// How it works.
    pub fn settings(&self) -> &ReaderSettings {
        &self.settings
    }

    /// Tokens that a window has for passages beside this question, template and answer.
    ///
    /// # Errors
    /// [`Error::Request`] when not even the question fits: a question is never cut.
    pub fn budget(&self, question: &str) -> Result<usize> {
        let prompt = self.prompts.chosen();
        let (before, most) = match &self.model {
            Model::Frozen(frozen) => (prompt.positions().max(frozen.second.positions()), frozen.lm.window()),
            // How much the model there takes is for its server to say. Before the prompt stands what opens a text.
            Model::Remote(lm) => (prompt.positions() + lm.tokenizer().special_count(false), usize::MAX),
        };
        let window = self.settings.window.min(most);
        let fixed = before + self.settings.decoding.max_new_tokens;
        let tail = prompt.template.tail(question, self.tokenizer())?.len();
        window.checked_sub(fixed + tail).ok_or_else(|| {
            Error::request(
                format!(
                    "the question takes {tail} tokens and the prompt {fixed} more, but the window has {window} tokens"
                ),
                "ask a shorter question, or allow a larger --window",
            )
        })
    }

    /// Tokens of a passage as they go into a window.
    pub fn block(&self, title: &str, text: &str) -> Result<Vec<u32>> {
        self.prompts.chosen().template.block(title, text, self.tokenizer())
    }

    /// Read windows, as many as `extent` has it, and choose an answer. Nothing to read gives an empty answer.
    pub fn read(&mut self, question: &str, windows: &[Window], extent: Extent, on_text: OnText) -> Result<Reading> {
        if windows.is_empty() {
            return Ok(Reading { score: f32::NEG_INFINITY, log_likelihood: f32::NEG_INFINITY, ..Reading::default() });
        }
        let (prompt, settings) = (self.prompts.chosen_mut(), &self.settings);
        let Said { generations: answers, spans, prompt_tokens, cached_tokens, answer_tokens } = match &mut self.model {
            Model::Frozen(frozen) => frozen.read(question, windows, extent, prompt, settings, on_text)?,
            Model::Remote(lm) => remote_reading::read(lm, question, windows, &prompt.template, settings, on_text)?,
        };
        let said: Vec<WindowAnswer> =
            answers.iter().zip(windows).map(|(answer, window)| window_answer(answer, window)).collect();
        let rank_scores: Vec<f32> = windows.iter().map(rank_score).collect();
        let (choice, score_weight) = (self.settings.choice, self.settings.score_weight);
        // What was read beyond those that decide does not count, so that an answer is as sure whatever was read.
        let counted = match (choice, said.first()) {
            (Choice::Best, Some(first)) => deciding(first, &rank_scores, score_weight).min(said.len()),
            _ => said.len(),
        };
        let chosen = choose(&said[..counted], &rank_scores[counted..], choice, score_weight);
        let best = chosen.map_or(0, |c| c.window);
        let evidence = match spans.get(best).copied().flatten() {
            Some(span) => vec![cite(&windows[best], span)],
            None if self.settings.grounded => Vec::new(),
            None => stands(&answers[best].text, &windows[best]),
        };
        let answer = match evidence.first() {
            Some(evidence) if self.settings.grounded => evidence.text.clone(),
            _ if self.settings.grounded => String::new(),
            _ => said[best].answer.clone(),
        };
        Ok(Reading {
            answer,
            score: answers[best].mean_logprob(),
            log_likelihood: said[best].log_likelihood,
            lead: chosen.and_then(|c| c.lead),
            p_abstain: said[best].p_abstain,
            evidence,
            windows: said,
            second: None,
            prompt_tokens,
            cached_tokens,
            answer_tokens,
        })
    }

    /// Read the windows a second time, with what the first pass said to them ([`crate::read::recursion`]). A first pass
    /// without an answer stays so.
    ///
    /// # Errors
    /// As [`Self::check_recursion`].
    pub fn read_again(
        &mut self,
        question: &str,
        windows: &[Window],
        first: Reading,
        how: Recursion,
    ) -> Result<Reading> {
        self.check_recursion(how)?;
        if how == Recursion::None || first.answer.is_empty() {
            return Ok(first);
        }
        let begin = Instant::now();
        let frozen = frozen_mut(&mut self.model)?;
        let prompt = self.prompts.chosen_mut();
        let (candidates, asked) = frozen.second_pass(question, windows, &first, how, prompt, &self.settings)?;
        let Some(best) = candidates.first() else { return Ok(first) };
        // A window may find likely what stands in another.
        let order = std::iter::once(best.window).chain(0..windows.len());
        let evidence = order.map(|at| stands(&best.answer, &windows[at])).find(|found| !found.is_empty());
        let evidence = match evidence {
            // What the first pass said keeps what it rests on.
            None if best.answer == first.answer => first.evidence.clone(),
            found => found.unwrap_or_default(),
        };
        let answer = match evidence.first() {
            Some(evidence) if self.settings.grounded => evidence.text.clone(),
            _ => best.answer.clone(),
        };
        Ok(Reading {
            answer,
            score: best.log_likelihood / asked.lengths.get(&best.answer).map_or(1.0, |&tokens| tokens.max(1) as f32),
            log_likelihood: best.log_likelihood,
            lead: candidates.get(1).map(|second| best.worth - second.worth),
            p_abstain: first.windows.get(best.window).and_then(|said| said.p_abstain),
            evidence,
            prompt_tokens: first.prompt_tokens + asked.prompt_tokens,
            cached_tokens: first.cached_tokens + asked.cached_tokens,
            answer_tokens: first.answer_tokens + asked.answer_tokens,
            second: Some(SecondPass { candidates, first: first.answer, ms: begin.elapsed().as_secs_f64() * 1000.0 }),
            ..first
        })
    }
}

fn frozen_mut(model: &mut Model) -> Result<&mut Frozen> {
    match model {
        Model::Frozen(frozen) => Ok(frozen),
        Model::Remote(_) => Err(not_here()),
    }
}

/// The error of what wants the model itself.
fn not_here() -> Error {
    Error::request(
        "the language model is behind an endpoint, which takes text only: no learned prompts, no states of passages",
        "leave --lm-url out for this, and name a model at hand",
    )
}

/// Log-likelihood of an answer of which an endpoint says none: no answer is so unlikely.
const UNSAID: f32 = -1000.0;

/// What was said to a window, in short.
pub(super) fn window_answer(answer: &Generation, window: &Window) -> WindowAnswer {
    // An endpoint may not say how likely an empty answer is, which does not make it certain. JSON has no infinity.
    let unknown = answer.logprobs.is_empty();
    let log_likelihood = if unknown { UNSAID } else { answer.logprobs.iter().sum::<f32>().max(f32::MIN) };
    WindowAnswer {
        answer: answer.text.trim().to_owned(),
        log_likelihood,
        rank_score: rank_score(window),
        p_abstain: answer.nothing.map(f32::exp),
    }
}

/// Score of a window's best passage.
pub fn rank_score(window: &Window) -> f32 {
    window.iter().map(|packed| packed.passage.score).fold(f32::NEG_INFINITY, f32::max)
}

/// Where an answer stands in a window's passages.
fn stands(answer: &str, window: &Window) -> Vec<Evidence> {
    ground::find(answer, &texts(window)).into_iter().map(|span| cite(window, span)).collect()
}

/// A span of a window's passages as evidence. Packed texts are beginnings of the stored ones, so offsets hold in both.
fn cite(window: &Window, span: Span) -> Evidence {
    let passage = &window[span.passage].passage;
    Evidence {
        passage_id: passage.key.clone(),
        title: passage.title.clone(),
        start: span.start,
        end: span.end,
        text: passage.text.get(span.start..span.end).unwrap_or_default().to_owned(),
        page: passage.page,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::decode::Finish;

    #[test]
    fn an_answer_without_log_probabilities_is_the_least_likely() {
        let mut answer = Generation {
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            nothing: None,
            finish: Finish::Stop,
        };
        assert_eq!(window_answer(&answer, &Window::new()).log_likelihood, UNSAID);
        answer.logprobs = vec![-0.5, -0.25];
        assert_eq!(window_answer(&answer, &Window::new()).log_likelihood, -0.75);
    }
}
