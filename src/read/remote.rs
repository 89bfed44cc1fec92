//! A language model behind an HTTP endpoint: prompts in words in, generations with log-probabilities out.
//!
//! The endpoint is that of OpenAI's completions (`POST URL/completions`), as vLLM and the server of llama.cpp have it.
//! What is learned as embeddings or states (soft prompts, written prompts) cannot reach a model this way, nor can an answer
//! be held to a passage token by token. With the model's own tokenizer at hand prompts are sent as token ids: what was packed is
//! what is read, and a control token in a passage is no control token. Without it they are sent as text, windows are measured by
//! another tokenizer, and the server, which counts by its own, says so when a prompt is too long for it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::corpus::one_line;
use crate::error::{Error, Result};
use crate::read::decode::{Decoding, Finish, Generation};
use crate::runtime::tokenizer::TextTokenizer;

/// The environment variable that holds the key of an endpoint that wants one.
pub const LM_KEY: &str = "NUNATAK_LM_KEY";
/// Longest time of one completion.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Times a request is sent to a server that is busy or away for a moment.
const TRIES: u32 = 4;
/// Windows of a question that are asked at once.
const AT_ONCE: usize = 16;

/// A model behind an endpoint.
pub struct RemoteLm {
    url: String,
    model: String,
    agent: ureq::Agent,
    key: Option<String>,
    tokenizer: TextTokenizer,
    exact: bool,
}

/// A prompt as it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Sent {
    /// For the server to tokenise.
    Text(String),
    /// Tokens of the model's own tokenizer, those that open a text included.
    Tokens(Vec<u32>),
}

impl std::fmt::Debug for RemoteLm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteLm").field("url", &self.url).field("model", &self.model).finish_non_exhaustive()
    }
}

/// One completion, with what it cost.
#[derive(Debug, Clone)]
pub struct Completion {
    /// What was said.
    pub generation: Generation,
    /// Tokens of the prompt, as the server counts them; `None` if it does not say.
    pub prompt_tokens: Option<usize>,
    /// Tokens of the answer.
    pub answer_tokens: usize,
}

/// What a server replies, as far as it is of use.
#[derive(Debug, Deserialize)]
struct Reply {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    text: String,
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default)]
    logprobs: Option<Logprobs>,
}

/// The form of completions, or, as some servers have it here too, that of chats.
#[derive(Debug, Deserialize)]
struct Logprobs {
    #[serde(default)]
    token_logprobs: Option<Vec<Option<f32>>>,
    #[serde(default)]
    content: Option<Vec<TokenLogprob>>,
}

#[derive(Debug, Deserialize)]
struct TokenLogprob {
    logprob: f32,
}

#[derive(Debug, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<usize>,
    #[serde(default)]
    completion_tokens: Option<usize>,
}

impl RemoteLm {
    /// The model of this name behind `url`, which ends where `/completions` follows (`http://host:8000/v1`). Prompts are
    /// measured by `tokenizer`, which is the model's own if it is `exact`.
    ///
    /// # Errors
    /// [`Error::Request`] when `url` is none.
    pub fn new(url: &str, model: &str, tokenizer: TextTokenizer, exact: bool) -> Result<Self> {
        let url = url.trim_end_matches('/').trim_end_matches("/completions");
        if !(url.starts_with("http://") || url.starts_with("https://")) || url.contains('@') {
            return Err(Error::request(
                format!("{url:?} is no address of an endpoint"),
                format!("write http://host:8000/v1; a key goes into the environment variable {LM_KEY}"),
            ));
        }
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
        let key = std::env::var(LM_KEY).ok().filter(|key| !key.is_empty());
        Ok(Self { url: url.to_owned(), model: model.to_owned(), agent: config.into(), key, tokenizer, exact })
    }

    /// The model's name there.
    pub fn name(&self) -> &str {
        &self.model
    }

    /// Where it is asked.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What prompts are measured by.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Whether that is the model's own.
    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// Continue every prompt until it ends.
    ///
    /// # Errors
    /// [`Error::Model`] when the endpoint does not answer, refuses, or leaves log-probabilities out.
    pub fn complete(&self, prompts: &[Sent], decoding: &Decoding) -> Result<Vec<Completion>> {
        let mut completions = Vec::with_capacity(prompts.len());
        for some in prompts.chunks(AT_ONCE) {
            let done: Vec<Result<Completion>> = std::thread::scope(|scope| {
                let asked: Vec<_> = some.iter().map(|prompt| scope.spawn(|| self.one(prompt, decoding))).collect();
                let panicked =
                    |_| Error::Internal { doing: "asking an endpoint", message: "the thread panicked".into() };
                asked.into_iter().map(|thread| thread.join().map_err(panicked).flatten()).collect()
            });
            for completion in done {
                completions.push(completion?);
            }
        }
        Ok(completions)
    }

    fn one(&self, prompt: &Sent, decoding: &Decoding) -> Result<Completion> {
        let reply: Reply = serde_json::from_str(&self.post(&self.body(prompt, decoding))?).map_err(|error| {
            self.error(format!("its reply is no completion: {error}"), "is it an endpoint of OpenAI's form?")
        })?;
        let Some(choice) = reply.choices.into_iter().next() else {
            return Err(self.error("it gave no completion", "see the log of that server"));
        };
        let logprobs: Option<Vec<f32>> =
            choice.logprobs.and_then(|given| match (given.token_logprobs, given.content) {
                (Some(tokens), _) => Some(tokens.into_iter().flatten().collect()),
                (None, Some(tokens)) => Some(tokens.into_iter().map(|token| token.logprob).collect()),
                (None, None) => None,
            });
        // Where the stop text came first there is nothing to be likely.
        let nothing = choice.text.is_empty().then(Vec::new);
        let Some(logprobs) = logprobs.or(nothing) else {
            return Err(self.error(
                "it gives no log-probabilities, by which answers are compared and judged",
                "use a server that does: vLLM and llama.cpp's do",
            ));
        };
        let usage = reply.usage.as_ref();
        let answer_tokens = usage.and_then(|usage| usage.completion_tokens).unwrap_or(logprobs.len());
        let prompt_tokens = usage.and_then(|usage| usage.prompt_tokens);
        let finish = if choice.finish_reason.as_deref() == Some("length") { Finish::Length } else { Finish::Stop };
        let generation = Generation { text: choice.text, tokens: Vec::new(), logprobs, nothing: None, finish };
        Ok(Completion { generation, prompt_tokens, answer_tokens })
    }

    fn body(&self, prompt: &Sent, decoding: &Decoding) -> String {
        let mut body = Map::new();
        let fields = [
            ("model", json!(self.model)),
            ("prompt", json!(prompt)),
            ("max_tokens", json!(decoding.max_new_tokens)),
            ("temperature", json!(decoding.temperature)),
            ("seed", json!(decoding.seed)),
            ("stop", json!(decoding.stop)),
            ("logprobs", json!(1)),
        ];
        body.extend(fields.map(|(name, value)| (name.to_owned(), value)));
        // 1 is what it is when it is not said, and some servers refuse to be told.
        if decoding.top_p < 1.0 {
            body.insert("top_p".to_owned(), json!(decoding.top_p));
        }
        // Not of OpenAI's form: only said when asked for.
        if decoding.top_k > 0 {
            body.insert("top_k".to_owned(), json!(decoding.top_k));
        }
        Value::Object(body).to_string()
    }

    fn post(&self, body: &str) -> Result<String> {
        let (mut pause, mut attempt) = (Duration::from_millis(500), 1);
        loop {
            let mut request = self.agent.post(format!("{}/completions", self.url)).content_type("application/json");
            if let Some(key) = &self.key {
                request = request.header("authorization", format!("Bearer {key}"));
            }
            let sent = request.send(body).and_then(|mut reply| {
                let status = reply.status().as_u16();
                Ok((status, reply.body_mut().read_to_string()?))
            });
            match sent {
                Ok((200, text)) => return Ok(text),
                Ok((429 | 502 | 503, _)) | Err(ureq::Error::Io(_) | ureq::Error::ConnectionFailed)
                    if attempt < TRIES =>
                {
                    std::thread::sleep(pause);
                    pause *= 2;
                    attempt += 1;
                }
                Ok((401 | 403, text)) => {
                    let hint = format!("put its key into the environment variable {LM_KEY}");
                    return Err(self.error(format!("it lets nobody in like this ({})", begin(&text)), hint));
                }
                Ok((status, text)) => {
                    let problem = format!("it refuses with status {status}: {}", begin(&text));
                    return Err(self.error(problem, refused(status)));
                }
                Err(error) => {
                    return Err(self.error(format!("it does not answer: {error}"), "start it, or check --lm-url"));
                }
            }
        }
    }

    fn error(&self, problem: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::model(format!("{} at {}", self.model, self.url), problem, hint)
    }
}

/// What to do about a refusal of this status.
fn refused(status: u16) -> &'static str {
    match status {
        404 => "check --lm-url (it ends in /v1) and the name in --lm",
        429 | 500..=599 => "the server is busy or in trouble: try again, and see its log",
        _ => "a prompt that is too long for it becomes shorter by --window or fewer --passages",
    }
}

/// The first words of what a server said, on one line.
fn begin(text: &str) -> String {
    one_line(text).chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do_about_it() {
        assert!(refused(404).contains("--lm-url"));
        assert!(refused(429).contains("busy") && refused(500).contains("busy"));
        assert!(refused(400).contains("--window"));
    }
}
