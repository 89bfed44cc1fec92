//! Text into words: letters and digits with the marks on them, between anything else.

use std::borrow::Cow;

use tantivy::tokenizer::{Token, TokenStream, Tokenizer};
use unicode_normalization::char::is_combining_mark;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// The words of a [`composed`] text as they are written. Everything behind that in an analyser works word by word.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (word, behind) = next(rest)?;
        rest = behind;
        Some(word)
    })
}

/// The first word of a text, and what is behind it. A mark by itself (of an emoji, say) begins none.
fn next(text: &str) -> Option<(&str, &str)> {
    let begun = text.get(text.find(char::is_alphanumeric)?..)?;
    let end = begun.find(|c: char| !(c.is_alphanumeric() || is_mark(c))).unwrap_or(begun.len());
    begun.split_at_checked(end)
}

/// Vowel signs and the like, without which words of many scripts fall to pieces; none is below here.
fn is_mark(c: char) -> bool {
    c >= '\u{300}' && is_combining_mark(c)
}

/// A text whose letters have their marks in them where there is such a letter, as files of some systems have not; and whose İ is
/// an i, as its lower case would keep its dot as a mark.
pub fn composed(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes && !text.contains('İ') {
        return Cow::Borrowed(text);
    }
    text.nfc().map(|c| if c == 'İ' { 'i' } else { c }).collect::<String>().into()
}

/// [`words`] as the first step of an analyser.
#[derive(Debug, Clone, Default)]
pub(super) struct WordTokenizer {
    token: Token,
}

/// The words of one text.
#[derive(Debug)]
pub(super) struct WordStream<'a> {
    text: Cow<'a, str>,
    at: usize,
    token: &'a mut Token,
}

impl Tokenizer for WordTokenizer {
    type TokenStream<'a> = WordStream<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> WordStream<'a> {
        self.token.reset();
        WordStream { text: composed(text), at: 0, token: &mut self.token }
    }
}

impl TokenStream for WordStream<'_> {
    fn advance(&mut self) -> bool {
        let Some((word, behind)) = self.text.get(self.at..).and_then(next) else { return false };
        self.at = self.text.len() - behind.len();
        self.token.position = self.token.position.wrapping_add(1);
        (self.token.offset_from, self.token.offset_to) = (self.at - word.len(), self.at);
        self.token.text.clear();
        self.token.text.push_str(word);
        true
    }

    fn token(&self) -> &Token {
        self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        self.token
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tantivy::tokenizer::SimpleTokenizer;

    use super::*;

    fn of(text: &str) -> Vec<String> {
        let text = composed(text);
        words(&text).map(str::to_owned).collect()
    }

    fn tokens<T: Tokenizer>(mut tokenizer: T, text: &str) -> Vec<(String, usize)> {
        let mut tokens = Vec::new();
        tokenizer.token_stream(text).process(&mut |token| tokens.push((token.text.clone(), token.position)));
        tokens
    }

    #[test]
    fn marks_belong_to_their_letters() {
        assert_eq!(of("Zu\u{308}rich, Z\u{fc}rich"), ["Z\u{fc}rich", "Z\u{fc}rich"]);
        assert_eq!(of("வணக்கம் हिन्दी"), ["வணக்கம்", "हिन्दी"]);
        assert_eq!(of("I \u{2764}\u{fe0f} ice"), ["I", "ice"]);
        assert_eq!(of("İstanbul"), ["istanbul"]);
        assert_eq!(of(" -- "), Vec::<String>::new());
    }

    proptest! {
        #[test]
        fn without_marks_they_are_what_tantivy_makes(text in "[a-cA-Cß0-9é .,'\\-ж中]{0,40}") {
            prop_assert_eq!(tokens(WordTokenizer::default(), &text), tokens(SimpleTokenizer::default(), &text));
        }

        #[test]
        fn tokens_are_the_words(text in ".{0,40}") {
            let tokens: Vec<String> = tokens(WordTokenizer::default(), &text).into_iter().map(|(word, _)| word).collect();
            prop_assert_eq!(tokens, of(&text));
        }
    }
}
