//! How text becomes terms: split into words (`words.rs`), lower case, stop words left out of questions, stemmed
//! (Snowball), letters without accents. What of this is done, and for which language, is chosen when an index is built.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tantivy::tokenizer::{
    AsciiFoldingFilter, LowerCaser, RemoveLongFilter, Stemmer, StopWordFilter, TextAnalyzer, TokenizerManager,
};

use super::stop_words::StopWords;
use super::words::WordTokenizer;
use crate::error::Error;
use crate::types::Passage;

/// Words of more letters than this are not indexed: they are base64, not language.
const LONGEST_WORD: usize = 39;

/// Most that a title may count.
pub const HEAVIEST_TITLE: u32 = 16;

/// How text becomes terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Analyser {
    /// Version of the rules below; what another version made cannot be searched.
    pub version: u32,
    /// Whose stemmer and stop words are used; without one neither is.
    pub language: Option<Language>,
    /// Whether words are brought to their stems.
    pub stemming: bool,
    /// The words left out of questions. They stay in the index (dropping them there moved recall by less than
    /// 0.2 points either way); searching for them gains up to a point of recall@1 at half the speed.
    pub stop_words: StopWords,
    /// How often a word of the title counts, as if the title stood that often before the text: 0 leaves titles out.
    pub title_weight: u32,
}

impl Default for Analyser {
    /// English, stemmed, a title once.
    fn default() -> Self {
        let language = Some(Language(tantivy::tokenizer::Language::English));
        Self { version: 1, language, stemming: true, stop_words: StopWords::OfLanguage(true), title_weight: 1 }
    }
}

impl fmt::Display for Analyser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let language = self.language.as_ref().map_or_else(|| "no language".to_owned(), Language::to_string);
        let stems = if self.stems() { "stemmed" } else { "whole words" };
        write!(f, "{language}, {stems}, ")?;
        match &self.stop_words {
            StopWords::Listed(words) => write!(f, "{} listed stop words dropped from questions", words.len())?,
            usual if usual.filter(self.language).is_some() => f.write_str("stop words dropped from questions")?,
            _ => f.write_str("stop words kept")?,
        }
        match self.title_weight {
            0 => write!(f, ", titles left out"),
            1 => Ok(()),
            weight => write!(f, ", titles count {weight} times"),
        }
    }
}

impl Analyser {
    /// Bytes of a letter of its language.
    fn bytes_a_letter(&self) -> usize {
        use tantivy::tokenizer::Language::{Arabic, Greek, Russian, Tamil};
        match self.language {
            Some(Language(Arabic | Greek | Russian)) => 2,
            Some(Language(Tamil)) => 3,
            _ => 1,
        }
    }

    /// Whether its stems lose a `ge` in front, which is all that any loses there.
    pub(super) fn stems_away_ge(&self) -> bool {
        self.stems() && self.language == Some(Language(tantivy::tokenizer::Language::Dutch))
    }

    fn stems(&self) -> bool {
        self.stemming && self.language.is_some()
    }

    /// Its name in tantivy's schema.
    pub(super) fn name(&self) -> String {
        match &self.language {
            Some(Language(tantivy::tokenizer::Language::English)) if self.stemming => "en-1".to_owned(),
            Some(language) if self.stemming => format!("{language}-{}", self.version),
            _ => format!("words-{}", self.version),
        }
    }

    /// What passages go through.
    pub(super) fn of_passages(&self) -> TextAnalyzer {
        self.build(None)
    }

    /// What questions go through.
    pub(super) fn of_questions(&self) -> TextAnalyzer {
        self.build(self.stop_words.filter(self.language))
    }

    fn build(&self, stop_words: Option<StopWordFilter>) -> TextAnalyzer {
        let mut chain = TextAnalyzer::builder(WordTokenizer::default())
            // Of less than so many bytes.
            .filter(RemoveLongFilter::limit(LONGEST_WORD * self.bytes_a_letter() + 1))
            .filter(LowerCaser)
            .dynamic();
        if let Some(stop_words) = stop_words {
            chain = chain.filter_dynamic(stop_words);
        }
        let stemmer = self.language.filter(|_| self.stems()).map(|language| Stemmer::new(language.0));
        match (stemmer, self.language) {
            (None, _) => chain.filter_dynamic(AsciiFoldingFilter).build(),
            // English has accents in foreign words alone, which its stemmer does not know with them.
            (Some(stemmer), Some(Language(tantivy::tokenizer::Language::English))) => {
                chain.filter_dynamic(AsciiFoldingFilter).filter_dynamic(stemmer).build()
            }
            (Some(stemmer), _) => chain.filter_dynamic(stemmer).filter_dynamic(AsciiFoldingFilter).build(),
        }
    }

    /// tantivy's analysers, with this one under its name.
    pub(super) fn tokenizers(&self) -> TokenizerManager {
        // Not an empty manager: tantivy wants its "default" for the fields that have no text, too.
        let manager = TokenizerManager::default();
        manager.register(&self.name(), self.of_passages());
        manager
    }
}

/// The terms of texts, as the inverted index has them.
pub struct Terms {
    passages: TextAnalyzer,
    questions: TextAnalyzer,
    title_weight: u32,
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms").field("title_weight", &self.title_weight).finish_non_exhaustive()
    }
}

impl Terms {
    /// As this analyser makes them.
    pub fn new(analyser: &Analyser) -> Self {
        let title_weight = analyser.title_weight;
        Self { passages: analyser.of_passages(), questions: analyser.of_questions(), title_weight }
    }

    /// Those of a passage and its title, in order, each as often as it counts.
    pub fn of_passage(&mut self, passage: &Passage) -> Vec<String> {
        let mut terms = Vec::new();
        for _ in 0..self.title_weight {
            collect(&mut self.passages, &passage.title, &mut terms);
        }
        collect(&mut self.passages, &passage.text, &mut terms);
        terms
    }

    /// Those of a question, in order.
    pub fn of_question(&mut self, question: &str) -> Vec<String> {
        let mut terms = Vec::new();
        collect(&mut self.questions, question, &mut terms);
        terms
    }
}

fn collect(analyser: &mut TextAnalyzer, text: &str, terms: &mut Vec<String>) {
    analyser.token_stream(text).process(&mut |token| terms.push(token.text.clone()));
}

/// A language with a stemmer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Language(pub(super) tantivy::tokenizer::Language);

impl Language {
    /// All of them with their names.
    const NAMES: [(&'static str, tantivy::tokenizer::Language); 18] = {
        use tantivy::tokenizer::Language::{
            Arabic, Danish, Dutch, English, Finnish, French, German, Greek, Hungarian, Italian, Norwegian, Portuguese,
            Romanian, Russian, Spanish, Swedish, Tamil, Turkish,
        };
        [
            ("arabic", Arabic),
            ("danish", Danish),
            ("dutch", Dutch),
            ("english", English),
            ("finnish", Finnish),
            ("french", French),
            ("german", German),
            ("greek", Greek),
            ("hungarian", Hungarian),
            ("italian", Italian),
            ("norwegian", Norwegian),
            ("portuguese", Portuguese),
            ("romanian", Romanian),
            ("russian", Russian),
            ("spanish", Spanish),
            ("swedish", Swedish),
            ("tamil", Tamil),
            ("turkish", Turkish),
        ]
    };
}

#[cfg(test)]
impl Language {
    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Self::NAMES.into_iter().map(|(_, language)| Self(language))
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, language)| *language == self.0).map_or("unknown", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for Language {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name);
        known.map(|&(_, language)| Self(language)).ok_or_else(|| {
            let names: Vec<&str> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            Error::request(
                format!("there are no stems and stop words of the language {name:?}"),
                format!("the languages are {}; none does without", names.join(", ")),
            )
        })
    }
}

impl From<Language> for String {
    fn from(language: Language) -> Self {
        language.to_string()
    }
}

impl TryFrom<String> for Language {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(mut analyser: TextAnalyzer, text: &str) -> Vec<String> {
        let mut terms = Vec::new();
        analyser.token_stream(text).process(&mut |token| terms.push(token.text.clone()));
        terms
    }

    fn of(language: &str) -> Analyser {
        Analyser { language: Some(language.parse().unwrap()), ..Analyser::default() }
    }

    #[test]
    fn english_is_stemmed_and_questions_lose_stop_words() {
        let (english, text) = (Analyser::default(), "The Glaciers of the Café, running");
        assert_eq!(terms(english.of_passages(), text), ["the", "glacier", "of", "the", "cafe", "run"]);
        assert_eq!(terms(english.of_questions(), text), ["glacier", "cafe", "run"]);
        let plain = Analyser { stemming: false, stop_words: StopWords::OfLanguage(false), ..english.clone() };
        assert_eq!(terms(plain.of_questions(), text), ["the", "glaciers", "of", "the", "cafe", "running"]);
        let own = Analyser { stop_words: StopWords::Listed(vec!["café".to_owned(), "the".to_owned()]), ..english };
        assert_eq!(terms(own.of_questions(), text), ["glacier", "of", "run"]);
        assert_eq!(terms(own.of_passages(), text).len(), 6);
        assert!(own.to_string().ends_with("2 listed stop words dropped from questions"), "{own}");
    }

    #[test]
    fn other_languages_have_their_own() {
        let german = of("german");
        assert_eq!(terms(german.of_passages(), "Die Gletscherspalten"), ["die", "gletscherspalt"]);
        assert_eq!(terms(german.of_questions(), "für die Häuser"), ["haus"]);
        let none = Analyser { language: None, ..german };
        assert_eq!(terms(none.of_questions(), "für die Häuser"), ["fur", "die", "hauser"]);
        assert_eq!(terms(of("russian").of_passages(), "телекоммуникационный").len(), 1, "of 40 bytes");
        // No list of stop words: all are kept.
        assert_eq!(terms(of("turkish").of_questions(), "ve buzul").len(), 2);
    }

    #[test]
    fn every_language_is_known_by_its_name_and_has_an_analyser_of_its_own() {
        let mut names = std::collections::BTreeSet::new();
        for (name, _) in Language::NAMES {
            let analyser = of(name);
            assert_eq!(analyser.language.unwrap().to_string(), name);
            assert!(names.insert(analyser.name()), "{name}");
            let text = serde_json::to_string(&analyser).unwrap();
            assert_eq!(serde_json::from_str::<Analyser>(&text).unwrap(), analyser);
        }
        let error = "klingon".parse::<Language>().unwrap_err();
        assert!(error.to_string().contains("\"klingon\"") && error.hint().unwrap().contains("english"), "{error}");
    }
}
