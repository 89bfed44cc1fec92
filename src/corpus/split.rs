//! Cuts a text into passages of about a wanted number of words, at sentence ends. Pure.
//!
//! A text of `w` words becomes `floor(w / passage_words)` pieces of nearly equal size (at least one) rather than
//! full pieces and a rest: a rest of seven words is a passage that nobody can read. What is short enough stays
//! whole. A record that somebody made is taken for a passage already, up to [`RECORD_STAYS_WHOLE`] times the wanted
//! size; a section of a document only up to twice. Tearing records apart costs recall: of the gold paragraphs of
//! NQ-open over wiki223k, dense search finds 59.9% at rank 1 in whole paragraphs, 56.5% when those of 200 words and
//! more are cut, 54.2% when those of 150 words and more are.

use std::ops::Range;

use super::sentences::{sentences, trim};

/// A word without white space in it (a URL, base64, Thai) counts one word for every so many characters, so
/// that no passage is endless.
const LONGEST_WORD: usize = 32;

/// A sentence may be so many times longer than a passage before it is cut within.
const STRETCH: usize = 2;

/// A piece of a text: byte range, trimmed of white space, and how many words are in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Bytes of the text.
    pub range: Range<usize>,
    /// Words, as [`count_words`] counts them.
    pub words: usize,
}

/// A record of fewer than so many times the wanted number of words is not cut.
pub const RECORD_STAYS_WHOLE: usize = 4;

/// [`split`] for a record, which stays whole below [`RECORD_STAYS_WHOLE`] times the wanted size.
pub fn split_record(text: &str, passage_words: usize) -> Vec<Piece> {
    let short = count_words(text) < passage_words.saturating_mul(RECORD_STAYS_WHOLE);
    split(text, if short { 0 } else { passage_words })
}

/// The pieces of `text`, in order; all of it but white space between them is in exactly one. `passage_words` of
/// 0 keeps the text whole; a text of white space has no pieces.
pub fn split(text: &str, passage_words: usize) -> Vec<Piece> {
    let whole = trim(text, 0..text.len());
    let words = count_words(text);
    if words == 0 {
        return Vec::new();
    }
    let wanted = words.checked_div(passage_words).unwrap_or(1);
    if wanted <= 1 {
        return vec![Piece { range: whole, words }];
    }
    join_evenly(&units(text, passage_words), words, wanted)
}

/// What is not cut further: sentences, or parts of those that are far longer than a passage.
fn units(text: &str, passage_words: usize) -> Vec<Piece> {
    let mut units = Vec::new();
    for range in sentences(text) {
        let sentence = text.get(range.clone()).unwrap_or("");
        let words = count_words(sentence);
        if words <= STRETCH.saturating_mul(passage_words) {
            units.push(Piece { range, words });
            continue;
        }
        let parts = (words + passage_words / 2) / passage_words;
        let (mut from, mut done, mut part) = (0, 0, 1);
        for (n, end) in word_ends(sentence).enumerate() {
            if n + 1 == part * words / parts {
                let cut = trim(text, range.start + from..range.start + end);
                units.push(Piece { range: cut, words: n + 1 - done });
                (from, done, part) = (end, n + 1, part + 1);
            }
        }
    }
    units
}

/// Join neighbouring units to `wanted` pieces (or as many as there are units), each cut at the unit end that is
/// nearest to where equal pieces would be cut; the earlier of two equally near ones.
fn join_evenly(units: &[Piece], words: usize, wanted: usize) -> Vec<Piece> {
    let wanted = wanted.min(units.len());
    let mut pieces = Vec::with_capacity(wanted);
    let mut rest = units.iter().enumerate().peekable();
    let mut before = 0; // words of the units taken so far
    for piece in 1..=wanted {
        let ideal = piece * words / wanted;
        let Some((_, first)) = rest.next() else { break };
        let mut joined = first.clone();
        before += first.words;
        while let Some((index, next)) = rest.peek() {
            let too_few_left = units.len() - index <= wanted - piece;
            let nearer = (before + next.words).abs_diff(ideal) < before.abs_diff(ideal);
            if too_few_left || (piece < wanted && !nearer) {
                break;
            }
            joined.range.end = next.range.end;
            joined.words += next.words;
            before += next.words;
            rest.next();
        }
        pieces.push(joined);
    }
    pieces
}

/// How many words a text has: stretches between white space, each ideograph or kana on its own, and long
/// stretches by their length.
pub fn count_words(text: &str) -> usize {
    word_ends(text).count()
}

/// One past the last byte of each word.
fn word_ends(text: &str) -> impl Iterator<Item = usize> {
    let mut chars = text.char_indices().peekable();
    let mut length = 0;
    std::iter::from_fn(move || {
        while let Some((at, c)) = chars.next() {
            if c.is_whitespace() {
                continue;
            }
            length += 1;
            let next = chars.peek().map_or(' ', |&(_, next)| next);
            let ends = next.is_whitespace() || (is_ideograph(c) || is_wide_mark(c)) && !is_wide_mark(next);
            if ends || length == LONGEST_WORD {
                length = 0;
                return Some(at + c.len_utf8());
            }
        }
        None
    })
}

/// Scripts that write no spaces and have about a word a character: kana, CJK ideographs and their extensions.
fn is_ideograph(c: char) -> bool {
    matches!(c, '\u{3041}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{323af}')
}

/// Their punctuation, which belongs to the word before it.
fn is_wide_mark(c: char) -> bool {
    matches!(c, '\u{3001}'..='\u{3003}' | '\u{3008}'..='\u{3011}' | '\u{ff01}' | '\u{ff0c}' | '\u{ff0e}' | '\u{ff1f}'
        | '\u{ff61}'..='\u{ff64}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(text: &str, words: usize) -> Vec<&str> {
        split(text, words).into_iter().map(|p| &text[p.range]).collect()
    }

    #[test]
    fn words_are_counted() {
        assert_eq!(count_words("  one two,  three\n"), 3);
        assert_eq!(count_words(""), 0);
        assert_eq!(count_words("氷河は。"), 3);
        assert_eq!(count_words(&"x".repeat(65)), 3);
    }

    #[test]
    fn short_texts_stay_whole_and_zero_keeps_everything() {
        assert_eq!(cut(" a b c. d e. ", 4), ["a b c. d e."]);
        assert_eq!(cut("A b c d. E f g h.", 0), ["A b c d. E f g h."]);
        assert!(split(" \n ", 100).is_empty());
    }

    #[test]
    fn pieces_are_balanced_and_end_with_sentences() {
        let text = "A b c d. E f g h. I j k l. M n o p. Q r s t. U v w x.";
        // 24 words at 10 a passage: two pieces of twelve, not two of ten and a rest.
        assert_eq!(cut(text, 10), ["A b c d. E f g h. I j k l.", "M n o p. Q r s t. U v w x."]);
        assert_eq!(cut(text, 4).len(), 6);
    }

    #[test]
    fn an_endless_sentence_is_cut_between_words() {
        let text = "word ".repeat(1000);
        let pieces = split(&text, 100);
        assert_eq!(pieces.len(), 10);
        assert!(pieces.iter().all(|p| p.words == 100));
    }

    #[test]
    fn a_sentence_up_to_twice_the_size_is_not_cut() {
        let text = format!("{}end. {}end.", "One ".repeat(18), "Two ".repeat(18));
        assert_eq!(split(&text, 10).len(), 2);
    }

    proptest! {
        #[test]
        fn all_but_white_space_is_in_exactly_one_piece(
            text in "([a-c氷é]{1,4}( |\n|\\. |! |\\. A|。|\u{3000}|  )){0,120}", words in 0usize..30,
        ) {
            let pieces = split(&text, words);
            let mut last = 0;
            for p in &pieces {
                prop_assert!(text[last..p.range.start].chars().all(char::is_whitespace));
                prop_assert_eq!(text[p.range.clone()].trim().len(), p.range.len());
                prop_assert_eq!(count_words(&text[p.range.clone()]), p.words);
                last = p.range.end;
            }
            prop_assert!(text[last..].chars().all(char::is_whitespace));
            let total = count_words(&text);
            prop_assert_eq!(pieces.iter().map(|p| p.words).sum::<usize>(), total);
            if let Some(wanted) = (total + words / 2).checked_div(words) {
                prop_assert!(pieces.len() <= wanted.max(1));
                // Nothing is far from the wanted size: at most a sentence of twice the size on top of it.
                prop_assert!(pieces.iter().all(|p| p.words <= 4 * words), "{:?}", pieces);
            }
        }

        #[test]
        fn any_text_can_be_split(text in any::<String>(), words in 0usize..5) {
            split(&text, words);
        }
    }
}
