//! Does a passage hold an answer? DPR's token match, which defines top-k retrieval accuracy.
//!
//! Both are put into Unicode form NFD and cut into tokens: runs of letters, numbers and marks, and every
//! other character that is neither space nor control. A passage holds an answer when the answer's lower-cased
//! tokens stand in it one after another. Punctuation counts, articles count; a part of a word does not.
//!
//! Karpukhin et al. 2020, arXiv:2004.04906, section 3.2 of the evaluation; the match is Chen et al.'s (DrQA, 2017).

use unicode_normalization::UnicodeNormalization;

use crate::eval::characters::{is_letter_number_or_mark, is_space_or_control};

/// The answers of one question, ready to be looked for in many passages.
#[derive(Debug, Clone)]
pub struct AnswerMatcher {
    answers: Vec<Vec<String>>,
}

impl AnswerMatcher {
    /// Prepare `answers`. One without a token (empty, or only spaces) is left out: DPR would find it everywhere.
    pub fn new(answers: &[String]) -> Self {
        Self { answers: answers.iter().map(|a| tokens(a)).filter(|a| !a.is_empty()).collect() }
    }

    /// Whether `text` holds any of the answers.
    pub fn matches(&self, text: &str) -> bool {
        if self.answers.is_empty() {
            return false;
        }
        let text = tokens(text);
        self.answers.iter().any(|answer| text.windows(answer.len()).any(|window| window == answer.as_slice()))
    }
}

/// The lower-cased tokens of a text.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut word = String::new();
    for c in text.nfd() {
        if is_letter_number_or_mark(c) {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            tokens.push(word.to_lowercase());
            word.clear();
        }
        if !is_space_or_control(c) {
            tokens.push(c.to_lowercase().collect());
        }
    }
    if !word.is_empty() {
        tokens.push(word.to_lowercase());
    }
    tokens
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holds(text: &str, answer: &str) -> bool {
        AnswerMatcher::new(&[answer.to_owned()]).matches(text)
    }

    #[test]
    fn tokens_are_words_and_single_signs() {
        assert_eq!(tokens("U.S. $1,500\u{200B}!"), ["u", ".", "s", ".", "$", "1", ",", "500", "!"]);
        assert_eq!(tokens("Café ½kg"), ["cafe\u{301}", "½kg"]);
        assert_eq!(tokens("snake_case"), ["snake", "_", "case"]);
    }

    #[test]
    fn tokens_and_matches_equal_the_definition_in_python() {
        #[derive(serde::Deserialize)]
        struct Case {
            text: String,
            answers: Vec<String>,
            tokens: Vec<String>,
            has_answer: bool,
        }
        // Made by make.py beside it.
        let cases = include_str!("../../tests/fixtures/eval/has_answer.json");
        let cases: Vec<Case> = serde_json::from_str(cases).unwrap();
        assert!(cases.len() > 100);
        for case in cases {
            assert_eq!(tokens(&case.text), case.tokens, "{:?}", case.text);
            assert_eq!(AnswerMatcher::new(&case.answers).matches(&case.text), case.has_answer, "{:?}", case.text);
        }
    }

    #[test]
    fn an_answer_is_found_as_whole_tokens_in_order() {
        assert!(holds("It opened on May 18, 2018, in the US.", "may 18, 2018"));
        assert!(!holds("It opened on May 18 2018.", "May 18, 2018"));
        assert!(!holds("It was a category.", "cat"));
        assert!(!holds("18 May", "May 18"));
        assert!(holds("the caf\u{e9} was closed", "cafe\u{301}"), "composed and decomposed are one");
        assert!(!holds("the cafe was closed", "caf\u{e9}"), "an accent counts");
        assert!(!holds("anything", " "));
        assert!(!AnswerMatcher::new(&[]).matches("anything"));
    }

    proptest! {
        #[test]
        fn a_passage_holds_each_run_of_its_tokens(words in prop::collection::vec("[a-zA-ZÀ-ÿ0-9.,–]{1,6}", 1..20), a in 0usize..20, b in 0usize..20) {
            let (from, to) = (a.min(b).min(words.len() - 1), a.max(b).min(words.len() - 1));
            prop_assert!(holds(&words.join(" "), &words[from..=to].join("  ")));
        }
    }
}
