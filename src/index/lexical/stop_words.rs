//! Which words questions are not searched for: those of a language, a list of one's own, or none.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tantivy::tokenizer::{LowerCaser, SimpleTokenizer, StopWordFilter, TextAnalyzer};

use super::Language;
use crate::error::{Error, Result};

/// The words left out of questions. As JSON `true` (the language's), `false` (none) or a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StopWords {
    /// Those of the language, where there is a list; or none.
    OfLanguage(bool),
    /// These, lower case, without repeats, in the order of the alphabet.
    Listed(Vec<String>),
}

/// A list that was read, and what of it could not be used.
#[derive(Debug, PartialEq, Eq)]
pub struct StopWordList {
    /// What to leave out of questions.
    pub words: StopWords,
    /// Entries that are several words (or none) to BM25, like "don't": they are not in `words`, as their parts would say
    /// something else alone ("won't" is "won" and "t").
    pub left_out: Vec<String>,
}

impl StopWordList {
    /// From a text file in UTF-8, a word a line (or several, between spaces); what follows `#` or `|` is a comment.
    ///
    /// # Errors
    /// If the file cannot be read as text, or holds no word.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).map_err(|e| {
            Error::bad_file(file, format!("cannot read stop words: {e}"), "it must be text in UTF-8, a word a line")
        })?;
        let list = Self::parse(&text);
        match &list.words {
            StopWords::Listed(words) if words.is_empty() => {
                let hint = "a word a line is wanted; to search for all words of a question, use --keep-stop-words";
                Err(Error::bad_file(file, "holds no stop words", hint))
            }
            _ => Ok(list),
        }
    }

    fn parse(text: &str) -> Self {
        let mut splitter = TextAnalyzer::builder(SimpleTokenizer::default()).filter(LowerCaser).build();
        let (mut words, mut left_out) = (Vec::new(), Vec::new());
        for line in text.trim_start_matches('\u{feff}').lines() {
            let said = line.split(['#', '|']).next().unwrap_or_default();
            for entry in said.split_whitespace() {
                let mut parts = Vec::new();
                splitter.token_stream(entry).process(&mut |token| parts.push(token.text.clone()));
                match <[String; 1]>::try_from(parts) {
                    Ok([word]) => words.push(word),
                    Err(_) => left_out.push(entry.to_owned()),
                }
            }
        }
        words.sort_unstable();
        words.dedup();
        Self { words: StopWords::Listed(words), left_out }
    }
}

impl StopWords {
    /// What takes them out of lower-case words that still have their accents; none if there are none.
    pub(super) fn filter(&self, language: Option<Language>) -> Option<StopWordFilter> {
        match self {
            Self::OfLanguage(true) => language.and_then(|language| StopWordFilter::new(language.0)),
            Self::OfLanguage(false) => None,
            Self::Listed(words) => Some(StopWordFilter::remove(words.iter().cloned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_words_and_comments() {
        let list = StopWordList::parse("\u{feff}The # an article\n| all of it a comment\n\nof the Après won't\t--\n");
        let words = ["après", "of", "the"].map(str::to_owned).to_vec();
        assert_eq!(list.words, StopWords::Listed(words));
        assert_eq!(list.left_out, ["won't", "--"]);
    }

    #[test]
    fn as_json_they_are_what_indexes_hold() {
        for (text, words) in [
            ("true", StopWords::OfLanguage(true)),
            ("false", StopWords::OfLanguage(false)),
            ("[\"of\",\"the\"]", StopWords::Listed(vec!["of".to_owned(), "the".to_owned()])),
        ] {
            assert_eq!(serde_json::from_str::<StopWords>(text).unwrap(), words);
            assert_eq!(serde_json::to_string(&words).unwrap(), text);
        }
    }
}
