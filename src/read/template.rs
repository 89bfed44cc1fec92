//! How passages and a question become a prompt.
//!
//! A prompt is always `prefix ++ passage blocks ++ tail`: the prefix is the same for every question (its
//! states are computed once), the blocks are what the packer counts, the tail holds the question. Each
//! part is tokenised by itself, so the sum of the parts is exactly what the model gets.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};

use crate::corpus::one_line;
use crate::error::{Error, Result};
use crate::runtime::model_dir::LmShape;
use crate::runtime::tokenizer::TextTokenizer;

/// The shape of a reader's prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TemplateKind {
    /// Instruction and worked examples as plain text: what a small model needs most.
    #[default]
    FewShot,
    /// The model's own chat template around an instruction, no examples.
    Chat,
    /// Passages and question alone: what stands behind a learned prompt.
    Plain,
}

impl std::str::FromStr for TemplateKind {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "few-shot" => Ok(Self::FewShot),
            "chat" => Ok(Self::Chat),
            "plain" => Ok(Self::Plain),
            other => {
                Err(Error::request(format!("there is no template {other:?}"), "templates are: few-shot, chat, plain"))
            }
        }
    }
}

const INSTRUCTION: &str = "Answer the question with a few words copied from the passage.";

/// Worked examples (title, text, question, answer), written for this project: people, dates, places, numbers,
/// titles and things, in short questions and in long ones. Their states are computed once and shared by all
/// questions, so that an example costs next to nothing.
const SHOTS: [(&str, &str, &str, &str); 8] = [
    (
        "Lighthouse of Alder Point",
        "The lighthouse of Alder Point was designed by the engineer Mary Holt and first lit in October 1871. Its \
         lamp, which burned rapeseed oil, could be seen from nineteen miles away.",
        "who designed the alder point lighthouse",
        "Mary Holt",
    ),
    (
        "Tern Valley Railway",
        "The Tern Valley Railway ran between Ashby and the port of Culm. Opened in 1894 to carry slate, it was closed \
         on 3 May 1952 after most of the quarries had shut down.",
        "when did the tern valley railway close",
        "3 May 1952",
    ),
    (
        "Copper beetle",
        "The copper beetle lives under the bark of dead oaks. Adults grow to about 14 millimetres and feed on fungi, \
         while the larvae eat rotten wood for up to three years.",
        "What do the adults of the copper beetle feed on?",
        "fungi",
    ),
    (
        "The Salt Road (film)",
        "The Salt Road is a 1987 drama film directed by Ivo Brandt. It stars Lena Marsh as Ruth, a ferry pilot who \
         returns to her island, and Paul Okafor as her brother Tom. It was filmed in Norway.",
        "who plays ruth in the salt road",
        "Lena Marsh",
    ),
    (
        "Harrow Bridge",
        "Harrow Bridge crosses the river Wend at Kelby. At 412 metres it was the longest stone bridge of its country \
         when it was finished, and about 9,000 vehicles use it each day.",
        "How many vehicles cross Harrow Bridge on an average day?",
        "about 9,000",
    ),
    (
        "Winter Letters",
        "\"Winter Letters\" is a song by the band Grey Harbour from their second album, Low Tide (2003). It was \
         written by the drummer, Sal Reyes, on a night train to Lisbon.",
        "what album is the song winter letters on",
        "Low Tide",
    ),
    (
        "Battle of Stone Ford",
        "The Battle of Stone Ford was fought in 1644 between the town of Marl and the army of Duke Osric. The town won \
         because spring floods kept the duke's cannon on the far bank.",
        "Why did the town of Marl win the battle?",
        "spring floods kept the duke's cannon on the far bank",
    ),
    (
        "Lake Ister",
        "Lake Ister is a mountain lake in the canton of Veld, fed by the Aster glacier. Its outflow, the river Nim, \
         joins the Wend near the village of Holm.",
        "where does the river nim join the wend",
        "near the village of Holm",
    ),
];

/// A template tied to a model's tokenizer.
#[derive(Debug)]
pub struct Template {
    /// Which one it is.
    pub kind: TemplateKind,
    prefix: Vec<u32>,
    after_question: Vec<u32>,
    /// Whether an answer's first token begins with a space.
    pub lead: bool,
    /// Texts that end an answer.
    pub stop: Vec<String>,
}

impl Template {
    /// Prepare a template for a model.
    ///
    /// # Errors
    /// [`Error::Model`] for [`TemplateKind::Chat`] with a model that has no (usable) chat template.
    pub fn new(kind: TemplateKind, shape: &LmShape, tokenizer: &TextTokenizer, model: &str) -> Result<Self> {
        if kind != TemplateKind::Chat {
            let mut template = Self::of_text(kind, tokenizer)?;
            template.prefix.splice(0..0, shape.bos);
            return Ok(template);
        }
        let (before, after) = chat_frame(shape, tokenizer, model)?;
        let mut prefix = tokenizer.encode_template(&before)?;
        prefix.extend(tokenizer.encode(&format!("{INSTRUCTION}\n\n"), false)?);
        let (after_question, stop) = (tokenizer.encode_template(&after)?, vec!["\n".to_owned()]);
        Ok(Self { kind, prefix, after_question, lead: false, stop })
    }

    /// Prepare a template whose prompts are text, for a model whose special tokens are not known here.
    ///
    /// # Errors
    /// [`Error::Request`] for [`TemplateKind::Chat`], which is the model's own.
    pub fn of_text(kind: TemplateKind, tokenizer: &TextTokenizer) -> Result<Self> {
        if kind == TemplateKind::Chat {
            return Err(Error::request(
                "the chat template of a model behind an endpoint is not known here",
                "use --template few-shot, or plain",
            ));
        }
        let prefix = tokenizer.encode(&text_prefix(kind), false)?;
        let after_question = tokenizer.encode(AFTER_QUESTION, false)?;
        Ok(Self { kind, prefix, after_question, lead: true, stop: vec!["\n".to_owned()] })
    }

    /// The whole prompt as text, of a template that is no chat.
    pub fn text<'a>(&self, question: &str, passages: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
        let blocks: String = passages.into_iter().map(|(title, text)| block(title, text)).collect();
        format!("{}{blocks}{}{AFTER_QUESTION}", text_prefix(self.kind), question_line(question))
    }

    /// Tokens that open every prompt.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// Tokens of one passage.
    pub fn block(&self, title: &str, text: &str, tokenizer: &TextTokenizer) -> Result<Vec<u32>> {
        tokenizer.encode(&block(title, text), false)
    }

    /// Tokens of the question and of what asks for the answer.
    pub fn tail(&self, question: &str, tokenizer: &TextTokenizer) -> Result<Vec<u32>> {
        let mut ids = tokenizer.encode(&question_line(question), false)?;
        ids.extend_from_slice(&self.after_question);
        Ok(ids)
    }

    /// Tokens of an answer, as it follows the tail, with what ends it: a line end, or `end` where the model's own template
    /// says so.
    pub fn answer(&self, answer: &str, end: Option<u32>, tokenizer: &TextTokenizer) -> Result<Vec<u32>> {
        match end.filter(|_| self.kind == TemplateKind::Chat) {
            Some(end) => {
                let mut ids = tokenizer.encode(&without_line_ends(answer), false)?;
                ids.push(end);
                Ok(ids)
            }
            None => answer_line(answer, tokenizer),
        }
    }
}

/// Tokens of an answer behind `Answer:` and of the line end that ends it.
pub fn answer_line(answer: &str, tokenizer: &TextTokenizer) -> Result<Vec<u32>> {
    let mut ids = tokens_behind(&format!(" {}", without_line_ends(answer)), tokenizer)?;
    ids.extend(tokens_behind("\n", tokenizer)?);
    Ok(ids)
}

/// Tokens of a text that stands behind another, without the space that some tokenizers (SentencePiece with `Prepend`)
/// put before every text: a model that writes on never writes that space.
pub fn tokens_behind(text: &str, tokenizer: &TextTokenizer) -> Result<Vec<u32>> {
    const BEFORE: &str = "a";
    let before = tokenizer.encode(BEFORE, false)?;
    let both = tokenizer.encode(&format!("{BEFORE}{text}"), false)?;
    match both.strip_prefix(before.as_slice()) {
        Some(behind) if !behind.is_empty() => Ok(behind.to_vec()),
        // The two grew together.
        _ => tokenizer.encode(text, false),
    }
}

/// Within an answer a line end would be the end of it, and within a passage the end of its block. Bytes stay where they
/// are.
pub(crate) fn without_line_ends(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// What asks for the answer.
const AFTER_QUESTION: &str = "Answer:";

/// What opens every prompt of a template that is no chat.
fn text_prefix(kind: TemplateKind) -> String {
    if kind == TemplateKind::FewShot { few_shot(SHOTS.len()) } else { String::new() }
}

/// The instruction and the first `shots` worked examples, each followed by an empty line.
pub(crate) fn few_shot(shots: usize) -> String {
    let mut text = format!("{INSTRUCTION}\n\n");
    for (title, passage, question, answer) in SHOTS.iter().take(shots) {
        text += &format!("{}{}Answer: {answer}\n\n", block(title, passage), question_line(question));
    }
    text
}

/// One passage of a prompt. Line ends inside are spaces: a line end would close the block.
fn block(title: &str, text: &str) -> String {
    let (title, text) = (one_line(title), without_line_ends(text));
    if title.is_empty() { format!("Passage: {text}\n") } else { format!("Passage: {title}. {text}\n") }
}

fn question_line(question: &str) -> String {
    format!("Question: {}\n", one_line(question))
}

/// What the model's chat template puts before and after a user's message.
fn chat_frame(shape: &LmShape, tokenizer: &TextTokenizer, model: &str) -> Result<(String, String)> {
    const MESSAGE: &str = "\u{1}message\u{1}";
    let hint = "use --template few-shot with this model";
    let source = shape.chat_template.as_deref().ok_or_else(|| Error::model(model, "it has no chat template", hint))?;
    let spelled = |token: Option<u32>| token.and_then(|token| tokenizer.token(token)).unwrap_or_default();
    let render = || -> std::result::Result<String, minijinja::Error> {
        let mut environment = Environment::new();
        // Published chat templates are written for these two settings of Jinja.
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.template_from_str(source)?.render(context! {
            messages => vec![context! { role => "user", content => MESSAGE }],
            add_generation_prompt => true,
            bos_token => spelled(shape.bos), eos_token => spelled(shape.eos.first().copied()),
        })
    };
    let text = render().map_err(|e| Error::model(model, format!("its chat template cannot be rendered: {e}"), hint))?;
    match text.split_once(MESSAGE) {
        Some((before, after)) => Ok((before.to_owned(), after.to_owned())),
        None => Err(Error::model(model, "its chat template leaves the user's message out", hint)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::tokenizer::TOKENIZER;

    fn tokenizer(parts: &str) -> TextTokenizer {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKENIZER);
        let rest =
            r#""truncation": null, "padding": null, "added_tokens": [], "post_processor": null, "decoder": null"#;
        std::fs::write(&path, format!(r#"{{"version": "1.0", {rest}, {parts}}}"#)).unwrap();
        TextTokenizer::from_file(&path, "it").unwrap()
    }

    #[test]
    fn a_line_end_closes_no_block() {
        assert_eq!(block("A\ntitle", "its\r\ntext"), "Passage: A title. its  text\n");
        assert_eq!(block("\n", "text"), "Passage: text\n");
    }

    #[test]
    fn behind_another_text_there_is_no_space_that_the_tokenizer_puts_there() {
        let sentence_piece = tokenizer(
            r#""normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
            "pre_tokenizer": null,
            "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true,
                "vocab": {"<unk>": 0, "<0x0A>": 1, "\u2581": 2, "a": 3, "x": 4, "\u2581a": 5, "\u2581x": 6},
                "merges": ["\u2581 a", "\u2581 x"]}"#,
        );
        assert_eq!(sentence_piece.encode(" x\n", false).unwrap(), [2, 6, 1]);
        assert_eq!(tokens_behind("\n", &sentence_piece).unwrap(), [1]);
        assert_eq!(answer_line("x", &sentence_piece).unwrap(), [6, 1]);
    }

    #[test]
    fn a_byte_level_tokenizer_gives_what_it_gives_alone() {
        let byte_level = tokenizer(
            r#""normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": {"\u010a": 0, "\u0120": 1, "a": 2, "x": 3, "\u0120x": 4, "ax": 5},
                "merges": ["\u0120 x", "a x"]}"#,
        );
        // Behind `a` the last would be another token.
        for (text, ids) in [("\n", vec![0u32]), (" x", vec![4]), ("  x", vec![1, 4]), ("x", vec![3])] {
            assert_eq!(byte_level.encode(text, false).unwrap(), ids);
            assert_eq!(tokens_behind(text, &byte_level).unwrap(), ids);
        }
        assert_eq!(answer_line("x", &byte_level).unwrap(), [4, 0]);
    }
}
