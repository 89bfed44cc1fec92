//! Terms by number: what becomes of a word is worked out once and remembered, as the same words come again and again.

use std::collections::HashMap;

use tantivy::tokenizer::TextAnalyzer;

use super::Analyser;
use super::words::{composed, words};

/// Different words that are remembered from one question to the next: a few megabytes.
const REMEMBERED: usize = 1 << 16;

/// What becomes of words in a question: a term, or nothing if it is a stop word.
pub struct Stems {
    analyser: TextAnalyzer,
    count_titles: bool,
    /// Dutch stems go without a `ge` in front: any term may be that of a word with g.
    loses_ge: bool,
    /// Terms and their numbers.
    terms: HashMap<String, u32>,
    /// Words as they are written, and the numbers of their terms.
    words: HashMap<Box<str>, Option<u32>>,
}

impl std::fmt::Debug for Stems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stems").field("words", &self.words.len()).finish_non_exhaustive()
    }
}

impl Stems {
    /// As this analyser makes them of questions.
    pub fn new(analyser: &Analyser) -> Self {
        let (count_titles, loses_ge) = (analyser.title_weight > 0, analyser.stems_away_ge());
        let analyser = analyser.of_questions();
        Self { analyser, count_titles, loses_ge, terms: HashMap::new(), words: HashMap::new() }
    }

    /// Whether what a title says counts.
    pub fn count_titles(&self) -> bool {
        self.count_titles
    }

    /// Begin another question: numbers given before mean nothing any more.
    pub fn begin(&mut self) {
        if self.words.len() > REMEMBERED {
            self.terms.clear();
            self.words.clear();
        }
    }

    /// The terms of a text, in order.
    pub fn of(&mut self, text: &str) -> Vec<u32> {
        words(&composed(text)).filter_map(|word| self.number(word)).collect()
    }

    /// The term of one of the [`words`] of a text, if it is no stop word: equal numbers are equal terms, until the next
    /// [`Self::begin`].
    pub fn number(&mut self, word: &str) -> Option<u32> {
        if let Some(&known) = self.words.get(word) {
            return known;
        }
        let mut term = None;
        self.analyser.token_stream(word).process(&mut |token| term = Some(token.text.clone()));
        let next = self.terms.len() as u32;
        let number = term.map(|term| *self.terms.entry(term).or_insert(next));
        self.words.insert(word.into(), number);
        number
    }
}

/// First letters of words: most words of a passage are none of a question's, and that is seen by their first letters, which stemming,
/// lower case and folding leave as they are where they are ASCII.
#[derive(Debug, Clone)]
pub struct FirstLetters([bool; 128]);

impl Default for FirstLetters {
    fn default() -> Self {
        Self([false; 128])
    }
}

impl FirstLetters {
    /// Those of the terms of a question's words.
    pub fn of(question: &str, stems: &mut Stems) -> Self {
        let mut letters = Self::default();
        if let Some(g) = letters.0.get_mut(usize::from(b'g')) {
            *g = stems.loses_ge;
        }
        for word in words(&composed(question)) {
            stems.analyser.token_stream(word).process(&mut |token| {
                if let Some(here) = token.text.bytes().next().and_then(|first| letters.0.get_mut(usize::from(first))) {
                    *here = true;
                }
            });
        }
        letters
    }

    /// Whether a word could be of one of the question's terms: never false when it is.
    #[inline]
    pub fn allow(&self, word: &str) -> bool {
        let first = word.bytes().next().unwrap_or_default().to_ascii_lowercase();
        self.0.get(usize::from(first)).copied().unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::index::lexical::{Language, Terms};

    fn check(analyser: &Analyser, stems: &mut Stems, text: &str) {
        let terms = Terms::new(analyser).of_question(text);
        let numbers = stems.of(text);
        assert_eq!(terms.len(), numbers.len(), "{text:?}: {terms:?}");
        for (a, x) in terms.iter().zip(&numbers) {
            for (b, y) in terms.iter().zip(&numbers) {
                assert_eq!(a == b, x == y, "{a} and {b} in {text:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn numbers_are_equal_where_terms_are(texts in prop::collection::vec(".{0,40}|[a-eA-E' .üßé]{0,40}", 1..6)) {
            for language in [None, Some("english"), Some("german"), Some("turkish")] {
                let language: Option<Language> = language.map(|name| name.parse().unwrap());
                let analyser = Analyser { language, ..Analyser::default() };
                let mut stems = Stems::new(&analyser);
                for text in &texts {
                    check(&analyser, &mut stems, text);
                    stems.begin();
                }
            }
        }
    }

    proptest! {
        #[test]
        fn words_of_a_questions_terms_are_allowed(word in "(ge)?[a-zA-Z0-9]{1,3}[a-zA-Z]{0,8}|\\w{1,8}", other in "\\w{1,4}") {
            let word = composed(&word).into_owned();
            prop_assume!(words(&word).eq([word.as_str()]));
            for language in Language::all().map(Some).chain([None]) {
                let analyser = Analyser { language, ..Analyser::default() };
                let mut stems = Stems::new(&analyser);
                // A question of the word's own term, as it is written after analysis, and of another word.
                let mut terms = Terms::new(&analyser);
                let own = terms.of_question(&word).concat();
                for question in [own, other.clone()] {
                    let letters = FirstLetters::of(&question, &mut stems);
                    let asked = stems.of(&question);
                    let same = stems.number(&word).is_some_and(|number| asked.contains(&number));
                    prop_assert!(!same || letters.allow(&word), "{word:?} in {question:?}, {language:?}");
                }
            }
        }
    }

    #[test]
    fn words_of_one_stem_have_one_number_and_stop_words_none() {
        let mut stems = Stems::new(&Analyser::default());
        assert_eq!(stems.of("The glaciers of a GLACIER, and the café"), [0, 0, 1]);
        assert_eq!(stems.of("cafe glacier"), [1, 0]);
        check(&Analyser::default(), &mut stems, &"x".repeat(100));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut stems = Stems::new(&Analyser::default());
        for number in 0..=REMEMBERED {
            assert_eq!(stems.of(&format!("w{number}")).len(), 1);
            stems.begin();
        }
        assert!(stems.words.len() <= REMEMBERED);
    }
}
