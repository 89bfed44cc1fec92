//! Where sentences end: a linear scan with the rules that encyclopaedia text, documentation and books need.
//!
//! It is a splitter of passages, not a linguist: a wrong guess moves a cut by a few words, so the rules stay
//! few. `unicode_sentences` of unicode-segmentation was tried first and left: it knows no abbreviations, ends a
//! sentence at every newline of hard-wrapped text, and looks ahead again at every character of a run of spaces
//! or brackets after a full stop, so that a hostile line of some megabytes takes hours.

use std::ops::Range;

/// Abbreviations that are followed by a name or a number, never by a new sentence.
const NEVER_LAST: &[&str] = &[
    "adm", "approx", "brig", "ca", "capt", "cf", "cmdr", "col", "dr", "drs", "ed", "eds", "eq", "fig", "figs", "fr",
    "gen", "gov", "hon", "lt", "maj", "messrs", "mlle", "mme", "mr", "mrs", "ms", "mt", "pp", "pres", "prof", "rep",
    "rev", "sen", "sgt", "st", "ste", "viz", "vol", "vols", "vs", "e.g", "i.e",
];

/// Abbreviations that may end a sentence: they do when a usual first word of a sentence follows.
const MAYBE_LAST: &[&str] = &[
    "al", "apr", "aug", "ave", "blvd", "bros", "co", "corp", "dec", "dept", "est", "etc", "feb", "ft", "inc", "jan",
    "jr", "ltd", "nov", "oct", "ph.d", "sep", "sept", "sq", "sr", "univ",
];

/// Abbreviations only before a number: `No. 5`, but "he said no. Then".
const BEFORE_NUMBER: &[&str] = &["art", "ch", "no", "nos", "op", "p", "sec"];

/// Words that seldom begin anything but a sentence.
const STARTERS: &[&str] = &[
    "A", "After", "All", "Although", "An", "And", "As", "At", "Because", "Before", "But", "By", "During", "For",
    "From", "He", "Her", "His", "How", "However", "If", "In", "It", "Its", "Many", "Most", "On", "One", "Or", "Other",
    "She", "Since", "So", "Some", "That", "The", "Their", "Then", "There", "These", "They", "This", "Those", "To",
    "Two", "Until", "We", "What", "When", "Where", "While", "Who", "With", "You",
];

/// The sentences of `text` in order, each trimmed of white space; together they hold all of it but white space.
pub fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        let (end, is_end) = match c {
            '.' | '!' | '?' | '…' | '‼' | '⁇' | '⁈' | '⁉' | '؟' | '۔' | '।' | '॥' | '։' => {
                let end = skip(text, at, |c| is_closer(c) || matches!(c, '.' | '!' | '?' | '…'));
                let end = skip_references(text, end);
                (end, ends_at(text, at, c, end))
            }
            '。' | '！' | '？' | '｡' | '．' => {
                (skip(text, at, |c| is_closer(c) || matches!(c, '。' | '！' | '？')), true)
            }
            '\n' | '\u{c}' | '\u{2029}' => {
                let end = skip(text, at, char::is_whitespace);
                (end, line_ends(text, at, end))
            }
            _ => continue,
        };
        if is_end {
            push_trimmed(text, start..end, &mut found);
            start = end;
        }
        // What was looked at is not looked at again: the scan stays linear.
        while chars.offset() < end && chars.next().is_some() {}
    }
    push_trimmed(text, start..text.len(), &mut found);
    found
}

fn push_trimmed(text: &str, range: Range<usize>, found: &mut Vec<Range<usize>>) {
    let range = trim(text, range);
    if !range.is_empty() {
        found.push(range);
    }
}

/// The range without the white space at its ends.
pub fn trim(text: &str, range: Range<usize>) -> Range<usize> {
    let Some(slice) = text.get(range.clone()) else { return range.start..range.start };
    let start = range.start + (slice.len() - slice.trim_start().len());
    start..start + slice.trim().len()
}

/// The offset after the character at `at` and all that `also` accepts behind it.
fn skip(text: &str, at: usize, also: impl Fn(char) -> bool) -> usize {
    let tail = text.get(at..).unwrap_or("");
    let mut rest = tail.chars();
    rest.next();
    text.len() - rest.as_str().trim_start_matches(also).len()
}

fn is_closer(c: char) -> bool {
    matches!(c, ')' | ']' | '}' | '"' | '\'' | '”' | '’' | '»' | '›' | '」' | '』' | '）' | '】' | '》')
}

/// Whether a sentence ends with the terminator `c` at `at`, whose closing brackets and quotes reach to `end`.
fn ends_at(text: &str, at: usize, c: char, end: usize) -> bool {
    let rest = text.get(end..).unwrap_or("");
    let next = rest.trim_start();
    let Some(first) = next.chars().next() else { return true };
    if next.len() == rest.len() {
        return false; // a decimal, a file name, an address
    }
    let space = rest.get(..rest.len() - next.len()).unwrap_or("");
    if space.bytes().filter(|&b| b == b'\n').count() > 1 {
        return true;
    }
    let alone = text.as_bytes().get(at + 1) != Some(&b'.');
    !(first.is_lowercase() || c == '.' && alone && is_abbreviation(text, at, next))
}

/// Reference marks such as `[12]` belong to the sentence that they follow.
fn skip_references(text: &str, mut end: usize) -> usize {
    while let Some(rest) = text.get(end..).and_then(|rest| rest.strip_prefix('[')) {
        let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        if digits.len() == rest.len() || !digits.starts_with(']') {
            break;
        }
        end = text.len() - digits.len() + 1;
    }
    end
}

/// Whether the full stop at `at` belongs to the word before it, given what follows the space after it.
fn is_abbreviation(text: &str, at: usize, next: &str) -> bool {
    // No abbreviation is longer than a few letters, so a look at a short stretch before the stop is enough.
    let from = (at.saturating_sub(16)..=at).find(|&i| text.is_char_boundary(i)).unwrap_or(at);
    let before = text.get(from..at).unwrap_or("");
    let word = before.rsplit(|c: char| c.is_whitespace()).next().unwrap_or("");
    let line_start = text.get(..at - word.len()).is_some_and(|t| t.is_empty() || t.ends_with('\n'));
    let word = word.trim_start_matches(|c: char| !c.is_alphanumeric());
    if word.is_empty() {
        return false;
    }
    if word.bytes().all(|b| b.is_ascii_digit()) {
        return line_start && word.len() <= 3; // "1. Item"
    }
    let lower = word.to_lowercase();
    let listed = |list: &[&str]| list.contains(&lower.as_str());
    if listed(NEVER_LAST) {
        return true;
    }
    if listed(BEFORE_NUMBER) {
        return next.starts_with(|c: char| c.is_ascii_digit());
    }
    // Initials ("J. R. R."), "U.S.", "p.m.", "Inc.": a sentence ends there when a usual first word follows.
    let dotted = word.split('.').all(|part| part.chars().count() == 1);
    let initial = word.chars().count() == 1 && word.starts_with(char::is_uppercase);
    if (dotted && word.len() > 1) || initial || listed(MAYBE_LAST) {
        let following = next.split(|c: char| !c.is_alphanumeric()).next().unwrap_or("");
        return !STARTERS.contains(&following);
    }
    false
}

/// Whether the white space from `at` to `end`, which begins with a line end, ends a sentence: between paragraphs
/// it does, and before a list item, heading, table row or the like; within prose a single newline is only a wrap.
fn line_ends(text: &str, at: usize, end: usize) -> bool {
    let space = text.get(at..end).unwrap_or("");
    if space.chars().filter(|&c| matches!(c, '\n' | '\u{c}' | '\u{2029}')).count() > 1 || !space.starts_with('\n') {
        return true;
    }
    let next = text.get(end..).unwrap_or("");
    let number = next.len() - next.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    next.starts_with(['-', '*', '+', '•', '#', '>', '|', '`', '=', '~'])
        || (1..=3).contains(&number) && next.get(number..).is_some_and(|rest| rest.starts_with(['.', ')']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(text: &str) -> Vec<&str> {
        sentences(text).into_iter().map(|r| &text[r]).collect()
    }

    #[test]
    fn plain_sentences_end_at_their_marks() {
        assert_eq!(cut("One is here. Two? Three!  Four"), ["One is here.", "Two?", "Three!", "Four"]);
        assert_eq!(cut("He asked \"Why?\" and left. \"So.\" Then"), ["He asked \"Why?\" and left.", "\"So.\"", "Then"]);
        assert_eq!(cut("It froze.[3][12] Then it thawed."), ["It froze.[3][12]", "Then it thawed."]);
        assert_eq!(cut("Wait... What?! No."), ["Wait...", "What?!", "No."]);
    }

    #[test]
    fn abbreviations_initials_and_decimals_do_not_end_a_sentence() {
        for whole in [
            "Dr. Smith met Mr. J. R. R. Tolkien of St. Albans.",
            "It grew by 3.5 percent in the U.S. Senate e.g. Ohio.",
            "No. 5 at approx. 12 km, cf. Fig. 3 of nunatak.rs here.",
            "Apple Inc. Chairman Jobs",
            "Ph.D. Candidate",
            "1. Item of a list",
        ] {
            assert_eq!(cut(whole), [whole]);
        }
    }

    #[test]
    fn a_usual_first_word_ends_what_an_abbreviation_would_join() {
        assert_eq!(cut("He moved to the U.S. He liked it."), ["He moved to the U.S.", "He liked it."]);
        assert_eq!(cut("After World War I. The war ended."), ["After World War I.", "The war ended."]);
        assert_eq!(cut("He worked at Apple Inc. It paid."), ["He worked at Apple Inc.", "It paid."]);
        assert_eq!(cut("She said no. Then she went."), ["She said no.", "Then she went."]);
    }

    #[test]
    fn wrapped_lines_are_joined_and_paragraphs_and_items_are_not() {
        assert_eq!(cut("A long\nline of prose.\nNext one"), ["A long\nline of prose.", "Next one"]);
        assert_eq!(cut("Title\n\nBody text"), ["Title", "Body text"]);
        assert_eq!(cut("Steps\n- first\n- second\n2) third"), ["Steps", "- first", "- second", "2) third"]);
        assert_eq!(cut("Title\r\n\r\nBody text"), ["Title", "Body text"]);
    }

    #[test]
    fn other_scripts_end_sentences_too() {
        assert_eq!(cut("氷河は動く。山は残る。"), ["氷河は動く。", "山は残る。"]);
        assert_eq!(cut("यह बर्फ है। वह नहीं।"), ["यह बर्फ है।", "वह नहीं।"]);
    }

    #[test]
    fn runs_of_spaces_and_brackets_take_linear_time() {
        // Quadratic work on these 2 x 4 MB would take hours.
        for filler in [" ", ")"] {
            let text = format!("One.{} Two", filler.repeat(4 << 20));
            assert_eq!(sentences(&text).len(), 2);
        }
        assert_eq!(sentences(&".".repeat(4 << 20)).len(), 1);
        assert_eq!(sentences(&"\n".repeat(4 << 20)).len(), 0);
        assert_eq!(sentences(&". a".repeat(1 << 20)).len(), 1);
        assert_eq!(sentences(&format!("{}a", "!".repeat(4 << 20))).len(), 1);
        assert_eq!(sentences(&"\n1".repeat(4 << 20)).len(), 1);
        assert_eq!(sentences(&"1".repeat(4 << 20)).len(), 1);
    }

    proptest! {
        #[test]
        fn every_byte_but_white_space_is_in_one_sentence(text in "(\\PC|[ .\n?!)\"A-C1-3。]){0,80}") {
            let mut last = 0;
            for r in sentences(&text) {
                prop_assert!(text[last..r.start].chars().all(char::is_whitespace));
                prop_assert!(!text[r.clone()].is_empty());
                last = r.end;
            }
            prop_assert!(text[last..].chars().all(char::is_whitespace));
        }
    }
}
